"""Segmentation scores, by MONAI, of an image and of a case with several raters, and the one rule for empty masks.

The rule: an overlap (Dice, IoU, soft Dice, surface Dice) of two empty masks is 1, of one empty mask 0; a distance
(HD95, ASSD) to or from an empty mask is undefined, NaN, left out of means, and counted. With more than two classes a
score is the mean over the foreground classes 1..K-1, leaving undefined distances out.

A case is a volume of slices, often of one. Its overlaps are taken over the whole volume at once, its surface scores
slice by slice, and the rule holds for volumes and slices alike. But slices on which both masks are empty do not enter
the surface Dice of a volume that has others: there may be any number of them, and each would count 1.
"""

import warnings
from itertools import combinations

import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from torch import Tensor

SURFACE_TOLERANCE = 2.0  # pixels within which a predicted boundary counts as right in the surface Dice

# MONAI 1.6 calls a function of its own with an argument that it has deprecated; nothing that a user could change.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*", category=FutureWarning, module="monai.*")


def case_scores(prediction: Tensor, masks: Tensor, num_classes: int, surfaces: bool = False) -> dict[str, float]:
    """Scores of one test case of S slices against its R raters; each rater counts the same.

    prediction: (S,H,W), masks: (R,S,H,W), both classes 0..num_classes-1. The keys, in this order:

    - dice, iou, in [0, 1]: those of the whole case against each rater, the mean over the raters.
    - with several raters: dice_rater1 .. dice_raterR; dice_majority, against `majority_vote`; soft_dice, of
      `soft_dice_score`; ged, of `energy_distance`.
    - with ``surfaces``: hd95, assd in pixels in the plane of the slices. Each slice with each rater and foreground
      class is a pair of masks; these are the means over the pairs on which they are defined, NaN if there are none.
      nsd, the surface Dice at 2 pixels, in [0, 1]: of each rater and class the mean over the slices that are not empty
      in both masks, 1 if there are none; then the mean over raters and classes.
    - with ``surfaces`` the counts, int: pairs, S * R * (num_classes - 1); one_empty, those with exactly one mask empty;
      both_empty. Distances are defined on the rest.

    Raises ValueError if prediction and masks differ in shape. Source: docs/method.md section 5.
    """
    overlaps = overlap_scores(prediction.expand(len(masks), *prediction.shape), masks, num_classes)
    scores = {name: values.mean().item() for name, values in overlaps.items()}
    if len(masks) > 1:
        majority = majority_vote(masks, num_classes)
        scores |= {f"dice_rater{rater}": value for rater, value in enumerate(overlaps["dice"].tolist(), start=1)}
        scores["dice_majority"] = overlap_scores(prediction[None], majority[None], num_classes)["dice"].item()
        scores["soft_dice"] = soft_dice_score(prediction, masks, num_classes).item()
        scores["ged"] = energy_distance(prediction, masks, num_classes).item()
    return scores | (_case_surfaces(prediction, masks, num_classes) if surfaces else {})


def _case_surfaces(prediction: Tensor, masks: Tensor, num_classes: int) -> dict[str, float]:
    # Rater by rater, since MONAI works in float32 and a volume of all raters would be large.
    each = [surface_scores(prediction == k, mask == k, 2) for mask in masks for k in range(1, num_classes)]
    hd95, assd, nsd = (torch.stack([scores[name] for scores in each]) for name in ("hd95", "assd", "nsd"))
    undefined = hd95.isnan()
    both_empty = undefined & (nsd == 1)  # the rule for empty masks tells which they are
    nsd_of_volume = nsd.masked_fill(both_empty, torch.nan).nanmean(dim=1).nan_to_num(nan=1.0)
    return {
        "hd95": hd95.nanmean().item(),
        "assd": assd.nanmean().item(),
        "nsd": nsd_of_volume.mean().item(),
        "pairs": undefined.numel(),
        "one_empty": int((undefined & ~both_empty).sum()),
        "both_empty": int(both_empty.sum()),
    }


def majority_vote(masks: Tensor, num_classes: int) -> Tensor:
    """The class with the most votes at each pixel: (*S), of the masks' dtype.

    masks: (R,*S) classes 0..num_classes-1. Of tied classes the one with the highest number wins, foreground before
    background: of four raters two are enough, the consensus of 50 % that is usual for LIDC (the default of pylidc).
    """
    votes = torch.stack([(masks == k).sum(dim=0) for k in reversed(range(num_classes))])
    # max takes the first of equals, as argmax does, which is ten times slower here.
    return (num_classes - 1 - votes.max(dim=0).indices).to(masks.dtype)


