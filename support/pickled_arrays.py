"""Pickles of arrays, read without the standard unpickler.

NumPy stores an array of sketches as a pickle, and a pickle is a program: it may call any function,
and a few bytes of it may ask for gigabytes. Here its operations are carried out by a small
interpreter that knows only what arrays of numbers, lists and tuples are made of. Nothing is
called, and what is built takes at most a small multiple of the bytes that were read.
"""

import codecs
import functools
import gc
import pickletools
import re
import struct
from typing import Any

import numpy as np

MAX_DEPTH = 1000  # of lists in lists
MAX_DIMENSIONS = 32
MAX_DIGITS = 30  # of a number that is written as text
_TOO_MANY = "the pickle holds more lists than its bytes account for"
FREE_LISTS = 1000  # lists and tuples that any file may have
BYTES_PER_LIST = 6  # least that a further list or tuple takes in a file of numbers


class UnsafePickle(ValueError):
    """A pickle asks for something that no array of numbers needs; the text says for what."""


class PickledType:
    """A pickled dtype: a kind of number or object, and its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, arguments: tuple):
        code = _as_text(arguments[0]) if arguments else None
        if not (isinstance(code, str) and re.fullmatch(r"[biuf]\d{1,2}|O\d?", code)):
            raise UnsafePickle(f"the type {code!r}")
        self.dtype = np.dtype("O" if code[0] == "O" else code)

    def build(self, state: tuple) -> None:
        """Takes the byte order of a pickled state; the rest of it is not looked at."""
        order = _as_text(state[1])
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """A pickled array, still in bytes.

    Attributes:
        shape: of the array.
        dtype: of the array.
        values: its bytes, or of an array of objects the list of its items.
        order: "C" or "F", how the values follow each other.
    """

    __slots__ = ("dtype", "order", "shape", "values")

    def __init__(self):
        self.dtype = None  # until its state is known

    def build(self, state: tuple) -> None:
        """Takes a pickled state; ValueError where its parts do not belong together."""
        _, shape, kind, fortran_order, values = state
        dtype, count = kind.dtype, 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise ValueError(f"an array of shape {shape!r}")
            count *= length
        if dtype.kind == "O":
            if type(values) is not list or len(values) != count:
                raise ValueError(f"an array of shape {shape!r} has other than {count} items")
        else:
            if type(values) is str:
                values = values.encode("latin1")
            if type(values) is not bytes or len(values) != count * dtype.itemsize:
                raise ValueError(f"an array of shape {shape!r} has bytes for another")
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"an array of {len(shape)} dimensions")
        self.shape, self.dtype, self.values = shape, dtype, values
        # The items of an array of objects are always in C order.
        self.order = "F" if fortran_order and dtype.kind != "O" else "C"

    def to_array(self) -> np.ndarray:
        """The array; items that are arrays of numbers become such."""
        if self.dtype is None:
            raise ValueError("the pickle is damaged")
        if self.dtype.kind != "O":
            return np.frombuffer(self.values, self.dtype).reshape(self.shape, order=self.order)
        items = np.empty(len(self.values), object)
        for i, item in enumerate(self.values):
            is_numbers = type(item) is PickledArray and item.dtype and item.dtype.kind != "O"
            items[i] = item.to_array() if is_numbers else item
        return items.reshape(self.shape, order=self.order)


# What stands for the three things that a pickle of arrays calls.
_RECONSTRUCT, _DTYPE, _ENCODE, _NDARRAY = "reconstruct", "dtype", "encode", "ndarray"
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "dtype"): _DTYPE,
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): _ENCODE,
}


class _Global:
    __slots__ = ("name",)

    def __init__(self, module: str, name: str):
        if (module, name) not in _GLOBALS:
            shown = repr(f"{module}.{name}")
            raise UnsafePickle(shown if len(shown) < 100 else f"{shown[:100]}...")
        self.name = _GLOBALS[module, name]


(MARK, STOP, POP, POP_MARK) = b"(.01"
(INT, BININT, BININT1, BININT2, LONG, LONG1) = b"IJKML\x8a"
(NONE, TRUE, FALSE, FLOAT, BINFLOAT) = b"N\x88\x89FG"
(STRING, BINSTRING, SHORT_BINSTRING) = b"STU"
(BINBYTES, SHORT_BINBYTES, BINBYTES8) = b"BC\x8e"
(UNICODE, BINUNICODE, SHORT_BINUNICODE, BINUNICODE8) = b"VX\x8c\x8d"
(EMPTY_LIST, APPEND, APPENDS, LIST) = b"]ael"
(EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3) = b")t\x85\x86\x87"
(GLOBAL, INST, STACK_GLOBAL, REDUCE, BUILD) = b"ci\x93Rb"
(PUT, BINPUT, LONG_BINPUT, MEMOIZE) = b"pqr\x94"
(GET, BINGET, LONG_BINGET) = b"ghj"
(PROTO, FRAME) = b"\x80\x95"
_PUTS = frozenset((PUT, BINPUT, LONG_BINPUT))
# Where the bytes of a string follow their number: how many bytes the number takes.
_TEXTS = {BINUNICODE: 4, SHORT_BINUNICODE: 1, BINUNICODE8: 8}
_BYTES = {BINBYTES: 4, BINBYTES8: 8, BINSTRING: 4, SHORT_BINSTRING: 1}


def load(data: bytes, position: int = 0) -> Any:
    """What a pickle holds: `PickledArray`, list, tuple, number, string or None.

    Strings of Python 2 come as bytes.

    Raises:
        UnsafePickle: it asks for anything else.
        ValueError: it is broken, or claims more than it holds.
    """
    # The collector would look through all that is built again and again, and find nothing.
    collects = gc.isenabled()
    gc.disable()
    try:
        return _load(data, position)
    except (IndexError, struct.error):
        raise ValueError("the pickle breaks off") from None
    except (TypeError, AttributeError):
        raise ValueError("the pickle is damaged") from None
    finally:
        if collects:
            gc.enable()


def _load(data: bytes, position: int) -> Any:
    # One long loop: a function for each operation would take several times as long.
    size = len(data)
    stack: list = []
    push, pop = stack.append, stack.pop
    marks: list[int] = []
    memo: list = []
    numbers: dict[int, int] = {}  # one object for all equal ones
    remember = memo.append
    begin, lists = position, -FREE_LISTS
    while True:
        op = data[position]
        position += 1
        # The most frequent ones come first.
        if op == MEMOIZE:
            remember(stack[-1])
        elif op == BINGET:
            push(memo[data[position]])
            position += 1
        elif op == BININT1:
            push(data[position])
            position += 1
        elif op in _PUTS:
            if op == LONG_BINPUT:
                place = int.from_bytes(data[position : position + 4], "little")
                position += 4
            elif op == BINPUT:
                place = data[position]
                position += 1
            else:
                line, position = _line(data, position)
                place = _integer(line)
            if place == len(memo):
                remember(stack[-1])
            else:
                # Picklers count from 0 or 1 on; a place far ahead would need room.
                if not 0 <= place <= position - begin:
                    raise ValueError(f"the pickle remembers entry {place} of {len(memo)}")
                memo.extend([None] * (place + 1 - len(memo)))
                memo[place] = stack[-1]
        elif op == SHORT_BINBYTES:
            end = position + 1 + data[position]
            push(data[position + 1 : end])
            position = end
        elif op == MARK:
            marks.append(len(stack))
            if len(marks) > MAX_DEPTH:
                raise ValueError("the pickle is nested too deeply")
        elif op == TUPLE2:
            last = pop()
            stack[-1] = (stack[-1], last)
        elif op == FALSE:
            push(False)
        elif op == TUPLE:
            mark = marks.pop()
            items = tuple(stack[mark:])
            del stack[mark:]
            push(items)
            lists += 1
            if lists * BYTES_PER_LIST > position - begin:
                raise ValueError(_TOO_MANY)
        elif op == TUPLE3:
            last, middle = pop(), pop()
            stack[-1] = (stack[-1], middle, last)
        elif op == BUILD:
            state = pop()
            stack[-1].build(state)
            if data[position] == BINGET and len(marks) < MAX_DEPTH:
                position, count = _read_alike(data, position, stack, memo)
                lists += 3 * count
        elif op == REDUCE:
            arguments = pop()
            name = stack[-1].name
            stack[-1] = PickledArray() if name is _RECONSTRUCT else _call(name, arguments)
            lists += 1
            if lists * BYTES_PER_LIST > position - begin:
                raise ValueError(_TOO_MANY)
        elif op == TUPLE1:
            stack[-1] = (stack[-1],)
            lists += 1
            if lists * BYTES_PER_LIST > position - begin:
                raise ValueError(_TOO_MANY)
        elif op == LONG_BINGET:
            push(memo[int.from_bytes(data[position : position + 4], "little")])
            position += 4
        elif op in _BYTES:
            width = _BYTES[op]
            length = int.from_bytes(data[position : position + width], "little")
            position += width
            push(data[position : position + length])
            position += length
        elif op == BININT2:
            number = data[position] + 256 * data[position + 1]
            push(numbers.setdefault(number, number))
            position += 2
        elif op == BININT:
            (number,) = struct.unpack_from("<i", data, position)
            push(numbers.setdefault(number, number) if -(2**15) <= number < 2**15 else number)
            position += 4
        elif op == BINFLOAT:
            push(struct.unpack_from(">d", data, position)[0])
            position += 8
        elif op in (APPENDS, LIST):
            mark = marks.pop()
            items = stack[mark:]
            del stack[mark:]
            if op == LIST:
                push(items)
                lists += 1
                if lists * BYTES_PER_LIST > position - begin:
                    raise ValueError(_TOO_MANY)
            else:
                _as_list(stack[-1]).extend(items)
        elif op == APPEND:
            item = pop()
            _as_list(stack[-1]).append(item)
        elif op == EMPTY_LIST:
            push([])
            lists += 1
            if lists * BYTES_PER_LIST > position - begin:
                raise ValueError(_TOO_MANY)
        elif op == NONE:
            push(None)
        elif op == TRUE:
            push(True)
        elif op == EMPTY_TUPLE:
            push(())
        elif op in _TEXTS:
            width = _TEXTS[op]
            length = int.from_bytes(data[position : position + width], "little")
            position += width
            push(data[position : position + length].decode("utf-8", "surrogatepass"))
            position += length
        elif op == LONG1:
            length = data[position]
            if length > 8:
                raise ValueError("the pickle holds a number too large for an array")
            push(int.from_bytes(data[position + 1 : position + 1 + length], "little", signed=True))
            position += 1 + length
        elif op in (INT, LONG):
            line, position = _line(data, position)
            push(line == b"01" if line in (b"00", b"01") else _integer(line.rstrip(b"L")))
        elif op == FLOAT:
            line, position = _line(data, position)
            push(float(line[:MAX_DIGITS]))
        elif op == STRING:
            line, position = _line(data, position)
            if len(line) < 2 or line[0] != line[-1] or line[0] not in b"'\"":
                raise ValueError("the pickle holds a broken string")
            push(codecs.escape_decode(line[1:-1])[0])
        elif op == UNICODE:
            line, position = _line(data, position)
            push(line.decode("raw-unicode-escape"))
        elif op in (GLOBAL, INST):
            module, position = _line(data, position)
            name, position = _line(data, position)
            push(_Global(module.decode("latin1"), name.decode("latin1")))
            if op == INST:
                raise UnsafePickle("the operation INST")
        elif op == STACK_GLOBAL:
            name = pop()
            stack[-1] = _Global(stack[-1], name)
        elif op == GET:
            line, position = _line(data, position)
            push(memo[_index(line)])
        elif op == PROTO:
            position += 1
        elif op == FRAME:
            position += 8
        elif op == POP:
            pop()
        elif op == POP_MARK:
            del stack[marks.pop() :]
        elif op == STOP:
            if position > size:
                raise IndexError
            return pop()
        else:
            known = pickletools.code2op.get(chr(op))
            raise UnsafePickle(f"the operation {known.name if known else op}")


# An array like those before it, as NumPy writes it under Python 3 and 2, up to its values. A put
# remembers what was made last: without a place (protocol 4), or at one that takes four bytes.
_PUT = rb"(?:(?P<implied>\x94)|r.{4})"
_PYTHON3 = re.compile(
    rb"(?P<make>h.h.K\0\x85)" + _PUT + rb"(?P<call>h.\x87)(?:\x94R\x94|r.{4}Rr.{4})\(K\x01"
    rb"(?:K.|M..)K\x03\x86(?:\x94|r.{4})(?P<kind>h.\x89)[CB]",
    re.DOTALL,
)
_PYTHON2 = re.compile(
    rb"(?P<make>h.h.K\0\x85U\x01b\x87R)r.{4}\(K\x01(?:K.|M..)K\x03\x86(?P<kind>h.\x89)[UT]",
    re.DOTALL,
)


class _Pieces:
    """Bytes that are the same in each array of a run, and between them, if `counted`, places in
    the memo, one after the other."""

    def __init__(self, *pieces: bytes, counted: bool):
        if counted:
            pieces = (*(piece + b"r" for piece in pieces[:-1]), pieces[-1])
        else:
            pieces = (b"\x94".join(pieces),)
        self.pieces = pieces
        self.struct = struct.Struct("<" + "I".join(f"{len(piece)}s" for piece in pieces))
        self.size = self.struct.size

    def are_at(self, data: bytes, position: int, place: int) -> bool:
        """Whether they are there, the first place being `place`."""
        if len(self.pieces) == 1:
            return data.startswith(self.pieces[0], position)
        if position + self.size > len(data):
            return False
        found = self.struct.unpack_from(data, position)
        count = len(self.pieces) - 1
        return found[::2] == self.pieces and found[1::2] == tuple(range(place, place + count))


# Kept, since a run may be short: where two types of arrays alternate, each is a run of one.
@functools.lru_cache(64)
def _python3_pieces(make: bytes, call: bytes, kind: bytes, counted: bool) -> tuple[_Pieces, ...]:
    return (
        _Pieces(make, call, b"R", b"(K\x01", counted=counted),
        _Pieces(b"K\x03\x86", kind, counted=counted),
        _Pieces(b"", b"t", b"b", counted=counted),
    )


@functools.lru_cache(64)
def _python2_pieces(make: bytes, kind: bytes) -> tuple[_Pieces, ...]:
    return (
        _Pieces(make, b"(K\x01", counted=True),
        _Pieces(b"K\x03\x86" + kind, counted=False),
        _Pieces(b"tb", counted=False),
    )


def _read_alike(data: bytes, position: int, stack: list, memo: list) -> tuple[int, int]:
    """Reads the arrays from `position` on, as long as they are of (n, 3) numbers and written alike.

    They leave on the stack and in the memo what their operations would, one by one. Nearly all of
    a file of sketches is such a run, which is read in a third of the time.

    Returns:
        Where the run ends, and how many arrays it has.
    """
    match = _PYTHON3.match(data, position) or _PYTHON2.match(data, position)
    if not match:
        return position, 0
    make, call, type_of = match["make"], match.groupdict().get("call"), match["kind"]
    if max(make[1], make[3], call[1] if call else 0, type_of[1]) >= len(memo):
        return position, 0
    function, kind = memo[make[1]], memo[type_of[1]]
    if type(function) is not _Global or function.name is not _RECONSTRUCT:
        return position, 0
    if type(kind) is not PickledType or kind.dtype.kind not in "biuf":
        return position, 0
    if call:
        short, long = SHORT_BINBYTES, BINBYTES
        head, middle, tail = _python3_pieces(make, call, type_of, not match["implied"])
        start, arguments = (0,), (memo[make[3]], (0,), memo[call[1]])
    else:
        short, long = SHORT_BINSTRING, BINSTRING
        head, middle, tail = _python2_pieces(make, type_of)
        start = None
    dtype, width, before = kind.dtype, 3 * kind.dtype.itemsize, len(stack)
    shapes: dict[int, tuple[int, int]] = {}
    while head.are_at(data, position, len(memo)):
        at = position + head.size
        if data[at] == BININT1:
            rows, at = data[at + 1], at + 2
        elif data[at] == BININT2:
            rows, at = data[at + 1] + 256 * data[at + 2], at + 3
        else:
            break
        if not middle.are_at(data, at, len(memo) + 3):
            break
        at += middle.size
        if data[at] == short:
            length, at = data[at + 1], at + 2
        elif data[at] == long:
            length, at = int.from_bytes(data[at + 1 : at + 5], "little"), at + 5
        else:
            break
        values = data[at : at + length]
        if not len(values) == length == rows * width:
            break
        if not tail.are_at(data, at + length, len(memo) + 4):
            break
        position = at + length + tail.size
        array = PickledArray()
        array.shape = shape = shapes.setdefault(rows, (rows, 3))
        array.dtype, array.values, array.order = dtype, values, "C"
        stack.append(array)
        if start is None:
            memo.append(array)
        else:
            state = (1, shape, kind, False, values)
            memo.extend((start, arguments, array, shape, values, state))
    return position, len(stack) - before


def _call(name: str, arguments: tuple) -> Any:
    """What one of the allowed functions, except `_reconstruct`, would return."""
    if name == _DTYPE:
        return PickledType(arguments)
    if name == _ENCODE:
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise UnsafePickle(f"the encoding {encoding!r}")
        return text.encode("latin1")
    raise UnsafePickle(f"a call of {name}")


def _as_list(value: Any) -> list:
    if type(value) is not list:
        raise ValueError("the pickle is damaged")
    return value


def _as_text(value: Any) -> Any:
    return value.decode("latin1") if type(value) is bytes else value


def _line(data: bytes, position: int) -> tuple[bytes, int]:
    end = data.index(b"\n", position)
    return data[position:end].rstrip(b"\r"), end + 1


def _integer(text: bytes) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError("the pickle holds a number too large for an array")
    return int(text)


def _index(text: bytes) -> int:
    index = _integer(text)
    if index < 0:
        raise ValueError("the pickle is damaged")
    return index
