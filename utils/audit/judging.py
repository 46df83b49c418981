"""Judging a mask: its score, its suspected label errors and an estimated mask. Arrays in, arrays out.

Source: docs/method.md section 9.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.special import softmax

from utils.masks.contours import Steps, edges_shown, levels_of, steps
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.geometry import longest_side, resize_image, resize_label
from utils.masks.label_quality import contour_beliefs, label_quality, wrong_probability


class Judged(NamedTuple):
    """A row of audit.csv."""

    image: str
    score: float | None  # the Dice to be expected of the given mask, 0..1; None: not judged
    suspected_pixels: int  # where the estimated mask differs from the given one
    suspected_share: float  # of the image's pixels
    added: int  # pixels of foreground that only the estimated mask has
    removed: int  # and only the given one
    shift: float  # pixels; positive: the edge lies inside of the given contour


class Judgement(NamedTuple):
    """What is made of one mask."""

    row: Judged
    estimated: np.ndarray  # (H,W) uint8 classes
    error_probability: np.ndarray  # (H,W) float32, 0..1: that the class of each pixel is wrong


def look(image: np.ndarray, label: np.ndarray, size: int) -> tuple[Steps, bool]:
    """Where an image shows steps in colour across the contours of its mask, and whether the mask has a boundary.

    image: uint8 (H,W,C); label: (H,W) classes. Both are resized so that the longer side is ``size`` pixels.
    """
    small = longest_side(image.shape, size)
    label = resize_label(label, small)
    return steps(resize_image(image, small), label), 0 < (label != 0).mean() < 1


def probabilities_of(found: Sequence[Steps], size: int) -> list[np.ndarray] | None:
    """The probabilities of the levels (L,) of each image, of longer side ``size``; None if the images show no edges."""
    levels = levels_of((size,))
    return list(level_probabilities(found, levels, size)) if edges_shown(found, levels) else None


def judge(
    name: str,
    label: np.ndarray,
    probabilities: np.ndarray | None,
    logits: np.ndarray | None,
    bounded: bool,
    size: int,
    num_classes: int,
) -> Judgement:
    """Score the mask ``label``, (H,W) classes, of the image ``name``, and estimate a better one.

    probabilities: of the levels (L,) at the longer side ``size``, None where the images say nothing of them; logits:
    of the networks (K,S,S), if any; bounded: whether the mask has a boundary at that size. Raises ValueError without
    probabilities and logits.
    """
    scale = max(label.shape) / size
    levels = levels_of((size,))
    views = []
    # A mask without a boundary has no levels: where networks can judge it, it does not count as sure of itself.
    if probabilities is not None and (bounded or logits is None):
        views.append(contour_beliefs(label, levels, probabilities, num_classes, scale))
    if logits is not None:
        views.append(network_probabilities(logits, label.shape))
    if not views:
        raise ValueError(f"{name}: neither probabilities of the levels nor logits")
    classes = np.mean(views, axis=0)
    estimated = classes.argmax(axis=0).astype(np.uint8)
    suspected = estimated != label
    row = Judged(
        image=name,
        score=round(label_quality(label, classes), 6) if bounded or logits is not None else None,
        suspected_pixels=int(suspected.sum()),
        suspected_share=round(float(suspected.mean()), 6),
        added=int((suspected & (label == 0)).sum()),
        removed=int((suspected & (estimated == 0)).sum()),
        shift=0.0 if probabilities is None else round(float(median_level(probabilities[None], levels)[0] * scale), 2),
    )
    return Judgement(row, estimated, wrong_probability(label, classes).clip(0, 1))


def network_probabilities(logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Logits (K,S,S) as probabilities of the classes at the size (H,W) of the mask, float32 (K,H,W)."""
    resized = [cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in logits.astype(np.float32)]
    return softmax(np.stack(resized), axis=0)
