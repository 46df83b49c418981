"""Train methods on noisy masks at the paper's schedule, and tabulate how well each predicts the clean masks.

    python benchmarks/accuracy.py --data_root data                             # the methods, 64 px
    python benchmarks/accuracy.py --data_root data --grid modules              # each module of GSD-Net off, and alone
    python benchmarks/accuracy.py --data_root data --grid tau --split validation
    python benchmarks/accuracy.py --table --figure accuracy.png                # from the results there are; no training

A cell is one run of train_GSD-Net.py: 100 epochs of SGD 0.005, batches of 16; Dice and IoU are means over the last ten
epochs. Its result is a row of benchmarks/results/accuracy.csv, and its curve a file of benchmarks/results/curves/, as
soon as it is there. Broken off, the same command goes on with the cell, and the epoch, where it stopped. Noisy masks
that are missing are made by scripts/generate_simulated_noise.py with seed 0, superpixels by training. Of --noises, 02,
08 and DE are the paper's; the others have a label noise rate of 8 %, and weak, the masks of a weak network, are made by
benchmarks/weak_masks.py first. A method with "estimated masks" in its name trains on those that
scripts/audit_labels.py estimates, which trains judges of its own before (`ESTIMATED`).

With --split validation nothing is scored on the test images: a fifth of the training images, drawn with a fixed seed
and not trained on, takes their place, with clean masks. By these a setting may be chosen.
"""

import argparse
import csv
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.machine import machine
from dataloaders.dataset_folder import find_dataset
from dataloaders.datasets import Layout
from dataloaders.files import list_images, pair_by_stem
from dataloaders.slic import usual_segments
from utils.commands.arguments import command_parser
from utils.commands.errors import UserError, run_main
from utils.commands.files import locked, write_atomically, write_table
from utils.commands.jobs import processors
from utils.engine.figures import png

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.csv"
CURVE = ("epoch", "loss", "kept", "drop_rate", "weight_cap", "dice", "iou")  # what is kept of each run's log.csv


class Noise(NamedTuple):
    """One kind of training masks."""

    name: str  # in tables
    made: tuple[str, ...] = ()  # flags of generate_simulated_noise.py; none: they must be there
    folder: str | None = None  # in the dataset's; None: the layout's for --noise_type


RATE_OF_KINDS = "0.08"  # label noise rate of the kinds that are not the paper's
NOISES = {
    "02": Noise("S_R", ("--theta1", "0.2")),
    "08": Noise("S_E", ("--theta1", "0.8")),
    "DE": Noise("S_DE", ("--noisetype", "DE")),
    "clean": Noise("clean"),
    **{
        kind: Noise(kind, ("--noisetype", kind, "--target_rate", RATE_OF_KINDS), f"masks_{kind}")
        for kind in ("polygon", "affine", "elastic", "missing", "added", "box", "alphabeta")
    },
    "weak": Noise("weak", (), "masks_weak"),  # benchmarks/weak_masks.py
}
PAPERS = ("02", "08", "DE")  # its own kinds of noise
PROTOCOLS = {  # flags of train_GSD-Net.py
    "schedule": ("--max_epochs", "100", "--batch_size", "16"),
    "half": ("--max_epochs", "50", "--batch_size", "16"),
}
SCORED_AT = "mask size"

