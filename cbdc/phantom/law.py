"""The law of made lesions: a prior over diagnoses, tables of concepts given the diagnosis, and the exact posterior.

Class -> concepts -> image, and nothing else: concepts are drawn independently given the class, and the painter sees the
concepts, never the class. So p(class given all that was painted) is p(class given concepts), one line of Bayes' rule.

The numbers of `CONCEPTS` are round. They have the order of magnitude that dermoscopy papers report [1]_ [2]_ [3]_ [4]_
[5]_, and are estimates of nothing.

References
----------
.. [1] Kittler H. et al. Standardization of terminology in dermoscopy. J Am Acad Dermatol 74, 1093 (2016).
.. [2] Menzies S. W. et al. Surface microscopy of pigmented basal cell carcinoma. Arch Dermatol 136, 1012 (2000).
.. [3] Braun R. P. et al. Dermoscopy of pigmented seborrheic keratosis. Arch Dermatol 138, 1556 (2002).
.. [4] Zaballos P. et al. Dermoscopy of dermatofibromas. Arch Dermatol 144, 75 (2008).
.. [5] Zalaudek I. et al. Dermatoscopy of facial actinic keratosis. J Am Acad Dermatol 55, 589 (2006).
"""

from typing import NamedTuple

import numpy as np

__all__ = ["CLASSES", "CONCEPTS", "DEFAULT_PRIOR", "Concept", "class_posterior", "concept_tables"]

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

# Square roots of HAM10000's published counts: skewed as in a clinic, yet some of every class in a few hundred images.
DEFAULT_PRIOR = np.sqrt([327, 514, 1099, 115, 1113, 6705, 142])
DEFAULT_PRIOR /= DEFAULT_PRIOR.sum()


class Concept(NamedTuple):
    """A painted attribute: its levels, and p(level given class) in percent, a row a level, a column a class."""

    name: str
    levels: tuple[str | bool, ...]
    percent: tuple[tuple[float, ...], ...]


def _present(name: str, *percent: float) -> Concept:
    return Concept(name, (False, True), (tuple(100 - p for p in percent), percent))


CONCEPTS = (
    #                               akiec bcc bkl  df mel  nv vasc
    Concept("asymmetry", ("none", "one axis", "two axes"), (
                                   ( 30,  30, 35, 80,  6, 75, 60),
                                   ( 40,  40, 45, 15, 24, 20, 30),
                                   ( 30,  30, 20,  5, 70,  5, 10))),
    Concept("border", ("regular", "irregular"), (
                                   ( 55,  60, 65, 95, 20, 90, 85),
                                   ( 45,  40, 35,  5, 80, 10, 15))),
    Concept("edge", ("soft", "sharp"), (
                                   ( 85,  70, 15, 95, 45, 70, 20),
                                   ( 15,  30, 85,  5, 55, 30, 80))),
    Concept("colour", ("light brown", "dark brown", "pink", "red", "purple", "blue-gray"), (
                                   ( 18,   6, 50, 50, 12, 47,  1),
                                   (  2,   4, 36,  8, 62, 44,  1),
                                   ( 66,  74,  8, 38,  8,  5,  3),
                                   ( 12,  10,  2,  2,  2,  1, 55),
                                   (  1,   1,  1,  1,  2,  1, 35),
                                   (  1,   5,  3,  1, 14,  2,  5))),
    Concept("tones", ("one", "two", "three or more"), (
                                   ( 40,  35, 30, 50,  4, 60, 55),
                                   ( 45,  45, 50, 45, 24, 36, 35),
                                   ( 15,  20, 20,  5, 72,  4, 10))),
    Concept("network", ("absent", "typical", "atypical", "delicate"), (
                                   ( 94,  95, 88, 25, 33, 36, 97),
                                   (  3,   2,  6,  8,  8, 52,  1),
                                   (  2,   2,  3,  2, 57,  5,  1),
                                   (  1,   1,  3, 65,  2,  7,  1))),
    Concept("globules", ("absent", "regular", "irregular"), (
                                   ( 95,  88, 86, 92, 44, 64, 97),
                                   (  3,   4,  8,  6,  6, 32,  2),
                                   (  2,   8,  6,  2, 50,  4,  1))),
    Concept("vessels", ("absent", "arborising", "dotted", "strawberry"), (
                                   ( 10,  16, 88, 80, 68, 92, 88),
                                   (  3,  76,  3,  4,  6,  1,  5),
                                   ( 15,   5,  8, 15, 25,  6,  6),
                                   ( 72,   3,  1,  1,  1,  1,  1))),
    _present("streaks",               1,   3,  2,  1, 42,  3,  1),
    _present("veil",                  1,   6,  4,  1, 58,  1,  6),
    _present("blotch",                2,   6,  6,  2, 56,  6,  6),
    _present("scar",                  2,   5,  2, 84,  6,  1,  1),
    _present("milia_cysts",           3,   5, 76,  2,  4,  3,  1),
    _present("comedo_openings",       2,   2, 78,  1,  3,  3,  1),
    _present("ovoid_nests",           1,  64,  2,  1,  5,  1,  2),
    _present("lacunae",               1,   2,  1,  1,  1,  1, 92),
    _present("scale",                80,  14, 10,  5,  3,  1,  3),
    _present("ulceration",           16,  32,  3,  1,  8,  1,  4),
)  # fmt: skip


def concept_tables(ambiguity: float = 0.0) -> list[np.ndarray]:
    """p(level given class) of each concept.

    Parameters
    ----------
    ambiguity : float in [0, 1], default=0.0
        Chance with which a concept, each for itself, is drawn without regard to the class, from the plain mean of its
        rows over the classes. More ambiguity is a garbling of less, so the Bayes error can only grow (Blackwell, 1951).
        The mean does not weigh by the class prior: p(image given class) stays when the prior shifts.

    Returns
    -------
    list of float64 arrays of shape (n_classes, n_levels)
        One a concept, in the order of `CONCEPTS`; rows sum to one.

    Examples
    --------
    >>> concept_tables()[1]["akiec bcc bkl df mel nv vasc".split().index("mel")]
    array([0.2, 0.8])
    """
    plain = [np.array(concept.percent, dtype=np.float64).T / 100 for concept in CONCEPTS]
    return [(1 - ambiguity) * table + ambiguity * table.mean(axis=0) for table in plain]


def class_posterior(prior: np.ndarray, tables: list[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Exact p(class given concepts), by Bayes' rule in log space.

    Parameters
    ----------
    prior : float array of shape (n_classes,) or (n, n_classes)
        Class prior, of all or of each.
    tables : list of float arrays of shape (n_classes, n_levels)
        p(level given class), one a concept.
    codes : int array of shape (n, n_concepts)
        Observed level of each concept; -1 leaves a concept unobserved.

    Returns
    -------
    float64 array of shape (n, n_classes)
        Rows sum to one. A row that no class can produce is NaN.

    Examples
    --------
    >>> class_posterior(np.array([0.5, 0.5]), [np.array([[0.9, 0.1], [0.6, 0.4]])], np.array([[1], [-1]]))
    array([[0.2, 0.8],
           [0.5, 0.5]])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log_joint = np.log(np.broadcast_to(prior, (len(codes), np.shape(prior)[-1]))).copy()
        for column, table in zip(codes.T, tables):
            log_joint += np.where(column[:, None] < 0, 0.0, np.log(table).T[column])
        joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        return joint / joint.sum(axis=1, keepdims=True)
