"""Everything that is wrong with LIDC and MMIS-2024, the sets with several raters an image, as in verify.py."""

from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataloaders import lidc, mmis
from dataloaders.datasets import LIDC, MMIS
from dataloaders.mmis_axes import check_axes
from dataloaders.safe_pickle import read_object_array, read_pickle
from dataloaders.slic import superpixel_folder
from dataloaders.verification.checks import (
    Finding,
    Labels,
    Look,
    Report,
    Task,
    attempt,
    check_segments,
    examine,
    list_segments,
    picture_of,
    shares_of,
    short_name,
    slic_settings,
)
from utils.commands.errors import UserError

# --- LIDC -------------------------------------------------------------------------------------------------------------


class _SliceItem(NamedTuple):
    piece: lidc.Slice
    part: str
    format: str
    segments: Path | None


def verify_lidc(
    folder: Path,
    num_raters: int,
    image_size: int,
    num_classes: int,
    segment_folder: Path | None,
    workers: int,
    fewer: str | None = None,
) -> Report:
    """Check LIDC's pickle slice by slice, the two lists of names, and the superpixels of the training slices.

    The pickle is read whole, as in training. fewer: what becomes of slices with fewer masks (`lidc.with_all_masks`).
    """
    settings = {"raters": num_raters, "image_size": image_size, "num_classes": num_classes}
    report = Report(str(folder), "lidc", settings)
    pickle = folder / lidc.PICKLE
    entries = attempt(report.findings, "readable", lidc.PICKLE, read_pickle, pickle)
    if not isinstance(entries, dict) or not entries:
        if entries is not None:
            report.error("readable", lidc.PICKLE, f"expected a dict of slices by name, found {lidc.kind_of(entries)}")
        return report
    slices = {}
    for key, entry in entries.items():
        name = attempt(report.findings, "readable", ascii(key), lidc.slice_name, lidc.PICKLE, key)
        if name is None:
            continue
        # Its first argument is what its messages begin with.
        piece = attempt(report.findings, "readable", name, lidc.read_slice, name, name, entry, num_raters, num_classes)
        if piece is not None:
            slices[name] = piece
    parts = _lidc_parts(report, folder, entries, slices)
    slices = _with_all_masks(report, pickle, slices, parts, num_raters, fewer)

    train = [name for name, part in parts.items() if part == "train" and name in entries]
    segment_folder = segment_folder or superpixel_folder(folder / LIDC.layout.segments, image_size, LIDC.image_size)
    segments = list_segments(report, segment_folder, pickle, train, known=entries)
    slic = slic_settings(report, segment_folder, image_size) if segments else None
    scale = 255 if slices and max(float(piece.image.max()) for piece in slices.values()) <= 1 else 1
    if scale == 255:
        report.warn("formats", lidc.PICKLE, "no image goes beyond 1; taken as [0, 1] and scaled to 0..255")
    items = [
        _SliceItem(
            piece._replace(image=np.rint(piece.image * scale).astype(np.uint8)),
            parts.get(name, "unused"),
            str(piece.image.dtype),
            segments.get(name) if parts.get(name) == "train" else None,
        )
        for name, piece in slices.items()
    ]
    job = partial(_look_at_slice, task=Task(folder, image_size, num_classes, num_raters, slic))
    examine(report, job, items, workers)
    return report


def _with_all_masks(
    report: Report,
    pickle: Path,
    slices: dict[str, lidc.Slice],
    parts: dict[str, str],
    num_raters: int,
    fewer: str | None,
) -> dict[str, lidc.Slice]:
    """``slices`` as training has them, which is to be said; of those that are not used, as they are."""
    sides = [[piece for name, piece in slices.items() if parts.get(name) == side] for side in ("train", "test")]
    said = StringIO()
    with redirect_stdout(said):
        used = attempt(report.findings, "raters", lidc.PICKLE, lidc.with_all_masks, pickle, sides, num_raters, fewer)
    if used is None:
        return slices
    if said.getvalue():
        report.note("raters", lidc.PICKLE, said.getvalue().strip().removeprefix(f"{pickle}: "))
    complete = {piece.name: piece for side in used for piece in side}
    return {name: complete.get(name, piece) for name, piece in slices.items() if name in complete or name not in parts}


def _lidc_parts(report: Report, folder: Path, entries: dict, slices: dict[str, lidc.Slice]) -> dict[str, str]:
    """Slice name -> "train" or "test", as the two lists say."""
    sides: dict[str, list[str]] = {}
    for part in ("train", "test"):
        path = folder / f"{part}_idx.npy"
        if not path.is_file():
            report.error("files", path.name, "no such file; scripts/split_lidc.py makes a split by patient")
            continue
        names = attempt(report.findings, "readable", path.name, read_object_array, path)
        if names is None:
            continue
        if names.ndim != 1 or not len(names) or not all(isinstance(name, str) for name in names.tolist()):
            text = f"expected a list of slice names, found an array {names.shape} of {names.dtype}"
            report.error("readable", path.name, text)
            continue
        sides[part] = names.tolist()
        for name, count in Counter(sides[part]).items():
            if name not in entries:
                report.error("names", name, f"named in {path.name}, but not in the pickle")
            if count > 1:
                report.error("names", name, f"named {count} times in {path.name}")
    both = set(sides.get("train", ())) & set(sides.get("test", ()))
    for name in sorted(both):
        report.error("names", name, "in train_idx.npy and in test_idx.npy")
    parts = {name: part for part in ("test", "train") for name in sides.get(part, ())}
    if len(sides) == 2:
        for name in slices:
            if name not in parts:
                report.warn("names", name, "in neither train_idx.npy nor test_idx.npy; not used")
        patients = [
            {slices[name].patient for name in sides[part] if name in slices and name not in both} for part in sides
        ]
        for patient in sorted(patients[0] & patients[1]):
            report.warn("patients", patient, "slices in training and in test: test scores will be too good")
    return parts


