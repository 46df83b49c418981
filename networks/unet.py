"""The U-Net of docs/method.md section 5 (Ronneberger et al., MICCAI 2015, with batch norm and bilinear upsampling)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128, 128)


class DoubleConv(nn.Sequential):
    """Twice (3x3 convolution, batch norm, ReLU): (B,in_channels,H,W) -> (B,out_channels,H,W)."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int | None = None):
        mid_channels = mid_channels or out_channels
        super().__init__(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1),
            nn.BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UNet(nn.Module):
    """Image (B,in_channels,H,W) -> logits (B,num_classes,H,W), any H and W from 16 up.

    1.082 M parameters for 3 channels and 2 classes at the default widths.
    """

    def __init__(self, in_channels: int, num_classes: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.encoders = nn.ModuleList(map(DoubleConv, (in_channels, *widths), widths))
        self.pool = nn.MaxPool2d(2)
        below = widths[-1]
        self.decoders = nn.ModuleList()
        for level in reversed(range(len(widths) - 1)):
            joined, out = below + widths[level], widths[max(level - 1, 0)]
            self.decoders.append(DoubleConv(joined, out, joined // 2))
            below = out
        self.head = nn.Conv2d(below, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.encoders[0](image)
        skips = []
        for encoder in self.encoders[1:]:
            skips.append(x)
            x = encoder(self.pool(x))
        for decoder in self.decoders:
            skip = skips.pop()
            # To the skip's own size, so that odd sizes need no padding.
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=True)
            x = decoder(torch.cat([skip, x], dim=1))
        return self.head(x)


def two_unets(in_channels: int, num_classes: int, seed: int) -> nn.ModuleList:
    """The two networks f1, f2 of docs/method.md: the same shape, different initial weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(UNet(in_channels, num_classes) for _ in range(2))
