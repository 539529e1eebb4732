"""A page that holds everything: one HTML file, figures inside, nothing fetched, no script.

A study or a run is a list of sections, a section a list of pieces, a piece a figure or a table with its numbers. Each
piece is also a file of its own: figures as PDF, PNG and CSV, tables as CSV, Markdown and LaTeX.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from fedray.report import style, tables
from fedray.report.style import Drawing
from fedray.report.tables import Sheet
from fedray.track import files

LARGEST = 9_500_000
"""Bytes of a page; figures that would make it larger are named, not shown."""
DPI = 200
LONG, BROAD = 40, 105
"""Rows that fit on a printed page; letters of a row, gaps included."""


class Piece(NamedTuple):
    """A figure, or a table with the numbers behind it."""

    name: str  # of its files
    title: str
    drawing: Drawing | None = None
    sheet: Sheet | None = None
    frame: pd.DataFrame | None = None
    note: str = ""  # how to read it


class Section(NamedTuple):
    """What belongs together."""

    title: str
    pieces: list[Piece]


class Saved(NamedTuple):
    """The page's path and all files made."""

    page: Path
    files: list[Path]


def save(
    title: str, sections: Sequence[Section], home: Path, *, facts: Mapping[str, str], left_out: Sequence[str] = ()
) -> Saved:
    """Write every piece into ``home/figures`` and ``home/tables``, and all of them into ``home/report.html``.

    Args:
        title: of the page.
        sections: those with nothing in them are left out.
        home: a study's or a run's folder.
        facts: what stands at the top, by name.
        left_out: what is not there, and why; a line each.

    Raises:
        Unavailable: `home` can't be written.
    """
    made, shown, room = [], [], LARGEST
    for section in sections:
        views = []
        for piece in section.pieces:
            paths = saved(piece, home)
            made += paths
            view, size = _view(piece, paths, room)
            views.append(view)
            room -= size
        if views:
            shown.append({"title": section.title, "pieces": views})
    page = home / "report.html"
    text = _template().render(title=title, facts=dict(facts), sections=shown, left_out=list(left_out))
    files.replace(page, text.encode())
    return Saved(page, [page, *made])


def saved(piece: Piece, home: Path) -> list[Path]:
    """A piece's own files.

    Raises:
        Unavailable: `home` can't be written.
    """
    if piece.drawing is not None:
        return style.save(piece.drawing, _made(home / "figures"), piece.name, dpi=DPI)
    if piece.sheet is not None and piece.frame is not None:
        return tables.save(piece.frame, piece.sheet, _made(home / "tables"), piece.name)
    return []


def _view(piece: Piece, paths: Sequence[Path], room: int) -> tuple[dict[str, object], int]:
    """A piece as the template reads it, and how many bytes it takes."""
    links = [(path.suffix[1:], f"{path.parent.name}/{path.name}") for path in paths]
    view: dict[str, object] = {"title": piece.title, "note": piece.note, "links": links, "shape": ""}
    if piece.drawing is not None:
        image = base64.b64encode(next(path for path in paths if path.suffix == ".png").read_bytes()).decode()
        if len(image) > room:
            return view | {"note": f"too large for this page: see {links[1][1]}"}, 0
        small = piece.drawing.figure.get_supxlabel()
        view["shape"] = "picture"
        return view | {"image": image, "alt": f"{piece.title}. {small}", "width": _width(piece.drawing)}, len(image)
    if piece.sheet is not None:
        rows = [list(zip(*line, strict=True)) for line in zip(piece.sheet.rows, piece.sheet.ranks, strict=True)]
        size = sum(len(text) for row in piece.sheet.rows for text in row)
        return view | {"header": piece.sheet.header, "rows": rows, "shape": _shape(piece.sheet)}, size
    return view, 0


def _shape(sheet: Sheet) -> str:
    """How a table is printed: broken between rows where no page holds it, in small letters where it is too wide."""
    across = sum(max(len(text) for text in column) + 3 for column in zip(sheet.header, *sheet.rows, strict=True))
    return " ".join(filter(None, ["long" * (len(sheet.rows) > LONG), "wide" * (across > BROAD)]))


def _width(drawing: Drawing) -> str:
    return f"{drawing.figure.get_figwidth():.2f}in"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=loader, autoescape=True, **options).get_template("page.html")  # type: ignore[arg-type]


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
