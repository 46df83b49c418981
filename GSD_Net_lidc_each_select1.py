"""Train GSD-Net on LIDC with the mask of one rater per slice, and test it against every rater.

    python GSD_Net_lidc_each_select1.py

reads data/lidc (docs/multi_rater.md), trains for 100 epochs and writes model/lidc+gsd+cycle/. Missing superpixels are
made.
"""

import argparse
from collections import Counter
from pathlib import Path

from dataloaders.datasets import LIDC
from utils.commands.arguments import (
    add_fewer_masks,
    add_rater_arguments,
    add_training_arguments,
    command_parser,
    run_flags,
    settings_of,
)
from utils.commands.errors import UserError, counted, is_main_process, run_main
from utils.method.settings import in_words


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--rater_policy",
        default="cycle",
        help="rater whose mask a training slice gets: cycle (rater i mod 4 for slice i), random (drawn from --seed), "
        "or the number of one rater, from 1 (default: %(default)s)",
    )
    add_rater_arguments(parser)
    add_fewer_masks(parser)
    add_training_arguments(parser, LIDC.image_size)
    return parser.parse_args()


def main() -> None:
    """Arguments, settings, data, networks, experiment, run, report."""
    args = parse_arguments()
    settings = settings_of(args, LIDC.defaults("given"), LIDC.tau["given"])

    from dataloaders import lidc
    from dataloaders.batches import epochs_of
    from dataloaders.files import contents_of
    from dataloaders.raters import choose_raters, hold_out
    from dataloaders.slic import find_maps, segments_in_words, superpixel_folder
    from dataloaders.training_set import load_training_set
    from utils.engine.checkpoint import read_start
    from utils.engine.device import choose_device
    from utils.engine.distributed import join_process_group, leave_process_group
    from utils.engine.experiment import experiment_of
    from utils.engine.intensity import Intensity
    from utils.engine.report import print_result
    from utils.engine.run_folder import Run, check_free
    from utils.engine.training import fit

    folder = Path(args.output_root) / f"lidc+{settings.exp}+{args.rater_policy}"
    if is_main_process():
        check_free(folder, args.resume, args.overwrite)
    dataset = Path(args.data_root) / "lidc"
    slic = superpixel_folder(dataset / LIDC.layout.segments, args.image_size, LIDC.image_size, args.slic_root)
    superpixels = segments_in_words(slic, args.image_size) if settings.superpixels_vote else ""
    print(in_words(settings, superpixels))
    pickled = contents_of([dataset / lidc.PICKLE])
    slices = lidc.read_slices(dataset / lidc.PICKLE, args.raters, args.num_classes)
    train, test = lidc.with_all_masks(
        dataset / lidc.PICKLE, lidc.read_split(dataset, slices), args.raters, args.fewer_masks
    )
    # Before the hold-out, so that a slice's rater does not depend on it.
    read_by = zip(train, choose_raters(len(train), args.rater_policy, args.raters, args.seed), strict=True)
    kept, held_out = hold_out(read_by, [piece.patient for piece in train], args.val_fraction or 0, args.seed)
    train, raters = map(list, zip(*kept, strict=True))
    validation = [piece for piece, _ in held_out]
    maps = None
    if settings.superpixels_vote:  # made by forked processes, so before anything here starts threads
        maps = find_maps(lidc.slic_sources(train), dataset / lidc.PICKLE, slic, args.image_size)
    start = read_start(Path(args.init)) if args.init else None
    device = choose_device(args.device, args.gpu)
    group = join_process_group(device)
    source = lidc.training_source(dataset / lidc.PICKLE, train, raters, maps, args.image_size, args.num_classes)
    digest = contents_of([*source.files, *(dataset / name for name in lidc.SPLIT)])
    if contents_of([dataset / lidc.PICKLE]) != pickled:
        raise UserError(f"{dataset / lidc.PICKLE}: has changed while it was read; start again when it is complete")
    data, findings, _ = load_training_set(source, args.cache, device, settings.run.contours, settings.wants_tau)
    if settings.wants_tau and findings:
        settings = settings.with_tau(findings.tau, findings.tau_from)
    intensity = start.intensity if start else Intensity.chosen(settings.run.inputs, data.images)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        patients = counted(len({piece.patient for piece in part}), "patient")
        if part:
            print(f"{dataset}: {counted(len(part), f'{name} slice')} of {patients}")
    shares = ", ".join(f"{count} of rater {rater + 1}" for rater, count in sorted(Counter(raters).items()))
    print(f"training masks, --rater_policy {args.rater_policy}: {shares}")
    print(f"tau {settings.method.tau:g}: {settings.tau_from}")

    experiment = experiment_of(
        args,
        settings,
        in_words(settings, superpixels),
        channels=1,
        device=device,
        group=group,
        training_images=len(data),
        epoch_batches=epochs_of(data, args.batch_size, settings.run, intensity, device, group),
        intensity=intensity,
        cases=lidc.as_test_cases(test, args.image_size),
        validation=lidc.as_test_cases(validation, args.image_size),
        start=start,
    )
    found = {
        "intensity": intensity.stated("0..255, as stored"),
        "data": digest,
        "amp": experiment.precision,
        "network": experiment.network,
    }
    run = Run(folder, run_flags(args) | settings.recorded() | found, args.resume, args.overwrite, group)
    run.write_json("raters.json", {name: rater + 1 for name, rater in zip(data.names, raters, strict=True)})
    if validation:
        run.write_json("split.json", {"train": list(data.names), "held_out": [piece.name for piece in validation]})
    print_result(fit(experiment, run), folder)
    leave_process_group()


if __name__ == "__main__":
    run_main(main)
