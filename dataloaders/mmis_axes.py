"""Which axis of a volume its slices lie along, as far as the size of the training slices tells."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from utils.commands.errors import UserError, listed

Size = tuple[int, int]  # height and width of a slice


def slice_axis(shape: tuple[int, ...], sizes: Collection[Size]) -> int | None:
    """The axis of an array of three axes along which the slices lie; None where ``sizes``, those of the training
    slices, do not tell.

    They tell where the other two axes have the size of training slices, or, where no two have, if one axis alone is
    less than half as long as the shortest side of a training slice.
    """
    either_way = {*sizes, *((width, height) for height, width in sizes)}  # exports may swap height and width
    for axis in range(3):  # in this order: what can be read as it is stays so
        if _without(shape, axis) in either_way:
            return axis
    shortest = min((min(size) for size in sizes), default=0)
    short = [axis for axis in range(3) if shape[axis] < shortest / 2]
    return short[0] if len(short) == 1 else None


def check_axes(path: Path, shape: tuple[int, ...], sizes: Collection[Size]) -> None:
    """Raise `UserError` if the arrays of the file ``path``, of three axes, have their slices along another axis than
    the first (`slice_axis`)."""
    axis = slice_axis(shape, sizes) if len(shape) == 3 else None
    if not axis:
        return
    rows, columns = (other for other in range(3) if other != axis)
    swapped = _without(shape, axis) not in sizes and _without(shape, axis)[::-1] in sizes
    order = (axis, columns, rows) if swapped else (axis, rows, columns)
    raise UserError(
        f"{path}: arrays of shape {shape}, expected (slices,H,W) with slices like those of training, "
        f"{listed(f'{height}x{width}' for height, width in sorted(sizes))}: here they lie along axis {axis}, which is "
        f"to be the first; write every key of the file again as array.transpose{order}"
    )


def volumes_in_words(shapes: Iterable[tuple[int, int, int]]) -> str:
    """How many slices of which size volumes (S,H,W) have."""
    counts = Counter(f"{slices} slices of {height}x{width}" for slices, height, width in shapes)
    return listed((f"{text}{f' ({count} volumes)' * (count > 1)}" for text, count in counts.most_common()), most=8)


def _without(shape: tuple[int, ...], axis: int) -> Size:
    rows, columns = (length for index, length in enumerate(shape) if index != axis)
    return rows, columns
