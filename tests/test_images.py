"""What is read is exactly what was written, upright, whatever the container; the rest of the file stays behind."""

import gc
import hashlib
import io
import os
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from cbdc import images
from cbdc.errors import ImageError, ParameterError
from cbdc.images import (
    LesionImage,
    encode_image,
    image_name,
    image_sha256,
    read_image,
    read_images,
    refusal_message,
    resize,
    shades_of_gray,
    thumbnail_jpeg,
    thumbnail_png,
    write_image,
)
from tests.strategies import encoded_images, rgb_pixels


def saved(picture, format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- exactness


@given(rgb_pixels(), st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]))
def test_lossless_formats_come_back_exactly(pixels, format):
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    image = read_image(saved(Image.fromarray(pixels), format, **options))
    assert image.pixels.dtype == np.uint8
    np.testing.assert_array_equal(image.pixels, pixels)


@given(rgb_pixels())
def test_encode_image_round_trip(pixels):
    np.testing.assert_array_equal(read_image(encode_image(pixels)).pixels, pixels)


def test_jpeg_equals_pillow_and_ignores_the_file_name(tmp_path):
    data = saved(Image.fromarray(noise()), "JPEG")
    path = tmp_path / "really_a_jpeg.png"
    path.write_bytes(data)
    with Image.open(io.BytesIO(data)) as picture:
        np.testing.assert_array_equal(read_image(path).pixels, np.asarray(picture))


def test_jpeg_that_stores_rgb_keeps_its_colours():
    pixels = np.kron(noise(4, 6), np.ones((16, 16, 1), np.uint8))
    data = saved(Image.fromarray(pixels), "JPEG", quality=100, keep_rgb=True)
    for letters in (b"\x03R\x11\0G\x11\0B\x11\0", b"\x03R\0G\0B\0"):  # leave only the Adobe segment to tell
        assert data.count(letters) == 1
        data = data.replace(letters, letters.translate(bytes.maketrans(b"RGB", b"\1\2\3")))
    np.testing.assert_allclose(read_image(data).pixels.astype(int), pixels, atol=2)


def test_palette_and_opaque_alpha_are_rgb_exactly():
    pixels = noise()
    palette = Image.fromarray(pixels).quantize(64)
    np.testing.assert_array_equal(read_image(saved(palette, "PNG")).pixels, np.asarray(palette.convert("RGB")))
    opaque = Image.fromarray(pixels).convert("RGBA")
    np.testing.assert_array_equal(read_image(saved(opaque, "PNG")).pixels, pixels)
    keyed = Image.fromarray(np.maximum(pixels, 1))  # the colour key (0, 0, 0) hides nothing here
    np.testing.assert_array_equal(read_image(saved(keyed, "PNG", transparency=(0, 0, 0))).pixels, np.maximum(pixels, 1))


ORIENTATIONS = {  # what a camera stores for an upright picture, by EXIF definition
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


@given(
    rgb_pixels(),
    st.sampled_from(sorted(ORIENTATIONS)),
    st.sampled_from([("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})]),
)
def test_every_orientation_equals_upright(upright, orientation, container):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright)))
    format, options = container
    np.testing.assert_array_equal(read_image(saved(stored, format, exif=exif, **options)).pixels, upright)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_every_orientation_of_a_jpeg(orientation, order):
    upright = np.kron(noise(4, 6), np.ones((16, 16, 1), np.uint8))  # blocks of the JPEG grid, so that turning commutes
    exif = Image.Exif()
    exif.endian = order
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100, "subsampling": 0}
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright)))
    got = read_image(saved(stored, "JPEG", exif=exif, **options)).pixels
    want = read_image(saved(Image.fromarray(upright), "JPEG", **options)).pixels
    np.testing.assert_allclose(got.astype(int), want, atol=2)


# --- any bytes


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(ImageError):
        read_image(data)


HEADS = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"RIFF\x40\0\0\0WEBPVP8L",
]


@given(st.sampled_from(HEADS), st.binary(max_size=300))
def test_random_bytes_behind_a_true_signature_are_refused_or_read(head, data):
    (item,) = read_images([head + data])
    assert isinstance(item, LesionImage | ImageError)


