"""From the scores of cases to those of a set: the one rule, of training, its report, evaluate.py and compare_runs.py.

A class is scored where the reference has it. The figure of a class is the mean over these cases, with several raters
the mean over the raters of such means; the figure of a set is the mean over its classes. References without the class
say nothing of an overlap; they are counted apart: how many predictions are empty too (specificity), and how many pixels
they have. Source: Maier-Hein et al., Metrics Reloaded, Nature Methods 21, 2024.

A row is one case, as `utils.engine.metrics.case_scores` makes it and as per_image.csv holds it. Its cells are columns
named SCORE_classK, with several raters SCORE_classK_raterR; None, blank in a file, where that rater did not mark that
class. predicted_pixels_classK and reference_pixels_classK (_raterR) count pixels. Everything else is made of these.
"""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

SCORED_AT = "mask size"  # predictions are resized to the masks, which are scored as they are
AVERAGED = ("dice", "iou", "dice_majority", "soft_dice", "hd95", "assd", "nsd")
FORMER = "dice_empty_is_1"  # Dice by a convention that many papers follow: two empty masks count 1
DIGITS = 6  # of a score in a file

Row = Mapping[str, float | None]


class SetScores(NamedTuple):
    """The figures of a set of cases; both dicts have the same keys."""

    means: dict[str, float | None]  # None where no case has a value
    cases: dict[str, int]  # on how many cases each mean stands; of specificity and false pixels, on how many references


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there, None if none is."""
    kept = [value for value in values if value is not None]
    return statistics.fmean(kept) if kept else None


def set_scores(rows: Sequence[Row]) -> SetScores:
    """The figures of at least one case: each score of `AVERAGED` that the rows have, and

    - dice_class1 ..: Dice of each class; with several raters dice_rater1 ..: Dice against each rater;
    - specificity_class1 ..: of the references without the class, the share whose prediction lacks it too;
    - false_pixels_class1 ..: the mean number of pixels predicted there;
    - with several raters ged, the mean over the cases, and `FORMER`: the mean over cases, raters and classes of Dice
      where two empty masks count 1 and one empty mask 0.

    ``cases``: those that have a value in the mean; of specificity and false pixels, pairs of a case and a rater.
    """
    cells = _cells(tuple(rows[0]))
    dice = cells["dice"]
    classes, raters = sorted({k for k, _ in dice}), sorted({rater for _, rater in dice if rater})
    means: dict[str, float | None] = {}
    cases: dict[str, int] = {}

    def add(name: str, columns: Sequence[Sequence[str]]) -> None:
        """columns: of each class those of the raters."""
        of_classes = (mean_of(mean_of(row[column] for row in rows) for column in of_class) for of_class in columns)
        means[name] = mean_of(of_classes)
        cases[name] = sum(any(row[column] is not None for some in columns for column in some) for row in rows)

    for score in AVERAGED:
        if score in cells:
            add(score, [[column for (k, _), column in cells[score].items() if k == one] for one in classes])
    for one in classes:
        add(f"dice_class{one}", [[column for (k, _), column in dice.items() if k == one]])
    for rater in raters:
        add(f"dice_rater{rater}", [[dice[k, rater]] for k in classes])
    for one in classes:
        columns = [column for (k, _), column in dice.items() if k == one]
        without = [row[f"predicted_pixels_class{one}"] for row in rows for column in columns if row[column] is None]
        means[f"specificity_class{one}"] = mean_of(float(pixels == 0) for pixels in without)
        means[f"false_pixels_class{one}"] = mean_of(without)
        cases |= {f"specificity_class{one}": len(without), f"false_pixels_class{one}": len(without)}
    if raters:
        add("ged", [["ged"]])
        means[FORMER] = mean_of(mean_of(_former(row, column, k) for (k, _), column in dice.items()) for row in rows)
        cases[FORMER] = len(rows)
    return SetScores(means, cases)


@cache
def _cells(columns: tuple[str, ...]) -> dict[str, dict[tuple[int, int], str]]:
    """Of each score of `AVERAGED` its cells: class and rater (0 where there is one alone) -> column."""
    found: dict[str, dict[tuple[int, int], str]] = {}
    for column in columns:
        match = re.fullmatch(rf"({'|'.join(AVERAGED)})_class(\d+)(?:_rater(\d+))?", column)
        if match:
            found.setdefault(match[1], {})[int(match[2]), int(match[3] or 0)] = column
    # Beside the columns of the raters, those without one are means over them.
    return {
        score: {cell: column for cell, column in of.items() if cell[1] or not any(rater for _, rater in of)}
        for score, of in found.items()
    }


def _former(row: Row, column: str, k: int) -> float:
    value = row[column]
    return float(row[f"predicted_pixels_class{k}"] == 0) if value is None else value


def all_empty(rows: Sequence[Row]) -> bool:
    """Whether every prediction is background alone, and some reference is not."""
    names = [name for name in rows[0] if name.startswith("predicted_pixels_")]
    empty = not any(row[name] for row in rows for name in names)
    return empty and any(row["dice"] is not None for row in rows)


def as_table(scores: Mapping[str, Row]) -> list[dict]:
    """The rows of per_image.csv, from each case's row by its name."""
    return [
        {"image": name} | {column: None if v is None else round(v, DIGITS) for column, v in row.items()}
        for name, row in scores.items()
    ]
