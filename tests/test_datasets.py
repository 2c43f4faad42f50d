"""The data set object and the layouts of the public sets."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbdc.datasets import DATASETS, KNOWN_DUPLICATES, LesionDataset, load_dataset
from cbdc.errors import DatasetError
from cbdc.taxonomy import Taxonomy, get_taxonomy
from tests.strategies import lesion_frames

# --- the object


def small(**options):
    frame = pd.DataFrame({"image": list("abcd"), "lesion_id": ["L1", "L1", "L2", np.nan], "extra": range(4)})
    labels = ["nv", "nv", "mel", "nv"]
    return LesionDataset(np.arange(4 * 48, dtype=np.uint8).reshape(4, 4, 4, 3), labels, frame=frame, **options)


@given(lesion_frames(), st.data())
def test_take_carries_every_row_along(frame, data):
    posterior = np.random.default_rng(0).dirichlet(np.ones(3), len(frame))
    lesions = LesionDataset(
        [f"{name}.jpg" for name in frame["image"]],
        frame["label"],
        frame=frame,
        classes=["bcc", "mel", "nv"],
        posterior=posterior,
        synthetic=True,
    )
    chosen = data.draw(st.lists(st.integers(0, len(frame) - 1), unique=True))
    part = lesions.take(chosen)
    assert len(part) == len(chosen)
    assert [image.stem for image in part.images] == list(part.frame["image"]) == list(frame["image"].iloc[chosen])
    assert part.labels.tolist() == list(part.frame["label"]) == list(frame["label"].iloc[chosen])
    np.testing.assert_array_equal(part.posterior, posterior[chosen])
    assert (part.classes, part.synthetic, part.name) == (lesions.classes, True, lesions.name)
    mask = np.zeros(len(frame), dtype=bool)
    mask[chosen] = True
    assert list(lesions.take(mask).frame["image"]) == list(frame["image"][mask])


def test_images_in_memory_follow_their_rows():
    lesions = small()
    np.testing.assert_array_equal(lesions.take([-1, 0]).images, lesions.images[[3, 0]])


def test_flags_survive_a_split():
    lesions = small(synthetic=True, taxonomy=get_taxonomy("ham10000"), classes=get_taxonomy("ham10000").leaves)
    for part in lesions.split(sizes=(0.5, 0.5), random_state=0):
        assert part.synthetic
        assert part.taxonomy is lesions.taxonomy
        assert len(part.classes) == 7


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([4], "index 4 is outside of 4"),
        ([-5], "index -5"),
        ([0, 0], "repeated"),
        ([0, -4], "repeated"),
        ([0.5], "expected integers"),
        ([[0]], "expected integers"),
        ([True, False], "mask of shape"),
    ],
)
def test_bad_indices_are_refused(indices, message):
    with pytest.raises(DatasetError, match=message):
        small().take(indices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["nv"]}, "2 images but labels of length 1"),
        ({"frame": pd.DataFrame({"image": ["a"]})}, "2 images but frame of length 1"),
        ({"frame": pd.DataFrame({"image": ["a", "a"]})}, "1 image names appear more than once"),
        ({"classes": ["bkl", "nv"], "labels": ["nv", "bk"]}, "did you mean 'bkl'"),
        ({"taxonomy": get_taxonomy("ph2")}, "class 'nv' is not in the taxonomy 'ph2'"),
        ({"posterior": np.ones((2, 3))}, r"expected \(2, 1\)"),
        ({"posterior": np.ones((3, 1))}, "posterior of length 3"),
        ({"images": np.zeros((2, 4, 4, 3))}, "type float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"expected uint8 of \(n, H, W, 3\)"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, message):
    with pytest.raises(DatasetError, match=message):
        LesionDataset(**{"images": ["a", "b"], "labels": ["nv", "nv"]} | options)


def test_repr_counts_and_names_nobody():
    text = repr(small())
    assert text == "LesionDataset('lesions', 4 images of 3 lesions, classes: mel 1, nv 3)"
    assert "L1" not in text


def test_fingerprint_follows_names_labels_identifiers_and_pixels():
    lesions = small()
    assert lesions.fingerprint == small().fingerprint
    pixels = lesions.images.copy()
    pixels[0, 0, 0, 0] += 1
    others = [
        LesionDataset(pixels, lesions.labels, frame=lesions.frame),
        LesionDataset(lesions.images, ["mel", "nv", "mel", "nv"], frame=lesions.frame),
        LesionDataset(lesions.images, lesions.labels, frame=lesions.frame.assign(lesion_id="L1")),
        lesions.take([1, 0, 2, 3]),
    ]
    assert len({lesions.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_relabel_moves_labels_and_posterior():
    posterior = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]])
    ph2 = LesionDataset(
        ["a", "b"], ["melanoma", "common_nevus"], taxonomy=get_taxonomy("ph2"), classes=get_taxonomy("ph2").leaves,
        posterior=posterior, name="ph2",
    )  # fmt: skip
    ham = ph2.relabel("ham10000")
    assert ham.labels.tolist() == ["mel", "nv"]
    assert ham.classes == get_taxonomy("ham10000").leaves
    assert ham.frame["label"].tolist() == ["mel", "nv"]
    np.testing.assert_allclose(ham.posterior[:, ham.classes.index("nv")], [0.3, 1.0])
    np.testing.assert_allclose(ham.posterior.sum(axis=1), 1)
    own = ph2.relabel({"melanoma": "bad", "common_nevus": "good", "atypical_nevus": "good"})
    assert own.classes == ("bad", "good")
    np.testing.assert_allclose(own.posterior, [[0.7, 0.3], [0.0, 1.0]])


def test_relabel_refuses_what_it_would_lose():
    lesions = LesionDataset(["a", "b"], ["nv", "bkl"], taxonomy=get_taxonomy("ham10000"))
    with pytest.raises(DatasetError, match="label 'bkl'"):
        lesions.relabel("ph2")
    with pytest.raises(DatasetError, match="no entry for 'bkl'"):
        lesions.relabel({"nv": "x"})
    sure = LesionDataset(["a"], ["nv"], classes=["bkl", "nv"], posterior=[[0.3, 0.7]])
    with pytest.raises(DatasetError, match="no entry for 'bkl'"):
        sure.relabel({"nv": "x"})


# --- layouts, each as its authors publish it


def write(root, files):
    """Files from a mapping of path to text; None is an image, which the loaders list and never open."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("not decoded" if text is None else text, encoding="utf-8")
    return root


