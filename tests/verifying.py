"""scripts/verify_data.py on the sets of tests, and superpixels for them."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from conftest import call

from dataloaders.verification.checks import CHECKS
from scripts import generate_SLIC, verify_data

SIZE = 32


class Report(NamedTuple):
    """What a run of the script said."""

    code: int
    report: dict
    text: str

    def found(self) -> dict[str, list[tuple[str, str]]]:
        """Check -> (level, name) of its findings, for the checks that have some."""
        titles = {title: check for check, title in CHECKS.items()}
        return {
            titles[check["check"]]: sorted((finding["level"], finding["name"]) for finding in check["findings"])
            for check in self.report["checks"]
            if check["findings"]
        }

    def messages(self, check: str) -> str:
        """The messages of one check."""
        (found,) = (c["findings"] for c in self.report["checks"] if c["check"] == CHECKS[check])
        return "\n".join(finding["message"] for finding in found)


def verified(data: Path, *arguments: object, datasets: str = "Kvasir", data_root: Path | None = None) -> Report:
    """The script in this process, on a dataset of the folder ``data``, or of another."""
    target = data.parent / "report.json"
    common = ("--datasets", datasets, "--data_root", data_root or data, "--json", target, "--workers", 1)
    size = () if "--image_size" in arguments else ("--image_size", SIZE)
    outcome = call(verify_data.main, *common, *size, *arguments)
    return Report(outcome.code, json.loads(target.read_text()), outcome.out)


def cut(folder: Path, *arguments: object) -> None:
    """Superpixels of a dataset folder by the project's own script."""
    settings = ["--image_size", SIZE, "--n_segments", 64, "--workers", 1]
    generate_SLIC.main([str(argument) for argument in (*arguments, *settings)])


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """Smooth random colours, uint8 (size,size,3)."""
    values = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(size, size, 3)), (0, 0), 6)
    return np.rint(255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)


def without_likeness(found: dict) -> dict:
    """The drawn heads are all alike."""
    return {check: names for check, names in found.items() if not check.startswith("near")}
