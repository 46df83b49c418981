"""scripts/prepare_data.py: from raw downloads, drawn here, to dataset folders; the values are worked out by hand."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_refused, blob, call
from PIL import Image

from dataloaders.dataset_folder import find_parts
from dataloaders.datasets import Layout
from dataloaders.files import read_mask
from dataloaders.pixels import orientation_of, read_stored
from dataloaders.prepare.finding import stem_of, without_identifiers
from dataloaders.prepare.medical import Identity
from dataloaders.prepare.pairing import guess_suffix, image_of
from dataloaders.prepare.settings import Settings, prepared_settings, settings_from
from dataloaders.prepare.writing import choose_test
from scripts import prepare_data, verify_data
from utils.commands.errors import UserError


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def grey(value=90, height=6, width=8):
    return np.full((height, width), value, np.uint8)


def square(top, left, height=6, width=8, value=255):
    """A mask with a foreground of 2x2 pixels."""
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + 2, left : left + 2] = value
    return mask


prepared = partial(call, prepare_data.main)


@pytest.fixture
def raw(tmp_path):
    """A breast-ultrasound set as it is downloaded: 5 benign, of which the second has two masks, 5 malignant, 2 normal,
    of which one has an empty mask."""
    root, rng = tmp_path / "raw", np.random.default_rng(0)
    for kind in ("benign", "malignant"):
        for number in range(1, 6):
            image, mask = blob(rng)
            save(root / kind / f"{kind} ({number}).png", image)
            save(root / kind / f"{kind} ({number})_mask.png", mask)
    save(root / "benign" / "benign (2)_mask.png", square(0, 0, 40, 48))
    save(root / "benign" / "benign (2)_mask_1.png", square(30, 40, 40, 48))
    for number in (1, 2):
        save(root / "normal" / f"normal ({number}).png", blob(rng)[0])
    save(root / "normal" / "normal (1)_mask.png", grey(0, 40, 48))
    return root


@pytest.fixture
def prepare(raw, tmp_path):
    """prepare_data.py on it, into tmp_path/data/set, with more flags; later flags win."""

    def prepare(*flags):
        roots = ("--images_root", raw, "--save_root", tmp_path / "data" / "set", "--workers", 1)
        return prepared(*roots, *flags)

    return prepare


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def labels(folder, name, num_classes=2):
    """The label of an image, on whichever side it is."""
    paths = [folder / kind / f"{name}.png" for kind in ("masks", "masks_test")]
    return next(read_mask(path, num_classes).labels for path in paths if path.is_file())


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commands(out):
    return [line.strip() for line in out.splitlines() if line.startswith("  python ")]


# --- The public layout, with no flags ---------------------------------------------------------------------------------


def test_download_with_no_flags(prepare, raw, tmp_path):
    before = contents(raw)
    code, out, _ = prepare()
    folder = tmp_path / "data" / "set"
    assert code == 0 and "12 images of 12 files" in out and "_mask (guessed)" in out
    assert contents(raw) == before
    assert len(names(folder / "images")) == len(names(folder / "masks")) == 10
    assert len(names(folder / "images_test")) == len(names(folder / "masks_test")) == 2
    everything = {*names(folder / "images"), *names(folder / "images_test")}
    assert everything == {f"{k}_{k} ({n}).png" for k in ("benign", "malignant") for n in range(1, 6)} | {
        "normal_normal (1).png",
        "normal_normal (2).png",
    }
    # Copies, byte by byte.
    copied = folder / "images" / "benign_benign (1).png"
    copied = copied if copied.is_file() else folder / "images_test" / copied.name
    assert copied.read_bytes() == (raw / "benign" / "benign (1).png").read_bytes()
    # Two masks of four pixels each make one of eight.
    assert labels(folder, "benign_benign (2)").sum() == 8
    assert not labels(folder, "normal_normal (1)").any() and not labels(folder, "normal_normal (2)").any()


def test_split_is_written_and_seeded(prepare, tmp_path):
    folder = tmp_path / "data" / "set"
    sides = {}
    for seed in (0, 0, 1, 2, 3):
        assert prepare("--seed", seed, "--overwrite")[0] == 0
        split = json.loads((folder / "split.json").read_text())
        assert [f"{stem}.png" for stem in split["train"]] == names(folder / "images")
        assert [f"{stem}.png" for stem in split["test"]] == names(folder / "images_test")
        assert split["seed"] == seed and split["test"] == sides.setdefault(seed, split["test"])
    assert len(set(map(tuple, sides.values()))) > 1


def test_training_and_verification_read_it(prepare, tmp_path):
    prepare()
    parts = find_parts(tmp_path / "data" / "set", Layout(), "given")
    assert len(parts.train) == 10 and len(parts.cases) == 2
    flags = ("--datasets", "set", "--data_root", tmp_path / "data", "--image_size", 32, "--workers", 1)
    code, out, _ = call(verify_data.main, *flags)
    assert code == 0 and "0 errors, 2 warnings" in out  # the two empty masks


def test_class_per_folder(prepare, tmp_path):
    code, out, _ = prepare("--class_of", "benign=1", "malignant=2")
    folder = tmp_path / "data" / "set"
    assert code == 0
    assert np.unique(labels(folder, "benign_benign (1)", 3)).tolist() == [0, 1]
    assert np.unique(labels(folder, "malignant_malignant (1)", 3)).tolist() == [0, 2]
    assert not labels(folder, "normal_normal (2)", 3).any()
    for command in commands(out):
        assert ("--num_classes 3" in command) == ("predict.py" not in command)


def test_next_commands_name_what_was_made(prepare, tmp_path):
    _, out, _ = prepare()
    verify, train, predict, evaluate = commands(out)
    folder, flags = tmp_path / "data" / "set", f"--datasets set --data_root {tmp_path / 'data'}"
    assert verify == f"python scripts/verify_data.py {flags}"
    assert train == f"python train_GSD-Net.py {flags} --noise_type given --batch_size 2"  # 10 images, at 16 none
    assert f"--images_root {folder / 'images_test'} --save_root predicted/set" in predict
    assert f"--predictions predicted/set --masks {folder / 'masks_test'} --save scores/set.csv" in evaluate


def test_dry_run_writes_nothing_and_says_the_same(prepare, tmp_path):
    code, dry, _ = prepare("--dry_run")
    assert code == 0 and not (tmp_path / "data").exists()
    _, wet, _ = prepare()
    assert dry.replace("nothing written (--dry_run)", "written") == wet


def test_without_a_test_set(prepare, tmp_path):
    code, out, _ = prepare("--test_share", 0)
    folder = tmp_path / "data" / "set"
    assert code == 0 and len(names(folder / "images")) == 12 and len(commands(out)) == 2
    assert not (folder / "images_test").exists() and not (folder / "masks_test").exists()


def test_links(prepare, raw, tmp_path):
    assert prepare("--link", "--test_share", 0)[0] == 0
    path = tmp_path / "data" / "set" / "images" / "benign_benign (1).png"
    assert path.is_symlink() and path.resolve() == (raw / "benign" / "benign (1).png").resolve()
    assert not (tmp_path / "data" / "set" / "masks" / "benign_benign (1).png").is_symlink()


def test_several_processes_do_the_same(prepare, tmp_path):
    prepare()
    alone = contents(tmp_path / "data")
    prepare("--overwrite", "--workers", 2)
    assert contents(tmp_path / "data") == alone


# --- What is left out -------------------------------------------------------------------------------------------------


def test_every_file_left_out_is_named(prepare, raw, tmp_path):
    save(raw / "benign" / "alone.png", grey())
    save(raw / "benign" / "stranger_mask.png", grey())
    save(raw / "benign" / "small.png", grey())
    save(raw / "benign" / "small_mask.png", grey(0, 5, 8))
    save(raw / "benign" / "third.png", grey())
    save(raw / "benign" / "third_mask.png", np.array([[0, 100, 200, 200]] * 2))
    save(raw / "benign" / "broken.png", grey())
    save(raw / "benign" / "broken_mask.png", grey(0))
    (raw / "benign" / "broken.png").write_bytes((raw / "benign" / "broken.png").read_bytes()[:50])
    (raw / "notes.txt").write_text("by hand")
    (raw / ".DS_Store").write_text("")
    (raw / "gone.png").symlink_to(raw / "nowhere.png")
    code, out, _ = prepare()
    assert code == 0 and "12 images of 12 files" in out
    reasons = json.loads((tmp_path / "data" / "set" / "prepared.json").read_text())["left_out"]
    pairs = ("small", "third", "broken")
    assert reasons.keys() == {"notes.txt", ".DS_Store", "gone.png", "benign/alone.png", "benign/stranger_mask.png"} | {
        f"benign/{name}{suffix}.png" for name in pairs for suffix in ("", "_mask")
    }
    for name, reason in reasons.items():
        assert f"  {name}: {reason}\n" in out
    assert "8x5" in reasons["benign/small.png"] and "8x6" in reasons["benign/small.png"]
    assert "100" in reasons["benign/third.png"]
    assert "stranger" in reasons["benign/stranger_mask.png"]
    assert str(raw) not in "".join(reasons.values())


def test_images_of_one_name_are_refused(prepare, raw):
    save(raw / "benign" / "benign (1).jpg", grey())
    assert_refused(prepare(), "benign (1).png", "benign (1).jpg", "--masks_root")


def test_names_that_would_meet_are_refused(prepare, raw):
    save(raw / "benign_benign (1).png", grey())
    save(raw / "benign_benign (1)_mask.png", grey(0))
    assert_refused(prepare(), "benign/benign (1).png", "benign_benign (1)")


def test_nothing_left_writes_nothing(tmp_path):
    save(tmp_path / "raw" / "a.png", grey())
    save(tmp_path / "raw" / "a_mask.png", grey(0, 5, 5))
    outcome = prepared("--images_root", tmp_path / "raw", "--save_root", tmp_path / "data", "--workers", 1)
    assert_refused(outcome, "a.png", "8x6")
    assert not (tmp_path / "data").exists()


# --- Pairing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "beside", "suffix"),
    [
        (["a", "a_mask", "b", "b_mask_1", "b_mask_2"], None, True, "_mask"),
        (["a", "a_segmentation"], None, True, "_segmentation"),
        (["case1", "case10", "case1_gt", "case10_gt"], None, True, "_gt"),
        (["a", "a_x", "b", "b_x"], None, True, "_x"),  # every file is an image or has one
        (["a", "b"], ["a", "b"], False, ""),
        (["a", "b", "c"], ["a_m", "b_m"], False, "_m"),
        (["a", "a_left"], ["a", "a_left"], False, ""),
    ],
)
def test_guessed_suffix(images, masks, beside, suffix):
    keys, others = ([((), name) for name in group] for group in (images, masks or images))
    assert guess_suffix(keys, others, Path("raw") if beside else None) == suffix


@pytest.mark.parametrize(
    "stems", [["a", "b"], ["a", "a_left", "b"], ["a", "a_1", "a_2"], ["a", "a_mask", "a_label"]], ids=str
)
def test_suffix_that_is_not_plain(stems):
    keys = [((), name) for name in stems]
    with pytest.raises(UserError, match="--mask_suffix"):
        guess_suffix(keys, keys, Path("raw"))


def test_folder_of_masks_beside_that_of_images_is_named():
    keys = [((folder, "p1"), name) for folder in ("pictures", "masks") for name in ("a", "b")]
    with pytest.raises(UserError, match="--images_root raw/pictures --masks_root raw/masks"):
        guess_suffix(keys, keys, Path("raw"))


@pytest.mark.parametrize(
    ("mask", "suffix", "image"),
    [
        ("x_mask", "_mask", "x"),
        ("x_mask_1", "_mask", "x"),
        ("x_mask (2)", "_mask", "x"),
        ("x_1_mask", "_mask", "x_1"),
        ("x_mask_mask", "_mask", "x_mask"),
        ("x", "_mask", None),
        ("_mask", "_mask", None),
        ("x_1", "", "x_1"),
    ],
)
def test_image_of_a_mask(mask, suffix, image):
    assert image_of(((), mask), suffix) == (None if image is None else ((), image))


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.b.png", "a.b"), ("a.nii.gz", "a"), ("a_0000.nii.gz", "a"), ("a_0000.png", "a_0000"), ("1.2.3", "1.2.3")],
)
def test_stem(tmp_path, name, stem):
    assert stem_of(tmp_path / name) == stem


def test_masks_in_a_folder_of_their_own(tmp_path):
    for folder in ("p1", "p2"):
        save(tmp_path / "raw" / folder / "a.png", grey())
        save(tmp_path / "raw" / "labels" / folder / "a.bmp", square(0, 0, value=1))
    roots = ("--images_root", tmp_path / "raw", "--masks_root", tmp_path / "raw" / "labels")
    code, _, _ = prepared(*roots, "--save_root", tmp_path / "set", "--workers", 1, "--test_share", 0)
    assert code == 0 and names(tmp_path / "set" / "images") == ["p1_a.png", "p2_a.png"]
    assert labels(tmp_path / "set", "p1_a").sum() == 4


def test_values_and_ignored_pixels(tmp_path):
    save(tmp_path / "raw" / "a.png", grey())
    save(tmp_path / "raw" / "a_mask_1.png", square(0, 0, value=100))
    save(tmp_path / "raw" / "a_mask_2.png", square(1, 1, value=200))
    save(tmp_path / "raw" / "a_mask_3.png", square(2, 2, value=7))
    roots = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--test_share", 0, "--workers", 1)
    code, out, _ = prepared(*roots, "--values", "100=1", "200=2", "7=255")
    written = np.asarray(Image.open(tmp_path / "set" / "masks" / "a.png"))
    # The class 2 of (1,1) and (2,2) wins over the class 1 and over no label.
    expected = np.zeros((6, 8), int)
    expected[0:2, 0:2], expected[2:4, 2:4], expected[1:3, 1:3] = 1, 255, 2
    assert code == 0 and (written == expected).all()
    assert all("--num_classes 3 --ignore_label 255" in command for command in commands(out))
    assert_refused(prepared(*roots, "--values", "100=1", "200=2", "--overwrite"), "a.png", "7")


def test_masks_of_more_classes(tmp_path):
    save(tmp_path / "raw" / "a.png", grey())
    save(tmp_path / "raw" / "a_mask.png", square(0, 0, value=1) + square(3, 3, value=2))
    roots = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--test_share", 0, "--workers", 1)
    assert_refused(prepared(*roots), "a.png", "--num_classes 3")
    assert prepared(*roots, "--num_classes", 3)[0] == 0
    assert (
        np.asarray(Image.open(tmp_path / "set" / "masks" / "a.png")) == square(0, 0, value=1) + square(3, 3, value=2)
    ).all()


def test_ignore_label_of_two_classes(tmp_path):
    save(tmp_path / "raw" / "a.png", grey())
    mask = square(0, 0, value=1) + square(3, 3, value=255)
    save(tmp_path / "raw" / "a_mask.png", mask)
    roots = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--test_share", 0, "--workers", 1)
    assert_refused(prepared(*roots), "a.png", "--ignore_label 255")
    assert prepared(*roots, "--ignore_label", 255)[0] == 0
    assert (np.asarray(Image.open(tmp_path / "set" / "masks" / "a.png")) == mask).all()


def test_folder_without_lesions_by_a_flag(prepare, raw):
    (raw / "normal").rename(raw / "Healthy")
    _, out, _ = prepare("--dry_run")
    assert "Healthy/normal (2).png: no mask" in out and "11 images" in out
    _, out, _ = prepare("--dry_run", "--normal", "healthy")
    assert "12 images" in out


@pytest.mark.parametrize("flag", [("--class_of", "bening=1"), ("--normal", "bening")], ids=lambda flag: flag[0])
def test_folder_that_is_not_there(prepare, flag):
    assert_refused(prepare(*flag), flag[0], "bening", "benign, malignant, normal")


# --- Orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    """With "stored", image and mask are as in the files; with "exif", a mask of the turned image is needed."""
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    exif = Image.Exif()
    exif[274] = orientation
    image = save(tmp_path / "raw" / "a.png", pixels, exif=exif)
    save(tmp_path / "raw" / "a_mask.png", square(0, 0))
    assert orientation_of(image) == orientation
    roots = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--test_share", 0, "--workers", 1)
    assert prepared(*roots, "--orientation", "stored")[0] == 0
    assert (read_stored(tmp_path / "set" / "images" / "a.png")[..., 0] == pixels).all()
    assert (labels(tmp_path / "set", "a") == square(0, 0, value=1)).all()
    outcome = prepared(*roots, "--overwrite")
    if orientation < 5:
        assert outcome[0] == 0 and (tmp_path / "set" / "images" / "a.png").read_bytes() == image.read_bytes()
    else:  # a quarter turn: 8x6 is no longer the image's size
        assert_refused(outcome, "a.png", "--orientation stored")


def test_deep_images_stay_deep_when_turned_back(tmp_path):
    values = (np.arange(48) * 1000).astype(np.uint16).reshape(6, 8)
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / "raw").mkdir()
    Image.fromarray(values).save(tmp_path / "raw" / "a.tif", exif=exif)
    save(tmp_path / "raw" / "a_mask.png", square(0, 0))
    flags = ("--save_root", tmp_path / "set", "--test_share", 0, "--workers", 1, "--orientation", "stored")
    assert prepared("--images_root", tmp_path / "raw", *flags)[0] == 0
    (path,) = (tmp_path / "set" / "images").iterdir()
    assert read_stored(path).dtype == np.uint16 and (read_stored(path)[..., 0] == values).all()


# --- Patients ---------------------------------------------------------------------------------------------------------


def test_patients_stay_together(tmp_path):
    for patient in range(6):
        for number in range(4):
            save(tmp_path / "raw" / f"p{patient}_{number}.png", grey())
            save(tmp_path / "raw" / f"p{patient}_{number}_mask.png", square(0, 0))
    roots = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--workers", 1)
    assert prepared(*roots, "--patient", r"^(p\d)_", "--test_share", 0.34)[0] == 0
    split = json.loads((tmp_path / "set" / "split.json").read_text())
    assert len(split["test"]) == 8
    assert not {stem[:2] for stem in split["test"]} & {stem[:2] for stem in split["train"]}
    outcome = prepared(*roots, "--patient", r"q(\d)", "--overwrite")
    assert_refused(outcome, "--patient", "24 of 24", "p0_0.png")
    assert_refused(prepared(*roots, "--patient", "(", "--overwrite"), "--patient")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_test_set_has_its_share_of_every_folder(share):
    groups = [(folder, f"{folder}{n}", 1) for folder in ("a", "b") for n in range(20)]
    for seed in range(5):
        chosen = choose_test(groups, share, seed)
        assert len(chosen) == 40 * share
        assert {sum(name.startswith(folder) for name in chosen) for folder in ("a", "b")} == {20 * share}


def test_test_set_keeps_one_patient_on_each_side():
    for share in (0.01, 0.99):
        for seed in range(5):
            assert len(choose_test([("", "a", 3), ("", "b", 3)], share, seed)) == 1
    assert choose_test([("", "a", 1)], 0, 0) == set()
    with pytest.raises(UserError, match="--test_share 0"):
        choose_test([("", "a", 3)], 0.2, 0)


# --- The folder that is made ------------------------------------------------------------------------------------------


def test_a_set_is_not_replaced_unasked(prepare, tmp_path):
    prepare()
    before = contents(tmp_path / "data")
    assert_refused(prepare("--test_share", 0), tmp_path / "data" / "set", "--overwrite")
    assert contents(tmp_path / "data") == before
    assert prepare("--test_share", 0, "--overwrite")[0] == 0
    assert not (tmp_path / "data" / "set" / "images_test").exists()


def test_files_of_others_are_not_replaced(prepare, tmp_path):
    other = save(tmp_path / "data" / "set" / "images" / "mine.png", grey())
    assert_refused(prepare("--overwrite"), "images/mine.png")
    assert other.is_file()


@pytest.mark.parametrize("place", ["raw/out", "raw"], ids=str)
def test_save_root_among_the_sources(prepare, tmp_path, place):
    assert_refused(prepare("--save_root", tmp_path / place), "--save_root", tmp_path / place)


def test_sources_in_the_folders_to_be_made(prepare, tmp_path):
    save(tmp_path / "set" / "images" / "a.png", grey())
    outcome = prepare("--images_root", tmp_path / "set" / "images", "--save_root", tmp_path / "set", "--overwrite")
    assert_refused(outcome, "--images_root")
    assert (tmp_path / "set" / "images" / "a.png").is_file()


def test_what_a_killed_run_left_is_removed(prepare, tmp_path):
    save(tmp_path / "data" / "set" / ".preparing" / "images" / "old.png", grey())
    assert prepare("--test_share", 0)[0] == 0
    assert names(tmp_path / "data" / "set") == ["images", "masks", "prepared.json", "split.json"]
    assert len(names(tmp_path / "data" / "set" / "images")) == 12


def test_layout_of_the_papers_datasets(prepare, tmp_path):
    assert prepare("--save_root", tmp_path / "Shenzhen")[0] == 0
    assert {"img", "mask", "test_img", "test_mask"} < set(names(tmp_path / "Shenzhen"))


# --- Settings that travel ---------------------------------------------------------------------------------------------


def test_settings_come_back():
    settings = Settings("_m", ("ok",), {}, {255: 1, 7: 2}, 3, 9, "stored", "coronal", (40.0, 400.0))
    assert settings_from(json.loads(json.dumps(settings.as_json())), "x") == settings
    assert settings_from(settings.as_json(), "x") == settings  # as a checkpoint has them
    assert settings_from(Settings(threshold=0.5).as_json(), "x").threshold == 0.5
    for damaged in (None, {}, settings.as_json() | {"slices": "oblique"}, settings.as_json() | {"window": 3}):
        with pytest.raises(UserError, match="x: "):
            settings_from(damaged, "x")


def test_images_only_alike(prepare, raw, tmp_path):
    prepare("--orientation", "stored")
    exif = Image.Exif()
    exif[274] = 6
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    save(tmp_path / "new" / "b.png", pixels, exif=exif)
    save(tmp_path / "new" / "b_mask.png", grey(0))
    folder = tmp_path / "data" / "new"
    flags = ("--images_root", tmp_path / "new", "--images_only", "--save_root", folder, "--workers", 1)
    code, out, _ = prepared(*flags, "--like", tmp_path / "data" / "set")
    assert code == 0 and names(folder) == ["images", "prepared.json"] and names(folder / "images") == ["b.png"]
    assert (read_stored(folder / "images" / "b.png")[..., 0] == pixels).all()
    assert "b_mask.png: a mask" in out
    assert commands(out)[0].startswith("python scripts/predict.py --checkpoint model/set+gsd+given/checkpoint.pt")
    assert prepared_settings(folder) == prepared_settings(tmp_path / "data" / "set")
    assert prepared_settings(raw) is None
    both = prepared(*flags, "--like", tmp_path / "data" / "set", "--orientation", "exif", "--overwrite")
    assert_refused(both, "--orientation", "--like")
    assert_refused(prepared(*flags, "--like", raw, "--overwrite"), "--like", raw)


@pytest.mark.parametrize(
    "flags",
    [
        ("--class_of", "benign"),
        ("--values", "x=1"),
        ("--values", "7=300"),
        ("--window", "40", "0"),
        ("--class_of", "benign=1", "--num_classes", "3"),
        ("--test_share", "1"),
        ("--images_only", "--masks_root", "raw"),
    ],
    ids=str,
)
def test_flags_that_cannot_be(prepare, flags):
    assert_refused(prepare(*flags), flags[0])


# --- Names of patients ------------------------------------------------------------------------------------------------


def test_names_without_identifiers():
    cleaned = without_identifiers([Identity("A-17", ("A-17", "Doe^Jane", "Doe", "Jane")), Identity("9", ("9", "Roe"))])
    assert cleaned("DOE_JANE/im1.dcm") == "patient1/im1.dcm"
    assert cleaned("study_a-17_x.dcm") == "study_patient1_x.dcm"
    assert cleaned("9/im19.dcm") == "patient2/im19.dcm"  # a short number counts as a word only
    assert cleaned("roentgen.dcm") == "roentgen.dcm"
    assert without_identifiers([])("Doe.png") == "Doe.png"


# --- DICOM ------------------------------------------------------------------------------------------------------------


def write_dicom(path, values, photometric="MONOCHROME2", **elements):
    """A DICOM file of values (H,W), (frames,H,W) or (H,W,3), whose patient is SECRET-17, Doe^Jane."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "SECRET-17", "Doe^Jane", "19700102"
    colour = values.ndim == 3 and values.shape[-1] == 3
    frames = 1 if values.ndim == 2 or colour else len(values)
    dataset.Rows, dataset.Columns = values.shape[:2] if colour or values.ndim == 2 else values.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3, "RGB") if colour else (1, photometric)
    if colour:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def dicom(path, values, window=None, **elements):
    from dataloaders.prepare.medical import read_dicom

    return [frame[..., 0].tolist() for frame in read_dicom(write_dicom(path, np.array(values), **elements), window)]


