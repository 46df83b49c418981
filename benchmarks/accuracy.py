"""Train every method on every dataset, noise and seed, and tabulate how well each predicts the clean test masks.

    python benchmarks/accuracy.py --data_root data                       # protocol small: 128 px, minutes a cell
    python benchmarks/accuracy.py --data_root data --protocol full       # 256 px, 100 epochs: for a GPU
    python benchmarks/accuracy.py --data_root data --grid ablation --protocol brief  # one factor at a time: see below
    python benchmarks/accuracy.py --data_root data --grid tau --protocol brief       # half, once, twice the tau
    python benchmarks/accuracy.py --data_root data --grid missing --protocol brief   # objects missing from masks
    python benchmarks/accuracy.py --data_root data --grid precision      # bf16, cached, compiled against plain fp32
    python benchmarks/accuracy.py --table --figure accuracy.png          # from the results there are; trains nothing

A cell is one run of train_GSD-Net.py; its result is a row of benchmarks/results/accuracy.csv, written as soon as it is
there. Broken off, the same command goes on with the cell, and the epoch, where it stopped. Noisy masks and superpixels
are made by the project's own scripts, with seed 0, where they are not there yet.

The main grid is scored on the datasets' test images. The other grids, by which settings were chosen, never read them:
a fifth of the training images, drawn with a fixed seed, takes their place (and is not trained on).

Gap recovered = (Dice - Dice of ce on the noisy masks) / (Dice of ce on the clean masks - Dice of ce on the noisy
masks): 0 is plain training, 1 training without label noise.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.machine import machine
from dataloaders.files import list_images, pair_by_stem
from dataloaders.noisy_folder import Layout, find_dataset
from scripts.generate_simulated_noise import make_noisy
from utils.commands.errors import UserError, run_main
from utils.commands.files import locked, write_atomically, write_table
from utils.engine.figures import png

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.csv"
CURVES = ROOT / "benchmarks" / "results" / "curves"
CURVE = ("epoch", "loss", "kept", "drop_rate", "weight_cap", "dice", "iou")  # what is kept of each run's log.csv
NOISES = {"02": "S_R", "08": "S_E", "DE": "S_DE"}
NOISE_FLAGS = {"02": ("--theta1", "0.2"), "08": ("--theta1", "0.8"), "DE": ("--noisetype", "DE")}
MISSING = "missing"  # the noise of the grid of that name, whatever --noises says: see object_missing
MISSING_SHARE = 0.4  # of the masks
CLEAN = "ce on clean masks"
GSD_CLEAN = "gsd on clean masks"  # what its other loss brings where nothing is wrong
ON_CLEAN = (CLEAN, GSD_CLEAN)

# Flags of train_GSD-Net.py. All methods, those of the paper included, have the optimiser of --fidelity extended: a
# difference between rows is then one of methods, and the few steps of small are too few for plain SGD.
SAME_FOR_ALL = ("--optimizer", "adamw", "--schedule", "cosine")
PROTOCOLS: dict[str, dict[str, Any]] = {
    "small": {  # about ten minutes a cell on one CPU core
        "flags": ("--image_size", "128", *SAME_FOR_ALL),
        "segments": 256,
        "epochs": {"shenzhen": 12, "Kvasir": 12},
    },
    # For grids of many cells: a quarter of small's time, as many steps.
    "brief": {
        "flags": ("--image_size", "64", *SAME_FOR_ALL),
        "segments": 256,
        "epochs": {"shenzhen": 12, "Kvasir": 12},
    },
    "full": {"flags": ("--image_size", "256", *SAME_FOR_ALL), "segments": 1024, "epochs": {}},
    # The paper's own schedule at a quarter of its size: SGD, 100 epochs.
    "schedule": {
        "flags": ("--image_size", "64", "--optimizer", "sgd", "--schedule", "constant"),
        "segments": 256,
        "epochs": {},
    },
}
METHODS = {
    "ce": ("--method", "ce"),
    "gce": ("--method", "gce"),
    "sce": ("--method", "sce"),
    "coteaching": ("--method", "coteaching"),
    "jocor": ("--method", "jocor"),
    "gsd published": ("--fidelity", "published"),
    "gsd paper": ("--fidelity", "paper"),
    "gsd": (),
    "ce, contours corrected": ("--method", "ce", "--contours", "corrected"),  # what of gsd is the correction alone
    CLEAN: ("--method", "ce"),
    GSD_CLEAN: (),
}
PAPER = ("--fidelity", "paper")
ABLATION = {  # one change each from gsd as it ships, then from the paper's form; then the ends of the gap
    "gsd": (),
    "contours as given": ("--contours", "given"),
    "contours as given, nothing dropped": ("--contours", "given", "--tau", "0", "--warm_up", "1"),
    "distance weights": ("--weights", "distance"),
    "no Dice loss": ("--label_loss", "ce"),
    "Dice loss x 1": ("--dice_weight", "1"),
    "Dice loss x 10": ("--dice_weight", "10"),
    "no agreement": ("--consistency", "1"),
    "selection": ("--tau", "x1", "--warm_up", "1"),
    "selection, refinement, transfer": ("--tau", "x1"),
    "the same, tau x 0.3": ("--tau", "x0.3"),
    "transfer": ("--warm_up", "0.3"),
    "ce, contours corrected": ("--method", "ce", "--contours", "corrected"),
    "paper": PAPER,
    "paper, even weights": (*PAPER, "--weights", "even"),
    "paper, whole distances": (*PAPER, "--distance", "floored"),
    "paper, label kept": (*PAPER, "--vote", "given"),
    "paper, vote of each pixel": (*PAPER, "--vote", "pixels"),
    "paper, vote of rings": (*PAPER, "--vote", "rings"),
    "paper, vote of intersections": (*PAPER, "--vote", "intersections"),
    "paper, 64 superpixels": PAPER,
    "paper, 1024 superpixels": PAPER,
    "paper, no transfer": (*PAPER, "--transfer", "none"),
    "paper, no second phase": (*PAPER, "--warm_up", "1"),
    "paper, warm-up 0": (*PAPER, "--warm_up", "0"),
    "paper, bounded cross-entropy": (*PAPER, "--transfer_loss", "probabilities"),
    "paper, no agreement in the selection": (*PAPER, "--consistency", "1"),
    "paper, agreement in full": (*PAPER, "--consistency", "0"),
    "paper, constant cap of the weights": (*PAPER, "--weight_decay_rate", "0"),
    "paper, raw inputs": (*PAPER, "--inputs", "raw"),
    "published": ("--fidelity", "published"),
    "ce": ("--method", "ce"),
    CLEAN: ("--method", "ce"),
    GSD_CLEAN: (),
}
SEGMENTS = {"paper, 64 superpixels": 64, "paper, 1024 superpixels": 1024}  # elsewhere the protocol's
RATE_FACTORS = (0.25, 0.5, 1, 1.4)
GRIDS: dict[str, dict[str, tuple[str, ...]]] = {
    "methods": METHODS,
    "ablation": ABLATION,
    "precision": {  # what speed costs in accuracy
        "bf16, cache, compiled": ("--amp", "bf16", "--cache", "ram", "--compile"),
        "fp32, no cache": ("--amp", "fp32", "--cache", "none"),
    },
    "tau": {
        f"{name}, tau x {factor:g}": (*METHODS[name], "--tau", f"x{factor:g}")
        for name in ("coteaching", "jocor", "gsd published", "gsd")
        for factor in (0.5, 1, 2)
    },
    # tau as a multiple of the true share of wrong pixels.
    "noise rate": {f"gsd paper, tau = rate x {factor:g}": (*PAPER, "--tau", f"r{factor:g}") for factor in RATE_FACTORS},
    "missing": {
        "ce": ("--method", "ce"),
        "coteaching": ("--method", "coteaching", "--tau", "x1"),
        "jocor": ("--method", "jocor", "--tau", "x1"),
        "gsd published": ("--fidelity", "published", "--tau", "x1"),
        "gsd paper": (*PAPER, "--tau", "x1"),
        "gsd": (),
        "selection": ("--tau", "x1", "--warm_up", "1"),
        "selection, refinement, transfer": ("--tau", "x1"),
        "the same, vote of each pixel": ("--tau", "x1", "--vote", "pixels"),
        CLEAN: ("--method", "ce"),
        GSD_CLEAN: (),
    },
}
TAU = {"shenzhen": 0.17, "Kvasir": 0.05}  # the paper's, which x1 stands for
RATE = {  # the share of wrong pixels in the noisy masks at 64x64, by generate_simulated_noise.py with seed 0
    "shenzhen": {"S_R": 0.1384, "S_E": 0.1703, "S_DE": 0.1237},
    "Kvasir": {"S_R": 0.0459, "S_E": 0.0513, "S_DE": 0.0391},
}
TAU_MISSING = {"shenzhen": 0.05, "Kvasir": 0.06}  # in the grid of that name: the share of wrong pixels there


@dataclass(frozen=True)
class Cell:
    """One training run of a grid."""

    grid: str
    protocol: str
    dataset: str  # the folder's name
    noise: str  # S_R, S_E, S_DE or "missing"; on clean masks, "clean"
    method: str
    seed: int
    flags: str  # of train_GSD-Net.py, given in addition to the method's and the protocol's


@dataclass(frozen=True)
class Row(Cell):
    """A cell with its result: Dice and IoU, means over the last quarter of the epochs, at most ten."""

    dice: float
    iou: float
    hd95: float | None  # pixels at the training size, after the last epoch; None where no image has one
    epochs: int
    averaged: int
    seconds: float
    precision: str
    torch: str
    machine: str
    date: str

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
        rows = {**{old.cell: old for old in read_rows(path)}, row.cell: row}
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            asdict(rows[cell]) for cell in sorted(rows, key=lambda cell: tuple(map(str, asdict(cell).values())))
        )
        write_atomically(path, text.getvalue().encode())


# --- Data -------------------------------------------------------------------------------------------------------------


def call(*command: object, log: Path | None = None, threads: int | None = None) -> None:
    """Run one of the project's scripts; its output goes to ``log``, or is shown.

    Raises `UserError` with its last words if it fails.
    """
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    arguments = [sys.executable, *map(str, command)]
    if log is None:
        done = subprocess.run(arguments, cwd=ROOT, env=environment)
        words = "see above"
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            done = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        words = "".join(log.read_text(errors="replace").strip().splitlines()[-1:])
    if done.returncode:
        raise UserError(f"{' '.join(map(str, command))} ended with code {done.returncode}: {words} ({log or ''})")


def make_noise(dataset: Path, layout: Layout, noises: list[str], work_root: Path) -> None:
    """Make the noisy masks that are not there yet."""
    clean = dataset / layout.masks
    for noise in noises:
        call(
            "scripts/generate_simulated_noise.py",
            "--gts_root",
            clean,
            "--save_root",
            dataset / layout.training_masks(noise),
            *NOISE_FLAGS[noise],
            "--seed",
            0,
            log=work_root / "prepare.log",
        )


def make_superpixels(dataset: Path, layout: Layout, segments: int, protocol: str, work_root: Path) -> Path:
    """Make the superpixels that are not there yet; returns their folder."""
    size = PROTOCOLS[protocol]["flags"][1]
    folder = work_root / "slic" / f"{dataset.name}_{size}_{segments}"
    call(
        "scripts/generate_SLIC.py",
        "--images_root",
        dataset / layout.images,
        "--save_root",
        folder,
        "--image_size",
        size,
        "--n_segments",
        segments,
        log=work_root / "prepare.log",
    )
    return folder


def object_missing(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``mask``, bool (H,W), without one of its objects in four cases of ten, else as it is.

    Objects are connected pieces of at least a tenth of the foreground.
    """
    count, piece, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    area = figures[1:, cv2.CC_STAT_AREA]
    objects = [number for number in range(1, count) if 10 * area[number - 1] >= area.sum()]
    if not objects or rng.random() >= MISSING_SHARE:
        return mask
    return mask & (piece != rng.choice(objects))


