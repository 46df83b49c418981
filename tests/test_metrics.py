"""Scores against brute force on small masks, and the rule for empty masks."""

import importlib
import math
import warnings
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from utils.engine import metrics
from utils.engine.metrics import (
    case_scores,
    energy_distance,
    majority_vote,
    overlap_scores,
    soft_dice_score,
    surface_scores,
)

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


# --- One case against several raters ----------------------------------------------------------------------------------


def pixels_of(classes, k):
    return set(map(tuple, np.argwhere(np.asarray(classes) == k).tolist()))


def over_classes(score, a, b, classes):
    """The mean over the foreground classes of a score of two sets of pixels."""
    return np.mean([score(pixels_of(a, k), pixels_of(b, k)) for k in range(1, classes)])


def dice_of(a, b):
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def iou_of(a, b):
    return len(a & b) / len(a | b) if a or b else 1.0


def expected_majority(masks, classes):
    result = np.zeros(masks.shape[1:], int)
    for index in np.ndindex(result.shape):
        votes = Counter(int(mask[index]) for mask in masks)
        result[index] = max(range(classes), key=lambda k: (votes[k], k))
    return result


def expected_soft_dice(prediction, masks, classes):
    scores = []
    for k in range(1, classes):
        shared = total = 0.0
        for index in np.ndindex(tuple(prediction.shape)):
            s, m = float(prediction[index] == k), np.mean([float(mask[index] == k) for mask in masks])
            shared, total = shared + s * m, total + s + m
        scores.append(2 * shared / total if total else 1.0)
    return np.mean(scores)


def expected_ged(prediction, masks, classes):
    def distance(a, b):
        return 1 - over_classes(iou_of, a, b, classes)

    to_raters = np.mean([distance(prediction, mask) for mask in masks])
    return 2 * to_raters - np.mean([distance(a, b) for a, b in product(masks, masks)])


def expected_case(prediction, masks, classes):
    """All scores of a case, with surfaces, from sets of pixels and `brute_force`."""
    prediction, masks = np.asarray(prediction), np.asarray(masks)
    dice = [over_classes(dice_of, prediction, mask, classes) for mask in masks]
    result = {
        "dice": np.mean(dice),
        "iou": np.mean([over_classes(iou_of, prediction, mask, classes) for mask in masks]),
    }
    if len(masks) > 1:
        result |= {f"dice_rater{r + 1}": dice[r] for r in range(len(masks))}
        result["dice_majority"] = over_classes(dice_of, prediction, expected_majority(masks, classes), classes)
        result["soft_dice"] = expected_soft_dice(prediction, masks, classes)
        result["ged"] = expected_ged(prediction, masks, classes)
    hd95, assd, nsd = [], [], []
    empties = Counter()
    for mask in masks:
        for k in range(1, classes):
            of_volume = []
            for p, m in zip(prediction == k, mask == k, strict=True):
                scores, empty = brute_force(p, m), (not p.any()) + (not m.any())
                empties[empty] += 1
                if empty == 0:
                    hd95.append(scores["hd95"])
                    assd.append(scores["assd"])
                if empty < 2:
                    of_volume.append(scores["nsd"])
            nsd.append(np.mean(of_volume) if of_volume else 1.0)
    result |= {name: np.mean(v) if v else math.nan for name, v in (("hd95", hd95), ("assd", assd))}
    return result | {
        "nsd": np.mean(nsd),
        "pairs": empties.total(),
        "one_empty": empties[1],
        "both_empty": empties[2],
    }


def assert_case(prediction, masks, classes=2):
    """`case_scores` with surfaces, compared with the reference: values, order of the keys, types; without them too."""
    scores, expected = case_scores(prediction, masks, classes, surfaces=True), expected_case(prediction, masks, classes)
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-5, nan_ok=True)
    counts = ("pairs", "one_empty", "both_empty")
    assert all(type(value) is (int if name in counts else float) for name, value in scores.items())
    without = case_scores(prediction, masks, classes)
    surfaces = ("hd95", "assd", "nsd", *counts)
    assert list(without.items()) == [item for item in scores.items() if item[0] not in surfaces]
    return scores


def random_case(shape, classes, raters, seed):
    """A prediction and raters, uint8, that resemble each other: smooth random fields, in part the same."""
    rng = np.random.default_rng(seed)
    common = [gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)]
    drawn = [
        np.argmax([c + gaussian_filter(rng.normal(size=shape), 2) for c in common], axis=0) for _ in range(raters + 1)
    ]
    drawn = torch.tensor(np.stack(drawn), dtype=torch.uint8)
    return drawn[0], drawn[1:]


