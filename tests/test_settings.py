"""What the programs compute when no flag says otherwise, and how flags change it, against the tables of docs/method.md
and of the README, copied here by hand."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, load_program
from torch import nn

from dataloaders import datasets, slic
from utils.commands.arguments import settings_of
from utils.commands.errors import UserError
from utils.engine.experiment import learning_rate_at, optimiser_of
from utils.method.settings import FIDELITIES, METHODS, MODULES, MethodSettings, RunSettings, in_words, values_of

LIDC, MMIS = REPO / "GSD_Net_lidc_each_select1.py", REPO / "GSD_Net_MMIS2024_each_select1.py"
SCRIPTS = (TRAIN_SCRIPT, LIDC, MMIS)

# Section 7: the four points; sections 5 and 8: what surrounds the method.
PAPER = {"vote": "superpixels", "transfer_loss": "logits", "distance": "exact", "inputs": "normalised"}
PUBLISHED = {"vote": "rings", "transfer_loss": "probabilities", "distance": "floored", "inputs": "raw"}
PLAIN = {"contours": "given", "dice_weight": 0, "optimizer": "sgd", "learning_rate": 0.005, "schedule": "constant"}
CONTOUR = {"contours": "corrected", "dice_weight": 3, "optimizer": "adamw", "learning_rate": 0.001}
CONTOUR |= {"schedule": "cosine"}
USUAL = {"method": "gsd", "without": (), "max_epochs": 100, "warm_up": 0.3, "consistency": 0.5}
USUAL |= {"weight_decay_rate": 10, "max_rotation": 0, "noise_sigma": 0}

DATASETS = [  # section 5: dataset, noise, tau, ratecp, strength of the jitter
    ("kvasir", "02", 0.05, 0.5, 0.5),
    ("Kvasir", "08", 0.05, 0.5, 0.5),
    ("kvasir", "DE", 0.05, 0.5, 0.5),
    ("shenzhen", "02", 0.17, 0.5, 0.5),
    ("shenzhen", "08", 0.17, 0.1, 0.5),
    ("Shenzhen", "DE", 0.17, 0.5, 0.5),
    ("BUSUC", "02", 0.062, 0.5, 0.05),
    ("busuc", "08", 0.08, 0.1, 0.05),
    ("BUSUC", "DE", 0.045, 0.5, 0.05),
    *((name, "clean", 0, 0.5, jitter) for name, jitter in (("kvasir", 0.5), ("busuc", 0.05), ("mine", 0.5))),
    *((name, "given", "auto", 0.5, 0.5) for name in ("kvasir", "shenzhen", "mine")),
    *(("mine", noise, "auto", 0.5, 0.5) for noise in ("02", "08", "DE")),
]


@pytest.fixture
def resolve(monkeypatch):
    """The settings that a training script makes of its flags."""

    def of(program, *flags):
        monkeypatch.setattr(sys, "argv", [program.name, *map(str, flags)])
        args = load_program(program).parse_arguments()
        if program == TRAIN_SCRIPT:
            known, kind = datasets.folder_dataset(args.datasets), args.noise_type or "given"
            return settings_of(args, known.defaults(kind), known.tau.get(kind), clean=kind == "clean")
        known = datasets.LIDC if program == LIDC else datasets.MMIS
        return settings_of(args, known.defaults("given"), known.tau["given"])

    return of


@pytest.fixture
def mine(resolve):
    """The same of a folder of one's own."""
    return lambda *flags: resolve(TRAIN_SCRIPT, "--datasets", "mine", "--noise_type", "given", *flags)


def named(settings) -> dict:
    """All of the settings, by name."""
    auto = {"tau": "auto"} if settings.wants_tau else {}
    return {**vars(settings.method), **vars(settings.run), **auto, "exp": settings.exp}


def differing(settings, expected) -> dict:
    """The settings that are not as expected."""
    return {name: named(settings)[name] for name, value in expected.items() if named(settings)[name] != value}


