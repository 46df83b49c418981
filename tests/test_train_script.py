"""train_GSD-Net.py as a user meets it: runs, bad inputs, resuming, and the whole chain from phantoms to figures."""

import csv
import errno
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, load_program, run_script, script_process, write_dataset
from PIL import Image

from utils.commands.arguments import gsd_config
from utils.commands.errors import run_main
from utils.engine.experiment import learning_rate_at
from utils.method.baselines import METHODS

script = load_program(TRAIN_SCRIPT)

EPOCHS = 5
QUICK = ("--device", "cpu", "--image_size", 32, "--batch_size", 4, "--max_epochs", EPOCHS)
GIVEN = ("--datasets", "kvasir", "--noise_type", "given", "--tau", 0.1)
RUN_FILES = ("args.json", "log.csv", "checkpoint.pt", "result.json", "per_image.csv", "curves.png", "panels.png")


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """A data folder with one tiny dataset, Kvasir; tests do not write to it."""
    return write_dataset(tmp_path_factory.mktemp("data")).parent


@pytest.fixture
def train(monkeypatch, capsys) -> Callable[..., Outcome]:
    """The script's main() in this process, which costs no imports."""

    def call(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", [TRAIN_SCRIPT.name, *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            run_main(script.main)
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def without_pictures(monkeypatch) -> None:
    """Drawing takes longer than training these tiny networks; for tests that look at figures in numbers only."""
    monkeypatch.setattr(script.Run, "draw", lambda run, panels: None)


@pytest.fixture
def places(data_root, tmp_path) -> tuple:
    """The flags of a quick run on the tiny dataset into tmp_path."""
    return ("--data_root", data_root, "--output_root", tmp_path, *QUICK)


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err and "error: " in outcome.err
    message = outcome.err[outcome.err.rindex("error: ") :]
    for part in parts:
        assert part in message, message


def assert_succeeded(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err


TIMES = ("seconds", "waiting")  # of no two runs the same


def log_rows(folder: Path, *without: str) -> list[dict[str, str]]:
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def figures(folder: Path) -> dict:
    """result.json without the time that the run took."""
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if not name.startswith(TIMES)}


def assert_same_run(folder: Path, other: Path) -> None:
    assert log_rows(folder, *TIMES) == log_rows(other, *TIMES)
    assert figures(folder) == figures(other)
    assert (folder / "per_image.csv").read_text() == (other / "per_image.csv").read_text()
    networks = [torch.load(f / "checkpoint.pt", weights_only=True)["networks"] for f in (folder, other)]
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def assert_complete(folder: Path, epochs: int, test_names: list[str]) -> None:
    """All that a complete run leaves behind is there, readable and finite."""
    args = json.loads((folder / "args.json").read_text())
    assert args["max_epochs"] == epochs

    rows = log_rows(folder)
    assert [int(row["epoch"]) for row in rows] == list(range(epochs))
    assert all(math.isfinite(float(row[name])) for row in rows for name in ("loss", "dice", "iou", "seconds"))

    result = json.loads((folder / "result.json").read_text())
    assert {"final_dice_mean", "final_dice_std", "epochs", "method", "seconds_per_epoch"} <= result.keys()
    assert result["epochs"] == epochs and result["test_cases"] == len(test_names) and result["method"] == args["method"]
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
    for name in ("curves.png", "panels.png"):
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
    ],
    ids=["gsd", "published", "ce", "clean"],
)
def test_run_leaves_all_its_files(train, places, tmp_path, flags):
    outcome = train(*flags, *places)
    assert_succeeded(outcome)
    [folder] = tmp_path.iterdir()
    assert_complete(folder, EPOCHS, [f"case{i:02}" for i in range(4)])
    assert str(folder) in outcome.out
    args = json.loads((folder / "args.json").read_text())
    published = "published" in flags
    assert (args["vote"], args["inputs"]) == (("rings", "raw") if published else ("superpixels", "normalised"))
    assert (args["intensity"]["std"] == [1 / 255] * 3) == published
    # The parts of the loss that come with refinement are there from 0.3 of the run, and not for CE or clean masks.
    one_phase = args["method"] == "ce" or args["noise_type"] == "clean"
    transfers = [row["transfer1"] != "" for row in log_rows(folder)]
    assert transfers == ([False] * EPOCHS if one_phase else [False, False, True, True, True])
    # Only what a method does is logged: cross-entropy drops nothing, and only published weighs by distance.
    assert {row["drop_rate"] != "" for row in log_rows(folder)} == {args["method"] == "gsd"}
    assert {row["weight_cap"] != "" for row in log_rows(folder)} == {published}