@pytest.mark.parametrize("raters", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(1, 14, 12), (4, 9, 11)])
def test_case_scores_equal_the_reference(shape, classes, raters):
    prediction, masks = random_case(shape, classes, raters, seed=raters)
    scores = assert_case(prediction, masks, classes)
    assert all(0 < value < 1 for name, value in scores.items() if name.startswith(("dice", "iou", "soft", "nsd")))
    if shape[0] > 1:
        prediction[0], prediction[1], masks[:, 0], masks[0, 2] = 0, 0, 0, 0
        scores = assert_case(prediction, masks, classes)
        assert scores["both_empty"] >= raters * (classes - 1) and scores["one_empty"] > 0


@pytest.mark.parametrize("raters", [1, 2, 4, 5])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(13, 11), (3, 7, 8)])
def test_building_blocks_equal_the_reference(shape, classes, raters):
    prediction, masks = random_case(shape, classes, raters, seed=raters)
    majority = majority_vote(masks, classes)
    assert majority.dtype == masks.dtype and np.array_equal(majority, expected_majority(masks.numpy(), classes))
    for score, expected in ((soft_dice_score, expected_soft_dice), (energy_distance, expected_ged)):
        value = score(prediction, masks, classes)
        assert value.shape == ()
        assert value.item() == pytest.approx(expected(prediction.numpy(), masks.numpy(), classes), abs=1e-6)


@pytest.mark.parametrize("raters", [1, 2])
@pytest.mark.parametrize("slices", [1, 3])
def test_cases_of_empty_and_full_masks(slices, raters):
    """Every combination of empty, full and blob; in the volumes the slices after the first are empty in all masks."""
    for kinds in product(("empty", "full", "blob"), repeat=raters + 1):
        drawn = torch.zeros(raters + 1, slices, 12, 14, dtype=torch.uint8)
        drawn[:, 0] = torch.stack([masks_of(kind) for kind in kinds])
        scores = assert_case(drawn[0], drawn[1:])
        defined = scores["pairs"] - scores["one_empty"] - scores["both_empty"]
        assert defined == (0 if kinds[0] == "empty" else raters - kinds[1:].count("empty"))
        assert math.isnan(scores["hd95"]) == math.isnan(scores["assd"]) == (defined == 0)
        assert not any(math.isnan(value) for name, value in scores.items() if name not in ("hd95", "assd"))
        if set(kinds) == {"empty"}:
            assert all(v == 1 for name, v in scores.items() if name.startswith(("dice", "iou", "soft", "nsd")))
            assert scores.get("ged", 0) == 0


def test_half_of_the_raters_see_nothing():
    """An empty prediction agrees with the rater who marked nothing and misses all of the other."""
    masks = torch.stack([torch.zeros(30, 30, dtype=torch.long), square(2, 2)])[:, None]
    scores = assert_case(torch.zeros(1, 30, 30, dtype=torch.long), masks)
    assert [scores[name] for name in ("dice", "iou", "nsd", "dice_rater1", "dice_rater2")] == [0.5, 0.5, 0.5, 1, 0]
    # One vote of two is enough for the majority; GED: 2 * (0 + 1) / 2 - (0 + 1 + 1 + 0) / 4.
    assert [scores[name] for name in ("dice_majority", "soft_dice", "ged")] == [0, 0, 0.5]
    assert [scores[name] for name in ("pairs", "one_empty", "both_empty")] == [2, 1, 1]


def test_dice_is_of_the_volume_and_not_the_mean_over_slices():
    """36 pixels found on the first slice, the 4 of the second missed: 2 * 36 / (36 + 40), where the slices mean 0.5."""
    mask = torch.stack([square(2, 2), square(2, 2, side=2)])
    prediction = torch.stack([square(2, 2), torch.zeros_like(mask[1])])
    scores = assert_case(prediction, mask[None])
    assert scores["dice"] == pytest.approx(72 / 76) and scores["iou"] == pytest.approx(36 / 40)
    assert overlap_scores(prediction, mask, 2)["dice"].mean().item() == 0.5


