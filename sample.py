"""Redraws test sketches from their codes, from the whole sketch or from a corrupted one.

python sample.py --data_dir=DIR --model_dir=MODEL --output_dir=OUT --num_per_category=300 --prob=0.1
python sample.py --input=drawing.svg --model_dir=MODEL --output_dir=OUT
"""

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

import checkpoints
import dataset
import drawing
import gallery
import inference
import utils
from batches import count_seeds
from checkpoints import BEST
from dataset import Split
from hparams import CONFIG_NAME, HParams, read_config
from inference import Encoded
from model import SPGra2Seq
from support import cli
from support.backend import keras
from support.checks import MAX_BATCH, MAX_SEED, check_real, check_whole, check_workers
from support.files import UserError, file_sha256, read_json, read_npy, write_file, write_json
from support.output_dir import write_to
from support.own_drawings import (
    OwnDrawing,
    Rectangle,
    find_hole,
    fit_over,
    healed_svg,
    load_own,
    overlay_svg,
)
from support.sample_files import (
    SAMPLES_NAME,
    Key,
    SampleMetadata,
    load_split,
    read_metadata,
    read_strokes,
    split_sha256,
    stroke_path,
)
from support.workers import prefetch

RANDOM_SEED = Path(__file__).with_name("random_seed.npy")
PICTURES = ("svg", "png")
OWN_SEEDS = ("lattice",)  # approaches that take too many numbers for a file
MASKING_STREAM = 4  # first entry of the random streams' keys; see `batches`
SHOWN_PER_CATEGORY = 6
SHOWN_DRAWINGS = 40
HEALED_NAME = "healed.json"
USUAL_MAX_SEQ_LEN = 250  # sketch-rnn's, for a model that says none
FOR_DATA = ("data_dir", "categories", "split")  # flags of `sample` only
FOR_INPUT = ("input", "erase", "variants", "absolute")  # and of `heal` only
FEW = 8  # sketches, for which compiling does not pay
SAMPLE_FILES = (
    SAMPLES_NAME,
    "stroke_*.npy",
    "code_*.npy",
    "[0-9]*_[0-9]*.svg",
    "[0-9]*_[0-9]*.png",
    "gallery.png",
    "index.html",
)
HEALED_FILES = (
    HEALED_NAME,
    "stroke_*.npy",
    "code_*.npy",
    "*_healed.svg",
    "*_overlay.svg",
    "*_healed.png",
    "gallery.png",
    "index.html",
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
    _check(num_per_category, prob, temperature, seed, split, batch_size, pictures, workers)
    config = read_config(Path(model_dir) / CONFIG_NAME)
    hparams = config.hparams
    _check_masking(masking, hparams)
    wanted = tuple(hparams.categories) if categories is None else categories
    for name in wanted:
        if name not in hparams.categories:
            raise UserError(
                f"--categories: the model has no category {name!r}, it has "
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
        hparams,
        num_per_category,
        wanted,
        prob if of_file else 0.0,
        random_seed,
    )
    if prob > 0 and not of_file:
        number = dataset.SPLITS.index(split)
        keys = [(number, *plan.split.key(member)) for member in plan.members]
        plan = plan._replace(seeds=own_seeds(hparams, masking, seed, keys))
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
                examples[found.key] = _corrupted(examples[found.key], found)
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
    facts = {name: getattr(metadata, name) for name in names}
    _write_gallery(output_dir, list(examples.values()), title, facts)


def heal(
    inputs: Sequence[str | Path],
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    prob: float = 0.1,
    erase: Rectangle | None = None,
    variants: int = 1,
    num_per_category: int = 2500,
    absolute: bool = False,
    temperature: float = inference.DEFAULT_TEMPERATURE,
    greedy: bool = False,
    seed: int = 0,
    masking: str = "patch",
    random_seed: str | Path = RANDOM_SEED,
    batch_size: int = 256,
    pictures: tuple[str, ...] = PICTURES,
    workers: int | None = None,
) -> dict:
    """Redraws people's own drawings.

    Args:
        inputs: files and directories of drawings in any format of `support.drawings`.
        model_dir: see `sample`.
        output_dir: takes {name}_healed.svg in the drawing's own coordinates, {name}_overlay.svg,
            which shows it over the drawing, {name}_healed.png, gallery.png, index.html,
            stroke_{drawing}_{variant}.npy, code_{drawing}_{variant}.npy and healed.json. Files
            that an earlier call of this function left there are removed.
        prob: share of the patches that is erased before the code is computed, in [0, 1].
        erase: a rectangle in the drawings' own coordinates, erased instead.
        variants: how many sketches to draw from each drawing.
        num_per_category: the first so many drawings of each file.
        absolute: see `support.drawings.read_drawings`.
        temperature: see `inference.generate`.
        greedy: see `inference.generate`.
        seed: of the generation's random numbers.
        masking: see `sample`.
        random_seed: .npy of uniform numbers that decide what is erased, drawing after drawing.
        batch_size: sketches drawn at a time.
        pictures: which of svg and png to write for each sketch.
        workers: threads that crop; None: half as many as there are cores.

    Returns:
        What healed.json holds.

    Raises:
        UserError: nothing is written then.
    """
    output_dir = Path(output_dir)
    _check(num_per_category, prob, temperature, seed, "test", batch_size, pictures, workers)
    check_whole("variants", variants, 1)
    if greedy and variants > 1:
        raise UserError(
            f"--variants: {variants} is not allowed; with --greedy all would be the same"
        )
    config = read_config(Path(model_dir) / CONFIG_NAME)
    _check_masking(masking, config.hparams)
    own, notes = load_own(inputs, most=num_per_category, absolute=absolute)
    holes = None if erase is None else [find_hole(one, erase) for one in own]
    scale_factor = config.scale_factor
    if scale_factor is None:
        scale_factor = float(np.concatenate([one.rows for one in own]).std())
        notes.append("the model has no scale factor; it is computed from the drawings")
    steps = config.hparams.max_seq_len
    if steps == -1:
        steps = USUAL_MAX_SEQ_LEN
        notes.append(f"the model has no longest sketch; taking {steps} rows")
    units = np.array([scale_factor, scale_factor, 1])
    sketches = [(one.rows / units).astype(np.float32) for one in own]
    prob, seeds = (0.0 if erase else prob), None
    if prob > 0 and masking in OWN_SEEDS:
        seeds = own_seeds(config.hparams, masking, seed, [(i,) for i in range(len(own))])
    elif prob > 0:
        graph_number = config.hparams.graph_number
        seeds = share_seeds(random_seed, [utils.count_patches(s, graph_number) for s in sketches])
    model = checkpoints.load_model(model_dir)
    for note in notes:
        print(f"Note: {note}.")
    stems = {
        (i, v): one.name if variants == 1 else f"{one.name}_v{v + 1}"
        for i, one in enumerate(own)
        for v in range(variants)
    }
    kinds = {"svg": ("_healed.svg", "_overlay.svg"), "png": ("_healed.png",)}
    endings = [ending for kind in pictures for ending in kinds[kind]]
    facts = {
        "model_dir": str(Path(model_dir).resolve()),
        "model_sha256": file_sha256(Path(model_dir) / BEST),
        "scale_factor": scale_factor,
        "prob": prob,
        "erase": erase,
        "masking": masking,
        "temperature": temperature,
        "greedy": greedy,
        "seed": seed,
        "batch_size": batch_size,
        "pictures": list(pictures),
        "max_seq_len": steps,
        "variants": variants,
        "drawings": [
            {"name": stem, "drawing": i, "variant": v, "source": own[i].drawing.source}
            for (i, v), stem in stems.items()
        ],
        "files": [stem + ending for stem in stems.values() for ending in endings]
        + [f"{kind}_{i}_{v}.npy" for i, v in stems for kind in ("stroke", "code")],
    }
    with write_to(output_dir, "healed drawings", HEALED_FILES):
        _clear_healed(output_dir)
        write_json(output_dir / HEALED_NAME, facts)
        _draw_healed(output_dir, model, own, sketches, holes, seeds, stems, facts, workers)
    print(f"The sketches are in {output_dir}; open index.html or gallery.png there.")
    return facts


def _draw_healed(
    output_dir: Path,
    model: SPGra2Seq,
    own: list[OwnDrawing],
    sketches: list[np.ndarray],
    holes: list[utils.Box] | None,
    seeds: list[np.ndarray] | None,
    stems: dict[Key, str],
    facts: dict,
    workers: int | None,
) -> None:
    """Draws as healed.json says; `stems` names the files of each drawing and variant."""
    erase, examples = facts["erase"], {}
    # JAX compiles each operation by itself otherwise, which takes longer.
    jit = len(stems) > FEW or keras.backend.backend() == "jax"

    def codes():
        encoded = inference.encode_sketches(
            model,
            sketches,
            mask_prob=facts["prob"],
            seeds=seeds,
            masking=facts["masking"],
            holes=holes,
            workers=workers,
            jit=jit,
        )
        for found in encoded:
            i = found.key
            for v in range(facts["variants"]):
                if i < SHOWN_DRAWINGS:
                    shown = gallery.Example(own[i].name, v + 1, original=sketches[i])
                    examples[i, v] = _corrupted(shown, found, hole=erase is not None)
                yield (i, v), found.code

    drawn = inference.generate(
        model,
        codes(),
        facts["max_seq_len"],
        temperature=facts["temperature"],
        greedy=facts["greedy"],
        seed=facts["seed"],
        batch_size=min(facts["batch_size"], len(stems)),
        jit=jit,
    )
    with cli.Progress("Drawing", len(stems)) as progress:
        for found in drawn:
            _write_healed(
                output_dir, stems[found.key], own[found.key[0]], found, facts["pictures"], erase
            )
            if found.key in examples:
                examples[found.key] = examples[found.key]._replace(generated=found.sketch)
            progress.update()
    title = f"Healed, {facts['prob']:.0%} of the patches erased"
    if erase is not None:
        title = "Healed, a rectangle erased"
    names = ("model_dir", "prob", "erase", "masking", "temperature", "greedy", "seed")
    _write_gallery(
        output_dir, [examples[key] for key in sorted(examples)], title, {n: facts[n] for n in names}
    )


def _write_healed(
    output_dir: Path,
    name: str,
    own: OwnDrawing,
    found: inference.Generated,
    pictures: Sequence[str],
    erase: Rectangle | None,
) -> None:
    """Writes what was drawn from one drawing."""
    healed = fit_over(drawing.to_paths(found.sketch), own.drawing.strokes)
    if not healed:
        print(f"Note: {name}: the model drew nothing.")
    if "svg" in pictures:
        write_file(output_dir / f"{name}_healed.svg", healed_svg(own, healed))
        write_file(output_dir / f"{name}_overlay.svg", overlay_svg(own, healed, erase))
    if "png" in pictures:
        drawing.write_png(output_dir / f"{name}_healed.png", drawing.to_picture(found.sketch))
    write_sample(output_dir, found.key, found.sketch, found.code, ())


def _clear_healed(output_dir: Path) -> None:
    """Removes what an earlier call of `heal` left."""
    path = output_dir / HEALED_NAME
    earlier = read_json(path) if path.exists() else {}
    names = earlier.get("files") if isinstance(earlier, dict) else None
    for name in names if isinstance(names, list) else ():
        if any(fnmatch.fnmatchcase(str(name), pattern) for pattern in HEALED_FILES):
            (output_dir / Path(str(name)).name).unlink(missing_ok=True)


def make_plan(
    split: Split,
    hparams: HParams,
    num_per_category: int,
    categories: tuple[str, ...],
    prob: float,
    random_seed: str | Path,
) -> Plan:
    """Chooses the first sketches of each category, and the seeds of each.

    The seeds of `random_seed` go to the model's categories in order, and in each to the first
    `num_per_category` sketches of the file, whether they are asked for or not.

    Raises:
        UserError: the seeds run out, or their file is not readable.
    """
    first = np.flatnonzero(split.index < num_per_category)
    names = np.array(hparams.categories)[split.category[first]]
    chosen = np.isin(names, categories)
    members = first[chosen].tolist()
    if prob == 0:
        return Plan(split, members, None)
    last = int(np.flatnonzero(chosen)[-1]) + 1 if len(members) else 0
    counts = [
        utils.count_patches(split.sketch(i), hparams.graph_number) for i in first[:last].tolist()
    ]
    seeds = share_seeds(random_seed, counts)
    return Plan(split, members, [seeds[i] for i in np.flatnonzero(chosen).tolist()])


def share_seeds(random_seed: str | Path, counts: Sequence[int]) -> list[np.ndarray]:
    """The first seeds of the file for the first sketch, the next for the second, and so on.

    Args:
        random_seed: see `read_seeds`.
        counts: patches of each sketch.

    Raises:
        UserError: the seeds run out, or their file is not readable.
    """
    seeds = read_seeds(random_seed)
    ends = np.cumsum([0, *counts]).tolist()
    if ends[-1] > len(seeds):
        raise UserError(
            f"{random_seed}: holds {len(seeds)} seeds, masking these sketches takes {ends[-1]}; "
            "use a longer file or a smaller --num_per_category"
        )
    return [seeds[start:end] for start, end in pairwise(ends)]


def own_seeds(
    hparams: HParams, masking: str, seed: int, keys: list[tuple[int, ...]]
) -> list[np.ndarray]:
    """For each sketch numbers of its own, which follow from the seed and its key."""
    count = count_seeds(hparams, masking)
    return [np.random.default_rng([seed, MASKING_STREAM, *key]).random(count) for key in keys]


def read_seeds(path: str | Path) -> np.ndarray:
    """Uniform numbers in [0, 1), 1-D.

    Raises:
        UserError: the file is missing, broken, or holds something else.
    """
    seeds = read_npy(path)
    good = seeds.ndim == 1 and seeds.dtype.kind == "f"
    if not (good and ((seeds >= 0) & (seeds <= 1)).all()):
        raise UserError(f"{path}: seeds are a 1-D array of numbers from 0 to 1")
    return seeds


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

    def write(file_name, content):
        write_file(output_dir / file_name, content, survives_power_loss=False)

    write(f"code_{name}.npy", lambda file: np.save(file, code[None]))
    if "svg" in pictures:
        write(f"{name}.svg", drawing.to_svg(sketch))
    if "png" in pictures:
        drawing.write_png(output_dir / f"{name}.png", drawing.to_picture(sketch))
    write(stroke_path(output_dir, key).name, lambda file: np.save(file, sketch[None]))


def _check(num_per_category, prob, temperature, seed, split, batch_size, pictures, workers) -> None:
    check_whole("num_per_category", num_per_category, 1)
    check_real("prob", prob, 0, 1)
    check_real("temperature", temperature, inference.MIN_TEMPERATURE, inference.MAX_TEMPERATURE)
    check_whole("seed", seed, 0, MAX_SEED)
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    check_workers(workers)
    if split not in dataset.SPLITS:
        raise UserError(f"--split: {split!r} is not allowed; one of {', '.join(dataset.SPLITS)}")
    for kind in pictures:
        if kind not in PICTURES:
            raise UserError(f"--pictures: {kind!r} is not allowed; svg, png, both or none")


def _check_masking(masking: str, hparams: HParams) -> None:
    if masking not in hparams.traits.masking:
        raise UserError(
            f"--masking: {masking!r} is not allowed; one of {', '.join(hparams.traits.masking)} "
            f"with a model of method={hparams.method}"
        )


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
                f"{output_dir} holds samples made otherwise ({'; '.join(differences)}); choose "
                "another --output_dir"
            )
    write_json(path, asdict(metadata))


