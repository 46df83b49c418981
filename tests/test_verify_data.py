"""Checks of datasets: every planted fault is found, alone and among others, and errors are what the loaders refuse."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import REAL_DATA, REPO, blob, loaded, write_dataset
from PIL import Image
from verifying import SIZE, Report, cut, verified, without_likeness

from dataloaders.dataset_folder import common_format, find_parts
from dataloaders.datasets import Layout
from dataloaders.files import list_images, read_image
from dataloaders.noisy_folder import load_cases, training_source
from dataloaders.slic import find_maps, image_sources
from dataloaders.verification import duplicates
from dataloaders.verification.checks import CHECKS
from scripts import generate_SLIC, verify_data
from utils.commands.errors import UserError
from utils.masks.superpixels import slic_segments

NOISE = ("clean", "DE")
TOGETHER = "all images together"  # what is wrong with none alone


@pytest.fixture
def verify(tmp_path) -> Callable[..., Report]:
    """Check a dataset below tmp_path/data."""
    return partial(verified, tmp_path / "data")


@pytest.fixture
def folder(tmp_path, capsys) -> Path:
    """A flawless dataset in Kvasir's layout, with S_DE masks."""
    folder = write_dataset(tmp_path / "data", train=8, test=3, image_size=SIZE)
    (folder / "masks_DE").mkdir()
    for path in (folder / "masks").iterdir():
        Image.open(path).save(folder / "masks_DE" / path.name)
    cut(folder, "--images_root", folder / "images", "--save_root", folder / "images_SLIC", "--overwrite")
    capsys.readouterr()
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def save(path: Path, values: np.ndarray, **options: object) -> None:
    Image.fromarray(values).save(path, **options)


def add_pair(folder: Path, name: str, image: np.ndarray, part: str = "") -> None:
    """One more image, with a mask, and with superpixels where it is for training."""
    save(folder / f"images{part}" / f"{name}.png", image)
    mask = blob(np.random.default_rng(5))[1]
    for masks in [f"masks{part}"] if part else ["masks", "masks_DE"]:
        save(folder / masks / f"{name}.png", mask)
    if not part:
        cut(folder, "--images_root", folder / "images", "--save_root", folder / "images_SLIC")


