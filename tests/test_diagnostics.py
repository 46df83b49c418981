"""What goes wrong in training without an error: told when it happens, and written to the log."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN_SCRIPT, assert_succeeded, call, write_dataset
from PIL import Image

from dataloaders.files import read_image
from utils.commands.files import write_table
from utils.engine.diagnostics import Diagnostics, empty_predictions, explained
from utils.engine.metrics import case_scores
from utils.masks.geometry import resize_image
from utils.masks.superpixels import slic_segments
from utils.method.gsd import Batch, Step

SIZE = 8
NAMES = ("a", "b")


def batch_of(label: torch.Tensor, segments: torch.Tensor | None = None) -> Batch:
    image = torch.zeros(len(label), 1, SIZE, SIZE)
    if segments is None:
        segments = torch.arange(SIZE).expand(len(label), SIZE, SIZE)
    return Batch(image, image, label, torch.ones(label.shape), segments, SIZE)


def half_label() -> torch.Tensor:
    label = torch.zeros(2, SIZE, SIZE, dtype=torch.long)
    label[:, :4] = 1
    return label


def step_of(keep: torch.Tensor | None = None) -> Step:
    return Step(torch.zeros(()), {}, {} if keep is None else {"kept": keep}, ())


def constant(value: int):
    return lambda image: torch.eye(3)[value].view(1, 3, 1, 1).expand(len(image), 3, SIZE, SIZE)


def mixed(image: torch.Tensor) -> torch.Tensor:
    return torch.eye(3)[torch.arange(SIZE * SIZE).view(SIZE, SIZE) % 3].movedim(-1, 0).expand(len(image), -1, -1, -1)


def watched(networks, batches, steps=None, vote: str | None = "superpixels") -> dict[str, str]:
    steps = [step_of()] * len(batches) if steps is None else steps
    diagnostics = Diagnostics(len(batches), vote)
    forwards = diagnostics.observed(networks)
    for batch, step in zip(batches, steps, strict=True):
        for forward in forwards:
            forward(batch.image)
        diagnostics.observe(batch, step, NAMES)
    return diagnostics.warnings()


def test_nothing_is_said_of_a_healthy_epoch():
    assert watched([mixed, mixed], [batch_of(half_label())]) == {}


def test_a_network_of_one_class():
    found = watched([mixed, constant(2)], [batch_of(half_label())])
    assert list(found) == ["network 2 predicts class 2"] and "--learning_rate" in found["network 2 predicts class 2"]
    assert list(watched([constant(0), constant(0)], [batch_of(half_label())])) == [
        "network 1 predicts class 0",
        "network 2 predicts class 0",
    ]


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_is_right_where_the_labels_have_no_other(value):
    assert watched([constant(0)], [batch_of(torch.full((2, SIZE, SIZE), value))]) == {}


def test_only_the_second_half_of_an_epoch_shows_a_collapse():
    calls = []

    def recovers(image):
        calls.append(1)
        return (constant(0) if len(calls) <= 2 else mixed)(image)

    def collapses(image):
        calls.append(1)
        return (mixed if len(calls) <= 2 else constant(0))(image)

    def fails_at_last(image):
        calls.append(1)
        return (mixed if len(calls) <= 3 else constant(0))(image)

    batches = [batch_of(half_label())] * 4
    assert watched([recovers], batches) == {}
    calls.clear()
    assert list(watched([collapses], batches)) == ["network 1 predicts class 0"]
    calls.clear()
    assert watched([fails_at_last], batches) == {}


def test_superpixels_without_outlines_matter_where_they_vote():
    segments = torch.arange(SIZE).repeat(2, SIZE, 1)
    segments[1] = 5
    batch = batch_of(half_label(), segments)
    found = watched([mixed], [batch])
    assert list(found) == ["one segment"] and "all of 1 image," in found["one segment"]
    assert ": b." in found["one segment"] and "--compactness" in found["one segment"]
    for vote in (None, "rings", "pixels"):
        assert watched([mixed], [batch], vote=vote) == {}


def images_with_segments(count: int) -> Batch:
    """Images of two flat colours parted at a random line, and the two segments that they show."""
    generator = torch.Generator().manual_seed(count)
    ahead = torch.randint(1, SIZE - 1, (count, 1, 1), generator=generator)
    lines = 1 + ahead.cumsum(dim=0) % (SIZE - 1)  # never that of the image before
    segments = (torch.arange(SIZE).expand(count, SIZE, SIZE) >= lines).long()
    image = segments[:, None] + 0.1 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    label = torch.arange(SIZE).expand(count, SIZE, SIZE) % 2
    return Batch(image, image, label, torch.ones(label.shape), segments, 2)


@pytest.mark.parametrize(
    ("count", "shift", "vote", "told"),
    [
        (128, 0, "superpixels", False),
        (128, 1, "superpixels", True),
        (128, 1, "pixels", False),
        (128, 1, "rings", False),
        (128, 1, None, False),
        (64, 1, "superpixels", True),
        (63, 1, "superpixels", False),  # too few to tell
        (1, 0, "superpixels", False),
    ],
)
def test_superpixels_of_other_images(count, shift, vote, told):
    batch = images_with_segments(count)
    batch = batch._replace(segments=batch.segments.roll(shift, dims=0))
    diagnostics = Diagnostics(1, vote)
    forward = diagnostics.observed([mixed])[0]
    forward(batch.image)
    diagnostics.observe(batch, step_of(), [str(index) for index in range(count)])
    found = diagnostics.warnings()
    assert list(found) == ["superpixels do not fit"] * told
    assert not told or "verify_data.py" in found["superpixels do not fit"]


def test_so_many_images_of_an_epoch_are_enough():
    diagnostics = Diagnostics(2, "superpixels")
    for shift in (0, 1):
        batch = images_with_segments(256)
        diagnostics.observe(batch._replace(segments=batch.segments.roll(shift, dims=0)), step_of(), ["image"] * 256)
    fits, fits_not = torch.cat(diagnostics.images, dim=1)[2:].sum(dim=1).tolist()
    assert 250 < fits <= 256 and fits_not == 0


def test_the_processes_of_a_group_count_together(monkeypatch):
    batch = images_with_segments(48)
    several = []
    for shift in (0, 1):
        several.append(Diagnostics(1, "superpixels"))
        several[-1].observed([mixed])[0](batch.image)
        several[-1].observe(batch._replace(segments=batch.segments.roll(shift, dims=0)), step_of(), ["x"] * 48)
    assert several[1].warnings() == {}  # too few by themselves
    shares = []
    monkeypatch.setattr("utils.engine.diagnostics.gather", lambda own: shares.extend(own) or own)
    for diagnostics in several:
        diagnostics.warnings()
    monkeypatch.setattr("utils.engine.diagnostics.gather", lambda own: [shares[1], shares[1]])
    assert list(several[0].warnings()) == ["superpixels do not fit"]
    monkeypatch.setattr("utils.engine.diagnostics.gather", lambda own: shares)
    assert several[0].warnings() == several[1].warnings() == {}


def test_equal_segments_stay_equal_whatever_the_order_of_a_sum():
    batch = images_with_segments(128)
    same = batch._replace(segments=batch.segments[:1].expand_as(batch.segments), image=1e3 + batch.image)
    diagnostics = Diagnostics(1, "superpixels")
    diagnostics.observed([mixed])[0](batch.image)
    noise = iter((1 + 1e-12, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.engine.diagnostics.explained", lambda *args: next(noise) * explained(*args))
        diagnostics.observe(same, step_of(), ["x"] * 128)
    assert not torch.cat(diagnostics.images, dim=1)[2:].any()


def test_explained_of_a_large_bright_image():
    """In float32 the sums of so many pixels would hide which segments are better."""
    image = (1000 + torch.rand(1, 1, 2048, 2048, generator=torch.Generator().manual_seed(0))).float()
    segments = (torch.arange(2048) // 1024).expand(1, 2048, 2048)
    pixels = image[0, 0].double().numpy()
    squares = sum(part.sum() ** 2 / part.size for part in (pixels[:, :1024], pixels[:, 1024:]))
    assert explained(image, segments, 2).item() == pytest.approx(squares, rel=1e-12)


def test_explained_is_the_squares_of_the_means_of_segments():
    image = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    segments = torch.randint(5, (2, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    segments[:, 0, 0] = 7  # of one pixel; none has the ids 5, 6 and 8
    expected = [
        sum((picture[:, ids == i].mean(dim=1) ** 2).sum() * (ids == i).sum() for i in ids.unique())
        for picture, ids in zip(image, segments, strict=True)
    ]
    torch.testing.assert_close(explained(image, segments, 9).float(), torch.stack(expected))


@pytest.mark.parametrize("kind", [bool, float])  # co-teaching keeps a pixel for 0, 0.5 or 1 of its networks
def test_foreground_that_is_dropped_altogether(kind):
    label = half_label()
    keep = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    keep[0, :4] = False
    keep[1, :3] = False  # a row is left
    found = watched([mixed], [batch_of(label)], [step_of(keep.to(torch.bool if kind is bool else torch.float))])
    assert list(found) == ["foreground dropped"] and "1 image: a." in found["foreground dropped"]
    label[0] = 0  # an image without foreground has none to lose
    assert watched([mixed], [batch_of(label)], [step_of(keep)]) == {}


# --- In training ------------------------------------------------------------------------------------------------------

QUICK = ("--noise_type", "given", "--device", "cpu", "--image_size", 32, "--batch_size", 4, "--cache", "none")


@pytest.fixture(scope="module")
def sick(tmp_path_factory) -> Path:
    """A set in which everything goes wrong: single foreground pixels, no superpixel outline."""
    folder = write_dataset(tmp_path_factory.mktemp("sick"), train=8, test=2)
    for path in folder.glob("masks/*.png"):
        mask = np.zeros((40, 48), np.uint8)
        mask[20:22, 20:22] = 255
        Image.fromarray(mask).save(path)
    np.save(folder / "images_SLIC" / "case03.npy", np.zeros((32, 32), np.int32))
    return folder.parent


def warned(err: str) -> list[str]:
    return [line for line in err.replace("\r", "\n").splitlines() if "warning: epoch" in line]


@pytest.mark.usefixtures("without_pictures")
def test_a_run_tells_each_kind_once(sick, tmp_path):
    flags = ("--datasets", "kvasir", "--tau", 0.5, *QUICK, "--data_root", sick, "--output_root", tmp_path)
    lines = warned(call(TRAIN_SCRIPT, *flags, "--max_epochs", 6).err)
    with open(tmp_path / "kvasir+gsd+given" / "log.csv", newline="") as file:
        logged = [row["warnings"].split("; ") for row in csv.DictReader(file)]
    assert len(logged) == 6 and all("one segment" in names for names in logged)
    assert sum("foreground dropped" in names for names in logged) > 1
    assert "foreground dropped" not in logged[0]  # nothing is dropped yet
    assert len(lines) == len({name for names in logged for name in names if name})
    for sign in ("one superpixel covers", "every foreground pixel of"):
        assert sum(sign in line for line in lines) == 1
    assert any("epoch 0: one superpixel covers all of 1 image" in line and ": case03." in line for line in lines)


@pytest.mark.usefixtures("without_pictures")
def test_superpixels_do_not_matter_where_nothing_is_dropped(sick, tmp_path):
    flags = ("--datasets", "kvasir", "--tau", 0, *QUICK, "--max_epochs", 1)
    outcome = call(TRAIN_SCRIPT, *flags, "--data_root", sick, "--output_root", tmp_path)
    assert_succeeded(outcome)
    assert "superpixel" not in "".join(warned(outcome.err))


@pytest.mark.usefixtures("without_pictures")
def test_a_run_on_the_superpixels_of_other_images(tmp_path):
    folder = write_dataset(tmp_path, train=96, test=1)
    maps = sorted((folder / "images_SLIC").iterdir())
    for path in maps:
        image = read_image(folder / "images" / f"{path.stem}.png")
        np.save(path, slic_segments(resize_image(image, 32), n_segments=64))
    flags = ("--datasets", "kvasir", "--tau", 0.1, *QUICK, "--data_root", tmp_path, "--max_epochs", 2)
    for name in ("own", "mixed"):
        outcome = call(TRAIN_SCRIPT, *flags, "--batch_size", 16, "--output_root", tmp_path / name)
        assert_succeeded(outcome)
        assert ("better than those of another image do" in outcome.err) == (name == "mixed")
        former = [path.read_bytes() for path in maps]
        for path, data in zip(maps, [*former[1:], former[0]], strict=True):
            path.write_bytes(data)


def test_a_run_begun_without_the_column_goes_on(tmp_path):
    write_table(tmp_path / "log.csv", [{"epoch": 0}, {"epoch": 1, "warnings": "one segment"}])
    assert (tmp_path / "log.csv").read_text() == "epoch,warnings\n0,\n1,one segment\n"


def test_an_epoch_whose_scored_predictions_are_all_empty_is_told():
    empty, object_ = np.zeros((1, 8, 8), np.uint8), np.ones((1, 8, 8), np.uint8)
    missed, right = case_scores(empty, object_[None], 2), case_scores(empty, empty[None], 2)
    assert list(empty_predictions([missed, right])) == ["all predictions empty"]
    assert not empty_predictions([missed, case_scores(object_, empty[None], 2)])
    assert not empty_predictions([right, right])  # there is nothing to find
