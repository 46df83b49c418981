"""What the documentation tells a user to type is understood by the programs, and what it links to is there."""

import argparse
import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPO, load_program

from utils.commands.errors import UserError
from utils.method.settings import MethodSettings, RunSettings

PAGES = sorted(path for path in (REPO / "docs").glob("*.md") if path.name != "README.md")
DOCUMENTS = [*sorted(REPO.glob("*.md")), REPO / "scripts" / "README.md", REPO / "docs" / "README.md", *PAGES]
PROGRAMS = sorted(path for folder in (".", "scripts", "benchmarks") for path in (REPO / folder).glob("*.py"))
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


class Understood(Exception):
    """The flags were read."""


def short(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def python_commands(shell: str) -> list[list[str]]:
    """The commands of lines of shell that start Python on a file of this project, with variables put in."""
    commands, variables = [], {}
    for line in re.sub(r"\\\n", " ", shell).splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name} ", f"{value} ")
        words = shlex.split(line, comments=True)
        if len(words) == 1 and (assignment := re.fullmatch(r"(\w+)=(.*)", words[0])):
            variables[assignment[1]] = assignment[2]
        elif len(words) > 1 and words[0] == "python" and words[1].endswith(".py") and "..." not in words:
            commands.append(words[1:])
    return commands


def commands_of(path: Path) -> list[list[str]]:
    """The commands of a document: those of its blocks, then those within its lines."""
    text = path.read_text(encoding="utf-8")
    lines = [line.replace("\n", " ") for line in re.findall(r"`(python [^`]*)`", SHELL.sub("", text))]
    return [command for part in (*SHELL.findall(text), *lines) for command in python_commands(part)]


def documented() -> list[tuple[str, list[str]]]:
    """All commands of the documents and of the programs' docstrings, with where they stand."""
    found = [(short(path), command) for path in DOCUMENTS for command in commands_of(path)]
    for path in PROGRAMS:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines = re.findall(r"^ +(python .*)$", docstring, re.MULTILINE)
        found += [(short(path), command) for line in lines for command in python_commands(line)]
    return found


def read_flags(program: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program read its flags and check them, and no more."""
    module = load_program(REPO / program)
    monkeypatch.setattr(sys, "argv", [program, *flags])
    reader = getattr(module, "parse_args", None) or getattr(module, "parse_arguments", None)
    if reader:
        args = reader()
        if hasattr(module, "settings_of"):  # of a training script: its flags together, of whatever dataset
            module.settings_of(args, {}, None)
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        parse(parser, *arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Understood):
        module.main()


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("where", "command"), documented(), ids=lambda part: part if isinstance(part, str) else part[0]
)
def test_command_is_understood(where, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        read_flags(command[0], command[1:], monkeypatch)
    except SystemExit as error:  # 0: --help
        assert error.code == 0, f"{where} says python {shlex.join(command)}, which ends with {error.code}"
    except UserError as error:  # some look for their folders at once
        assert "no such folder" in str(error), f"{where} says python {shlex.join(command)}: {error}"


def test_every_program_is_documented():
    told = {command[0] for where, command in documented()}
    programs = {short(path) for path in PROGRAMS if "def main(" in path.read_text()}
    assert programs - told == set()


def test_flags_that_are_not_there_are_noticed(monkeypatch):
    for program in ("scripts/generate_SLIC.py", "scripts/split_lidc.py"):
        with pytest.raises(SystemExit):
            read_flags(program, ["--no_such_flag"], monkeypatch)


def test_commands_of_a_block():
    block = 'A="python a.py --x 1"\n$A --y  # why\npython b.py \\\n    --z "two words"\nsh c.sh\npython -m venv d\n'
    assert python_commands(block) == [["a.py", "--x", "1", "--y"], ["b.py", "--z", "two words"]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=short)
def test_links_lead_somewhere(document):
    for link in LINK.findall(document.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), f"{short(document)}: {link}"
        if anchor:
            anchors = {slug(heading) for heading in HEADING.findall(target.read_text(encoding="utf-8"))}
            assert anchor in anchors, f"{short(document)}: {link}"


def test_shell_scripts_are_there():
    named = {name for path in DOCUMENTS for name in re.findall(r"\bsh (\w+\.sh)\b", path.read_text(encoding="utf-8"))}
    assert named == {"demo.sh", "test.sh", "train.sh"}
    assert all((REPO / name).is_file() for name in named)


# --- The pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def list_flags():
    return load_program(REPO / "scripts" / "list_flags.py")


def test_the_page_of_flags_is_that_of_the_parsers(list_flags):
    assert list_flags.page() == (REPO / "docs" / "flags.md").read_text(encoding="utf-8")


def test_the_page_of_flags_has_every_setting(list_flags):
    page = list_flags.page()
    fields = {**MethodSettings.__dataclass_fields__, **RunSettings.__dataclass_fields__}
    assert {name for name in fields if not (f"`--{name}`" in page or f"| {name} |" in page)} == set()


def test_training_has_few_flags(list_flags):
    assert len(list_flags.parser_of(REPO / "train_GSD-Net.py")._actions) <= 36


def test_help_tells_every_default(list_flags):
    for program in [*REPO.glob("*.py"), *(REPO / "scripts").glob("*.py")]:
        for action in list_flags.parser_of(program)._actions:
            told = action.dest == "help" or action.default in (None, False, [], ()) or "default" in action.help
            assert told, f"{short(program)} {action.option_strings}"


def test_the_list_of_pages_is_complete():
    listed = LINK.findall((REPO / "docs" / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == [path.name for path in PAGES]


@pytest.mark.parametrize("page", [REPO / "CHANGELOG.md", REPO / "CONTRIBUTING.md", *PAGES], ids=short)
def test_a_page_says_first_for_whom_it_is(page):
    title, blank, first, *_ = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ") and not blank and first.startswith("For those who ")


def test_the_readme_is_short():
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 250 and len(text.split()) <= 1900


def test_the_citation_is_that_of_the_readme():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    bibtex = dict(re.findall(r"(\w+) += \{(.*?)\}", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL))
    paper = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0" and {"title", "message", "authors"} <= citation.keys()
    assert "license" not in citation  # none has been chosen
    assert paper["title"] == " ".join(bibtex["title"].split())
    assert [author["family-names"] for author in paper["authors"]] == [bibtex["author"].removesuffix(" and others")]
    assert paper["journal"] == bibtex["journal"]
    assert [str(paper[name]) for name in ("volume", "start", "year")] == [
        bibtex[name] for name in ("volume", "pages", "year")
    ]
    assert paper["identifiers"][0]["value"].split(":") == bibtex["note"].split()
