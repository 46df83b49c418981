"""How well the audit finds and mends wrong masks, where the true ones are known but hidden from it.

    python benchmarks/audit.py --datasets shenzhen Kvasir --save audit.csv
    python benchmarks/audit.py --datasets shenzhen Kvasir --held_out --save audit_held_out.csv
    python benchmarks/audit.py --datasets shenzhen --checkpoints 02=model/shenzhen+gsd+02/checkpoint.pt --save audit.csv

runs scripts/audit_labels.py on the training images of each dataset with simulated noise (scripts/README.md), as a user
would, and compares what it wrote with the clean masks, at the masks' own sizes. With --held_out on the test images,
which had no part in choosing the audit's constants, with noise that is made for them with seed 1. A row of the table:

- wrong_share: of the pixels of the noisy masks; tau_auto, what --tau auto says of them at --image_size. wrong_corrected
  and tau_corrected: the same of the masks after contour correction, at that size;
- dice_given, dice_refined: mean Dice of the noisy and of the refined masks with the clean ones; gain, their difference;
  closer: share of the images whose refined mask is the better of the two;
- spearman: rank correlation over the images of the audit's score with the Dice of the noisy mask; spearman_area, that
  of the mask's area alone, which is what a score must beat: a displaced contour costs a small object more;
- precision: in a set where the noise has spoiled one mask in five (--seed), the share of spoiled ones among as many
  of the audit's worst; there the other figures are of the spoiled masks alone, and unspoiled is the mean Dice of the
  refined masks of the others.
"""

import argparse
import csv
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scipy.stats import spearmanr

from benchmarks.accuracy import NOISES, PAPERS
from dataloaders.dataset_folder import find_dataset
from dataloaders.files import list_images, read_image, read_mask
from scripts import audit_labels, generate_simulated_noise
from utils.commands.arguments import command_parser, number
from utils.commands.errors import UserError, run_main
from utils.commands.files import write_table
from utils.engine.metrics import case_scores
from utils.masks.correction import findings_of, look_at, moved_label
from utils.masks.geometry import resize_label

SPOILED = 0.2  # share of the masks in the sets where most are right


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--datasets", nargs="+", required=True, help="folders of --data_root with simulated noise")
    add("--data_root", type=Path, default="data", help="default: %(default)s")
    add("--held_out", action="store_true", help="judge the test images, with noise of seed 1")
    add("--noise_types", nargs="+", choices=PAPERS, default=list(PAPERS), help="default: all three")
    add("--checkpoints", nargs="*", default=[], metavar="NOISE=FILE", help="judge with these networks, of one dataset")
    add("--save", type=Path, required=True, metavar="FILE.csv", help="the table; rows of another kind in it are kept")
    add("--image_size", type=number(int, 16), default=128, help="of the audit (default: %(default)s)")
    add("--workers", type=number(int, 1), default=1, help="processes (default: %(default)s)")
    add("--seed", type=number(int, 0), default=0, help="which masks are spoiled (default: %(default)s)")
    args = parser.parse_args(argv)
    args.checkpoints = dict(item.split("=", 1) for item in args.checkpoints)
    if not args.checkpoints.keys() <= set(PAPERS) or (args.checkpoints and len(args.datasets) > 1):
        raise UserError("--checkpoints: give NOISE=FILE, NOISE one of 02, 08 and DE, for one dataset")
    return args


def audit(images: Path, masks: Path, checkpoint: str | None, args: argparse.Namespace) -> dict[str, tuple]:
    """The score and the refined mask (H,W) of each image, as audit_labels.py gives them."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--images_root", images, "--masks_root", masks, "--save_root", Path(folder, "audit")]
        flags += ["--refined_root", Path(folder, "refined"), "--workers", args.workers, "--page_images", 1]
        flags += ["--checkpoint", checkpoint] if checkpoint else ["--image_size", args.image_size]
        audit_labels.main(list(map(str, flags)))
        with open(Path(folder, "audit", "audit.csv"), newline="", encoding="utf-8") as file:
            # A mask that the audit could not judge is as good as any to it.
            scores = {row["image"]: float(row["score"] or 1) for row in csv.DictReader(file)}
        refined = {path.stem: read_mask(path).labels for path in Path(folder, "refined").glob("*.png")}
    return {stem: (score, refined[stem]) for stem, score in scores.items()}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Of a mask against a clean one; where the clean one is empty, 1 if the mask is too, else 0."""
    score = case_scores(a[None], b[None, None], 2)["dice"]
    return float(not a.any()) if score is None else score


