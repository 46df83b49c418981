"""Images that EXIF data turn, with masks of the pixels as they are stored: never silently."""

from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, blob, load_program
from PIL import Image

from dataloaders.dataset_folder import check_size, find_dataset, find_parts
from dataloaders.orientation import as_stored, readings, turned_alone, turned_images_in_words, turned_in_words
from dataloaders.pixels import orientation_of, read_stored, turned
from utils.commands.errors import UserError
from utils.masks.edge_contrast import edge_contrast


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[274] = orientation
    image.save(path, exif=exif)
    return path


@pytest.fixture
def square() -> tuple[np.ndarray, np.ndarray]:
    """An image with an ellipse beside its middle, (64,64,3), and its mask."""
    image, mask = blob(np.random.default_rng(0), 64, 64)
    return np.roll(image, (9, -12), (0, 1)), np.roll(mask, (9, -12), (0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_the_orientation_is_that_by_which_images_are_turned(tmp_path, orientation, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3)).astype(np.uint8)
    path = save(tmp_path / f"a{suffix}", pixels, orientation)
    assert orientation_of(path) == orientation
    read = read_stored(path)
    np.testing.assert_array_equal(read, turned(pixels, orientation))
    np.testing.assert_array_equal(as_stored(read, path), pixels)


def test_the_orientation_may_stand_behind_the_pixels(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((4, 6), np.uint8), orientation=6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    path.write_bytes(data.replace(chunk, b"")[:-12] + chunk + data[-12:])  # the last 12 bytes end the file
    assert orientation_of(path) == 6 and read_stored(path).shape == (6, 4, 1)


def test_no_png_is_decoded_for_an_orientation_that_it_has_not(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", None)
    assert orientation_of(tmp_path / "a.png") == 1


def test_a_quarter_turn_by_hand():
    np.testing.assert_array_equal(turned(np.array([[1, 2, 3], [4, 5, 6]]), 6), [[4, 1], [5, 2], [6, 3]])
    np.testing.assert_array_equal(turned(np.array([[1, 2, 3], [4, 5, 6]]), 3), [[6, 5, 4], [3, 2, 1]])


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, value):
    assert orientation_of(save(tmp_path / "a.png", np.zeros((4, 6), np.uint8), value)) == 1


def test_edge_contrast_by_hand():
    image = np.zeros((40, 40, 1), np.uint8)
    image[:, 20:] = 100  # one edge, seen in 6 columns or so of 40
    on_it, beside = np.zeros((2, 40, 40), np.uint8)
    on_it[:, 20:] = 1
    beside[:, 8:] = 1
    assert edge_contrast(image, on_it) > 5
    assert edge_contrast(image, beside) == 0
    assert edge_contrast(image, np.zeros((40, 40), np.uint8)) == 1
    assert edge_contrast(np.zeros((40, 40, 1), np.uint8), on_it) == 1


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_the_reading_with_the_stronger_edges_is_found(tmp_path, square, orientation):
    image, mask = square
    photo = save(tmp_path / "images" / "a.png", image, orientation)
    stored = save(tmp_path / "masks" / "a.png", mask)
    drawn = save(tmp_path / "drawn" / "a.png", turned(mask, orientation))
    assert readings(photo, stored).stored > 1.5 * readings(photo, stored).turned
    assert readings(photo, drawn).turned > 1.5 * readings(photo, drawn).stored
    assert "stronger as stored" in turned_in_words([(photo, stored)])
    assert "stronger as turned" in turned_in_words([(photo, drawn)])


def test_a_mask_that_turns_with_its_image_is_no_matter(tmp_path, square):
    image, mask = square
    pair = save(tmp_path / "images" / "a.png", image, 6), save(tmp_path / "masks" / "a.png", mask, 6)
    assert turned_alone([pair]) == [] and turned_in_words([pair]) is None


def test_a_mask_that_turns_alone_is_warned_of(tmp_path, square):
    image, mask = square
    pair = save(tmp_path / "images" / "a.png", image), save(tmp_path / "masks" / "a.png", mask, 3)
    assert "stronger as stored" in turned_in_words([pair])


@pytest.fixture
def data(tmp_path) -> Path:
    """Four pairs, of which EXIF data turn two images by half a turn, and two test pairs, both by half a turn."""
    rng = np.random.default_rng(0)
    for part, count in (("", 4), ("_test", 2)):
        for index in range(count):
            image, mask = (np.roll(pixels, (9, -12), (0, 1)) for pixels in blob(rng, 64, 48))
            orientation = 3 if index % 2 == 0 or part else 1
            save(tmp_path / "mine" / f"images{part}" / f"case{index}.png", image, orientation)
            save(tmp_path / "mine" / f"masks{part}" / f"case{index}.png", mask)
    return tmp_path


def test_training_warns_of_half_turns(data, capsys):
    folder, layout = find_dataset(data, "mine")
    find_parts(folder, layout, "given")
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2
    for warning, part, found in zip(warnings, ("images", "images_test"), ("2 of 4", "2 of 2"), strict=True):
        for text in (str(folder / part), found, "case0.png", "as stored", "--orientation stored"):
            assert text in warning


def test_verification_warns_of_half_turns(data, capsys):
    script = load_program(REPO / "scripts" / "verify_data.py")
    script.main(["--datasets", "mine", "--data_root", str(data), "--workers", "1", "--details", "9"])
    out = capsys.readouterr().out
    assert "warning: masks: EXIF data turn 2 of 4" in out and "warning: masks_test: EXIF data turn 2 of 2" in out
    assert "warning: images/case2.png: EXIF orientation 3" in out and "warning: images/case1.png" not in out


def test_predict_says_which_images_are_turned(data):
    images = sorted((data / "mine" / "images").iterdir())
    text = turned_images_in_words(images)
    assert "2 of 4" in text and "case0.png, case2.png" in text
    assert turned_images_in_words(images[1:2]) is None


def test_a_size_error_says_when_the_stored_size_would_fit(tmp_path):
    image, mask = blob(np.random.default_rng(0), 64, 48)
    photo, drawn = save(tmp_path / "i" / "a.png", image, 6), save(tmp_path / "m" / "a.png", mask)
    with pytest.raises(UserError) as caught:
        check_size(drawn, mask, photo, read_stored(photo))
    assert all(text in str(caught.value) for text in (str(drawn), "64x48", "48x64", "--orientation stored"))
    assert "1 of 1 have the size of their masks only as stored" in turned_in_words([(photo, drawn)])
    with pytest.raises(UserError) as caught:
        check_size(drawn, mask[:40], photo, read_stored(photo))
    assert "orientation" not in str(caught.value)
