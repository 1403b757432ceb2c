"""Drawings in the formats that people have them in, to strokes.

What a file is follows from its content, not from its name: Quick, Draw!'s raw and simplified
ndjson and its binary files, SVG, stroke-3 and stroke-5 arrays in .npy, sketch-rnn's .npz; all but
the last two may be gzip files. A stroke is a float64 array (n, 2), n >= 1, of points, y pointing
down.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

import utils
from dataset import LIMIT, SPLITS, read_sketch_file
from support import svg
from support.files import UserError, one_line, read_npy
from support.safe_npz import open_archive
from support.simplify import EXTENT, to_stroke3

KINDS = {
    "raw ndjson": "Quick, Draw! raw ndjson",
    "simplified ndjson": "Quick, Draw! simplified ndjson",
    "bin": "Quick, Draw! binary",
    "svg": "SVG",
    "npy": ".npy",
    "npz": ".npz",
}
SINGLE = ("svg", "npy")  # such files usually hold one drawing
MAX_COORDINATE = 1e6
MAX_LINE = 50_000_000  # bytes of an ndjson line
MAX_POINTS = 1_000_000  # of a drawing
SMALLEST_EXTENT = EXTENT - 5  # of a drawing that Quick, Draw! has simplified and rounded
BIN_HEADER = struct.Struct("<Q2sbIH")  # key, country, recognized, time, number of strokes


class Drawing(NamedTuple):
    """One drawing.

    Attributes:
        source: where it is from, for messages.
        kind: one of `KINDS`.
        strokes: in the order of drawing, in the file's own unit; there may be none.
        rows: the same as stroke-3 (n, 3) of whole numbers, where it has the units of a data file
            already and must not be simplified again; else None.
        split: train, valid or test, where the file says so.
        recognized: False where Quick, Draw!'s classifier did not see what it should be.
        not_strokes: filled shapes, texts and images that it has besides strokes.
        frame: see `support.svg.SvgDrawing`; None for other formats.
    """

    source: str
    kind: str
    strokes: list[np.ndarray]
    rows: np.ndarray | None = None
    split: str | None = None
    recognized: bool = True
    not_strokes: int = 0
    frame: dict[str, str] | None = None


def find_drawings(
    paths: Sequence[str | Path], category: str | None = None
) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files of drawings by category.

    A file's category is its name without what follows the first dot. Of a directory, each file
    and each folder in it is a category; SVG and .npy files, which hold single drawings, are one
    category together, named like the directory.

    Args:
        paths: files and directories.
        category: the one of all drawings, whatever the files' names.

    Returns:
        For each category its files; and the files in directories that hold no drawings.

    Raises:
        UserError: a path that is not there, a directory without drawings.
    """
    found: dict[str, list[Path]] = {}
    skipped: list[Path] = []

    def add(name: str, path: Path) -> None:
        found.setdefault(category or name, []).append(path)

    for path in map(Path, paths):
        if not path.is_dir():
            add(_stem(path), path)
            continue
        before = sum(map(len, found.values()))
        for entry in _entries(path):
            inside = [file for file in _entries(entry) if file.is_file()] if entry.is_dir() else []
            for file in inside or [entry]:
                kind = find_kind(file) if file.is_file() else None
                if kind is None:
                    skipped += [file] if file.is_file() else []
                elif inside:
                    add(entry.name, file)
                else:
                    add(path.resolve().name if kind in SINGLE else _stem(file), file)
        if sum(map(len, found.values())) == before:
            raise UserError(f"{path}: a directory without drawings")
    return found, skipped


def read_drawings(path: str | Path, *, absolute: bool = False) -> Iterator[Drawing]:
    """Reads the drawings of a file, one after the other.

    Args:
        path: of the file.
        absolute: the numbers of .npy and .npz files are points, not offsets.

    Raises:
        UserError: no such file, another format, damaged content; numbers that are not finite or
            beyond 1e6.
    """
    path = Path(path)
    kind = find_kind(path)
    if kind is None:
        empty = path.stat().st_size == 0
        raise UserError(
            f"{path}: {'is empty' if empty else 'is in no format that is known here'}; drawings "
            "are Quick, Draw! ndjson or .bin, SVG, stroke-3 or stroke-5 .npy, sketch-rnn .npz"
        )
    if kind == "npz":
        yield from _read_npz(path, absolute)
    elif kind == "npy":
        yield from _read_npy(path, absolute)
    else:
        read = {"ndjson": _read_ndjson, "bin": _read_bin, "svg": _read_svg}[kind]
        try:
            with _open(path) as file:
                yield from read(file, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: damaged, a broken gzip file ({one_line(error)})") from error
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror or error})") from error


