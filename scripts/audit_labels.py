"""Find the label errors of a training set: a score for each mask, the suspected pixels, and an estimated mask.

    python scripts/audit_labels.py --images_root data/mine/images --masks_root data/mine/masks --save_root audit/mine
    python scripts/audit_labels.py --datasets kvasir --noise_type 02 --data_root data --save_root audit/kvasir02
    python scripts/audit_labels.py --apply audit_marks.csv --save_root audit/mine

The first two audit two folders, or a dataset named as for train_GSD-Net.py. They need no clean masks. The audit
compares each mask with the edge in its image (docs/method.md section 8). With --checkpoint it also asks the networks of
a training run, which count as much as the edges (section 9). It writes

- SAVE_ROOT/audit.csv, worst first: score, the Dice of the given mask that is to be expected, in [0, 1];
  suspected_pixels, suspected_share: where the estimated mask differs; added, removed: its pixels of foreground more and
  less; shift: by how many pixels the edge lies inside (+) or outside (-) of the given contour;
- SAVE_ROOT/audit.html, the same with pictures, to be marked: accept, reject, look again. One file, opened from disk;
- SAVE_ROOT/masks_refined/STEM.png (--refined_root): the estimated masks, of the given masks' sizes, which stay;
- SAVE_ROOT/error_probability/STEM.png: the probability that each pixel is wrong, 0..255 for 0..1.

--apply takes the marks that the page exports and writes SAVE_ROOT/masks_applied, to train on: of accepted images the
estimated mask, of rejected and unmarked ones the given mask. Images to look at again are left out and named.
SAVE_ROOT/applied.csv says for each image which mask it got.

Networks that were trained on these very masks have learned some of their errors. --folds K trains K pairs of networks
in turn, each on the images that it will not judge; flags of train_GSD-Net.py follow after --, except those that the
audit sets itself:

    python scripts/audit_labels.py ... --folds 5 -- --max_epochs 30

Run again, it goes on where it was broken off; networks of images or masks that have changed since are refused.

A mask without a boundary, empty or full, can only be judged by networks: without them its score is left blank.

Exit code 0: all done; 1: some files, which are named, could not be read, and all others are done; 2: nothing was done,
or the result could not be written.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.dataset_folder import check_size, find_dataset
from dataloaders.datasets import NOISE_TYPES, folder_dataset
from dataloaders.files import channels_of, contents_of, list_images, pair_by_stem, read_image, read_mask
from utils.audit import applied
from utils.audit.channels import choose_channels
from utils.audit.folds import FIXED, SHARED, check_unchanged, fold_parts, train_fold, training_flags
from utils.audit.judging import Contour, Judged, contours_of, judge, look, stored_mask
from utils.audit.marks import read_audit, read_marks
from utils.audit.page import Entry, audit_page
from utils.audit.pictures import picture
from utils.audit.report import doubt_of, notes, summary, worst_first
from utils.commands.arguments import add_device, add_ignore_label, add_workers, command_parser, number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import (
    claimed,
    keep_all_settings,
    name_others,
    remove,
    write_atomically,
    write_table,
)
from utils.commands.jobs import run_jobs
from utils.commands.passed_flags import take_passed
from utils.masks.contours import EdgeContrast
from utils.masks.geometry import as_png

if TYPE_CHECKING:  # an audit without networks does without torch
    from utils.engine.inference import Model

FORMS = (("images_root", "masks_root"), ("datasets", "noise_type"))  # of saying which masks to judge
WITH_APPLY = ("apply", "save_root", "refined_root", "overwrite")
LOGITS = ".logits"  # how folders of the networks' logits begin, while they are needed

Pair = tuple[Path, Path]  # an image and its mask


class Looked(NamedTuple):
    """What the first look at an image and its mask has found."""

    pair: Pair
    contrast: EdgeContrast
    bounded: bool  # whether the mask has a boundary
    artefacts: bool  # whether it had compression artefacts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--images_root", type=Path, help="folder of the images")
    add("--masks_root", type=Path, help="folder of the masks to judge")
    add("--datasets", help="in place of both folders: a dataset, named as in training")
    add("--noise_type", choices=NOISE_TYPES, help="with --datasets: training masks to judge")
    add("--data_root", type=Path, help="with --datasets: folder that contains the datasets (default: data)")
    add("--save_root", type=Path, required=True, help="folder to write the audit to")
    add("--refined_root", type=Path, help="folder of the estimated masks (default: SAVE_ROOT/masks_refined)")
    add("--apply", type=Path, metavar="FILE.csv", help="make a folder of masks by these marks, exported from the page")
    networks = parser.add_mutually_exclusive_group()
    networks.add_argument("--checkpoint", type=Path, help="judge with the networks of this checkpoint as well")
    networks.add_argument(
        "--folds", type=number(int, 2), help="train this many pairs of networks, each judging masks it did not see"
    )
    add("--image_size", type=number(int, 16), help="training size of --folds, in pixels (default: 256)")
    add("--num_classes", type=number(int, 2, 255), help="number of classes (default: the checkpoint's, else 2)")
    add_ignore_label(parser)
    add("--channels", type=int, choices=(1, 3), help="read grey images as colour (3) or colour images as grey (1)")
    add("--page_images", type=number(int, 1), default=200, help="masks on the page, worst first (default: %(default)s)")
    add_workers(parser)
    add("--batch_size", type=number(int, 1), default=8, help="images that the networks take at once (default: 8)")
    add_device(parser)
    add("--seed", type=number(int, 0), default=2024, help="random seed of the folds (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an audit that was made with other settings")
    add("training", nargs="*", metavar="FLAG", help="with --folds, after --: flags for train_GSD-Net.py")
    args = parser.parse_args(argv)
    if args.training and not args.folds:
        parser.error(f"{' '.join(args.training)}: only --folds trains networks")
    for idle, names, needed in (
        (args.apply, set(vars(args)) - {*WITH_APPLY, "training"}, "an audit; --apply only applies its marks"),
        (not args.folds, ("seed",), "--folds"),
        (not (args.folds or args.checkpoint), ("batch_size", "amp"), "--folds or --checkpoint"),
    ):
        for name in sorted(names):
            if idle and getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} {getattr(args, name)}: of no effect without {needed}; leave it out")
    args.refined_root = args.refined_root or args.save_root / "masks_refined"
    if not args.apply:
        take_passed(args, parser, SHARED, FIXED)
        choose_folders(args)
    return args


def choose_folders(args: argparse.Namespace) -> None:
    """Fill in the folders that are read, from either of `FORMS`.

    Raises `UserError` unless exactly one of them is given, and whole, or if the dataset lacks the masks.
    """
    given = [name for name in (*FORMS[0], *FORMS[1], "data_root") if getattr(args, name) is not None]
    if not any(set(given) - {"data_root" if form is FORMS[1] else ""} == set(form) for form in FORMS):
        found = ", ".join(f"--{name}" for name in given) or "none of these"
        raise UserError(
            "give either --images_root and --masks_root, or --datasets and --noise_type (with them perhaps "
            f"--data_root), to say which masks to judge; found {found}"
        )
    if args.images_root is not None:
        return
    dataset, layout = find_dataset(args.data_root or Path("data"), args.datasets)
    args.images_root, args.masks_root = dataset / layout.images, dataset / layout.training_masks(args.noise_type)
    if not args.masks_root.is_dir() and args.noise_type not in ("clean", "given"):
        raise UserError(
            f"{args.masks_root}: no such folder for --noise_type {args.noise_type}; give another, or make it with "
            "scripts/generate_simulated_noise.py (scripts/README.md)"
        )
    if not args.checkpoint:  # which has channels of its own
        args.channels = args.channels or folder_dataset(args.datasets).channels


def check_folders(args: argparse.Namespace) -> None:
    """Raise `UserError` if anything would be written into the folders that are read, or into the same folder."""
    taken = {args.images_root.resolve(): "--images_root", args.masks_root.resolve(): "--masks_root"}
    own = [args.save_root, *(args.save_root / name for name in ("error_probability", "masks_applied"))]
    for flag, path in (*(("--save_root", path) for path in own), ("--refined_root", args.refined_root)):
        if path.resolve() in taken:
            raise UserError(f"{flag}: {path} is the folder of {taken[path.resolve()]}; choose another")
        taken[path.resolve()] = flag


def look_at(pair: Pair, channels: int | None, args: argparse.Namespace) -> Looked:
    """`look` at the files of an image and its mask. Raises `UserError` if one is unreadable."""
    image_path, mask_path = pair
    image, mask = read_image(image_path, channels), read_mask(mask_path, args.num_classes, args.ignore_label)
    check_size(mask_path, mask.labels, image_path, image)
    return Looked(pair, *look(image, mask.labels), mask.artefacts)


def judge_file(
    item: tuple[Looked, Contour | None, Path | None],
    args: argparse.Namespace,
    estimated_root: Path,
    probability_root: Path,
) -> Judged:
    """`judge` one mask, write the estimated one and the probability that its pixels are wrong.

    item: what the first look found, what the images say of the contour, None where they say nothing, and the file of
    the networks' logits, if any.
    """
    looked, contour, logits = item
    stem, mask_path = looked.pair[0].stem, looked.pair[1]
    label = read_mask(mask_path, args.num_classes, args.ignore_label).labels
    views = np.load(logits) if logits else None
    row, estimated, chance = judge(stem, label, contour, views, looked.bounded, args.num_classes)
    stored = {
        estimated_root: stored_mask(estimated, args.num_classes, args.ignore_label),
        probability_root: np.rint(255 * chance).astype(np.uint8),
    }
    for root, pixels in stored.items():
        write_atomically(root / f"{stem}.png", as_png(pixels))
    return row


def ask(model: "Model", files: Sequence[tuple[Path, Path]], args: argparse.Namespace) -> None:
    """Write the networks' logits of each (image, .npy file)."""
    from utils.audit.networks import write_logits

    write_logits(model, files, args.batch_size, read_image)


