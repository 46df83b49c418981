"""What lies in a folder of data: nothing that looks like data is left out, and which masks belong to one image."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from dataloaders.unread import absent, missing_folder
from utils.commands.errors import UserError, check_plain, listed

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".npy"}
HDF5_SUFFIXES = {".h5", ".hdf5", ".hdf", ".he5"}
MEDICAL_SUFFIXES = {".dcm", ".dicom", ".nii", ".gz"}  # .gz: .nii.gz
# Of images too, but not read: to leave them out would be to lose data.
OTHER_SUFFIXES = {
    *(".gif", ".webp", ".jp2", ".j2k", ".jpx", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".dib", ".tga", ".exr"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".svs", ".ndpi", ".mha", ".mhd", ".nrrd", ".npz"),
    *MEDICAL_SUFFIXES,
}
NOT_DATA = {"settings.json", "Thumbs.db", "desktop.ini"}  # written by our scripts or by file managers
_NOT_DATA_FOLDERS = {"__MACOSX", "@eaDir"}  # by file managers and network drives


class Listing(NamedTuple):
    """The entries of a folder, without hidden ones."""

    data: list[Path]  # whatever has a suffix of data, whether it can be read or not
    folders: dict[str, int]  # subfolders with data in them, and how many files of it
    others: list[str]  # names of all else


def list_folder(folder: Path, suffixes: Collection[str], apart_from: Iterable[Path] = ()) -> Listing:
    """The entries of ``folder`` in the order of their names, by kind. suffixes: those that are read there. apart_from:
    subfolders that are none of the data.

    Data are all files with a suffix of images or HDF5, be it of another kind; what is kept elsewhere too, and only its
    pointer is here (DVC, iCloud), by the name that it would have. Raises `UserError` if there is no such folder.
    """
    if not folder.is_dir():
        raise missing_folder(folder)
    data, folders, others = [], {}, []
    known = {path.resolve() for path in apart_from}
    for path in _paths(folder):
        if path.suffix.lower() in suffixes or _is_of_data(path.name):
            data.append(path)
        elif path.is_dir() and path.resolve() not in known and (count := _count(path)):
            folders[path.name] = count
        else:
            others.append(path.name)
    return Listing(data, folders, others)


def _is_of_data(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES | HDF5_SUFFIXES | OTHER_SUFFIXES and (suffix != ".gz" or name[:-3].endswith(".nii"))


def _paths(folder: Path) -> Iterator[Path]:
    """The entries of ``folder`` that are not hidden, and those of which only a pointer is here."""
    paths = set(folder.iterdir())
    names = {path.name for path in paths}
    pointed = {name.removesuffix(".dvc") for name in names if name.endswith(".dvc")}
    pointed |= {name[1:].removesuffix(".icloud") for name in names if name.startswith(".") and name.endswith(".icloud")}
    paths |= {folder / name for name in pointed if name not in names and _is_of_data(name)}
    return iter(sorted(path for path in paths if not path.name.startswith(".") and path.name not in NOT_DATA))


def _count(folder: Path) -> int:
    """How many files of data are in a subfolder, at any depth; none in those that this project's scripts made."""
    if folder.name in _NOT_DATA_FOLDERS or (folder / "settings.json").is_file():
        return 0
    count = 0
    for _, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".") and name not in _NOT_DATA_FOLDERS]
        count += sum(not name.startswith(".") and _is_of_data(name) for name in names)
    return count


def in_subfolders(folder: Path, folders: Mapping[str, int]) -> str:
    """What is wrong with data in subfolders (name -> number of files), and what to do."""
    found = listed(f"{name}: {count}" for name, count in folders.items())
    return (
        f"{sum(folders.values())} files of data in {len(folders)} subfolders ({found}), where none is read; move them "
        f"up, or bring them into one folder with `python scripts/prepare_data.py --images_root {quote(str(folder))} "
        "--save_root data/NAME`, which has --masks_root for masks in a folder of their own"
    )


def by_stem(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Stem -> path, in the order of the stems. Raises `UserError` if two files share one, or if a name is not plain
    (`utils.commands.errors.is_plain`)."""
    found: dict[str, Path] = {}
    for path in paths:
        check_plain(path)
        if path.stem in found:
            raise UserError(f"{folder}: {same_stem(found[path.stem], path)}")
        found[path.stem] = path
    return dict(sorted(found.items()))


def same_stem(first: Path, second: Path) -> str:
    """What is wrong with two files of one stem, and what to do."""
    return (
        f"{first.name} and {second.name} have the same stem, by which files are paired; rename one if they are of two "
        "images, remove one if it is a copy, merge them if they are masks of one image (scripts/prepare_data.py does)"
    )


def unread_kind(path: Path, suffixes: Collection[str]) -> str | None:
    """Why the file of data ``path`` is not read by its kind or for want of it; None if reading it is to be tried."""
    if gone := absent(path):
        return gone
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():
        return f"{'a folder' if path.is_dir() else 'a pipe or device'}, not a file; rename it, or move it elsewhere"
    if suffix in suffixes:
        return None
    if suffix in MEDICAL_SUFFIXES:
        return f"{path.suffix} is not read here; scripts/prepare_data.py reads DICOM and NIfTI"
    convert = "store it as PNG" if ".png" in suffixes else "move it elsewhere"
    return f"{path.suffix} is not read here, only {', '.join(sorted(suffixes))}; {convert}"


def check_readable(folder: Path, paths: Collection[Path], suffixes: Collection[str]) -> None:
    """Raise `UserError` if files of data in ``folder`` are not there or of no kind that is read: the first with the
    reason, all by name and number. Before that, for a name that is not plain, which no message could repeat."""
    for path in paths:
        check_plain(path)
    reasons = {path: reason for path in paths if (reason := unread_kind(path, suffixes))}
    if reasons:
        first = next(iter(reasons))
        raise UserError(
            f"{first}: {reasons[first]} ({len(reasons)} of {len(paths)} files of {folder} cannot be read: "
            f"{listed(path.name for path in reasons)})"
        )


def several_of_one(images: Collection[str], partners: Collection[str]) -> dict[str, list[str]]:
    """The stems of ``images`` that several stems of ``partners`` belong to by their names, with those: x, x_mask and
    x_mask_1 to x, x_left and x_right to x."""
    known = set(images)
    groups: dict[str, list[str]] = {}
    for partner in partners:
        owner = partner if partner in known else _owner(partner, known)
        if owner is not None:
            groups.setdefault(owner, []).append(partner)
    return {owner: group for owner, group in groups.items() if len(group) > 1}


def _owner(partner: str, known: set[str]) -> str | None:
    """The longest of ``known`` that ``partner`` begins or ends with, up to a sign that is no letter and no digit."""
    signs = [index for index, letter in enumerate(partner) if not letter.isalnum()]
    cut = [partner[:index] for index in signs] + [partner[: index + 1] for index in signs]
    cut += [partner[index + 1 :] for index in signs]
    return max((text for text in cut if text in known), key=len, default=None)


def merge_remedy(images: Path, masks: Path) -> str:
    """How several masks of one image become one."""
    return (
        "if they are, merge them, pixel by pixel the maximum, as `python scripts/prepare_data.py --images_root "
        f"{quote(str(images))} --masks_root {quote(str(masks))} --save_root data/NAME` does; to remove one would lose "
        "what it shows"
    )
