"""Paths, bytes and arrays to `LesionImage`, one at a time or in threads."""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decode import MAX_BYTES, decode
from .pixels import checked_filter, checked_pixels, checked_size, resized


@dataclass(frozen=True, eq=False)
class LesionImage:
    """Pixels and provenance of one photograph; nothing else of the file survives.

    Attributes
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        Upright RGB.
    sha256 : str
        Hex digest of the encoded bytes, or of shape and pixels where the source was an array.
    """

    pixels: np.ndarray = field(repr=False)
    sha256: str


def read_image(
    source: Any, *, root: str | os.PathLike[str] | None = None, expected_sha256: str | None = None
) -> LesionImage:
    """Read one photograph, or refuse it with a reason.

    Accepted are 8-bit RGB images (palettes of RGB colours and fully opaque alpha included) in JPEG, PNG, BMP, TIFF
    or WEBP. The EXIF orientation is applied; ICC profiles are ignored.

    Parameters
    ----------
    source : str, Path, bytes, LesionImage or ndarray of shape (H, W, 3), uint8
        A file, the encoded bytes of one, an image already read, or its pixels.
    root : str or Path, optional
        Folder that a path must lie below once symbolic links are resolved. A relative path starts, as always,
        from the working directory.
    expected_sha256 : str, optional
        Hex digest that the bytes must have. Flipped bits in a JPEG decode without complaint: only this catches them.

    Returns
    -------
    LesionImage

    Raises
    ------
    ImageError
        For whatever is not one whole RGB photograph. The message gives the reason and the fix, and quotes neither
        path nor metadata.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.images import encode_image, read_image
    >>> pixels = np.full((48, 64, 3), (200, 150, 130), dtype=np.uint8)
    >>> read_image(encode_image(pixels)).pixels.shape
    (48, 64, 3)
    >>> read_image(b"%PDF-1.7")
    Traceback (most recent call last):
    ...
    cbdc.errors.ImageError: PDF file; expected JPEG, PNG, BMP, TIFF or WEBP. Export the photograph as JPEG or PNG.
    """
    return _read(source, root, expected_sha256, _pixels)


def read_images(
    sources: Sequence[Any] | np.ndarray,
    *,
    root: str | os.PathLike[str] | None = None,
    expected_sha256: Sequence[str | None] | None = None,
    size: tuple[int, int] | None = None,
    resample: str = "bilinear",
    n_jobs: int | None = None,
) -> list[LesionImage | ImageError]:
    """Read many photographs in threads; a bad one takes its place in the list as the error that it raised.

    All pixels are held at once: pass a batch at a time.

    Parameters
    ----------
    sources : sequence of sources of `read_image`, or ndarray of shape (n, H, W, 3)
    root : str or Path, optional
        As in `read_image`.
    expected_sha256 : sequence of str or None, optional
        One for each source.
    size : (height, width), optional
        Resize in the same thread; the result equals `resize` of the pixels, and the sha256 stays that of the source.
    resample : {"bilinear", "bicubic"}
    n_jobs : int, optional
        Threads; by default (or -1) one for each processor that this process may use.

    Returns
    -------
    list of LesionImage or ImageError
        One for each source, in order.

    Examples
    --------
    >>> import numpy as np
    >>> from cbdc.images import encode_image, read_images
    >>> photo = encode_image(np.full((48, 64, 3), 128, dtype=np.uint8))
    >>> [type(item).__name__ for item in read_images([photo, b"", photo])]
    ['LesionImage', 'ImageError', 'LesionImage']
    """
    if isinstance(sources, str | bytes | os.PathLike):
        raise TypeError("read_images: got one image; expected a list of them. Use read_image, or put it in a list.")
    if expected_sha256 is not None and len(expected_sha256) != len(sources):
        raise ValueError(f"expected_sha256: got {len(expected_sha256)} for {len(sources)} images; give one for each.")
    finish = _pixels if size is None else partial(resized, size=checked_size(size), resample=checked_filter(resample))
    hashes = repeat(None) if expected_sha256 is None else expected_sha256
    jobs = min(_n_threads(n_jobs), len(sources))
    read = partial(_read_or_refuse, root=root, finish=finish)
    if jobs <= 1:
        return list(map(read, sources, hashes))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(read, sources, hashes))


def image_sha256(source: Any, *, root: str | os.PathLike[str] | None = None) -> str:
    """The `LesionImage.sha256` of a source, without decoding it.

    Parameters
    ----------
    source, root
        As in `read_image`.

    Returns
    -------
    str

    Raises
    ------
    ImageError
        If the source cannot be read at all. That it can be hashed does not mean that it can be decoded.

    Examples
    --------
    >>> from cbdc.images import image_sha256
    >>> image_sha256(b"any bytes")[:8]
    '23914a83'
    """
    if isinstance(source, LesionImage):
        return source.sha256
    return _sha256(checked_pixels(source) if isinstance(source, np.ndarray) else _bytes(source, root))