@pytest.mark.filterwarnings("default")  # Pillow's warnings on damaged TIFF must not be what refuses
@given(encoded_images(), st.data())
def test_flipped_bits_never_crash_and_never_pass_the_hash(data, draws):
    digest = hashlib.sha256(data).hexdigest()
    damaged = bytearray(data)
    for bit in draws.draw(st.sets(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=8)):
        damaged[bit // 8] ^= 1 << bit % 8
    (item,) = read_images([bytes(damaged)])
    assert isinstance(item, LesionImage | ImageError)
    with pytest.raises(ImageError, match="not the bytes that were recorded"):
        read_image(bytes(damaged), expected_sha256=digest)
    assert read_image(data, expected_sha256=digest.upper()).sha256 == digest


@pytest.mark.filterwarnings("default")
@given(encoded_images(), st.data())
def test_no_prefix_of_a_file_is_an_image(data, draws):
    with pytest.raises(ImageError):
        read_image(data[: draws.draw(st.integers(0, len(data) - 1))])


@given(npst.arrays(npst.array_dtypes() | npst.scalar_dtypes(), npst.array_shapes(min_dims=0, max_dims=4, max_side=20)))
def test_any_array_is_read_or_refused(array):
    if isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return
    with pytest.raises(ImageError):
        read_image(array)


# --- provenance


def test_sha256_is_of_the_encoded_bytes_or_of_shape_and_pixels(tmp_path):
    pixels = noise(40, 40)
    data = encode_image(pixels)
    path = write_image(pixels, tmp_path / "a.png")
    assert read_image(path).sha256 == read_image(data).sha256 == hashlib.sha256(data).hexdigest() == image_sha256(path)
    digest = read_image(pixels).sha256
    assert digest == image_sha256(pixels) == image_sha256(read_image(pixels))
    assert digest == read_image(pixels.transpose(1, 0, 2).copy().transpose(1, 0, 2)).sha256
    assert digest != read_image(pixels.reshape(20, 80, 3)).sha256
    assert digest != hashlib.sha256(pixels.tobytes()).hexdigest()


def test_an_image_already_read_passes_through_and_can_be_resized():
    image = read_image(noise())
    assert read_image(image).pixels is image.pixels
    (small,) = read_images([image], size=(24, 32))
    assert (small.pixels.shape, small.sha256) == ((24, 32, 3), image.sha256)


def test_no_metadata_survives(tmp_path):
    name = "Jane Doe 1970-01-01"
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = name
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = name
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", name)
    text.add_itxt("XML:com.adobe.xmp", f"<x:xmpmeta>{name}</x:xmpmeta>")
    picture = Image.fromarray(noise())
    sources = [
        saved(picture, "JPEG", exif=exif, comment=name, xmp=name.encode()),
        saved(picture, "PNG", pnginfo=text, exif=exif),
        saved(picture, "TIFF", exif=exif, description=name),
    ]
    for data in sources:
        assert name.encode() in data
        image = read_image(data)
        assert set(vars(image)) == {"pixels", "sha256"}
        assert type(image.pixels) is np.ndarray
        assert name not in repr(image)
        (refused,) = read_images([data[:-20]])
        assert isinstance(refused, ImageError)
        assert name not in f"{refused!r} {refused} {refused.__cause__} {refused.__context__}"
        path = write_image(image.pixels, tmp_path / "out.jpg")
        for written in (path.read_bytes(), thumbnail_png(image.pixels), thumbnail_jpeg(image.pixels)):
            assert name.encode() not in written
            with Image.open(io.BytesIO(written)) as again:
                assert len(again.getexif()) == 0
                assert set(again.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_messages_name_the_file_but_never_its_folders():
    source = os.path.join("clinic", "jane doe", "a.png")
    assert image_name(source, 3) == "a.png"
    assert refusal_message(source, 3, ImageError("empty file.")) == "image 3 'a.png': empty file."
    assert refusal_message(b"", 4, "empty file.") == "image 4: empty file."
    assert refusal_message("a\nb.png", 5, "x") == "image 5 'a\\nb.png': x"


# --- many


def test_batch_of_100_with_20_bad_files_keeps_its_order(tmp_path):
    sources, bad = [], set(range(2, 100, 5))
    for i in range(100):
        path = tmp_path / f"{i}.png"
        data = encode_image(noise(seed=i))
        path.write_bytes(data[: len(data) // 2] if i in bad else data)
        sources.append(path)
    for n_jobs in (1, 2, 8, None):
        rows = read_images(sources, root=tmp_path, n_jobs=n_jobs)
        assert len(rows) == 100
        assert {i for i, row in enumerate(rows) if isinstance(row, ImageError)} == bad
        for i in set(range(100)) - bad:
            np.testing.assert_array_equal(rows[i].pixels, noise(seed=i))


def test_batch_equals_one_by_one_and_resize_commutes_with_reading():
    sources = [saved(Image.fromarray(noise(60 + i, 80, i)), "JPEG") for i in range(6)]
    for resample in ("bilinear", "bicubic"):
        rows = read_images(sources, size=(32, 48), resample=resample, n_jobs=2)
        for source, row in zip(sources, rows, strict=True):
            np.testing.assert_array_equal(row.pixels, resize(read_image(source).pixels, (32, 48), resample))
            assert row.sha256 == read_image(source).sha256


def test_resize_is_antialiased_and_orders_its_sides():
    checker = np.zeros((64, 96, 3), np.uint8)
    checker[::2, ::2] = checker[1::2, 1::2] = 255
    small = resize(checker, (16, 24))
    assert small.shape == (16, 24, 3)
    assert np.ptp(small) < 24  # nearest neighbour or two-tap bilinear would keep black and white


def test_refused_images_do_not_keep_their_bytes_alive():
    class Tracked(np.ndarray):
        pass

    array = np.zeros((64, 64, 4), np.uint8).view(Tracked)
    alive = weakref.ref(array)
    rows = read_images([array])
    assert isinstance(rows[0], ImageError)
    assert rows[0].__traceback__ is None
    del array
    gc.collect()
    assert alive() is None


def test_eight_threads_at_once():
    sources = [encode_image(noise(seed=i)) for i in range(16)] + [b"", b"%PDF"]
    want = [getattr(row, "sha256", None) for row in read_images(sources, n_jobs=1)]
    results = [None] * 8

    def work(i):
        results[i] = [getattr(row, "sha256", None) for row in read_images(sources, n_jobs=2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [want] * 8


def test_pillow_stays_as_the_user_set_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # the user's cap is for the user's own calls
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN))
    assert all(isinstance(row, LesionImage) for row in read_images([encode_image(noise(64, 64))] * 3))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN)) == before


# --- writing and arguments


def test_thumbnails_fit_and_are_never_enlarged():
    for thumbnail in (thumbnail_png, thumbnail_jpeg):
        assert read_image(thumbnail(noise(300, 400), 160)).pixels.shape == (120, 160, 3)
        assert read_image(thumbnail(noise(40, 56), 160)).pixels.shape == (40, 56, 3)


def test_wrong_arguments_say_what_is_allowed(tmp_path):
    photo = encode_image(noise())
    with pytest.raises(TypeError, match="got one image"):
        read_images("a.png")
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        read_images([photo, photo], expected_sha256=["00"])
    with pytest.raises(ValueError, match="n_jobs"):
        read_images([photo], n_jobs=0)
    with pytest.raises(ValueError, match="height, width"):
        read_images([photo], size=(0, 224))
    with pytest.raises(ValueError, match="resample"):
        resize(noise(), (20, 20), "nearest")
    with pytest.raises(ValueError, match="format"):
        encode_image(noise(), "GIF")
    with pytest.raises(ValueError, match="ends in"):
        write_image(noise(), tmp_path / "a.gif")


def test_empty_batch():
    assert read_images([]) == []
    assert set(images.__all__) <= set(dir(images))


# --- colour constancy


@given(npst.arrays(np.uint8, (8, 9, 3), elements=st.integers(20, 200)), st.sampled_from([1, 2, 6, np.inf]))
def test_shades_of_gray_makes_the_light_gray(pixels, norm):
    once = shades_of_gray(pixels, norm)
    values = once.reshape(-1, 3).astype(float)
    unclipped = values.max() < 255
    light = values.max(axis=0) if norm == np.inf else np.mean(values**norm, axis=0) ** (1 / norm)
    if unclipped:
        assert np.ptp(light) <= 1.5  # two roundings to whole levels


def test_shades_of_gray_takes_a_cast_out():
    rng = np.random.default_rng(0)
    plain = rng.integers(40, 120, (20, 20, 3))
    cast = np.rint(plain * [1.6, 1.0, 1 / 1.6]).astype(np.uint8)
    difference = shades_of_gray(cast).astype(int) - shades_of_gray(plain.astype(np.uint8))
    assert np.abs(difference).max() <= 2
    gray = np.repeat(plain[..., :1], 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(shades_of_gray(gray), gray)


def test_shades_of_gray_leaves_a_dark_channel_alone_and_refuses_others():
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(shades_of_gray(black), black)
    with pytest.raises(ParameterError, match=r"norm: got 0\.5"):
        shades_of_gray(black, 0.5)
    with pytest.raises(ImageError, match="float64 array"):
        shades_of_gray(black.astype(float))
