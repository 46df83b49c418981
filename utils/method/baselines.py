"""Other methods of training from noisy labels, with the signature of `utils.method.gsd.gsd_step`.

Each trains the same two networks on the same two views, in the same loop and budget, and is tested by the same sum of
logits, so that a difference in the figures is a difference in the method. What a method's paper does with images is
done with pixels, and what it does with a batch of images with all pixels of the batch.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.method.gsd import Batch, Network, Step, drop_rate, every_pixel, select_small_loss
from utils.method.losses import (
    co_regularised_map,
    cross_entropy_map,
    generalised_cross_entropy_map,
    masked_mean,
    student_t_loss,
    symmetric_cross_entropy_map,
)
from utils.method.settings import MethodSettings

JOCOR_LAMBDA = 0.85  # share of the agreement in the loss; the paper searches 0.05..0.95 for each dataset


def ce_step(
    networks: Sequence[Network], batch: Batch, epoch: int, settings: MethodSettings, mixing: float, permutation: Tensor
) -> Step:
    """Plain cross-entropy on every pixel, each network on its view: the section 5 networks without any treatment."""
    return _every_pixel(networks, batch, cross_entropy_map)


def gce_step(
    networks: Sequence[Network], batch: Batch, epoch: int, settings: MethodSettings, mixing: float, permutation: Tensor
) -> Step:
    """Generalised cross-entropy on every pixel. Source: Zhang & Sabuncu, NeurIPS 2018, q = 0.7, not truncated."""
    return _every_pixel(networks, batch, generalised_cross_entropy_map)


def sce_step(
    networks: Sequence[Network], batch: Batch, epoch: int, settings: MethodSettings, mixing: float, permutation: Tensor
) -> Step:
    """Symmetric cross-entropy on every pixel. Source: Wang et al., ICCV 2019.

    With alpha and beta for CIFAR-10, their photographs with few classes; those for CIFAR-100 lean on the plain
    cross-entropy, because the reverse one learns slowly where classes are many.
    """
    return _every_pixel(networks, batch, symmetric_cross_entropy_map)


def coteaching_step(
    networks: Sequence[Network], batch: Batch, epoch: int, settings: MethodSettings, mixing: float, permutation: Tensor
) -> Step:
    """Co-teaching: each network learns on the pixels whose loss is small for the other.

    The map "kept" is the share of the two networks that kept a pixel: 0, 0.5 or 1.
    Source: Han et al., NeurIPS 2018, with tau as the forget rate.
    """
    log_p1, log_p2 = _log_probabilities(networks, batch)
    loss1, loss2 = (cross_entropy_map(log_p, batch.label) for log_p in (log_p1, log_p2))
    # Co-teaching and JoCoR ramp the rate linearly too, over 10 of 200 epochs. All methods share GSD-Net's ramp over a
    # fifth of the run: they then drop equally many pixels at any time and differ only in which, and a ramp meant for
    # the hundreds of steps an epoch of CIFAR does not shrink to the few of a small dataset.
    rate = drop_rate(epoch, settings.tau, settings.max_epochs)
    keep1, keep2 = (select_small_loss(loss.detach(), rate, batch.labelled) for loss in (loss1, loss2))
    total = masked_mean(loss1, keep2) + masked_mean(loss2, keep1)
    pixel_loss = masked_mean((loss1 + loss2).detach(), batch.labelled)
    parts = {"pixel_loss": pixel_loss, "kept": keep1.float().mean()}  # both keep equally many
    return Step(total, parts, {"kept": (keep1.float() + keep2.float()) / 2}, ((log_p1, keep2), (log_p2, keep1)))


def jocor_step(
    networks: Sequence[Network], batch: Batch, epoch: int, settings: MethodSettings, mixing: float, permutation: Tensor
) -> Step:
    """JoCoR: both networks learn on the pixels with a small joint loss, supervised and for agreement.

    Not GSD-Net without its other parts: there the agreement weighs 1 - `MethodSettings.consistency` against the
    cross-entropies, here lambda / (1 - lambda). Source: Wei et al., CVPR 2020.
    """
    # Over 1 - lambda: the order of the losses stays, and so the selection. The paper's Adam does not see the factor,
    # but SGD would learn as many times slower from the labels than with the other methods at the same learning rate.
    log_p1, log_p2 = _log_probabilities(networks, batch)
    loss = co_regularised_map(log_p1, log_p2, batch.label, JOCOR_LAMBDA) / (1 - JOCOR_LAMBDA)
    rate = drop_rate(epoch, settings.tau, settings.max_epochs)
    keep = select_small_loss(loss.detach(), rate, batch.labelled)
    parts = {"pixel_loss": masked_mean(loss.detach(), batch.labelled), "kept": keep.float().mean()}
    return Step(masked_mean(loss, keep), parts, {"kept": keep}, ((log_p1, keep), (log_p2, keep)))


def tloss_step(
    networks: Sequence[Network],
    batch: Batch,
    epoch: int,
    settings: MethodSettings,
    mixing: float,
    permutation: Tensor,
    log_nu: Tensor,
) -> Step:
    """The T-Loss on every pixel; log_nu, a scalar, is learned with the networks, which share it.

    Over the number of labelled pixels: the paper's Adam does not see the factor, but SGD's learning rate is made for
    means over pixels. Source: Gonzalez-Jimenez et al., MICCAI 2023.
    """
    log_p1, log_p2 = _log_probabilities(networks, batch)
    every = every_pixel(batch)
    pixels = every.flatten(1).sum(dim=1).clamp(min=1)
    losses = [student_t_loss(log_p.exp(), batch.label, log_nu, every) / pixels for log_p in (log_p1, log_p2)]
    total = torch.stack(losses).sum(dim=0).mean()
    return Step(total, {"pixel_loss": total.detach()}, {}, ((log_p1, every), (log_p2, every)))


def _log_probabilities(networks: Sequence[Network], batch: Batch) -> list[Tensor]:
    views = (batch.image, batch.jittered)
    return [F.log_softmax(network(view), dim=1) for network, view in zip(networks, views, strict=True)]


def _every_pixel(networks: Sequence[Network], batch: Batch, loss_map: Callable[[Tensor, Tensor], Tensor]) -> Step:
    log_p1, log_p2 = _log_probabilities(networks, batch)
    loss1, loss2 = (masked_mean(loss_map(log_p, batch.label), batch.labelled) for log_p in (log_p1, log_p2))
    total = loss1 + loss2
    every = every_pixel(batch)
    return Step(total, {"pixel_loss": total.detach()}, {}, ((log_p1, every), (log_p2, every)))
