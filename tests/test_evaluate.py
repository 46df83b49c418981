"""scripts/evaluate.py as its users meet it: two folders of masks in, scores out, messages, exit codes."""

import csv
import errno
import json
import math
import os
from functools import partial

import numpy as np
import pytest
from conftest import REPO, assert_refused, call, run_script
from PIL import Image

from scripts import evaluate


def square(top, left, side=10, height=40, width=50, value=255):
    """A mask (height,width) uint8 with one square."""
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Predictions and masks: one equal, one moved by five pixels, one that finds nothing, one empty in both."""
    pairs = {
        "equal": (square(5, 5), square(5, 5)),
        "moved": (square(5, 10), square(5, 5)),
        "nothing": (square(0, 0, side=0), square(5, 5)),
        "empty": (square(0, 0, side=0), square(0, 0, side=0)),
    }
    for stem, (predicted, given) in pairs.items():
        save(tmp_path / "predicted" / f"{stem}.png", predicted)
        save(tmp_path / "masks" / f"{stem}.bmp", given // 255)
    return tmp_path / "predicted", tmp_path / "masks"


@pytest.fixture
def run(folders, tmp_path):
    """evaluate.py on these, into scores.csv, with more flags; later flags win: exit code, stdout, stderr."""

    places = ("--predictions", folders[0], "--masks", folders[1], "--save", tmp_path / "scores.csv")
    return partial(call, evaluate.main, *places, "--workers", 1)


def rows(path):
    """The table by image, with numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return {row.pop("image"): {name: float(value) if value else None for name, value in row.items()} for row in table}


HEADLINES = ("dice", "iou", "hd95", "assd", "nsd")
DIAGONAL = round(math.hypot(40, 50), 6)


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_scores_by_hand(run, tmp_path):
    code, out, _ = run()
    assert code == 0
    table = rows(tmp_path / "scores.csv")
    assert list(table) == ["empty", "equal", "moved", "nothing"]
    headlines = {name: [row[column] for column in HEADLINES] for name, row in table.items()}
    assert headlines["equal"] == [1, 1, 0, 0, 1]
    assert table["moved"]["dice"] == pytest.approx(0.5) and table["moved"]["iou"] == pytest.approx(1 / 3, abs=1e-6)
    assert table["moved"]["hd95"] == 5 and 0 < table["moved"]["assd"] < 5 and 0 < table["moved"]["nsd"] < 1
    assert headlines["nothing"] == [0, 0, DIAGONAL, DIAGONAL, 0]
    assert headlines["empty"] == [None] * 5
    assert [table["empty"][f"{name}_class1"] for name in ("specificity", "false_pixels", "reference_pixels")] == [
        1,
        0,
        0,
    ]

    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["images"] == 4 and summary["num_classes"] == 2
    assert summary["mean"]["dice"] == pytest.approx(1.5 / 3) and summary["median"]["dice"] == pytest.approx(0.5)
    assert summary["std"]["dice"] == pytest.approx(np.std([1, 0.5, 0]))
    assert summary["mean"]["hd95"] == pytest.approx((0 + 5 + math.hypot(40, 50)) / 3)
    assert summary["median"]["hd95"] == 5
    assert summary["cases"]["dice"] == summary["cases"]["hd95"] == 3 and summary["cases"]["specificity_class1"] == 1
    assert (summary["mean"]["specificity_class1"], summary["mean"]["false_pixels_class1"]) == (1, 0)
    [line] = [line for line in out.splitlines() if line.strip().startswith("Dice")]
    assert line.split() == ["Dice", "0.5000", "0.4082", "0.5000", "3"]
    assert "1 reference without class 1" in out and "100.0% of their predictions" in out


def test_no_mask_has_foreground(run, tmp_path):
    save(tmp_path / "one" / "a.png", square(0, 0, side=0))
    code, _, err = run("--predictions", tmp_path / "one", "--masks", tmp_path / "one")
    assert code == 0 and "empty" not in err  # which the prediction rightly is
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert [summary["mean"][name] for name in HEADLINES] == [None] * 5 and summary["mean"]["specificity_class1"] == 1


def test_empty_predictions_are_told(run, folders, tmp_path):
    for path in folders[0].iterdir():
        save(path, square(0, 0, side=0))
    code, _, err = run()
    assert code == 0 and str(folders[0]) in err and "all 4 predictions are empty" in err


def test_more_classes(run, tmp_path):
    given = square(5, 5, value=1) + square(20, 20, value=2)
    save(tmp_path / "p3" / "a.png", square(5, 5, value=1) + square(20, 25, value=2))
    save(tmp_path / "m3" / "a.png", given)
    flags = ("--predictions", tmp_path / "p3", "--masks", tmp_path / "m3")
    code, out, _ = run(*flags, "--num_classes", 3)
    assert code == 0 and "Dice, class 2" in out
    scores = rows(tmp_path / "scores.csv")["a"]
    assert (scores["dice_class1"], scores["dice_class2"], scores["dice"]) == (1, 0.5, 0.75)
    assert "Dice, tumour" in run(*flags, "--num_classes", 3, "--class_names", "liver", "tumour")[1]
    assert_refused(run(*flags, "--num_classes", 3, "--class_names", "liver"), "--class_names liver")
    assert_refused(run(*flags), tmp_path / "p3" / "a.png", "0/255")


