"""Train one epoch, predict, evaluate, and the run made of them; the same for every dataset."""

import argparse
import math
import os
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.arguments import gsd_config
from utils.baselines import METHODS, USES_TAU
from utils.cli import UserError, Workers, listed, warn
from utils.distributed import Team, average, average_buffers, gather, shared
from utils.figures import method_panels
from utils.gsd import Batch, GSDConfig, Network, Step, drop_rate, gsd_step, highest_weight
from utils.intensity import Intensity, to_unit
from utils.metrics import case_scores
from utils.run import Run, at_precision, keep_freed_memory, repeat_exactly, uses_bf16
from utils.watch import Watch

CHECK_EVERY = 10  # steps between looks at the loss: each look waits for the device
LOSS_PARTS = ("pixel_loss", "kept", "gda", "dice_loss", "transfer1", "transfer2", "agreement")
PICTURES = 10  # times in a run that panels and curves are drawn
WORTH_PROCESSES = 1000  # masks whose surface distances take longer than other processes to start: 15 ms a mask
WORTH_THREADS = 2**18  # pixels of a case, each class anew: with fewer, threads bring next to nothing
VALIDATED_ON = "held-out training masks"  # noisy where those are
LAST_EPOCHS = 10  # the reported figure is the mean over these; docs/method.md section 5


class TestCase(Protocol):
    """One case to test on, of S slices and R raters; the masks may be of another size than the images."""

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> Tensor:  # (S,C,H,W) uint8, at the training size
        ...

    @property
    def masks(self) -> Tensor:  # (R,S,H,W) uint8 classes
        ...


EpochBatches = Callable[[torch.Generator], Iterable[tuple[Batch, Sequence[str]]]]


@dataclass(frozen=True)
class Experiment:
    """Everything that a run trains and tests; training scripts differ in how they fill it."""

    networks: nn.ModuleList  # f1, f2 on the device
    trained: Sequence[Network]  # the same two as training calls them: compiled, with gradients shared by the team
    team: Team
    optimiser: torch.optim.Optimizer
    learning_rate: Callable[[float], float]  # by the share of the run that is over
    step: Callable[..., Step]  # utils.gsd.gsd_step or a baseline of its signature
    selects: bool  # whether the step drops pixels, as --tau says
    config: GSDConfig
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
    bf16: bool

    @property
    def vote(self) -> str | None:
        """Which regions vote on the pixels that are dropped, at whatever epoch; None if none is dropped or refined."""
        refining = self.step is gsd_step and self.config.tau > 0 and self.config.warm_up < 1
        return self.config.vote if refining else None

    @property
    def weighs_by_distance(self) -> bool:
        """Whether pixels count by their distance to the border."""
        return self.step is gsd_step and self.config.weights == "distance"

    def forwards(self, networks: Iterable[Network]) -> list[Network]:
        """The networks' forward passes at the run's precision."""
        return [at_precision(network, self.device, self.bf16) for network in networks]


