"""Everything that is wrong with a dataset, found in one pass and reported together; nothing is changed.

The loaders stop at the first fault. Here each file goes through the same readers by itself, and every refusal becomes a
`Finding`. An error is what training would stop at; a warning is what it would take, perhaps to the harm of the result;
a note is what it does by itself.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dataloaders.dataset_folder import VAL_FRACTION, check_size, common_format, is_meant
from dataloaders.datasets import NOISE_TYPES, Dataset
from dataloaders.files import as_bytes, check_file, read_mask, similar_name, with_channels
from dataloaders.listing import IMAGE_SUFFIXES, in_subfolders, list_folder, merge_remedy, same_stem, several_of_one
from dataloaders.orientation import known_orientation, turned_alone, turned_in_words
from dataloaders.pixels import decode, load_array, read_stored
from dataloaders.raters import split_by_patient
from dataloaders.slic import superpixel_folder
from dataloaders.unread import missing_folder
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
from utils.commands.errors import is_plain, listed

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
    mask_folders = [masks] if masks else [folder / name for name in wanted if is_meant(folder / name)]
    # Without any, the first is the one that is missed.
    train = _pair_up(report, folder, folder / layout.images, mask_folders or [folder / next(iter(wanted))])
    images = [image.stem for image, _ in train if image]
    test_folders = folder / layout.images_test, folder / layout.masks_test
    test = []
    if any(map(is_meant, test_folders)):
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
    for of_part in (train, test):
        _check_orientation(report, folder, [(image, mask) for image, masks in of_part if image for mask in masks])
    unreadable = {finding.name for finding in report.findings if finding.check == "readable"}
    readable = [pair.image for pair in pairs if pair.image and short_name(pair.image, folder) not in unreadable]
    if readable:
        with redirect_stdout(StringIO()):  # images of another depth than most are warned of already
            found = attempt(report.findings, "formats", "all images together", common_format, readable, channels)
        report.facts["channels"], report.facts["intensities"] = found or (None, None)
    return report


def _check_orientation(report: Report, root: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Warn of each image that EXIF data turn otherwise than a mask, and of all together, by folder of masks."""
    for folder in dict.fromkeys(mask.parent for _, mask in pairs):
        those = [pair for pair in pairs if pair[1].parent == folder]
        if text := turned_in_words(those):
            report.warn("orientation", short_name(folder, root), text)
            for image, mask in turned_alone(those):
                text = f"EXIF orientation {known_orientation(image)}, that of {short_name(mask, root)}: "
                report.warn("orientation", short_name(image, root), f"{text}{known_orientation(mask)}")


def _look_at_pair(pair: _Pair, task: Task) -> Look:
    look = Look([], [], [])
    image = None
    if pair.image:
        name = short_name(pair.image, task.root)
        stored = attempt(look.findings, "readable", name, _stored, pair.image)
        if stored is not None:
            image = as_bytes(stored)
            kind = _format(pair.image, stored)
            look.pictures.append(picture_of(name, pair.part, name, image, kind, look.findings))
            attempt(look.findings, "formats", name, with_channels, pair.image, image, task.channels)
    for path in pair.masks:
        name = short_name(path, task.root)
        if attempt(look.findings, "readable", name, check_file, path) is None:
            continue
        refused: list[Finding] = []
        mask = attempt(refused, "values", name, read_mask, path, task.num_classes, task.ignore_label)
        if mask is None:
            # Told apart for the table alone: one that cannot be decoded, and one whose values are refused.
            decodable = attempt(look.findings, "readable", name, _decoded, path) is not None
            look.findings.extend(refused if decodable else ())
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


def _stored(path: Path) -> np.ndarray:
    return read_stored(check_file(path))


def _decoded(path: Path) -> object:
    return (load_array if path.suffix.lower() == ".npy" else decode)(path)


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
        reason = str(missing_folder(folder, "; docs/data.md has the layout")).removeprefix(f"{folder}: ")
        report.error("files", name, reason)
        return None
    try:
        data, below, others = list_folder(folder, IMAGE_SUFFIXES)
    except OSError as error:
        report.error("files", name, f"cannot be listed ({error.strerror})")
        return None
    if below:
        report.error("files", name, in_subfolders(folder, below))
    for other in others:
        report.warn("files", short_name(folder / other, root), "not an image; left out")
    found: dict[str, Path] = {}
    for path in data:
        if not is_plain(path.name):
            report.error("names", short_name(path, root), "control characters or bytes that are not UTF-8 in its name")
        elif path.stem in found:
            report.error("names", short_name(path, root), same_stem(found[path.stem], path))
        else:
            found[path.stem] = path
    if not found and not below:
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
            for owner, group in several_of_one(images, there).items():
                text = f"{listed(there[stem].name for stem in group)} seem to be masks of one image; "
                report.error("names", short_name(images[owner], root), text + merge_remedy(image_folder, folder))
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
