"""Splits: whole units, deterministic, stratified; and the refusal of leakage."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbdc.datasets import LesionDataset, check_leakage, load_dataset
from cbdc.datasets.splits import assign_parts
from cbdc.errors import DatasetError, LeakageError
from tests.strategies import lesion_frames

seeds = st.integers(0, 2**31 - 1)


def dataset(frame, **options):
    return LesionDataset([f"{name}.jpg" for name in frame["image"]], frame["label"], frame=frame, **options)


def names(part):
    return set(part.frame["image"])


def naive_units(frame, pairs=()):
    """Sets of image names that hang together by patient, by lesion within a patient, or by a pair, merged naively."""
    rows = frame.to_dict("records")
    several = frame.groupby("lesion_id")["patient_id"].nunique() if "patient_id" in frame else {}
    keys = []
    for row in rows:
        mine = {("image", row["image"])}
        if "patient_id" in frame and pd.notna(row["patient_id"]):
            mine.add(("patient", row["patient_id"]))
        if pd.notna(row["lesion_id"]):
            of_all = frame["lesion_id"] == row["lesion_id"]
            shared = (
                "patient_id" in frame
                and several[row["lesion_id"]] > 1
                and frame.loc[of_all, "patient_id"].notna().all()
            )
            mine.add(("lesion", row["lesion_id"], str(row["patient_id"]) if shared else ""))
        keys.append((mine, {row["image"]}))
    keys += [({("image", a), ("image", b)}, set()) for a, b in pairs]
    merged = []
    for mine, images in keys:
        touching = [other for other in merged if other[0] & mine]
        merged = [other for other in merged if not other[0] & mine]
        merged.append((mine.union(*(o[0] for o in touching)), images.union(*(o[1] for o in touching))))
    return [images for _, images in merged]


def spread_or_refusal(lesions, **options):
    """Parts, or None if a part would have been empty, which small frames may bring about."""
    try:
        return lesions.split(**options)
    except DatasetError as error:
        if "would be empty" not in str(error):
            raise
        return None


@given(lesion_frames(), seeds, st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.5), (1.0,)]), st.booleans())
def test_parts_are_a_partition_and_units_stay_whole(frame, seed, sizes, stratify):
    pairs = [tuple(frame["image"].iloc[[0, -1]])]
    lesions = dataset(frame, duplicates=pairs)
    parts = spread_or_refusal(lesions, sizes=sizes, random_state=seed, stratify=stratify)
    if parts is None:
        return
    assert len(parts) == len(sizes)
    assert sorted(name for part in parts for name in part.frame["image"]) == sorted(frame["image"])
    for unit in naive_units(frame, pairs):
        assert sum(bool(unit & names(part)) for part in parts) == 1
    check_leakage(*parts)


@given(lesion_frames(), seeds)
def test_groups_are_the_units_of_the_naive_merge(frame, seed):
    lesions = dataset(frame)
    codes = lesions.groups()
    assert sorted(map(sorted, naive_units(frame))) == sorted(
        sorted(frame["image"][codes == code]) for code in np.unique(codes)
    )
    assert codes.min() == 0
    assert codes.max() + 1 == len(np.unique(codes))


@given(lesion_frames(min_images=20), seeds)
def test_split_is_deterministic_and_blind_to_the_order_of_rows(frame, seed):
    shuffled = frame.sample(frac=1, random_state=seed % 1000)
    first = spread_or_refusal(dataset(frame), random_state=seed)
    second = spread_or_refusal(dataset(shuffled), random_state=seed)
    assert (first is None) == (second is None)
    if first is not None:
        assert [names(part) for part in first] == [names(part) for part in second]
        assert [list(p.frame["image"]) for p in first] == [
            list(p.frame["image"]) for p in dataset(frame).split(random_state=seed)
        ]


@given(lesion_frames(min_images=30, patients=False), seeds)
def test_every_class_has_its_share_within_two_units(frame, seed):
    """Lesions of one class each: the share of a class misses its target by less than two units, in units and images."""
    label = frame.groupby("lesion_id")["label"].first()
    frame = frame.assign(label=frame["lesion_id"].map(label).fillna("nv"))
    lesions = dataset(frame)
    sizes = (0.6, 0.2, 0.2)
    parts = spread_or_refusal(lesions, sizes=sizes, random_state=seed)
    if parts is None:
        return
    for label in lesions.classes:
        units = pd.Series(lesions.groups()[lesions.labels == label])
        for part, size in zip(parts, sizes):
            mine = part.labels == label
            assert abs(len(np.unique(part.groups()[mine])) - size * units.nunique()) < 2
            assert abs(mine.sum() - size * len(units)) < 2 * units.value_counts().max()


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), seeds)
def test_single_images_are_dealt_within_one_of_the_target(counts, seed):
    labels = np.repeat([f"c{i}" for i in range(len(counts))], counts)
    lesions = LesionDataset([f"{i:04d}" for i in range(len(labels))], labels)
    parts = spread_or_refusal(lesions, sizes=(0.5, 0.3, 0.2), random_state=seed)
    for part, size in zip(parts or (), (0.5, 0.3, 0.2)):
        for i, n in enumerate(counts):
            assert abs((part.labels == f"c{i}").sum() - size * n) < 2


def test_every_patient_is_in_a_part_as_often_as_the_part_is_large():
    """Also the patient with the most images, and where no two patients are alike: bands of 4 standard errors."""
    patients = np.repeat(np.arange(30), np.arange(1, 31))
    names = [f"i{i:03d}" for i in range(len(patients))]
    parts = [assign_parts(patients, patients % 2, names, (0.6, 0.2, 0.2), seed)[-1] for seed in range(400)]
    share = np.bincount(parts, minlength=3) / 400
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2], atol=4 * np.sqrt(0.6 * 0.4 / 400))


def test_lesions_numbered_anew_for_each_patient_are_read_within_the_patient():
    frame = pd.DataFrame({"patient_id": ["P1", "P1", "P2", "P3"], "lesion_id": ["1", "2", "1", "7"]})
    frame = frame.assign(image=list("abcd"), label="nv")
    assert dataset(frame).groups("lesion").max() + 1 == 4


def test_missing_patient_is_that_of_the_lesion():
    frame = pd.DataFrame({"patient_id": ["P1", np.nan, np.nan], "lesion_id": ["L1", "L1", np.nan]})
    codes = dataset(frame.assign(image=list("abc"), label="nv")).groups("patient")
    assert codes[0] == codes[1] != codes[2]


def test_an_image_of_no_patient_joins_all_that_have_its_lesion():
    frame = pd.DataFrame({"patient_id": ["P1", "P2", np.nan, "P1", "P3"], "lesion_id": ["L1", "L1", "L1", "L2", "L2"]})
    lesions = dataset(frame.assign(image=list("abcde"), label="nv"))
    assert lesions.groups("lesion").tolist() == [0, 0, 0, 1, 2]
    assert lesions.groups("patient").tolist() == [0, 0, 0, 0, 1]


def two_images_a_lesion(n=40):
    frame = pd.DataFrame({"lesion_id": np.repeat([f"L{i}" for i in range(n)], 2)})
    return frame.assign(image=[f"i{i:03d}" for i in range(2 * n)], label="nv")


def test_finer_unit_than_known_is_refused_with_the_number_of_units():
    lesions = dataset(two_images_a_lesion())
    parts = lesions.split(by="image", random_state=0, allow_leakage=True)
    sides = pd.concat([part.frame.assign(part=p) for p, part in enumerate(parts)])
    straddling = (sides.groupby("lesion_id")["part"].nunique() > 1).sum()
    assert straddling > 0
    with pytest.raises(LeakageError, match=rf"would put {straddling} of 40 lesions on several sides. Fix: by='lesion'"):
        lesions.split(by="image", random_state=0)


def test_lesions_of_one_patient_on_two_sides_are_refused():
    frame = two_images_a_lesion().assign(patient_id="P1")
    with pytest.raises(LeakageError, match="1 of 1 patients"):
        dataset(frame).split(by="lesion", random_state=0)


def test_finer_unit_is_allowed_where_it_does_no_harm():
    frame = two_images_a_lesion().drop_duplicates("lesion_id")
    assert len(dataset(frame).split(by="image", random_state=0)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "patient"}, "no image has a patient_id. Fix: by='lesion'"),
        ({"by": "hospital"}, "is no unit"),
        ({"sizes": (0.6, 0.2)}, "sum of 0.8"),
        ({"sizes": (1.2, -0.2)}, "fractions above 0"),
        ({"sizes": ()}, "fractions above 0"),
        ({"sizes": (0.98, 0.01, 0.01)}, "would be empty"),
        ({"duplicates": [("x", "y")]}, "none of the 1 pairs"),
    ],
)
def test_bad_requests_are_refused(options, message):
    with pytest.raises(DatasetError, match=message):
        dataset(two_images_a_lesion(20)).split(random_state=0, **options)


def test_duplicates_named_at_the_split_stay_together():
    lesions = dataset(two_images_a_lesion())
    pairs = [("i000", f"i{i:03d}") for i in range(2, 40, 2)]
    for seed in range(5):
        parts = lesions.split(random_state=seed, duplicates=pairs)
        assert sum(bool({"i000"} | {b for _, b in pairs} <= names(part)) for part in parts) == 1


@given(lesion_frames(), seeds)
def test_one_per_draws_one_of_each_unit_whatever_the_order(frame, seed):
    pairs = [tuple(frame["image"].iloc[[0, -1]])]
    drawn = names(dataset(frame, duplicates=pairs).one_per(random_state=seed))
    assert all(len(unit & drawn) == 1 for unit in naive_units(frame, pairs))
    assert drawn == names(dataset(frame[::-1], duplicates=pairs).one_per(random_state=seed))


@pytest.mark.parametrize("k", [2, 3])
def test_one_per_draws_every_image_of_a_unit_equally_often(k):
    n = 3000
    frame = pd.DataFrame({"lesion_id": np.repeat([f"L{i}" for i in range(n)], k), "which": np.tile(range(k), n)})
    frame = frame.assign(image=[f"i{i:05d}" for i in range(n * k)], label="nv")
    drawn = dataset(frame).one_per(random_state=0).frame["which"]
    np.testing.assert_allclose(np.bincount(drawn) / n, 1 / k, atol=4 * np.sqrt((k - 1) / k**2 / n))


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        ({"patient_id": "P1"}, {"patient_id": "P1"}, "1 patient"),
        ({"lesion_id": "L1"}, {"lesion_id": "L1"}, "1 lesion"),
        ({"image": "same"}, {"image": "same"}, "1 image"),
    ],
)
def test_check_leakage_names_what_is_shared(left, right, shared):
    a = dataset(pd.DataFrame([{"image": "a", "label": "nv"} | left]))
    b = dataset(pd.DataFrame([{"image": "b", "label": "nv"} | right]))
    with pytest.raises(LeakageError, match=f"shared between data sets: {shared}"):
        check_leakage(a, b)


@pytest.mark.parametrize("unit", ["patient_id", "lesion_id"])
@pytest.mark.parametrize("other", [[1, 5], ["1 ", "5"], [1.0, np.nan], [" 1", ""]])
def test_check_leakage_compares_identifiers_as_text(unit, other):
    a = dataset(pd.DataFrame({"image": ["a", "b"], "label": "nv", unit: ["1", "2"]}))
    b = dataset(pd.DataFrame({"image": ["c", "d"], "label": "nv", unit: other}))
    with pytest.raises(LeakageError, match=rf": 1 {unit[:-3]}\. "):
        check_leakage(a, b)
    check_leakage(a.take([1]), b)


def test_check_leakage_knows_a_file_by_any_path_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = LesionDataset(["a.jpg", "b.jpg"], ["nv", "nv"])
    for other in (
        LesionDataset([tmp_path / "a.jpg"], ["nv"]),
        LesionDataset(["x/../a.jpg"], ["nv"], frame=pd.DataFrame({"image": ["lesion 7"]})),
    ):
        with pytest.raises(LeakageError, match=r": 1 image\. "):
            check_leakage(plain, other)
        check_leakage(plain.take([1]), other)


def test_check_leakage_compares_pixels_where_there_are_no_names():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    a, b = (LesionDataset(pixels[rows], ["nv"] * 3) for rows in (slice(3), slice(3, 6)))
    check_leakage(a, b)
    with pytest.raises(LeakageError, match=r": 2 images\. "):
        check_leakage(a, LesionDataset(pixels[1:4], ["nv"] * 3))
    paired = LesionDataset(pixels[:2], ["nv"] * 2, duplicates=[("image_0", "image_1")])
    with pytest.raises(LeakageError, match=r": 1 duplicate photograph\. "):
        check_leakage(paired.take([0]), paired.take([1]))


def test_check_leakage_knows_duplicates_and_content(tmp_path):
    frame = pd.DataFrame({"image": ["a", "b"], "label": "nv"})
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    lesions = LesionDataset([tmp_path / "a", tmp_path / "b"], ["nv", "nv"], frame=frame, duplicates=[("a", "b")])
    with pytest.raises(LeakageError, match="1 duplicate photograph"):
        check_leakage(lesions.take([0]), lesions.take([1]))
    plain = LesionDataset([tmp_path / "a", tmp_path / "b"], ["nv", "nv"], frame=frame)
    check_leakage(plain.take([0]), plain.take([1]))
    with pytest.raises(LeakageError, match="1 identical file"):
        check_leakage(plain.take([0]), plain.take([1]), content=True)
    pixels = LesionDataset(np.zeros((2, 4, 4, 3), np.uint8), ["nv", "nv"])
    with pytest.raises(LeakageError, match="1 identical file"):
        check_leakage(pixels.take([0]), pixels.take([1]), content=True)


@pytest.mark.slow
def test_four_hundred_thousand_images_are_split():
    rng = np.random.default_rng(0)
    n = 400_000
    frame = pd.DataFrame(
        {"patient_id": rng.integers(0, 60_000, n).astype(str), "label": rng.integers(0, 30, n).astype(str)}
    )
    frame["image"] = [f"i{i}" for i in range(n)]
    parts = dataset(frame).split(random_state=0)
    np.testing.assert_allclose([len(part) / n for part in parts], (0.6, 0.2, 0.2), atol=0.005)


@pytest.mark.real_data
def test_a_random_split_of_ham10000_leaks_and_ours_does_not(data_root):
    lesions = load_dataset("ham10000", data_root / "ham10000")
    train, _, test = lesions.split(
        by="image", sizes=(0.7, 0.1, 0.2), stratify=False, random_state=0, allow_leakage=True
    )
    seen = np.isin(test.frame["lesion_id"], train.frame["lesion_id"]).mean()
    assert 0.31 < seen < 0.38
    parts = lesions.split(random_state=0)
    check_leakage(*parts)
    for label in lesions.classes:
        of_class = lesions.frame[lesions.labels == label]
        for part, size in zip(parts, (0.6, 0.2, 0.2)):
            mine = part.frame[part.labels == label]
            assert abs(mine["lesion_id"].nunique() - size * of_class["lesion_id"].nunique()) < 2
            assert abs(len(mine) - size * len(of_class)) < 2 * of_class["lesion_id"].value_counts().max()


@pytest.mark.real_data
def test_near_duplicates_of_ham10000_never_straddle(data_root):
    lesions = load_dataset("ham10000", data_root / "ham10000")
    near = pd.read_csv(data_root / "near_duplicates.csv")
    near = near[(near["set_a"] == "ham10000") & (near["set_b"] == "ham10000")]
    side = {name: p for p, part in enumerate(lesions.split(random_state=1)) for name in part.frame["image"]}
    pairs = [(a.removesuffix(".jpg"), b.removesuffix(".jpg")) for a, b in zip(near["image_a"], near["image_b"])]
    assert len(pairs) >= 120
    assert [pair for pair in pairs if side[pair[0]] != side[pair[1]]] == []
