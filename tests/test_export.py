"""A trained model as ONNX, and from Python: the same masks as scripts/predict.py writes."""

import re

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, assert_refused, assert_succeeded, call
from PIL import Image

from networks.build import two_networks
from utils.engine.checkpoint import FORMAT
from utils.engine.inference import load

pytest.importorskip("onnxscript", reason="needs requirements-extra.txt")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-extra.txt")

EXPORT, PREDICT = REPO / "scripts" / "export.py", REPO / "scripts" / "predict.py"


def documented_function():
    """The function of docs/predict.md that runs an exported model on one image."""
    text = (REPO / "docs" / "predict.md").read_text(encoding="utf-8")
    code = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in part)
    space: dict = {}
    exec(code.split("\n\nsession")[0], space)  # the example below it opens files
    return space["segment"]


def write_checkpoint(path, channels, classes, size, network="unet"):
    networks = two_networks(network, channels, classes, seed=0)
    with torch.no_grad():
        for one in networks:
            views = 0.5 + 1.4 * torch.randn(4, channels, size, size)
            one.train()(views)  # running figures of batch norm that are not those of the first moment
            if network == "unet":
                one.head.bias -= one.eval()(views).mean(dim=(0, 2, 3))  # no class is ahead everywhere
    torch.save(
        {
            "format": FORMAT,
            "epoch": 1,
            "networks": networks.state_dict(),
            "args": {"image_size": size, "method": "gsd", "channels": None},
            "model": {
                "network": network,
                "in_channels": channels,
                "num_classes": classes,
                "intensity": {"mean": [0.4] * channels, "std": [0.2] * channels},
            },
        },
        path,
    )
    return path


def picture(rng, height, width, channels):
    image = cv2.resize(rng.integers(0, 255, (9, 7, channels), np.uint8), (width, height))
    return image if channels == 3 else image.reshape(height, width)


@pytest.mark.parametrize(("channels", "classes"), [(3, 2), (1, 3)])
def test_masks_are_those_of_predict(tmp_path, channels, classes):
    rng = np.random.default_rng(0)
    checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", channels, classes, 48)
    (tmp_path / "images").mkdir()
    images = {
        f"{i}": picture(rng, *size, channels) for i, size in enumerate([(60, 90), (48, 48), (30, 20), (200, 131)])
    }
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
    flags = ("--checkpoint", checkpoint, "--images_root", tmp_path / "images", "--save_root", tmp_path / "masks")
    assert_succeeded(call(PREDICT, *flags, "--amp", "fp32", "--device", "cpu"))
    assert_succeeded(call(EXPORT, "--checkpoint", checkpoint, "--save", tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    assert (properties["classes"], properties["channels"], properties["image_size"]) == (
        str(classes),
        str(channels),
        "48",
    )
    model, segment = load(checkpoint, device="cpu", amp="fp32"), documented_function()
    same, seen = [], set()
    for name, image in images.items():
        mask = np.array(Image.open(tmp_path / "masks" / f"{name}.png"))
        mask = mask // 255 if classes == 2 else mask
        seen |= set(np.unique(mask).tolist())
        same += [(predicted == mask).ravel() for predicted in (model.predict(image), segment(session, image))]
    assert len(seen) > 1  # or any mask would do
    assert np.concatenate(same).mean() >= 0.9999  # the last digits of a sum depend on the images beside it


def test_any_number_of_images_and_a_networks_of_a_library(tmp_path):
    pytest.importorskip("segmentation_models_pytorch", reason="needs requirements-extra.txt")
    checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", 3, 2, 64, "unet-resnet18")
    names = ("--class_names", "background", "polyp")
    assert_succeeded(call(EXPORT, "--checkpoint", checkpoint, "--save", tmp_path / "m.onnx", *names))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["class_names"] == "background,polyp"
    images = np.random.default_rng(0).integers(0, 255, (5, 3, 64, 64)).astype(np.float32)
    logits, probabilities = session.run(None, {"images": images})
    one_by_one = np.concatenate([session.run(["logits"], {"images": image[None]})[0] for image in images])
    np.testing.assert_allclose(logits, one_by_one, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "named"),
    [(("--save", "m.pt"), "--save"), (("--save", "m.onnx", "--class_names", "a"), "--class_names")],
)
def test_what_cannot_be_exported_is_named(tmp_path, flags, named):
    checkpoint = write_checkpoint(tmp_path / "checkpoint.pt", 1, 2, 32)
    assert_refused(call(EXPORT, "--checkpoint", checkpoint, *flags), named)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)])
def test_arrays_of_another_kind_are_refused(tmp_path, image):
    model = load(write_checkpoint(tmp_path / "checkpoint.pt", 3, 2, 32), device="cpu", amp="fp32")
    with pytest.raises(ValueError, match="expected uint8"):
        model.predict(image)
