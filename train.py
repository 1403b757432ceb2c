"""Trains SP-gra2seq on QuickDraw sketches.

python train.py --data_dir=DIR --log_root=DIR --hparams="categories=[bee,bus]"
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import cli

import keras
import numpy as np
from absl import flags

import checkpoints
import dataset
import devices
import drawing
import inference
from checkpoints import RunState
from devices import Team
from hparams import (
    CONFIG_NAME,
    HParams,
    UserError,
    describe_options,
    parse_hparams,
    read_config,
    write_config,
)
from metrics_log import MetricsLog, NoLog
from model import Adam, SPGra2Seq, node_masks
from workers import Feed

PREVIEWED = 16  # sketches
PATIENCE = 5  # validations in a row without improvement
AGREED_EVERY = 10  # updates between two questions whether any process was interrupted


def train(
    data_dir: str | Path,
    log_root: str | Path,
    options: str = "",
    *,
    resume: bool = False,
    save_minutes: float = 10.0,
    workers: int | None = None,
    num_devices: int = 0,
) -> RunState:
    """Trains a model, from the start or from where a run was interrupted.

    Args:
        data_dir: holds `<category>.npz`, QuickDraw files.
        log_root: the model directory: model_config.json, best.npz, latest.npz, metrics.csv and
            the TensorBoard logs land here.
        options: as on the command line, "categories=[bee,bus],batch_size=64"; in resuming those
            not given are the run's own.
        resume: go on from the latest checkpoint, if there is one.
        save_minutes: longest time between two writings of the training state.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        num_devices: devices of this machine that share the batches (JAX backend); 0: all, on
            TensorFlow one. Several machines: see `devices.join`.

    Returns:
        The run's state at its end; `finished` is empty where Ctrl-C or SIGTERM ended it.

    Raises:
        UserError: wrong options or data; a directory that holds another run; a damaged
            checkpoint; a loss that is not finite.
    """
    log_root = Path(log_root)
    saved = _saved_config(log_root, resume)
    hparams = parse_hparams(options, saved.hparams if saved else None)
    cli.make_deterministic(hparams.seed)
    data = dataset.load_dataset(data_dir, hparams)
    hparams = hparams.replace(max_seq_len=data.max_seq_len)
    if saved:
        # An imported model may not know its longest sketch and its scale factor yet.
        known = saved.hparams
        if known.max_seq_len == -1:
            known = known.replace(max_seq_len=data.max_seq_len)
        checkpoints.check_same_run(hparams, known, log_root)
        if saved.scale_factor not in (None, data.scale_factor):
            raise UserError(
                f"{log_root}: can't resume with other data: the run's sketches have the scale "
                f"factor {saved.scale_factor}, those in {data_dir} {data.scale_factor}"
            )
    training = data.splits["train"]
    per_pass = len(training) // hparams.batch_size
    if not per_pass:
        raise UserError(
            f"{data_dir}: {len(training)} training sketches are less than one batch of "
            f"{hparams.batch_size}; use more sketches or a smaller batch_size"
        )
    team = devices.find(num_devices, hparams.batch_size)
    with team.at_work():
        return _run(data, hparams, log_root, team, save_minutes, workers)


def _run(
    data: dataset.Dataset,
    hparams: HParams,
    log_root: Path,
    team: Team,
    save_minutes: float,
    workers: int | None,
) -> RunState:
    """Trains as `train` says, options and data being checked."""
    say = print if team.leads else lambda *_: None
    training = data.splits["train"]
    per_pass = len(training) // hparams.batch_size
    model = SPGra2Seq(hparams)
    optimizer = Adam(hparams)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    if team.leads:
        _say_plan(data, hparams, model, team)
    fingerprint = data.fingerprint()
    fresh = not (log_root / checkpoints.LATEST).exists()
    if fresh:
        state = RunState(data=fingerprint)
    else:
        state = checkpoints.restore_latest(log_root, model, optimizer)
        if state.data not in ("", fingerprint):
            raise UserError(
                f"{log_root}: can't resume with other data: these sketches are not the run's"
            )
        state.data = fingerprint
        if math.isfinite(state.best_loss):
            checkpoints.check_best(log_root, model)
        if state.finished:
            say(f"This run has ended: {state.finished}.")
            return state
        say(f"Resuming at update {state.updates}.")
    team.wait()  # none may find what another writes, and take it for an older run
    if team.leads:
        log_root.mkdir(parents=True, exist_ok=True)
        write_config(log_root / CONFIG_NAME, hparams, data.scale_factor)
    if fresh:
        first = next(dataset.training_batches(training, hparams, data.max_seq_len, workers=1))
        model.start_clusters(first)
        if team.leads:
            # Too small a disk shows now and not after hours.
            checkpoints.save_latest(log_root, model, optimizer, state)

    log = MetricsLog(log_root, state) if team.leads else NoLog()
    with cli.Interruption() as interruption, log:
        run = Run(state, hparams, data, log_root, log, interruption, team, save_minutes, workers)
        while not state.finished and not run.stopping:
            to_do = hparams.num_steps - state.updates + state.batch
            batches = dataset.training_batches(
                training,
                hparams,
                data.max_seq_len,
                first_pass=state.passes,
                first_batch=state.batch,
                workers=workers,
                shape=team.batch_shape(hparams.batch_size),
            )
            with Feed(batches) as feed:
                model.fit(
                    ((batch,) for batch in feed),
                    initial_epoch=state.passes,
                    # A pass taken up in the middle has fewer steps, so it gets a call of its own.
                    epochs=state.passes + (1 if state.batch else math.ceil(to_do / per_pass)),
                    steps_per_epoch=per_pass - state.batch,
                    shuffle=False,
                    callbacks=[run],
                    verbose=0 if not team.leads else 1 if cli.on_terminal() else 2,
                )
    if state.finished:
        say(f"Training has ended: {state.finished}. The model is in {log_root}.")
    else:
        say(f"Interrupted at update {state.updates}; go on with --resume_training=True.")
    return state


def evaluate(
    model: SPGra2Seq,
    split: dataset.Split,
    hparams: HParams,
    name: str,
    workers: int | None = None,
    team: Team | None = None,
) -> dict[str, float]:
    """Both losses on a whole split, nothing masked, z drawn from (seed, split, sketch).

    Args:
        model: a compiled model.
        split: the sketches.
        hparams: the options.
        name: the split's name, valid or test.
        workers: processes (one: a thread) that prepare batches; None: half as many as there are
            cores.
        team: the devices that share the batches; each process prepares its part.

    Returns:
        reconstruction, the mean over sketches, and clustering, over counted patches.
    """
    team = team or Team()
    reconstruction = clustering = patches = 0.0
    for batch in dataset.evaluation_batches(
        split, hparams, stream=name, workers=workers, shape=team.batch_shape(hparams.batch_size)
    ):
        # Keras starts its means, over the batches of all processes, anew with each batch.
        losses = model.test_on_batch(batch, return_dict=True)
        counted = float(node_masks(batch["graph_masks"]).sum())
        reconstruction += len(batch["nodes"]) * float(losses["reconstruction"])
        clustering += counted * float(losses["clustering"])
        patches += counted
    reconstruction, clustering, patches = team.total(
        np.array([reconstruction, clustering, patches])
    ).tolist()
    # Sketches that fill up the last batch add nothing to its sum.
    return {
        "reconstruction": reconstruction / len(split),
        "clustering": clustering / max(patches, 1),
    }


def draw_preview(model: SPGra2Seq, data: dataset.Dataset, hparams: HParams) -> np.ndarray:
    """The first validation sketches of each category, corrupted and redrawn: uint8 (h, w, 3).

    What is erased and the drawing's random numbers are the same each time.
    """
    split = data.splits["valid"]
    per_category = max(1, PREVIEWED // len(hparams.categories))
    members = split.first_of_each(per_category)[:PREVIEWED]
    sketches = [split.sketch(i) for i in members]
    rng = np.random.default_rng(hparams.seed)
    seeds = [rng.random(hparams.graph_number - 1) for _ in members]
    graphs = dataset.pack_graphs(sketches, hparams, mask_prob=hparams.mask_prob, seeds=seeds)
    keys = [(int(split.category[i]), int(split.index[i])) for i in members]
    codes = inference.encode(model, [(keys, graphs)], jit=False)
    drawn = inference.generate(
        model, codes, data.max_seq_len, seed=hparams.seed, batch_size=len(members), jit=False
    )
    healed = dict(drawn)
    examples = [
        drawing.Example(
            category=hparams.categories[key[0]],
            index=key[1],
            original=sketch,
            corrupted=graphs["pictures"][graphs["nodes"][i, 0]],
            generated=healed[key],
        )
        for i, (key, sketch) in enumerate(zip(keys, sketches, strict=True))
    ]
    return drawing.gallery(examples, per_row=per_category)


class Run(keras.callbacks.Callback):
    """Counts, logs, validates, rolls back and saves, as `fit` goes on.

    Args:
        state: where the run is; kept up to date.
        hparams: the options.
        data: all splits.
        log_root: the model directory.
        log: takes the losses.
        interruption: asked after each update.
        team: the devices; one process alone writes, and all stop together.
        save_minutes: longest time between two writings of the training state.
        workers: processes (one: a thread) that prepare validation batches.
    """

    def __init__(
        self, state, hparams, data, log_root, log, interruption, team, save_minutes, workers
    ):
        super().__init__()
        self.state, self.hparams, self.data, self.log_root = state, hparams, data, log_root
        self.log, self.interruption, self.workers = log, interruption, workers
        self.save_seconds, self.saved_at = 60 * save_minutes, time.monotonic()
        self.per_pass = len(data.splits["train"]) // hparams.batch_size
        self.team, self.stopping = team, False
        self.learning_rate, self.said = None, ""

    def on_train_batch_end(self, batch, logs=None):
        state, hparams = self.state, self.hparams
        self.require_finite(logs, "training", state.updates + 1)
        low, high = hparams.min_learning_rate, hparams.learning_rate
        self.learning_rate = (high - low) * hparams.decay_rate**state.step + low
        logs["learning_rate"] = self.learning_rate
        del logs["loss"]  # a mean over the pass, beside two losses of the last batch
        state.updates += 1
        state.step += 1
        state.batch += 1
        self.log.write("train", logs, self.learning_rate)
        if state.batch == self.per_pass or state.updates == hparams.num_steps:
            self.model.stop_training = state.updates == hparams.num_steps
        elif self.interrupted(state.updates % AGREED_EVERY == 0):
            self.save()
            self.model.stop_training = True
        elif time.monotonic() - self.saved_at > self.save_seconds:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        state, hparams = self.state, self.hparams
        logs["learning_rate"] = self.learning_rate
        del logs["loss"]
        pass_done = state.batch == self.per_pass
        all_done = state.updates == hparams.num_steps
        if not (pass_done or all_done):
            return
        if pass_done:
            state.passes += 1
            state.epoch += 1
            state.batch = 0
        if all_done or state.epoch % hparams.save_every == 0:
            self.validate()
        if all_done:
            state.finished = f"all {hparams.num_steps} updates are made"
        elif state.failures == PATIENCE:
            state.finished = f"{PATIENCE} validations in a row without improvement"
        self.save()
        if self.interrupted(True) or state.finished:
            self.model.stop_training = True

    def interrupted(self, agreed: bool) -> bool:
        """Whether to stop: all processes at the same update, so that they ask each other there."""
        if self.team.processes == 1:
            self.stopping = self.interruption.requested
        elif agreed:
            self.stopping = self.team.any(self.interruption.requested)
        return self.stopping

    def on_epoch_begin(self, epoch, logs=None):
        self.say()

    def on_train_end(self, logs=None):
        self.say()

    def say(self) -> None:
        """Prints what a validation found; in `on_epoch_end` the progress bar is unfinished."""
        if self.said and self.team.leads:
            print(self.said, flush=True)
        self.said = ""

    def require_finite(self, losses: dict[str, float], which: str, update: int) -> None:
        """Raises UserError where a loss is not finite."""
        for name in ("reconstruction", "clustering"):
            if not math.isfinite(losses[name]):
                raise UserError(
                    f"the {which} {name} loss is {losses[name]} at update {update}; the last "
                    f"checkpoint in {self.log_root}, if any, is intact; try a smaller learning_rate"
                )

    def validate(self) -> None:
        """Saves and tests an improvement; goes back to the best checkpoint otherwise."""
        state = self.state
        valid = self.evaluate("valid")
        self.require_finite(valid, "validation", state.updates)
        self.log.write("valid", valid)
        self.log.show(draw_preview(self.model, self.data, self.hparams))
        said = (
            f"Validation at update {state.updates} (epoch {state.epoch}): "
            f"reconstruction {valid['reconstruction']:.4f}, clustering {valid['clustering']:.4f}"
        )
        if valid["reconstruction"] < state.best_loss:
            state.best_loss, state.failures = valid["reconstruction"], 0
            if self.team.leads:
                checkpoints.save_best(self.log_root, self.model, state)
            test = self.evaluate("test")
            self.log.write("test", test)
            self.said = (
                f"{said}; the best so far, saved. Test: "
                f"reconstruction {test['reconstruction']:.4f}, clustering {test['clustering']:.4f}"
            )
        else:
            state.failures += 1
            checkpoints.roll_back(self.log_root, self.model, self.model.optimizer, state)
            self.said = (
                f"{said}; no improvement on {state.best_loss:.4f} ({state.failures} of "
                f"{PATIENCE} in a row), back to epoch {state.epoch}"
            )

    def evaluate(self, name: str) -> dict[str, float]:
        """Both losses on the split of that name."""
        split = self.data.splits[name]
        return evaluate(self.model, split, self.hparams, name, self.workers, self.team)

    def save(self) -> None:
        """Writes the whole training state."""
        if self.team.leads:
            self.log.sync()
            checkpoints.save_latest(self.log_root, self.model, self.model.optimizer, self.state)
        self.saved_at = time.monotonic()


def _saved_config(log_root: Path, resume: bool):
    """The configuration of the run in a directory, or None where there is none to go on with."""
    config, latest = log_root / CONFIG_NAME, log_root / checkpoints.LATEST
    there = [p for p in (config, latest, log_root / checkpoints.BEST) if p.exists()]
    if not resume:
        if there:
            raise UserError(
                f"{log_root} already holds a run ({there[0].name}); go on with it with "
                "--resume_training=True or choose another --log_root"
            )
        return None
    if not there:
        print(f"{log_root} holds no run yet: starting from the beginning.")
        return None
    if there == [config]:
        print(f"{log_root} holds no checkpoint yet: starting from the beginning.")
    else:
        for needed in (config, latest):
            if needed not in there:
                raise UserError(f"{needed}: not found, but {there[-1].name} is there; can't resume")
    return read_config(config)


def _say_plan(data: dataset.Dataset, hparams: HParams, model: SPGra2Seq, team: Team) -> None:
    """Prints what a run is about to do."""
    for remark in data.remarks:
        print(f"Note: {remark}.")
    counts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    print(f"Categories: {', '.join(hparams.categories)}")
    print(f"Sketches:   {counts}; at most {data.max_seq_len} rows each")
    print(
        f"Updates:    up to {hparams.num_steps}, {len(data.splits['train']) // hparams.batch_size} "
        f"an epoch in batches of {hparams.batch_size}"
    )
    print(f"Parameters: {model.count_params():,} ({hparams.dec_model} decoder)")
    names = ", ".join(team.devices or keras.distribution.list_devices())
    print(f"Device:     {names} ({keras.backend.backend()} backend)", flush=True)


def main() -> None:
    """Trains as the flags say."""
    values = flags.FLAGS
    several = bool(values.coordinator) or values.num_processes > 1 or values.process_id > 0
    if several:
        devices.join(values.coordinator, values.num_processes, values.process_id)
    # JAX would wait at its end for the other processes, which may wait for this one or be lost.
    with cli.ending_at_once() if several else contextlib.nullcontext():
        state = train(
            values.data_dir,
            values.log_root,
            values.hparams,
            resume=values.resume_training,
            save_minutes=values.save_minutes,
            workers=values.workers or None,
            num_devices=values.num_devices,
        )
    if not state.finished:
        sys.exit(130)  # as Ctrl-C elsewhere: what was to follow a finished run shall not


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("log_root", None, "Directory for the model, its checkpoints and its logs.")
    flags.DEFINE_bool("resume_training", False, "Go on with the run in log_root.")
    flags.DEFINE_string(
        "hparams", "", "Options, as in 'categories=[bee,bus],batch_size=64':\n" + describe_options()
    )
    flags.DEFINE_float(
        "save_minutes", 10.0, "Longest time between two writings of the training state.", 0.0
    )
    flags.DEFINE_integer(
        "workers", 0, "Processes that prepare batches; 0 means half as many as cores.", 0
    )
    flags.DEFINE_integer(
        "num_devices", 0, "Devices of each machine that share the batches (JAX); 0 means all.", 0
    )
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where there are several (JAX).")
    flags.DEFINE_integer("num_processes", 1, "Processes that train together (JAX).", 1)
    flags.DEFINE_integer("process_id", 0, "Number of this one among them, from 0 on (JAX).", 0)
    for name in ("data_dir", "log_root"):
        flags.register_validator(name, bool, "it must name a directory")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
