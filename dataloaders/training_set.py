"""A training set: read once, its contours corrected where asked for, and held as compact arrays.

What does not depend on the epoch - decoding, resizing, superpixels, correction, distances - is done here, once, and the
result is kept (`dataloaders.cache`). One pass decodes each image and takes the one look at it that both the correction
and --tau auto need (`utils.masks.correction`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataloaders.cache import Allocate, Kept, in_memory, kept
from dataloaders.slic import read_map
from utils.commands.arguments import NO_CACHE
from utils.commands.errors import listed, warn
from utils.commands.jobs import in_threads
from utils.masks.correction import Findings, Look, findings_of, look_at, moved_label
from utils.masks.geometry import IGNORED, resize_image, resize_label, squared_boundary_distance, value_counts

CHUNK = 64  # images handled at once where a whole set would be too large for memory


class Sample(NamedTuple):
    """One training image as a loader reads it, at its own size."""

    image: np.ndarray  # (H,W,C) uint8, 0..255
    label: np.ndarray  # (H,W) uint8 classes
    artefacts: str = ""  # the mask file's name where it has compression artefacts (`dataloaders.files.read_mask`)


@dataclass(frozen=True)
class TrainingSource:
    """Where a training set comes from, and what it depends on."""

    names: tuple[str, ...]
    read: Callable[[int], Sample]  # the sample of an index into names; called from several threads
    maps: Mapping[str, Path] | None  # the superpixels of each name (`dataloaders.slic.find_maps`); None: none vote
    image_size: int  # to which images are brought, image_size x image_size
    num_classes: int
    files: Sequence[Path]  # every file that is read
    settings: dict  # everything else that decides the result, as JSON values


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
    given: Tensor | None = None  # (N,H,W) uint8 classes before their contours were corrected; None: as ``labels``

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def ignores(self) -> bool:
        """Whether some pixel has no label."""
        return any(bool((labels == IGNORED).any()) for labels in self.labels.split(CHUNK))

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images, labels, squared_distances, segments."""
        return self.images, self.labels, self.squared_distances, self.segments

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(part.nbytes for part in (*self.parts, *([] if self.given is None else [self.given])))

    def to(self, device: torch.device) -> "TrainingSet":
        """The same set with its arrays on ``device``."""
        images, labels, squared, segments = (part.to(device) for part in self.parts)
        given = None if self.given is None else self.given.to(device)
        return TrainingSet(self.names, images, labels, squared, segments, self.num_segments, given)


class LoadedSet(NamedTuple):
    """A training set, and what reading it has found."""

    data: TrainingSet
    findings: Findings | None  # of looking at its masks; None if nothing asked for it
    vanished: set[int]  # the classes that some mask loses at the training size


def load_training_set(
    source: TrainingSource, cache: str, device: torch.device, contours: str = "given", wants_tau: bool = False
) -> LoadedSet:
    """The training set of ``source`` on ``device``, and what reading it has found. What vanishes is named on stderr.

    cache: the folder of --cache, where the arrays are kept (`dataloaders.cache.kept`); "none": in memory alone. On a
    GPU the set is copied there if it takes no more than half of its free memory. contours: "given", or "corrected":
    moved as `utils.masks.correction` decides, which stdout says. wants_tau: whether --tau auto is to be estimated.
    Raises `UserError` as ``source.read``, and if the cache cannot be written.
    """
    look = wants_tau or contours == "corrected"
    make = partial(_make, source, look, contours == "corrected")
    own = {"image_size": source.image_size, "num_classes": source.num_classes, "contours": contours, "look": look}
    stored = make(in_memory) if cache == NO_CACHE else kept(Path(cache), source.settings | own, source.files, make)

    facts = stored.facts
    findings = Findings(**facts["findings"]) if facts["findings"] else None
    if findings and contours == "corrected":
        moved = sum(map(bool, findings.shifts))
        print(
            f"contours: {moved} of {len(source.names)} moved, {facts['share_moved']:.1%} of all pixels; "
            f"{findings.reason}" + "; look at some: scripts/audit_labels.py draws them" * (moved > 0)
        )
    if artefacts := facts["artefacts"]:
        print(f"note: compression artefacts, thresholded at 128, in {len(artefacts)} masks: {listed(artefacts)}")
    if vanished := facts["vanished"]:
        warn(
            f"warning: --image_size {source.image_size}: in {len(vanished)} of {len(source.names)} training masks a "
            f"class vanishes, since its objects are smaller than a pixel there: {listed(vanished)}. It is "
            "trained on as background: give a larger --image_size, or cut the images into parts around the objects"
        )
    arrays = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    data = TrainingSet(source.names, **arrays, num_segments=facts["num_segments"])
    return LoadedSet(_placed(data, device), findings, set().union(*vanished.values()))


