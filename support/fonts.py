"""matplotlib, imported quietly, and fonts for text in any script."""

import functools
import logging
from collections.abc import Sequence

# Its notes on fonts and on its cache, which it writes while it is imported; and those on what it
# puts into a PDF.
for _name in ("matplotlib", "fontTools"):
    logging.getLogger(_name).setLevel(logging.ERROR)

import numpy as np  # noqa: E402
from matplotlib import font_manager  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402, F401
from matplotlib.figure import Figure  # noqa: E402, F401
from matplotlib.ft2font import FT2Font  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402, F401

FONT = "DejaVu Sans"  # comes with matplotlib
DPI = 72  # so that a font's size in points is its size in pixels


def showable(text: str) -> str:
    """The text on one line; a character that no font has is shown as its number, U+706B."""
    return "".join(c if _family(c) else f"U+{ord(c):04X}" for c in " ".join(text.split()))


def families(text: str) -> list[str]:
    """The fonts that a text needs."""
    return list(dict.fromkeys([FONT, *filter(None, map(_family, text))]))


def write_text(
    picture: np.ndarray, text: str, x: int, y: int, size: float, colour: Sequence[int]
) -> None:
    """Writes a line of text into a picture, shortened to fit.

    Args:
        picture: uint8 (height, width, C).
        text: in any script.
        x: the column where it begins.
        y: the row of its middle.
        size: of its font, in pixels.
        colour: of the text, in each of the C channels, 0 to 255.
    """
    room = picture.shape[1] - x
    ink = _ink(text, size)
    while ink.shape[1] > room and len(text) > 3:
        text = text[: min(len(text) - 4, len(text) * room // ink.shape[1])] + "..."
        ink = _ink(text, size)
    top = max(0, y - len(ink) // 2)
    place = picture[top : top + len(ink), x : x + ink.shape[1]]
    ink = ink[: len(place), : place.shape[1], None]
    place[:] = np.rint(place * (1 - ink) + np.array(colour) * ink)


@functools.lru_cache(4096)  # captions come again and again
def _ink(text: str, size: float) -> np.ndarray:
    """A line of text as ink from 0 to 1, (2 * size, its width), its small letters in the middle."""
    text = showable(text)
    figure = Figure(dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    line = figure.text(0, 0.35, text, fontsize=size, family=families(text), parse_math=False)
    width = line.get_window_extent(canvas.get_renderer()).width
    figure.set_size_inches((int(width) + 2) / DPI, round(2 * size) / DPI)
    canvas.draw()
    return 1 - np.asarray(canvas.buffer_rgba())[..., 0] / 255


@functools.cache
def _family(character: str) -> str | None:
    """A font that has a character: matplotlib's own or, failing that, one of this machine's."""
    own = font_manager.findfont(FONT)
    for path in (own, *_system_fonts()):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # damaged, or of a kind that matplotlib can't draw
            continue
        if font.scalable and font.get_char_index(ord(character)):
            if path != own:
                font_manager.fontManager.addfont(path)
            return font.family_name
    return None


@functools.cache
def _system_fonts() -> list[str]:
    """Font files of this machine, those in plain style first."""
    paths = sorted(font_manager.findSystemFonts())
    return sorted(paths, key=lambda path: "regular" not in path.lower())
