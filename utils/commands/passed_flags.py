"""The flags after -- that a script passes on to train_GSD-Net.py: they must not undo what the script sets itself."""

import argparse
from collections.abc import Collection, Sequence

from utils.commands.arguments import add_training_arguments
from utils.commands.errors import UserError

# What train_GSD-Net.py has beside the flags of all three training scripts.
OF_FOLDERS = (
    "datasets",
    "noise_type",
    "masks",
    "channels",
    "ignore_label",
    "partial",
)


def training_parser() -> argparse.ArgumentParser:
    """The flags of train_GSD-Net.py, all optional."""
    parser = argparse.ArgumentParser(
        prog="flags for train_GSD-Net.py, after --", usage=argparse.SUPPRESS, add_help=False
    )
    add_training_arguments(parser, image_size=256)
    for name in OF_FOLDERS:
        parser.add_argument(f"--{name}")
    return parser


def check_passed(flags: Sequence[str], before: Collection[str], never: Collection[str]) -> None:
    """Raise `UserError` if ``flags`` hold one that the script sets itself, in any form that training would take.

    before, never: names of the flags that are to be given to the script itself, and not at all. What training would
    not take ends here too, with a message of the parser.
    """
    unset = object()
    # The parser leaves what a namespace has already: so it tells a flag that was given from one with its default.
    found = training_parser().parse_args(flags, argparse.Namespace(**dict.fromkeys((*before, *never), unset)))
    given = [name for name in (*before, *never) if getattr(found, name) is not unset]
    if given:
        remedies = [("give {} before --", before), ("leave {} out", never)]
        todo = [text.format(_joined(set(given) & set(names))) for text, names in remedies if set(given) & set(names)]
        raise UserError(f"after --: {_joined(given)}: this script sets that itself; {', '.join(todo)}")


def _joined(names: Collection[str]) -> str:
    return ", ".join(f"--{name}" for name in sorted(names))
