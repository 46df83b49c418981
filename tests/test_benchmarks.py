"""The plain reference computes what the program computes, and the benchmarks of speed and audit run."""

import csv
import json
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from conftest import REPO, assert_refused, call, write_blobs

from benchmarks import audit, contours, determinism, gpu_step, reference, speed, whole_run
from networks.unet import two_unets
from utils.masks.geometry import squared_boundary_distance
from utils.masks.noise import markov_noise
from utils.method.gsd import Batch, gsd_step, region_vote, select_small_loss
from utils.method.settings import MethodSettings

SIZE = 32


def disc(size: int = 48, radius: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size // 2
    return (rows**2 + columns**2 < radius**2).astype(np.uint8)


@pytest.mark.parametrize("theta1", [0.2, 0.8])
def test_noise_is_the_same(theta1):
    settings = {"T": 60, "theta1": theta1, "theta2": 0.05}
    ours = markov_noise(disc(), np.random.default_rng(3), **settings)
    assert np.array_equal(ours, reference.markov_noise(disc(), np.random.default_rng(3), **settings))
    assert not np.array_equal(ours, disc())


@pytest.mark.parametrize("label", [disc(), disc() * 2 + disc(radius=5), np.zeros((9, 9), np.uint8)])
def test_distance_is_the_same(label):
    ours = np.sqrt(squared_boundary_distance(label).astype(np.float32))
    np.testing.assert_allclose(ours, reference.boundary_distance(label), rtol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.953, "0.953"), (54.04, "54"), (999.4, "999"), (999.6, "1,000"), (28772.0, "28,800")]
)
def test_ratios_have_three_digits(ratio, words):
    assert speed.times_as_long(ratio) == words


def batch() -> tuple[Batch, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    image, jittered = torch.randn(2, 4, 3, SIZE, SIZE, generator=generator).unbind()
    label = torch.from_numpy(np.stack([disc(SIZE, radius) for radius in (6, 8, 10, 15)])).long()
    distance = torch.from_numpy(np.stack([reference.boundary_distance(one.numpy()) for one in label]))
    segments = (torch.arange(SIZE * SIZE).view(SIZE, SIZE) // 7).expand(4, -1, -1).contiguous()
    parts = {"image": image, "jittered": jittered, "label": label, "distance": distance, "segments": segments}
    return Batch(**parts, num_segments=int(segments.max()) + 1), parts


@pytest.mark.parametrize("epoch", [0, 3, 29, 30, 60, 99])
def test_a_step_has_the_same_loss_and_gradient(epoch):
    ours, parts = batch()
    permutation = torch.tensor([2, 0, 3, 1])
    losses, gradients = [], []
    for plain in (False, True):
        networks = two_unets(3, 2, seed=0).train()
        if plain:
            loss = reference.training_loss(networks, parts, epoch, 100, 0.1, 0.5, 0.3, permutation)
        else:
            loss = gsd_step(networks, ours, epoch, MethodSettings(tau=0.1), 0.3, permutation).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in networks.parameters()]))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_selection_and_vote_are_the_same():
    generator = torch.Generator().manual_seed(1)
    loss = torch.rand(4, SIZE, SIZE, generator=generator)
    assert torch.equal(select_small_loss(loss, 0.13), reference.select_small_loss(loss, 0.13))
    probability = torch.rand(4, 3, SIZE, SIZE, generator=generator).softmax(dim=1)
    segments = batch()[0].segments
    assert torch.equal(
        region_vote(probability, segments, int(segments.max()) + 1), reference.region_vote(probability, segments)
    )