AUTO = ("--tau", "auto")
METHODS: dict[str, tuple[str, ...]] = {
    "ce": ("--method", "ce"),
    "ce + Dice": ("--method", "ce", "--set", "dice_weight=3"),
    "GSD-Net": (),
    "GSD-Net, tau auto": AUTO,
    "GSD-Net + contour recipe": ("--recipe", "contour"),
    "ce + contour recipe": ("--method", "ce", "--recipe", "contour"),
    "GSD-Net as published": ("--fidelity", "published"),
    "co-teaching": ("--method", "coteaching"),
    "JoCoR": ("--method", "jocor"),
    "T-Loss": ("--method", "tloss"),
    "ce + contour recipe, estimated masks": ("--method", "ce", "--recipe", "contour"),
}
# Methods that train on the masks that an audit estimates. Its judges are two pairs of networks, trained by the same
# method: each judges the masks of the images that the other has seen.
ESTIMATED = ("ce + contour recipe, estimated masks",)
FOLDS = ("--folds", "2")
JUDGES = ("--max_epochs", "30", "--batch_size", "16")  # flags of train_GSD-Net.py
MODULES = ("selection", "gda", "sgr", "kt")
GRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    "methods": METHODS,
    "modules": {
        "GSD-Net, tau auto": AUTO,
        **{f"GSD-Net without {module}": ("--without", module, *AUTO) for module in MODULES},
        **{
            f"GSD-Net with {module} alone": ("--without", *(other for other in MODULES if other != module), *AUTO)
            for module in MODULES
        },
    },
    # tau as a multiple of the true label noise rate.
    "tau": {
        "ce": METHODS["ce"],
        "ce + Dice": METHODS["ce + Dice"],
        "GSD-Net, tau auto": AUTO,
        **{f"GSD-Net, tau = rate x {factor:g}": ("--tau", f"x{factor:g}") for factor in (0.25, 0.5, 1, 1.4)},
    },
}
RATE = {  # label noise rate at 64x64 of the noisy masks that generate_simulated_noise.py makes with seed 0
    "shenzhen": {"S_R": 0.1384, "S_E": 0.1703, "S_DE": 0.1237},
    "Kvasir": {"S_R": 0.0459, "S_E": 0.0513, "S_DE": 0.0391},
}


@dataclass(frozen=True)
class Cell:
    """One training run."""

    dataset: str  # the folder's name
    noise: str  # its name in `NOISES`
    method: str  # its name in a grid
    seed: int
    protocol: str
    image_size: int
    split: str  # test, or validation: a part of the training images
    flags: str  # of train_GSD-Net.py, given in addition to the method's and the protocol's


@dataclass(frozen=True)
class Row:
    """A cell with its result."""

    dataset: str
    noise: str
    method: str
    recipe: str
    seed: int
    protocol: str
    image_size: int
    segments: int
    tau: float
    split: str
    flags: str
    scored_at: str  # mask size; rows of an earlier rule: training size
    cases: int
    dice: float  # mean over the last epochs, at most ten
    iou: float
    hd95: float | None  # pixels, after the last epoch
    seconds: float  # of training, without scoring, and without the audit of `ESTIMATED`
    machine: str
    date: str
    commit: str

    @property
    def cell(self) -> Cell:
        """What was run."""
        return Cell(**{field.name: getattr(self, field.name) for field in fields(Cell)})


# --- The results' file ------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """All rows of a results' file; none if there is no file. Raises `UserError` if it is not one."""
    if not path.is_file():
        return []
    try:
        with open(path, newline="") as file:
            records = list(csv.DictReader(file, strict=True))
        return [
            Row(**{field.name: _parse(record[field.name], field.type) for field in fields(Row)}) for record in records
        ]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path}: not a file of results ({error!r}); move it away or name another with --results"
        ) from error


def _parse(text: str | None, kind: Any) -> Any:
    if text is None:
        raise ValueError("a row is cut short")
    if kind == float | None:
        return float(text) if text else None
    return kind(text)


def add_row(path: Path, row: Row) -> None:
    """Add a row to the results' file, which other processes may be adding to as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), f"waiting for another process that writes {path}"):
        others = [old for old in read_rows(path) if (old.cell, old.scored_at) != (row.cell, row.scored_at)]
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(one) for one in sorted([*others, row], key=lambda one: tuple(map(str, astuple(one)))))
        write_atomically(path, text.getvalue().encode())


# --- Data -------------------------------------------------------------------------------------------------------------


def call(*command: object, log: Path, threads: int = 1) -> None:
    """Run one of the project's scripts; its output goes to ``log``. Raises `UserError` with its last words."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        words = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
        raise UserError(f"{' '.join(map(str, command))} ended with code {done.returncode}: {words} ({log})")


