"""--tau auto: the label noise rate from images and masks alone."""

import numpy as np
import pytest
from conftest import blob
from scipy.ndimage import gaussian_filter

from utils.masks.contours import levels_of, move_contour, steps
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.label_quality import contour_beliefs, wrong_probability
from utils.masks.noise_rate import FALLBACK_TAU, UnknownRate, estimate_noise_rate, estimate_tau, unevenness


def samples(level, count=20):
    """Images (H,W,3), their true masks and those displaced by ``level`` (`move_contour`), (H,W) of 0 and 1."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image, mask = blob(rng, 48, 48)
        yield image, mask // 255, move_contour(mask // 255, level)


@pytest.mark.parametrize("level", [0, 3, -3])
def test_estimated_rate(level):
    images, true, given = zip(*samples(level), strict=True)
    wrong = np.mean(np.array(true) != np.array(given))
    estimate = estimate_noise_rate(zip(images, given, strict=True), 2, corrected=False)
    left = estimate_noise_rate(zip(images, given, strict=True), 2, corrected=True)
    assert estimate == pytest.approx(wrong, rel=0.25, abs=0.01)
    assert 0 <= left < 0.025


def test_empty_masks_are_taken_as_they_are():
    images, _, given = zip(*samples(0), strict=True)
    whole = estimate_noise_rate(zip(images, given, strict=True), 2, corrected=False)
    twice = [*images, *images], [*given, *(np.zeros_like(mask) for mask in given)]
    assert estimate_noise_rate(zip(*twice, strict=True), 2, corrected=False) == pytest.approx(whole / 2, abs=1e-3)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("corrected", [True, False])
def test_masks_without_a_boundary_give_no_estimate(value, corrected):
    images, _, given = zip(*samples(0), strict=True)
    flat = [np.full_like(mask, value) for mask in given]
    with pytest.raises(UnknownRate):
        estimate_noise_rate(zip(images, flat, strict=True), 2, corrected)
    tau, why = estimate_tau(zip(images, flat, strict=True), 2, corrected)
    assert tau == FALLBACK_TAU and "not estimated" in why and "boundary" in why


@pytest.mark.parametrize("corrected", [True, False])
def test_images_without_edges_give_no_estimate(corrected):
    images, _, given = zip(*samples(0), strict=True)
    noise = np.random.default_rng(0).integers(0, 256, np.shape(images), np.uint8)
    with pytest.raises(UnknownRate):
        estimate_noise_rate(zip(noise, given, strict=True), 2, corrected)
    tau, why = estimate_tau(zip(noise, given, strict=True), 2, corrected)
    assert tau == FALLBACK_TAU == 0.05 and "not estimated" in why and "edge" in why


def test_uneven_masks_count_as_wrong():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    ragged = mask.copy()
    ragged[14:16, 16:48:4] = 1
    assert unevenness(mask) < 0.01 < unevenness(np.random.default_rng(0).integers(0, 2, (64, 64)))
    assert unevenness(ragged) >= unevenness(mask) + 0.0015
    assert unevenness(mask * 0) == unevenness(mask * 0 + 1) == 0


def test_unevenness_is_the_documented_smoothing():
    rough = np.random.default_rng(0).random((96, 64)) < np.linspace(0, 1, 64)
    smooth = gaussian_filter(rough.astype(float), 1.5 / 128 * 96, mode="nearest") > 0.5
    assert unevenness(rough.astype(np.uint8)) == pytest.approx((smooth != rough).mean(), abs=1e-3)


@pytest.mark.parametrize("corrected", [True, False])
def test_estimate_is_the_documented_sum(corrected):
    """The mean chance that a pixel is wrong, after contour correction of the mask that is left, and the unevenness."""
    images, _, given = zip(*samples(3), strict=True)
    given = [mask ^ (np.random.default_rng(index).random(mask.shape) < 0.02) for index, mask in enumerate(given)]
    levels = levels_of((48, 48))
    found = level_probabilities([steps(*pair) for pair in zip(images, given, strict=True)], levels, 48)
    shares = []
    for mask, probabilities, move in zip(given, found, median_level(found, levels), strict=True):
        left = move_contour(mask, move) if corrected else mask
        wrong = wrong_probability(left, contour_beliefs(mask, levels, probabilities))
        shares.append(wrong.mean() + (1.7 if corrected else 1) * unevenness(mask))
    assert estimate_noise_rate(zip(images, given, strict=True), 2, corrected) == pytest.approx(np.mean(shares))


def test_estimate_counts_unevenness():
    """More where contours are corrected, when no displacement hides a part of it."""
    images, _, given = zip(*samples(0), strict=True)
    rough = [mask ^ (np.random.default_rng(index).random(mask.shape) < 0.03) for index, mask in enumerate(given)]
    changed = np.mean([unevenness(mask) for mask in rough]) - np.mean([unevenness(mask) for mask in given])
    assert changed > 0.01
    for corrected, weight in ((False, 1), (True, 1.7)):
        before, after = (estimate_noise_rate(zip(images, masks, strict=True), 2, corrected) for masks in (given, rough))
        assert after - before > 0.9 * weight * changed


@pytest.mark.parametrize("corrected", [True, False])
def test_tau_is_the_estimate_rounded_and_says_of_what(corrected):
    """Rounded, so that --resume finds the same."""
    pairs = [(image, given) for image, _, given in samples(3)]
    tau, words = estimate_tau(iter(pairs), 2, corrected)
    assert tau == round(estimate_noise_rate(pairs, 2, corrected), 4) and 0 < tau < 1
    assert ("correction" in words) == corrected
