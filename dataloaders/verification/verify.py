"""Everything that is wrong with a dataset, found in one pass and reported together; nothing is changed.

The loaders stop at the first fault. Here each file goes through the same readers by itself, and every refusal becomes a
`Finding`. An error is what training would stop at; a warning is what it would take, perhaps to the harm of the result;
a note is what it does by itself.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataloaders import files, lidc, mmis
from dataloaders.datasets import LIDC, MMIS, NOISE_TYPES, Dataset
from dataloaders.files import as_bytes, read_mask, similar_name, with_channels
from dataloaders.noisy_folder import VAL_FRACTION, check_size, common_format
from dataloaders.pixels import decode, load_array, read_stored
from dataloaders.raters import split_by_patient
from dataloaders.safe_pickle import read_object_array, read_pickle
from dataloaders.slic import superpixel_folder
from dataloaders.verification.checks import (
    CHECKS,
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
from utils.commands.errors import UserError, is_plain

_MOST_HINTS = 20  # similar names are looked for by comparing all with all


# --- Folders of images ------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    part: str
    image: Path | None
    masks: tuple[Path, ...]
    segments: Path | None


def verify_folder(
    folder: Path,
    known: Dataset,
    noise_type: str | None,
    image_size: int,
    num_classes: int,
    segment_folder: Path | None,
    workers: int,
    channels: int | None = None,
    masks: Path | None = None,
    ignore_label: int | None = None,
) -> Report:
    """Check a folder dataset: training images with every folder of masks that is there, or only that of ``noise_type``
    or only ``masks``, superpixels (``segment_folder``, else the dataset's), test images and test masks. Training does
    without the last three, but not with a part of the last two.

    Where training would hold images out, all are checked as if they were trained on. channels: as the training flag.
    """
    settings = {"noise_type": noise_type, "image_size": image_size, "num_classes": num_classes, "channels": channels}
    settings |= {"ignore_label": ignore_label}
    settings |= {"masks": str(masks)} if masks else {}
    layout = known.layout
    report = Report(str(folder), "folder", settings)
    wanted = dict.fromkeys(layout.training_masks(kind) for kind in ([noise_type] if noise_type else NOISE_TYPES))
    mask_folders = [masks] if masks else [folder / name for name in wanted if (folder / name).is_dir()]
    # Without any, the first is the one that is missed.
    train = _pair_up(report, folder, folder / layout.images, mask_folders or [folder / next(iter(wanted))])
    images = [image.stem for image, _ in train if image]
    test_folders = folder / layout.images_test, folder / layout.masks_test
    test = []
    if any(path.exists() for path in test_folders):
        test = _pair_up(report, folder, test_folders[0], test_folders[1:])
    else:
        report.unchecked.update(check for check in CHECKS if check.endswith(("_test", "_between")))
        text = (
            f"no test set: training will hold images out, by default {VAL_FRACTION:.0%} and at least one "
            "(--val_fraction), and score on their own masks"
        )
        report.note("files", layout.images_test, text)
        if images:
            attempt(report.findings, "files", layout.images, split_by_patient, images, VAL_FRACTION, 0)

    segment_folder = segment_folder or superpixel_folder(folder / layout.segments, image_size, known.image_size)
    segments = list_segments(report, segment_folder, folder / layout.images, images)
    slic = slic_settings(report, segment_folder, image_size) if segments else None
    pairs = [_Pair("train", image, masks, segments.get(image.stem) if image else None) for image, masks in train]
    pairs += [_Pair("test", image, masks, None) for image, masks in test]
    job = partial(
        _look_at_pair,
        task=Task(folder, image_size, num_classes, slic=slic, channels=channels, ignore_label=ignore_label),
    )
    examine(report, job, pairs, workers)
    unreadable = {finding.name for finding in report.findings if finding.check == "readable"}
    readable = [pair.image for pair in pairs if pair.image and short_name(pair.image, folder) not in unreadable]
    if readable:
        with redirect_stdout(StringIO()):  # images of another depth than most are warned of already
            found = attempt(report.findings, "formats", "all images together", common_format, readable, channels)
        report.facts["channels"], report.facts["intensities"] = found or (None, None)
    return report


def _look_at_pair(pair: _Pair, task: Task) -> Look:
    look = Look([], [], [])
    image = None
    if pair.image:
        name = short_name(pair.image, task.root)
        stored = attempt(look.findings, "readable", name, read_stored, pair.image)
        if stored is not None:
            image = as_bytes(stored)
            kind = _format(pair.image, stored)
            look.pictures.append(picture_of(name, pair.part, name, image, kind, look.findings))
            attempt(look.findings, "formats", name, with_channels, pair.image, image, task.channels)
    for path in pair.masks:
        name = short_name(path, task.root)
        # Told apart for the table alone: one that cannot be decoded, and one whose values are refused.
        read = load_array if path.suffix.lower() == ".npy" else decode
        if attempt(look.findings, "readable", name, read, path) is None:
            continue
        mask = attempt(look.findings, "values", name, read_mask, path, task.num_classes, task.ignore_label)
        if mask is None:
            continue
        if mask.artefacts:
            text = "compression artefacts, thresholded at 128"
            look.findings.append(Finding("values", "warning", name, text))
        if image is not None:
            attempt(look.findings, "sizes", name, check_size, path, mask.labels, pair.image, image)
        labels = Labels(short_name(path.parent, task.root), name, mask.labels)
        look.shares.append(shares_of(labels, task, look.findings))
    if pair.segments:
        check_segments(pair.segments, image, task, look.findings)
    return look


def _format(path: Path, stored: np.ndarray) -> str:
    """Bits and channels of an image file, whose values are ``stored`` (H,W,C)."""
    colours = {1: "grey", 3: "RGB"}.get(stored.shape[2], f"{stored.shape[2]} channels")
    if stored.dtype != np.uint8:
        return f"{8 * stored.dtype.itemsize}-bit {'float ' * (stored.dtype.kind == 'f')}{colours}"
    try:
        with Image.open(path) as file:
            mode = file.mode
    except Exception:  # not one of Pillow's formats
        mode = ""
    special = {"1": "1-bit grey", "P": "8-bit palette", "LA": "8-bit grey with alpha", "RGBA": "8-bit RGB with alpha"}
    return special.get(mode, f"8-bit {colours}")


def _list_folder(report: Report, root: Path, folder: Path) -> dict[str, Path] | None:
    """The images of a folder by stem, as `files.list_images`, but past its faults; None if there is no folder."""
    name = short_name(folder, root)
    if not folder.is_dir():
        report.error("files", name, "no such folder; README (Data) and scripts/README.md have the layout")
        return None
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        report.error("files", name, f"cannot be listed ({error.strerror})")
        return None
    found: dict[str, Path] = {}
    for path in paths:
        if path.name.startswith(".") or path.name in files.NOT_DATA:
            continue
        if path.suffix.lower() not in files.IMAGE_SUFFIXES or not path.is_file():
            report.warn("files", short_name(path, root), "not an image; left out")
        elif not is_plain(path.name):
            report.error("names", short_name(path, root), "control characters or bytes that are not UTF-8 in its name")
        elif path.stem in found:
            text = f"same name before the suffix as {found[path.stem].name}, by which files are paired"
            report.error("names", short_name(path, root), text)
        else:
            found[path.stem] = path
    if not found:
        report.error("files", name, "no image in it")
    return found


def _pair_up(
    report: Report, root: Path, image_folder: Path, mask_folders: Sequence[Path]
) -> list[tuple[Path | None, tuple[Path, ...]]]:
    """Images and their masks by stem, those without a partner too, each of which is an error."""
    images = _list_folder(report, root, image_folder)
    masks = [(folder, _list_folder(report, root, folder)) for folder in mask_folders]
    for folder, there in masks:
        if images and there:
            lacking, strangers = ([s for s in a if s not in b] for a, b in ((images, there), (there, images)))
            for number, stem in enumerate(lacking):
                hint = similar_name(stem, strangers, there) if number < _MOST_HINTS else ""
                report.error("names", short_name(images[stem], root), f"nothing in {short_name(folder, root)}{hint}")
            for stem in strangers:
                report.error("names", short_name(there[stem], root), f"no image of that name in {image_folder.name}")
    stems = dict.fromkeys([*(images or {}), *(stem for _, there in masks for stem in there or {})])
    return [
        ((images or {}).get(stem), tuple(there[stem] for _, there in masks if there and stem in there))
        for stem in sorted(stems)
    ]


# --- LIDC -------------------------------------------------------------------------------------------------------------


class _SliceItem(NamedTuple):
    piece: lidc.Slice
    part: str
    format: str
    segments: Path | None


def verify_lidc(
    folder: Path, num_raters: int, image_size: int, num_classes: int, segment_folder: Path | None, workers: int
) -> Report:
    """Check LIDC's pickle slice by slice, the two lists of names, and the superpixels of the training slices.

    The pickle is read whole, as in training.
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
    items = [_CaseItem(path, "train", segments.get(stem)) for stem, path in slices.items()]
    items += [_CaseItem(path, "test", None) for there in tests.values() for path in there.values()]
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
