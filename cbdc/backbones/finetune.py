"""`FineTuner`: a network taught on labelled lesions, as a scikit-learn transformer."""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..errors import DatasetError, ImageError, LeakageWarning, ParameterError
from ..images import LesionImage, refusal_message
from ..modelfile import read_modelfile
from ..perturb import PERTURBATIONS
from .augment import MARGIN, Augmenter
from .embedder import ImageEmbedder, as_sources, listed
from .losses import LOSSES, Loss
from .networks import Backbone, create_backbone, finished_backbone
from .training import Data, Settings, seconds_per_image, size_of_epoch, train

__all__ = ["LIGHT", "FineTuner"]

LIGHT = ("brightness", "contrast", "gamma", "white_balance", "saturation")  # default perturbations


class FineTuner(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Train a network further on labelled images, then embed with it.

    A part of the lesions is held out: it chooses the epoch, and it is what a head is to be fitted on (`held_out_`). On
    the images that the network was trained on its embeddings separate the classes almost perfectly, and a head fitted
    there takes that for knowledge: see the guide.

    Parameters
    ----------
    embedder : ImageEmbedder or None, default=None
        Network, its input size and how images are shown to it; None is ``ImageEmbedder()``. It is cloned.
    epochs : int, default=20
        Times that every image is trained on, at most.
    minutes : float or None, default=None
        Budget of time: `epochs` is lowered to what a few measured steps say will fit, see `n_epochs_`. The same number
        of epochs asked for gives the same network; the same number of minutes may not. A run that resumes from its
        checkpoint keeps the plan that it began with.
    first_size : int or None, default=None
        Side of the images of the first epoch, in pixels; it grows evenly, rounded to 32, to the embedder's. Small
        images are quick, and train well what large ones then refine (progressive learning: Tan and Le,
        arXiv:2104.00298). None trains at the embedder's size throughout.
    blocks : int or None, default=None
        Trains the last so many stages of the network only, see `stages_of`; None trains all.
    learning_rate : float, default=2e-3
        Peak rate of the classifier (AdamW).
    layer_decay : float, default=0.9
        Factor of the rate from one stage to the one before it: what the first layers know of edges and colours is kept.
    weight_decay : float, default=0.02
    schedule : {"cosine", "one_cycle"}, default="cosine"
        A linear rise over the share `warmup`, then half a cosine down to 0; or half a cosine up over the first three
        tenths, then down. The rates only: AdamW's momentum stays.
    warmup : float, default=0.1
    batch_size : int, default=32
    loss : {"cross_entropy", "class_balanced", "focal", "logit_adjusted"}, default="cross_entropy"
        See `cbdc.backbones.losses.Loss`.
    label_smoothing : float, default=0.05
    mixup : float, default=0.0
        Parameter of the Beta law of the share in which two images are blended (Zhang et al., arXiv:1710.09412); with 0
        none are.
    dropout : float, default=0.2
        Of features, before the classifier.
    augment : sequence of str or None, default=("brightness", "contrast", "gamma", "white_balance", "saturation")
        Perturbations by name (`cbdc.perturb.list_perturbations`), each applied with probability 1/2, on top of a warp
        (turn by any angle, mirror, zoom, shift); None shows every image as it is.
    max_severity : int, default=2
        Their severity is drawn from 1 to this.
    ema_decay : float, default=0.995
        The network kept is an exponential moving average of the weights over the steps.
    validation_fraction : float, default=0.2
        Share of each class's lesions that is held out.
    patience : int or None, default=None
        Stops after so many epochs without a better held-out likelihood; None runs all.
    keep : {"best", "last"}, default="best"
        The network of which epoch. The one of the best held-out likelihood; or the last, whose rate has fallen to
        nothing: it may be surer than it should, which the head, fitted on what is held out, mends.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        ``"auto"`` takes bfloat16 where the processor or GPU computes in it.
    checkpoint : str, Path or None, default=None
        File written after every epoch. A fit with the same data and parameters that finds it goes on from there, to the
        same result bit for bit.
    verbose : bool, default=False
        Print a row an epoch.
    random_state : int, RandomState instance or None, default=None

    Attributes
    ----------
    embedder_ : ImageEmbedder
        Fitted to the network of the epoch that is kept.
    held_out_ : ndarray of shape (n_held_out,)
        Rows that the network was not trained on.
    n_trained_ : int
        Rows that it was.
    classes_ : ndarray of shape (n_classes,)
    coef_, intercept_, offset_ : ndarrays of shape (n_classes, n_features), (n_classes,) and (n_classes,), float32
        The linear classifier that was trained along: softmax of ``transform(X) @ coef_.T + intercept_ + offset_``.
    history_ : list of dict
        A row an epoch: loss, negative log-likelihood and accuracy of the held-out part, seconds.
    best_epoch_ : int
        By the held-out likelihood, from 1.
    n_epochs_ : int
        Epochs that the rates were planned for.
    precision_ : str

    See Also
    --------
    cbdc.CBDCClassifier : ``fine_tune=FineTuner(...)`` fits the head on the held-out part.

    Notes
    -----
    In a Pipeline the next step would be fitted on images that the network was taught: fit it on `held_out_`, as
    `CBDCClassifier` does.

    Results repeat bit for bit for one seed and one number of threads. On 6,000 images and two processors an epoch of
    EfficientNet-Lite0 at 160 pixels takes about a minute and a half in bfloat16. All images are held in memory, 100 kB
    each at that size.

    References
    ----------
    AdamW: Loshchilov and Hutter, arXiv:1711.05101. Rates that fall towards the image: Howard and Ruder,
    arXiv:1801.06146.

    Examples
    --------
    >>> from cbdc import ImageEmbedder, make_lesions
    >>> from cbdc.backbones import FineTuner
    >>> lesions = make_lesions(64, image_size=64, random_state=0)
    >>> tuner = FineTuner(ImageEmbedder(image_size=32), epochs=1, random_state=0).fit(lesions)
    >>> tuner.transform(lesions.images[:2]).shape
    (2, 1280)
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        "embedder": [ImageEmbedder, None],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "minutes": [Interval(Real, 0, None, closed="neither"), None],
        "first_size": [Interval(Integral, 32, None, closed="left"), None],
        "blocks": [Interval(Integral, 0, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "layer_decay": [Interval(Real, 0, 1, closed="right")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"cosine", "one_cycle"})],
        "warmup": [Interval(Real, 0, 1, closed="left")],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "loss": [StrOptions(set(LOSSES))],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "mixup": [Interval(Real, 0, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "augment": [list, tuple, None],
        "max_severity": [Options(Integral, {1, 2, 3, 4, 5})],
        "ema_decay": [Interval(Real, 0, 1, closed="left")],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "patience": [Interval(Integral, 1, None, closed="left"), None],
        "keep": [StrOptions({"best", "last"})],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "checkpoint": [str, os.PathLike, None],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        embedder: ImageEmbedder | None = None,
        *,
        epochs: int = 20,
        minutes: float | None = None,
        first_size: int | None = None,
        blocks: int | None = None,
        learning_rate: float = 2e-3,
        layer_decay: float = 0.9,
        weight_decay: float = 0.02,
        schedule: str = "cosine",
        warmup: float = 0.1,
        batch_size: int = 32,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.05,
        mixup: float = 0.0,
        dropout: float = 0.2,
        augment: Sequence[str] | None = LIGHT,
        max_severity: int = 2,
        ema_decay: float = 0.995,
        validation_fraction: float = 0.2,
        patience: int | None = None,
        keep: str = "best",
        precision: str = "auto",
        checkpoint: str | Path | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.embedder = embedder
        self.epochs = epochs
        self.minutes = minutes
        self.first_size = first_size
        self.blocks = blocks
        self.learning_rate = learning_rate
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.batch_size = batch_size
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.dropout = dropout
        self.augment = augment
        self.max_severity = max_severity
        self.ema_decay = ema_decay
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.keep = keep
        self.precision = precision
        self.checkpoint = checkpoint
        self.verbose = verbose
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        return tags

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "FineTuner":
        """Train the network.

        Parameters
        ----------
        X : LesionDataset, or sequence of n images
            Paths, encoded bytes or uint8 arrays (H, W, 3).
        y : array-like of shape (n,), optional
            Labels; a data set brings its own.
        groups : array-like of shape (n,), optional
            Lesion or patient of each image: all of its images are trained on, or none. A data set brings its own; else
            every image is by itself.

        Returns
        -------
        FineTuner
            Itself.

        Raises
        ------
        ImageError
            If images cannot be used; the message lists them.
        DatasetError
            If a class has no second lesion to hold out, or there is one class only.
        ParameterError, ModelFileError
            For a parameter, or a checkpoint of another run.
        ConvergenceError
            If the loss becomes infinite.

        Warns
        -----
        LeakageWarning
            If images that are held out are, byte for byte, trained on under another group.
        """
        self._validate_params()
        if self.checkpoint is not None and self.random_state is None:
            raise ParameterError("checkpoint: a run that is to resume needs a seed. Fix: give random_state.")
        unknown = set(self.augment or ()) - set(PERTURBATIONS)
        if unknown:
            raise ParameterError(f"augment: {sorted(unknown)} unknown; known are {', '.join(PERTURBATIONS)}.")
        sources, labels, groups = _labelled(X, y, groups)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DatasetError(f"y: one class only, {self.classes_[0]!s}; nothing to tell apart. Give at least two.")
        seed = int(check_random_state(self.random_state).randint(2**31))
        self.held_out_ = hold_out(codes, groups, self.validation_fraction, self.classes_, seed)
        embedder = ImageEmbedder() if self.embedder is None else clone(self.embedder)
        embedder._validate_params()
        backbone = create_backbone(embedder.backbone, embedder.weights, image_size=embedder.image_size)
        if self.first_size is not None and self.first_size > min(backbone.input_size):
            raise ParameterError(
                f"first_size: got {self.first_size} for an input of {min(backbone.input_size)} pixels; images may grow "
                "only. Fix: lower first_size, or raise the embedder's image_size."
            )
        if self.first_size is not None:
            _check_takes(backbone, int(self.first_size))
        margin = 1.0 if self.augment is None else MARGIN
        store, shown, hashes = _pixels(embedder, sources, backbone.input_size, margin, self.held_out_)
        trained = np.setdiff1d(np.arange(len(codes)), self.held_out_)
        if n_twins := int(np.isin(hashes[self.held_out_], hashes[trained]).sum()):
            warnings.warn(
                f"{n_twins} of {len(self.held_out_)} held-out images are trained on too, as copies of other names: the "
                "head will be too sure. Fix: give copies one group (groups=, or duplicates= of a LesionDataset).",
                LeakageWarning,
                stacklevel=2,
            )
        self.n_trained_ = len(trained)
        data = Data(store, codes, trained, self.held_out_, shown)
        settings = self._settings(seed)
        loss = Loss(self.loss, np.bincount(codes[trained]), self.label_smoothing)
        if self.minutes is not None and self.checkpoint is not None and Path(self.checkpoint).exists():
            planned = read_modelfile(self.checkpoint)[1].get("n_epochs", self.epochs)
            settings = dataclasses.replace(settings, n_epochs=planned)  # the speed may be another one now
        elif self.minutes is not None:
            size = backbone.input_size
            sizes = np.array([size_of_epoch(number, settings, size) for number in range(settings.n_epochs)])
            share = np.mean(sizes.prod(axis=1) / np.prod(size))  # of the pixels that are looked at, being small
            n_images = share * len(trained) + 0.3 * len(self.held_out_)
            epoch = seconds_per_image(backbone, data, settings, loss) * n_images
            settings = dataclasses.replace(settings, n_epochs=int(np.clip(60 * self.minutes / epoch, 1, self.epochs)))
        augmenter = None
        if self.augment is not None:
            augmenter = Augmenter(self.augment, self.max_severity, seed)
        checkpoint = None
        if self.checkpoint is not None:
            shown_as = "-".join(filter(None, [embedder.resize, embedder.color_constancy]))
            digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
            known = [backbone.fingerprint, shown_as, digest, codes.tolist(), self.held_out_.tolist()]
            asked = [
                dataclasses.asdict(settings),
                self.loss,
                self.label_smoothing,
                self.augment,
                int(self.max_severity),
            ]
            checkpoint = Path(self.checkpoint), hashlib.sha256(json.dumps([known, asked]).encode()).hexdigest()
        report = _print_row if self.verbose else lambda row: None
        if self.verbose:
            print(f"{embedder.backbone}: {len(trained)} images are taught, {len(self.held_out_)} held out")
            print("epoch    loss  held-out NLL  accuracy  balanced  seconds", flush=True)
        state = train(backbone, data, settings, loss, augmenter, checkpoint=checkpoint, report=report)
        weights = state.weights if self.keep == "best" else state.last
        prefix = "backbone."
        backbone.network.load_state_dict(
            {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        )
        self.embedder_ = embedder.use(finished_backbone(backbone))
        self.coef_ = weights["classifier.weight"].numpy()
        self.intercept_ = weights["classifier.bias"].numpy()
        self.offset_ = loss.offset.numpy()
        self.history_ = state.history
        self.best_epoch_ = state.best_epoch + 1
        self.n_epochs_ = settings.n_epochs
        self.precision_ = "bfloat16" if settings.bfloat16 else "float32"
        self._n_features_out = backbone.n_features
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Embed images with the network that was trained.

        Parameters
        ----------
        X : as in `ImageEmbedder.transform`

        Returns
        -------
        ndarray of shape (n, n_features), float32
        """
        check_is_fitted(self)
        return self.embedder_.transform(X)

    def _settings(self, seed: int) -> Settings:
        can = _computes_bfloat16()
        if self.precision == "bfloat16" and not can:
            raise ParameterError(
                "precision='bfloat16': this processor has no such arithmetic, and would be slower in it. Use 'auto'."
            )
        return Settings(
            n_epochs=int(self.epochs),
            first_size=None if self.first_size is None else int(self.first_size),
            n_trained_stages=None if self.blocks is None else int(self.blocks),
            learning_rate=self.learning_rate,
            layer_decay=self.layer_decay,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            schedule=self.schedule,
            batch_size=int(self.batch_size),
            mixup=self.mixup,
            dropout=self.dropout,
            ema_decay=self.ema_decay,
            patience=None if self.patience is None else int(self.patience),
            bfloat16=can and self.precision != "float32",
            seed=seed,
        )


def hold_out(codes: np.ndarray, groups: np.ndarray, fraction: float, classes: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the share of each class's groups that is not trained on: each class is on either side.

    Parameters
    ----------
    codes : ndarray of shape (n,)
        Class indices. A group of several classes counts for its rarest.
    groups : ndarray of shape (n,)
    fraction : float
    classes : ndarray of shape (n_classes,)
        Names, for messages.
    seed : int

    Returns
    -------
    ndarray of ints
        Rows in ascending order.

    Raises
    ------
    DatasetError
        If a class has one group only, or is seen only beside rarer ones, all of which came to one side.
    """
    rng = np.random.default_rng(seed)
    _, group_codes = np.unique(groups, return_inverse=True)
    counts = np.bincount(codes, minlength=len(classes))
    rarity = np.argsort(np.argsort(counts, kind="stable"))  # 0 for the rarest class
    rank = np.full(group_codes.max() + 1, len(classes))
    np.minimum.at(rank, group_codes, rarity[codes])
    chosen: list[int] = []
    for k in range(len(classes)):
        members = np.flatnonzero(rank == rarity[k])
        if len(members) > 1:
            n = int(np.clip(round(fraction * len(members)), 1, len(members) - 1))
            chosen.extend(rng.permutation(members)[:n])
    held_out = np.isin(group_codes, chosen)
    for k, name in enumerate(classes):
        if len(set(held_out[codes == k])) < 2:
            n = len(set(group_codes[codes == k]))
            found = "1 lesion" if n == 1 else f"{n} lesions, tied to one side by rarer classes,"
            raise DatasetError(
                f"class {name!s}: {found} among the training data; fine-tuning needs one to train on and one to hold "
                "out. Fix: leave the class out, merge it with another, or do not fine-tune."
            )
    return np.flatnonzero(held_out)


def _check_takes(backbone: Backbone, side: int) -> None:
    try:
        with torch.no_grad():
            backbone.network.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError) as error:
        raise ParameterError(
            f"first_size: {backbone.name} takes no images of {side} pixels ({error}). Fix: leave first_size out."
        ) from error


def _labelled(X: Any, y: Any, groups: Any) -> tuple[list[Any], np.ndarray, np.ndarray]:
    sources = as_sources(X)
    if y is None and hasattr(X, "labels"):
        y = X.labels
    if y is None:
        raise ValueError("y is missing: give the labels, or a LesionDataset, which brings its own.")
    labels = np.asarray(y)
    if groups is None:
        groups = X.groups() if callable(getattr(X, "groups", None)) else np.arange(len(sources))
    groups = np.asarray(groups)
    for name, values in {"y": labels, "groups": groups}.items():
        if values.shape != (len(sources),):
            raise ValueError(f"{name}: got shape {values.shape} for {len(sources)} images; give one for each image.")
        if n_missing := int(pd.isna(values).sum()):
            raise ValueError(
                f"{name}: {n_missing} of {len(sources)} are missing. Fix: leave these images out, or name them."
            )
    return sources, labels, groups


def _pixels(
    embedder: ImageEmbedder, sources: list[Any], size: tuple[int, int], margin: float, held_out: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All images, `margin` times the input's size, the held-out ones as they are shown, and the sha256 of each.

    Decoded and resized once, before the first epoch.
    """
    large = (round(margin * size[0]), round(margin * size[1]))
    store = np.empty((len(sources), *large, 3), dtype=np.uint8)
    shown = np.empty((len(held_out), *size, 3), dtype=np.uint8)
    place = {int(row): i for i, row in enumerate(held_out)}

    def read(row: int) -> ImageError | str:
        image = embedder.read(sources[row], large)
        if isinstance(image, LesionImage) and row in place:
            store[row] = image.pixels
            image = embedder.read(sources[row], size)
            shown[place[row]] = image.pixels if isinstance(image, LesionImage) else 0
        elif isinstance(image, LesionImage):
            store[row] = image.pixels
        return image.sha256 if isinstance(image, LesionImage) else image

    with ThreadPoolExecutor(embedder.n_threads()) as pool:
        found = list(pool.map(read, range(len(sources))))
    refused = {i: item for i, item in enumerate(found) if isinstance(item, ImageError)}
    if refused:
        raise ImageError(listed({i: refusal_message(sources[i], i, item) for i, item in refused.items()}, len(sources)))
    return store, shown, np.array(found)


def _computes_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _print_row(row: dict[str, float]) -> None:
    print(
        f"{row['epoch']:>5}{row['loss']:>8.3f}{row['held_out_nll']:>14.3f}{row['held_out_accuracy']:>10.3f}"
        f"{row['held_out_balanced_accuracy']:>10.3f}{row['seconds']:>9.0f}",
        flush=True,
    )