def test_the_benchmark_runs(tmp_path):
    kinds = (("save", ".json"), ("scaling", ".png"), ("profile", ".json"))
    files = {name: tmp_path / f"{name}{suffix}" for name, suffix in kinds}
    flags = [str(part) for name, path in files.items() for part in (f"--{name}", path)]
    command = [sys.executable, str(REPO / "benchmarks" / "speed.py"), "--quick", "--repetitions", "1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(files["save"].read_text())
    assert {"training step", "superpixel vote", "Markov noise, T = 200"} <= {row["stage"] for row in result["stages"]}
    assert all(ratio > 0 for row in result["stages"] for ratio in row["ratios"])
    assert 0 <= result["waiting_share"]["program"] < 1
    assert files["scaling"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(files["profile"].read_text())["traceEvents"] and "Profiler" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--image_size", "8"), "--image_size"), (("--save", "x.txt"), "--save"), (("--steps", "0"), "--steps")],
)
def test_bad_flags_are_named(flags, named):
    assert_refused(call(speed.main, *flags), named)


# --- What exact repetition costs --------------------------------------------------------------------------------------


def test_exact_repetition_is_timed_and_compared(capsys):
    determinism.main(["--quick", "--steps", "2", "--repetitions", "2", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "--deterministic" in out and out.count("2 runs all the same") == 2 and "ratio" in out
    assert not torch.are_deterministic_algorithms_enabled()


def test_runs_that_differ_in_the_last_bit_are_told_apart(monkeypatch, capsys):
    """One ulp in the second run of either kind: it is said, and the exit code is 1."""
    runs = iter([1.0, 1.0, 1.0, 1.0, 1.0 + 2**-23])
    monkeypatch.setattr(determinism, "train", lambda *_, **__: (1.0, [torch.tensor(next(runs))]))
    with pytest.raises(SystemExit) as ended:
        determinism.main(["--quick", "--steps", "2", "--repetitions", "2", "--device", "cpu"])
    without, with_flag = (
        line for line in capsys.readouterr().out.splitlines() if " runs " in line and " a step" in line
    )
    assert ended.value.code == 1 and "not all" not in without and "not all the same" in with_flag


# --- Whole runs -------------------------------------------------------------------------------------------------------


def test_the_benchmark_of_whole_runs(monkeypatch, capsys):
    monkeypatch.setattr(whole_run, "processors", lambda: 1)  # beside other tests more threads are slower
    whole_run.main(["--quick", "--device", "cpu"])
    *_, row = capsys.readouterr().out.splitlines()
    runs, processes, first, _, epoch, _, share, end, _, whole, _, throughput = row.split()
    assert (runs, processes, throughput) == ("1", "1", "1.00")
    assert float(first) + float(epoch) + float(end) == pytest.approx(float(whole), abs=0.1)
    assert 0 < float(share.rstrip("%")) < 100


# --- The contours' benchmark ------------------------------------------------------------------------------------------


def test_the_contours_benchmark(tmp_path, capsys):
    """Bright ellipses on a dark ground: noise is undone, clean masks stay, images of noise move nothing."""
    write_blobs(tmp_path / "set", 12, 192, 192)
    flags = ["--data_root", tmp_path, "--datasets", "set", "--work_root", tmp_path / "work"]
    contours.main(list(map(str, flags)))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = {cells[0]: dict(zip(lines[0][1:], cells[1:], strict=True)) for cells in lines[2:]}
    for noise in ("S_R", "S_E", "S_DE"):
        row = rows[f"set {noise}"]
        assert float(row["given"]) < 0.9 < 0.93 < float(row["corrected"]) and row["moved"] == "100%"
        assert float(row["tau, corrected"]) < 0.5 * float(row["tau, given"])
    assert rows["set clean"]["given"] == rows["set clean"]["corrected"] == "1.0000"
    assert rows["set clean, independent noise"]["moved"] == rows["set clean, smoothed noise"]["moved"] == "0%"


# --- The audit's benchmark --------------------------------------------------------------------------------------------


def test_the_audits_benchmark_on_held_out_images(tmp_path):
    """The rows of a small set, their figures against the definitions; a second run replaces them."""
    write_blobs(tmp_path / "set", 10, 192, 192, kinds=("images_test", "masks_test"))
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir()
    table = tmp_path / "table.csv"
    flags = ["--datasets", "set", "--data_root", str(tmp_path), "--held_out", "--noise_types", "08"]
    for _ in range(2):
        audit.main([*flags, "--image_size", "96", "--save", str(table)])
    with open(table, newline="") as file:
        every, spoiled = csv.DictReader(file)
    assert (every["noise"], every["noisy_masks"], every["images"]) == ("S_E", "all", "10")
    assert (spoiled["noisy_masks"], spoiled["images"]) == ("20%", "2")
    # Bright ellipses on a dark ground: their edges are plain to see.
    assert float(every["dice_given"]) < 0.85 and float(every["dice_refined"]) > 0.9
    assert float(every["gain"]) == pytest.approx(float(every["dice_refined"]) - float(every["dice_given"]), abs=2e-4)
    assert float(every["tau_auto"]) == pytest.approx(float(every["wrong_share"]), rel=0.5)
    assert float(every["wrong_corrected"]) < float(every["wrong_share"]) / 3
    assert float(spoiled["precision"]) == 1 and float(spoiled["unspoiled"]) > 0.95


def test_spoiled_masks_are_one_in_five(tmp_path):
    paths = {}
    for kind in ("noisy", "clean"):
        (tmp_path / kind).mkdir()
        paths[kind] = {f"{n}": tmp_path / kind / f"{n}.png" for n in range(10)}
        for path in paths[kind].values():
            path.write_text(kind)
    spoiled = audit.spoiled_set(tmp_path / "mixed", paths["noisy"], paths["clean"], seed=0)
    found = {path.stem: path.read_text() for path in (tmp_path / "mixed").iterdir()}
    assert len(spoiled) == 2 and len(found) == 10
    assert {name for name, text in found.items() if text == "noisy"} == set(spoiled)


def test_variants_of_a_step_run_and_train_alike(monkeypatch, capsys):
    """Those that need CUDA are left out, and one that fails here, with the reason."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    names = ("optimiser single", "optimiser foreach", "compiled", "two streams", "CUDA graph")
    small = ("--quick", "--device", "cpu", "--amp", "fp32", "--steps", "2", "--repetitions", "2")
    gpu_step.main([*small, "--variants", *names])
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()[1:]
    assert [line.split("  ")[0] for line in table] == [gpu_step.EAGER, *names[:2], *names[2:]]
    assert all(float(line.split()[-1]) < 1e-4 for line in table[:3])
    assert "RuntimeError: no compiler" in table[3] and all("needs CUDA" in line for line in table[4:])


def test_a_step_on_copies_is_the_same():
    """As a CUDA graph takes its inputs."""
    setting = speed.Setting(SIZE, 4, 4, 16, 0, torch.device("cpu"), False)
    (inputs,) = gpu_step.inputs_of(setting)
    losses = [gpu_step.Training(gpu_step.Variant(), setting).step(one) for one in (inputs, deepcopy(inputs))]
    assert losses[0] == losses[1] and len(inputs.tensors) == 7
