"""What a run trains and tests, made from the settings: networks, optimiser, step, data."""

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import nn

from networks.build import NO_WEIGHTS, PAPER, check_fit, two_networks
from utils.commands.errors import UserError
from utils.engine.checkpoint import Start
from utils.engine.device import at_precision, keep_freed_memory, repeat_exactly, uses_bf16
from utils.engine.distributed import ProcessGroup, shared
from utils.engine.intensity import Intensity
from utils.method.gsd import Batch, Network, Step, TestCase
from utils.method.settings import METHODS, Settings

EpochBatches = Callable[[torch.Generator], Iterable[tuple[Batch, Sequence[str]]]]


@dataclass(frozen=True)
class Experiment:
    """Everything that a run trains and tests; training scripts differ in how they fill it."""

    network: str  # its name (networks/build.py)
    networks: nn.ModuleList  # f1, f2 on the device
    trained: Sequence[Network]  # the same two as training calls them: with gradients shared by the process group
    group: ProcessGroup
    optimiser: torch.optim.Optimizer
    learning_rate: Callable[[float], float]  # by the share of the run that is over
    step: Callable[..., Step]  # utils.method.gsd.gsd_step or a baseline of its signature
    settings: Settings
    description: str  # what is active, in one line
    epoch_batches: EpochBatches  # the batches of one epoch and their images' names
    steps_per_epoch: int
    cases: Sequence[TestCase]
    scored_on: str  # what the masks of the cases are, in words
    validation: Sequence[TestCase]  # held out of training to choose an epoch by; may be empty
    num_classes: int
    intensity: Intensity
    batch_size: int
    generator: torch.Generator  # on the CPU; every draw of the run
    device: torch.device
    precision: str  # of the networks: bf16 or fp32

    @property
    def vote(self) -> str | None:
        """Which regions vote on the pixels that are dropped, at whatever epoch; None if none is dropped or refined."""
        return self.settings.method.vote if self.settings.refines else None

    def forwards(self, networks: Iterable[Network]) -> list[Network]:
        """The networks' forward passes at the run's precision."""
        return [at_precision(network, self.device, self.precision == "bf16") for network in networks]


def step_of(method: str) -> Callable[..., Step]:
    """The training step of a method, where its row of `utils.method.settings.METHODS` says."""
    module, name = METHODS[method].step.split(".")
    return getattr(import_module(f"utils.method.{module}"), name)


def networks_of(args: argparse.Namespace, channels: int, batch: int, start: Start | None) -> tuple[str, nn.ModuleList]:
    """The name and the two networks that the flags ask for, for images of ``channels`` channels, on the CPU.

    batch: images per step of one process. Raises `UserError` for networks that cannot be made, that do not take images
    of this size or so few at a time, and where --init has others.
    """
    name = args.network or (start.network if start else PAPER)
    if start:
        for flag, asked, has in (
            ("--network", name, start.network),
            ("--num_classes", args.num_classes, start.num_classes),
            ("--channels", channels, start.channels),
        ):
            if asked != has:
                raise UserError(
                    f"{flag} {asked}: --init {start.path} has {has}; write {flag} {has}, or leave --init out"
                )
    try:
        check_fit(name, channels, args.num_classes, args.image_size, batch)
        networks = two_networks(
            name, channels, args.num_classes, args.seed, NO_WEIGHTS if start else args.encoder_weights
        )
        if start:
            networks.load_state_dict({key: value for key, value in start.weights.items() if key[0].isdigit()})
    except ValueError as error:
        raise UserError(str(error)) from error
    except RuntimeError as error:
        raise UserError(f"--init {args.init}: its weights do not fit ({error!s:.200})") from error
    return name, networks


def experiment_of(
    args: argparse.Namespace,
    settings: Settings,
    description: str,
    channels: int,
    device: torch.device,
    group: ProcessGroup,
    training_images: int,
    epoch_batches: EpochBatches,
    intensity: Intensity,
    cases: Sequence[TestCase],
    validation: Sequence[TestCase] = (),
    scored_on: str = "test masks",
    start: Start | None = None,
) -> Experiment:
    """The experiment that a training script's flags and settings ask for, on data that the script has read.

    channels: of an image. start: what --init names. Raises `UserError` if there are fewer training images than a batch
    takes, if the processes cannot share a batch evenly, and as `networks_of`.
    """
    if training_images < args.batch_size:
        most = training_images - training_images % group.size
        remedy = f"give --batch_size {most} or less" if most else f"{group.size} are needed, one a process"
        raise UserError(f"--batch_size {args.batch_size}: there are only {training_images} training images; {remedy}")
    if args.batch_size % group.size:
        raise UserError(f"--batch_size {args.batch_size}: must be a multiple of the {group.size} processes")
    name, networks = networks_of(args, channels, args.batch_size // group.size, start)
    method = settings.method.method
    learned = dict(METHODS[method].learned)
    for parameter, value in learned.items():  # beside the networks: in their optimiser and checkpoint
        networks.register_parameter(parameter, nn.Parameter(torch.tensor(value)))
    if device.type == "cpu":
        keep_freed_memory()
    repeat_exactly(args.deterministic)
    # channels_last: the layout of the fast convolutions, on the CPU in bf16 and on GPUs with tensor cores.
    networks = networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    run = settings.run
    return Experiment(
        network=name,
        networks=networks,
        trained=[shared(network, group) for network in networks],
        group=group,
        optimiser=optimiser_of(run.optimizer, networks, run.learning_rate),
        learning_rate=partial(learning_rate_at, run.schedule, run.learning_rate),
        step=partial(step_of(method), **{parameter: getattr(networks, parameter) for parameter in learned}),
        settings=settings,
        description=description,
        epoch_batches=epoch_batches,
        steps_per_epoch=training_images // args.batch_size,
        cases=cases,
        scored_on=scored_on,
        validation=validation,
        num_classes=args.num_classes,
        intensity=intensity,
        batch_size=args.batch_size,
        generator=torch.Generator().manual_seed(args.seed),
        device=device,
        # Resolved, and so kept with the run: resumed where "auto" means another, it would go on as another run.
        precision="bf16" if uses_bf16(args.amp, device) else "fp32",
    )


def optimiser_of(name: str, networks: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """One optimiser over both networks. "sgd": docs/method.md section 5; "adamw": section 8."""
    # fused: one kernel for all parameters, in place of several for each.
    if name == "sgd":
        return torch.optim.SGD(networks.parameters(), learning_rate, momentum=0.9, weight_decay=1e-5, fused=True)
    return torch.optim.AdamW(networks.parameters(), learning_rate, weight_decay=1e-4, fused=True)


def learning_rate_at(schedule: str, start: float, progress: float) -> float:
    """The learning rate after ``progress``, 0..1, of the run: "constant", or "cosine", which falls to a hundredth."""
    return start * (0.505 + 0.495 * math.cos(math.pi * progress)) if schedule == "cosine" else start
