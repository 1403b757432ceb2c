"""Rec: how often a classifier of original sketches recognises generated ones.

python recognition.py --data_dir=DIR --model_dir=MODEL --sample_dir=OUT
"""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from absl import flags
from sklearn.metrics import confusion_matrix

import checkpoints
import gallery
import rec_classifier
import sketch_a_net
from dataset import Dataset, Split, load_dataset
from hparams import HParams
from rec_classifier import Classifier, Options
from support import cli, sample_files
from support.backend import make_deterministic
from support.checks import (
    MAX_BATCH,
    MAX_COUNT,
    MAX_LEARNING_RATE,
    MAX_TRAINING_SEED,
    check_whole,
    check_workers,
)
from support.files import UserError, file_sha256, write_file

RESULT_NAME, OUTCOMES_NAME = "rec.json", "rec.npz"
PICTURE_NAME = "rec_confusion.png"
CLASSIFIER_NAME = "classifier"  # directory in that of a model, or of a comparison


def recognition(
    data_dir: str | Path,
    model_dir: str | Path,
    sample_dir: str | Path,
    *,
    classifier_dir: str | Path | None = None,
    options: Options | None = None,
    workers: int | None = None,
) -> dict | None:
    """Measures Rec of the sketches that `sample.sample` wrote.

    The classifier, a Sketch-a-Net that knows the model's categories, is trained on the original
    training sketches at the first call and kept for the next. Its accuracy on all original
    sketches of the split that the samples were made from stands beside Rec.

    Args:
        data_dir: holds `<category>.npz`.
        model_dir: holds the model.
        sample_dir: holds the generated sketches, any number of them; takes rec.json,
            rec_confusion.png, and rec.npz with what each sketch was taken for.
        classifier_dir: holds the classifier, or takes it; None: `classifier` in model_dir.
        options: how to train it where there is none yet; None: the defaults.
        workers: threads that draw pictures; None: half as many as there are cores.

    Returns:
        What rec.json holds, or None where Ctrl-C or SIGTERM ended the training.

    Raises:
        UserError: no model, data or samples; samples of another model or of other data; a
            classifier for other categories or of other data; a damaged or unwritable file.
    """
    options = options or Options()
    _check(options, workers)
    samples = sample_files.load_samples(sample_dir, data_dir, model_dir)
    for warning in samples.warnings:
        print(f"Note: {warning}.")
    folder = Path(classifier_dir or Path(model_dir) / CLASSIFIER_NAME)
    names = samples.hparams.categories
    classifier = find_classifier(folder, data_dir, names, options, workers, samples.hparams)
    if classifier is None:
        return None
    true = samples.split.category[samples.members]
    found = judge(classifier, samples.sketches, "Judging generated", workers)
    generated = confusion_matrix(true, found, labels=range(len(names)))
    split_name = samples.metadata.split or "test"
    originals = judge_originals(folder, classifier, samples.split, split_name, workers)
    shares, original_shares = _shares(generated), _shares(originals)
    measure = {
        "measure": "rec",
        "rec": shares[0],
        "rec_per_category": dict(zip(names, shares[1], strict=True)),
        "originals": original_shares[0],
        "originals_per_category": dict(zip(names, original_shares[1], strict=True)),
        "chance": 1 / len(names),
        "rec_sketches": int(generated.sum()),
        "originals_sketches": int(originals.sum()),
        "confusion_categories": list(names),
        "rec_confusion": generated.tolist(),
        "originals_confusion": originals.tolist(),
        "classifier_dir": str(folder.resolve()),
        "classifier": classifier.metadata,
    }
    tables = {
        f"Generated: {shares[0]:.2%} recognised": generated,
        f"Originals: {original_shares[0]:.2%}": originals,
    }
    write_file(samples.sample_dir / PICTURE_NAME, gallery.confusion_png(tables, names))
    weights = file_sha256(folder / checkpoints.BEST)
    outcomes = {"taken_for": found}
    sample_files.write_outcomes(OUTCOMES_NAME, samples, outcomes, classifier_sha256=weights)
    return sample_files.write_result(RESULT_NAME, samples, measure)