def image_name(source: Any, index: int) -> str:
    """What a row or message may call a source: the file's name, never its folders; `image_<index>` without one.

    Examples
    --------
    >>> from cbdc.images import image_name
    >>> image_name("clinic/jane_doe/lesion.png", 3), image_name(b"...", 4)
    ('lesion.png', 'image_4')
    """
    if not isinstance(source, str | os.PathLike):
        return f"image_{index}"
    name = Path(source).name  # bytes that are no text would break every row and page that shows the name
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def refusal_message(source: Any, index: int, reason: object) -> str:
    """One line that says which image was refused, and why.

    Examples
    --------
    >>> from cbdc.images import refusal_message
    >>> refusal_message("clinic/a.png", 3, "empty file.")
    "image 3 'a.png': empty file."
    """
    name = f" {image_name(source, index)!r}" if isinstance(source, str | os.PathLike) else ""
    return f"image {index}{name}: {reason}"


def _read_or_refuse(
    source: Any, expected: str | None, root: str | os.PathLike[str] | None, finish: Callable[[Image.Image], np.ndarray]
) -> LesionImage | ImageError:
    try:
        return _read(source, root, expected, finish)
    except ImageError as error:
        # A kept traceback would keep the bytes and pixels of every refused image alive.
        error.__context__ = None
        return error.with_traceback(None)


def _read(
    source: Any,
    root: str | os.PathLike[str] | None,
    expected: str | None,
    finish: Callable[[Image.Image], np.ndarray],
) -> LesionImage:
    if isinstance(source, LesionImage | np.ndarray):
        pixels = source.pixels if isinstance(source, LesionImage) else checked_pixels(source)
        digest = source.sha256 if isinstance(source, LesionImage) else _sha256(pixels)
        _check_sha256(digest, expected)
        return LesionImage(pixels if finish is _pixels else finish(Image.fromarray(pixels)), digest)
    data = _bytes(source, root)
    digest = _sha256(data)
    _check_sha256(digest, expected)
    return LesionImage(decode(data, finish), digest)


def _pixels(picture: Image.Image) -> np.ndarray:
    return np.array(picture)


def _bytes(source: Any, root: str | os.PathLike[str] | None) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        data = _file_bytes(os.fspath(source), root)
    else:
        raise ImageError(f"{type(source).__name__}; expected a path, bytes or a uint8 array (H, W, 3).")
    if not data:
        raise ImageError("empty file. Copy or export it again.")
    _check_n_bytes(len(data))
    return data


def _file_bytes(path: str, root: str | os.PathLike[str] | None) -> bytes:
    try:
        resolved = os.path.realpath(path)
        if root is not None and not Path(resolved).is_relative_to(os.path.realpath(root)):
            raise ImageError("lies outside the data folder. Give a path below it, without '..' or links that leave it.")
        with open(resolved, "rb", opener=_open_regular) as file:
            n = os.fstat(file.fileno()).st_size
            _check_n_bytes(n)
            return file.read(MAX_BYTES + 1) if n else b""
    except ImageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError("no such file. Check the name and the folder.") from None
    except PermissionError:
        raise ImageError("permission denied. Give this user the right to read it.") from None
    except OSError as error:  # strerror alone: the exception's own text holds the path
        raise ImageError(f"cannot be read ({error.strerror}). Check the name and the disk.") from None
    except ValueError:
        raise ImageError("not a valid path. Take out null characters.") from None


def _open_regular(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageError("not a regular file (a folder, pipe or device). Give the image file itself.")
    return descriptor


def _check_n_bytes(n: int) -> None:
    if n > MAX_BYTES:
        raise ImageError(f"{n / 1e6:.0f} MB; allowed are {MAX_BYTES / 1e6:.0f} MB. Export it as JPEG.")


def _sha256(content: bytes | np.ndarray) -> str:
    if isinstance(content, np.ndarray):
        digest = hashlib.sha256(str(content.shape).encode())
        digest.update(content.data)
        return digest.hexdigest()
    return hashlib.sha256(content).hexdigest()


def _check_sha256(digest: str, expected: str | None) -> None:
    if expected is not None and digest != expected.lower():
        raise ImageError(
            f"sha256 {digest[:12]}...; expected {expected[:12]}...: not the bytes that were recorded. Copy it again."
        )


def _n_threads(n_jobs: int | None) -> int:
    if n_jobs is None or n_jobs == -1:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_jobs < 1:
        raise ValueError(f"n_jobs: got {n_jobs}; expected a number of threads from 1, -1 or None.")
    return n_jobs
