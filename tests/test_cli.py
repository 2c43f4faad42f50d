"""The command line: exit codes, rows, one sentence instead of a traceback."""

import csv
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from cbdc import CBDCClassifier, make_lesions
from cbdc.cli import main
from cbdc.images import write_image


@pytest.fixture(scope="module")
def lesions_folder(tmp_path_factory):
    """A plain folder with a folder of images for each class, and a csv that names patients."""
    root = tmp_path_factory.mktemp("lesions")
    lesions = make_lesions(200, image_size=64, class_prior={"nv": 0.5, "mel": 0.5}, random_state=1)
    for name in ("mel", "nv"):
        (root / name).mkdir()
    for i, (pixels, label) in enumerate(zip(lesions.images, lesions.labels, strict=True)):
        write_image(pixels, root / label / f"img{i}.png")
    return root


@pytest.fixture(scope="module")
def model(lesions_folder):
    path = lesions_folder.parent / "model.cbdc"
    assert main(["fit", "folder", "--root", str(lesions_folder), "--out", str(path), "--quiet"]) == 0
    return path


def test_predict_writes_one_row_an_image(model, lesions_folder, tmp_path, capsys):
    images = sorted((lesions_folder / "mel").iterdir())[:3]
    bad = tmp_path / "=cmd.png"
    bad.write_bytes(b"no image")
    arguments = ["predict", str(model), *map(str, images), str(bad), "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "rows.csv")]) == 3
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["image"] for row in rows] == [*(path.name for path in images), "'=cmd.png"]
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["refused"]
    assert rows[-1]["reason"]
    for row in rows[:3]:
        assert float(row["prob_mel"]) + float(row["prob_nv"]) == pytest.approx(1)
        inside = {name for name in ("mel", "nv") if float(row[f"pvalue_{name}"]) > 0.1}
        assert inside == set(row["set"].split("|")) - {""}
    assert main([*arguments[:-2], "--quiet", "--out", str(tmp_path / "rows.jsonl")]) == 0
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["image"] for line in lines] == [path.name for path in images]
    for out, message in [("rows.xml", ".csv or .jsonl"), ("nowhere/rows.csv", "there is no folder")]:
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(tmp_path / out)])
        assert message in capsys.readouterr().err
    assert main([*arguments, "--group", "I"]) == 1
    assert "not by group" in capsys.readouterr().err


def test_refused_rows_have_every_column_and_strange_names(model, tmp_path):
    (tmp_path / "in").mkdir()
    with open(os.path.join(os.fsencode(tmp_path / "in"), b"\xff.png"), "wb") as file:
        file.write(b"no image")
    assert main(["predict", str(model), str(tmp_path / "in"), "--quiet", "--out", str(tmp_path / "rows.csv")]) == 3
    header, row = csv.reader((tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines())
    assert {"prob_mel", "prob_nv", "pvalue_mel", "pvalue_nv"} < set(header)
    assert len(row) == len(header)
    assert row[0] == "\\udcff.png"
    assert main(["report", str(model), str(tmp_path / "in"), "--quiet", "--out", str(tmp_path / "c.html")]) == 3
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(model), str(tmp_path / "empty"), "--quiet"]) == 1


def test_predict_a_folder_and_print(model, lesions_folder, capsys):
    assert main(["predict", str(model), str(lesions_folder / "nv"), "--quiet", "--confidence-level", "0.5"]) == 0
    out = capsys.readouterr().out
    assert out.count("at confidence level 0.5") == len(list((lesions_folder / "nv").iterdir()))


def test_evaluate_takes_the_test_part(model, lesions_folder, tmp_path, capsys):
    out = tmp_path / "evaluation"
    assert main(["evaluate", str(model), "folder", "--root", str(lesions_folder), "--out", str(out), "--quiet"]) == 0
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert "</html>" in (out / "report.html").read_text(encoding="utf-8")
    (lesions_folder / "nv" / "one_more.png").write_bytes((lesions_folder / "nv").glob("*.png").__next__().read_bytes())
    code = main(["evaluate", str(model), "folder", "--root", str(lesions_folder), "--out", str(out), "--quiet"])
    (lesions_folder / "nv" / "one_more.png").unlink()
    assert code == 1
    assert "other rows" in capsys.readouterr().err


def test_embed_writes_arrays_without_pickle(lesions_folder, tmp_path):
    out = tmp_path / "e.npz"
    assert main(["embed", "folder", "--root", str(lesions_folder), "--out", str(out), "--quiet"]) == 0
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["embeddings"].dtype == np.float32
        assert len(arrays["embeddings"]) == len(arrays["image"]) == len(arrays["label"]) == 200


def test_report_page(model, lesions_folder, tmp_path):
    image = next((lesions_folder / "mel").iterdir())
    assert main(["report", str(model), str(image), "--out", str(tmp_path / "case.html"), "--quiet"]) == 0
    assert image.name in (tmp_path / "case.html").read_text(encoding="utf-8")