def test_dicom_values(tmp_path):
    path = tmp_path / "a.dcm"
    eight = np.array([[0, 100], [200, 255]], np.uint8)
    assert dicom(path, eight) == [[[0, 100], [200, 255]]]  # 8 bits as they are
    assert dicom(path, eight, photometric="MONOCHROME1") == [[[255, 155], [55, 0]]]
    # Stored 0, 1000, 1024, 3000 are -1024, -24, 0, 1976 HU.
    hounsfield = np.array([[0, 1000], [1024, 3000]], np.uint16)
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    # Centre 0, width 200: -100 is 0, 100 is 255; -24 is 76/200 of the way, 96.9; 0 is half of it.
    assert dicom(path, hounsfield, window=(0, 200), **scale) == [[[0, 97], [128, 255]]]
    # The file's own, by DICOM's formula: ((x - (c - 0.5)) / (w - 1) + 0.5) of the range, so -24: 97.4, 0: 128.1.
    assert dicom(path, hounsfield, **scale, WindowCenter=0, WindowWidth=200) == [[[0, 97], [128, 255]]]
    assert dicom(path, hounsfield, **scale, WindowCenter=[0, 40], WindowWidth=[200, 400]) == [[[0, 97], [128, 255]]]


def test_dicom_lut(tmp_path):
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 0, 8], [0, 10, 100, 255]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    values = np.array([[0, 1], [2, 9]], np.uint16)
    assert dicom(tmp_path / "a.dcm", values, VOILUTSequence=[item]) == [[[0, 10], [100, 255]]]


