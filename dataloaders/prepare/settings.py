"""How images are prepared, kept in prepared.json and in checkpoints so that new images can be prepared alike.

Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.commands.errors import UserError
from utils.commands.files import read_json

RECORD = "prepared.json"
PLANES = ("sagittal", "coronal", "axial")  # slices across the axes left-right, back-front, down-up
ORIENTATIONS = ("exif", "stored")
NO_LABEL = 255  # what pixels without a label are in the masks that are written
OF_IMAGES = ("orientation", "slices", "window")  # what decides on an image's pixels; the rest is about masks and names


@dataclass(frozen=True)
class Settings:
    """What the flags of scripts/prepare_data.py of the same names say."""

    mask_suffix: str | None = None  # None: to be guessed
    normal: tuple[str, ...] = ("normal",)  # folders whose images have an empty mask where they have none
    class_of: Mapping[str, int] = field(default_factory=dict)  # folder -> class of its masks' foreground
    values: Mapping[int, int] = field(default_factory=dict)  # stored value -> class; 0 stays 0
    num_classes: int = 2  # of the masks as they are, background included
    ignore_label: int | None = None  # stored value of pixels without a label
    orientation: str = "exif"
    slices: str = "axial"
    window: tuple[float, float] | None = None  # centre and width
    threshold: float | None = None  # stored value from which on masks are foreground

    def __post_init__(self) -> None:
        """Raises `UserError` for settings that contradict each other."""
        if self.class_of and (self.values or self.num_classes > 2):
            raise UserError("--class_of: goes with masks of two classes; leave out --values and --num_classes")
        if self.threshold is not None and (self.values or self.num_classes > 2 or self.ignore_label is not None):
            raise UserError("--threshold: makes two classes; leave out --values, --num_classes and --ignore_label")
        if self.window and not self.window[1] > 0:
            raise UserError(f"--window: the width must be above 0, got {self.window[1]:g}")

    @property
    def classes_written(self) -> int:
        """Classes of the masks that are written, background included."""
        named = [value for value in (*self.class_of.values(), *self.values.values()) if value != NO_LABEL]
        return max(self.num_classes, 1 + max(named, default=1))

    @property
    def has_unlabelled(self) -> bool:
        """Whether the masks that are written may hold pixels without a label."""
        return self.ignore_label is not None or NO_LABEL in self.values.values()

    def as_json(self) -> dict[str, Any]:
        """JSON values; `settings_from` reads them back."""
        return asdict(self)


def settings_from(values: object, where: object) -> Settings:
    """The settings that `Settings.as_json` gave, out of the file ``where``. Raises `UserError` for anything else."""
    try:
        if not isinstance(values, dict) or values.keys() != {entry.name for entry in fields(Settings)}:
            raise ValueError("other settings than this version has")
        number = {int(key): int(value) for key, value in values["values"].items()}
        folders = {str(key): int(value) for key, value in values["class_of"].items()}
        centre, width = map(float, values["window"] or (0, 1))
        if values["orientation"] not in ORIENTATIONS or values["slices"] not in PLANES:
            raise ValueError("an orientation or slices that this version does not know")
        return Settings(
            mask_suffix=None if values["mask_suffix"] is None else str(values["mask_suffix"]),
            normal=tuple(map(str, values["normal"])),
            class_of=folders,
            values=number,
            num_classes=int(values["num_classes"]),
            ignore_label=None if values["ignore_label"] is None else int(values["ignore_label"]),
            orientation=values["orientation"],
            slices=values["slices"],
            window=(centre, width) if values["window"] else None,
            threshold=None if values["threshold"] is None else float(values["threshold"]),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{where}: not the settings of a prepared dataset ({error}); prepare it again with scripts/prepare_data.py"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """What prepared.json holds: "settings", "images" (stem -> source), "volumes" (`medical.Geometry` by name), ...

    Raises `UserError` if it is not such a record.
    """
    remedy = "prepare the images again with scripts/prepare_data.py"
    record = read_json(path, remedy)
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), dict) for name in ("settings", "images", "volumes")
    ):
        raise UserError(f"{path}: not a record of scripts/prepare_data.py; {remedy}")
    return record


def prepared_settings(folder: Path) -> dict[str, Any] | None:
    """The settings that the dataset in ``folder`` was prepared with, as JSON values for a checkpoint; None if it was
    not made by scripts/prepare_data.py. No name of a file is among them.

    Raises `UserError` for a damaged record.
    """
    path = folder / RECORD
    return settings_from(read_record(path)["settings"], path).as_json() if path.is_file() else None