def _look_at_slice(item: _SliceItem, task: Task) -> Look:
    look = Look([], [], [])
    name, patient, image, masks = item.piece
    look.pictures.append(picture_of(name, item.part, patient, image, item.format, look.findings))
    for rater, mask in enumerate(masks, 1):
        labels = Labels(f"{item.part}, rater {rater}", f"{name}, rater {rater}", mask)
        look.shares.append(shares_of(labels, task, look.findings))
    if item.segments:
        check_segments(item.segments, image, task, look.findings)
    return look


# --- MMIS -------------------------------------------------------------------------------------------------------------


class _CaseItem(NamedTuple):
    path: Path
    part: str
    segments: Path | None
    sizes: frozenset[tuple[int, int]]  # of the training slices


def verify_mmis(
    folder: Path, num_raters: int, image_size: int, num_classes: int, segment_folder: Path | None, workers: int
) -> Report:
    """Check every HDF5 file of MMIS-2024, the choice of raters, and the superpixels of the training slices.

    Each file is read by itself. One of testing/ and validation/ must be there; what is there is checked.
    """
    settings = {"raters": num_raters, "image_size": image_size, "num_classes": num_classes}
    report = Report(str(folder), "mmis", settings)
    slices = _list_cases(report, folder, "training_2d")
    volumes = [name for name in ("testing", "validation") if (folder / name).is_dir()] or ["testing"]
    tests = {name: _list_cases(report, folder, name) for name in volumes}
    for name, there in tests.items():
        for case in mmis.shared_cases(slices, there):
            text = f"training slices of this case of {name}: test scores will be too good"
            report.warn("patients", short_name(there[case], folder), text)
    if slices:
        _check_raters(report, folder, slices, num_raters)

    segment_folder = segment_folder or superpixel_folder(folder / MMIS.layout.segments, image_size, MMIS.image_size)
    segments = list_segments(report, segment_folder, folder / MMIS.layout.images, slices)
    slic = slic_settings(report, segment_folder, image_size) if segments else None
    sizes = frozenset(mmis.slice_sizes(slices.values()))
    items = [_CaseItem(path, "train", segments.get(stem), sizes) for stem, path in slices.items()]
    items += [_CaseItem(path, "test", None, sizes) for there in tests.values() for path in there.values()]
    job = partial(_look_at_case, task=Task(folder, image_size, num_classes, num_raters, slic))
    examine(report, job, items, workers)
    return report


def _list_cases(report: Report, root: Path, name: str) -> dict[str, Path]:
    notes = StringIO()
    with redirect_stderr(notes):
        found = attempt(report.findings, "files", name, mmis.list_slices, root / name)
    if notes.getvalue():
        report.warn("files", name, notes.getvalue().strip().removeprefix(f"note: {root / name}: "))
    return found or {}


def _check_raters(report: Report, root: Path, slices: Mapping[str, Path], num_raters: int) -> None:
    notes = StringIO()
    with redirect_stderr(notes), redirect_stdout(StringIO()):
        try:
            mmis.select_raters(root, slices, num_raters, None, seed=0)
        except UserError as error:
            report.error("raters", mmis.SELECTION, str(error).removeprefix(f"{root / mmis.SELECTION}: "))
    if notes.getvalue():
        text = notes.getvalue().strip().removeprefix(f"note: {root / mmis.SELECTION}: ")
        report.warn("raters", mmis.SELECTION, text)


def _look_at_case(item: _CaseItem, task: Task) -> Look:
    look = Look([], [], [])
    name, case = short_name(item.path, task.root), item.path.stem
    read = mmis.read_slice if item.part == "train" else mmis.read_case
    content = attempt(look.findings, "readable", name, read, item.path, task.num_raters, task.num_classes)
    image = None
    if content is not None and item.part == "train":
        image = content[0]
        look.pictures.append(picture_of(name, "train", mmis.case_of(case), image, "HDF5", look.findings))
    elif content is not None:
        attempt(look.findings, "sizes", name, check_axes, item.path, content[1].shape[1:], item.sizes)
        blank: list[Finding] = []  # a volume may well end in slices without tissue
        look.pictures.extend(
            picture_of(f"{name}, slice {index}", "test", case, plane, "HDF5", blank)
            for index, plane in enumerate(content[0])
        )
    for rater, values in enumerate(content[1] if content is not None else (), 1):
        labels = Labels(f"{short_name(item.path.parent, task.root)}, rater {rater}", f"{name}, rater {rater}", values)
        look.shares.append(shares_of(labels, task, look.findings))
    if item.segments:
        check_segments(item.segments, image, task, look.findings)
    return look