# --- What is computed when nothing is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(("dataset", "noise", "tau", "ratecp", "jitter"), DATASETS)
@pytest.mark.parametrize(("fidelity", "choices"), [("paper", PAPER), ("published", PUBLISHED)])
@pytest.mark.parametrize(("recipe", "around"), [("paper", PLAIN), ("contour", CONTOUR)])
def test_folders(resolve, dataset, noise, tau, ratecp, jitter, fidelity, choices, recipe, around):
    flags = ("--datasets", dataset, "--noise_type", noise, "--fidelity", fidelity, "--recipe", recipe)
    settings = resolve(TRAIN_SCRIPT, *flags)
    if recipe == "contour" and noise != "clean":  # the table is about the masks as given
        tau = "auto"
    own = {"tau": tau, "ratecp": ratecp, "jitter": jitter}
    assert not differing(settings, {**USUAL, **choices, **around, **own})
    if (fidelity, recipe) == ("paper", "paper"):
        assert settings == resolve(TRAIN_SCRIPT, *flags[:4])


@pytest.mark.parametrize(
    ("program", "own"),
    [
        (LIDC, {"tau": 0.003, "consistency": 0.9, "jitter": 0.05}),
        (MMIS, {"tau": 0.008, "weight_decay_rate": 5, "jitter": 0.01, "max_rotation": 20, "noise_sigma": 0.1}),
    ],
    ids=["lidc", "mmis"],
)
def test_sets_with_several_raters(resolve, program, own):
    assert not differing(resolve(program), {**USUAL, **PAPER, **PLAIN, "ratecp": 0.5, **own})
    contour = resolve(program, "--recipe", "contour", "--fidelity", "published")
    assert not differing(contour, {**USUAL, **PUBLISHED, **CONTOUR, "ratecp": 0.5, **own, "tau": "auto"})


@pytest.mark.parametrize("program", SCRIPTS, ids=lambda path: path.stem)
def test_flags_without_a_field(monkeypatch, program):
    required = ("--datasets", "mine", "--noise_type", "given") if program == TRAIN_SCRIPT else ()
    monkeypatch.setattr(sys, "argv", [program.name, *required])
    args = vars(load_program(program).parse_arguments())
    usual = {"batch_size": 16, "num_classes": 2, "seed": 2024, "val_fraction": None, "data_root": "data", "gpu": 0}
    usual |= {"output_root": "model", "cache": "cache", "device": "auto", "amp": "auto", "deterministic": False}
    assert usual.items() <= args.items()
    assert args["image_size"] == (256 if program == TRAIN_SCRIPT else 128)
    assert args.get("raters", 4) == 4


def test_channels():
    channels = {name: datasets.folder_dataset(name).channels for name in ("Kvasir", "SHENZHEN", "BUSUC", "mine")}
    assert channels == {"Kvasir": None, "SHENZHEN": None, "BUSUC": 3, "mine": None}
    assert (datasets.LIDC.channels, datasets.MMIS.channels) == (1, 3)


# --- The order in which a setting is resolved -------------------------------------------------------------------------


def test_later_ones_count(resolve):
    """Dataset, fidelity, recipe, --set, flags."""
    busuc = ("--datasets", "busuc", "--noise_type", "08")
    assert resolve(TRAIN_SCRIPT, *busuc, "--set", "jitter=0.2").run.jitter == 0.2
    assert resolve(TRAIN_SCRIPT, *busuc, "--ratecp", 0.3).method.ratecp == 0.3
    published = resolve(TRAIN_SCRIPT, *busuc, "--fidelity", "published", "--set", "inputs=normalised", "vote=pixels")
    assert not differing(published, PUBLISHED | {"inputs": "normalised", "vote": "pixels"})
    contour = resolve(TRAIN_SCRIPT, *busuc, "--recipe", "contour", "--set", "optimizer=sgd", "--learning_rate", 0.01)
    assert not differing(contour, CONTOUR | {"optimizer": "sgd", "learning_rate": 0.01})
    given = resolve(TRAIN_SCRIPT, *busuc, "--recipe", "contour", "--contours", "given")
    assert not differing(given, CONTOUR | {"contours": "given", "tau": 0.08})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", SCRIPTS, ids=lambda path: path.stem)
