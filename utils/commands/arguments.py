"""The flags that the training scripts share, and what they mean for the method."""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from utils.commands.errors import UserError, is_plain
from utils.method.baselines import METHODS, USES_TAU
from utils.method.gsd import VOTES, GSDConfig

FIDELITY = {  # docs/method.md: "paper" is sections 1-5, "published" section 7, "extended" section 8
    "extended": {
        "vote": "superpixels",
        "transfer_loss": "logits",
        "distance": "exact",
        "inputs": "normalised",
        "weights": "even",
        "label_loss": "ce+dice",
        "contours": "corrected",
        "optimizer": "adamw",
        "schedule": "cosine",
    },
    "paper": {
        "vote": "superpixels",
        "transfer_loss": "logits",
        "distance": "exact",
        "inputs": "normalised",
        "weights": "distance",
        "label_loss": "ce",
        "contours": "given",
        "optimizer": "sgd",
        "schedule": "constant",
    },
    "published": {
        "vote": "rings",
        "transfer_loss": "probabilities",
        "distance": "floored",
        "inputs": "raw",
        "weights": "distance",
        "label_loss": "ce",
        "contours": "given",
        "optimizer": "sgd",
        "schedule": "constant",
    },
}
CHOICES = {  # what each choice of FIDELITY is about
    "vote": "regions whose mean prediction relabels dropped pixels; pixels: each its own; given: labels are kept",
    "transfer_loss": "what the cross-entropy of knowledge transfer is computed on",
    "distance": "distances to the border as they are, or rounded down to whole pixels",
    "inputs": "network inputs of mean 0 and deviation 1, or 0..255",
    "weights": "pixels weigh by their distance to the border, or all alike",
    "label_loss": "loss on the pixels that are kept",
    "contours": "corrected: contours of the masks are moved to the edges that the images show, before training; given "
    "for clean masks and methods other than gsd unless asked for",
    "optimizer": "optimiser",
    "schedule": "learning rate over the run",
}
OF_SECOND_PHASE = ("vote", "transfer_loss", "transfer", "ratecp")  # what acts in refinement and transfer alone
OF_DISTANCES = ("distance", "weight_decay_rate")  # what acts on weights by distance alone
# What the methods to compare with do not have.
OF_GSD = (*OF_SECOND_PHASE, "warm_up", *OF_DISTANCES, "weights", "label_loss", "dice_weight", "consistency")
# docs/method.md sections 1, 2, 4 and 5: the paper's settings, of which its datasets change some.
PAPER: dict[str, float] = {"ratecp": 0.5, "consistency": 0.5, "weight_decay_rate": 10}
TAU = {
    "kvasir": {"02": 0.05, "08": 0.05, "DE": 0.05},
    "shenzhen": {"02": 0.17, "08": 0.17, "DE": 0.17},
    "busuc": {"02": 0.062, "08": 0.08, "DE": 0.045},
}
RATECP = {("shenzhen", "08"): 0.1, ("busuc", "08"): 0.1}  # elsewhere 0.5
JITTER = {"busuc": 0.05}  # elsewhere 0.5
LEARNING_RATE = {"sgd": 0.005, "adamw": 0.001}


