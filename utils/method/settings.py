"""Every setting that decides what a run computes: its fields, and how dataset, fidelity, recipe, --set and flags make
them.

Each field says its range and what it means; a field without a flag is reached by --set NAME=VALUE. Nothing here imports
torch, so that --help answers at once. Errors are ValueErrors with a whole message; the commands make them `UserError`s.
Source: docs/method.md sections 1-5, 7 and 8.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

MODULES = ("selection", "gda", "sgr", "kt")


def _setting(default: Any, meaning: str, low: float = -math.inf, high: float = math.inf, below: bool = False) -> Any:
    """A field from ``low`` to ``high``, the latter left out if ``below``."""
    return field(default=default, metadata={"meaning": meaning, "low": low, "high": high, "below": below})


@dataclass(frozen=True)
class MethodSettings:
    """How a training step computes its loss (docs/method.md sections 1-5 and 7). Every step takes it."""

    method: str = "gsd"
    without: tuple[str, ...] = ()  # of MODULES: what of gsd is switched off
    tau: float = _setting(0.0, "share of the pixels that the selection drops", 0, 1, below=True)
    max_epochs: int = _setting(100, "epochs; schedules are shares of it", 1)
    ratecp: float = _setting(0.5, "foreground share above which knowledge transfer copies the background", 0, 1)
    consistency: float = _setting(
        0.5, "lambda of the selection loss, in which the agreement of the networks has the weight 1 - lambda", 0, 1
    )
    weight_decay_rate: int = _setting(10, "v: the cap of the distance weights falls by this much, from 11", 0)
    warm_up: float = _setting(0.3, "share of the run before refinement and transfer begin", 0, 1, below=True)
    vote: Literal["superpixels", "rings", "pixels"] = _setting(
        "superpixels", "regions whose mean prediction relabels the dropped pixels; with pixels each pixel is a region"
    )
    transfer_loss: Literal["logits", "probabilities"] = _setting(
        "logits", "input of the cross-entropy in knowledge transfer"
    )
    distance: Literal["exact", "floored"] = _setting(
        "exact", "distance to the boundary: exact, or rounded down to whole pixels"
    )
    distance_cap: float = _setting(
        10.0, "largest distance that the weights tell apart, in pixels at training size", 1, 10
    )

    def has(self, module: str) -> bool:
        """Whether a module of GSD-Net is on."""
        return self.method == "gsd" and module not in self.without

    @property
    def idle(self) -> set[str]:
        """The fields that have no effect in this run."""
        idle = set(_OF_GSD) - set(METHODS[self.method].uses)
        return idle.union(*(names for modules, names in _IDLE_WITHOUT if modules <= set(self.without)))

    @property
    def second_phase(self) -> bool:
        """Whether refinement and transfer ever begin."""
        return (self.has("sgr") or self.has("kt")) and self.second_phase_from < self.max_epochs

    @property
    def second_phase_from(self) -> int:
        """The first epoch of refinement and transfer."""
        return math.ceil(self.warm_up * self.max_epochs - 1e-6)  # 1e-6: 0.07 * 100 comes out above 7 in binary


@dataclass(frozen=True)
class RunSettings:
    """What surrounds the method: masks, further loss, optimiser, inputs and augmentation (sections 5 and 8)."""

    contours: Literal["given", "corrected"] = _setting("given", "corrected: moved to the edges in the images")
    dice_weight: float = _setting(0.0, "weight of a Dice loss that is added to the method's loss; 0 adds none", 0)
    optimizer: Literal["sgd", "adamw"] = _setting("sgd", "optimiser of both networks")
    learning_rate: float = _setting(0.005, "initial learning rate", 0)
    schedule: Literal["constant", "cosine"] = _setting("constant", "schedule of the learning rate")
    inputs: Literal["normalised", "raw"] = _setting(
        "normalised", "network inputs: mean 0 and standard deviation 1, or 0..255"
    )
    jitter: float = _setting(0.5, "strength s of the colour jitter", 0, 1)
    max_rotation: float = _setting(0.0, "largest angle, in degrees, of a rotation that half of the images get", 0, 180)
    noise_sigma: float = _setting(
        0.0, "standard deviation, for intensities in [0, 1], of Gaussian noise that half of the images get", 0, 1
    )


@dataclass(frozen=True)
class Method:
    """What is to be known of a method: its step in utils/method, and what it uses of `MethodSettings`."""

    title: str
    step: str  # module.function
    uses: tuple[str, ...] = ()  # what selects pixels uses tau
    learned: tuple[tuple[str, float], ...] = ()  # scalars that its step learns, and their first values

    @property
    def selects(self) -> bool:
        """Whether the method drops pixels by their loss."""
        return "tau" in self.uses


_OF_GSD = tuple(f.name for f in fields(MethodSettings) if f.name not in ("method", "without", "max_epochs"))
METHODS = {
    "gsd": Method("GSD-Net", "gsd.gsd_step", _OF_GSD),
    "ce": Method("cross-entropy", "baselines.ce_step"),
    "gce": Method("generalised cross-entropy", "baselines.gce_step"),
    "sce": Method("symmetric cross-entropy", "baselines.sce_step"),
    "coteaching": Method("co-teaching", "baselines.coteaching_step", ("tau",)),
    "tloss": Method("T-Loss", "baselines.tloss_step", learned=(("log_nu", 1.0),)),
    "jocor": Method("JoCoR", "baselines.jocor_step", ("tau",)),
}
# Section 7: the four points in which the published program departs from the paper.
FIDELITIES: dict[str, dict[str, Any]] = {
    "paper": {},
    "published": {"vote": "rings", "transfer_loss": "probabilities", "distance": "floored", "inputs": "raw"},
}
# Section 8.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "contour": {
        "contours": "corrected",
        "dice_weight": 3.0,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "schedule": "cosine",
    },
}
# What has no effect once these modules are off.
_IDLE_WITHOUT = (
    ({"gda"}, {"weight_decay_rate", "distance", "distance_cap"}),
    ({"sgr"}, {"vote"}),
    ({"kt"}, {"ratecp"}),
    ({"sgr", "kt"}, {"warm_up", "transfer_loss"}),
    ({"selection", "sgr"}, {"tau"}),
)


@dataclass(frozen=True)
class Settings:
    """The settings of one run, and where they come from."""

    method: MethodSettings
    run: RunSettings
    fidelity: str
    recipe: str
    exp: str  # the run's name
    tau_from: str  # in words; AUTO_TAU until the masks are read
    ignores: bool = False  # whether pixels may have no label

    @property
    def wants_tau(self) -> bool:
        """Whether tau is still to be estimated."""
        return self.tau_from == AUTO_TAU

    @property
    def refines(self) -> bool:
        """Whether regions ever vote: on the pixels that are dropped, or that have no label."""
        method = self.method
        return method.has("sgr") and method.second_phase and (method.tau > 0 or self.wants_tau or self.ignores)

    @property
    def superpixels_vote(self) -> bool:
        """Whether the run needs superpixels."""
        return self.refines and self.method.vote == "superpixels"

    def with_tau(self, tau: float, tau_from: str) -> "Settings":
        """These settings with an estimated tau."""
        return replace(self, method=replace(self.method, tau=tau), tau_from=tau_from)

    def recorded(self) -> dict[str, Any]:
        """All of it by name, as args.json has it."""
        own = {"fidelity": self.fidelity, "recipe": self.recipe, "exp": self.exp, "tau_from": self.tau_from}
        return {**asdict(self.method), "without": list(self.method.without), **asdict(self.run), **own}


ESTIMATED = "auto"  # how the words begin that say of an estimated tau where it comes from
AUTO_TAU = f"{ESTIMATED}, estimated on the masks that are trained on"


def resolve(
    flags: Mapping[str, Any],
    dataset: Mapping[str, Any],
    tau_table: float | None,
    clean: bool,
) -> Settings:
    """The settings of a run, in this order, of which the later ones count: dataset, fidelity, recipe, --set, flags.

    flags: what was given, by name: method, fidelity, recipe, without, set (NAME=VALUE texts), exp, tau ("auto" or a
    number) and any field that has a flag; None where a flag was not given. dataset: the fields that the dataset
    changes. tau_table: the paper's tau for the dataset and its noise, None where it has none. clean: whether the masks
    are known to be right. Raises ValueError, with what to write, for what cannot be or has no effect.
    """
    method, fidelity, recipe = (flags[name] for name in ("method", "fidelity", "recipe"))
    without = _modules(method, flags["without"])
    by_set = _by_set(flags["set"] or ())
    given = {name: flags[name] for name in FLAG_FIELDS if name != "tau" and flags.get(name) is not None}
    usual = {**dataset, **FIDELITIES[fidelity], **RECIPES[recipe]}
    values = {**usual, **by_set, **given}
    run_names = {f.name for f in fields(RunSettings)}
    run = _checked(RunSettings(**{name: value for name, value in values.items() if name in run_names}))
    own = {name: value for name, value in values.items() if name not in run_names}
    tau, tau_from = _tau(method, without, flags.get("tau"), tau_table if run.contours == "given" else None, clean)
    settings = _checked(MethodSettings(method=method, without=without, tau=tau, **own))
    ignores = flags.get("ignore_label") is not None
    resolved = Settings(settings, run, fidelity, recipe, "", tau_from, ignores)
    never = settings.tau == 0 and not resolved.wants_tau and not ignores
    if never and method == "gsd" and {"gda", "sgr", "kt"} <= set(without):
        raise ValueError(f"--without {' '.join(without)}: nothing of GSD-Net is left at tau 0; write --method ce")
    idle = settings.idle | ({"vote"} if never else set())
    for name in by_set:
        if name in idle:
            raise ValueError(f"--set {name}={by_set[name]}: of no effect with {where(settings)}; leave it out")
    chosen = by_set | {name: given[name] for name in given if name == "contours"}
    differing = {name: value for name, value in chosen.items() if value != usual.get(name, _FIELDS[name].default)}
    return replace(resolved, exp=flags.get("exp") or _name(flags, without, differing))


def where(method: MethodSettings) -> str:
    """The flags that decide which fields have an effect."""
    off = f" --without {' '.join(method.without)}" if method.without else ""
    return f"--method {method.method}{off}" + " and tau 0" * (METHODS[method.method].selects and method.tau == 0)


def _by_set(texts: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, value = parse_set(text)
        if name in found:
            raise ValueError(f"--set {text}: {name} is set twice; leave one out")
        found[name] = value
    return found


def _modules(method: str, without: Iterable[str] | None) -> tuple[str, ...]:
    off = tuple(module for module in MODULES if module in (without or ()))
    if off and method != "gsd":
        raise ValueError(f"--without {' '.join(off)}: --method {method} has no such modules; leave it out")
    if off == MODULES:
        raise ValueError(f"--without {' '.join(off)}: nothing of GSD-Net is left; write --method ce")
    return off


def _tau(
    method: str, without: tuple[str, ...], given: float | str | None, table: float | None, clean: bool
) -> tuple[float, str]:
    """tau and where it comes from; one rule for all runs."""
    if not METHODS[method].selects or {"selection", "sgr"} <= set(without):
        return 0.0, "none, nothing is selected"
    if given is not None and given != "auto":
        return float(given), "as given"
    if given is None and clean:
        return 0.0, "clean masks"
    if given is None and table is not None:
        return table, "the paper's for this set"
    return 0.0, AUTO_TAU


def _name(flags: Mapping[str, Any], without: tuple[str, ...], differing: Mapping[str, Any]) -> str:
    """The default name of a run: the method and what differs from its defaults."""
    parts = [flags["method"], *(kind for kind in (flags["fidelity"], flags["recipe"]) if kind != "paper")]
    parts += ["without", *without] if without else []
    if flags.get("network") not in (None, "unet"):
        parts.append(flags["network"])
    values = {name: f"{value:g}" if isinstance(value, float) else value for name, value in differing.items()}
    return "-".join([*parts, *(f"{name}-{value}" for name, value in values.items())])


# --- Fields by name ---------------------------------------------------------------------------------------------------

_FIELDS = {f.name: f for kind in (MethodSettings, RunSettings) for f in fields(kind)}
FLAG_FIELDS = ("tau", "max_epochs", "ratecp", "contours", "learning_rate")  # those that have a flag of their own
_FLAGS = ("method", "without", *FLAG_FIELDS)


def parse_set(text: str) -> tuple[str, Any]:
    """NAME=VALUE of --set as the field's name and value. Raises ValueError if there is no such field or value."""
    name, found, value = text.partition("=")
    reachable = [field for field in _FIELDS if field not in _FLAGS]
    if name in _FLAGS:
        raise ValueError(f"--set {text}: {name} has a flag of its own; write --{name} {value}".rstrip())
    if name not in reachable:
        near = get_close_matches(name, [*reachable, *_FLAGS], 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(reachable)}"
        raise ValueError(f"--set {text}: no setting is called {name!a}; {hint}")
    if not found:
        raise ValueError(f"--set {text}: expected {name}=VALUE")
    return name, _checked_value(name, _parsed(name, value))


