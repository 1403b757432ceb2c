"""The network against the published implementation's numbers and against brute force."""

import autodiff
import golden_data
import numpy as np
import pytest
from scipy import stats

import graphs
import model as network
import unroll
from encoders import CHANNELS
from hparams import HParams
from model import Adam, SPGra2Seq
from support.backend import keras, ops

# Largest difference over largest value. The reference's own numbers move by 1e-6 to 9e-6
# (forward), 2e-5 to 8e-5 (gradients) and 1e-4 to 4e-4 (after an update) with the number of
# threads and the kernels; see its README.
FORWARD, GRADIENT, UPDATE = 1e-5, 8e-5, 4e-4
SMALL = HParams(
    batch_size=3, dec_rnn_size=8, z_size=4, num_mixture=3, graph_number=6, graph_picture_size=16
)


def relative(ours, theirs) -> float:
    ours = np.asarray(ours, np.float64)
    theirs = np.asarray(theirs, np.float64).reshape(ours.shape)
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30)


@pytest.fixture(scope="module")
def reference():
    return golden_data.load("model_lstm.npz")


@pytest.fixture(scope="module")
def checkpoint():
    return golden_data.weights()


@pytest.fixture
def published(reference, checkpoint):
    """Our model with the published checkpoint's weights."""
    options = golden_data.text(reference, "info")["hps"]
    hparams = HParams(**{k: v for k, v in options.items() if k in HParams.model_fields})
    model = SPGra2Seq(hparams)
    for variable in model.weights:
        variable.assign(checkpoint[golden_data.published_name(variable)])
    return model


