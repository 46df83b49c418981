"""Judging a mask: its score, its suspected label errors and an estimated mask. Arrays in, arrays out.

Source: docs/method.md section 9.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.special import softmax

from utils.masks.contours import EdgeContrast, edge_contrast, levels_of
from utils.masks.correction import EDGE_SIZE, decide
from utils.masks.geometry import IGNORED, longest_side, resize_image, resize_label
from utils.masks.label_quality import contour_probabilities, label_quality, wrong_probability


class Judged(NamedTuple):
    """A row of audit.csv."""

    image: str
    score: float | None  # the Dice to be expected of the given mask, 0..1; None: not judged
    suspected_pixels: int  # where the estimated mask differs from the given one
    suspected_share: float  # of the image's pixels
    added: int  # pixels of foreground that only the estimated mask has
    removed: int  # and only the given one
    shift: float  # pixels; positive: the edge lies inside of the given contour
    contour_score: float | None  # the score by the edges in the image alone
    network_score: float | None  # that by the networks alone


class Judgement(NamedTuple):
    """What is made of one mask."""

    row: Judged
    estimated: np.ndarray  # (H,W) uint8 classes
    error_probability: np.ndarray  # (H,W) float32, 0..1: that the class of each pixel is wrong


def look(image: np.ndarray, label: np.ndarray) -> tuple[EdgeContrast, bool]:
    """An image's contrast across the levels of its mask, and whether the mask has a boundary.

    image: uint8 (H,W,C); label: (H,W) classes. Both are resized so that the longer side is `EDGE_SIZE` pixels.
    """
    small = longest_side(image.shape, EDGE_SIZE)
    label = resize_label(label, small)
    return edge_contrast(resize_image(image, small), label), 0 < (label != 0).mean() < 1


class Contour(NamedTuple):
    """What the images say of one mask's contour."""

    probabilities: np.ndarray  # (L,) of the levels, in pixels of `EDGE_SIZE`
    shift: float  # by how many of these it should be moved; 0: it stays


def contours_of(found: Sequence[EdgeContrast]) -> tuple[list[Contour] | None, str]:
    """What the images say of the contour of each mask, by the rule of `utils.masks.correction.decide`, and why, in
    numbers; None if they show no edges."""
    decision = decide(found, levels_of((EDGE_SIZE,)))
    if decision.probabilities is None:
        return None, decision.reason
    return [Contour(*one) for one in zip(decision.probabilities, decision.suggested, strict=True)], decision.reason


def judge(
    name: str,
    label: np.ndarray,
    contour: Contour | None,
    logits: np.ndarray | None,
    bounded: bool,
    num_classes: int,
) -> Judgement:
    """Score the mask ``label``, (H,W) classes, of the image ``name``, and estimate a better one.

    contour: what the images say, None where they say nothing; logits: of the networks (K,S,S), if any; bounded: whether
    the mask has a boundary. Without networks a mask whose contour should stay is estimated to be right. Raises
    ValueError without contour and logits.
    """
    scale = max(label.shape) / EDGE_SIZE
    views, scores = [], {}
    # A mask without a boundary has no levels: where networks can judge it, it does not count as sure of itself.
    if contour is not None and (bounded or logits is None):
        views.append(contour_probabilities(label, levels_of((EDGE_SIZE,)), contour.probabilities, num_classes, scale))
        scores["contour"] = round(label_quality(label, views[-1]), 6)
    if logits is not None:
        views.append(network_probabilities(logits, label.shape))
        scores["network"] = round(label_quality(label, views[-1]), 6)
    if not views:
        raise ValueError(f"{name}: neither edges in the images nor logits")
    if len(views) > 1:
        classes = np.mean(views, axis=0)
        quality = round(label_quality(label, classes), 6)
    else:
        (classes,), (quality,) = views, scores.values()
    stays = logits is None and contour is not None and not contour.shift
    estimated = label if stays else np.where(label == IGNORED, IGNORED, classes.argmax(axis=0)).astype(np.uint8)
    suspected = estimated != label
    row = Judged(
        image=name,
        score=quality if bounded or logits is not None else None,
        suspected_pixels=int(suspected.sum()),
        suspected_share=round(float(suspected.mean()), 6),
        added=int((suspected & (label == 0)).sum()),
        removed=int((suspected & (estimated == 0)).sum()),
        shift=0.0 if contour is None else round(float(contour.shift * scale), 2),
        contour_score=scores.get("contour") if bounded else None,
        network_score=scores.get("network"),
    )
    return Judgement(row, estimated, wrong_probability(label, classes).clip(0, 1))


def stored_mask(estimated: np.ndarray, num_classes: int, ignore_label: int | None) -> np.ndarray:
    """An estimated mask (H,W) as it is stored: of two classes 0 and 255, else the classes; what has no label keeps its
    value."""
    if ignore_label is None:
        return estimated * 255 if num_classes == 2 else estimated
    return np.where(estimated == IGNORED, ignore_label, estimated).astype(np.uint8)


def network_probabilities(logits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Logits (K,S,S) as probabilities of the classes at the size (H,W) of the mask, float32 (K,H,W)."""
    resized = [cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in logits.astype(np.float32)]
    return softmax(np.stack(resized), axis=0)
