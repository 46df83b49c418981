"""Inputs that once misled the program: links to nothing, other formats, subfolders, several masks of one image."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import REPO, TRAIN_SCRIPT, assert_refused, assert_succeeded, call, write_dataset
from mmis_files import draw_volume, write_h5, write_mmis
from PIL import Image

from dataloaders.dataset_folder import find_dataset, find_parts
from dataloaders.files import list_images, pair_by_stem, read_image, read_mask
from dataloaders.listing import several_of_one
from dataloaders.mmis import MMISCases, list_slices, read_case, read_slice, select_raters
from dataloaders.mmis_axes import check_axes, slice_axis
from dataloaders.safe_pickle import read_pickle
from dataloaders.unread import unreadable
from utils.commands.errors import UserError

VERIFY = REPO / "scripts" / "verify_data.py"
FAST = ("--image_size", 32, "--batch_size", 4, "--max_epochs", 1, "--device", "cpu", "--without", "sgr")


def refusal(call, *named: object) -> str:
    """The message of the `UserError` that the call must raise, which names all of ``named``."""
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    for name in named:
        assert str(name) in text
    return text


def dangle(path: Path, target: str) -> Path:
    """Put a link to ``target``, where nothing is, in place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


# --- Nothing that looks like data is left out ------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/store/x.png", "../.git/annex/objects/Zx/SHA256E-s12.png"])
def test_a_link_to_nothing_is_an_error_that_names_link_and_target(tmp_path, target):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    link = dangle(tmp_path / "b.png", target)
    refusal(lambda: list_images(tmp_path), link, target, "1 of 2")
    for read in (read_image, read_mask, read_pickle):
        refusal(lambda read=read: read(link), link, target)


def test_links_to_links_and_in_a_circle_are_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    dangle(tmp_path / "b.png", "c.png")
    dangle(tmp_path / "c.png", "/store/c.png")
    assert "2 of 3" in refusal(lambda: list_images(tmp_path), tmp_path / "b.png", "/store/c.png")
    dangle(tmp_path / "c.png", "b.png")
    refusal(lambda: list_images(tmp_path), tmp_path / "b.png")


def test_links_that_lead_somewhere_are_read(tmp_path):
    (tmp_path / "store").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "store" / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").symlink_to("../store/a.png")
    assert read_image(list_images(tmp_path / "images")["a"]).shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("b.gif", b"GIF89a", "b.gif"),
        ("b.webp", b"", "b.webp"),
        ("b.dcm", b"", "prepare_data.py"),
        ("b.nii.gz", b"", "prepare_data.py"),
        ("b.h5", b"", "b.h5"),
        ("b.npz", b"", "b.npz"),
        ("b.png.dvc", b"outs:", "dvc pull"),
        (".b.png.icloud", b"", "iCloud"),
    ],
)
def test_data_that_is_not_read_is_not_left_out(tmp_path, name, content, names):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    meant = tmp_path / name.strip(".").removesuffix(".dvc").removesuffix(".icloud")
    refusal(lambda: list_images(tmp_path), meant, names)


def test_a_folder_or_pipe_with_the_name_of_an_image_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    refusal(lambda: list_images(tmp_path), tmp_path / "b.png", "folder")
    (tmp_path / "b.png").rmdir()
    os.mkfifo(tmp_path / "b.png")  # to open it would wait for ever
    refusal(lambda: list_images(tmp_path), tmp_path / "b.png", "pipe")


def test_what_is_no_data_may_stay(tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for name in ("notes.txt", "a.png.dvc", ".hidden.png", "Thumbs.db"):
        (tmp_path / name).touch()
    for name in (".thumbnails", "__MACOSX", "made"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    (tmp_path / "made" / "settings.json").touch()  # as this project's scripts leave it
    dangle(tmp_path / "readme", "/gone")
    assert list(list_images(tmp_path)) == ["a"]
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".H5"])
def test_no_hdf5_file_is_left_out(tmp_path, suffix):
    root = write_mmis(tmp_path)
    folder = root / "training_2d"
    target = dangle(folder / f"case00_0{suffix}", "/store/case.h5")
    if suffix != ".h5":
        (folder / "case00_0.h5").unlink()
    refusal(lambda: list_slices(folder), target, "/store/case.h5", "1 of 12")
    shutil.copy(folder / "case00_1.h5", tmp_path / "whole")
    target.unlink()
    (tmp_path / "whole").rename(target)
    assert list_slices(folder)["case00_0"] == target
    (folder / "case00_0.he5").touch()
    refusal(lambda: list_slices(folder), "case00_0.he5", target.name)


