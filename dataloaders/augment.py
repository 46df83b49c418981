"""Joint augmentation of a batch: symmetries of the square, rotation, noise and colour jitter.

Every draw comes from the generator that is handed in. Source: docs/method.md section 5.
"""

import math

import numpy as np
import torch
from torch import Tensor

from utils.masks.geometry import squared_boundary_distance


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
    images: Tensor,
    labels: Tensor,
    squared: Tensor,
    segments: Tensor,
    *others: Tensor,
    max_rotation: float,
    generator: torch.Generator,
) -> tuple[Tensor, ...]:
    """Rotate each image with probability 0.5, by an angle uniform in +-``max_rotation`` degrees.

    images (B,C,S,S) uint8, bilinear; labels, segments and others (B,S,S), nearest, move with them. The squared
    distances (B,S,S) of rotated images are those of the rotated label. All on the CPU; images that are not rotated stay
    as they are. Source: docs/method.md sections 2 and 5.
    """
    chosen = torch.rand(len(images), generator=generator) < 0.5
    angles = max_rotation * (2 * torch.rand(len(images), generator=generator) - 1)
    parts = (images, labels, squared, segments, *others)
    if not chosen.any():
        return parts
    angles = angles[chosen]
    # Labels and superpixels by one call: they take the same way.
    maps = torch.stack([part[chosen] for part in (labels, segments, *others)], dim=1)
    rotated_labels, *rotated_maps = rotate(maps, angles, "nearest").unbind(dim=1)
    rotated = (
        rotate(images[chosen], angles, "bilinear"),
        rotated_labels,
        torch.from_numpy(
            np.stack([squared_boundary_distance(label) for label in rotated_labels.to(labels.dtype).numpy()])
        ),
        *rotated_maps,
    )
    return tuple(a.index_put((chosen,), b.to(a.dtype)) for a, b in zip(parts, rotated, strict=True))


def rotate(images: Tensor, angles: Tensor, interpolation: str) -> Tensor:
    """Rotate each of B square images of whole numbers (B,C,S,S) about its centre by angles (B,), in degrees
    anticlockwise; interpolation: nearest or bilinear.

    What comes in from outside is the image's mirror image, so that no border appears that is not in the image.
    """
    # Here, since importing torchvision takes longer than importing PyTorch, and one dataset alone rotates.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as TF

    mode = InterpolationMode(interpolation)
    side = images.shape[-1]
    margin = math.ceil((math.sqrt(0.5) - 0.5) * side)  # by which the corners of a turned square leave it, at most
    wide = TF.pad(images.double(), [margin], padding_mode="symmetric")  # float64 holds every superpixel id exactly
    turned = [TF.rotate(image, angle, mode) for image, angle in zip(wide, angles.tolist(), strict=True)]
    return TF.center_crop(torch.stack(turned), [side, side]).round().to(images.dtype)


def noise_half(images: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to each image (B,C,H,W) in [0, 1] with probability 0.5; the result is clipped to [0, 1].

    The noise has standard deviation ``sigma`` and is cut at 2 sigma: what lies beyond becomes +-2 sigma. Images without
    noise stay as they are. Source: docs/method.md section 5.
    """
    chosen = (torch.rand(len(images), generator=generator) < 0.5).nonzero().flatten()
    noise = sigma * torch.randn(len(chosen), *images.shape[1:], generator=generator).clamp(-2, 2)
    chosen = chosen.to(images.device)
    return images.index_put((chosen,), (images[chosen] + noise.to(images.device)).clamp(0, 1))


# --- Colour jitter ----------------------------------------------------------------------------------------------------


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """ColorJitter(0.8s, 0.8s, 0.8s, 0.2s) of images (B,C,H,W) in [0, 1], s = ``strength`` in [0, 1].

    torchvision's takes one set of factors for a whole batch. Here every image has its own, and the order of the four
    steps is drawn once a batch. Images of other than three channels get brightness and contrast alone. Source:
    docs/method.md section 5.
    """
    # Here, since importing torchvision takes as long as importing PyTorch, and not every program jitters.
    from torchvision.transforms.v2 import functional as TF

    uniform = torch.rand(4, len(images), generator=generator)
    order = torch.randperm(4, generator=generator).tolist()
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    spread = strength * torch.tensor([[0.8], [0.8], [0.8], [0.2]])
    middle = torch.tensor([[1.0], [1.0], [1.0], [0.0]])  # hue is shifted, not scaled
    factors = (middle + spread * (2 * uniform - 1)).tolist()
    # torchvision has grey and colour; of other images all channels are one grey one.
    jittered = images if images.shape[1] == 3 else images.flatten(1, 2).unsqueeze(1)
    for which in order:
        jittered = torch.stack([steps[which](image, f) for image, f in zip(jittered, factors[which], strict=True)])
    return jittered.view_as(images)
