"""LIDC: strict reading, patients, splits and raters, and the two scripts that prepare it."""

import json
import pickle
import shutil
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import REPO, assert_succeeded, call, load_program, loaded, run_script
from lidc_files import entries, write_lidc
from scipy.ndimage import distance_transform_edt

from dataloaders.lidc import (
    PICKLE,
    as_test_cases,
    mask_planes,
    patient_of,
    read_slices,
    read_split,
    slic_sources,
    training_source,
    with_all_masks,
)
from dataloaders.raters import choose_raters, hold_out, label_classes, split_by_patient
from dataloaders.slic import find_maps
from utils.commands.errors import UserError, run_main
from utils.masks.geometry import resize_image
from utils.masks.superpixels import slic_segments

SIZE = 32


def read(folder, num_raters=4, num_classes=2):
    return read_slices(folder / "lidc_attributes.pkl", num_raters, num_classes)


def rewrite(folder, contents):
    (folder / "lidc_attributes.pkl").write_bytes(pickle.dumps(contents))


@pytest.fixture
def contents():
    return entries()


@pytest.fixture
def folder(tmp_path, contents):
    return write_lidc(tmp_path, contents)


def test_slices_are_read_as_stored(folder, contents):
    slices = read(folder)
    assert list(slices) == list(contents)
    for name, entry in contents.items():
        assert np.array_equal(slices[name].image[..., 0], entry["image"]) and slices[name].image.dtype == np.uint8
        assert np.array_equal(slices[name].masks, np.stack(entry["masks"])) and slices[name].patient == name[:14]


def test_a_label_of_0_and_255_is_one_of_0_and_1(folder, contents):
    expected = read(folder)
    for entry in contents.values():
        entry["masks"] = [mask * 255 for mask in entry["masks"]]
    rewrite(folder, contents)
    assert all(np.array_equal(read(folder)[name].masks, expected[name].masks) for name in expected)


def test_images_in_unit_range_are_scaled_and_said_to_be(folder, contents, capsys):
    expected = read(folder)
    assert not capsys.readouterr().err
    for entry in contents.values():
        entry["image"] = entry["image"] / 255
    rewrite(folder, contents)
    assert all(np.array_equal(read(folder)[name].image, expected[name].image) for name in expected)
    assert "scaled to 0..255" in capsys.readouterr().err


@pytest.mark.parametrize(("ends", "stored"), [((0, 1), (0, 255)), ((0, 1.01), (0, 1)), ((0, 255), (0, 255))])
def test_the_ends_of_the_range_belong_to_it(folder, contents, ends, stored):
    """Images of [0, 1] mostly have a 1 in them, and those of bytes a 255."""
    for entry in contents.values():
        entry["image"] = np.where(np.eye(40) > 0, *reversed(ends))
    rewrite(folder, contents)
    for piece in read(folder).values():
        assert (piece.image.min(), piece.image.max()) == stored


def test_one_dark_slice_is_not_scaled(folder, contents):
    first = next(iter(contents))
    contents[first]["image"] = np.ones((40, 40), np.uint8)
    rewrite(folder, contents)
    assert read(folder)[first].image.max() == 1


FIRST = "LIDC-IDRI-0000_nodule-0_slice-0"
PLANE = np.zeros((40, 40), np.uint8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"masks": []}, "no mask in it"),
        ({"masks": [PLANE] * 5}, "5 masks, expected up to 4; give --raters 5"),
        ({"masks": None}, "the masks are a NoneType"),
        ({"masks": np.zeros((4, 40, 39))}, "the mask of rater 1 is an array (40, 39)"),
        ({"masks": [PLANE] * 3 + [None]}, "the mask of rater 4 is a NoneType"),
        ({"masks": [PLANE] * 3 + [PLANE[:39]]}, "the mask of rater 4 is an array (39, 40)"),
        ({"masks": [PLANE] * 3 + [PLANE + 2]}, "the mask of rater 4: label values 2; expected 0/1 or 0/255"),
        ({"masks": [PLANE] * 3 + [PLANE + 0.5]}, "label values 0.5"),
        ({"image": PLANE[0]}, "the image is an array (40,)"),
        ({"image": "text"}, "the image is a str"),
        ({"image": PLANE[:0]}, "the image is an array (0, 40)"),
        ({"image": np.full((40, 40), np.nan)}, "image values from nan to nan"),
        ({"image": np.full((40, 40), 256)}, "image values from 256 to 256, expected 0..255"),
        ({"image": np.full((40, 40), -1)}, "image values from -1 to -1"),
    ],
)
def test_what_is_wrong_with_a_slice_is_said_by_name(folder, contents, change, said):
    contents[FIRST] |= change
    rewrite(folder, contents)
    with pytest.raises(UserError) as raised:
        read(folder)
    assert FIRST in str(raised.value) and said in str(raised.value) and "lidc_attributes.pkl" in str(raised.value)


