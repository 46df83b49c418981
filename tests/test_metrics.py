"""Scores against brute force on small masks, and the rule for empty masks."""

import importlib
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from utils import metrics
from utils.metrics import overlap_scores, surface_scores

# The module silences MONAI's warning for the programs that import it; pytest sets its own filters for each test.
pytestmark = pytest.mark.filterwarnings("error", "ignore:.*always_return_as_numpy.*:FutureWarning")

SCORES = ("dice", "iou", "hd95", "assd", "nsd")


def blobs(shape, classes, seed, count=3):
    """Smooth random classes, (count,*shape) int64."""
    rng = np.random.default_rng(seed)
    return torch.tensor(
        np.stack(
            [np.argmax([gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)], 0) for _ in range(count)]
        )
    )


def edge(mask):
    """Coordinates of the foreground pixels with a neighbour, sharing a side, that is background or out of the image."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inner)


def brute_force(predicted, true):
    """The five scores of two binary masks."""
    if not (predicted.any() and true.any()):
        overlap = float(not predicted.any() and not true.any())
        return {"dice": overlap, "iou": overlap, "hd95": math.nan, "assd": math.nan, "nsd": overlap}
    both, either = (predicted & true).sum(), (predicted | true).sum()
    a, b = edge(predicted), edge(true)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    to_true, to_predicted = distances.min(axis=1), distances.min(axis=0)
    ways = np.concatenate([to_true, to_predicted])
    return {
        "dice": 2 * both / (predicted.sum() + true.sum()),
        "iou": both / either,
        "hd95": max(np.percentile(to_true, 95), np.percentile(to_predicted, 95)),
        "assd": ways.mean(),
        "nsd": (ways <= 2).mean(),
    }


def scores_of(prediction, mask, classes):
    scores = overlap_scores(prediction, mask, classes) | surface_scores(prediction, mask, classes)
    assert tuple(scores) == SCORES
    assert all(values.shape == (len(prediction),) and values.dtype == torch.float32 for values in scores.values())
    return {name: values.tolist() for name, values in scores.items()}


def expected_scores(prediction, mask, classes):
    """Of each image and score: the mean over the foreground classes in which it is defined."""
    result = {name: [] for name in SCORES}
    for p, m in zip(prediction.numpy(), mask.numpy(), strict=True):
        each = [brute_force(p == k, m == k) for k in range(1, classes)]
        for name in SCORES:
            defined = [scores[name] for scores in each if not math.isnan(scores[name])]
            result[name].append(np.mean(defined) if defined else math.nan)
    return result


def assert_scores(prediction, mask, classes):
    expected = expected_scores(prediction, mask, classes)
    for name, values in scores_of(prediction, mask, classes).items():
        assert values == pytest.approx(expected[name], abs=1e-5, nan_ok=True), name
    return expected


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(24, 20), (9, 10, 11)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_brute_force(classes, shape, seed):
    expected = assert_scores(blobs(shape, classes, seed), blobs(shape, classes, seed + 100), classes)
    assert all(0 < value < 1 for name in ("dice", "iou", "nsd") for value in expected[name])


def square(top, left, side=6, size=30):
    mask = torch.zeros(size, size, dtype=torch.long)
    mask[top : top + side, left : left + side] = 1
    return mask


@pytest.mark.parametrize("shift", [0, 1, 3, 20])
def test_scores_of_a_shifted_square(shift):
    """A 6x6 square moved by ``shift`` along one axis; overlap (6 - shift) * 6 of 36 pixels each."""
    scores = scores_of(square(2, 2)[None], square(2, 2 + shift)[None], 2)
    overlap = max(6 - shift, 0) / 6
    assert scores["dice"] == pytest.approx([overlap])
    assert scores["iou"] == pytest.approx([overlap / (2 - overlap)])
    # The farthest side, 6 of the 20 boundary pixels and more than 5 %, is ``shift`` from the other square.
    assert scores["hd95"] == pytest.approx([shift])
    # For 3, by hand: 6 * 3 + 2 * (2 + 1) from the sides that stick out, 1 + 2 + 2 + 1 from within, of 20 pixels.
    assert scores["assd"] == pytest.approx({0: [0], 1: [0.5], 3: [1.5], 20: [17.5]}[shift])
    assert scores["nsd"] == pytest.approx({0: [1], 1: [1], 3: [0.7], 20: [0]}[shift])


def test_hd95_leaves_out_the_farthest_twentieth():
    """A line of 40 pixels of which one strays by 9; a tenth of them by 9 would count."""
    line = torch.zeros(20, 40, dtype=torch.long)
    line[5] = 1
    for strays, expected in ((1, 0), (4, 9)):
        predicted = line.clone()
        predicted[5, :strays] = 0
        predicted[14, :strays] = 1
        hd95 = scores_of(predicted[None], line[None], 2)["hd95"][0]
        assert hd95 == pytest.approx(brute_force(predicted.numpy() == 1, line.numpy() == 1)["hd95"], abs=1e-5)
        assert hd95 == pytest.approx(expected, abs=0.2)


def masks_of(kind, shape=(12, 14)):
    if kind == "blob":
        return blobs(shape, 2, seed=0, count=1)[0]
    return torch.full(shape, int(kind == "full"))


@pytest.mark.parametrize("predicted", ["empty", "full", "blob"])
@pytest.mark.parametrize("true", ["empty", "full", "blob"])
def test_empty_and_full_masks(predicted, true):
    prediction, mask = masks_of(predicted)[None], masks_of(true)[None]
    expected = assert_scores(prediction, mask, 2)
    empties = (predicted, true).count("empty")
    assert math.isnan(expected["hd95"][0]) == math.isnan(expected["assd"][0]) == (empties > 0)
    if empties:
        assert [expected[name] for name in ("dice", "iou", "nsd")] == [[float(empties == 2)]] * 3


def test_images_of_one_call_do_not_mix():
    """Every combination of empty, full and blob at once, as each by itself."""
    kinds = [masks_of(kind) for kind in ("empty", "full", "blob")]
    pairs = [(p, m) for p in kinds for m in kinds]
    assert_scores(torch.stack([p for p, _ in pairs]), torch.stack([m for _, m in pairs]), 2)


def test_three_classes_average_over_the_foreground():
    """Class 1 right and class 2 missed: overlaps are means with 0, distances those of class 1 alone."""
    mask = square(2, 2) + 2 * square(20, 20)
    prediction = square(2, 2)
    scores = scores_of(prediction[None], mask[None], 3)
    assert scores == {"dice": [0.5], "iou": [0.5], "hd95": [0.0], "assd": [0.0], "nsd": [0.5]}
    assert_scores(prediction[None], mask[None], 3)


def test_three_classes_of_background_alone():
    empty = torch.zeros(2, 12, 14, dtype=torch.long)
    assert_scores(empty, empty, 3)
    scores = scores_of(empty, empty, 3)
    assert [scores[name] for name in ("dice", "iou", "nsd")] == [[1.0, 1.0]] * 3
    assert all(math.isnan(value) for name in ("hd95", "assd") for value in scores[name])


def test_classes_may_be_stored_in_uint8():
    prediction, mask = blobs((12, 14), 3, seed=0), blobs((12, 14), 3, seed=1)
    assert scores_of(prediction.to(torch.uint8), mask.to(torch.uint8), 3) == scores_of(prediction, mask, 3)


def test_scores_warn_of_nothing():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.reload(metrics)  # sets its filter, as a program that imports it
        for prediction in ("empty", "full", "blob"):
            for mask in ("empty", "full", "blob"):
                metrics.overlap_scores(masks_of(prediction)[None], masks_of(mask)[None], 2)
                metrics.surface_scores(masks_of(prediction)[None], masks_of(mask)[None], 2)
    assert [str(warning.message) for warning in seen] == []