def number(kind: type, low: float, high: float = float("inf"), below: bool = False) -> Callable[[str], float]:
    """An argparse type: a number of ``kind`` from ``low`` to ``high``, the latter left out if ``below``."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError) as error:  # the latter: hundreds of digits
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of type {kind.__name__}") from error
        if not (finite and (low <= value < high if below else low <= value <= high)):
            end = ")" if below or math.isinf(high) else "]"
            raise argparse.ArgumentTypeError(f"{text} is outside [{low:g}, {high:g}{end}")
        return value

    return parse


AUTO = "auto"  # --tau: estimated from the training set
MOST_SEED = 2**32 - 1  # which every generator takes


def _by_fidelity(name: str) -> str:
    """The default of a choice of `FIDELITY` in words."""
    values = dict.fromkeys(preset[name] for preset in FIDELITY.values())
    kinds = {value: [kind for kind, preset in FIDELITY.items() if preset[name] == value] for value in values}
    return "; ".join(f"{value} with --fidelity {', '.join(kind)}" for value, kind in kinds.items())


def add_training_arguments(
    parser: argparse.ArgumentParser,
    image_size: int,
    fidelity: str = "extended",
    settings: Mapping[str, float] | None = None,
) -> None:
    """Add the flags that all training scripts have; ``image_size`` and ``fidelity`` are the dataset's defaults.

    settings: those of `resolve_arguments`, for --help, and jitter. None: they are by dataset (and --tau takes "auto"
    too), as `resolve_folder_arguments` has it.
    """
    auto_tau, preset = settings is None, {**PAPER, **(settings or {"jitter": 0.5})}
    tau = number(float, 0, 1, below=True)
    add = parser.add_argument
    add("--data_root", default="data", help="folder that holds the datasets (default: %(default)s)")
    add("--slic_root", help="folder of the superpixels (default: the dataset's own)")
    add("--output_root", default="model", help="folder for run folders (default: %(default)s)")
    add("--exp", help="name of the run, part of its folder's name (default: the method)")
    add("--method", choices=tuple(METHODS), default="gsd", help="gsd, or one to compare it with (default: %(default)s)")
    add(
        "--tau",
        type=(lambda text: text if text == AUTO else tau(text)) if auto_tau else tau,
        help="share of wrong pixels, which the selection drops, in [0, 1)"
        + (
            f"; {AUTO}: estimated from the images and masks, without clean ones (default: 0 where contours are "
            "corrected or masks clean, else the paper's for its datasets)"
            if auto_tau
            else f" (default: {preset['tau']:g}; 0 where contours are corrected)"
        ),
    )
    papers = ", the paper's for its datasets" if auto_tau else ""
    add(
        "--ratecp",
        type=number(float, 0, 1),
        help=f"foreground share above which the background is pasted (default: {preset['ratecp']:g}{papers})",
    )
    add(
        "--consistency",
        type=number(float, 0, 1),
        help=f"lambda of the selection loss (default: {preset['consistency']:g})",
    )
    add(
        "--weight_decay_rate",
        type=number(int, 0),
        help="how far the cap of the distance weights falls from 11 over the run; not the optimiser's weight decay "
        f"(default: {preset['weight_decay_rate']:g})",
    )
    add(
        "--dice_weight",
        type=number(float, 0),
        help=f"of the Dice loss beside the cross-entropy (default: {GSDConfig.dice_weight:g})",
    )
    add(
        "--fidelity",
        choices=tuple(FIDELITY),
        default=fidelity,
        help="paper: the method as described; published: as its authors' program computes it; extended: with what "
        "was found to improve it (docs/method.md sections 7 and 8; default: %(default)s)",
    )
    for name in FIDELITY["paper"]:
        choices = VOTES if name == "vote" else tuple(dict.fromkeys(values[name] for values in FIDELITY.values()))
        add(f"--{name}", choices=choices, help=f"{CHOICES[name]} (default: {_by_fidelity(name)})")
    add(
        "--warm_up",
        type=number(float, 0, 1),
        help="share of the run before refinement and transfer (default: 0.3); 1: never, the default of --fidelity "
        "extended where --tau is 0",
    )
    add(
        "--transfer",
        choices=("paste", "none"),
        help="none: refined labels are learned on the images as they are (default: paste)",
    )
    add(
        "--jitter",
        type=number(float, 0, 1),
        help=f"strength s of the colour jitter (default: {preset['jitter']:g}{papers})",
    )
    add("--image_size", type=number(int, 16), default=image_size, help="training size in pixels (default: %(default)s)")
    add("--num_classes", type=number(int, 2, 255), default=2, help="classes, background included (default: 2)")
    add("--max_epochs", type=number(int, 1), default=100, help="epochs; schedules are shares of it (default: 100)")
    add("--batch_size", type=number(int, 1), default=16, help="images a step (default: %(default)s)")
    add("--learning_rate", type=number(float, 0), help="at the start (default: 0.001 for adamw, 0.005 for sgd)")
    add(
        "--seed",
        type=number(int, 0, MOST_SEED),
        default=2024,
        help="of weights, order, augmentation (default: %(default)s)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    add("--gpu", type=number(int, 0), default=0, help="number of the GPU (default: %(default)s)")
    add(
        "--amp",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="precision of the networks; auto: bf16 where the hardware has it natively",
    )
    add("--compile", action="store_true", help="compile the networks for training; where tried, no faster")
    add("--deterministic", action="store_true", help="on a GPU too the same seed gives the same run, more slowly")
    add(
        "--cache",
        choices=("auto", "ram", "device", "none"),
        default="auto",
        help="training set: ram, files that are mapped into memory; device, copied to the GPU; auto, device where it "
        "takes no more than half of what is free there, else ram; none, read anew at each start (default: %(default)s)",
    )
    add("--cache_root", help="folder of what --cache stores (default: cache)")
    add(
        "--val_fraction",
        type=number(float, 0, 1, below=True),
        default=0.0,
        help="share of the training images, patients or cases held out to choose an epoch by, never the test set "
        "(default: 0; train_GSD-Net.py, where there is no test set: 0.2, to score on)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="continue the run in its folder; start it if there is none"
    )
    either.add_argument("--overwrite", action="store_true", help="start again a run whose folder exists")


def add_rater_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sets with several annotators an image."""
    parser.add_argument("--raters", type=number(int, 1), default=4, help="annotators an image (default: %(default)s)")


