"""What a check of a dataset finds, and what the kinds of dataset have in common in finding it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dataloaders.files import read_segments
from dataloaders.slic import settings_for_more
from dataloaders.verification.duplicates import Fingerprint, exact_copies, fingerprint, near_copies
from utils.commands.errors import UserError, listed
from utils.commands.jobs import run_jobs
from utils.masks.geometry import resize_image, resize_label, value_counts
from utils.masks.superpixels import slic_segments

Value = TypeVar("Value")

LEVELS = ("error", "warning", "note")
CHECKS = {
    "files": "folders and files there",
    "names": "names pair up",
    "readable": "readable",
    "orientation": "mask turned like image",
    "sizes": "mask as large as image",
    "values": "mask values",
    "blank_masks": "empty or full masks",
    "classes": "every class occurs",
    "blank_images": "blank images",
    "formats": "one pixel format",
    "segments": "superpixels usable",
    "stale_segments": "superpixels up to date",
    "raters": "masks of all raters",
    "patients": "patients on one side",
    "exact_train": "equal images, training",
    "exact_test": "equal images, test",
    "exact_between": "equal images, both",
    "near_train": "similar images, training",
    "near_test": "similar images, test",
    "near_between": "similar images, both",
}
_NOT_FOR = {
    "folder": {"raters", "patients"},
    "lidc": {"orientation", "sizes", "values"},  # the pickle's reader judges a slice as a whole
    "mmis": {"orientation", "values"},
}
# Share of pixels on which a superpixel map agrees with one made anew from its image and recorded settings. Measured on
# Kvasir and Shenzhen at 256x256: equal maps 1; images changed by one grey level a pixel 0.974-0.983, which leaves room
# for another version of a decoder; compactness 9 or 12 for 10 0.917-0.960; the map of another image 0.68-0.79. At 64x64
# with 1024 segments, of four pixels each, maps are nearly a grid: that of another photograph agrees on 0.90-0.97, of
# another drawn image on up to all pixels. Those are not told apart, and it matters little which of them is used.
SAME_SEGMENTS = 0.97


class Finding(NamedTuple):
    """One thing that is wrong."""

    check: str  # of CHECKS
    level: str  # of LEVELS
    name: str  # the file, below the dataset's folder
    message: str


@dataclass
class Report:
    """All findings on one dataset, and facts about it as JSON values."""

    dataset: str
    kind: str  # "folder", "lidc" or "mmis"
    settings: dict
    findings: list[Finding] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    unchecked: set[str] = field(default_factory=set)  # of CHECKS, for want of what they need

    def error(self, check: str, name: str, message: str) -> None:
        """Note what training would stop at."""
        self.findings.append(Finding(check, "error", name, message))

    def warn(self, check: str, name: str, message: str) -> None:
        """Note what training would take."""
        self.findings.append(Finding(check, "warning", name, message))

    def note(self, check: str, name: str, message: str) -> None:
        """Note what training does by itself."""
        self.findings.append(Finding(check, "note", name, message))

    def count(self, level: str) -> int:
        """How many findings of a level there are."""
        return sum(finding.level == level for finding in self.findings)

    def checks(self) -> list[tuple[str, str, list[Finding]]]:
        """(title, result, findings) of every check that this kind of dataset has, errors first.

        result: "ok", one of LEVELS, or "-" if it could not be made.
        """
        found: dict[str, list[Finding]] = {check: [] for check in CHECKS if check not in _NOT_FOR[self.kind]}
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            found[finding.check].append(finding)
        return [
            (CHECKS[check], those[0].level if those else "-" if check in self.unchecked else "ok", those)
            for check, those in found.items()
        ]

    def as_json(self) -> dict:
        """Everything, as JSON values."""
        checks = [
            {
                "check": title,
                "result": result,
                "count": len(found),
                "findings": [{"level": f.level, "name": f.name, "message": f.message} for f in found],
            }
            for title, result, found in self.checks()
        ]
        counts = {"errors": self.count("error"), "warnings": self.count("warning")}
        return {"dataset": self.dataset, "settings": self.settings, **counts, "facts": self.facts, "checks": checks}


# --- One image --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What the looks at one dataset have in common."""

    root: Path
    image_size: int
    num_classes: int
    num_raters: int = 1
    slic: dict | None = None  # the settings that the superpixels were made with, where they are known
    channels: int | None = None  # that images are read with, where they are not those of the files
    ignore_label: int | None = None  # the value of a mask's pixels that have no label


class Labels(NamedTuple):
    """One mask as read."""

    series: str  # whose class shares are counted together
    name: str
    values: np.ndarray  # (...,H,W) uint8 classes, or `IGNORED`


