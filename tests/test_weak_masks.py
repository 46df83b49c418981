"""benchmarks/weak_masks.py: a few clean masks, and the predictions of a network that was trained on them."""

import json

import numpy as np
import pytest
from conftest import write_dataset
from PIL import Image

from benchmarks import weak_masks
from dataloaders.dataset_folder import find_parts, masks_folder
from dataloaders.datasets import Layout
from utils.commands.errors import UserError


def test_weak_masks_are_the_drawn_clean_ones_and_predictions(tmp_path, capsys):
    dataset = write_dataset(tmp_path / "data", "mine", train=10, test=2)
    flags = ["--data_root", str(tmp_path / "data"), "--datasets", "mine", "--share", "0.3", "--image_size", "32"]
    flags += ["--max_epochs", "1", "--device", "cpu", "--work_root", str(tmp_path / "work")]
    weak_masks.main(flags)
    said = capsys.readouterr().out
    pixels = {
        folder: {path.name: np.asarray(Image.open(path)) for path in (dataset / folder).glob("*.png")}
        for folder in ("masks", "masks_weak")
    }
    assert pixels["masks"].keys() == pixels["masks_weak"].keys()
    place = next((tmp_path / "work").iterdir())
    drawn = {path.name for path in (place / "data" / "mine" / "images").iterdir()}
    assert len(drawn) == 3 and f"3 of {len(pixels['masks'])} clean masks" in said
    assert {path.name for path in (place / "data" / "mine" / "masks").iterdir()} == drawn
    rates = []
    for name, weak in pixels["masks_weak"].items():
        predicted = np.asarray(Image.open(place / "predicted" / name))
        np.testing.assert_array_equal(weak, pixels["masks"][name] if name in drawn else predicted)
        rates.append((weak != pixels["masks"][name]).mean())
    assert f"{np.mean(rates):.4f} of their pixels wrong" in said and np.mean(rates) > 0
    assert json.loads((place / "mine+weak+clean" / "args.json").read_text())["method"] == "ce"

    with pytest.raises(UserError, match="--overwrite"):
        weak_masks.main([*flags, "--seed", "1"])
    parts = find_parts(
        dataset, Layout(), "given", masks=masks_folder(dataset, "masks_weak")
    )  # train_GSD-Net.py --masks
    assert len(parts.train) == 10


def test_the_draw_is_a_share_of_at_least_two_by_the_seed(tmp_path):
    dataset = write_dataset(tmp_path, train=10, test=2)
    place = tmp_path / "small"
    assert len(weak_masks.small_dataset(dataset, Layout(), 0.05, 0, place)) == 2
    four = weak_masks.small_dataset(dataset, Layout(), 0.4, 0, place)
    assert len(four) == 4 == len(list((place / "images").iterdir()))
    assert four == weak_masks.small_dataset(dataset, Layout(), 0.4, 0, place)
    assert four != weak_masks.small_dataset(dataset, Layout(), 0.4, 1, place)


@pytest.mark.parametrize("share", ["0", "1", "nan"])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(UserError, match="--share"):
        weak_masks.parse_args(["--datasets", "mine", "--share", share])
