"""Redraws test sketches from their codes, from the whole sketch or from a corrupted one.

python sample.py --data_dir=DIR --model_dir=MODEL --output_dir=OUT --num_per_category=300 --prob=0.1
python sample.py --input=drawing.svg --model_dir=MODEL --output_dir=OUT
"""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import checkpoints
import dataset
import gallery
import inference
import utils
from batches import make_graphs
from checkpoints import BEST
from dataset import Split
from hparams import CONFIG_NAME, HParams, read_config
from model import SPGra2Seq
from support import cli
from support.files import UserError, file_sha256, write_json
from support.heal import heal, read_rectangle
from support.mask_seeds import OWN_SEEDS, RANDOM_SEED, own_seeds, share_seeds
from support.output_dir import write_to
from support.sample_files import (
    PICTURES,
    SAMPLES_NAME,
    SampleMetadata,
    check_masking,
    check_options,
    load_split,
    read_metadata,
    read_strokes,
    split_sha256,
    stroke_path,
    write_sample,
)
from support.workers import prefetch

SHOWN_PER_CATEGORY = 6
FOR_DATA = ("data_dir", "categories", "split")  # flags of `sample` only
FOR_INPUT = ("input", "erase", "variants", "absolute")  # and of `support.heal.heal` only
SAMPLE_FILES = (
    SAMPLES_NAME,
    "stroke_*.npy",
    "code_*.npy",
    "[0-9]*_[0-9]*.svg",
    "[0-9]*_[0-9]*.png",
    gallery.PICTURE_NAME,
    gallery.PAGE_NAME,
)


class Plan(NamedTuple):
    """Which sketches to redraw.

    Attributes:
        split: the sketches.
        members: positions in the split, in order.
        seeds: for each member its seeds, or None where nothing is masked.
    """

    split: Split
    members: list[int]
    seeds: list[np.ndarray] | None


def sample(
    data_dir: str | Path,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    num_per_category: int = 2500,
    prob: float = 0.1,
    temperature: float = inference.DEFAULT_TEMPERATURE,
    greedy: bool = False,
    seed: int = 0,
    masking: str = "patch",
    random_seed: str | Path = RANDOM_SEED,
    categories: tuple[str, ...] | None = None,
    split: str = "test",
    batch_size: int = 256,
    pictures: tuple[str, ...] = PICTURES,
    workers: int | None = None,
) -> dict:
    """Redraws the first sketches of each category; goes on where an interrupted call stopped.

    Args:
        data_dir: holds `<category>.npz`.
        model_dir: holds the model.
        output_dir: takes stroke_{category}_{index}.npy, code_{category}_{index}.npy,
            {category}_{index}.svg and .png, gallery.png, index.html and samples.json.
        num_per_category: the first so many rows of the split's file.
        prob: share of the patches that is erased before the code is computed, in [0, 1].
        temperature: see `inference.generate`.
        greedy: see `inference.generate`.
        seed: of the generation's random numbers.
        masking: one of the approaches of the model's method: "patch", "sketchhealer" or
            "lattice".
        random_seed: .npy of uniform numbers that decide what is erased. Where lattice points are
            dropped, `seed` and the sketch's key decide.
        categories: which of the model's; None: all. A subset loses the same patches as in a call
            for all.
        split: train, valid or test.
        batch_size: sketches drawn at a time.
        pictures: which of svg and png to write for each sketch.
        workers: threads that crop; None: half as many as there are cores.

    Returns:
        What samples.json holds.

    Raises:
        UserError: no model, no data, seeds that run out, an output_dir that holds other samples.
    """
    output_dir = Path(output_dir)
    check_options(num_per_category, prob, temperature, seed, split, batch_size, pictures, workers)
    config = read_config(Path(model_dir) / CONFIG_NAME)
    hparams = config.hparams
    check_masking(masking, hparams)
    wanted = tuple(hparams.categories) if categories is None else categories
    for name in wanted:
        if name not in hparams.categories:
            raise UserError(
                f"categories: the model has no category {name!r}, it has "
                f"{', '.join(hparams.categories)}"
            )
    # What a file's numbers erase depends on the categories before.
    of_file = masking not in OWN_SEEDS
    needed = None if prob > 0 and of_file else wanted
    data, warnings = load_split(data_dir, hparams, config.scale_factor, split, needed)
    model = checkpoints.load_model(model_dir)
    for warning in (*warnings, *data.warnings):
        print(f"Note: {warning}.")
    plan = make_plan(
        data.splits[split],
        split,
        hparams,
        num_per_category,
        wanted,
        prob=prob,
        masking=masking,
        seed=seed,
        random_seed=random_seed,
    )
    if not plan.members:
        raise UserError(
            f"{data_dir}: no usable sketch in the {split} split of {', '.join(wanted)}"
            f" among the first {num_per_category}"
        )
    metadata = SampleMetadata(
        model_dir=str(Path(model_dir).resolve()),
        model_sha256=file_sha256(Path(model_dir) / BEST),
        data_dir=str(Path(data_dir).resolve()),
        data_sha256=split_sha256(plan.split, plan.members),
        scale_factor=data.scale_factor,
        categories=list(wanted),
        split=split,
        num_per_category=num_per_category,
        prob=prob,
        masking=masking,
        random_seed_sha256=file_sha256(random_seed) if prob > 0 and of_file else None,
        temperature=temperature,
        greedy=greedy,
        seed=seed,
        batch_size=batch_size,
        pictures=list(pictures),
        max_seq_len=data.max_seq_len,
        counts=_counts(plan, hparams, wanted),
    )
    for name, count in metadata.counts.items():
        if count < num_per_category:
            print(f"Note: {name} has {count} usable sketches, fewer than {num_per_category}.")
    with write_to(
        output_dir, "samples", SAMPLE_FILES, is_ours=lambda _: (output_dir / SAMPLES_NAME).exists()
    ):
        _draw(output_dir, model, plan, metadata, workers)
    print(f"The sketches are in {output_dir}; open index.html or gallery.png there.")
    return asdict(metadata)


