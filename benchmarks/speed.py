"""Time every stage of the program against a plain reference, in one process and in turns.

    python benchmarks/speed.py                                          # the table, on the GPU where there is one
    python benchmarks/speed.py --save speed.json --scaling scaling.png  # all raw numbers; cost against size
    python benchmarks/speed.py --profile trace.json                     # one training step, function by function
    python benchmarks/speed.py --quick                                  # tiny sizes: does it run?

The reference (benchmarks/reference.py) computes the same numbers in the obvious way. A ratio is that of two runs next
to each other, so that a busy machine slows both; printed are the medians, and the lowest and highest ratio. Images are
drawn, in memory, and have the superpixels and noisy labels of a real training set. Needs requirements-dev.txt.
"""

import argparse
import ctypes
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if find_spec("torchvision") is None:
    print("error: torchvision is not installed; pip install -r requirements-dev.txt", file=sys.stderr)
    sys.exit(2)

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from skimage.segmentation import slic
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, default_collate

from benchmarks import reference
from benchmarks.machine import machine
from dataloaders.batches import training_batches
from dataloaders.training_set import TrainingSet
from networks.unet import two_unets
from utils.commands.arguments import command_parser
from utils.commands.errors import UserError, run_main
from utils.commands.files import write_atomically, write_json
from utils.engine.device import at_precision, choose_device, keep_freed_memory, set_allocator, uses_bf16
from utils.engine.figures import png
from utils.engine.intensity import Intensity
from utils.masks.geometry import squared_boundary_distance
from utils.masks.noise import markov_noise
from utils.masks.superpixels import slic_segments
from utils.method.gsd import (
    Batch,
    agreement_loss,
    gsd_step,
    masked_mean,
    mix,
    refine,
    region_vote,
    select_small_loss,
    selection_loss,
    transfer_loss,
    transfer_mask,
)
from utils.method.settings import MethodSettings

CONFIG = MethodSettings(tau=0.05)  # the settings of Kvasir
JITTER = 0.5
EPOCH = 60  # of 100: selection, refinement and transfer are all on
NOISE: dict[str, Any] = {"T": 200, "theta1": 0.8, "theta2": 0.05}
MIXING = 0.5

# Values that the layers of a U-Net write for one image of 256x256 pixels: convolutions 7.6 M, batch norms 7.5 M, ReLUs
# 7.5 M, pooling 1.0 M, upsampling 2.0 M. Concatenations are left out: a layer could read both of its inputs in place.
ACTIVATIONS = 25.5e6

NORMAL = {"image_size": 256, "batch_size": 16, "segments": 1024, "steps": 3, "repetitions": 5, "num_workers": 2}
QUICK = {"image_size": 32, "batch_size": 4, "segments": 16, "steps": 2, "repetitions": 2, "num_workers": 1}


# --- The two sides ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    image_size: int
    batch_size: int
    images: int
    segments: int
    num_workers: int  # of the reference's DataLoader
    device: torch.device
    bf16: bool  # the program's networks; the reference is float32


def setting_of_steps(args: argparse.Namespace) -> Setting:
    """The setting of a benchmark of ``args.steps`` training steps; prints it, with the machine."""
    device = choose_device(args.device, gpu=0)
    size, batch, segments = (32, 4, 16) if args.quick else (256, 16, 1024)
    setting = Setting(size, batch, batch * args.steps, segments, 0, device, uses_bf16(args.amp, device))
    if device.type == "cpu":
        keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in machine(device).items() if value))
    print(f"{size}x{size}, batches of {batch}, {'bf16' if setting.bf16 else 'fp32'}, runs of {args.steps} steps\n")
    return setting


class Material(NamedTuple):
    """Drawn images and what preprocessing made of them."""

    images: np.ndarray  # (N,H,W,3) uint8
    masks: np.ndarray  # (N,H,W) uint8, clean
    labels: np.ndarray  # (N,H,W) uint8, noisy
    segments: np.ndarray  # (N,H,W) int32

    @property
    def channels_first(self) -> Tensor:
        """The images as (N,3,H,W)."""
        return torch.from_numpy(self.images).movedim(-1, 1).contiguous()


