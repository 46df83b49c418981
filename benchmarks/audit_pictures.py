"""The pictures of README's walk-through "Find the wrong labels", from drawn images alone.

    python benchmarks/audit_pictures.py --save_root docs/figures

draws 60 phantoms, spoils one mask in five by S_DE noise, audits the set and writes audit_masks.png, the worst masks
before and after, and with a Chromium on this machine audit_page.png, the page as it shows it.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.audit import dice, spoiled_set
from dataloaders.files import list_images, read_image, read_mask
from scripts import audit_labels, generate_simulated_noise, make_phantoms
from utils.commands.errors import UserError, run_main
from utils.commands.files import write_atomically
from utils.engine.figures import contoured, image_grid, png

WINDOW = (1060, 860)  # pixels of the browser
ROWS = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_root", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--browser", help="a Chromium or Chrome (default: the one that is found)")
    return parser.parse_args(argv)


def screenshot(browser: str, page: Path, target: Path) -> None:
    """The top of a page as the browser shows it, as PNG."""
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        flags += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={target.resolve()}", page.resolve().as_uri()]
        subprocess.run([browser, *flags], check=True, capture_output=True, timeout=120)


def before_and_after(folder: Path, rows: list[dict]) -> bytes:
    """A PNG with a row for each audited image: given, chance of being wrong, believed and true outlines."""
    names: list[str] = []
    given: list[np.ndarray] = []
    refined: list[np.ndarray] = []
    true: list[np.ndarray] = []
    chances: list[np.ndarray] = []
    for row in rows:
        name = f"{row['image']}.png"
        image = read_image(folder / "images" / name, 3)
        parts = ((given, "masks_given"), (refined, "masks_given_refined"), (true, "masks"))
        for outlined, kind in parts:
            outlined.append(contoured(image, read_mask(folder / kind / name).labels, 2) / 255)
        chances.append(read_image(folder / "audit" / "wrong" / name, 1)[..., 0] / 255)
        names.append(f"score {float(row['score']):.2f}")
    columns = {"given mask": given, "chance of being wrong": chances, "believed mask": refined, "true mask": true}
    return png(image_grid({title: np.stack(values) for title, values in columns.items()}, names))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    browser = args.browser or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place:
        folder, noisy = Path(place) / "phantom", Path(place) / "noisy"
        make_phantoms.main(["--save_root", str(folder), "--train", "60", "--test", "1", "--image_size", "192"])
        generate_simulated_noise.main(
            ["--gts_root", str(folder / "masks"), "--save_root", str(noisy), "--noisetype", "DE"]
        )
        clean = list_images(folder / "masks")
        spoiled = spoiled_set(folder / "masks_given", list_images(noisy), clean, seed=0)
        flags = ["--images_root", folder / "images", "--masks_root", folder / "masks_given"]
        audit_labels.main(list(map(str, [*flags, "--save_root", folder / "audit", "--image_size", "192"])))
        with open(folder / "audit" / "audit.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        found = {row["image"] for row in rows[: len(spoiled)]}
        print(f"of the {len(spoiled)} spoiled masks {len(found & set(spoiled))} are among the {len(spoiled)} worst")
        for kind in ("masks_given", "masks_given_refined"):
            masks = list_images(folder / kind)
            scores = [dice(read_mask(masks[stem]).labels, read_mask(clean[stem]).labels) for stem in spoiled]
            print(f"{kind}: mean Dice of the spoiled masks with the true ones {np.mean(scores):.3f}")
        write_atomically(args.save_root / "audit_masks.png", before_and_after(folder, rows[:ROWS]))
        if not browser:
            raise UserError("no Chromium found, so no picture of the page: install one, or name it by --browser")
        screenshot(browser, folder / "audit" / "audit.html", args.save_root / "audit_page.png")


if __name__ == "__main__":
    run_main(main)
