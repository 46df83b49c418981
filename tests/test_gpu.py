"""On a real GPU, where there is one: the CPU's figures, exact repetition, and every training script from end to end."""

import json

import pytest
import torch
from conftest import REPO, assert_same_run, call, log_rows, write_dataset
from lidc_files import entries, write_lidc
from mmis_files import write_mmis
from test_distributed import torchrun

from networks.unet import two_unets
from utils.engine.device import choose_device
from utils.engine.experiment import step_of
from utils.engine.run_folder import Run
from utils.engine.training import with_dice_loss
from utils.method.gsd import Batch
from utils.method.settings import METHODS, MethodSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")

VOTES = ("superpixels", "rings", "pixels")
SCRIPTS = {
    "train_GSD-Net.py": "kvasir+gsd+given",
    "GSD_Net_lidc_each_select1.py": "lidc+gsd+cycle",
    "GSD_Net_MMIS2024_each_select1.py": "MMIS2024+gsd+select1",
}
BOTH_PHASES = ("--tau", "0.1")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """All three kinds of dataset in miniature."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root)
    write_lidc(root, entries())
    write_mmis(root)
    return root


@pytest.fixture
def train(data_root, tmp_path, monkeypatch, without_pictures):
    """A training script on the GPU, in this process and without pictures; returns the run's folder."""
    monkeypatch.chdir(tmp_path)  # where the cache is made

    def main(script: str, output: str, *flags: str, code: int = 0):
        places = ("--data_root", data_root, "--output_root", output, "--device", "cuda")
        dataset = ("--datasets", "kvasir", "--noise_type", "given") if script == "train_GSD-Net.py" else ()
        quick = ("--image_size", 32, "--batch_size", 4, "--max_epochs", 3)
        outcome = call(REPO / script, *places, *dataset, *quick, *flags)
        assert outcome.code == code, outcome.err
        return tmp_path / output / SCRIPTS[script]

    yield main
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("script", SCRIPTS)
def test_exact_repetition(train, monkeypatch, script):
    """--deterministic: wherever the data are kept, and broken off and resumed, the same run to the bit."""
    flags = (*BOTH_PHASES, "--deterministic")
    whole = train(script, "whole", *flags)
    result = json.loads((whole / "result.json").read_text())
    assert result["device"].startswith("cuda")
    assert log_rows(whole)[-1]["transfer1"]  # the phase of votes and transfer was reached
    for cache in ("none", "elsewhere"):
        assert_same_run(whole, train(script, cache, *flags, "--cache", cache))

    close_epoch = Run.close_epoch

    def stop_after_two(run, *what):
        close_epoch(run, *what)
        if run.epochs_done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "close_epoch", stop_after_two)
        assert len(log_rows(train(script, "broken", *flags, code=130))) == 2
    assert_same_run(whole, train(script, "broken", *flags, "--resume"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_defaults(train, script):
    """As a user starts them, without any flag that says how to train."""
    folder = train(script, "run")
    assert all(0 <= float(row["dice"]) <= 1 and float(row["loss"]) > 0 for row in log_rows(folder))
    assert {path.name for path in folder.iterdir()} >= {"result.json", "per_image.csv", "checkpoint.pt", "log.csv"}


@pytest.mark.parametrize(
    ("method", "vote"),
    [*(("gsd", vote) for vote in VOTES), *((method, "superpixels") for method in METHODS if method != "gsd")],
)
def test_a_step_has_the_values_of_the_cpu(method, vote):
    """Loss, its parts and gradients in a late epoch, which selects, votes and transfers.

    In double precision: in single the two may select other pixels where losses are close, which changes much.
    """
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(4, 3, 64, 64, generator=draw, dtype=torch.float64)
    label = (image.mean(dim=1) > 0.55).long()
    distance = 10 * torch.rand(label.shape, generator=draw, dtype=torch.float64).clamp(min=0.1)
    batch = Batch(image, image**2, label, distance, torch.randint(50, label.shape, generator=draw), 50)
    settings = MethodSettings(method, tau=0.2, vote=vote)
    found = []
    for name in ("cpu", "cuda"):
        device = choose_device(name, gpu=0)
        networks = two_unets(3, 2, seed=0).double().to(device)
        on_device = Batch(*(part.to(device) for part in batch[:-1]), batch.num_segments)
        permutation = torch.tensor([2, 0, 3, 1], device=device)
        step = step_of(method)(list(networks), on_device, 60, settings, 0.3, permutation)
        step = with_dice_loss(step, on_device.label, 3.0)
        step.loss.backward()
        gradient = torch.cat([weights.grad.flatten().cpu() for weights in networks.parameters()])
        found.append(({"loss": step.loss.detach().cpu(), **{k: v.cpu() for k, v in step.parts.items()}}, gradient))
    (cpu, cpu_gradient), (gpu, gpu_gradient) = found
    assert cpu.keys() == gpu.keys()
    for part, value in cpu.items():
        assert float(gpu[part]) == pytest.approx(float(value), rel=1e-9), part
    torch.testing.assert_close(gpu_gradient, cpu_gradient, rtol=1e-6, atol=1e-9)


def test_torchrun(data_root, tmp_path):
    """A group of one, for there may be one GPU only: meets, trains, scores and parts, and NCCL guesses nothing."""
    flags = ("--datasets", "kvasir", "--noise_type", "given", "--image_size", 32, "--batch_size", 4, "--max_epochs", 2)
    places = ("--data_root", data_root, "--output_root", tmp_path, "--device", "cuda")
    outcome = torchrun(*flags, *places, processes=1, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "barrier()" not in outcome.stderr and "Guessing device" not in outcome.stderr
    assert (tmp_path / "kvasir+gsd+given" / "result.json").is_file()
