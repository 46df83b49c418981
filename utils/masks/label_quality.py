"""Label quality: the probable class of each pixel of a mask, and how well the mask that was given agrees with it.

Probabilities come from where the image shows the edge (`utils.masks.contours`), and from networks where there are some.
Source: docs/method.md section 9.
"""

from collections.abc import Sequence
from statistics import median

import numpy as np

from utils.masks.contours import nearest_class, signed_distance
from utils.masks.geometry import IGNORED

DISAGREE = 0.5  # median score by the networks alone below which they disagree with most masks
GAP = 0.3  # by which it may lie below that of the contours
FAINT = 0.1  # probability below which a pixel that is not in the given mask is no part of the estimated one


def contour_probabilities(
    label: np.ndarray, levels: np.ndarray, probabilities: np.ndarray, num_classes: int = 2, scale: float = 1.0
) -> np.ndarray:
    """The probability of each class at each pixel, float32 (K,H,W), if the contour lies at each level as probable.

    label: (H,W) classes 0..K-1; probabilities (L,) of the levels (L,), counted in units of ``scale`` pixels of
    the label (`utils.masks.edge_profile.level_probabilities`). A pixel is foreground if the contour's level, each whole
    level spread evenly over an interval of length 1, is below its signed distance; it then has the class of the nearest
    foreground pixel (`nearest_class`).
    """
    knots = np.append(levels[0] - 0.5, levels + 0.5) * scale
    chances = np.append(0, probabilities.cumsum()).clip(0, 1)
    foreground = np.interp(signed_distance(label), knots, chances)
    classes = nearest_class(label)
    found = np.empty((num_classes, *label.shape), np.float32)
    found[0] = 1 - foreground
    for k in range(1, num_classes):
        found[k] = np.where(classes == k, foreground, 0)
    return found


def label_quality(label: np.ndarray, probabilities: np.ndarray) -> float:
    """How well a mask agrees with what is estimated, in [0, 1]: the Dice that is to be expected of it.

    2 sum(g p) / (sum(g) + sum(p)) with g the given mask of a class, 0 or 1, and p the probability of that class, over
    the pixels where either g = 1 or p >= 0.1: a faint haze over a whole image is no object. The mean over
    the foreground classes; 1 for a class that is in neither. `IGNORED` pixels are left out. label: (H,W) classes,
    probabilities: (K,H,W).
    """
    known = label != IGNORED
    return float(np.mean([_expected_dice(label == k, known, one) for k, one in enumerate(probabilities) if k]))


def _expected_dice(given: np.ndarray, known: np.ndarray, probability: np.ndarray) -> float:
    expected = probability[given | (known & (probability >= FAINT))].sum(dtype=np.float64)
    total = given.sum() + expected
    return 1.0 if total == 0 else 2 * probability[given].sum(dtype=np.float64) / total


def wrong_probability(label: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The probability that the class of each pixel is wrong, float32 (H,W); 0 for `IGNORED` pixels.

    label: (H,W) classes, probabilities: (K,H,W).
    """
    wrong = np.zeros(label.shape, np.float32)
    for k, probability in enumerate(probabilities):
        np.subtract(1, probability, out=wrong, where=label == k)
    return wrong


def doubtful_networks(of_networks: Sequence[float], of_contours: Sequence[float]) -> str | None:
    """What to say of networks that disagree with most masks, None if they do not.

    Both: the `label_quality` of each mask by the networks alone, and by the contours alone; the latter may be empty.
    They disagree if the median of the former is below `DISAGREE`, or by more than `GAP` below that of
    the latter: then the networks are hardly trained, or were trained on something else, or most masks are wrong.
    """
    if not of_networks:
        return None
    networks, contours = median(of_networks), median(of_contours) if of_contours else None
    if networks >= DISAGREE and (contours is None or contours - networks <= GAP):
        return None
    beside = "" if contours is None else f", that by the edges in the images {contours:.3f}"
    return (
        f"the networks disagree with most of the masks: the median score by them alone is {networks:.3f}{beside}. "
        "Unless most masks are wrong, the networks are: train them longer or on these masks, or audit without them"
    )
