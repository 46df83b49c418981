"""What every command shares."""

import errno
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO, run_script

from utils.commands.arguments import add_workers, command_parser
from utils.commands.errors import UserError, run_main, warn
from utils.commands.files import claimed, keep_all_settings, keep_settings
from utils.commands.jobs import processors, run_jobs


def test_a_broken_record_of_settings_is_named(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"settings\.json: not readable as JSON .*; .*add --overwrite"):
        keep_settings(tmp_path, {"seed": 0}, overwrite=False)
    keep_settings(tmp_path, {"seed": 0}, overwrite=True)
    keep_settings(tmp_path, {"seed": 0}, overwrite=False)


def test_what_cannot_be_replaced_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a\.png: cannot be replaced"):
        keep_settings(tmp_path, {"seed": 0}, overwrite=True, outputs=[tmp_path / "a.png"])
    assert not (tmp_path / "settings.json").exists()


def test_files_of_other_settings_do_not_stay_beside_new_ones(tmp_path):
    outputs = [tmp_path / "a.png", tmp_path / "b.png"]
    keep_settings(tmp_path, {"seed": 0}, overwrite=False, outputs=outputs)
    for path in outputs:
        path.write_text("of seed 0")
    (tmp_path / "notes.txt").write_text("no output")
    keep_settings(tmp_path, {"seed": 0}, overwrite=True, outputs=outputs[:1], exclusive=True)  # b.png is of these too
    outputs[0].write_text("of seed 0")
    record = tmp_path / "settings.json"
    for former in (record.read_text(), "{", None):  # it may be damaged, or lost
        record.unlink() if former is None else record.write_text(former)
        with pytest.raises(UserError, match=r"1 files .*'seed': 1.*: b\.png;"):
            keep_settings(tmp_path, {"seed": 1}, overwrite=True, outputs=outputs[:1], exclusive=True)
        assert outputs[0].is_file() and (record.read_text() if record.exists() else None) == former
    keep_settings(tmp_path, {"seed": 1}, overwrite=True, outputs=outputs[:1])  # where nobody takes b.png for an output
    assert outputs[1].is_file()
    keep_settings(tmp_path, {"seed": 2}, overwrite=True, outputs=outputs, exclusive=True)
    assert not any(path.exists() for path in outputs)


def test_what_one_folder_refuses_changes_none(tmp_path):
    outputs = {folder: [folder / "a.png"] for folder in (tmp_path / "first", tmp_path / "second")}
    keep_all_settings(outputs, {"seed": 0}, overwrite=False, exclusive=outputs)
    files = [path for paths in outputs.values() for path in paths]
    for path in (*files, tmp_path / "second" / "b.png"):
        path.write_text("of seed 0")
    with pytest.raises(UserError, match=r"second: 1 files there are not of these.*b\.png"):
        keep_all_settings(outputs, {"seed": 1}, overwrite=True, exclusive=outputs)
    assert all(path.exists() for path in files)
    assert {(folder / "settings.json").read_text() for folder in outputs} == {'{\n  "seed": 0\n}\n'}
    keep_all_settings(outputs, {"seed": 1}, overwrite=True, exclusive=[tmp_path / "first"])
    assert not any(path.exists() for path in files)


class Gone(io.StringIO):
    """A terminal that has been closed, or a full disk."""

    def __init__(self, number: int):
        super().__init__()
        self.number, self.tried = number, 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_warnings_that_nobody_can_read_end_nothing(monkeypatch, number):
    gone = Gone(number)
    monkeypatch.setattr(sys, "stderr", gone)
    warn("the network predicts one class")
    assert gone.tried


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_errors_that_nobody_can_read_have_their_code(monkeypatch, number):
    def main() -> None:
        raise UserError("no such folder")

    monkeypatch.setattr(sys, "stderr", Gone(number))
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2


