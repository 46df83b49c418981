"""Contour correction: how far the contour of each mask lies from the edge that the image shows, and moving it back.

Raters who draw too tight or too wide displace the whole contour along its normal: a bias, which no selection of
single pixels can see, as every pixel of the displaced rim agrees with its neighbours. The image does show it: along the
signed distance to the mask's boundary its colour changes most where the object really ends. One image alone says so
faintly; all images of a set together say what displacements are to be expected. Source: docs/method.md section 8.

A level l is a contour of the signed distance: positive levels lie inside the mask, negative ones
outside; the mask of level l is where the signed distance exceeds l, and level 0 is the mask as it was given.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
from scipy.special import softmax
from skimage.segmentation import expand_labels

from utils.masks.geometry import IGNORED, foreground, value_counts

REACH = 14 / 128  # how far from the mask's contour levels are looked for, as a share of the image's side
RING = 1 / 128  # width of the rings that are compared, likewise
FEWEST = 4  # pixels of a ring below which its mean says nothing
EVIDENCE = 0.3  # of a pixel in the standard error: the pixels of a ring are not independent of each other
ITERATIONS = 30
SHOWN = 0.75  # share of the images that are to show more of an edge at their contour than elsewhere
SURENESS = 2.33  # standard deviations by which that share is to be beyond chance: one set in a hundred


class EdgeContrast(NamedTuple):
    """How one image's colours change across each level of its mask."""

    # (L,C) colour just inside less just outside, in standard deviations; 0 where pixels are too few
    contrast: np.ndarray
    pixels: np.ndarray  # (L,) of the smaller of the two rings
    chance_contrast: np.ndarray  # the same two of the mask displaced by half the image, where it marks nothing
    chance_pixels: np.ndarray


