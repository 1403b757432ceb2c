"""Figures: the numbers that they show, the whole command, files whose bytes repeat."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HPARAMS

import checkpoints
import figures
import inference
import retrieval
import sample
from checkpoints import RunState
from hparams import HParams, write_config
from model import SPGra2Seq
from support import code_space, plots, sample_files
from support.files import UserError, read_npz
from support.fonts import showable
from support.plots import Page

ROOT = Path(__file__).parents[1]
ALL = ("codes", "synonyms", "interpolation", "retrieval")
SMALL = {"categories": ("fish", "tree"), "z_size": 4, "dec_rnn_size": 8, "max_seq_len": 70}
PATCHES = {"graph_number": 8, "graph_picture_size": 32, "drawing_size": 80}


# Numbers.


def angles(way):
    """Between neighbours."""
    unit = way / np.linalg.norm(way, axis=1, keepdims=True)
    return np.arccos(np.clip((unit[1:] * unit[:-1]).sum(axis=1), -1, 1))


def test_slerp_turns_evenly():
    """Both ends exactly, equal angles, lengths that grow evenly; White's formula for equal ones."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7))
    way = code_space.slerp(a, 3 * b, 9)
    np.testing.assert_array_equal(way[[0, -1]], [a, 3 * b])
    between = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    np.testing.assert_allclose(angles(way), between / 8, rtol=1e-9)
    lengths = np.linspace(np.linalg.norm(a), 3 * np.linalg.norm(b), 9)
    np.testing.assert_allclose(np.linalg.norm(way, axis=1), lengths)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    t = np.linspace(0, 1, 9)[:, None]
    white = (np.sin((1 - t) * between) * a + np.sin(t * between) * b) / np.sin(between)
    np.testing.assert_allclose(code_space.slerp(a, b, 9), white)
    quarter = code_space.slerp([1, 0], [0, 1], 3)
    np.testing.assert_allclose(quarter, [[1, 0], [0.5**0.5] * 2, [0, 1]], atol=1e-15)


def test_slerp_where_there_is_no_one_way():
    """Parallel codes: straight. Opposite ones: half a circle. No direction: straight."""
    np.testing.assert_allclose(code_space.slerp([3, 4], [6, 8], 3)[1], [4.5, 6])
    half = code_space.slerp([0, 2, 0], [0, -2, 0], 5)
    np.testing.assert_allclose(angles(half), np.pi / 4)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 2)
    np.testing.assert_array_equal(half[[0, -1]], [[0, 2, 0], [0, -2, 0]])
    np.testing.assert_allclose(code_space.slerp([0, 0], [2, 4], 3)[1], [1, 2])
    np.testing.assert_allclose(code_space.slerp([-1], [3], 5), [[-1], [0], [1], [2], [3]])


def test_purity_and_information_by_hand():
    """Perfect, none, and a case counted by hand."""
    labels = np.array([0, 0, 1, 1])
    for measure in (code_space.purity, code_space.mutual_information):
        assert measure(np.array([5, 5, 3, 3]), labels) == pytest.approx(1)
    crossed = np.array([0, 1, 0, 1])
    assert code_space.purity(crossed, labels) == 0.5
    assert code_space.mutual_information(crossed, labels) == pytest.approx(0)
    assert code_space.purity(np.zeros(4, int), np.array([2, 2, 2, 7])) == 0.75
    # Clusters of 3 and 1: entropies ln 2 and 0.5623, mutual information 0.2158.
    clusters = np.array([0, 0, 0, 1])
    assert code_space.purity(clusters, labels) == 0.75
    one = 0.25 * np.log(4) + 0.75 * np.log(4 / 3)
    shared = np.log(2) - 0.75 * (np.log(3) - 2 / 3 * np.log(2))
    expected = shared / ((one + np.log(2)) / 2)
    assert code_space.mutual_information(clusters, labels) == pytest.approx(expected)


