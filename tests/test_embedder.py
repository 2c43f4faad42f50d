"""`ImageEmbedder`: one row an image whatever its company, nothing computed twice, nothing lost in a kill."""

import copy
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cbdc.backbones import ImageEmbedder
from cbdc.backbones import embedder as embedder_module
from cbdc.backbones.cache import EmbeddingCache
from cbdc.errors import CBDCError, ImageError
from cbdc.images import encode_image, read_image, read_images, shades_of_gray, write_image


class CountingEngine:
    """The engine, and every image that it was given."""

    def __init__(self, engine):
        self.engine = engine
        self.name = engine.name
        self.seen = []

    def __call__(self, pixels):
        self.seen.extend(pixels)
        return self.engine(pixels)


def photos_of(n, seed=0, shape=(32, 48)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape, 3), dtype=np.uint8)


def counting(**parameters):
    embedder = ImageEmbedder(**parameters).fit()
    embedder._engine = CountingEngine(embedder._engine)
    return embedder


@pytest.fixture(scope="module", autouse=True)
def each_network_is_loaded_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder_module, "create_backbone", functools.cache(embedder_module.create_backbone))
        yield


@pytest.fixture(scope="module")
def embedder():
    return ImageEmbedder().fit()


# --- rows


def test_every_kind_of_source_gives_the_same_rows(embedder, tmp_path):
    photos = photos_of(3)
    paths = [write_image(photo, tmp_path / f"{i}.png") for i, photo in enumerate(photos)]
    expected = embedder.transform(photos)
    assert expected.shape == (3, 1280)
    assert expected.dtype == np.float32
    for X in (
        list(photos),
        paths,
        [str(path) for path in paths],
        np.array([str(path) for path in paths]),
        pd.Series([str(path) for path in paths], index=[7, 3, 5]),
        [encode_image(photo) for photo in photos],
        [read_image(path) for path in paths],
        SimpleNamespace(images=paths),
        iter(paths),
        [paths[0], photos[1], paths[2].read_bytes()],
    ):
        np.testing.assert_array_equal(embedder.transform(X), expected)


@settings(max_examples=8)
@given(
    order=st.permutations(range(4)),
    batch_size=st.integers(1, 5),
    n_jobs=st.sampled_from([None, -1, 1, 3]),
    engine=st.sampled_from(["onnx", "torch"]),
)
def test_a_row_depends_on_its_image_alone(embedder, order, batch_size, n_jobs, engine):
    photos = photos_of(4)
    other = ImageEmbedder(batch_size=batch_size, n_jobs=n_jobs, engine=engine).fit()
    rows = other.transform(photos[order])
    expected = np.concatenate([embedder.transform(photo[None]) for photo in photos])
    np.testing.assert_allclose(rows, expected[order], rtol=0, atol=1e-4)
    if engine == "onnx":
        np.testing.assert_array_equal(rows, expected[order])


