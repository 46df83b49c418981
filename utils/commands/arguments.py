"""The flags of the training scripts, and the settings that they make. Nothing here imports torch."""

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, NoReturn

from utils.commands.errors import UserError, is_main_process, is_plain
from utils.commands.jobs import processors
from utils.method.settings import (
    FIDELITIES,
    METHODS,
    MODULES,
    RECIPES,
    Settings,
    help_of_set,
    range_in_words,
    resolve,
    where,
)

MOST_SEED = 2**32 - 1  # which every generator takes
NO_CACHE = "none"  # --cache: nothing is stored
EXTENDED = (
    "extended is gone: GSD-Net is the default now; add --recipe contour for contour correction, Dice loss and AdamW, "
    "which goes with every method, or write --method ce --recipe contour for what extended came close to"
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line and name the command that lists the flags; exit code 2."""

    script: str | None = None  # whose --help lists the flags; None: the program that was started

    def error(self, message: str) -> NoReturn:
        """`argparse.ArgumentParser.error`, without the usage, which has a line for every flag."""
        script = quote(self.script or sys.argv[0])
        self.exit(2, f"{self.prog}: error: {message}; `python {script} --help` lists the flags\n")


def command_parser(description: str | None) -> Parser:
    """The parser of a program, whose --help begins with ``description`` as it stands."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


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

    parse.__name__ = range_in_words(kind, low, high, below)  # the flag's values in docs/flags.md
    return parse


def _tau(text: str) -> float | str:
    return text if text == "auto" else number(float, 0, 1, below=True)(text)


def _fidelity(text: str) -> str:
    if text == "extended":
        raise argparse.ArgumentTypeError(EXTENDED)
    return text


def add_training_arguments(parser: argparse.ArgumentParser, image_size: int) -> None:
    """Add the flags that all training scripts have; ``image_size`` is the dataset's default."""
    _add_method(parser)
    add = parser.add_argument
    add(
        "--network",
        help="unet is the paper's network. ARCHITECTURE-ENCODER, such as unet-resnet34, is one of "
        "segmentation-models-pytorch (default: unet)",
    )
    add(
        "--encoder_weights",
        default="none",
        metavar="imagenet|none|FILE",
        help="initial weights of such an encoder (default: none)",
    )
    add("--init", metavar="FILE", help="start a new run from the networks of this checkpoint")
    add(
        "--image_size",
        type=number(int, 16),
        default=image_size,
        help="side of the training images in pixels (default: %(default)s)",
    )
    add(
        "--num_classes", type=number(int, 2, 255), default=2, help="number of classes, background included (default: 2)"
    )
    add(
        "--max_epochs",
        type=number(int, 1),
        default=100,
        help="number of epochs; schedules scale with it (default: 100)",
    )
    add("--batch_size", type=number(int, 1), default=16, help="images per step (default: %(default)s)")
    add("--learning_rate", type=number(float, 0), help="initial learning rate (default: the recipe's)")
    add(
        "--seed",
        type=number(int, 0, MOST_SEED),
        default=2024,
        help="random seed of weights, order and augmentation (default: %(default)s)",
    )
    add(
        "--val_fraction",
        type=number(float, 0, 1, below=True),
        help="share of the training images, patients or cases held out to choose the best epoch. Without a test set, "
        "the run is scored on it (default: 0; without a test set 0.2)",
    )
    add("--data_root", default="data", help="folder that contains the datasets (default: %(default)s)")
    add("--slic_root", help="folder of the superpixels (default: the dataset's own)")
    add("--output_root", default="model", help="folder in which each run makes its own folder (default: %(default)s)")
    add(
        "--exp",
        help="name of the run, part of its folder's name (default: the method and what differs from its defaults)",
    )
    add(
        "--cache",
        default="cache",
        metavar="FOLDER",
        help=f"folder that keeps the decoded training set for the next run; {NO_CACHE} keeps nothing (default: cache)",
    )
    add_device(parser)
    add("--deterministic", action="store_true", help="make runs on a GPU repeatable to the bit; slower")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="continue an interrupted run, or start it if there is none"
    )
    either.add_argument("--overwrite", action="store_true", help="replace an existing run")


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--method",
        choices=tuple(METHODS),
        default="gsd",
        help="training method; gsd is GSD-Net, the others are for comparison (default: %(default)s)",
    )
    add(
        "--fidelity",
        type=_fidelity,
        choices=tuple(FIDELITIES),
        default="paper",
        help="gsd as the paper describes it, or as the authors' published program computes it (default: %(default)s)",
    )
    add(
        "--recipe",
        choices=tuple(RECIPES),
        default="paper",
        help="contour works with any method: it moves contours to the edges in the images, adds a Dice loss, and "
        "trains with AdamW and a cosine schedule (default: %(default)s)",
    )
    # "extend": given twice, both count.
    modules = f"switch modules of gsd off: {', '.join(MODULES)}"
    add("--without", nargs="+", action="extend", choices=MODULES, metavar="MODULE", help=modules)
    add("--set", nargs="+", action="extend", metavar="NAME=VALUE", help=f"change other settings. {help_of_set()}")
    add(
        "--tau",
        type=_tau,
        metavar="SHARE|auto",
        help="share of the pixels that the selection drops, in [0, 1). auto estimates it from the training images and "
        "masks (default: 0 for clean masks, the paper's value for its datasets, else auto)",
    )
    add(
        "--ratecp",
        type=number(float, 0, 1),
        help="if more than this share of an image is foreground, knowledge transfer copies its background instead "
        "(default: 0.5; 0.1 for S_E of Shenzhen and BU-SUC)",
    )
    add(
        "--contours",
        choices=("given", "corrected"),
        help="train on the contours as given, or moved to the edges in the images (default: the recipe's)",
    )


