"""Loss maps and the soft Dice against loops over pixels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.losses import bounded_cross_entropy_map, cross_entropy_map, soft_dice, symmetric_kl_map

any_rank_and_classes = pytest.mark.parametrize(
    ("shape", "classes"), [((5, 6), 2), ((5, 6), 3), ((3, 4, 5), 2), ((3, 4, 5), 3)]
)


def random_log_p(shape, classes, seed, batch=2, spread=2.0):
    logits = spread * torch.randn(batch, classes, *shape, generator=torch.Generator().manual_seed(seed))
    return F.log_softmax(logits, dim=1)


def random_label(shape, classes, batch=2):
    return torch.randint(classes, (batch, *shape), generator=torch.Generator().manual_seed(9))


def over_pixels(function, *fields):
    """The function at each pixel, (B,*S): of K numbers of each field (B,K,*S), of one number of a label (B,*S)."""
    rank = max(field.ndim for field in fields) - 1
    fields = [field.movedim(1, -1) if field.ndim > rank else field for field in fields]
    result = torch.empty(fields[0].shape[:rank])
    for pixel in np.ndindex(*result.shape):
        result[pixel] = function(*(field[pixel].tolist() for field in fields))
    return result


@any_rank_and_classes
def test_maps_equal_loops(shape, classes):
    log_p, log_q = random_log_p(shape, classes, 0), random_log_p(shape, classes, 1)
    label = random_label(shape, classes)
    expected = over_pixels(lambda p, y: -p[y], log_p, label)
    torch.testing.assert_close(cross_entropy_map(log_p, label), expected)

    def bounded(p, y):
        return math.log(sum(math.exp(math.exp(value)) for value in p)) - math.exp(p[y])

    torch.testing.assert_close(bounded_cross_entropy_map(log_p, label), over_pixels(bounded, log_p, label))

    def divergence(p, q):
        return sum(math.exp(a) * (a - b) + math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))

    torch.testing.assert_close(symmetric_kl_map(log_p, log_q), over_pixels(divergence, log_p, log_q))


@any_rank_and_classes
@pytest.mark.parametrize("smoothing", [1.0, 0.1])
def test_soft_dice_equals_a_loop(shape, classes, smoothing):
    probability, label = random_log_p(shape, classes, 0).exp(), random_label(shape, classes)
    label[0] = 0  # the other classes are absent from one sample
    scores = []
    for sample in range(len(label)):
        for k in range(classes):
            overlap = size = 0.0
            for pixel in np.ndindex(*shape):
                p, y = probability[(sample, k, *pixel)].item(), label[(sample, *pixel)].item()
                overlap += p * (y == k)
                size += p + (y == k)
            scores.append((2 * overlap + smoothing) / (size + smoothing))
    assert soft_dice(probability, label, smoothing).item() == pytest.approx(np.mean(scores), rel=1e-5)


def test_soft_dice_smooths_by_one():
    """One wrong pixel of one: (2 * 0 + 1) / (1 + 1) for either class."""
    assert soft_dice(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[1]])).item() == 0.5


@any_rank_and_classes
def test_soft_dice_of_a_perfect_prediction_is_1(shape, classes):
    label = random_label(shape, classes)
    label[0] = 0
    perfect = F.one_hot(label, classes).movedim(-1, 1).float()
    assert soft_dice(perfect, label).item() == 1
    assert 0 < soft_dice(perfect.roll(1, dims=1), label).item() < 0.3


def test_bounded_cross_entropy_of_two_classes_lies_between_its_bounds():
    low, high = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert (round(low, 3), round(high, 3)) == (0.313, 1.313)
    label = random_label((20, 20), 2)
    values = bounded_cross_entropy_map(random_log_p((20, 20), 2, 0, spread=20.0), label)
    assert values.min() >= low - 1e-6
    assert values.max() <= high + 1e-6
    certain = F.log_softmax(torch.tensor([[[50.0, -50.0], [-50.0, 50.0]]]), dim=1)  # both pixels, classes 0 and 1
    torch.testing.assert_close(
        bounded_cross_entropy_map(certain, torch.tensor([[0, 0]])), torch.tensor([[low, high]]), rtol=0, atol=1e-6
    )


@any_rank_and_classes
def test_a_better_prediction_costs_less(shape, classes):
    label = random_label(shape, classes)
    target = F.one_hot(label, classes).movedim(-1, 1).float()
    predictions = [F.log_softmax(strength * target, dim=1) for strength in (-2, 0, 1, 3, 6)]
    truth = F.log_softmax(8 * target, dim=1)
    for cost in (
        lambda log_p: cross_entropy_map(log_p, label).mean(),
        lambda log_p: bounded_cross_entropy_map(log_p, label).mean(),
        lambda log_p: 1 - soft_dice(log_p.exp(), label),
        lambda log_p: symmetric_kl_map(log_p, truth).mean(),
    ):
        costs = [cost(log_p).item() for log_p in predictions]
        assert all(worse > better for worse, better in pairwise(costs)), costs


@any_rank_and_classes
def test_symmetric_kl_is_a_symmetric_distance(shape, classes):
    log_p, log_q = random_log_p(shape, classes, 0), random_log_p(shape, classes, 1)
    divergence = symmetric_kl_map(log_p, log_q)
    assert (divergence > 0).all()
    torch.testing.assert_close(divergence, symmetric_kl_map(log_q, log_p))
    assert not symmetric_kl_map(log_p, log_p).any()
    near = F.log_softmax(log_p + 1e-4, dim=1)  # equal but for rounding
    assert (symmetric_kl_map(log_p, near) >= 0).all()


def test_the_losses_pass_gradients_through_every_argument():
    logits = [torch.randn(2, 3, 2, 2, dtype=torch.double, requires_grad=True) for _ in range(2)]
    label = random_label((2, 2), 3)

    def losses(a, b):
        log_p, log_q = F.log_softmax(a, dim=1), F.log_softmax(b, dim=1)
        maps = cross_entropy_map(log_p, label), bounded_cross_entropy_map(log_p, label), symmetric_kl_map(log_p, log_q)
        return *maps, soft_dice(log_p.exp(), label)

    assert torch.autograd.gradcheck(losses, logits)
