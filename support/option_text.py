"""Options as people write them, on a command line or in a file, to names and values."""

from collections.abc import Mapping
from pathlib import Path

from support.files import UserError, read_text

ROOT = Path(__file__).parents[1]
_SWITCHES = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}


def read_options(
    text: str, types: Mapping[str, str | None], opened: tuple[Path, ...] = ()
) -> dict[str, object]:
    """The options that a text names, as a command line or an option file has them.

    Commas separate options except inside brackets and quotes, names may stand in ' or ", and
    spaces around a name or value don't count. `@FILE` stands for the options of a file: one or
    more on a line, comments after #. FILE is looked for in the present directory, then in that of
    the program. Options beside `@FILE` come before those in the file.

    Args:
        text: `categories=[bee,The Mona Lisa],batch_size=64`.
        types: the JSON type of each known option.
        opened: the option files that led to this text.

    Returns:
        Name to value; what is not of its option's type stays text.

    Raises:
        UserError: a text that is not understood, a file that can't be read.
    """
    of_files: dict[str, object] = {}
    given: dict[str, object] = {}
    for piece in _split(text) if text.strip() else []:
        if piece.startswith("@"):
            of_files |= _of_file(_unquote(piece[1:].strip()), types, opened)
            continue
        name, equals, value = (part.strip() for part in piece.partition("="))
        if not equals:
            raise UserError(
                f"option {shown(piece)} has no '='; write name=value, several with commas "
                "between them, and lists in brackets: categories=[bee,bus]"
            )
        if name in given:
            raise UserError(f"option {shown(name)} is given twice")
        try:
            given[name] = _convert(value, types.get(name))
        except UserError as error:
            raise UserError(f"option {name}: {error}") from None
    return of_files | given


def find_option_file(name: str) -> Path:
    """Where an option file is: in the present directory or, if not there, in the program's."""
    path = Path(name)
    return ROOT / path if not path.exists() and (ROOT / path).exists() else path


def _of_file(
    name: str, types: Mapping[str, str | None], opened: tuple[Path, ...]
) -> dict[str, object]:
    """The options of a file, those of the files that it names included."""
    path = find_option_file(name)
    if path.resolve() in opened:
        raise UserError(f"{path}: names itself, by way of @{opened[-1].name}")
    lines = (line.partition("#")[0].strip().rstrip(",") for line in read_text(path).splitlines())
    text = ",".join(filter(None, lines)).replace("[,", "[").replace(",]", "]")
    try:
        return read_options(text, types, (*opened, path.resolve()))
    except UserError as error:
        inner = str(error)
        raise UserError(inner if inner.startswith(str(path)) else f"{path}: {inner}") from None


def _split(text: str) -> list[str]:
    """Cut at the commas outside brackets and quotes; `UserError` where one of these is open."""
    pieces, start, quote, depth = [], 0, "", 0
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[]":
            depth += 1 if char == "[" else -1
            if depth not in (0, 1):
                raise UserError(f"unbalanced or nested brackets in {shown(text[start:])}")
        elif char == "," and depth == 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    if quote or depth:
        missing = quote or "]"
        raise UserError(f"unbalanced, a closing {missing} is missing: {shown(text[start:])}")
    return [*pieces, text[start:].strip()]


def _convert(text: str, kind: str | None) -> object:
    """Turn text into the JSON type `kind`; what doesn't fit stays text."""
    if kind == "array" and text.startswith("[") and text.endswith("]"):
        inside = text[1:-1]
        return [_unquote(name) for name in _split(inside)] if inside.strip() else []
    if kind == "string":
        return _unquote(text)
    if kind == "boolean":
        return _SWITCHES.get(text, text)
    try:
        return {"integer": int, "number": float}.get(kind, str)(text)
    except ValueError:
        return text


def _unquote(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    name, forbidden = (text[1:-1], text[0]) if quoted else (text, "'\"")
    if any(char in name for char in forbidden):
        raise UserError(f"a quote inside {shown(text)}; put the whole name in the other quotes")
    return name


def shown(value: object) -> str:
    """A value as a message quotes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