def test_dicom_without_a_window_is_scaled_as_a_whole(tmp_path):
    frames = np.array([[[1000, 1000]], [[1000, 3000]]], np.uint16)
    first, second = dicom(tmp_path / "a.dcm", frames)
    assert first == [[0, 0]] and second == [[0, 255]]


def test_dicom_colours(tmp_path):
    from dataloaders.prepare.medical import read_dicom

    values = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (frame,) = read_dicom(write_dicom(tmp_path / "a.dcm", values), None)
    assert (frame == values).all()


def test_dicom_of_a_patient_names_nobody(tmp_path):
    """Not in files, nor in what is printed, whatever is wrong; the slices of a patient stay together."""
    raw = tmp_path / "raw"
    for number in range(3):
        path = raw / "DOE_JANE" / f"secret-17_{number}.dcm"
        write_dicom(path, np.full((6, 8), 50 + number, np.uint8))
        save(path.with_name(f"secret-17_{number}_mask.png"), square(0, 0))
    write_dicom(raw / "IM0001", np.full((6, 8), 9, np.uint8), PatientID="OTHER", PatientName="Roe^Max")
    save(raw / "IM0001_mask.png", square(1, 1))
    write_dicom(raw / "DOE_JANE" / "lonely.dcm", np.full((6, 8), 9, np.uint8))
    write_dicom(raw / "DOE_JANE" / "short.dcm", np.full((6, 8), 9, np.uint8), Rows=600)
    save(raw / "DOE_JANE" / "short_mask.png", grey(0))
    roots = ("--images_root", raw, "--save_root", tmp_path / "set", "--workers", 1)
    code, out, err = prepared(*roots)
    assert code == 0 and "4 images of 4 files" in out and "lonely.dcm: no mask" in out and "short.dcm: " in out
    told = (out + err + str(contents(tmp_path / "set"))).lower()
    assert not [text for text in ("doe", "jane", "secret", "19700102", "roe", "other") if text in told]
    split = json.loads((tmp_path / "set" / "split.json").read_text())
    assert sorted(split.values(), key=str)[0] == 0
    assert sorted([split["train"], split["test"]], key=len) == [
        ["IM0001"],
        [f"patient1_{number}" for number in range(3)],
    ]
    assert names(tmp_path / "set" / "images")[0].endswith(".png")


