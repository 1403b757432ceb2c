"""Turns a checkpoint of SP-gra2seq's published TensorFlow 1.12 code into a model directory.

Those of the other methods belong to other decoders, and SketchLattice's lack trained layers.

python import_checkpoint.py --checkpoint_dir=PUBLISHED --model_dir=OUT [--step=N] [--data_dir=DIR]
"""

import math
import re
from pathlib import Path

import numpy as np
from absl import flags

import checkpoints
import dataset
from checkpoints import RunState
from hparams import CONFIG_NAME, read_config, write_config
from model import Adam, SPGra2Seq
from support import cli
from support.files import UserError, one_line, read_npz

SCOPE = "SP-gra2seq/"
PARAMETERS_NAME = "para.npz"
MAX_STATE_FILE = 2**20  # characters of the file that names the latest checkpoint
CELL_SCOPES = {"lstm": "LSTMCell", "layer_norm": "LayerNormLSTMCell", "hyper": "HyperLSTMCell"}
PUBLISHED_NAMES = {
    "clusters/latent_mu": "latent_mu",
    "graph/gcn_weight_1": "encoders/gcn_weight_1",
    "graph/gcn_weight_2": "encoders/gcn_weight_2",
    "graph/fc_mu": "encoders/fc_mu/linear/fc_w",
    "graph/fc_sigma2": "encoders/fc_sigma2/linear/fc_w",
    "decoder/init_state": "decoder/init_state/linear/fc_w",
    "decoder/fc": "decoder/decoder/fc/linear/fc_w",
}


def published_name(path: str, dec_model: str) -> str:
    """The name that the published implementation gives a variable of ours.

    Args:
        path: Keras path of a weight, as in "cell/W_xh".
        dec_model: lstm, layer_norm or hyper.
    """
    if path in PUBLISHED_NAMES:
        return SCOPE + PUBLISHED_NAMES[path]
    layer, name = path.split("/")
    if layer == "encoder":
        return f"{SCOPE}encoders/{name}/filter"
    if layer.startswith("BatchNorm"):
        return f"{SCOPE}encoders/{layer}/{name}"
    scope = f"{SCOPE}decoder/decoder/rnn/{CELL_SCOPES[dec_model]}/"
    if layer == "hyper_cell":
        scope += f"{CELL_SCOPES['layer_norm']}/"
    name = re.sub(r"^(ln_\w+)_(gamma|beta)$", r"\1/ln_\2", name)
    name = re.sub(r"^(hyper_\w\w)_(\w+)_(w|b)$", r"\1/\2/super_linear_\3", name)
    return scope + name


def import_checkpoint(
    checkpoint_dir: str | Path,
    model_dir: str | Path,
    *,
    step: int | None = None,
    data_dir: str | Path | None = None,
) -> list[str]:
    """Writes a model directory from a published checkpoint, or nothing.

    Args:
        checkpoint_dir: holds vector-N.index and .data-00000-of-00001, N the epoch, and
            model_config.json; `checkpoint` and para.npz are used if they are there.
        model_dir: the directory to write.
        step: N; None: the one that `checkpoint` names, else the largest.
        data_dir: the data that the model was trained on, from which the scale factor (which a
            published checkpoint doesn't hold) is computed.

    Returns:
        Warnings, a line each.

    Raises:
        UserError: no checkpoint, a damaged one, or one of another model: a variable missing, left
            over or of the wrong shape; a model_dir that holds a model.
    """
    checkpoint_dir, model_dir = Path(checkpoint_dir), Path(model_dir)
    for name in (CONFIG_NAME, checkpoints.BEST, checkpoints.LATEST):
        if (model_dir / name).exists():
            raise UserError(f"{model_dir} already holds a model ({name}); choose another")
    prefix = _find_prefix(checkpoint_dir, step)
    config = read_config(checkpoint_dir / CONFIG_NAME, allow_unknown=True)
    hparams, scale_factor = config.hparams, config.scale_factor
    if hparams.method != "sp_gra2seq":
        raise UserError(
            f"{checkpoint_dir / CONFIG_NAME}: method={hparams.method}; only checkpoints of "
            "SP-gra2seq can be imported, those of other methods belong to other decoders"
        )
    warnings = []
    if config.unknown:
        ignored = one_line(ValueError(", ".join(config.unknown)))
        warnings.append(f"options without a meaning here, ignored: {ignored}")
    model = SPGra2Seq(hparams)
    names = {v.path: published_name(v.path, hparams.dec_model) for v in model.weights}
    values = _read_variables(prefix, {names[v.path]: tuple(v.shape) for v in model.weights})
    for variable in model.weights:
        variable.assign(values[names[variable.path]])
    state, warning = _read_parameters(checkpoint_dir, prefix)
    warnings += [warning] if warning else []
    if data_dir is not None:
        data = dataset.load_dataset(data_dir, hparams)
        scale_factor = data.scale_factor
        hparams = hparams.replace(max_seq_len=data.max_seq_len)
        warnings.append(f"scale factor of the training sketches in {data_dir}: {scale_factor}")
    elif scale_factor is None:
        warnings.append(
            "the checkpoint holds no scale factor: what it generates is in model units, raw "
            "offsets divided by the standard deviation of its training set; with data_dir it is "
            "computed and stored, otherwise each command computes it from the data it is given"
        )
    optimizer = Adam(hparams)
    optimizer.build(model.trainable_variables)
    optimizer.schedule_step.assign(state.global_step)
    with checkpoints.writing_model(model_dir):
        checkpoints.save_best(model_dir, model, state)
        checkpoints.save_latest(model_dir, model, optimizer, state)
        write_config(model_dir / CONFIG_NAME, hparams, scale_factor)
    return [f"{len(values)} variables of {prefix} imported", *warnings]


