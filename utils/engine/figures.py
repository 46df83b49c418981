"""Drawing that the pictures of a run, overlays and comparisons share: outlines, legends, grids, PNG.

The reference, or the mask as given, is white; what is predicted, or trained on, has the colours of its classes. Every
line has a dark rim, so that it shows on bright images too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from threading import Lock
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from torch import Tensor

from utils.masks.geometry import IGNORED, as_png, longest_side, resize_label

DPI = 120
WHITE = "#ffffff"
COLOURS = ("#ffe61a", "#00c8ff", "#ff5050", "#78e65a", "#e678ff", "#ffa028")  # of classes; the audit's page has them
RIM = "#101010"
RIMMED: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground=RIM)]
LEGEND = "#b8bec6"  # its background, on which white shows
LARGEST = 640  # pixels of the longer side of a mask whose outline a figure shows
SMALLEST = 400  # pixels of the longer side of an overlay; smaller images are enlarged

Legend = tuple[tuple[str, str], ...]  # what lines mean, and their colours
_fonts = Lock()  # overlays are drawn by several threads, and matplotlib's fonts are for one at a time


def colour_of(value: int) -> str:
    """The colour of a foreground class; from seven classes on colours repeat."""
    return COLOURS[(value - 1) % len(COLOURS)]


def legend_of(title: str, num_classes: int) -> Legend:
    """What the outlines of foreground classes mean: ``title``, and if there are several the class."""
    if num_classes == 2:
        return ((title, colour_of(1)),)
    return tuple((f"{title}, class {k}", colour_of(k)) for k in range(1, num_classes))


# --- Figures ----------------------------------------------------------------------------------------------------------


def show(axis: Axes, image: np.ndarray, size: tuple[int, int] | None = None, **options: Any) -> None:
    """Show an image, (H,W,3) in [0, 1] or (H,W), without ticks; ``size``: the height and width of the masks that are
    drawn on it, if they are not its own."""
    height, width = size or image.shape[:2]
    axis.imshow(image, extent=(-0.5, width - 0.5, height - 0.5, -0.5), **options)
    axis.set(xticks=[], yticks=[], autoscale_on=False)


def draw_outlines(axis: Axes, labels: np.ndarray, colour: str = "") -> None:
    """Draw the outline of each foreground class of labels (H,W) in its colour, or all in ``colour``. The line has the
    same width whatever the size of the labels."""
    height, width = labels.shape
    if max(height, width) > LARGEST:
        labels = resize_label(labels, longest_side(labels.shape, LARGEST))
    # Padded, so that objects at the border of the image are closed; a pixel's coordinates are those of its centre.
    padded = np.pad(labels, 1)
    rows, columns = (
        (np.arange(-1, count + 1) + 0.5) * (full / count) - 0.5
        for count, full in zip(labels.shape, (height, width), strict=True)
    )
    for value in np.unique(labels):
        if value not in (0, IGNORED):
            line = axis.contour(
                columns, rows, padded == value, [0.5], colors=[colour or colour_of(int(value))], linewidths=1.2
            )
            line.set_path_effects(RIMMED)


def explain(figure: Figure, legend: Legend) -> None:
    """Say below a figure what its lines mean."""
    lines = [Line2D([], [], color=colour, linewidth=1.6, path_effects=RIMMED, label=name) for name, colour in legend]
    columns = max(1, min(len(lines), int(figure.get_figwidth() / 1.9)))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=8, facecolor=LEGEND)


def name_of(name: str, most: int = 26) -> str:
    """The name of an image, cut in the middle where it is too long for a picture."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


