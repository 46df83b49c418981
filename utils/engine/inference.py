"""A trained model out of its checkpoint alone, and its logits on new images."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from networks.build import networks_of
from utils.commands.errors import UserError
from utils.engine.checkpoint import read_checkpoint_and_digest
from utils.engine.device import at_precision, choose_device, uses_bf16
from utils.engine.evaluation import mean_logits, resized
from utils.engine.intensity import Intensity
from utils.masks.geometry import resize_image
from utils.method.gsd import Network

# The symmetries of the square: flipped or not, then turned by quarters.
SYMMETRIES = tuple((flipped, quarters) for flipped in (False, True) for quarters in range(4))


LARGEST_SIZE = 2**14  # of the side that images are resized to; more is damage


@dataclass(frozen=True)
class Model:
    """The two trained networks, and what must be known to feed them."""

    networks: nn.ModuleList
    forwards: list[Network]  # their passes, at the precision that was asked for
    intensity: Intensity
    num_classes: int
    image_size: int  # side of the square that images are resized to
    stored: str  # how the values of training's files became 0..255, in words
    settings: dict  # of the run that trained it
    sha256: str  # of the checkpoint
    epochs: int  # that it was trained for
    device: torch.device
    bf16: bool
    prepared: dict | None = None  # how scripts/prepare_data.py made the training images; None: it did not

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.intensity.mean)

    def takes(self, channels: int) -> bool:
        """Whether training would have read an image of ``channels`` channels: with --channels grey and colour alike."""
        convertible = self.settings.get("channels") is not None and {channels, self.channels} == {1, 3}
        return channels == self.channels or convertible

    def logits(self, images: Tensor, tta: bool = False) -> Tensor:
        """The mean of both networks' logits, float32 (N,K,S,S) on the model's device, S the model's image size.

        images: uint8 (N,C,S,S) on the CPU. With ``tta`` the mean is over the eight turned and flipped views of each
        image too, turned back before it is taken. Source: docs/method.md section 5.
        """
        views = SYMMETRIES if tta else SYMMETRIES[:1]
        total = torch.zeros((), device=self.device)
        for flipped, quarters in views:
            seen = (images.flip(-1) if flipped else images).rot90(quarters, (-2, -1))
            logits = mean_logits(self.forwards, seen, self.intensity, self.device).rot90(-quarters, (-2, -1))
            total = total + (logits.flip(-1) if flipped else logits)
        return total / len(views)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """The probability of each class at each pixel of an image at its own size, float32 (K,H,W).

        image: uint8, 0..255, (H,W) in grey or (H,W,C). Raises ValueError for anything else.
        """
        stacked = image[..., None] if image.ndim == 2 else image
        if image.dtype != np.uint8 or stacked.ndim != 3 or stacked.shape[2] != self.channels:
            raise ValueError(
                f"an image {image.shape} of {image.dtype}; expected uint8 (H,W,{self.channels})"
                + " or (H,W)" * (self.channels == 1)
            )
        small = torch.tensor(resize_image(stacked, self.image_size)).movedim(-1, 0)[None]
        with torch.no_grad():
            return resized(self.logits(small), stacked.shape[:2])[0].softmax(dim=0).cpu().numpy()

    def predict(self, image: np.ndarray) -> np.ndarray:
        """The class of each pixel of an image at its own size, uint8 (H,W), as scripts/predict.py writes it; image as
        for `probabilities`."""
        return self.probabilities(image).argmax(axis=0).astype(np.uint8)


def load(checkpoint: str | Path, device: str = "auto", amp: str = "auto") -> Model:
    """A trained model, for notebooks and servers: ``load(path).predict(image)``.

    device: auto, cpu or cuda; amp: auto, bf16 or fp32. Raises `UserError` as `load_model`.
    """
    return load_model(Path(checkpoint), choose_device(device, 0), amp)


def load_model(path: Path, device: torch.device, amp: str = "auto") -> Model:
    """The model of a checkpoint.pt or best.pt, ready to predict on ``device``; amp: auto, bf16 or fp32.

    The file need not be trusted: only tensors and plain values are read from it. Raises `UserError` if it is missing,
    broken, no checkpoint of this project, or one whose parts do not fit together.
    """
    checkpoint, sha256 = read_checkpoint_and_digest(path)
    try:
        networks, model = networks_of(checkpoint), checkpoint["model"]
        intensity = Intensity(**{name: tuple(map(float, values)) for name, values in model["intensity"].items()})
        num_classes, image_size = int(model["num_classes"]), int(checkpoint["args"]["image_size"])
        epochs, settings = int(checkpoint["epoch"]), dict(checkpoint["args"])
        stored = str(settings.get("intensity", {}).get("stored", "not recorded"))
    except Exception as error:  # what does not fit together raises nearly any
        reason = str(error).splitlines()[0][:200] if str(error) else "empty"
        raise UserError(
            f"{path}: the networks cannot be made from this checkpoint ({type(error).__name__}: {reason}); "
            "it is damaged or of another version"
        ) from error
    fit = len(intensity.mean) == len(intensity.std) == model["in_channels"] and 16 <= image_size <= LARGEST_SIZE
    if not fit or not all(map(math.isfinite, (*intensity.mean, *intensity.std))) or 0 in intensity.std:
        raise UserError(f"{path}: intensities or image size do not fit the networks; the checkpoint is damaged")
    if not all(values.isfinite().all() for values in networks.state_dict().values()):
        raise UserError(f"{path}: the networks' weights are not all finite; use a checkpoint of an earlier epoch")
    networks = networks.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
    bf16 = uses_bf16(amp, device)
    forwards = [at_precision(network, device, bf16) for network in networks]
    known = (num_classes, image_size, stored, settings, sha256, epochs)
    return Model(networks, forwards, intensity, *known, device, bf16, checkpoint.get("prepared"))
