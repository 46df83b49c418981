"""Why a file cannot be read, and what to do about it: a file that is fine is never called damaged."""

import errno
import os
from pathlib import Path
from shlex import quote

from utils.commands.errors import UserError

# What other formats begin with, at which byte; a file of one of them is fine, but not read here.
_BEGINNINGS = (
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif", "a HEIC image"),
    (4, b"ftypavi", "an AVIF image"),
    (4, b"jP  ", "a JPEG 2000 image"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"%PDF", "a PDF document"),
    (0, b"<!DOCTYPE", "a web page, mostly a failed download"),
    (0, b"<html", "a web page, mostly a failed download"),
)
_POINTERS = (
    (b"version https://git-lfs.github.com/spec", "only its Git LFS pointer is here; `git lfs pull` fetches the file"),
    (b"/annex/objects/", "only its git-annex pointer is here; `git annex get` fetches the file"),
)


def absent(path: Path) -> str | None:
    """Why there is nothing at ``path``, and what to do; None if there is something, of whatever kind."""
    try:
        os.stat(path)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None  # there, but out of reach
    if os.path.islink(path):
        return (
            f"a link to {_target(path)}, where nothing is; fetch that (git annex get, dvc checkout), or link to where "
            "it is now"
        )
    pointer = path.with_name(f"{path.name}.dvc")
    if pointer.is_file():
        return f"only its DVC pointer {pointer.name} is here; `dvc pull` fetches it"
    if path.with_name(f".{path.name}.icloud").is_file():
        return "not downloaded from iCloud; download it first"
    return "no such file or folder"


def _target(link: Path) -> str:
    """Where a link ends, as it is written; of links to links the last."""
    for _ in range(40):
        target = Path(os.readlink(link))
        following = link.parent / target
        if not following.is_symlink():
            return str(target)
        link = following
    return f"{target} and round in a circle"


def missing_folder(folder: Path, remedy: str = "") -> UserError:
    """What to raise where ``folder`` is no folder. remedy: what else would help."""
    reason = absent(folder) or "a file, not a folder"
    return UserError(f"{folder}: {reason.replace('no such file or folder', 'no such folder')}{remedy}")


def unreadable(
    path: Path, error: Exception | str, kind: str = "image", remedy: str = "replace or remove it"
) -> UserError:
    """What to raise where reading ``path`` as ``kind`` has failed with ``error``; the remedy is for damaged files."""
    return UserError(f"{path}: {_reason(path, error, kind, remedy)}")


def _reason(path: Path, error: Exception | str, kind: str, remedy: str) -> str:
    if isinstance(error, MemoryError):
        raise error  # nothing is wrong with the file
    if gone := absent(path):
        return gone
    if os.path.isdir(path):
        return f"a folder, not a readable {kind}; rename it, or move it elsewhere"
    if isinstance(error, PermissionError):
        return f"no permission to read it; `chmod u+r {quote(str(path))}` gives it to its owner"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or error}); is its disk or network drive there?"
    try:
        with open(path, "rb") as file:
            start = file.read(160)
    except OSError as other:
        return _reason(path, other, kind, remedy)
    if not start:
        return f"an empty file, not a readable {kind}; {remedy}"
    for beginning, text in _POINTERS:
        if start.startswith(beginning):
            return text
    for position, beginning, other_kind in _BEGINNINGS:
        if (
            start[position : position + len(beginning)].lower() == beginning.lower()
            and other_kind.split(maxsplit=1)[1] not in kind
        ):
            return f"{other_kind}, not a readable {kind}; {_conversion(other_kind)}"
    return f"not a readable {kind} ({error}); {remedy}"


def _conversion(kind: str) -> str:
    if kind == "a DICOM file":
        return "scripts/prepare_data.py reads DICOM"
    if kind == "a ZIP archive":
        return "unpack it; of an .npz file store the one array that is meant as .npy"
    return "store it as PNG" if kind.endswith("image") else "replace it by the file that was meant"
