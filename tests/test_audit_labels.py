"""scripts/audit_labels.py as its users meet it: images and masks in, a table, a page and better masks out."""

import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_refused, blob, call
from PIL import Image

from networks.unet import two_unets
from scripts import audit_labels
from utils.audit import folds
from utils.audit.judging import Contour
from utils.commands.errors import UserError
from utils.commands.files import claimed
from utils.engine.checkpoint import FORMAT
from utils.masks.contours import edge_contrast, levels_of, move_contour, nearest_class, signed_distance
from utils.masks.correction import EDGE_SIZE
from utils.masks.edge_profile import _moved, level_probabilities
from utils.masks.label_quality import contour_probabilities, label_quality, wrong_probability

SIZE = 48
SHIFTED = {3: -3, 8: 3, 11: -2}  # image -> by how much its contour is displaced, as `move_contour`


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def samples(count=16, shifted=SHIFTED):
    """Images (H,W,3), their true masks and the given ones, (H,W) of 0 and 1; those of ``shifted`` are displaced."""
    rng = np.random.default_rng(0)
    for index in range(count):
        image, mask = blob(rng, SIZE, 40)
        true = mask // 255
        yield image, true, move_contour(true, shifted.get(index, 0))


@pytest.fixture
def folder(tmp_path):
    """A folder whose path has spaces and letters of other alphabets, with images and masks."""
    folder = tmp_path / "my dätå 肺"
    for index, (image, _, given) in enumerate(samples()):
        save(folder / "images" / f"case {index:02}.png", image)
        save(folder / "masks" / f"case {index:02}.png", given * 255)
    return folder


