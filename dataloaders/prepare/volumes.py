"""What scripts/predict.py needs of this room: raw DICOM and NIfTI prepared as in training, and slices put together."""

import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dataloaders.files import IMAGE_SUFFIXES, read_mask
from dataloaders.prepare.dataset import make, record_of
from dataloaders.prepare.finding import files_below
from dataloaders.prepare.medical import NIFTI_SUFFIXES, Geometry, assembled, is_dicom, library
from dataloaders.prepare.pairing import find
from dataloaders.prepare.settings import OF_IMAGES, RECORD, Settings, read_record, settings_from
from dataloaders.prepare.writing import Place
from utils.commands.errors import UserError, listed
from utils.commands.files import write_atomically


class Volume(NamedTuple):
    """A volume whose slices are predicted."""

    name: str  # of its file, without the suffix
    stems: list[str]  # of the images of its slices, in their order
    geometry: Geometry


class Ready(NamedTuple):
    """Images that can be predicted."""

    root: Path  # their folder, or the one image
    volumes: list[Volume]
    unread: dict[str, str]  # raw files that cannot be read, by name, with the reason


@contextmanager
def images_to_predict(
    root: Path, prepared: Mapping[str, Any] | None, checkpoint: Path, workers: int
) -> Iterator[Ready]:
    """The images of a folder, or one image. DICOM and NIfTI are prepared in a temporary folder, as ``prepared``, what
    the checkpoint says of its training images, has it; images that scripts/prepare_data.py has made come with the
    volumes that prepared.json beside their folder knows. A difference between the two is a warning.

    Raises `UserError` if nothing can be prepared, if pydicom or nibabel is needed and not installed, or for a damaged
    record.
    """
    trained = Settings() if prepared is None else settings_from(dict(prepared), checkpoint)
    if _is_medical(root):
        with tempfile.TemporaryDirectory() as folder:
            yield _prepared_in(Path(folder), root, trained, workers)
        return
    path = root.parent / RECORD
    record = read_record(path) if root.is_dir() and path.is_file() else None
    own = settings_from(record["settings"], path) if record else Settings(slices=trained.slices, window=trained.window)
    differing = [name for name in OF_IMAGES if getattr(own, name) != getattr(trained, name)]
    if differing and prepared is not None:
        was = ", ".join(f"--{name} {getattr(trained, name)} (here {getattr(own, name)})" for name in differing)
        print(
            f"warning: {root}: training's images were prepared with {was}; to prepare these alike: "
            f"python scripts/prepare_data.py --images_root RAW --images_only --like {checkpoint} --save_root NEW",
            file=sys.stderr,
        )
    yield Ready(root, _volumes_in(record, path) if record else [], {})


def _is_medical(root: Path) -> bool:
    """Whether a file is DICOM or NIfTI, or a folder holds such files; below it, if it holds no other images itself."""

    def medical(path: Path) -> bool:
        return path.name.lower().endswith(NIFTI_SUFFIXES) or is_dicom(path)

    if not root.is_dir():
        return root.is_file() and medical(root)
    here = [path for path in root.iterdir() if path.is_file()]
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in here):
        return any(map(medical, here))
    return any(map(medical, files_below(root)))


def _prepared_in(folder: Path, root: Path, settings: Settings, workers: int) -> Ready:
    raw, images = root, folder / "images"
    images.mkdir()
    if root.is_file():
        raw = folder / "raw"
        raw.mkdir()
        (raw / root.name).symlink_to(root.resolve())
    found = find(raw, None, settings, images_only=True)
    made = make(found, Place(images, None, link=False), workers, test_share=0, seed=0)
    if found.left_out:
        print(f"note: {root}: not images, left out: {listed(found.left_out)}", file=sys.stderr)
    unread = {name: reason for name, reason in made.left_out.items() if name not in found.left_out}
    return Ready(images, _volumes_in(record_of(made), root), unread)


def _volumes_in(record: Mapping[str, Any], where: Path) -> list[Volume]:
    """The volumes of a record. Raises `UserError` if it is damaged, or if nibabel, which they need, is not there."""
    try:
        volumes = [
            Volume(str(name), [str(stem) for stem in entry["stems"]], Geometry(*(entry[k] for k in Geometry._fields)))
            for name, entry in record["volumes"].items()
        ]
    except (KeyError, TypeError) as error:
        remedy = "prepare the images again with scripts/prepare_data.py"
        raise UserError(f"{where}: does not say how slices become volumes ({error!a}); {remedy}") from error
    if volumes:
        library("nibabel")
    return volumes


def complete(volumes: list[Volume], stems: Collection[str]) -> tuple[list[Volume], list[str]]:
    """The volumes all of whose slices are among ``stems``, and why those of which only some are cannot be made."""
    there, reasons = [], []
    for volume in volumes:
        lacking = [stem for stem in volume.stems if stem not in stems]
        if not lacking:
            there.append(volume)
        elif len(lacking) < len(volume.stems):
            reasons.append(f"{volume.name}: not put together: {len(lacking)} slices are missing: {listed(lacking)}")
    return there, reasons


def write_volume(path: Path, volume: Volume, masks: Path, num_classes: int) -> None:
    """Put the predicted masks of a volume's slices, PNG files in ``masks``, together as ``path``, a .nii.gz of the
    classes 0..K-1 and of the affine of the volume."""
    planes = [read_mask(masks / f"{stem}.png", num_classes).labels for stem in volume.stems]
    write_atomically(path, assembled(planes, volume.geometry, path))
