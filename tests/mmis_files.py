"""MMIS-2024 in miniature: HDF5 files in the layout of the real set, drawn for the tests."""

import json
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from conftest import block_segments

MODALITIES = ("t1", "t1c", "t2")
LABELS = ("label_a1", "label_a2", "label_a3", "label_a4")


def draw_volume(
    rng: np.random.Generator,
    slices: int = 3,
    height: int = 37,
    width: int = 53,
    no_tumour: tuple[int, ...] = (),
    empty_rater: int | None = None,
) -> dict[str, np.ndarray]:
    """The seven keys of a volume, (slices,height,width) each: modalities float32 on three scales with a background of
    zeros, and the labels, uint8 0/1, of four raters who draw one bright ellipse larger or smaller.

    no_tumour: slices without one. empty_rater: a rater from 1 who marked nothing.
    """
    y, x = (grid / side - 0.5 for grid, side in zip(np.mgrid[:height, :width], (height, width), strict=True))
    head = y**2 + x**2 < 0.45**2
    centres = rng.uniform(-0.12, 0.12, (slices, 2))
    visible = ~np.isin(np.arange(slices), no_tumour)[:, None, None]
    radius = np.sqrt((y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2)
    volume = {}
    for key, scale, tissue, tumour in zip(MODALITIES, (900, 40, 3), (1.0, 0.6, 0.8), (0.5, 1.4, 1.6), strict=True):
        signal = np.where((radius < 0.2) & visible, tumour, tissue) + rng.normal(0, 0.05, radius.shape)
        volume[key] = np.where(head, scale * signal, 0).astype(np.float32)
    for rater, (key, size) in enumerate(zip(LABELS, (0.2, 0.17, 0.22, 0.19), strict=True), 1):
        volume[key] = ((radius < size) & visible & (rater != empty_rater)).astype(np.uint8)
    return volume


def write_h5(path: Path, content: Mapping[str, object]) -> Path:
    """Write one file of the given keys; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key, values in content.items():
            file[key] = values
    return path


def write_mmis(
    data_root: Path, image_size: int = 32, cases: int = 4, slices: int = 3, selection: bool = False, seed: int = 0
) -> Path:
    """Write ``data_root``/MMIS2024TASK1 with superpixels for ``image_size``; returns that folder.

    training_2d: ``cases`` x ``slices`` files of odd sizes, the first slice of each case without a tumour, rater 4 empty
    in the first case. validation: one volume; testing: two, one with an empty slice and rater 2 empty.
    selection: with data_npc_select_one.json, rater 1 to 4 in turn.
    """
    rng = np.random.default_rng(seed)
    root = data_root / "MMIS2024TASK1"
    (root / "train_2D_slic").mkdir(parents=True)
    chosen = {}
    for case in range(cases):
        sides = {"height": 37 + 2 * case, "width": 53 - 2 * case}
        volume = draw_volume(rng, slices, **sides, no_tumour=(0,), empty_rater=None if case else 4)
        for index in range(slices):
            stem = f"case{case:02}_{index}"
            write_h5(root / "training_2d" / f"{stem}.h5", {key: values[index] for key, values in volume.items()})
            np.save(root / "train_2D_slic" / f"{stem}.npy", block_segments(image_size))
            chosen[f"{stem}.h5"] = f"label_a{len(chosen) % 4 + 1}"
    write_h5(root / "validation" / "valid00.h5", draw_volume(rng, 3, 41, 45))
    write_h5(root / "testing" / "test00.h5", draw_volume(rng, 4, 37, 53, no_tumour=(0,), empty_rater=2))
    write_h5(root / "testing" / "test01.h5", draw_volume(rng, 3, 50, 29))
    if selection:
        (root / "data_npc_select_one.json").write_text(json.dumps(chosen))
    return root