def _draw(
    output_dir: Path,
    model: SPGra2Seq,
    plan: Plan,
    metadata: SampleMetadata,
    workers: int | None,
) -> None:
    """Draws what is not there yet, as the metadata say."""
    _prepare_output(output_dir, metadata)
    keys = [plan.split.key(member) for member in plan.members]
    to_do = {key for key in keys if not stroke_path(output_dir, key).exists()}
    done = len(keys) - len(to_do)
    if done:
        print(f"Going on: {done} of {len(keys)} sketches are there.")
    shown = plan.split.first_of_each(SHOWN_PER_CATEGORY, among=plan.members)
    examples = {plan.split.key(i): _example(plan.split, i, model.hparams) for i in shown}

    def codes():
        encoded = inference.encode_sketches(
            model,
            [plan.split.sketch(member) for member in plan.members],
            mask_prob=metadata.prob,
            seeds=plan.seeds,
            masking=metadata.masking,
            keys=keys,
            wanted=to_do | examples.keys(),
            workers=workers,
        )
        for found in encoded:
            if found.key in examples:
                examples[found.key] = gallery.with_graph(
                    examples[found.key], found.graph, found.adjacency
                )
            if found.key in to_do:
                yield found.key, found.code

    drawn = inference.generate(
        model,
        codes(),
        metadata.max_seq_len,
        temperature=metadata.temperature,
        greedy=metadata.greedy,
        seed=metadata.seed,
        batch_size=metadata.batch_size,
    )

    def write(found):
        write_sample(output_dir, found.key, found.sketch, found.code, metadata.pictures)
        return found

    with cli.Progress("Drawing", len(keys), done) as progress:
        # A thread writes while the next sketches are drawn.
        for found in prefetch(write, drawn, workers=1, ahead=metadata.batch_size):
            if found.key in examples:
                examples[found.key] = examples[found.key]._replace(generated=found.sketch)
            progress.update()
    for key in examples.keys() - to_do:
        generated = read_strokes(stroke_path(output_dir, key))
        examples[key] = examples[key]._replace(generated=generated)
    title = f"Redrawn, {metadata.prob:.0%} of the patches erased"
    names = ("model_dir", "split", "prob", "masking", "temperature", "greedy", "seed")
    shown = {name: getattr(metadata, name) for name in names}
    gallery.write_gallery(output_dir, list(examples.values()), title, shown)


def make_plan(
    split: Split,
    split_name: str,
    hparams: HParams,
    num_per_category: int,
    categories: tuple[str, ...],
    *,
    prob: float,
    masking: str,
    seed: int,
    random_seed: str | Path,
) -> Plan:
    """Chooses the first sketches of each category, and the seeds of each.

    The seeds of `random_seed` go to the model's categories in order, and in each to the first
    `num_per_category` sketches of the file, whether they are asked for or not. Ways of masking
    that no file would last for take numbers that follow from `seed`.

    Raises:
        UserError: the seeds run out, or their file is not readable.
    """
    first = split.in_first_rows(num_per_category)
    names = np.array(hparams.categories)[split.category[first]]
    chosen = np.isin(names, categories)
    members = first[chosen].tolist()
    if prob == 0:
        return Plan(split, members, None)
    if masking in OWN_SEEDS:
        number = dataset.SPLITS.index(split_name)
        keys = [(number, *split.key(member)) for member in members]
        return Plan(split, members, own_seeds(hparams, masking, seed, keys))
    last = int(np.flatnonzero(chosen)[-1]) + 1 if len(members) else 0
    counts = [
        utils.count_patches(split.sketch(i), hparams.graph_number) for i in first[:last].tolist()
    ]
    seeds = share_seeds(random_seed, counts)
    return Plan(split, members, [seeds[i] for i in np.flatnonzero(chosen).tolist()])