def load(checkpoint: Path, args: argparse.Namespace) -> "Model":
    """The networks of a checkpoint on the device of --device."""
    from utils.engine.device import choose_device
    from utils.engine.inference import load_model

    return load_model(checkpoint, choose_device(args.device, args.gpu), args.amp)


def predict_folds(args: argparse.Namespace, files: Sequence[tuple[Path, Path]], pairs: Sequence[Pair]) -> None:
    """Write the logits of each (image, .npy file), of networks that were trained on the other folds' ``pairs``."""
    parts = fold_parts(len(pairs), args.folds, args.seed)
    root = args.save_root / "folds"
    digests = {path: contents_of([path]) for pair in pairs for path in pair}
    check_unchanged(root / "files.json", digests, args.overwrite)
    if args.overwrite:
        shutil.rmtree(root / "slic", ignore_errors=True)  # of images that may have changed, perhaps of another size
    for fold, part in enumerate(parts, start=1):
        checkpoint = train_fold(root, pairs, set(part), f"fold{fold}", training_flags(args))
        ask(load(checkpoint, args), [files[index] for index in part], args)


def example_channels(pairs: Sequence[Pair]) -> dict[int, Path]:
    """An image for each number of channels that there is; what is unreadable will be named when it is read."""
    examples: dict[int, Path] = {}
    for image, _ in pairs:
        with suppress(UserError):
            examples.setdefault(channels_of(image), image)
    return examples


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.apply:
        apply_marks(args)
        return
    check_folders(args)
    pairs = pair_by_stem(list_images(args.images_root), list_images(args.masks_root), args.masks_root)
    model = load(args.checkpoint, args) if args.checkpoint else None
    if model and args.num_classes not in (None, model.num_classes):
        raise UserError(f"--num_classes {args.num_classes}: {args.checkpoint} has {model.num_classes} classes")
    args.num_classes = args.num_classes or (model.num_classes if model else 2)
    if args.image_size and not args.folds:
        print(f"note: --image_size {args.image_size}: of no effect without --folds")
    args.image_size = args.image_size or 256
    channels = choose_channels(example_channels(pairs), args.channels, model)

    looked, failures = see_all(pairs, args, channels)
    contours = contours_seen(args, looked)
    with ExitStack() as claims:
        for folder in (args.save_root, args.refined_root):
            claims.enter_context(claimed(folder))
        judged = judge_all(args, model, looked, contours, [image.stem for image, _ in pairs])
        report(args, channels, looked, judged)
    if failures:
        print(f"error: {len(failures)} of {len(pairs)} images were left out:\n" + "\n".join(failures), file=sys.stderr)
        sys.exit(1)


