"""Segmentation scores of one case against its raters: overlaps from counts of pixels, distances by MONAI.

The rule for empty masks is that of `utils.engine.scores`: where the reference lacks a class its scores are blank; where
the prediction alone lacks it they are the worst there are: 0 for overlaps (Dice, IoU, soft Dice, surface Dice), the
image's diagonal for distances (HD95, ASSD).

A case is a volume of slices, often of one. Its overlaps are taken over the whole volume at once, its surface scores
slice by slice, over the slices that have the class in the reference or in the prediction: a false object on a slice
counts 0, or the diagonal.
"""

import warnings
from itertools import combinations

import numpy as np
import torch

from utils.engine.scores import set_scores
from utils.method.losses import IGNORED

SURFACE_TOLERANCE = 2.0  # pixels within which a predicted boundary counts as right in the surface Dice

# MONAI 1.6 calls a function of its own with an argument that it has deprecated; nothing that a user could change.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning, module="monai.*")


def case_scores(
    prediction: np.ndarray, masks: np.ndarray, num_classes: int, surfaces: bool = False
) -> dict[str, float | None]:
    """Scores of one test case of S slices against its R raters: a row (`utils.engine.scores`).

    prediction: (S,H,W), masks: (R,S,H,W), both classes 0..num_classes-1. The row has the figures of `set_scores` for
    this case alone, and the cells that they are made of:

    - dice, iou, in [0, 1], of the whole volume, of each class and rater; None where the rater did not mark the class.
    - with several raters, of each class: dice_majority, against `majority_vote`; soft_dice, against the mean of the
      raters, 2 sum(s m) / (sum s + sum m) with s the predicted mask, 0 or 1, and m the share of raters who marked a
      pixel; and ged, of `energy_distance`.
    - with ``surfaces``, of each class and rater: hd95, assd in pixels of the mask, in the plane of the slices; nsd, the
      surface Dice at 2 pixels, in [0, 1]: the means over the slices that `surface_scores` defines.
    - predicted_pixels and reference_pixels of each class.

    Pixels that a rater's mask has as `IGNORED` are left out. Raises ValueError if prediction and masks differ in shape.
    Source: docs/method.md section 5.
    """
    if masks.shape[1:] != prediction.shape:
        raise ValueError(f"prediction {prediction.shape} and masks {masks.shape[1:]} must have the same shapes")
    ignored = (masks == IGNORED).any(axis=0)
    if ignored.any():  # there prediction and masks agree on background, which counts for nothing
        prediction, masks = np.where(ignored, 0, prediction), np.where(ignored, 0, masks)
    raters = len(masks)
    predicted = class_pixels(prediction, num_classes)
    marked = np.stack([class_pixels(mask, num_classes) for mask in masks])
    shared = np.stack([shared_pixels(prediction, mask, num_classes) for mask in masks])
    cells = {  # by class and rater; NaN is blank
        "dice": _share(2 * shared, predicted + marked),
        "iou": _share(shared, predicted + marked - shared),
    }
    if surfaces:
        cells |= _surface_cells(prediction, masks, marked)
    row: dict[str, float | None] = {}
    for name, values in cells.items():
        row |= _named(name, np.where(marked > 0, values, np.nan))
    if raters > 1:
        majority = majority_vote(masks, num_classes)
        votes = class_pixels(majority, num_classes)
        dice = _share(2 * shared_pixels(prediction, majority, num_classes), predicted + votes)
        row |= _named("dice_majority", np.where(votes > 0, dice, np.nan)[None])
        soft = _share(2 * shared.sum(axis=0), raters * predicted + marked.sum(axis=0))
        row |= _named("soft_dice", np.where(marked.any(axis=0), soft, np.nan)[None])
        row["ged"] = energy_distance(prediction, masks, num_classes)
    row |= _named("predicted_pixels", predicted[None]) | _named("reference_pixels", marked)
    return set_scores([row]).means | row


