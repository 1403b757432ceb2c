"""Sketch-a-Net: the article's layers, its training's promises, and what a directory may hold."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

import checkpoints
import dataset
import drawing
import sketch_a_net
from doodles import write_doodles
from hparams import HParams
from sketch_a_net import Options, SketchANet
from support.files import UserError

NAMES = ("fish", "tree")
TINY = Options(per_epoch=24, epochs=3, batch_size=8, learning_rate=0.002, width=2)  # 6 updates


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_doodles(folder, categories=NAMES, train=25, valid=40, test=60)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return sketch_a_net.load_training_data(folder, NAMES, 0)


@pytest.fixture(scope="module")
def test_split(folder):
    hparams = HParams(categories=NAMES)
    found = dataset.load_dataset(folder, hparams, scale_factor=1.0, splits=("test",))
    return found.splits["test"]


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    backend.make_deterministic(0)


def contents(folder):
    """Weights and facts of a finished classifier."""
    arrays, made_of = checkpoints.read_arrays(folder / "best.npz")
    return arrays, made_of, json.loads((folder / "classifier.json").read_text())


def assert_same(one, other):
    (arrays, *facts), (other_arrays, *other_facts) = contents(one), contents(other)
    assert facts == other_facts and arrays.keys() == other_arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, other_arrays[name], err_msg=name)


def test_the_layers_are_the_articles():
    """Sizes of the maps, and the parameters that the article's table of layers comes to."""
    network = SketchANet(250)
    x, sides = np.zeros((1, 225, 225, 1), np.float32), []
    for layer in network.convolutions[:-1]:
        x = layer(x)
        sides.append(x.shape[1:])
    assert sides == [
        (71, 71, 64),
        (35, 35, 64),
        (31, 31, 128),
        (15, 15, 128),
        (15, 15, 256),
        (15, 15, 256),
        (15, 15, 256),
        (7, 7, 256),
        (1, 1, 512),
    ]
    table = [(15, 1, 64), (5, 64, 128), (3, 128, 256), (3, 256, 256), (3, 256, 256)]
    table += [(7, 256, 512), (1, 512, 512), (1, 512, 250)]
    assert network.count_params() == sum(k * k * a * b + b for k, a, b in table)


def test_dropout_in_training_only():
    """Half of fc6 and half of fc7 are dropped, what is left is doubled; never in evaluation."""
    network = SketchANet(8, width=1)
    network.convolutions[8].kernel.assign(np.zeros((7, 7, 4, 8)))
    network.convolutions[8].bias.assign(np.ones(8))  # fc6 gives ones
    network.hidden.kernel.assign(np.eye(8))
    network.scores.kernel.assign(np.eye(8))
    pictures = np.zeros((100, 225, 225), np.uint8)
    np.testing.assert_array_equal(network(pictures), np.ones((100, 8)))
    dropped = np.asarray(network(pictures, training=True))
    assert set(dropped.ravel().tolist()) == {0.0, 4.0}
    # A unit stays with probability 1/4; six standard deviations of 800 draws.
    assert abs((dropped > 0).mean() - 0.25) < 6 * np.sqrt(0.25 * 0.75 / 800)
    assert (dropped != np.asarray(network(pictures, training=True))).any()


def test_only_ink_is_seen():
    """White paper is 0 to the network: without biases, a blank picture has no scores."""
    network = SketchANet(3, width=4)
    network.scores.kernel.assign(np.ones((32, 3)))
    blank = np.full((1, 225, 225), 255, np.uint8)
    assert not np.any(network(blank))
    assert np.any(network(255 - blank))


class Told:
    """Stands in for a random generator and says what it is told to."""

    def __init__(self, mirrored, degrees, shift):
        self.mirrored, self.values = mirrored, [degrees, np.array(shift)]

    def random(self):
        return 0.25 if self.mirrored else 0.75

    def uniform(self, low, high, size=None):
        value = self.values.pop(0)
        assert np.all(low <= value) and np.all(value <= high)
        return value


def warped(picture, mirrored, degrees, shift):
    """The same by going back from each pixel, bilinear, counterclockwise as seen."""
    side = len(picture)
    centre, angle = (side - 1) / 2, np.deg2rad(degrees)
    y, x = np.mgrid[:side, :side].astype(float)
    x, y = x - shift[0] * side - centre, y - shift[1] * side - centre
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    x, y = (-x if mirrored else x) + centre, y + centre
    padded = np.pad(picture.astype(float), 1, constant_values=255)
    x, y = np.clip(x + 1, 0, side), np.clip(y + 1, 0, side)
    i, j = y.astype(int), x.astype(int)
    v, u = y - i, x - j
    upper = padded[i, j] * (1 - u) + padded[i, j + 1] * u
    lower = padded[i + 1, j] * (1 - u) + padded[i + 1, j + 1] * u
    return upper * (1 - v) + lower * v


