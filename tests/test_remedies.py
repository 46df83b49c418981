"""Remedies that messages name, applied as they stand: the error goes."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
from conftest import REPO, blob, load_program, write_dataset
from PIL import Image

from dataloaders.dataset_folder import check_size, common_format, find_dataset, find_parts
from dataloaders.files import list_images, read_mask
from dataloaders.pixels import read_stored
from utils.commands.errors import UserError
from utils.masks.geometry import IGNORED

ROWS, COLUMNS = np.mgrid[:40, :48]
STRIPES = COLUMNS // 12  # 0..3


def grey(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def palette(path: Path, indices: np.ndarray) -> None:
    """As PASCAL VOC has it: colours, with white for what has no label."""
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [0] * (251 * 3) + [224, 224, 192])
    image.save(path)


def of_levels(*levels: int) -> np.ndarray:
    return np.array(levels, np.uint8)[STRIPES * len(levels) // 4]


SMOOTH = 1 / (1 + np.exp((np.hypot(ROWS - 20, COLUMNS - 24) - 10) / 2))  # a probability map


class Masks(NamedTuple):
    """Masks that are refused, the flags to begin with, and what the remedy is to make of them."""

    write: Callable[[Path], object]
    name: str = "case00.png"
    flags: tuple[str, ...] = ()
    expected: np.ndarray | None = None


AMBIGUOUS = {
    "palette, 255 ignored": Masks(lambda path: palette(path, of_levels(0, 1, 255)), expected=of_levels(0, 1, IGNORED)),
    "palette of classes, 255 ignored": Masks(
        lambda path: palette(path, of_levels(0, 3, 2, 255)), expected=of_levels(0, 3, 2, IGNORED)
    ),
    "0/2": Masks(lambda path: grey(path, of_levels(0, 2)), expected=of_levels(0, 2)),
    "0/1/255": Masks(lambda path: grey(path, of_levels(0, 1, 255)), expected=of_levels(0, 1, IGNORED)),
    "0/1/2/255": Masks(lambda path: grey(path, of_levels(0, 1, 2, 255)), expected=of_levels(0, 1, 2, IGNORED)),
    "too few classes": Masks(
        lambda path: grey(path, of_levels(0, 1, 2, 3)), flags=("--num_classes", "3"), expected=of_levels(0, 1, 2, 3)
    ),
    "classes and 255": Masks(
        lambda path: grey(path, of_levels(0, 2, 255)), flags=("--num_classes", "3"), expected=of_levels(0, 2, IGNORED)
    ),
    "other levels": Masks(lambda path: grey(path, of_levels(0, 100, 200)), expected=of_levels(0, 1, 2)),
    "0/254": Masks(lambda path: grey(path, of_levels(0, 254)), expected=of_levels(0, 1)),
    "grey probabilities": Masks(
        lambda path: grey(path, (255 * SMOOTH).astype(np.uint8)), expected=(255 * SMOOTH).astype(np.uint8) >= 128
    ),
    "float probabilities": Masks(lambda path: np.save(path, SMOOTH), "case00.npy", expected=SMOOTH >= 0.5),
    "float probabilities, TIFF": Masks(
        lambda path: tifffile.imwrite(path, SMOOTH.astype(np.float32)), "case00.tif", expected=SMOOTH >= 0.5
    ),
}


def refusal(call: Callable) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def command_in(message: str, **places: object) -> list[str]:
    """The last command of scripts/prepare_data.py in a message, its places filled in, without the program."""
    text = re.findall("`python scripts/prepare_data.py (.*?)`", message)[-1]
    return [str(places.get(word, word)) for word in shlex.split(text)]


def prepare(arguments: list[str]) -> None:
    load_program(REPO / "scripts" / "prepare_data.py").main([*arguments, "--workers", "1", "--test_share", "0"])


def flags_of(arguments: list[str]) -> dict[str, int | None]:
    """The flags of `read_mask` among ``arguments``."""
    named = dict(zip(arguments[::2], map(int, arguments[1::2]), strict=True))
    return {"num_classes": named.get("--num_classes", 2), "ignore_label": named.get("--ignore_label")}


@pytest.mark.parametrize("case", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_masks(tmp_path, case):
    masks, path = tmp_path / "masks", tmp_path / "masks" / case.name
    masks.mkdir()
    case.write(path)
    message = refusal(lambda: read_mask(path, **flags_of(list(case.flags))))
    assert str(path) in message
    flags = re.search(r"give ((?:--\w+ \d+ ?)+)", message)
    if flags:
        given = flags_of([*case.flags, *flags[1].split()])
        labels = read_mask(path, **given).labels
    else:
        (tmp_path / "images").mkdir()
        grey(tmp_path / "images" / "case00.png", blob(np.random.default_rng(0))[0])
        prepare(
            command_in(message, IMAGES=tmp_path / "images", MASKS=masks, **{"data/NAME": tmp_path / "data" / "mine"})
        )
        written = tmp_path / "data" / "mine" / "masks" / "case00.png"
        labels = read_mask(written, int(case.expected.max()) + 1).labels
    np.testing.assert_array_equal(labels, case.expected)


def subfolders(folder: Path) -> Callable:
    for name in ("images", "masks"):
        below = folder / name / "patient1"
        below.mkdir()
        for path in (folder / name).glob("*.png"):
            path.rename(below / path.name)
    return lambda: list_images(folder / "images")


def several_masks(folder: Path) -> Callable:
    shutil.copy(folder / "masks" / "case00.png", folder / "masks" / "case00_1.png")
    return lambda: find_parts(folder, find_dataset(folder.parent, folder.name)[1], "given")


def turned_photograph(folder: Path) -> Callable:
    """With a mask of the pixels as they are stored."""
    image = Image.open(folder / "images" / "case00.png").convert("RGB")
    exif = image.getexif()
    exif[274] = 6
    (folder / "images" / "case00.png").unlink()
    path, mask = folder / "images" / "case00.jpg", folder / "masks" / "case00.png"
    image.save(path, exif=exif)
    return lambda: check_size(mask, read_mask(mask).labels, path, read_stored(path))


@pytest.mark.parametrize("spoil", [subfolders, several_masks, turned_photograph])
def test_sets_that_are_to_be_prepared(tmp_path, spoil):
    folder = write_dataset(tmp_path / "data", "mine", train=3, test=1)
    message = refusal(spoil(folder))
    arguments = command_in(message, **{"data/NAME": tmp_path / "data" / "made"})
    if "--masks_root" not in arguments:  # which the message says beside the command
        assert "--masks_root" in message
        arguments += ["--masks_root", str(folder / "masks")]
    prepare(arguments)
    made, layout = find_dataset(tmp_path / "data", "made")
    parts = find_parts(made, layout, "given", val_fraction=0.4)
    assert len(parts.train) + len(parts.cases) == 3
    for image, mask in parts.train:
        check_size(mask, read_mask(mask).labels, image, read_stored(image))


def test_images_of_grey_and_of_colour(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    grey(paths[0], of_levels(0, 255))
    grey(paths[1], np.dstack([of_levels(0, 255)] * 3))
    for flag in re.findall(r"--channels (\d)", refusal(lambda: common_format(paths))):
        assert common_format(paths, int(flag))[0] == int(flag)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bool, np.uint16, np.int32])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_masks_of_whole_numbers_are_read_whatever_their_type(tmp_path, dtype, suffix):
    values = of_levels(0, 1).astype(dtype)
    path = tmp_path / f"a{suffix}"
    np.save(path, values) if suffix == ".npy" else tifffile.imwrite(path, values, photometric="minisblack")
    np.testing.assert_array_equal(read_mask(path).labels, of_levels(0, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_of_volumes_may_be_floats(tmp_path, dtype):
    nib = pytest.importorskip("nibabel")
    from dataloaders.prepare.medical import nifti_labels

    volume = np.stack([STRIPES, STRIPES % 2]).astype(dtype)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    planes, _ = nifti_labels(tmp_path / "a.nii.gz", "sagittal")
    assert [np.unique(plane).tolist() for plane in planes] == [[0, 1, 2, 3], [0, 1]]
    nib.save(nib.Nifti1Image(volume / 4, np.eye(4)), tmp_path / "a.nii.gz")
    named = re.search(r"--threshold (\S+)", refusal(lambda: nifti_labels(tmp_path / "a.nii.gz", "sagittal")))
    planes, _ = nifti_labels(tmp_path / "a.nii.gz", "sagittal", float(named[1]))
    assert [plane.sum() for plane in planes] == [(STRIPES >= 2).sum(), 0]


def test_small_numbers_in_colours_are_no_grey(tmp_path):
    """One plane for each class: the first alone would be one class of all."""
    grey(tmp_path / "a.png", np.dstack([of_levels(0, 1), of_levels(1, 0), of_levels(0, 0)]))
    assert "colour mask" in refusal(lambda: read_mask(tmp_path / "a.png"))
