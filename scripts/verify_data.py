"""Check a dataset before training, and report everything that is wrong with it.

    python scripts/verify_data.py --datasets kvasir --data_root data --json report.json

Nothing is changed. Folders have the layout of docs/data.md; LIDC and MMIS-2024 are --datasets LIDC and MMIS.

Exit code 0: training will read all of it, though there may be warnings; 1: training would stop at the errors; 2: the
command itself is wrong.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2

from dataloaders.dataset_folder import find_dataset, masks_folder
from dataloaders.datasets import NOISE_TYPES, folder_dataset
from dataloaders.verification.checks import Report
from dataloaders.verification.verify import verify_folder
from utils.commands.arguments import add_fewer_masks, add_ignore_label, add_workers, command_parser, number
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import write_json

# As the training scripts for these two sets look for them.
SEVERAL_RATERS = {"lidc": "lidc", **dict.fromkeys(("mmis", "mmis2024", "mmis2024task1"), "MMIS2024TASK1")}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags; those with the names of training flags mean the same."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--datasets", required=True, help="dataset, named as in training; or LIDC, or MMIS")
    add("--data_root", type=Path, default=Path("data"), help="folder that contains the datasets (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--noise_type", choices=NOISE_TYPES, help="check these training masks only (default: all)")
    which.add_argument("--masks", metavar="FOLDER", help="check this folder of training masks instead")
    add(
        "--num_classes", type=number(int, 2, 255), default=2, help="number of classes, background included (default: 2)"
    )
    add_ignore_label(parser)
    add("--image_size", type=number(int, 16), help="training size in pixels (default: 256; 128 for LIDC and MMIS)")
    add("--raters", type=number(int, 1), help="number of raters of LIDC or MMIS (default: 4)")
    add_fewer_masks(parser)
    add("--channels", type=int, choices=(1, 3), help="read grey images as colour (3) or colour images as grey (1)")
    add("--slic_root", type=Path, help="folder of the superpixels (default: the dataset's own)")
    add("--details", type=number(int, 0), default=5, help="number of findings printed per check (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all findings to this file")
    add_workers(parser)
    return parser.parse_args(argv)


def verify(args: argparse.Namespace) -> Report:
    """Check the dataset that the flags name."""
    rest = {"num_classes": args.num_classes, "segment_folder": args.slic_root, "workers": args.workers}
    if args.datasets.lower() in SEVERAL_RATERS:
        from dataloaders.verification.several_raters import verify_lidc, verify_mmis  # with PyTorch: slow to import

        name = SEVERAL_RATERS[args.datasets.lower()]
        folder = args.data_root / name
        for flag in ("noise_type", "masks", "channels", "ignore_label"):
            if getattr(args, flag) is not None:
                raise UserError(f"--{flag} has no meaning for --datasets {args.datasets}: leave it out")
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give --data_root, the folder that holds {name}")
        sizes = (args.raters or 4, args.image_size or 128)
        if name == "lidc":
            return verify_lidc(folder, *sizes, **rest, fewer=args.fewer_masks)
        if args.fewer_masks:
            raise UserError(f"--fewer_masks has no meaning for --datasets {args.datasets}: leave it out")
        return verify_mmis(folder, *sizes, **rest)
    folder, _ = find_dataset(args.data_root, args.datasets)
    for flag in ("raters", "fewer_masks"):
        if getattr(args, flag):
            raise UserError(f"--{flag} has no meaning for --datasets {args.datasets}, one mask an image: leave it out")
    known = folder_dataset(args.datasets)
    rest |= {"channels": args.channels or known.channels, "ignore_label": args.ignore_label}
    rest |= {"masks": masks_folder(folder, args.masks) if args.masks is not None else None}
    return verify_folder(folder, known, args.noise_type, args.image_size or known.image_size, **rest)


def in_words(report: Report, details: int) -> str:
    """The report as text: facts, a table with a row a check, the first findings of each, the verdict."""
    lines = [f"{report.dataset}, for training at --image_size {report.settings['image_size']}"]
    for part, facts in report.facts.get("images", {}).items():
        kinds = [listed((f"{name} ({count})" for name, count in facts[key].items()), 3) for key in ("sizes", "formats")]
        lines.append(f"{part} images: {facts['count']}" + "".join(f"; {kind}" for kind in kinds if kind))
    if report.facts.get("channels"):
        lines.append(f"channels {report.facts['channels']}; intensities: {report.facts['intensities']}")
    for series, facts in report.facts.get("class_shares", {}).items():
        classes = ", ".join(f"{value}: {share:.2%}" for value, share in enumerate(facts["classes"]))
        low, middle, high = (f"{share:.2%}" for share in facts["foreground"])
        foreground = f"foreground {low} to {high}, median {middle}"
        lines.append(f"{series}: {facts['masks']} masks; class shares {classes}; {foreground}")

    lines += ["", f"{'check':<26}{'result':<9}{'count':>6}  first names"]
    for title, result, found in report.checks():
        row = f"{title:<26}{result:<9}{len(found) or '':>6}  {listed((finding.name for finding in found), 2)}"
        lines.append(row.rstrip())
    for title, result, found in report.checks():
        if found and details:
            lines += ["", f"{title}: {result}"]
            lines += [f"  {finding.level}: {finding.name}: {finding.message}" for finding in found[:details]]
            if len(found) > details:
                lines.append(f"  and {len(found) - details} more (--json FILE has all)")
    errors, warnings = report.count("error"), report.count("warning")
    verdict = "training would stop" if errors else "training will read it"
    return "\n".join([*lines, "", f"{errors} errors, {warnings} warnings: {verdict}"])


def main(argv: list[str] | None = None) -> None:
    """Check, print, write, and say by the exit code whether training would stop."""
    args = parse_args(argv)
    cv2.setNumThreads(1)  # the processes take the cores
    report = verify(args)
    print(in_words(report, args.details))
    if args.json:
        write_json(args.json, report.as_json())
    if report.count("error"):
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