@pytest.mark.parametrize(
    "change",
    [
        (False, 0.0, (0.0, 0.0)),
        (True, 0.0, (0.0, 0.0)),
        (False, 5.0, (0.0, 0.0)),
        (False, 0.0, (0.125, -0.125)),
        (True, -4.0, (-0.1, 0.07)),
    ],
)
def test_augmentation_is_the_warp(change, data):
    """Mirrored, rotated about the centre, then shifted: as an independent warp has it."""
    picture = drawing.to_picture(data.train.sketch(0))
    found = sketch_a_net.augment(picture, Told(*change)).astype(float)
    expected = warped(picture, *change)
    # OpenCV interpolates at multiples of 1/32 pixel: half of that times the steepest edge.
    assert np.abs(found - expected).max() <= 2 * 255 / 64 + 1
    others = [warped(picture, not change[0], *change[1:]), warped(picture, False, -9, (0.05, 0))]
    for other in others:
        assert np.abs(found - other).mean() > 5 * np.abs(found - expected).mean() + 1


def test_augmentation_keeps_the_articles_bounds():
    """A lying T is mirrored half of the time, turned up to 5 degrees, shifted up to 28 pixels."""
    picture = np.full((225, 225), 255, np.uint8)
    picture[82:143, 111:114] = 0
    picture[111:114, 112:143] = 0  # an arm to the right of a bar through the centre
    shifts, degrees, mirrored = [], [], 0
    for seed in range(300):
        found = sketch_a_net.augment(picture, np.random.default_rng(seed))
        y, x = np.nonzero(found < 255)
        ink = 255 - found[y, x].astype(float)
        _, axes = np.linalg.eigh(np.cov(x, y, aweights=ink))
        middle = np.average([x, y], axis=1, weights=ink)
        skew = np.sum(ink * ((np.stack([x, y], 1) - middle) @ axes[:, 0]) ** 3)
        right = axes[:, 0] * np.sign(skew)  # where the arm points
        mirrored += right[0] < 0
        right = right if right[0] > 0 else -right
        degrees.append(np.rad2deg(np.arctan2(right[1], right[0])))
        shifts.append((middle - 112)[1])
    assert abs(mirrored - 150) < 6 * np.sqrt(300) / 2
    assert 4.5 < np.max(np.abs(degrees)) < 5.2
    assert -28.7 < np.min(shifts) < -27 and 27 < np.max(shifts) < 28.7  # 225 / 8, and the turn


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_batches_depend_on_seed_and_place_only(data):
    """Whatever the workers and wherever they are taken up, the batches are the same."""
    options = dataclasses.replace(TINY, batch_size=7)
    whole = take(sketch_a_net.training_batches(data.train, options, workers=1), 18)
    later = take(sketch_a_net.training_batches(data.train, options, first=9, workers=3), 9)
    for (pictures, labels), (others, other_labels) in zip(whole[9:], later, strict=True):
        np.testing.assert_array_equal(pictures, others)
        np.testing.assert_array_equal(labels, other_labels)
    other = dataclasses.replace(options, seed=1)
    assert (next(sketch_a_net.training_batches(data.train, other))[0] != whole[0][0]).any()


