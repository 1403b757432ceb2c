"""The table of several methods: the same sketches for all, nothing done twice, honest numbers."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import HPARAMS

import checkpoints
import compare
import sample
from checkpoints import RunState
from dataset import load_dataset
from hparams import HParams, write_config
from model import SPGra2Seq
from rec_classifier import Options
from support import comparison
from support.comparison import Run
from support.contestants import erased_squares, find_contestants, load_common_data
from support.files import UserError, read_json
from support.sample_files import scope

ROOT = Path(__file__).parents[1]
TINY = Options(per_epoch=16, epochs=1, batch_size=8, width=4)
LATTICE = HParams(
    method="sketchlattice",
    **{name: getattr(HPARAMS, name) for name in ("categories", "dec_rnn_size", "z_size")},
    max_seq_len=70,
)
CALL = {"probs": (0.3,), "num_per_category": 6, "options": TINY, "workers": 1}


def write_model(folder, hparams, data="", scale_factor=30.0):
    """A model's directory; without weights, where only its options are looked at."""
    folder.mkdir(parents=True)
    write_config(folder / "model_config.json", hparams, scale_factor)
    # The seed, so that no two of them are the same file.
    weights = {"number": np.array(hash(str((folder, hparams))) % 2**31)}
    checkpoints.write_arrays(folder / "best.npz", weights, RunState(data=data).to_file())
    return folder


