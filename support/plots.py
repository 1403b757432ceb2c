"""Pages for print: sketches, patches and text placed by inches; PNG and PDF whose bytes repeat."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

import utils
from drawing import fitted_paths
from hparams import HParams
from support.files import write_file
from support.fonts import Figure, FigureCanvasAgg, families, showable
from support.palette import COLOURS, VERMILION

# isort: split
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

WIDE = 7.0  # inches: two columns of an article
DPI = 300  # of the PNG
SMALL, NORMAL = 6.0, 7.0  # points
GREY, LIGHT = "0.35", "0.8"
MARKERS = "os^DvPX*"
RIGHT = VERMILION  # frame of what is right


def colour(category: int) -> str:
    """A category's colour; every eighth has the same, but see `marker`."""
    return COLOURS[category % len(COLOURS)]


def marker(category: int) -> str:
    """A category's marker, of matplotlib's: one for each eight categories."""
    return MARKERS[category // len(COLOURS) % len(MARKERS)]


@functools.lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """Inches that a line of text takes, its size in points."""
    figure = Figure(dpi=72)
    line = figure.text(0, 0, text, fontsize=size, family=families(text), parse_math=False)
    return line.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / 72


def broken(text: str, room: float) -> list[str]:
    """A text in lines of at most `room` inches, where its words allow it."""
    lines: list[str] = []
    for word in showable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, NORMAL) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _cut(line: str, room: float | None, size: float) -> str:
    """A line of at most `room` inches, if need be with an ellipsis."""
    if room is None or text_width(line, size) <= room:
        return line
    kept = len(line) - 1
    while kept and text_width(f"{line[:kept]}…", size) > room:
        kept -= 1
    return f"{line[:kept]}…"


