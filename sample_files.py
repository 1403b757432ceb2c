"""A sample directory: generated sketches, and what samples.json says of their making.

`sample.py` writes it; the measures read it here, and leave their results in it.
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dataset
import drawing
from checkpoints import BEST
from dataset import Split
from hparams import CONFIG_NAME, HParams, UserError, read_config

SAMPLES_NAME = "samples.json"
# What samples.json says, in order. Beside published samples it is absent, and nothing is known.
FACTS = (
    "model_dir",
    "model_sha256",
    "data_dir",
    "data_sha256",
    "scale_factor",
    "categories",
    "split",
    "num_per_category",
    "prob",
    "masking",
    "random_seed_sha256",
    "temperature",
    "greedy",
    "seed",
    "batch_size",
    "pictures",
    "max_seq_len",
    "counts",
)
Key = tuple[int, int]  # category, and the sketch's row in its split's file


class Samples(NamedTuple):
    """Generated sketches beside the originals that they were made from.

    Attributes:
        sample_dir: their directory.
        hparams: options of the model.
        split: all sketches of the split that the samples were made from, in model units.
        keys: (category, index) of each generated sketch, sorted.
        sketches: the generated sketches, stroke-3 (n, 3) in model units, n >= 0.
        members: int64, the original's position in `split` for each key.
        facts: what made the samples, `FACTS`; None where it is not known.
        remarks: what a user should know, a line each.
    """

    sample_dir: Path
    hparams: HParams
    split: Split
    keys: list[Key]
    sketches: list[np.ndarray]
    members: np.ndarray
    facts: dict[str, Any]
    remarks: tuple[str, ...]


def load_samples(sample_dir: str | Path, data_dir: str | Path, model_dir: str | Path) -> Samples:
    """Finds the samples of a directory and the originals that they belong to.

    Args:
        sample_dir: holds stroke_{category}_{index}.npy, and samples.json unless the published
            code made them.
        data_dir: holds `<category>.npz` of the model's categories.
        model_dir: holds the model that the samples are measured with, which is the one that made
            them.

    Raises:
        UserError: no samples; a damaged one, or one of no sketch in the data; samples of another
            model or of other data; a directory that can't take the results.
    """
    sample_dir = Path(sample_dir)
    keys = _find_keys(sample_dir)
    _check_writable(sample_dir)  # now and not after minutes of work
    config = read_config(Path(model_dir) / CONFIG_NAME)
    model_sha256 = file_sha256(Path(model_dir) / BEST)
    path = sample_dir / SAMPLES_NAME
    facts = dict.fromkeys(FACTS) | (read_facts(path) if path.exists() else {})
    if facts["model_sha256"] not in (None, model_sha256):
        raise UserError(
            f"{sample_dir}: its samples were made by another model, that in {facts['model_dir']}, "
            f"not by that in {model_dir}"
        )
    split_name = facts["split"] or "test"
    data, remarks = load_split(data_dir, config.hparams, config.scale_factor, split_name)
    split = data.splits[split_name]
    remarks = [*remarks, *data.remarks]
    positions = {split.key(i): i for i in range(len(split))}
    for key in keys:
        if key not in positions:
            raise UserError(
                f"{stroke_path(sample_dir, key)}: belongs to no sketch in {data_dir}: there is no "
                f"usable {split_name} sketch {key[1]} of the model's category {key[0]} "
                f"({_name(config.hparams, key[0])})"
            )
    if path.exists():
        names = np.array(config.hparams.categories)[split.category]
        chosen = np.isin(names, facts["categories"]) & (split.index < facts["num_per_category"])
        made = np.flatnonzero(chosen).tolist()
        if facts["data_sha256"] != split_sha256(split, made):
            raise UserError(
                f"{sample_dir}: its samples were made from other data, that in "
                f"{facts['data_dir']}, not from that in {data_dir}"
            )
        if facts["scale_factor"] != data.scale_factor:
            raise UserError(
                f"{sample_dir}: its samples have the scale factor {facts['scale_factor']}, the "
                f"model {data.scale_factor}"
            )
        strangers = set(keys) - {split.key(i) for i in made}
        if strangers:
            raise UserError(
                f"{stroke_path(sample_dir, min(strangers))}: is none of the samples that "
                f"{SAMPLES_NAME} speaks of; move it elsewhere"
            )
        if len(keys) < len(made):
            remarks.append(f"only {len(keys)} of {len(made)} samples are there")
    else:
        remarks.append(
            f"{sample_dir} has no {SAMPLES_NAME}, as samples of the published code; taking them "
            f"for {split_name} sketches redrawn by the model in {model_dir}"
        )
    facts |= {"model_dir": str(Path(model_dir).resolve()), "model_sha256": model_sha256}
    facts |= {"data_dir": str(Path(data_dir).resolve()), "scale_factor": data.scale_factor}
    members = np.array([positions[key] for key in keys])
    sketches = [read_strokes(stroke_path(sample_dir, key)) for key in keys]
    return Samples(
        sample_dir, config.hparams, split, keys, sketches, members, facts, tuple(remarks)
    )


def load_split(
    data_dir: str | Path,
    hparams: HParams,
    scale_factor: float | None,
    split: str,
    categories: tuple[str, ...] | None = None,
) -> tuple[dataset.Dataset, list[str]]:
    """One split in the model's units, and what an imported model lacks, from all of the data.

    These are the scale factor and the longest sketch; without one of them, all categories come.

    Returns:
        The data, and remarks on what the model lacks, a line each.
    """
    needed = (split,)
    remarks = []
    if scale_factor is None:
        needed = tuple({"train", split})
        categories = None
        remarks.append("the model has no scale factor; it is computed from the training sketches")
    if hparams.max_seq_len == -1:
        needed, categories = dataset.SPLITS, None
    data = dataset.load_dataset(
        data_dir, hparams, scale_factor=scale_factor, splits=needed, categories=categories
    )
    if hparams.max_seq_len == -1:
        remarks.append(f"the model has no longest sketch; taking {data.max_seq_len} rows")
    return data, remarks


def write_result(name: str, samples: Samples, measure: dict[str, Any]) -> dict[str, Any]:
    """Writes a measure and all that it takes to reproduce it as JSON, whole or not at all.

    The keys are the same whatever the samples were made with.

    Args:
        name: of the file, in the directory of the samples.
        samples: what was measured.
        measure: the outcome.

    Returns:
        What was written.
    """
    options = samples.hparams.model_dump(mode="json")
    result = {**samples.facts, "model_options": options, **measure}
    drawing.write_text(samples.sample_dir / name, json.dumps(result, indent=1) + "\n")
    return result


def stroke_path(sample_dir: Path, key: Key) -> Path:
    """Where a generated sketch is, or goes."""
    return sample_dir / f"stroke_{key[0]}_{key[1]}.npy"


def read_strokes(path: Path) -> np.ndarray:
    """A generated sketch, stroke-3 (n, 3), n >= 0.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{path}: can't be read ({reason}); draw it again") from None
    good = isinstance(array, np.ndarray) and array.dtype.kind in "iuf"
    good = good and array.ndim == 3 and array.shape[::2] == (1, 3)
    if good:
        with np.errstate(over="ignore"):
            farthest = np.abs(array).sum(axis=1)  # of its own type, as it is drawn
        good = bool((farthest.astype(np.float64) < drawing.FARTHEST).all())  # no NaN
    if not good:
        raise UserError(f"{path}: holds no sketch, a finite array of shape (1, n, 3)")
    return array[0]