def test_empty_slices_change_nothing_but_their_count():
    prediction, masks = random_case((2, 14, 12), 2, 3, seed=1)
    scores = assert_case(prediction, masks)
    empty = torch.zeros(20, 14, 12, dtype=torch.uint8)
    longer = assert_case(torch.cat([prediction, empty]), torch.cat([masks, empty.expand(3, -1, -1, -1)], dim=1))
    assert longer.pop("pairs") == scores.pop("pairs") + 60 and longer.pop("both_empty") == 60 + scores.pop("both_empty")
    assert longer == pytest.approx(scores, abs=1e-6) and 0 < scores["nsd"] < 1


@pytest.mark.parametrize(
    ("votes", "classes", "expected"),
    [
        ((0, 0, 1, 1), 2, 1),
        ((0, 0, 0, 1), 2, 0),
        ((1, 0, 0), 2, 0),
        ((0, 1), 2, 1),
        ((1, 2), 3, 2),
        ((2, 1), 3, 2),
        ((0, 0, 1, 2), 3, 0),
        ((0, 1, 1, 2), 3, 1),
        ((0, 0, 1, 1, 2), 3, 1),
    ],
)
def test_ties_of_the_majority_go_to_the_highest_class(votes, classes, expected):
    assert majority_vote(torch.tensor(votes)[:, None], classes).tolist() == [expected]


def every_mask(size=4):
    return torch.tensor(list(product((0, 1), repeat=size)))


def test_no_prediction_is_perfect_where_raters_disagree():
    """All predictions on four pixels; soft Dice reaches 1 and GED 0 if and only if all raters agree with them."""
    masks = every_mask(3)
    for prediction, *raters in product(masks, masks, masks):
        raters = torch.stack(raters)
        soft, ged = soft_dice_score(prediction, raters, 2).item(), energy_distance(prediction, raters, 2).item()
        perfect = bool((raters == prediction).all())
        assert 0 <= soft <= 1 and (soft > 1 - 1e-6) == perfect
        assert -1e-6 <= ged <= 2 and (ged < 1e-6) == perfect


def test_energy_distance_by_hand():
    a, b = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 1, 0])  # IoU 1/3
    both = torch.stack([a, b])
    assert energy_distance(a, both, 2).item() == pytest.approx(2 * (0 + 2 / 3) / 2 - 2 * (2 / 3) / 4)
    assert energy_distance(torch.tensor([0, 0, 0, 1]), both, 2).item() == pytest.approx(2 - 1 / 3)
    assert energy_distance(a, torch.stack([1 - a] * 4), 2).item() == 2  # one other mask, four times
    assert energy_distance(a, torch.stack([a] * 4), 2).item() == 0


@pytest.mark.parametrize("dims", [(-1,), (-2,), (-3,), (-1, -2)])
def test_case_scores_do_not_change_with_flips(dims):
    prediction, masks = random_case((3, 9, 10), 3, 2, seed=0)
    scores = case_scores(prediction, masks, 3, surfaces=True)
    assert case_scores(prediction.flip(dims), masks.flip(dims), 3, surfaces=True) == pytest.approx(scores, abs=1e-6)


def test_the_order_of_raters_changes_their_own_dice_alone():
    prediction, masks = random_case((2, 14, 12), 3, 4, seed=0)
    scores, order = case_scores(prediction, masks, 3, surfaces=True), [2, 0, 3, 1]
    expected = scores | {f"dice_rater{i + 1}": scores[f"dice_rater{r + 1}"] for i, r in enumerate(order)}
    assert len({scores[f"dice_rater{r}"] for r in range(1, 5)}) == 4
    assert case_scores(prediction, masks[order], 3, surfaces=True) == pytest.approx(expected, abs=1e-6)


def test_a_better_prediction_scores_better():
    """Raters scattered about one place; the prediction moves away from it."""
    masks = torch.stack([square(10, 10), square(10, 11), square(11, 10), square(9, 10)])[:, None]
    cases = [case_scores(square(10, 10 + shift)[None], masks, 2, surfaces=True) for shift in (0, 2, 4, 5)]
    for better, worse in pairwise(cases):
        assert all(better[name] > worse[name] for name in ("dice", "iou", "dice_majority", "soft_dice", "nsd"))
        assert all(better[name] < worse[name] for name in ("ged", "hd95", "assd"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 1), (3, 6, 8)])
def test_shapes_that_differ_are_refused(shape):
    """Also those that would broadcast."""
    masks = torch.ones(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="same shapes"):
        case_scores(torch.ones(shape, dtype=torch.uint8), masks, 2)
