"""Loss maps and the soft Dice against loops over pixels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import multivariate_t

from utils.method.losses import (
    bounded_cross_entropy_map,
    co_regularised_map,
    cross_entropy_map,
    foreground_dice,
    generalised_cross_entropy_map,
    reverse_cross_entropy_map,
    soft_dice,
    student_t_loss,
    symmetric_cross_entropy_map,
    symmetric_kl_map,
)

any_rank_and_classes = pytest.mark.parametrize(
    ("shape", "classes"), [((5, 6), 2), ((5, 6), 3), ((3, 4, 5), 2), ((3, 4, 5), 3)]
)

MAPS_OF_ONE_NETWORK = (
    cross_entropy_map,
    bounded_cross_entropy_map,
    generalised_cross_entropy_map,
    reverse_cross_entropy_map,
    symmetric_cross_entropy_map,
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
def test_robust_maps_equal_loops(shape, classes):
    log_p, log_q = random_log_p(shape, classes, 0), random_log_p(shape, classes, 1)
    label = random_label(shape, classes)

    def generalised(q):
        return lambda p, y: (1 - math.exp(p[y]) ** q) / q

    def reverse(log_zero):
        return lambda p, y: -sum(math.exp(value) * (0 if k == y else log_zero) for k, value in enumerate(p))

    def symmetric(alpha, beta, log_zero=-4):
        return lambda p, y: -alpha * p[y] + beta * reverse(log_zero)(p, y)

    def co_regularised(agreement):
        def loss(p, q, y):
            supervised = -p[y] - q[y]
            forward = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            backward = sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))
            return (1 - agreement) * supervised + agreement * (forward + backward)

        return loss

    for loss, reference in (
        (generalised_cross_entropy_map(log_p, label), generalised(0.7)),
        (generalised_cross_entropy_map(log_p, label, q=0.3), generalised(0.3)),
        (reverse_cross_entropy_map(log_p, label), reverse(-4)),
        (reverse_cross_entropy_map(log_p, label, log_zero=-6.0), reverse(-6)),
        (symmetric_cross_entropy_map(log_p, label), symmetric(0.1, 1)),
        (symmetric_cross_entropy_map(log_p, label, alpha=6.0, beta=0.1), symmetric(6, 0.1)),
    ):
        torch.testing.assert_close(loss, over_pixels(reference, log_p, label))
    for agreement in (0.0, 0.3, 0.85, 1.0):
        loss = co_regularised_map(log_p, log_q, label, agreement)
        torch.testing.assert_close(loss, over_pixels(co_regularised(agreement), log_p, log_q, label))


@any_rank_and_classes
def test_limits_of_the_robust_maps(shape, classes):
    log_p, log_q = (F.log_softmax(random_log_p(shape, classes, seed).double(), dim=1) for seed in (0, 1))
    label = random_label(shape, classes)
    cross_entropy = cross_entropy_map(log_p, label)
    absolute_error = (log_p.exp() - F.one_hot(label, classes).movedim(-1, 1)).abs().sum(dim=1)
    for loss, limit in (
        (generalised_cross_entropy_map(log_p, label, q=1e-9), cross_entropy),
        (generalised_cross_entropy_map(log_p, label, q=1.0), absolute_error / 2),
        (reverse_cross_entropy_map(log_p, label, log_zero=-2.0), absolute_error),
        (symmetric_cross_entropy_map(log_p, label, beta=0.0), 0.1 * cross_entropy),
        (symmetric_cross_entropy_map(log_p, label, alpha=0.0), reverse_cross_entropy_map(log_p, label)),
        (co_regularised_map(log_p, log_q, label, agreement=1.0), symmetric_kl_map(log_p, log_q)),
    ):
        torch.testing.assert_close(loss, limit, rtol=1e-6, atol=1e-9)


CERTAIN = torch.tensor([-1e4, -200.0, -100.0, -20.0, 0.0, 20.0, 100.0, 200.0, 1e4])  # difference of the two logits


def test_bounds_of_the_robust_maps():
    """From a probability of 0 for the label to one of 1, at both ends exactly."""
    log_p = F.log_softmax(torch.stack([torch.zeros_like(CERTAIN), CERTAIN]).unsqueeze(0), dim=1)
    label = torch.ones(1, len(CERTAIN), dtype=torch.long)
    for loss_map, bound in ((generalised_cross_entropy_map, 1 / 0.7), (reverse_cross_entropy_map, 4.0)):
        loss = loss_map(log_p, label)
        assert (loss[0, 0].item(), loss[0, -1].item()) == (pytest.approx(bound), 0)
        assert ((loss >= 0) & (loss <= bound + 1e-6)).all()
        assert (loss.diff() <= 0).all()


def test_gradients_are_finite_and_never_point_the_wrong_way_at_certain_predictions():
    """In float32, at probabilities of exactly 0 and 1, for the right label and for the wrong one."""
    label = torch.ones(1, len(CERTAIN), dtype=torch.long)

    def both(log_p, label):
        return co_regularised_map(log_p, log_p.detach().flip(1), label, agreement=0.85)

    for loss_map in (*MAPS_OF_ONE_NETWORK, both):
        logits = torch.stack([torch.zeros_like(CERTAIN), CERTAIN]).unsqueeze(0).requires_grad_()
        loss = loss_map(F.log_softmax(logits, dim=1), label)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()
        if loss_map is not both:
            assert (logits.grad[0, 1] <= 0).all()
            assert logits.grad[0, 1, len(CERTAIN) // 2] < 0


def test_the_robust_maps_keep_their_digits_where_the_label_is_nearly_certain():
    """1 - p(label) in float32 has no digits left at p(label) = 1 - 1e-9; the losses must."""
    log_p = F.log_softmax(torch.tensor([[[0.0], [20.7]]], dtype=torch.double), dim=1)
    label = torch.tensor([[1]])
    for loss_map in (generalised_cross_entropy_map, reverse_cross_entropy_map):
        exact = loss_map(log_p, label).item()
        assert exact > 0
        assert loss_map(log_p.float(), label).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("loss_map", [generalised_cross_entropy_map, reverse_cross_entropy_map])
def test_a_wrong_label_pulls_less_than_with_cross_entropy(loss_map):
    """The pull on the logit vanishes where the prediction contradicts the label; that of cross-entropy is largest."""
    pulls = []
    for strength in (-6.0, -3.0, 0.0):
        logits = torch.tensor([[[0.0], [strength]]], requires_grad=True)
        loss_map(F.log_softmax(logits, dim=1), torch.tensor([[1]])).sum().backward()
        pulls.append(logits.grad[0, 1, 0].abs().item())
    assert pulls == sorted(pulls)
    assert pulls[0] < 0.05 < pulls[2]


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
    probability, label = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[1]])
    assert soft_dice(probability, label).item() == 0.5
    assert foreground_dice(probability, label, torch.ones_like(label).bool()).item() == 0.5


@any_rank_and_classes
def test_foreground_dice_is_soft_dice_of_the_pixels_in_the_mask_without_the_background(shape, classes):
    probability, label = random_log_p(shape, classes, 0).exp(), random_label(shape, classes)
    inside = torch.rand(label.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    scores = []
    for p, y, kept in zip(probability, label, inside, strict=True):
        for k in range(1, classes):
            of_class, wanted = p[k][kept], (y[kept] == k).float()
            scores.append((2 * (of_class * wanted).sum() + 0.5) / ((of_class + wanted).sum() + 0.5))
    assert foreground_dice(probability, label, inside, 0.5).item() == pytest.approx(np.mean(scores), rel=1e-5)


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
        lambda log_p: generalised_cross_entropy_map(log_p, label).mean(),
        lambda log_p: reverse_cross_entropy_map(log_p, label).mean(),
        lambda log_p: symmetric_cross_entropy_map(log_p, label).mean(),
        lambda log_p: co_regularised_map(log_p, truth, label, agreement=0.85).mean(),
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
        of_one = [loss_map(log_p, label) for loss_map in MAPS_OF_ONE_NETWORK]
        of_both = symmetric_kl_map(log_p, log_q), co_regularised_map(log_p, log_q, label, agreement=0.85)
        return *of_one, *of_both, soft_dice(log_p.exp(), label)

    assert torch.autograd.gradcheck(losses, logits)


def student_t_by_scipy(probability, label, nu, mask):
    """Of each image the mean over the foreground classes of what SciPy says of the errors at the pixels of ``mask``."""
    losses = []
    for p, y, inside in zip(probability.double().numpy(), label.numpy(), mask.numpy(), strict=True):
        errors = [(p[k] - (y == k))[inside] for k in range(1, len(p))]
        losses.append(np.mean([-multivariate_t.logpdf(e, np.zeros(len(e)), np.eye(len(e)), df=nu) for e in errors]))
    return torch.tensor(losses)


@any_rank_and_classes
@pytest.mark.parametrize("nu", [0.3, math.e, 40])
def test_student_t_loss_is_the_likelihood_of_the_errors(shape, classes, nu):
    probability, label = random_log_p(shape, classes, 0).exp(), random_label(shape, classes)
    log_nu = torch.tensor(math.log(nu))
    every = torch.ones_like(label, dtype=torch.bool)
    loss = student_t_loss(probability, label, log_nu)
    assert loss.shape == (2,) and loss.dtype == probability.dtype
    expected = student_t_by_scipy(probability, label, nu, every)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    some = torch.rand(label.shape, generator=torch.Generator().manual_seed(3)) < 0.7
    expected = student_t_by_scipy(probability, label, nu, some)
    torch.testing.assert_close(
        student_t_loss(probability, label, log_nu, some).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_student_t_loss_of_one_pixel():
    """nu = 1 is the Cauchy density 1 / (pi (1 + e^2)), here of an error of 3/4."""
    probability = torch.tensor([0.75, 0.25]).reshape(1, 2, 1, 1)
    loss = student_t_loss(probability, torch.ones(1, 1, 1, dtype=torch.long), torch.tensor(0.0))
    assert loss.item() == pytest.approx(math.log(math.pi * (1 + 9 / 16)))


def test_student_t_loss_at_training_size_keeps_its_digits():
    """Of a million's size its terms nearly cancel: the loss and nu's gradient in float32 are those of float64."""
    probability = random_log_p((256, 256), 2, 0, spread=4).exp()
    label = random_label((256, 256), 2)
    results = []
    for dtype in (torch.float32, torch.float64):
        log_nu = torch.tensor(1.0, dtype=dtype, requires_grad=True)
        loss = student_t_loss(probability.to(dtype), label, log_nu).mean()
        loss.backward()
        results.append((loss.item(), log_nu.grad.item()))
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert abs(results[1][0]) > 1000


def test_student_t_loss_teaches_the_networks_and_nu():
    logits = torch.randn(
        2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    log_nu = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    label = random_label((4, 5), 3)
    assert torch.autograd.gradcheck(lambda x, n: student_t_loss(x.softmax(dim=1), label, n), (logits, log_nu))


def test_an_image_full_of_errors_pulls_less_in_the_student_t_loss_than_in_the_squared_error():
    """The pull on a pixel, (nu + D) e / (nu + |e|^2), falls where the other pixels of the image are wrong as well."""
    label = torch.zeros(2, 8, 8, dtype=torch.long)
    foreground = torch.full((2, 8, 8), 0.1)
    foreground[1, :6] = 0.9
    probability = torch.stack([1 - foreground, foreground], dim=1).requires_grad_()
    student_t_loss(probability, label, torch.tensor(1.0)).sum().backward()
    pull = probability.grad[:, 1, 7, 7]
    nu = math.e
    assert pull[0].item() == pytest.approx((nu + 64) * 0.1 / (nu + 64 * 0.01), rel=1e-5)
    assert pull[1].item() == pytest.approx((nu + 64) * 0.1 / (nu + 48 * 0.81 + 16 * 0.01), rel=1e-5)
