"""Scores of single cases against brute force on small masks."""

import importlib
import math
import warnings
from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from utils.engine import metrics
from utils.engine.metrics import case_scores, energy_distance, majority_vote, surface_scores

# The module silences MONAI's warning for the programs that import it; pytest sets its own filters for each test.
pytestmark = pytest.mark.filterwarnings("error", "ignore:.*always_return_as_numpy.*:FutureWarning")

SCORES = ("dice", "iou", "hd95", "assd", "nsd")


def blobs(shape, classes, seed, count=3):
    """Smooth random classes, (count,*shape) uint8."""
    rng = np.random.default_rng(seed)
    drawn = [np.argmax([gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)], 0) for _ in range(count)]
    return np.stack(drawn).astype(np.uint8)


def edge(mask):
    """Coordinates of the foreground pixels with a neighbour, sharing a side, that is background or out of the image."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inner)


def brute_force(predicted, true):
    """The five scores of two binary masks; NaN where the true one is empty, the worst where the predicted one is."""
    if not true.any():
        return dict.fromkeys(SCORES, math.nan)
    if not predicted.any():
        return dict.fromkeys(SCORES, 0.0) | dict.fromkeys(("hd95", "assd"), math.hypot(*true.shape[-2:]))
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
    """The five scores of one image (H,W)."""
    row = case_scores(prediction[None], mask[None, None], classes, surfaces=True)
    return {name: row[name] for name in SCORES}


def mean(values):
    kept = [value for value in values if not math.isnan(value)]
    return np.mean(kept) if kept else math.nan


def assert_scores(prediction, mask, classes):
    """Each image of (N,H,W) against brute force: the mean over the classes that the mask has."""
    for p, m in zip(prediction, mask, strict=True):
        each = [brute_force(p == k, m == k) for k in range(1, classes)]
        row = case_scores(p[None], m[None, None], classes, surfaces=True)
        for name in SCORES:
            found = [row[f"{name}_class{k}"] for k in range(1, classes)]
            assert [math.nan if value is None else value for value in (row[name], *found)] == pytest.approx(
                [mean([scores[name] for scores in each]), *(scores[name] for scores in each)], abs=1e-5, nan_ok=True
            ), name
        assert [row[f"predicted_pixels_class{k}"] for k in range(1, classes)] == [
            (p == k).sum() for k in range(1, classes)
        ]
        assert [row[f"reference_pixels_class{k}"] for k in range(1, classes)] == [
            (m == k).sum() for k in range(1, classes)
        ]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(24, 20), (17, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_brute_force(classes, shape, seed):
    assert_scores(blobs(shape, classes, seed), blobs(shape, classes, seed + 100), classes)


def square(top, left, side=6, size=30):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


@pytest.mark.parametrize("shift", [0, 1, 3, 20])
def test_scores_of_a_shifted_square(shift):
    """A 6x6 square moved by ``shift`` along one axis; overlap (6 - shift) * 6 of 36 pixels each."""
    scores = scores_of(square(2, 2), square(2, 2 + shift), 2)
    overlap = max(6 - shift, 0) / 6
    assert scores["dice"] == pytest.approx(overlap)
    assert scores["iou"] == pytest.approx(overlap / (2 - overlap))
    # The farthest side, 6 of the 20 boundary pixels and more than 5 %, is ``shift`` from the other square.
    assert scores["hd95"] == pytest.approx(shift)
    # For 3, by hand: 6 * 3 + 2 * (2 + 1) from the sides that stick out, 1 + 2 + 2 + 1 from within, of 20 pixels.
    assert scores["assd"] == pytest.approx({0: 0, 1: 0.5, 3: 1.5, 20: 17.5}[shift])
    assert scores["nsd"] == pytest.approx({0: 1, 1: 1, 3: 0.7, 20: 0}[shift])


def test_hd95_leaves_out_the_farthest_twentieth():
    """A line of 40 pixels of which one strays by 9; a tenth of them by 9 would count."""
    line = np.zeros((20, 40), np.uint8)
    line[5] = 1
    for strays, expected in ((1, 0), (4, 9)):
        predicted = line.copy()
        predicted[5, :strays] = 0
        predicted[14, :strays] = 1
        hd95 = scores_of(predicted, line, 2)["hd95"]
        assert hd95 == pytest.approx(brute_force(predicted == 1, line == 1)["hd95"], abs=1e-5)
        assert hd95 == pytest.approx(expected, abs=0.2)


def masks_of(kind, shape=(12, 14)):
    if kind == "blob":
        return blobs(shape, 2, seed=0, count=1)[0]
    return np.full(shape, int(kind == "full"), np.uint8)


@pytest.mark.parametrize("predicted", ["empty", "full", "blob"])
@pytest.mark.parametrize("true", ["empty", "full", "blob"])
def test_empty_and_full_masks(predicted, true):
    """Blank without a reference; 0 and the diagonal without a prediction."""
    prediction, mask = masks_of(predicted), masks_of(true)
    assert_scores(prediction[None], mask[None], 2)
    scores = scores_of(prediction, mask, 2)
    if true == "empty":
        assert set(scores.values()) == {None}
    elif predicted == "empty":
        diagonal = math.hypot(12, 14)
        assert scores == {"dice": 0, "iou": 0, "hd95": diagonal, "assd": diagonal, "nsd": 0}


def test_images_of_one_call_do_not_mix():
    """Surfaces of every combination of empty, full and blob at once, as each by itself."""
    kinds = [masks_of(kind) == 1 for kind in ("empty", "full", "blob")]
    one, other = (np.stack(masks) for masks in zip(*product(kinds, kinds), strict=True))
    together = surface_scores(one, other)
    for index in range(len(one)):
        alone = surface_scores(one[index : index + 1], other[index : index + 1])
        for name, values in alone.items():
            assert values[0] == pytest.approx(together[name][index], nan_ok=True)
    assert np.isnan(together["hd95"]).sum() == 1  # of two empty masks


def test_a_missed_class_costs_the_worst_value():
    """Class 1 right and class 2 missed: means with 0, and with the diagonal of 30 x 30."""
    mask = square(2, 2) + 2 * square(20, 20)
    half = math.hypot(30, 30) / 2
    expected = {"dice": 0.5, "iou": 0.5, "hd95": half, "assd": half, "nsd": 0.5}
    assert scores_of(square(2, 2), mask, 3) == pytest.approx(expected)


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_classes_may_be_stored_in_any_integers(kind):
    prediction, mask = blobs((12, 14), 3, seed=0)[0], blobs((12, 14), 3, seed=1)[0]
    assert scores_of(prediction.astype(kind), mask.astype(kind), 3) == scores_of(prediction, mask, 3)


def test_scores_warn_of_nothing():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.reload(metrics)  # sets its filter, as a program that imports it
        for prediction, mask in product(("empty", "full", "blob"), repeat=2):
            metrics.case_scores(masks_of(prediction)[None], masks_of(mask)[None, None], 2, surfaces=True)
    assert [str(warning.message) for warning in seen] == []


# --- One case against several raters ----------------------------------------------------------------------------------


def pixels_of(classes, k):
    return set(map(tuple, np.argwhere(np.asarray(classes) == k).tolist()))


def over_classes(score, a, b, classes):
    """The mean over the foreground classes of a score of two sets of pixels."""
    return np.mean([score(pixels_of(a, k), pixels_of(b, k)) for k in range(1, classes)])


def iou_of(a, b):
    return len(a & b) / len(a | b) if a or b else 1.0


def dice_of(a, b):
    return 2 * len(a & b) / (len(a) + len(b)) if b else math.nan


def expected_majority(masks, classes):
    result = np.zeros(masks.shape[1:], int)
    for index in np.ndindex(result.shape):
        votes = Counter(int(mask[index]) for mask in masks)
        result[index] = max(range(classes), key=lambda k: (votes[k], k))
    return result


def expected_soft_dice(prediction, masks, k):
    s, m = prediction == k, np.mean(masks == k, axis=0)
    return 2 * (s * m).sum() / (s.sum() + m.sum()) if m.any() else math.nan


def expected_ged(prediction, masks, classes):
    def distance(a, b):
        return 1 - over_classes(iou_of, a, b, classes)

    to_raters = np.mean([distance(prediction, mask) for mask in masks])
    return 2 * to_raters - np.mean([distance(a, b) for a, b in product(masks, masks)])


def expected_cells(prediction, mask, k):
    """The five scores of one class against one rater, from sets of pixels and slices."""
    p, m = prediction == k, mask == k
    if not m.any():
        return dict.fromkeys(SCORES, math.nan)
    slices, diagonal = [], math.hypot(*m.shape[-2:])
    for one, other in zip(p, m, strict=True):
        if one.any() and not other.any():
            slices.append({"hd95": diagonal, "assd": diagonal, "nsd": 0.0})
        elif other.any():
            slices.append(brute_force(one, other))
    surfaces = {name: np.mean([scores[name] for scores in slices]) for name in ("hd95", "assd", "nsd")}
    a, b = pixels_of(prediction, k), pixels_of(mask, k)
    return {"dice": dice_of(a, b), "iou": iou_of(a, b)} | surfaces


def assert_case(prediction, masks, classes=2):
    """`case_scores` with surfaces against the reference: each cell, and the means; without surfaces too."""
    row = case_scores(prediction, masks, classes, surfaces=True)
    expected = {}
    for name in SCORES:
        of_classes = []
        for k in range(1, classes):
            of_raters = [expected_cells(prediction, mask, k)[name] for mask in masks]
            suffixes = [f"_rater{r + 1}" for r in range(len(masks))] if len(masks) > 1 else [""]
            expected |= {f"{name}_class{k}{s}": value for s, value in zip(suffixes, of_raters, strict=True)}
            of_classes.append(mean(of_raters))
        expected[name] = mean(of_classes)
    if len(masks) > 1:
        majority = expected_majority(masks, classes)
        for k in range(1, classes):
            expected[f"dice_majority_class{k}"] = dice_of(pixels_of(prediction, k), pixels_of(majority, k))
            expected[f"soft_dice_class{k}"] = expected_soft_dice(prediction, masks, k)
        for name in ("dice_majority", "soft_dice"):
            expected[name] = mean([expected[f"{name}_class{k}"] for k in range(1, classes)])
        expected["ged"] = expected_ged(prediction, masks, classes)
    found = {name: math.nan if row[name] is None else row[name] for name in expected}
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    without = case_scores(prediction, masks, classes)
    assert list(without.items()) == [item for item in row.items() if not item[0].startswith(("hd95", "assd", "nsd"))]
    return row


def random_case(shape, classes, raters, seed):
    """A prediction and raters, uint8, that resemble each other: smooth random fields, in part the same."""
    rng = np.random.default_rng(seed)
    common = [gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)]
    drawn = [
        np.argmax([c + gaussian_filter(rng.normal(size=shape), 2) for c in common], axis=0) for _ in range(raters + 1)
    ]
    drawn = np.stack(drawn).astype(np.uint8)
    return drawn[0], drawn[1:]


@pytest.mark.parametrize("raters", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(1, 14, 12), (4, 9, 11)])
def test_case_scores_equal_the_reference(shape, classes, raters):
    prediction, masks = random_case(shape, classes, raters, seed=raters)
    row = assert_case(prediction, masks, classes)
    assert all(0 < row[name] < 1 for name in row if name.startswith(("dice", "iou", "soft", "nsd")))
    if shape[0] > 1:
        prediction[0], prediction[1], masks[:, 0], masks[0, 2] = 0, 0, 0, 0  # a slice missed, one found beside it
        assert_case(prediction, masks, classes)
        masks[0] = 0  # a rater who marked nothing
        assert_case(prediction, masks, classes)


@pytest.mark.parametrize("raters", [1, 2, 4, 5])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(13, 11), (3, 7, 8)])
def test_building_blocks_equal_the_reference(shape, classes, raters):
    prediction, masks = random_case(shape, classes, raters, seed=raters)
    majority = majority_vote(masks, classes)
    assert majority.dtype == masks.dtype and np.array_equal(majority, expected_majority(masks, classes))
    assert energy_distance(prediction, masks, classes) == pytest.approx(expected_ged(prediction, masks, classes))


@pytest.mark.parametrize("raters", [1, 2])
@pytest.mark.parametrize("slices", [1, 3])
def test_cases_of_empty_and_full_masks(slices, raters):
    """Every combination of empty, full and blob; in the volumes the slices after the first are empty in all masks."""
    for kinds in product(("empty", "full", "blob"), repeat=raters + 1):
        drawn = np.zeros((raters + 1, slices, 12, 14), np.uint8)
        drawn[:, 0] = np.stack([masks_of(kind) for kind in kinds])
        row = assert_case(drawn[0], drawn[1:])
        assert (row["dice"] is None) == (row["hd95"] is None) == (set(kinds[1:]) == {"empty"})
        if set(kinds) == {"empty"}:
            assert row.get("ged", 0) == 0


def test_half_of_the_raters_see_nothing():
    """An empty prediction misses all of the one, and says nothing of the other."""
    masks = np.stack([np.zeros((30, 30), np.uint8), square(2, 2)])[:, None]
    row = assert_case(np.zeros((1, 30, 30), np.uint8), masks)
    assert [row[name] for name in ("dice", "iou", "nsd", "dice_rater1", "dice_rater2")] == [0, 0, 0, None, 0]
    # One vote of two is enough for the majority; GED: 2 * (0 + 1) / 2 - (0 + 1 + 1 + 0) / 4.
    assert [row[name] for name in ("dice_majority", "soft_dice", "ged", "specificity_class1")] == [0, 0, 0.5, 1]


def test_dice_is_of_the_volume_and_not_the_mean_over_slices():
    """36 pixels found on the first slice, the 4 of the second missed: 2 * 36 / (36 + 40), where the slices mean 0.5."""
    mask = np.stack([square(2, 2), square(2, 2, side=2)])
    prediction = np.stack([square(2, 2), np.zeros_like(mask[1])])
    row = assert_case(prediction, mask[None])
    assert row["dice"] == pytest.approx(72 / 76) and row["iou"] == pytest.approx(36 / 40)


def test_empty_slices_change_nothing():
    prediction, masks = random_case((2, 14, 12), 2, 3, seed=1)
    row = assert_case(prediction, masks)
    longer = [
        np.concatenate([part, np.zeros((*part.shape[:-3], 20, 14, 12), np.uint8)], axis=-3)
        for part in (prediction, masks)
    ]
    assert assert_case(*longer) == pytest.approx(row, abs=1e-6) and 0 < row["nsd"] < 1


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
    assert majority_vote(np.array(votes)[:, None], classes).tolist() == [expected]


def every_mask(size=4):
    return np.array(list(product((0, 1), repeat=size)), np.uint8)


def test_no_prediction_is_perfect_where_raters_disagree():
    """All predictions on four pixels; soft Dice reaches 1 and GED 0 if and only if all raters agree with them."""
    masks = every_mask(3)
    for prediction, *raters in product(masks, masks, masks):
        raters = np.stack(raters)
        soft = case_scores(prediction[None, None], raters[:, None, None], 2)["soft_dice"]
        ged = energy_distance(prediction, raters, 2)
        perfect = bool((raters == prediction).all())
        assert (soft is None) == (not raters.any())
        assert soft is None or (0 <= soft <= 1 and (soft > 1 - 1e-6) == perfect)
        assert -1e-6 <= ged <= 2 and (ged < 1e-6) == perfect


def test_energy_distance_by_hand():
    a, b = np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0])  # IoU 1/3
    both = np.stack([a, b])
    assert energy_distance(a, both, 2) == pytest.approx(2 * (0 + 2 / 3) / 2 - 2 * (2 / 3) / 4)
    assert energy_distance(np.array([0, 0, 0, 1]), both, 2) == pytest.approx(2 - 1 / 3)
    assert energy_distance(a, np.stack([1 - a] * 4), 2) == 2  # one other mask, four times
    assert energy_distance(a, np.stack([a] * 4), 2) == 0


@pytest.mark.parametrize("dims", [(-1,), (-2,), (-3,), (-1, -2)])
def test_case_scores_do_not_change_with_flips(dims):
    prediction, masks = random_case((3, 9, 10), 3, 2, seed=0)
    scores = case_scores(prediction, masks, 3, surfaces=True)
    assert case_scores(np.flip(prediction, dims), np.flip(masks, dims), 3, surfaces=True) == pytest.approx(
        scores, abs=1e-6
    )


def test_the_order_of_raters_changes_their_own_columns_alone():
    prediction, masks = random_case((2, 14, 12), 3, 4, seed=0)
    row, order = case_scores(prediction, masks, 3, surfaces=True), [2, 0, 3, 1]
    moved = {f"_rater{r + 1}": f"_rater{i + 1}" for i, r in enumerate(order)}
    expected = {name[:-7] + moved[name[-7:]] if name[-7:] in moved else name: value for name, value in row.items()}
    assert len({row[f"dice_rater{r}"] for r in range(1, 5)}) == 4
    assert case_scores(prediction, masks[order], 3, surfaces=True) == pytest.approx(expected, abs=1e-6)


def test_a_better_prediction_scores_better():
    """Raters scattered about one place; the prediction moves away from it."""
    masks = np.stack([square(10, 10), square(10, 11), square(11, 10), square(9, 10)])[:, None]
    cases = [case_scores(square(10, 10 + shift)[None], masks, 2, surfaces=True) for shift in (0, 2, 4, 5)]
    for better, worse in pairwise(cases):
        assert all(better[name] > worse[name] for name in ("dice", "iou", "dice_majority", "soft_dice", "nsd"))
        assert all(better[name] < worse[name] for name in ("ged", "hd95", "assd"))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 1), (3, 6, 8)])
def test_shapes_that_differ_are_refused(shape):
    """Also those that would broadcast."""
    masks = np.ones((4, 3, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="same shapes"):
        case_scores(np.ones(shape, np.uint8), masks, 2)
