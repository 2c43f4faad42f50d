"""Exceptions and warnings. Every message says what was wrong, where, what was got, what is allowed, and the fix."""

import importlib
from collections.abc import Iterable
from difflib import get_close_matches
from types import ModuleType

__all__ = [
    "CBDCError",
    "CalibrationSizeWarning",
    "ConvergenceError",
    "DatasetError",
    "ImageError",
    "LeakageError",
    "LeakageWarning",
    "MissingDependencyError",
    "MissingWeightsError",
    "ModelFileError",
    "ParameterError",
    "PosteriorWarning",
    "did_you_mean",
    "require",
    "suggestion",
]


class CBDCError(Exception):
    """Base of every error that a user can mend; the command line prints it as one sentence, without a traceback."""


class ImageError(CBDCError, ValueError):
    """An image that cannot be used. The message is the reason printed in a refused row."""


class DatasetError(CBDCError, ValueError):
    """A manifest or folder that cannot be read as a data set."""


class LeakageError(DatasetError):
    """One patient, lesion or photograph on two sides of a split."""


class MissingWeightsError(CBDCError, FileNotFoundError):
    """Network weights that are not on this machine; the message says how to get them."""


class ModelFileError(CBDCError, ValueError):
    """A model file that is truncated, tampered with, newer than this library, or of another kind."""


class ParameterError(CBDCError, ValueError):
    """A name or value outside what is allowed, such as an unknown network."""


class ConvergenceError(CBDCError, RuntimeError):
    """A fit whose result is not the posterior: chains that disagree, or a bound that is not finite."""


class MissingDependencyError(CBDCError, ImportError):
    """An optional package that is not installed; the message holds the install line."""


class CalibrationSizeWarning(UserWarning):
    """Too few calibration cases for a finite threshold: the prediction set holds every label there."""


class LeakageWarning(UserWarning):
    """Calibration cases that the model was trained or tuned on: their thresholds promise nothing for new cases."""


class PosteriorWarning(UserWarning):
    """Draws that are not those of the posterior they stand for."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Parameters
    ----------
    module : str
        Dotted name of the module, for example ``"timm"``.
    extra : str
        The extra of this project that installs it.

    Raises
    ------
    MissingDependencyError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"{module} is not installed. Fix: pip install 'cbdc[{extra}]'.") from error


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """A sentence for the end of an error message that names the nearest allowed word; empty if none is near.

    Parameters
    ----------
    word : object
        What was given; upper and lower case count as equal.
    allowed : iterable of str

    Returns
    -------
    str

    Examples
    --------
    >>> did_you_mean("Brightnes", ["blur", "brightness"]), did_you_mean("x", ["blur"])
    (" Did you mean 'brightness'?", '')
    """
    near = _near_miss(word, list(allowed))
    return f" Did you mean {near!r}?" if near else ""


def suggestion(word: object, allowed: Iterable[str]) -> str:
    """The tail of an error message: a near miss if there is one, and the allowed words.

    Parameters
    ----------
    word : object
        What was given; upper and lower case count as equal.
    allowed : iterable of str

    Returns
    -------
    str
        At most twelve of the allowed words, sorted, and how many there are.

    Examples
    --------
    >>> suggestion("mell", ["nv", "mel"])
    "; did you mean 'mel'? (allowed: mel, nv)"
    """
    words = sorted(allowed)
    near = _near_miss(word, words)
    shown = ", ".join(words[:12]) + (f", ... ({len(words)} in all)" if len(words) > 12 else "")
    return f"{f'; did you mean {near!r}?' if near else ''} (allowed: {shown})"


def _near_miss(word: object, allowed: list[str]) -> str:
    lower = {name.lower(): name for name in reversed(allowed)}
    return next((lower[name] for name in get_close_matches(str(word).lower(), lower, n=1)), "")