@pytest.mark.usefixtures("without_pictures")
def test_training_lowers_the_loss_and_finds_the_blobs(train, places, tmp_path):
    assert_succeeded(
        train(*GIVEN, *places, "--method", "ce", "--max_epochs", 30, "--learning_rate", 0.05, "--jitter", 0)
    )
    rows = log_rows(tmp_path / "kvasir+ce+given")
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    assert float(rows[-1]["dice"]) > 0.8


@pytest.mark.usefixtures("without_pictures")
def test_seed_decides_everything(train, places, tmp_path):
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        assert_succeeded(train(*GIVEN, *places, "--max_epochs", 3, "--exp", name, "--seed", seed))
    one, same, other = (tmp_path / f"kvasir+{name}+given" for name in ("one", "same", "other"))
    assert_same_run(one, same)
    assert [row["loss"] for row in log_rows(one)] != [row["loss"] for row in log_rows(other)]


@pytest.mark.usefixtures("without_pictures")
def test_deterministic_runs_are_the_same_on_any_device(train, places, tmp_path):
    """On a GPU, where there is one; with votes and transfer, whose sums are those that a GPU adds in any order."""
    for name in ("one", "same"):
        flags = ("--max_epochs", 3, "--exp", name, "--fidelity", "paper", "--device", "auto", "--deterministic")
        assert_succeeded(train(*GIVEN, *places, *flags))
        assert torch.are_deterministic_algorithms_enabled()
    assert_same_run(*(tmp_path / f"kvasir+{name}+given" for name in ("one", "same")))
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1, "--exp", "usual"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_grey_images_of_three_classes(train, tmp_path):
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
def test_the_figure_is_that_of_the_last_ten_epochs(train, places, tmp_path):
    assert_succeeded(train(*GIVEN, "--method", "ce", *places, "--max_epochs", 13))
    folder = tmp_path / "kvasir+ce+given"
    dice = [float(row["dice"]) for row in log_rows(folder)]
    result = figures(folder)
    assert result["averaged_epochs"] == 10
    assert result["final_dice_mean"] == pytest.approx(np.mean(dice[3:]), abs=1e-12)
    assert result["final_dice_std"] == pytest.approx(np.std(dice[3:]), abs=1e-12)
    assert abs(np.mean(dice[3:]) - np.mean(dice[2:])) > 1e-6  # else this would test nothing


# --- Defaults and flags -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "contours", "optimizer", "learning_rate"),
    [
        ((), "corrected", "adamw", 0.001),
        (("--fidelity", "paper"), "given", "sgd", 0.005),
        (("--fidelity", "published"), "given", "sgd", 0.005),
        (("--fidelity", "paper", "--contours", "corrected"), "corrected", "sgd", 0.005),
        (("--optimizer", "sgd"), "corrected", "sgd", 0.005),
        (("--learning_rate", "0.01"), "corrected", "adamw", 0.01),
        (("--method", "ce"), "given", "adamw", 0.001),
        (("--method", "ce", "--contours", "corrected"), "corrected", "adamw", 0.001),
    ],
)
def test_fidelity(monkeypatch, flags, contours, optimizer, learning_rate):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN), *flags])
    args = script.parse_arguments()
    assert (args.contours, args.optimizer, args.learning_rate) == (contours, optimizer, learning_rate)


@pytest.mark.parametrize("flags", [(), ("--contours", "corrected", "--fidelity", "paper")])
@pytest.mark.parametrize("dataset", ["kvasir", "mine"])
def test_nothing_is_dropped_from_corrected_masks_unless_asked(monkeypatch, dataset, flags):
    command = ["train", "--datasets", dataset, "--noise_type", "02", *flags]
    for more, tau in (((), 0), (("--tau", "0.1"), 0.1)):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        args = script.parse_arguments()
        assert args.tau == gsd_config(args).tau == tau
        assert args.warm_up == (1 if tau == 0 and not flags else 0.3)


