"""Networks by name: the paper's U-Net, or an architecture and encoder of segmentation-models-pytorch.

Every run trains two networks of one name with different initial weights. Errors are ValueErrors with a whole message.
"""

from pathlib import Path

import torch
from torch import nn

from networks.unet import UNet

PAPER = "unet"  # docs/method.md section 5
NO_WEIGHTS = "none"
INSTALL = "python -m pip install -r requirements-extra.txt"
MOST_CHANNELS = 4096  # of a checkpoint's networks; more is damage
MOST_STEPS = 64  # pixels by which a size that fits may differ from the one that was asked for


def two_networks(
    name: str, in_channels: int, num_classes: int, seed: int, encoder_weights: str = NO_WEIGHTS
) -> nn.ModuleList:
    """The two networks f1, f2 of docs/method.md: images (B,in_channels,H,W) to logits (B,num_classes,H,W).

    name: "unet", or ARCHITECTURE-ENCODER of the library, such as unet-resnet34. Their initial weights are drawn from
    ``seed``, of encoders too where ``encoder_weights`` is "none"; else those are the library's "imagenet" or a file of
    the encoder's weights. Raises ValueError for an unknown name, for weights that are not to be had, and where the
    library is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(_network(name, in_channels, num_classes, encoder_weights) for _ in range(2))


def _network(name: str, in_channels: int, num_classes: int, encoder_weights: str) -> nn.Module:
    if name == PAPER:
        if encoder_weights != NO_WEIGHTS:
            raise ValueError(f"--encoder_weights {encoder_weights}: of no effect with --network {PAPER}; leave it out")
        return UNet(in_channels, num_classes)
    architecture, encoder = _parts(name)
    import segmentation_models_pytorch as smp

    own = None if encoder_weights == NO_WEIGHTS else encoder_weights
    try:
        if own == "imagenet":
            return smp.create_model(architecture, encoder, own, in_channels, num_classes)
        # Three channels, those of the weights; what else the images have is spread over them.
        network = smp.create_model(architecture, encoder, None, 3 if own else in_channels, num_classes)
    except Exception as error:  # the library's and the hub's own, of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"--network {name}: cannot be made ({reason}){_where_weights_are(encoder, own)}") from error
    if own:
        try:
            network.encoder.load_state_dict(_read_weights(Path(own)))
        except Exception as error:  # damaged files raise nearly any
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"--encoder_weights {own}: no weights of the encoder {encoder} ({reason})") from error
        network.encoder.set_in_channels(in_channels, pretrained=True)
    return network


def _parts(name: str) -> tuple[str, str]:
    """The architecture and the encoder that a name stands for. Raises ValueError if the library has no such."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ValueError(
            f"--network {name}: needs the package segmentation-models-pytorch; write {INSTALL}, or leave --network out"
        ) from error
    architecture, _, encoder = name.partition("-")
    known = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if architecture not in known or not encoder:
        raise ValueError(
            f"--network {name}: expected {PAPER}, or ARCHITECTURE-ENCODER such as unet-resnet34 with one of "
            f"{', '.join(known)}"
        )
    if encoder not in smp.encoders.encoders and not encoder.startswith("tu-"):
        raise ValueError(
            f"--network {name}: the library has no encoder {encoder}; there are {', '.join(smp.encoders.encoders)}"
        )
    return architecture, encoder


def _where_weights_are(encoder: str, weights: str | None) -> str:
    """What to do where the library's weights cannot be downloaded."""
    if weights != "imagenet":
        return ""
    import segmentation_models_pytorch as smp

    settings = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    place = settings.get("imagenet", {}).get("repo_id", f"smp-hub/{encoder}.imagenet")
    return (
        f"; where there is no network, get model.safetensors of huggingface.co/{place} elsewhere and write "
        "--encoder_weights FILE, or write --encoder_weights none"
    )


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        weights = load_file(path)
    else:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # A whole model of the library has its encoder's weights under that name.
    prefix = "encoder."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)} or weights


def check_fit(name: str, in_channels: int, num_classes: int, image_size: int, batch: int) -> None:
    """See that a network of this name takes images of ``image_size``, ``batch`` at a time, in training.

    The network runs on tensors without values, where its architecture can. Raises ValueError with the nearest size
    that fits, or with the number of images that it needs.
    """
    try:
        with torch.device("meta"):
            network = _network(name, in_channels, num_classes, NO_WEIGHTS)
    except ValueError:  # some architectures look at values while they are made; what is wrong otherwise is said again
        network = _network(name, in_channels, num_classes, NO_WEIGHTS)
    if problem := _problem(network, in_channels, image_size, max(batch, 2)):
        sizes = (image_size + sign * step for step in range(1, MOST_STEPS + 1) for sign in (-1, 1))
        fitting = next((size for size in sizes if size > 0 and not _problem(network, in_channels, size, 2)), None)
        remedy = f"; --image_size {fitting} fits" if fitting else ""
        raise ValueError(f"--image_size {image_size}: not for --network {name} ({problem}){remedy}")
    if batch == 1 and (problem := _problem(network, in_channels, image_size, 1)):
        raise ValueError(
            f"--batch_size: --network {name} at --image_size {image_size} needs at least two images a process "
            f"({problem})"
        )


def _problem(network: nn.Module, in_channels: int, image_size: int, batch: int) -> str:
    """Why the network does not take such a batch, in one line; empty if it does."""
    device = next(network.parameters()).device
    images = torch.zeros(batch, in_channels, image_size, image_size, device=device)
    try:
        with torch.no_grad():
            found = tuple(network.train()(images).shape[2:])
    except Exception as error:  # each library has its own
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "" if found == (image_size, image_size) else f"its output is {found[0]}x{found[1]}"


def networks_of(checkpoint: dict) -> nn.ModuleList:
    """The two trained networks of a checkpoint (`utils.engine.checkpoint.read_checkpoint`), on the CPU, to predict.

    Raises ValueError or RuntimeError for parts that do not fit together.
    """
    model, weights = checkpoint["model"], checkpoint["networks"]
    # What a damaged file claims must not be made before it is compared with what the file holds.
    if any(values.nbytes > values.untyped_storage().nbytes() for values in weights.values()):
        raise ValueError("weights larger than what is stored of them")
    channels, classes = model["in_channels"], model["num_classes"]
    if not (0 < channels <= MOST_CHANNELS and 2 <= classes <= MOST_CHANNELS):
        raise ValueError(f"{channels} channels and {classes} classes")
    networks = two_networks(model.get("network", PAPER), channels, classes, seed=0)
    # What a method learns beside its networks has no number before its name.
    networks.load_state_dict({key: value for key, value in weights.items() if key.split(".")[0].isdigit()})
    return networks.eval()
