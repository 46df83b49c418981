"""Segment new images with the networks of a training run; its checkpoint is all that is needed.

    python scripts/predict.py --checkpoint model/kvasir+gsd+02/checkpoint.pt --images_root photos --save_root predicted

Writes a mask for each image, of the image's size and stem, as PNG: 0/255, with more than two classes their numbers
0..K-1. An image that its EXIF data turns is turned first, as viewers show it. Both networks
see the image at the training size. Their mean logits are resized to the image's size, as in the tests of training. The
class of a pixel is the one with the highest logit.

Images may be in any form that training takes, and must have the channels of the training images. If the run was given
--channels, it holds here too. Each channel deeper than 8 bits is scaled by itself, as in training. Checkpoints of LIDC
take grey images. Those of MMIS-2024 take images whose channels are t1, t1c and t2; 8-bit values count as scaled.
Volumes (.h5) are not read here.

DICOM and NIfTI (requirements-extra.txt) are prepared first, as scripts/prepare_data.py prepared the training images.
Slices of a NIfTI volume, prepared now or before, are put together again as SAVE_ROOT_volumes/NAME.nii.gz, of the
classes and with the affine of the volume.

A second run makes all masks again, and removes the mask of an image that can no longer be read.

Exit code 0: all done; 1: some files, which are named, could not be read, and all others are done; 2: nothing was done,
or the result could not be written.
"""

import argparse
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.dataset_folder import check_size
from dataloaders.files import channels_in_words as in_words
from dataloaders.files import check_file, find_images, list_images, read_image, read_mask
from dataloaders.orientation import turned_images_in_words
from dataloaders.pixels import format_of
from dataloaders.prepare.volumes import Ready, Volume, complete, images_to_predict, write_volume
from utils.commands.arguments import add_device, add_workers, command_parser, number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import claimed, keep_all_settings, name_others, remove, write_array, write_atomically
from utils.commands.jobs import progress
from utils.masks.geometry import as_png, resize_image

if TYPE_CHECKING:  # PyTorch is slow to import: --help and refusals of flags do without it
    from utils.engine.inference import Model


class Sample(NamedTuple):
    """One image as the networks see it."""

    path: Path
    size: tuple[int, int]  # height and width of the file
    image: np.ndarray  # (S,S,C) uint8


class Prediction(NamedTuple):
    """What is written for one image."""

    path: Path
    classes: np.ndarray  # (H,W) uint8
    probabilities: np.ndarray | None  # (K,H,W) float16


class Unread(NamedTuple):
    """An image that could not be read, and why."""

    path: Path
    reason: str


class Folders(NamedTuple):
    """Where masks go, and if wanted probabilities and overlays."""

    masks: Path
    probabilities: Path | None
    overlays: Path | None

    @property
    def volumes(self) -> Path:
        """Where masks of volumes go, beside those of their slices."""
        return self.masks.with_name(f"{self.masks.name}_volumes")

    def files(self, stem: str) -> dict[Path, Path]:
        """Folder -> the file of image ``stem`` in it."""
        suffixes = {self.masks: "png", self.probabilities: "npy", self.overlays: "png"}
        return {folder: folder / f"{stem}.{suffix}" for folder, suffix in suffixes.items() if folder}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint.pt or best.pt of a run folder")
    add("--images_root", type=Path, required=True, help="folder of images, or one image")
    add("--save_root", type=Path, required=True, help="folder to write the predicted masks to")
    add(
        "--probabilities_root", type=Path, help="also write the probability of each class there: .npy, float16, (K,H,W)"
    )
    add("--overlays_root", type=Path, help="also write the images with the predicted outlines there, as PNG")
    add("--masks_root", type=Path, help="with --overlays_root: folder of known masks, whose outlines are drawn too")
    add(
        "--tta",
        action="store_true",
        help="average over the eight flips and quarter turns of the image; eight times slower",
    )
    add("--batch_size", type=number(int, 1), default=8, help="images that the networks take at once (default: 8)")
    add_workers(parser, "number of threads that read and write")
    add_device(parser)
    add("--overwrite", action="store_true", help="replace what another checkpoint or program wrote there")
    args = parser.parse_args(argv)
    if args.masks_root and not args.overlays_root:
        parser.error("--masks_root: masks are drawn on overlays; give --overlays_root too, or leave it out")
    return args


