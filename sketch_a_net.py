"""Sketch-a-Net, the classifier of the measure Rec: network, pictures, prediction.

The network is the single-scale, single-channel form of arXiv 1501.07873. It learns the original
training sketches, drawn by `drawing.to_picture` as generated sketches are.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

import drawing
from dataset import Split
from support.backend import keras, ops
from support.random_streams import CLASSIFIER_ORDER_STREAM, CLASSIFIER_SKETCH_STREAM
from support.workers import prefetch

SIDE = 225  # pixels of a picture, the article's
EVALUATION_BATCH = 64
INK = 4.0  # network input of full ink; a sketch's mean square is then about 1
MAX_DEGREES = 5.0  # of the article's augmentation
MAX_SHIFT = 32 / 256  # of a picture's side


class SketchANet(keras.Model):
    """Pictures to class scores (arXiv 1501.07873, one scale, one channel).

    Args:
        classes: number of categories.
        width: filters of the first layer, the others in proportion; 64 is the article's.
        seed: of the initial weights and of dropout.
    """

    def __init__(self, classes: int, width: int = 64, seed: int = 0):
        super().__init__(name="sketch_a_net")

        def convolution(number, filters, size, stride=1, padding="valid"):
            return keras.layers.Conv2D(
                filters,
                size,
                stride,
                padding,
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=10 * seed + number),
                name=f"conv{number}",
            )

        self.convolutions = [
            convolution(1, width, 15, stride=3),
            keras.layers.MaxPooling2D(3, 2),
            convolution(2, 2 * width, 5),
            keras.layers.MaxPooling2D(3, 2),
            convolution(3, 4 * width, 3, padding="same"),
            convolution(4, 4 * width, 3, padding="same"),
            convolution(5, 4 * width, 3, padding="same"),
            keras.layers.MaxPooling2D(3, 2),
            convolution(6, 8 * width, 7),
            keras.layers.Flatten(),
        ]
        self.hidden = keras.layers.Dense(
            8 * width,
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(seed=10 * seed + 7),
            name="fc7",
        )
        self.scores = keras.layers.Dense(
            classes,
            kernel_initializer="zeros",  # all categories are equally likely at the start
            name="scores",
        )
        self.dropout_seeds = keras.random.SeedGenerator(seed, name="dropout")
        self(np.zeros((1, SIDE, SIDE), np.uint8))

    def call(self, pictures, training=False):
        """Class scores (logits), float32 (B, classes).

        Args:
            pictures: uint8 (B, 225, 225), black (0) on white (255).
            training: whether dropout acts.
        """
        x = INK * (1 - ops.cast(pictures, "float32") / 255)[..., None]
        for layer in self.convolutions:
            x = layer(x)
        x = self.hidden(self._drop(x, training))
        return self.scores(self._drop(x, training))

    def _drop(self, x, training):
        return keras.random.dropout(x, 0.5, seed=self.dropout_seeds) if training else x


def training_batches(
    split: Split, batch_size: int, seed: int, *, first: int = 0, workers: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches: pictures uint8 (B, 225, 225), augmented, and labels int32 (B,).

    The sketches come in a new order in each pass over the split; a batch may reach over the end
    of a pass. Everything random is a function of (seed, pass, position in the split).

    Args:
        split: training sketches.
        batch_size: sketches of a batch, B.
        seed: of all random numbers.
        first: batches to leave out.
        workers: threads that draw pictures; None: half as many as there are cores.
    """

    def rng(*key):
        return np.random.default_rng([seed, *key])

    def members():
        number, position = divmod(first * batch_size, len(split))
        while True:
            order = rng(CLASSIFIER_ORDER_STREAM, number).permutation(len(split))
            for i in order[position:].tolist():
                yield number, i
            number, position = number + 1, 0

    def groups():
        stream = members()
        while True:
            yield list(itertools.islice(stream, batch_size))

    def draw(group):
        rngs = [rng(CLASSIFIER_SKETCH_STREAM, number, i) for number, i in group]
        pictures = [
            augment(drawing.to_picture(split.sketch(i), SIDE), own)
            for (_, i), own in zip(group, rngs, strict=True)
        ]
        return np.stack(pictures), split.category[[i for _, i in group]]

    return prefetch(draw, groups(), workers)


def evaluation_batches(
    sketches: Sequence[np.ndarray], workers: int | None = None
) -> Iterator[np.ndarray]:
    """Batches of at most 64 sketches as pictures, uint8 (B, 225, 225), in their order."""

    def draw(start):
        group = sketches[start : start + EVALUATION_BATCH]
        return np.stack([drawing.to_picture(sketch, SIDE) for sketch in group])

    return prefetch(draw, range(0, len(sketches), EVALUATION_BATCH), workers)


def augment(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors (or not), rotates and shifts a picture, the article's ways of making more of one.

    Mirrored left to right with probability 1/2; rotated about the centre by up to 5 degrees;
    shifted by up to 1/8 of the side along each axis. What comes in from outside is white.

    Args:
        picture: uint8 (side, side), ink black (0) on white (255).
        rng: gives four numbers.
    """
    side = len(picture)
    mirrored = rng.random() < 0.5
    degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * side
    centre = (side - 1) / 2
    change = cv2.getRotationMatrix2D((centre, centre), degrees, 1.0)
    if mirrored:
        change = change @ np.array([[-1, 0, side - 1], [0, 1, 0], [0, 0, 1]])
    change[:, 2] += shift
    return cv2.warpAffine(picture, change, (side, side), borderValue=255)


def predict(
    network: SketchANet,
    sketches: Sequence[np.ndarray],
    *,
    advance: Callable[[int], object] = lambda count: None,
    workers: int | None = None,
) -> np.ndarray:
    """The likeliest category of each sketch, int64 (n,).

    Args:
        network: gives the scores.
        sketches: n stroke-3 arrays (rows, 3) in any unit; one without rows is a blank picture.
        advance: called with the number of sketches after each batch.
        workers: see `training_batches`.

    Raises:
        ValueError: see `drawing.to_paths`.
    """
    found = [np.zeros(0, np.int64)]
    for pictures in evaluation_batches(sketches, workers):
        found.append(np.argmax(network.predict_on_batch(pictures), axis=1))
        advance(len(pictures))
    return np.concatenate(found)