def loaders_refuse(
    folder: Path, num_classes: int = 2, asked: int | None = None, slic_root: Path | None = None, noise: tuple = NOISE
) -> bool:
    """Whether training, step by step as in its script, refuses the clean masks, the S_DE masks or the test set.

    Superpixels are made where training would make them, so this comes after the check. asked: --channels.
    """
    for kind in noise:
        try:
            parts = find_parts(folder, Layout(), kind)
            slic = slic_root or folder / "images_SLIC"
            maps = find_maps(image_sources(parts.given), folder / "images", slic, SIZE)
            channels, _ = common_format(parts.images, asked)
            loaded(training_source(parts.train, maps, SIZE, channels, num_classes))
            load_cases(parts.cases, SIZE, channels, num_classes)
        except UserError:
            return True
    return False


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_a_clean_set_passes_and_its_facts_are_told(folder, verify):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = verify()
    assert (result.code, result.found()) == (0, {})
    assert (result.report["errors"], result.report["warnings"]) == (0, 0)
    facts = result.report["facts"]
    assert facts["images"]["train"] == {"count": 8, "sizes": {"48x40": 8}, "formats": {"8-bit RGB": 8}}
    assert facts["images"]["test"]["count"] == 3
    assert facts["superpixels"] == {"n_segments": 64, "compactness": 10.0, "sigma": 1.0, "image_size": SIZE}
    shares = [(pixels(path) > 0).mean() for path in (folder / "masks").iterdir()]
    assert facts["class_shares"]["masks"]["masks"] == 8
    np.testing.assert_allclose(
        facts["class_shares"]["masks"]["classes"], [1 - np.mean(shares), np.mean(shares)], atol=1e-6
    )
    expected = [min(shares), np.median(shares), max(shares)]
    np.testing.assert_allclose(facts["class_shares"]["masks"]["foreground"], expected, atol=1e-6)
    assert "0 errors, 0 warnings: training will read it" in result.text
    assert not loaders_refuse(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_file_managers_leave_is_no_matter(folder, verify):
    for kind in ("images", "masks"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._case00.png"):
            (folder / kind / name).write_bytes(b"\0")
    assert verify().found() == {}
    assert not loaders_refuse(folder)


@pytest.mark.parametrize("instead", [None, b"no folder"])
def test_a_folder_that_is_missing(folder, verify, instead):
    shutil.rmtree(folder / "masks_test")
    if instead:
        (folder / "masks_test").write_bytes(instead)
    result = verify()
    assert (result.code, result.found()) == (1, {"files": [("error", "masks_test")]})
    assert "folder" in result.messages("files")
    assert loaders_refuse(folder)


def truncated_image(folder):
    path = folder / "images" / "case02.png"
    path.write_bytes(path.read_bytes()[:300])
    return {"readable": [("error", "images/case02.png")]}


def corrupt_test_mask(folder):
    (folder / "masks_test" / "case01.png").write_bytes(b"no PNG")
    return {"readable": [("error", "masks_test/case01.png")]}


def renamed_mask(folder):
    (folder / "masks" / "case03.png").rename(folder / "masks" / "case03_mask.png")
    return {"names": [("error", "images/case03.png"), ("error", "masks/case03_mask.png")]}


def two_of_a_stem(folder):
    save(folder / "images_test" / "case00.jpg", blob(np.random.default_rng(6))[0])
    return {"names": [("error", "images_test/case00.png")]}


def smaller_mask(folder):
    path = folder / "masks_DE" / "case04.png"
    save(path, pixels(path)[:-1])
    return {"sizes": [("error", "masks_DE/case04.png")]}


def third_grey(folder):
    mask = pixels(folder / "masks" / "case05.png").copy()
    mask[:9, :9] = 100
    save(folder / "masks" / "case05.png", mask)
    return {"values": [("error", "masks/case05.png")]}


def mask_with_artefacts(folder):
    mask = pixels(folder / "masks_DE" / "case06.png")
    save(folder / "masks_DE" / "case06.png", cv2.GaussianBlur(mask, (0, 0), 0.7))
    return {"values": [("warning", "masks_DE/case06.png")]}


def empty_and_full_masks(folder):
    save(folder / "masks_DE" / "case00.png", np.zeros((40, 48), np.uint8))
    save(folder / "masks_DE" / "case01.png", np.full((40, 48), 255, np.uint8))
    return {"blank_masks": [("warning", "masks_DE/case00.png"), ("warning", "masks_DE/case01.png")]}


def vanishing_mask(folder):
    """At 32x32, nearest neighbour reads neither the third row nor the third column of 48x40."""
    mask = np.zeros((40, 48), np.uint8)
    mask[2, 2] = 255
    save(folder / "masks_DE" / "case03.png", mask)
    return {"blank_masks": [("warning", "masks_DE/case03.png")]}


def blank_image(folder):
    save(folder / "images_test" / "case02.png", np.full((40, 48, 3), 9, np.uint8))
    return {"blank_images": [("warning", "images_test/case02.png")]}


def grey_image(folder):
    path = folder / "images_test" / "case01.png"
    Image.open(path).convert("L").save(path)
    return {"formats": [("error", TOGETHER), ("warning", "images_test/case01.png")]}


def image_of_five_channels(folder):
    path = folder / "images" / "case02.png"
    image = pixels(path)
    path.unlink()
    np.save(path.with_suffix(".npy"), np.dstack([image, image[..., :2]]).astype(np.float32))
    cut(folder, "--images_root", folder / "images", "--save_root", folder / "images_SLIC", "--overwrite")
    return {"formats": [("error", TOGETHER), ("warning", "images/case02.npy")]}


def deeper_image(folder):
    path = folder / "images" / "case03.png"
    image = pixels(path).astype(np.uint16) * 16
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), image, photometric="rgb")
    cut(folder, "--images_root", folder / "images", "--save_root", folder / "images_SLIC", "--overwrite")
    return {"formats": [("warning", "images/case03.tif")]}


