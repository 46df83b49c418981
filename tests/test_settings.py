"""What the programs compute when no flag says otherwise, against the tables of docs/method.md, copied here by hand."""

import sys

import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, load_program
from torch import nn

from dataloaders import slic
from utils.commands.arguments import gsd_config
from utils.engine.experiment import optimiser_of
from utils.method.gsd import GSDConfig

LIDC, MMIS = REPO / "GSD_Net_lidc_each_select1.py", REPO / "GSD_Net_MMIS2024_each_select1.py"

# Section 7: what the two plain forms of the method differ in; section 8: what this project does by default.
PAPER = {"vote": "superpixels", "transfer_loss": "logits", "distance": "exact", "inputs": "normalised"}
PUBLISHED = {"vote": "rings", "transfer_loss": "probabilities", "distance": "floored", "inputs": "raw"}
PLAIN = {"weights": "distance", "label_loss": "ce", "contours": "given", "transfer": "paste"}
PLAIN |= {"optimizer": "sgd", "learning_rate": 0.005, "schedule": "constant", "warm_up": 0.3}
EXTENDED = {**PAPER, "weights": "even", "label_loss": "ce+dice", "dice_weight": 3, "contours": "corrected"}
EXTENDED |= {"optimizer": "adamw", "learning_rate": 0.001, "schedule": "cosine", "tau": 0, "warm_up": 1}

DATASETS = [  # section 5: dataset, noise, tau, ratecp, strength of the jitter, channels
    ("kvasir", "02", 0.05, 0.5, 0.5, None),
    ("Kvasir", "08", 0.05, 0.5, 0.5, None),
    ("kvasir", "DE", 0.05, 0.5, 0.5, None),
    ("shenzhen", "02", 0.17, 0.5, 0.5, None),
    ("shenzhen", "08", 0.17, 0.1, 0.5, None),
    ("Shenzhen", "DE", 0.17, 0.5, 0.5, None),
    ("BUSUC", "02", 0.062, 0.5, 0.05, 3),
    ("busuc", "08", 0.08, 0.1, 0.05, 3),
    ("BUSUC", "DE", 0.045, 0.5, 0.05, 3),
    ("mine", "clean", 0, 0.5, 0.5, None),
]


@pytest.fixture
def settings(monkeypatch):
    """What a training script makes of flags, by name."""

    def of(program, *flags):
        monkeypatch.setattr(sys, "argv", [program.name, *flags])
        return load_program(program).parse_arguments()

    return of


def differing(args, expected):
    """The settings that are not as expected, by name."""
    return {name: getattr(args, name) for name, value in expected.items() if getattr(args, name) != value}


@pytest.mark.parametrize(("dataset", "noise", "tau", "ratecp", "jitter", "channels"), DATASETS)
@pytest.mark.parametrize(("fidelity", "choices"), [("paper", PAPER), ("published", PUBLISHED)])
def test_sets_with_one_mask_an_image(settings, fidelity, choices, dataset, noise, tau, ratecp, jitter, channels):
    args = settings(TRAIN_SCRIPT, "--datasets", dataset, "--noise_type", noise, "--fidelity", fidelity)
    own = {"tau": tau, "ratecp": ratecp, "jitter": jitter, "channels": channels}
    usual = {"consistency": 0.5, "weight_decay_rate": 10, "max_epochs": 100, "batch_size": 16, "image_size": 256}
    assert not differing(args, {"method": "gsd", **choices, **PLAIN, **own, **usual})


@pytest.mark.parametrize(
    ("program", "own"),
    [
        (LIDC, {"tau": 0.003, "consistency": 0.9, "ratecp": 0.5, "weight_decay_rate": 10, "jitter": 0.05}),
        (MMIS, {"tau": 0.008, "consistency": 0.5, "ratecp": 0.5, "weight_decay_rate": 5, "jitter": 0.01}),
    ],
    ids=["lidc", "mmis"],
)
def test_sets_with_several_annotators(settings, program, own):
    """There --fidelity paper is the default: the contour of each annotator is what is to be learned."""
    usual = {"max_epochs": 100, "batch_size": 16, "image_size": 128, "raters": 4, "num_classes": 2}
    assert not differing(settings(program), {"fidelity": "paper", **PAPER, **PLAIN, **own, **usual})