def _make(source: TrainingSource, look: bool, correct: bool, allocate: Allocate) -> Kept:
    """Read every sample into arrays that ``allocate`` gives; then correct the labels, and measure their distances."""
    count, size, channels = len(source.names), source.image_size, source.read(0).image.shape[2]
    images = allocate("images", (count, channels, size, size), np.uint8)
    labels = allocate("labels", (count, size, size), np.uint8)
    squared = allocate("squared_distances", (count, size, size), np.uint8)
    segments = allocate("segments", (count, size, size), np.int32)
    given = {"given": allocate("given", (count, size, size), np.uint8)} if correct else {}

    def read(index: int) -> tuple[str, Look | None, list[int]]:
        sample = source.read(index)
        images[index] = np.moveaxis(resize_image(sample.image, size), -1, 0)
        segments[index] = read_map(source.maps, source.names[index], size)
        labels[index] = small = resize_label(sample.label, size)
        (there, _), (left, _) = value_counts(sample.label), value_counts(small)
        lost = sorted(set(there.tolist()) - set(left.tolist()) - {0})
        return sample.artefacts, look_at(sample.image, sample.label) if look else None, lost

    artefacts, looks, lost = zip(*in_threads(read, range(count), "reading training set"), strict=True)
    findings = findings_of(looks, source.num_classes, correct) if look else None

    def finish(index: int) -> int:
        before = labels[index].copy()
        label = moved_label(before, findings.shifts[index]) if findings else before
        labels[index], squared[index] = label, squared_boundary_distance(label)
        if correct:
            given["given"][index] = before
        return int(np.count_nonzero(label != before))

    changed = in_threads(finish, range(count), "correcting labels" if correct else "measuring distances")
    num_segments = 1 + max(int(ids.max()) for ids in segments)
    if num_segments <= 2**15:  # nearly always, and half the size
        segments = _narrow(segments, allocate)
    facts = {
        "num_segments": num_segments,
        "artefacts": [name for name in artefacts if name],
        "vanished": {name: classes for name, classes in zip(source.names, lost, strict=True) if classes},
        "findings": findings and findings._asdict(),
        "share_moved": sum(changed) / (count * size * size),
    }
    arrays = {"images": images, "labels": labels, "squared_distances": squared, "segments": segments}
    return Kept(arrays | given, facts)


def _narrow(wide: np.ndarray, allocate: Allocate) -> np.ndarray:
    """Ids as int16, in the place of ``wide``."""
    narrow = allocate("narrow", wide.shape, np.int16)
    for start in range(0, len(wide), CHUNK):
        narrow[start : start + CHUNK] = wide[start : start + CHUNK]
    if isinstance(wide, np.memmap) and isinstance(narrow, np.memmap):
        Path(str(narrow.filename)).replace(str(wide.filename))
    return narrow


def _placed(data: TrainingSet, device: torch.device) -> TrainingSet:
    if device.type == "cpu":
        return data
    size, free = data.nbytes, torch.cuda.mem_get_info(device)[0]
    figures = f"the training set takes {size / 1e9:.2f} GB, the GPU has {free / 1e9:.2f} GB free"
    if size > free / 2:
        print(f"{figures}: it stays off the GPU")
        return data
    print(f"{figures}: it is copied there")
    return data.to(device)
