"""The folder of a dataset with one mask an image: which files are in it, paired, and what each is for.

Headers are read, no pixel is decoded, and PyTorch is not imported: checks and audits of a folder do without it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders.datasets import Layout, folder_dataset
from dataloaders.files import channels_in_words, list_images, pair_by_stem
from dataloaders.orientation import as_stored, preparation, turned_in_words
from dataloaders.pixels import PERCENTILES, format_of
from dataloaders.raters import hold_out
from dataloaders.unread import missing_folder
from utils.commands.errors import UserError, is_main_process, listed

VAL_FRACTION = 0.2  # of the training images, where there is no test set

Pair = tuple[Path, Path]  # an image and its mask


def find_dataset(data_root: Path, name: str) -> tuple[Path, Layout]:
    """The folder of dataset ``name`` below ``data_root``, whatever its case, and its layout.

    Raises `UserError` if there is none, naming those that there are.
    """
    if not data_root.is_dir():
        raise UserError(f"--data_root {missing_folder(data_root)}")
    folders = sorted(path for path in data_root.iterdir() if path.is_dir() and not path.name.startswith("."))
    matching = [path for path in folders if path.name.lower() == name.lower()]
    if not matching and os.path.lexists(data_root / name):
        raise missing_folder(data_root / name)
    if not matching:
        there = listed([path.name for path in folders], most=10) or "no folder"
        raise UserError(f"--datasets {name}: no folder of that name in {data_root}, which holds {there}")
    exact = [path for path in matching if path.name == name]
    if len(matching) > 1 and not exact:
        raise UserError(f"--datasets {name}: several folders match: {listed(path.name for path in matching)}")
    return (exact or matching)[0], folder_dataset(name).layout


class Parts(NamedTuple):
    """What the images of a dataset folder are for; pairs of image and mask."""

    train: list[Pair]
    validation: list[Pair]  # held out of the training images to choose an epoch by
    cases: list[Pair]  # to score on: the test set, without one what was held out
    scored_on: str  # what the masks of the cases are, in words
    val_fraction: float  # of the training images that is held out
    given: dict[str, Path]  # all images of the folder of training images, by stem

    @property
    def images(self) -> list[Path]:
        """Every image."""
        return [image for image, _ in (*self.train, *self.validation, *self.cases)]

    @property
    def split(self) -> dict[str, list[str]]:
        """The names of the images that are trained on and held out; empty if none is held out."""
        trained = {image.stem: None for image, _ in self.train}
        held_out = [stem for stem in self.given if stem not in trained]
        return {"train": list(trained), "held_out": held_out} if held_out else {}


def is_meant(folder: Path) -> bool:
    """Whether a folder is there or meant to be: a link to nothing and the pointer to a store
    stand for one."""
    return os.path.lexists(folder) or folder.with_name(f"{folder.name}.dvc").is_file()


def masks_folder(folder: Path, name: str) -> Path:
    """The folder of --masks ``name``: in the dataset's ``folder`` if it is there, else where the command was started.

    Raises `UserError` if there is none.
    """
    found = [path for path in (folder / name, Path(name)) if path.is_dir()]
    for path in (folder / name, Path(name)):
        if not found and os.path.lexists(path):
            raise missing_folder(path)
    if not found:
        raise UserError(f"--masks {name}: no such folder, neither in {folder} nor where this was started")
    return found[0]


def find_parts(
    folder: Path,
    layout: Layout,
    noise_type: str,
    val_fraction: float | None = None,
    seed: int = 0,
    masks: Path | None = None,
    partial: bool = False,
) -> Parts:
    """The images of a dataset folder, paired with their masks, and what each is for.

    masks: the folder of the training masks; None: that of ``noise_type``. partial: images without a mask there are left
    out, how many is said on stdout.
    ``val_fraction`` of the training images are held out, drawn from ``seed``: by default none where there are test
    images, else a fifth. Raises `UserError` for anything missing or unpaired, if of test images and test masks only one
    is there, and if there is nothing to score on.
    """
    masks = masks or folder / layout.training_masks(noise_type)
    if not os.path.lexists(masks) and noise_type in ("02", "08", "DE"):
        raise UserError(
            f"{masks}: no such folder for --noise_type {noise_type}; "
            f"make it from {folder} with scripts/generate_simulated_noise.py (scripts/README.md)"
        )
    pairs = _pairs(folder / layout.images, masks, partial)
    test_folders = folder / layout.images_test, folder / layout.masks_test
    test = _pairs(*test_folders) if any(map(is_meant, test_folders)) else []
    for part in (pairs, test):
        if is_main_process() and (turned := turned_in_words(part)):
            print(f"warning: {part[0][0].parent}: {turned}", file=sys.stderr)
    if val_fraction is None:
        val_fraction = 0.0 if test else VAL_FRACTION
    if not test and not val_fraction:
        raise UserError(f"--val_fraction 0: {test_folders[0]} is not there, so some training images must be held out")
    given = {image.stem: image for image, _ in pairs}
    train, held_out = hold_out(pairs, list(given), val_fraction, seed)
    if test:
        return Parts(train, held_out, test, "test masks", val_fraction, given)
    masks_are = "" if noise_type == "clean" else " (noisy)"
    print(f"{folder}: no test set; {len(held_out)} training images are held out and scored on their masks{masks_are}")
    return Parts(train, [], held_out, f"held-out training masks{masks_are}", val_fraction, given)


def _pairs(images: Path, masks: Path, partial: bool = False) -> list[Pair]:
    there, labelled = list_images(images), list_images(masks)
    if partial:
        without = [stem for stem in there if stem not in labelled]
        print(f"--partial: {len(without)} of {len(there)} images have no mask in {masks} and are left out")
        there = {stem: path for stem, path in there.items() if stem in labelled}
    return pair_by_stem(there, labelled, masks)


def common_format(images: Sequence[Path], channels: int | None = None) -> tuple[int, str]:
    """The number of channels that all ``images`` share, or ``channels`` where it is asked for; and in words, how stored
    values become 0..255.

    Raises `UserError`, naming an image of each kind, if they have different numbers of channels and none is asked for.
    """
    formats = {path: format_of(path) for path in images}
    examples = {form.channels: path for path, form in reversed(formats.items())}
    if channels is None and len(examples) > 1:
        found = ", ".join(f"{path} has {channels_in_words(count)}" for count, path in sorted(examples.items()))
        remedy = "; --channels 3 takes grey as colour, --channels 1 colour as grey" if set(examples) == {1, 3} else ""
        raise UserError(f"--datasets: {found}: all images of a set must have the same number{remedy}")
    deep = [path.name for path, form in formats.items() if not form.eight_bit]
    low, high = PERCENTILES
    scaled = f"each channel of each image by itself, its percentiles {low:g} and {high:g} to 0 and 255"
    reading = "8 bits, as stored" if not deep else scaled
    if 0 < len(deep) < len(images):
        reading = f"8 bits as stored; {len(deep)} of {len(images)} images deeper ({listed(deep)}): {scaled}"
        print(f"note: images of 8 bits and deeper ones in one set; {reading}")
    return channels or next(iter(examples)), reading


def check_size(mask_path: Path, labels: np.ndarray, image_path: Path, image: np.ndarray) -> None:
    """Raises `UserError` if a mask (H,W) has not the size of its image (H,W,C)."""
    if labels.shape != image.shape[:2]:
        stored, drawn = as_stored(image, image_path).shape[:2], as_stored(labels, mask_path).shape
        if stored == drawn:
            raise UserError(
                f"{mask_path}: mask of {labels.shape[1]}x{labels.shape[0]} pixels for {image_path.name}, which EXIF "
                f"data turn from {stored[1]}x{stored[0]} to {image.shape[1]}x{image.shape[0]}: it was drawn on "
                "the image as stored. Make the set with "
                f"`{preparation(image_path.parent, mask_path.parent)} --orientation stored`"
            )
        raise UserError(
            f"{mask_path}: mask of {labels.shape[1]}x{labels.shape[0]} pixels for {image_path.name} of "
            f"{image.shape[1]}x{image.shape[0]}; a mask must have the size of its image"
            + (", an array of which is (H,W) or (H,W,C)" if image_path.suffix.lower() == ".npy" else "")
        )
