"""Where a run computes: device, precision, memory and exact repetition."""

import ctypes
import os
import platform

import torch
from torch import Tensor

from utils.commands.errors import UserError
from utils.method.gsd import Network


def choose_device(device: str, gpu: int) -> torch.device:
    """auto, cpu or cuda -> the device; auto takes GPU number ``gpu`` where there is one.

    Of several processes on a machine, started by torchrun, each takes the GPU of its own number. Where ``gpu`` is
    not 0 and does not decide, a line on stdout says so.
    Raises `UserError` if CUDA is asked for and absent, has no such GPU, or too few for the processes.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        if gpu:
            why = "as --device cpu says" if device == "cpu" else "for PyTorch finds no GPU"
            print(f"note: --gpu {gpu}: not used; this runs on the CPU, {why}")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; use --device cpu or auto")
    count = torch.cuda.device_count()
    if "LOCAL_RANK" in os.environ:
        if gpu:
            print(f"note: --gpu {gpu}: not used; of several processes each takes the GPU of its own number")
        gpu = int(os.environ["LOCAL_RANK"])
        if gpu >= count:
            raise UserError(
                f"torchrun --nproc_per_node: process {gpu} has no GPU of its own, for this machine has {count}; start "
                "one process a GPU, or give --device cpu"
            )
    elif not 0 <= gpu < count:
        raise UserError(f"--gpu {gpu}: this machine has GPUs 0..{count - 1}")
    torch.cuda.set_device(gpu)  # what asks for the current GPU, such as what it can compute natively, means this one
    torch.backends.cudnn.allow_tf32 = False  # by default convolutions of fp32 would not be fp32 on newer GPUs
    return torch.device("cuda", gpu)


def keep_freed_memory() -> None:
    """Have the C library keep the memory that a training step frees for the next step, where it is glibc.

    By itself it gives large blocks back to the system at once, and gets them anew, page by page, in each layer: a
    quarter of the time of a step on the CPU. The process keeps the largest size that it has had.
    """
    set_allocator(most_mapped_blocks=0, trim_threshold=2**31 - 1)


def set_allocator(most_mapped_blocks: int, trim_threshold: int) -> None:
    """Set glibc's M_MMAP_MAX, the number of large blocks that are mapped one by one, and M_TRIM_THRESHOLD, the free
    bytes above which memory goes back to the system. Does nothing with another C library."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((-4, most_mapped_blocks), (-1, trim_threshold)):
            libc.mallopt(ctypes.c_int(parameter), ctypes.c_int(value))


def repeat_exactly(wanted: bool) -> None:
    """Have PyTorch compute sums on a GPU in the same order each time (or no longer), or stop where it has no such way.

    What training there otherwise adds in any order: the votes of superpixels, gradients of convolutions and of the
    upsampling. On the CPU the order is always the same. Source: docs/decisions.md, "Precision and repetition".
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA multiplies its first matrices
    torch.use_deterministic_algorithms(wanted)
    # Training reads no memory that it has not set; filling it first would only cost time, on the CPU too.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def uses_bf16(amp: str, device: torch.device) -> bool:
    """Whether the networks run in bfloat16: ``amp`` is bf16, or auto and the hardware has it natively."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def at_precision(network: Network, device: torch.device, bf16: bool) -> Network:
    """The network's forward pass in bfloat16 where asked; its logits are float32, as selection and losses need."""

    def forward(image: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return network(image).float()

    return forward
