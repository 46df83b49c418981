"""The accuracy benchmark: cells, their results' file, its tables, and a small grid from beginning to end."""

import csv
import json
import shutil
import sys
from argparse import Namespace
from dataclasses import asdict, replace

import numpy as np
import pytest
from conftest import REPO, TRAIN_SCRIPT, load_program, run_script, write_dataset

from benchmarks import accuracy
from benchmarks.accuracy import (
    CLEAN,
    GRIDS,
    GSD_CLEAN,
    METHODS,
    MISSING,
    MISSING_SHARE,
    NOISES,
    TAU,
    TAU_MISSING,
    Cell,
    Row,
)
from dataloaders.files import read_mask
from dataloaders.noisy_folder import Layout
from utils.commands.errors import UserError

SCRIPT = REPO / "benchmarks" / "accuracy.py"


def parse(monkeypatch, *flags: str) -> Namespace:
    """The training script's own reading of its flags."""
    script = load_program(TRAIN_SCRIPT)
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    return script.parse_arguments()


def row(method: str = "ce", noise: str = "S_R", dice: float = 0.5, seed: int = 1, **changes) -> Row:
    cell = Cell("methods", "small", "shenzhen", noise, method, seed, "")
    rest = {"iou": 0.4, "hd95": 3.5, "epochs": 16, "averaged": 4, "seconds": 60, "precision": "bf16"}
    made = Row(**asdict(cell), dice=dice, **rest, torch="2", machine="m", date="2026-01-01")
    return replace(made, **changes)


# --- Cells ------------------------------------------------------------------------------------------------------------


def asked(**changes) -> Namespace:
    flags = {"grid": "methods", "protocol": "small", "datasets": ["shenzhen"], "noises": list(NOISES)}
    return Namespace(**{**flags, "methods": None, "seeds": [1, 2], "flags": [], **changes})


def test_clean_masks_are_trained_on_once_a_seed():
    cells = accuracy.cells_of(asked())
    assert len(cells) == len(set(cells)) == 2 * (3 * (len(METHODS) - 2) + 2)
    assert {cell.noise for cell in cells if cell.method in (CLEAN, GSD_CLEAN)} == {"clean"}


def test_a_grid_can_be_cut_down():
    cells = accuracy.cells_of(asked(methods=["gsd"], noises=["DE"], seeds=[7]))
    assert cells == [Cell("methods", "small", "shenzhen", "S_DE", "gsd", 7, "")]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_training_script_takes_the_flags_of_every_method(monkeypatch, grid):
    for cell in accuracy.cells_of(asked(grid=grid, seeds=[3])):
        args = parse(monkeypatch, "--datasets", cell.dataset, *accuracy.flags_of(cell))
        assert (args.seed, args.image_size) == (3, 128)
        assert args.noise_type == {**{e: k for k, e in NOISES.items()}, "clean": "clean", MISSING: "given"}[cell.noise]


def test_the_tau_grid_multiplies_the_papers():
    flags = accuracy.flags_of(Cell("tau", "small", "Kvasir", "S_E", "gsd, tau x 2", 1, ""))
    assert float(flags[flags.index("--tau") + 1]) == 2 * TAU["Kvasir"]
    assert accuracy.flags_of(Cell("tau", "small", "shenzhen", "S_R", "jocor, tau x 0.5", 1, ""))[:4] == [
        "--method",
        "jocor",
        "--tau",
        "0.085",
    ]


def test_missing_objects_are_one_noise_whatever_the_others():
    cells = accuracy.cells_of(asked(grid="missing", seeds=[1], methods=["gsd paper", CLEAN]))
    assert [(cell.noise, cell.method) for cell in cells] == [(MISSING, "gsd paper"), ("clean", CLEAN)]
    flags = accuracy.flags_of(cells[0])
    assert flags[flags.index("--tau") + 1] == str(TAU_MISSING["shenzhen"])


# --- The results' file ------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "results.csv"
    rows = [row(), row("gsd", hd95=None), row(seed=2)]
    for one in rows:
        accuracy.add_row(path, one)
    assert set(accuracy.read_rows(path)) == set(rows)


def test_a_cell_has_one_row(tmp_path):
    path = tmp_path / "results.csv"
    accuracy.add_row(path, row(dice=0.1))
    accuracy.add_row(path, row(dice=0.2))
    assert [one.dice for one in accuracy.read_rows(path)] == [0.2]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "\x00", None])
