"""A folder of masks by the marks of an audit."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from utils.audit.marks import ACCEPT, LOOK_AGAIN, REJECT, Audit, Choice, choices
from utils.commands.errors import UserError, listed
from utils.commands.files import claimed, keep_settings, read_json, write_atomically, write_table

FOLDER, TABLE = "masks_applied", "applied.csv"  # in the audit's folder


def write_masks(
    save_root: Path,
    refined_root: Path,
    audit: Audit,
    marks: Mapping[str, str],
    given: Mapping[str, Path],
    overwrite: bool,
) -> list[Choice]:
    """Copy the mask that `choices` gives each image of the audit to save_root/masks_applied, and write applied.csv.

    refined_root: folder of the estimated masks; given: the given ones, by stem. Files are copied as they are. Raises
    `UserError` if a mask is not there, the estimated ones are those of another audit, or the folder holds masks of
    other marks, unless ``overwrite``.
    """
    again = "run the audit again"
    if read_json(refined_root / "settings.json", f"give the audit's --refined_root, or {again}") != audit.settings:
        raise UserError(f"--refined_root {refined_root}: masks of another audit than --save_root {save_root}; {again}")
    chosen = choices(audit.images, marks)
    estimated = {stem: refined_root / f"{stem}.png" for stem in audit.images}
    folders = {"given": given, "estimated": estimated}
    sources = {one.image: folders[one.mask].get(one.image, Path()) for one in chosen if one.mask}
    gone = [stem for stem, path in sources.items() if not path.is_file()]
    if gone:
        raise UserError(f"{audit.settings['masks']}, {refined_root}: no mask of {listed(gone)} any more; {again}")
    target = save_root / FOLDER
    settings = {
        "audit": audit.identity,
        "masks": audit.settings["masks"],
        "marks_sha256": hashlib.sha256(json.dumps(sorted(marks.items())).encode()).hexdigest(),
    }
    # Both names that the mask of an image may have, so that none of other marks stays beside it.
    outputs = [target / name for stem, path in given.items() for name in dict.fromkeys((path.name, f"{stem}.png"))]
    with claimed(save_root), claimed(target):
        keep_settings(target, settings, overwrite, outputs, exclusive=True)
        for path in sources.values():
            write_atomically(target / path.name, _contents(path))
        write_table(save_root / TABLE, [one._asdict() for one in chosen])
    return chosen


def summary(chosen: Sequence[Choice]) -> Iterator[str]:
    """Lines on what the marks choose: how many masks of each kind, and which images are left out."""

    def having(mask: str, mark: str) -> list[str]:
        return [one.image for one in chosen if (one.mask, one.mark) == (mask, mark)]

    again = having("", LOOK_AGAIN)
    yield (
        f"{len(chosen) - len(again)} masks: {len(having('estimated', ACCEPT))} estimated (accepted), "
        f"{len(having('given', REJECT))} given (rejected), {len(having('given', ''))} given (no mark)"
    )
    if again:
        yield f"left out, to look at again: {len(again)} images: {listed(again, most=20)}"


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
