"""The pictures of a run and overlays: what they show, for images of any size, channels, classes and raters."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import folder_source, write_dataset

from dataloaders.training_set import load_training_set
from utils.engine import pictures
from utils.engine.figures import COLOURS, SMALLEST, WHITE, name_of, overlay, pixels
from utils.engine.intensity import Intensity
from utils.engine.metrics import case_scores
from utils.engine.pictures import (
    examples,
    fullest_slice,
    learning_curves,
    method_panels,
    predictions_beside_references,
)
from utils.engine.training import is_drawn
from utils.method import gsd
from utils.method.gsd import Batch
from utils.method.settings import MethodSettings, RunSettings, Settings

SIZE = 24


def square(start, side, size=SIZE, value=1):
    label = torch.zeros((size, size) if isinstance(size, int) else size, dtype=torch.long)
    label[start : start + side, start : start + side] = value
    return label


def settings_of(**method):
    settings = MethodSettings(**{"tau": 0.1, "max_epochs": 10} | method)
    return Settings(settings, RunSettings(), "paper", "paper", settings.method, "as given")


def panels(settings, labels=None, channels=3, classes=2, given=None, second=True):
    labels = torch.stack([square(6, 8), square(2, 5)]) if labels is None else labels
    count = len(labels)
    image = torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(SIZE * SIZE).view(SIZE, SIZE) // 48).expand(count, -1, -1)
    batch = Batch(image, image, labels, torch.full((count, SIZE, SIZE), 10.0), segments, 12, given=given)
    maps = {"kept": torch.ones(count, SIZE, SIZE), "weight": torch.ones(count, SIZE, SIZE)}
    maps["kept"][:, :3] = 0
    if second:
        maps |= {"refined": labels, "mixed": image}
    figure = method_panels(batch, maps, [f"case{i}" for i in range(count)], settings, classes, Intensity.raw(channels))
    return figure


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


ALL = ["image", "kept pixels", "weight: 1 dark, 10 bright", "superpixels", "refined label", "mixed image"]


@pytest.mark.parametrize(
    ("method", "absent"),
    [
        ({}, ()),
        ({"without": ("sgr",)}, (3, 4)),
        ({"without": ("gda",)}, (2,)),
        ({"without": ("kt",)}, (5,)),
        ({"without": ("selection",)}, (1,)),
        ({"without": ("sgr", "kt")}, (3, 4, 5)),
        ({"vote": "rings"}, (3,)),
        ({"tau": 0.0}, (1, 3, 4)),
        ({"method": "ce"}, (1, 2, 3, 4, 5)),
        ({"method": "jocor"}, (2, 3, 4, 5)),
    ],
    ids=str,
)
def test_the_columns_are_what_is_active(method, absent):
    assert titles(panels(settings_of(**method))) == [title for i, title in enumerate(ALL) if i not in absent]


def test_refinement_and_transfer_have_columns_once_they_have_begun():
    assert titles(panels(settings_of(), second=False)) == ALL[:4]


def test_the_corrected_mask_is_drawn_beside_the_given_one():
    labels = torch.stack([square(6, 8), square(2, 5)])
    given = torch.stack([square(5, 10), square(2, 5)])
    figure = panels(settings_of(method="ce"), labels, given=given)
    assert [len(axis.collections) for axis in figure.axes] == [2, 1]  # the second was not moved
    assert legend(figure) == ["mask as given", "corrected or refined label"]
    assert legend(panels(settings_of(method="ce"), labels)) == ["mask as given"]


def test_pixels_that_one_of_two_networks_drops_are_told_apart():
    assert "dropped by one network" in legend(panels(settings_of(method="coteaching")))


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(1, SIZE, SIZE, dtype=torch.long),
        torch.ones(2, SIZE, SIZE, dtype=torch.long),
        torch.stack([square(3, 9, value=2), square(3, 9, value=255)]),
    ],
    ids=["one image, no foreground", "nothing but foreground", "classes, no label"],
)
def test_panels_of_any_images(channels, labels):
    drawn = pixels(panels(settings_of(), labels, channels, classes=3))
    assert drawn.std() > 10 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50  # not blank


def test_images_with_foreground_come_first():
    labels = torch.stack([*torch.zeros(4, SIZE, SIZE, dtype=torch.long), square(2, 5)])
    rows = [axis.get_ylabel() for axis in panels(settings_of(method="ce"), labels).axes]
    assert rows == ["case4", "case0", "case1", "case2"]


def test_the_superpixels_are_cut_to_the_object():
    size = 200
    batch = Batch(
        *torch.zeros(2, 1, 3, size, size),
        square(90, 20, size)[None],
        torch.ones(1, size, size),
        square(0, 9, size)[None],
        2,
    )
    maps = {"kept": torch.ones(1, size, size), "weight": torch.ones(1, size, size)}
    axes = {
        axis.get_title(): axis for axis in method_panels(batch, maps, ["a"], settings_of(), 2, Intensity.raw(3)).axes
    }
    left, right = axes["superpixels"].get_xlim()
    assert 80 < left < 90 and 109 < right < 120
    assert axes["image"].get_xlim() == (-0.5, size - 0.5)


# --- Given labels travel to the pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("contours", ["given", "corrected"])
def test_a_training_set_keeps_the_given_labels_where_contours_are_corrected(tmp_path, contours):
    source = folder_source(write_dataset(tmp_path, train=3, test=1))
    plain = load_training_set(source, "none", torch.device("cpu")).data
    data = load_training_set(source, "none", torch.device("cpu"), contours).data
    assert plain.given is None and (data.given is None) == (contours == "given")
    if data.given is not None:
        assert torch.equal(data.given, plain.labels) and data.nbytes == plain.nbytes + data.given.nbytes
        assert torch.equal(data.to(torch.device("cpu")).given, plain.labels)


# --- Predictions ------------------------------------------------------------------------------------------------------


def case_of(name, masks, size=16, channels=3):
    masks = torch.as_tensor(masks, dtype=torch.uint8)
    return gsd.TestCase(name, torch.randint(256, (masks.shape[1], channels, size, size), dtype=torch.uint8), masks)


@pytest.fixture
def shown(monkeypatch):
    """The examples of cases whose predictions are squares of the given sides; what was asked to be predicted."""

    def call(cases, sides, classes=2):
        asked = []
        whole = {case.name: square(2, side, case.masks.shape[-2:]) for case, side in zip(cases, sides, strict=True)}

        def predictions(experiment, chosen):
            asked.extend(chosen)
            return [(case, whole[case.name][None].byte()) for case in chosen]

        monkeypatch.setattr(pictures, "predictions", predictions)
        scores = {
            case.name: case_scores(
                whole[case.name].expand(case.masks.shape[1:]).byte().numpy(), case.masks.numpy(), classes
            )
            for case in cases
        }
        found = examples(SimpleNamespace(cases=cases), scores)
        assert [case.name for case in asked] == [example.case.name for example in found]
        figure = predictions_beside_references(found, classes)
        drawn = pixels(figure)
        assert drawn.std() > 10
        return found, figure

    return call


def test_eight_cases_from_worst_to_best(shown):
    reference = square(2, 10)[None, None]
    cases = [case_of(f"$a_{{{i}}}$", reference) for i in range(20)]
    sides = [(7 * i) % 20 + 1 for i in range(20)]
    found, figure = shown(cases, sides)
    dice = [float(example.score.removeprefix("Dice ")) for example in found]
    assert len(found) == 8 and dice == sorted(dice) and dice[0] < 0.05 and dice[-1] == 1
    assert [axis.get_title().split("\n")[0] for axis in figure.axes] == [example.case.name for example in found]
    assert legend(figure) == ["reference", "prediction"]


def test_a_volume_shows_the_slice_with_most_foreground(shown):
    masks = torch.zeros(4, 3, 30, 20)
    masks[0, 1, 5:10, 5:10] = 1
    masks[1:, 2, 5:15, 5:15] = 1
    case = case_of("a", masks)
    [example], figure = shown([case], [0])
    assert torch.equal(example.case.image, case.image[2:]) and torch.equal(example.case.masks, case.masks[:, 2:])
    assert "slice 3 of 3" in example.score and legend(figure)[0] == "references of 4 raters"
    assert len(figure.axes[0].collections) == 3  # the raters who have drawn something; nothing is predicted
    assert fullest_slice(torch.zeros(1, 5, 4, 4)) == 2


def test_one_case_without_foreground(shown):
    [example], _ = shown([case_of("a", torch.zeros(1, 1, 40, 24), channels=1)], [0])
    assert example.score == "no foreground in the reference, nothing predicted"


def test_cases_with_foreground_go_before_those_without(shown):
    cases = [case_of(f"case{i}", square(2, 8)[None, None] * (i % 2)) for i in range(18)]
    found, _ = shown(cases, range(1, 19))
    assert all("Dice" in example.score for example in found) and len(found) == 8


# --- Overlays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30, 20, 1), (50, 700, 3), (900, 640, 5)])
@pytest.mark.parametrize("known", [False, True])
def test_an_overlay_has_lines_of_one_width_and_a_legend(shape, known):
    height, width, _ = shape
    image = np.full(shape, 90, np.uint8)
    labels, reference = np.zeros((2, height, width), np.uint8)
    labels[height // 4 : height // 2, width // 4 : width // 2] = 1
    labels[-height // 4 :, -width // 4 :] = 2
    reference[height // 3 : height // 2 + 3, width // 3 : width // 2 + 3] = 1
    drawn = overlay(image, labels, 3, reference if known else None)
    times = -(-SMALLEST // max(shape))
    part = drawn[: height * times, : width * times]
    colours = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.unique(part.reshape(-1, 3), axis=0)}
    assert {COLOURS[0], COLOURS[1]} <= colours and (WHITE in colours) == known
    assert (part[: height * times // 5] == 90).all()  # nothing is drawn away from the outlines
    line = max(2, round(max(part.shape) / 300))
    row = part[height * times * 3 // 8]  # through the left side of the first square
    yellow = (row == (255, 230, 26)).all(axis=-1)
    assert yellow[: width * times * 3 // 8].sum() == line
    strip = drawn[height * times :]
    assert len(strip) > 15 and len(np.unique(strip.reshape(-1, 3), axis=0)) > 5


# --- Curves -----------------------------------------------------------------------------------------------------------


def history(epochs, **values):
    row = {"loss": 1.0, "dice": 0.5, "learning_rate": 0.1, "scored_on": "test masks"}
    return [row | {"epoch": epoch} | values for epoch in range(epochs)]


def test_curves_are_named_as_in_the_readme_and_only_of_what_is_there():
    everything = {"gda": 1.0, "dice_loss": 1.0, "val_dice": 0.4, "kept": 0.9, "weight_cap": 5, "transfer1": None}
    figure = learning_curves(history(12, **everything), tau=0.1)
    assert titles(figure) == ["Dice", "loss", "kept share", "weight cap"]
    texts = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes[:3]]
    assert texts[0] == ["test masks", "validation cases"]
    assert texts[1] == ["total", "on the pixels kept (GDA)", "Dice loss"] and "tau 0.1" in texts[2][1]
    assert titles(learning_curves(history(3))) == ["Dice", "loss"]
    falling = [row | {"learning_rate": 1 / (1 + row["epoch"])} for row in history(3)]
    assert titles(learning_curves(falling)) == ["Dice", "loss", "learning rate"]
    assert titles(learning_curves(history(2, dice=None))) == ["Dice", "loss"]  # no reference has foreground


@pytest.mark.parametrize("epochs", [1, 2, 5, 100])
def test_ticks_are_whole_epochs(epochs):
    figure = learning_curves(history(epochs))
    assert pixels(figure).std() > 5
    assert all(tick == round(tick) for axis in figure.axes for tick in axis.get_xticks())


@pytest.mark.parametrize(("epochs", "count"), [(1, 1), (4, 4), (15, 10), (100, 10), (104, 10)])
def test_pictures_are_drawn_ten_times_at_most_and_in_the_end(epochs, count):
    drawn = [epoch for epoch in range(epochs) if is_drawn(epoch, epochs)]
    assert len(drawn) == count and drawn[-1] == epochs - 1


def test_long_names_are_cut_in_the_middle():
    assert name_of("short") == "short"
    assert name_of("LIDC-IDRI-0001_nodule-0_slice-12") == "LIDC-IDRI-0...-0_slice-12"
