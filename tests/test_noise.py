"""Label noise against its definition written naively, and its speed."""

import itertools
import time

import numpy as np
import pytest
from conftest import REAL_DATA
from scipy.ndimage import convolve, distance_transform_edt

from dataloaders.files import list_images, read_mask
from utils.masks.noise import dilation_erosion_noise, file_generator, markov_noise, smooth

SHENZHEN = REAL_DATA / "shenzhen" / "mask"


def naive_markov_noise(mask, rng, T=200, theta1=0.8, theta2=0.05):
    """The definition, pixel for pixel: the boundary found by a distance transform in every step."""
    mask = mask.astype(np.uint8)
    for draw in rng.random(T):
        if mask.any() and not mask.all():
            inside = mask == 0 if draw < theta1 else mask == 1
            rows, columns = np.nonzero(distance_transform_edt(inside) == 1)
            for row, column, number in zip(rows, columns, rng.random(len(rows)), strict=True):
                if number < theta2:
                    mask[row, column] = 1 - mask[row, column]
    return naive_smooth(mask)


def naive_smooth(mask):
    weights = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 2**2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    return (convolve(mask.astype(float), kernel, mode="mirror") > 0.5).astype(np.uint8)


def naive_distance(inside):
    """Distance of each pixel of ``inside`` to the nearest pixel outside it, one by one."""
    outside = np.argwhere(~inside)
    distance = np.zeros(inside.shape)
    for row, column in np.argwhere(inside):
        distance[row, column] = np.sqrt(((outside - (row, column)) ** 2).sum(axis=1).min())
    return distance


