"""The label noise rate of a set from its images and masks alone: docs/method.md section 10."""

import numpy as np
import pytest
from conftest import blob
from scipy.ndimage import gaussian_filter

from utils.masks.contours import edge_contrast, levels_of, move_contour
from utils.masks.edge_profile import level_probabilities
from utils.masks.label_quality import contour_probabilities
from utils.masks.noise_rate import estimate_noise_rates, unevenness

LEVELS = levels_of((48, 48))


def samples(level, count=20):
    """Images (H,W,3), their true masks and those displaced by ``level`` (`move_contour`), (H,W) of 0 and 1."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image, mask = blob(rng, 48, 48)
        yield image, mask // 255, move_contour(mask // 255, level)


def estimated(images, given, shifts=None):
    found = level_probabilities([edge_contrast(*pair) for pair in zip(images, given, strict=True)], LEVELS, 48)
    shifts = np.zeros(len(given)) if shifts is None else shifts
    return estimate_noise_rates(given, shifts, found, LEVELS, 2), found


@pytest.mark.parametrize("level", [0, 3, -3])
def test_missing_and_false_foreground_are_told_apart(level):
    images, true, given = map(np.array, zip(*samples(level), strict=True))
    rates, _ = estimated(images, given)
    missing, false = ((true > given).mean(), (given > true).mean())
    assert rates.missing == pytest.approx(missing, rel=0.25, abs=0.01)
    assert rates.false == pytest.approx(false, rel=0.25, abs=0.01)
    assert estimated(images, given, np.full(len(given), -level))[0].total < 0.025


def test_empty_masks_are_taken_as_they_are():
    images, _, given = zip(*samples(3), strict=True)
    whole, _ = estimated(images, given)
    twice, _ = estimated([*images, *images], [*given, *(np.zeros_like(mask) for mask in given)])
    assert twice.total == pytest.approx(whole.total / 2, abs=2e-3)


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_rates_are_the_documented_sums(shift):
    """The chance that a pixel is foreground and not labelled so, and the other way round, after a shift of the mask."""
    images, _, given = zip(*samples(3), strict=True)
    given = [mask ^ (np.random.default_rng(index).random(mask.shape) < 0.02) for index, mask in enumerate(given)]
    rates, found = estimated(images, given, np.full(len(given), shift))
    missing, false, uneven = [], [], []
    for mask, probabilities in zip(given, found, strict=True):
        background, foreground = contour_probabilities(mask, LEVELS, probabilities)
        trained = move_contour(mask, shift)
        missing += [foreground[i] * (trained[i] == 0) for i in np.ndindex(trained.shape)]
        false += [background[i] * (trained[i] == 1) for i in np.ndindex(trained.shape)]
        uneven.append((1.7 if shift else 1) * unevenness(mask))
    assert rates.missing == pytest.approx(np.mean(missing), rel=1e-4)
    assert rates.false == pytest.approx(np.mean(false), rel=1e-4)
    assert rates.uneven == pytest.approx(np.mean(uneven))


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