def test_a_setting_that_is_the_usual_one_anyway_is_no_error(monkeypatch):
    """As the command line contract has them; they would change nothing where they act."""
    usual = ("--ratecp", "0.5", "--weight_decay_rate", "10", "--consistency", "0.5")
    monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN), *usual])
    args = script.parse_arguments()
    assert (args.ratecp, args.weight_decay_rate, args.consistency) == (0.5, 10, 0.5)


def test_settings_of_the_second_phase_count_where_there_is_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN), "--tau", "0.1", "--ratecp", "0.3", "--vote", "rings"])
    args = script.parse_arguments()
    assert gsd_config(args).ratecp == 0.3 and args.warm_up == 0.3


def test_tau_of_a_method_that_selects_nothing_is_no_setting(monkeypatch):
    """Else runs that do the same would count as different ones, and --resume refuse to go on with them."""
    for tau in ("0.3", "auto"):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN), "--method", "ce", "--tau", tau])
        assert script.parse_arguments().tau == 0


def test_learning_rate_schedules():
    assert [learning_rate_at("constant", 0.005, p) for p in (0, 0.5, 1)] == [0.005] * 3
    assert [learning_rate_at("cosine", 0.1, p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.0505, 0.001])


def test_one_choice_of_the_published_implementation_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN), "--vote", "rings"])
    args = script.parse_arguments()
    assert (args.vote, args.transfer_loss, args.distance, args.inputs) == ("rings", "logits", "exact", "normalised")


