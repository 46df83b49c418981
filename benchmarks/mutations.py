"""Damaged and hostile files: real ones of every kind that the project reads, changed, and what comes of them.

For tests/test_fuzz.py, a few of each, and benchmarks/reliability.py, thousands.
"""

import csv
import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import tifffile
import torch
from PIL import Image

from benchmarks.accuracy import RESULTS, read_rows
from dataloaders.files import format_of, read_image, read_mask, read_segments
from dataloaders.lidc import read_slices, read_split
from dataloaders.mmis import MMISCases, read_case, select_raters
from dataloaders.training_set import Sample, TrainingSource, load_training_set
from networks.unet import two_unets
from utils.commands.errors import UserError
from utils.commands.files import keep_settings
from utils.engine.inference import load_model
from utils.engine.report import print_result
from utils.engine.run_folder import Run

CPU = torch.device("cpu")
HEIGHT, WIDTH = 24, 20
LARGEST = 2**30  # bytes that the reading of a file of some kilobytes may take beyond what the process has


# --- Changing bytes ---------------------------------------------------------------------------------------------------


class Edit(NamedTuple):
    """One change of a file's bytes at a relative place in [0, 1)."""

    how: str
    where: float
    size: int  # >= 1
    value: bytes  # at least one byte


_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
EXTREMES = tuple(
    number.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for number in (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1)
    for order in _ORDERS
)
DIGITS = (b"0", b"-1", b"99999999999", b"18446744073709551616", b"1e999", b"9" * 5000, b"[" * 20000, b"NaN", b"\xff")


def _overwritten(data: bytes, start: int, edit: Edit) -> bytes:
    return data[:start] + edit.value + data[start + len(edit.value) :]


def _flipped(data: bytes, start: int, edit: Edit) -> bytes:
    return data[:start] + bytes([data[start] ^ (1 << edit.size % 8)]) + data[start + 1 :]


def _number_replaced(data: bytes, start: int, edit: Edit) -> bytes:
    number = re.compile(rb"\d+").search(data, start)
    if not number:
        return _overwritten(data, start, edit)
    return data[: number.start()] + DIGITS[edit.size % len(DIGITS)] + data[number.end() :]


EDITS: dict[str, Callable[[bytes, int, Edit], bytes]] = {
    "flip": _flipped,
    "overwrite": _overwritten,
    "extreme": lambda data, start, edit: _overwritten(
        data, start, edit._replace(value=EXTREMES[edit.size % len(EXTREMES)])
    ),
    "number": _number_replaced,
    "truncate": lambda data, start, edit: data[:start],
    "insert": lambda data, start, edit: data[:start] + edit.value + data[start:],
    "delete": lambda data, start, edit: data[:start] + data[start + edit.size :],
    "repeat": lambda data, start, edit: data[: start + edit.size] + data[start:],
    "zeros": lambda data, start, edit: data[:start] + bytes(edit.size) + data[start + edit.size :],
}


def mutated(data: bytes, edits: list[Edit]) -> bytes:
    """``data`` after the edits, one after the other."""
    for edit in edits:
        if data:
            data = EDITS[edit.how](data, int(edit.where * len(data)), edit)
    return data


def random_edits(rng: np.random.Generator) -> list[Edit]:
    """One to three edits; half of them near the beginning, where headers are."""
    return [
        Edit(
            how=str(rng.choice(list(EDITS))),
            where=float(rng.random() ** rng.choice([1, 4])),
            size=int(rng.integers(1, 65)),
            value=rng.bytes(int(rng.integers(1, 9))),
        )
        for _ in range(rng.integers(1, 4))
    ]


def with_right_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums of what they hold now, so that damage goes further than the first."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunk = data[position + 4 : position + 8 + length]
        parts.append(data[position : position + 4] + chunk + struct.pack(">I", zlib.crc32(chunk)))
        position += 12 + length
    return b"".join(parts)


