"""Time variants of a whole training step, and compare their losses with those of the step as it is.

    python benchmarks/gpu_step.py                                       # every variant, on the GPU
    python benchmarks/gpu_step.py --variants "CUDA graph" --amp fp32    # one against the step as it is
    python benchmarks/gpu_step.py --quick --device cpu                  # tiny sizes: does it run?

Variants: other optimiser kernels; networks compiled by torch.compile, in three modes; the networks side by side in two
CUDA streams; the whole step as one CUDA graph, whose mixing weight, permutation and learning rate are tensors, and
whose kept count and weight cap are those of its epoch. Each trains from the same weights, on the same batches and
draws. Its difference is the largest of a run, relative to the losses of the first variant; what a second run of that
differs by is the order of sums on a GPU. Times are those of later steps, in turns; preparing is the first step,
compiling included, which takes minutes. Variants that need CUDA are left out elsewhere, and said so. Needs
requirements-dev.txt.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.speed import (
    CONFIG,
    EPOCH,
    Program,
    Setting,
    draw_material,
    readable,
    seconds_a_call,
    setting_of_steps,
    sgd,
)
from networks.unet import two_unets
from utils.commands.arguments import command_parser, number
from utils.commands.errors import run_main
from utils.engine.device import at_precision
from utils.method.gsd import Batch, Network, gsd_step

LEARNING_RATE = 0.005  # docs/method.md section 5
WARM_UP = 3  # steps before a CUDA graph is captured, in which libraries choose their kernels


@dataclass(frozen=True)
class Variant:
    """How a step is computed; by default as in training."""

    optimiser: str = "fused"  # or "foreach", "single": one kernel for all parameters, for many, for each
    compiled: str | None = None  # a mode of torch.compile
    two_streams: bool = False
    graph: bool = False

    @property
    def needs_cuda(self) -> bool:
        """Whether it means nothing elsewhere."""
        return self.two_streams or self.graph or self.compiled == "reduce-overhead"


EAGER = "as it is"
VARIANTS = {
    EAGER: Variant(),
    "as it is, again": Variant(),
    "optimiser foreach": Variant(optimiser="foreach"),
    "optimiser single": Variant(optimiser="single"),
    "compiled": Variant(compiled="default"),
    "compiled, autotuned": Variant(compiled="max-autotune-no-cudagraphs"),
    "compiled, reduce-overhead": Variant(compiled="reduce-overhead"),
    "two streams": Variant(two_streams=True),
    "CUDA graph": Variant(graph=True),
    "CUDA graph, two streams": Variant(graph=True, two_streams=True),
}


class Inputs(NamedTuple):
    """What one step takes, all on the device."""

    batch: Batch
    mixing: Tensor  # scalar, a of docs/method.md section 3
    permutation: Tensor  # (B,) int64

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return [value for value in (*self.batch, self.mixing, self.permutation) if isinstance(value, Tensor)]


class Training:
    """The networks and the optimiser of one variant; all variants start alike."""

    def __init__(self, variant: Variant, setting: Setting):
        networks = two_unets(3, 2, seed=0).train()
        # PyTorch's annotations lack memory_format.
        self.networks = networks.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        called = [
            torch.compile(network, mode=variant.compiled) if variant.compiled else network for network in self.networks
        ]
        self.forwards: list[Network] = [at_precision(network, setting.device, setting.bf16) for network in called]
        if variant.two_streams:
            self.forwards = side_by_side(self.forwards)
        self.optimiser = sgd(self.networks, **{kind: kind == variant.optimiser for kind in ("fused", "foreach")})
        if variant.graph:  # a schedule writes into it
            self.optimiser.param_groups[0]["lr"] = torch.tensor(LEARNING_RATE, device=setting.device)

    def step(self, inputs: Inputs) -> Tensor:
        """One training step; the loss stays on the device."""
        mixing = cast("float", inputs.mixing)  # a number in training; it is only multiplied and subtracted
        step = gsd_step(self.forwards, inputs.batch, EPOCH, CONFIG, mixing, inputs.permutation)
        self.optimiser.zero_grad(set_to_none=True)
        step.loss.backward()
        self.optimiser.step()
        return step.loss.detach()


def side_by_side(forwards: Sequence[Network]) -> list[Network]:
    """f1 on the current stream and f2 on one of its own, beside it: its images are there when f1 is called."""
    first, second = forwards
    side = torch.cuda.Stream()
    ready = [torch.cuda.Event()]

    def f1(image: Tensor) -> Tensor:
        ready[0] = torch.cuda.current_stream().record_event()
        return first(image)

    def f2(image: Tensor) -> Tensor:
        current = torch.cuda.current_stream()
        side.wait_event(ready[0])
        with torch.cuda.stream(side):
            logits = second(image)
        current.wait_stream(side)
        image.record_stream(side)  # so that its memory is not given away before
        logits.record_stream(current)
        return logits

    return [f1, f2]


def captured(training: Training, example: Inputs) -> Callable[[Inputs], Tensor]:
    """The step of ``training`` as one CUDA graph, captured on inputs like ``example``; nothing is trained by it."""
    held = deepcopy(example)
    before = {name: value.clone() for name, value in training.networks.state_dict().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            training.step(held)
    torch.cuda.current_stream().wait_stream(stream)
    training.networks.load_state_dict(before)  # in place, as a graph must have it
    for state in training.optimiser.state.values():
        state["momentum_buffer"].zero_()
    graph = torch.cuda.CUDAGraph()
    training.optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = training.step(held)

    def replay(inputs: Inputs) -> Tensor:
        for own, given in zip(held.tensors, inputs.tensors, strict=True):
            own.copy_(given)
        graph.replay()
        return loss.clone()

    return replay


class Run(NamedTuple):
    """A variant after its first pass over the batches."""

    step: Callable[[Inputs], Tensor]
    losses: list[float]
    preparing: float  # seconds


def start(variant: Variant, setting: Setting, inputs: Sequence[Inputs]) -> Run:
    """Prepare a variant and train once on all ``inputs``."""
    began = time.perf_counter()
    training = Training(variant, setting)
    step = captured(training, inputs[0]) if variant.graph else training.step
    losses = [float(step(inputs[0]))]
    preparing = time.perf_counter() - began
    return Run(step, [*losses, *(float(step(one)) for one in inputs[1:])], preparing)


def inputs_of(setting: Setting) -> list[Inputs]:
    """The batches and draws that every variant trains on."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in Program(setting, draw_material(setting)).batches():
        mixing = torch.rand((), generator=generator).to(setting.device)
        permutation = torch.randperm(setting.batch_size, generator=generator).to(setting.device)
        found.append(Inputs(batch, mixing, permutation))
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    names = ", ".join(VARIANTS)
    add("--variants", nargs="+", choices=VARIANTS, metavar="NAME", default=list(VARIANTS), help=f"of: {names}")
    add("--repetitions", type=number(int, 2), default=5, help="timed runs of each variant (default: %(default)s)")
    add("--steps", type=number(int, 2), default=10, help="of a run (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--amp", choices=("auto", "bf16", "fp32"), default="auto", help="default: %(default)s")
    add("--quick", action="store_true", help="tiny images and batches, to see that everything runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Start every variant, time those that run in turns, and print the table."""
    args = parse_args(argv)
    setting = setting_of_steps(args)

    inputs = inputs_of(setting)
    runs: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((EAGER, *args.variants)):
        if VARIANTS[name].needs_cuda and setting.device.type != "cuda":
            left_out[name] = "needs CUDA"
            continue
        try:
            runs[name] = start(VARIANTS[name], setting, inputs)
        except Exception as error:  # a compiler that is not there, an operation that cannot be captured
            if name == EAGER:
                raise
            left_out[name] = f"{type(error).__name__}: {error!s:.200}".splitlines()[0]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repetitions):
        for name, run in runs.items():

            def pass_over(step: Callable[[Inputs], Tensor] = run.step) -> None:
                for one in inputs:
                    step(one)

            seconds[name].append(seconds_a_call(pass_over, setting.device, least=0) / len(inputs))
    print(f"{'variant':<28}{'step':>9}{'ratio':>8}{'preparing':>12}{'difference':>12}")
    for name, run in runs.items():
        ratio = statistics.median(one / own for one, own in zip(seconds[EAGER], seconds[name], strict=True))
        difference = max(abs(own / one - 1) for one, own in zip(runs[EAGER].losses, run.losses, strict=True))
        median = readable(statistics.median(seconds[name]))
        print(f"{name:<28}{median:>9}{ratio:>8.3g}{readable(run.preparing):>12}{difference:>12.2g}")
    for name, reason in left_out.items():
        print(f"{name:<28}left out: {reason}")


if __name__ == "__main__":
    run_main(main)
