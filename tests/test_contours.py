"""Contour correction: on phantoms whose contours are known, on degenerate masks, and on real images."""

import math
import tracemalloc

import numpy as np
import pytest
from conftest import REAL_DATA
from scipy.ndimage import distance_transform_edt, gaussian_filter

from dataloaders.files import list_images, read_image, read_mask
from utils.masks.contours import (
    EdgeContrast,
    edge_contrast,
    edges_shown,
    evidence_of,
    levels_of,
    move_contour,
    probabilities,
    signed_distance,
)
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.geometry import resize_image, resize_label
from utils.masks.noise import dilation_erosion_noise, file_generator, markov_noise

SIZE = 96


def disc(radius, size=SIZE):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(x, y) < radius).astype(np.uint8)


def picture(mask, rng, channels=3, contrast=40):
    """A textured object on a textured ground, with a shading that has nothing to do with it."""
    shading = np.linspace(0, 50, mask.shape[1])[:, None]
    texture = rng.normal(0, 15, (*mask.shape, channels))
    return (100 + contrast * mask[..., None].astype(float) + shading + texture).clip(0, 255).astype(np.uint8)


def phantoms(levels, seed=0, radius=(18, 30), **kwargs):
    """Discs of random radius, each with a mask whose contour lies at its level: (images, true masks, given masks)."""
    rng = np.random.default_rng(seed)
    radii = rng.uniform(*radius, len(levels))
    true = [disc(r) for r in radii]
    # The mask is drawn where the true contour is at ``level``: the other way round from the mask.
    given = [disc(r + level) for r, level in zip(radii, levels, strict=True)]
    return [picture(mask, rng, **kwargs) for mask in true], true, given


def found_in(images, masks):
    side = max(masks[0].shape)
    levels = levels_of((side,))
    found = level_probabilities([edge_contrast(*pair) for pair in zip(images, masks, strict=True)], levels, side)
    return median_level(found, levels)


def overlap(one, two):
    return 2 * (one & two).sum() / (one.sum() + two.sum())


def test_signed_distance():
    mask = np.random.default_rng(0).random((20, 31)) < 0.2
    expected = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))
    np.testing.assert_allclose(signed_distance(mask.astype(np.uint8) * 2), expected, atol=1e-5)
    assert (signed_distance(np.zeros((4, 5), np.uint8)) == -np.inf).all()
    assert (signed_distance(np.ones((4, 5), np.uint8)) == np.inf).all()


