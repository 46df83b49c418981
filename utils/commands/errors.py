"""Errors that a user can mend, how a command ends, and what a message may name.

Nothing in this room imports torch, so that the preprocessing scripts start at once.
"""

import errno
import io
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm


class UserError(Exception):
    """A problem that the user can mend: its message names the file or flag, what was found and what to do."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # in what PyTorch says, of a GPU and of the CPU
# What print raises on a full disk, and where the reader of a pipe (`... | head`) or the terminal has gone.
_NOWHERE_TO_PRINT = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EPIPE, errno.EIO)
CHILD = "GSD_NET_CHILD"  # environment variable: the process that started this one holds its standard input open


def run_main(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a `UserError` becomes one line on stderr and exit code 2.

    So does memory that runs out. Of processes that train together only the main one prints more than errors.
    Ctrl-C (SIGINT) and SIGTERM end it with one line, exit code 130 and 143, and no file half-written. On Windows, where
    the program was never run, it ends at once with exit code 2.
    """
    if sys.platform == "win32":
        _refuse("Windows: this program runs on Linux and macOS; `wsl --install` gives Windows a Linux to run it in")
    previous = signal.signal(signal.SIGTERM, _terminate)
    if not is_main_process():
        sys.stdout = None  # print() then does nothing
    if sys.stderr is None:  # closed by `2>&-`; progress bars need one
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if os.environ.pop(CHILD, None):  # not for the processes that this one starts
        threading.Thread(target=_end_with_parent, daemon=True).start()
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
        if is_main_process():
            print(
                f"stopped by {name}: no file is half-written; the same command goes on, a training run with --resume",
                file=sys.stderr,
            )
        sys.exit(code)
    signal.signal(signal.SIGTERM, previous)


def is_main_process() -> bool:
    """Whether this process is the one that prints: alone, or the first of those that torchrun started."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


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


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent has ended, and the pipe with it
    os.kill(os.getpid(), signal.SIGTERM)


def listed(names: Iterable[object], most: int = 5) -> str:
    """The first ``most`` names, joined, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def counted(count: int, noun: str) -> str:
    """How many there are: 1 image, 2 images."""
    return f"{count} {noun}" + "s" * (count != 1)


def is_plain(name: str) -> bool:
    """Whether a name can be printed and written to tables: no control characters, and no bytes that are not UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def check_plain(path: Path) -> None:
    """Raises `UserError` if the name of a file is not `is_plain`."""
    if not is_plain(path.name):
        coding = sys.getfilesystemencoding()
        remedy = "rename it" if coding == "utf-8" else f"set a UTF-8 locale (this one is {coding}), or rename it"
        raise UserError(f"{path.parent}: {path.name!a} has control characters or bytes that are not UTF-8; {remedy}")
