"""The step between reading a set's masks and training on them: which contours are moved, and how noisy the labels are.

One look at each image serves both (`look_at`). It is taken at one size, whatever size is trained at, so that what
counts as a displacement that matters does not depend on it. Source: docs/method.md sections 8 and 10.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.masks.contours import EdgeContrast, edge_contrast, edges_shown, evidence_of, levels_of, move_contour
from utils.masks.edge_profile import level_probabilities, median_level
from utils.masks.geometry import resize_image, resize_label
from utils.masks.noise_rate import estimate_noise_rates

EDGE_SIZE = 128  # pixels: the side at which edges are looked for; the unit of the four figures that follow
MATTERS = 2.0  # a contour is moved by no less
TYPICAL = 2.5  # and by no less in the median over the masks that are displaced
NEAR, BESIDE = 1, 3  # a contour lies on an edge if no level within BESIDE has more evidence than those within NEAR
CLEAR = 0.5  # share of an image's largest evidence from which its contour clearly lies on an edge
MOST = 2 / 3  # share of the masks whose contours lie on an edge from which most masks are right
ALIKE = 0.3  # between the 10th and the 90th percentile of the displacements: all contours are displaced alike
FALLBACK_TAU = 0.05  # where nothing says how wrong the masks are; the paper's for Kvasir


class Look(NamedTuple):
    """What a look at one image keeps."""

    edges: EdgeContrast
    label: np.ndarray  # uint8, at `EDGE_SIZE`


class Decision(NamedTuple):
    """How far each contour of a set is to be moved, and why."""

    shifts: np.ndarray  # (N,) pixels of `EDGE_SIZE`, positive inwards; 0 where a contour stays
    suggested: np.ndarray  # (N,) the same for somebody who looks at each: also of single masks among right ones
    reason: str  # in numbers
    probabilities: np.ndarray | None  # (N,L) of the levels; None where the images show no edges


class Findings(NamedTuple):
    """What the looks at a set have found."""

    shifts: list[float]  # as `Decision`; all 0 where contours stay as given
    reason: str
    tau: float
    tau_from: str


def look_at(image: np.ndarray, label: np.ndarray) -> Look:
    """A look at an image, uint8 (H,W,C), and its label (H,W) of classes, both brought to a square of `EDGE_SIZE`."""
    small = resize_label(label, EDGE_SIZE)
    return Look(edge_contrast(resize_image(image, EDGE_SIZE), small), small)


def findings_of(looks: Sequence[Look], num_classes: int, corrected: bool) -> Findings:
    """How far contours are to be moved (0 unless ``corrected``), and --tau auto for the masks that are then trained on.

    Source: docs/method.md sections 8 and 10.
    """
    levels = levels_of((EDGE_SIZE,))
    decision = decide([look.edges for look in looks], levels)
    shifts = decision.shifts if corrected else np.zeros(len(looks))
    which = "after contour correction" if corrected else "as given"
    if decision.probabilities is None:
        tau, tau_from = FALLBACK_TAU, f"auto, not estimated: {decision.reason}"
    else:
        labels = [look.label for look in looks]
        rates = estimate_noise_rates(labels, shifts, decision.probabilities, levels, num_classes)
        tau = round(rates.total, 4)  # as it is read again
        tau_from = f"auto, estimated on the masks {which}"
    return Findings(shifts.tolist(), decision.reason, tau, tau_from)


def decide(found: Sequence[EdgeContrast], levels: np.ndarray, side: int = EDGE_SIZE) -> Decision:
    """How far the contour of each image of a set is to be moved. found: of each image, at longer side ``side``.

    Nothing is moved where the images show no edges; where most contours lie on an edge, whatever stronger one runs
    beside it; where displacements are too small to matter; and where all contours are displaced alike, which may be
    what raters mean to do. Source: docs/method.md section 8.
    """
    stay, unit = np.zeros(len(found)), side / EDGE_SIZE
    evidence, possible = evidence_of(found, levels)
    bounded = possible.sum(axis=1) > 1
    count = int(bounded.sum())
    if not count:
        return Decision(stay, stay, "no mask has a boundary", None)
    if not edges_shown(found, levels):
        return Decision(stay, stay, "the images show no more of an edge at the contours than elsewhere", None)
    probabilities = level_probabilities(found, levels, side)
    offsets = median_level(probabilities, levels)[bounded] / unit
    on_edge = _on_edge(evidence[bounded], levels / unit)
    number = int(on_edge.sum())
    seen = f"median offset {np.median(offsets):.1f} px of {EDGE_SIZE}, {number} of {count} contours lie on an edge"
    shifts = stay.copy()
    if number >= MOST * count:
        strong = evidence[bounded].max(axis=1)
        near = evidence[bounded][:, np.abs(levels / unit) <= NEAR].max(axis=1)
        right = on_edge & (near >= CLEAR * strong)  # of a single mask a faint edge may be chance
        shifts[bounded] = np.where((np.abs(offsets) >= MATTERS) & ~right, offsets, 0)
        return Decision(stay, shifts, f"{seen}: most masks are right", probabilities)
    displaced = np.abs(offsets[offsets != 0])
    if len(displaced) < count / 2 or np.median(displaced) < TYPICAL:
        return Decision(stay, stay, f"{seen}: too small to matter", probabilities)
    low, high = np.percentile(offsets, (10, 90))
    if high - low < ALIKE:
        words = f"{seen}: all are displaced alike, which raters may mean to do; the audit's page shows them"
        return Decision(stay, stay, words, probabilities)
    shifts[bounded] = np.where(np.abs(offsets) >= MATTERS, offsets, 0)
    return Decision(shifts, shifts, f"{seen}, offsets {low:.1f} to {high:.1f} in eight of ten", probabilities)


def _on_edge(evidence: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Whether the contour of each image lies on an edge of its own, bool (N,); evidence (N,L)."""
    near = evidence[:, np.abs(levels) <= NEAR].max(axis=1)
    return (near > 0) & (near >= evidence[:, np.abs(levels) <= BESIDE].max(axis=1))


def moved_label(label: np.ndarray, shift: float) -> np.ndarray:
    """A label (H,W) of any size with its contour moved by ``shift`` pixels of `EDGE_SIZE`."""
    return move_contour(label, shift * max(label.shape) / EDGE_SIZE)
