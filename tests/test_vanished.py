"""Objects that are smaller than a pixel at the training size: named when they are read, and scored at their own."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import TRAIN_SCRIPT, assert_refused, call
from PIL import Image

from dataloaders.noisy_folder import class_shares
from scripts import evaluate, predict

SIZE = 16


def lesion(top, left, side, height=90, width=130, value=1):
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def test_a_class_that_vanishes_is_no_question_of_num_classes():
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    assert "--num_classes" in class_shares(labels, 2)
    assert "--num_classes" not in class_shares(labels, 2, {1}) and "class 1" in class_shares(labels, 2, {1})
    both = class_shares(labels, 3, {2})
    assert "in no mask: class 1 (is --num_classes 3" in both and "at this size: class 2" in both


@pytest.fixture
def folder(tmp_path):
    """Images of 130 x 90 with a lesion of 2 x 2, as ../eye photographs have it."""
    rng = np.random.default_rng(0)
    for kind, count in (("", 4), ("_test", 2)):
        for part in ("images", "masks"):
            (tmp_path / "data" / "eye" / f"{part}{kind}").mkdir(parents=True)
        for index in range(count):
            image, mask = rng.integers(100, 140, (90, 130, 3)).astype(np.uint8), lesion(0, 11 * index, 2, value=255)
            for part, pixels in (("images", image), ("masks", mask)):
                Image.fromarray(pixels).save(tmp_path / "data" / "eye" / f"{part}{kind}" / f"case{index}.png")
    return tmp_path / "data" / "eye"


pytestmark = pytest.mark.usefixtures("without_pictures")


def train(tmp_path, *flags):
    fixed = "--datasets eye --noise_type given --method ce --max_epochs 1 --batch_size 2 --device cpu"
    fixed += f" --amp fp32 --cache none --image_size {SIZE}"
    places = ("--data_root", tmp_path / "data", "--output_root", tmp_path / "model")
    return call(TRAIN_SCRIPT, *fixed.split(), *places, *flags), tmp_path / "model" / "eye+ce+given"


def test_a_lesion_that_vanishes_scores_the_same_in_training_and_by_evaluate(folder, tmp_path):
    outcome, trained = train(tmp_path)
    assert "of 4 training masks a class vanishes" in outcome.err and "case0" in outcome.err
    arguments = ["--checkpoint", trained / "checkpoint.pt", "--images_root", folder / "images_test", "--save_root"]
    predict.main([*map(str, (*arguments, tmp_path / "out")), "--device", "cpu", "--amp", "fp32"])
    arguments = ["--predictions", tmp_path / "out", "--masks", folder / "masks_test", "--save", tmp_path / "scores.csv"]
    evaluate.main([*map(str, arguments), "--workers", "1"])
    assert (trained / "per_image.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()
    with open(tmp_path / "scores.csv") as file:
        assert all(float(row["dice"]) < 0.01 and row["reference_pixels_class1"] == "4" for row in csv.DictReader(file))
    assert json.loads((trained / "result.json").read_text())["final_dice_mean"] < 0.01


def test_a_test_set_without_foreground_is_told_and_has_a_specificity(folder, tmp_path):
    for path in (folder / "masks_test").iterdir():
        Image.fromarray(np.zeros((90, 130), np.uint8)).save(path)
    outcome, trained = train(tmp_path)
    assert "none of the 2 test masks has foreground" in outcome.err
    result = json.loads((trained / "result.json").read_text())
    assert result["final_dice_mean"] is None and result["cases"]["dice"] == 0
    assert 0 <= result["final_specificity_class1_mean"] <= 1 and result["cases"]["specificity_class1"] == 2
    assert "2 references without class 1" in outcome.out


def test_no_epoch_is_chosen_by_masks_without_foreground(folder, tmp_path):
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((90, 130), np.uint8)).save(path)
    assert_refused(train(tmp_path, "--val_fraction", 0.5)[0], "--val_fraction")


def test_epochs_scored_by_an_older_rule_do_not_go_into_one_mean(folder, tmp_path):
    _, trained = train(tmp_path)
    (trained / "result.json").unlink()
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    del checkpoint["history"][0]["scored_at"]
    torch.save(checkpoint, trained / "checkpoint.pt")
    assert_refused(train(tmp_path, "--resume")[0], "--overwrite")
