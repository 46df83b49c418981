"""Pixels of image files at any depth and number of channels: as stored, and as the 0..255 that training works on."""

import io
import logging
import math
import os
import zlib
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import BmpImagePlugin, Image, ImageOps, TiffImagePlugin

from dataloaders.safe_pickle import array_header
from dataloaders.unread import unreadable
from utils.commands.errors import UserError

# Damage ends in an error of this project; tifffile would tell of it too, of some headers 65535 times.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
PERCENTILES = (0.5, 99.5)  # that become 0 and 255 where a file does not hold 8 bits
_GREY_MODES = {"1", "L", "LA"}
_EIGHT_BIT_MODES = {*_GREY_MODES, "P", "RGB", "RGBA"}
_BOUNDED = (1, 32773)  # compressions of TIFF: none, and PackBits, which expands 64 times at most
_DEFLATE = (8, 32946)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
Image.MAX_IMAGE_PIXELS = None  # `_check_size` looks instead, and says what to do
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")  # of Pillow's many: some run other programs
MOST_PAGES = 1024  # of a TIFF; each is a channel
MOST_PIXELS, MOST_BYTES = 2**28, 2**30  # of one image: more, and memory for a batch of them would run out


class Format(NamedTuple):
    """What the header of an image file promises."""

    channels: int  # alpha not counted
    eight_bit: bool


def format_of(path: Path) -> Format:
    """The channels and depth of an image file, as `read_stored` will give them; decodes no pixel.

    Raises `UserError` if the file is no image, or of a kind that is not read.
    """
    if path.suffix.lower() == ".npy":
        array = _image_array(path, mmap_mode="r")
        return Format(array.shape[2], array.dtype == np.uint8)
    start = _first_bytes(path)
    if is_deep_tiff(path):
        layout = _tiff_layout(path)
        return Format(layout.channels, layout.dtype == np.uint8)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(path, image.width, image.height)
            grey = image.mode in _GREY_MODES | {"I;16"} or _is_deep_grey_png(start)
            return Format(1 if grey else 3, not _is_deep_png(start))
    except UserError:
        raise
    except Exception as error:  # whatever its parser runs into on a damaged file
        raise unreadable(path, error) from error


def orientation_of(path: Path) -> int:
    """The EXIF orientation 1..8 by which `read_stored` turns an image; 1 where there is none.

    Raises `UserError` if the file is no image, as far as that shows without decoding it.
    """
    if path.suffix.lower() == ".npy" or _is_plain_png(path):
        return 1
    if is_deep_tiff(path):
        orientation = _tiff_layout(path).orientation
    else:
        try:
            with Image.open(path, formats=_FORMATS) as image:
                orientation = image.getexif().get(274, 1)
        except Exception as error:  # whatever its parser runs into on a damaged file
            raise unreadable(path, error) from error
    return orientation if orientation in range(1, 9) else 1


def read_stored(path: Path) -> np.ndarray:
    """An image's values as stored, (H,W,C) of integers or floats; alpha is dropped, a palette applied.

    PNG, JPEG, BMP, TIFF and .npy; grey, RGB, or in TIFF and .npy any number of channels: a TIFF with several samples a
    pixel or with a page a channel, an array (H,W) or (H,W,C). Turned as the EXIF orientation says. Raises `UserError`
    if the file is unreadable or truncated, holds several images or a stack of slices, or values that are no finite
    numbers.
    """
    if path.suffix.lower() == ".npy":
        values = _image_array(path)
    elif is_deep_tiff(path):
        values = _read_tiff(path)
    else:
        values = _read_image(path)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path}: NaN or infinite values; replace them by numbers")
    return values


