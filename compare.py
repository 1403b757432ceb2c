"""Compares models of any methods: Rec and Ret of what they redraw of the same sketches.

python compare.py --data_dir=DIR --models=A,B,C --output_dir=OUT --probs=0,0.1,0.3
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import checkpoints
import drawing
import gallery
import recognition
import retrieval
import sample
from checkpoints import BEST
from dataset import Dataset, Split
from hparams import AUTO
from inference import DEFAULT_TEMPERATURE
from methods import METHODS
from rec_classifier import Classifier, Options
from support import cli, comparison, sample_files
from support.checks import MAX_SEED, check_whole
from support.comparison import Run
from support.contestants import Contestant, erased_squares, find_contestants, load_common_data
from support.files import UserError, file_sha256, write_file, write_json
from support.mask_seeds import OWN_SEEDS, RANDOM_SEED
from support.output_dir import write_to
from support.sample_files import SampleMetadata, read_strokes, stroke_path

FILES = (
    *(f"table.{ending}" for ending in ("md", "csv", "json", "png")),
    gallery.PAGE_NAME,
    gallery.PICTURE_NAME,
)
RUNS_NAME, ORIGINALS_NAME = "runs", "originals.npz"
SHOWN_PER_CATEGORY = 2


@dataclass(frozen=True)
class Settings:
    """How all models are measured; see `compare`."""

    data_dir: str | Path
    output_dir: Path
    probs: list[float]
    seeds: list[int]
    num_per_category: int
    temperature: float
    split: str
    random_seed: str | Path
    classifier_dir: Path
    options: Options
    workers: int | None

    def sample_dir(self, contestant: Contestant, prob: float, seed: int) -> Path:
        """Holds the sketches that a model has drawn with a seed."""
        return self.output_dir / RUNS_NAME / contestant.name / f"prob{prob:g}-seed{seed}"


def compare(
    data_dir: str | Path,
    models: Sequence[str | Path],
    output_dir: str | Path,
    *,
    probs: Sequence[float] = (0.0, 0.1, 0.3),
    num_per_category: int = 2500,
    seeds: Sequence[int] = (0,),
    classifier_dir: str | Path | None = None,
    masking: str = "patch",
    temperature: float = DEFAULT_TEMPERATURE,
    split: str = "test",
    random_seed: str | Path = RANDOM_SEED,
    options: Options | None = None,
    workers: int | None = None,
) -> dict | None:
    """Measures models on the same sketches; goes on where an interrupted call stopped.

    Each model redraws the sketches once for each probability and seed, by `sample.sample`;
    `retrieval.retrieval` and `recognition.recognition` measure what it drew. What is done is not
    done again, and models, probabilities and seeds can be added later.

    Args:
        data_dir: holds `<category>.npz`.
        models: their directories. Models whose options differ only in the seed are one method.
        output_dir: takes table.md, .csv, .json and .png, index.html and gallery.png, and in
            `runs` the samples of each model.
        probs: shares of the patches to erase, each in [0, 1].
        num_per_category: the first so many sketches of each category.
        seeds: of the drawing; each model draws once with each.
        classifier_dir: the one classifier for all; None: `classifier` in output_dir. It is
            trained where there is none.
        masking: how sketches are corrupted; where a model's method can't, "patch". "auto": each
            model as in its training.
        temperature: see `sample.sample`.
        split: train, valid or test.
        random_seed: see `sample.sample`.
        options: how to train the classifier where there is none yet; None: the defaults.
        workers: threads that crop and draw; None: half as many as there are cores.

    Returns:
        What table.json holds, or None where Ctrl-C or SIGTERM ended the classifier's training.

    Raises:
        UserError: models of other data or categories; a wrong option; an output_dir that holds
            samples made with other options.
    """
    output_dir = Path(output_dir)
    settings = Settings(
        data_dir=data_dir,
        output_dir=output_dir,
        probs=[float(prob) for prob in probs],
        seeds=list(seeds),
        num_per_category=num_per_category,
        temperature=temperature,
        split=split,
        random_seed=random_seed,
        classifier_dir=Path(classifier_dir or output_dir / recognition.CLASSIFIER_NAME),
        options=options or Options(),
        workers=workers,
    )
    _check(settings, models, masking)
    contestants = find_contestants(models, masking)
    data = load_common_data(data_dir, contestants)
    originals = data.splits[split]
    members = originals.in_first_rows(num_per_category).tolist()
    if not members:
        raise UserError(f"{data_dir}: no usable sketch in the {split} split")
    with write_to(output_dir, "comparison", FILES):
        classifier = recognition.find_classifier(
            settings.classifier_dir,
            data_dir,
            contestants[0].hparams.categories,
            settings.options,
            workers,
            contestants[0].hparams,
        )
        if classifier is None:
            return None
        runs = _measure(settings, contestants, originals, members)
        result = _result(settings, contestants, data, members, classifier, runs)
        _write(settings, contestants, originals, members, result)
    print(f"The comparison is in {output_dir}; open index.html or table.png there.")
    return result


def _measure(
    settings: Settings, contestants: Sequence[Contestant], originals: Split, members: list[int]
) -> dict[float, dict[str, list[Run]]]:
    """The runs of each method, by probability; those that are not there yet are made."""
    common = dict(  # fields of `SampleMetadata`
        data_sha256=sample_files.split_sha256(originals, members),
        split=settings.split,
        num_per_category=settings.num_per_category,
        temperature=settings.temperature,
        greedy=False,
    )
    classifier_sha256 = file_sha256(settings.classifier_dir / BEST)
    random_seed_sha256 = file_sha256(settings.random_seed)
    keys = [originals.key(member) for member in members]
    categories = originals.category[members]
    runs: dict[float, dict[str, list[Run]]] = {prob: {} for prob in settings.probs}
    steps = [(c, p, s) for c in contestants for p in settings.probs for s in settings.seeds]
    for number, (contestant, prob, seed) in enumerate(steps, 1):
        from_file = prob > 0 and contestant.masking not in OWN_SEEDS
        made = dict(
            common,
            model_sha256=contestant.sha256,
            prob=prob,
            seed=seed,
            masking=contestant.masking,
            random_seed_sha256=random_seed_sha256 if from_file else None,
        )
        sample_dir = settings.sample_dir(contestant, prob, seed)
        found = _read_outcomes(sample_dir, made, classifier_sha256, keys)
        if found is None:
            print(
                f"[{number}/{len(steps)}] {contestant.name}: {prob:.0%} erased, seed {seed}",
                flush=True,
            )
            _make_run(settings, contestant, prob, seed)
            found = _read_outcomes(sample_dir, made, classifier_sha256, keys)
        if found is None:
            raise UserError(f"{sample_dir}: its files have changed; remove it and call again")
        ranks, taken_for = found
        run = Run(contestant.name, seed, taken_for == categories, ranks)
        runs[prob].setdefault(contestant.method, []).append(run)
    return runs


def _make_run(settings: Settings, contestant: Contestant, prob: float, seed: int) -> None:
    """Draws with a model and measures what it has drawn."""
    sample_dir = settings.sample_dir(contestant, prob, seed)
    common = (settings.data_dir, contestant.model_dir, sample_dir)
    sample.sample(
        *common,
        num_per_category=settings.num_per_category,
        prob=prob,
        temperature=settings.temperature,
        seed=seed,
        masking=contestant.masking,
        random_seed=settings.random_seed,
        split=settings.split,
        pictures=(),
        workers=settings.workers,
    )
    retrieval.retrieval(
        *common, originals_file=sample_dir.parent / ORIGINALS_NAME, workers=settings.workers
    )
    recognition.recognition(
        *common,
        classifier_dir=settings.classifier_dir,
        options=settings.options,
        workers=settings.workers,
    )


def _read_outcomes(
    sample_dir: Path, made: dict[str, Any], classifier_sha256: str, keys: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rank of each sketch and what it was taken for; None where that is still to be found."""
    try:
        ret, ret_of = checkpoints.read_arrays(sample_dir / retrieval.OUTCOMES_NAME)
        rec, rec_of = checkpoints.read_arrays(sample_dir / recognition.OUTCOMES_NAME)
        good = ret_of["direction"] == "generated" and rec_of["classifier_sha256"] == (
            classifier_sha256
        )
        for arrays, made_with in ((ret, ret_of["samples"]), (rec, rec_of["samples"])):
            metadata = SampleMetadata(**made_with)
            good &= replace(metadata, **made) == metadata
            good &= np.array_equal(arrays["keys"], keys)
        ranks, taken_for = ret["ranks"], rec["taken_for"]
    except (UserError, KeyError, TypeError):  # not there, or damaged
        return None
    good &= ranks.shape == taken_for.shape == (len(keys),)
    return (ranks, taken_for) if good else None


