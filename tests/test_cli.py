"""What every command shares."""

import errno

import pytest

from utils.cli import UserError, claimed, keep_settings, run_main


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
        with pytest.raises(UserError, match=r"1 files there are not of these.*'seed': 1.*: b\.png; move or remove"):
            keep_settings(tmp_path, {"seed": 1}, overwrite=True, outputs=outputs[:1], exclusive=True)
        assert outputs[0].is_file() and (record.read_text() if record.exists() else None) == former
    keep_settings(tmp_path, {"seed": 1}, overwrite=True, outputs=outputs[:1])  # where nobody takes b.png for an output
    assert outputs[1].is_file()
    keep_settings(tmp_path, {"seed": 2}, overwrite=True, outputs=outputs, exclusive=True)
    assert not any(path.exists() for path in outputs)


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


def test_other_errors_of_the_program_are_not_hidden():
    def main() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_main(main)