def test_each_pass_has_every_sketch_once(data, monkeypatch):
    """In an order of its own, each sketch with its label and each time augmented otherwise."""
    monkeypatch.setattr(sketch_a_net, "augment", lambda picture, rng: (picture, rng.random()))
    monkeypatch.setattr(np, "stack", list)  # `prepare` hands on what `augment` gives
    known = {drawing.to_picture(data.train.sketch(i)).tobytes(): i for i in range(len(data.train))}
    assert len(known) == len(data.train) == 50
    batches = take(sketch_a_net.training_batches(data.train, TINY, workers=1), 25)  # 4 passes
    found = [
        (known[picture.tobytes()], number, label)
        for pictures, labels in batches
        for (picture, number), label in zip(pictures, labels.tolist(), strict=True)
    ]
    assert all(label == data.train.category[i] for i, _, label in found)
    orders = [[i for i, *_ in found[start : start + 50]] for start in range(0, 200, 50)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert len({number for _, number, _ in found}) == 200


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A classifier whose training nothing interrupted."""
    folder = tmp_path_factory.mktemp("classifiers") / "whole"
    sketch_a_net.train(folder, data, NAMES, TINY)
    return folder


def test_what_a_training_leaves(whole, data):
    """Facts and best weights; nothing unfinished."""
    assert {path.name for path in whole.iterdir()} == {"classifier.json", "best.npz"}
    facts = json.loads((whole / "classifier.json").read_text())
    assert facts["categories"] == ["fish", "tree"] and facts["data"] == data.fingerprint
    assert facts["options"] == dataclasses.asdict(TINY)
    classifier = sketch_a_net.load(whole, NAMES)
    sketches = [data.valid.sketch(i) for i in range(len(data.valid))]
    right = sketch_a_net.predict(classifier.network, sketches) == data.valid.category
    assert facts["validation_accuracy"] == right.mean()
    assert 1 <= facts["best_epoch"] <= facts["epochs"] <= TINY.epochs


@pytest.mark.parametrize("at", [(0, 4), (6, 7)])
def test_interrupted_and_resumed(whole, data, tmp_path, at, capsys):
    """Stopped at the start, inside an epoch or between two: not a bit differs in the end."""
    stops = list(at)
    updates = 0

    def should_stop():
        nonlocal updates
        if stops and updates == stops[0]:
            stops.pop(0)
            return True
        updates += 1
        return False

    for update in at:
        assert sketch_a_net.train(tmp_path, data, NAMES, TINY, should_stop=should_stop) is None
        assert f"Interrupted at update {update};" in capsys.readouterr().out
        assert (tmp_path / "latest.npz").exists() and sketch_a_net.load(tmp_path, NAMES) is None
    sketch_a_net.train(tmp_path, data, NAMES, TINY, workers=3)
    assert_same(whole, tmp_path)


def test_killed_and_started_again(whole, data, tmp_path, monkeypatch):
    """What ends a run without a word costs at most an epoch, and no bit of the result."""
    updates = 0

    def killed():
        nonlocal updates
        updates += 1
        if updates == 9:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        sketch_a_net.train(tmp_path, data, NAMES, TINY, should_stop=killed)
    assert checkpoints.read_arrays(tmp_path / "latest.npz")[1]["state"]["updates"] == 6
    sketch_a_net.train(tmp_path, data, NAMES, TINY)
    assert_same(whole, tmp_path)


def accuracies(monkeypatch, data, values):
    """Lets validations come out as told; returns the weights at each of them."""
    seen = []
    labels = data.valid.category

    def predict(network, sketches, **_):
        assert len(sketches) == len(labels)
        seen.append({v.path: np.asarray(v) + 0 for v in network.weights})
        right = round(values[len(seen) - 1] * len(labels))
        return np.where(np.arange(len(labels)) < right, labels, -1)

    monkeypatch.setattr(sketch_a_net, "predict", predict)
    return seen


def test_the_best_is_kept_and_patience_ends(data, tmp_path, monkeypatch):
    """Four validations without improvement, a tie being none, end it; the best weights stay."""
    seen = accuracies(monkeypatch, data, [0.5, 0.75, 0.7, 0.75, 0.6, 0.6, 0.9])
    options = dataclasses.replace(TINY, epochs=20, per_epoch=8)
    facts = sketch_a_net.train(tmp_path, data, NAMES, options).facts
    assert (facts["epochs"], facts["best_epoch"], facts["validation_accuracy"]) == (6, 2, 0.75)
    for name, value in checkpoints.read_arrays(tmp_path / "best.npz")[0].items():
        np.testing.assert_array_equal(value, seen[1][name])
    assert any((seen[1][name] != seen[5][name]).any() for name in seen[1])


def test_nothing_left_to_improve(data, tmp_path, monkeypatch):
    """Once every validation sketch is recognised, training ends."""
    accuracies(monkeypatch, data, [0.5, 1.0])
    options = dataclasses.replace(TINY, per_epoch=8)
    assert sketch_a_net.train(tmp_path, data, NAMES, options).facts["epochs"] == 2


def accuracy(classifier, split):
    found = sketch_a_net.predict(classifier.network, [split.sketch(i) for i in range(len(split))])
    return (found == split.category).mean()


def test_it_learns_what_the_labels_say(data, test_split, tmp_path):
    """Fish and trees are told apart after seconds; with shuffled labels, as well as by chance."""
    options = dataclasses.replace(TINY, per_epoch=100, learning_rate=0.003, width=4)
    learnt = sketch_a_net.train(tmp_path / "true", data, NAMES, options)
    assert accuracy(learnt, test_split) > 0.9
    rng = np.random.default_rng(0)
    train_labels, valid_labels = map(rng.permutation, (data.train.category, data.valid.category))
    shuffled = data._replace(
        train=dataclasses.replace(data.train, category=train_labels),
        valid=dataclasses.replace(data.valid, category=valid_labels),
    )
    guessed = sketch_a_net.train(tmp_path / "shuffled", shuffled, NAMES, options)
    assert abs(accuracy(guessed, test_split) - 0.5) < 0.25


def test_a_loss_that_explodes(data, tmp_path):
    """One line that says what to try, and no weights of it."""
    options = dataclasses.replace(TINY, learning_rate=1e38)
    with pytest.raises(UserError, match="loss is .* try a smaller --learning_rate"):
        sketch_a_net.train(tmp_path, data, NAMES, options)
    assert not list(tmp_path.glob("*.npz"))


def test_predictions_are_in_order_and_all_there(whole, test_split):
    """70 sketches, not a multiple of a batch, a blank one among them, one by one the same."""
    network = sketch_a_net.load(whole, NAMES).network
    sketches = [test_split.sketch(i) for i in range(0, 120, 2)]
    sketches[30:30] = [np.zeros((0, 3)), np.array([[3.0, 4.0, 0.0]])] * 5
    counted = []
    found = sketch_a_net.predict(network, sketches, advance=lambda: counted.append(1), workers=2)
    pictures = np.stack([drawing.to_picture(sketch) for sketch in sketches])
    scores = np.concatenate([np.asarray(network(p)) for p in np.split(pictures, 10)])
    assert len(found) == len(counted) == len(sketches) == 70
    # Scores that differ by rounding only may fall either way.
    chosen = scores[np.arange(70), found]
    assert (scores.max(axis=1) - chosen < 1e-5).all() and len(set(found.tolist())) == 2
    assert len(sketch_a_net.predict(network, [])) == 0


def test_confusion_counts_pairs():
    """Row the true category, column the predicted one; each sketch counts once."""
    rng = np.random.default_rng(0)
    true, found = rng.integers(0, 4, (2, 500))
    true[true == 3] = 0  # a category without sketches
    counts = sketch_a_net.confusion(true, found, 4)
    pairs = Counter(zip(true.tolist(), found.tolist(), strict=True))
    assert all(counts[a, b] == pairs[a, b] for a in range(4) for b in range(4))
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(true, minlength=4))


def test_the_fingerprint_knows_the_data(folder, data, tmp_path):
    """Another row, label, split or number of sketches is other data; the same is the same."""
    for name, split in (("train", data.train), ("valid", data.valid)):
        raw = [
            s for title in NAMES for s in dataset.read_sketch_file(folder / f"{title}.npz")[name]
        ]
        np.testing.assert_array_equal(split.rows, np.concatenate(raw))
    prints = {data.fingerprint}
    assert sketch_a_net.load_training_data(folder, NAMES, 0).fingerprint in prints
    prints.add(sketch_a_net.load_training_data(folder, NAMES, 20).fingerprint)
    prints.add(sketch_a_net.load_training_data(folder, NAMES[::-1], 0).fingerprint)
    (tmp_path / "fish.npz").write_bytes((folder / "fish.npz").read_bytes())
    for split in ("train", "valid"):
        arrays = dict(np.load(folder / "tree.npz", allow_pickle=True))
        arrays[split] = arrays[split].copy()
        arrays[split][3] = arrays[split][3] + np.array([1, 0, 0], np.int16)
        np.savez(tmp_path / "tree.npz", **arrays)
        prints.add(sketch_a_net.load_training_data(tmp_path, NAMES, 0).fingerprint)
    assert len(prints) == 5
    arrays["valid"] = arrays["valid"][:0]
    np.savez(tmp_path / "tree.npz", **arrays)
    with pytest.raises(UserError, match="no usable sketch in the valid split of tree"):
        sketch_a_net.load_training_data(tmp_path, NAMES, 0)


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
        sketch_a_net.load(tmp_path, NAMES)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_other_data_are_refused(whole, data):
    """A classifier of other sketches than the present ones is named and not used."""
    classifier = sketch_a_net.load(whole, NAMES)
    sketch_a_net.require_data(classifier, data, whole)
    with pytest.raises(UserError, match="trained on other data; choose another"):
        sketch_a_net.require_data(classifier, data._replace(fingerprint="0"), whole)


def test_another_unfinished_training_is_refused(data, tmp_path):
    """It is gone on with under the same options and data only, and stays as it is."""
    sketch_a_net.train(tmp_path, data, NAMES, TINY, should_stop=lambda: True)
    path = tmp_path / "latest.npz"
    before = path.read_bytes()
    other = dataclasses.replace(TINY, batch_size=4, seed=3)
    message = r"other batch_size \(was 8, is 4\), seed \(was 0, is 3\); repeat"
    with pytest.raises(UserError, match=message):
        sketch_a_net.train(tmp_path, data, NAMES, other)
    with pytest.raises(UserError, match="with other data;"):
        sketch_a_net.train(tmp_path, data._replace(fingerprint="0"), NAMES, TINY)
    assert path.read_bytes() == before
    path.write_bytes(before[:-100])
    with pytest.raises(UserError, match="latest.npz: damaged"):
        sketch_a_net.train(tmp_path, data, NAMES, TINY)


def test_no_place_to_write(data, tmp_path):
    """A file where the directory shall be: one line, before anything is trained."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/classifier: can't be made"):
        sketch_a_net.train(tmp_path / "file" / "classifier", data, NAMES, TINY)


