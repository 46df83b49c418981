"""Cut every training image into SLIC superpixels, at the training size.

    python scripts/generate_SLIC.py --images_root data/Kvasir/images --save_root data/Kvasir/images_SLIC
    python scripts/generate_SLIC.py --lidc_pickle data/lidc/lidc_attributes.pkl
    python scripts/generate_SLIC.py --mmis_root data/MMIS2024TASK1

Writes one integer map (image_size, image_size) an image, as .npy of the same name: scripts/README.md; docs/method.md
section 3.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataloaders.files import list_images
from dataloaders.slic import SETTINGS, Sources, image_sources, make_maps, usual_segments
from utils.commands.arguments import add_workers, command_parser
from utils.commands.errors import UserError, run_main


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images_root", type=Path, help="folder of images (PNG, JPEG, BMP, TIFF, .npy)")
    source.add_argument("--lidc_pickle", type=Path, help="lidc_attributes.pkl in place of --images_root")
    source.add_argument(
        "--mmis_root", type=Path, help="folder of MMIS-2024, of which training_2d is read, in place of --images_root"
    )
    parser.add_argument(
        "--save_root",
        type=Path,
        help="folder to write the maps to (default for LIDC and MMIS: lidc_slic, train_2D_slic)",
    )
    parser.add_argument("--raters", type=int, help="number of raters of LIDC or MMIS (default: 4)")
    parser.add_argument("--num_classes", type=int, help="number of classes of LIDC or MMIS (default: 2)")
    parser.add_argument(
        "--n_segments", type=int, help="number of superpixels to aim at (default: 1024, but at most one per 16 pixels)"
    )
    parser.add_argument(
        "--compactness", type=float, help="larger values make squarer superpixels (default: %(default)s)"
    )
    parser.add_argument("--sigma", type=float, help="smoothing before segmentation, in pixels (default: %(default)s)")
    parser.set_defaults(compactness=SETTINGS["compactness"], sigma=SETTINGS["sigma"])
    parser.add_argument("--image_size", type=int, help="training size in pixels (default: 256; 128 for LIDC and MMIS)")
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace maps that are already there")
    args = parser.parse_args(argv)
    if args.save_root is None and args.images_root:
        parser.error("--images_root needs --save_root, the folder of the maps")
    if args.images_root and (args.raters, args.num_classes) != (None, None):
        parser.error("--raters and --num_classes are about the masks of LIDC and MMIS, not about --images_root")
    args.raters = 4 if args.raters is None else args.raters
    args.num_classes = 2 if args.num_classes is None else args.num_classes
    if args.save_root is None:
        args.save_root = args.mmis_root / "train_2D_slic" if args.mmis_root else args.lidc_pickle.parent / "lidc_slic"
    if args.image_size is None:
        args.image_size = 256 if args.images_root else 128
    if args.n_segments is None:
        args.n_segments = usual_segments(args.image_size)

    for flag, valid, wanted in (
        ("--n_segments", args.n_segments >= 1, "at least 1"),
        ("--compactness", 0 < args.compactness < float("inf"), "above 0"),
        ("--sigma", 0 <= args.sigma < float("inf"), "at least 0"),
        ("--image_size", args.image_size >= 1, "at least 1"),
    ):
        if not valid:
            raise UserError(f"{flag} must be {wanted}, got {getattr(args, flag[2:])}")
    return args


def find_images(args: argparse.Namespace) -> Sources:
    """Each image's name, that of its map, and a function that reads it as uint8 (H,W,C)."""
    if args.images_root:
        return image_sources(list_images(args.images_root))
    # These import torch, which a folder of images need not wait for.
    if args.lidc_pickle:
        from dataloaders import lidc

        return lidc.slic_sources(lidc.read_slices(args.lidc_pickle, args.raters, args.num_classes).values())
    from dataloaders import mmis

    return mmis.slic_sources(mmis.list_slices(args.mmis_root / "training_2d"), args.raters, args.num_classes)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    slic = {name: getattr(args, name) for name in SETTINGS}
    origin = args.images_root or args.lidc_pickle or args.mmis_root / "training_2d"
    make_maps(origin, find_images(args), args.save_root, args.image_size, slic, args.workers, args.overwrite)


if __name__ == "__main__":
    run_main(main)
