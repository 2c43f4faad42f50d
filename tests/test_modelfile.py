"""Model files: round trip, tampering, truncation, atomic saving."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from cbdc import modelfile
from cbdc.errors import ModelFileError
from cbdc.modelfile import read_modelfile, write_modelfile

ARRAYS = {"weights": np.arange(12, dtype=np.float32).reshape(3, 4), "mask": np.array([True, False])}
DOCUMENT = {"classes": ["mel", "nv"], "confidence_level": 0.9}


@pytest.fixture
def saved(tmp_path):
    return write_modelfile(tmp_path / "model.cbdc", ARRAYS, DOCUMENT)


@given(
    array=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
        hnp.array_shapes(min_dims=0, max_dims=3),
    )
)
def test_round_trip(tmp_path_factory, array):
    path = write_modelfile(tmp_path_factory.mktemp("m") / "model.cbdc", {"a": array}, DOCUMENT)
    arrays, document = read_modelfile(path)
    assert document == DOCUMENT
    assert arrays["a"].dtype == array.dtype
    assert arrays["a"].shape == array.shape
    assert arrays["a"].tobytes() == array.tobytes()


def test_every_flipped_bit_is_refused(tmp_path):
    """Each bit of the file; safetensors orders its header anew at every write, so that no draw of places would do."""
    path = write_modelfile(tmp_path / "model.cbdc", ARRAYS, DOCUMENT)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(ModelFileError):
                read_modelfile(path)


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_is_refused(tmp_path_factory, share):
    path = write_modelfile(tmp_path_factory.mktemp("m") / "model.cbdc", ARRAYS, DOCUMENT)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelFileError, match=r"model\.cbdc"):
        read_modelfile(path)


def test_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "model.cbdc").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelFileError, match="pickles"):
        read_modelfile(tmp_path / "model.cbdc")
    assert not (tmp_path / "boom").exists()


def test_missing_foreign_and_newer_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ModelFileError, match="no such model file"):
        read_modelfile(tmp_path / "nowhere.cbdc")
    save_file(ARRAYS, tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match="not a cbdc model"):
        read_modelfile(tmp_path / "other.safetensors")
    monkeypatch.setattr(modelfile, "FORMAT_VERSION", 99)
    path = write_modelfile(tmp_path / "newer.cbdc", ARRAYS, DOCUMENT)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="upgrade cbdc"):
        read_modelfile(path)


def test_document_must_be_json(tmp_path):
    with pytest.raises(ModelFileError, match="JSON"):
        write_modelfile(tmp_path / "model.cbdc", {}, {"x": float("nan")})
    with pytest.raises(ModelFileError, match="JSON"):
        write_modelfile(tmp_path / "model.cbdc", {}, {"x": object()})


def test_numbers_of_numpy_are_numbers(tmp_path):
    document = {"random_state": np.int64(3), "level": np.float32(0.5), "standardize": np.bool_(True)}
    path = write_modelfile(tmp_path / "m.cbdc", {"w": np.eye(2)}, document)
    assert read_modelfile(path)[1] == {"random_state": 3, "level": 0.5, "standardize": True}
    with pytest.raises(ModelFileError, match="JSON"):
        write_modelfile(tmp_path / "m.cbdc", {"w": np.eye(2)}, {"level": np.float32("nan")})


def test_failed_save_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ModelFileError, match="No space left"):
        write_modelfile(saved, ARRAYS, {"other": 1})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    with pytest.raises(ModelFileError, match="folder exists"):
        write_modelfile(saved.parent / "absent" / "model.cbdc", ARRAYS, DOCUMENT)


def test_kill_in_mid_save_keeps_the_old_file(saved):
    before = saved.read_bytes()
    program = textwrap.dedent(f"""
        import os, time
        import numpy as np
        from cbdc.modelfile import write_modelfile
        def slow(_):
            print("writing", flush=True)
            time.sleep(60)
        os.fsync = slow
        write_modelfile({str(saved)!r}, {{"a": np.zeros(1000)}}, {{}})
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.01)
    assert saved.read_bytes() == before
    read_modelfile(saved)


def test_the_same_content_is_the_same_file(tmp_path):
    arrays = {"b": np.arange(3.0), "a": np.eye(2, dtype=np.float32)}
    document = {"name": 'Lésion \u2265 3 \\ "quoted"', "n": 3}
    written = {write_modelfile(tmp_path / "m", arrays, document).read_bytes() for _ in range(20)}
    assert len(written) == 1
    found, again = read_modelfile(tmp_path / "m")
    assert again == document
    np.testing.assert_array_equal(found["b"], arrays["b"])
