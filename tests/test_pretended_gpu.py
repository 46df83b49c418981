"""Training and prediction on a GPU, without one: PyTorch's fake tensors have a device and a shape, but no values.

They tell what a real GPU would refuse, tensors of two devices in one operation, and show where the program asks the GPU
for a value, and so waits for it. What they cannot show are values, times and the backward pass. Whether --deterministic
would be refused shows on the CPU, by the names of the operations of a step.
"""

import argparse
import re
import sys
from functools import partial

import pytest
import torch
from conftest import TRAIN_SCRIPT, load_program
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataloaders.batches import training_batches
from dataloaders.training_set import TrainingSet
from networks.unet import two_unets
from utils.commands.arguments import settings_of
from utils.engine import training
from utils.engine.distributed import ALONE
from utils.engine.evaluation import classes_at, mean_logits
from utils.engine.experiment import Experiment, experiment_of
from utils.engine.inference import Model
from utils.engine.intensity import Intensity
from utils.method.settings import METHODS, Settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
IMAGES, SIZE, BATCH, SEGMENTS = 12, 32, 4, 40
INTENSITY = Intensity((0.5,) * 3, (0.2,) * 3)


class Reads(TorchDispatchMode):
    """Every value that the program asks for is 1, or True; ``of_gpu`` are the operations that fetch one from a GPU."""

    def __init__(self):
        super().__init__()
        self.of_gpu: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        single = operation is torch.ops.aten._local_scalar_dense.default
        result = args[0].dtype == torch.bool or 1 if single else operation(*args, **(kwargs or {}))
        fetched = single or any(isinstance(part, torch.Tensor) and part.is_cpu for part in tree_leaves(result))
        if fetched and any(isinstance(part, torch.Tensor) and part.is_cuda for part in tree_leaves(args)):
            self.of_gpu.append(str(operation))
        return result


