"""Ret: how often a generated sketch leads back to the sketch that it was made from.

python retrieval.py --data_dir=DIR --model_dir=MODEL --sample_dir=OUT
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

import checkpoints
import inference
from model import SPGra2Seq
from support import cli, sample_files
from support.checks import check_workers
from support.files import UserError
from support.sample_files import Samples

RESULT_NAME, OUTCOMES_NAME = "ret.json", "ret.npz"
TOPS = (1, 10, 50)
DIRECTIONS = ("generated", "original")
BLOCK = 2**21  # distances held at a time
PAIRS = 2**16  # differences of codes held at a time


def retrieval(
    data_dir: str | Path,
    model_dir: str | Path,
    sample_dir: str | Path,
    *,
    direction: str = "generated",
    originals_file: str | Path | None = None,
    workers: int | None = None,
) -> dict:
    """Measures Ret of the sketches that `sample.sample` wrote.

    The generated sketches are drawn and cropped again, nothing masked, and looked up among all
    original sketches of the split that they were made from.

    Args:
        data_dir: holds `<category>.npz`.
        model_dir: holds the model.
        sample_dir: holds the generated sketches, any number of them; takes ret.json, and
            ret.npz with the rank of each query.
        direction: see `ret`.
        originals_file: .npz that keeps the originals' codes for the next call; None: nothing is
            kept.
        workers: threads that crop; None: half as many as there are cores.

    Returns:
        What ret.json holds.

    Raises:
        UserError: no model, data or samples; samples of another model or of other data.
    """
    if direction not in DIRECTIONS:
        allowed = " or ".join(DIRECTIONS)
        raise UserError(f"direction: {direction!r} is not allowed; {allowed}")
    check_workers(workers)
    samples = sample_files.load_samples(sample_dir, data_dir, model_dir)
    for warning in samples.warnings:
        print(f"Note: {warning}.")
    model = checkpoints.load_model(model_dir)
    split = samples.split
    originals = encode_originals(model, samples, originals_file, workers)
    generated = encode(model, samples.sketches, "Encoding generated", workers)
    if direction == "generated":
        found = ranks(generated, originals, samples.members)
        gallery = len(originals)
    else:
        found = ranks(originals[samples.members], generated, np.arange(len(generated)))
        gallery = len(generated)
    category = split.category[samples.members]
    names = [samples.hparams.categories[c] for c in np.unique(category)]
    measure = {
        "measure": "ret",
        "direction": direction,
        "queries": len(found),
        "gallery": gallery,
        "ret": _keyed(shares(found)),
        "chance": _keyed({top: min(1.0, top / gallery) for top in TOPS}),
        "ret_per_category": {
            name: _keyed(shares(found[category == samples.hparams.categories.index(name)]))
            for name in names
        },
    }
    sample_files.write_outcomes(OUTCOMES_NAME, samples, {"ranks": found}, direction=direction)
    return sample_files.write_result(RESULT_NAME, samples, measure)


def encode_originals(
    model: SPGra2Seq,
    samples: Samples,
    path: str | Path | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Codes of all original sketches of the split that samples were made from, float32 (N, Z).

    Args:
        model: the one that made the samples.
        samples: see `support.sample_files.load_samples`.
        path: .npz that has the codes from an earlier call, or takes them; None: neither.
        workers: see `encode`.

    Raises:
        UserError: the file can't be written.
    """
    split = samples.split
    made_of = {
        "model": samples.metadata.model_sha256,
        "sketches": sample_files.split_sha256(split, list(range(len(split)))),
    }
    if path is not None:
        with contextlib.suppress(UserError):  # not there, or damaged: encoded again
            arrays, meta = checkpoints.read_arrays(Path(path))
            codes = arrays.get("codes")
            if meta == made_of and codes is not None and codes.shape[:1] == (len(split),):
                return codes
    sketches = [split.sketch(i) for i in range(len(split))]
    codes = encode(model, sketches, "Encoding originals", workers)
    if path is not None:
        checkpoints.write_arrays(Path(path), {"codes": codes}, made_of)
    return codes


def ret(
    generated: np.ndarray,
    originals: np.ndarray,
    tops: tuple[int, ...] = TOPS,
    direction: str = "generated",
) -> dict[int, float]:
    """Top-k retrieval accuracies of codes of which row i belongs to row i.

    Args:
        generated: (N, Z), codes of the generated sketches, finite.
        originals: (N, Z), codes of the sketches that they were made from, finite.
        tops: the k.
        direction: "generated" looks up each generated sketch's code among the originals' (the
            article's published code), "original" each original's among the generated ones' (the
            authors' later code).

    Returns:
        For each k the share, 0 to 1, of the codes whose own counterpart is among the k nearest.

    Raises:
        ValueError: other shapes, no codes, an unknown direction.
    """
    generated, originals = np.asarray(generated), np.asarray(originals)
    if generated.shape != originals.shape:
        raise ValueError(f"codes of shapes {generated.shape} and {originals.shape} can't be paired")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is one of {', '.join(DIRECTIONS)}, not {direction!r}")
    queries, codes = (generated, originals) if direction == "generated" else (originals, generated)
    return shares(ranks(queries, codes, np.arange(len(codes))), tops)


def shares(found: np.ndarray, tops: tuple[int, ...] = TOPS) -> dict[int, float]:
    """For each k the share of the ranks (counted from 1) that are at most k."""
    return {top: float(np.mean(found <= top)) for top in tops}