def _result(
    settings: Settings,
    contestants: Sequence[Contestant],
    data: Dataset,
    members: list[int],
    classifier: Classifier,
    runs: dict[float, dict[str, list[Run]]],
) -> dict[str, Any]:
    """All that the table shows, and all that it takes to repeat it."""
    originals = data.splits[settings.split]
    categories = contestants[0].hparams.categories
    confusion = recognition.judge_originals(
        settings.classifier_dir, classifier, originals, settings.split, settings.workers
    )
    rows, tests = [], []
    maskings = {contestant.method: contestant.masking for contestant in contestants}
    for prob, of_prob in runs.items():
        found_rows, found_tests = comparison.compare_methods(of_prob)
        rows += [{"prob": prob, "masking": maskings[row["method"]], **row} for row in found_rows]
        tests += [{"prob": prob, **test} for test in found_tests]
    described = sample_files.scope(originals, members, settings.num_per_category, settings.split)
    result = {
        "title": f"Rec and Ret of {described}",
        "categories": list(categories),
        "split": settings.split,
        "num_per_category": settings.num_per_category,
        "sketches": len(members),
        "gallery": len(originals),
        "seeds": settings.seeds,
        "temperature": settings.temperature,
        "data": data.fingerprint(),
        "scale_factor": data.scale_factor,
        "random_seed_sha256": file_sha256(settings.random_seed),
        "models": [
            {
                "method": contestant.method,
                "model": contestant.name,
                "seed": contestant.hparams.seed,
                "sha256": contestant.sha256,
                "options": contestant.hparams.used(),
            }
            for contestant in contestants
        ],
        "classifier": classifier.metadata,
        "classifier_sha256": file_sha256(settings.classifier_dir / BEST),
        "originals_rec": float(np.trace(confusion) / confusion.sum()),
        "chance": comparison.chance(len(categories), len(originals)),
        "rows": rows,
        "tests": tests,
    }
    return result | {"notes": _notes(result, contestants)}


