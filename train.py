"""Trains SP-gra2seq, or a method that it is compared with, on QuickDraw sketches.

python train.py --data_dir=DIR --log_root=DIR --hparams="categories=[bee,bus]"
"""

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import checkpoints
import dataset
from batches import evaluation_batches, training_batches
from checkpoints import RunState
from hparams import HParams, describe_options
from model import Adam, SPGra2Seq, learning_rate
from support import cli, devices
from support.backend import keras, make_deterministic, ops
from support.checks import check_real, check_whole, check_workers
from support.devices import DeviceGroup
from support.files import UserError
from support.metrics_log import MetricsLog, NoLog
from support.preview import draw_preview
from support.run_setup import check, options_and_data, print_plan, start_or_resume

MAX_MINUTES = 10**9
MAX_DEVICES = 2**16
PATIENCE = 5  # validations in a row without improvement
AGREED_EVERY = 10  # updates between two checks whether any process was interrupted


def train(
    data_dir: str | Path,
    log_root: str | Path,
    options: str = "",
    *,
    resume: bool = False,
    start_from: str | Path | None = None,
    save_minutes: float = 10.0,
    workers: int | None = None,
    num_devices: int = 0,
) -> RunState:
    """Trains a model, from the start or from where a run was interrupted.

    Args:
        data_dir: holds `<category>.npz`, QuickDraw files.
        log_root: the model directory: model_config.json, best.npz, latest.npz, metrics.csv and
            the TensorBoard logs land here.
        options: as on the command line, "categories=[bee,bus],batch_size=64" or
            "@configs/comparison,seed=1"; in resuming those not given are the run's own.
        resume: go on from the latest checkpoint, if there is one.
        start_from: a model directory, whose weights and options a new run begins with; other
            categories, data and learning rates are allowed.
        save_minutes: longest time between two writings of the training state.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        num_devices: devices of this machine that share the batches (JAX backend); 0: all, on
            TensorFlow one. Several machines: see `devices.initialize_distributed`.

    Returns:
        The run's state at its end; `finished` is empty where Ctrl-C or SIGTERM ended it.

    Raises:
        UserError: wrong options or data; a directory that holds another run; a damaged
            checkpoint; a loss that is not finite.
    """
    check_real("save_minutes", save_minutes, 0, MAX_MINUTES)
    check_whole("num_devices", num_devices, 0, MAX_DEVICES)
    check_workers(workers)
    log_root = Path(log_root)
    # Before anything is read: another process must not write there meanwhile.
    main_process = devices.is_main_process()
    with checkpoints.writing_model(log_root) if main_process else contextlib.nullcontext():
        hparams, data = options_and_data(data_dir, log_root, options, resume, start_from)
        make_deterministic(hparams.seed)
        group = devices.select_devices(num_devices, hparams.batch_size)
        with group.scope():
            return _train(data, hparams, log_root, group, start_from, save_minutes, workers)


