"""Kill runs at random moments and resume them, repeat runs in other circumstances, feed broken files to every reader.

    python benchmarks/reliability.py                       # writes docs/reliability.md; about an hour on two cores
    python benchmarks/reliability.py --kills 3 --files 50  # a taste, in minutes

Every part counts what it tried and how it ended. A defect is printed as it is found, and makes the exit code 1.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # its small sets
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from conftest import write_blobs, write_dataset
from lidc_files import entries, write_lidc
from mmis_files import write_mmis
from PIL import Image
from tqdm import tqdm

from benchmarks.machine import machine
from benchmarks.mutations import KINDS, Kind, outcome, random_edits
from utils.commands.arguments import command_parser
from utils.commands.errors import UserError, run_main
from utils.commands.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"seconds", "waiting", "seconds_per_epoch"}  # of no two runs the same
TRAINING = ("--image_size", "32", "--batch_size", "4", "--max_epochs", "4", "--device", "cpu", "--seed", "1")
LONGEST = 30  # seconds that a reader may take for a file
MEMORY = 4 * 2**30  # bytes that it may have beyond what the process has already


class Program(NamedTuple):
    """A script, and what it makes in the folder that it is given."""

    name: str
    arguments: tuple[str, ...]
    output: tuple[str, ...]  # flags in front of the output folder
    trains: bool = True


def programs(data: Path) -> list[Program]:
    """The three training scripts and the preprocessing scripts, on the sets that `write_data` wrote to ``data``."""
    root = ("--data_root", str(data), *TRAINING)
    images, masks = str(data / "many" / "images"), str(data / "many" / "masks")
    workers = ("--workers", "2")
    return [
        Program(
            "train_GSD-Net.py",
            ("--datasets", "Kvasir", "--noise_type", "given", "--val_fraction", "0.2", *root),
            ("--output_root",),
        ),
        Program("GSD_Net_lidc_each_select1.py", root, ("--output_root",)),
        Program("GSD_Net_MMIS2024_each_select1.py", root, ("--output_root",)),
        Program("scripts/generate_simulated_noise.py", ("--gts_root", masks, *workers), ("--save_root",), False),
        Program("scripts/generate_SLIC.py", ("--images_root", images, *workers), ("--save_root",), False),
    ]


def write_data(data: Path) -> None:
    """Small sets of all kinds: for training, and many images for the preprocessing scripts."""
    write_dataset(data)
    write_lidc(data, entries())
    write_mmis(data)
    write_blobs(data / "many", 60, 240, 200)


def command(program: Program, folder: Path) -> list[str]:
    """The command line that makes ``folder``; training can be resumed, and has its cache there too."""
    line = [sys.executable, str(ROOT / program.name), *program.arguments, *program.output, str(folder / "out")]
    return [*line, "--cache", str(folder / "cache"), "--resume"] if program.trains else line


def start(line: list[str], **environment: str) -> subprocess.Popen:
    """A command as leader of a process group."""
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
    )


# --- Killed at any moment ---------------------------------------------------------------------------------------------


def run_to_end(line: list[str], **environment: str) -> float:
    """Run a command; returns its seconds. Raises `UserError` with its last words if it fails."""
    begin = time.monotonic()
    process = start(line, **environment)
    out, _ = process.communicate()
    if process.returncode:
        raise UserError(f"{' '.join(line)} ended with code {process.returncode}: {out[-2000:]}")
    return time.monotonic() - begin


def kill_after(line: list[str], seconds: float) -> bool:
    """Run a command and kill its processes with SIGKILL after some seconds; whether it was still running.

    Raises `UserError` if it failed before.
    """
    process = start(line)
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode:
        raise UserError(f"{' '.join(line)} ended with code {process.returncode}: {out[-2000:]}")
    return False


def assert_whole(folder: Path) -> None:
    """Raises AssertionError if a file of the folder is half-written, hidden temporary ones apart."""
    for path in folder.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".csv":
                rows = list(csv.reader(path.read_text().splitlines()))
                assert len({len(row) for row in rows}) == 1, "rows of several lengths"
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".npy":
                np.load(path, allow_pickle=False)
            elif path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
        except Exception as error:
            raise AssertionError(f"{path}: half-written: {error!r}") from error


def epochs_done(folder: Path) -> tuple[int, int]:
    """Epochs in the checkpoint and in the log below ``folder``; 0 where there is none."""
    checkpoints, logs = (list(folder.glob(f"out/*/{name}")) for name in ("checkpoint.pt", "log.csv"))
    logged = len(logs[0].read_text().splitlines()) - 1 if logs else 0
    return (torch.load(checkpoints[0], weights_only=True)["epoch"] if checkpoints else 0), logged


def contents(folder: Path) -> dict[str, object]:
    """Every file below ``folder``/out by name: its table or JSON without times, or a hash of its bytes.

    Pictures and checkpoints of a run have times in them, as TensorBoard's files have; they are left to their names.
    """
    found: dict[str, object] = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder / "out"))
        if path.suffix == ".csv":
            rows = csv.DictReader(path.read_text().splitlines())
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        elif path.name in ("args.json", "result.json"):
            values = json.loads(path.read_text())
            found[name] = {
                key: value for key, value in values.items() if key not in (*TIMES, "cache") and "root" not in key
            }
        elif path.suffix in (".pt", ".png") and "checkpoint.pt" in os.listdir(path.parent):
            found[name] = "there"
        elif path.is_file() and not path.name.startswith("events."):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def difference(one: dict[str, object], other: dict[str, object]) -> str:
    """The names of what differs in two folders' `contents`."""
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


