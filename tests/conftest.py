"""A tiny dataset in Kvasir's layout, and commands run as a user runs them, in this process or in one of their own."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
from PIL import Image

# The tensors of these tests are tiny: on a busy machine threads would only wait for each other, up to fifty times as
# long as the work takes. Set before torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

_ELSEWHERE = tempfile.TemporaryDirectory()  # where scripts leave their caches; removed when the tests end
os.chmod(_ELSEWHERE.name, 0o755)  # some tests give up root

REPO = Path(__file__).resolve().parents[1]
# Kvasir/, shenzhen/ and lidc/ of the README's layout, for the tests on real images; they skip where it is not there.
REAL_DATA = Path(os.environ.get("GSD_REAL_DATA", REPO.parent / "shared" / "data"))
TRAIN_SCRIPT = REPO / "train_GSD-Net.py"


def load_program(path: Path) -> ModuleType:
    """A program as a module, whatever its file is called; it is not started."""
    specification = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its worker processes look for its functions
    specification.loader.exec_module(module)
    return module


def blob(rng: np.random.Generator, width: int = 48, height: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """A noisy bright ellipse on a dark ground: (height,width,3) uint8, and its mask (height,width) of 0 and 255."""
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = rng.uniform(0.35, 0.65, 2) * (height, width)
    radius_y, radius_x = rng.uniform(0.15, 0.3, 2) * (height, width)
    inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1
    image = np.where(inside[..., None], (190, 110, 90), (70, 60, 80)) + rng.normal(0, 15, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), (inside * 255).astype(np.uint8)


def write_blobs(folder: Path, count: int, width: int, height: int, kinds: Sequence[str] = ("images", "masks")) -> None:
    """Write ``count`` blobs, their images and masks to the two folders ``kinds`` of ``folder``."""
    rng = np.random.default_rng(0)
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
    for index in range(count):
        for kind, pixels in zip(kinds, blob(rng, width, height), strict=True):
            Image.fromarray(pixels).save(folder / kind / f"case{index:02}.png")


def block_segments(size: int, block: int = 2) -> np.ndarray:
    """Square blocks in place of superpixels, int32 (size,size); the ids have gaps and, from size 32 on, pass 255."""
    row, column = np.mgrid[:size, :size] // block
    return ((row * -(-size // block) + column) * 3).astype(np.int32)


def write_dataset(
    root: Path, name: str = "Kvasir", train: int = 10, test: int = 4, image_size: int = 32, seed: int = 0
) -> Path:
    """Write ``root/name`` in Kvasir's layout, with superpixels for ``image_size``; returns that folder."""
    rng = np.random.default_rng(seed)
    folder = root / name
    for suffix, count in (("", train), ("_test", test)):
        for kind in ("images", "masks"):
            (folder / f"{kind}{suffix}").mkdir(parents=True)
        for index in range(count):
            for kind, pixels in zip(("images", "masks"), blob(rng), strict=True):
                Image.fromarray(pixels).save(folder / f"{kind}{suffix}" / f"case{index:02}.png")
    (folder / "images_SLIC").mkdir()
    for index in range(train):
        np.save(folder / "images_SLIC" / f"case{index:02}.npy", block_segments(image_size))
    return folder


def folder_source(folder: Path, noise_type: str = "clean", image_size: int = 32, num_classes: int = 2, layout=None):
    """How to make the training set of a whole dataset folder, with the channels that its images have."""
    from dataloaders.dataset_folder import common_format, find_parts
    from dataloaders.datasets import Layout
    from dataloaders.noisy_folder import training_source
    from dataloaders.slic import find_maps, image_sources

    layout = layout or Layout()
    parts = find_parts(folder, layout, noise_type)
    images = {image.stem: image for image, _ in parts.train}
    maps = find_maps(image_sources(images), folder / layout.images, folder / layout.segments, image_size)
    return training_source(parts.train, maps, image_size, common_format(parts.images)[0], num_classes)


def folder_cases(
    folder: Path, image_size: int = 32, channels: int = 3, num_classes: int = 2, layout=None, noise_type: str = "clean"
):
    """What a dataset folder is scored on."""
    from dataloaders.dataset_folder import find_parts
    from dataloaders.datasets import Layout
    from dataloaders.noisy_folder import load_cases

    return load_cases(find_parts(folder, layout or Layout(), noise_type).cases, image_size, channels, num_classes)


def loaded(source):
    """The training set of a source, read into memory on the CPU."""
    import torch

    from dataloaders.training_set import load_training_set

    return load_training_set(source, "none", torch.device("cpu")).data