def _train(
    data: dataset.Dataset,
    hparams: HParams,
    log_root: Path,
    group: DeviceGroup,
    start_from: str | Path | None,
    save_minutes: float,
    workers: int | None,
) -> RunState:
    """Trains as `train` says, options and data being checked."""
    log_message = print if group.is_main_process else lambda *_: None
    training = data.splits["train"]
    batches_per_epoch = len(training) // hparams.batch_size
    model = SPGra2Seq(hparams)
    optimizer = Adam(hparams)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    if group.is_main_process:
        print_plan(data, hparams, model, group)
    state = start_or_resume(data, hparams, log_root, group, model, start_from, patience=PATIENCE)
    if state.finished:
        log_message(f"This run has ended: {state.finished}.")
        return state
    if state.total_steps:
        log_message(f"Resuming at update {state.total_steps}.")

    stream = devices.sent_ahead(
        training_batches(
            training,
            hparams,
            data.max_seq_len,
            first_epoch=state.total_epochs,
            first_batch=state.batch,
            workers=workers,
            shape=group.batch_shape(),
        )
    )
    log = MetricsLog(log_root, state) if group.is_main_process else NoLog()
    with cli.Interruption() as interruption, log, contextlib.closing(stream):
        progress = _epoch_progress(state, batches_per_epoch, hparams, group)
        saved_at, stopping = time.monotonic(), False
        while not (state.finished or stopping):
            losses = update(model, next(stream))
            _require_finite(losses, "training", state.total_steps + 1, log_root)
            rate = learning_rate(hparams, state.global_step)
            state.count_update()
            epoch_done = state.batch == batches_per_epoch
            all_done = state.total_steps == hparams.num_steps
            log.write("train", losses, rate)
            progress.set_postfix(losses | {"learning_rate": rate}, refresh=False)
            progress.update()

            if epoch_done or all_done:
                progress.close()
            if epoch_done:
                state.count_epoch()
            if all_done or (epoch_done and state.epoch % hparams.save_every == 0):
                log_message(validate(model, data, hparams, log_root, state, log, group, workers))
            if all_done:
                state.finished = f"all {hparams.num_steps} updates are made"
            elif state.failures == PATIENCE:
                state.finished = f"{PATIENCE} validations in a row without improvement"

            stopping = interruption.requested
            if group.processes > 1:  # all stop at the same update, and so ask each other there
                ask = epoch_done or all_done or state.total_steps % AGREED_EVERY == 0
                stopping = ask and group.any(interruption.requested)
            save_due = time.monotonic() - saved_at > 60 * save_minutes
            if epoch_done or all_done or stopping or save_due:
                if group.is_main_process:
                    log.sync()
                    checkpoints.save_latest(log_root, model, optimizer, state)
                saved_at = time.monotonic()
            if epoch_done and not (state.finished or stopping):
                progress = _epoch_progress(state, batches_per_epoch, hparams, group)
        progress.close()
    if state.finished:
        log_message(f"Training has ended: {state.finished}. The model is in {log_root}.")
    else:
        log_message(
            f"Interrupted at update {state.total_steps}; go on with --resume_training=True "
            "(in Python resume=True)."
        )
    return state


def update(model: SPGra2Seq, batch: dict[str, Any]) -> dict[str, float]:
    """One optimiser update: forward, backward, clipped Adam, statistics and centroids.

    Args:
        model: a compiled model.
        batch: from `batches.training_batches`, on the device already or not.

    Returns:
        The batch's two losses, reconstruction and clustering.
    """
    if not keras.distribution.distribution():
        # On JAX, `train_on_batch` would send it to the device twice.
        batch = {name: ops.convert_to_tensor(x) for name, x in devices.to_device(batch).items()}
    losses = model.train_on_batch(batch, return_dict=True)
    return {name: float(losses[name]) for name in ("reconstruction", "clustering")}


def validate(
    model: SPGra2Seq,
    data: dataset.Dataset,
    hparams: HParams,
    log_root: Path,
    state: RunState,
    log: NoLog,
    group: DeviceGroup,
    workers: int | None = None,
) -> str:
    """Saves and tests an improvement; goes back to the best checkpoint otherwise.

    Returns:
        What was found, a line.
    """
    valid = evaluate(model, data.splits["valid"], hparams, "valid", workers, group)
    _require_finite(valid, "validation", state.total_steps, log_root)
    log.write("valid", valid)
    log.show(draw_preview(model, data, hparams))
    found = (
        f"Validation at update {state.total_steps} (epoch {state.epoch}): "
        f"reconstruction {valid['reconstruction']:.4f}, clustering {valid['clustering']:.4f}"
    )
    if valid["reconstruction"] < state.best_loss:
        state.best_loss, state.failures = valid["reconstruction"], 0
        if group.is_main_process:
            checkpoints.save_best(log_root, model, state)
        test = evaluate(model, data.splits["test"], hparams, "test", workers, group)
        log.write("test", test)
        return (
            f"{found}; the best so far, saved. Test: "
            f"reconstruction {test['reconstruction']:.4f}, clustering {test['clustering']:.4f}"
        )
    state.failures += 1
    checkpoints.roll_back(log_root, model, model.optimizer, state)
    return (
        f"{found}; no improvement on {state.best_loss:.4f} ({state.failures} of "
        f"{PATIENCE} in a row), back to epoch {state.epoch}"
    )


