"""The one rule of scores, worked out by hand: from masks to rows, from rows to the figures of a set."""

import math

import numpy as np
import pytest

from utils.engine.metrics import case_scores
from utils.engine.score_table import check_class_names, class_labels, foot, titles_of
from utils.engine.scores import FORMER, all_empty, as_table, mean_of, set_scores


def mask(*squares, shape=(30, 40)):
    """(1,H,W) uint8; squares: class, top, left, side."""
    pixels = np.zeros((1, *shape), np.uint8)
    for value, top, left, side in squares:
        pixels[0, top : top + side, left : left + side] = value
    return pixels


def rows_of(pairs, num_classes, surfaces=False):
    return [case_scores(prediction, reference[None], num_classes, surfaces) for prediction, reference in pairs]


# --- One rater --------------------------------------------------------------------------------------------------------


def test_background_alone_scores_nothing_in_a_set_of_one_class_an_image():
    """Where an empty class counted 1, such predictions had 0.5."""
    references = [mask((1, 5, 5, 4)), mask((2, 5, 5, 4)), mask((1, 8, 8, 4)), mask((2, 9, 9, 4))]
    rows = rows_of([(mask(), reference) for reference in references], 3, surfaces=True)
    means, cases = set_scores(rows)
    for name in ("dice", "dice_class1", "dice_class2", "iou", "nsd"):
        assert means[name] == 0
    assert means["hd95"] == means["assd"] == math.hypot(30, 40) == 50
    assert (cases["dice"], cases["dice_class1"], cases["dice_class2"], cases["hd95"]) == (4, 2, 2, 4)
    assert (means["specificity_class1"], cases["specificity_class1"], means["false_pixels_class1"]) == (1, 2, 0)
    assert all_empty(rows)


def test_a_network_that_predicts_nothing_gains_nothing_by_normal_images():
    """Nine normal images and one with an object, missed: Dice 0 of one case, specificity 1 of nine."""
    rows = rows_of([(mask(), mask())] * 9 + [(mask(), mask((1, 5, 5, 4)))], 2)
    means, cases = set_scores(rows)
    assert (means["dice"], cases["dice"]) == (0, 1)
    assert (means["specificity_class1"], cases["specificity_class1"]) == (1, 9)


def test_the_mean_over_the_classes_is_of_their_means():
    """Class 1 in three cases with Dice 1, 1, 0.5, class 2 in one with 0: (2.5 / 3 + 0) / 2, not the mean of cases."""
    moved = (mask((1, 5, 7, 4)), mask((1, 5, 5, 4)))  # half of 16 pixels
    both = (mask((1, 5, 5, 4)), mask((1, 5, 5, 4), (2, 20, 20, 4)))
    rows = rows_of([(mask((1, 5, 5, 4)), mask((1, 5, 5, 4))), moved, both], 3)
    assert [row["dice"] for row in rows] == [1, 0.5, 0.5]
    assert [row["dice_class2"] for row in rows] == [None, None, 0]
    means, cases = set_scores(rows)
    assert means["dice_class1"] == pytest.approx(2.5 / 3) and means["dice_class2"] == 0
    assert means["dice"] == pytest.approx(2.5 / 6)
    assert means["iou"] == pytest.approx((1 + 1 / 3 + 1) / 6)
    assert (cases["dice"], cases["dice_class1"], cases["dice_class2"]) == (3, 3, 1)
    assert (means["specificity_class2"], cases["specificity_class2"]) == (1, 2)


def test_references_without_the_class_are_counted_apart():
    """Two of three predictions are empty as well, the third has 16 and so in the mean 16 / 3 pixels too many."""
    rows = rows_of([(mask(), mask()), (mask(), mask()), (mask((1, 5, 5, 4)), mask())], 2, surfaces=True)
    assert rows[2]["dice"] is rows[2]["hd95"] is rows[2]["nsd"] is None
    assert (rows[2]["predicted_pixels_class1"], rows[2]["reference_pixels_class1"]) == (16, 0)
    means, cases = set_scores(rows)
    assert means["dice"] is means["hd95"] is None and cases["dice"] == cases["hd95"] == 0
    assert means["specificity_class1"] == pytest.approx(2 / 3)
    assert means["false_pixels_class1"] == pytest.approx(16 / 3)
    assert not all_empty(rows) and not all_empty(rows[:2])  # right to be empty


def test_hd95_of_the_worst_run_is_the_worst():
    """It is not the mean over the cases that survived."""
    reference = mask((1, 5, 5, 4))
    fair = set_scores(rows_of([(mask((1, 5, 8, 4)), reference)] * 2, 2, surfaces=True)).means
    poor = set_scores(rows_of([(reference, reference), (mask(), reference)], 2, surfaces=True)).means
    assert fair["hd95"] == 3 and poor["hd95"] == 25


# --- Volumes ----------------------------------------------------------------------------------------------------------


def test_slices_of_a_volume():
    """Found, missed, a false object, nothing: overlaps of the whole, surfaces of three slices, in a diagonal of 50."""
    one, none = mask((1, 5, 5, 4)), mask()
    prediction, reference = np.concatenate([one, none, one, none]), np.concatenate([one, one, none, none])
    row = case_scores(prediction, reference[None], 2, surfaces=True)
    assert row["dice"] == 0.5 and row["iou"] == pytest.approx(1 / 3)  # 16 shared of 32 and 32
    assert row["nsd"] == pytest.approx(1 / 3) and row["hd95"] == row["assd"] == pytest.approx(100 / 3)


