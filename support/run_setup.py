"""Before the first update of a run: options and data, checked; the plan, printed; the start."""

import math
from dataclasses import replace
from pathlib import Path

import checkpoints
from batches import training_batches
from checkpoints import RunState
from dataset import Dataset, load_dataset
from hparams import CONFIG_NAME, HParams, ModelConfig, parse_hparams, read_config, write_config
from model import SPGra2Seq
from support.backend import keras, why_no_gpu
from support.data_check import Finding, check_data, require_sensible, write_contact_sheet
from support.devices import DeviceGroup
from support.files import UserError
from support.output_dir import write_to

CHECK_NAME = "data_check.png"


def options_and_data(
    data_dir: str | Path,
    log_root: Path,
    options: str,
    resume: bool,
    start_from: str | Path | None,
) -> tuple[HParams, Dataset]:
    """The options of a run, `max_seq_len` being that of the data, and its data.

    Args:
        data_dir: holds `<category>.npz`, QuickDraw files.
        log_root: the model directory.
        options: as on the command line; those not given are those of the run that is resumed or
            of the model to start from, or the defaults.
        resume: whether to go on with the run in `log_root`.
        start_from: a model directory that a new run begins with, or None.

    Raises:
        UserError: wrong options or data; a directory that holds another run; fewer training
            sketches than a batch.
    """
    saved = _saved_config(log_root, resume)
    hparams = parse_hparams(options, _base_options(saved, start_from))
    data = load_dataset(data_dir, hparams)
    hparams = hparams.replace(max_seq_len=data.max_seq_len)
    if saved:
        _check_same_run(hparams, saved, data, log_root)
    # A run that has begun is not stopped by it.
    notes = require_sensible(data, hparams.categories, refuse=saved is None)
    data = replace(data, warnings=(*data.warnings, *notes))
    if len(data.splits["train"]) < hparams.batch_size:
        raise UserError(
            f"{data_dir}: {len(data.splits['train'])} training sketches are less than one "
            f"batch of {hparams.batch_size}; use more sketches or a smaller batch_size"
        )
    return hparams, data


