"""Files written whole or not at all, folders for one process alone, and the settings that a folder was made with."""

import csv
import errno
import io
import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from utils.commands.errors import UserError, listed

HANDOVER = 0.2  # seconds to wait for a lock whose owner is about to remove its file
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of network file systems without locks


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all: to a temporary name beside it, then renamed.

    Raises `UserError` if the folder cannot be written to or the disk is full; the previous file stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error
    finally:
        with suppress(OSError):  # the parent may be no folder, which the error above says
            temporary.unlink()


def read_json(path: str | os.PathLike, remedy: str, **options: Any) -> Any:
    """What a JSON file holds; options: of `json.loads`. Raises `UserError`, with ``remedy``, if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), **options)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {remedy}") from error


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write ``value`` as indented JSON, atomically (`write_atomically`)."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_array(path: str | os.PathLike, values: np.ndarray) -> None:
    """Write an array as .npy, atomically (`write_atomically`)."""
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())


def write_table(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Write rows as CSV, atomically, with the columns of all of them; None and NaN are left blank and 'nan', the items
    of a list are joined by "; "."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)  # of a run begun by an older version, rows have fewer
    table = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(
        {name: "; ".join(value) if isinstance(value, list) else value for name, value in row.items()} for row in rows
    )
    write_atomically(path, text.getvalue().encode())


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs; if another process has it, print ``waiting`` and wait.

    The system gives the lock back however a process ends. Raises OSError if it cannot be had.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would stay behind when its process is killed
    try:
        lock.acquire(timeout=HANDOVER)
    except Timeout:
        print(waiting, file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(folder: Path, *others: Path) -> Iterator[None]:
    """Have ``folder``, which is made, for this process alone while the body runs, by a lock on its file .lock.

    The system gives the lock back however the process ends. What a killed process left of a file under way, here and in
    ``others``, is removed before and after. Raises `UserError` if another process has the folder or if it cannot be
    made. Where the file system knows no locks, a warning says so.
    """
    path = folder / ".lock"
    lock = FileLock(path, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=HANDOVER)
    except Timeout as error:
        raise UserError(f"{folder}: another process is writing there; wait for its end, or end it") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
        reason = f"cannot be locked ({error.strerror}); start nothing else that writes there"
        print(f"warning: {folder}: {reason}", file=sys.stderr)
    try:
        _remove_unfinished(folder, *others)
        yield
    finally:
        _remove_unfinished(folder, *others)
        with suppress(OSError):  # Windows removes no file that is open; there the lock does it
            path.unlink()
        lock.release()


def _remove_unfinished(*folders: Path) -> None:
    for path in (path for folder in folders for path in folder.glob(".*.tmp")):
        # Named as `write_atomically` names them: a folder may hold temporary files of others.
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name, re.DOTALL) and path.is_file():
            path.unlink(missing_ok=True)


def keep_settings(
    folder: Path, settings: dict, overwrite: bool, outputs: Iterable[Path] = (), exclusive: bool = False
) -> None:
    """`keep_all_settings` of one folder."""
    keep_all_settings({folder: list(outputs)}, settings, overwrite, [folder] if exclusive else [])


def keep_all_settings(
    outputs: Mapping[Path, Sequence[Path]], settings: dict, overwrite: bool, exclusive: Collection[Path]
) -> None:
    """Remember in settings.json of each folder what its files were made with, so that no folder mixes two settings.

    outputs: for each folder the files that are about to be made. With ``overwrite`` those that are there are removed
    first: after an interrupted run, none made with the former settings is left to pass for one made with the new.
    exclusive: the folders where a file with the suffix of the outputs is taken for one of them by whoever finds it.

    Raises `UserError`, unless ``overwrite``, if a folder was made with other settings, or holds some of its outputs
    without a record of their settings; with it, if files of other settings would stay beside the outputs of an
    ``exclusive`` folder. Then nothing is removed from any folder.
    """
    for folder, files in outputs.items():
        _check_settings(folder, settings, overwrite, files, folder in exclusive)
    for folder, files in outputs.items():
        if overwrite:
            remove(path for path in files if os.path.exists(path))
        write_json(folder / "settings.json", settings)


def _check_settings(folder: Path, settings: dict, overwrite: bool, outputs: Sequence[Path], exclusive: bool) -> None:
    record = folder / "settings.json"
    remedy = "choose another folder, or add --overwrite"
    before = None
    if os.path.isfile(record):
        try:
            before = read_json(record, f"{remedy} to make the folder again")
        except UserError:
            if not overwrite:
                raise
    if overwrite:
        others = _others(folder, outputs) if exclusive and not _same(before, settings) else []
        if others:
            raise UserError(
                f"{folder}: {len(others)} files there are not of these images, and would be taken for files of "
                f"{_shown(settings)}, as which nothing says they were made: {listed(others)}; move or remove them, or "
                "choose another folder"
            )
    elif os.path.isfile(record):
        if not _same(before, settings):
            was, now = _shown(before), _shown(settings)
            changed = ", whose checkpoint has changed since" if was == now else ""
            raise UserError(
                f"{folder} was made with {was}, now asked for {now}{changed}: {remedy} to make all its files again"
            )
    # Not Path.exists, which raises where a folder may not be looked into; writing to it will say so.
    elif present := [path.name for path in outputs if os.path.exists(path)]:
        raise UserError(
            f"{folder} holds {listed(present)} and no {record.name} that says how they were made: {remedy} to replace "
            "them"
        )


def _same(before: object, now: dict) -> bool:
    """Whether files of both settings are the same: a checkpoint may lie elsewhere since, its digest tells."""
    named = {"checkpoint"} if "checkpoint_sha256" in now else set()
    return isinstance(before, dict) and all(
        before.get(name) == now.get(name) for name in (before.keys() | now.keys()) - named
    )


def _shown(settings: object) -> object:
    """Settings for a message: digests, of what is named beside them, say nothing to a reader."""
    if not isinstance(settings, dict):
        return settings
    return {name: value for name, value in settings.items() if not name.endswith("_sha256")}


def _others(folder: Path, outputs: Iterable[Path]) -> list[str]:
    """The files of ``folder`` that have the suffix of ``outputs``, which go there, and are none of them."""
    expected = {path.name for path in outputs}
    suffixes = {Path(name).suffix for name in expected}
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.suffix in suffixes and p.name not in expected)


def remove(outputs: Iterable[Path]) -> None:
    """Remove those of the files ``outputs`` that are there. Raises `UserError` if one cannot be removed."""
    try:
        for path in outputs:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be replaced ({error.strerror})") from error


def name_others(folder: Path, outputs: Iterable[Path]) -> None:
    """Say on stdout which files of ``folder`` have the suffix of ``outputs``, which go there, and are none of them."""
    others = _others(folder, outputs)
    if others:
        print(f"note: {folder}: {len(others)} files of other images stay there: {listed(others)}")