def add_device(parser: argparse.ArgumentParser, amp: bool = True) -> None:
    """Add the flags that say where networks compute, and with ``amp`` how precisely."""
    add = parser.add_argument
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto uses a GPU if there is one (default: auto)",
    )
    add("--gpu", type=number(int, 0), default=0, help="index of the GPU (default: %(default)s)")
    if amp:
        add(
            "--amp",
            choices=("auto", "bf16", "fp32"),
            default="auto",
            help="precision of the networks; auto uses bf16 if the hardware supports it natively (default: auto)",
        )


def add_workers(parser: argparse.ArgumentParser, what: str = "number of processes") -> None:
    """Add the flag that says over how many processes, or whatever ``what`` says, the work is spread."""
    parser.add_argument(
        "--workers",
        type=number(int, 1),
        default=processors(),
        help=f"{what} (default: one per processor)",
    )


def add_ignore_label(parser: argparse.ArgumentParser) -> None:
    """Add the flag of masks in which some pixels have no label."""
    parser.add_argument(
        "--ignore_label",
        type=number(int, 0, 255),
        metavar="VALUE",
        help="mask value of pixels without a label; they are neither trained on nor scored",
    )


def add_rater_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sets with several raters an image."""
    parser.add_argument(
        "--raters", type=number(int, 1), default=4, help="number of raters per image (default: %(default)s)"
    )


def add_fewer_masks(parser: argparse.ArgumentParser) -> None:
    """Add the flag of sets in which some slices have fewer masks than there are raters."""
    parser.add_argument(
        "--fewer_masks",
        choices=("empty", "leave_out"),
        help="slices with fewer masks than --raters: add empty ones, or leave the slices out (default: an error)",
    )


def settings_of(
    args: argparse.Namespace, dataset: Mapping[str, Any], tau_table: float | None, clean: bool = False
) -> Settings:
    """The settings of a run, from its flags and what is known of its dataset (`utils.method.settings.resolve`).

    A flag without effect is named on stderr: runs that are compared may share their flags. Raises `UserError`.
    """
    if args.exp and (Path(args.exp).name != args.exp or not is_plain(args.exp)):
        raise UserError(f"--exp {args.exp!a}: a part of a folder's name, without separators and control characters")
    try:
        settings = resolve(vars(args), dataset, tau_table, clean)
    except ValueError as error:
        raise UserError(str(error)) from error
    notes = [
        f"note: --{name} {getattr(args, name)}: of no effect with {where(settings.method)}"
        for name in ("tau", "ratecp")
        if getattr(args, name) is not None and name in settings.method.idle
    ]
    if args.slic_root and not settings.superpixels_vote:
        notes.append(f"note: --slic_root {args.slic_root}: not read, since no superpixels vote in this run")
    if is_main_process():
        for note in notes:
            print(note, file=sys.stderr)
    return settings


def run_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that are no fields of `Settings`, by name, as args.json has them beside those."""
    return {name: value for name, value in vars(args).items() if name not in ("set", "resume", "overwrite")}
