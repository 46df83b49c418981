"""DICOM and NIfTI by pydicom and nibabel of requirements-extra.txt: grey values as 0..255, labels, slices and back.

A volume is turned to the nearest canonical axes (left to right, back to front, down to up) before it is cut, so that an
axial slice is one in every file; `assembled` turns the slices back to the axes of the file.
"""

import gzip
import importlib
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataloaders.files import IMAGE_SUFFIXES
from dataloaders.pixels import MOST_BYTES, to_bytes
from dataloaders.prepare.settings import PLANES
from utils.commands.errors import UserError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# What a DICOM header says of who the patient is, beside the name.
OF_PATIENTS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "PatientBirthDate")
_CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])  # as nibabel writes axes and their directions

Window = tuple[float, float] | None  # centre and width


class Identity(NamedTuple):
    """Who a DICOM file is of: never printed nor written."""

    patient: str
    texts: tuple[str, ...]  # that would give the patient away in a name


class Geometry(NamedTuple):
    """What a volume's slices need to become the volume again; JSON values."""

    shape: list[int]  # of the file, three axes
    affine: list[list[float]]  # 4x4, voxel indices to millimetres
    units: str  # of lengths, as NIfTI names them
    slices: str  # of `PLANES`


def library(name: str) -> Any:
    """pydicom or nibabel. Raises `UserError` if it is not installed; it names no file: a name may be a patient's."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package, kind = name.split(".")[0], "NIfTI" if name == "nibabel" else "DICOM"
        raise UserError(
            f"--images_root: {kind} files need {package}, which is not installed: "
            "python -m pip install -r requirements-extra.txt"
        ) from error


# --- DICOM ------------------------------------------------------------------------------------------------------------


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its suffix or, where that is not known, by its mark."""
    if path.suffix.lower() in (*DICOM_SUFFIXES, *IMAGE_SUFFIXES, *NIFTI_SUFFIXES):
        return path.suffix.lower() in DICOM_SUFFIXES
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def identity_of(path: Path) -> Identity:
    """Who a DICOM file is of; of a file that cannot be read, nobody: its pixels' reader says so."""
    try:
        with _quiet():
            header = library("pydicom").dcmread(path, stop_before_pixels=True)
            texts = [str(header.get(name) or "").strip() for name in OF_PATIENTS]
            name = str(header.get("PatientName") or "")
        parts = [part for group in name.split("=") for part in (group, *group.replace("^", " ").split())]
        patient = texts[0] or name or str(header.get("StudyInstanceUID") or path)
        return Identity(patient, tuple(dict.fromkeys(text for text in (*texts, *parts) if text)))
    except UserError:
        raise
    except Exception:  # whatever its parser runs into on a damaged file
        return Identity(str(path), ())


