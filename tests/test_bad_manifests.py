"""Manifests that nobody vouches for: each wrong thing is named with its rows; nothing outside of the root is read."""

import os
import pickle

import numpy as np
import pytest

from cbdc.datasets import load_dataset
from cbdc.errors import DatasetError
from tests.test_datasets import HAM, ISIC18, PH2_TEXT, write


def csv_root(tmp_path, text, images=("a.jpg", "b.jpg")):
    root = tmp_path / "root"
    return write(root, {"labels.csv": text} | {f"images/{name}": None for name in images})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no header"),
        ("image,label\n", "a header but no rows"),
        ("image,label\n\n , \n", "a header but no rows"),
        ("image,dx_name\na.jpg,nv\n", "no column 'label'; it has image, dx_name"),
        ("image,label,label\na.jpg,nv,nv\n", "column 'label' appears twice"),
        ("image,label\na.jpg,nv\nb.jpg\n", r"1 rows do not have 2 cells \(first: 3\)"),
        ("image,label\na.jpg,nv,mel\n", r"1 rows do not have 2 cells \(first: 2\)"),
        ("image|label\na.jpg|nv\n", "no column 'image'; it has image|label"),
        ('image,label\n"a.jpg,nv\n', "cannot be read"),
        ("image,label\na.jpg,nv\na.jpg,mel\n", r"a name seen before in 1 row: 3 \(first: 'a.jpg'\)"),
        (
            "image,label\na.jpg,\n,nv\n",
            r"column 'image': no value in 1 row: 3[\s\S]*column 'label': no value in 1 row: 2",
        ),
        ("image,label\na.jpg,=1+1\n", r"column 'label': a formula.* in 1 row: 2"),
        ("image,label\n@a.jpg,nv\n", r"column 'image': a formula"),
        ("image,label,patient_id\na.jpg,nv,+1\n", r"column 'patient_id': a formula"),
        ("image,label,lesion_id\na.jpg,nv,-1\n", r"column 'lesion_id': a formula"),
        ("image,label\nc.jpg,nv\na.jpg,nv\n", r"no image file in 1 row: 2 \(first: 'c.jpg'\).*missing='drop'"),
        ("image,label\n../secret.jpg,nv\n", r"a path that leaves the root in 1 row: 2"),
        ("image,label\nimages/../../secret.jpg,nv\n", "a path that leaves the root"),
        ("image,label\n..\\secret.jpg,nv\n", "a path that leaves the root"),
        ("image,label\n/etc/passwd,nv\n", "a path that leaves the root"),
        ("image,label\nC:\\secret.jpg,nv\n", "a path that leaves the root"),
        ("image,label\n.,nv\n", "no image file"),
        (
            "image,label,age\na.jpg,nv,old\nb.jpg,nv,200\n",
            r"no number from 0 to 130 in 2 rows: 2, 3 \(first: 'old', '200'\)",
        ),
        ("image,label,skin_type\na.jpg,nv,7\n", "column 'skin_type': no number from 1 to 6"),
        ("image,label,skin_type\na.jpg,nv,inf\n", "column 'skin_type': no number from 1 to 6"),
    ],
)
def test_wrong_manifest_is_refused_with_its_rows(tmp_path, text, message):
    root = csv_root(tmp_path, text)
    (tmp_path / "secret.jpg").write_text("outside")
    with pytest.raises(DatasetError, match=message):
        load_dataset("csv", root)


def test_all_problems_are_told_at_once(tmp_path):
    rows = "".join(f"x{i}.jpg,nv,young\n" for i in range(9))
    with pytest.raises(DatasetError) as error:
        load_dataset("csv", csv_root(tmp_path, "image,label,age\n" + rows + "a.jpg,=2,1\n"))
    text = str(error.value)
    assert "\n- column 'age': no number from 0 to 130 in 9 rows: 2, 3, 4, 5, 6, ... (first: 'young'" in text
    assert (
        "\n- column 'image': no image file in 9 rows: 2, 3, 4, 5, 6, ... (first: 'x0.jpg', 'x1.jpg', 'x2.jpg')" in text
    )
    assert "\n- column 'label': a formula" in text
    assert str(tmp_path) not in text


def test_formula_elsewhere_stays_text(tmp_path):
    lesions = load_dataset("csv", csv_root(tmp_path, 'image,label,note\na.jpg,nv,"=HYPERLINK(1,2)"\n'))
    assert lesions.frame["note"].tolist() == ["=HYPERLINK(1,2)"]


