"""How well contour correction mends displaced masks, and whether it leaves the others alone.

    python benchmarks/contours.py --data_root data

corrects the masks of all training images as training does with --contours corrected (docs/method.md section 8), and
prints a table of their mean Dice with the clean masks, at the training size:

- given, corrected, and corrected again: the noisy masks, once and twice corrected;
- N superpixels: corrected, then every pixel given the label that most of its SLIC superpixel has;
- moved: share of the masks whose contour the correction moved.

The last rows have the clean masks on images that show nothing of them: noise that is independent from pixel to pixel,
and smoothed. Noisy masks are made by the project's own script, with seed 0, where they are not there yet.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy import NOISES, make_noise
from dataloaders.files import list_images, pair_by_stem, read_image, read_mask
from dataloaders.noisy_folder import find_dataset
from utils.commands.arguments import number
from utils.commands.errors import run_main
from utils.engine.metrics import case_scores
from utils.engine.scores import mean_of
from utils.masks.contours import levels_of, move_contour, steps
from utils.masks.edge_profile import displacements
from utils.masks.geometry import resize_image, resize_label
from utils.masks.superpixels import slic_segments

SUPERPIXELS = (256, 1024)


class Corrected(NamedTuple):
    """The masks of a set, corrected."""

    labels: list[np.ndarray]
    moved: float  # share of the masks


def correct(images: list[np.ndarray], labels: list[np.ndarray]) -> Corrected:
    """Move the contours of ``labels`` (H,W) to the edges that ``images`` (H,W,C) show, all of one size."""
    size = labels[0].shape
    levels = displacements([steps(*one) for one in zip(images, labels, strict=True)], levels_of(size), max(size))
    return Corrected(list(map(move_contour, labels, levels)), float(np.mean(levels != 0)))


def majority(label: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """A label (H,W) of 0 and 1 with the value that most pixels of their segment have; 1 where it is half of them."""
    share = np.bincount(segments.ravel(), label.ravel()) / np.bincount(segments.ravel())
    return (share[segments] >= 0.5).astype(label.dtype)


def mean_dice(labels: list[np.ndarray], clean: list[np.ndarray]) -> float:
    """The mean Dice of masks against clean ones, over those that have foreground; NaN if none has."""
    mean = mean_of(case_scores(a[None], b[None, None], 2)["dice"] for a, b in zip(labels, clean, strict=True))
    return float("nan") if mean is None else mean


def noise_like(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Gaussian noise like an image, uint8 (H,W,C), smoothed over ``sigma`` pixels."""
    noise = gaussian_filter(rng.standard_normal(image.shape), sigma, axes=(0, 1))
    return np.clip(127.5 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--datasets", nargs="+", default=["shenzhen", "Kvasir"], metavar="NAME")
    parser.add_argument("--image_size", type=number(int, 16), default=128, help="default: %(default)s")
    parser.add_argument(
        "--work_root", type=Path, default=Path("model/accuracy"), help="log of the scripts (%(default)s)"
    )
    return parser.parse_args(argv)


def rows_of(name: str, args: argparse.Namespace, show: Callable[..., None]) -> None:
    """Show the rows of one dataset."""
    dataset, layout = find_dataset(args.data_root, name)
    make_noise(dataset, layout, list(NOISES), args.work_root)
    paths = list_images(dataset / layout.images)
    images = [resize_image(read_image(path), args.image_size) for path in paths.values()]
    segments = {n: [slic_segments(image, n) for image in images] for n in SUPERPIXELS}

    def masks(kind: str) -> list[np.ndarray]:
        folder = dataset / layout.training_masks(kind)
        pairs = pair_by_stem(paths, list_images(folder), folder)
        return [resize_label(read_mask(mask).labels, args.image_size) for _, mask in pairs]

    clean = masks("clean")
    for kind, effect in {**NOISES, "clean": "clean"}.items():
        given = masks(kind)
        once = correct(images, given)
        again = correct(images, once.labels)
        by_segment = [list(map(majority, once.labels, segments[n])) for n in SUPERPIXELS]
        scores = [mean_dice(labels, clean) for labels in (given, once.labels, again.labels, *by_segment)]
        show(f"{name} {effect}", *(f"{score:.4f}" for score in scores), f"{once.moved:.0%}")
    rng = np.random.default_rng(0)
    for sigma, words in ((0, "independent noise"), (4, "smoothed noise")):
        found = correct([noise_like(image, rng, sigma) for image in images], clean)
        blank = [""] * (1 + len(SUPERPIXELS))
        show(f"{name} clean, {words}", "1.0000", f"{mean_dice(found.labels, clean):.4f}", *blank, f"{found.moved:.0%}")


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)

    def show(*cells: str) -> None:
        print("| " + " | ".join(cells) + " |", flush=True)

    columns = ["masks", "given", "corrected", "again", *(f"{n} superpixels" for n in SUPERPIXELS), "moved"]
    show(*columns)
    show(*["---"] * len(columns))
    for name in args.datasets:
        rows_of(name, args, show)


if __name__ == "__main__":
    run_main(main)