def test_no_images(embedder):
    rows, refusals = embedder.embed([])
    assert rows.shape == (0, 1280)
    assert refusals == {}


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 40), (50, 50), (300, 401)])
def test_the_network_sees_the_middle_or_all_of_the_image(resize, shape):
    embedder = counting(resize=resize)
    (photo,) = photos_of(1, shape=shape)
    embedder.transform([photo])
    height, width = shape
    side = min(shape)
    top, left = (height - side) // 2, (width - side) // 2
    part = photo[top : top + side, left : left + side] if resize == "crop" else photo
    expected = np.array(Image.fromarray(part).resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(embedder._engine.seen[0], expected)


# --- refusals


def test_bad_images_keep_their_places(embedder, tmp_path):
    photos = photos_of(20)
    sources = [write_image(photo, tmp_path / f"{i}.png") for i, photo in enumerate(photos)]
    for i in range(2, 20, 5):
        sources[i].write_bytes(b"")
    sources[4] = tmp_path / "absent.png"
    rows, refusals = embedder.embed(sources)
    assert sorted(refusals) == [2, 4, 7, 12, 17]
    assert np.isnan(rows[sorted(refusals)]).all()
    good = [i for i in range(20) if i not in refusals]
    np.testing.assert_array_equal(rows[good], embedder.transform(photos[good]))
    assert str(refusals[4]).startswith("image 4 'absent.png': no such file")
    assert str(tmp_path) not in str(refusals[4])
    with pytest.raises(ImageError) as caught:
        embedder.transform(sources)
    assert str(caught.value).splitlines()[0] == "5 of 20 images refused:"
    assert all(str(refusal) in str(caught.value) for refusal in refusals.values())


def test_a_long_list_of_refusals_ends_in_a_count(embedder):
    with pytest.raises(ImageError) as caught:
        embedder.transform([b"not an image"] * 25)
    lines = str(caught.value).splitlines()
    assert lines[0] == "25 of 25 images refused:"
    assert lines[10].startswith("image 9:")
    assert lines[11].startswith("and 15 more")
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.png", r"Put it in a list"),
        (Path("a.png"), r"Put it in a list"),
        (b"bytes", r"Put it in a list"),
        (photos_of(1)[0], r"Put it in a list"),
        (np.zeros((4, 1280)), r"shape \(4, 1280\); expected images"),
        (pd.DataFrame({"image": ["a.png"]}), r"table\['image'\]"),
    ],
)
def test_what_is_not_a_list_of_images(embedder, X, message):
    with pytest.raises((TypeError, ValueError), match=message):
        embedder.transform(X)


# --- scikit-learn


def test_estimator(embedder):
    twin = clone(embedder.set_params(verbose=False))
    assert twin.get_params() == embedder.get_params()
    with pytest.raises(NotFittedError):
        twin.transform(photos_of(1))
    assert embedder.get_feature_names_out()[-1] == "imageembedder1279"
    frame = clone(embedder).set_output(transform="pandas").fit_transform(list(photos_of(2)))
    assert list(frame.columns) == list(embedder.get_feature_names_out())
    np.testing.assert_array_equal(frame.to_numpy(), embedder.transform(photos_of(2)))


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 0},
        {"engine": "tensorflow"},
        {"resize": "pad"},
        {"n_jobs": 0},
        {"n_jobs": -2},
        {"backbone": "resnet"},
        {"weights": None},
    ],
)
def test_wrong_parameters(parameters):
    name, value = next(iter(parameters.items()))
    with pytest.raises(ValueError, match=name) as caught:
        ImageEmbedder(**parameters).fit()
    assert repr(value) in str(caught.value)


def test_threads_do_not_disturb_each_other(embedder):
    photos = photos_of(16)
    expected = embedder.transform(photos)
    rows = [None] * 8

    def work(k):
        rows[k] = embedder.transform(photos[2 * k : 2 * k + 2])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate(rows), expected)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_copy_gives_the_same_embeddings(engine):
    fitted = ImageEmbedder(engine=engine).fit()
    twin = copy.deepcopy(fitted)
    assert "_engine" not in vars(twin)
    np.testing.assert_array_equal(twin.transform(photos_of(2)), fitted.transform(photos_of(2)))
    assert twin.engine_ == fitted.engine_


def test_progress_bar(capsys):
    ImageEmbedder(verbose=True, batch_size=2).fit().transform(photos_of(3))
    assert "3/3" in capsys.readouterr().err
    ImageEmbedder(verbose=True, batch_size=2).fit().transform(photos_of(2))
    ImageEmbedder(batch_size=2).fit().transform(photos_of(3))
    assert capsys.readouterr() == ("", "")


def test_fingerprint_is_of_weights_and_preprocessing(embedder, tmp_path):
    same = ImageEmbedder(batch_size=3, n_jobs=1, engine="torch", cache_dir=tmp_path).fit()
    assert same.fingerprint_ == embedder.fingerprint_
    others = [
        ImageEmbedder(resize="squash").fit(),
        ImageEmbedder(weights="random").fit(),
        ImageEmbedder("resnet18", weights="random").fit(),
    ]
    assert len({embedder.fingerprint_, *(other.fingerprint_ for other in others)}) == 4


# --- cache