@pytest.fixture
def reads(monkeypatch):
    """Pretend that there is a GPU for as long as the test runs; returns what is fetched from it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: values)
    monkeypatch.setattr(torch.nn.ModuleList, "to", lambda networks, *place, **layout: networks)  # made there already
    monkeypatch.setattr(TrainingSet, "ignores", False)  # read once; pretended labels have no values
    reads = Reads()
    with FakeTensorMode(), reads:
        yield reads


def training_set() -> TrainingSet:
    image = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.uint8)
    segments = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.int16)
    colour = image.unsqueeze(1).expand(-1, 3, -1, -1)
    return TrainingSet(tuple(map(str, range(IMAGES))), colour, image, image, segments, SEGMENTS)


def arguments(monkeypatch, *flags: str) -> tuple[argparse.Namespace, Settings]:
    """What train_GSD-Net.py makes of flags."""
    usual = f"--set optimizer=adamw --amp fp32 --max_epochs 2 --batch_size {BATCH} --image_size {SIZE}".split()
    monkeypatch.setattr(sys, "argv", ["train", "--datasets", "kvasir", "--noise_type", "02", *usual, *flags])
    args = load_program(TRAIN_SCRIPT).parse_arguments()
    return args, settings_of(args, {}, 0.05)


def experiment(monkeypatch, data: TrainingSet, *flags: str) -> Experiment:
    """What train_GSD-Net.py would train on ``data``."""
    args, settings = arguments(monkeypatch, *flags)
    with GPU:
        networks = two_unets(3, 2, seed=0)

    def zero_gradients(loss: torch.Tensor) -> None:  # the backward pass wants a real GPU
        assert loss.is_cuda and loss.shape == () and loss.requires_grad
        for weights in networks.parameters():
            weights.grad = torch.zeros_like(weights)

    monkeypatch.setattr(torch.Tensor, "backward", zero_gradients)
    batches = partial(training_batches, data, BATCH, 0.5, INTENSITY, device=GPU)
    monkeypatch.setattr("utils.engine.experiment.networks_of", lambda *asked: ("unet", networks))
    return experiment_of(args, settings, "", 3, GPU, ALONE, len(data), batches, INTENSITY, [])


STEPS = [
    *([], ["--deterministic"], ["--fidelity", "published"], ["--set", "vote=pixels"], ["--recipe", "contour"]),
    *(["--without", module] for module in ("selection", "gda", "sgr", "kt")),
    ["--without", "sgr", "kt"],
    *(["--method", method, "--set", "dice_weight=3"] for method in METHODS),
]


# Where the data are matters to batches alone, which the steps' flags do not change.
@pytest.mark.parametrize(
    ("flags", "place"),
    [*((flags, "cpu") for flags in STEPS), ([], "cuda"), (["--deterministic"], "cuda")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_epoch(reads, monkeypatch, flags, place):
    """Wherever the data are: no operation has tensors of two devices, and no step waits for the GPU."""
    found = []
    monkeypatch.setattr(training, "_check_finite", lambda *loss: found.append(list(reads.of_gpu)))
    trained = experiment(monkeypatch, training_set().to(torch.device(place)), *flags)
    reads.of_gpu.clear()
    epoch = training.train_one_epoch(trained, epoch=1)
    losses, batch, step = epoch.losses, epoch.batch, epoch.step
    assert found == [[]]  # after three steps, which are the epoch, and not before
    assert losses["loss"] == 1 and reads.of_gpu
    both = trained.settings.method.second_phase
    assert ("refined" in step.maps) == both and (losses["transfer1"] is not None) == both
    assert all(part.is_cuda for part in (*batch[:5], step.loss, *step.parts.values(), *step.maps.values()))


def test_prediction(reads, monkeypatch):
    trained = experiment(monkeypatch, training_set())
    images = torch.zeros(5, 3, SIZE, SIZE, dtype=torch.uint8)
    reads.of_gpu.clear()
    classes = classes_at(mean_logits(trained.forwards(trained.networks), images, INTENSITY, GPU), (50, 40))
    assert classes.shape == (5, 50, 40) and classes.dtype == torch.uint8 and not classes.is_cuda
    assert reads.of_gpu == ["aten._to_copy.default"]  # the classes alone
    model = Model(
        trained.networks, trained.forwards(trained.networks), INTENSITY, 2, SIZE, "", {}, "", 1, GPU, bf16=False
    )
    logits = model.logits(images, tta=True)
    assert logits.shape == (5, 2, SIZE, SIZE) and logits.is_cuda
    assert len(reads.of_gpu) == 1


def test_tensors_of_two_devices_are_refused(reads):
    """As on a real GPU: else the tests above could not fail."""
    with pytest.raises(RuntimeError, match=r"two (different )?devices"):
        torch.ones(3, device=GPU) + torch.ones(3)
    float(torch.ones((), device=GPU))
    assert reads.of_gpu == ["aten._local_scalar_dense.default"]


class Names(TorchDispatchMode):
    """Collects the operations that give up on a GPU in deterministic mode, as PyTorch 2.11's libraries have them."""

    GIVE_UP = re.compile(
        r"aten\.(_?adaptive_\w*pool\w*_backward|avg_pool3d_backward|max_pool3d\w*_backward|"
        r"fractional_max_pool\w*_backward|max_unpool\w*|grid_sampler\w*_backward|index_reduce\w*|_ctc_loss\w*_backward|"
        r"_embedding_bag\w*_backward|nll_loss2d_forward|re(?:flect|plicat)ion_pad\w*_backward|scatter_?\.src|"
        r"scatter_reduce\w*|histc|_histc|bincount|put_?|median|nanmedian|_?upsample_(?!nearest)\w*_backward)\b"
    )

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        # Of cross-entropy only the sum and the mean over pixels give up; its fourth argument says which it is.
        a_map = operation is torch.ops.aten.nll_loss2d_forward.default and args[3] == 0
        if self.GIVE_UP.match(str(operation)) and not a_map:
            self.found.add(str(operation))
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        *((method, ()) for method in METHODS),
        ("gsd", ("--fidelity", "published")),
        *((method, ("--recipe", "contour")) for method in ("gsd", "ce")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_training_can_be_deterministic(monkeypatch, method, flags):
    """Run on the CPU, it has but one operation that gives up, which on a GPU PyTorch takes apart into others."""
    args, settings = arguments(monkeypatch, *flags, "--method", method, "--tau", "0.1")
    batches = partial(
        training_batches, training_set(), BATCH, 0.5, INTENSITY, device=CPU, max_rotation=15, noise_sigma=0.1
    )
    trained = experiment_of(args, settings, "", 3, CPU, ALONE, IMAGES, batches, INTENSITY, [])
    with Names() as names:
        training.train_one_epoch(trained, epoch=1)
    assert names.found == {"aten.upsample_bilinear2d_backward.default"}
