"""The two preprocessing scripts as their users meet them: files in, files out, messages, exit codes."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.commands.errors import UserError
from utils.commands.jobs import run_jobs
from utils.masks.noise import dilation_erosion_noise, file_generator, markov_noise
from utils.masks.noise_kinds import KINDS
from utils.masks.superpixels import slic_segments

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import generate_simulated_noise  # noqa: E402
import generate_SLIC  # noqa: E402

QUICK = ["--workers", "1", "--T", "20", "--theta2", "0.3"]


def noise(masks, saved, *arguments):
    """Run generate_simulated_noise in this process: few, large steps of Markov noise unless ``arguments`` say more."""
    quick = QUICK[:2] if "--noisetype" in arguments else QUICK
    generate_simulated_noise.main(["--gts_root", str(masks), "--save_root", str(saved), *quick, *arguments])


def slic(images, saved, *arguments):
    """Run generate_SLIC in this process, on small maps."""
    quick = ["--workers", "1", "--image_size", "48", "--n_segments", "64"]
    generate_SLIC.main(["--images_root", str(images), "--save_root", str(saved), *quick, *arguments])


def run(script, *arguments, cwd=None):
    """Run a script as a user does."""
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def ellipse(height=60, width=48, scale=1.0):
    """A mask (height,width) of 0 and 1."""
    rows, columns = np.mgrid[:height, :width]
    return (np.hypot((rows - 28) / 1.3, columns - 22) < 14 * scale).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def contents(folder):
    """File name -> digest of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def masks(tmp_path):
    """A folder of four masks."""
    for index in range(4):
        save(tmp_path / "masks" / f"case {index}.png", 255 * ellipse(scale=0.7 + 0.1 * index))
    return tmp_path / "masks"


@pytest.fixture
def images(tmp_path):
    """A folder of three colour images."""
    rng = np.random.default_rng(0)
    for index in range(3):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        save(tmp_path / "images" / f"case {index}.png", coarse.repeat(10, axis=0).repeat(10, axis=1))
    return tmp_path / "images"


# --- Label noise ------------------------------------------------------------------------------------------------------


def test_noisy_masks_are_the_function_applied_with_the_generator_of_the_stem(masks, tmp_path, capsys):
    noise(masks, tmp_path / "markov", "--theta1", "0.3", "--seed", "5")
    noise(masks, tmp_path / "de", "--noisetype", "DE", "--range", "2", "4")
    dice, wrong = [], []
    for path in sorted(masks.iterdir()):
        clean = np.asarray(Image.open(path)) // 255
        markov = markov_noise(clean, file_generator(5, path.stem), T=20, theta1=0.3, theta2=0.3)
        written = np.asarray(Image.open(tmp_path / "markov" / f"{path.stem}.png"))
        np.testing.assert_array_equal(written, 255 * markov)
        assert written.dtype == np.uint8
        moved = dilation_erosion_noise(clean, file_generator(0, path.stem), 2, 4)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "de" / f"{path.stem}.png")), 255 * moved)
        dice.append(2 * (clean & markov).sum() / (clean.sum() + markov.sum()))
        wrong.append((clean != markov).mean())
    output = capsys.readouterr().out
    assert "4 masks: 4 written, 0 already there and skipped" in output
    assert f"mean Dice of noisy against clean masks {np.mean(dice):.4f}" in output
    assert f"label noise rate {np.mean(wrong):.4f}" in output