@pytest.mark.parametrize("key", ["image", "masks"])
def test_a_missing_key_is_named(folder, contents, key):
    del contents[FIRST][key]
    rewrite(folder, contents)
    with pytest.raises(UserError, match=f"{FIRST}: no {key} in it"):
        read(folder)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".", "..", 7, "a\0b"])
def test_a_name_that_cannot_name_a_file_is_refused(folder, contents, name):
    contents[name] = contents[FIRST]
    rewrite(folder, contents)
    with pytest.raises(UserError, match="must be text that can name a file"):
        read(folder)


@pytest.mark.parametrize("wrong", [[], {}, [1, 2], {"a": [1]}, "text"])
def test_other_contents_are_refused(folder, wrong):
    rewrite(folder, wrong)
    with pytest.raises(UserError, match="expected a dict of"):
        read(folder)


def test_more_classes_and_fewer_raters(folder, contents):
    for entry in contents.values():
        entry["masks"] = [np.clip(entry["masks"][0] * 2, 0, 2), entry["masks"][1]]
    rewrite(folder, contents)
    slices = read(folder, num_raters=2, num_classes=3)
    assert np.unique(slices[FIRST].masks).tolist() == [0, 1, 2] and slices[FIRST].masks.shape == (2, 40, 40)


# --- Slices that not every rater marked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored",
    [
        lambda masks: np.stack(masks),
        lambda masks: np.stack(masks, axis=-1),
        lambda masks: np.stack(masks, axis=-1)[..., :1],
        lambda masks: masks[0],
        lambda masks: tuple(masks[:2]),
    ],
    ids=["(R,H,W)", "(H,W,R)", "(H,W,1)", "(H,W)", "tuple"],
)
def test_masks_may_be_stored_in_several_forms(folder, contents, stored):
    masks = contents[FIRST]["masks"]
    contents[FIRST]["masks"] = stored(masks)
    rewrite(folder, contents)
    found = read(folder)[FIRST].masks
    assert len(found) in (1, 2, 4) and all(np.array_equal(mask, masks[i]) for i, mask in enumerate(found))


def test_an_array_of_masks_that_could_lie_either_way_has_them_along_its_first_axis():
    masks = np.arange(64).reshape(4, 4, 4)
    assert np.array_equal(mask_planes(masks, (4, 4))[0], masks[0])


@pytest.fixture
def marked_by_some(folder, contents):
    """One training and one test slice have two masks, another test slice one."""
    for name, number in ((FIRST, 2), ("LIDC-IDRI-0005_nodule-0_slice-0", 2), ("LIDC-IDRI-0004_nodule-0_slice-1", 1)):
        contents[name]["masks"] = contents[name]["masks"][:number]
    rewrite(folder, contents)
    return folder


def completed(folder, fewer, num_raters=4):
    slices = read(folder, num_raters)
    return slices, with_all_masks(folder / PICKLE, read_split(folder, slices), num_raters, fewer)


def test_slices_with_fewer_masks_are_counted_and_the_flag_is_named(marked_by_some):
    with pytest.raises(UserError) as raised:
        completed(marked_by_some, None)
    for text in (
        PICKLE,
        "3 of 18 slices",
        "1 with 1, 2 with 2",
        FIRST,
        "--fewer_masks empty",
        "--fewer_masks leave_out",
    ):
        assert text in str(raised.value)
    assert "--raters" not in str(raised.value)


def test_slices_with_fewer_masks_get_empty_ones(marked_by_some, capsys):
    stored, parts = completed(marked_by_some, "empty")
    assert list(map(len, parts)) == [12, 6]
    for piece in (piece for part in parts for piece in part):
        own = stored[piece.name].masks
        assert piece.masks.shape == (4, 40, 40) and piece.masks.dtype == own.dtype
        assert np.array_equal(piece.masks[: len(own)], own) and not piece.masks[len(own) :].any()
    assert "1 of 12 training and 2 of 6 test slices" in capsys.readouterr().out