def image_with_alpha(folder):
    path = folder / "images" / "case04.png"
    Image.open(path).convert("RGBA").save(path)
    return {"formats": [("warning", "images/case04.png")]}


def array_of_gaps(folder):
    path = folder / "images_test" / "case00.png"
    image = pixels(path).astype(np.float32)
    image[0, 0] = np.nan
    path.unlink()
    np.save(path.with_suffix(".npy"), image)
    return {"readable": [("error", "images_test/case00.npy")]}


def stack_of_slices(folder):
    path = folder / "images_test" / "case00.png"
    path.unlink()
    tifffile.imwrite(path.with_suffix(".tif"), np.zeros((5, 40, 48), np.uint16), imagej=True, metadata={"axes": "ZYX"})
    return {"readable": [("error", "images_test/case00.tif")]}


def truncated_array_mask(folder):
    path = folder / "masks_test" / "case00.png"
    np.save(path.with_suffix(".npy"), pixels(path))
    path.unlink()
    path = path.with_suffix(".npy")
    path.write_bytes(path.read_bytes()[:200])
    return {"readable": [("error", "masks_test/case00.npy")]}


def array_mask_of_fractions(folder):
    path = folder / "masks_test" / "case01.png"
    np.save(path.with_suffix(".npy"), pixels(path) / 510)
    path.unlink()
    return {"values": [("error", "masks_test/case01.npy")]}


def channels_first_mask(folder):
    path = folder / "masks" / "case07.png"
    np.save(path.with_suffix(".npy"), pixels(path).T)
    path.unlink()
    return {"sizes": [("error", "masks/case07.npy")]}


def no_test_set(folder):
    for name in ("images_test", "masks_test"):
        shutil.rmtree(folder / name)
    return {"files": [("note", "images_test")]}


def no_test_masks(folder):
    shutil.rmtree(folder / "masks_test")
    return {"files": [("error", "masks_test")]}


def no_superpixels(folder):
    shutil.rmtree(folder / "images_SLIC")
    return {"segments": [("note", "images_SLIC")]}


def no_superpixels_in_the_folder(folder):
    for path in (folder / "images_SLIC").glob("*.npy"):
        path.unlink()
    return {"segments": [("note", "images_SLIC")]}


def file_in_place_of_superpixels(folder):
    shutil.rmtree(folder / "images_SLIC")
    (folder / "images_SLIC").write_text("")
    return {"segments": [("error", "images_SLIC")]}


def link_to_no_superpixels(folder):
    shutil.rmtree(folder / "images_SLIC")
    (folder / "images_SLIC").symlink_to(folder / "nowhere")
    return {"segments": [("error", "images_SLIC")]}


def equal_training_images(folder):
    add_pair(folder, "copy", pixels(folder / "images" / "case07.png"))
    return {"exact_train": [("warning", "images/copy.png")]}


def equal_image_in_test(folder):
    add_pair(folder, "again", pixels(folder / "images" / "case01.png"), "_test")
    return {"exact_between": [("warning", "images_test/again.png")]}


def similar_image_in_test(folder):
    brighter = pixels(folder / "images" / "case06.png") * 0.8 + 30
    add_pair(folder, "bright", brighter.astype(np.uint8), "_test")
    return {"near_between": [("warning", "images_test/bright.png")]}


def similar_training_image(folder):
    image = pixels(folder / "images" / "case05.png")
    compressed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    add_pair(folder, "jpeg", cv2.imdecode(compressed, cv2.IMREAD_COLOR))
    return {"near_train": [("warning", "images/jpeg.png")]}


def missing_superpixels(folder):
    (folder / "images_SLIC" / "case00.npy").unlink()
    return {"segments": [("note", "images_SLIC")]}


def missing_superpixels_of_a_folder_of_others(folder):
    record = folder / "images_SLIC" / "settings.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"images": "../others"}))
    (folder / "images_SLIC" / "case00.npy").unlink()
    return {"segments": [("error", "images_SLIC")]}


def superpixels_of_another_size(folder):
    np.save(folder / "images_SLIC" / "case01.npy", np.zeros((16, 16), np.int32))
    return {"segments": [("error", "images_SLIC/case01.npy")]}


