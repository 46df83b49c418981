"""Find the wrong masks of a training set: a score for each, the pixels believed wrong, and a better mask.

    python scripts/audit_labels.py --images_root data/mine/images --masks_root data/mine/masks --save_root audit/mine
    python scripts/audit_labels.py --datasets kvasir --noise_type 02 --data_root data --save_root audit/kvasir02

names the folders, or a dataset as for train_GSD-Net.py, and needs no clean mask. It believes the edge that the image
shows (docs/method.md section 8), with --checkpoint also the networks of a training run, in equal parts (section 9).
Writes

- SAVE_ROOT/audit.csv, worst first: score, the Dice of the given mask that is to be expected, in [0, 1]; wrong_pixels,
  wrong_share: pixels believed wrong; added, removed: pixels that the believed foreground has more and less;
  shift: by how many pixels the edge lies inside (+) or outside (-) of the given contour, as training would move it;
- SAVE_ROOT/audit.html, the same with pictures, sortable: one file, to be opened from disk;
- SAVE_ROOT/wrong/STEM.png: the probability that each pixel is wrong, 0..255 for 0..1;
- MASKS_ROOT_refined/STEM.png, with --datasets SAVE_ROOT/masks_refined/STEM.png (--refined_root): the believed masks, of
  the given masks' sizes. The given ones stay.

Networks that were trained on these very masks have learned some of their errors. --folds K trains K pairs of networks
in turn, each on the images that it will not judge; what follows -- goes to train_GSD-Net.py, except what the audit sets
itself:

    python scripts/audit_labels.py ... --folds 5 -- --max_epochs 30

Run again, it goes on where it was broken off; networks of images or masks that have changed since are refused.

A mask without a boundary, empty or full, can only be judged by networks: without them its score is left blank.

Exit code 0: all done; 1: some files could not be read, which are named, all others are done; 2: nothing can be done,
or not be written.
"""

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.datasets import NOISE_TYPES, folder_dataset
from dataloaders.files import channels_of, contents_of, list_images, pair_by_stem, read_image, read_mask
from dataloaders.noisy_folder import check_size, find_dataset
from dataloaders.slic import find_maps, image_sources
from utils.audit.page import SIDE, Entry, audit_page
from utils.commands.arguments import number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import (
    claimed,
    keep_all_settings,
    name_others,
    read_json,
    remove,
    write_atomically,
    write_json,
    write_table,
)
from utils.commands.jobs import run_child, run_jobs
from utils.commands.passed_flags import check_passed
from utils.engine.device import choose_device
from utils.engine.figures import as_png, contoured
from utils.engine.inference import Model, load_model
from utils.masks.contours import Steps, edges_shown, levels_of, steps
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.geometry import longest_side, resize_image, resize_label
from utils.masks.label_quality import contour_beliefs, label_quality, wrong_probability

REPO = Path(__file__).resolve().parents[1]
# What the folds' trainings have of the audit: flags that both have, and flags that are set for each of them.
SHARED = ("image_size", "num_classes", "channels", "device", "gpu", "amp", "overwrite")
FIXED = ("datasets", "noise_type", "masks", "data_root", "output_root", "slic_root", "cache", "exp", "resume")
FORMS = (("images_root", "masks_root"), ("datasets", "noise_type"))  # of saying which masks to judge
LOGITS = ".logits"  # how folders of the networks' logits begin, while they are needed
WRONG = (40, 120, 255)  # the colour of pixels believed wrong, RGB: neither tissue nor X-ray has it

Pair = tuple[Path, Path]  # an image and its mask


class Looked(NamedTuple):
    """What the first look at an image and its mask has found."""

    pair: Pair
    steps: Steps
    bounded: bool  # whether the mask has a boundary
    soiled: bool  # whether lossy compression had soiled it


