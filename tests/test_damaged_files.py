"""Files damaged at random: whatever is read is read or refused with one line, never a traceback.

All mutations are seeded, so a failure comes again; its message has the mutation's number.
"""

import io
import json
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import golden_data
import numpy as np
import pytest

import checkpoints
import dataset
import import_checkpoint
import rec_classifier
from checkpoints import RunState
from hparams import HParams, read_config
from support import mask_seeds, sample_files
from support.files import UserError

pytestmark = pytest.mark.slow
SPLITS = dataset.SPLITS
EXTREMES = [b"\x00", b"\xff", b"\x7f", b"\x80", b"(", b"]", b".", b"\xff" * 4, b"\0\0\0\x10"]
WRONG = [None, True, -1, 0, 2**63, 10**400, 0.5, float("nan"), float("inf"), -0.0, "", "\ud800\n"]
WRONG += [[], {}, [[]], ["a", 1], {"a": []}, "x" * 10_000, "../../x"]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: bytes replaced, put in, left out, repeated, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 30))
        kind = rng.randrange(7)
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(changed):
            changed[place] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice(EXTREMES)
            changed[place : place + len(value)] = value
        elif kind == 3:
            changed[place:place] = rng.choice(EXTREMES)
        elif kind == 4:
            del changed[place : place + length]
        elif kind == 5:
            changed[place:place] = changed[max(place - length, 0) : place]
        elif kind == 6 and rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def early(content: bytes, rng: random.Random) -> bytes:
    """Changes within the first 200 bytes, where a header is."""
    return mutated(content[:200], rng) + content[200:]


