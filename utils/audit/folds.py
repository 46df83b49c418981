"""Folds: networks that are trained on some of the images, to judge the masks of the others."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.commands.errors import UserError, listed
from utils.commands.files import read_json, write_json
from utils.commands.jobs import run_child

REPO = Path(__file__).resolve().parents[2]
# What the folds' trainings have of the audit: flags that both have, and flags that are set for each of them.
SHARED = ("image_size", "num_classes", "ignore_label", "channels", "device", "gpu", "amp", "overwrite")
FIXED = ("datasets", "noise_type", "masks", "data_root", "output_root", "slic_root", "cache", "exp", "resume")


def fold_parts(count: int, folds: int, seed: int) -> list[list[int]]:
    """The indices of ``count`` images, drawn from ``seed`` into that many parts. Raises `UserError` for too few."""
    if count < 2 * folds:
        raise UserError(f"--folds {folds}: only {count} images; each fold needs two at least")
    return [part.tolist() for part in np.array_split(np.random.default_rng(seed).permutation(count), folds)]


def check_unchanged(record: Path, digests: dict[Path, str], overwrite: bool) -> None:
    """Remember in ``record`` what the images and masks of the folds hold, ``digests``, by their resolved paths.

    Raises `UserError`, unless ``overwrite``, naming the files that are not what they were when it was written: networks
    of theirs are no judges of what is there now. Training refuses to go on with them too, but cannot say which file.
    """
    written = {str(path.resolve()): str(path) for path in digests}
    now = {str(path.resolve()): digest for path, digest in digests.items()}
    if record.is_file() and not overwrite:
        remedy = "add --overwrite to train all folds again"
        before = read_json(record, remedy)
        if not isinstance(before, dict):
            raise UserError(f"{record}: not a record of the folds' files; {remedy}")
        kinds = {
            "changed": [name for name in now if before.get(name, now[name]) != now[name]],
            "new": [name for name in now if name not in before],
            "gone": [name for name in before if name not in now],
        }
        differ = "; ".join(
            f"{kind}: {listed(written.get(name, name) for name in names)}" for kind, names in kinds.items() if names
        )
        if differ:
            raise UserError(
                f"--folds: {record.parent} has networks of other images or masks than are there now ({differ}); "
                f"{remedy}, or choose another --save_root"
            )
    write_json(record, now)


def training_flags(args: argparse.Namespace) -> list[str]:
    """What train_GSD-Net.py gets of the audit's flags, and those after --."""
    values = {name: getattr(args, name) for name in SHARED if name != "overwrite"}
    flags = [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]
    return [*flags, "--overwrite" if args.overwrite else "--resume", *args.training]


def train_fold(root: Path, pairs: Sequence[tuple[Path, Path]], held_out: set[int], fold: str, flags: list[str]) -> Path:
    """Train networks on all ``pairs`` of image and mask but those held out, which are its test set.

    root: folder of all folds; fold: its name; flags: `training_flags`. Returns the checkpoint. Run again, it goes on
    where it was broken off. Raises `UserError` if training fails.
    """
    dataset = root / "data" / fold
    shutil.rmtree(dataset, ignore_errors=True)  # links only, of an earlier audit
    for index, pair in enumerate(pairs):
        for kind, path in zip(("images", "masks"), pair, strict=True):
            link = dataset / (f"{kind}_test" if index in held_out else kind) / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    command = [sys.executable, str(REPO / "train_GSD-Net.py"), "--datasets", fold, "--noise_type", "given"]
    command += [
        "--data_root",
        str(dataset.parent),
        "--output_root",
        str(root),
        "--slic_root",
        str(root / "slic" / fold),
    ]
    command += ["--cache", str(root / "cache"), "--exp", "fold"]
    print(
        f"{fold}: training on {len(pairs) - len(held_out)} images; its test masks are those of the other "
        f"{len(held_out)}, as given",
        flush=True,
    )
    if run_child([*command, *flags]):
        raise UserError(f"--folds: training of {fold} failed, see above (in place of --exp, another --save_root)")
    return root / f"{fold}+fold+given" / "checkpoint.pt"