def repacked(data: bytes, edits: list[Edit]) -> bytes:
    """A checkpoint (a zip archive) with the edits in one of its members, and the checksums right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(buffer, "w") as after:
        names = before.namelist()
        # Mostly the pickle that says what the others are.
        wanted = names[edits[0].size % len(names)] if edits[0].size % 4 == 0 else names[0]
        for name in names:
            contents = before.read(name)
            after.writestr(name, mutated(contents, edits) if name == wanted else contents)
    return buffer.getvalue()


# --- Files of every kind, and what reads them -------------------------------------------------------------------------


class Kind(NamedTuple):
    """A kind of file: how one is made in a folder, and what reads it and looks at what comes out."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Callable[[bytes, list[Edit]], bytes] = mutated


def _picture(channels: int | None, dtype: type = np.uint8) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    values = (rows * 7 + columns * 3) % 251 * (257 if dtype == np.uint16 else 1)
    plane = values.astype(dtype)
    return plane if channels is None else np.stack([np.roll(plane, k, 0) for k in range(channels)], axis=-1)


def _labels() -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows - 12) ** 2 + (columns - 10) ** 2 < 36).astype(np.uint8)


def _saved(name: str, image: Image.Image, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image.save(folder / name, **options)
        return folder / name

    return make


def _array(name: str, values: np.ndarray) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / name, values, allow_pickle=values.dtype == object)
        return folder / name

    return make


