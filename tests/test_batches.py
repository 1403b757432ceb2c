"""Sketches to batches: augmentation obeys its rules, and batches depend on (seed, epoch, sketch)
and on nothing else.

Comparisons are exact unless a test says otherwise.
"""

import itertools
import math
import threading

import numpy as np
import pytest
from sketch_files import formula, options, random_sketch, random_sketches, split_of

import doodles
import utils
from batches import (
    END_ROW,
    WHOLE,
    BatchShape,
    augment,
    evaluation_batches,
    make_batch,
    make_graphs,
    to_stroke5,
    training_batches,
)
from support.workers import prefetch


def who(batch, split):
    """Which sketches of a `split_of` are in a batch, in order."""
    first = [split.sketch(i)[0, 0] for i in range(len(split))]
    return [first.index(value) for value in batch["strokes"][:, 1, 0].tolist()]


def take(batches, count):
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_same_batches(some, others):
    assert len(some) == len(others) > 0
    for one, other in zip(some, others, strict=True):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype
            assert np.array_equal(one[name], other[name]), name


# Strokes.


def test_stroke5(dirty_memory):
    """Start row, the sketch with its last lift, end rows; a sketch of T rows has no end row."""
    steps = 12
    sketches = random_sketches(17, (12, 2, 11, 5), np.float32)
    expected = []
    for sketch in sketches:
        rows = [[0, 0, 1, 0, 0]]
        for dx, dy, lifted in sketch.tolist():
            rows.append([dx, dy, 0, 1, 0] if lifted else [dx, dy, 1, 0, 0])
        while len(rows) < steps + 1:
            rows.append([0, 0, 0, 0, 1])
        expected.append(rows)
    strokes = to_stroke5(sketches, steps)
    assert strokes.dtype == np.float32 and strokes.tolist() == expected
    assert strokes[0, -1].tolist()[2:] == [0, 1, 0]
    with pytest.raises(ValueError):
        to_stroke5(sketches, steps - 1)


# Augmentation.


def test_no_augmentation_by_default():
    """Both options are off by default: the same values, and no random number is drawn."""
    rng, untouched = np.random.default_rng(1), np.random.default_rng(1)
    sketch = random_sketch(rng, 20, np.float32)
    random_sketch(untouched, 20)
    assert np.array_equal(augment(sketch, options(), rng), sketch)
    assert rng.random() == untouched.random()
    split = split_of()
    (batch,) = take(training_batches(split, options(mask_prob=0.0), 12), 1)
    plain = to_stroke5([split.sketch(i) for i in who(batch, split)], 12)
    assert np.array_equal(batch["strokes"], plain)


def test_stretching():
    """dx and dy of a whole sketch get a factor each, uniform in [1 - r, 1 + r], independent.

    Bounds at five standard errors of 4,000 draws: of a mean, sd / sqrt(n); of a uniform's
    variance, var * sqrt(0.8 / n); of a correlation of zero, 1 / sqrt(n).
    """
    r, n = 0.2, 4000
    sketch = np.array([(1, 1, 0), (-2, 3, 1), (4, -0.5, 0)], np.float32)
    before = sketch.copy()
    hparams, rng = options(random_scale_factor=r), np.random.default_rng(2)
    factors = np.empty((n, 2))
    for i in range(n):
        stretched = augment(sketch, hparams, rng)
        factors[i] = stretched[0, :2]
        assert stretched.dtype == np.float32 and stretched.shape == sketch.shape
        assert np.array_equal(stretched[:, :2], sketch[:, :2] * stretched[0, :2])
        assert np.array_equal(stretched[:, 2], sketch[:, 2])
    assert np.array_equal(sketch, before)
    variance = (2 * r) ** 2 / 12
    assert (np.abs(factors.mean(0) - 1) < 5 * np.sqrt(variance / n)).all()
    assert (np.abs(factors.var(0) / variance - 1) < 5 * np.sqrt(0.8 / n)).all()
    assert abs(np.corrcoef(factors.T)[0, 1]) < 5 / np.sqrt(n)
    # Rounding to float32 may pass the ends of the interval by half a unit in the last place.
    assert factors.min() >= 1 - r - 1e-7 and factors.max() <= 1 + r + 1e-7


