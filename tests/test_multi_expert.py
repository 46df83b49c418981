"""The two scripts for sets with several raters, as a user meets them, on files in the exact layout."""

import csv
import json
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import (
    REPO,
    Outcome,
    assert_plain_log,
    assert_refused,
    assert_same_run,
    assert_succeeded,
    call,
    log_rows,
    script_process,
)
from lidc_files import entries, write_lidc
from mmis_files import write_mmis

from dataloaders.mmis import read_case
from networks.build import networks_of
from utils.engine.intensity import Intensity
from utils.engine.run_folder import Run
from utils.engine.scores import FORMER, set_scores
from utils.masks.geometry import resize_image
from utils.method.settings import METHODS

LIDC = REPO / "GSD_Net_lidc_each_select1.py"
MMIS = REPO / "GSD_Net_MMIS2024_each_select1.py"
BOTH = pytest.mark.parametrize(
    ("script", "name"), [(LIDC, "lidc+gsd+cycle"), (MMIS, "MMIS2024+gsd+select1")], ids=["lidc", "mmis"]
)
QUICK = ("--device", "cpu", "--image_size", 32, "--batch_size", 4, "--max_epochs", 4)
RATERS = ("dice_rater1", "dice_rater2", "dice_rater3", "dice_rater4")
FIGURES = ["dice", "iou", "dice_majority", "soft_dice", "hd95", "assd", "nsd", "dice_class1", *RATERS]
FIGURES += ["specificity_class1", "false_pixels_class1", "ged", FORMER]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """Both sets in miniature; tests do not write to them."""
    root = tmp_path_factory.mktemp("data")
    write_lidc(root, entries())
    write_mmis(root)
    return root


def flags_of(data_root: Path, output_root: Path, *flags: object) -> tuple:
    return ("--data_root", data_root, "--output_root", output_root, *QUICK, *flags)


@pytest.fixture
def run(monkeypatch, tmp_path, without_pictures) -> Callable[..., Outcome]:
    """A script in this process and without pictures, which cost more than the training of such small networks."""
    monkeypatch.chdir(tmp_path)  # where the cache is made
    return lambda script, data_root, output_root, *flags: call(script, *flags_of(data_root, output_root, *flags))