def test_a_choice_of_raters_that_is_a_link_to_nothing_is_not_drawn_at_random(tmp_path):
    root = write_mmis(tmp_path)
    link = dangle(root / "data_npc_select_one.json", "/store/select.json")
    refusal(lambda: select_raters(root, ["case00_0"], 4, None, 0), link, "/store/select.json", "--rater_policy")
    assert select_raters(root, ["case00_0"], 4, "2", 0) == {"case00_0": 1}


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path, "mine", train=6, test=4)
    return tmp_path


def parts(data: Path):
    """What training finds, and refuses, of the images and masks of a dataset."""
    folder, layout = find_dataset(data, "mine")
    return find_parts(folder, layout, "given")


def verify(data: Path, *flags: object) -> tuple[int, str]:
    """Exit code and output of verify_data.py."""
    arguments = ["--datasets", "mine", "--data_root", data, "--workers", 1, *flags]
    return call(VERIFY, *arguments)[:2]


def train(data: Path, *flags: object, name: str = "mine"):
    where = ("--datasets", name, "--noise_type", "given", "--data_root", data, "--output_root", data / "model")
    return call(TRAIN_SCRIPT, *where, "--cache", "none", *FAST, *flags)


def test_training_and_verification_stop_at_links_to_nothing(data):
    for index in (0, 1):
        for kind in ("images_test", "masks_test"):
            dangle(data / "mine" / kind / f"case0{index}.png", f"/store/{kind}/case0{index}.png")
    link = data / "mine" / "images_test" / "case00.png"
    assert_refused(train(data), link, "/store/images_test/case00", "2 of 4")
    code, out = verify(data, "--details", 20)
    assert code == 1
    for kind in ("images_test", "masks_test"):
        for index in (0, 1):
            name = f"{kind}/case0{index}.png"
            assert re.search(rf"error: {name}: .*/store/{name}", out)


@pytest.mark.parametrize("gone", [("images_test", "masks_test"), ("masks",), ("images",)])
def test_folders_that_are_links_to_nothing_are_no_missing_folders(data, gone):
    """Without a test set a fifth of the training images would be scored instead."""
    for name in gone:
        dangle(data / "mine" / name, f"/store/{name}")
    refusal(lambda: parts(data), f"/store/{gone[0]}")
    code, out = verify(data)
    assert code == 1 and f"/store/{gone[0]}" in out


def test_a_dataset_that_is_a_link_to_nothing_is_named(data):
    dangle(data / "mine", "/store/mine")
    refusal(lambda: parts(data), data / "mine", "/store/mine")


@pytest.mark.usefixtures("without_pictures")
def test_predict_names_what_it_could_not_read(data):
    assert_succeeded(train(data, "--exp", "a"))
    images = data / "mine" / "images_test"
    dangle(images / "case00.png", "/store/case00.png")
    shutil.copy(images / "case03.png", images / "scan.webp")
    flags = ("--checkpoint", data / "model" / "mine+a+given" / "checkpoint.pt", "--device", "cpu")
    predict = REPO / "scripts" / "predict.py"
    out = images / "predicted"  # a folder of the program's own, below that of the images
    for _ in range(2):
        done = call(predict, *flags, "--images_root", images, "--save_root", out)
        assert done.code == 1
        assert "3 of 5" in done.out and "2 of 5" in done.err
        assert "/store/case00.png" in done.err and str(images / "scan.webp") in done.err
        assert sorted(path.name for path in out.glob("*.png")) == ["case01.png", "case02.png", "case03.png"]
    one = call(predict, *flags, "--images_root", images / "case00.png", "--save_root", data / "one")
    assert one.code == 1 and "/store/case00.png" in one.err


# --- Subfolders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("some", [True, False])
def test_images_in_subfolders_are_named_and_counted(data, some):
    images = data / "mine" / "images"
    for number, name in enumerate(sorted(path.name for path in images.iterdir())):
        if not some or number < 3:
            below = images / f"patient{number % 2}" / "visit"
            below.mkdir(parents=True, exist_ok=True)
            (images / name).rename(below / name)
    counts = ("patient0: 2", "patient1: 1") if some else ("patient0: 3", "patient1: 3")
    refusal(lambda: list_images(images), images, *counts, "prepare_data.py")
    refusal(lambda: parts(data), images, *counts)
    code, out = verify(data)
    assert code == 1 and counts[0] in out


