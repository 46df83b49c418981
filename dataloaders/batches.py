"""From arrays in memory to training batches: shuffling, joint augmentation, colour jitter.

Whole batches are transformed at once on the training device. Every draw comes from one generator on the CPU, so that
the batches are the same on every device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.gsd import Batch
from utils.intensity import Intensity, to_unit


@dataclass(frozen=True)
class TrainingSet:
    """Images with one noisy label each, all of one size; what does not depend on the epoch is computed once.

    Distances are kept squared, whole numbers up to 100, which uint8 holds exactly (`utils.geometry`).
    """

    names: tuple[str, ...]
    images: Tensor  # (N,C,H,W) uint8, 0..255
    labels: Tensor  # (N,H,W) uint8 classes
    squared_distances: Tensor  # (N,H,W) uint8
    segments: Tensor  # (N,H,W) int32 superpixel ids
    num_segments: int  # above every id

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class TestCase:
    """One case to test on: S slices, R raters (Kvasir: 1 and 1; LIDC: 1 and 4)."""

    name: str
    image: Tensor  # (S,C,H,W) uint8, 0..255
    masks: Tensor  # (R,S,H,W) uint8 classes


def training_batches(
    data: TrainingSet,
    batch_size: int,
    jitter_strength: float,
    intensity: Intensity,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[tuple[Batch, list[str]]]:
    """One epoch of batches with the names of their images; the last incomplete batch is left out.

    Each image gets a random quarter turn, a flip with probability 0.5 and a jittered view, new ones each epoch; label,
    distances and superpixels move with it. Source: docs/method.md section 5.
    """
    order = torch.randperm(len(data), generator=generator)
    for start in range(0, len(data) - batch_size + 1, batch_size):
        index = order[start : start + batch_size]
        symmetry = torch.randint(8, (batch_size,), generator=generator).to(device)
        image, label, squared, segments = (
            move_square(values[index].to(device), symmetry)
            for values in (data.images, data.labels, data.squared_distances, data.segments)
        )
        unit = to_unit(image)
        jittered = color_jitter(unit, jitter_strength, generator)
        batch = Batch(
            image=intensity.normalise(unit).contiguous(memory_format=torch.channels_last),
            jittered=intensity.normalise(jittered).contiguous(memory_format=torch.channels_last),
            label=label.long(),
            distance=squared.float().sqrt(),
            segments=segments.long(),
            num_segments=data.num_segments,
        )
        yield batch, [data.names[i] for i in index.tolist()]


def move_square(values: Tensor, symmetry: Tensor) -> Tensor:
    """Turn and flip each of B square images: values (B,...,S,S), symmetry (B,) in 0..7.

    symmetry % 4 counts quarter turns, applied after a left-right flip where symmetry >= 4.
    """
    side = values.shape[-1]
    grid = torch.arange(side * side, device=values.device).view(side, side)
    table = torch.stack([torch.rot90(g, k) for g in (grid, grid.flip(-1)) for k in range(4)]).flatten(1)
    source = table[symmetry].view(len(values), *[1] * (values.ndim - 3), -1)
    flat = values.flatten(-2)
    return flat.gather(-1, source.expand_as(flat)).view_as(values)


# --- Colour jitter: torchvision's ColorJitter with factors of its own for every image of a batch ----------------------


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """ColorJitter(0.8s, 0.8s, 0.8s, 0.2s) of images (B,C,H,W) in [0, 1], s = ``strength`` in [0, 1].

    torchvision's takes one set of factors for a whole batch; here every image has its own, and the order of the four
    steps is drawn once a batch. Saturation and hue leave images alone that do not have three channels, as in
    torchvision. Source: docs/method.md section 5.
    """
    ranges = (0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    uniform = torch.rand(4, len(images), generator=generator)
    order = torch.randperm(4, generator=generator).tolist()
    steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for which in order:
        low, high = max(0.0, 1 - ranges[which]), 1 + ranges[which]
        factor = low + (high - low) * uniform[which]
        if which == 3:
            factor = factor - 1  # hue is shifted, not scaled
        images = steps[which](images, factor.to(images.device).view(-1, 1, 1, 1))
    return images


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images (B,C,H,W) in [0, 1] times factor (B,1,1,1) >= 0, clipped to [0, 1]."""
    return (images * factor).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (B,C,H,W) with the mean of its grey version; factor (B,1,1,1) >= 0, 1 changes nothing."""
    mean = grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return (factor * images + (1 - factor) * mean).clamp(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image (B,3,H,W) with its grey version; factor (B,1,1,1) >= 0, 1 changes nothing."""
    if images.shape[1] != 3:
        return images
    return (factor * images + (1 - factor) * grey(images)).clamp(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image (B,3,H,W) by shift (B,1,1,1) in [-0.5, 0.5] of the whole circle."""
    if images.shape[1] != 3:
        return images
    high, _ = images.max(dim=1, keepdim=True)
    low, _ = images.min(dim=1, keepdim=True)
    chroma = high - low
    red, green, blue = images.split(1, dim=1)
    # The hexagon of hues: red at 0, green at 2, blue at 4; a grey pixel has any hue and no chroma.
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = hue + 6 * shift
    # Each channel falls from high to low with the distance of the hue from its own corner of the hexagon.
    corner = images.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    position = torch.remainder(corner + hue, 6)
    return high - chroma * torch.minimum(position, 4 - position).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Luma of (B,3,H,W) as (B,1,H,W); images without three channels stay as they are."""
    if images.shape[1] != 3:
        return images
    weights = images.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
