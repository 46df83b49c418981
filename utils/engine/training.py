"""Train one epoch, and the run made of epochs; the same for every dataset."""

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from utils.commands.errors import UserError, counted, listed, warn
from utils.commands.jobs import progress
from utils.engine.diagnostics import Diagnostics, empty_predictions
from utils.engine.distributed import average, average_buffers, average_gradients, gather
from utils.engine.evaluation import evaluate
from utils.engine.experiment import Experiment
from utils.engine.report import report
from utils.engine.run_folder import Run
from utils.engine.scores import SCORED_AT, Row, set_scores
from utils.method.gsd import Batch, Step, drop_rate, weight_cap
from utils.method.losses import added_dice_loss
from utils.method.settings import MethodSettings

if TYPE_CHECKING:  # slow to import, and not needed before a tenth of the run is over
    from matplotlib.figure import Figure

CHECK_EVERY = 10  # steps between looks at the loss: each look waits for the device
LOSS_PARTS = ("pixel_loss", "kept", "gda", "dice_loss", "transfer1", "transfer2", "agreement")
PICTURES = 10  # times in a run that its pictures are drawn


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
        f"{counted(experiment.steps_per_epoch, 'step')} an epoch, {experiment.device}, {experiment.precision}; "
        f"{counted(len(experiment.cases), 'case')} scored on {experiment.scored_on}; writing {run.folder}"
    )
    run.restore(experiment.networks, experiment.optimiser, experiment.generator)
    if any(row.get("scored_at") != SCORED_AT for row in run.history):
        raise UserError(
            f"{run.folder}: its epochs were scored by an older version's rule, which cannot go into one mean with "
            "today's; --overwrite starts the run again, --exp NAME begins another beside it"
        )
    _check_references(experiment)
    method = experiment.settings.method
    epochs = method.max_epochs
    if run.epochs_done:
        following = f"goes on with epoch {run.epochs_done + 1}" if run.epochs_done < epochs else "scores again"
        print(f"--resume: {run.epochs_done} of {epochs} epochs are done; {following}")
    silent = not experiment.group.is_main
    with progress(total=epochs, initial=run.epochs_done, desc="epochs", unit="epoch", hidden=silent) as bar:
        for epoch in range(run.epochs_done, epochs):
            start = time.perf_counter()
            trained = train_one_epoch(experiment, epoch)
            seconds = time.perf_counter() - start
            scores = evaluate(experiment, experiment.cases)
            warnings = trained.warnings | empty_predictions(list(scores.values()))
            figures = set_scores(list(scores.values()))
            told = {name for row in run.history for name in row["warnings"]}
            for name, warning in warnings.items():
                if name not in told and experiment.group.is_main:
                    warn(f"warning: epoch {epoch}: {warning}")
            row = {
                "epoch": epoch,
                **trained.losses,
                **schedule_of(method, epoch),
                "learning_rate": experiment.optimiser.param_groups[0]["lr"],
                **figures.means,
                "cases": figures.cases["dice"],
                "scored_on": experiment.scored_on,
                "scored_at": SCORED_AT,
                "warnings": list(warnings),
            }
            if experiment.validation:
                validated = evaluate(experiment, experiment.validation)
                row["val_dice"] = set_scores(list(validated.values())).means["dice"]
            row |= {"seconds": seconds, "waiting": trained.waited / seconds}
            model = {
                "network": experiment.network,
                "in_channels": len(experiment.intensity.mean),
                "num_classes": experiment.num_classes,
                "intensity": {"mean": experiment.intensity.mean, "std": experiment.intensity.std},
            }
            run.close_epoch(row, experiment.networks, experiment.optimiser, experiment.generator, model)
            if is_drawn(epoch, epochs):
                run.draw(partial(pictures_of, experiment, trained, scores))
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", dice="-" if row["dice"] is None else f"{row['dice']:.4f}")
            if bar.disable:  # no terminal
                print(epoch_in_words(row, epochs), flush=True)
    return report(experiment, run)


def is_drawn(epoch: int, epochs: int) -> bool:
    """Whether the pictures are drawn after ``epoch``: after each tenth of the run, and so after the last."""
    return epoch * PICTURES // epochs < (epoch + 1) * PICTURES // epochs


def pictures_of(experiment: Experiment, trained: "EpochResult", scores: dict[str, Row]) -> dict[str, "Figure"]:
    """The pictures of an epoch by name: what the method did with the last batch, and predictions of scored cases."""
    from utils.engine.pictures import examples, method_panels, predictions_beside_references

    batch, maps, settings = trained.batch, trained.step.maps, experiment.settings
    classes = experiment.num_classes
    return {
        "panels": method_panels(batch, maps, trained.names, settings, classes, experiment.intensity),
        "predictions": predictions_beside_references(examples(experiment, scores), classes),
    }


def epoch_in_words(row: dict, epochs: int) -> str:
    """A row of log.csv as a line of a log file: how many epochs are done, of how many; the row counts from 0."""
    dice = "-" if row["dice"] is None else f"{row['dice']:.3f}"
    head = f"epoch {row['epoch'] + 1}/{epochs}  loss {row['loss']:.4g}  Dice {dice}"
    return f"{head}  lr {row['learning_rate']:.3g}  {row['seconds']:.1f} s"