def _tiff(name: str, values: np.ndarray, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tifffile.imwrite(folder / name, values, **options)
        return folder / name

    return make


def _read_picture(path: Path) -> None:
    promised = format_of(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.size and promised.channels >= 1


def _read_labels(path: Path) -> None:
    labels = read_mask(path).labels
    assert labels.dtype == np.uint8 and labels.ndim == 2 and labels.max() <= 1


def _read_segments(path: Path) -> None:
    segments = read_segments(path, (HEIGHT, WIDTH))
    assert segments.shape == (HEIGHT, WIDTH) and segments.min() >= 0 and segments.max() < segments.size


NAMES = [f"LIDC-IDRI-{patient:04}_slice-{index}" for patient in range(2) for index in range(2)]


def _make_pickle(folder: Path) -> Path:
    contents = {
        name: {"image": _picture(None), "masks": [_labels(), np.zeros_like(_labels())], "series_uid": name}
        for name in NAMES
    }
    (folder / "lidc_attributes.pkl").write_bytes(pickle.dumps(contents))
    return folder / "lidc_attributes.pkl"


def _read_pickle(path: Path) -> None:
    for name, piece in read_slices(path, num_raters=2).items():
        assert piece.image.dtype == np.uint8 and piece.masks.max() <= 1
        assert piece.image.shape[:2] == piece.masks.shape[1:] and (path.parent / name).parent == path.parent


def _make_names(objects: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "test_idx.npy", np.array(NAMES[:1]))
        names = np.array(NAMES[2:], object) if objects else np.array(NAMES[2:])
        np.save(folder / "train_idx.npy", names, allow_pickle=objects)
        return folder / "train_idx.npy"

    return make


def _read_names(path: Path) -> None:
    train, _ = read_split(path.parent, read_slices(_make_pickle(path.parent), num_raters=2))
    assert train


def _make_h5(folder: Path) -> Path:
    path = folder / "h5" / "case_0.h5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for key in ("t1", "t1c", "t2"):
            file.create_dataset(key, data=_picture(None).astype(np.float32), chunks=(8, 20), compression="gzip")
        for key in ("label_a1", "label_a2"):
            file[key] = _labels()
    return path


def _read_h5(path: Path) -> None:
    case = read_case(path, num_raters=2, num_classes=2)
    assert case.image.dtype == np.uint8 and case.labels.max() <= 1 and case.image.shape[:3] == case.labels.shape[1:]
    MMISCases(path.parent, 2, 2, 16)[0]


def _make_selection(folder: Path) -> Path:
    path = folder / "data_npc_select_one.json"
    path.write_text(json.dumps({f"{name}.h5": f"label_a{index % 2 + 1}" for index, name in enumerate(NAMES)}))
    return path


def _read_selection(path: Path) -> None:
    raters = select_raters(path.parent, NAMES, num_raters=2, policy=None, seed=0)
    assert list(raters) == NAMES and set(raters.values()) <= {0, 1}


def _source(folder: Path) -> TrainingSource:
    segments = np.arange(256, dtype=np.int32).reshape(16, 16)
    sample = Sample(_picture(3)[:16, :16], _labels()[:16, :16])
    np.save(folder / "segments.npy", segments)
    source = folder / "source"
    source.touch()
    maps = dict.fromkeys("ab", folder / "segments.npy")
    return TrainingSource(("a", "b"), lambda index: sample, maps, 16, 2, [source], {"kind": "test"})


def _make_cache(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        load_training_set(_source(folder), str(folder / "cache"), CPU)
        [path] = (folder / "cache").glob(f"*/{name}")
        return path

    return make


def _read_cache(path: Path) -> None:
    source = _source(path.parents[2])
    data, *_ = load_training_set(source, str(path.parents[1]), CPU)
    expected, *_ = load_training_set(source, "none", CPU)
    assert all(torch.equal(part, other) for part, other in zip(data.parts, expected.parts, strict=True))
    assert data.num_segments == expected.num_segments


SETTINGS = {"image_size": 16, "num_classes": 2, "method": "gsd"}


def _trained() -> tuple[torch.nn.ModuleList, torch.optim.Optimizer, torch.Generator]:
    networks = torch.nn.ModuleList(two_unets(1, 2, seed=0))
    return networks, torch.optim.SGD(networks.parameters(), 0.1, momentum=0.9), torch.Generator()


def _make_checkpoint(folder: Path) -> Path:
    networks, optimiser, generator = _trained()
    run = Run(folder / "run", SETTINGS, resume=False, overwrite=True)
    model = {"in_channels": 1, "num_classes": 2, "intensity": {"mean": (0.5,), "std": (0.2,)}}
    run.close_epoch({"epoch": 0, "loss": 1.0, "dice": 0.5}, networks, optimiser, generator, model)
    run.close()
    return folder / "run" / "checkpoint.pt"


def _read_checkpoint(path: Path) -> None:
    model = load_model(path, CPU, "fp32")
    assert model.logits(torch.zeros(1, model.channels, 16, 16, dtype=torch.uint8)).isfinite().all()


def _resume(path: Path) -> None:
    with closing(Run(path.parent, SETTINGS, resume=True, overwrite=False)) as run:
        run.restore(*_trained())
        assert run.epochs_done == 1


def _make_result(folder: Path) -> Path:
    path = _make_checkpoint(folder).with_name("result.json")
    dice = {"final_dice_mean": 0.5, "final_dice_std": 0.1, "averaged_epochs": 1, "epochs": 1, "description": "GSD-Net"}
    last = {"last_epoch": {"dice": 0.5, "hd95": None}, "cases": {"dice": 2, "hd95": 0}, "test_cases": 2}
    scored = {"scored_on": "test masks", "scored_at": "mask size"}
    run = {"seconds_per_epoch": 1.5, "waiting": 0.01, "device": "cpu", "precision": "fp32"}
    path.write_text(json.dumps(dice | last | scored | run))
    return path


def _read_result(path: Path) -> None:
    with closing(Run(path.parent, SETTINGS, resume=True, overwrite=False)) as run, redirect_stdout(io.StringIO()):
        assert run.result is not None
        print_result(run.result, path.parent)


def _make_settings(folder: Path) -> Path:
    keep_settings(folder / "noisy", {"T": 200, "seed": 0}, overwrite=False)
    return folder / "noisy" / "settings.json"


def _read_settings(path: Path) -> None:
    keep_settings(path.parent, {"T": 200, "seed": 0}, overwrite=False)


def _make_rows(folder: Path) -> Path:
    rows = read_rows(RESULTS)[:3]
    with open(folder / "accuracy.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(asdict(rows[0])))
        table.writeheader()
        table.writerows(map(asdict, rows))
    return folder / "accuracy.csv"


def _png_change(data: bytes, edits: list[Edit]) -> bytes:
    return with_right_checksums(mutated(data, edits)) if edits[0].size % 2 else mutated(data, edits)


def _checkpoint_change(data: bytes, edits: list[Edit]) -> bytes:
    return repacked(data, edits) if edits[0].size % 2 else mutated(data, edits)


_EXIF = Image.Exif()
_EXIF[0x0112] = 6
_PALETTE = Image.fromarray(_picture(3)).quantize(16)

KINDS: dict[str, Kind] = {
    "PNG, colour": Kind(_saved("a.png", Image.fromarray(_picture(3))), _read_picture, _png_change),
    "PNG, 16 bits": Kind(_saved("a.png", Image.fromarray(_picture(None, np.uint16))), _read_picture, _png_change),
    "PNG, palette": Kind(_saved("a.png", _PALETTE), _read_picture, _png_change),
    "PNG, mask": Kind(_saved("a.png", Image.fromarray(_labels() * 255)), _read_labels, _png_change),
    "JPEG": Kind(_saved("a.jpg", Image.fromarray(_picture(3)), exif=_EXIF), _read_picture),
    "JPEG, mask": Kind(_saved("a.jpg", Image.fromarray(_labels() * 255)), _read_labels),
    "BMP": Kind(_saved("a.bmp", Image.fromarray(_picture(3))), _read_picture),
    "TIFF, colour": Kind(_saved("a.tif", Image.fromarray(_picture(3)), compression="tiff_lzw"), _read_picture),
    "TIFF, 16 bits": Kind(_tiff("a.tif", _picture(None, np.uint16), compression="zlib"), _read_picture),
    "TIFF, 5 channels": Kind(
        _tiff("a.tif", _picture(5), photometric="minisblack", planarconfig="contig"), _read_picture
    ),
    "TIFF, pages": Kind(_tiff("a.tif", np.moveaxis(_picture(4), -1, 0), photometric="minisblack"), _read_picture),
    "TIFF, mask": Kind(_saved("a.tif", Image.fromarray(_labels() * 255)), _read_labels),
    "NPY, image": Kind(_array("a.npy", _picture(3, np.uint16)), _read_picture),
    "NPY, mask": Kind(_array("a.npy", _labels()), _read_labels),
    "NPY, superpixels": Kind(_array("a.npy", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)), _read_segments),
    "NPY, names": Kind(_make_names(objects=False), _read_names),
    "NPY, names as objects": Kind(_make_names(objects=True), _read_names),
    "PKL, LIDC": Kind(_make_pickle, _read_pickle),
    "H5, MMIS": Kind(_make_h5, _read_h5),
    "JSON, raters": Kind(_make_selection, _read_selection),
    "JSON, settings": Kind(_make_settings, _read_settings),
    "JSON, result": Kind(_make_result, _read_result),
    "JSON, cache": Kind(_make_cache("meta.json"), _read_cache),
    "cache, labels": Kind(_make_cache("labels.bin"), _read_cache),
    "checkpoint, to predict": Kind(_make_checkpoint, _read_checkpoint, _checkpoint_change),
    "checkpoint, to resume": Kind(_make_checkpoint, _resume, _checkpoint_change),
    "CSV, results": Kind(_make_rows, read_rows),
}


def outcome(kind: Kind, path: Path) -> str:
    """How reading ``path`` ends: "read", or "refused" by the project's own error that names the file.

    Raises AssertionError for an error that does not name it, and whatever else the reader raises.
    """
    try:
        kind.read(path)
    except UserError as error:
        assert str(path.parent) in str(error), f"the error does not name {path.name}: {error}"
        return "refused"
    return "read"
