"""Write a noisy copy of every mask in a folder, to train on labels whose errors are known.

    python scripts/generate_simulated_noise.py --gts_root data/Kvasir/masks \
        --save_root data/Kvasir/masks_200_0.8_0.05_0.2_mask_channel0 --theta1 0.8
    python scripts/generate_simulated_noise.py --gts_root data/Kvasir/masks --save_root data/Kvasir/masks_polygon \
        --noisetype polygon --target_rate 0.08

Kinds of noise and their strengths: scripts/README.md; formulas and sources: docs/method.md section 6. With
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
from utils.commands.arguments import add_workers, command_parser
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import claimed, keep_settings, write_atomically
from utils.commands.jobs import run_jobs
from utils.masks.noise import class_noise, file_generator
from utils.masks.noise_kinds import KINDS, matching_strength, parameters_at

STRENGTH_FLAGS = {"Markov": "T", "DE": "range"}  # of the other kinds: strength
THETAS = ("theta1", "theta2")


class Source(NamedTuple):
    """A clean mask."""

    stem: str
    path: Path
    noisy: bool  # whether it is to be disturbed


class Outcome(NamedTuple):
    """What became of one mask."""

    name: str
    action: str  # "written", "skipped" or "made again"
    dice: float  # of the noisy mask against the clean one, the mean over the classes; 1 where both are empty
    noise_rate: float  # share of the image's pixels whose label changed
    emptied: bool  # of a class
    filled: bool
    artefacts: bool


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--gts_root", type=Path, required=True, help="folder of clean masks (PNG, JPEG, BMP, TIFF, .npy)")
    add("--save_root", type=Path, required=True, help="folder to write the noisy masks to")
    add("--num_classes", type=int, default=2, help="number of classes, background included (default: %(default)s)")
    add("--noisetype", choices=list(KINDS), default="Markov", help="kind of noise (default: %(default)s)")
    add("--T", type=int, default=200, help="Markov: number of steps (default: %(default)s)")
    add(
        "--theta1",
        type=float,
        default=0.8,
        help="Markov: above 0.5 masks grow, below they shrink (default: %(default)s)",
    )
    add(
        "--theta2",
        type=float,
        default=0.05,
        help="Markov: share of the boundary pixels that a step flips (default: %(default)s)",
    )
    add(
        "--range",
        type=float,
        nargs=2,
        default=[9.0, 11.0],
        metavar=("LOW", "HIGH"),
        help="DE: how far the outline moves, in pixels (default: 9 11)",
    )
    defaults = ", ".join(f"{name} {kind.strength:g}" for name, kind in KINDS.items() if name not in STRENGTH_FLAGS)
    add("--strength", type=float, help=f"strength of the other kinds of noise (default: {defaults})")
    add("--target_rate", type=float, help="find the strength at which this share of all pixels is wrong")
    add("--alpha", type=float, default=1.0, help="share of the masks that get noise (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add_workers(parser)
    add("--overwrite", action="store_true", help="replace masks that are already there")
    add("--figure", type=Path, metavar="FILE.png", help="also draw every kind of noise on the first mask")
    args = parser.parse_args(argv)

    low, high = args.range
    largest = KINDS[args.noisetype].largest
    for flag, valid, wanted in (
        ("--num_classes", 2 <= args.num_classes <= 255, "in 2..255"),
        ("--T", args.T >= 1, "at least 1"),
        ("--theta1", 0 <= args.theta1 <= 1, "in 0..1"),
        ("--theta2", 0 <= args.theta2 <= 1, "in 0..1"),
        ("--range", 0 <= low <= high < float("inf"), "two numbers, 0 <= LOW <= HIGH"),
        ("--target_rate", args.target_rate is None or 0 < args.target_rate < 1, "between 0 and 1"),
        ("--alpha", 0 < args.alpha <= 1, "above 0 and at most 1"),
        ("--seed", args.seed >= 0, "at least 0"),
        ("--figure", args.figure is None or args.figure.suffix.lower() == ".png", "a .png file"),
    ):
        if not valid:
            raise UserError(f"{flag} must be {wanted}, got {getattr(args, flag[2:])}")
    own = STRENGTH_FLAGS.get(args.noisetype, "strength")
    for name in ("T", *THETAS, "range", "strength"):
        meant = name == own or (args.noisetype == "Markov" and name in THETAS)
        if not meant and getattr(args, name) != parser.get_default(name):
            raise UserError(f"--{name} has no meaning for --noisetype {args.noisetype}: leave one of the two out")
    if args.strength is not None and not 0 < args.strength <= largest:
        raise UserError(
            f"--strength of {args.noisetype} noise must be above 0 and at most {largest:.3g}, got {args.strength:g}"
        )
    if args.target_rate is not None and getattr(args, own) != parser.get_default(own):
        raise UserError(f"--target_rate finds --{own}: leave one of the two out")
    return args


def parameters_of(args: argparse.Namespace, kind: str) -> dict[str, float]:
    """The parameters of a kind of noise as the flags give them, by default its own."""
    if kind == "Markov":
        return {name: getattr(args, name) for name in ("T", *THETAS)}
    if kind == "DE":
        return dict(zip(("low", "high"), args.range, strict=True))
    return {"strength": args.strength if args.strength and kind == args.noisetype else KINDS[kind].strength}


def matched(
    kind: str, parameters: dict[str, float], sources: list[Source], args: argparse.Namespace
) -> dict[str, float]:
    """``parameters`` of a kind of noise at the strength that makes the share --target_rate of the pixels wrong.

    The share is the mean over all masks. Prints what was found. Raises `UserError` if the noise cannot make as many
    wrong, or no mask can be read.
    """
    rates: dict[float, float] = {}

    def rate(strength: float) -> float:
        noise = partial(KINDS[kind].noise, **(parameters | parameters_at(kind, strength)))
        job = partial(noise_rate, noise=noise, seed=args.seed, num_classes=args.num_classes)
        found, failures = run_jobs(job, sources, args.workers, f"{kind}, strength {strength:g}")
        shares = [share for share in found if share is not None]
        if not shares:
            raise UserError(f"none of {len(sources)} masks can be read:\n" + "\n".join(failures))
        rates[strength] = float(np.mean(shares))
        return rates[strength]

    strength = matching_strength(rate, args.target_rate, KINDS[kind].strength, KINDS[kind].largest)
    parameters = parameters | parameters_at(kind, strength)
    words = ", ".join(f"{name} {value:g}" for name, value in parameters.items())
    print(f"{kind}: {words} makes {rates[strength]:.4f} of the pixels wrong (--target_rate {args.target_rate:g})")
    return parameters


def choose(sources: dict[str, Path], alpha: float, seed: int) -> list[Source]:
    """All masks, of which a share ``alpha``, rounded down, is to be disturbed: those with the smallest numbers, drawn
    for each by its name."""
    drawn = sorted(sources, key=lambda stem: file_generator(seed, f"alpha {stem}").random())
    noisy = set(drawn[: int(alpha * len(drawn) + 1e-9)])
    return [Source(stem, path, stem in noisy) for stem, path in sources.items()]


def disturbed(source: Source, clean: np.ndarray, noise: Callable, seed: int, num_classes: int) -> np.ndarray:
    """The noisy mask of a source."""
    return class_noise(clean, file_generator(seed, source.stem), noise, num_classes) if source.noisy else clean


def noise_rate(source: Source, noise: Callable, seed: int, num_classes: int) -> float:
    """The label noise rate of the noisy mask of a source: the share of its pixels that are wrong."""
    clean = read_mask(source.path, num_classes).labels
    return float((disturbed(source, clean, noise, seed, num_classes) != clean).mean())


def make_noisy(source: Source, save_root: Path, noise: Callable, seed: int, num_classes: int) -> Outcome:
    """Write the noisy mask of ``source``, unless a valid one is there."""
    clean, artefacts = read_mask(source.path, num_classes)
    target = save_root / f"{source.stem}.png"
    action = "written"
    noisy = None
    if target.exists():
        noisy = read_valid(target, clean.shape, num_classes)
        action = "made again" if noisy is None else "skipped"
    if noisy is None:
        noisy = disturbed(source, clean, noise, seed, num_classes)
        stored = noisy * 255 if num_classes == 2 else noisy
        write_atomically(target, cv2.imencode(".png", stored)[1].tobytes())
    pairs = [(clean == value, noisy == value) for value in range(1, num_classes)]
    return Outcome(
        source.path.name,
        action,
        dice=float(np.mean([dice(before, after) for before, after in pairs])),
        noise_rate=float((clean != noisy).mean()),
        emptied=any(before.any() and not after.any() for before, after in pairs),
        filled=any(after.all() and not before.all() for before, after in pairs),
        artefacts=artefacts,
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
    return mask.labels if mask.labels.shape == shape and not mask.artefacts else None


def summary(outcomes: list[Outcome]) -> str:
    """What was made, in a few lines."""
    actions = Counter(o.action for o in outcomes)
    lines = [
        f"{len(outcomes)} masks: {actions['written']} written, {actions['skipped']} already there and skipped",
        f"mean Dice of noisy against clean masks {np.mean([o.dice for o in outcomes]):.4f}, "
        f"label noise rate {np.mean([o.noise_rate for o in outcomes]):.4f}",
    ]
    for label, names in (
        ("made again, the file there was not valid", [o.name for o in outcomes if o.action == "made again"]),
        ("emptied by the noise", [o.name for o in outcomes if o.emptied]),
        ("filled by the noise", [o.name for o in outcomes if o.filled]),
        ("clean mask with compression artefacts, thresholded at 128", [o.name for o in outcomes if o.artefacts]),
    ):
        if names:
            lines.append(f"{label}: {len(names)} ({listed(names)})")
    return "\n".join(lines)


def draw_figure(target: Path, sources: list[Source], args: argparse.Namespace) -> None:
    """Draw the first mask and all kinds of noise on it, the clean outlines overlaid, to the PNG ``target``.

    Each kind has the strength that reaches --target_rate, without that flag its default.
    """
    from matplotlib.figure import Figure  # slow to import

    num_classes, sources = args.num_classes, [source._replace(noisy=True) for source in sources]
    clean = read_mask(sources[0].path, num_classes).labels
    kinds: dict[str, tuple[str, dict[str, float]]] = {
        "S_R: Markov, theta1 0.2": ("Markov", {"theta1": 0.2}),
        "S_E: Markov, theta1 0.8": ("Markov", {"theta1": 0.8}),
        "S_DE: DE": ("DE", {}),
        **{name: (name, {}) for name in KINDS if name not in STRENGTH_FLAGS},
    }
    panels = {"clean": clean}
    for title, (kind, own) in kinds.items():
        parameters = parameters_of(args, kind) | own
        if args.target_rate is not None:
            parameters = matched(kind, parameters, sources, args)
        noise = partial(KINDS[kind].noise, **parameters)
        noisy = disturbed(sources[0], clean, noise, args.seed, num_classes)
        panels[f"{title}\n{(noisy != clean).mean():.1%} of the pixels wrong"] = noisy
    figure = Figure(figsize=(12, 7.2), layout="constrained")
    axes = figure.subplots(3, 4).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, mask) in zip(axes, panels.items(), strict=False):
        axis.imshow(mask, cmap="gray", vmin=0, vmax=num_classes - 1, interpolation="nearest")
        if clean.min() < clean.max():
            axis.contour(clean, levels=np.arange(0.5, num_classes - 1), colors="tab:orange", linewidths=1.5)
        axis.set_title(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_atomically(target, data.getvalue())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sources = choose(list_images(args.gts_root), args.alpha, args.seed)
    if args.save_root.exists() and args.save_root.samefile(args.gts_root):
        raise UserError(f"--save_root {args.save_root} is --gts_root: the clean masks would be lost; choose another")

    cv2.setNumThreads(1)  # the processes take the cores
    parameters = parameters_of(args, args.noisetype)
    if args.target_rate is not None:
        parameters = matched(args.noisetype, parameters, sources, args)
    # Below the folder of both, so that a dataset may be moved.
    root = os.path.relpath(args.gts_root.resolve(), args.save_root.resolve())
    settings = {"gts_root": root, "noisetype": args.noisetype, **parameters, "seed": args.seed}
    # Those that change nothing are left out: folders made before they were there have the same settings.
    settings |= {"num_classes": args.num_classes} if args.num_classes > 2 else {}
    settings |= {"alpha": args.alpha} if args.alpha < 1 else {}
    settings |= {"target_rate": args.target_rate} if args.target_rate is not None else {}
    job = partial(
        make_noisy,
        save_root=args.save_root,
        noise=partial(KINDS[args.noisetype].noise, **parameters),
        seed=args.seed,
        num_classes=args.num_classes,
    )
    with claimed(args.save_root):
        outputs = [args.save_root / f"{source.stem}.png" for source in sources]
        keep_settings(args.save_root, settings, args.overwrite, outputs, exclusive=True)
        results, failures = run_jobs(job, sources, args.workers, "noise")
    outcomes = [result for result in results if result is not None]
    if outcomes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {args.save_root}")
        print(summary(outcomes))
        if args.alpha < 1:
            print(f"chosen for noise: {sum(source.noisy for source in sources)}; the others are copies")
        if args.figure:
            readable = [source for source, result in zip(sources, results, strict=True) if result]
            draw_figure(args.figure, readable, args)
    if failures:
        raise UserError(f"{len(failures)} of {len(sources)} masks were not made:\n" + "\n".join(failures))


if __name__ == "__main__":
    run_main(main)