def _rings(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many whole distances are looked at on either side of the contour, and how many make a ring."""
    return max(2, round(REACH * max(shape))), max(1, round(RING * max(shape)))


def levels_of(shape: tuple[int, ...]) -> np.ndarray:
    """The levels that are looked at for images (H,W), int (L,), ascending; 0 is in the middle."""
    reach, width = _rings(shape)
    return np.arange(width - reach, reach - width + 1)


def signed_distance(label: np.ndarray) -> np.ndarray:
    """Signed Euclidean distance to the boundary of the foreground in pixels, float32 (H,W): D - 1/2 inside, 1/2 - D
    outside, D the distance to the nearest pixel of the other side. Infinite where there is no boundary.
    """
    inside = foreground(label).astype(np.uint8)
    if inside.all() or not inside.any():
        return np.where(inside, np.inf, -np.inf).astype(np.float32)
    within, without = (cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (inside, 1 - inside))
    return np.where(inside, within - 0.5, 0.5 - without)


def edge_contrast(image: np.ndarray, label: np.ndarray) -> EdgeContrast:
    """The contrast of an image (H,W,C), values of 0..255, across the levels of its label (H,W)."""
    elsewhere = np.roll(label, (label.shape[0] // 2, label.shape[1] // 2), axis=(0, 1))
    return EdgeContrast(*_contrast(image, label), *_contrast(image, elsewhere))


def _contrast(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    (reach, width), distance, channels = _rings(label.shape), signed_distance(label), image.shape[2]
    near = (distance >= -reach) & (distance < reach) & (label != IGNORED)
    ring = (np.floor(distance[near]) + reach).astype(np.intp)
    colours = image[near].astype(np.float64)
    products = (one * other for one in colours.T for other in colours.T)  # one at a time: images may have many channels
    columns = chain([np.ones(len(ring))], colours.T, products)
    sums = np.stack([np.bincount(ring, column, 2 * reach) for column in columns], axis=1)
    (n_out, mean_out, covariance_out), (n_in, mean_in, covariance_in) = (
        _moments(np.lib.stride_tricks.sliding_window_view(part, width, axis=0).sum(axis=-1), channels)
        for part in (sums[:-width], sums[width:])
    )
    # Whitened, so that directions of colour in which the texture varies count less; + 1, the noise of 8-bit values.
    values, vectors = np.linalg.eigh((covariance_in + covariance_out) / 2 + np.eye(channels))
    contrast = np.einsum("lab,lb,lcb,lc->la", vectors, 1 / np.sqrt(values), vectors, mean_in - mean_out)
    pixels = np.minimum(n_in, n_out)
    contrast[pixels < FEWEST] = 0
    return contrast, pixels


def _moments(sums: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (L,), mean colour (L,C) and covariance (L,C,C) from the sums of 1, the colours and their products."""
    mean = sums[:, 1:] / np.maximum(sums[:, :1], 1)
    mean, square = mean[:, :channels], mean[:, channels:].reshape(-1, channels, channels)
    return sums[:, 0], mean, square - mean[:, :, None] * mean[:, None, :]


def evidence_of(images: Sequence[EdgeContrast], levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E_i(l) of each image and level, (N,L), and whether the level is possible, bool (N,L): not where nothing would
    be left, at 0 always. Source: docs/method.md section 8."""
    contrast, pixels, _, _ = (np.stack(values) for values in zip(*images, strict=True))
    return _evidence(contrast, pixels, levels)


def _evidence(contrast: np.ndarray, pixels: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inward = _unit(contrast.sum(axis=1))  # of each image
    inward = _unit(inward + _unit(inward.sum(axis=0)))  # its own and the set's in equal parts
    evidence = EVIDENCE * np.sqrt(pixels) * np.einsum("nlc,nc->nl", contrast, inward)
    return evidence, (pixels >= FEWEST) | (levels == 0)


def edges_shown(images: Sequence[EdgeContrast], levels: np.ndarray) -> bool:
    """Whether the images of a set show edges near the contours of their masks at all.

    So they do if the largest evidence near the contour is greater than near the same contour elsewhere in the image,
    in three images of four and in more than chance gives, or in all of fewer than six; masks without a contour do not
    count. Where they do not, noise and texture would be taken for edges, and right masks moved.
    Source: docs/method.md section 8.
    """
    contrast, pixels, chance_contrast, chance_pixels = (np.stack(values) for values in zip(*images, strict=True))
    here, there = (
        np.where(possible, evidence, -np.inf).max(axis=1)
        for evidence, possible in (
            _evidence(contrast, pixels, levels),
            _evidence(chance_contrast, chance_pixels, levels),
        )
    )
    bounded = (pixels >= FEWEST).any(axis=1)
    shown, count = int((here > there)[bounded].sum()), int(bounded.sum())
    return shown >= max(SHOWN * count, min(count, (count + SURENESS * count**0.5) / 2))


def probabilities(evidence: np.ndarray, possible: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The probability Q_i(l) of each level, (N,L), from what `evidence_of` gives; images without a boundary have all of
    it at 0. Source: docs/method.md section 8."""
    found = np.zeros(evidence.shape)
    found[:, levels == 0] = 1
    bounded = possible.sum(axis=1) > 1
    found[bounded] = _posterior(np.where(possible, evidence, -np.inf)[bounded], levels)
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _posterior(log_likelihood: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """P(level) of each image, (N,L), under the prior that the images themselves give."""
    prior = prior_of(np.zeros((0, len(levels))), levels)
    for _ in range(ITERATIONS):
        posterior = softmax(log_likelihood + np.log(prior), axis=1)
        prior = prior_of(posterior, levels)
    return posterior


def prior_of(posterior: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The distribution of the levels over a set, (L,), from those of its images (N,L)."""
    # As if two images came before them: one whose mask is right, and one that rules no level out.
    before = (levels == 0) + 1 / len(levels)
    # Neighbouring levels share their weight: a distribution of few images has no holes.
    smooth = np.convolve(np.pad(posterior.sum(axis=0), 1, mode="edge"), (0.25, 0.5, 0.25), "valid")
    return (smooth + before) / (smooth + before).sum()


def move_contour(label: np.ndarray, level: float) -> np.ndarray:
    """The label with its foreground shrunk (level > 0) or grown (level < 0) to ``level``, like ``label``.

    Pixels that the foreground gains take the class of the nearest foreground pixel (`nearest_class`). `IGNORED` pixels
    stay what they are.
    """
    if level == 0:
        return label
    moved = np.where(signed_distance(label) > level, nearest_class(label), 0)
    return np.where(label == IGNORED, IGNORED, moved).astype(label.dtype)


def nearest_class(label: np.ndarray) -> np.ndarray:
    """The class of each foreground pixel, and for the others that of the foreground pixel nearest to them, like
    ``label`` (H,W); 0 everywhere if there is none."""
    inside = foreground(label)
    classes, _ = value_counts(label[inside])
    if len(classes) < 2:  # as with two classes, one of them the background
        return np.full_like(label, classes[0] if len(classes) else 0)
    return expand_labels(np.where(inside, label, 0), distance=sum(label.shape))
