"""scripts/compare_runs.py on runs that a test makes."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import TRAIN_SCRIPT, load_program, write_dataset
from PIL import Image

from networks.unet import two_unets
from scripts import compare_runs
from utils.commands.errors import UserError, run_main
from utils.engine.checkpoint import FORMAT

RESULT = {
    "final_dice_mean": 0.8125,
    "final_dice_std": 0.01,
    "final_iou_mean": 0.75,
    "epochs": 3,
    "last_epoch": {"hd95": 2.5},
    "test_cases": 5,
    "scored_on": "test masks",
    "seconds_per_epoch": 1.5,
}


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()


@pytest.fixture
def runs(tmp_path, monkeypatch):
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
    with pytest.raises(UserError, match=r"mine\+ce\+given was trained on --data_root .*data, which is not there"):
        run(monkeypatch, compare_runs.main, *runs, "--figure", tmp_path / "figure.png")


@pytest.fixture
def compare(monkeypatch, capsys):
    """compare_runs.py as a command: exit code, stdout, stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = 0
        try:
            run(monkeypatch, lambda: run_main(compare_runs.main), *arguments)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


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


def assert_refused(outcome, *parts):
    code, _, err = outcome
    assert code == 2 and "Traceback" not in err, outcome
    for part in parts:
        assert str(part) in err[err.rindex("error: ") :], outcome


def test_each_run_says_what_it_was_scored_on(compare, tmp_path):
    held_out = "held-out training masks (noisy)"
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b", RESULT | {"scored_on": held_out})
    code, out, _ = compare(a)
    assert code == 0 and out.splitlines()[1].endswith("  test masks") and "clean" not in out and "note" not in out
    code, out, _ = compare(a, b)
    assert [line.split("  ")[-1] for line in out.splitlines()[1:3]] == ["test masks", held_out]
    assert "not scored on the same masks" in out


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
    code, out, _ = compare(*runs)
    assert code == 0 and ("not scored on the same masks" in out) == told
    (runs[0] / "per_image.csv").write_text("\ufeffimage,dice\n" + "".join(f"{name},1\n" for name in names[0][::-1]))
    assert ("not scored on the same masks" in compare(*runs)[1]) == told  # in another order, by another program
    # What is not known is no difference.
    (runs[0] / "per_image.csv").write_text("name;dice\na;0.5\n")
    (runs[0] / "args.json").unlink()
    assert "not scored on the same masks" not in compare(*runs)[1]


def test_runs_on_sets_of_equal_names_are_told(compare, tmp_path):
    runs = [finished(tmp_path / name) for name in ("a", "b")]
    for folder, dataset in zip(runs, ("mine", "other"), strict=True):
        (folder / "args.json").write_text(json.dumps({"datasets": dataset}))
    assert "not scored on the same masks" in compare(*runs)[1]
    (runs[1] / "args.json").write_text('{"datasets": "Mine"}')
    assert "not scored on the same masks" not in compare(*runs)[1]
    (runs[1] / "args.json").write_text('{"datasets": ["mine"], "noise_type": {}}')  # which is no text, and no traceback
    assert "not scored on the same masks" in compare(*runs)[1]
    (runs[1] / "per_image.csv").write_text("dice,image\n0.5\n")
    assert compare(*runs)[0] == 0
    (runs[1] / "per_image.csv").write_text(f"image,dice\n{'x' * 200_000},0.5\n")
    assert_refused(compare(*runs), runs[1] / "per_image.csv", "remove it")
    (runs[1] / "args.json").write_text("{")
    assert_refused(compare(*runs), runs[1] / "args.json", "remove it")


@pytest.mark.parametrize("settings", [{"rater_policy": "cycle"}, {"rater_policy": None, "test_folder": "testing"}])
def test_runs_of_several_annotators_have_a_table_and_no_picture(compare, tmp_path, settings):
    """The checkpoints of LIDC and MMIS-2024 name no dataset folder."""
    folder = finished(tmp_path / "lidc+gsd+cycle", **settings)
    assert compare(folder)[0] == 0
    outcome = compare(folder, "--figure", tmp_path / "figure.png")
    assert_refused(outcome, "--figure", folder, "datasets", "train_GSD-Net.py")
    assert "0.8125" in outcome[1] and not (tmp_path / "figure.png").exists()


@pytest.mark.parametrize("images", [0, -1, 101, "x"])
def test_images_out_of_range(compare, tmp_path, images):
    assert_refused(compare(finished(tmp_path / "a"), "--figure", tmp_path / "f.png", "--images", images), "--images")


def test_rows_of_no_picture(compare, tmp_path):
    assert_refused(compare(finished(tmp_path / "a"), "--images", 3), "--images", "--figure")


def test_results_that_lack_figures(compare, tmp_path):
    """As those of older versions: a dash stands for what is not recorded, or undefined."""
    old = finished(tmp_path / "old", {"final_dice_mean": 0.5, "last_epoch": {"hd95": None}})
    code, out, _ = compare(old)
    assert code == 0 and out.splitlines()[1].split() == ["old", "-", "0.5000", "-", "-", "-", "-", "not", "recorded"]


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
    """Moved, or without a noisy mask for any of its images, or now with another kind of masks."""
    dataset = write_dataset(tmp_path / "data", name="mine", train=3, test=1)
    folder = finished(tmp_path / "a", datasets="mine", noise_type="DE", data_root=str(tmp_path / "data"))
    figure = ("--figure", tmp_path / "figure.png")
    assert_refused(compare(folder, *figure), dataset / "masks_DE", "no such folder")
    (dataset / "masks_DE").mkdir()
    shutil.copy(dataset / "masks" / "case00.png", dataset / "masks_DE" / "other.png")
    assert_refused(compare(folder, *figure), dataset / "images", "masks_DE")
    dataset.rename(tmp_path / "elsewhere")
    assert_refused(compare(folder, *figure), "mine", tmp_path / "data")


def test_runs_of_the_same_name_are_both_drawn(compare, tmp_path, monkeypatch):
    write_dataset(tmp_path / "data", name="mine", train=3, test=1)
    settings = {"datasets": "mine", "noise_type": "given", "data_root": str(tmp_path / "data")}
    runs = [finished(tmp_path / place / "mine+gsd+given", **settings) for place in ("a", "b")]
    drawn = []
    monkeypatch.setattr(compare_runs, "image_grid", lambda columns, stems: drawn.extend(columns) or columns)
    monkeypatch.setattr(compare_runs, "png", lambda figure: b"")
    assert compare(*runs, "--figure", tmp_path / "figure.png")[0] == 0
    assert drawn == ["training image", "training mask", *map(str, runs)]


def test_runs_that_do_not_fit_in_one_picture(compare, tmp_path):
    settings = {"datasets": "mine", "noise_type": "given"}
    a, b = finished(tmp_path / "a", **settings), finished(tmp_path / "b", **settings | {"noise_type": "DE"})
    assert_refused(compare(a, b, "--figure", tmp_path / "figure.png"), b, "--noise_type DE", "given")
