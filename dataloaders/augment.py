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


# --- Colour jitter: torchvision's ColorJitter with factors of its own for every image of a batch ----------------------
# torchvision's operations take one factor for a whole batch, so every image would need a call of its own. Measured on
# training batches of 16 at 256 px, in one process: on the CPU 8 to 13 % faster by one thread, but 35 to 43 % slower by
# two, whose work is cut into smaller pieces; and 1088 operations in place of 59, each of which a GPU starts by itself.


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