class Judged(NamedTuple):
    """A row of audit.csv."""

    image: str
    score: float | None
    wrong_pixels: int
    wrong_share: float
    added: int
    removed: int
    shift: float


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images_root", type=Path, help="folder of the images")
    add("--masks_root", type=Path, help="folder of their masks")
    add("--datasets", help="instead of both: kvasir, shenzhen, BUSUC or a folder of --data_root")
    add("--noise_type", choices=NOISE_TYPES, help="with --datasets: which of its training masks")
    add("--data_root", type=Path, help="with --datasets: folder that holds the datasets (default: data)")
    add("--save_root", type=Path, required=True, help="folder of the audit's table, page and maps of wrong pixels")
    add(
        "--refined_root",
        type=Path,
        help="folder of the believed masks (default: MASKS_ROOT_refined; with --datasets SAVE_ROOT/masks_refined)",
    )
    networks = parser.add_mutually_exclusive_group()
    networks.add_argument("--checkpoint", type=Path, help="checkpoint.pt or best.pt: believe its networks as well")
    networks.add_argument(
        "--folds", type=number(int, 2), help="train this many networks to judge what they did not see"
    )
    add("--image_size", type=number(int, 16), help="longer side for the audit (default: the checkpoint's, else 256)")
    add("--num_classes", type=number(int, 2, 255), help="background included (default: the checkpoint's, else 2)")
    add("--channels", type=int, choices=(1, 3), help="read grey as colour (3) or colour as grey (1)")
    add("--page_images", type=number(int, 1), default=200, help="images on the page, the worst (default: %(default)s)")
    add("--workers", type=number(int, 1), default=os.cpu_count(), help="processes (default: one a core)")
    add("--batch_size", type=number(int, 1), default=8, help="images through the networks at once (default: 8)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    add("--gpu", type=number(int, 0), default=0, help="number of the GPU (default: %(default)s)")
    add("--amp", choices=("auto", "bf16", "fp32"), default="auto", help="precision of the networks, as in training")
    add("--seed", type=number(int, 0), default=2024, help="of the folds (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace what was written there with other settings")
    add("training", nargs="*", metavar="FLAG", help="with --folds, after --: flags for train_GSD-Net.py")
    args = parser.parse_args(argv)
    if args.training and not args.folds:
        parser.error(f"{' '.join(args.training)}: only --folds trains networks")
    for idle, names, needed in (
        (not args.folds, ("seed",), "--folds"),
        (not (args.folds or args.checkpoint), ("batch_size", "amp"), "--folds or --checkpoint"),
    ):
        for name in names:
            if idle and getattr(args, name) != parser.get_default(name):
                parser.error(f"--{name} {getattr(args, name)}: of no effect without {needed}; leave it out")
    check_passed(args.training, before=SHARED, never=FIXED)
    choose_folders(args)
    return args


def choose_folders(args: argparse.Namespace) -> None:
    """Fill in the folders that are read, and that of the believed masks, from either of `FORMS`.

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
        args.refined_root = args.refined_root or beside(args.masks_root)
        return
    dataset, layout = find_dataset(args.data_root or Path("data"), args.datasets)
    args.images_root, args.masks_root = dataset / layout.images, dataset / layout.training_masks(args.noise_type)
    if not args.masks_root.is_dir() and args.noise_type not in ("clean", "given"):
        raise UserError(
            f"{args.masks_root}: no such folder for --noise_type {args.noise_type}; give another, or make it with "
            "scripts/generate_simulated_noise.py (scripts/README.md)"
        )
    args.refined_root = args.refined_root or args.save_root / "masks_refined"
    if not args.checkpoint:  # which has channels of its own
        args.channels = args.channels or folder_dataset(args.datasets).channels


def beside(masks_root: Path) -> Path:
    """The folder of the believed masks where none is named: masks -> masks_refined, beside it."""
    named = masks_root.resolve() if masks_root.name in ("", "..") else masks_root
    return named.with_name(f"{named.name}_refined")


def check_folders(args: argparse.Namespace) -> None:
    """Raise `UserError` if anything would be written into the folders that are read, or into the same folder."""
    taken = {args.images_root.resolve(): "--images_root", args.masks_root.resolve(): "--masks_root"}
    for flag, folder in (("--save_root", args.save_root), ("--refined_root", args.refined_root)):
        for path in (folder, folder / "wrong")[: 1 + (flag == "--save_root")]:
            if path.resolve() in taken:
                raise UserError(f"{flag} {folder}: {path} is the folder of {taken[path.resolve()]}; choose another")
            taken[path.resolve()] = flag


def look(pair: Pair, size: int, channels: int | None, num_classes: int) -> Looked:
    """Where the image shows steps in colour across the contours of its mask. Raises `UserError` if it is unreadable."""
    image_path, mask_path = pair
    image, mask = read_image(image_path, channels), read_mask(mask_path, num_classes)
    check_size(mask_path, mask.labels, image_path, image)
    small = longest_side(image.shape, size)
    label = resize_label(mask.labels, small)
    return Looked(pair, steps(resize_image(image, small), label), 0 < (label != 0).mean() < 1, mask.soiled)


def judge(
    item: tuple[Looked, np.ndarray | None, Path | None],
    size: int,
    num_classes: int,
    refined_root: Path,
    wrong_root: Path,
) -> Judged:
    """Score one mask, write the believed one and the probability that its pixels are wrong.

    item: what the first look found, the probabilities of the levels, None where the images say nothing of them, and
    the file of the networks' logits, if any; one of the two there must be.
    """
    looked, probabilities, logits = item
    stem, mask_path = looked.pair[0].stem, looked.pair[1]
    label = read_mask(mask_path, num_classes).labels
    scale = max(label.shape) / size
    levels = levels_of((size,))
    views = []
    # A mask without a boundary has no levels: where networks can judge it, it does not count as sure of itself.
    if probabilities is not None and (looked.bounded or not logits):
        views.append(contour_beliefs(label, levels, probabilities, num_classes, scale))
    if logits:
        views.append(network_beliefs(np.load(logits), label.shape))
    beliefs = np.mean(views, axis=0)
    refined = beliefs.argmax(axis=0).astype(np.uint8)
    wrong = refined != label
    write_atomically(refined_root / f"{stem}.png", as_png(refined * 255 if num_classes == 2 else refined))
    chance = np.rint(255 * wrong_probability(label, beliefs).clip(0, 1)).astype(np.uint8)
    write_atomically(wrong_root / f"{stem}.png", as_png(chance))
    return Judged(
        image=stem,
        score=round(label_quality(label, beliefs), 6) if looked.bounded or logits else None,
        wrong_pixels=int(wrong.sum()),
        wrong_share=round(float(wrong.mean()), 6),
        added=int((wrong & (label == 0)).sum()),
        removed=int((wrong & (refined == 0)).sum()),
        shift=0.0 if probabilities is None else round(float(median_level(probabilities[None], levels)[0] * scale), 2),
    )


def network_beliefs(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Logits (K,S,S) as probabilities of the classes at the size of the mask, float32 (K,H,W)."""
    full = np.stack([cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_LINEAR) for plane in logits.astype("f4")])
    chances = np.exp(full - full.max(axis=0))
    return chances / chances.sum(axis=0)


