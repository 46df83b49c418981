"""Write a noisy copy of every mask of a folder, as training labels with a known error.

    python scripts/generate_simulated_noise.py --gts_root data/Kvasir/masks \
        --save_root data/Kvasir/masks_200_0.8_0.05_0.2_mask_channel0 --theta1 0.8

Shrunk (S_R), expanded (S_E) and dilated or eroded (S_DE) masks: scripts/README.md; docs/method.md section 6. With
--num_classes K each class of 1..K-1 is disturbed in turn.
"""

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.files import list_images, read_mask
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import claimed, keep_settings, write_atomically
from utils.commands.jobs import run_jobs
from utils.masks.noise import class_noise, dilation_erosion_noise, file_generator, markov_noise


class Outcome(NamedTuple):
    """What became of one mask."""

    name: str
    action: str  # "written", "skipped" or "made again"
    dice: float  # of the noisy mask against the clean one, the mean over the classes; 1 where both are empty
    wrong_share: float  # of the image's pixels
    emptied: bool  # of a class
    filled: bool
    soiled: bool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--gts_root", type=Path, required=True, help="folder of clean masks (PNG, JPEG, BMP, TIFF, .npy)"
    )
    parser.add_argument(
        "--save_root", type=Path, required=True, help="folder of the noisy masks, PNG of 0/255 or classes"
    )
    parser.add_argument("--num_classes", type=int, default=2, help="background included (default: %(default)s)")
    parser.add_argument("--noisetype", choices=["Markov", "DE"], default="Markov", help="default: %(default)s")
    parser.add_argument("--T", type=int, default=200, help="Markov: number of steps (default: %(default)s)")
    parser.add_argument(
        "--theta1", type=float, default=0.8, help="Markov: above 0.5 grows, below shrinks (default: %(default)s)"
    )
    parser.add_argument(
        "--theta2", type=float, default=0.05, help="Markov: share of the boundary flipped a step (default: %(default)s)"
    )
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        default=[9.0, 11.0],
        metavar=("LOW", "HIGH"),
        help="DE: how far the outline moves, in pixels (default: 9 11)",
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="make again what is already there")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE.png", help="also draw each kind of noise on the first mask"
    )
    args = parser.parse_args(argv)

    low, high = args.range
    for flag, valid, wanted in (
        ("--num_classes", 2 <= args.num_classes <= 255, "in 2..255"),
        ("--T", args.T >= 1, "at least 1"),
        ("--theta1", 0 <= args.theta1 <= 1, "in 0..1"),
        ("--theta2", 0 <= args.theta2 <= 1, "in 0..1"),
        ("--range", 0 <= low <= high < float("inf"), "two numbers, 0 <= LOW <= HIGH"),
        ("--seed", args.seed >= 0, "at least 0"),
        ("--workers", args.workers >= 1, "at least 1"),
        ("--figure", args.figure is None or args.figure.suffix.lower() == ".png", "a .png file"),
    ):
        if not valid:
            raise UserError(f"{flag} must be {wanted}, got {getattr(args, flag[2:])}")
    for name in ("T", "theta1", "theta2") if args.noisetype == "DE" else ("range",):
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} has no meaning for --noisetype {args.noisetype}: leave one of the two out")
    return args


def make_noisy(source: tuple[str, Path], save_root: Path, noise: Callable, seed: int, num_classes: int) -> Outcome:
    """Write the noisy mask of ``source`` (stem, path), unless a valid one is there."""
    stem, path = source
    clean, soiled = read_mask(path, num_classes)
    target = save_root / f"{stem}.png"
    action = "written"
    noisy = None
    if target.exists():
        noisy = read_valid(target, clean.shape, num_classes)
        action = "made again" if noisy is None else "skipped"
    if noisy is None:
        noisy = class_noise(clean, file_generator(seed, stem), noise, num_classes)
        stored = noisy * 255 if num_classes == 2 else noisy
        write_atomically(target, cv2.imencode(".png", stored)[1].tobytes())
    pairs = [(clean == value, noisy == value) for value in range(1, num_classes)]
    return Outcome(
        path.name,
        action,
        dice=float(np.mean([dice(before, after) for before, after in pairs])),
        wrong_share=float((clean != noisy).mean()),
        emptied=any(before.any() and not after.any() for before, after in pairs),
        filled=any(after.all() and not before.all() for before, after in pairs),
        soiled=soiled,
    )


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two bool masks; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def read_valid(path: Path, shape: tuple[int, int], num_classes: int) -> np.ndarray | None:
    """The noisy mask at ``path``, or None if it is damaged, of another size or of other values."""
    try:
        mask = read_mask(path, num_classes)
    except UserError:
        return None
    return mask.labels if mask.labels.shape == shape and not mask.soiled else None


