"""The page that shows an audit: one HTML file with everything in it, to be opened from disk."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.audit.judging import Judged
from utils.audit.marks import MARKS
from utils.audit.pictures import Picture

_PAGE, _STYLE, _SCRIPT = (
    Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
)
_COLUMNS = (
    ("Rank", "number"),
    ("Image", "text"),
    ("Score", "number"),
    ("Suspected errors", "number"),
    ("Contour moved", "number"),
    ("Given mask", ""),
    ("Estimated mask", ""),
    ("Mark", ""),
)
_COLOURS = 6  # of outlines in page.css


class Entry(NamedTuple):
    """One row of the page."""

    rank: int  # from 1, the worst
    row: Judged
    picture: Picture


def audit_page(title: str, notes: Sequence[str], entries: Sequence[Entry], identity: str) -> str:
    """The page as a string: a table with a row for each entry, in their order, to be sorted, filtered and marked.

    identity: of the audit, under which a browser keeps the marks (`utils.audit.marks.read_audit`). The page loads
    nothing, and a policy in its head forbids it to. ``title``, ``notes`` and the names may hold any characters.
    """
    heads = "".join(
        f'<th data-kind="{kind}"{" aria-sort=ascending" * (index == 0)}>'
        + (f'<button type="button">{name}</button></th>' if kind else f"{name}</th>")
        for index, (name, kind) in enumerate(_COLUMNS)
    )
    return _PAGE.format(
        identity=html.escape(identity),
        title=html.escape(title),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        heads=heads,
        legend=", ".join(_legend(max((len(entry.picture.given) for entry in entries), default=1))),
        rows="\n".join(map(_row, entries)),
        style=_STYLE,
        script=_SCRIPT,
    )


def _legend(foreground: int) -> list[str]:
    """What the colours of the outlines mean, of so many foreground classes."""
    names = ["the mask"] if foreground == 1 else [f"class {k}" for k in range(1, foreground + 1)]
    return [f'<span class="swatch class{k % _COLOURS}"></span> {name}' for k, name in enumerate(names, start=1)]


def _row(entry: Entry) -> str:
    rank, row, picture = entry
    name = html.escape(row.image)
    score = ("", "not judged") if row.score is None else (f"{row.score:.6f}", f"{row.score:.3f}")
    values = (
        (str(rank), str(rank)),
        (name, name),
        score,
        (f"{row.suspected_share:.6f}", f"{row.suspected_share:.1%}"),
        (f"{row.shift:.2f}", f"{row.shift:+.1f} px"),
    )
    cells = "".join(
        f'<td data-key="{key}"' + (f' data-title="{title}"' if kind == "number" else "") + f">{text}</td>"
        for (title, kind), (key, text) in zip(_COLUMNS, values, strict=False)
    )
    buttons = "".join(
        f'<button type="button" data-mark="{mark}" aria-pressed="false"><kbd>{mark[0].upper()}</kbd> {mark}</button>'
        for mark in MARKS
    )
    facts = f"score {score[1]}, suspected errors {values[3][1]}, contour moved {values[4][1]}, shown: {picture.crop}"
    return (
        f'<tr data-image="{name}" data-score="{score[0]}" data-facts="{facts}">{cells}{_pictures(entry)}'
        f'<td class="marks">{buttons}</td></tr>'
    )


def _pictures(entry: Entry) -> str:
    """Two cells; the second draws on the image of the first, so that the page holds it once."""
    rank, row, picture = entry
    size = f'width="{picture.width}" height="{picture.height}"'
    encoded = base64.b64encode(picture.jpeg).decode()
    image = f'<image id="image{rank}" {size} href="data:image/jpeg;base64,{encoded}"/>'
    given = image + _outlines(picture.given)
    suspected = f'<path class="suspected" d="{picture.suspected}"/>'
    estimated = f'<use href="#image{rank}"/>{suspected}' + _outlines(picture.estimated)
    box = f'viewBox="0 0 {picture.width} {picture.height}" role="img"'
    return "".join(
        f'<td data-title="{kind}"><button type="button" class="enlarge" title="enlarge"><svg {box} data-kind="{kind}" '
        f'aria-label="{kind} of {html.escape(row.image)}">{content}</svg></button></td>'
        for kind, content in (("Given mask", given), ("Estimated mask", estimated))
    )


def _outlines(paths: Sequence[str]) -> str:
    return "".join(
        f'<path class="outline class{k % _COLOURS}" d="{path}"/>' for k, path in enumerate(paths, start=1) if path
    )