def soft_dice_score(prediction: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Dice against the mean of the raters, in [0, 1]: a scalar.

    2 sum(s m) / (sum s + sum m) with s the predicted mask of a class, 0 or 1, and m the share of raters who marked it.
    prediction: (*S), masks: (R,*S), both classes 0..num_classes-1. Where the raters disagree no prediction reaches 1.
    """
    # Numerator and denominator times R are sums over the masks of all raters: the Dice of masks laid end to end.
    repeated = prediction.expand(len(masks), *prediction.shape)
    return overlap_scores(repeated[None], masks[None], num_classes)["dice"][0]


def energy_distance(prediction: Tensor, masks: Tensor, num_classes: int) -> Tensor:
    """Squared generalised energy distance of one prediction s to the raters Y, in [0, 2]: a scalar.

    2 E[d(s, Y)] - E[d(Y, Y')] with d = 1 - IoU, Y and Y' each any of the R raters: R * R pairs with R zeros among them.
    The third term, between predictions, is 0 for one. The distance is 0 if all raters agree with the prediction,
    2 if all agree with each other and share nothing with it; where the raters disagree no prediction reaches 0.
    prediction: (*S), masks: (R,*S), both classes 0..num_classes-1.
    Source: Kohl et al., A Probabilistic U-Net for Segmentation of Ambiguous Images, NeurIPS 2018.
    """
    none = torch.zeros(1)  # one rater has no pairs
    to_raters = sum((1 - _iou(prediction[None], mask[None], num_classes) for mask in masks), none)
    between = sum((1 - _iou(a[None], b[None], num_classes) for a, b in combinations(masks, 2)), none)
    return (2 * to_raters / len(masks) - 2 * between / len(masks) ** 2)[0]


def overlap_scores(prediction: Tensor, mask: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Foreground Dice and IoU of each image, in [0, 1]: two (N,) tensors.

    prediction, mask: (N,*S) classes 0..num_classes-1. Raises ValueError if their shapes differ.
    """
    iou = _iou(prediction, mask, num_classes)  # first: MONAI's Dice does not compare the shapes
    predicted, true = _foreground(prediction, num_classes), _foreground(mask, num_classes)
    return {"dice": compute_dice(predicted, true, ignore_empty=False).mean(dim=1).cpu(), "iou": iou}


def _iou(prediction: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    predicted, true = _foreground(prediction, num_classes), _foreground(mask, num_classes)
    return compute_iou(predicted, true, ignore_empty=False).mean(dim=1).cpu()


def surface_scores(prediction: Tensor, mask: Tensor, num_classes: int) -> dict[str, Tensor]:
    """HD95 and ASSD in pixels (NaN where undefined) and surface Dice (NSD) at 2 pixels of each image: three (N,).

    prediction, mask: (N,*S) classes 0..num_classes-1.
    """
    predicted, true = _foreground(prediction, num_classes), _foreground(mask, num_classes)
    shape = predicted.shape[:2]
    predicted, true = predicted.flatten(0, 1).unsqueeze(1), true.flatten(0, 1).unsqueeze(1)
    empty_prediction, empty_mask = (~m.flatten(1).any(dim=1) for m in (predicted, true))
    defined = ~(empty_prediction | empty_mask)
    hd95, assd = torch.full((2, len(defined)), torch.nan)
    nsd = (empty_prediction & empty_mask).float()
    if defined.any():
        pair = (predicted[defined].float(), true[defined].float())
        hd95[defined] = compute_hausdorff_distance(*pair, percentile=95).squeeze(1).float()
        assd[defined] = compute_average_surface_distance(*pair, symmetric=True).squeeze(1).float()
        nsd[defined] = compute_surface_dice(*pair, class_thresholds=[SURFACE_TOLERANCE]).squeeze(1).float()
    scores = {"hd95": hd95, "assd": assd, "nsd": nsd}
    return {name: values.view(shape).nanmean(dim=1) for name, values in scores.items()}


def _foreground(classes: Tensor, num_classes: int) -> Tensor:
    """(N,*S) classes -> (N,K-1,*S) bool, one plane a foreground class."""
    return torch.stack([classes == k for k in range(1, num_classes)], dim=1)
