"""Properties that every formula must have, whatever the input: bounds, symmetries, directions, and enough digits.

Inputs are drawn by hypothesis; the corners (empty, full, one pixel, uniform, very large) are given by hand.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataloaders.augment import color_jitter
from utils.engine.intensity import Intensity, to_unit
from utils.engine.metrics import case_scores, energy_distance, majority_vote
from utils.masks.contours import signed_distance
from utils.masks.geometry import squared_boundary_distance
from utils.masks.label_quality import label_quality, wrong_probability
from utils.masks.noise import dilation_erosion_noise, markov_noise
from utils.method import losses
from utils.method.gsd import Batch, mix, refine, region_vote, select_small_loss, selection_loss, transfer_mask, vote_of

LARGE = 4608  # pixels a side: 21 million, of which float32 does not count every one
few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 24)
class_counts = st.integers(2, 5)
LOSSES = {
    "cross-entropy": losses.cross_entropy_map,
    "bounded": losses.bounded_cross_entropy_map,
    "generalised": losses.generalised_cross_entropy_map,
    "reverse": losses.reverse_cross_entropy_map,
    "symmetric": losses.symmetric_cross_entropy_map,
    "selection": lambda log_p, label: selection_loss(log_p, log_p, label, 0.3),
    "Dice": lambda log_p, label: 1 - losses.soft_dice(log_p.exp(), label),
    "foreground Dice": lambda log_p, label: 1 - losses.foreground_dice(log_p.exp(), label, torch.ones_like(label) > 0),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def drawn(seed: int, classes: int, rows: int, columns: int, scale: float = 3) -> tuple[Tensor, Tensor]:
    """Logits (2,K,H,W), float32, and labels (2,H,W)."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, classes, rows, columns, generator=generator)
    return logits, torch.randint(classes, (2, rows, columns), generator=generator)


# --- Losses -----------------------------------------------------------------------------------------------------------


@every_loss
@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides, more=st.floats(0.5, 5))
def test_a_better_prediction_costs_less(loss, seed, classes, rows, columns, more):
    """Each pixel's own class made more probable, in all pixels: no loss rises, and their mean falls."""
    logits, label = drawn(seed, classes, rows, columns)
    label[0, 0, 0] = 1  # a loss of the foreground alone needs some
    better = logits.scatter_add(1, label.unsqueeze(1), torch.full_like(logits[:, :1], more))
    before, after = (loss(values.double().log_softmax(dim=1), label) for values in (logits, better))
    assert (after <= before + 1e-12).all() and after.mean() < before.mean()


@every_loss
@few
@given(seed=seeds, classes=class_counts, scale=st.sampled_from([0.01, 1, 10, 60]))
def test_losses_in_float32_have_the_digits_of_float64(loss, seed, classes, scale):
    """As sure as logits of +-200 make them; values and gradients."""
    logits, label = drawn(seed, classes, 6, 7, scale)
    results = []
    for kind in (torch.float32, torch.float64):
        given_logits = logits.to(kind, copy=True).requires_grad_()
        value = loss(given_logits.log_softmax(dim=1), label)
        value.mean().backward()
        results.append((value.detach().double(), given_logits.grad.double()))
    for single, double in zip(*results, strict=True):
        assert torch.allclose(single, double, rtol=1e-4, atol=1e-6)


@every_loss
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_losses_of_huge_logits_are_finite(loss, size):
    """bf16 has the range of float32, so networks that diverge may say so much; the loss is no longer than they are."""
    logits, label = drawn(0, 3, 4, 4)
    log_p = (logits.sign() * size).bfloat16().float().log_softmax(dim=1)
    assert loss(log_p, label).isfinite().all()


# --- Selection, votes, refinement, transfer ---------------------------------------------------------------------------


@few
@given(seed=seeds, rate=st.floats(0, 0.99), rows=sides, columns=sides)
def test_selection_keeps_the_smallest_and_the_right_number(seed, rate, rows, columns):
    loss = torch.rand(2, rows, columns, generator=torch.Generator().manual_seed(seed)).mul(8).round()  # with ties
    keep = select_small_loss(loss, rate)
    assert abs(keep.sum().item() - (1 - rate) * loss.numel()) <= 1
    if keep.any() and not keep.all():
        assert loss[keep].max() <= loss[~keep].min()


