"""Training batches: what moves with the image, what is drawn, and the colour jitter against torchvision's."""

from itertools import chain

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from dataloaders import batches
from dataloaders.batches import TrainingSet, color_jitter, move_square, training_batches
from utils.geometry import squared_boundary_distance
from utils.intensity import Intensity, to_unit

SIZE = 20


def coded_set(count=10, size=SIZE):
    """Images that tell each pixel's row, column and image; segment ids that tell all three at once."""
    number, row, column = np.indices((count, size, size))
    label = np.random.default_rng(0).integers(3, size=(count, 4, 4)).repeat(size // 4, 1).repeat(size // 4, 2)
    label[0] = column[0] < size // 2  # every whole distance from 1 to 10
    return TrainingSet(
        names=tuple(f"case{i}" for i in range(count)),
        images=torch.tensor(np.stack([row, column, number], axis=1), dtype=torch.uint8),
        labels=torch.tensor(label, dtype=torch.uint8),
        squared_distances=torch.tensor(np.stack([squared_boundary_distance(each) for each in label])),
        segments=torch.tensor((number * size + row) * size + column, dtype=torch.int32),
        num_segments=count * size * size,
    )


def epoch_of(data, generator, batch_size=4, jitter_strength=0.0, intensity=None):
    intensity = intensity or Intensity.raw(data.images.shape[1])
    return list(training_batches(data, batch_size, jitter_strength, intensity, generator, torch.device("cpu")))


def names_of(epoch):
    return list(chain.from_iterable(names for _, names in epoch))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_label_distance_and_segments_move_with_the_image():
    data = coded_set()
    for batch, names in epoch_of(data, seeded(), batch_size=5):
        row, column, number = batch.image.round().long().unbind(1)
        assert names == [data.names[i] for i in number[:, 0, 0]]
        assert torch.equal(batch.label, data.labels[number, row, column].long())
        assert torch.equal(batch.segments, (number * SIZE + row) * SIZE + column)
        assert torch.equal(batch.distance, data.squared_distances[number, row, column].float().sqrt())
        for label, distance in zip(batch.label, batch.distance, strict=True):
            squared = squared_boundary_distance(label.numpy())
            np.testing.assert_array_equal(distance.square().round(), squared)
            np.testing.assert_array_equal(distance.floor(), np.floor(np.sqrt(squared, dtype=float)))  # 7, not 6.99...


def test_batches_have_the_types_and_shapes_of_the_method():
    data = coded_set()
    batch, _ = epoch_of(data, seeded(), jitter_strength=0.5)[0]
    for view in (batch.image, batch.jittered):
        assert (view.shape, view.dtype) == ((4, 3, SIZE, SIZE), torch.float32)
    for values, dtype in ((batch.label, torch.int64), (batch.distance, torch.float32), (batch.segments, torch.int64)):
        assert (values.shape, values.dtype) == ((4, SIZE, SIZE), dtype)
    assert batch.num_segments == data.num_segments
    assert not torch.equal(batch.image, batch.jittered)


def symmetry_of(coded):
    """A name for how a coded image (C,S,S) was moved: where its first three corners came from."""
    corners = coded[:2, [0, 0, -1], [0, -1, 0]].round().int()
    return tuple(corners.flatten().tolist())


def test_all_eight_symmetries_occur_equally_often():
    data, generator = coded_set(count=64), seeded()
    images = [
        image for _ in range(10) for batch, _ in epoch_of(data, generator, batch_size=16) for image in batch.image
    ]
    sides = data.images[0], data.images[0].flip(-1)
    expected = {symmetry_of(torch.rot90(side, turns, (1, 2))) for side in sides for turns in range(4)}
    _, counts = np.unique([symmetry_of(image) for image in images], axis=0, return_counts=True)
    assert {symmetry_of(image) for image in images} == expected
    assert len(counts) == 8
    assert counts.sum() == 640
    assert 50 < counts.min() <= counts.max() < 110  # 80 +- 8.4 each


@pytest.mark.parametrize("shape", [(5, 5), (3, 5, 5), (2, 3, 6, 6)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_move_square_turns_and_flips_each_image_by_itself(shape, dtype):
    values = torch.randint(256, (16, *shape), generator=seeded()).to(dtype)
    symmetry = torch.randperm(16, generator=seeded(1)) % 8
    moved = move_square(values, symmetry)
    assert (moved.shape, moved.dtype) == (values.shape, dtype)
    for before, after, which in zip(values, moved, symmetry.tolist(), strict=True):
        expected = torch.rot90(before.flip(-1) if which >= 4 else before, which % 4, (-2, -1))
        assert torch.equal(after, expected)


@pytest.mark.parametrize(("count", "batch_size", "full"), [(10, 4, 2), (12, 4, 3), (4, 4, 1), (3, 4, 0), (5, 1, 5)])
def test_each_image_comes_at_most_once_an_epoch_and_the_rest_is_left_out(count, batch_size, full):
    drawn = epoch_of(coded_set(count), seeded(), batch_size)
    assert [len(names) for _, names in drawn] == [batch_size] * full
    assert len(set(names_of(drawn))) == full * batch_size


def test_epochs_differ_and_a_generator_of_the_same_seed_repeats_them():
    data = coded_set()
    first, second = seeded(3), seeded(3)
    epochs = [epoch_of(data, first, jitter_strength=0.5) for _ in range(2)]
    for epoch in epochs:
        for (batch, names), (again, names_again) in zip(
            epoch, epoch_of(data, second, jitter_strength=0.5), strict=True
        ):
            assert names == names_again
            assert all(torch.equal(a, b) for a, b in zip(batch[:5], again[:5], strict=True))
    orders = [names_of(epoch) for epoch in (*epochs, epoch_of(data, seeded(4)))]
    assert orders[0] != orders[1] and orders[0] != orders[2]
    # An image that comes in both epochs is jittered anew.
    views = [chain.from_iterable(batch.jittered for batch, _ in epoch) for epoch in epochs]
    views = [dict(zip(names_of(epoch), view, strict=True)) for epoch, view in zip(epochs, views, strict=True)]
    assert not any(torch.equal(views[0][name], views[1][name]) for name in views[0].keys() & views[1].keys())


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    epoch_of(coded_set(), seeded(), jitter_strength=0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_views_are_normalised():
    intensity = Intensity((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    raw, _ = epoch_of(coded_set(), seeded(), jitter_strength=0.5)[0]
    normalised, _ = epoch_of(coded_set(), seeded(), jitter_strength=0.5, intensity=intensity)[0]
    for before, after in zip(raw[:2], normalised[:2], strict=True):
        for channel in range(3):
            expected = (before[:, channel] / 255 - intensity.mean[channel]) / intensity.std[channel]
            torch.testing.assert_close(after[:, channel], expected, rtol=1e-4, atol=1e-5)


# --- Colour jitter ----------------------------------------------------------------------------------------------------


def random_images(count, channels=3, size=12):
    """Noise in [0, 1] with pixels of every special colour: black, white, grey, pure and doubled channels."""
    images = torch.rand(count, channels, size, size, generator=seeded())
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 0, 2] = 0, 1, 0.4
    for channel in range(channels):
        images[:, :, 1, channel] = 0
        images[:, channel, 1, channel] = 1
        images[:, :, 2, channel] = 1
        images[:, channel, 2, channel] = 0.3
    return images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", [0.0, 0.2, 0.6, 1.0, 1.4, 1.8]),
        ("contrast", [0.0, 0.2, 0.6, 1.0, 1.4, 1.8]),
        ("saturation", [0.0, 0.2, 0.6, 1.0, 1.4, 1.8]),
        ("hue", [-0.5, -0.2, -0.03, 0.0, 0.1, 0.2, 0.34, 0.5]),
    ],
)
def test_each_step_equals_torchvisions(channels, name, factors):
    images = random_images(len(factors), channels)
    adjusted = getattr(batches, f"adjust_{name}")(images, torch.tensor(factors).view(-1, 1, 1, 1))
    torchvisions = getattr(TF, f"adjust_{name}")
    expected = torch.stack([torchvisions(image, factor) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(adjusted, expected, rtol=0, atol=1e-5)
    assert torch.equal(adjusted, images) == (channels == 1 and name in ("saturation", "hue"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.01, 0.05, 0.5, 1.0])
def test_jittered_images_stay_in_range(channels, strength):
    images = random_images(64, channels)
    jittered = color_jitter(images, strength, seeded())
    assert jittered.shape == images.shape
    assert jittered.min() >= 0
    assert jittered.max() <= 1
    assert not torch.equal(jittered, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_0_changes_nothing(channels):
    images = random_images(8, channels)
    for seed in range(8):  # of several orders of the steps
        torch.testing.assert_close(color_jitter(images, 0.0, seeded(seed)), images, rtol=0, atol=1e-5)


def test_every_image_has_factors_of_its_own():
    jittered = color_jitter(random_images(1).expand(16, -1, -1, -1), 0.5, seeded())
    assert len({tuple(image.flatten().tolist()) for image in jittered}) == 16


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_factors_and_order_are_those_of_torchvisions_color_jitter(strength, monkeypatch):
    """Factors uniform in 1 +- 0.8s three times and +- 0.2s for the hue; the four steps in any order."""
    factors, orders = {}, set()
    names = ("brightness", "contrast", "saturation", "hue")

    def record(name):
        def step(images, factor):
            factors.setdefault(name, []).append(factor.flatten())
            order.append(name)
            return images

        return step

    for name in names:
        monkeypatch.setattr(batches, f"adjust_{name}", record(name))
    generator = seeded()
    for _ in range(200):
        order = []
        color_jitter(torch.rand(20, 3, 1, 1), strength, generator)
        assert sorted(order) == sorted(names)
        orders.add(tuple(order))
    assert len(orders) == 24
    for name, half, middle in zip(names, (0.8, 0.8, 0.8, 0.2), (1, 1, 1, 0), strict=True):
        share = (torch.cat(factors[name]) - middle) / (half * strength)  # uniform in -1..1
        quantiles = share.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        torch.testing.assert_close(quantiles, torch.tensor([-1, -0.5, 0, 0.5, 1]), rtol=0, atol=0.06)
        assert share.abs().max() <= 1 + 1e-5


# --- Intensities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_intensity_equals_numpys_mean_and_standard_deviation(channels):
    images = torch.randint(256, (5, channels, 7, 9), dtype=torch.uint8, generator=seeded())
    images[:, -1] = images[:, -1] // 3 + 10
    intensity = Intensity.of(images)
    unit = images.double().numpy() / 255
    assert intensity.mean == pytest.approx(unit.mean(axis=(0, 2, 3)))
    assert intensity.std == pytest.approx(unit.std(axis=(0, 2, 3)))
    normalised = intensity.normalise(to_unit(images))
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(channels), rtol=0, atol=1e-5)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3), correction=0), torch.ones(channels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_channel_becomes_0(value):
    images = torch.full((4, 2, 5, 5), value, dtype=torch.uint8)
    images[:, 1, 0] = 9
    intensity = Intensity.of(images)
    normalised = intensity.normalise(to_unit(images))
    assert intensity.std[0] == 1
    assert normalised[:, 0].abs().max() < 1e-6
    assert normalised[:, 1].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_raw_intensities_run_from_0_to_255():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    inputs = Intensity.raw(3).normalise(to_unit(images))
    torch.testing.assert_close(inputs, images.float(), rtol=1e-6, atol=0)
