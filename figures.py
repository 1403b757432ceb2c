"""Figures for an article: what a model's codes and patches have learnt, and what it finds again.

python figures.py --data_dir=DIR --model_dir=MODEL --output_dir=OUT [--sample_dir=SAMPLES]
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

import checkpoints
import dataset
import retrieval
from checkpoints import BEST
from drawing import canvas_picture
from hparams import CONFIG_NAME, HParams, read_config
from sample import Plan, corrupted_graphs, make_plan
from support import cli, code_space, sample_files
from support.checks import MAX_SEED, check_whole, check_workers
from support.code_figures import draw_codes, draw_interpolation
from support.figure_material import Figure, Material, gather, has_patches
from support.files import UserError, file_sha256, write_file
from support.mask_seeds import RANDOM_SEED
from support.output_dir import write_to
from support.patch_figures import draw_synonyms
from support.plots import GREY, RIGHT, SMALL, WIDE, Page
from support.sample_files import Samples

NEAREST = 10
QUANTILES = {0.0: "best", 0.25: "25 %", 0.5: "median", 0.75: "75 %", 0.9: "90 %", 1.0: "worst"}


class Kind(NamedTuple):
    """A figure that can be drawn.

    Attributes:
        draw: makes it, of a `Material`.
        min_sketches: sketches that it takes.
    """

    draw: Callable[..., Figure]
    min_sketches: int


def figures(
    data_dir: str | Path,
    model_dir: str | Path,
    output_dir: str | Path,
    *,
    sample_dir: str | Path | None = None,
    names: tuple[str, ...] | None = None,
    num_per_category: int = 250,
    split: str = "test",
    seed: int = 0,
    workers: int | None = None,
) -> list[Path]:
    """Draws figures of a model's codes, clusters, interpolations and retrieval.

    Args:
        data_dir: holds `<category>.npz`.
        model_dir: holds the model.
        output_dir: takes for each figure a .png, a .pdf and a .npz with the numbers that it shows.
        sample_dir: what `sample.sample` wrote of the same split; only "retrieval" needs it.
        names: which of FIGURES to draw; None: all that can be drawn, with a note on the others.
        num_per_category: the first so many rows of the split's file.
        split: train, valid or test.
        seed: of t-SNE, k-means and every choice.
        workers: threads that crop; None: half as many as there are cores.

    Returns:
        The files. On a CPU they are the same, byte for byte, in each call on a machine.

    Raises:
        UserError: no model, data or samples; a figure that is unknown or can't be drawn of these;
            an output_dir that can't be written to.
    """
    check_whole("num_per_category", num_per_category, 1)
    check_whole("seed", seed, 0, MAX_SEED)
    check_workers(workers)
    if split not in dataset.SPLITS:
        raise UserError(f"split: {split!r} is not allowed; one of {', '.join(dataset.SPLITS)}")
    config = read_config(Path(model_dir) / CONFIG_NAME)
    chosen = _choose(names, config.hparams, sample_dir)
    samples = None
    if "retrieval" in chosen:
        samples = sample_files.load_samples(sample_dir, data_dir, model_dir)
        made_of = samples.metadata.split or "test"
        if made_of != split:
            raise UserError(f"{sample_dir}: its samples are of --split={made_of}, not {split}")
    data, warnings = sample_files.load_split(data_dir, config.hparams, config.scale_factor, split)
    model = checkpoints.load_model(model_dir)
    for warning in samples.warnings if samples else (*warnings, *data.warnings):
        print(f"Note: {warning}.")
    sketches = data.splits[split]
    members = sketches.in_first_rows(num_per_category).tolist()
    for name in chosen:
        min_sketches = FIGURES[name].min_sketches
        if len(members) < min_sketches:
            raise UserError(
                f"{data_dir}: the figure {name} takes at least {min_sketches} sketches; "
                f"there are {len(members)} among the first {num_per_category} of each category"
            )
    about = {
        "model_sha256": file_sha256(Path(model_dir) / BEST),
        "model_options": config.hparams.used(),
        "data_sha256": sample_files.split_sha256(sketches, members),
        "split": split,
        "num_per_category": num_per_category,
        "seed": seed,
    }
    written = []
    files = [f"{name}.{ending}" for name in FIGURES for ending in ("png", "pdf", "npz")]
    with write_to(output_dir, "figures", files):
        material = gather(
            model,
            sketches,
            split,
            num_per_category,
            with_patches="synonyms" in chosen,
            steps=data.max_seq_len,
            seed=seed,
            workers=workers,
        )
        for name in chosen:
            extra = (samples, workers) if name == "retrieval" else ()
            page, numbers = FIGURES[name].draw(material, *extra)
            written += _write(Path(output_dir) / name, page, numbers, material, about)
    print(f"Drawn: {', '.join(chosen)}. The files are in {output_dir}.")
    return written


def _choose(
    names: tuple[str, ...] | None, hparams: HParams, sample_dir: str | Path | None
) -> list[str]:
    """The figures to draw: those asked for, or all that can be drawn."""
    for name in names or ():
        if name not in FIGURES:
            raise UserError(f"figures: {name!r} is not allowed; some of {', '.join(FIGURES)}")
    reasons = {}
    if not has_patches(hparams):
        reasons["synonyms"] = f"a model of method={hparams.method} has no patches"
    if not sample_dir:
        reasons["retrieval"] = "it needs --sample_dir, what sample.py wrote"
    for name, reason in reasons.items():
        if name in (names or ()):
            raise UserError(f"figures: {name} can't be drawn: {reason}")
        if not names:
            print(f"Note: the figure {name} is left out: {reason}.")
    return [name for name in FIGURES if (name in names if names else name not in reasons)]


def _write(
    stem: Path, page: Page, numbers: dict[str, np.ndarray], material: Material, about: dict
) -> list[Path]:
    """Writes a figure, and its numbers beside what they were made from."""
    described = {
        "about": json.dumps(about, ensure_ascii=False),
        "categories": material.names,
        "keys": material.keys,
    }
    arrays = {name: np.asarray(value) for name, value in (described | numbers).items()}
    path = stem.with_suffix(".npz")
    write_file(path, lambda file: np.savez(file, **arrays))
    return [*page.write(stem), path]


def draw_retrieval(material: Material, samples: Samples, workers: int | None) -> Figure:
    """Generated sketches at some quantiles of their rank, and the originals nearest to them."""
    position = {member: i for i, member in enumerate(material.members.tolist())}
    queries = [q for q, member in enumerate(samples.members.tolist()) if member in position]
    if not queries:
        raise UserError(
            f"{samples.sample_dir}: none of its samples is of the sketches used; a larger "
            "num_per_category takes more"
        )
    own = np.array([position[int(samples.members[q])] for q in queries])
    sketches = [samples.sketches[q] for q in queries]
    codes = retrieval.encode(material.model, sketches, "Encoding generated", workers)
    ranks = retrieval.ranks(codes, material.codes, own)
    shown = code_space.at_quantiles(ranks, list(QUANTILES), material.seed)
    labels = [*QUANTILES.values()] if len(shown) == len(QUANTILES) else [""] * len(shown)
    count = min(NEAREST, len(material.codes))
    distances = np.square(
        codes[shown, None].astype(np.float64) - material.codes[None].astype(np.float64)
    ).mean(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    corrupted, note = _corrupted(samples, [queries[i] for i in shown])

    left, cell, line = 0.72, 0.45, 0.47
    step = (WIDE - left - 0.15) / (count + 3)
    erased = "" if samples.metadata.prob is None else f", {samples.metadata.prob:.0%} erased"
    page = Page(
        WIDE,
        0.25 + len(shown) * (line + 0.03),
        f"{len(queries):,} sketches redrawn{erased}, and the originals nearest to them.\nLooked up "
        f"among {material.scope}. Rows: quantiles of the rank of the right one (framed){note}.",
    )
    heads = page.top + 0.07
    for column, title in enumerate(("original", "corrupted", "redrawn")):
        page.text(left + column * step + cell / 2, heads, title, SMALL, ha="center", color=GREY)
    for column in range(count):
        at = left + 0.1 + (3 + column) * step + cell / 2
        page.text(at, heads, str(column + 1), SMALL, ha="center", color=GREY)
    for row, i in enumerate(shown):
        y = heads + 0.1 + row * (line + 0.03)
        name = material.names[material.labels[own[i]]]
        text = "\n".join(filter(None, [labels[row], f"rank {ranks[i]:,}", name]))
        page.text(0.05, y + cell / 2, text, SMALL, room=left - 0.08)
        page.sketch(left, y, cell, material.sketch(own[i]))
        if corrupted:
            page.picture(left + step, y, cell, corrupted[row])
        page.sketch(left + 2 * step, y, cell, sketches[i])
        for column, j in enumerate(nearest[row].tolist()):
            x = left + 0.1 + (3 + column) * step
            page.sketch(x, y, cell, material.sketch(j))
            is_right = j == own[i]
            page.frame(x, y, cell, RIGHT if is_right else "0.85", 1.5 if is_right else 0.4)
    return page, {
        "queries": np.array([samples.keys[q] for q in queries]),
        "own": own,
        "ranks": ranks,
        "shown": shown,
        "quantiles": list(QUANTILES),
        "nearest": nearest,
        "distances": np.take_along_axis(distances, nearest, axis=1),
        "codes": codes,
    }


def _corrupted(samples: Samples, queries: list[int]) -> tuple[list[np.ndarray], str]:
    """What sample.py encoded of some sketches, ink 255, framed like the originals.

    Returns:
        uint8 (S, S) each, or none where that isn't known; and then why, for the title.
    """
    metadata = samples.metadata
    if metadata.prob is None:
        return [], "; what was erased is not known"
    given = metadata.random_seed_sha256
    if given is not None and given != file_sha256(RANDOM_SEED):
        return [], "; what was erased followed from another random_seed and is not shown"
    members = samples.members[queries].tolist()
    plan = plan_of(samples)
    graphs = corrupted_graphs(plan, members, samples.hparams, metadata.prob, metadata.masking)
    pairs = zip(graphs, (samples.split.sketch(member) for member in members), strict=True)
    return [255 - canvas_picture(graph.picture, 300, sketch) for graph, sketch in pairs], ""


def plan_of(samples: Samples) -> Plan:
    """The sketches that sample.py redrew, and the numbers that decided what it erased of them.

    Args:
        samples: whose metadata are known, and whose numbers come from RANDOM_SEED.
    """
    metadata = samples.metadata
    return make_plan(
        samples.split,
        metadata.split,
        samples.hparams,
        metadata.num_per_category,
        tuple(metadata.categories),
        prob=metadata.prob,
        masking=metadata.masking,
        seed=metadata.seed,
        random_seed=RANDOM_SEED,
    )


FIGURES = {
    "codes": Kind(draw_codes, code_space.MIN_CODES),
    "synonyms": Kind(draw_synonyms, 1),
    "interpolation": Kind(draw_interpolation, 3),
    "retrieval": Kind(draw_retrieval, 1),
}


def main() -> None:
    """Draws as the flags say."""
    values = flags.FLAGS
    figures(
        values.data_dir,
        values.model_dir,
        values.output_dir,
        sample_dir=values.sample_dir or None,
        names=tuple(name.strip() for name in values.figures.split(",") if name.strip()) or None,
        num_per_category=values.num_per_category,
        split=values.split,
        seed=values.seed,
        workers=values.workers or None,
    )


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("model_dir", None, "Directory of a trained or imported model.")
    flags.DEFINE_string("output_dir", None, "Directory for the figures.")
    flags.DEFINE_string("sample_dir", "", "What sample.py wrote of the same split; for retrieval.")
    flags.DEFINE_string(
        "figures", "", f"Some of {','.join(FIGURES)}; empty: all that are possible."
    )
    flags.DEFINE_integer("num_per_category", 250, "Sketches used of each category.")
    flags.DEFINE_string("split", "test", "train, valid or test.")
    flags.DEFINE_integer("seed", 0, "Seed of t-SNE, k-means and every choice.", 0)
    flags.DEFINE_integer("workers", 0, "Threads that crop; 0 means half as many as cores.", 0)
    flags.mark_flags_as_required(["data_dir", "model_dir", "output_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
