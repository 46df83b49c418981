"""How many pixels of a set's masks are wrong, from the images and these masks alone: --tau auto.

A mask is wrong where its whole contour was displaced, and where it is uneven, as noise makes it. The images say the
first (`utils.masks.edge_profile`); the second is what smoothing the mask changes. Source: docs/method.md section 10.
"""

from collections.abc import Iterable

import cv2
import numpy as np

from utils.masks.contours import edges_shown, levels_of, move_contour, steps
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.label_quality import contour_beliefs, wrong_probability

SMOOTHING = 1.5 / 128  # standard deviation of the smoothing that evens a contour, as a share of the image's side
FALLBACK_TAU = 0.05  # the paper's for Kvasir
UNSEEN = 1.7  # unevenness of all scales, in units of what the smoothing sees; docs/method.md section 10


def estimate_tau(
    samples: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, corrected: bool
) -> tuple[float, str]:
    """--tau auto: the tau of a set, in [0, 1), and where it comes from, in words.

    samples and corrected: as `estimate_noise_rate`. Where that cannot be estimated the tau is `FALLBACK_TAU`, which the
    words say.
    """
    which = "after contour correction" if corrected else "as given"
    try:
        # Rounded, so that --resume finds the same.
        return round(estimate_noise_rate(samples, num_classes, corrected), 4), f"auto, estimated on the masks {which}"
    except UnknownRate as reason:
        return FALLBACK_TAU, f"auto, not estimated: {reason}"


class UnknownRate(Exception):
    """Nothing in a set says how far its masks are off; the message says why."""


def estimate_noise_rate(samples: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, corrected: bool) -> float:
    """The share of the pixels of a set's masks that are wrong, in [0, 1).

    samples: images (S,S,C) uint8 and their masks as given (S,S), classes 0..K-1, all of one size; they are gone through
    once. With ``corrected`` the share that is wrong after contour correction (`utils.masks.contours`). It is the mean
    probability that a pixel is on the wrong side of the contour, to which comes the mask's unevenness: as smoothing the
    given mask shows it; after correction, when no displacement hides the larger part of it, `UNSEEN` times that.

    Raises `UnknownRate` where no mask has a boundary, and where the images show no edges to measure displacement
    against.
    """
    found, labels = [], []
    for image, label in samples:
        found.append(steps(image, label))
        labels.append(label)
    side = max(labels[0].shape)
    levels = levels_of((side,))
    if all((label != 0).all() or not label.any() for label in labels):
        raise UnknownRate("no mask has a boundary")
    if not edges_shown(found, levels):
        raise UnknownRate("the images show no more of an edge at the contours of their masks than elsewhere")
    probabilities = level_probabilities(found, levels, side)
    moves = median_level(probabilities, levels) if corrected else np.zeros(len(labels))
    weight = UNSEEN if corrected else 1
    shares = [
        wrong_probability(move_contour(label, move), contour_beliefs(label, levels, probable, num_classes)).mean()
        + weight * unevenness(label)
        for label, move, probable in zip(labels, moves, probabilities, strict=True)
    ]
    return float(np.mean(shares))


def unevenness(label: np.ndarray) -> float:
    """The share of the pixels of a mask (H,W) that change between foreground and background when it is smoothed."""
    inside = (label != 0).astype(np.float32)
    smooth = cv2.GaussianBlur(inside, (0, 0), SMOOTHING * max(label.shape), borderType=cv2.BORDER_REPLICATE)
    return float(((smooth > 0.5) != (label != 0)).mean())