@pytest.mark.parametrize(("size", "width"), [(96, 1), (256, 2)])
def test_steps(size, width):
    rng = np.random.default_rng(0)
    mask = disc(size / 5, size)
    image, distance = picture(mask, rng, channels=2), signed_distance(mask)
    found = edge_contrast(image, mask)
    for index, level in enumerate(levels_of(mask.shape)):
        one = image[(distance >= level) & (distance < level + width)].astype(float)
        two = image[(distance >= level - width) & (distance < level)].astype(float)
        assert found.pixels[index] == min(len(one), len(two))
        values, vectors = np.linalg.eigh((np.cov(one.T, bias=True) + np.cov(two.T, bias=True)) / 2 + np.eye(2))
        expected = vectors @ np.diag(values**-0.5) @ vectors.T @ (one.mean(0) - two.mean(0))
        np.testing.assert_allclose(found.contrast[index], expected, atol=1e-6)
    elsewhere = edge_contrast(image, np.roll(mask, (size // 2, size // 2), axis=(0, 1)))
    np.testing.assert_array_equal(found.chance_contrast, elsewhere.contrast)
    np.testing.assert_array_equal(found.chance_pixels, elsewhere.pixels)


def test_many_channels_take_little_memory():
    """Not the square of their number for each pixel, which a folder of such images, over threads, would not survive."""
    mask = disc(40, 128)
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 32), dtype=np.uint8)
    tracemalloc.start()
    edge_contrast(image, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * image.size * 8


@pytest.mark.parametrize("level", [-6, -3, 0, 4, 6])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_one_displacement(level, channels):
    images, true, given = phantoms([level] * 12, channels=channels)
    found = found_in(images, given)
    assert np.abs(found - level).max() <= 1
    for mask, drawn, moved in zip(true, given, found, strict=True):
        assert overlap(mask, move_contour(drawn, moved)) >= max(0.93, overlap(mask, drawn))


def test_each_image_its_own():
    levels = np.random.default_rng(1).permutation([-6] * 10 + [5] * 10 + [0] * 20)
    found = found_in(*phantoms(levels)[::2])
    assert np.abs(found - levels).max() <= 1


def test_the_set_helps_where_an_image_says_little():
    images, _, given = phantoms([5] * 40, contrast=9)
    alone = np.concatenate([found_in([image], [mask]) for image, mask in zip(images, given, strict=True)])
    together = found_in(images, given)
    assert np.abs(together - 5).mean() < 0.3 < np.abs(alone - 5).mean()


def test_objects_darker_and_brighter_than_the_ground():
    dark, bright = phantoms([4] * 10, contrast=-40), phantoms([4] * 14, contrast=40, seed=1)
    assert np.abs(found_in(dark[0] + bright[0], dark[2] + bright[2]) - 4).max() <= 1


def test_without_a_boundary_nothing_moves():
    images, _, given = phantoms([5] * 8)
    given[0][:], given[1][:] = 0, 1
    found = found_in(images, given)
    assert found[:2].tolist() == [0, 0]
    assert np.abs(found[2:] - 5).max() <= 1
    assert found_in(images[:2], given[:2]).tolist() == [0, 0]
    one_pixel = np.zeros((SIZE, SIZE), np.uint8)
    one_pixel[3, 3] = 1
    assert found_in([np.zeros((SIZE, SIZE, 3), np.uint8)] * 2, [given[0], one_pixel]).tolist() == [0, 0]


def test_small_objects_are_not_erased():
    images, _, given = phantoms([6] * 20)
    small_images, _, small = phantoms([0] * 4, radius=(3, 5))
    for mask, level in zip(small, found_in(images + small_images, given + small)[20:], strict=True):
        assert move_contour(mask, level).any()


def test_uniform_images_say_nothing():
    given = [disc(20)] * 5
    found = found_in([np.full((SIZE, SIZE, 3), 77, np.uint8)] * 5, given)
    assert found.tolist() == [0] * 5


@pytest.mark.parametrize("count", [12, 60])
@pytest.mark.parametrize("kind", ["noise", "clouds", "texture"])
def test_images_without_edges_move_nothing(kind, count):
    """Right masks of objects that no edge in colour bounds; without the comparison with chance most are moved."""
    rng = np.random.default_rng(0)
    masks = [np.roll(disc(r), tuple(rng.integers(-15, 16, 2)), (0, 1)) for r in rng.uniform(10, 22, count)]
    noise = rng.normal(0, 1, (count, SIZE, SIZE, 3))
    if kind == "clouds":
        noise = 10 * gaussian_filter(noise, (0, 4, 4, 0))
    images = np.stack([128 + part * (10 if kind == "texture" else 30) for part in noise])
    if kind == "texture":  # all that tells the object from the ground
        images = np.where(np.stack(masks)[..., None] > 0, images, 128 + 30 * noise)
    images = list(images.clip(0, 255).astype(np.uint8))
    assert found_in(images, masks).tolist() == [0] * count


@pytest.mark.parametrize("count", [1, 3, 6, 40])
def test_edges_shown(count):
    images, _, given = phantoms([0] * count)
    seen = [edge_contrast(*pair) for pair in zip(images, given, strict=True)]
    levels, empty = levels_of((SIZE,)), edge_contrast(images[0], np.zeros_like(given[0]))
    assert edges_shown(seen, levels)
    assert edges_shown([*seen, empty, empty], levels)
    assert edges_shown([empty], levels)  # nothing to doubt
    # Where a contour marks nothing it is the other way round.
    strayed = [
        edge_contrast(image, np.roll(mask, (SIZE // 2,) * 2, (0, 1))) for image, mask in zip(images, given, strict=True)
    ]
    assert not edges_shown(strayed, levels)


@pytest.mark.parametrize("level", [-5, -1, 1, 5])
def test_move_contour(level):
    mask = disc(20)
    moved = move_contour(mask, level)
    assert moved.dtype == mask.dtype
    np.testing.assert_array_equal(moved, signed_distance(mask) > level)
    assert move_contour(mask, 0) is mask


def test_gained_pixels_take_the_nearest_class():
    label = np.zeros((40, 60), np.uint8)
    label[15:25, 10:20], label[15:25, 40:50] = 1, 2
    grown = move_contour(label, -6)
    assert (grown[:, :30][grown[:, :30] > 0] == 1).all()
    assert (grown[:, 30:][grown[:, 30:] > 0] == 2).all()
    np.testing.assert_array_equal(grown > 0, signed_distance(label) > -6)
    shrunk = move_contour(label, 3)
    np.testing.assert_array_equal(shrunk, np.where(signed_distance(label) > 3, label, 0))


@pytest.mark.parametrize(
    ("side", "last"), [(8, 1), (20, 1), (27, 2), (48, 4), (96, 9), (128, 13), (192, 19), (256, 26), (512, 52)]
)
def test_levels_lie_within_about_a_tenth_of_the_side(side, last):
    """14/128 of the side less the width of a ring, 1/128 of it, both in whole pixels."""
    for shape in ((side, 3), (5, side)):
        assert levels_of(shape).tolist() == list(range(-last, last + 1))


# --- docs/method.md section 8 once more, in loops ---------------------------------------------------------------------


def unit(vector):
    return vector / np.linalg.norm(vector) if vector.any() else vector


def evidence_by_loop(images):
    own = [unit(sum(image.contrast)) for image in images]
    common = unit(sum(own))
    inward = [unit(direction + common) for direction in own]
    return np.array(
        [
            [0.3 * math.sqrt(n) * float(u @ step) for step, n in zip(image.contrast, image.pixels, strict=True)]
            for u, image in zip(inward, images, strict=True)
        ]
    )


def normalised_by_loop(values):
    return [value / sum(values) for value in values]


def prior_by_loop(posterior, levels):
    prior = []
    for index, level in enumerate(levels):
        below, above = max(index - 1, 0), min(index + 1, len(levels) - 1)
        smooth = sum(q[below] / 4 + q[index] / 2 + q[above] / 4 for q in posterior)
        prior.append((smooth + (level == 0) + 1 / len(levels)) / (len(posterior) + 2))
    return prior


def posterior_by_loop(likelihood, levels):
    """``likelihood`` of each image that has a boundary; 0 where a level is impossible."""
    prior = prior_by_loop([], levels)
    for _ in range(30):
        posterior = [normalised_by_loop([p * x for p, x in zip(prior, row, strict=True)]) for row in likelihood]
        prior = prior_by_loop(posterior, levels)
    return posterior


def fitted_by_loop(evidence, possible, start, levels, side):
    """The profile of the edges, and the levels by it, of images that have a boundary."""
    count, last = len(evidence), len(levels) - 1
    reach, habit = max(2, round(side / 16)), max(1, round(side / 128))
    offsets = range(-reach, reach + 1)

    def at(row, index):
        return row[min(max(index, 0), last)]

    strength = [math.sqrt(np.mean(row**2)) + 1e-3 for row in evidence]
    posterior, prior = start, prior_by_loop([], levels)
    for _ in range(30):
        profile = [
            sum(
                q[m] * at(row, m + d) / scale
                for q, row, scale in zip(posterior, evidence, strength, strict=True)
                for m in range(last + 1)
            )
            / count
            for d in offsets
        ]
        commonest = levels[int(np.argmax(np.sum(posterior, axis=0)))]
        positive = [max(value, 0) for value in profile]
        top = positive.index(max(positive))
        peak, flank = float(top), top
        if 0 < top < 2 * reach:
            before, largest, after = positive[top - 1 : top + 2]
            peak = top - (after - before) / (2 * (before + after - 2 * largest))
        while flank > 0 and positive[flank] >= positive[top] / 2:
            flank -= 1
        if positive[flank] < positive[top] / 2:
            flank += (positive[top] / 2 - positive[flank]) / (positive[flank + 1] - positive[flank])
        shift = (peak + flank + habit / 2) / 2 - reach  # a ring is as wide as the habit
        if commonest == 0:
            shift = peak - reach - min(max(peak - reach, -habit), habit)
        profile = [float(np.interp(d + shift, offsets, profile)) for d in offsets]
        profile = [value - np.mean(profile) for value in profile]
        explained, squares = np.zeros(evidence.shape), np.zeros(evidence.shape)
        for i, row in enumerate(evidence):
            for m in range(last + 1):
                window = np.array([at(row, m + d) for d in offsets])
                explained[i, m] = max(0, window @ profile) ** 2 / (np.array(profile) @ profile)
                squares[i, m] = ((window - window.mean()) ** 2).sum()
        left = np.sum(posterior * (squares - explained)) + 2 / count * np.sum(posterior * squares)
        v = left / ((count + 2) * len(offsets))
        fit = np.where(possible, np.exp(explained / (4 * v)), 0)
        posterior = np.array([normalised_by_loop(prior * row) for row in fit])
        prior = np.array(prior_by_loop(posterior, levels))
    # Which of three kinds a mask is, the evidence says; how far it is off, the set rather.
    calm = np.where(possible, np.exp(explained / (4 * v) / 8), 0) * prior
    for kind in (levels < -habit, abs(levels) <= habit, levels > habit):
        for i, row in enumerate(posterior):
            if calm[i, kind].any():
                posterior[i, kind] = row[kind].sum() * calm[i, kind] / calm[i, kind].sum()
    return posterior


def random_set(levels, seed, channels=3, count=9):
    """EdgeContrast of images with an edge somewhere, some levels impossible; the last two images have no boundary."""
    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        step = rng.normal(0, 0.1, (len(levels), channels))
        edge = rng.choice([0, 0, 0, -2, 3]) + rng.normal(0, 0.3)
        step += np.exp(-((levels - edge) ** 2) / 2)[:, None] * np.array([1, -0.5, 0.2])[:channels]
        pixels = rng.choice([3, 4, 5, 20, 60, 90], len(levels), p=[0.05, 0.1, 0.05, 0.2, 0.3, 0.3])
        pixels[-1] = 60  # a boundary has some ring
        if index >= count - 2:
            pixels = np.full(len(levels), 3 * (index % 2))
        step[pixels < 4] = 0
        images.append(EdgeContrast(step, pixels, 0 * step, 0 * pixels))
    return images


@pytest.mark.parametrize("side", [32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_estimate_equals_loops(side, channels, seed):
    levels = levels_of((side,))
    images = random_set(levels, seed, channels)
    evidence, possible = evidence_of(images, levels)
    np.testing.assert_allclose(evidence, evidence_by_loop(images), atol=1e-9)
    expected = [[n >= 4 or level == 0 for n, level in zip(image.pixels, levels, strict=True)] for image in images]
    np.testing.assert_array_equal(possible, expected)

    bounded = slice(len(images) - 2)
    likelihood = np.where(possible, np.exp(evidence), 0)[bounded]
    found = probabilities(evidence, possible, levels)
    np.testing.assert_allclose(found[bounded], posterior_by_loop(likelihood, levels), atol=1e-9)
    np.testing.assert_array_equal(found[-2:], [levels == 0] * 2)

    assert edges_shown(images, levels)
    masked = np.where(possible, evidence, 0)[bounded]
    expected = fitted_by_loop(masked, possible[bounded], found[bounded], levels, side)
    found = level_probabilities(images, levels, side)
    np.testing.assert_allclose(found[bounded], expected, atol=1e-6)
    np.testing.assert_array_equal(found[-2:], [levels == 0] * 2)


def test_the_levels_of_a_small_image_may_all_lie_near_0():
    levels = levels_of((16,))
    assert levels.tolist() == [-1, 0, 1]  # 14/128 and 1/128 of 16 pixels come to 2 and 1
    images = random_set(levels, seed=0)
    assert edges_shown(images, levels)
    np.testing.assert_allclose(level_probabilities(images, levels, 16).sum(axis=1), 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 0, 1, 0, 0], 0),
        ([0, 0, 0, 1, 0], 1),
        ([1, 0, 0, 0, 0], -2),
        ([0, 0, 0, 0.5, 0.5], 1.5),
        ([0.25, 0.75, 0, 0, 0], -1.5 + 1 / 3),
        ([0, 0, 0.5, 0.5, 0], 0.5),
        ([0, 0, 0.51, 0.49, 0], 0),  # within half a pixel nothing moves
    ],
)
def test_median_level_spreads_each_level_over_a_pixel(row, expected):
    assert median_level(np.array([row], float), np.arange(-2, 3)) == pytest.approx([expected])


@pytest.mark.parametrize(("count", "needed"), [(1, 1), (5, 5), (6, 6), (7, 7), (20, 16), (40, 30), (100, 75)])
def test_edges_are_shown_by_three_quarters_and_by_more_than_chance_gives(count, needed):
    """Of 20 images 15 are three quarters, but no more than chance gives in one set of a hundred."""
    levels = levels_of((64,))
    strong, weak = np.zeros((2, len(levels), 1))
    strong[5], weak[5] = 2, 1
    pixels = np.full(len(levels), 30)
    nothing = EdgeContrast(0 * weak, 0 * pixels, 0 * weak, 0 * pixels)
    for shown, expected in ((needed, True), (needed - 1, False)):
        images = [EdgeContrast(strong, pixels, weak, pixels)] * shown + [EdgeContrast(weak, pixels, strong, pixels)] * (
            count - shown
        )
        assert edges_shown([*images, nothing, nothing], levels) is expected


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no real images: {REAL_DATA} is not there")
@pytest.mark.parametrize("noise", ["S_R", "S_E", "S_DE", "none"])
@pytest.mark.parametrize(
    ("name", "images", "masks", "least"),
    [("shenzhen", "img", "mask", {"none": 0.98}), ("Kvasir", "images", "masks", {"none": 0.92})],
)
def test_real_images(name, images, masks, least, noise):
    paths = list_images(REAL_DATA / name / images)
    stems = list(paths)[::6][:120]
    mask_paths = list_images(REAL_DATA / name / masks)
    pictures, true, given = [], [], []
    for stem in stems:
        mask = (read_mask(mask_paths[stem], 2).labels > 0).astype(np.uint8)
        rng = file_generator(0, stem)
        if noise == "S_DE":
            noisy = dilation_erosion_noise(mask, rng)
        elif noise == "none":
            noisy = mask
        else:
            noisy = markov_noise(mask, rng, theta1=0.2 if noise == "S_R" else 0.8)
        pictures.append(resize_image(read_image(paths[stem], 3), 128))
        true.append(resize_label(mask, 128))
        given.append(resize_label(noisy, 128))
    moved = [move_contour(label, level) for label, level in zip(given, found_in(pictures, given), strict=True)]
    before, after = (np.mean([overlap(*pair) for pair in zip(true, masks, strict=True)]) for masks in (given, moved))
    assert after > least.get(noise, 0.88)
    if noise != "none":
        assert after > before + 0.08
