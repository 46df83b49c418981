"""Find --tau, the share of wrong pixels, by short trainings. This is slower than --tau auto, but it asks the networks.

    python scripts/search_drop_rate.py --datasets mine --noise_type given --save_root drop_rate/mine --batch_size 8

trains once for each of --candidates, for --max_epochs epochs. Flags after -- go to train_GSD-Net.py, except those that
the search sets itself. The networks of each run then predict the training images. The share tau of the pixels with the
largest losses is dropped, and each run is scored by

    (sum over kept pixels of -log p(label) + sum over dropped pixels of -log(1 - p(label))) / pixels

This is cross-entropy with the labels that are kept, and with the opposite of those that are dropped. It is lowest where
the dropped labels are those that contradict the networks. The search prints a table. It writes drop_rate.json, the
curve drop_rate.png, and the runs to SAVE_ROOT. Run again, it continues where it was interrupted.

The search does not find a displacement that all masks share, since the networks learn it. For that there are contour
correction and --tau auto (docs/method.md sections 8 and 10).
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.dataset_folder import common_format, find_dataset, find_parts
from dataloaders.datasets import NOISE_TYPES, folder_dataset
from utils.commands.arguments import NO_CACHE, add_device, add_ignore_label, command_parser, number
from utils.commands.errors import UserError, run_main
from utils.commands.files import write_atomically, write_json
from utils.commands.jobs import run_child
from utils.commands.passed_flags import take_passed
from utils.masks.geometry import IGNORED

if TYPE_CHECKING:  # slow to import: --help and refusals of flags do without PyTorch
    from matplotlib.figure import Figure

    from dataloaders.training_set import TrainingSet
    from utils.engine.inference import Model

REPO = Path(__file__).resolve().parents[1]
CANDIDATES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
# Flags of the search that are every training's too.
SHARED = (
    *("datasets", "noise_type", "data_root", "slic_root", "cache", "image_size", "num_classes", "channels"),
    *("batch_size", "max_epochs", "contours", "seed", "device", "gpu", "amp", "ignore_label"),
)
# What the search sets for each training, or relies on: GSD-Net, trained on all the images that are then predicted.
FIXED = ("tau", "method", "val_fraction", "exp", "output_root", "masks", "resume")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--datasets", required=True, help="dataset, named as in training")
    add("--noise_type", required=True, choices=NOISE_TYPES, help="training masks of the dataset")
    add("--save_root", type=Path, required=True, help="folder to write the table, the curve and the runs to")
    add(
        "--candidates",
        type=number(float, 0, 1, below=True),
        nargs="+",
        default=CANDIDATES,
        help=f"values of tau to try (default: {' '.join(map(str, CANDIDATES))})",
    )
    add("--max_epochs", type=number(int, 1), default=5, help="number of epochs of each training (default: %(default)s)")
    add("--contours", choices=("given", "corrected"), default="given", help="contours to train on (default: given)")
    add("--data_root", default="data", help="folder that contains the datasets (default: %(default)s)")
    add("--slic_root", help="folder of the superpixels (default: the dataset's own)")
    add(
        "--cache",
        default="cache",
        metavar="FOLDER",
        help="folder that keeps the decoded training set (default: %(default)s)",
    )
    add(
        "--image_size",
        type=number(int, 16),
        default=256,
        help="side of the training images in pixels (default: %(default)s)",
    )
    add(
        "--num_classes", type=number(int, 2, 255), default=2, help="number of classes, background included (default: 2)"
    )
    add("--channels", type=int, choices=(1, 3), help="read grey images as colour (3) or colour images as grey (1)")
    add("--batch_size", type=number(int, 1), default=16, help="images per step (default: %(default)s)")
    add("--seed", type=number(int, 0), default=2024, help="random seed of every training (default: %(default)s)")
    add_ignore_label(parser)
    add_device(parser)
    add("--overwrite", action="store_true", help="replace trainings that were made with other settings")
    add("training", nargs="*", metavar="FLAG", help="after --: more flags for train_GSD-Net.py")
    args = parser.parse_args(argv)
    take_passed(args, parser, (*SHARED, "overwrite"), FIXED)
    args.candidates = sorted(set(args.candidates))
    args.channels = args.channels or folder_dataset(args.datasets).channels
    return args


def load_data(args: argparse.Namespace) -> "TrainingSet":
    """The images and masks that every training sees."""
    import torch

    from dataloaders.noisy_folder import training_source
    from dataloaders.training_set import load_training_set

    dataset, layout = find_dataset(Path(args.data_root), args.datasets)
    parts = find_parts(dataset, layout, args.noise_type, seed=args.seed)
    channels, _ = common_format(parts.images, args.channels)
    source = training_source(parts.train, None, args.image_size, channels, args.num_classes, args.ignore_label)
    return load_training_set(source, NO_CACHE, torch.device("cpu"), args.contours)[0]


def train(args: argparse.Namespace, tau: float) -> Path:
    """Train with ``tau``, or go on with it; returns the checkpoint. Raises `UserError` if training fails."""
    command = [sys.executable, str(REPO / "train_GSD-Net.py"), "--tau", str(tau), "--exp", f"tau{tau}"]
    command += ["--output_root", str(args.save_root / "runs"), "--overwrite" if args.overwrite else "--resume"]
    for name in SHARED:
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    print(f"training with tau {tau}", flush=True)
    if run_child([*command, *args.training]):
        raise UserError(f"--candidates {tau}: training failed, see above (in place of --exp, another --save_root)")
    return args.save_root / "runs" / f"{args.datasets}+tau{tau}+{args.noise_type}" / "checkpoint.pt"


def pixel_losses(model: "Model", data: "TrainingSet", batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log p(label) and -log(1 - p(label)) of every pixel with a label, float32 (pixels,), and whether another class is
    more probable than the label, bool (pixels,)."""
    import torch

    kept, dropped, wrong = [], [], []
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        logits = model.logits(images).float().cpu()
        known = (labels != IGNORED)[:, None]
        classes = torch.where(known, labels[:, None].long(), 0)
        own = logits.gather(1, classes)
        others = logits.scatter(1, classes, -torch.inf).logsumexp(dim=1, keepdim=True)
        total = logits.logsumexp(dim=1, keepdim=True)
        kept.append((total - own)[known].numpy())
        dropped.append((total - others)[known].numpy())
        wrong.append((logits.amax(dim=1, keepdim=True) > own)[known].numpy())
    return np.concatenate(kept), np.concatenate(dropped), np.concatenate(wrong)


