"""train_GSD-Net.py as a user meets it: runs, bad inputs, resuming, and the whole chain from phantoms to figures."""

import csv
import errno
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import (
    REPO,
    TIMES,
    TRAIN_SCRIPT,
    Outcome,
    assert_plain_log,
    assert_refused,
    assert_same_run,
    assert_succeeded,
    call,
    figures,
    load_program,
    log_rows,
    run_script,
    write_dataset,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dataloaders import training_set
from utils.engine import training
from utils.engine.run_folder import Run
from utils.method import gsd
from utils.method.settings import METHODS

script = load_program(TRAIN_SCRIPT)
train = partial(call, script.main)  # in this process

EPOCHS = 3  # the second phase begins with the second
QUICK = ("--device", "cpu", "--image_size", 32, "--batch_size", 4, "--max_epochs", EPOCHS, "--cache", "none")
GIVEN = ("--datasets", "kvasir", "--noise_type", "given", "--tau", 0.1)
PICTURES = ("curves.png", "panels.png", "predictions.png")
RUN_FILES = ("args.json", "log.csv", "checkpoint.pt", "result.json", "per_image.csv", *PICTURES)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """A data folder with one tiny dataset, Kvasir; tests do not write to it."""
    return write_dataset(tmp_path_factory.mktemp("data")).parent


@pytest.fixture
def drawn_once(monkeypatch) -> None:
    """Pictures of the last epoch alone, of those that a run of so few epochs has for each."""
    monkeypatch.setattr(training, "is_drawn", lambda epoch, epochs: epoch == epochs - 1)


@pytest.fixture
def places(data_root, tmp_path) -> tuple:
    """The flags of a quick run on the tiny dataset into tmp_path."""
    return ("--data_root", data_root, "--output_root", tmp_path, *QUICK)


def assert_complete(folder: Path, epochs: int, test_names: list[str]) -> None:
    """All that a complete run leaves behind is there, readable and finite."""
    args = json.loads((folder / "args.json").read_text())
    assert args["max_epochs"] == epochs

    rows = log_rows(folder)
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("loss", "dice", "iou", "seconds"))

    result = json.loads((folder / "result.json").read_text())
    assert {"final_dice_mean", "final_dice_std", "epochs", "method", "seconds_per_epoch"} <= result.keys()
    assert result["epochs"] == epochs and result["test_cases"] == len(test_names)
    assert all(result[name] == args[name] for name in ("method", "recipe", "tau"))
    dice = [float(row["dice"]) for row in rows[-10:]]
    assert result["final_dice_mean"] == pytest.approx(np.mean(dice))
    assert result["final_dice_std"] == pytest.approx(np.std(dice), abs=1e-12)
    # What no case has is null; everything else is a finite number.
    for name, value in {**result, **result["last_epoch"]}.items():
        if value is None:
            assert name.removeprefix("final_").startswith(("specificity", "false_pixels")), name
        elif not isinstance(value, str | dict):
            assert math.isfinite(value), name
    assert result["scored_at"] == rows[-1]["scored_at"] == "mask size"
    assert result["cases"]["dice"] == int(rows[-1]["cases"]) == len(test_names)

    with open(folder / "per_image.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    assert [case["image"] for case in cases] == test_names
    assert all(0 <= float(case[name]) <= 1 for case in cases for name in ("dice", "iou", "nsd"))
    assert np.mean([float(case["dice"]) for case in cases]) == pytest.approx(float(rows[-1]["dice"]), abs=1e-5)

    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == epochs and checkpoint["args"] == args
    assert all(value.isfinite().all() for value in checkpoint["networks"].values())
    assert list((folder / "tensorboard").glob("events.*"))
    for name in PICTURES:
        with Image.open(folder / name) as image:
            image.load()
            assert min(image.size) > 100
            assert len(np.unique(np.asarray(image.convert("L")))) > 10  # something is drawn
    assert not list(folder.glob(".*")), "temporary files are left behind"


# --- Runs that succeed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        (*GIVEN,),
        (*GIVEN, "--fidelity", "published"),
        ("--datasets", "KVASIR", "--noise_type", "given", "--method", "ce"),
        ("--datasets", "Kvasir", "--noise_type", "clean"),
        (*GIVEN, "--without", "sgr", "kt"),
        (*GIVEN, "--recipe", "contour"),
    ],
    ids=["gsd", "published", "ce", "clean", "one phase", "contour"],
)
@pytest.mark.usefixtures("drawn_once")
def test_run_leaves_all_its_files(places, tmp_path, flags):
    outcome = train(*flags, *places)
    assert_succeeded(outcome)
    [folder] = tmp_path.iterdir()
    assert_complete(folder, EPOCHS, [f"case{i:02}" for i in range(4)])
    assert str(folder) in outcome.out
    args = json.loads((folder / "args.json").read_text())
    published = "published" in flags
    assert (args["vote"], args["inputs"]) == (("rings", "raw") if published else ("superpixels", "normalised"))
    assert (args["intensity"]["std"] == [1 / 255] * 3) == published
    # The parts of the loss that come with knowledge transfer are there from 0.3 of the run.
    one_phase = args["method"] == "ce" or args["without"] == ["sgr", "kt"]
    transfers = [row["transfer1"] != "" for row in log_rows(folder)]
    assert transfers == ([False] * EPOCHS if one_phase else [False, True, True])
    # Only what a method does is logged: cross-entropy neither drops pixels nor weighs by distance.
    for name in ("drop_rate", "weight_cap"):
        assert {row[name] != "" for row in log_rows(folder)} == {args["method"] == "gsd"}
    assert {row["dice_loss"] != "" for row in log_rows(folder)} == {args["recipe"] == "contour"}
    assert args["tau"] == {"clean": 0, "ce": 0}.get(args["noise_type"], 0.1 if args["method"] == "gsd" else 0)
    assert folder.name == f"{args['datasets']}+{args['exp']}+{args['noise_type']}"
    # The first line says what is active, and the run's table says it again.
    description = json.loads((folder / "result.json").read_text())["description"]
    assert outcome.out.splitlines()[0] == description and outcome.out.count(description) == 2


