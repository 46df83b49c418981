"""Foreground that is lost when masks are resized to the training size: objects smaller than a pixel there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from dataloaders.batches import TrainingSet
from utils.commands.errors import listed, warn
from utils.masks.geometry import resize_label

CHUNK = 64  # images looked at together


def warn_of_vanished(data: TrainingSet, own_size: Callable[[int], np.ndarray], num_classes: int) -> set[int]:
    """Name on stderr the masks whose foreground is lost at the training size; returns the classes that are lost.

    own_size: the mask of an index into ``data.names`` at its own size, (H,W) classes. It is asked for where the
    training set lacks a class of 1..num_classes-1, from several threads. Raises what it raises.
    """
    size = data.labels.shape[-1]

    def lost(item: tuple[int, torch.Tensor]) -> set[int]:
        index, absent = item
        classes = {int(k) for k in absent}
        mask = own_size(index)
        return classes & set(np.unique(mask).tolist()) - set(np.unique(resize_label(mask, size)).tolist())

    present = torch.cat(
        [
            torch.stack([(labels == k).flatten(1).any(dim=1) for k in range(1, num_classes)], dim=1).cpu()
            for labels in data.labels.split(CHUNK)
        ]
    )
    lacking = [(index, (~row).nonzero().flatten() + 1) for index, row in enumerate(present) if not row.all()]
    with ThreadPoolExecutor() as pool:
        found = {data.names[item[0]]: classes for item, classes in zip(lacking, pool.map(lost, lacking), strict=True)}
    names = [name for name, classes in found.items() if classes]
    if names:
        warn(
            f"warning: --image_size {size}: of {len(names)} of {len(data)} training masks a class vanishes, its "
            f"objects being smaller than a pixel there: {listed(names)}. What vanishes is trained on as background: "
            "give a larger --image_size, or cut the images into parts around the objects"
        )
    return set().union(*found.values())