class Kills(NamedTuple):
    """What became of a program that was killed again and again."""

    runs: int
    kills: int


def survive(program: Program, kills: int, work: Path, rng: random.Random, bar: Callable[[], object]) -> Kills:
    """Kill a program ``kills`` times at random moments, in as many runs as that takes, each resumed to its end.

    Raises AssertionError for a file half-written, an epoch lost that was logged, or an end that is not the one of the
    run that nobody killed.
    """
    unbroken = work / "unbroken"
    seconds = run_to_end(command(program, unbroken))
    expected = contents(unbroken)
    runs, killed = 0, 0
    while killed < kills:
        folder, done, running = work / "killed", 0, True
        runs += 1
        while running and killed < kills:
            running = kill_after(command(program, folder), rng.uniform(0, seconds))
            killed += running
            if running:
                bar()
            assert_whole(folder)
            if program.trains:
                saved, logged = epochs_done(folder)
                assert saved >= max(logged, done), f"{program.name}: {done} epochs done, {logged} logged, {saved} kept"
                done = saved
        if running:
            run_to_end(command(program, folder))
        assert_whole(folder)
        left = [path.name for path in folder.rglob(".*") if path.name.endswith((".tmp", ".old"))]
        assert not left, f"{program.name}: left over: {left}"
        different = difference(expected, contents(folder))
        assert not different, f"{program.name}: not as the unbroken run: {different}"
        shutil.rmtree(folder)
    shutil.rmtree(unbroken)
    return Kills(runs, killed)


# --- Determinism ------------------------------------------------------------------------------------------------------


def reversed_copy(source: Path, target: Path) -> None:
    """Copy a tree with its files made in the opposite order, which many file systems list them in."""
    for path in sorted(source.rglob("*"), reverse=True):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / path.relative_to(source))


def compare_pairs(data: Path, work: Path, bar: Callable[[], object]) -> list[tuple[str, str, str]]:
    """(program, circumstance, what differs) of runs that should be the same, "" where nothing does."""
    other_data = work / "reversed"
    reversed_copy(data, other_data)
    found = []
    for program, moved in zip(programs(data), programs(other_data), strict=True):
        usual = work / "usual"
        run_to_end(command(program, usual), PYTHONHASHSEED="1")
        cases: list[tuple[str, list[str], dict[str, str]]] = [
            ("another PYTHONHASHSEED", command(program, work / "0"), {"PYTHONHASHSEED": "2"}),
            ("files in another order on the disk", command(moved, work / "1"), {}),
        ]
        if program.trains:
            cases.append(("without a cache", [*command(program, work / "2"), "--cache", "none"], {}))
            cases.append(("a cache that was there", [*command(program, work / "3"), "--cache",
                                                     str(usual / "cache")], {}))  # fmt: skip
        else:
            cases.append(("one worker in place of two", [*command(program, work / "2"), "--workers", "1"], {}))
        for number, (circumstance, line, environment) in enumerate(cases):
            run_to_end(line, **environment)
            one, other = contents(usual), contents(work / str(number))
            for run in (one, other):  # the flags differ on purpose
                for name in [name for name in run if name.endswith(("args.json", "settings.json"))]:
                    del run[name]
            found.append((program.name, circumstance, difference(one, other)))
            bar()
            shutil.rmtree(work / str(number))
        shutil.rmtree(usual)
    return found


# --- Broken files -----------------------------------------------------------------------------------------------------