def _notes(result: dict[str, Any], contestants: Sequence[Contestant]) -> list[str]:
    """What a reader of the table has to know, a sentence or two each."""
    methods = dict.fromkeys(contestant.method for contestant in contestants)
    kinds = dict.fromkeys(
        row[measure]["interval"] for measure in comparison.MEASURES for row in result["rows"]
    )
    several = len(kinds) > 1
    notes = [
        f"Ret: each redrawn sketch is looked up among {result['gallery']:,} originals. Rec: the "
        "share of redrawn sketches that a Sketch-a-Net trained on the original training sketches "
        "takes for their category; the row `originals` has its share of all original sketches.",
        f"In brackets: 95 % intervals ({'; '.join(kinds)}"
        f"{' where there is one run, or several are equal' if several else ''}).",
    ]
    if len(methods) > 1:
        pairs = len(methods) * (len(methods) - 1) // 2
        notes.append(
            "Rec and Top-1: bold (**) is the best where so much is erased, italic (*) can't be "
            "told from it: exact McNemar tests on the same sketches at 5 %, with Holm's correction "
            f"for {pairs} {'pairs' if pairs > 1 else 'pair'} of methods. Of several runs, a sketch "
            "is won by the method with more successes on it; the tests speak of these models, and "
            "how much trainings differ is in the intervals alone. Top-10 and Top-50 are not tested."
        )
    if len({contestant.masking for contestant in contestants}) > 1:
        notes.append("Methods with different masking see different corrupted sketches.")
    erased = {c.method: erased_squares(c) for c in contestants}
    if len(set(erased.values())) > 1:
        listed = "; ".join(f"{method}: {text}" for method, text in erased.items())
        notes.append(f"What is erased is not the same for all methods: {listed}.")
    unknown = [contestant.name for contestant in contestants if not contestant.data]
    if unknown:
        notes.append(f"What {', '.join(unknown)} learnt from is not known.")
    return notes


def _write(
    settings: Settings,
    contestants: Sequence[Contestant],
    originals: Split,
    members: list[int],
    result: dict[str, Any],
) -> None:
    """Writes the tables and the pages."""
    out = settings.output_dir
    write_file(out / "table.md", comparison.markdown(result))
    write_file(out / "table.csv", comparison.as_csv(result))
    write_file(out / "table.png", comparison.as_png(result))
    write_json(out / "table.json", result)
    examples = {
        prob: _examples(settings, contestants, originals, members, prob) for prob in settings.probs
    }
    hardest = max(settings.probs)
    title = f"Sketches, {hardest:.0%} of their patches erased, as each method redraws them"
    picture = gallery.gallery(examples[hardest], title=title, per_row=1)
    drawing.write_png(out / gallery.PICTURE_NAME, picture)
    page = gallery.index_html(
        list(chain.from_iterable(examples.values())),
        title=result["title"],
        introduction=comparison.as_html(result),
    )
    write_file(out / gallery.PAGE_NAME, page)


def _examples(
    settings: Settings,
    contestants: Sequence[Contestant],
    originals: Split,
    members: list[int],
    prob: float,
) -> list[gallery.Example]:
    """The first sketches of each category: original, corrupted, and what each method redraws.

    Of several models of a method the first one's are shown, drawn with the first seed.
    """
    drawn_by: dict[str, Contestant] = {}
    for contestant in contestants:
        drawn_by.setdefault(contestant.method, contestant)
    shown = originals.first_of_each(SHOWN_PER_CATEGORY, among=members)
    corrupted = _corrupted(settings, contestants[0], originals, shown, prob)
    examples = []
    for member, picture in zip(shown, corrupted, strict=True):
        key = originals.key(member)
        name = contestants[0].hparams.categories[key[0]]
        drawings = {
            method: read_strokes(stroke_path(settings.sample_dir(c, prob, settings.seeds[0]), key))
            for method, c in drawn_by.items()
        }
        example = gallery.Example(
            category=f"{name}, {prob:.0%} erased",
            index=key[1],
            original=originals.sketch(member),
            corrupted=picture,
            drawings=drawings,
        )
        examples.append(example)
    return examples


