"""What a `CBDCClassifier` is made of, from its settings: networks, their training, the head."""

from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from .backbones import FineTuner, ImageEmbedder
from .errors import ParameterError
from .heads import BayesianHead, LaplaceHead, LogarithmicPool, PooledHead, make_head

__all__ = ["embedders_of", "fine_tuners_of", "fitted_on_held_out", "head_of", "tuning_record"]


def head_of(clf: Any) -> Any:
    """The head that the settings ask for, not fitted."""
    if not isinstance(clf.head, str):
        return clone(clf.head)
    if clf.head != "auto":
        return make_head(clf.head, random_state=clf.random_state)
    if clf.fine_tune:
        return LaplaceHead(random_state=clf.random_state)
    return PooledHead(feature_map="hellinger", random_state=clf.random_state)


def embedders_of(clf: Any) -> list[ImageEmbedder]:
    """One of each backbone, not fitted."""
    if not isinstance(clf.fine_tune, FineTuner | bool | np.bool_ | None):
        raise ParameterError(f"fine_tune={clf.fine_tune!r}: expected a FineTuner, True, False or None.")
    if not isinstance(clf.pool, bool | np.bool_):
        raise ParameterError(f"pool={clf.pool!r}: expected True or False.")
    names = [clf.backbone] if isinstance(clf.backbone, str) else list(clf.backbone)
    if not names:
        raise ParameterError("backbone: got no name. Fix: give one, or several for an ensemble.")
    if len(set(names)) < len(names) and not clf.fine_tune:
        raise ParameterError(
            f"backbone: got {names}; a network that is not fine-tuned is the same twice. Fix: other names, or "
            "fine_tune."
        )
    if len(names) > 1 and clf.weights not in ("default", "random"):
        raise ParameterError("weights: one file is not that of several backbones. Fix: weights='default'.")
    return [
        ImageEmbedder(
            name,
            weights=clf.weights,
            image_size=clf.image_size,
            color_constancy=clf.color_constancy,
            n_views=clf.n_views,
            cache_dir=clf.cache_dir,
            engine=clf.engine,
            n_jobs=clf.n_jobs,
            verbose=clf.verbose,
        )
        for name in names
    ]


def fine_tuners_of(clf: Any, embedders: list[ImageEmbedder]) -> list[FineTuner]:
    """One of each embedder, not fitted; `CBDCClassifier.fine_tune` says what they share."""
    asked = clf.fine_tune if isinstance(clf.fine_tune, FineTuner) else FineTuner(verbose=clf.verbose)
    if asked.embedder is not None:
        raise ParameterError(
            "fine_tune: its embedder is that of the classifier. Fix: leave embedder out, and give backbone, "
            "weights, image_size, color_constancy and n_views to CBDCClassifier."
        )
    seed = clf.random_state if asked.random_state is None else asked.random_state
    tuners = []
    for number, embedder in enumerate(embedders):
        own = int(seed) + number if isinstance(seed, Integral) else seed
        if isinstance(own, np.random.RandomState):
            own = own.randint(2**31)  # here, since a clone would draw the same again for each network
        tuner = clone(asked).set_params(embedder=embedder, random_state=own)
        if asked.minutes is not None:
            tuner.set_params(minutes=asked.minutes / len(embedders))
        if asked.checkpoint is not None and number:
            path = Path(asked.checkpoint)
            tuner.set_params(checkpoint=path.with_stem(f"{path.stem}-{number}"))
        tuners.append(tuner)
    return tuners


def fitted_on_held_out(
    tuner: FineTuner, head: Any, images: Any, labels: np.ndarray, units: dict[str, Any], *, pool: bool
) -> Any:
    """The head, pooled with the network's own classifier where asked, fitted on what the network was not trained on."""
    rows = tuner.held_out_
    head = clone(head)
    if pool and isinstance(head, BayesianHead) and head.class_weight is None:
        head = LogarithmicPool(head, tuner.coef_, tuner.intercept_ + tuner.offset_)
    embeddings = tuner.transform([images[row] for row in rows])
    return head.fit(embeddings, labels[rows], **{name: values[rows] for name, values in units.items()})


def tuning_record(tuner: FineTuner) -> dict[str, Any]:
    """What a model file says of the training of a network."""
    return {
        "n_trained": tuner.n_trained_,
        "n_held_out": len(tuner.held_out_),
        "n_epochs": tuner.n_epochs_,
        "best_epoch": tuner.best_epoch_,
        "precision": tuner.precision_,
    }
