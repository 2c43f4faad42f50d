"""Every Hypothesis strategy of the tests."""

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

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
