"""A sample directory: generated sketches, and what samples.json says of their making.

`sample.py` writes it; the measures read it here, and leave their results in it.
"""

import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dataset
import drawing
import inference
from checkpoints import BEST, write_arrays
from dataset import Split
from hparams import CONFIG_NAME, HParams, read_config
from support.checks import MAX_BATCH, MAX_SEED, check_real, check_whole, check_workers
from support.files import (
    UserError,
    file_sha256,
    is_of_type,
    read_json,
    read_npy,
    write_errors,
    write_file,
    write_json,
)

SAMPLES_NAME = "samples.json"
PICTURES = ("svg", "png")
ADVICE = "sample into another directory"
Key = tuple[int, int]  # category, and the sketch's row in its split's file


@dataclass(frozen=True)
class SampleMetadata:
    """What samples.json says. Beside published samples it is absent, and nothing is known: None.

    Attributes:
        model_dir: the model that drew the samples.
        model_sha256: checksum of its weights.
        data_dir: the data that they were made from.
        data_sha256: checksum of these sketches.
        scale_factor: raw units per model unit.
        categories: those sampled.
        split: train, valid or test.
        num_per_category: the first so many sketches of each category's file.
        prob: share of the patches that was erased.
        masking: how; see `sample.sample`.
        random_seed_sha256: checksum of the numbers that decided what was erased.
        temperature: of the drawing.
        greedy: whether the most likely was drawn.
        seed: of the drawing.
        batch_size: sketches drawn at a time.
        pictures: which of svg and png were written.
        max_seq_len: most rows of a sketch.
        counts: sketches of each category.
    """

    model_dir: str | None = None
    model_sha256: str | None = None
    data_dir: str | None = None
    data_sha256: str | None = None
    scale_factor: float | None = None
    categories: list[str] | None = None
    split: str | None = None
    num_per_category: int | None = None
    prob: float | None = None
    masking: str | None = None
    random_seed_sha256: str | None = None
    temperature: float | None = None
    greedy: bool | None = None
    seed: int | None = None
    batch_size: int | None = None
    pictures: list[str] | None = None
    max_seq_len: int | None = None
    counts: dict[str, int] | None = None

    def differences(self, other: "SampleMetadata") -> list[str]:
        """What differs from other samples; model and data count by fingerprint, not by place."""
        return [
            f"{f.name} was {getattr(other, f.name)}, is {getattr(self, f.name)}"
            for f in fields(self)
            if f.name not in ("model_dir", "data_dir")
            and getattr(self, f.name) != getattr(other, f.name)
        ]


