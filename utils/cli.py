"""What every command shares: errors that a user can mend, whole-file writes, work spread over processes.

Nothing here imports torch, so that the preprocessing scripts start at once.
"""

import csv
import fcntl
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm


class UserError(Exception):
    """A problem that the user can mend: its message names the file or flag, what was found and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a `UserError` becomes one line on stderr and exit code 2, Ctrl-C exit code 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by the user; nothing is half-written", file=sys.stderr)
        sys.exit(130)


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first ``most`` names, joined, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


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


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write ``value`` as indented JSON, atomically (`write_atomically`)."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def write_table(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Write rows of one kind, at least one, as CSV, atomically; None and NaN are left blank and 'nan'."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file ``path`` while the body runs; if another process has it, print ``waiting`` and wait.

    The system gives the lock back however a process ends. Its file stays. Raises OSError if it cannot be made.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep_settings(folder: Path, settings: dict, overwrite: bool, outputs: Iterable[Path] = ()) -> None:
    """Remember in ``folder``/settings.json what its files were made with, so that no folder mixes two settings.

    outputs: the files that are about to be made. With ``overwrite`` those that are there are removed first: after an
    interrupted run, none made with the former settings is left to pass for one made with the new.
    Raises `UserError`, unless ``overwrite``, if the folder was made with other settings, or holds some of ``outputs``
    without a record of their settings.
    """
    record = folder / "settings.json"
    # Not Path.exists, which raises where a folder may not be looked into; writing to it will say so.
    present = [path for path in outputs if os.path.exists(path)]
    if overwrite:
        try:
            for path in present:
                path.unlink()
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be replaced ({error.strerror})") from error
    elif os.path.isfile(record):
        try:
            before = json.loads(record.read_text())
        except ValueError as error:
            raise UserError(f"{record}: not valid JSON; add --overwrite to make the folder again") from error
        if before != settings:
            raise UserError(
                f"{folder} was made with {before}, now asked for {settings}: "
                "choose another --save_root, or add --overwrite to make all its files again"
            )
    elif present:
        raise UserError(
            f"{folder} holds {listed(path.name for path in present)} and no {record.name} that says how they were "
            "made: choose another --save_root, or add --overwrite to replace them"
        )
    write_json(record, settings)


def run_jobs(job: Callable, items: list, workers: int, label: str) -> tuple[list, list[str]]:
    """Call ``job(item)`` for every item over ``workers`` processes, with a progress bar.

    Returns (results in the order of ``items``, messages of the items that raised `UserError`, in that order);
    a failed item's result is None. Any other exception is a defect and is raised. Raises `UserError` if a process was
    killed.
    """
    results: list = [None] * len(items)
    failures: dict[int, str] = {}

    def collect(index: int, outcome: Callable) -> None:
        try:
            results[index] = outcome()
        except UserError as error:
            failures[index] = str(error)

    with tqdm(total=len(items), desc=label, unit="file") as bar:
        if workers <= 1:
            for index, item in enumerate(items):
                collect(index, lambda item=item: job(item))
                bar.update()
        else:
            # Ctrl-C reaches every process of the terminal; only the parent answers it, by dropping the jobs not begun.
            ignore_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
            with ProcessPoolExecutor(workers, initializer=ignore_interrupt) as pool:
                try:
                    futures = {pool.submit(job, item): index for index, item in enumerate(items)}
                    for future in as_completed(futures):
                        collect(futures[future], future.result)
                        bar.update()
                except BrokenProcessPool as error:
                    raise UserError("a process was killed, mostly for want of memory: use fewer --workers") from error
                finally:
                    pool.shutdown(cancel_futures=True)
    return results, [failures[index] for index in sorted(failures)]
