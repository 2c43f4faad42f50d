"""Every bad image gives a refused row with its reason; nothing crashes, hangs, or turns into wrong pixels silently."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from cbdc.errors import ImageError
from cbdc.images import LesionImage, encode_image, read_image, read_images


def photo(height=48, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(picture, format, **options):
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width=48, height=48, bits=8, colour=2, pixels=b"", before=b""):
    """A PNG by hand, for what Pillow would not write. Without `pixels`: black."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = pixels or (b"\0" + bytes(width * channels * bits // 8)) * min(height, 500)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_claiming(width, height):
    """A small JPEG whose frame header lies about its size."""
    data = bytearray(saved(photo(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(n):
    """A valid progressive JPEG whose last scan comes n times: minutes of work in a few bytes at full size."""
    data = saved(np.full((1600, 1600, 3), 99, np.uint8), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * n + data[-2:]


def float_tiff(value=0.5):
    return saved(Image.fromarray(np.full((48, 64), value, np.float32)), "TIFF")


def two_frames(format, **options):
    pages = [Image.fromarray(photo()), Image.fromarray(255 - photo())]
    return saved(pages[0], format, save_all=True, append_images=pages[1:], **options)


def ftyp(brand):
    return struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0" + brand + b"mif1" + bytes(400)


def hidden():
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[10:20] = 0
    return Image.fromarray(np.concatenate([photo(), alpha], axis=2))


def palette_with_hole():
    return saved(Image.fromarray(photo()).quantize(16), "PNG", transparency=0)


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"the lesion was here", "not an image"),
    "zeros": (bytes(5000), "not an image"),
    "truncated JPEG": (saved(photo(), "JPEG")[:-300], "truncated JPEG"),
    "truncated progressive JPEG": (saved(photo(), "JPEG", progressive=True)[:-300], "truncated JPEG"),
    "truncated PNG": (saved(photo(), "PNG")[:-300], "truncated PNG"),
    "PNG without its last 12 bytes": (saved(photo(), "PNG")[:-12], "truncated PNG"),
    "PNG with a flipped bit": (encode_image(photo())[:200] + b"\xff" + encode_image(photo())[201:], "damaged PNG"),
    "20000 x 20000 PNG": (png(20000, 20000, bits=8, pixels=bytes(1000)), "64 megapixels"),
    "144 MP PNG": (png(12000, 12000, pixels=bytes(1000)), "64 megapixels"),
    "144 MP JPEG": (jpeg_claiming(12000, 12000), "64 megapixels"),
    "zTXt bomb": (png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000)))), "damaged PNG"),
    "JPEG of 1300 scans": (many_scans(1300), "1600 x 1600 pixels in 13.. scans"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n", "EPS file; expected JPEG"),
    "EPS with preview": (b"\xc5\xd0\xd3\xc6" + bytes(40), "EPS file"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, HTML or XML"),
    "HTML of a login page": (b"\n<!DOCTYPE html><html></html>", "SVG, HTML or XML"),
    "PDF": (b"%PDF-1.7\n", "PDF file"),
    "HEIC": (ftyp(b"heic"), "HEIC file.*Most Compatible"),
    "AVIF": (ftyp(b"avif"), "AVIF file"),
    "DICOM": (bytes(128) + b"DICM" + bytes(100), "DICOM file"),
    "GIF": (saved(photo(), "GIF"), "GIF file"),
    "PPM": (saved(photo(), "PPM"), "not an image"),
    "CMYK JPEG": (saved(Image.fromarray(photo()).convert("CMYK"), "JPEG"), "CMYK; expected 8-bit RGB"),
    "CMYK TIFF": (saved(Image.fromarray(photo()).convert("CMYK"), "TIFF"), "CMYK; expected 8-bit RGB"),
    "16-bit gray PNG": (saved(Image.fromarray(np.full((48, 64), 4000, np.uint16)), "PNG"), "16-bit grayscale; exp"),
    "16-bit gray TIFF": (saved(Image.fromarray(np.full((48, 64), 4000, np.uint16)), "TIFF"), "16-bit grayscale; exp"),
    "16-bit RGB PNG": (png(bits=16), "16-bit colour; expected 8-bit RGB. Re-export it as 8-bit"),
    "16-bit RGBA PNG": (png(bits=16, colour=6), "16-bit colour"),
    "32-bit TIFF": (saved(Image.fromarray(np.full((48, 64), 4000, np.int32)), "TIFF"), "32-bit grayscale"),
    "float TIFF": (float_tiff(), "floating-point grayscale; expected 8-bit RGB"),
    "8-bit gray JPEG": (saved(photo()[..., 0], "JPEG"), "8-bit grayscale; expected 8-bit RGB"),
    "1-bit PNG": (saved(Image.fromarray(photo()).convert("1"), "PNG"), "1-bit black and white"),
    "CIELAB TIFF": (saved(Image.new("LAB", (48, 48)), "TIFF"), "CIELAB"),
    "gray with alpha": (saved(Image.fromarray(photo()).convert("LA"), "PNG"), "grayscale with transparency"),
    "transparent PNG": (saved(hidden(), "PNG"), "transparency that hides pixels"),
    "transparent TIFF": (saved(hidden(), "TIFF"), "transparency that hides pixels"),
    "transparent WEBP": (saved(hidden(), "WEBP"), "transparency that hides pixels"),
    "transparent palette": (palette_with_hole(), "transparency that hides pixels"),
    "transparent colour key": (saved(photo() // 255, "PNG", transparency=(0, 0, 0)), "transparency that hides pixels"),
    "animated PNG": (two_frames("PNG"), "PNG with several frames or pages"),
    "animated WEBP": (two_frames("WEBP"), "WEBP with several frames or pages"),
    "TIFF of two pages": (two_frames("TIFF"), "TIFF with several frames or pages"),
    "preview of a raw file": (saved(photo(), "TIFF", tiffinfo={254: 1}), "camera raw"),
    "1 x 1": (saved(photo(1, 1), "PNG"), "1 x 1 pixels; expected at least 16"),
    "20000 x 1": (saved(photo(1, 20000), "PNG"), "20000 x 1 pixels; expected at least 16"),
    "4000 x 20": (saved(photo(20, 4000), "PNG"), "4000 x 20 pixels; expected sides within 10:1"),
    "float array": (photo() / 255, "float64 array; expected uint8"),
    "channels first": (np.zeros((3, 48, 64), np.uint8), "last axis"),
    "gray array": (np.zeros((48, 64), np.uint8), "expected \\(H, W, 3\\)"),
    "RGBA array": (np.zeros((48, 64, 4), np.uint8), "expected \\(H, W, 3\\)"),
    "empty array": (np.zeros((0, 0, 3), np.uint8), "0 x 0 pixels"),
    "1 x 1 array": (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels"),
    "no path": (None, "NoneType; expected a path"),
    "missing cell": (float("nan"), "float; expected a path"),
    "Pillow image": (Image.fromarray(photo()), "Image; expected a path"),
    "null in the path": ("a\0.png", "not a valid path"),
    "missing file": ("no/such/jane_doe.png", "no such file"),
    "endless name": ("a" * 5000, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_with_its_reason(case):
    source, reason = BAD[case]
    with pytest.raises(ImageError, match=reason) as refusal:
        read_image(source)
    assert str(refusal.value).endswith(".")  # reason, then a fix that is a sentence
    assert "jane_doe" not in str(refusal.value)
    rows = read_images([photo(), source, photo()], n_jobs=2)
    assert [type(row) for row in rows] == [LesionImage, ImageError, LesionImage]
    assert str(rows[1]) == str(refusal.value)


def test_a_batch_of_every_bad_image_keeps_its_order():
    sources = [item for source, _ in BAD.values() for item in (source, photo())]
    rows = read_images(sources)
    assert [isinstance(row, ImageError) for row in rows] == [True, False] * len(BAD)


# --- the folder


def test_paths_must_stay_below_the_root(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "secret.png"
    (root / "sub").mkdir(parents=True)
    outside.write_bytes(encode_image(photo()))
    inside = root / "sub" / "a.png"
    inside.write_bytes(encode_image(photo()))
    (root / "leaves.png").symlink_to(outside)
    (root / "stays.png").symlink_to(inside)
    (tmp_path / "data_2").mkdir()
    (tmp_path / "data_2" / "a.png").write_bytes(encode_image(photo()))
    for path in (inside, root / "stays.png", root / "sub" / ".." / "stays.png"):
        assert isinstance(read_image(path, root=root), LesionImage)
    for path in (
        outside,
        root / ".." / "secret.png",
        root / "leaves.png",
        tmp_path / "data_2" / "a.png",
        "/etc/passwd",
    ):
        with pytest.raises(ImageError, match="outside the data folder") as refusal:
            read_image(path, root=root)
        assert "secret" not in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipes_devices_and_folders_neither_hang_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    open_files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    for path in (tmp_path / "pipe.png", tmp_path, "/dev/zero"):
        with pytest.raises(ImageError, match="not a regular file"):
            read_image(path)
    assert open_files is None or len(os.listdir("/proc/self/fd")) == open_files


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(ImageError, match="cannot be read") as refusal:
        read_image(tmp_path / "loop.png", root=tmp_path)
    assert str(tmp_path) not in str(refusal.value)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(photo()))

    def deny(*_):  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("cbdc.images.read.os.open", deny)
    with pytest.raises(ImageError, match="permission denied") as refusal:
        read_image(path)
    assert str(tmp_path) not in str(refusal.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.bmp"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: a terabyte that takes no room
    with pytest.raises(ImageError, match="1000000 MB; allowed are 256 MB"):
        read_image(path)


# --- what decodes without complaint


def test_flipped_bits_of_a_jpeg_are_caught_by_the_hash_only():
    data = saved(photo(), "JPEG")
    flipped = bytearray(data)
    flipped[-200] ^= 4
    assert not np.array_equal(read_image(bytes(flipped)).pixels, read_image(data).pixels)  # silently wrong
    with pytest.raises(ImageError, match="not the bytes that were recorded"):
        read_image(bytes(flipped), expected_sha256=hashlib.sha256(data).hexdigest())


def test_truncation_is_not_hidden_by_the_users_setting(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(saved(photo(), "JPEG")[:-300])


CORRUPT_EXIF = [
    b"Exif\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f",  # a resolution far outside
    b"Exif\0\0 Jane Doe",
]


@pytest.mark.parametrize("exif", CORRUPT_EXIF)
def test_corrupt_exif_counts_as_none(exif):
    """Without a warning too: the suite turns each into an error."""
    for format, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        with_exif, without = saved(photo(), format, exif=exif, **options), saved(photo(), format, **options)
        np.testing.assert_array_equal(read_image(with_exif).pixels, read_image(without).pixels)


def test_auxiliary_pictures_of_a_phone_are_ignored():
    main, depth = Image.fromarray(photo()), Image.fromarray(255 - photo())
    phone = saved(main, "MPO", save_all=True, append_images=[depth])
    np.testing.assert_array_equal(read_image(phone).pixels, read_image(saved(main, "JPEG")).pixels)


# --- the process


def test_a_picture_too_large_for_memory_is_refused_not_fatal(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    with pytest.raises(ImageError, match="more memory than there is"):
        read_image(saved(photo(), "BMP"))


def test_our_own_mistakes_are_not_swallowed(monkeypatch):
    def mistake(*_):
        raise KeyError("a mistake of the library")

    monkeypatch.setattr("cbdc.images.decode._check_header", mistake)
    with pytest.raises(KeyError):
        read_images([encode_image(photo())])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from the kernel")
def test_bombs_are_refused_before_memory_is_spent(tmp_path):
    """A gigabyte of pixels each: refused by their headers within 60 MB more than an ordinary image takes."""
    bombs = {
        "a.png": png(20000, 20000, bits=8, pixels=bytes(10)),
        "b.jpg": jpeg_claiming(20000, 20000),
        "c.png": png(before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000_000), 1))),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    code = """
        import resource, sys
        from pathlib import Path
        from cbdc.images import encode_image, read_images, resize
        import numpy as np
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        read_images([encode_image(np.zeros((48, 64, 3), np.uint8))])
        before = peak()
        rows = read_images(sorted(Path(sys.argv[1]).iterdir()), n_jobs=1)
        print([type(row).__name__ for row in rows], peak() - before)
        assert [type(row).__name__ for row in rows] == ["ImageError"] * 3
        assert peak() - before < 60
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(tmp_path)], check=True, timeout=60)


def test_eps_never_reaches_ghostscript(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    eps = saved(photo(), "EPS")
    for data in (eps, b"BM" + eps, saved(photo(), "PNG", pnginfo=_text(eps))):
        rows = read_images([data])
        assert len(rows) == 1


def _text(payload):
    info = PngImagePlugin.PngInfo()
    info.add_text("a", payload.decode("latin-1"))
    return info
