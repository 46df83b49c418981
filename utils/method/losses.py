"""Loss maps and the soft Dice, as pure functions on log-probabilities.

Shapes: log-probabilities (B,K,*S), labels (B,*S) with classes 0..K-1 or `IGNORED`, for any number of spatial axes S and
K >= 2. A pixel that is ignored has no label: its cross-entropy is 0, and it is outside means and overlaps.
Inputs should be float32: halves lose the small differences that selection rests on.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # the label of a pixel without one; above every class
T_LOSS_EPSILON = 1e-8  # keeps nu above 0; of the authors' program


def cross_entropy_map(log_p: Tensor, label: Tensor) -> Tensor:
    """-log p(label) per pixel, (B,*S), >= 0; 0 where the label is ignored."""
    return F.nll_loss(log_p, label, reduction="none", ignore_index=IGNORED)


def bounded_cross_entropy_map(log_p: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy with the probabilities taken once more through a softmax, per pixel, (B,*S).

    For K = 2 it lies between 0.313 and 1.313, so that a wrong label costs little more than a doubtful one.
    Source: docs/method.md section 7 (the published implementation's knowledge-transfer loss).
    """
    return cross_entropy_map(F.log_softmax(log_p.exp(), dim=1), label)


def generalised_cross_entropy_map(log_p: Tensor, label: Tensor, q: float = 0.7) -> Tensor:
    """(1 - p(label)^q) / q per pixel, (B,*S), in [0, 1/q]; q in (0, 1].

    Between cross-entropy, its limit for q -> 0, and 1 - p(label), half the absolute error, at q = 1.
    Source: Zhang & Sabuncu, NeurIPS 2018: L_q, without the truncated variant, with their q.
    """
    return torch.expm1(-q * cross_entropy_map(log_p, label)) / -q  # expm1: exact where p(label) is close to 1


def reverse_cross_entropy_map(log_p: Tensor, label: Tensor, log_zero: float = -4.0) -> Tensor:
    """-sum_k p(k) log t(k) with the one-hot label t and log 0 := log_zero < 0, per pixel, (B,*S), in [0, -log_zero].

    Source: Wang et al., ICCV 2019.
    """
    return log_zero * torch.expm1(-cross_entropy_map(log_p, label))  # the sum is -log_zero * (1 - p(label))


def symmetric_cross_entropy_map(log_p: Tensor, label: Tensor, alpha: float = 0.1, beta: float = 1.0) -> Tensor:
    """alpha * cross-entropy + beta * reverse cross-entropy per pixel, (B,*S), >= 0.

    Source: Wang et al., ICCV 2019, with their alpha and beta for CIFAR-10.
    """
    return alpha * cross_entropy_map(log_p, label) + beta * reverse_cross_entropy_map(log_p, label)