@pytest.fixture(scope="module")
def models(model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "lattice"
    folder.mkdir()
    write_config(folder / "model_config.json", LATTICE, 30.0)
    checkpoints.save_best(folder, SPGra2Seq(LATTICE), RunState())
    return [model_dir, folder]


@pytest.fixture(scope="module")
def compared(data_dir, models, tmp_path_factory):
    """Two untrained models of different methods, and what the table says of them."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, compare.compare(data_dir, models, out, **CALL)


def contents(out):
    return {name: (out / name).read_bytes() for name in compare.FILES}


@pytest.mark.slow
def test_the_table_is_what_the_measures_found(compared):
    """Each share is that of ret.json and rec.json; nothing is shown that the JSON lacks."""
    out, result = compared
    assert read_json(out / "table.json") == result
    assert "11 of 15 test sketches of 2 categories, the first 6 of each" in result["title"]
    assert [row["method"] for row in result["rows"]] == ["sp_gra2seq", "sketchlattice"]
    for row, model in zip(result["rows"], result["models"], strict=True):
        folder = out / "runs" / model["model"] / "prob0.3-seed0"
        ret, rec = (read_json(folder / f"{name}.json") for name in ("ret", "rec"))
        assert row["rec"]["mean"] == rec["rec"] and ret["queries"] == 11
        for top in (1, 10, 50):
            assert row[f"top_{top}"]["mean"] == ret["ret"][str(top)]
            assert result["chance"][f"top_{top}"] == ret["chance"][str(top)]
        assert result["originals_rec"] == rec["originals"]
        assert row["masking"] == "patch"
    assert result["chance"]["rec"] == 0.5

    shown = [list(row.values()) for row in csv.DictReader((out / "table.csv").open())]
    numbers = {text for row in shown for text in row if text.replace(".", "", 1).isdigit()}
    assert numbers <= set(json.dumps(result).replace(",", " ").replace("}", " ").split())
    markdown = (out / "table.md").read_text()
    assert markdown.startswith(f"# {result['title']}\n")
    for row in comparison.cells(result):
        assert f"| {' | '.join(row)} |" in markdown
    page = (out / "index.html").read_text()
    assert result["title"] in page and page.count("<tr>") == 5 and "sketchlattice" in page
    for name in ("table.png", "gallery.png"):
        assert (cv2.imread(str(out / name)) < 128).any()


@pytest.mark.slow
def test_nothing_is_done_twice(data_dir, models, compared, tmp_path, monkeypatch):
    """A call that was stopped anywhere goes on there, to the same files, byte by byte."""
    out = shutil.copytree(compared[0], tmp_path / "out")
    drawn = []
    original = sample.sample
    monkeypatch.setattr(sample, "sample", lambda *a, **k: (drawn.append(a[2]), original(*a, **k)))
    compare.compare(data_dir, models, out, **CALL)
    assert drawn == [] and contents(out) == contents(compared[0])

    folder = next((out / "runs").glob("lattice-*")) / "prob0.3-seed0"
    kept = sorted(folder.glob("stroke_*"))
    times = [path.stat().st_mtime_ns for path in kept[1:]]
    kept[0].unlink()
    (folder / "ret.npz").write_bytes(b"half a file")
    for name in compare.FILES:
        (out / name).unlink()
    compare.compare(data_dir, models, out, **CALL)
    assert drawn == [folder] and contents(out) == contents(compared[0])
    assert [path.stat().st_mtime_ns for path in kept[1:]] == times


@pytest.mark.slow
def test_a_changed_option_is_noticed(data_dir, models, compared):
    """Samples made with other options are neither measured nor replaced."""
    before = contents(compared[0])
    with pytest.raises(UserError, match="model, data or options .*temperature was 0.24, is 0.5"):
        compare.compare(data_dir, models, compared[0], **CALL, temperature=0.5)
    assert contents(compared[0]) == before


def test_methods_are_told_apart_by_their_options(tmp_path):
    """Models that differ in the seed are one method; each other difference is in its name."""
    hparams = [
        HPARAMS,
        HPARAMS.replace(seed=1, edges="synonymous"),
        HPARAMS.replace(edges="none"),
        HPARAMS.replace(z_size=8),
        HPARAMS.replace(masking="sketchhealer"),
        LATTICE,
    ]
    folders = [write_model(tmp_path / str(i), h) for i, h in enumerate(hparams)]
    found = find_contestants(folders[:2] + folders[5:], "lattice")
    assert [c.method for c in found] == ["sp_gra2seq", "sp_gra2seq", "sketchlattice"]
    assert [c.masking for c in found] == ["patch", "patch", "lattice"]
    assert [c.name.partition("-")[0] for c in found] == ["0", "1", "5"]
    assert [c.method for c in find_contestants(folders[:3], "patch")] == [
        "sp_gra2seq",
        "sp_gra2seq",
        "sp_gra2seq, edges=none",
    ]
    found = find_contestants([folders[0], *folders[3:5]], "auto")
    assert [c.method for c in found] == [
        "sp_gra2seq, z_size=5, masking=patch",
        "sp_gra2seq, z_size=8, masking=patch",
        "sp_gra2seq, z_size=5, masking=sketchhealer",
    ]
    assert [c.masking for c in found] == ["patch", "patch", "sketchhealer"]
    assert erased_squares(found[0]) == "squares of 20% of the drawing's side around 7 centres"


def test_models_of_other_data_are_refused(data_dir, tmp_path):
    """Other categories, sketches, or units: nothing of this can stand in one table."""

    def refused(*folders):
        with pytest.raises(UserError) as caught:
            load_common_data(data_dir, find_contestants(folders, "patch"))
        return str(caught.value)

    base = write_model(tmp_path / "base", HPARAMS)
    other = write_model(tmp_path / "other", HPARAMS.replace(categories=("tree", "fish")))
    assert "other has other categories (tree, fish) than" in refused(base, other)
    one, two = (write_model(tmp_path / name, HPARAMS, data=name) for name in ("one", "two"))
    assert "two was trained on other sketches than" in refused(one, two)
    assert "not the sketches that" in refused(one)
    units = write_model(tmp_path / "units", HPARAMS, scale_factor=31.0)
    assert "scale factor 31.0" in refused(base, units)
    assert "hold the same model" in refused(base, base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "models: at least one"),
        ({"probs": ()}, "probs: at least one"),
        ({"probs": (0.1, 0.1)}, "probs: one is given twice"),
        ({"probs": (1.5,)}, "prob: 1.5"),
        ({"seeds": (-1,)}, "seed: -1"),
        ({"num_per_category": 0}, "num_per_category: 0"),
        ({"masking": "most"}, "masking: 'most' is not allowed; one of auto, patch, sketchhealer"),
        ({"split": "all"}, "split: 'all'"),
    ],
)
def test_wrong_options(changes, message, data_dir, tmp_path):
    """Are refused before anything is written."""
    call = {"models": [tmp_path / "absent"], **changes}
    with pytest.raises(UserError, match=message):
        compare.compare(data_dir, output_dir=tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()


def test_the_command_says_a_mistake_in_one_line(data_dir, tmp_path):
    command = [sys.executable, str(ROOT / "compare.py"), f"--data_dir={data_dir}"]
    command += [f"--models={tmp_path}/absent", f"--output_dir={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("compare.py: ") and done.stderr.count("\n") == 1
    done = subprocess.run([*command, "--probs=0,much"], capture_output=True, text=True)
    assert "probs: '0,much' is not allowed" in done.stderr and done.stderr.count("\n") == 1


def one_run(right, ranks=None, model="m", seed=0):
    right = np.array(right, bool)
    return Run(model, seed, right, np.where(right, 1, 99) if ranks is None else np.array(ranks))


def test_marks_and_tests_by_hand():
    """Of three methods one wins 10 sketches to none, and one can't be told from the best."""
    best = [1] * 30 + [0] * 10
    near = [1] * 29 + [0] * 11
    far = [1] * 15 + [0] * 25
    rows, tests = comparison.compare_methods(
        {name: [one_run(right)] for name, right in (("a", far), ("b", best), ("c", near))}
    )
    assert [row["rec"]["mark"] for row in rows] == ["", "best", "as good"]
    assert [row["top_1"]["mark"] for row in rows] == ["", "best", "as good"]
    assert {row["top_10"]["mark"] for row in rows} == {""}
    of_rec = {(t["a"], t["b"]): t for t in tests if t["measure"] == "rec"}
    found = {pair: (t["a_wins"], t["b_wins"]) for pair, t in of_rec.items()}
    assert found == {("a", "b"): (0, 15), ("a", "c"): (0, 14), ("b", "c"): (1, 0)}
    assert of_rec["a", "b"]["p"] == pytest.approx(2**-14)
    assert of_rec["a", "b"]["p_holm"] == pytest.approx(3 * 2**-14)
    assert of_rec["a", "c"]["p_holm"] == pytest.approx(2 * 2**-13)
    assert of_rec["b", "c"]["p_holm"] == 1.0
    assert rows[1]["rec"]["interval"] == "Wilson over 40 sketches"
    assert rows[1]["rec"]["low"] == pytest.approx(0.5981, abs=1e-4)  # 30 of 40


def test_intervals_over_models_and_drawings():
    """Several models: t over their means. One model, several drawings: t over these."""
    runs = [
        one_run([1, 1, 0, 0], model="m"),
        one_run([1, 1, 1, 1], model="m", seed=1),
        one_run([1, 0, 0, 0], model="n"),
        one_run([1, 0, 0, 0], model="n", seed=1),
    ]
    row = comparison.compare_methods({"a": runs})[0][0]["rec"]
    assert (row["mean"], row["interval"], row["mark"]) == (0.5, "t over 2 models", "")
    assert (row["low"], row["high"]) == (0.0, 1.0)  # 0.5 +- 12.7 * 0.25, and no share is outside
    row = comparison.compare_methods({"a": runs[:2]})[0][0]["rec"]
    assert (row["mean"], row["interval"]) == (0.75, "t over 2 drawings")
    # Models that are equal by chance don't tell how models spread: the sketches do, 2 of 4.
    equal = [one_run([1, 1, 0, 0], model="m"), one_run([0, 0, 1, 1], model="n")]
    row = comparison.compare_methods({"a": equal})[0][0]["rec"]
    assert (row["mean"], row["interval"]) == (0.5, "Wilson over 4 sketches")
    assert (row["low"], row["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)


def test_methods_with_different_numbers_of_runs():
    """A sketch is won by the larger share of successes, exactly: two of six equal one of three."""
    three = [one_run(right) for right in ([1, 1], [0, 1], [0, 0])]
    six = [one_run(right) for right in ([1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0])]
    _, tests = comparison.compare_methods({"a": three, "b": six})
    assert (tests[0]["a_wins"], tests[0]["b_wins"]) == (1, 0)


def test_what_was_measured_is_named(data_dir):
    """The title says when it is less than the whole set."""
    split = load_dataset(data_dir, HPARAMS, scale_factor=30.0).splits["test"]
    assert scope(split, list(range(15)), 8, "test") == "15 test sketches of 2 categories"
    some = [0, 1, 7, 8, 9]
    assert scope(split, some, 3, "test") == (
        "5 of 15 test sketches of 2 categories, the first 3 of each"
    )