def test_slices_with_fewer_masks_are_left_out(marked_by_some, contents, capsys):
    _, parts = completed(marked_by_some, "leave_out")
    assert list(map(len, parts)) == [11, 4] and FIRST not in {piece.name for piece in parts[0]}
    assert "1 of 12 training and 2 of 6 test slices" in capsys.readouterr().out
    for name in np.load(marked_by_some / "test_idx.npy"):
        contents[name]["masks"] = contents[name]["masks"][:1]
    rewrite(marked_by_some, contents)
    with pytest.raises(UserError, match="--fewer_masks leave_out"):
        completed(marked_by_some, "leave_out")


@pytest.mark.parametrize("numbers", [(2, 2), (1, 2)])
def test_the_number_of_raters_is_named_where_no_slice_has_more(folder, contents, numbers, capsys):
    for index, entry in enumerate(contents.values()):
        entry["masks"] = entry["masks"][: numbers[index % 2]]
    rewrite(folder, contents)
    with pytest.raises(UserError, match="give --raters 2") as raised:
        completed(folder, None)
    assert "--fewer_masks" not in str(raised.value)
    if numbers == (2, 2):
        assert len(completed(folder, None, 2)[1][0]) == 12 and not capsys.readouterr().out


@pytest.mark.parametrize(("fewer", "train"), [("empty", 12), ("leave_out", 11)])
def test_training_verification_and_superpixels_of_slices_with_fewer_masks(
    marked_by_some, fewer, train, monkeypatch, capsys
):
    root = marked_by_some.parent
    monkeypatch.chdir(root)
    flags = ["--data_root", str(root), "--image_size", "32"]
    script = load_program(REPO / "GSD_Net_lidc_each_select1.py")
    shutil.rmtree(marked_by_some / "lidc_slic")
    cut = load_program(REPO / "scripts" / "generate_SLIC.py")
    cut.main(["--lidc_pickle", str(marked_by_some / PICKLE), "--image_size", "32", "--workers", "1"])
    assert len(list((marked_by_some / "lidc_slic").glob("*.npy"))) == 18
    check = load_program(REPO / "scripts" / "verify_data.py")
    with pytest.raises(SystemExit):
        check.main(["--datasets", "lidc", *flags, "--workers", "1"])
    assert "--fewer_masks" in capsys.readouterr().out
    check.main(["--datasets", "lidc", *flags, "--workers", "1", "--fewer_masks", fewer, "--json", "report.json"])
    shares = json.loads((root / "report.json").read_text())["facts"]["class_shares"]
    assert shares["train, rater 4"]["masks"] == train
    quick = ["--cache", "none", "--batch_size", "4", "--max_epochs", "1", "--device", "cpu", "--fewer_masks", fewer]
    monkeypatch.setattr(sys, "argv", ["GSD_Net_lidc_each_select1.py", *flags, *quick])
    run_main(script.main)
    assert len(json.loads((root / "model" / "lidc+gsd+cycle" / "raters.json").read_text())) == train
    assert "1 of 12 training" in capsys.readouterr().out


# --- Patients, splits and raters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "series_uid", "patient"),
    [
        ("LIDC-IDRI-0003_nodule-0_slice-1", "1.2.3", "LIDC-IDRI-0003"),  # two series of one patient are one patient
        ("LIDC-IDRI-0003_nodule-0_slice-1", "LIDC-IDRI-0003_nodule-0_slice-1", "LIDC-IDRI-0003"),
        ("slice_17", "1.3.6.1.4", "1.3.6.1.4"),
        ("p12_slice_17", "p12_slice_17", "p12"),
        ("p12_slice_17", None, "p12"),
        ("p12_slice_17", "", "p12"),
    ],
)
def test_patient(name, series_uid, patient):
    assert patient_of(name, series_uid) == patient


def test_split_is_read_in_its_own_order_without_a_word(folder, capsys):
    names = np.load(folder / "train_idx.npy")[::-1]
    np.save(folder / "train_idx.npy", names.astype(object))  # an array of objects, as older exports have it
    train, test = read_split(folder, read(folder))
    assert [piece.name for piece in train] == names.tolist() and len(test) == 6
    assert not capsys.readouterr().err