class Picture(NamedTuple):
    """What is kept of an image."""

    name: str
    part: str  # "train", "test" or "unused"
    group: str  # likeness within a group is no finding
    size: str
    format: str
    print: Fingerprint | None  # None for a constant image


class Look(NamedTuple):
    """What a look at one item, an image with its masks and superpixels, brought."""

    findings: list[Finding]
    pictures: list[Picture]
    shares: list[tuple[str, list[float]]]  # series, share of each class


def attempt(findings: list[Finding], check: str, name: str, read: Callable[..., Value], *args: object) -> Value | None:
    """What ``read(*args)`` returns; None if it refuses, which becomes an error."""
    try:
        return read(*args)
    except UserError as error:
        # Readers begin with the path, in front of which the report has the name.
        message = str(error).removeprefix(f"{args[0]}: ") if args else str(error)
        findings.append(Finding(check, "error", name, message))
        return None


def short_name(path: Path, root: Path) -> str:
    """The path below ``root``, or all of it where it is elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def picture_of(name: str, part: str, group: str, image: np.ndarray, kind: str, findings: list[Finding]) -> Picture:
    """What is kept of ``image`` (H,W,C), stored as ``kind``; a constant one is a warning."""
    found = fingerprint(image)
    if found is None:
        findings.append(Finding("blank_images", "warning", name, "every pixel is the same"))
    return Picture(name, part, group, f"{image.shape[1]}x{image.shape[0]}", kind, found)


def shares_of(labels: Labels, task: Task, findings: list[Finding]) -> tuple[str, list[float]]:
    """The share of each class; a mask of one class only, or one that loses a class at training size, is a warning."""
    counts = np.bincount(labels.values.ravel(), minlength=256)[: task.num_classes]
    if labels.values.max() == labels.values.min():
        value = int(labels.values.flat[0])
        text = f"full: every pixel is class {value}" if value else "empty: every pixel is background"
        findings.append(Finding("blank_masks", "warning", labels.name, text))
    elif labels.values.ndim == 2:
        left, _ = value_counts(resize_label(labels.values, task.image_size))
        lost = sorted(set(np.flatnonzero(counts).tolist()) - set(left.tolist()))
        if lost:
            text = f"class {listed(lost)} vanishes at {task.image_size}x{task.image_size}, the training size"
            findings.append(Finding("blank_masks", "warning", labels.name, text))
    return labels.series, (counts / labels.values.size).tolist()


def check_segments(path: Path, image: np.ndarray | None, task: Task, findings: list[Finding]) -> None:
    """Check a superpixel map: what its reader refuses is an error; a warning if ``image`` (H,W,C), where it is known,
    gives other superpixels at the settings of the task, where they are known."""
    name, size = short_name(path, task.root), task.image_size
    segments = attempt(findings, "segments", name, read_segments, path, (size, size))
    if segments is None or image is None or task.slic is None:
        return
    agreement = agreement_of(segments, slic_segments(resize_image(image, size), **task.slic))
    if agreement < SAME_SEGMENTS:
        text = f"agrees with superpixels made anew on {agreement:.0%} of the pixels: of another image or settings"
        findings.append(Finding("stale_segments", "warning", name, text))


def agreement_of(first: np.ndarray, second: np.ndarray) -> float:
    """How far two superpixel maps (H,W) of ids >= 0 cut an image alike: the share of pixels, 0..1, that lie in the
    largest overlap of their segment with one of the other map, for the map where that is less."""
    width = int(second.max()) + 1
    pairs, counts = np.unique(first.ravel().astype(np.int64) * width + second.ravel(), return_counts=True)
    kept = []
    for ids in (pairs // width, pairs % width):
        largest = np.zeros(ids.max() + 1, np.int64)
        np.maximum.at(largest, ids, counts)
        kept.append(largest.sum() / first.size)
    return float(min(kept))


# --- The dataset ------------------------------------------------------------------------------------------------------


def list_segments(
    report: Report, folder: Path, origin: Path, stems: Iterable[str], known: Iterable[str] | None = None
) -> dict[str, Path]:
    """The superpixel maps of a folder by stem. Those missing for ``stems`` are a note, since training makes them of the
    images of ``origin``, a folder or file; an error where it could not. Those of none of the ``known`` names, which are
    ``stems`` by default, are warnings."""
    stems, root = dict.fromkeys(stems), Path(report.dataset)
    name, size = short_name(folder, root), report.settings["image_size"]
    there = {path.stem: path for path in sorted(folder.glob("*.npy")) if path.is_file()} if folder.is_dir() else {}
    if not there:
        report.unchecked.add("stale_segments")
    lacking = [stem for stem in stems if stem not in there]
    if lacking and not _can_be_made(folder):
        report.error("segments", name, "superpixels cannot be kept there; give another folder by --slic_root")
    elif lacking and attempt(report.findings, "segments", name, settings_for_more, folder, origin, size) is not None:
        text = f"of {len(lacking)} of {len(stems)} images there are none: {listed(lacking)}; training makes them"
        report.note("segments", name, text)
    for stem in sorted(there.keys() - set(stems if known is None else known)):
        report.warn("segments", short_name(there[stem], root), "superpixels of no image; not used")
    return there


def _can_be_made(folder: Path) -> bool:
    if os.path.lexists(folder) and not folder.is_dir():  # a file, or a link to nothing
        return False
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def slic_settings(report: Report, folder: Path, image_size: int) -> dict | None:
    """What the maps were made with, as the folder's settings.json says; None where it does not, a warning."""
    name = short_name(folder / "settings.json", Path(report.dataset))
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        slic = {"n_segments": int(settings["n_segments"])} | {k: float(settings[k]) for k in ("compactness", "sigma")}
        recorded = int(settings["image_size"])
        if slic["n_segments"] < 1 or not (0 < slic["compactness"] < np.inf and 0 <= slic["sigma"] < np.inf):
            raise ValueError(f"settings out of range: {slic}")
    except FileNotFoundError:
        text = "missing, so whether the superpixels belong to these images was not checked"
        report.warn("stale_segments", name, text)
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        text = f"not readable ({error}), so whether the superpixels belong to these images was not checked"
        report.warn("stale_segments", name, text)
        return None
    report.facts["superpixels"] = slic | {"image_size": recorded}
    if recorded != image_size:  # the maps themselves decide whether that is an error
        report.warn("stale_segments", name, f"says --image_size {recorded}, checked for {image_size}")
    return slic


