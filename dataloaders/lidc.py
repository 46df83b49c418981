"""LIDC-IDRI: one slice of a nodule with the masks of several raters, all slices in one pickle."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dataloaders.raters import label_classes
from dataloaders.safe_pickle import read_object_array, read_pickle
from dataloaders.slic import folder_of
from dataloaders.training_set import Sample, TrainingSource
from utils.commands.errors import UserError, is_plain, listed
from utils.masks.geometry import resize_image
from utils.method.gsd import TestCase

PICKLE = "lidc_attributes.pkl"
SPLIT = ("train_idx.npy", "test_idx.npy")


class Slice(NamedTuple):
    """One slice as stored."""

    name: str
    patient: str
    image: np.ndarray  # (H,W,1) uint8, 0..255
    masks: np.ndarray  # (R,H,W) uint8 classes, one of each rater who marked the nodule


def read_slices(path: Path, num_raters: int, num_classes: int = 2) -> dict[str, Slice]:
    """Every slice of the pickle at ``path``, by name.

    The pickle is a dict: name -> {"image": (H,W) numbers 0..255, "masks": 1 to ``num_raters`` arrays (H,W) of classes,
    or one array of them, (R,H,W) or (H,W,R), perhaps "series_uid"}; other keys are left alone. Slices with fewer masks
    than others are left to `with_all_masks`. Images in [0, 1] throughout are scaled by 255, with a note.
    Raises `UserError` naming the slice for anything missing or of the wrong kind, and for a pickle that could run code.
    """
    entries = read_pickle(path)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path}: expected a dict of slices by name, found {kind_of(entries)}")
    for key in entries:
        slice_name(path, key)
    slices = {name: read_slice(f"{path}: {name}", name, entries[name], num_raters, num_classes) for name in entries}
    if max(float(piece.image.max()) for piece in slices.values()) <= 1:
        print(f"note: {path}: no image goes beyond 1; taken as [0, 1] and scaled to 0..255", file=sys.stderr)
        slices = {name: piece._replace(image=piece.image * 255) for name, piece in slices.items()}
    return {name: piece._replace(image=np.rint(piece.image).astype(np.uint8)) for name, piece in slices.items()}


def slice_name(path: Path | str, key: object) -> str:
    """``key``, a key of the pickle at ``path``, as the name of a slice. Raises `UserError` if it cannot be one."""
    if not isinstance(key, str) or key in ("", "..") or key != Path(key).name or not is_plain(key):
        raise UserError(f"{path}: {key!a}: a slice's name must be text that can name a file")
    return key


def read_slice(where: str, name: str, entry: object, num_raters: int, num_classes: int) -> Slice:
    """One entry of the pickle, as `read_slices` describes it. Raises `UserError`, beginning with ``where``, if it is
    not one."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected a dict of image and masks, found {kind_of(entry)}")
    lacking = [key for key in ("image", "masks") if key not in entry]
    if lacking:
        raise UserError(f"{where}: no {listed(lacking)} in it, only {listed(map(str, entry))}")
    image, masks = entry["image"], entry["masks"]
    if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype.kind not in "uif" or not image.size:
        raise UserError(f"{where}: the image is {kind_of(image)}, expected a (H,W) array of numbers")
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 255):  # so written that NaN fails too
        raise UserError(f"{where}: image values from {low:g} to {high:g}, expected 0..255")
    planes = mask_planes(masks, image.shape)
    if planes is None:
        raise UserError(f"{where}: the masks are {kind_of(masks)}, expected a list of arrays {image.shape}")
    if not planes:
        raise UserError(f"{where}: no mask in it; store an empty one where nobody marked anything")
    if len(planes) > num_raters:
        raise UserError(f"{where}: {len(planes)} masks, expected up to {num_raters}; give --raters {len(planes)}")
    labels = []
    for rater, mask in enumerate(planes, 1):
        if not isinstance(mask, np.ndarray) or mask.shape != image.shape:
            raise UserError(f"{where}: the mask of rater {rater} is {kind_of(mask)}, expected an array {image.shape}")
        labels.append(label_classes(mask, num_classes, f"{where}: the mask of rater {rater}"))
    patient = patient_of(name, entry.get("series_uid"))
    return Slice(name, patient, image[..., None], np.stack(labels))


def mask_planes(masks: object, shape: tuple[int, ...]) -> list | None:
    """The masks of an image of ``shape`` (H,W) one by one; None if they are no list and no array.

    An array may be a single mask, or several along its first axis; along its last, where the other two are those of the
    image and the last two are not.
    """
    if isinstance(masks, list | tuple):
        return list(masks)
    if not isinstance(masks, np.ndarray) or not masks.ndim:
        return None
    if masks.shape == shape:
        return [masks]
    if masks.ndim == 3 and masks.shape[:2] == shape and masks.shape[1:] != shape:
        return list(np.moveaxis(masks, -1, 0))
    return list(masks)


