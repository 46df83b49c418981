"""Images that their EXIF data turn, whose masks may have been drawn on the pixels as they are stored."""

from collections.abc import Collection, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from dataloaders.files import read_image
from dataloaders.pixels import decode, load_array, orientation_of, turned
from utils.commands.errors import UserError, listed
from utils.masks.edge_contrast import edge_contrast
from utils.masks.geometry import longest_side, resize_image, resize_label

MOST_LOOKED_AT = 24  # turned images whose edges are compared
LOOKED_AT_SIDE = 512  # pixels of the longer side, at which that is done
_UNDONE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the orientation that turns back


class Readings(NamedTuple):
    """The edge contrast under a mask's contours; None where image and mask are of different size."""

    turned: float | None  # both turned as their EXIF data say, which is how they are read
    stored: float | None  # both as their pixels are stored


def turned_alone(pairs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Those of the pairs of image and mask of which EXIF data turn one otherwise than the other."""
    return [pair for pair in pairs if len({known_orientation(path) for path in pair}) > 1]


def known_orientation(path: Path) -> int:
    """`orientation_of`, and 1 for what cannot be read, which its reader will say."""
    try:
        return orientation_of(path)
    except UserError:
        return 1


def as_stored(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Pixels (H,W,...) that were read from ``path``, as they are stored there: before its EXIF orientation."""
    return turned(pixels, _UNDONE[known_orientation(path)])


def readings(image_path: Path, mask_path: Path) -> Readings:
    """How well image and mask fit each other in both readings. Raises `UserError` if one cannot be read."""
    image = read_image(image_path)
    mask = load_array(mask_path) if mask_path.suffix.lower() == ".npy" else np.asarray(decode(mask_path))
    mask = mask if mask.ndim == 2 else mask[..., 0]
    contrasts: list[float | None] = []
    for pixels, label in ((image, mask), (as_stored(image, image_path), as_stored(mask, mask_path))):
        if pixels.shape[:2] != label.shape:
            contrasts.append(None)
            continue
        size = longest_side(label.shape, min(LOOKED_AT_SIDE, max(label.shape)))
        classes = np.unique(label, return_inverse=True)[1].reshape(label.shape) % 256
        contrasts.append(edge_contrast(resize_image(pixels, size), resize_label(classes.astype(np.uint8), size)))
    return Readings(*contrasts)


def turned_in_words(pairs: Sequence[tuple[Path, Path]]) -> str | None:
    """What to say of images that EXIF data turn otherwise than their masks, and which reading has the stronger edges
    under the contours; None if there are none. pairs: image and mask."""
    alone = turned_alone(pairs)
    if not alone:
        return None
    found = []
    for pair in alone[:: -(-len(alone) // MOST_LOOKED_AT)]:
        try:
            found.append(readings(*pair))
        except UserError:
            continue  # its reader will say so
    names = listed(image.name for image, _ in alone)
    folders = alone[0][0].parent, alone[0][1].parent
    return (
        f"EXIF data turn {len(alone)} of {len(pairs)} images otherwise than their masks: {names}. They are read "
        f"as turned. {_verdict(found)}. If the masks were drawn on the pixels as stored, make the set with "
        f"`{preparation(*folders)} --orientation stored`; if on the turned images, with --orientation exif, which ends "
        "this warning"
    )


def preparation(images: Path, masks: Path) -> str:
    """The command, but for its orientation, that makes another set of two folders."""
    return (
        f"python scripts/prepare_data.py --images_root {quote(str(images))} --masks_root {quote(str(masks))} "
        "--save_root data/NAME"
    )


def _verdict(found: Sequence[Readings]) -> str:
    """Which reading fits better."""
    both = [(pair.turned, pair.stored) for pair in found if pair.turned is not None and pair.stored is not None]
    only = {
        "as stored": sum(pair.turned is None and pair.stored is not None for pair in found),
        "as turned": sum(pair.stored is None and pair.turned is not None for pair in found),
    }
    text = [f"{n} of {len(found)} have the size of their masks only {which}" for which, n in only.items() if n]
    if both:
        of_turned, of_stored = np.mean(both, axis=0)
        stronger = "as stored" if of_stored > of_turned else "as turned"
        more = sum((stored > turned) == (of_stored > of_turned) for turned, stored in both)
        text.append(
            f"The edges under the contours are stronger {stronger}: {max(of_turned, of_stored):.2f} against "
            f"{min(of_turned, of_stored):.2f} times the mean edge, so in {more} of {len(both)} images"
        )
    return "; ".join(text) or "Which reading fits could not be seen"


def turned_images_in_words(images: Collection[Path]) -> str | None:
    """What to say of images to predict that EXIF data turn; None if there are none."""
    turning = [path.name for path in images if known_orientation(path) != 1]
    if not turning:
        return None
    return (
        f"EXIF data turn {len(turning)} of {len(images)} images: {listed(turning)}. Their masks are those of the "
        "turned images, as viewers show them; masks of the pixels as stored come from images that "
        "scripts/prepare_data.py copied with --orientation stored"
    )