def write_logits(model: Model, files: Sequence[tuple[Path, Path]], batch_size: int) -> None:
    """Write the networks' logits of each (image, .npy file), float16 (K,S,S)."""
    bar = tqdm(total=len(files), desc="networks", unit="image")
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images = [resize_image(read_image(path, model.channels), model.image_size) for path, _ in batch]
        logits = model.logits(torch.from_numpy(np.stack(images)).movedim(-1, 1))
        for (_, target), values in zip(batch, logits.half().cpu().numpy(), strict=True):
            try:
                np.save(target, values)
            except OSError as error:
                raise UserError(f"{target}: cannot be written ({error.strerror}); free some space") from error
        bar.update(len(batch))
    bar.close()


def check_unchanged(record: Path, pairs: Sequence[Pair], overwrite: bool) -> None:
    """Remember in ``record`` what the images and masks of the folds hold.

    Raises `UserError`, unless ``overwrite``, naming the files that are not what they were when it was written: networks
    of theirs are no judges of what is there now. Training refuses to go on with them too, but cannot say which file.
    """
    now = {str(path.resolve()): contents_of([path]) for pair in pairs for path in pair}
    if record.is_file() and not overwrite:
        remedy = "add --overwrite to train all folds again"
        before = read_json(record, remedy)
        if not isinstance(before, dict):
            raise UserError(f"{record}: not a record of the folds' files; {remedy}")
        kinds = {
            "changed": [name for name in now if before.get(name, now[name]) != now[name]],
            "new": [name for name in now if name not in before],
            "gone": [name for name in before if name not in now],
        }
        differ = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)
        if differ:
            raise UserError(
                f"--folds: {record.parent} has networks of other images or masks than are there now ({differ}); "
                f"{remedy}, or choose another --save_root"
            )
    write_json(record, now)