def test_a_single_tiny_image_has_no_deviation_to_normalise_by(train, places, tmp_path):
    size = ("--image_size", 16, "--slic_root", tmp_path / "slic")
    assert_refused(train(*GIVEN, *places, *size, "--batch_size", 1), "--image_size 16", "two images", "--batch_size")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--tau", "1"), ("--tau", "[0, 1)")),
        (("--tau", "-0.1"), ("--tau", "[0, 1)")),
        (("--seed", "99999999999999999999"), ("--seed", "outside")),
        (("--method", "ce", "--label_loss", "ce+dice"), ("--label_loss ce+dice", "--method ce", "leave it out")),
        (("--tau", "0", "--vote", "rings"), ("--vote rings", "--warm_up 1", "leave it out")),
        (("--distance", "floored"), ("--distance floored", "--weights even")),
        (("--warm_up", "1", "--transfer", "none"), ("--transfer none", "--warm_up 1", "leave it out")),
        (("--resume", "--overwrite"), ("--overwrite", "not allowed with", "--resume")),
        (("--tau", "0", "--ratecp", "0.3"), ("--ratecp 0.3", "--warm_up 1", "leave it out")),
        (("--fidelity", "paper", "--transfer", "none", "--ratecp", "0.3"), ("--ratecp 0.3", "--transfer none")),
        (("--weight_decay_rate", "5"), ("--weight_decay_rate 5", "--weights even")),
        (("--method", "jocor", "--consistency", "0.9"), ("--consistency 0.9", "--method jocor")),
        (("--method", "ce", "--warm_up", "0.3"), ("--warm_up 0.3", "--method ce")),
        (("--label_loss", "ce", "--dice_weight", "2"), ("--dice_weight 2", "--label_loss ce+dice")),
        (("--method", "ce", "--dice_weight", "2"), ("--dice_weight 2", "leave it out")),
        (("--tau", "nan"), ("--tau", "[0, 1)")),
        (("--tau", "much"), ("--tau", "'much'")),
        (("--noise_type", "05"), ("--noise_type", "'05'", "DE")),
        (("--device", "tpu"), ("--device", "'tpu'", "cuda")),
        (("--method", "magic"), ("--method", "'magic'", "gsd")),
        (("--fidelity", "high"), ("--fidelity", "published")),
        (("--batch_size", "0"), ("--batch_size", "0")),
        (("--max_epochs", "0"), ("--max_epochs", "0")),
        (("--max_epochs", "9" * 400), ("--max_epochs", "is not a number of type int")),
        (("--image_size", "8"), ("--image_size", "8")),
        (("--num_classes", "1"), ("--num_classes", "1")),
        (("--learning_rate", "-1"), ("--learning_rate", "-1")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_flags_out_of_range_are_refused(train, places, flags, parts):
    assert_refused(train(*GIVEN, *places, *flags), *parts)


@pytest.mark.parametrize(("dataset", "noise_type"), [("mine", "02"), ("mine", "given"), ("kvasir", "given")])
def test_tau_must_be_given_where_the_paper_has_none(train, places, dataset, noise_type):
    outcome = train("--datasets", dataset, "--noise_type", noise_type, "--contours", "given", *places)
    assert_refused(outcome, "--tau", f"no default for {dataset} with {noise_type} masks")


# --- Data that cannot be trained on -----------------------------------------------------------------------------------


def test_missing_data_root_is_named(train, places, tmp_path):
    assert_refused(
        train(*GIVEN, *places, "--data_root", tmp_path / "missing"), "--data_root", str(tmp_path / "missing")
    )


def test_unknown_dataset_names_those_there_are(train, places):
    assert_refused(train(*GIVEN, *places, "--datasets", "other"), "--datasets other", "holds Kvasir")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none(train, places):
    assert_refused(train(*GIVEN, *places, "--device", "cuda"), "--device cuda", "--device cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_number_of_a_gpu_that_is_not_there(train, places):
    assert_refused(train(*GIVEN, *places, "--device", "cuda", "--gpu", 99), "--gpu 99")


def test_batch_larger_than_the_training_set(train, places, tmp_path):
    assert_refused(train(*GIVEN, *places, "--batch_size", 11), "--batch_size 11", "10 training images")
    assert not list(tmp_path.iterdir())


def test_folder_without_images(train, places, tmp_path):
    folder = write_dataset(tmp_path / "data")
    for path in (folder / "images").iterdir():
        path.unlink()
    outcome = train(*GIVEN, *places, "--data_root", tmp_path / "data")
    assert_refused(outcome, str(folder / "images"), "no image in it")


def test_superpixels_with_nan(train, places, tmp_path):
    folder = write_dataset(tmp_path / "data")
    np.save(folder / "images_SLIC" / "case05.npy", np.full((32, 32), np.nan, np.float32))
    outcome = train(*GIVEN, *places, "--data_root", tmp_path / "data")
    assert_refused(outcome, str(folder / "images_SLIC" / "case05.npy"), "NaN")


def test_output_root_that_is_a_file(train, places, tmp_path):
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
def test_loss_that_becomes_nan_stops_the_run_and_spares_the_checkpoint(
    train, places, tmp_path, monkeypatch, poisoned_step
):
    folder = tmp_path / "kvasir+gsd+given"
    healthy, seen = METHODS["gsd"], []

    def poisoned(networks, batch, epoch, *rest):
        step = healthy(networks, batch, epoch, *rest)
        seen.append(epoch)
        return step._replace(loss=step.loss * torch.nan) if epoch == 1 and seen.count(1) == 1 + poisoned_step else step

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "gsd", poisoned)
        outcome = train(*GIVEN, *places)
    assert_refused(outcome, f"epoch 1, step {poisoned_step},", "--learning_rate")
    assert outcome.err[outcome.err.rindex("error: ") :].count("case") == 4  # the images of that step's batch

    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert all(value.isfinite().all() for value in checkpoint["networks"].values())
    assert len(log_rows(folder)) == 1
    assert not (folder / "result.json").exists()

    # The checkpoint is as good as if nothing had happened: the run goes on to the end of an undisturbed one.
    assert_succeeded(train(*GIVEN, *places, "--resume"))
    assert_succeeded(train(*GIVEN, *places, "--output_root", tmp_path / "undisturbed"))
    assert log_rows(folder, *TIMES) == log_rows(tmp_path / "undisturbed" / folder.name, *TIMES)


@pytest.mark.usefixtures("without_pictures")
def test_learning_rate_that_breaks_the_first_epoch_leaves_no_checkpoint(train, places, tmp_path):
    assert_refused(train(*GIVEN, *places, "--learning_rate", 1e30), "epoch 0, step 1,", "--learning_rate")
    assert not (tmp_path / "kvasir+gsd+given" / "checkpoint.pt").exists()
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1))


# --- Run folders, and resuming in this process ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """The folder of a complete, never interrupted run of a process of its own; tests copy it."""
    output_root = tmp_path_factory.mktemp("model")
    outcome = run_script(*GIVEN, *QUICK, "--data_root", data_root, "--output_root", output_root)
    assert outcome.returncode == 0, outcome.stderr
    return output_root / "kvasir+gsd+given"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the complete run where `places` writes."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RUN_FILES if name != "args.json"}


def test_run_at_the_command_line_is_complete(finished):
    assert_complete(finished, EPOCHS, [f"case{i:02}" for i in range(4)])


