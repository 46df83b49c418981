"""What every command shares: errors that a user can mend, whole-file writes, work spread over processes.

Nothing here imports torch, so that the preprocessing scripts start at once.
"""

import csv
import ctypes
import errno
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import IO, Any, NoReturn

from tqdm import tqdm


class UserError(Exception):
    """A problem that the user can mend: its message names the file or flag, what was found and what to do."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in what PyTorch says, of a GPU and of the CPU
# What print raises on a full disk, and where the reader of a pipe (`... | head`) or the terminal has gone.
_NOWHERE_TO_PRINT = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EPIPE, errno.EIO)
_PARENT = "GSD_NET_PARENT"  # environment variable: the process that this one is to end with


def run_main(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a `UserError` becomes one line on stderr and exit code 2.

    So does memory that runs out. Ctrl-C (SIGINT) and SIGTERM end it with one line, exit code 130 and 143, and no file
    half-written.
    """
    previous = signal.signal(signal.SIGTERM, _terminate)
    if sys.stderr is None:  # closed by `2>&-`; progress bars need one
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    _end_with_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show must not end the command
    try:
        main()
        if sys.stdout is not None:  # of several processes one prints, the others have none
            sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except PermissionError as error:  # of a folder or file anywhere below those that were named
        reason = f"not permitted ({error.strerror}); check who may read and write it"
        _refuse(f"{error.filename}: {reason}")
    except OSError as error:
        if error.errno not in _NOWHERE_TO_PRINT or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries it once more at its end, and complains
        _refuse(f"standard output or standard error: cannot be written ({error.strerror})")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        reason = (str(error).splitlines() or ["nothing left"])[0][:200]
        _refuse(f"out of memory ({reason}); try a smaller --batch_size or --image_size")
    except KeyboardInterrupt as stop:
        # torchrun sends a second signal after the terminal's own; the end is near, and needs no traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        name, code = ("SIGTERM", 143) if isinstance(stop, _Terminated) else ("Ctrl-C (SIGINT)", 130)
        if os.environ.get("RANK", "0") == "0":  # of processes that torchrun started one speaks
            print(
                f"stopped by {name}: no file is half-written; the same command goes on, a training run with --resume",
                file=sys.stderr,
            )
        sys.exit(code)
    signal.signal(signal.SIGTERM, previous)


def _refuse(reason: str) -> NoReturn:
    with suppress(OSError):  # where nobody can be told, the exit code tells
        print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.exit(2)


def _terminate(*_: object) -> None:
    raise _Terminated


def warn(text: str) -> None:
    """Print ``text`` on stderr, above progress bars. A terminal that has gone does not end what runs unattended."""
    with suppress(OSError):
        tqdm.write(text, file=sys.stderr)


def run_child(command: Sequence[str]) -> int:
    """Run another command of this project (`run_main`), which gets SIGTERM when this process ends, however it does;
    returns its exit code."""
    with subprocess.Popen(command, env=os.environ | {_PARENT: str(os.getpid())}) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()  # which it takes its time for, unlike being killed
            process.wait()
            raise


def _end_with_parent() -> None:
    parent = os.environ.pop(_PARENT, None)  # not for the processes that this one starts
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if str(os.getppid()) != parent:
            sys.exit("the process that started this one has ended")


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first ``most`` names, joined, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def is_plain(name: str) -> bool:
    """Whether a name can be printed and written to tables: no control characters, and no bytes that are not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def check_plain(path: Path) -> None:
    """Raises `UserError` if the name of a file is not `is_plain`."""
    if not is_plain(path.name):
        coding = sys.getfilesystemencoding()
        remedy = "rename it" if coding == "utf-8" else f"set a UTF-8 locale (this one is {coding}), or rename it"
        raise UserError(f"{path.parent}: {path.name!a} has control characters or bytes that are not UTF-8; {remedy}")


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


def write_table(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Write rows as CSV, atomically, with the columns of all of them; None and NaN are left blank and 'nan'."""
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)  # of a run begun by an older version, rows have fewer
    table = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
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


@contextmanager
def claimed(folder: Path, *others: Path) -> Iterator[None]:
    """Have ``folder``, which is made, for this process alone while the body runs, by a lock on its file .lock.

    The system gives the lock back however the process ends. What a killed process left of a file under way, here and in
    ``others``, is removed before and after. Raises `UserError` if another process has the folder or if it cannot be
    made. Where the file system knows no locks, a warning says so.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked_file(path)
    except BlockingIOError as error:
        raise UserError(f"{folder}: another process is writing there; wait for its end, or end it") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        _remove_unfinished(folder, *others)
        try:
            yield
        finally:
            _remove_unfinished(folder, *others)
            path.unlink(missing_ok=True)


def _locked_file(path: Path) -> IO[str]:
    """``path``, opened and locked. Raises BlockingIOError if another process has the lock."""
    while True:
        lock = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise
        except OSError as error:
            reason = f"cannot be locked ({error.strerror}); start nothing else that writes there"
            print(f"warning: {path.parent}: {reason}", file=sys.stderr)
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        lock.close()  # its owner has removed it at its end, after it was opened here: a lock that nobody else sees


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
        others = _others(folder, outputs) if exclusive and before != settings else []
        if others:
            raise UserError(
                f"{folder}: {len(others)} files there are not of these images, and would be taken for files of "
                f"{settings}, as which nothing says they were made: {listed(others)}; move or remove them, or choose "
                "another folder"
            )
    elif os.path.isfile(record):
        if before != settings:
            raise UserError(
                f"{folder} was made with {before}, now asked for {settings}: {remedy} to make all its files again"
            )
    # Not Path.exists, which raises where a folder may not be looked into; writing to it will say so.
    elif present := [path.name for path in outputs if os.path.exists(path)]:
        raise UserError(
            f"{folder} holds {listed(present)} and no {record.name} that says how they were made: {remedy} to replace "
            "them"
        )


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


class Workers(ProcessPoolExecutor):
    """Processes that leave Ctrl-C to this one, drop the jobs not begun when it is interrupted, and end when it ends."""

    def __init__(self, count: int, context: BaseContext | None = None, setup: Callable[[], object] | None = None):
        """context: how processes are started, by default as the system does. setup: called in each of them first."""
        super().__init__(count, context, _begin_worker, (os.getpid(), setup))

    def submit(self, *job: object, **keywords: object) -> Future:
        """`Executor.submit`."""
        # A process that is being started has the mask of this one: Ctrl-C, which reaches every process of a terminal,
        # must not end it in the midst of its imports with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*job, **keywords)  # type: ignore[arg-type]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def _begin_worker(parent: int, setup: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # Else it would wait for jobs for ever, and hold the locks of a parent that was killed.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit("the process that started this one has ended")
    if setup:
        setup()


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
            with ExitStack() as stack:
                try:
                    pool = stack.enter_context(Workers(workers))
                    futures = {pool.submit(job, item): index for index, item in enumerate(items)}
                except OSError as error:
                    raise UserError(
                        f"processes cannot be started ({error.strerror}); is /dev/shm there, and not full? --workers 1 "
                        "does without, where there is that flag"
                    ) from error
                try:
                    for future in as_completed(futures):
                        collect(futures[future], future.result)
                        bar.update()
                except BrokenProcessPool as error:
                    raise UserError("a process was killed, mostly for want of memory: use fewer --workers") from error
    return results, [failures[index] for index in sorted(failures)]
