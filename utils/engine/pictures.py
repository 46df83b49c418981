"""The pictures of a run: what the method does with pixels, predictions beside references, and curves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from utils.engine.evaluation import predictions
from utils.engine.experiment import Experiment
from utils.engine.figures import (
    DPI,
    WHITE,
    array,
    as_colour,
    colour_of,
    draw_outlines,
    explain,
    legend_of,
    name_of,
    show,
)
from utils.engine.intensity import Intensity
from utils.engine.scores import Row, set_scores
from utils.masks.geometry import DISTANCE_CAP, IGNORED, crop_around, foreground
from utils.method.gsd import Batch, TestCase
from utils.method.settings import METHODS, Settings

ROWS = 4  # images of a batch that the panels show
EXAMPLES = 8  # cases whose predictions are shown
DROPPED, BY_ONE = "#e5484d", "#ffa028"  # pixels that are dropped; by one of two networks that select for each other


# --- What the method does with the pixels of a batch ------------------------------------------------------------------


def method_panels(
    batch: Batch,
    maps: dict[str, Tensor],
    names: Sequence[str],
    settings: Settings,
    num_classes: int,
    intensity: Intensity,
) -> Figure:
    """A row for each of four images of a batch, those with foreground first: the image with the mask as given and where
    it differs the corrected one; then, of what is active in this run, the pixels that are dropped, the weights, the
    superpixels around the object, and once they have begun the refined label and the mixed image.

    maps: of the step on this batch (`utils.method.gsd.Step`). names: of its images.
    """
    method = settings.method
    selects = method.has("selection") or (method.method != "gsd" and METHODS[method.method].selects)
    active = {
        "image": True,
        "kept pixels": selects and method.tau > 0,
        "weight": method.has("gda"),
        "superpixels": settings.superpixels_vote,
        "refined label": settings.refines and "refined" in maps,
        "mixed image": method.has("kt") and "mixed" in maps,
    }
    titles = [title for title, is_active in active.items() if is_active]
    empty = [not ((label > 0) & (label < num_classes)).any() for label in batch.label]
    first = sorted(range(len(empty)), key=empty.__getitem__)[:ROWS]
    maps = {name: values[first] for name, values in maps.items()}
    rows = len(first)
    figure = Figure(figsize=(max(2 * len(titles), 3), 2 * rows + 0.6), layout="constrained", dpi=DPI)
    axes = dict(zip(titles, figure.subplots(rows, len(titles), squeeze=False).T, strict=True))
    images = displayed(batch.image[first], intensity)
    labels = array(batch.label[first]).astype(int)
    given = labels if batch.given is None else array(batch.given[first]).astype(int)
    for title, column in axes.items():
        column[0].set_title(title + f": 1 dark, {DISTANCE_CAP} bright" * (title == "weight"), fontsize=9)
    for row, axis in enumerate(axes["image"]):
        show(axis, images[row])
        draw_outlines(axis, given[row], WHITE)
        if (given[row] != labels[row]).any():
            draw_outlines(axis, labels[row])
        axis.set_ylabel(name_of(names[first[row]]), fontsize=7, parse_math=False)
    for row, axis in enumerate(axes.get("kept pixels", ())):
        kept = array(maps["kept"][row])
        show(axis, filled(images[row], {DROPPED: kept == 0, BY_ONE: (kept > 0) & (kept < 1)}, 0.8))
    for row, axis in enumerate(axes.get("weight", ())):
        show(axis, array(maps["weight"][row]), cmap="viridis", vmin=1, vmax=DISTANCE_CAP)
    for row, axis in enumerate(axes.get("superpixels", ())):
        show(axis, images[row])
        draw_borders(axis, array(batch.segments[first[row]]))
        draw_outlines(axis, given[row], WHITE)
        look_at(axis, crop_around(foreground(labels[row])))
    for row, axis in enumerate(axes.get("refined label", ())):
        refined = array(maps["refined"][row])
        show(axis, filled(images[row], {colour_of(k): refined == k for k in range(1, num_classes)}, 0.5))
        draw_outlines(axis, given[row], WHITE)
    for row, axis in enumerate(axes.get("mixed image", ())):
        show(axis, displayed(maps["mixed"][row : row + 1], intensity)[0])
    trained = "refined label" in axes or bool((given != labels).any())
    legend = (("mask as given", WHITE), *(legend_of("corrected or refined label", num_classes) if trained else ()))
    if "kept pixels" in axes:
        legend += (("dropped pixels", DROPPED),)
        legend += (("dropped by one network", BY_ONE),) * (method.method == "coteaching")
    explain(figure, legend)
    return figure


def draw_borders(axis: Axes, regions: np.ndarray) -> None:
    """Draw the borders between regions (H,W) of equal numbers, as thin lines between the pixels."""
    y, x = np.nonzero(regions[:, 1:] != regions[:, :-1])  # upright, right of pixel (y, x)
    v, u = np.nonzero(regions[1:] != regions[:-1])  # level, below pixel (v, u)
    gaps = np.full(len(x) + len(u), np.nan)  # between lines that are drawn as one
    across = [np.append(x + 0.5, u - 0.5), np.append(x + 0.5, u + 0.5), gaps]
    down = [np.append(y - 0.5, v + 0.5), np.append(y + 0.5, v + 0.5), gaps]
    axis.plot(np.stack(across, 1).ravel(), np.stack(down, 1).ravel(), color=colour_of(2), linewidth=0.5)


def look_at(axis: Axes, part: tuple[slice, slice]) -> None:
    """Limit an axis to the rows and columns of a part of the image."""
    rows, columns = part
    axis.set(xlim=(columns.start - 0.5, columns.stop - 0.5), ylim=(rows.stop - 0.5, rows.start - 0.5))


def filled(image: np.ndarray, areas: dict[str, np.ndarray], alpha: float) -> np.ndarray:
    """An image (H,W,3) in [0, 1] with areas, bool (H,W) that do not overlap, in the colours that name them."""
    # Here, since importing torchvision takes longer than importing PyTorch, and no run needs it before its pictures.
    from torchvision.utils import draw_segmentation_masks

    colours = [colour for colour, area in areas.items() if area.any()]
    if not colours:
        return image
    masks = torch.from_numpy(np.stack([areas[colour] for colour in colours]))
    drawn = draw_segmentation_masks(torch.from_numpy(image).movedim(-1, 0).float(), masks, alpha, colours)
    return drawn.movedim(0, -1).numpy()


def displayed(inputs: Tensor, intensity: Intensity) -> np.ndarray:
    """Network inputs (N,C,H,W) -> pictures (N,H,W,3) in [0, 1]; of other than 3 channels the first, as grey."""
    unit = array(inputs).transpose(0, 2, 3, 1) * np.array(intensity.std) + np.array(intensity.mean)
    return np.stack([as_colour(image) for image in unit]).clip(0, 1)


# --- Predictions beside references ------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One slice of a case, with what is predicted on it."""

    case: TestCase  # of that slice alone
    predicted: np.ndarray  # (H,W) classes
    score: str  # what its title says