def test_any_method_takes_any_recipe(resolve, program, method):
    required = ("--datasets", "kvasir", "--noise_type", "02") if program == TRAIN_SCRIPT else ()
    settings = resolve(program, *required, "--method", method, "--recipe", "contour")
    assert not differing(settings, {"method": method, **CONTOUR})
    assert not differing(resolve(program, *required, "--method", method, "--set", "dice_weight=3"), {"dice_weight": 3})


def test_settings_cannot_be_written_to(mine):
    settings = mine()
    for part, name in ((settings, "exp"), (settings.method, "tau"), (settings.run, "jitter")):
        with pytest.raises(AttributeError):
            setattr(part, name, 0)


def test_what_is_recorded_is_all_of_it(mine):
    settings = mine("--without", "kt", "sgr", "--recipe", "contour").with_tau(0.12, "auto, estimated")
    expected = {**named(settings), "without": ["sgr", "kt"], "fidelity": "paper", "recipe": "contour"}
    assert settings.recorded() == expected | {"tau_from": "auto, estimated", "tau": 0.12}


# --- tau: one rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "tau"),
    [
        (("kvasir", "02"), 0.05),
        (("mine", "02"), "auto"),
        (("kvasir", "given"), "auto"),
        (("mine", "clean"), 0),
        (("kvasir", "clean", "--contours", "corrected"), 0),
        (("kvasir", "02", "--contours", "corrected"), "auto"),
        (("kvasir", "02", "--recipe", "contour"), "auto"),
        (("kvasir", "02", "--recipe", "contour", "--contours", "given"), 0.05),
        (("mine", "given", "--contours", "given"), "auto"),
        (("kvasir", "02", "--tau", "auto"), "auto"),
        (("kvasir", "clean", "--tau", "auto"), "auto"),
        (("kvasir", "02", "--tau", 0.3), 0.3),
        (("mine", "given", "--tau", 0), 0),
        (("kvasir", "02", "--method", "coteaching"), 0.05),
        (("mine", "given", "--method", "jocor"), "auto"),
        *((("kvasir", "02", "--method", method, "--tau", 0.3), 0) for method in ("ce", "gce", "sce")),
        (("mine", "given", "--method", "ce", "--tau", "auto"), 0),
        (("kvasir", "02", "--without", "selection"), 0.05),
        (("kvasir", "02", "--without", "sgr"), 0.05),
        (("kvasir", "02", "--without", "selection", "sgr", "--tau", 0.3), 0),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_tau(resolve, flags, tau):
    dataset, noise, *more = flags
    settings = resolve(TRAIN_SCRIPT, "--datasets", dataset, "--noise_type", noise, *more)
    assert named(settings)["tau"] == tau and settings.tau_from
    assert settings.wants_tau == (tau == "auto")


def test_tau_of_any_folder_of_masks(resolve):
    """Not even the paper's own sets have a table for it."""
    for dataset in ("kvasir", "mine"):
        assert resolve(TRAIN_SCRIPT, "--datasets", dataset, "--masks", "masks_mine").wants_tau


@pytest.mark.parametrize("program", [LIDC, MMIS], ids=["lidc", "mmis"])
def test_tau_of_several_raters(resolve, program):
    assert resolve(program, "--contours", "corrected").wants_tau
    assert resolve(program, "--method", "coteaching").method.tau == resolve(program).method.tau > 0
    assert resolve(program, "--method", "ce").method.tau == 0


def test_flags_of_no_effect_are_noted(mine, capsys):
    """Not refused: runs that are compared may share their flags."""
    mine("--tau", 0.1, "--ratecp", 0.2)
    assert capsys.readouterr().err == ""
    mine("--method", "ce", "--tau", 0.1, "--ratecp", 0.2, "--slic_root", "maps")
    said = capsys.readouterr().err
    assert all(flag in said for flag in ("--tau 0.1", "--ratecp 0.2", "--slic_root maps", "--method ce"))
    mine("--without", "kt", "--ratecp", 0.2)
    assert "--ratecp 0.2" in capsys.readouterr().err


# --- Superpixels: where they vote -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "vote"),
    [
        ((), True),
        (("--tau", 0.1), True),
        (("--without", "selection"), True),
        (("--recipe", "contour"), True),
        (("--tau", 0), False),
        (("--without", "sgr"), False),
        (("--fidelity", "published"), False),
        (("--set", "vote=pixels"), False),
        (("--method", "jocor"), False),
        (("--max_epochs", 1), False),
        (("--max_epochs", 2), True),
    ],
)
def test_superpixels_are_needed_where_they_vote(mine, flags, vote):
    assert mine(*flags).superpixels_vote == vote


