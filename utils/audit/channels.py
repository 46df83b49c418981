"""With how many channels an audit reads its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands.errors import UserError

if TYPE_CHECKING:  # an audit without networks does without torch
    from utils.engine.inference import Model


def choose_channels(examples: Mapping[int, Path], asked: int | None, model: "Model | None") -> int | None:
    """The number of channels to read images with, None for their own.

    examples: an image for each number of channels that there is; asked: --channels. Raises `UserError`, naming an
    image of each kind, if the images differ, or the checkpoint takes others.
    """
    if model:
        if asked not in (None, model.channels):
            raise UserError(f"--channels {asked}: the --checkpoint was trained on images of {model.channels} channels")
        for count, path in examples.items():
            if not model.takes(count) and not (asked and count in (1, 3)):
                raise UserError(
                    f"--checkpoint: trained on images of {model.channels} channels, but {path} has {count}; "
                    "use a checkpoint that was trained on such images"
                    + (f", or give --channels {model.channels}" if {count, model.channels} == {1, 3} else "")
                )
        return model.channels
    if asked is None and len(examples) > 1:
        found = ", ".join(f"{path} has {count} channels" for count, path in sorted(examples.items()))
        raise UserError(f"--images_root: {found}: all images must have the same number; try --channels 3")
    return asked or next(iter(examples), None)
