"""Every option of the model and its training: once, typed, bounded and documented.

`parse_hparams` reads options as a command line writes them (`categories=[bee,bus],z_size=64`), or
from an option file (`@configs/comparison`); `write_config` and `read_config` keep them in the
model directory. Every mistake in an option, from whatever side, is a `UserError` of one line.
"""

import difflib
import functools
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from methods import METHODS, Method, shared_options, unused_options
from support.checks import MAX_LEARNING_RATE, MAX_TRAINING_SEED
from support.files import UserError, read_json, write_json
from support.option_text import read_options, shown

CONFIG_NAME = "model_config.json"
AUTO = "auto"  # of an option: what suits the method
MAX_ROWS = 10**6  # of a sketch
MAX_MEMORY = 10**12  # bytes of a training step; no device has as much

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
_NAMES_ALLOWED = "a list in brackets of one or more names, all different, without path separators"
_KEEP = "Keep (not drop) probability of the decoder's"


def _choices(name: Literal["edges", "masking"]) -> str:
    """What is allowed for an option that depends on the method."""
    choices = {method: getattr(traits, name) for method, traits in METHODS.items()}
    return "; ".join(
        [AUTO, *(f"{method}: {' or '.join(found)}" for method, found in choices.items() if found)]
    )


class HParams(BaseModel):
    """All options, frozen; `UserError` for a bad one. `categories` is a tuple of names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    categories: tuple[str, ...] = Field(
        ("bee", "bus"),
        strict=False,
        json_schema_extra={"allowed": _NAMES_ALLOWED},
        description="Categories to learn; the data directory holds one <category>.npz for each.",
    )
    method: str = Field(
        "sp_gra2seq",
        json_schema_extra={"allowed": " or ".join(METHODS)},
        description="The encoder, with its nodes, edges and masking.",
    )
    edges: str = Field(
        AUTO,
        json_schema_extra={"allowed": _choices("edges")},
        description="What links the nodes; auto: the first that the method has.",
    )
    num_steps: int = Field(
        1000001, ge=1, le=10**12, description="Most optimiser updates that a run makes."
    )
    save_every: int = Field(1, ge=1, le=10**9, description="Epochs between two validations.")
    dec_rnn_size: int = Field(1024, ge=1, le=2**16, description="Units of the decoder's cell.")
    dec_model: Literal["lstm", "layer_norm", "hyper"] = Field(
        "lstm", description="Kind of the decoder's cell."
    )
    max_seq_len: int = Field(
        -1,
        json_schema_extra={"allowed": f"-1 or an integer, at least 1 and at most {MAX_ROWS}"},
        description="Most rows of a sketch, longer ones being left out; -1: the data's longest.",
    )
    z_size: int = Field(128, ge=1, le=2**16, description="Length of a sketch's code.")
    batch_size: int = Field(128, ge=1, le=2**16, description="Sketches in a training step.")
    graph_number: int = Field(
        21, ge=2, le=2**12, description="Graph nodes: whole picture and patches."
    )
    graph_picture_size: int = Field(
        256, ge=2, le=256, multiple_of=2, description="Side of a node's picture in pixels."
    )
    drawing_size: int = Field(
        640, ge=64, le=4096, description="Pixels of a sketch's longer side, before it is cropped."
    )
    lattice_size: int = Field(
        32, ge=1, le=256, description="Lines of the lattice in each direction."
    )
    lattice_nodes: int = Field(
        150, ge=1, le=1024, description="Most points of the lattice; of more, some are left out."
    )
    num_mixture: int = Field(
        30,
        ge=1,
        le=2**24,
        description="Cluster centroids, at most batch_size * (graph_number - 1).",
    )
    learning_rate: float = Field(
        0.001, gt=0, le=MAX_LEARNING_RATE, description="Learning rate of the first step."
    )
    decay_rate: float = Field(0.9999, gt=0, le=1, description="Decay of the rate at each step.")
    min_learning_rate: float = Field(
        0.00001, ge=0, description="Learning rate that the decay ends in, at most learning_rate."
    )
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        "float32",
        description="mixed_bfloat16: large matrix products in bfloat16, all else in float32.",
    )
    grad_clip: float = Field(
        1.0, gt=0, le=1e30, description="Largest norm of each variable's gradient."
    )
    use_recurrent_dropout: bool = Field(False, description="Dropout on the cell's candidates.")
    recurrent_dropout_prob: float = Field(
        0.0, ge=0, le=1, description=f"{_KEEP} candidates; above 0 where it is used."
    )
    use_input_dropout: bool = Field(False, description="Dropout on the decoder's inputs.")
    input_dropout_prob: float = Field(
        0.0, ge=0, le=1, description=f"{_KEEP} inputs; above 0 where it is used."
    )
    use_output_dropout: bool = Field(False, description="Dropout on the decoder's outputs.")
    output_dropout_prob: float = Field(
        0.0, ge=0, le=1, description=f"{_KEEP} outputs; above 0 where it is used."
    )
    random_scale_factor: float = Field(
        0.0, ge=0, lt=1, description="Most that a training sketch is stretched or shrunk per axis."
    )
    augment_stroke_prob: float = Field(
        0.0, ge=0, le=1, description="Probability of merging a training point into the one before."
    )
    is_training: bool = Field(
        True, description="Published option kept with the model; each command sets its own mode."
    )
    seed: int = Field(
        0, ge=0, le=MAX_TRAINING_SEED, description="Seed of every random number of the run."
    )
    num_per_category: int = Field(
        0, ge=0, le=10**9, description="Training sketches used of each category; 0 means all."
    )
    mask_prob: float = Field(
        0.1, ge=0, le=1, description="Share of a sketch's patches that is erased in training."
    )
    split_train: float = Field(
        0.0,
        ge=0,
        le=0.4,
        description="Share of the training sketches that becomes the validation set of a file "
        "without one, and as many the test set; 0: such a file is refused.",
    )
    masking: str = Field(
        AUTO,
        json_schema_extra={"allowed": _choices("masking")},
        description="How they are erased in training; auto: the first that the method has.",
    )

    def __init__(self, /, **options: Any) -> None:
        """Check the options given; the others take their defaults. `UserError` for a bad one."""
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise UserError(_explain(error)) from None

    def memory_needed(self) -> dict[str, int]:
        """Roughly the bytes that a training step takes, by the options that each part depends on.

        As long as `max_seq_len` is -1, nothing is counted for the length of the sketches.
        """
        batch, graph, units, code = (
            self.batch_size,
            self.graph_number,
            self.dec_rnn_size,
            self.z_size,
        )
        steps, number = max(self.max_seq_len, 0), 4  # bytes of a number
        nodes = batch * graph
        weights = 4 * units * (units + code + 5) + 2 * units * (code + 64)
        # The seven convolutions, halving sides and growing channels, have about 6 numbers a pixel.
        of_nodes = {
            "batch_size, graph_number and graph_picture_size": (
                nodes * self.graph_picture_size**2 * (1 + 2 * 6 * number)
            ),
            "batch_size and graph_number": 3 * batch * graph**2 * number,
            "batch_size, graph_number and num_mixture": nodes * self.num_mixture * number,
            "batch_size and lattice_nodes": 3 * batch * self.lattice_nodes**2 * number,
        }
        unused = unused_options(self.method)
        return {
            **{k: v for k, v in of_nodes.items() if not any(name in k for name in unused)},
            "dec_rnn_size and z_size": 4 * weights * number,  # and gradients, and Adam's two
            "max_seq_len, batch_size and dec_rnn_size": steps * batch * (10 * units + 300) * number,
        }

    def replace(self, /, **changes: Any) -> Self:
        """Return a checked copy with some options changed. `UserError` for a bad one."""
        # pydantic's own model_copy(update=...) checks nothing.
        return type(self)(**{**dict(self), **changes})

    @property
    def traits(self) -> Method:
        """What the method needs."""
        return METHODS[self.method]

    @property
    def edge_kind(self) -> str:
        """The edges that `edges` stands for; "" where the method has no choice."""
        return next(iter(self.traits.edges), "") if self.edges == AUTO else self.edges

    @property
    def training_masking(self) -> str:
        """The approach that `masking` stands for."""
        return self.traits.masking[0] if self.masking == AUTO else self.masking

    def used(self) -> dict[str, Any]:
        """The options that the method uses, by name, as JSON holds them."""
        unused = unused_options(self.method)
        values = self.model_dump(mode="json")
        return {name: value for name, value in values.items() if name not in unused}

    @field_validator("method")
    @classmethod
    def _check_method(cls, method: str) -> str:
        if method not in METHODS:
            raise ValueError(f"{shown(method)} is not allowed")
        return method

    @field_validator("categories")
    @classmethod
    def _check_categories(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("the list is empty")
        for place, name in enumerate(names):
            # The name becomes part of a file name.
            if not name.strip():
                raise ValueError("a name is empty")
            if "/" in name or "\\" in name or not name.isprintable():
                raise ValueError(f"{shown(name)} can't be part of a file name")
            if name in names[:place]:
                raise ValueError(f"{shown(name)} is given twice")
        return names

    @field_validator("max_seq_len")
    @classmethod
    def _check_max_seq_len(cls, length: int) -> int:
        if not (1 <= length <= MAX_ROWS or length == -1):
            raise ValueError(f"{shown(length)} is not allowed")
        return length

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name in unused_options(self.method):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(_not_used(name, self.method))
        for name in ("edges", "masking"):
            value, known = getattr(self, name), getattr(self.traits, name)
            if value != AUTO and value not in known:
                raise ValueError(
                    f"option {name}: {shown(value)} is not allowed with method={self.method}; "
                    f"allowed: {' or '.join([AUTO, *known])}"
                )
        patches = self.batch_size * (self.graph_number - 1)
        if "num_mixture" in self.traits.options and self.num_mixture > patches:
            raise ValueError(
                f"option num_mixture: {self.num_mixture} is not allowed with batch_size="
                f"{self.batch_size} and graph_number={self.graph_number}; allowed: at most "
                f"batch_size * (graph_number - 1) = {patches}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"option min_learning_rate: {self.min_learning_rate} is not allowed; allowed: at "
                f"most learning_rate = {self.learning_rate}"
            )
        needed = self.memory_needed()
        if sum(needed.values()) > MAX_MEMORY:
            largest = max(needed, key=needed.get)
            raise ValueError(
                f"options {largest}: training with these needs about "
                f"{sum(needed.values()) / 1e12:.3g} TB of memory; allowed: at most "
                f"{MAX_MEMORY / 1e12:.3g} TB"
            )
        for place in ("recurrent", "input", "output"):
            name = f"{place}_dropout_prob"
            if getattr(self, f"use_{place}_dropout") and getattr(self, name) == 0:
                raise ValueError(
                    f"option {name}: 0.0 is not allowed with use_{place}_dropout=True; it is a "
                    "keep probability; allowed: a number, above 0 and at most 1"
                )
        return self


def parse_hparams(text: str, base: HParams | None = None) -> HParams:
    """Read options as a command line gives them: `categories=[bee,The Mona Lisa],batch_size=64`.

    An option that the method does not use is refused, even at its default.

    What is not given comes from `base`, or else from the defaults. How a text is read, files of
    options included: see `read_options`.

    `UserError` for anything that is not understood or not allowed, and for a file that can't be
    read.
    """
    given = read_options(text, {name: option.get("type") for name, option in _schema().items()})
    hparams = (base or HParams()).replace(**given)
    for name in unused_options(hparams.method):
        if name in given and given[name] != AUTO:
            raise UserError(_not_used(name, hparams.method))
    return hparams


class ModelConfig(NamedTuple):
    """What `model_config.json` holds."""

    hparams: HParams
    scale_factor: float | None  # raw drawing units per model unit, > 0; None: not known
    unknown: dict[str, object]  # keys of the file that mean nothing here


def write_config(path: str | Path, hparams: HParams, scale_factor: float | None = None) -> None:
    """Write options (with `max_seq_len` as resolved from the data) and the data's scale factor
    (> 0) as JSON, so that an interruption leaves the old file or the new one, never a part.

    `UserError` where the file can't be written or the scale factor is not a positive number.
    """
    scale_factor = _check_scale_factor(scale_factor, path)
    values = {**hparams.used(), "scale_factor": scale_factor}
    write_json(path, values)


def read_config(path: str | Path, allow_unknown: bool = False) -> ModelConfig:
    """Read a `model_config.json`, ours or a published one; options it lacks take their defaults.

    Keys that are no options are an error, or, with `allow_unknown`, returned. `UserError`, naming
    the file, where it is missing, no JSON, or an option in it is not allowed.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no options, but {shown(values)}")
    scale_factor = _check_scale_factor(values.pop("scale_factor", None), path)
    strange = [name for name in values if name not in _schema()] if allow_unknown else []
    unknown = {name: values.pop(name) for name in strange}
    try:
        return ModelConfig(HParams(**values), scale_factor, unknown)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def option_rows() -> list[tuple[str, str, str, str]]:
    """Return (name, default as it is written on a command line, what is allowed, description)."""
    rows = []
    users = shared_options()
    for name, field in HParams.model_fields.items():
        default = f"[{','.join(field.default)}]" if name == "categories" else str(field.default)
        only = f" Only {', '.join(users[name])}." if name in users else ""
        rows.append((name, default, _allowed(name), f"{field.description}{only}"))
    return rows


