"""What an audit says of its masks: their order, its notes on the page and on stdout, and the pictures."""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from utils.audit.judging import Judged
from utils.audit.page import SIDE
from utils.commands.errors import listed
from utils.engine.figures import contoured
from utils.masks.geometry import longest_side, resize_image, resize_label

WRONG = (40, 120, 255)  # the colour of pixels believed wrong, RGB: neither tissue nor X-ray has it


def worst_first(judged: Sequence[Judged]) -> list[Judged]:
    """Rows in the order of their scores; those without one come last."""
    return sorted(judged, key=lambda row: (math.inf if row.score is None else row.score, row.image))


def notes(count: int, shown: int, networks: str | None) -> list[str]:
    """What the page says of ``count`` masks, the worst of which are shown; networks: whose they are, if any."""
    by = f"the image and {networks}" if networks else "the edges in the images"
    return [
        f"{count} masks, judged by {by}; the {shown} with the lowest scores are shown.",
        "Score: the Dice to be expected of the given mask, 1 is best. Believed wrong: share of the image's pixels, in "
        "blue. Contour moved: by how much the edge lies inside (+) or outside (-) of the given contour.",
        "This is a program's opinion, to look at first what may be wrong; it is not a diagnosis.",
    ]


def summary(rows: Sequence[Judged]) -> Iterator[str]:
    """Lines on all masks: their scores, the share believed wrong, and which were not judged."""
    scores = [row.score for row in rows if row.score is not None]
    if scores:
        share = np.mean([row.wrong_share for row in rows if row.score is not None])
        low, middle, high = np.percentile(scores, (5, 50, 95))
        yield f"{len(scores)} masks scored: median {middle:.3f}, nine of ten from {low:.3f} to {high:.3f}"
        yield f"believed wrong: {share:.2%} of the pixels of a scored mask in the mean"
    unjudged = [row.image for row in rows if row.score is None]
    if unjudged:
        yield f"not judged, as they have no boundary (a --checkpoint would): {len(unjudged)} masks: {listed(unjudged)}"


def picture_pair(image: np.ndarray, given: np.ndarray, believed: np.ndarray, classes: int) -> list[bytes]:
    """Two JPEGs: the image (H,W,C) with the given outline; with the believed one, what is believed wrong in blue."""
    size = longest_side(image.shape, SIDE)
    image = resize_image(image, size)
    given, believed = (resize_label(mask, size) for mask in (given, believed))
    colour = image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)
    tinted = np.where((given != believed)[..., None], colour // 2 + np.array(WRONG, np.uint8) // 2, colour)
    views = contoured(image, given, classes), contoured(tinted.astype(np.uint8), believed, classes)
    return [cv2.imencode(".jpg", view[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes() for view in views]
