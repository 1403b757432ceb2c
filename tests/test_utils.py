"""Strokes to patches: pixel for pixel the published rules, both ways of masking, what is refused.

`reference` is a second implementation of the rules, as plain as possible: row by row, a line a
row, a border by padding, and NumPy's own slicing. It is itself held against recorded results of
the published code, so that it can stand in for it on any other sketch. All comparisons are exact:
the promise is identical pixels.
"""

import functools
import warnings
from typing import NamedTuple

import cv2
import golden_data
import numpy as np
import pytest

import doodles
import utils
from utils import graph_mask, make_graph

BOTH = ("patch", "sketchhealer")


class Reference(NamedTuple):
    patches: np.ndarray
    n_patches: int
    masked: list
    centers: list
    inside: list  # for each patch, whether its square lies inside
    wrapped: int  # squares that lie inside only as negative indices


def walk_bounds(sketch):
    """Lowest and highest x and y of the points after rows 1.., added up one by one."""
    x = y = sketch.dtype.type(0) if sketch.dtype.kind == "f" else 0
    xs, ys = [], []
    for dx, dy, _ in sketch[1:] if sketch.dtype.kind == "f" else sketch[1:].tolist():
        x, y = x + dx, y + dy
        xs.append(x)
        ys.append(y)
    return min(xs), max(xs), min(ys), max(ys)


