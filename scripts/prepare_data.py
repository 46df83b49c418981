"""Make a dataset folder out of a raw download: pair images with masks, split off a test set, write data/NAME.

    python scripts/prepare_data.py --images_root raw --save_root data/mine

Reads PNG, JPEG, BMP, TIFF, .npy, DICOM and NIfTI, with all subfolders; the download is never changed. A mask lies
beside its image, as x_mask.png for x.png (--mask_suffix; guessed where the names make it plain), or below --masks_root.
Several masks of one image (x_mask.png, x_mask_1.png) become one. Images in a folder named normal need no mask. The
names of subfolders become part of the names. Every file that is left out is named, with the reason.

data/mine then has images, masks, images_test, masks_test, split.json (who is tested on) and prepared.json (how it was
made). New images are prepared alike, by the dataset or by a checkpoint trained on it:

    python scripts/prepare_data.py --images_root new --images_only --like data/mine --save_root data/new

DICOM (pydicom) and NIfTI (nibabel): python -m pip install -r requirements-extra.txt. What DICOM says of the patient
enters no file and no message. Volumes are cut in slices, which scripts/predict.py puts together again.
"""

import argparse
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.prepare.dataset import Prepared, check_places, folders_of, make, put_in_place, under_way
from dataloaders.prepare.pairing import find
from dataloaders.prepare.settings import ORIENTATIONS, PLANES, RECORD, Settings, read_record, settings_from
from dataloaders.prepare.writing import Place
from utils.commands.arguments import MOST_SEED, add_workers, command_parser, number
from utils.commands.errors import UserError, listed, run_main


def pair_of(text: str, low: int, key: type = str) -> tuple[Any, int]:
    """NAME=CLASS or VALUE=CLASS, for argparse."""
    name, sign, value = text.rpartition("=")
    try:
        if not (name and sign and low <= int(value) <= 255):
            raise ValueError
        return key(name), int(value)
    except ValueError as error:
        wanted = "NAME=CLASS" if key is str else "VALUE=CLASS"
        raise argparse.ArgumentTypeError(f"{text!r}: expected {wanted}, the class from {low} to 255") from error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--images_root", type=Path, required=True, help="folder of the downloaded images; subfolders are read too")
    add("--masks_root", type=Path, help="folder of the masks, with the same subfolders (default: beside the images)")
    add("--save_root", type=Path, required=True, help="folder to write the dataset to, such as data/mine")
    add("--mask_suffix", help="suffix of mask names, such as _mask (default: guessed and printed)")
    add("--normal", nargs="+", metavar="FOLDER", help="images here need no mask: theirs is empty (default: normal)")
    class_of = partial(pair_of, low=0)
    add(
        "--class_of",
        nargs="+",
        type=class_of,
        metavar="FOLDER=CLASS",
        help="class of the masks in a folder (default: 1)",
    )
    values = partial(pair_of, low=0, key=int)
    add("--values", nargs="+", type=values, metavar="VALUE=CLASS", help="class of a mask value; 0 stays 0")
    add(
        "--num_classes",
        type=number(int, 2, 255),
        help="number of classes in the masks, background included (default: 2)",
    )
    add("--ignore_label", type=number(int, 1, 255), help="mask value of pixels without a label")
    add("--threshold", type=number(float, 0), help="masks are probabilities: foreground from this stored value on")
    add("--orientation", choices=ORIENTATIONS, help="exif turns images as viewers do; stored does not (default: exif)")
    add("--slices", choices=PLANES, help="plane in which NIfTI volumes are cut (default: axial)")
    add(
        "--window",
        nargs=2,
        type=float,
        metavar=("CENTRE", "WIDTH"),
        help="intensity window of DICOM and NIfTI (default: the file's, else percentiles)",
    )
    add(
        "--test_share",
        type=number(float, 0, 1, below=True),
        default=0.2,
        help="share of the images in the test set; 0: none (default: 0.2)",
    )
    add("--patient", metavar="REGEX", help="expression that finds the patient in a path; patients are not split")
    add("--seed", type=number(int, 0, MOST_SEED), default=0, help="random seed of the test set (default: 0)")
    add("--images_only", action="store_true", help="prepare images without masks, for prediction")
    add("--like", type=Path, metavar="FOLDER|FILE.pt", help="use the settings of this dataset or checkpoint")
    add("--link", action="store_true", help="link images instead of copying them, where they need no change")
    add("--dry_run", action="store_true", help="print what would be done and write nothing")
    add_workers(parser)
    add("--overwrite", action="store_true", help="replace a dataset that this script made")
    args = parser.parse_args(argv)
    if args.images_only and args.masks_root:
        parser.error("--images_only: takes no --masks_root; leave one of them out")
    return args


def resolved_settings(args: argparse.Namespace) -> Settings:
    """The settings of --like, or those that the flags give."""
    given = {entry.name: value for entry in fields(Settings) if (value := getattr(args, entry.name)) is not None}
    if args.like and given:
        raise UserError(f"--{next(iter(given))}: --like {args.like} decides on it; leave one of them out")
    if args.like and args.like.suffix == ".pt":
        from utils.engine.checkpoint import read_checkpoint  # imports torch

        prepared = read_checkpoint(args.like).get("prepared")
        if prepared is None:
            raise UserError(f"--like {args.like}: trained on a dataset that this script did not make; leave --like out")
        return settings_from(prepared, args.like)
    if args.like:
        path = args.like / RECORD if args.like.is_dir() else args.like
        if not path.is_file():
            raise UserError(f"--like {args.like}: no {RECORD} there; give a folder that this script has made")
        return settings_from(read_record(path)["settings"], path)
    for flag in ("class_of", "values"):
        if flag in given:
            given[flag] = dict(given[flag])
    for flag in ("normal", "window"):
        if flag in given:
            given[flag] = tuple(given[flag])
    return Settings(**given)


