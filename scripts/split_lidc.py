"""Split the slices of LIDC into training and test set by patient, if the data come without a split.

    python scripts/split_lidc.py --lidc_pickle data/lidc/lidc_attributes.pkl

Writes train_idx.npy and test_idx.npy, arrays of slice names, beside the pickle: scripts/README.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.commands.arguments import command_parser, number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import write_array


def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--lidc_pickle", type=Path, required=True, help="file lidc_attributes.pkl")
    parser.add_argument("--save_root", type=Path, help="folder to write both arrays to (default: that of the pickle)")
    parser.add_argument(
        "--test_fraction",
        type=number(float, 0.01, 0.99),
        default=0.2,
        help="share of the patients in the test set (default: %(default)s)",
    )
    parser.add_argument("--seed", type=number(int, 0), default=0, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--raters", type=number(int, 1), default=4, help="number of raters per slice (default: %(default)s)"
    )
    parser.add_argument(
        "--num_classes", type=number(int, 2, 255), default=2, help="number of classes (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing split")
    args = parser.parse_args()

    import numpy as np

    from dataloaders.lidc import read_slices  # with PyTorch, which is slow to import
    from dataloaders.raters import split_by_patient

    folder = args.save_root or args.lidc_pickle.parent
    targets = [folder / "train_idx.npy", folder / "test_idx.npy"]
    present = [path.name for path in targets if path.exists()]
    if present and not args.overwrite:
        raise UserError(f"{folder}: {listed(present)} there already; add --overwrite, or choose another --save_root")

    slices = list(read_slices(args.lidc_pickle, args.raters, args.num_classes).values())
    sides = split_by_patient([piece.patient for piece in slices], args.test_fraction, args.seed)
    for path, side in zip(targets, sides, strict=True):
        chosen = [slices[i] for i in side]
        write_array(path, np.array([piece.name for piece in chosen]))
        print(f"{path}: {len(chosen)} slices of {len({piece.patient for piece in chosen})} patients")


if __name__ == "__main__":
    run_main(main)