def corrupt_superpixels(folder):
    (folder / "images_SLIC" / "case03.npy").write_bytes(b"\x93NUMPY")
    return {"segments": [("error", "images_SLIC/case03.npy")]}


def superpixels_left_over(folder):
    np.save(folder / "images_SLIC" / "gone.npy", np.zeros((SIZE, SIZE), np.int32))
    return {"segments": [("warning", "images_SLIC/gone.npy")]}


def superpixels_of_another_image(folder):
    a, b = (folder / "images_SLIC" / f"case0{index}.npy" for index in (4, 5))
    first = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(first)
    return {"stale_segments": [("warning", "images_SLIC/case04.npy"), ("warning", "images_SLIC/case05.npy")]}


def superpixels_of_other_settings(folder):
    image = cv2.resize(pixels(folder / "images" / "case06.png"), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    np.save(folder / "images_SLIC" / "case06.npy", slic_segments(image, 64, compactness=0.5))
    return {"stale_segments": [("warning", "images_SLIC/case06.npy")]}


def foreign_file(folder):
    (folder / "masks" / "notes.txt").write_text("checked on Monday")
    return {"files": [("warning", "masks/notes.txt")]}


FAULTS = [
    *(truncated_image, corrupt_test_mask, renamed_mask, two_of_a_stem, smaller_mask, third_grey, mask_with_artefacts),
    *(empty_and_full_masks, vanishing_mask, blank_image, grey_image, equal_training_images, equal_image_in_test),
    *(similar_image_in_test, similar_training_image, missing_superpixels, superpixels_of_another_size),
    *(corrupt_superpixels, superpixels_left_over, superpixels_of_another_image, superpixels_of_other_settings),
    foreign_file,
]
# Those that would hide others.
ALONE = [
    *(image_of_five_channels, deeper_image, image_with_alpha, array_of_gaps, stack_of_slices),
    *(truncated_array_mask, array_mask_of_fractions, channels_first_mask),
    *(no_test_set, no_test_masks, no_superpixels, no_superpixels_in_the_folder, file_in_place_of_superpixels),
    *(link_to_no_superpixels, missing_superpixels_of_a_folder_of_others),
]


@pytest.mark.parametrize("plant", FAULTS + ALONE, ids=lambda plant: plant.__name__)
def test_a_fault_is_found_alone_and_is_an_error_where_the_loaders_refuse(folder, verify, plant):
    expected = plant(folder)
    result = verify()
    assert result.found() == expected
    errors = sum(level == "error" for found in expected.values() for level, _ in found)
    assert result.report["errors"] == errors
    assert result.code == (1 if errors else 0) == loaders_refuse(folder)
    ((check, found),) = expected.items()
    row = next(line for line in result.text.splitlines() if line.startswith(CHECKS[check]))
    assert row.removeprefix(CHECKS[check]).split()[:2] == [found[0][0], str(len(found))]
    assert found[0][1] in row


def test_all_faults_are_found_at_once(folder, verify):
    # Those that add images come first, for they need the whole folder; the image that is swapped is read last.
    adding = {equal_training_images, equal_image_in_test, similar_image_in_test, similar_training_image}
    expected: dict[str, list] = {}
    for plant in sorted(FAULTS, key=lambda plant: plant not in adding):
        for check, found in plant(folder).items():
            expected[check] = sorted(expected.get(check, []) + found)
    result = verify("--details", 100)
    assert result.code == 1
    assert result.found() == expected
    assert all(name in result.text for found in expected.values() for _, name in found)


def test_an_error_outweighs_warnings(folder, verify):
    mask_with_artefacts(folder)
    path = folder / "masks_test" / "case02.png"
    save(path, pixels(path) // 2)
    result = verify()
    assert result.found() == {"values": [("error", "masks_test/case02.png"), ("warning", "masks_DE/case06.png")]}
    assert next(c["result"] for c in result.report["checks"] if c["check"] == CHECKS["values"]) == "error"


def test_missing_folders_are_all_named(folder, verify):
    for name in ("masks_test", "images_SLIC"):
        (folder / name).rename(folder / f"{name} away")
    for path in (folder / "images_test").iterdir():
        path.unlink()
    result = verify()
    assert result.code == 1
    assert result.found() == {
        "files": [("error", "images_test"), ("error", "masks_test")],
        "segments": [("note", "images_SLIC")],
    }
    assert next(c["result"] for c in result.report["checks"] if c["check"] == CHECKS["stale_segments"]) == "-"


def test_an_empty_dataset_is_an_error(tmp_path, verify):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    result = verify(datasets="mine")
    assert result.code == 1
    assert result.found()["files"] == [("error", "images"), ("error", "masks"), ("note", "images_test")]


def test_what_training_does_without_is_a_note(folder, verify):
    no_test_set(folder)
    no_superpixels(folder)
    result = verify()
    assert result.found() == {"files": [("note", "images_test")], "segments": [("note", "images_SLIC")]}
    assert (result.code, result.report["errors"], result.report["warnings"]) == (0, 0, 0)
    assert "20%" in result.messages("files")
    assert "0 errors, 0 warnings: training will read it" in result.text
    unchecked = {check["check"] for check in result.report["checks"] if check["result"] == "-"}
    names = ("stale_segments", "exact_test", "exact_between", "near_test", "near_between")
    assert unchecked == {CHECKS[name] for name in names}
    assert not (folder / "images_SLIC").exists()
    assert not loaders_refuse(folder)


def test_nothing_can_be_held_out_of_one_image(folder, verify):
    no_test_set(folder)
    for path in (path for kind in ("images", "masks", "masks_DE") for path in (folder / kind).iterdir()):
        if path.stem != "case00":
            path.unlink()
    shutil.rmtree(folder / "images_SLIC")
    result = verify()
    assert result.code == 1 and loaders_refuse(folder)
    assert result.found()["files"] == [("error", "images"), ("note", "images_test")]
    assert "nothing can be held out" in result.messages("files")


def test_superpixels_that_cannot_be_written_are_an_error(folder, tmp_path, verify):
    (tmp_path / "file").write_text("")
    for place, level in ((tmp_path / "file" / "maps", "error"), (tmp_path / "new" / "maps", "note")):
        result = verify("--slic_root", place)
        assert result.found() == {"segments": [(level, str(place))]}
        assert loaders_refuse(folder, slic_root=place) == (level == "error")
    assert "--slic_root" in verify("--slic_root", tmp_path / "file" / "maps").messages("segments")


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every folder is writable")
def test_superpixels_in_a_folder_without_permission_are_an_error(folder, verify):
    no_superpixels(folder)
    folder.chmod(0o500)
    try:
        result = verify()
        assert result.found() == {"segments": [("error", "images_SLIC")]} and loaders_refuse(folder)
    finally:
        folder.chmod(0o700)


def test_mixed_channels_name_one_of_each_and_channels_mends_grey_and_colour(folder, verify):
    grey_image(folder)
    message = verify().messages("formats")
    assert f"{folder / 'images_test' / 'case01.png'} has 1 channel" in message
    assert f"{folder / 'images' / 'case00.png'} has 3 channels" in message and "--channels 3" in message
    for channels in (1, 3):
        result = verify("--channels", channels)
        assert (result.code, result.found()) == (0, {"formats": [("warning", "images_test/case01.png")]})
        assert result.report["facts"]["channels"] == channels
        assert not loaders_refuse(folder, asked=channels)
    image_of_five_channels(folder)
    result = verify("--channels", 3)
    assert result.found()["formats"] == [
        *(("error", "images/case02.npy"), ("warning", "images/case02.npy"), ("warning", "images_test/case01.png")),
    ]
    assert "5 channels, expected 3" in result.messages("formats") and loaders_refuse(folder, asked=3)


def test_grey_scans_among_colour_are_no_error_in_busuc(folder, verify):
    grey_image(folder)
    folder.rename(folder.with_name("BUSUC"))
    result = verify(datasets="busuc")
    assert (result.code, result.found()) == (0, {"formats": [("warning", "images_test/case01.png")]})


def write_tiff(path: Path, image: np.ndarray) -> None:
    tifffile.imwrite(path, image[..., 0].astype(np.uint16) * 16)


def write_five_pages(path: Path, image: np.ndarray) -> None:
    pages = np.stack([image[..., index % 3] for index in range(5)])
    tifffile.imwrite(path, pages, photometric="minisblack")


def write_five_floats(path: Path, image: np.ndarray) -> None:
    np.save(path, np.dstack([image, image[..., :2] / 7.0]).astype(np.float32))


def write_palette(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).quantize(32).save(path)


@pytest.mark.parametrize(
    ("write", "suffix", "form", "channels", "intensities"),
    [
        (write_tiff, ".tif", "16-bit grey", 1, "percentiles"),
        (write_five_pages, ".TIFF", "8-bit 5 channels", 5, "8 bits, as stored"),
        (write_five_floats, ".npy", "32-bit float 5 channels", 5, "percentiles"),
        (write_palette, ".png", "8-bit palette", 3, "8 bits, as stored"),
    ],
    ids=["16-bit TIFF", "TIFF of pages", "npy", "palette"],
)
def test_images_of_other_kinds(folder, verify, write, suffix, form, channels, intensities):
    """And masks as arrays; the likeness of the drawn blobs is no matter."""
    for path in [path for kind in ("images", "images_test") for path in (folder / kind).iterdir()]:
        image = pixels(path)
        path.unlink()
        write(path.with_suffix(suffix), image)
    for path in [path for kind in ("masks", "masks_test") for path in (folder / kind).iterdir()]:
        np.save(path.with_suffix(".npy"), pixels(path) > 0)
        path.unlink()
    cut(folder, "--images_root", folder / "images", "--save_root", folder / "images_SLIC", "--overwrite")
    result = verify()
    assert (result.code, without_likeness(result.found())) == (0, {})
    facts = result.report["facts"]
    assert facts["images"]["train"]["formats"] == {form: 8} and facts["images"]["train"]["sizes"] == {"48x40": 8}
    assert facts["channels"] == channels and intensities in facts["intensities"]
    assert f"channels {channels}; intensities: {facts['intensities']}" in result.text
    assert not loaders_refuse(folder)


def test_palette_masks_of_more_classes(folder, verify):
    for path in [path for kind in ("masks", "masks_DE", "masks_test") for path in (folder / kind).iterdir()]:
        classes = pixels(path) // 255
        classes[:4] = 2
        image = Image.frombytes("P", classes.shape[::-1], classes.tobytes())
        image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
        image.save(path)
    result = verify("--num_classes", 3)
    assert (result.code, result.found()) == (0, {}) and not loaders_refuse(folder, num_classes=3)
    result = verify()
    assert len(result.found()["values"]) == 19 and "--num_classes 3" in result.messages("values")
    assert loaders_refuse(folder)


def test_noise_type_chooses_the_masks(folder, verify):
    third_grey(folder)
    assert verify("--noise_type", "DE").code == 0
    assert verify("--noise_type", "given").code == 1
    absent = verify("--noise_type", "02")
    assert absent.code == 1 and absent.found() == {"files": [("error", Layout().shrunk)]}


def test_more_classes(folder, verify):
    for masks in ("masks", "masks_DE", "masks_test"):
        for path in (folder / masks).iterdir():
            save(path, pixels(path) // 255)
    assert "class 2 occurs in none of 8 masks" in verify("--num_classes", 3).messages("classes")
    for masks in ("masks", "masks_DE", "masks_test"):
        values = pixels(folder / masks / "case00.png").copy()
        values[:4] = 2
        save(folder / masks / "case00.png", values)
    assert verify("--num_classes", 3).found() == {}
    assert verify().found() == {"values": [("error", f"{m}/case00.png") for m in ("masks", "masks_DE", "masks_test")]}
    assert loaders_refuse(folder) and not loaders_refuse(folder, num_classes=3)


def test_a_renamed_mask_comes_with_the_most_similar_name(folder, verify):
    renamed_mask(folder)
    assert "case03_mask.png" in verify().messages("names").splitlines()[0]


@pytest.mark.parametrize("content", [None, "{", '{"n_segments": 64}', "[]", '{"n_segments": "many"}'])
def test_superpixels_of_unknown_origin_are_a_warning(folder, verify, content):
    record = folder / "images_SLIC" / "settings.json"
    record.unlink() if content is None else record.write_text(content)
    result = verify()
    assert result.found() == {"stale_segments": [("warning", "images_SLIC/settings.json")]}
    assert "was not checked" in result.messages("stale_segments")


def test_impossible_settings_of_superpixels_are_a_warning(folder, verify):
    record = folder / "images_SLIC" / "settings.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "sigma": -1}))
    assert "out of range" in verify().messages("stale_segments")


def test_another_training_size_has_other_superpixels(folder, verify):
    """Which training makes beside those that are there."""
    result = verify("--image_size", 48)
    assert result.code == 0 and result.found() == {"segments": [("note", "images_SLIC_48")]}
    slic = ("--save_root", folder / "images_SLIC_48", "--image_size", 48, "--n_segments", 64, "--workers", 1)
    generate_SLIC.main(list(map(str, ("--images_root", folder / "images", *slic))))
    assert verify("--image_size", 48).found() == {} == verify().found()
    np.save(folder / "images_SLIC_48" / "case01.npy", np.zeros((SIZE, SIZE), np.int32))
    assert verify("--image_size", 48).found() == {"segments": [("error", "images_SLIC_48/case01.npy")]}
    result = verify("--image_size", 48, "--slic_root", folder / "images_SLIC")
    assert result.code == 1 and len(result.found()["segments"]) == 8


def test_superpixels_may_lie_elsewhere(folder, tmp_path, verify):
    (folder / "images_SLIC").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "case02.npy").unlink()
    result = verify("--slic_root", tmp_path / "elsewhere")
    # Their record says where the images were from there, and so that they are of others.
    assert result.found() == {"segments": [("error", str(tmp_path / "elsewhere"))]}
    (tmp_path / "elsewhere").rename(folder / "maps")
    assert verify("--slic_root", folder / "maps").found() == {"segments": [("note", "maps")]}


def test_any_folder_of_masks(folder, tmp_path, verify):
    (folder / "masks_DE").rename(tmp_path / "student")
    artefacts = tmp_path / "student" / "case05.png"
    save(artefacts, pixels(artefacts) // 2)
    assert verify().found() == {}
    assert verify("--masks", tmp_path / "student").found() == {"values": [("error", str(artefacts))]}
    (tmp_path / "student").rename(folder / "student")
    result = verify("--masks", "student")
    assert result.code == 1 and result.found() == {"values": [("error", "student/case05.png")]}


def test_non_ascii_names(folder, verify):
    for kind in ("images", "masks", "masks_DE", "images_SLIC"):
        for path in [p for p in (folder / kind).iterdir() if p.stem in ("case00", "case01")]:
            path.rename(path.with_stem({"case00": "größe 大", "case01": "légende"}[path.stem]))
    assert verify().found() == {}
    path = folder / "masks" / "légende.png"
    path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    result = verify()
    assert result.code == 1 and len(result.found()["names"]) == 2
    assert "looks the same" in result.messages("names")
    assert "légende.png" in result.text


def test_names_that_are_no_text_do_not_stop_it(folder, tmp_path):
    """In a process of its own: a terminal that knows ASCII alone."""
    try:
        (folder / "images" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"broken")
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    (folder / "images" / "größe.png").write_bytes(b"broken")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, REPO / "scripts" / "verify_data.py", "--datasets", "kvasir", "--data_root"]
    result = subprocess.run(
        [*command, folder.parent, "--image_size", str(SIZE), "--workers", "2", "--json", tmp_path / "r.json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "caf\\udce9.png" in result.stdout and "gr\\xf6\\xdfe.png" in result.stdout
    # The one by its name; the other is unreadable and without 2 masks.
    assert json.loads((tmp_path / "r.json").read_text())["errors"] == 4


def test_workers_do_not_change_the_report(folder, verify):
    for plant in (truncated_image, equal_image_in_test, third_grey):
        plant(folder)
    alone = verify()
    assert verify("--workers", 2, "--details", 0).report == alone.report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--datasets", "nowhere"], "--datasets nowhere: no folder of that name"),
        (["--datasets", "LIDC"], "lidc: no such folder"),
        (["--datasets", "mmis"], "MMIS2024TASK1: no such folder"),
        (["--datasets", "lidc", "--noise_type", "DE"], "--noise_type has no meaning"),
        (["--datasets", "mmis", "--channels", "3"], "--channels has no meaning"),
        (["--datasets", "mmis", "--masks", "masks"], "--masks has no meaning"),
        (["--datasets", "Kvasir", "--masks", "nowhere"], "--masks nowhere"),
        (["--datasets", "Kvasir", "--raters", "4"], "--raters has no meaning"),
        (["--datasets", "Kvasir", "--data_root", "nowhere"], "--data_root nowhere: no such folder"),
    ],
)
def test_a_wrong_command_is_a_user_error(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        verify_data.main(["--data_root", str(folder.parent), *arguments])


def test_the_training_size_is_that_of_the_training_script(folder, capsys):
    verify_data.main(["--datasets", "kvasir", "--data_root", str(folder.parent), "--workers", "1"])
    assert "for training at --image_size 256\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--noise_type", "DE", "--masks", "masks"],
        ["--workers", "0"],
        ["--num_classes", "1"],
        ["--noise_type", "03"],
        [],
    ],
)
def test_flags_out_of_range_exit_with_two(arguments):
    with pytest.raises(SystemExit) as stop:
        verify_data.main([*(["--datasets", "x"] if arguments else []), *arguments])
    assert stop.value.code == 2


