"""Segmentation scores per image, by MONAI, and the one rule for empty masks.

The rule: an overlap (Dice, IoU, surface Dice) of two empty masks is 1, of one empty mask 0; a distance (HD95, ASSD) to
or from an empty mask is undefined, NaN, and counted by whoever averages. With more than two classes a score is the mean
over the foreground classes 1..K-1, leaving undefined distances out.
"""

import warnings

import torch
import torch.nn.functional as F
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


def overlap_scores(prediction: Tensor, mask: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Foreground Dice and IoU of each image, in [0, 1]: two (N,) tensors.

    prediction, mask: (N,*S) classes 0..num_classes-1.
    """
    predicted, true = _foreground(prediction, num_classes), _foreground(mask, num_classes)
    return {
        "dice": compute_dice(predicted, true, ignore_empty=False).mean(dim=1).cpu(),
        "iou": compute_iou(predicted, true, ignore_empty=False).mean(dim=1).cpu(),
    }


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
    return F.one_hot(classes.long(), num_classes).movedim(-1, 1)[:, 1:].bool()
