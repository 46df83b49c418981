"""scripts/compare_runs.py on runs that a test makes."""

import csv
import io
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN_SCRIPT, assert_refused, call, load_program, write_dataset
from PIL import Image

from networks.unet import two_unets
from scripts import compare_runs
from utils.commands.errors import UserError
from utils.engine.checkpoint import FORMAT
from utils.engine.comparison import Finished, Method, dice_by_image, paired_difference

RESULT = {
    "final_dice_mean": 0.8125,
    "final_dice_std": 0.01,
    "final_iou_mean": 0.75,
    "epochs": 3,
    "last_epoch": {"dice": 0.8, "dice_class1": 0.8, "hd95": 2.5},
    "final_dice_class1_mean": 0.8125,
    "cases": {"dice": 4, "dice_class1": 4, "hd95": 4},
    "test_cases": 5,
    "scored_on": "test masks",
    "scored_at": "mask size",
    "seconds_per_epoch": 1.5,
}


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()


@pytest.fixture
def runs(tmp_path, monkeypatch, without_pictures):
    """Two finished one-epoch runs, of cross-entropy and GSD-Net."""
    script = load_program(TRAIN_SCRIPT)
    write_dataset(tmp_path / "data", name="mine")
    for method in ("ce", "gsd"):
        run(monkeypatch, script.main, *f"--datasets mine --noise_type given --tau 0.1 --image_size 32 --max_epochs 1 "
            f"--batch_size 4 --device cpu --method {method}".split(), "--data_root", tmp_path / "data",
            "--output_root", tmp_path / "model")  # fmt: skip
    return [tmp_path / "model" / f"mine+{method}+given" for method in ("ce", "gsd")]


def test_table_and_picture(runs, tmp_path, monkeypatch, capsys):
    capsys.readouterr()
    figure = tmp_path / "figure.png"
    run(monkeypatch, compare_runs.main, *runs, "--figure", figure, "--images", 2)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:3]] == [["mine+ce+given", "1"], ["mine+gsd+given", "1"]]
    assert all(0 <= float(line.split()[2]) <= 1 for line in printed[1:3])
    picture = np.asarray(Image.open(io.BytesIO(figure.read_bytes())))
    assert picture.shape[1] > picture.shape[0] > 100 and picture[..., :3].std() > 10