def test_a_foreign_file_is_no_results_file(tmp_path, content):
    path = tmp_path / "results.csv"
    if content is None:
        accuracy.add_row(path, row())
        content = path.read_text().replace("0.5", "half")
    path.write_text(content)
    if content == "\x00":
        content = "x\n" + content
        path.write_text(content)
    with pytest.raises(UserError, match=r"results\.csv"):
        accuracy.read_rows(path)


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_gap_recovered():
    assert accuracy.gap_recovered(0.6, 0.6, 0.9) == 0
    assert accuracy.gap_recovered(0.9, 0.6, 0.9) == 1
    assert accuracy.gap_recovered(0.5, 0.6, 0.9) < 0
    assert accuracy.gap_recovered(0.7, 0.6, 0.6) is None  # no gap
    assert accuracy.gap_recovered(0.7, None, 0.9) is None


def test_what_is_printed_is_what_was_asked_for():
    given = accuracy.parse_args(["--noises", "02", "--seeds", "1", "--methods", "ce", CLEAN])
    kept = [row(), row(CLEAN, "clean")]
    others = [row(noise="S_E"), row(seed=2), row("gsd"), row(dataset="BUSUC"), row(flags="--max_epochs 2")]
    others += [row(grid="tau"), row(protocol="full")]
    assert [one for one in kept + others if accuracy.asked_for(one, given)] == kept


def test_other_flags_are_another_cell():
    usual, shorter = (accuracy.cells_of(asked(flags=flags)) for flags in ([], ["--max_epochs", "2"]))
    assert not set(usual) & set(shorter)


def test_the_table_averages_seeds_and_noises():
    rows = [
        *(row("ce", noise, dice) for noise, dice in (("S_R", 0.5), ("S_E", 0.6), ("S_DE", 0.7))),
        *(row("gsd", noise, dice) for noise, dice in (("S_R", 0.7), ("S_E", 0.8), ("S_DE", 0.81))),
        row("gsd", "S_DE", 0.89, seed=2),
        row(CLEAN, "clean", 0.9),
    ]
    rows += [row("gsd", dataset="Kvasir")]
    lines = accuracy.table(rows, "shenzhen").splitlines()
    heads = [part.strip() for part in lines[0].split("|")[1:-1]]
    assert heads == ["shenzhen", "S_R", "S_E", "S_DE", "mean", "IoU", "HD95", "gap"]
    body = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in lines[2:]}
    assert body["ce"] == ["0.5000", "0.6000", "0.7000", "0.6000", "0.4000", "3.5", "0%"]
    assert body["gsd"] == ["0.7000", "0.8000", "0.8500 +- 0.057 (2)", "0.7833", "0.4000", "3.5", "61%"]
    assert body[CLEAN] == ["0.9000", "0.9000", "0.9000", "0.9000", "0.4000", "3.5", "100%"]


def test_a_mean_needs_every_noise():
    rows = [row("ce", "S_R"), row("ce", "S_E"), row("gsd", "S_R", 0.6), row("gsd", "S_E", 0.6, hd95=None)]
    rows += [row("jocor", "S_R", 0.6)]
    jocor, gsd = accuracy.table(rows, "shenzhen").splitlines()[-2:]
    assert [part.strip() for part in jocor.split("|")[2:-1]] == ["0.6000", "", "", "", "", ""]
    assert [part.strip() for part in gsd.split("|")[2:-1]] == ["0.6000", "0.6000", "0.6000", "0.4000", "", ""]


# --- Validation images ------------------------------------------------------------------------------------------------


def test_validation_images_are_neither_trained_nor_tested_on(tmp_path):
    layout = Layout()
    dataset = write_dataset(tmp_path / "data", train=10, test=3)
    shutil.copytree(dataset / "masks", dataset / layout.shrunk)
    accuracy.validation_dataset(dataset, layout, ["02"], tmp_path / "val")
    names = {folder.name: {path.stem for path in folder.iterdir()} for folder in (tmp_path / "val").iterdir()}
    assert len(names["images"]) == 8 and len(names["images_test"]) == 2
    assert not names["images"] & names["images_test"]
    assert names["images"] == names["masks"] == names[layout.shrunk]
    assert names["images_test"] == names["masks_test"]
    tested = {path.resolve() for path in (dataset / "images_test").iterdir()}
    assert not tested & {path.resolve() for path in (tmp_path / "val").rglob("*")}


# --- Missing objects --------------------------------------------------------------------------------------------------


def test_one_object_is_missing_in_four_of_ten():
    mask = np.zeros((40, 60), bool)
    objects = [np.s_[5:25, 5:20], np.s_[10:30, 30:50]]
    for one in objects:
        mask[one] = True
    mask[0, 0] = True  # a speck, which is no object
    found = [accuracy.object_missing(mask, np.random.default_rng(seed)) for seed in range(1000)]
    whole = sum(np.array_equal(one, mask) for one in found)
    assert 1 - whole / 1000 == pytest.approx(MISSING_SHARE, abs=0.05)
    for one in found:
        left = [one[place].all() for place in objects]
        assert (
            one[0, 0]
            and sum(left) >= 1
            and one.sum() == 1 + sum(mask[p].sum() for p, is_left in zip(objects, left, strict=True) if is_left)
        )
    assert {tuple(one[place].all() for place in objects) for one in found} == {
        (True, True),
        (True, False),
        (False, True),
    }


