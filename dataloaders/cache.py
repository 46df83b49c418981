"""A training set as compact arrays, computed once: kept in files that are memory-mapped, or in memory alone.

What does not depend on the epoch - decoding, resizing, distances, superpixels - is done when a set is first read. The
files live in a folder of the cache root and are used again as long as neither a source file nor a setting has changed.
Mapped files take no more memory than the system has to spare, so a set may be larger than memory.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dataloaders.batches import TrainingSet
from utils.commands.errors import UserError, listed
from utils.commands.files import locked, read_json, write_json
from utils.masks.contours import Steps, edges_shown, levels_of, move_contour, steps
from utils.masks.edge_profile import displacements
from utils.masks.geometry import squared_boundary_distance

VERSION = 5  # of what is stored; a change makes every cache again
CHUNK = 64  # images handled at once where a whole set would be too large for memory


class Sample(NamedTuple):
    """One training image as a loader reads it, at the training size."""

    image: np.ndarray  # (H,W,C) uint8, 0..255
    label: np.ndarray  # (H,W) uint8 classes
    segments: np.ndarray  # (H,W) int32 superpixel ids >= 0
    soiled: str = ""  # the mask file's name where lossy compression had soiled it (`dataloaders.files.read_mask`)


@dataclass(frozen=True)
class Recipe:
    """How to make a training set, and what it depends on."""

    names: tuple[str, ...]
    read: Callable[[int], Sample]  # the sample of an index into names; called from several threads
    sources: Sequence[Path]  # every file that is read
    settings: dict  # everything else that decides the result, as JSON values


def load_training_set(
    recipe: Recipe, cache: str, root: Path | str | None, device: torch.device, contours: str = "given"
) -> TrainingSet:
    """The training set of ``recipe``, kept as ``cache`` says, with contours as --contours says.

    "ram": mapped from files below the cache root, which are made where they are missing, out of date or damaged; a line
    on stdout says so. Another process that makes the same set at this moment is waited for. "none": read into memory,
    nothing is stored. "device": as ram, then copied to the training device. "auto": so too on a GPU where the set takes
    no more than half of its free memory, else as ram. Soiled masks are named on stdout.
    root: the folder of --cache; None: cache, in the working directory.
    Contours "given": the masks as they are; "corrected": moved to where the images show the edge
    (`utils.masks.contours`), by how much is said on stdout.
    Raises `UserError` as ``recipe.read``, and if the cache cannot be written or the set does not fit the device.
    """
    if cache == "device" and device.type == "cpu":
        print("note: --cache device: training runs on the CPU, so as --cache ram")
    stored = (
        _read_all(recipe, contours, lambda name, shape, dtype: np.empty(shape, dtype))
        if cache == "none"
        else _from_cache(recipe, contours, Path("cache" if root is None else root))
    )
    if contours == "corrected":
        print(_movement_in_words(stored.levels, stored.share_moved, stored.shown))
    if stored.soiled:
        print(f"note: in-between greys thresholded at 128 in {len(stored.soiled)} masks: {listed(stored.soiled)}")
    arrays = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    data = TrainingSet(recipe.names, **arrays, num_segments=stored.num_segments)
    return _placed(data, cache, device)


class _Stored(NamedTuple):
    arrays: dict[str, np.ndarray]
    num_segments: int
    soiled: list[str]
    levels: list[float]  # by how many pixels each contour was moved, positive inwards; [] if none was to be
    share_moved: float  # of all pixels, those that changed their class thereby
    shown: bool  # whether the images show edges at the contours; true if they were not asked


def _movement_in_words(levels: list[float], share_moved: float, shown: bool) -> str:
    if not shown:
        return (
            "contours: stay where they are, as the images show no more of an edge there than elsewhere; if masks are "
            "wrong all the same, give --tau the share of pixels that is"
        )
    moved = [level for level in levels if level]
    where = "stay where they are"
    if moved:
        low, middle, high = np.percentile(levels, (5, 50, 95)).round(1) + 0.0  # no -0
        where = (
            f"moved in {len(moved)} of {len(levels)} masks, {share_moved:.1%} of all pixels: by {middle:+.1f} px in "
            f"the median, {low:+.1f} to {high:+.1f} in nine of ten (+ inwards, - outwards)"
        )
    if len(moved) > len(levels) / 2:
        where += "; most masks, so look at some: scripts/audit_labels.py draws them; --contours given leaves them"
    return f"contours: {where}"


def _from_cache(recipe: Recipe, contours: str, root: Path) -> _Stored:
    settings = json.loads(json.dumps({**recipe.settings, "contours": contours}))  # as they will be read back
    kind = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / kind
    try:
        expected = {"version": VERSION, "settings": settings, "sources": _fingerprint(recipe.sources)}
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{kind}.lock", f"{folder}: another process is making it; waiting"):
            why = _stale(folder, expected)
            print(f"cache {folder}: {why}, making it" if why else f"cache {folder}: up to date")
            if why:
                _make(recipe, contours, folder, expected)
            return _open(folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: the cache cannot be made there ({error.strerror}); free some space, choose "
            "another folder by --cache, or give --cache none"
        ) from error


def _fingerprint(sources: Sequence[Path]) -> str:
    """Changes when a source file is changed, replaced, renamed, added or taken away."""
    digest = hashlib.sha256()
    for path in sources:
        state = path.stat()
        digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stale(folder: Path, expected: dict) -> str:
    """Why the cache in ``folder`` cannot be used; "" if it can."""
    if not folder.is_dir():
        return "new"
    try:
        meta = read_json(folder / "meta.json", "it is made again")
        if meta.pop("checksum") != _checksum(meta):
            return "damaged"
        if any(meta[name] != value for name, value in expected.items()):
            return "a source file has changed"
        for name, (shape, dtype, checksum) in meta["arrays"].items():
            if zlib.crc32(_mapped(folder, name, shape, dtype).data) != checksum:
                return f"{name}.bin is damaged"
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged"
    return ""


def _checksum(meta: dict) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _make(recipe: Recipe, contours: str, folder: Path, expected: dict) -> None:
    """Make the cache beside ``folder`` and then put it in its place; the caller holds the lock."""
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        stored = _read_all(
            recipe, contours, lambda name, shape, dtype: _allocated(temporary / f"{name}.bin", shape, dtype)
        )
        for array in stored.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        arrays = {name: (part.shape, part.dtype.str, zlib.crc32(part.data)) for name, part in stored.arrays.items()}
        made = {name: getattr(stored, name) for name in ("num_segments", "soiled", "levels", "share_moved", "shown")}
        meta = expected | made | {"arrays": arrays}
        write_json(temporary / "meta.json", meta | {"checksum": _checksum(meta)})
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)


def _allocated(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A file of zeros, mapped for writing. Its space is taken here: a full disk must be an error, not a fault later."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    zeros = bytes(2**20)
    with open(path, "wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])
        file.flush()
        os.fsync(file.fileno())
    return np.memmap(path, dtype, "r+", shape=shape)


def _read_all(recipe: Recipe, contours: str, allocate: Callable[..., np.ndarray]) -> _Stored:
    """Every sample read into arrays that ``allocate`` gives for a name, shape and dtype."""
    count, first = len(recipe.names), recipe.read(0)
    height, width, channels = first.image.shape
    arrays = {
        "images": allocate("images", (count, channels, height, width), np.uint8),
        "labels": allocate("labels", (count, height, width), np.uint8),
        "squared_distances": allocate("squared_distances", (count, height, width), np.uint8),
        "segments": allocate("segments", (count, height, width), np.int32),
    }

    def store_label(index: int, label: np.ndarray) -> None:
        arrays["labels"][index] = label
        arrays["squared_distances"][index] = squared_boundary_distance(label)

    def store(index: int) -> tuple[str, Steps | None]:
        sample = recipe.read(index)
        arrays["images"][index] = np.moveaxis(sample.image, -1, 0)
        arrays["segments"][index] = sample.segments
        store_label(index, sample.label)
        return sample.soiled, steps(sample.image, sample.label) if contours == "corrected" else None

    def move(index: int) -> int:
        label = arrays["labels"][index].copy()
        moved = move_contour(label, levels[index])
        store_label(index, moved)
        return int(np.count_nonzero(moved != label))

    soiled, edges = zip(*_each(store, range(count), "reading training set"), strict=True)
    levels, changed, shown = [], [], True
    if contours == "corrected":
        looked_at = levels_of((height, width))
        shown = edges_shown(edges, looked_at)
        levels = displacements(edges, looked_at, max(height, width)).tolist()
        changed = _each(move, np.flatnonzero(levels).tolist(), "moving contours")
    wide = arrays["segments"]
    num_segments = 1 + max(int(ids.max()) for ids in wide)
    if num_segments <= 2**15:  # nearly always, and half the size
        narrow = arrays["segments"] = allocate("narrow", wide.shape, np.int16)
        for start in range(0, count, CHUNK):
            narrow[start : start + CHUNK] = wide[start : start + CHUNK]
        if isinstance(wide, np.memmap) and isinstance(narrow, np.memmap):
            Path(str(narrow.filename)).replace(str(wide.filename))
    named = [name for name in soiled if name]
    return _Stored(arrays, num_segments, named, levels, sum(changed) / (count * height * width), shown)


def _each(work: Callable[[int], object], indices: Sequence[int], title: str) -> list:
    """``work`` of every index, several at a time: decoding, resizing and distances release the interpreter lock."""
    with ThreadPoolExecutor() as pool:
        try:
            return list(tqdm(pool.map(work, indices), total=len(indices), desc=title, unit="image"))
        finally:
            pool.shutdown(cancel_futures=True)


def _open(folder: Path) -> _Stored:
    meta = read_json(folder / "meta.json", "remove it")
    arrays: dict[str, np.ndarray] = {
        name: _mapped(folder, name, shape, dtype) for name, (shape, dtype, _) in meta["arrays"].items()
    }
    return _Stored(arrays, meta["num_segments"], meta["soiled"], meta["levels"], meta["share_moved"], meta["shown"])


def _mapped(folder: Path, name: str, shape: Sequence[int], dtype: str) -> np.memmap:
    """An array of a cache. Raises OSError or ValueError if its file is not there or not of its size."""
    path = folder / f"{name}.bin"
    if path.stat().st_size != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path}: not of {dtype} {shape}")
    # "c": writes, of which there are none, would stay in memory; read-only arrays make torch warn.
    return np.memmap(path, dtype, "c", shape=tuple(shape))


def _placed(data: TrainingSet, cache: str, device: torch.device) -> TrainingSet:
    if device.type == "cpu" or cache not in ("auto", "device"):
        return data
    size, free = data.nbytes, torch.cuda.mem_get_info(device)[0]
    figures = f"the training set takes {size / 1e9:.2f} GB, the GPU has {free / 1e9:.2f} GB free"
    if cache == "device" and size > free:
        raise UserError(f"--cache device: {figures}; give --cache ram")
    if cache == "auto" and size > free / 2:
        print(f"{figures}: it stays off the GPU")
        return data
    print(f"{figures}: it is copied there")
    return data.to(device)
