"""What a run found: result.json, per_image.csv and the table that ends it."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from utils.commands.errors import UserError, counted
from utils.engine.evaluation import evaluate
from utils.engine.experiment import Experiment
from utils.engine.run_folder import Run
from utils.engine.score_table import foot, titles_of
from utils.engine.scores import SCORED_AT, as_table, mean_of, set_scores

VALIDATED_ON = "held-out training masks"  # noisy where those are
LAST_EPOCHS = 10  # the reported figure is the mean over these; docs/method.md section 5


def report(experiment: Experiment, run: Run) -> dict:
    """Score the trained networks on every case, write per_image.csv and result.json, and return the result.

    The figure to report is the mean and standard deviation (of the population) over the last ten epochs of the mean
    Dice of each: no epoch is chosen by its score on the test set. Where cases were held out for validation, the scores
    of the epoch that was best on them are given beside it. Source: docs/method.md section 5.
    """
    scores = evaluate(experiment, experiment.cases, surfaces=True)
    figures = set_scores(list(scores.values()))
    last = run.history[-LAST_EPOCHS:]
    final: dict[str, float | None] = {}
    for name in figures.means:
        if name in last[0]:  # surface distances are taken after the last epoch alone
            values = [row[name] for row in last if row[name] is not None]  # all of them or none: it is the references'
            final |= {
                f"final_{name}_mean": mean_of(values),
                f"final_{name}_std": statistics.pstdev(values) if values else None,
            }
    result = {
        **final,
        "averaged_epochs": len(last),
        "epochs": len(run.history),
        "method": run.settings["method"],
        "recipe": run.settings["recipe"],
        "tau": run.settings["tau"],
        "description": experiment.description,
        "last_epoch": figures.means,
        "cases": figures.cases,
        "test_cases": len(scores),
        "scored_on": experiment.scored_on,
        "scored_at": SCORED_AT,
        "waiting": statistics.fmean(row["waiting"] for row in run.history),
        "processes": experiment.group.size,
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
            **set_scores(list(evaluate(experiment, experiment.cases).values())).means,
        }
    run.finish(result, as_table(scores))
    return result


def print_result(result: dict, folder: Path, class_names: Sequence[str] = ()) -> None:
    """The table that ends a run; class_names: of the classes 1..K-1, if any.

    Raises `UserError` if ``result``, which may be of an earlier call, is no run's.
    """
    try:
        lines = list(_result_lines(result, class_names))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        path = folder / "result.json"
        raise UserError(f"{path}: not a run's result ({error!a}); remove it, and --resume makes it again") from error
    print("\n".join(["", *lines, f"  everything is in {folder}"]))


def _result_lines(result: dict, class_names: Sequence[str]) -> Iterator[str]:
    last, cases = result["last_epoch"], result["cases"]
    yield result["description"]
    yield f"{counted(result['epochs'], 'epoch')}, {counted(result['test_cases'], 'case')}, {result['scored_on']}"
    yield f"  {'':<32}{'last epoch':>12}{'cases':>8}{'mean of the last ' + str(result['averaged_epochs']):>24}"
    for name, title in titles_of(last, class_names).items():
        value = "-" if last[name] is None else f"{last[name]:.4f}"
        mean = result.get(f"final_{name}_mean")
        averaged = "" if mean is None else f"{mean:.4f} +- {result[f'final_{name}_std']:.4f}"
        yield f"  {title:<32}{value:>12}{cases[name]:>8}{averaged:>24}".rstrip()
    best = result.get("best_validation")
    if best:
        yield (
            f"  epoch {best['epoch']} was best on the validation cases ({best['validated_on']}), "
            f"{best['val_dice']:.4f}; its test Dice is {'-' if best['dice'] is None else format(best['dice'], '.4f')}"
        )
    yield from foot(last, cases, class_names)
    yield (
        f"  {result['seconds_per_epoch']:.1f} s an epoch ({result['device']}, {result['precision']}), "
        f"{result['waiting']:.1%} of it waiting for data"
    )
