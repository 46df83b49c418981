"""Strict reading of images, masks and arrays, and pairing of files by name.

Every reader returns what the file holds or raises `UserError` naming the file, what was found and what to do;
nothing is guessed silently.
"""

import difflib
import hashlib
import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from dataloaders.listing import (
    IMAGE_SUFFIXES,
    by_stem,
    check_readable,
    in_subfolders,
    list_folder,
    merge_remedy,
    several_of_one,
    unread_kind,
)
from dataloaders.mask_advice import advice, as_classes, thresholded
from dataloaders.pixels import decode, format_of, is_deep_tiff, load_array, read_stored, to_bytes
from dataloaders.unread import unreadable
from utils.commands.errors import UserError, listed
from utils.masks.geometry import IGNORED, value_counts

LOSSY = 16  # grey levels by which lossy compression may change the inside of an area


class Mask(NamedTuple):
    """A mask as read: ``labels`` (H,W) uint8 classes 0..K-1; ``artefacts`` if in-between greys were thresholded."""

    labels: np.ndarray
    artefacts: bool


def contents_of(paths: Sequence[Path], beside: object = None) -> str:
    """A digest of the names of files and what they hold, in their order, wherever they lie: 64 hexadecimal digits.

    beside: what else, a JSON value, the digest is to depend on. Raises `UserError` if a file cannot be read.
    """

    def digest(path: Path) -> bytes:
        try:
            with open(path, "rb") as file:
                return path.name.encode(errors="surrogateescape") + hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise unreadable(path, error, "file") from error

    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        return hashlib.sha256(json.dumps(beside).encode() + b"".join(pool.map(digest, paths))).hexdigest()


def list_images(folder: Path) -> dict[str, Path]:
    """The image files of ``folder`` as stem -> path, in the order of their stems; other files are named on stderr.

    Raises `UserError` as `find_images`, and if a file of data is not there (a link whose target is gone) or of a kind
    that is not read.
    """
    found = find_images(folder)
    check_readable(folder, found.values(), IMAGE_SUFFIXES)
    return found


def find_images(folder: Path, apart_from: Sequence[Path] = ()) -> dict[str, Path]:
    """As `list_images`, with those that cannot be read: whoever reads them is told why.

    apart_from: subfolders that are none of the data.

    Raises `UserError` if the folder is missing or holds no image, if there are images in its subfolders, if two files
    share a stem, or if a name is not plain (`utils.commands.errors.is_plain`).
    """
    folder = Path(folder)
    data, below, others = list_folder(folder, IMAGE_SUFFIXES, apart_from)
    if below:
        raise UserError(f"{folder}: {in_subfolders(folder, below)}")
    if not data:
        raise UserError(f"{folder}: no image in it ({', '.join(sorted(IMAGE_SUFFIXES))} are read)")
    if others:
        print(f"note: {folder}: not images, left out: {listed(others)}", file=sys.stderr)
    return by_stem(folder, data)


def check_file(path: Path) -> Path:
    """``path``. Raises `UserError` if nothing is there, or a file of a kind that is not read as an image."""
    if reason := unread_kind(path, IMAGE_SUFFIXES):
        raise UserError(f"{path}: {reason}")
    return path


def pair_by_stem(images: dict[str, Path], partners: dict[str, Path], partner_folder: Path) -> list[tuple[Path, Path]]:
    """(image, partner) for every image, matched by stem, in the order of ``images``.

    Raises `UserError` if several partners are of one image by their names, or if an image or a partner stands alone,
    with the most similar name where there is one.
    """
    alone = [stem for stem in images if stem not in partners]
    strangers = [stem for stem in partners if stem not in images]
    image_folder = next(iter(images.values())).parent
    if strangers and (several := several_of_one(images, partners)):
        owner, group = next(iter(several.items()))
        raise UserError(
            f"{partner_folder}: {listed(partners[stem].name for stem in group)} seem to be several masks of one image, "
            f"{images[owner].name}; so it is with {len(several)} of {len(images)} images: "
            f"{merge_remedy(image_folder, partner_folder)}"
        )
    if alone:
        raise UserError(
            f"{partner_folder}: nothing for {len(alone)} of {len(images)} images: "
            f"{listed(images[stem].name for stem in alone)}{similar_name(alone[0], strangers, partners)}; files are "
            "paired by the name before the suffix"
        )
    if strangers:
        raise UserError(
            f"{partner_folder}: {listed(partners[stem].name for stem in strangers)} without an image of that name in "
            f"{image_folder}; add the image, or move the file elsewhere"
        )
    return [(images[stem], partners[stem]) for stem in images]


