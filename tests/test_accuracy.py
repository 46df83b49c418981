"""The accuracy benchmark: cells, their results' file, its tables, and a small grid from beginning to end."""

import csv
import json
import shutil
from argparse import Namespace
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from conftest import REPO, TRAIN_SCRIPT, assert_refused, assert_succeeded, call, load_program, run_script, write_dataset

from benchmarks import accuracy
from benchmarks.accuracy import GRIDS, METHODS, NOISES, PAPERS, Cell, Row
from dataloaders.datasets import Layout
from utils.commands.errors import UserError

run = partial(call, accuracy.main)


def row(method: str = "ce", noise: str = "S_R", dice: float = 0.5, seed: int = 1, **changes) -> Row:
    cell = Cell("shenzhen", noise, method, seed, "schedule", 64, "test", "")
    rest = {"recipe": "paper", "segments": 256, "tau": 0.1, "scored_at": "mask size", "cases": 113, "iou": 0.4}
    made = Row(**asdict(cell), **rest, dice=dice, hd95=3.5, seconds=60.0, machine="m", date="2026-01-01", commit="abc")
    return replace(made, **changes)


def asked(**changes) -> Namespace:
    flags = {"grid": "methods", "protocol": "schedule", "datasets": ["shenzhen"], "noises": ["02", "08", "DE"]}
    flags |= {"image_size": 64, "split": "test", "methods": None, "seeds": [1, 2], "flags": []}
    return Namespace(**{**flags, **changes})


# --- Cells ------------------------------------------------------------------------------------------------------------


def test_one_seed_everywhere_comes_before_the_next():
    cells = accuracy.cells_of(asked())
    assert len(set(cells)) == len(cells) == 2 * 3 * len(METHODS)
    assert [cell.seed for cell in cells] == [1] * (3 * len(METHODS)) + [2] * (3 * len(METHODS))
    assert len(accuracy.cells_of(asked(methods=["ce"], noises=["DE", "clean"], seeds=None))) == 2


@pytest.mark.parametrize("grid", GRIDS)
def test_the_training_script_takes_the_flags_of_every_method(monkeypatch, grid):
    noises = PAPERS if grid == "tau" else NOISES  # of the others RATE has no rate
    for cell in accuracy.cells_of(asked(grid=grid, seeds=[3], noises=list(noises))):
        flags = ["--datasets", cell.dataset, *accuracy.flags_of(cell, grid)]
        monkeypatch.setattr("sys.argv", ["train", *flags])
        args = load_program(TRAIN_SCRIPT).parse_arguments()
        assert (args.max_epochs, args.batch_size, args.image_size, args.seed) == (100, 16, 64, 3)
        kind = NOISES[args.noise_type] if args.noise_type else NOISES[args.masks.removeprefix("masks_")]
        assert kind.name == cell.noise and kind.folder == args.masks


def test_the_module_grid_switches_each_off_and_leaves_each_alone():
    off = {name: set(flags[1:-2]) for name, flags in GRIDS["modules"].items() if "--without" in flags}
    modules = {"selection", "gda", "sgr", "kt"}
    each, alone = [[m] for m in modules], [sorted(modules - {m}) for m in modules]
    assert sorted(map(sorted, off.values())) == sorted(each + alone)


def test_the_tau_grid_multiplies_the_noise_rate():
    cell = Cell("shenzhen", "S_R", "GSD-Net, tau = rate x 0.5", 0, "schedule", 64, "validation", "")
    flags = accuracy.flags_of(cell, "tau")
    assert flags[flags.index("--tau") + 1] == "0.0692"
    with pytest.raises(UserError, match="RATE"):
        accuracy.flags_of(replace(cell, dataset="mine"), "tau")


# --- The results' file ------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "results.csv"
    rows = [row(), row("GSD-Net", hd95=None), row(seed=2)]
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


def test_the_projects_own_results_are_read():
    assert accuracy.read_rows(accuracy.RESULTS)


def test_a_row_of_the_former_rule_is_kept_beside_one_of_todays(tmp_path):
    path = tmp_path / "results.csv"
    accuracy.add_row(path, row(scored_at="training size"))
    accuracy.add_row(path, row(dice=0.2))
    assert [one.dice for one in accuracy.read_rows(path)] == [0.2, 0.5]


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_what_is_printed_is_what_was_asked_for():
    rows = [row(), row(noise="clean"), row(seed=3), row(scored_at="training size"), row(image_size=128)]
    rows += [row("no"), row(protocol="half"), row(split="validation"), row(flags="--amp fp32"), row(dataset="Kvasir")]
    assert [accuracy.asked_for(one, asked()) for one in rows] == [True] + [False] * 9
    assert accuracy.asked_for(rows[2], asked(seeds=None)) and accuracy.asked_for(rows[1], asked(noises=["clean"]))


