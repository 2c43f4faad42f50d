"""`EnsembleHead`: softmax regressions, each the mode of a randomised posterior."""

from dataclasses import replace
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from ._base import BayesianHead
from ._draws import DrawnHead
from ._softmax import SoftmaxProblem, contrasts, find_mode
from ._training import Mode, find_start, merge_rows

__all__ = ["EnsembleHead"]


class EnsembleHead(DrawnHead):
    """Ensemble of softmax regressions on bootstrap weights, each pulled towards its own draw of the prior.

    Member m minimises the loss of the data, lesion or patient i counting Gamma(1) times instead of once, plus
    prior_precision / 2 times the squared distance of its weights to a draw from the prior. This is randomised MAP
    sampling: where the likelihood is Gaussian the members are draws of the exact posterior.

    Parameters
    ----------
    n_members : int, default=32
    prior_precision : "evidence" or float, default="evidence"
        Of the weights of features with unit variance; ``"evidence"`` takes `LaplaceHead`'s.
    standardize : bool, default=False
        Divide each feature by its own standard deviation, not all by one.
    feature_map : {"hellinger"} or None, default=None
        `cbdc.heads.hellinger` of the embeddings first: square roots, rows of length 1. It suits the average activations
        of a convolutional network.
    class_weight : {"balanced"}, dict or None, default=None
        Factor of the weight of each class's rows; "balanced" gives all classes the same total.
    max_iter : int, default=100
        Newton steps of each member.
    tol : float, default=0.05
        Accepted distance of a member to its mode, in posterior standard deviations, root mean square over the
        parameters: far below the spread of the members.
    random_state : int, RandomState instance or None, default=None
        Draws the members. None means 0: a head is deterministic.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    n_features_in_ : int
    prior_precision_ : float
    n_iter_ : int
        Newton steps, over all members.
    mean_, scale_ : ndarray of shape (n_features,)
        Standardisation of the embeddings.
    weight_draws_ : ndarray of shape (n_members, n_features + 1, n_classes)
        Members: weights of the standardised features, intercept last.

    See Also
    --------
    LaplaceHead : The Gaussian that the members tend to when the model is right and the data are many.

    Notes
    -----
    **Which posterior.** To first order around the mode a member deviates by H^-1 (score noise + prior noise). If the
    model is right, its covariance is H^-1, that of `LaplaceHead`. If it is wrong, it is the sandwich H^-1 (F + prior)
    H^-1 with F the covariance of the scores: the weights then vary as they would from sample to sample. With `groups`
    whole lesions or patients are drawn.

    A weight of 2 counts as two rows: Gamma(2). Weights that are no counts (`class_weight`) are counts in the same
    sense.

    References
    ----------
    Newton and Raftery, *Approximate Bayesian inference with the weighted likelihood bootstrap*, 1994,
    10.1111/j.2517-6161.1994.tb01956.x. Newton, Polson, Xu, *Weighted Bayesian bootstrap for scalable posterior
    distributions*, arXiv:1803.04559. Osband, Aslanides, Cassirer, *Randomized prior functions for deep reinforcement
    learning*, arXiv:1806.03335. Pearce, Leibfried, Brintrup, *Uncertainty in neural networks: approximately Bayesian
    ensembling*, arXiv:1810.05546.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.heads import EnsembleHead
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["mel", "nv"], 50)
    >>> E = rng.normal(size=(100, 3)) + (y == "mel")[:, None]
    >>> head = EnsembleHead(n_members=8).fit(E, y)
    >>> head.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array(['mel', 'nv'], dtype='<U3')
    >>> head.weight_draws_.shape
    (8, 4, 2)
    """

    _scalars = (*BayesianHead._scalars, "prior_precision_", "n_iter_")
    _parameter_constraints: dict = {  # noqa: RUF012
        **BayesianHead._parameter_constraints,
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "prior_precision": [StrOptions({"evidence"}), Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        n_members: int = 32,
        *,
        prior_precision: float | str = "evidence",
        standardize: bool = False,
        feature_map: str | None = None,
        class_weight: str | dict | None = None,
        max_iter: int = 100,
        tol: float = 0.05,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_members = n_members
        self.prior_precision = prior_precision
        self.standardize = standardize
        self.feature_map = feature_map
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(
        self,
        E: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> "EnsembleHead":
        """Find the mode of all data, then that of each member from there.

        Parameters
        ----------
        E : array-like of shape (n, n_features), float32 or float64
            Embeddings; computed in their precision.
        y : array-like of shape (n,)
            Labels: str, int or bool.
        sample_weight : array-like of shape (n,), optional
            A row of weight 2 counts as two rows, one of weight 0 as none.
        groups : array-like of shape (n,), optional
            Patient or lesion of each row: the rows of one share the weight of a row, the mean of theirs, and are drawn
            together.

        Returns
        -------
        EnsembleHead
            Itself.

        Raises
        ------
        ValueError
            If E holds NaN or infinity, or y fewer than two classes.
        """
        training = merge_rows(self._prepare(E, y, sample_weight, groups))
        start = find_start(training, self.prior_precision)
        rng = check_random_state(self.seed_)
        counts = np.bincount(training.groups, training.weights)
        members = []
        self.n_iter_ = 0
        for _ in range(self.n_members):
            drawn = np.maximum(rng.gamma(counts), np.finfo(float).tiny)  # tiny weights may all be drawn as zero
            weights = training.weights * (drawn / counts)[training.groups]
            member, n_iter = self._member(start, replace(start.problem, weights=weights), rng)
            members.append(member)
            self.n_iter_ += n_iter
        self.prior_precision_ = start.prior_precision
        self.weight_draws_ = np.array(members, dtype=training.X.dtype)
        return self

    def _member(self, start: Mode, problem: SoftmaxProblem, rng: np.random.RandomState) -> tuple[np.ndarray, int]:
        """Weights (n_features + 1, n_classes) at the mode of the problem with the prior around a draw of it."""
        weights = rng.standard_normal((self.n_features_in_ + 1, problem.n_classes - 1))
        weights[:-1] /= np.sqrt(start.row_precision[0])
        weights[-1] /= np.sqrt(start.row_precision[-1])
        axes = start.axes.astype(float)
        along = np.vstack([axes.T @ weights[:-1], weights[-1:]])
        offset = problem.logits(along)
        shift, _, _, n_iter = find_mode(
            problem,
            start.prior,
            start.parameters - along,
            max_iter=self.max_iter,
            tol=self.tol,
            log_likelihood=lambda logits: problem.log_likelihood(logits + offset),
        )
        weights[:-1] += axes @ shift[:-1]  # outside the axes it keeps its draw of the prior
        weights[-1] += shift[-1]
        return weights @ contrasts(problem.n_classes).T, n_iter
