"""Pixels without a label, --ignore_label: outside everything but the superpixels' votes (docs/method.md section 5)."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import REPO, TRAIN_SCRIPT, assert_refused, assert_succeeded, blob, call
from PIL import Image
from test_baselines import stepped

from dataloaders.files import read_mask
from utils.commands.errors import UserError
from utils.engine.metrics import case_scores
from utils.masks import geometry
from utils.masks.contours import move_contour
from utils.masks.geometry import squared_boundary_distance
from utils.masks.label_quality import label_quality
from utils.method import losses
from utils.method.gsd import Batch, select_small_loss
from utils.method.settings import METHODS, MethodSettings

IGNORED = losses.IGNORED
EVALUATE, VERIFY, AUDIT = (REPO / "scripts" / name for name in ("evaluate.py", "verify_data.py", "audit_labels.py"))


def test_both_rooms_mean_the_same_value():
    assert geometry.IGNORED == IGNORED == 255


def problem(width=5, ignored=0, classes=2):
    """A batch of 4 images of ``width`` labelled columns, and ``ignored`` ones without a label behind them."""
    draw = torch.Generator().manual_seed(0)
    shape = (4, 6, width)
    image, jittered = (torch.randn(4, 3, 6, width, generator=draw).double() for _ in range(2))
    label = torch.randint(classes, shape, generator=draw)
    distance = 1 + 9 * torch.rand(shape, generator=draw).double()
    segments = torch.randint(4, shape, generator=draw)
    if not ignored:
        return Batch(image, jittered, label, distance, segments, 9)
    beyond = (4, 6, ignored)
    more = torch.randn(4, 3, 6, ignored, generator=draw).double()
    return Batch(
        torch.cat([image, more], dim=3),
        torch.cat([jittered, more - 1], dim=3),
        torch.cat([label, torch.full(beyond, IGNORED)], dim=2),
        torch.cat([distance, torch.full(beyond, 7.0).double()], dim=2),
        torch.cat([segments, torch.full(beyond, 8)], dim=2),
        9,
        torch.cat([torch.ones(shape, dtype=torch.bool), torch.zeros(beyond, dtype=torch.bool)], dim=2),
    )


def step(method, batch, epoch=50, classes=2, **how):
    draw = torch.Generator().manual_seed(1)
    matrices = [torch.randn(classes, 3, generator=draw).double() for _ in range(2)]
    networks = [lambda x, m=matrix: torch.einsum("kc,bc...->bk...", m, x) for matrix in matrices]
    settings = MethodSettings(method=method, tau=0.3 if METHODS[method].selects else 0, **how)
    return stepped(method)(networks, batch, epoch, settings, 0.4, torch.tensor([1, 2, 3, 0]))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_the_labelled_part_alone(method, classes):
    """Networks that look at single pixels cannot see the other part."""
    how = {"without": ("sgr",)} if method == "gsd" else {}
    whole, part = (step(method, problem(5, n, classes), classes=classes, **how) for n in (3, 0))
    assert whole.loss.item() == pytest.approx(part.loss.item())
    assert {name: value.item() for name, value in whole.parts.items() if name != "kept"} == pytest.approx(
        {name: value.item() for name, value in part.parts.items() if name != "kept"}
    )
    dice, same = (
        losses.added_dice_loss(one.taught, problem(5, n, classes).label) for one, n in ((whole, 3), (part, 0))
    )
    assert dice.item() == pytest.approx(same.item())


@pytest.mark.parametrize("without", [("sgr",), ("kt", "sgr"), ("selection", "sgr"), ("gda", "sgr")])
def test_so_it_is_with_modules_off(without):
    whole, part = (step("gsd", problem(5, n), without=without) for n in (3, 0))
    assert whole.loss.item() == pytest.approx(part.loss.item())


def test_refinement_gives_them_the_class_of_their_superpixel():
    batch = problem(5, 3)
    refined = step("gsd", batch).maps["refined"]
    assert IGNORED not in refined
    assert all(len(image[:, 5:].unique()) == 1 for image in refined)  # they are one superpixel in each image
    without = step("gsd", batch, without=("sgr",)).maps["refined"]
    assert (without[:, :, 5:] == IGNORED).all()


def test_superpixels_vote_although_nothing_is_dropped():
    batch = problem(5, 3)
    settings = MethodSettings(tau=0.0)
    networks = [lambda x: torch.stack([x[:, 0], x[:, 1]], dim=1)] * 2
    maps = stepped("gsd")(networks, batch, 50, settings, 0.5, torch.arange(4)).maps
    assert torch.equal(maps["refined"][:, :, :5], batch.label[:, :, :5])
    assert IGNORED not in maps["refined"]


@pytest.mark.parametrize(("rate", "kept"), [(0.0, 12), (0.25, 9), (0.3, 8), (0.99, 0)])
def test_the_share_that_is_kept_is_of_the_labelled_pixels(rate, kept):
    loss = torch.arange(20.0)
    labelled = torch.arange(20) >= 8  # those with the largest losses
    keep = select_small_loss(loss, rate, labelled)
    assert keep.nonzero().flatten().tolist() == list(range(8, 8 + kept))


def test_the_rim_of_an_ignored_area_is_no_boundary():
    label = np.zeros((9, 20), np.uint8)
    label[:, 5:8] = IGNORED
    label[:, 15:] = 1
    distance = squared_boundary_distance(label)[4]
    assert distance[4] == 100 and distance[8] == 49  # cap; seven pixels from column 15
    assert distance[14] == distance[15] == 1
    label[:, 15:] = IGNORED
    assert (squared_boundary_distance(label) == 100).all()  # one class only


def test_moved_contours_leave_them_alone():
    label = np.zeros((20, 20), np.uint8)
    label[6:14, 6:14] = 1
    label[:, :7] = IGNORED
    moved = move_contour(label, -2)
    assert (moved[:, :7] == IGNORED).all() and (moved[:, 7:] == IGNORED).sum() == 0
    assert (moved == 1).sum() > (label == 1).sum()


def test_scores_leave_them_out():
    masks = np.zeros((1, 1, 8, 8), np.uint8)
    masks[0, 0, 2:6, 2:6] = 1
    prediction = masks[0].copy()
    prediction[0, :, 6:] = 1  # wrong, where nothing is labelled
    masks[0, 0, :, 6:] = IGNORED
    scores = case_scores(prediction, masks, 2, surfaces=True)
    assert (scores["dice"], scores["hd95"]) == (1, 0)
    assert label_quality(masks[0, 0], np.stack([1 - prediction[0], prediction[0]]).astype(np.float32)) == 1


# --- Files ------------------------------------------------------------------------------------------------------------


def mask_file(path, values):
    Image.fromarray(np.array(values, np.uint8)).save(path)
    return path


def test_masks_with_it(tmp_path):
    path = mask_file(tmp_path / "a.png", [[0, 1], [255, 1]])
    assert read_mask(path, 2, 255).labels.tolist() == [[0, 1], [IGNORED, 1]]
    path = mask_file(tmp_path / "b.png", [[0, 255], [100, 0]])
    assert read_mask(path, 2, 100).labels.tolist() == [[0, 1], [IGNORED, 0]]
    path = mask_file(tmp_path / "c.png", [[0, 2], [255, 1]])
    assert read_mask(path, 3, 255).labels.tolist() == [[0, 2], [IGNORED, 1]]
    path = mask_file(tmp_path / "d.png", [[0, 0], [0, 1]])
    assert read_mask(path, 2, 255).labels.tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("values", "classes", "flag"), [([[0, 255]], 2, 255), ([[0, 1, 255]], 2, None), ([[0, 2, 255]], 3, None)]
)
def test_masks_that_want_it_or_do_not_are_named(tmp_path, values, classes, flag):
    path = mask_file(tmp_path / "a.png", values)
    with pytest.raises(UserError, match="--ignore_label") as refusal:
        read_mask(path, classes, flag)
    assert "a.png" in str(refusal.value)


@pytest.fixture
def partly_labelled(tmp_path):
    """A set in which a strip of every mask has no label."""
    rng = np.random.default_rng(0)
    for kind, count in (("", 8), ("_test", 3)):
        for folder in ("images", "masks"):
            (tmp_path / "data" / "mine" / f"{folder}{kind}").mkdir(parents=True)
        for index in range(count):
            image, mask = blob(rng)
            values = mask // 255
            values[:, :9] = 255
            Image.fromarray(image).save(tmp_path / "data" / "mine" / f"images{kind}" / f"{index}.png")
            Image.fromarray(values).save(tmp_path / "data" / "mine" / f"masks{kind}" / f"{index}.png")
    return tmp_path


@pytest.mark.usefixtures("without_pictures")
def test_training_and_evaluate_agree(partly_labelled):
    root = partly_labelled
    places = ("--data_root", root / "data", "--output_root", root / "model", "--cache", root / "cache")
    flags = ("--datasets", "mine", "--noise_type", "given", "--ignore_label", 255, "--image_size", 32)
    quick = ("--max_epochs", 2, "--batch_size", 4, "--device", "cpu", "--amp", "fp32")
    trained = call(TRAIN_SCRIPT, *flags, *places, *quick, "--recipe", "contour")
    assert_succeeded(trained)
    assert "without a label" in trained.out
    run = root / "model" / "mine+gsd-contour+given"
    assert json.loads((run / "args.json").read_text())["ignore_label"] == 255
    masks = root / "data" / "mine" / "masks_test"
    predict = ("--checkpoint", run / "checkpoint.pt", "--images_root", root / "data" / "mine" / "images_test")
    predict += ("--save_root", root / "predicted", "--device", "cpu", "--amp", "fp32")
    assert_succeeded(call(REPO / "scripts" / "predict.py", *predict))
    scores = ("--predictions", root / "predicted", "--masks", masks, "--save", root / "scores.csv")
    assert_refused(call(EVALUATE, *scores), "--ignore_label 255")
    assert_succeeded(call(EVALUATE, *scores, "--ignore_label", 255))
    with open(root / "scores.csv") as mine, open(run / "per_image.csv") as theirs:
        assert list(csv.DictReader(mine)) == list(csv.DictReader(theirs))


def test_verify_and_audit_take_it(partly_labelled):
    root = partly_labelled
    flags = ("--datasets", "mine", "--data_root", root / "data", "--image_size", 32, "--workers", 1)
    assert call(VERIFY, *flags).code == 1
    assert_succeeded(call(VERIFY, *flags, "--ignore_label", 255))
    folder = root / "data" / "mine"
    audit = ("--images_root", folder / "images", "--masks_root", folder / "masks", "--save_root", root / "audit")
    assert_succeeded(call(AUDIT, *audit, "--ignore_label", 255, "--workers", 1))
    estimated = np.array(Image.open(root / "audit" / "masks_refined" / "0.png"))
    assert (estimated[:, :9] == 255).all() and set(np.unique(estimated[:, 9:])) <= {0, 1}