def test_neighbours_by_hand():
    """A code is not a neighbour of itself; of a tie the nearest decides."""
    codes = np.array([[0.0], [1.0], [3.0], [10.0]])
    labels = np.array([0, 0, 1, 1])
    assert code_space.neighbour_accuracy(codes, labels, 1) == 0.75  # 3 is nearer to 1
    assert code_space.neighbour_accuracy(codes, labels, 2) == 0.75  # ties: 0, 0, 0 and 1
    assert code_space.neighbour_accuracy(codes, labels, 3) == 0.0
    assert code_space.neighbour_accuracy(np.zeros((3, 2)), np.zeros(3, int), 2) == 1


def test_silhouette_where_it_is_undefined():
    """Not a number, rather than an error."""
    codes = np.array([[0.0], [0.0], [8.0], [8.0]])
    assert code_space.silhouette(codes, np.array([0, 0, 1, 1])) == 1
    assert np.isnan(code_space.silhouette(codes, np.zeros(4, int)))
    assert np.isnan(code_space.silhouette(codes, np.arange(4)))


def test_the_plane():
    """The same in each call; few codes and short ones, too; what is apart stays apart."""
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((40, 6)) + 100 * np.repeat([[0], [1]], 20, axis=0)
    points = code_space.plane(codes, 3)
    np.testing.assert_array_equal(points, code_space.plane(codes, 3))
    assert code_space.neighbour_accuracy(points, np.repeat([0, 1], 20), 3) == 1
    for shape in ((code_space.MIN_CODES, 3), (9, 1)):
        assert np.isfinite(code_space.plane(rng.standard_normal(shape), 0)).all()
    assert np.isfinite(code_space.plane(np.ones((6, 2)), 0)).all()


def test_clusters():
    """Cosines, not distances; no more k-means than different directions."""
    embeddings = np.array([[9.0, 0], [1, 0.1], [0, 2], [0, 0]])
    cluster, cosine = code_space.cosine_clusters(embeddings, np.array([[0, 1.0], [5, 0]]))
    assert cluster.tolist()[:3] == [1, 1, 0]
    np.testing.assert_allclose(cosine[[0, 2, 3]], [1, 1, 0])
    assert len(code_space.k_means(np.repeat(embeddings[[0, 2]], 4, axis=0), 30, 0)) == 2


def test_cases_stand_at_quantiles():
    """Ends and middle by value; of equal values chance, the same in each call; none twice."""
    values = np.array([50, 10, 40, 20, 30])
    assert code_space.at_quantiles(values, (0, 0.5, 1), 0) == [1, 4, 0]
    equal = np.ones(100)
    chosen = code_space.at_quantiles(equal, (0, 0.5, 1), 0)
    assert chosen == code_space.at_quantiles(equal, (0, 0.5, 1), 0)
    assert chosen != code_space.at_quantiles(equal, (0, 0.5, 1), 1)
    assert len(set(code_space.at_quantiles(values[:2], (0, 0.2, 0.9, 1), 0))) == 2


def test_choices_are_varied():
    """One of a sketch, categories in turn; points apart; pairs within and across."""
    owners, kinds = np.array([0, 0, 1, 2, 3]), np.array([0, 0, 0, 1, 1])
    assert code_space.one_of_each([0, 1, 2, 4, 3], owners, kinds, 3) == [0, 4, 2]
    points = np.random.default_rng(0).random((200, 2))
    chosen = points[code_space.spread_out(points, 0.2, 40, 0)]
    apart = np.abs(chosen[:, None] - chosen).max(axis=2)
    assert 4 < len(chosen) < 40 and (apart[~np.eye(len(chosen), dtype=bool)] >= 0.2).all()
    assert len(code_space.spread_out(points, 0, 7, 0)) == 7
    labels = np.repeat([0, 1, 2], 8)
    pairs = code_space.choose_pairs(labels, 6, 0)
    assert [labels[a] == labels[b] for a, b in pairs] == [True] * 3 + [False] * 3
    assert len(set(pairs)) == 6 and all(a != b for a, b in pairs)
    one = code_space.choose_pairs(np.zeros(20, int), 6, 0)
    assert len({i for pair in one for i in pair}) == 12
    assert code_space.choose_pairs(np.array([0, 1]), 6, 0) in ([(0, 1)], [(1, 0)])


