"""SVG files to strokes and back.

A stroke is a float64 array (n, 2), n >= 1, of points in the user units of the outermost <svg>, y
pointing down. The geometry (transforms, units, curves, style sheets) is svgelements'. Before it
sees a file, all that could do harm or is not drawn is taken out: entities are refused, references
to other files are never followed, and what <use> makes of a file is bounded.
"""

import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import defusedxml.ElementTree
import numpy as np
import svgelements
from defusedxml import DefusedXmlException

from support.files import UserError, one_line

NAMESPACE = "{http://www.w3.org/2000/svg}"
HREFS = ("href", "{http://www.w3.org/1999/xlink}href")
MAX_BYTES = 20_000_000
MAX_ELEMENTS = 100_000  # with all copies that <use> makes
MAX_DEPTH = 100
MAX_SHAPE_TEXT = 4_000_000  # characters of all shapes' data together
FINENESS = 255  # a curve becomes lines of about the drawing's longer side divided by this
NOT_DRAWN = {
    *("marker", "mask", "filter", "pattern", "linearGradient", "radialGradient", "metadata"),
    *("script", "title", "desc", "font", "cursor", "view", "animate", "animateTransform", "set"),
}
NO_LINES = {"text", "image", "foreignObject"}  # drawn, but not as lines
PROPERTIES = {"fill", "stroke", "stroke-width", "display", "visibility", "color"}
ATTRIBUTES = {  # all that svgelements is shown
    *PROPERTIES,
    *HREFS,
    *("id", "class", "style", "transform", "viewBox", "preserveAspectRatio", "d", "points"),
    *("x", "y", "width", "height", "rx", "ry", "cx", "cy", "r", "x1", "y1", "x2", "y2"),
}
MAX_ATTRIBUTE = 10_000  # characters of an attribute, except a shape's data
TRANSFORM = re.compile(r"\s*(?:[A-Za-z]+\s*\([^()]*\)[\s,]*)*")
FRAME = ("width", "height", "viewBox", "preserveAspectRatio")


class SvgDrawing(NamedTuple):
    """What an SVG file shows.

    Attributes:
        strokes: its lines, in the order of the document.
        not_strokes: how many filled shapes without an outline, texts and images it has besides.
        frame: width, height, viewBox and preserveAspectRatio of the file, as far as it has them.
    """

    strokes: list[np.ndarray]
    not_strokes: int
    frame: dict[str, str]


class Layer(NamedTuple):
    """Strokes to write in one colour.

    Attributes:
        strokes: see above.
        colour: of the lines, as CSS names it.
        width: of the lines, in user units.
    """

    strokes: Sequence[np.ndarray]
    colour: str
    width: float


