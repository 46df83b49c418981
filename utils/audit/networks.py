"""What trained networks say of the images of an audit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.commands.files import write_array
from utils.commands.jobs import progress
from utils.engine.inference import Model
from utils.masks.geometry import resize_image


def write_logits(
    model: Model, files: Sequence[tuple[Path, Path]], batch_size: int, read: Callable[[Path, int], np.ndarray]
) -> None:
    """Write the networks' logits of each (image, .npy file), float16 (K,S,S), S the model's image size.

    read: gives an image file with so many channels as uint8 (H,W,C). Raises `UserError` if a file cannot be written.
    """
    bar = progress(total=len(files), desc="networks", unit="image")
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images = [resize_image(read(path, model.channels), model.image_size) for path, _ in batch]
        logits = model.logits(torch.from_numpy(np.stack(images)).movedim(-1, 1))
        for (_, target), values in zip(batch, logits.half().cpu().numpy(), strict=True):
            write_array(target, values)
        bar.update(len(batch))
    bar.close()