def test_cached_rows_are_the_fresh_ones_and_cost_nothing(embedder, tmp_path):
    photos = photos_of(7)
    first = counting(cache_dir=tmp_path / "new" / "cache", batch_size=2)
    np.testing.assert_array_equal(first.transform(photos), embedder.transform(photos))
    assert len(first._engine.seen) == 7
    second = counting(cache_dir=tmp_path / "new" / "cache")
    more = np.concatenate([photos_of(1, seed=1), photos[::-1]])
    np.testing.assert_array_equal(second.transform(more), embedder.transform(more))
    assert len(second._engine.seen) == 1


def test_engines_and_preprocessings_do_not_share_rows(tmp_path):
    photos = photos_of(2)
    for parameters in ({"engine": "onnx"}, {"engine": "torch"}, {"resize": "squash"}, {"weights": "random"}):
        embedder = counting(cache_dir=tmp_path, **parameters)
        embedder.transform(photos)
        assert len(embedder._engine.seen) == 2


def test_pixels_changed_after_reading_are_another_image(tmp_path):
    """`read_images(size=)` keeps the sha256 of the file, whose row is not that of the reduced picture."""
    path = write_image(photos_of(1, shape=(300, 300))[0], tmp_path / "a.png")
    (small,) = read_images([path], size=(64, 64))
    embedder = ImageEmbedder(cache_dir=tmp_path / "cache").fit()
    rows = [embedder.transform([source])[0] for source in (path, small, path)]
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_refusals_are_not_cached(tmp_path):
    path = tmp_path / "a.png"
    embedder = ImageEmbedder(cache_dir=tmp_path / "cache").fit()
    for _ in range(2):
        rows, refusals = embedder.embed([path, b"junk", photos_of(1)[0]])
        assert sorted(refusals) == [0, 1]
        assert np.isfinite(rows[2]).all()
    write_image(photos_of(1)[0], path)
    np.testing.assert_array_equal(embedder.transform([path])[0], rows[2])


def rows_file(folder):
    (file,) = Path(folder).glob("*.sqlite")
    return file


@pytest.mark.parametrize(
    ("damage", "n_damaged"),
    [
        ("embedding = substr(embedding, 5)", 2),
        ("embedding = CAST(x'00000000' || substr(embedding, 5) AS BLOB)", 2),
        ("embedding = NULL", 2),
        ("checksum = 0", 2),
        ("(embedding, checksum) = (SELECT embedding, checksum FROM embeddings ORDER BY sha256 LIMIT 1)", 1),
    ],
)
def test_a_damaged_row_is_computed_again(embedder, tmp_path, damage, n_damaged):
    photos = photos_of(2)
    counting(cache_dir=tmp_path).transform(photos)
    with sqlite3.connect(rows_file(tmp_path)) as database:
        assert database.execute(f"UPDATE embeddings SET {damage}").rowcount == 2
    database.close()
    for n_computed in (n_damaged, 0):
        again = counting(cache_dir=tmp_path)
        np.testing.assert_array_equal(again.transform(photos), embedder.transform(photos))
        assert len(again._engine.seen) == n_computed


def test_a_damaged_cache_file_says_what_to_do(tmp_path):
    embedder = ImageEmbedder(cache_dir=tmp_path).fit()
    embedder.transform(photos_of(1))
    rows_file(tmp_path).write_bytes(b"no database" * 1000)
    with pytest.raises(CBDCError, match="deleted"):
        embedder.transform(photos_of(1))
    rows_file(tmp_path).unlink()
    embedder.transform(photos_of(1))


def test_a_cache_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CBDCError, match="Fix"):
        ImageEmbedder(cache_dir=tmp_path / "file" / "cache").fit().transform(photos_of(1))


@given(rows=st.dictionaries(st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1), max_size=8))
@settings(max_examples=20)
def test_rows_come_back_bit_for_bit(tmp_path_factory, rows):
    kept = {key.hex(): np.frombuffer(np.uint32(bits).tobytes() * 5, np.float32) for key, bits in rows.items()}
    path = tmp_path_factory.mktemp("cache") / "c.sqlite"
    for cache in (EmbeddingCache(path), EmbeddingCache(path)):
        cache.put(kept)
        assert all(cache.get(key).tobytes() == row.tobytes() for key, row in kept.items())
        assert cache.get("ff" * 31 + "0f") is None
        cache.close()


