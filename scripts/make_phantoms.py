"""Draw a small dataset of lesions with clean masks, to try the programs without patient data.

    python scripts/make_phantoms.py --save_root data/phantom

Writes images/, masks/, images_test/ and masks_test/ under --save_root, as train_0000.png, test_0000.png and so on:
scripts/README.md. Images are RGB like those of endoscopy and dermoscopy: lesions of varied size, shape and contrast
with a visible outline, on a textured ground with vessels, stains without an outline, reflections and sensor noise.

Simulated label noise moves outlines by a number of pixels, whatever the image's size: with images of 128 pixels, give
scripts/generate_simulated_noise.py --T 100, which does to them what its default of 200 does to images of 256.
"""

import argparse
import re
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.commands.arguments import add_workers, command_parser
from utils.commands.errors import UserError, listed, run_main
from utils.commands.files import claimed, keep_settings, write_atomically
from utils.commands.jobs import run_jobs

FOLDERS = {"train": ("images", "masks"), "test": ("images_test", "masks_test")}
EMPTY_EVERY = 15  # one image of each run of 15 has no lesion: 6.7 %
# Mucosa and skin, RGB in 0..1.
GROUNDS = np.array([[0.80, 0.47, 0.42], [0.76, 0.52, 0.40], [0.84, 0.60, 0.54]], np.float32)
# Added to the ground for a lesion or stain: red-brown, red, violet-black, pale yellow.
LESIONS = np.array([[-0.16, -0.22, -0.20], [-0.10, -0.24, -0.18], [-0.26, -0.24, -0.17]], np.float32)
STAINS = np.array([[-0.03, -0.20, -0.14], [0.10, 0.10, 0.04], [-0.10, -0.12, -0.10]], np.float32)


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Gaussian noise (size,size) float32 of mean 0 and standard deviation 1, smooth over ``scale`` of the side."""
    noise = cv2.GaussianBlur(rng.standard_normal((size, size), np.float32), (0, 0), max(scale * size, 0.3))
    return (noise - noise.mean()) / noise.std()


def texture(rng: np.random.Generator, size: int, scales: tuple[float, ...], strength: float) -> np.ndarray:
    """Grey noise with a tinge of colour, at several scales: (size,size,3) float32 of standard deviation ~strength."""
    grey = sum(smooth_noise(rng, size, scale)[..., None] * rng.uniform(0.9, 1.1, 3) for scale in scales)
    return (strength / len(scales) ** 0.5 * grey).astype(np.float32)


def random_shape(rng: np.random.Generator, size: int, diameter: float) -> np.ndarray:
    """One filled irregular shape, uint8 (size,size) of 0 and 1; diameter: mean, as a share of the side.

    An ellipse at a random place, whose radius swells and shrinks with the angle (a Fourier series) and whose edge is
    roughened by noise. It may be cut by the image's border.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    across, down = rng.uniform(0.4 * diameter, 1 - 0.4 * diameter, 2).astype(np.float32)
    dx, dy = axis[None, :] - across, axis[:, None] - down
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.3)
    u = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
    v = (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
    angle = np.arctan2(v, u)
    radius = 1 + sum(
        rng.normal(0, 0.5) / order**1.5 * np.cos(order * angle + rng.uniform(0, 2 * np.pi)) for order in range(2, 7)
    )
    level = 1 - np.hypot(u, v) / (diameter / 2 * np.maximum(radius, 0.4))
    level += rng.uniform(0.02, 0.10) * smooth_noise(rng, size, 0.02 + 0.06 * diameter)
    contours, _ = cv2.findContours((level > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = max(contours, key=cv2.contourArea)  # islands and holes that the noise made are dropped
    return cv2.drawContours(np.zeros((size, size), np.uint8), [largest], -1, 1, cv2.FILLED)


def lesion_shapes(rng: np.random.Generator, size: int) -> list[np.ndarray]:
    """One to three shapes (size,size) uint8 that do not touch; a lesion that finds no room is left out."""
    count = rng.choice([1, 2, 3], p=[0.65, 0.25, 0.1])
    shapes: list[np.ndarray] = []
    taken: np.ndarray = np.zeros((size, size), np.uint8)
    for _ in range(count):
        low, high = (0.15, 0.25) if rng.random() < 0.08 else (0.4, 0.8) if count == 1 else (0.3, 0.5)
        diameter = rng.uniform(low, high)
        for _ in range(10):
            shape = random_shape(rng, size, diameter)
            if not (shape & taken).any():
                shapes.append(shape)
                taken |= cv2.dilate(shape, np.ones((5, 5), np.uint8))
                break
    return shapes


def draw_lesion(rng: np.random.Generator, image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """``image`` with a lesion in ``shape``: own colour and texture, lit from one side, with a rim 1-2 pixels wide."""
    size = len(image)
    pixel = max(size / 128, 1)  # the rim keeps its look at larger sizes
    alpha = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.8 * pixel)[..., None]
    tone = LESIONS[rng.integers(len(LESIONS))] * rng.uniform(0.5, 1.1) + rng.normal(0, 0.02, 3)
    inside = image + tone + texture(rng, size, (0.008, 0.02, 0.05), rng.uniform(0.02, 0.05))

    depth = cv2.distanceTransform(cv2.copyMakeBorder(shape, 1, 1, 1, 1, cv2.BORDER_REPLICATE), cv2.DIST_L2, 5)
    depth = depth[1:-1, 1:-1]
    dome = cv2.GaussianBlur(np.sqrt(depth / depth.max()), (0, 0), 0.02 * size)
    slope = np.gradient(dome)
    light = rng.uniform(0, 2 * np.pi)
    shade = np.cos(light) * slope[1] + np.sin(light) * slope[0]
    inside += (rng.uniform(0.2, 0.8) * 0.01 * size * np.clip(shade, -0.2, 0.2))[..., None]

    edge = ((depth > 0) & (depth <= 1.5 * pixel)).astype(np.float32)
    rim = cv2.GaussianBlur(edge, (0, 0), 0.7 * pixel)[..., None]
    rim_tone = rng.uniform(0.08, 0.22) * np.array([-0.7, -1, -0.9], np.float32) * (1 if rng.random() < 0.8 else -0.8)
    return image * (1 - alpha) + inside * alpha + rim * rim_tone


def draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Textured tissue with stains and vessels, RGB (size,size,3) float32, about 0..1."""
    colour = rng.dirichlet(np.ones(len(GROUNDS))) @ GROUNDS + rng.normal(0, 0.02, 3)
    image = colour.astype(np.float32) + texture(rng, size, (0.01, 0.03, 0.08, 0.2), rng.uniform(0.025, 0.05))
    # Stains come near the colours of faint lesions, so that a threshold does not tell a lesion.
    for _ in range(rng.integers(1, 4)):
        blur = rng.uniform(0.05, 0.09) * size
        stain = cv2.GaussianBlur(random_shape(rng, size, rng.uniform(0.2, 0.5)).astype(np.float32), (0, 0), blur)
        image += stain[..., None] * STAINS[rng.integers(len(STAINS))] * rng.uniform(0.3, 0.7)
    vessels = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(3, 9)):
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.22, 40))
        steps = np.stack([np.cos(heading), np.sin(heading)], 1) * rng.uniform(0.008, 0.022)
        path = (rng.uniform(0, 1, 2) + np.cumsum(steps, 0)) * size
        line = np.zeros_like(vessels)
        points = np.rint(path * 16).astype(np.int32)  # in sixteenths of a pixel
        cv2.polylines(line, [points], False, 1.0, max(1, round(size / 128)), cv2.LINE_8, 4)
        vessels = np.maximum(vessels, cv2.GaussianBlur(line, (0, 0), rng.uniform(0.6, 1.3) * size / 128))
    return image + vessels[..., None] * np.array([-0.10, -0.24, -0.20], np.float32) * rng.uniform(0.4, 1)


def light_and_sense(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """``image`` as a camera sees it: uneven light, vignette, reflections, noise. uint8 RGB (H,W,3)."""
    size = len(image)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    lean, centre = rng.normal(0, 0.1, 2), rng.uniform(-0.3, 0.3, 2)
    vignette = rng.uniform(0.1, 0.3) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    light = np.maximum(1.08 + lean[0] * x + lean[1] * y - vignette, 0.3)
    spots = np.zeros((size, size), np.float32)
    for cluster in rng.uniform(0, 1, (rng.integers(0, 4), 2)):
        for place in cluster + rng.normal(0, 0.04, (rng.integers(1, 5), 2)):
            axes = rng.uniform(0.003, 0.016, 2) * size
            cv2.ellipse(spots, ((place * size).tolist(), (2 * axes).tolist(), rng.uniform(0, 180)), 1.0, cv2.FILLED)
    glints = cv2.GaussianBlur(spots, (0, 0), 0.006 * size)[..., None]
    image = image * light[..., None]
    image = image + glints * (0.97 - image) + rng.normal(0, rng.uniform(0.008, 0.025), image.shape)
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def draw_phantom(rng: np.random.Generator, size: int, empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """One image, RGB uint8 (size,size,3), and its mask, uint8 (size,size) of 0 and 255; no lesion if ``empty``."""
    image = draw_ground(rng, size)
    mask = np.zeros((size, size), np.uint8)
    for shape in [] if empty else lesion_shapes(rng, size):
        image = draw_lesion(rng, image, shape)
        mask |= shape
    return light_and_sense(rng, image), mask * 255


def phantom(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image ``index`` of ``split`` and its mask (`draw_phantom`), whatever other images there are."""
    key = [seed, list(FOLDERS).index(split)]
    run, place = divmod(index, EMPTY_EVERY)
    empty = place == np.random.default_rng([*key, run, 1]).integers(EMPTY_EVERY)
    return draw_phantom(np.random.default_rng([*key, index, 2]), size, empty)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = command_parser(__doc__.split("\n")[0])
    parser.add_argument(
        "--save_root", type=Path, required=True, help="folder to write the dataset to, such as data/phantom"
    )
    parser.add_argument("--train", type=int, default=200, help="number of training images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=60, help="number of test images (default: %(default)s)")
    parser.add_argument(
        "--image_size", type=int, default=256, help="side of the images in pixels (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add_workers(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that was drawn with other settings")
    args = parser.parse_args(argv)
    for name, least in (("train", 1), ("test", 1), ("image_size", 32), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    return args


def paths(save_root: Path, split: str, index: int) -> list[Path]:
    """Where image ``index`` of ``split`` and its mask are written."""
    return [save_root / folder / f"{split}_{index:04}.png" for folder in FOLDERS[split]]


def write_phantom(item: tuple[str, int], save_root: Path, seed: int, size: int) -> float:
    """Write image and mask of ``item`` (split, index); returns the lesions' share of the pixels."""
    image, mask = phantom(seed, *item, size)
    for path, pixels in zip(paths(save_root, *item), (image[..., ::-1], mask), strict=True):  # OpenCV writes BGR
        write_atomically(path, cv2.imencode(".png", pixels)[1].tobytes())
    return float((mask > 0).mean())


def files_there(save_root: Path) -> list[Path]:
    """The phantoms that are in ``save_root``; `UserError` if its folders hold anything else."""
    found = []
    for split, folders in FOLDERS.items():
        for folder in folders:
            files = [path for path in (save_root / folder).glob("*") if not path.name.startswith(".")]
            foreign = [path.name for path in files if not re.fullmatch(rf"{split}_\d{{4,}}\.png", path.name)]
            if foreign:
                raise UserError(f"{save_root / folder} holds {listed(sorted(foreign))}: choose another --save_root")
            found += files
    return sorted(found)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    items = [("train", index) for index in range(args.train)] + [("test", index) for index in range(args.test)]
    settings = {name: getattr(args, name) for name in ("train", "test", "image_size", "seed")}
    with claimed(args.save_root, *(args.save_root / folder for folders in FOLDERS.values() for folder in folders)):
        make_set(args, items, settings)


def make_set(args: argparse.Namespace, items: list[tuple[str, int]], settings: dict) -> None:
    """Write the phantoms of ``items`` (split, index), unless all are there."""
    there = files_there(args.save_root)
    keep_settings(args.save_root, settings, args.overwrite, there)
    if not args.overwrite and set(there) == {path for item in items for path in paths(args.save_root, *item)}:
        print(f"{args.save_root}: all {len(items)} images are there, made with these settings: skipped")
        return

    cv2.setNumThreads(1)  # the processes take the cores
    job = partial(write_phantom, save_root=args.save_root, seed=args.seed, size=args.image_size)
    shares, failures = run_jobs(job, items, args.workers, "phantoms")
    if failures:
        raise UserError(f"{len(failures)} of {len(items)} images were not made:\n" + "\n".join(failures))
    print(", ".join(f"{name} {value}" for name, value in settings.items()) + f" -> {args.save_root}")
    print(
        f"{len(items)} images, {np.mean(np.array(shares) == 0):.1%} without lesion, "
        f"mean lesion share of pixels {np.mean(shares):.1%}"
    )
    derived = sorted({path.name for path in args.save_root.iterdir() if path.is_dir()} - set(sum(FOLDERS.values(), ())))
    if args.overwrite and derived:
        print(f"note: made from the former images, to be made again: {listed(derived)}")


if __name__ == "__main__":
    run_main(main)