PH2_TEXT = """\
|| Name   || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Dots/Globules | Streaks \
| Regression Areas | Blue-Whitish Veil || Colors ||
|| IMD003 ||                        ||                  0 ||         0 |               T |             A |       A \
|                A |                 A ||      4  ||
|| IMD058 ||  melanoma              ||                  2 ||         2 |              AT |            AT |       P \
|                P |                 P ||  3 4 5  ||
|| IMD155 ||                        ||                  1 ||         1 |              AT |             A |       A \
|                A |                 A ||     3 4 ||

Legends:
Clinical Diagnosis:
    0 - Common Nevus;  1 - Atypical Nevus;  2 - Melanoma.
"""
PH2_IMAGES = {f"PH2 Dataset images/{i}/{i}_Dermoscopic_Image/{i}.bmp": None for i in ("IMD003", "IMD058", "IMD155")} | {
    "PH2 Dataset images/IMD003/IMD003_lesion/IMD003.bmp": None
}
HAM = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ISIC18 = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
ISIC19 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
ISIC20 = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
FITZ = "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,three_partition_label,qc,url\n"

LAYOUTS = {
    "ham10000": (
        {
            "HAM10000_metadata.csv": "\ufeff" + HAM + "H1,ISIC_1,nv,histo,45.0,male,back\n"
            "H1,ISIC_2,nv,histo,,unknown,unknown\nH2,ISIC_3,mel,histo,0.0,female,face\n",
            "HAM10000_images_part_1/ISIC_1.jpg": None,
            "HAM10000_images_part_1/ISIC_3.jpg": None,
            "HAM10000_images_part_2/ISIC_2.jpg": None,
        },
        {"image": ["ISIC_1", "ISIC_2", "ISIC_3"], "label": ["nv", "nv", "mel"], "lesion_id": ["H1", "H1", "H2"],
         "age": [45, None, 0], "sex": ["male", None, "female"], "site": ["back", None, "face"]},
    ),
    "ph2": (
        {"PH2_dataset.txt": PH2_TEXT} | PH2_IMAGES,
        {"image": ["IMD003", "IMD058", "IMD155"], "label": ["common_nevus", "melanoma", "atypical_nevus"],
         "colors": ["4", "3 4 5", "3 4"], "histology": [None, "melanoma", None], "blue_whitish_veil": ["A", "P", "A"]},
    ),
    "isic2018": (
        {
            "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv":
                ISIC18 + "ISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_2,0.0,0.0,0.0,1.0,0.0,0.0,0.0\n",
            "ISIC2018_Task3_Training_LesionGroupings.csv":
                "image,lesion_id,diagnosis_confirm_type\nISIC_2,H2,histopathology\nISIC_1,H1,consensus\n",
            "ISIC2018_Task3_Training_Input/ISIC_1.jpg": None,
            "ISIC2018_Task3_Training_Input/ISIC_2.jpg": None,
        },
        {"image": ["ISIC_1", "ISIC_2"], "label": ["NV", "AKIEC"], "lesion_id": ["H1", "H2"]},
    ),
    "isic2019": (
        {
            "ISIC_2019_Training_GroundTruth.csv":
                ISIC19 + "ISIC_1_downsampled,1,0,0,0,0,0,0,0,0\nISIC_2,0,0,0,0,0,0,0,1.0,0\n",
            "ISIC_2019_Training_Metadata.csv":
                "image,age_approx,anatom_site_general,lesion_id,sex\n"
                "ISIC_1_downsampled,55.0,anterior torso,M1,female\n",
            "ISIC_2019_Training_Input/ISIC_1_downsampled.jpg": None,
            "ISIC_2019_Training_Input/ISIC_2.jpg": None,
        },
        {"image": ["ISIC_1", "ISIC_2"], "label": ["MEL", "SCC"], "lesion_id": ["M1", None], "age": [55, None],
         "site": ["anterior torso", None]},
    ),
    "isic2020": (
        {
            "train.csv": ISIC20 + "ISIC_1,IP_1,male,45.0,head/neck,unknown,benign,0\n"
            "ISIC_2,IP_2,,,,melanoma,malignant,1\n",
            "ISIC_2020_Training_Duplicates.csv": "image_name_1,image_name_2\nISIC_1,ISIC_2\n",
            "jpeg/train/ISIC_1.jpg": None,
            "jpeg/train/ISIC_2.jpg": None,
        },
        {"image": ["ISIC_1", "ISIC_2"], "label": ["benign", "malignant"], "patient_id": ["IP_1", "IP_2"],
         "age": [45, None], "site": ["head/neck", None]},
    ),
    "pad_ufes_20": (
        {
            "metadata.csv": "patient_id,lesion_id,age,gender,fitspatrick,region,diagnostic,img_id,biopsed\n"
            "PAT_1,9,8,,,ARM,NEV,PAT_1_9_5.png,False\nPAT_2,9,55,FEMALE,3.0,NECK,BCC,PAT_2_9_7.png,True\n",
            "imgs_part_1/PAT_1_9_5.png": None,
            "imgs_part_3/imgs_part_3/PAT_2_9_7.png": None,
        },
        {"image": ["PAT_1_9_5", "PAT_2_9_7"], "label": ["NEV", "BCC"], "skin_type": [None, 3], "age": [8, 55],
         "sex": [None, "female"], "site": ["arm", "neck"]},
    ),
    "fitzpatrick17k": (
        {
            "fitzpatrick17k.csv": FITZ + "aa,3,3,psoriasis,inflammatory,non-neoplastic,,u\n"
            "bb,-1,1,malignant melanoma,malignant melanoma,malignant,,u\n"
            "cc,6,5,lentigo maligna,malignant melanoma,malignant,,u\n",
            "data/finalfitz17k/aa.jpg": None, "data/finalfitz17k/bb.jpg": None, "data/finalfitz17k/cc.jpg": None,
        },
        {"image": ["aa", "bb", "cc"], "label": ["psoriasis", "malignant melanoma", "lentigo maligna"],
         "skin_type": [3, None, 6]},
    ),
    "derm7pt": (
        {
            "meta/meta.csv": "case_num,diagnosis,seven_point_score,location,sex,clinic,derm\n"
            "1,basal cell carcinoma,0,abdomen,female,NEL/NEL025.JPG,NEL/Nel026.jpg\n",
            "images/NEL/Nel026.jpg": None,
        },
        {"image": ["NEL/Nel026"], "label": ["basal cell carcinoma"], "site": ["abdomen"]},
    ),
    "csv": (
        {"labels.csv": "image;label;patient_id;skin_type\na/1.jpg;x;P1;IV\n2.png;y;unknown;\n", "a/1.jpg": None,
         "images/2.png": None},
        {"image": ["a/1.jpg", "2.png"], "label": ["x", "y"], "patient_id": ["P1", None], "skin_type": [4, None]},
    ),
    "folder": (
        {"mel/1.jpg": None, "mel/deep/1.jpg": None, "nv/1.PNG": None, ".hidden/x.txt": "", "nv/.DS_Store": ""},
        {"image": ["mel/1.jpg", "mel/deep/1.jpg", "nv/1.PNG"], "label": ["mel", "mel", "nv"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_official_layout(tmp_path, name):
    files, expected = LAYOUTS[name]
    lesions = load_dataset(name, write(tmp_path, files))
    for column, values in expected.items():
        got = [None if pd.isna(value) else value for value in lesions.frame[column]]
        assert got == values, column
    assert lesions.labels.tolist() == expected["label"]
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in lesions.images)
    assert [path.name.split(".")[0].removesuffix("_downsampled") for path in lesions.images] == [
        image.rsplit("/")[-1].split(".")[0] for image in expected["image"]
    ]


def own_csv(root, header):
    for name in "1234":
        (root / f"{name}.png").touch()
    rows = ["1.png,x,P1", "2.png,y,P1", "3.png,x,P2", "4.png,y,P3"]
    (root / "labels.csv").write_text("\n".join([header, *rows]))
    return root


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("header", ["image,label,patient_id", "Image,Label,PatientID", "IMAGE,dx,Patient ID"])
def test_columns_are_known_by_other_names_too(header, tmp_path):
    lesions = load_dataset("csv", own_csv(tmp_path, header))
    assert lesions.unit == "patient"
    assert lesions.groups().tolist() == [0, 0, 1, 2]


def test_a_column_that_may_be_an_identifier_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"column 'Subject No' looks like an identifier .* call it patient_id"):
        assert load_dataset("csv", own_csv(tmp_path, "image,label,Subject No")).unit == "image"


@pytest.mark.parametrize("labels", [["y", "x", "z"], ("x", "y", "z"), Taxonomy.flat(["x", "y", "z"])])
def test_labels_allowed_may_be_a_list(labels, tmp_path):
    root = own_csv(tmp_path, "image,label,patient_id")
    assert load_dataset("csv", root, taxonomy=labels).classes == ("x", "y", "z")
    with pytest.raises(DatasetError, match="unknown label in 2 rows"):
        load_dataset("csv", root, taxonomy=["x", "z"])
    with pytest.raises(DatasetError, match="expected the labels allowed"):
        load_dataset("csv", root, taxonomy="xy")


def test_what_windows_leaves_in_a_folder_is_no_image(tmp_path):
    for name in ("nv/1.png", "nv/Thumbs.db", "mel/2.png", "desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(load_dataset("folder", tmp_path)) == 2
    (tmp_path / "mel" / "notes.txt").touch()
    with pytest.raises(DatasetError, match="1 file is no image"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize("layout", ["folder", "csv"])
def test_your_own_data_set_goes_by_its_folder(tmp_path, monkeypatch, layout):
    (tmp_path / "clinic").mkdir()
    monkeypatch.chdir(write(tmp_path / "clinic", LAYOUTS[layout][0]))
    lesions = load_dataset(layout, ".")
    assert lesions.name == "clinic"
    assert lesions.taxonomy.name == layout


def test_every_layout_has_a_test():
    assert set(DATASETS) == {*LAYOUTS, "medmnist"}


def test_names_are_forgiving(tmp_path):
    files, _ = LAYOUTS["pad_ufes_20"]
    assert len(load_dataset("PAD-UFES-20", write(tmp_path, files))) == 2


def test_pad_lesions_are_read_within_the_patient(tmp_path):
    lesions = load_dataset("pad_ufes_20", write(tmp_path, LAYOUTS["pad_ufes_20"][0]))
    assert lesions.unit == "patient"
    assert len(set(lesions.groups("lesion"))) == 2


def test_ph2_masks_are_not_taken_for_images(tmp_path):
    lesions = load_dataset("ph2", write(tmp_path, LAYOUTS["ph2"][0]))
    assert all(path.parent.name.endswith("_Dermoscopic_Image") for path in lesions.images)


def test_ph2_in_its_own_folder_and_as_spreadsheet(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    write(tmp_path, {f"PH2Dataset/{path}": text for path, text in PH2_IMAGES.items()})
    book = openpyxl.Workbook()
    for row in [
        ["Legends"],
        [],
        ["Image Name", "Histological Diagnosis", "Common Nevus", "Atypical Nevus", "Melanoma", "Asymmetry\n(0/1/2)"],
        ["IMD003", None, "X", None, None, 0],
        ["IMD058", "melanoma", None, None, "X", 2],
        ["IMD155", "=1+1", None, "X", None, 1],
    ]:
        book.active.append(row)
    book.save(tmp_path / "PH2Dataset" / "PH2_dataset.xlsx")
    lesions = load_dataset("ph2", tmp_path)
    assert lesions.labels.tolist() == ["common_nevus", "melanoma", "atypical_nevus"]
    assert [str(a) for a in lesions.frame["asymmetry"]] == ["0", "2", "1"]
    # a formula is not evaluated
    assert lesions.frame["histology"].isna().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("label", "leaves"),
    [
        ("label", ("lentigo maligna", "malignant melanoma", "psoriasis")),
        ("nine_partition_label", ("inflammatory", "malignant melanoma")),
        ("three_partition_label", ("malignant", "non-neoplastic")),
    ],
)
def test_fitzpatrick_partitions(tmp_path, label, leaves):
    lesions = load_dataset("fitzpatrick17k", write(tmp_path, LAYOUTS["fitzpatrick17k"][0]), label=label)
    assert lesions.classes == leaves
    assert [lesions.taxonomy.malignant(name) for name in lesions.labels] == [False, True, True]


def test_fitzpatrick_label_under_a_group_of_its_own_name(tmp_path):
    tree = load_dataset("fitzpatrick17k", write(tmp_path, LAYOUTS["fitzpatrick17k"][0])).taxonomy
    assert tree.ancestors("malignant melanoma") == ("malignant melanoma (group)", "malignant", "lesion")
    assert tree.parent("lentigo maligna") == "malignant melanoma (group)"


def test_isic_duplicates_are_known_and_kept_together(tmp_path):
    lesions = load_dataset("isic2020", write(tmp_path, LAYOUTS["isic2020"][0]))
    assert lesions.duplicates == (("ISIC_1", "ISIC_2"),)
    with pytest.raises(DatasetError, match="there are 1 units"):
        lesions.split(sizes=(0.5, 0.5))


def test_other_parts_of_a_challenge(tmp_path):
    truth = ISIC18 + "ISIC_9,1,0,0,0,0,0,0\n"
    write(tmp_path, {"ISIC2018_Task3_Test_GroundTruth.csv": truth, "ISIC2018_Task3_Test_Input/ISIC_9.jpg": None})
    assert load_dataset("isic2018", tmp_path, part="Test").labels.tolist() == ["MEL"]


def test_taxonomy_of_the_users_own(tmp_path):
    tree = Taxonomy.flat(["x", "y", "z"])
    assert load_dataset("csv", write(tmp_path, LAYOUTS["csv"][0]), taxonomy=tree).classes == ("x", "y", "z")


def test_duplicates_are_told_by_file_or_by_name(tmp_path):
    root = write(tmp_path, LAYOUTS["ham10000"][0])
    lesions = load_dataset("ham10000", root, duplicates=[("ISIC_1.jpg", "ISIC_3")])
    assert lesions.duplicates == (*KNOWN_DUPLICATES, ("ISIC_1", "ISIC_3"))
    assert len(lesions.one_per(random_state=0)) == 1


def test_dermamnist(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{p}_images": rng.integers(0, 256, (n, 28, 28, 3), np.uint8)
        for p, n in zip(("train", "val", "test"), (4, 1, 2))
    }
    codes = {"train_labels": [[0], [5], [4], [6]], "val_labels": [[1]], "test_labels": [[2], [3]]}
    np.savez(tmp_path / "dermamnist.npz", **arrays, **{k: np.array(v, dtype=np.uint8) for k, v in codes.items()})
    lesions = load_dataset("medmnist", tmp_path)
    assert lesions.labels.tolist() == ["akiec", "nv", "mel", "vasc", "bcc", "bkl", "df"]
    assert lesions.frame["part"].tolist() == ["train"] * 4 + ["val"] + ["test"] * 2
    np.testing.assert_array_equal(lesions.images[5], arrays["test_images"][0])
    assert lesions.taxonomy.name == "ham10000"


# --- the real sets


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "n", "units", "counts"),
    [
        ("ham10000", 10_015, {"lesion": 7_468},
         {"akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142}),
        ("ph2", 200, {"image": 200}, {"atypical_nevus": 80, "common_nevus": 80, "melanoma": 40}),
        ("isic2020", 2_701, {"patient": 130}, {"benign": 2662, "malignant": 39}),
        ("pad_ufes_20", 745, {"patient": 582}, {"ACK": 137, "BCC": 218, "MEL": 43, "NEV": 185, "SCC": 26, "SEK": 136}),
    ],
)  # fmt: skip
def test_real_sets_are_whole(data_root, name, n, units, counts):
    lesions = load_dataset(name, data_root / name)
    assert len(lesions) == n
    assert {lesions.unit: lesions.groups().max() + 1} == units
    assert dict(zip(*np.unique(lesions.labels, return_counts=True))) == counts


@pytest.mark.real_data
def test_skin_types_of_pad(data_root):
    types = load_dataset("pad_ufes_20", data_root / "pad_ufes_20").frame["skin_type"]
    assert types.value_counts().to_dict() == {1.0: 50, 2.0: 256, 3.0: 132, 4.0: 27, 5.0: 3, 6.0: 1}
    assert types.isna().sum() == 276


@pytest.mark.real_data
def test_ph2_speaks_ham10000(data_root):
    ham = load_dataset("ph2", data_root / "ph2").relabel("ham10000")
    assert dict(zip(*np.unique(ham.labels, return_counts=True))) == {"mel": 40, "nv": 160}
    assert ham.classes == get_taxonomy("ham10000").leaves
