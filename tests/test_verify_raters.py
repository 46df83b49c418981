"""Checks of LIDC and MMIS-2024: planted faults are found, and errors are what training refuses."""

import json
import pickle
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import loaded
from lidc_files import entries, write_lidc
from mmis_files import draw_volume, write_h5, write_mmis
from verifying import SIZE, Report, cut, photograph, verified, without_likeness

from dataloaders import lidc, mmis
from dataloaders.lidc import read_slices, read_split
from dataloaders.slic import find_maps
from scripts import verify_data
from utils.commands.errors import UserError


@pytest.fixture
def verify(tmp_path) -> Callable[..., Report]:
    """Check a dataset below tmp_path/data."""
    return partial(verified, tmp_path / "data")


# --- LIDC -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slices() -> dict:
    """Contents of a flawless pickle: raters always draw something, and every slice is another image."""
    contents = entries(seed=3)
    for index, entry in enumerate(contents.values()):
        entry["image"] = photograph(index, 40)[..., 0]
        entry["masks"][-1] = np.roll(entry["masks"][0], 2, axis=1)
    return contents


def lidc_dataset(root: Path, contents: dict) -> Path:
    folder = write_lidc(root, contents, image_size=SIZE)
    for path in (folder / "lidc_slic").iterdir():
        path.unlink()
    return folder


def name_of(patient: int, index: int) -> str:
    return f"LIDC-IDRI-{patient:04}_nodule-0_slice-{index}"


def test_clean_lidc(tmp_path, slices, verify):
    folder = lidc_dataset(tmp_path / "data", slices)
    cut(folder, "--lidc_pickle", folder / lidc.PICKLE)
    result = verify(datasets="LIDC")
    assert (result.code, result.found()) == (0, {})
    facts = result.report["facts"]
    assert [facts["images"][part]["count"] for part in ("train", "test")] == [12, 6]
    assert list(facts["class_shares"]) == [f"{part}, rater {n}" for part in ("train", "test") for n in range(1, 5)]
    assert verify("--raters", 3, datasets="lidc").report["errors"] == 18


def test_the_training_size_is_that_of_the_training_script(tmp_path, slices, capsys):
    lidc_dataset(tmp_path / "data", slices)
    verify_data.main(["--datasets", "lidc", "--data_root", str(tmp_path / "data"), "--workers", "1"])
    assert "for training at --image_size 128\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", [7, "d/e", "..", "a\nb"])
def test_names_of_slices_that_training_refuses(tmp_path, slices, verify, name):
    folder = lidc_dataset(tmp_path / "data", slices)
    cut(folder, "--lidc_pickle", folder / lidc.PICKLE)
    (folder / lidc.PICKLE).write_bytes(pickle.dumps(slices | {name: slices[name_of(0, 0)]}))
    message = f"{name!a}: a slice's name must be text that can name a file"
    result = verify(datasets="lidc")
    assert result.found() == {"readable": [("error", ascii(name))]} and result.messages("readable") == message
    with pytest.raises(UserError, match=re.escape(message)):
        read_slices(folder / lidc.PICKLE, 4)


def test_scaled_lidc_is_read_as_training_reads_it(tmp_path, slices, verify):
    for entry in slices.values():
        entry["image"] = entry["image"] / 255
    folder = lidc_dataset(tmp_path / "data", slices)
    cut(folder, "--lidc_pickle", folder / lidc.PICKLE)
    result = verify(datasets="lidc")
    assert (result.code, result.found()) == (0, {"formats": [("warning", lidc.PICKLE)]})