def cases_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "per_image.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("script", "name", "test_names"),
    [
        (LIDC, "lidc+gsd+cycle", [f"LIDC-IDRI-000{p}_nodule-0_slice-{s}" for p in (4, 5) for s in range(3)]),
        (MMIS, "MMIS2024+gsd+select1", ["test00", "test01"]),
    ],
    ids=["lidc", "mmis"],
)
def test_a_run_scores_against_every_rater(script, name, test_names, data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = call(script, *flags_of(data_root, tmp_path))
    assert_succeeded(outcome)
    assert_plain_log(outcome, 4)
    told = [line for line in outcome.err.splitlines() if "warning" in line.lower()]
    assert all("scored predictions are empty" in line for line in told), told  # nodules are small, the run is short
    folder = tmp_path / name
    cases, result, rows = cases_of(folder), json.loads((folder / "result.json").read_text()), log_rows(folder)
    assert [case["image"] for case in cases] == test_names and list(cases[0])[: 1 + len(FIGURES)] == ["image", *FIGURES]
    read = [{key: float(value) if value else None for key, value in case.items() if key != "image"} for case in cases]
    for values in read:
        marked = [values[key] for key in RATERS if values[key] is not None]
        assert values["dice"] == pytest.approx(np.mean(marked), abs=1e-5)
        assert len(marked) == sum(values[f"reference_pixels_class1_rater{rater}"] > 0 for rater in range(1, 5))
        assert 0 <= values["ged"] <= 2 and values["hd95"] >= values["assd"]
    assert set_scores(read).means == pytest.approx(result["last_epoch"], abs=1e-5)
    assert set_scores(read).cases == result["cases"] and result["scored_at"] == "mask size"
    for score in ("dice", "iou", "dice_majority", "soft_dice", "ged", FORMER, *RATERS):
        logged = [float(row[score]) for row in rows]
        assert result[f"final_{score}_mean"] == pytest.approx(np.mean(logged))
        assert result[f"final_{score}_std"] == pytest.approx(statistics.pstdev(logged), abs=1e-12)
        assert result["last_epoch"][score] == pytest.approx(logged[-1])
    assert result["epochs"] == 4 and result["test_cases"] == len(test_names) and "best_validation" not in result
    # Each of its four raters marks a nodule or leaves it out; of a volume's slices some are empty.
    assert result["cases"]["dice"] == len(test_names)
    assert result["cases"]["specificity_class1"] == sum(
        case[f"dice_class1_rater{r}"] == "" for case in cases for r in range(1, 5)
    )
    for title in (
        "Dice, rater 1",
        "Dice, rater 4",
        "Dice, mean of the raters",
        "majority",
        "soft Dice",
        "GED",
        "HD95",
        "count 1",
    ):
        assert title in outcome.out
    for file in ("args.json", "checkpoint.pt", "curves.png", "panels.png", "predictions.png"):
        assert (folder / file).is_file()


def test_raters_are_written_beside_the_run(data_root, tmp_path, run):
    assert run(LIDC, data_root, tmp_path, "--max_epochs", 1).code == 0
    names = np.load(data_root / "lidc" / "train_idx.npy").tolist()
    chosen = json.loads((tmp_path / "lidc+gsd+cycle" / "raters.json").read_text())
    assert chosen == {name: i % 4 + 1 for i, name in enumerate(names)}
    fixed = run(LIDC, data_root, tmp_path, "--max_epochs", 1, "--rater_policy", 3)
    assert "12 of rater 3" in fixed.out and "tau 0.003" in fixed.out
    assert set(json.loads((tmp_path / "lidc+gsd+3" / "raters.json").read_text()).values()) == {3}
    assert_refused(run(LIDC, data_root, tmp_path, "--rater_policy", 5), "--rater_policy 5", "1 to 4")


def test_a_slice_has_its_reader_whatever_is_held_out(data_root, tmp_path, run):
    chosen = []
    for fraction in (0, 0.3):
        flags = ("--rater_policy", "random", "--max_epochs", 1, "--val_fraction", fraction)
        assert run(LIDC, data_root, tmp_path / str(fraction), *flags).code == 0
        path = tmp_path / str(fraction) / "lidc+gsd+random" / "raters.json"
        chosen.append(json.loads(path.read_text()))
    assert set(chosen[1]) < set(chosen[0]) and chosen[1].items() <= chosen[0].items()


def test_mmis_selection_is_drawn_from_the_seed_or_taken_from_the_file(tmp_path, run):
    root = write_mmis(tmp_path)
    chosen = []
    for seed, output in ((5, "a"), (5, "b"), (6, "c")):
        assert run(MMIS, tmp_path, tmp_path / output, "--max_epochs", 1, "--seed", seed).code == 0
        chosen.append(json.loads((tmp_path / output / "MMIS2024+gsd+select1" / "data_npc_select_one.json").read_text()))
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 12
    (root / "data_npc_select_one.json").write_text(json.dumps(chosen[2]))
    outcome = run(MMIS, tmp_path, tmp_path / "d", "--max_epochs", 1, "--seed", 5)
    assert_succeeded(outcome)
    beside = tmp_path / "d" / "MMIS2024+gsd+select1" / "data_npc_select_one.json"
    assert json.loads(beside.read_text()) == chosen[2]


@BOTH
def test_validation_chooses_an_epoch_and_not_the_figure(script, name, data_root, tmp_path, run):
    outcome = run(script, data_root, tmp_path, "--val_fraction", 0.3)
    assert_succeeded(outcome)
    folder = tmp_path / name
    rows, result = log_rows(folder), json.loads((folder / "result.json").read_text())
    scores = [float(row["val_dice"]) for row in rows]
    best = result["best_validation"]
    assert best["epoch"] == scores.index(max(scores)) and best["val_dice"] == max(scores)
    # The weights of best.pt are those of that epoch: its test scores are the ones logged then.
    for score in ("dice", "iou", "dice_rater2", "ged"):
        assert best[score] == pytest.approx(float(rows[best["epoch"]][score]), abs=1e-9)
    assert torch.load(folder / "best.pt", weights_only=True)["epoch"] == best["epoch"] + 1
    assert result["final_dice_mean"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]))
    split = json.loads((folder / "split.json").read_text())
    assert len(split["train"]) == 9 and split["held_out"] and not set(split["train"]) & set(split["held_out"])
    assert "was best on the validation cases" in outcome.out
    assert (" validation slices of 1 " in outcome.out) and ("9 training slices of 3 " in outcome.out)


