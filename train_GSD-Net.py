"""Train GSD-Net on a folder of images with one noisy mask each, and test it on clean masks.

    python train_GSD-Net.py --datasets kvasir --noise_type 02

reads data/Kvasir, trains for 100 epochs and writes model/kvasir+gsd+02/.

--datasets names a dataset of the paper, or your own folder in data/ with the layout of Kvasir (docs/data.md).
--noise_type chooses its training masks: 02 is S_R (shrunk), 08 is S_E (expanded), DE is S_DE (dilated or eroded).
clean and given both read the plain masks; clean says that they are right. --masks FOLDER reads any other folder.
Missing superpixels are made. Without a test set, a fifth of the training images is held out and scored.
"""

import argparse
from pathlib import Path

from dataloaders.datasets import NOISE_TYPES, folder_dataset
from utils.commands.arguments import add_ignore_label, add_training_arguments, command_parser, run_flags, settings_of
from utils.commands.errors import counted, is_main_process, run_main
from utils.method.settings import in_words


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = command_parser(__doc__)
    parser.add_argument("--datasets", required=True, help="kvasir, shenzhen, BUSUC, or a folder in --data_root")
    masks = parser.add_mutually_exclusive_group(required=True)
    masks.add_argument("--noise_type", choices=NOISE_TYPES, help="training masks of the dataset; this or --masks")
    masks.add_argument("--masks", metavar="FOLDER", help="train on this folder of masks in place of --noise_type")
    parser.add_argument("--partial", action="store_true", help="with --masks: train only on images that have a mask")
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="read grey images as colour (3) or colour images as grey (1) (default: as stored; BUSUC: 3)",
    )
    add_ignore_label(parser)
    add_training_arguments(parser, image_size=256)
    args = parser.parse_args()
    if args.partial and not args.masks:
        parser.error("--partial: goes with --masks FOLDER; the dataset's own masks must be complete")
    return args


def main() -> None:
    """Arguments, settings, data, networks, experiment, run, report."""
    args = parse_arguments()
    known = folder_dataset(args.datasets)
    kind = args.noise_type or "given"
    settings = settings_of(args, known.defaults(kind), known.tau.get(kind), clean=kind == "clean")

    from dataloaders.batches import epochs_of
    from dataloaders.dataset_folder import common_format, find_dataset, find_parts, masks_folder
    from dataloaders.files import contents_of
    from dataloaders.noisy_folder import class_shares, load_cases, training_source
    from dataloaders.prepare.settings import prepared_settings
    from dataloaders.slic import find_maps, image_sources, segments_in_words, superpixel_folder
    from dataloaders.training_set import load_training_set
    from utils.engine.checkpoint import read_start
    from utils.engine.device import choose_device
    from utils.engine.distributed import join_process_group, leave_process_group
    from utils.engine.experiment import experiment_of
    from utils.engine.intensity import Intensity
    from utils.engine.report import print_result
    from utils.engine.run_folder import Run, check_free
    from utils.engine.training import fit

    dataset, layout = find_dataset(Path(args.data_root), args.datasets)
    masks = masks_folder(dataset, args.masks) if args.masks is not None else None
    folder = Path(args.output_root) / f"{args.datasets}+{settings.exp}+{masks.absolute().name if masks else kind}"
    if is_main_process():
        check_free(folder, args.resume, args.overwrite)
    slic = superpixel_folder(dataset / layout.segments, args.image_size, known.image_size, args.slic_root)
    superpixels = segments_in_words(slic, args.image_size) if settings.superpixels_vote else ""
    print(in_words(settings, superpixels))
    parts = find_parts(dataset, layout, kind, args.val_fraction, args.seed, masks, args.partial)
    maps = None
    if settings.superpixels_vote:  # made by forked processes, so before anything here starts threads
        images = {image.stem: image for image, _ in parts.train}
        maps = find_maps(image_sources(images), dataset / layout.images, slic, args.image_size)
    start = read_start(Path(args.init)) if args.init else None
    device = choose_device(args.device, args.gpu)
    group = join_process_group(device)
    channels, reading = common_format(parts.images, args.channels or known.channels)
    source = training_source(parts.train, maps, args.image_size, channels, args.num_classes, args.ignore_label)
    scored = [path for pair in (*parts.validation, *parts.cases) for path in pair]
    digest = contents_of([*source.files, *scored])  # before they are read: of files that change now, it tells later
    contours = settings.run.contours
    data, findings, vanished = load_training_set(source, args.cache, device, contours, settings.wants_tau)
    if settings.wants_tau and findings:
        settings = settings.with_tau(findings.tau, findings.tau_from)
    intensity = start.intensity if start else Intensity.chosen(settings.run.inputs, data.images)
    print(f"{dataset}: {counted(len(data), 'training image')}; tau {settings.method.tau:g}: {settings.tau_from}")
    print(f"images: channels {channels}, {reading}; masks: {class_shares(data.labels, args.num_classes, vanished)}")

    experiment = experiment_of(
        args,
        settings,
        in_words(settings, superpixels),
        channels=channels,
        device=device,
        group=group,
        training_images=len(data),
        epoch_batches=epochs_of(data, args.batch_size, settings.run, intensity, device, group),
        intensity=intensity,
        cases=load_cases(parts.cases, args.image_size, channels, args.num_classes, args.ignore_label),
        validation=load_cases(parts.validation, args.image_size, channels, args.num_classes, args.ignore_label),
        scored_on=parts.scored_on,
        start=start,
    )
    found = {"intensity": intensity.stated(reading), "data": digest, "channels": args.channels or known.channels}
    found |= {"val_fraction": parts.val_fraction, "amp": experiment.precision, "network": experiment.network}
    recorded = run_flags(args) | settings.recorded() | found
    run = Run(folder, recorded, args.resume, args.overwrite, group, prepared_settings(dataset))
    if parts.split:
        run.write_json("split.json", parts.split)
    print_result(fit(experiment, run), folder)
    leave_process_group()


if __name__ == "__main__":
    run_main(main)
