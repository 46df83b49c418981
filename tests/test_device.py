"""Which device a run and its data take. The GPUs are pretended: what is tested is the choice, without one too."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
from conftest import folder_source, write_dataset

from dataloaders.training_set import TrainingSet, load_training_set
from utils.commands.errors import UserError
from utils.engine.device import choose_device, repeat_exactly, uses_bf16
from utils.engine.distributed import ProcessGroup, join_process_group


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


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"^torchrun --nproc_per_node: process 1 has no GPU .* has 1; .*--device cpu"):
        choose_device("auto", 0)
    assert choose_device("cpu", 0) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "told"),
    [(torch.device("cpu"), ("gloo", {})), (torch.device("cuda", 3), ("nccl", {"device_id": torch.device("cuda", 3)}))],
    ids=["cpu", "cuda"],
)
def test_how_processes_meet(monkeypatch, device, told):
    """NCCL is told the GPU: else it guesses, with a warning at the first wait."""
    met = []
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **more: met.append((backend, more)))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    assert join_process_group(device) == ProcessGroup(0, 4) and met == [told]


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precision(monkeypatch, device):
    """As asked; else bf16 where the device has it natively, which of a CPU either set of instructions means."""
    device = torch.device(device)
    emulated = {"including_emulation": True}
    for avx, amx, gpu in itertools.product((False, True), repeat=3):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=gpu, **how: has or how in ({}, emulated))
        assert uses_bf16("bf16", device)
        assert not uses_bf16("fp32", device)
        assert uses_bf16("auto", device) == (gpu if device.type == "cuda" else avx or amx)


def test_exact_repetition_is_switched_on_and_off(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before in the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        repeat_exactly(False)
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        repeat_exactly(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        repeat_exactly(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own
    finally:
        repeat_exactly(False)


@pytest.mark.parametrize(("space", "copied"), [(2, True), (1.99, False)])
@pytest.mark.parametrize("cache", ["none", "cache"])
def test_the_data_are_copied_where_they_take_half_of_what_is_free(monkeypatch, tmp_path, capsys, cache, space, copied):
    """A pretended GPU with ``space`` times the size of the set free."""
    source = folder_source(write_dataset(tmp_path, train=3, image_size=32), "clean", 32)
    place = cache if cache == "none" else str(tmp_path / cache)
    size = load_training_set(source, place, torch.device("cpu")).data.nbytes
    went: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (round(space * size), 10 * size))
    monkeypatch.setattr(TrainingSet, "to", lambda data, device: went.append(device) or data)
    load_training_set(source, place, torch.device("cuda", 1))
    assert went == [torch.device("cuda", 1)] * copied
    assert ("it is copied there" in capsys.readouterr().out) == copied