def _choose_contours(args: argparse.Namespace) -> None:
    if args.contours is None:  # the correction is GSD-Net's; the other methods see the masks as they are
        args.contours = FIDELITY[args.fidelity]["contours"] if args.method == "gsd" else "given"


def resolve_arguments(args: argparse.Namespace, settings: Mapping[str, float]) -> argparse.Namespace:
    """Fill in what was not given: the run's name, the choices of --fidelity, and ``settings``, the dataset's.

    settings: tau, jitter and what differs from `PAPER`. Raises `UserError` for a flag that would have no effect. Two
    are taken, so that runs compared with each other may share their flags: --tau of a method that selects nothing is
    set to 0, and with --tau 0 those of refinement stay; `tau_in_words` says so.
    """
    args.exp = args.exp or args.method
    if Path(args.exp).name != args.exp or not is_plain(args.exp):
        raise UserError(f"--exp {args.exp!a}: a part of a folder's name, without separators and control characters")
    _choose_contours(args)
    settings = {**PAPER, **settings}
    usual: dict[str, object] = {name: settings[name] for name in (*PAPER, "jitter")}
    usual |= {"transfer": GSDConfig.transfer, "dice_weight": GSDConfig.dice_weight, **FIDELITY[args.fidelity]}
    given = {name for name in (*usual, "warm_up") if getattr(args, name) is not None}
    given -= {name for name in PAPER if getattr(args, name) == settings[name]}  # as it would be anyway
    for name, value in usual.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.tau is None or args.method not in USES_TAU:
        # docs/decisions.md: of corrected masks the selection drops what is right more than wrong
        args.tau = settings["tau"] if args.contours == "given" and args.method in USES_TAU else 0.0
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE[args.optimizer]
    if args.warm_up is None:  # docs/decisions.md: with no label to refine, the second phase is a waste
        args.warm_up = 1.0 if args.fidelity == "extended" and args.tau == 0 else 0.3
    never = "without refinement and transfer, which --warm_up 1, the default with --tau 0, never begins"
    for idle, names, where in (
        (args.method != "gsd", OF_GSD, f"with --method {args.method}"),
        (args.warm_up == 1, OF_SECOND_PHASE, never),
        (args.transfer == "none", ("ratecp",), "with --transfer none"),
        (args.weights == "even", OF_DISTANCES, "with --weights even"),
        (args.label_loss == "ce", ("dice_weight",), "without a Dice loss (--label_loss ce+dice)"),
    ):
        for name in names:
            if idle and name in given:
                raise UserError(f"--{name} {getattr(args, name)}: of no effect {where}; leave it out")
    return args


def resolve_folder_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """`resolve_arguments` for a folder of images with one mask each: the paper's settings of its datasets, and the
    defaults of the others. Ends with a message of the parser where --tau is wanted and not given.
    """
    dataset, noise = args.datasets.lower(), args.noise_type
    if noise == "clean" and args.contours is None:
        args.contours = "given"
    _choose_contours(args)
    tau = 0.0 if noise == "clean" else TAU.get(dataset, {}).get(noise)
    if tau is None:
        if args.tau is None and args.contours == "given" and args.method in USES_TAU:
            parser.error(
                f"--tau: no default for {args.datasets} with {noise} masks; give the share of wrong pixels that you "
                f"expect, for example 0.05, or {AUTO}"
            )
        tau = 0.0
    ratecp, jitter = RATECP.get((dataset, noise), PAPER["ratecp"]), JITTER.get(dataset, 0.5)
    return resolve_arguments(args, {"tau": tau, "ratecp": ratecp, "jitter": jitter})


def tau_in_words(args: argparse.Namespace) -> str:
    """What a run does with --tau, for the line that begins it: a method that selects nothing does nothing."""
    if args.method not in USES_TAU:
        return f"tau not used by {args.method}"
    return f"tau {args.tau}" if args.tau else "tau 0: no pixel is dropped, no label refined"


def gsd_config(args: argparse.Namespace) -> GSDConfig:
    """The method's settings from the flags."""
    return GSDConfig(
        tau=args.tau,
        max_epochs=args.max_epochs,
        ratecp=args.ratecp,
        consistency=args.consistency,
        weight_decay_rate=args.weight_decay_rate,
        warm_up=args.warm_up,
        transfer=args.transfer,
        vote=args.vote,
        transfer_loss=args.transfer_loss,
        distance=args.distance,
        weights=args.weights,
        label_loss=args.label_loss,
        dice_weight=args.dice_weight,
    )
