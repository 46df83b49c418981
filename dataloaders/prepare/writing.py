"""One image file with its masks, read, checked and written; and the choice of the test set."""

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataloaders.files import classes_of, grey_values, mask_values
from dataloaders.orientation import as_stored
from dataloaders.pixels import orientation_of, read_stored
from dataloaders.prepare.medical import (
    NIFTI_SUFFIXES,
    Geometry,
    dicom_labels,
    is_dicom,
    nifti_labels,
    reached,
    read_dicom,
    read_nifti,
    same_space,
)
from dataloaders.prepare.pairing import Source
from dataloaders.prepare.settings import NO_LABEL, Settings
from utils.commands.errors import UserError
from utils.commands.files import write_atomically
from utils.masks.geometry import IGNORED


class Place(NamedTuple):
    """Where images and masks are written, and whether images that need no change are copied or linked."""

    images: Path
    masks: Path | None  # None: --images_only
    link: bool


class Done(NamedTuple):
    """What came of one file."""

    stems: list[str]  # of the images that it gave
    reason: str  # why it gave none; "" if it did
    channels: int
    empty: int  # masks without foreground
    merged: int  # mask files beyond the first
    thresholded: bool  # whether a mask had compression artefacts
    geometry: Geometry | None


def prepare(source: Source, settings: Settings, place: Place | None) -> Done:
    """Read a file and its masks, and write what they give to ``place``; None: nothing is written."""
    try:
        images, geometry = read_images(source.path, settings)
        labels, thresholded = read_labels(source, settings, [plane.shape[:2] for plane in images], geometry)
    except UserError as error:
        return Done([], str(error), 0, 0, 0, False, None)
    several = len(images) > 1 or geometry
    digits = max(3, len(str(len(images) - 1)))
    stems = [f"{source.stem}_{index:0{digits}}" if several else source.stem for index in range(len(images))]
    if place:
        for stem, image, label in zip(stems, images, labels, strict=True):
            _write_image(source.path, stem, image, settings, place)
            if place.masks:
                _write_mask(place.masks / f"{stem}.png", label, settings)
    empty = sum(not ((label != 0) & (label != IGNORED)).any() for label in labels)
    return Done(stems, "", images[0].shape[2], empty, max(len(source.masks) - 1, 0), thresholded, geometry)


def read_images(path: Path, settings: Settings) -> tuple[list[np.ndarray], Geometry | None]:
    """The images of a file, (H,W,C) of the values that it stores, those of DICOM and NIfTI as 0..255; of a volume how
    its slices lie too. Raises `UserError`."""
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        return read_nifti(path, settings.slices, settings.window)
    if is_dicom(path):
        return read_dicom(path, settings.window), None
    image = read_stored(path)
    return [as_stored(image, path) if settings.orientation == "stored" else image], None


def read_labels(
    source: Source, settings: Settings, shapes: Sequence[tuple[int, int]], geometry: Geometry | None
) -> tuple[list[np.ndarray], bool]:
    """A label (H,W) uint8, 0..K-1 and `IGNORED`, for each image of ``source``, whose ``shapes`` are given; and whether
    in-between greys were thresholded.

    Of several masks each pixel takes the highest class; what has a class in one of them is not ignored. Raises
    `UserError` for what cannot be read, is ambiguous, or does not fit the image.
    """
    merged = [np.zeros(shape, np.uint8) for shape in shapes]
    ignored = [np.zeros(shape, bool) for shape in shapes]
    thresholded = False
    for path in source.masks:
        planes = _stored_labels(path, settings, geometry)
        if len(planes) != len(shapes):
            raise UserError(f"{path}: {len(planes)} masks for {len(shapes)} images in {source.path.name}")
        for index, values in enumerate(planes):
            mask = _classes(path, values, settings)
            thresholded |= mask[1]
            if values.shape != shapes[index]:
                raise _misfit(path, values.shape, source.path, shapes[index], settings)
            known = np.where(mask[0] == IGNORED, 0, mask[0])
            merged[index] = np.maximum(merged[index], known)
            ignored[index] |= mask[0] == IGNORED
    if source.value is not None:
        merged = [np.where(label == 1, source.value, label).astype(np.uint8) for label in merged]
    return [
        np.where(without & (label == 0), IGNORED, label).astype(np.uint8)
        for label, without in zip(merged, ignored, strict=True)
    ], thresholded


