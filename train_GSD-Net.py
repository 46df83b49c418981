"""Train GSD-Net on a folder of images with one noisy mask each, and test it on clean masks.

    python train_GSD-Net.py --datasets kvasir --noise_type 02

reads data/Kvasir (README: data layout), trains for 100 epochs and writes model/kvasir+gsd+02/. Noise types: 02 is S_R,
08 is S_E, DE is S_DE, clean and given read the plain masks. Datasets: kvasir, shenzhen, BUSUC, or any folder of data/
laid out like Kvasir; for those give --tau, the share of wrong pixels that you expect.
"""

import argparse
from functools import partial
from pathlib import Path

from dataloaders.batches import training_batches
from dataloaders.cache import load_training_set
from dataloaders.noisy_folder import NOISE_TYPES, find_dataset, load_test_cases, training_recipe
from networks.unet import two_unets
from utils.arguments import add_training_arguments, resolve_arguments, tau_in_words
from utils.baselines import USES_TAU
from utils.cli import run_main
from utils.distributed import join_team, leave_team
from utils.intensity import Intensity
from utils.run import Run, choose_device
from utils.training import experiment_of, fit, print_result

# docs/method.md sections 1, 4 and 5: the paper's settings for its datasets.
TAU = {
    "kvasir": {"02": 0.05, "08": 0.05, "DE": 0.05},
    "shenzhen": {"02": 0.17, "08": 0.17, "DE": 0.17},
    "busuc": {"02": 0.062, "08": 0.08, "DE": 0.045},
}
RATECP = {("shenzhen", "08"): 0.1, ("busuc", "08"): 0.1}  # elsewhere 0.5
JITTER = {"busuc": 0.05}  # elsewhere 0.5


def parse_arguments() -> argparse.Namespace:
    """The flags, with the paper's settings of the dataset where none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", required=True, help="kvasir, shenzhen, BUSUC or a folder of --data_root")
    parser.add_argument("--noise_type", required=True, choices=NOISE_TYPES, help="which training masks")
    add_training_arguments(parser, image_size=256)
    args = parser.parse_args()
    dataset = args.datasets.lower()
    if args.tau is None:
        args.tau = 0.0 if args.noise_type == "clean" else TAU.get(dataset, {}).get(args.noise_type)
    if args.tau is None and args.method in USES_TAU:
        parser.error(
            f"--tau: no default for {args.datasets} with {args.noise_type} masks; give the share of wrong "
            "pixels that you expect, for example 0.05"
        )
    args.tau = args.tau or 0.0
    args.ratecp = RATECP.get((dataset, args.noise_type), 0.5) if args.ratecp is None else args.ratecp
    args.jitter = JITTER.get(dataset, 0.5) if args.jitter is None else args.jitter
    return resolve_arguments(args)


def main() -> None:
    """Arguments, data, networks, experiment, run, report."""
    args = parse_arguments()
    device = choose_device(args.device, args.gpu)
    team = join_team(device)
    dataset, layout = find_dataset(Path(args.data_root), args.datasets)
    segments = Path(args.slic_root or dataset / layout.segments)
    recipe = training_recipe(dataset, layout, args.noise_type, args.image_size, args.num_classes, segments)
    train = load_training_set(recipe, args.cache, args.cache_root, device, args.contours)
    channels = train.images.shape[1]
    intensity = Intensity.chosen(args.inputs, train.images)
    print(f"{dataset}: {len(train)} training images, --noise_type {args.noise_type}, {tau_in_words(args)}")

    experiment = experiment_of(
        args,
        networks=two_unets(channels, args.num_classes, args.seed),
        device=device,
        team=team,
        training_images=len(train),
        epoch_batches=partial(
            training_batches, train, args.batch_size, args.jitter, intensity, device=device, team=team
        ),
        intensity=intensity,
        cases=load_test_cases(dataset, layout, args.image_size, channels, args.num_classes),
    )
    folder = Path(args.output_root) / f"{args.datasets}+{args.exp}+{args.noise_type}"
    run = Run(folder, vars(args), args.resume, args.overwrite, team)
    print_result(fit(experiment, run), folder)
    leave_team()


if __name__ == "__main__":
    run_main(main)
