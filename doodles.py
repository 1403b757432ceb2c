"""Procedural sketches of eight categories, written as QuickDraw files.

They stand in for the QuickDraw data set where only a small one is wanted: in the demo and in the
tests. A category has styles, proportions and optional details of its own; a hand common to all
then chooses the drawing order and adds tilt, wobble, gaps and overshoot.

A sketch is designed in units of which it takes about 200, with y pointing down. A stroke is a
complex array of its points x + iy; a part is a list of strokes drawn one after the other.

    python doodles.py --data_dir=data --train=1000 --valid=100 --test=100
"""

import glob
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from dataset import SPLITS
from support import cli
from support.files import UserError, write_file
from support.output_dir import write_to

EXTENT = 255  # the long side of a QuickDraw sketch
MAX_STROKES = 8
LONG = 70.0  # a straight line from this length on may get a point in between

Rng = np.random.Generator
Point = tuple[float, float]
Part = list[np.ndarray]
Design = tuple[list[Part], list[Part]]  # what is always drawn, and what may be


# The pens: how a stroke is made.


def _line(*corners: Point) -> np.ndarray:
    return np.array(corners, np.float64).view(np.complex128)[:, 0]


def _bows(corners: Iterable[Point], sag: float) -> np.ndarray:
    """Through the corners, each leg bulging to the left of its direction of travel.

    `sag` is the depth of a leg of average length, the others bulge in proportion.
    """
    points = _line(*corners)
    legs = points[1:] - points[:-1]
    steps = max(2, round(1.1 * math.sqrt(abs(sag))))
    bend = sag * len(legs) / np.abs(legs).sum()
    # A flat bow is an arch; the deeper it is, the nearer it comes to half an ellipse.
    depth = min(1.0, 2 * abs(bend))
    angle = np.arange(steps) * (math.pi / steps)
    along = depth * (1 - np.cos(angle)) / 2 + (1 - depth) * angle / math.pi
    bow = along - 1j * bend * np.sin(angle)
    return np.append(points[:-1, None] + legs[:, None] * bow, points[-1])


def _arc(x: float, y: float, rx: float, ry: float, start: float, sweep: float) -> np.ndarray:
    """A piece of an ellipse; angles in degrees, 0 to the right and 90 downwards."""
    steps = max(5, round(math.radians(abs(sweep)) * math.sqrt(rx + ry) / 4.2))
    angle = math.radians(start) + np.arange(steps + 1) * (math.radians(sweep) / steps)
    return complex(x, y) + rx * np.cos(angle) + 1j * ry * np.sin(angle)


