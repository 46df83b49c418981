"""Score predicted masks against given ones: a table an image, and a summary.

    python scripts/evaluate.py --predictions predicted --masks data/mine/masks_test --save scores.csv

Files are paired by the name before the suffix; one without a partner, or of another size than its partner, is an error
that names it. Several folders of --masks are several annotators of the same images. scores.csv has a row an image;
scores.summary.json, and what is printed, the mean, standard deviation (of the population) and median of each column:

- dice, iou: overlap of the foreground, of more than two classes the mean over the foreground classes;
  dice_class1, ...: of each class; hd95, assd: distances between the outlines in pixels; nsd: surface Dice at 2 pixels.
- with several annotators the means over them, and dice_rater1, ..., dice_majority, soft_dice and ged (README).

An overlap of two empty masks is 1; a distance to an empty mask is undefined, left out of the mean and counted.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.files import list_images, pair_by_stem, read_mask
from utils.commands.arguments import number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import write_json, write_table
from utils.commands.jobs import run_jobs
from utils.engine.evaluation import take_counts
from utils.engine.metrics import case_scores, overlap_scores
from utils.engine.report import empty_lines, titles_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--predictions", type=Path, required=True, help="folder of predicted masks")
    add("--masks", type=Path, nargs="+", required=True, help="folder of the masks to score against, one an annotator")
    add("--save", type=Path, required=True, metavar="FILE.csv", help="where to write the scores of each image")
    add("--num_classes", type=number(int, 2, 255), default=2, help="classes, background included (default: 2)")
    add("--workers", type=number(int, 1), default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args(argv)
    if args.save.suffix.lower() != ".csv":
        raise UserError(f"--save must be a .csv file, got {args.save}")
    return args


def find_cases(predictions: Path, mask_folders: list[Path]) -> list[tuple[Path, ...]]:
    """Each prediction with the mask of every annotator, in the order of their stems."""
    predicted = list_images(predictions)
    masks = [list_images(folder) for folder in mask_folders]
    for of_rater in masks:
        pair_by_stem(of_rater, predicted, predictions)
    return [(path, *(of_rater[stem] for of_rater in masks)) for stem, path in predicted.items()]


def score(case: tuple[Path, ...], num_classes: int) -> tuple[dict[str, float], list[Path]]:
    """The scores of one prediction, and the files in which in-between greys were thresholded."""
    read = [read_mask(path, num_classes) for path in case]
    for path, mask in zip(case, read, strict=True):
        if mask.labels.shape != read[0].labels.shape:
            height, width = mask.labels.shape
            raise UserError(
                f"{path}: {width}x{height} pixels, but {case[0]} has {read[0].labels.shape[1]}x"
                f"{read[0].labels.shape[0]}; predictions are scored at the size of the masks"
            )
    labels = torch.from_numpy(np.stack([mask.labels for mask in read]))
    prediction, masks = labels[0], labels[1:]
    scores = case_scores(prediction[None], masks[:, None], num_classes, surfaces=True)
    if num_classes > 2:
        repeated = prediction.expand_as(masks)
        for k in range(1, num_classes):
            scores[f"dice_class{k}"] = overlap_scores(repeated == k, masks == k, 2)["dice"].mean().item()
    return scores, [path for path, mask in zip(case, read, strict=True) if mask.soiled]


def figures(scores: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean, standard deviation (of the population) and median of each score over the cases on which it is defined."""
    names = next(iter(scores.values()))
    defined = {name: [case[name] for case in scores.values() if not math.isnan(case[name])] for name in names}
    kinds: dict[str, Callable[[list[float]], float]]
    kinds = {"mean": statistics.fmean, "std": statistics.pstdev, "median": statistics.median}
    return {
        kind: {name: figure(values) if values else None for name, values in defined.items()}
        for kind, figure in kinds.items()
    }


def print_summary(summary: dict) -> None:
    """The table that is printed."""
    print(f"\n{summary['predictions']} against {', '.join(summary['masks'])}: {summary['images']} images")
    print(f"  {'':<32}{'mean':>10}{'+-':>10}{'median':>10}")
    for name, title in titles_of(summary["mean"]).items():
        values = [summary[kind][name] for kind in ("mean", "std", "median")]
        print(f"  {title:<32}" + "".join(f"{'undefined' if v is None else format(v, '.4f'):>10}" for v in values))
    for line in empty_lines(summary["empty_masks"], summary["undefined"]):
        print(line)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cases = find_cases(args.predictions, args.masks)
    torch.set_num_threads(1)  # the processes take the cores
    results, failures = run_jobs(partial(score, num_classes=args.num_classes), cases, args.workers, "scoring")
    if failures:  # a mean over what is left would be that of another set
        raise UserError(
            f"{len(failures)} of {len(cases)} images cannot be scored; nothing written:\n" + "\n".join(failures)
        )
    soiled = [path for _, paths in results for path in paths]
    if soiled:
        print(f"note: in-between greys thresholded at 128 in {len(soiled)} files: {listed(soiled)}")
    scores = {case[0].stem: values for case, (values, _) in zip(cases, results, strict=True)}
    empty, undefined = take_counts(scores)
    summary = {
        "predictions": str(args.predictions),
        "masks": [str(folder) for folder in args.masks],
        "num_classes": args.num_classes,
        "images": len(cases),
        **figures(scores),
        "undefined": undefined,
        "empty_masks": empty,
    }
    rows = [{"image": name, **{key: round(value, 6) for key, value in case.items()}} for name, case in scores.items()]
    write_table(args.save, rows)
    write_json(args.save.with_suffix(".summary.json"), summary)
    print_summary(summary)
    print(f"{args.save}, {args.save.with_suffix('.summary.json').name}: these figures, and those of each image")


if __name__ == "__main__":
    run_main(main)
