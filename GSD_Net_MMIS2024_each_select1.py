"""Train GSD-Net on MMIS-2024 slices with the mask of one rater each, and test it on volumes against all of them.

    python GSD_Net_MMIS2024_each_select1.py

reads data/MMIS2024TASK1 (docs/multi_rater.md), trains for 100 epochs and writes model/MMIS2024+gsd+select1/. Missing
superpixels are made.
"""

import argparse
from collections import Counter
from pathlib import Path

from dataloaders.datasets import MMIS
from utils.commands.arguments import add_rater_arguments, add_training_arguments, command_parser, run_flags, settings_of
from utils.commands.errors import counted, is_main_process, run_main
from utils.method.settings import in_words

READING = "each modality of each slice by itself, its percentiles 0.5 and 99.5 to 0 and 255"


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--rater_policy",
        help="rater whose mask a training slice gets: cycle, random (drawn from --seed), or the number of one rater, "
        "from 1 (default: the choice in data_npc_select_one.json; random without that file)",
    )
    parser.add_argument(
        "--test_folder",
        choices=("testing", "validation"),
        default="testing",
        help="folder of the volumes to test on (default: %(default)s)",
    )
    add_rater_arguments(parser)
    add_training_arguments(parser, MMIS.image_size)
    return parser.parse_args()


def main() -> None:
    """Arguments, settings, data, networks, experiment, run, report."""
    args = parse_arguments()
    settings = settings_of(args, MMIS.defaults("given"), MMIS.tau["given"])

    from dataloaders import mmis
    from dataloaders.batches import epochs_of
    from dataloaders.files import contents_of
    from dataloaders.raters import hold_out
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

    folder = Path(args.output_root) / f"MMIS2024+{settings.exp}+{args.rater_policy or 'select1'}"
    if is_main_process():
        check_free(folder, args.resume, args.overwrite)
    dataset = Path(args.data_root) / "MMIS2024TASK1"
    slic = superpixel_folder(dataset / MMIS.layout.segments, args.image_size, MMIS.image_size, args.slic_root)
    superpixels = segments_in_words(slic, args.image_size) if settings.superpixels_vote else ""
    print(in_words(settings, superpixels))
    slices = mmis.list_slices(dataset / MMIS.layout.images)
    test = mmis.MMISCases(dataset / args.test_folder, args.raters, args.num_classes, args.image_size, slices.values())
    mmis.warn_of_leakage(slices, test)
    # Before the hold-out, so that a slice's rater does not depend on it.
    raters = mmis.select_raters(dataset, slices, args.raters, args.rater_policy, args.seed)
    cases = [mmis.case_of(stem) for stem in slices]
    train, held_out = map(dict, hold_out(slices.items(), cases, args.val_fraction or 0, args.seed))
    maps = None
    if settings.superpixels_vote:  # made by forked processes, so before anything here starts threads
        sources = mmis.slic_sources(train, args.raters, args.num_classes)
        maps = find_maps(sources, dataset / MMIS.layout.images, slic, args.image_size)
    start = read_start(Path(args.init)) if args.init else None
    device = choose_device(args.device, args.gpu)
    group = join_process_group(device)
    source = mmis.training_source(train, raters, maps, args.raters, args.num_classes, args.image_size)
    digest = contents_of([*source.files, *held_out.values(), *test.paths], mmis.selection_json(raters))
    data, findings, _ = load_training_set(source, args.cache, device, settings.run.contours, settings.wants_tau)
    if settings.wants_tau and findings:
        settings = settings.with_tau(findings.tau, findings.tau_from)
    intensity = start.intensity if start else Intensity.chosen(settings.run.inputs, data.images)
    for name, part in (("training", train), ("validation", held_out)):
        cases_of_part = counted(len({mmis.case_of(stem) for stem in part}), "case")
        if part:
            print(f"{dataset}: {counted(len(part), f'{name} slice')} of {cases_of_part}")
    shares = ", ".join(
        f"{count} of rater {rater + 1}" for rater, count in sorted(Counter(raters[stem] for stem in train).items())
    )
    print(f"{dataset}: {counted(len(test), 'test volume')}; training masks: {shares}")
    print(f"tau {settings.method.tau:g}: {settings.tau_from}")

    experiment = experiment_of(
        args,
        settings,
        in_words(settings, superpixels),
        channels=data.images.shape[1],
        device=device,
        group=group,
        training_images=len(data),
        epoch_batches=epochs_of(data, args.batch_size, settings.run, intensity, device, group),
        intensity=intensity,
        cases=test,
        validation=mmis.validation_cases(held_out, args.raters, args.num_classes, args.image_size),
        start=start,
    )
    found = {
        "intensity": intensity.stated(READING),
        "data": digest,
        "amp": experiment.precision,
        "network": experiment.network,
    }
    run = Run(folder, run_flags(args) | settings.recorded() | found, args.resume, args.overwrite, group)
    run.write_json(mmis.SELECTION, mmis.selection_json(raters))
    if held_out:
        run.write_json("split.json", {"train": list(train), "held_out": list(held_out)})
    print_result(fit(experiment, run), folder)
    leave_process_group()


if __name__ == "__main__":
    run_main(main)
