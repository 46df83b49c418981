"""The rooms of the project: who may import whom, how long a training script is, and docstrings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

ROOMS = ("networks", "dataloaders", "utils", "scripts", "benchmarks")
TRAINING_SCRIPTS = sorted(REPO.glob("*.py"))
FILES = sorted(path for room in ROOMS for path in (REPO / room).glob("**/*.py"))


def module_name(path: Path) -> str:
    """utils/method/gsd.py -> utils.method.gsd; a package's __init__.py takes the name of its folder."""
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
OF_THE_METHOD = {"utils.method.losses", "utils.method.settings"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, wherever in it; a module imported from its package too."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; this project imports by full names"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in members}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def identifier(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def in_room(room: str) -> list[Path]:
    return [path for path in FILES if path.relative_to(REPO).parts[0] == room]


def test_imports_are_found_wherever_they_stand(tmp_path):
    source = tmp_path / "a.py"
    source.write_text(
        "import os.path\ndef f():\n    from utils.method import gsd\n    from utils.method.gsd import Batch\n"
    )
    assert imports(source) == {"os.path", "utils.method.gsd"}


# What each room may import of the project and of libraries, beside itself and Python's own; README has the table.
ARRAYS = {"numpy", "scipy", "cv2", "skimage"}
COMMANDS, METHOD = {"utils.commands"}, {"utils.method.gsd", "utils.method.settings"}
MAY_IMPORT = {
    "networks": {"torch", "segmentation_models_pytorch", "safetensors"},
    "utils/method": {"torch"},
    "utils/masks": ARRAYS | COMMANDS,
    # Of the engine two small records: how values become inputs, and which process of a group this is.
    "dataloaders": {
        *{"utils.masks", "utils.engine.intensity", "utils.engine.distributed", *COMMANDS, *METHOD},
        *{"torch", "torchvision", "PIL", "h5py", "tifffile", *ARRAYS},
    },
    # Of masks their sizes alone, to bring arrays to the networks' size.
    "utils/engine": {
        *{"networks", "utils.method", "utils.masks.geometry", *COMMANDS},
        *{"torch", "torchvision", "monai", "matplotlib", "onnx", "onnxscript", *ARRAYS},
    },
    "utils/commands": {"utils.method.settings", "numpy", "tqdm", "filelock"},
    "utils/audit": {"utils.masks", "utils.engine", "torch"} | ARRAYS | COMMANDS,
}


def within(name: str, allowed: set[str]) -> bool:
    """Whether a module is one of ``allowed``, or below one."""
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_each_room_imports_what_it_may(room):
    allowed = MAY_IMPORT[room] | {room.replace("/", ".")} | set(sys.stdlib_module_names)
    files = [path for path in FILES if path.is_relative_to(REPO / room)]
    assert files
    wrong = {identifier(path): {name for name in imports(path) if not within(name, allowed)} for path in files}
    assert not {path: names for path, names in wrong.items() if names}


def test_what_a_room_may_import_is_needed():
    """The table says no more than is true."""
    for room, allowed in MAY_IMPORT.items():
        used = {name for path in FILES if path.is_relative_to(REPO / room) for name in imports(path)}
        idle = {one for one in allowed - ARRAYS if not any(within(name, {one}) for name in used)}
        assert not idle, room


def test_every_file_of_utils_is_in_a_room():
    assert [path.name for path in (REPO / "utils").iterdir() if path.suffix == ".py"] == ["__init__.py"]
    rooms = {path.name for path in (REPO / "utils").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == {room.removeprefix("utils/") for room in MAY_IMPORT if room.startswith("utils/")}


def test_what_two_scripts_share_goes_down_not_sideways():
    assert in_room("scripts")
    assert not {identifier(path) for path in in_room("scripts") if tops(path) & {"scripts", "benchmarks", "tests"}}


@pytest.mark.parametrize("path", in_room("utils") + in_room("dataloaders") + in_room("scripts"), ids=identifier)
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_method_imports_torch_losses_and_settings_only():
    outside = {
        name
        for name in imports(REPO / "utils" / "method" / "gsd.py")
        if name.split(".")[0] not in sys.stdlib_module_names
    }
    assert {name for name in outside if name.split(".")[0] != "torch"} == OF_THE_METHOD


def test_settings_and_arguments_import_no_torch():
    """Whatever they import: --help and refusals of flags answer at once."""
    needed = {"utils.method.settings", "utils.commands.arguments", "utils.commands.errors", "dataloaders.datasets"}
    while more := {name for module in needed for name in imports(MODULES[module]) & MODULES.keys()} - needed:
        needed |= more
    assert not {
        module: tops(MODULES[module]) & {"torch", "numpy", "cv2"}
        for module in needed
        if tops(MODULES[module]) & {"torch", "numpy", "cv2"}
    }


def test_no_import_cycles():
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    assert graph["utils.method.gsd"] == OF_THE_METHOD  # the graph is not empty for want of recognised names
    while graph:
        leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"these modules import each other in a circle, or need one that does: {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in leaves}


@pytest.mark.parametrize("script", TRAINING_SCRIPTS, ids=identifier)
def test_training_script_is_short(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "__init__.py"], ids=identifier)
def test_public_things_have_docstrings(path):
    """Every module, and in the rooms that others import every public function and class."""
    tree = parsed(path)
    lacking = [] if ast.get_docstring(tree) else ["the module"]
    if path.relative_to(REPO).parts[0] in ("utils", "networks", "dataloaders"):
        lacking += [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert not lacking, f"{identifier(path)}: no docstring on {', '.join(lacking)}"


def test_training_scripts_are_there():
    assert REPO / "train_GSD-Net.py" in TRAINING_SCRIPTS


TOP_LEVEL = {
    *("train_GSD-Net.py", "GSD_Net_lidc_each_select1.py", "GSD_Net_MMIS2024_each_select1.py", "train.sh"),
    *("networks", "dataloaders", "utils", "scripts", "tests", "benchmarks", "docs", ".ci", ".github", ".gitignore"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "demo.sh", "test.sh", "pyproject.toml"),
    *("requirements.txt", "requirements-dev.txt", "requirements-extra.txt"),
}


def test_nothing_else_lies_at_the_top():
    listed = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert {name.split("/")[0] for name in listed.stdout.splitlines()} == TOP_LEVEL
