"""matplotlib, imported quietly, and fonts for text in any script."""

import functools
import logging

# Its notes on fonts and on its cache, which it writes while it is imported; and those on what it
# puts into a PDF.
for _name in ("matplotlib", "fontTools"):
    logging.getLogger(_name).setLevel(logging.ERROR)

from matplotlib import font_manager  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402, F401
from matplotlib.figure import Figure  # noqa: E402, F401
from matplotlib.ft2font import FT2Font  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402, F401

FONT = "DejaVu Sans"  # comes with matplotlib


def showable(text: str) -> str:
    """The text on one line; a character that no font has is shown as its number, U+706B."""
    return "".join(c if _family(c) else f"U+{ord(c):04X}" for c in " ".join(text.split()))


def families(text: str) -> list[str]:
    """The fonts that a text needs."""
    return list(dict.fromkeys([FONT, *filter(None, map(_family, text))]))


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