# --- --set ------------------------------------------------------------------------------------------------------------

SET = [  # the field, what it takes, what it refuses
    ("consistency", (0, 0.25, 1), ("-0.01", "1.01", "nan", "", "x")),
    ("weight_decay_rate", (0, 20), ("-1", "0.5", "inf")),
    ("warm_up", (0, 0.99), ("-0.01", "1", "nan")),
    ("vote", ("superpixels", "rings", "pixels"), ("Rings", "given", "intersections")),
    ("transfer_loss", ("logits", "probabilities"), ("logit",)),
    ("distance", ("exact", "floored"), ("none",)),
    ("distance_cap", (1, 2.5, 10), ("0.9", "10.1", "inf")),
    ("dice_weight", (0, 99.5), ("-0.01", "inf", "nan", "three")),
    ("optimizer", ("sgd", "adamw"), ("adam",)),
    ("schedule", ("constant", "cosine"), ("step",)),
    ("inputs", ("normalised", "raw"), ("0..255",)),
    ("jitter", (0, 1), ("-0.01", "1.01")),
    ("max_rotation", (0, 180), ("-1", "181")),
    ("noise_sigma", (0, 1), ("-0.1", "1.1")),
]


def test_set_reaches_every_field_without_a_flag():
    fields = {*vars(MethodSettings()), *vars(RunSettings())}
    flags = {"method", "without", "tau", "max_epochs", "ratecp", "contours", "learning_rate"}
    assert {name for name, *_ in SET} == fields - flags


@pytest.mark.parametrize(("name", "taken", "refused"), SET)
def test_set(mine, name, taken, refused):
    for value in taken:
        found = named(mine("--tau", 0.1, "--set", f"{name}={value}"))[name]
        assert found == value and type(found) is type((vars(MethodSettings()) | vars(RunSettings()))[name])
    for value in refused:
        with pytest.raises(UserError, match=rf"--set {name}.*expected {re.escape(values_of(name))}"):
            mine("--tau", 0.1, "--set", f"{name}={value}")


