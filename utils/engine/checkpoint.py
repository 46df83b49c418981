"""Checkpoints read back: only tensors and plain values are admitted."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch

from utils.commands.errors import UserError
from utils.engine.intensity import Intensity

FORMAT = 2  # of a checkpoint; 1, which did not say so, had settings of other names and defaults


def read_checkpoint(path: Path) -> dict:
    """The contents of a checkpoint, on the CPU; only tensors and plain values are admitted.

    Raises `UserError` if the file is missing, broken or not a checkpoint of this project.
    """
    return read_checkpoint_and_digest(path)[0]


def read_checkpoint_and_digest(path: Path) -> tuple[dict, str]:
    """As `read_checkpoint`, and the SHA-256 of the very bytes that were read: a running training replaces the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # torch.load neither compares checksums nor minds members that expand to any size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes raise nearly any, and all mean the same to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason[:200]!a})") from error
    if isinstance(checkpoint, dict) and "networks" in checkpoint and checkpoint.get("format") != FORMAT:
        raise UserError(
            f"{path}: made by another version of this program, whose settings had other names and defaults; train "
            "again, in a folder of its own (--exp NAME)"
        )
    kinds = {"networks": dict, "args": dict, "epoch": int}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), kind) for k, kind in kinds.items()):
        raise UserError(f"{path}: not a checkpoint of this project")
    return checkpoint, hashlib.sha256(data).hexdigest()


class Start(NamedTuple):
    """What --init starts from: the networks of a checkpoint, and how they are fed."""

    path: Path
    network: str
    channels: int
    num_classes: int
    intensity: Intensity
    weights: dict


def read_start(path: Path) -> Start:
    """The networks of a checkpoint, to train them further. Raises `UserError` as `read_checkpoint`."""
    checkpoint = read_checkpoint(path)
    try:
        model = checkpoint["model"]
        intensity = Intensity(**{name: tuple(map(float, values)) for name, values in model["intensity"].items()})
        network, channels, classes = model["network"], int(model["in_channels"]), int(model["num_classes"])
        return Start(path, network, channels, classes, intensity, checkpoint["networks"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: does not say what its networks are ({error!a}); use another checkpoint") from error


def _epoch_of(row: object) -> object:
    return row.get("epoch") if isinstance(row, dict) else None


def _read_history(path: Path, checkpoint: dict) -> list[dict]:
    history = checkpoint.get("history")
    epochs = list(range(checkpoint["epoch"]))
    if not epochs or not isinstance(history, list) or [_epoch_of(row) for row in history] != epochs:
        raise UserError(f"{path}: its history is not that of a run; --overwrite starts the run again")
    return history