# --- Several masks of one image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["x", "y"], ["x_mask", "x_mask_1", "y_mask"], {"x": ["x_mask", "x_mask_1"]}),
        (["x", "y"], ["x", "x_1", "y"], {"x": ["x", "x_1"]}),
        (
            ["benign (1)"],
            ["benign (1)_mask", "benign (1)_mask_1"],
            {"benign (1)": ["benign (1)_mask", "benign (1)_mask_1"]},
        ),
        (["x"], ["x_left", "x_right"], {"x": ["x_left", "x_right"]}),
        (["x"], ["left_x", "right_x"], {"x": ["left_x", "right_x"]}),
        (["img", "img_1"], ["img", "img_1"], {}),  # an image of its own
        (["case1", "case10"], ["case1", "case10"], {}),
        (["x", "y"], ["x_mask", "y_mask"], {}),  # another name, but one each
        (["x"], ["z", "q"], {}),
    ],
)
def test_masks_that_belong_to_one_image(images, masks, expected):
    assert several_of_one(images, masks) == expected


def test_several_masks_of_one_image_are_to_be_merged_not_removed(data):
    masks = data / "mine" / "masks"
    shutil.copy(masks / "case00.png", masks / "case00_1.png")
    refusal(lambda: parts(data), masks, "case00.png", "case00_1.png", "prepare_data.py", "merge")
    code, out = verify(data)
    assert code == 1 and "case00_1.png" in out and "merge" in out


def test_two_masks_of_one_stem_are_to_be_merged_too(tmp_path):
    for name in ("a.png", "a.bmp"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    refusal(lambda: list_images(tmp_path), "a.png", "a.bmp", "merge")


def test_a_lonely_mask_is_not_to_be_removed(tmp_path):
    images = {"a": tmp_path / "images" / "a.png"}
    masks = {"a": tmp_path / "masks" / "a.png", "b": tmp_path / "masks" / "b.png"}
    assert "remove" not in refusal(
        lambda: pair_by_stem(images, masks, tmp_path / "masks"), "b.png", tmp_path / "images"
    )


# --- Files that are fine ----------------------------------------------------------------------------------------------


def test_a_file_without_permission_is_not_to_be_removed(tmp_path):
    path = tmp_path / "a b.png"
    path.touch()
    text = str(unreadable(path, PermissionError(13, "Permission denied")))
    assert f"chmod u+r {shlex.quote(str(path))}" in text and "remove" not in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_readers_meet_a_file_without_permission(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    assert "chmod" in refusal(lambda: read_image(tmp_path / "a.png"), tmp_path / "a.png")


def test_a_disk_that_fails_is_not_the_files_fault(tmp_path):
    (tmp_path / "a.png").touch()
    text = str(unreadable(tmp_path / "a.png", OSError(5, "Input/output error")))
    assert "Input/output error" in text and "remove" not in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--2.png", "git annex get"),
        (b"GIF89a\1\0\1\0", "GIF"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"<!doctype html><html>", "web page"),
        (b"", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.npy"])
def test_a_file_that_holds_something_else_is_told_by_its_beginning(tmp_path, content, says, name):
    (tmp_path / name).write_bytes(content)
    assert says in refusal(lambda: read_image(tmp_path / name), tmp_path / name)


def test_an_image_above_the_limit_is_to_be_scaled_not_replaced(tmp_path, monkeypatch):
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr("dataloaders.pixels.MOST_PIXELS", 199)
    for read in (read_image, read_mask):
        text = refusal(lambda read=read: read(tmp_path / "a.png"), tmp_path / "a.png", "20 x 10")
        assert "scale it down" in text and "replace" not in text
    monkeypatch.setattr("dataloaders.pixels.MOST_PIXELS", 200)
    assert read_image(tmp_path / "a.png").shape == (10, 20, 1)


def test_pillow_does_not_warn_of_large_images(recwarn, tmp_path):
    Image.new("1", (10000, 9000)).save(tmp_path / "a.png")  # of which Pillow thinks a trap
    assert read_image(tmp_path / "a.png").shape == (9000, 10000, 1)
    assert not recwarn.list


def test_objects_in_an_array_are_to_be_stored_as_numbers(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, "a"], object), allow_pickle=True)
    text = refusal(lambda: read_image(tmp_path / "a.npy"), tmp_path / "a.npy", "objects")
    assert "remove" not in text


def test_an_hdf5_file_that_is_being_written_is_not_to_be_removed(tmp_path):
    path = write_mmis(tmp_path) / "testing" / "test00.h5"
    with h5py.File(path, "a", locking=True):
        code = f"from pathlib import Path; from dataloaders.mmis import read_case; read_case(Path({str(path)!r}), 4, 2)"
        done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "UserError" in last and str(path) in last and "another program" in last and "replace" not in last
    read_case(path, 4, 2)


# --- Volumes with the slices along another axis -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sizes", "axis"),
    [
        ((3, 64, 64), {(64, 64)}, 0),
        ((64, 64, 3), {(64, 64)}, 2),
        ((64, 3, 64), {(64, 64)}, 1),
        ((240, 240, 155), {(240, 240)}, 2),
        ((155, 240, 240), {(240, 240)}, 0),
        ((53, 37, 4), {(37, 53)}, 2),  # (W,H,S), as nibabel has it
        ((64, 64, 64), {(64, 64)}, 0),
        ((40, 64, 64), {(40, 64), (64, 64)}, 0),  # either way a training slice: read as it is
        ((256, 256, 20), {(128, 128)}, 2),  # of another size than training, but 20 is no side of an image
        ((20, 256, 256), {(128, 128)}, 0),
        ((256, 256, 100), {(128, 128)}, None),
        ((3, 256, 3), {(128, 128)}, None),
        ((256, 256, 3), set(), None),
    ],
)
def test_the_axis_of_the_slices_by_the_size_of_the_training_slices(shape, sizes, axis):
    assert slice_axis(shape, sizes) == axis


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("swapped", [True, False])
def test_the_order_that_an_error_names_works_when_typed(tmp_path, axis, swapped):
    right = np.arange(4 * 37 * 53).reshape(4, 37, 53)
    stored = np.moveaxis(right.transpose(0, 2, 1) if swapped else right, 0, axis)
    text = refusal(lambda: check_axes(tmp_path / "a.h5", stored.shape, {(37, 53)}), tmp_path / "a.h5", stored.shape)
    order = re.search(r"array\.transpose\((\d), (\d), (\d)\)", text)
    np.testing.assert_array_equal(stored.transpose(*map(int, order.groups())), right)