def _ring(rng: Rng, x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    """An ellipse begun near its top, either way round, closed with a gap or an overshoot."""
    sweep = rng.uniform(346, 378) * (1 if rng.random() < 0.25 else -1)
    return _arc(x, y, rx, rx if ry is None else ry, rng.normal(-90, 35), sweep)


def _loop(rng: Rng, *corners: Point, sag: float = 0.0) -> np.ndarray:
    """A closed polygon begun at any corner, either way round, its sides bulging by `sag`."""
    first, way = int(rng.integers(len(corners))), 1 if rng.random() < 0.5 else -1
    turned = (corners[first:] + corners[:first])[::way]
    closed = (*turned, turned[0])
    return _bows(closed, sag * way) if sag else _line(*closed)


def _spokes(x: float, y: float, rx: float, ry: float, start: float, count: int) -> list[Point]:
    """Points evenly spread over an ellipse, clockwise from `start` (degrees)."""
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def _twice(rng: Rng, stroke: np.ndarray, dx: float, dy: float = 0.0) -> Part:
    pair = [stroke, stroke + complex(dx, dy)]
    return pair if rng.random() < 0.75 else pair[::-1]


# The categories.


def _fish(rng: Rng) -> Design:
    u = rng.uniform
    long, high, fin = u(80, 100), u(42, 62), u(34, 50)
    end = long + u(42, 60)
    notch = end - u(0, 24)
    if rng.random() < 0.5:  # one line that crosses itself where the tail begins
        body = _bows([(long, 0), (-long, 0), (long, 0)], -high)
        tail = _line((end, fin), (notch, 0), (end, -fin))
        parts = [[np.concatenate([tail[2:], body, tail])]]
    else:  # an ellipse and a tail
        root = 0.96 * long
        tail = _line((root, 0), (end, -fin), (notch, 0), (end, fin), (root, 0))
        parts = [[_ring(rng, 0, 0, long, high)], [tail]]
    parts.append([_ring(rng, -0.6 * long, -0.2 * high, u(6, 9))])
    gill = _bows([(-0.32 * long, -0.5 * high), (-0.32 * long, 0.55 * high)], -u(12, 18))
    mouth = _bows([(-0.86 * long, 0.28 * high), (-0.58 * long, 0.36 * high)], -6)
    back = _bows([(-0.3 * long, -0.95 * high), (0.45 * long, -0.82 * high)], u(24, 36))
    scale = _bows([(0.12 * long, -0.4 * high), (0.12 * long, 0.4 * high)], -u(8, 14))
    return parts, [[gill], [mouth], [back], _twice(rng, scale, 0.3 * long)]


def _flower(rng: Rng) -> Design:
    u = rng.uniform
    heart, petal, turn, y, lean = u(20, 30), u(28, 42), u(0, 360), -55.0, u(-14, 14)
    if rng.random() < 0.6:  # the petals in one line
        rim = heart + u(4, 10)
        petals = [_loop(rng, *_spokes(0, y, rim, rim, turn, rng.integers(5, 8)), sag=petal)]
    else:  # petal by petal
        rim = _spokes(0, y, heart, heart, turn, 5)
        petals = [_bows([rim[i], rim[(i + 1) % 5]], petal + 6) for i in range(5)]
    stem = _bows([(0, y + heart + petal - 4), (lean, 115)], u(-9, 9))
    leaves = []
    for side in (-1, 1):
        base, tip = (lean / 2, u(66, 90)), (lean / 2 + side * u(40, 54), u(30, 55))
        leaves.append([_bows([base, tip, base], u(9, 15))])
    return [[_ring(rng, 0, y, heart)], petals, [stem]], leaves


def _house(rng: Rng) -> Design:
    u = rng.uniform
    wide, high, roof, eaves = u(65, 95), u(80, 110), u(50, 85), u(4, 22)
    walls = [(-wide, -high), (-wide, 0), (wide, 0), (wide, -high)]
    style, slope = rng.random(), -high - 0.5 * roof
    if style < 0.35:  # a gable
        top = _loop(rng, (-wide - eaves, -high), (0, -high - roof), (wide + eaves, -high))
        parts = [[_loop(rng, *walls)], [top]]
    elif style < 0.65:  # the outline in one line, then the ceiling
        parts = [[_loop(rng, *walls, (0, -high - roof))], [_line(walls[0], walls[3])]]
    else:  # a roof with a ridge
        ridge, slope = u(0.5, 0.75) * wide, -high - 0.75 * roof
        top = [(-wide - eaves, -high), (-ridge, slope), (ridge, slope), (wide + eaves, -high)]
        parts = [[_loop(rng, *walls)], [_loop(rng, *top)]]
    x, half, lintel = u(-0.55, -0.05) * wide, u(11, 16), -u(40, 56)
    parts.append([_line((x - half, 0), (x - half, lintel), (x + half, lintel), (x + half, 0))])
    x, y, half = x + u(0.6, 0.75) * wide, -u(0.58, 0.68) * high, u(13, 18)
    left, right, up, down = x - half, x + half, y - half, y + half
    parts.append([_loop(rng, (left, up), (left, down), (right, down), (right, up))])
    cross = [_line((left, y), (right, y)), _line((x, up), (x, down))]
    left, right, up = 0.4 * wide, 0.4 * wide + u(16, 24), -high - roof - u(0, 16)
    foot = slope if style >= 0.65 else slope + 0.25 * roof
    chimney = _line((left, slope - 0.05 * roof), (left, up), (right, up), (right, foot))
    return parts, [cross, [chimney]]


def _sailboat(rng: Rng) -> Design:
    u = rng.uniform
    wide, deep, mast, boom = u(75, 100), u(28, 42), -u(125, 160), -u(12, 20)
    if rng.random() < 0.5:  # a flat bottom or a round one
        keel = u(0.55, 0.7) * wide
        hull = _loop(rng, (-wide, 0), (-keel, deep), (keel, deep), (wide, 0))
    else:
        hull = np.concatenate([_line((wide, 0)), _bows([(-wide, 0), (wide, 0)], -1.2 * deep)])
    belly, reach = u(6, 18), u(0.65, 0.9) * wide
    sail = np.concatenate([_bows([(0, mast + 6), (reach, boom)], belly), _line((0, boom))])
    jib = _bows([(0, mast * u(0.75, 0.95)), (-u(0.5, 0.8) * wide, boom)], -belly)
    jib = np.concatenate([jib, _line((0, boom))])
    count, sea = rng.integers(4, 7), deep + u(8, 18)
    wave = _bows([(wide * (2 * i / count - 1), sea) for i in range(count + 1)], -u(7, 11))
    flag = _line((0, mast), (-u(22, 30), mast + 9), (0, mast + 18), (0, mast))
    stripe = _line((-0.8 * wide, 0.35 * deep), (0.8 * wide, 0.35 * deep))
    second = jib if rng.random() < 0.6 else flag
    return [[hull], [_line((0, 0), (0, mast))], [sail], [second]], [[wave], [stripe]]


def _smiley(rng: Rng) -> Design:
    u = rng.uniform
    radius, x, y, style = u(95, 105), u(28, 42), -u(20, 36), rng.integers(3)
    if style == 0:
        eye = _ring(rng, -x, y, u(7, 13), u(8, 15))
    elif style == 1:
        eye = _line((-x, y - u(12, 20)), (-x, y + u(8, 14)))
    else:
        eye = _bows([(-x - 14, y + 6), (-x + 14, y + 6)], u(12, 18))
    left, right = (-u(44, 60), u(20, 32)), (u(44, 60), u(20, 32))
    mouth = _bows([left, right], -u(26, 42))
    if rng.random() < 0.35:  # open
        mouth = np.concatenate([mouth, _line(left)])
    nose = _line((0, -10), (-u(8, 12), 12), (4, 13))
    brow = _bows([(-x - 15, y - 26), (-x + 15, y - 28)], u(5, 9))
    hair = _bows([(-16, -radius - 18), (2, 4 - radius), (18, -radius - 20)], u(4, 8))
    parts = [[_ring(rng, 0, 0, radius, radius * u(0.93, 1.07))], _twice(rng, eye, 2 * x), [mouth]]
    return parts, [[nose], _twice(rng, brow, 2 * x), [hair]]


def _snowman(rng: Rng) -> Design:
    u = rng.uniform
    base, chest, head = u(54, 66), u(40, 48), u(30, 37)
    balls, y = [[_ring(rng, 0, 0, base * u(1, 1.1), base)]], 4 - base - chest
    if rng.random() < 0.7:
        balls.append([_ring(rng, 0, y, chest)])
    else:  # a head on a single ball
        chest, y, head = base, 0.0, 1.2 * head
    face = y + 4 - chest - head
    balls.append([_ring(rng, 0, face, head)])
    eye = _bows([(-0.38 * head, face - 12), (-0.38 * head, face - 3)], 2)
    brim, crown, rim = u(0.95, 1.2) * head, u(0.6, 0.75) * head, face - 0.85 * head
    peak = rim - u(32, 46)
    hat = _line((-brim, rim), (brim, rim), (crown, rim), (crown, peak), (-crown, peak))
    hat = np.concatenate([hat, _line((-crown, rim))])
    reach, lift = chest + u(36, 52), y - u(10, 36)
    arms = [_line((side * chest, y - 2), (side * reach, lift)) for side in (-1, 1)]
    nose = _line((-2, face), (-u(20, 28), face + 5), (0, face + 7))
    smile = _bows([(-0.4 * head, face + 0.45 * head), (0.4 * head, face + 0.45 * head)], -6)
    button = _bows([(0, y - 14), (0, y - 5)], 2)
    parts = [*balls, _twice(rng, eye, 0.76 * head)] + ([[hat]] if rng.random() < 0.75 else [])
    return parts, [arms, [nose], [smile], _twice(rng, button, 0, 22)]


def _tree(rng: Rng) -> Design:
    u = rng.uniform
    style, half, top, rx, ry = rng.random(), u(11, 19), -u(50, 72), u(52, 66), u(46, 62)
    foot, y = half + u(0, 10), top - 0.9 * ry
    if style < 0.35:  # like a cloud
        bumps = _spokes(0, y, rx, ry, u(0, 360), rng.integers(6, 9))
        crown = _loop(rng, *bumps, sag=u(15, 22))
    elif style < 0.6:  # round
        crown = _ring(rng, 0, y - 6, 1.1 * rx, 1.2 * ry)
    else:  # a fir
        tiers, rise = rng.integers(2, 5), u(26, 30) + ry / 4
        side = []
        for i in range(tiers):
            span = 1.25 * rx * (1 - 0.2 * i)
            side += [(span, top - i * rise), (0.45 * span, top - (i + 1) * rise)]
        side[-1] = (0.0, side[-1][1] - 14)
        mirrored = [(-x, y) for x, y in side[-2::-1]]
        crown = _loop(rng, *side, *mirrored, sag=-u(2, 5))
    trunk = [_line((-half, top), (-foot, 0)), _line((half, top), (foot, 0))]
    if rng.random() < 0.4:
        trunk = [np.concatenate([trunk[0], trunk[1][::-1]])]
    ground = _line((-foot - u(25, 45), 2), (foot + u(25, 45), 2))
    apples = [_ring(rng, x * rx, y + dy * ry, 7) for x, dy in ((-0.45, 0), (0.1, -0.5), (0.3, 0.3))]
    return [[crown], trunk], [[ground]] if style >= 0.6 else [apples, [ground]]


def _umbrella(rng: Rng) -> Design:
    u = rng.uniform
    wide, high, count, hook = u(92, 110), u(68, 95), rng.integers(3, 6), u(15, 23)
    dome = _arc(0, 0, wide, high, 180, 180)
    rim = [(wide * (1 - 2 * i / count), 0.0) for i in range(count + 1)]
    hem = _bows(rim, -u(10, 18)) if rng.random() < 0.8 else _line(rim[0], rim[-1])
    canopy = [[dome], [hem]] if rng.random() < 0.5 else [[np.concatenate([dome, hem])]]
    crook = _arc(-hook, u(90, 120), hook, hook, 0, u(150, 200))
    handle = np.concatenate([_line((0, -u(0, 12))), crook])
    ribs = [_bows([(0, -high), rim[i]], (count / 2 - i) * 8) for i in range(1, count)]
    tip = _line((0, -high), (0, -high - u(14, 22)))
    return [*canopy, [handle]], [ribs, [tip]]


_PARTS: dict[str, Callable[[Rng], Design]] = {
    "fish": _fish,
    "flower": _flower,
    "house": _house,
    "sailboat": _sailboat,
    "smiley": _smiley,
    "snowman": _snowman,
    "tree": _tree,
    "umbrella": _umbrella,
}
CATEGORIES: tuple[str, ...] = tuple(_PARTS)


# The hand: in which order a sketch is drawn, and how steadily.


def _order(rng: Rng, parts: list[Part], details: list[Part]) -> Part:
    """The strokes of all parts and of some details, loosely in order, some drawn backwards."""
    room = MAX_STROKES - sum(map(len, parts))
    for i in rng.permutation(len(details)):
        if len(details[i]) <= room and rng.random() < 0.6:
            parts.append(details[i])
            room -= len(details[i])
    ranks = np.arange(len(parts)) + rng.normal(0, 0.8, len(parts))
    strokes = [stroke for i in np.argsort(ranks) for stroke in parts[i]]
    ways = np.where(rng.random(len(strokes)) < 0.2, -1, 1)
    return [stroke[::way] for stroke, way in zip(strokes, ways, strict=True)]


def _draw(rng: Rng, strokes: Part) -> np.ndarray:
    """The strokes as an unsteady hand draws them, in int16 stroke-3 rows."""
    points = np.concatenate(strokes)
    stroke_of = np.repeat(np.arange(len(strokes)), [len(stroke) for stroke in strokes])

    legs = points[1:] - points[:-1]
    drawn = stroke_of[1:] == stroke_of[:-1]
    split = drawn & (np.abs(legs) > LONG) & (rng.random(len(legs)) < 0.6)
    origin = np.repeat(np.arange(len(points)), np.append(1 + split, 1))
    points, stroke_of = points[origin], stroke_of[origin]
    between = 1 + np.flatnonzero(origin[1:] == origin[:-1])
    points[between] += legs[split] * rng.uniform(0.35, 0.65, len(between))

    # Both ends of a stroke run a little too far or stop a little short.
    starts = np.searchsorted(stroke_of, np.arange(len(strokes)))
    ends = np.append(starts[1:], len(points)) - 1
    tips = np.concatenate([starts, ends])
    legs = points[tips] - points[np.concatenate([starts + 1, ends - 1])]
    points[tips] += legs * np.minimum(1, 40 / np.abs(legs)) * rng.uniform(-0.08, 0.14, len(tips))

    # The hand drifts along its way: circles of several wavelengths, the long ones wider. All this
    # noise is bounded, so that no stroke shrinks to a point.
    way = np.append(0, np.cumsum(np.abs(points[1:] - points[:-1])))
    waves = rng.uniform(90, 400, 4) * (1, -1, 1, -1)
    turns = way[:, None] / waves + rng.random(4)
    points += np.exp(2j * math.pi * turns) @ (waves * rng.uniform(0.004, 0.012, 4))
    points += _noise(rng, 2.5, len(strokes))[stroke_of] + _noise(rng, 0.8, len(points))

    tilt, shear, stretch = rng.standard_normal(3) * (0.05, 0.04, 0.07)
    mirror = math.exp(stretch) * (1 if rng.random() < 0.5 else -1)
    points = (mirror * points.real + (shear + 1j) * points.imag) * complex(1, tilt)
    x, y = points.real - points.real.min(), points.imag - points.imag.min()
    points = np.rint((x + 1j * y) * (EXTENT / max(x.max(), y.max())))

    # A drawn row of length zero says nothing; a move stays whatever its length.
    steps = points[1:] - points[:-1]
    keep = (steps != 0) | (stroke_of[1:] != stroke_of[:-1])
    steps, stroke_of = steps[keep], stroke_of[1:][keep]
    lifted = np.append(stroke_of[1:] != stroke_of[:-1], True)
    return np.column_stack([steps.real, steps.imag, lifted]).astype(np.int16)


def _noise(rng: Rng, reach: float, count: int) -> np.ndarray:
    return rng.uniform(-reach, reach, (count, 2)).view(np.complex128)[:, 0]


def doodle(category: str, rng: np.random.Generator) -> np.ndarray:
    """Draws one sketch.

    Args:
        category: one of `CATEGORIES`.
        rng: the source of all its randomness.

    Returns:
        int16 stroke-3 rows (n, 3) of (dx, dy, lifted), n about 15 to 90, in 2 to 8 strokes, in
        QuickDraw's units: the long side is 255, y points down, lifted is 0 or 1. The drawing
        starts pen-down at the origin and row 0 leads to its second point. The row after a lifted
        one is the move to the next stroke, never lifted itself; the last row is lifted.

    Raises:
        ValueError: if the category is unknown.
    """
    _check_categories([category])
    return _draw(rng, _order(rng, *_PARTS[category](rng)))


# The files.


def _check_categories(categories: Sequence[str]) -> None:
    unknown = [name for name in categories if name not in _PARTS]
    if unknown or not categories:
        got = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"categories must be among {', '.join(CATEGORIES)}; got {got}")


