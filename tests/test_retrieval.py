"""Ret: exact ranks, ties included, and the right sketches compared."""

import json
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import fields
from pathlib import Path

import golden_data
import numpy as np
import pytest
from conftest import HPARAMS

import checkpoints
import dataset
import retrieval
import sample
from checkpoints import RunState
from hparams import write_config
from model import SPGra2Seq
from support import sample_files
from support.files import UserError

ROOT = Path(__file__).parents[1]


def brute_force(queries, codes, own):
    """Ranks by sorting all direct differences, ties in index order."""
    distances = np.square(queries[:, None] - codes[None]).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")
    return 1 + np.argmax(order == np.asarray(own)[:, None], axis=1)


def cases():
    """Names of the golden cases."""
    return [c["key"] for c in golden_data.text(golden_data.load("retrieval_200.npz"), "meta")]


@pytest.mark.parametrize("case", cases())
def test_ranks_are_the_published_ones(case):
    """Each looked-up code has its own at the published place, near and exact ties included."""
    arrays = golden_data.load("retrieval_200.npz")
    meta = next(c for c in golden_data.text(arrays, "meta") if c["key"] == case)
    originals, generated = arrays[f"real/{case}"], arrays[f"fake/{case}"]
    if "error" in meta:  # the published code divides by zero; every sketch counts here
        assert len(retrieval.ranks(generated, originals, np.arange(len(originals)))) == meta["N"]
        return
    count, nearest = meta["queries"], arrays[f"top50_index/{case}"][:, : meta["N"]]
    found = retrieval.ranks(generated[:count], originals, np.arange(count))
    own = nearest == np.arange(count)[:, None]
    expected = np.where(own.any(axis=1), 1 + own.argmax(axis=1), 51)
    np.testing.assert_array_equal(np.minimum(found, 51), expected)
    for top in (1, 10, 50):
        assert np.sum(found <= top) / meta["N"] == meta[f"top{top}"]
    if count == meta["N"]:
        assert retrieval.ret(generated, originals) == {t: meta[f"top{t}"] for t in (1, 10, 50)}


CODES = {
    "grid": lambda rng: rng.integers(-1, 2, (2, 150, 3)),
    "repeated": lambda rng: rng.standard_normal((2, 12, 5))[:, rng.integers(12, size=150)],
    "far away": lambda rng: 1e6 + rng.standard_normal((2, 150, 16)).astype(np.float32),
    # All within the rounding of a product: only direct differences tell them apart.
    "collapsed": lambda rng: 3 + rng.integers(0, 3, (2, 150, 16)) * 2.0**-50,
    "one outlier": lambda rng: np.concatenate(
        [rng.integers(0, 3, (2, 149, 4)) * 2.0**-40, np.full((2, 1, 4), 1e3)], axis=1
    ),
}


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("block", [1, 1000, 2**21])
def test_ranks_are_those_of_brute_force(name, block, monkeypatch):
    """Whatever the codes' scale and ties, and whatever the block size."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "PAIRS", max(1, block // 100))
    generated, originals = CODES[name](np.random.default_rng(0)).astype(np.float64)
    own = np.random.default_rng(1).integers(len(originals), size=100)
    found = retrieval.ranks(generated[:100], originals, own)
    np.testing.assert_array_equal(found, brute_force(generated[:100], originals, own))


def test_the_two_directions():
    """`generated` looks up generated sketches, `original` originals: not the same number."""
    rng = np.random.default_rng(0)
    originals = rng.standard_normal((60, 4))
    generated = 0.1 * originals + rng.standard_normal((60, 4)) * [1, 0.1, 0.1, 0.1]
    own = np.arange(60)
    ranks = {
        "generated": brute_force(generated, originals, own),
        "original": brute_force(originals, generated, own),
    }
    found = {way: retrieval.ret(generated, originals, (1, 7), direction=way) for way in ranks}
    assert found["generated"] != found["original"]
    for way in ranks:
        assert found[way] == {top: np.mean(ranks[way] <= top) for top in (1, 7)}


@pytest.mark.slow
def test_memory_grows_with_the_codes_only():
    """Twice the codes take about twice the memory, and far less than all their distances."""

    def peak(count):
        codes = np.random.default_rng(0).standard_normal((count, 16))
        tracemalloc.start()
        retrieval.ret(codes, codes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    held = peak(4000)
    assert held < 4 * 8 * retrieval.BLOCK < 4000 * 4000 * 8
    assert peak(8000) < 2 * held


@pytest.mark.parametrize(
    ("generated", "originals", "options", "message"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), {}, "can't be paired"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, "no codes"),
        (np.zeros(3), np.zeros(3), {}, "no codes"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), {}, "finite"),
        (np.zeros((2, 2)), np.zeros((2, 2)), {"direction": "both"}, "direction is one of"),
    ],
)
def test_codes_that_can_not_be_ranked(generated, originals, options, message):
    """A number is never made up."""
    with pytest.raises(ValueError, match=message):
        retrieval.ret(generated, originals, **options)


@pytest.fixture(scope="module")
def originals(data_dir):
    return dataset.load_dataset(data_dir, HPARAMS, scale_factor=30.0, splits=("test",)).splits[
        "test"
    ]


def write_strokes(folder, split, strokes_of):
    """Stroke files of all sketches of a split, `strokes_of` giving each one's."""
    folder.mkdir(exist_ok=True)
    for i in range(len(split)):
        np.save(sample_files.stroke_path(folder, split.key(i)), strokes_of(i)[None])
    return folder