def test_a_report_that_cannot_be_written_exits_with_two(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        verify_data.main(
            ["--datasets", "kvasir", "--data_root", str(folder.parent), "--json", str(tmp_path / "file" / "r.json")]
        )


# --- Real images ------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(
    not all((REAL_DATA / name).is_dir() for name in ("Kvasir", "shenzhen", "lidc")),
    reason=f"no real images: {REAL_DATA} with Kvasir/, shenzhen/ and lidc/ is not there",
)


@real
def test_a_scene_recorded_twice_is_found_in_kvasir(tmp_path, verify):
    twice = {"train_0510", "train_0593", "train_0300", "train_0667"}
    for kind, count in (("images", 60), ("masks", 60), ("images_test", 30), ("masks_test", 30)):
        (tmp_path / "data" / "Kvasir" / kind).mkdir(parents=True)
        paths = sorted((REAL_DATA / "Kvasir" / kind).iterdir())
        for path in [*islice(paths, count), *(path for path in paths if path.stem in twice)]:
            (tmp_path / "data" / "Kvasir" / kind / path.name).symlink_to(path)
    result = verify("--image_size", 256)
    assert result.found() == {
        "segments": [("note", "images_SLIC")],
        "near_train": [("warning", "images/train_0593.jpg"), ("warning", "images/train_0667.jpg")],
    }


@real
def test_radiographs_of_different_people_are_no_copies():
    paths = [*islice(list_images(REAL_DATA / "shenzhen" / "img").values(), 0, None, 2)]
    prints = [duplicates.fingerprint(read_image(path)) for path in paths]
    hashes = np.array([image.hash for image in prints], np.uint64)
    candidates = np.bitwise_count(hashes[:, None] ^ hashes) <= duplicates.HASH_BITS
    assert candidates.sum() > 1.01 * len(paths)  # the hash alone would call some of them copies
    assert duplicates.near_copies(prints, ["train"] * len(paths), [path.stem for path in paths]) == []


@real
def test_the_real_lidc_has_no_fault(tmp_path, verify):
    slic = tmp_path / "slic"  # where the images are, nobody may write
    result = verify("--image_size", 128, "--slic_root", slic, datasets="lidc", data_root=REAL_DATA)
    assert result.code == 0 and result.found() == {"segments": [("note", str(slic))]}
    assert result.report["facts"]["images"]["train"]["count"] == 1469
