"""MMIS-2024: MR in three modalities with the masks of several raters, one HDF5 file per training slice or volume."""

import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import h5py
import numpy as np
import torch

from dataloaders.listing import HDF5_SUFFIXES, by_stem, check_readable, list_folder
from dataloaders.mmis_axes import check_axes, volumes_in_words
from dataloaders.pixels import to_bytes
from dataloaders.raters import choose_raters, label_classes
from dataloaders.slic import folder_of
from dataloaders.training_set import Sample, TrainingSource
from dataloaders.unread import absent, unreadable
from utils.commands.errors import UserError, listed
from utils.commands.files import read_json
from utils.commands.jobs import in_threads
from utils.masks.geometry import resize_image
from utils.method.gsd import TestCase

MODALITIES = ("t1", "t1c", "t2")
MOST_VALUES = 2**26  # of one key: 1024 slices of 256 x 256
SELECTION = "data_npc_select_one.json"


class Case(NamedTuple):
    """One file as read."""

    image: np.ndarray  # (S,H,W,3) uint8, 0..255, the modalities as channels
    labels: np.ndarray  # (R,S,H,W) uint8 classes, one of each rater


# --- Files ------------------------------------------------------------------------------------------------------------


def list_slices(folder: Path) -> dict[str, Path]:
    """The HDF5 files of ``folder`` as stem -> path, in the order of their stems; other files are named on stderr.

    Raises `UserError` if the folder is missing or holds no HDF5 file, if files of data are in its subfolders, are not
    there or of another kind, if two share a stem, or if a name is not plain (`utils.commands.errors.is_plain`).
    """
    data, below, others = list_folder(folder, HDF5_SUFFIXES)
    if below:
        raise UserError(
            f"{folder}: {sum(below.values())} files of data in {len(below)} subfolders "
            f"({listed(f'{name}: {count}' for name, count in below.items())}), where none is read; move them up"
        )
    if not any(path.suffix.lower() in HDF5_SUFFIXES for path in data):
        there = listed([*(path.name for path in data), *others]) or "nothing"
        raise UserError(f"{folder}: no HDF5 file ({', '.join(sorted(HDF5_SUFFIXES))}) in it, but {there}")
    check_readable(folder, data, HDF5_SUFFIXES)
    if others:
        print(f"note: {folder}: not HDF5 files, left out: {listed(others)}", file=sys.stderr)
    return by_stem(folder, data)


def read_case(path: Path, num_raters: int, num_classes: int) -> Case:
    """The modalities and labels of a file, which is open only while it is read; (H,W) is taken as one slice.

    Each modality of each slice is scaled by itself to 0..255 (`to_bytes`). Labels hold 0..num_classes-1; with two
    classes 0/255 is read as 0/1.
    Raises `UserError` naming file and key for a file that is no HDF5 or damaged, for a modality or rater that is
    missing, of another shape than the rest, empty, neither (H,W) nor (slices,H,W), or no numbers, and for NaN,
    infinite values and labels out of range.
    """
    with _open(path) as file:
        shape = _check_header(file, path, num_raters)
        planes = [file[key][()].reshape(shape) for key in MODALITIES]
        values = [file[key][()].reshape(shape) for key in _rater_keys(num_raters)]
    for key, plane in zip(MODALITIES, planes, strict=True):
        bad = plane.size - np.count_nonzero(np.isfinite(plane))
        if bad:
            raise UserError(f"{path}: {key}: {bad} of {plane.size} values are NaN or infinite; mend or remove the file")
    labels = [
        label_classes(value, num_classes, f"{path}: {key}")
        for key, value in zip(_rater_keys(num_raters), values, strict=True)
    ]
    image = np.stack([np.stack([to_bytes(plane) for plane in volume]) for volume in planes], axis=-1)
    return Case(image, np.stack(labels))


