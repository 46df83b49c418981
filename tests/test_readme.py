"""The commands of the README, run from top to bottom on drawn files, with further flags that make them short."""

import shutil
import sys

import numpy as np
import pytest
from conftest import REPO, load_program, write_blobs, write_dataset
from lidc_files import entries, write_lidc
from mmis_files import write_mmis
from PIL import Image
from test_documentation import commands_of

SHORT = ["--max_epochs", "1", "--image_size", "32", "--batch_size", "2", "--device", "cpu", "--cache", "none"]
FURTHER = {
    "scripts/make_phantoms.py": ["--train", "6", "--test", "2", "--image_size", "64", "--workers", "1"],
    "scripts/prepare_data.py": ["--workers", "1"],
    "scripts/generate_simulated_noise.py": ["--workers", "1"],
    "scripts/generate_SLIC.py": ["--image_size", "32", "--workers", "1"],
    "scripts/verify_data.py": ["--image_size", "32", "--workers", "1"],
    "scripts/audit_labels.py": ["--workers", "1", "--device", "cpu"],
    "scripts/predict.py": ["--workers", "1", "--device", "cpu"],
    "scripts/evaluate.py": ["--workers", "1"],
    "train_GSD-Net.py": SHORT,
    "GSD_Net_lidc_each_select1.py": SHORT,
    "GSD_Net_MMIS2024_each_select1.py": SHORT,
}


def draw_files(folder):
    """What the README takes for granted: a download, photos, exported marks, the paper's datasets."""
    write_blobs(folder / "raw" / "benign", 5, 48, 40, ("images", "masks"))
    for kind, suffix in (("images", ""), ("masks", "_mask")):
        for path in (folder / "raw" / "benign" / kind).iterdir():
            path.rename(folder / "raw" / "benign" / f"{path.stem}{suffix}.png")
        (folder / "raw" / "benign" / kind).rmdir()
    (folder / "raw" / "normal").mkdir()
    Image.fromarray(np.full((40, 48, 3), 90, np.uint8)).save(folder / "raw" / "normal" / "empty.png")
    (folder / "audit_marks.csv").write_text("image,mark\ntrain_0000,reject\ntrain_0001,look again\n")
    shutil.rmtree(write_dataset(folder / "data", train=4, test=2) / "images_SLIC")
    write_lidc(folder / "data", entries())
    write_mmis(folder / "data")


def run(program, flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, *flags])
    load_program(REPO / program).main()


@pytest.mark.usefixtures("without_pictures")
def test_commands_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_files(tmp_path)
    commands = commands_of(REPO / "README.md")
    assert {program for program, *_ in commands} >= FURTHER.keys()
    for program, *flags in commands:
        if program == "scripts/export.py":  # takes six seconds, in tests/test_export.py
            continue
        if program == "scripts/make_phantoms.py":  # in place of the images that were prepared
            shutil.rmtree("data/mine")
        if program == "scripts/compare_runs.py":
            run(
                "train_GSD-Net.py",
                ["--datasets", "mine", "--noise_type", "given", "--method", "ce", *SHORT],
                monkeypatch,
            )
        if "photos" in flags:
            shutil.copytree("data/mine/images_test", "photos")
        run(program, [*flags, *(FURTHER.get(program, []) if "--apply" not in flags else [])], monkeypatch)
    assert sorted(path.stem for path in (tmp_path / "predicted").glob("*.png")) == ["test_0000", "test_0001"]
    runs = {path.parent.name for path in (tmp_path / "model").glob("*/result.json")}
    assert runs == {
        *("mine+ce+given", "mine+gsd+given", "mine+gsd+masks_applied", "kvasir+gsd+02"),
        *("lidc+gsd+cycle", "MMIS2024+gsd+select1"),
    }
    assert (tmp_path / "scores.csv").stat().st_size
