"""Train one epoch, predict, evaluate, and the run made of them; the same for every dataset."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from utils.cli import UserError, listed
from utils.figures import method_panels
from utils.gsd import Batch, GSDConfig, Network, Step, drop_rate, weight_cap
from utils.intensity import Intensity, to_unit
from utils.metrics import overlap_scores, surface_scores
from utils.run import Run, at_precision

CHECK_EVERY = 10  # steps between looks at the loss: each look waits for the device
LOSS_PARTS = ("pixel_loss", "kept", "gda", "transfer1", "transfer2", "agreement")
PICTURES = 10  # times in a run that panels and curves are drawn
LAST_EPOCHS = 10  # the reported figure is the mean over these; docs/method.md section 5


class TestCase(Protocol):
    """One case to test on, of S slices and R raters."""

    name: str
    image: Tensor  # (S,C,H,W) uint8
    masks: Tensor  # (R,S,H,W) uint8 classes


@dataclass(frozen=True)
class Experiment:
    """Everything that a run trains and tests; training scripts differ in how they fill it."""

    networks: nn.ModuleList  # f1, f2 on the device
    optimiser: torch.optim.Optimizer
    step: Callable[..., Step]  # utils.gsd.gsd_step or a baseline of its signature
    config: GSDConfig
    epoch_batches: Callable[[torch.Generator], Iterable[tuple[Batch, Sequence[str]]]]  # batches and their images' names
    steps_per_epoch: int
    cases: Sequence[TestCase]
    num_classes: int
    intensity: Intensity
    batch_size: int
    generator: torch.Generator  # on the CPU; every draw of the run
    device: torch.device
    bf16: bool

    @property
    def forwards(self) -> list[Network]:
        """The networks' forward passes at the run's precision."""
        return [at_precision(network, self.device, self.bf16) for network in self.networks]


def fit(experiment: Experiment, run: Run) -> dict:
    """Train from the run's last complete epoch to the end, evaluating and saving each epoch; returns the result.

    Raises `UserError` when the loss becomes non-finite; the last checkpoint is then the last good one.
    """
    run.restore(experiment.networks, experiment.optimiser, experiment.generator)
    epochs = experiment.config.max_epochs
    with tqdm(total=epochs, initial=run.epochs_done, desc="epochs", unit="epoch") as bar:
        for epoch in range(run.epochs_done, epochs):
            start = time.perf_counter()
            losses, batch, step = train_one_epoch(experiment, epoch)
            seconds = time.perf_counter() - start
            scores = evaluate(experiment)
            row = {
                "epoch": epoch,
                **losses,
                "drop_rate": drop_rate(epoch, experiment.config.tau, epochs),
                "weight_cap": weight_cap(epoch, epochs, experiment.config.weight_decay_rate),
                "learning_rate": experiment.optimiser.param_groups[0]["lr"],
                **{name: statistics.fmean(values) for name, values in scores.items()},
                "seconds": seconds,
            }
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


def train_one_epoch(experiment: Experiment, epoch: int) -> tuple[dict[str, float | None], Batch, Step]:
    """One pass over the training images.

    Returns the mean of the loss and its parts over the steps (None for a part that this epoch does not have), and the
    last batch with its step, for pictures.
    Raises `UserError` naming epoch, step and images when the loss is not finite.
    """
    experiment.networks.train()
    forwards = experiment.forwards
    names: list[Sequence[str]] = []
    values: list[Tensor] = []  # on the device until looked at
    batches = experiment.epoch_batches(experiment.generator)
    with tqdm(batches, total=experiment.steps_per_epoch, desc=f"epoch {epoch}", unit="step", leave=False) as bar:
        for index, (batch, batch_names) in enumerate(bar):
            mixing = float(torch.rand((), generator=experiment.generator))
            permutation = torch.randperm(len(batch.image), generator=experiment.generator).to(experiment.device)
            step = experiment.step(forwards, batch, epoch, experiment.config, mixing, permutation)
            experiment.optimiser.zero_grad(set_to_none=True)
            step.loss.backward()
            experiment.optimiser.step()
            values.append(torch.stack([step.loss.detach(), *step.parts.values()]))
            names.append(batch_names)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == experiment.steps_per_epoch:
                _check_finite(values, names, epoch)
                bar.set_postfix(loss=f"{float(values[-1][0]):.3f}")
    # The last step's update has not been through a loss yet, and a checkpoint must not hold it unseen.
    if not torch.stack([v.isfinite().all() for v in experiment.networks.state_dict().values()]).all():
        raise _diverged(f"the weights became non-finite in epoch {epoch}, step {len(values) - 1}", names[-1])
    means = dict(zip(("loss", *step.parts), torch.stack(values).mean(dim=0).tolist(), strict=True))
    return {name: means.get(name) for name in ("loss", *LOSS_PARTS)}, batch, step


def _check_finite(values: list[Tensor], names: list[Sequence[str]], epoch: int) -> None:
    finite = torch.stack(values).isfinite().all(dim=1).tolist()
    if not all(finite):
        index = finite.index(False)
        raise _diverged(f"the loss became non-finite in epoch {epoch}, step {index}", names[index])


def _diverged(what: str, names: Sequence[str]) -> UserError:
    return UserError(
        f"{what}, on {listed(names, most=16)}; training stops and the last checkpoint stays as it is. "
        "Try a smaller --learning_rate, or --amp fp32"
    )


@torch.no_grad()
def predict(
    forwards: Sequence[Network], images: Tensor, intensity: Intensity, batch_size: int, device: torch.device
) -> Tensor:
    """The class of each pixel, uint8 (N,H,W) on the CPU: the argmax of the networks' summed logits on plain images.

    images: uint8 (N,C,H,W); the networks must be in eval mode. Source: docs/method.md section 5.
    """
    classes = []
    for chunk in images.split(batch_size):
        inputs = intensity.normalise(to_unit(chunk.to(device))).contiguous(memory_format=torch.channels_last)
        logits = torch.stack([forward(inputs) for forward in forwards]).sum(dim=0)
        classes.append(logits.argmax(dim=1).to("cpu", torch.uint8))
    return torch.cat(classes)


def evaluate(experiment: Experiment, surfaces: bool = False) -> dict[str, list[float]]:
    """Scores of each test case, the mean over its slices and raters: Dice and IoU, with ``surfaces`` distances too.

    A distance that is undefined on a slice (`utils.metrics`) is left out of its case's mean; NaN where all are.
    """
    experiment.networks.eval()
    images = torch.cat([case.image for case in experiment.cases])
    predictions = predict(
        experiment.forwards, images, experiment.intensity, experiment.batch_size, experiment.device
    ).split([len(case.image) for case in experiment.cases])
    pairs = list(zip(predictions, (case.masks for case in experiment.cases), strict=True))
    predicted = torch.cat([prediction.expand_as(masks).flatten(0, 1) for prediction, masks in pairs])
    masks = torch.cat([masks.flatten(0, 1) for _, masks in pairs])
    scores = overlap_scores(predicted, masks, experiment.num_classes)
    if surfaces:
        scores |= surface_scores(predicted, masks, experiment.num_classes)
    counts = [case.masks.shape[0] * case.masks.shape[1] for case in experiment.cases]
    return {name: [float(part.nanmean()) for part in values.split(counts)] for name, values in scores.items()}


def report(experiment: Experiment, run: Run) -> dict:
    """Score the trained networks on every case, write per_image.csv and result.json, and return the result.

    The figure to report is the mean and standard deviation (of the population) over the last ten epochs of the mean
    Dice of each: no epoch is chosen by its score on the test set. Source: docs/method.md section 5.
    """
    scores = evaluate(experiment, surfaces=True)
    names = [case.name for case in experiment.cases]
    per_image = [
        {"image": name, **{metric: round(values[i], 6) for metric, values in scores.items()}}
        for i, name in enumerate(names)
    ]
    last = run.history[-LAST_EPOCHS:]
    undefined = {name: sum(v != v for v in values) for name, values in scores.items()}
    result = {
        "final_dice_mean": statistics.fmean(row["dice"] for row in last),
        "final_dice_std": statistics.pstdev(row["dice"] for row in last),
        "final_iou_mean": statistics.fmean(row["iou"] for row in last),
        "averaged_epochs": len(last),
        "epochs": len(run.history),
        "method": run.settings["method"],
        "last_epoch": {
            name: statistics.fmean(v for v in values if v == v) if undefined[name] < len(values) else None
            for name, values in scores.items()
        },
        "undefined": {name: undefined[name] for name in ("hd95", "assd")},
        "test_cases": len(names),
        "seconds_per_epoch": statistics.fmean(row["seconds"] for row in run.history),
        "device": str(experiment.device),
        "precision": "bf16" if experiment.bf16 else "fp32",
        "torch": torch.__version__,
    }
    run.finish(result, per_image)
    return result


def print_result(result: dict, folder: str) -> None:
    """The table that ends a run."""
    last = result["last_epoch"]
    averaged = f"{result['final_dice_mean']:.4f} +- {result['final_dice_std']:.4f}"
    lines = {f"Dice, mean of the last {result['averaged_epochs']} epochs": averaged}
    for name, unit in (("dice", ""), ("iou", ""), ("hd95", " px"), ("assd", " px"), ("nsd", " (2 px)")):
        value = "undefined" if last[name] is None else f"{last[name]:.4f}{unit}"
        lines[f"{name} after the last epoch"] = value
    lines["seconds an epoch"] = f"{result['seconds_per_epoch']:.1f} ({result['device']}, {result['precision']})"
    print(f"\n{result['method']}, {result['epochs']} epochs, {result['test_cases']} test cases")
    for label, value in lines.items():
        print(f"  {label:<34} {value}")
    for name, count in result["undefined"].items():
        if count:
            print(f"  {name} is undefined on {count} cases, where prediction or mask is empty, and left out")
    print(f"  everything is in {folder}")
