"""What to do about a mask whose values could mean several things: flags and commands that work when typed."""

from collections.abc import Sequence

# Without the folders: names of files may be those of patients, of whom scripts/prepare_data.py says nothing.
PREPARATION = "`python scripts/prepare_data.py --images_root IMAGES --masks_root MASKS --save_root data/NAME"
UNLABELLED = 255  # what most sets have where there is no label
MOST_CLASSES = 64  # above, values are taken for grey levels
HALVES = ((1, "0.5"), (255, "128"), (65535, "32768"))  # of ranges of probabilities, by their highest value
MOST_LISTED = 6  # values that a command lists one by one


def advice(levels: Sequence[int], num_classes: int) -> str:
    """What to do about a mask that is read with ``num_classes``, for all that its values may mean.

    levels: the values in it, ascending whole numbers from 0. The flags are those of every program that reads masks.
    """
    return "; ".join(
        text for text in (as_classes(levels, num_classes), as_foreground(levels), _prepared(levels)) if text
    )


def as_classes(levels: Sequence[int], num_classes: int) -> str:
    """The flags by which ``levels`` are read as classes, 255 as what has no label; "" if they are no such numbers."""
    classes = [level for level in levels if level != UNLABELLED]
    if not classes or classes[-1] >= MOST_CLASSES:
        return ""
    enough = [f"--num_classes {classes[-1] + 1}"] if classes[-1] >= num_classes else []
    if UNLABELLED in levels:
        what = f"if {UNLABELLED} is what has no label" + ", and the others are classes" * bool(enough)
        return f"{what}, give {' '.join([*enough, f'--ignore_label {UNLABELLED}'])}"
    return f"if these are classes, give {enough[0]}" if enough else ""


def as_foreground(levels: Sequence[int]) -> str:
    """The flag by which 255 is read as the foreground of two classes; "" where there is more than that."""
    return "if 255 is the foreground, give --num_classes 2" if set(levels) <= {0, 255} else ""


def thresholded(highest: float) -> str:
    """The command that makes masks of probabilities from 0 to ``highest``: half of what their type's range is."""
    half = next((middle for most, middle in HALVES if highest <= most), f"{highest / 2:g}")
    return f"if these are probabilities, {PREPARATION} --threshold {half}` makes masks of them"


def _prepared(levels: Sequence[int]) -> str:
    """The command by which other programs need not know what ``levels`` mean."""
    if len(levels) > MOST_LISTED:
        return "" if levels[-1] < MOST_CLASSES else thresholded(levels[-1])
    if set(levels) <= {0, 255}:
        return ""
    named = " ".join(f"{level}={number}" for number, level in enumerate((v for v in levels if v), 1))
    return f"{PREPARATION} --values {named}` makes masks of them, where other classes may be named"
