"""`make_lesions`: draw patients, lesions, diagnoses and concepts from the law, and paint them."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state

from ..datasets import LesionDataset
from ..errors import DatasetError, suggestion
from ..taxonomy import get_taxonomy
from .camera import photograph
from .law import CLASSES, CONCEPTS, DEFAULT_PRIOR, class_posterior, concept_tables
from .scene import N_UNIFORMS, make_scene, outline_lesions
from .structures import paint_lesions

__all__ = ["make_lesions"]

_SKIN_TYPES = (1, 2, 3, 4, 5, 6)
_MOST = 1_000_000  # images of a lesion, lesions of a patient
_CHUNK_PIXELS = 8 * 224**2


def make_lesions(
    n_samples: int,
    *,
    image_size: int = 224,
    class_prior: Mapping[str, float] | Sequence[float] | np.ndarray | None = None,
    skin_types: int | Sequence[int] | Mapping[int, float] | None = None,
    concepts: Mapping[str, Any] | None = None,
    ambiguity: float = 0.1,
    images_per_lesion: float = 1.34,
    lesions_per_patient: float = 1.25,
    random_state: int | np.random.RandomState | None = None,
) -> LesionDataset:
    """Make dermoscopy images of skin lesions whose posterior class probabilities are known exactly.

    A diagnosis is drawn from the prior, concepts (asymmetry, network, veil, ...) from tables given the diagnosis, and
    the image is painted from the concepts, the skin type and nuisances (hair, gel, light, place, size) that know
    nothing of the diagnosis. The lesions are made: nothing here says how a method does on patients.

    Parameters
    ----------
    n_samples : int
        Number of images.
    image_size : int, default=224
        Height and width in pixels, at least 16.
    class_prior : mapping of str to float, or array-like of shape (7,) or (6, 7), optional
        p(class), in the order of `cbdc.phantom.CLASSES` or by name (a class left out has probability 0); with two
        axes a row for each Fitzpatrick type I to VI. Sums to one. Default: proportional to the square roots of
        HAM10000's counts.
    skin_types : int, sequence of int or mapping of int to float, optional
        Fitzpatrick type (1-6) of all patients, types that are equally likely, or probabilities of types. Default: all
        six are equally likely.
    concepts : mapping of str to level, optional
        Concepts that are known to have a level, for example ``{"veil": True}``: all is drawn from the law given that
        (observed, not set by force), so the mix of classes follows. `cbdc.phantom.CONCEPTS` lists names and levels.
    ambiguity : float in [0, 1], default=0.1
        Chance that a concept, each for itself, ignores the class. The Bayes error grows with it; at 1 the posterior is
        the prior.
    images_per_lesion, lesions_per_patient : float, default=1.34 and 1.25
        Means of the geometric numbers of images of a lesion and of lesions of a patient; at least 1, and 1 means always
        one. Images of one lesion share diagnosis and concepts; lesions of one patient share the skin type.
    random_state : int, RandomState or None, default=None
        Same int, same bytes. The first k images of n are those of k.

    Returns
    -------
    LesionDataset
        ``images`` uint8 (n, image_size, image_size, 3); ``posterior`` float64 (n, 7), columns as in ``classes``;
        ``frame`` with image, label, patient_id, lesion_id, skin_type and a column a concept; ``synthetic`` is True.

    Raises
    ------
    DatasetError
        If an argument is not as said.

    Guarantee
    ---------
    Assumption: images, labels and posterior were made together here, with any of these arguments.
    Statement: ``posterior[i]`` is p(class given concepts and skin type of image i), exactly, and the image adds nothing
    to it: given its concepts and skin type, image and class are independent. So ``posterior`` is calibrated, also
    within any group formed by images, concepts or skin types, and no classifier's expected accuracy exceeds the mean
    of ``posterior.max(axis=1)``.
    What breaks it: other labels or images. What it does not say: concepts can be hard to see (hair, blur, few pixels),
    so p(class given the pixels alone) is vaguer than ``posterior``. In any count, images of one lesion count once.

    Examples
    --------
    >>> lesions = make_lesions(4, image_size=32, random_state=0)
    >>> lesions.images.shape, lesions.classes[4], lesions.synthetic
    ((4, 32, 32, 3), 'mel', True)
    >>> bool((lesions.posterior.sum(axis=1).round(12) == 1).all())
    True
    >>> veiled = make_lesions(4, image_size=32, concepts={"veil": True}, random_state=0)
    >>> veiled.frame["veil"].all(), veiled.labels.tolist()
    (np.True_, ['mel', 'mel', 'mel', 'vasc'])
    """
    n = _integer("n_samples", n_samples, 1)
    size = _integer("image_size", image_size, 16)
    prior = _class_prior(class_prior)
    type_probability = _skin_types(skin_types)
    tables = concept_tables(_real("ambiguity", ambiguity, 0, 1))
    known = _known_codes(concepts)
    prior_given_known = class_posterior(prior, tables, np.tile(known, (6, 1)))

    seed = check_random_state(random_state).randint(2**31 - 1)
    structure, people, lesions, images = (np.random.default_rng([seed, stream]) for stream in range(4))
    lesion, patient = _families(
        structure.random((n, 2)),
        _real("images_per_lesion", images_per_lesion, 1, _MOST),
        _real("lesions_per_patient", lesions_per_patient, 1, _MOST),
    )
    skin_type = 1 + _draw(type_probability, people.random(n))[patient]
    of_lesion = lesions.random((n, 1 + len(tables) + N_UNIFORMS))[lesion]
    codes_of_class = _draw(prior_given_known[skin_type - 1], of_lesion[:, 0])
    codes = np.column_stack(
        [_draw(table[codes_of_class], of_lesion[:, 1 + j]) for j, table in enumerate(tables)],
    )
    codes = np.where(known >= 0, known, codes)
    pixels = _paint(codes, skin_type, of_lesion[:, 1 + len(tables) :], images.random((n, N_UNIFORMS)), size)
    run = f"{seed:08x}"  # people of two seeds are other people
    frame = pd.DataFrame(
        {
            "image": [f"phantom_{run}_{i:06d}" for i in range(1, n + 1)],
            "patient_id": [f"P{run}_{i:05d}" for i in patient + 1],
            "lesion_id": [f"L{run}_{i:06d}" for i in lesion + 1],
            "skin_type": skin_type.astype(np.float64),
            **{concept.name: np.array(concept.levels)[codes[:, j]] for j, concept in enumerate(CONCEPTS)},
        }
    )
    return LesionDataset(
        pixels,
        np.array(CLASSES)[codes_of_class],
        name="phantom",
        classes=CLASSES,
        frame=frame,
        taxonomy=get_taxonomy("ham10000"),
        posterior=class_posterior(prior[skin_type - 1], tables, codes),
        synthetic=True,
    )


def _paint(codes: np.ndarray, skin_type: np.ndarray, lesions: np.ndarray, images: np.ndarray, size: int) -> np.ndarray:
    """Images from concepts, skin types and uniforms; the diagnosis does not come in."""
    pixels = np.empty((len(codes), size, size, 3), dtype=np.uint8)
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        levels = {concept.name: codes[part, j] for j, concept in enumerate(CONCEPTS)}
        scene = make_scene(lesions[part], images[part], size)
        outlined = outline_lesions(scene, levels)
        paint_lesions(outlined)
        pixels[part] = photograph(scene, outlined, skin_type[part])
    return pixels


def _families(
    uniforms: np.ndarray, images_per_lesion: float, lesions_per_patient: float
) -> tuple[np.ndarray, np.ndarray]:
    """Code of the lesion and of the patient of each image: a new one begins with a constant chance."""
    new_lesion = uniforms[:, 0] * images_per_lesion < 1
    new_lesion[0] = True
    new_patient = new_lesion & (uniforms[:, 1] * lesions_per_patient < 1)
    new_patient[0] = True
    return np.cumsum(new_lesion) - 1, np.cumsum(new_patient) - 1


def _draw(probability: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Categorical draws by inversion; a level of probability zero is never drawn."""
    cumulative = np.cumsum(probability, axis=-1)
    return (uniform[:, None] * cumulative[..., -1:] >= cumulative).sum(axis=-1)


