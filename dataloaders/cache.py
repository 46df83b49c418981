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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.batches import TrainingSet
from dataloaders.slic import read_map
from utils.commands.arguments import NO_CACHE
from utils.commands.errors import UserError, listed, warn
from utils.commands.files import locked, read_json, write_json
from utils.commands.jobs import in_threads
from utils.masks.correction import Findings, Look, findings_of, look_at, moved_label
from utils.masks.geometry import resize_image, resize_label, squared_boundary_distance

VERSION = 6  # of what is stored; a change makes every cache again
CHUNK = 64  # images handled at once where a whole set would be too large for memory


class Sample(NamedTuple):
    """One training image as a loader reads it, at its own size."""

    image: np.ndarray  # (H,W,C) uint8, 0..255
    label: np.ndarray  # (H,W) uint8 classes
    artefacts: str = ""  # the mask file's name where it has compression artefacts (`dataloaders.files.read_mask`)


@dataclass(frozen=True)
class TrainingSource:
    """Where a training set comes from, and what it depends on."""

    names: tuple[str, ...]
    read: Callable[[int], Sample]  # the sample of an index into names; called from several threads
    maps: Mapping[str, Path] | None  # the superpixels of each name (`dataloaders.slic.find_maps`); None: none vote
    image_size: int  # to which images are brought, image_size x image_size
    num_classes: int
    files: Sequence[Path]  # every file that is read
    settings: dict  # everything else that decides the result, as JSON values


class LoadedSet(NamedTuple):
    """A training set, and what reading it has found."""

    data: TrainingSet
    findings: Findings | None  # of looking at its masks; None if nothing asked for it
    vanished: set[int]  # the classes that some mask loses at the training size


def load_training_set(
    source: TrainingSource, cache: str, device: torch.device, contours: str = "given", wants_tau: bool = False
) -> LoadedSet:
    """The training set of ``source`` on ``device``, and what reading it has found. What vanishes is named on stderr.

    cache: the folder of --cache, from where the arrays are mapped into memory. They are made where they are missing,
    out of date or damaged, which a line on stdout says; another process that makes the same set is waited for. With
    "none" they are read into memory, and nothing is stored. On a GPU the set is copied there if it takes no more than
    half of its free memory. contours: "given", or "corrected": moved as `utils.masks.correction` decides, which stdout
    says. Raises `UserError` as ``source.read``, and if the cache cannot be written.
    """
    look = wants_tau or contours == "corrected"
    stored = (
        _read_all(source, contours, look, lambda name, shape, dtype: np.empty(shape, dtype))
        if cache == NO_CACHE
        else _from_cache(source, contours, look, Path(cache))
    )
    if contours == "corrected" and stored.findings:
        moved = sum(map(bool, stored.findings.shifts))
        print(
            f"contours: {moved} of {len(source.names)} moved, {stored.share_moved:.1%} of all pixels; "
            f"{stored.findings.reason}" + "; look at some: scripts/audit_labels.py draws them" * (moved > 0)
        )
    if stored.artefacts:
        names = listed(stored.artefacts)
        print(f"note: compression artefacts, thresholded at 128, in {len(stored.artefacts)} masks: {names}")
    arrays = {name: torch.from_numpy(array) for name, array in stored.arrays.items()}
    data = TrainingSet(source.names, **arrays, num_segments=stored.num_segments)
    if stored.vanished:
        warn(
            f"warning: --image_size {source.image_size}: in {len(stored.vanished)} of {len(data)} training masks a "
            f"class vanishes, since its objects are smaller than a pixel there: {listed(stored.vanished)}. It is "
            "trained on as background: give a larger --image_size, or cut the images into parts around the objects"
        )
    return LoadedSet(_placed(data, device), stored.findings, set().union(*stored.vanished.values()))


class _Stored(NamedTuple):
    arrays: dict[str, np.ndarray]
    num_segments: int
    artefacts: list[str]
    vanished: dict[str, list[int]]  # by name the classes whose pixels are lost at the training size
    findings: Findings | None
    share_moved: float  # of all pixels, those that changed their class by correction


def _from_cache(source: TrainingSource, contours: str, look: bool, root: Path) -> _Stored:
    own = {"image_size": source.image_size, "num_classes": source.num_classes, "contours": contours, "look": look}
    settings = json.loads(json.dumps({**source.settings, **own}))  # as they will be read back
    kind = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / kind
    try:
        expected = {"version": VERSION, "settings": settings, "sources": _fingerprint(source.files)}
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{kind}.lock", f"{folder}: another process is making it; waiting"):
            why = _stale(folder, expected)
            print(f"cache {folder}: {why}, making it" if why else f"cache {folder}: up to date")
            if why:
                _make(source, contours, look, folder, expected)
            return _open(folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or root}: the cache cannot be made there ({error.strerror}); free some space, choose "
            f"another folder with --cache, or give --cache {NO_CACHE}"
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