# Pages.


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [2, 200])
def test_names_in_any_script(count, tmp_path):
    """Whatever the categories are called and how many they are; the same bytes twice."""
    names = (["ñandú", "火", "a$x$_y^"] * count)[:count]
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        page = Page(3.3, 2, "A title that is longer than a line " * 3 + "\nñandú 火")
        page.legend(2, 0.2, 1.9, names)
        page.names_in_row(0.1, 0.1, {f"{name} {i}": i for i, name in enumerate(names)})
        page.points(np.random.default_rng(0).random((count, 2)), np.arange(count))
        page.text(0.1, 1, "кошка " * 20, room=1)
        page.sketch(0.1, 1.2, 0.5, np.zeros((0, 3)))
        written.append([path.read_bytes() for path in page.write(tmp_path / folder / "page")])
    assert written[0] == written[1]
    assert b"/FontFile2" in written[0][1] and b"CreationDate" not in written[0][1]
    assert b"tEXt" not in written[0][0]
    pairs = {(plots.colour(c), plots.marker(c)) for c in range(64)}
    assert len(pairs) == 64


def test_lines_are_broken_and_cut():
    """No line is longer than its room unless it is a single word; nothing is lost in breaking."""
    text = "Codes of 500 test sketches ñandú 火 " * 6
    lines = plots.broken(text.strip(), 2.0)
    assert " ".join(lines) == showable(text)
    assert all(1 < plots.text_width(line, plots.NORMAL) <= 2.0 for line in lines[:-1])
    assert plots.broken("x" * 90, 0.5) == ["x" * 90]
    cut = plots._cut("a" * 90, 1.0, 7)
    assert 0.9 < plots.text_width(cut, 7) <= 1.0 and cut.endswith("a…")
    assert plots._cut("short", 1.0, 7) == "short"


# The command.


def make_model(folder, **options):
    """An untrained model."""
    folder.mkdir(parents=True, exist_ok=True)
    hparams = HParams(**SMALL | options)
    write_config(folder / "model_config.json", hparams, 30.0)
    checkpoints.save_best(folder, SPGra2Seq(hparams), RunState())
    return folder


@pytest.fixture(scope="module")
def sampled(data_dir, model_dir, tmp_path_factory):
    """All test sketches, corrupted and redrawn."""
    folder = tmp_path_factory.mktemp("samples")
    sample.sample(data_dir, model_dir, folder, prob=0.4, batch_size=8, pictures=())
    return folder