def similar_name(stem: str, strangers: Sequence[str], there: Mapping[str, Path]) -> str:
    """A remark on which of ``strangers``, stems of files ``there``, has the name most similar to ``stem``, if any."""
    same = [other for other in strangers if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", stem)]
    if same:
        return f"; {there[same[0]].name} there looks the same, but its letters are stored in another Unicode form"
    close = difflib.get_close_matches(stem, strangers, n=1, cutoff=0.5)
    return f"; the most similar name there is {there[close[0]].name}" if close else ""


def read_image(path: Path, channels: int | None = None) -> np.ndarray:
    """An image as uint8 (H,W,C), 0..255, of its own number of channels or of ``channels``; alpha is dropped.

    Eight bits are taken as stored; of other depths each channel is scaled by itself (`dataloaders.pixels.to_bytes`).
    Grey becomes colour by repetition, colour grey by luma. Raises `UserError` if the file is unreadable, truncated or
    not a single image, or has another number of channels than was asked for and is neither grey nor colour.
    """
    return with_channels(path, as_bytes(read_stored(path)), channels)


def as_bytes(stored: np.ndarray) -> np.ndarray:
    """An image's values as stored (H,W,C) -> uint8 (H,W,C): those of eight bits as they are, else scaled."""
    if stored.dtype == np.uint8:
        return stored
    return np.dstack([to_bytes(plane) for plane in np.moveaxis(stored, -1, 0)])


def with_channels(path: Path, image: np.ndarray, channels: int | None) -> np.ndarray:
    """An image (H,W,C) uint8 with ``channels`` channels, or as it is for None.

    Raises `UserError`, naming ``path``, if it has another number and is neither grey nor colour.
    """
    stored = image.shape[2]
    if channels in (None, stored):
        return image
    if {channels, stored} != {1, 3}:
        raise UserError(f"{path}: {stored} channels, expected {channels}")
    if channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return image.repeat(3, axis=-1)


def channels_in_words(channels: int) -> str:
    """1 channel, 2 channels, ..."""
    return f"{channels} channel{'s' * (channels != 1)}"


def channels_of(path: Path) -> int:
    """The channels that `read_image` gives an image by itself. Decodes no pixel.

    Raises `UserError` if the file is no image.
    """
    return format_of(path).channels


def read_mask(path: Path, num_classes: int = 2, ignore_label: int | None = None) -> Mask:
    """A label mask. Two classes: stored 0/1 or 0/255, or grey with compression artefacts, thresholded at 128; of a
    palette image the colours, where they are black and white, else the indices 0/1.
    More classes: the values 0..K-1, or the indices of a palette image. An array (H,W) of whole numbers is read as grey.

    Pixels of the value ``ignore_label`` become `IGNORED`, whatever the others mean.

    Raises `UserError` if the file is unreadable or its values are ambiguous: a third grey level, colours, values
    above K-1.
    """
    return classes_of(path, mask_values(path, num_classes, ignore_label), num_classes, ignore_label)


def classes_of(path: Path, values: np.ndarray, num_classes: int, ignore_label: int | None = None) -> Mask:
    """As `read_mask`, of the stored ``values`` (H,W) of the mask at ``path``. Raises `UserError` as it does."""
    ignored = None if ignore_label is None else values == ignore_label
    if ignored is not None and ignored.any():
        rest = values[~ignored]
        if num_classes == 2 and ignore_label == 255 and not rest.any():
            raise UserError(
                f"{path}: only 0 and 255 in it, and --ignore_label 255: either 255 is the foreground, then leave "
                "--ignore_label out, or nothing is labelled as foreground, then leave this image out"
            )
        labels, artefacts = read_values(path, np.where(ignored, 0, values), num_classes)
        return Mask(np.where(ignored, IGNORED, labels).astype(np.uint8), artefacts)
    return read_values(path, values, num_classes)


def read_values(path: Path, values: np.ndarray, num_classes: int) -> Mask:
    """The classes that the stored values (H,W) of the mask at ``path`` stand for. Raises `UserError` as `read_mask`."""
    levels, counts = value_counts(values)
    if levels[-1] < num_classes:
        return Mask(values.astype(np.uint8), False)
    if num_classes == 2:
        if set(levels.tolist()) <= {0, 255}:
            return Mask((values == 255).astype(np.uint8), False)
        if len(levels) > 3 and 192 <= levels[-1] <= 255 and _has_artefacts(values.astype(np.uint8), levels):
            return Mask((values >= 128).astype(np.uint8), True)
    shares = ", ".join(f"{level} ({count / values.size:.1%})" for level, count in zip(levels, counts, strict=True))
    found = shares if len(levels) <= 6 else f"{len(levels)} values from {levels[0]} to {levels[-1]}"
    todo = advice(levels.tolist(), num_classes)
    if num_classes > 2:
        raise UserError(f"{path}: mask values {found}; expected classes 0..{num_classes - 1} (--num_classes); {todo}")
    raise UserError(f"{path}: ambiguous mask: found {found}; expected 0/1 or 0/255; {todo}")


def _has_artefacts(values: np.ndarray, levels: np.ndarray) -> bool:
    """Whether grey values (H,W), whose ``levels`` are given, are two classes as lossy compression leaves them: many
    levels near black and white, and in between only a thin seam along the outline.

    A third class has an interior that a 5x5 square fits into, of levels in between, or of one level that is far from
    the most frequent one on its side of 128; or it is numbered, with 255 for what is to be ignored.
    """
    if levels[-1] == 255 and levels[-2] == len(levels) - 2 < 64:  # 0, 1, 2, ... and 255
        return False
    square = np.ones((5, 5), np.uint8)
    between = ((values >= 64) & (values < 192)).astype(np.uint8)
    if between.mean() > 0.1 or cv2.erode(between, square).any():
        return False
    # Beyond the edge anything may lie: a seam along it is no interior.
    lowest, highest = (
        operation(values, square, borderType=cv2.BORDER_CONSTANT, borderValue=beyond)
        for operation, beyond in ((cv2.erode, 0), (cv2.dilate, 255))
    )
    interiors, counts = np.unique(values[lowest == highest].astype(np.intp), return_counts=True)
    for side in (interiors < 128, interiors >= 128):
        near = interiors[side]
        if len(near) and np.abs(near - near[counts[side].argmax()]).max() > LOSSY:
            return False
    return True


def read_segments(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """A superpixel map as int32 (H,W), ids >= 0 and below H*W.

    Raises `UserError` if the file is unreadable, not of ``shape``, not of whole numbers or has negative ids.
    """
    remedy = "remove it, and training makes it again"
    segments = load_array(path, remedy=remedy)
    if segments.shape != tuple(shape):
        raise UserError(
            f"{path}: superpixels of shape {segments.shape}, expected {tuple(shape)}: "
            f"{remedy}; or give another folder by --slic_root, or train at the size of the superpixels"
        )
    if segments.dtype.kind == "f" and not np.isfinite(segments).all():
        raise UserError(f"{path}: superpixel ids hold NaN or infinite values; {remedy}")
    if segments.dtype.kind not in "iu":
        raise UserError(f"{path}: superpixel ids are {segments.dtype}, expected whole numbers; {remedy}")
    if segments.min() < 0:
        raise UserError(f"{path}: negative superpixel id {segments.min()}; {remedy}")
    if segments.max() >= segments.size:  # sparse ids would cost memory in every vote
        segments = np.unique(segments, return_inverse=True)[1].reshape(shape)
    return segments.astype(np.int32)


def mask_values(path: Path, num_classes: int, ignore_label: int | None = None) -> np.ndarray:
    """The stored values of a mask as (H,W) integers; a colour or alpha channel that says more is an error."""
    return whole_numbers(grey_values(path, num_classes, ignore_label), path)


def grey_values(path: Path, num_classes: int = 2, ignore_label: int | None = None) -> np.ndarray:
    """As `mask_values`, (H,W) of whatever numbers are stored."""
    if path.suffix.lower() == ".npy":
        return _array_values(path)
    if is_deep_tiff(path):
        return _equal_channels(read_stored(path), path, num_classes)
    image = decode(path)
    values = np.asarray(image)
    more = ""
    if image.mode == "P" and num_classes == 2:
        greys = _greys_of(image, path)
        if values.max() < len(greys):
            return greys[values]
        unlabelled = values == ignore_label  # an index too
        known = np.where(unlabelled, 0, values)
        if known.max() < len(greys):
            return np.where(unlabelled, values, greys[known] // 255)
        if known.max() > 1:  # perhaps a palette of greys, 0 and 255
            flags = as_classes(np.unique(values).tolist(), num_classes)
            more = f"; its palette has indices: {flags}" if flags else ""
            image = image.convert("RGB")
            values = np.asarray(image)
    if image.mode in {"RGBA", "LA"}:
        if values[..., -1].min() != values[..., -1].max():
            raise UserError(f"{path}: a mask whose transparency varies is ambiguous; store it as grey 0/255")
        values = values[..., :-1]
    if image.mode in {"RGB", "RGBA"} and not format_of(path).eight_bit:
        values = read_stored(path)  # Pillow keeps the upper 8 bits of deep colours only
    return _equal_channels(values, path, num_classes, more)


def _equal_channels(values: np.ndarray, path: Path, num_classes: int, more: str = "") -> np.ndarray:
    """(H,W) or (H,W,C) -> (H,W). Raises `UserError`, with ``more`` advice, if channels say different things."""
    if values.ndim == 2:
        return values
    # Lossy compression shifts equal channels by a few levels; more means colours with a meaning of their own, and so
    # does any difference of small numbers, which are classes.
    spread = float(np.ptp(values.astype(np.float64), axis=-1).max())
    if spread > (LOSSY if values.max() >= 128 else 0):
        store = "store it as grey 0/255" if num_classes == 2 else "store the classes as grey or palette indices"
        raise UserError(f"{path}: a colour mask (channels differ by up to {spread:g}); {store}{more}")
    return values[..., 0]


def _greys_of(image: Image.Image, path: Path) -> np.ndarray:
    """What the first colours of a palette stand for, 0 and 255, where they are black and white, in whatever order;
    nothing where they are not.

    Raises `UserError` if the first alone is white, and so the background of an image that is read by its indices.
    """
    colours = np.reshape(image.getpalette("RGB") or [], (-1, 3))[:2]
    white, black = (colours >= 240).sum(axis=1) == 3, (colours < 16).sum(axis=1) == 3
    if white.any() and (white | black).all():
        return np.where(white, 255, 0).astype(np.uint8)
    if white[:1].any() and not white.all():
        raise UserError(
            f"{path}: ambiguous mask: in its palette, index 0 is white and index 1 is {tuple(colours[1].tolist())}; "
            "store it as grey, 0 for the background and 255 for the foreground"
        )
    return np.zeros(0, np.uint8)


def _array_values(path: Path) -> np.ndarray:
    values = load_array(path)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not values.size:
        raise UserError(f"{path}: an array of shape {values.shape}; a mask is (H,W)")
    return values


def whole_numbers(values: np.ndarray, path: Path) -> np.ndarray:
    """The stored values of the mask at ``path`` as integers from 0, be they of any type.

    Raises `UserError` for negative values and others that are no whole numbers.
    """
    if values.dtype.kind == "f" and np.isfinite(values).all():
        if (values != np.rint(values)).any() and values.min() >= 0:
            found = f"{values.min():g} to {values.max():g}"
            raise UserError(
                f"{path}: mask values from {found} that are no whole numbers; {thresholded(float(values.max()))}"
            )
        values = values.astype(np.int64)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and set(np.unique(values).tolist()) <= {0, 65535}:
        values = (values // 257).astype(np.uint8)
    if values.dtype.kind not in "iu" or values.min() < 0:
        raise UserError(f"{path}: mask values of type {values.dtype} from {values.min()}; store whole numbers from 0")
    return values
