"""Finished runs side by side: on which masks they were scored, a method over its seeds, differences image by image."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from utils.commands.errors import UserError
from utils.commands.files import read_json
from utils.engine.scores import mean_of

NUMBERS = ("final_dice_mean", "final_dice_std", "final_iou_mean", "epochs", "seconds_per_epoch", "test_cases")
# Settings in which two runs of one method may differ: the seed, names and places, and what follows from these.
OF_A_RUN = {"seed", "exp", "data_root", "slic_root", "output_root", "device", "gpu", "cache", "cache_root"}
OF_A_RUN |= {"intensity", "data", "processes", "class_names"}
TOO_LONG = ("names of the images", "pixels of the masks")  # to be shown in a message
RESAMPLES = 9999  # of the images, for an interval


@dataclass(frozen=True)
class Finished:
    """A complete run, read from its folder; ``label`` tells it from the others."""

    folder: Path
    label: str
    result: dict
    settings: dict  # of args.json; empty where that is not there
    images: dict[str, dict[str, float | None]]  # rows of per_image.csv by image; empty where that is not there

    @property
    def figures(self) -> dict[str, float | None]:
        """The figures to compare: Dice of all and each class and IoU, the means of the last epochs, and HD95."""
        classes = {n: self.result.get(f"final_{n}_mean") for n in self.last if n.startswith("dice_class")}
        named = {"dice": self.result["final_dice_mean"], "iou": self.result.get("final_iou_mean")}
        return named | {"hd95": self.last.get("hd95")} | classes

    @property
    def last(self) -> dict[str, float | None]:
        """The figures of the last epoch."""
        last = self.result.get("last_epoch")
        return last if isinstance(last, dict) else {}

    @property
    def cases(self) -> dict[str, int]:
        """On how many cases the mean of a score stands; empty for runs of older versions."""
        cases = self.result.get("cases")
        return cases if isinstance(cases, dict) else {}

    @property
    def scored_on(self) -> str:
        """What the masks are, in words."""
        return str(self.result.get("scored_on", "not recorded"))


def read_runs(folders: Sequence[Path]) -> list[Finished]:
    """The runs of ``folders``. Raises `UserError` if one is not complete, or if a file of it is damaged."""
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else list(map(str, folders))
    return [_read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _read_run(folder: Path, label: str) -> Finished:
    path, record = folder / "result.json", folder / "args.json"
    remedy = "run it again with --resume when it is removed"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is the run complete?")
    result = read_json(path, remedy)
    if not isinstance(result, dict) or "final_dice_mean" not in result:
        raise UserError(f"{path}: not a run's result, as it has no final_dice_mean; {remedy}")
    settings = read_json(record, "remove it to compare without it") if record.is_file() else {}
    run = Finished(
        folder, label, result, settings if isinstance(settings, dict) else {}, _read_images(folder / "per_image.csv")
    )
    for numbers in ({name: result.get(name) for name in NUMBERS}, run.last, run.figures, run.cases):
        for name, value in numbers.items():
            if not isinstance(value, int | float | None):
                raise UserError(f"{path}: {name} is {value!a}, not a number; {remedy}")
    return run


def _read_images(path: Path) -> dict[str, dict[str, float | None]]:
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.DictReader(file)
            if "image" not in (rows.fieldnames or ()):
                return {}
            return {str(row.pop("image")): {str(k): _number(v) for k, v in row.items()} for row in rows}
    except (csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{path}: not readable as a table ({error}); remove it to compare without it") from error


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return None if math.isnan(value) else value


def differences(runs: Sequence[Finished]) -> list[str]:
    """In words, in what the masks differ that ``runs`` were scored on; empty if in nothing that is known."""
    found = []
    masks = [_masks(run) for run in runs]
    for kind in masks[0]:
        known = {run.label: of_run[kind] for run, of_run in zip(runs, masks, strict=True) if of_run[kind] is not None}
        if len(set(known.values())) > 1:
            values = ", ".join(f"{value} ({label})" for label, value in known.items())
            found.append(f"the {kind} differ" if kind in TOO_LONG else f"{kind}: {values}")
    return found


def _masks(run: Finished) -> dict[str, str | None]:
    """What tells masks apart, in words, each None where the run's folder does not have it."""
    held_out = run.scored_on.startswith("held-out")
    references = {
        image: {name: value for name, value in row.items() if name.startswith("reference_pixels")}
        for image, row in sorted(run.images.items())
    }
    dataset, test_cases = run.settings.get("datasets"), run.result.get("test_cases")
    found = {
        "scored on": run.result.get("scored_on"),
        "scored at": run.result.get("scored_at", "the rule of an older version"),
        "number of cases": test_cases,
        "dataset": str(dataset).lower() if dataset else None,
        "noise of the held-out masks": run.settings.get("noise_type") if held_out else None,
        "names of the images": sorted(run.images) or None,
        "pixels of the masks": references if any(references.values()) else None,
    }
    return {name: None if value is None else str(value) for name, value in found.items()}


