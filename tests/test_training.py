"""Parts of utils/training.py that the runs of other tests do not reach."""

import os
from functools import partial

import torch

from dataloaders import batches
from utils.training import _score, _scored


def test_scores_from_several_processes_are_those_of_one():
    """In the same order; and no more cases are read ahead than the processes have in hand."""
    generator = torch.Generator().manual_seed(0)
    count, processes = 24, min(os.cpu_count() or 1, 8)
    masks = torch.randint(2, (count, 2, 1, 16, 16), generator=generator, dtype=torch.uint8)
    classes = torch.randint(2, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    read = []

    def predicted():
        for index in range(count):
            read.append(index)
            case = batches.TestCase(f"case{index}", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), masks[index])
            yield case, classes[index]

    score = partial(_score, num_classes=2, surfaces=True)
    alone = list(_scored(predicted(), score, None))
    assert [name for name, _ in alone] == [f"case{index}" for index in range(count)]
    assert len({scores["dice"] for _, scores in alone}) > count / 2
    read.clear()
    together = _scored(predicted(), score, most=3)  # two raters a case, so the first two cases are scored here
    first = [next(together) for _ in range(3)]
    assert len(read) <= 2 + 2 * processes + 1
    assert first + list(together) == alone