@pytest.fixture
def batch(reference):
    """The reference's batch as `batches.make_batch` would give it."""
    return {
        "patches": reference["input_graphs_p"],
        "graph_masks": reference["input_masks"].astype(np.float32),
        "strokes": reference["input_seqs"],
        "eps": reference["eps"],
        "dropout_seed": np.zeros(len(reference["eps"]), np.int32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_every_forward_quantity_is_the_published_one(mode, reference, published, batch):
    """From pixels to losses nothing differs from the published code beyond float32 rounding."""
    training = mode == "train"

    def agrees(name, ours):
        assert relative(ours, reference[f"{mode}/{name}"]) < FORWARD, name

    masks = batch["graph_masks"]
    with keras.StatelessScope():
        encoder = published.encoder
        embeddings = encoder.embed(batch["patches"])
        patches = embeddings[:, 1:]
        flat = ops.reshape(patches, (-1, encoder.clustered))
        agrees("component_z", flat)
        agrees("coff", graphs.cosines(patches))
        adjacency = encoder.adjacency(embeddings, batch)
        agrees("coff_adjs", adjacency)
        agrees("bn1_out", encoder.node_norm(ops.relu(embeddings), training=training))
        pooled = encoder.pool(embeddings, adjacency, training=training)
        features = encoder.read_out(pooled, training=training)
        # The reference is 1.5e-5 from a float64 computation here, ours 1e-6.
        assert relative(features, reference[f"{mode}/bn2_out"]) < 2e-5
        found = encoder(batch, training=training)
        mu, log_var = found.mu, found.log_var
        agrees("p_mu", mu)
        agrees("p_sigma2", log_var)
        z = mu + ops.exp(log_var / 2) * batch["eps"] if training else mu
        agrees("batch_z", z)
        decoder = published.decoder
        state = decoder.initial_state(z)
        agrees("initial_state", ops.concatenate(state, axis=1))
        rows = np.swapaxes(batch["strokes"], 0, 1)
        projected = decoder.cell.project(rows[:-1], decoder.cell.project_code(z))
        _, state = unroll.unroll(decoder.cell, projected, state)
        agrees("final_state", ops.concatenate(state, axis=1))
        outputs = ops.swapaxes(decoder(z, rows[:-1], training=training), 0, 1)
        agrees("output", outputs)
        pen, pi, mu_x, mu_y, log_sigma_x, log_sigma_y, rho = network.split_outputs(outputs)
        agrees("pen_logits", pen)
        agrees("pen", ops.softmax(pen))
        agrees("pi", ops.softmax(pi))
        agrees("mux", mu_x)
        agrees("muy", mu_y)
        agrees("sigmax", ops.exp(log_sigma_x))
        agrees("sigmay", ops.exp(log_sigma_y))
        agrees("corr", ops.tanh(rho))
        members = published.clusters.assign(flat)
        np.testing.assert_array_equal(members, reference[f"{mode}/p_alpha"])
        counted = ops.reshape(graphs.node_masks(masks), (-1,))
        np.testing.assert_array_equal(counted, reference[f"{mode}/hyper_mask"][:, 0])
        losses = published.losses_from_encoding(found, batch["strokes"], z=z, training=training)
        agrees("lil_loss", losses["reconstruction"])
        agrees("gaussian_loss", losses["clustering"])
        total = losses["reconstruction"] + network.CLUSTERING_WEIGHT * losses["clustering"]
        agrees("loss", total)
        if not training:  # in training that was done with the losses
            published.clusters(flat, counted, training=True)
        agrees("q_mu", published.clusters.centroids.value)


def test_choices_are_the_published_ones(reference, published, batch):
    """The three most similar patches of each patch are the published ones, exact ties included."""
    patches = published.encoder.embed(batch["patches"])[:, 1:]
    chosen = np.stack([np.argmax(w, axis=-1) for w in graphs.synonymous_one_hots(patches)], -1)
    np.testing.assert_array_equal(chosen, reference["winners"])


def test_evaluation_with_noise_is_the_published_one(reference, published, batch):
    """In evaluation z may be drawn too, from the moving averages' code."""
    losses = published(batch, training=False)
    assert relative(losses["reconstruction"], reference["eval_eps/lil_loss"]) < FORWARD


@pytest.mark.slow
def test_public_methods_give_the_published_numbers(reference, published, batch):
    """`encode`, `adjacency`, `decode` and `losses` say the same."""
    patches, masks = reference["input_graphs_p"], batch["graph_masks"]
    mu, log_var = published.encode(patches, masks)
    assert relative(mu, reference["eval/p_mu"]) < FORWARD
    assert relative(log_var, reference["eval/p_sigma2"]) < FORWARD
    assert relative(published.adjacency(patches, masks), reference["eval/coff_adjs"]) < FORWARD
    outputs = published.decode(reference["eval/p_mu"], batch["strokes"][:, :-1])
    assert relative(outputs, reference["eval/output"]) < FORWARD
    losses = published.losses(patches, masks, batch["strokes"], z=reference["eval/p_mu"])
    assert relative(losses["reconstruction"], reference["eval/lil_loss"]) < FORWARD
    assert relative(losses["clustering"], reference["eval/gaussian_loss"]) < FORWARD
    losses = published.losses(
        patches, masks, batch["strokes"], z=reference["train/batch_z"], training=True
    )
    assert relative(losses["reconstruction"], reference["train/lil_loss"]) < FORWARD


def test_losses_change_no_state(published, batch, reference):
    """Asking for the training losses leaves moving averages and centroids as they were."""
    before = [np.asarray(v) + 0 for v in published.weights]
    published.losses(
        reference["input_graphs_p"], batch["graph_masks"], batch["strokes"], training=True
    )
    for variable, value in zip(published.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def gradients(model, batch):
    def total():
        losses = model(batch, training=True)
        return losses["reconstruction"] + network.CLUSTERING_WEIGHT * losses["clustering"]

    return autodiff.gradients(total, model.trainable_variables)


@pytest.mark.slow
def test_gradients_are_the_published_ones(reference, published, batch):
    """Gradients before and after clipping agree for every trainable variable."""
    clip = published.hparams.grad_clip
    for variable, ours in zip(
        published.trainable_variables, gradients(published, batch), strict=True
    ):
        name = golden_data.published_name(variable)
        pair = golden_data.same_entries(reference, "grad", name, ours)
        assert relative(*pair) < GRADIENT, name
        norm = np.linalg.norm(np.asarray(ours, np.float64))
        assert norm == pytest.approx(float(reference["grad_norm/" + name]), rel=GRADIENT), name
        clipped = float(reference["clipped_norm/" + name])
        assert min(norm, clip) == pytest.approx(clipped, rel=GRADIENT), name
        ours = np.asarray(ours) * min(1, clip / norm)
        pair = golden_data.same_entries(reference, "clipped", name, ours)
        assert relative(*pair) < GRADIENT, name


@pytest.mark.slow
def test_updates_are_the_published_ones(reference, published, batch):
    """One and three optimiser steps lead where the published ones lead."""
    optimizer = Adam(published.hparams)
    optimizer.build(published.trainable_variables)
    published.compile(optimizer=optimizer)
    optimizer.schedule_step.assign(1)
    steps, differences = reference["step_losses"], []
    for update in range(3):
        number, rate, clustering, reconstruction = steps[update]
        assert int(optimizer.schedule_step) == number
        assert float(optimizer.learning_rate) == pytest.approx(rate, rel=1e-6)
        logs = published.train_on_batch(batch, return_dict=True)
        # The second and third losses follow from weights that have moved by rounding, too.
        tolerance = FORWARD if update == 0 else UPDATE
        assert logs["reconstruction"] == pytest.approx(reconstruction, rel=tolerance)
        assert logs["clustering"] == pytest.approx(clustering, rel=tolerance)
        if update == 1:
            continue
        for variable in published.weights:
            if "moving_variance" in variable.path:
                continue  # the published one is unbiased
            name = golden_data.published_name(variable)
            ours, theirs = golden_data.same_entries(reference, f"after{update + 1}", name, variable)
            difference = np.abs(ours - theirs) / np.abs(theirs).max()
            if update == 0:
                assert difference.max() < UPDATE, name
            else:
                # An Adam step has the size of the learning rate whatever the gradient's, so
                # a few entries, whose gradient is near zero, may go either way.
                assert difference.max() < 9e-3, name
                differences.append(difference.ravel())
    assert (np.concatenate(differences) > 1e-4).mean() < 0.01


def test_moving_variance_is_the_biased_one(reference, published, batch):
    """The one accepted difference is a factor N / (N - 1) of the batch variance."""
    start = {v.path: np.asarray(v) + 0 for v in published.weights}
    published(batch, training=True)
    sketches, nodes = batch["patches"].shape[:2]
    for path, count in (
        ("BatchNorm/moving_variance", sketches * nodes),
        ("BatchNorm_1/moving_variance", sketches),
    ):
        variable = next(v for v in published.weights if v.path == path)
        theirs = reference["after1/" + golden_data.published_name(variable)]
        unbiased = (np.asarray(variable) - 0.9 * start[path]) * count / (count - 1)
        assert relative(0.9 * start[path] + unbiased, theirs) < FORWARD


def proximity_by_brute_force(e, mask):
    """The adjacency of one sketch, loop by loop in float64, from the words of docs/method.md."""
    e = np.asarray(e, np.float64)
    count = len(e)
    c = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            c[i, j] = e[i] @ e[j] / (np.linalg.norm(e[i]) * np.linalg.norm(e[j]) + 1e-30)
    rows = np.zeros((count + 1, count + 1))
    rows[0, 0] = 1
    for i in range(count):
        remaining, weights = c[i].copy(), np.zeros(count)
        for weight in (1.0, 0.5, 0.2):
            j = int(np.argmax(np.round(remaining, 12)))  # rounding: equal vectors tie
            weights[j] += weight
            remaining[j] -= c[i, j]
        rows[i + 1, 0] = 0.5 * mask[i, 0]
        rows[i + 1, 1:] = c[i] * weights * mask[i]
    return rows / (rows.sum(1, keepdims=True) + 1e-10)


def test_adjacency_is_that_of_a_loop():
    """Edges, weights, masks, ties and repeated choices are as specified."""
    rng = np.random.default_rng(0)
    e = rng.standard_normal((12, 5, 512)).astype(np.float32)
    e[1, 3] = e[1, 1]  # two equal patches
    e[2, 2:] = e[2, 4]  # blank nodes
    e[3] = np.eye(5, 512) - 0.4 * np.eye(5, 512)[::-1]  # the others are all negative or zero
    e[4] = -np.abs(e[4, :1]) * np.array([[1], [-1], [1], [-1], [1]])
    masks = (rng.random((12, 5, 5)) < 0.7).astype(np.float32)
    masks[0] = 1
    ours = np.asarray(graphs.synonymous_adjacency(e, masks))
    for i in range(12):
        np.testing.assert_allclose(
            ours[i], proximity_by_brute_force(e[i], masks[i]), rtol=2e-4, atol=2e-5
        )  # rows are divided by their sum, which may be small


def test_equal_patches_tie_whatever_their_place():
    """Blank patches have bit-equal cosines, so that the lowest index wins among them."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        e = rng.standard_normal((2, 20, 512)).astype(np.float32)
        blank = rng.choice(20, 9, replace=False)
        e[:, blank] = e[:, blank[:1]]
        first, second, third = (np.argmax(w, -1) for w in graphs.synonymous_one_hots(e))
        lowest = np.sort(blank)[:3]
        np.testing.assert_array_equal(first[:, blank], lowest[0])
        np.testing.assert_array_equal(second[:, blank], lowest[1])
        np.testing.assert_array_equal(third[:, blank], lowest[2])


def test_clusters_are_those_of_a_loop():
    """Assignment, centroid update and loss are as specified, with the gradient into e only."""
    rng = np.random.default_rng(2)
    e = rng.standard_normal((40, 512)).astype(np.float32)
    counted = (rng.random(40) < 0.7).astype(np.float32)
    clusters = network.Clusters(6)
    q = rng.standard_normal((6, 512)).astype(np.float32)
    q[4] = q[2]  # equal centroids: the first gets the members, the other shrinks
    clusters.centroids.assign(q)
    cosine = (e @ q.T) / np.linalg.norm(e, axis=1)[:, None] / np.linalg.norm(q, axis=1)
    cosine[:, 4] = -2
    nearest = cosine.argmax(1)
    updated = 0.75 * q.astype(np.float64)
    for k in range(6):
        members = (nearest == k) & (counted == 1)
        updated[k] += 0.25 * e[members].sum(0) / (members.sum() + 1e-10)
    distances = 0.5 * np.square(e - updated[nearest]).sum(1)
    expected = distances[counted == 1].mean()
    assert float(clusters(e, counted)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(clusters.centroids, q)
    clusters(e, counted, training=True)
    assert relative(clusters.centroids.value, updated) < 1e-6


def test_clustering_loss_of_nothing_is_zero():
    """A batch in which no patch counts has a clustering loss of 0, not 0 / 0."""
    clusters = network.Clusters(2)
    clusters.centroids.assign(np.ones((2, 512)))
    assert float(clusters(np.ones((4, 512), np.float32), np.zeros(4, np.float32))) == 0


def test_stroke_losses_are_those_of_the_densities():
    """The loss is the mixture density's, by SciPy in float64, and the pen's cross-entropy."""
    rng = np.random.default_rng(3)
    steps, sketches = 4, 3
    outputs = rng.standard_normal((steps, sketches, network.OUTPUT_WIDTH))
    targets = np.zeros((steps, sketches, 5))
    targets[..., :2] = rng.standard_normal((steps, sketches, 2))
    targets[0, 0, :2] = 300  # no density there: the floor of the likelihood
    pens = rng.integers(0, 3, (steps, sketches))
    targets[np.arange(steps)[:, None], np.arange(sketches), 2 + pens] = 1
    for count_padding in (True, False):
        expected = np.zeros(sketches)
        for t in range(steps):
            for b in range(sketches):
                parts = map(np.asarray, network.split_outputs(outputs[t, b]))
                pen, pi, mu_x, mu_y, sx, sy, rho = parts
                pi = np.exp(pi) / np.exp(pi).sum()
                sx, sy = np.exp(sx), np.exp(sy)
                xy = np.tanh(rho) * sx * sy
                density = sum(
                    pi[m]
                    * stats.multivariate_normal(
                        [mu_x[m], mu_y[m]],
                        [[sx[m] ** 2, xy[m]], [xy[m], sy[m] ** 2]],
                    ).pdf(targets[t, b, :2])
                    for m in range(network.MIXTURES)
                )
                drawn = pens[t, b] != 2
                expected[b] -= np.log(density + 1e-6) * drawn
                pen_loss = np.log(np.exp(pen).sum()) - pen[pens[t, b]]
                expected[b] += pen_loss * (drawn or count_padding)
        ours = network.stroke_losses(
            outputs.astype(np.float32), targets.astype(np.float32), count_padding
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_stroke_losses_stay_finite_at_extremes():
    """Correlations near one, tiny and huge deviations give a finite loss."""
    for pi, sigma, rho in [(80, -8, 12), (-80, 8, -12), (0, -10, 18)]:
        outputs = np.zeros((1, 1, network.OUTPUT_WIDTH), np.float32)
        outputs[..., 3] = pi
        outputs[..., 63:103] = sigma
        outputs[..., 103:] = rho
        targets = np.array([[[0.3, -0.2, 1, 0, 0]]], np.float32)
        assert np.isfinite(network.stroke_losses(outputs, targets, True)).all()


@pytest.mark.slow
def test_codes_do_not_depend_on_neighbours():
    """A sketch's code is its own, whatever the batch, up to 1e-4."""
    rng = np.random.default_rng(4)
    model = SPGra2Seq(SMALL)
    patches = rng.integers(0, 256, (7, 6, 16, 16)).astype(np.uint8)
    masks = np.ones((7, 5, 5), np.float32)
    together, _ = model.encode(patches, masks)
    for i in range(7):
        alone, _ = model.encode(patches[i : i + 1], masks[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_blank_nodes_have_one_embedding(precision):
    """All blank nodes of a sketch have the very same embedding, so that they tie, and with it
    the same row of links, however the processor's kernels round the last rows of a product."""
    rng = np.random.default_rng(5)
    model = SPGra2Seq(SMALL.replace(precision=precision))
    for sketches, nodes in ((1, 21), (3, 21), (13, 6)):
        patches = rng.integers(0, 256, (sketches, nodes, 16, 16)).astype(np.uint8)
        blank = rng.random((sketches, nodes)) < 0.4
        patches[blank] = 0
        embeddings = np.asarray(model.encoder.embed(patches))
        alone = np.asarray(model.encoder.patch_encoder(patches.reshape(-1, 16, 16)))
        tolerance = 1e-5 if precision == "float32" else 0.05  # other nodes are left as they are
        np.testing.assert_allclose(
            embeddings.reshape(-1, 512), alone, atol=tolerance * np.abs(alone).max()
        )
        for own, is_blank in zip(embeddings, blank, strict=True):
            assert len(np.unique(own[is_blank], axis=0)) <= 1
            assert len(np.unique(own, axis=0)) == 1 + np.count_nonzero(~is_blank) - (
                not is_blank.any()
            )


@pytest.mark.slow
def test_initial_weights():
    """Weights start as specified: normal, of the stated deviations; centroids at zero."""
    model = SPGra2Seq(HParams(dec_rnn_size=256))
    weights = {v.path: np.asarray(v) for v in model.weights}
    fan_in = [4 * n for n in (1, *CHANNELS)]
    expected = {f"encoder/conv{i}": np.sqrt(2 / fan_in[i]) for i in range(6)}
    expected |= {
        "encoder/conv6": np.sqrt(1 / fan_in[6]),
        "graph/gcn_weight_1": np.sqrt(2 / 512),
        "graph/gcn_weight_2": np.sqrt(2 / 512),
        "graph/fc_mu": np.sqrt(1 / 512),
        "graph/fc_sigma2": np.sqrt(1 / 512),
        "decoder/init_state": np.sqrt(5 / (3 * 128)),
        "decoder/fc": np.sqrt(1 / 256),
    }
    for path, deviation in expected.items():
        values = weights[path].ravel()
        # Five standard errors of a normal sample's deviation; the p-value likewise.
        assert values.std() == pytest.approx(deviation, rel=5 / np.sqrt(2 * values.size)), path
        if values.size > 100:
            assert stats.kstest(values / deviation, "norm").pvalue > 1e-6, path
    assert not weights["clusters/latent_mu"].any()
    again = SPGra2Seq(HParams(dec_rnn_size=256))
    other = SPGra2Seq(HParams(dec_rnn_size=256, seed=1))
    np.testing.assert_array_equal(again.decoder.output_kernel, weights["decoder/fc"])
    assert not np.array_equal(other.decoder.output_kernel, weights["decoder/fc"])


def test_clipping_is_per_variable():
    """Each variable's gradient is clipped on its own, and the schedule's counter is its own."""
    hparams = HParams(grad_clip=0.5, learning_rate=0.01, decay_rate=0.9, min_learning_rate=0.002)
    large, small = keras.Variable([3.0, 4.0]), keras.Variable([1.0])
    optimizer = Adam(hparams)
    optimizer.build([large, small])
    optimizer.schedule_step.assign(7)
    optimizer.apply([ops.array([3.0, 4.0]), ops.array([0.1])], [large, small])
    momenta = {v.path.rpartition("/")[2]: np.asarray(v) for v in optimizer.variables}
    clipped = [v for k, v in momenta.items() if "momentum" in k]
    # The first moment after one step is a tenth of the clipped gradient.
    np.testing.assert_allclose(clipped[0], [0.03, 0.04], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [0.01], rtol=1e-6)
    assert int(optimizer.iterations) == 1 and int(optimizer.schedule_step) == 8
    assert float(optimizer.learning_rate) == pytest.approx(0.008 * 0.9**8 + 0.002, rel=1e-6)