@BOTH
def test_a_killed_run_goes_on_as_if_it_had_not_been(script, name, data_root, tmp_path, run):
    flags = ("--max_epochs", 5, "--val_fraction", 0.3, "--method", "ce", "--exp", "gsd")
    assert run(script, data_root, tmp_path / "whole", *flags).code == 0
    folder = tmp_path / "broken" / name
    with script_process(*flags_of(data_root, tmp_path / "broken", *flags), script=script) as process:
        deadline = time.monotonic() + 60
        while not (folder / "log.csv").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 1 <= len(log_rows(folder)) < 5
    resumed = run(script, data_root, tmp_path / "broken", *flags, "--resume")
    assert_succeeded(resumed)
    assert_same_run(tmp_path / "whole" / name, folder)
    assert "complete already" in run(script, data_root, tmp_path / "broken", *flags, "--resume").out


def test_best_weights_lost_between_two_writes_come_back(data_root, tmp_path, run, monkeypatch):
    """Killed after the checkpoint of the best epoch and before best.pt: resuming writes it from the checkpoint."""
    flags = ("--val_fraction", 0.3)
    assert run(LIDC, data_root, tmp_path / "whole", *flags).code == 0
    best = json.loads((tmp_path / "whole" / "lidc+gsd+cycle" / "result.json").read_text())["best_validation"]["epoch"]

    keep_best = Run._keep_best

    def stop_in_the_best_epoch(run, checkpoint):
        if checkpoint["epoch"] == best + 1:
            raise KeyboardInterrupt
        keep_best(run, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_keep_best", stop_in_the_best_epoch)
        assert run(LIDC, data_root, tmp_path / "broken", *flags).code == 130
    assert run(LIDC, data_root, tmp_path / "broken", *flags, "--resume").code == 0
    assert_same_run(tmp_path / "whole" / "lidc+gsd+cycle", tmp_path / "broken" / "lidc+gsd+cycle")


@pytest.mark.parametrize("damage", ["removed", "cut", "of another epoch", "of another run"])
def test_best_weights_lost_are_noticed_before_training_goes_on(data_root, tmp_path, run, monkeypatch, damage):
    flags, folder = ("--val_fraction", 0.3), tmp_path / "lidc+gsd+cycle"
    keep_best = Run._keep_best

    def stop_after_two_epochs(run, checkpoint):
        keep_best(run, checkpoint)
        if len(run.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_keep_best", stop_after_two_epochs)
        assert run(LIDC, data_root, tmp_path, *flags).code == 130
    # The better of the two epochs was the first: the checkpoint, of the second, does not have its weights.
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    for row, dice in zip(checkpoint["history"], (0.9, 0.1), strict=True):
        row["val_dice"] = dice
    torch.save(checkpoint, folder / "checkpoint.pt")
    contents = torch.load(folder / "best.pt", weights_only=True)
    torch.save(contents | {"epoch": 1}, folder / "best.pt")
    if damage == "removed":
        (folder / "best.pt").unlink()
    elif damage == "of another run":
        torch.save(contents | {"epoch": 1, "args": contents["args"] | {"seed": 1}}, folder / "best.pt")
    elif damage == "cut":
        (folder / "best.pt").write_bytes((folder / "best.pt").read_bytes()[:1000])
    else:
        torch.save(contents | {"epoch": 2}, folder / "best.pt")
    outcome = run(LIDC, data_root, tmp_path, *flags, "--resume")
    assert_refused(outcome, str(folder / "best.pt"), "bring the file back", "--overwrite")
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + 2  # no more epochs were trained


def test_published_choices_and_baselines_run(data_root, tmp_path, run):
    for flags in (("--fidelity", "published"), ("--method", "ce", "--rater_policy", "random")):
        for script in (LIDC, MMIS):
            outcome = run(script, data_root, tmp_path, "--max_epochs", 2, *flags)
            assert_succeeded(outcome)
    names = {path.name for path in tmp_path.iterdir()}
    runs = {"lidc+gsd-published+cycle", "lidc+ce+random", "MMIS2024+gsd-published+select1", "MMIS2024+ce+random"}
    assert names == {*runs, "cache"}


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (LIDC, {"tau": 0.003, "consistency": 0.9, "ratecp": 0.5, "jitter": 0.05, "weight_decay_rate": 10}),
        (MMIS, {"tau": 0.008, "consistency": 0.5, "ratecp": 0.5, "jitter": 0.01, "weight_decay_rate": 5}),
    ],
    ids=["lidc", "mmis"],
)
def test_the_paper_is_the_default(data_root, tmp_path, run, script, settings):
    outcome = run(script, data_root, tmp_path, "--max_epochs", 2)
    assert_succeeded(outcome)
    (stated,) = tmp_path.glob("*+gsd+*/args.json")
    choices = {"fidelity": "paper", "recipe": "paper", "warm_up": 0.3, "learning_rate": 0.005, "without": []}
    choices |= {"vote": "superpixels", "contours": "given", "dice_weight": 0, "optimizer": "sgd", **settings}
    assert choices.items() <= json.loads(stated.read_text()).items()
    first = outcome.out.splitlines()[0]
    assert all(part in first for part in ("GSD-Net", "selection", f"tau {settings['tau']}", "GDA", "SGR", "KT"))


