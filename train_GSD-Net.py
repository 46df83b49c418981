"""Train GSD-Net on a folder of images with one noisy mask each, and test it on clean masks.

    python train_GSD-Net.py --datasets kvasir --noise_type 02

reads data/Kvasir (README: data layout), trains for 100 epochs and writes model/kvasir+gsd+02/. Noise types: 02 is S_R,
08 is S_E, DE is S_DE, clean and given read the plain masks. Datasets: kvasir, shenzhen, BUSUC, or any folder of data/
laid out like Kvasir (README: your own images); for those, forms of the method that leave the contours as they are need
--tau, the share of wrong pixels that you expect. Superpixels are made where their folder is absent. Without a test set
a part of the training images is held out.
"""

import argparse
from functools import partial
from pathlib import Path

from dataloaders.batches import training_batches
from dataloaders.cache import load_training_set
from dataloaders.files import contents_of, read_mask
from dataloaders.noisy_folder import (
    CHANNELS,
    NOISE_TYPES,
    class_shares,
    common_format,
    find_dataset,
    find_parts,
    load_cases,
    training_recipe,
)
from dataloaders.slic import find_maps
from dataloaders.vanished import warn_of_vanished
from networks.unet import two_unets
from utils.commands.arguments import AUTO, add_training_arguments, resolve_folder_arguments, tau_in_words
from utils.commands.errors import run_main
from utils.engine.device import choose_device
from utils.engine.distributed import join_team, leave_team
from utils.engine.experiment import experiment_of
from utils.engine.intensity import Intensity
from utils.engine.report import print_result
from utils.engine.run_folder import Run
from utils.engine.training import fit
from utils.masks.noise_rate import estimate_tau


def parse_arguments() -> argparse.Namespace:
    """The flags; where none is given, the settings of --fidelity, and the paper's for its datasets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", required=True, help="kvasir, shenzhen, BUSUC or a folder of --data_root")
    parser.add_argument("--noise_type", required=True, choices=NOISE_TYPES, help="which training masks")
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="read grey as colour (3) or colour as grey (1) (default: as stored; BUSUC: 3)",
    )
    add_training_arguments(parser, image_size=256)
    parser.set_defaults(val_fraction=None)
    args = parser.parse_args()
    args.channels = args.channels or CHANNELS.get(args.datasets.lower())
    return resolve_folder_arguments(args, parser)


def main() -> None:
    """Arguments, data, networks, experiment, run, report."""
    args = parse_arguments()
    dataset, layout = find_dataset(Path(args.data_root), args.datasets)
    parts = find_parts(dataset, layout, args.noise_type, args.val_fraction, args.seed)
    args.val_fraction = parts.val_fraction
    # Superpixels are made by forked processes, so before anything here starts threads.
    maps = find_maps(parts.given, Path(args.slic_root or dataset / layout.segments), args.image_size)
    device = choose_device(args.device, args.gpu)
    team = join_team(device)
    channels, reading = common_format(parts.images, args.channels)
    recipe = training_recipe(parts.train, maps, args.image_size, channels, args.num_classes)
    if args.tau == AUTO:
        estimate_tau(args, ((sample.image, sample.label) for sample in map(recipe.read, range(len(recipe.names)))))
    scored = [path for pair in (*parts.validation, *parts.cases) for path in pair]
    digest = contents_of([*recipe.sources, *scored])  # before they are read: of files that change now, it tells later
    data = load_training_set(recipe, args.cache, args.cache_root, device, args.contours)
    intensity = Intensity.chosen(args.inputs, data.images)
    print(f"{dataset}: {len(data)} training images, --noise_type {args.noise_type}, {tau_in_words(args)}")
    if team.leads:
        masks = [partial(read_mask, mask, args.num_classes) for _, mask in parts.train]
        vanished = warn_of_vanished(data, lambda index: masks[index]().labels, args.num_classes)
        print(f"images: channels {channels}, {reading}; masks: {class_shares(data.labels, args.num_classes, vanished)}")

    experiment = experiment_of(
        args,
        networks=two_unets(channels, args.num_classes, args.seed),
        device=device,
        team=team,
        training_images=len(data),
        epoch_batches=partial(
            training_batches, data, args.batch_size, args.jitter, intensity, device=device, team=team
        ),
        intensity=intensity,
        cases=load_cases(parts.cases, args.image_size, channels, args.num_classes),
        validation=load_cases(parts.validation, args.image_size, channels, args.num_classes),
        scored_on=parts.scored_on,
    )
    folder = Path(args.output_root) / f"{args.datasets}+{args.exp}+{args.noise_type}"
    found = {"intensity": intensity.stated(reading), "data": digest}
    run = Run(folder, vars(args) | found, args.resume, args.overwrite, team)
    if parts.split:
        run.write_json("split.json", parts.split)
    print_result(fit(experiment, run), folder)
    leave_team()


if __name__ == "__main__":
    run_main(main)