def test_the_table_averages_seeds():
    rows = [row(dice=0.5), row(dice=0.7, seed=2), row("GSD-Net", noise="S_DE", dice=0.9)]
    lines = accuracy.table(rows, "shenzhen", list(METHODS)).splitlines()
    assert lines[0] == "| shenzhen | S_R | S_DE |"
    assert lines[2:4] == ["| ce | 0.6000 +- 0.141 (2) |  |", "| GSD-Net |  | 0.9000 |"]
    assert "113 images" in lines[-1]


# --- Runs -------------------------------------------------------------------------------------------------------------


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


@pytest.fixture
def trained_here(monkeypatch, without_pictures):
    """Training in this process, which costs no imports; what else a grid starts is a process as ever."""
    start = accuracy.call

    def train(script: object, *args: object, log: Path, threads: int = 1) -> None:
        if script != TRAIN_SCRIPT.name:
            return start(script, *args, log=log, threads=threads)
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", [script, *map(str, args)])
            load_program(TRAIN_SCRIPT).main()

    monkeypatch.setattr(accuracy, "call", train)


@pytest.mark.usefixtures("trained_here")
def test_a_small_grid(tmp_path):
    write_dataset(tmp_path / "data", train=5, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    flags += ["--datasets", "Kvasir", "--noises", "02", "clean", "--image_size", 32]
    cells = ["--methods", "ce + Dice", "GSD-Net, tau auto"]
    fast = ["--", "--max_epochs", 2, "--batch_size", 2, "--device", "cpu"]
    assert_succeeded(run(*flags, *cells, *fast))
    with open(tmp_path / "results.csv", newline="") as file:
        results = list(csv.DictReader(file))
    found = {(r["noise"], r["method"], r["recipe"], r["scored_at"], r["split"], r["segments"]) for r in results}
    assert found == {
        (noise, method, "paper", "mask size", "test", "64")
        for noise in ("S_R", "clean")
        for method in ("ce + Dice", "GSD-Net, tau auto")
    }
    assert all(0 <= float(r["dice"]) <= 1 and r["cases"] == "2" for r in results)
    taus = {(r["noise"], r["method"]): float(r["tau"]) for r in results}
    assert taus["S_R", "ce + Dice"] == 0 < taus["S_R", "GSD-Net, tau auto"]
    assert (tmp_path / "data" / "Kvasir" / Layout().shrunk / "case00.png").is_file()
    curves = list((tmp_path / "curves").iterdir())
    assert len(curves) == 4 and all(len(path.read_text().splitlines()) == 3 for path in curves)

    before = (tmp_path / "results.csv").stat().st_mtime_ns
    assert "0 cells to train" in run(*flags, *cells, *fast).out
    assert (tmp_path / "results.csv").stat().st_mtime_ns == before

    outcome = run(*flags, "--table", "--figure", tmp_path / "figure.png", *fast)
    assert outcome.out.startswith("| Kvasir | S_R | clean |")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("trained_here")
def test_a_method_may_train_on_the_masks_that_an_audit_estimates(tmp_path):
    write_dataset(tmp_path / "data", train=5, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    flags += ["--datasets", "Kvasir", "--noises", "08", "--image_size", 32, "--methods", *accuracy.ESTIMATED]
    assert_succeeded(run(*flags, "--", "--max_epochs", 2, "--batch_size", 2, "--device", "cpu"))
    (result,) = accuracy.read_rows(tmp_path / "results.csv")
    assert (result.noise, result.method, result.recipe) == ("S_E", *accuracy.ESTIMATED, "contour")
    (estimated,) = (tmp_path / "work" / "audits").glob("*/masks_refined")
    assert len(list(estimated.glob("*.png"))) == 5
    (trained,) = (tmp_path / "work" / "runs").glob("*/*/args.json")
    assert json.loads(trained.read_text())["masks"] == str(estimated)


def test_a_failed_run_is_named(tmp_path):
    write_dataset(tmp_path / "data", train=3, test=2)
    flags = ["--data_root", tmp_path / "data", "--work_root", tmp_path / "work", "--results", tmp_path / "results.csv"]
    flags += ["--datasets", "Kvasir", "--noises", "clean", "--methods", "ce"]
    outcome = run(*flags)
    assert outcome.code == 2 and "train_GSD-Net.py" in outcome.err and "--batch_size" in outcome.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--methods", "no"], "--methods"), (["--jobs", 0], "--jobs"), (["--table", "--results", "none.csv"], "none.csv")],
)
def test_bad_usage(flags, said):
    assert_refused(run(*flags), said)


def test_at_the_command_line():
    outcome = run_script("--jobs", 0, script=REPO / "benchmarks" / "accuracy.py")
    assert outcome.returncode == 2 and "--jobs" in outcome.stderr