def test_runs_that_cannot_be_compared_are_named(runs, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nothing.*result\.json: no such file"):
        run(monkeypatch, compare_runs.main, tmp_path / "nothing")
    (runs[1] / "result.json").write_text((runs[0] / "result.json").read_text())
    (runs[1] / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        run(monkeypatch, compare_runs.main, *runs, "--figure", tmp_path / "figure.png")


def test_figure_from_another_folder_names_the_run(runs, tmp_path, monkeypatch):
    shutil.move(tmp_path / "data", tmp_path / "moved")
    with pytest.raises(UserError, match=r"mine\+ce\+given .*--data_root .*data"):
        run(monkeypatch, compare_runs.main, *runs, "--figure", tmp_path / "figure.png")


@pytest.fixture
def compare():
    """compare_runs.py as a command: exit code, stdout, stderr."""

    return partial(call, compare_runs.main)


def finished(folder, result=RESULT, **settings):
    """A run folder of untrained networks with a result; settings: of the run, beside those that every script has."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    channels = 3 if "datasets" in settings else 1
    contents = {
        "format": FORMAT,
        "epoch": 3,
        "networks": two_unets(channels, 2, seed=0).state_dict(),
        "args": {"image_size": 32, "num_classes": 2, "method": "gsd", "exp": "gsd", "data_root": "data", **settings},
        "model": {
            "in_channels": channels,
            "num_classes": 2,
            "intensity": {"mean": (0.4,) * channels, "std": (0.2,) * channels},
        },
    }
    torch.save(contents, folder / "checkpoint.pt")
    return folder


def test_each_run_says_what_it_was_scored_on(compare, tmp_path):
    held_out = "held-out training masks (noisy)"
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", RESULT | {"scored_on": held_out})
    code, out, err = compare(a)
    assert code == 0 and out.splitlines()[1].endswith("  test masks") and "clean" not in out and not err
    assert "4/5" in out.splitlines()[1].split()
    code, out, err = compare(a, b)
    assert [line.split("  ")[-1] for line in out.splitlines()[1:3]] == ["test masks", held_out]
    assert err.count("not scored on the same masks") == 1 and f"{held_out} (b)" in err


@pytest.mark.parametrize(
    ("scored_on", "names", "noise_types", "told"),
    [
        ("held-out training masks (noisy)", (("a", "b"), ("a", "b")), ("02", "02"), False),
        ("held-out training masks (noisy)", (("a", "b"), ("a", "c")), ("02", "02"), True),
        ("held-out training masks (noisy)", (("a", "b"), ("a", "b")), ("02", "DE"), True),
        ("test masks", (("a", "b"), ("a", "b")), ("02", "DE"), False),
        ("test masks", (("a", "b"), ("c", "d")), ("02", "02"), True),
    ],
)
def test_runs_scored_on_other_masks_are_told(compare, tmp_path, scored_on, names, noise_types, told):
    runs = [finished(tmp_path / name, RESULT | {"scored_on": scored_on, "test_cases": 2}) for name in ("a", "b")]
    for folder, images, noise_type in zip(runs, names, noise_types, strict=True):
        (folder / "args.json").write_text(json.dumps({"datasets": "mine", "noise_type": noise_type}))
        (folder / "per_image.csv").write_text("image,dice\n" + "".join(f"{name},0.5\n" for name in images))
    code, _, err = compare(*runs)
    assert code == 0 and ("not scored on the same masks" in err) == told
    (runs[0] / "per_image.csv").write_text("\ufeffimage,dice\n" + "".join(f"{name},1\n" for name in names[0][::-1]))
    assert ("not scored on the same masks" in compare(*runs)[2]) == told  # in another order, by another program
    # What is not known is no difference.
    (runs[0] / "per_image.csv").write_text("name;dice\na;0.5\n")
    (runs[0] / "args.json").unlink()
    assert "not scored on the same masks" not in compare(*runs)[2]


def test_runs_on_sets_of_equal_names_are_told(compare, tmp_path):
    runs = [finished(tmp_path / name) for name in ("a", "b")]
    for folder, dataset in zip(runs, ("mine", "other"), strict=True):
        (folder / "args.json").write_text(json.dumps({"datasets": dataset}))
    assert "not scored on the same masks" in compare(*runs)[2]
    (runs[1] / "args.json").write_text('{"datasets": "Mine"}')
    assert "not scored on the same masks" not in compare(*runs)[2]
    (runs[1] / "args.json").write_text('{"datasets": ["mine"], "noise_type": {}}')  # which is no text, and no traceback
    assert "not scored on the same masks" in compare(*runs)[2]
    (runs[1] / "per_image.csv").write_text("dice,image\n0.5\n")
    assert compare(*runs)[0] == 0
    (runs[1] / "per_image.csv").write_text(f"image,dice\n{'x' * 200_000},0.5\n")
    assert_refused(compare(*runs), runs[1] / "per_image.csv", "remove it")
    (runs[1] / "args.json").write_text("{")
    assert_refused(compare(*runs), runs[1] / "args.json", "remove it")


@pytest.mark.parametrize("settings", [{"rater_policy": "cycle"}, {"rater_policy": None, "test_folder": "testing"}])
def test_runs_of_several_raters_have_a_table_and_no_picture(compare, tmp_path, settings):
    """The checkpoints of LIDC and MMIS-2024 name no dataset folder."""
    folder = finished(tmp_path / "lidc+gsd+cycle", **settings)
    assert compare(folder)[0] == 0
    outcome = compare(folder, "--figure", tmp_path / "figure.png")
    assert_refused(outcome, "--figure", folder, "datasets", "train_GSD-Net.py")
    assert not outcome[1] and not (tmp_path / "figure.png").exists()  # one message, before any output


@pytest.mark.parametrize("images", [0, -1, 101, "x"])
def test_images_out_of_range(compare, tmp_path, images):
    assert_refused(compare(finished(tmp_path / "a"), "--figure", tmp_path / "f.png", "--images", images), "--images")


def test_rows_of_no_picture(compare, tmp_path):
    assert_refused(compare(finished(tmp_path / "a"), "--images", 3), "--images", "--figure")


def test_results_that_lack_figures(compare, tmp_path):
    """As those of older versions: a dash stands for what is not recorded; and they do not compare with new ones."""
    old = finished(tmp_path / "old", {"final_dice_mean": 0.5, "last_epoch": {"hd95": None}})
    code, out, _ = compare(old)
    assert code == 0 and out.splitlines()[1].split() == ["old", "-", "0.5000", *["-"] * 5, "not", "recorded"]
    _, _, err = compare(old, finished(tmp_path / "new"))
    assert "not scored on the same masks" in err and "older version" in err


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ({}, "final_dice_mean"),
        ([1], "final_dice_mean"),
        (None, "final_dice_mean"),
        (RESULT | {"epochs": "many"}, "epochs is 'many'"),
        (RESULT | {"final_iou_mean": [0.5]}, "final_iou_mean is [0.5]"),
        (RESULT | {"last_epoch": {"hd95": {}}}, "hd95 is {}"),
    ],
)
def test_files_that_are_no_results(compare, tmp_path, result, found):
    folder = finished(tmp_path / "a", result)
    assert_refused(compare(folder), folder / "result.json", found, "--resume")


def test_dataset_that_has_changed(compare, tmp_path):
    """Moved, or without the masks, or with others."""
    dataset = write_dataset(tmp_path / "data", name="mine", train=3, test=1)
    folder = finished(tmp_path / "a", datasets="mine", noise_type="DE", data_root=str(tmp_path / "data"))
    figure = ("--figure", tmp_path / "figure.png")
    (dataset / "masks_test" / "case00.png").rename(dataset / "masks_test" / "other.png")
    assert_refused(compare(folder, *figure), dataset / "images_test", "masks_test")
    shutil.rmtree(dataset / "masks_test")
    assert_refused(compare(folder, *figure), dataset / "masks_test", "no such folder")
    dataset.rename(tmp_path / "elsewhere")
    assert_refused(compare(folder, *figure), "mine", tmp_path / "data")


@pytest.mark.parametrize(
    ("scored_on", "names"), [("test masks", ["case01"]), ("held-out training masks", ["case02", "case00"])]
)
def test_the_picture_shows_images_that_were_scored(compare, tmp_path, monkeypatch, scored_on, names):
    """At their own shape; runs of one name are both drawn."""
    write_dataset(tmp_path / "data", name="mine", train=3, test=2)
    settings = {"datasets": "mine", "noise_type": "given", "data_root": str(tmp_path / "data")}
    runs = [
        finished(tmp_path / place / "mine+gsd+given", RESULT | {"scored_on": scored_on}, **settings)
        for place in ("a", "b")
    ]
    for folder in runs:
        (folder / "per_image.csv").write_text("image,dice\n" + "".join(f"{name},0.5\n" for name in names))
    drawn = {}
    monkeypatch.setattr("utils.engine.figures.image_grid", lambda columns, stems: drawn.update(columns, stems=stems))
    monkeypatch.setattr("utils.engine.figures.png", lambda figure: b"")
    assert compare(*runs, "--figure", tmp_path / "figure.png")[0] == 0
    assert list(drawn) == ["image", "mask", *map(str, runs), "stems"] and drawn["stems"] == names
    assert drawn["image"][0].shape == (320, 384, 3)  # of 40 x 48


def test_runs_that_do_not_fit_in_one_picture(compare, tmp_path):
    settings = {"datasets": "mine", "noise_type": "given"}
    a, b = finished(tmp_path / "a", **settings), finished(tmp_path / "b", **settings | {"image_size": 64})
    assert_refused(compare(a, b, "--figure", tmp_path / "figure.png"), b, "--image_size 64", "32")


# --- Tables by method, and tests by image -----------------------------------------------------------------------------


def scored(folder, dice, seed=0, method="gsd", final=None, **result):
    """A run whose images have ``dice``, in order; of the same masks whatever else differs."""
    finished(folder, RESULT | {"final_dice_mean": final or 0.5, **result})
    (folder / "args.json").write_text(
        json.dumps({"datasets": "mine", "method": method, "seed": seed, "exp": folder.name})
    )
    rows = [f"case{i},{'' if value is None else value},{7 + i}\n" for i, value in enumerate(dice)]
    (folder / "per_image.csv").write_text("image,dice,reference_pixels_class1\n" + "".join(rows))
    return folder


def table(path):
    with open(path, newline="") as file:
        return {row.pop("run"): row for row in csv.DictReader(file)}


def test_mean_and_spread_over_seeds(compare, tmp_path):
    """Three seeds with Dice 0.7, 0.8, 0.9: mean 0.8, standard deviation 0.1 (n - 1); the other method has one run."""
    runs = [scored(tmp_path / f"gsd{i}", [0.5], seed=i, final=0.7 + i / 10) for i in range(3)]
    other = scored(tmp_path / "ce", [0.5], method="ce", final=0.6)
    code, out, err = compare(*runs, other, "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md")
    assert code == 0 and not err and "over seeds" in out
    [line] = [line.split() for line in out.splitlines() if line.startswith("gsd0 and 2 more")]
    assert line[4:7] == ["3", "0.8000", "0.1000"]
    rows = table(tmp_path / "t.csv")
    assert list(rows) == ["gsd0", "gsd1", "gsd2", "ce", "gsd0 and 2 more"]
    assert float(rows["gsd0 and 2 more"]["dice"]) == pytest.approx(0.8)
    assert float(rows["gsd0 and 2 more"]["dice_sd_seeds"]) == pytest.approx(0.1)
    assert (rows["ce"]["dice"], rows["ce"]["cases"], rows["ce"]["scored_at"]) == ("0.6", "4", "mask size")
    markdown = (tmp_path / "t.md").read_text()
    assert "| gsd2 | 3 | **0.9000** |" in markdown


def test_a_repeated_seed_counts_once(compare, tmp_path):
    a, b = (scored(tmp_path / name, [0.5], seed=1, final=final) for name, final in (("a", 0.7), ("b", 0.9)))
    code, out, _ = compare(a, b)
    assert code == 0 and "over seeds" not in out and "settings and seed of another: b" in out


def test_nothing_is_bold_across_other_masks(compare, tmp_path):
    a, b = scored(tmp_path / "a", [0.5], final=0.7), scored(tmp_path / "b", [0.5], method="ce", final=0.9)
    assert compare(a, b, "--markdown", tmp_path / "t.md")[0] == 0 and "**0.9000**" in (tmp_path / "t.md").read_text()
    path = b / "per_image.csv"
    path.write_text(path.read_text().replace(",7", ",8"))  # a mask of another number of pixels
    code, _, err = compare(a, b, "--markdown", tmp_path / "t.md")
    assert code == 0 and "pixels of the masks" in err and "**" not in (tmp_path / "t.md").read_text()
    for flag in (("--baseline", "a"), ("--figure", tmp_path / "f.png")):
        outcome = compare(a, b, *flag)
        assert_refused(outcome, flag[0], "pixels of the masks")
        assert not outcome[1]


def test_paired_test_against_a_baseline(compare, tmp_path):
    """Six images better by 0.01 to 0.06, a seventh without a score in one: mean 0.035, exact p 2 / 2**6."""
    base = [0.5, 0.6, 0.4, 0.7, 0.3, 0.2, None]
    better = [value + 0.01 * (i + 1) for i, value in enumerate(base[:6])]
    a = scored(tmp_path / "a", base, method="ce")
    b = scored(tmp_path / "b", [*better, 0.9])
    code, out, _ = compare(a, b, "--baseline", "a", "--csv", tmp_path / "t.csv")
    assert code == 0 and "against the baseline" in out and "+0.0350" in out
    row = table(tmp_path / "t.csv")["b"]
    assert row["difference_images"] == "6" and float(row["difference_mean"]) == pytest.approx(0.035)
    assert float(row["difference_p"]) == pytest.approx(2 / 2**6)
    assert 0.01 < float(row["difference_low"]) < 0.035 < float(row["difference_high"]) < 0.06
    assert "+0.0350" in compare(a, b, "--baseline", a)[1]  # by its path, too


def test_the_seeds_of_a_method_are_averaged_before_the_test():
    runs = [read_run({"x": 0.4, "y": None}), read_run({"x": 0.6, "y": 0.5})]
    assert dice_by_image(Method("m", runs)) == {"x": 0.5, "y": 0.5}
    assert paired_difference({"x": 0.5, "y": 0.5}, {"x": 0.5, "y": 0.5}) == (2, 0, 0, 0, 1)
    assert paired_difference({"x": 0.5}, {"x": 0.25}) == (1, 0.25, None, None, 1)


def read_run(dice):
    return Finished(Path("run"), "run", {}, {}, {image: {"dice": value} for image, value in dice.items()})


def test_baselines_that_cannot_be_compared_with(compare, tmp_path):
    a, b = scored(tmp_path / "a", [0.5]), scored(tmp_path / "b", [0.6], method="ce")
    assert_refused(compare(a, b, "--baseline", "c"), "--baseline c", "a, b")
    assert_refused(compare(a, "--baseline", "a"), "--baseline a")
    (b / "per_image.csv").unlink()
    assert_refused(compare(a, b, "--baseline", "a"), "--baseline", b / "per_image.csv")


def test_figures_of_several_classes_have_names_and_counts(compare, tmp_path):
    classes = {
        "last_epoch": {"dice": 0.5, "dice_class1": 0.4, "dice_class2": 0.6, "hd95": 3.0},
        "cases": {"dice": 5, "dice_class1": 5, "dice_class2": 2, "hd95": 5},
        "final_dice_class1_mean": 0.41,
        "final_dice_class2_mean": 0.61,
    }
    folder = finished(tmp_path / "a", RESULT | classes)
    code, out, _ = compare(folder, "--class_names", "liver", "tumour")
    assert code == 0 and "Dice, tumour" in out and "0.6100 (2)" in out
    assert_refused(compare(folder, "--class_names", "liver"), "--class_names liver")
