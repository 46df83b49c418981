"""From arrays in memory to training batches: shuffling, joint augmentation, noise, colour jitter.

Whole batches are transformed at once, all but the rotation on the training device. Every draw comes from one generator
on the CPU, so that the batches are the same on every device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.engine.distributed import ALONE, Team
from utils.engine.intensity import Intensity, to_unit
from utils.masks.geometry import IGNORED, squared_boundary_distance
from utils.method.gsd import Batch
from utils.method.settings import RunSettings


@dataclass(frozen=True)
class TrainingSet:
    """Images with one noisy label each, all of one size; what does not depend on the epoch is computed once.

    Distances are kept squared, whole numbers up to 100, which uint8 holds exactly (`utils.masks.geometry`).
    """

    names: tuple[str, ...]
    images: Tensor  # (N,C,H,W) uint8, 0..255
    labels: Tensor  # (N,H,W) uint8 classes
    squared_distances: Tensor  # (N,H,W) uint8
    segments: Tensor  # (N,H,W) int16 or int32 superpixel ids
    num_segments: int  # above every id

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def ignores(self) -> bool:
        """Whether some pixel has no label."""
        return any(bool((labels == IGNORED).any()) for labels in self.labels.split(64))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images, labels, squared_distances, segments."""
        return self.images, self.labels, self.squared_distances, self.segments

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(part.nbytes for part in self.parts)

    def to(self, device: torch.device) -> "TrainingSet":
        """The same set with its arrays on ``device``."""
        images, labels, squared, segments = (part.to(device) for part in self.parts)
        return TrainingSet(self.names, images, labels, squared, segments, self.num_segments)


@dataclass(frozen=True)
class TestCase:
    """One case to test on: S slices, R raters (Kvasir: 1 and 1; LIDC: 1 and 4; MMIS: S and 4).

    The image has the training size, the masks have their own: predictions are resized to the masks.
    """

    name: str
    image: Tensor  # (S,C,size,size) uint8, 0..255
    masks: Tensor  # (R,S,H,W) uint8 classes


def epochs_of(
    data: TrainingSet, batch_size: int, run: RunSettings, intensity: Intensity, device: torch.device, team: Team
) -> Callable[[torch.Generator], Iterator[tuple[Batch, list[str]]]]:
    """The batches of one epoch from a generator (`training_batches`), augmented as the settings ask for."""
    return partial(
        training_batches,
        data,
        batch_size,
        run.jitter,
        intensity,
        device=device,
        max_rotation=run.max_rotation,
        noise_sigma=run.noise_sigma,
        team=team,
    )


