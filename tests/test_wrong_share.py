"""--tau auto: the share of wrong pixels from images and masks alone."""

import argparse

import numpy as np
import pytest
from conftest import blob
from scipy.ndimage import gaussian_filter

from utils.commands.arguments import add_training_arguments
from utils.commands.errors import UserError
from utils.masks.contours import levels_of, move_contour, steps
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.label_quality import contour_beliefs, wrong_probability
from utils.masks.noise_rate import estimate_tau, estimate_wrong_share, unevenness


def samples(level, count=20):
    """Images (H,W,3), their true masks and those displaced by ``level`` (`move_contour`), (H,W) of 0 and 1."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        image, mask = blob(rng, 48, 48)
        yield image, mask // 255, move_contour(mask // 255, level)


@pytest.mark.parametrize("level", [0, 3, -3])
def test_estimated_share_of_wrong_pixels(level):
    images, true, given = zip(*samples(level), strict=True)
    wrong = np.mean(np.array(true) != np.array(given))
    estimate = estimate_wrong_share(zip(images, given, strict=True), 2, corrected=False)
    left = estimate_wrong_share(zip(images, given, strict=True), 2, corrected=True)
    assert estimate == pytest.approx(wrong, rel=0.25, abs=0.01)
    assert 0 <= left < 0.025


def test_empty_masks_are_taken_as_they_are():
    images, _, given = zip(*samples(0), strict=True)
    whole = estimate_wrong_share(zip(images, given, strict=True), 2, corrected=False)
    twice = [*images, *images], [*given, *(np.zeros_like(mask) for mask in given)]
    assert estimate_wrong_share(zip(*twice, strict=True), 2, corrected=False) == pytest.approx(whole / 2, abs=1e-3)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("corrected", [True, False])
def test_masks_without_a_boundary_give_no_estimate(value, corrected):
    images, _, given = zip(*samples(0), strict=True)
    flat = [np.full_like(mask, value) for mask in given]
    with pytest.raises(UserError, match=r"no mask has a boundary.* give --tau as a number"):
        estimate_wrong_share(zip(images, flat, strict=True), 2, corrected)


@pytest.mark.parametrize("corrected", [True, False])
def test_images_without_edges_give_no_estimate(corrected):
    images, _, given = zip(*samples(0), strict=True)
    noise = np.random.default_rng(0).integers(0, 256, np.shape(images), np.uint8)
    with pytest.raises(UserError, match=r"no more of an edge.* give --tau as a number"):
        estimate_wrong_share(zip(noise, given, strict=True), 2, corrected)


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
    assert estimate_wrong_share(zip(images, given, strict=True), 2, corrected) == pytest.approx(np.mean(shares))


def test_estimate_counts_unevenness():
    """More where contours are corrected, when no displacement hides a part of it."""
    images, _, given = zip(*samples(0), strict=True)
    rough = [mask ^ (np.random.default_rng(index).random(mask.shape) < 0.03) for index, mask in enumerate(given)]
    changed = np.mean([unevenness(mask) for mask in rough]) - np.mean([unevenness(mask) for mask in given])
    assert changed > 0.01
    for corrected, weight in ((False, 1), (True, 1.7)):
        before, after = (
            estimate_wrong_share(zip(images, masks, strict=True), 2, corrected) for masks in (given, rough)
        )
        assert after - before > 0.9 * weight * changed


@pytest.mark.parametrize("contours", ["given", "corrected"])
def test_auto_becomes_a_number_that_is_printed_and_kept(capsys, contours):
    args = argparse.Namespace(tau="auto", contours=contours, num_classes=2)
    pairs = [(image, given) for image, _, given in samples(3)]
    estimate_tau(args, pairs)
    assert args.tau == round(estimate_wrong_share(pairs, 2, contours == "corrected"), 4)
    assert f"--tau auto: {args.tau}" in capsys.readouterr().out


def test_only_scripts_that_can_estimate_take_auto(capsys):
    parsers = [argparse.ArgumentParser() for _ in range(2)]
    for parser, settings in zip(parsers, (None, {"tau": 0.1, "jitter": 0.5}), strict=True):
        add_training_arguments(parser, 64, settings=settings)
    assert parsers[0].parse_args(["--tau", "auto"]).tau == "auto"
    assert [parser.parse_args(["--tau", "0.1"]).tau for parser in parsers] == [0.1, 0.1]
    for parser, text in zip((*parsers, parsers[0]), ("1", "auto", "automatic"), strict=True):
        with pytest.raises(SystemExit):
            parser.parse_args(["--tau", text])
        assert "--tau" in capsys.readouterr().err
