"""The kinds of noise of `utils.masks.noise_kinds`: against their definitions, by hand and in loops."""

import numpy as np
import pytest
from conftest import REAL_DATA
from scipy.ndimage import binary_dilation, binary_erosion, label

from dataloaders.files import list_images, read_mask
from utils.commands.errors import UserError
from utils.masks.noise import class_noise, file_generator
from utils.masks.noise_kinds import (
    KINDS,
    added_noise,
    affine_noise,
    area_noise,
    box_noise,
    elastic_noise,
    matching_strength,
    missing_noise,
    parameters_at,
    polygon_noise,
)

SHENZHEN = REAL_DATA / "shenzhen" / "mask"
FUNCTIONS = [kind.noise for name, kind in KINDS.items() if name not in ("Markov", "DE")]
every_kind = pytest.mark.parametrize("noise", FUNCTIONS)


def ellipse(height=90, width=120, rows=25.0, columns=40.0, row=45, column=60):
    y, x = np.mgrid[:height, :width]
    return (((y - row) / rows) ** 2 + ((x - column) / columns) ** 2 <= 1).astype(np.uint8)


def objects():
    """Three objects: a ring, which has a hole, a disk and a square at the border."""
    mask = ellipse(rows=12, columns=15, row=25, column=30) - ellipse(rows=5, columns=6, row=25, column=30)
    mask |= ellipse(rows=10, columns=10, row=60, column=85)
    mask[80:, :10] = 1
    return mask


def some_masks():
    rng = np.random.default_rng(0)
    masks = [ellipse(), objects(), np.zeros((9, 14), np.uint8), np.ones((9, 14), np.uint8), np.ones((1, 1), np.uint8)]
    masks += [np.eye(11, 8, dtype=np.uint8), (rng.random((20, 31)) < 0.4).astype(np.uint8)]
    masks.append(np.zeros((7, 7), np.uint8))
    masks[-1][3, 3] = 1
    return masks


def generators(count):
    return [np.random.default_rng(seed) for seed in range(count)]


@every_kind
def test_strength_nought_changes_nothing_and_masks_are_left_alone(noise):
    for mask in some_masks():
        for rng in generators(3):
            np.testing.assert_array_equal(noise(mask, rng, 0), mask)
        before = mask.copy()
        noisy = noise(mask, np.random.default_rng(0))
        assert noisy.dtype == np.uint8 and noisy.shape == mask.shape and noisy.max() <= 1
        np.testing.assert_array_equal(noise(mask.astype(bool), np.random.default_rng(0)), noisy)
        np.testing.assert_array_equal(mask, before)