def read_dicom(path: Path, window: Window) -> list[np.ndarray]:
    """The frames of a DICOM file, uint8 (H,W,1) or (H,W,3). Grey: 0..255 over ``window``, else over the file's VOI LUT
    or window; without any, 8 bits as they are and others by the file's percentiles (`dataloaders.pixels.to_bytes`).
    MONOCHROME1 is turned to bright on dark.

    Raises `UserError` if it cannot be read; nothing of what its header says of the patient is in the message.
    """
    dataset, frames = _frames(path)
    pixels = library("pydicom.pixels")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    try:
        with _quiet():
            if photometric == "PALETTE COLOR":
                colours = pixels.apply_color_lut(frames, dataset)
                frames = (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
            if frames.ndim == 4:
                if frames.dtype != np.uint8:
                    raise _unreadable(path, f"colours of type {frames.dtype}")
                return list(frames[..., :3])
            headers = [_header_of(dataset, index) for index in range(len(frames))]
            values = [pixels.apply_modality_lut(f, h) for f, h in zip(frames, headers, strict=True)]
            if window:
                shown = [_by_window(frame, window) for frame in values]
            elif all(map(_has_window, headers)):
                shown = [_by_header(pixels, f, h) for f, h in zip(values, headers, strict=True)]
            else:
                stack = np.stack(values)
                shown = list(frames if frames.dtype == np.uint8 and (stack == frames).all() else _stretched(stack))
    except UserError:
        raise
    except Exception as error:  # whatever its parser runs into on a damaged file
        raise _unreadable(path, type(error).__name__) from error
    grey = [frame.astype(np.uint8)[..., None] for frame in shown]
    return [255 - frame for frame in grey] if photometric == "MONOCHROME1" else grey


def dicom_labels(path: Path) -> list[np.ndarray]:
    """The stored values of each frame of a DICOM file that holds labels, integers (H,W). Raises `UserError`."""
    _, frames = _frames(path)
    if frames.ndim != 3:
        raise _unreadable(path, "a mask in colours; store it as grey")
    return list(frames)


def _frames(path: Path) -> tuple[Any, np.ndarray]:
    """A DICOM file, and its pixels as stored: (frames,H,W) or (frames,H,W,channels)."""
    pydicom = library("pydicom")
    dataset = None
    try:
        with _quiet():
            dataset = pydicom.dcmread(path)
            if "PixelData" not in dataset:
                raise _unreadable(path, "no pixels in it")
            if dataset.get("Modality") == "SEG":
                raise _unreadable(path, "a DICOM segmentation object; export it as PNG, or as NIfTI with its volume")
            count, channels = int(dataset.get("NumberOfFrames") or 1), int(dataset.SamplesPerPixel)
            if math.prod((dataset.Rows, dataset.Columns, count, channels, 2)) > MOST_BYTES:
                raise _unreadable(path, f"{count} frames of {dataset.Columns}x{dataset.Rows} are too many")
            values = dataset.pixel_array
    except UserError:
        raise
    except Exception as error:  # whatever its parser runs into on a damaged file, and decoders that are not there
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        reason = type(error).__name__
        if isinstance(error, RuntimeError) and syntax and syntax.is_compressed:
            reason = f"its compression, {syntax.name}, is not decoded by what is installed; pylibjpeg or GDCM may do it"
        raise _unreadable(path, reason) from error
    return dataset, values.reshape(count, dataset.Rows, dataset.Columns, *([channels] if channels > 1 else []))


def _header_of(dataset: Any, index: int) -> Any:
    """What a header says of a frame's values, that of an enhanced file in its functional groups too."""
    found = library("pydicom").Dataset()
    found.update(dataset.group_dataset(0x0028))
    for groups, place in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
        frames = dataset.get(groups) or []
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in frames[place].get(name) or [] if place < len(frames) else []:
                found.update(item)
    return found


def _has_window(header: Any) -> bool:
    return "VOILUTSequence" in header or None not in (header.get("WindowCenter"), header.get("WindowWidth"))


def _by_header(pixels: Any, values: np.ndarray, header: Any) -> np.ndarray:
    """0..255 by the VOI LUT or window of a header, of several the first."""
    if "VOILUTSequence" in header:
        brightest = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        return np.rint(pixels.apply_voi(np.rint(values).astype(np.int64), header) * (255 / brightest)).clip(0, 255)
    beyond = np.array([-1e9, 1e9])  # what the window's function makes of them are its darkest and brightest values
    with np.errstate(over="ignore"):
        low, high = pixels.apply_windowing(beyond, header)
        shown = pixels.apply_windowing(values.astype(np.float64), header)
    return np.rint((shown - low) / (high - low) * 255).clip(0, 255)


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: not readable ({reason})")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what pydicom would tell of a header, which may name the patient."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


# --- NIfTI ------------------------------------------------------------------------------------------------------------


def read_nifti(path: Path, slices: str, window: Window) -> tuple[list[np.ndarray], Geometry]:
    """The slices of a volume, uint8 (H,W,1), up or front above, and how they lie in it. 8 bits are taken as they are;
    others become 0..255 over ``window``, without one by the percentiles of the whole volume, so that slices stay alike.

    Raises `UserError` if it is not a volume of three axes of finite numbers.
    """
    volume, geometry, turn = _volume(path, slices)
    if volume.dtype != np.uint8:
        volume = _by_window(volume, window) if window else _stretched(volume)
    elif window:
        volume = _by_window(volume, window)
    planes = _cut(library("nibabel"), volume.astype(np.uint8), turn, slices)
    return [plane[..., None] for plane in planes], geometry


def reached(values: np.ndarray, threshold: float | None) -> np.ndarray:
    """0/1, whether values reach ``threshold``; the values themselves where there is none."""
    return values if threshold is None else (values >= threshold).astype(np.uint8)


def nifti_labels(path: Path, slices: str, threshold: float | None = None) -> tuple[list[np.ndarray], Geometry]:
    """The slices of a volume of labels, integers (H,W), as `read_nifti` cuts them; with ``threshold`` 0/1, whether the
    values reach it. Raises `UserError`."""
    volume, geometry, turn = _volume(path, slices)
    volume = reached(volume, threshold)
    if volume.dtype.kind == "f":
        if not (volume == np.rint(volume)).all():
            reason = f"{path}: labels that are no whole numbers; if these are probabilities, add --threshold 0.5"
            raise UserError(reason)
        volume = volume.astype(np.int64)
    return _cut(library("nibabel"), volume, turn, slices), geometry


def same_space(first: Geometry, second: Geometry) -> bool:
    """Whether the corners of two volumes lie at the same places, to a tenth of a voxel."""
    corners = [
        np.array([[*np.multiply(corner, np.array(lies.shape) - 1), 1] for corner in np.ndindex(2, 2, 2)])
        @ np.array(lies.affine).T
        for lies in (first, second)
    ]
    bounds = [(places.min(axis=0), places.max(axis=0)) for places in corners]
    voxel = np.linalg.norm(np.array(first.affine)[:3, :3], axis=0).min()
    return bool(np.allclose(bounds[0], bounds[1], atol=voxel / 10, rtol=0))


def assembled(planes: Sequence[np.ndarray], geometry: Geometry, where: Path) -> bytes:
    """A volume of labels as a .nii.gz file's bytes, of the affine that the slices' volume has.

    planes: uint8 (H,W), all slices in their order. Raises `UserError` if nibabel is not installed or they do not fit.
    """
    nib = library("nibabel")
    turn = nib.io_orientation(np.array(geometry.affine))
    axis = PLANES.index(geometry.slices)
    stacked = np.moveaxis(np.stack([plane[::-1].T for plane in planes]), 0, axis)
    volume = nib.apply_orientation(stacked, nib.orientations.ornt_transform(_CANONICAL, turn))
    if list(volume.shape) != list(geometry.shape):
        raise UserError(
            f"{where}: slices of a volume {volume.shape}, expected {tuple(geometry.shape)}; prepare it again"
        )
    image = nib.Nifti1Image(np.ascontiguousarray(volume), np.array(geometry.affine))
    image.header.set_xyzt_units(geometry.units)
    return gzip.compress(image.to_bytes(), mtime=0)


def _volume(path: Path, slices: str) -> tuple[np.ndarray, Geometry, np.ndarray]:
    """The values of a file (X,Y,Z) as its header scales them, how they lie, and the turn to the canonical axes."""
    nib = library("nibabel")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = nib.load(path)
            shape = list(image.shape)
            while len(shape) > 3 and shape[-1] == 1:
                shape.pop()
            if len(shape) != 3 or 0 in shape:
                raise _unreadable(path, f"of shape {tuple(image.shape)}; one volume of three axes is read")
            if math.prod(shape) > MOST_BYTES:
                raise _unreadable(path, f"of shape {tuple(image.shape)}, too large; cut it into pieces, with its label")
            values = np.asanyarray(image.dataobj).reshape(shape)
            turn = nib.io_orientation(image.affine)
            units = image.header.get_xyzt_units()[0]
    except UserError:
        raise
    except Exception as error:  # whatever its parser runs into on a damaged file
        raise _unreadable(path, type(error).__name__) from error
    if values.dtype.kind not in "uif" or not np.isfinite(values).all():
        raise _unreadable(path, f"values of type {values.dtype}, or NaN or infinite ones; store finite numbers")
    if not np.isfinite(turn).all():
        raise _unreadable(path, "an affine that leaves an axis without a direction")
    return values, Geometry(shape, np.asarray(image.affine, float).tolist(), str(units), slices), turn


def _cut(nib: Any, volume: np.ndarray, turn: np.ndarray, slices: str) -> list[np.ndarray]:
    canonical = np.moveaxis(nib.apply_orientation(volume, turn), PLANES.index(slices), 0)
    return [np.ascontiguousarray(plane.T[::-1]) for plane in canonical]


# --- Intensities ------------------------------------------------------------------------------------------------------


def _by_window(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    centre, width = window
    unit = (np.asarray(values, np.float32) - np.float32(centre - width / 2)) / np.float32(width)
    return np.rint(unit.clip(0, 1) * 255)


def _stretched(values: np.ndarray) -> np.ndarray:
    return to_bytes(values.reshape(len(values), -1)).reshape(values.shape)