def draw_material(setting: Setting) -> Material:
    """Bright ellipses on a textured ground, always the same ones."""
    rng = np.random.default_rng(0)
    size = setting.image_size
    rows, columns = np.mgrid[:size, :size] / size
    images, masks = [], []
    for _ in range(setting.images):
        y, x = rng.uniform(0.35, 0.65, 2)
        height, width = rng.uniform(0.15, 0.3, 2)
        mask = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
        waves = np.sin(rng.uniform(10, 40) * rows + rng.uniform(10, 40) * columns)[..., None]
        colour = np.where(mask[..., None], (190, 110, 90), (90, 70, 80))
        image = colour + 15 * waves + rng.normal(0, 10, (size, size, 3))
        images.append(image.clip(0, 255).astype(np.uint8))
        masks.append(mask.astype(np.uint8))
    labels = [markov_noise(mask, rng, **NOISE) for mask in masks]
    segments = [slic_segments(image, setting.segments) for image in images]
    return Material(*map(np.stack, (images, masks, labels, segments)))


def draws(generator: torch.Generator, setting: Setting) -> tuple[float, Tensor]:
    """What a step draws: the mixing weight a and the permutation pi (docs/method.md sections 3 and 4)."""
    permutation = torch.randperm(setting.batch_size, generator=generator)
    return float(torch.rand((), generator=generator)), permutation.to(setting.device)


def sgd(networks: nn.ModuleList, **options: bool) -> torch.optim.SGD:
    """The optimiser of docs/method.md section 5."""
    return torch.optim.SGD(networks.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-5, **options)


class Program:
    """This project's training, put together as utils/engine/training.py does."""

    def __init__(self, setting: Setting, material: Material):
        self.setting = setting
        images = material.channels_first
        self.data = TrainingSet(
            names=tuple(map(str, range(len(images)))),
            images=images,
            labels=torch.from_numpy(material.labels),
            squared_distances=torch.from_numpy(np.stack(list(map(squared_boundary_distance, material.labels)))),
            segments=torch.from_numpy(material.segments.astype(np.int16)),
            num_segments=1 + int(material.segments.max()),
        )
        self.intensity = Intensity.of(images)
        self.generator = torch.Generator().manual_seed(0)
        networks = two_unets(3, 2, seed=0).train()
        # PyTorch's annotations lack memory_format.
        self.networks = networks.to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forwards = [at_precision(network, setting.device, setting.bf16) for network in self.networks]
        self.optimiser = sgd(self.networks, fused=True)

    def batches(self) -> Iterator[Batch]:
        """The batches of one epoch."""
        setting = self.setting
        arguments = (setting.batch_size, JITTER, self.intensity, self.generator, setting.device)
        return (batch for batch, _ in training_batches(self.data, *arguments))

    def batch(self) -> Batch:
        """One batch."""
        return next(self.batches())

    def train(self, batch: Batch) -> Tensor:
        """One training step; the loss stays on the device."""
        step = gsd_step(self.forwards, batch, EPOCH, CONFIG, *draws(self.generator, self.setting))
        self.optimiser.zero_grad(set_to_none=True)
        step.loss.backward()
        self.optimiser.step()
        return step.loss.detach()