def test_several_raters(run, folders, tmp_path):
    for path in folders[1].iterdir():  # the second rater marks nothing
        save(tmp_path / "second" / path.name, square(0, 0, side=0))
    code, out, _ = run("--masks", folders[1], tmp_path / "second")
    assert code == 0 and "Dice, rater 2" in out and "Dice, mean of the raters" in out
    equal = rows(tmp_path / "scores.csv")["equal"]
    assert (equal["dice_rater1"], equal["dice_rater2"], equal["dice"]) == (1, None, 1)
    assert equal["specificity_class1"] == 0 and equal["false_pixels_class1"] == 100
    assert equal["dice_majority"] == 1 and equal["soft_dice"] == pytest.approx(2 / 3, abs=1e-6) and equal["ged"] > 0


def test_processes_change_nothing(run, tmp_path):
    assert run()[0] == 0
    alone = (tmp_path / "scores.csv").read_text()
    assert run("--workers", 3)[0] == 0
    assert (tmp_path / "scores.csv").read_text() == alone


def test_masks_with_compression_artefacts_are_named(run, folders, tmp_path):
    artefacts = square(5, 5).astype(int)
    artefacts[5, 5:15] = np.arange(240, 250)
    save(folders[0] / "equal.png", artefacts.astype(np.uint8))
    code, out, _ = run()
    assert code == 0 and "in 1 files" in out and str(folders[0] / "equal.png") in out
    assert rows(tmp_path / "scores.csv")["equal"]["dice"] == 1


# --- What cannot be scored --------------------------------------------------------------------------------------------


def test_unmatched_files_are_named(run, folders, tmp_path):
    (folders[0] / "moved.png").rename(folders[0] / "other.png")
    assert_refused(run(), folders[0], "moved.bmp")
    save(folders[1] / "other.bmp", square(5, 5))
    (folders[1] / "moved.bmp").unlink()
    save(folders[0] / "extra.png", square(5, 5))
    assert_refused(run(), "extra.png", folders[1])
    assert not (tmp_path / "scores.csv").exists()


def test_mask_of_another_rater_is_missing(run, folders, tmp_path):
    for path in sorted(folders[1].iterdir())[:3]:
        save(tmp_path / "second" / path.name, square(0, 0))
    assert_refused(run("--masks", folders[1], tmp_path / "second"), tmp_path / "second", "nothing.png")


def test_everything_that_is_wrong_is_named_at_once(run, folders, tmp_path):
    (folders[0] / "equal.png").write_bytes(b"no image")
    save(folders[1] / "moved.bmp", square(5, 5, width=60))
    save(folders[1] / "nothing.bmp", square(5, 5, value=7))
    parts = ("3 of 4", folders[0] / "equal.png", folders[1] / "moved.bmp", "60x40", "50x40", folders[1] / "nothing.bmp")
    assert_refused(run(), *parts)
    assert_refused(run("--workers", 2), *parts)
    assert not (tmp_path / "scores.csv").exists()


def test_empty_and_missing_folders(run, tmp_path):
    (tmp_path / "bare").mkdir()
    assert_refused(run("--masks", tmp_path / "bare"), tmp_path / "bare", "no image in it")
    assert_refused(run("--predictions", tmp_path / "gone"), tmp_path / "gone", "no such folder")


def test_save_must_be_csv(run, tmp_path):
    assert_refused(run("--save", tmp_path / "scores.json"), "--save", "scores.json")


def test_places_that_cannot_be_written_to(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert_refused(
        run("--save", tmp_path / "file" / "scores.csv"), tmp_path / "file" / "scores.csv", "cannot be written"
    )

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("utils.commands.files.os.fsync", full)
    assert_refused(run(), tmp_path / "scores.csv", "No space left on device")
    assert not list(tmp_path.glob("*scores*"))


def test_path_with_spaces_and_letters_of_other_alphabets(run, tmp_path):
    folder = tmp_path / "мои снимки é"
    save(folder / "a b" / "Bild ä 画像.png", square(5, 5))
    flags = ("--predictions", folder / "a b", "--masks", folder / "a b", "--save", folder / "schö n" / "ergebnis ü.csv")
    assert run(*flags)[0] == 0
    assert rows(folder / "schö n" / "ergebnis ü.csv")["Bild ä 画像"]["dice"] == 1
    assert json.loads((folder / "schö n" / "ergebnis ü.summary.json").read_text())["images"] == 1


def test_at_the_command_line(folders, tmp_path):
    flags = ("--predictions", tmp_path / "none", "--masks", folders[1], "--save", tmp_path / "scores.csv")
    outcome = run_script(*flags, script=REPO / "scripts" / "evaluate.py")
    assert outcome.returncode == 2 and str(tmp_path / "none") in outcome.stderr