@pytest.mark.parametrize(("dataset", "noise"), [("kvasir", "02"), ("shenzhen", "08"), ("BUSUC", "DE"), ("mine", "02")])
def test_the_default_of_this_project(settings, dataset, noise):
    args = settings(TRAIN_SCRIPT, "--datasets", dataset, "--noise_type", noise)
    assert not differing(args, {"fidelity": "extended", **EXTENDED})


def test_each_setting_reaches_the_method(settings):
    """Under its own name, none in the place of another."""
    own = {"tau": 0.11, "max_epochs": 7, "ratecp": 0.12, "consistency": 0.13, "weight_decay_rate": 4, "warm_up": 0.14}
    own |= {"transfer": "paste", "vote": "intersections", "transfer_loss": "probabilities", "distance": "floored"}
    own |= {"weights": "distance", "label_loss": "ce+dice", "dice_weight": 1.5}
    flags = [text for name, value in own.items() for text in (f"--{name}", str(value))]
    args = settings(TRAIN_SCRIPT, "--datasets", "mine", "--noise_type", "given", *flags)
    assert gsd_config(args) == GSDConfig(**own)


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


def test_superpixels_and_noise(tmp_path):
    """Sections 3 and 6: of the scripts, and of training where it makes superpixels itself."""
    assert slic.SETTINGS == {"n_segments": 1024, "compactness": 10, "sigma": 1}
    script = load_program(REPO / "scripts" / "generate_SLIC.py")
    args = script.parse_args(["--images_root", str(tmp_path), "--save_root", "maps"])
    assert not differing(args, {**slic.SETTINGS, "image_size": 256})
    for flag in ("--lidc_pickle", "--mmis_root"):
        assert not differing(script.parse_args([flag, str(tmp_path)]), {**slic.SETTINGS, "image_size": 128})
    args = load_program(REPO / "scripts" / "generate_simulated_noise.py").parse_args(
        ["--gts_root", str(tmp_path), "--save_root", "noisy"]
    )
    assert not differing(args, {"noisetype": "Markov", "T": 200, "theta1": 0.8, "theta2": 0.05, "range": [9, 11]})


def test_augmentation_of_mmis():
    """Section 5."""
    script = load_program(MMIS)
    assert (script.MAX_ROTATION, script.NOISE_SIGMA) == (20, 0.1)


RANGES = [  # the flag, what it takes, what it refuses
    ("tau", (0, 0.99), (-0.01, 1)),
    ("ratecp", (0, 1), (-0.01, 1.01)),
    ("consistency", (0, 1), (-0.01, 1.01)),
    ("weight_decay_rate", (0, 10), (-1, 0.5)),
    ("dice_weight", (0, 99.5), (-0.01, "inf")),
    ("warm_up", (0, 1), (-0.01, 1.01)),
    ("jitter", (0, 1), (-0.01, 1.01)),
    ("image_size", (16, 1000), (15, 16.5)),
    ("num_classes", (2, 255), (1, 256)),
    ("max_epochs", (1, 100000), (0, 1.5)),
    ("batch_size", (1, 512), (0, 1.5)),
    ("learning_rate", (0, 1.5), (-0.001, "nan")),
    ("seed", (0, 2**32 - 1), (-1, 2**32)),
    ("gpu", (0, 7), (-1, 0.5)),
    ("val_fraction", (0, 0.99), (-0.01, 1)),
]


@pytest.mark.parametrize(("name", "taken", "refused"), RANGES)
def test_ranges(settings, capsys, name, taken, refused):
    usual = ["--datasets", "mine", "--noise_type", "given", "--fidelity", "paper", "--label_loss", "ce+dice"]
    usual += [] if name == "tau" else ["--tau", "0.1"]
    for value in taken:
        assert getattr(settings(TRAIN_SCRIPT, *usual, f"--{name}={value}"), name) == value
    for value in refused:
        with pytest.raises(SystemExit) as stop:
            settings(TRAIN_SCRIPT, *usual, f"--{name}={value}")
        assert stop.value.code == 2
        assert f"argument --{name}: " in capsys.readouterr().err
