"""What --deterministic costs, and whether it keeps its word: the same training steps again and again, with and without.

    python benchmarks/determinism.py            # on the GPU where there is one
    python benchmarks/determinism.py --quick    # tiny sizes: does it run?

Every run starts from the same weights and draws, and its losses and final weights are compared bit by bit. A ratio is
that of two runs next to each other. Exit code 1 if runs with --deterministic differ. Needs requirements-dev.txt.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.speed import Material, Program, Setting, draw_material, readable, seconds_a_call, setting_of_steps
from utils.commands.arguments import command_parser
from utils.commands.errors import UserError, run_main
from utils.engine.device import repeat_exactly


def train(setting: Setting, material: Material, deterministic: bool) -> tuple[float, list[Tensor]]:
    """Train on all images once; returns the seconds a step, without the first one, and every loss and final weight."""
    repeat_exactly(deterministic)
    program = Program(setting, material)
    batches = list(program.batches())
    first, *others = batches
    results = [program.train(first)]

    def rest() -> None:
        results.extend(map(program.train, others))

    seconds = seconds_a_call(rest, setting.device, least=0) / len(others)
    return seconds, [value.cpu() for value in (*results, *program.networks.state_dict().values())]


def all_same(runs: Sequence[list[Tensor]]) -> bool:
    """Whether all runs gave the same values, bit by bit."""
    return all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of either kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="of a run (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--amp", choices=("auto", "bf16", "fp32"), default="auto", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny images and batches, to see that everything runs")
    args = parser.parse_args(argv)
    for name in ("repetitions", "steps"):
        if getattr(args, name) < 2:
            raise UserError(f"--{name} must be at least 2, got {getattr(args, name)}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train in turns with and without, compare and print."""
    args = parse_args(argv)
    setting = setting_of_steps(args)

    material = draw_material(setting)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    values: dict[bool, list[list[Tensor]]] = {False: [], True: []}
    try:
        train(setting, material, deterministic=True)  # does not count: kernels are chosen and memory is taken
        for _ in range(args.repetitions):
            for deterministic in (False, True):
                taken, found = train(setting, material, deterministic)
                seconds[deterministic].append(taken)
                values[deterministic].append(found)
    finally:
        repeat_exactly(False)
    for deterministic, name in ((False, "without"), (True, "--deterministic")):
        same = "all the same" if all_same(values[deterministic]) else "not all the same"
        print(f"{name:<16}{readable(statistics.median(seconds[deterministic])):>10} a step; ", end="")
        print(f"{args.repetitions} runs {same}")
    ratios = [slow / fast for slow, fast in zip(seconds[True], seconds[False], strict=True)]
    print(f"ratio {statistics.median(ratios):.3g}, lowest {min(ratios):.3g}, highest {max(ratios):.3g}")
    if not all_same(values[True]):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
