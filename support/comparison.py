"""Outcomes of several methods on the same sketches: intervals, tests, and the table of them."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from retrieval import TOPS
from support.fonts import Figure, Line2D, families, showable
from support.significance import LEVEL, holm, mcnemar_test, t_interval, wilson_interval

MEASURES = {"rec": "Rec", **{f"top_{top}": f"Ret Top-{top}" for top in TOPS}}
TESTED = ("rec", "top_1")
BEST, AS_GOOD = "best", "as good"
FONT_SIZE, LINE, DPI = 9, 16, 150  # points, points, pixels an inch
MARKS = {BEST: "**", AS_GOOD: "*"}


@dataclass(frozen=True)
class Run:
    """What one model made of the sketches once.

    Attributes:
        model: which of the method's models.
        seed: of the drawing.
        right: bool (n,), whether the classifier recognises each redrawn sketch.
        ranks: int (n,), the place of each sketch's original among all.
    """

    model: str
    seed: int
    right: np.ndarray
    ranks: np.ndarray

    def successes(self, measure: str) -> np.ndarray:
        """By sketch, bool (n,)."""
        return self.right if measure == "rec" else self.ranks <= int(measure.removeprefix("top_"))


def compare_methods(runs: Mapping[str, Sequence[Run]]) -> tuple[list[dict], list[dict]]:
    """What is known of each method, and of each pair of methods, at one probability of erasing.

    Args:
        runs: those of each method, by its name; all on the same sketches in the same order.

    Returns:
        A row for each method: its name, the shares of its runs, and for each measure mean,
        interval and mark. A test for each pair and measure of `TESTED`, corrected by Holm's
        method for the number of pairs.
    """
    rows = [_row(name, of_method) for name, of_method in runs.items()]
    tests = []
    for measure in TESTED:
        pairs = list(combinations(runs, 2))
        found = [_test(measure, runs[a], runs[b]) for a, b in pairs]
        corrected = holm([p for _, _, p in found])
        tests += [
            {"measure": measure, "a": a, "b": b, "a_wins": wins, "b_wins": losses}
            | {"p": p, "p_holm": p_holm}
            for (a, b), (wins, losses, p), p_holm in zip(pairs, found, corrected, strict=True)
        ]
        _mark(rows, measure, [test for test in tests if test["measure"] == measure])
    return rows, tests


def _row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    models = list(dict.fromkeys(run.model for run in runs))
    row: dict[str, Any] = {"method": name, "runs": []}
    for run in runs:
        shares = {measure: float(run.successes(measure).mean()) for measure in MEASURES}
        row["runs"].append({"model": run.model, "seed": run.seed, **shares})
    for measure in MEASURES:
        of_models = [
            float(np.mean([run[measure] for run in row["runs"] if run["model"] == model]))
            for model in models
        ]
        shares = of_models if len(models) > 1 else [run[measure] for run in row["runs"]]
        if len(set(shares)) > 1:
            interval = t_interval(shares)
            kind = f"t over {len(shares)} {'models' if len(models) > 1 else 'drawings'}"
        else:
            # Also where several runs are equal by chance: they don't tell how they spread.
            hits = runs[0].successes(measure)
            interval = wilson_interval(int(hits.sum()), len(hits))
            kind = f"Wilson over {len(hits):,} sketches"
        low, high = max(0.0, interval[0]), min(1.0, interval[1])
        mean = float(np.mean(of_models))
        row[measure] = {"mean": mean, "low": low, "high": high, "interval": kind, "mark": ""}
    return row


def _test(measure: str, a: Sequence[Run], b: Sequence[Run]) -> tuple[int, int, float]:
    """The test of a pair; counts are brought to the same number of runs, as whole numbers."""
    of_a = sum(run.successes(measure).astype(np.int64) for run in a) * len(b)
    of_b = sum(run.successes(measure).astype(np.int64) for run in b) * len(a)
    return mcnemar_test(of_a, of_b)


def _mark(rows: list[dict], measure: str, tests: list[dict]) -> None:
    """Marks the best, and those that can't be told from it."""
    if len(rows) < 2:
        return
    best = max(rows, key=lambda row: row[measure]["mean"])  # the first of equal ones
    best[measure]["mark"] = BEST
    for test in tests:
        names = {test["a"], test["b"]}
        if best["method"] in names and test["p_holm"] > 1 - LEVEL:
            other = (names - {best["method"]}).pop()
            next(row for row in rows if row["method"] == other)[measure]["mark"] = AS_GOOD


def cells(result: dict[str, Any]) -> list[list[str]]:
    """The table as text: a header and a row for each method and probability, in percent.

    Marks stand around a number as in Markdown: `**` (bold) the best, `*` (italic) those that
    can't be told from it.
    """
    rows = [["erased", "method", "models", "masking", *MEASURES.values()]]
    for row in result["rows"]:
        shown = []
        for measure in MEASURES:
            value = row[measure]
            mark = MARKS.get(value["mark"], "")
            interval = f"[{percent(value['low'])}, {percent(value['high'])}]"
            shown.append(f"{mark}{percent(value['mean'])}{mark} {interval}")
        models = str(len({run["model"] for run in row["runs"]}))
        rows.append([f"{row['prob']:.0%}", row["method"], models, row["masking"], *shown])
    chance = result["chance"]
    rows.append(["", "originals", "", "", percent(result["originals_rec"]), *[""] * len(TOPS)])
    rows.append(["", "chance", "", "", *(percent(chance[measure]) for measure in MEASURES)])
    return rows