def examine(report: Report, look_at: Callable[..., Look], items: list, workers: int) -> None:
    """Look at every item over ``workers`` processes; add what that brings, and what only shows when all are put
    together: formats, class shares, copies. Of an image only its fingerprint is kept, about a kilobyte."""
    looks, failures = run_jobs(look_at, items, workers, "checking")
    assert not failures, failures  # refusals are findings
    for look in looks:
        report.findings.extend(look.findings)
    pictures = [picture for look in looks for picture in look.pictures]
    parts = {part: [p for p in pictures if p.part == part] for part in ("train", "test")}
    report.facts["images"] = {
        part: {
            "count": len(those),
            "sizes": dict(Counter(picture.size for picture in those).most_common()),
            "formats": dict(Counter(picture.format for picture in those).most_common()),
        }
        for part, those in parts.items()
    }
    formats = Counter(picture.format for picture in parts["train"]).most_common(1)
    for picture in parts["train"] + parts["test"]:
        if formats and picture.format != formats[0][0]:
            report.warn("formats", picture.name, f"{picture.format}; most frequent in training: {formats[0][0]}")
    _collect_shares(report, [share for look in looks for share in look.shares])
    _collect_copies(report, [picture for picture in parts["train"] + parts["test"] if picture.print])


def _collect_shares(report: Report, shares: list[tuple[str, list[float]]]) -> None:
    report.facts["class_shares"] = facts = {}
    for series in dict.fromkeys(name for name, _ in shares):
        table = np.array([share for name, share in shares if name == series])
        foreground = 1 - table[:, 0]
        facts[series] = {
            "masks": len(table),
            "classes": table.mean(axis=0).round(6).tolist(),
            "foreground": [round(float(np.percentile(foreground, q)), 6) for q in (0, 50, 100)],
        }
        for value in np.flatnonzero(table.max(axis=0) == 0).tolist():
            report.warn("classes", series, f"class {value} occurs in none of {len(table)} masks")


def _collect_copies(report: Report, pictures: list[Picture]) -> None:
    prints, parts, groups = ([getattr(p, name) for p in pictures] for name in ("print", "part", "group"))
    for copy in exact_copies(prints, parts):
        one, other = pictures[copy.index], pictures[copy.of]
        where = one.part if one.part == other.part else "between"
        report.warn(f"exact_{where}", one.name, f"the same pixels as {other.name}")
    for copy in near_copies(prints, parts, groups):
        one, other = pictures[copy.index], pictures[copy.of]
        where = one.part if one.part == other.part else "between"
        text = f"almost the same as {other.name} (correlation {copy.correlation:.4f})"
        report.warn(f"near_{where}", one.name, text)