def see_all(pairs: list[Pair], args: argparse.Namespace, channels: int | None) -> tuple[list[Looked], list[str]]:
    """The first look at every image, and the messages of those that are unreadable. Raises `UserError` if all are."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes take the cores
    job = partial(look_at, channels=channels, args=args)
    results, failures = run_jobs(job, pairs, args.workers, "looking")
    cv2.setNumThreads(threads)
    looked = [result for result in results if result]
    if not looked:
        raise UserError(f"none of the {len(pairs)} images can be read with its mask:\n" + "\n".join(failures[:5]))
    artefacts = [item.pair[1].name for item in looked if item.artefacts]
    if artefacts:
        print(f"note: compression artefacts thresholded at 128 in {len(artefacts)} masks: {listed(artefacts)}")
    return looked, failures


def contours_seen(args: argparse.Namespace, looked: Sequence[Looked]) -> Sequence[Contour | None]:
    """What the images say of each contour, the reason on stdout; None if they say nothing.

    Raises `UserError` if nothing else is there to judge the masks.
    """
    contours, reason = contours_of([item.contrast for item in looked])
    if contours is not None:
        moved = sum(bool(contour.shift) for contour in contours)
        print(f"contours: {moved} of {len(contours)} should be moved; {reason}")
        return contours
    if not (args.folds or args.checkpoint):
        raise UserError(f"{reason}; let networks judge the masks: give --folds or --checkpoint")
    print(f"note: {reason}: networks alone judge the masks")
    return [None] * len(looked)


def judge_all(
    args: argparse.Namespace,
    model: "Model | None",
    looked: Sequence[Looked],
    contours: Sequence[Contour | None],
    stems: list[str],
) -> list[Judged]:
    """`judge_file` for every image that was looked at; ``stems``: of all images, the others too.

    Raises `UserError` as `record_settings`, and if a file cannot be written.
    """
    probability_root = args.save_root / "error_probability"
    record_settings(args, model, stems, probability_root)
    job = partial(
        judge_file,
        args=args,
        estimated_root=args.refined_root,
        probability_root=probability_root,
    )
    for left in args.save_root.glob(f"{LOGITS}*"):  # of an audit that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=args.save_root, prefix=LOGITS) as folder:
        files = [(item.pair[0], Path(folder) / f"{index}.npy") for index, item in enumerate(looked)]
        if model:
            ask(model, files, args)
        elif args.folds:
            predict_folds(args, files, [item.pair for item in looked])
        logits = [file for _, file in files] if model or args.folds else [None] * len(files)
        judgeable = [item.pair[0].stem for item in looked]
        for root in (args.refined_root, probability_root):
            remove(root / f"{stem}.png" for stem in set(stems).difference(judgeable))  # of when they could be read
            name_others(root, [root / f"{stem}.png" for stem in judgeable])
        judged, unwritten = run_jobs(job, list(zip(looked, contours, logits, strict=True)), args.workers, "judging")
    if unwritten:
        raise UserError("\n".join(unwritten[:3]))
    return judged


def record_settings(args: argparse.Namespace, model: "Model | None", stems: list[str], probability_root: Path) -> None:
    """Record what the folders' files are made with. Raises `UserError` if they hold others, or cannot be written to."""
    settings = {
        "images": str(args.images_root.resolve()),
        "masks": str(args.masks_root.resolve()),
        "num_classes": args.num_classes,
        "ignore_label": args.ignore_label,
        "checkpoint": args.checkpoint and str(args.checkpoint),
        "checkpoint_sha256": model and model.sha256,
        "folds": args.folds
        and {"number": args.folds, "seed": args.seed, "image_size": args.image_size, "flags": args.training},
    }
    outputs = {
        args.refined_root: [args.refined_root / f"{stem}.png" for stem in stems],
        args.save_root: [args.save_root / name for name in ("audit.csv", "audit.html")],
        probability_root: [probability_root / f"{stem}.png" for stem in stems],
    }
    keep_all_settings(outputs, settings, args.overwrite, exclusive=(args.refined_root, probability_root))