class Method(NamedTuple):
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Finished]


def methods_of(runs: Sequence[Finished]) -> tuple[list[Method], list[Finished]]:
    """The runs by method, and those that repeat a seed of their method, which are left out of it.

    A run without args.json is a method of its own.
    """
    groups: dict[str, dict[str, Finished]] = {}
    repeated = []
    for run in runs:
        kept = {name: value for name, value in run.settings.items() if name not in OF_A_RUN}
        key = json.dumps(kept, sort_keys=True) if run.settings else str(run.folder)
        group, seed = groups.setdefault(key, {}), str(run.settings.get("seed"))
        if seed in group:
            repeated.append(run)
        group.setdefault(seed, run)
    return [Method(_label(list(group.values())), list(group.values())) for group in groups.values()], repeated


def _label(runs: Sequence[Finished]) -> str:
    return runs[0].label if len(runs) == 1 else f"{runs[0].label} and {len(runs) - 1} more"


class Spread(NamedTuple):
    """A figure over the seeds of a method: mean, and standard deviation of the sample (n - 1)."""

    mean: float | None
    deviation: float | None


def spread(values: Sequence[float | None]) -> Spread:
    """The `Spread` of those values that are there; the deviation takes two."""
    kept = [value for value in values if value is not None]
    return Spread(mean_of(kept), statistics.stdev(kept) if len(kept) > 1 else None)


class Difference(NamedTuple):
    """How the Dice of one method differs from a baseline's on the same images."""

    images: int
    mean: float  # positive where it is better than the baseline
    low: float | None  # 95 % interval of the mean; None of a single image
    high: float | None
    p: float  # of Wilcoxon's signed-rank test, two-sided


def dice_by_image(method: Method) -> dict[str, float | None]:
    """The Dice of each image after the last epoch, the mean over the method's seeds.

    Raises `UserError` if a run has no per_image.csv with Dice.
    """
    for run in method.runs:
        if not run.images or "dice" not in next(iter(run.images.values())):
            raise UserError(
                f"--baseline: {run.folder / 'per_image.csv'}: no Dice of images there; leave --baseline out"
            )
    return {image: mean_of(run.images[image]["dice"] for run in method.runs) for image in method.runs[0].images}


def paired_difference(values: Mapping[str, float | None], baseline: Mapping[str, float | None]) -> Difference:
    """The mean difference of ``values`` to ``baseline`` over the images that have both, with its 95 % interval (by
    bootstrap over the images, percentiles) and the p value of Wilcoxon's signed-rank test.

    Raises `UserError` if no image has both.
    """
    pairs = [(value, baseline.get(image)) for image, value in values.items()]
    found = np.array([value - other for value, other in pairs if value is not None and other is not None])
    if not len(found):
        raise UserError("--baseline: no image has a Dice in both runs")
    p = float(wilcoxon(found).pvalue) if found.any() else 1.0
    low = high = None
    if len(found) > 1:
        interval = bootstrap(
            (found,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(len(found), float(found.mean()), low, high, p)