def _class_prior(prior: Any) -> np.ndarray:
    """Class prior as (6, 7), a row a skin type."""
    if prior is None:
        prior = DEFAULT_PRIOR
    elif isinstance(prior, Mapping):
        strange = [name for name in prior if name not in CLASSES]
        if strange:
            raise DatasetError(f"class_prior: no class is called {strange[0]!r}{suggestion(strange[0], CLASSES)}.")
        prior = [prior.get(name, 0.0) for name in CLASSES]
    return np.broadcast_to(_probabilities("class_prior", prior, [(7,), (6, 7)]), (6, 7))


def _skin_types(types: Any) -> np.ndarray:
    """Probability of the six Fitzpatrick types."""
    if types is None:
        types = _SKIN_TYPES
    if isinstance(types, Integral):
        types = [types]
    names = list(types)
    strange = [t for t in names if t not in _SKIN_TYPES]
    if strange or not names:
        raise DatasetError(f"skin_types: got {strange[0] if strange else types!r}; expected Fitzpatrick types 1 to 6.")
    shares = [types[t] for t in names] if isinstance(types, Mapping) else np.full(len(names), 1 / len(names))
    probability = np.zeros(6)
    np.add.at(probability, np.array(names, dtype=int) - 1, _probabilities("skin_types", shares, [(len(names),)]))
    return probability


def _known_codes(concepts: Mapping[str, Any] | None) -> np.ndarray:
    """Level code of each concept that is given, -1 of the others."""
    known, place = np.full(len(CONCEPTS), -1), {concept.name: j for j, concept in enumerate(CONCEPTS)}
    for name, level in (concepts or {}).items():
        if name not in place:
            raise DatasetError(f"concepts: no concept is called {name!r}{suggestion(name, place)}.")
        levels = CONCEPTS[place[name]].levels
        if level not in levels:
            raise DatasetError(f"concepts: {name!r} has no level {level!r} (allowed: {', '.join(map(repr, levels))}).")
        known[place[name]] = levels.index(level)
    return known


def _probabilities(name: str, values: Any, shapes: list[tuple[int, ...]]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in shapes:
        raise DatasetError(f"{name}: shape {array.shape}; expected {' or '.join(map(str, shapes))}.")
    if not np.isfinite(array).all() or (array < 0).any():
        raise DatasetError(f"{name}: got {array.tolist()}; probabilities are finite and not negative.")
    total = array.sum(axis=-1, keepdims=True)
    if not np.allclose(total, 1, rtol=0, atol=1e-6):
        raise DatasetError(f"{name}: sums to {total.ravel().tolist()}; expected 1. Divide by the sum.")
    return array / total


def _integer(name: str, value: Any, low: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
        raise DatasetError(f"{name}: got {value!r}; expected an integer of at least {low}.")
    return int(value)


def _real(name: str, value: Any, low: int, high: int) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high:
        raise DatasetError(f"{name}: got {value!r}; expected a number from {low} to {high}.")
    return float(value)