class Plain:
    """The same training by the functions of benchmarks/reference.py."""

    def __init__(self, setting: Setting, material: Material):
        self.setting = setting
        intensity = Intensity.of(material.channels_first)
        parts = (material.images, material.labels, material.segments)
        self.data = reference.NoisyMasks(*parts, intensity.mean, intensity.std, JITTER)
        # Workers that stay: starting them is not charged to the short epochs of this benchmark.
        self.loader = DataLoader(
            self.data,
            setting.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=setting.num_workers,
            persistent_workers=setting.num_workers > 0,
        )
        self.generator = torch.Generator().manual_seed(0)
        self.networks = two_unets(3, 2, seed=0).to(setting.device).train()
        self.optimiser = sgd(self.networks)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch."""
        return (self.on_device(batch) for batch in self.loader)

    def batch(self) -> dict[str, Tensor]:
        """One batch, without the workers."""
        return self.on_device(default_collate([self.data[i] for i in range(self.setting.batch_size)]))

    def augmented(self) -> dict[str, Tensor]:
        """One batch without the distances."""
        return self.on_device(default_collate([self.data.augmented(i) for i in range(self.setting.batch_size)]))

    def on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the training device."""
        return {name: values.to(self.setting.device) for name, values in batch.items()}

    def train(self, batch: dict[str, Tensor]) -> float:
        """One training step; returns the loss."""
        config = (EPOCH, CONFIG.max_epochs, CONFIG.tau, CONFIG.ratecp)
        loss = reference.training_loss(self.networks, batch, *config, *draws(self.generator, self.setting))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()


class Side(Protocol):
    """Either of the two."""

    setting: Setting

    def batches(self) -> Iterator[Any]: ...
    def batch(self) -> Any: ...
    def train(self, batch: Any) -> object: ...


def train_epoch(side: Side) -> None:
    """One pass over the images."""
    for batch in side.batches():
        side.train(batch)


# --- Stages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One row of the table: the same work done twice."""

    name: str
    per: str  # what one call handles
    reference: Callable[[], object]
    program: Callable[[], object]
    slow: bool = False  # many seconds a call: fewer repetitions
    warm_up: bool = True


def stages(material: Material, plain: Plain, program: Program) -> list[Stage]:
    """Every stage, from preprocessing to an epoch."""
    setting = program.setting
    image, mask, label = material.images[0], material.masks[0], material.labels[0]
    plain_batch, batch = plain.batch(), program.batch()
    generator = torch.Generator().manual_seed(0)
    shape = batch.label.shape
    loss = torch.rand(shape, generator=generator).to(setting.device)
    probability = torch.rand(shape[0], 2, *shape[1:], generator=generator).softmax(dim=1).to(setting.device)
    rate = CONFIG.tau
    return [
        Stage(
            "Markov noise, T = 200",
            "image",
            lambda: reference.markov_noise(mask, np.random.default_rng(0), **NOISE),
            lambda: markov_noise(mask, np.random.default_rng(0), **NOISE),
        ),
        Stage(
            "SLIC (the same library)",
            "image",
            lambda: slic(image, setting.segments, compactness=10, sigma=1, start_label=0),
            lambda: slic_segments(image, setting.segments),
        ),
        Stage(
            "boundary distance",
            "image",
            lambda: reference.boundary_distance(label),
            lambda: squared_boundary_distance(label),
        ),
        Stage("augmentation", "batch", plain.augmented, program.batch),
        Stage(
            "one network, forward, backward",
            "batch",
            lambda: plain.networks[0](plain_batch["image"]).mean().backward(),
            lambda: program.forwards[0](batch.image).mean().backward(),
        ),
        Stage(
            "small-loss selection",
            "batch",
            lambda: reference.select_small_loss(loss, rate),
            lambda: select_small_loss(loss, rate),
        ),
        Stage(
            "superpixel vote",
            "batch",
            lambda: reference.region_vote(probability, batch.segments),
            lambda: region_vote(probability, batch.segments, batch.num_segments),
        ),
        Stage("training step", "batch", lambda: plain.train(plain_batch), lambda: program.train(batch), slow=True),
        Stage("epoch with its data", "epoch", lambda: train_epoch(plain), lambda: train_epoch(program), True, False),
    ]


