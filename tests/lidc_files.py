"""Writes LIDC's files in their exact layout: one pickle of slices and two arrays of names."""

import pickle
from pathlib import Path

import numpy as np
from conftest import blob, block_segments

RATERS = 4


def nodule(rng: np.random.Generator, size: int = 40) -> tuple[np.ndarray, list[np.ndarray]]:
    """A grey slice uint8 (size,size), and what four readers drew: the last draws nothing at times."""
    image, mask = blob(rng, size, size)
    masks = [np.roll(mask // 255, shift, axis=rater % 2) for rater, shift in enumerate((0, 1, -1, 2))]
    if rng.random() < 0.3:
        masks[-1] = np.zeros_like(masks[-1])
    return image[..., 0], masks


def entries(patients: int = 6, slices: int = 3, seed: int = 0) -> dict:
    """The pickle's contents: ``slices`` slices of each patient; series_uid repeats the name, as in the public file."""
    rng = np.random.default_rng(seed)
    contents = {}
    for patient in range(patients):
        for index in range(slices):
            name = f"LIDC-IDRI-{patient:04}_nodule-0_slice-{index}"
            image, masks = nodule(rng)
            contents[name] = {"image": image, "masks": masks, "series_uid": name}
    return contents


def write_lidc(root: Path, contents: dict, test_patients: int = 2, image_size: int = 32) -> Path:
    """Write ``root/lidc`` with the last patients for testing, and superpixels of ``image_size``; returns the folder."""
    folder = root / "lidc"
    (folder / "lidc_slic").mkdir(parents=True)
    (folder / "lidc_attributes.pkl").write_bytes(pickle.dumps(contents))
    numbers = sorted({name[:14] for name in contents})
    held_out = set(numbers[len(numbers) - test_patients :])
    for part, wanted in (("train", False), ("test", True)):
        np.save(folder / f"{part}_idx.npy", np.array([name for name in contents if (name[:14] in held_out) == wanted]))
    for name in contents:
        np.save(folder / "lidc_slic" / f"{name}.npy", block_segments(image_size))
    return folder
