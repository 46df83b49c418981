"""Real Kvasir and Shenzhen images, where `conftest.REAL_DATA` has them; nothing of them is copied."""

import json
import math
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REAL_DATA, TRAIN_SCRIPT, block_segments, folder_cases, folder_source, load_program, loaded
from PIL import Image

from dataloaders.dataset_folder import find_dataset
from dataloaders.files import list_images, pair_by_stem, read_image, read_mask
from utils.engine.diagnostics import explained
from utils.masks.geometry import resize_image
from utils.masks.superpixels import slic_segments

pytestmark = pytest.mark.skipif(
    not (REAL_DATA / "Kvasir" / "images").is_dir() or not (REAL_DATA / "shenzhen" / "img").is_dir(),
    reason=f"no real images: {REAL_DATA} with Kvasir/ and shenzhen/ is not there",
)


def link_kvasir(root: Path, image_size: int, train: int = 16, test: int = 4) -> Path:
    """``root``/Kvasir: links to the first real images and masks, and blocks in place of superpixels."""
    folder = root / "Kvasir"
    for kind, count in (("images", train), ("masks", train), ("images_test", test), ("masks_test", test)):
        (folder / kind).mkdir(parents=True)
        for path in islice(sorted((REAL_DATA / "Kvasir" / kind).iterdir()), count):
            (folder / kind / path.name).symlink_to(path)
    (folder / "images_SLIC").mkdir()
    for path in (folder / "images").iterdir():
        np.save(folder / "images_SLIC" / f"{path.stem}.npy", block_segments(image_size, block=4))
    return folder


def test_kvasir_is_read_at_training_size(tmp_path):
    folder, layout = find_dataset(link_kvasir(tmp_path, 256).parent, "kvasir")
    data = loaded(folder_source(folder, "clean", 256, layout=layout))
    assert (data.images.shape, data.labels.shape) == ((16, 3, 256, 256), (16, 256, 256))
    assert data.labels.unique().tolist() == [0, 1]
    assert data.num_segments == 1 + 3 * (64 * 64 - 1)
    for name, image, label in zip(data.names, data.images, data.labels, strict=True):
        # The stored files have another size, so compare what resizing keeps: mean colour and the polyp's share.
        stored = np.asarray(Image.open(folder / "images" / f"{name}.jpg"))
        assert stored.shape[:2] != (256, 256)
        np.testing.assert_allclose(image.float().mean((1, 2)), stored.mean((0, 1)), atol=1)
        polyp = read_mask(folder / "masks" / f"{name}.png").labels.mean()
        assert 0 < polyp < 1 and abs(label.float().mean() - polyp) < 0.01

    cases = folder_cases(folder, 256, layout=layout)
    assert [case.image.shape for case in cases] == [(1, 3, 256, 256)] * 4
    assert all(case.masks.unique().tolist() == [0, 1] for case in cases)


@pytest.mark.parametrize(("images", "masks", "count"), [("img", "mask", 453), ("test_img", "test_mask", 113)])
def test_shenzhen_pairs_are_complete(images, masks, count, capsys):
    folder, layout = find_dataset(REAL_DATA, "Shenzhen")
    assert {images, masks} <= {layout.images, layout.masks, layout.images_test, layout.masks_test}
    pairs = pair_by_stem(list_images(folder / images), list_images(folder / masks), folder / masks)
    assert len(pairs) == count
    assert all(image.stem == mask.stem for image, mask in pairs)
    assert capsys.readouterr().err == ""


def test_shenzhen_test_set_is_read_whole():
    folder, layout = find_dataset(REAL_DATA, "shenzhen")
    cases = folder_cases(folder, 64, 1, layout=layout)
    shares = torch.stack([case.masks.float().mean() for case in cases])
    assert len(cases) == 113
    assert shares.min() > 0.02 and shares.max() < 0.6  # lungs, on every X-ray


@pytest.mark.parametrize(
    ("folder", "size", "count", "fitting"),
    [("Kvasir/images", 128, 256, 40), ("shenzhen/img", 128, 256, 40), ("Kvasir/images", 64, 1024, 30)],
)
def test_superpixels_follow_their_own_image_most_closely(folder, size, count, fitting):
    paths = islice(sorted((REAL_DATA / folder).iterdir()), 0, 200, 5)
    pictures = [resize_image(read_image(path), size) for path in paths]
    images = torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float()
    own = torch.from_numpy(np.stack([slic_segments(picture, count) for picture in pictures])).long()
    maps = (own, own.roll(1, dims=0), own.roll(2, dims=0))
    followed = [explained(images, segments, int(own.max()) + 1) for segments in maps]
    assert (followed[0] > followed[1]).sum() >= fitting
    assert 12 <= (followed[1] > followed[2]).sum() <= 28  # of those of others every second one, by chance


def test_one_epoch_on_kvasir(tmp_path, monkeypatch):
    data_root = link_kvasir(tmp_path / "data", 64).parent
    script = load_program(TRAIN_SCRIPT)
    arguments = (
        f"--datasets kvasir --noise_type given --tau 0.05 --data_root {data_root} --output_root {tmp_path / 'model'} "
        "--image_size 64 --batch_size 8 --max_epochs 1 --device cpu"
    )
    monkeypatch.setattr(sys, "argv", [TRAIN_SCRIPT.name, *arguments.split()])
    script.main()
    folder = tmp_path / "model" / "kvasir+gsd+given"
    result = json.loads((folder / "result.json").read_text())
    assert result["epochs"] == 1 and result["test_cases"] == 4
    assert math.isfinite(result["final_dice_mean"])
    assert (folder / "per_image.csv").read_text().count("\n") == 5
