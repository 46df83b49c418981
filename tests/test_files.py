"""Strict readers: every format that is read, and every file that must be refused by name."""

import io
import pickle
import unicodedata
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import blob, block_segments
from PIL import Image

from dataloaders.files import list_images, pair_by_stem, read_image, read_mask, read_segments
from utils.commands.errors import UserError

SHAPE = (40, 48)
PHOTO, MASK = blob(np.random.default_rng(0))
BINARY = (MASK > 0).astype(np.uint8)
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def palette_image(indices: np.ndarray, palette: list[int]) -> Image.Image:
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(palette)
    return image


def refusal(read: object, path: Path, *args: object) -> str:
    """The message of the `UserError` that reading must raise; it must name the file."""
    with pytest.raises(UserError) as caught:
        read(path, *args)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- Images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[..., 0]], ids=["rgb", "grey"])
def test_lossless_images_come_back_as_stored(tmp_path, suffix, pixels):
    read = read_image(save(tmp_path / f"a{suffix}", pixels))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels.reshape(*SHAPE, -1))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_images_come_back_nearly_as_stored(tmp_path, suffix):
    smooth = np.stack([np.linspace(20, 230, 48)[None].repeat(40, 0)] * 3, -1).astype(np.uint8)
    read = read_image(save(tmp_path / f"a{suffix}", smooth, quality=95))
    assert read.shape == (*SHAPE, 3)
    assert np.abs(read.astype(int) - smooth).max() <= 6