def read_svg(data: bytes, name: str) -> SvgDrawing:
    """The strokes of an SVG file.

    Args:
        data: what the file holds.
        name: stands in front of error messages.

    Raises:
        UserError: no XML, no SVG, entities, too large, damaged numbers.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: {len(data):,} bytes are too many for an SVG drawing")
    try:
        root = defusedxml.ElementTree.fromstring(data)
    except DefusedXmlException as error:
        raise UserError(
            f"{name}: declares XML entities or refers to other files, which are never resolved; "
            "save it as plain SVG"
        ) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: encoding
        raise UserError(f"{name}: damaged, not well-formed XML ({one_line(error)})") from error
    if _tag(root) != "svg":
        raise UserError(f"{name}: an XML file, but no SVG: its root is {str(root.tag)[:60]!r}")
    no_lines = _prepare(root, name)
    frame = {key: root.attrib[key] for key in FRAME if key in root.attrib}
    page = _set_user_units(root, name)
    try:
        source = io.BytesIO(ElementTree.tostring(root))
        # Not reified: svgelements loses the rotation of ellipses, and bends arcs that are skewed.
        document = svgelements.SVG.parse(source, reify=False, on_error="raise")
        shapes = [e for e in document.elements() if isinstance(e, svgelements.Shape)]
        outlined = [shape for shape in shapes if _is_visible(shape, "stroke")]
        filled = [
            shape
            for shape in shapes
            if not _is_visible(shape, "stroke")
            and _is_visible(shape, "fill")
            and not _is_background(shape, page)
        ]
        strokes = _flatten([run for shape in outlined for run in _runs(shape)], name)
    except UserError:
        raise
    except Exception as error:  # damaged attributes can fail in any way
        raise UserError(
            f"{name}: damaged, the data of a shape can't be read ({one_line(error)})"
        ) from error
    return SvgDrawing(strokes, no_lines + len(filled), frame)


def write_svg(layers: Iterable[Layer], frame: dict[str, str], extra: str = "") -> str:
    """Strokes as an SVG with a transparent background, to lie over the drawing of that frame.

    Args:
        layers: from the lowest to the topmost.
        frame: from `read_svg`, or made by `frame_around`.
        extra: elements below all layers.
    """
    attributes = "".join(f" {key}={quoteattr(value)}" for key, value in frame.items())
    paths = [
        f'<path fill="none" stroke="{layer.colour}" stroke-width="{layer.width:.6g}"'
        ' stroke-linecap="round" stroke-linejoin="round"'
        f' d="{"".join(map(_path_data, layer.strokes))}"/>'
        for layer in layers
    ]
    body = "\n".join([extra, *paths] if extra else paths)
    return f'<svg xmlns="http://www.w3.org/2000/svg"{attributes}>\n{body}\n</svg>\n'


def frame_around(strokes: Sequence[np.ndarray], margin: float = 0.06) -> dict[str, str]:
    """A frame for strokes that came without one, in their own units."""
    points = np.concatenate(strokes)
    low, high = points.min(axis=0), points.max(axis=0)
    free = margin * (float((high - low).max()) or 1.0)
    left, top = (low - free).tolist()
    width, height = (high - low + 2 * free).tolist()
    box = f"{left:.9g} {top:.9g} {width:.9g} {height:.9g}"
    return {"width": f"{width:.9g}", "height": f"{height:.9g}", "viewBox": box}


def _tag(element: ElementTree.Element) -> str | None:
    """The name of an SVG element; None for comments and for elements of other kinds of XML."""
    if not isinstance(element.tag, str):
        return None
    if element.tag.startswith(NAMESPACE):
        return element.tag[len(NAMESPACE) :]
    return None if element.tag.startswith("{") else element.tag


def _prepare(root: ElementTree.Element, name: str) -> int:
    """Takes out what draws no lines, bounds the rest; returns the number of texts and images."""
    no_lines, text = 0, 0
    by_id: dict[str, ElementTree.Element] = {}
    level, depth = [(root, False)], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{name}: elements lie in more than {MAX_DEPTH} others; flatten it")
        below = []
        for element, hidden in level:
            if key := element.get("id"):
                by_id.setdefault(key, element)
            _prepare_attributes(element, name)
            text += len(element.get("d", ""))
            if _tag(element) == "style":
                element.text = _plain_style("".join(element.itertext()))
                element[:] = []
            for child in list(element):
                tag = _tag(child)
                if tag is None or tag in NOT_DRAWN or tag in NO_LINES:
                    element.remove(child)
                    no_lines += tag in NO_LINES and not hidden
                    continue
                if tag in ("polyline", "polygon"):  # svgelements takes long to read points
                    child.tag = NAMESPACE + "path"
                    points = child.attrib.pop("points", "").strip()
                    child.set("d", f"M{points}{'Z' if tag == 'polygon' else ''}" if points else "")
                    tag = "path"
                if tag == "path" and not child.get("d", "").strip():  # svgelements asks for one
                    element.remove(child)
                    continue
                if tag == "symbol":  # is drawn only where it is used
                    child.tag = NAMESPACE + "g"
                    child.attrib.pop("viewBox", None)
                    holder = ElementTree.Element(NAMESPACE + "defs")
                    holder.append(child)
                    element[list(element).index(child)] = holder
                is_hidden = hidden or tag in ("defs", "symbol", "clipPath")
                below.append((child, is_hidden))
        level = below
    if text > MAX_SHAPE_TEXT:
        raise UserError(f"{name}: {text:,} characters of path data are too many for a drawing")
    _check_uses(root, by_id, name)
    return no_lines


def _prepare_attributes(element: ElementTree.Element, name: str) -> None:
    """Leaves only what is needed, in a form that svgelements reads in a reasonable time."""
    for key in [key for key in element.attrib if key not in ATTRIBUTES]:
        del element.attrib[key]
    for key, value in element.attrib.items():
        if key not in ("d", "points") and len(value) > MAX_ATTRIBUTE:
            raise UserError(f"{name}: {len(value):,} characters are too many for {key!r}")
    if not TRANSFORM.fullmatch(element.get("transform", "")):
        shown = element.get("transform", "")[:40]
        raise UserError(f"{name}: damaged, a transform is {one_line(ValueError(shown))!r}")
    if "style" in element.attrib:
        element.set("style", _plain_declarations(element.get("style", "")))


def _check_uses(
    root: ElementTree.Element, by_id: dict[str, ElementTree.Element], name: str
) -> None:
    """Counts the elements that there are once every <use> has been replaced by its copy."""
    sizes: dict[ElementTree.Element, int] = {}
    open_: set[ElementTree.Element] = set()

    def size(element: ElementTree.Element, depth: int) -> int:
        if element in sizes:
            return sizes[element]
        if element in open_ or depth > 2 * MAX_DEPTH:
            raise UserError(f"{name}: a <use> refers to itself, or uses lie too deep; flatten it")
        open_.add(element)
        count = 1 + sum(size(child, depth + 1) for child in element)
        if _tag(element) == "use":
            for href in HREFS:
                target = by_id.get(element.get(href, "")[1:])
                if element.get(href, "").startswith("#") and target is not None:
                    count += size(target, depth + 1)
                else:
                    element.attrib.pop(href, None)
        open_.remove(element)
        sizes[element] = count
        if count > MAX_ELEMENTS:
            raise UserError(f"{name}: more than {MAX_ELEMENTS:,} elements, copies included")
        return count

    size(root, 0)


def _plain_style(text: str) -> str:
    """The rules of a style sheet, without comments and @-rules."""
    parts = text.split("/*")
    text = parts[0] + "".join(part.partition("*/")[2] for part in parts[1:])
    rules = []
    for rule in text.split("}"):
        selector, _, declarations = (part.strip() for part in rule.rpartition("{"))
        declarations = _plain_declarations(declarations)
        if selector and declarations and "@" not in selector and "{" not in selector:
            rules.append(f"{' '.join(selector.split())}{{{declarations}}}")
    return "\n".join(rules)


def _plain_declarations(text: str) -> str:
    """The declarations of the properties that matter, as in fill:none;stroke:#000."""
    pairs = (part.partition(":") for part in text.split(";"))
    found = ((key.strip(), " ".join(value.split())) for key, _, value in pairs)
    return ";".join(f"{key}:{value}" for key, value in found if key in PROPERTIES and value)