@pytest.mark.slow
def test_the_whole_command(data_dir, model_dir, sampled, tmp_path):
    """All figures, the numbers that they show, and the same bytes from another process."""
    paths = figures.figures(data_dir, model_dir, tmp_path / "one", sample_dir=sampled)
    expected = {f"{name}.{ending}" for name in ALL for ending in ("png", "pdf", "npz")}
    assert {path.name for path in paths} == expected
    command = [sys.executable, str(ROOT / "figures.py"), f"--data_dir={data_dir}"]
    command += [f"--model_dir={model_dir}", f"--output_dir={tmp_path / 'two'}"]
    done = subprocess.run([*command, f"--sample_dir={sampled}"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out" not in done.stdout and "retrieval" in done.stdout
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name

    numbers = {name: read_npz(tmp_path / "one" / f"{name}.npz") for name in ALL}
    for found in numbers.values():
        assert json.loads(str(found["about"]))["split"] == "test"
        assert found["categories"].tolist() == ["fish", "tree"] and len(found["keys"]) == 15
    assert numbers["codes"]["plane"].shape == (15, 2)
    synonyms = numbers["synonyms"]
    assert synonyms["sizes"].sum() == len(synonyms["patches"]) == len(synonyms["cluster"])
    for c, members in zip(synonyms["shown"], synonyms["nearest"], strict=True):
        members = members[members >= 0]
        assert (synonyms["cluster"][members] == c).all()
        assert len(set(synonyms["patches"][members, 0])) == len(members)
    ways = numbers["interpolation"]["codes"]
    codes = numbers["codes"]["codes"]
    assert ways.shape[1:] == (10, HPARAMS.z_size)
    for way, (a, b) in zip(ways, numbers["interpolation"]["pairs"], strict=True):
        np.testing.assert_array_equal(way[[0, -1]], codes[[a, b]])
    ret = retrieval.retrieval(data_dir, model_dir, sampled)["ret"]
    ranks = numbers["retrieval"]["ranks"]
    assert {str(top): share for top, share in retrieval.shares(ranks).items()} == ret
    for row, i in enumerate(numbers["retrieval"]["shown"]):
        place = np.flatnonzero(
            numbers["retrieval"]["nearest"][row] == numbers["retrieval"]["own"][i]
        )
        assert place.tolist() == ([ranks[i] - 1] if ranks[i] <= 10 else [])
    assert ranks[numbers["retrieval"]["shown"]].tolist() == sorted(
        ranks[numbers["retrieval"]["shown"]]
    )


def same_codes(samples, model_dir, queries):
    """Whether `figures.plan_of` gives the codes that sample.py drew from."""
    plan = figures.plan_of(samples)
    members = samples.members[queries].tolist()
    encoded = inference.encode_sketches(
        checkpoints.load_model(model_dir),
        [samples.split.sketch(member) for member in members],
        mask_prob=samples.metadata.prob,
        seeds=[plan.seeds[plan.members.index(member)] for member in members],
        masking=samples.metadata.masking,
    )
    for found, member in zip(encoded, members, strict=True):
        category, index = samples.split.key(member)
        code = np.load(samples.sample_dir / f"code_{category}_{index}.npy")[0]
        np.testing.assert_allclose(found.code, code, rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.slow
def test_what_was_erased(data_dir, model_dir, sampled, tmp_path):
    """What is shown is what was encoded; of other seeds, or unknown ones, nothing is shown."""
    samples = sample_files.load_samples(sampled, data_dir, model_dir)
    assert same_codes(samples, model_dir, [2, 9])
    pictures, note = figures._corrupted(samples, [2, 9])
    assert len(pictures) == 2 and note == ""
    for change, why in (({"random_seed_sha256": "0"}, "random_seed"), ({"prob": None}, "known")):
        other = samples._replace(metadata=replace(samples.metadata, **change))
        pictures, note = figures._corrupted(other, [2])
        assert pictures == [] and why in note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"method": "sketchhealer", **PATCHES}, ["codes", "synonyms", "interpolation"]),
        ({"method": "sketchlattice", "lattice_nodes": 40}, ["codes", "interpolation"]),
    ],
)
def test_other_methods(options, drawn, data_dir, tmp_path, capsys):
    """Without clusters k-means finds some; without patches a note says what is left out."""
    model_dir = make_model(tmp_path / "model", **options)
    figures.figures(data_dir, model_dir, tmp_path / "out", num_per_category=6, workers=1)
    out = capsys.readouterr().out
    assert f"Drawn: {', '.join(drawn)}." in out
    assert "the figure retrieval is left out: it needs --sample_dir" in out
    assert ("has no patches" in out) == ("synonyms" not in drawn)
    if "synonyms" in drawn:
        found = read_npz(tmp_path / "out" / "synonyms.npz")
        assert 1 < len(found["sizes"]) <= 30 and len(found["links"])
    else:
        with pytest.raises(UserError, match="synonyms can't be drawn: .*sketchlattice has no pa"):
            figures.figures(data_dir, model_dir, tmp_path / "out", names=("synonyms",))


@pytest.mark.slow
def test_dropped_points(data_dir, tmp_path):
    """What a lattice lost point by point is shown, too."""
    model_dir = make_model(tmp_path / "model", method="sketchlattice", lattice_nodes=40)
    options = {"num_per_category": 3, "pictures": (), "prob": 0.4, "masking": "lattice"}
    sample.sample(data_dir, model_dir, tmp_path / "samples", **options)
    samples = sample_files.load_samples(tmp_path / "samples", data_dir, model_dir)
    assert same_codes(samples, model_dir, [1, 4])
    options = {"sample_dir": tmp_path / "samples", "names": ("retrieval",)}
    figures.figures(data_dir, model_dir, tmp_path / "out", **options)
    found = read_npz(tmp_path / "out" / "retrieval.npz")
    assert len(found["ranks"]) == len(found["queries"]) == len(samples.keys)


