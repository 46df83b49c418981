"""Folders of a user's own: any depth and number of channels, several classes, no superpixels, no test set."""

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import REPO, TRAIN_SCRIPT, call, folder_source, load_program, loaded
from PIL import Image, ImageOps

from dataloaders.dataset_folder import common_format, find_parts
from dataloaders.datasets import Layout
from dataloaders.files import read_image, read_mask
from dataloaders.noisy_folder import class_shares
from dataloaders.pixels import format_of, read_stored, to_bytes
from dataloaders.slic import find_maps, image_sources, superpixel_folder
from utils.commands.errors import UserError
from utils.masks.geometry import resize_image
from utils.masks.noise import class_noise, dilation_erosion_noise, file_generator, markov_noise
from utils.masks.superpixels import slic_segments

sys.path.insert(0, str(REPO / "scripts"))
import generate_simulated_noise
import generate_SLIC

script = load_program(TRAIN_SCRIPT)

SIZE = 32
TRAIN, TEST = 10, 3
QUICK = ("--device", "cpu", "--image_size", SIZE, "--batch_size", 4, "--max_epochs", 2, "--tau", 0.05)


class Trained(NamedTuple):
    """How a run ended, and where it is."""

    code: int
    out: str
    err: str
    folder: Path

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())


@pytest.fixture
def train(tmp_path, without_pictures) -> Callable[..., Trained]:
    """The training script in this process, on a folder below tmp_path."""

    def of_folder(folder: Path, *more: object, noise_type: str = "given") -> Trained:
        flags = ("--datasets", folder.name, "--noise_type", noise_type, "--data_root", folder.parent)
        outcome = call(script.main, *flags, "--output_root", tmp_path / "model", "--cache", "none", *QUICK, *more)
        return Trained(*outcome, tmp_path / "model" / f"{folder.name}+gsd+{noise_type}")

    return of_folder


def phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two blobs of different brightness, (40,48) floats in [0, 1], and their classes 0..2, uint8."""
    y, x = np.mgrid[:40, :48]
    classes = np.zeros((40, 48), np.uint8)
    for value, column in ((1, 12), (2, 34)):
        centre_y, centre_x = 20 + rng.uniform(-5, 5), column + rng.uniform(-3, 3)
        classes[np.hypot(y - centre_y, x - centre_x) < rng.uniform(6, 9)] = value
    image = np.array([0.2, 0.5, 0.8])[classes] + rng.normal(0, 0.03, classes.shape)
    return image.clip(0, 1), classes


def save_palette(path: Path, classes: np.ndarray) -> None:
    image = Image.frombytes("P", classes.shape[::-1], np.ascontiguousarray(classes).tobytes())
    image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    image.save(path)


def save_grey(path: Path, classes: np.ndarray) -> None:
    Image.fromarray(classes).save(path)


def save_rgb(path: Path, image: np.ndarray) -> None:
    Image.fromarray((255 * np.dstack([image, image**2, image / 2])).astype(np.uint8)).save(path)


def save_rgba(path: Path, image: np.ndarray) -> None:
    alpha = np.full(image.shape, 130)
    Image.fromarray(np.dstack([255 * image, 255 * image**2, 127 * image, alpha]).astype(np.uint8)).save(path)


def save_tiff16(path: Path, image: np.ndarray) -> None:
    tifffile.imwrite(path, (4095 * image).astype(np.uint16))


def save_five(path: Path, image: np.ndarray) -> None:
    np.save(path, np.dstack([image * factor for factor in (1, 10, 0.1, -3, 1000)]).astype(np.float32))


def write_folder(
    folder: Path,
    save_image: Callable = save_rgb,
    suffix: str = ".png",
    save_mask: Callable = save_grey,
    num_classes: int = 3,
    test: int = TEST,
    names: Callable[[int], str] = "case{:02}".format,
) -> Path:
    """A dataset of phantoms without superpixels."""
    rng = np.random.default_rng(0)
    for part, count in (("", TRAIN), ("_test", test)):
        for index in range(count):
            image, classes = phantom(rng)
            for kind in ("images", "masks"):
                (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            save_image(folder / f"images{part}" / f"{names(index)}{suffix}", image)
            save_mask(folder / f"masks{part}" / f"{names(index)}.png", np.minimum(classes, num_classes - 1))
    return folder


def refusal(read: Callable, *args: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*args, **options)
    return str(caught.value)


# --- Whole runs -------------------------------------------------------------------------------------------------------


def assert_complete(outcome: Trained) -> None:
    assert outcome.code == 0, outcome.err
    assert outcome.json("result.json")["epochs"] == 2
    assert all(np.isfinite(outcome.json("result.json")[f"final_{name}_mean"]) for name in ("dice", "iou"))


@pytest.mark.parametrize(
    ("save_image", "suffix", "save_mask", "channels", "stored"),
    [
        (save_tiff16, ".tif", save_grey, 1, "percentiles 0.5 and 99.5 to 0 and 255"),
        (save_five, ".npy", save_palette, 5, "percentiles 0.5 and 99.5 to 0 and 255"),
        (save_rgba, ".png", save_palette, 3, "8 bits, as stored"),
    ],
    ids=["16-bit TIFF", "5-channel npy", "RGBA"],
)
def test_three_classes_train_end_to_end(train, tmp_path, save_image, suffix, save_mask, channels, stored):
    folder = write_folder(tmp_path / "data" / "mine", save_image, suffix, save_mask)
    outcome = train(folder, "--num_classes", 3)
    assert_complete(outcome)
    assert sorted(path.name for path in (folder / "images_SLIC").glob("*.npy")) == [
        f"case{index:02}.npy" for index in range(TRAIN)
    ]
    intensity = outcome.json("args.json")["intensity"]
    assert stored in intensity["stored"] and len(intensity["mean"]) == len(intensity["std"]) == channels
    checkpoint = torch.load(outcome.folder / "checkpoint.pt", weights_only=True)
    assert (checkpoint["model"]["in_channels"], checkpoint["model"]["num_classes"]) == (channels, 3)
    assert "classes 0: " in outcome.out and "2: " in outcome.out
    result = outcome.json("result.json")
    assert result["scored_on"] == "test masks" and result["test_cases"] == TEST
    assert [result["cases"][f"dice_class{k}"] + result["cases"][f"specificity_class{k}"] for k in (1, 2)] == [TEST] * 2
    assert not (outcome.folder / "split.json").exists()


def test_simulated_noise_of_three_classes_is_trained_on(train, tmp_path):
    folder = write_folder(tmp_path / "data" / "mine")
    noise = ["--T", "10", "--theta1", "0.2", "--theta2", "0.3", "--workers", "1", "--num_classes", "3"]
    target = folder / Layout().shrunk
    generate_simulated_noise.main(["--gts_root", str(folder / "masks"), "--save_root", str(target), *noise])
    assert_complete(train(folder, "--num_classes", 3, noise_type="02"))


def test_without_a_test_set_held_out_masks_are_called_noisy(train, tmp_path):
    # Names that programs stumble over.
    folder = write_folder(tmp_path / "data" / "Übung ñ 1", test=0, num_classes=2, names="Fall ä {:02} (1).v2".format)
    outcome = train(folder)
    assert_complete(outcome)
    split = outcome.json("split.json")
    assert len(split["held_out"]) == 2 and len(split["train"]) == TRAIN - 2
    assert sorted(split["train"] + split["held_out"]) == [f"Fall ä {index:02} (1).v2" for index in range(TRAIN)]
    assert outcome.json("args.json")["val_fraction"] == 0.2
    result = outcome.json("result.json")
    assert "noisy" in result["scored_on"] and "held-out" in result["scored_on"] and result["test_cases"] == 2
    header, *rows = (outcome.folder / "log.csv").read_text().splitlines()
    assert "scored_on" in header.split(",") and all("(noisy)" in row for row in rows)
    assert outcome.out.count("noisy") >= 3  # when the folder is read, when training begins, above the table
    names = [line.split(",")[0] for line in (outcome.folder / "per_image.csv").read_text().splitlines()[1:]]
    assert names == split["held_out"]
    assert "best_validation" not in result  # no epoch is chosen by what is reported


def test_fraction_to_hold_out_with_a_test_set_and_without(tmp_path):
    folder = write_folder(tmp_path / "mine")
    assert find_parts(folder, Layout(), "given").split == {}
    parts = find_parts(folder, Layout(), "given", 0.3, seed=1)
    assert (len(parts.train), len(parts.validation), len(parts.cases), parts.scored_on) == (7, 3, 3, "test masks")
    assert parts.cases[0][0].parent.name == "images_test"
    assert find_parts(folder, Layout(), "given", 0.3, seed=1) == parts
    assert find_parts(folder, Layout(), "given", 0.3, seed=2).split != parts.split
    for kind in ("images_test", "masks_test"):
        shutil.rmtree(folder / kind)
    assert "--val_fraction 0" in refusal(find_parts, folder, Layout(), "given", 0.0)
    assert "noisy" not in find_parts(folder, Layout(), "clean").scored_on
    assert len(find_parts(folder, Layout(), "given").cases) == 2


@pytest.mark.parametrize("value", ["1", "0", "256", "many", "2.5"])
def test_bad_number_of_classes(train, tmp_path, value):
    outcome = train(tmp_path / "mine", "--num_classes", value)
    assert outcome.code == 2 and "--num_classes" in outcome.err and value in outcome.err


def test_mask_value_out_of_range_is_named(train, tmp_path):
    folder = write_folder(tmp_path / "data" / "mine")
    save_palette(folder / "masks" / "case07.png", np.full((40, 48), 3, np.uint8))
    outcome = train(folder, "--num_classes", 3)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    message = outcome.err[outcome.err.rindex("error: ") :]
    assert str(folder / "masks" / "case07.png") in message
    assert "3 (100.0%)" in message and "classes 0..2 (--num_classes)" in message


# --- Superpixels on first use -----------------------------------------------------------------------------------------


def maps_of(folder: Path, segments: Path | None = None, size: int = SIZE) -> dict[str, Path]:
    images = find_parts(folder, Layout(), "given").given
    return find_maps(image_sources(images), folder / "images", segments or folder / "images_SLIC", size)


def test_superpixels_made_on_first_use_are_those_of_the_script(tmp_path, capsys):
    folder = write_folder(tmp_path / "mine")
    maps = maps_of(folder)
    captured = capsys.readouterr()
    assert "10 of 10 images" in captured.out
    flags = ["--images_root", str(folder / "images"), "--save_root", str(tmp_path / "other"), "--workers", "1"]
    generate_SLIC.main([*flags, "--image_size", str(SIZE)])
    made, written = (
        {path.name: path.read_bytes() for path in place.iterdir()}
        for place in (folder / "images_SLIC", tmp_path / "other")
    )
    origins = [json.loads(files.pop("settings.json")) for files in (made, written)]
    assert [settings.pop("images") for settings in origins] == ["../images", "../mine/images"]
    assert made == written and origins[0] == origins[1] and set(made) == {path.name for path in maps.values()}
    # Made once, and nothing is left beside it.
    capsys.readouterr()
    assert maps_of(folder) == maps
    assert capsys.readouterr() == ("", "")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("images", "masks", "images_test", "masks_test", "images_SLIC")
    }


def test_superpixels_that_a_killed_process_left_out_are_made(tmp_path):
    """With the settings of the others; those that are there stay."""
    folder = write_folder(tmp_path / "mine")
    flags = ["--images_root", str(folder / "images"), "--save_root", str(folder / "images_SLIC"), "--workers", "1"]
    generate_SLIC.main([*flags, "--image_size", str(SIZE), "--n_segments", "9", "--compactness", "3"])
    before = {path: path.read_bytes() for path in (folder / "images_SLIC").iterdir()}
    lacking = [folder / "images_SLIC" / f"case0{index}.npy" for index in (2, 7)]
    for path in lacking:
        path.unlink()
    maps_of(folder)
    assert {path: path.read_bytes() for path in (folder / "images_SLIC").iterdir()} == before


@pytest.mark.parametrize("change", [{"image_size": 48}, {"images": "../others"}, {"sigma": None}])
def test_folder_that_lacks_superpixels_and_is_of_something_else_is_refused(tmp_path, change):
    folder = write_folder(tmp_path / "mine")
    maps = maps_of(folder)
    record = folder / "images_SLIC" / "settings.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    maps_of(folder)  # nothing is lacking
    maps["case03"].unlink()
    message = refusal(maps_of, folder)
    assert str(folder / "images_SLIC") in message and "--slic_root" in message and "--overwrite" not in message
    record.write_text("{")
    assert str(record) in refusal(maps_of, folder)
    assert not maps["case03"].exists()


def test_superpixels_without_a_record_may_be_added_to(tmp_path):
    folder = write_folder(tmp_path / "mine")
    maps = maps_of(folder)
    (folder / "images_SLIC" / "settings.json").unlink()
    made = maps["case03"].read_bytes()
    maps["case03"].unlink()
    maps_of(folder)
    assert maps["case03"].read_bytes() == made


PLAIN, SIZED = "images_SLIC", f"images_SLIC_{SIZE}"


@pytest.mark.parametrize(
    ("plain", "sized", "paper_size", "expected"),
    [
        (None, False, 256, PLAIN),  # made there first
        (None, True, 256, SIZED),
        ([], False, 256, PLAIN),  # which another process may just have begun to fill
        ([], False, SIZE, PLAIN),
        ([SIZE], False, 256, PLAIN),
        ([SIZE], True, 256, PLAIN),
        ([64], False, 256, SIZED),
        ([64], False, SIZE, SIZED),  # never beside those of another size
        ([64], True, SIZE, SIZED),
        (["damaged", SIZE], False, 256, PLAIN),
        (["damaged", 64], False, SIZE, SIZED),
        (["damaged"], False, SIZE, PLAIN),
    ],
)
def test_folder_of_the_superpixels(tmp_path, plain, sized, paper_size, expected):
    for index, size in enumerate(plain or ()):
        (tmp_path / PLAIN).mkdir(exist_ok=True)
        path = tmp_path / PLAIN / f"{index}.npy"
        path.write_bytes(b"x") if size == "damaged" else np.save(path, np.zeros((size, size), np.int32))
    for there, name in ((plain is not None, PLAIN), (sized, SIZED)):
        if there:
            (tmp_path / name).mkdir(exist_ok=True)
    assert superpixel_folder(tmp_path / PLAIN, SIZE, paper_size) == tmp_path / expected


def test_the_record_of_superpixels_says_their_size(tmp_path):
    """One map of another size is an error when it is read, and makes not another folder of the whole."""
    folder = write_folder(tmp_path / "mine")
    first = maps_of(folder)["case00"]
    np.save(first, np.zeros((16, 16), np.int32))
    assert superpixel_folder(folder / PLAIN, SIZE, 256) == folder / PLAIN
    for path in (folder / PLAIN).glob("*.npy"):
        path.unlink()
    assert superpixel_folder(folder / PLAIN, SIZE, 256) == folder / PLAIN
    assert superpixel_folder(folder / PLAIN, 48, 48) == folder / f"{PLAIN}_48"


def test_images_are_not_taken_for_their_superpixels(tmp_path):
    images = {f"{i}": tmp_path / f"{i}.npy" for i in range(3)}
    for path in images.values():
        np.save(path, np.zeros((SIZE, SIZE), np.uint8))
    message = refusal(find_maps, image_sources(images), tmp_path, tmp_path / ".." / tmp_path.name, SIZE)
    assert str(tmp_path) in message and "--slic_root" in message


def test_unreadable_image_is_named_and_has_no_superpixels(tmp_path):
    folder = write_folder(tmp_path / "mine")
    broken = folder / "images" / "case03.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:70])
    message = refusal(maps_of, folder)
    assert "1 of 10 images" in message and str(broken) in message
    broken.write_bytes(content)
    assert all(path.is_file() for path in maps_of(folder).values())


def test_superpixels_that_cannot_be_kept_ask_for_another_folder(tmp_path):
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "maps"
    message = refusal(find_maps, image_sources({"a": tmp_path / "a.png"}), tmp_path / "images", target, SIZE)
    assert str(target) in message and "--slic_root" in message


def test_every_channel_counts_for_superpixels():
    image = np.zeros((64, 64, 5), np.uint8)
    image[:, 29:, 4] = 255  # an edge in the last channel alone, where no regular grid has one
    segments = slic_segments(image, n_segments=64, sigma=0)
    assert not np.intersect1d(segments[:, :29], segments[:, 29:]).size
    # Five equal channels are cut as finely as one: the scale does not depend on their number.
    rng = np.random.default_rng(0)
    plane = cv2.GaussianBlur(rng.integers(0, 256, (64, 64), dtype=np.uint8), (0, 0), 3)[..., None]
    np.testing.assert_array_equal(*(slic_segments(plane.repeat(count, -1), n_segments=64) for count in (2, 7)))


# --- What files hold --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (40, 48, 6)).astype(np.uint16)


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of one (grey), two (grey, alpha), three or four channels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pages_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def lzw(path: Path, pixels: np.ndarray) -> None:
    cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_TIFF_COMPRESSION, 5])


def writer(name: str, write: Callable[[Path], None], expected: np.ndarray) -> object:
    return pytest.param(name, write, expected, id=f"{name} {expected.shape[2]} {expected.dtype}")


MINISBLACK = {"photometric": "minisblack"}
BYTES = DEEP.astype(np.uint8)
FLOATS = DEEP.astype(np.float32) / 7 - 100


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        *(
            writer(
                f"a{count}.png", lambda path, count=count: path.write_bytes(png16(DEEP[..., :count])), DEEP[..., :kept]
            )
            for count, kept in ((1, 1), (2, 1), (3, 3), (4, 3))
        ),
        writer("grey.tif", lambda path: tifffile.imwrite(path, DEEP[..., 0]), DEEP[..., :1]),
        writer("rgb.tif", lambda path: tifffile.imwrite(path, DEEP[..., :3], photometric="rgb"), DEEP[..., :3]),
        writer("rgba.TIFF", lambda path: tifffile.imwrite(path, DEEP[..., :4], photometric="rgb"), DEEP[..., :3]),
        writer(
            "samples.tif",
            lambda path: tifffile.imwrite(path, DEEP[..., :5], planarconfig="contig", **MINISBLACK),
            DEEP[..., :5],
        ),
        writer(
            "planes.tif",
            lambda path: tifffile.imwrite(path, pages_first(DEEP), planarconfig="separate", **MINISBLACK),
            DEEP,
        ),
        writer("pages.tif", lambda path: tifffile.imwrite(path, pages_first(DEEP), **MINISBLACK), DEEP),
        writer(
            "imagej.tif",
            lambda path: tifffile.imwrite(path, pages_first(DEEP), imagej=True, metadata={"axes": "CYX"}),
            DEEP,
        ),
        writer("8 bit pages.tif", lambda path: tifffile.imwrite(path, pages_first(BYTES), **MINISBLACK), BYTES),
        *(
            writer(
                f"8 bit {count}.tif",
                lambda path, count=count: tifffile.imwrite(
                    path, BYTES[..., :count], planarconfig="contig", **MINISBLACK
                ),
                BYTES[..., :count],
            )
            for count in (2, 4)
        ),
        writer("float.tif", lambda path: tifffile.imwrite(path, FLOATS[..., 0]), FLOATS[..., :1]),
        writer(
            "signed.tif",
            lambda path: tifffile.imwrite(path, DEEP[..., 0].astype(np.int16) - 999),
            DEEP[..., :1].astype(np.int16) - 999,
        ),
        writer("deflated.tif", lambda path: tifffile.imwrite(path, DEEP[..., 0], compression="zlib"), DEEP[..., :1]),
        writer("lzw.tif", lambda path: lzw(path, DEEP[..., :3]), DEEP[..., :3]),
        writer("lzw1.tif", lambda path: lzw(path, DEEP[..., :1]), DEEP[..., :1]),
        writer("flat.npy", lambda path: np.save(path, DEEP[..., 0]), DEEP[..., :1]),
        writer("bytes.npy", lambda path: np.save(path, BYTES), BYTES),
        writer("fortran.npy", lambda path: np.save(path, np.asfortranarray(FLOATS)), FLOATS),
    ],
)
def test_files_come_back_as_stored(tmp_path, name, write, expected):
    path = tmp_path / f"ä {name}"
    write(path)
    stored = read_stored(path)
    assert stored.dtype.newbyteorder("=") == expected.dtype
    np.testing.assert_array_equal(stored, expected)
    assert format_of(path) == (expected.shape[2], expected.dtype == np.uint8)
    image = read_image(path)
    if expected.dtype == np.uint8:
        np.testing.assert_array_equal(image, expected)
    else:
        np.testing.assert_array_equal(image, np.dstack([to_bytes(plane) for plane in pages_first(expected)]))
        assert image.dtype == np.uint8
        assert (image.min(axis=(0, 1)) == 0).all() and (image.max(axis=(0, 1)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_turned_as_their_orientation_says(tmp_path, orientation):
    shallow, deep = tmp_path / "8.tif", tmp_path / "16.tif"
    Image.fromarray(BYTES[..., 0]).save(shallow, tiffinfo={0x0112: orientation})
    tifffile.imwrite(deep, BYTES[..., 0].astype(np.uint16), extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(BYTES[..., 0]).save(tmp_path / "8.png", exif=exif.tobytes())
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "8.png")))
    np.testing.assert_array_equal(read_stored(deep)[..., 0], upright)
    np.testing.assert_array_equal(read_stored(shallow)[..., 0], upright)


def test_stacks_of_slices_are_refused(tmp_path):
    stack = pages_first(DEEP[..., :5])
    for axes in ("ZYX", "TYX"):
        path = tmp_path / f"{axes}.tif"
        tifffile.imwrite(path, stack, imagej=True, metadata={"axes": axes})
        for read in (read_image, format_of):
            message = refusal(read, path)
            assert str(path) in message and f"5 frames in one file (axes {axes})" in message
    path = tmp_path / "sizes.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(DEEP[..., 0])
        file.write(DEEP[:20, :20, 0])
    assert "2 frames" in refusal(read_image, path)


@pytest.mark.parametrize(
    ("name", "write", "found"),
    [
        ("ink.tif", lambda path: tifffile.imwrite(path, DEEP[..., :4], photometric="separated"), "photometric 5"),
        ("white.tif", lambda path: tifffile.imwrite(path, DEEP[..., 0], photometric="miniswhite"), "photometric 0"),
        ("complex.tif", lambda path: tifffile.imwrite(path, DEEP[..., 0].astype(np.complex64)), "format complex64"),
        ("ink.jpg", lambda path: Image.fromarray(BYTES[..., :4], "CMYK").save(path), "format 'CMYK'"),
    ],
)
def test_other_kinds_of_pixels_are_refused(tmp_path, name, write, found):
    write(tmp_path / name)
    message = refusal(read_image, tmp_path / name)
    assert str(tmp_path / name) in message and found in message and "convert it to grey or RGB" in message


def test_images_beyond_the_limit_are_refused_by_their_header(tmp_path, monkeypatch):
    height, width, count = DEEP.shape
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pages_first(DEEP), **MINISBLACK)
    for pixels, values, taken in (
        (height * width, 2 * DEEP.size, True),
        (height * width - 1, 2 * DEEP.size, False),
        (height * width, 2 * DEEP.size - 1, False),
    ):
        monkeypatch.setattr("dataloaders.pixels.MOST_PIXELS", pixels)
        monkeypatch.setattr("dataloaders.pixels.MOST_BYTES", values)
        if taken:
            assert format_of(path).channels == count
        else:
            assert "48 x 40 pixels" in refusal(format_of, path)


def test_compressed_tiffs_that_would_come_out_turned_are_refused(tmp_path):
    """OpenCV, which reads those of LZW, gives no word on whether it has turned them."""
    path = tmp_path / "a.tif"
    for orientation in (1, 6):
        Image.fromarray(DEEP[..., 0]).save(path, compression="tiff_lzw", tiffinfo={0x0112: orientation})
        if orientation == 1:
            np.testing.assert_array_equal(read_stored(path)[..., 0], DEEP[..., 0])
    message = refusal(read_image, path)
    assert str(path) in message and "uncompressed" in message


@pytest.mark.parametrize("name", ["deep.png", "a.bmp"])
def test_an_image_that_opencv_cannot_decode_is_refused(tmp_path, monkeypatch, name):
    path = tmp_path / name
    if name == "deep.png":
        path.write_bytes(png16(DEEP[..., :3]))
    else:
        indices = Image.fromarray((BYTES[..., 0] > 99).astype(np.uint8), "P")
        indices.putpalette([0, 0, 0, 255, 255, 255])
        indices.save(path)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert str(path) in refusal(read_image, path)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 5, 6, 7)), "shape (4, 5, 6, 7)"),
        (np.zeros(5), "shape (5,)"),
        (np.zeros((4, 0)), "shape (4, 0)"),
        (np.zeros((4, 5), bool), "bool"),
        (np.zeros((4, 5), complex), "complex128"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), np.inf), "infinite"),
    ],
    ids=str,
)
def test_arrays_that_are_no_images_are_refused(tmp_path, array, found):
    np.save(tmp_path / "a.npy", array)
    message = refusal(read_image, tmp_path / "a.npy")
    assert str(tmp_path / "a.npy") in message and found in message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["samples.tif", "lzw.tif", "rgb.png", "a.npy"])
def test_truncated_files_are_refused_wherever_they_break_off(tmp_path, kind):
    path = tmp_path / kind
    if kind == "samples.tif":
        tifffile.imwrite(path, DEEP[..., :5], planarconfig="contig", **MINISBLACK)
    elif kind == "lzw.tif":
        lzw(path, DEEP[..., :3])
    elif kind == "rgb.png":
        path.write_bytes(png16(DEEP[..., :3]))
    else:
        np.save(path, DEEP)
    content = path.read_bytes()
    for length in (0, 3, 9, 30, 140, len(content) // 3, len(content) * 3 // 4):
        path.write_bytes(content[:length])
        assert str(path) in refusal(read_image, path), length


def test_channels_of_a_set_must_agree(tmp_path, train):
    folder = write_folder(tmp_path / "data" / "mine", num_classes=2)
    grey, colour = folder / "images" / "case04.png", folder / "images" / "case00.png"
    Image.open(grey).convert("L").save(grey)
    outcome = train(folder)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert f"{grey} has 1 channel, {colour} has 3 channels" in outcome.err and "--channels 3" in outcome.err
    images = find_parts(folder, Layout(), "given").images
    assert [common_format(images, channels) for channels in (1, 3)] == [(n, "8 bits, as stored") for n in (1, 3)]
    assert read_image(grey, 3).shape == read_image(colour, 3).shape
    # Other numbers cannot be had from each other; nor may the test set differ from the training images.
    save_five(folder / "images_test" / "case01.npy", np.zeros((40, 48)))
    (folder / "images_test" / "case01.png").unlink()
    message = refusal(common_format, find_parts(folder, Layout(), "given").images)
    assert "5 channels" in message and "case01.npy" in message and "--channels" not in message
    assert "5 channels, expected 3" in refusal(read_image, folder / "images_test" / "case01.npy", 3)


def test_set_of_two_depths_is_said_to_be_one(tmp_path, capsys):
    write_folder(tmp_path, save_tiff16, ".tif")
    save_grey(tmp_path / "images" / "case00.tif", BYTES[..., 0])
    channels, reading = common_format(find_parts(tmp_path, Layout(), "given").images)
    assert channels == 1 and "12 of 13 images deeper (case01.tif" in reading
    assert "8 bits and deeper ones in one set" in capsys.readouterr().out


def test_array_of_another_size_than_its_mask_says_how_arrays_lie(tmp_path):
    folder = write_folder(tmp_path, save_five, ".npy")
    path = folder / "images" / "case02.npy"
    np.save(path, np.load(path).transpose(2, 0, 1))
    for copy in (path, folder / "images" / "case00.npy"):
        assert copy.is_file()
    message = refusal(common_format, find_parts(folder, Layout(), "given").images)
    assert "case02.npy has 48 channels" in message
    for other in (*(folder / "images").iterdir(), *(folder / "images_test").iterdir()):
        np.save(other, np.zeros((5, 40, 48)))
    assert "(H,W) or (H,W,C)" in refusal(lambda: loaded(folder_source(folder, "given", num_classes=3)))


@pytest.mark.parametrize("channels", [2, 5, 9])
def test_images_of_many_channels_are_resized_channel_by_channel(channels):
    image = RNG.integers(0, 256, (40, 48, channels), dtype=np.uint8)
    for size in (20, 64):
        planes = [resize_image(image[..., i : i + 1], size) for i in range(channels)]
        np.testing.assert_array_equal(resize_image(image, size), np.dstack(planes))


# --- Masks of several classes -----------------------------------------------------------------------------------------


def test_palette_indices_are_the_classes_whatever_the_colours(tmp_path):
    classes = (np.arange(48)[None].repeat(40, 0) // 16).astype(np.uint8)
    save_palette(tmp_path / "a.png", classes)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", 3).labels, classes)
    # A palette of greys too: its index is the class, not its grey.
    image = Image.open(tmp_path / "a.png")
    image.putpalette([0, 0, 0, 2, 2, 2, 1, 1, 1])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", 3).labels, classes)
    save_palette(tmp_path / "a.png", classes + 1)
    assert "3 (33.3%)" in refusal(read_mask, tmp_path / "a.png", 3)


@pytest.mark.parametrize("save_mask", [save_palette, save_grey])
def test_classes_without_num_classes_get_the_hint(tmp_path, save_mask):
    save_mask(tmp_path / "a.png", (np.arange(48)[None].repeat(40, 0) // 16).astype(np.uint8))
    assert "give --num_classes 3" in refusal(read_mask, tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_masks_may_be_arrays(tmp_path, dtype):
    classes = (np.arange(48)[None].repeat(40, 0) // 24).astype(dtype)
    for array in (classes, classes[..., None]):
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(read_mask(tmp_path / "a.npy").labels, classes)


@pytest.mark.parametrize(
    "array", [np.full((4, 5), 0.5), np.full((4, 5), np.nan), np.zeros((4, 5, 3)), np.full((4, 5), -1)]
)
def test_arrays_that_are_no_masks_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert str(tmp_path / "a.npy") in refusal(read_mask, tmp_path / "a.npy", 3)


def test_class_shares_name_the_class_that_never_occurs():
    labels = torch.tensor([[[0, 0], [0, 2]]], dtype=torch.uint8).repeat(70, 1, 1)
    assert class_shares(labels, 3).startswith("classes 0: 75.00%, 1: 0.00%, 2: 25.00%; in no mask: class 1 (")
    assert "in no mask" not in class_shares(labels.clamp(max=1), 2)


# --- Noise of several classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [markov_noise, dilation_erosion_noise])
def test_noise_of_two_classes_is_the_binary_noise_bit_for_bit(noise):
    mask = phantom(np.random.default_rng(3))[1].clip(max=1)
    rngs = [file_generator(5, "a") for _ in range(2)]
    np.testing.assert_array_equal(class_noise(mask, rngs[0], noise, 2), noise(mask, rngs[1]))
    assert rngs[0].random() == rngs[1].random()


@pytest.mark.parametrize("noise", [markov_noise, dilation_erosion_noise])
def test_classes_are_disturbed_in_turn_and_the_highest_claim_wins(noise):
    labels = np.zeros((40, 48), np.uint8)
    labels[10:30, 5:20], labels[10:30, 20:30], labels[12:28, 32:42] = 3, 1, 2
    overlaps = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        claims = np.stack([noise((labels == value).astype(np.uint8), rng) for value in (1, 2, 3)])
        before = labels.copy()
        noisy = class_noise(labels, np.random.default_rng(seed), noise, 4)
        assert noisy.dtype == np.uint8
        np.testing.assert_array_equal(noisy, (claims * np.array([1, 2, 3])[:, None, None]).max(axis=0))
        np.testing.assert_array_equal(labels, before)
        overlaps += (claims.sum(axis=0) > 1).sum()
    assert overlaps  # else the rule was not tested


def test_noise_script_writes_classes(tmp_path, capsys):
    classes = [phantom(np.random.default_rng(seed))[1] for seed in range(3)]
    (tmp_path / "masks").mkdir()
    for index, values in enumerate(classes):
        save_palette(tmp_path / "masks" / f"{index}.png", values)
    places = ["--gts_root", str(tmp_path / "masks"), "--save_root", str(tmp_path / "noisy")]
    flags = [*places, "--T", "10", "--theta1", "0.2", "--theta2", "0.3", "--workers", "1"]
    with pytest.raises(UserError, match="--num_classes 3"):
        generate_simulated_noise.main(flags)
    shutil.rmtree(tmp_path / "noisy")
    figure = ["--figure", str(tmp_path / "figure.png")]
    generate_simulated_noise.main([*flags, "--num_classes", "3", *figure])
    assert (tmp_path / "figure.png").is_file()

    def noise(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return markov_noise(mask, rng, 10, 0.2, 0.3)

    scores = []
    for index, clean in enumerate(classes):
        noisy = np.asarray(Image.open(tmp_path / "noisy" / f"{index}.png"))
        np.testing.assert_array_equal(noisy, class_noise(clean, file_generator(0, str(index)), noise, 3))
        for value in (1, 2):
            one, other = clean == value, noisy == value
            scores.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert f"against clean masks {np.mean(scores):.4f}" in capsys.readouterr().out
    assert json.loads((tmp_path / "noisy" / "settings.json").read_text())["num_classes"] == 3
    generate_simulated_noise.main([*flags, "--num_classes", "3"])
    assert "0 written, 3 already there" in capsys.readouterr().out
    assert "--num_classes must be in 2..255" in refusal(generate_simulated_noise.main, [*flags, "--num_classes", "1"])
