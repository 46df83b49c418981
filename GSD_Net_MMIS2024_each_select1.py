"""Train GSD-Net on MMIS-2024 slices with the mask of one annotator each, and test it on volumes against all of them.

    python GSD_Net_MMIS2024_each_select1.py

reads data/MMIS2024TASK1 (README: MMIS-2024), trains for 100 epochs and writes model/MMIS2024+gsd+select1/. Superpixels
are made beforehand: python scripts/generate_SLIC.py --mmis_root data/MMIS2024TASK1
"""

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

from dataloaders.batches import training_batches
from dataloaders.cache import load_training_set
from dataloaders.files import contents_of
from dataloaders.mmis import (
    SELECTION,
    MMISCases,
    case_of,
    list_slices,
    read_label,
    select_raters,
    selection_json,
    training_recipe,
    validation_cases,
    warn_of_leakage,
)
from dataloaders.raters import hold_out
from dataloaders.vanished import warn_of_vanished
from networks.unet import two_unets
from utils.commands.arguments import add_rater_arguments, add_training_arguments, resolve_arguments, tau_in_words
from utils.commands.errors import run_main
from utils.engine.device import choose_device
from utils.engine.distributed import join_team, leave_team
from utils.engine.experiment import experiment_of
from utils.engine.intensity import Intensity
from utils.engine.report import print_result
from utils.engine.run_folder import Run
from utils.engine.training import fit

READING = "each modality of each slice by itself, its percentiles 0.5 and 99.5 to 0 and 255"
# The paper's settings for MMIS: docs/method.md sections 1, 2 and 5.
SETTINGS = {"tau": 0.008, "weight_decay_rate": 5, "jitter": 0.01}
MAX_ROTATION, NOISE_SIGMA = 20.0, 0.1  # degrees; of the range [0, 1]: docs/method.md section 5


def parse_arguments() -> argparse.Namespace:
    """The flags, with the paper's settings where none is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rater_policy",
        help="whose mask a training slice has: cycle, random (drawn from --seed), or one annotator's number, from 1 "
        f"(default: what {SELECTION} says, random without it)",
    )
    parser.add_argument(
        "--test_folder",
        choices=("testing", "validation"),
        default="testing",
        help="volumes to test on (default: %(default)s)",
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
    dataset = Path(args.data_root) / "MMIS2024TASK1"
    slices = list_slices(dataset / "training_2d")
    test = MMISCases(dataset / args.test_folder, args.raters, args.num_classes, args.image_size)
    warn_of_leakage(slices, test)
    # Before the hold-out, so that a slice's rater does not depend on it.
    raters = select_raters(dataset, slices, args.raters, args.rater_policy, args.seed)
    cases = [case_of(stem) for stem in slices]
    train, held_out = map(dict, hold_out(slices.items(), cases, args.val_fraction, args.seed))
    segments = Path(args.slic_root or dataset / "train_2D_slic")
    recipe = training_recipe(train, raters, segments, args.raters, args.num_classes, args.image_size)
    digest = contents_of([*recipe.sources, *held_out.values(), *test.paths], selection_json(raters))  # before reading
    data = load_training_set(recipe, args.cache, args.cache_root, device, args.contours)
    if team.leads:
        labels = [partial(read_label, path, raters[stem], args.num_classes) for stem, path in train.items()]
        warn_of_vanished(data, lambda index: labels[index](), args.num_classes)
    intensity = Intensity.chosen(args.inputs, data.images)
    for name, part in (("training", train), ("validation", held_out)):
        print(f"{dataset}: {len(part)} {name} slices of {len({case_of(stem) for stem in part})} cases")
    shares = ", ".join(
        f"{count} of rater {rater + 1}" for rater, count in sorted(Counter(raters[stem] for stem in train).items())
    )
    print(f"{dataset}: {len(test)} test volumes; training masks: {shares}; {tau_in_words(args)}")

    experiment = experiment_of(
        args,
        networks=two_unets(data.images.shape[1], args.num_classes, args.seed),
        device=device,
        team=team,
        training_images=len(data),
        epoch_batches=partial(
            training_batches,
            data,
            args.batch_size,
            args.jitter,
            intensity,
            device=device,
            team=team,
            max_rotation=MAX_ROTATION,
            noise_sigma=NOISE_SIGMA,
        ),
        intensity=intensity,
        cases=test,
        validation=validation_cases(held_out, args.raters, args.num_classes, args.image_size),
    )
    folder = Path(args.output_root) / f"MMIS2024+{args.exp}+{args.rater_policy or 'select1'}"
    found = {"intensity": intensity.stated(READING), "data": digest}
    run = Run(folder, vars(args) | found, args.resume, args.overwrite, team)
    run.write_json(SELECTION, selection_json(raters))
    if held_out:
        run.write_json("split.json", {"train": list(train), "held_out": list(held_out)})
    print_result(fit(experiment, run), folder)
    leave_team()


if __name__ == "__main__":
    run_main(main)
