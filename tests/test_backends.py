"""JAX beside TensorFlow, and mixed precision.

Most runs are made by processes of their own, see backend_runs.py; what is JAX's alone, on one
device and on several: test_cluster.py.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from autodiff import gradients
from backend_runs import (
    ONE,
    OPTIONS,
    WHOLE,
    arrays_of,
    assert_same_evaluation,
    assert_same_first_update,
    finish,
    losses_of,
    printed,
    sampling,
    start,
    training,
)

import dataset
import graphs
import model as network
import unroll
from batches import training_batches
from hparams import parse_hparams
from model import Adam, SPGra2Seq
from support import buffers, devices
from support.backend import keras
from support.files import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_both(runs, compiled):
    """Runs begun on TensorFlow, some of which go on on JAX; the outputs of both processes."""
    mixed = ONE + ",precision=mixed_bfloat16"
    tasks = [
        training(runs, "one_tf", ONE, copies={0: "one_jax"}),
        training(runs, "mixed_tf", mixed, copies={0: "mixed_jax"}),
        training(runs, "moving", WHOLE, interrupt_in=1, copies={"end": "staying"}),
    ]
    by_tensorflow = finish(start(compiled, tasks, backend="tensorflow"))[0]
    tasks = [
        training(runs, "one_jax", ONE),
        training(runs, "mixed_jax", mixed),
        training(runs, "moving", WHOLE, interrupt_in=6, copies={"end": "moved"}),
        sampling(runs, "moving", "drawn_jax"),
    ]
    return by_tensorflow, finish(start(compiled, tasks))[0]


def test_backends_compute_the_same(runs, on_both):
    """From the same weights: losses, gradients and evaluation of one update."""
    assert_same_first_update(runs / "one_jax", runs / "one_tf")
    assert_same_evaluation(*on_both)
    # bfloat16 keeps 8 bits, and the backends round other sums; compare test_mixed_precision_*.
    assert_same_first_update(runs / "mixed_jax", runs / "mixed_tf", loss=0.01, gradient=0.5)


def test_a_run_moves_to_the_other_backend(runs, compiled, on_both):
    """JAX goes on where TensorFlow stopped and the reverse, the optimiser's state included, and
    both draw the same sketches from the same model."""
    assert [updates for updates, *_ in printed(on_both[1], "ENDED")] == [1, 1, 6]
    moved, begun = arrays_of(runs / "moved"), arrays_of(runs / "staying")
    assert {k: v.shape for k, v in moved.items()} == {k: v.shape for k, v in begun.items()}
    assert (moved["adam/schedule_step"], moved["adam/iteration"]) == (6, 6)
    tasks = [
        sampling(runs, "moving", "drawn_tf"),
        training(runs, "staying", WHOLE, interrupt_in=3),
        training(runs, "moving", WHOLE),
    ]
    output = finish(start(compiled, tasks, backend="tensorflow"))[0]
    assert [updates for updates, *_ in printed(output, "ENDED")] == [3, 13]
    # The next update from one checkpoint, and the one after it, which Adam's state decides too.
    ours, theirs = losses_of(runs / "moving"), losses_of(runs / "staying")
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-3)
    drawn = [runs / "drawn_jax", runs / "drawn_tf"]
    names = sorted(path.name for path in drawn[0].glob("*.npy"))
    assert len(names) >= 8 and names == sorted(path.name for path in drawn[1].glob("*.npy"))
    assert sum(np.load(drawn[0] / name).size for name in names if "stroke" in name) > 0
    for name in names:
        ours, theirs = (np.load(path / name) for path in drawn)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)


def test_batches_are_sent_one_ahead(monkeypatch):
    """A GPU gets the same numbers, whole or in pieces, a batch before they are needed, and none is
    made that was not asked for."""
    jax = pytest.importorskip("jax")
    rng, made, closed = np.random.default_rng(0), [], []

    def stream(count):
        try:
            for _ in range(count):
                large = rng.integers(0, 256, (5, 1000, 1000), np.uint8)
                made.append({"large": large, "small": rng.random((5, 2), np.float32)})
                yield made[-1]
        finally:
            closed.append(True)

    monkeypatch.setattr(devices, "_sends", lambda: True)
    sent = devices.sent_ahead(stream(4))
    for i, batch in enumerate(sent):
        assert len(made) == min(i + 2, 4)
        assert all(devices.to_device(batch)[name] is value for name, value in batch.items())
        for name, value in batch.items():
            assert isinstance(value, jax.Array) and value.dtype == made[i][name].dtype
            np.testing.assert_array_equal(value, made[i][name])
    assert i == 3 and closed == [True]
    assert list(devices.sent_ahead(stream(0))) == []
    sent = devices.sent_ahead(stream(4))
    next(sent)
    sent.close()
    assert len(closed) == 3
    monkeypatch.setattr(devices, "_sends", lambda: False)
    assert next(devices.sent_ahead(stream(1)))["small"] is made[-1]["small"]


def test_threads_send_where_their_caller_would(monkeypatch):
    """Keras knows that several devices share a batch only in the thread that chose them."""
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    here = threading.get_ident()
    several = lambda: threading.get_ident() == here  # noqa: E731
    monkeypatch.setattr(keras.distribution, "distribution", several)
    send, array = devices.device_sender(), np.ones(3)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(send, {"a": array}).result()["a"] is array
        assert isinstance(pool.submit(devices.to_device, {"a": array}).result()["a"], jax.Array)


def test_large_arrays_are_shared_with_tensorflow(monkeypatch):
    """What begins where TensorFlow needs it is not copied, and lives as long as its tensor;
    anything else comes as it is: it would end the process."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("about TensorFlow")
    monkeypatch.setattr(devices, "on_cpu", lambda: True)
    monkeypatch.setattr(buffers, "_idle", [])
    size = 2 * devices.MIN_PIECE
    memory, _ = buffers.reusable_buffer(size)
    memory[:] = 1
    large = memory.reshape(2, -1)
    batch = {"large": large, "cut": large[:, 1:], "moved": memory[1:], "small": np.ones(3)}
    taken = devices.to_device(batch)
    assert not isinstance(taken["large"], np.ndarray) and taken["large"].dtype == "uint8"
    assert all(taken[name] is batch[name] for name in ("cut", "moved", "small"))
    assert devices.to_device(taken)["large"] is taken["large"]
    large[1, 5] = 9
    assert int(taken["large"][1, 5]) == 9
    kept = taken["large"]
    del memory, large, batch, taken
    assert buffers._idle == []
    del kept
    assert len(buffers._idle) == 1


