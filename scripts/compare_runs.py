"""Compare training runs on one dataset: a table of their test figures, and a picture of what each has learned.

    python scripts/compare_runs.py model/phantom+ce+02 model/phantom+gsd+02 --figure comparison.png

The table says what each run was scored on: test masks, or, in a folder without a test set, training masks that were
held out, which are noisy.

The picture, of runs of train_GSD-Net.py, shows training images: the image, its mask in the folder of clean masks, the
noisy mask that the networks were given, and each run's prediction, all with the outline of the former in yellow. Where
--noise_type was given or clean the two masks are one. Clean masks are never used in training on noisy ones.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from dataloaders.files import list_images, read_image, read_mask
from dataloaders.noisy_folder import find_dataset
from utils.commands.arguments import number
from utils.commands.errors import UserError, run_main
from utils.commands.files import read_json, write_atomically
from utils.engine.figures import image_grid, outlined, png
from utils.engine.inference import Model, load_model
from utils.masks.geometry import resize_image, resize_label

FIGURES = {  # of result.json: title, format
    "epochs": ("epochs", ".0f"),
    "final_dice_mean": ("Dice", ".4f"),
    "final_dice_std": ("+-", ".4f"),
    "final_iou_mean": ("IoU", ".4f"),
    "hd95": ("HD95", ".2f"),
    "seconds_per_epoch": ("s/epoch", ".1f"),
}
SAME = ("datasets", "noise_type", "image_size", "num_classes")  # settings of all runs of a picture


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, all of one dataset")
    parser.add_argument("--figure", type=Path, help="where to draw the picture (PNG)")
    parser.add_argument("--images", type=number(int, 1, 100), help="rows of the picture (default: 4)")
    args = parser.parse_args()
    if args.images and not args.figure:
        parser.error("--images: rows of the picture, which --figure asks for")

    results = {run: read_result(run) for run in args.runs}
    print_table(results)
    if args.figure:
        draw(list(results), args.images or 4, args.figure)
        print(f"picture: {args.figure}")


def read_result(run: Path) -> dict:
    """result.json of a complete run, with hd95, that of the last epoch, beside the other figures.

    Raises `UserError` if there is none, or if it has no Dice or what is no number; other figures may be lacking.
    """
    path = run / "result.json"
    remedy = "run it again with --resume when it is removed"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is the run complete?")
    result = read_json(path, remedy)
    if not isinstance(result, dict) or result.get("final_dice_mean") is None:
        raise UserError(f"{path}: not a run's result, as it has no final_dice_mean; {remedy}")
    last = result.get("last_epoch")
    result["hd95"] = last.get("hd95") if isinstance(last, dict) else None
    for name in FIGURES:
        if not isinstance(result.get(name), int | float | None):
            raise UserError(f"{path}: {name} is {result[name]!a}, not a number; {remedy}")
    return result


def print_table(results: dict[Path, dict]) -> None:
    """A row a run; a figure that it does not have, or that is undefined, is a dash."""
    width = max(3, *(len(run.name) for run in results))
    titles = [f"{title:>{max(6, len(title))}}" for title, _ in FIGURES.values()]
    print("  ".join([f"{'run':<{width}}", *titles, "scored on"]))
    for run, result in results.items():
        values = [(result.get(name), form) for name, (_, form) in FIGURES.items()]
        cells = ["-" if value is None else format(value, form) for value, form in values]
        cells = [f"{cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=True)]
        print("  ".join([f"{run.name:<{width}}", *cells, scored_on(result)]))
    print("Dice and IoU: mean of the last epochs (result.json: averaged_epochs); +-: their standard deviation; HD95 in")
    print("pixels of the masks as they were scored, after the last epoch.")
    masks = [scored_masks(run, result) for run, result in results.items()]
    if any(len(set(found) - {None}) > 1 for found in zip(*masks, strict=True)):  # what is not known is no difference
        print("note: these runs were not scored on the same masks, so their figures do not compare")


def scored_on(result: dict) -> str:
    """What a run was scored on, in words."""
    return str(result.get("scored_on", "not recorded"))


def scored_masks(run: Path, result: dict) -> tuple:
    """What tells the masks apart that runs were scored on, each None where the run's folder does not have it: what they
    are, their number, their names, the dataset, and of held-out masks, which are those of training, the kind of noise.

    Raises `UserError` if args.json or per_image.csv is damaged.
    """
    table, record = run / "per_image.csv", run / "args.json"
    settings = read_json(record, "remove it to compare without it") if record.is_file() else {}
    settings = settings if isinstance(settings, dict) else {}
    names = None
    if table.is_file():
        try:
            with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
                rows = csv.DictReader(file)
                names = sorted(str(row["image"]) for row in rows) if "image" in (rows.fieldnames or ()) else None
        except csv.Error as error:
            raise UserError(f"{table}: not readable as a table ({error}); remove it to compare without it") from error
    dataset = str(settings["datasets"]).lower() if settings.get("datasets") else None
    noise = settings.get("noise_type") if scored_on(result).startswith("held-out") else None
    found = (result.get("scored_on"), result.get("test_cases"), names, dataset, noise)
    return tuple(None if value is None else str(value) for value in found)  # damaged files may hold anything


def load_models(runs: list[Path]) -> list[Model]:
    """The networks of each run. Raises `UserError` if one is of several annotators, or they differ in `SAME`."""
    models = [load_model(run / "checkpoint.pt", torch.device("cpu"), "fp32") for run in runs]
    first = models[0].settings
    for run, model in zip(runs, models, strict=True):
        lacking = [name for name in (*SAME, "data_root", "exp") if name not in model.settings]
        if lacking:
            raise UserError(
                f"--figure: {run}: its checkpoint records no {', '.join(lacking)}; only runs of train_GSD-Net.py, on "
                "images with one mask each, can be drawn: leave --figure out, or this run"
            )
        for name in SAME:
            if model.settings[name] != first[name]:
                raise UserError(f"{run}: --{name} {model.settings[name]} differs from {runs[0]}'s {first[name]}")
        if model.channels != models[0].channels:
            raise UserError(
                f"{run}: trained on images of {model.channels} channels, {runs[0]} on {models[0].channels}; "
                "draw them apart"
            )
    return models


def draw(runs: list[Path], count: int, path: Path) -> None:
    """Draw ``count`` training images with their masks and every run's prediction."""
    models = load_models(runs)
    settings, size, classes = models[0].settings, models[0].image_size, models[0].num_classes
    data_root = Path(settings["data_root"])
    if not data_root.is_dir():
        raise UserError(
            f"--figure: {runs[0]} was trained on --data_root {data_root}, which is not there; start this in the folder "
            "where it was trained, or leave --figure out"
        )
    dataset, layout = find_dataset(data_root, settings["datasets"])

    images = list_images(dataset / layout.images)
    folders = {"clean mask": layout.masks, "noisy mask": layout.training_masks(settings["noise_type"])}
    if folders["noisy mask"] == layout.masks:
        folders = {"training mask": layout.masks}
    files = {title: list_images(dataset / name) for title, name in folders.items()}
    stems = [stem for stem in images if all(stem in paths for paths in files.values())]
    if not stems:
        raise UserError(
            f"--figure: no image of {dataset / layout.images} has a file in {' and '.join(folders.values())}"
        )
    stems = [stems[i] for i in np.linspace(0, len(stems) - 1, min(count, len(stems))).round().astype(int)]
    pictures = np.stack([resize_image(read_image(images[stem], models[0].channels), size) for stem in stems])
    masks = {
        title: np.stack([resize_label(read_mask(paths[stem], classes).labels, size) for stem in stems])
        for title, paths in files.items()
    }
    outlines = next(iter(masks.values()))

    inputs = torch.from_numpy(pictures).movedim(-1, 1)
    names = [model.settings["exp"] for model in models]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    for name, model in zip(names, models, strict=True):
        masks[name] = torch.cat([model.logits(part).argmax(dim=1) for part in inputs.split(8)]).numpy()
    shown = pictures if pictures.shape[-1] == 3 else pictures[..., :1].repeat(3, axis=-1)
    columns = {"training image": shown / 255}
    for title, values in masks.items():
        grey = np.repeat((values / (classes - 1))[..., None], 3, axis=-1)
        columns[title] = np.stack([outlined(g, c) for g, c in zip(grey, outlines, strict=True)])
    write_atomically(path, png(image_grid(columns, stems)))


if __name__ == "__main__":
    run_main(main)