@pytest.mark.slow
def test_originals_find_themselves(data_dir, model_dir, originals, tmp_path, capsys):
    """Samples that are the originals are found at rank 1 in both directions; others never are.

    It takes the right files, drawn and cropped as the originals are.
    """
    same = write_strokes(tmp_path / "same", originals, originals.sketch)
    for direction in retrieval.DIRECTIONS:
        result = retrieval.retrieval(data_dir, model_dir, same, direction=direction)
        assert result["ret"] == {"1": 1.0, "10": 1.0, "50": 1.0}
        assert result["queries"] == result["gallery"] == len(originals) == 15
        assert result["chance"] == {"1": 1 / 15, "10": 10 / 15, "50": 1.0}
    assert "has no samples.json" in capsys.readouterr().out
    other = write_strokes(
        tmp_path / "other", originals, lambda i: originals.sketch((i + 1) % len(originals))
    )
    result = retrieval.retrieval(data_dir, model_dir, other)
    assert result["ret"]["1"] == 0


@pytest.mark.slow
def test_a_part_of_the_samples(data_dir, model_dir, originals, tmp_path):
    """Samples are paired by category and row; the others stay in the gallery, or out of it.

    A sample without rows counts as a blank canvas.
    """
    folder = write_strokes(tmp_path / "part", originals, originals.sketch)
    for path in folder.glob("stroke_0_[0-4].npy"):
        path.unlink()
    np.save(folder / "stroke_1_3.npy", np.zeros((1, 0, 3)))
    result = retrieval.retrieval(data_dir, model_dir, folder)
    assert (result["queries"], result["gallery"]) == (11, 15)
    assert result["ret_per_category"]["fish"]["1"] == 1
    assert result["ret_per_category"]["tree"]["1"] == 7 / 8
    assert result["ret"]["1"] == 10 / 11
    reverse = retrieval.retrieval(data_dir, model_dir, folder, direction="original")
    assert (reverse["queries"], reverse["gallery"]) == (11, 11)


@pytest.fixture(scope="module")
def sampled(data_dir, model_dir, tmp_path_factory):
    """What sample.py leaves for two probabilities."""
    folder = tmp_path_factory.mktemp("sampled")
    for prob in (0.0, 0.4):
        sample.sample(
            data_dir,
            model_dir,
            folder / str(prob),
            num_per_category=4,
            prob=prob,
            batch_size=8,
            pictures=(),
        )
    return folder


@pytest.mark.slow
def test_results_can_be_collected(data_dir, model_dir, sampled):
    """ret.json has the same keys for all probabilities, and what reproduces it."""
    results = []
    for prob in ("0.0", "0.4"):
        retrieval.retrieval(data_dir, model_dir, sampled / prob)
        results.append(json.loads((sampled / prob / "ret.json").read_text()))
        assert results[-1]["prob"] == float(prob)
        assert results[-1]["counts"] == {"fish": 3, "tree": 4} and results[-1]["queries"] == 7
        assert {f.name for f in fields(sample_files.SampleMetadata)} < set(results[-1])
        assert results[-1]["model_options"]["z_size"] == HPARAMS.z_size
    assert list(results[0]) == list(results[1])


