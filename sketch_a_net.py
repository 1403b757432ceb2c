"""Sketch-a-Net, the classifier behind the measure Rec: network, training, directory, judgement.

The network is the single-scale, single-channel form of arXiv 1501.07873. It learns the original
training sketches, drawn by `drawing.to_picture` as generated sketches are.

A classifier directory holds `classifier.json` (categories, options, data, validation accuracy)
and `best.npz` (the weights of the best validation) of a finished classifier, or `latest.npz` (the
whole training state) of one that is being trained.
"""

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

import checkpoints
import dataset
import drawing
from dataset import Split
from hparams import HParams
from support.backend import keras, ops
from support.files import UserError, is_of_type, one_line, read_json, write_json
from support.workers import prefetch

FACTS_NAME = "classifier.json"
SIDE = 225  # pixels of a picture, the article's
MAX_WIDTH = 4096  # filters of the first layer
PATIENCE = 4  # validations in a row without improvement
VALIDATED = 250  # validation sketches of a category: enough to compare epochs by
EVALUATION_BATCH = 64
WARM_UP = 0.05  # share of the updates in which the learning rate rises
INK = 4.0  # network input of full ink; a sketch's mean square is then about 1
MOST_DEGREES = 5.0  # of the article's augmentation
MOST_SHIFT = 32 / 256  # of a picture's side
# First entries of the random streams' keys.
ORDER_STREAM, SKETCH_STREAM = 0, 1


@dataclass(frozen=True)
class Options:
    """How a classifier is trained.

    Attributes:
        train_per_category: the first so many training sketches of each category; 0: all.
        per_epoch: training sketches per category between two validations. Each epoch goes on
            in the shuffled training set where the one before stopped.
        epochs: most epochs; the learning rate falls to 0 over them.
        batch_size: sketches of an update.
        learning_rate: highest of the run.
        seed: of all random numbers.
        width: filters of the first layer, the others in proportion; 64 is the article's.
    """

    train_per_category: int = 0
    per_epoch: int = 1000
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 0.0005
    seed: int = 0
    width: int = 64


class TrainingData(NamedTuple):
    """Original sketches that a classifier is made with.

    Attributes:
        train: training sketches.
        valid: validation sketches.
        fingerprint: a checksum of both.
        warnings: what was left out, a line each.
    """

    train: Split
    valid: Split
    fingerprint: str
    warnings: tuple[str, ...]


class Classifier(NamedTuple):
    """A trained network and what is known about it.

    Attributes:
        network: with the best weights.
        facts: categories, options, data (fingerprint), validation_accuracy, best_epoch, epochs.
    """

    network: "SketchANet"
    facts: dict


@dataclass
class State:
    """Where a training run is.

    Attributes:
        updates: made in all.
        epoch: epochs made and validated.
        best_accuracy: highest of a validation, -1 before the first.
        best_epoch: epochs that the best weights have behind them.
        failures: validations in a row without improvement.
    """

    updates: int = 0
    epoch: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    failures: int = 0


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


