"""Networks by name: the paper's and a library's, offline; --init."""

import json

import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, assert_refused, assert_succeeded, call, write_dataset

from networks.build import check_fit, networks_of, two_networks
from networks.unet import two_unets

LIBRARY = "unet-resnet18"


def library():
    pytest.importorskip("segmentation_models_pytorch", reason="needs requirements-extra.txt")


def differ(one, other):
    """The parameters, of more than one axis, that are not the same."""
    second = dict(other.named_parameters())
    return {name for name, value in one.named_parameters() if value.ndim > 1 and not torch.equal(value, second[name])}


def test_the_papers_is_the_default_one():
    mine, named = two_unets(3, 2, seed=5), two_networks("unet", 3, 2, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), named.state_dict().values(), strict=True))


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 3), (5, 4)])
def test_any_number_of_channels_and_classes(channels, classes):
    library()
    first, second = two_networks(LIBRARY, channels, classes, seed=0)
    assert first.eval()(torch.zeros(1, channels, 64, 64)).shape == (1, classes, 64, 64)
    assert len(differ(first, second)) == sum(value.ndim > 1 for value in first.parameters())  # the encoder too
    again, _ = two_networks(LIBRARY, channels, classes, seed=0)
    assert not differ(first, again)
    assert differ(first, two_networks(LIBRARY, channels, classes, seed=1)[0])


@pytest.mark.parametrize("whole", [False, True])
def test_encoder_weights_of_a_file(tmp_path, whole):
    """Both encoders begin with them, decoders and heads differ; a whole model's file has them too."""
    library()
    source = two_networks(LIBRARY, 3, 2, seed=7)[0]
    torch.save((source if whole else source.encoder).state_dict(), tmp_path / "weights.pth")
    first, second = two_networks(LIBRARY, 3, 2, 0, str(tmp_path / "weights.pth"))
    assert not differ(first.encoder, source.encoder) and not differ(second.encoder, source.encoder)
    different = differ(first, second)
    assert different and not any(name.startswith("encoder") for name in different)
    grey, _ = two_networks(LIBRARY, 1, 2, 0, str(tmp_path / "weights.pth"))
    assert grey.encoder.conv1.weight.shape[1] == 1
    assert torch.equal(grey.encoder.layer1[0].conv1.weight, source.encoder.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    ("name", "weights", "named"),
    [
        ("nonet", "none", "--network"),
        ("unet-nothing", "none", "--network"),
        ("unet", "imagenet", "--encoder_weights"),
        (LIBRARY, "absent.pth", "--encoder_weights"),
    ],
)
def test_names_and_weights_that_are_not_there(name, weights, named):
    if name != "unet":
        library()
    with pytest.raises(ValueError, match=named):
        two_networks(name, 3, 2, 0, weights)


def test_weights_that_are_no_encoders(tmp_path):
    library()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("nothing")
    for path in ("other.pth", "text.pth"):
        with pytest.raises(ValueError, match="--encoder_weights"):
            two_networks(LIBRARY, 3, 2, 0, str(tmp_path / path))


@pytest.mark.parametrize(("name", "size", "fits"), [("fpn-resnet18", 100, 96), ("deeplabv3plus-resnet18", 70, 64)])
def test_a_size_that_does_not_fit_names_the_nearest_that_does(name, size, fits):
    library()
    with pytest.raises(ValueError, match=f"--image_size {size}.*--image_size {fits}"):
        check_fit(name, 3, 2, size, 4)
    check_fit(name, 3, 2, fits, 4)


def test_one_image_a_process(name="unet"):
    check_fit(name, 3, 2, 32, 1)
    with pytest.raises(ValueError, match="--batch_size"):
        check_fit(name, 3, 2, 16, 1)  # the deepest layer has one pixel
    check_fit(name, 3, 2, 16, 2)


def test_a_checkpoint_brings_them_back():
    library()
    networks = two_networks(LIBRARY, 1, 3, seed=0)
    model = {"network": LIBRARY, "in_channels": 1, "num_classes": 3}
    back = networks_of({"model": model, "networks": networks.state_dict()})
    assert not differ(networks[0], back[0]) and not differ(networks[1], back[1])
    for wrong in ({"in_channels": 10**9}, {"num_classes": 2}, {"network": "unet"}):
        with pytest.raises((ValueError, RuntimeError)):
            networks_of({"model": model | wrong, "networks": networks.state_dict()})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a library's network, and what starts others like it."""
    library()
    root = tmp_path_factory.mktemp("networks")
    write_dataset(root / "data", train=6, test=2)
    places = ("--data_root", root / "data", "--output_root", root / "model", "--cache", root / "cache")
    flags = ("--datasets", "kvasir", "--noise_type", "given", "--image_size", 32, "--batch_size", 3, "--tau", 0.1)
    quick = (*flags, *places, "--max_epochs", 1, "--device", "cpu", "--amp", "fp32")
    assert_succeeded(call(TRAIN_SCRIPT, *quick, "--network", LIBRARY))
    return root, quick


def test_a_run_says_and_keeps_its_network(trained, tmp_path):
    root, quick = trained
    run = root / "model" / f"kvasir+gsd-{LIBRARY}+given"
    assert json.loads((run / "args.json").read_text())["network"] == LIBRARY
    assert_succeeded(call(TRAIN_SCRIPT, *quick, "--network", LIBRARY, "--resume"))
    predict = ("--checkpoint", run / "checkpoint.pt", "--images_root", root / "data" / "Kvasir" / "images_test")
    assert_succeeded(call(REPO / "scripts" / "predict.py", *predict, "--save_root", tmp_path))
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_init_goes_on_from_a_checkpoints_networks(trained):
    root, quick = trained
    path = root / "model" / f"kvasir+gsd-{LIBRARY}+given" / "checkpoint.pt"
    assert_succeeded(call(TRAIN_SCRIPT, *quick, "--init", path, "--exp", "more", "--learning_rate", 0))
    run = root / "model" / "kvasir+more+given"
    before, after = (torch.load(p, weights_only=True) for p in (path, run / "checkpoint.pt"))
    assert json.loads((run / "args.json").read_text())["init"] == str(path)
    assert before["model"] == after["model"]  # network, channels, classes and intensity come from it
    names = [name for name, _ in two_networks(LIBRARY, 3, 2, 0).named_parameters()]
    assert all(torch.equal(before["networks"][name], after["networks"][name]) for name in names)


@pytest.mark.parametrize("flags", [("--network", "unet"), ("--num_classes", 3)])
def test_init_of_another_kind_is_refused(trained, flags):
    root, quick = trained
    path = root / "model" / f"kvasir+gsd-{LIBRARY}+given" / "checkpoint.pt"
    if flags[0] == "--num_classes":
        from PIL import Image

        for mask in (root / "data" / "Kvasir").glob("masks*/*.png"):
            Image.fromarray(np.array(Image.open(mask)) // 255).save(mask)
    assert_refused(call(TRAIN_SCRIPT, *quick, "--init", path, "--exp", "other", *flags), flags[0], "--init")


def test_the_three_scripts_have_the_flags():
    for script in (TRAIN_SCRIPT, REPO / "GSD_Net_lidc_each_select1.py", REPO / "GSD_Net_MMIS2024_each_select1.py"):
        text = call(script, "--help").out
        assert all(flag in text for flag in ("--network", "--encoder_weights", "--init"))