def compare(found: dict[str, tuple], given: dict[str, np.ndarray], clean: dict[str, np.ndarray]) -> dict[str, float]:
    """The figures of the images ``given``, by their clean masks."""
    before = np.array([dice(label, clean[stem]) for stem, label in given.items()])
    after = np.array([dice(found[stem][1], clean[stem]) for stem in given])
    area = [(label != 0).mean() for label in given.values()]
    return {
        "images": len(given),
        "wrong_share": np.mean([(label != clean[stem]).mean() for stem, label in given.items()]),
        "dice_given": before.mean(),
        "dice_refined": after.mean(),
        "gain": (after - before).mean(),
        "closer": np.mean(after > before),
        "spearman": spearmanr([found[stem][0] for stem in given], before).statistic,
        "spearman_area": spearmanr(area, before).statistic,
    }


def estimated(
    images: Mapping[str, Path], given: dict[str, np.ndarray], clean: dict[str, np.ndarray], size: int
) -> dict[str, float]:
    """What --tau auto says of masks as given and corrected; how many pixels of the latter are wrong, at ``size``."""
    looks = [look_at(read_image(path), given[stem]) for stem, path in images.items()]
    found = findings_of(looks, 2, corrected=True)
    wrong = [
        (moved_label(resize_label(given[stem], size), shift) != resize_label(clean[stem], size)).mean()
        for stem, shift in zip(images, found.shifts, strict=True)
    ]
    return {
        "tau_auto": findings_of(looks, 2, corrected=False).tau,
        "wrong_corrected": float(np.mean(wrong)),
        "tau_corrected": found.tau,
    }


def spoiled_set(folder: Path, noisy: dict[str, Path], clean: dict[str, Path], seed: int) -> list[str]:
    """Write a folder with one noisy mask in five, the others clean; returns the names of the noisy ones."""
    spoiled = set(np.random.default_rng(seed).permutation(sorted(clean))[: round(SPOILED * len(clean))].tolist())
    folder.mkdir()
    for stem, path in clean.items():
        source = noisy[stem] if stem in spoiled else path
        shutil.copyfile(source, folder / source.name)
    return sorted(spoiled)


def rows_of(dataset: str, noise_type: str, args: argparse.Namespace) -> list[dict]:
    """The rows of one dataset and kind of noise: all masks noisy, and one in five."""
    folder, layout = find_dataset(args.data_root, dataset)
    if not args.held_out:
        noisy, clean = (folder / layout.training_masks(kind) for kind in (noise_type, "clean"))
        return compared(dataset, noise_type, folder / layout.images, noisy, clean, args)
    clean = folder / layout.masks_test
    with tempfile.TemporaryDirectory() as noisy_root:
        flags = ["--gts_root", str(clean), "--save_root", noisy_root, "--seed", "1", *NOISES[noise_type].made]
        generate_simulated_noise.main(flags)
        return compared(dataset, noise_type, folder / layout.images_test, Path(noisy_root), clean, args)


def compared(
    dataset: str, noise_type: str, images: Path, noisy_masks: Path, clean_masks: Path, args: argparse.Namespace
) -> list[dict]:
    """The rows of one folder of images, its noisy masks and its clean ones."""
    noisy, clean = list_images(noisy_masks), list_images(clean_masks)
    truth, given = ({stem: read_mask(path).labels for stem, path in paths.items()} for paths in (clean, noisy))
    checkpoint = args.checkpoints.get(noise_type)
    kind = {"dataset": dataset, "noise": NOISES[noise_type].name, "networks": "yes" if checkpoint else "no"}
    rows: list[dict] = [
        {**kind, "noisy_masks": "all", **compare(audit(images, noisy_masks, checkpoint, args), given, truth)}
    ]
    if not checkpoint:
        rows[0] |= estimated(list_images(images), given, truth, args.image_size)
        with tempfile.TemporaryDirectory() as place:
            spoiled = spoiled_set(Path(place, "masks"), noisy, clean, args.seed)
            found = audit(images, Path(place, "masks"), None, args)
        worst = sorted(found, key=lambda stem: found[stem][0])[: len(spoiled)]
        figures = compare(found, {stem: given[stem] for stem in spoiled}, truth)
        figures["precision"] = len(set(worst) & set(spoiled)) / len(spoiled)
        figures["unspoiled"] = statistics.fmean(
            [dice(found[stem][1], truth[stem]) for stem in truth if stem not in spoiled]
        )
        rows.append({**kind, "noisy_masks": f"{SPOILED:.0%}", **figures})
    return [
        {name: value if isinstance(value, str | int) else round(float(value), 4) for name, value in row.items()}
        for row in rows
    ]


def merged(path: Path, rows: list[dict]) -> list[dict]:
    """The rows of the table at ``path``, if there is one, with these in place of those of the same kind."""
    key = ("dataset", "noise", "networks", "noisy_masks")
    table: dict[tuple, dict] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            table = {tuple(row[name] for name in key): row for row in csv.DictReader(file)}
    return list((table | {tuple(row[name] for name in key): row for row in rows}).values())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for dataset in args.datasets:
        for noise_type in args.checkpoints or args.noise_types:
            rows = rows_of(dataset, noise_type, args)
            write_table(args.save, merged(args.save, rows))
            for row in rows:
                print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    run_main(main)
