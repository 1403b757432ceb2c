"""Healing people's own drawings: read, redrawn, and laid over what was read."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import checkpoints
import drawing
import gallery
import inference
import utils
from checkpoints import BEST
from hparams import CONFIG_NAME, read_config
from model import SPGra2Seq
from support import cli
from support.backend import keras
from support.checks import check_whole
from support.files import UserError, file_sha256, read_json, write_file, write_json
from support.mask_seeds import OWN_SEEDS, RANDOM_SEED, own_seeds, share_seeds
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
from support.sample_files import PICTURES, Key, check_masking, check_options, write_sample

HEALED_NAME = "healed.json"
SHOWN_DRAWINGS = 40
USUAL_MAX_SEQ_LEN = 250  # sketch-rnn's, for a model that says none
FEW = 8  # sketches, for which compiling does not pay
HEALED_FILES = (
    HEALED_NAME,
    "stroke_*.npy",
    "code_*.npy",
    "*_healed.svg",
    "*_overlay.svg",
    "*_healed.png",
    gallery.PICTURE_NAME,
    gallery.PAGE_NAME,
)


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
        model_dir: see `sample.sample`.
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
        masking: see `sample.sample`.
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
    check_options(num_per_category, prob, temperature, seed, "test", batch_size, pictures, workers)
    check_whole("variants", variants, 1)
    if greedy and variants > 1:
        raise UserError(f"variants: {variants} is not allowed; with greedy all would be the same")
    config = read_config(Path(model_dir) / CONFIG_NAME)
    check_masking(masking, config.hparams)
    own, notes = load_own(inputs, max_per_file=num_per_category, absolute=absolute)
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
    metadata = {
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
        write_json(output_dir / HEALED_NAME, metadata)
        _draw_healed(output_dir, model, own, sketches, holes, seeds, stems, metadata, workers)
    print(f"The sketches are in {output_dir}; open index.html or gallery.png there.")
    return metadata


def _draw_healed(
    output_dir: Path,
    model: SPGra2Seq,
    own: list[OwnDrawing],
    sketches: list[np.ndarray],
    holes: list[utils.Box] | None,
    seeds: list[np.ndarray] | None,
    stems: dict[Key, str],
    metadata: dict,
    workers: int | None,
) -> None:
    """Draws as healed.json says; `stems` names the files of each drawing and variant."""
    erase, examples = metadata["erase"], {}
    # JAX compiles each operation by itself otherwise, which takes longer.
    jit = len(stems) > FEW or keras.backend.backend() == "jax"

    def codes():
        encoded = inference.encode_sketches(
            model,
            sketches,
            mask_prob=metadata["prob"],
            seeds=seeds,
            masking=metadata["masking"],
            holes=holes,
            workers=workers,
            jit=jit,
        )
        for found in encoded:
            i = found.key
            for v in range(metadata["variants"]):
                if i < SHOWN_DRAWINGS:
                    shown = gallery.Example(own[i].name, v + 1, original=sketches[i])
                    examples[i, v] = gallery.with_graph(
                        shown, found.graph, found.adjacency, marked=erase is None
                    )
                yield (i, v), found.code

    drawn = inference.generate(
        model,
        codes(),
        metadata["max_seq_len"],
        temperature=metadata["temperature"],
        greedy=metadata["greedy"],
        seed=metadata["seed"],
        batch_size=min(metadata["batch_size"], len(stems)),
        jit=jit,
    )
    with cli.Progress("Drawing", len(stems)) as progress:
        for found in drawn:
            _write_healed(
                output_dir, stems[found.key], own[found.key[0]], found, metadata["pictures"], erase
            )
            if found.key in examples:
                examples[found.key] = examples[found.key]._replace(generated=found.sketch)
            progress.update()
    title = f"Healed, {metadata['prob']:.0%} of the patches erased"
    if erase is not None:
        title = "Healed, a rectangle erased"
    names = ("model_dir", "prob", "erase", "masking", "temperature", "greedy", "seed")
    gallery.write_gallery(
        output_dir,
        [examples[key] for key in sorted(examples)],
        title,
        {n: metadata[n] for n in names},
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
            f"erase: {text!r} is not allowed; x,y,width,height in the drawing's coordinates"
        ) from None
    return x, y, width, height