def _find_prefix(checkpoint_dir: Path, step: int | None) -> Path:
    """The checkpoint's path without its endings."""
    steps = sorted(
        int(match[1])
        for path in checkpoint_dir.glob("vector-*.index")
        if (match := re.fullmatch(r"vector-(\d{1,18})\.index", path.name))
    )
    if not steps:
        raise UserError(f"{checkpoint_dir}: no published checkpoint, there is no vector-N.index")
    if step is None:
        step = _latest_step(checkpoint_dir) or steps[-1]
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise UserError(f"{checkpoint_dir}: vector-{step}.index not found; steps there: {there}")
    prefix = checkpoint_dir / f"vector-{step}"
    if not list(checkpoint_dir.glob(f"{prefix.name}.data-*")):
        raise UserError(f"{prefix}.data-00000-of-00001: not found")
    return prefix


def _latest_step(checkpoint_dir: Path) -> int | None:
    """The step that the file `checkpoint` names; its paths may be those of another machine."""
    try:
        with open(checkpoint_dir / "checkpoint") as file:
            text = file.read(MAX_STATE_FILE)
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search(r'^model_checkpoint_path:\s*"(?:.*[/\\])?vector-(\d+)"', text, re.MULTILINE)
    return int(match[1]) if match and len(match[1]) < 19 else None


def _read_variables(prefix: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The values of the expected variables, once names, shapes and types are found right."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError("importing a published checkpoint needs TensorFlow installed") from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = reader.get_variable_to_shape_map()
        types = reader.get_variable_to_dtype_map()
        found = {name: (tuple(shape), types[name].name) for name, shape in shapes.items()}
        _check_variables(expected, found, prefix)  # before any memory is taken for them
        values = {name: reader.get_tensor(name) for name in expected}
    except UserError:
        raise
    except Exception as error:  # a broken file can fail in any way
        raise UserError(f"{prefix}: damaged, it can't be read ({one_line(error)})") from error
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(f"{prefix}: damaged, {name} has values that are not finite")
    return values


def _check_variables(
    expected: dict[str, tuple[int, ...]],
    found: dict[str, tuple[tuple[int, ...], str]],
    prefix: Path,
) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} does not belong to this model" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and found[name][0] != shape:
            problems.append(f"{name} has the shape {found[name][0]}, not {shape}")
        if name in found and found[name][1] != "float32":
            problems.append(f"{name} is of the type {found[name][1]}, not float32")
    if problems:
        shown = "; ".join(one_line(ValueError(problem)) for problem in problems[:4])
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{prefix}: not a checkpoint of this model: {shown}{more}")


def _read_parameters(checkpoint_dir: Path, prefix: Path) -> tuple[RunState, str]:
    """Epoch, step count and best loss; a warning where they are not known."""
    path = checkpoint_dir / PARAMETERS_NAME
    epoch = int(prefix.name.partition("-")[2])
    if not path.exists():
        return RunState(total_epochs=epoch, epoch=epoch), (
            f"no {PARAMETERS_NAME}: training would go on with the first step's learning rate"
        )
    parameters = read_npz(path)
    try:
        best = float(parameters["best_valid_loss"].item())
        count, saved_epoch = (int(parameters[name].item()) for name in ("count", "epoch"))
        if math.isnan(best) or not 0 <= count < 2**63:
            raise ValueError(f"best_valid_loss {best}, count {count}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: damaged, no training counters ({one_line(error)})") from error
    if saved_epoch != epoch:
        return RunState(total_epochs=epoch, epoch=epoch), (
            f"{PARAMETERS_NAME} belongs to epoch {saved_epoch}, not {epoch}: training would go on "
            "with the first step's learning rate"
        )
    return RunState(
        total_steps=count, total_epochs=epoch, global_step=count, epoch=epoch, best_loss=best
    ), ""


def main() -> None:
    """Imports as the flags say."""
    values = flags.FLAGS
    warnings = import_checkpoint(
        values.checkpoint_dir, values.model_dir, step=values.step, data_dir=values.data_dir
    )
    for warning in warnings:
        print(f"{warning[0].upper()}{warning[1:]}.")
    print(f"The model is in {values.model_dir}.")


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string(
        "checkpoint_dir",
        None,
        "Directory of a published checkpoint of SP-gra2seq, no other method.",
    )
    flags.DEFINE_string("model_dir", None, "Directory to write the model to.")
    flags.DEFINE_integer(
        "step", None, "N of vector-N; by default the latest, as the file checkpoint names it.", 0
    )
    flags.DEFINE_string(
        "data_dir", None, "Data that the model was trained on, for the scale factor."
    )
    flags.mark_flags_as_required(["checkpoint_dir", "model_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
