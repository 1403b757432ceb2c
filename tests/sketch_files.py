"""Small options, sketches and files for the tests of data and batches."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from dataset import SPLITS, Split
from hparams import HParams
from support.files import UserError


def options(**changes):
    """Small options: pictures of 16 pixels, 8 nodes, batches of 4."""
    small = {
        "categories": ("a",),
        "batch_size": 4,
        "graph_number": 8,
        "graph_picture_size": 16,
        "z_size": 5,
        "num_mixture": 3,
    }
    return HParams(**{**small, **changes})


def refusal(call, *args, **kwargs):
    """The text of the UserError that the call must raise, checked to be one printable line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text and text.splitlines() == [text] and text.isprintable()
    return text


def objects(entries):
    """A 1-D object array of anything."""
    array = np.empty(len(entries), object)
    for i, entry in enumerate(entries):
        array[i] = entry
    return array


def random_sketch(rng, n, dtype=np.int16):
    rows = np.column_stack([rng.integers(-60, 60, (n, 2)), rng.random(n) < 0.2])
    rows[-1, 2] = 1
    return rows.astype(dtype)


def random_sketches(seed, lengths, dtype=np.int16):
    rng = np.random.default_rng(seed)
    return [random_sketch(rng, n, dtype) for n in lengths]


def write(directory, category="a", **splits):
    """`<directory>/<category>.npz`; a split not given holds two sketches."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{category}.npz"
    given = {
        split: splits.get(split, random_sketches(place, (5, 6)))
        for place, split in enumerate(SPLITS)
    }
    arrays = {k: v if isinstance(v, np.ndarray) else objects(v) for k, v in given.items()}
    np.savez_compressed(path, **arrays)
    return path


def split_of(lengths=(6, 9, 4, 12, 7, 5, 8, 10, 3, 11, 6), seed=1):
    """A split whose sketches can be told apart by their first row alone."""
    sketches = random_sketches(seed, lengths)
    for i, sketch in enumerate(sketches):
        sketch[0, 0] = 100 + i
    return Split(
        rows=np.concatenate(sketches),
        ends=np.append(0, np.cumsum(lengths)),
        category=np.zeros(len(lengths), np.int32),
        index=np.arange(len(lengths), dtype=np.int32),
        scale_factor=31.7,
    )


def formula(raw, scale_factor):
    """The specification's: clip, make float32, divide in float32."""
    sketch = np.clip(raw, -1000, 1000).astype(np.float32)
    sketch[:, :2] /= np.float32(scale_factor)
    return sketch


def npy(pickled, *shape):
    """An object array, of one entry by default, as .npy holds it: a header and any bytes."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": shape or (1,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + pickled


def write_raw(path, **members):
    """An .npz of members given as bytes; a split not given holds two sound sketches."""
    sound = pickle.dumps(objects(random_sketches(0, (5, 6))), protocol=3)
    with zipfile.ZipFile(path, "w") as archive:
        for split in SPLITS:
            archive.writestr(f"{split}.npy", members.get(split, npy(sound, 2)))
    return path
