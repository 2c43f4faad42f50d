"""Losses of training, for classes of which some are rare."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..errors import ParameterError

__all__ = ["LOSSES", "Loss"]

LOSSES = ("cross_entropy", "class_balanced", "focal", "logit_adjusted")
_BETA = 0.999  # of the effective number of cases: a thousand cases of a class are almost as good as any more
_GAMMA = 2.0


class Loss:
    """Loss of each case, (n,), from logits (n, n_classes) and class indices (n,).

    Parameters
    ----------
    name : {"cross_entropy", "class_balanced", "focal", "logit_adjusted"}
    counts : ndarray of shape (n_classes,)
        Training cases of each class, at least one.
    label_smoothing : float, default=0
        Probability that is spread evenly over all classes.

    Attributes
    ----------
    offset : Tensor of shape (n_classes,)
        Softmax of the logits plus this are the probabilities of the population that was trained on: log pi for
        ``logit_adjusted``, minus the logarithm of the weights for ``class_balanced``, which tilt them, and 0 otherwise.

    Notes
    -----
    With p the softmax of the logits z, pi the shares of the classes and n_c their cases:

    - ``cross_entropy``: -log p_y.
    - ``class_balanced``: (1 - b) / (1 - b^n_y) times that, b = 0.999, its mean over the training cases scaled to 1
      (Cui et al., arXiv:1901.05555).
    - ``focal``: (1 - p_y)^2 times that (Lin et al., arXiv:1708.02002).
    - ``logit_adjusted``: -log of the softmax of z + log pi (Menon et al., arXiv:2007.07314); the logits themselves are
      those of evenly frequent classes.
    """

    def __init__(self, name: str, counts: np.ndarray, label_smoothing: float = 0.0) -> None:
        if name not in LOSSES:
            raise ParameterError(f"loss: got {name!r}; expected one of {', '.join(LOSSES)}.")
        self.name = name
        self.label_smoothing = label_smoothing
        shares = torch.from_numpy(counts / counts.sum())
        effective = (1 - _BETA ** torch.from_numpy(counts).double()) / (1 - _BETA)
        weights = 1 / effective
        self._weights = (weights / (weights * shares).sum()).float()
        self.offset = torch.zeros(len(counts))
        if name == "logit_adjusted":
            self.offset = shares.log().float()
        elif name == "class_balanced":
            self.offset = -self._weights.log()

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.name == "logit_adjusted":
            logits = logits + self.offset.to(logits.device)
        losses = cross_entropy(logits, y, reduction="none", label_smoothing=self.label_smoothing)
        if self.name == "class_balanced":
            return losses * self._weights.to(y.device)[y]
        if self.name == "focal":
            p = torch.softmax(logits, dim=1).gather(1, y[:, None])[:, 0]
            return losses * (1 - p) ** _GAMMA
        return losses
