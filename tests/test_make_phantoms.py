"""The phantom set as its users meet it: files in the training layout, reproducible, worth training on."""

import json
import sys

import cv2
import numpy as np
import pytest
from conftest import REPO, run_script
from PIL import Image

from utils.commands.errors import UserError

sys.path.insert(0, str(REPO / "scripts"))
import make_phantoms

SCRIPT = REPO / "scripts" / "make_phantoms.py"


def make(root, *arguments):
    """Run make_phantoms in this process: a few small images, unless ``arguments`` say otherwise."""
    small = ["--train", "4", "--test", "2", "--image_size", "48", "--workers", "1"]
    make_phantoms.main(["--save_root", str(root), *small, *arguments])


def contents(root):
    """Path below ``root`` -> bytes, of every PNG."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def drawn():
    """90 (image, mask) pairs, as many as six runs of images of which one has no lesion."""
    return [make_phantoms.phantom(0, "train", index, 96) for index in range(90)]


def test_layout_sizes_and_values(tmp_path, capsys):
    make(tmp_path / "phantom")
    files = contents(tmp_path / "phantom")
    train, test = [f"train_{index:04}" for index in range(4)], [f"test_{index:04}" for index in range(2)]
    stems = {"images": train, "masks": train, "images_test": test, "masks_test": test}
    assert set(files) == {f"{folder}/{stem}.png" for folder in stems for stem in stems[folder]}
    for name in files:
        with Image.open(tmp_path / "phantom" / name) as image:
            assert (image.mode, image.size) == ("L" if name.startswith("masks") else "RGB", (48, 48))
            if image.mode == "L":
                assert set(np.unique(np.asarray(image))) <= {0, 255}
    settings = json.loads((tmp_path / "phantom" / "settings.json").read_text())
    assert settings == {"train": 4, "test": 2, "image_size": 48, "seed": 0}
    printed = capsys.readouterr().out
    assert "6 images" in printed and "without lesion" in printed and "mean lesion share of pixels" in printed


def test_files_hold_what_was_drawn(tmp_path):
    make(tmp_path)
    for split, images, masks in (("train", "images", "masks"), ("test", "images_test", "masks_test")):
        image, mask = make_phantoms.phantom(0, split, 1, 48)
        assert np.array_equal(np.asarray(Image.open(tmp_path / images / f"{split}_0001.png")), image)  # RGB, not BGR
        assert np.array_equal(np.asarray(Image.open(tmp_path / masks / f"{split}_0001.png")), mask)


def test_same_bytes_whatever_workers_and_counts(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two", "--workers", "2", "--train", "6")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert set(two) - set(one) == {f"{folder}/train_000{i}.png" for folder in ("images", "masks") for i in (4, 5)}
    assert all(two[name] == data for name, data in one.items())


def test_images_differ_by_index_split_and_seed():
    keys = [(0, "train", 0), (0, "train", 1), (0, "test", 0), (1, "train", 0)]
    assert len({make_phantoms.phantom(*key, 48)[0].tobytes() for key in keys}) == len(keys)


def test_share_without_lesion_and_lesion_sizes(drawn):
    shares = np.array([(mask > 0).mean() for _, mask in drawn])
    assert (shares == 0).sum() == 6  # exactly one in each run of 15
    assert 0.15 < shares.mean() < 0.35
    assert shares.max() < 0.75
    lesions = [cv2.connectedComponents(mask)[0] - 1 for _, mask in drawn]
    assert max(lesions) == 3
    diameters = [
        np.sqrt(4 / np.pi * area) / 96
        for _, mask in drawn
        for area in cv2.connectedComponentsWithStats(mask)[2][1:, cv2.CC_STAT_AREA]
    ]
    assert np.mean([0.3 <= diameter <= 0.8 for diameter in diameters]) > 0.75
    assert min(diameters) > 0.05


def boundary_contrast(image, mask):
    """Mean gradient magnitude along the outline of ``mask``, over that elsewhere."""
    grey = cv2.GaussianBlur(image.astype(np.float32).mean(axis=2), (0, 0), 1)
    gradient = np.hypot(*np.gradient(grey))
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return gradient[outline].mean() / gradient[~outline].mean()


def test_outline_is_visible_where_the_mask_says(drawn):
    lesions = [(image, mask) for image, mask in drawn if mask.any()]
    contrast = np.array([boundary_contrast(image, mask) for image, mask in lesions])
    assert np.mean(contrast > 1.5) > 0.85
    turned = np.array([boundary_contrast(image, np.ascontiguousarray(mask[::-1, ::-1])) for image, mask in lesions])
    assert np.mean(turned > 1.5) < 0.2  # the measure tells an outline from none
    assert np.mean(contrast > turned) > 0.95


def test_a_threshold_does_not_tell_a_lesion(drawn):
    """The best threshold on any one colour channel, chosen per image with the mask in hand, stays far from it."""

    def best_dice(image, mask):
        found = [
            side(channel, level)
            for channel in np.moveaxis(image, 2, 0)
            for level in np.percentile(channel, range(5, 100, 5))
            for side in (np.less, np.greater)
        ]
        return max(2 * (seg & (mask > 0)).sum() / (seg.sum() + (mask > 0).sum()) for seg in found)

    assert np.mean([best_dice(image, mask) for image, mask in drawn if mask.any()]) < 0.75


def test_second_run_skips_and_an_incomplete_set_is_completed(tmp_path, capsys):
    make(tmp_path)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    capsys.readouterr()
    make(tmp_path)
    assert "all 6 images are there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times
    (tmp_path / "masks" / "train_0002.png").unlink()
    make(tmp_path)
    assert "skipped" not in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_other_settings_are_refused_or_replace_all(tmp_path, capsys):
    make(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"was made with .*--overwrite"):
        make(tmp_path, "--train", "2")
    assert contents(tmp_path) == before
    (tmp_path / "masks_DE").mkdir()
    make(tmp_path, "--train", "2", "--overwrite")
    after = contents(tmp_path)
    assert len(after) == 8 and all(before[name] == data for name, data in after.items())
    assert "to be made again: masks_DE" in capsys.readouterr().out


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "patient.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"holds patient\.jpg: choose another --save_root"):
        make(tmp_path, "--overwrite")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["patient.jpg"]


@pytest.mark.parametrize(
    ("flag", "value", "least"),
    [("train", 0, 1), ("test", -1, 1), ("image_size", 31, 32), ("seed", -1, 0)],
)
def test_bad_numbers_are_refused(tmp_path, flag, value, least):
    with pytest.raises(UserError, match=f"--{flag} must be at least {least}, got {value}"):
        make(tmp_path / "phantom", f"--{flag}", str(value))
    assert not (tmp_path / "phantom").exists()


def test_smallest_size_can_be_drawn():
    for index in range(60):
        image, mask = make_phantoms.phantom(3, "test", index, 32)
        assert image.shape == (32, 32, 3) and mask.shape == (32, 32)


def test_exit_code_and_run_from_inside_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(SCRIPT.parent)
    command = ("--save_root", tmp_path, "--train", 2, "--test", 1, "--image_size", 32, "--workers", 1)
    assert run_script(*command, script="make_phantoms.py").returncode == 0
    refused = run_script(*command, "--seed", 1, script="make_phantoms.py")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr and "Traceback" not in refused.stderr
