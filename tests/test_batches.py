"""Training batches: what moves with the image, what is drawn, and the colour jitter against torchvision's."""

import hashlib
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from dataloaders import augment
from dataloaders.augment import color_jitter, move_square, noise_half, rotate, rotate_half
from dataloaders.batches import training_batches
from dataloaders.training_set import TrainingSet
from utils.engine.intensity import Intensity, to_unit
from utils.masks.geometry import squared_boundary_distance

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


def epoch_of(data, generator, batch_size=4, jitter_strength=0.0, intensity=None, **augmentation):
    intensity = intensity or Intensity.raw(data.images.shape[1])
    device = torch.device("cpu")
    return list(training_batches(data, batch_size, jitter_strength, intensity, generator, device, **augmentation))


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


# --- Rotation ---------------------------------------------------------------------------------------------------------


def discs(count, size=48, seed=0):
    """A bright disc off the centre of each image, as (count,3,size,size), and its label (count,size,size)."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(size * 0.38, size * 0.62, (2, count, 1, 1))
    y, x = np.mgrid[:size, :size]
    label = (y - centres[0]) ** 2 + (x - centres[1]) ** 2 < (size * 0.15) ** 2
    images = torch.tensor(np.where(label, 220, 20), dtype=torch.uint8)[:, None].repeat(1, 3, 1, 1)
    return images, torch.tensor(label, dtype=torch.uint8)


def disc_set(count=8, size=48):
    images, labels = discs(count, size)
    return TrainingSet(
        names=tuple(f"case{i}" for i in range(count)),
        images=images,
        labels=labels,
        squared_distances=torch.tensor(np.stack([squared_boundary_distance(label) for label in labels.numpy()])),
        segments=torch.arange(count * size * size, dtype=torch.int32).view(count, size, size),
        num_segments=count * size * size,
    )


def centroids(weights):
    """Centre of mass of each (B,S,S), as (B,2): row and column from the image's centre."""
    place = torch.arange(weights.shape[-1], dtype=torch.float64) - (weights.shape[-1] - 1) / 2
    weights = weights.double()
    total = weights.sum(dim=(1, 2))
    return torch.stack([weights.sum(2) @ place / total, weights.sum(1) @ place / total], dim=1)


@pytest.mark.parametrize("size", [5, 32, 37])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("turns", [-2, -1, 0, 1, 2])
def test_a_rotation_by_quarter_turns_is_exact(size, mode, turns):
    ids = torch.randint(2**31 - 1, (3, 2, size, size), generator=seeded(), dtype=torch.int32)
    for values in (ids, (ids % 256).to(torch.uint8)):
        rotated = rotate(values, torch.full((3,), 90.0 * turns), mode)
        assert rotated.dtype == values.dtype
        assert torch.equal(rotated, torch.rot90(values, turns, (-2, -1)))


def test_each_image_is_rotated_by_its_own_angle():
    _, labels = discs(16, 65)
    angles = torch.linspace(-180, 180, 16)
    rotated = rotate(labels[:, None], angles, "nearest")[:, 0]
    radians = angles.double().deg2rad()
    row, column = centroids(labels).unbind(1)
    # Anticlockwise with rows running down: a point right of the centre goes up.
    expected = torch.stack(
        [row * radians.cos() - column * radians.sin(), row * radians.sin() + column * radians.cos()], dim=1
    )
    torch.testing.assert_close(centroids(rotated), expected, rtol=0, atol=0.15)


def test_bilinear_is_between_neighbours_and_keeps_constants():
    constant = torch.full((7, 1, 9, 9), 201, dtype=torch.uint8)
    assert torch.equal(rotate(constant, torch.linspace(-20, 20, 7), "bilinear"), constant)
    ramp = (torch.arange(41) * 5).to(torch.uint8).expand(1, 1, 41, 41)
    rotated = rotate(ramp, torch.tensor([15.0]), "bilinear")[0, 0, 10:31, 10:31].double()
    place = torch.arange(-10, 11, dtype=torch.float64)
    angle = torch.tensor(15.0).double().deg2rad()
    expected = 100 + 5 * (place[None] * angle.cos() - place[:, None] * angle.sin())
    assert (rotated - expected).abs().max() <= 0.5 + 1e-9


