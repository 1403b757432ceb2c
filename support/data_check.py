"""Loaded sketches that are not stroke-3 in one unit: what is wrong, and how to put it right.

Training with such data gives no error, and no useful model. Each limit below lies in a wide gap
between 305 categories of QuickDraw, Omniglot, kanji, sheep and doodles on one side, and the same
sketches stored wrongly on the other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

import utils
from dataset import LIMIT, Dataset, Split
from drawing import write_png
from hparams import HParams
from support.files import UserError
from support.fonts import write_text

MIN_ROWS = 200  # of a category; of fewer only what is certain is reported
# Absolute coordinates: real categories have at most 7 % of sketches without a negative offset; the
# sums reach at most 0.24 of the values' range times the rows (stairs), of coordinates at least
# 0.28. Consecutive offsets differ by 0.58 of their spread or more (circles), coordinates by 0.4.
MIN_WITHOUT_NEGATIVE, MIN_REACH = 0.9, 0.25
MAX_CHANGE, MIN_CENTERED_REACH = 0.55, 0.1
MIN_INVERTED_LIFTS, MAX_INVERTED_ENDS = 0.5, 0.05  # shares of rows, and of last rows, that lift
PADDING_ROWS = 2  # at a sketch's end from which on it is taken for padded
MIN_PADDED, MANY_PADDED = 0.01, 0.5  # shares of sketches
MIN_DOTS, MANY_DOTS = 0.002, 0.5
MIN_CLIPPED = 0.01
MAX_RATIO = 8.0  # of the sizes of two categories' sketches
SHOWN_CATEGORIES, SHOWN_SKETCHES, SHOWN_SIDE, SHOWN_NAME = 24, 8, 128, 24


class Finding(NamedTuple):
    """Something that looks wrong.

    Attributes:
        category: its name.
        text: what is wrong and what would put it right.
        fatal: whether it can't be meant.
    """

    category: str
    text: str
    fatal: bool


class _Category(NamedTuple):
    """The training sketches of a category: rows in raw units, and the first row of each."""

    rows: np.ndarray
    firsts: np.ndarray
    scale_factor: float

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.firsts, append=len(self.rows))


def check_data(data: Dataset, categories: Sequence[str]) -> list[Finding]:
    """Looks through the training sketches of each category; a second for 70,000 of them.

    Args:
        data: with the split train.
        categories: names, in the order of `Split.category`.
    """
    split, findings, sizes = data.splits["train"], [], {}
    for number, name in enumerate(categories):
        members = np.flatnonzero(split.category == number)
        if not len(members):
            continue
        category = _category(split, members)
        extents = _extents(category)
        sizes[name] = float(np.median(extents))
        texts = [
            *_pens(category),
            *_coordinates(category),
            *_padding(category),
            *_dots(extents, data.scale_factor),
            *_clipped(category),
        ]
        findings += [Finding(name, text, fatal) for text, fatal in texts]
    return findings + _units(sizes)


def require_sensible(
    data: Dataset, categories: Sequence[str], refuse: bool = True
) -> tuple[str, ...]:
    """What looks wrong with the data, a line each.

    Args:
        data: see `check_data`.
        categories: see `check_data`.
        refuse: whether something that can't be meant is an error.

    Raises:
        UserError: something that can't be meant.
    """
    findings = check_data(data, categories)
    for finding in findings:
        if finding.fatal and refuse:
            others = sum(found.fatal for found in findings) - 1
            more = f" (and {others} more: see --check_data)" if others else ""
            raise UserError(f"{finding.category}: {finding.text}{more}")
    return tuple(f"{finding.category}: {finding.text}" for finding in findings)


def write_contact_sheet(
    path: str | Path, data: Dataset, hparams: HParams, categories: Sequence[str]
) -> None:
    """Writes a PNG of some training sketches of each category, as they are drawn for encoding."""
    split, rows = data.splits["train"], []
    there = np.unique(split.category)
    for number in there[_evenly(len(there), SHOWN_CATEGORIES)].tolist():
        members = np.flatnonzero(split.category == number)
        tiles = [
            _picture(split.sketch(int(i)), hparams)
            for i in members[_evenly(len(members), SHOWN_SKETCHES)]
        ]
        tiles += [np.full_like(tiles[0], 235)] * (SHOWN_SKETCHES - len(tiles))
        title = np.full((SHOWN_NAME, SHOWN_SIDE * SHOWN_SKETCHES, 1), 235, np.uint8)
        text = f"{categories[number]}: {len(members)} sketches"
        write_text(title, text, 6, SHOWN_NAME // 2, 0.6 * SHOWN_NAME, [40])
        rows += [title[..., 0], np.hstack(tiles)]
    write_png(path, np.vstack(rows))


def _evenly(count: int, max_places: int) -> np.ndarray:
    """At most so many of `count` places, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, max_places)).astype(int))


def _picture(sketch: np.ndarray, hparams: HParams) -> np.ndarray:
    graph = utils.make_graph(
        sketch,
        graph_number=2,
        graph_picture_size=hparams.graph_picture_size,
        drawing_size=hparams.drawing_size,
    )
    picture = cv2.resize(
        255 - graph.patches[0], (SHOWN_SIDE, SHOWN_SIDE), interpolation=cv2.INTER_AREA
    )
    return cv2.copyMakeBorder(picture[1:-1, 1:-1], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=215)


def _category(split: Split, members: np.ndarray) -> _Category:
    """The sketches of a category stand one after the other."""
    begin, end = int(split.ends[members[0]]), int(split.ends[members[-1] + 1])
    return _Category(split.rows[begin:end], split.ends[members] - begin, split.scale_factor)


