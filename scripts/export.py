"""Write a trained model as an ONNX file, to run without this program.

    python scripts/export.py --checkpoint model/kvasir+gsd+02/checkpoint.pt --save kvasir.onnx

Input "images", float32 (N,C,S,S), 0..255, S the training size, any number of images; the normalisation and both
networks are inside. Outputs "logits", the networks' mean, and "probabilities", float32 (N,K,S,S). The file's metadata
have the classes and their names, the size and the channels. docs/predict.md has the ten lines that resize an image
before and the logits after, as scripts/predict.py does.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.commands.arguments import command_parser
from utils.commands.errors import UserError, run_main


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt or best.pt of a run folder")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE.onnx", help="where to write the model")
    parser.add_argument(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="names of the classes 0 (background), 1, ... (default: their numbers)",
    )
    args = parser.parse_args(argv)
    if args.save.suffix.lower() != ".onnx":
        raise UserError(f"--save {args.save}: expected a name that ends in .onnx")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    from utils.engine.export import export_onnx
    from utils.engine.inference import load

    model = load(args.checkpoint, device="cpu", amp="fp32")
    names = args.class_names or list(map(str, range(model.num_classes)))
    if len(names) != model.num_classes:
        raise UserError(f"--class_names {' '.join(names)}: {args.checkpoint} has {model.num_classes} classes")
    export_onnx(model, args.save, names)
    print(
        f"{args.save}: images (N,{model.channels},{model.image_size},{model.image_size}) of 0..255 -> logits and "
        f"probabilities of {model.num_classes} classes ({', '.join(names)})"
    )


if __name__ == "__main__":
    run_main(main)
