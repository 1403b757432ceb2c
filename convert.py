"""Turns people's own drawings into data files: the input of train.py.

python convert.py --input=PATH[,PATH...] --data_dir=OUT [--category=NAME]
"""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from absl import flags

import drawing
from dataset import LIMIT, SPLITS
from hparams import HParams
from support import cli, simplify
from support.contact_sheet import contact_sheet
from support.drawings import KINDS, Drawing, find_drawings, read_drawings
from support.files import UserError, write_file
from support.output_dir import write_to
from support.simplify import STEPS, TooLong

SHOWN = 40
LONG = 250  # rows; sketch-rnn's own limit
UNITS = 250  # shares of the splits are compared to within 1 / UNITS


@dataclass
class Converted:
    """The drawings of one category, and what became of them.

    Attributes:
        sketches: stroke-3 (n, 3) each, int16, or float32 where they are not rounded.
        splits: for each sketch train, valid or test where its file says so, else None.
        read: drawings read, those left out included.
        left_out: reason to number of drawings.
        points_before: points of the sketches' drawings.
        unchanged: how many sketches are as they were.
        not_strokes: filled shapes, texts and images beside strokes.
        kinds: of the files.
    """

    sketches: list[np.ndarray] = field(default_factory=list)
    splits: list[str | None] = field(default_factory=list)
    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    points_before: int = 0
    unchanged: int = 0
    not_strokes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def convert(
    inputs: Sequence[str | Path],
    data_dir: str | Path,
    *,
    category: str | None = None,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    steps: Sequence[str] = STEPS,
    epsilon: float = simplify.EPSILON,
    seed: int = 0,
    absolute: bool = False,
    unrecognized: bool = False,
    unchanged: bool = True,
    max_rows: int = 0,
) -> dict[str, Converted]:
    """Writes `<data_dir>/<category>.npz`, and `.png` with its first drawings, for each category.

    Args:
        inputs: files and directories; see `support.drawings.find_drawings`.
        data_dir: made if it is not there.
        category: the one of all drawings; None: see `find_drawings`.
        splits: shares of the training, validation and test sketches. Drawings of a file that has
            all three splits stay in theirs.
        steps: of the simplification, see `support.simplify.simplify`.
        epsilon: see there.
        seed: decides which drawing goes to which split.
        absolute: see `support.drawings.read_drawings`.
        unrecognized: also take drawings that Quick, Draw! did not recognize.
        unchanged: drawings that have a data file's units already stay as they are.
        max_rows: leave out longer sketches; 0: none.

    Raises:
        UserError: nothing is written then.
    """
    data_dir = Path(data_dir)
    _check(splits, steps, epsilon, max_rows, category)
    found, skipped = find_drawings(inputs, category)
    for name in found:
        _check_name(name)
    for path in skipped:
        print(f"Note: {path}: holds no drawings, skipped.")
    categories, arrays = {}, {}
    with cli.Progress("Reading", None, unit="drawing") as progress:
        for name, paths in found.items():
            done = categories[name] = Converted()
            for path in paths:
                for entry in _with_own_splits(read_drawings(path, absolute=absolute)):
                    _add(done, entry, steps, epsilon, unrecognized, unchanged, max_rows)
                    progress.update()
    for name, done in categories.items():
        if not done.sketches:
            where = f"{found[name][0]}{_more(found[name])}"
            raise UserError(f"{name}: no usable drawing in {where}{_why(done)}")
        arrays[name] = _split(name, done, splits, seed)
    written = [f"{name}{ending}" for name in categories for ending in (".npz", ".png")]
    with write_to(data_dir, "data", list(map(glob.escape, written))):
        for name, done in categories.items():
            path = data_dir / f"{name}.npz"
            write_file(path, lambda file, name=name: np.savez_compressed(file, **arrays[name]))
            drawing.write_png(path.with_suffix(".png"), contact_sheet(done.sketches[:SHOWN]))
            print(_report(name, done, {split: len(arrays[name][split]) for split in SPLITS}, path))
    names = ",".join(categories)
    print(f'Train with: train.py --data_dir={data_dir} --hparams="categories=[{names}]"')
    return categories