def _corrupted(
    settings: Settings, contestant: Contestant, originals: Split, shown: list[int], prob: float
) -> list[np.ndarray | None]:
    """Corrupted canvases, as the first model sees them; None where nothing is erased."""
    if prob == 0:
        return [None] * len(shown)
    hparams = contestant.hparams
    plan = sample.make_plan(
        originals,
        settings.split,
        hparams,
        settings.num_per_category,
        hparams.categories,
        prob=prob,
        masking=contestant.masking,
        seed=settings.seeds[0],
        random_seed=settings.random_seed,
    )
    graphs = sample.corrupted_graphs(plan, shown, hparams, prob, contestant.masking)
    return [graph.picture.copy() for graph in graphs]


def _check(settings: Settings, models: Sequence[str | Path], masking: str) -> None:
    """Raises UserError for options that are not allowed."""
    for name, values in (("models", models), ("probs", settings.probs), ("seeds", settings.seeds)):
        if not values:
            raise UserError(f"{name}: at least one is needed")
        if len(set(values)) < len(values):
            raise UserError(f"{name}: one is given twice")
    for prob in settings.probs:
        sample_files.check_options(
            settings.num_per_category,
            prob,
            settings.temperature,
            settings.seeds[0],
            settings.split,
            1,
            (),
            settings.workers,
        )
    for seed in settings.seeds:
        check_whole("seeds", seed, 0, MAX_SEED)
    allowed = dict.fromkeys([AUTO, *(m for method in METHODS.values() for m in method.masking)])
    if masking not in allowed:
        raise UserError(f"masking: {masking!r} is not allowed; one of {', '.join(allowed)}")


def main() -> None:
    """Compares as the flags say."""
    values = flags.FLAGS
    result = compare(
        values.data_dir,
        [name for name in values.models.split(",") if name],
        values.output_dir,
        probs=_numbers("probs", values.probs, float),
        num_per_category=values.num_per_category,
        seeds=_numbers("seeds", values.seeds, int),
        classifier_dir=values.classifier_dir or None,
        masking=values.masking,
        temperature=values.temperature,
        split=values.split,
        random_seed=values.random_seed,
        options=Options(
            train_per_category=values.train_per_category,
            per_epoch=values.per_epoch,
            epochs=values.epochs,
        ),
        workers=values.workers or None,
    )
    if result is None:
        sys.exit(130)  # as Ctrl-C elsewhere
    print(comparison.markdown(result))


def _numbers(name: str, text: str, kind: type) -> list:
    """The numbers of 0,0.1,0.3."""
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(
            f"{name}: {text!r} is not allowed; numbers with commas between them"
        ) from None


def define_flags() -> None:
    """Declares the command line's flags."""
    default = Options()
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("models", None, "Directories of models, with commas between them.")
    flags.DEFINE_string("output_dir", None, "Directory for the table, the page and the samples.")
    flags.DEFINE_string("probs", "0,0.1,0.3", "Shares of the patches to erase.")
    flags.DEFINE_integer("num_per_category", 2500, "Sketches to redraw of each category.")
    flags.DEFINE_string("seeds", "0", "Seeds of the drawing; each model draws once with each.")
    flags.DEFINE_string(
        "classifier_dir", "", "Directory of the classifier; classifier in output_dir by default."
    )
    flags.DEFINE_string(
        "masking",
        "patch",
        "patch, sketchhealer or lattice, as in sample.py; patch where a method does not have it. "
        "auto: each model as in its training.",
    )
    flags.DEFINE_float("temperature", DEFAULT_TEMPERATURE, "Randomness of the drawing.")
    flags.DEFINE_string("split", "test", "train, valid or test.")
    flags.DEFINE_string("random_seed", str(RANDOM_SEED), "Numbers that decide what is erased.")
    flags.DEFINE_integer(
        "train_per_category",
        default.train_per_category,
        "The first so many training sketches of each category for the classifier; 0 means all.",
    )
    flags.DEFINE_integer(
        "per_epoch",
        default.per_epoch,
        "The classifier's training sketches per category between two validations.",
    )
    flags.DEFINE_integer("epochs", default.epochs, "Most epochs of the classifier's training.")
    flags.DEFINE_integer(
        "workers", 0, "Threads that crop and draw; 0 means half as many as cores.", 0
    )
    flags.mark_flags_as_required(["data_dir", "models", "output_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
