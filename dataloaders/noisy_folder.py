"""Folder datasets with one noisy mask an image, as tensors: Kvasir, Shenzhen, BU-SUC, any folder of the same layout."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dataloaders.dataset_folder import Pair, check_size
from dataloaders.files import read_image, read_mask
from dataloaders.slic import folder_of
from dataloaders.training_set import Sample, TrainingSource
from utils.commands.errors import listed
from utils.commands.jobs import in_threads
from utils.masks.geometry import IGNORED, resize_image
from utils.method.gsd import TestCase


def training_source(
    pairs: Sequence[Pair],
    maps: Mapping[str, Path] | None,
    image_size: int,
    channels: int,
    num_classes: int = 2,
    ignore_label: int | None = None,
) -> TrainingSource:
    """Training images and masks with their superpixel maps, given by stem, to be brought to image_size x image_size,
    with ``channels`` channels. maps: None where no superpixels vote.

    Superpixels must have been computed at that size. Raises `UserError` when read, for what is unreadable or of the
    wrong shape.
    """
    names = tuple(image.stem for image, _ in pairs)

    def read(index: int) -> Sample:
        image, label, artefacts = _read_pair(*pairs[index], num_classes, channels, ignore_label)
        return Sample(image, label, pairs[index][1].name if artefacts else "")

    folders = {"images": pairs[0][0].parent, "masks": pairs[0][1].parent}
    settings: dict[str, object] = {name: str(folder.resolve()) for name, folder in folders.items()}
    settings |= {"segments": folder_of(maps), "names": names, "channels": channels}
    settings |= {"ignore_label": ignore_label}
    files = [*(path for pair in pairs for path in pair), *(maps or {}).values()]
    return TrainingSource(names, read, maps, image_size, num_classes, files, settings)


def load_cases(
    pairs: Sequence[Pair], image_size: int, channels: int, num_classes: int = 2, ignore_label: int | None = None
) -> list[TestCase]:
    """Read images, at image_size x image_size with ``channels`` channels, and the masks to score them against, at their
    own size.

    Raises `UserError` for anything unreadable.
    """

    def read(pair: Pair) -> tuple:
        image, label, artefacts = _read_pair(*pair, num_classes, channels, ignore_label)
        return resize_image(image, image_size), label, artefacts

    samples = in_threads(read, pairs, "reading cases to score")
    artefacts = [mask.name for (_, mask), sample in zip(pairs, samples, strict=True) if sample[2]]
    if artefacts:
        folder = pairs[0][1].parent
        print(
            f"note: {folder}: compression artefacts, thresholded at 128, in {len(artefacts)} masks: {listed(artefacts)}"
        )
    return [
        # Copies: an array that was not resized may still be the decoder's, which is read-only.
        TestCase(path.stem, torch.tensor(image).movedim(-1, 0)[None], torch.tensor(label)[None, None])
        for (path, _), (image, label, _) in zip(pairs, samples, strict=True)
    ]


def class_shares(labels: torch.Tensor, num_classes: int, vanished: Collection[int] = ()) -> str:
    """In words, the share of the pixels of labels (N,H,W) that each class has, and which classes occur in none.

    vanished: the classes that are lost at the training size (`dataloaders.training_set.LoadedSet`).
    """
    counts = torch.stack([piece.flatten().bincount(minlength=256) for piece in labels.split(64)]).sum(dim=0)
    *shares, ignored = (counts[[*range(num_classes), IGNORED]] / labels.numel()).tolist()
    absent = [value for value, share in enumerate(shares) if share == 0]
    unknown, lost = ([k for k in absent if (k in vanished) == gone] for gone in (False, True))
    note = f"; in no mask: class {listed(unknown)} (is --num_classes {num_classes} right?)" if unknown else ""
    note += f"; in no mask at this size: class {listed(lost)}" if lost else ""
    note += f"; without a label: {ignored:.2%}" if ignored else ""
    return "classes " + ", ".join(f"{value}: {share:.2%}" for value, share in enumerate(shares)) + note


def _read_pair(
    image_path: Path, mask_path: Path, num_classes: int, channels: int, ignore_label: int | None
) -> tuple[np.ndarray, np.ndarray, bool]:
    image = read_image(image_path, channels)
    labels, artefacts = read_mask(mask_path, num_classes, ignore_label)
    check_size(mask_path, labels, image_path, image)
    return image, labels, artefacts
