"""scripts/search_drop_rate.py: the objective by hand, and the search as its users run it."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import TRAIN_SCRIPT, assert_refused, call, write_dataset

from dataloaders.training_set import TrainingSet
from scripts import audit_labels
from scripts import search_drop_rate as search
from utils.commands.errors import UserError
from utils.commands.passed_flags import training_parser
from utils.masks.geometry import IGNORED


@pytest.fixture
def folder(tmp_path):
    """A folder with a path of spaces and letters of other alphabets, and a dataset in it."""
    write_dataset(tmp_path / "my dätå 肺", "mine", train=8, test=2)
    return tmp_path / "my dätå 肺"


@pytest.fixture
def run(folder, monkeypatch):
    """search_drop_rate.py on it, with more flags; later flags win: exit code, stdout, stderr."""

    def searched(*flags):
        monkeypatch.chdir(folder)
        places = ("--datasets", "mine", "--noise_type", "given", "--data_root", folder, "--save_root", folder / "out")
        more = ("--image_size", 32, "--batch_size", 4, "--max_epochs", 1, "--device", "cpu", "--candidates", 0.1)
        return call(search.main, *places, *more, *flags)

    return searched


def test_objective_by_hand():
    kept, dropped = np.float32([0.1, 0.2, 3.0, 0.3]), np.float32([2.4, 1.7, 0.05, 1.4])
    assert search.objective(kept, dropped, 0) == pytest.approx(3.6 / 4)
    assert search.objective(kept, dropped, 0.25) == pytest.approx((0.1 + 0.2 + 0.05 + 0.3) / 4)
    assert search.objective(kept, dropped, 0.5) == pytest.approx((0.1 + 0.2 + 0.05 + 1.4) / 4)


def test_objective_is_lowest_at_the_share_of_wrong_labels():
    """Networks that know the truth, fairly sure of it, and labels of which 15 % are inverted."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.8, 0.99, 20000).astype(np.float32)
    of_label = np.where(rng.random(20000) < 0.15, 1 - truth, truth)
    kept, dropped = -np.log(of_label), -np.log(1 - of_label)
    values = {tau: search.objective(kept, dropped, tau) for tau in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)}
    assert min(values, key=values.get) == 0.15


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_of_label_and_of_all_others_and_which_labels_are_held_for_wrong(classes):
    """Wrong is a label that is not the most probable class, be it below one half or not."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, classes, 4, 4, generator=rng)
    labels = torch.randint(classes, (3, 4, 4), generator=rng, dtype=torch.uint8)

    class Known:
        def logits(self, images):
            return logits[images[:, 0, 0, 0].long()]

    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 1, 4, 4)
    data = TrainingSet(("a", "b", "c"), images, labels, labels, labels, 1)
    kept, dropped, wrong = search.pixel_losses(Known(), data, batch_size=2)
    p = logits.softmax(dim=1).gather(1, labels[:, None].long()).flatten().numpy()
    assert np.allclose(kept, -np.log(p), atol=1e-5) and np.allclose(dropped, -np.log(1 - p), atol=1e-5)
    np.testing.assert_array_equal(wrong, (logits.argmax(dim=1) != labels).flatten().numpy())


def test_search_end_to_end(run, folder):
    """One training, its figures, and the curve."""
    code, out, _ = run()
    assert code == 0 and "lowest" in out and "--tau 0.1" in out
    found = json.loads((folder / "out" / "drop_rate.json").read_text())
    assert found["best"] == 0.1 and [row["tau"] for row in found["candidates"]] == [0.1]
    assert 0 <= found["candidates"][0]["held_for_wrong"] <= 1
    assert (folder / "out" / "drop_rate.png").read_bytes().startswith(b"\x89PNG")
    args = json.loads((folder / "out" / "runs" / "mine+tau0.1+given" / "args.json").read_text())
    assert args["tau"] == 0.1 and args["contours"] == "given"


@pytest.mark.usefixtures("trained_here")
def test_flags_of_the_refinement_are_taken_where_nothing_is_dropped_too(run):
    """One set of flags serves all candidates, 0 among them."""
    code, _, err = run("--candidates", 0, "--", "--ratecp", "0.3", "--fidelity", "published")
    assert code == 0, err


def test_training_that_fails_is_named(run):
    # Without weights by distance there is nothing that --set distance could act on.
    assert_refused(run("--", "--without", "gda", "--set", "distance=exact"), "--candidates 0.1", "failed")


@pytest.mark.parametrize(
    ("flags", "name", "remedy"),
    [
        (("--tau", "0.3"), "--tau", "leave --tau out"),
        (("--tau=0.3",), "--tau", "leave --tau out"),
        (("--ta", "0.3"), "--tau", "leave --tau out"),
        (("--ta=auto",), "--tau", "leave --tau out"),
        (("--method", "ce"), "--method", "leave --method out"),
        (("--val_fraction", "0.2"), "--val_fraction", "leave --val_fraction out"),
        (("--exp", "x"), "--exp", "leave --exp out"),
        (("--output_root", "x"), "--output_root", "leave --output_root out"),
        (("--masks", "x"), "--masks", "leave --masks out"),
        (("--res",), "--resume", "leave --resume out"),
        (("--exp=x", "--tau", "0"), "--exp, --tau", "leave --exp, --tau out"),
    ],
)
def test_flags_of_the_search_are_not_passed_on(run, folder, flags, name, remedy):
    assert_refused(run("--", *flags), f"after --: {name}", remedy)
    assert not (folder / "out").exists()


def test_flags_after_the_two_dashes_count_as_those_before_them(tmp_path):
    """Flags that both the script and training have, for both scripts that train."""
    (tmp_path / "images").mkdir()
    values = {"image_size": "48", "num_classes": "3", "channels": "1", "ignore_label": "255", "device": "cpu"}
    values |= {"gpu": "1", "amp": "fp32"}
    own = {"cache": "none", "batch_size": "4", "max_epochs": "3", "contours": "corrected", "seed": "7"}
    for parse, places, more, flags in (
        (search.parse_args, ("datasets", "noise_type", "save_root"), (), values | own),
        (audit_labels.parse_args, ("images_root", "masks_root", "save_root"), ("--folds", "2"), values),
    ):
        begin = [part for name in places for part in (f"--{name}", "02" if name == "noise_type" else str(tmp_path))]
        begin += more
        passed = [part for name, value in flags.items() for part in (f"--{name}", value)]
        before, after = vars(parse([*begin, *passed])), vars(parse([*begin, "--", *passed, "--overwrite"]))
        assert after.pop("training") == [*passed, "--overwrite"] and not before.pop("training")
        assert after == before | {"overwrite": True}


def test_a_flag_given_twice_with_two_values_is_refused(run):
    assert_refused(run("--", "--image_size", "64"), "--image_size: 32 before --, and 64 after it")
    assert_refused(run("--", "--datasets", "other"), "--datasets: mine")


def test_pixels_without_a_label_are_left_out_of_the_objective():
    labels = torch.tensor([[[0, 1], [IGNORED, IGNORED]]], dtype=torch.uint8)

    class Known:
        def logits(self, images):
            return torch.tensor([2.0, 0.0])[None, :, None, None].expand(1, 2, 2, 2)

    data = TrainingSet(("a",), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), labels, labels, labels, 1)
    kept, dropped, wrong = search.pixel_losses(Known(), data, batch_size=1)
    assert kept == pytest.approx([np.log1p(np.exp(-2)), np.log1p(np.exp(2))]) and wrong.tolist() == [False, True]
    assert dropped == pytest.approx(kept[::-1])


@pytest.mark.parametrize("flags", [("--recipe", "none"), ("--unknown", "1"), ("--ma", "1"), ("stray",), ("--help",)])
def test_flags_that_training_would_not_take(run, folder, flags):
    """They end the search before anything is read or trained; --ma may be --masks or --max_epochs."""
    assert_refused(run("--", *flags), flags[0])
    assert not (folder / "out").exists()


def test_flags_that_may_be_passed_on():
    """With names of which a flag of the search is the beginning, or that begin one."""
    flags = ["--recipe", "contour", "--without", "kt", "--amp", "fp32", "--learning_rate", "0.01", "--deterministic"]
    flags += ["--set", "jitter=0.1"]
    args = search.parse_args(["--datasets", "x", "--noise_type", "02", "--save_root", "out", "--", *flags])
    assert args.training == flags


def test_all_flags_of_training_are_known():
    """Else a flag that was added there could not be passed on."""
    said = call(TRAIN_SCRIPT, "--help").out
    there = set(re.findall(r"(?<![\w-])--(\w+)", said[: said.index("\n\n")])) - {"help"}
    assert there == {action.dest for action in training_parser()._actions}


def test_folders_that_do_not_fit(run, folder, tmp_path):
    assert_refused(run("--datasets", "other"), "--datasets other", "mine")
    assert_refused(run("--data_root", tmp_path / "missing"), tmp_path / "missing", "no such folder")
    (folder / "mine" / "images" / "case01.png").write_bytes(b"\x89PNG")
    assert_refused(run(), "case01.png")
    shutil.rmtree(folder / "mine" / "images")
    (folder / "mine" / "images").mkdir()
    assert_refused(run(), folder / "mine" / "images", "no image in it")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("flags", [("--candidates", 1), ("--candidates", "x"), ("--max_epochs", 0), ("--unknown",)])
def test_flags_out_of_range(run, flags):
    code, _, err = run(*flags)
    assert code == 2 and str(flags[0]) in err


def test_full_disk(folder, monkeypatch):
    """The table is whole or not there."""
    args = search.parse_args(["--datasets", "x", "--noise_type", "02", "--save_root", str(folder / "out")])

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("utils.commands.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        search.write_results(args, {0.1: 1.0}, {0.1: 0.2})
    assert not list((folder / "out").glob("*"))


def test_save_root_that_is_a_file(folder):
    (folder / "file").touch()
    args = search.parse_args(["--datasets", "x", "--noise_type", "02", "--save_root", str(folder / "file")])
    with pytest.raises(UserError, match="cannot be written"):
        search.write_results(args, {0.1: 1.0}, {0.1: 0.2})
