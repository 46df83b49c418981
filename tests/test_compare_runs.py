"""scripts/compare_runs.py on runs that a test makes."""

import importlib.util
import io
import sys

import numpy as np
import pytest
from conftest import TRAIN_SCRIPT, write_dataset
from PIL import Image

from scripts import compare_runs
from utils.cli import UserError


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    main()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two finished one-epoch runs, of cross-entropy and GSD-Net."""
    specification = importlib.util.spec_from_file_location("train_gsd_net", TRAIN_SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
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
