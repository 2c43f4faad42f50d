"""Encoded bytes to an upright RGB picture, or a refusal."""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import ImageError

MIN_SIDE = 16  # below DermaMNIST's 28 px; a smaller picture shows no lesion
MAX_ASPECT = 10
MAX_PIXELS = 64_000_000  # a 50-megapixel phone camera passes
MAX_BYTES = 4 * MAX_PIXELS  # the largest picture allowed, uncompressed
_MAX_SCANNED_PIXELS = 50 * MAX_PIXELS  # a progressive JPEG redraws the whole picture in each of its scans

# Pillow's classes by name, not Image.open: no other format is ever tried (EPS would start Ghostscript), and the
# process-wide Image.MAX_IMAGE_PIXELS of the user is neither needed nor changed.
_DECODERS: dict[str, type[ImageFile.ImageFile]] = {
    "BMP": BmpImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}
_SIGNATURES = [  # offset, bytes, format
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmi", "HEIC"),
    (4, b"ftypms", "HEIC"),
    (4, b"ftyp", "video"),
    (0, b"GIF8", "GIF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"PK\x03\x04", "zip"),
    (128, b"DICM", "DICOM"),
    (0, b"BM", "BMP"),
]
_MODES = {  # what is neither RGB nor turns into it without a guess
    "1": "1-bit black and white",
    "L": "8-bit grayscale",
    "LA": "grayscale with transparency",
    "F": "floating-point grayscale",
    "CMYK": "CMYK",
    "YCbCr": "raw YCbCr",
    "LAB": "CIELAB",
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, finish: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `finish` makes of the upright RGB picture that the bytes encode; ImageError for anything else."""
    format = _sniff(data)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set and hides damaged files. Set it to False.")
    if format == "PNG" and b"IEND\xaeB`\x82" not in data:
        raise ImageError("truncated PNG: its end is missing. Copy or export it again.")
    content, exif = _without_metadata(data) if format == "JPEG" else (data, b"")
    with _refusing(format):
        picture = _DECODERS[format](io.BytesIO(content))
    with picture:
        _check_header(picture, content)
        with _refusing(format):
            picture.load()
        # TIFF has no "exif" here: Pillow turns it upright itself.
        turn = _UPRIGHT.get(_exif_orientation(exif or picture.info.get("exif", b"")))
        with _refusing(format):
            rgb = _as_rgb(picture)
            return finish(rgb if turn is None else rgb.transpose(turn))


@contextmanager
def _refusing(format: str) -> Iterator[None]:
    """Turn whatever Pillow raises (OSError, ValueError, SyntaxError, struct.error, ...) into a refusal.

    Pillow's own text stays out of the message: it may quote the file.
    """
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{format} that needs more memory than there is. Export it smaller.") from None
    except Exception as error:
        damage = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(f"{damage} {format} that cannot be decoded. Copy or export it again.") from None


def _sniff(data: bytes) -> str:
    format = next((name for start, magic, name in _SIGNATURES if data.startswith(magic, start)), "")
    if format in _DECODERS:
        return format
    if data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        format = "SVG, HTML or XML"
    found = f"{format} file" if format else "not an image"
    fix = {
        "": "Check that this is the photograph.",
        "HEIC": "Export it as JPEG (iPhone: Settings, Camera, Formats, Most Compatible).",
        "DICOM": "Export its frame as PNG.",
    }.get(format, "Export the photograph as JPEG or PNG.")
    raise ImageError(f"{found}; expected JPEG, PNG, BMP, TIFF or WEBP. {fix}")


def _check_header(picture: ImageFile.ImageFile, data: bytes) -> None:
    """Refuse by what the header says, before a pixel is decoded."""
    width, height = picture.size
    check_sides(height, width)
    scans = data.count(b"\xff\xda") if picture.format == "JPEG" else 1
    if scans * width * height > _MAX_SCANNED_PIXELS:
        raise ImageError(f"JPEG of {width} x {height} pixels in {scans} scans. Export it as a baseline JPEG.")
    if getattr(picture, "is_animated", False):
        raise ImageError(f"{picture.format} with several frames or pages; expected one. Export the one that is meant.")
    bits = _bits(picture)
    if bits > 8:
        kind = "colour" if picture.mode.startswith("RGB") else "grayscale"
        raise ImageError(f"{bits}-bit {kind}; expected 8-bit RGB. Re-export it as 8-bit.")
    if picture.mode not in {"RGB", "RGBA", "P"}:
        raise ImageError(f"{_MODES.get(picture.mode, picture.mode)}; expected 8-bit RGB. Export the colour original.")


def _bits(picture: ImageFile.ImageFile) -> int:
    """Bits a channel of an integer image in the file; Pillow cuts 16-bit RGB down to 8 without a word."""
    if isinstance(picture, TiffImageFile) and picture.mode != "F":
        with _refusing("TIFF"):
            if picture.tag_v2.get(254, 0) & 1:
                raise ImageError("preview inside a camera raw file; expected the photograph. Export it as JPEG or PNG.")
            return max(picture.tag_v2.get(258, (8,)))
    return 16 if isinstance(picture, PngImageFile) and any(";16" in str(tile.args) for tile in picture.tile) else 8


def check_sides(height: int, width: int) -> None:
    """Refuse icons, strips and decompression bombs."""
    size = f"{width} x {height} pixels"
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{size}; expected at least {MIN_SIDE} on each side. Send the original photograph.")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ImageError(f"{size}; expected sides within {MAX_ASPECT}:1. Crop it to the lesion.")
    if height * width > MAX_PIXELS:
        raise ImageError(f"{size}; allowed are {MAX_PIXELS // 10**6} megapixels. Export it smaller.")


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    rgba = picture.convert("RGBA")
    if rgba.getchannel("A").getextrema() != (255, 255):
        raise ImageError("transparency that hides pixels; expected opaque RGB. Flatten it and export it again.")
    return rgba.convert("RGB")


def _without_metadata(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG without its metadata segments, and the payload of its EXIF segment.

    Pillow would parse EXIF on opening, and warn about or trip over corrupt blocks. APP0 (JFIF) and APP14 (Adobe) stay:
    they say how colours are coded.
    """
    kept, exif, at = [jpeg[:2]], b"", 2
    while jpeg[at : at + 1] == b"\xff" and at + 4 <= len(jpeg):
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD8 or length < 2:
            break
        segment = jpeg[at : at + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[10:]
        if not (0xE1 <= marker <= 0xEF and marker != 0xEE) and marker != 0xFE:
            kept.append(segment)
        at += 2 + length
    return b"".join([*kept, jpeg[at:]]), exif


def _exif_orientation(exif: bytes) -> int:
    """Tag 274 of the first directory; 1 where EXIF is absent or corrupt."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (n_entries,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(n_entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if (tag, kind) == (0x0112, 3):
                return value
    except struct.error:
        pass
    return 1