def make_missing(dataset: Path, layout: Layout, work_root: Path) -> Path:
    """Make the masks with missing objects that are not there yet; returns their folder."""
    folder = work_root / "missing_masks" / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    masks = [make_noisy(mask, folder, object_missing, 0, 2) for mask in list_images(dataset / layout.masks).items()]
    print(f"{folder}: {statistics.fmean(mask.wrong_share for mask in masks):.4f} of the pixels are wrong")
    return folder


def validation_dataset(
    dataset: Path, layout: Layout, noises: list[str], target: Path, masks: Path | None = None
) -> None:
    """Lay out ``target`` like ``dataset``, its test set a fifth of the training images and the rest to train on.

    masks: a folder of masks to train on in place of the dataset's. Files are links. The dataset's own test images are
    not part of it.
    """
    images = list_images(dataset / layout.images)
    held_out = set(np.random.default_rng(0).permutation(sorted(images))[: len(images) // 5].tolist())
    clean, given = (
        pair_by_stem(images, list_images(folder), folder)
        for folder in (dataset / layout.masks, masks or dataset / layout.masks)
    )
    for stem, (image, mask), (_, given_mask) in zip(images, clean, given, strict=True):
        if stem in held_out:
            _link(image, target / layout.images_test)
            _link(mask, target / layout.masks_test)
        else:
            _link(image, target / layout.images)
            _link(given_mask, target / layout.masks)
    for folder in (layout.training_masks(noise) for noise in noises):
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
    """The cells that the flags ask for, all methods of a dataset, noise and seed next to each other."""
    cells = []
    for seed in args.seeds or [0]:
        for dataset in args.datasets:
            for noise in args.noises:
                for method in args.methods or GRIDS[args.grid]:
                    # Clean masks are the same whatever the noise.
                    effect = MISSING if args.grid == MISSING else NOISES[noise]
                    effect = "clean" if method in ON_CLEAN else effect
                    cells.append(Cell(args.grid, args.protocol, dataset, effect, method, seed, " ".join(args.flags)))
    return list(dict.fromkeys(cells))


def flags_of(cell: Cell) -> list[str]:
    """The flags of train_GSD-Net.py that are the cell's own."""
    flags = [*GRIDS[cell.grid][cell.method], *PROTOCOLS[cell.protocol]["flags"], "--seed", str(cell.seed)]
    if "--tau" in flags:
        place = flags.index("--tau") + 1
        if flags[place].startswith("r"):
            tau = RATE[cell.dataset][cell.noise]
        else:
            tau = (TAU_MISSING if cell.grid == MISSING else TAU)[cell.dataset]
        flags[place] = format(tau * float(flags[place][1:]), ".3g")
    epochs = PROTOCOLS[cell.protocol]["epochs"].get(cell.dataset)
    noise = {MISSING: "given", "clean": "clean", **{effect: kind for kind, effect in NOISES.items()}}[cell.noise]
    return [*flags, *(("--max_epochs", str(epochs)) if epochs else ()), "--noise_type", noise]


def run_cell(cell: Cell, data_root: Path, segments: Path, work_root: Path, threads: int) -> Row:
    """Train a cell, or finish it, and read its result."""
    name = "_".join("".join(c if c.isalnum() else "-" for c in str(part)) for part in asdict(cell).values())
    folder = work_root / "runs" / name
    call(
        "train_GSD-Net.py",
        *("--datasets", cell.dataset, "--data_root", data_root, "--slic_root", segments),
        *("--output_root", folder, "--exp", "cell", "--cache_root", work_root / "cache", "--resume"),
        *flags_of(cell),
        *cell.flags.split(),
        log=folder / "log.txt",
        threads=threads,
    )
    (run,) = (path.parent for path in folder.glob("*/result.json"))
    result = json.loads((run / "result.json").read_text())
    with open(run / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    write_table(CURVES / f"{name}.csv", [{key: row[key] for key in CURVE if key in row} for row in log])
    averaged = min(10, max(1, len(log) // 4))
    dice, iou = (statistics.fmean(float(row[score]) for row in log[-averaged:]) for score in ("dice", "iou"))
    where = machine(torch.device(result["device"]))
    return Row(
        **asdict(cell),
        dice=round(dice, 4),
        iou=round(iou, 4),
        hd95=None if result["last_epoch"]["hd95"] is None else round(result["last_epoch"]["hd95"], 2),
        epochs=len(log),
        averaged=averaged,
        seconds=round(sum(float(row["seconds"]) for row in log), 0),
        precision=result["precision"],
        torch=result["torch"],
        machine=where["gpu"] or f"{where['cpu']}, {threads} threads",
        date=datetime.date.today().isoformat(),
    )


def train_cells(args: argparse.Namespace) -> None:
    """Run every cell that the results' file lacks, some at a time."""
    done = {row.cell for row in read_rows(args.results)}
    waiting = [cell for cell in cells_of(args) if cell not in done]
    print(f"{len(waiting)} cells to train, {len(cells_of(args)) - len(waiting)} are in {args.results}")
    places: dict[tuple[str, bool], Path] = {}  # of a dataset, with missing objects or not
    segments: dict[Cell, Path] = {}
    usual = PROTOCOLS[args.protocol]["segments"]
    for name in dict.fromkeys(cell.dataset for cell in waiting):
        dataset, layout = find_dataset(args.data_root, name)
        print(f"{dataset}: noisy masks and superpixels")
        noises = [] if args.grid == MISSING else args.noises
        make_noise(dataset, layout, noises, args.work_root)
        counts = {cell: SEGMENTS.get(cell.method, usual) for cell in waiting if cell.dataset == name}
        maps = {n: make_superpixels(dataset, layout, n, args.protocol, args.work_root) for n in set(counts.values())}
        segments |= {cell: maps[count].resolve() for cell, count in counts.items()}
        data_root = args.data_root.resolve()
        if args.grid != "methods":
            data_root = (args.work_root / "validation").resolve()
            validation_dataset(dataset, layout, noises, data_root / dataset.name)
        places[name, False] = data_root
        if args.grid == MISSING:
            data_root = (args.work_root / "missing").resolve()
            masks = make_missing(dataset, layout, args.work_root)
            validation_dataset(dataset, layout, [], data_root / dataset.name, masks)
            places[name, True] = data_root
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(waiting), unit="cell") as bar:

        def train(cell: Cell) -> None:
            place = places[cell.dataset, cell.noise == MISSING]
            row = run_cell(cell, place, segments[cell], args.work_root.resolve(), threads)
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
    """Whether a result is of what the flags ask for."""
    return (
        (row.grid, row.protocol, row.flags) == (args.grid, args.protocol, " ".join(args.flags))
        and row.dataset in args.datasets
        and row.noise in {"clean", MISSING, *(NOISES[noise] for noise in args.noises)}
        and (not args.methods or row.method in args.methods)
        and (not args.seeds or row.seed in args.seeds)
    )


def by_cell(rows: list[Row], score: str = "dice") -> dict[tuple[str, str, str], list[float]]:
    """A score of every seed that has it, by (dataset, noise, method)."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        if getattr(row, score) is not None:
            found.setdefault((row.dataset, row.noise, row.method), []).append(getattr(row, score))
    return found


def gap_recovered(dice: float | None, noisy: float | None, clean: float | None) -> float | None:
    """Share of the Dice that label noise costs plain training which a method wins back; 1 is all of it.

    None where one of the three is not there, or where the noise costs nothing.
    """
    if dice is None or noisy is None or clean is None or clean <= noisy:
        return None
    return (dice - noisy) / (clean - noisy)


def table(rows: list[Row], dataset: str) -> str:
    """A Markdown table of one dataset: a line a method; Dice of each noise, mean +- deviation over (how many) seeds.

    Behind them, where all noises are there, the means over the noises: Dice, IoU, HD95, and the gap that is recovered
    of the mean Dice.
    """
    rows = [row for row in rows if row.dataset == dataset]
    dice, iou, hd95 = (by_cell(rows, score) for score in ("dice", "iou", "hd95"))
    noises = _noises(rows) or ["clean"]
    ends = [_mean_over(dice, dataset, noises, method) for method in ("ce", CLEAN)]
    lines = [f"| {dataset} | {' | '.join(noises)} | mean | IoU | HD95 | gap |", "|---" * (len(noises) + 5) + "|"]
    for method in sorted({row.method for row in rows}, key=_place):
        found = [_cell_text(dice.get((dataset, "clean" if method in ON_CLEAN else n, method))) for n in noises]
        mean = _mean_over(dice, dataset, noises, method)
        for value, form in (
            (mean, ".4f"),
            (_mean_over(iou, dataset, noises, method), ".4f"),
            (_mean_over(hd95, dataset, noises, method), ".1f"),
            (gap_recovered(mean, *ends), ".0%"),
        ):
            found.append("" if value is None else format(value, form))
        lines.append("| " + " | ".join([method, *found]) + " |")
    return "\n".join(lines)


def _noises(rows: list[Row]) -> list[str]:
    return [noise for noise in (*NOISES.values(), MISSING) if any(row.noise == noise for row in rows)]


def _place(method: str) -> tuple[int, str]:
    order = list(dict.fromkeys(name for grid in GRIDS.values() for name in grid))
    return (order.index(method) if method in order else len(order)), method


def _cell_text(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _mean_over(scores: dict, dataset: str, noises: list[str], method: str) -> float | None:
    keys = [(dataset, "clean" if method in ON_CLEAN else noise, method) for noise in noises]
    return (
        statistics.fmean(statistics.fmean(scores[key]) for key in keys) if all(key in scores for key in keys) else None
    )


def draw(rows: list[Row]) -> Figure:
    """Dice of every method, a panel a dataset and noise; each seed a dot, dashed the ends of the gap."""
    dice = by_cell(rows)
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    methods = sorted({row.method for row in rows} - set(ON_CLEAN), key=_place)
    noises = _noises(rows)
    figure = Figure(
        figsize=(3.2 * len(noises), 0.6 + (0.25 * len(methods) + 0.7) * len(datasets)), layout="constrained"
    )
    axes = figure.subplots(len(datasets), len(noises), sharey=True, sharex="row", squeeze=False)
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, noise in zip(row, noises, strict=True):
            axis.set_title(f"{dataset}, {noise}", fontsize=9)
            for place, method in enumerate(methods):
                values = dice.get((dataset, noise, method), [])
                colour = "tab:red" if method == "gsd" else "tab:blue"
                axis.plot(values, [place] * len(values), "o", color=colour, markersize=4)
            for key in ((dataset, noise, "ce"), (dataset, "clean", CLEAN)):
                if key in dice:
                    axis.axvline(statistics.fmean(dice[key]), color="black", linestyle="--", linewidth=0.7)
            axis.set_yticks(range(len(methods)), methods, fontsize=8)
            axis.invert_yaxis() if axis is row[0] and not axis.yaxis_inverted() else None
            axis.tick_params(axis="x", labelsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("Dice", fontsize=8)
    return figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; whatever follows -- goes to every training run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, default=Path("data"), help="default: %(default)s")
    parser.add_argument(
        "--work_root", type=Path, default=Path("model/accuracy"), help="runs, superpixels (%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: benchmarks/results/accuracy.csv")
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="small", help="default: %(default)s")
    parser.add_argument("--grid", choices=tuple(GRIDS), default="methods", help="default: %(default)s")
    parser.add_argument("--datasets", nargs="+", default=["shenzhen", "Kvasir"], choices=tuple(TAU), metavar="NAME")
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=tuple(NOISES), metavar="NOISE")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of the grid; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0 to train, all to print")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of the results there are; train nothing")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the results there are")
    parser.add_argument("flags", nargs="*", help="flags of train_GSD-Net.py for every run, behind --")
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
    print("\n\n".join(table(rows, dataset) for dataset in args.datasets if any(row.dataset == dataset for row in rows)))
    if args.figure:
        write_atomically(args.figure, png(draw(rows)))


if __name__ == "__main__":
    run_main(main)
