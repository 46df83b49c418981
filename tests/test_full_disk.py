"""A disk that is full, or a limit on files that is reached: an error that says so, and what was there stays."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, write_dataset
from PIL import Image

from benchmarks.mutations import SETTINGS
from networks.unet import two_unets
from utils.commands.errors import UserError
from utils.commands.files import write_atomically, write_json, write_table
from utils.engine.run_folder import Run


@contextmanager
def no_file_above(size: int):
    """What a full disk does to whoever writes more than ``size`` bytes: an OSError in the midst of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


WRITERS = {
    "bytes": lambda path, much: write_atomically(path, bytes(10 + 5000 * much)),
    "JSON": lambda path, much: write_json(path, ["value"] * (1 + 5000 * much)),
    "table": lambda path, much: write_table(path, [{"epoch": 1}] * (1 + 5000 * much)),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_does_not_fit_leaves_the_previous_one(tmp_path, write):
    path = tmp_path / "file"
    write(path, False)
    before = path.read_bytes()
    with no_file_above(4096), pytest.raises(UserError, match=rf"{path}: cannot be written \(File too large\)"):
        write(path, True)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_does_not_fit_leaves_the_previous_one(tmp_path):
    networks = torch.nn.ModuleList(two_unets(1, 2, seed=0))
    optimiser, generator = torch.optim.SGD(networks.parameters(), 0.1, momentum=0.9), torch.Generator()
    run = Run(tmp_path / "run", SETTINGS, resume=False, overwrite=False)

    def close_epoch(epoch: int) -> None:
        run.close_epoch({"epoch": epoch, "loss": 1.0}, networks, optimiser, generator, {})

    close_epoch(0)
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.is_file()}
    with no_file_above(2**20), pytest.raises(UserError, match=r"checkpoint\.pt: cannot be written"):
        close_epoch(1)
    run.close()
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("[!.]*.*") if path.is_file()} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }
    with_two = Run(tmp_path / "run", SETTINGS, resume=True, overwrite=False)
    with_two.restore(networks, optimiser, generator)
    assert with_two.epochs_done == 1
    with_two.close()


def limited(size: int, *command: object, cwd: Path) -> subprocess.CompletedProcess:
    """A script under a limit on the size of its files, as `ulimit -f` sets it."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    # Without coverage, whose own file would not fit either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        timeout=120,
        env=environment,
    )


def assert_told(outcome: subprocess.CompletedProcess, name: str) -> None:
    assert outcome.returncode == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr and "Exception ignored" not in outcome.stderr, outcome.stderr
    [message] = [part for part in outcome.stderr.split("error: ")[1:]]
    assert name in message and "File too large" in message


def test_a_training_run_whose_checkpoint_does_not_fit(tmp_path):
    write_dataset(tmp_path / "data", train=4, test=1)
    flags = ("--datasets", "Kvasir", "--noise_type", "given", "--tau", 0.1, "--data_root", tmp_path / "data")
    quick = ("--image_size", 32, "--batch_size", 4, "--max_epochs", 2, "--device", "cpu", "--cache", "none")
    outcome = limited(2**20, TRAIN_SCRIPT, *flags, *quick, "--output_root", tmp_path / "model", cwd=tmp_path)
    assert_told(outcome, "checkpoint.pt")
    [run] = (tmp_path / "model").iterdir()
    assert {path.name for path in run.iterdir()} <= {"args.json", "tensorboard"}


@pytest.mark.parametrize("workers", [1, 2])
def test_masks_that_do_not_fit(tmp_path, workers):
    """Those that fit are made and whole; the same command goes on where there is room again."""
    rng = np.random.default_rng(0)
    (tmp_path / "masks").mkdir()
    for index in range(4):
        noise = rng.integers(2, size=(300, 300)) if index % 2 else np.zeros((300, 300))
        Image.fromarray((noise * 255).astype(np.uint8)).save(tmp_path / "masks" / f"{index}.png")
    command = (REPO / "scripts" / "generate_simulated_noise.py", "--gts_root", tmp_path / "masks", "--T", 1)
    command = (*command, "--save_root", tmp_path / "noisy", "--workers", workers)
    outcome = limited(2000, *command, cwd=tmp_path)
    assert_told(outcome, "1.png: cannot be written")
    assert "2 of 4 masks were not made" in outcome.stderr
    assert sorted(path.name for path in (tmp_path / "noisy").iterdir()) == ["0.png", "2.png", "settings.json"]
    assert json.loads((tmp_path / "noisy" / "settings.json").read_text())["T"] == 1
    outcome = limited(2**20, *command, cwd=tmp_path)
    assert outcome.returncode == 0 and "2 written, 2 already there" in outcome.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_to_a_full_disk(tmp_path):
    """python ... > log on a full disk: told, and not with a traceback."""
    write_dataset(tmp_path, train=2, test=1)
    command = (REPO / "scripts" / "generate_simulated_noise.py", "--gts_root", tmp_path / "Kvasir" / "masks")
    with open("/dev/full", "w") as full:
        outcome = subprocess.run(
            [sys.executable, *map(str, command), "--save_root", str(tmp_path / "noisy"), "--workers", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert outcome.returncode != 0 and "No space left on device" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(list((tmp_path / "noisy").glob("*.png"))) == 2