def test_all_faults_of_lidc_at_once(tmp_path, slices, verify):
    slices[name_of(0, 0)]["masks"] = slices[name_of(0, 0)]["masks"][:3]
    slices[name_of(0, 1)]["image"] = slices[name_of(0, 1)]["image"].astype(float) - 300
    slices[name_of(0, 2)]["masks"][1] = slices[name_of(0, 2)]["masks"][1] * 7
    slices[name_of(1, 0)]["masks"][2] = np.zeros((40, 40), np.uint8)
    slices[name_of(1, 1)]["image"] = np.full((40, 40), 5, np.uint8)
    slices[name_of(2, 0)]["image"] = slices[name_of(4, 0)]["image"]
    slices[name_of(2, 1)]["image"] = cv2.GaussianBlur(slices[name_of(5, 1)]["image"], (0, 0), 1)
    slices[name_of(3, 1)]["image"] = cv2.GaussianBlur(slices[name_of(3, 0)]["image"], (0, 0), 1)  # one patient's
    folder = lidc_dataset(tmp_path / "data", slices)
    for name in slices:
        np.save(folder / "lidc_slic" / f"{name}.npy", np.zeros((SIZE, SIZE), np.int32))
    (folder / "lidc_slic" / f"{name_of(2, 2)}.npy").unlink()
    (folder / "lidc_slic" / f"{name_of(4, 2)}.npy").unlink()  # of a test slice: not needed
    train, test = (np.load(folder / f"{part}_idx.npy").tolist() for part in ("train", "test"))
    train.remove(name_of(3, 2))
    np.save(folder / "train_idx.npy", np.array([*train, train[3], "gone", name_of(5, 2)]))
    np.save(folder / "test_idx.npy", np.array([*test[:-2], test[-1], name_of(3, 2)]))
    result = verify(datasets="lidc")
    assert result.code == 1
    assert result.found() == {
        "readable": [("error", name_of(0, index)) for index in (1, 2)],
        "raters": [("error", lidc.PICKLE)],
        "names": [
            *(("error", name) for name in sorted([train[3], name_of(5, 2), "gone"])),
            ("warning", name_of(5, 1)),
        ],
        "blank_masks": [("warning", f"{name_of(1, 0)}, rater 3")],
        "blank_images": [("warning", name_of(1, 1))],
        "segments": [("note", "lidc_slic")],
        "stale_segments": [("warning", "lidc_slic/settings.json")],
        "patients": [("warning", "LIDC-IDRI-0003")],
        "exact_between": [("warning", name_of(4, 0))],
    }
    assert name_of(0, 0) in result.messages("raters") and "--fewer_masks" in result.messages("raters")
    assert "the mask of rater 2: label values" in result.messages("readable")


def test_similar_slices_of_two_patients_are_named_of_one_patient_not(tmp_path, slices, verify):
    for (patient, index), (source, of) in {(5, 0): (0, 0), (0, 1): (0, 2)}.items():
        slices[name_of(patient, index)]["image"] = cv2.GaussianBlur(slices[name_of(source, of)]["image"], (0, 0), 1)
    folder = lidc_dataset(tmp_path / "data", slices)
    cut(folder, "--lidc_pickle", folder / lidc.PICKLE)
    assert verify(datasets="lidc").found() == {"near_between": [("warning", name_of(5, 0))]}


@pytest.mark.parametrize("break_it", ["pickle", "dict", "arrays", "missing", "superpixels"])
def test_broken_files_of_lidc_are_errors_where_training_refuses(tmp_path, slices, verify, break_it):
    folder = lidc_dataset(tmp_path / "data", slices)
    cut(folder, "--lidc_pickle", folder / lidc.PICKLE)
    if break_it == "pickle":
        (folder / lidc.PICKLE).write_bytes(b"\x80\x04broken")
        expected = {"readable": [("error", lidc.PICKLE)]}
    elif break_it == "dict":
        (folder / lidc.PICKLE).write_bytes(pickle.dumps([1, 2]))
        expected = {"readable": [("error", lidc.PICKLE)]}
    elif break_it == "arrays":
        np.save(folder / "train_idx.npy", np.arange(3))
        (folder / "test_idx.npy").write_bytes(b"nothing")
        expected = {"readable": [("error", "test_idx.npy"), ("error", "train_idx.npy")]}
    elif break_it == "missing":
        (folder / "test_idx.npy").unlink()
        expected = {"files": [("error", "test_idx.npy")]}
    else:
        (folder / "lidc_slic" / f"{name_of(0, 0)}.npy").write_bytes(b"")
        expected = {"segments": [("error", f"lidc_slic/{name_of(0, 0)}.npy")]}
    result = verify(datasets="lidc")
    assert result.code == 1
    assert {check: found for check, found in result.found().items() if check in expected} == expected
    with pytest.raises(UserError):
        contents = read_slices(folder / lidc.PICKLE, 4)
        train, _ = read_split(folder, contents)
        maps = find_maps(lidc.slic_sources(train), folder / lidc.PICKLE, folder / "lidc_slic", SIZE)
        loaded(lidc.training_source(folder / lidc.PICKLE, train, [0] * 12, maps, SIZE, 2))


# --- MMIS -------------------------------------------------------------------------------------------------------------


