"""Boundary distances against brute force and scipy; resizing."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from utils.masks.geometry import longest_side, resize_image, resize_label, squared_boundary_distance, value_counts


def random_label(shape, classes, seed, block=1):
    """Blocks of random classes, int64; large blocks leave pixels far from any boundary."""
    coarse = np.random.default_rng(seed).integers(classes, size=[-(-side // block) for side in shape])
    return np.kron(coarse, np.ones([block] * len(shape), int))[tuple(slice(side) for side in shape)]


def brute_force(label, cap):
    """The smallest squared distance of each pixel to the pixels of other classes."""
    points = np.argwhere(np.ones(label.shape))
    classes = label.ravel()
    result = [
        min([cap**2, *((points[classes != value] - point) ** 2).sum(axis=1)])
        for point, value in zip(points, classes, strict=True)
    ]
    return np.reshape(result, label.shape)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("shape", [(13, 17), (1, 20), (4, 6, 9)])
@pytest.mark.parametrize("block", [1, 4, 9])
@pytest.mark.parametrize("cap", [1, 3, 10, 15])
def test_distance_equals_brute_force(classes, shape, block, cap):
    label = random_label(shape, classes, seed=classes, block=block)
    label.flat[-1] = (label.flat[0] + 1) % classes  # never of one class only
    squared = squared_boundary_distance(label, cap)
    assert squared.dtype == np.uint8
    np.testing.assert_array_equal(squared, brute_force(label, cap))


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("shape", [(256, 200), (30, 40, 50)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_distance_of_large_labels_equals_scipys(classes, shape, dtype):
    label = random_label(shape, classes, seed=0, block=25).astype(dtype)
    exact = np.zeros(shape)
    for value in np.unique(label):
        exact += distance_transform_edt(label == value)
    squared = squared_boundary_distance(label)
    np.testing.assert_array_equal(squared, np.rint(np.minimum(exact, 10) ** 2))
    assert (squared.min(), squared.max()) == (1, 100)
    assert len(np.unique(squared)) > 15  # many different lengths were compared


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5), (1, 1)])
@pytest.mark.parametrize("value", [0, 1, 3])
@pytest.mark.parametrize("cap", [1, 10, 15])
def test_a_label_of_one_class_is_at_the_cap_everywhere(shape, value, cap):
    np.testing.assert_array_equal(squared_boundary_distance(np.full(shape, value), cap), np.full(shape, cap**2))


def test_the_default_cap_is_10_pixels():
    label = np.zeros((1, 40), np.uint8)
    label[0, 0] = 1
    assert squared_boundary_distance(label)[0].tolist() == [1] + [d * d for d in range(1, 11)] + [100] * 29


@pytest.mark.parametrize("cap", [0, 16])
def test_caps_that_uint8_cannot_hold_are_refused(cap):
    with pytest.raises(AssertionError):
        squared_boundary_distance(np.zeros((2, 2), int), cap)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("shape", [(32, 32), (20, 33), (12, 12, 7)])
def test_distance_turns_with_the_label(flip, turns, shape):
    def move(values):
        return np.rot90(np.flip(values, 1) if flip else values, turns)

    label = random_label(shape, 3, seed=1, block=6).astype(np.uint8)
    moved = squared_boundary_distance(move(label))
    np.testing.assert_array_equal(moved, move(squared_boundary_distance(label)))
    assert len(np.unique(moved)) > 5


def random_image(height, width, channels):
    coarse = np.random.default_rng(0).integers(256, size=(5, 5, channels), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


sizes = pytest.mark.parametrize(
    ("height", "width", "size"),
    [(40, 50, 32), (37, 51, 33), (31, 17, 64), (200, 20, 48), (5, 7, 6), (32, 32, 32), (64, 64, 1), (1, 1, 8)],
)


@sizes
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
def test_resized_images_keep_their_type_and_channels(height, width, size, channels):
    image = random_image(height, width, channels)
    resized = resize_image(image, size)
    assert resized.shape == (size, size, channels)
    assert resized.dtype == np.uint8
    for channel in range(channels):  # each by itself
        np.testing.assert_array_equal(resized[..., [channel]], resize_image(image[..., [channel]], size))
    np.testing.assert_array_equal(resize_image(np.full_like(image, 77), size), np.full_like(resized, 77))
    if (height, width) == (size, size):
        np.testing.assert_array_equal(resized, image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_an_image_shrinks_by_the_mean_of_its_pixels(channels, factor):
    image = np.random.default_rng(0).integers(256, size=(30, 30, channels), dtype=np.uint8)
    size = 30 // factor
    mean = image.reshape(size, factor, size, factor, channels).mean(axis=(1, 3))
    assert np.abs(resize_image(image, size) - mean).max() <= 0.5 + 1e-6


def test_an_image_grows_linearly():
    """Twice as wide: pixel centres at a quarter and three quarters of the old ones; the border is repeated."""
    row = np.array([0, 100, 200, 40], np.uint8)
    grown = resize_image(np.tile(row, (4, 1))[..., None], 8)[..., 0]
    np.testing.assert_array_equal(grown, np.tile([0, 25, 75, 125, 175, 160, 80, 40], (8, 1)))


@sizes
def test_resized_labels_keep_their_type_and_values(height, width, size):
    label = np.array([0, 3, 128, 255], np.uint8)[random_label((height, width), 4, seed=0, block=4)]
    resized = resize_label(label, size)
    assert resized.shape == (size, size)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= set(np.unique(label))
    if (height, width) == (size, size):
        np.testing.assert_array_equal(resized, label)


@sizes
def test_labels_are_resized_to_the_nearest_pixel(height, width, size):
    """The old pixel in which the new pixel's centre lies, in whole numbers; a centre on an edge belongs to the next."""
    label = random_label((height, width), 200, seed=0).astype(np.uint8)
    rows = [(2 * i + 1) * height // (2 * size) for i in range(size)]
    columns = [(2 * i + 1) * width // (2 * size) for i in range(size)]
    np.testing.assert_array_equal(resize_label(label, size), label[np.ix_(rows, columns)])


@pytest.mark.parametrize(("height", "width", "size"), [(100, 130, 64), (64, 80, 33), (30, 44, 96)])
def test_image_and_label_stay_aligned(height, width, size):
    """A bright disc and its mask resized each in its way still agree, but for single pixels of the edge."""
    rows, columns = np.mgrid[:height, :width]
    disc = ((rows - 0.45 * height) ** 2 + (columns - 0.55 * width) ** 2 < (0.3 * height) ** 2).astype(np.uint8)
    image, label = resize_image(255 * disc[..., None], size)[..., 0], resize_label(disc, size)
    uncertain = (image > 60) & (image < 195)
    assert uncertain.mean() < 0.05
    np.testing.assert_array_equal((image > 127)[~uncertain], label[~uncertain] == 1)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((60, 40), 30, (30, 20)),
        ((40, 60, 3), 90, (60, 90)),
        ((7, 7), 3, (3, 3)),
        ((400, 3), 40, (40, 1)),  # 0.3 of a pixel is one
        ((5, 2, 100), 10, (10, 4)),  # channels are no side
    ],
)
def test_the_longest_side_becomes_the_size(shape, size, expected):
    assert longest_side(shape, size) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
@pytest.mark.parametrize("values", [[7], [0, 255, 255], [3, 1, 3, 0, 200, 1]])
def test_values_are_counted_as_by_numpy(values, dtype):
    found, expected = value_counts(np.array([values], dtype)), np.unique(np.array(values, dtype), return_counts=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found[0].dtype == dtype
