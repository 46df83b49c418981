"""Folder datasets: which folders are read, what comes out, and what is refused with which remedy."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import block_segments, folder_cases, folder_source, loaded, write_dataset
from PIL import Image

from dataloaders.dataset_folder import find_dataset, find_parts, masks_folder
from dataloaders.datasets import FOLDERS, NOISE_TYPES, Layout
from dataloaders.noisy_folder import training_source
from utils.commands.errors import UserError
from utils.masks.geometry import resize_label, squared_boundary_distance

SIZE = 32
SHRUNK = "masks_200_0.2_0.05_0.2_mask_channel0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of 5 training and 2 test images of 48x40 pixels, with superpixels at 32."""
    return write_dataset(tmp_path, train=5, test=2, image_size=SIZE)


def load(folder: Path, noise_type: str = "clean", image_size: int = SIZE, **options: int):
    return loaded(folder_source(folder, noise_type, image_size, **options))


def refusal(*args, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(*args, **options)
    return str(caught.value)


# --- Finding the dataset ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Kvasir", "kvasir", "KVASIR"])
def test_dataset_is_found_whatever_its_case(folder, name):
    assert find_dataset(folder.parent, name) == (folder, Layout())


@pytest.mark.parametrize("name", ["shenzhen", "BUSUC"])
def test_known_datasets_have_layouts_of_their_own(tmp_path, name):
    (tmp_path / name.swapcase()).mkdir()
    found, layout = find_dataset(tmp_path, name)
    assert found == tmp_path / name.swapcase()
    assert layout is FOLDERS[name.lower()].layout


def test_unknown_dataset_names_the_folders_there_are(folder):
    (folder.parent / "mine").mkdir()
    with pytest.raises(UserError, match=r"--datasets other: .*which holds Kvasir, mine"):
        find_dataset(folder.parent, "other")


def test_missing_and_empty_data_root(tmp_path):
    with pytest.raises(UserError, match=r"--data_root .*missing: no such folder"):
        find_dataset(tmp_path / "missing", "kvasir")
    with pytest.raises(UserError, match="which holds no folder"):
        find_dataset(tmp_path, "kvasir")


def test_folders_that_differ_in_case_only(tmp_path):
    for name in ("mine", "MINE"):
        (tmp_path / name).mkdir()
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    assert find_dataset(tmp_path, "mine")[0] == tmp_path / "mine"
    with pytest.raises(UserError, match="several folders match: MINE, mine"):
        find_dataset(tmp_path, "Mine")


def test_folder_of_masks_is_that_of_the_dataset_first(folder, tmp_path, monkeypatch):
    started = tmp_path / "started"
    (started / "masks").mkdir(parents=True)
    (started / "mine").mkdir()
    monkeypatch.chdir(started)
    assert masks_folder(folder, "masks") == folder / "masks"
    assert masks_folder(folder, "mine").resolve() == started / "mine"
    assert masks_folder(folder, str(started / "masks")) == started / "masks"
    with pytest.raises(UserError, match="--masks other"):
        masks_folder(folder, "other")


# --- What is read -----------------------------------------------------------------------------------------------------


def test_training_set_holds_every_file_in_order(folder):
    data = load(folder)
    assert data.names == tuple(f"case{i:02}" for i in range(5))
    assert (data.images.shape, data.images.dtype) == ((5, 3, SIZE, SIZE), torch.uint8)
    assert (data.labels.shape, data.labels.dtype) == ((5, SIZE, SIZE), torch.uint8)
    for name, label, squared in zip(data.names, data.labels.numpy(), data.squared_distances.numpy(), strict=True):
        stored = Image.open(folder / "masks" / f"{name}.png")
        # The ellipse keeps its share of the image when that is resized.
        assert abs(label.mean() - np.mean(np.asarray(stored) > 0)) < 0.03
        np.testing.assert_array_equal(squared, squared_boundary_distance(label))
    np.testing.assert_array_equal(data.segments, np.stack([block_segments(SIZE)] * 5))


def test_number_of_segments_is_above_every_id_of_every_image(folder):
    segments = np.zeros((SIZE, SIZE), np.int32)
    segments[3, 4] = 1000
    np.save(folder / "images_SLIC" / "case03.npy", segments)
    assert load(folder).num_segments == 1001


@pytest.mark.parametrize("image_size", [16, 48, 65])
def test_images_of_any_size_are_resized(folder, image_size):
    Image.new("RGB", (77, 33), (255, 0, 0)).save(folder / "images" / "case01.png")
    Image.new("L", (77, 33), 255).save(folder / "masks" / "case01.png")
    for path in (folder / "images_SLIC").iterdir():
        np.save(path, block_segments(image_size))
    data = load(folder, image_size=image_size)
    assert data.images.shape == (5, 3, image_size, image_size)
    assert data.labels.shape == data.segments.shape == (5, image_size, image_size)
    assert data.labels.unique().tolist() == [0, 1]
    assert data.labels[1].all() and data.images[1].flatten(1).float().mean(1).tolist() == [255, 0, 0]


def test_grey_images_stay_grey(folder):
    for path in (*(folder / "images").iterdir(), *(folder / "images_test").iterdir()):
        Image.open(path).convert("L").save(path)
    assert load(folder).images.shape == (5, 1, SIZE, SIZE)


def test_masks_with_compression_artefacts_are_named(folder, capsys):
    """Those to train on and those to score on, the folder, and no other."""
    load(folder)
    folder_cases(folder, SIZE)
    assert "thresholded" not in capsys.readouterr().out
    for kind, names in (("masks", ("case01", "case03")), ("masks_test", ("case00",))):
        clean = load(folder).labels, folder_cases(folder, SIZE)[0].masks
        for name in names:
            path = folder / kind / f"{name}.png"
            Image.open(path).save(path.with_suffix(".jpg"), quality=90)
            path.unlink()
        capsys.readouterr()
        artefacts = load(folder).labels, folder_cases(folder, SIZE)[0].masks
        assert all((one != other).float().mean() < 0.01 for one, other in zip(clean, artefacts, strict=True))
    said = [line for line in capsys.readouterr().out.splitlines() if "compression artefacts" in line]
    assert any(str(folder / "masks_test") in line and "1 masks: case00.jpg" in line for line in said)
    assert any("2 masks: case01.jpg, case03.jpg" in line for line in said)


def test_three_classes(folder):
    classes = (np.arange(48)[None].repeat(40, 0) // 16).astype(np.uint8)
    for kind in ("masks", "masks_test"):
        for path in (folder / kind).iterdir():
            Image.fromarray(classes).save(path)
    assert load(folder, num_classes=3).labels.unique().tolist() == [0, 1, 2]
    assert folder_cases(folder, SIZE, num_classes=3)[0].masks.unique().tolist() == [0, 1, 2]
    assert "ambiguous" in refusal(folder, num_classes=2)


def test_test_cases_have_one_slice_and_one_rater(folder):
    cases = folder_cases(folder, SIZE)
    assert [case.name for case in cases] == ["case00", "case01"]
    for case in cases:
        assert (case.image.shape, case.image.dtype) == ((1, 3, SIZE, SIZE), torch.uint8)
        assert (case.masks.shape, case.masks.dtype) == ((1, 1, 40, 48), torch.uint8)
        assert case.masks.unique().tolist() == [0, 1]
        # The drawn ellipse is brighter than its ground: image and mask belong together.
        red, inside = case.image[0, 0].float(), torch.from_numpy(resize_label(case.masks[0, 0].numpy(), SIZE)).bool()
        assert red[inside].mean() > red[~inside].mean() + 50


def test_test_images_take_the_channels_of_the_training_images(folder):
    assert folder_cases(folder, SIZE, channels=1)[0].image.shape == (1, 1, SIZE, SIZE)


@pytest.mark.parametrize("noise_type", NOISE_TYPES)
@pytest.mark.parametrize("name", ["Kvasir", "shenzhen", "BUSUC"])
def test_each_noise_type_reads_its_folder(folder, name, noise_type):
    images, masks, test_images, test_masks, noisy = {
        "Kvasir": ("images", "masks", "images_test", "masks_test", (SHRUNK, SHRUNK.replace("0.2_", "0.8_", 1))),
        "shenzhen": ("img", "mask", "test_img", "test_mask", ("mask_200_0.2_0.05_0.2", "mask_200_0.8_0.05_0.2")),
        "BUSUC": ("images", "masks", "images_test", "masks_test", ("masks_200_0.2_0.05_0.2", "masks_200_0.8_0.05_0.2")),
    }[name]
    target = folder.with_name(f"layout_{name}") / name
    for source, renamed in (
        ("images", images),
        ("images_test", test_images),
        ("masks_test", test_masks),
        ("images_SLIC", "images_SLIC"),
    ):
        shutil.copytree(folder / source, target / renamed)
    # Only the folder that this noise type should read is there; the first row of its masks is marked as foreground.
    wanted = {"clean": masks, "given": masks, "02": noisy[0], "08": noisy[1], "DE": f"{masks}_DE"}[noise_type]
    (target / wanted).mkdir()
    for path in (folder / "masks").iterdir():
        pixels = np.asarray(Image.open(path)).copy()
        pixels[:2] = 255
        Image.fromarray(pixels).save(target / wanted / path.name)
    dataset, layout = find_dataset(target.parent, name)
    assert loaded(folder_source(dataset, noise_type, SIZE, layout=layout)).labels[:, 0].all()
    assert len(folder_cases(dataset, SIZE, layout=layout, noise_type=noise_type)) == 2


def test_a_training_mask_with_compression_artefacts_is_named(folder, capsys):
    path = folder / "masks" / "case02.png"
    Image.open(path).save(path.with_suffix(".jpg"), quality=60)
    path.unlink()
    load(folder)
    captured = capsys.readouterr()
    assert "case02.jpg" in captured.out + captured.err


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_type", ["02", "08", "DE"])
def test_missing_noise_folder_names_the_command_that_makes_it(folder, noise_type):
    message = refusal(folder, noise_type)
    assert str(folder / Layout().training_masks(noise_type)) in message
    assert "scripts/generate_simulated_noise.py" in message


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_missing_training_folder_is_named(folder, missing):
    shutil.rmtree(folder / missing)
    assert f"{folder / missing}: no such folder" in refusal(folder)


@pytest.mark.parametrize("missing", ["images_test", "masks_test"])
def test_missing_test_folder_is_named(folder, missing):
    shutil.rmtree(folder / missing)
    with pytest.raises(UserError) as caught:
        folder_cases(folder, SIZE)
    assert f"{folder / missing}: no such folder" in str(caught.value)


def test_superpixels_that_do_not_vote_are_not_read(folder):
    shutil.rmtree(folder / "images_SLIC")
    pairs = find_parts(folder, Layout(), "clean").train
    data = loaded(training_source(pairs, None, SIZE, 3))
    assert not data.segments.any() and data.num_segments == 1 and not (folder / "images_SLIC").exists()


def test_superpixels_of_another_size_are_refused(folder):
    message = refusal(folder, image_size=64)
    assert str(folder / "images_SLIC" / "case00.npy") in message
    assert "(32, 32), expected (64, 64)" in message and "--slic_root" in message


def test_image_without_mask_is_named(folder):
    (folder / "masks" / "case03.png").unlink()
    message = refusal(folder)
    assert str(folder / "masks") in message and "1 of 5 images: case03.png" in message


def test_mask_without_image_is_named(folder):
    (folder / "images_test" / "case01.png").unlink()
    with pytest.raises(UserError, match=r"case01\.png without an image"):
        folder_cases(folder, SIZE)


def test_mask_of_another_size_than_its_image_is_refused(folder):
    path = folder / "masks" / "case01.png"
    Image.new("L", (40, 48)).save(path)
    message = refusal(folder)
    assert str(path) in message and "40x48 pixels for case01.png of 48x40" in message


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_broken_file_among_good_ones_is_named(folder, kind):
    path = folder / kind / "case04.png"
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path}: not a readable image" in refusal(folder)