def test_datasets_lists_and_describes(lesions_folder, capsys):
    assert main(["datasets"]) == 0
    assert "ham10000" in capsys.readouterr().out
    assert main(["datasets", "folder", "--root", str(lesions_folder)]) == 0
    assert "200" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere.cbdc", "a.png"], "no such model file"),
        (["datasets", "ham1000", "--root", "."], "ham10000"),
        (["datasets", "ham10000"], "--root is missing"),
        (["fit", "folder", "--root", "/nonexistent", "--out", "m.cbdc"], "nonexistent"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, capsys):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def manifest(lesions_folder):
    """The same images with a sex, which every tenth lacks, and an age."""
    root = lesions_folder.parent / "table"
    root.mkdir()
    rows = ["image,label,sex,age"]
    for i, path in enumerate(sorted(lesions_folder.glob("*/*.png"))):
        shutil.copy(path, root)
        sex = "" if i % 10 == 0 else "fm"[i % 2]
        rows.append(f"{path.name},{path.parent.name},{sex},{30 + i % 3}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--condition-on", "group"], "--group-by is missing: --condition-on group takes the column"),
        (["--condition-on", "group", "--group-by", "skin"], "no such column; it has image, label, sex, age"),
        (["--condition-on", "group", "--group-by", "sex"], "20 of 200 images have none. Fix: --missing-group unknown"),
        (["--group-by", "sex"], "--group-by: it goes with --condition-on group"),
        (["--missing-group", "unknown"], "--missing-group: it goes with --condition-on group"),
        (["--delta", "0.1"], "--delta: it goes with --guarantee pac"),
        (["--first-size", "64"], "--first-size: it goes with --fine-tune"),
        (["--fine-tune", "--epochs", "0"], "The 'epochs' parameter of FineTuner must be"),
        (["--head", "linearized_laplace", "--feature-map", "hellinger"], "head 'linearized_laplace' takes none"),
    ],
)
def test_slips_are_told_before_anything_is_embedded(manifest, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("cbdc.backbones.ImageEmbedder.embed", None)
    data = ["fit", "csv", "--root", str(manifest), "--out", str(manifest.parent / "no.cbdc")]
    assert main([*data, "--quiet", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_feature_map_is_that_of_the_head(lesions_folder, tmp_path):
    model = tmp_path / "m.cbdc"
    data = ["fit", "folder", "--root", str(lesions_folder), "--out", str(model), "--quiet"]
    assert main([*data, "--feature-map", "hellinger"]) == 1  # of which head?
    assert main([*data, "--head", "laplace", "--feature-map", "hellinger"]) == 0
    assert CBDCClassifier.load(model).head_.feature_map == "hellinger"


def test_images_without_a_group_may_be_one(manifest, capsys):
    folder = manifest.parent
    model, data = folder / "groups.cbdc", ["csv", "--root", str(manifest)]
    options = ["--condition-on", "group", "--group-by", "sex", "--missing-group", "unknown", "--sizes", "0.4", "0.4"]
    options += ["0.2", "--confidence-level", "0.6", "--guarantee", "pac", "--delta", "0.3", "--quiet"]
    assert main(["fit", *data, "--out", str(model), *options]) == 0
    assert "'unknown'" in capsys.readouterr().out
    assert main(["evaluate", str(model), *data, "--out", str(folder / "groups"), "--quiet"]) == 0
    groups = json.loads((folder / "groups" / "metrics.json").read_text(encoding="utf-8"))["sets"]["0.6"]
    assert "unknown" in json.dumps(groups)
    image = str(next(manifest.glob("*.png")))
    assert main(["predict", str(model), image, "--group", "unknown", "--quiet"]) == 0
    assert main(["predict", str(model), image, "--quiet"]) == 1


def test_unknown_network_and_bad_level(lesions_folder, tmp_path, capsys):
    data = ["folder", "--root", str(lesions_folder), "--out", str(tmp_path / "out.npz"), "--quiet"]
    assert main(["embed", *data, "--backbone", "resnet5"]) == 1
    assert "resnet50" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fit", *data, "--confidence-level", "90"])
    assert "strictly between 0 and 1" in capsys.readouterr().err


def test_warnings_are_one_sentence(lesions_folder, tmp_path, capsys):
    few = ["--sizes", "0.9", "0.05", "0.05"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code = main(["fit", "folder", "--root", str(lesions_folder), "--out", str(tmp_path / "m"), "--quiet", *few])
    assert code == 0
    assert "cbdc: warning: Too few calibration cases" in capsys.readouterr().err


def test_python_m_and_help():
    done = subprocess.run([sys.executable, "-m", "cbdc", "--help"], capture_output=True, text=True, check=True)
    for word in ("demo", "datasets", "embed", "fit", "predict", "evaluate", "report", "exit codes"):
        assert word in done.stdout
    assert subprocess.run([sys.executable, "-m", "cbdc", "nonsense"], capture_output=True, check=False).returncode == 2


def test_help_needs_no_torch():
    program = (
        "import sys; from cbdc.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::cbdc.errors.CalibrationSizeWarning")
def test_demo_end_to_end(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--n", "600"]) == 0
    for name in ("report.html", "cases.html", "metrics.json", "model.cbdc"):
        assert (tmp_path / name).stat().st_size > 1000