def describe_options() -> str:
    """Return a text for `--help`, one option a line."""
    return "\n".join(
        f"{name}={default}: {description} ({allowed})"
        for name, default, allowed, description in option_rows()
    )


@functools.cache
def _schema() -> dict[str, dict[str, Any]]:
    return HParams.model_json_schema()["properties"]


def _not_used(name: str, method: str) -> str:
    users = ", ".join(shared_options()[name])
    return f"option {name}: method={method} does not use it; it belongs to {users}"


def _allowed(name: str) -> str:
    schema = _schema()[name]
    if "allowed" in schema:
        return schema["allowed"]
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema["type"] == "boolean":
        return "True or False"
    kind = "a number" if schema["type"] == "number" else "an integer"
    kind = "an even integer" if schema.get("multipleOf") == 2 else kind
    bounds = [f"{word} {schema[key]:.15g}" for key, word in _BOUNDS.items() if key in schema]
    return f"{kind}, {' and '.join(bounds)}"


def _explain(error: ValidationError) -> str:
    """Put the first mistake that pydantic found into one line."""
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        if first["type"] == "string_unicode":  # half of a character
            return f"unknown option {shown(first['input'])}"
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name.lower(), _schema(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_schema())}"
        return f"unknown option {shown(name)}: {hint}"
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
    else:
        problem = f"{shown(first['input'])} is not allowed"
    return f"option {name}: {problem}; allowed: {_allowed(name)}"


def _check_scale_factor(value: object, path: str | Path) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and 0 < value <= sys.float_info.max:
        return float(value)
    raise UserError(
        f"{path}: scale_factor: {shown(value)} is not allowed; allowed: a number above 0, or null"
    )