@pytest.mark.slow
@pytest.mark.parametrize("edges", ["temporal", "none"])
def test_links_of_other_edges(edges, data_dir, tmp_path):
    """Linked is what the adjacency says: neighbours in the order of drawing, or nothing."""
    model_dir = make_model(tmp_path / "model", edges=edges, num_mixture=3, **PATCHES)
    figures.figures(data_dir, model_dir, tmp_path / "out", names=("synonyms",), num_per_category=3)
    links = read_npz(tmp_path / "out" / "synonyms.npz")["links"]
    if edges == "none":
        assert len(links) == 0
    else:
        assert len(links) and set(np.abs(links[:, 1] - links[:, 2])) <= {1, 2}
        assert (links[:, 3] > 0).all() and (np.abs(links[:, 4]) <= 1 + 1e-9).all()


@pytest.mark.slow
def test_one_category(data_dir, tmp_path):
    """There is nothing to tell apart: the measures are n/a, pairs all within."""
    model_dir = make_model(tmp_path / "model", categories=("tree",), num_mixture=3, **PATCHES)
    names = ("codes", "interpolation")
    figures.figures(data_dir, model_dir, tmp_path / "out", names=names)
    found = read_npz(tmp_path / "out" / "codes.npz")
    assert np.isnan(found["silhouette"]) and np.isnan(found["accuracy"])
    assert len(read_npz(tmp_path / "out" / "interpolation.npz")["pairs"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"names": ("codes", "umap")},
            "figures: 'umap' is not allowed; some of codes, synonyms, i",
        ),
        ({"names": ("retrieval",)}, "retrieval can't be drawn: it needs --sample_dir"),
        ({"split": "all"}, "split: 'all' is not allowed"),
        ({"num_per_category": 0}, "num_per_category: 0 is not allowed"),
        ({"seed": -1}, "seed: -1 is not allowed"),
        ({"workers": -1}, "workers: -1 is not allowed"),
        ({"num_per_category": 2}, "the figure codes takes at least 5 sketches; there are 4"),
        ({"num_per_category": 1, "names": ("interpolation",)}, "takes at least 3 sketches"),
        ({"sample_dir": "nowhere"}, "nowhere: there is no such directory"),
    ],
)
def test_mistakes(options, message, data_dir, model_dir, tmp_path):
    """One line, and nothing is left behind."""
    with pytest.raises(UserError, match=message) as error:
        figures.figures(data_dir, model_dir, tmp_path / "out", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_directories_that_do_not_fit(data_dir, model_dir, tmp_path):
    """No model, no data, no place for the figures, another program's files."""
    with pytest.raises(UserError, match="model_config.json"):
        figures.figures(data_dir, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="fish.npz: not found"):
        figures.figures(tmp_path, model_dir, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        figures.figures(data_dir, model_dir, tmp_path / "file" / "out")
    (tmp_path / "codes.png").write_text("not ours")
    with pytest.raises(UserError, match="codes.png: is not of this program"):
        figures.figures(data_dir, model_dir, tmp_path)
    assert (tmp_path / "codes.png").read_text() == "not ours"


@pytest.mark.slow
def test_samples_of_another_split(data_dir, model_dir, sampled, tmp_path):
    """A line says which one they are of; samples of none of the sketches are refused, too."""
    folder = tmp_path / "samples"
    shutil.copytree(sampled, folder)
    with pytest.raises(UserError, match="its samples are of --split=test, not valid"):
        figures.figures(data_dir, model_dir, tmp_path / "out", sample_dir=folder, split="valid")
    for path in folder.glob("stroke_*_[0-3].npy"):
        path.unlink()
    options = {"num_per_category": 3, "names": ("retrieval",)}
    with pytest.raises(UserError, match="none of its samples is of the sketches used"):
        figures.figures(data_dir, model_dir, tmp_path / "out", sample_dir=folder, **options)