def experiment_of(
    args: argparse.Namespace,
    networks: nn.ModuleList,
    device: torch.device,
    team: Team,
    training_images: int,
    epoch_batches: EpochBatches,
    intensity: Intensity,
    cases: Sequence[TestCase],
    validation: Sequence[TestCase] = (),
    scored_on: str = "test masks",
) -> Experiment:
    """The experiment that a training script's flags ask for, on data that the script has read.

    Moves the networks to the device, and puts the precision that --amp auto comes to in its place. Raises `UserError`
    if there are fewer training images than a batch takes, if the team cannot share a batch evenly, or if nothing is
    there to compile with.
    """
    if training_images < args.batch_size:
        raise UserError(f"--batch_size {args.batch_size}: there are only {training_images} training images")
    if args.batch_size == team.size and args.image_size < 32:  # the deepest layer has one pixel, and no deviation
        raise UserError(
            f"--image_size {args.image_size}: needs at least two images a process, --batch_size above {team.size}"
        )
    if args.batch_size % team.size:
        raise UserError(f"--batch_size {args.batch_size}: must be a multiple of the {team.size} processes")
    # Resolved in args, and so kept with the run: resumed where "auto" means another, it would go on as another run.
    args.amp = "bf16" if uses_bf16(args.amp, device) else "fp32"
    if device.type == "cpu":
        keep_freed_memory()
    repeat_exactly(args.deterministic)
    # channels_last: the layout of the fast convolutions, on the CPU in bf16 and on GPUs with tensor cores.
    networks = networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    trained: list[Network] = [shared(network, team) for network in networks]
    if args.compile:
        if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise UserError("--compile needs a C++ compiler, and neither g++ nor clang++ is there; leave it out")
        trained = [torch.compile(network) for network in trained]
    return Experiment(
        networks=networks,
        trained=trained,
        team=team,
        optimiser=optimiser_of(args.optimizer, networks, args.learning_rate),
        learning_rate=partial(learning_rate_at, args.schedule, args.learning_rate),
        step=METHODS[args.method],
        selects=args.method in USES_TAU,
        config=gsd_config(args),
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
        bf16=args.amp == "bf16",
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


def fit(experiment: Experiment, run: Run) -> dict:
    """Train from the run's last complete epoch to the end, evaluating and saving each epoch; returns the result.

    With validation cases the epoch with the best mean Dice on them is kept in best.pt. A run that is complete already
    is not trained again. Raises `UserError` when the loss becomes non-finite; the last checkpoint is then the last
    good one.
    """
    result = run.result
    if result:
        print(f"{run.folder}: this run is complete already")
        run.close()
        return result
    print(
        f"{run.settings['method']}: {experiment.steps_per_epoch} steps an epoch, {experiment.device}, "
        f"{'bf16' if experiment.bf16 else 'fp32'}; {len(experiment.cases)} cases scored on {experiment.scored_on}; "
        f"writing {run.folder}"
    )
    run.restore(experiment.networks, experiment.optimiser, experiment.generator)
    epochs = experiment.config.max_epochs
    silent = not experiment.team.leads
    with tqdm(total=epochs, initial=run.epochs_done, desc="epochs", unit="epoch", disable=silent) as bar:
        for epoch in range(run.epochs_done, epochs):
            start = time.perf_counter()
            losses, waited, batch, step, warnings = train_one_epoch(experiment, epoch)
            seconds = time.perf_counter() - start
            told = {name for row in run.history for name in row.get("warnings", "").split("; ")}
            for name, warning in warnings.items():
                if name not in told and experiment.team.leads:
                    warn(f"warning: epoch {epoch}: {warning}")
            row = {
                "epoch": epoch,
                **losses,
                "drop_rate": drop_rate(epoch, experiment.config.tau, epochs) if experiment.selects else None,
                "weight_cap": highest_weight(epoch, experiment.config) if experiment.weighs_by_distance else None,
                "learning_rate": experiment.optimiser.param_groups[0]["lr"],
                **means(evaluate(experiment, experiment.cases)),
                "scored_on": experiment.scored_on,
                "warnings": "; ".join(warnings),
            }
            if experiment.validation:
                row["val_dice"] = means(evaluate(experiment, experiment.validation))["dice"]
            row |= {"seconds": seconds, "waiting": waited / seconds}
            model = {
                "in_channels": len(experiment.intensity.mean),
                "num_classes": experiment.num_classes,
                "intensity": {"mean": experiment.intensity.mean, "std": experiment.intensity.std},
            }
            run.close_epoch(row, experiment.networks, experiment.optimiser, experiment.generator, model)
            if epoch % max(1, epochs // PICTURES) == 0 or epoch == epochs - 1:
                run.draw(method_panels(batch, step.maps, experiment.intensity))
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", dice=f"{row['dice']:.4f}")
    return report(experiment, run)


def train_one_epoch(
    experiment: Experiment, epoch: int
) -> tuple[dict[str, float | None], float, Batch, Step, dict[str, str]]:
    """One pass over the training images.

    Returns the mean of the loss and its parts over the steps (None for a part that this epoch does not have), the
    seconds in which the networks had no batch to work on, the last batch with its step, for pictures, and what went
    wrong without an error (`utils.watch.Watch.warnings`).
    On a GPU the seconds are an upper limit: while a batch is made the GPU may still be busy with the step before, and
    small copies to it wait for that.
    Raises `UserError` naming epoch, step and images when the loss is not finite.
    """
    experiment.networks.train()
    watch = Watch(experiment.steps_per_epoch, experiment.vote)
    forwards = watch.over(experiment.forwards(experiment.trained))
    names: list[Sequence[str]] = []
    values: list[Tensor] = []  # on the device until looked at
    waited, asked = 0.0, time.perf_counter()
    batches = experiment.epoch_batches(experiment.generator)
    steps, silent = experiment.steps_per_epoch, not experiment.team.leads
    with tqdm(batches, total=steps, desc=f"epoch {epoch}", unit="step", leave=False, disable=silent) as bar:
        for index, (batch, batch_names) in enumerate(bar):
            waited += time.perf_counter() - asked
            mixing = float(torch.rand((), generator=experiment.generator))
            permutation = torch.randperm(len(batch.image), generator=experiment.generator).to(experiment.device)
            progress = (epoch + index / steps) / experiment.config.max_epochs
            for group in experiment.optimiser.param_groups:
                group["lr"] = experiment.learning_rate(progress)
            step = experiment.step(forwards, batch, epoch, experiment.config, mixing, permutation)
            experiment.optimiser.zero_grad(set_to_none=True)
            step.loss.backward()
            experiment.optimiser.step()
            values.append(torch.stack([step.loss.detach(), *step.parts.values()]))
            names.append(batch_names)
            watch.see(batch, step, batch_names)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == steps:
                _check_finite(values, names, epoch)
                bar.set_postfix(loss=f"{float(values[-1][0]):.3f}")
            asked = time.perf_counter()
    average_buffers(experiment.networks)
    # The last step's update has not been through a loss yet, and a checkpoint must not hold it unseen.
    if not torch.stack([v.isfinite().all() for v in experiment.networks.state_dict().values()]).all():
        raise _diverged(f"the weights became non-finite in epoch {epoch}, step {len(values) - 1}", names[-1])
    mean = dict(zip(("loss", *step.parts), average(torch.stack(values).mean(dim=0)).tolist(), strict=True))
    return {name: mean.get(name) for name in ("loss", *LOSS_PARTS)}, waited, batch, step, watch.warnings()


def _check_finite(values: list[Tensor], names: list[Sequence[str]], epoch: int) -> None:
    """Raise `UserError` at the first step whose loss is not finite in some process of the team; all of it must ask."""
    finite = torch.stack(values).isfinite().all(dim=1).tolist()
    index = finite.index(False) if not all(finite) else len(finite)
    # The gradients are everybody's: in the next step all processes have the fault of one.
    first, at_fault = min(gather([(index, list(names[index]) if index < len(names) else [])]), key=lambda own: own[0])
    if first < len(finite):
        raise _diverged(f"the loss became non-finite in epoch {epoch}, step {first}", at_fault)


def _diverged(what: str, names: Sequence[str]) -> UserError:
    return UserError(
        f"{what}, on {listed(names, most=16)}; training stops and the last checkpoint stays as it is. "
        "Try a smaller --learning_rate, or --amp fp32"
    )


@torch.no_grad()
def mean_logits(forwards: Sequence[Network], images: Tensor, intensity: Intensity, device: torch.device) -> Tensor:
    """The mean of the networks' logits on plain images, uint8 (N,C,H,W): float32 (N,K,H,W) on ``device``."""
    inputs = intensity.normalise(to_unit(images.to(device))).contiguous(memory_format=torch.channels_last)
    return torch.stack([forward(inputs) for forward in forwards]).mean(dim=0)


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (N,K,H,W) at ``size``, linearly: outlines come out smoother than from resized classes."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def classes_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of each pixel at ``size``, uint8 (N,H,W) on the CPU: the argmax of logits (N,K,h,w), resized first."""
    return resized(logits, size).argmax(dim=1).to("cpu", torch.uint8)


def predictions(experiment: Experiment, cases: Iterable[TestCase]) -> Iterator[tuple[TestCase, Tensor]]:
    """Each case with its predicted classes, uint8 (S,H,W) at the size of its masks.

    Cases are read one after the other and predicted together while they fill a batch, so that neither volumes larger
    than memory nor hundreds of single slices are a burden.
    """
    experiment.networks.eval()
    forwards = experiment.forwards(experiment.networks)
    waiting: list[TestCase] = []

    def predicted() -> Iterator[tuple[TestCase, Tensor]]:
        images = torch.cat([case.image for case in waiting])
        logits = torch.cat(
            [
                mean_logits(forwards, chunk, experiment.intensity, experiment.device)
                for chunk in images.split(experiment.batch_size)
            ]
        )
        for case, small in zip(waiting, logits.split([len(case.image) for case in waiting]), strict=True):
            size = (case.masks.shape[-2], case.masks.shape[-1])
            # Slice by slice: at their own size all of a volume may be large.
            yield case, torch.cat([classes_at(logit[None], size) for logit in small])
        waiting.clear()

    for case in cases:
        if waiting and sum(len(other.image) for other in (*waiting, case)) > experiment.batch_size:
            yield from predicted()
        waiting.append(case)
    if waiting:
        yield from predicted()


def evaluate(experiment: Experiment, cases: Sequence[TestCase], surfaces: bool = False) -> dict[str, dict[str, float]]:
    """Each case's scores by its name (`utils.metrics.case_scores`), with ``surfaces`` the distances too.

    Each process of the team scores its share of the cases, and all get all scores.
    """
    own = (cases[index] for index in range(experiment.team.rank, len(cases), experiment.team.size))
    score = partial(_score, num_classes=experiment.num_classes, surfaces=surfaces)
    return dict(gather(list(_scored(predictions(experiment, own), score, WORTH_PROCESSES if surfaces else None))))


def _scored(
    predicted: Iterable[tuple[TestCase, Tensor]], score: Callable[..., dict], most: int | None
) -> Iterator[tuple[str, dict[str, float]]]:
    """The name of each case and its scores, in order. After ``most`` masks other processes score, all at the same time;
    no more cases are in memory than they have in hand."""
    predicted = iter(predicted)
    masks_scored = 0
    for case, prediction in predicted:
        yield case.name, score(prediction.numpy(), case.masks.numpy())
        masks_scored += case.masks.shape[:2].numel()
        if most is not None and masks_scored >= most:
            break
    following = next(predicted, None)
    if following is None:
        return
    processes = min(os.cpu_count() or 1, 8)
    # Fresh processes: a fork of one that has threads may hang.
    with Workers(processes, get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        running: deque = deque()
        for case, prediction in chain([following], predicted):
            running.append((case.name, pool.submit(score, prediction.numpy(), case.masks.numpy())))
            if len(running) > 2 * processes:
                name, scores = running.popleft()
                yield name, scores.result()
        yield from ((name, scores.result()) for name, scores in running)


def _score(prediction: np.ndarray, masks: np.ndarray, num_classes: int, surfaces: bool) -> dict[str, float]:
    threads = torch.get_num_threads()
    if masks.size * (num_classes - 1) < WORTH_THREADS:  # and cost much on a machine with other work: docs/decisions.md
        torch.set_num_threads(1)
    try:
        return case_scores(torch.from_numpy(prediction), torch.from_numpy(masks), num_classes, surfaces)
    finally:
        torch.set_num_threads(threads)


def means(scores: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """The mean of each score over the cases on which it is defined, None where it is on none."""
    defined = {
        name: [case[name] for case in scores.values() if case[name] == case[name]]
        for name in next(iter(scores.values()))
    }
    return {name: statistics.fmean(values) if values else None for name, values in defined.items()}


def take_counts(scores: dict[str, dict[str, float]]) -> tuple[dict[str, int], dict[str, int]]:
    """The counts of empty masks, summed over the cases and taken out of ``scores``, and on how many cases each distance
    is undefined."""
    empty = {
        name: sum(int(case.pop(name)) for case in scores.values()) for name in ("pairs", "one_empty", "both_empty")
    }
    return empty, {name: sum(case[name] != case[name] for case in scores.values()) for name in ("hd95", "assd")}


def report(experiment: Experiment, run: Run) -> dict:
    """Score the trained networks on every case, write per_image.csv and result.json, and return the result.

    The figure to report is the mean and standard deviation (of the population) over the last ten epochs of the mean
    Dice of each: no epoch is chosen by its score on the test set. Where cases were held out for validation, the scores
    of the epoch that was best on them are given beside it. Source: docs/method.md section 5.
    """
    scores = evaluate(experiment, experiment.cases, surfaces=True)
    counts, undefined = take_counts(scores)
    last = run.history[-LAST_EPOCHS:]
    final: dict[str, float] = {}
    for name in scores[next(iter(scores))]:
        if name in last[0]:  # surface distances are taken after the last epoch alone
            values = [row[name] for row in last]
            final |= {f"final_{name}_mean": statistics.fmean(values), f"final_{name}_std": statistics.pstdev(values)}
    result = {
        **final,
        "averaged_epochs": len(last),
        "epochs": len(run.history),
        "method": run.settings["method"],
        "last_epoch": means(scores),
        "undefined": undefined,
        "empty_masks": counts,
        "test_cases": len(scores),
        "scored_on": experiment.scored_on,
        "waiting": statistics.fmean(row["waiting"] for row in run.history),
        "processes": experiment.team.size,
        "seconds_per_epoch": statistics.fmean(row["seconds"] for row in run.history),
        "device": str(experiment.device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if experiment.bf16 else "fp32",
        "torch": torch.__version__,
    }
    if experiment.validation:
        run.load_best(experiment.networks)
        result["best_validation"] = {
            "epoch": run.best_epoch["epoch"],
            "val_dice": run.best_epoch["val_dice"],
            "validated_on": VALIDATED_ON,
            **means(evaluate(experiment, experiment.cases)),
        }
    per_image = [
        {"image": name, **{metric: round(value, 6) for metric, value in case.items()}} for name, case in scores.items()
    ]
    run.finish(result, per_image)
    return result


SCORES = {  # what each score is called in a table
    "dice": "Dice",
    "dice_majority": "Dice, majority vote",
    "soft_dice": "soft Dice, mean of the raters",
    "iou": "IoU",
    "ged": "energy distance (GED)",
    "hd95": "HD95, px",
    "assd": "ASSD, px",
    "nsd": "surface Dice (2 px)",
}


def titles_of(names: Collection[str]) -> dict[str, str]:
    """What each score of ``names`` is called, in the order of a table."""
    parts = ("rater", "class")
    single = {name: f"Dice, {part} {name[10:]}" for part in parts for name in names if name.startswith(f"dice_{part}")}
    of_raters = {"dice": "Dice, mean of the raters", "iou": "IoU, mean of the raters"} if "dice_rater1" in names else {}
    return {name: title for name, title in (single | SCORES | of_raters).items() if name in names}


def empty_lines(empty: dict[str, int], undefined: dict[str, int]) -> Iterator[str]:
    """How many masks were empty, and on how many cases a distance is undefined for that; nothing if none were."""
    if empty["one_empty"] or empty["both_empty"]:
        yield (
            f"  of {empty['pairs']} pairs of prediction and mask, slice by slice, both were empty in "
            f"{empty['both_empty']}, one in {empty['one_empty']}; distances leave these out"
        )
    for name, count in undefined.items():
        if count:
            yield f"  {name} is undefined on {count} cases, where nothing else is left"


def print_result(result: dict, folder: Path) -> None:
    """The table that ends a run. Raises `UserError` if ``result``, which may be of an earlier call, is no run's."""
    try:
        lines = list(_result_lines(result))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = folder / "result.json"
        raise UserError(f"{path}: not a run's result ({error!a}); remove it, and --resume makes it again") from error
    print("\n".join(["", *lines, f"  everything is in {folder}"]))


def _result_lines(result: dict) -> Iterator[str]:
    last = result["last_epoch"]
    yield f"{result['method']}, {result['epochs']} epochs, {result['test_cases']} cases, {result['scored_on']}"
    yield f"  {'':<32}{'last epoch':>12}{'mean of the last ' + str(result['averaged_epochs']):>24}"
    for name, title in titles_of(last).items():
        value = "undefined" if last[name] is None else f"{last[name]:.4f}"
        mean = result.get(f"final_{name}_mean")
        averaged = "" if mean is None else f"{mean:.4f} +- {result[f'final_{name}_std']:.4f}"
        yield f"  {title:<32}{value:>12}{averaged:>24}".rstrip()
    best = result.get("best_validation")
    if best:
        yield (
            f"  epoch {best['epoch']} was best on the validation cases ({best['validated_on']}), "
            f"{best['val_dice']:.4f}; its test Dice is {best['dice']:.4f}"
        )
    yield from empty_lines(result["empty_masks"], result["undefined"])
    yield (
        f"  {result['seconds_per_epoch']:.1f} s an epoch ({result['device']}, {result['precision']}), "
        f"{result['waiting']:.1%} of it waiting for data"
    )
