"""CONTRIBUTING.md: its recipe for a method, followed to the letter, trains."""

import json
import re
import sys

from conftest import REPO, TRAIN_SCRIPT, load_program, write_dataset

from utils.method import baselines
from utils.method.settings import METHODS

CONTRIBUTING = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_new_method_trains(tmp_path, monkeypatch, capsys):
    step, row = re.findall(r"^```python\n(.*?)^```$", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    written = dict(vars(baselines))
    exec(step, written)  # as at the end of the module
    (name,) = written.keys() - vars(baselines).keys()
    monkeypatch.setattr(baselines, name, written[name], raising=False)
    ((method, record),) = eval(f"{{{row}}}", vars(sys.modules["utils.method.settings"])).items()
    monkeypatch.setitem(METHODS, method, record)

    write_dataset(tmp_path, train=4, test=2)
    flags = ["--datasets", "kvasir", "--noise_type", "clean", "--method", method, "--device", "cpu", "--cache", "none"]
    flags += ["--max_epochs", "1", "--batch_size", "2", "--image_size", "32"]
    flags += ["--data_root", str(tmp_path), "--output_root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [TRAIN_SCRIPT.name, *flags])
    load_program(TRAIN_SCRIPT).main()
    assert capsys.readouterr().out.startswith(f"{record.title}: every pixel\n")
    assert json.loads((tmp_path / f"kvasir+{method}+clean" / "result.json").read_text())["method"] == method


def test_it_is_short():
    assert len(CONTRIBUTING.splitlines()) <= 40
