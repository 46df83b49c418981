"""Compare training runs on one dataset: a table of their test figures, and a picture of what each has learned.

    python scripts/compare_runs.py model/phantom+ce+02 model/phantom+gsd+02 --figure comparison.png

The picture shows training images, on which noisy and clean masks are both known: the image, the clean mask, the noisy
mask that the networks were given, and each run's prediction, all with the clean outline in yellow. Clean masks are
never used in training.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from dataloaders.files import list_images, read_image, read_mask
from dataloaders.noisy_folder import find_dataset
from networks.unet import unets_of
from utils.cli import UserError, read_json, run_main, write_atomically
from utils.figures import image_grid, outlined, png
from utils.geometry import resize_image, resize_label
from utils.intensity import Intensity
from utils.run import read_checkpoint
from utils.training import predict


def main() -> None:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, all of one dataset")
    parser.add_argument("--figure", type=Path, help="where to draw the picture (PNG)")
    parser.add_argument("--images", type=int, default=4, help="rows of the picture (default: %(default)s)")
    args = parser.parse_args()

    results = {run: read_result(run) for run in args.runs}
    width = max(len(run.name) for run in results)
    print(f"{'run':<{width}}  {'epochs':>6}  {'Dice':>6}  {'+-':>6}  {'IoU':>6}  {'HD95':>6}  {'s/epoch':>7}")
    for run, result in results.items():
        hd95 = result["last_epoch"]["hd95"]
        print(
            f"{run.name:<{width}}  {result['epochs']:>6}  {result['final_dice_mean']:>6.4f}  "
            f"{result['final_dice_std']:>6.4f}  {result['final_iou_mean']:>6.4f}  "
            f"{'-' if hd95 is None else format(hd95, '.2f'):>6}  {result['seconds_per_epoch']:>7.1f}"
        )
    print("Dice and IoU: mean of the last epochs (result.json: averaged_epochs) against clean test masks; +-: their")
    print("standard deviation; HD95 in pixels at the training size, after the last epoch.")
    if args.figure:
        draw(args.runs, args.images, args.figure)
        print(f"picture: {args.figure}")


def read_result(run: Path) -> dict:
    """result.json of a complete run."""
    path = run / "result.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is the run complete?")
    return read_json(path, "run it again with --resume when it is removed")


def draw(runs: list[Path], count: int, path: Path) -> None:
    """Draw ``count`` training images with their masks and every run's prediction."""
    checkpoints = [read_checkpoint(run / "checkpoint.pt") for run in runs]
    settings = checkpoints[0]["args"]
    size, classes = settings["image_size"], settings["num_classes"]
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        for name in ("datasets", "noise_type", "image_size", "num_classes"):
            if checkpoint["args"][name] != settings[name]:
                raise UserError(f"{run}: --{name} {checkpoint['args'][name]} differs from {runs[0]}'s {settings[name]}")
    dataset, layout = find_dataset(Path(settings["data_root"]), settings["datasets"])

    images = list_images(dataset / layout.images)
    clean_paths = list_images(dataset / layout.masks)
    noisy_paths = list_images(dataset / layout.training_masks(settings["noise_type"]))
    stems = [stem for stem in images if stem in clean_paths and stem in noisy_paths]
    stems = [stems[i] for i in np.linspace(0, len(stems) - 1, min(count, len(stems))).round().astype(int)]
    channels = checkpoints[0]["model"]["in_channels"]
    pictures = np.stack([resize_image(read_image(images[stem], channels), size) for stem in stems])
    clean, noisy = (
        np.stack([resize_label(read_mask(paths[stem], classes).labels, size) for stem in stems])
        for paths in (clean_paths, noisy_paths)
    )

    inputs = torch.from_numpy(pictures).movedim(-1, 1)
    masks = {"clean mask": clean, "noisy mask": noisy}
    for checkpoint in checkpoints:
        intensity = Intensity(**checkpoint["model"]["intensity"])
        predicted = predict(list(unets_of(checkpoint)), inputs, intensity, len(inputs), torch.device("cpu"))
        masks[checkpoint["args"]["exp"]] = predicted.numpy()
    columns = {"training image": np.broadcast_to(pictures / 255, (*pictures.shape[:3], 3))}
    for title, values in masks.items():
        grey = np.repeat((values / (classes - 1))[..., None], 3, axis=-1)
        columns[title] = np.stack([outlined(g, c) for g, c in zip(grey, clean, strict=True)])
    write_atomically(path, png(image_grid(columns, stems)))


if __name__ == "__main__":
    run_main(main)