def test_alpha_is_dropped_from_an_image(tmp_path):
    rgba = np.dstack([PHOTO, np.full(SHAPE, 7, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), PHOTO)
    grey_alpha = Image.fromarray(PHOTO[..., 0]).convert("LA")
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.png", grey_alpha)), PHOTO[..., :1])


def test_palette_image_is_read_through_its_palette(tmp_path):
    colours = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    path = save(tmp_path / "a.png", palette_image(BINARY, colours.flatten().tolist()))
    np.testing.assert_array_equal(read_image(path), colours[BINARY])


def test_one_bit_image_is_grey(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(MASK).convert("1"))
    np.testing.assert_array_equal(read_image(path), MASK[..., None])


def test_channels_can_be_asked_for(tmp_path):
    grey = save(tmp_path / "grey.png", PHOTO[..., 0])
    np.testing.assert_array_equal(read_image(grey, channels=3), PHOTO[..., :1].repeat(3, axis=-1))
    assert read_image(save(tmp_path / "rgb.png", PHOTO), channels=1).shape == (*SHAPE, 1)


def test_image_is_turned_as_its_exif_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    path = save(tmp_path / "a.png", PHOTO, exif=exif.tobytes())
    np.testing.assert_array_equal(read_image(path), np.rot90(PHOTO, -1))


def test_multi_frame_tiff_is_refused(tmp_path):
    frames = [Image.fromarray(PHOTO)] * 3
    path = save(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert "3 frames" in refusal(read_image, path)
    assert "3 frames" in refusal(read_mask, path)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("content", [b"", b"not an image\n"], ids=["empty", "text"])
def test_file_that_is_no_image_is_refused(tmp_path, read, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "not a readable image" in refusal(read, path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_missing_file_is_refused(tmp_path, read):
    assert "no such file" in refusal(read, tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_truncated_file_is_refused_wherever_it_breaks_off(tmp_path, kind):
    whole = io.BytesIO()
    Image.fromarray(PHOTO).save(whole, kind)
    content = whole.getvalue()
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content)
    intact = read_image(path)
    # A JPEG may lose the few bytes after its last pixel; short of half of it, every format lacks pixels.
    for length in sorted({*range(min(len(content), 150)), *range(150, len(content), 97), len(content) - 20}):
        path.write_bytes(content[:length])
        if length < len(content) // 2:
            refusal(read_image, path)
        else:
            try:
                read = read_image(path)
            except UserError:
                continue
            np.testing.assert_array_equal(read, intact, err_msg=f"{length} of {len(content)} bytes")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_file_cut_in_the_middle_is_called_unreadable(tmp_path, kind):
    path = save(tmp_path / f"a.{kind.lower()}", PHOTO)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert "not a readable image" in refusal(read_image, path)


# --- Masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("pixels", [BINARY, MASK, MASK[..., None].repeat(3, -1)], ids=["01", "0255", "rgb"])
def test_binary_masks_are_read(tmp_path, suffix, pixels):
    mask = read_mask(save(tmp_path / f"a{suffix}", pixels))
    assert mask.labels.dtype == np.uint8
    assert not mask.artefacts
    np.testing.assert_array_equal(mask.labels, BINARY)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_mask_of_one_value_only(tmp_path, value):
    labels = read_mask(save(tmp_path / "a.png", np.full(SHAPE, value, np.uint8))).labels
    np.testing.assert_array_equal(labels, np.full(SHAPE, value > 0))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(MASK).convert("1"),
        palette_image(BINARY, [0, 0, 0, 200, 30, 30]),  # the indices are the classes, whatever their colours
        palette_image(MASK, [level for level in range(256) for _ in range(3)]),  # a palette of greys
        Image.fromarray(np.dstack([MASK] * 3 + [np.full(SHAPE, 255, np.uint8)])),
        Image.fromarray(MASK).convert("LA"),
        Image.fromarray(MASK.astype(np.uint16) * 257),
        Image.fromarray(BINARY.astype(np.uint16)),
    ],
    ids=["1-bit", "palette 0/1", "palette of greys", "RGBA", "LA", "16-bit 0/65535", "16-bit 0/1"],
)
def test_other_ways_to_store_a_binary_mask(tmp_path, image):
    mask = read_mask(save(tmp_path / "a.png", image))
    assert not mask.artefacts
    np.testing.assert_array_equal(mask.labels, BINARY)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("pixels", [MASK, 0 * MASK, 0 * MASK + 255], ids=["some", "nothing", "everything"])
def test_two_colours_that_a_program_reduced_a_mask_to(tmp_path, pixels, suffix):
    """The lighter colour may come first in the palette."""
    for number, reduced in enumerate(
        (
            Image.fromarray(pixels).quantize(2),
            Image.fromarray(pixels).convert("RGB").quantize(2),
            Image.fromarray(pixels).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=2),
            palette_image(pixels // 255, [0, 0, 0, 255, 255, 255]),
            palette_image(1 - pixels // 255, [255, 255, 255, 0, 0, 0]),
        )
    ):
        mask = read_mask(save(tmp_path / f"{number}{suffix}", reduced))
        assert not mask.artefacts
        np.testing.assert_array_equal(mask.labels, pixels > 0)


@pytest.mark.parametrize("cut", [1, 500, 1910])
def test_bmp_of_black_and_white_in_bytes(tmp_path, cut):
    """Which Pillow takes for bits."""
    path = save(tmp_path / "a.bmp", palette_image(BINARY, [0, 0, 0, 255, 255, 255]))
    with Image.open(path) as image:
        assert image.mode == "1" and not np.asarray(image).any()  # else this would test nothing
    np.testing.assert_array_equal(read_image(path)[..., 0], MASK)
    data = path.read_bytes()
    core = b"\x0c\0\0\0" + b"".join(data[i : i + 2] for i in (18, 22, 26, 28))  # the header of OS/2, and its palette
    (tmp_path / "core.bmp").write_bytes(data[:10] + b"\x20\0\0\0" + core + b"\0\0\0\xff\xff\xff" + data[62:])
    np.testing.assert_array_equal(read_image(tmp_path / "core.bmp")[..., 0], MASK)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "not a readable image" in refusal(read_image, path)


@pytest.mark.parametrize("colours", [[200, 30, 30, 40, 10, 10], [255, 0, 255, 0, 255, 0], [128, 128, 128, 200, 0, 0]])
def test_indices_count_where_no_colour_is_white(tmp_path, colours):
    path = save(tmp_path / "a.png", palette_image(BINARY, colours))
    np.testing.assert_array_equal(read_mask(path).labels, BINARY)


@pytest.mark.parametrize("colours", [[254, 254, 254, 0, 0, 0], [250, 255, 255, 3, 0, 10]])
def test_nearly_black_and_white_in_a_palette(tmp_path, colours):
    path = save(tmp_path / "a.png", palette_image(1 - BINARY, colours))
    np.testing.assert_array_equal(read_mask(path).labels, BINARY)


@pytest.mark.parametrize("indices", [BINARY, 0 * BINARY], ids=["both", "background"])
def test_palette_of_white_and_another_colour_is_ambiguous(tmp_path, indices):
    path = save(tmp_path / "a.png", palette_image(indices, [255, 255, 255, 200, 30, 30]))
    message = refusal(read_mask, path)
    assert "ambiguous mask" in message and "index 0 is white and index 1 is (200, 30, 30)" in message
    np.testing.assert_array_equal(read_mask(path, num_classes=3).labels, indices)


@pytest.mark.parametrize("pixels", [MASK, MASK[..., None].repeat(3, -1)], ids=["grey", "rgb"])
def test_mask_with_artefacts_of_jpeg_is_thresholded_and_says_so(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", pixels, quality=75)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2  # else this would test nothing
    mask = read_mask(path)
    assert mask.artefacts
    assert (mask.labels != BINARY).mean() < 0.01


def test_masks_with_artefacts_are_cut_between_127_and_128(tmp_path):
    row = np.array([0] * 20 + [2, 100, 127, 128, 180, 253] + [255] * 22, np.uint8)
    mask = read_mask(save(tmp_path / "a.png", row[None].repeat(40, 0)))
    assert mask.artefacts
    np.testing.assert_array_equal(mask.labels, (np.arange(48) >= 23)[None].repeat(40, 0))


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 1, 255), (0, 100), (0, 1, 2), (0, 254)], ids=str)
def test_ambiguous_levels_are_named(tmp_path, values):
    levels = np.array(values, np.uint8)[np.arange(48)[None].repeat(40, 0) * len(values) // 48]
    message = refusal(read_mask, save(tmp_path / "a.png", levels))
    assert "ambiguous" in message and "0/1 or 0/255" in message
    for value, share in zip(*np.unique(levels, return_counts=True), strict=True):
        assert f"{value} ({share / levels.size:.1%})" in message
    assert ("give --num_classes 3" in message) == (values == (0, 1, 2))


def test_many_levels_are_not_listed_one_by_one(tmp_path):
    for number, said in ((6, "5 (16.7%)"), (7, "found 7 values from 0 to 6")):
        message = refusal(
            read_mask, save(tmp_path / "a.png", np.arange(42 * 40, dtype=np.uint16).reshape(40, 42) % number)
        )
        assert said in message and f"give --num_classes {number}" in message


FOUR_LEVELS = [(0, 12, 34, 230), (0, 40, 200, 255), (0, 1, 2, 255), (0, 3, 200, 255), (0, 1, 254, 300)]


@pytest.mark.parametrize("values", FOUR_LEVELS, ids=str)
def test_four_levels_are_not_taken_for_lossy_compression(tmp_path, values):
    levels = np.array(values, np.uint16)[np.arange(48)[None].repeat(40, 0) * len(values) // 48]
    levels = levels.astype(np.uint8) if max(values) < 256 else levels
    assert "ambiguous" in refusal(read_mask, save(tmp_path / "a.png", levels))


def ellipse(height: int, width: int, rows: int, columns: int) -> np.ndarray:
    """A mask 0/255 whose foreground touches an edge of the image."""
    row, column = np.mgrid[:height, :width]
    inside = (row - 0.44 * height) ** 2 / rows**2 + (column - 0.6 * width) ** 2 / columns**2 < 1
    return inside.astype(np.uint8) * 255


def coded(image: Image.Image, kind: str, **options: object) -> Image.Image:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return Image.open(data)


LOSSY = {
    **{f"jpeg {q}": partial(coded, kind="JPEG", quality=q) for q in (5, 10, 30, 50, 75, 90, 95, 100)},
    **{f"webp {q}": partial(coded, kind="WEBP", quality=q) for q in (30, 50, 80, 90)},
    "jpeg 2000": lambda image: coded(image.convert("L"), "JPEG2000", quality_mode="rates", quality_layers=[60]),
    "doubled": lambda image: coded(image.resize((400, 320), Image.Resampling.BICUBIC), "JPEG", quality=50),
    "shrunk": lambda image: coded(image.resize((128, 128), Image.Resampling.BILINEAR), "JPEG", quality=50),
    "twice": lambda image: coded(coded(image, "JPEG", quality=30).crop((3, 3, 200, 160)), "JPEG", quality=30),
    "enlarged": lambda image: image.resize((1600, 1280), Image.Resampling.LANCZOS),  # all levels from 0 to 255
    "turned": lambda image: coded(coded(image, "JPEG", quality=95).rotate(7, Image.Resampling.BICUBIC), "JPEG"),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("code", LOSSY.values(), ids=LOSSY)
@pytest.mark.parametrize("size", [(40, 90), (15, 22)], ids=["large", "small"])
def test_masks_with_artefacts_of_lossy_compression(tmp_path, size, code, mode):
    image = Image.fromarray(ellipse(160, 200, *size))
    shown = np.asarray(code(image).convert("L"))
    mask = read_mask(save(tmp_path / "a.png", code(image.convert(mode)).convert(mode)))
    assert mask.artefacts and (mask.labels != (shown >= 128)).mean() < 0.001  # of RGB, another rounding to grey


def test_lossy_masks_of_nothing_but_a_rim_along_the_edge(tmp_path):
    """A seam along the edge of the image is no interior, though no more than half of it is seen."""
    values = np.zeros((60, 60), np.uint8)
    values[:, :30] = 255
    values[:2] = np.where(values[:2] == 255, 230, 20)
    values[30, 28:32] = (250, 190, 60, 5)
    assert read_mask(save(tmp_path / "a.png", values)).artefacts


def test_third_level_with_an_interior_is_ambiguous_even_in_a_jpeg(tmp_path):
    levels = np.repeat(np.array([0, 128, 255], np.uint8), 16)[None].repeat(40, 0)
    assert "ambiguous" in refusal(read_mask, save(tmp_path / "a.jpg", levels))


def test_photograph_in_place_of_a_mask_is_refused(tmp_path):
    assert "ambiguous" in refusal(read_mask, save(tmp_path / "a.png", PHOTO[..., 0]))


def test_colour_mask_is_refused(tmp_path):
    red = np.dstack([MASK, np.zeros_like(MASK), np.zeros_like(MASK)])
    assert "colour mask" in refusal(read_mask, save(tmp_path / "a.png", red))


def test_mask_in_a_colour_palette_of_many_entries_is_refused(tmp_path):
    image = palette_image(BINARY * 7, [0, 0, 0] * 7 + [200, 30, 30])
    assert "colour mask" in refusal(read_mask, save(tmp_path / "a.png", image))


@pytest.mark.parametrize("channels", [1, 3])
def test_mask_of_varying_transparency_is_refused(tmp_path, channels):
    pixels = np.dstack([np.full_like(MASK, 255)] * channels + [MASK])
    assert "transparency" in refusal(read_mask, save(tmp_path / "a.png", pixels))


def test_sixteen_bit_mask_of_other_values_is_refused(tmp_path):
    assert "ambiguous mask: found 0 (" in refusal(read_mask, save(tmp_path / "a.png", BINARY.astype(np.uint16) * 1000))


def test_three_class_masks(tmp_path):
    classes = (np.arange(48)[None].repeat(40, 0) // 16).astype(np.uint8)
    grey = save(tmp_path / "grey.png", classes)
    palette = save(tmp_path / "palette.png", palette_image(classes, [0, 0, 0, 200, 0, 0, 0, 0, 200]))
    for path in (grey, palette):
        np.testing.assert_array_equal(read_mask(path, num_classes=3).labels, classes)
    for pixels in (classes + 1, MASK):
        message = refusal(read_mask, save(tmp_path / "a.png", pixels), 3)
        assert "classes 0..2" in message and f"{pixels.max()} (" in message


# --- Listing and pairing ----------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return list_images(folder)


def test_images_are_listed_in_the_order_of_their_stems(tmp_path, capsys):
    found = touch(tmp_path, "b.PNG", "a.jpeg", "c.tif", "d.bmp", "settings.json", ".hidden.png", "Thumbs.db")
    assert list(found) == ["a", "b", "c", "d"]
    assert found["b"] == tmp_path / "b.PNG"
    assert capsys.readouterr().err == ""


def test_foreign_files_are_named_on_stderr(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert list(touch(tmp_path, "a.png", "notes.txt")) == ["a"]
    captured = capsys.readouterr()
    assert "notes.txt" in captured.err and "folder" in captured.err and str(tmp_path) in captured.err
    assert captured.out == ""


def test_two_files_of_one_stem_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.jpg and a\.png have the same stem"):
        touch(tmp_path, "a.png", "a.jpg")


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image in it"):
        touch(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="missing: no such folder"):
        list_images(tmp_path / "missing")


def test_files_are_paired_across_suffixes(tmp_path):
    images = touch(tmp_path / "images", "a.jpg", "b.png")
    masks = touch(tmp_path / "masks", "b.bmp", "a.png")
    pairs = pair_by_stem(images, masks, tmp_path / "masks")
    assert [(image.name, mask.name) for image, mask in pairs] == [("a.jpg", "a.png"), ("b.png", "b.bmp")]


def test_image_without_partner_is_named_with_the_most_similar_file(tmp_path):
    images = touch(tmp_path / "images", "case1.png", "case2.png")
    masks = touch(tmp_path / "masks", "case1_mask.png", "case2.png")
    with pytest.raises(UserError) as caught:
        pair_by_stem(images, masks, tmp_path / "masks")
    message = str(caught.value)
    assert str(tmp_path / "masks") in message and "1 of 2 images: case1.png" in message
    assert "most similar name there is case1_mask.png" in message


def test_names_that_only_look_the_same_are_told(tmp_path):
    images = touch(tmp_path / "images", unicodedata.normalize("NFC", "é4.png"))
    masks = touch(tmp_path / "masks", unicodedata.normalize("NFD", "é4.png"))
    with pytest.raises(UserError, match="stored in another Unicode form"):
        pair_by_stem(images, masks, tmp_path / "masks")


def test_partner_without_image_is_named(tmp_path):
    images = touch(tmp_path / "images", "a.png")
    masks = touch(tmp_path / "masks", "a.png", "stranger.png")
    with pytest.raises(UserError, match=r"stranger\.png without an image"):
        pair_by_stem(images, masks, tmp_path / "masks")


# --- Superpixels ------------------------------------------------------------------------------------------------------


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint64])
def test_superpixel_ids_above_255_survive(tmp_path, dtype):
    segments = np.arange(40 * 48).reshape(SHAPE)
    read = read_segments(saved(tmp_path / "a.npy", segments.astype(dtype)), SHAPE)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, segments)


@pytest.mark.parametrize("factor", [10_000, 10**12])
def test_sparse_large_ids_are_relabelled_without_merging(tmp_path, factor):
    segments = block_segments(32).astype(np.int64)
    read = read_segments(saved(tmp_path / "a.npy", segments * factor), (32, 32))
    assert read.max() < read.size
    ids = np.unique(segments)
    np.testing.assert_array_equal(ids[read], segments)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((40, 40), np.int32), r"shape (40, 40), expected (40, 48)"),
        (np.zeros((*SHAPE, 1), np.int32), r"shape (40, 48, 1)"),
        (np.full(SHAPE, -3), "negative superpixel id -3"),
        (np.full(SHAPE, np.nan), "NaN"),
        (np.full(SHAPE, np.inf), "infinite"),
        (np.zeros(SHAPE), "float64, expected whole numbers"),
        (np.zeros(SHAPE, bool), "bool, expected whole numbers"),
    ],
    ids=["shape", "axes", "negative", "NaN", "infinite", "float", "bool"],
)
def test_arrays_that_are_no_superpixels_are_refused(tmp_path, array, found):
    path = saved(tmp_path / "a.npy", array)
    message = refusal(read_segments, path, SHAPE)
    assert found in message and str(path) in message