@pytest.mark.slow
def test_samples_of_something_else(data_dir, model_dir, sampled, originals, tmp_path):
    """Another model, other data, a sample of no sketch, a broken file: one line, no ret.json."""
    folder = tmp_path / "samples"
    shutil.copytree(sampled / "0.4", folder)
    (folder / "ret.json").unlink(missing_ok=True)

    def refused(message, data=data_dir, model=model_dir):
        with pytest.raises(UserError, match=message) as error:
            retrieval.retrieval(data, model, folder)
        assert "\n" not in str(error.value) and not (folder / "ret.json").exists()

    other = tmp_path / "model"
    other.mkdir()
    write_config(other / "model_config.json", HPARAMS, 30.0)
    checkpoints.save_best(other, SPGra2Seq(HPARAMS.replace(seed=1)), RunState())
    refused("were made by another model", model=other)
    changed = tmp_path / "data"
    shutil.copytree(data_dir, changed)
    arrays = dict(np.load(changed / "tree.npz", allow_pickle=True))
    arrays["test"][1] = arrays["test"][1][:-1]
    np.savez(changed / "tree.npz", **arrays)
    refused("were made from other data", data=changed)
    refused("fish.npz: not found", data=tmp_path)
    refused("model_config.json", model=tmp_path)

    for name in ("stroke_0_2.npy", "stroke_1_8.npy", "stroke_2_0.npy"):
        np.save(folder / name, originals.sketch(0)[None])
        refused(f"{name}: belongs to no sketch")
        (folder / name).unlink()
    np.save(folder / "stroke_1_7.npy", originals.sketch(0)[None])
    refused("stroke_1_7.npy: is none of the samples that samples.json speaks of")
    (folder / "stroke_1_7.npy").unlink()
    (folder / "stroke_a.npy").write_text("")
    refused("stroke_a.npy: is not a stroke_")
    (folder / "stroke_a.npy").unlink()
    path = folder / "stroke_0_0.npy"
    values = (np.nan, np.inf, 1e200)  # the last is too large to be drawn
    far = [np.full((1, 4, 3), value) for value in values]
    for broken in (np.zeros((1, 4, 2)), np.zeros((4, 3)), *far):
        np.save(path, broken)
        refused("stroke_0_0.npy: holds no sketch")
    path.write_bytes(path.read_bytes()[:40])
    refused("stroke_0_0.npy: damaged")
    (folder / "samples.json").write_text("{")
    refused("samples.json: damaged")
    metadata = json.loads((sampled / "0.4" / "samples.json").read_text())
    for name, value in {"num_per_category": None, "categories": "fish", "split": ["test"]}.items():
        (folder / "samples.json").write_text(json.dumps(metadata | {name: value}))
        refused(f"samples.json: damaged, {name} is")
    (folder / "samples.json").write_text("{}")
    refused("samples.json: does not say model_dir")
    for path in folder.iterdir():
        path.unlink()
    refused("holds no samples")
    folder.rmdir()
    refused("there is no such directory")


@pytest.mark.slow
def test_samples_that_are_not_complete(data_dir, model_dir, sampled, tmp_path, capsys):
    """A call of sample.py that was cut short is measured, and a note says so."""
    shutil.copytree(sampled / "0.4", tmp_path / "samples")
    (tmp_path / "samples" / "stroke_0_0.npy").unlink()
    retrieval.retrieval(data_dir, model_dir, tmp_path / "samples")
    assert "only 6 of 7 samples are there" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line(data_dir, model_dir, sampled):
    """A small table of percentages."""
    command = [sys.executable, str(ROOT / "retrieval.py"), f"--data_dir={data_dir}"]
    command += [f"--model_dir={model_dir}", f"--sample_dir={sampled / '0.0'}"]
    done = subprocess.run([*command, "--workers=2"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((sampled / "0.0" / "ret.json").read_text())
    rows = {
        line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if "%" not in line
    }
    assert rows["all"] == [f"{100 * share:.2f}" for share in result["ret"].values()]
    assert set(rows) >= {"fish", "tree", "chance"}


@pytest.mark.slow
def test_an_unknown_direction(data_dir, model_dir, sampled):
    """One line names those that are allowed, before anything is read."""
    with pytest.raises(UserError, match="direction: 'up' is not allowed; generated or original"):
        retrieval.retrieval(data_dir, model_dir, sampled / "0.0", direction="up")
