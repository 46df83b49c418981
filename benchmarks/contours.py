"""How well contour correction mends displaced masks, and whether it leaves right ones alone.

    python benchmarks/contours.py --data_root data
    python benchmarks/contours.py --data_root data --noises polygon affine elastic missing added box alphabeta weak

decides on the masks of all training images as training does with --contours corrected (docs/method.md section 8), and
prints a row for each kind of mask: its Dice with the clean masks as given and corrected, the share of the masks that
were moved, tau as estimated for masks as given and corrected, and why. Noisy masks that are missing are made
(benchmarks/accuracy.py). Clean masks, and clean masks on images of noise, are to stay as they are. With --lidc, of each
rater's masks of LIDC, the Dice with the majority of the others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.accuracy import NOISES, PAPERS, make_noise, masks_of
from dataloaders.dataset_folder import find_dataset
from dataloaders.files import list_images, pair_by_stem, read_image, read_mask
from dataloaders.lidc import PICKLE, read_slices, read_split
from utils.commands.arguments import command_parser
from utils.commands.errors import run_main
from utils.masks.correction import EDGE_SIZE, findings_of, look_at, moved_label
from utils.masks.geometry import resize_image, resize_label


def mean_dice(labels: Sequence[np.ndarray], clean: Sequence[np.ndarray]) -> float:
    """The mean Dice of two sets of masks; 1 for two that are empty."""
    pairs = [(a != 0, b != 0) for a, b in zip(labels, clean, strict=True)]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1 for a, b in pairs]))


def row(name: str, images: Sequence[np.ndarray], given: Sequence[np.ndarray], clean: Sequence[np.ndarray]) -> None:
    """Decide on a set of masks (H,W), each of its image's size, and print what came of it."""
    looks = [look_at(image, label) for image, label in zip(images, given, strict=True)]
    found = findings_of(looks, 2, corrected=True)
    corrected = [moved_label(label, shift) for label, shift in zip(given, found.shifts, strict=True)]
    scores = [f"{mean_dice(labels, clean):.4f}" for labels in (given, corrected)]
    taus = [f"{findings_of(looks, 2, corrected).tau:.4f}" for corrected in (False, True)]
    moved = np.mean(np.array(found.shifts) != 0)
    print("| " + " | ".join([name, *scores, f"{moved:.0%}", *taus, found.reason]) + " |", flush=True)


def noise_like(image: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """An image of Gaussian noise of the shape of ``image``, smoothed by ``sigma`` pixels; mean 127.5, deviation 50."""
    noise = gaussian_filter(rng.standard_normal(image.shape), sigma, axes=(0, 1))
    return np.clip(127.5 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


def rows_of(name: str, data_root: Path, noises: Sequence[str], log: Path) -> None:
    """The rows of one dataset, its images and masks at `EDGE_SIZE`."""
    dataset, layout = find_dataset(data_root, name)
    for noise in noises:
        if NOISES[noise].made:
            make_noise(dataset, layout, noise, log)
    paths = list_images(dataset / layout.images)
    images = [resize_image(read_image(path), EDGE_SIZE) for path in paths.values()]

    def masks(kind: str) -> list[np.ndarray]:
        folder = dataset / masks_of(layout, kind)
        pairs = pair_by_stem(paths, list_images(folder), folder)
        return [resize_label(read_mask(mask).labels, EDGE_SIZE) for _, mask in pairs]

    clean = masks("clean")
    for kind in noises:
        row(f"{name} {NOISES[kind].name}", images, masks(kind), clean)
    row(f"{name} clean", images, clean, clean)
    rng = np.random.default_rng(0)
    for sigma, words in ((0, "independent noise"), (4, "smoothed noise")):
        row(f"{name} clean, {words}", [noise_like(image, rng, sigma) for image in images], clean, clean)


def rows_of_raters(folder: Path, raters: int = 4) -> None:
    """A row for each rater of LIDC: training slices that the rater and the majority of the others have marked."""
    train, _ = read_split(folder, read_slices(folder / PICKLE, raters))
    for rater in range(raters):
        others = [np.delete(piece.masks, rater, axis=0).sum(axis=0) >= raters / 2 for piece in train]
        both = [i for i, piece in enumerate(train) if piece.masks[rater].any() and others[i].any()]
        given = [train[i].masks[rater] for i in both]
        row(f"LIDC rater {rater + 1}", [train[i].image for i in both], given, [others[i] for i in both])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument("--datasets", nargs="*", default=["shenzhen", "Kvasir"], metavar="NAME")
    kinds = [noise for noise in NOISES if noise != "clean"]
    parser.add_argument("--noises", nargs="+", default=list(PAPERS), choices=kinds, help="default: the paper's three")
    parser.add_argument("--lidc", action="store_true", help="also the raters of data_root/lidc")
    parser.add_argument("--work_root", type=Path, default=Path("model/accuracy"), help="log of the scripts")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    args = parse_args(argv)
    print("| masks | given | corrected | moved | tau, given | tau, corrected | why |")
    print("|---" * 7 + "|")
    for name in args.datasets:
        rows_of(name, args.data_root, args.noises, args.work_root / "prepare.log")
    if args.lidc:
        rows_of_raters(args.data_root / "lidc")


if __name__ == "__main__":
    run_main(main)