def test_each_setting_reaches_its_own_field(mine):
    own = {"consistency": 0.13, "weight_decay_rate": 4, "warm_up": 0.14, "vote": "pixels", "distance": "floored"}
    own |= {"distance_cap": 2.5}
    own |= {"transfer_loss": "probabilities", "dice_weight": 1.5, "optimizer": "adamw", "schedule": "cosine"}
    own |= {"inputs": "raw", "jitter": 0.15, "max_rotation": 7, "noise_sigma": 0.16}
    flags = {"tau": 0.11, "max_epochs": 7, "ratecp": 0.12, "contours": "corrected", "learning_rate": 0.17}
    settings = mine(
        "--set", *(f"{k}={v}" for k, v in own.items()), *(t for k, v in flags.items() for t in (f"--{k}", v))
    )
    assert not differing(settings, {**own, **flags})


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--set", "vot=rings"), ("--set vot=rings", "did you mean vote?")),
        (("--set", "Dice_weight=1"), ("did you mean dice_weight?",)),
        (("--set", "zzz=1"), ("--set zzz=1", "consistency", "noise_sigma")),
        (("--set", "vote"), ("--set vote", "vote=VALUE")),
        (("--set", "tau=0.2"), ("--set tau=0.2", "--tau 0.2")),
        (("--set", "contours=given"), ("--contours given",)),
        (("--set", "method=ce"), ("--method ce",)),
        (("--set", "jitter=0.1", "jitter=0.2"), ("--set jitter=0.2", "twice")),
        (("--method", "ce", "--set", "vote=rings"), ("--set vote=rings", "--method ce")),
        (("--method", "jocor", "--set", "warm_up=0.1"), ("--set warm_up=0.1", "--method jocor")),
        (("--without", "gda", "--set", "distance=floored"), ("--set distance=floored", "--without gda")),
        (("--without", "gda", "--set", "distance_cap=5"), ("--set distance_cap=5", "--without gda")),
        (("--without", "gda", "--set", "weight_decay_rate=5"), ("--set weight_decay_rate=5", "--without gda")),
        (("--without", "sgr", "--set", "vote=rings"), ("--set vote=rings", "--without sgr")),
        (("--without", "kt", "sgr", "--set", "warm_up=0.1"), ("--set warm_up=0.1", "--without sgr kt")),
        (("--without", "kt", "sgr", "--set", "transfer_loss=logits"), ("--set transfer_loss=logits",)),
        (("--tau", 0, "--set", "vote=rings"), ("--set vote=rings", "tau 0")),
        (("--method", "ce", "--without", "kt"), ("--without kt", "--method ce")),
        (("--method", "jocor", "--without", "selection"), ("--without selection", "--method jocor")),
        (("--without", *MODULES), ("--without selection gda sgr kt", "--method ce")),
        (("--without", "gda", "sgr", "kt", "--tau", 0), ("--without gda sgr kt", "tau 0", "--method ce")),
        (("--exp", "a/b"), ("--exp", "a/b")),
        (("--exp", "a\nb"), ("--exp",)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_refused(mine, flags, parts):
    with pytest.raises(UserError) as refused:
        mine(*flags)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_flags_given_twice_both_count(mine):
    settings = mine("--set", "jitter=0.1", "--without", "sgr", "--set", "dice_weight=1", "--without", "kt")
    assert not differing(settings, {"jitter": 0.1, "dice_weight": 1, "without": ("sgr", "kt")})


def test_what_a_switch_leaves_may_be_set(mine):
    for off, name in (("kt", "transfer_loss=probabilities"), ("sgr", "warm_up=0.1"), ("gda", "vote=rings")):
        mine("--without", off, "--set", name)
    mine("--method", "ce", "--set", "jitter=0.1", "inputs=raw", "optimizer=adamw")


# --- Flags ------------------------------------------------------------------------------------------------------------

RANGES = [  # the flag, what it takes, what it refuses
    ("tau", (0, 0.99), (-0.01, 1, "automatic", "nan")),
    ("ratecp", (0, 1), (-0.01, 1.01)),
    ("image_size", (16, 1000), (15, 16.5)),
    ("num_classes", (2, 255), (1, 256)),
    ("max_epochs", (1, 100000), (0, 1.5)),
    ("batch_size", (1, 512), (0, 1.5)),
    ("learning_rate", (0, 1.5), (-0.001, "nan")),
    ("seed", (0, 2**32 - 1), (-1, 2**32, "9" * 400)),
    ("gpu", (0, 7), (-1, 0.5)),
    ("val_fraction", (0, 0.99), (-0.01, 1)),
    ("method", ("gsd", "ce"), ("GSD", "none")),
    ("recipe", ("paper", "contour"), ("extended",)),
    ("contours", ("given", "corrected"), ("moved",)),
    ("without", (), ("dice", "KT")),
]


@pytest.mark.parametrize(("name", "taken", "refused"), RANGES)
def test_ranges(monkeypatch, capsys, name, taken, refused):
    def parsed(value):
        flags = ("--datasets", "mine", "--noise_type", "given", f"--{name}={value}")
        monkeypatch.setattr(sys, "argv", ["train", *flags])
        return getattr(load_program(TRAIN_SCRIPT).parse_arguments(), name)

    for value in taken:
        assert parsed(value) == value
    for value in refused:
        with pytest.raises(SystemExit) as stop:
            parsed(value)
        assert stop.value.code == 2
        assert f"argument --{name}: " in capsys.readouterr().err


@pytest.mark.parametrize("program", SCRIPTS, ids=lambda path: path.stem)
def test_extended_says_what_to_write_now(monkeypatch, capsys, program):
    required = ("--datasets", "mine", "--noise_type", "given") if program == TRAIN_SCRIPT else ()
    monkeypatch.setattr(sys, "argv", [program.name, *required, "--fidelity", "extended"])
    with pytest.raises(SystemExit) as stop:
        load_program(program).parse_arguments()
    message = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "--fidelity" in message and "--recipe contour" in message


@pytest.mark.parametrize("flags", [(), ("--noise_type", "02", "--masks", "masks_mine")], ids=["none", "both"])
def test_which_masks_is_said_once(monkeypatch, capsys, flags):
    monkeypatch.setattr(sys, "argv", ["train", "--datasets", "mine", *flags])
    with pytest.raises(SystemExit) as stop:
        load_program(TRAIN_SCRIPT).parse_arguments()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--noise_type" in error and "--masks" in error


@pytest.mark.parametrize("program", SCRIPTS, ids=lambda path: path.stem)
def test_help_answers_at_once_and_is_short(program):
    """Without PyTorch, and with few flags."""
    command = [sys.executable, "-X", "importtime", str(program), "--help"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0
    assert not re.search(r"\| +(torch|torchvision|cv2|skimage|scipy)$", outcome.stderr, re.MULTILINE)
    flags = re.findall(r"^  (?:-\w, )?(--\w+)", outcome.stdout, re.MULTILINE)
    assert len(flags) == len(set(flags)) <= 36 and {"--method", "--set", "--resume"} <= set(flags)
    assert all(name in outcome.stdout for name, *_ in SET)


# --- Names and words --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "exp"),
    [
        ((), "gsd"),
        (("--recipe", "contour"), "gsd-contour"),
        (("--fidelity", "published"), "gsd-published"),
        (("--without", "sgr"), "gsd-without-sgr"),
        (("--without", "kt", "selection"), "gsd-without-selection-kt"),
        (("--method", "ce", "--recipe", "contour"), "ce-contour"),
        (("--method", "ce", "--set", "dice_weight=3"), "ce-dice_weight-3"),
        (("--recipe", "contour", "--set", "dice_weight=3", "jitter=0.5"), "gsd-contour"),  # which differ from nothing
        (("--set", "vote=rings", "jitter=0.25"), "gsd-vote-rings-jitter-0.25"),
        (("--contours", "corrected"), "gsd-contours-corrected"),
        (("--recipe", "contour", "--contours", "corrected"), "gsd-contour"),
        (("--recipe", "contour", "--contours", "given"), "gsd-contour-contours-given"),
        (("--fidelity", "published", "--recipe", "contour", "--without", "gda"), "gsd-published-contour-without-gda"),
        (("--recipe", "contour", "--exp", "mine"), "mine"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_default_names(mine, flags, exp):
    assert mine(*flags).exp == exp


@pytest.mark.parametrize(
    ("flags", "there", "not_there"),
    [
        ((), ("GSD-Net", "selection", "tau 0.05", "GDA", "SGR", "1024 superpixels", "KT", "epoch 30"), ("contour",)),
        (("--tau", "auto"), ("tau auto",), ()),
        (("--max_epochs", 10), ("epoch 3",), ()),
        (("--without", "sgr"), ("selection", "GDA", "KT"), ("SGR", "superpixels")),
        (("--without", "selection", "gda"), ("SGR", "tau 0.05", "KT"), ("selection", "GDA")),
        (("--without", "sgr", "kt"), ("selection", "GDA"), ("SGR", "KT", "epoch")),
        (("--tau", 0), ("selection", "GDA", "KT", "epoch 30"), ("SGR",)),
        (("--max_epochs", 1), ("selection", "GDA"), ("SGR", "KT", "epoch")),
        (("--fidelity", "published"), ("GSD-Net", "published", "rings", "KT", "inputs raw"), ("superpixels",)),
        (("--recipe", "contour"), ("GSD-Net", "contour recipe", "Dice loss x 3", "adamw", "0.001", "cosine"), ()),
        (("--method", "ce"), ("cross-entropy",), ("GSD", "selection", "tau", "KT")),
        (("--method", "ce", "--set", "dice_weight=3"), ("cross-entropy", "Dice loss x 3"), ("GSD", "contour")),
        (("--method", "ce", "--fidelity", "published"), ("inputs raw",), ("published",)),
        (("--method", "coteaching", "--tau", 0.1), ("co-teaching", "tau 0.1"), ("GSD", "SGR")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_the_first_line_says_what_is_active(resolve, flags, there, not_there):
    settings = resolve(TRAIN_SCRIPT, "--datasets", "kvasir", "--noise_type", "02", *flags)
    line = in_words(settings, "1024 superpixels")
    assert "\n" not in line
    assert not [part for part in there if part not in line], line
    assert not [part for part in not_there if part in line], line


def test_the_documented_first_line(resolve):
    settings = resolve(TRAIN_SCRIPT, "--datasets", "kvasir", "--noise_type", "02")
    line = "GSD-Net: selection (tau 0.05), GDA, SGR (1024 superpixels), KT from epoch 30"
    assert in_words(settings, "1024 superpixels") == line


# --- Optimiser, superpixels, noise ------------------------------------------------------------------------------------


def test_optimisers():
    """Sections 5 and 8."""
    networks = nn.ModuleList([nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)])
    sgd, adamw = optimiser_of("sgd", networks, 0.005), optimiser_of("adamw", networks, 0.001)
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adamw, torch.optim.AdamW)
    for optimiser, expected in (
        (sgd, {"lr": 0.005, "momentum": 0.9, "weight_decay": 1e-5, "dampening": 0, "nesterov": False}),
        (adamw, {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 1e-4}),
    ):
        (group,) = optimiser.param_groups
        assert expected.items() <= group.items()
        assert set(group["params"]) == set(networks.parameters())


def test_learning_rate_schedules():
    assert [learning_rate_at("constant", 0.005, p) for p in (0, 0.5, 1)] == [0.005] * 3
    assert [learning_rate_at("cosine", 0.1, p) for p in (0, 0.5, 1)] == pytest.approx([0.1, 0.0505, 0.001])


def test_superpixels_and_noise(tmp_path):
    """Sections 3 and 6: of the scripts, and of training where it makes superpixels itself."""
    usual = {"n_segments": 1024, "compactness": 10, "sigma": 1}
    assert usual == slic.SETTINGS
    assert [slic.usual_segments(size) for size in (16, 64, 127, 128, 256)] == [16, 256, 1008, 1024, 1024]
    script = load_program(REPO / "scripts" / "generate_SLIC.py")
    args = script.parse_args(["--images_root", str(tmp_path), "--save_root", "maps"])
    assert {**usual, "image_size": 256}.items() <= vars(args).items()
    for flag in ("--lidc_pickle", "--mmis_root"):
        assert {**usual, "image_size": 128}.items() <= vars(script.parse_args([flag, str(tmp_path)])).items()
    args = load_program(REPO / "scripts" / "generate_simulated_noise.py").parse_args(
        ["--gts_root", str(tmp_path), "--save_root", "noisy"]
    )
    noise = {"noisetype": "Markov", "T": 200, "theta1": 0.8, "theta2": 0.05, "range": [9, 11]}
    assert noise.items() <= vars(args).items()


def test_published_is_the_four_points_of_section_7():
    assert FIDELITIES == {"paper": {}, "published": PUBLISHED}