def test_tensorflow_takes_one_device():
    """More is refused in one line that names the backend to use."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("about TensorFlow")
    assert devices.select_devices(1, 8) == devices.select_devices(0, 8) == devices.DeviceGroup()
    with pytest.raises(UserError, match="num_devices: 2 devices need .*KERAS_BACKEND=jax"):
        devices.select_devices(2, 8)
    with pytest.raises(UserError, match="several processes need .*KERAS_BACKEND=jax"):
        devices.initialize_distributed("localhost:1", 2, 0)


# Mixed precision.


@pytest.fixture(scope="module")
def data(runs):
    return dataset.load_dataset(runs / "data", parse_hparams(OPTIONS))


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_mixed_precision_is_nearly_float32(data, dec_model, monkeypatch):
    """Losses and gradients are those of float32 within bfloat16's rounding, and not float32's.

    The similar patches are float32's in both: where two are equally similar up to rounding, another
    choice alone, all else in float32, may move the loss by twice the bound. Weights and batch are
    such that gradients are well conditioned: with others, batch normalisation over a few tiny
    pictures turns float32's own gradients as far, if the embeddings move by bfloat16's rounding.
    """
    options = OPTIONS.replace("batch_size=8", "batch_size=32,seed=1")
    found = []
    for precision in ("float32", "mixed_bfloat16"):
        hparams = parse_hparams(f"{options},dec_model={dec_model},precision={precision}")
        model = SPGra2Seq(hparams)
        batch = next(training_batches(data.splits["train"], hparams, 60, workers=1))
        model.start_clusters(batch)
        start = np.asarray(model.clusters.centroids) + 0
        if precision == "float32":
            patches = model.encoder.embed(batch["patches"])[:, 1:]
            one_hots = graphs.synonymous_one_hots(patches)

        def total(model=model, batch=batch):
            losses = model(batch, training=True)
            return losses["reconstruction"] + network.CLUSTERING_WEIGHT * losses["clustering"]

        with monkeypatch.context() as patch:
            patch.setattr(graphs, "synonymous_one_hots", lambda *_, fixed=one_hots: fixed)
            losses = {k: float(v) for k, v in model(batch, training=True).items()}
            model.clusters.centroids.assign(start)
            found.append((losses, gradients(total, model.trainable_variables), model))
    (exact, exact_gradients, _), (mixed, mixed_gradients, model) = found
    # A product is off by 2^-9 at most, and errors of both signs average out in a sum. Gradients
    # of the encoder pass many products.
    assert mixed["reconstruction"] == pytest.approx(exact["reconstruction"], rel=4e-3)
    assert mixed["reconstruction"] != exact["reconstruction"]
    for variable, ours, theirs in zip(
        model.trainable_variables, mixed_gradients, exact_gradients, strict=True
    ):
        ours, theirs = np.asarray(ours, np.float64).ravel(), np.asarray(theirs).ravel()
        if np.abs(theirs).max() > 1e-6:
            cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
            assert cosine > 0.8, variable.path


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_mixed_precision_keeps_float32_where_it_counts(dec_model):
    """Weights, moments, embeddings, codes, memories and outputs have float32's digits."""
    hparams = parse_hparams(f"{OPTIONS},dec_model={dec_model},precision=mixed_bfloat16")
    model = SPGra2Seq(hparams)
    optimizer = Adam(hparams)
    optimizer.build(model.trainable_variables)
    assert {v.dtype for v in model.weights} == {"float32"}
    assert {v.dtype for v in optimizer.variables} <= {"float32", "int32", "int64"}
    assert (
        model.encoder.patch_encoder.compute_dtype == model.decoder.cell.compute_dtype == "bfloat16"
    )
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (2, 6, 16, 16)).astype(np.uint8)
    found = model.encode_nodes({"patches": patches, "graph_masks": np.ones((2, 5, 5), np.float32)})
    mu, log_var, embeddings = found.mu, found.log_var, found.embeddings
    z = rng.standard_normal((2, 8)).astype(np.float32)
    rows = np.tile(np.array([[[0.3, -0.2, 1, 0, 0]]], np.float32), (4, 2, 1))
    outputs = model.decoder(z, rows)
    cell = model.decoder.cell
    projected = cell.project(rows, cell.project_code(z))
    _, state = unroll.unroll(cell, projected, model.decoder.initial_state(z))
    precise = [mu, log_var, outputs, *state]
    assert {keras.backend.standardize_dtype(x.dtype) for x in [embeddings, *precise]} == {"float32"}
    for x in precise:
        assert (np.asarray(x).view(np.uint32) & 0xFFFF).any()  # not rounded on the way
