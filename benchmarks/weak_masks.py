"""Make the masks of a weak model: plain cross-entropy, trained on a few clean masks, predicts all the others.

    python benchmarks/weak_masks.py --data_root data --datasets shenzhen --image_size 64 --max_epochs 100
    python train_GSD-Net.py --data_root data --datasets shenzhen --masks masks_weak

The first command draws 5 % of the training images (--share, --seed), trains train_GSD-Net.py --method ce on their clean
masks, lets scripts/predict.py predict every training image, and writes one mask an image to masks_weak in the dataset's
folder (--save_root): the clean ones where they were drawn, else the predicted ones. It prints how wrong they are, with
the clean ones counted. Broken off, the same command goes on where it stopped. Test images are
scored, not trained on.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.accuracy import call
from dataloaders.dataset_folder import find_dataset
from dataloaders.datasets import Layout
from dataloaders.files import list_images, pair_by_stem, read_mask
from utils.commands.arguments import command_parser, number
from utils.commands.errors import UserError, run_main
from utils.commands.files import claimed, keep_settings, write_atomically
from utils.masks.geometry import as_png


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data_root", type=Path, default=Path("data"), help="folder of the datasets (default: %(default)s)")
    add("--datasets", required=True, metavar="NAME", help="the dataset")
    add("--share", type=float, default=0.05, help="of the training images with a clean mask (default: %(default)s)")
    add("--seed", type=number(int, 0), default=0, help="of the draw and the training (default: %(default)s)")
    add("--image_size", type=number(int, 16), default=64, help="of the training (default: %(default)s)")
    add("--max_epochs", type=number(int, 1), default=100, help="of the training (default: %(default)s)")
    add("--num_classes", type=number(int, 2), default=2, help="background included (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    add("--threads", type=number(int, 1), default=1, help="of the training (default: %(default)s)")
    add("--save_root", type=Path, help="of the masks (default: masks_weak in the dataset's folder)")
    add("--work_root", type=Path, default=Path("model/weak"), help="of the runs (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace masks made with other settings")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise UserError(f"--share must be above 0 and below 1, got {args.share}")
    return args


def small_dataset(dataset: Path, layout: Layout, share: float, seed: int, target: Path) -> set[str]:
    """Lay out ``target`` like ``dataset`` with a share of its training images, at least two; returns their stems.

    Files, and the folders of the test set, are links.
    """
    images = list_images(dataset / layout.images)
    count = max(2, round(share * len(images)))
    drawn = set(np.random.default_rng(seed).permutation(sorted(images))[:count].tolist())
    masks = list_images(dataset / layout.masks)
    pairs = pair_by_stem(images, masks, dataset / layout.masks)
    if target.exists():
        shutil.rmtree(target)  # links, of a run that was broken off
    for folder, files in zip((layout.images, layout.masks), zip(*pairs, strict=True), strict=True):
        (target / folder).mkdir(parents=True)
        for path in files:
            if path.stem in drawn:
                (target / folder / path.name).symlink_to(path.resolve())
    for test in (layout.images_test, layout.masks_test):
        if (dataset / test).exists():
            (target / test).symlink_to((dataset / test).resolve())
    return drawn


def train_and_predict(dataset: Path, layout: Layout, drawn: int, args: argparse.Namespace, place: Path) -> Path:
    """Train on the small dataset of ``drawn`` images, or finish it, and predict all training images.

    Returns the folder of the predictions.
    """
    device = ("--device", args.device)
    call(
        *("train_GSD-Net.py", "--datasets", dataset.name, "--data_root", place / "data", "--noise_type", "clean"),
        *("--method", "ce", "--image_size", args.image_size, "--max_epochs", args.max_epochs, "--seed", args.seed),
        # Small, for many steps an epoch; without a test set a fifth of the images is held out.
        *("--batch_size", max(1, min(4, drawn * 4 // 5))),
        *("--num_classes", args.num_classes, "--output_root", place, "--exp", "weak", "--resume", *device),
        log=place / "log.txt",
        threads=args.threads,
    )
    checkpoint = place / f"{dataset.name}+weak+clean" / "checkpoint.pt"
    call(
        *("scripts/predict.py", "--checkpoint", checkpoint, "--images_root", dataset.resolve() / layout.images),
        *("--save_root", place / "predicted", "--overwrite", *device),
        log=place / "log.txt",
        threads=args.threads,
    )
    return place / "predicted"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    dataset, layout = find_dataset(args.data_root, args.datasets)
    save_root = args.save_root or dataset / "masks_weak"
    settings = {name: getattr(args, name) for name in ("share", "seed", "image_size", "max_epochs", "num_classes")}
    settings |= {"noisetype": "weak", "gts_root": layout.masks}
    clean = list_images(dataset / layout.masks)
    place = args.work_root.resolve() / "_".join([dataset.name, *(f"{value}" for value in settings.values())])
    with claimed(save_root), claimed(place):
        outputs = [save_root / f"{stem}.png" for stem in clean]
        keep_settings(save_root, settings, args.overwrite, outputs, exclusive=True)
        drawn = small_dataset(dataset, layout, args.share, args.seed, place / "data" / dataset.name)
        print(f"{len(drawn)} of {len(clean)} clean masks are trained on; log: {place / 'log.txt'}", flush=True)
        predicted = list_images(train_and_predict(dataset, layout, len(drawn), args, place))
        rates = []
        for stem, path in clean.items():
            truth = read_mask(path, args.num_classes).labels
            weak = truth if stem in drawn else read_mask(predicted[stem], args.num_classes).labels
            write_atomically(save_root / f"{stem}.png", as_png(weak * 255 if args.num_classes == 2 else weak))
            rates.append(float((weak != truth).mean()))
    print(f"{len(rates)} masks, {np.mean(rates):.4f} of their pixels wrong -> {save_root}")


if __name__ == "__main__":
    run_main(main)