def test_existing_run_is_not_touched_unasked(train, places, copied):
    before = contents(copied)
    assert_refused(train(*GIVEN, *places), str(copied), "--resume", "--overwrite", "--exp")
    assert contents(copied) == before


def test_overwrite_starts_again(train, places, copied):
    assert_succeeded(train(*GIVEN, *places, "--overwrite", "--max_epochs", 2))
    assert_complete(copied, 2, [f"case{i:02}" for i in range(4)])
    assert len(list((copied / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize(
    ("flag", "value", "was"),
    [
        ("--tau", 0.2, "--tau 0.1 (now 0.2)"),
        ("--max_epochs", 7, "--max_epochs 5 (now 7)"),
        ("--seed", 1, "--seed 2024"),
        ("--val_fraction", 0.25, "--val_fraction 0.0 (now 0.25); --exp NAME"),  # which changes what is read, too
        ("--deterministic", None, "--deterministic False (now True)"),
    ],
)
def test_resume_with_changed_settings_is_refused(train, places, copied, flag, value, was):
    before = contents(copied)
    changed = (flag,) if value is None else (flag, value)
    assert_refused(train(*GIVEN, *places, "--resume", *changed), str(copied), "--resume", was, "--overwrite")
    assert contents(copied) == before


@pytest.mark.parametrize("change", ["masks/case03.png", "images/case03.png", "masks_test/case01.png", "removed"])
def test_resume_with_other_data_is_refused(train, places, data_root, copied, tmp_path, change):
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


def test_resume_at_another_precision_is_refused(train, places, copied):
    before = torch.load(copied / "checkpoint.pt", weights_only=True)["args"]["amp"]
    other = {"bf16": "fp32", "fp32": "bf16"}[before]
    assert_refused(train(*GIVEN, *places, "--resume", "--amp", other), f"--amp {before} (now {other})")


def test_resume_of_a_finished_run_prints_its_result(train, places, data_root, copied, tmp_path):
    before = contents(copied)
    moved = shutil.copytree(data_root, tmp_path / "moved")  # where the data lie is no setting of the method
    outcome = train(*GIVEN, *places, "--resume", "--data_root", moved)
    assert_succeeded(outcome)
    assert "complete already" in outcome.out
    assert f"{json.loads(before['result.json'])['final_dice_mean']:.4f}" in outcome.out
    assert contents(copied) == before


def test_a_finished_run_gets_no_more_files(train, places, copied):
    before = sorted(copied.rglob("*"))
    for _ in range(2):
        assert_succeeded(train(*GIVEN, *places, "--resume"))
    assert sorted(copied.rglob("*")) == before


@pytest.mark.parametrize("key", ["last_epoch", "waiting", "cases"])
def test_result_that_lacks_figures_is_refused(train, places, copied, key):
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
def test_results_without_their_checkpoint_are_not_lost(train, places, copied, flags, left):
    """Checkpoints may have been removed to make room, and results are what was to be kept."""
    (copied / "best.pt").touch()
    for name in {"checkpoint.pt", "result.json", "log.csv", "per_image.csv", "best.pt"} - {*left}:
        (copied / name).unlink()
    before = {path: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    assert_refused(train(*GIVEN, *places, *flags), str(copied), *left, "checkpoint.pt is gone", "--overwrite", "--exp")
    assert {path: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


def test_resume_starts_a_run_where_there_is_none(train, places, tmp_path):
    assert_succeeded(train(*GIVEN, *places, "--max_epochs", 1, "--resume"))
    assert_complete(tmp_path / "kvasir+gsd+given", 1, [f"case{i:02}" for i in range(4)])


def test_masks_that_change_while_they_are_read_are_told_by_resume(train, tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "data", train=8, test=2)
    flags = (*GIVEN, "--data_root", tmp_path / "data", "--output_root", tmp_path, *QUICK, "--cache", "none")
    load = script.load_training_set

    def meanwhile(*args: object) -> object:
        path = folder / "masks" / "case03.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr(script, "load_training_set", meanwhile)
        assert_succeeded(train(*flags, "--max_epochs", 1))
    assert_refused(train(*flags, "--max_epochs", 1, "--resume"), "no longer those of the run")


def test_a_full_disk_of_tensorboard_is_named(train, places, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.flush", full)
    assert_refused(
        train(*GIVEN, *places), f"{tmp_path / 'kvasir+gsd+given' / 'tensorboard'}: cannot be written (No space"
    )
    assert torch.load(tmp_path / "kvasir+gsd+given" / "checkpoint.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "foreign"])
def test_resume_from_a_damaged_checkpoint_is_refused(train, places, copied, damage):
    path = copied / "checkpoint.pt"
    content = path.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no checkpoint"}[damage])
    assert_refused(train(*GIVEN, *places, "--resume"), str(path), "checkpoint")


def test_interruption_between_the_last_checkpoint_and_its_log(train, places, finished, tmp_path, monkeypatch):
    """The checkpoint comes first; whatever else belongs to that epoch is made up for on --resume."""
    folder = tmp_path / finished.name
    write_table = script.Run.write_table

    def interrupted(run, name, rows):
        if len(rows) == EPOCHS:
            raise KeyboardInterrupt
        write_table(run, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(script.Run, "write_table", interrupted)
        assert train(*GIVEN, *places).code == 130
    assert len(log_rows(folder)) == EPOCHS - 1
    assert_succeeded(train(*GIVEN, *places, "--resume"))
    assert_complete(folder, EPOCHS, [f"case{i:02}" for i in range(4)])


# --- Killed and resumed, as on a cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs_before", [1, 3])
def test_killed_run_ends_like_an_unbroken_one(places, finished, tmp_path, epochs_before):
    folder = tmp_path / finished.name
    with script_process(*GIVEN, *places) as process:
        try:
            deadline = time.monotonic() + 90
            while not (folder / "log.csv").exists() or len(log_rows(folder)) < epochs_before:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, f"no {epochs_before} epochs within 90 s"
                time.sleep(0.02)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert epochs_before <= len(log_rows(folder)) < EPOCHS, "the run was to be killed on its way"
    assert not (folder / "result.json").exists()

    outcome = run_script(*GIVEN, *places, "--resume")
    assert outcome.returncode == 0, outcome.stderr
    assert_same_run(folder, finished)


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
        outcome = run_script(*args, script=REPO / "scripts" / f"{name}.py")
        assert outcome.returncode == 0, f"{name}: {outcome.stderr}"

    clean, noisy = (
        np.stack([np.asarray(Image.open(path)) > 0 for path in sorted((phantom / folder).glob("*.png"))])
        for folder in ("masks", shrunk)
    )
    assert len(clean) == len(noisy) == len(list((phantom / "images_SLIC").glob("*.npy"))) == 12
    assert noisy.mean() < clean.mean()

    flags = ("--datasets", "phantom", "--noise_type", "02", "--tau", 0.05, "--data_root", tmp_path / "data")
    quick = (*size, "--batch_size", 4, "--max_epochs", 3, "--device", "cpu")
    outcome = run_script(*flags, *quick, "--output_root", tmp_path / "model")
    assert outcome.returncode == 0, outcome.stderr
    names = sorted(path.stem for path in (phantom / "images_test").glob("*.png"))
    assert len(names) == 4
    assert_complete(tmp_path / "model" / "phantom+gsd+02", 3, names)


def test_scans_of_busuc_are_read_as_colour(monkeypatch):
    for flags, channels in (((), 3), (("--channels", "1"), 1)):
        monkeypatch.setattr(sys, "argv", ["train", "--datasets", "BUSUC", "--noise_type", "02", *flags])
        assert script.parse_arguments().channels == channels
    monkeypatch.setattr(sys, "argv", ["train", *map(str, GIVEN)])
    assert script.parse_arguments().channels is None


@pytest.mark.parametrize(
    ("batch_size", "what"),
    [(4, "the loss became non-finite in epoch 0, step 1"), (10, "the weights became non-finite in epoch 0, step 0")],
)
def test_divergence_is_told_before_a_checkpoint_is_written(train, places, tmp_path, batch_size, what):
    """With one step an epoch no loss has seen the weights that the step left."""
    flags = ("--optimizer", "sgd", "--learning_rate", 1e300, "--batch_size", batch_size)
    assert_refused(train(*GIVEN, *places, *flags), what, "case0", "--learning_rate")
    assert not list(tmp_path.rglob("*.pt"))


def test_compiling_without_a_compiler_is_refused(train, places, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert_refused(train(*GIVEN, *places, "--compile"), "--compile needs a C++ compiler")
