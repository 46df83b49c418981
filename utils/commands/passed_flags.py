"""The flags after -- that a script passes on to train_GSD-Net.py: those of the script itself count for it as well."""

import argparse
from collections.abc import Collection

from utils.commands.arguments import Parser, add_ignore_label, add_training_arguments
from utils.commands.errors import UserError


def training_parser() -> Parser:
    """The flags of train_GSD-Net.py, all optional."""
    parser = Parser(prog="flags for train_GSD-Net.py, after --", usage=argparse.SUPPRESS, add_help=False)
    parser.script = "train_GSD-Net.py"
    add_training_arguments(parser, image_size=256)
    for name in ("datasets", "noise_type", "masks"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--channels", type=int, choices=(1, 3))
    parser.add_argument("--partial", action="store_true")
    add_ignore_label(parser)
    return parser


def take_passed(
    args: argparse.Namespace, parser: argparse.ArgumentParser, shared: Collection[str], never: Collection[str]
) -> None:
    """Take the flags of ``args.training`` that the script has too, ``shared``, as if they were given before --.

    parser: that of the script, whose defaults tell what was given. never: names of flags that the script sets for each
    training. Raises `UserError` for those, and for a flag that is given before -- and after it with different values.
    What training would not take ends here too, with a message of the parser.
    """
    unset = object()
    names = (*shared, *never)
    # The parser leaves what a namespace has already: so it tells a flag that was given from one with its default.
    found = training_parser().parse_args(args.training, argparse.Namespace(**dict.fromkeys(names, unset)))
    given = {name: getattr(found, name) for name in names if getattr(found, name) is not unset}
    if own := [name for name in never if name in given]:
        flags = ", ".join(f"--{name}" for name in sorted(own))
        raise UserError(f"after --: {flags}: this script sets that itself; leave {flags} out")
    for name, value in given.items():
        before = getattr(args, name)
        if before not in (parser.get_default(name), value):
            raise UserError(f"--{name}: {before} before --, and {value} after it; give it once")
        setattr(args, name, value)
