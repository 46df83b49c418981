"""Pictures of a run: what the method does with each pixel, learning curves, and predictions side by side."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries
from torch import Tensor

from utils.engine.intensity import Intensity
from utils.method.gsd import Batch


def method_panels(batch: Batch, maps: dict[str, Tensor], intensity: Intensity, most: int = 4) -> Figure:
    """One row for each of the first images of a batch: image, noisy label, kept pixels, weight, superpixels, refined
    label, mixed image; of the last five those that the method has in this epoch."""
    images = displayed(batch.image[:most], intensity)
    columns = {"image": images, "noisy label": array(batch.label[:most])}
    if "kept" in maps:
        columns["kept pixels"] = array(maps["kept"][:most])
    if "weight" in maps:
        columns["weight"] = array(maps["weight"][:most])
        columns["superpixels"] = np.stack(
            [outlined(image, ids) for image, ids in zip(images, array(batch.segments[:most]), strict=True)]
        )
    if "refined" in maps:
        columns["refined label"] = array(maps["refined"][:most])
        columns["mixed image"] = displayed(maps["mixed"][:most], intensity)
    return image_grid(columns)


def image_grid(columns: Mapping[str, Sequence[np.ndarray] | np.ndarray], row_names: Sequence[str] = ()) -> Figure:
    """A figure with a titled column for each entry; values (N,H,W,3) in [0, 1], or (N,H,W) drawn from 0 to their
    largest value in viridis; of several sizes, a list of N arrays."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.7 * len(columns), 1.7 * rows + 0.3), layout="constrained", dpi=110)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, values) in enumerate(columns.items()):
        highest = max(1, *(float(value.max()) for value in values))
        for row, value in enumerate(values):
            axis = axes[row, column]
            axis.imshow(value, cmap="viridis", vmin=0, vmax=highest, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=9)
            if column == 0 and row_names:
                axis.set_ylabel(row_names[row], fontsize=7)
    return figure


def learning_curves(history: list[dict]) -> Figure:
    """Losses, test Dice, and the shares of dropped and kept pixels against the epoch."""
    figure = Figure(figsize=(11, 3.2), layout="constrained", dpi=110)
    losses, dice, selection = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in history]

    def curve(axis: Axes, name: str, label: str) -> None:
        if any(row.get(name) is not None for row in history):
            axis.plot(epochs, [np.nan if row.get(name) is None else row[name] for row in history], label=label)

    for name in ("loss", "gda", "transfer1", "transfer2", "agreement"):
        curve(losses, name, name)
    curve(dice, "dice", "Dice")
    curve(dice, "iou", "IoU")
    curve(selection, "drop_rate", "drop rate")
    curve(selection, "kept", "share of pixels kept")
    for axis, title in ((losses, "training losses"), (dice, history[-1]["scored_on"]), (selection, "selection")):
        axis.set(title=title, xlabel="epoch")
        if axis.lines:
            axis.legend(fontsize=7)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 (H,W,3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def displayed(inputs: Tensor, intensity: Intensity) -> np.ndarray:
    """Network inputs (N,C,H,W) -> pictures (N,H,W,3) in [0, 1]; of other than 3 channels the first, as grey."""
    unit = array(inputs).transpose(0, 2, 3, 1) * np.array(intensity.std) + np.array(intensity.mean)
    if unit.shape[-1] != 3:
        unit = np.repeat(unit[..., :1], 3, axis=-1)
    return unit.clip(0, 1)


def outlined(image: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A picture (H,W,3) with the borders between the regions ``ids`` (H,W) drawn in yellow."""
    return np.where(find_boundaries(ids, mode="inner")[..., None], np.array([1.0, 0.9, 0.1]), image)


def array(values: Tensor) -> np.ndarray:
    """A tensor on any device as a NumPy array."""
    return values.detach().float().cpu().numpy()
