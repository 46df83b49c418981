"""Distances to label boundaries and resizing: arrays in, arrays out."""

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt

IGNORED = 255  # the label of a pixel without one, as in utils/method/losses.py
DISTANCE_CAP = 10  # pixels; docs/method.md section 2
MARGIN = 1.8  # side of a crop, in lengths of what it is to show
SMALLEST = 32  # pixels of the image that a crop shows at least


def foreground(label: np.ndarray) -> np.ndarray:
    """Where a label (H,W) has a foreground class, bool; `IGNORED` pixels have none."""
    return (label != 0) & (label != IGNORED)


def value_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of an array, ascending, and how often each occurs; of bytes without sorting them."""
    if values.dtype != np.uint8:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.ravel(), minlength=256)
    levels = np.flatnonzero(counts)
    return levels.astype(np.uint8), counts[levels]


def squared_boundary_distance(label: np.ndarray, cap: int = DISTANCE_CAP) -> np.ndarray:
    """Squared Euclidean distance from each pixel to the nearest pixel of another class, at most cap**2, as uint8.

    label: integers, any number of spatial axes and classes. A squared distance on a grid is a whole number, so
    uint8 holds it exactly for cap <= 15 in a quarter of the memory of a float. A label with one class only has no
    boundary: cap**2 everywhere. `IGNORED` pixels are no class, and their rim is no boundary; their own distance is that
    to the second nearest class. Source: docs/method.md sections 2 and 5.
    """
    assert 1 <= cap <= 15
    squared = np.full(label.shape, cap * cap, np.uint8)
    classes, _ = value_counts(label)
    if IGNORED in classes:
        found = [_distance(label != value) for value in classes if value != IGNORED]
        if len(found) > 1:  # the nearest class of a labelled pixel is its own
            second = np.partition(np.stack(found), 1, axis=0)[1]
            squared[second < cap] = np.rint(second[second < cap] ** 2)
        return squared
    for value in classes if len(classes) > 1 else ():
        inside = label == value
        distance = _distance(inside)
        near = inside & (distance < cap)
        squared[near] = np.rint(distance[near] ** 2)
    return squared


def _distance(inside: np.ndarray) -> np.ndarray:
    """Euclidean distance from each pixel where ``inside`` is True to the nearest where it is not."""
    if inside.ndim == 2:  # OpenCV's is exact too, and several times as fast as scipy's
        return cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance_transform_edt(inside)


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 (H,W,C) -> uint8 (size,size,C), or of the given height and width: by area where it shrinks, linear where it
    grows."""
    height, width, channels = image.shape
    rows, columns = _sides(size)
    if (height, width) == (rows, columns):
        return image
    how = cv2.INTER_AREA if rows * columns < height * width else cv2.INTER_LINEAR
    # OpenCV takes up to four channels at once.
    parts = [np.ascontiguousarray(image[..., i : i + 4]) for i in range(0, channels, 4)]
    return np.dstack([cv2.resize(part, (columns, rows), interpolation=how) for part in parts])


def resize_label(label: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """(H,W) class values -> (size,size), or of the given height and width, nearest neighbour, so that no new value
    appears."""
    rows, columns = _sides(size)
    if label.shape == (rows, columns):
        return label
    return cv2.resize(label, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)


def longest_side(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width of an image (H,W,...) resized so that the longer of them is ``size``."""
    height, width = (max(1, round(side * size / max(shape[:2]))) for side in shape[:2])
    return height, width


def crop_around(shown: np.ndarray) -> tuple[slice, slice]:
    """The part of an image, rows and columns, in which to look at the pixels ``shown``, bool (H,W): a square with a
    margin around them, as far as the image goes; all of it where there is nothing to show."""
    if not shown.any():
        return slice(0, shown.shape[0]), slice(0, shown.shape[1])
    ends = [np.flatnonzero(shown.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    side = max(SMALLEST, round(MARGIN * max(last - first + 1 for first, last in ends)))
    rows, columns = (
        _around((first + last + 1) / 2, side, available)
        for (first, last), available in zip(ends, shown.shape, strict=True)
    )
    return rows, columns


def _around(middle: float, length: int, available: int) -> slice:
    length = min(length, available)
    start = min(max(round(middle - length / 2), 0), available - length)
    return slice(start, start + length)


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def as_png(stored: np.ndarray) -> bytes:
    """uint8 (H,W) or (H,W,3), blue first as OpenCV has it, as a PNG file's bytes."""
    return cv2.imencode(".png", stored)[1].tobytes()