def summary(outcomes: list[Outcome]) -> str:
    """What was made, in a few lines."""
    actions = Counter(o.action for o in outcomes)
    lines = [
        f"{len(outcomes)} masks: {actions['written']} written, {actions['skipped']} already there and skipped",
        f"mean Dice of noisy against clean masks {np.mean([o.dice for o in outcomes]):.4f}, "
        f"mean share of wrong pixels {np.mean([o.wrong_share for o in outcomes]):.4f}",
    ]
    for label, names in (
        ("made again, the file there was not valid", [o.name for o in outcomes if o.action == "made again"]),
        ("emptied by the noise", [o.name for o in outcomes if o.emptied]),
        ("filled by the noise", [o.name for o in outcomes if o.filled]),
        ("clean mask with in-between greys, thresholded at 128", [o.name for o in outcomes if o.soiled]),
    ):
        if names:
            lines.append(f"{label}: {len(names)} ({listed(names)})")
    return "\n".join(lines)


def draw_figure(target: Path, source: Path, args: argparse.Namespace) -> None:
    """Draw the mask at ``source`` and each kind of noise on it, the clean outlines overlaid, to the PNG ``target``.
    The flags' theta1 apart, which is that of each kind."""
    from matplotlib.figure import Figure  # slow to import

    num_classes = args.num_classes
    clean = read_mask(source, num_classes).labels
    markov = partial(markov_noise, T=args.T, theta2=args.theta2)

    def noisy(noise: Callable) -> np.ndarray:
        return class_noise(clean, file_generator(args.seed, source.stem), noise, num_classes)

    moved = noisy(partial(dilation_erosion_noise, low=args.range[0], high=args.range[1]))
    panels = {
        "clean": clean,
        "S_R: Markov, theta1 = 0.2": noisy(partial(markov, theta1=0.2)),
        "S_E: Markov, theta1 = 0.8": noisy(partial(markov, theta1=0.8)),
        f"S_DE: {'dilated' if moved.sum() > clean.sum() else 'eroded'} here" if num_classes == 2 else "S_DE": moved,
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (title, mask) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axes.imshow(mask, cmap="gray", vmin=0, vmax=num_classes - 1, interpolation="nearest")
        if clean.min() < clean.max():
            axes.contour(clean, levels=np.arange(0.5, num_classes - 1), colors="tab:orange", linewidths=1.5)
        wrong = f"\n{(mask != clean).mean():.1%} of the pixels wrong" if mask is not clean else "\n"
        axes.set_title(title + wrong, fontsize=10)
        axes.set_axis_off()
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_atomically(target, data.getvalue())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sources = list_images(args.gts_root)
    if args.save_root.exists() and args.save_root.samefile(args.gts_root):
        raise UserError(f"--save_root {args.save_root} is --gts_root: the clean masks would be lost; choose another")

    if args.noisetype == "Markov":
        parameters = {"T": args.T, "theta1": args.theta1, "theta2": args.theta2}
        noise = partial(markov_noise, **parameters)
    else:
        parameters = {"low": args.range[0], "high": args.range[1]}
        noise = partial(dilation_erosion_noise, **parameters)
    # Below the folder of both, so that a dataset may be moved.
    source = os.path.relpath(args.gts_root.resolve(), args.save_root.resolve())
    settings = {"gts_root": source, "noisetype": args.noisetype, **parameters, "seed": args.seed}
    if args.num_classes > 2:
        settings["num_classes"] = args.num_classes
    cv2.setNumThreads(1)  # the processes take the cores
    job = partial(make_noisy, save_root=args.save_root, noise=noise, seed=args.seed, num_classes=args.num_classes)
    with claimed(args.save_root):
        outputs = [args.save_root / f"{stem}.png" for stem in sources]
        keep_settings(args.save_root, settings, args.overwrite, outputs, exclusive=True)
        results, failures = run_jobs(job, list(sources.items()), args.workers, "noise")
    outcomes = [result for result in results if result is not None]
    if outcomes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {args.save_root}")
        print(summary(outcomes))
        if args.figure:
            draw_figure(args.figure, args.gts_root / outcomes[0].name, args)
    if failures:
        raise UserError(f"{len(failures)} of {len(sources)} masks were not made:\n" + "\n".join(failures))


if __name__ == "__main__":
    run_main(main)