def test_frames_of_a_dicom_file(tmp_path):
    raw = tmp_path / "raw"
    frames = np.stack([grey(10), grey(20), grey(30)])
    for name in ("a", "b"):
        write_dicom(raw / f"{name}.dcm", frames, PatientID=f"P-{name}")
        write_dicom(raw / f"{name}_mask.dcm", np.stack([square(n, n, value=1) for n in range(3)]), PatientID="")
    code, _, _ = prepared("--images_root", raw, "--save_root", tmp_path / "set", "--workers", 1)
    assert code == 0
    test, train = sorted([names(tmp_path / "set" / "images_test"), names(tmp_path / "set" / "images")])
    assert [test, train] == [[f"{name}_00{n}.png" for n in range(3)] for name in ("a", "b")]
    assert (labels(tmp_path / "set", "b_002") == square(2, 2, value=1)).all()


@pytest.mark.parametrize("package", ["pydicom", "nibabel"])
def test_without_the_package(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    name = "a.dcm" if package == "pydicom" else "a.nii.gz"
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / name).write_bytes(b"\0" * 200)
    flags = ("--images_root", tmp_path / "raw", "--save_root", tmp_path / "set", "--images_only", "--workers", 1)
    assert_refused(prepared(*flags), package, "pip install -r requirements-extra.txt")
    assert not (tmp_path / "set").exists()