class Page:
    """A white page; places are in inches from its left and its top, sizes of text in points.

    Args:
        width: in inches.
        body: height in inches below the title.
        title: stands on top; its lines are broken where there is no room.

    Attributes:
        top: where the body begins.
    """

    def __init__(self, width: float, body: float, title: str):
        lines = [line for part in title.split("\n") for line in broken(part, width - 0.1)]
        self.width, self.top = width, 0.05 + 0.15 * len(lines)
        height = self.top + body
        self.figure = Figure((width, height), dpi=DPI, facecolor="white")
        self.figure.suppressComposite = True  # pictures stay apart in the PDF: sharp, and faster
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        for i, line in enumerate(lines):
            self.text(0.05, 0.1 + 0.15 * i, line)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = NORMAL,
        *,
        ha: str = "left",
        va: str = "center",
        room: float | None = None,
        **options,
    ) -> None:
        """Text in any script, its line breaks kept; a line longer than `room` inches is cut."""
        text = "\n".join(_cut(showable(line), room, size) for line in text.split("\n"))
        options = {"family": families(text), "parse_math": False, "linespacing": 1.15} | options
        self.axes.text(x, y, text, fontsize=size, ha=ha, va=va, **options)

    def frame(
        self, x: float, y: float, side: float, paint: str = LIGHT, width: float = 0.4
    ) -> None:
        """A square's outline, `width` in points."""
        square = Rectangle((x, y), side, side, fill=False, edgecolor=paint, linewidth=width)
        self.axes.add_patch(square).set_zorder(5)

    def bar(
        self, x: float, y: float, length: float, height: float, shares: Sequence[float]
    ) -> None:
        """Shares of categories side by side, in their colours."""
        ends = length * np.cumsum([0, *shares])
        for category, share in enumerate(shares):
            if share:
                place = (x + ends[category], y)
                box = Rectangle(place, length * share, height, color=colour(category), linewidth=0)
                self.axes.add_patch(box)

    def picture(
        self, x: float, y: float, side: float, ink: np.ndarray, strength: float = 1.0
    ) -> None:
        """A square picture, uint8 (S, S), 255 being ink."""
        extent = (x, x + side, y + side, y)
        self.axes.imshow(
            255 - (strength * ink).astype(np.uint8),
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=extent,
            aspect="auto",
            interpolation="antialiased",
            interpolation_stage="data",
        )

    def sketch(
        self, x: float, y: float, side: float, sketch: np.ndarray, paint: str = "black", **options
    ) -> None:
        """A sketch, stroke-3 (n, 3), fitted into a square as in `drawing.to_picture`."""
        paths = [path + (x, y) for path in fitted_paths(sketch, side)]
        options = {"linewidth": 0.25 + side, "capstyle": "round", "joinstyle": "round"} | options
        self.axes.add_collection(LineCollection(paths, colors=paint, **options), autolim=False)

    def thumbnail(self, x: float, y: float, side: float, sketch: np.ndarray, paint: str) -> None:
        """A framed sketch on top of all else, which shows through a little."""
        box = Rectangle((x, y), side, side, facecolor="white", alpha=0.85, linewidth=0, zorder=3)
        self.axes.add_patch(box)
        self.sketch(x, y, side, sketch, zorder=4)
        self.frame(x, y, side, paint, 1)

    def numbered(
        self,
        x: float,
        y: float,
        side: float,
        sketch: np.ndarray,
        hparams: HParams,
        places: np.ndarray,
    ) -> None:
        """A sketch in grey, with numbers (from 1) at the centres of some of its patches."""
        canvas, centers = utils.draw(sketch, hparams.drawing_size)
        self.picture(x, y, side, canvas, 0.3)
        scale = side / len(canvas)
        for place in places.tolist():
            at = (x, y) + (centers[place] + 0.5) * scale
            self.text(*at, str(place + 1), SMALL, ha="center", weight="bold", zorder=6)

    def names_in_row(self, x: float, y: float, categories: dict[str, int]) -> None:
        """Names of categories side by side, each after its colour, as many as there is room for."""
        for name, category in categories.items():
            length = 0.25 + text_width(showable(name), SMALL)
            if x + length > self.width - 0.1:
                self.text(x, y, "…", SMALL)
                break
            self.axes.scatter(x + 0.04, y, s=14, c=colour(category), marker="s", linewidths=0)
            self.text(x + 0.12, y, name, SMALL)
            x += length

    def points(self, xy: np.ndarray, categories: np.ndarray) -> None:
        """Points (N, 2), each in its category's colour and with its marker."""
        order = np.random.default_rng(0).permutation(len(xy))  # no category covers all others
        for kind in np.unique(categories // len(COLOURS)):
            here = order[categories[order] // len(COLOURS) == kind]
            paints = [colour(c) for c in categories[here]]
            shape = marker(kind * len(COLOURS))
            self.axes.scatter(*xy[here].T, s=7, c=paints, marker=shape, linewidths=0, alpha=0.8)

    def legend(self, x: float, y: float, bottom: float, names: Sequence[str]) -> None:
        """The names of categories below one another, as many as there is room for."""
        step = 0.17 if y + 0.17 * len(names) <= bottom else 0.12
        max_names = int((bottom - y) / step)
        shown = list(names) if len(names) <= max_names else list(names[: max_names - 1])
        size = NORMAL if step > 0.15 else SMALL
        for c, name in enumerate(shown):
            self.axes.scatter(x, y + c * step, s=14, c=colour(c), marker=marker(c), linewidths=0)
            self.text(x + 0.1, y + c * step, name, size, room=self.width - x - 0.12)
        if len(shown) < len(names):
            more = f"and {len(names) - len(shown)} more"
            self.text(x + 0.1, y + len(shown) * step, more, size, color=GREY)

    def write(self, stem: Path) -> list[Path]:
        """Writes PNG and PDF, without dates or versions; the fonts of the PDF are TrueType."""
        nothing = {
            "png": {"Software": None},
            "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
        }
        paths = []
        with matplotlib.rc_context({"pdf.fonttype": 42}):
            for ending, metadata in nothing.items():
                file = io.BytesIO()
                self.figure.savefig(file, format=ending, dpi=DPI, metadata=metadata)
                paths.append(stem.with_suffix(f".{ending}"))
                write_file(paths[-1], file.getvalue())
        return paths
