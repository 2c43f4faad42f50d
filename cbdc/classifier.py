"""`CBDCClassifier`: images to calibrated prediction sets. Glue; no algorithm here."""

import dataclasses
import warnings
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from .backbones import FineTuner
from .backbones.embedder import as_sources
from .backbones.union import joined
from .conformal import Certificate, ConformalClassifier
from .conformal._seen import count_seen, row_hashes
from .datasets import LesionDataset, check_leakage
from .diagnosis import Diagnosis, diagnose_batch
from .errors import DatasetError, LeakageError, LeakageWarning, ParameterError
from .heads import BayesianHead, LinearPool
from .images import LesionImage
from .metrics import exact_level
from .parts import embedders_of, fine_tuners_of, fitted_on_held_out, head_of, tuning_record
from .saving import load_classifier, save_classifier

__all__ = ["CBDCClassifier"]

_DIAGNOSE_BATCH = 64  # images held decoded at once


class CBDCClassifier(ClassifierMixin, BaseEstimator):
    """Conformal Bayesian dermatological classifier: lesion images to calibrated sets of diagnoses.

    A network, frozen or fine-tuned, embeds the images, a Bayesian head gives the posterior predictive, and
    split-conformal calibration turns it into prediction sets that contain the true diagnosis with a chosen probability.

    Parameters
    ----------
    backbone : str or sequence of str, default="efficientnet_lite0"
        Name of the network, see `cbdc.backbones.list_backbones`. Several names make a deep ensemble: each network gets
        a head of its own, and their probabilities are averaged, see `cbdc.heads.LinearPool`. With `fine_tune` a name
        may come twice.
    head : str or classifier, default="auto"
        Bayesian head over the embeddings, by its name in `cbdc.heads.HEADS`; ``"auto"`` is ``PooledHead(feature_map=
        "hellinger")`` over a frozen network and `LaplaceHead` over a fine-tuned one, as measured in docs/heads.md and
        docs/fine_tuning.md. A scikit-learn classifier is cloned and used; only heads of cbdc can be saved.
    weights : str or Path, default="default"
        Weights of the network: ``"default"``, a file, or ``"random"``.
    fine_tune : FineTuner, bool or None, default=None
        Teaches the network on a part of the training lesions first and fits the head on the others; True is
        ``FineTuner()``. Its `embedder` stays None: network and images are those of this classifier. Network j of
        several, from 0, adds j to the random_state, and so holds out other lesions, and ``-j`` to the name of its
        checkpoint; they share its `minutes` evenly.
    pool : bool, default=True
        With `fine_tune`: pools the head with the classifier that the network was trained with, see
        `cbdc.heads.LogarithmicPool`. A `head` that is no Bayesian head, or has a class_weight, which the network's
        classifier has not, is left as it is.
    image_size : int or None, default=None
        Side of the network's square input, in pixels; None is the size that it was trained at.
    color_constancy : {"shades_of_gray"} or None, default=None
        Takes the cast of the light out of each image first.
    n_views : {1, 2, 4, 8}, default=1
        Mirror images and quarter turns over which the features are averaged, see `ImageEmbedder`.
    weigh_by : {"image", "unit"}, default="image"
        What counts once when the head is fitted: each image, or each lesion or patient (the coarsest unit that the data
        set knows), whose images then share the weight of one. ``"unit"`` hands the head the units as `groups`, so that
        `EnsembleHead` also draws them together. Measured in docs/heads.md: on public data it costs likelihood.
    score : {"lac", "aps", "raps", "saps", "margin", "topk", "rank"}, default="lac"
        Conformity score, see `ConformalClassifier`.
    score_params : dict or None, default=None
        Numbers of the score; None stands for its defaults.
    condition_on : {None, "class", "group", "class_and_group"}, default="class"
        For whom the guarantee holds. ``"class"`` keeps rare diagnoses covered; None only the average over all images.
    group_by : str or None, default=None
        Column of the data set's frame that holds the groups, for example ``"skin_type"``; needed by the group-wise
        conditions.
    confidence_level : float, default=0.9
        Level of the sets; another one may be asked of each prediction.
    guarantee : {"marginal", "pac"}, default="marginal"
        Whether the level is reached on average over the calibration cases, or, with probability 1 - `delta`, given
        them.
    delta : float, default=0.05
        Probability with which a PAC threshold may cover less.
    cache_dir : str, Path or None, default=None
        Folder that keeps embeddings between runs.
    engine : {"auto", "onnx", "torch"}, default="auto"
        What runs the network.
    n_jobs : int or None, default=None
        Threads that decode images; None takes one a core.
    verbose : bool, default=False
        Show a progress bar.
    random_state : int, RandomState instance or None, default=None
        Seeds the head, the draw of one image a lesion, and the scores that are randomised.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    embedder_ : ImageEmbedder or EmbedderUnion
    fine_tuners_ : list of FineTuner
        After `fit` with `fine_tune`, one a network: its history, and which rows it held out.
    head_ : classifier
        Over the embeddings of `embedder_`: the head, or a pool.
    conformal_ : ConformalClassifier
        After `conformalize`.
    taxonomy_ : Taxonomy or None
        Of the training data set: full names and malignancy of the classes.
    provenance_ : dict
        What the model was fitted and calibrated on: names, counts and fingerprints, no identifiers.

    See Also
    --------
    cbdc.ConformalClassifier : The guarantee alone, over any classifier.

    Notes
    -----
    **Guarantee.** Assumption: the calibration units (patients or lesions, one image drawn from each) and the new one
    are exchangeable, and none was used in `fit`. Statement: for ``condition_on="class"``, P(y in set | y = c) >=
    confidence_level for each class c, over the draw of both; for None only on average over classes. What breaks it:
    another camera, clinic, prevalence (None) or kind of lesion; calibrating on images of lesions that were trained on;
    choosing the level after looking at the sets.

    References
    ----------
    Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005. Angelopoulos and Bates, arXiv:2107.07511.

    Examples
    --------
    >>> from cbdc import CBDCClassifier, make_lesions
    >>> lesions = make_lesions(240, image_size=96, random_state=0)
    >>> train, calibration, test = lesions.split(random_state=0)
    >>> clf = CBDCClassifier(confidence_level=0.8, condition_on=None, random_state=0)
    >>> sets = clf.fit(train).conformalize(calibration).predict_set(test.images)
    >>> sets.shape == (len(test), 7)
    True
    """

    def __init__(
        self,
        backbone: str | Sequence[str] = "efficientnet_lite0",
        head: str | ClassifierMixin = "auto",
        *,
        weights: str | Path = "default",
        fine_tune: FineTuner | bool | None = None,
        pool: bool = True,
        image_size: int | None = None,
        color_constancy: str | None = None,
        n_views: int = 1,
        weigh_by: str = "image",
        score: str = "lac",
        score_params: dict[str, float] | None = None,
        condition_on: str | None = "class",
        group_by: str | None = None,
        confidence_level: float = 0.9,
        guarantee: str = "marginal",
        delta: float = 0.05,
        cache_dir: str | Path | None = None,
        engine: str = "auto",
        n_jobs: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.weights = weights
        self.fine_tune = fine_tune
        self.pool = pool
        self.image_size = image_size
        self.color_constancy = color_constancy
        self.n_views = n_views
        self.weigh_by = weigh_by
        self.score = score
        self.score_params = score_params
        self.condition_on = condition_on
        self.group_by = group_by
        self.confidence_level = confidence_level
        self.guarantee = guarantee
        self.delta = delta
        self.cache_dir = cache_dir
        self.engine = engine
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.random_state = random_state

    @property
    def score(self) -> Any:
        """Mean accuracy of `predict`, as every scikit-learn classifier has it: ``score(X, y=None)``.

        The name also is that of a parameter, which `get_params` gives and `set_params` sets.
        """
        return self._accuracy

    @score.setter
    def score(self, name: str) -> None:
        self.__dict__["score"] = name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the constructor; see `sklearn.base.BaseEstimator`."""
        return super().get_params(deep) | {"score": self.__dict__["score"]}

    def _accuracy(self, X: Any, y: Any = None) -> float:
        images, labels = _images_and_labels(X, y)
        return float(np.mean(self.predict(images) == labels))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        return tags

    def fit(self, X: Any, y: Any = None) -> "CBDCClassifier":
        """Fine-tune the network where asked, embed the images and fit the head.

        Parameters
        ----------
        X : LesionDataset, or sequence of n images
            Paths, encoded bytes or uint8 arrays (H, W, 3).
        y : array-like of shape (n,), optional
            Labels; a data set brings its own, and takes none.

        Returns
        -------
        CBDCClassifier
            Itself.

        Raises
        ------
        ImageError
            If an image cannot be used; the message lists them.
        DatasetError
            If fine-tuning finds a class without a second lesion to hold out.
        """
        images, labels = _images_and_labels(X, y)
        if isinstance(self.confidence_level, Real):
            exact_level(self.confidence_level)
        self._make_conformal(None)._validate_params()  # a slip is told now, not after the embedding
        if self.group_by is not None and not self._is_groupwise(self.condition_on):
            raise ParameterError(
                f"group_by: it goes with condition_on='group' or 'class_and_group'; got {self.condition_on!r}."
            )
        if self.condition_on == "cluster":
            raise ParameterError(
                "condition_on='cluster' takes tuning on cases of their own. Fix: ConformalClassifier(clf.head_, "
                "prefit=True, condition_on='cluster') over embeddings, with its tune and conformalize."
            )
        embedders = embedders_of(self)
        head = head_of(self)
        if len(embedders) > 1 and not isinstance(head, BayesianHead):
            raise ParameterError(f"head: several backbones take a head of cbdc.heads each; got {type(head).__name__}.")
        units = self._units(X, head)
        if self.group_by is not None:
            self._groups(X, None)  # that the column is there
        # of an earlier fit: should this one fail, nothing is left that speaks of other data
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            del self.__dict__[name]
        provenance: dict[str, Any] = {"training": _provenance(X, labels)}
        self._trained_on = None  # rows of embeddings; a tuned network's training images are not embedded
        if self.fine_tune:
            self.fine_tuners_ = [tuner.fit(X, y) for tuner in fine_tuners_of(self, embedders)]
            provenance["fine_tuning"] = [tuning_record(tuner) for tuner in self.fine_tuners_]
            embedders = [tuner.embedder_ for tuner in self.fine_tuners_]
            heads = [
                fitted_on_held_out(tuner, head, images, labels, units, pool=self.pool) for tuner in self.fine_tuners_
            ]
        else:
            parts = [one.fit(images).transform(images) for one in embedders]
            heads = [clone(head).fit(part, labels, **units) for part in parts]
            self._trained_on = row_hashes(np.hstack(parts))
        self.embedder_, self.head_ = joined(embedders), heads[0] if len(heads) == 1 else LinearPool.of(heads)
        self.classes_, self.provenance_ = self.head_.classes_, provenance
        self.taxonomy_ = X.taxonomy if isinstance(X, LesionDataset) else None
        self._seen = {"training": X} if isinstance(X, LesionDataset) else {}
        return self

    def conformalize(self, X: Any, y: Any = None, *, groups: Any = None, unit: str | None = None) -> "CBDCClassifier":
        """Calibrate the prediction sets on data that `fit` never saw.

        Parameters
        ----------
        X : LesionDataset, or sequence of n images
        y : array-like of shape (n,), optional
            Labels; a data set brings its own, and takes none.
        groups : array-like of shape (n,), optional
            Group of each image, for the group-wise conditions; a data set brings the column `group_by`.
        unit : {"patient", "lesion", "image"}, optional
            One image is drawn at random from each unit, since images of one lesion are not exchangeable. Default: the
            coarsest unit that the data set knows.

        Returns
        -------
        CBDCClassifier
            Itself.

        Raises
        ------
        LeakageError
            If a patient, lesion or photograph was trained on.
        DatasetError
            If a model of real images is calibrated on made ones.
        ImageError
            If an image cannot be used.
        """
        check_is_fitted(self, "head_")
        if groups is not None and not self._is_groupwise(self.condition_on):
            raise ParameterError(f"groups: condition_on={self.condition_on!r} takes none. Fix: leave them out.")
        self.__dict__.pop("conformal_", None)  # should this one fail, the old thresholds are not taken for its own
        provenance = _provenance(X, y)
        seen: dict[str, LesionDataset] = {}
        if isinstance(X, LesionDataset):
            self.check_unseen(X, parts=("training",))
            if X.synthetic and not self.provenance_["training"].get("synthetic"):
                raise DatasetError(
                    f"calibration data {X.name!r}: made images, but the model was fitted on real ones; their "
                    "thresholds would guarantee nothing for patients. Calibrate on real images."
                )
            unit = unit or X.unit
            groups, whole = self._groups(X, groups), X
            if groups is not None and (n_missing := int(pd.isna(groups).sum())):
                raise ParameterError(
                    f"groups: {n_missing} of {len(X)} images have none. Fix: leave them out with take() and say so, or "
                    "give all images the groups=, with a name for these, for example 'unknown'."
                )
            X = whole.one_per(unit, random_state=self.random_state)
            if groups is not None:
                groups = groups[pd.Index(whole.frame["image"]).get_indexer(X.frame["image"])]
            provenance |= {"unit": unit, "n_units": len(X)}
            seen = {"calibration": whole}
        elif unit not in (None, "image"):
            raise ParameterError(f"unit={unit!r} needs a LesionDataset, which knows it; got {type(X).__name__}.")
        images, labels = _images_and_labels(X, y)
        if not len(labels):
            raise ParameterError("X: got no calibration images; give at least one, and some ten of each diagnosis.")
        embeddings = self.embedder_.transform(images)
        self._warn_of_trained(embeddings)
        conformal = self._make_conformal(self.head_).fit(embeddings, labels)
        units = np.arange(len(labels)) if provenance.get("unit", "image") != "image" else None  # drawn, one of each
        self.conformal_ = conformal.conformalize(embeddings, labels, groups=self._groups(X, groups), units=units)
        self.provenance_ = self.provenance_ | {"calibration": provenance}
        self._seen = {part: data for part, data in self._seen.items() if part == "training"} | seen
        return self

    def check_unseen(self, X: LesionDataset, *, parts: Sequence[str] = ("training", "calibration")) -> None:
        """Raise if the data set shares a patient, lesion or photograph with what the model was made from.

        A model that was loaded holds no identifiers: of its data only the whole set and the whole parts are recognised.

        Parameters
        ----------
        X : LesionDataset
        parts : sequence of {"training", "calibration"}

        Raises
        ------
        LeakageError
        """
        known = {part: self.provenance_.get(part, {}).get("fingerprint") for part in parts}
        known["whole"] = getattr(self, "notes_", {}).get("fingerprint")
        for part, fingerprint in known.items():
            if fingerprint == X.fingerprint:
                raise LeakageError(
                    f"{X.name}: this is the {part} data of the model; its figures there say nothing of new cases. Use "
                    "the part that split() left."
                )
        for part in parts:
            if part in self._seen:
                check_leakage(self._seen[part], X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior predictive probabilities, float (n, n_classes), columns in the order of `classes_`.

        Raises
        ------
        ImageError
            If an image cannot be used; `diagnose` gives such an image a refused row instead.
        """
        check_is_fitted(self, "head_")
        return self.head_.predict_proba(self._embed(X))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each image, (n,)."""
        best = np.argmax(self.predict_proba(X), axis=1)
        return self.classes_[best]

    def predict_set(self, X: Any, confidence_level: float | None = None, groups: Any = None) -> np.ndarray:
        """Prediction sets, bool (n, n_classes), columns in the order of `classes_`.

        Parameters
        ----------
        X : LesionDataset, or sequence of n images
        confidence_level : float, optional
            Default: that of the constructor.
        groups : array-like of shape (n,), optional
            Group of each image, for the group-wise conditions.

        Raises
        ------
        ImageError
            If an image cannot be used; `diagnose` gives such an image a refused row instead.
        """
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        return self.conformal_.predict_set(self._embed(X), level, groups=self._groups(X, groups))

    def diagnose(
        self, X: Any, confidence_level: float | None = None, groups: Any = None, *, stability: Any = None
    ) -> Diagnosis | list[Diagnosis]:
        """Everything that can be said of each image; one that cannot be read becomes a refused row, in its place.

        Parameters
        ----------
        X : LesionDataset, one image, or sequence of n images
            Path, encoded bytes or uint8 array (H, W, 3).
        confidence_level : float, optional
            Default: that of the constructor.
        groups : array-like of shape (n,), optional
            Group of each image (one value for one image), for the group-wise conditions.
        stability : StabilityDiagnostic, optional
            Fitted on images that the model was not trained on; its p-value of each image goes into the diagnosis. It
            embeds some thirty perturbed versions of each.

        Returns
        -------
        Diagnosis or list of Diagnosis
            One for one image, otherwise a list in the order of the images.
        """
        self._check_conformalized()
        level = self.confidence_level if confidence_level is None else confidence_level
        single = isinstance(X, str | Path | bytes | LesionImage) or (isinstance(X, np.ndarray) and X.ndim == 3)
        images = [X] if single else list(X.images if isinstance(X, LesionDataset) else X)
        groups = self._groups(X, [groups] if single and groups is not None else groups)
        if groups is not None and len(groups) != len(images):
            raise ParameterError(f"groups: got {len(groups)} for {len(images)} images; give one for each image.")
        rows: list[Diagnosis] = []
        for start in range(0, len(images), _DIAGNOSE_BATCH):
            batch = slice(start, start + _DIAGNOSE_BATCH)
            known = None if groups is None else groups[batch]
            rows += diagnose_batch(self, images[batch], start, level, known, stability)
        return rows[0] if single else rows

    def save(self, path: str | Path, *, notes: dict[str, Any] | None = None) -> Path:
        """Write the model to one file: head, thresholds, provenance and a golden prediction; no image, no pickle.

        A network that was fine-tuned goes along (13 MB for EfficientNet-Lite0); of another one the file holds the
        sha256 of its weights only.

        Parameters
        ----------
        path : str or Path
        notes : dict, optional
            JSON-able; comes back as `notes_`.

        Raises
        ------
        ModelFileError
            If the head is not one of the named heads, or the file cannot be written.
        """
        self._check_conformalized()
        return save_classifier(self, Path(path), notes or {})

    @classmethod
    def load(cls, path: str | Path, **parameters: Any) -> "CBDCClassifier":
        """Read a model file, find its network on this machine, and replay the golden prediction.

        Parameters
        ----------
        path : str or Path
        **parameters
            Of this machine: `cache_dir`, `engine`, `n_jobs`, `verbose`, `weights` (a file's place).

        Raises
        ------
        ModelFileError
            If the file is not whole, or this machine does not repeat the prediction that was saved with it.
        MissingWeightsError
            If the network's weights are not here.
        """
        return load_classifier(cls, Path(path), parameters)

    def certificate(self, confidence_level: float | None = None) -> Certificate:
        """What the sets promise, on how many cases it rests, and the fingerprints of the data behind it.

        Parameters
        ----------
        confidence_level : float, optional
            Default: that of the constructor.

        Returns
        -------
        Certificate
            Its text is ``str(certificate)``; its hashes are those of the calibration scores and, where they are known,
            of the training and calibration data and the network.
        """
        self._check_conformalized()
        found = self.conformal_.certificate(self.confidence_level if confidence_level is None else confidence_level)
        parts = {part: self.provenance_.get(part, {}).get("fingerprint") for part in ("training", "calibration")}
        hashes = found.hashes | {f"{part}_data": value for part, value in parts.items() if value}
        return dataclasses.replace(found, hashes=hashes | {"embedder": self.embedder_.fingerprint_})

    def _units(self, X: Any, head: Any) -> dict[str, np.ndarray]:
        """What the head's `fit` takes besides embeddings and labels."""
        if self.weigh_by == "image":
            return {}
        if self.weigh_by != "unit":
            raise ParameterError(f"weigh_by={self.weigh_by!r}: expected 'image' or 'unit'.")
        if not isinstance(X, LesionDataset):
            raise ParameterError(f"weigh_by='unit' needs a LesionDataset, which knows them; got {type(X).__name__}.")
        if not has_fit_parameter(head, "groups"):
            raise ParameterError(
                f"weigh_by='unit': fit of {type(head).__name__} takes no groups. Fix: a head of cbdc.heads, or "
                "weigh_by='image'."
            )
        return {"groups": X.groups()}

    def _make_conformal(self, head: Any) -> ConformalClassifier:
        return ConformalClassifier(
            head,
            score=self.__dict__["score"],
            score_params=self.score_params,
            condition_on=self.condition_on,
            confidence_level=self.confidence_level,
            guarantee=self.guarantee,
            delta=self.delta,
            repeated="one",
            prefit=True,
            random_state=self.random_state,
        )

    def _embed(self, X: Any) -> np.ndarray:
        return self.embedder_.transform(X.images if isinstance(X, LesionDataset) else X)

    def _groups(self, X: Any, groups: Any) -> np.ndarray | None:
        """The groups given, or the data set's column `group_by`; None where the condition needs none."""
        if not self._is_groupwise(self.conformal_.condition_on_ if hasattr(self, "conformal_") else self.condition_on):
            return None
        if groups is None and isinstance(X, LesionDataset) and self.group_by is not None:
            if self.group_by not in X.frame.columns:
                raise DatasetError(
                    f"group_by={self.group_by!r}: data set {X.name!r} has no such column; it has "
                    f"{', '.join(X.frame.columns)}."
                )
            groups = X.frame[self.group_by]
        return None if groups is None else np.asarray(groups)

    @staticmethod
    def _is_groupwise(condition: str | None) -> bool:
        return condition in ("group", "class_and_group")

    def _warn_of_trained(self, embeddings: np.ndarray) -> None:
        """Images that come without a data set have no identifiers, but they have the embeddings of training."""
        known = getattr(self, "_trained_on", None)
        if known is not None and (found := count_seen(row_hashes(embeddings), known)):
            warnings.warn(
                f"{found} of {len(embeddings)} calibration images are ones that this CBDCClassifier was trained on: "
                "the thresholds promise nothing for new cases. Fix: conformalize on images that fit never saw.",
                LeakageWarning,
                stacklevel=3,
            )

    def _check_conformalized(self) -> None:
        check_is_fitted(self, "head_")
        if not hasattr(self, "conformal_"):
            raise NotFittedError(
                "This CBDCClassifier is fitted but not calibrated: call conformalize(calibration) with data that fit "
                "never saw."
            )

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        empty: dict[str, Any] = {"_seen": {}, "_trained_on": None}  # identifiers stay out of copies
        return state | {name: value for name, value in empty.items() if name in state}


def _images_and_labels(X: Any, y: Any) -> tuple[Any, np.ndarray]:
    if isinstance(X, LesionDataset):
        if y is not None:
            raise ParameterError(
                f"y: data set {X.name!r} brings its own labels. Fix: leave y out, or give the images, X.images, with y."
            )
        return X.images, X.labels
    X = as_sources(X)  # by position from here on, whatever index a Series has
    if y is None:
        raise ValueError("y is missing: give the labels, or a LesionDataset, which brings its own.")
    if len(X) != len(y):
        raise ValueError(f"got {len(X)} images and {len(y)} labels; give one label for each image.")
    return X, np.asarray(y)


def _provenance(X: Any, labels: Any) -> dict[str, Any]:
    """Counts and fingerprint of a data set; no identifiers."""
    if not isinstance(X, LesionDataset):
        return {"n_images": len(X)}
    names, counts = np.unique(X.labels, return_counts=True)
    return {
        "dataset": X.name,
        "fingerprint": X.fingerprint,
        "synthetic": X.synthetic,
        "n_images": len(X),
        "n_by_class": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
    }
