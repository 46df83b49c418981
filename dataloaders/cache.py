"""Arrays that are made once and kept in files, from where they are memory-mapped.

They live in a folder of the cache root and are used again as long as neither a source file nor a setting has changed,
and what is kept is whole. Mapped files take no more memory than the system has to spare, so a set may be larger than
memory.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from utils.commands.arguments import NO_CACHE
from utils.commands.errors import UserError
from utils.commands.files import locked, read_json, write_json

VERSION = 8  # of what is stored; a change makes every cache again

Allocate = Callable[[str, tuple[int, ...], DTypeLike], np.ndarray]  # an array of a name, shape and dtype


class Kept(NamedTuple):
    """What is made once."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]  # JSON values


def in_memory(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """`Allocate` for arrays that no file keeps."""
    return np.empty(shape, dtype)


def kept(root: Path, settings: dict, sources: Sequence[Path], make: Callable[[Allocate], Kept]) -> Kept:
    """What ``make`` makes in arrays that it is given, kept in a folder of ``root`` for the next call.

    It is made where it is missing, out of date or damaged, which a line on stdout says; another process that makes the
    same is waited for. settings: JSON values, each combination has a folder of its own; sources: the files that the
    result depends on. Raises `UserError` as ``make``, and if the cache cannot be written.
    """
    settings = json.loads(json.dumps(settings))  # as they will be read back
    kind = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / kind
    try:
        expected = {"version": VERSION, "settings": settings, "sources": _fingerprint(sources)}
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{kind}.lock", f"{folder}: another process is making it; waiting"):
            why = _stale(folder, expected)
            print(f"cache {folder}: {why}, making it" if why else f"cache {folder}: up to date")
            if why:
                _make(folder, expected, make)
            meta, arrays = _open(folder)
            return Kept(arrays, meta["facts"])
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
        meta, arrays = _open(folder)
        if meta.pop("checksum") != _checksum(meta, arrays):
            return "damaged"
        return "" if expected == {name: meta[name] for name in expected} else "a source file has changed"
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return "damaged"


def _open(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    meta = read_json(folder / "meta.json", "it is made again")
    return meta, {name: _mapped(folder, name, shape, dtype) for name, (shape, dtype) in meta["arrays"].items()}


def _checksum(meta: dict, arrays: Mapping[str, np.ndarray]) -> int:
    """Changes with any bit of what is kept."""
    value = zlib.crc32(json.dumps(meta, sort_keys=True).encode())
    for _, array in sorted(arrays.items()):
        value = zlib.crc32(array.data, value)
    return value


def _make(folder: Path, expected: dict, make: Callable[[Allocate], Kept]) -> None:
    """Make the cache beside ``folder`` and then put it in its place; the caller holds the lock."""
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        arrays, facts = make(lambda name, shape, dtype: _allocated(temporary / f"{name}.bin", shape, dtype))
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        forms = {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
        meta = json.loads(json.dumps(expected | {"facts": facts, "arrays": forms}))  # as they will be read back
        write_json(temporary / "meta.json", meta | {"checksum": _checksum(meta, arrays)})
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)


def _allocated(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """A file of zeros, mapped for writing. Its space is taken here: a full disk must be an error, not a fault later."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    zeros = bytes(2**20)
    with open(path, "wb") as file:
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])
        file.flush()
        os.fsync(file.fileno())
    return np.memmap(path, dtype, "r+", shape=shape)


def _mapped(folder: Path, name: str, shape: Sequence[int], dtype: str) -> np.memmap:
    """An array of a cache. Raises OSError or ValueError if its file is not there or not of its size."""
    path = folder / f"{name}.bin"
    if path.stat().st_size != int(np.prod(shape)) * np.dtype(dtype).itemsize:
        raise ValueError(f"{path}: not of {dtype} {shape}")
    # "c": writes, of which there are none, would stay in memory; read-only arrays make torch warn.
    return np.memmap(path, dtype, "c", shape=tuple(shape))