def drop_rows(sketch, uniforms, prob):
    """Dropping, rule by rule: a list of rows, each with its number in its run of unlifted rows."""
    kept, number = [], 0
    for (dx, dy, lifted), u in zip(sketch.tolist(), uniforms, strict=True):
        previous_lifts = not kept or kept[-1][2] == 1
        number = 0 if lifted == 1 or previous_lifts else number + 1
        if number >= 3 and u < prob:
            kept[-1][0] += dx
            kept[-1][1] += dy
        else:
            kept.append([dx, dy, lifted])
    return kept


@pytest.mark.parametrize("prob", [0.1, 0.5, 1.0])
def test_dropping(prob):
    """Rows go exactly where the rule says, by the same uniform numbers: one a row.

    Whole numbers, so that float32 sums are exact.
    """
    hparams, dropped = options(augment_stroke_prob=prob), 0
    for i in range(60):
        sketch = random_sketch(np.random.default_rng([3, i]), 2 + i, np.float32)
        before = sketch.copy()
        shorter = augment(sketch, hparams, np.random.default_rng([4, i]))
        uniforms = np.random.default_rng([4, i]).random(len(sketch))
        assert shorter.dtype == np.float32
        assert shorter.tolist() == drop_rows(sketch, uniforms, prob)
        assert np.array_equal(sketch, before)
        dropped += len(sketch) - len(shorter)
    assert dropped > 0


def test_merged_rows_are_added_in_order():
    """Rows that go are added to the one that stays first to last, which decides the rounding."""
    rng = np.random.default_rng(14)
    sketch = rng.normal(0, 1, (60, 3)).astype(np.float32)
    sketch[:, 2] = 0
    kept = augment(sketch, options(augment_stroke_prob=1.0), rng)
    assert len(kept) == 3
    expected = sketch[2, :2].copy()
    for row in sketch[3:, :2]:
        expected += row
    assert np.array_equal(kept[2, :2], expected)
    assert not np.array_equal(sketch[2:, :2].sum(axis=0, dtype=np.float64), expected)


def test_dropping_keeps_the_drawing():
    """All strokes stay, and each begins and ends where it did; a short stroke is left alone."""
    hparams, rng = options(augment_stroke_prob=1.0), np.random.default_rng(5)

    def ends(sketch):
        points = np.cumsum(sketch[:, :2], axis=0)
        lifted = np.flatnonzero(sketch[:, 2])
        starts = [row + 1 for row in lifted if row + 1 < len(sketch)]
        return points[lifted].tolist(), points[starts].tolist(), points[-1].tolist()

    for i in range(40):
        sketch = random_sketch(rng, 2 + 2 * i, np.float32)
        assert ends(augment(sketch, hparams, rng)) == ends(sketch)
    # The first three rows of a stroke and its lifting row can't go; the two between them do.
    stroke = [(1, 0, 0), (2, 0, 0), (4, 0, 0), (8, 0, 0), (16, 0, 0), (32, 0, 1)]
    twice = np.array([*stroke, *stroke], np.float32)
    short = [[1, 0, 0], [2, 0, 0], [28, 0, 0], [32, 0, 1]]
    assert augment(twice, hparams, rng).tolist() == [*short, *short]
    assert augment(twice[:3], hparams, rng).tolist() == twice[:3].tolist()


def test_share_of_rows_dropped():
    """Of the rows that may go, a share p goes: within five standard errors of a binomial."""
    p, rows = 0.3, 4003
    sketch = np.zeros((rows, 3), np.float32)
    gone = rows - len(augment(sketch, options(augment_stroke_prob=p), np.random.default_rng(6)))
    may_go = rows - 3
    assert abs(gone - p * may_go) < 5 * math.sqrt(may_go * p * (1 - p))


