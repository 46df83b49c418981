"""The methods that GSD-Net is compared with, from their papers' formulas, and all of them on a toy problem."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from utils.engine.experiment import step_of
from utils.engine.training import with_dice_loss
from utils.method.baselines import ce_step, coteaching_step, jocor_step
from utils.method.gsd import Batch, Step, drop_rate
from utils.method.settings import METHODS, MethodSettings

LATE = 50  # of 100 epochs: the drop rate has reached tau, refinement is on
SELECTING = ("coteaching", "jocor")
BASELINES = [name for name in METHODS if name != "gsd"]


def draw(seed):
    return torch.Generator().manual_seed(seed)


def batch_of(label, jittered=0.0):
    """A batch of which the baselines see the label, an image of zeros, and a jittered view of one value."""
    image = torch.zeros(len(label), 1, *label.shape[1:])
    segments = torch.zeros_like(label)
    return Batch(image, torch.full_like(image, jittered), label, torch.full(label.shape, 10.0), segments, 1)


def stepped(method):
    """The step of a method, what it learns at its first value."""
    return partial(step_of(method), **{name: torch.tensor(value) for name, value in METHODS[method].learned})


def run(method, logits, label, tau=0.0, epoch=LATE):
    """A step of two networks that give these logits (B,K,*S) whatever they see."""
    networks = [lambda view, values=values: values for values in logits]
    settings = MethodSettings(method, tau=tau)
    return stepped(method)(networks, batch_of(label), epoch, settings, 0.5, torch.arange(len(label)))


def problem(shape=(5, 6), classes=2, batch=3):
    """Logits of two networks, leaves with gradient in double precision, and a label."""
    logits = [
        (2 * torch.randn(batch, classes, *shape, generator=draw(seed))).double().requires_grad_() for seed in (0, 1)
    ]
    return logits, torch.randint(classes, (batch, *shape), generator=draw(2))


def pulled(logits):
    """Where the loss has a gradient with respect to the logits, bool (B,*S)."""
    return logits.grad.abs().sum(dim=1) > 0


def smallest(loss, count):
    """The ``count`` smallest values of all, by a sort, bool like ``loss``."""
    keep = torch.zeros(loss.numel(), dtype=torch.bool)
    keep[loss.flatten().argsort()[:count]] = True
    return keep.view_as(loss)


def cross_entropies(logits, label):
    return [F.cross_entropy(values, label, reduction="none").detach() for values in logits]


def divergence(log_p, log_q):
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)  # KL(p||q)


# --- Every method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_only_the_methods_that_select_depend_on_tau(method):
    logits, label = problem()
    losses = {run(method, logits, label, tau).loss.item() for tau in (0.0, 0.1, 0.4)}
    assert len(losses) == (3 if METHODS[method].selects else 1)


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize(("shape", "classes"), [((5, 6), 2), ((3, 4, 5), 3)])
def test_parts_and_maps_are_what_the_training_loop_takes(method, shape, classes):
    logits, label = problem(shape, classes)
    step = run(method, logits, label, tau=0.3)
    selects = {"kept"} if method in SELECTING else set()
    assert step.parts.keys() == {"pixel_loss", *selects}
    assert step.maps.keys() == selects
    for value in (step.loss, *step.parts.values()):
        assert value.ndim == 0
        assert value.isfinite()
    assert step.loss.requires_grad
    assert not any(value.requires_grad for value in (*step.parts.values(), *step.maps.values()))
    assert all(values.shape == label.shape for values in step.maps.values())


@pytest.mark.parametrize("method", BASELINES)
def test_each_network_sees_its_own_view(method):
    seen = []

    def network(view):
        seen.append(view.unique().tolist())
        return torch.cat([view, -view], dim=1)

    label = torch.zeros(2, 3, 4, dtype=torch.long)
    settings = MethodSettings(method, tau=0.1)
    stepped(method)([network] * 2, batch_of(label, jittered=0.5), 0, settings, 0.5, torch.arange(2))
    assert seen == [[0], [0.5]]


@pytest.mark.parametrize("method", BASELINES)
def test_a_pixel_that_is_not_finite_is_seen_although_selection_drops_it(method):
    logits, label = problem()
    with torch.no_grad():
        logits[1][0, :, 0, 0] = math.nan
    assert not run(method, logits, label, tau=0.3).parts["pixel_loss"].isfinite()


# --- Losses of every pixel --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        ("ce", lambda p: -p.log()),
        ("gce", lambda p: (1 - p**0.7) / 0.7),
        ("sce", lambda p: -0.1 * p.log() + 4 * (1 - p)),
    ],
)
def test_a_loss_of_every_pixel_is_the_sum_of_both_networks_means(method, formula):
    logits, label = problem()
    step = run(method, logits, label)
    expected = sum(formula(values.softmax(dim=1).gather(1, label.unsqueeze(1))).mean().item() for values in logits)
    assert step.loss.item() == pytest.approx(expected)
    assert step.parts["pixel_loss"].item() == pytest.approx(expected)


def foreground_dice(logits, label, keep):
    """Soft Dice of two classes from its formula: of each image, on the pixels that teach, smoothing 1; the mean."""
    p = logits.softmax(dim=1)[:, 1].detach()
    scores = [
        (2 * (p[b] * label[b])[keep[b]].sum() + 1) / (p[b][keep[b]].sum() + label[b][keep[b]].sum() + 1)
        for b in range(len(label))
    ]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("method", METHODS)
def test_the_dice_loss_of_a_recipe_is_on_the_pixels_that_teach(method):
    """Of co-teaching, each network on those that the other kept."""
    logits, label = problem()
    step = run(method, logits, label, tau=0.3, epoch=20)  # gsd: before its second phase
    every = torch.ones(label.shape, dtype=torch.bool)
    keeps = [step.maps["kept"].bool()] * 2 if method in ("gsd", "jocor") else [every, every]
    if method == "coteaching":
        keeps = [smallest(loss, 63) for loss in cross_entropies(logits, label)][::-1]
        assert not torch.equal(*keeps)
    assert all(torch.equal(own, expected) for (_, own), expected in zip(step.taught, keeps, strict=True))
    expected = sum(1 - foreground_dice(*of, keep) for of, keep in zip([(v, label) for v in logits], keeps, strict=True))
    added = with_dice_loss(step, label, 3.0)
    assert added.parts["dice_loss"].item() == pytest.approx(expected.item())
    assert added.loss.item() == pytest.approx(step.loss.item() + 3 * expected.item())
    added.loss.backward()
    pixels = [pulled(values) for values in logits]
    assert all(torch.equal(own, keep) for own, keep in zip(pixels, keeps, strict=True))


# --- Selection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SELECTING)
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.17, 0.3, 0.9])
@pytest.mark.parametrize("epoch", [0, 3, LATE])
def test_each_network_learns_on_exactly_the_share_that_is_kept(method, tau, epoch):
    logits, label = problem((10, 10))
    step = run(method, logits, label, tau, epoch)
    step.loss.backward()
    count = math.floor((1 - drop_rate(epoch, tau, 100)) * label.numel() + 1e-6)
    assert [pulled(values).sum().item() for values in logits] == [count, count]
    assert step.parts["kept"].item() == pytest.approx(count / label.numel())
    assert step.maps["kept"].float().mean().item() == pytest.approx(count / label.numel())


@pytest.mark.parametrize("method", SELECTING)
def test_pixel_loss_is_that_before_selection(method):
    logits, label = problem()
    everything, selected = (run(method, logits, label, tau) for tau in (0.0, 0.3))
    assert everything.parts["kept"] == 1
    assert everything.parts["pixel_loss"].item() == pytest.approx(everything.loss.item())
    assert selected.parts["pixel_loss"].item() == pytest.approx(everything.loss.item())
    assert selected.loss.item() != pytest.approx(everything.loss.item())


@pytest.mark.parametrize("method", SELECTING)
def test_selection_takes_the_batch_as_one(method):
    """An image whose label is wrong everywhere loses its pixels, another keeps all of its own."""
    label = torch.zeros(2, 4, 5, dtype=torch.long)
    label[0] = 1
    background = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1).expand(2, 2, 4, 5)
    kept = run(method, (background, background), label, tau=0.5).maps["kept"]
    assert kept.flatten(1).float().mean(dim=1).tolist() == [0, 1]


def test_coteaching_with_nothing_dropped_is_cross_entropy():
    logits, label = problem()
    assert run("coteaching", logits, label, tau=0.0).loss.item() == pytest.approx(run("ce", logits, label).loss.item())


def test_coteaching_exchanges_the_selections():
    """Four pixels of class 1; each network is wrong at one of its own, and that is where the other must not learn."""
    label = torch.ones(1, 4, dtype=torch.long)
    right, wrong = 2.0, -2.0
    logits = [
        torch.tensor([[[0.0] * 4, foreground]], requires_grad=True)
        for foreground in ([wrong, right, right, right], [right, right, right, wrong])
    ]
    step = run("coteaching", logits, label, tau=0.25)
    step.loss.backward()
    assert pulled(logits[0]).tolist() == [[True, True, True, False]]  # f2 drops pixel 3
    assert pulled(logits[1]).tolist() == [[False, True, True, True]]  # f1 drops pixel 0
    assert step.maps["kept"].tolist() == [[0.5, 1, 1, 0.5]]
    cost = {value: math.log1p(math.exp(-value)) for value in (right, wrong)}
    assert step.loss.item() == pytest.approx(2 * (cost[wrong] + 2 * cost[right]) / 3)


def test_coteaching_equals_a_sort():
    logits, label = problem()
    losses = cross_entropies(logits, label)
    keep1, keep2 = (smallest(loss, 63) for loss in losses)
    assert not torch.equal(keep1, keep2)
    step = run("coteaching", logits, label, tau=0.3)
    assert step.loss.item() == pytest.approx((losses[0][keep2].mean() + losses[1][keep1].mean()).item())
    torch.testing.assert_close(step.maps["kept"], (keep1.float() + keep2.float()) / 2)


def test_jocor_equals_a_sort_of_the_joint_loss():
    logits, label = problem()
    supervised = sum(cross_entropies(logits, label))
    log_p, log_q = (values.detach().log_softmax(dim=1) for values in logits)
    joint = 0.15 * supervised + 0.85 * (divergence(log_p, log_q) + divergence(log_q, log_p))
    keep = smallest(joint, 63)
    assert not torch.equal(keep, smallest(supervised, 63))
    step = run("jocor", logits, label, tau=0.3)
    assert torch.equal(step.maps["kept"], keep)
    assert step.loss.item() == pytest.approx(joint[keep].mean().item() / 0.15)
    step.loss.backward()
    assert all(torch.equal(pulled(values), keep) for values in logits)


def test_jocor_drops_where_the_networks_disagree_before_where_both_are_wrong():
    """By cross-entropy alone it would be the other way round."""
    label = torch.ones(1, 3, dtype=torch.long)
    logits = [torch.tensor([[[0.0] * 3, foreground]]) for foreground in ([2.0, -1.0, -2.0], [2.0, -1.0, 2.0])]
    supervised = sum(cross_entropies(logits, label))[0]
    assert supervised.argmax() == 1
    step = run("jocor", logits, label, tau=0.33)
    assert step.maps["kept"].tolist() == [[True, True, False]]


def test_jocor_of_networks_that_agree_is_cross_entropy():
    """The labels weigh as much as with the other methods, so that one learning rate suits all."""
    logits, label = problem()
    same = [logits[0], logits[0]]
    assert run("jocor", same, label).loss.item() == pytest.approx(run("ce", same, label).loss.item())


# --- Training ---------------------------------------------------------------------------------------------------------


def small_networks():
    torch.manual_seed(0)
    return torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 2, 3, padding=1))
        for _ in range(2)
    )


def toy_data(size=16):
    """Bright squares in noise as a batch of 4, a fifth of the squares labelled background; and their true label."""
    truth = torch.zeros(4, size, size, dtype=torch.long)
    for index in range(4):
        truth[index, 3 + index : 11 + index, 4:12] = 1
    label = truth * (torch.rand(truth.shape, generator=draw(0)) > 0.2)
    image = truth.unsqueeze(1) - 0.5 + 0.2 * torch.randn(4, 1, size, size, generator=draw(1))
    segments = (torch.arange(size).view(-1, 1) // 4 * (size // 4) + torch.arange(size) // 4).expand(4, -1, -1)
    distance = torch.full(truth.shape, 2.0)
    return Batch(image, 1.1 * image, label, distance, segments.contiguous(), (size // 4) ** 2), truth


@pytest.mark.parametrize("method", METHODS)
def test_a_small_training_run_learns_the_truth_from_noisy_labels(method):
    batch, truth = toy_data()
    settings = MethodSettings(method, tau=(batch.label != truth).float().mean().item())
    networks = small_networks()
    optimiser = torch.optim.SGD(networks.parameters(), lr=0.05, momentum=0.9)

    def step() -> Step:
        return stepped(method)(list(networks), batch, LATE, settings, 0.5, torch.tensor([1, 2, 3, 0]))

    first = step().loss.item()
    for _ in range(80):
        optimiser.zero_grad()
        step().loss.backward()
        optimiser.step()
    assert step().loss.item() < 0.5 * first
    prediction = sum(network(batch.image) for network in networks).argmax(dim=1)
    dice = 2 * (prediction * truth).sum() / (prediction.sum() + truth.sum())
    assert dice > 0.9, dice


def test_both_networks_learn():
    for step in (ce_step, coteaching_step, jocor_step):
        networks = small_networks()
        batch, _ = toy_data()
        step(list(networks), batch, LATE, MethodSettings(tau=0.05), 0.5, torch.arange(4)).loss.backward()
        assert all(parameter.grad.any() for parameter in networks.parameters())
