"""The Rec classifier: its training's promises, and what its directory may hold."""

import dataclasses
import json

import numpy as np
import pytest

import checkpoints
import dataset
import rec_classifier
import sketch_a_net
from doodles import write_doodles
from hparams import HParams
from rec_classifier import Options
from recognition import load_training_data
from sketch_a_net import SketchANet
from support import backend
from support.files import UserError

pytestmark = pytest.mark.slow
NAMES = ("fish", "tree")
TINY = Options(per_epoch=24, epochs=3, batch_size=8, learning_rate=0.002, width=2)  # 6 updates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_doodles(folder, categories=NAMES, train=25, valid=40, test=60)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return load_training_data(folder, NAMES, 0)


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    backend.make_deterministic(0)


def contents(folder):
    """Weights and metadata of a finished classifier."""
    arrays, made_of = checkpoints.read_arrays(folder / "best.npz")
    return arrays, made_of, json.loads((folder / "classifier.json").read_text())


def assert_same(one, other):
    (arrays, *metadata), (other_arrays, *other_metadata) = contents(one), contents(other)
    assert metadata == other_metadata and arrays.keys() == other_arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, other_arrays[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A classifier whose training nothing interrupted."""
    folder = tmp_path_factory.mktemp("classifiers") / "whole"
    rec_classifier.train(folder, data, NAMES, TINY)
    return folder


def test_what_a_training_leaves(whole, data):
    """Facts and best weights; nothing unfinished."""
    assert {path.name for path in whole.glob("[!.]*")} == {"classifier.json", "best.npz"}
    metadata = json.loads((whole / "classifier.json").read_text())
    assert metadata["categories"] == ["fish", "tree"] and metadata["data"] == data.fingerprint()
    assert metadata["options"] == dataclasses.asdict(TINY)
    classifier = rec_classifier.load(whole, NAMES)
    sketches = [data.splits["valid"].sketch(i) for i in range(len(data.splits["valid"]))]
    right = sketch_a_net.predict(classifier.network, sketches) == data.splits["valid"].category
    assert metadata["validation_accuracy"] == right.mean()
    assert 1 <= metadata["best_epoch"] <= metadata["epochs"] <= TINY.epochs


@pytest.fixture
def last_is_best(monkeypatch):
    """Each epoch counts as better than those before, so that best.npz has the last weights."""
    evaluate = SketchANet.evaluate

    def rising(network, *args, **options):
        evaluate(network, *args, **options)
        return {"loss": 0.0, "accuracy": int(network.optimizer.iterations) / 20}

    monkeypatch.setattr(SketchANet, "evaluate", rising)


class Stop:
    """Asks for the end of a training once, when it was asked so often."""

    def __init__(self, after):
        self.left = after

    def __call__(self):
        self.left -= 1
        return self.left == -1


def test_interrupted_or_killed(data, last_is_best, tmp_path, monkeypatch, capsys):
    """Whatever ends a run costs at most an epoch, and no bit of the last weights.

    Here it is stopped at the start, in a validation and in an epoch, where it is asked before
    each of the 6 updates of an epoch and its 2 batches of validation; then killed in writing.
    """
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert rec_classifier.train(whole, data, NAMES, TINY, workers=1).metadata["best_epoch"] == 3
    for count, epoch in ((0, 1), (6, 1), (9, 2)):
        stop = Stop(count)
        assert rec_classifier.train(stopped, data, NAMES, TINY, should_stop=stop) is None
        assert f"Interrupted in epoch {epoch};" in capsys.readouterr().out
        assert (stopped / "latest.npz").exists() and rec_classifier.load(stopped, NAMES) is None
    write = checkpoints.write_arrays

    def failing(path, arrays, meta):
        if path.name == "latest.npz":  # best.npz of the second epoch is written
            raise RuntimeError("killed")
        write(path, arrays, meta)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(checkpoints, "write_arrays", failing)
        rec_classifier.train(stopped, data, NAMES, TINY)
    _, meta = checkpoints.read_arrays(stopped / "latest.npz")
    assert len(meta["accuracies"]) == 1
    rec_classifier.train(stopped, data, NAMES, TINY, workers=3)
    assert_same(whole, stopped)


def accuracies(monkeypatch, values):
    """Lets validations come out as told; returns the weights at each of them."""
    seen = []

    def evaluate(network, *_, **__):
        seen.append({v.path: np.asarray(v) + 0 for v in network.weights})
        return {"loss": 0.0, "accuracy": np.float32(values[len(seen) - 1])}

    monkeypatch.setattr(SketchANet, "evaluate", evaluate)
    return seen


def test_the_best_is_kept_and_patience_ends(data, tmp_path, monkeypatch):
    """Four epochs without improvement, a tie being none, end it; the best weights stay.

    The best accuracy and the patience outlive interruptions.
    """
    seen = accuracies(monkeypatch, [0.5, 0.75, 0.7, 0.75, 0.6, 0.6, 0.9])
    options = dataclasses.replace(TINY, epochs=20, per_epoch=8)  # 2 updates an epoch
    assert rec_classifier.train(tmp_path, data, NAMES, options, should_stop=Stop(9)) is None
    assert len(seen) == 4
    metadata = rec_classifier.train(tmp_path, data, NAMES, options).metadata
    assert (metadata["epochs"], metadata["best_epoch"]) == (6, 2)
    assert metadata["validation_accuracy"] == 0.75
    for name, value in checkpoints.read_arrays(tmp_path / "best.npz")[0].items():
        np.testing.assert_array_equal(value, seen[1][name])
    assert any((seen[1][name] != seen[5][name]).any() for name in seen[1])


def test_nothing_left_to_improve(data, tmp_path, monkeypatch):
    """Once every validation sketch is recognised, training ends."""
    accuracies(monkeypatch, [0.5, 1.0])
    options = dataclasses.replace(TINY, per_epoch=8)
    assert rec_classifier.train(tmp_path, data, NAMES, options).metadata["epochs"] == 2


def accuracy(classifier, split):
    found = sketch_a_net.predict(classifier.network, [split.sketch(i) for i in range(len(split))])
    return (found == split.category).mean()


def test_it_learns_what_the_labels_say(folder, data, tmp_path):
    """Fish and trees are told apart after seconds; with shuffled labels, as well as by chance."""
    hparams = HParams(categories=NAMES)
    test = dataset.load_dataset(folder, hparams, scale_factor=1.0, splits=("test",)).splits["test"]
    options = dataclasses.replace(TINY, per_epoch=100, learning_rate=0.003, width=4)
    learnt = rec_classifier.train(tmp_path / "true", data, NAMES, options)
    assert accuracy(learnt, test) > 0.9
    rng = np.random.default_rng(0)
    splits = {
        name: dataclasses.replace(split, category=rng.permutation(split.category))
        for name, split in data.splits.items()
    }
    shuffled = dataclasses.replace(data, splits=splits)
    guessed = rec_classifier.train(tmp_path / "shuffled", shuffled, NAMES, options)
    assert abs(accuracy(guessed, test) - 0.5) < 0.25


def test_a_loss_that_explodes(data, tmp_path):
    """One line that says what to try, and no weights of it."""
    options = dataclasses.replace(TINY, learning_rate=1e38)
    with pytest.raises(UserError, match="loss is .* try a smaller learning_rate"):
        rec_classifier.train(tmp_path, data, NAMES, options)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["latest.npz"]  # of before the start


def test_the_fingerprint_knows_the_data(folder, data, tmp_path):
    """Another row, label, split or number of sketches is other data; the same is the same."""
    for name, split in data.splits.items():
        raw = [
            s for title in NAMES for s in dataset.read_sketch_file(folder / f"{title}.npz")[name]
        ]
        np.testing.assert_array_equal(split.rows, np.concatenate(raw))
    prints = {data.fingerprint()}
    assert load_training_data(folder, NAMES, 0).fingerprint() in prints
    prints.add(load_training_data(folder, NAMES, 20).fingerprint())
    prints.add(load_training_data(folder, NAMES[::-1], 0).fingerprint())
    (tmp_path / "fish.npz").write_bytes((folder / "fish.npz").read_bytes())
    for split in ("train", "valid"):
        arrays = dict(np.load(folder / "tree.npz", allow_pickle=True))
        arrays[split] = arrays[split].copy()
        arrays[split][3] = arrays[split][3] + np.array([1, 0, 0], np.int16)
        np.savez(tmp_path / "tree.npz", **arrays)
        prints.add(load_training_data(tmp_path, NAMES, 0).fingerprint())
    assert len(prints) == 5
    arrays["valid"] = arrays["valid"][:0]
    np.savez(tmp_path / "tree.npz", **arrays)
    with pytest.raises(UserError, match="no usable sketch in the valid split of tree"):
        load_training_data(tmp_path, NAMES, 0)


def copy(folder, to):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())


def edit_facts(**changes):
    def damage(folder):
        path = folder / "classifier.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def cut_weights(folder):
    path = folder / "best.npz"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "classifier.json").write_text("{"), "classifier.json: damaged"),
        (lambda f: (f / "classifier.json").write_text("[]"), "classifier.json: damaged"),
        (lambda f: (f / "classifier.json").write_text("{}"), "classifier.json: damaged"),
        (edit_facts(options={"depth": 3}), "classifier.json: damaged"),
        (edit_facts(options=dataclasses.asdict(TINY) | {"width": "a"}), "json: damaged"),
        (edit_facts(categories=["tree", "fish"]), "for other categories .tree, fish., not for"),
        (edit_facts(data="0"), "best.npz: does not belong to the classifier.json"),
        (lambda f: (f / "best.npz").unlink(), "best.npz: not found"),
        (cut_weights, "best.npz: damaged"),
    ],
)
def test_directories_that_are_refused(whole, tmp_path, damage, message):
    """Damaged, mixed up, or for other categories: one line that names the file or the reason."""
    copy(whole, tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        rec_classifier.load(tmp_path, NAMES)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_another_unfinished_training_is_refused(folder, data, tmp_path):
    """It is resumed with the same options and data only, and otherwise stays as it is."""
    rec_classifier.train(tmp_path, data, NAMES, TINY, should_stop=lambda: True)
    path = tmp_path / "latest.npz"
    before = path.read_bytes()
    other = dataclasses.replace(TINY, batch_size=4, seed=3)
    message = r"other batch_size \(was 8, is 4\), seed \(was 0, is 3\); repeat"
    with pytest.raises(UserError, match=message):
        rec_classifier.train(tmp_path, data, NAMES, other)
    with pytest.raises(UserError, match="with other data;"):
        rec_classifier.train(tmp_path, load_training_data(folder, NAMES, 20), NAMES, TINY)
    assert path.read_bytes() == before
    path.write_bytes(before[:-100])
    with pytest.raises(UserError, match="latest.npz: damaged"):
        rec_classifier.train(tmp_path, data, NAMES, TINY)
    path.write_bytes(before)
    arrays, meta = checkpoints.read_arrays(path)
    checkpoints.write_arrays(path, arrays, meta | {"accuracies": None})
    with pytest.raises(UserError, match="latest.npz: holds no training state .* delete it"):
        rec_classifier.train(tmp_path, data, NAMES, TINY)


def test_no_place_to_write(data, tmp_path):
    """A file where the directory is to be: an error that names it, before anything is trained."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/classifier: can't be written to"):
        rec_classifier.train(tmp_path / "file" / "classifier", data, NAMES, TINY)