def test_noise_does_not_depend_on_workers_or_on_the_other_files(masks, tmp_path):
    script = SCRIPTS / "generate_simulated_noise.py"
    for workers in (1, 2):
        arguments = ["--gts_root", masks, "--save_root", tmp_path / str(workers), "--workers", workers]
        result = run(script, *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""  # no progress bar where there is no terminal
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert set(contents(tmp_path / "1")) == {*(f"case {i}.png" for i in range(4)), "settings.json"}

    noise(masks, tmp_path / "all")
    (masks / "case 0.png").unlink()
    noise(masks, tmp_path / "fewer")
    assert contents(tmp_path / "fewer").items() <= contents(tmp_path / "all").items()


def test_every_image_format_and_coding_of_a_mask_gives_the_same_noise(tmp_path):
    mask = ellipse()
    rgb = np.stack([255 * mask] * 3, axis=-1)
    opaque = np.full((*mask.shape, 1), 255, np.uint8)
    for kind, suffix, pixels in (
        ("0/255", "png", 255 * mask),
        ("0/1", "png", mask),
        ("bmp", "bmp", 255 * mask),
        ("tif", "tif", 255 * mask),
        ("tiff, upper case", "TIFF", 255 * mask),
        ("jpeg", "jpg", 255 * mask),
        ("rgb", "png", rgb),
        ("rgba", "png", np.concatenate([rgb, opaque], axis=-1)),
    ):
        save(tmp_path / kind.replace("/", "_") / f"x.{suffix}", pixels)
        noise(tmp_path / kind.replace("/", "_"), tmp_path / "noisy" / kind.replace("/", "_"))
    digests = {contents(folder)["x.png"] for folder in (tmp_path / "noisy").iterdir()}
    assert len(digests) == 1


def test_masks_with_compression_artefacts_are_thresholded_and_named(masks, tmp_path, capsys):
    save(masks / "grey.jpg", 255 * ellipse(), quality=40)
    noise(masks, tmp_path / "noisy")
    assert "1 (grey.jpg)" in capsys.readouterr().out


def test_emptied_and_filled_masks_are_named(masks, tmp_path, capsys):
    noise(masks, tmp_path / "empty", "--theta1", "0", "--theta2", "1")
    assert "emptied by the noise: 4 (case 0.png, " in capsys.readouterr().out
    noise(masks, tmp_path / "full", "--theta1", "1", "--theta2", "1", "--T", "200")
    assert "filled by the noise: 4" in capsys.readouterr().out
    save(masks / "blank.png", np.zeros((20, 20), np.uint8))
    noise(masks, tmp_path / "empty", "--theta1", "0", "--theta2", "1")
    assert "emptied by the noise: 4" in capsys.readouterr().out  # the blank one was not emptied


def test_bad_masks_are_all_named_while_the_others_are_written(masks, tmp_path):
    shades = 255 * ellipse()
    shades[:20, :20] = 100
    save(masks / "shades.png", shades)
    (masks / "broken.png").write_bytes((masks / "case 0.png").read_bytes()[:60])
    arguments = ["--gts_root", masks, "--save_root", tmp_path / "noisy", "--T", 5, "--workers", 2]
    result = run(SCRIPTS / "generate_simulated_noise.py", *arguments)
    assert result.returncode == 2
    assert "2 of 6 masks were not made" in result.stderr
    assert "shades.png" in result.stderr and "broken.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert "4 masks: 4 written" in result.stdout
    assert len(list((tmp_path / "noisy").glob("*.png"))) == 4


def test_noise_alone_with_bad_masks_says_so(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 1 masks were not made"):
        noise(tmp_path / "masks", tmp_path / "noisy")


def test_valid_noise_is_kept_and_the_rest_made_again(masks, tmp_path, capsys):
    saved = tmp_path / "noisy"
    noise(masks, saved)
    first, line = contents(saved), capsys.readouterr().out.splitlines()[2]
    (saved / "case 0.png").write_bytes((saved / "case 0.png").read_bytes()[:50])
    save(saved / "case 1.png", np.zeros((4, 4), np.uint8))
    save(saved / "case 2.png", np.full((60, 48), 90, np.uint8))
    kept = (saved / "case 3.png").stat().st_mtime_ns
    noise(masks, saved)
    output = capsys.readouterr().out
    assert contents(saved) == first
    assert (saved / "case 3.png").stat().st_mtime_ns == kept
    assert "4 masks: 0 written, 1 already there and skipped" in output
    assert "3 (case 0.png, case 1.png, case 2.png)" in output
    assert line in output  # Dice and wrong pixels of all masks, the skipped one too
    noise(masks, saved, "--overwrite")
    assert "4 masks: 4 written, 0 already there and skipped" in capsys.readouterr().out
    assert (saved / "case 3.png").stat().st_mtime_ns != kept


def test_a_folder_never_mixes_two_settings(masks, tmp_path):
    saved = tmp_path / "noisy"
    noise(masks, saved)
    before = contents(saved)
    for other in (["--theta1", "0.2"], ["--seed", "1"], ["--noisetype", "DE"]):
        with pytest.raises(UserError, match=r"was made with .* --overwrite"):
            noise(masks, saved, *other)
    assert contents(saved) == before
    noise(masks, saved, "--theta1", "0.2", "--overwrite")
    assert json.loads((saved / "settings.json").read_text())["theta1"] == 0.2
    assert all(contents(saved)[name] != digest for name, digest in before.items())


def test_a_folder_never_mixes_the_masks_of_two_sources(masks, tmp_path):
    saved = tmp_path / "noisy"
    noise(masks, saved)
    other = shutil.copytree(masks, tmp_path / "masks of others")
    with pytest.raises(UserError, match=r"was made with .*gts_root.* --overwrite"):
        noise(other, saved)


def test_overwriting_with_other_settings_leaves_no_file_of_the_former_ones(masks, tmp_path, monkeypatch):
    saved = tmp_path / "noisy"
    noise(masks, saved)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generate_simulated_noise, "run_jobs", interrupt)
        noise(masks, saved, "--theta1", "0.2", "--overwrite")
    noise(masks, saved, "--theta1", "0.2")
    noise(masks, tmp_path / "fresh", "--theta1", "0.2")
    assert contents(saved) == contents(tmp_path / "fresh")


def test_masks_of_unknown_origin_are_neither_trusted_nor_replaced(masks, tmp_path):
    saved = tmp_path / "other"
    save(saved / "case 1.png", 255 * ellipse())
    with pytest.raises(UserError, match=r"holds case 1.png and no settings.json"):
        noise(masks, saved)
    assert set(contents(saved)) == {"case 1.png"}


def test_the_clean_masks_are_never_written_over(masks, tmp_path, monkeypatch):
    before = contents(masks)
    (tmp_path / "link").symlink_to(masks)
    monkeypatch.chdir(masks)
    for same in (masks, tmp_path / "link", "."):
        with pytest.raises(UserError, match="clean masks would be lost"):
            noise(masks, same, "--overwrite")
    assert contents(masks) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--T", "0"], "--T must be at least 1, got 0"),
        (["--theta1", "1.2"], "--theta1 must be in 0..1"),
        (["--theta2", "nan"], "--theta2 must be in 0..1"),
        (["--noisetype", "DE", "--range", "5", "3"], "--range must be"),
        (["--noisetype", "DE", "--range", "-1", "3"], "--range must be"),
        (["--noisetype", "DE", "--range", "3", "inf"], "--range must be"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--figure", "noise.pdf"], "--figure must be a .png file"),
        (["--range", "2", "3"], "--range has no meaning for --noisetype Markov"),
        (["--noisetype", "DE", "--theta1", "0.2"], "--theta1 has no meaning for --noisetype DE"),
        (["--strength", "0.2"], "--strength has no meaning for --noisetype Markov"),
        (["--noisetype", "box", "--T", "3"], "--T has no meaning for --noisetype box"),
        (["--noisetype", "polygon", "--strength", "0.4"], "--strength .*at most 0.333, got 0.4"),
        (["--noisetype", "box", "--strength", "0"], "--strength .*above 0"),
        (["--noisetype", "box", "--strength", "nan"], "--strength .*got nan"),
        (["--noisetype", "box", "--target_rate", "0"], "--target_rate must be between 0 and 1"),
        (["--noisetype", "box", "--target_rate", "0.1", "--strength", "1"], "--target_rate finds --strength"),
        (["--target_rate", "0.1"], "--target_rate finds --T"),
        (["--noisetype", "box", "--target_rate", "0.9"], "--target_rate 0.9: .*at most"),
        (["--alpha", "0"], "--alpha must be above 0"),
        (["--alpha", "1.1"], "--alpha must be above 0 and at most 1"),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(masks, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        noise(masks, tmp_path / "noisy", *arguments)
    assert not (tmp_path / "noisy").exists()


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("Markov", "DE")])
def test_every_kind_is_written_with_its_strength(masks, tmp_path, kind):
    usual = KINDS[kind]
    noise(masks, tmp_path / "usual", "--noisetype", kind)
    noise(masks, tmp_path / "half", "--noisetype", kind, "--strength", str(usual.strength / 2))
    for folder, strength in (("usual", usual.strength), ("half", usual.strength / 2)):
        assert json.loads((tmp_path / folder / "settings.json").read_text())["strength"] == strength
        for path in masks.iterdir():
            clean = np.asarray(Image.open(path)) // 255
            expected = usual.noise(clean, file_generator(0, path.stem), strength)
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / folder / path.name)), 255 * expected)