def _extents(category: _Category) -> np.ndarray:
    """The longer side of each sketch's box, as the encoder takes it: from its second row on."""
    points = np.cumsum(category.rows[:, :2], axis=0, dtype=np.float64)
    # Its first point from there on is the one that row 1 leads to.
    bounds = np.column_stack([category.firsts + 1, category.firsts + category.lengths])
    bounds = bounds.ravel()[:-1]
    low = np.minimum.reduceat(points, bounds)[::2]
    high = np.maximum.reduceat(points, bounds)[::2]
    return (high - low).max(axis=1)


def _pens(category: _Category) -> list[tuple[str, bool]]:
    lifted = category.rows[:, 2] == 1
    ends = lifted[category.firsts + category.lengths - 1]
    share = lifted.mean()
    if share >= MIN_INVERTED_LIFTS and ends.mean() <= MAX_INVERTED_ENDS:
        return [
            (
                f"the pens look inverted: {share:.0%} of the rows lift the pen, and the last row "
                f"of {1 - ends.mean():.0%} of the sketches does not; 1 means that the pen is "
                "lifted after the row; swap 0 and 1 in the third column",
                True,
            )
        ]
    if share == 1 and len(lifted) > 2 * len(ends):
        return [("every row lifts the pen, so most are not drawn; 0 means drawing", True)]
    if share == 0 and len(lifted) >= MIN_ROWS:
        return [
            ("no row lifts the pen: all strokes are joined; 1 means lifted after the row", False)
        ]
    return []


def _coordinates(category: _Category) -> list[tuple[str, bool]]:
    rows, firsts, lengths = category.rows, category.firsts, category.lengths
    if len(rows) < MIN_ROWS:
        return []
    values = rows[:, :2].astype(np.float64)
    without_negative = (np.minimum.reduceat(values, firsts).min(axis=1) >= 0).mean()
    sums = np.cumsum(values, axis=0)
    ranges = _ranges(values, firsts).max(axis=1)
    reach = np.median(_ranges(sums, firsts).max(axis=1) / np.maximum(ranges, 1e-9) / lengths)
    if without_negative >= MIN_WITHOUT_NEGATIVE and reach >= MIN_REACH:
        return [
            (
                f"looks like absolute coordinates, not offsets: {without_negative:.0%} of the "
                "sketches have no negative value, and their sums run away; python convert.py "
                "--absolute turns them into offsets",
                True,
            )
        ]
    if reach < MIN_CENTERED_REACH:
        return []
    steps = np.abs(np.diff(values, axis=0)).sum(axis=1)
    steps = np.append(steps, 0.0)
    steps[firsts[1:] - 1] = 0  # from one sketch to the next
    means = np.add.reduceat(values, firsts) / lengths[:, None]
    spread = np.abs(values - np.repeat(means, lengths, axis=0)).sum(axis=1)
    change = np.add.reduceat(steps, firsts) / (lengths - 1)
    change /= np.maximum(np.add.reduceat(spread, firsts) / lengths, 1e-9)
    if np.median(change) < MAX_CHANGE:
        return [
            (
                "may be absolute coordinates, not offsets: consecutive rows are nearly the same, "
                "and their sums run away; if so, python convert.py --absolute turns them into "
                "offsets; look at --check_data",
                False,
            )
        ]
    return []


def _ranges(values: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    return np.maximum.reduceat(values, firsts) - np.minimum.reduceat(values, firsts)


def _padding(category: _Category) -> list[tuple[str, bool]]:
    rows, firsts, lengths = category.rows, category.firsts, category.lengths
    places = np.where((rows != 0).any(axis=1), np.arange(len(rows)), firsts[0] - 1)
    last = np.maximum(np.maximum.reduceat(places, firsts), firsts)
    padded = (firsts + lengths - 1 - last >= PADDING_ROWS).mean()
    if padded < MIN_PADDED:
        return []
    return [
        (
            f"{padded:.0%} of the sketches end in rows of zeros, which would be learnt as strokes; "
            "cut off what fills them up",
            bool(padded >= MANY_PADDED),
        )
    ]


def _dots(extents: np.ndarray, scale_factor: float) -> list[tuple[str, bool]]:
    dots = int((extents / scale_factor < 1).sum())
    if dots < MIN_DOTS * len(extents):
        return []
    return [
        (
            f"{dots} of {len(extents)} sketches reach the encoder as a dot: they are smaller than "
            f"{scale_factor:.4g}, the standard deviation of all offsets; bring all sketches to "
            "about the same size",
            dots >= MANY_DOTS * len(extents),
        )
    ]


def _clipped(category: _Category) -> list[tuple[str, bool]]:
    clipped = (np.abs(category.rows[:, :2]) >= LIMIT).any(axis=1).mean()
    if clipped < MIN_CLIPPED:
        return []
    return [
        (
            f"{clipped:.0%} of the offsets are beyond {LIMIT} and were cut off there; divide all "
            "offsets, so that sketches are about 255 wide",
            False,
        )
    ]


def _units(sizes: dict[str, float]) -> list[Finding]:
    """Categories whose sketches are much larger or smaller than the others'."""
    findings = []
    for name, size in sizes.items():
        others = [other for place, other in sizes.items() if place != name]
        if not others:
            continue
        usual = float(np.median(others))
        low, high = sorted((max(size, 1e-9), max(usual, 1e-9)))
        if high / low > MAX_RATIO:
            which = "larger" if size > usual else "smaller"
            text = (
                f"is in a unit of its own: its sketches are about {high / low:.3g} times {which} "
                f"than the others ({size:.3g} against {usual:.3g}); bring them to one unit"
            )
            findings.append(Finding(name, text, False))
    return findings