def corrupted_graphs(
    plan: Plan, members: list[int], hparams: HParams, prob: float, masking: str
) -> list[Any]:
    """The graphs that are encoded of some sketches, what is erased of them being gone.

    Args:
        plan: which sketches are redrawn.
        members: positions in the split, of sketches of the plan.
        hparams: options of the model.
        prob: share of the patches that is erased.
        masking: how.

    Returns:
        A list; each graph has its `picture`, see `batches.make_graphs`.
    """
    seeds_of = dict(zip(plan.members, plan.seeds, strict=True)) if plan.seeds else None
    _, graphs = make_graphs(
        [plan.split.sketch(i) for i in members],
        hparams,
        mask_prob=prob,
        seeds=[seeds_of[i] for i in members] if seeds_of else None,
        masking=masking,
    )
    return graphs


def _counts(plan: Plan, hparams: HParams, categories: tuple[str, ...]) -> dict[str, int]:
    of = plan.split.category[plan.members]
    return {name: int((of == hparams.categories.index(name)).sum()) for name in categories}


def _prepare_output(output_dir: Path, metadata: SampleMetadata) -> None:
    """Checks that what is there belongs to the same call, and says what is made."""
    path = output_dir / SAMPLES_NAME
    if path.exists():
        differences = metadata.differences(read_metadata(path))
        if differences:
            raise UserError(
                f"{output_dir} holds samples made with another model, data or options "
                f"({'; '.join(differences)}); choose another output_dir"
            )
    write_json(path, asdict(metadata))


def _example(split: Split, member: int, hparams: HParams) -> gallery.Example:
    """What the gallery shows of a sketch before anything is drawn from it."""
    category, index = split.key(member)
    return gallery.Example(hparams.categories[category], index, original=split.sketch(member))


def check_together(given: Collection[str]) -> None:
    """Raises `UserError` unless the flags given are those of `sample` or those of `heal`."""
    if ("data_dir" in given) == ("input" in given):
        raise UserError(
            "--data_dir (sketches of a data set) and --input (drawings of your own) exclude one "
            "another; give one of them"
        )
    ours, other = (FOR_DATA, FOR_INPUT) if "data_dir" in given else (FOR_INPUT, FOR_DATA)
    for name in other:
        if name in given:
            raise UserError(f"--{name}: goes with --{other[0]} only, not with --{ours[0]}")


def main() -> None:
    """Samples as the flags say."""
    values = flags.FLAGS
    given = {name for name in (*FOR_DATA, *FOR_INPUT) if values[name].present}
    check_together(given)
    options = {
        "num_per_category": values.num_per_category,
        "prob": values.prob,
        "temperature": values.temperature,
        "greedy": values.greedy,
        "seed": values.seed,
        "masking": values.masking,
        "random_seed": values.random_seed,
        "batch_size": values.batch_size,
        "pictures": () if values.pictures == "none" else tuple(values.pictures.split(",")),
        "workers": values.workers or None,
    }
    if "input" in given:
        heal(
            [path for path in values.input.split(",") if path],
            values.model_dir,
            values.output_dir,
            erase=read_rectangle(values.erase),
            variants=values.variants,
            absolute=values.absolute,
            **options,
        )
        return
    sample(
        values.data_dir,
        values.model_dir,
        values.output_dir,
        categories=_names(values.categories),
        split=values.split,
        **options,
    )


def _names(text: str) -> tuple[str, ...] | None:
    """[bee,The Mona Lisa] or bee,The Mona Lisa; None for all."""
    names = tuple(name.strip().strip("'\"") for name in text.strip().strip("[]").split(","))
    return names if any(names) else None


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("input", None, "Instead: drawings of your own, commas between the files.")
    flags.DEFINE_string("erase", "", "With --input: x,y,width,height to erase in the drawing.")
    flags.DEFINE_integer("variants", 1, "With --input: sketches to draw of each drawing.")
    flags.DEFINE_bool("absolute", False, "With --input: .npy and .npz hold points, not offsets.")
    flags.DEFINE_string("model_dir", None, "Directory of a trained or imported model.")
    flags.DEFINE_string("output_dir", None, "Directory for what is drawn.")
    flags.DEFINE_integer("num_per_category", 2500, "Sketches to redraw of each category.")
    flags.DEFINE_float("prob", 0.1, "Share of the patches that is erased first; 0: none.")
    flags.DEFINE_float("temperature", inference.DEFAULT_TEMPERATURE, "Randomness of the drawing.")
    flags.DEFINE_bool("greedy", False, "Draw what is most likely, without any randomness.")
    flags.DEFINE_integer("seed", 0, "Seed of the drawing's random numbers.", 0)
    flags.DEFINE_string(
        "masking",
        "patch",
        "patch: erase, then crop (or find the lattice's points); sketchhealer: crop and erase in "
        "turn, for patch methods; lattice: drop points, for sketchlattice.",
    )
    flags.DEFINE_string("random_seed", str(RANDOM_SEED), "Numbers that decide what is erased.")
    flags.DEFINE_string("categories", "", "Some of the model's categories, as in [bee,bus].")
    flags.DEFINE_string("split", "test", "train, valid or test.")
    flags.DEFINE_integer("batch_size", 256, "Sketches drawn at a time.")
    flags.DEFINE_string("pictures", "svg,png", "svg, png, svg,png or none.")
    flags.DEFINE_integer("workers", 0, "Threads that crop; 0 means half as many as cores.", 0)
    flags.mark_flags_as_required(["model_dir", "output_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
