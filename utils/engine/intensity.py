"""From stored intensities to network inputs: part of what a checkpoint must carry to predict on new images."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Intensity:
    """Network input = (value / 255 - mean) / std, per channel; mean and std in units of the full range."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> "Intensity":
        """The mean and standard deviation of each channel of uint8 images (N,C,H,W)."""
        # A histogram is exact; taken in pieces, it needs no copy of a set that may be larger than memory.
        levels = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
        for piece in images.split(64):
            counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in piece.unbind(1)]).cpu()
        shares = counts / counts.sum(dim=1, keepdim=True)
        mean = shares @ levels
        std = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
        # A constant channel carries nothing; dividing it by 1 keeps it finite.
        return cls(tuple(mean.tolist()), tuple(torch.where(std > 1e-4, std, 1.0).tolist()))

    @classmethod
    def chosen(cls, inputs: str, images: Tensor) -> "Intensity":
        """What --inputs asks for, "normalised" or "raw", for the training images (N,C,H,W) uint8."""
        return cls.of(images) if inputs == "normalised" else cls.raw(images.shape[1])

    @classmethod
    def raw(cls, channels: int) -> "Intensity":
        """Inputs 0..255 as stored. Source: docs/method.md section 7."""
        return cls((0.0,) * channels, (1 / 255,) * channels)

    def stated(self, stored: str) -> dict:
        """What args.json says of intensities: ``stored``, how those of the files become 0..255, and what follows."""
        inputs = "(value / 255 - mean) / std, each channel by itself"
        return {"stored": stored, "inputs": inputs, "mean": list(self.mean), "std": list(self.std)}

    def normalise(self, unit: Tensor) -> Tensor:
        """Images (B,C,H,W) in [0, 1] -> network inputs, float32."""
        mean = unit.new_tensor(self.mean).view(-1, 1, 1)
        std = unit.new_tensor(self.std).view(-1, 1, 1)
        return (unit - mean) / std


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [0, 1]."""
    return images.float() / 255
