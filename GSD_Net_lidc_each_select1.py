"""Train GSD-Net on LIDC with the mask of one reader a slice, and test it against every reader.

    python GSD_Net_lidc_each_select1.py

reads data/lidc (README: LIDC), trains for 100 epochs and writes model/lidc+gsd+cycle/. Superpixels are made beforehand:
python scripts/generate_SLIC.py --lidc_pickle data/lidc/lidc_attributes.pkl
"""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

from dataloaders.batches import training_batches
from dataloaders.cache import load_training_set
from dataloaders.files import contents_of
from dataloaders.lidc import PICKLE, SPLIT, as_test_cases, read_slices, read_split, training_recipe
from dataloaders.raters import choose_raters, hold_out
from dataloaders.vanished import warn_of_vanished
from networks.unet import two_unets
from utils.commands.arguments import add_rater_arguments, add_training_arguments, resolve_arguments, tau_in_words
from utils.commands.errors import UserError, run_main
from utils.engine.device import choose_device
from utils.engine.distributed import join_team, leave_team
from utils.engine.experiment import experiment_of
from utils.engine.intensity import Intensity
from utils.engine.report import print_result
from utils.engine.run_folder import Run
from utils.engine.training import fit

SETTINGS = {"tau": 0.003, "consistency": 0.9, "jitter": 0.05}  # the paper's for LIDC: docs/method.md sections 1 and 5


def parse_arguments() -> argparse.Namespace:
    """The flags, with the paper's settings where none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rater_policy",
        default="cycle",
        help="whose mask a training slice has: cycle (slice i that of reader i mod 4), random (drawn from --seed), or "
        "one reader's number, from 1 (default: %(default)s)",
    )
    add_rater_arguments(parser)
    # Not "extended", which corrects contours: where annotators differ, each one's contour is what is to be learned.
    add_training_arguments(parser, image_size=128, fidelity="paper", settings=SETTINGS)
    return resolve_arguments(parser.parse_args(), SETTINGS)


def main() -> None:
    """Arguments, data, networks, experiment, run, report."""
    args = parse_arguments()
    device = choose_device(args.device, args.gpu)
    team = join_team(device)
    dataset = Path(args.data_root) / "lidc"
    pickled = contents_of([dataset / PICKLE])
    slices = read_slices(dataset / PICKLE, args.raters, args.num_classes)
    train, test = read_split(dataset, slices)
    # Before the hold-out, so that a slice's reader does not depend on it.
    read_by = zip(train, choose_raters(len(train), args.rater_policy, args.raters, args.seed), strict=True)
    kept, held_out = hold_out(read_by, [piece.patient for piece in train], args.val_fraction, args.seed)
    train, raters = map(list, zip(*kept, strict=True))
    validation = [piece for piece, _ in held_out]
    segments = Path(args.slic_root or dataset / "lidc_slic")
    recipe = training_recipe(dataset / PICKLE, train, raters, segments, args.image_size, args.num_classes)
    digest = contents_of([*recipe.sources, *(dataset / name for name in SPLIT)])
    if contents_of([dataset / PICKLE]) != pickled:
        raise UserError(f"{dataset / PICKLE}: has changed while it was read; start again when it is complete")
    data = load_training_set(recipe, args.cache, args.cache_root, device, args.contours)
    if team.leads:
        warn_of_vanished(data, lambda index: train[index].masks[raters[index]], args.num_classes)
    intensity = Intensity.chosen(args.inputs, data.images)
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        print(f"{dataset}: {len(part)} {name} slices of {len({piece.patient for piece in part})} patients")
    shares = ", ".join(f"{count} of reader {rater + 1}" for rater, count in sorted(Counter(raters).items()))
    print(f"training masks, --rater_policy {args.rater_policy}: {shares}; {tau_in_words(args)}")

    experiment = experiment_of(
        args,
        networks=two_unets(1, args.num_classes, args.seed),
        device=device,
        team=team,
        training_images=len(data),
        epoch_batches=partial(
            training_batches, data, args.batch_size, args.jitter, intensity, device=device, team=team
        ),
        intensity=intensity,
        cases=as_test_cases(test, args.image_size),
        validation=as_test_cases(validation, args.image_size),
    )
    folder = Path(args.output_root) / f"lidc+{args.exp}+{args.rater_policy}"
    found = {"intensity": intensity.stated("0..255, as stored"), "data": digest}
    run = Run(folder, vars(args) | found, args.resume, args.overwrite, team)
    run.write_json("raters.json", {name: rater + 1 for name, rater in zip(data.names, raters, strict=True)})
    if validation:
        run.write_json("split.json", {"train": list(data.names), "held_out": [piece.name for piece in validation]})
    print_result(fit(experiment, run), folder)
    leave_team()


if __name__ == "__main__":
    run_main(main)