@few
@given(seed=seeds, classes=class_counts, regions=st.integers(1, 30), rows=sides, columns=sides)
def test_votes_are_of_whole_regions_and_do_not_depend_on_their_numbers(seed, classes, regions, rows, columns):
    logits, _ = drawn(seed, classes, rows, columns)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(regions, (2, rows, columns), generator=rng)
    probability = logits.softmax(dim=1)
    vote = region_vote(probability, ids, regions)
    for image, its_ids in zip(vote, ids, strict=True):
        assert all(len(image[its_ids == number].unique()) == 1 for number in its_ids.unique())
    other = torch.randperm(regions, generator=rng)[ids]
    assert torch.equal(region_vote(probability, other, regions), vote)
    assert torch.equal(region_vote(probability.flip(3), ids.flip(2), regions), vote.flip(2))
    # Regions of a pixel each take their own; a network that is sure of one class everywhere gives it to all.
    alone = torch.arange(rows * columns).view(1, rows, columns).expand(2, -1, -1)
    assert torch.equal(region_vote(probability, alone, rows * columns), probability.argmax(dim=1))


def test_votes_of_large_regions_keep_their_digits():
    """From 4 million on, which two fifths of these pixels bring it to, a float32 sum does not see another 0.2."""
    probability = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1).repeat(1, 1, 5120, 2048)
    probability[:, :, :2048] = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    assert probability.double().mean(dim=(0, 2, 3))[0] > 0.51
    assert (region_vote(probability, torch.zeros(1, 5120, 2048, dtype=torch.long), 1) == 0).all()


@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides, share=st.floats(0, 1))
def test_refinement_changes_only_what_is_dropped(seed, classes, rows, columns, share):
    _, label = drawn(seed, classes, rows, columns)
    generator = torch.Generator().manual_seed(seed + 1)
    vote = torch.randint(classes, label.shape, generator=generator)
    keep = torch.rand(label.shape, generator=generator) < share
    refined = refine(label, keep, vote)
    assert torch.equal(refined[keep], label[keep]) and torch.equal(refined[~keep], vote[~keep])
    assert torch.equal(refine(refined, keep, vote), refined)  # done once is done
    assert torch.equal(refine(label, torch.ones_like(keep), vote), label)
    assert torch.equal(refine(label, torch.zeros_like(keep), vote), vote)


@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides, ratecp=st.floats(0, 1))
def test_what_is_pasted(seed, classes, rows, columns, ratecp):
    """All the foreground of an image or all its background, and by itself an image stays what it is."""
    logits, label = drawn(seed, classes, rows, columns)
    mask = transfer_mask(label, ratecp)
    for own, pasted in zip(label != 0, mask, strict=True):
        assert torch.equal(pasted, own if own.float().mean() <= ratecp else ~own)
    assert torch.equal(mix(mask, logits, torch.tensor([0, 1])), logits)
    swapped = mix(mask, label, torch.tensor([1, 0]))
    assert torch.equal(swapped[mask], label[mask]) and torch.equal(swapped[~mask], label.flip(0)[~mask])


