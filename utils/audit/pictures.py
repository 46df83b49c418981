"""The pictures of an audit's page: an image cropped around the contour, and outlines as vectors, sharp at any size."""

from typing import NamedTuple

import cv2
import numpy as np
from skimage.measure import find_contours

from utils.masks.geometry import crop_around, longest_side, resize_image, resize_label

LARGEST = 800  # pixels of the longer side of a picture; the page shows it smaller, or enlarged


class Picture(NamedTuple):
    """What the page needs to draw one image with its two masks."""

    jpeg: bytes  # the cropped image
    width: int  # pixels of the JPEG
    height: int
    given: list[str]  # SVG path of the outline of each foreground class, in pixels of the JPEG
    estimated: list[str]
    suspected: str  # SVG path around the pixels where the masks differ
    crop: str  # what part of the image this is, in words


def picture(image: np.ndarray, given: np.ndarray, estimated: np.ndarray, num_classes: int) -> Picture:
    """The picture of an image, uint8 (H,W,C), with its masks, (H,W) classes each. Of two channels, or more than three,
    the first is shown, as grey."""
    part = crop_around((given != 0) | (estimated != 0))
    size = longest_side(given[part].shape, min(LARGEST, max(given[part].shape)))
    colour = resize_image(np.ascontiguousarray(image[part] if image.shape[-1] == 3 else image[part][..., :1]), size)
    given_part, estimated_part = (resize_label(np.ascontiguousarray(mask[part]), size) for mask in (given, estimated))
    height, width = size
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return Picture(
        cv2.imencode(".jpg", colour[..., ::-1], quality)[1].tobytes(),
        width,
        height,
        [outline(given_part == k) for k in range(1, num_classes)],
        [outline(estimated_part == k) for k in range(1, num_classes)],
        outline(given_part != estimated_part),
        " of ".join(f"{mask.shape[1]} x {mask.shape[0]}" for mask in (given[part], given)) + " pixels",
    )


def outline(mask: np.ndarray) -> str:
    """The boundaries of a mask, bool (H,W), as the data of an SVG path; a pixel (y,x) covers x..x+1 and y..y+1."""
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    # Index 1 of the padded mask is the centre of pixel 0, which lies at 0.5.
    polygons = [_corners(line) - 0.5 for line in lines]
    return "".join("M" + "L".join(f"{x:g},{y:g}" for y, x in polygon.tolist()) + "Z" for polygon in polygons)


def _corners(line: np.ndarray) -> np.ndarray:
    """A closed line of points (N,2), the last of which is the first: those at which it turns, and the first."""
    (dy, dx), (next_dy, next_dx) = np.diff(line[:-1], axis=0).T, np.diff(line[1:], axis=0).T
    turns = dy * next_dx != dx * next_dy
    return line[:-1][np.append(True, turns)]