def find_classifier(
    classifier_dir: Path,
    data_dir: str | Path,
    categories: tuple[str, ...],
    options: Options,
    workers: int | None = None,
    model_options: HParams | None = None,
) -> Classifier | None:
    """The classifier of a directory, trained first where there is none.

    `model_options` say how a file of training sketches alone is split.

    Returns:
        The classifier, or None where Ctrl-C or SIGTERM ended its training.

    Raises:
        UserError: it is for other categories, of other data, or damaged.
    """
    classifier = rec_classifier.load(classifier_dir, categories)
    if classifier is not None:
        own = classifier.metadata["options"]
        data = load_training_data(data_dir, categories, own["train_per_category"], model_options)
        if classifier.metadata["data"] != data.fingerprint():
            raise UserError(
                f"{classifier_dir} holds a classifier trained on other data; choose another "
                "classifier_dir"
            )
        others = [f"{k}={own[k]}" for k, value in asdict(options).items() if own[k] != value]
        if others:
            print(f"Note: the classifier was trained with {', '.join(others)}.")
        return classifier
    make_deterministic(options.seed)
    data = load_training_data(data_dir, categories, options.train_per_category, model_options)
    for warning in data.warnings:
        print(f"Note: training the classifier, {warning}.")
    print(
        f"Training the classifier on {len(data.splits['train'])} original sketches of "
        f"{len(categories)} categories; it will be kept in {classifier_dir}.",
        flush=True,
    )
    with cli.Interruption() as interruption:
        classifier = rec_classifier.train(
            classifier_dir,
            data,
            categories,
            options,
            should_stop=lambda: interruption.requested,
            workers=workers,
        )
    # A request may come after the last time that the training asked for it.
    return None if interruption.requested else classifier


def load_training_data(
    data_dir: str | Path,
    categories: Sequence[str],
    train_per_category: int,
    model_options: HParams | None = None,
) -> Dataset:
    """Reads what a classifier is trained and validated on, sketches of any length.

    Args:
        data_dir: holds `<category>.npz`.
        categories: names.
        train_per_category: the first so many training sketches of each; 0: all.
        model_options: their split_train and seed are those of the data; None: the defaults.

    Raises:
        UserError: a missing or broken file, a category without training or validation sketches.
    """
    hparams = (model_options or HParams()).replace(
        categories=tuple(categories), num_per_category=train_per_category, max_seq_len=-1
    )
    data = load_dataset(data_dir, hparams, scale_factor=1.0, splits=("train", "valid"))
    for name, split in data.splits.items():
        for category, title in enumerate(categories):
            if not (split.category == category).any():
                raise UserError(f"{data_dir}: no usable sketch in the {name} split of {title}")
    return data


def judge(
    classifier: Classifier,
    sketches: Sequence[np.ndarray],
    title: str,
    workers: int | None = None,
) -> np.ndarray:
    """The category that each sketch is taken for, int64 (n,).

    Args:
        classifier: knows the categories.
        sketches: n stroke-3 arrays (rows, 3) in any unit; one without rows is a blank picture.
        title: of the progress display.
        workers: see `recognition`.
    """
    with cli.Progress(title, len(sketches)) as progress:
        return sketch_a_net.predict(
            classifier.network, sketches, advance=progress.update, workers=workers
        )


def judge_originals(
    classifier_dir: Path,
    classifier: Classifier,
    split: Split,
    split_name: str,
    workers: int | None = None,
) -> np.ndarray:
    """What the original sketches of the split are taken for: int64 (C, C), rows the true category.

    The outcome is kept beside the classifier, so that samples made with other probabilities
    don't wait for it again.
    """
    path = classifier_dir / f"{split_name}.npz"
    classes = len(classifier.metadata["categories"])
    made_of = {
        "weights": file_sha256(classifier_dir / checkpoints.BEST),
        "sketches": sample_files.split_sha256(split, list(range(len(split)))),
    }
    with contextlib.suppress(UserError):  # not there, or damaged: judged again
        arrays, meta = checkpoints.read_arrays(path)
        counts = arrays.get("confusion")
        if meta == made_of and counts is not None and _is_confusion(counts, classes):
            return counts
    sketches = [split.sketch(i) for i in range(len(split))]
    found = judge(classifier, sketches, "Judging originals", workers)
    counts = confusion_matrix(split.category, found, labels=range(classes))
    try:
        with rec_classifier.writing_classifier(classifier_dir):
            checkpoints.write_arrays(path, {"confusion": counts}, made_of)
    except UserError:
        print(f"Note: {path} can't be written; the originals will be judged again next time.")
    return counts


