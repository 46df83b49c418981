"""Several processes that train together, started by torchrun; for one process alone everything here does nothing.

Each process takes its part of every batch, forwards it, and DistributedDataParallel averages the gradients; each scores
its part of the test cases; the main process writes. docs/decisions.md says what that means for the method.
"""

import atexit
import gc
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class ProcessGroup(NamedTuple):
    """This process's number among those that train together, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the main one, which writes and prints."""
        return self.rank == 0


ALONE = ProcessGroup()


def join_process_group(device: torch.device) -> ProcessGroup:
    """Meet the other processes that torchrun started; a process that it did not start is a group of its own.

    device: this process's own, and on a GPU the current one, as `utils.engine.device.choose_device` leaves it.
    """
    if not dist.is_torchelastic_launched():
        return ALONE
    # Its functions have the group there is at the import as a default, which would keep the group for ever. The shared
    # networks import it.
    import torch.distributed.nn.functional  # noqa: F401

    if device.type == "cuda":
        # Told its GPU here, NCCL need not guess it from the rank, of which PyTorch warns.
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return ProcessGroup(dist.get_rank(), dist.get_world_size())


def leave_process_group() -> None:
    """Part from the other processes, once all have come this far."""
    if dist.is_initialized():
        dist.barrier()
        # The shared networks hold the group too. Were theirs the last hold, the group would be taken down with the
        # interpreter lock held, waiting for a thread of its own that may be waiting for that lock: for ever. So it is
        # held here until they are gone.
        atexit.register(_take_down, [dist.group.WORLD])
        dist.destroy_process_group()


def _take_down(groups: list) -> None:
    """Let go of the groups while the interpreter lives: a thread of theirs that still needs it later aborts."""
    gc.collect()  # what holds the shared networks may be a circle
    groups.clear()  # from Python's side, which gives the interpreter lock back while their threads end


def wait_for_all() -> None:
    """Return when every process of the group has come this far."""
    if dist.is_initialized():
        dist.barrier()


def shared(network: nn.Module, group: ProcessGroup) -> nn.Module:
    """The network, with gradients that are averaged over the process group in the backward pass."""
    if group.size == 1:
        return network
    # Batch norm's running figures are averaged once an epoch (`average_buffers`); sent with each forward pass, as is
    # the default, they would change between the two passes of a step, whose gradients need them.
    return DistributedDataParallel(network, broadcast_buffers=False)


def average(values: Tensor) -> Tensor:
    """The mean of ``values`` over the process group."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of the gradients of parameters that are in no shared network (`shared`)."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = average(parameter.grad)


def average_buffers(networks: nn.Module) -> None:
    """Give every process the mean of batch norm's running figures, so that all hold the same networks."""
    if dist.is_initialized():
        for buffer in networks.buffers():
            if buffer.is_floating_point():
                buffer.copy_(average(buffer))


def gather(items: list) -> list:
    """The items of all processes: the first of each, then the second of each, and so on.

    So they come back in the order of a list of which process r took items r, r + size, r + 2 size, ...
    """
    if not dist.is_initialized():
        return items
    parts: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, items)
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]
