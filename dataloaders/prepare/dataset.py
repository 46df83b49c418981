"""The dataset folder that is made: what may be replaced, all of it or nothing, and the records beside it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dataloaders.datasets import folder_dataset
from dataloaders.prepare.pairing import Found, Source
from dataloaders.prepare.settings import RECORD, read_record
from dataloaders.prepare.writing import Done, Place, choose_test, prepare
from utils.commands.errors import UserError, listed
from utils.commands.files import claimed, write_json
from utils.commands.jobs import run_jobs

UNDER_WAY = ".preparing"  # below the dataset's folder, until all is made


class Prepared(NamedTuple):
    """The files that gave images, with what came of them; which patients are tested on; what was left out."""

    found: Found
    files: list[tuple[Source, Done]]
    test: set[str]
    left_out: dict[str, str]  # name to show -> reason

    def stems(self, tested: bool) -> list[str]:
        """The names of the images to test on, or of the others."""
        sides = [done.stems for source, done in self.files if (source.patient in self.test) == tested]
        return sorted(stem for stems in sides for stem in stems)

    def left_out_in_lines(self) -> str:
        """What was left out and why, a line each."""
        return "\n".join([f"left out: {len(self.left_out)} files", *(f"  {n}: {r}" for n, r in self.left_out.items())])


def folders_of(save_root: Path, images_only: bool) -> list[Path]:
    """The folders that are written: images, masks, test images, test masks, as the dataset of that name has them."""
    layout = folder_dataset(save_root.name).layout
    names = (layout.images, layout.masks, layout.images_test, layout.masks_test)
    return [save_root / name for name in names[: 1 if images_only else None]]


def check_places(
    save_root: Path, folders: list[Path], images_root: Path, masks_root: Path | None, overwrite: bool
) -> None:
    """Raise `UserError` if sources and ``save_root`` lie in each other, or if it holds what may not be replaced."""
    place = save_root.resolve()
    for flag, root in (("images_root", images_root), ("masks_root", masks_root)):
        if root is not None and place.is_relative_to(root.resolve()):
            raise UserError(f"--save_root {save_root}: lies in --{flag} {root}; choose another")
        if root is not None and any(root.resolve().is_relative_to(folder.resolve()) for folder in folders):
            raise UserError(f"--save_root {save_root}: --{flag} {root} is part of it; choose another")
    there = [path for path in (*folders, save_root / RECORD) if os.path.lexists(path)]
    if not there:
        return
    if not overwrite:
        held = listed(path.name for path in there)
        raise UserError(f"--save_root {save_root}: holds {held}; choose another, or replace them by --overwrite")
    ours = read_record(save_root / RECORD)["images"] if (save_root / RECORD).is_file() else {}
    others = [path.name for path in folders if os.path.lexists(path) and not path.is_dir()]
    for folder in filter(Path.is_dir, folders):
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        others += [f"{folder.name}/{path.name}" for path in files if path.stem not in ours]
    if others:
        raise UserError(f"--save_root {save_root}: {listed(others)} not made by this script; move or remove them")


@contextmanager
def under_way(save_root: Path, folders: list[Path]) -> Iterator[Path]:
    """A folder to make ``folders`` in, removed at the end, however it ends; ``save_root`` is locked meanwhile."""
    made = save_root / UNDER_WAY
    try:
        with claimed(save_root):
            shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
            try:
                for folder in folders:
                    (made / folder.name).mkdir(parents=True)
                yield made
            finally:
                shutil.rmtree(made, ignore_errors=True)
    finally:
        with suppress(OSError):  # nothing was made: an empty folder would pass for a dataset
            save_root.rmdir()


def make(found: Found, place: Place | None, workers: int, test_share: float, seed: int) -> Prepared:
    """Read and write every file; those that cannot be read join what is left out. place: None writes nothing.

    Raises `UserError` if nothing is left, or cannot be written.
    """
    results, failures = run_jobs(
        partial(prepare, settings=found.settings, place=place), found.sources, workers, "preparing"
    )
    if failures:  # the disk is full, or a folder cannot be written
        raise UserError(failures[0])
    files, left_out = [], dict(found.left_out)
    for source, done in zip(found.sources, results, strict=True):
        if done.reason:
            left_out[source.name] = _with_shown_names(done.reason, source, found)
            left_out |= {found.shown[path]: f"its image, {source.name}, is left out" for path in source.masks}
        else:
            files.append((source, done))
    prepared = Prepared(found, files, set(), dict(sorted(left_out.items())))
    if not files:
        raise UserError(f"--images_root: no image can be prepared\n{prepared.left_out_in_lines()}")
    groups = [("/".join(source.folders), source.patient, len(done.stems)) for source, done in files]
    return prepared._replace(test=choose_test(groups, test_share, seed))


def _with_shown_names(reason: str, source: Source, found: Found) -> str:
    """A reader's message without its image's path, and with names as they may be shown."""
    reason = reason.removeprefix(f"{source.path}: ")
    for path in (source.path, *source.masks):
        reason = reason.replace(str(path), found.shown[path]).replace(path.name, Path(found.shown[path]).name)
    return reason


def put_in_place(save_root: Path, prepared: Prepared, made: Path, folders: list[Path], seed: int) -> None:
    """Move what was made to ``folders``, in place of what they held, and write the records."""
    images, *others = (made / folder.name for folder in folders)
    if others:
        masks, images_test, masks_test = others
        tested = set(prepared.stems(tested=True))
        for source, target in ((images, images_test), (masks, masks_test)):
            for path in [path for path in source.iterdir() if path.stem in tested]:
                path.rename(target / path.name)
    for record in (RECORD, "split.json"):
        (save_root / record).unlink(missing_ok=True)
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
        if any((made / folder.name).iterdir()):
            (made / folder.name).rename(folder)
    if others:
        split = {"seed": seed, "train": prepared.stems(tested=False), "test": prepared.stems(tested=True)}
        write_json(save_root / "split.json", split)
    write_json(save_root / RECORD, record_of(prepared))


def record_of(prepared: Prepared) -> dict[str, Any]:
    """What prepared.json holds, JSON values; no path but those below the roots, as they may be shown."""
    settings = prepared.found.settings
    return {
        "settings": settings.as_json(),
        "num_classes": settings.classes_written,
        "images": {stem: source.name for source, done in prepared.files for stem in done.stems},
        "volumes": {s.stem: {**d.geometry._asdict(), "stems": d.stems} for s, d in prepared.files if d.geometry},
        "left_out": prepared.left_out,
    }