def test_a_patient_on_both_sides_is_found(folder, capsys):
    train = np.load(folder / "train_idx.npy")
    np.save(folder / "train_idx.npy", train[1:])
    np.save(folder / "test_idx.npy", np.append(np.load(folder / "test_idx.npy"), train[0]))
    read_split(folder, read(folder))
    said = capsys.readouterr().err
    assert said.startswith("warning:") and "1 patients" in said and "LIDC-IDRI-0000" in said and "0001" not in said


def test_a_series_on_both_sides_is_found(folder, contents, capsys):
    renamed = {f"scan{i}": {**entry, "series_uid": f"1.2.{i % 9}"} for i, entry in enumerate(contents.values())}
    rewrite(folder, renamed)
    for part, names in (("train", list(renamed)[:9]), ("test", list(renamed)[9:10])):
        np.save(folder / f"{part}_idx.npy", np.array(names))
    read_split(folder, read(folder))
    assert "1.2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([FIRST, "LIDC-IDRI-0001_nodule-0_slice-0", FIRST], f"named more than once: {FIRST}$"),
        ([FIRST, "stranger"], "1 of 2 slices are not in the pickle: stranger"),
        (["LIDC-IDRI-0005_nodule-0_slice-0"], "1 slices are in train_idx.npy and test_idx.npy"),
        ([], "expected a list of slice names"),
        ([1, 2], "expected a list of slice names"),
        ([[FIRST]], "expected a list of slice names"),
    ],
)
def test_a_wrong_index_is_refused(folder, names, said):
    np.save(folder / "train_idx.npy", np.array(names))
    with pytest.raises(UserError, match=said):
        read_split(folder, read(folder))


def test_a_missing_index_names_the_script_that_makes_it(folder):
    (folder / "test_idx.npy").unlink()
    with pytest.raises(UserError, match=r"test_idx\.npy: no such file; scripts/split_lidc\.py"):
        read_split(folder, read(folder))


def test_rater_policies():
    assert choose_raters(6, "cycle", 4, seed=0) == [0, 1, 2, 3, 0, 1]
    for number in range(1, 5):
        assert choose_raters(3, str(number), 4, seed=0) == [number - 1] * 3
    drawn = choose_raters(4000, "random", 4, seed=1)
    assert drawn == choose_raters(4000, "random", 4, seed=1) != choose_raters(4000, "random", 4, seed=2)
    assert np.bincount(drawn, minlength=4).min() > 900 and set(drawn) == {0, 1, 2, 3}
    for wrong in ("0", "5", "-1", "1.0", "some", "", "²"):
        with pytest.raises(UserError, match="--rater_policy"):
            choose_raters(3, wrong, 4, seed=0)


def test_split_by_patient_keeps_patients_whole():
    patients = [f"p{i % 11}" for i in range(100)]
    stay, out = split_by_patient(patients, 0.3, seed=0)
    assert sorted(stay + out) == list(range(100)) and stay == sorted(stay)
    assert not {patients[i] for i in stay} & {patients[i] for i in out}
    assert len({patients[i] for i in out}) == 3
    assert split_by_patient(patients, 0.3, seed=0) == (stay, out) != split_by_patient(patients, 0.3, seed=1)
    assert len({patients[i] for i in split_by_patient(patients, 0.001, seed=0)[1]}) == 1
    assert len({patients[i] for i in split_by_patient(patients, 0.999, seed=0)[0]}) == 1
    assert sorted(map(len, split_by_patient(["a", "a", "b"], 0.5, seed=0))) == [1, 2]  # two can be split
    with pytest.raises(UserError, match="only one patient"):
        split_by_patient(["a", "a"], 0.5, seed=0)


def test_hold_out_nothing():
    assert hold_out("abc", ["p", "p", "p"], 0, seed=0) == (["a", "b", "c"], [])


def test_labels_keep_their_classes():
    assert label_classes(np.array([0.0, 2.0]), 3, "x").tolist() == [0, 2]
    assert label_classes(np.array([False, True]), 2, "x").tolist() == [0, 1]
    assert label_classes(np.array([0, 255]), 2, "x").dtype == np.uint8
    for wrong in (np.array([0, 255]), np.array([0, -1]), np.array([0, np.nan]), np.array(["a"]), np.array([3])):
        with pytest.raises(UserError, match=r"^x: "):
            label_classes(wrong, 3, "x")


# --- Arrays for training and testing ----------------------------------------------------------------------------------


