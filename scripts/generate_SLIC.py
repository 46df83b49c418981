"""Cut every training image of a dataset into SLIC superpixels, at the size it is trained at.

    python scripts/generate_SLIC.py --images_root data/Kvasir/images --save_root data/Kvasir/images_SLIC
    python scripts/generate_SLIC.py --lidc_pickle data/lidc/lidc_attributes.pkl
    python scripts/generate_SLIC.py --mmis_root data/MMIS2024TASK1

Writes one integer map (image_size, image_size) an image, as .npy of the same name: scripts/README.md; docs/method.md
section 3.
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
from dataloaders.files import list_images, read_image, read_segments
from utils.cli import UserError, keep_settings, listed, run_jobs, run_main, write_atomically
from utils.geometry import resize_image
from utils.superpixels import slic_segments


class Outcome(NamedTuple):
    """What became of one image."""

    name: str
    action: str  # "written", "skipped" or "made again"
    segments: int


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images_root", type=Path, help="folder of images (PNG, JPEG, BMP, TIFF)")
    source.add_argument("--lidc_pickle", type=Path, help="lidc_attributes.pkl; every slice in it is cut")
    source.add_argument("--mmis_root", type=Path, help="folder of MMIS-2024; every file of its training_2d is cut")
    parser.add_argument(
        "--save_root", type=Path, help="folder of the .npy maps (default: lidc_slic/ or train_2D_slic/ beside the data)"
    )
    parser.add_argument("--raters", type=int, default=4, help="annotators of LIDC or MMIS (default: %(default)s)")
    parser.add_argument("--num_classes", type=int, default=2, help="classes of their masks (default: %(default)s)")
    parser.add_argument("--n_segments", type=int, default=1024, help="superpixels wanted (default: %(default)s)")
    parser.add_argument(
        "--compactness", type=float, default=10.0, help="more gives squarer superpixels (default: %(default)s)"
    )
    parser.add_argument("--sigma", type=float, default=1.0, help="smoothing beforehand, pixels (default: %(default)s)")
    parser.add_argument(
        "--image_size", type=int, help="side of the map, that of the training (default: 256, for LIDC and MMIS 128)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--overwrite", action="store_true", help="make again what is already there")
    args = parser.parse_args(argv)
    if args.save_root is None and args.images_root:
        parser.error("--images_root needs --save_root, the folder of the maps")
    if args.save_root is None:
        args.save_root = args.mmis_root / "train_2D_slic" if args.mmis_root else args.lidc_pickle.parent / "lidc_slic"
    if args.image_size is None:
        args.image_size = 256 if args.images_root else 128

    for flag, valid, wanted in (
        ("--n_segments", args.n_segments >= 1, "at least 1"),
        ("--compactness", 0 < args.compactness < float("inf"), "above 0"),
        ("--sigma", 0 <= args.sigma < float("inf"), "at least 0"),
        ("--image_size", args.image_size >= 1, "at least 1"),
        ("--workers", args.workers >= 1, "at least 1"),
    ):
        if not valid:
            raise UserError(f"{flag} must be {wanted}, got {getattr(args, flag[2:])}")
    return args


def find_images(args: argparse.Namespace) -> dict[str, Callable[[], np.ndarray]]:
    """Each image's name, that of its map, and a function that reads it as uint8 (H,W,C)."""
    if args.images_root:
        return {stem: partial(read_image, path) for stem, path in list_images(args.images_root).items()}
    # These import torch, which a folder of images need not wait for.
    if args.lidc_pickle:
        from dataloaders.lidc import read_slices

        slices = read_slices(args.lidc_pickle, args.raters, args.num_classes)
        return {name: partial(np.asarray, piece.image) for name, piece in slices.items()}
    from dataloaders.mmis import list_slices

    slices = list_slices(args.mmis_root / "training_2d")
    return {stem: partial(read_mmis, path, args.raters, args.num_classes) for stem, path in slices.items()}


def read_mmis(path: Path, num_raters: int, num_classes: int) -> np.ndarray:
    """The three modalities of an MMIS training file as one picture, uint8 (H,W,3)."""
    from dataloaders.mmis import read_slice

    return read_slice(path, num_raters, num_classes)[0]


def make_segments(source: tuple[str, Callable[[], np.ndarray]], save_root: Path, size: int, **slic: float) -> Outcome:
    """Write the superpixels of ``source``, a name and a reader, unless a valid map is there."""
    name, read = source
    target = save_root / f"{name}.npy"
    action = "written"
    segments = None
    if target.exists():
        segments = read_valid(target, (size, size))
        action = "made again" if segments is None else "skipped"
    if segments is None:
        segments = slic_segments(resize_image(read(), size), **slic)
        data = io.BytesIO()
        np.save(data, segments)
        write_atomically(target, data.getvalue())
    return Outcome(name, action, int(segments.max()) + 1)


def read_valid(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The superpixels at ``path``, or None if the file is damaged, of another size or no map of ids."""
    try:
        return read_segments(path, shape)
    except UserError:
        return None


def summary(outcomes: list[Outcome]) -> str:
    """What was made, in a few lines."""
    actions = Counter(o.action for o in outcomes)
    damaged = [f"{o.name}.npy" for o in outcomes if o.action == "made again"]
    counts = [o.segments for o in outcomes]
    lines = [f"{len(outcomes)} images: {actions['written']} written, {actions['skipped']} already there and skipped"]
    if damaged:
        lines.append(f"made again, the file there was not valid: {len(damaged)} ({listed(damaged)})")
    lines.append(f"superpixels an image: mean {np.mean(counts):.0f}, fewest {min(counts)}, most {max(counts)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    sources = find_images(args)
    parameters = {"n_segments": args.n_segments, "compactness": args.compactness, "sigma": args.sigma}
    settings = {**parameters, "image_size": args.image_size}
    keep_settings(args.save_root, settings, args.overwrite, [args.save_root / f"{name}.npy" for name in sources])

    cv2.setNumThreads(1)  # the processes take the cores
    job = partial(make_segments, save_root=args.save_root, size=args.image_size, **parameters)
    results, failures = run_jobs(job, list(sources.items()), args.workers, "SLIC")
    outcomes = [result for result in results if result is not None]
    if outcomes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {args.save_root}")
        print(summary(outcomes))
    if failures:
        raise UserError(f"{len(failures)} of {len(sources)} images got no superpixels:\n" + "\n".join(failures))


if __name__ == "__main__":
    run_main(main)
