"""train.sh: the nine runs on the paper's sets, datasets that are absent, runs that fail."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPO


def train_sh(data_root, python, *flags):
    """train.sh with ``python`` as the interpreter; `echo` prints the commands in place of running them."""
    environment = {**os.environ, "DATA_ROOT": str(data_root), "PYTHON": python}
    return subprocess.run(["sh", REPO / "train.sh", *flags], env=environment, capture_output=True, text=True)


def test_the_nine_runs_of_the_paper(tmp_path):
    for folder in ("Kvasir", "shenzhen", "BUSUC"):
        (tmp_path / folder).mkdir()
    done = train_sh(tmp_path, "echo", "--max_epochs", "7")
    assert done.returncode == 0, done.stderr
    commands = [line.split() for line in done.stdout.splitlines() if "train_GSD-Net.py" in line]
    runs = [
        tuple(command[command.index(f"--{name}") + 1] for name in ("datasets", "noise_type")) for command in commands
    ]
    assert runs == [(name, noise) for name in ("kvasir", "shenzhen", "BUSUC") for noise in ("02", "08", "DE")]
    assert all("--resume" in command and command[-2:] == ["--max_epochs", "7"] for command in commands)


def test_folders_are_those_of_where_it_is_called(tmp_path):
    (tmp_path / "mine" / "BUSUC").mkdir(parents=True)
    python = tmp_path / "python"  # which looks where the script would
    found = '[ -d "$2/BUSUC" ] && [ "$3 $4 $5" = "--resume --a b" ]'
    python.write_text(f'#!/bin/sh\nwhile [ "$1" != --data_root ]; do shift; done\n{found}\n')
    python.chmod(0o755)
    environment = {**os.environ, "DATA_ROOT": "mine", "PYTHON": str(python)}
    command = ["sh", REPO / "train.sh", "--a", "b"]
    assert subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True).returncode == 0
    assert subprocess.run(command, env=environment, cwd=tmp_path / "mine", capture_output=True).returncode == 2


def test_absent_datasets_are_skipped_with_a_line(tmp_path):
    (tmp_path / "shenzhen").mkdir()
    done = train_sh(tmp_path, "echo")
    assert done.returncode == 0
    assert done.stdout.count("train_GSD-Net.py") == 3
    for absent in ("Kvasir", "BUSUC"):
        assert f"{absent}: skipped" in done.stdout and f"{tmp_path}/{absent}" in done.stdout


def test_all_absent_fails(tmp_path):
    done = train_sh(tmp_path, "echo")
    assert done.returncode == 2
    assert "none of the datasets" in done.stderr and str(tmp_path) in done.stderr


@pytest.mark.parametrize("noise", ["02", "08", "DE"])
def test_failed_runs_are_named_and_the_others_still_run(tmp_path, noise):
    (tmp_path / "BUSUC").mkdir()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"--noise_type {noise} "*) exit 2 ;; *) echo ran ;; esac\n')
    python.chmod(0o755)
    done = train_sh(tmp_path, str(python))
    assert done.returncode == 1
    assert done.stdout.splitlines().count("ran") == 2
    assert done.stderr.strip().endswith(f"failed: BUSUC/{noise}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_script_stops_its_run_and_all_further_ones(tmp_path, number):
    (tmp_path / "BUSUC").mkdir()
    python = tmp_path / "python"
    python.write_text(
        f"""#!{sys.executable}
import sys, time
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from utils.commands.errors import run_main

def main():
    folder = Path({str(tmp_path)!r})
    with open(folder / "runs", "a") as file:
        file.write("run\\n")
    try:
        time.sleep(60)
    finally:
        time.sleep(0.3)  # a checkpoint is written to its end
        (folder / "ended").touch()

run_main(main)
"""
    )
    python.chmod(0o755)
    environment = {**os.environ, "DATA_ROOT": str(tmp_path), "PYTHON": str(python)}
    process = subprocess.Popen(
        ["sh", REPO / "train.sh"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            number, signal.SIG_DFL
        ),  # tests may run in the background, where it is ignored
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "runs").exists() and (tmp_path / "runs").read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, (tmp_path / "runs").read_text()) == (143, "run\n")
    assert (tmp_path / "ended").exists() and err.count("stopped by") == 1


def test_folders_are_found_whatever_their_case(tmp_path):
    for folder in ("kvasir", "Shenzhen", "Busuc", "kvasir_old"):
        (tmp_path / folder).mkdir()
    done = train_sh(tmp_path, "echo")
    assert done.returncode == 0 and done.stdout.count("train_GSD-Net.py") == 9
