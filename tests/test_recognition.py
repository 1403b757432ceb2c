"""Rec: every sketch counted once, by a classifier that is trained once and belongs to the data."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import HPARAMS

import checkpoints
import dataset
import drawing
import gallery
import rec_classifier
import recognition
import sample
import sketch_a_net
from hparams import write_config
from rec_classifier import Options
from support import backend, cli
from support.files import UserError
from support.sample_files import SampleMetadata

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NAMES = ("fish", "tree")
TINY = Options(per_epoch=32, epochs=4, batch_size=8, learning_rate=0.003, width=4)


@pytest.fixture(scope="module")
def originals(data_dir):
    found = dataset.load_dataset(data_dir, HPARAMS, scale_factor=30.0, splits=("test",))
    return found.splits["test"]


@pytest.fixture(scope="module")
def classifier_dir(data_dir, tmp_path_factory):
    """A classifier that knows fish from trees, and no judgement of the originals yet."""
    folder = tmp_path_factory.mktemp("classifier")
    backend.make_deterministic(0)
    data = recognition.load_training_data(data_dir, NAMES, 0)
    rec_classifier.train(folder, data, NAMES, TINY)
    return folder


@pytest.fixture
def classifier(classifier_dir, tmp_path):
    """A copy of it, for tests that look at what is added or damage it."""
    return shutil.copytree(classifier_dir, tmp_path / "classifier")


@pytest.fixture
def samples(originals, tmp_path):
    """Trees for some of the fish, and sketches of no row and of one: 13 of 15 are there."""
    folder = tmp_path / "samples"
    folder.mkdir()
    for i in range(2, len(originals)):
        category, index = originals.key(i)
        sketch = originals.sketch(len(originals) - 1 if (category, index) < (0, 5) else i)
        np.save(folder / f"stroke_{category}_{index}.npy", sketch[None])
    np.save(folder / "stroke_1_0.npy", np.zeros((1, 0, 3)))
    np.save(folder / "stroke_1_1.npy", np.array([[[3.0, 4.0, 1.0]]]))
    return folder


def one_by_one(classifier_dir, pairs):
    """Counts of pairs (true category, sketch), each sketch drawn and judged alone."""
    network = rec_classifier.load(classifier_dir, NAMES).network
    counts = [[0, 0], [0, 0]]
    for category, sketch in pairs:
        scores = np.asarray(network(drawing.to_picture(sketch, 225)[None]))[0]
        counts[category][int(np.argmax(scores))] += 1
    return counts


def test_rec_is_what_counting_gives(data_dir, model_dir, originals, samples, classifier, capsys):
    """Every sketch counts, blank ones too, under the category of its file's name."""
    result = recognition.recognition(data_dir, model_dir, samples, classifier_dir=classifier)
    pairs = []
    for path in samples.glob("stroke_*.npy"):
        pairs.append((int(path.name.split("_")[1]), np.load(path)[0]))
    generated = one_by_one(classifier, pairs)
    theirs = one_by_one(
        classifier, [(originals.category[i], originals.sketch(i)) for i in range(len(originals))]
    )
    assert result["rec_confusion"] == generated and result["originals_confusion"] == theirs
    assert [sum(row) for row in generated] == [5, 8] and [sum(row) for row in theirs] == [7, 8]
    # The classifier knows the two apart, so the samples' own mistakes are what it finds.
    assert generated[0] == [3, 2] and theirs == [[7, 0], [0, 8]]
    right = generated[0][0] + generated[1][1]
    assert result["rec"] == right / 13 and result["rec_sketches"] == 13
    assert result["rec_per_category"] == {"fish": 3 / 5, "tree": generated[1][1] / 8}
    assert result["originals"] == 1 and result["originals_sketches"] == 15
    assert result["chance"] == 0.5 and result["confusion_categories"] == ["fish", "tree"]
    assert json.loads((samples / "rec.json").read_text()) == result
    rows = recognition.table(result).splitlines()
    assert [row.split() for row in rows[1:3]] == [
        ["fish", "60.00", "100.00"],
        ["tree", f"{100 * generated[1][1] / 8:.2f}", "100.00"],
    ]
    tables = {
        f"Generated: {right / 13:.2%} recognised": np.array(generated),
        "Originals: 100.00%": np.array(theirs),
    }
    assert (samples / "rec_confusion.png").read_bytes() == gallery.confusion_png(tables, NAMES)