def examples(experiment: Experiment, scores: dict[str, Row]) -> list[Example]:
    """Up to eight of the cases that were scored, evenly spread from the worst Dice to the best, predicted anew.

    scores: of `utils.engine.evaluation.evaluate` on the experiment's cases. Of a volume the slice with most foreground
    is taken. Cases without a Dice, since no reference has foreground, come first, where there are not enough others.
    """
    dice = [set_scores([row]).means["dice"] for row in scores.values()]
    known = {index: value for index, value in enumerate(dice) if value is not None}
    others = [index for index in range(len(dice)) if index not in known]
    ranked = others[: max(0, EXAMPLES - len(known))] + sorted(known, key=lambda index: known[index])
    places = np.linspace(0, len(ranked) - 1, min(EXAMPLES, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    cases, titles = [], []
    for index in chosen:
        case, score = experiment.cases[index], dice[index]
        slices = case.masks.shape[1]
        number = fullest_slice(case.masks)
        cases.append(TestCase(case.name, case.image[number : number + 1], case.masks[:, number : number + 1]))
        told = "no foreground in the reference" if score is None else f"Dice {score:.3f}"
        titles.append(told + f", slice {number + 1} of {slices}" * (slices > 1))
    predicted = [classes[0].numpy() for _, classes in predictions(experiment, cases)]
    titles = [
        title + ", nothing predicted" * (not classes.any()) for title, classes in zip(titles, predicted, strict=True)
    ]
    return [Example(*one) for one in zip(cases, predicted, titles, strict=True)]


def fullest_slice(masks: Tensor) -> int:
    """Of masks (R,S,H,W) the slice with most foreground, over all raters; the middle one where there is none."""
    counts = ((masks != 0) & (masks != IGNORED)).sum(dim=(0, 2, 3))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def predictions_beside_references(shown: Sequence[Example], num_classes: int) -> Figure:
    """The part of each image around the objects, with the outlines of every rater's reference and of the prediction."""
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    crops = [
        crop_around((predicted > 0) | foreground(case.masks[:, 0].numpy()).any(axis=0)) for case, predicted, _ in shown
    ]
    tallest = max((down.stop - down.start) / (across.stop - across.start) for down, across in crops)
    height = 2.6 * min(max(tallest, 0.4), 1.4) + 0.5
    figure = Figure(figsize=(2.6 * columns + 0.2, height * rows + 0.4), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (case, predicted, score), crop in zip(axes, shown, crops, strict=False):
        references = case.masks[:, 0].numpy()
        show(axis, as_colour(case.image[0].movedim(0, -1).numpy()) / 255, predicted.shape)
        for reference in references:
            draw_outlines(axis, reference, WHITE)
        draw_outlines(axis, predicted)
        look_at(axis, crop)
        axis.set_title(f"{name_of(case.name)}\n{score}", fontsize=8, parse_math=False)
    raters = len(shown[0].case.masks)
    reference = "reference" if raters == 1 else f"references of {raters} raters"
    explain(figure, ((reference, WHITE), *legend_of("prediction", num_classes)))
    return figure


# --- Curves -----------------------------------------------------------------------------------------------------------

LOSSES = {
    "loss": "total",
    "gda": "on the pixels kept (GDA)",
    "dice_loss": "Dice loss",
    "transfer1": "transfer, network 1",
    "transfer2": "transfer, network 2",
    "agreement": "agreement on mixed images",
}


def learning_curves(history: Sequence[dict], tau: float | None = None) -> Figure:
    """Dice, losses and, where they play a part, kept share, weight cap and learning rate against the epoch.

    history: rows of log.csv. tau: the share that the selection drops in the end.
    """
    scored_on = history[-1]["scored_on"]
    classes = [name for name in history[-1] if name.startswith("dice_class")]
    charts = {
        "Dice": {"dice": scored_on, "val_dice": "validation cases"},
        "loss": LOSSES,
        "kept share": {"kept": "pixels kept"} if tau else {},
        "weight cap": {"weight_cap": ""},
        "learning rate": {"learning_rate": ""} if len({row["learning_rate"] for row in history}) > 1 else {},
    }
    if len(classes) > 1:
        charts["Dice"] |= {name: f"class {name.removeprefix('dice_class')}" for name in classes}
    charts = {
        title: {name: label for name, label in curves.items() if any(row.get(name) is not None for row in history)}
        for title, curves in charts.items()
    }
    charts = {title: curves for title, curves in charts.items() if curves or title == "Dice"}
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(charts) :]:
        axis.set_axis_off()
    epochs = [row["epoch"] for row in history]
    begun = next((row["epoch"] for row in history if row.get("transfer1") is not None), None)
    for axis, (title, curves) in zip(axes, charts.items(), strict=False):
        for name, label in curves.items():
            values = [np.nan if row.get(name) is None else row[name] for row in history]
            axis.plot(epochs, values, label=label, marker="." if len(epochs) <= 20 else "")
        if title == "kept share":
            axis.axhline(1 - (tau or 0), color="grey", linestyle=":", label=f"1 - tau, tau {tau:.3g}")
        if begun:
            words = "refinement and transfer begin" if title == "loss" else None
            axis.axvline(begun, color="grey", linewidth=0.8, linestyle="--", label=words)
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        if title == "loss" and len(curves) > 2:  # room for the legend above the curves
            low, high = axis.get_ylim()
            axis.set_ylim(low, high + 0.08 * len(curves) * (high - low))
            axis.legend(fontsize=7, loc="upper center", ncols=2)
        elif any(curves.values()):
            axis.legend(fontsize=7)
    return figure