def read_slice(path: Path, num_raters: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The single slice of a training file: uint8 (H,W,3) and the raters' labels (R,H,W).

    Raises `UserError` as `read_case`, and if the file holds several slices.
    """
    image, labels = read_case(path, num_raters, num_classes)
    if len(image) != 1:
        count, height, width, _ = image.shape
        last = "; if the slice is (H,W,1), store it as (H,W): array[..., 0]" if width == 1 else ""
        raise UserError(
            f"{path}: shape {(count, height, width)}, {count} slices of {height}x{width}; expected one slice (H,W), "
            f"for training is by single slices{last}"
        )
    return image[0], labels[:, 0]


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    name = os.fspath(path)
    try:
        with h5py.File(name, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # HDF5 reports damage, within the file or at its end, by nearly any
        if busy := _why_busy(path, str(error)):
            raise UserError(f"{path}: {busy}") from error
        raise unreadable(path, error, "HDF5 file") from error


def _why_busy(path: Path, error: str) -> str | None:
    """What to do about a file that HDF5 does not open for fear of another program; None if it is another error."""
    if "already open for" in error or ("unable to lock file" in error and "errno = 11" in error):
        return (
            "another program has it open for writing; close it there. If that program has crashed, "
            f"`h5clear -s {quote(str(path))}` takes its mark away"
        )
    if "unable to lock file" in error:
        return "its file system knows no locks; set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
    return None


def _rater_keys(num_raters: int) -> list[str]:
    return [f"label_a{rater}" for rater in range(1, num_raters + 1)]


def _check_header(file: h5py.File, path: Path, num_raters: int) -> tuple[int, int, int]:
    """The shape (S,H,W) that all keys of the file share; no pixel is read. Raises `UserError` as `read_case`."""
    raters = _rater_keys(num_raters)
    there = listed(file, most=12) or "nothing"
    lacking = [key for key in (*MODALITIES, *raters) if key not in file]
    if lacking:
        hint = "" if set(lacking) <= set(MODALITIES) else f", for --raters {num_raters}"
        raise UserError(f"{path}: no {listed(lacking)} in it{hint}; it holds {there}")
    surplus = [key for key in file if re.fullmatch(r"label_a\d+", key) and key not in raters]
    if surplus:
        raise UserError(f"{path}: {listed(surplus)} in it, beyond --raters {num_raters}; give the number of raters")
    shape: tuple[int, ...] = ()
    for key in (*MODALITIES, *raters):
        if not isinstance(file.get(key, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: {key} is a link; expected an array (H,W) or (slices,H,W)")
        item = file[key]
        if not isinstance(item, h5py.Dataset):
            raise UserError(f"{path}: {key} is a group; expected an array (H,W) or (slices,H,W)")
        if item.external or item.is_virtual:
            raise UserError(f"{path}: {key} lies in other files; store it in this one")
        if item.size is not None and item.size > MOST_VALUES:
            raise UserError(
                f"{path}: {key} is of shape {item.shape}, more than the {MOST_VALUES} values that are read; cut "
                "it into volumes of fewer slices"
            )
        kinds = "uif" if key in MODALITIES else "buif"
        if item.dtype.kind not in kinds:
            raise UserError(f"{path}: {key} is of type {item.dtype}; expected numbers")
        if not shape:
            shape = item.shape
            if shape is None or len(shape) not in (2, 3):
                raise UserError(f"{path}: {key} is of shape {shape}; expected (H,W) or (slices,H,W)")
            if 0 in shape:
                raise UserError(f"{path}: {key} is of shape {shape}: no slice or no pixel in it; remove the file")
        elif item.shape != shape:
            raise UserError(f"{path}: {key} is of shape {item.shape}, {MODALITIES[0]} of {shape}; they must be equal")
    slices, height, width = (1, *shape)[-3:]
    return slices, height, width


# --- Cases ------------------------------------------------------------------------------------------------------------


def case_of(stem: str) -> str:
    """The case that a training slice belongs to: its stem up to the last "_", all of it where there is none."""
    return stem.rpartition("_")[0] or stem


def shared_cases(slices: Iterable[str], volumes: Iterable[str]) -> list[str]:
    """The stems of volumes that are also the case of a training slice, sorted: scores on them would be too good."""
    return sorted({case_of(stem) for stem in slices} & set(volumes))


def warn_of_leakage(slices: Iterable[str], test: "MMISCases") -> None:
    """Name on stderr the test volumes that are also the case of a training slice (`shared_cases`)."""
    shared = shared_cases(slices, (path.stem for path in test.paths))
    if shared:
        print(
            f"warning: {test.paths[0].parent}: training slices of {len(shared)} of {len(test)} test volumes, so test "
            f"scores will be too good: {listed(shared)}; remove them on one side",
            file=sys.stderr,
        )


# --- Raters -----------------------------------------------------------------------------------------------------------


def select_raters(root: Path, stems: Collection[str], num_raters: int, policy: str | None, seed: int) -> dict[str, int]:
    """The rater each training slice is labelled by: stem -> index from 0, in the order of ``stems``.

    policy None: as ``root``/data_npc_select_one.json says, or drawn from ``seed`` where that file is absent. Any other
    (`choose_raters`) overrides the file. A line on stdout says which it was.
    The file maps file names, with or without .h5, to "label_a3", "a3", "3" or 3, counted from 1. Entries for other
    slices are named on stderr. Raises `UserError` if it is no such file, lacks a slice or has a rater out of range.
    """
    path = root / SELECTION
    if policy is None and os.path.lexists(path):
        if gone := absent(path):  # no reason to choose at random
            raise UserError(f"{path}: {gone}; or override it by --rater_policy")
        chosen = _read_selection(path, num_raters)
        lacking = [stem for stem in stems if stem not in chosen]
        if lacking:
            raise UserError(
                f"{path}: no rater for {len(lacking)} of {len(stems)} training slices: {listed(lacking)}; "
                "add them, or override the file with --rater_policy"
            )
        strangers = sorted(chosen.keys() - set(stems))
        if strangers:
            print(f"note: {path}: {len(strangers)} entries for absent files: {listed(strangers)}", file=sys.stderr)
        print(f"raters as in {path}")
        return {stem: chosen[stem] for stem in stems}
    if policy is None:
        policy = "random"
        print(f"no {path}: raters are drawn at random with --seed {seed}")
    elif path.exists():
        print(f"--rater_policy {policy} overrides {path}")
    return dict(zip(stems, choose_raters(len(stems), policy, num_raters, seed), strict=True))


def selection_json(raters: Mapping[str, int]) -> dict[str, str]:
    """The choice of `select_raters` in the format of data_npc_select_one.json, to be written with a run."""
    return {f"{stem}.h5": f"label_a{rater + 1}" for stem, rater in raters.items()}


def _read_selection(path: Path, num_raters: int) -> dict[str, int]:
    # Pairs rather than a dict, which would keep the last of two equal names without a word.
    pairs = read_json(path, "mend it, or give --rater_policy", object_pairs_hook=tuple)
    if not isinstance(pairs, tuple):
        raise UserError(f'{path}: expected an object that maps file names to raters, such as {{"a.h5": "label_a1"}}')
    chosen: dict[str, int] = {}
    for name, value in pairs:
        match = re.fullmatch(r"(?:(?:label_)?a)?([0-9]{1,3})", str(value))
        if not match or not 1 <= int(match[1]) <= num_raters:
            raise UserError(
                f"{path}: {name}: rater {value!r}; expected label_a1 to label_a{num_raters} or 1 to {num_raters}, "
                "counted from 1 (--raters)"
            )
        stem = name.removesuffix(Path(name).suffix) if Path(name).suffix.lower() in HDF5_SUFFIXES else name
        if stem in chosen:
            raise UserError(f"{path}: {name} is named twice; keep one entry")
        chosen[stem] = int(match[1]) - 1
    return chosen


# --- Training, validation and test data -------------------------------------------------------------------------------


def training_source(
    slices: Mapping[str, Path],
    raters: Mapping[str, int],
    maps: Mapping[str, Path] | None,
    num_raters: int,
    num_classes: int,
    image_size: int,
) -> TrainingSource:
    """The slices (stem -> path), each with the label of its rater (stem -> index from 0) and its superpixel map, given
    by stem, to be brought to image_size x image_size. maps: None where no superpixels vote.

    Raises `UserError` when read, as `read_slice`.
    """
    names = tuple(slices)

    def read(index: int) -> Sample:
        image, labels = read_slice(slices[names[index]], num_raters, num_classes)
        return Sample(image, labels[raters[names[index]]])

    settings = {
        "files": [str(path.resolve()) for path in slices.values()],
        "raters": [raters[name] for name in names],
        "segments": folder_of(maps),
        "num_raters": num_raters,
    }
    files = [*slices.values(), *(maps or {}).values()]
    return TrainingSource(names, read, maps, image_size, num_classes, files, settings)


def slic_sources(slices: Mapping[str, Path], num_raters: int, num_classes: int) -> dict[str, Callable[[], np.ndarray]]:
    """What superpixels are made of: each slice's stem and its three modalities as one picture, uint8 (H,W,3)."""
    return {stem: partial(_picture, path, num_raters, num_classes) for stem, path in slices.items()}


def _picture(path: Path, num_raters: int, num_classes: int) -> np.ndarray:
    return read_slice(path, num_raters, num_classes)[0]


def validation_cases(slices: Mapping[str, Path], num_raters: int, num_classes: int, image_size: int) -> list[TestCase]:
    """Training slices (stem -> path) that were held out, stacked to their cases in the order of their stems.

    Images at image_size x image_size, the masks of all raters at their own size; a case of several sizes comes in as
    many parts, named after them. Raises `UserError` as `read_slice`.
    """
    groups: dict[tuple[str, tuple[int, ...]], list] = {}
    pieces = in_threads(
        lambda stem: read_slice(slices[stem], num_raters, num_classes), list(slices), "reading validation set", "slice"
    )
    for stem, (image, labels) in zip(slices, pieces, strict=True):
        groups.setdefault((case_of(stem), labels.shape[1:]), []).append((resize_image(image, image_size), labels))
    names = [name for name, _ in groups]
    cases = []
    for (name, (height, width)), parts in groups.items():
        images, labels = zip(*parts, strict=True)
        full_name = name if names.count(name) == 1 else f"{name} {height}x{width}"
        cases.append(_as_case(full_name, np.stack(images), np.stack(labels, axis=1)))
    return cases


def slice_sizes(slices: Iterable[Path]) -> set[tuple[int, int]]:
    """The sizes (H,W) of training slices, from their headers; those that cannot be read are left to their reader."""
    sizes = set()
    for path in slices:
        with suppress(UserError), _open(path) as file:
            shape = getattr(file.get(MODALITIES[0]), "shape", None)
            if shape is not None and len(shape) in (2, 3):
                sizes.add(tuple(shape[-2:]))
    return sizes


class MMISCases(Sequence[TestCase]):
    """The volumes of a folder as test cases, each read when it is asked for and not kept.

    Images (S,3,image_size,image_size), the masks of all raters (R,S,H,W) at their own size. Every file's keys, shapes
    and types are checked at once, without reading a pixel, so that a wrong file is found before training; values are
    checked when a case is read. slices: those of training, whose size tells which axis of a volume is the slices'
    (`check_axes`). How many slices of which size there are is said on stdout, for where it does not.
    Raises `UserError` as `list_slices`, `check_axes` and `read_case`.
    """

    def __init__(
        self, folder: Path, num_raters: int, num_classes: int, image_size: int, slices: Iterable[Path] = ()
    ) -> None:
        self.paths = list(list_slices(folder).values())
        self.num_raters, self.num_classes, self.image_size = num_raters, num_classes, image_size
        sizes, shapes = slice_sizes(slices), []
        for path in self.paths:
            with _open(path) as file:
                shapes.append(_check_header(file, path, num_raters))
                check_axes(path, file[MODALITIES[0]].shape, sizes)
        print(f"{folder}: {len(self.paths)} volumes: {volumes_in_words(shapes)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> TestCase:  # type: ignore[override]  # no slices: each case is read by itself
        path = self.paths[index]
        image, labels = read_case(path, self.num_raters, self.num_classes)
        return _as_case(path.stem, np.stack([resize_image(plane, self.image_size) for plane in image]), labels)


def _as_case(name: str, images: np.ndarray, labels: np.ndarray) -> TestCase:
    """images (S,size,size,3), labels (R,S,H,W)."""
    return TestCase(name, torch.from_numpy(images).movedim(-1, 1), torch.from_numpy(labels))
