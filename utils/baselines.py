"""Other methods of training from noisy labels, with the signature of `utils.gsd.gsd_step`.

Each trains the same two networks on the same two views, in the same loop and budget, and is tested by the same sum of
logits, so that a difference in the figures is a difference in the method.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from utils.gsd import Batch, GSDConfig, Network, Step
from utils.losses import cross_entropy_map


def ce_step(
    networks: Sequence[Network], batch: Batch, epoch: int, config: GSDConfig, mixing: float, permutation: Tensor
) -> Step:
    """Plain cross-entropy on every pixel, each network on its view: GSD-Net with every part switched off."""
    losses = [
        cross_entropy_map(F.log_softmax(network(view), dim=1), batch.label).mean()
        for network, view in zip(networks, (batch.image, batch.jittered), strict=True)
    ]
    total = losses[0] + losses[1]
    return Step(total, {"pixel_loss": total.detach()}, {})
