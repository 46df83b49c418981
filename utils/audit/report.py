"""What an audit says of its masks: their order, and its notes on the page and on stdout."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from utils.audit.judging import Judged
from utils.commands.errors import listed
from utils.masks.label_quality import doubtful_networks


def worst_first(judged: Sequence[Judged]) -> list[Judged]:
    """Rows in the order of their scores; those without one come last."""
    return sorted(judged, key=lambda row: (math.inf if row.score is None else row.score, row.image))


def notes(count: int, shown: int, networks: str | None) -> list[str]:
    """What the page says of ``count`` masks, the worst of which are shown; networks: whose they are, if any."""
    by = f"the image and {networks}" if networks else "the edges in the images"
    return [
        f"{count} masks, judged by {by}; the {shown} with the lowest scores are shown.",
        "Score: the Dice to be expected of the given mask, 1 is best. Suspected errors: share of the image's pixels "
        "where the estimated mask differs, in blue. Contour moved: how far the edge lies inside (+) or outside (-) of "
        "the given contour.",
        "This is a program's opinion on which masks to look at first. It is not a diagnosis.",
        "Mark the masks, export the marks, and let scripts/audit_labels.py --apply FILE.csv make a folder of them: an "
        "accepted row gets the estimated mask, a rejected or unmarked one the given mask, look again leaves it out.",
    ]


def summary(rows: Sequence[Judged]) -> Iterator[str]:
    """Lines on all masks: their scores, the suspected errors, and which were not judged."""
    scores = [row.score for row in rows if row.score is not None]
    if scores:
        share = np.mean([row.suspected_share for row in rows if row.score is not None])
        low, middle, high = np.percentile(scores, (5, 50, 95))
        yield f"{len(scores)} masks scored: median {middle:.3f}, nine of ten from {low:.3f} to {high:.3f}"
        yield f"suspected label errors: {share:.2%} of the pixels of a scored mask in the mean"
    unjudged = [row.image for row in rows if row.score is None]
    if unjudged:
        yield f"not judged, as they have no boundary (a --checkpoint would): {len(unjudged)} masks: {listed(unjudged)}"


def doubt_of(rows: Sequence[Judged]) -> str | None:
    """What to say of networks that disagree with most masks, None if they do not (`doubtful_networks`)."""
    columns = zip(*((row.network_score, row.contour_score) for row in rows), strict=True)
    return doubtful_networks(*([value for value in column if value is not None] for column in columns))
