"""Time whole runs of train_GSD-Net.py, with everything that surrounds the training steps.

    python benchmarks/whole_run.py                                     # one run on drawn images, as many as Kvasir's
    python benchmarks/whole_run.py --processes 1 2 --device cpu        # torchrun with 1 and 2 processes
    python benchmarks/whole_run.py --runs 1 2 4 8                      # several runs at once on one GPU
    python benchmarks/whole_run.py --quick --device cpu                # tiny sizes: does it run?

Each row is what a user starts: a training command on a dataset whose superpixels are made. An epoch is the time from
the end of one to the end of the next, without the first; beside the steps it has scores, checkpoint and pictures, which
are drawn ten times a run. Runs at once and processes share the CPU's cores evenly. Throughput is epochs a second of all
runs together, as a multiple of the first row's; of several processes it is that of the one run.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.accuracy import ROOT, call
from benchmarks.machine import machine
from utils.commands.arguments import command_parser, number
from utils.commands.errors import UserError, run_main
from utils.commands.jobs import processors
from utils.engine.device import choose_device

RUN = "phantom+time+clean"  # folder of a run


class Times(NamedTuple):
    """Seconds of one run."""

    start: float  # from the command to the end of the first epoch
    epochs: list[float]  # of each epoch after the first
    steps: list[float]  # of these, in training steps
    end: float  # from the last epoch to the end: surface distances, the report
    whole: float


def train(data_root: Path, output_root: Path, flags: list[str], processes: int, threads: int) -> Times:
    """Time one training run. Raises `UserError` if it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "train_GSD-Net.py", *flags]
    places = ["--data_root", str(data_root), "--output_root", str(output_root), "--exp", "time"]
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, *places],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        lines = [(time.perf_counter(), line) for line in run.stdout or ()]
    whole = time.perf_counter() - start
    if run.returncode:
        raise UserError(f"{' '.join(command)} ended with code {run.returncode}: {lines[-1][1] if lines else ''}")
    ends = [at - start for at, line in lines if line.startswith("epoch ")]
    with open(output_root / RUN / "log.csv", newline="") as file:
        steps = [float(row["seconds"]) for row in csv.DictReader(file)]
    epochs = [after - before for before, after in pairwise(ends)]
    return Times(ends[0], epochs, steps[1:], whole - ends[-1], whole)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    whole = number(int, 1)
    add = parser.add_argument
    add("--train", type=whole, default=899, help="training images (default: %(default)s)")
    add("--test", type=whole, default=100, help="test images (default: %(default)s)")
    add("--image_size", type=number(int, 16), default=256, help="side in pixels (default: %(default)s)")
    add("--batch_size", type=whole, default=16, help="images a step (default: %(default)s)")
    add("--max_epochs", type=number(int, 2), default=20, help="of a run (default: %(default)s)")
    add("--runs", type=whole, nargs="+", default=[1], help="runs at once, a row each (default: 1)")
    add("--processes", type=whole, nargs="+", default=[1], help="of torchrun in a run, a row each (default: 1)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    args = parser.parse_args(argv)
    if args.quick:
        args.train, args.test, args.image_size, args.batch_size, args.max_epochs = 8, 4, 32, 4, 2
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure each row and print it."""
    args = parse_args(argv)
    print(", ".join(f"{name} {value}" for name, value in machine(choose_device(args.device, gpu=0)).items() if value))
    print(f"{args.train} training and {args.test} test images, {args.image_size} px, {args.max_epochs} epochs\n")
    flags = ["--datasets", "phantom", "--noise_type", "clean", "--tau", "0.05", "--device", args.device]
    flags += ["--image_size", str(args.image_size), "--batch_size", str(args.batch_size)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        drawn = ["--train", args.train, "--test", args.test, "--image_size", args.image_size]
        log = folder / "log"
        call("scripts/make_phantoms.py", "--save_root", folder / "data" / "phantom", *drawn, log=log)
        # Makes the superpixels, which a dataset needs once.
        train(folder / "data", folder / "first", [*flags, "--max_epochs", "1"], 1, processors())
        flags += ["--max_epochs", str(args.max_epochs)]
        print("runs  processes  first epoch  an epoch  beside its steps  at the end   whole  throughput")
        first = 0.0
        for processes in args.processes:
            for runs in args.runs:
                threads = max(1, processors() // (runs * processes))
                one = partial(train, folder / "data", flags=flags, processes=processes, threads=threads)
                with ThreadPoolExecutor(runs) as pool:
                    outputs = [folder / f"{processes}.{runs}.{index}" for index in range(runs)]
                    times = list(pool.map(one, outputs))
                epoch = statistics.fmean(seconds for run in times for seconds in run.epochs)
                steps = statistics.fmean(seconds for run in times for seconds in run.steps)
                start, end, whole = (
                    statistics.fmean(values)
                    for values in zip(*((run.start, run.end, run.whole) for run in times), strict=True)
                )
                first = first or 1 / epoch
                print(
                    f"{runs:>4}{processes:>11}{start:>11.2f} s{epoch:>8.2f} s{1 - steps / epoch:>18.1%}"
                    f"{end:>10.2f} s{whole:>6.1f} s{runs / epoch / first:>12.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    run_main(main)
