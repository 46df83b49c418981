"""Simulated label noise on masks of two and more classes: arrays in, arrays out."""

import hashlib
from collections.abc import Callable

import cv2
import numpy as np
from scipy.ndimage import distance_transform_edt


def file_generator(seed: int, stem: str) -> np.random.Generator:
    """The random generator of one file, the same whatever other files there are and in whatever order they are made.

    seed: >= 0; stem: the file's name without its suffix.
    """
    return np.random.default_rng([seed, *hashlib.sha256(stem.encode()).digest()])


def class_noise(
    labels: np.ndarray,
    rng: np.random.Generator,
    noise: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    num_classes: int,
) -> np.ndarray:
    """Disturb the mask of each foreground class in turn, by ``noise``, and put them together again.

    Classes 1, 2, ... are disturbed one by one, each as it is in ``labels``, with draws from the one ``rng``. A pixel
    that several of the new masks claim takes the highest of these classes, one that none claims is background. With two
    classes this is ``noise`` itself.

    labels: (H,W) of 0..num_classes-1; returns the same as uint8. Source: docs/method.md section 6, which has two
    classes; docs/decisions.md.
    """
    noisy = np.zeros(labels.shape, np.uint8)
    for value in range(1, num_classes):
        noisy[noise(labels == value, rng) == 1] = value
    return noisy


def markov_noise(
    mask: np.ndarray, rng: np.random.Generator, T: int = 200, theta1: float = 0.8, theta2: float = 0.05
) -> np.ndarray:
    """Let the outline of a mask wander for T steps, then smooth it; theta1 > 0.5 grows the mask, < 0.5 shrinks it.

    Each step takes, with probability theta1, the outer boundary (background pixels 4-adjacent to the foreground),
    else the inner one (foreground pixels 4-adjacent to the background), and flips each of its pixels with probability
    theta2. S_E is (200, 0.8, 0.05), S_R (200, 0.2, 0.05).

    mask: (H,W) of 0 and 1, any dtype; T >= 0; theta1, theta2 in [0, 1]. Returns uint8 (H,W) of 0 and 1.
    Draws from rng: T numbers for the steps, then in each step one for every boundary pixel in row-major order, none
    once the mask is empty or full. Raises ValueError if mask is not such an array. Source: docs/method.md section 6.
    """
    foreground = binary(mask)
    height, width = mask.shape
    # Background and foreground lie as two flat arrays, in rows that end in a column belonging to neither, below and
    # above a row belonging to neither: so the four neighbours of all pixels are contiguous slices, and no pixel has a
    # neighbour outside the image or in another row.
    stride = width + 1
    phases = np.zeros((2, height + 2, stride), bool)
    phases[0, 1:-1, :width] = ~foreground
    phases[1, 1:-1, :width] = foreground
    flat = phases.reshape(2, -1)
    start, stop = stride, (height + 1) * stride
    boundary = np.empty(stop - start, bool)
    for draw in rng.random(T):
        growing = int(draw < theta1)
        winner, loser = flat[growing], flat[1 - growing]
        np.logical_or(winner[start - stride : stop - stride], winner[start + stride : stop + stride], out=boundary)
        np.logical_or(boundary, winner[start - 1 : stop - 1], out=boundary)
        np.logical_or(boundary, winner[start + 1 : stop + 1], out=boundary)
        np.logical_and(boundary, loser[start:stop], out=boundary)
        pixels = np.flatnonzero(boundary)
        flipped = start + pixels[np.flatnonzero(rng.random(len(pixels)) < theta2)]
        winner[flipped] = True
        loser[flipped] = False
    return smooth(phases[1, 1:-1, :width])


def smooth(mask: np.ndarray) -> np.ndarray:
    """5x5 Gaussian blur with sigma 2, then > 0.5: (H,W) of 0 and 1 -> uint8 (H,W) of 0 and 1.

    Beyond the border the mask continues mirrored about its outermost pixels, so a full mask stays full. Source:
    docs/method.md section 6.
    """
    # No sum of some of the 25 weights comes nearer to 0.5 than 7e-5, so neither float32 nor a strict > decides a pixel.
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (5, 5), 2, borderType=cv2.BORDER_REFLECT_101)
    return (blurred > 0.5).astype(np.uint8)


def dilation_erosion_noise(mask: np.ndarray, rng: np.random.Generator, low: float = 9, high: float = 11) -> np.ndarray:
    """Dilate or erode a mask, at the toss of a fair coin, by a Euclidean distance u ~ U(low, high) in pixels (S_DE).

    Dilation adds the background pixels whose distance to the foreground is at most u, erosion removes the foreground
    pixels whose distance to the background is at most u. An empty or full mask stays as it is.

    mask: (H,W) of 0 and 1, any dtype; 0 <= low <= high. Returns uint8 (H,W) of 0 and 1. Draws from rng: one number
    for the coin (< 0.5 dilates), one for u. Raises ValueError if mask is not such an array. Source: docs/method.md
    section 6.
    """
    foreground = binary(mask)
    dilates = rng.random() < 0.5
    level = rng.uniform(low, high)
    if foreground.all() or not foreground.any():  # no boundary to measure from
        return foreground.astype(np.uint8)
    shrinking = ~foreground if dilates else foreground
    kept = distance_transform_edt(shrinking) > level
    return (~kept if dilates else kept).astype(np.uint8)


def binary(mask: np.ndarray) -> np.ndarray:
    """A mask as bool (H,W); ValueError if it is of another shape or holds other values than 0 and 1."""
    foreground = mask == 1
    if mask.ndim != 2 or not np.array_equal(mask, foreground):
        raise ValueError(f"expected a mask (H,W) of 0 and 1, got {mask.dtype} {mask.shape}, {mask.min()}..{mask.max()}")
    return foreground
