"""scripts/predict.py as its users meet it: checkpoint and images in, masks out, messages, exit codes."""

import csv
import errno
import json
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, assert_refused, blob, call, load_program, run_script, write_dataset
from PIL import Image
from torch.nn import functional as F

from networks.build import networks_of
from networks.unet import two_unets
from scripts import evaluate, predict
from utils.commands.files import claimed
from utils.engine.checkpoint import FORMAT
from utils.engine.inference import load_model
from utils.engine.intensity import Intensity
from utils.engine.run_folder import Run
from utils.masks.geometry import resize_image

SIZE = 32


def checkpoint_of(path, channels=3, num_classes=2, **changes):
    """Write a checkpoint of two untrained networks as training would; ``changes`` replace its entries."""
    networks = two_unets(channels, num_classes, seed=0).eval()
    image = torch.from_numpy(picture(SIZE, SIZE)[..., 0]).expand(1, channels, SIZE, SIZE)
    with torch.no_grad():  # head scaled and shifted so that the classes share the image among them
        for network in networks:
            logits = network((image / 255 - 0.4) / 0.2)
            std, mean = torch.std_mean(logits, dim=(0, 2, 3))
            network.head.weight.div_(std[:, None, None, None])
            network.head.bias.sub_(mean).div_(std)
    contents = {
        "format": FORMAT,
        "epoch": 3,
        "networks": networks.state_dict(),
        "args": {"image_size": SIZE, "num_classes": num_classes, "method": "gsd"},
        "model": {
            "in_channels": channels,
            "num_classes": num_classes,
            "intensity": {"mean": (0.4,) * channels, "std": (0.2,) * channels},
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(contents | changes, path)
    return path


def picture(height=40, width=48, channels=3, seed=0):
    """A coloured or grey blob, uint8 (height,width,3) or (height,width)."""
    image = blob(np.random.default_rng(seed), width, height)[0]
    return image if channels == 3 else image[..., 0]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def checkpoint(tmp_path):
    return checkpoint_of(tmp_path / "model" / "checkpoint.pt")


@pytest.fixture
def images(tmp_path):
    """Three colour images of different sizes and kinds."""
    save(tmp_path / "images" / "a.png", picture(40, 48))
    save(tmp_path / "images" / "b.two.JPG", picture(75, 33, seed=1))
    save(tmp_path / "images" / "c.bmp", picture(20, 90, seed=2))
    return tmp_path / "images"


@pytest.fixture
def run(checkpoint, images, tmp_path):
    """predict.py on these, into tmp_path/out, with more flags; later flags win."""

    def call_it(*flags):
        flags = ("--device", "cpu", "--amp", "fp32", "--workers", 2, *flags)
        places = ("--checkpoint", checkpoint, "--images_root", images, "--save_root", tmp_path / "out")
        return call(predict.main, *places, *flags)

    return call_it


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# --- What is written --------------------------------------------------------------------------------------------------


def test_masks_have_the_sizes_and_stems_of_the_images(run, tmp_path):
    code, out, _ = run("--batch_size", 2)
    assert code == 0 and "3 of 3 images" in out
    assert names(tmp_path / "out") == ["a.png", "b.two.png", "c.png", "settings.json"]
    masks = [pixels(tmp_path / "out" / f"{stem}.png") for stem in ("a", "b.two", "c")]
    assert [mask.shape for mask in masks] == [(40, 48), (75, 33), (20, 90)]
    assert all(mask.dtype == np.uint8 for mask in masks)
    assert {value for mask in masks for value in np.unique(mask)} == {0, 255}


@pytest.mark.parametrize("classes", [2, 3])
def test_training_and_evaluate_give_one_number(tmp_path, monkeypatch, classes):
    """per_image.csv of a run is what evaluate.py makes of predict.py's masks by its checkpoint alone: of images that
    are not square, of several sizes, not that of training; one is empty, one lacks a class."""
    script = load_program(TRAIN_SCRIPT)
    folder = write_dataset(tmp_path / "data", test=0)
    rng = np.random.default_rng(5)
    for path in sorted((folder / "masks").iterdir()):
        save(path, coloured(pixels(path), classes))
    for index, (width, height) in enumerate([(48, 40), (31, 57), (90, 64), (70, 33)]):
        image, mask = blob(rng, width, height)
        mask = np.zeros_like(mask) if index == 1 else mask
        save(folder / "images_test" / f"case{index}.png", image)
        save(folder / "masks_test" / f"case{index}.png", mask // 255 if index == 2 else coloured(mask, classes))
    flags = "--datasets kvasir --noise_type given --tau 0.1 --image_size 32 --max_epochs 6 --learning_rate 0.05 "
    flags += "--batch_size 4 --device cpu --amp fp32 --method ce --cache none "
    flags += f"--num_classes {classes}"
    places = ["--data_root", str(tmp_path / "data"), "--output_root", str(tmp_path / "model")]
    monkeypatch.setattr(sys, "argv", ["train", *flags.split(), *places])
    monkeypatch.setattr(Run, "draw", lambda run, panels: None)
    script.main()
    trained = tmp_path / "model" / "kvasir+ce+given"
    moved = (trained / "checkpoint.pt").rename(tmp_path / "alone.pt")

    out = tmp_path / "out"
    places = ("--checkpoint", moved, "--images_root", folder / "images_test", "--save_root", out)
    flags = ("--device", "cpu", "--amp", "fp32", "--batch_size", 3)  # not that of training
    assert call(predict.main, *places, *flags)[0] == 0
    flags = ("--predictions", out, "--masks", folder / "masks_test", "--save", tmp_path / "scores.csv", "--workers", 1)
    assert call(evaluate.main, *flags, "--num_classes", classes)[0] == 0
    assert (trained / "per_image.csv").read_bytes() == (tmp_path / "scores.csv").read_bytes()
    with open(tmp_path / "scores.csv") as scores:
        rows = list(csv.DictReader(scores))
    assert [row["dice"] == "" for row in rows] == [False, True, False, False]
    assert any(0.2 < float(row["dice"] or 0) < 1 for row in rows)  # not the trivial cases
    result = json.loads((trained / "result.json").read_text())
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert result["last_epoch"] == summary["mean"] and result["cases"] == summary["cases"]
    assert result["scored_at"] == "mask size"


def coloured(mask, classes):
    """A mask of 0 and 255 for two classes; for three its left half as class 1 and its right half as class 2."""
    if classes == 2:
        return mask
    return np.where(np.arange(mask.shape[1]) < mask.shape[1] // 2, mask // 255, mask // 255 * 2).astype(np.uint8)


def test_class_is_the_argmax_of_the_mean_logits_resized(run, checkpoint, images, tmp_path):
    assert run("--probabilities_root", tmp_path / "prob")[0] == 0
    networks = networks_of(torch.load(checkpoint, weights_only=True))
    # Resized as training resizes it; everything after that is done here anew.
    resized = torch.from_numpy(resize_image(pixels(images / "a.png"), SIZE)).movedim(-1, 0).float()
    with torch.no_grad():
        logits = sum(network((resized[None] / 255 - 0.4) / 0.2) for network in networks) / 2
    logits = F.interpolate(logits, (40, 48), mode="bilinear", align_corners=False)[0]
    probabilities = np.load(tmp_path / "prob" / "a.npy", allow_pickle=False)
    assert probabilities.dtype == np.float16 and probabilities.shape == (2, 40, 48)
    np.testing.assert_allclose(probabilities, logits.softmax(0), atol=1e-3)
    clear = (logits[1] - logits[0]).abs().numpy() > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal((pixels(tmp_path / "out" / "a.png") == 255)[clear], logits.argmax(0).numpy()[clear])


def test_more_classes_are_written_as_their_numbers(run, tmp_path):
    checkpoint = checkpoint_of(tmp_path / "four.pt", num_classes=4)
    assert run("--checkpoint", checkpoint, "--probabilities_root", tmp_path / "prob")[0] == 0
    values = set()
    for stem in ("a", "b.two", "c"):
        mask, probabilities = pixels(tmp_path / "out" / f"{stem}.png"), np.load(tmp_path / "prob" / f"{stem}.npy")
        assert probabilities.shape == (4, *mask.shape)
        best = np.take_along_axis(probabilities, mask[None].astype(int), axis=0)[0]
        assert (best == probabilities.max(axis=0)).all()
        values |= set(np.unique(mask))
    assert values <= {0, 1, 2, 3} and len(values) > 1


def test_one_file(run, images, tmp_path):
    assert run("--images_root", images / "b.two.JPG")[0] == 0
    assert names(tmp_path / "out") == ["b.two.png", "settings.json"]
    assert run()[0] == 0  # the rest, by the same checkpoint, into the same folder


def test_no_mask_is_left_of_an_image_that_cannot_be_read_any_more(run, images, tmp_path):
    more = ("--probabilities_root", tmp_path / "prob", "--overlays_root", tmp_path / "overlays")
    assert run(*more)[0] == 0
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:99])
    code, _, err = run(*more)
    assert code == 1 and "a.png" in err
    assert names(tmp_path / "out") == names(tmp_path / "overlays") == ["b.two.png", "c.png", "settings.json"]
    assert names(tmp_path / "prob") == ["b.two.npy", "c.npy", "settings.json"]


def test_masks_of_images_that_are_not_there_are_named_and_kept(run, images, tmp_path):
    assert run()[0] == 0
    (images / "a.png").unlink()
    code, out, _ = run()
    assert code == 0 and f"note: {tmp_path / 'out'}: 1 files" in out and "there: a.png" in out
    assert names(tmp_path / "out") == ["a.png", "b.two.png", "c.png", "settings.json"]
    assert "other images" not in run("--images_root", images / "c.bmp")[1]  # one image by one is no reason


def test_batches_and_workers_change_nothing(run, tmp_path):
    assert run("--batch_size", 1, "--workers", 1)[0] == 0
    assert run("--batch_size", 7, "--workers", 5, "--save_root", tmp_path / "other")[0] == 0
    for stem in ("a", "b.two", "c"):
        differs = pixels(tmp_path / "out" / f"{stem}.png") != pixels(tmp_path / "other" / f"{stem}.png")
        assert differs.mean() < 0.01  # sums may be taken in another order


def test_overlays_show_the_outlines_of_the_prediction_and_of_known_masks(run, images, tmp_path):
    """Enlarged, with a legend below; masks that are not there are not drawn."""
    save(tmp_path / "masks" / "a.png", np.eye(40, 48, dtype=np.uint8) * 255)
    white = []
    for flags in ((), ("--masks_root", tmp_path / "masks")):
        assert run("--overlays_root", tmp_path / "overlays", *flags)[0] == 0
        assert names(tmp_path / "overlays") == ["a.png", "b.two.png", "c.png", "settings.json"]
        drawn, image = pixels(tmp_path / "overlays" / "a.png"), pixels(images / "a.png")
        times = drawn.shape[1] // image.shape[1]
        part = drawn[: image.shape[0] * times]
        assert len(drawn) > len(part) and part.shape[:2] == (40 * times, 48 * times)
        large = image.repeat(times, 0).repeat(times, 1)
        mask = (pixels(tmp_path / "out" / "a.png") == 255).repeat(times, 0).repeat(times, 1)
        yellow = (part == (255, 230, 26)).all(axis=-1)
        assert yellow.any() and not yellow[~mask].any()
        assert (part == large).all(axis=-1).mean() > 0.5
        white.append(((part == 255).all(axis=-1) & (large != 255).any(axis=-1)).any())
    assert white == [False, True]


def test_masks_for_overlays_that_do_not_fit(run, images, tmp_path):
    """The image is left out and named, and so is the mask; the flag without overlays has no effect."""
    save(tmp_path / "masks" / "a.png", np.zeros((9, 9), np.uint8))
    flags = ("--masks_root", tmp_path / "masks")
    code, _, err = run("--overlays_root", tmp_path / "overlays", *flags)
    assert code == 1 and str(tmp_path / "masks" / "a.png") in err and "Traceback" not in err
    assert names(tmp_path / "out") == ["b.two.png", "c.png", "settings.json"]
    code, _, err = run(*flags)
    assert code == 2 and "--masks_root" in err and "--overlays_root" in err


def test_grey_images(run, tmp_path):
    checkpoint = checkpoint_of(tmp_path / "grey.pt", channels=1)
    save(tmp_path / "grey" / "x.png", picture(channels=1))
    flags = ("--checkpoint", checkpoint, "--images_root", tmp_path / "grey", "--overlays_root", tmp_path / "overlays")
    assert run(*flags)[0] == 0
    assert pixels(tmp_path / "out" / "x.png").shape == (40, 48)
    assert pixels(tmp_path / "overlays" / "x.png").shape[1:] == (48 * 9, 3)  # enlarged until it is 400 pixels long


def test_grey_among_colour(run, images, tmp_path):
    """Left out and named, unless the run took grey for colour."""
    save(images / "grey.png", picture(channels=1))
    code, _, err = run()
    assert code == 1 and f"{images / 'grey.png'}: 1 channel, " in err
    assert "grey.png" not in names(tmp_path / "out") and "a.png" in names(tmp_path / "out")
    settings = {"image_size": SIZE, "channels": 3}
    mixed = ("--checkpoint", checkpoint_of(tmp_path / "mixed.pt", args=settings), "--save_root", tmp_path / "out2")
    assert run(*mixed)[0] == 0 and "grey.png" in names(tmp_path / "out2")
    save(tmp_path / "grey" / "x.png", picture(channels=1))
    assert run(*mixed, "--images_root", tmp_path / "grey")[0] == 0  # nor need there be colour


def test_deep_images_are_scaled_and_said_to_be(run, tmp_path):
    checkpoint = checkpoint_of(tmp_path / "grey.pt", channels=1)
    deep = picture(channels=1).astype(np.uint16)
    save(tmp_path / "deep" / "x.png", deep * 7 + 3000)
    save(tmp_path / "brighter" / "x.png", deep * 70 + 3000)
    for name in ("deep", "brighter"):
        flags = ("--images_root", tmp_path / name, "--save_root", tmp_path / f"{name} out")
        code, out, _ = run("--checkpoint", checkpoint, *flags)
        assert code == 0 and "deeper than 8 bits (x.png)" in out and "not recorded" in out
    masks = [pixels(tmp_path / f"{name} out" / "x.png") for name in ("deep", "brighter")]
    assert masks[0].any() and (masks[0] != masks[1]).mean() < 0.01


def test_arrays_of_many_channels(run, tmp_path):
    checkpoint = checkpoint_of(tmp_path / "five.pt", channels=5)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", np.random.default_rng(0).integers(0, 256, (40, 48, 5), dtype=np.uint8))
    flags = ("--checkpoint", checkpoint, "--images_root", tmp_path / "arrays", "--overlays_root", tmp_path / "overlays")
    assert run(*flags)[0] == 0
    assert pixels(tmp_path / "out" / "x.png").shape == (40, 48)
    assert pixels(tmp_path / "overlays" / "x.png").shape[1:] == (48 * 9, 3)  # enlarged until it is 400 pixels long


def test_turned_views_are_turned_back(checkpoint):
    """Networks that see an image in all eight positions cannot tell in which they were given it."""
    model = load_model(checkpoint, torch.device("cpu"), "fp32")
    image = torch.from_numpy(picture(SIZE, SIZE)).movedim(-1, 0)[None]
    once, mean = model.logits(image), model.logits(image, tta=True)
    assert (once - mean).abs().max() > 0.01
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.rot90(1, (-2, -1)), lambda t: t.mT):
        torch.testing.assert_close(model.logits(turn(image), tta=True), turn(mean), atol=1e-4, rtol=1e-4)
        assert (model.logits(turn(image)) - turn(once)).abs().max() > 0.01
    views = [(image.flip(-1) if f else image).rot90(q, (-2, -1)) for f in (0, 1) for q in range(4)]
    by_hand = [model.logits(view).rot90(-(i % 4), (-2, -1)) for i, view in enumerate(views)]
    by_hand = torch.stack([logits.flip(-1) if i >= 4 else logits for i, logits in enumerate(by_hand)]).mean(dim=0)
    torch.testing.assert_close(mean, by_hand, atol=1e-4, rtol=1e-4)


def test_tta_flag(run, tmp_path):
    assert run("--probabilities_root", tmp_path / "p")[0] == 0
    other = ("--save_root", tmp_path / "out2", "--probabilities_root", tmp_path / "p2")
    assert run("--tta", *other)[0] == 0
    assert np.abs(np.load(tmp_path / "p" / "a.npy") - np.load(tmp_path / "p2" / "a.npy")).max() > 0.01


def test_reading_stays_a_few_images_ahead(checkpoint, images, monkeypatch):
    """However many images there are, few are in memory: those of a batch, and those that the threads have in hand."""
    unwritten, most = [0], [0]
    healthy = predict.read

    def counted(path, model):
        unwritten[0] += 1
        most[0] = max(most[0], unwritten[0])
        return healthy(path, model)

    def written(*_, **__):
        unwritten[0] -= 1

    monkeypatch.setattr(predict, "read", counted)
    monkeypatch.setattr(predict, "write", written)
    for index in range(57):
        save(images / f"more{index}.png", picture(16, 16))
    out = images.parent / "out"
    flags = ("--checkpoint", checkpoint, "--images_root", images, "--save_root", out, "--device", "cpu")
    predict.main([*map(str, flags), "--batch_size", "4", "--workers", "2"])
    assert unwritten[0] == 0 and 4 <= most[0] <= 4 + (4 + 2) + (2 + 1)


def test_path_with_spaces_and_letters_of_other_alphabets(run, tmp_path):
    folder = tmp_path / "мои снимки é"
    checkpoint = checkpoint_of(folder / "модель 1.pt")
    save(folder / "in" / "Bild ä 画像.png", picture())
    flags = ("--checkpoint", checkpoint, "--images_root", folder / "in", "--save_root", folder / "aus gabe ü")
    assert run(*flags, "--overlays_root", folder / "über", "--probabilities_root", folder / "p p")[0] == 0
    assert names(folder / "aus gabe ü") == ["Bild ä 画像.png", "settings.json"]
    assert names(folder / "über") == ["Bild ä 画像.png", "settings.json"]
    assert names(folder / "p p") == ["Bild ä 画像.npy", "settings.json"]


# --- Images that cannot be read ---------------------------------------------------------------------------------------


def test_unreadable_images_are_named_and_left_out(run, images, tmp_path):
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_text("no image")
    (images / "empty.tif").touch()
    code, out, err = run("--batch_size", 1)
    assert code == 1 and "3 of 6 images predicted" in out and "3 of 6 images were left out" in err
    assert all(str(images / name) in err for name in ("cut.png", "text.jpg", "empty.tif"))
    assert "Traceback" not in err
    assert names(tmp_path / "out") == ["a.png", "b.two.png", "c.png", "settings.json"]


def test_nothing_readable(run, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"\x89PNG")
    code, out, err = run("--images_root", tmp_path / "broken")
    assert code == 1 and "0 of 1" in out and "x.png" in err


def test_folder_without_images(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(run("--images_root", tmp_path / "empty"), str(tmp_path / "empty"), "no image in it")
    assert_refused(run("--images_root", tmp_path / "missing"), str(tmp_path / "missing"), "no such folder")


def test_two_images_of_one_name(run, images, tmp_path):
    save(images / "a.jpg", picture())
    assert_refused(run(), "a.jpg", "a.png")
    assert not (tmp_path / "out").exists()


# --- Checkpoints ------------------------------------------------------------------------------------------------------


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bad_checkpoints(folder):
    """Name -> what a user might take for a checkpoint."""
    good = checkpoint_of(folder / "good.pt").read_bytes()
    (folder / "image.pt").write_bytes(save(folder / "image.png", picture()).read_bytes())
    (folder / "text.pt").write_text("weights")
    (folder / "empty.pt").touch()
    (folder / "half.pt").write_bytes(good[: len(good) // 2])
    (folder / "almost.pt").write_bytes(good[:-100])
    torch.save(two_unets(3, 2, 0).state_dict(), folder / "weights_alone.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    (folder / "evil.pt").write_bytes(pickle.dumps(Evil(folder / "harm"), protocol=2))
    torch.save({"networks": Evil(folder / "harm"), "args": {}, "epoch": 1}, folder / "evil_zip.pt")


@pytest.mark.parametrize(
    "name",
    ["image", "text", "empty", "half", "almost", "weights_alone", "list", "module", "evil", "evil_zip", "missing"],
)
def test_files_that_are_no_checkpoints(run, tmp_path, name):
    bad_checkpoints(tmp_path)
    outcome = run("--checkpoint", tmp_path / f"{name}.pt")
    assert_refused(outcome, str(tmp_path / f"{name}.pt"), "checkpoint")
    assert not (tmp_path / "out").exists() and not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model": {"in_channels": 3, "num_classes": 2}}, "intensity"),
        (
            {"model": {"in_channels": 1, "num_classes": 2, "intensity": {"mean": (0,), "std": (1,)}}},
            "cannot be made",
        ),
        ({"model": {"in_channels": 3, "num_classes": 2, "intensity": {"mean": (0,), "std": (1,)}}}, "do not fit"),
        (
            {"model": {"in_channels": 1, "num_classes": 2, "intensity": {"mean": (0,), "std": (0,)}}, "channels": 1},
            "do not fit",
        ),
        (
            {"model": {"in_channels": "3", "num_classes": 2, "intensity": {"mean": (0,), "std": (1,)}}},
            "cannot be made",
        ),
        ({"model": None}, "TypeError"),
        ({"args": {}}, "image_size"),
        ({"args": {"image_size": -5}}, "do not fit"),
        ({"networks": {}}, "cannot be made"),
        ({"networks": 1}, "not a checkpoint of this project"),
        ({"format": None}, "another version"),  # those of before the format was said
        ({"format": 1}, "another version"),
        ({"networks": {k: v * torch.nan for k, v in two_unets(3, 2, 0).state_dict().items()}}, "not all finite"),
    ],
)
def test_checkpoints_whose_parts_do_not_fit(run, tmp_path, changes, part):
    assert_refused(run("--checkpoint", checkpoint_of(tmp_path / "odd.pt", **changes)), str(tmp_path / "odd.pt"), part)


def test_checkpoint_of_another_channel_count(run, images, tmp_path):
    grey = checkpoint_of(tmp_path / "grey.pt", channels=1)
    assert_refused(run("--checkpoint", grey), f"{grey}: trained on images of 1 channel,", "has 3 channels")
    save(tmp_path / "grey" / "x.png", picture(channels=1))
    assert_refused(run("--images_root", tmp_path / "grey"), "images of 3 channels,", "x.png has 1 channel;")
    odd = checkpoint_of(tmp_path / "odd.pt", channels=5)
    assert_refused(run("--checkpoint", odd), f"{odd}: trained on images of 5 channels,", "has 3 channels")
    assert not (tmp_path / "out").exists()


def test_intensities_of_the_checkpoint_count(tmp_path, run):
    """The same weights with other intensities see other inputs."""
    other = {"in_channels": 3, "num_classes": 2, "intensity": {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}}
    assert run("--probabilities_root", tmp_path / "p")[0] == 0
    flags = ("--save_root", tmp_path / "out2", "--probabilities_root", tmp_path / "p2")
    assert run("--checkpoint", checkpoint_of(tmp_path / "raw.pt", model=other), *flags)[0] == 0
    assert np.abs(np.load(tmp_path / "p" / "a.npy") - np.load(tmp_path / "p2" / "a.npy")).max() > 0.01
    model = load_model(tmp_path / "raw.pt", torch.device("cpu"))
    assert model.intensity == Intensity.raw(3) and model.image_size == SIZE and model.channels == 3


# --- Places that cannot be written to ---------------------------------------------------------------------------------


def test_images_and_masks_are_not_overwritten(run, images, tmp_path):
    before = {name: (images / name).read_bytes() for name in names(images)}
    assert_refused(run("--save_root", images, "--overwrite"), f"--save_root {images} is the folder of the images")
    assert_refused(run("--overlays_root", images / ".." / "images"), "--overlays_root", "the folder of the images")
    assert_refused(run("--images_root", images / "a.png", "--save_root", images), "the folder of the images")
    assert_refused(run("--overlays_root", tmp_path / "out"), "--overlays_root", "that of --save_root")
    assert {name: (images / name).read_bytes() for name in names(images)} == before

    mask = save(tmp_path / "masks" / "a.png", picture(channels=1))
    given = mask.read_bytes()
    assert_refused(run("--save_root", tmp_path / "masks"), str(tmp_path / "masks"), "a.png", "--overwrite")
    assert_refused(run("--overlays_root", tmp_path / "masks"), str(tmp_path / "masks"), "a.png", "--overwrite")
    assert mask.read_bytes() == given


def test_folder_holds_the_masks_of_one_checkpoint(run, tmp_path):
    assert run()[0] == 0
    first = (tmp_path / "out" / "a.png").read_bytes()
    (tmp_path / "out" / "a.png").write_bytes(b"spoilt")
    assert run()[0] == 0 and (tmp_path / "out" / "a.png").read_bytes() == first
    other = checkpoint_of(tmp_path / "other.pt", epoch=9)
    refused = run("--checkpoint", other)
    first = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert_refused(refused, str(tmp_path / "out"), first["checkpoint"], str(other), "--overwrite")
    assert first["checkpoint_sha256"] not in refused[2]
    moved = shutil.copy(first["checkpoint"], tmp_path / "moved.pt")
    assert run("--checkpoint", moved)[0] == 0  # the same networks
    checkpoint_of(tmp_path / "moved.pt", trained="longer")
    assert_refused(run("--checkpoint", moved), str(moved), "changed since")
    assert_refused(run("--tta"), str(tmp_path / "out"), "--overwrite")
    assert run("--checkpoint", other, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["epochs"] == 9


@pytest.mark.parametrize("name", ["out", "overlays"])
def test_two_predictions_do_not_share_a_folder(run, tmp_path, name):
    with claimed(tmp_path / name):
        outcome = run("--overlays_root", tmp_path / "overlays", "--overwrite")
        assert_refused(outcome, str(tmp_path / name), "another process is writing there")
    assert not list(tmp_path.glob("out/*.png"))


def test_masks_of_another_checkpoint_do_not_stay_beside_those_of_this(run, images, tmp_path):
    assert run()[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = checkpoint_of(tmp_path / "other.pt", epoch=9)
    # Nothing is removed from one folder where another is refused.
    save(tmp_path / "overlays" / "montage.png", picture())
    outcome = run("--checkpoint", other, "--overlays_root", tmp_path / "overlays", "--overwrite")
    assert_refused(outcome, str(tmp_path / "overlays"), "montage.png")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    one = next(path for path in sorted(images.iterdir()) if path.stem == "a")
    outcome = run("--images_root", one, "--checkpoint", other, "--overwrite")
    assert_refused(outcome, str(tmp_path / "out"), "not of these images", "move or remove them")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_save_root_that_is_a_file(run, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(run("--save_root", tmp_path / "file"), str(tmp_path / "file"), "cannot be written")


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_no_permission_to_write(mode):
    """As an ordinary user, even where the tests run as root."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        checkpoint = checkpoint_of(folder / "checkpoint.pt")
        save(folder / "images" / "a.png", picture())
        locked = folder / "locked"
        locked.mkdir(mode=0o700)
        locked.chmod(mode)
        flags = ("--checkpoint", checkpoint, "--images_root", folder / "images", "--device", "cpu")
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            outcome = call(predict.main, *flags, "--save_root", locked)
            deeper = call(predict.main, *flags, "--save_root", locked / "deeper")
        finally:
            if root:
                os.seteuid(0)
            locked.chmod(0o755)
        assert_refused(outcome, str(locked), "cannot be written (Permission denied)")
        assert_refused(deeper, str(locked / "deeper"), "cannot be written (Permission denied)")
        assert names(locked) == []


def test_full_disk(run, images, tmp_path, monkeypatch):
    """What was written before is whole, and nothing half-written is left."""
    healthy, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # settings.json and one mask fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        healthy(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("utils.commands.files.os.fsync", full)
        outcome = run("--workers", 1, "--batch_size", 1)
    assert_refused(outcome, "No space left on device")
    assert names(tmp_path / "out") == ["a.png", "settings.json"]
    assert pixels(tmp_path / "out" / "a.png").shape == (40, 48)
    assert run()[0] == 0  # once there is room again


@pytest.mark.parametrize(
    "flags", [("--batch_size", 0), ("--workers", 0), ("--device", "tpu"), ("--batch_size", "many"), ("--unknown",)]
)
def test_flags_out_of_range(run, flags):
    code, _, err = run(*flags)
    assert code == 2 and str(flags[0]) in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(run):
    assert_refused(run("--device", "cuda"), "--device cuda", "no CUDA device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_gpu_predicts_what_the_cpu_does(run, tmp_path):
    assert run("--probabilities_root", tmp_path / "p")[0] == 0
    other = ("--save_root", tmp_path / "out2", "--probabilities_root", tmp_path / "p2")
    assert run("--device", "cuda", "--amp", "fp32", *other)[0] == 0
    assert np.abs(np.load(tmp_path / "p" / "a.npy") - np.load(tmp_path / "p2" / "a.npy")).max() < 0.02


def test_at_the_command_line(checkpoint, images, tmp_path):
    """In a process of its own: a progress bar, the names of what was left out, exit code 1."""
    (images / "bad.png").write_text("no image")
    script = REPO / "scripts" / "predict.py"
    flags = ("--checkpoint", checkpoint, "--images_root", images, "--save_root", tmp_path / "out", "--device", "cpu")
    outcome = run_script(*flags, script=script)
    assert outcome.returncode == 1 and "bad.png" in outcome.stderr
    assert "Traceback" not in outcome.stderr
