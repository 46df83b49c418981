"""Several raters per image: whose mask is trained on, which patients are held out, what a label may hold."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from utils.commands.errors import UserError

T = TypeVar("T")

RATER_POLICIES = "cycle, random, or a rater's number from 1"


def choose_raters(count: int, policy: str, num_raters: int, seed: int) -> list[int]:
    """The rater that each of ``count`` training images is labelled by, as an index from 0.

    policy: "cycle" gives image i the rater i mod num_raters; "random" draws each from ``seed``; a number from 1 to
    num_raters takes that rater throughout. Raises `UserError` for any other policy.
    """
    if policy == "cycle":
        return [i % num_raters for i in range(count)]
    if policy == "random":
        return np.random.default_rng(seed).integers(num_raters, size=count).tolist()
    if policy.isascii() and policy.isdigit() and 1 <= int(policy) <= num_raters:
        return [int(policy) - 1] * count
    raise UserError(f"--rater_policy {policy}: expected {RATER_POLICIES} to {num_raters}")


def split_by_patient(patients: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of ``patients`` (one entry an image) that stay and that are held out; no patient is on both sides.

    ``fraction`` in (0, 1) is that of the patients held out, rounded, at least one and not all.
    Raises `UserError` if there is only one patient.
    """
    unique = sorted(set(patients))
    if len(unique) < 2:
        raise UserError(
            f"only one patient, case or image ({unique[0]}): nothing can be held out of it; at least two are needed, "
            "or a test set and no --val_fraction"
        )
    count = min(max(round(fraction * len(unique)), 1), len(unique) - 1)
    held_out = {unique[i] for i in np.random.default_rng(seed).permutation(len(unique))[:count]}
    sides: tuple[list[int], list[int]] = ([], [])
    for index, patient in enumerate(patients):
        sides[patient in held_out].append(index)
    return sides


def hold_out(images: Iterable[T], patients: Sequence[str], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """``images`` split in two by `split_by_patient`: to train on, and to validate on (none if ``fraction`` is 0)."""
    images = list(images)
    if fraction == 0:
        return images, []
    stay, out = split_by_patient(patients, fraction, seed)
    return [images[i] for i in stay], [images[i] for i in out]


def label_classes(values: np.ndarray, num_classes: int, where: str) -> np.ndarray:
    """Stored label values as uint8 classes 0..num_classes-1; with two classes 0/255 is read as 0/1.

    ``where`` names the label in errors. Raises `UserError` for values that are no numbers, not whole or out of range.
    """
    if values.dtype.kind not in "buif":
        raise UserError(f"{where}: a label of type {values.dtype}; expected whole numbers")
    levels = np.unique(values)
    if num_classes == 2 and set(levels.tolist()) <= {0, 255}:
        return (values == 255).astype(np.uint8)
    if not set(levels.tolist()) <= set(range(num_classes)):
        shown = ", ".join(f"{level:g}" for level in levels[:6].tolist()) + (" ..." if len(levels) > 6 else "")
        wanted = "0/1 or 0/255" if num_classes == 2 else f"classes 0..{num_classes - 1} (--num_classes)"
        raise UserError(f"{where}: label values {shown}; expected {wanted}")
    return values.astype(np.uint8)
