"""The classifier of the measure Rec: its training and its directory.

A classifier directory holds `classifier.json` (categories, options, data, validation accuracy)
and `best.npz` (the weights of the best validation) of a finished classifier, or `latest.npz` (the
training state after the last finished epoch) of one that is being trained.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import checkpoints
from dataset import SPLITS, Dataset, Split
from hparams import CONFIG_NAME
from sketch_a_net import EVALUATION_BATCH, SketchANet, evaluation_batches, training_batches
from support import cli
from support.backend import keras
from support.files import UserError, is_of_type, read_json, write_json
from support.output_dir import write_to

METADATA_NAME = "classifier.json"
FILES = (METADATA_NAME, checkpoints.BEST, checkpoints.LATEST, *(f"{name}.npz" for name in SPLITS))
MAX_WIDTH = 4096  # filters of the first layer
PATIENCE = 4  # epochs in a row without improvement
MAX_VALIDATED = 250  # validation sketches of a category: enough to compare epochs by
WARM_UP = 0.05  # share of the updates in which the learning rate rises


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


class Classifier(NamedTuple):
    """A trained network and what is known about it.

    Attributes:
        network: with the best weights.
        metadata: categories, options, data (a checksum), validation_accuracy, best_epoch, epochs.
    """

    network: SketchANet
    metadata: dict


def train(
    classifier_dir: str | Path,
    data: Dataset,
    categories: Sequence[str],
    options: Options,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    workers: int | None = None,
) -> Classifier | None:
    """Trains a classifier, from the start or from the last epoch that an earlier call finished.

    It ends after `options.epochs` epochs, after `PATIENCE` epochs in a row without improvement,
    or once every validation sketch is recognised. On a CPU, with deterministic operations, the
    result is the same to the last bit whether interrupted or not, and whatever the workers.

    Args:
        classifier_dir: takes the files.
        data: with the splits train and valid.
        categories: names, in the order of `Split.category`.
        options: see `Options`.
        should_stop: asked at each batch; true ends the call.
        workers: see `training_batches`.

    Returns:
        The classifier, with its best weights, or None where `should_stop` or Ctrl-C ended the
        call.

    Raises:
        UserError: another run's state in the directory; a damaged or unwritable file; a loss
            that is not finite.
    """
    with writing_classifier(classifier_dir):
        return _train(Path(classifier_dir), data, categories, options, should_stop, workers)


def writing_classifier(classifier_dir: str | Path) -> contextlib.AbstractContextManager[None]:
    """Takes a classifier directory for writing; see `support.output_dir.write_to`."""
    folder = Path(classifier_dir)

    def is_ours(path: Path) -> bool:
        # Releases without manifests: a model's directory has a model_config.json.
        finished, latest = folder / METADATA_NAME, folder / checkpoints.LATEST
        return (finished.exists() or latest.exists()) and not (folder / CONFIG_NAME).exists()

    return write_to(folder, "classifier", FILES, is_ours=is_ours)


def _train(
    folder: Path,
    data: Dataset,
    categories: Sequence[str],
    options: Options,
    should_stop: Callable[[], bool],
    workers: int | None,
) -> Classifier | None:
    """See `train`."""
    metadata = {
        "categories": list(categories),
        "data": data.fingerprint(),
        "options": asdict(options),
    }
    steps = max(1, options.per_epoch * len(categories) // options.batch_size)
    network = SketchANet(len(categories), options.width, options.seed)
    network.compile(
        optimizer=_optimizer(options, steps * options.epochs),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    network.optimizer.build(network.trainable_variables)
    valid = data.splits["valid"]
    validated = valid.first_of_each(MAX_VALIDATED)
    stopping = keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=PATIENCE)
    checkpoint = _Checkpoint(folder, network, metadata, len(validated), stopping)
    progress = _Progress(steps, options.epochs, should_stop)
    done = checkpoint.start_or_resume()
    batches = training_batches(
        data.splits["train"],
        options.batch_size,
        options.seed,
        first=done * steps,
        workers=workers,
    )
    try:
        network.fit(
            batches,
            steps_per_epoch=steps,
            initial_epoch=done,
            epochs=options.epochs,
            validation_data=_validation_batches(valid, validated, workers),
            shuffle=False,  # the batches are shuffled
            validation_steps=math.ceil(len(validated) / EVALUATION_BATCH),
            callbacks=[progress, stopping, checkpoint],
            verbose=0,
        )
    except KeyboardInterrupt:
        progress.close()
        print(f"Interrupted in epoch {progress.epoch + 1}; the same call goes on from its start.")
        return None
    finally:
        progress.close()
    return load(folder, categories)


def load(classifier_dir: str | Path, categories: Sequence[str]) -> Classifier | None:
    """The finished classifier of a directory, or None where there is none.

    Raises:
        UserError: it is for other categories, or a file is damaged or missing.
    """
    folder = Path(classifier_dir)
    path, weights = folder / METADATA_NAME, folder / checkpoints.BEST
    if not path.exists():
        return None
    metadata, options = read_metadata(path)
    known = metadata["categories"]
    if known != list(categories):
        raise UserError(
            f"{folder} holds a classifier for other categories ({', '.join(map(str, known))}), "
            f"not for {', '.join(categories)}; choose another classifier_dir"
        )
    network = SketchANet(len(known), options.width, options.seed)
    arrays, made_of = checkpoints.read_arrays(weights)
    if any(made_of.get(name) != metadata[name] for name in ("categories", "data", "options")):
        raise UserError(f"{weights}: does not belong to the {METADATA_NAME} beside it")
    checkpoints.assign(network.weights, arrays, weights)
    return Classifier(network, metadata)


def read_metadata(path: Path) -> tuple[dict[str, Any], Options]:
    """What classifier.json says, and the options in it.

    Raises:
        UserError: it is missing or damaged.
    """
    metadata = read_json(path)
    kinds = {"categories": list[str], "data": str, "validation_accuracy": float, "epochs": int}
    kinds["options"] = dict
    problem = f"{path}: damaged, it describes no classifier"
    if not isinstance(metadata, dict):
        raise UserError(problem)
    for name, kind in kinds.items():
        if not is_of_type(metadata.get(name), kind):
            raise UserError(f"{problem} ({name} is {metadata.get(name)!r:.60})")
    options = metadata["options"]
    kinds = {field.name: field.type for field in fields(Options)}
    if options.keys() != kinds.keys():
        raise UserError(f"{problem} (its options are {options!r:.60})")
    for name, kind in kinds.items():
        if not is_of_type(options[name], kind):
            raise UserError(f"{problem} ({name} is {options[name]!r:.60})")
    if not 0 < options["width"] <= MAX_WIDTH or not metadata["categories"]:
        raise UserError(f"{problem} (width is {options['width']})")
    return metadata, Options(**options)


class _Checkpoint(keras.callbacks.Callback):
    """Writes the files of a classifier directory after each epoch, and goes on from them.

    Keras's own callbacks write in place, so that a run that is killed can leave half a file, and
    forget the best accuracy, the patience and the dropout's random state.

    Args:
        folder: the classifier directory.
        network: compiled, its optimizer built.
        metadata: categories, data and options.
        validated: how many sketches an epoch is validated on.
        stopping: comes before this callback in an epoch's end.
    """

    def __init__(
        self,
        folder: Path,
        network: SketchANet,
        metadata: dict,
        validated: int,
        stopping: keras.callbacks.EarlyStopping,
    ):
        super().__init__()
        self.folder, self.metadata = folder, metadata
        self.validated, self.stopping = validated, stopping
        self.variables = [
            *network.weights,
            network.dropout_seeds.state,
            *network.optimizer.variables,
        ]
        self.accuracies: list[float] = []  # of each epoch

    @property
    def latest(self) -> Path:
        return self.folder / checkpoints.LATEST

    def start_or_resume(self) -> int:
        """Reads the state of an interrupted training, or writes that of a new one.

        Returns:
            How many epochs are done.
        """
        if not self.latest.exists():
            self._save_latest()  # a disk that is too small shows now
            return 0
        arrays, meta = checkpoints.read_arrays(self.latest)
        _check_same(meta, self.metadata, self.latest)
        accuracies = meta.get("accuracies")
        if not is_of_type(accuracies, list[float]):
            raise UserError(
                f"{self.latest}: holds no training state that can be resumed; delete it to "
                "train from the start"
            )
        checkpoints.assign(self.variables, arrays, self.latest)
        self.accuracies = accuracies
        done = len(accuracies)
        print(f"Resuming the classifier in {self.folder} after epoch {done}.", flush=True)
        return done

    def on_train_begin(self, logs=None):
        for epoch, accuracy in enumerate(self.accuracies):
            self.stopping.on_epoch_end(epoch, {"val_accuracy": accuracy})

    def on_epoch_end(self, epoch, logs):
        best = max(self.accuracies, default=-1.0)
        # Keras's mean is a float32.
        accuracy = round(logs["val_accuracy"] * self.validated) / self.validated
        self.accuracies.append(accuracy)
        if accuracy > best:
            path = self.folder / checkpoints.BEST
            weights = checkpoints.values_of(self.model.weights, path)
            checkpoints.write_arrays(path, weights, self.metadata)
            outcome = "the best so far, saved"
        else:
            outcome = f"no improvement on {best:.2%} ({self.stopping.wait} of {PATIENCE} in a row)"
        print(f"Validation: {accuracy:.2%} recognised; {outcome}", flush=True)
        if accuracy == 1 or epoch + 1 == self.params["epochs"]:
            self.model.stop_training = True
        if self.model.stop_training:
            self._finish()
        else:
            self._save_latest()

    def _save_latest(self) -> None:
        values = checkpoints.values_of(self.variables, self.latest)
        state = {"accuracies": self.accuracies}
        checkpoints.write_arrays(self.latest, values, self.metadata | state)

    def _finish(self) -> None:
        best = max(self.accuracies)
        outcome = {
            "validation_accuracy": best,
            "best_epoch": self.accuracies.index(best) + 1,
            "epochs": len(self.accuracies),
        }
        write_json(self.folder / METADATA_NAME, self.metadata | outcome)
        self.latest.unlink(missing_ok=True)


class _Progress(keras.callbacks.Callback):
    """Shows how far an epoch is; ends the training on request or where its loss explodes.

    Args:
        steps: updates of an epoch.
        epochs: most of them.
        should_stop: whether to end.
    """

    def __init__(self, steps: int, epochs: int, should_stop: Callable[[], bool]):
        super().__init__()
        self.steps, self.epochs, self.should_stop = steps, epochs, should_stop
        self.epoch, self.bar = 0, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        title = f"Epoch {epoch + 1}/{self.epochs}"
        self.bar = cli.Progress(title, self.steps, unit="update")

    def on_train_batch_begin(self, batch, logs=None):
        self._stop_on_request()

    def on_train_batch_end(self, batch, logs):
        if not math.isfinite(logs["loss"]):
            update = self.epoch * self.steps + batch + 1
            raise UserError(
                f"the classifier's loss is {logs['loss']} at update {update}; try a smaller "
                "learning_rate"
            )
        self.bar.set_postfix(logs, refresh=False)
        self.bar.update()

    def on_test_begin(self, logs=None):
        self.close()

    def on_test_batch_begin(self, batch, logs=None):
        self._stop_on_request()

    def close(self) -> None:
        """Ends the display of an epoch."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _stop_on_request(self):
        if self.should_stop():
            raise KeyboardInterrupt


def _validation_batches(
    split: Split, members: list[int], workers: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless rounds of some sketches: pictures uint8 (B, 225, 225) and labels int32 (B,)."""
    sketches, labels = [split.sketch(i) for i in members], split.category[members]
    starts = range(0, len(members), EVALUATION_BATCH)
    while True:
        for start, pictures in zip(starts, evaluation_batches(sketches, workers), strict=True):
            yield pictures, labels[start : start + EVALUATION_BATCH]


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
            "options or choose another classifier_dir"
        )
