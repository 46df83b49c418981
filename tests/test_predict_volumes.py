"""From raw files to predictions: the commands that prepare_data.py prints, volumes put together again, DICOM."""

import json
import shlex
import sys

import numpy as np
import pytest
from conftest import TRAIN_SCRIPT, assert_refused, assert_succeeded, blob, call
from test_predict import SIZE, checkpoint_of, pixels, save
from test_prepare_data import AFFINE, commands, names, write_dicom, write_nifti

from dataloaders.prepare.settings import Settings
from scripts import evaluate, predict, prepare_data
from utils.engine.checkpoint import read_checkpoint

PREPARED = Settings(mask_suffix="", slices="coronal").as_json()


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of(tmp_path / "model" / "checkpoint.pt", channels=1, prepared=PREPARED)


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of 7x20x24 voxels, in axes that are not the canonical ones, one of them in a subfolder."""
    rng = np.random.default_rng(0)
    for name in ("a", "sub/b"):
        values = np.stack([blob(rng, 24, 20)[0][..., 0] for _ in range(7)]).astype(np.int16) * 9 - 700
        write_nifti(tmp_path / "raw" / f"{name}.nii.gz", values)
    return tmp_path / "raw"


def predicted(checkpoint, images, save_root, *flags):
    roots = ("--checkpoint", checkpoint, "--images_root", images, "--save_root", save_root)
    return call(predict.main, *roots, "--device", "cpu", *flags)


def prepared(raw, save_root, *flags):
    roots = ("--images_root", raw, "--images_only", "--save_root", save_root, "--workers", 1)
    return call(prepare_data.main, *roots, *flags)


def assert_put_together(path, masks, raw):
    """The volume is on the grid of the raw file, and its coronal slices are the masks, front to back as files count."""
    nib = pytest.importorskip("nibabel")
    volume = nib.load(path)
    assert np.array_equal(volume.affine, AFFINE) and volume.shape == nib.load(raw).shape
    values = np.asarray(volume.dataobj)  # axes: S to I, L to R, P to A
    assert values.dtype == np.uint8 and set(np.unique(values).tolist()) == {0, 1}
    for front in range(values.shape[2]):
        assert (pixels(masks / f"{path.name[:-7]}_{front:03}.png") == 255 * values[:, :, front]).all()


def test_slices_become_volumes(checkpoint, volumes, tmp_path):
    """Prepared before as the checkpoint says, or by predict.py itself: the same masks and volumes."""
    assert prepared(volumes, tmp_path / "new", "--like", checkpoint)[0] == 0
    assert len(names(tmp_path / "new" / "images")) == 48
    outcomes = {"first": tmp_path / "new" / "images", "second": volumes}
    for name, images in outcomes.items():
        code, out, err = predicted(checkpoint, images, tmp_path / name)
        assert code == 0 and "48 of 48 images" in out and "2 of 2 volumes" in out and "warning" not in err
        assert names(tmp_path / f"{name}_volumes") == ["a.nii.gz", "settings.json", "sub_b.nii.gz"]
        for volume in ("a", "sub/b"):
            path = tmp_path / f"{name}_volumes" / f"{volume.replace('/', '_')}.nii.gz"
            assert_put_together(path, tmp_path / name, volumes / f"{volume}.nii.gz")
    for folder in ("", "_volumes"):
        files = [{p.name: p.read_bytes() for p in (tmp_path / f"{n}{folder}").iterdir()} for n in outcomes]
        assert files[0] == files[1]


def test_one_file(checkpoint, volumes, tmp_path):
    code, _, _ = predicted(checkpoint, volumes / "a.nii.gz", tmp_path / "out")
    assert code == 0 and names(tmp_path / "out_volumes") == ["a.nii.gz", "settings.json"]
    assert_put_together(tmp_path / "out_volumes" / "a.nii.gz", tmp_path / "out", volumes / "a.nii.gz")
    assert sorted(path.name for path in volumes.iterdir()) == ["a.nii.gz", "sub"]


def test_volume_with_a_slice_that_cannot_be_read(checkpoint, volumes, tmp_path):
    prepared(volumes, tmp_path / "new", "--like", checkpoint)
    images = tmp_path / "new" / "images"
    predicted(checkpoint, images, tmp_path / "out")
    (images / "a_003.png").write_bytes(b"")
    code, _, err = predicted(checkpoint, images, tmp_path / "out")
    assert code == 1 and "a_003" in err and "a: not put together" in err
    assert names(tmp_path / "out_volumes") == ["settings.json", "sub_b.nii.gz"]


def test_volumes_elsewhere_are_no_concern(checkpoint, volumes, tmp_path):
    """As the images of a test set, beside whose folder the record is that knows those of training too."""
    prepared(volumes, tmp_path / "new", "--like", checkpoint)
    images = tmp_path / "new" / "images"
    for path in images.glob("sub_b_*"):
        path.unlink()
    code, out, _ = predicted(checkpoint, images, tmp_path / "out")
    assert code == 0 and "1 of 1 volumes" in out


def test_images_prepared_in_another_way(checkpoint, volumes, tmp_path):
    prepared(volumes, tmp_path / "new", "--slices", "axial", "--window", -100, 400)
    code, _, err = predicted(checkpoint, tmp_path / "new" / "images", tmp_path / "out")
    assert code == 0 and "warning" in err and "--slices coronal (here axial)" in err and f"--like {checkpoint}" in err


def test_without_nibabel(checkpoint, volumes, tmp_path, monkeypatch):
    prepared(volumes, tmp_path / "new", "--like", checkpoint)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for images in (tmp_path / "new" / "images", volumes):
        code, _, err = predicted(checkpoint, images, tmp_path / "out")
        assert code == 2 and "requirements-extra.txt" in err and not (tmp_path / "out").exists()


def test_damaged_record(checkpoint, volumes, tmp_path):
    prepared(volumes, tmp_path / "new", "--like", checkpoint)
    record = tmp_path / "new" / "prepared.json"
    whole = json.loads(record.read_text())
    for damaged in ("{", "{}", json.dumps(whole | {"volumes": {"a": {"stems": 3}}})):
        record.write_text(damaged)
        code, _, err = predicted(checkpoint, tmp_path / "new" / "images", tmp_path / "out")
        assert code == 2 and str(record) in err


def test_dicom_is_predicted_as_it_is_prepared(checkpoint, tmp_path):
    raw = tmp_path / "raw"
    write_dicom(
        raw / "DOE_JANE" / "a.dcm",
        np.arange(0, 4800, 10, np.uint16).reshape(20, 24),
        WindowCenter=900,
        WindowWidth=2000,
    )
    prepared(raw, tmp_path / "new", "--like", checkpoint)
    (raw / "DOE_JANE" / "b.dcm").write_bytes(b"\0" * 128 + b"DICM")
    predicted(checkpoint, tmp_path / "new" / "images", tmp_path / "first")
    code, out, err = predicted(checkpoint, raw, tmp_path / "second")
    assert code == 1 and "patient1/b.dcm" in err and "DOE" not in out + err
    assert names(tmp_path / "second") == ["patient1_a.png", "settings.json"]
    assert (pixels(tmp_path / "first" / "patient1_a.png") == pixels(tmp_path / "second" / "patient1_a.png")).all()


def test_output_among_raw_files_is_refused(checkpoint, volumes, tmp_path):
    code, _, err = predicted(checkpoint, volumes, volumes)
    assert code == 2 and "--save_root" in err


@pytest.mark.usefixtures("without_pictures")
def test_the_commands_that_are_printed(tmp_path, monkeypatch):
    """A set with a class per kind of lesion and normal cases, from the download to its scores; small and short."""
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    for kind in ("benign", "malignant", "normal"):
        for number in range(1, 7):
            image, mask = blob(rng)
            save(raw / kind / f"{kind} ({number}).png", 255 - image if kind == "malignant" else image)
            if kind != "normal":
                save(raw / kind / f"{kind} ({number})_mask.png", mask)
    monkeypatch.chdir(tmp_path)
    flags = ("--images_root", "raw", "--save_root", "data/lesions", "--class_of", "benign=1", "malignant=2")
    code, out, _ = call(prepare_data.main, *flags, "--orientation", "stored", "--workers", 1)
    assert code == 0
    _, train, *rest = (shlex.split(command)[2:] for command in commands(out))
    quick = ("--image_size", SIZE, "--max_epochs", 2, "--device", "cpu")
    assert_succeeded(call(TRAIN_SCRIPT, *train, *quick))
    for main, arguments in zip((predict.main, evaluate.main), rest, strict=True):
        assert call(main, *arguments)[0] == 0
    summary = json.loads((tmp_path / "scores" / "lesions.summary.json").read_text())
    assert summary["images"] == 4 and {"dice_class1", "dice_class2"} <= summary["mean"].keys()
    assert len(names(tmp_path / "predicted" / "lesions_overlays")) == 5  # with settings.json
    checkpoint = tmp_path / "model" / "lesions+gsd+given" / "checkpoint.pt"
    assert read_checkpoint(checkpoint)["prepared"]["orientation"] == "stored"
    code, _, _ = prepared(raw / "normal", "data/new", "--like", checkpoint)
    record = json.loads((tmp_path / "data" / "new" / "prepared.json").read_text())
    assert code == 0 and record["settings"]["class_of"] == {"benign": 1, "malignant": 2}


def test_checkpoint_of_another_dataset_has_no_settings(tmp_path):
    path = checkpoint_of(tmp_path / "checkpoint.pt")
    save(tmp_path / "raw" / "a.png", np.zeros((4, 4), np.uint8))
    assert_refused(prepared(tmp_path / "raw", tmp_path / "new", "--like", path), f"--like {path}")