def test_no_border_appears():
    """What comes in from outside is the image's mirror image: values of the image, no black corner."""
    image = torch.randint(100, 256, (4, 1, 24, 24), generator=seeded()).to(torch.uint8)
    angles = torch.tensor([-20.0, -7, 11, 20])
    for steepest in (-45.0, 45.0):  # at which corners lie furthest outside
        assert rotate(image, torch.full((4,), steepest), "bilinear").min() >= 100
    assert rotate(image, angles, "bilinear").min() >= 100
    halves = torch.full((4, 1, 24, 24), 50, dtype=torch.uint8)
    halves[..., 12:] = 200
    corners = rotate(halves, angles, "nearest")[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, torch.tensor([50, 200, 50, 200], dtype=torch.uint8).expand(4, 1, 4))


def test_ids_do_not_mix():
    ids = torch.randint(2**30, 2**31 - 1, (6, 1, 32, 32), generator=seeded(), dtype=torch.int32)
    rotated = rotate(ids, torch.linspace(-20, 20, 6), "nearest")
    for before, after in zip(ids, rotated, strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    assert not torch.equal(ids, rotated)


def test_half_of_the_images_are_rotated_together_with_their_label_and_segments():
    images, labels = discs(64)
    segments = torch.arange(labels.numel(), dtype=torch.int32).view_as(labels)
    squared = torch.full_like(labels, 55)  # no distance of any label: tells which ones were taken anew
    parts = (images, labels, squared, segments)
    kept = [part.clone() for part in parts]
    new_images, new_labels, new_squared, new_segments = rotate_half(*parts, max_rotation=20.0, generator=seeded())
    assert all(torch.equal(part, copy) for part, copy in zip(parts, kept, strict=True))  # a pure function
    rotated = (new_squared != 55).any(dim=(1, 2))  # by a small angle, no id need change
    assert 20 < rotated.sum() < 44  # 32 +- 4
    for index in range(64):
        if rotated[index]:
            np.testing.assert_array_equal(new_squared[index], squared_boundary_distance(new_labels[index].numpy()))
        else:
            news = (new_images, new_labels, new_squared, new_segments)
            assert all(torch.equal(new[index], old[index]) for new, old in zip(news, parts, strict=True))
    # Label and segments have taken the same way: each id tells where its pixel was, and the label is the one there.
    assert torch.equal(new_labels, labels.flatten()[new_segments.long()])
    np.testing.assert_allclose(centroids(new_images[:, 0] - 20), centroids(new_labels), atol=0.25)
    assert (centroids(new_labels) - centroids(labels))[rotated].norm(dim=1).max() > 1


def test_angles_are_uniform_within_the_range(monkeypatch):
    seen = []
    monkeypatch.setattr(augment, "rotate", lambda values, angles, mode: seen.append(angles) or values)
    parts = [torch.zeros(40, *shape, dtype=torch.uint8) for shape in ((1, 2, 2), (2, 2), (2, 2), (2, 2))]
    generator = seeded()
    for _ in range(50):
        rotate_half(*parts, max_rotation=20.0, generator=generator)
    angles = torch.cat(seen[::2])  # of labels and segments together, then of images
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert abs(len(angles) / 2000 - 0.5) < 0.05
    quantiles = angles.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(quantiles, torch.tensor([-20.0, -10, 0, 10, 20]), rtol=0, atol=1.5)
    assert angles.abs().max() <= 20


def test_a_batch_of_which_no_image_is_rotated():
    parts = [part[:1] for part in (*discs(1), torch.zeros(1, 48, 48, dtype=torch.uint8), torch.zeros(1, 48, 48))]
    changed = [
        not all(torch.equal(a, b) for a, b in zip(rotated, parts, strict=True))
        for rotated in (rotate_half(*parts, max_rotation=20.0, generator=seeded(seed)) for seed in range(20))
    ]
    assert 4 < sum(changed) < 16


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_given_labels_move_with_the_corrected_ones(angle):
    data = disc_set(8)
    data = replace(data, given=data.labels)
    for batch, _ in epoch_of(data, seeded(1), 4, max_rotation=angle):
        assert torch.equal(batch.given, batch.label.byte())
    assert next(iter(epoch_of(disc_set(8), seeded(1), 4)))[0].given is None


def test_rotated_batches_stay_aligned_through_turns_flips_and_both_views():
    data = disc_set(32)
    plain, moved = (epoch_of(data, seeded(1), 8, max_rotation=angle) for angle in (0.0, 20.0))
    rotations = 0
    for batch, names in moved:
        number = torch.tensor([data.names.index(name) for name in names])
        assert torch.equal(batch.label, data.labels.flatten()[batch.segments].long())
        assert torch.equal(batch.segments // data.labels[0].numel(), number[:, None, None].expand_as(batch.segments))
        for label, distance in zip(batch.label, batch.distance, strict=True):
            np.testing.assert_array_equal(distance.square().round(), squared_boundary_distance(label.numpy()))
        for view in (batch.image, batch.jittered):
            np.testing.assert_allclose(centroids(view[:, 0] - 20), centroids(batch.label), atol=0.25)
        # A quarter turn or a flip leaves a one-to-one map; a rotation repeats some ids and loses others.
        rotations += sum(len(ids.unique()) < ids.numel() for ids in batch.segments)
    assert 8 < rotations < 24
    assert not any(len(ids.unique()) < ids.numel() for batch, _ in plain for ids in batch.segments)


# --- Noise ------------------------------------------------------------------------------------------------------------


def test_noise_is_gaussian_cut_at_two_sigma_on_half_of_the_images():
    grey = torch.full((64, 3, 40, 40), 0.5)  # far from 0 and 1, so that nothing is clipped
    noise = noise_half(grey, 0.1, seeded()) - grey
    noisy = noise.flatten(1).any(dim=1)
    assert 20 < noisy.sum() < 44  # 32 +- 4
    assert torch.equal(noise[~noisy], torch.zeros_like(noise[~noisy]))
    values = noise[noisy].flatten().double()
    assert values.abs().max().item() == pytest.approx(0.2, abs=1e-6)
    assert (values.abs() > 0.2 - 1e-6).double().mean().item() == pytest.approx(0.0455, abs=0.003)  # 2 (1 - Phi(2))
    inner = values[values.abs() < 0.199] / 0.1
    assert inner.std().item() == pytest.approx(0.8796, abs=0.01)  # of a normal distribution within +-2
    for level, share in ((0.5, 0.3829), (1.0, 0.6827), (1.5, 0.8664)):  # 2 Phi(level) - 1
        assert (values.abs() < 0.1 * level).double().mean().item() == pytest.approx(share, abs=0.01)
    assert abs(values.mean().item()) < 0.001
    channels = noise[noisy].transpose(0, 1).flatten(1)
    assert torch.corrcoef(channels).fill_diagonal_(0).abs().max() < 0.02  # every pixel and channel by itself


def test_half_of_many_images_get_noise():
    grey = torch.full((10_000, 1, 2, 2), 0.5)
    noisy = (noise_half(grey, 0.1, seeded()) != grey).flatten(1).any(dim=1)
    assert noisy.float().mean().item() == pytest.approx(0.5, abs=0.02)  # four standard deviations


def test_noisy_images_stay_in_range():
    images = random_images(32)
    noisy = noise_half(images, 0.5, seeded())
    assert (noisy.min(), noisy.max()) == (0, 1)
    assert torch.equal(noise_half(images[:0], 0.5, seeded()), images[:0])


def test_both_views_see_the_same_noise():
    data = disc_set(16)
    noisy = 0
    for (batch, _), (plain, _) in zip(
        epoch_of(data, seeded(), 16, noise_sigma=0.1), epoch_of(data, seeded(), 16), strict=True
    ):
        torch.testing.assert_close(batch.jittered, batch.image, rtol=0, atol=1e-2)  # without jitter
        assert torch.equal(batch.label, plain.label) and torch.equal(batch.distance, plain.distance)
        noisy += (batch.image != plain.image).flatten(1).any(dim=1).sum()
    assert 3 < noisy < 13


def test_rotation_and_noise_are_independent_and_repeat_with_the_seed():
    data = disc_set(32)
    first, again, other = (
        epoch_of(data, seeded(seed), 32, jitter_strength=0.01, max_rotation=20.0, noise_sigma=0.1) for seed in (2, 2, 3)
    )
    assert all(torch.equal(a, b) for a, b in zip(first[0][0][:5], again[0][0][:5], strict=True))
    assert not torch.equal(first[0][0].image, other[0][0].image)
    batch = first[0][0]
    rotated = torch.tensor([len(ids.unique()) < ids.numel() for ids in batch.segments])
    noisy = torch.tensor([len(image.unique()) > 600 for image in batch.image])
    assert all((rotated == r).logical_and(noisy == n).any() for r in (True, False) for n in (True, False))


def test_without_rotation_and_noise_batches_are_those_of_before():
    """The draws of the other datasets must not move: figures would change from one version to the next."""
    generator, digest = seeded(5), hashlib.sha256()
    for batch, names in epoch_of(coded_set(), generator, jitter_strength=0.5):
        digest.update(" ".join(names).encode())
        for values in (batch.image, batch.label, batch.distance.square(), batch.segments):
            digest.update(values.round().to(torch.int32).numpy().tobytes())
    digest.update(generator.get_state().numpy().tobytes())
    assert digest.hexdigest() == "3e1c1f13ccce68b3d5a19f0f835ff87ffa373304d4efeb548271900a3bef3c18"


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
        def step(image, factor):
            factors.setdefault(name, []).append(factor)
            order.append(name)
            return image

        return step

    for name in names:
        monkeypatch.setattr(TF, f"adjust_{name}", record(name))
    generator = seeded()
    for _ in range(200):
        order = []
        color_jitter(torch.rand(20, 3, 1, 1), strength, generator)
        assert order[::20] == order[19::20] and sorted(order[::20]) == sorted(names)
        orders.add(tuple(order[::20]))
    assert len(orders) == 24
    for name, half, middle in zip(names, (0.8, 0.8, 0.8, 0.2), (1, 1, 1, 0), strict=True):
        share = (torch.tensor(factors[name]) - middle) / (half * strength)  # uniform in -1..1
        quantiles = share.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
        torch.testing.assert_close(quantiles, torch.tensor([-1, -0.5, 0, 0.5, 1]), rtol=0, atol=0.06)
        assert share.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_that_are_no_colours_are_jittered_alike(channels):
    """Brightness and contrast are those of a grey image that has all pixels of all channels; there is no hue."""
    images = random_images(4, channels)
    as_grey = images.flatten(1, 2).unsqueeze(1)
    assert torch.equal(color_jitter(images, 0.5, seeded()).flatten(), color_jitter(as_grey, 0.5, seeded()).flatten())
    grey = torch.full((4, channels, 3, 3), 0.5)
    assert all(image.unique().numel() == 1 for image in color_jitter(grey, 0.5, seeded()))


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
    assert Intensity.chosen("raw", images) == Intensity.raw(3)
    assert Intensity.chosen("normalised", images) == Intensity.of(images) != Intensity.raw(3)