def _named(name: str, values: np.ndarray) -> dict[str, float | None]:
    """values (R,K-1) by class and rater, NaN as None."""
    suffixes = [f"_rater{rater}" for rater in range(1, len(values) + 1)] if len(values) > 1 else [""]
    return {
        f"{name}_class{k}{suffix}": None if value != value else value
        for k, of_class in enumerate(values.T.tolist(), start=1)
        for suffix, value in zip(suffixes, of_class, strict=True)
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 1 where the whole is 0."""
    return np.divide(part, whole, out=np.ones(np.broadcast_shapes(part.shape, whole.shape)), where=whole > 0)


def class_pixels(classes: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of pixels of each foreground class, (K-1,); classes: integers of any shape."""
    return np.array([np.count_nonzero(classes == k) for k in range(1, num_classes)])


def shared_pixels(one: np.ndarray, other: np.ndarray, num_classes: int) -> np.ndarray:
    """The number of pixels that two masks of one shape both give each foreground class, (K-1,)."""
    return np.array([np.count_nonzero((one == k) & (other == k)) for k in range(1, num_classes)])


def majority_vote(masks: np.ndarray, num_classes: int) -> np.ndarray:
    """The class with the most votes at each pixel: (*S), of the masks' dtype.

    masks: (R,*S) classes 0..num_classes-1. Of tied classes the one with the highest number wins, foreground before
    background: of four raters two are enough, the consensus of 50 % that is usual for LIDC (the default of pylidc).
    """
    result = np.zeros(masks.shape[1:], masks.dtype)
    most = (masks == 0).sum(axis=0, dtype=np.uint16)
    for k in range(1, num_classes):
        votes = (masks == k).sum(axis=0, dtype=np.uint16)
        result[votes >= most] = k
        np.maximum(most, votes, out=most)
    return result


def energy_distance(prediction: np.ndarray, masks: np.ndarray, num_classes: int) -> float:
    """Squared generalised energy distance of one prediction s to the raters Y, in [0, 2].

    2 E[d(s, Y)] - E[d(Y, Y')] with d = 1 - IoU, Y and Y' each any of the R raters: R * R pairs with R zeros among them.
    IoU is the mean over the foreground classes; that of two empty masks is 1, which is this score's own rule, as the
    raters' masks are compared with each other and none is the reference. The third term, between predictions, is 0 for
    one. The distance is 0 if all raters agree with the prediction, 2 if all agree with each other and share nothing
    with it; where the raters disagree no prediction reaches 0.
    prediction: (*S), masks: (R,*S), both classes 0..num_classes-1.
    Source: Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, NeurIPS 2018.
    """

    def distance(one: np.ndarray, other: np.ndarray) -> float:
        shared = shared_pixels(one, other, num_classes)
        either = class_pixels(one, num_classes) + class_pixels(other, num_classes) - shared
        return 1 - float(_share(shared, either).mean())

    to_raters = sum(distance(prediction, mask) for mask in masks)
    between = sum(distance(one, other) for one, other in combinations(masks, 2))
    return 2 * to_raters / len(masks) - 2 * between / len(masks) ** 2


def _surface_cells(prediction: np.ndarray, masks: np.ndarray, marked: np.ndarray) -> dict[str, np.ndarray]:
    """hd95, assd and nsd by rater and class, each (R,K-1); marked: (R,K-1) pixels of the class in the rater's mask."""
    cells = {name: np.full(marked.shape, np.nan) for name in ("hd95", "assd", "nsd")}
    # Rater by rater, since MONAI works in float32 and a volume of all raters would be large.
    for rater, k in np.argwhere(marked):
        for name, values in surface_scores(prediction == k + 1, masks[rater] == k + 1).items():
            cells[name][rater, k] = np.nanmean(values)
    return cells


def surface_scores(predicted: np.ndarray, marked: np.ndarray) -> dict[str, np.ndarray]:
    """HD95 and ASSD in pixels and surface Dice (NSD) at 2 pixels of each of N pairs of masks: three (N,) float64.

    predicted, marked: (N,*S) bool. Of two empty masks all three are NaN; of one empty mask the distances are the
    diagonal of S, and the surface Dice is 0.
    """
    # Here, since importing MONAI takes as long as importing PyTorch, and not every command measures distances.
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    in_prediction, in_mask = (m.reshape(len(m), -1).any(axis=1) for m in (predicted, marked))
    worst = {"hd95": float(np.linalg.norm(predicted.shape[1:])), "nsd": 0.0}
    worst["assd"] = worst["hd95"]
    scores = {name: np.where(in_prediction | in_mask, worst[name], np.nan) for name in ("hd95", "assd", "nsd")}
    both = in_prediction & in_mask
    if both.any():
        one, other = (torch.from_numpy(m[both])[:, None].float() for m in (predicted, marked))
        scores["hd95"][both] = compute_hausdorff_distance(one, other, percentile=95).squeeze(1).numpy()
        scores["assd"][both] = compute_average_surface_distance(one, other, symmetric=True).squeeze(1).numpy()
        scores["nsd"][both] = compute_surface_dice(one, other, class_thresholds=[SURFACE_TOLERANCE]).squeeze(1).numpy()
    return scores