def _check_references(experiment: Experiment) -> None:
    """Say if no mask to score on has foreground. Raises `UserError` if none has to choose an epoch by."""
    if experiment.validation and not any(case.masks.any() for case in experiment.validation):
        raise UserError(
            f"--val_fraction: none of the masks of the {len(experiment.validation)} held-out cases has foreground, so "
            "no epoch can be chosen by them; hold out more, or others (--seed)"
        )
    if experiment.group.is_main and not any(case.masks.any() for case in experiment.cases):
        warn(
            f"warning: none of the {len(experiment.cases)} {experiment.scored_on} has foreground: overlaps and "
            "distances stay blank; specificity and false pixels are what such a set can tell"
        )


class EpochResult(NamedTuple):
    """What one pass over the training images gives."""

    losses: dict[str, float | None]  # means over the steps of the loss and its parts; None: not in this epoch
    # Seconds in which the networks had no batch to work on. On a GPU an upper limit: while a batch is made it may still
    # be busy with the step before, and small copies to it wait for that.
    waited: float
    batch: Batch  # the last one, for pictures
    names: Sequence[str]  # of its images
    step: Step  # on it
    warnings: dict[str, str]  # what went wrong without an error (`utils.engine.diagnostics.Diagnostics.warnings`)


def train_one_epoch(experiment: Experiment, epoch: int) -> EpochResult:
    """One pass over the training images. Raises `UserError`, with epoch, step and images, if the loss is not finite."""
    experiment.networks.train()
    diagnostics = Diagnostics(experiment.steps_per_epoch, experiment.vote)
    forwards = diagnostics.observed(experiment.forwards(experiment.trained))
    names: list[Sequence[str]] = []
    values: list[Tensor] = []  # on the device until looked at
    waited, asked = 0.0, time.perf_counter()
    batches = experiment.epoch_batches(experiment.generator)
    steps, silent, settings = experiment.steps_per_epoch, not experiment.group.is_main, experiment.settings
    with progress(batches, total=steps, desc=f"epoch {epoch}", unit="step", leave=False, hidden=silent) as bar:
        for index, (batch, batch_names) in enumerate(bar):
            waited += time.perf_counter() - asked
            mixing = float(torch.rand((), generator=experiment.generator))
            permutation = torch.randperm(len(batch.image), generator=experiment.generator).to(experiment.device)
            over = (epoch + index / steps) / settings.method.max_epochs
            for group in experiment.optimiser.param_groups:
                group["lr"] = experiment.learning_rate(over)
            step = experiment.step(forwards, batch, epoch, settings.method, mixing, permutation)
            step = with_dice_loss(step, batch.label, settings.run.dice_weight)
            experiment.optimiser.zero_grad(set_to_none=True)
            step.loss.backward()
            average_gradients(experiment.networks.parameters(recurse=False))
            experiment.optimiser.step()
            values.append(torch.stack([step.loss.detach(), *step.parts.values()]))
            names.append(batch_names)
            diagnostics.observe(batch, step, batch_names)
            if (index + 1) % CHECK_EVERY == 0 or index + 1 == steps:
                _check_finite(values, names, epoch)
                bar.set_postfix(loss=f"{float(values[-1][0]):.3f}")
            asked = time.perf_counter()
    average_buffers(experiment.networks)
    # The last step's update has not been through a loss yet, and a checkpoint must not hold it unseen.
    if not torch.stack([v.isfinite().all() for v in experiment.networks.state_dict().values()]).all():
        raise _diverged(f"the weights became non-finite in epoch {epoch}, step {len(values) - 1}", names[-1])
    mean = dict(zip(("loss", *step.parts), average(torch.stack(values).mean(dim=0)).tolist(), strict=True))
    losses = {name: mean.get(name) for name in ("loss", *LOSS_PARTS)}
    return EpochResult(losses, waited, batch, names[-1], step, diagnostics.warnings())


def with_dice_loss(step: Step, label: Tensor, weight: float) -> Step:
    """A method's step with the Dice loss of a recipe added to its loss. Source: docs/method.md section 8."""
    if not weight:
        return step
    dice = added_dice_loss(step.taught, label)
    return step._replace(loss=step.loss + weight * dice, parts=step.parts | {"dice_loss": dice.detach()})


def schedule_of(method: MethodSettings, epoch: int) -> dict[str, float | None]:
    """The drop rate and the cap of the distance weights in ``epoch``; None where the method has no such thing."""
    return {
        "drop_rate": drop_rate(epoch, method.tau, method.max_epochs) if "tau" not in method.idle else None,
        "weight_cap": weight_cap(epoch, method.max_epochs, method.weight_decay_rate) if method.has("gda") else None,
    }


def _check_finite(values: list[Tensor], names: list[Sequence[str]], epoch: int) -> None:
    """Raise `UserError` at the first step whose loss is not finite in some process of the group; all must ask."""
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
