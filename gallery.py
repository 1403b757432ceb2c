"""Examples side by side: galleries, web pages; tables of what was taken for what.

Colour pictures are uint8 (height, width, 3), blue first, as OpenCV reads and writes them.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np

from drawing import (
    EDGE,
    GRAPH_SIDE,
    MASKED,
    SIDE,
    Colour,
    canvas_picture,
    draw_graph,
    png,
    to_picture,
    to_svg,
    write_png,
)
from support.files import write_file
from support.fonts import DPI, Figure, families, showable, write_text

PICTURE_NAME, PAGE_NAME = "gallery.png", "index.html"
PAGE, TEXT, RULE = (246, 246, 246), (60, 60, 60), (215, 215, 215)  # blue, green, red
MAX_NUMBERED = 30  # categories of a table that has room for numbers
MIN_TABLE = 280  # pixels of a table's side, so that its title fits


class Example(NamedTuple):
    """What a gallery shows of one sketch; all pictures are optional.

    Attributes:
        category: its name; neighbouring examples of the same category are shown together.
        index: the sketch's row in its split.
        original: stroke-3 (n, 3).
        corrupted: uint8 (S, S), ink 255 on 0: node 0 of the corrupted sketch's graph.
        generated: stroke-3 (n, 3).
        graph_picture: uint8 (side, side, 3) from `draw_graph`.
        drawings: more sketches to show, stroke-3 (n, 3), by the names of their columns.
    """

    category: str
    index: int
    original: np.ndarray | None = None
    corrupted: np.ndarray | None = None
    generated: np.ndarray | None = None
    graph_picture: np.ndarray | None = None
    drawings: Mapping[str, np.ndarray] = MappingProxyType({})


COLUMNS = {  # in the order of display, before those of `drawings`
    "original": "original",
    "graph_picture": "graph",
    "corrupted": "corrupted",
    "generated": "generated",
}


def with_graph(
    example: Example, graph: Any, adjacency: np.ndarray, *, marked: bool = True
) -> Example:
    """An example with its graph and its corrupted canvas.

    Args:
        example: has an original.
        graph: what was made of it, for `drawing.draw_graph`.
        adjacency: see `drawing.draw_graph`.
        marked: whether the squares of masked patches are marked as erased.
    """
    shown = graph if marked else graph._replace(masked=[])
    picture = draw_graph(example.original, shown, adjacency)
    return example._replace(graph_picture=picture, corrupted=graph.picture.copy())


def write_gallery(
    output_dir: Path, examples: Sequence[Example], title: str, metadata: Mapping[str, object]
) -> None:
    """Writes the picture and the page."""
    write_png(output_dir / PICTURE_NAME, gallery(examples, title=title))
    write_file(output_dir / PAGE_NAME, index_html(examples, title=title, metadata=metadata))


def gallery(
    examples: Sequence[Example],
    *,
    title: str = "",
    per_row: int = 2,
    cell: int = SIDE,
    by_category: bool = True,
) -> np.ndarray:
    """Examples side by side in one picture.

    Args:
        examples: any number; each shows the columns that at least one of them has.
        title: stands on top.
        per_row: how many examples stand side by side, at least 1.
        cell: side of one picture in pixels.
        by_category: whether each category starts a row.

    Returns:
        uint8 (height, width, 3), blue first.

    Raises:
        ValueError: see `drawing.to_paths`.
    """
    columns = _columns(examples)
    groups = [list(group) for _, group in groupby(examples, lambda example: example.category)]
    if not by_category:
        groups = [list(examples)]
    rows = [group[i : i + per_row] for group in groups for i in range(0, len(group), per_row)]
    height, width = _tile_size(len(columns), cell)
    header = cell // 3 if title or not rows else 0
    max_columns = max(map(len, rows), default=0)
    page = np.full(
        (header + len(rows) * height, max(max_columns * width, 3 * cell if header else 0), 3),
        PAGE,
        np.uint8,
    )
    if header:
        title = title if rows else f"{title} (no sketches)"
        write_text(page, title, cell // 20, header // 2, cell / 9, TEXT)
    for r, row in enumerate(rows):
        for c, example in enumerate(row):
            tile = page[header + r * height :, c * width :][:height, :width]
            _draw_tile(tile, example, columns, cell)
    return page


def confusion_png(tables: Mapping[str, np.ndarray], names: Sequence[str]) -> bytes:
    """What was taken for what, in percent of each row, tables side by side, as a PNG file.

    Args:
        tables: title to counts, int (C, C): row the true category, column the one it was taken
            for. A row without counts stays blank, and so does a share of 0.
        names: of the C categories.
    """
    count = len(names)
    numbered = count <= MAX_NUMBERED
    cell, size = (56, 14) if numbered else (12, 9)  # pixels
    side, gap = max(count * cell, MIN_TABLE), 4 * size
    width = len(tables) * (side + gap)
    figure = Figure((width / DPI, side / DPI), dpi=DPI, facecolor=_rgb(PAGE))
    texts = [showable(name) for name in names]
    font = {
        "fontsize": size,
        "family": families("".join(texts)),
        "parse_math": False,
        "textcoords": "offset points",
    }
    paint = np.where(np.eye(count, dtype=bool)[..., None], _rgb(EDGE), _rgb(MASKED))
    edges = np.arange(count + 1) - 0.5
    for i, (title, counts) in enumerate(tables.items()):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes = figure.add_axes((i * (side + gap) / width, 0, side / width, 1))
        axes.set_axis_off()
        axes.imshow(1 - shares[..., None] * (1 - paint), aspect="auto", interpolation="nearest")
        axes.hlines(edges, -0.5, count - 0.5, _rgb(RULE), linewidth=1)
        axes.vlines(edges, -0.5, count - 0.5, _rgb(RULE), linewidth=1)
        axes.set_title(f"{title}\nrows: true, columns: taken for, %", fontsize=1.1 * size)
        for k, text in enumerate(texts):
            below = {"xy": (k, count - 0.5), "xytext": (0, -6), "rotation": 90}
            axes.annotate(text, **below, **font, ha="center", va="top")
            if i == 0:
                left = {"xy": (-0.5, k), "xytext": (-6, 0)}
                axes.annotate(text, **left, **font, ha="right", va="center")
        for row, column in np.argwhere(shares > 0) if numbered else ():
            share = shares[row, column]
            text = "100" if share == 1 else f"{100 * share:.1f}"
            ink = "white" if share > 0.5 else _rgb(TEXT)
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
    file = io.BytesIO()
    # The names stand outside of the axes; the page grows as they need.
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=16 / DPI)
    return file.getvalue()


def index_html(
    examples: Sequence[Example],
    *,
    title: str = "Sketches",
    metadata: Mapping[str, object] = {},
    introduction: str = "",
) -> str:
    """Examples as a web page that needs no other file, category by category.

    Args:
        examples: any number; each shows the columns that at least one of them has. One takes
            about 10 KB, with a graph picture 100 KB.
        title: stands on top.
        metadata: shown below the title, name and value, e.g. the model and the temperature.
        introduction: HTML that stands above the examples.

    Raises:
        ValueError: see `drawing.to_paths`.
    """
    columns = _columns(examples)
    body = [f"<h1>{html.escape(title)}</h1>"]
    if metadata:
        pairs = [f"{html.escape(k)}: <b>{html.escape(str(v))}</b>" for k, v in metadata.items()]
        body.append(f"<p>{' · '.join(pairs)}</p>")
    body.append(introduction)
    if not examples:
        body.append("<p>no sketches</p>")
    for category, group in groupby(examples, key=lambda example: example.category):
        body.append(f"<section><h2>{html.escape(category)}</h2>")
        for example in group:
            figures = "".join(_figure(example, field) for field in columns)
            body.append(f"<article><h3>#{example.index}</h3>{figures}</article>")
        body.append("</section>")
    return HTML.format(title=html.escape(title), body="\n".join(filter(None, body)))


HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem }}
h1, h2 {{ font-weight: 600 }}
section {{ display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem }}
h2 {{ flex: 100%; margin: 1rem 0 -.5rem; border-bottom: 1px solid #8886 }}
article {{ display: flex; flex-wrap: wrap; gap: .5rem }}
h3 {{ flex: 100%; margin: 0; font-size: .9rem }}
figure {{ margin: 0 }}
figure > :first-child {{ display: block; width: 225px; height: 225px; border-radius: 6px;
  background: #fff; box-shadow: 0 0 0 1px #8886 }}
figcaption {{ font-size: .8rem; opacity: .7; text-align: center }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .15rem .8rem; text-align: left; border-bottom: 1px solid #8884 }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _columns(examples: Sequence[Example]) -> list[str]:
    names = [*COLUMNS, *dict.fromkeys(name for example in examples for name in example.drawings)]
    return [n for n in names if any(_content(example, n) is not None for example in examples)]


def _content(example: Example, column: str) -> np.ndarray | None:
    return getattr(example, column) if column in COLUMNS else example.drawings.get(column)


def _spacing(cell: int) -> tuple[int, int]:
    """Between two pictures of a tile, and the height of a line of text."""
    return max(4, cell // 20), max(18, cell // 9)


def _tile_size(columns: int, cell: int) -> tuple[int, int]:
    gap, line = _spacing(cell)
    return cell + 2 * line + gap, columns * (cell + gap) + 3 * gap


def _draw_tile(tile: np.ndarray, example: Example, columns: list[str], cell: int) -> None:
    """One example with its captions, onto a blank part of the page."""
    gap, line = _spacing(cell)
    write_text(tile, f"{example.category} {example.index}", gap, line // 2, 0.65 * line, TEXT)
    for c, field in enumerate(columns):
        x = gap + c * (cell + gap)
        place = tile[line : line + cell, x : x + cell]
        place[:] = _cell(example, field, cell)
        outline = place[0], place[-1], place[:, 0], place[:, -1]
        for edge in outline:
            edge[:] = RULE
        caption = COLUMNS.get(field, field)
        write_text(tile[:, : x + cell], caption, x, line + cell + line // 2, 0.55 * line, TEXT)


def _cell(example: Example, field: str, side: int) -> np.ndarray:
    """One picture of an example, uint8 (side, side, 3); white where there is none."""
    content = _content(example, field)
    if content is None:
        return np.full((side, side, 3), 255, np.uint8)
    if field == "graph_picture":
        picture = content
    else:
        drawn = max(side, SIDE)  # the thinnest line would be too thick for a small picture
        if field == "corrupted":
            picture = canvas_picture(content, drawn, example.original)
        else:
            picture = to_picture(content, drawn)
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def _figure(example: Example, field: str) -> str:
    """One picture of an example as HTML."""
    content = _content(example, field)
    if content is None:
        picture = "<span></span>"
    elif field in ("graph_picture", "corrupted"):
        data = base64.b64encode(png(_cell(example, field, GRAPH_SIDE))).decode()
        picture = f'<img alt="" src="data:image/png;base64,{data}">'
    else:
        picture = to_svg(content).strip()
    caption = html.escape(COLUMNS.get(field, field))
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _rgb(colour: Colour) -> np.ndarray:
    """A colour as matplotlib takes it: red, green, blue from 0 to 1."""
    return np.array(colour[::-1]) / 255