def with_all_masks(
    path: Path, parts: Sequence[Sequence[Slice]], num_raters: int, fewer: str | None
) -> list[list[Slice]]:
    """``parts``, the training and the test slices of the pickle at ``path``, each with ``num_raters`` masks.

    fewer: what becomes of slices with fewer: "empty" adds empty masks behind those that are there, "leave_out" leaves
    the slices out; a line on stdout says of how many. Raises `UserError`, with their number, if there are some and
    ``fewer`` is None, and if a part has no slice left.
    """
    numbers = Counter(len(piece.masks) for part in parts for piece in part)
    found = sum(count for number, count in numbers.items() if number < num_raters)
    if not found:
        return [list(part) for part in parts]
    names = [piece.name for part in parts for piece in part if len(piece.masks) < num_raters]
    if fewer is None:
        counts = ", ".join(f"{count} with {number}" for number, count in sorted(numbers.items()))
        remedy = "give --fewer_masks empty to add empty ones, --fewer_masks leave_out to leave those slices out"
        if max(numbers) < num_raters:
            remedy = f"give --raters {max(numbers)}, for no slice has more"
        raise UserError(
            f"{path}: {found} of {numbers.total()} slices have fewer than {num_raters} masks ({counts}): "
            f"{listed(names)}; {remedy}"
        )
    done = "got empty masks to have" if fewer == "empty" else "were left out, having fewer than"
    kept = [[_filled(piece, num_raters) for piece in part] for part in parts]
    if fewer == "leave_out":
        kept = [[piece for piece in part if len(piece.masks) == num_raters] for part in parts]
    by_part = [sum(len(piece.masks) < num_raters for piece in part) for part in parts]
    print(
        f"{path}: --fewer_masks {fewer}: {by_part[0]} of {len(parts[0])} training and {by_part[1]} of {len(parts[1])} "
        f"test slices {done} {num_raters}"
    )
    if not all(kept):
        raise UserError(f"--fewer_masks leave_out: no slice with {num_raters} masks is left to train or to test on")
    return kept


def _filled(piece: Slice, num_raters: int) -> Slice:
    lacking = np.zeros((num_raters - len(piece.masks), *piece.masks.shape[1:]), piece.masks.dtype)
    return piece._replace(masks=np.concatenate([piece.masks, lacking]))


def patient_of(name: str, series_uid: object) -> str:
    """The patient a slice belongs to: LIDC's number where the name starts with it, since a patient may have several
    series; else the series, unless it only repeats the slice's name; else the name up to its first underscore."""
    number = re.match(r"LIDC-IDRI-\d+", name)
    if number:
        return number[0]
    if isinstance(series_uid, str) and series_uid not in ("", name):
        return series_uid
    return name.split("_")[0]


def read_split(folder: Path, slices: dict[str, Slice]) -> tuple[list[Slice], list[Slice]]:
    """The training and the test slices that ``folder``/train_idx.npy and test_idx.npy name.

    Warns on stderr if a patient has slices on both sides. Raises `UserError` if a file is missing, empty, or names a
    slice twice, on both sides, or one that ``slices`` does not have.
    """
    train, test = (_read_index(folder / name, slices) for name in SPLIT)
    twice = sorted({piece.name for piece in train} & {piece.name for piece in test})
    if twice:
        raise UserError(f"{folder}: {len(twice)} slices are in train_idx.npy and test_idx.npy: {listed(twice)}")
    both = sorted({piece.patient for piece in train} & {piece.patient for piece in test})
    if both:
        print(
            f"warning: {folder}: {len(both)} patients have slices in train_idx.npy and in test_idx.npy, so test scores "
            f"will be too good: {listed(both)}; scripts/split_lidc.py splits by patient",
            file=sys.stderr,
        )
    return train, test


def _read_index(path: Path, slices: dict[str, Slice]) -> list[Slice]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; scripts/split_lidc.py --lidc_pickle {path.parent / PICKLE} makes a split by patient"
        )
    names = read_object_array(path)
    if names.ndim != 1 or not len(names) or not all(isinstance(name, str) for name in names.tolist()):
        raise UserError(f"{path}: expected a list of slice names, found an array {names.shape} of {names.dtype}")
    names = names.tolist()
    unknown = [name for name in names if name not in slices]
    if unknown:
        raise UserError(f"{path}: {len(unknown)} of {len(names)} slices are not in the pickle: {listed(unknown)}")
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{path}: named more than once: {listed(repeated)}")
    return [slices[name] for name in names]


def training_source(
    pickle: Path,
    slices: Sequence[Slice],
    raters: Sequence[int],
    maps: Mapping[str, Path] | None,
    image_size: int,
    num_classes: int,
) -> TrainingSource:
    """The slices of ``pickle``, each with the mask of its rater (index from 0) and its superpixel map, given by name,
    to be brought to image_size x image_size. maps: None where no superpixels vote.
    """

    def read(index: int) -> Sample:
        return Sample(slices[index].image, slices[index].masks[raters[index]])

    names = tuple(piece.name for piece in slices)
    raters = list(raters)
    settings = {"pickle": str(pickle.resolve()), "names": names, "raters": raters, "segments": folder_of(maps)}
    return TrainingSource(names, read, maps, image_size, num_classes, [pickle, *(maps or {}).values()], settings)


def slic_sources(slices: Iterable[Slice]) -> dict[str, Callable[[], np.ndarray]]:
    """What superpixels are made of: each slice's name and its image, uint8 (H,W,1)."""
    return {piece.name: partial(np.asarray, piece.image) for piece in slices}


def as_test_cases(slices: Sequence[Slice], image_size: int) -> list[TestCase]:
    """One case per slice: the image at image_size x image_size, the masks of all raters at their own size."""
    return [
        TestCase(piece.name, _picture(piece, image_size)[None], torch.from_numpy(piece.masks)[:, None])
        for piece in slices
    ]


def _picture(piece: Slice, image_size: int) -> torch.Tensor:
    return torch.from_numpy(resize_image(piece.image, image_size)).movedim(-1, 0)


def kind_of(value: object) -> str:
    """What a value is, in words."""
    return f"an array {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