def test_the_strength_of_a_target_rate_is_found_printed_kept_and_typed_again(masks, tmp_path, capsys):
    def rate(folder):
        pairs = [[np.asarray(Image.open(root / path.name)) for root in (masks, folder)] for path in masks.iterdir()]
        return np.mean([(clean != noisy).mean() for clean, noisy in pairs])

    for kind, flag, names in (("affine", "--strength", ("strength",)), ("DE", "--range", ("low", "high"))):
        noise(masks, tmp_path / kind, "--noisetype", kind, "--target_rate", "0.1")
        assert rate(tmp_path / kind) == pytest.approx(0.1, abs=0.01)
        settings = json.loads((tmp_path / kind / "settings.json").read_text())
        assert settings["target_rate"] == 0.1
        assert f"{names[0]} {settings[names[0]]:g}" in capsys.readouterr().out
        typed = [str(settings[name]) for name in names]
        noise(masks, tmp_path / f"{kind} typed", "--noisetype", kind, flag, *typed)
        made, again = contents(tmp_path / kind), contents(tmp_path / f"{kind} typed")
        made.pop("settings.json"), again.pop("settings.json")
        assert made == again
        noise(masks, tmp_path / kind, "--noisetype", kind, "--target_rate", "0.1")
        assert "4 already there" in capsys.readouterr().out


