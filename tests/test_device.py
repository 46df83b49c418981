"""Which device a run takes. The GPUs are pretended: what is tested is the choice, on machines without one too."""

import pytest
import torch

from utils.cli import UserError
from utils.run import choose_device


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are so many GPUs; returns the list of those that were made the current one."""
    current: list[int] = []

    def pretend(number: int) -> list[int]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return current

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # put back afterwards
    return pretend


def test_auto_takes_the_gpu_of_that_number(gpus, capsys):
    current = gpus(3)
    assert choose_device("auto", 2) == torch.device("cuda", 2)
    assert current == [2]
    assert capsys.readouterr().out == ""


def test_convolutions_of_fp32_are_fp32(gpus):
    gpus(1)
    torch.backends.cudnn.allow_tf32 = True
    choose_device("cuda", 0)
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_number_of_a_gpu_that_is_not_there(gpus, device):
    gpus(2)
    with pytest.raises(UserError, match=r"--gpu 2: this machine has GPUs 0\.\.1"):
        choose_device(device, 2)


def test_cuda_where_there_is_none(gpus):
    gpus(0)
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        choose_device("cuda", 0)


def test_each_of_several_processes_takes_its_own(gpus, monkeypatch, capsys):
    gpus(4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto", 0) == torch.device("cuda", 3)
    assert capsys.readouterr().out == ""
    assert choose_device("auto", 1) == torch.device("cuda", 3)
    assert "--gpu 1: not used" in capsys.readouterr().out


@pytest.mark.parametrize(("device", "number", "why"), [("auto", 0, "finds no GPU"), ("cpu", 2, "--device cpu")])
def test_a_gpu_that_is_not_used_is_named(gpus, capsys, device, number, why):
    gpus(number)
    assert choose_device(device, 1) == torch.device("cpu")
    told = capsys.readouterr().out
    assert "--gpu 1: not used" in told
    assert why in told


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_the_cpu_without_a_word(gpus, capsys, device):
    gpus(0)
    assert choose_device(device, 0) == torch.device("cpu")
    assert capsys.readouterr().out == ""