def find_kind(path: Path) -> str | None:
    """What a file holds: ndjson, bin, svg, npy, npz, or None for anything else.

    Raises:
        UserError: it can't be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        with _open(path) as file:
            head = file.read(4096)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "ndjson"  # a broken gzip file; reading it says so
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
    if head.startswith(b"PK\x03\x04"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    # No text has a byte 0 or 1 at the place where a binary drawing says whether it is recognized.
    country = head[8:10]
    if head[10:11] in (b"\0", b"\1") and (country.isalnum() or country in (b"\0\0", b"  ")):
        return "bin"
    for encoding, marks in (("utf-16", (b"\xff\xfe", b"\xfe\xff")), ("utf-8-sig", (b"",))):
        if head.startswith(marks):
            text = head[: len(head) // 2 * 2].decode(encoding, "ignore").lstrip()
            break
    if text.startswith("{") and encoding != "utf-16":
        return "ndjson"
    return "svg" if text.startswith("<") else None


def _stem(path: Path) -> str:
    return path.name.partition(".")[0] or path.name


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{directory}: can't be read ({error.strerror})") from error


def _open(path: Path) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115, the caller closes it
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path)
    file.seek(0)
    return file


def _read_ndjson(file: BinaryIO, path: Path) -> Iterator[Drawing]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        source = f"{path}, line {number}"
        if len(line) > MAX_LINE:
            raise UserError(f"{source}: longer than {MAX_LINE:,} bytes")
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: damaged, no JSON ({one_line(error)})") from error
        drawing = entry.get("drawing") if isinstance(entry, dict) else None
        if not isinstance(drawing, list):
            raise UserError(f'{source}: has no list "drawing"')
        strokes, timed = [], False
        for parts in drawing:
            good = isinstance(parts, list) and 2 <= len(parts) <= 3
            if not (good and all(isinstance(p, list) and len(p) == len(parts[0]) for p in parts)):
                raise UserError(f"{source}: damaged, a stroke is two or three lists of one length")
            timed |= len(parts) == 3
            strokes.append(_numbers(parts[:2], source).T)
        yield _checked(
            Drawing(
                source,
                "raw ndjson" if timed else "simplified ndjson",
                strokes,
                recognized=entry.get("recognized") is not False,
            ),
            may_be_simplified=not timed,
        )


def _read_bin(file: BinaryIO, path: Path) -> Iterator[Drawing]:
    def read(size: int) -> bytes:
        data = file.read(size)
        if len(data) < size:
            raise UserError(f"{source}: cut off")
        return data

    number = 0
    while head := file.read(BIN_HEADER.size):
        number += 1
        source = f"{path}, drawing {number}"
        _, _, recognized, _, count = BIN_HEADER.unpack(head + read(BIN_HEADER.size - len(head)))
        if recognized not in (0, 1):
            raise UserError(f"{source}: damaged, it is neither recognized nor not")
        strokes = []
        for _ in range(count):
            points = int.from_bytes(read(2), "little")
            strokes.append(np.frombuffer(read(2 * points), np.uint8).reshape(2, -1).T)
        yield _checked(
            Drawing(source, "bin", strokes, recognized=recognized == 1), may_be_simplified=True
        )


def _read_svg(file: BinaryIO, path: Path) -> Iterator[Drawing]:
    found = svg.read_svg(file.read(svg.MAX_BYTES + 1), str(path))
    drawing = Drawing(
        str(path), "svg", found.strokes, not_strokes=found.not_strokes, frame=found.frame
    )
    yield _checked(drawing)


def _read_npy(path: Path, absolute: bool) -> Iterator[Drawing]:
    array = read_npy(path)
    if array.ndim not in (2, 3) or array.shape[-1] not in (3, 5):
        raise UserError(
            f"{path}: an array of shape {array.shape} is not a drawing; stroke-3 is (n, 3), "
            "stroke-5 (n, 5), and several of one length (k, n, 3) or (k, n, 5)"
        )
    drawings = array if array.ndim == 3 else array[None]
    for i, entry in enumerate(drawings):
        source = str(path) if len(drawings) == 1 else f"{path}, drawing {i + 1}"
        yield _from_rows(entry, source, "npy", None, absolute)


def _read_npz(path: Path, absolute: bool) -> Iterator[Drawing]:
    try:
        with open_archive(path) as archive:
            names = archive.names
    except Exception as error:  # a damaged archive can fail in any way
        raise UserError(f"{path}: damaged, no readable .npz ({one_line(error)})") from error
    splits = tuple(split for split in SPLITS if split in names)
    if not splits:
        raise UserError(f"{path}: has none of the arrays train, valid and test")
    arrays = read_sketch_file(path, splits)
    for split in splits:
        for i, entry in enumerate(arrays[split]):
            yield _from_rows(entry, f"{path}, {split} {i}", "npz", split, absolute)


def _from_rows(entry: object, source: str, kind: str, split: str | None, absolute: bool) -> Drawing:
    """A drawing from stroke-3 or stroke-5 rows, given as an array or as lists."""
    rows = _numbers(entry, source)
    if rows.size == 0:
        return Drawing(source, kind, [], split=split)
    if rows.ndim != 2 or rows.shape[1] not in (3, 5):
        raise UserError(f"{source}: damaged, shape {rows.shape} is neither stroke-3 nor stroke-5")
    if rows.shape[1] == 5:
        rows = _stroke5_to_stroke3(rows, source)
    if not np.isin(rows[:, 2], (0, 1)).all():
        raise UserError(f"{source}: damaged, a pen state is neither 0 nor 1")
    if absolute:
        ends = np.flatnonzero(rows[:, 2]) + 1
        strokes = [stroke for stroke in np.split(rows[:, :2], ends) if len(stroke)]
        rows = to_stroke3(strokes) if strokes else rows[:0]
    else:
        strokes = utils.pen_paths(rows, start=np.zeros(2))
    whole = bool((rows == np.rint(rows)).all() and (np.abs(rows) <= LIMIT).all())
    drawing = Drawing(source, kind, strokes, split=split)
    return _checked(drawing)._replace(rows=rows if whole and strokes else None)


def _stroke5_to_stroke3(rows: np.ndarray, source: str) -> np.ndarray:
    """Rows (dx, dy, draw, lift, end), a start row before them or not, to (dx, dy, lifted)."""
    pen = rows[:, 2:]
    if not (np.isin(pen, (0, 1)).all() and (pen.sum(axis=1) == 1).all()):
        raise UserError(f"{source}: damaged, a row of stroke-5 is in one of three pen states")
    ends = np.flatnonzero(pen[:, 2])
    rows = rows[: ends[0]] if len(ends) else rows
    if len(rows) and (rows[0] == (0, 0, 1, 0, 0)).all():
        rows = rows[1:]
    return rows[:, [0, 1, 3]]


def _numbers(values: object, source: str) -> np.ndarray:
    """Numbers as float64, of any shape."""
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":  # lists of different lengths, or integers without bounds
            array = np.array([[float(n) for n in row] for row in values], np.float64)
        if array.size and array.dtype.kind not in "biuf":
            raise ValueError("not numbers")
        return array.astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{source}: damaged, no table of numbers ({one_line(error)})") from error


def _checked(drawing: Drawing, may_be_simplified: bool = False) -> Drawing:
    """A drawing without strokes that have no points; refuses numbers that no drawing has."""
    strokes = [stroke.astype(np.float64) for stroke in drawing.strokes if len(stroke)]
    if not strokes:
        return drawing._replace(strokes=[])
    points = np.concatenate(strokes)
    if len(points) > MAX_POINTS:
        raise UserError(f"{drawing.source}: more than {MAX_POINTS:,} points")
    if not (np.abs(points) <= MAX_COORDINATE).all():  # false for NaN too
        raise UserError(f"{drawing.source}: damaged, a coordinate is not a number from -1e6 to 1e6")
    drawing = drawing._replace(strokes=strokes)
    if may_be_simplified:
        whole = (points == np.rint(points)).all() and points.min() >= 0 and points.max() <= EXTENT
        if whole and np.ptp(points, axis=0).max() >= SMALLEST_EXTENT:
            drawing = drawing._replace(rows=to_stroke3(strokes))
    return drawing