def disk(height, width, share=0.2):
    rows, columns = np.mgrid[:height, :width]
    radius = np.sqrt(share * height * width / np.pi)
    return (np.hypot(rows - height // 2, columns - width // 2) < radius).astype(np.uint8)


def some_masks():
    """Name -> mask: shapes and masks at which boundaries, borders and indices could go wrong."""
    rng = np.random.default_rng(0)
    masks = {
        "empty": np.zeros((9, 14), np.uint8),
        "full": np.ones((9, 14), np.uint8),
        "pixel": np.zeros((7, 7), np.uint8),
        "corners": np.zeros((8, 11), np.uint8),
        "hole": np.ones((13, 10), np.uint8),
        "stripes": np.indices((12, 17))[1].astype(np.uint8) % 2,
        "checkerboard": (np.indices((15, 6)).sum(axis=0) % 2).astype(np.uint8),
        "half to the border": (np.arange(20) < 10).astype(np.uint8) * np.ones((16, 1), np.uint8),
        "row": rng.integers(0, 2, (1, 19), dtype=np.uint8),
        "column": rng.integers(0, 2, (19, 1), dtype=np.uint8),
        "single pixel image": np.ones((1, 1), np.uint8),
        "2x2": np.array([[1, 0], [0, 0]], np.uint8),
        "disk": disk(33, 40),
    }
    masks["pixel"][3, 3] = 1
    masks["corners"][[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    masks["hole"][6, 5] = 0
    for i in range(12):
        shape = rng.integers(2, 40, 2)
        masks[f"random {i}"] = (rng.random(shape) < rng.random()).astype(np.uint8)
        masks[f"blobs {i}"] = smooth(rng.random(shape) < 0.5)
    return masks


@pytest.mark.parametrize(
    ("T", "theta1", "theta2"),
    [(1, 0.5, 0.5), (200, 0.8, 0.05), (200, 0.2, 0.05), (40, 0.5, 0.3), (15, 1, 1), (15, 0, 1), (10, 0.5, 0)],
)
def test_markov_is_bit_identical_to_the_definition_and_draws_alike(T, theta1, theta2):
    for name, mask in some_masks().items():
        fast, naive = np.random.default_rng(1), np.random.default_rng(1)
        before = mask.copy()
        result = markov_noise(mask, fast, T, theta1, theta2)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, naive_markov_noise(mask, naive, T, theta1, theta2), err_msg=name)
        assert fast.random() == naive.random(), f"{name}: another count of draws"
        np.testing.assert_array_equal(mask, before, err_msg=f"{name}: the input was changed")


def test_markov_takes_bool_masks():
    mask = disk(40, 30)
    noisy = markov_noise(mask.astype(bool), np.random.default_rng(0))
    np.testing.assert_array_equal(noisy, markov_noise(mask, np.random.default_rng(0)))


def test_the_defaults_are_those_of_the_paper():
    """S_E for the wandering outline, 9 to 11 pixels for dilation and erosion; seed 1 erodes, seed 2 dilates."""
    mask = disk(96, 96)
    for seed in (1, 2):
        rngs = [np.random.default_rng(seed) for _ in range(4)]
        np.testing.assert_array_equal(markov_noise(mask, rngs[0]), naive_markov_noise(mask, rngs[1], 200, 0.8, 0.05))
        np.testing.assert_array_equal(
            dilation_erosion_noise(mask, rngs[2]), dilation_erosion_noise(mask, rngs[3], 9, 11)
        )


def test_theta1_above_a_half_grows_and_below_shrinks():
    mask = disk(96, 96)
    assert markov_noise(mask, np.random.default_rng(0), theta1=0.8).sum() > 1.2 * mask.sum()
    assert markov_noise(mask, np.random.default_rng(0), theta1=0.2).sum() < 0.8 * mask.sum()


def test_a_mask_that_empties_or_fills_stays_so():
    mask = disk(20, 20)
    assert not markov_noise(mask, np.random.default_rng(0), T=100, theta1=0, theta2=1).any()
    assert markov_noise(mask, np.random.default_rng(0), T=100, theta1=1, theta2=1).all()


@pytest.mark.parametrize("noise", [markov_noise, dilation_erosion_noise])
@pytest.mark.parametrize("mask", [np.full((4, 4), 255, np.uint8), np.zeros((2, 4, 4), np.uint8)])
def test_other_arrays_than_binary_masks_are_refused(noise, mask):
    with pytest.raises(ValueError, match="expected a mask"):
        noise(mask, np.random.default_rng(0))


def test_no_sum_of_blur_weights_ties_with_the_threshold():
    base = np.exp(-1 / 8)  # the weight of offset (i, j) is base ** (i*i + j*j), up to the norm
    exponents, counts = np.unique([i * i + j * j for i in range(-2, 3) for j in range(-2, 3)], return_counts=True)
    taken = np.array(list(itertools.product(*(range(count + 1) for count in counts))))
    sums = taken @ base**exponents / (counts @ base**exponents)
    assert np.abs(sums - 0.5).min() > 7e-5


def test_dilation_erosion_is_the_definition():
    directions = set()
    masks = [mask for mask in some_masks().values() if mask.any() and not mask.all()]
    for seed, mask in enumerate(masks):
        rng = np.random.default_rng(seed)
        noisy = dilation_erosion_noise(mask, rng, 1, 6)
        reference = np.random.default_rng(seed)
        dilates, level = reference.random() < 0.5, 1 + 5 * reference.random()
        if dilates:
            expected = (mask == 1) | (naive_distance(mask == 0) <= level)
        else:
            expected = (mask == 1) & (naive_distance(mask == 1) > level)
        np.testing.assert_array_equal(noisy, expected)
        assert noisy.dtype == np.uint8
        assert rng.random() == reference.random(), "another count of draws"
        directions.add(bool(dilates))
    assert directions == {True, False}


def test_dilation_erosion_moves_the_outline_by_the_level_and_leaves_full_and_empty_masks():
    mask = disk(101, 101)
    radius = np.sqrt(mask.sum() / np.pi)
    radii = [np.sqrt(dilation_erosion_noise(mask, np.random.default_rng(s), 9, 11).sum() / np.pi) for s in range(20)]
    assert all(8 < abs(r - radius) < 12 for r in radii)
    for constant in (np.zeros((8, 9), np.uint8), np.ones((8, 9), np.uint8)):
        for seed in range(4):
            np.testing.assert_array_equal(dilation_erosion_noise(constant, np.random.default_rng(seed)), constant)


def test_file_generators_depend_on_seed_and_stem_only():
    numbers = {
        (seed, stem): file_generator(seed, stem).random() for seed in (0, 1, 2**40) for stem in ("a", "b", "ü 1")
    }
    assert len(set(numbers.values())) == len(numbers)
    assert file_generator(1, "a").random() == numbers[1, "a"]


def test_markov_is_much_faster_than_the_definition():
    mask = disk(256, 256, share=0.3)
    seconds = {markov_noise: [], naive_markov_noise: []}
    for _ in range(3):  # in turns, so that a busy machine slows both
        for function, measured in seconds.items():
            start = time.perf_counter()
            function(mask, np.random.default_rng(0), T=60)
            measured.append(time.perf_counter() - start)
    assert min(seconds[naive_markov_noise]) > 10 * min(seconds[markov_noise])


@pytest.mark.skipif(not SHENZHEN.is_dir(), reason=f"no real masks at {SHENZHEN}")
@pytest.mark.parametrize(
    ("noise", "rate"),
    [
        (lambda mask, rng: markov_noise(mask, rng, theta1=0.2), 0.139),
        (lambda mask, rng: markov_noise(mask, rng, theta1=0.8), 0.170),
        (dilation_erosion_noise, 0.123),
    ],
    ids=["S_R", "S_E", "S_DE"],
)
def test_wrong_pixels_on_real_lung_masks(noise, rate):
    paths = list(list_images(SHENZHEN).items())[::11]
    shares = []
    for stem, path in paths:
        mask = read_mask(path).labels
        shares.append((noise(mask, file_generator(0, stem)) != mask).mean())
    assert np.mean(shares) == pytest.approx(rate, abs=0.015)