# --- Several raters ---------------------------------------------------------------------------------------------------


def test_pairs_of_case_and_rater():
    """Two raters, two cases. Rater 1 marks both, found 1 and missed 0; rater 2 the first alone, half right."""
    at, beside, none = mask((1, 5, 5, 4)), mask((1, 5, 7, 4)), mask()
    rows = [case_scores(at, np.stack([at, beside]), 2), case_scores(none, np.stack([at, none]), 2)]
    assert [row["dice_class1_rater2"] for row in rows] == [0.5, None]
    assert [row["dice"] for row in rows] == [0.75, 0]
    means, cases = set_scores(rows)
    assert (means["dice_rater1"], means["dice_rater2"]) == (0.5, 0.5)
    assert means["dice"] == 0.5  # the mean over the raters; that over the three pairs would be the same
    assert (cases["dice"], cases["dice_rater1"], cases["dice_rater2"]) == (2, 2, 1)
    assert (means["specificity_class1"], cases["specificity_class1"]) == (1, 1)
    # The former convention: (1 + 0.5) / 2 and (0 + 1) / 2.
    assert means[FORMER] == 0.625 and cases[FORMER] == 2
    # One vote of two is a majority. Case 1: the votes cover 4x6 pixels, 16 of them found. Case 2: missed.
    assert means["dice_majority"] == pytest.approx((32 / 40 + 0) / 2)
    # 2 (16 + 8) / (2 * 16 + 32), and 0.
    assert means["soft_dice"] == pytest.approx((48 / 64 + 0) / 2)


def test_the_mean_is_over_raters_and_not_over_pairs():
    """Rater 1 marks three cases, all found; rater 2 one, missed: 0.5, where the pairs have 0.75."""
    at, away, none = mask((1, 5, 5, 4)), mask((1, 20, 20, 4)), mask()
    rows = [case_scores(at, np.stack([at, second]), 2) for second in (none, none, away)]
    means, _ = set_scores(rows)
    assert (means["dice_rater1"], means["dice_rater2"], means["dice"], means["dice_class1"]) == (1, 0, 0.5, 0.5)


def test_ged_keeps_its_rule_for_empty_pairs():
    """All agree that there is nothing: no Dice, and a distance of 0."""
    row = case_scores(mask(), np.stack([mask(), mask()]), 2, surfaces=True)
    assert row["ged"] == 0
    assert row["dice"] is row["dice_majority"] is row["soft_dice"] is row["hd95"] is None
    means, cases = set_scores([row])
    assert (means["ged"], cases["ged"], means[FORMER]) == (0, 1, 1)


def test_a_rater_who_marks_a_class_nowhere_does_not_count():
    at, none = mask((1, 5, 5, 4), (2, 20, 20, 4)), mask((1, 5, 5, 4))
    means, cases = set_scores([case_scores(none, np.stack([at, none]), 3)])
    assert (means["dice_class1"], means["dice_class2"], means["dice"]) == (1, 0, 0.5)
    assert (means["dice_rater1"], means["dice_rater2"]) == (0.5, 1)
    assert cases["specificity_class2"] == 1


# --- Rows and tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raters", "classes"), [(1, 2), (1, 4), (3, 2), (2, 3)])
def test_a_case_has_the_figures_of_a_set_of_one(raters, classes):
    """And of many equal ones; a row that went through a file gives the same figures."""
    rng = np.random.default_rng(0)
    prediction, masks = rng.integers(classes, size=(2, 8, 9)), rng.integers(classes, size=(raters, 2, 8, 9))
    row = case_scores(prediction, masks, classes, surfaces=True)
    means, cases = set_scores([row])
    assert means == {name: row[name] for name in means} and list(means) == list(cases) == list(row)[: len(means)]
    assert set_scores([row] * 3).means == pytest.approx(means, nan_ok=False)
    [written] = as_table({"a": row})
    assert written.pop("image") == "a" and list(written) == list(row)
    assert set_scores([written]).means == pytest.approx(means, abs=1e-6)


def test_blanks_stay_blank():
    [written] = as_table({"a": case_scores(mask(), mask()[None], 2)})
    assert written["dice"] is None and written["specificity_class1"] == 1
    assert mean_of([]) is mean_of([None]) is None and mean_of([1, None, 0]) == 0.5


def test_titles_and_foot_name_the_classes():
    rows = rows_of([(mask((1, 5, 5, 4)), mask((2, 5, 5, 4)))], 3, surfaces=True)
    means, cases = set_scores(rows)
    assert class_labels(means, ("liver", "tumour")) == {1: "liver", 2: "tumour"}
    titles = titles_of(means, ("liver", "tumour"))
    assert titles["dice_class2"] == "Dice, tumour" and titles_of(means)["dice_class2"] == "Dice, class 2"
    assert [line for line in foot(means, cases, ("liver", "tumour")) if "1 reference without liver" in line]
    assert "dice_class1" not in titles_of(set_scores(rows_of([(mask(), mask())], 2)).means)  # it is Dice itself


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_class_names_are_as_many_as_classes(names):
    from utils.commands.errors import UserError

    with pytest.raises(UserError, match="--class_names"):
        check_class_names(names, 3)
    check_class_names([], 3)
    check_class_names(["a", "b"], 3)