def test_a_target_rate_keeps_the_thetas_of_markov_noise(masks, tmp_path):
    places = ["--gts_root", str(masks), "--save_root", str(tmp_path / "noisy"), "--workers", "1"]
    generate_simulated_noise.main([*places, "--theta1", "0.2", "--theta2", "0.3", "--target_rate", "0.1"])
    settings = json.loads((tmp_path / "noisy" / "settings.json").read_text())
    assert (settings["theta1"], settings["theta2"]) == (0.2, 0.3) and isinstance(settings["T"], int)


def test_a_share_of_the_masks_gets_noise_and_the_others_are_copies(masks, tmp_path, capsys):
    for index in range(4, 10):
        save(masks / f"case {index}.png", 255 * ellipse())
    noise(masks, tmp_path / "all")
    noise(masks, tmp_path / "some", "--alpha", "0.35")
    assert "chosen for noise: 3" in capsys.readouterr().out  # of ten, rounded down
    clean, every, some = (contents(folder) for folder in (masks, tmp_path / "all", tmp_path / "some"))
    pixels = {name: np.asarray(Image.open(tmp_path / "some" / name)) for name in clean}
    copies = {name for name, value in pixels.items() if (value == np.asarray(Image.open(masks / name))).all()}
    assert len(copies) == 7
    assert all(some[name] == every[name] for name in clean.keys() - copies)
    assert json.loads((tmp_path / "some" / "settings.json").read_text())["alpha"] == 0.35
    assert "alpha" not in json.loads((tmp_path / "all" / "settings.json").read_text())
    noise(masks, tmp_path / "others", "--alpha", "0.35", "--seed", "1")
    other = {
        n for n in clean if (np.asarray(Image.open(tmp_path / "others" / n)) == np.asarray(Image.open(masks / n))).all()
    }
    assert len(other) == 7 and other != copies


def test_a_target_rate_of_masks_that_cannot_be_read_names_them(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "broken.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 masks can be read(.|\n)*broken.png"):
        noise(tmp_path / "masks", tmp_path / "noisy", "--noisetype", "box", "--target_rate", "0.1")