# --- What is said -----------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, guessed: bool, prepared: Prepared) -> str:
    """What was done, in words; guessed: whether the suffix of masks was."""
    files, settings = prepared.files, prepared.found.settings
    count = sum(len(done.stems) for _, done in files)
    lines = [f"{count} images of {len(files)} files"]
    if not args.images_only:
        suffix = f" and {settings.mask_suffix}" if settings.mask_suffix else ""
        lines.append(f"masks: named by the name of the image{suffix}{' (guessed)' * guessed}")
        for what, sources in (
            ("several masks made one", [source.name for source, done in files if done.merged]),
            (f"no mask, in {', '.join(settings.normal)}: empty", [s.name for s, _ in files if not s.masks]),
            ("empty masks", [source.name for source, done in files if source.masks and done.empty]),
            ("in-between greys of masks thresholded at 128", [s.name for s, done in files if done.thresholded]),
        ):
            if sources:
                lines.append(f"{what}: {len(sources)} files ({listed(sources, 3)})")
        lines += [f"class {value}: masks of {folder}" for folder, value in settings.class_of.items()]
        tested = len(prepared.stems(tested=True))
        lines.append(
            f"training {count - tested}, test {tested}"
            + f": {prepared.found.together}, seed {args.seed}" * (tested > 0)
        )
        if prepared.found.together == "by file" and tested:
            lines.append("note: if several files show one patient, give --patient, else test scores are too good")
    if prepared.left_out:
        lines.append(prepared.left_out_in_lines())
    channels = sorted({done.channels for _, done in files})
    if len(channels) > 1 and channels != [1, 3]:
        lines.append(f"warning: images of {listed(channels)} channels; training needs all alike")
    return "\n".join(lines)


def next_commands(args: argparse.Namespace, prepared: Prepared, folders: list[Path]) -> list[str]:
    """Commands to go on with, ready to paste."""
    name, settings = args.save_root.name, prepared.found.settings
    if args.images_only:
        trained = args.like.name if args.like and args.like.is_dir() else "NAME"
        checkpoint = (
            args.like if args.like and args.like.suffix == ".pt" else f"model/{trained}+gsd+given/checkpoint.pt"
        )
        return [predict_command(checkpoint, folders[0], name)]
    classes = f" --num_classes {settings.classes_written}" if settings.classes_written > 2 else ""
    classes += " --ignore_label 255" if settings.has_unlabelled else ""
    root = args.save_root.parent
    dataset = quote(name) + ("" if root == Path("data") else f" --data_root {quote(str(root))}") + classes
    dataset += " --channels 3" if {done.channels for _, done in prepared.files} == {1, 3} else ""
    images = len(prepared.stems(tested=False))
    batch = f" --batch_size {max(images // 4, 1)}" if images < 16 else ""
    commands = [
        f"python scripts/verify_data.py --datasets {dataset}",
        f"python train_GSD-Net.py --datasets {dataset} --noise_type given{batch}",
    ]
    if prepared.test:
        predictions = f"--predictions {quote(f'predicted/{name}')} --masks {quote(str(folders[3]))}"
        commands += [
            predict_command(f"model/{name}+gsd+given/checkpoint.pt", folders[2], name),
            f"python scripts/evaluate.py {predictions} --save {quote(f'scores/{name}.csv')}{classes}",
        ]
    return commands


def predict_command(checkpoint: str | Path, images: Path, name: str) -> str:
    """How to predict the images of a folder."""
    masks, overlays = quote(f"predicted/{name}"), quote(f"predicted/{name}_overlays")
    command = f"python scripts/predict.py --checkpoint {quote(str(checkpoint))} --images_root {quote(str(images))}"
    return f"{command} --save_root {masks} --overlays_root {overlays}"


def main(argv: list[str] | None = None) -> None:
    """Find, read, write, say what was done and how to go on."""
    args = parse_args(argv)
    cv2.setNumThreads(1)  # the processes take the cores
    folders = folders_of(args.save_root, args.images_only)
    check_places(args.save_root, folders, args.images_root, args.masks_root, args.overwrite)
    settings = resolved_settings(args)
    found = find(args.images_root, args.masks_root, settings, args.images_only, args.patient)
    share = 0 if args.images_only else args.test_share
    if args.dry_run:
        prepared = make(found, None, args.workers, share, args.seed)
    else:
        with under_way(args.save_root, folders) as made:
            masks = None if args.images_only else made / folders[1].name
            place = Place(made / folders[0].name, masks, args.link)
            prepared = make(found, place, args.workers, share, args.seed)
            put_in_place(args.save_root, prepared, made, folders, args.seed)
    print(report(args, settings.mask_suffix is None, prepared))
    print(f"{args.save_root}: {'nothing written (--dry_run)' if args.dry_run else 'written'}. Next:")
    for command in next_commands(args, prepared, folders):
        print(f"  {command}")


if __name__ == "__main__":
    run_main(main)