def reference(
    sketch, *, graph_number=21, graph_picture_size=256, mask_prob=0.0, seeds=(), masking="patch"
):
    """The rules, step by step; numbered as in the specification."""
    size = graph_picture_size
    # 1. Scale to 640 pixels by the truncated extent, in float64, and cut to int16.
    left, right, top, bottom = walk_bounds(sketch)
    longest = max(int(bottom - top), int(right - left))
    rows = []
    for dx, dy, lifted in sketch.astype(np.float64).tolist():
        if longest == 0:
            rows.append((0, 0, int(lifted)))
        else:
            rows.append((int(dx / longest * 640), int(dy / longest * 640), int(lifted)))
    # 2. Where the pen starts.
    thickness = 16
    left, right, top, bottom = walk_bounds(np.array(rows, np.int16))
    x, y = thickness + 1 - left - rows[0][0], thickness + 1 - top - rows[0][1]
    # 3. and 5. One line a row; the pen before every fourth row of a stroke is a patch's centre.
    side = max(bottom - top, right - left) + 2 * (thickness + 1)
    canvas = np.zeros((side, side), np.uint8)
    centers, drawn, lifts = [], 0, False
    for dx, dy, lifted in rows:
        if lifts:
            lifts, drawn = False, 0
        else:
            if drawn % 4 == 0:
                centers.append((x, y))
            cv2.line(canvas, (x, y), (x + dx, y + dy), 255, thickness)
            drawn, lifts = drawn + 1, lifted == 1
        x, y = x + dx, y + dy
    centers = centers[: graph_number - 1]
    # 4. The border.
    border = int(1.5 * size)
    bordered = np.pad(canvas, border)

    def square(center):
        column, row = (place + border - size // 2 for place in center)
        return bordered[row : row + size, column : column + size]

    inside = [square(center).shape == (size, size) for center in centers]
    wrapped = sum(
        ok and min(center) + border - size // 2 < 0
        for ok, center in zip(inside, centers, strict=True)
    )
    # 6. Masking, 7. pictures.
    patches = np.zeros((graph_number, size, size), np.uint8)
    masked = []
    for i, center in enumerate(centers):
        if mask_prob > 0 and float(seeds[i]) < mask_prob and inside[i]:
            square(center)[:] = 0
            masked.append(i)
        elif masking == "sketchhealer" and inside[i]:
            patches[i + 1] = square(center)
    if masking == "patch":
        for i, center in enumerate(centers):
            if inside[i]:
                patches[i + 1] = square(center)
    patches[0] = cv2.resize(bordered[border : border + side, border : border + side], (size, size))
    return Reference(patches, len(centers), masked, centers, inside, wrapped)


def assert_same(graph, expected):
    assert graph.n_patches == expected.n_patches
    assert graph.masked == expected.masked
    assert graph.centers.tolist() == [list(center) for center in expected.centers]
    assert graph.patches.dtype == np.uint8
    assert np.array_equal(graph.patches, expected.patches)


def random_sketch(rng, dtype):
    """Stroke-3 with all that is awkward: repeated lifts, zero offsets, a first row far away."""
    n = rng.integers(2, 45)
    reach = rng.choice([0.3, 2, 40] if np.dtype(dtype).kind == "f" else [1, 3, 40])
    offsets = rng.normal(0, reach, (n, 2)) * rng.choice([0.05, 1, 1], 2)
    offsets[rng.random(n) < 0.15] = 0
    # The walk of n steps spans about sqrt(n) steps; a few times that is moderate in int16 pixels.
    offsets[0] *= rng.choice([1, 1, np.sqrt(n), 3 * np.sqrt(n)])
    lifted = rng.random(n) < rng.choice([0.05, 0.3, 0.8])
    return np.column_stack([offsets, lifted]).astype(dtype)


def box(first=(0, 0), dtype=np.int16):
    """A sketch whose pixels are its units, so that `first` moves the pen by whole pixels."""
    rows = [(*first, 0), (0, 0, 0), (640, 0, 0), (0, 640, 0), (-640, 0, 0), (0, -640, 1)]
    return np.array(rows, dtype)


@functools.cache
def some_doodles():
    return [
        doodles.doodle(category, np.random.default_rng((3, place)))
        for place, category in enumerate(doodles.CATEGORIES)
    ]


def recorded_cases():
    cases = golden_data.text(golden_data.load("make_graph.npz"), "meta")["cases"]
    return [pytest.param(case, id=f"case{case['case']}") for case in cases]


@functools.cache
def recorded():
    return golden_data.load("make_graph.npz")


@pytest.mark.parametrize("case", recorded_cases())
def test_recorded_results(case, dirty_memory):
    """Each recorded result of the published code comes out to the pixel, or raises where it did.

    The reference below is held against the same results, or the other tests would prove little.
    """
    sketch = recorded()[f"sketch_{case['sketch']:03d}"]
    seeds = recorded()[f"seed_{case['case']:04d}"]
    sizes = {"graph_number": case["graph_num"], "graph_picture_size": case["patch"]}
    options = {**sizes, "mask_prob": case["mask_prob"]}
    if not case["ok"]:
        with pytest.raises(ValueError):
            make_graph(sketch, seeds=seeds, **options)
        return
    pixels = recorded()[f"p_{case['case']:04d}"]
    graph = make_graph(sketch, seeds=seeds[: case["seeds_used"]], **options)
    assert np.array_equal(graph.patches, pixels)
    assert graph.n_patches == case["graph_count"]
    assert graph.masked == case["mask_id"]
    if case["mask_prob"] > 0 and case["seeds_used"]:
        with pytest.raises(ValueError):
            make_graph(sketch, seeds=seeds[: case["seeds_used"] - 1], **options)
    name = golden_data.text(recorded(), "meta")["sketch_names"][str(case["sketch"])]
    if "overflows" not in name:  # int16 that wraps around is beyond the plain reference
        assert_same(graph, reference(sketch, seeds=seeds, **options))


def test_recorded_results_cover_enough():
    """The recorded file has masked, unmasked, small and failing cases: none has gone missing."""
    cases = golden_data.text(recorded(), "meta")["cases"]
    assert len(cases) >= 100
    assert {case["mask_prob"] for case in cases if case["ok"]} == {0.0, 0.1, 0.3}
    assert {case["patch"] for case in cases} == {64, 256}
    assert {case["ok"] for case in cases} == {True, False}
    assert any(case["mask_id"] for case in cases if case["ok"])


@pytest.mark.parametrize("masking", BOTH)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_random_sketches(dtype, masking, dirty_memory):
    """Any sketch, of any of the three dtypes and any sizes, gives the reference's pixels."""
    rng = np.random.default_rng([1, np.dtype(dtype).itemsize])
    left_out = wrapped = masked = moved = 0
    for _ in range(90):
        sketch = random_sketch(rng, dtype)
        size = int(rng.choice([2, 16, 64, 64, 128, 256]))
        options = {
            "graph_number": int(rng.choice([2, 5, 11, 21, 40])),
            "graph_picture_size": size,
            "mask_prob": float(rng.choice([0, 0.1, 0.3, 0.7, 1])),
            "seeds": rng.random(64).astype(rng.choice([np.float32, np.float64])),
            "masking": masking,
        }
        expected = reference(sketch, **options)
        assert_same(make_graph(sketch, **options), expected)
        left_out += expected.inside.count(False)
        wrapped += expected.wrapped
        masked += len(expected.masked)
        moved += bool((sketch[:-1, 2] * sketch[1:, 2]).any())
    # The sample has something of all that it is meant to try.
    assert min(left_out, wrapped, masked, moved) >= 5


def real_sketches():
    """A few sketches of each kind of file: raw int16, and scaled as a data set scales them."""
    names = ["quickdraw_real/cat", "quickdraw_real/The Eiffel Tower", "quickdraw_real/zigzag"]
    names += ["sketch_rnn_sampled/bicycle", "sketch_rnn_datasets/omniglot"]
    for name in names:
        with np.load(golden_data.sketch_set(name), allow_pickle=True, encoding="latin1") as file:
            sketches = list(file["test"][:6])
        scale = np.std(np.concatenate(sketches).astype(np.float64))
        for dtype in (np.int16, np.float32, np.float64):
            for sketch in sketches[:: 1 if dtype == np.float32 else 3]:
                sketch = sketch.astype(dtype)
                if dtype != np.int16:
                    sketch[:, :2] /= dtype(scale)
                yield sketch


@pytest.mark.parametrize("masking", BOTH)
def test_real_sketches(masking, dirty_memory):
    """Sketches of people, with the article's sizes and random masks, give the same pixels."""
    rng = np.random.default_rng(2)
    for sketch in real_sketches():
        options = {"mask_prob": 0.3, "seeds": rng.random(20), "masking": masking}
        assert_same(make_graph(sketch, **options), reference(sketch, **options))


@pytest.mark.parametrize("masking", BOTH)
def test_doodles(masking, dirty_memory):
    """The embedded sketches, raw and scaled, give the same pixels."""
    rng = np.random.default_rng(4)
    for sketch in some_doodles():
        for drawn in (sketch, (sketch / np.array([33.3, 33.3, 1])).astype(np.float32)):
            options = {"mask_prob": 0.3, "seeds": rng.random(20), "masking": masking}
            assert_same(make_graph(drawn, **options), reference(drawn, **options))


@pytest.mark.parametrize("axis", [0, 1])
def test_squares_at_the_edges(axis):
    """A square counts as inside to the very pixel at each of the borders, wrapped ones included.

    Row 0 moves the first patch's centre one pixel a time over each border of the rule.
    """
    size = 16
    length = 640 + 2 * 17 + 2 * 24  # of the bordered canvas
    at_zero = 17 + 24 - size // 2  # where the square begins when row 0 is zero
    changes = 0
    for edge in (-length, -size, 0, length - size):
        seen = []
        for begin in range(edge - 2, edge + 3):
            first = [0, 0]
            first[axis] = at_zero - begin
            for masking in BOTH:
                options = {
                    "graph_picture_size": size,
                    "graph_number": 3,
                    "mask_prob": 0.5,
                    "seeds": np.zeros(2),
                    "masking": masking,
                }
                expected = reference(box(first), **options)
                assert_same(make_graph(box(first), **options), expected)
            seen.append(expected.inside[0])
        changes += seen != [seen[0]] * 5
    assert changes == 4


def test_both_axes_may_wrap_together():
    """Where row 0 leads far outside, slicing finds the square at the other end of the canvas."""
    sketch = box((241, 241))
    options = {"graph_picture_size": 64, "mask_prob": 0.0}
    expected = reference(sketch, **options)
    assert expected.wrapped == 1 and expected.patches[1].any()
    assert_same(make_graph(sketch, **options), expected)


def test_bounds_are_in_model_units_and_truncated():
    """The extent is cut to whole model units before scaling: odd, but the weights expect it."""
    wide = np.array([(0, 0, 0), (0, 0, 0), (1.75, 0, 1)], np.float32)
    # int(1.75) = 1, so the line is 1.75 * 640 pixels long, not 640.
    canvas, centers = utils.draw(wide)
    assert canvas.shape == (1120 + 34, 1120 + 34)
    assert centers.tolist() == [[17, 17]]
    below_one = np.array([(0, 0, 0), (0, 0, 0), (0.9, 0, 1)], np.float32)
    canvas, centers = utils.draw(below_one)
    assert canvas.shape == (34, 34) and centers.tolist() == [[17, 17]]
    assert 0 < np.count_nonzero(canvas) < canvas.size


def test_dtype_decides_the_last_bit():
    """A sketch is not cast first: float32 and float64 of the same numbers may differ in pixels."""
    rng = np.random.default_rng(5)
    differ = 0
    for _ in range(40):
        exact = np.column_stack([rng.normal(0, 1, (60, 2)), np.zeros(60)])
        single = exact.astype(np.float32)
        # Sums in float32 can pass a whole number that sums in float64 don't reach.
        span = np.ptp(np.cumsum(exact[1:, :2], axis=0), axis=0).max()
        for sketch in (single, single.astype(np.float64)):
            sketch[:, :2] *= sketch.dtype.type(round(span) / span)
        one, other = (utils.draw(sketch)[0] for sketch in (single, single.astype(np.float64)))
        assert np.array_equal(make_graph(single).patches, reference(single).patches)
        differ += one.shape != other.shape
    assert differ > 0


@pytest.mark.parametrize("masking", BOTH)
def test_exactly_one_seed_for_each_patch(masking):
    """n patches consume n seeds: each counts, later ones don't, and one too few is refused."""
    sketch = some_doodles()[0]
    n = make_graph(sketch).n_patches
    assert 2 < n < 20
    options = {"mask_prob": 0.5, "masking": masking}
    seeds = np.random.default_rng(6).random(n + 5)
    graph = make_graph(sketch, seeds=seeds, **options)
    other = seeds.copy()
    other[n:] = 1 - other[n:]
    for same in (other, seeds[:n], seeds.tolist()):
        again = make_graph(sketch, seeds=same, **options)
        assert again.masked == graph.masked and np.array_equal(again.patches, graph.patches)
    for i in range(n):
        turned = seeds.copy()
        turned[i] = 1 - turned[i]
        changed = make_graph(sketch, seeds=turned, **options)
        assert set(changed.masked) ^ set(graph.masked) == {i}
    for given in (seeds[: n - 1], seeds[:0], None):
        count = 0 if given is None else len(given)
        with pytest.raises(ValueError, match=f"{n} patches takes {n} seeds, {count} given"):
            make_graph(sketch, seeds=given, **options)


def test_a_seed_equal_to_the_probability_masks_nothing():
    """u < prob, strictly, and in float64 although seed files hold float32."""
    n = make_graph(some_doodles()[0]).n_patches

    def masked(seed, mask_prob):
        return len(
            make_graph(some_doodles()[0], seeds=np.full(n, seed), mask_prob=mask_prob).masked
        )

    assert masked(0.25, 0.25) == 0
    assert masked(np.nextafter(0.25, 0), 0.25) == n
    # As a float32, 0.7 is a little less, and 0.3 a little more, than the number it is written as.
    assert masked(np.float32(0.7), 0.7) == n
    assert masked(np.float32(0.3), 0.3) == 0
    assert masked(0.0, 0.0) == 0


def test_without_masking_no_seeds_are_needed():
    """Validation and testing give no seeds; if given, they change nothing."""
    for masking in BOTH:
        plain = make_graph(some_doodles()[1], masking=masking)
        given = make_graph(some_doodles()[1], masking=masking, seeds=np.zeros(20))
        assert plain.masked == given.masked == []
        assert np.array_equal(plain.patches, given.patches)


def test_both_approaches_agree_without_masking():
    """They differ in the masking only."""
    for sketch in some_doodles():
        one, other = (make_graph(sketch, masking=masking) for masking in BOTH)
        assert np.array_equal(one.patches, other.patches)


def overlap(graph, node, other, size):
    """What patch `node` shows of the square of patch `other`."""
    rows, columns = (
        slice(max(shift, 0), max(size + min(shift, 0), 0))
        for shift in (graph.centers[other] - graph.centers[node])[::-1].tolist()
    )
    return graph.patches[node + 1][rows, columns]


def test_only_sketchhealer_leaks():
    """An erased square is erased in every picture with "patch", in later ones with "sketchhealer".

    With "patch", no patch shows a pixel of ink inside any erased square, whichever was first, and
    erased patches are blank. With "sketchhealer", patches before the erased one still show, pixel
    for pixel, what the unmasked sketch has there, and some of it is ink; those after it do not.
    """
    size, leaks = 256, 0
    for sketch in some_doodles():
        whole = make_graph(sketch)
        n = whole.n_patches
        for erased in range(n):
            seeds = np.ones(n)
            seeds[erased] = 0
            patch, healer = (
                make_graph(sketch, mask_prob=0.5, seeds=seeds, masking=masking) for masking in BOTH
            )
            assert patch.masked == healer.masked == [erased]
            assert not patch.patches[erased + 1].any()
            assert not healer.patches[erased + 1].any()
            assert np.array_equal(patch.patches[0], healer.patches[0])
            for node in range(n):
                assert not overlap(patch, node, erased, size).any()
                if node < erased:
                    assert np.array_equal(healer.patches[node + 1], whole.patches[node + 1])
                    leaks += bool(overlap(healer, node, erased, size).any())
                else:
                    assert np.array_equal(healer.patches[node + 1], patch.patches[node + 1])
    assert leaks > 0


def test_whole_picture_loses_what_is_erased():
    """Node 0 is cut from the masked canvas: with every patch erased a small sketch is blank."""
    dot = np.array([(0, 0, 0), (0, 0, 1)], np.int16)
    assert make_graph(dot).patches[0].any()
    sketch = some_doodles()[0]
    n = make_graph(sketch).n_patches
    for masking in BOTH:
        erased = {"mask_prob": 1.0, "seeds": np.zeros(n), "masking": masking}
        assert not make_graph(dot, **erased).patches.any()
        before, after = make_graph(sketch).patches[0], make_graph(sketch, **erased).patches[0]
        assert np.count_nonzero(after) < np.count_nonzero(before)
        assert (after <= before).all()  # resizing only averages, so less ink is never brighter


def test_the_row_after_a_lift_only_moves():
    """It draws nothing, starts no patch, and its own lift flag is not looked at."""
    square = [(0, 0, 0), (0, 0, 0), (100, 0, 0), (0, 100, 0), (-100, 0, 0), (0, -100, 1)]
    move, line = (30, 30, 0), (40, 0, 0)
    plain = np.array([*square, move, line], np.int16)
    lifted_move = plain.copy()
    lifted_move[6, 2] = 1
    canvas, centers = utils.draw(plain)
    same_canvas, same_centers = utils.draw(lifted_move)
    assert np.array_equal(canvas, same_canvas) and np.array_equal(centers, same_centers)
    only_square, _ = utils.draw(np.array(square, np.int16))
    # Inside the square nothing is drawn on the way of the move, and the line is.
    half_way = 17 + int(15 * 6.4)
    assert canvas[half_way, half_way] == 0 and canvas[17 + 192, 17 + 192 + 128] == 255
    assert only_square[17 + 192, 17 + 192 + 128] == 0
    # Rows 0 and 4 of the first stroke, then the first of the second.
    assert centers.tolist() == [[17, 17], [657, 657], [17 + 192, 17 + 192]]


def test_patches_have_their_centres_in_the_middle():
    """Patch i is the square [c - S/2, c + S/2) of the canvas around centre i, x the column."""
    sketch, size = some_doodles()[2], 64
    canvas, _ = utils.draw(sketch)
    around = np.pad(canvas, size)
    graph = make_graph(sketch, graph_picture_size=size)
    assert graph.centers.shape == (graph.n_patches, 2) and graph.n_patches > 3
    for patch, (x, y) in zip(graph.patches[1:], graph.centers + size, strict=False):
        half = size // 2
        assert np.array_equal(patch, around[y - half : y + half, x - half : x + half])
    assert graph.patches[1, size // 2, size // 2] == 255  # the pen is down there


def test_shapes_and_types():
    """What other programs rely on: names, shapes, dtypes, plain Python numbers."""
    graph = make_graph(some_doodles()[0], mask_prob=1.0, seeds=np.zeros(20))
    assert graph.patches.shape == (21, 256, 256) and graph.patches.dtype == np.uint8
    assert type(graph.n_patches) is int
    assert graph.masked and all(type(i) is int for i in graph.masked)
    assert graph.centers.shape == (graph.n_patches, 2) and graph.centers.dtype.kind == "i"
    small = make_graph(some_doodles()[0], graph_number=3, graph_picture_size=10)
    assert small.patches.shape == (3, 10, 10) and small.n_patches == 2


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_input_is_only_read(dtype):
    """The sketch and the seeds stay as they are: both may be used again."""
    rng = np.random.default_rng(8)
    for masking in BOTH:
        sketch = random_sketch(rng, dtype)
        seeds = rng.random(21)
        before = sketch.copy(), seeds.copy()
        make_graph(sketch, mask_prob=0.5, seeds=seeds, masking=masking)
        assert np.array_equal(sketch, before[0]) and np.array_equal(seeds, before[1])
        expected = make_graph(sketch, mask_prob=0.5, seeds=seeds, masking=masking).patches
        for array in (sketch, seeds):
            array.setflags(write=False)
        # Nor does the memory's order matter.
        for same in (sketch, np.asfortranarray(sketch)):
            graph = make_graph(same, mask_prob=0.5, seeds=seeds, masking=masking)
            assert np.array_equal(graph.patches, expected)


def test_results_are_their_own():
    """Two results share no memory: one can be changed without harm to the other."""
    one, other = make_graph(some_doodles()[0]), make_graph(some_doodles()[0])
    before = other.patches.copy()
    one.patches[:] = 9
    assert np.array_equal(other.patches, before)


def awkward_sketches():
    """Dots, two rows, rows that all lift, a first row far away, and random ones."""
    rng = np.random.default_rng(10)
    for dtype in (np.int16, np.float32, np.float64):
        yield np.zeros((2, 3), dtype)
        yield np.array([(0, 0, 0), (3, 1, 1)], dtype)
        yield np.array([(5, 5, 1), (-3, 1, 1)], dtype)
        yield np.array([(20, 30, 1)] * 7, dtype)
        yield np.array([(20, 30, 0)] * 6 + [(0, 9, 1)] * 2, dtype)
        for first in ((900, 0, 0), (-900, 900, 1), (30000, -30000, 0)):
            yield np.array([first, (4, 0, 0), (4, 4, 0), (-4, 1, 0), (-4, -1, 0)], dtype)
        for _ in range(25):
            yield random_sketch(rng, dtype)


@pytest.mark.parametrize("mixed", [False, True])
def test_layouts_do_not_depend_on_the_neighbours(mixed):
    """Sketches laid out together lie as each does alone, to the last bit of the scaling."""
    sketches = list(awkward_sketches())
    rng = np.random.default_rng(11)
    if mixed:
        rng.shuffle(sketches)
    for size in (2, 64, 256):
        for batch in [sketches[i::9] for i in range(9)] if mixed else by_dtype(sketches):
            together = utils.lay_out(batch, size)
            assert len(together) == len(batch)
            for layout, sketch in zip(together, batch, strict=True):
                (alone,) = utils.lay_out([sketch], size)
                assert (layout.side, layout.extent) == (alone.side, alone.extent)
                assert layout.centers.tolist() == alone.centers.tolist()
                assert layout.squares.tolist() == alone.squares.tolist()
                assert [p.tolist() for p in layout.paths] == [p.tolist() for p in alone.paths]
                assert all(path.dtype == np.int32 for path in layout.paths)
    assert utils.lay_out([]) == []


def by_dtype(sketches):
    return [
        [sketch for sketch in sketches if sketch.dtype == dtype]
        for dtype in (np.int16, np.float32, np.float64)
    ]


@pytest.mark.parametrize("masking", BOTH)
def test_awkward_sketches(masking, dirty_memory):
    """Degenerate sketches give the reference's pixels, one after the other on the same canvas."""
    rng = np.random.default_rng(12)
    for sketch in awkward_sketches():
        if abs(sketch[0, :2]).max() >= 900:  # far enough away for int16 pixels to overflow
            sketch[0, :2] = np.sign(sketch[0, :2]) * 30
        for size in (16, 256):
            options = {
                "graph_picture_size": size,
                "mask_prob": float(rng.choice([0, 0.5])),
                "seeds": rng.random(64),
                "masking": masking,
            }
            assert_same(make_graph(sketch, **options), reference(sketch, **options))


def cropped(sketch, out, inked, *, mask_prob=0.0, seeds=None, masking="patch"):
    """`crop_patches` of a whole sketch into some memory."""
    nodes, size, _ = out.shape
    (layout,) = utils.lay_out([sketch], size)
    erase = utils.choose_erased(min(len(layout.centers), nodes - 1), mask_prob, seeds)
    return utils.crop_patches(layout, erase, out, inked, masking=masking)


@pytest.mark.parametrize("masking", BOTH)
@pytest.mark.parametrize("size", [16, 256])
def test_any_memory_will_do(masking, size):
    """What was in the memory is not seen, if only those of its pictures that `inked` speaks of
    are not zero: sketch after sketch in the same memory gives the reference's pixels."""
    rng = np.random.default_rng(15)
    out = rng.integers(1, 256, (11, size, size), np.uint8)
    inked = np.ones(11, bool)
    blank = 0
    for sketch in awkward_sketches():
        if abs(sketch[0, :2]).max() >= 900:  # far enough away for int16 pixels to overflow
            continue
        options = {"mask_prob": float(rng.choice([0, 0.5])), "seeds": rng.random(64)}
        options["masking"] = masking
        masked = cropped(sketch, out, inked, **options)
        expected = reference(sketch, graph_number=11, graph_picture_size=size, **options)
        assert masked == expected.masked
        assert np.array_equal(out, expected.patches)
        # Nothing that is not zero is left out; what may not be zero is wiped before the next.
        assert not out[~inked].any()
        blank += np.count_nonzero(~inked)
    assert blank > 50


def test_pictures_that_are_zero_are_not_wiped_again():
    """Only those that may not be zero are: that is why `inked` is there."""
    dot = np.zeros((2, 3), np.int16)  # two nodes: the whole, one patch
    out, inked = np.full((5, 16, 16), 77, np.uint8), np.array([True, True, True, False, False])
    cropped(dot, out, inked)
    assert inked.tolist() == [True, True, False, False, False]
    assert not out[2].any() and (out[3:] == 77).all()


def test_a_failure_leaves_no_ink():
    """The canvas is wiped even if cropping fails: the next sketch doesn't show the last; and what
    was written until then counts as ink."""
    sketch, dot = some_doodles()[0], np.zeros((2, 3), np.int16)
    expected = make_graph(dot).patches
    (layout,) = utils.lay_out([sketch])
    out, inked = np.zeros((2, 256, 256), np.uint8), np.zeros(2, bool)
    with pytest.raises(IndexError):
        utils.crop_patches(layout, np.zeros(9, bool), out, inked)
    assert np.array_equal(make_graph(dot).patches, expected)
    assert out[1].any() and inked.all()


@pytest.mark.parametrize("size", [2, 6, 64, 94, 128, 256])
def test_blank_margins_may_be_left_out_of_resizing(size):
    """Resizing the inked corner alone gives what resizing the whole canvas gives."""
    rng = np.random.default_rng(13)
    # Sides from a dot's up; twice the size is a special case in OpenCV.
    for side in [34, 35, 188, 256, 512, 2 * size + 34, *range(668, 700), 1314]:
        for _ in range(6):
            least = -(-side // size)
            width, height = np.maximum(rng.integers(min(34, side), side + 1, 2), least).tolist()
            canvas = np.zeros((side, side), np.uint8)
            inked = canvas[:height, :width]
            # Strokes end some pixels before the corner's edges.
            inked[: height - 7, : width - 7] = 255 * (rng.random((height - 7, width - 7)) < 0.5)
            picture = np.full((size, size), 77, np.uint8)
            utils._shrink(inked, side, picture)
            assert np.array_equal(picture, cv2.resize(canvas, (size, size)))


GOOD = [(0, 0, 0), (3, 4, 0), (5, 6, 1)]


@pytest.mark.parametrize(
    ("sketch", "message"),
    [
        (np.zeros((0, 3), np.int16), "at least two rows, this one has 0"),
        (np.array(GOOD[:1]), "at least two rows, this one has 1"),
        (np.array(GOOD[:1], np.float32), "at least two rows"),
        (np.array(GOOD)[:, :2], r"shape \(n, 3\), not \(3, 2\)"),
        (np.array(GOOD).ravel(), r"shape \(n, 3\), not \(9,\)"),
        (np.array([GOOD]), r"shape \(n, 3\), not \(1, 3, 3\)"),
        (np.float64(3), r"shape \(n, 3\), not \(\)"),
        (np.array([(0, 0, 0), (3e38, 0, 0), (3e38, 0, 1)], np.float32), "too large"),
        (np.array([(0, 0, 0), (-9e307, 0, 0), (-9e307, 0, 1)]), "too large"),
        *(
            (np.array([[*row[:place], bad, *row[place + 1 :]], *rest], dtype), "NaN or infinite")
            for bad in (np.nan, np.inf, -np.inf)
            for dtype in (np.float32, np.float64)
            for place in range(3)
            for row, *rest in (GOOD, GOOD[::-1])
        ),
    ],
)
def test_no_sketch(sketch, message):
    """What is not a sketch is refused with a ValueError that says why, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for masking in BOTH:
            with pytest.raises(ValueError, match=message):
                make_graph(sketch, masking=masking)


@pytest.mark.parametrize("masking", ["Patch", "", "lattice", None])
def test_unknown_masking(masking):
    """A masking approach that is not there is refused, masked or not, naming those that are."""
    for mask_prob in (0.0, 1.0):
        with pytest.raises(ValueError, match="patch, sketchhealer"):
            make_graph(np.array(GOOD), mask_prob=mask_prob, seeds=np.ones(9), masking=masking)


@pytest.mark.parametrize("graph_number", [2, 3, 6, 21])
def test_graph_mask(graph_number):
    """Ones where both nodes take part: one node more than there are patches, masked ones not."""
    rng = np.random.default_rng(9)
    p = graph_number - 1
    for n_patches in range(p + 1):
        for share in (0, 0.3, 1):
            masked = np.flatnonzero(rng.random(n_patches) < share).tolist()
            takes_part = [i <= n_patches and i not in masked for i in range(p)]
            expected = [[float(i and j) for j in takes_part] for i in takes_part]
            mask = graph_mask(n_patches, masked, graph_number)
            assert mask.dtype == np.float32 and mask.shape == (p, p)
            assert mask.tolist() == expected


def test_graph_mask_has_the_articles_size():
    """Without a graph_number there are 20 patch nodes."""
    assert graph_mask(20, []).tolist() == np.ones((20, 20)).tolist()
    assert graph_mask(0, []).sum() == 1