def symmetric_kl_map(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p) per pixel, (B,*S), >= 0."""
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1)


def co_regularised_map(log_p: Tensor, log_q: Tensor, label: Tensor, agreement: float) -> Tensor:
    """(1 - agreement) * (CE(p) + CE(q)) + agreement * (KL(p||q) + KL(q||p)) per pixel, (B,*S), >= 0.

    agreement: lambda in [0, 1]. Source: Wei et al., CVPR 2020 (JoCoR).
    """
    supervised = cross_entropy_map(log_p, label) + cross_entropy_map(log_q, label)
    return (1 - agreement) * supervised + agreement * symmetric_kl_map(log_p, log_q)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` where ``mask`` is True, a scalar; 0 where it is True nowhere. None: everywhere."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)


def soft_dice(probability: Tensor, label: Tensor, smoothing: float = 1.0, labelled: Tensor | None = None) -> Tensor:
    """Soft Dice of probabilities (B,K,*S) with the label, per sample and class (background too), then the mean.

    labelled: the pixels (B,*S) that count, bool; None: all.
    Returns a scalar in (0, 1], 1 for a perfect prediction.
    Source: docs/method.md section 4; Milletari et al., 3DV 2016.
    """
    target = _one_hot(probability, label)
    if labelled is not None:
        probability, target = probability * labelled.unsqueeze(1), target * labelled.unsqueeze(1)
    return _dice_of_each(probability, target, smoothing).mean()


def foreground_dice(probability: Tensor, label: Tensor, mask: Tensor, smoothing: float = 1.0) -> Tensor:
    """Soft Dice of probabilities (B,K,*S) with the label where a mask (B,*S) is True, per sample and class 1..K-1, then
    the mean.

    Per sample, as predictions are scored: a small object is worth as much as a large one.
    Returns a scalar in (0, 1], 1 for a perfect prediction. Source: docs/method.md section 8.
    """
    inside = mask.unsqueeze(1)
    return _dice_of_each(probability[:, 1:] * inside, _one_hot(probability, label)[:, 1:] * inside, smoothing).mean()


def added_dice_loss(taught: Sequence[tuple[Tensor, Tensor]], label: Tensor) -> Tensor:
    """The Dice loss that a recipe adds to a method's: the sum over the networks of 1 - `foreground_dice`, a scalar.

    taught: of each network its log-probabilities (B,K,*S) and the pixels (B,*S), bool, whose labels teach it.
    Source: docs/method.md section 8.
    """
    losses = [1 - foreground_dice(log_p.exp(), label, keep) for log_p, keep in taught]
    return torch.stack(losses).sum()


def student_t_loss(probability: Tensor, label: Tensor, log_nu: Tensor, mask: Tensor | None = None) -> Tensor:
    """The T-Loss of each image, (B,): the negative log-likelihood of its errors under a multivariate Student t.

    With D pixels, e_k the probabilities of a class k minus its one-hot label, and nu = exp(log_nu) + 1e-8:

        lgamma(nu / 2) - lgamma((nu + D) / 2) + D / 2 log(pi nu) + (nu + D) / 2 log(1 + |e_k|^2 / nu)

    and of that the mean over the classes 1..K-1. An image full of errors counts by their logarithm only. The value,
    which may be negative, and its gradients grow like D.

    probability: (B,K,*S). log_nu: a scalar, learned with the networks, at first 1. mask: (B,*S), True where the label
    counts, by default everywhere; D is the number of these pixels, and the loss the likelihood of their errors alone.
    Source: Gonzalez-Jimenez et al., MICCAI 2023, there for K = 2, with the unit matrix for their Sigma.
    """
    squares = (probability - _one_hot(probability, label))[:, 1:] ** 2
    if mask is None:
        mask = torch.ones_like(label, dtype=torch.bool)
    error = (squares * mask.unsqueeze(1)).flatten(2).sum(dim=2).double()  # (B,K-1)
    # In double precision: for D = 65536 terms of a million nearly cancel.
    pixels = mask.flatten(1).sum(dim=1, keepdim=True).double()
    nu = log_nu.double().exp() + T_LOSS_EPSILON
    normaliser = torch.lgamma(nu / 2) - torch.lgamma((nu + pixels) / 2) + pixels / 2 * torch.log(math.pi * nu)
    return (normaliser + (nu + pixels) / 2 * torch.log1p(error / nu)).mean(dim=1).to(probability.dtype)


def _one_hot(probability: Tensor, label: Tensor) -> Tensor:
    # Ignored labels count as class 0 here; whoever asks masks them.
    return torch.zeros_like(probability).scatter_(1, (label * (label != IGNORED)).unsqueeze(1), 1.0)


def _dice_of_each(probability: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """(B,K) of (B,K,*S)."""
    probability, target = probability.flatten(2), target.flatten(2)
    overlap = (probability * target).sum(dim=2)
    return (2 * overlap + smoothing) / (probability.sum(dim=2) + target.sum(dim=2) + smoothing)