def test_truncated_superpixels_are_refused_wherever_they_break_off(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros(SHAPE, np.int32))
    content = path.read_bytes()
    for length in (*range(0, 140, 3), len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert "not a readable .npy file" in refusal(read_segments, path, SHAPE)


def test_pickled_object_array_is_refused_and_not_run(tmp_path):
    witness = tmp_path / "witness"

    class Attack:
        def __reduce__(self):
            return Path.touch, (witness,)

    np.save(tmp_path / "array.npy", np.array([Attack()], object), allow_pickle=True)
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Attack()))
    for name in ("array.npy", "plain.npy"):
        refusal(read_segments, tmp_path / name, SHAPE)
    assert not witness.exists()


def test_archive_of_arrays_is_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, segments=np.zeros(SHAPE, np.int32))
    assert "ZIP archive" in refusal(read_segments, tmp_path / "a.npy", SHAPE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("values", "classes"), [((0, 255), 2), ((0, 1), 2), ((0, 65535), 2), ((0, 1, 2), 3)])
def test_sixteen_bit_colour_masks_are_read_in_full(tmp_path, suffix, values, classes):
    """Pillow would keep their upper eight bits, and with them nothing."""
    expected = np.arange(30).reshape(5, 6) % classes
    stored = np.array(values, np.uint16)[expected]
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), stored[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(read_mask(path, classes).labels, expected)


def test_sixteen_bit_colour_mask_of_a_third_level_is_refused(tmp_path):
    stored = np.array([0, 255, 510], np.uint16)[np.arange(60).reshape(6, 10) // 20]
    assert cv2.imwrite(str(tmp_path / "a.tif"), stored[..., None].repeat(3, axis=2))
    assert "510" in refusal(read_mask, tmp_path / "a.tif", 2)
