"""Parts of utils/engine/training.py that the runs of other tests do not reach."""

from functools import partial

import numpy as np
import pytest
import torch

from utils.commands.errors import UserError
from utils.commands.jobs import processors
from utils.engine.evaluation import _score, _scored, classes_of
from utils.engine.training import _check_finite
from utils.method import gsd


def test_scores_from_several_processes_are_those_of_one():
    """In the same order; and no more cases are read ahead than the processes have in hand."""
    generator = torch.Generator().manual_seed(0)
    count, processes = 24, min(processors(), 8)
    masks = torch.randint(2, (count, 2, 1, 16, 16), generator=generator, dtype=torch.uint8)
    classes = torch.randint(2, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    read = []

    def predicted():
        for index in range(count):
            read.append(index)
            case = gsd.TestCase(f"case{index}", torch.zeros(1, 3, 16, 16, dtype=torch.uint8), masks[index])
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


@pytest.mark.parametrize(("side", "classes", "threads"), [(16, 2, 1), (300, 2, 1), (300, 5, 3), (512, 2, 3)])
def test_small_masks_are_scored_by_one_thread(monkeypatch, side, classes, threads):
    """On a busy machine several wait for each other; and the number is as before in the end, whatever happens."""
    seen = []

    def scores(*case):
        seen.append(torch.get_num_threads())
        raise ValueError

    monkeypatch.setattr("utils.engine.evaluation.case_scores", scores)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError):
            _score(np.zeros((1, side, side), np.uint8), np.zeros((1, 1, side, side), np.uint8), classes, False)
        assert seen == [threads] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_loss_that_is_not_finite_in_one_process_is_told_alike_by_all(monkeypatch):
    """Gradients are averaged, so one step later no loss of any process is finite."""
    fine, bad = torch.zeros(2), torch.tensor([float("nan"), 0])
    parts = [([fine, fine, bad], [["a"], ["b"], ["c"]]), ([fine, bad, bad], [["x"], ["y"], ["z"]])]
    shares: list = []
    monkeypatch.setattr("utils.engine.training.gather", lambda own: shares.extend(own) or own)
    for values, names in parts:
        with pytest.raises(UserError, match=r"step [12], on [cy]"):
            _check_finite(values, names, 7)
    monkeypatch.setattr("utils.engine.training.gather", lambda own: shares)
    for values, names in [*parts, ([fine] * 3, [["a"], ["b"], ["c"]])]:
        with pytest.raises(UserError, match=r"epoch 7, step 1, on y;"):
            _check_finite(values, names, 7)


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_are_those_of_argmax(classes):
    """The first of equal ones; and NaN above all."""
    logits = torch.randint(-2, 3, (3, classes, 20, 30), generator=torch.Generator().manual_seed(0)).float()
    logits[2, -1, 5:] = torch.nan
    for layout in (torch.contiguous_format, torch.channels_last):
        found = classes_of(logits.contiguous(memory_format=layout))
        assert found.dtype == torch.uint8 and torch.equal(found.long(), logits.argmax(dim=1))