def _set_user_units(root: ElementTree.Element, name: str) -> tuple[float, float, float, float]:
    """Makes the units of the root's viewBox those of the result; returns the page's box."""
    box = root.attrib.pop("viewBox", None)
    root.attrib.pop("preserveAspectRatio", None)
    root.attrib.pop("transform", None)
    if box is None:
        width, height = (_length(root.get(key)) for key in ("width", "height"))
        _set_page(root, width, height)
        return 0.0, 0.0, width, height
    try:
        left, top, width, height = map(float, re.split(r"[\s,]+", box.strip()))
    except ValueError:
        raise UserError(f"{name}: damaged, its viewBox is {one_line(ValueError(box))!r}") from None
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise UserError(f"{name}: damaged, its viewBox is {one_line(ValueError(box))!r}")
    _set_page(root, width, height)
    return left, top, width, height


def _set_page(root: ElementTree.Element, width: float, height: float) -> None:
    """Makes user units pixels; percentages are parts of the page."""
    if width > 0 and height > 0:
        root.set("width", repr(width))
        root.set("height", repr(height))
        root.set("viewBox", f"0 0 {width!r} {height!r}")


def _length(text: str | None) -> float:
    """A length in pixels; 0 where there is none or a relative one."""
    try:
        value = svgelements.Length(text).value(ppi=96) if text else 0.0
        return value if isinstance(value, float) else 0.0
    except ValueError:
        return 0.0


