"""Programs killed with SIGKILL at random moments and resumed; benchmarks/reliability.py does so many times more."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import reliability
from benchmarks.mutations import Kind
from benchmarks.reliability import assert_whole, contents, difference, epochs_done, programs, survive
from utils.commands.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    reliability.write_data(folder)
    return folder


@pytest.mark.parametrize("number", (0, 3, 4), ids=("train", "noise", "slic"))
def test_a_killed_program_is_resumed_to_the_same_end(data, tmp_path, number):
    """Of the scripts with several raters tests/test_multi_expert.py."""
    seed = random.randrange(2**32)  # another moment each time; the message of a failure names it
    found = survive(programs(data)[number], 1, tmp_path, random.Random(seed), lambda: None)
    assert found.kills == 1 and found.runs >= 1, seed


# --- What would tell of a defect --------------------------------------------------------------------------------------


def run_folder(folder: Path) -> Path:
    """The files of a run of two epochs."""
    run = folder / "out" / "run"
    run.mkdir(parents=True)
    torch.save({"epoch": 2}, run / "checkpoint.pt")
    (run / "log.csv").write_text("epoch,dice,seconds\n0,0.5,1.2\n1,0.6,1.3\n")
    (run / "result.json").write_text('{"dice": 0.6, "seconds_per_epoch": 1.25}')
    Image.new("L", (8, 8)).save(run / "panels.png")
    return run


@pytest.mark.parametrize("name", ["checkpoint.pt", "log.csv", "result.json", "panels.png"])
def test_a_half_written_file_is_noticed(tmp_path, name):
    path = run_folder(tmp_path) / name
    assert_whole(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 3])
    with pytest.raises(AssertionError, match=name):
        assert_whole(tmp_path)


def test_epochs_are_counted(tmp_path):
    assert epochs_done(tmp_path) == (0, 0)
    run = run_folder(tmp_path)
    assert epochs_done(tmp_path) == (2, 2)
    torch.save({"epoch": 1}, run / "checkpoint.pt")
    assert epochs_done(tmp_path) == (1, 2)


@pytest.mark.parametrize(
    ("name", "old", "new", "different"),
    [
        ("log.csv", "1.3", "2.5", ""),
        ("log.csv", "0.6", "0.7", "run/log.csv"),
        ("result.json", "1.25", "2", ""),
        ("result.json", "0.6", "0.7", "run/result.json"),
    ],
)
def test_runs_are_compared_without_their_times(tmp_path, name, old, new, different):
    run = run_folder(tmp_path / "one")
    other = tmp_path / "other" / "out" / "run"
    shutil.copytree(run, other)
    (other / name).write_text((other / name).read_text().replace(old, new))
    assert difference(contents(tmp_path / "one"), contents(tmp_path / "other")) == different


def test_files_that_are_not_in_both_are_a_difference(tmp_path):
    run_folder(tmp_path / "one")
    run_folder(tmp_path / "other")
    (tmp_path / "other" / "out" / "run" / "more.txt").write_text("")
    assert difference(contents(tmp_path / "one"), contents(tmp_path / "other")) == "run/more.txt"


def raising(error: BaseException) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        raise error

    return read


def write_example(folder: Path) -> Path:
    (folder / "example.bin").write_bytes(bytes(range(256)))
    return folder / "example.bin"


def refuse(path: Path) -> None:
    raise UserError(f"{path}: broken")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (Path.read_bytes, "read"),
        (refuse, "refused"),
        (raising(UserError("some file is broken")), "does not name"),
        (raising(ValueError("traceback")), "ValueError: traceback"),
        (lambda path: os._exit(11), "ended with code 11"),
        (lambda path: bytearray(8 * 2**30), "MemoryError"),
    ],
    ids=["read", "refused", "unnamed", "traceback", "crash", "memory"],
)
def test_each_end_of_a_broken_file_is_told(tmp_path, read, words):
    found = list(reliability.outcomes(Kind(write_example, read), 2, tmp_path, seed=0))
    assert [number for number, _ in found] == [0, 1]
    assert all(words in end for _, end in found), found