def _read_each(kind: Kind, numbers: list[int], folder: Path, seed: int, pipe: Connection) -> None:
    """In a process of its own: read damaged files, and tell how each ended."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of broken files
    path = kind.make(folder)
    whole = path.read_bytes()
    for number in numbers:
        path.parent.mkdir(exist_ok=True)  # some readers remove what is broken and can be made again
        path.write_bytes(kind.change(whole, random_edits(np.random.default_rng([seed, number]))))
        pipe.send("begun")
        try:
            end = outcome(kind, path)
        except BaseException as error:
            end = f"{type(error).__name__}: {error}"[:300]
        pipe.send(end)


def outcomes(kind: Kind, count: int, work: Path, seed: int) -> Iterator[tuple[int, str]]:
    """How ``count`` damaged files ended, by number: "read", "refused" with a message that names the file, or worse."""
    folder = work / "damaged"
    context = multiprocessing.get_context("fork")
    number = 0
    while number < count:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_read_each, args=(kind, list(range(number, count)), folder, seed, there))
        process.start()
        there.close()
        try:
            while number < count:
                here.recv()
                end = here.recv() if here.poll(LONGEST) else f"no answer in {LONGEST} s"
                yield number, end
                number += 1
                if end.startswith("no answer"):
                    break
        except EOFError:
            process.join()
            yield number, f"the process ended with code {process.exitcode}"
            number += 1
        process.kill()
        process.join()


# --- The report -------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, work: Path) -> tuple[str, list[str]]:
    """docs/reliability.md, and the defects found."""
    data, rng, defects = work / "data", random.Random(args.seed), []
    write_data(data)
    where = machine(torch.device("cpu"))
    lines = [
        "# Reliability",
        "",
        "For those who want to know what happens when something breaks. This is what",
        f"`python benchmarks/reliability.py --kills {args.kills} --files {args.files} --seed {args.seed}` found on",
        f"{where['date'][:10]} ({where['cores']} cores of {where['cpu']}, PyTorch {where['torch']}).",
        "",
        "## Killed at any moment",
        "",
        "Each program is killed with SIGKILL, with all its processes, at random moments. It is started again with the",
        "same command until it is through. After each kill every file is read: none may be half-written, and no logged",
        "epoch lost. The end must be that of a run that nobody killed. log.csv, per_image.csv and result.json are",
        "compared without their times. Masks and superpixels are compared byte by byte. No temporary file may be left.",
        "",
        "| program | runs | kills | survived |",
        "|---|---|---|---|",
    ]
    chosen = [program for program in programs(data) if args.kills]
    with tqdm(total=args.kills * len(chosen), desc="kills", unit="kill") as bar:
        for program in chosen:
            try:
                runs, kills = survive(program, args.kills, work / "kills", rng, bar.update)
                lines.append(f"| {program.name} | {runs} | {kills} | all |")
            except (AssertionError, UserError) as error:
                defects.append(str(error))
                lines.append(f"| {program.name} | | | {error} |")
    lines += [
        "",
        "## Determinism",
        "",
        "Runs of the same seed are repeated in other circumstances, on one thread of the CPU. Every logged figure and",
        "every file, compared as above, must be the same.",
        "",
        "| program | the other run | the same |",
        "|---|---|---|",
    ]
    with tqdm(desc="pairs", unit="pair") as bar:
        for name, circumstance, different in compare_pairs(data, work / "pairs", bar.update):
            lines.append(f"| {name} | {circumstance} | {different or 'yes'} |")
            if different:
                defects.append(f"{name}, {circumstance}: {different} differs")
    lines += [
        "",
        "## Broken files",
        "",
        "Real files are damaged. Bits are flipped, bytes are overwritten, cut, put in, removed or repeated, and",
        "numbers are made extreme. PNG and checkpoints are also tried with right checksums",
        "([mutations.py](../benchmarks/mutations.py)). The files are read as the program reads them, in a process that",
        f"may take {LONGEST} s and {MEMORY >> 30} GiB for a file. A file is read where the damage does not show; a",
        "damaged cache is made again, which counts as read. Otherwise a file must be refused with a message that",
        "names it. Anything else is a defect.",
        "",
        "| file | tried | read | refused | defects |",
        "|---|---|---|---|---|",
    ]
    for name, kind in KINDS.items():
        counts: Counter[str] = Counter()
        files = tqdm(outcomes(kind, args.files, work, args.seed), total=args.files, desc=name, unit="file")
        for number, end in files:
            counts[end if end in ("read", "refused") else "defects"] += 1
            if end not in ("read", "refused"):
                defects.append(f"{name}, file {number}: {end}")
        row = (counts[end] for end in ("read", "refused", "defects"))
        lines.append(f"| {name} | {args.files} | {' | '.join(map(str, row))} |")
    return "\n".join(lines) + "\n", defects


def main(argv: list[str] | None = None) -> None:
    """Kill, compare, feed; write the report."""
    parser = command_parser(__doc__)
    parser.add_argument("--kills", type=int, default=40, help="of each program (default: %(default)s)")
    parser.add_argument("--files", type=int, default=1000, help="broken files of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and damage (default: %(default)s)")
    parser.add_argument(
        "--report", type=Path, default=ROOT / "docs/reliability.md", help="default: docs/reliability.md"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        text, defects = report(args, Path(work))
    print(text)
    write_atomically(args.report, text.encode())
    for defect in defects:
        print(f"defect: {defect}")
    if defects:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