@pytest.mark.parametrize("label", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("kind", ["superpixels", "rings", "intersections", "pixels"])
def test_votes_of_one_class_and_one_superpixel(kind, label):
    shape = (1, 5, 6)
    labels = torch.full(shape, label)
    distance = torch.from_numpy(squared_boundary_distance(labels[0].numpy().astype(np.uint8)))[None].float().sqrt()
    image = torch.zeros(1, 3, 5, 6)
    batch = Batch(image, image, labels, distance, torch.zeros(shape, dtype=torch.long), 1)
    probability = torch.tensor([0.3, 0.7]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    assert (vote_of(kind, probability, batch) == 1).all()


# --- Distances --------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides)
def test_distances_ignore_names_of_classes_and_turn_with_the_label(seed, classes, rows, columns):
    label = drawn(seed, classes, rows, columns)[1][0].numpy().astype(np.uint8)
    squared = squared_boundary_distance(label)
    assert squared.min() >= 1 and squared.max() <= 100
    assert np.array_equal(squared_boundary_distance(classes - 1 - label), squared)
    assert np.array_equal(squared_boundary_distance(np.rot90(label).copy()), np.rot90(squared))


def test_distances_of_one_pixel():
    assert squared_boundary_distance(np.zeros((1, 1), np.uint8)).item() == 100
    assert signed_distance(np.ones((1, 1), np.uint8)).item() == np.inf  # no contour
    assert signed_distance(np.eye(3, dtype=np.uint8) * np.array([0, 1, 0], np.uint8))[1, 1] > 0


def test_a_very_large_label():
    """One square in 21 million pixels: distances as in its neighbourhood alone, and scores to the last digit."""
    label = np.zeros((LARGE, LARGE), np.uint8)
    label[3000:3100, 4000:4200] = 1
    squared = squared_boundary_distance(label)
    near = (slice(2980, 3120), slice(3980, 4220))
    assert np.array_equal(squared[near], squared_boundary_distance(label[near]))
    assert squared.sum(dtype=np.int64) == 100 * (label.size - squared[near].size) + squared[near].sum(dtype=np.int64)
    prediction = np.roll(label, 50, axis=1)[None]
    assert case_scores(prediction, label[None, None], 2)["dice"] == 0.75
    inverted = case_scores(1 - prediction, 1 - label[None, None], 2)
    assert inverted["iou"] == pytest.approx(1 - 10000 / (LARGE**2 - 15000), abs=1e-12)


def test_selection_among_very_many_pixels():
    loss = torch.arange(LARGE**2, dtype=torch.int32).float().view(1, LARGE, LARGE)  # not all different in float32
    keep = select_small_loss(loss, 0.01)
    assert keep.sum().item() == (99 * LARGE**2) // 100
    assert keep.flatten()[: -(LARGE**2) // 90].all() and not keep.flatten()[-(LARGE**2) // 110 :].any()


# --- Scores -----------------------------------------------------------------------------------------------------------


def two_masks(seed: int, classes: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of classes (1,H,W) that agree in about half of the pixels."""
    rng = np.random.default_rng(seed)
    one = rng.integers(classes, size=(1, rows, columns))
    return one, np.where(rng.random(one.shape) < 0.5, rng.integers(classes, size=one.shape), one)


@settings(max_examples=15, deadline=None)  # MONAI takes its time
@given(seed=seeds, classes=class_counts, rows=st.integers(2, 20), columns=st.integers(2, 20))
def test_scores_are_symmetric_bounded_and_do_not_see_turns(seed, classes, rows, columns):
    one, other = two_masks(seed, classes, rows, columns)
    scores = case_scores(one, other[None], classes, surfaces=True)
    same = case_scores(other, one[None], classes, surfaces=True)
    turned = [np.flip(np.rot90(mask, 1, (1, 2)), 1) for mask in (one, other)]
    moved = case_scores(turned[0], turned[1][None], classes, surfaces=True)
    assert moved == pytest.approx(scores, abs=1e-5)
    for k in range(1, classes):
        if (one == k).any() and (other == k).any():  # of the two, either may be the reference
            for name in ("dice", "iou", "hd95", "assd", "nsd"):
                assert scores[f"{name}_class{k}"] == pytest.approx(same[f"{name}_class{k}"], abs=1e-5)
    for name, value in scores.items():
        if name.split("_")[0] in ("hd95", "assd", "dice", "iou", "nsd") and value is not None:
            assert 0 <= value <= (np.hypot(rows, columns) if name.startswith(("hd95", "assd")) else 1) + 1e-6, name
    if classes == 2 and scores["dice"] is not None:
        assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]))
    perfect = case_scores(one, one[None], classes, surfaces=True)
    there = one.any()
    assert [perfect[name] for name in ("dice", "iou", "nsd", "hd95")] == ([1, 1, 1, 0] if there else [None] * 4)


@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides, raters=st.integers(1, 5))
def test_raters(seed, classes, rows, columns, raters):
    """Who comes first does not matter, nor a copy of all; the energy distance is 0 where everyone agrees."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(classes, size=(raters, 1, rows, columns))
    prediction = rng.integers(classes, size=(1, rows, columns))
    distance = energy_distance(prediction, masks, classes)
    assert -1e-6 <= distance <= 2
    assert energy_distance(prediction, np.concatenate([masks, masks]), classes) == pytest.approx(distance)
    assert energy_distance(prediction, np.stack([prediction] * raters), classes) == 0
    assert np.array_equal(majority_vote(masks[::-1], classes), majority_vote(masks, classes))
    assert np.array_equal(majority_vote(masks[:1], classes), masks[0])


@pytest.mark.parametrize("value", [0, 1], ids=["empty", "full"])
def test_scores_of_one_pixel(value):
    mask = np.full((1, 1, 1), value)
    equal, opposite = (
        case_scores(mask, mask[None], 2, surfaces=True),
        case_scores(1 - mask, mask[None], 2, surfaces=True),
    )
    names = ("dice", "iou", "nsd", "hd95")
    assert [equal[name] for name in names] == ([1, 1, 1, 0] if value else [None] * 4)
    assert [opposite[name] for name in names] == ([0, 0, 0, np.sqrt(2)] if value else [None] * 4)


# --- Noise ------------------------------------------------------------------------------------------------------------


def disc(side: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    return (rows**2 + columns**2 < radius**2).astype(np.uint8)


@few
@given(seed=seeds, low=st.floats(1, 5), more=st.floats(0, 3))
def test_dilation_and_erosion_move_the_outline_by_what_was_drawn(seed, low, more):
    """All inside or all outside of the mask, and the area that a ring of the drawn width has."""
    mask = disc(64, 20)
    noisy = dilation_erosion_noise(mask, np.random.default_rng(seed), low, low + more)
    assert noisy.shape == mask.shape and set(np.unique(noisy)) <= {0, 1}
    grown = (noisy >= mask).all()
    assert grown or (noisy <= mask).all()
    width = np.sqrt(noisy.sum() / np.pi) - 20
    assert low - 1 <= (width if grown else -width) <= low + more + 1


@pytest.mark.parametrize("theta1", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_expected_rate_of_markov_noise(theta1):
    """Each boundary pixel turns with probability theta2 a step, and grows with theta1: the outline drifts by
    theta2 (2 theta1 - 1) T pixels or a little more, since an uneven outline has more pixels to turn."""
    side, radius, steps, rate = 200, 50, 100, 0.05
    radii = [
        np.sqrt(markov_noise(disc(side, radius), np.random.default_rng(seed), steps, theta1, rate).sum() / np.pi)
        for seed in range(8)
    ]
    drift = rate * (2 * theta1 - 1) * steps
    change = np.mean(radii) - radius
    assert abs(change) <= 2.5 * abs(drift) + 1
    assert change * drift > 0 or theta1 == 0.5
    assert abs(change) >= 0.7 * abs(drift)


@pytest.mark.parametrize("mask", [np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 9)), np.ones((9, 1))])
def test_noise_of_the_smallest_masks(mask):
    for noise in (lambda m, rng: markov_noise(m, rng, 5, 0.5, 0.5), dilation_erosion_noise):
        assert np.array_equal(noise(mask.astype(np.uint8), np.random.default_rng(0)), mask)


def test_noise_of_a_very_large_mask():
    mask = np.zeros((LARGE, LARGE), np.uint8)
    mask[-1000:, -1000:] = 1
    for noisy in (
        markov_noise(mask, np.random.default_rng(0), 3, 0.5, 0.5),
        dilation_erosion_noise(mask, np.random.default_rng(0)),
    ):
        changed = np.argwhere(noisy != mask)
        assert 0 < len(changed) < 50_000
        assert changed.min() > LARGE - 1020  # near the outline alone


# --- Images -----------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, value=st.integers(0, 255), channels=st.sampled_from([1, 2, 3]), strength=st.floats(0, 1))
def test_uniform_images_stay_uniform_and_finite(seed, value, channels, strength):
    images = torch.full((3, channels, 4, 5), value, dtype=torch.uint8)
    jittered = color_jitter(to_unit(images), strength, torch.Generator().manual_seed(seed))
    assert jittered.isfinite().all() and jittered.min() >= 0 and jittered.max() <= 1
    assert torch.allclose(jittered, jittered[..., :1, :1].expand_as(jittered), atol=1e-6)
    assert Intensity.of(images).normalise(to_unit(images)).abs().max() < 1e-6


def test_the_mean_of_many_pixels_is_exact():
    """A float32 sum of 21 million values would lose digits."""
    images = torch.full((1, 1, LARGE, LARGE), 77, dtype=torch.uint8)
    images[..., : LARGE // 2] = 78
    intensity = Intensity.of(images)
    assert intensity.mean[0] == pytest.approx(77.5 / 255, rel=1e-12)
    assert intensity.std[0] == pytest.approx(0.5 / 255, rel=1e-6)


# --- Judging labels ---------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, classes=class_counts, rows=sides, columns=sides)
def test_the_score_of_a_label_falls_with_doubt(seed, classes, rows, columns):
    """1 where probabilities are the label, in [0, 1] elsewhere; the chance to be wrong is 1 - the class' own."""
    logits, labels = drawn(seed, classes, rows, columns)
    label = labels[0].numpy().astype(np.uint8)
    label[0, 0] = 1
    beliefs = logits[0].softmax(dim=0).numpy()
    sure = np.eye(classes, dtype=np.float32)[label].transpose(2, 0, 1)
    assert label_quality(label, sure) == pytest.approx(1)
    scores = [label_quality(label, (1 - doubt) * sure + doubt * beliefs) for doubt in (0.2, 0.6, 1)]
    assert 0 <= scores[2] <= scores[1] + 1e-6 and scores[1] <= scores[0] + 1e-6 and scores[0] <= 1
    wrong = wrong_probability(label, beliefs)
    assert wrong.min() >= 0 and wrong.max() <= 1
    assert np.allclose(wrong, 1 - np.take_along_axis(beliefs, label[None].astype(int), 0)[0], atol=1e-6)
