"""The superpixel maps of a set of images: made over several processes, kept as .npy files, found again for training."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataloaders.files import read_image, read_segments
from utils.commands.errors import UserError, counted, is_main_process, listed
from utils.commands.files import claimed, keep_settings, locked, read_json, write_array
from utils.commands.jobs import processors, run_jobs
from utils.masks.geometry import resize_image
from utils.masks.superpixels import slic_segments

Sources = dict[str, Callable[[], np.ndarray]]  # an image's name and its reader, which gives uint8 (H,W,C)
PAPER_SEGMENTS = 1024
SETTINGS = {"n_segments": PAPER_SEGMENTS, "compactness": 10.0, "sigma": 1.0}  # docs/method.md section 3


class Outcome(NamedTuple):
    """What became of one image."""

    name: str
    action: str  # "written", "skipped" or "made again"
    segments: int


def image_sources(images: dict[str, Path]) -> Sources:
    """The readers of image files, given by stem."""
    return {stem: partial(read_image, path) for stem, path in images.items()}


def usual_segments(image_size: int) -> int:
    """The number of superpixels where none is asked for: the paper's 1024, and at most one for 16 pixels."""
    return min(PAPER_SEGMENTS, max(1, image_size**2 // 16))


def superpixel_folder(plain: Path, image_size: int, paper_size: int, asked: str | None = None) -> Path:
    """Where the superpixels of a dataset for ``image_size`` are, or are to be made: ``asked``, or its own.

    plain: the dataset's own folder, if its maps are of that size; else the one with the size behind its name. Where
    neither has maps it is the plain one if that is not there or empty, or if the size is the paper's. Empty it is when
    another process has just begun to make maps there: both must choose alike.
    """
    if asked:
        return Path(asked)
    stored = _stored_size(plain)
    sized = plain.with_name(f"{plain.name}_{image_size}")
    if stored == image_size:
        return plain
    empty = not plain.is_dir() or not any(plain.glob("*.npy"))
    if stored is None and not sized.is_dir() and (image_size == paper_size or empty):
        return plain
    return sized


def _stored_size(folder: Path) -> int | None:
    """The side of the maps in ``folder``: as its record says, else that of the first that can be read; None if neither
    is there."""
    with suppress(Exception):  # what is damaged is named when it is needed
        return int(read_json(folder / "settings.json", "")["image_size"])
    for path in sorted(folder.glob("*.npy")) if folder.is_dir() else ():
        with suppress(Exception):
            return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[0])
    return None


def segments_in_words(folder: Path, image_size: int) -> str:
    """What votes, for the first line of a run: how many superpixels an image was to be cut into, if that is known."""
    record = folder / "settings.json"
    if folder.is_dir():
        known = read_json(record, "mend or remove it") if record.is_file() else {}
        count = known.get("n_segments") if isinstance(known, dict) else None
        return f"{count} superpixels" if count else f"superpixels of {folder.name}"
    return f"{usual_segments(image_size)} superpixels"


def find_maps(sources: Sources, origin: Path, folder: Path, image_size: int) -> dict[str, Path]:
    """The superpixel map of each of ``sources``, by name; those that ``folder`` lacks are made, and said so.

    origin: the folder or file of the images. Another process that makes them is waited for; of processes that train
    together the main one makes them. Raises `UserError` if the folder is that of the images, cannot be written, or
    lacks maps and has those of other images or of another size, or if an image is not readable.
    """
    if folder.resolve() == origin.resolve():  # .npy images would be read as their own superpixels
        raise UserError(f"{folder}: the folder of the images, not of superpixels; give another by --slic_root")
    maps = {name: folder / f"{name}.npy" for name in sources}
    if all(path.is_file() for path in maps.values()):
        return maps
    if not is_main_process():
        _wait_for(maps.values())
        return maps
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), f"{folder}: another process is making it; waiting"):
            lacking = {name: read for name, read in sources.items() if not maps[name].is_file()}
            if lacking:
                slic = settings_for_more(folder, origin, image_size)
                print(f"{folder}: making superpixels of {len(lacking)} of {len(sources)} images", flush=True)
                make_maps(origin, lacking, folder, image_size, slic, processors())
    except OSError as error:
        raise UserError(
            f"{folder}: superpixels cannot be kept there ({error.strerror}); give another folder by --slic_root"
        ) from error
    return maps


