"""What a person decided on the masks of an audit: the marks of its page, read from CSV, and the masks they choose."""

import csv
import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from utils.commands.errors import UserError, listed
from utils.commands.files import read_json

ACCEPT, REJECT, LOOK_AGAIN = MARKS = ("accept", "reject", "look again")


class Audit(NamedTuple):
    """What the folder of an audit says of itself."""

    identity: str  # a digest of its settings and of audit.csv; another audit of the same masks has another
    settings: dict  # as recorded in settings.json
    images: list[str]  # stems, worst first


class Choice(NamedTuple):
    """A row of applied.csv."""

    image: str
    mark: str  # of `MARKS`; empty: none
    mask: str  # estimated, given, or empty: left out


def read_audit(save_root: Path) -> Audit:
    """The audit in a folder. Raises `UserError` if there is none, or if its files are damaged."""
    remedy = "give the --save_root of an audit, or run the audit again"
    table, record = save_root / "audit.csv", save_root / "settings.json"
    settings = read_json(record, remedy)
    rows = _rows(table, ("image",), remedy)
    if not isinstance(settings, dict) or not isinstance(settings.get("masks"), str):
        raise UserError(f"{record}: not the settings of an audit; {remedy}")
    digest = hashlib.sha256(record.read_bytes() + table.read_bytes()).hexdigest()
    return Audit(digest[:16], settings, [row["image"] for row in rows])


def read_marks(path: Path, audit: Audit) -> dict[str, str]:
    """The marks of a CSV file with columns image and mark, image -> one of `MARKS`; a blank mark is none.

    A column audit, which the page exports, must hold ``audit.identity``. Raises `UserError`, naming the file and the
    line, for another mark, an image that is not in the audit, or that stands there twice, and for marks of another
    audit.
    """
    marks: dict[str, str] = {}
    seen: set[str] = set()
    known = set(audit.images)
    for line, row in enumerate(_rows(path, ("image", "mark"), "export it from the audit's page"), start=2):
        image, mark, identity = row["image"], (row["mark"] or "").strip().lower(), row.get("audit")
        where = f"--apply {path}, row {line}"
        if identity not in (None, "", audit.identity):
            raise UserError(
                f"{where}: marks of audit {identity}, but --save_root holds {audit.identity}, of other masks or "
                "settings; mark the masks on its audit.html, or remove the column audit if the marks are to hold"
            )
        if image not in known:
            raise UserError(f"{where}: the audit has no image {image!r}; correct the name, or remove the row")
        if image in seen:
            raise UserError(f"{where}: a second row of {image}; remove one")
        if mark and mark not in MARKS:
            raise UserError(f"{where}: mark {mark!r} of {image}; give one of {', '.join(MARKS)}, or leave it blank")
        seen.add(image)
        if mark:
            marks[image] = mark
    return marks


def choices(images: Collection[str], marks: Mapping[str, str]) -> list[Choice]:
    """Which mask each image gets: accepted the estimated one, rejected and unmarked the given one; those to be looked
    at again get none."""
    masks = {ACCEPT: "estimated", LOOK_AGAIN: ""}
    return [Choice(image, marks.get(image, ""), masks.get(marks.get(image, ""), "given")) for image in images]


def _rows(path: Path, columns: Collection[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a CSV file that has at least these columns. Raises `UserError` if it cannot be read, or lacks one."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, strict=True)
            found, rows = list(table.fieldnames or []), list(table)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); {remedy}") from error
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise UserError(
            f"{path}: no column {listed(lacking)} among {listed(found)}; {remedy}, separated by commas, in UTF-8"
        )
    return rows
