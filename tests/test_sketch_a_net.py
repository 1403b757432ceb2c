"""Sketch-a-Net: the article's layers and augmentation, its batches, its predictions."""

import numpy as np
import pytest

import drawing
import sketch_a_net
from doodles import write_doodles
from recognition import load_training_data
from sketch_a_net import SketchANet

pytestmark = pytest.mark.slow
NAMES = ("fish", "tree")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_doodles(folder, categories=NAMES, train=35, valid=1, test=1)
    return load_training_data(folder, NAMES, 0).splits["train"]


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
def test_augmentation_is_the_warp(change, split):
    """Mirrored, rotated about the centre, then shifted: as an independent warp has it."""
    picture = drawing.to_picture(split.sketch(0))
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


def test_batches_depend_on_seed_and_place_only(split):
    """Whatever the workers and wherever they are taken up, the batches are the same."""
    whole = take(sketch_a_net.training_batches(split, 9, seed=0, workers=1), 18)
    later = take(sketch_a_net.training_batches(split, 9, seed=0, first=9, workers=3), 9)
    for (pictures, labels), (others, other_labels) in zip(whole[9:], later, strict=True):
        np.testing.assert_array_equal(pictures, others)
        np.testing.assert_array_equal(labels, other_labels)
    other, _ = next(sketch_a_net.training_batches(split, 9, seed=1))
    assert (other != whole[0][0]).any()


def test_each_pass_has_every_sketch_once(split, monkeypatch):
    """In an order of its own, each sketch with its label and each time augmented otherwise."""
    monkeypatch.setattr(sketch_a_net, "augment", lambda picture, rng: (picture, rng.random()))
    monkeypatch.setattr(np, "stack", list)  # `draw` hands on what `augment` gives
    known = {drawing.to_picture(split.sketch(i)).tobytes(): i for i in range(len(split))}
    assert len(known) == len(split) == 70
    batches = take(sketch_a_net.training_batches(split, 8, seed=0, workers=1), 35)  # 4 passes
    found = [
        (known[picture.tobytes()], number, label)
        for pictures, labels in batches
        for (picture, number), label in zip(pictures, labels.tolist(), strict=True)
    ]
    assert all(label == split.category[i] for i, _, label in found)
    orders = [[i for i, *_ in found[start : start + 70]] for start in range(0, 280, 70)]
    assert all(sorted(order) == list(range(70)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert len({number for _, number, _ in found}) == 280


def test_predictions_are_in_order_and_all_there(split):
    """70 sketches, not a multiple of a batch, a blank one among them, one by one the same."""
    network = SketchANet(2, width=2)
    network.scores.kernel.assign(np.random.default_rng(0).normal(size=network.scores.kernel.shape))
    sketches = [split.sketch(i) for i in range(60)]
    sketches[30:30] = [np.zeros((0, 3)), np.array([[3.0, 4.0, 0.0]])] * 5
    counted = []
    found = sketch_a_net.predict(network, sketches, advance=counted.append, workers=2)
    pictures = np.stack([drawing.to_picture(sketch) for sketch in sketches])
    scores = np.concatenate([np.asarray(network(p)) for p in np.split(pictures, 10)])
    assert len(found) == sum(counted) == len(sketches) == 70
    # Scores that differ by rounding only may fall either way.
    chosen = scores[np.arange(70), found]
    assert (scores.max(axis=1) - chosen < 1e-5).all() and len(set(found.tolist())) == 2
    assert len(sketch_a_net.predict(network, [])) == 0
