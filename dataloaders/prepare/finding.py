"""Files of a raw download: where they are, which may be images, and how they are named without naming a patient."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dataloaders.listing import IMAGE_SUFFIXES, NOT_DATA
from dataloaders.prepare.medical import DICOM_SUFFIXES, NIFTI_SUFFIXES, Identity, is_dicom
from utils.commands.errors import UserError, is_plain

Key = tuple[tuple[str, ...], str]  # the folders below the root, and the name without its suffix


# --- Files ------------------------------------------------------------------------------------------------------------


def stem_of(path: Path) -> str:
    """The name before the suffix: of a.nii.gz a, of nnU-Net's a_0000.nii.gz too; of a file without a known suffix, as
    DICOM files may be, all of it."""
    lower = path.name.lower()
    known = [suffix for suffix in (*NIFTI_SUFFIXES, *DICOM_SUFFIXES, *IMAGE_SUFFIXES) if lower.endswith(suffix)]
    if not known:
        return path.name
    stem = path.name[: -len(max(known, key=len))]
    return stem.removesuffix("_0000") if lower.endswith(NIFTI_SUFFIXES) else stem


def why_not(path: Path) -> str:
    """Why a file is no image or mask; "" if it may be one."""
    if path.name.startswith("."):
        return "a hidden file"
    if path.name in NOT_DATA or path.name.upper() == "DICOMDIR":
        return "written by a program about the files beside it"
    if not is_plain(path.name):
        return "control characters or bytes that are not UTF-8 in its name; rename it"
    if path.is_dir():
        return "a link to a folder; links to folders are not followed"
    if not path.is_file():
        return "a link to what is not there"
    if not stem_of(path):
        return "nothing in its name before the suffix"
    if path.name.lower().endswith((*NIFTI_SUFFIXES, *IMAGE_SUFFIXES)) or is_dicom(path):
        return ""
    return "not an image of a kind that is read"


def files_below(root: Path, other: Path | None = None) -> list[Path]:
    """Every file and link below ``root``, sorted; not those below ``other``. Raises `UserError` if there is no root."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror})") from error

    found = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if other is None or not same(here / name, other))
        links = [name for name in folders if (here / name).is_symlink()]
        found += [here / name for name in (*names, *links)]
    return sorted(found)


def same(first: Path, second: Path) -> bool:
    """Whether two paths lead to the same place."""
    return first.resolve() == second.resolve()


def key_of(path: Path, root: Path) -> Key:
    """What files are paired by."""
    return path.relative_to(root).parent.parts, stem_of(path)


# --- Names ------------------------------------------------------------------------------------------------------------


def without_identifiers(identities: Sequence[Identity]) -> Callable[[str], str]:
    """A function that puts patient1, patient2, ... for what DICOM headers say of patients, wherever it is in a name.

    What is shorter than four characters counts as a word of its own only.
    """
    pseudonyms: dict[str, str] = {}
    patients: dict[str, str] = {}
    for identity in identities:
        pseudonym = patients.setdefault(identity.patient, f"patient{len(patients) + 1}")
        for text in identity.texts:
            pseudonyms.setdefault(text.lower(), pseudonym)
    if not pseudonyms:
        return lambda name: name
    words = [
        re.escape(text) if len(text) >= 4 else rf"(?<![^\W_]){re.escape(text)}(?![^\W_])"
        for text in sorted(pseudonyms, key=len, reverse=True)
    ]
    pattern = re.compile("|".join(words), re.IGNORECASE)

    def cleaned(name: str) -> str:
        named = pattern.sub(lambda match: pseudonyms[match[0].lower()], name)
        return re.sub(r"(patient\d+)(?:[ _^,-]*\1)+", r"\1", named)

    return cleaned