def test_originals_as_samples_give_the_originals_accuracy(
    data_dir, model_dir, originals, classifier, tmp_path
):
    """Sketches that are drawn the same are judged the same, whatever they pass as."""
    for i in range(len(originals)):
        category, index = originals.key(i)
        np.save(tmp_path / f"stroke_{category}_{index}.npy", originals.sketch(i)[None])
    # A classifier that makes mistakes: one whose scores are those of noise.
    path = classifier / "best.npz"
    arrays, made_of = checkpoints.read_arrays(path)
    shape = arrays["sketch_a_net/scores/kernel"].shape
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    arrays["sketch_a_net/scores/kernel"] = noise
    arrays["sketch_a_net/scores/bias"] = np.zeros(shape[1], np.float32)
    checkpoints.write_arrays(path, arrays, made_of)
    result = recognition.recognition(data_dir, model_dir, tmp_path, classifier_dir=classifier)
    assert result["rec_confusion"] == result["originals_confusion"]
    assert result["rec"] == result["originals"] < 1
    assert result["rec_per_category"] == result["originals_per_category"]


@pytest.fixture
def counted(monkeypatch):
    """How many sketches each call of `predict` judged."""
    calls, predict = [], sketch_a_net.predict

    def counting(network, sketches, **options):
        calls.append(len(sketches))
        return predict(network, sketches, **options)

    monkeypatch.setattr(sketch_a_net, "predict", counting)
    return calls


def test_the_originals_are_judged_once(
    data_dir, model_dir, samples, classifier, counted, monkeypatch, tmp_path
):
    """Neither trained nor judged again for other samples, unless weights or originals change."""
    monkeypatch.setattr(rec_classifier, "train", None)
    first = recognition.recognition(data_dir, model_dir, samples, classifier_dir=classifier)
    (samples / "stroke_1_0.npy").unlink()
    second = recognition.recognition(data_dir, model_dir, samples, classifier_dir=classifier)
    assert counted == [13, 15, 12]
    assert first["originals_confusion"] == second["originals_confusion"]
    (classifier / "test.npz").write_text("")  # damaged: as if it were not there
    again = recognition.recognition(data_dir, model_dir, samples, classifier_dir=classifier)
    assert counted == [13, 15, 12, 12, 15]
    assert first["originals_confusion"] == again["originals_confusion"]

    weights = classifier / "best.npz"
    arrays, made_of = checkpoints.read_arrays(weights)
    bias = arrays["sketch_a_net/scores/bias"]
    arrays["sketch_a_net/scores/bias"] = bias + np.array([100.0, 0.0], np.float32)
    checkpoints.write_arrays(weights, arrays, made_of)
    third = recognition.recognition(data_dir, model_dir, samples, classifier_dir=classifier)
    assert third["originals_confusion"] == [[7, 0], [8, 0]]

    changed = shutil.copytree(data_dir, tmp_path / "data")
    arrays = dict(np.load(changed / "tree.npz", allow_pickle=True))
    arrays["test"] = arrays["test"][:-1]
    np.savez(changed / "tree.npz", **arrays)
    (samples / "stroke_1_7.npy").unlink()
    fourth = recognition.recognition(changed, model_dir, samples, classifier_dir=classifier)
    assert fourth["originals_confusion"] == [[7, 0], [7, 0]]


def test_the_classifier_lands_beside_the_model(data_dir, samples, tmp_path, counted, capsys):
    """By default; interrupted, the same call goes on; other options than its own are noted."""
    model = tmp_path / "model"
    model.mkdir()
    write_config(model / "model_config.json", HPARAMS, 30.0)
    (model / "best.npz").write_bytes(b"not looked into")
    options = dataclasses.replace(TINY, epochs=1)

    class Interrupted(cli.Interruption):
        def __init__(self):
            self.requested = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "Interruption", Interrupted)
        assert recognition.recognition(data_dir, model, samples, options=options) is None
    assert not (samples / "rec.json").exists()
    assert (model / "classifier" / "latest.npz").exists()
    result = recognition.recognition(data_dir, model, samples, options=options)
    assert "Resuming the classifier" in capsys.readouterr().out
    assert result["classifier_dir"] == str(model / "classifier")
    assert result["classifier"]["options"] == dataclasses.asdict(options)
    assert counted == [13, 15]  # the samples, the originals
    recognition.recognition(data_dir, model, samples, options=dataclasses.replace(options, seed=7))
    assert "Note: the classifier was trained with seed=0." in capsys.readouterr().out


def test_results_can_be_collected(data_dir, model_dir, classifier, tmp_path):
    """rec.json has the same keys for all probabilities and categories, and what reproduces it."""
    results = []
    for prob, categories in ((0.0, None), (0.4, ("tree",))):
        folder = tmp_path / str(prob)
        sample.sample(
            data_dir,
            model_dir,
            folder,
            num_per_category=4,
            prob=prob,
            batch_size=8,
            pictures=(),
            categories=categories,
        )
        recognition.recognition(data_dir, model_dir, folder, classifier_dir=classifier)
        results.append(json.loads((folder / "rec.json").read_text()))
        assert results[-1]["prob"] == prob
        assert {field.name for field in dataclasses.fields(SampleMetadata)} < set(results[-1])
    assert list(results[0]) == list(results[1])
    assert results[0]["rec_per_category"].keys() == results[1]["rec_per_category"].keys()
    assert results[0]["rec_sketches"] == sum(results[0]["counts"].values()) == 7
    assert results[1]["rec_per_category"]["fish"] is None and results[1]["rec_sketches"] == 4
    assert results[1]["originals_sketches"] == 15