def test_unknown_label_names_the_allowed(tmp_path):
    write(tmp_path, {"HAM10000_metadata.csv": HAM + "H1,a,mell,histo,1,male,back\n", "images/a.jpg": None})
    with pytest.raises(
        DatasetError,
        match=r"an unknown label in 1 row: 2 \(first: 'mell'\). Fix: did you mean 'mel'\? \(allowed: akiec",
    ):
        load_dataset("ham10000", tmp_path)


def test_missing_images_are_dropped_only_on_demand_and_never_silently(tmp_path):
    root = csv_root(tmp_path, "image,label\nc.jpg,nv\na.jpg,mel\nd.jpg,nv\n")
    with pytest.warns(UserWarning, match="dropped 2 of 3 rows"):
        lesions = load_dataset("csv", root, missing="drop")
    assert [path.name for path in lesions.images] == ["a.jpg"]
    assert lesions.labels.tolist() == ["mel"]


def test_nothing_left_is_an_error_even_when_dropping(tmp_path):
    with pytest.raises(DatasetError, match="no image file in 1 row"):
        load_dataset("csv", csv_root(tmp_path, "image,label\nc.jpg,nv\n"), missing="drop")


def test_byte_order_mark_and_quoted_line_breaks(tmp_path):
    lesions = load_dataset(
        "csv", csv_root(tmp_path, '\ufeffimage,label,note\r\na.jpg,nv,"two\r\nlines"\r\nb.jpg,mel,\r\n')
    )
    assert lesions.labels.tolist() == ["nv", "mel"]


def test_text_that_is_not_utf8(tmp_path):
    root = csv_root(tmp_path, "")
    (root / "labels.csv").write_bytes("image,label\na.jpg,nävus\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_dataset("csv", root)


@pytest.mark.parametrize("linked", ["images/a.jpg", "images", "labels.csv"])
def test_links_out_of_the_root_are_refused(tmp_path, linked):
    root = csv_root(tmp_path, "image,label\na.jpg,nv\n")
    (tmp_path / "outside").mkdir()
    os.replace(root / linked, tmp_path / "outside" / "moved")
    os.symlink(tmp_path / "outside" / "moved", root / linked)
    with pytest.raises(DatasetError, match="link that leads out of the root"):
        load_dataset("csv", root)


def test_class_folder_that_is_a_link_out_is_refused(tmp_path):
    write(tmp_path, {"root/mel/1.jpg": None, "outside/2.jpg": None})
    os.symlink(tmp_path / "outside", tmp_path / "root" / "nv")
    with pytest.raises(DatasetError, match="link that leads out of the root"):
        load_dataset("folder", tmp_path / "root")


def test_links_inside_the_root_are_followed(tmp_path):
    root = csv_root(tmp_path, "image,label\nlink.jpg,nv\n")
    os.symlink(root / "images" / "a.jpg", root / "images" / "link.jpg")
    assert len(load_dataset("csv", root)) == 1


def test_root_may_itself_be_a_link(tmp_path):
    root = csv_root(tmp_path, "image,label\na.jpg,nv\n")
    os.symlink(root, tmp_path / "alias")
    assert len(load_dataset("csv", tmp_path / "alias")) == 1


def test_two_files_of_one_name(tmp_path):
    write(
        tmp_path,
        {"HAM10000_metadata.csv": HAM + "H1,a,mel,histo,1,male,back\n", "images/a.jpg": None, "images/a.png": None},
    )
    with pytest.raises(DatasetError, match="a name that two files have"):
        load_dataset("ham10000", tmp_path)


def test_one_image_under_two_suffixes(tmp_path):
    rows = "a.jpg,mel\na.png,mel\n"
    write(tmp_path, {"labels.csv": "image,label\n" + rows, "images/a.jpg": None, "images/a.png": None})
    with pytest.raises(DatasetError, match="another suffix"):
        load_dataset("ham10000", tmp_path)


@pytest.mark.parametrize(
    "row", ["a,1,1,0,0,0,0,0", "a,0,0,0,0,0,0,0", "a,0.5,0.5,0,0,0,0,0", "a,yes,0,0,0,0,0,0", "a,,1,0,0,0,0,0"]
)
def test_one_hot_rows_must_have_one_class(tmp_path, row):
    write(tmp_path, {"ISIC2018_Task3_Training_GroundTruth.csv": ISIC18 + row + "\n", "images/a.jpg": None})
    with pytest.raises(DatasetError, match="not one 1 and else 0 in 1 row: 2"):
        load_dataset("isic2018", tmp_path)


def test_second_table_with_an_image_twice(tmp_path):
    write(
        tmp_path,
        {
            "ISIC2018_Task3_Training_GroundTruth.csv": ISIC18 + "a,1,0,0,0,0,0,0\n",
            "ISIC2018_Task3_Training_LesionGroupings.csv": "image,lesion_id\na,H1\na,H2\n",
            "images/a.jpg": None,
        },
    )
    with pytest.raises(DatasetError, match="every name once"):
        load_dataset("isic2018", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [(PH2_TEXT.replace("||      4  ||", ""), "too few cells"), ("nothing", "no line of an IMD image")],
)
def test_ph2_text_that_is_cut(tmp_path, text, message):
    write(tmp_path, {"PH2_dataset.txt": text})
    with pytest.raises(DatasetError, match=message):
        load_dataset("ph2", tmp_path)


def test_fitzpatrick_label_in_two_groups(tmp_path):
    header = "md5hash,fitzpatrick,label,nine_partition_label,three_partition_label\n"
    rows = "a,1,acne,inflammatory,benign\nb,1,acne,benign dermal,benign\n"
    write(tmp_path, {"fitzpatrick17k.csv": header + rows, "images/a.jpg": None, "images/b.jpg": None})
    with pytest.raises(DatasetError, match="'acne' is filed under both"):
        load_dataset("fitzpatrick17k", tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": None}, "1 file is no image of a class"),
        ({"mel/notes.txt": "", "mel/a.jpg": None}, r"1 file is no image of a class \(first: 'mel/notes.txt'\)"),
        ({"mel/.keep": ""}, "no image in any subfolder"),
        ({"=mel/a.jpg": None}, "a formula"),
    ],
)
def test_bad_folders(tmp_path, files, message):
    with pytest.raises(DatasetError, match=message):
        load_dataset("folder", write(tmp_path, files))