def step_pieces(program: Program) -> dict[str, Callable[[], object]]:
    """The parts of the program's training step, each as a call of its own on the values that it has in the step."""
    batch = program.batch()
    _, permutation = draws(program.generator, program.setting)
    f1, f2 = program.forwards
    # The mixed images have the shape of the others, so these stand for them.
    views = ((f1, batch.image), (f2, batch.jittered), (f1, batch.image), (f2, batch.jittered))
    with torch.no_grad():
        logits = [f(view) for f, view in views]
        log_p1, log_p2 = (F.log_softmax(o, dim=1) for o in logits[:2])
        loss = selection_loss(log_p1, log_p2, batch.label, CONFIG.consistency)
        keep = select_small_loss(loss, CONFIG.tau)

    def run_networks() -> None:
        torch.stack([f(view).mean() for f, view in views]).sum().backward()

    def run_losses() -> None:
        leaves = [o.detach().requires_grad_() for o in logits]
        p1, p2, q1, q2 = (F.log_softmax(leaf, dim=1) for leaf in leaves)
        weight, label = batch.distance, batch.label
        gda = masked_mean(weight * selection_loss(p1, p2, label, CONFIG.consistency), keep)
        transfer = transfer_loss(q1, label, weight) + transfer_loss(q2, label, weight)
        (gda + transfer + agreement_loss(q1, q2, weight)).backward()

    def run_refinement() -> Tensor:
        probability = MIXING * log_p1.exp() + (1 - MIXING) * log_p2.exp()
        return refine(batch.label, keep, region_vote(probability, batch.segments, batch.num_segments))

    def run_transfer() -> None:
        mask = transfer_mask(batch.label, CONFIG.ratecp)
        for values in (batch.image, batch.jittered, batch.label, batch.distance):
            mix(mask, values, permutation)

    return {
        "data and augmentation": program.batch,
        "networks, forward and backward": run_networks,
        "losses, forward and backward": run_losses,
        "selection": lambda: select_small_loss(loss, CONFIG.tau),
        "refinement": run_refinement,
        "transfer": run_transfer,
        "optimiser": program.optimiser.step,  # after run_networks, which leaves the gradients
    }


# --- Measuring --------------------------------------------------------------------------------------------------------