def test_stretching_comes_before_dropping():
    """Merged rows are stretched as a whole sketch is, and pictures show the augmented sketch."""
    both = options(random_scale_factor=0.3, augment_stroke_prob=0.6, mask_prob=0.0, batch_size=5)
    sketch = random_sketch(np.random.default_rng(7), 50, np.float32)
    stretched = augment(sketch, options(random_scale_factor=0.3), np.random.default_rng(8))
    rng = np.random.default_rng(8)
    rng.random(2)  # the two factors
    expected = augment(stretched, options(augment_stroke_prob=0.6), rng)
    assert np.array_equal(augment(sketch, both, np.random.default_rng(8)), expected)
    assert 3 < len(expected) < 50

    split = split_of((40, 45, 50, 42, 47))
    (batch,) = take(training_batches(split, both, 50), 1)
    for strokes, patches in zip(batch["strokes"], batch["patches"], strict=True):
        length = int(strokes[1:, 4].argmax()) if strokes[1:, 4].any() else 50
        drawn = np.column_stack([strokes[1 : length + 1, :2], strokes[1 : length + 1, 3]])
        graph = utils.make_graph(drawn, graph_number=8, graph_picture_size=16)
        assert np.array_equal(patches, graph.patches)
        assert length < 50


# Batches.


ALL_RANDOM = {"mask_prob": 0.4, "random_scale_factor": 0.2, "augment_stroke_prob": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 5])
def test_batches_do_not_depend_on_the_workers(workers):
    """Processes only change the speed: as many as there may be give a thread's batches, over
    several epochs."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    one, many = (
        take(training_batches(split, hparams, 12, workers=count), 7) for count in (1, workers)
    )
    assert_same_batches(one, many)
    one, many = (
        list(evaluation_batches(split, hparams, stream="valid", workers=count))
        for count in (1, workers)
    )
    assert_same_batches(one, many)


def test_resuming_at_any_batch():
    """A run taken up at (epoch, batch) sees the very batches that it would have seen."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    per_epoch = len(split) // hparams.batch_size
    assert per_epoch == 2
    whole = take(training_batches(split, hparams, 12), 8)
    for done in range(6):
        number, batch = divmod(done, per_epoch)
        starts = [(number, batch)] + ([(number - 1, per_epoch)] if number and not batch else [])
        for first_epoch, first_batch in starts:  # the end of an epoch is the start of the next
            resumed = training_batches(
                split, hparams, 12, first_epoch=first_epoch, first_batch=first_batch, workers=1
            )
            assert_same_batches(take(resumed, 8 - done), whole[done:])


def test_an_epoch_has_every_sketch_at_most_once():
    """Only the rest that fills no batch is left out of an epoch, another rest each time."""
    split, hparams = split_of(), options(mask_prob=0.5)
    batches = take(training_batches(split, hparams, 12), 20)
    rests = set()
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        members = who(first, split) + who(second, split)
        assert len(set(members)) == len(members) == 8
        rests |= set(range(len(split))) - set(members)
    assert rests == set(range(len(split)))  # in ten epochs none is left out always
    exact = split_of((6, 9, 4, 12, 7, 5, 8, 10))
    members = sum((who(b, exact) for b in take(training_batches(exact, hparams, 12), 2)), [])
    assert sorted(members) == list(range(8))


def test_epochs_differ():
    """Each epoch has an order, masks, noise and stretching of its own."""
    split = split_of((9,) * 8)
    plain = options(mask_prob=0.4, batch_size=8)
    epochs = take(training_batches(split, plain, 12), 2)
    orders = [who(batch, split) for batch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1] and list(range(8)) not in orders
    masks = [
        batch["graph_masks"][np.argsort(order)] for batch, order in zip(epochs, orders, strict=True)
    ]
    assert sum(not np.array_equal(*pair) for pair in zip(*masks, strict=True)) > 2
    assert not np.isin(epochs[0]["eps"], epochs[1]["eps"]).any()
    assert not np.isin(epochs[0]["dropout_seed"], epochs[1]["dropout_seed"]).any()
    # Without stretching both epochs have the same first offsets, with it none is the same.
    for r in (0.0, 0.2):
        stretched = plain.replace(random_scale_factor=r)
        first, second = (
            batch["strokes"][:, 1, 0] for batch in take(training_batches(split, stretched, 12), 2)
        )
        assert np.isin(first, second).all() if r == 0 else not np.isin(first, second).any()


def test_the_seed_decides():
    """Another seed changes order and random numbers; the same seed nothing."""
    split = split_of()
    same = [take(training_batches(split, options(seed=3), 12), 2) for _ in range(2)]
    assert_same_batches(*same)
    other = take(training_batches(split, options(seed=4), 12), 2)
    assert [who(b, split) for b in other] != [who(b, split) for b in same[0]]
    assert not np.isin(other[0]["eps"], same[0][0]["eps"]).any()