def _parsed(name: str, text: str) -> Any:
    kind = _FIELDS[name].type
    try:
        if get_origin(kind) is Literal:
            return next(choice for choice in get_args(kind) if str(choice) == text)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)  # type: ignore[operator]
    except (ValueError, KeyError, StopIteration, OverflowError) as error:
        raise ValueError(f"--set {name}={text}: expected {values_of(name)}") from error


def _checked_value(name: str, value: Any) -> Any:
    if isinstance(value, bool | str | tuple):
        return value
    bounds = _FIELDS[name].metadata
    low, high = bounds["low"], bounds["high"]
    if not (math.isfinite(value) and (low <= value < high if bounds["below"] else low <= value <= high)):
        raise ValueError(f"{flag_of(name)} {value:g}: expected {values_of(name)}")
    return value


def _checked(settings: Any) -> Any:
    for name, value in asdict(settings).items():
        _checked_value(name, value)
    return settings


def values_of(name: str) -> str:
    """What a field may be, in words."""
    kind, bounds = _FIELDS[name].type, _FIELDS[name].metadata
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if kind is bool:
        return "true|false"
    return range_in_words(kind, bounds["low"], bounds["high"], bounds["below"])


def range_in_words(kind: Any, low: float, high: float, below: bool) -> str:
    """The numbers from ``low`` to ``high``, the latter left out if ``below``: a whole number from 2 to 255."""
    number = "a whole number" if kind is int else "a number"
    if math.isinf(high):
        return f"{number} from {low:.10g}"
    return f"{number} from {low:.10g} to {'below ' if below else ''}{high:.10g}"