def train_fold(args: argparse.Namespace, pairs: Sequence[Pair], held_out: set[int], fold: int) -> Path:
    """Train networks on all ``pairs`` but those held out, which are its test set; returns their checkpoint.

    Run again, it goes on where it was broken off.
    """
    root = (args.save_root / "folds").resolve()
    dataset = root / "data" / f"fold{fold}"
    shutil.rmtree(dataset, ignore_errors=True)  # links only, of an earlier audit
    for index, pair in enumerate(pairs):
        for kind, path in zip(("images", "masks"), pair, strict=True):
            link = dataset / (f"{kind}_test" if index in held_out else kind) / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    command = [sys.executable, str(REPO / "train_GSD-Net.py"), "--datasets", dataset.name, "--noise_type", "given"]
    command += ["--data_root", str(dataset.parent), "--output_root", str(root), "--slic_root", str(root / "slic")]
    command += ["--cache", str(root / "cache"), "--exp", "fold", "--device", args.device]
    command += ["--gpu", str(args.gpu), "--amp", args.amp, "--image_size", str(args.image_size)]
    command += ["--overwrite" if args.overwrite else "--resume"]
    command += ["--num_classes", str(args.num_classes)] + (["--channels", str(args.channels)] if args.channels else [])
    print(
        f"fold {fold} of {args.folds}: training on {len(pairs) - len(held_out)} images; its test masks are "
        f"those of the other {len(held_out)}, as given",
        flush=True,
    )
    if run_child([*command, *args.training]):
        raise UserError(f"--folds: training of fold {fold} failed, see above (in place of --exp, another --save_root)")
    return root / f"{dataset.name}+fold+given" / "checkpoint.pt"


def predict_folds(args: argparse.Namespace, files: Sequence[tuple[Path, Path]], pairs: Sequence[Pair]) -> None:
    """Write the logits of each (image, .npy file), of networks that were trained on the other folds' ``pairs``."""
    device = choose_device(args.device, args.gpu)
    if len(pairs) < 2 * args.folds:
        raise UserError(f"--folds {args.folds}: only {len(pairs)} images; each fold needs two at least")
    root = args.save_root / "folds"
    check_unchanged(root / "files.json", pairs, args.overwrite)
    if args.overwrite:
        shutil.rmtree(root / "slic", ignore_errors=True)  # of images that may have changed, perhaps of another size
    # Once for all folds, in which every image is trained on.
    images = {image.stem: image for image, _ in pairs}
    find_maps(image_sources(images), pairs[0][0].parent, root / "slic", args.image_size)
    order = np.random.default_rng(args.seed).permutation(len(pairs))
    for fold, part in enumerate(np.array_split(order, args.folds), start=1):
        checkpoint = train_fold(args, pairs, set(part.tolist()), fold)
        write_logits(load_model(checkpoint, device, args.amp), [files[index] for index in part], args.batch_size)


