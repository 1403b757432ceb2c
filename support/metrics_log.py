"""What a training run writes down as it goes on: metrics.csv, TensorBoard, the preview."""

import contextlib
import os
from pathlib import Path
from typing import Self

import numpy as np

import drawing
from checkpoints import METRICS_NAME, PREVIEW_NAME, TENSORBOARD_NAME, RunState
from support.backend import keras
from support.files import UserError, write_errors, write_file

METRICS_COLUMNS = "update,epoch,split,reconstruction,clustering,learning_rate"


class NoLog:
    """The log of a process that leaves logging to another."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        """Nothing to close."""

    def sync(self) -> None:
        """Nothing to make sure of."""

    def write(self, split: str, losses: dict[str, float], learning_rate: float | None = None):
        """Drops what the main process writes."""

    def show(self, picture: np.ndarray) -> None:
        """Drops the preview."""


class MetricsLog(NoLog):
    """metrics.csv and the TensorBoard logs: a row for each update and each evaluation.

    Args:
        log_root: the model directory.
        state: rows are stamped with its update and epoch. Rows of later updates that are there
            already, made after the checkpoint that a run goes on from, are dropped.
    """

    def __init__(self, log_root: Path, state: RunState):
        self.state = state
        self.path = log_root / METRICS_NAME
        kept = [METRICS_COLUMNS + "\n"]
        if self.path.exists():
            for line in self.path.read_text(errors="replace").splitlines(keepends=True)[1:]:
                update = line.partition(",")[0]
                # A last line without its end was cut short by whatever ended the run.
                is_number = update.isascii() and update.isdigit() and len(update) < 20
                if line.endswith("\n") and is_number and int(update) <= state.total_steps:
                    kept.append(line)
        write_file(self.path, "".join(kept))
        self.tensorboard = log_root / TENSORBOARD_NAME
        self.summary = self.writer = None
        if keras.backend.backend() == "tensorflow":
            from tensorflow import summary

            self.summary = summary
            with self._tensorboard_errors():
                self.writer = summary.create_file_writer(str(self.tensorboard))

    def __enter__(self) -> Self:
        with write_errors(self.path):
            self.file = open(self.path, "a", buffering=1)
        return self

    def __exit__(self, *_):
        with write_errors(self.path):
            self.file.close()
        if self.writer:
            with self._tensorboard_errors():
                self.writer.close()

    def sync(self) -> None:
        """Makes sure of the rows, so that a checkpoint never outlives those before it."""
        with write_errors(self.path):
            os.fsync(self.file.fileno())

    def write(self, split: str, losses: dict[str, float], learning_rate: float | None = None):
        """Logs both losses of an update or of a split."""
        reconstruction, clustering = losses["reconstruction"], losses["clustering"]
        rate = "" if learning_rate is None else learning_rate
        values = (self.state.total_steps, self.state.epoch, split, reconstruction, clustering, rate)
        with write_errors(self.path):
            self.file.write(",".join(map(str, values)) + "\n")
        if self.writer:
            step = self.state.total_steps
            with self._tensorboard_errors(), self.writer.as_default(step=step):
                self.summary.scalar(f"{split}/reconstruction", reconstruction)
                self.summary.scalar(f"{split}/clustering", clustering)
                if learning_rate is not None:
                    self.summary.scalar("learning_rate", learning_rate)

    def show(self, picture: np.ndarray) -> None:
        """Writes the preview, uint8 (h, w, 3) with blue first."""
        drawing.write_png(self.path.with_name(PREVIEW_NAME), picture)
        if self.writer:
            with self._tensorboard_errors(), self.writer.as_default(step=self.state.total_steps):
                self.summary.image("preview", picture[None, :, :, ::-1])

    @contextlib.contextmanager
    def _tensorboard_errors(self):
        """Turns TensorFlow's errors (a full disk, no permission) into a line."""
        from tensorflow import errors

        try:
            yield
        except errors.OpError as error:
            reason = error.message.partition("\n")[0]
            raise UserError(f"{self.tensorboard}: can't be written ({reason})") from error