def test_two_writers_at_once(tmp_path):
    """Two connections lock each other out as two processes do."""
    caches = [EmbeddingCache(tmp_path / "c.sqlite") for _ in range(2)]
    errors = []

    def write(k):
        try:
            for i in range(30):
                caches[k].put({f"{2 * i + k:064x}": np.full(3, 2 * i + k, np.float32)})
                caches[k].get(f"{i:064x}")
        except CBDCError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [caches[0].get(f"{i:064x}")[0] for i in range(60)] == list(range(60))
    for cache in caches:
        cache.close()


RUN_UNTIL_KILLED = """
import sys, time
import numpy as np
from cbdc.backbones import ImageEmbedder
from cbdc.backbones import embedder as embedder_module

embedder = ImageEmbedder(cache_dir=sys.argv[1], batch_size=2, n_jobs=1).fit()
engine = embedder._engine

class Slow:
    def __call__(self, pixels):
        features = engine(pixels)
        print("batch", flush=True)
        time.sleep(0.2)
        return features

embedder._engine = Slow()
embedder.transform(np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_resumes(embedder, tmp_path):
    code = textwrap.dedent(RUN_UNTIL_KILLED)
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(4):  # the fourth batch begins after the third was kept
        assert run.stdout.readline() == "batch\n"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    run.stdout.close()
    photos = photos_of(40)
    resumed = counting(cache_dir=tmp_path)
    np.testing.assert_array_equal(resumed.transform(photos), embedder.transform(photos))
    assert 2 <= len(resumed._engine.seen) <= 40 - 6


# --- views, size, colour constancy


@pytest.mark.parametrize("n_views", [2, 4, 8])
def test_views_make_the_embedding_blind_to_mirrors_and_turns(n_views):
    X = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    embedder = ImageEmbedder(n_views=n_views, image_size=64).fit()
    flips = [X[:, :, ::-1], X[:, ::-1], X[:, ::-1, ::-1], X.transpose(0, 2, 1, 3), np.rot90(X, axes=(1, 2))]
    for view in flips[: {2: 1, 4: 3, 8: 5}[n_views]]:
        np.testing.assert_allclose(embedder.transform(np.ascontiguousarray(view)), embedder.transform(X), atol=1e-4)
    single = ImageEmbedder(image_size=64).fit()
    mean = sum(single.transform(np.ascontiguousarray(v)) for v in (X, X[:, :, ::-1])) / 2
    np.testing.assert_allclose(ImageEmbedder(n_views=2, image_size=64).fit_transform(X), mean, atol=1e-4)


def test_what_is_shown_is_part_of_the_fingerprint():
    options = [{}, {"image_size": 64}, {"n_views": 2}, {"color_constancy": "shades_of_gray"}, {"resize": "squash"}]
    assert len({ImageEmbedder(**each).fit().fingerprint_ for each in options}) == len(options)


def test_colour_constancy_is_that_of_the_images_room():
    X = np.random.default_rng(0).integers(30, 150, (2, 64, 64, 3), dtype=np.uint8)
    corrected = np.stack([shades_of_gray(x) for x in X])
    found = ImageEmbedder(image_size=64, color_constancy="shades_of_gray").fit_transform(X)
    np.testing.assert_allclose(found, ImageEmbedder(image_size=64).fit_transform(corrected), atol=1e-5)


def test_the_cache_follows_what_is_shown(tmp_path):
    X = list(np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8))
    embedder = ImageEmbedder(image_size=32, cache_dir=tmp_path).fit()
    embedder.set_params(color_constancy="shades_of_gray").transform(X)
    plain = ImageEmbedder(image_size=32, cache_dir=tmp_path).fit_transform(X)
    np.testing.assert_allclose(plain, ImageEmbedder(image_size=32).fit_transform(X), atol=1e-5)
