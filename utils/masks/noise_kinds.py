"""Further kinds of simulated label noise, each with one number for its strength: arrays in, arrays out.

Every function takes a mask (H,W) of 0 and 1, a random generator and a strength >= 0, and returns the noisy mask, uint8
(H,W) of 0 and 1. Strength 0 changes nothing. An object is an 8-connected component of the foreground; the diameter of a
mask is that of the disk with as many pixels. What a function draws from the generator does not depend on the strength,
but for `added_noise`, so that a stronger noise is more of the same. All raise ValueError if the mask is not such an
array. Formulas and sources: docs/method.md section 6.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import center_of_mass, find_objects
from skimage.draw import polygon
from skimage.measure import find_contours

from utils.commands.errors import UserError
from utils.masks.noise import binary, dilation_erosion_noise, markov_noise

ROTATION = 30  # degrees, the largest of `area_noise`; Li et al., MICCAI 2021


def polygon_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.125) -> np.ndarray:
    """Draw each outline again with straight lines between few corners, evenly spaced along it from a random start.

    strength: the distance of two corners as a share of the outline's length, at most 1/3: 1/8 gives eight corners.
    Outlines of holes are drawn again as well.
    """
    padded = np.pad(binary(mask), 1)
    outlines = find_contours(padded, 0.5)
    starts = rng.random(len(outlines))
    if strength == 0:
        return padded[1:-1, 1:-1].astype(np.uint8)
    drawn = np.zeros(padded.shape, np.uint8)
    for outline, start in zip(outlines, starts, strict=True):
        steps = np.hypot(*np.diff(outline, axis=0).T)
        length = np.concatenate([[0], np.cumsum(steps)])
        corners = (start + np.arange(0, 1, min(strength, 1 / 3))) % 1 * length[-1]
        rows, columns = (np.interp(corners, length, axis) for axis in outline.T)
        drawn[polygon(rows, columns, padded.shape)] ^= 1  # a hole lies inside an outline
    return drawn[1:-1, 1:-1]


def affine_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.1) -> np.ndarray:
    """Turn a mask about its centre of mass and shift it.

    strength: the length of the shift in diameters of the mask; the angle is up to 90 degrees times strength. What
    leaves the image is lost, what comes in is background.
    """
    foreground = binary(mask)
    angle, direction = rng.uniform((-90, 0), (90, 2 * np.pi))
    shift = strength * _diameter(foreground)
    return _moved(foreground, strength * angle, shift * np.cos(direction), shift * np.sin(direction))


def elastic_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.1) -> np.ndarray:
    """Bend a mask by a smooth random field: displacements drawn at the nodes of a coarse grid, bicubic in between.

    strength: the standard deviation of the displacements in diameters of the mask; the nodes are half a diameter apart.
    Beyond its border the image continues as its outermost pixels.
    """
    foreground = binary(mask)
    height, width = foreground.shape
    diameter = _diameter(foreground)
    nodes = [max(2, round(size / max(diameter / 2, 4))) for size in (height, width)]
    grid = rng.standard_normal((*nodes, 2))
    field = cv2.resize(strength * diameter * grid, (width, height), interpolation=cv2.INTER_CUBIC)
    down, right = np.indices((height, width)) + field.transpose(2, 0, 1)
    bent = cv2.remap(
        foreground.astype(np.float32),
        right.astype(np.float32),
        down.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return (bent > 0.5).astype(np.uint8)


def missing_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.5) -> np.ndarray:
    """Leave objects out. strength: the chance of each to be left out, at most 1."""
    count, objects = _objects(binary(mask))
    kept = rng.random(count) >= strength
    return np.concatenate([[False], kept])[objects].astype(np.uint8)


def added_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 1) -> np.ndarray:
    """Add false objects: ellipses about random pixels of the background.

    strength: their mean number. Each has a quarter to the whole of the area of the mask's largest object, of an empty
    mask a twentieth of the image, and an axis ratio between 1/2 and 1. A full mask stays as it is.
    """
    foreground = binary(mask)
    count, objects = _objects(foreground)
    area = np.bincount(objects.ravel())[1:].max() if count else foreground.size / 20
    background = np.flatnonzero(~foreground)
    noisy = foreground.astype(np.uint8)
    for place, share, ratio, turn in rng.random((int(strength + rng.random()), 4)):
        if len(background):
            row, column = divmod(int(background[int(place * len(background))]), foreground.shape[1])
            longer = np.sqrt((1 + 3 * share) / 4 * area / (np.pi * (1 + ratio) / 2))
            axes = (2 * longer, (1 + ratio) * longer)  # whole ones, as OpenCV wants them
            cv2.ellipse(noisy, ((column, row), axes, 180 * turn), 1, cv2.FILLED)
    return noisy


def box_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 1) -> np.ndarray:
    """Replace objects by their bounding box, or by the ellipse that has its sides for axes, at the toss of a fair coin.

    strength: up to 1 the chance of each object to be replaced; above 1 all are, and the sides are as many times as
    long.
    """
    foreground = binary(mask)
    count, objects = _objects(foreground)
    draws = rng.random((count, 2))
    noisy = np.zeros(foreground.shape, bool)
    for index, (place, (chance, coin)) in enumerate(zip(find_objects(objects), draws, strict=True), start=1):
        if chance >= strength:
            noisy[place] |= objects[place] == index
            continue
        near, offsets = [], []
        for side, size in zip(place, foreground.shape, strict=True):
            centre, half = (side.start + side.stop - 1) / 2, max(strength, 1) * (side.stop - side.start) / 2
            near.append(slice(max(0, int(centre - half)), min(size, int(centre + half) + 2)))
            offsets.append(np.abs(np.arange(size)[near[-1]] - centre) / half)
        down, right = np.ix_(*offsets)
        noisy[tuple(near)] |= (np.maximum(down, right) if coin < 0.5 else np.hypot(down, right)) <= 1
    return noisy.astype(np.uint8)


def area_noise(mask: np.ndarray, rng: np.random.Generator, strength: float = 0.5) -> np.ndarray:
    """Dilate, erode, or turn and shift a mask until the wrong pixels are a share of its own: the field's (alpha, beta).

    strength: beta, the wrong pixels over those of the clean foreground. Each of the three has the same chance.
    Dilation and erosion go on along the four neighbours, one pixel at a time, and stop at the number of pixels that is
    nearest; they neither fill nor empty the mask. A turn by up to 30 degrees about the centre of mass is followed by
    the shift that comes nearest, along one of the eight directions. An empty or full mask stays as it is.
    """
    foreground = binary(mask)
    kind, direction = rng.integers(3), rng.integers(8)
    angle = rng.uniform(-ROTATION, ROTATION)
    wanted = int(strength * foreground.sum())
    if wanted == 0 or foreground.all():
        return foreground.astype(np.uint8)
    if kind == 0:
        return (~_shrunk(~foreground, wanted, 1)).astype(np.uint8)
    if kind == 1:
        return _shrunk(foreground, wanted, 0).astype(np.uint8)
    unit = np.rint((np.cos(direction * np.pi / 4), np.sin(direction * np.pi / 4)))
    low, high = 0, max(foreground.shape)
    found: dict[int, np.ndarray] = {}  # by how far it is from what is wanted
    while low <= high:
        step = (low + high) // 2
        moved = _moved(foreground, angle, *(step * unit))
        wrong = int((moved != foreground).sum())
        found[abs(wrong - wanted)] = moved
        low, high = (step + 1, high) if wrong < wanted else (low, step - 1)
    return found[min(found)]


class Kind(NamedTuple):
    """A kind of noise, the strength that it has by default, and the largest."""

    noise: Callable[..., np.ndarray]
    strength: float
    largest: float


KINDS = {
    "Markov": Kind(markov_noise, 200, 20_000),
    "DE": Kind(dilation_erosion_noise, 10, 1000),
    "polygon": Kind(polygon_noise, 0.125, 1 / 3),
    "affine": Kind(affine_noise, 0.1, 1),
    "elastic": Kind(elastic_noise, 0.1, 1),
    "missing": Kind(missing_noise, 0.5, 1),
    "added": Kind(added_noise, 1, 100),
    "box": Kind(box_noise, 1, 10),
    "alphabeta": Kind(area_noise, 0.5, 1),
}


def parameters_at(kind: str, strength: float) -> dict[str, float]:
    """The parameters of one of `KINDS` that say how strong it is.

    Of Markov noise the steps, of DE the two distances, which are as far apart as the paper's 9 and 11 are.
    """
    if kind == "Markov":
        return {"T": round(strength)}
    if kind == "DE":
        return {"low": float(f"{0.9 * strength:.4g}"), "high": float(f"{1.1 * strength:.4g}")}
    return {"strength": strength}


def matching_strength(rate: Callable[[float], float], target: float, start: float, largest: float) -> float:
    """The strength at which ``rate``, which grows with it, is ``target`` to one in a hundred, or as near as it gets.

    Doubles the strength from ``start`` until the rate is above the target, then bisects; four digits. Raises
    `UserError` if the rate at the ``largest`` strength is below the target.
    """
    rates: dict[float, float] = {}

    def below(strength: float) -> bool:
        rates[strength] = rate(strength)
        return rates[strength] < target

    low, high = 0.0, start
    while below(high):
        if high == largest:
            raise UserError(
                f"--target_rate {target:g}: this noise makes at most {rates[high]:.3g} of the pixels wrong in these "
                "masks; give a lower rate or another --noisetype"
            )
        low, high = high, min(2 * high, largest)
    while min(abs(found - target) for found in rates.values()) > target / 100:
        middle = float(f"{(low + high) / 2:.4g}")
        if middle in rates or not low < middle < high:
            break
        low, high = (middle, high) if below(middle) else (low, middle)
    return min(rates, key=lambda strength: abs(rates[strength] - target))


def _diameter(foreground: np.ndarray) -> float:
    return 2 * np.sqrt(foreground.sum() / np.pi)


def _objects(foreground: np.ndarray) -> tuple[int, np.ndarray]:
    """The number of objects, and for each pixel that of its object, from 1 on; 0 is background."""
    count, objects = cv2.connectedComponents(foreground.astype(np.uint8), connectivity=8)
    return count - 1, objects


def _moved(foreground: np.ndarray, angle: float, right: float, down: float) -> np.ndarray:
    """Turned by ``angle`` degrees about the centre of mass and shifted, in pixels."""
    if not foreground.any():
        return foreground.astype(np.uint8)
    row, column = center_of_mass(foreground)
    matrix = cv2.getRotationMatrix2D((column, row), angle, 1)
    matrix[:, 2] += np.array([right, down])
    moved = cv2.warpAffine(foreground.astype(np.float32), matrix, foreground.shape[::-1], flags=cv2.INTER_LINEAR)
    return (moved > 0.5).astype(np.uint8)


def _shrunk(region: np.ndarray, wanted: int, beyond: int) -> np.ndarray:
    """A region without the pixels nearest to its outside by the city-block distance, as many as is nearest to
    ``wanted``; not all of them. beyond: whether what lies beyond the image belongs to the region.
    """
    padded = np.pad(region, 1, constant_values=bool(beyond)).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L1, 3)[1:-1, 1:-1].astype(np.intp)
    removed = np.cumsum(np.bincount(distance[region])[:-1])  # by 0, 1, 2, ... steps
    nearest = len(removed) - 1 - np.abs(removed - wanted)[::-1].argmin()  # of two the larger, as the source has it
    return region & (distance > nearest)