def picture_pair(
    image_path: Path, mask_path: Path, refined_path: Path, channels: int | None, classes: int
) -> list[bytes]:
    """Two JPEGs: the image with the given outline; with the believed one, and what is believed wrong in blue."""
    image = read_image(image_path, channels)
    size = longest_side(image.shape, SIDE)
    image = resize_image(image, size)
    given, believed = (resize_label(read_mask(path, classes).labels, size) for path in (mask_path, refined_path))
    colour = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    tinted = np.where((given != believed)[..., None], colour // 2 + np.array(WRONG, np.uint8) // 2, colour)
    views = contoured(image, given, classes), contoured(tinted.astype(np.uint8), believed, classes)
    return [cv2.imencode(".jpg", view[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes() for view in views]


def check_channels(pairs: Sequence[Pair], asked: int | None, model: Model | None) -> int | None:
    """The number of channels to read images with, None for their own.

    Raises `UserError`, naming an image of each kind, if the readable images differ, or the checkpoint takes others.
    """
    examples: dict[int, Path] = {}
    for image, _ in pairs:
        try:
            examples.setdefault(channels_of(image), image)
        except UserError:
            continue  # what is unreadable will be named when it is read
    if model:
        if asked not in (None, model.channels):
            raise UserError(f"--channels {asked}: the --checkpoint was trained on images of {model.channels} channels")
        for count, path in examples.items():
            if not model.takes(count) and not (asked and count in (1, 3)):
                raise UserError(
                    f"--checkpoint: trained on images of {model.channels} channels, but {path} has {count}; "
                    "use a checkpoint that was trained on such images"
                    + (f", or give --channels {model.channels}" if {count, model.channels} == {1, 3} else "")
                )
        return model.channels
    if asked is None and len(examples) > 1:
        found = ", ".join(f"{path} has {count} channels" for count, path in sorted(examples.items()))
        raise UserError(f"--images_root: {found}: all images must have the same number; try --channels 3")
    return asked or next(iter(examples), None)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_folders(args)
    pairs = pair_by_stem(list_images(args.images_root), list_images(args.masks_root), args.masks_root)
    model = load_model(args.checkpoint, choose_device(args.device, args.gpu), args.amp) if args.checkpoint else None
    if model and args.num_classes not in (None, model.num_classes):
        raise UserError(f"--num_classes {args.num_classes}: {args.checkpoint} has {model.num_classes} classes")
    args.num_classes = args.num_classes or (model.num_classes if model else 2)
    args.image_size = args.image_size or (model.image_size if model else 256)
    channels = check_channels(pairs, args.channels, model)

    looked, failures = see_all(pairs, args, channels)
    levels = levels_of((args.image_size,))
    probabilities = probabilities_of([item.steps for item in looked], levels, args)
    with ExitStack() as claims:
        for folder in (args.save_root, args.refined_root):
            claims.enter_context(claimed(folder))
        judged = judge_all(args, model, looked, probabilities, [image.stem for image, _ in pairs])
        report(args, channels, looked, judged)
    if failures:
        print(f"error: {len(failures)} of {len(pairs)} images were left out:\n" + "\n".join(failures), file=sys.stderr)
        sys.exit(1)


def judge_all(
    args: argparse.Namespace,
    model: Model | None,
    looked: Sequence[Looked],
    probabilities: Sequence[np.ndarray | None],
    stems: list[str],
) -> list[Judged]:
    """`judge` every image that was looked at, and write its believed mask; ``stems``: of all images, the others too.

    Raises `UserError` as `record_settings`, and if a file cannot be written.
    """
    wrong_root = args.save_root / "wrong"
    record_settings(args, model, stems, wrong_root)
    job = partial(
        judge,
        size=args.image_size,
        num_classes=args.num_classes,
        refined_root=args.refined_root,
        wrong_root=wrong_root,
    )
    for left in args.save_root.glob(f"{LOGITS}*"):  # of an audit that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=args.save_root, prefix=LOGITS) as folder:
        files = [(item.pair[0], Path(folder) / f"{index}.npy") for index, item in enumerate(looked)]
        if model:
            write_logits(model, files, args.batch_size)
        elif args.folds:
            predict_folds(args, files, [item.pair for item in looked])
        logits = [file for _, file in files] if model or args.folds else [None] * len(files)
        judgeable = [item.pair[0].stem for item in looked]
        for root in (args.refined_root, wrong_root):
            remove(root / f"{stem}.png" for stem in set(stems).difference(judgeable))  # what was believed of them once
            name_others(root, [root / f"{stem}.png" for stem in judgeable])
        judged, unwritten = run_jobs(
            job, list(zip(looked, probabilities, logits, strict=True)), args.workers, "judging"
        )
    if unwritten:
        raise UserError("\n".join(unwritten[:3]))
    return judged


def probabilities_of(
    found: Sequence[Steps], levels: np.ndarray, args: argparse.Namespace
) -> Sequence[np.ndarray | None]:
    """The probabilities of the levels (L,) of each image; None, which is said, if the images show nothing of them.

    Raises `UserError` if nothing else is there to judge the masks.
    """
    if edges_shown(found, levels):
        return list(level_probabilities(found, levels, args.image_size))
    finding = "the images show no more of an edge at the contours of their masks than elsewhere"
    if not (args.folds or args.checkpoint):
        raise UserError(f"{finding}; let networks judge them: give --folds or --checkpoint")
    print(f"note: {finding}: networks alone judge the masks")
    return [None] * len(found)


def see_all(pairs: list[Pair], args: argparse.Namespace, channels: int | None) -> tuple[list[Looked], list[str]]:
    """The first look at every image, and the messages of those that are unreadable. Raises `UserError` if all are."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the processes take the cores
    job = partial(look, size=args.image_size, channels=channels, num_classes=args.num_classes)
    results, failures = run_jobs(job, pairs, args.workers, "looking")
    cv2.setNumThreads(threads)
    looked = [result for result in results if result]
    if not looked:
        raise UserError(f"none of the {len(pairs)} images can be read with its mask:\n" + "\n".join(failures[:5]))
    soiled = [item.pair[1].name for item in looked if item.soiled]
    if soiled:
        print(f"note: in-between greys thresholded at 128 in {len(soiled)} masks: {listed(soiled)}")
    return looked, failures


def record_settings(args: argparse.Namespace, model: Model | None, stems: list[str], wrong_root: Path) -> None:
    """Record what the folders' files are made with. Raises `UserError` if they hold others, or cannot be written to."""
    settings = {
        "images": str(args.images_root.resolve()),
        "masks": str(args.masks_root.resolve()),
        "image_size": args.image_size,
        "num_classes": args.num_classes,
        "checkpoint_sha256": model and model.sha256,
        "folds": args.folds and {"number": args.folds, "seed": args.seed, "flags": args.training},
    }
    outputs = {
        args.refined_root: [args.refined_root / f"{stem}.png" for stem in stems],
        args.save_root: [args.save_root / name for name in ("audit.csv", "audit.html")],
        wrong_root: [wrong_root / f"{stem}.png" for stem in stems],
    }
    keep_all_settings(outputs, settings, args.overwrite, exclusive=(args.refined_root, wrong_root))


def report(args: argparse.Namespace, channels: int | None, looked: list[Looked], judged: list[Judged]) -> None:
    """Write audit.csv and audit.html, and say on stdout what they hold."""
    paths = {item.pair[0].stem: item.pair for item in looked}
    rows = sorted(judged, key=lambda row: (math.inf if row.score is None else row.score, row.image))
    unjudged = [row.image for row in rows if row.score is None]
    write_table(args.save_root / "audit.csv", [row._asdict() for row in rows])
    shown = [
        Entry(
            rank,
            row.image,
            row.score,
            row.wrong_share,
            row.shift,
            *picture_pair(*paths[row.image], args.refined_root / f"{row.image}.png", channels, args.num_classes),
        )
        for rank, row in enumerate(rows[: args.page_images], start=1)
    ]
    by = f"the image and {args.checkpoint or f'networks of {args.folds} folds'}"
    notes = [
        f"{len(rows)} masks, judged by {by if args.checkpoint or args.folds else 'the edges in the images'}; "
        f"the {len(shown)} with the lowest scores are shown.",
        "Score: the Dice to be expected of the given mask, 1 is best. Believed wrong: share of the image's pixels, in "
        "blue. Contour moved: by how much the edge lies inside (+) or outside (-) of the given contour.",
        "This is a program's opinion, to look at first what may be wrong; it is not a diagnosis.",
    ]
    title = "/".join(args.masks_root.resolve().parts[-2:])
    write_atomically(
        args.save_root / "audit.html",
        audit_page(f"Audit of {title}", notes, shown).encode("utf-8", "replace"),
    )
    scores = [row.score for row in rows if row.score is not None]
    if scores:
        share = np.mean([row.wrong_share for row in rows if row.score is not None])
        low, middle, high = np.percentile(scores, (5, 50, 95))
        print(f"{len(scores)} masks scored: median {middle:.3f}, nine of ten from {low:.3f} to {high:.3f}")
        print(f"believed wrong: {share:.2%} of the pixels of a scored mask in the mean")
    if unjudged:
        print(f"not judged, as they have no boundary (a --checkpoint would): {len(unjudged)} masks: {listed(unjudged)}")
    print(f"{args.save_root}: audit.csv, audit.html, wrong/; {args.refined_root}: the believed masks")


if __name__ == "__main__":
    run_main(main)
