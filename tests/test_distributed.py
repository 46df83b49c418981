"""Two processes that train together against one: the same gradients, scores and files."""

import csv
import json
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from conftest import TRAIN_SCRIPT, assert_refused, call, write_dataset
from torch import nn

from dataloaders.batches import training_batches
from dataloaders.slic import find_maps
from dataloaders.training_set import TrainingSet
from networks.unet import two_unets
from utils.commands.files import write_array
from utils.engine.distributed import ProcessGroup, average, average_buffers, gather, shared
from utils.engine.intensity import Intensity
from utils.method.gsd import Batch, gsd_step
from utils.method.settings import MethodSettings

SETTINGS = MethodSettings(tau=0.2, max_epochs=10)
EPOCH = 6  # selection, refinement and transfer are on
SIZE = 32
COUNTS = (0, 1, 4, 5)  # of items that two processes have together


def batch_of(rows: slice) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image, jittered = torch.randn(2, 4, 3, SIZE, SIZE, generator=generator).unbind()
    label = (image.mean(1) > 0).long()
    distance = torch.rand(4, SIZE, SIZE, generator=generator) * 9 + 1
    segments = torch.arange(SIZE * SIZE).view(SIZE, SIZE).expand(4, -1, -1) // 8
    return Batch(*(part[rows] for part in (image, jittered, label, distance, segments)), num_segments=SIZE * SIZE // 8)


def gradients(networks: list[nn.Module], batch: Batch) -> torch.Tensor:
    loss = gsd_step(networks, batch, EPOCH, SETTINGS, 0.4, torch.tensor([1, 0])).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for network in networks for p in network.parameters()])


class Work(NamedTuple):
    """What one of two processes comes to."""

    gradients: torch.Tensor
    own_mean: torch.Tensor  # batch norm's, of this process
    mean: torch.Tensor  # over both
    rank: torch.Tensor  # the mean of both
    gathered: dict[int, list]  # by how many items both had


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[Work]:
    """The work of two processes that form a gloo process group."""
    folder = tmp_path_factory.mktemp("both")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_join, (port, folder), nprocs=2)
    return [Work(*torch.load(folder / f"{rank}.pt", weights_only=False)) for rank in range(2)]