def percent(share: float) -> str:
    """A share in percent, with more digits where it is small."""
    value = 100 * share
    return f"{value:.1f}" if value >= 1 or value == 0 else f"{value:.2g}"


def markdown(result: dict[str, Any]) -> str:
    """The table with its title, its notes and the models, in Markdown."""
    header, *rows = ([_plain(cell) for cell in row] for row in cells(result))
    lines = [f"# {result['title']}", "", _line(header), _line(["---"] * len(header))]
    lines += [_line(row) for row in rows]
    lines += ["", *(f"- {note}" for note in result["notes"]), ""]
    lines += [_line(["method", "model", "seed", "sha256 of best.npz"]), _line(["---"] * 4)]
    for model in result["models"]:
        row = (model["method"], model["model"], model["seed"], f"`{model['sha256'][:16]}`")
        lines.append(_line([_plain(str(cell)) for cell in row]))
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _plain(text: str) -> str:
    """Without what would end a cell of a Markdown table."""
    return text.replace("|", "\\|")


def as_csv(result: dict[str, Any]) -> str:
    """The table as numbers: shares from 0 to 1, with the ends of their intervals."""
    columns = ["prob", "method", "masking", "models"]
    columns += [f"{m}{part}" for m in MEASURES for part in ("", "_low", "_high", "_mark")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in result["rows"]:
        models = len({run["model"] for run in row["runs"]})
        values = [row["prob"], row["method"], row["masking"], models]
        for measure in MEASURES:
            values += [row[measure][key] for key in ("mean", "low", "high", "mark")]
        writer.writerow(values)
    rest = len(columns) - 4
    originals = [result["originals_rec"], *[""] * (rest - 1)]
    writer.writerow(["", "originals", "", "", *originals])
    chance = [value for m in MEASURES for value in (result["chance"][m], "", "", "")]
    writer.writerow(["", "chance", "", "", *chance])
    return file.getvalue()


def as_html(result: dict[str, Any]) -> str:
    """The table and its notes as part of a web page."""

    def row(texts, tag):
        return f"<tr>{''.join(f'<{tag}>{_html_cell(text)}</{tag}>' for text in texts)}</tr>"

    header, *rows = cells(result)
    body = "".join(row(texts, "td") for texts in rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result["notes"])
    return f"<table>{row(header, 'th')}{body}</table>\n<ul>{notes}</ul>"


def _html_cell(text: str) -> str:
    text = html.escape(text)
    for mark, tag in (("**", "b"), ("*", "i")):
        if text.startswith(mark):
            number, rest = text[len(mark) :].split(mark)
            return f"<{tag}>{number}</{tag}>{rest}"
    return text


def as_png(result: dict[str, Any]) -> bytes:
    """The table with its title as a PNG file; the best are bold, those as good italic."""
    header, *rows = cells(result)
    lines = [header, *rows]
    widths = [max(len(showable(row[i])) for row in lines) for i in range(len(header))]
    starts = np.cumsum([0, *(0.62 * FONT_SIZE * width + 2 * FONT_SIZE for width in widths)])
    width = max(float(starts[-1]), 0.7 * FONT_SIZE * len(result["title"]))
    height = LINE * (len(lines) + 2)
    figure = Figure((width / 72, height / 72), dpi=DPI, facecolor="white")

    def write(x, y, text, **style):
        text = showable(text)
        figure.text(
            x / width,
            1 - y / height,
            text,
            fontsize=FONT_SIZE,
            family=families(text),
            parse_math=False,
            va="center",
            **style,
        )

    def rule(y):
        figure.add_artist(
            Line2D([0, 1], [1 - y / height] * 2, color="0.6", linewidth=0.7, solid_capstyle="butt")
        )

    write(0, LINE / 2, result["title"], fontweight="bold")
    before = None
    for number, texts in enumerate(lines):
        y = LINE * (number + 2)
        if texts[0] != before:
            rule(y - LINE / 2)
        for x, text in zip(starts, texts, strict=False):
            style = {"fontweight": "bold"} if number == 0 else {}
            if text.startswith("**"):
                style = {"fontweight": "bold"}
            elif text.startswith("*"):
                style = {"fontstyle": "italic"}
            write(x, y, text.replace("*", ""), **style)
        before = texts[0]
    rule(LINE * (len(lines) + 1.5))
    file = io.BytesIO()
    figure.savefig(
        file, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None}
    )
    return file.getvalue()


def chance(categories: int, gallery: int) -> dict[str, float]:
    """What guessing gives, by measure."""
    return {"rec": 1 / categories} | {f"top_{top}": min(1.0, top / gallery) for top in TOPS}