@pytest.mark.parametrize(
    ("script", "method"),
    [(LIDC, "gsd"), (LIDC, "ce"), (MMIS, "jocor"), (MMIS, "tloss")],
    ids=["lidc-gsd", "lidc-ce", "mmis-jocor", "mmis-tloss"],
)
def test_any_method_takes_the_contour_recipe(data_root, tmp_path, run, script, method):
    """Where nothing is selected there is no tau; else that of the corrected masks, which is estimated."""
    outcome = run(script, data_root, tmp_path, "--max_epochs", 1, "--method", method, "--recipe", "contour")
    assert_succeeded(outcome)
    (stated,) = tmp_path.glob(f"*+{method}-contour+*/args.json")
    args = json.loads(stated.read_text())
    assert {
        "contours": "corrected",
        "dice_weight": 3,
        "optimizer": "adamw",
        "learning_rate": 0.001,
    }.items() <= args.items()
    assert args["tau_from"].startswith("auto") == METHODS[method].selects
    assert all(float(row["dice_loss"]) > 0 for row in log_rows(stated.parent))
    assert "contour recipe" in outcome.out.splitlines()[0]


def maps_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.npy"))


@pytest.mark.parametrize(
    ("script", "write", "plain"),
    [
        (LIDC, lambda root: write_lidc(root, entries()), "lidc_slic"),
        (MMIS, write_mmis, "train_2D_slic"),
    ],
    ids=["lidc", "mmis"],
)
def test_superpixels_are_made_where_they_vote(tmp_path, run, script, write, plain):
    """At any size, in a folder that says it, and of the slices that are trained on."""
    folder = write(tmp_path)
    flags = ("--max_epochs", 2, "--overwrite")
    before = maps_in(folder / plain)
    (folder / plain / f"{before[0]}.npy").unlink()
    assert run(script, tmp_path, tmp_path, *flags).code == 0
    assert maps_in(folder / plain) == before
    made = run(script, tmp_path, tmp_path, *flags, "--image_size", 48, "--val_fraction", 0.3)
    assert made.code == 0 and "144 superpixels" in made.out.splitlines()[0]
    assert len(maps_in(folder / f"{plain}_48")) == 9  # of 12 slices three are held out
    shutil.rmtree(folder / plain)
    shutil.rmtree(folder / f"{plain}_48")
    assert run(script, tmp_path, tmp_path, *flags, "--method", "ce").code == 0
    assert run(script, tmp_path, tmp_path, *flags, "--without", "sgr").code == 0
    assert not list(folder.glob(f"{plain}*"))
    assert run(script, tmp_path, tmp_path, *flags).code == 0
    path = next((folder / plain).glob("*.npy"))
    np.save(path, np.zeros((16, 16), np.int32))
    assert_refused(run(script, tmp_path, tmp_path, *flags), str(path))
    path.write_bytes(b"damaged")
    assert_refused(run(script, tmp_path, tmp_path, *flags), str(path))


