"""Commands that are stopped by Ctrl-C or SIGTERM, and two at once in the same folder."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, assert_refused, call, write_dataset
from PIL import Image

from utils.commands.errors import UserError
from utils.commands.files import claimed, locked
from utils.commands.jobs import run_jobs


def start(script: Path, *args: object, cwd: Path) -> subprocess.Popen:
    """The script as leader of a process group, as a terminal starts it; Ctrl-C is not ignored as in background jobs."""
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, args)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(there, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group_is_gone(group: int, seconds: float = 5) -> bool:
    """Whether no process of the group is left within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def assert_stopped(process: subprocess.Popen, code: int) -> str:
    """It ended with ``code`` and one line, and left no process behind; returns what it wrote to stderr."""
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err and "Exception ignored" not in err and "leaked" not in err, err
    assert err.count("stopped by") == 1 and "stopped by" in err.splitlines()[-1], err
    assert group_is_gone(process.pid)
    return err


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp") or "making" in path.name]


def training(folder: Path) -> tuple:
    flags = ("--datasets", "Kvasir", "--noise_type", "given", "--tau", 0.1, "--data_root", folder, "--device", "cpu")
    return (*flags, "--output_root", folder / "model", "--image_size", 32, "--batch_size", 4, "--max_epochs", 500)


def ctrl_c(process: subprocess.Popen) -> None:
    """As a terminal does, to the whole group."""
    os.killpg(process.pid, signal.SIGINT)


def terminate(process: subprocess.Popen) -> None:
    """As kill, a container or a cluster's scheduler does."""
    process.terminate()


CODES = {ctrl_c: 130, terminate: 143}


@pytest.mark.parametrize("stop", CODES)
def test_a_training_run_is_stopped(tmp_path, stop):
    write_dataset(tmp_path)
    run = tmp_path / "model" / "Kvasir+gsd+given"
    process = start(TRAIN_SCRIPT, *training(tmp_path), cwd=tmp_path)
    wait_for((run / "log.csv").is_file, process)
    if stop is ctrl_c:  # meanwhile a second run in the same folder is refused and touches nothing
        assert_refused(
            call(TRAIN_SCRIPT, *training(tmp_path), "--overwrite"), f"{run}: another process is writing there"
        )
        assert process.poll() is None
    stop(process)
    assert "--resume" in assert_stopped(process, CODES[stop])
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] >= 1
    assert not unfinished(tmp_path)


@pytest.mark.parametrize(
    ("script", "stop"),
    [("generate_simulated_noise.py", terminate), ("generate_SLIC.py", ctrl_c), ("make_phantoms.py", terminate)],
)
def test_a_preprocessing_script_is_stopped(tmp_path, script, stop):
    for name, pixels in (("images", np.random.default_rng(0).integers(256, size=(200, 200, 3))), ("masks", disc())):
        (tmp_path / name).mkdir()
        for index in range(200):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{index}.png", compress_level=0)
    made = tmp_path / "made"
    flags = {
        "generate_simulated_noise.py": ("--gts_root", tmp_path / "masks", "--T", 3000),
        "generate_SLIC.py": ("--images_root", tmp_path / "images"),
        "make_phantoms.py": ("--train", 500),
    }[script]
    process = start(REPO / "scripts" / script, *flags, "--save_root", made, "--workers", 2, cwd=tmp_path)
    wait_for(lambda: any(made.rglob("[!.s]*.*")), process)
    stop(process)
    assert_stopped(process, CODES[stop])
    assert not unfinished(tmp_path)


def disc(size: int = 200) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size // 2
    return 255 * (rows**2 + columns**2 < (size // 4) ** 2)


def nap_and_note(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(30)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = f"""
import sys
sys.path[:0] = {[str(REPO), str(REPO / "tests")]}
from pathlib import Path
from test_stopped import nap_and_note
from utils.commands.files import claimed, locked
from utils.commands.jobs import run_jobs
with claimed(Path({str(tmp_path)!r})):
    run_jobs(nap_and_note, [Path({str(tmp_path)!r})] * 4, workers=2, label="naps")
"""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("[0-9]*"))) == 2, process)
    with pytest.raises(UserError, match="another process is writing there"), claimed(tmp_path):
        pass
    process.kill()
    process.communicate()
    assert group_is_gone(process.pid)
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_command_ends_with_its_parent(tmp_path, end):
    child = tmp_path / "child.py"
    child.write_text(
        f"""
import sys, time
sys.path.insert(0, {str(REPO)!r})
from pathlib import Path
from utils.commands.errors import run_main

def main():
    Path("started").touch()
    try:
        time.sleep(60)
    finally:
        Path("ended").touch()

run_main(main)
"""
    )
    parent = tmp_path / "parent.py"
    parent.write_text(
        f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from utils.commands.jobs import run_child
from utils.commands.errors import run_main

run_main(lambda: sys.exit(run_child([sys.executable, {str(child)!r}])))
"""
    )
    process = start(parent, cwd=tmp_path)
    wait_for((tmp_path / "started").exists, process)
    process.send_signal(end)
    process.wait(timeout=20)
    assert group_is_gone(process.pid, seconds=20) and (tmp_path / "ended").exists()
    process.communicate()


def test_left_overs_go_when_a_folder_is_claimed(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    kept = [tmp_path / "a.tmp", tmp_path / ".hidden", other / "b.png"]
    for path in (*kept, tmp_path / ".a.png.1.tmp", other / ".b.png.1.tmp"):
        path.touch()
    with claimed(tmp_path, other):
        assert unfinished(tmp_path) == [tmp_path / "a.tmp"]
        (other / ".c.png.1.tmp").touch()
    assert unfinished(tmp_path) == [tmp_path / "a.tmp"] and all(path.exists() for path in kept)
    assert not (tmp_path / ".lock").exists()


def test_a_folder_on_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with claimed(tmp_path):
        (tmp_path / "file").touch()
    assert f"warning: {tmp_path}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    with pytest.raises(OSError, match="No locks available"), locked(tmp_path / "lock", "waiting"):
        pass


def test_who_comes_second_says_so_and_waits(tmp_path, capsys):
    held, order = threading.Event(), []

    def hold() -> None:
        with locked(tmp_path / "lock", "the first waits"):
            held.set()
            time.sleep(0.5)
            order.append("first")

    first = threading.Thread(target=hold)
    first.start()
    held.wait()
    with locked(tmp_path / "lock", "the second waits"):
        order.append("second")
    first.join()
    assert order == ["first", "second"] and capsys.readouterr().err == "the second waits\n"


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), claimed(tmp_path / "file" / "folder"):
        pass


def test_jobs_run_while_ctrl_c_is_heard():
    """Starting processes hides Ctrl-C from them for a moment, not from this process for good."""
    run_jobs(abs, [1, -2], workers=2, label="test")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
