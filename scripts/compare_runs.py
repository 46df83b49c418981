"""Compare training runs: their test figures, methods over several seeds, differences image by image, and a picture.

    python scripts/compare_runs.py model/mine+ce+02 model/mine+gsd+02 --baseline mine+ce+02 --figure comparison.png

The first table has a row for each run: mean and standard deviation of Dice and IoU over the last epochs, HD95 after the
last epoch, on how many of all cases they rest, and what was scored. Runs that differ only in --seed are one method: a
second table has its mean and standard deviation over the seeds. With --baseline a third table
compares methods image by image, by the Dice after the last epoch, averaged over the seeds. It has the mean difference
from the baseline, its 95 % interval (bootstrap over the images), and p of Wilcoxon's signed-rank test. Images count as
independent: several images of one patient make the interval too narrow.

If runs were not scored on the same masks, their scores do not compare. This is said first, and --markdown has no bold.

The picture shows scored images of runs of train_GSD-Net.py: the image, its mask, and the prediction of each run, all
with the outline of the mask in colour.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.commands.arguments import command_parser, number
from utils.commands.errors import UserError, listed, run_main, warn
from utils.commands.files import write_atomically, write_table
from utils.engine.comparison import (
    Difference,
    Finished,
    Method,
    dice_by_image,
    differences,
    methods_of,
    paired_difference,
    read_runs,
    spread,
)
from utils.engine.score_table import check_class_names

if TYPE_CHECKING:
    from utils.engine.inference import Model

SAME = ("datasets", "image_size", "num_classes")  # settings of all runs of a picture
SHOWN = 384  # pixels of the longer side of an image in the picture


class Table(NamedTuple):
    """A table as texts."""

    head: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]  # row and column of the best figures


def main() -> None:
    """Read all runs, draw the figure, then print and write the tables."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of the same dataset")
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN", help="run that the others are compared with, image by image"
    )
    parser.add_argument("--class_names", nargs="+", default=[], metavar="NAME", help="names of the classes 1, 2, ...")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write the scores as CSV, a row for each run and each method"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the tables as Markdown, with the best scores in bold"
    )
    parser.add_argument("--figure", type=Path, help="draw images with the prediction of each run, as PNG")
    parser.add_argument("--images", type=number(int, 1, 100), help="number of images in the picture (default: 4)")
    args = parser.parse_args()
    if args.images and not args.figure:
        parser.error("--images: rows of the picture, which --figure asks for")

    runs = read_runs(args.runs)
    differ = differences(runs)
    reason = f"these runs were not scored on the same masks, so their figures do not compare; {'; '.join(differ)}"
    if differ and (args.baseline or args.figure):
        flag = "--baseline" if args.baseline else "--figure"
        raise UserError(f"{flag}: {reason}. Leave it out, or name runs of one test set and version")
    methods, repeated = methods_of(runs)
    against = compared(methods, args.baseline) if args.baseline else {}
    classes = sorted({n for run in runs for n in run.figures if n.startswith("dice_class")}, key=lambda n: int(n[10:]))
    check_class_names(args.class_names, len(classes) + 1)
    picture = draw(runs, args.images or 4) if args.figure else b""

    if differ:
        warn(f"warning: {reason}")
    if repeated:
        print(f"note: left out of the tables by method, having settings and seed of another: {names_of(repeated)}")
    figures = figure_titles(classes, args.class_names)
    several = [method for method in methods if len(method.runs) > 1]
    tables = [runs_table(runs, figures)]
    tables += [seeds_table(several, figures)] if several else []
    tables += [difference_table(against)] if against else []
    notes = notes_of(bool(several), args.baseline)
    print("\n\n".join([*map(as_text, tables), *(fill(note, 110) for note in notes)]))
    if args.csv:
        write_table(args.csv, csv_rows(runs, several, against))
        print(f"table: {args.csv}")
    if args.markdown:
        parts = [as_markdown(table if not differ else table._replace(best=set())) for table in tables]
        write_atomically(args.markdown, ("\n\n".join([*parts, *notes]) + "\n").encode())
        print(f"tables: {args.markdown}")
    if args.figure:
        write_atomically(args.figure, picture)
        print(f"picture: {args.figure}")


def names_of(runs: Sequence[Finished]) -> str:
    """The runs' labels, joined."""
    return listed(run.label for run in runs)


def compared(methods: Sequence[Method], baseline: Path) -> dict[str, Difference]:
    """By its label, how each method differs from that of the run ``baseline``, a path or a run folder's name.

    Raises `UserError` if it is none of the runs, or the only method.
    """
    chosen = [m for m in methods if any(baseline in (run.folder, Path(run.label)) for run in m.runs)]
    if not chosen or len(methods) == 1:
        labels = listed((run.label for method in methods for run in method.runs), most=10)
        what = "is none of the runs" if not chosen else "is the only method"
        raise UserError(f"--baseline {baseline}: {what}; name one of several: {labels}")
    reference = dice_by_image(chosen[0])
    return {m.label: paired_difference(dice_by_image(m), reference) for m in methods if m is not chosen[0]}