def _join(rank: int, port: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(tuple(_work(ProcessGroup(rank, 2))), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _work(group: ProcessGroup) -> Work:
    networks = two_unets(3, 2, seed=0).train()
    result = gradients(
        [shared(network, group) for network in networks], batch_of(slice(2 * group.rank, 2 * group.rank + 2))
    )
    own = networks[0].encoders[0][1].running_mean.clone()
    average_buffers(networks)
    gathered = {n: gather([f"item {i}" for i in range(group.rank, n, group.size)]) for n in COUNTS}
    rank = average(torch.tensor([float(group.rank)]))
    return Work(result, own, networks[0].encoders[0][1].running_mean, rank, gathered)


def test_gradients_are_the_mean_of_the_halves(both):
    """Each process selects, votes and mixes within its half of the batch; the gradients are averaged."""
    halves = []
    for rows in (slice(0, 2), slice(2, 4)):
        halves.append(gradients(list(two_unets(3, 2, seed=0).train()), batch_of(rows)))
    expected = (halves[0] + halves[1]) / 2
    one, two = both
    assert torch.equal(one.gradients, two.gradients)
    torch.testing.assert_close(one.gradients, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(halves[0], halves[1], rtol=1e-2)  # so that the mean is not either of them
    # Batch norm's running figures become the mean over the processes.
    assert not torch.equal(one.own_mean, two.own_mean)
    torch.testing.assert_close(one.mean, (one.own_mean + two.own_mean) / 2)
    assert torch.equal(one.mean, two.mean) and one.rank == two.rank == 0.5


@pytest.mark.parametrize("count", COUNTS)
def test_gathered_items_are_in_order(both, count):
    assert [work.gathered[count] for work in both] == [[f"item {i}" for i in range(count)]] * 2


def test_without_a_process_group_nothing_happens():
    network = nn.BatchNorm2d(3)
    assert shared(network, ProcessGroup()) is network
    assert gather([1, 2]) == [1, 2]
    assert average(torch.ones(2)).tolist() == [1, 1]
    average_buffers(network)


def test_each_process_takes_its_part_of_every_batch():
    count, generator = 11, torch.Generator()
    data = TrainingSet(
        names=tuple(map(str, range(count))),
        images=torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8),
        labels=torch.zeros(count, 8, 8, dtype=torch.uint8),
        squared_distances=torch.full((count, 8, 8), 100, dtype=torch.uint8),
        segments=torch.zeros(count, 8, 8, dtype=torch.int16),
        num_segments=1,
    )
    device, intensity = torch.device("cpu"), Intensity.raw(3)

    def epoch(group: ProcessGroup) -> tuple[list, torch.Tensor]:
        generator.manual_seed(5)
        batches = list(training_batches(data, 4, 0.5, intensity, generator, device, group=group))
        return batches, generator.get_state()

    whole, _ = epoch(ProcessGroup())
    (first, state), (second, other_state) = epoch(ProcessGroup(0, 2)), epoch(ProcessGroup(1, 2))
    assert torch.equal(state, other_state)  # what is drawn for all stays the same for all
    assert len(whole) == len(first) == len(second) == 2
    for (_, all_names), (one, names), (two, other_names) in zip(whole, first, second, strict=True):
        assert names + other_names == all_names and len(one.image) == len(two.image) == 2
    # Augmentation differs between the processes: the same image on both would not be turned alike.
    assert not torch.equal(first[0][0].jittered.mean((1, 2, 3)), second[0][0].jittered.mean((1, 2, 3)))


def test_other_processes_wait_for_the_superpixels_of_the_main_one(tmp_path, monkeypatch):
    """Made by another process, nothing would say so: only the main process prints."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("RANK", "1")
    waited = []

    def sleep(seconds: float) -> None:  # meanwhile the main process makes one
        waited.append(f"{len(waited)}.npy")
        write_array(tmp_path / "slic" / waited[-1], np.zeros((4, 4), np.int32))

    (tmp_path / "slic").mkdir()
    monkeypatch.setattr(time, "sleep", sleep)
    sources = {name: partial(pytest.fail, "read by a process that only waits") for name in "012"}
    maps = find_maps(sources, tmp_path / "images", tmp_path / "slic", 4)
    assert waited == ["0.npy", "1.npy", "2.npy"] and all(path.is_file() for path in maps.values())


LEAVING = """
import atexit, os, torch
from utils.engine.distributed import join_process_group, leave_process_group, shared

def threads():
    return sum("gloo" in open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task"))

atexit.register(lambda: print("at exit", threads()))  # registered first, called last

def main():
    network = shared(torch.nn.Linear(3, 3), join_process_group(torch.device("cpu"))._replace(size=2))
    network(torch.ones(2, 3)).sum().backward()
    print("before", threads())
    leave_process_group()

main()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_the_interpreter(monkeypatch):
    """One that did would abort the process, now and then, when all its work was done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = {"TORCHELASTIC_RUN_ID": "a", "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in started.items():
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, "-c", LEAVING]
    outcome = subprocess.run(command, cwd=TRAIN_SCRIPT.parent, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == "before 2\nat exit 0\n"


def torchrun(*args: object, processes: int = 2, cwd: Path) -> subprocess.CompletedProcess:
    """train_GSD-Net.py, started as so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, str(TRAIN_SCRIPT), *map(str, args)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


FLAGS = ("--datasets", "kvasir", "--noise_type", "given", "--tau", 0.1, "--image_size", 32, "--batch_size", 4)
FLAGS += ("--device", "cpu")  # two processes would want two GPUs


def test_a_run_of_two_processes(tmp_path):
    """Through the script: one writer, one table, resumable, and evaluation complete although it is shared."""
    folder = write_dataset(tmp_path / "data", train=9, test=5, image_size=SIZE)
    shutil.rmtree(folder / "images_SLIC")
    flags = (*FLAGS, "--max_epochs", 4, "--learning_rate", 0.01)
    places = ("--data_root", tmp_path / "data", "--output_root", tmp_path / "model")
    outcome = torchrun(*flags, *places, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    # At the start and at the end, of one process only.
    for line in ("5 cases scored on", "4 epochs, 5 cases"):
        assert outcome.stdout.count(line) == 1
    assert outcome.stdout.count("making superpixels") == 1  # by the main process, which is the one that speaks
    assert outcome.stdout.startswith("GSD-Net: ") and outcome.stdout.count("GSD-Net: ") == 2
    folder = tmp_path / "model" / "kvasir+gsd+given"
    result = json.loads((folder / "result.json").read_text())
    assert result["processes"] == 2 and result["test_cases"] == 5
    with open(folder / "per_image.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    assert [case["image"] for case in cases] == [f"case{index:02}" for index in range(5)]
    assert len({case["dice"] for case in cases}) > 2  # so that which networks score a case makes a difference
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row["loss"]) > 0 for row in rows)
    # With the result gone, a resumed run only scores again, and finds the same: both had its networks.
    (folder / "result.json").unlink()
    outcome = torchrun(*flags, *places, "--resume", cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads((folder / "result.json").read_text())["last_epoch"] == result["last_epoch"]
    # One process would train it otherwise than two did.
    alone = call(TRAIN_SCRIPT, *flags, *places, "--resume")
    assert_refused(alone, "torchrun --nproc_per_node 2 (now 1)")


def test_a_batch_that_cannot_be_shared_evenly(tmp_path, monkeypatch):
    """As one of three processes, which each find it before they wait for another."""
    write_dataset(tmp_path / "data", train=9, test=3, image_size=SIZE)
    monkeypatch.setattr("utils.engine.distributed.join_process_group", lambda device: ProcessGroup(0, 3))
    outcome = call(TRAIN_SCRIPT, *FLAGS, "--data_root", tmp_path / "data", "--cache", "none")
    assert_refused(outcome, "--batch_size 4", "3 processes")