# --- NIfTI ------------------------------------------------------------------------------------------------------------

# Axes of the file: superior to inferior, left to right, posterior to anterior; voxels of 3, 1 and 2 mm.
AFFINE = np.array([[0, 1.0, 0, -10], [0, 0, 2.0, -20], [-3.0, 0, 0, 30], [0, 0, 0, 1]])


def write_nifti(path, values, affine=AFFINE):
    nib = pytest.importorskip("nibabel")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("slices", "index", "expected"),
    [
        # File axes (S->I 2, L->R 3, P->A 4); a value is 100 S + 10 R + A, counted to superior, right, anterior.
        ("axial", 1, [[103, 113, 123], [102, 112, 122], [101, 111, 121], [100, 110, 120]]),  # front above, left first
        ("coronal", 2, [[102, 112, 122], [2, 12, 22]]),  # up above
        ("sagittal", 1, [[110, 111, 112, 113], [10, 11, 12, 13]]),
    ],
)
def test_slices_are_anatomical(tmp_path, slices, index, expected):
    from dataloaders.prepare.medical import assembled, nifti_labels

    nib = pytest.importorskip("nibabel")
    down, right, front = np.mgrid[:2, :3, :4]
    values = (100 * (1 - down) + 10 * right + front).astype(np.int16)
    path = write_nifti(tmp_path / "a.nii.gz", values)
    planes, geometry = nifti_labels(path, slices)
    assert planes[index].tolist() == expected
    again = tmp_path / "b.nii.gz"
    again.write_bytes(assembled([plane.astype(np.uint8) for plane in planes], geometry, again))
    back = nib.load(again)
    assert (np.asarray(back.dataobj) == values.astype(np.uint8)).all() and np.array_equal(back.affine, AFFINE)
    assert back.header.get_xyzt_units()[0] == "mm"