class Samples(NamedTuple):
    """Generated sketches beside the originals that they were made from.

    Attributes:
        sample_dir: their directory.
        hparams: options of the model.
        split: all sketches of the split that the samples were made from, in model units.
        keys: (category, index) of each generated sketch, sorted.
        sketches: the generated sketches, stroke-3 (n, 3) in model units, n >= 0.
        members: int64, the original's position in `split` for each key.
        metadata: what made the samples.
        warnings: what a user should know, a line each.
    """

    sample_dir: Path
    hparams: HParams
    split: Split
    keys: list[Key]
    sketches: list[np.ndarray]
    members: np.ndarray
    metadata: SampleMetadata
    warnings: tuple[str, ...]


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
    metadata = read_metadata(path) if path.exists() else SampleMetadata()
    if metadata.model_sha256 not in (None, model_sha256):
        raise UserError(
            f"{sample_dir}: its samples were made by another model, that in {metadata.model_dir}, "
            f"not by that in {model_dir}"
        )
    split_name = metadata.split or "test"
    data, warnings = load_split(data_dir, config.hparams, config.scale_factor, split_name)
    split = data.splits[split_name]
    warnings = [*warnings, *data.warnings]
    positions = {split.key(i): i for i in range(len(split))}
    for key in keys:
        if key not in positions:
            raise UserError(
                f"{stroke_path(sample_dir, key)}: belongs to no sketch in {data_dir}: there is no "
                f"usable {split_name} sketch {key[1]} of the model's category {key[0]} "
                f"({_name(config.hparams, key[0])})"
            )
    if path.exists():
        first = split.in_first_rows(metadata.num_per_category)
        names = np.array(config.hparams.categories)[split.category[first]]
        made = first[np.isin(names, metadata.categories)].tolist()
        if metadata.data_sha256 != split_sha256(split, made):
            raise UserError(
                f"{sample_dir}: its samples were made from other data, that in "
                f"{metadata.data_dir}, not from that in {data_dir}"
            )
        if metadata.scale_factor != data.scale_factor:
            raise UserError(
                f"{sample_dir}: its samples have the scale factor {metadata.scale_factor}, the "
                f"model {data.scale_factor}"
            )
        strangers = set(keys) - {split.key(i) for i in made}
        if strangers:
            raise UserError(
                f"{stroke_path(sample_dir, min(strangers))}: is none of the samples that "
                f"{SAMPLES_NAME} speaks of; move it elsewhere"
            )
        if len(keys) < len(made):
            warnings.append(f"only {len(keys)} of {len(made)} samples are there")
    else:
        warnings.append(
            f"{sample_dir} has no {SAMPLES_NAME}, as samples of the published code; taking them "
            f"for {split_name} sketches redrawn by the model in {model_dir}"
        )
    metadata = replace(
        metadata,
        model_dir=str(Path(model_dir).resolve()),
        model_sha256=model_sha256,
        data_dir=str(Path(data_dir).resolve()),
        scale_factor=data.scale_factor,
    )
    members = np.array([positions[key] for key in keys])
    sketches = [read_strokes(stroke_path(sample_dir, key)) for key in keys]
    return Samples(
        sample_dir, config.hparams, split, keys, sketches, members, metadata, tuple(warnings)
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
        The data, and warnings on what the model lacks, a line each.
    """
    needed = (split,)
    warnings = []
    if scale_factor is None:
        needed = tuple({"train", split})
        categories = None
        warnings.append("the model has no scale factor; it is computed from the training sketches")
    if hparams.max_seq_len == -1:
        needed, categories = dataset.SPLITS, None
    data = dataset.load_dataset(
        data_dir, hparams, scale_factor=scale_factor, splits=needed, categories=categories
    )
    if hparams.max_seq_len == -1:
        warnings.append(f"the model has no longest sketch; taking {data.max_seq_len} rows")
    return data, warnings


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
    result = {**asdict(samples.metadata), "model_options": samples.hparams.used(), **measure}
    write_json(samples.sample_dir / name, result)
    return result


def write_outcomes(
    name: str, samples: Samples, outcomes: dict[str, np.ndarray], **made_with: Any
) -> None:
    """Writes what a measure found for each sample, as .npz, whole or not at all.

    Args:
        name: of the file, in the directory of the samples.
        samples: what was measured.
        outcomes: arrays of a row a sample, in the order of `samples.keys`.
        made_with: what else the outcomes depend on, kept beside what made the samples.
    """
    write_arrays(
        samples.sample_dir / name,
        {"keys": np.array(samples.keys), **outcomes},
        {"samples": asdict(samples.metadata), **made_with},
    )


def stroke_path(sample_dir: Path, key: Key) -> Path:
    """Where a generated sketch is, or goes."""
    return sample_dir / f"stroke_{key[0]}_{key[1]}.npy"


def write_sample(
    output_dir: Path,
    key: Key,
    sketch: np.ndarray,
    code: np.ndarray,
    pictures: Sequence[str],
) -> None:
    """Writes the files of one sketch; its strokes come last and mark it as complete."""
    category, index = key
    name = f"{category}_{index}"
    paths = {ending: output_dir / f"{name}.{ending}" for ending in pictures}
    code_path = output_dir / f"code_{name}.npy"
    # Only the strokes' file must be whole: without it the others are written again.
    with write_errors(code_path):
        np.save(code_path, code[None])
    if "svg" in pictures:
        with write_errors(paths["svg"]):
            paths["svg"].write_text(drawing.to_svg(sketch))
    if "png" in pictures:
        with write_errors(paths["png"]):
            paths["png"].write_bytes(drawing.png(drawing.to_picture(sketch)))
    write_file(
        stroke_path(output_dir, key),
        lambda file: np.save(file, sketch[None]),
        survives_power_loss=False,
    )


def read_strokes(path: Path) -> np.ndarray:
    """A generated sketch, stroke-3 (n, 3), n >= 0.

    Raises:
        UserError: no such file, or it holds something else.
    """
    array = read_npy(path)
    good = array.dtype.kind in "iuf" and array.ndim == 3 and array.shape[::2] == (1, 3)
    if good:
        with np.errstate(over="ignore"):
            farthest = np.abs(array).sum(axis=1)  # of its own type, as it is drawn
        good = bool((farthest.astype(np.float64) < drawing.MAX_OFFSET).all())  # no NaN
    if not good:
        raise UserError(f"{path}: holds no sketch, a finite array of shape (1, n, 3)")
    return array[0]


def read_metadata(path: Path) -> SampleMetadata:
    """What samples.json says.

    Raises:
        UserError: it is damaged.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged, no object; {ADVICE}")
    kinds = {f.name: f.type for f in fields(SampleMetadata)}
    for name in kinds:
        if name not in values:
            raise UserError(f"{path}: does not say {name}; {ADVICE}")
    metadata = SampleMetadata(**{name: values[name] for name in kinds})
    good = {name: is_of_type(values[name], kind) for name, kind in kinds.items()}
    good["num_per_category"] &= bool(metadata.num_per_category)
    good["categories"] &= bool(metadata.categories)
    good["split"] &= metadata.split in dataset.SPLITS
    for name, is_good in good.items():
        if not is_good:
            raise UserError(f"{path}: damaged, {name} is {values[name]!r:.60}; {ADVICE}")
    return metadata


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


def scope(split: Split, members: Sequence[int], num_per_category: int, name: str) -> str:
    """Which sketches of a split are used, for titles: how many, and of how many.

    Args:
        split: the sketches.
        members: positions of those used.
        num_per_category: the first so many of each category.
        name: of the split.
    """
    count = len(np.unique(split.category[members]))
    kinds = f"{count} categories" if count > 1 else "one category"
    if len(members) == len(split):
        return f"{len(members):,} {name} sketches of {kinds}"
    each = f", the first {num_per_category:,} of each"
    return f"{len(members):,} of {len(split):,} {name} sketches of {kinds}{each}"


def check_options(
    num_per_category: int,
    prob: float,
    temperature: float,
    seed: int,
    split: str,
    batch_size: int,
    pictures: Sequence[str],
    workers: int | None,
) -> None:
    """Raises UserError for an option of sampling that is not allowed."""
    check_whole("num_per_category", num_per_category, 1)
    check_real("prob", prob, 0, 1)
    check_real("temperature", temperature, inference.MIN_TEMPERATURE, inference.MAX_TEMPERATURE)
    check_whole("seed", seed, 0, MAX_SEED)
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    check_workers(workers)
    if split not in dataset.SPLITS:
        raise UserError(f"split: {split!r} is not allowed; one of {', '.join(dataset.SPLITS)}")
    for kind in pictures:
        if kind not in PICTURES:
            raise UserError(f"pictures: {kind!r} is not allowed; svg, png, both or none")


def check_masking(masking: str, hparams: HParams) -> None:
    """Raises UserError for a way of masking that the model's method does not have."""
    if masking not in hparams.traits.masking:
        raise UserError(
            f"masking: {masking!r} is not allowed; one of {', '.join(hparams.traits.masking)} "
            f"with a model of method={hparams.method}"
        )


def _find_keys(sample_dir: Path) -> list[Key]:
    if not sample_dir.is_dir():
        raise UserError(f"{sample_dir}: there is no such directory")
    keys = []
    for path in sample_dir.iterdir():  # glob would find nothing where it may not look
        if not path.match("stroke_*.npy"):
            continue
        match = re.fullmatch(r"stroke_(0|[1-9]\d*)_(0|[1-9]\d*)\.npy", path.name)
        if not match:
            raise UserError(
                f"{path}: is not a stroke_{{category}}_{{index}}.npy; move it elsewhere"
            )
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