def save_npz(path, **changes):
    arrays = {f"{p}_images": np.zeros((1, 28, 28, 3), np.uint8) for p in ("train", "val", "test")}
    arrays |= {f"{p}_labels": np.zeros((1, 1), np.uint8) for p in ("train", "val", "test")}
    np.savez(path, **(arrays | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([[{}]], dtype=object)}, "cannot be read"),
        ({"train_labels": np.zeros((2, 1), np.uint8)}, "do not pair up"),
        ({"train_labels": np.full((1, 1), 7)}, "expected 0 to 6"),
        ({"train_labels": np.full((1, 1), 0.5)}, "do not pair up"),
        ({"train_images": np.zeros((1, 28, 28), np.uint8)}, "cannot be read"),
        ({"train_images": np.zeros((2, 28, 28, 3), np.uint8)}, "do not pair up"),
        ({"train_images": np.zeros((1, 28, 28, 3))}, "type float64"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    save_npz(tmp_path / "dermamnist.npz", **changes)
    with pytest.raises(DatasetError, match=message):
        load_dataset("medmnist", tmp_path)


def test_npz_that_is_a_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    (tmp_path / "dermamnist.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset("medmnist", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_which_npz(tmp_path):
    for name in ("dermamnist.npz", "dermamnist_64.npz"):
        save_npz(tmp_path / name)
    with pytest.raises(DatasetError, match=r"found dermamnist.npz, dermamnist_64.npz. Fix: name it with file="):
        load_dataset("medmnist", tmp_path)
    assert len(load_dataset("medmnist", tmp_path, file="dermamnist_64.npz")) == 3
    with pytest.raises(DatasetError, match="expected one"):
        load_dataset("medmnist", tmp_path, file="../dermamnist.npz")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ham1000", {}, "did you mean 'ham10000'"),
        ("ham10000", {}, "no HAM10000_metadata.csv or .* There is a folder 'ham10000' in it"),
        ("ham10000", {"part": "Test"}, "unknown option 'part'"),
        ("csv", {"missing": "ignore"}, "expected 'error' or 'drop'"),
        ("fitzpatrick17k", {"label": "nine"}, "label='nine'"),
    ],
)
def test_bad_requests(tmp_path, name, options, message):
    (tmp_path / "ham10000").mkdir()
    with pytest.raises(DatasetError, match=message):
        load_dataset(name, tmp_path, **options)


def test_root_must_be_a_folder(tmp_path):
    with pytest.raises(DatasetError, match="is no folder"):
        load_dataset("ham10000", tmp_path / "absent")
