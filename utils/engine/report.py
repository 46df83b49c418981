"""What a run found: result.json, per_image.csv and the table that ends it."""

import statistics
from collections.abc import Collection, Iterator
from pathlib import Path

import torch

from utils.commands.errors import UserError
from utils.engine.evaluation import evaluate, means, take_counts
from utils.engine.experiment import Experiment
from utils.engine.run_folder import Run

VALIDATED_ON = "held-out training masks"  # noisy where those are
LAST_EPOCHS = 10  # the reported figure is the mean over these; docs/method.md section 5


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
        "recipe": run.settings["recipe"],
        "tau": run.settings["tau"],
        "description": experiment.description,
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
        "precision": experiment.precision,
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
    yield result["description"]
    yield f"{result['epochs']} epochs, {result['test_cases']} cases, {result['scored_on']}"
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