@pytest.fixture
def run(folder):
    """audit_labels.py on these, into folder/audit, with more flags; later flags win: exit code, stdout, stderr."""

    def audit(*flags, places=("--images_root", folder / "images", "--masks_root", folder / "masks")):
        places = (*places, "--save_root", folder / "audit")
        more = ("--image_size", SIZE, "--workers", 1, "--device", "cpu")
        return call(audit_labels.main, *places, *more, *flags)

    return audit


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checkpoint_of(path, channels=3, num_classes=2):
    """Untrained networks, as a run would keep them."""
    contents = {
        "format": FORMAT,
        "epoch": 3,
        "networks": two_unets(channels, num_classes, seed=0).state_dict(),
        "args": {"image_size": 32, "num_classes": num_classes, "method": "gsd"},
        "model": {
            "in_channels": channels,
            "num_classes": num_classes,
            "intensity": {"mean": (0.4,) * channels, "std": (0.2,) * channels},
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(contents, path)
    return path


def dice(a, b):
    return 2 * ((a > 0) & (b > 0)).sum() / ((a > 0).sum() + (b > 0).sum())


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_probabilities_by_hand():
    """A square of side 4; the contour is where it is with 0.5, a pixel further in with 0.3, further out with 0.2."""
    label = np.zeros((10, 10), np.uint8)
    label[3:7, 3:7] = 1
    beliefs = contour_probabilities(label, np.array([-1, 0, 1]), np.array([0.2, 0.5, 0.3]))
    assert beliefs.shape == (2, 10, 10) and np.allclose(beliefs.sum(axis=0), 1)
    assert np.allclose(beliefs[1, 4, [1, 2, 3, 4]], [0, 0.2, 0.7, 1])
    inner, rim, outer = 4 * 1, 12 * 0.7, 16 * 0.2  # the outer ring has no corners within half a pixel
    corners = 4 * float(beliefs[1, 2, 2])
    expected = 2 * (inner + rim) / (16 + inner + rim + outer + (corners if beliefs[1, 2, 2] >= 0.1 else 0))
    assert label_quality(label, beliefs) == pytest.approx(expected, rel=1e-5)
    assert np.allclose(wrong_probability(label, beliefs)[4, [2, 3, 4]], [0.2, 0.3, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_probabilities_and_quality_of_three_classes_equal_loops(scale):
    """docs/method.md section 9: each level is spread over an interval of length 1; gained pixels have a class."""
    rng = np.random.default_rng(0)
    label = np.zeros((20, 30), np.uint8)
    label[4:15, 3:12], label[6:17, 18:26] = 1, 2
    levels, probabilities = np.arange(-3, 4), rng.dirichlet(np.ones(7))
    beliefs = contour_probabilities(label, levels, probabilities, 3, scale)
    assert beliefs.dtype == np.float32
    distance, nearest = signed_distance(label), nearest_class(label)
    expected = np.zeros((3, *label.shape))
    for place in np.ndindex(*label.shape):
        below = [min(max(distance[place] / scale - level + 0.5, 0), 1) for level in levels]
        expected[nearest[place]][place] = probabilities @ below
        expected[0][place] = 1 - probabilities @ below
    np.testing.assert_allclose(beliefs, expected, atol=1e-6)

    scores = []
    for k in (1, 2):
        considered = (label == k) | (expected[k] >= 0.1)
        together = (expected[k] * (label == k)).sum()
        scores.append(2 * together / ((label == k).sum() + expected[k][considered].sum()))
    assert label_quality(label, beliefs) == pytest.approx(np.mean(scores), rel=1e-5)


@pytest.mark.parametrize(("faint", "expected"), [(0.095, 1), (0.105, 2 / (1 + 1 + 10 * 0.105))])
def test_quality_leaves_out_what_is_fainter_than_a_tenth(faint, expected):
    label = np.zeros((1, 11), np.uint8)
    label[0, 0] = 1
    belief = np.where(label == 1, 1, faint)
    assert label_quality(label, np.stack([1 - belief, belief])) == pytest.approx(expected)


def test_probabilities_follow_the_scale():
    """A mask of twice the size has its contours twice as far apart."""
    label = np.zeros((20, 20), np.uint8)
    label[6:14, 6:14] = 1
    beliefs = contour_probabilities(label, np.array([-1, 0, 1]), np.array([0.0, 0.0, 1.0]), scale=2.0)
    assert beliefs[1, 10, 8] > 0.5 > beliefs[1, 10, 7]
    assert beliefs[1].round().sum() == 16


def test_quality_of_extremes():
    label = np.zeros((8, 8), np.uint8)
    nothing = np.stack([np.ones((8, 8)), np.zeros((8, 8))])
    haze = np.stack([np.full((8, 8), 0.95), np.full((8, 8), 0.05)])
    object_there = nothing[::-1]
    assert label_quality(label, nothing) == label_quality(label, haze) == 1
    assert label_quality(label, object_there) == label_quality(1 - label, nothing) == 0
    assert label_quality(1 - label, object_there) == 1


def test_few_displaced_masks_among_right_ones_are_found():
    images, _, given = zip(*samples(40), strict=True)
    levels = levels_of((SIZE,))
    found = level_probabilities([edge_contrast(*pair) for pair in zip(images, given, strict=True)], levels, SIZE)
    assert np.allclose(found.sum(axis=1), 1)
    moved = levels[found.argmax(axis=1)]
    assert {index: -int(level) for index, level in enumerate(moved) if level} == pytest.approx(SHIFTED, abs=1)


@pytest.mark.parametrize(("peak", "free", "stays"), [(5, 1, 4), (4, 1, 4), (3, 1, 3), (5, None, 3), (1, None, 3)])
def test_profile_has_its_peak_near_the_edge(peak, free, stays):
    """No further from the middle, 3, than it may be."""
    profile = np.zeros(7)
    profile[peak] = 1
    moved = _moved(profile, 128, free)
    assert moved.argmax() == stays and len(moved) == 7 and moved.sum() == pytest.approx(0)


def test_edge_lies_outside_of_the_peak_of_a_profile_that_falls_off_slowly_inwards():
    """By hand: a parabola through 2, 3 and 2 has its peak at 3; half of it, 1.5, is reached at 1.5, and half a ring
    inside of that is 2. The edge is in the middle, at 2.5, so half a pixel moves to the middle of 3."""
    moved = _moved(np.array([0.0, 1, 2, 3, 2, 2, 2]), 128, None)
    expected = np.array([0, 0.5, 1.5, 2.5, 2.5, 2, 2])
    assert moved == pytest.approx(expected - expected.mean())


def test_set_that_is_displaced_as_a_whole_is_moved_back():
    images, _, given = zip(*samples(20, dict.fromkeys(range(20), 3)), strict=True)
    levels = levels_of((SIZE,))
    found = level_probabilities([edge_contrast(*pair) for pair in zip(images, given, strict=True)], levels, SIZE)
    assert (levels[found.argmax(axis=1)] == -3).mean() >= 0.9


@pytest.mark.parametrize("empty", [0, 3])
def test_masks_without_a_boundary_stay(empty):
    """Also where no mask has one."""
    images, _, given = zip(*samples(4), strict=True)
    given = [mask * (index >= empty) for index, mask in enumerate(given)] if empty else [mask * 0 for mask in given]
    levels = levels_of((SIZE,))
    found = level_probabilities([edge_contrast(*pair) for pair in zip(images, given, strict=True)], levels, SIZE)
    assert (found[: empty or 4, levels == 0] == 1).all()


# --- What is written --------------------------------------------------------------------------------------------------


def test_displaced_masks_are_worst_and_are_mended(run, folder):
    before = {path: path.read_bytes() for path in (folder / "masks").iterdir()}
    code, out, _ = run()
    assert code == 0 and "16 masks scored" in out and "suspected label errors" in out
    table = rows(folder / "audit" / "audit.csv")
    scores = [float(row["score"]) for row in table]
    assert scores == sorted(scores) and 0 <= scores[0] < 0.85 < scores[3] <= scores[-1] <= 1
    assert {row["image"] for row in table[:3]} == {f"case {index:02}" for index in SHIFTED}
    assert {path: path.read_bytes() for path in (folder / "masks").iterdir()} == before
    for row in table[:3]:
        index = int(row["image"][-2:])
        _, true, given = list(samples())[index]
        refined = pixels(folder / "audit" / "masks_refined" / f"{row['image']}.png")
        assert set(np.unique(refined)) == {0, 255} and refined.shape == given.shape
        assert dice(refined, true) > max(dice(given, true), 0.95)
        wrong = (refined > 0) != (given > 0)
        assert (int(row["suspected_pixels"]), int(row["added"]) + int(row["removed"])) == (wrong.sum(), wrong.sum())
        assert float(row["suspected_share"]) == pytest.approx(wrong.mean(), abs=1e-6)
        assert np.sign(float(row["shift"])) == -np.sign(SHIFTED[index])
        chance = pixels(folder / "audit" / "error_probability" / f"{row['image']}.png")
        assert chance.dtype == np.uint8 and ((chance >= 128) == wrong).mean() > 0.99


@pytest.mark.parametrize("name", ["audit", "audit/masks_refined"])
def test_two_audits_do_not_share_a_folder(run, folder, name):
    with claimed(folder / name):
        assert_refused(run("--overwrite"), folder / name, "another process is writing there")
    assert not list(folder.glob("audit/masks_refined/*.png"))


def test_settings_name_the_checkpoint_that_judged(run, folder, monkeypatch):
    """And not the one that has taken its place since; a training run that goes on replaces it each epoch."""
    networks = checkpoint_of(folder / "model" / "checkpoint.pt")
    digest = hashlib.sha256(networks.read_bytes()).hexdigest()
    see_all = audit_labels.see_all

    def meanwhile(*args):
        networks.write_bytes(checkpoint_of(folder / "other" / "checkpoint.pt", num_classes=3).read_bytes())
        return see_all(*args)

    monkeypatch.setattr(audit_labels, "see_all", meanwhile)
    assert run("--checkpoint", networks)[0] == 0
    assert hashlib.sha256(networks.read_bytes()).hexdigest() != digest
    settings = json.loads((folder / "audit" / "settings.json").read_text())
    assert settings["checkpoint_sha256"] == digest


def test_logits_of_an_audit_that_was_killed_go(run, folder):
    left = folder / "audit" / ".logitsabc"
    left.mkdir(parents=True)
    (left / "0.npy").touch()
    assert run()[0] == 0 and not left.exists()


def test_masks_larger_than_the_audit(run, folder):
    """Masks are judged and refined at their own size."""
    for index, (image, _, given) in enumerate(samples()):
        for kind, array in (("images", image), ("masks", given * 255)):
            large = Image.fromarray(array).resize((3 * SIZE, 120), Image.Resampling.NEAREST)
            large.save(folder / kind / f"case {index:02}.png")
    assert run()[0] == 0
    table = rows(folder / "audit" / "audit.csv")
    assert {row["image"] for row in table[:3]} == {f"case {index:02}" for index in SHIFTED}
    assert pixels(folder / "audit" / "masks_refined" / "case 03.png").shape == (120, 3 * SIZE)
    assert max(abs(float(row["shift"])) for row in table[:3]) >= 6  # in pixels of the mask, three times as many


def test_three_classes_keep_their_numbers(run, folder):
    for index, (_, _, given) in enumerate(samples()):
        given = given * np.where(np.arange(SIZE) < SIZE // 2, 1, 2).astype(np.uint8)
        save(folder / "masks" / f"case {index:02}.png", given)
    assert_refused(run(), "--num_classes 3")
    assert run("--num_classes", 3)[0] == 0
    assert {row["image"] for row in rows(folder / "audit" / "audit.csv")[:3]} == {f"case {i:02}" for i in SHIFTED}
    assert set(np.unique(pixels(folder / "audit" / "masks_refined" / "case 03.png"))) == {0, 1, 2}


def test_mask_without_a_boundary(run, folder):
    """Nobody can tell without networks; with them it is judged."""
    save(folder / "masks" / "case 05.png", np.zeros((40, SIZE), np.uint8))
    code, out, _ = run()
    assert code == 0 and "not judged" in out and "case 05" in out
    scored = [float(row["suspected_share"]) for row in rows(folder / "audit" / "audit.csv") if row["score"]]
    assert f"suspected label errors: {np.mean(scored):.2%}" in out
    last = rows(folder / "audit" / "audit.csv")[-1]
    assert (last["image"], last["score"], last["suspected_pixels"]) == ("case 05", "", "0")
    assert "not judged" in (folder / "audit" / "audit.html").read_text()
    networks = checkpoint_of(folder / "model" / "checkpoint.pt")
    assert run("--checkpoint", networks, "--overwrite")[0] == 0
    assert all(row["score"] for row in rows(folder / "audit" / "audit.csv"))


def test_images_without_edges(run, folder):
    """Then the images say nothing of their masks, and the networks alone are asked."""
    for path in sorted((folder / "images").iterdir()):
        save(path, np.random.default_rng(0).integers(0, 255, pixels(path).shape, np.uint8))
    assert_refused(run(), "show no more of an edge", "--folds")
    code, out, _ = run("--checkpoint", checkpoint_of(folder / "model" / "checkpoint.pt"))
    assert code == 0 and "networks alone judge" in out


def test_networks_share_in_the_probability(run, folder):
    """With a checkpoint, the chance that a pixel is wrong is that of the mean of both."""
    assert run()[0] == 0
    alone = pixels(folder / "audit" / "error_probability" / "case 03.png") / 255
    assert run("--checkpoint", checkpoint_of(folder / "model" / "checkpoint.pt"), "--overwrite")[0] == 0
    both = pixels(folder / "audit" / "error_probability" / "case 03.png") / 255
    networks = 2 * both - alone
    assert networks.min() > -0.02 and networks.max() < 1.02 and np.abs(both - alone).max() > 0.1


def test_run_again_and_with_other_settings(run, folder):
    assert run()[0] == 0
    first = (folder / "audit" / "audit.csv").read_bytes()
    assert run()[0] == 0 and (folder / "audit" / "audit.csv").read_bytes() == first
    assert_refused(run("--ignore_label", 7), folder / "audit" / "masks_refined", "--overwrite")
    assert run("--ignore_label", 7, "--overwrite")[0] == 0


@pytest.mark.usefixtures("trained_here")
def test_folds_judge_what_they_did_not_see(run, folder):
    """Each image is predicted by the networks of the fold that held it out."""
    flags = ("--folds", 2, "--image_size", 32, "--", "--batch_size", 4, "--max_epochs", 1)
    assert run(*flags)[0] == 0
    tests = [sorted(p.stem for p in (folder / f"audit/folds/data/fold{k}/images_test").iterdir()) for k in (1, 2)]
    trained = [sorted(p.stem for p in (folder / f"audit/folds/data/fold{k}/images").iterdir()) for k in (1, 2)]
    assert len(tests[0]) == len(tests[1]) == 8 and not set(tests[0]) & set(tests[1])
    assert trained == tests[::-1]
    assert len(rows(folder / "audit" / "audit.csv")) == 16


def test_dataset_in_place_of_folders(run, folder):
    """The same audit; the dataset is left as it is."""
    assert run()[0] == 0
    by_folders = (folder / "audit" / "audit.csv").read_bytes()
    mended = pixels(folder / "audit" / "masks_refined" / "case 03.png")
    shutil.rmtree(folder / "audit")
    places = ("--datasets", folder.name.upper(), "--noise_type", "given", "--data_root", folder.parent)
    code, out, _ = run(places=places)
    assert code == 0 and str(folder / "audit" / "masks_refined") in out
    assert (folder / "audit" / "audit.csv").read_bytes() == by_folders
    assert (pixels(folder / "audit" / "masks_refined" / "case 03.png") == mended).all()
    assert sorted(path.name for path in folder.iterdir()) == ["audit", "images", "masks"]
    assert run("--refined_root", folder / "mended", "--overwrite", places=places)[0] == 0
    assert (folder / "mended" / "case 03.png").is_file()


def test_noise_and_layout_of_a_dataset(run, folder, tmp_path, monkeypatch):
    """Those of training, and its data root."""
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "shenzhen")
    tmp_path.joinpath("data").mkdir()
    dataset = (tmp_path / "shenzhen").rename(tmp_path / "data" / "shenzhen")
    (dataset / "images").rename(dataset / "img")
    (dataset / "masks").rename(dataset / "mask_DE")
    places = ("--datasets", "Shenzhen", "--noise_type")
    assert run(places=(*places, "DE"))[0] == 0
    assert {row["image"] for row in rows(folder / "audit" / "audit.csv")[:3]} == {f"case {i:02}" for i in SHIFTED}
    missing = Path("data", "shenzhen", "mask_200_0.2_0.05_0.2")
    assert_refused(run(places=(*places, "02")), missing, "--noise_type 02", "generate_simulated_noise.py")
    assert_refused(run(places=(*places, "given")), Path("data", "shenzhen", "mask"), "no such folder")
    assert_refused(run("--datasets", "other", places=(*places, "DE")), "--datasets other", "shenzhen")


def test_busuc_is_read_in_colour(run, folder):
    """As training does: its scans are stored in grey and in colour."""
    save(folder / "images" / "case 09.png", pixels(folder / "images" / "case 09.png")[..., 0])
    folder = folder.rename(folder.with_name("BUSUC"))
    assert run(places=("--datasets", "busuc", "--noise_type", "given", "--data_root", folder.parent))[0] == 0


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ((), "none of these"),
        (("images_root",), "--images_root"),
        (("masks_root",), "--masks_root"),
        (("datasets",), "--datasets"),
        (("noise_type", "data_root"), "--noise_type, --data_root"),
        (("data_root",), "--data_root"),
        (("images_root", "noise_type"), "--images_root, --noise_type"),
        (("images_root", "masks_root", "datasets"), "--images_root, --masks_root, --datasets"),
        (("images_root", "masks_root", "data_root"), "--images_root, --masks_root, --data_root"),
        (
            ("images_root", "masks_root", "datasets", "noise_type"),
            "--images_root, --masks_root, --datasets, --noise_type",
        ),
    ],
)
def test_folders_or_a_dataset(run, folder, names, found):
    values = {"images_root": folder / "images", "masks_root": folder / "masks", "data_root": folder.parent}
    values |= {"datasets": folder.name, "noise_type": "given"}
    outcome = run(places=[word for name in names for word in (f"--{name}", values[name])])
    assert_refused(outcome, "either --images_root and --masks_root, or --datasets and --noise_type")
    assert outcome[2].rstrip().endswith(f"found {found}") and not (folder / "audit").exists()


def test_files_of_folds_are_named_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record, files = Path("audit/files.json"), [Path("images/a.png"), Path("../b.png")]
    folds.check_unchanged(record, dict.fromkeys(files, "before"), overwrite=False)
    folds.check_unchanged(tmp_path / record, {tmp_path / path: "before" for path in files}, overwrite=False)
    with pytest.raises(UserError) as refused:
        folds.check_unchanged(record, dict.fromkeys(files, "now"), overwrite=False)
    assert "(changed: images/a.png, ../b.png)" in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_stale_folds_are_refused(run, folder, trained_here):
    """Networks that were trained before an image or a mask was changed do not judge it, nor are they trained on."""
    last = ("--", "--batch_size", 4, "--max_epochs", 1, "--tau", 0.05)
    flags = ("--folds", 2, "--image_size", 32, *last)
    assert run(*flags)[0] == 0
    mask, image = folder / "masks" / "case 04.png", folder / "images" / "case 04.png"
    good = {path: path.read_bytes() for path in (mask, image)}

    for path in (mask, image):
        save(path, pixels(path)[::-1])
        assert_refused(run(*flags), "--folds", folder / "audit" / "folds", f"(changed: {path})", "--overwrite")
        path.write_bytes(good[path])
    for path in (mask, image):
        path.rename(path.with_name("case 99.png"))
    gone = f"new: {image.with_name('case 99.png')}, {mask.with_name('case 99.png')}; gone: {image}, {mask}"
    assert_refused(run(*flags), "--folds", gone, "--overwrite")
    for path in (mask, image):
        path.with_name("case 99.png").rename(path)

    # Training itself refuses, where the audit has no record of the files.
    trained_here.clear()
    save(mask, pixels(mask)[::-1])
    (folder / "audit" / "folds" / "files.json").unlink()
    assert_refused(run(*flags), "--folds", "fold1")
    [refused] = trained_here
    assert_refused(refused, "fold1+fold+given", "no longer those of the run", "--overwrite")

    # Trained again, at another size: the superpixels are made again too.
    assert run("--folds", 2, "--image_size", SIZE, "--overwrite", *last)[0] == 0


@pytest.mark.parametrize("flags", [("--datasets", "x"), ("--exp=x",), ("--res",), ("--output", "x"), ("--slic", "x")])
def test_flags_of_the_audit_are_not_passed_on(run, folder, flags):
    name = next(name for name in folds.FIXED if f"--{name}".startswith(flags[0].split("=")[0]))
    assert_refused(run("--folds", 2, "--", *flags), f"after --: --{name}", f"leave --{name} out")
    assert_refused(run("--folds", 2, "--image_size", 64, "--", "--image_size", 32), "--image_size: 64")
    assert not (folder / "audit").exists()


# --- The page ---------------------------------------------------------------------------------------------------------


def test_page_escapes_names(run, folder):
    name = "<script>alert(1)<!--&\"'"
    for kind in ("images", "masks"):
        (folder / kind / "case 00.png").rename(folder / kind / f"{name}.png")
    assert run()[0] == 0
    page = (folder / "audit" / "audit.html").read_text(encoding="utf-8")
    assert name not in page and "&lt;script&gt;alert(1)&lt;!--&amp;&quot;&#x27;" in page
    assert page.count("<tr ") == page.count("data:image/jpeg;base64,") == 16


def test_page_shows_the_worst(run, folder):
    assert run("--page_images", 3)[0] == 0
    page = (folder / "audit" / "audit.html").read_text(encoding="utf-8")
    assert [index for index in range(16) if f">case {index:02}<" in page] == sorted(SHIFTED)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_unreadable_files_are_named_and_left_out(run, folder):
    (folder / "images" / "case 01.png").write_bytes((folder / "images" / "case 01.png").read_bytes()[:200])
    (folder / "masks" / "case 02.png").write_text("no image")
    save(folder / "masks" / "case 04.png", np.zeros((9, 9), np.uint8))
    code, _, err = run()
    assert code == 1 and "Traceback" not in err and "3 of 16" in err
    assert all(name in err for name in ("images/case 01.png", "masks/case 02.png", "masks/case 04.png", "9x9"))
    assert len(rows(folder / "audit" / "audit.csv")) == 13
    assert len(list((folder / "audit" / "masks_refined").glob("*.png"))) == 13


def test_nothing_is_left_of_a_mask_that_cannot_be_read_any_more(run, folder):
    assert run()[0] == 0
    (folder / "masks" / "case 02.png").write_text("no image")
    for kind in ("images", "masks"):
        (folder / kind / "case 03.png").unlink()
    code, out, err = run()
    assert code == 1 and "case 02.png" in err
    for place in (folder / "audit" / "masks_refined", folder / "audit" / "error_probability"):
        assert any(f"note: {place}: 1 " in line and "case 03.png" in line for line in out.splitlines())
        assert {path.name for path in place.glob("*.png")} == {f"case {i:02}.png" for i in range(16) if i != 2}


def test_nothing_readable(run, folder):
    for path in (folder / "masks").iterdir():
        path.write_bytes(b"\x89PNG")
    assert_refused(run(), "none of the 16 images", "case 00.png")
    assert not (folder / "audit").exists()


def test_folders_that_do_not_fit(run, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(run("--images_root", tmp_path / "empty"), tmp_path / "empty", "no image in it")
    assert_refused(run("--masks_root", tmp_path / "missing"), tmp_path / "missing", "no such folder")
    (folder / "masks" / "case 07.png").unlink()
    assert_refused(run(), folder / "masks", "case 07.png")


def test_given_masks_are_never_overwritten(run, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert_refused(run("--refined_root", folder / "masks", "--overwrite"), "--refined_root", "--masks_root")
    assert_refused(run("--save_root", folder / "images" / ".." / "images"), "--save_root", "--images_root")
    assert_refused(run("--refined_root", folder / "audit"), "--refined_root", "--save_root")
    other = save(folder / "masks_reader2" / "case 00.png", np.zeros((40, SIZE), np.uint8))
    assert_refused(run("--refined_root", folder / "masks_reader2"), folder / "masks_reader2", "case 00.png")
    assert {path: path.read_bytes() for path in folder.rglob("*.png") if path != other} == before


@pytest.mark.parametrize("kind", ["image", "text", "half", "weights", "missing"])
def test_files_that_are_no_checkpoints(run, folder, kind):
    good = checkpoint_of(folder / "good.pt").read_bytes()
    path = folder / "wrong.pt"
    if kind == "weights":
        torch.save(two_unets(3, 2, 0).state_dict(), path)
    elif kind != "missing":
        content = {"image": next((folder / "images").iterdir()).read_bytes(), "text": b"weights"}
        path.write_bytes(content.get(kind, good[: len(good) // 2]))
    assert_refused(run("--checkpoint", path), path, "checkpoint")
    assert not (folder / "audit").exists()


def test_checkpoint_of_another_kind(run, folder):
    grey = checkpoint_of(folder / "grey.pt", channels=1)
    assert_refused(run("--checkpoint", grey), "--checkpoint", "1 channels", "has 3")
    classes = checkpoint_of(folder / "classes.pt", num_classes=3)
    assert_refused(run("--checkpoint", classes, "--num_classes", 2), "--num_classes 2", "3 classes")
    assert not (folder / "audit").exists()


def test_channels_beside_a_checkpoint(run, folder):
    colour = checkpoint_of(folder / "colour.pt")
    save(folder / "images" / "case 09.png", pixels(folder / "images" / "case 09.png")[..., 0])
    assert_refused(run("--checkpoint", colour), "case 09.png has 1", "--channels 3")
    assert_refused(run("--checkpoint", colour, "--channels", 1), "--channels 1", "3 channels")
    assert not (folder / "audit").exists()
    assert run("--checkpoint", colour, "--channels", 3)[0] == 0


def test_images_of_different_channels(run, folder):
    save(folder / "images" / "case 09.png", pixels(folder / "images" / "case 09.png")[..., 0])
    assert_refused(run(), "case 09.png has 1 channels", "--channels 3")
    assert run("--channels", 3)[0] == 0


@pytest.mark.parametrize("where", ["save_root", "refined_root"])
def test_no_permission_to_write(where):
    """As an ordinary user, even where the tests run as root."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        place.chmod(0o777)
        image, _, given = next(iter(samples()))
        save(place / "images" / "a.png", image)
        save(place / "masks" / "a.png", given * 255)
        locked = place / "locked"
        locked.mkdir()
        locked.chmod(0o555)
        flags = {"images_root": place / "images", "masks_root": place / "masks", "workers": 1, "image_size": SIZE}
        flags |= {"save_root": place / "audit", "refined_root": place / "refined"} | {where: locked / "deeper"}
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            outcome = call(audit_labels.main, *(x for name, value in flags.items() for x in (f"--{name}", value)))
        finally:
            if root:
                os.seteuid(0)
            locked.chmod(0o755)
        assert_refused(outcome, locked, "cannot be written (Permission denied)")
        assert list(locked.iterdir()) == []


def test_full_disk(run, folder, monkeypatch):
    """Nothing half-written is left, and it goes on once there is room again."""
    healthy, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:  # three records of settings and the files of one image fit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        healthy(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("utils.commands.files.os.fsync", full)
        assert_refused(run(), "No space left on device")
    assert [path.name for path in folder.glob("audit/masks_refined/*.png")] == ["case 00.png"]
    assert not list(folder.rglob("*.tmp")) and not list((folder / "audit").glob(".logits*"))
    assert run()[0] == 0


@pytest.mark.parametrize("flags", [("--folds", 1), ("--page_images", 0), ("--", "--max_epochs", 3), ("--unknown",)])
def test_flags_that_make_no_sense(run, flags):
    assert run(*flags)[0] == 2


@pytest.mark.parametrize("flags", [("--seed", 1), ("--batch_size", 2), ("--amp", "bf16")])
def test_flags_of_networks_without_any(run, folder, flags):
    assert_refused(run(*flags), f"{flags[0]} {flags[1]}: of no effect without --folds")
    assert not (folder / "audit").exists()


def test_checkpoint_or_folds(run, folder):
    assert run("--folds", 2, "--checkpoint", checkpoint_of(folder / "c.pt"))[0] == 2
    assert_refused(run("--folds", 9), "--folds 9", "16 images")


def test_networks_alone_judge_a_mask_without_a_boundary(tmp_path):
    """What contours say of an empty mask, that it is as given, must not outvote networks that see an object."""
    image, empty = save(tmp_path / "a.png", np.zeros((SIZE, SIZE, 3), np.uint8)), np.zeros((SIZE, SIZE), np.uint8)
    looked = audit_labels.Looked(
        (image, save(tmp_path / "m.png", empty)), edge_contrast(np.zeros((SIZE, SIZE, 3)), empty), False, False
    )
    at_zero = Contour((levels_of((EDGE_SIZE,)) == 0).astype(float), 0.0)
    args = Namespace(num_classes=2, ignore_label=None)
    logits = np.zeros((2, SIZE, SIZE), np.float32)
    logits[1] = -20
    logits[1, 10:30, 10:30] = 20
    np.save(tmp_path / "logits.npy", logits)
    judged = audit_labels.judge_file(
        (looked, at_zero, tmp_path / "logits.npy"), args, tmp_path / "refined", tmp_path / "wrong"
    )
    assert judged.suspected_pixels == judged.added == 400 and judged.score < 0.1
    assert (pixels(tmp_path / "refined" / "a.png") == 255).sum() == 400
    assert pixels(tmp_path / "wrong" / "a.png")[20, 20] == 255