def _wait_for(files: Iterable[Path]) -> None:
    """Return when all files are there. They appear whole (`write_array`); if the process that makes them fails,
    torchrun ends this one."""
    for path in files:
        while not path.is_file():
            time.sleep(0.1)


def settings_for_more(folder: Path, origin: Path, image_size: int) -> dict:
    """What further maps of ``folder`` are made with: its own settings, else the usual ones.

    Raises `UserError` if its maps are known to be of other images than those of ``origin``, or of another size.
    """
    usual = {**SETTINGS, "n_segments": usual_segments(image_size)}
    record = folder / "settings.json"
    if not record.is_file():
        return usual
    known = read_json(record, f"remove {folder} to have all made again")
    own = known if isinstance(known, dict) else {}
    slic = usual | {name: own[name] for name in usual if isinstance(own.get(name), int | float)}
    if known != _recorded(folder, origin, image_size, slic):
        raise UserError(
            f"{folder}: lacks superpixels of {origin} at {image_size}x{image_size}, and was made with {known}; give "
            "another folder by --slic_root"
        )
    return slic


def _recorded(folder: Path, origin: Path, image_size: int, slic: dict) -> dict:
    """What settings.json of ``folder`` says, by which maps of other images or settings are told."""
    # Below the folder of both, so that a dataset may be moved.
    return {"images": os.path.relpath(origin.resolve(), folder.resolve()), **slic, "image_size": image_size}


def read_map(maps: Mapping[str, Path] | None, name: str, image_size: int) -> np.ndarray:
    """The superpixels of image ``name``, int32 (image_size,image_size), from its map (`find_maps`).

    maps: None where no superpixels vote; all of the image is one segment then. Raises `UserError` if the map is damaged
    or of another size.
    """
    if maps is None:
        return np.zeros((image_size, image_size), np.int32)
    return read_segments(maps[name], (image_size, image_size))


def folder_of(maps: Mapping[str, Path] | None) -> str | None:
    """The folder of superpixel maps, as the settings of a cached set name it."""
    return str(next(iter(maps.values())).parent.resolve()) if maps else None


def make_maps(
    origin: Path,
    sources: Sources,
    folder: Path,
    image_size: int,
    slic: dict,
    workers: int,
    overwrite: bool = False,
) -> None:
    """Write the superpixel map (image_size, image_size) of each source into ``folder``, as .npy of its name, and the
    settings. Maps that are there and valid stay, unless ``overwrite``. What was made is said on stdout.

    origin: the folder or file of the images; it is one of the settings, since the images of another may have the same
    names. slic: the arguments of `utils.masks.superpixels.slic_segments`. Raises `UserError` if the folder holds the
    images themselves, if it was made with other settings or another process is writing there, and, when all others are
    made, for images that cannot be read.
    """
    if folder.resolve() == origin.resolve():
        raise UserError(f"{folder}: the folder of the images, which would be lost; choose another for the superpixels")
    settings = _recorded(folder, origin, image_size, slic)
    with claimed(folder):
        keep_settings(folder, settings, overwrite, [folder / f"{name}.npy" for name in sources], exclusive=True)
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the processes take the cores
        job = partial(_make_map, folder=folder, size=image_size, slic=slic)
        results, failures = run_jobs(job, list(sources.items()), workers, "SLIC")
        cv2.setNumThreads(threads)
    outcomes = [result for result in results if result is not None]
    if outcomes:
        print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {folder}")
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
        write_array(target, segments)
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
    images = counted(len(outcomes), "image")
    lines = [f"{images}: {actions['written']} written, {actions['skipped']} already there and skipped"]
    if damaged:
        lines.append(f"made again, the file there was not valid: {len(damaged)} ({listed(damaged)})")
    lines.append(f"superpixels an image: mean {np.mean(counts):.0f}, fewest {min(counts)}, most {max(counts)}")
    return "\n".join(lines)