@every_kind
def test_other_arrays_than_binary_masks_are_refused(noise):
    for wrong in (np.full((4, 4), 255, np.uint8), np.zeros((2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="expected a mask"):
            noise(wrong, np.random.default_rng(0))


@pytest.mark.parametrize("name", KINDS)
def test_more_strength_is_more_noise(name):
    """On average over masks and draws, from a tenth of the default strength to twice the default."""
    kind = KINDS[name]
    rates = []
    for factor in (0.1, 0.5, 1, 2):
        strength = min(factor * kind.strength, kind.largest)
        noisy = [
            (kind.noise(m, rng, **parameters_at(name, strength)) != m).mean()
            for m in (ellipse(), objects())
            for rng in generators(25)
        ]
        rates.append(np.mean(noisy))
    assert rates == sorted(rates) and rates[0] < 0.25 * rates[-1]


def test_polygon_has_few_corners_on_the_outline():
    """Of the ellipse with half-axes a, b that goes through n corners there is about n/2 sin(2 pi / n) a b inside."""
    mask = ellipse(200, 200, 80, 80, 100, 100)
    for corners in (3, 4, 8, 16):
        for rng in generators(5):
            area = polygon_noise(mask, rng, 1 / corners).sum()
            assert area == pytest.approx(corners / 2 * np.sin(2 * np.pi / corners) * 80**2, rel=0.03)
    different = {polygon_noise(mask, rng, 1 / 4).tobytes() for rng in generators(5)}
    assert len(different) == 5


def test_polygon_keeps_holes_and_every_object():
    noisy = polygon_noise(objects(), np.random.default_rng(0), 1 / 8)
    assert label(noisy)[1] == 3
    assert noisy[25, 30] == 0 and noisy[60, 85] == 1


def test_affine_moves_the_centre_and_keeps_the_area():
    mask = ellipse(400, 400, 30, 45, 200, 200)
    diameter = 2 * np.sqrt(mask.sum() / np.pi)
    for strength in (0.1, 0.5):
        angles = []
        for rng in generators(10):
            noisy = affine_noise(mask, rng, strength)
            rows, columns = np.nonzero(noisy)
            assert np.hypot(rows.mean() - 200, columns.mean() - 200) == pytest.approx(strength * diameter, abs=0.5)
            assert int(noisy.sum()) == pytest.approx(int(mask.sum()), rel=0.02)
            covariance = np.cov(columns, rows)
            axis = np.linalg.eigh(covariance)[1][:, 1]
            angles.append(abs(np.degrees(np.arctan2(axis[1], axis[0]) % np.pi)))
        turns = [min(angle, 180 - angle) for angle in angles]
        assert max(turns) < 90 * strength + 1 and max(turns) > 45 * strength


def test_affine_brings_background_in_and_loses_what_leaves():
    assert affine_noise(np.ones((40, 40), np.uint8), np.random.default_rng(0), 0.5).mean() < 0.8


def test_elastic_displaces_by_its_strength():
    """Along a long straight edge, the outline's displacement has about the standard deviation that is asked for."""
    mask = np.zeros((120, 4000), np.uint8)
    mask[60:] = 1
    diameter = 2 * np.sqrt(mask.sum() / np.pi)
    strength = 12 / diameter
    moves = np.concatenate(
        [elastic_noise(mask, rng, strength).sum(axis=0).astype(float) - 60 for rng in generators(40)]
    )
    assert abs(moves.mean()) < 3
    assert 7 < moves.std() < 13  # 12 at the nodes, less between them


def test_missing_leaves_whole_objects_out():
    mask = objects()
    parts = label(mask)[0]
    kept = np.zeros(4)
    for rng in generators(400):
        noisy = missing_noise(mask, rng, 0.25)
        for part in (1, 2, 3):
            shown = noisy[parts == part]
            assert shown.min() == shown.max()
            kept[part] += shown.max()
    assert kept[1:] == pytest.approx(400 * 0.75, abs=40)
    assert not missing_noise(mask, np.random.default_rng(0), 1).any()


def test_added_objects_lie_about_the_background_and_are_counted_and_sized_as_said():
    mask = ellipse(200, 200, 12, 12, 100, 100)
    counts, areas = [], []
    for rng in generators(300):
        several = added_noise(mask, rng, 1.5)
        assert (several >= mask).all()
        counts.append(label(several)[1] - 1)
        new = added_noise(mask, rng, 1) & ~mask  # one object
        rim = np.concatenate([new[0], new[-1], new[:, 0], new[:, -1], new[mask == 1]])
        if not rim.any() and not new[85:116, 85:116].any():
            areas.append(new.sum() / mask.sum())
    assert set(counts) == {0, 1, 2} and 1.35 < np.mean(counts) < 1.6  # some touch the mask or each other
    assert 0.2 < min(areas) < 0.35 and 0.9 < max(areas) < 1.1
    assert np.mean(areas) == pytest.approx(0.625, abs=0.05)
    empty = added_noise(np.zeros((200, 100), np.uint8), np.random.default_rng(1), 1)
    assert 0.25 / 20 * 0.5 < empty.mean() < 1.1 / 20


def test_box_is_the_bounding_box_or_the_ellipse_in_it():
    mask = np.zeros((60, 80), np.uint8)
    mask[10:31, 20:61] = np.eye(21, 41, dtype=np.uint8) | np.eye(21, 41, dtype=np.uint8)[::-1, ::-1]
    mask[10:31, 20:61] |= (np.arange(21)[:, None] == 10).astype(np.uint8)  # one object of 21 x 41 pixels
    box = np.zeros_like(mask)
    box[10:31, 20:61] = 1
    y, x = np.mgrid[:60, :80]
    inscribed = (((y - 20) / 10.5) ** 2 + ((x - 40) / 20.5) ** 2 <= 1).astype(np.uint8)
    seen = {box_noise(mask, rng, 1).tobytes() for rng in generators(20)}
    assert seen == {box.tobytes(), inscribed.tobytes()}
    larger = np.zeros_like(mask)
    larger[5:36, 10:71] = 1  # 1.5 times as long: half-sides of 15.75 and 30.75 about (20, 40)
    assert any((box_noise(mask, rng, 1.5) == larger).all() for rng in generators(20))


def test_box_replaces_a_share_of_the_objects():
    mask = objects()
    filled = np.mean([box_noise(mask, rng, 0.3)[25, 30] for rng in generators(400)])  # the ring's hole
    assert filled == pytest.approx(0.3, abs=0.07)


def published(mask, ratio, operation, sign):
    """Li et al.: step by step until the number is passed, then the nearer of the last two; neither empty nor full."""
    wanted = int(mask.sum()) + sign * int(mask.sum() * ratio)
    noisy = last = mask.astype(bool)
    while sign * (wanted - int(noisy.sum())) > 0 and 0 < noisy.sum() < mask.size:
        last, noisy = noisy, operation(noisy)
    if noisy.sum() in (0, mask.size) or abs(int(last.sum()) - wanted) < abs(int(noisy.sum()) - wanted):
        noisy = last
    return noisy.astype(np.uint8)


def test_alpha_beta_dilates_and_erodes_as_published_and_moves_to_the_share():
    masks = [ellipse(), objects(), ellipse(rows=44, columns=58), some_masks()[6]]
    kinds = {"dilated": 0, "eroded": 0, "moved": 0}
    for mask in masks:
        for ratio in (0.05, 0.3, 0.5, 0.7, 1):
            for rng in generators(16):
                noisy = area_noise(mask, rng, ratio)
                if (noisy == published(mask, ratio, binary_dilation, 1)).all():
                    kinds["dilated"] += 1
                elif (noisy == published(mask, ratio, binary_erosion, -1)).all():
                    kinds["eroded"] += 1
                else:
                    kinds["moved"] += 1
                    if mask is masks[0] and ratio >= 0.5:  # an ellipse, turned by 30 degrees at most
                        assert (noisy != mask).sum() / mask.sum() == pytest.approx(ratio, abs=0.03)
    assert all(count > 30 for count in kinds.values()), kinds


def test_classes_are_disturbed_each_for_itself():
    labels = objects()
    labels[ellipse(rows=10, columns=10, row=60, column=85) == 1] = 2
    noisy = class_noise(labels, np.random.default_rng(0), lambda m, rng: missing_noise(m, rng, 1), 3)
    assert not noisy.any()
    rng = np.random.default_rng(3)
    claims = [box_noise(labels == value, rng, 1) for value in (1, 2)]
    expected = np.where(claims[1] == 1, 2, claims[0])
    noisy = class_noise(labels, np.random.default_rng(3), lambda m, rng: box_noise(m, rng, 1), 3)
    np.testing.assert_array_equal(noisy, expected)


@pytest.mark.parametrize(("start", "target", "expected"), [(1, 0.3, 1.5), (4, 0.3, 1.5), (1, 0.002, 0.01), (2, 0.4, 2)])
def test_matching_strength_finds_where_the_rate_is_the_target(start, target, expected):
    tried = []

    def rate(strength):
        tried.append(strength)
        return strength / 5

    assert matching_strength(rate, target, start, 100) == pytest.approx(expected, rel=0.011)
    assert len(tried) < 14 and len(set(tried)) == len(tried)


def test_matching_strength_takes_the_nearest_of_coarse_steps_and_says_when_there_is_none():
    assert 2 <= matching_strength(lambda strength: int(strength) / 10, 0.24, 1, 100) < 3
    tried = []
    with pytest.raises(UserError, match=r"--target_rate 0\.3.*0\.2 of the pixels") as error:
        matching_strength(lambda strength: tried.append(strength) or min(strength, 2) / 10, 0.3, 1, 3)
    assert tried == [1, 2, 3]
    assert "--noisetype" in str(error.value)


def test_parameters_of_a_strength():
    assert parameters_at("Markov", 187.6) == {"T": 188}
    assert parameters_at("DE", 10) == {"low": 9.0, "high": 11.0}
    assert parameters_at("box", 1.3) == {"strength": 1.3}


@pytest.mark.skipif(not SHENZHEN.is_dir(), reason=f"no real masks at {SHENZHEN}")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_reaches_eight_percent_on_real_lung_masks(name):
    masks = [(stem, read_mask(path).labels) for stem, path in list(list_images(SHENZHEN).items())[::30]]

    def rate(strength):
        parameters = parameters_at(name, strength)
        noisy = [KINDS[name].noise(mask, file_generator(0, stem), **parameters) for stem, mask in masks]
        return np.mean([(after != mask).mean() for after, (_, mask) in zip(noisy, masks, strict=True)])

    strength = matching_strength(rate, 0.08, KINDS[name].strength, KINDS[name].largest)
    assert rate(strength) == pytest.approx(0.08, abs=0.012)