# --- Tables -----------------------------------------------------------------------------------------------------------


def figure_titles(classes: Sequence[str], class_names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Title and format of each of `Finished.figures`; classes: dice_class1 .., shown where there are several."""
    names = class_names or [f"class {name.removeprefix('dice_class')}" for name in classes]
    single = {name: (f"Dice, {title}", ".4f") for name, title in zip(classes, names, strict=True)}
    return (
        {"dice": ("Dice", ".4f")}
        | (single if len(classes) > 1 else {})
        | {"iou": ("IoU", ".4f"), "hd95": ("HD95", ".2f")}
    )


def text(value: float | None, form: str) -> str:
    """A figure, a dash where there is none."""
    return "-" if value is None else format(value, form)


def best_rows(column: int, values: Sequence[float | None], lowest: bool) -> set[tuple[int, int]]:
    """The places of the best of values in their column; none where all are equal."""
    kept = [value for value in values if value is not None]
    best = (min if lowest else max)(kept) if len(set(kept)) > 1 else None
    return {(row, column) for row, value in enumerate(values) if value is not None and value == best}


def runs_table(runs: Sequence[Finished], figures: dict[str, tuple[str, str]]) -> Table:
    """A row a run; a figure of one class says on how many cases it stands."""
    head, columns = (
        ["run", "epochs"],
        [[run.label for run in runs], [text(run.result.get("epochs"), ".0f") for run in runs]],
    )
    best: set[tuple[int, int]] = set()
    for name, (title, form) in figures.items():
        values = [run.figures.get(name) for run in runs]
        counts = [f" ({run.cases[name]})" if "class" in name and name in run.cases else "" for run in runs]
        best |= best_rows(len(head), values, lowest=name == "hd95")
        head.append(title)
        columns.append([text(value, form) + count for value, count in zip(values, counts, strict=True)])
        if name == "dice":
            head.append("+-")
            columns.append([text(run.result.get("final_dice_std"), ".4f") for run in runs])
    head += ["cases", "s/epoch", "scored on"]
    columns.append([f"{run.cases['dice']}/{run.result['test_cases']}" if "dice" in run.cases else "-" for run in runs])
    columns.append([text(run.result.get("seconds_per_epoch"), ".1f") for run in runs])
    columns.append([run.scored_on for run in runs])
    return Table(head, [list(row) for row in zip(*columns, strict=True)], best)


def seeds_table(methods: Sequence[Method], figures: dict[str, tuple[str, str]]) -> Table:
    """A row a method of several seeds: mean and standard deviation of each figure."""
    head, columns = ["over seeds", "seeds"], [[m.label for m in methods], [str(len(m.runs)) for m in methods]]
    best: set[tuple[int, int]] = set()
    for name, (title, form) in figures.items():
        spreads = [spread([run.figures.get(name) for run in method.runs]) for method in methods]
        best |= best_rows(len(head), [found.mean for found in spreads], lowest=name == "hd95")
        head += [title, "+-"]
        columns += [[text(found.mean, form) for found in spreads], [text(found.deviation, form) for found in spreads]]
    return Table(head, [list(row) for row in zip(*columns, strict=True)], best)


def difference_table(against: dict[str, Difference]) -> Table:
    """A row a method that is compared with the baseline."""
    rows = [
        [name, str(d.images), f"{d.mean:+.4f}", f"{text(d.low, '+.4f')} to {text(d.high, '+.4f')}", f"{d.p:.2g}"]
        for name, d in against.items()
    ]
    return Table(["against the baseline", "images", "difference of Dice", "95 % interval", "p"], rows, set())


def notes_of(several: bool, baseline: Path | None) -> list[str]:
    """What the tables do not say themselves."""
    notes = [
        "Dice and IoU: mean of the last epochs (result.json: averaged_epochs), +-: their standard deviation. HD95: "
        "after the last epoch, in pixels of the masks. Cases: those behind the means, of all.",
    ]
    if several:
        notes.append("Over seeds, +- is the standard deviation between the runs (n - 1).")
    if baseline:
        notes.append(
            f"Difference: Dice of each image less that of {baseline}, after the last epoch, in the mean over images; "
            "p of Wilcoxon's signed-rank test, not corrected for the number of rows."
        )
    return notes


def as_text(table: Table) -> str:
    """The first and the last column of words to the left, if it is one, figures to the right."""
    rows = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = {0, len(widths) - 1} if table.head[-1] == "scored on" else {0}
    lines = [
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """The table, with the best figures bold."""
    rows = [
        [
            f"**{cell}**" if (row, column) in table.best else cell.replace("|", "\\|")
            for column, cell in enumerate(cells)
        ]
        for row, cells in enumerate(table.rows)
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (table.head, ["---"] * len(table.head), *rows))


def csv_rows(runs: Sequence[Finished], methods: Sequence[Method], against: dict[str, Difference]) -> list[dict]:
    """A row a run, and one a method of several seeds, with what they have; blank elsewhere."""
    rows: list[dict] = []
    for run in runs:
        found = {name: run.result.get(name) for name in ("method", "epochs", "test_cases", "seconds_per_epoch")}
        found |= {"scored_on": run.scored_on, "scored_at": run.result.get("scored_at"), "cases": run.cases.get("dice")}
        deviation = run.result.get("final_dice_std")
        rows.append({"run": run.label, "seeds": 1, **found, **run.figures, "dice_std_epochs": deviation})
    for method in methods:
        row: dict = {"run": method.label, "seeds": len(method.runs)}
        for name in method.runs[0].figures:
            found_spread = spread([run.figures.get(name) for run in method.runs])
            row |= {name: found_spread.mean, f"{name}_sd_seeds": found_spread.deviation}
        rows.append(row)
    for row in rows:
        if difference := against.get(row["run"]):
            row |= {f"difference_{name}": value for name, value in difference._asdict().items()}
    return rows


# --- The picture ------------------------------------------------------------------------------------------------------


def load_models(runs: Sequence[Finished]) -> list["Model"]:
    """The networks of each run. Raises `UserError` if one is of several raters, or they differ in `SAME`."""
    import torch

    from utils.engine.inference import load_model

    models = [load_model(run.folder / "checkpoint.pt", torch.device("cpu"), "fp32") for run in runs]
    first = models[0].settings
    for run, model in zip(runs, models, strict=True):
        lacking = [name for name in (*SAME, "noise_type", "data_root") if name not in model.settings]
        if lacking:
            raise UserError(
                f"--figure: {run.folder}: its checkpoint records no {', '.join(lacking)}; only runs of "
                "train_GSD-Net.py, on images with one mask each, can be drawn: leave --figure out, or this run"
            )
        for name in SAME:
            if model.settings[name] != first[name]:
                raise UserError(
                    f"--figure: {run.folder}: --{name} {model.settings[name]} differs from {runs[0].folder}'s "
                    f"{first[name]}; draw them apart"
                )
        if model.channels != models[0].channels:
            raise UserError(
                f"--figure: {run.folder}: trained on images of {model.channels} channels, {runs[0].folder} on "
                f"{models[0].channels}; draw them apart"
            )
    return models


def scored_files(run: Finished, settings: dict) -> dict[str, tuple[Path, Path]]:
    """Image and mask of the cases that ``run`` was scored on, by stem. Raises `UserError` if they are not there."""
    from dataloaders.dataset_folder import find_dataset
    from dataloaders.files import list_images

    data_root = Path(settings["data_root"])
    if not data_root.is_dir():
        raise UserError(
            f"--figure: {run.folder} was trained on --data_root {data_root}, which is not there; start this in the "
            "folder where it was trained, or leave --figure out"
        )
    dataset, layout = find_dataset(data_root, settings["datasets"])
    names = (layout.images_test, layout.masks_test)
    if run.scored_on.startswith("held-out"):
        names = (layout.images, layout.training_masks(settings["noise_type"]))
    images, masks = (list_images(dataset / name) for name in names)
    stems = [stem for stem in run.images or images if stem in images and stem in masks]
    if not stems:
        raise UserError(
            f"--figure: no image of {dataset / names[0]} that was scored has a file in {dataset / names[1]}"
        )
    return {stem: (images[stem], masks[stem]) for stem in stems}


def draw(runs: Sequence[Finished], count: int) -> bytes:
    """``count`` of the images that were scored, with their masks and every run's prediction, as a PNG file's bytes."""
    import numpy as np
    import torch

    from dataloaders.files import read_image, read_mask
    from utils.engine.evaluation import classes_at
    from utils.engine.figures import as_colour, image_grid, outlined, png
    from utils.masks.geometry import longest_side, resize_image

    models = load_models(runs)
    classes = models[0].num_classes
    files = scored_files(runs[0], models[0].settings)
    stems = [list(files)[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
    columns: dict[str, list] = {"image": [], "mask": [], **{run.label: [] for run in runs}}
    for stem in stems:
        image, mask = read_image(files[stem][0], models[0].channels), read_mask(files[stem][1], classes).labels
        inputs = torch.tensor(resize_image(image, models[0].image_size)).movedim(-1, 0)[None]
        predicted = [classes_at(model.logits(inputs), mask.shape)[0].numpy() for model in models]  # as they are scored
        greys = [(labels.astype(np.uint16) * 255 // (classes - 1)).astype(np.uint8) for labels in (mask, *predicted)]
        for title, picture in zip(columns, (image, *(grey[..., None] for grey in greys)), strict=True):
            # Drawn at the mask's size, and then made smaller by area: a small object stays in sight.
            drawn = outlined(as_colour(picture), [(mask, "")])
            columns[title].append(resize_image(drawn, longest_side(drawn.shape, SHOWN)) / 255)
    return png(image_grid(columns, stems))


if __name__ == "__main__":
    run_main(main)