def _is_visible(shape: svgelements.Shape, paint: str) -> bool:
    """Whether a shape has an outline ("stroke") or a filling ("fill")."""
    values = shape.values
    if str(values.get("visibility", "")).strip() in ("hidden", "collapse"):
        return False
    if paint == "stroke" and shape.stroke_width == 0:
        return False
    given = str(values.get(paint, "none" if paint == "stroke" else "black"))
    return given.strip().lower() not in ("none", "transparent", "")


def _is_background(shape: svgelements.Shape, page: tuple[float, float, float, float]) -> bool:
    """Whether a filled shape is paper: a rectangle as large as the page."""
    box = shape.bbox()
    if not isinstance(shape, svgelements.Rect) or box is None:
        return False
    left, top, width, height = page
    slack = 0.01 * max(width, height)
    return (
        box[0] <= left + slack
        and box[1] <= top + slack
        and box[2] >= left + width - slack
        and box[3] >= top + height - slack
    )


class _Run(NamedTuple):
    """A piece of a shape that is drawn without lifting the pen, and the shape's transform."""

    segments: list[svgelements.PathSegment]
    transform: svgelements.Matrix

    def to_page(self, points: np.ndarray) -> np.ndarray:
        m = self.transform
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for it
            return points @ np.array([[m.a, m.b], [m.c, m.d]]) + (m.e, m.f)


def _runs(shape: svgelements.Shape) -> list[_Run]:
    runs: list[_Run] = []
    fresh = True
    for segment in shape.segments(transformed=False):
        if isinstance(segment, svgelements.Move):
            fresh = True
            continue
        if fresh:
            runs.append(_Run([], shape.transform))
        runs[-1].segments.append(segment)
        fresh = isinstance(segment, svgelements.Close)
    return runs


def _flatten(runs: list[_Run], name: str) -> list[np.ndarray]:
    """Lines instead of curves."""
    outlines = [[run.to_page(_outline(segment)) for segment in run.segments] for run in runs]
    if not outlines:
        return []
    corners = np.concatenate([points for run in outlines for points in run])
    if not np.isfinite(corners).all():
        raise UserError(f"{name}: damaged, a coordinate is not a finite number")
    spacing = float(np.ptp(corners, axis=0).max()) / FINENESS
    strokes = []
    for run, outline in zip(runs, outlines, strict=True):
        points = [outline[0][:1]]
        for segment, corners in zip(run.segments, outline, strict=True):
            if isinstance(segment, svgelements.Line | svgelements.Close):
                points.append(corners[-1:])
                continue
            length = np.hypot(*np.diff(corners, axis=0).T).sum()
            steps = min(math.ceil(length / spacing) if spacing else 1, 10 * FINENESS) or 1
            curve = np.asarray(segment.npoint(np.arange(1, steps + 1) / steps), np.float64)
            points.append(run.to_page(curve))
        strokes.append(np.concatenate(points))
    return strokes


def _outline(segment: svgelements.PathSegment) -> np.ndarray:
    """Points (n, 2) on or around a segment, whose polygon is about as long as it or longer."""
    if isinstance(segment, svgelements.Arc):
        steps = max(2, math.ceil(abs(segment.sweep)))
        points = [segment.point(i / steps) for i in range(steps + 1)]
    elif isinstance(segment, svgelements.CubicBezier):
        points = [segment.start, segment.control1, segment.control2, segment.end]
    elif isinstance(segment, svgelements.QuadraticBezier):
        points = [segment.start, segment.control, segment.end]
    else:
        points = [segment.start, segment.end]
    return np.array([[point.x, point.y] for point in points], np.float64)


def _path_data(stroke: np.ndarray) -> str:
    return ("M%.6g %.6gL" + " %.6g %.6g" * (len(stroke) - 1)) % tuple(stroke.ravel().tolist())