def flag_of(name: str) -> str:
    """How a setting is written on the command line."""
    return f"--set {name}" if name in _FIELDS and name not in _FLAGS else f"--{name}"


def settable() -> list[tuple[str, str, str, str]]:
    """Every field that --set reaches: name, values, default and meaning."""
    return [
        (name, values_of(name), f"{spec.default}", spec.metadata["meaning"])
        for name, spec in _FIELDS.items()
        if name not in _FLAGS
    ]


def help_of_set() -> str:
    """One paragraph on every field that --set reaches, with its default."""
    return "; ".join(f"{name} ({values}; {default}): {meaning}" for name, values, default, meaning in settable())


# --- In words ---------------------------------------------------------------------------------------------------------


def in_words(settings: Settings, superpixels: str = "superpixels") -> str:
    """What is active in a run, in one line: the first that it prints, and the head of its table.

    superpixels: which ones vote. Example: GSD-Net: selection (tau 0.05), GDA, SGR (1024 superpixels), KT from epoch 30.
    """
    method = settings.method
    title = METHODS[method.method].title
    title += " as published" * (settings.fidelity == "published" and method.method == "gsd")
    title += " + contour recipe" * (settings.recipe == "contour")
    begin = f" from epoch {method.second_phase_from}" * method.second_phase
    return "; ".join([f"{title}: {', '.join(_active(settings, superpixels))}{begin}", *_around(settings.run)])


