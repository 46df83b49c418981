"""Predict and score: the same for every dataset."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from multiprocessing import get_context

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.commands.jobs import Workers, processors
from utils.engine.distributed import gather
from utils.engine.experiment import Experiment
from utils.engine.intensity import Intensity, to_unit
from utils.engine.metrics import case_scores
from utils.engine.scores import Row
from utils.method.gsd import Network, TestCase

WORTH_PROCESSES = 1000  # masks whose surface distances take longer than other processes to start: 15 ms a mask
WORTH_THREADS = 2**18  # pixels of a case, each class anew: with fewer, threads bring next to nothing


@torch.no_grad()
def mean_logits(forwards: Sequence[Network], images: Tensor, intensity: Intensity, device: torch.device) -> Tensor:
    """The mean of the networks' logits on plain images, uint8 (N,C,H,W): float32 (N,K,H,W) on ``device``."""
    inputs = intensity.normalise(to_unit(images.to(device))).contiguous(memory_format=torch.channels_last)
    return torch.stack([forward(inputs) for forward in forwards]).mean(dim=0)


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N,K,H,W) at ``size``, linearly: outlines come out smoother than from resized classes."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def classes_of(logits: Tensor) -> Tensor:
    """The class of each pixel, uint8 (N,H,W) on the CPU: the argmax of logits (N,K,H,W), the first of equal ones."""
    # Not by argmax: on the CPU that takes 13 times as long, 0.3 s for two classes of 2000 x 2000 pixels.
    return logits.max(dim=1).indices.to("cpu", torch.uint8)


def classes_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel at ``size``, uint8 (N,H,W) on the CPU, of logits (N,K,h,w), which are resized first."""
    return classes_of(resized(logits, size))


def predictions(experiment: Experiment, cases: Iterable[TestCase]) -> Iterator[tuple[TestCase, Tensor]]:
    """Each case with its predicted classes, uint8 (S,H,W) at the size of its masks.

    Cases are read one after the other and predicted together while they fill a batch, so that neither volumes larger
    than memory nor hundreds of single slices are a burden.
    """
    experiment.networks.eval()
    forwards = experiment.forwards(experiment.networks)
    waiting: list[TestCase] = []

    def predicted() -> Iterator[tuple[TestCase, Tensor]]:
        images = torch.cat([case.image for case in waiting])
        logits = torch.cat(
            [
                mean_logits(forwards, chunk, experiment.intensity, experiment.device)
                for chunk in images.split(experiment.batch_size)
            ]
        )
        for case, small in zip(waiting, logits.split([len(case.image) for case in waiting]), strict=True):
            size = (case.masks.shape[-2], case.masks.shape[-1])
            # Slice by slice: at their own size all of a volume may be large.
            yield case, torch.cat([classes_at(logit[None], size) for logit in small])
        waiting.clear()

    for case in cases:
        if waiting and sum(len(other.image) for other in (*waiting, case)) > experiment.batch_size:
            yield from predicted()
        waiting.append(case)
    if waiting:
        yield from predicted()


def evaluate(experiment: Experiment, cases: Sequence[TestCase], surfaces: bool = False) -> dict[str, Row]:
    """Each case's row by its name (`utils.engine.metrics.case_scores`), with ``surfaces`` the distances too.

    Each process of the group scores its share of the cases, and all get all scores.
    """
    own = (cases[index] for index in range(experiment.group.rank, len(cases), experiment.group.size))
    score = partial(_score, num_classes=experiment.num_classes, surfaces=surfaces)
    return dict(gather(list(_scored(predictions(experiment, own), score, WORTH_PROCESSES if surfaces else None))))


def _scored(
    predicted: Iterable[tuple[TestCase, Tensor]], score: Callable[..., Row], most: int | None
) -> Iterator[tuple[str, Row]]:
    """The name of each case and its scores, in order. After ``most`` masks other processes score, all at the same time;
    no more cases are in memory than they have in hand."""
    predicted = iter(predicted)
    masks_scored = 0
    for case, prediction in predicted:
        yield case.name, score(prediction.numpy(), case.masks.numpy())
        masks_scored += case.masks.shape[:2].numel()
        if most is not None and masks_scored >= most:
            break
    following = next(predicted, None)
    if following is None:
        return
    processes = min(processors(), 8)
    # Fresh processes: a fork of one that has threads may hang.
    with Workers(processes, get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        running: deque = deque()
        for case, prediction in chain([following], predicted):
            running.append((case.name, pool.submit(score, prediction.numpy(), case.masks.numpy())))
            if len(running) > 2 * processes:
                name, scores = running.popleft()
                yield name, scores.result()
        yield from ((name, scores.result()) for name, scores in running)


def _score(prediction: np.ndarray, masks: np.ndarray, num_classes: int, surfaces: bool) -> Row:
    threads = torch.get_num_threads()
    if masks.size * (num_classes - 1) < WORTH_THREADS:  # and cost much on a machine with other work: docs/decisions.md
        torch.set_num_threads(1)
    try:
        return case_scores(prediction, masks, num_classes, surfaces)
    finally:
        torch.set_num_threads(threads)
