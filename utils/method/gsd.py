"""GSD-Net: training a segmentation network from noisy masks with a geometric and a structural prior.

The whole method as pure functions, in the order of docs/method.md, whose sections the docstrings cite. Paper: Wang et
al., "From Noisy Labels to Intrinsic Structure", arXiv 2509.02419, Medical Image Analysis 112 (2026) 104130.

Shapes: B images, C channels, K classes, S spatial axes, any number of them. Labels and superpixel ids are int64,
everything else float32. Randomness enters as arguments. ``labelled`` are the pixels that have a label, bool (B,*S);
None where all have one.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.method.losses import (
    bounded_cross_entropy_map,
    cross_entropy_map,
    masked_mean,
    soft_dice,
    symmetric_kl_map,
)
from utils.method.settings import MethodSettings

NUM_RINGS = 11  # section 7: regions of equal whole distance 0..10 to the boundary, inside and outside merged

Network = Callable[[Tensor], Tensor]  # image (B,C,*S) -> logits (B,K,*S)


class Batch(NamedTuple):
    """What one training step sees."""

    image: Tensor  # (B,C,*S)
    jittered: Tensor  # (B,C,*S), the colour-jittered view of the same image
    label: Tensor  # (B,*S) noisy classes 0..K-1, or `IGNORED`
    distance: Tensor  # (B,*S) distance to the label's boundary in pixels, in (0, 10]; 10 where there is none
    segments: Tensor  # (B,*S) superpixel ids, each in 0..num_segments-1
    num_segments: int
    labelled: Tensor | None = None  # (B,*S) bool: where the label is none of `IGNORED`; None: everywhere
    given: Tensor | None = None  # (B,*S) the label before its contours were corrected, for pictures; None: as ``label``


class TestCase(NamedTuple):
    """One case to test on: S slices, R raters (Kvasir: 1 and 1; LIDC: 1 and 4; MMIS: S and 4).

    The image has the training size, the masks have their own: predictions are resized to the masks.
    """

    name: str
    image: Tensor  # (S,C,size,size) uint8, 0..255
    masks: Tensor  # (R,S,H,W) uint8 classes


class Step(NamedTuple):
    """What one training step of a method gives."""

    loss: Tensor  # scalar with gradient
    parts: dict[str, Tensor]  # scalars for the log, detached
    maps: dict[str, Tensor]  # (B,*S) or (B,C,*S), what the method did with each pixel, for the image panels
    # Of each network its log-probabilities (B,K,*S), with gradient, and the pixels (B,*S) whose labels teach it, bool:
    # on these a recipe may add a loss of its own.
    taught: tuple[tuple[Tensor, Tensor], ...]


def every_pixel(batch: Batch) -> Tensor:
    """The pixels that have a label, bool (B,*S)."""
    return torch.ones_like(batch.label, dtype=torch.bool) if batch.labelled is None else batch.labelled


# --- 1 Small-loss selection -------------------------------------------------------------------------------------------


def selection_loss(log_p1: Tensor, log_p2: Tensor, label: Tensor, consistency: float) -> Tensor:
    """Joint loss l of the two networks per pixel, (B,*S). Source: docs/method.md section 1; JoCoR (Wei et al. 2020)."""
    supervised = cross_entropy_map(log_p1, label) + cross_entropy_map(log_p2, label)
    return supervised + (1 - consistency) * symmetric_kl_map(log_p1, log_p2)


def drop_rate(epoch: int, tau: float, max_epochs: int) -> float:
    """Share r(e) of the pixels that are dropped in ``epoch``: a ramp from 0 to tau over the first fifth of the run.

    Source: docs/method.md section 1.
    """
    # The ramp is made one epoch long in runs too short for a fifth to have two epochs.
    return tau * min(epoch / max(0.2 * max_epochs - 1, 1), 1)


def select_small_loss(loss: Tensor, rate: float, labelled: Tensor | None = None) -> Tensor:
    """Mask M, bool like ``loss``: the floor((1 - rate) * n) of the batch's n labelled pixels with the smallest loss.

    The count is exact whatever the ties. Source: docs/method.md sections 1 and 5.
    """
    count = loss.numel()
    if labelled is not None:
        count, loss = int(labelled.sum()), loss.masked_fill(~labelled, math.inf)
    kept = math.floor((1 - rate) * count + 1e-6)  # 1e-6: (1 - 0.9) * 10 is 0.99... in binary
    keep = torch.ones(loss.numel(), dtype=torch.bool, device=loss.device)
    # The dropped are few, and an unsorted top-k of few costs a fraction of a sort of all.
    dropped = loss.flatten().topk(loss.numel() - kept, sorted=False).indices
    keep[dropped] = False
    return keep.view_as(loss)


# --- 2 Geometric distance-aware weights -------------------------------------------------------------------------------


def weight_cap(epoch: int, max_epochs: int, decay_rate: int = 10) -> int:
    """Upper limit of the distance weight in ``epoch``: from 11 down by decay_rate over the run, at least 1.

    Source: docs/method.md section 2.
    """
    return max(11 - decay_rate * epoch // max_epochs, 1)


def distance_weight(distance: Tensor, cap: float) -> Tensor:
    """w = clip(D, 1, cap), like ``distance``: pixels far from the boundary count more.

    Source: docs/method.md section 2.
    """
    return distance.clamp(1, cap)


# --- 3 Structure-guided label refinement ------------------------------------------------------------------------------


def region_vote(probability: Tensor, regions: Tensor, num_regions: int) -> Tensor:
    """Each region takes one class, the argmax of its mean probability; (B,K,*S), (B,*S) ids -> (B,*S) classes.

    Source: docs/method.md section 3.
    """
    batch, classes = probability.shape[:2]
    ids = regions.flatten(1).unsqueeze(1)
    # In float64: added one after the other, float32 loses the last digits of a region of a million pixels.
    sums = probability.new_zeros(batch, classes, num_regions, dtype=torch.float64)
    sums.scatter_add_(2, ids.expand(-1, classes, -1), probability.flatten(2).double())
    # The sum has the same argmax as the mean: all classes of a region are divided by the same count.
    return sums.max(dim=1).indices.gather(1, ids.squeeze(1)).view_as(regions)


def vote_of(kind: str, probability: Tensor, batch: Batch) -> Tensor:
    """The class that each pixel's region takes, (B,*S), int64.

    kind: "superpixels", section 3; "rings" of equal whole distance, section 7; "pixels", each for itself.
    Source: docs/method.md sections 3 and 7.
    """
    if kind == "pixels":
        return probability.max(dim=1).indices
    if kind == "rings":
        return region_vote(probability, batch.distance.long(), NUM_RINGS)
    return region_vote(probability, batch.segments, batch.num_segments)


def refine(label: Tensor, keep: Tensor, vote: Tensor) -> Tensor:
    """r = the given label where it is kept, the region's class elsewhere; all (B,*S).

    Source: docs/method.md section 3.
    """
    return torch.where(keep, label, vote)


# --- 4 Knowledge transfer ---------------------------------------------------------------------------------------------


def transfer_mask(refined: Tensor, ratecp: float, labelled: Tensor | None = None) -> Tensor:
    """K, bool (B,*S): the foreground of each image, or its background where the foreground's share exceeds ratecp.

    Pixels without a label are in neither. Source: docs/method.md sections 4 and 5.
    """
    foreground, background = refined != 0, refined == 0
    pixels: Tensor | int = refined[0].numel()
    if labelled is not None:
        foreground, pixels = foreground & labelled, labelled.flatten(1).sum(dim=1).clamp(min=1)
    share = (foreground.flatten(1).sum(dim=1) / pixels).view(-1, *[1] * (refined.ndim - 1))
    return torch.where(share <= ratecp, foreground, background)


def mix(mask: Tensor, values: Tensor, permutation: Tensor) -> Tensor:
    """K x_i + (1 - K) x_pi(i): each image pasted onto its partner; values (B,*S) or (B,C,*S).

    Source: docs/method.md section 4.
    """
    if values.ndim > mask.ndim:
        mask = mask.unsqueeze(1)
    return torch.where(mask, values, values[permutation])


def transfer_loss(
    log_q: Tensor, refined: Tensor, weight: Tensor, kind: str = "logits", labelled: Tensor | None = None
) -> Tensor:
    """Half weighted cross-entropy, half weighted soft Dice loss of one network on the mixed images, a scalar.

    kind: "logits" for the cross-entropy of section 4, "probabilities" for the bounded one of section 7.
    Source: docs/method.md section 4.
    """
    pixel_loss = cross_entropy_map if kind == "logits" else bounded_cross_entropy_map
    dice_loss = 1 - soft_dice(log_q.exp(), refined, labelled=labelled)
    supervised = masked_mean(weight * pixel_loss(log_q, refined), labelled)
    return 0.5 * supervised + 0.5 * masked_mean(weight, labelled) * dice_loss


def agreement_loss(log_q1: Tensor, log_q2: Tensor, weight: Tensor, labelled: Tensor | None = None) -> Tensor:
    """Weighted symmetric KL of the two networks on the mixed images, a scalar. Source: docs/method.md section 4."""
    return 0.5 * masked_mean(weight * symmetric_kl_map(log_q1, log_q2), labelled)


# --- 5 Total ----------------------------------------------------------------------------------------------------------


def gsd_step(
    networks: Sequence[Network],
    batch: Batch,
    epoch: int,
    settings: MethodSettings,
    mixing: float,
    permutation: Tensor,
) -> Step:
    """The loss of one training step of GSD-Net. Source: docs/method.md sections 1-5.

    networks: f1 and f2. epoch: 0..max_epochs-1. mixing: a in [0, 1], the share of the first network in the vote.
    permutation: pi, int64 (B,), the partner of each image in knowledge transfer.
    """
    f1, f2 = networks
    log_p1 = F.log_softmax(f1(batch.image), dim=1)
    log_p2 = F.log_softmax(f2(batch.jittered), dim=1)

    # Selection (1) and distance weights (2)
    rate = drop_rate(epoch, settings.tau, settings.max_epochs)
    pixel_loss = selection_loss(log_p1, log_p2, batch.label, settings.consistency)
    small = select_small_loss(pixel_loss.detach(), rate, batch.labelled)
    keep = small if settings.has("selection") else every_pixel(batch)
    weight = torch.ones_like(batch.distance)
    if settings.has("gda"):
        distance = batch.distance.floor() if settings.distance == "floored" else batch.distance
        cap = weight_cap(epoch, settings.max_epochs, settings.weight_decay_rate)
        # A distance_cap below 10 is not the paper's: D ends at 10 as it is.
        weight = distance_weight(distance, min(cap, settings.distance_cap))
    gda = masked_mean(weight * pixel_loss, keep)
    # The mean loss before selection: a non-finite pixel would be dropped, and so hidden, by the selection.
    parts = {"pixel_loss": masked_mean(pixel_loss, batch.labelled), "kept": keep.float().mean(), "gda": gda}
    maps = {"kept": keep, "weight": weight}
    taught = ((log_p1, keep), (log_p2, keep))
    if not settings.second_phase or epoch < settings.second_phase_from:
        return Step(gda, _detached(parts), maps, taught)

    # Refinement (3)
    with torch.no_grad():
        refined, labelled = batch.label, batch.labelled
        if settings.has("sgr"):  # which gives every pixel a class
            labelled = None
            probability = mixing * log_p1.exp() + (1 - mixing) * log_p2.exp()
            refined = refine(batch.label, small, vote_of(settings.vote, probability, batch))

        # Knowledge transfer (4)
        mask = torch.ones_like(small)
        if settings.has("kt"):
            mask = transfer_mask(refined, settings.ratecp, labelled)
        mixed = mix(mask, batch.image, permutation)
        mixed_jittered = mix(mask, batch.jittered, permutation)
        mixed_label = mix(mask, refined, permutation)
        mixed_weight = mix(mask, weight, permutation)
        mixed_labelled = None if labelled is None else mix(mask, labelled, permutation)
    log_q1 = F.log_softmax(f1(mixed), dim=1)
    log_q2 = F.log_softmax(f2(mixed_jittered), dim=1)
    transfer1 = transfer_loss(log_q1, mixed_label, mixed_weight, settings.transfer_loss, mixed_labelled)
    transfer2 = transfer_loss(log_q2, mixed_label, mixed_weight, settings.transfer_loss, mixed_labelled)
    agreement = agreement_loss(log_q1, log_q2, mixed_weight, mixed_labelled)

    # Total (5)
    parts |= {"transfer1": transfer1, "transfer2": transfer2, "agreement": agreement}
    maps |= {"refined": refined, "mixed": mixed}
    return Step(gda + transfer1 + transfer2 + agreement, _detached(parts), maps, taught)


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}