def test_superpixels_elsewhere(tmp_path, run):
    folder = write_lidc(tmp_path, entries())
    (folder / "lidc_slic").rename(tmp_path / "elsewhere")
    flags = ("--slic_root", tmp_path / "elsewhere", "--max_epochs", 2)
    found = run(LIDC, tmp_path, tmp_path / "model", *flags)
    assert_succeeded(found)
    assert not (folder / "lidc_slic").exists() and "making superpixels" not in found.out


def test_errors_name_what_is_missing(tmp_path, run):
    assert_refused(run(LIDC, tmp_path, tmp_path), str(tmp_path / "lidc" / "lidc_attributes.pkl"))
    assert_refused(run(MMIS, tmp_path, tmp_path), str(tmp_path / "MMIS2024TASK1"))
    write_mmis(tmp_path)
    for path in (tmp_path / "MMIS2024TASK1" / "testing").iterdir():
        path.unlink()
    assert_refused(run(MMIS, tmp_path, tmp_path), "testing")
    valid = run(MMIS, tmp_path, tmp_path, "--test_folder", "validation", "--max_epochs", 1)
    assert_succeeded(valid)


def test_a_leaking_split_is_warned_of(tmp_path, run):
    root = write_mmis(tmp_path)
    (root / "testing" / "test00.h5").rename(root / "testing" / "case01.h5")
    outcome = run(MMIS, tmp_path, tmp_path, "--max_epochs", 1)
    assert outcome.code == 0 and "warning" in outcome.err and "case01" in outcome.err


def test_volumes_are_scored_at_their_own_size(data_root, tmp_path, run):
    """Against a slow reference: predictions resized to each volume, overlaps counted on the whole of it."""
    assert run(MMIS, data_root, tmp_path, "--amp", "fp32").code == 0
    folder = tmp_path / "MMIS2024+gsd+select1"
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    networks = networks_of(checkpoint).eval()
    intensity = Intensity(**checkpoint["model"]["intensity"])
    for case in cases_of(folder):
        path = data_root / "MMIS2024TASK1" / "testing" / f"{case['image']}.h5"
        with h5py.File(path) as file:
            masks = [file[f"label_a{rater}"][:] for rater in range(1, 5)]
        image, _ = read_case(path, 4, 2)
        small = np.stack([resize_image(plane, 32) for plane in image])
        inputs = intensity.normalise(torch.from_numpy(small).movedim(-1, 1).float() / 255)
        with torch.no_grad():
            logits = networks[0](inputs) + networks[1](inputs)
        size = masks[0].shape[-2:]
        predicted = torch.nn.functional.interpolate(logits, size, mode="bilinear").argmax(1).numpy()
        for rater, mask in enumerate(masks, 1):
            if not mask.any():  # a rater who marked nothing
                assert case[f"dice_rater{rater}"] == ""
                continue
            dice = 2 * ((predicted == 1) & (mask == 1)).sum() / ((predicted == 1).sum() + mask.sum())
            assert float(case[f"dice_rater{rater}"]) == pytest.approx(dice, abs=2e-3)


@BOTH
def test_an_existing_run_is_named_before_anything_is_read(script, name, tmp_path, run):
    """Of data, that is: none is there."""
    (tmp_path / "model" / name).mkdir(parents=True)
    (tmp_path / "model" / name / "checkpoint.pt").touch()
    assert_refused(run(script, tmp_path / "nowhere", tmp_path / "model"), str(tmp_path / "model" / name), "--resume")
    assert_refused(run(script, tmp_path / "nowhere", tmp_path / "model", "--overwrite"), str(tmp_path / "nowhere"))
