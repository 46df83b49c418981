"""SLIC superpixels: shape, ids, and the images at which a segmentation could fail."""

import numpy as np
import pytest
from scipy.ndimage import label
from skimage.segmentation import slic

from utils.masks.superpixels import slic_segments

pytestmark = pytest.mark.filterwarnings("error")


def ramp_with_square(channels, size=128):
    """A smooth image with a brighter square that no regular grid meets, uint8 (size,size,channels)."""
    rows, columns = np.mgrid[:size, :size]
    image = (rows + columns) // 4
    image[square(size)] += 120
    return np.stack([image] * channels, axis=-1).astype(np.uint8)


def square(size):
    inside = np.zeros((size, size), bool)
    inside[size // 4 + 3 : size // 2 + 5, size // 4 + 3 : size // 2 + 5] = True
    return inside


def wrong_share(segments, inside):
    """Share of the pixels that are wrong if each segment is wholly inside or wholly outside."""
    share = np.bincount(segments.ravel(), weights=inside.ravel()) / np.bincount(segments.ravel())
    return ((share[segments] > 0.5) != inside).mean()


def assert_ids_are_consecutive(segments, shape):
    assert segments.dtype == np.int32
    assert segments.shape == shape
    np.testing.assert_array_equal(np.unique(segments), np.arange(segments.max() + 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_segments_are_many_connected_and_follow_edges(channels):
    image = ramp_with_square(channels)
    segments = slic_segments(image, n_segments=256)
    assert_ids_are_consecutive(segments, (128, 128))
    assert 200 <= segments.max() + 1 <= 300
    assert all(label(segments == i)[1] == 1 for i in range(segments.max() + 1))
    grid = slic_segments(np.zeros_like(image), n_segments=256)
    assert wrong_share(segments, square(128)) < 0.01 < 0.02 < wrong_share(grid, square(128))


def test_colour_is_cut_by_skimage_as_documented():
    image = np.random.default_rng(0).integers(256, size=(64, 48, 3), dtype=np.uint8)
    expected = slic(image, n_segments=1024, compactness=10, sigma=1, start_label=0)
    np.testing.assert_array_equal(slic_segments(image), expected)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_are_no_colours_count_by_their_root_mean_square(channels):
    """skimage adds their squares, of numbers from 0 to 1, to that of the distance in pixels times the compactness."""
    image = np.random.default_rng(0).integers(256, size=(64, 48, channels), dtype=np.uint8)
    expected = slic(image, n_segments=64, compactness=5 / 100 * channels**0.5, sigma=1, start_label=0, channel_axis=-1)
    np.testing.assert_array_equal(slic_segments(image, n_segments=64, compactness=5), expected)


def test_grey_is_cut_as_the_same_grey_in_three_channels():
    np.testing.assert_array_equal(slic_segments(ramp_with_square(1)), slic_segments(ramp_with_square(3)))


@pytest.mark.parametrize("value", [0, 77, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_gets_a_regular_grid(value, channels):
    segments = slic_segments(np.full((64, 64, channels), value, np.uint8), n_segments=64)
    assert_ids_are_consecutive(segments, (64, 64))
    assert segments.max() + 1 == 64


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 3, 1), (1, 50, 3), (10, 10, 3), (31, 33, 1)])
def test_an_image_of_fewer_pixels_than_segments_gets_a_segment_a_pixel(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    segments = slic_segments(image, n_segments=1024)
    assert_ids_are_consecutive(segments, shape[:2])
    assert segments.max() + 1 == shape[0] * shape[1]


def test_one_segment_can_be_asked_for():
    assert not slic_segments(ramp_with_square(3, size=32), n_segments=1).any()


def test_compactness_and_sigma_matter():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    grid = slic_segments(np.zeros_like(image), n_segments=64)
    np.testing.assert_array_equal(slic_segments(image, n_segments=64, compactness=1e6), grid)
    loose, smoothed = slic_segments(image, n_segments=64, sigma=0), slic_segments(image, n_segments=64, sigma=3)
    assert (loose != grid).any() and (smoothed != loose).any()