def table(result: dict) -> str:
    """The measure as a person reads it: percentages, a row a category."""
    names = result["confusion_categories"]
    rows = [(n, result["rec_per_category"][n], result["originals_per_category"][n]) for n in names]
    rows += [
        ("all", result["rec"], result["originals"]),
        ("chance", result["chance"], result["chance"]),
    ]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'%':{width}}{'Rec':>11}{'originals':>11}"]
    for name, *shares in rows:
        shown = ["-" if share is None else f"{100 * share:.2f}" for share in shares]
        lines.append(f"{name:{width}}" + "".join(f"{text:>11}" for text in shown))
    return "\n".join(lines)


def _shares(confusion: np.ndarray) -> tuple[float, list[float | None]]:
    """The share of right answers, of all and of each row; None for a row without sketches."""
    right, counts = np.diag(confusion).tolist(), confusion.sum(axis=1).tolist()
    each = [r / n if n else None for r, n in zip(right, counts, strict=True)]
    return sum(right) / sum(counts), each


def _is_confusion(counts: np.ndarray, classes: int) -> bool:
    """Whether an array may be what `judge_originals` counted."""
    return counts.shape == (classes, classes) and counts.dtype.kind == "i" and counts.sum() > 0


def _check(options: Options, workers: int | None) -> None:
    upper = {"batch_size": MAX_BATCH, "seed": MAX_TRAINING_SEED}
    lower = {"train_per_category": 0, "per_epoch": 1, "epochs": 1, "batch_size": 1, "seed": 0}
    for name, low in lower.items():
        check_whole(name, getattr(options, name), low, upper.get(name, MAX_COUNT))
    check_whole("width", options.width, 1, rec_classifier.MAX_WIDTH)
    check_workers(workers)
    if not 0 < options.learning_rate <= MAX_LEARNING_RATE:
        raise UserError(f"learning_rate: {options.learning_rate} is not allowed; above 0")


def main() -> None:
    """Measures as the flags say."""
    values = flags.FLAGS
    result = recognition(
        values.data_dir,
        values.model_dir,
        values.sample_dir,
        classifier_dir=values.classifier_dir or None,
        options=Options(
            train_per_category=values.train_per_category,
            per_epoch=values.per_epoch,
            epochs=values.epochs,
            batch_size=values.batch_size,
            learning_rate=values.learning_rate,
            seed=values.seed,
        ),
        workers=values.workers or None,
    )
    if result is None:
        sys.exit(130)  # as Ctrl-C elsewhere
    print(table(result))
    print(
        f"{result['rec_sketches']} generated and {result['originals_sketches']} original sketches; "
        f"written to {Path(values.sample_dir) / RESULT_NAME} and {PICTURE_NAME}."
    )


def define_flags() -> None:
    """Declares the command line's flags."""
    default = Options()
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("model_dir", None, "Directory of a trained or imported model.")
    flags.DEFINE_string(
        "sample_dir", None, "Directory that sample.py wrote; takes rec.json and rec_confusion.png."
    )
    flags.DEFINE_string(
        "classifier_dir", "", "Directory of the classifier; classifier in model_dir by default."
    )
    flags.DEFINE_integer(
        "train_per_category",
        default.train_per_category,
        "The first so many training sketches of each category; 0 means all.",
    )
    flags.DEFINE_integer(
        "per_epoch", default.per_epoch, "Training sketches per category between two validations."
    )
    flags.DEFINE_integer("epochs", default.epochs, "Most epochs; the learning rate falls to 0.")
    flags.DEFINE_integer("batch_size", default.batch_size, "Sketches of an update.")
    flags.DEFINE_float("learning_rate", default.learning_rate, "Highest learning rate.")
    flags.DEFINE_integer("seed", default.seed, "Seed of the training's random numbers.")
    flags.DEFINE_integer("workers", 0, "Threads that draw; 0 means half as many as cores.", 0)
    flags.mark_flags_as_required(["data_dir", "model_dir", "sample_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
