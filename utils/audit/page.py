"""The page that shows an audit: one HTML file with everything in it, to be opened from disk."""

import base64
import html
from collections.abc import Sequence
from typing import NamedTuple

SIDE = 176  # of a picture, in pixels

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; color: #1b1f24; background: #fff; }
h1 { font-size: 1.3rem; margin: 0 0 .4rem; }
p { margin: .2rem 0; max-width: 60rem; }
table { border-collapse: collapse; margin-top: 1rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #d5dae0; text-align: right; }
th { position: sticky; top: 0; background: #f3f5f7; white-space: nowrap; }
th:nth-child(2), td:nth-child(2) { text-align: left; overflow-wrap: anywhere; max-width: 22rem; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
img { display: block; }
"""

# A click sorts by that column; a second click turns the order round. Cells without a figure come last either way.
_SCRIPT = """
const body = document.querySelector("tbody");
const heads = [...document.querySelectorAll("th")];
heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.key;
  const compare = (a, b) => head.dataset.kind === "text" ? a.localeCompare(b) : a - b;
  const rows = [...body.rows].sort((a, b) =>
    key(a) === "" || key(b) === "" ? (key(a) === "") - (key(b) === "") : sign * compare(key(a), key(b)));
  body.append(...rows);
}));
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{notes}
<table>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
<script>{script}</script>
</body>
</html>
"""


class Entry(NamedTuple):
    """One row of the page."""

    rank: int  # from 1, the worst
    name: str
    score: float | None  # None: not judged
    wrong_share: float  # of the image's pixels
    shift: float  # pixels; positive: the edge lies inside of the given contour
    given: bytes  # JPEG: the given outline on the image
    believed: bytes  # JPEG: the believed outline, and the pixels that are believed wrong


_COLUMNS = (
    ("Rank", "number"),
    ("Image", "text"),
    ("Score", "number"),
    ("Believed wrong", "number"),
    ("Contour moved", "number"),
    ("Given mask", ""),
    ("Believed mask", ""),
)


def audit_page(title: str, notes: Sequence[str], entries: Sequence[Entry]) -> str:
    """The page as a string: a sortable table with a row for each entry, in their order. It loads nothing, and a policy
    in its head forbids it to; ``title``, ``notes`` and the names may hold any characters."""
    heads = "".join(
        f'<th data-kind="{kind}"{" aria-sort=ascending" * (index == 0)}>'
        + (f'<button type="button">{name}</button></th>' if kind else f"{name}</th>")
        for index, (name, kind) in enumerate(_COLUMNS)
    )
    return _PAGE.format(
        title=html.escape(title),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        heads=heads,
        rows="\n".join(map(_row, entries)),
        style=_STYLE,
        script=_SCRIPT,
    )


def _row(entry: Entry) -> str:
    score = ("", "not judged") if entry.score is None else (f"{entry.score:.6f}", f"{entry.score:.3f}")
    cells = [
        (str(entry.rank), str(entry.rank)),
        (entry.name, entry.name),
        score,
        (f"{entry.wrong_share:.6f}", f"{entry.wrong_share:.1%}"),
        (f"{entry.shift:.2f}", f"{entry.shift:+.1f} px"),
    ]
    texts = "".join(f'<td data-key="{html.escape(key)}">{html.escape(text)}</td>' for key, text in cells)
    pictures = zip(("given mask of", "believed mask of"), (entry.given, entry.believed), strict=True)
    images = "".join(
        f'<td><img alt="{kind} {html.escape(entry.name)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(picture).decode()}"></td>'
        for kind, picture in pictures
    )
    return f"<tr>{texts}{images}</tr>"