def objective(kept: np.ndarray, dropped: np.ndarray, tau: float) -> float:
    """The mean of -log p(label) where the label is kept, of -log(1 - p(label)) where it is dropped: the share ``tau``
    of the pixels with the largest -log p(label) is dropped. kept, dropped: both of every pixel (pixels,)."""
    count = int(tau * len(kept) + 1e-6)
    if count == 0:
        return float(kept.mean(dtype=np.float64))
    order = np.argpartition(kept, len(kept) - count)
    keep, drop = order[: len(kept) - count], order[len(kept) - count :]
    return float((kept[keep].sum(dtype=np.float64) + dropped[drop].sum(dtype=np.float64)) / len(kept))


def curve(values: dict[float, float], best: float) -> "Figure":
    """The objective against tau."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained", dpi=110)
    axis = figure.subplots()
    axis.plot(list(values), list(values.values()), marker="o")
    axis.axvline(best, linestyle=":", color="grey")
    axis.set(xlabel="tau", ylabel="cross-entropy, kept and inverted", title=f"lowest at tau {best:g}")
    return figure


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from utils.engine.device import choose_device
    from utils.engine.inference import load_model

    data = load_data(args)
    device = choose_device(args.device, args.gpu)
    values: dict[float, float] = {}
    disagree: dict[float, float] = {}
    for tau in args.candidates:
        kept, dropped, wrong = pixel_losses(load_model(train(args, tau), device, args.amp), data, args.batch_size)
        values[tau] = objective(kept, dropped, tau)
        disagree[tau] = float(wrong.mean())
    print_table(values, disagree)
    write_results(args, values, disagree)


def print_table(values: dict[float, float], disagree: dict[float, float]) -> None:
    """The objective of each tau, and the share of the labels that its networks hold for wrong."""
    best = min(values, key=values.__getitem__)
    print(f"\n{'tau':>8}{'objective':>12}{'suspected label errors':>24}")
    for tau, value in values.items():
        print(f"{tau:>8g}{value:>12.4f}{disagree[tau]:>24.2%}" + "  lowest" * (tau == best))


def write_results(args: argparse.Namespace, values: dict[float, float], disagree: dict[float, float]) -> None:
    """Write the table and the curve."""
    from utils.engine.figures import png

    best = min(values, key=values.__getitem__)
    rows = [{"tau": tau, "objective": value, "held_for_wrong": disagree[tau]} for tau, value in values.items()]
    settings = {"datasets": args.datasets, "noise_type": args.noise_type, "contours": args.contours}
    settings |= {
        "max_epochs": args.max_epochs,
        "image_size": args.image_size,
        "seed": args.seed,
        "flags": args.training,
    }
    write_json(args.save_root / "drop_rate.json", {"best": best, "candidates": rows, **settings})
    write_atomically(args.save_root / "drop_rate.png", png(curve(values, best)))
    print(f"--tau {best:g}; {args.save_root}: drop_rate.json, drop_rate.png")


if __name__ == "__main__":
    run_main(main)