def _stored_labels(path: Path, settings: Settings, geometry: Geometry | None) -> list[np.ndarray]:
    if path.name.lower().endswith(NIFTI_SUFFIXES):
        planes, own = nifti_labels(path, settings.slices, settings.threshold)
        if geometry and not same_space(geometry, own):
            raise UserError(f"{path}: does not lie where its image lies; resample it to the image's affine and shape")
        return planes
    if is_dicom(path):
        return [reached(values, settings.threshold) for values in dicom_labels(path)]
    if settings.threshold is not None:
        values = reached(grey_values(path), settings.threshold)
    elif settings.values:
        values = mask_values(path, max(settings.classes_written, 2), settings.ignore_label)
    else:
        values = mask_values(path, settings.num_classes, settings.ignore_label)
    return [as_stored(values, path) if settings.orientation == "stored" else values]


def _classes(path: Path, values: np.ndarray, settings: Settings) -> tuple[np.ndarray, bool]:
    """The classes that a mask's stored values stand for, and whether in-between greys were thresholded."""
    if values.dtype.kind not in "iu" or values.min() < 0:
        raise UserError(f"{path}: mask values of type {values.dtype} from {values.min()}; store whole numbers from 0")
    if not settings.values:
        return classes_of(path, values, settings.num_classes, settings.ignore_label)
    known = {0: 0, **settings.values} | ({} if settings.ignore_label is None else {settings.ignore_label: NO_LABEL})
    levels, places = np.unique(values, return_inverse=True)
    unknown = [str(level) for level in levels.tolist() if level not in known]
    if unknown:
        raise UserError(f"{path}: mask values {', '.join(unknown[:6])}, of which --values says nothing")
    classes = np.array([known[level] for level in levels.tolist()], np.uint8)[places].reshape(values.shape)
    return classes, False


def _misfit(path: Path, found: tuple[int, ...], image: Path, wanted: tuple[int, int], settings: Settings) -> UserError:
    text = f"{path}: mask of {found[1]}x{found[0]} pixels for {image.name} of {wanted[1]}x{wanted[0]}"
    if found == wanted[::-1] and settings.orientation == "exif" and orientation_of(image) != 1:
        text += "; the image's EXIF data turn it: if masks were drawn on it as stored, give --orientation stored"
    return UserError(text)


# --- Writing ----------------------------------------------------------------------------------------------------------


def _write_image(path: Path, stem: str, image: np.ndarray, settings: Settings, place: Place) -> None:
    """Copy or link a file that needs no change; else write its pixels, as PNG where that can hold them."""
    medical = path.name.lower().endswith(NIFTI_SUFFIXES) or is_dicom(path)
    if not medical and (settings.orientation == "exif" or orientation_of(path) == 1):
        target = place.images / (stem + path.suffix.lower())
        if place.link:
            os.symlink(path.resolve(), target)
        else:
            write_atomically(target, path.read_bytes())
    elif image.dtype == np.uint8 and image.shape[2] in (1, 3):
        write_atomically(place.images / f"{stem}.png", _png(image[..., ::-1]))  # OpenCV has blue first
    else:
        _write_array(place.images / f"{stem}.npy", image)


def _write_mask(path: Path, label: np.ndarray, settings: Settings) -> None:
    """0/255 for two classes, to be seen in any viewer; else the classes, 255 where there is no label."""
    two = settings.classes_written == 2 and not settings.has_unlabelled
    write_atomically(path, _png(label * 255 if two else label))


def _write_array(path: Path, values: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())


def _png(stored: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(stored))[1].tobytes()


# --- Test set ---------------------------------------------------------------------------------------------------------


def choose_test(groups: Sequence[tuple[str, str, int]], share: float, seed: int) -> set[str]:
    """The patients of the test set, about ``share`` (0..1) of the images, at least one patient and not all.

    groups: for each file its folder, its patient and how many images it gives. Folders are represented alike: patients
    come in random order folder by folder, and each is taken if that brings the images taken so far nearer to
    ``share`` of those passed. Raises `UserError` for a single patient.
    """
    if not share:
        return set()
    images: dict[str, int] = defaultdict(int)
    folder_of: dict[str, str] = {}
    for folder, patient, count in groups:
        images[patient] += count
        folder_of.setdefault(patient, folder)
    if len(images) < 2:
        raise UserError("--test_share: all images are of one patient or file, who cannot be split; give --test_share 0")
    rng = np.random.default_rng(seed)
    folders = sorted(set(folder_of.values()))
    rank = {folder: int(place) for folder, place in zip(folders, rng.permutation(len(folders)), strict=True)}
    patients = [sorted(images)[i] for i in rng.permutation(len(images))]
    patients.sort(key=lambda patient: rank[folder_of[patient]])
    chosen, lacking = set(), 0.0  # images that the test set has too few so far
    for patient in patients:
        lacking += share * images[patient]
        if lacking >= images[patient] / 2 - 1e-9:
            chosen.add(patient)
            lacking -= images[patient]
    if len(chosen) == len(images):
        chosen.discard(patients[0])
    return chosen or {patients[int(rng.integers(len(patients)))]}