def mmis_dataset(root: Path, **options: object) -> Path:
    folder = write_mmis(root, image_size=SIZE, **options)
    for path in (folder / "train_2D_slic").iterdir():
        path.unlink()
    cut(folder, "--mmis_root", folder)
    return folder


def test_mmis_without_errors(tmp_path, verify):
    mmis_dataset(tmp_path / "data", selection=True)
    result = verify(datasets="MMIS")
    assert result.code == 0
    # The phantom has slices without a tumour, and a rater who draws none in the first case.
    empty = {f"training_2d/case{case:02}_0.h5, rater {rater}" for case in range(4) for rater in range(1, 5)}
    empty |= {f"training_2d/case00_{index}.h5, rater 4" for index in range(3)} | {"testing/test00.h5, rater 2"}
    assert without_likeness(result.found()) == {"blank_masks": sorted(("warning", name) for name in empty)}
    images = result.report["facts"]["images"]
    assert (images["train"]["count"], images["test"]["count"]) == (12, 10)
    assert images["train"]["sizes"]["53x37"] == 3


def test_all_faults_of_mmis_at_once(tmp_path, verify):
    folder = mmis_dataset(tmp_path / "data", selection=True)
    training, testing = folder / "training_2d", folder / "testing"
    rng = np.random.default_rng(1)
    (training / "case00_1.h5").write_bytes((training / "case00_1.h5").read_bytes()[:600])
    write_h5(training / "case01_1.h5", {**draw_volume(rng, 1), "t2": np.full((1, 37, 53), np.nan)})
    write_h5(training / "case02_1.h5", draw_volume(rng, 2))  # a volume among the slices
    (training / "notes.txt").write_text("x")
    test01 = draw_volume(rng, 3, 50, 29)
    del test01["label_a3"]
    write_h5(testing / "test01.h5", test01)
    leaked = draw_volume(rng, 2)
    write_h5(testing / "case03.h5", leaked)
    write_h5(training / "case01_2.h5", {key: values[1] for key, values in leaked.items()})  # another case, equal pixels
    (folder / "train_2D_slic" / "case03_1.npy").unlink()
    selection = json.loads((folder / mmis.SELECTION).read_text())
    (folder / mmis.SELECTION).write_text(json.dumps({**selection, "case03_2.h5": "label_a9"}))
    result = verify(datasets="mmis")
    assert result.code == 1
    found = without_likeness(result.found())
    del found["blank_masks"]
    assert found == {
        "files": [("warning", "training_2d")],
        "readable": [
            ("error", "testing/test01.h5"),
            *(("error", f"training_2d/case0{case}_1.h5") for case in range(3)),
        ],
        "segments": [("note", "train_2D_slic")],
        "stale_segments": [("warning", "train_2D_slic/case01_2.npy")],
        "raters": [("error", mmis.SELECTION)],
        "patients": [("warning", "testing/case03.h5")],
        "exact_between": [("warning", "testing/case03.h5, slice 1")],
    }
    for text in ("NaN", "not a readable HDF5 file", "expected one slice", "label_a3"):
        assert text in result.messages("readable")


def test_similar_slices_of_two_cases_are_named_of_one_case_not(tmp_path, verify):
    folder = mmis_dataset(tmp_path / "data", cases=2)
    volume = draw_volume(np.random.default_rng(4), 1)
    for stem, scale in (("case00_0", 1), ("case00_1", 2), ("case01_0", 3)):
        noise = np.random.default_rng(scale).normal(1, 0.02, (1, 37, 53)).astype(np.float32)
        write_h5(folder / "training_2d" / f"{stem}.h5", {**volume, "t1": volume["t1"] * noise})
    found = verify(datasets="mmis").found()
    assert found["near_train"] == [("warning", "training_2d/case01_0.h5")]


def test_raters_of_absent_files_are_named(tmp_path, verify):
    folder = mmis_dataset(tmp_path / "data", selection=True)
    selection = json.loads((folder / mmis.SELECTION).read_text())
    (folder / mmis.SELECTION).write_text(json.dumps({**selection, "case99_0.h5": "label_a1"}))
    result = verify(datasets="mmis")
    assert result.code == 0 and result.found()["raters"] == [("warning", mmis.SELECTION)]
    assert "case99_0" in result.messages("raters")


def test_mmis_without_folders(tmp_path, verify):
    (tmp_path / "data" / "MMIS2024TASK1").mkdir(parents=True)
    result = verify(datasets="mmis2024")
    assert result.code == 1
    assert result.found() == {"files": [("error", "testing"), ("error", "training_2d")]}