def _saved_config(log_root: Path, resume: bool) -> ModelConfig | None:
    """The configuration of the run in a directory, or None where there is none to go on with."""
    config, latest = log_root / CONFIG_NAME, log_root / checkpoints.LATEST
    there = [p for p in (config, latest, log_root / checkpoints.BEST) if p.exists()]
    if not resume:
        if there:
            raise UserError(
                f"{log_root} already holds a run ({there[0].name}); go on with it with "
                "--resume_training=True (in Python resume=True) or choose another log_root"
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


def _base_options(saved: ModelConfig | None, start_from: str | Path | None) -> HParams | None:
    """Where options come from that are not given: the run, the model to start from, or None."""
    if saved:
        return saved.hparams
    if start_from:
        return read_config(Path(start_from) / CONFIG_NAME).hparams.replace(max_seq_len=-1)
    return None


def _check_same_run(hparams: HParams, saved: ModelConfig, data: Dataset, log_root: Path) -> None:
    """Raises UserError where options or data are not those that a run was started with."""
    known = saved.hparams
    if known.max_seq_len == -1:  # an imported model may not know its longest sketch yet
        known = known.replace(max_seq_len=data.max_seq_len)
    checkpoints.check_same_run(hparams, known, log_root)
    if saved.scale_factor not in (None, data.scale_factor):
        raise UserError(
            f"{log_root}: can't resume with other data: the run's sketches have the scale factor "
            f"{saved.scale_factor}, those given {data.scale_factor}"
        )


def print_plan(data: Dataset, hparams: HParams, model: SPGra2Seq, group: DeviceGroup) -> None:
    """Prints what a run is about to do."""
    _print_data(data, hparams)
    print(
        f"Updates:    up to {hparams.num_steps}, {len(data.splits['train']) // hparams.batch_size} "
        f"an epoch in batches of {hparams.batch_size}"
    )
    print(f"Parameters: {model.count_params():,} ({hparams.dec_model} decoder)")
    names = ", ".join(group.devices or keras.distribution.list_devices())
    print(f"Device:     {names} ({keras.backend.backend()} backend)", flush=True)
    if why_no_gpu():
        print(f"Note: {why_no_gpu()}", flush=True)


def _print_data(data: Dataset, hparams: HParams) -> None:
    """Prints what was loaded."""
    for warning in data.warnings:
        print(f"Note: {warning}.")
    counts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    edges = f", {hparams.edge_kind} edges" if hparams.edge_kind else ""
    print(f"Method:     {hparams.method}{edges}; masking in training: {hparams.training_masking}")
    print(f"Categories: {', '.join(hparams.categories)}")
    print(f"Sketches:   {counts}; at most {data.max_seq_len} rows each")


def start_or_resume(
    data: Dataset,
    hparams: HParams,
    log_root: Path,
    group: DeviceGroup,
    model: SPGra2Seq,
    start_from: str | Path | None,
    patience: int,
) -> RunState:
    """The state of a new run, or of the latest checkpoint, from which the model is restored.

    A new run's configuration and first checkpoint are written.

    Args:
        data: all splits.
        hparams: the options.
        log_root: the model directory.
        group: the devices that share the run, whose processes all call this.
        model: a compiled model, which takes weights or starts its clusters.
        start_from: a model directory whose weights a new run begins with, or None.
        patience: validations in a row without improvement that end a run.

    Raises:
        UserError: a damaged checkpoint; a run on other data or with more than `num_steps`
            updates; a file that can't be written.
    """
    fingerprint = data.fingerprint()
    fresh = not (log_root / checkpoints.LATEST).exists()
    if fresh:
        state = RunState(data=fingerprint)
    else:
        state = checkpoints.restore_latest(log_root, model, model.optimizer)
        if state.data not in ("", fingerprint):
            raise UserError(
                f"{log_root}: can't resume with other data: these sketches are not the run's"
            )
        state.data = fingerprint
        if math.isfinite(state.best_loss):
            checkpoints.check_best(log_root, model)
        made = state.total_steps
        if made > hparams.num_steps:
            raise UserError(
                f"num_steps={hparams.num_steps} is not allowed: {log_root} has made {made} updates"
            )
        if state.failures < patience:  # num_steps may be another than before
            done = made == hparams.num_steps
            state.finished = f"all {made} updates are made" if done else ""
        if state.finished:
            return state
    group.barrier()  # no process may find what another writes, and take it for an older run
    if group.is_main_process:
        write_config(log_root / CONFIG_NAME, hparams, data.scale_factor)
    if fresh:
        if start_from:
            checkpoints.load_weights(start_from, model)
        else:
            model.start_clusters(
                next(training_batches(data.splits["train"], hparams, data.max_seq_len, workers=1))
            )
        if group.is_main_process:
            # A disk that is too small shows now and not after hours.
            checkpoints.save_latest(log_root, model, model.optimizer, state)
    return state


def check(data_dir: str | Path, log_root: str | Path, options: str = "") -> list[Finding]:
    """Looks through the data that a training would use, and trains nothing.

    Args:
        data_dir: holds `<category>.npz`, QuickDraw files.
        log_root: takes data_check.png, some sketches of each category, drawn for encoding.
        options: as on the command line, "categories=[bee,bus],batch_size=64".

    Returns:
        What looks wrong.

    Raises:
        UserError: wrong options, or data that can't be read; a file that can't be written.
    """
    hparams = parse_hparams(options)
    data = load_dataset(data_dir, hparams)
    findings = check_data(data, hparams.categories)
    _print_data(data, hparams)
    for finding in findings:
        kind = "Wrong" if finding.fatal else "Note"
        print(f"{kind}: {finding.category}: {finding.text}.")
    if not findings:
        print("Nothing looks wrong.")
    path = Path(log_root) / CHECK_NAME
    with write_to(log_root, "data check", (CHECK_NAME,)):
        write_contact_sheet(path, data, hparams, hparams.categories)
    print(f"Some sketches of each category, as they are drawn for encoding: {path}")
    return findings