def _with_own_splits(drawings: Iterator[Drawing]) -> Iterator[Drawing]:
    """The drawings of one file, which keep their splits only if it has all three."""
    first = next(drawings, None)
    if first is None or first.split is None:
        return drawings if first is None else chain([first], drawings)
    all_of_them = [first, *drawings]
    if {entry.split for entry in all_of_them} == set(SPLITS):
        return iter(all_of_them)
    return (entry._replace(split=None) for entry in all_of_them)


def _add(
    done: Converted,
    entry: Drawing,
    steps: Sequence[str],
    epsilon: float,
    unrecognized: bool,
    unchanged: bool,
    max_rows: int,
) -> None:
    """Takes one drawing, or counts why it is left out."""
    done.read += 1
    done.kinds[KINDS[entry.kind]] += 1
    if not entry.recognized and not unrecognized:
        done.left_out["not recognized"] += 1
    elif not entry.strokes and entry.not_strokes:
        done.left_out["filled shapes, texts or images only, no strokes"] += 1
    elif not entry.strokes or not np.ptp(np.concatenate(entry.strokes), axis=0).any():
        done.left_out["empty or a dot"] += 1
    else:
        as_it_is = unchanged and entry.rows is not None
        try:
            rows = entry.rows if as_it_is else simplified_rows(entry.strokes, steps, epsilon)
        except TooLong:
            done.left_out["lines too long to be resampled without scaling"] += 1
            return
        if len(rows) < 2:
            done.left_out["a single line"] += 1
        elif max_rows and len(rows) > max_rows:
            done.left_out[f"more than {max_rows} rows"] += 1
        elif np.abs(rows).max() > LIMIT:
            done.left_out[f"offsets beyond {LIMIT}"] += 1
        else:
            whole = np.array_equal(rows, np.rint(rows))
            done.sketches.append(rows.astype(np.int16 if whole else np.float32))
            done.splits.append(entry.split)
            done.points_before += sum(map(len, entry.strokes))
            done.unchanged += as_it_is
            done.not_strokes += entry.not_strokes


def simplified_rows(
    strokes: Sequence[np.ndarray], steps: Sequence[str] = STEPS, epsilon: float = simplify.EPSILON
) -> np.ndarray:
    """Stroke-3 (n, 3), float64, of a drawing that has an extent; raises `TooLong`."""
    return simplify.to_stroke3(simplify.simplify(strokes, steps=steps, epsilon=epsilon))


def _split(name: str, done: Converted, shares: Sequence[float], seed: int) -> dict[str, np.ndarray]:
    """Object arrays train, valid and test of a category's sketches."""
    members: dict[str, list[int]] = {split: [] for split in SPLITS}
    free = []
    for i, split in enumerate(done.splits):
        (members[split] if split else free).append(i)
    if free:
        free = [free[i] for i in np.random.default_rng(seed).permutation(len(free)).tolist()]
        # Valid and test are not left without any where they are wanted.
        counts = [round(share * len(free)) or (share > 0) for share in shares[1:]]
        if sum(counts) + (shares[0] > 0) > len(free):
            raise UserError(
                f"{name}: {len(free)} usable drawings are too few to share out; give more, or all "
                "to one split, as splits=0,0,1"
            )
        if shares[0] == 0:
            counts[int(shares[1] == 0)] += len(free) - sum(counts)
        ends = np.cumsum([len(free) - sum(counts), *counts]).tolist()
        for split, first, last in zip(SPLITS, [0, *ends], ends, strict=False):
            members[split] += sorted(free[first:last])
    arrays = {}
    for split, chosen in members.items():
        arrays[split] = np.empty(len(chosen), object)
        arrays[split][:] = [done.sketches[i] for i in chosen]
    return arrays