def allocate_as(side: str) -> None:
    """Have the C library handle memory as it does by itself for the reference, as
    utils/engine/training.py asks it to for the program.

    The program's choice is part of what is compared. The reference's figures are those that glibc's own rules come to
    after a step of this size: blocks are mapped one by one from 32 MiB on, and free memory above 64 MiB goes back.
    """
    if side == "program":
        keep_freed_memory()
    elif platform.libc_ver()[0] == "glibc":
        set_allocator(most_mapped_blocks=65536, trim_threshold=2**26)
        libc = ctypes.CDLL(None)
        libc.mallopt(ctypes.c_int(-3), ctypes.c_int(2**25))  # M_MMAP_THRESHOLD
        libc.malloc_trim(ctypes.c_size_t(0))  # nothing of what the program has kept is left to the reference


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_a_call(call: Callable[[], object], device: torch.device, least: float = 0.05) -> float:
    """Seconds that a call takes to its result on the device; short calls are repeated for ``least`` seconds."""
    synchronise(device)
    start, calls = time.perf_counter(), 0
    while True:
        call()
        synchronise(device)
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / calls


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def compare(stage: Stage, repetitions: int, device: torch.device) -> dict:
    """Times of both sides in seconds a call, in turns, after a first call of each that does not count."""
    sides = {"reference": stage.reference, "program": stage.program}
    times: dict[str, list[float]] = {name: [] for name in sides}
    if stage.warm_up:
        for name, call in sides.items():
            allocate_as(name)
            call()
    for index in range((repetitions + 1) // 2 if stage.slow else repetitions):
        # Either side goes first as often as the other.
        for name in list(sides) if index % 2 == 0 else reversed(list(sides)):
            allocate_as(name)
            times[name].append(seconds_a_call(sides[name], device))
    ratios = [a / b for a, b in zip(times["reference"], times["program"], strict=True)]
    return {"stage": stage.name, "per": stage.per, **times, "ratios": ratios, "ratio": spread(ratios)}


def waiting_share(side: Side) -> float:
    """Share of an epoch in which the training step waits for its batch, from the second batch on.

    The device finishes each step before the next batch is asked for: on a GPU this is an upper limit, since work on
    the batch that overlaps the step before is counted as waiting.
    """
    allocate_as("program" if isinstance(side, Program) else "reference")
    device = side.setting.device
    batches = iter(side.batches())
    side.train(next(batches))  # at the start of an epoch everyone waits
    synchronise(device)
    start = asked = time.perf_counter()
    waited = 0.0
    for batch in batches:
        synchronise(device)
        waited += time.perf_counter() - asked
        side.train(batch)
        synchronise(device)
        asked = time.perf_counter()
    return waited / (asked - start)


def measure_alone(kind: Callable[[Setting, Material], Side], setting: Setting) -> dict[str, float]:
    """An epoch in a process that does nothing else: its seconds, after a step to warm up, and peak memory in bytes.

    The memory is the process's largest resident size on the CPU, the libraries included, and the largest sum of
    allocations on a GPU.
    """
    allocate_as("program" if kind is Program else "reference")
    side = kind(setting, draw_material(setting))
    side.train(side.batch())
    seconds = seconds_a_call(partial(train_epoch, side), setting.device)
    if setting.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(setting.device)
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": seconds, "peak_bytes": peak}


def in_processes_of_their_own(jobs: Sequence[tuple[type[Program | Plain], Setting]]) -> list[dict[str, float]]:
    """`measure_alone` for each job, one after the other, each in a fresh process.

    Raises `UserError` if one was killed.
    """
    # A fork server has imported the libraries and nothing else: its children start at once, and unlike those of this
    # process they begin with none of its memory and none of its threads.
    context = multiprocessing.get_context("forkserver")
    # (Modules of the project cannot be named here: Python 3.11's fork server does not have our sys.path.)
    context.set_forkserver_preload(
        ["torch.utils.tensorboard", "torchvision", "skimage.segmentation", "cv2", "matplotlib.figure", "scipy.ndimage"]
    )
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        try:
            # The DataLoader works in the process itself, so that the process's memory is all there is.
            alone = ((kind, replace(setting, num_workers=0)) for kind, setting in jobs)
            return [pool.submit(measure_alone, *job).result() for job in alone]
        except BrokenProcessPool as error:
            raise UserError("a process was killed, mostly for want of memory: use a smaller --batch_size") from error


def memory_floor(setting: Setting) -> float:
    """Seconds below which no training step can come on this GPU, set by memory traffic.

    bytes = activation values an image (25.5 M at 256x256, in proportion to the pixels) x images x 4 passes (each
    network sees the batch and the mixed batch) x bytes a value (2 in bf16, 4 in fp32) x 5 touches: each value is
    written and read once on the way forward, read once more on the way back, and its gradient written and read.
    floor = bytes / the bandwidth of a copy on the device, measured here.
    """
    values = ACTIVATIONS * (setting.image_size / 256) ** 2 * setting.batch_size * 4
    moved = values * (2 if setting.bf16 else 4) * 5
    source = torch.zeros(2**30, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    target.copy_(source)
    copying = seconds_a_call(lambda: target.copy_(source), setting.device)
    return moved * copying / (2 * source.numel())  # a copy reads and writes every byte


def cost_against_size(setting: Setting) -> dict[str, list[dict]]:
    """An epoch of the program at growing numbers of images, resolutions and numbers of superpixels."""
    setting = replace(setting, images=setting.batch_size)
    panels = {
        "images": [replace(setting, images=setting.images * n) for n in (1, 2, 4)],
        "image_size": [replace(setting, image_size=size) for size in scaled(setting.image_size, 2)],
        "segments": [replace(setting, segments=count) for count in scaled(setting.segments, 4)],
    }
    points = [(name, point) for name, row in panels.items() for point in row]
    measured = in_processes_of_their_own([(Program, point) for _, point in points])
    costs: dict[str, list[dict]] = {name: [] for name in panels}
    for (name, point), cost in zip(points, measured, strict=True):
        costs[name].append({name: getattr(point, name), **cost})
    return costs


def scaled(value: int, factor: int) -> list[int]:
    """A value, and what is ``factor`` times smaller and greater."""
    return [value // factor, value, value * factor]


# --- Showing ----------------------------------------------------------------------------------------------------------


def draw_costs(costs: dict[str, list[dict]], setting: Setting) -> Figure:
    """Time and memory against size, each with the slope of its fitted line; the dotted lines grow in proportion to the
    number of pixels or images."""
    titles = {
        "images": f"images an epoch ({setting.image_size} px)",
        "image_size": f"image side in pixels ({setting.batch_size} images)",
        "segments": f"superpixels ({setting.batch_size} images)",
    }
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    for column, (name, points) in zip(axes.T, costs.items(), strict=True):
        sizes = np.array([point[name] for point in points])
        for axis, key, unit in ((column[0], "seconds", 1), (column[1], "peak_bytes", 1e9)):
            values = np.array([point[key] for point in points]) / unit
            axis.plot(sizes, values, "o-")
            axis.set_title(f"slope {slope(sizes, values):.2f}", fontsize=9)
            if name != "segments":
                proportional = (sizes / sizes[0]) ** (2 if name == "image_size" else 1)
                axis.plot(sizes, values[0] * proportional, "k:", linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.set_xticks(sizes, map(str, sizes))
            axis.yaxis.set_major_formatter("{x:.3g}")
        column[1].set_xlabel(titles[name])
    axes[0, 0].set_ylabel("seconds an epoch")
    axes[1, 0].set_ylabel("peak memory, GB")
    return figure


def slope(sizes: ArrayLike, values: ArrayLike) -> float:
    """The power of the size with which the values grow: the slope of a line fitted to the logarithms of both."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def readable(seconds: float) -> str:
    """12.3 s, 4.56 ms or 789 us."""
    size, unit = next((pair for pair in ((1, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "us"))
    return f"{seconds / size:.3g} {unit}"


def times_as_long(ratio: float) -> str:
    """Three digits of a ratio: 0.95, 12.3 or 28,800."""
    return f"{float(f'{ratio:.3g}'):,.0f}" if ratio >= 999.5 else f"{ratio:.3g}"


def profile_step(program: Program, path: Path) -> None:
    """Profile one training step: a Chrome trace at ``path``, and a table of the costliest functions."""
    batch = program.batch()
    cuda = program.setting.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + cuda * [ProfilerActivity.CUDA], acc_events=True) as profiler:
        program.train(batch)
        synchronise(program.setting.device)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print("\n" + profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=40))
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        write_atomically(path, trace.read_bytes())
    print(f"trace: {path} (open it in chrome://tracing or ui.perfetto.dev)")


# --- Command ----------------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    helps = {
        "image_size": "side in pixels",
        "batch_size": "images a step",
        "segments": "superpixels an image",
        "steps": "batches an epoch",
        "repetitions": "pairs of runs a stage; the last two stages, of many seconds a run, have about half as many",
        "num_workers": "processes of the reference's DataLoader",
    }
    for name, text in helps.items():
        parser.add_argument(f"--{name}", type=int, help=f"{text} (default: {NORMAL[name]}, --quick: {QUICK[name]})")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--amp", choices=("auto", "bf16", "fp32"), default="auto", help="the program's networks (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="write all raw numbers")
    parser.add_argument("--scaling", type=Path, metavar="FILE.png", help="measure and draw cost against size")
    parser.add_argument("--profile", type=Path, metavar="FILE.json", help="profile a training step: a Chrome trace")
    args = parser.parse_args(argv)
    for name, default in (QUICK if args.quick else NORMAL).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    # The networks take images from 16 pixels up, and --scaling halves the size; waiting starts with the second batch.
    least = {"image_size": 32, "batch_size": 1, "segments": 4, "steps": 2, "repetitions": 1, "num_workers": 0}
    for name, lowest in least.items():
        if getattr(args, name) < lowest:
            raise UserError(f"--{name} must be at least {lowest}, got {getattr(args, name)}")
    for name, suffix in (("save", ".json"), ("scaling", ".png"), ("profile", ".json")):
        path = getattr(args, name)
        if path and (path.suffix != suffix or path.is_dir()):
            raise UserError(f"--{name} {path}: must be a file that ends in {suffix}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, print as it comes, and write what was asked for."""
    args = parse_args(argv)
    device = choose_device(args.device, gpu=0)
    setting = Setting(
        image_size=args.image_size,
        batch_size=args.batch_size,
        images=args.batch_size * args.steps,
        segments=args.segments,
        num_workers=args.num_workers,
        device=device,
        bf16=uses_bf16(args.amp, device),
    )
    result: dict[str, Any] = {"machine": machine(device), "setting": {**asdict(setting), "device": str(device)}}
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items() if value)
    print(f"{where}\n{setting.image_size}x{setting.image_size}, batches of {setting.batch_size}, ", end="")
    print(f"epochs of {args.steps} batches; program {'bf16' if setting.bf16 else 'fp32'}, reference fp32\n")

    material = draw_material(setting)
    plain, program = Plain(setting, material), Program(setting, material)
    print(f"{'stage':<32}{'per':<8}{'reference':>12}{'program':>12}{'ratio':>9}  lowest - highest")
    result["stages"] = []
    for stage in stages(material, plain, program):
        row = compare(stage, args.repetitions, device)
        result["stages"].append(row)
        times = "".join(f"{readable(statistics.median(row[side])):>12}" for side in ("reference", "program"))
        low, middle, high = (times_as_long(row["ratio"][name]) for name in ("lowest", "median", "highest"))
        print(f"{stage.name:<32}{stage.per:<8}{times}{middle:>9}  {low} - {high}", flush=True)

    step = statistics.median(next(row["program"] for row in result["stages"] if row["stage"] == "training step"))
    allocate_as("program")
    result["step_pieces"] = {
        name: [seconds_a_call(call, device) for _ in range(args.repetitions)]
        for name, call in step_pieces(program).items()
    }
    pieces = {name: statistics.median(seconds) for name, seconds in result["step_pieces"].items()}
    print("\nwhere the program's time goes, data and step, each part timed on its own")
    for name, seconds in pieces.items():
        print(f"  {name:<32}{readable(seconds):>10}{seconds / sum(pieces.values()):>8.1%}")
    data = pieces["data and augmentation"]
    print(f"  {'sum':<32}{readable(sum(pieces.values())):>10}   (data and step above: {readable(data + step)})")

    result["waiting_share"] = {"reference": waiting_share(plain), "program": waiting_share(program)}
    print("\nshare of an epoch spent waiting for data: ", end="")
    print(", ".join(f"{side} {share:.1%}" for side, share in result["waiting_share"].items()), flush=True)

    one_batch = replace(setting, images=setting.batch_size)
    alone = in_processes_of_their_own([(Plain, one_batch), (Program, one_batch)])
    result["alone"] = dict(zip(("reference", "program"), alone, strict=True))
    print(f"peak memory of {'allocations' if device.type == 'cuda' else 'a process'} for one step: ", end="")
    print(", ".join(f"{side} {cost['peak_bytes'] / 1e9:.3g} GB" for side, cost in result["alone"].items()), flush=True)

    if device.type == "cuda":
        result["memory_floor_seconds"] = floor = memory_floor(setting)
        print(
            f"floor of a step by memory traffic: {readable(floor)}; the program's step: {step / floor:.3g} times that"
        )
    if args.profile:
        profile_step(program, args.profile)
    if args.scaling:
        result["scaling"] = cost_against_size(setting)
        write_atomically(args.scaling, png(draw_costs(result["scaling"], setting)))
        for name, points in result["scaling"].items():
            sizes = [point[name] for point in points]
            grown = [slope(sizes, [point[key] for point in points]) for key in ("seconds", "peak_bytes")]
            print("growth with {}: seconds by the power {:.2f}, memory by {:.2f}".format(name, *grown))
        print(f"cost against size: {args.scaling}")
    if args.save:
        write_json(args.save, result)
        print(f"all numbers: {args.save}")


if __name__ == "__main__":
    run_main(main)