def check_folders(root: Path, folders: Folders) -> None:
    """Refuse folders for output that would mix with each other, or with the images of ``root``."""
    taken = {(root if root.is_dir() else root.parent).resolve(): f"the folder of the images, {root}"}
    for flag, folder in zip(("--save_root", "--probabilities_root", "--overlays_root"), folders, strict=True):
        if folder and folder.resolve() in taken:
            raise UserError(f"{flag} {folder} is {taken[folder.resolve()]}; choose another")
        if folder:
            taken[folder.resolve()] = f"that of {flag} as well"


def check_formats(images: Iterable[Path], model: "Model", checkpoint: Path) -> None:
    """Raise `UserError` if the model takes none of the images; say how those of more than 8 bits are read."""
    found: dict[int, Path] = {}
    deep = []
    for path in images:
        with suppress(UserError):  # a file that is no image will be named when it is read
            form = format_of(path)
            found.setdefault(form.channels, path)
            if not form.eight_bit:
                deep.append(path.name)
    if found and not any(map(model.takes, found)):
        channels, path = next(iter(found.items()))
        raise UserError(
            f"{checkpoint}: trained on images of {in_words(model.channels)}, but {path} has {in_words(channels)}; "
            "use a checkpoint that was trained on such images, or convert them"
        )
    if deep:
        print(
            f"note: of {len(deep)} images deeper than 8 bits ({listed(deep)}) each channel is scaled by itself; "
            f"those of training were read as: {model.stored}"
        )


def read(path: Path, model: "Model") -> Sample | Unread:
    """An image, resized to the networks' size."""
    try:
        channels = format_of(check_file(path)).channels
        if not model.takes(channels):
            return Unread(path, f"{path}: {in_words(channels)}, but the checkpoint takes {model.channels}; convert it")
        image = read_image(path, model.channels)
    except UserError as error:
        return Unread(path, str(error))
    return Sample(path, image.shape[:2], resize_image(image, model.image_size))


def predictions(
    model: "Model", samples: Iterable[Sample | Unread], batch_size: int, tta: bool, probabilities: bool
) -> Iterator[Prediction | Unread]:
    """What each image shows, at its own size; unread ones pass through."""
    import torch

    from utils.engine.evaluation import classes_of, resized

    batch: list[Sample] = []

    def predicted() -> Iterator[Prediction]:
        logits = model.logits(torch.from_numpy(np.stack([sample.image for sample in batch])).movedim(-1, 1), tta)
        for (path, size, _), small in zip(batch, logits, strict=True):
            full = resized(small[None], size)  # one by one: sizes differ, and images may be large
            chances = full.softmax(dim=1)[0].half().cpu().numpy() if probabilities else None
            yield Prediction(path, classes_of(full)[0].numpy(), chances)
        batch.clear()

    for sample in samples:
        if isinstance(sample, Unread):
            yield sample
        else:
            batch.append(sample)
        if len(batch) == batch_size:
            yield from predicted()
    if batch:
        yield from predicted()


def read_reference(mask: Path, path: Path, image: np.ndarray, model: "Model") -> np.ndarray:
    """The mask (H,W) of the image (H,W,C) at ``path``. Raises `UserError` if it cannot be read or has another size."""
    labels = read_mask(mask, model.num_classes).labels
    check_size(mask, labels, path, image)
    return labels


def write(
    prediction: Prediction | Unread, folders: Folders, model: "Model", references: Mapping[str, Path]
) -> Unread | None:
    """Write all files of one prediction. What was not read stays what it is, and loses those of an earlier time.

    references: masks to draw on overlays, by stem.
    """
    if isinstance(prediction, Unread):
        remove(folders.files(prediction.path.stem).values())
        return prediction
    path, classes, probabilities = prediction
    files = folders.files(path.stem)
    if folders.probabilities and probabilities is not None:
        write_array(files[folders.probabilities], probabilities)
    if folders.overlays:
        from utils.engine.figures import overlay

        # Read again, so that no image of full size waits in memory for its batch.
        image = read_image(path, model.channels)
        try:
            reference = read_reference(references[path.stem], path, image, model) if path.stem in references else None
        except UserError as error:
            return write(Unread(path, str(error)), folders, model, {})
        drawn = overlay(image, classes, model.num_classes, reference)
        write_atomically(files[folders.overlays], as_png(drawn[..., ::-1]))
    write_atomically(files[folders.masks], as_png(classes * 255 if model.num_classes == 2 else classes))
    return None


