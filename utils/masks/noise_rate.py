"""How noisy the labels of a set are, from the images and these masks alone: --tau auto.

A mask is wrong where its whole contour was displaced, and where it is uneven, as noise makes it. The images say the
first (`utils.masks.edge_profile`); the second is what smoothing the mask changes. Source: docs/method.md section 10.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from utils.masks.contours import move_contour
from utils.masks.geometry import IGNORED, foreground
from utils.masks.label_quality import contour_probabilities

SMOOTHING = 1.5 / 128  # standard deviation of the smoothing that evens a contour, as a share of the image's side
UNSEEN = 1.7  # unevenness of all scales, in units of what the smoothing sees; docs/method.md section 10


class NoiseRates(NamedTuple):
    """Shares of a set's pixels, in [0, 1], that are expected to be wrong."""

    missing: float  # foreground that is labelled background
    false: float  # background that is labelled foreground
    uneven: float  # either, by the unevenness of the contours

    @property
    def total(self) -> float:
        """The label noise rate, which is what --tau auto takes. Source: docs/method.md section 10."""
        return min(self.missing + self.false + self.uneven, 0.99)


def estimate_noise_rates(
    labels: Sequence[np.ndarray], shifts: np.ndarray, probabilities: np.ndarray, levels: np.ndarray, num_classes: int
) -> NoiseRates:
    """The noise rates of a set's masks, of which the images say how probable each level is.

    labels: (H,W) classes 0..K-1 as given; shifts (N,): by how many pixels the contour of each is moved before training;
    probabilities (N,L) of the levels (L,), in pixels (`utils.masks.edge_profile.level_probabilities`). A pixel is wrong
    with the probability that it lies on the wrong side of the contour, to which comes the mask's unevenness: `UNSEEN`
    times where the contour is moved, since no displacement hides the larger part of it then.
    """
    each = []
    for label, shift, probable in zip(labels, shifts, probabilities, strict=True):
        probable_foreground = 1 - contour_probabilities(label, levels, probable, num_classes)[0]
        labelled = label != IGNORED
        trained = foreground(move_contour(label, shift))
        missing = probable_foreground * (labelled & ~trained)
        false = (1 - probable_foreground) * (labelled & trained)
        weight = UNSEEN if shift else 1
        each.append((missing.mean(), false.mean(), weight * unevenness(label)))
    return NoiseRates(*map(float, np.mean(each, axis=0)))


def unevenness(label: np.ndarray) -> float:
    """The share of the pixels of a mask (H,W) that change between foreground and background when it is smoothed."""
    inside = foreground(label).astype(np.float32)
    smooth = cv2.GaussianBlur(inside, (0, 0), SMOOTHING * max(label.shape), borderType=cv2.BORDER_REPLICATE)
    return float((((smooth > 0.5) != foreground(label)) & (label != IGNORED)).mean())