def test_what_is_refused(data_dir, model_dir, samples, classifier, tmp_path):
    """A classifier of other data or categories, damaged files: one line, and no rec.json."""

    def refused(message, data=data_dir, model=model_dir):
        with pytest.raises(UserError, match=message) as error:
            recognition.recognition(data, model, samples, classifier_dir=classifier)
        assert "\n" not in str(error.value) and not (samples / "rec.json").exists()

    changed = shutil.copytree(data_dir, tmp_path / "data")
    arrays = dict(np.load(changed / "tree.npz", allow_pickle=True))
    arrays["train"][0] = arrays["train"][0][:-1]
    np.savez(changed / "tree.npz", **arrays)
    refused("holds a classifier trained on other data", data=changed)
    other = shutil.copytree(model_dir, tmp_path / "model")
    write_config(other / "model_config.json", HPARAMS.replace(categories=NAMES[::-1]), 30.0)
    for path in samples.glob("stroke_*"):
        if path.name not in ("stroke_0_0.npy", "stroke_1_0.npy"):
            path.unlink()
    refused("for other categories .fish, tree., not for tree, fish", model=other)
    (classifier / "classifier.json").write_text("")
    refused("classifier.json: damaged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not allowed; at least 1"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed; at least 1"),
        ({"per_epoch": 0}, "per_epoch: 0 is not allowed; at least 1"),
        ({"train_per_category": -1}, "train_per_category: -1 is not allowed; at least 0"),
        ({"seed": -1}, "seed: -1 is not allowed; at least 0"),
        ({"seed": 2**32}, "seed: 4294967296 is not allowed; at most 4294967295"),
        ({"learning_rate": 0.0}, "learning_rate: 0.0 is not allowed; above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not allowed; above 0"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    """One line names the option, the value and what is allowed, before anything is read."""
    with pytest.raises(UserError, match=message):
        recognition.recognition(tmp_path, tmp_path, tmp_path, options=Options(**options))


def test_the_command_line(data_dir, model_dir, samples, classifier):
    """A small table of percentages; a mistake is one line and exit status 1."""
    command = [sys.executable, str(ROOT / "recognition.py"), f"--data_dir={data_dir}"]
    command += [f"--model_dir={model_dir}", f"--sample_dir={samples}"]
    command += [f"--classifier_dir={classifier}", "--workers=2"]
    done = subprocess.run([*command, "--epochs=3"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "trained with per_epoch=32, epochs=4" in done.stdout
    result = json.loads((samples / "rec.json").read_text())
    assert recognition.table(result) in done.stdout
    assert "13 generated and 15 original sketches" in done.stdout
    done = subprocess.run([*command, "--epochs=0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.startswith("recognition.py: epochs: 0 is not allowed")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_from_outside(data_dir, model_dir, samples, tmp_path, number):
    """Exit status 130, the training's state kept, and no traceback."""
    command = [sys.executable, str(ROOT / "recognition.py"), f"--data_dir={data_dir}"]
    command += [f"--model_dir={model_dir}", f"--sample_dir={samples}", "--batch_size=1"]
    # An epoch that does not end before the signal comes, however slow the machine is.
    command += [f"--classifier_dir={tmp_path / 'new'}", "--per_epoch=100000000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    latest = tmp_path / "new" / "latest.npz"
    try:
        while not latest.exists():  # written at the start, when signals are handled
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(number)
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()  # where it did not hear: it would go on for hours
    assert process.returncode == 130 and "Traceback" not in errors
    assert "Interrupted in epoch 1;" in output
    assert latest.exists() and not (samples / "rec.json").exists()


def test_a_request_at_the_last_moment(data_dir, model_dir, samples, tmp_path, monkeypatch):
    """One that comes when the training has just ended is heard, and the classifier kept."""
    train, requests = rec_classifier.train, []

    class Noted(cli.Interruption):
        def __init__(self):
            super().__init__()
            requests.append(self)

    def trained(*args, **options):
        classifier = train(*args, **options)
        requests[-1].requested = True
        return classifier

    monkeypatch.setattr(cli, "Interruption", Noted)
    monkeypatch.setattr(rec_classifier, "train", trained)
    arguments = {"classifier_dir": tmp_path / "new", "options": dataclasses.replace(TINY, epochs=1)}
    assert recognition.recognition(data_dir, model_dir, samples, **arguments) is None
    assert not (samples / "rec.json").exists()
    assert recognition.recognition(data_dir, model_dir, samples, **arguments)["rec_sketches"] == 13
    assert len(requests) == 1