def test_random_numbers_are_the_sketchs_own():
    """Mask, noise and dropout seed of a sketch don't depend on the batch that it is in."""
    split = split_of()
    seen = []
    for size in (2, 5, 11):
        own = {}
        hparams = options(mask_prob=0.5, batch_size=size)
        for batch in take(training_batches(split, hparams, 12), len(split) // size):
            for place, i in enumerate(who(batch, split)):
                own[i] = [
                    batch[name][place].tolist()
                    for name in ("eps", "graph_masks", "dropout_seed", "patches")
                ]
        seen.append(own)
    assert len(seen[2]) == 11
    for own in seen[:2]:
        assert len(own) == 10
        for i, numbers in own.items():
            assert numbers == seen[2][i]


def test_noise_and_masks_have_their_distributions():
    """eps is standard normal, mask_prob the share of patches that is erased: at five standard
    errors (mean 1 / sqrt(n), variance sqrt(2 / n), share sqrt(p q / n)); seeds all differ."""
    p = 0.3
    split = split_of((40,) * 50)
    hparams = options(mask_prob=p, batch_size=50, z_size=64)
    batches = take(training_batches(split, hparams, 40), 4)
    eps = np.concatenate([batch["eps"].ravel() for batch in batches]).astype(np.float64)
    assert abs(eps.mean()) < 5 / math.sqrt(eps.size)
    assert abs(eps.var() - 1) < 5 * math.sqrt(2 / eps.size)
    kept = np.concatenate([np.diagonal(b["graph_masks"], 0, 1, 2).ravel() for b in batches])
    assert kept.size == 4 * 50 * 7  # sketches of 40 rows fill all patches
    assert abs(1 - kept.mean() - p) < 5 * math.sqrt(p * (1 - p) / kept.size)
    seeds = np.concatenate([batch["dropout_seed"] for batch in batches])
    assert seeds.dtype == np.int32 and seeds.min() >= 0
    assert np.unique(seeds).size == seeds.size and seeds.max() > 2**30


def test_evaluation_has_every_sketch_once_in_order(dirty_memory):
    """Nothing is left out, masked or augmented, whatever the options of training say."""
    split, hparams = split_of(), options(**ALL_RANDOM)
    batches = list(evaluation_batches(split, hparams, stream="valid", workers=1))
    assert [len(batch["eps"]) for batch in batches] == [4, 4, 3]
    assert sum((who(batch, split) for batch in batches), []) == list(range(11))
    for start, batch in zip((0, 4, 8), batches, strict=True):
        sketches = [split.sketch(i) for i in range(start, start + len(batch["eps"]))]
        assert np.array_equal(batch["strokes"], to_stroke5(sketches, max(map(len, sketches))))
        for place, sketch in enumerate(sketches):
            graph = utils.make_graph(sketch, graph_number=8, graph_picture_size=16)
            assert np.array_equal(batch["patches"][place], graph.patches)
            mask = utils.graph_mask(graph.n_patches, [], 8)
            assert np.array_equal(batch["graph_masks"][place], mask)


def test_evaluation_is_independent_of_the_batch_size():
    """The noise of a sketch comes from (seed, split, index): a loss is the same in any batch."""
    split = split_of()

    def noise(stream="valid", **changes):
        batches = evaluation_batches(split, options(**changes), stream=stream)
        return np.concatenate([batch["eps"] for batch in batches])

    reference = noise()
    assert np.unique(reference).size == reference.size == 11 * 5
    for size in (1, 3, 11, 40):
        assert np.array_equal(noise(batch_size=size), reference)
    assert not np.isin(noise("test"), reference).any()
    assert not np.isin(noise(seed=9), reference).any()
    trained = take(training_batches(split, options(), 12), 6)
    assert not any(np.isin(batch["eps"], reference).any() for batch in trained)


def test_closing_ends_the_threads():
    """Endless batches end when their reader has enough: no thread is left behind."""
    before = set(threading.enumerate())
    batches = training_batches(split_of(), options(), 12, workers=3)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()
    assert not set(threading.enumerate()) - before


def test_a_failure_reaches_the_reader(monkeypatch):
    """What goes wrong in a thread is raised where the batches are read, not swallowed."""

    def broken(*_, **__):
        raise ValueError("no canvas")

    monkeypatch.setattr("utils.lay_out", broken)
    with pytest.raises(ValueError, match="no canvas"):
        list(evaluation_batches(split_of((6, 7, 5)), options(), stream="test", workers=1))


def test_a_sketch_of_one_row_is_a_blank_canvas():
    """Generated sketches may be that short; they have blank nodes and no patches."""
    hparams = options(graph_number=5)
    make_graphs(random_sketches(23, (30, 30), np.float32), hparams)  # leaves ink in the memory
    batch, graphs = make_graphs([np.zeros((1, 3)), np.zeros((0, 3))], hparams)
    assert batch["patches"].shape == (2, 5, 16, 16) and not batch["patches"].any()
    for mask in batch["graph_masks"]:
        np.testing.assert_array_equal(mask, utils.graph_mask(0, [], 5))
    for graph in graphs:
        assert not graph.patches.any()
        assert (graph.n_patches, graph.masked, graph.centers.shape) == (0, [], (0, 2))


@pytest.mark.parametrize(
    "view",
    [
        lambda patches: patches,
        lambda patches: patches[1:3],
        lambda patches: patches.reshape(-1)[5:].view(np.int8),
        lambda patches: memoryview(patches),
        lambda patches: np.asarray(memoryview(patches)).T,
    ],
)
def test_memory_comes_again_when_it_is_free(view):
    """Patches stay while any view of them is held; then their memory serves later ones."""
    hparams = options(graph_picture_size=64)
    sketches = random_sketches(22, (9, 30), np.float32)

    def patches(sketches=sketches):
        return make_graphs(sketches, hparams)[0]["patches"]

    def place(array):
        return array.__array_interface__["data"][0]

    first = patches()
    where, held = place(first), view(first)
    before = bytes(np.ascontiguousarray(held))
    del first
    others = [patches(sketches[::-1]) for _ in range(4)]
    assert where not in map(place, others)
    assert bytes(np.ascontiguousarray(held)) == before
    del held, others
    assert where in [place(again) for again in [patches() for _ in range(5)]]


def batch_of(sketches, mask_prob, hparams, seed=0):
    rngs = [np.random.default_rng([seed, i]) for i in range(len(sketches))]
    return make_batch(sketches, hparams, max(map(len, sketches)), rngs, mask_prob)


@pytest.mark.parametrize("size", [16, 64, 256])
@pytest.mark.parametrize("mask_prob", [0.0, 0.4, 1.0])
def test_batches_have_make_graphs_patches(size, mask_prob, dirty_memory):
    """A batch's patches are `make_graph`'s for the same masks, exactly.

    Which patches are masked is read from the graph masks, so the random stream does not matter.
    """
    hparams = options(graph_number=11, graph_picture_size=size)
    sketches = [
        formula(doodles.doodle(name, np.random.default_rng([9, i])), 31.7)
        for i, name in enumerate(doodles.CATEGORIES[:4])
    ]
    sketches += [formula(sketch, 31.7) for sketch in random_sketches(20, (2, 5, 30))]
    sketches.append(np.zeros((2, 3), np.float32))  # a dot
    batch = batch_of(sketches, mask_prob, hparams)
    assert batch["patches"].dtype == np.uint8
    assert batch["patches"].shape == (len(sketches), 11, size, size)
    assert batch["graph_masks"].dtype == np.float32 and batch["eps"].dtype == np.float32
    masked_patches = 0
    for i, sketch in enumerate(sketches):
        n = utils.make_graph(sketch, graph_number=11, graph_picture_size=size).n_patches
        masked = [k for k in range(n) if batch["graph_masks"][i, k, k] == 0]
        graph = graph_with_masks(sketch, masked, 11, size)
        assert graph.masked == masked
        assert np.array_equal(batch["patches"][i], graph.patches)
        assert np.array_equal(batch["graph_masks"][i], utils.graph_mask(n, masked, 11))
        masked_patches += len(masked)
    assert (masked_patches > 0) == (mask_prob > 0)


def graph_with_masks(sketch, masked, graph_number, size, masking="patch"):
    """`make_graph` of a sketch some of whose patches are masked."""
    seeds = np.ones(graph_number)
    seeds[masked] = 0
    return utils.make_graph(
        sketch,
        graph_number=graph_number,
        graph_picture_size=size,
        mask_prob=0.5,
        seeds=seeds,
        masking=masking,
    )


@pytest.mark.parametrize("masking", utils.MASKING_APPROACHES)
def test_graphs_and_batch_are_the_same(masking, dirty_memory):
    """The graphs beside a batch are `make_graph`'s, and their patches the batch's memory."""
    hparams, rng = options(graph_number=6), np.random.default_rng(24)
    sketches = [formula(sketch, 31.7) for sketch in random_sketches(24, (2, 30, 12, 18))]
    seeds = [rng.random(5) for _ in sketches]
    batch, graphs = make_graphs(sketches, hparams, mask_prob=0.5, seeds=seeds, masking=masking)
    assert set(batch) == {"patches", "graph_masks"} and any(graph.masked for graph in graphs)
    for i, (graph, sketch) in enumerate(zip(graphs, sketches, strict=True)):
        alone = utils.make_graph(
            sketch,
            graph_number=6,
            graph_picture_size=16,
            mask_prob=0.5,
            seeds=seeds[i],
            masking=masking,
        )
        assert (graph.n_patches, graph.masked) == (alone.n_patches, alone.masked)
        assert np.array_equal(graph.centers, alone.centers)
        assert np.array_equal(graph.patches, alone.patches)
        assert np.shares_memory(graph.patches, batch["patches"])


# Memory that is used again: a blank node is zero, whatever was there before.


def uneven_split():
    """Sketches of very different numbers of patches, in an order that mixes them."""
    return split_of([2 + (7 * i) % 41 for i in range(48)], seed=25)


def assert_make_graphs_patches(batch, hparams):
    """What a batch's patches have to be, from its strokes and masks alone."""
    blank = 0
    for strokes, mask, patches in zip(
        batch["strokes"], batch["graph_masks"], batch["patches"], strict=True
    ):
        length = int(strokes[1:, 4].argmax()) if strokes[1:, 4].any() else len(strokes) - 1
        sketch = np.column_stack([strokes[1 : length + 1, :2], strokes[1 : length + 1, 3]])
        size, nodes = hparams.graph_picture_size, hparams.graph_number
        n = utils.make_graph(sketch, graph_number=nodes, graph_picture_size=size).n_patches
        masked = [k for k in range(n) if mask[k, k] == 0]
        graph = graph_with_masks(sketch, masked, nodes, size)
        assert np.array_equal(patches, graph.patches)
        blank += np.count_nonzero(~graph.patches.any(axis=(1, 2)))
    return blank


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("size", [8, 64])
def test_blank_nodes_are_zero_in_used_memory(workers, size):
    """Batch after batch in the same memory, of a thread and of processes: a patch that another
    sketch left there is never seen. (Of processes, batches of the smaller pictures are sent, those
    of the larger ones stay in shared memory.)"""
    hparams = options(graph_picture_size=size, mask_prob=0.3, graph_number=11, batch_size=6)
    split, places, blank = uneven_split(), [], 0
    batches = training_batches(split, hparams, 45, workers=workers)
    for batch in itertools.islice(batches, 30):
        places.append(batch["patches"].__array_interface__["data"][0])
        blank += assert_make_graphs_patches(batch, hparams)
        del batch
    batches.close()
    assert blank > 100
    # The memory was used again; of batches that are sent, it is the other process's.
    assert len(set(places)) < 15 or (workers, size) == (2, 8)


def test_blank_nodes_are_zero_after_other_shapes():
    """Memory that batches of another number, size or way of masking have used."""
    rng, places = np.random.default_rng(26), set()
    shapes = [(3, 11, 32), (3, 11, 32), (11, 3, 32), (1, 11, 32), (3, 11, 16), (3, 6, 16)]
    for turn in range(60):
        count, nodes, size = shapes[rng.integers(len(shapes))]
        hparams = options(graph_number=nodes, graph_picture_size=size)
        sketches = [
            formula(sketch, 31.7) for sketch in random_sketches(turn, rng.integers(1, 45, count))
        ]
        seeds = [rng.random(nodes - 1) for _ in sketches]
        masking = utils.MASKING_APPROACHES[turn % 2]
        batch, graphs = make_graphs(sketches, hparams, mask_prob=0.4, seeds=seeds, masking=masking)
        places.add(batch["patches"].__array_interface__["data"][0])
        for patches, graph, sketch in zip(batch["patches"], graphs, sketches, strict=True):
            if len(sketch) == 1:
                assert not patches.any()
            else:
                expected = graph_with_masks(sketch, graph.masked, nodes, size, masking)
                assert np.array_equal(patches, expected.patches)
    assert len(places) < 30


def test_threads_do_not_share_memory():
    """Batches made by threads at the same time, some of them kept, are those of one thread."""
    hparams = options(graph_picture_size=64, graph_number=11)
    split = uneven_split()
    sets = [[split.sketch(i) for i in range(start, start + 4)] for start in range(0, 48, 4)] * 6

    def make(sketches):
        return make_graphs(sketches, hparams)[0]["patches"]

    kept = []
    for i, (sketches, patches) in enumerate(zip(sets, prefetch(make, sets, 4), strict=True)):
        for sketch, pictures in zip(sketches, patches, strict=True):
            alone = utils.make_graph(sketch, graph_number=11, graph_picture_size=64).patches
            assert np.array_equal(pictures, alone)
        if i % 5 == 0:
            kept.append((patches, patches.copy()))
    for patches, copy in kept:
        assert np.array_equal(patches, copy)


# Shards of batches, and fixed shapes.


@pytest.mark.parametrize("num_shards", [2, 4])
def test_shards_make_up_the_batch(num_shards):
    """The shards of all processes, one after the other, are the batch of one process."""
    split, hparams = split_of(), options(**ALL_RANDOM)

    def batches(kind, shape):
        if kind == "train":
            return take(training_batches(split, hparams, 12, workers=1, shape=shape), 4)
        return list(evaluation_batches(split, hparams, stream="valid", workers=1, shape=shape))

    for kind, fixed in (("train", False), ("train", True), ("valid", True)):
        shards = [batches(kind, BatchShape(i, num_shards, fixed)) for i in range(num_shards)]
        whole = batches(kind, BatchShape(fixed=fixed))
        joined = [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*shards, strict=True)
        ]
        assert_same_batches(joined, whole)
        for parts in zip(*shards, strict=True):
            assert {len(part["eps"]) for part in parts} == {4 // num_shards}


def test_fixed_shapes_add_what_counts_nowhere():
    """Where shapes are fixed all batches of an evaluation are full and have few numbers of steps;
    what is added are end rows, and sketches without ink, mask and strokes."""
    split, hparams = split_of(list(range(2, 45))), options()
    plain, fixed = (
        list(evaluation_batches(split, hparams, stream="test", workers=1, shape=shape))
        for shape in (WHOLE, BatchShape(fixed=True))
    )
    assert len(plain) == len(fixed) == 11 and len(plain[-1]["eps"]) == 3
    assert len({batch["strokes"].shape[1] for batch in plain}) == 11
    assert len({batch["strokes"].shape[1] for batch in fixed}) <= 4
    assert max(batch["strokes"].shape[1] for batch in fixed) == 44 + 1
    for batch, filled in zip(plain, fixed, strict=True):
        real, rows = batch["strokes"].shape[:2]
        assert {len(array) for array in filled.values()} == {4}
        np.testing.assert_array_equal(filled["strokes"][:real, :rows], batch["strokes"])
        assert (filled["strokes"][:real, rows:] == END_ROW).all()
        for name in ("patches", "graph_masks", "eps", "dropout_seed"):
            np.testing.assert_array_equal(filled[name][:real], batch[name])
        assert not filled["graph_masks"][real:].any() and not filled["patches"][real:].any()
        assert (filled["strokes"][real:, 1:] == END_ROW).all()


def test_training_shapes_are_fixed_anyway():
    """All training batches have one shape, with the most rows of any sketch."""
    batches = take(training_batches(split_of(), options(**ALL_RANDOM), 12, workers=1), 5)
    shapes = [{name: array.shape for name, array in batch.items()} for batch in batches]
    assert all(shape == shapes[0] for shape in shapes)
    assert shapes[0]["patches"] == (4, 8, 16, 16) and shapes[0]["strokes"] == (4, 13, 5)