def ranks(queries: np.ndarray, codes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The place of each query's own code among all, ordered by mean squared difference.

    Exact as float64 differences are: products only sort out what is clearly nearer or farther.
    Equal distances count in index order. Takes O(Q N Z) operations and O(Q + N) memory.

    Args:
        queries: (Q, Z), finite.
        codes: (N, Z), finite.
        own: int (Q,), the row of `codes` that belongs to each query.

    Returns:
        int64 (Q,), 1 for the nearest.

    Raises:
        ValueError: no codes, or values that are not finite.
    """
    queries, codes = np.asarray(queries, np.float64), np.asarray(codes, np.float64)
    own = np.asarray(own, np.int64)
    if queries.ndim != 2 or codes.ndim != 2 or not len(queries) or not len(codes):
        raise ValueError(f"no codes to rank: shapes {queries.shape} and {codes.shape}")
    if not (np.isfinite(queries).all() and np.isfinite(codes).all()):
        raise ValueError("codes must be finite")
    # Less their mean, codes are small numbers, and so are the rounding errors of products.
    center = codes.mean(axis=0)
    near_codes = codes - center
    squares = np.square(near_codes).sum(axis=1)
    _, equal_rows = np.unique(codes, axis=0, return_inverse=True)
    found = np.empty(len(queries), np.int64)
    size = max(1, BLOCK // len(codes))
    for start in range(0, len(queries), size):
        rows = slice(start, start + size)
        q, mine = queries[rows] - center, own[rows]
        # Squared distances, less the square of the query itself.
        distances = (-2 * q) @ near_codes.T
        distances += squares
        limit = distances[np.arange(len(q)), mine]
        reach = np.sqrt(np.square(q).sum(axis=1)) + np.sqrt(squares.max())
        slack = 4 * (codes.shape[1] + 8) * np.finfo(np.float64).eps * np.square(reach)
        below = np.count_nonzero(distances < (limit - slack)[:, None], axis=1)
        not_above = np.count_nonzero(distances <= (limit + slack)[:, None], axis=1)
        for first, last in _runs(not_above - below > 1):
            close = (
                np.abs(distances[first:last] - limit[first:last, None]) <= slack[first:last, None]
            )
            row, column = np.nonzero(close)
            row += first
            wins = _precedes(queries[rows], codes, row, column, mine[row], equal_rows)
            below += np.bincount(row[wins], minlength=len(q))
        found[rows] = below + 1
    return found


def _runs(marks: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last + 1 of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _precedes(
    queries: np.ndarray,
    codes: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    own: np.ndarray,
    equal_rows: np.ndarray,
) -> np.ndarray:
    """Whether codes[column] comes before codes[own] for queries[row], by direct differences."""
    wins = column < own
    different = np.flatnonzero(equal_rows[column] != equal_rows[own])
    for start in range(0, len(different), PAIRS):
        pairs = different[start : start + PAIRS]
        q = queries[row[pairs]]
        other = np.square(q - codes[column[pairs]]).sum(axis=1)
        mine = np.square(q - codes[own[pairs]]).sum(axis=1)
        wins[pairs] = (other < mine) | ((other == mine) & wins[pairs])
    return wins


def encode(
    model: SPGra2Seq, sketches: list[np.ndarray], description: str, workers: int | None = None
) -> np.ndarray:
    """Codes mu of sketches of which nothing is masked.

    Args:
        model: the model.
        sketches: stroke-3 (n, 3) in model units; one of fewer than two rows is a blank canvas.
        description: of the progress display.
        workers: threads that crop; None: half as many as there are cores.

    Returns:
        float32 (N, Z).
    """
    codes = np.empty((len(sketches), model.hparams.z_size), np.float32)
    with cli.Progress(description, len(sketches)) as progress:
        for found in inference.encode_sketches(model, sketches, workers=workers):
            codes[found.key] = found.code
            progress.update()
    return codes


def table(result: dict) -> str:
    """The measure as a person reads it: percentages, a row a category."""
    rows = [
        *result["ret_per_category"].items(),
        ("all", result["ret"]),
        ("chance", result["chance"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'Ret, %':{width}}" + "".join(f"{f'Top-{top}':>9}" for top in TOPS)]
    for name, values in rows:
        lines.append(f"{name:{width}}" + "".join(f"{100 * values[str(t)]:9.2f}" for t in TOPS))
    return "\n".join(lines)


def _keyed(values: dict[int, float]) -> dict[str, float]:
    """Keyed as JSON will have it."""
    return {str(top): share for top, share in values.items()}


def main() -> None:
    """Measures as the flags say."""
    values = flags.FLAGS
    result = retrieval(
        values.data_dir,
        values.model_dir,
        values.sample_dir,
        direction=values.direction,
        workers=values.workers or None,
    )
    print(table(result))
    queries, gallery = "generated", "original"
    if result["direction"] == "original":
        queries, gallery = gallery, queries
    print(
        f"{result['queries']} {queries} sketches looked up among {result['gallery']} {gallery} "
        f"ones; written to {Path(values.sample_dir) / RESULT_NAME}."
    )


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("data_dir", None, "Directory that holds <category>.npz, QuickDraw files.")
    flags.DEFINE_string("model_dir", None, "Directory of a trained or imported model.")
    flags.DEFINE_string("sample_dir", None, "Directory that sample.py wrote; takes ret.json.")
    flags.DEFINE_string(
        "direction",
        "generated",
        "generated: look up each generated sketch among the originals; original: the reverse.",
    )
    flags.DEFINE_integer("workers", 0, "Threads that crop; 0 means half as many as cores.", 0)
    flags.mark_flags_as_required(["data_dir", "model_dir", "sample_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
