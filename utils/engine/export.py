"""A trained model as an ONNX file, which any ONNX runtime runs without this program."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.commands.errors import UserError
from utils.commands.files import write_atomically
from utils.engine.inference import Model

INSTALL = "python -m pip install -r requirements-extra.txt"


class Exported(nn.Module):
    """Images (N,C,S,S), float32, 0..255 -> the mean logits of both networks and the probabilities, (N,K,S,S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model):
        super().__init__()
        self.networks = model.networks
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.intensity, name), dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the class says."""
        inputs = (images / 255 - self.mean) / self.std
        first, second = self.networks
        logits = (first(inputs) + second(inputs)) / 2
        return logits, logits.softmax(dim=1)


def export_onnx(model: Model, path: Path, class_names: list[str]) -> None:
    """Write ``model``, loaded on the CPU in fp32, to ``path``.

    Input "images", outputs "logits" and "probabilities" (`Exported`), with any number of images; the file's metadata
    have the classes and their names, the size and the channels. Raises `UserError` without the packages of
    requirements-extra.txt, and where a network cannot be exported.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # which torch.onnx.export needs
    except ImportError as error:
        raise UserError(f"--save {path}: needs the packages onnx and onnxscript; write {INSTALL}") from error
    size, buffer = model.image_size, io.BytesIO()
    # Two images: of one, the exporter would take the number of images for a constant.
    images = torch.zeros(2, model.channels, size, size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about itself
            torch.onnx.export(
                Exported(model).eval(),
                (images,),
                buffer,  # type: ignore[arg-type]  # files are taken, which its annotation does not say
                input_names=["images"],
                output_names=["logits", "probabilities"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=2**16)}},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path}: this network cannot be exported ({reason})") from error
    graph = onnx.load_from_string(buffer.getvalue())
    properties = {
        "classes": str(model.num_classes),
        "class_names": ",".join(class_names),
        "image_size": str(size),
        "channels": str(model.channels),
        "input": "0..255, float32, (N,C,S,S)",
    }
    onnx.helper.set_model_props(graph, properties)
    onnx.checker.check_model(graph)
    write_atomically(path, graph.SerializeToString())
