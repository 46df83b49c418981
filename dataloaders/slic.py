"""The superpixel maps of a set of images: made over several processes, kept as .npy files, found again for training."""

import io
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import cv2
import numpy as np

from dataloaders.files import read_image, read_segments
from utils.commands.errors import UserError, listed
from utils.commands.files import claimed, keep_settings, locked, write_atomically
from utils.commands.jobs import run_jobs
from utils.masks.geometry import resize_image
from utils.masks.superpixels import slic_segments

Sources = dict[str, Callable[[], np.ndarray]]  # an image's name and its reader, which gives uint8 (H,W,C)
SETTINGS = {"n_segments": 1024, "compactness": 10.0, "sigma": 1.0}  # docs/method.md section 3


class Outcome(NamedTuple):
    """What became of one image."""

    name: str
    action: str  # "written", "skipped" or "made again"
    segments: int


def image_sources(images: dict[str, Path]) -> Sources:
    """The readers of image files, given by stem."""
    return {stem: partial(read_image, path) for stem, path in images.items()}


def find_maps(images: dict[str, Path], folder: Path, image_size: int) -> dict[str, Path]:
    """The superpixel map of each of ``images``, both by stem; ``folder`` is made on first use.

    Only a folder that is complete appears under its name; another process at the same is waited for. Raises `UserError`
    if the folder is that of the images, if it is there and lacks some maps, if it cannot be written, or if an image is
    not readable.
    """
    root = next(iter(images.values())).parent
    if folder.resolve() == root.resolve():  # .npy images would be read as their own superpixels
        raise UserError(f"{folder}: the folder of the images, not of superpixels; give another by --slic_root")
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f".{folder.name}.lock"), f"{folder}: another process is making it; waiting"):
                if not folder.is_dir():
                    print(f"{folder}: no such folder, making superpixels of {len(images)} images", flush=True)
                    _make_folder(images, folder, image_size)
        except OSError as error:
            raise UserError(
                f"{folder}: superpixels cannot be kept there ({error.strerror}); give another folder by --slic_root"
            ) from error
    make = f"--images_root {quote(str(root))} --save_root {quote(str(folder))} --image_size {image_size}"
    hint = f"{make}, or remove the folder to have all made anew"
    return dict(zip(images, existing_maps(images, folder, hint), strict=True))


def existing_maps(names: Iterable[str], folder: Path, hint: str) -> list[Path]:
    """The superpixel maps of images in ``folder``, by their names. Raises `UserError` if some are not there.

    hint: the flags of scripts/generate_SLIC.py that make them, and what else would help.
    """
    maps = [folder / f"{name}.npy" for name in names]
    lacking = [path.stem for path in maps if not path.is_file()]
    if lacking:
        raise UserError(
            f"{folder}: no superpixels for {len(lacking)} of {len(maps)} images: {listed(lacking, most=10)}; "
            f"make them with scripts/generate_SLIC.py {hint}"
        )
    return maps


def _make_folder(images: dict[str, Path], folder: Path, image_size: int) -> None:
    root, making = next(iter(images.values())).parent, folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)  # a process that was killed may have left it
    try:
        make_maps(root, image_sources(images), making, image_size, SETTINGS, os.cpu_count() or 1, named=folder)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def make_maps(
    origin: Path,
    sources: Sources,
    folder: Path,
    image_size: int,
    slic: dict,
    workers: int,
    overwrite: bool = False,
    named: Path | None = None,
) -> None:
    """Write the superpixel map (image_size, image_size) of each source into ``folder``, as .npy of its name, and the
    settings. Maps that are there and valid stay, unless ``overwrite``. What was made is said on stdout, where the
    folder goes by the name of ``named``, its own by default.

    origin: the folder or file of the images; it is one of the settings, since the images of another may have the same
    names. slic: the arguments of `utils.masks.superpixels.slic_segments`. Raises `UserError` if the folder holds the
    images themselves, if it was made with other settings or another process is writing there, and, when all others are
    made, for images that cannot be read.
    """
    if folder.resolve() == origin.resolve():
        raise UserError(f"{folder}: the folder of the images, which would be lost; choose another for the superpixels")
    # Below the folder of both, so that a dataset may be moved.
    images = os.path.relpath(origin.resolve(), (named or folder).resolve())
    settings = {"images": images, **slic, "image_size": image_size}
    with claimed(folder):
        keep_settings(folder, settings, overwrite, [folder / f"{name}.npy" for name in sources], exclusive=True)
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the processes take the cores
        job = partial(_make_map, folder=folder, size=image_size, slic=slic)
        results, failures = run_jobs(job, list(sources.items()), workers, "SLIC")
        cv2.setNumThreads(threads)
    outcomes = [result for result in results if result is not None]
    if outcomes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {named or folder}")
        print(summary(outcomes))
    if failures:
        raise UserError(f"{len(failures)} of {len(sources)} images got no superpixels:\n" + "\n".join(failures))


def _make_map(source: tuple[str, Callable[[], np.ndarray]], folder: Path, size: int, slic: dict) -> Outcome:
    name, read = source
    target = folder / f"{name}.npy"
    action = "written"
    segments = None
    if target.exists():
        segments = _read_valid(target, (size, size))
        action = "made again" if segments is None else "skipped"
    if segments is None:
        segments = slic_segments(resize_image(read(), size), **slic)
        data = io.BytesIO()
        np.save(data, segments)
        write_atomically(target, data.getvalue())
    return Outcome(name, action, int(segments.max()) + 1)


def _read_valid(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
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
