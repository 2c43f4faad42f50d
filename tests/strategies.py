"""Every Hypothesis strategy of the tests."""

import io

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax

# --- images


@st.composite
def rgb_pixels(draw, min_side=16, max_side=40):
    """uint8 (H, W, 3) noise, sides drawn apart, so that a swap of the axes shows."""
    height, width = draw(st.tuples(*[st.integers(min_side, max_side)] * 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def encoded_images(draw):
    """The bytes of a whole, acceptable file of any allowed format."""
    formats = [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ]
    format, options = draw(st.sampled_from(formats))
    buffer = io.BytesIO()
    Image.fromarray(draw(rgb_pixels())).save(buffer, format, **options)
    return buffer.getvalue()


@st.composite
def pictures(draw, max_side=40):
    """uint8 (H, W, 3) from one pixel on: noise, smooth, one colour, black and white only, or with steep edges."""
    height, width = draw(st.tuples(*[st.integers(1, max_side)] * 2))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = rng.integers(0, 256, (height, width, 3))
    row, column = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[:, None]
    kinds = {
        "noise": noise,
        "smooth": 128 + 120 * np.sin(rng.uniform(0, 4, 3) * row + rng.uniform(0, 4, 3) * column),
        "one colour": np.broadcast_to(noise[0, 0], noise.shape),
        "gray": np.broadcast_to(noise[:1, :1, :1], noise.shape),
        "black": np.zeros_like(noise),
        "white": np.full_like(noise, 255),
        "saturated": 255 * (noise > 127),
        "edge": np.where(row + column < 1, noise[0, 0], noise[-1, -1]),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))].astype(np.uint8)


# --- data sets


@st.composite
def parents_of_trees(draw, max_nodes=12):
    """Node to parent of a random tree, in random order; the root's parent is None."""
    n = draw(st.integers(1, max_nodes))
    edges = {"n0": None} | {f"n{i}": f"n{draw(st.integers(0, i - 1))}" for i in range(1, n)}
    return {node: edges[node] for node in draw(st.permutations(sorted(edges)))}


@st.composite
def lesion_frames(draw, min_images=8, max_images=60, patients=True):
    """A manifest: images of lesions of patients, some without identifiers, lesions numbered anew for each patient."""
    n = draw(st.integers(min_images, max_images))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lesion = rng.integers(0, draw(st.integers(1, n)), n)
    patient = rng.integers(0, draw(st.integers(1, n)), n)
    frame = pd.DataFrame({"image": [f"i{k:03d}" for k in rng.permutation(n)]})
    frame["label"] = rng.choice(["bcc", "mel", "nv"], n, p=[0.1, 0.2, 0.7])
    frame["lesion_id"] = [np.nan if rng.random() < 0.1 else f"L{k}" for k in lesion]
    if patients:
        frame["patient_id"] = [np.nan if rng.random() < 0.1 else f"P{k}" for k in patient]
    return frame


# --- probabilities and calibration


@st.composite
def probabilities(draw, min_cases=1, max_cases=60, max_classes=6, ties=True, dtype=np.float64):
    """Rows on the simplex (n, K); with `ties`, often rounded to a coarse grid, exact zeros among them."""
    n, n_classes = draw(st.integers(min_cases, max_cases)), draw(st.integers(2, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if ties and draw(st.booleans()):
        return (rng.multinomial(8, rng.dirichlet(np.ones(n_classes)), n) / 8).astype(dtype)
    logits = draw(st.sampled_from([0.5, 2.0, 8.0])) * rng.standard_normal((n, n_classes))
    return softmax(logits, axis=1).astype(dtype)


@st.composite
def labelled_probabilities(draw, **options):
    """Probabilities (n, K), and labels drawn from them (n,)."""
    P = draw(probabilities(**options))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return P, np.array([rng.choice(P.shape[1], p=row / row.sum()) for row in P.astype(float)])


# --- made lesions


@st.composite
def concept_laws(draw):
    """A prior, tables and observed levels (None: unobserved), small enough for the joint to be written down."""
    n_classes = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    levels = [draw(st.none() | st.integers(0, size - 1)) for size in sizes]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tables = [rng.dirichlet(np.ones(size), n_classes) for size in sizes]
    return rng.dirichlet(np.ones(n_classes)), tables, levels


# --- clouds and diagrams


@st.composite
def clouds(draw, min_points=1, max_points=8, max_features=4):
    """Points (n, d): often on a grid, where distances tie, some of them twice, far from the origin, of any scale."""
    n, d = draw(st.integers(min_points, max_points)), draw(st.integers(1, max_features))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X = rng.integers(0, 4, (n, d)).astype(float) if draw(st.booleans()) else rng.standard_normal((n, d))
    if draw(st.booleans()):
        X = X[rng.integers(0, n, n)]
    return (X + draw(st.sampled_from([0.0, 0.0, 100.0]))) * draw(st.sampled_from([1.0, 1.0, 1e-3, 1e5]))


@st.composite
def paired_clouds(draw, **options):
    """A cloud and the same points moved: a little, a lot, one alone, or all alike."""
    X = draw(clouds(**options))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    step = (
        rng.standard_normal(X.shape) * draw(st.sampled_from([0.0, 1e-6, 0.1, 1.0])) * np.ptp(X, axis=0).max(initial=0)
    )
    kind = draw(st.sampled_from(["all", "one", "rigid", "scaled"]))
    if kind == "one":
        step[1:] = 0
    elif kind == "rigid":
        step[:] = step[0]
    return X, X * 1.25 if kind == "scaled" else X + step


@st.composite
def diagrams(draw, max_classes=6, zero_births=False, essential=True):
    """Births and deaths (m, 2): on a grid or not, repeated, on the diagonal, some that never die."""
    m = draw(st.integers(0, max_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    births, lives = rng.random(m), rng.random(m)
    if draw(st.booleans()):
        births, lives = np.round(4 * births) / 4, np.round(4 * lives) / 4
    pairs = np.column_stack([0 * births if zero_births else births, births * (not zero_births) + lives])
    pairs = np.repeat(pairs, rng.integers(1, 3, m), axis=0) if draw(st.booleans()) else pairs
    if essential and m and draw(st.booleans()):
        pairs[rng.integers(0, 2, len(pairs)) == 0, 1] = np.inf
    return pairs
