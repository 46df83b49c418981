"""Score predicted masks against reference masks: a table with a row for each image, and a summary.

    python scripts/evaluate.py --predictions predicted --masks data/mine/masks_test --save scores.csv

Files are paired by the name before the suffix; one without a partner, or of another size than its partner, is an error
that names it. Several folders of --masks are several raters of the same images. scores.csv has a row for each image.
scores.summary.json, which is also printed, has the mean of each score, its standard deviation (of the population), its
median, and the number of images behind it:

- dice, iou: overlap of the foreground, of more than two classes the mean over the foreground classes;
  dice_class1, ...: of each class; hd95, assd: distances between the outlines in pixels; nsd: surface Dice at 2 pixels.
- with several raters: the means over them, and dice_rater1, ..., dice_majority, soft_dice and ged.
- specificity_class1, false_pixels_class1, ...: of the masks without the class, how many predictions lack it too, and
  how many pixels they have.

A class is scored where the mask has it and is blank elsewhere; a prediction that alone lacks it has the overlap 0, and
the image's diagonal for a distance. The mean is that over the classes of the means of each (docs/predict.md).
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.files import list_images, pair_by_stem, read_mask
from utils.commands.arguments import add_ignore_label, add_workers, command_parser, number
from utils.commands.errors import UserError, listed, run_main, warn
from utils.commands.files import write_json, write_table
from utils.commands.jobs import run_jobs
from utils.engine.score_table import check_class_names, foot, titles_of
from utils.engine.scores import Row, all_empty, as_table, set_scores


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="folder of predicted masks")
    add(
        "--masks",
        type=Path,
        nargs="+",
        required=True,
        help="folder of the reference masks; several folders are several raters",
    )
    add("--save", type=Path, required=True, metavar="FILE.csv", help="where to write the table of scores")
    add(
        "--num_classes", type=number(int, 2, 255), default=2, help="number of classes, background included (default: 2)"
    )
    add_ignore_label(parser)
    add("--class_names", nargs="+", default=[], metavar="NAME", help="names of the classes 1, 2, ... in the table")
    add_workers(parser)
    args = parser.parse_args(argv)
    if args.save.suffix.lower() != ".csv":
        raise UserError(f"--save must be a .csv file, got {args.save}")
    check_class_names(args.class_names, args.num_classes)
    return args


def find_cases(predictions: Path, mask_folders: list[Path]) -> list[tuple[Path, ...]]:
    """Each prediction with the mask of every rater, in the order of their stems."""
    predicted = list_images(predictions)
    masks = [list_images(folder) for folder in mask_folders]
    for of_rater in masks:
        pair_by_stem(of_rater, predicted, predictions)
    return [(path, *(of_rater[stem] for of_rater in masks)) for stem, path in predicted.items()]


def score(case: tuple[Path, ...], num_classes: int, ignore_label: int | None) -> tuple[Row, list[Path]]:
    """The scores of one prediction, and the files in which in-between greys were thresholded."""
    from utils.engine.metrics import case_scores  # PyTorch and MONAI: --help answers without them

    # A prediction has a class everywhere.
    read = [read_mask(path, num_classes, ignore_label if number else None) for number, path in enumerate(case)]
    for path, mask in zip(case, read, strict=True):
        if mask.labels.shape != read[0].labels.shape:
            height, width = mask.labels.shape
            raise UserError(
                f"{path}: {width}x{height} pixels, but {case[0]} has {read[0].labels.shape[1]}x"
                f"{read[0].labels.shape[0]}; predictions are scored at the size of the masks"
            )
    labels = np.stack([mask.labels for mask in read])
    scores = case_scores(labels[:1], labels[1:, None], num_classes, surfaces=True)
    return scores, [path for path, mask in zip(case, read, strict=True) if mask.artefacts]


def over_images(rows: Sequence[Row], names: Iterable[str], figure: Callable[[list[float]], float]) -> dict:
    """A figure of each score over the images that have it; None where none has."""
    columns = {name: [row[name] for row in rows] for name in names}
    values = {name: [value for value in column if value is not None] for name, column in columns.items()}
    return {name: figure(found) if found else None for name, found in values.items()}


def print_summary(summary: dict, class_names: Sequence[str]) -> None:
    """The table that is printed."""
    print(f"\n{summary['predictions']} against {', '.join(summary['masks'])}: {summary['images']} images")
    print(f"  {'':<32}{'mean':>10}{'+-':>10}{'median':>10}{'images':>8}")
    for name, title in titles_of(summary["mean"], class_names).items():
        values = [summary[kind][name] for kind in ("mean", "std", "median")]
        cells = "".join(f"{'-' if value is None else format(value, '.4f'):>10}" for value in values)
        print(f"  {title:<32}{cells}{summary['cases'][name]:>8}")
    for line in foot(summary["mean"], summary["cases"], class_names):
        print(line)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cases = find_cases(args.predictions, args.masks)
    import torch

    import utils.engine.metrics  # noqa: F401  # once, not in every process

    torch.set_num_threads(1)  # the processes take the cores
    results, failures = run_jobs(
        partial(score, num_classes=args.num_classes, ignore_label=args.ignore_label), cases, args.workers, "scoring"
    )
    if failures:  # a mean over what is left would be that of another set
        raise UserError(
            f"{len(failures)} of {len(cases)} images cannot be scored; nothing written:\n" + "\n".join(failures)
        )
    artefacts = [path for _, paths in results for path in paths]
    if artefacts:
        print(f"note: compression artefacts, thresholded at 128, in {len(artefacts)} files: {listed(artefacts)}")
    scores = {case[0].stem: values for case, (values, _) in zip(cases, results, strict=True)}
    rows = list(scores.values())
    figures = set_scores(rows)
    if all_empty(rows):
        warn(f"warning: {args.predictions}: all {len(rows)} predictions are empty: nothing but background")
    summary = {
        "predictions": str(args.predictions),
        "masks": [str(folder) for folder in args.masks],
        "num_classes": args.num_classes,
        "ignore_label": args.ignore_label,
        "images": len(cases),
        "mean": figures.means,
        "std": over_images(rows, figures.means, statistics.pstdev),
        "median": over_images(rows, figures.means, statistics.median),
        "cases": figures.cases,
    }
    write_table(args.save, as_table(scores))
    write_json(args.save.with_suffix(".summary.json"), summary)
    print_summary(summary, args.class_names)
    print(f"{args.save}, {args.save.with_suffix('.summary.json').name}: these figures, and those of each image")


if __name__ == "__main__":
    run_main(main)