def _split(category: str, split: str, size: int, seed: int) -> np.ndarray:
    # A checksum of the name, not its position: a sketch must not depend on the other categories.
    key = (seed, zlib.crc32(category.encode()), SPLITS.index(split))
    sketches = np.empty(size, object)
    for index in range(size):
        sketches[index] = doodle(category, np.random.default_rng((*key, index)))
    return sketches


def write_doodles(
    data_dir: str | os.PathLike[str],
    *,
    categories: Sequence[str] = CATEGORIES,
    train: int = 1000,
    valid: int = 100,
    test: int = 100,
    seed: int = 0,
) -> list[Path]:
    """Writes `<data_dir>/<category>.npz`, one QuickDraw file per category.

    A sketch depends on the seed, its category, its split and its index only, so a larger size
    begins with the same sketches. A file is replaced whole or not at all.

    Args:
        data_dir: the directory of the files; made if it is not there.
        categories: some of `CATEGORIES`, at least one.
        train: training sketches of each category, at least 0.
        valid: validation sketches of each category, at least 0.
        test: test sketches of each category, at least 0.
        seed: at least 0.

    Returns:
        The files' paths in the order of `categories`. A file has the keys train, valid and test:
        1-D object arrays of int16 (n, 3) sketches as `doodle` draws them.

    Raises:
        ValueError: if a category is unknown, none is given, or a size or the seed is negative.
        UserError: if a file can't be written, or another's file would be replaced.
    """
    _check_categories(categories)
    sizes = dict(zip(SPLITS, (train, valid, test), strict=True))
    for name, value in {**sizes, "seed": seed}.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0; got {value}")
    paths = [Path(data_dir, f"{category}.npz") for category in categories]
    names = [glob.escape(path.name) for path in paths]
    with write_to(data_dir, "data", names):
        for category, path in zip(categories, paths, strict=True):
            splits = {split: _split(category, split, size, seed) for split, size in sizes.items()}
            write_file(path, lambda file, splits=splits: np.savez_compressed(file, **splits))
    return paths


def main() -> None:
    """Writes as the flags say."""
    values = flags.FLAGS
    sizes = {split: values[split].value for split in SPLITS}
    try:
        paths = write_doodles(
            values.data_dir, categories=values.categories, seed=values.seed, **sizes
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    for path in paths:
        print(f"{path}: " + ", ".join(f"{sizes[split]} {split}" for split in SPLITS))


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory to write <category>.npz to.")
    flags.DEFINE_list("categories", list(CATEGORIES), "The categories to write.")
    for split, size in zip(SPLITS, (1000, 100, 100), strict=True):
        flags.DEFINE_integer(split, size, f"Number of {split} sketches of each category.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same sketches.")
    flags.register_validator("data_dir", bool, "it must name a directory")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