def train(
    classifier_dir: str | Path,
    data: TrainingData,
    categories: Sequence[str],
    options: Options,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    workers: int | None = None,
) -> Classifier | None:
    """Trains a classifier, from the start or from where a run was interrupted.

    It ends after `options.epochs` epochs, after `PATIENCE` validations in a row without
    improvement, or once every validation sketch is recognised. On a CPU, with deterministic
    operations, the result is the same to the last bit whether interrupted or not, and whatever
    the workers.

    Args:
        classifier_dir: takes the files.
        data: from `load_training_data`.
        categories: names, in the order of `Split.category`.
        options: see `Options`.
        should_stop: asked before each update; true saves the training state and ends the call.
        workers: threads that draw pictures; None: half as many as there are cores.

    Returns:
        The classifier, with its best weights, or None where `should_stop` ended the call.

    Raises:
        UserError: another run's state in the directory; a damaged or unwritable file; a loss
            that is not finite.
    """
    folder = Path(classifier_dir)
    best_path, latest_path = folder / checkpoints.BEST, folder / checkpoints.LATEST
    made_of = {
        "categories": list(categories),
        "data": data.fingerprint,
        "options": asdict(options),
    }
    steps = max(1, options.per_epoch * len(categories) // options.batch_size)
    network = SketchANet(len(categories), options.width, options.seed)
    optimizer = _optimizer(options, steps * options.epochs)
    optimizer.build(network.trainable_variables)
    network.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    variables = [*network.weights, network.dropout_seeds.state, *optimizer.variables]
    state = State()
    if latest_path.exists():
        arrays, meta = checkpoints.read_arrays(latest_path)
        _check_same(meta, made_of, latest_path)
        checkpoints.assign(variables, arrays, latest_path)
        state = _as_state(meta, latest_path)
        print(f"Resuming the classifier in {folder} at update {state.updates}.")
    else:
        _make_folder(folder)

    def save():
        values = checkpoints.values_of(variables, latest_path)
        checkpoints.write_arrays(latest_path, values, made_of | {"state": asdict(state)})

    validated = data.valid.first_of_each(VALIDATED)
    sketches, labels = [data.valid.sketch(i) for i in validated], data.valid.category[validated]
    batches = training_batches(data.train, options, first=state.updates, workers=workers)
    with contextlib.closing(batches):
        while not _has_ended(state, options):
            print(f"Epoch {state.epoch + 1}/{options.epochs}", flush=True)
            to_do = (state.epoch + 1) * steps - state.updates
            if not _make_updates(network, batches, to_do, state, should_stop):
                save()
                print(f"Interrupted at update {state.updates}; the same call goes on.")
                return None
            accuracy = float((predict(network, sketches, workers=workers) == labels).mean())
            state.epoch += 1
            if accuracy > state.best_accuracy:
                state.best_accuracy, state.best_epoch, state.failures = accuracy, state.epoch, 0
                best = checkpoints.values_of(network.weights, best_path)
                checkpoints.write_arrays(best_path, best, made_of)
                said = "the best so far, saved"
            else:
                state.failures += 1
                said = (
                    f"no improvement on {state.best_accuracy:.2%} ({state.failures} of "
                    f"{PATIENCE} in a row)"
                )
            print(f"Validation: {accuracy:.2%} recognised; {said}", flush=True)
            save()
    facts = made_of | {
        "validation_accuracy": state.best_accuracy,
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
    }
    write_json(folder / FACTS_NAME, facts)
    latest_path.unlink(missing_ok=True)
    return load(folder, categories)


def load(classifier_dir: str | Path, categories: Sequence[str]) -> Classifier | None:
    """The finished classifier of a directory, or None where there is none.

    Raises:
        UserError: it is for other categories, or a file is damaged or missing.
    """
    folder = Path(classifier_dir)
    path, weights = folder / FACTS_NAME, folder / checkpoints.BEST
    if not path.exists():
        return None
    facts, options = read_facts(path)
    found = facts["categories"]
    if found != list(categories):
        raise UserError(
            f"{folder} holds a classifier for other categories ({_listed(found)}), not for "
            f"{_listed(categories)}; choose another --classifier_dir"
        )
    network = SketchANet(len(categories), options.width, options.seed)
    arrays, made_of = checkpoints.read_arrays(weights)
    if any(made_of.get(name) != facts[name] for name in ("categories", "data", "options")):
        raise UserError(f"{weights}: does not belong to the {FACTS_NAME} beside it")
    checkpoints.assign(network.weights, arrays, weights)
    return Classifier(network, facts)


def read_facts(path: Path) -> tuple[dict[str, Any], Options]:
    """What classifier.json says, and the options in it.

    Raises:
        UserError: it is missing or damaged.
    """
    facts = read_json(path)
    kinds = {"categories": list[str], "data": str, "validation_accuracy": float, "epochs": int}
    kinds["options"] = dict
    if not isinstance(facts, dict):
        raise UserError(f"{path}: damaged, no facts about a classifier")
    for name, kind in kinds.items():
        if not is_of_type(facts.get(name), kind):
            raise UserError(f"{path}: damaged, {name} is {facts.get(name)!r:.60}")
    options = facts["options"]
    for field in fields(Options):
        if not is_of_type(options.get(field.name), field.type):
            raise UserError(f"{path}: damaged, {field.name} is {options.get(field.name)!r:.60}")
    if len(options) != len(fields(Options)) or not 0 < options["width"] <= MAX_WIDTH:
        raise UserError(f"{path}: damaged, its options are {options!r:.60}")
    return facts, Options(**options)


def require_data(classifier: Classifier, data: TrainingData, classifier_dir: str | Path) -> None:
    """Raises UserError unless the classifier was trained on these data."""
    if classifier.facts["data"] != data.fingerprint:
        raise UserError(
            f"{classifier_dir} holds a classifier trained on other data; choose another "
            "--classifier_dir"
        )


def load_training_data(
    data_dir: str | Path, categories: Sequence[str], train_per_category: int
) -> TrainingData:
    """Reads what a classifier is trained and validated on, sketches of any length.

    Args:
        data_dir: holds `<category>.npz`.
        categories: names.
        train_per_category: the first so many training sketches of each; 0: all.

    Raises:
        UserError: a missing or broken file, a category without training or validation sketches.
    """
    hparams = HParams(categories=tuple(categories), num_per_category=train_per_category)
    data = dataset.load_dataset(data_dir, hparams, scale_factor=1.0, splits=("train", "valid"))
    for name, split in data.splits.items():
        for category, title in enumerate(categories):
            if not (split.category == category).any():
                raise UserError(f"{data_dir}: no usable sketch in the {name} split of {title}")
    return TrainingData(
        data.splits["train"], data.splits["valid"], data.fingerprint(), data.warnings
    )


def training_batches(
    split: Split, options: Options, *, first: int = 0, workers: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless batches: pictures uint8 (B, 225, 225), augmented, and labels int32 (B,).

    The sketches come in a new order in each pass over the split; a batch may reach over the end
    of a pass. Everything random is a function of (seed, pass, position in the split).

    Args:
        split: training sketches.
        options: batch_size and seed are read.
        first: batches to leave out.
        workers: see `train`.
    """
    size = options.batch_size

    def rng(*key):
        return np.random.default_rng([options.seed, *key])

    def places():
        number, position = divmod(first * size, len(split))
        while True:
            order = rng(ORDER_STREAM, number).permutation(len(split))
            for i in order[position:].tolist():
                yield number, i
            number, position = number + 1, 0

    def plans():
        stream = places()
        while True:
            yield list(itertools.islice(stream, size))

    def prepare(plan):
        pictures = [
            augment(drawing.to_picture(split.sketch(i), SIDE), rng(SKETCH_STREAM, number, i))
            for number, i in plan
        ]
        return np.stack(pictures), split.category[[i for _, i in plan]]

    return prefetch(prepare, plans(), workers)


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
    degrees = rng.uniform(-MOST_DEGREES, MOST_DEGREES)
    shift = rng.uniform(-MOST_SHIFT, MOST_SHIFT, 2) * side
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
    advance: Callable[[], None] = lambda: None,
    workers: int | None = None,
) -> np.ndarray:
    """The likeliest category of each sketch, int64 (n,).

    Args:
        network: gives the scores.
        sketches: n stroke-3 arrays (rows, 3) in any unit; one without rows is a blank picture.
        advance: called after each sketch.
        workers: see `train`.

    Raises:
        ValueError: see `drawing.to_paths`.
    """

    def draw(start):
        # A last batch that is filled up needs no compilation of its own.
        pictures = np.full((EVALUATION_BATCH, SIDE, SIDE), 255, np.uint8)
        for i, sketch in enumerate(sketches[start : start + EVALUATION_BATCH]):
            pictures[i] = drawing.to_picture(sketch, SIDE)
        return pictures

    starts = range(0, len(sketches), EVALUATION_BATCH)
    found = [np.zeros(0, np.int64)]
    for start, pictures in zip(starts, prefetch(draw, starts, workers), strict=True):
        found.append(np.argmax(network.predict_on_batch(pictures), axis=1))
        for _ in sketches[start : start + EVALUATION_BATCH]:
            advance()
    return np.concatenate(found)[: len(sketches)]


def confusion(true: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many sketches of each category (row) were taken for each (column): int64 (C, C)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (true, predicted), 1)
    return counts


def _optimizer(options: Options, updates: int) -> keras.optimizers.Optimizer:
    """Adam whose rate rises to `learning_rate`, then falls to 0 along a cosine."""
    warm_up = max(1, round(WARM_UP * updates))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, updates - warm_up),
        warmup_target=options.learning_rate,
        warmup_steps=warm_up,
    )
    return keras.optimizers.Adam(schedule, clipnorm=1.0, name="adam")


def _make_updates(
    network: SketchANet,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    count: int,
    state: State,
    should_stop: Callable[[], bool],
) -> bool:
    """Makes updates and counts them; False where it was stopped before the last of them."""
    bar = keras.utils.Progbar(count, verbose=1 if sys.stdout.isatty() else 2)
    for number in range(1, count + 1):
        if should_stop():
            print()  # below the unfinished bar
            return False
        pictures, labels = next(batches)
        logs = network.train_on_batch(pictures, labels, return_dict=True)
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the classifier's loss is {logs['loss']} at update {state.updates + 1}; try a "
                "smaller --learning_rate"
            )
        state.updates += 1
        bar.update(number, logs.items())
    return True


def _has_ended(state: State, options: Options) -> bool:
    return state.epoch >= options.epochs or state.failures >= PATIENCE or state.best_accuracy == 1.0


def _as_state(meta: dict, path: Path) -> State:
    try:
        state = State(**meta["state"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no training state ({one_line(error)})") from None
    for field in fields(State):
        if not is_of_type(getattr(state, field.name), field.type):
            raise UserError(f"{path}: damaged, {field.name} is {getattr(state, field.name)!r:.60}")
    return state


def _check_same(meta: dict, made_of: dict, path: Path) -> None:
    """Raises UserError unless the unfinished training of a file is this one."""
    differences = [name for name in ("categories", "data") if meta.get(name) != made_of[name]]
    options = meta.get("options")
    options = options if isinstance(options, dict) else {}
    differences += [
        f"{name} (was {options.get(name)}, is {value})"
        for name, value in made_of["options"].items()
        if options.get(name) != value
    ]
    if differences:
        raise UserError(
            f"{path}: an unfinished training with other {', '.join(differences)}; repeat its "
            "options or choose another --classifier_dir"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error.strerror})") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(str, names))
