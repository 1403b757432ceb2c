"""sample.py: which sketches are corrupted how, what it leaves, and how it goes on."""

import json
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import HPARAMS

import checkpoints
import dataset
import sample
import utils
from checkpoints import RunState
from hparams import write_config
from model import SPGra2Seq
from support import sample_files
from support.files import UserError
from support.mask_seeds import RANDOM_SEED

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
OPTIONS = {"num_per_category": 6, "prob": 0.4, "batch_size": 8}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(data_dir, model_dir, tmp_path_factory):
    """A call that nothing interrupted."""
    folder = tmp_path_factory.mktemp("out") / "whole"
    sample.sample(data_dir, model_dir, folder, **OPTIONS)
    return folder


def test_what_is_left(whole):
    """Strokes, code and pictures of each sketch by category and row, galleries, metadata."""
    keys = [(0, i) for i in (0, 1, 3, 4, 5)] + [(1, i) for i in range(6)]
    names = {"samples.json", "gallery.png", "index.html", ".lock", ".manifest.json"}
    for category, index in keys:
        names |= {f"{category}_{index}.svg", f"{category}_{index}.png"}
        names |= {f"stroke_{category}_{index}.npy", f"code_{category}_{index}.npy"}
        strokes = np.load(whole / f"stroke_{category}_{index}.npy")
        assert strokes.dtype == np.float64 and strokes.shape[0] == 1 and strokes.shape[2] == 3
        assert strokes.shape[1] <= 70
        assert np.load(whole / f"code_{category}_{index}.npy").shape == (1, 5)
        xml.etree.ElementTree.parse(whole / f"{category}_{index}.svg")
        assert cv2.imread(str(whole / f"{category}_{index}.png")).shape == (225, 225, 3)
    assert set(files(whole)) == names
    metadata = json.loads((whole / "samples.json").read_text())
    assert metadata["counts"] == {"fish": 5, "tree": 6}
    assert metadata["prob"] == 0.4 and metadata["seed"] == 0 and metadata["scale_factor"] == 30.0
    assert "fish" in (whole / "index.html").read_text()


def codes_by_hand(data_dir, model_dir, masking="patch"):
    """Codes of a plain walk over the sketches, the seeds consumed one patch after the other."""
    seeds, position, codes = np.load(RANDOM_SEED), 0, {}
    model = checkpoints.load_model(model_dir)
    data = dataset.load_dataset(data_dir, HPARAMS, scale_factor=30.0, splits=("test",))
    split = data.splits["test"]
    erased = 0
    for i in range(len(split)):
        if split.index[i] >= OPTIONS["num_per_category"]:
            continue
        graph = utils.make_graph(
            split.sketch(i),
            graph_number=8,
            graph_picture_size=128,
            mask_prob=OPTIONS["prob"],
            seeds=seeds[position:],
            masking=masking,
        )
        position += graph.n_patches
        erased += len(graph.masked)
        mask = utils.graph_mask(graph.n_patches, graph.masked, 8)
        mu, _ = model.encode(graph.patches[None], mask[None])
        codes[int(split.category[i]), int(split.index[i])] = np.asarray(mu)
    assert erased > 10
    return codes


@pytest.mark.parametrize("masking", ["patch", "sketchhealer"])
def test_seeds_go_to_the_sketches_in_order(data_dir, model_dir, whole, tmp_path, masking):
    """The corrupted sketches are those of the published walk, whatever batches and threads."""
    folder = whole
    if masking != "patch":
        folder = tmp_path / "out"
        sample.sample(data_dir, model_dir, folder, **OPTIONS, masking=masking, pictures=())
    for (category, index), code in codes_by_hand(data_dir, model_dir, masking).items():
        found = np.load(folder / f"code_{category}_{index}.npy")
        np.testing.assert_allclose(found, code, atol=1e-4)  # another batch


def test_a_subset_loses_the_same_patches(data_dir, model_dir, whole, tmp_path):
    """Trees alone are corrupted and drawn as beside the fish, whatever number of threads."""
    sample.sample(data_dir, model_dir, tmp_path / "out", **OPTIONS, categories=("tree",), workers=3)
    names = [path.name for path in (tmp_path / "out").glob("*_*.npy")]
    assert len(names) == 12 and all("_1_" in name for name in names)
    for name in names:
        ours, theirs = np.load(tmp_path / "out" / name), np.load(whole / name)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4)  # other neighbours in the encoder