def _report(name: str, done: Converted, sizes: dict[str, int], path: Path) -> str:
    """What was done, for a person."""
    rows = [len(sketch) for sketch in done.sketches]
    strokes = [int(sketch[:, 2].sum()) for sketch in done.sketches]
    points = sum(rows) + len(rows)
    lines = [
        f"{name}: {done.read} drawings read ({', '.join(done.kinds)}), {len(rows)} taken",
        *(f"  left out: {count} ({reason})" for reason, count in done.left_out.items()),
        f"  points: {done.points_before:,} before, {points:,} after; strokes: {sum(strokes):,}",
        f"  rows of a drawing: {min(rows)} to {max(rows)}, {np.mean(rows):.1f} on average",
    ]
    if long := sum(n > LONG for n in rows):
        lines.append(f"  long: {long} of more than {LONG} rows, which max_rows leaves out")
    if done.unchanged:
        lines.append(f"  unchanged: {done.unchanged} had a data file's units already")
    if done.not_strokes:
        lines.append(f"  not strokes: {done.not_strokes} filled shapes, texts or images")
    sizes_text = ", ".join(f"{size} {split}" for split, size in sizes.items())
    lines.append(f"  {path}: {sizes_text}; look at {path.with_suffix('.png').name}")
    return "\n".join(lines)


def _more(paths: list[Path]) -> str:
    return f" and {len(paths) - 1} more files" if len(paths) > 1 else ""


def _why(done: Converted) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in done.left_out.items())
    return f" ({reasons})" if reasons else ""


def _check(
    splits: Sequence[float],
    steps: Sequence[str],
    epsilon: float,
    max_rows: int,
    category: str | None,
) -> None:
    good = len(splits) == 3 and all(0 <= share <= 1 for share in splits)
    if not good or abs(sum(splits) - 1) > 1 / UNITS:
        shown = ",".join(f"{share:g}" for share in splits)
        raise UserError(f"splits: {shown} is not allowed; three shares that sum to 1")
    for step in steps:
        if step not in STEPS:
            raise UserError(f"steps: {step!r} is not allowed; some of {', '.join(STEPS)}, none")
    if not 0 <= epsilon < float("inf"):
        raise UserError(f"epsilon: {epsilon} is not allowed; at least 0")
    if max_rows < 0 or max_rows == 1:
        raise UserError(f"max_rows: {max_rows} is not allowed; 0 or at least 2")
    if category is not None:
        _check_name(category)


def _check_name(name: str) -> None:
    try:
        HParams(categories=(name,))
    except UserError as error:
        raise UserError(f"{name!r} can't be a category; give another category") from error


def main() -> None:
    """Converts as the flags say."""
    values = flags.FLAGS
    try:
        splits = tuple(float(share) for share in values.splits.split(","))
    except ValueError:
        raise UserError(f"splits: {values.splits!r} is not allowed; as in 0.8,0.1,0.1") from None
    convert(
        [path for path in values.input.split(",") if path],
        values.data_dir,
        category=values.category or None,
        splits=splits,
        steps=() if values.steps == "none" else tuple(values.steps.split(",")),
        epsilon=values.epsilon,
        seed=values.seed,
        absolute=values.absolute,
        unrecognized=values.unrecognized,
        unchanged=values.unchanged,
        max_rows=values.max_rows,
    )


def define_flags() -> None:
    """Declares the command line's flags."""
    flags.DEFINE_string("input", None, "Files and directories of drawings, commas between them.")
    flags.DEFINE_string("data_dir", None, "Directory for <category>.npz and <category>.png.")
    flags.DEFINE_string("category", "", "Of all drawings; else files and folders are categories.")
    flags.DEFINE_string("splits", "0.8,0.1,0.1", "Shares of train, valid and test.")
    flags.DEFINE_string("steps", ",".join(STEPS), "Steps of the simplification, or none.")
    flags.DEFINE_float("epsilon", simplify.EPSILON, "Tolerance of the step rdp, in its units.")
    flags.DEFINE_integer("seed", 0, "Decides which drawing goes to which split.", 0)
    flags.DEFINE_bool("absolute", False, "Numbers in .npy and .npz are points, not offsets.")
    flags.DEFINE_bool("unrecognized", False, "Take drawings that were not recognized, too.")
    flags.DEFINE_bool("unchanged", True, "Leave drawings that are simplified already as they are.")
    flags.DEFINE_integer("max_rows", 0, "Leave out drawings of more rows; 0: none.")
    flags.mark_flags_as_required(["input", "data_dir"])


if __name__ == "__main__":
    define_flags()
    cli.run(main)
