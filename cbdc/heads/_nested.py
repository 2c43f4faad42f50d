"""States of heads inside other heads, and of heads in model files."""

from typing import Any

import numpy as np

from ..errors import ModelFileError
from ._base import BayesianHead

__all__ = ["head_from", "state_of"]


def state_of(head: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """State of a head or pool, its document with the ``kind`` that `head_from` needs.

    Raises
    ------
    ModelFileError
        If it is of another type.
    """
    kind = next((name for name, known in _kinds().items() if type(head) is known), None)
    if kind is None:
        raise ModelFileError(
            f"head {type(head).__name__}: only {', '.join(sorted(_kinds()))} can be saved, since an arbitrary "
            "estimator would need a pickle."
        )
    arrays, document = head.get_state()
    return arrays, document | {"kind": kind}


def head_from(arrays: dict[str, np.ndarray], document: dict[str, Any]) -> BayesianHead:
    """The head or pool that `state_of` wrote down; it predicts the same bits.

    Raises
    ------
    KeyError
        If a part is missing.
    """
    return _kinds()[document["kind"]].from_state(arrays, document)


def _kinds() -> dict[str, type[BayesianHead]]:
    from ._registry import HEADS  # not above: some of these heads hold others, and import this file
    from .pools import LinearPool, LogarithmicPool

    return HEADS | {"linear_pool": LinearPool, "logarithmic_pool": LogarithmicPool}