def masks_of(layout: Layout, noise: str) -> str:
    """The folder of the training masks of a kind of noise, in the dataset's folder."""
    return NOISES[noise].folder or layout.training_masks(noise)


def make_noise(dataset: Path, layout: Layout, noise: str, log: Path) -> None:
    """Make the noisy masks that are not there yet."""
    roots = ("--gts_root", dataset / layout.masks, "--save_root", dataset / masks_of(layout, noise))
    call("scripts/generate_simulated_noise.py", *roots, *NOISES[noise].made, "--seed", 0, log=log)


def validation_dataset(dataset: Path, layout: Layout, noises: list[str], target: Path) -> None:
    """Lay out ``target`` like ``dataset``, its test set a fifth of the training images and the rest to train on.

    Files are links. The dataset's own test images are not part of it.
    """
    images = list_images(dataset / layout.images)
    held_out = set(np.random.default_rng(0).permutation(sorted(images))[: len(images) // 5].tolist())
    clean = pair_by_stem(images, list_images(dataset / layout.masks), dataset / layout.masks)
    for stem, (image, mask) in zip(images, clean, strict=True):
        test = stem in held_out
        _link(image, target / (layout.images_test if test else layout.images))
        _link(mask, target / (layout.masks_test if test else layout.masks))
    for folder in {masks_of(layout, noise) for noise in noises} - {layout.masks}:
        for stem, path in list_images(dataset / folder).items():
            if stem not in held_out:
                _link(path, target / folder)


def _link(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / source.name
    if not link.is_symlink():
        link.symlink_to(source.resolve())


# --- Cells ------------------------------------------------------------------------------------------------------------


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The cells that the flags ask for: one seed of all before the next."""
    return [
        Cell(
            dataset, NOISES[noise].name, method, seed, args.protocol, args.image_size, args.split, " ".join(args.flags)
        )
        for seed in args.seeds or [0]
        for dataset in args.datasets
        for noise in args.noises
        for method in args.methods or GRIDS[args.grid]
    ]


def noise_of(cell: Cell) -> str:
    """The key in `NOISES` of a cell's kind of noise."""
    return next(noise for noise, kind in NOISES.items() if kind.name == cell.noise)


def flags_of(cell: Cell, grid: str, masks: Path | None = None) -> list[str]:
    """The flags of train_GSD-Net.py that are the cell's own. Raises `UserError` for an unknown noise rate.

    masks: a folder to train on in place of the noisy masks.
    """
    flags = list(GRIDS[grid][cell.method])
    if "--tau" in flags and flags[-1].startswith("x"):
        try:
            rate = RATE[cell.dataset][cell.noise]
        except KeyError as error:
            raise UserError(f"--grid {grid}: RATE has no noise rate of {cell.dataset} {cell.noise}") from error
        flags[-1] = format(rate * float(flags[-1][1:]), ".3g")
    noise = noise_of(cell)
    folder = masks or NOISES[noise].folder
    trained_on = ("--masks", str(folder)) if folder else ("--noise_type", noise)
    common = ("--image_size", str(cell.image_size), "--seed", str(cell.seed))
    return [*flags, *PROTOCOLS[cell.protocol], *trained_on, *common, *cell.flags.split()]


def name_of(cell: Cell) -> str:
    """A cell's name as that of a file."""
    return "_".join("".join(c if c.isalnum() else "-" for c in str(part)) for part in astuple(cell) if part != "")


def estimated_masks(cell: Cell, grid: str, data_root: Path, folder: Path, threads: int) -> Path:
    """The masks that an audit of a cell's noisy masks estimates, made or finished in ``folder``."""
    dataset, layout = find_dataset(data_root, cell.dataset)
    call(
        *("scripts/audit_labels.py", "--images_root", dataset / layout.images),
        *("--masks_root", dataset / masks_of(layout, noise_of(cell)), "--save_root", folder),
        *("--workers", threads, "--image_size", cell.image_size, *FOLDS),
        *("--", *GRIDS[grid][cell.method], *JUDGES, "--seed", cell.seed, *cell.flags.split()),
        log=folder.with_suffix(".log"),
        threads=threads,
    )
    return folder / "masks_refined"


def run_cell(cell: Cell, grid: str, data_root: Path, work_root: Path, curves: Path, threads: int) -> Row:
    """Train a cell, or finish it, and read its result."""
    folder = work_root / "runs" / name_of(cell)
    places = ("--output_root", folder, "--exp", "cell", "--cache", work_root / "cache", "--resume")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    masks = None
    if cell.method in ESTIMATED:
        masks = estimated_masks(cell, grid, data_root, work_root / "audits" / name_of(cell), threads)
    flags = flags_of(cell, grid, masks)
    call(
        *("train_GSD-Net.py", "--datasets", cell.dataset, "--data_root", data_root, *places, *flags),
        log=folder / "log.txt",
        threads=threads,
    )
    (run,) = (path.parent for path in folder.glob("*/result.json"))
    result = json.loads((run / "result.json").read_text())
    with open(run / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    write_table(curves / f"{name_of(cell)}.csv", [{key: row[key] for key in CURVE} for row in log])
    where = machine(torch.device(result["device"]))
    hd95 = result["last_epoch"]["hd95"]
    return Row(
        **asdict(cell),
        recipe=result["recipe"],
        segments=usual_segments(cell.image_size),
        tau=result["tau"],
        scored_at=SCORED_AT,
        cases=result["test_cases"],
        dice=round(result["final_dice_mean"], 4),
        iou=round(result["final_iou_mean"], 4),
        hd95=None if hd95 is None else round(hd95, 2),
        seconds=round(sum(float(row["seconds"]) for row in log), 0),
        machine=f"{where['gpu'] or where['cpu']}, {result['threads']} threads, {result['precision']}",
        date=datetime.date.today().isoformat(),
        commit=commit.stdout.strip(),
    )


def train_cells(args: argparse.Namespace) -> None:
    """Run every cell that the results' file lacks, some at a time."""
    done = {row.cell for row in read_rows(args.results) if row.scored_at == SCORED_AT}
    waiting = [cell for cell in cells_of(args) if cell not in done]
    print(f"{len(waiting)} cells to train, {len(cells_of(args)) - len(waiting)} are in {args.results}")
    places: dict[str, Path] = {}
    for name in dict.fromkeys(cell.dataset for cell in waiting):
        dataset, layout = find_dataset(args.data_root, name)
        for noise in (noise for noise in args.noises if NOISES[noise].made):
            make_noise(dataset, layout, noise, args.work_root / "prepare.log")
        places[name] = args.data_root.resolve()
        if args.split == "validation":
            places[name] = (args.work_root / "validation").resolve()
            validation_dataset(dataset, layout, args.noises, places[name] / dataset.name)
    threads = max(1, processors() // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(waiting), unit="cell") as bar:

        def train(cell: Cell) -> None:
            curves = args.results.parent / "curves"
            row = run_cell(cell, args.grid, places[cell.dataset], args.work_root.resolve(), curves, threads)
            add_row(args.results, row)
            bar.update()
            bar.write(
                f"{cell.dataset} {cell.noise} {cell.method}, seed {cell.seed}: Dice {row.dice:.4f}, {row.seconds:.0f} s"
            )

        running = [pool.submit(train, cell) for cell in waiting]
        try:
            for cell in running:
                cell.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# --- Tables and pictures ----------------------------------------------------------------------------------------------


def asked_for(row: Row, args: argparse.Namespace) -> bool:
    """Whether a result is of what the flags ask for; rows scored by an earlier rule are of nothing."""
    return (
        (row.protocol, row.image_size, row.split, row.flags, row.scored_at)
        == (args.protocol, args.image_size, args.split, " ".join(args.flags), SCORED_AT)
        and row.dataset in args.datasets
        and row.noise in {NOISES[noise].name for noise in args.noises}
        and row.method in (args.methods or GRIDS[args.grid])
        and (not args.seeds or row.seed in args.seeds)
    )


def table(rows: list[Row], dataset: str, methods: list[str]) -> str:
    """A Markdown table of one dataset: a row per method; Dice for each noise, mean +- deviation over (n) seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.dataset == dataset:
            found.setdefault((row.method, row.noise), []).append(row.dice)
    noises = [noise.name for noise in NOISES.values() if any(noise.name == key[1] for key in found)]
    lines = [f"| {dataset} | {' | '.join(noises)} |", "|---" * (len(noises) + 1) + "|"]
    for method in methods:
        if any(method == key[0] for key in found):
            texts = [_cell_text(found.get((method, noise))) for noise in noises]
            lines.append("| " + " | ".join([method, *texts]) + " |")
    cases = {row.cases for row in rows if row.dataset == dataset}
    return "\n".join([*lines, "", f"Each figure is a mean over {' or '.join(map(str, sorted(cases)))} images."])


def _cell_text(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def draw(rows: list[Row], curves: Path) -> Figure:
    """Dice against the epoch: a panel for each dataset and noise, a line for each method, of the first seed."""
    panels = list(dict.fromkeys((row.dataset, row.noise) for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (dataset, noise) in zip(axes, panels, strict=True):
        axis.set(title=f"{dataset}, {noise}", xlabel="epoch", ylabel="Dice")
        for number, method in enumerate(methods):
            own = [row for row in rows if (row.dataset, row.noise, row.method) == (dataset, noise, method)]
            path = curves / f"{name_of(own[0].cell)}.csv" if own else None
            if path and path.is_file():
                with open(path, newline="") as file:
                    dice = [float(line["dice"]) for line in csv.DictReader(file)]
                axis.plot(dice, label=method, color=f"C{number}", linewidth=1)
        axis.legend(fontsize=7)
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; whatever follows -- goes to every training run."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data_root", type=Path, default=Path("data"), help="default: %(default)s")
    add("--work_root", type=Path, default=Path("model/accuracy"), help="runs and cached sets (%(default)s)")
    add("--results", type=Path, default=RESULTS, help="default: benchmarks/results/accuracy.csv")
    add("--protocol", choices=tuple(PROTOCOLS), default="schedule", help="half: 50 epochs (default: %(default)s)")
    add("--image_size", type=int, default=64, help="training size in pixels (default: %(default)s)")
    add("--grid", choices=tuple(GRIDS), default="methods", help="default: %(default)s")
    add("--split", choices=("test", "validation"), default="test", help="what is scored on (default: %(default)s)")
    add("--datasets", nargs="+", default=["shenzhen", "Kvasir"], metavar="NAME", help="folders of --data_root")
    add("--noises", nargs="+", default=list(PAPERS), choices=tuple(NOISES), metavar="NOISE")
    add("--methods", nargs="+", metavar="METHOD", help="of the grid; default: all")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0 to train, all to print")
    add("--jobs", type=int, default=1, help="cells at a time (default: %(default)s)")
    add("--table", action="store_true", help="print the table of the results there are; train nothing")
    add("--figure", type=Path, metavar="FILE.png", help="draw the curves of the results there are")
    add("flags", nargs="*", help="flags of train_GSD-Net.py for every run, behind --")
    args = parser.parse_args(argv)
    for method in args.methods or ():
        if method not in GRIDS[args.grid]:
            parser.error(f"--methods {method}: --grid {args.grid} has {', '.join(GRIDS[args.grid])}")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    """Train what is missing, then print and draw."""
    args = parse_args(argv)
    if not args.table:
        train_cells(args)
    rows = [row for row in read_rows(args.results) if asked_for(row, args)]
    if not rows:
        raise UserError(f"{args.results}: no results of --grid {args.grid}, --protocol {args.protocol} and these flags")
    methods = list(GRIDS[args.grid])
    there = [dataset for dataset in args.datasets if any(row.dataset == dataset for row in rows)]
    print("\n\n".join(table(rows, dataset, methods) for dataset in there))
    if args.figure:
        write_atomically(args.figure, png(draw(rows, args.results.parent / "curves")))


if __name__ == "__main__":
    run_main(main)