def test_volumes_and_labels(tmp_path):
    """In nnU-Net's names; a volume stays on one side, and is scaled as a whole."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_nifti(
            tmp_path / "raw" / "imagesTr" / f"{name}_0000.nii.gz", rng.normal(0, 300, (5, 6, 7)).astype(np.float32)
        )
        write_nifti(tmp_path / "raw" / "labelsTr" / f"{name}.nii.gz", (np.indices((5, 6, 7))[0] == 0).astype(np.uint8))
    write_nifti(tmp_path / "raw" / "imagesTr" / "moved_0000.nii.gz", np.ones((5, 6, 7), np.uint8))
    write_nifti(
        tmp_path / "raw" / "labelsTr" / "moved.nii.gz",
        np.ones((5, 6, 7), np.uint8),
        AFFINE + np.diag([5.0], 3),
    )
    roots = ("--images_root", tmp_path / "raw" / "imagesTr", "--masks_root", tmp_path / "raw" / "labelsTr")
    code, out, _ = prepared(*roots, "--save_root", tmp_path / "set", "--workers", 1, "--window", 0, 400)
    assert code == 0 and "15 images of 3 files" in out and "moved_0000.nii.gz: " in out
    assert len(names(tmp_path / "set" / "images_test")) == 5
    (tested,) = {name[0] for name in names(tmp_path / "set" / "images_test")}
    assert tested not in {name[0] for name in names(tmp_path / "set" / "images")}
    assert [labels(tmp_path / "set", f"a_00{n}").mean() for n in range(5)] == [0, 0, 0, 0, 1]  # the topmost
    record = json.loads((tmp_path / "set" / "prepared.json").read_text())
    assert record["volumes"]["a"]["affine"] == AFFINE.tolist() and record["volumes"]["a"]["shape"] == [5, 6, 7]


def test_window_and_percentiles_of_volumes(tmp_path):
    from dataloaders.prepare.medical import read_nifti

    values = np.array([-300, -200, 0, 100, 200, 300], np.float32).reshape(1, 2, 3)
    path = write_nifti(tmp_path / "a.nii", values, np.eye(4))
    planes, _ = read_nifti(path, "axial", (0, 400))
    # -200 and below are 0, 0 is half, 100 is three quarters, 200 and above are 255.
    assert sorted(value for plane in planes for value in plane.ravel().tolist()) == [0, 0, 128, 191, 255, 255]
    write_nifti(path, np.array([0, 7, 255], np.uint8).reshape(1, 1, 3), np.eye(4))
    assert [plane.ravel().tolist() for plane in read_nifti(path, "axial", None)[0]] == [[0], [7], [255]]


@pytest.mark.parametrize(
    "values",
    [np.zeros((2, 2, 2, 3), np.float32), np.full((2, 2, 2), np.nan, np.float32), np.zeros((4, 4), np.float32)],
    ids=["four axes", "NaN", "two axes"],
)
def test_volumes_that_are_refused(tmp_path, values):
    from dataloaders.prepare.medical import read_nifti

    path = write_nifti(tmp_path / "a.nii", values, np.eye(4))
    with pytest.raises(UserError, match=r"a\.nii: "):
        read_nifti(path, "axial", None)


@pytest.mark.parametrize("name", ["a.dcm", "a.nii", "a.nii.gz"])
def test_damaged_files_are_left_out(tmp_path, name):
    pytest.importorskip("pydicom")
    pytest.importorskip("nibabel")
    save(tmp_path / "raw" / "good.png", grey())
    (tmp_path / "raw" / name).write_bytes(b"\0" * 128 + b"DICM" + b"x" * 400)
    flags = ("--save_root", tmp_path / "set", "--images_only", "--workers", 1)
    code, out, _ = prepared("--images_root", tmp_path / "raw", *flags)
    assert code == 0 and f"  {name}: " in out and "1 images" in out
