"""From arrays in memory to training batches: shuffling, and augmentation (`dataloaders.augment`).

Whole batches are transformed at once, all but the rotation on the training device. Every draw comes from one generator
on the CPU, so that the batches are the same on every device.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from dataloaders.augment import color_jitter, move_square, noise_half, rotate_half
from dataloaders.training_set import TrainingSet
from utils.engine.distributed import ALONE, ProcessGroup
from utils.engine.intensity import Intensity, to_unit
from utils.masks.geometry import IGNORED
from utils.method.gsd import Batch
from utils.method.settings import RunSettings


def epochs_of(
    data: TrainingSet,
    batch_size: int,
    run: RunSettings,
    intensity: Intensity,
    device: torch.device,
    group: ProcessGroup,
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
        group=group,
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
    group: ProcessGroup = ALONE,
) -> Iterator[tuple[Batch, list[str]]]:
    """One epoch of batches with the names of their images; the last incomplete batch is left out.

    Each image gets a random quarter turn, a flip with probability 0.5 and a jittered view, new ones each epoch; label,
    distances and superpixels move with it. Where asked for, half of the images are rotated by up to ``max_rotation``
    degrees before (`rotate_half`), and half get Gaussian noise of ``noise_sigma`` on the [0, 1] scale (`noise_half`);
    both views see both. Each process of a group takes its part of every batch, and draws what it does to it from a
    generator of its own, while ``generator`` stays the same for all. Source: docs/method.md section 5.
    """
    order = torch.randperm(len(data), generator=generator)
    size = batch_size // group.size
    if group.size > 1:
        seed = int(torch.randint(2**62, (), generator=generator)) + group.rank
        generator = torch.Generator().manual_seed(seed)
    for start in range(group.rank * size, len(data) // batch_size * batch_size, batch_size):
        index = order[start : start + size]
        arrays = data.parts if data.given is None else (*data.parts, data.given)
        parts = tuple(values[index.to(values.device)] for values in arrays)
        if max_rotation > 0:
            parts = rotate_half(*(part.cpu() for part in parts), max_rotation=max_rotation, generator=generator)
        symmetry = torch.randint(8, (size,), generator=generator).to(device)
        image, label, squared, segments, *given = (move_square(to_device(part, device), symmetry) for part in parts)
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
            given=given[0] if given else None,
        )
        yield batch, [data.names[i] for i in index.tolist()]


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on the device; to a GPU by pinned memory, so that the copy waits for nothing that runs there."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