@pytest.fixture
def slices_last(tmp_path):
    """MMIS-2024 in miniature, whose training slices are 40x48 and whose one test volume has its 3 slices last."""
    root = write_mmis(tmp_path)
    rng = np.random.default_rng(0)
    shutil.rmtree(root / "training_2d")
    shutil.rmtree(root / "validation")
    for index in range(12):
        content = {key: values[0] for key, values in draw_volume(rng, 1, 40, 48).items()}
        write_h5(root / "training_2d" / f"case{index // 3:02}_{index % 3}.h5", content)
    shutil.rmtree(root / "testing")
    volume = draw_volume(rng, 3, 40, 48)
    write_h5(root / "testing" / "a.h5", {key: np.moveaxis(values, 0, -1) for key, values in volume.items()})
    return root


def test_volumes_with_the_slices_last_are_refused(slices_last):
    slices = list_slices(slices_last / "training_2d").values()
    path = slices_last / "testing" / "a.h5"
    refusal(lambda: MMISCases(path.parent, 4, 2, 32, slices), path, "(40, 48, 3)", "(slices,H,W)", "axis 2")
    flags = ("--datasets", "MMIS", "--data_root", slices_last.parent, "--image_size", 32, "--workers", 1)
    outcome = call(VERIFY, *flags)
    assert outcome.code == 1 and "error: testing/a.h5: arrays of shape (40, 48, 3)" in outcome.out


def test_the_log_says_how_many_slices_of_which_size_are_read(slices_last, capsys):
    """Where the axes do not tell: training slices of other sizes."""
    MMISCases(slices_last / "testing", 4, 2, 32)
    assert "40 slices of 48x3" in capsys.readouterr().out


def test_a_training_slice_with_an_axis_behind_says_how_to_take_it_away(slices_last):
    path = slices_last / "training_2d" / "case00_0.h5"
    write_h5(path, {key: values[..., None] for key, values in read_keys(path).items()})
    refusal(lambda: read_slice(path, 4, 2), path, "(40, 48, 1)", "(H,W)")


def read_keys(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {key: file[key][()] for key in file}
