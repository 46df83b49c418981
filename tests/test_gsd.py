"""The method against loops over pixels, written from the formulas of docs/method.md."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from utils.engine.training import schedule_of, with_dice_loss
from utils.method.gsd import (
    Batch,
    agreement_loss,
    distance_weight,
    drop_rate,
    gsd_step,
    masked_mean,
    mix,
    refine,
    region_vote,
    select_small_loss,
    selection_loss,
    transfer_loss,
    transfer_mask,
    weight_cap,
)
from utils.method.settings import MODULES, MethodSettings

any_rank_and_classes = pytest.mark.parametrize(
    ("shape", "classes"), [((4, 5), 2), ((4, 5), 3), ((2, 3, 4), 2), ((2, 3, 4), 3)]
)
any_rank = pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])

PUBLISHED = {"vote": "rings", "transfer_loss": "probabilities", "distance": "floored"}


def draw(seed):
    return torch.Generator().manual_seed(seed)


def random_log_p(shape, classes, seed, batch=3):
    return F.log_softmax(2 * torch.randn(batch, classes, *shape, generator=draw(seed)), dim=1)


def random_label(shape, classes, seed=9, batch=3):
    return torch.randint(classes, (batch, *shape), generator=draw(seed))


# --- References: plain numbers, one pixel at a time -------------------------------------------------------------------


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def symmetric_kl(p, q):
    return kl(p, q) + kl(q, p)


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def by_pixel(log_p):
    """Log-probabilities (B,K,*S) -> probabilities, an array (B,*S,K) in double precision."""
    return log_p.double().exp().movedim(1, -1).numpy()


def selection_loss_by_loop(p1, p2, label, consistency):
    loss = np.empty(label.shape)
    for i in np.ndindex(*label.shape):
        supervised = -math.log(p1[i][label[i]]) - math.log(p2[i][label[i]])
        loss[i] = supervised + (1 - consistency) * symmetric_kl(p1[i], p2[i])
    return loss


def vote_by_loop(p, regions):
    vote = np.empty(regions.shape, int)
    for b in range(len(regions)):
        for region in np.unique(regions[b]):
            members = [i for i in np.ndindex(*regions.shape[1:]) if regions[b][i] == region]
            mean = sum(p[b][i] for i in members) / len(members)
            for i in members:
                vote[b][i] = np.argmax(mean)
    return vote


def transfer_mask_by_loop(refined, ratecp):
    mask = np.empty(refined.shape, bool)
    for b, label in enumerate(refined):
        foreground = sum(value != 0 for value in label.flat)
        paste_foreground = Fraction(int(foreground), label.size) <= Fraction(str(ratecp))
        for i in np.ndindex(*label.shape):
            mask[b][i] = (label[i] != 0) == paste_foreground
    return mask


def transfer_loss_by_loop(q, refined, weight, kind):
    cross_entropy, dices = [], []
    for i in np.ndindex(*refined.shape):
        probabilities = q[i] if kind == "logits" else softmax(q[i])
        cross_entropy.append(weight[i] * -math.log(probabilities[refined[i]]))
    for b in range(len(refined)):
        for k in range(q.shape[-1]):
            overlap = sum(q[b][i][k] for i in np.ndindex(*refined.shape[1:]) if refined[b][i] == k)
            size = sum(q[b][i][k] + (refined[b][i] == k) for i in np.ndindex(*refined.shape[1:]))
            dices.append((2 * overlap + 1) / (size + 1))
    return 0.5 * np.mean(cross_entropy) + 0.5 * np.mean(weight) * (1 - np.mean(dices))


def agreement_loss_by_loop(q1, q2, weight):
    return 0.5 * np.mean([weight[i] * symmetric_kl(q1[i], q2[i]) for i in np.ndindex(*weight.shape)])


def foreground_dice_by_loop(p, label, pixels):
    """Of each image, over those of its pixels that teach, and each class but the background; then the mean."""
    scores = []
    for b in range(len(label)):
        own = [i for i in pixels if i[0] == b]
        for k in range(1, p.shape[-1]):
            overlap = sum(p[i][k] * (label[i] == k) for i in own)
            size = sum(p[i][k] + (label[i] == k) for i in own)
            scores.append((2 * overlap + 1) / (size + 1))
    return np.mean(scores)


def step_by_loop(matrices, batch, epoch, settings, mixing, permutation):
    """Sections 1-5 (7 for the options) for the networks x -> matrix x: the parts of the loss, what was decided, and the
    probabilities of both networks with the pixels whose labels teach them."""
    off = settings.without
    image, jittered = (view.movedim(1, -1).numpy() for view in (batch.image, batch.jittered))
    label, distance, segments = batch.label.numpy(), batch.distance.numpy(), batch.segments.numpy()
    pixels = list(np.ndindex(*label.shape))

    def predict(matrix, view):
        p = np.empty((*label.shape, len(matrix)))
        for i in pixels:
            p[i] = softmax(matrix.numpy() @ view[i])
        return p

    p1, p2 = predict(matrices[0], image), predict(matrices[1], jittered)
    loss = selection_loss_by_loop(p1, p2, label, settings.consistency)
    rate = settings.tau * min(epoch / (0.2 * settings.max_epochs - 1), 1)
    small = sorted(pixels, key=lambda i: loss[i])[: math.floor((1 - rate) * len(pixels))]
    small_map = np.array([i in set(small) for i in pixels]).reshape(label.shape)
    kept = pixels if "selection" in off else small
    if settings.distance == "floored":
        distance = np.floor(distance)
    cap = max(11 - math.floor(settings.weight_decay_rate * epoch / settings.max_epochs), 1)
    distance = np.minimum(distance, settings.distance_cap)
    weight = np.array([min(max(d, 1), cap) for d in distance.flat]).reshape(distance.shape)
    if "gda" in off:
        weight = np.ones(distance.shape)
    parts = {"pixel_loss": loss.mean(), "gda": sum(weight[i] * loss[i] for i in kept) / len(kept)}
    maps = {"kept": np.array([i in set(kept) for i in pixels]).reshape(label.shape), "weight": weight}
    taught = [(p1, kept), (p2, kept)]
    if epoch < settings.warm_up * settings.max_epochs or {"sgr", "kt"} <= set(off):
        return parts, maps, taught

    rings = batch.distance.numpy().astype(int)
    regions = {"superpixels": segments, "rings": rings, "pixels": np.arange(rings.size).reshape(rings.shape)}
    vote = vote_by_loop(mixing * p1 + (1 - mixing) * p2, regions[settings.vote])
    refined = label if "sgr" in off else np.where(small_map, label, vote)
    mask = transfer_mask_by_loop(refined, settings.ratecp)
    if "kt" in off:
        mask = np.ones_like(mask)

    def mixed(values):
        result = np.empty_like(values)
        for b, *i in pixels:
            source = b if mask[(b, *i)] else permutation[b].item()
            result[(b, *i)] = values[(source, *i)]
        return result

    q1, q2 = predict(matrices[0], mixed(image)), predict(matrices[1], mixed(jittered))
    for number, q in ((1, q1), (2, q2)):
        parts[f"transfer{number}"] = transfer_loss_by_loop(q, mixed(refined), mixed(weight), settings.transfer_loss)
    parts["agreement"] = agreement_loss_by_loop(q1, q2, mixed(weight))
    maps |= {"refined": refined, "mixed": np.moveaxis(mixed(image), -1, 1)}
    return parts, maps, taught


# --- 1 Small-loss selection -------------------------------------------------------------------------------------------


@any_rank_and_classes
@pytest.mark.parametrize("consistency", [0.0, 0.5, 0.9, 1.0])
def test_selection_loss_equals_a_loop(shape, classes, consistency):
    log_p1, log_p2, label = (
        random_log_p(shape, classes, 0),
        random_log_p(shape, classes, 1),
        random_label(shape, classes),
    )
    expected = selection_loss_by_loop(by_pixel(log_p1), by_pixel(log_p2), label.numpy(), consistency)
    loss = selection_loss(log_p1, log_p2, label, consistency)
    torch.testing.assert_close(loss, torch.tensor(expected).float())


@pytest.mark.parametrize("tau", [0.0, 0.003, 0.05, 0.17])
def test_drop_rate_is_the_papers_ramp_at_100_epochs(tau):
    for epoch in range(100):
        assert drop_rate(epoch, tau, 100) == pytest.approx(tau * min(epoch / 19, 1))


@pytest.mark.parametrize(("max_epochs", "full_from"), [(10, 1), (20, 3), (50, 9), (200, 39), (1000, 199)])
def test_drop_rate_ramps_over_a_fifth_of_any_run(max_epochs, full_from):
    rates = [drop_rate(epoch, 0.2, max_epochs) for epoch in range(max_epochs)]
    ramp = [0.2 * epoch / full_from for epoch in range(full_from)]
    assert rates == pytest.approx(ramp + [0.2] * (max_epochs - full_from))


@pytest.mark.parametrize("max_epochs", range(1, 10))
def test_drop_rate_of_short_runs_starts_at_0_and_goes_to_tau(max_epochs):
    rates = [drop_rate(epoch, 0.3, max_epochs) for epoch in range(max_epochs)]
    assert rates[0] == 0
    assert all(0 < rate <= 0.3 for rate in rates[1:])  # false for NaN as well
    assert rates == sorted(rates)
    assert max_epochs == 1 or rates[-1] == 0.3


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 1), (1, 7, 1), (2, 5, 1), (3, 4, 5), (4, 5, 5), (2, 5, 10, 10)])
@pytest.mark.parametrize("rate", [0.0, 0.003, 0.05, 0.1, 0.17, 0.2, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("levels", [1, 2, None])
def test_selection_keeps_exactly_the_smallest(shape, rate, levels):
    """levels: how many different losses there are; None for no ties."""
    loss = torch.rand(shape, generator=draw(0)) if levels is None else torch.randint(levels, shape).float()
    keep = select_small_loss(loss, rate)
    assert keep.dtype == torch.bool
    assert keep.shape == loss.shape
    assert keep.sum() == math.floor((1 - Fraction(str(rate))) * loss.numel())
    if 0 < keep.sum() < loss.numel():
        assert loss[keep].max() <= loss[~keep].min()


def test_selection_counts_exactly_at_the_size_of_a_real_batch():
    loss = torch.rand(16, 256, 256, generator=draw(0))
    for epoch in (0, 1, 7, 19, 99):
        expected = loss.numel() - math.ceil(Fraction(5, 100) * Fraction(min(epoch, 19), 19) * loss.numel())
        assert select_small_loss(loss, drop_rate(epoch, 0.05, 100)).sum() == expected


def test_selection_takes_the_batch_as_one():
    """An image of high losses loses its pixels, another keeps all of its own."""
    loss = torch.stack([torch.full((4, 5), 9.0), torch.zeros(4, 5)])
    assert select_small_loss(loss, 0.5).flatten(1).sum(dim=1).tolist() == [0, 20]


# --- 2 Geometric distance-aware weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_rate", [10, 5])
def test_weight_cap_is_the_papers_at_100_epochs(decay_rate):
    caps = [weight_cap(epoch, 100, decay_rate) for epoch in range(100)]
    assert caps == [max(11 - math.floor(decay_rate * epoch / 100), 1) for epoch in range(100)]
    assert (caps[0], caps[-1]) == (11, {10: 2, 5: 7}[decay_rate])
    assert decay_rate != 10 or caps == [weight_cap(epoch, 100) for epoch in range(100)]


@pytest.mark.parametrize("max_epochs", [1, 3, 7, 30, 70, 150])
@pytest.mark.parametrize("decay_rate", [0, 5, 10, 20])
def test_weight_cap_of_any_run(max_epochs, decay_rate):
    for epoch in range(max_epochs):
        expected = max(11 - math.floor(Fraction(decay_rate * epoch, max_epochs)), 1)
        assert weight_cap(epoch, max_epochs, decay_rate) == expected


@any_rank
@pytest.mark.parametrize("cap", [1, 2, 7, 10, 11])
def test_distance_weight_is_a_clip(shape, cap):
    distance = 10 * torch.rand(3, *shape, generator=draw(0)) + 1e-3
    distance = distance.clamp(max=10)
    distance.view(-1)[0] = 10
    weight = distance_weight(distance, cap)
    np.testing.assert_array_equal(weight.numpy(), np.clip(distance.numpy(), 1, cap))
    assert weight.min() >= 1
    assert weight.max() == min(cap, 10)


def test_masked_mean():
    values = torch.tensor([[1.0, 2.0], [4.0, 100.0]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, True], [True, False]]))
    assert mean.item() == pytest.approx(7 / 3)
    mean.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 1.0], [1.0, 0.0]]) / 3)


def test_masked_mean_of_one_pixel_is_that_pixel():
    assert masked_mean(torch.tensor([3.0, 5.0]), torch.tensor([False, True])).item() == 5


def test_masked_mean_of_nothing_is_0():
    values = torch.ones(2, 3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(2, 3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert not values.grad.any()


# --- 3 Structure-guided label refinement ------------------------------------------------------------------------------


def regions_of(kind, shape, batch=3):
    pixels = math.prod(shape)
    if kind == "one":
        return torch.zeros(batch, *shape, dtype=torch.long), 1
    if kind == "a region per pixel":
        return torch.stack([torch.randperm(pixels, generator=draw(b)) for b in range(batch)]).view(
            batch, *shape
        ), pixels
    ids = torch.tensor({"few": [0, 1, 2, 3], "with gaps, above 255": [0, 7, 255, 256, 511, 512, 1023]}[kind])
    return ids[torch.randint(len(ids), (batch, *shape), generator=draw(5))], int(ids.max()) + 1


any_regions = pytest.mark.parametrize("kind", ["one", "few", "with gaps, above 255", "a region per pixel"])


@any_rank_and_classes
@any_regions
def test_region_vote_equals_a_loop(shape, classes, kind):
    probability = random_log_p(shape, classes, 0).exp()
    regions, count = regions_of(kind, shape)
    vote = region_vote(probability, regions, count)
    assert vote.dtype == torch.long
    np.testing.assert_array_equal(vote.numpy(), vote_by_loop(by_pixel(probability.log()), regions.numpy()))
    if kind == "a region per pixel":
        assert torch.equal(vote, probability.argmax(dim=1))


@any_rank_and_classes
@any_regions
def test_voting_twice_changes_nothing(shape, classes, kind):
    regions, count = regions_of(kind, shape)
    vote = region_vote(random_log_p(shape, classes, 0).exp(), regions, count)
    again = region_vote(F.one_hot(vote, classes).movedim(-1, 1).float(), regions, count)
    assert torch.equal(again, vote)


def test_a_region_takes_the_class_of_the_mean_not_of_the_majority():
    foreground = torch.tensor([[0.4, 0.4, 0.9]])
    probability = torch.stack([1 - foreground, foreground], dim=1)
    assert region_vote(probability, torch.zeros(1, 3, dtype=torch.long), 1).tolist() == [[1, 1, 1]]


@any_rank
def test_refine_equals_a_loop(shape):
    label, vote = random_label(shape, 3, seed=1), random_label(shape, 3, seed=2)
    keep = random_label(shape, 2, seed=3).bool()
    refined = refine(label, keep, vote)
    for i in np.ndindex(*label.shape):
        assert refined[i] == (label[i] if keep[i] else vote[i])


# --- 4 Knowledge transfer ---------------------------------------------------------------------------------------------


@any_rank_and_classes
@pytest.mark.parametrize("ratecp", [0.0, 0.1, 0.5, 1.0])
def test_transfer_mask_equals_a_loop(shape, classes, ratecp):
    torch.manual_seed(0)
    chance = torch.linspace(0, 1, 6).view(-1, *[1] * len(shape))  # images from all background to all foreground
    refined = (torch.rand(6, *shape) < chance) * torch.randint(1, classes, (6, *shape))
    mask = transfer_mask(refined, ratecp)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), transfer_mask_by_loop(refined.numpy(), ratecp))


@pytest.mark.parametrize(("ratecp", "pixels"), [(0.1, 10), (0.3, 30), (0.5, 50), (0.7, 70)])
def test_the_background_is_copied_only_above_ratecp(ratecp, pixels):
    """Each image by its own share: of 100 pixels, as many as ratecp allows in the first, one more in the second."""
    refined = torch.stack([torch.arange(100) < pixels, torch.arange(100) < pixels + 1]).view(2, 10, 10).long()
    mask = transfer_mask(refined, ratecp)
    assert torch.equal(mask[0], refined[0] == 1)
    assert torch.equal(mask[1], refined[1] == 0)


@any_rank
@pytest.mark.parametrize("permutation", [[0, 1, 2], [1, 2, 0], [0, 2, 1]])
def test_mix_equals_a_loop(shape, permutation):
    mask = random_label(shape, 2).bool()
    for values in (torch.rand(3, *shape, generator=draw(0)), random_label(shape, 3), torch.rand(3, 4, *shape)):
        mixed = mix(mask, values, torch.tensor(permutation))
        assert mixed.dtype == values.dtype
        assert mixed.shape == values.shape
        for b, *i in np.ndindex(*mask.shape):
            source = b if mask[(b, *i)] else permutation[b]
            assert torch.equal(mixed[(b, ..., *i)], values[(source, ..., *i)])


@any_rank_and_classes
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_transfer_loss_equals_a_loop(shape, classes, kind):
    log_q, refined = random_log_p(shape, classes, 0), random_label(shape, classes)
    weight = 1 + 9 * torch.rand(3, *shape, generator=draw(1))
    expected = transfer_loss_by_loop(by_pixel(log_q), refined.numpy(), weight.numpy(), kind)
    assert transfer_loss(log_q, refined, weight, kind).item() == pytest.approx(expected, rel=1e-5)
    if kind == "logits":
        assert transfer_loss(log_q, refined, weight).item() == pytest.approx(expected, rel=1e-5)


@any_rank_and_classes
def test_agreement_loss_equals_a_loop(shape, classes):
    log_q1, log_q2 = random_log_p(shape, classes, 0), random_log_p(shape, classes, 1)
    weight = 1 + 9 * torch.rand(3, *shape, generator=draw(1))
    expected = agreement_loss_by_loop(by_pixel(log_q1), by_pixel(log_q2), weight.numpy())
    assert agreement_loss(log_q1, log_q2, weight).item() == pytest.approx(expected, rel=1e-5)
    assert agreement_loss(log_q1, log_q1, weight).item() == 0


# --- 5 Total ----------------------------------------------------------------------------------------------------------


def test_refinement_starts_at_epoch_30_of_100():
    assert MethodSettings().second_phase_from == 30


@pytest.mark.parametrize("max_epochs", range(1, 60))
@pytest.mark.parametrize("warm_up", ["0", "0.07", "0.3", "0.99"])
def test_refinement_starts_at_its_share_of_any_run(max_epochs, warm_up):
    settings = MethodSettings(max_epochs=max_epochs, warm_up=float(warm_up))
    begins = next(epoch for epoch in range(max_epochs + 1) if epoch >= Fraction(warm_up) * max_epochs)
    assert settings.second_phase_from == begins
    assert settings.second_phase == (begins < max_epochs)


def tiny_problem(shape, classes, channels=3, batch=4):
    """Two networks of one 1x1 convolution each (their matrices), a batch, and the random choices; double precision."""
    matrices = [torch.randn(classes, channels, generator=draw(seed)).double() for seed in (1, 2)]
    image = torch.randn(batch, channels, *shape, generator=draw(3)).double()
    label = random_label(shape, classes, batch=batch)
    label[0][label[0] == 0] = 1  # one image of much foreground, one of none
    label[1] = 0
    problem = Batch(
        image=image,
        jittered=image + 0.3 * torch.randn(image.shape, generator=draw(4)).double(),
        label=label,
        distance=torch.randint(1, 101, (batch, *shape), generator=draw(5)).double().sqrt(),
        segments=100 * torch.randint(6, (batch, *shape), generator=draw(6)),
        num_segments=501,
    )
    return matrices, problem, 0.3, torch.tensor([2, 0, 1, 3])


def pointwise(matrix):
    """The network x -> matrix x at every pixel, for images of any rank."""
    return lambda image: torch.einsum("kc,bc...->bk...", matrix, image)


def run_step(matrices, *arguments):
    return gsd_step([pointwise(matrix) for matrix in matrices], *arguments)


WITHOUT = [off for count in (1, 2, 3) for off in combinations(MODULES, count)]
OPTIONS = [
    {},
    {"ratecp": 0.4, "consistency": 0.9, "weight_decay_rate": 5},
    *({name: value} for name, value in PUBLISHED.items()),
    PUBLISHED,
    {"vote": "pixels"},
    {"warm_up": 0.05},
    {"distance_cap": 2.5},
    *({"without": off} for off in WITHOUT),
]


@any_rank_and_classes
@pytest.mark.parametrize("epoch", [0, 5, 29, 30, 99])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())) or "default")
def test_a_step_equals_loops(shape, classes, epoch, options):
    settings = MethodSettings(tau=0.3, **options)
    matrices, batch, mixing, permutation = tiny_problem(shape, classes)
    step = run_step(matrices, batch, epoch, settings, mixing, permutation)
    parts, maps, _ = step_by_loop(matrices, batch, epoch, settings, mixing, permutation)
    total = sum(part for name, part in parts.items() if name != "pixel_loss")  # which is for the log alone
    assert step.loss.item() == pytest.approx(total)
    assert {name: step.parts[name].item() for name in parts} == pytest.approx(parts)
    assert step.parts.keys() == {"kept", *parts}
    assert not any(part.shape for part in step.parts.values())
    assert step.parts["kept"].item() == pytest.approx(maps["kept"].mean())
    assert step.maps.keys() == maps.keys()
    for name, expected in maps.items():
        np.testing.assert_allclose(step.maps[name].numpy(), expected, err_msg=name)
    if epoch >= 30 and settings.has("sgr") and settings.vote != "pixels":
        # The problem is no special case: labels change, and some images paste foreground, others background.
        shares = (maps["refined"] != 0).reshape(4, -1).mean(axis=1)
        assert (maps["refined"] != batch.label.numpy()).any()
        assert len({share > settings.ratecp for share in shares}) == 2


@any_rank_and_classes
@pytest.mark.parametrize("epoch", [0, 99])
@pytest.mark.parametrize("options", [{}, {"without": ("selection",)}], ids=["all", "without selection"])
def test_the_dice_loss_of_a_recipe_is_on_the_pixels_that_teach(shape, classes, epoch, options):
    settings = MethodSettings(tau=0.3, **options)
    matrices, batch, mixing, permutation = tiny_problem(shape, classes)
    plain = run_step(matrices, batch, epoch, settings, mixing, permutation)
    _, _, taught = step_by_loop(matrices, batch, epoch, settings, mixing, permutation)
    expected = sum(1 - foreground_dice_by_loop(p, batch.label.numpy(), pixels) for p, pixels in taught)
    step = with_dice_loss(plain, batch.label, 1.5)
    assert step.parts == plain.parts | {"dice_loss": step.parts["dice_loss"]}
    assert step.parts["dice_loss"].item() == pytest.approx(expected)
    assert step.loss.item() == pytest.approx(plain.loss.item() + 1.5 * expected)
    assert with_dice_loss(plain, batch.label, 0.0) is plain


@pytest.mark.parametrize("epoch", [0, 10, 30, 70])
@pytest.mark.parametrize(
    ("options", "dice_weight"), [({}, 0.0), (PUBLISHED, 0.0), ({}, 3.0)], ids=["paper", "published", "dice"]
)
def test_gradients_are_those_of_the_loss_for_both_networks(epoch, options, dice_weight):
    """Against finite differences: nothing is detached that counts, and both sides of the divergence count."""
    matrices, *arguments = tiny_problem((3, 4), 2)
    batch, mixing, permutation = arguments
    settings = MethodSettings(tau=0.3, **options)
    for matrix in matrices:
        matrix.requires_grad_()

    def step(*matrices):
        return with_dice_loss(run_step(matrices, batch, epoch, settings, mixing, permutation), batch.label, dice_weight)

    assert torch.autograd.gradcheck(lambda *matrices: step(*matrices).loss, matrices)
    assert all(gradient.all() for gradient in torch.autograd.grad(step(*matrices).loss, matrices))
    assert not any(value.requires_grad for value in (*step(*matrices).parts.values(), *step(*matrices).maps.values()))


@any_rank
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("epoch", [0, 50])
@pytest.mark.parametrize("options", [{}, PUBLISHED], ids=["paper", "published"])
def test_a_label_of_one_class_gives_finite_loss_and_gradients(shape, value, epoch, options):
    matrices, batch, mixing, permutation = tiny_problem(shape, 2)
    batch = batch._replace(
        label=torch.full_like(batch.label, value), distance=torch.full_like(batch.distance, 10), jittered=batch.image
    )
    for matrix in matrices:
        matrix.requires_grad_()
    step = run_step(matrices, batch, epoch, MethodSettings(tau=0.3, **options), mixing, permutation)
    step = with_dice_loss(step, batch.label, 3.0)
    step.loss.backward()
    assert step.loss.isfinite()
    assert all(matrix.grad.isfinite().all() and matrix.grad.any() for matrix in matrices)


def test_the_epoch_counts_as_a_share_of_the_run():
    """Epoch 0.5E has the same cap, rate and parts, whether of 100 or of 1000."""
    matrices, *arguments = tiny_problem((4, 5), 2)
    batch, mixing, permutation = arguments
    losses = [
        run_step(
            matrices, batch, epochs // 2, MethodSettings(tau=0.3, max_epochs=epochs), mixing, permutation
        ).loss.item()
        for epochs in (100, 1000)
    ]
    assert losses[0] == losses[1]


def test_what_is_logged_of_the_schedules():
    """Only what the method has."""
    expected = {"drop_rate": 0.2 * 9 / 19, "weight_cap": 11}
    assert schedule_of(MethodSettings(tau=0.2), 9) == pytest.approx(expected)
    assert schedule_of(MethodSettings(tau=0.2, weight_decay_rate=5), 50) == {"drop_rate": 0.2, "weight_cap": 9}
    assert schedule_of(MethodSettings(tau=0.2, without=("gda",)), 50) == {"drop_rate": 0.2, "weight_cap": None}
    assert schedule_of(MethodSettings(without=("selection", "sgr")), 50) == {"drop_rate": None, "weight_cap": 6}
    assert schedule_of(MethodSettings("jocor", tau=0.2), 50) == {"drop_rate": 0.2, "weight_cap": None}
    assert schedule_of(MethodSettings("ce"), 50) == {"drop_rate": None, "weight_cap": None}
