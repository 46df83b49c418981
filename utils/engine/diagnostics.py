"""What can go wrong in training without an error: seen on the device during an epoch, told once at its end."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from utils.commands.errors import counted, listed
from utils.engine.distributed import gather
from utils.engine.scores import Row, all_empty
from utils.method.gsd import Batch, Network, Step
from utils.method.losses import IGNORED

ENOUGH_IMAGES = 64  # that tell their superpixels from others; of fewer, true ones may be ahead by no more than chance
MOST_IMAGES = 256  # of an epoch that are compared in each process: enough, and the cost stays small
CHANCE = 2.0  # standard deviations by which they are to be ahead in more than half of the images


class Diagnostics:
    """The signs of one epoch. Nothing waits for the device before `warnings` is called.

    Collapse: all that a network predicts in the second half of the epoch is one class, and the labels have more.
    Superpixels without outlines: all of an image is one segment. Superpixels that do not fit: they follow the images no
    better than those of the next image in the batch do (`explained`); this takes batches of several images, and 64 in
    an epoch. Foreground lost: of an image with foreground the selection drops every foreground pixel.
    Source: docs/method.md sections 1 and 3.
    """

    def __init__(self, steps: int, vote: str | None):
        """steps: in the epoch. vote: which regions vote in this run (`utils.method.gsd.vote_of`), at whatever epoch."""
        self.steps, self.vote = steps, vote
        self.names: list[Sequence[str]] = []
        self.images: list[Tensor] = []  # bool (4,B): one segment, foreground lost, own superpixels better, worse
        self.labels: list[Tensor] = []  # lowest and highest class
        self.predicted: dict[int, list[Tensor]] = {}  # the same of what each network predicts, by its number

    def observed(self, forwards: Sequence[Network]) -> list[Network]:
        """The networks' forward passes, observed."""
        return [self._observed(number, forward) for number, forward in enumerate(forwards, 1)]

    def _observed(self, number: int, forward: Network) -> Network:
        def observed(image: Tensor) -> Tensor:
            logits = forward(image)
            if 2 * len(self.names) >= self.steps - 1:
                self.predicted.setdefault(number, []).append(_range(logits.detach().argmax(dim=1)))
            return logits

        return observed

    @torch.no_grad()
    def observe(self, batch: Batch, step: Step, names: Sequence[str]) -> None:
        """Take in one step, on the images ``names``."""
        label, segments = batch.label.flatten(1), batch.segments.flatten(1)
        one_segment = segments.amin(dim=1) == segments.amax(dim=1)
        foreground = (label != 0) & (label != IGNORED)
        kept = step.maps["kept"].flatten(1) > 0 if "kept" in step.maps else torch.ones_like(foreground)
        lost = foreground.any(dim=1) & ~(foreground & kept).any(dim=1)
        better = worse = torch.zeros_like(one_segment)
        if self.vote == "superpixels" and sum(map(len, self.names)) < MOST_IMAGES:
            own = explained(batch.image, batch.segments, batch.num_segments)
            other = explained(batch.image, batch.segments.roll(1, dims=0), batch.num_segments)
            # 1e-6: on a GPU the order of a sum is random, and equal segments must stay equal.
            better, worse = own > other * (1 + 1e-6), other > own * (1 + 1e-6)
        self.images.append(torch.stack([one_segment, lost, better, worse]))
        # `IGNORED` is above every class; picking the other pixels out would wait for the device.
        self.labels.append(torch.stack([label.min(), label.where(label != IGNORED, 0).max()]))
        self.names.append(names)

    def warnings(self) -> dict[str, str]:
        """What is to be told, each with what to try, by its short name for the log.

        In a process group every process must call it; all get all.
        """
        names = [name for batch in self.names for name in batch]
        one_segment, lost, better, worse = torch.cat(self.images, dim=1).tolist()
        own = (
            [_limits(ranges) for ranges in (self.labels, *self.predicted.values())],
            [name for name, found in zip(names, one_segment, strict=True) if found and self.vote == "superpixels"],
            [name for name, found in zip(names, lost, strict=True) if found],
            (sum(better), sum(worse)),
        )
        limits, uncut, dropped, fits = zip(*gather([own]), strict=True)
        (low, high), *predicted = ((min(lows), max(highs)) for lows, highs in map(_transposed, _transposed(limits)))
        collapsed = {number: low for number, (low, high) in zip(self.predicted, predicted, strict=True) if low == high}
        found = {}
        for number, value in collapsed.items() if low < high else ():
            found[f"network {number} predicts class {value}"] = (
                f"network {number} predicts class {value} on every pixel. Early in a run of small objects this may "
                "pass; if it stays, try a smaller --learning_rate, more epochs or, where pixels are selected, a "
                "smaller --tau"
            )
        if uncut_names := sorted(chain.from_iterable(uncut)):
            found["one segment"] = (
                f"one superpixel covers all of {counted(len(uncut_names), 'image')}, so refinement gives the whole "
                f"image one class: {listed(uncut_names)}. Look at the image; make the superpixels again with a "
                "smaller --compactness or more --n_segments (scripts/generate_SLIC.py --overwrite), or try "
                "--set vote=rings"
            )
        fitting, failing = map(sum, _transposed(fits))
        compared = fitting + failing
        if compared >= ENOUGH_IMAGES and fitting - failing < CHANCE * compared**0.5:
            found["superpixels do not fit"] = (
                f"the superpixels fit only {fitting} of {compared} images better than those of another image do. "
                "Either they were made from other images (scripts/verify_data.py compares each, "
                "scripts/generate_SLIC.py --overwrite makes them again), or they do not follow the outlines: try "
                "another --n_segments"
            )
        if lost_names := sorted(chain.from_iterable(dropped)):
            found["foreground dropped"] = (
                f"the selection drops every foreground pixel of {counted(len(lost_names), 'image')}: "
                f"{listed(lost_names)}. Try a smaller --tau: it should stay well below the share of the foreground, "
                "unless these masks are wrong"
            )
        return found