def training_batches(
    data: TrainingSet,
    batch_size: int,
    jitter_strength: float,
    intensity: Intensity,
    generator: torch.Generator,
    device: torch.device,
    max_rotation: float = 0.0,
    noise_sigma: float = 0.0,
    team: Team = ALONE,
) -> Iterator[tuple[Batch, list[str]]]:
    """One epoch of batches with the names of their images; the last incomplete batch is left out.

    Each image gets a random quarter turn, a flip with probability 0.5 and a jittered view, new ones each epoch; label,
    distances and superpixels move with it. Where asked for, half of the images are rotated by up to ``max_rotation``
    degrees before (`rotate_half`), and half get Gaussian noise of ``noise_sigma`` on the [0, 1] scale (`noise_half`);
    both views see both. Of a team of processes each takes its part of every batch, and draws what it does to it from a
    generator of its own, while ``generator`` stays the same for all. Source: docs/method.md section 5.
    """
    order = torch.randperm(len(data), generator=generator)
    size = batch_size // team.size
    if team.size > 1:
        seed = int(torch.randint(2**62, (), generator=generator)) + team.rank
        generator = torch.Generator().manual_seed(seed)
    for start in range(team.rank * size, len(data) // batch_size * batch_size, batch_size):
        index = order[start : start + size]
        parts = tuple(values[index.to(values.device)] for values in data.parts)
        if max_rotation > 0:
            image, label, squared, segments = (part.cpu() for part in parts)
            parts = rotate_half(image, label, squared, segments, max_rotation, generator)
        symmetry = torch.randint(8, (size,), generator=generator).to(device)
        image, label, squared, segments = (move_square(to_device(part, device), symmetry) for part in parts)
        unit = to_unit(image)
        if noise_sigma > 0:
            unit = noise_half(unit, noise_sigma, generator)
        jittered = color_jitter(unit, jitter_strength, generator)
        batch = Batch(
            image=intensity.normalise(unit).contiguous(memory_format=torch.channels_last),
            jittered=intensity.normalise(jittered).contiguous(memory_format=torch.channels_last),
            label=label.long(),
            distance=squared.float().sqrt(),
            segments=segments.long(),
            num_segments=data.num_segments,
            labelled=label != IGNORED if data.ignores else None,
        )
        yield batch, [data.names[i] for i in index.tolist()]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device; to a GPU by pinned memory, so that the copy waits for nothing that runs there."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


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


# --- Rotation and noise -----------------------------------------------------------------------------------------------


def rotate_half(
    images: Tensor, labels: Tensor, squared: Tensor, segments: Tensor, max_rotation: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotate each image with probability 0.5, by an angle uniform in +-``max_rotation`` degrees.

    images (B,C,S,S) uint8, bilinear; labels and segments (B,S,S), nearest, move with them. The squared distances
    (B,S,S) of rotated images are those of the rotated label. All on the CPU; images that are not rotated stay as they
    are. Source: docs/method.md sections 2 and 5.
    """
    chosen = torch.rand(len(images), generator=generator) < 0.5
    angles = max_rotation * (2 * torch.rand(len(images), generator=generator) - 1)
    if not chosen.any():
        return images, labels, squared, segments
    angles = angles[chosen]
    rotated_labels = rotate(labels[chosen, None], angles, "nearest").squeeze(1)
    rotated = (
        rotate(images[chosen], angles, "bilinear"),
        rotated_labels,
        torch.from_numpy(np.stack([squared_boundary_distance(label) for label in rotated_labels.numpy()])),
        rotate(segments[chosen, None], angles, "nearest").squeeze(1),
    )
    parts = (images, labels, squared, segments)
    images, labels, squared, segments = (a.index_put((chosen,), b) for a, b in zip(parts, rotated, strict=True))
    return images, labels, squared, segments


def rotate(images: Tensor, angles: Tensor, mode: str) -> Tensor:
    """Rotate each of B square images of integers (B,C,S,S) about its centre by angles (B,), in degrees anticlockwise.

    mode: "bilinear", rounded to whole numbers, or "nearest". What comes in from outside is the image's mirror image,
    so that no border appears that is not in the image. In float64, which holds every superpixel id exactly.
    """
    cosine, sine = (f(angles.double().deg2rad()) for f in (torch.cos, torch.sin))
    zero = torch.zeros_like(cosine)
    # From places in the result to places in the image, rows running down.
    theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.double(), grid, mode=mode, padding_mode="reflection", align_corners=False)
    return moved.round().to(images.dtype)


def noise_half(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to each image (B,C,H,W) in [0, 1] with probability 0.5; the result is clipped to [0, 1].

    The noise has standard deviation ``sigma`` and is cut at 2 sigma: what lies beyond becomes +-2 sigma. Images without
    noise stay as they are. Source: docs/method.md section 5.
    """
    chosen = (torch.rand(len(images), generator=generator) < 0.5).nonzero().flatten()
    noise = sigma * torch.randn(len(chosen), *images.shape[1:], generator=generator).clamp(-2, 2)
    chosen = chosen.to(images.device)
    return images.index_put((chosen,), (images[chosen] + noise.to(images.device)).clamp(0, 1))


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