def test_commands_run_with_standard_error_closed(tmp_path):
    command = (sys.executable, "scripts/make_phantoms.py", "--save_root", str(tmp_path), "--train", "2", "--test", "1")
    assert subprocess.run(["sh", "-c", f"{shlex.join(command)} 2>&-"], cwd=REPO).returncode == 0
    assert len(list(tmp_path.rglob("*.png"))) == 6


def test_processes_that_cannot_be_started_are_told(monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("utils.commands.jobs.ProcessPoolExecutor.__init__", refuse)
    with pytest.raises(UserError, match=r"\(Read-only file system\).*/dev/shm.*--workers 1"):
        run_jobs(str, [1, 2], 2, "jobs")


def test_only_own_unfinished_files_are_removed(tmp_path):
    for name in (".a.png.123.tmp", ".notes.tmp", ".tmp.7"):
        (tmp_path / name).write_text("")
    with claimed(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.tmp", ".tmp.7"]


def test_what_may_not_be_read_is_named(capsys):
    def main() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "data/mine")

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: data/mine: not permitted (Permission denied); check who")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_memory_that_runs_out_says_what_to_do(capsys, error):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: out of memory") and "--batch_size" in message


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        OSError(errno.EINVAL, "Invalid argument"),
        OSError(errno.EIO, "Input/output error", "data/image.png"),  # of a file, not of what is printed
    ],
    ids=str,
)
def test_other_errors_of_the_program_are_not_hidden(error):
    def main() -> None:
        raise error

    with pytest.raises(type(error)) as found:
        run_main(main)
    assert found.value is error


# --- Flags, processors, systems ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_GSD-Net.py", "scripts/predict.py", "scripts/prepare_data.py"])
def test_a_wrong_flag_takes_one_line_and_the_help_that_it_names_is_there(script):
    refused = run_script("--no_such_flag", script=REPO / script)
    lines = refused.stderr.splitlines()
    assert refused.returncode == 2 and len(lines) == 1 and lines[0].startswith(f"{Path(script).name}: error: ")
    command = re.search("`python (.*)`", lines[0])[1]
    helped = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True)
    assert helped.returncode == 0 and "--save_root" in helped.stdout.replace("--output_root", "--save_root")


# Shows the help of each program named, in one process; prints the first that has imported PyTorch by then.
HELP = """
import runpy, sys
from contextlib import redirect_stdout
from io import StringIO
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    shown = StringIO()
    try:
        with redirect_stdout(shown):
            runpy.run_path(path, run_name="__main__")
    except SystemExit:
        pass
    if "usage:" not in shown.getvalue() or "torch" in sys.modules:
        sys.exit(path)
"""


def test_help_does_without_torch():
    """So it answers at once, and so does the refusal of a flag."""
    programs = sorted(map(str, (*REPO.glob("*.py"), *(REPO / "scripts").glob("*.py"))))
    shown = subprocess.run([sys.executable, "-c", HELP, *programs], cwd=REPO, capture_output=True, text=True)
    assert len(programs) > 12 and shown.returncode == 0, shown.stderr


def test_every_program_has_such_errors():
    """None makes a parser of its own."""
    programs = [path for folder in ("", "scripts", "benchmarks", "utils") for path in (REPO / folder).glob("*.py")]
    made = [path.name for path in programs if "argparse.ArgumentParser(" in path.read_text()]
    assert len(programs) > 20 and not made


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are not bound to processors here")
def test_workers_are_counted_by_the_processors_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7, 9})
    parser = command_parser("")
    add_workers(parser)
    assert processors() == parser.parse_args([]).workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert processors() == 64


def test_windows_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: pytest.fail("the command has begun"))
    assert stop.value.code == 2 and re.fullmatch(r"error: Windows: .*wsl --install.*\n", capsys.readouterr().err)


def test_no_program_imports_what_windows_lacks_before_it_can_say_so():
    lacking = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix"}
    for path in (path for room in ("utils", "dataloaders", "networks", "scripts") for path in (REPO / room).rglob("*")):
        if path.suffix == ".py":
            imports = re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)
            assert lacking.isdisjoint(imports), path