def _example(split: Split, member: int, hparams: HParams) -> gallery.Example:
    """What the gallery shows of a sketch before anything is drawn from it."""
    category, index = split.key(member)
    return gallery.Example(hparams.categories[category], index, original=split.sketch(member))


def _corrupted(example: gallery.Example, found: Encoded, hole: bool = False) -> gallery.Example:
    """An example with its graph and its corrupted canvas.

    Where a rectangle was erased, and not the squares of masked patches, none is marked.
    """
    graph = found.graph._replace(masked=[]) if hole else found.graph
    picture = drawing.draw_graph(example.original, graph, found.adjacency)
    return example._replace(graph_picture=picture, corrupted=found.graph.picture.copy())


def _write_gallery(
    output_dir: Path, examples: list[gallery.Example], title: str, facts: dict
) -> None:
    """gallery.png and index.html."""
    drawing.write_png(output_dir / "gallery.png", gallery.gallery(examples, title=title))
    page = gallery.index_html(examples, title=title, metadata=facts)
    write_file(output_dir / "index.html", page)


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


def read_rectangle(text: str) -> Rectangle | None:
    """The rectangle of "x,y,width,height"; None for none; `UserError` for anything else."""
    if not text:
        return None
    try:
        x, y, width, height = map(float, text.split(","))
        if not (width > 0 and height > 0 and np.isfinite([x, y, width, height]).all()):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--erase: {text!r} is not allowed; x,y,width,height in the drawing's coordinates"
        ) from None
    return x, y, width, height


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