def test_missing_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("missing", "empty"):
        with pytest.raises(UserError, match=folder):
            noise(tmp_path / folder, tmp_path / "out")
        with pytest.raises(UserError, match=folder):
            slic(tmp_path / folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_figure_is_drawn_for_any_mask(masks, tmp_path):
    noise(masks, tmp_path / "noisy", "--figure", str(tmp_path / "figure.png"))
    assert Image.open(tmp_path / "figure.png").size[0] > 800
    save(tmp_path / "blank" / "x.png", np.zeros((20, 30), np.uint8))
    noise(tmp_path / "blank", tmp_path / "noisy blank", "--figure", str(tmp_path / "blank.png"))
    assert (tmp_path / "blank.png").is_file()


# --- Superpixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [48, 100])
def test_maps_have_the_training_size_and_hold_the_function_s_ids(images, tmp_path, capsys, size):
    slic(images, tmp_path / "slic", "--image_size", str(size), "--n_segments", "400")
    counts = []
    for path in sorted(images.iterdir()):
        segments = np.load(tmp_path / "slic" / f"{path.stem}.npy")
        assert segments.shape == (size, size) and segments.dtype == np.int32
        np.testing.assert_array_equal(np.unique(segments), np.arange(segments.max() + 1))
        assert segments.max() > 255  # ids that a map stored as 8-bit image would have lost
        counts.append(segments.max() + 1)
    output = capsys.readouterr().out
    assert "3 images: 3 written, 0 already there and skipped" in output
    assert f"mean {np.mean(counts):.0f}, fewest {min(counts)}, most {max(counts)}" in output


def test_an_image_of_the_training_size_is_cut_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    save(tmp_path / "images" / "x.png", image)
    slic(tmp_path / "images", tmp_path / "slic", "--compactness", "5", "--sigma", "0.5")
    expected = slic_segments(image, n_segments=64, compactness=5, sigma=0.5)
    np.testing.assert_array_equal(np.load(tmp_path / "slic" / "x.npy"), expected)


def test_every_image_format_and_channel_count_is_cut(tmp_path, capsys):
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    opaque = np.full((60, 80, 1), 255, np.uint8)
    folder = tmp_path / "images"
    for suffix in ("png", "jpg", "JPEG", "bmp", "tif", "tiff"):
        save(folder / f"rgb {suffix}.{suffix}", rgb)
        save(folder / f"grey {suffix}.{suffix}", rgb[..., 0])
    save(folder / "rgba.png", np.concatenate([rgb, opaque], axis=-1))
    save(folder / "constant.png", np.full((60, 80), 7, np.uint8))
    save(folder / "tiny.png", np.full((1, 2), 7, np.uint8))
    slic(folder, tmp_path / "slic")
    assert "15 images: 15 written" in capsys.readouterr().out
    maps = {path.stem: np.load(path) for path in (tmp_path / "slic").glob("*.npy")}
    assert len(maps) == 15 and all(segments.shape == (48, 48) for segments in maps.values())
    np.testing.assert_array_equal(maps["rgba"], maps["rgb png"])
    np.testing.assert_array_equal(maps["rgb bmp"], maps["rgb tiff"])


def test_superpixels_do_not_depend_on_workers_and_bad_images_are_named(images, tmp_path):
    (images / "broken.png").write_bytes((images / "case 0.png").read_bytes()[:90])
    for workers in (1, 2):
        arguments = ["--images_root", images, "--save_root", tmp_path / str(workers), "--workers", workers]
        result = run("generate_SLIC.py", *arguments, "--image_size", 64, cwd=SCRIPTS)
        assert result.returncode == 2
        assert "1 of 4 images got no superpixels" in result.stderr and "broken.png" in result.stderr
        assert "Traceback" not in result.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 4  # three maps and settings.json


@pytest.mark.parametrize("suffix", ["png", "npy"])
def test_images_are_never_taken_for_superpixels(images, tmp_path, suffix):
    """Those of .npy images would be written over them."""
    if suffix == "npy":
        for path in list(images.iterdir()):
            np.save(path.with_suffix(".npy"), np.asarray(Image.open(path)))
            path.unlink()
    before = contents(images)
    (tmp_path / "link").symlink_to(images)
    for same in (images, tmp_path / "link"):
        for more in ((), ("--overwrite",)):
            with pytest.raises(UserError, match="folder of the images, which would be lost"):
                slic(images, same, *more)
    assert contents(images) == before


def test_superpixels_of_other_images_are_not_taken_for_those_of_these(images, tmp_path):
    """Images of two sets may have the same names; but a set that is moved as a whole keeps its superpixels."""
    slic(images, tmp_path / "slic")
    shutil.copytree(images, tmp_path / "others")
    with pytest.raises(UserError, match=r"was made with .*'images': '../images'.*'images': '../others'.*--overwrite"):
        slic(tmp_path / "others", tmp_path / "slic")
    (tmp_path / "moved").mkdir()
    for name in (images.name, "slic"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    before = contents(tmp_path / "moved" / "slic")
    slic(tmp_path / "moved" / images.name, tmp_path / "moved" / "slic")
    assert contents(tmp_path / "moved" / "slic") == before


@pytest.mark.parametrize("flag", ["--raters", "--num_classes"])
def test_flags_of_masks_are_not_for_a_folder_of_images(images, tmp_path, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        slic(images, tmp_path / "slic", flag, "3")
    assert stop.value.code == 2 and "not about --images_root" in capsys.readouterr().err


def test_the_figure_has_the_noise_that_is_asked_for(masks, tmp_path):
    pictures = {}
    for name, more in {
        "usual": (),
        "strong": ("--theta2", "0.9"),
        "far": ("--noisetype", "DE", "--range", "2", "3"),
    }.items():
        noise(masks, tmp_path / name, "--figure", str(tmp_path / f"{name}.png"), *more)
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert len(set(pictures.values())) == 3


def test_valid_maps_are_kept_and_the_rest_made_again(images, tmp_path, capsys):
    saved = tmp_path / "slic"
    slic(images, saved)
    first = contents(saved)
    (saved / "case 0.npy").write_bytes((saved / "case 0.npy").read_bytes()[:200])
    np.save(saved / "case 1.npy", np.full((48, 48), np.nan))
    slic(images, saved)
    output = capsys.readouterr().out
    assert contents(saved) == first
    assert "3 images: 0 written, 1 already there and skipped" in output
    assert "2 (case 0.npy, case 1.npy)" in output
    slic(images, saved, "--overwrite")
    assert "3 images: 3 written" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with"):
        slic(images, saved, "--compactness", "3")
    with pytest.raises(UserError, match="was made with"):
        slic(images, saved, "--image_size", "32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_segments", "0"], "--n_segments must be at least 1"),
        (["--compactness", "0"], "--compactness must be above 0"),
        (["--compactness", "nan"], "--compactness must be above 0"),
        (["--sigma", "-1"], "--sigma must be at least 0"),
        (["--image_size", "0"], "--image_size must be at least 1"),
    ],
)
def test_slic_numbers_out_of_range_are_refused(images, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        slic(images, tmp_path / "slic", *arguments)
    assert not (tmp_path / "slic").exists()


def test_less_than_one_worker_is_refused(masks, images, tmp_path, capsys):
    for script, folder in ((noise, masks), (slic, images)):
        with pytest.raises(SystemExit) as end:
            script(folder, tmp_path / "made", "--workers", "0")
        assert end.value.code == 2 and "--workers" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


# --- Both -------------------------------------------------------------------------------------------------------------


def test_scripts_run_from_inside_their_folder_with_relative_paths(masks, tmp_path):
    result = run(
        "generate_simulated_noise.py", "--gts_root", masks, "--save_root", tmp_path / "noisy", "--T", 3, cwd=SCRIPTS
    )
    assert result.returncode == 0, result.stderr
    result = run("generate_simulated_noise.py", "--gts_root", "nowhere", "--save_root", tmp_path / "x", cwd=SCRIPTS)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: nowhere: no such folder"


def test_a_folder_that_cannot_be_written_is_reported(masks, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        noise(masks, tmp_path / "file" / "noisy")


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def nap(_):
    time.sleep(0.1)


def test_a_killed_process_is_reported():
    with pytest.raises(UserError, match="a process was killed"):
        run_jobs(die, [1, 2, 3], workers=2, label="test")


def test_an_interrupt_drops_the_jobs_not_begun(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.commands.jobs.tqdm.update", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(nap, list(range(100)), workers=2, label="test")
    assert time.monotonic() - start < 2.5  # all hundred would take five seconds
