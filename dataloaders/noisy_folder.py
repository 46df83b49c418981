"""Folder datasets with one noisy mask an image: Kvasir, Shenzhen, BU-SUC and any folder of the same layout."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.batches import TestCase
from dataloaders.cache import Recipe, Sample
from dataloaders.files import channels_of, list_images, pair_by_stem, read_image, read_mask, read_segments
from utils.cli import UserError, listed
from utils.geometry import resize_image, resize_label


@dataclass(frozen=True)
class Layout:
    """Names of a dataset's folders; the defaults are Kvasir's, which any dataset of your own shares."""

    images: str = "images"
    images_test: str = "images_test"
    segments: str = "images_SLIC"
    masks: str = "masks"
    masks_test: str = "masks_test"
    shrunk: str = "masks_200_0.2_0.05_0.2_mask_channel0"
    expanded: str = "masks_200_0.8_0.05_0.2_mask_channel0"
    dilated_eroded: str = "masks_DE"

    def training_masks(self, noise_type: str) -> str:
        """The folder of the training masks: 02 is S_R, 08 is S_E, DE is S_DE (docs/method.md section 6)."""
        return {
            "clean": self.masks,
            "given": self.masks,
            "02": self.shrunk,
            "08": self.expanded,
            "DE": self.dilated_eroded,
        }[noise_type]


# Keys in lower case: names are matched without regard to case.
LAYOUTS = {
    "shenzhen": Layout(
        images="img",
        images_test="test_img",
        masks="mask",
        masks_test="test_mask",
        shrunk="mask_200_0.2_0.05_0.2",
        expanded="mask_200_0.8_0.05_0.2",
        dilated_eroded="mask_DE",
    ),
    "busuc": Layout(shrunk="masks_200_0.2_0.05_0.2", expanded="masks_200_0.8_0.05_0.2"),
}
NOISE_TYPES = ("clean", "02", "08", "DE", "given")


def find_dataset(data_root: Path, name: str) -> tuple[Path, Layout]:
    """The folder of dataset ``name`` below ``data_root``, whatever its case, and its layout.

    Raises `UserError` if there is none, naming those that there are.
    """
    if not data_root.is_dir():
        raise UserError(f"--data_root {data_root}: no such folder")
    folders = sorted(path for path in data_root.iterdir() if path.is_dir() and not path.name.startswith("."))
    matching = [path for path in folders if path.name.lower() == name.lower()]
    if not matching:
        there = listed([path.name for path in folders], most=10) or "no folder"
        raise UserError(f"--datasets {name}: no folder of that name in {data_root}, which holds {there}")
    exact = [path for path in matching if path.name == name]
    if len(matching) > 1 and not exact:
        raise UserError(f"--datasets {name}: several folders match: {listed(path.name for path in matching)}")
    return (exact or matching)[0], LAYOUTS.get(name.lower(), Layout())


def training_recipe(
    folder: Path,
    layout: Layout,
    noise_type: str,
    image_size: int,
    num_classes: int = 2,
    segment_folder: Path | None = None,
) -> Recipe:
    """The training images, masks and superpixels of a dataset folder, at image_size x image_size.

    ``segment_folder`` holds the superpixels; the layout's own by default. Images are resized by area or linearly, masks
    by nearest neighbour; superpixels must have been computed at that size. If some images are grey and some in colour,
    all are taken as colour.
    Raises `UserError` for anything missing or unpaired, and when read for what is unreadable or of the wrong shape.
    """
    mask_folder, segment_folder = folder / layout.training_masks(noise_type), segment_folder or folder / layout.segments
    images = list_images(folder / layout.images)
    pairs = pair_by_stem(images, _list_masks(mask_folder, folder, noise_type), mask_folder)
    slic = f"scripts/generate_SLIC.py --images_root {folder / layout.images} --save_root {segment_folder}"
    if not segment_folder.is_dir():
        raise UserError(f"{segment_folder}: no such folder; make it with {slic} --image_size {image_size}")
    segment_files = [segment_folder / f"{stem}.npy" for stem in images]
    lacking = [image.name for (image, _), ids in zip(pairs, segment_files, strict=True) if not ids.is_file()]
    if lacking:
        raise UserError(
            f"{segment_folder}: no superpixels for {len(lacking)} of {len(images)} images: {listed(lacking)}; "
            f"make them with {slic} --image_size {image_size}"
        )
    channels = max(channels_of(image) for image, _ in pairs)

    def read(index: int) -> Sample:
        image, label, soiled = _read_pair(*pairs[index], image_size, num_classes, channels)
        segments = read_segments(segment_files[index], (image_size, image_size))
        return Sample(image, label, segments, pairs[index][1].name if soiled else "")

    return Recipe(
        names=tuple(images),
        read=read,
        sources=[*(path for pair in pairs for path in pair), *segment_files],
        settings={
            "folder": str(folder.resolve()),
            "masks": mask_folder.name,
            "segments": str(segment_folder.resolve()),
            "image_size": image_size,
            "num_classes": num_classes,
        },
    )


def load_test_cases(
    folder: Path, layout: Layout, image_size: int, channels: int, num_classes: int = 2
) -> list[TestCase]:
    """Read the test images and their clean masks at image_size x image_size, with ``channels`` channels (1 or 3).

    Raises `UserError` for anything missing, unpaired or unreadable.
    """
    mask_folder = folder / layout.masks_test
    pairs = pair_by_stem(list_images(folder / layout.images_test), list_images(mask_folder), mask_folder)

    def read(pair: tuple[Path, Path]) -> tuple:
        return _read_pair(*pair, image_size, num_classes, channels)

    samples, labels, soiled = zip(*_read_all(read, pairs, "test set"), strict=True)
    _report_soiled(pairs, soiled)
    return [
        TestCase(image.stem, torch.from_numpy(sample).movedim(-1, 0)[None], torch.from_numpy(label)[None, None])
        for (image, _), sample, label in zip(pairs, samples, labels, strict=True)
    ]


def _list_masks(mask_folder: Path, folder: Path, noise_type: str) -> dict[str, Path]:
    if not mask_folder.is_dir() and noise_type in ("02", "08", "DE"):
        raise UserError(
            f"{mask_folder}: no such folder for --noise_type {noise_type}; "
            f"make it from {folder} with scripts/generate_simulated_noise.py (scripts/README.md)"
        )
    return list_images(mask_folder)


def _read_pair(
    image_path: Path, mask_path: Path, image_size: int, num_classes: int, channels: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    image = read_image(image_path, channels)
    labels, soiled = read_mask(mask_path, num_classes)
    if labels.shape != image.shape[:2]:
        raise UserError(
            f"{mask_path}: mask of {labels.shape[1]}x{labels.shape[0]} pixels for {image_path.name} of "
            f"{image.shape[1]}x{image.shape[0]}; a mask must have the size of its image"
        )
    return resize_image(image, image_size), resize_label(labels, image_size), soiled


def _read_all(read: Callable, pairs: list, label: str) -> list:
    # Decoders release the interpreter lock, so threads are enough.
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(read, pairs), total=len(pairs), desc=f"reading {label}", unit="image"))


def _report_soiled(pairs: list[tuple[Path, Path]], soiled: tuple[bool, ...]) -> None:
    names = [mask.name for (_, mask), flag in zip(pairs, soiled, strict=True) if flag]
    if names:
        folder = pairs[0][1].parent
        print(f"note: {folder}: in-between greys thresholded at 128 in {len(names)} masks: {listed(names)}")