def training_set(folder, slices, raters, size=SIZE):
    maps = find_maps(slic_sources(slices), folder / PICKLE, folder / "lidc_slic", size)
    return loaded(training_source(folder / PICKLE, slices, raters, maps, size, 2))


def test_training_set_holds_the_mask_of_the_chosen_reader(folder):
    slices = list(read(folder).values())
    data = training_set(folder, slices, [i % 4 for i in range(len(slices))])
    shapes = {field.name: getattr(data, field.name) for field in fields(data) if field.name not in ("names",)}
    assert shapes["images"].shape == (18, 1, SIZE, SIZE) and shapes["images"].dtype == torch.uint8
    same_size = write_lidc(
        folder / "own", {p.name: {"image": p.image[..., 0], "masks": p.masks} for p in slices}, 2, 40
    )
    data = training_set(same_size, slices, [i % 4 for i in range(len(slices))], 40)
    for i, piece in enumerate(slices):
        label = piece.masks[i % 4]
        assert np.array_equal(data.labels[i], label) and np.array_equal(data.images[i, 0], piece.image[..., 0])
        expected = np.full(label.shape, 100)
        if label.any():
            expected = np.minimum(
                np.rint(distance_transform_edt(label) ** 2 + distance_transform_edt(1 - label) ** 2), 100
            )
        assert np.array_equal(data.squared_distances[i], expected)


def test_missing_superpixels_are_those_of_the_script(folder):
    slices = list(read(folder).values())
    path = folder / "lidc_slic" / f"{FIRST}.npy"
    path.unlink()
    data = training_set(folder, slices, [0] * 18)
    made = np.load(path)
    np.testing.assert_array_equal(made, slic_segments(resize_image(slices[0].image, SIZE), n_segments=SIZE**2 // 16))
    np.testing.assert_array_equal(data.segments[0], made)


def test_superpixels_that_do_not_vote_are_not_read(folder):
    slices = list(read(folder).values())
    shutil.rmtree(folder / "lidc_slic")
    data = loaded(training_source(folder / PICKLE, slices, [0] * 18, None, SIZE, 2))
    assert not data.segments.any() and data.num_segments == 1 and not (folder / "lidc_slic").exists()


def test_superpixels_of_another_size_are_refused(folder):
    slices = list(read(folder).values())
    with pytest.raises(UserError) as refused:
        training_set(folder, slices, [0] * 18, 48)
    assert str(folder / "lidc_slic" / f"{FIRST}.npy") in str(refused.value)


def test_cases_are_tested_at_the_size_of_their_masks(folder):
    slices = list(read(folder).values())
    for case, piece in zip(as_test_cases(slices, SIZE), slices, strict=True):
        assert case.image.shape == (1, 1, SIZE, SIZE) and case.masks.shape == (4, 1, 40, 40)
        assert np.array_equal(case.masks[:, 0], piece.masks) and case.name == piece.name


# --- Scripts ----------------------------------------------------------------------------------------------------------


def test_split_script_splits_by_patient_and_keeps_what_is_there(folder):
    script = REPO / "scripts" / "split_lidc.py"
    refused = run_script("--lidc_pickle", folder / "lidc_attributes.pkl", script=script)
    assert refused.returncode == 2 and "there already" in refused.stderr and "Traceback" not in refused.stderr
    made = call(script, "--lidc_pickle", folder / "lidc_attributes.pkl", "--test_fraction", 0.34, "--overwrite")
    assert_succeeded(made)
    train, test = read_split(folder, read(folder))
    assert len({p.patient for p in train}) == 4 and len({p.patient for p in test}) == 2 and len(train + test) == 18
    assert "6 slices of 2 patients" in made.out


def test_superpixels_from_the_pickle(folder, contents):
    script = REPO / "scripts" / "generate_SLIC.py"
    target = folder / "made"
    flags = ("--lidc_pickle", folder / "lidc_attributes.pkl", "--save_root", target, "--n_segments", 40)
    assert_succeeded(call(script, *flags, "--image_size", SIZE, "--workers", 1))
    assert sorted(path.stem for path in target.glob("*.npy")) == sorted(contents)
    ids = np.load(target / f"{FIRST}.npy")
    assert ids.shape == (SIZE, SIZE) and 20 < len(np.unique(ids)) < 80
    assert json.loads((target / "settings.json").read_text())["image_size"] == SIZE
    assert call(script, "--save_root", target).code == 2