def in_turn(pool: Executor, job: Callable, items: Iterable, ahead: int) -> Iterator:
    """``job`` of each item, in order; no more than ``ahead`` are under way or wait to be taken."""
    running: deque = deque()
    for item in items:
        running.append(pool.submit(job, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def predict(
    args: argparse.Namespace, model: "Model", images: dict[str, Path], folders: Folders, volumes: list[Volume]
) -> tuple[list[str], list[str]]:
    """Predict every image, write what is wanted of it, and put slices together; returns why images, and why volumes,
    were left out, one message each.

    Raises `UserError` if a folder holds what another checkpoint or program made, unless --overwrite.
    """
    precision = "bf16" if model.bf16 else "fp32"
    settings = {"checkpoint": str(args.checkpoint), "checkpoint_sha256": model.sha256, "epochs": model.epochs}
    settings |= {"tta": args.tta, "precision": precision}
    files = {folder: [folders.files(stem)[folder] for stem in images] for folder in filter(None, folders)}
    of_volumes = {volume.name: folders.volumes / f"{volume.name}.nii.gz" for volume in volumes}
    if volumes:
        files[folders.volumes] = list(of_volumes.values())
    keep_all_settings(files, settings, args.overwrite, exclusive=files)
    if args.images_root.is_dir():
        for folder, outputs in files.items():
            name_others(folder, outputs)
    print(
        f"{args.checkpoint}: {model.settings.get('method')}, {model.epochs} epochs, {model.image_size} pixels, "
        f"{in_words(model.channels)}, {model.num_classes} classes; {len(images)} images, {model.device}, {precision}"
    )

    references = list_images(args.masks_root) if args.masks_root else {}
    unread = []
    with ThreadPoolExecutor(args.workers) as pool:
        samples = in_turn(
            pool,
            partial(read, model=model),
            images.values(),
            args.batch_size + args.workers,
        )
        predicted = predictions(model, samples, args.batch_size, args.tta, args.probabilities_root is not None)
        write_one = partial(write, folders=folders, model=model, references=references)
        written = in_turn(pool, write_one, predicted, args.workers + 1)
        for outcome in progress(written, total=len(images), desc="predicting", unit="image"):
            if outcome:
                unread.append(outcome)
    whole, reasons = complete(volumes, images.keys() - {outcome.path.stem for outcome in unread})
    for volume in whole:
        write_volume(of_volumes[volume.name], volume, folders.masks, model.num_classes)
    remove(path for name, path in of_volumes.items() if name not in {volume.name for volume in whole})
    if whole:
        print(f"{len(whole)} of {len(volumes)} volumes put together -> {folders.volumes}")
    return [outcome.reason for outcome in unread], reasons


def predict_ready(args: argparse.Namespace, model: "Model", folders: Folders, ready: Ready) -> None:
    """Predict what is ready; what cannot be read is named, and ends the command with exit code 1."""
    of_folder = ready.root.is_dir()
    images = find_images(ready.root, list(filter(None, folders))) if of_folder else {ready.root.stem: ready.root}
    check_formats(images.values(), model, args.checkpoint)
    if turned := turned_images_in_words(images.values()):
        print(f"warning: {args.images_root}: {turned}", file=sys.stderr)
    volumes = [volume for volume in ready.volumes if not images.keys().isdisjoint(volume.stems)]
    with ExitStack() as claims:
        for folder in filter(None, (*folders, folders.volumes if volumes else None)):
            claims.enter_context(claimed(folder))
        unread, reasons = predict(args, model, images, folders, volumes)
    print(
        f"{len(images) - len(unread)} of {len(images)} images predicted -> {', '.join(map(str, filter(None, folders)))}"
    )
    reasons += [f"{name}: {reason}" for name, reason in ready.unread.items()]
    if unread:
        print(f"error: {len(unread)} of {len(images)} images were left out:\n" + "\n".join(unread), file=sys.stderr)
    if reasons:
        print(f"error: {len(reasons)} volumes or files were left out:\n" + "\n".join(reasons), file=sys.stderr)
    if unread or reasons:
        sys.exit(1)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from utils.engine.device import choose_device
    from utils.engine.inference import load_model

    folders = Folders(args.save_root, args.probabilities_root, args.overlays_root)
    check_folders(args.images_root, folders)
    if not os.path.lexists(args.images_root):
        raise UserError(f"{args.images_root}: no such folder or file")
    model = load_model(args.checkpoint, choose_device(args.device, args.gpu), args.amp)
    with images_to_predict(args.images_root, model.prepared, args.checkpoint, args.workers) as ready:
        predict_ready(args, model, folders, ready)


if __name__ == "__main__":
    run_main(main)