def report(args: argparse.Namespace, channels: int | None, looked: list[Looked], judged: list[Judged]) -> None:
    """Write audit.csv and audit.html, and say on stdout what they hold."""
    pairs = {item.pair[0].stem: item.pair for item in looked}
    rows = worst_first(judged)
    write_table(args.save_root / "audit.csv", [row._asdict() for row in rows])
    shown = []
    for rank, row in enumerate(rows[: args.page_images], start=1):
        image_path, mask_path = pairs[row.image]
        paths = (mask_path, args.refined_root / f"{row.image}.png")
        given, estimated = (read_mask(path, args.num_classes, args.ignore_label).labels for path in paths)
        shown.append(Entry(rank, row, picture(read_image(image_path, channels), given, estimated, args.num_classes)))
    networks = str(args.checkpoint) if args.checkpoint else f"networks of {args.folds} folds" if args.folds else None
    title = "Audit of " + "/".join(args.masks_root.resolve().parts[-2:])
    identity = read_audit(args.save_root).identity
    page = audit_page(title, notes(len(rows), len(shown), networks), shown, identity)
    write_atomically(args.save_root / "audit.html", page.encode("utf-8", "replace"))
    print(*summary(rows), sep="\n")
    if doubt := doubt_of(rows):
        print(f"warning: {networks}: {doubt}", file=sys.stderr)
    print(f"{args.save_root}: audit.csv, audit.html, error_probability/; {args.refined_root}: the estimated masks")


def apply_marks(args: argparse.Namespace) -> None:
    """Make the folder of masks that the marks of --apply choose, and say on stdout what it holds."""
    audit = read_audit(args.save_root)
    marks = read_marks(args.apply, audit)
    given = list_images(Path(audit.settings["masks"]))
    chosen = applied.write_masks(args.save_root, args.refined_root, audit, marks, given, args.overwrite)
    print(*applied.summary(chosen), sep="\n")
    unaudited = [stem for stem in given if stem not in audit.images]
    if unaudited:
        print(f"left out, as the audit could not read them: {len(unaudited)} images: {listed(unaudited, most=20)}")
    print(f"{args.save_root}: {applied.FOLDER}/, and {applied.TABLE}: which mask each image got")


if __name__ == "__main__":
    run_main(main)