def in_a_member(content: bytes, rng: random.Random) -> bytes:
    """Changes one member of an archive, whose checksums then fit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    change = rng.choice((mutated, early))
    members[name] = change(members[name], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return file.getvalue()


def in_a_value(content: bytes, rng: random.Random) -> bytes:
    """Changes a value somewhere in a JSON file for one of another type or size."""
    values = json.loads(content)
    place = values
    while True:
        key = rng.choice(sorted(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    kind = rng.randrange(8)
    if kind == 0 and isinstance(place, dict):
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[rng.choice(("zeta", "\ud800", ""))] = rng.choice(WRONG)
    elif kind == 2:
        values = rng.choice((values, [values], rng.choice(WRONG)))
    else:
        place[key] = rng.choice(WRONG)
    return json.dumps(values).encode()


def survives(
    path: Path,
    read: Callable[[], object],
    count: int,
    ways: tuple,
    seed: int,
    named: str | None = None,
) -> int:
    """Reads `count` mutations of a file; how many were refused."""
    sound, refused = path.read_bytes(), 0
    read()
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        path.write_bytes(rng.choice(ways)(sound, rng))
        try:
            read()
        except UserError as error:
            text = str(error)
            assert text.splitlines() == [text] and text.isprintable(), (i, text)
            assert (named or str(path)) in text and len(text) < 1000, (i, text)
            refused += 1
        except Exception as error:
            raise AssertionError(f"mutation {i}: {type(error).__name__}: {error}") from error
    path.write_bytes(sound)
    read()
    return refused


def some_sketches(count=6):
    rng = np.random.default_rng(0)
    sketches = np.empty(count, object)
    for i in range(count):
        pens = rng.random(5 + i) < 0.2
        rows = np.column_stack([rng.integers(-60, 60, (5 + i, 2)), pens])
        sketches[i] = rows.astype(np.int16)
    return sketches


def pickled(protocol: int):
    """Files as NumPy wrote them at different times."""

    def write(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for split in SPLITS:
                file = io.BytesIO()
                header = {"descr": "|O", "fortran_order": False, "shape": (6,)}
                np.lib.format.write_array_header_1_0(file, header)
                file.write(pickle.dumps(some_sketches(), protocol=protocol))
                archive.writestr(f"{split}.npy", file.getvalue())

    return write


def numeric(path):
    np.savez(path, **dict.fromkeys(SPLITS, np.stack([some_sketches()[3]] * 4)))


def lists(path):
    entries = some_sketches()
    for i, sketch in enumerate(entries):
        entries[i] = sketch.tolist()
    np.savez(path, **dict.fromkeys(SPLITS, entries))


@pytest.mark.parametrize("write", [pickled(0), pickled(2), pickled(4), numeric, lists])
def test_sketch_files(tmp_path, write):
    """Archives, pickles of three protocols, arrays of numbers, lists."""
    path = tmp_path / "a.npz"
    write(path)
    hparams = HParams(categories=("a",), batch_size=4, num_mixture=3)

    def read():
        data = dataset.load_dataset(tmp_path, hparams)
        for split in data.splits.values():  # what is not refused can be used
            assert np.isfinite(split.rows).all() and len(split.rows) == split.ends[-1]
            assert np.isfinite(split.sketch(0)).all()

    refused = survives(path, read, 300, (mutated, in_a_member, in_a_member), 1, named=str(tmp_path))
    assert refused > 100


def test_generated_sketches(tmp_path):
    """stroke_*.npy."""
    path = tmp_path / "stroke_0_1.npy"
    np.save(path, some_sketches()[2][None].astype(np.float64))
    assert survives(path, lambda: sample_files.read_strokes(path), 800, (mutated, early), 2) > 350


def test_seeds(tmp_path):
    """random_seed.npy."""
    path = tmp_path / "random_seed.npy"
    np.save(path, np.random.default_rng(0).random(50, np.float32))
    assert survives(path, lambda: mask_seeds.read_seeds(path), 800, (mutated, early), 3) > 350


@pytest.mark.parametrize("name", [checkpoints.BEST, checkpoints.LATEST])
def test_checkpoints(tmp_path, name):
    """best.npz and latest.npz: archives, headers, values and the state in them."""
    path = tmp_path / name
    arrays = {"a/w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "step": np.array(3)}
    checkpoints.write_arrays(path, arrays, RunState(total_steps=4, best_loss=1.5).to_file())

    def read():
        arrays, state = checkpoints.read_arrays(path)
        state = RunState.from_file(state, path)
        assert state.total_steps >= 0 and not np.isnan(state.best_loss)

    assert survives(path, read, 600, (mutated, in_a_member, in_a_member), 4) > 280


def test_the_state_in_a_checkpoint(tmp_path):
    """Counters and losses of other types."""
    path = tmp_path / "latest.npz"
    sound = json.dumps(RunState(total_steps=4, best_loss=1.5).to_file()).encode()
    refused = 0
    for i in range(300):
        values = json.loads(in_a_value(sound, random.Random(i)))
        np.savez(path, meta=np.array(json.dumps(values).replace("\0", "")))
        try:
            state = RunState.from_file(checkpoints.read_arrays(path)[1], path)
            assert type(state.total_steps) is int and state.failures >= 0
        except UserError as error:
            assert str(path) in str(error) and str(error).isprintable()
            refused += 1
    assert refused > 150


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published checkpoint's para.npz and config."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("para.npz", "model_config.json"):
        (folder / name).write_bytes((golden_data.CHECKPOINT / name).read_bytes())
    return folder


def test_published_counters(published):
    """para.npz."""
    path = published / "para.npz"
    prefix = published / "vector-1"

    def read():
        state, _ = import_checkpoint._read_parameters(published, prefix)
        assert state.global_step >= 0 and not np.isnan(state.best_loss)

    assert survives(path, read, 500, (mutated, in_a_member, in_a_member), 5) > 230


def write_config(path):
    path.write_text(json.dumps({**HParams().model_dump(mode="json"), "scale_factor": 30.5}))


def write_samples(path):
    known = {
        "model_dir": "model", "model_sha256": "ab", "data_dir": "data", "data_sha256": "cd",
        "scale_factor": 30.5, "categories": ["fish", "tree"], "split": "test",
        "num_per_category": 3, "prob": 0.1, "masking": "patch", "random_seed_sha256": None,
        "temperature": 0.24, "greedy": False, "seed": 0, "batch_size": 8, "pictures": ["svg"],
        "max_seq_len": 70, "counts": {"fish": 3, "tree": 3},
    }  # fmt: skip
    path.write_text(json.dumps(known))


def write_facts(path):
    options = {
        "train_per_category": 0, "per_epoch": 10, "epochs": 8, "batch_size": 32,
        "learning_rate": 0.0005, "seed": 0, "width": 4,
    }  # fmt: skip
    metadata = {
        "categories": ["fish"], "data": "ab", "options": options, "validation_accuracy": 0.9,
        "best_epoch": 2, "epochs": 3,
    }  # fmt: skip
    path.write_text(json.dumps(metadata))


JSON_FILES = {
    "model_config.json": (write_config, read_config),
    "published.json": (write_config, lambda path: read_config(path, allow_unknown=True)),
    "samples.json": (write_samples, sample_files.read_metadata),
    "classifier.json": (write_facts, rec_classifier.read_metadata),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_files(tmp_path, name):
    """Bytes changed, and values of other types and sizes anywhere."""
    write, read = JSON_FILES[name]
    path = tmp_path / name
    write(path)
    ways = (mutated, in_a_value, in_a_value)
    assert survives(path, lambda: read(path), 600, ways, 6) > 210
    deep = b"[" * 10**5, b'{"a":' * 10**5, b'{"categories": ' + b"[" * 10**5, b"9" * 10**5
    for content in (*deep, b"", b"\xff\xfe", b"null", b"[]", b'"x"', b"3"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(path))) as caught:
            read(path)
        assert str(caught.value).isprintable()


def test_weights_that_are_not_finite(tmp_path, model_dir):
    """A checkpoint with a NaN in it is refused, not sampled from."""
    model = checkpoints.load_model(model_dir)
    arrays, meta = checkpoints.read_arrays(model_dir / checkpoints.BEST)
    arrays = {name: array.copy() for name, array in arrays.items()}
    for value in (np.nan, np.inf):
        arrays["decoder/fc"].flat[3] = value
        checkpoints.write_arrays(tmp_path / checkpoints.BEST, arrays, meta)
        with pytest.raises(UserError, match="decoder/fc has values that are not finite"):
            checkpoints.check_best(tmp_path, model)


def test_published_checkpoints(tmp_path):
    """TensorFlow's own files: few, for each takes a while; no variable is read of a wrong one."""
    pytest.importorskip("tensorflow")
    from model import SPGra2Seq

    hparams = read_config(golden_data.CHECKPOINT / "model_config.json", allow_unknown=True).hparams
    model = SPGra2Seq(hparams)
    expected = {
        import_checkpoint.published_name(v.path, hparams.dec_model): tuple(v.shape)
        for v in model.weights
    }
    for source in golden_data.CHECKPOINT.glob("vector-1.*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    prefix = tmp_path / "vector-1"
    path = tmp_path / "vector-1.index"

    def read():
        import_checkpoint._read_variables(prefix, expected)

    assert survives(path, read, 60, (mutated,), 7, named=str(prefix)) > 40
    path = tmp_path / "vector-1.data-00000-of-00001"
    assert survives(path, read, 10, (mutated,), 8, named=str(prefix)) > 5
