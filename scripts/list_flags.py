"""Write docs/flags.md: every flag of the training scripts and of scripts/, and every setting that --set reaches.

    python scripts/list_flags.py --save docs/flags.md

The tables are read from the programs' argument parsers. Run it again after a flag has changed; a test compares.
"""

import argparse
import runpy
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.commands.arguments import command_parser
from utils.commands.errors import run_main
from utils.commands.files import write_atomically
from utils.method.settings import help_of_set, settable

ROOT = Path(__file__).resolve().parents[1]
Row = tuple[str, ...]
TYPES = {None: "text", int: "whole number", float: "number", Path: "path"}
HEAD = """# Flags

For those who look up a flag. The pages that explain them: [training.md](training.md), [data.md](data.md),
[audit.md](audit.md), [predict.md](predict.md). This page is written by `python scripts/list_flags.py --save
docs/flags.md`.
"""


class Found(Exception):
    """The parser of a program, which has just read its flags."""


def parser_of(program: Path) -> argparse.ArgumentParser:
    """The argument parser of a program, which does nothing else."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Found(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            runpy.run_path(str(program))["main"]()
        except Found as found:
            return found.args[0]
    raise AssertionError(f"{program} reads no flags")


def values_of(action: argparse.Action) -> str:
    """What may follow a flag."""
    if action.nargs == 0:
        return ""
    if action.metavar:
        values = " ".join([action.metavar] if isinstance(action.metavar, str) else action.metavar)
    elif action.choices:
        values = ", ".join(map(str, action.choices))
    else:
        values = TYPES.get(action.type) or action.type.__name__  # type: ignore[arg-type, union-attr]
    return values + " ..." * (action.nargs in ("+", "*")) + " (required)" * (action.required and action.nargs != "*")


def rows_of(parser: argparse.ArgumentParser) -> list[Row]:
    """A row a flag: its name, its values, its help."""
    return [
        (
            f"`{action.option_strings[-1]}`" if action.option_strings else f"{action.metavar or action.dest}",
            values_of(action),
            (action.help or "").replace(help_of_set(), "See [below](#settings-that---set-reaches).")
            % {**vars(action), "prog": parser.prog},
        )
        for action in parser._actions
        if action.dest != "help"
    ]


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return ["", *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)]


def page() -> str:
    """The whole page: what the training scripts share, their own flags, the settings, and each script of scripts/."""
    head = ("flag", "values", "meaning")
    training = {program.name: rows_of(parser_of(program)) for program in sorted(ROOT.glob("*.py"), reverse=True)}
    first, *others = training.values()
    shared = [row for row in first if all(row in rows for rows in others)]
    lines = [HEAD, "## The three training scripts", *table(head, shared)]
    for name, rows in training.items():
        lines += ["", f"## {name}", "", "Beside those that all three have:"]
        lines += table(head, [row for row in rows if row not in shared])
    lines += ["", "## Settings that --set reaches", *table(("name", "values", "default", "meaning"), settable())]
    for program in sorted((ROOT / "scripts").glob("*.py")):
        lines += ["", f"## {program.name}", *table(head, rows_of(parser_of(program)))]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = command_parser(__doc__)
    parser.add_argument("--save", type=Path, required=True, help="where to write the page, such as docs/flags.md")
    args = parser.parse_args(argv)
    write_atomically(args.save, page().encode())


if __name__ == "__main__":
    run_main(main)