def image_grid(columns: Mapping[str, Sequence[np.ndarray]], row_names: Sequence[str]) -> Figure:
    """A figure with a titled column for each entry, values (H,W,3) in [0, 1] of any size, and a name for each row."""
    rows = len(row_names)
    figure = Figure(figsize=(1.7 * len(columns), 1.7 * rows + 0.3), layout="constrained", dpi=DPI)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, values) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=9, parse_math=False)
        for axis, value in zip(axes[:, column], values, strict=True):
            show(axis, value)
    for axis, name in zip(axes[:, 0], row_names, strict=True):
        axis.set_ylabel(name_of(name), fontsize=7, parse_math=False)
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 (H,W,3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes."""
    return as_png(pixels(figure)[..., ::-1])


# --- Overlays: images at their own size ---------------------------------------------------------------------------


def overlay(image: np.ndarray, labels: np.ndarray, num_classes: int, reference: np.ndarray | None = None) -> np.ndarray:
    """An image, uint8 (H,W,C), with the outlines of labels (H,W), below them those of a reference (H,W), and a legend
    at its foot: uint8 (H',W',3)."""
    layers, legend = [(labels, "")], legend_of("prediction", num_classes)
    if reference is not None:
        layers, legend = [(reference, WHITE), *layers], (("reference", WHITE), *legend)
    drawn = outlined(as_colour(image), layers)
    strip = _legend_strip(legend, drawn.shape[1], max(drawn.shape))
    missing = strip.shape[1] - drawn.shape[1]
    return np.vstack([np.pad(drawn, ((0, 0), (0, missing), (0, 0)), constant_values=255), strip])


def outlined(picture: np.ndarray, layers: Iterable[tuple[np.ndarray, str]]) -> np.ndarray:
    """A picture, uint8 (H,W,3), with the outlines of each class of labels (H,W), in its colour or in that of the layer;
    those that come later lie above. Pictures smaller than `SMALLEST` are enlarged by a whole number before. The lines
    lie inside of their class and have the width of a 300th of the longer side."""
    times = math.ceil(SMALLEST / max(picture.shape))
    picture = picture.repeat(times, 0).repeat(times, 1)
    width = max(2, round(max(picture.shape) / 300))
    brush = np.ones((3, 3), np.uint8)
    lines = np.zeros(picture.shape[:2], np.int16)  # numbers of colours, 0 for none
    colours = [RIM]
    for labels, colour in layers:
        for value in np.unique(labels):
            if value not in (0, IGNORED):
                mask = (labels == value).astype(np.uint8).repeat(times, 0).repeat(times, 1)
                inside = cv2.erode(mask, brush, iterations=width, borderType=cv2.BORDER_CONSTANT, borderValue=0)
                colours.append(colour or colour_of(int(value)))
                lines[mask > inside] = len(colours)
    rim = cv2.dilate((lines > 0).astype(np.uint8), brush, iterations=width // 2) > 0
    lines[rim & (lines == 0)] = 1
    table = np.array([[0, 0, 0], *(np.multiply(to_rgb(colour), 255) for colour in colours)]).round().astype(np.uint8)
    return np.where(lines[..., None] > 0, table[lines], picture)


def _legend_strip(legend: Legend, width: int, side: int) -> np.ndarray:
    with _fonts:
        return _drawn_legend(legend, width, side)


@cache
def _drawn_legend(legend: Legend, width: int, side: int) -> np.ndarray:
    """The legend of a picture of ``width`` whose longer side is ``side`` pixels: uint8 (H,W,3), W >= ``width``."""
    dpi = max(100.0, side / 8)
    inches = max(width / dpi, 1.9)
    columns = max(1, min(len(legend), int(inches / 1.8)))
    figure = Figure(figsize=(inches, 0.2 + 0.2 * math.ceil(len(legend) / columns)), dpi=dpi, facecolor=LEGEND)
    lines = [Line2D([], [], color=colour, linewidth=2, path_effects=RIMMED, label=name) for name, colour in legend]
    figure.legend(handles=lines, loc="center", ncols=columns, fontsize=9, frameon=False)
    strip = pixels(figure)
    return np.pad(strip, ((0, 0), (0, max(0, width - strip.shape[1])), (0, 0)), mode="edge")


# --- Arrays -----------------------------------------------------------------------------------------------------------


def as_colour(image: np.ndarray) -> np.ndarray:
    """An image (H,W,C) as (H,W,3); of other than 3 channels the first, as grey."""
    return image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)


def array(values: Tensor) -> np.ndarray:
    """A tensor on any device as a NumPy array."""
    return values.detach().float().cpu().numpy()