def _active(settings: Settings, superpixels: str) -> Iterable[str]:
    method = settings.method
    tau = "tau auto" if settings.wants_tau else f"tau {method.tau:g}"
    if method.method != "gsd":
        yield f"small-loss selection ({tau})" if METHODS[method.method].selects else "every pixel"
    if method.has("selection"):
        yield f"selection ({tau})"
    if method.has("gda"):
        yield "GDA" + " (whole distances)" * (method.distance == "floored")
    if settings.refines:
        voters = superpixels if method.vote == "superpixels" else method.vote
        yield f"SGR ({voters})" if method.has("selection") else f"SGR ({voters}, {tau})"
    if method.has("kt") and method.second_phase:
        yield "KT" + " (bounded cross-entropy)" * (method.transfer_loss == "probabilities")


def _around(run: RunSettings) -> Iterable[str]:
    """What of a run is not the paper's recipe."""
    if run.contours != RunSettings.contours:
        yield f"contours {run.contours}"
    if run.inputs != RunSettings.inputs:
        yield f"inputs {run.inputs}"
    if run.dice_weight:
        yield f"Dice loss x {run.dice_weight:g}"
    optimiser = (run.optimizer, run.learning_rate, run.schedule)
    if optimiser != (RunSettings.optimizer, RunSettings.learning_rate, RunSettings.schedule):
        yield f"{run.optimizer}, learning rate {run.learning_rate:g} {run.schedule}"