def test_interrupted_it_goes_on(data_dir, model_dir, whole, tmp_path, monkeypatch, capsys):
    """What is there stays, what is missing follows, and the sketches are the same."""
    write, written = sample_files.write_sample, []

    def stop(*args):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(args[1])
        write(*args)

    monkeypatch.setattr(sample, "write_sample", stop)
    with pytest.raises(KeyboardInterrupt):
        sample.sample(data_dir, model_dir, tmp_path / "out", **OPTIONS)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("stroke_*"))) == 4
    sample.sample(data_dir, model_dir, tmp_path / "out", **OPTIONS)
    assert "Going on: 4 of 11" in capsys.readouterr().out
    assert set(files(tmp_path / "out")) == set(files(whole))
    for path in whole.glob("stroke_*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    for path in whole.glob("code_*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_without_masks_no_seeds_are_needed(data_dir, model_dir, tmp_path):
    """--prob=0 reads no seed file, and a category's file alone will do."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tree.npz").write_bytes((data_dir / "tree.npz").read_bytes())
    metadata = sample.sample(
        tmp_path / "data",
        model_dir,
        tmp_path / "out",
        num_per_category=3,
        prob=0,
        random_seed=tmp_path / "absent.npy",
        categories=("tree",),
        pictures=("svg",),
        batch_size=4,
    )
    assert metadata["counts"] == {"tree": 3}
    assert (tmp_path / "out" / "1_2.svg").exists() and not list((tmp_path / "out").glob("1_*.png"))


def test_fewer_sketches_than_asked_for(data_dir, model_dir, tmp_path, capsys):
    """It says so and redraws what there is."""
    sample.sample(data_dir, model_dir, tmp_path / "out", prob=0, pictures=(), batch_size=8)
    assert "fish has 7 usable sketches, fewer than 2500" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("stroke_*"))) == 15


def test_a_model_without_scale_factor(data_dir, tmp_path, capsys):
    """An imported model gets it from the training sketches, and a note says so."""
    write_config(tmp_path / "model_config.json", HPARAMS.replace(max_seq_len=-1), None)
    checkpoints.save_best(tmp_path, SPGra2Seq(HPARAMS), RunState())
    metadata = sample.sample(
        data_dir, tmp_path, tmp_path / "out", num_per_category=2, prob=0, pictures=(), batch_size=4
    )
    data = dataset.load_dataset(data_dir, HPARAMS)
    assert metadata["scale_factor"] == data.scale_factor
    assert "no scale factor" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ("cat",)}, "no category 'cat', it has fish, tree"),
        ({"split": "tests"}, "split: 'tests' is not allowed"),
        ({"masking": "all"}, "masking: 'all' is not allowed; one of patch, sketchhealer"),
        ({"prob": 1.5}, "prob: 1.5 is not allowed"),
        ({"prob": float("nan")}, "prob: nan is not allowed"),
        ({"temperature": 0.0}, "temperature: 0.0 is not allowed"),
        ({"pictures": ("gif",)}, "pictures: 'gif' is not allowed"),
        ({"num_per_category": 0}, "num_per_category: 0 is not allowed"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed"),
        ({"batch_size": 10**9}, "batch_size: 1000000000 is not allowed; at most 65536"),
        ({"num_per_category": 10**400}, "num_per_category: 1000000"),
        ({"temperature": 1e-40}, "temperature: 1e-40 is not allowed; at least 0.001"),
        ({"temperature": 1e39}, "temperature: 1e\\+39 is not allowed; at most 100.0"),
        ({"temperature": float("nan")}, "temperature: nan is not allowed"),
        ({"seed": -1}, "seed: -1 is not allowed; at least 0"),
        ({"seed": 1.5}, "seed: 1.5 is not allowed; a whole number"),
        ({"workers": -3}, "workers: -3 is not allowed; at least 0"),
    ],
)
def test_wrong_options(data_dir, model_dir, tmp_path, options, message):
    """One line names the option, the value and what is allowed; nothing is written."""
    with pytest.raises(UserError, match=message) as error:
        sample.sample(data_dir, model_dir, tmp_path / "out", **(OPTIONS | options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_seeds_that_run_out(data_dir, model_dir, tmp_path):
    """A short seed file is an error before anything is drawn, never a wrap."""
    np.save(tmp_path / "short.npy", np.full(50, 0.5))
    with pytest.raises(UserError, match=r"holds 50 seeds, masking these sketches takes \d+"):
        sample.sample(
            data_dir, model_dir, tmp_path / "out", **OPTIONS, random_seed=tmp_path / "short.npy"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [np.zeros((3, 2)), np.array([0.5, 2.0]), np.arange(4), None])
def test_a_file_that_holds_no_seeds(data_dir, model_dir, tmp_path, content):
    """Another shape, other values, no file: one line that names it."""
    path = tmp_path / "seeds.npy"
    if content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match="seeds.npy"):
        sample.sample(data_dir, model_dir, tmp_path / "out", **OPTIONS, random_seed=path)


def test_other_samples_are_not_mixed_up(data_dir, model_dir, whole, tmp_path):
    """A directory of other samples is refused and left as it is."""
    before = files(whole)
    with pytest.raises(UserError, match="prob was 0.4, is 0.1"):
        sample.sample(data_dir, model_dir, whole, **(OPTIONS | {"prob": 0.1}))
    assert files(whole) == before
    (tmp_path / "stroke_0_0.npy").write_bytes(b"")
    with pytest.raises(UserError, match="stroke_0_0.npy: is not of this program"):
        sample.sample(data_dir, model_dir, tmp_path, **OPTIONS)


def test_places_that_do_not_work(data_dir, model_dir, tmp_path):
    """No model, no data, no place to write: one line each."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="model_config.json"):
        sample.sample(data_dir, tmp_path, tmp_path / "out", **OPTIONS)
    with pytest.raises(UserError, match="fish.npz: not found"):
        sample.sample(tmp_path, model_dir, tmp_path / "out", **OPTIONS)
    with pytest.raises(UserError, match="can't be written to"):
        sample.sample(data_dir, model_dir, tmp_path / "file" / "out", **OPTIONS)


def test_the_command_line(data_dir, model_dir, tmp_path):
    """The flags arrive, and nothing is said that does not concern the user."""
    command = [sys.executable, str(ROOT / "sample.py"), f"--data_dir={data_dir}"]
    command += [f"--model_dir={model_dir}", f"--output_dir={tmp_path / 'out'}", "--batch_size=4"]
    command += ["--num_per_category=2", "--prob=0.3", "--greedy", "--categories=[tree]"]
    done = subprocess.run([*command, "--pictures=none"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    metadata = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert metadata["greedy"] and metadata["categories"] == ["tree"] and metadata["pictures"] == []
