"""Files that mean harm: nothing that a file of sketches holds is ever run.

Each payload leaves a file behind if it runs, and does so when the standard unpickler reads it: a
payload that could do no harm would prove nothing.
"""

import codecs
import contextlib
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sketch_files import npy, objects, options, random_sketch, refusal, write, write_raw

import dataset
from dataset import SPLITS, load_dataset, read_sketch_file


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def named(module, name, *args):
    """A pickle that calls module.name(*args), of protocol 4: the name may be a dotted path."""

    def text(value):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    pushed = b"".join(pickle.dumps(arg, protocol=2)[2:-1] for arg in args)
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + pushed + b"tR."


def system(marker):
    return pickle.dumps(Calls(os.system, f"touch '{marker}'"))


def protocol_0(marker):
    return f"cos\nsystem\n(S\"touch '{marker}'\"\ntR.".encode()


def inst_opcode(marker):
    return f"(S\"touch '{marker}'\"\nios\nsystem\n.".encode()


def obj_opcode(marker):
    return f"(cos\nsystem\nS\"touch '{marker}'\"\no.".encode()


def evaluated(marker):
    return pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"))


def python_2_eval(marker):
    return pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w').close()"), protocol=2)


def opened(marker):
    return pickle.dumps(Calls(open, str(marker), "w"))


def numpy_memmap(marker):
    return named("numpy", "memmap", str(marker), "uint8", "w+", 0, 4)


def numpy_save(marker):
    return named("numpy", "savetxt", str(marker), [1, 2])


def numpy_exec(marker):
    return named("numpy.testing._private.utils", "runstring", f"open({str(marker)!r}, 'w')", {})


def through_ndarray(marker):
    """numpy.ndarray is allowed, its attributes are not."""
    array = np.zeros(2)
    return (
        b"\x80\x04X\x05\x00\x00\x00numpyX\x0e\x00\x00\x00ndarray.tofile\x93("
        + pickle.dumps(array, protocol=2)[2:-1]
        + pickle.dumps(str(marker), protocol=2)[2:-1]
        + b"tR."
    )


def nested(marker):
    """After sound sketches, inside an array in an array."""
    inner = objects([1, Calls(os.system, f"touch '{marker}'")])
    return pickle.dumps(objects([random_sketch(np.random.default_rng(0), 5), inner]), protocol=3)


def in_an_arrays_state(marker):
    """As the number of rows of an array."""

    class Forged:
        def __reduce__(self):
            call = Calls(os.system, f"touch '{marker}'")
            made = np._core.multiarray._reconstruct
            return made, (np.ndarray, (0,), b"b"), (1, (call,), np.dtype("i2"), False, b"")

    return pickle.dumps(Forged(), protocol=2)


def through_a_codec(marker):
    """_codecs.encode is allowed; another codec is a program that is looked up and run."""
    return named("_codecs", "encode", "text", "marking")


def through_a_decoder(marker):
    return named("_codecs", "lookup", "marking")


PAYLOADS = [
    system,
    protocol_0,
    inst_opcode,
    obj_opcode,
    evaluated,
    python_2_eval,
    opened,
    numpy_memmap,
    numpy_save,
    numpy_exec,
    through_ndarray,
    nested,
    in_an_arrays_state,
    through_a_codec,
    through_a_decoder,
]


@pytest.fixture
def marker(tmp_path):
    """The file that a payload leaves; the codec `marking` leaves it when it is looked up."""
    marker = tmp_path / "it ran"

    def search(name):
        if name == "marking":
            marker.touch()
        return None

    codecs.register(search)
    yield marker
    codecs.unregister(search)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_a_file_runs(tmp_path, marker, payload):
    """Whatever a file asks to be called is refused with one line, and is not called."""
    pickled = payload(marker)
    for split in SPLITS:
        path = write_raw(tmp_path / "a.npz", **{split: npy(pickled)})
        assert "refused" in refusal(read_sketch_file, path)
        assert str(path) in refusal(load_dataset, tmp_path, options())
        assert not marker.exists()
    with contextlib.suppress(Exception):  # some end in an error, after their harm is done
        pickle.loads(pickled)
    assert marker.exists()


def test_an_array_saved_with_a_payload_in_it(tmp_path, marker):
    """The same in a file as `numpy.savez` itself writes it, that `numpy.load` would run."""
    payload = Calls(os.system, f"touch '{marker}'")
    path = write(tmp_path, valid=[random_sketch(np.random.default_rng(0), 5), payload])
    assert "system" in refusal(read_sketch_file, path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as file:
        file["valid"]
    assert marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        ("_codecs", "encode", "text", "utf-8"),
        ("_codecs", "encode", "text", "rot13"),
        ("_codecs", "decode", "text", "latin1"),
        ("numpy", "load", "x"),
        ("numpy", "frombuffer", "x"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "fromfile", "x"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("dataset", "read_sketch_file", "x"),
        ("numpy", "dtype", "V8"),
        ("numpy", "dtype", "i2,O"),
        ("numpy", "dtype", ["O"]),
        ("builtins", "getattr", "x", "y"),
        ("no such module", "x"),
        ("a\nb", "c\x1b[2J"),
    ],
    ids=ascii,
)
def test_names_beyond_arrays_are_refused(tmp_path, call):
    """Only what arrays of numbers need is admitted, of NumPy too; the rest is refused by name."""
    path = write_raw(tmp_path / "a.npz", test=npy(named(*call)))
    assert f"{path}: refused, its pickle asks for" in refusal(read_sketch_file, path)


def test_forged_memory(tmp_path):
    """A forged dtype must not turn the file's bytes into addresses of objects.

    NumPy's own `__setstate__` accepts such a state and crashes, or worse, when an entry is used;
    so it runs in a process of its own.
    """

    class Type:
        def __reduce__(self):  # objects that say they are none
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self):
            made = np._core.multiarray._reconstruct
            return made, (np.ndarray, (0,), b"b"), (1, (2,), Type(), False, b"A" * 16)

    path = write_raw(tmp_path / "a.npz", train=npy(pickle.dumps(Array(), protocol=2), 2))
    script = (
        "import sys, dataset\n"
        "try:\n"
        "    print(dataset.read_sketch_file(sys.argv[1]))\n"
        "except dataset.UserError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        cwd=Path(dataset.__file__).parent,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n")