def test_a_mask_without_objects_stays_as_it_is():
    empty = np.zeros((8, 8), bool)
    assert not any(accuracy.object_missing(empty, np.random.default_rng(seed)).any() for seed in range(20))


def test_only_training_masks_lack_objects(tmp_path):
    layout = Layout()
    dataset = write_dataset(tmp_path / "data", train=20, test=2)
    masks = accuracy.make_missing(dataset, layout, tmp_path / "work")
    target = tmp_path / "missing" / dataset.name
    accuracy.validation_dataset(dataset, layout, [], target, masks)

    def emptied(folder: str) -> int:
        return sum(not read_mask(path).labels.any() for path in (target / folder).iterdir())

    assert 0 < emptied("masks") < 16 and emptied("masks_test") == 0
    assert len(list((target / "masks").iterdir())) == len(list((target / "images").iterdir())) == 16
    before = {path: path.stat().st_mtime_ns for path in masks.iterdir()}
    assert accuracy.make_missing(dataset, layout, tmp_path / "work") == masks
    assert {path: path.stat().st_mtime_ns for path in masks.iterdir()} == before


# --- From beginning to end --------------------------------------------------------------------------------------------


def test_a_small_grid(tmp_path):
    write_dataset(tmp_path / "data", train=5, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    flags += ["--datasets", "Kvasir", "--noises", "02"]
    cells = ["--methods", "ce", "gsd", CLEAN, "--jobs", 2]
    fast = ["--", "--max_epochs", 2, "--batch_size", 2, "--device", "cpu"]
    outcome = run_script(*flags, *cells, *fast, script=SCRIPT)
    assert outcome.returncode == 0, outcome.stderr
    with open(tmp_path / "results.csv", newline="") as file:
        results = list(csv.DictReader(file))
    assert {(r["dataset"], r["noise"], r["method"]) for r in results} == {
        ("Kvasir", "S_R", "ce"),
        ("Kvasir", "S_R", "gsd"),
        ("Kvasir", "clean", CLEAN),
    }
    assert all(r["epochs"] == "2" and r["averaged"] == "1" and 0 <= float(r["dice"]) <= 1 for r in results)
    assert (tmp_path / "data" / "Kvasir" / Layout().shrunk / "case00.png").is_file()

    before = (tmp_path / "results.csv").stat().st_mtime_ns
    outcome = run_script(*flags, *cells, *fast, script=SCRIPT)
    assert "0 cells to train" in outcome.stdout
    assert (tmp_path / "results.csv").stat().st_mtime_ns == before

    outcome = run_script(*flags, "--table", "--figure", tmp_path / "figure.png", *fast, script=SCRIPT)
    assert outcome.stdout.startswith("| Kvasir | S_R | mean |")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_grid_of_missing_objects(tmp_path):
    write_dataset(tmp_path / "data", train=10, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    flags += [
        "--datasets",
        "Kvasir",
        "--grid",
        "missing",
        "--methods",
        "gsd",
        CLEAN,
        "--figure",
        tmp_path / "figure.png",
    ]
    flags += ["--", "--max_epochs", 1, "--batch_size", 2, "--device", "cpu"]
    outcome = run_script(*flags, script=SCRIPT)
    assert outcome.returncode == 0, outcome.stderr
    assert "of the pixels are wrong" in outcome.stdout and "| Kvasir | missing | mean |" in outcome.stdout
    trained = {
        run.parents[1].name.split("_")[4]: run.parent for run in (tmp_path / "work" / "runs").glob("*/*/args.json")
    }
    roots = {name: json.loads((run / "args.json").read_text())["data_root"] for name, run in trained.items()}
    assert roots == {
        "gsd": str((tmp_path / "work" / "missing").resolve()),
        CLEAN.replace(" ", "-"): str((tmp_path / "work" / "validation").resolve()),
    }


def test_a_failed_run_is_named(tmp_path):
    write_dataset(tmp_path / "data", train=3, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    outcome = run_script(*flags, "--datasets", "Kvasir", "--noises", "02", "--methods", "ce", script=SCRIPT)
    assert outcome.returncode == 2
    assert "only 3 training images" in outcome.stderr and "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "no"], "--methods no: --grid methods has ce"),
        (["--jobs", 0], "--jobs must be at least 1"),
        (["--table", "--results", "none.csv"], "no results"),
    ],
)
def test_bad_usage(flags, said):
    outcome = run_script(*flags, script=SCRIPT)
    assert outcome.returncode == 2
    assert said in outcome.stderr and "Traceback" not in outcome.stderr