@pytest.mark.usefixtures("without_pictures")
def test_training_lowers_the_loss_and_finds_the_blobs(places, tmp_path):
    flags = ("--method", "ce", "--max_epochs", 15, "--learning_rate", 0.1, "--set", "jitter=0", "--exp", "ce")
    assert_succeeded(train(*GIVEN, *places, *flags))
    rows = log_rows(tmp_path / "kvasir+ce+given")
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["dice"]) > 0.8


@pytest.mark.usefixtures("without_pictures")
def test_seed_decides_everything(places, tmp_path):
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        assert_succeeded(train(*GIVEN, *places, "--max_epochs", 3, "--exp", name, "--seed", seed))
    one, same, other = (tmp_path / f"kvasir+{name}+given" for name in ("one", "same", "other"))
    assert_same_run(one, same)
    assert [row["loss"] for row in log_rows(one)] != [row["loss"] for row in log_rows(other)]


@pytest.mark.usefixtures("without_pictures")
def test_deterministic_runs_are_the_same_on_any_device(places, tmp_path):
    """On a GPU, where there is one; with votes and transfer, whose sums are those that a GPU adds in any order."""
    for name in ("one", "same"):
        flags = ("--max_epochs", 3, "--exp", name, "--device", "auto", "--deterministic")
        assert_succeeded(train(*GIVEN, *places, *flags))
        assert torch.are_deterministic_algorithms_enabled()
    assert_same_run(*(tmp_path / f"kvasir+{name}+given" for name in ("one", "same")))
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1, "--exp", "usual"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.usefixtures("drawn_once")
def test_grey_images_of_three_classes(tmp_path):
    folder = write_dataset(tmp_path / "data", train=4, test=2, image_size=16)
    classes = (np.arange(48)[None].repeat(40, 0) // 16).astype(np.uint8)
    for path in folder.glob("masks*/*"):
        Image.fromarray(classes).save(path)
    for path in folder.glob("images*/*.png"):
        Image.fromarray(classes * 100).save(path)
    flags = ("--num_classes", 3, "--image_size", 16, "--batch_size", 2, "--max_epochs", 4, "--device", "cpu")
    assert_succeeded(train(*GIVEN, *flags, "--data_root", tmp_path / "data", "--output_root", tmp_path / "model"))
    assert_complete(tmp_path / "model" / "kvasir+gsd+given", 4, ["case00", "case01"])


@pytest.mark.usefixtures("without_pictures")
def test_the_figure_is_that_of_the_last_ten_epochs(places, tmp_path):
    assert_succeeded(train(*GIVEN, "--method", "ce", *places, "--max_epochs", 12))
    folder = tmp_path / "kvasir+ce+given"
    dice = [float(row["dice"]) for row in log_rows(folder)]
    result = figures(folder)
    assert result["averaged_epochs"] == 10
    assert result["final_dice_mean"] == pytest.approx(np.mean(dice[2:]), abs=1e-12)
    assert result["final_dice_std"] == pytest.approx(np.std(dice[2:]), abs=1e-12)
    assert abs(np.mean(dice[2:]) - np.mean(dice[1:])) > 1e-6  # else this would test nothing


# --- Defaults and flags -----------------------------------------------------------------------------------------------


def test_a_single_tiny_image_has_no_deviation_to_normalise_by(places, tmp_path):
    size = ("--image_size", 16, "--slic_root", tmp_path / "slic")
    assert_refused(train(*GIVEN, *places, *size, "--batch_size", 1), "--image_size 16", "two images", "--batch_size")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--resume", "--overwrite"), ("--overwrite", "--resume")),
        (("--noise_type", "05"), ("--noise_type", "05")),
        (("--masks", "masks"), ("--masks", "--noise_type")),
        (("--device", "tpu"), ("--device", "tpu")),
        (("--set", "vote=ring"), ("--set vote=ring",)),
        (("--method", "ce", "--without", "kt"), ("--without kt", "--method ce")),
        (("--exp", "a/b"), ("--exp",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_flags_are_refused(places, flags, parts):
    """The rest is in test_settings.py."""
    assert_refused(train(*GIVEN, *places, *flags), *parts)


@pytest.mark.usefixtures("without_pictures")
def test_flags_that_mean_the_same_give_the_same_run(places, tmp_path):
    """And one may be resumed as the other."""
    kvasir = ("--datasets", "kvasir", "--noise_type", "given", *places, "--max_epochs", 3)
    contour = ("dice_weight=3", "optimizer=adamw", "schedule=cosine")
    explicit = ("--contours", "corrected", "--learning_rate", 0.001, "--set", *contour)
    tau = ("--tau", 0.1)
    assert_succeeded(train(*kvasir, *tau, "--recipe", "contour"))
    assert_succeeded(train(*kvasir, *tau, *explicit, "--exp", "same"))
    one, same = (tmp_path / f"kvasir+{name}+given" for name in ("gsd-contour", "same"))
    assert log_rows(one, *TIMES) == log_rows(same, *TIMES) and same_weights(one, same)
    usual = ("--ratecp", 0.5, "--contours", "given", "--learning_rate", 0.005, "--set", "consistency=0.5")
    assert_succeeded(train(*kvasir, *tau))
    assert_succeeded(train(*kvasir, *tau, *usual, "--resume"))


@pytest.mark.usefixtures("without_pictures")
def test_tau_is_estimated_where_the_paper_has_none(places, tmp_path):
    """And a run that was begun with auto goes on with the number that it found."""
    flags = ("--datasets", "kvasir", "--noise_type", "given", *places, "--max_epochs", 2)
    outcome = train(*flags)
    assert_succeeded(outcome)
    assert "tau auto" in outcome.out.splitlines()[0]
    args = json.loads((tmp_path / "kvasir+gsd+given" / "args.json").read_text())
    assert 0 < args["tau"] < 0.2 and f"tau {args['tau']:g}" in figures(tmp_path / "kvasir+gsd+given")["description"]
    assert_succeeded(train(*flags, "--tau", args["tau"], "--resume"))


@pytest.mark.usefixtures("without_pictures")
def test_images_without_edges_say_so_and_take_the_stated_fallback(places, tmp_path):
    folder = write_dataset(tmp_path / "data")
    rng = np.random.default_rng(0)
    for path in (folder / "images").iterdir():
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    flags = ("--datasets", "kvasir", "--noise_type", "given", *places, "--data_root", tmp_path / "data")
    outcome = train(*flags, "--max_epochs", 1)
    assert_succeeded(outcome)
    args = json.loads((tmp_path / "kvasir+gsd+given" / "args.json").read_text())
    assert args["tau"] == 0.05 and "not estimated" in args["tau_from"] and args["tau_from"] in outcome.out


# --- Any folder of masks ----------------------------------------------------------------------------------------------


def marked_masks(folder: Path, target: Path) -> None:
    """The masks of a dataset with their first rows as foreground, in a folder of their own."""
    target.mkdir(parents=True)
    for path in (folder / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:4] = 255
        Image.fromarray(mask).save(target / path.name)


@pytest.mark.usefixtures("without_pictures")
def test_any_folder_of_masks(tmp_path, monkeypatch):
    """One of the dataset before one where the command was started; its name is in that of the run."""
    folder = write_dataset(tmp_path / "data")
    marked_masks(folder, folder / "masks_student")
    marked_masks(folder, tmp_path / "elsewhere" / "masks_two")
    (tmp_path / "masks_student").mkdir()  # would not do: it is empty
    (folder / "masks_link").symlink_to(tmp_path / "elsewhere" / "masks_two")
    monkeypatch.chdir(tmp_path)
    flags = ("--datasets", "kvasir", "--data_root", "data", "--output_root", "model", *QUICK, "--max_epochs", 1)
    logs = []
    for given, name in (
        ("masks_student", "masks_student"),
        ("elsewhere/masks_two", "masks_two"),
        (tmp_path / "elsewhere" / "masks_two", "masks_two"),
        ("masks_link", "masks_link"),
        ("masks", "masks"),
    ):
        assert_succeeded(train(*flags, "--masks", given, "--tau", 0.1, "--overwrite"))
        logs.append(log_rows(tmp_path / "model" / f"kvasir+gsd+{name}", *TIMES))
    assert logs[0] == logs[1] == logs[2] == logs[3] != logs[4]
    assert_refused(train(*flags, "--masks", "masks_none"), "--masks masks_none", "data/Kvasir")
    assert_refused(train(*flags, "--masks", ""), "data/Kvasir")
    assert_refused(train(*flags, "--masks", folder / "images_test"), "images_test")


# --- Superpixels ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_data(tmp_path, monkeypatch) -> Path:
    """A dataset of the test's own below tmp_path/data, with superpixels for 32 px; returns its folder."""
    return write_dataset(tmp_path / "data")


def maps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.npy"))


@pytest.mark.usefixtures("without_pictures")
def test_superpixels_follow_the_training_size_and_the_images(places, own_data, tmp_path):
    """Without a further command, and those of another size stay as they are."""
    flags = (*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2)
    before = {path: path.read_bytes() for path in (own_data / "images_SLIC").iterdir()}
    names = [f"case{index:02}.npy" for index in range(10)]
    outcome = train(*flags, "--image_size", 48, "--exp", "larger")
    assert_succeeded(outcome)
    sized = own_data / "images_SLIC_48"
    assert maps_in(sized) == names and np.load(sized / "case03.npy").shape == (48, 48)
    assert json.loads((sized / "settings.json").read_text())["n_segments"] == 144
    assert "144 superpixels" in outcome.out.splitlines()[0]
    assert {path: path.read_bytes() for path in (own_data / "images_SLIC").iterdir()} == before
    # One more image, at both sizes.
    for kind in ("images", "masks"):
        shutil.copy(own_data / kind / "case00.png", own_data / kind / "added.png")
    assert_succeeded(train(*flags, "--exp", "more"))
    assert_succeeded(train(*flags, "--image_size", 48, "--exp", "more-larger"))
    assert maps_in(sized) == maps_in(own_data / "images_SLIC") == ["added.npy", *names]
    assert all(path.read_bytes() == content for path, content in before.items())
    # Nothing is lacking now, so nothing is made.
    assert "making superpixels" not in train(*flags, "--exp", "again").out


@pytest.mark.usefixtures("without_pictures")
def test_the_first_superpixels_are_made_in_the_plain_folder(places, own_data, tmp_path):
    shutil.rmtree(own_data / "images_SLIC")
    flags = (*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2)
    assert_succeeded(train(*flags, "--val_fraction", 0.2))
    assert len(maps_in(own_data / "images_SLIC")) == 8  # of the images that are trained on
    assert not (own_data / "images_SLIC_32").exists()


NOT_VOTING = [("--method", "ce"), ("--without", "sgr"), ("--fidelity", "published"), ("--tau", 0), ("--max_epochs", 1)]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("flags", NOT_VOTING, ids=lambda flags: " ".join(map(str, flags)))
def test_where_superpixels_do_not_vote_nobody_needs_them(places, own_data, tmp_path, flags):
    """Damaged ones are no matter, missing ones are not made, and --slic_root is noted."""
    for path in (own_data / "images_SLIC").glob("*.npy"):
        path.write_bytes(b"damaged")
    (own_data / "images_SLIC" / "settings.json").write_text("{")
    common = (*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2, *flags)
    outcome = train(*common, "--slic_root", tmp_path / "none", "--exp", "damaged")
    assert_succeeded(outcome)
    assert "--slic_root" in outcome.err and "superpixels)" not in outcome.out
    shutil.rmtree(own_data / "images_SLIC")
    assert_succeeded(train(*common, "--exp", "missing"))
    assert not list(own_data.glob("images_SLIC*")) and not (tmp_path / "none").exists()
    assert_same_run(*(tmp_path / f"kvasir+{name}+given" for name in ("damaged", "missing")))


DAMAGES = {
    "text": lambda path: path.write_text("no array"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "NaN": lambda path: np.save(path, np.full((32, 32), np.nan, np.float32)),
    "size": lambda path: np.save(path, np.zeros((16, 16), np.int32)),
    "negative": lambda path: np.save(path, np.full((32, 32), -1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_superpixels_that_are_damaged_or_of_another_size_are_an_error(places, own_data, tmp_path, damage):
    path = own_data / "images_SLIC" / "case05.npy"
    DAMAGES[damage](path)
    flags = (*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2)
    assert_refused(train(*flags), str(path), "remove it")


@pytest.mark.usefixtures("without_pictures")
def test_damaged_superpixels_that_were_removed_are_made_again(places, own_data, tmp_path):
    path = own_data / "images_SLIC" / "case05.npy"
    path.unlink()
    assert_succeeded(train(*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2))
    assert path.is_file()


@pytest.mark.usefixtures("without_pictures")
def test_superpixels_elsewhere(places, own_data, tmp_path):
    """--slic_root: of another number of segments, where those are lacking too; not of other images or another size."""
    elsewhere, slic = tmp_path / "maps", ("--n_segments", 20, "--image_size", 32)
    slic += ("--images_root", own_data / "images", "--save_root", elsewhere, "--workers", 1)
    assert_succeeded(call(REPO / "scripts" / "generate_SLIC.py", *slic))
    (elsewhere / "case02.npy").unlink()
    shutil.rmtree(own_data / "images_SLIC")
    flags = (*GIVEN, *places, "--data_root", tmp_path / "data", "--max_epochs", 2, "--slic_root", elsewhere)
    outcome = train(*flags)
    assert_succeeded(outcome)
    assert "20 superpixels" in outcome.out.splitlines()[0] and len(maps_in(elsewhere)) == 10
    assert len(np.unique(np.load(elsewhere / "case02.npy"))) < 30
    assert not (own_data / "images_SLIC").exists()
    refused = train(*flags, "--image_size", 48, "--exp", "other")
    assert_refused(refused, str(elsewhere / "case00.npy"), "(48, 48)", "--slic_root")
    (elsewhere / "case02.npy").unlink()
    assert_refused(train(*flags, "--image_size", 48, "--exp", "other"), str(elsewhere), "--slic_root")
    other = write_dataset(tmp_path / "other", seed=1, train=12)
    assert_refused(train(*flags, "--data_root", other.parent, "--exp", "other"), str(elsewhere), "--slic_root")
    images = own_data / "images"
    assert_refused(train(*flags, "--slic_root", images, "--exp", "images"), str(images), "--slic_root")
    (tmp_path / "file").touch()
    assert_refused(train(*flags, "--slic_root", tmp_path / "file", "--exp", "file"), str(tmp_path / "file"))


# --- What each module of GSD-Net does to a run ------------------------------------------------------------------------


def final_weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["networks"]


def same_weights(folder: Path, other: Path) -> bool:
    one, two = final_weights(folder), final_weights(other)
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("without", [(), ("--without", "sgr")], ids=["all", "without sgr"])
def test_superpixel_maps_count_unless_sgr_is_off(places, own_data, tmp_path, without):
    flags = (*GIVEN, *places, "--data_root", tmp_path / "data", *without, "--tau", 0.4)
    assert_succeeded(train(*flags, "--exp", "one"))
    for path in (own_data / "images_SLIC").glob("*.npy"):
        np.save(path, np.arange(32)[None].repeat(32, 0) // 11)
    assert_succeeded(train(*flags, "--exp", "other"))
    one, other = (tmp_path / f"kvasir+{name}+given" for name in ("one", "other"))
    assert same_weights(one, other) == bool(without)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("without", [(), ("--without", "gda")], ids=["all", "without gda"])
def test_distances_count_unless_gda_is_off(places, tmp_path, monkeypatch, without):
    flags = (*GIVEN, *places, *without)
    assert_succeeded(train(*flags, "--exp", "one"))
    load = training_set.load_training_set

    def other_distances(*args: object) -> object:
        loaded = load(*args)
        return loaded._replace(data=replace(loaded.data, squared_distances=loaded.data.squared_distances.flip(-1)))

    monkeypatch.setattr(training_set, "load_training_set", other_distances)
    assert_succeeded(train(*flags, "--exp", "other"))
    one, other = (tmp_path / f"kvasir+{name}+given" for name in ("one", "other"))
    assert same_weights(one, other) == bool(without)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("without", [(), ("--without", "kt")], ids=["all", "without kt"])
def test_partners_count_unless_kt_is_off(places, tmp_path, monkeypatch, without):
    flags = (*GIVEN, *places, *without)
    assert_succeeded(train(*flags, "--exp", "one"))
    step = gsd.gsd_step

    def other_partners(*args: object) -> object:
        *rest, permutation = args
        return step(*rest, permutation.roll(1))

    monkeypatch.setattr(gsd, "gsd_step", other_partners)
    assert_succeeded(train(*flags, "--exp", "other"))
    one, other = (tmp_path / f"kvasir+{name}+given" for name in ("one", "other"))
    assert same_weights(one, other) == bool(without)


@pytest.mark.usefixtures("without_pictures")
def test_each_switch_changes_the_run(places, tmp_path):
    for off in ("nothing", "selection", "gda", "sgr", "kt"):
        without = () if off == "nothing" else ("--without", off)
        assert_succeeded(train(*GIVEN, *places, "--tau", 0.4, *without, "--exp", off))
    weights = [final_weights(tmp_path / f"kvasir+{off}+given") for off in ("nothing", "selection", "gda", "sgr", "kt")]
    sums = {sum(value.double().sum().item() for value in found.values()) for found in weights}
    assert len(sums) == 5


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("method", METHODS)
def test_any_method_takes_the_contour_recipe(places, tmp_path, method):
    outcome = train(*GIVEN, *places, "--max_epochs", 2, "--method", method, "--recipe", "contour")
    assert_succeeded(outcome)
    folder = tmp_path / f"kvasir+{method}-contour+given"
    args = json.loads((folder / "args.json").read_text())
    recipe = {"contours": "corrected", "dice_weight": 3, "optimizer": "adamw", "learning_rate": 0.001}
    assert {"method": method, "recipe": "contour", "schedule": "cosine", **recipe}.items() <= args.items()
    assert all(float(row["dice_loss"]) > 0 for row in log_rows(folder))
    assert "contour recipe" in outcome.out.splitlines()[0] and ("GSD-Net" in outcome.out) == (method == "gsd")


# --- Data that cannot be trained on -----------------------------------------------------------------------------------


def test_missing_data_root_is_named(places, tmp_path):
    assert_refused(
        train(*GIVEN, *places, "--data_root", tmp_path / "missing"), "--data_root", str(tmp_path / "missing")
    )


def test_unknown_dataset_names_those_there_are(places):
    assert_refused(train(*GIVEN, *places, "--datasets", "other"), "--datasets other", "holds Kvasir")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(places):
    assert_refused(train(*GIVEN, *places, "--device", "cuda"), "--device cuda", "--device cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_number_of_a_gpu_that_is_not_there(places):
    assert_refused(train(*GIVEN, *places, "--device", "cuda", "--gpu", 99), "--gpu 99")


def test_batch_larger_than_the_training_set(places, tmp_path):
    refused = train(*GIVEN, *places, "--batch_size", 11)
    assert_refused(refused, "--batch_size 11", "10 training images", "give --batch_size 10")
    assert not list(tmp_path.iterdir())


def test_folder_without_images(places, tmp_path):
    folder = write_dataset(tmp_path / "data")
    for path in (folder / "images").iterdir():
        path.unlink()
    outcome = train(*GIVEN, *places, "--data_root", tmp_path / "data")
    assert_refused(outcome, str(folder / "images"), "no image in it")


def test_output_root_that_is_a_file(places, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(train(*GIVEN, *places, "--output_root", tmp_path / "file"), str(tmp_path / "file"))


def test_bad_input_at_the_command_line(places, tmp_path):
    """The same in a process of its own, where nothing stands between the script and the user."""
    outcome = run_script(*GIVEN, *places, "--data_root", tmp_path / "missing")
    assert_refused(Outcome(outcome.returncode, outcome.stdout, outcome.stderr), str(tmp_path / "missing"))
    assert outcome.stdout == ""


# --- A loss that is no longer a number --------------------------------------------------------------------------------


@pytest.mark.parametrize("poisoned_step", [0, 1])
@pytest.mark.usefixtures("without_pictures")
def test_loss_that_becomes_nan_stops_the_run_and_spares_the_checkpoint(places, tmp_path, monkeypatch, poisoned_step):
    folder = tmp_path / "kvasir+gsd+given"
    healthy, seen = gsd.gsd_step, []

    def poisoned(networks, batch, epoch, *rest):
        step = healthy(networks, batch, epoch, *rest)
        seen.append(epoch)
        return step._replace(loss=step.loss * torch.nan) if epoch == 1 and seen.count(1) == 1 + poisoned_step else step

    with monkeypatch.context() as patch:
        patch.setattr(gsd, "gsd_step", poisoned)
        outcome = train(*GIVEN, *places)
    assert_refused(outcome, f"epoch 1, step {poisoned_step},", "--learning_rate")
    assert outcome.err[outcome.err.rindex("error: ") :].count("case") == 4  # the images of that step's batch

    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["networks"].values())
    assert len(log_rows(folder)) == 1
    assert not (folder / "result.json").exists()

    # The checkpoint is as good as if nothing had happened: the run goes on to the end of an undisturbed one.
    outcome = train(*GIVEN, *places, "--resume")
    assert_succeeded(outcome)
    assert f"1 of {EPOCHS} epochs are done; goes on with epoch 2" in outcome.out
    assert_succeeded(train(*GIVEN, *places, "--output_root", tmp_path / "undisturbed"))
    assert log_rows(folder, *TIMES) == log_rows(tmp_path / "undisturbed" / folder.name, *TIMES)


@pytest.mark.usefixtures("without_pictures")
def test_learning_rate_that_breaks_the_first_epoch_leaves_no_checkpoint(places, tmp_path):
    assert_refused(train(*GIVEN, *places, "--learning_rate", 1e30), "epoch 0, step ", "--learning_rate")
    assert not (tmp_path / "kvasir+gsd+given" / "checkpoint.pt").exists()
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1))


# --- Run folders, and resuming in this process ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """The folder of a complete, never interrupted run; tests copy it."""
    output_root = tmp_path_factory.mktemp("model")
    assert_succeeded(train(*GIVEN, *QUICK, "--data_root", data_root, "--output_root", output_root))
    return output_root / "kvasir+gsd+given"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the complete run where `places` writes."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RUN_FILES if name != "args.json"}


def test_existing_run_is_not_touched_unasked(places, copied):
    before = contents(copied)
    assert_refused(train(*GIVEN, *places), str(copied), "--resume", "--overwrite", "--exp")
    assert contents(copied) == before


def test_an_existing_run_is_named_before_anything_is_read(places, copied, tmp_path):
    """However large the set is, and whatever is wrong with it."""
    data = Path(shutil.copytree(places[places.index("--data_root") + 1], tmp_path / "data"))
    for path in (data / "Kvasir" / "images").iterdir():
        path.write_bytes(b"no image")
    assert_refused(train(*GIVEN, *places, "--data_root", data), str(copied), "--resume", "--overwrite", "--exp")
    assert "case0" not in train(*GIVEN, *places, "--data_root", data).err


@pytest.mark.usefixtures("drawn_once")
def test_overwrite_starts_again(places, copied):
    assert_succeeded(train(*GIVEN, *places, "--overwrite", "--max_epochs", 2))
    assert_complete(copied, 2, [f"case{i:02}" for i in range(4)])
    assert len(list((copied / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize(
    ("flag", "value", "was"),
    [
        ("--tau", 0.2, "--tau 0.1 (now 0.2)"),
        ("--max_epochs", 7, "--max_epochs 3 (now 7)"),
        ("--seed", 1, "--seed 2024"),
        ("--val_fraction", 0.25, "--val_fraction 0.0 (now 0.25); --exp NAME"),  # which changes what is read, too
        ("--deterministic", None, "--deterministic False (now True)"),
        ("--set", "jitter=0.25", "--set jitter 0.5 (now 0.25)"),
        ("--recipe", "contour", "--set dice_weight 0.0 (now 3.0)"),
        ("--without", "sgr", "--without [] (now ['sgr'])"),
    ],
)
def test_resume_with_changed_settings_is_refused(places, copied, flag, value, was):
    before = contents(copied)
    changed = (flag, "--exp", "gsd") if value is None else (flag, value, "--exp", "gsd")
    outcome = train(*GIVEN, *places, "--resume", *changed)
    assert_refused(outcome, str(copied), "--resume", was, "--overwrite")
    assert ("shares of --max_epochs" in outcome.err) == (flag == "--max_epochs")
    assert contents(copied) == before


@pytest.mark.parametrize("change", ["masks/case03.png", "images/case03.png", "masks_test/case01.png", "removed"])
def test_resume_with_other_data_is_refused(places, data_root, copied, tmp_path, change):
    before = contents(copied)
    changed = shutil.copytree(data_root, tmp_path / "changed")
    folder = next(changed.iterdir())
    if change == "removed":
        for kind in ("images", "masks"):
            (folder / kind / "case03.png").unlink()
    else:
        picture = cv2.imread(str(folder / change), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(folder / change), picture[::-1])
    flags = ("--resume", "--data_root", changed)
    assert_refused(train(*GIVEN, *places, *flags), str(copied), "no longer those of the run", "--overwrite", "--exp")
    assert contents(copied) == before


def test_resume_at_another_precision_is_refused(places, copied):
    before = torch.load(copied / "checkpoint.pt", weights_only=True)["args"]["amp"]
    other = {"bf16": "fp32", "fp32": "bf16"}[before]
    assert_refused(train(*GIVEN, *places, "--resume", "--amp", other), f"--amp {before} (now {other})")


def test_resume_of_a_finished_run_prints_its_result(places, data_root, copied, tmp_path):
    before = contents(copied)
    moved = shutil.copytree(data_root, tmp_path / "moved")  # where the data lie is no setting of the method
    outcome = train(*GIVEN, *places, "--resume", "--data_root", moved)
    assert_succeeded(outcome)
    assert "complete already" in outcome.out
    assert f"{json.loads(before['result.json'])['final_dice_mean']:.4f}" in outcome.out
    assert contents(copied) == before


@pytest.mark.usefixtures("without_pictures")
def test_a_finished_run_gets_no_more_files(places, copied):
    before = sorted(copied.rglob("*"))
    for _ in range(2):
        assert_succeeded(train(*GIVEN, *places, "--resume"))
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize("key", ["last_epoch", "waiting", "cases"])
def test_result_that_lacks_figures_is_refused(places, copied, key):
    path = copied / "result.json"
    result = json.loads(path.read_text())
    del result[key]
    path.write_text(json.dumps(result))
    assert_refused(train(*GIVEN, *places, "--resume"), str(path), "not a run's result", "remove it, and --resume")
    path.unlink()
    assert_succeeded(train(*GIVEN, *places, "--resume"))
    assert json.loads(path.read_text()).keys() == {*result, key}


@pytest.mark.parametrize("flags", [(), ("--resume",)])
@pytest.mark.parametrize("left", [("result.json", "log.csv"), ("log.csv",), ("best.pt",)])
def test_results_without_their_checkpoint_are_not_lost(places, copied, flags, left):
    """Checkpoints may have been removed to make room, and results are what was to be kept."""
    (copied / "best.pt").touch()
    for name in {"checkpoint.pt", "result.json", "log.csv", "per_image.csv", "best.pt"} - {*left}:
        (copied / name).unlink()
    before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    assert_refused(train(*GIVEN, *places, *flags), str(copied), *left, "checkpoint.pt is gone", "--overwrite", "--exp")
    assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


@pytest.mark.usefixtures("drawn_once")
def test_resume_starts_a_run_where_there_is_none(places, tmp_path):
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1, "--resume"))
    assert_complete(tmp_path / "kvasir+gsd+given", 1, [f"case{i:02}" for i in range(4)])


@pytest.mark.usefixtures("without_pictures")
def test_masks_that_change_while_they_are_read_are_told_by_resume(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", train=8, test=2)
    flags = (*GIVEN, "--data_root", tmp_path / "data", "--output_root", tmp_path, *QUICK)
    load = training_set.load_training_set

    def meanwhile(*args: object) -> object:
        path = folder / "masks" / "case03.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training_set, "load_training_set", meanwhile)
        assert_succeeded(train(*flags, "--max_epochs", 1))
    assert_refused(train(*flags, "--max_epochs", 1, "--resume"), "no longer those of the run")


def test_a_full_disk_of_tensorboard_is_named(places, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full)
    assert_refused(
        train(*GIVEN, *places), f"{tmp_path / 'kvasir+gsd+given' / 'tensorboard'}: cannot be written (No space"
    )
    assert torch.load(tmp_path / "kvasir+gsd+given" / "checkpoint.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign", "older"])
def test_resume_from_a_damaged_checkpoint_is_refused(places, copied, damage):
    path = copied / "checkpoint.pt"
    content = path.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "older":  # of before settings had today's names; it said no format
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint.pop("format") == 2
        torch.save(checkpoint, path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no checkpoint"}[damage])
    assert_refused(train(*GIVEN, *places, "--resume"), str(path), "checkpoint")


def test_interruption_between_the_last_checkpoint_and_its_log(places, finished, tmp_path, monkeypatch):
    """The checkpoint comes first; whatever else belongs to that epoch is made up for on --resume."""
    folder = tmp_path / finished.name
    write_table = Run.write_table

    def interrupted(run, name, rows):
        if len(rows) == EPOCHS:
            raise KeyboardInterrupt
        write_table(run, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_table", interrupted)
        assert train(*GIVEN, *places).code == 130
    assert len(log_rows(folder)) == EPOCHS - 1
    outcome = train(*GIVEN, *places, "--resume")
    assert_succeeded(outcome)
    assert f"--resume: {EPOCHS} of {EPOCHS} epochs are done" in outcome.out
    assert_complete(folder, EPOCHS, [f"case{i:02}" for i in range(4)])


# --- From phantoms to figures -----------------------------------------------------------------------------------------


def test_chain_of_the_scripts_on_phantoms(tmp_path):
    phantom = tmp_path / "data" / "phantom"
    shrunk = "masks_200_0.2_0.05_0.2_mask_channel0"
    size = ("--image_size", 64)
    steps = (
        ("make_phantoms", "--save_root", phantom, "--train", 12, "--test", 4, *size),
        ("generate_simulated_noise", "--gts_root", phantom / "masks", "--save_root", phantom / shrunk, "--theta1", 0.2),
        ("generate_SLIC", "--images_root", phantom / "images", "--save_root", phantom / "images_SLIC", *size),
    )
    for name, *args in steps:
        assert_succeeded(call(REPO / "scripts" / f"{name}.py", *args, "--workers", 1))

    clean, noisy = (
        np.stack([np.asarray(Image.open(path)) > 0 for path in sorted((phantom / folder).glob("*.png"))])
        for folder in ("masks", shrunk)
    )
    assert len(clean) == len(noisy) == len(list((phantom / "images_SLIC").glob("*.npy"))) == 12
    assert noisy.mean() < clean.mean()

    flags = ("--datasets", "phantom", "--noise_type", "02", "--tau", 0.05, "--data_root", tmp_path / "data")
    quick = (*size, "--batch_size", 4, "--max_epochs", 3, "--device", "cpu", "--cache", tmp_path / "cache")
    outcome = train(*flags, *quick, "--output_root", tmp_path / "model")
    assert_succeeded(outcome)
    assert_plain_log(outcome, 3)
    names = sorted(path.stem for path in (phantom / "images_test").glob("*.png"))
    assert len(names) == 4
    folder = tmp_path / "model" / "phantom+gsd+02"
    assert_complete(folder, 3, names)
    events = EventAccumulator(str(folder / "tensorboard"), {"images": 0}).Reload()
    assert [[image.step for image in events.Images(name)] for name in ("panels", "predictions")] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("batch_size", "what"),
    [(4, "the loss became non-finite in epoch 0, step 1"), (10, "the weights became non-finite in epoch 0, step 0")],
)
def test_divergence_is_told_before_a_checkpoint_is_written(places, tmp_path, batch_size, what):
    """With one step an epoch no loss has seen the weights that the step left."""
    flags = ("--learning_rate", 1e300, "--batch_size", batch_size)
    assert_refused(train(*GIVEN, *places, *flags), what, "case0", "--learning_rate")
    assert not list(tmp_path.rglob("*.pt"))
