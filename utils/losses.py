"""Loss maps and the soft Dice, as pure functions on log-probabilities.

Shapes: log-probabilities (B,K,*S), labels (B,*S) with classes 0..K-1, for any number of spatial axes S and K >= 2.
Inputs should be float32: halves lose the small differences that selection rests on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_map(log_p: Tensor, label: Tensor) -> Tensor:
    """-log p(label) per pixel, (B,*S), >= 0."""
    return F.nll_loss(log_p, label, reduction="none")


def bounded_cross_entropy_map(log_p: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy with the probabilities taken once more through a softmax, per pixel, (B,*S).

    For K = 2 it lies between 0.313 and 1.313, so that a wrong label costs little more than a doubtful one.
    Source: docs/method.md section 7 (the published implementation's knowledge-transfer loss).
    """
    return F.nll_loss(F.log_softmax(log_p.exp(), dim=1), label, reduction="none")


def symmetric_kl_map(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) + KL(q||p) per pixel, (B,*S), >= 0."""
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1)


def soft_dice(probability: Tensor, label: Tensor, smoothing: float = 1.0) -> Tensor:
    """Soft Dice of probabilities (B,K,*S) with the label, per sample and class (background too), then the mean.

    Returns a scalar in (0, 1], 1 for a perfect prediction.
    Source: docs/method.md section 4; Milletari et al., 3DV 2016.
    """
    target = torch.zeros_like(probability).scatter_(1, label.unsqueeze(1), 1.0)
    probability, target = probability.flatten(2), target.flatten(2)
    overlap = (probability * target).sum(dim=2)
    size = probability.sum(dim=2) + target.sum(dim=2)
    return ((2 * overlap + smoothing) / (size + smoothing)).mean()