# --- Commands ---------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a command ended, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def call(main: Callable[..., None] | Path, *args: object) -> Outcome:
    """A command's ``main``, or that of a file, with these arguments: in this process, which costs no start.

    It ends as `run_main` ends it. It runs where the test does, from the repository elsewhere, to leave nothing there.
    """
    from utils.commands.errors import run_main

    main = load_program(main).main if isinstance(main, Path) else main
    out, err, code = io.StringIO(), io.StringIO(), 0
    place = _ELSEWHERE.name if Path.cwd() == REPO else Path.cwd()
    with (
        mock.patch.object(sys, "argv", ["command", *map(str, args)]),
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            run_main(main)
        except SystemExit as stop:
            code = stop.code or 0
    return Outcome(code, out.getvalue(), err.getvalue())


def assert_succeeded(outcome: Outcome) -> None:
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome


def assert_refused(outcome: Outcome, *parts: object) -> None:
    """It ended with code 2, and its last message, which is no traceback, has all ``parts``."""
    assert outcome.code == 2 and "Traceback" not in outcome.err and "error: " in outcome.err, outcome
    message = outcome.err[outcome.err.rindex("error: ") :]
    for part in parts:
        assert str(part) in message, message


def assert_plain_log(outcome: Outcome, epochs: int) -> None:
    """What a training script wrote off a terminal: a line for each epoch, no control characters, right plurals."""
    log = outcome.out + outcome.err
    assert log.isascii() and all(line.isprintable() for line in log.split("\n"))
    lines = [line for line in log.split("\n") if re.match(r"epoch \d+/", line)]
    assert [line.split("  ")[0] for line in lines] == [f"epoch {e + 1}/{epochs}" for e in range(epochs)]
    assert not re.search(r"(?<![\d.])1 (\w+ )?(images|slices|cases|patients|steps|epochs|references|volumes)\b", log)
    assert not re.search(r"(?<![\d.])0 (\w+ )?(slices|cases|patients|steps) of|\d(image|step|epoch|file)\b", log)


def script_process(*args: object, script: Path = TRAIN_SCRIPT) -> subprocess.Popen:
    """A script of the project, started in a process and a folder of its own; its output is captured as text."""
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, args)],
        cwd=_ELSEWHERE.name if Path(script).is_absolute() else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_script(*args: object, script: Path = TRAIN_SCRIPT, timeout: float = 120) -> subprocess.CompletedProcess:
    """A script of the project, run to its end; `subprocess.TimeoutExpired` if that takes more than ``timeout`` s."""
    with script_process(*args, script=script) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
    # Python's, of anything but the machine's driver; warnings of the project read otherwise.
    assert not re.search("Warning: (?!CUDA initialization|Can't initialize NVML)", err), err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# --- Training runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def without_pictures(monkeypatch) -> None:
    """Drawing takes longer than training these tiny networks; for tests that look at figures in numbers only."""
    from utils.engine.run_folder import Run

    monkeypatch.setattr(Run, "draw", lambda run, panels: None)
    monkeypatch.setattr(Run, "draw_curves", lambda run: None)


@pytest.fixture
def trained_here(monkeypatch, without_pictures) -> list[Outcome]:
    """What the audit and the search for a drop rate train is trained in this process, which costs no imports; returns
    how each training ended."""
    from scripts import search_drop_rate
    from utils.audit import folds

    ended = []

    def train(command: Sequence[str]) -> int:
        assert command[0] == sys.executable
        ended.append(call(Path(command[1]), *command[2:]))
        return ended[-1].code

    for module in (folds, search_drop_rate):
        monkeypatch.setattr(module, "run_child", train)
    return ended


TIMES = ("seconds", "waiting")  # of no two runs the same


def log_rows(folder: Path, *without: str) -> list[dict[str, str]]:
    """The rows of log.csv, without some columns."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def figures(folder: Path) -> dict:
    """result.json without the time that the run took."""
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if not name.startswith(TIMES)}


def assert_same_run(folder: Path, other: Path) -> None:
    """Log, result, scores of each image and weights are the same, to the bit."""
    import torch

    assert log_rows(folder, *TIMES) == log_rows(other, *TIMES)
    assert figures(folder) == figures(other)
    assert (folder / "per_image.csv").read_text() == (other / "per_image.csv").read_text()
    networks = [torch.load(f / "checkpoint.pt", weights_only=True)["networks"] for f in (folder, other)]
    assert networks[0].keys() == networks[1].keys()
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