def _make(source: TrainingSource, contours: str, look: bool, folder: Path, expected: dict) -> None:
    """Make the cache beside ``folder`` and then put it in its place; the caller holds the lock."""
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        stored = _read_all(
            source, contours, look, lambda name, shape, dtype: _allocated(temporary / f"{name}.bin", shape, dtype)
        )
        for array in stored.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        arrays = {name: (part.shape, part.dtype.str, zlib.crc32(part.data)) for name, part in stored.arrays.items()}
        made = {name: getattr(stored, name) for name in ("num_segments", "artefacts", "vanished", "share_moved")}
        made["findings"] = stored.findings and stored.findings._asdict()
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


def _read_all(source: TrainingSource, contours: str, look: bool, allocate: Callable[..., np.ndarray]) -> _Stored:
    """Every sample read into arrays that ``allocate`` gives for a name, shape and dtype."""
    count, size, channels = len(source.names), source.image_size, source.read(0).image.shape[2]
    arrays = {
        "images": allocate("images", (count, channels, size, size), np.uint8),
        "labels": allocate("labels", (count, size, size), np.uint8),
        "squared_distances": allocate("squared_distances", (count, size, size), np.uint8),
        "segments": allocate("segments", (count, size, size), np.int32),
    }

    def store_label(index: int, label: np.ndarray) -> None:
        arrays["labels"][index] = label
        arrays["squared_distances"][index] = squared_boundary_distance(label)

    def store(index: int) -> tuple[str, Look | None, list[int]]:
        sample = source.read(index)
        arrays["images"][index] = np.moveaxis(resize_image(sample.image, size), -1, 0)
        arrays["segments"][index] = read_map(source.maps, source.names[index], size)
        small = resize_label(sample.label, size)
        store_label(index, small)
        lost = sorted(set(np.unique(sample.label).tolist()) - set(np.unique(small).tolist()) - {0})
        return sample.artefacts, look_at(sample.image, sample.label) if look else None, lost

    def move(shifted: tuple[int, float]) -> int:
        index, shift = shifted
        label = arrays["labels"][index].copy()
        moved = moved_label(label, shift)
        store_label(index, moved)
        return int(np.count_nonzero(moved != label))

    artefacts, looks, lost = zip(*in_threads(store, range(count), "reading training set"), strict=True)
    findings, changed = None, []
    if look:
        findings = findings_of(looks, source.num_classes, contours == "corrected")
        changed = in_threads(move, [one for one in enumerate(findings.shifts) if one[1]], "moving contours")
    wide = arrays["segments"]
    num_segments = 1 + max(int(ids.max()) for ids in wide)
    if num_segments <= 2**15:  # nearly always, and half the size
        narrow = arrays["segments"] = allocate("narrow", wide.shape, np.int16)
        for start in range(0, count, CHUNK):
            narrow[start : start + CHUNK] = wide[start : start + CHUNK]
        if isinstance(wide, np.memmap) and isinstance(narrow, np.memmap):
            Path(str(narrow.filename)).replace(str(wide.filename))
    named = [name for name in artefacts if name]
    vanished = {name: classes for name, classes in zip(source.names, lost, strict=True) if classes}
    return _Stored(arrays, num_segments, named, vanished, findings, sum(changed) / (count * size * size))


def _open(folder: Path) -> _Stored:
    meta = read_json(folder / "meta.json", "remove it")
    arrays: dict[str, np.ndarray] = {
        name: _mapped(folder, name, shape, dtype) for name, (shape, dtype, _) in meta["arrays"].items()
    }
    findings = Findings(**meta["findings"]) if meta["findings"] else None
    return _Stored(arrays, meta["num_segments"], meta["artefacts"], meta["vanished"], findings, meta["share_moved"])


def _mapped(folder: Path, name: str, shape: Sequence[int], dtype: str) -> np.memmap:
    """An array of a cache. Raises OSError or ValueError if its file is not there or not of its size."""
    path = folder / f"{name}.bin"
    if path.stat().st_size != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path}: not of {dtype} {shape}")
    # "c": writes, of which there are none, would stay in memory; read-only arrays make torch warn.
    return np.memmap(path, dtype, "c", shape=tuple(shape))


def _placed(data: TrainingSet, device: torch.device) -> TrainingSet:
    if device.type == "cpu":
        return data
    size, free = data.nbytes, torch.cuda.mem_get_info(device)[0]
    figures = f"the training set takes {size / 1e9:.2f} GB, the GPU has {free / 1e9:.2f} GB free"
    if size > free / 2:
        print(f"{figures}: it stays off the GPU")
        return data
    print(f"{figures}: it is copied there")
    return data.to(device)
