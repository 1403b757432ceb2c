"""The models of a comparison: what tells their methods apart, and whether they may be compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import checkpoints
import lattice
from checkpoints import BEST
from dataset import Dataset, load_dataset
from hparams import AUTO, CONFIG_NAME, HParams, read_config
from support.files import UserError, file_sha256

# Options that don't make another method of a model, or that its name tells.
NOT_COMPARED = ("seed", "is_training", "edges", "masking")


class Contestant(NamedTuple):
    """A model that takes part.

    Attributes:
        name: of its directory in the output: its own directory's, and 8 digits of the checksum.
        model_dir: holds the model.
        hparams: its options.
        sha256: checksum of its weights.
        data: checksum of the sketches that it was trained on; "" where it is not known.
        scale_factor: its raw units per model unit, or None where it is not known.
        method: what the table calls it; models that differ in the seed alone share it.
        masking: how its sketches are corrupted.
    """

    name: str
    model_dir: Path
    hparams: HParams
    sha256: str
    data: str
    scale_factor: float | None
    method: str
    masking: str


def find_contestants(models: Sequence[str | Path], masking: str) -> list[Contestant]:
    """The models of some directories, named by what makes them differ.

    Args:
        models: the directories.
        masking: how sketches are corrupted, where a model's method can; "auto": as in its training.

    Raises:
        UserError: no model in a directory; one given twice.
    """
    found = []
    for model_dir in map(Path, models):
        config = read_config(model_dir / CONFIG_NAME)
        sha256 = file_sha256(model_dir / BEST)
        _, state = checkpoints.read_arrays(model_dir / BEST)
        hparams = config.hparams
        own = hparams.training_masking if masking == AUTO else masking
        contestant = Contestant(
            name=f"{model_dir.resolve().name}-{sha256[:8]}",
            model_dir=model_dir,
            hparams=hparams,
            sha256=sha256,
            data=str(state.get("data", "")),
            scale_factor=config.scale_factor,
            method=hparams.method,
            masking=own if own in hparams.traits.masking else "patch",
        )
        for other in found:
            if other.sha256 == sha256:
                raise UserError(f"models: {model_dir} and {other.model_dir} hold the same model")
        found.append(contestant)
    names = _method_names([contestant.hparams for contestant in found])
    return [c._replace(method=name) for c, name in zip(found, names, strict=True)]


def _method_names(models: Sequence[HParams]) -> list[str]:
    """For each model its method's name, with the edges, masking and options that tell it apart."""

    def described(hparams: HParams) -> dict[str, str]:
        values = {k: v for k, v in hparams.used().items() if k not in NOT_COMPARED}
        if hparams.edge_kind != next(iter(hparams.traits.edges), ""):
            values["edges"] = hparams.edge_kind
        values["masking"] = hparams.training_masking
        return {k: str(v) for k, v in values.items()}

    options = [described(hparams) for hparams in models]
    names = []
    for own in options:
        alike = [other for other in options if other["method"] == own["method"]]
        differing = [k for k in own if k == "edges" or any(o.get(k) != own[k] for o in alike)]
        names.append(", ".join([own["method"], *(f"{k}={own[k]}" for k in differing)]))
    return names


def load_common_data(data_dir: str | Path, contestants: Sequence[Contestant]) -> Dataset:
    """The sketches that all models were trained and are measured with.

    Raises:
        UserError: a model has other categories, or was trained on other sketches or splits.
    """
    first = contestants[0]
    for other in contestants[1:]:
        if other.hparams.categories != first.hparams.categories:
            raise UserError(
                f"{other.model_dir} has other categories ({', '.join(other.hparams.categories)}) "
                f"than {first.model_dir} ({', '.join(first.hparams.categories)}); only models of "
                "the same data can be compared"
            )
    known = [contestant for contestant in contestants if contestant.data]
    for other in known[1:]:
        if other.data != known[0].data:
            raise UserError(
                f"{other.model_dir} was trained on other sketches than {known[0].model_dir} (other "
                "files, splits or num_per_category); only models of the same data can be compared"
            )
    base = (known or contestants)[0]
    data = load_dataset(data_dir, base.hparams, scale_factor=None if known else base.scale_factor)
    if known and data.fingerprint() != base.data:
        raise UserError(f"{data_dir}: these are not the sketches that {base.model_dir} learnt from")
    for contestant in contestants:
        if contestant.scale_factor not in (None, data.scale_factor):
            raise UserError(
                f"{contestant.model_dir}: its data have the scale factor "
                f"{contestant.scale_factor}, those in {data_dir} {data.scale_factor}; only models "
                "of the same data can be compared"
            )
    return data


def erased_squares(contestant: Contestant) -> str:
    """What the masking erases of a sketch, for a note."""
    hparams = contestant.hparams
    if contestant.masking == "lattice":
        return "single points of the lattice"
    side, number = lattice.SQUARE / lattice.SIDE, hparams.graph_number
    if "graph_picture_size" in hparams.traits.options:
        side = hparams.graph_picture_size / hparams.drawing_size
    return f"squares of {side:.0%} of the drawing's side around {number - 1} centres"