def to_bytes(plane: np.ndarray) -> np.ndarray:
    """One channel of one image, (H,W) finite numbers, as uint8 (H,W).

    Values deeper than 8 bits mostly fill a part of their range only, and those of MR have no unit: scanner and sequence
    decide their scale. The 0.5 and 99.5 percentiles of the pixels other than zero, which is the background, become 0
    and 255, linear in between, clipped beyond. If fewer than one in a hundred pixels is other than zero, the
    percentiles are those of all pixels; if both percentiles are equal, the extremes take their place; a constant plane
    gives 0. So a positive factor on the intensities changes nothing, nor does a shift where there is no zero before or
    after it. It is done image by image so that a new image needs nothing but itself.
    """
    values = plane.astype(np.float64)
    tissue = values[values != 0]
    if len(tissue) < values.size / 100:
        tissue = values
    low, high = np.percentile(tissue, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        return np.zeros(plane.shape, np.uint8)
    unit = ((values - low) / (high - low)).clip(0, 1)
    # A value halfway between two levels must not depend on the last bit, which the scale of the intensities decides.
    return np.floor(255 * unit + 0.5 + 1e-6).astype(np.uint8)


def decode(path: Path) -> Image.Image:
    """Decode the whole file by Pillow, turned as its EXIF orientation says, so that truncation is found here.

    Raises `UserError` if that fails, or if there are several frames in it.
    """
    try:
        data = Path(path).read_bytes()
        image, size = Image.open(io.BytesIO(data), formats=_FORMATS), len(data)
        _check_size(path, image.width, image.height)
        frames = getattr(image, "n_frames", 1)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.info.get("compression") == "raw":
            bits = sum(image.tag_v2.get(258, (1,)))
            if image.width * image.height * bits > 8 * size:  # libtiff would make up the rest
                raise ValueError(f"its header promises {image.width} x {image.height} pixels, more than the file holds")
        if isinstance(image, BmpImagePlugin.BmpImageFile) and _misread(image.mode, data):
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
            if pixels is None:
                raise ValueError("OpenCV cannot decode it")
            return Image.fromarray(pixels)
        if frames == 1:
            image.load()
            return ImageOps.exif_transpose(image)
    except UserError:
        raise
    # Decoders raise nearly any kind of exception on broken files; all mean the same to the user.
    except Exception as error:
        raise unreadable(path, error) from error
    raise UserError(f"{path}: {frames} frames in one file; store one image a file")


def _misread(mode: str, bmp: bytes) -> bool:
    """Whether Pillow would take the pixels of a BMP file for those of another depth: it goes by the palette, where that
    is of greys alone, and takes bytes that number black and white for bits."""
    offset = 24 if bmp[14:18] == b"\x0c\0\0\0" else 28
    return {"1": 1, "L": 8}.get(mode, 0) not in (0, int.from_bytes(bmp[offset : offset + 2], "little"))


def load_array(path: Path, mmap_mode: Literal["r"] | None = None, remedy: str = "replace or remove it") -> np.ndarray:
    """The array in a .npy file, of whatever but objects. Raises `UserError`, with ``remedy``, if there is not just one
    in it."""
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("an archive of several arrays, expected one")
            file.seek(0)
            if array_header(file, os.fstat(file.fileno()).st_size)[1].hasobject:
                raise UserError(f"{path}: an array of Python objects, expected numbers; store it by np.save as numbers")
        return np.load(path, mmap_mode, allow_pickle=False)
    except UserError:
        raise
    except Exception as error:  # whatever NumPy's parser runs into on a damaged file
        raise unreadable(path, error, ".npy file", remedy) from error


# --- By kind of file --------------------------------------------------------------------------------------------------


def _image_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    array = load_array(path, mmap_mode)
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "uif":
        raise UserError(f"{path}: {array.dtype} of shape {array.shape}; expected numbers (H,W) or (H,W,C)")
    return array.reshape(*array.shape[:2], -1)


def _check_size(path: Path, width: int, height: int, size: int = 0) -> None:
    """Raises `UserError` for an image of more pixels, or more bytes ``size``, than are read."""
    if width * height > MOST_PIXELS or size > MOST_BYTES:
        raise UserError(
            f"{path}: {width} x {height} pixels{f', {size >> 20} MiB' * (size > MOST_BYTES)}; images of up to "
            f"{MOST_PIXELS >> 20} million pixels and {MOST_BYTES >> 20} MiB are read: scale it down, or cut it into "
            "pieces, with its mask"
        )


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError as error:
        raise unreadable(path, error) from error


def _is_plain_png(path: Path) -> bool:
    """Whether a file is a PNG without any chunk that could hold EXIF data or XMP. They may stand behind the pixels, so
    Pillow would decode all of them to look there."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return data.startswith(b"\x89PNG") and not any(kind in data for kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))


def _is_deep_png(start: bytes) -> bool:
    return start.startswith(b"\x89PNG") and start[24:25] == b"\x10"


def _is_deep_grey_png(start: bytes) -> bool:
    return _is_deep_png(start) and start[25] in (0, 4)


def _read_image(path: Path) -> np.ndarray:
    image = decode(path)
    if image.mode not in _EIGHT_BIT_MODES | {"I;16"}:
        raise UserError(f"{path}: pixel format {image.mode!r}; convert it to grey or RGB")
    start = _first_bytes(path)
    if _is_deep_png(start) and image.mode != "I;16":
        # Of colours with 16 bits Pillow gives the upper eight, which may hold nothing.
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise unreadable(path, "OpenCV cannot decode it")
        return pixels[..., :1] if _is_deep_grey_png(start) else pixels
    if image.mode == "P":
        image = image.convert("RGBA")
    if image.mode != "I;16":
        image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def is_deep_tiff(path: Path) -> bool:
    """Whether a file is a TIFF of which Pillow does not read all: deep values, or several channels or pages."""
    return _first_bytes(path).startswith(_TIFF) and not _is_plain_tiff(path)


def _is_plain_tiff(path: Path) -> bool:
    """Whether Pillow reads all of a TIFF file: one page of 8 bits, and no channel beyond those of its mode."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if not isinstance(image, TiffImagePlugin.TiffImageFile):
                return False
            bits, samples = image.tag_v2.get(258, (1,)), image.tag_v2.get(277, 1)
            known = image.mode in _EIGHT_BIT_MODES and samples == len(image.getbands())
            return known and max(bits) <= 8 and image.n_frames == 1
    except Exception:  # whatever its parser runs into; that of tifffile, which is asked next, says what is wrong
        return False


class _TiffLayout(NamedTuple):
    axes: str  # Y, X and at most one more, of the channels
    shape: tuple[int, ...]  # in the order of the axes
    dtype: np.dtype
    channels: int  # alpha, which comes last, is not counted
    orientation: int  # as EXIF numbers it


def _tiff_layout(path: Path) -> _TiffLayout:
    """How a TIFF file holds its one image. Raises `UserError` if there is none in it, or more."""
    try:
        with tifffile.TiffFile(path) as file:
            # Damaged links from page to page may go in circles.
            if sum(1 for _ in islice(file.pages, MOST_PAGES + 1)) > MOST_PAGES:
                raise ValueError(f"more than {MOST_PAGES} frames in one file; store one image a file")
            # Reading the series looks at every page, so it comes before anything is said about them.
            number, series = len(file.series), file.series[0]
            named = zip(series.axes, series.shape, strict=True)
            sizes = {axis: size for axis, size in named if size > 1 or axis in "YX"}
            page, dtype, pages = series.keyframe, series.dtype, len(file.pages)
            photometric, extra = int(page.photometric), tuple(map(int, page.extrasamples))
            orientation = int(page.tags.valueof(274, 1))
    except Exception as error:  # whatever its parser runs into on a damaged file
        raise unreadable(path, error) from error
    values = math.prod(sizes.values())
    _check_size(path, sizes.get("X", 1), sizes.get("Y", 1), values * (dtype.itemsize if dtype is not None else 1))
    axes = "".join(sizes)
    channel = axes.replace("Y", "").replace("X", "")
    if number > 1 or not {"Y", "X"} <= sizes.keys() or 0 in sizes.values() or channel not in ("", "S", "C", "Q", "I"):
        raise UserError(
            f"{path}: {pages} frames in one file (axes {axes}); store one image a file, "
            "its channels as samples or as pages"
        )
    if dtype is None or dtype.kind not in "uif" or photometric not in (1, 2):
        raise UserError(f"{path}: pixel format {dtype}, photometric {photometric}; convert it to grey or RGB")
    alpha = sum(kind in (1, 2) for kind in extra) if channel == "S" else 0
    return _TiffLayout(axes, tuple(sizes.values()), dtype, sizes.get(channel, 1) - alpha, orientation)


def _read_tiff(path: Path) -> np.ndarray:
    layout = _tiff_layout(path)
    try:
        with tifffile.TiffFile(path) as file:
            _check_expansion(file)
            values = file.asarray(series=0)
    except Exception as error:  # whatever its parser runs into on a damaged file
        # For LZW and the like tifffile needs a package of its own; OpenCV has them, for up to four channels.
        if "imagecodecs" not in str(error):
            raise unreadable(path, error) from error
        values = _read_tiff_by_opencv(path, layout)
    if values.size != np.prod(layout.shape):
        raise unreadable(path, ValueError(f"{values.size} values for {layout.shape}"))
    values = values.reshape(layout.shape)
    channel = layout.axes.replace("Y", "").replace("X", "")
    values = values.transpose([layout.axes.index(axis) for axis in ("Y", "X", *channel)])
    values = values.reshape(*values.shape[:2], -1)[..., : layout.channels]
    return turned(values, layout.orientation)


def _check_expansion(file: tifffile.TiffFile) -> None:
    """Raises ValueError if pieces of the image are not there, or one holds more than its place in the image."""
    for page in file.series[0].pages:
        if page is None:
            continue
        if len(page.dataoffsets) != math.prod(page.chunked):
            raise ValueError(f"{len(page.dataoffsets)} pieces of pixels, its header promises {page.chunked}")
        if page.compression in _BOUNDED:
            continue
        if page.compression not in _DEFLATE:
            raise ValueError("a compression that needs imagecodecs")
        if page.dtype is None:
            raise ValueError("values of no known type")
        place = math.prod(page.chunks) * page.dtype.itemsize
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            file.filehandle.seek(offset)
            if len(zlib.decompressobj().decompress(file.filehandle.read(count), place + 1)) > place:
                raise ValueError("more pixels in it than its header promises")


def _read_tiff_by_opencv(path: Path, layout: _TiffLayout) -> np.ndarray:
    try:
        _, pages = cv2.imdecodemulti(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        values = np.array([_red_first(page) for page in pages]).squeeze()
    except (cv2.error, ValueError) as error:
        raise unreadable(path, error) from error
    known = layout.orientation == 1 and values.size == np.prod(layout.shape) and values.dtype == layout.dtype
    if not known:
        raise UserError(f"{path}: not readable with this compression; store it uncompressed or as .npy")
    return values


def _red_first(page: np.ndarray) -> np.ndarray:
    return page if page.ndim == 2 else page[..., [2, 1, 0, 3][: page.shape[2]]]


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H,W,C) as the EXIF orientation 1..8 says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(values[rows, columns])