def empty_predictions(rows: Sequence[Row]) -> dict[str, str]:
    """What is to be told, as `Diagnostics.warnings`, where every prediction of the scored cases is background alone.

    rows: of `utils.engine.scores`.
    """
    if not all_empty(rows):
        return {}
    return {
        "all predictions empty": (
            f"all scored predictions are empty ({len(rows)} of {len(rows)}): nothing but background. Early in a run "
            "of small objects this may pass; if it stays, the networks find no object at this size: try a larger "
            "--image_size, more epochs or, where pixels are selected, a smaller --tau"
        )
    }


def explained(image: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """How closely segments, (B,*S) ids, follow each image (B,C,*S): the sum of squares, over the pixels, of the mean of
    the pixel's segment; float64 (B,).

    The squares of an image less this are the squares inside segments: the higher, the better the segments. It compares
    segments of the same image only.
    """
    ids, values = segments.flatten(1).unsqueeze(1), image.flatten(2).double()
    sums = values.new_zeros(*values.shape[:2], num_segments).scatter_add_(2, ids.expand_as(values), values)
    counts = values.new_zeros(len(values), 1, num_segments).scatter_add_(2, ids, torch.ones_like(values[:, :1]))
    return (sums.square() / counts.clamp(min=1)).sum(dim=(1, 2))


def _range(classes: Tensor) -> Tensor:
    return torch.stack(classes.aminmax())


def _limits(ranges: Sequence[Tensor]) -> tuple[int, int]:
    low, high = torch.stack(list(ranges)).unbind(dim=1)
    return int(low.min()), int(high.max())


def _transposed(rows: Iterable[Iterable]) -> list[tuple]:
    return list(zip(*rows, strict=True))