def evaluate(
    model: SPGra2Seq,
    split: dataset.Split,
    hparams: HParams,
    name: str,
    workers: int | None = None,
    group: DeviceGroup | None = None,
) -> dict[str, float]:
    """Both losses on a whole split, nothing masked, z drawn from (seed, split, sketch).

    Args:
        model: a compiled model.
        split: the sketches.
        hparams: the options.
        name: the split's name, valid or test.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        group: the devices that share the batches; each process prepares its shard.

    Returns:
        reconstruction, the mean over sketches, and clustering, over counted patches (0 for a
        method without clusters).
    """
    group = group or DeviceGroup()
    reconstruction = clustering = patches = 0.0
    stream = evaluation_batches(
        split, hparams, stream=name, workers=workers, shape=group.batch_shape()
    )
    for batch in devices.sent_ahead(stream):
        # The means of this batch alone, over the shards of all processes.
        losses = model.test_on_batch(batch, return_dict=True)
        reconstruction += len(batch["strokes"]) * float(losses["reconstruction"])
        clustering += float(losses["counted"]) * float(losses["clustering"])
        patches += float(losses["counted"])
    reconstruction, clustering, patches = group.all_reduce_sum(
        np.array([reconstruction, clustering, patches])
    ).tolist()
    # Sketches that fill up the last batch add nothing to its sum.
    return {
        "reconstruction": reconstruction / len(split),
        "clustering": clustering / max(patches, 1),
    }


def _epoch_progress(
    state: RunState, batches_per_epoch: int, hparams: HParams, group: DeviceGroup
) -> cli.Progress:
    """The display of the epoch that a run is in."""
    left = hparams.num_steps - state.total_steps
    return cli.Progress(
        f"Epoch {state.total_epochs + 1}",
        min(batches_per_epoch, state.batch + left),
        done=state.batch,
        unit="update",
        quiet=not group.is_main_process,
    )


def _require_finite(losses: dict[str, float], which: str, update: int, log_root: Path) -> None:
    """Raises UserError where a loss is not finite."""
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise UserError(
                f"the {which} {name} loss is {loss} at update {update}; the last checkpoint in "
                f"{log_root}, if any, is intact; try a smaller learning_rate"
            )


def main() -> None:
    """Trains as the flags say."""
    values = flags.FLAGS
    if values.check_data:
        wrong = check(values.data_dir, values.log_root, values.hparams)
        sys.exit(int(any(finding.fatal for finding in wrong)))
    several = bool(values.coordinator) or values.num_processes > 1 or values.process_id > 0
    if several:
        devices.initialize_distributed(values.coordinator, values.num_processes, values.process_id)
    # JAX would wait at its end for the other processes, which may wait for this one or be lost.
    with cli.ending_at_once() if several else contextlib.nullcontext():
        state = train(
            values.data_dir,
            values.log_root,
            values.hparams,
            resume=values.resume_training,
            start_from=values.start_from or None,
            save_minutes=values.save_minutes,
            workers=values.workers or None,
            num_devices=values.num_devices,
        )
    if not state.finished:
        sys.exit(130)  # as Ctrl-C elsewhere: what follows a finished run must not start


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("log_root", None, "Directory for the model, its checkpoints and its logs.")
    flags.DEFINE_bool("resume_training", False, "Go on with the run in log_root.")
    flags.DEFINE_string(
        "start_from", "", "Model directory whose weights and options a new run begins with."
    )
    flags.DEFINE_string(
        "hparams",
        "",
        "Options, as in 'categories=[bee,bus],batch_size=64', or @FILE for those in a file, as in "
        "'@configs/comparison,method=sketchlattice':\n" + describe_options(),
    )
    flags.DEFINE_bool(
        "check_data", False, "Only look through the data, and write pictures of it to log_root."
    )
    flags.DEFINE_float(
        "save_minutes", 10.0, "Longest time between two writings of the training state.", 0.0
    )
    flags.DEFINE_integer(
        "workers", 0, "Processes that prepare batches; 0 means half as many as cores.", 0
    )
    flags.DEFINE_integer(
        "num_devices",
        0,
        "Devices of each machine that share the batches (JAX); 0 means all. The environment "
        "variable TF_CPP_MIN_LOG_LEVEL=0 shows all that TensorFlow says of its devices.",
        0,
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where there are several (JAX).")
    flags.DEFINE_integer("num_processes", 1, "Processes that train together (JAX).", 1)
    flags.DEFINE_integer("process_id", 0, "Number of this one among them, from 0 on (JAX).", 0)
    for name in ("data_dir", "log_root"):
        flags.register_validator(name, bool, "it must name a directory")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
