"""How probable it is that each image of a set shows the edge at each level of its mask, by the profile of its edges.

`utils.masks.contours.probabilities` takes the contrast at a level as evidence for that level alone, and weighs it
with caution: enough to find what most masks of a set have in common, too little to find the few that are wrong among
many that are right. But edges look alike in all images of a set: across a true edge the evidence rises and falls in the
same way. That profile is found from the images themselves, and the level of each is where its own evidence fits it
best.
Source: docs/method.md section 8.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import correlate1d
from scipy.special import softmax

from utils.masks.contours import ITERATIONS, RING, EdgeContrast, edges_shown, evidence_of, prior_of, probabilities

PROFILE = 8 / 128  # how far a profile reaches on either side of the edge, as a share of the image's side
HABIT = 1 / 128  # how far from the largest contrast raters may mean to draw, likewise
DEPENDENCE = 2  # neighbouring levels that say the same: their evidence shares pixels
CAUTION = 8  # by how much less the evidence counts for how far a contour lies from the edge than for on which side
IMPOSSIBLE = -1e9  # the log-likelihood of a level at which nothing would be left


def median_level(probabilities: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The median of each row of probabilities (N,L) of whole levels, (N,), each spread over an interval of length 1;
    0 where that is within half a pixel of the contour, and would move nothing.
    """
    ends = np.append(levels[0] - 0.5, levels + 0.5)
    found = np.array([np.interp(0.5, np.append(0, row.cumsum()), ends) for row in probabilities])
    return np.where(np.abs(found) < 0.5, 0, found)


def level_probabilities(images: Sequence[EdgeContrast], levels: np.ndarray, side: int) -> np.ndarray:
    """The probability that each image of a set shows the edge at each level, (N,L), ``levels`` as `levels_of`.

    side: the longer side of the images. Images without a boundary have all of it at 0, and so have all images of a set
    that shows no edges (`edges_shown`); no image has any where nothing would be left. Source: docs/method.md section 8.
    """
    if not edges_shown(images, levels):
        return np.tile((levels == 0).astype(float), (len(images), 1))
    evidence, possible = evidence_of(images, levels)
    found = probabilities(evidence, possible, levels)
    bounded = possible.sum(axis=1) > 1
    if bounded.any():
        found[bounded] = _fitted(evidence[bounded] * possible[bounded], possible[bounded], found[bounded], levels, side)
    return found


def _fitted(evidence: np.ndarray, possible: np.ndarray, start: np.ndarray, levels: np.ndarray, side: int) -> np.ndarray:
    """P(level) of each image, (N,L), by expectation maximisation of profile, noise and prior from ``start`` (N,L)."""
    reach, habit = max(2, round(PROFILE * side)), max(1, round(HABIT * side))
    images, width = len(evidence), 2 * reach + 1
    posterior, prior = start, prior_of(start[:0], levels)
    strength = np.sqrt(np.square(evidence).mean(axis=1, keepdims=True)) + 1e-3
    # Sum of squares about the mean in the window around each level: what a profile can explain at most.
    window = np.ones(width)
    squares = correlate1d(evidence**2, window, mode="nearest")
    squares -= correlate1d(evidence, window, mode="nearest") ** 2 / width
    for _ in range(ITERATIONS):
        profile = _profile(evidence / strength, posterior, reach)
        # Where most masks are right, they say where the edge is: near the largest contrast.
        most_are_right = levels[posterior.sum(axis=0).argmax()] == 0
        profile = _moved(profile, side, free=habit if most_are_right else None)
        fit = correlate1d(evidence, profile, mode="nearest")
        explained = np.maximum(fit, 0) * fit / max(profile @ profile, 1e-12)
        # As if the profile explained nothing of two more images: of few images it would explain too much.
        total, left = (posterior * squares).sum(), (posterior * (squares - explained)).sum()
        noise = max((left + 2 * total / images) / ((images + 2) * width), 1e-6)
        likelihood = np.where(possible, explained / (2 * noise * DEPENDENCE), IMPOSSIBLE)
        posterior = softmax(likelihood + np.log(prior), axis=1)
        prior = prior_of(posterior, levels)
    # The evidence decides whether a mask is right, too wide or too tight; how far, it says less well than the set does.
    calm = np.where(possible, likelihood / CAUTION, IMPOSSIBLE) + np.log(prior)
    kinds = (levels < -habit, np.abs(levels) <= habit, levels > habit)
    for kind in filter(np.any, kinds):  # the levels of a small image may all lie near 0
        posterior[:, kind] = softmax(calm[:, kind], axis=1) * posterior[:, kind].sum(axis=1, keepdims=True)
    return posterior


def _profile(evidence: np.ndarray, posterior: np.ndarray, reach: int) -> np.ndarray:
    """The mean of the evidence (N,L) around the level of each image, which has probabilities (N,L): (2 reach + 1,)."""
    padded = np.pad(evidence, ((0, 0), (reach, reach)), mode="edge")
    count = evidence.shape[1]
    return np.array([(posterior * padded[:, w : w + count]).sum() for w in range(2 * reach + 1)]) / len(evidence)


def _moved(profile: np.ndarray, side: int, free: int | None) -> np.ndarray:
    """The profile (2 reach + 1,), mean 0, with the edge at its middle.

    Given ``free``, it is moved only until its peak is no further than that from the middle.

    Inside an object its margin differs from the core, so the profile falls off slowly and unevenness of the masks
    draws its peak inwards. Its outer flank does not follow: the edge is taken to lie in the middle between the peak and
    where the flank of a sharp edge would put it, half a ring inside of half the peak's height. Both are found between
    the levels: of whole levels they would jump from one to the next.
    """
    levels = np.arange(len(profile)) - len(profile) // 2
    peak, flank = _peak_and_flank(profile)
    shift = (peak + flank + max(1, round(RING * side)) / 2) / 2 - len(profile) // 2
    if free is not None:
        middle = peak - len(profile) // 2
        shift = middle - min(max(middle, -free), free)
    moved = np.interp(levels + shift, levels, profile)
    return moved - moved.mean()


def _peak_and_flank(profile: np.ndarray) -> tuple[float, float]:
    """Where a profile (W,) is largest, by a parabola, and where it has half of that before; both in 0..W-1."""
    profile = np.maximum(profile, 0)
    top = int(profile.argmax())
    below = np.flatnonzero(profile[:top] < profile[top] / 2)
    flank = 0.0
    if len(below):
        low, high = profile[below[-1]], profile[below[-1] + 1]
        flank = below[-1] + (profile[top] / 2 - low) / (high - low)
    if top in (0, len(profile) - 1):
        return top, flank
    before, largest, after = profile[top - 1 : top + 2]
    return top + (before - after) / 2 / (before - 2 * largest + after), flank