def read_facts(path: Path) -> dict[str, Any]:
    """What samples.json holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        facts = json.loads(path.read_text())
        missing = [name for name in FACTS if name not in facts]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); sample into another directory") from None
    if missing:
        raise UserError(f"{path}: does not say {missing[0]}; sample into another directory")
    number, names = facts["num_per_category"], facts["categories"]
    good = {
        "num_per_category": isinstance(number, int) and number > 0,
        "categories": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "split": facts["split"] in dataset.SPLITS,
    }
    for name, is_good in good.items():
        if not is_good:
            raise UserError(
                f"{path}: damaged, {name} is {facts[name]!r}; sample into another directory"
            )
    return facts


def file_sha256(path: str | Path) -> str:
    """Fingerprint of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error


def split_sha256(split: Split, members: list[int]) -> str:
    """Fingerprint of some sketches of a split, in order."""
    digest = hashlib.sha256()
    for member in members:
        start, end = split.ends[member : member + 2]
        digest.update(np.array([*split.key(member), end - start], np.int64).tobytes())
        # Of a type that does not depend on the rest of the data.
        rows = split.rows[start:end]
        whole = rows.astype(np.int16)
        digest.update((whole if np.array_equal(whole, rows) else rows).tobytes())
    return digest.hexdigest()


def _find_keys(sample_dir: Path) -> list[Key]:
    if not sample_dir.is_dir():
        raise UserError(f"{sample_dir}: there is no such directory")
    keys = []
    for path in sample_dir.iterdir():  # glob would find nothing where it may not look
        if not path.match("stroke_*.npy"):
            continue
        match = re.fullmatch(r"stroke_(0|[1-9]\d*)_(0|[1-9]\d*)\.npy", path.name)
        if not match:
            raise UserError(f"{path}: is no stroke_{{category}}_{{index}}.npy; move it elsewhere")
        keys.append((int(match[1]), int(match[2])))
    if not keys:
        raise UserError(f"{sample_dir}: holds no samples, there is no stroke_*.npy")
    return sorted(keys)


def _check_writable(sample_dir: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=sample_dir):
            pass
    except OSError as error:
        raise UserError(f"{sample_dir}: can't be written ({error.strerror})") from error


def _name(hparams: HParams, category: int) -> str:
    names = hparams.categories
    return names[category] if category < len(names) else f"it has {len(names)}, from 0"
