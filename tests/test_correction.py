"""Which contours are moved before training, and which are left alone: docs/method.md section 8; and tau, section 10."""

import cv2
import numpy as np
import pytest

from utils.masks.contours import levels_of, move_contour, signed_distance
from utils.masks.correction import EDGE_SIZE, FALLBACK_TAU, Look, decide, findings_of, look_at, moved_label
from utils.masks.noise_rate import NoiseRates

ONE_SIDE = pytest.mark.parametrize("beside", [-3, -2, -1, 1, 2, 3])


def blob(rng: np.random.Generator, size: int = EDGE_SIZE) -> np.ndarray:
    """A mask of an uneven ellipse."""
    y, x = np.mgrid[:size, :size]
    (cy, cx), (ry, rx), turn = rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.15, 0.26, 2) * size, rng.uniform(0, 6)
    angle = np.arctan2(y - cy, x - cx)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 + 0.15 * np.sin(3 * angle + turn)).astype(np.uint8)


def picture(rng: np.random.Generator, mask: np.ndarray, soft: float = 0, beside: int | None = None) -> np.ndarray:
    """Grey tissue that is brighter where ``mask`` is, over a border of width ``soft``; and brighter still from a
    stronger edge ``beside`` pixels inside the mask's contour on."""
    distance = signed_distance(mask)
    grey = 80 + 45 * (1 / (1 + np.exp(-distance / soft)) if soft else distance > 0)
    if beside is not None:
        grey = grey + 65 * (distance > beside)
    grey = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.7)[..., None] + rng.normal(0, 12, (*mask.shape, 3))
    return grey.clip(0, 255).astype(np.uint8)


def looks(images, masks) -> list[Look]:
    return [look_at(image, mask) for image, mask in zip(images, masks, strict=True)]


def drawn(count: int = 30, **how: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(count)]
    return [picture(rng, mask, **how) for mask in masks], masks


@ONE_SIDE
@pytest.mark.parametrize("soft", [1.0, 2.0])
def test_a_stronger_edge_beside_a_soft_border_is_left_alone(beside, soft):
    found = findings_of(looks(*drawn(soft=soft, beside=beside)), 2, corrected=True)
    assert not any(found.shifts)


def test_right_masks_stay_and_so_do_those_of_a_set_of_which_most_are_right():
    images, masks = drawn()
    assert not any(findings_of(looks(images, masks), 2, corrected=True).shifts)
    one_in_five = [move_contour(mask, 5) if i % 5 == 0 else mask for i, mask in enumerate(masks)]
    assert not any(findings_of(looks(images, one_in_five), 2, corrected=True).shifts)


def test_single_displaced_masks_among_right_ones_are_suggested_to_an_auditor():
    images, masks = drawn()
    one_in_five = [move_contour(mask, 5) if i % 5 == 0 else mask for i, mask in enumerate(masks)]
    edges = [look.edges for look in looks(images, one_in_five)]
    suggested = decide(edges, levels_of((EDGE_SIZE,))).suggested
    assert (np.abs(suggested[::5] + 5) < 1.5).all()
    assert not np.delete(suggested, np.arange(0, len(masks), 5)).any()


def test_displacements_that_scatter_are_undone():
    images, masks = drawn()
    offsets = np.random.default_rng(1).uniform(3, 6, len(masks)) * np.random.default_rng(2).choice((-1, 1), len(masks))
    wrong = [move_contour(mask, offset) for mask, offset in zip(masks, offsets, strict=True)]
    shifts = np.array(findings_of(looks(images, wrong), 2, corrected=True).shifts)
    assert np.abs(shifts + offsets).max() < 1  # back to where they were


def test_what_all_contours_share_to_the_pixel_may_be_meant():
    images, masks = drawn()
    found = findings_of(looks(images, [move_contour(mask, 4) for mask in masks]), 2, corrected=True)
    assert not any(found.shifts)
    assert "-4.0" in found.reason and "audit" in found.reason


def test_small_displacements_do_not_matter():
    images, masks = drawn()
    offsets = np.random.default_rng(1).uniform(1, 2, len(masks)) * np.random.default_rng(2).choice((-1, 1), len(masks))
    wrong = [move_contour(mask, offset) for mask, offset in zip(masks, offsets, strict=True)]
    assert not any(findings_of(looks(images, wrong), 2, corrected=True).shifts)


def test_images_without_edges_say_nothing():
    rng = np.random.default_rng(0)
    masks = [blob(rng) for _ in range(30)]
    found = findings_of(looks([rng.integers(0, 255, (*mask.shape, 3), np.uint8) for mask in masks], masks), 2, True)
    assert not any(found.shifts)
    assert found.tau == FALLBACK_TAU and "not estimated" in found.tau_from


def test_masks_without_a_boundary_say_nothing():
    images = [np.zeros((40, 40, 3), np.uint8)] * 4
    found = findings_of(looks(images, [np.zeros((40, 40), np.uint8), np.ones((40, 40), np.uint8)] * 2), 2, True)
    assert found.shifts == [0] * 4 and found.tau == FALLBACK_TAU


def test_the_decision_does_not_depend_on_the_size_of_the_files():
    images, masks = drawn()
    offsets = np.random.default_rng(1).uniform(3, 6, len(masks)) * np.random.default_rng(2).choice((-1, 1), len(masks))
    wrong = [move_contour(mask, offset) for mask, offset in zip(masks, offsets, strict=True)]
    double = [
        [cv2.resize(a, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST) for a in one] for one in (images, wrong)
    ]
    small, large = (np.array(findings_of(looks(*one), 2, corrected=True).shifts) for one in ((images, wrong), double))
    np.testing.assert_allclose(small, large, atol=0.3)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_a_shift_is_of_the_side(size):
    mask = blob(np.random.default_rng(0), size)
    np.testing.assert_array_equal(moved_label(mask, 4), move_contour(mask, 4 * size / 128))


# --- tau --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "total"), [((0.1, 0, 0), 0.1), ((0.05, 0.04, 0), 0.09), ((0, 0, 0.02), 0.02), ((1, 0, 1), 0.99)]
)
def test_the_noise_rate_is_the_sum_and_below_1(rates, total):
    assert NoiseRates(*rates).total == pytest.approx(total)


@pytest.mark.parametrize("signs", [(1, 1), (-1, -1), (1, -1)], ids=["too tight", "too wide", "both"])
def test_tau_is_the_noise_rate_of_the_masks_that_are_trained_on(signs):
    images, masks = drawn()
    sign = np.where(np.arange(len(masks)) % 2, *signs)
    offsets = sign * (5 + np.random.default_rng(1).uniform(-1, 1, len(masks)))
    wrong = [move_contour(mask, one) for mask, one in zip(masks, offsets, strict=True)]
    rate = np.mean([(a != b).mean() for a, b in zip(masks, wrong, strict=True)])
    as_given, corrected = (findings_of(looks(images, wrong), 2, corrected=c) for c in (False, True))
    assert as_given.tau == pytest.approx(rate, rel=0.15) and "as given" in as_given.tau_from
    assert corrected.tau < 0.25 * rate and "correction" in corrected.tau_from
