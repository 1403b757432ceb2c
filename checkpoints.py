"""A model directory: options, weights and training state; written safely, loaded whole.

`model_config.json` holds the options, `best.npz` the weights of the best validation,
`latest.npz` the whole training state. A file is written beside its place and then moved into it,
so at any moment there is an old one or a new one, whole.
"""

import contextlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from hparams import CONFIG_NAME, HParams, read_config
from model import Adam, SPGra2Seq
from support.backend import keras, ops
from support.files import (
    UserError,
    is_of_type,
    one_line,
    read_json,
    read_npz,
    write_file,
)
from support.output_dir import write_to

BEST, LATEST = "best.npz", "latest.npz"
META = "meta"  # name of the JSON entry beside the arrays
CHANGEABLE = ("num_steps", "save_every")  # options that may change in resuming
METRICS_NAME, PREVIEW_NAME, TENSORBOARD_NAME = "metrics.csv", "preview.png", "tensorboard"
MODEL_FILES = (CONFIG_NAME, BEST, LATEST, METRICS_NAME, PREVIEW_NAME, TENSORBOARD_NAME)
# Names in checkpoint files, which are older than those of the fields.
FILE_NAMES = {"total_steps": "updates", "total_epochs": "passes", "global_step": "step"}


@dataclass
class RunState:
    """Where a training run is.

    Attributes:
        total_steps: optimiser updates made in all.
        total_epochs: epochs made in all.
        batch: batches made of the present epoch.
        global_step: updates that led to the present weights; a roll-back sets it back.
        epoch: epochs that led to the present weights; a roll-back sets it back.
        best_loss: lowest reconstruction loss of a validation.
        failures: validations in a row without improvement.
        finished: why the run has ended, or "".
        data: checksum of the sketches, or "" where none trained the weights here.
    """

    total_steps: int = 0
    total_epochs: int = 0
    batch: int = 0
    global_step: int = 0
    epoch: int = 0
    best_loss: float = float("inf")
    failures: int = 0
    finished: str = ""
    data: str = ""

    def count_update(self) -> None:
        """Counts an update that was made."""
        self.total_steps += 1
        self.global_step += 1
        self.batch += 1

    def count_epoch(self) -> None:
        """Counts an epoch whose batches are all used."""
        self.total_epochs += 1
        self.epoch += 1
        self.batch = 0

    def to_file(self) -> dict:
        """As a checkpoint file holds it."""
        return {FILE_NAMES.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_file(cls, values: dict, path: Path) -> "RunState":
        """Of a checkpoint file.

        Raises:
            UserError: the file holds something else.
        """
        names = {FILE_NAMES.get(f.name, f.name): f for f in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names.keys():
            raise UserError(f"{path}: holds no training state")
        for name, field in names.items():
            fits = is_of_type(values[name], field.type)
            if name == "best_loss":  # infinite until there is one
                fits |= values[name] == float("inf")
            if not fits:
                raise UserError(f"{path}: damaged, its {name} is {values[name]!r:.60}")
        return cls(**{field.name: values[name] for name, field in names.items()})


def writing_model(model_dir: str | Path) -> contextlib.AbstractContextManager[None]:
    """Takes a model directory for writing; see `support.output_dir.write_to`."""
    config = Path(model_dir) / CONFIG_NAME

    def is_ours(path: Path) -> bool:
        # Releases without manifests wrote the scale factor, and the published code does not.
        values = read_json(config) if config.exists() else None
        return isinstance(values, dict) and "scale_factor" in values

    return write_to(model_dir, "model", MODEL_FILES, is_ours=is_ours)


def load_model(model_dir: str | Path) -> SPGra2Seq:
    """The model with the best weights of a directory that train.py or import_checkpoint.py wrote.

    Raises:
        UserError: there is no model in the directory, or it is damaged.
    """
    config = read_config(Path(model_dir) / CONFIG_NAME)
    model = SPGra2Seq(config.hparams)
    load_weights(model_dir, model)
    return model


def load_weights(model_dir: str | Path, model: SPGra2Seq) -> None:
    """Gives a model the best weights of a directory.

    Raises:
        UserError: there are none, they are damaged, or of a model with other options.
    """
    arrays, _ = read_arrays(Path(model_dir) / BEST)
    assign(model.weights, arrays, Path(model_dir) / BEST)


def save_best(model_dir: str | Path, model: SPGra2Seq, state: RunState) -> None:
    """Writes the weights, and the counters that a roll-back sets back.

    Raises:
        UserError: it can't be written, or a value is not finite; an older file stays.
    """
    path = Path(model_dir) / BEST
    write_arrays(path, values_of(model.weights, path), state.to_file())


def check_best(model_dir: str | Path, model: SPGra2Seq) -> None:
    """Raises UserError where the best checkpoint could not be gone back to."""
    arrays, _ = read_arrays(Path(model_dir) / BEST)
    _check(model.weights, arrays, Path(model_dir) / BEST)


def roll_back(model_dir: str | Path, model: SPGra2Seq, optimizer: Adam, state: RunState) -> None:
    """Sets weights, statistics, centroids, epoch and step back to the best checkpoint.

    The optimiser's moments and the random stream go on.
    """
    arrays, best = read_arrays(Path(model_dir) / BEST)
    assign(model.weights, arrays, Path(model_dir) / BEST)
    saved = RunState.from_file(best, Path(model_dir) / BEST)
    state.epoch, state.global_step = saved.epoch, saved.global_step
    optimizer.schedule_step.assign(state.global_step)


def save_latest(model_dir: str | Path, model: SPGra2Seq, optimizer: Adam, state: RunState) -> None:
    """Writes the whole training state.

    Raises:
        UserError: it can't be written, or a value is not finite; an older file stays.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    variables = [*model.weights, *optimizer.variables]
    path = Path(model_dir) / LATEST
    write_arrays(path, values_of(variables, path), state.to_file())


def restore_latest(model_dir: str | Path, model: SPGra2Seq, optimizer: Adam) -> RunState:
    """Reads what `save_latest` wrote.

    Raises:
        UserError: the file is damaged or belongs to another model.
    """
    path = Path(model_dir) / LATEST
    arrays, state = read_arrays(path)
    assign([*model.weights, *optimizer.variables], arrays, path)
    return RunState.from_file(state, path)


def check_same_run(given: HParams, saved: HParams, model_dir: str | Path) -> None:
    """Raises UserError where options differ from those that a run was started with."""
    differences = [
        f"{name}={getattr(given, name)} (the run has {getattr(saved, name)})"
        for name in HParams.model_fields
        if getattr(given, name) != getattr(saved, name) and name not in CHANGEABLE
    ]
    if differences:
        raise UserError(f"{model_dir}: can't resume with other options: {'; '.join(differences)}")


def write_arrays(path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Writes arrays and a JSON-able dict as an .npz, whole or not at all.

    Raises:
        UserError: it can't be written (disk full, no permission); an older file stays.
    """
    write_file(path, lambda file: np.savez(file, **arrays, **{META: np.array(json.dumps(meta))}))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Reads what `write_arrays` wrote, checksums included.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; is this the directory of a model?")
    arrays = read_npz(path)
    try:
        meta = json.loads(str(arrays.pop(META)))
        if not isinstance(meta, dict):
            raise ValueError("its meta is not an object")
        return arrays, meta
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, it can't be read ({one_line(error)})") from error


def values_of(variables: list[keras.Variable], path: Path) -> dict[str, np.ndarray]:
    values = {v.path: ops.convert_to_numpy(v) for v in variables}
    assert len(values) == len(variables), "two variables have the same name"
    for name, value in values.items():
        # A gradient can be NaN where the loss is not. Without this check, weights that are NaN
        # could replace a good checkpoint.
        if not np.isfinite(value).all():
            raise UserError(
                f"{path}: not written, {name} is no longer finite; an earlier one, if any, is "
                "intact; try a smaller learning_rate"
            )
    return values


def _check(variables: list[keras.Variable], arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raises UserError unless there is one value for each variable, of its shape and kind."""
    expected = {v.path: v for v in variables}
    for name, v in expected.items():
        if name not in arrays:
            raise UserError(f"{path}: has no value for the variable {name}")
        array, shape = arrays[name], tuple(v.shape)
        if array.shape != shape:
            raise UserError(f"{path}: {name} has the shape {array.shape}, not {shape}")
        if array.dtype.kind != ops.convert_to_numpy(v).dtype.kind:
            raise UserError(f"{path}: {name} has the type {array.dtype}, not {v.dtype}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: damaged, {name} has values that are not finite")
    for name in arrays:
        if name not in expected:
            raise UserError(f"{path}: the variable {name} does not belong to this model")


def assign(variables: list[keras.Variable], arrays: dict[str, np.ndarray], path: Path) -> None:
    """Assigns all values or, where they don't fit, none."""
    _check(variables, arrays, path)
    for v in variables:
        v.assign(arrays[v.path])
