"""`Certificate`: what is promised, under which assumptions, and on how many cases it rests."""

import dataclasses
from typing import Any

from scipy import stats

__all__ = ["Certificate", "Condition"]

_LISTED = 12  # conditions named one by one; of more, the smallest
_BAND = 0.9  # probability of the band printed


@dataclasses.dataclass(frozen=True)
class Condition:
    """A threshold, the cases it rests on, and the coverage that it gives in the long run.

    Parameters
    ----------
    name : str
        Among whom it holds; empty for all.
    n : int
        Calibration units behind the threshold: cases, or patients where several cases of one were calibrated on.
    rank : int
        Rank of the threshold among the n scores, from the best conforming down; n + 1 for the infinite threshold.
    low, high : float
        Central 90% band of the coverage given the calibration cases. `high` is 1 where only the lower end is known:
        scores tie at the threshold, or sets hold more than what conforms.
    approximate : bool, default=False
        The band counts the cases of one patient or lesion by their design effect; without it the band is exact.

    Examples
    --------
    >>> Condition(name="mel", n=99, rank=90, low=0.85, high=0.95).is_vacuous
    False
    """

    name: str
    n: int
    rank: int
    low: float
    high: float
    approximate: bool = False

    @classmethod
    def from_rank(cls, name: str, n: int, rank: int) -> "Condition":
        """The band is that of the Beta(rank, n + 1 - rank) law (Vovk, arXiv:1209.2673), exact for scores without ties.

        Examples
        --------
        >>> condition = Condition.from_rank("all", 200, 181)
        >>> print(f"{condition.low:.3f} {condition.high:.3f}")
        0.864 0.933
        """
        if rank > n:
            return cls(name, int(n), int(n) + 1, 1.0, 1.0)
        low, high = stats.beta.ppf([(1 - _BAND) / 2, (1 + _BAND) / 2], rank, n + 1 - rank)
        return cls(name, int(n), int(rank), float(low), float(high))

    @property
    def is_vacuous(self) -> bool:
        """Whether the threshold is infinite: the set holds what it is about whatever the case."""
        return self.rank > self.n


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A guarantee that can be kept, printed and checked.

    Parameters
    ----------
    statement : str
        What is promised, as the main clause of a sentence.
    assumptions : tuple of str
        Clauses that follow "if".
    broken_by : tuple of str
        What makes the assumptions false.
    confidence_level : float
    n_calibration : int
        Calibration units in all.
    conditions : tuple of Condition, default=()
        One for each threshold.
    delta : float or None, default=None
        Probability, over the calibration cases, with which the statement may fail; None where the probability of the
        statement itself is taken over them too.
    hashes : dict of str to str, default={}
        SHA-256 of what the certificate rests on, by name.

    Examples
    --------
    >>> certificate = Certificate(
    ...     "the set holds the true class with probability at least 0.9",
    ...     ("calibration cases and the new one are exchangeable",),
    ...     ("another population than the calibration cases",),
    ...     0.9,
    ...     99,
    ...     (Condition.from_rank("all", 99, 90),),
    ... )
    >>> str(certificate).split(". ")[0]
    'If calibration cases and the new one are exchangeable, the set holds the true class with probability at least 0.9'
    >>> Certificate.from_dict(certificate.to_dict()) == certificate
    True
    """

    statement: str
    assumptions: tuple[str, ...]
    broken_by: tuple[str, ...]
    confidence_level: float
    n_calibration: int
    conditions: tuple[Condition, ...] = ()
    delta: float | None = None
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"If {', and '.join(self.assumptions)}, {self.statement}."]
        if self.conditions:
            fewest = sorted(self.conditions, key=lambda condition: condition.n)
            listed = "; ".join(map(_band_in_words, fewest[:_LISTED]))
            more = f"; {len(fewest) - _LISTED} more have more cases" if len(fewest) > _LISTED else ""
            words.append(
                "With these calibration cases the coverage in the long run lies, with probability "
                f"{_BAND:g}, within: {listed}{more}."
            )
            if any(map(_is_open, self.conditions)):
                words.append("An upper end is not known where scores tie, or sets hold more than what conforms.")
        if self.broken_by:
            words.append(f"It breaks with {'; '.join(self.broken_by)}.")
        words.append("It is no statement about a single case.")
        return " ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """All of it as a JSON-able document, the text in words too."""
        return dataclasses.asdict(self) | {"text": str(self)}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> "Certificate":
        """The certificate that `to_dict` wrote down; the text is made anew."""
        fields = {name: value for name, value in document.items() if name != "text"}
        fields |= {name: tuple(fields[name]) for name in ("assumptions", "broken_by")}
        return cls(**fields | {"conditions": tuple(Condition(**condition) for condition in fields["conditions"])})


def _band_in_words(condition: Condition) -> str:
    name = condition.name or "all"
    if condition.is_vacuous:
        return f"{name} (n = {condition.n}): 1, always in the set"
    about = "about " if condition.approximate else ""
    end = "or more" if _is_open(condition) else f"to {condition.high:.3f}"
    return f"{name} (n = {condition.n}): {about}{condition.low:.3f} {end}"


def _is_open(condition: Condition) -> bool:
    """Whether only the lower end of the band is known."""
    return condition.high == 1 and not condition.is_vacuous
