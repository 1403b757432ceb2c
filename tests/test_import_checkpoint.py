"""Published TensorFlow 1.12 checkpoints: imported whole and right, or refused in one line."""

import json
import shutil

import golden_data
import numpy as np
import pytest

import checkpoints
import train
from doodles import write_doodles
from hparams import HParams, read_config
from import_checkpoint import import_checkpoint, published_name
from model import Adam, SPGra2Seq
from support.backend import keras
from support.files import UserError

pytestmark = pytest.mark.slow
tf = pytest.importorskip("tensorflow")
FORWARD = 1e-5  # the reference's own numbers move by up to 9e-6; see its README
OPTIONS = {
    "categories": ["fish", "tree"],
    "dec_rnn_size": 12,
    "z_size": 6,
    "num_mixture": 4,
    "batch_size": 4,
    "graph_number": 6,
    "graph_picture_size": 16,
    "max_seq_len": -1,
}


def write_published(directory, dec_model="lstm", change=None, epoch=7, **options):
    """A checkpoint as the published code writes it, of random weights; returns the weights."""
    directory.mkdir()
    model = SPGra2Seq(HParams(**OPTIONS, dec_model=dec_model))
    rng = np.random.default_rng(1)
    values = {
        published_name(v.path, dec_model): rng.uniform(0, 0.1, v.shape).astype(np.float32)
        for v in model.weights
    }
    stored = dict(values)
    if change:
        change(stored)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = {
            name: tf.compat.v1.get_variable(name, initializer=value)
            for name, value in stored.items()
        }
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables)
        saver.save(session, str(directory / "vector"), global_step=epoch, write_meta_graph=False)
    (directory / "checkpoint").write_text(
        f'model_checkpoint_path: "/home/somebody/logs/vector-{epoch}"\n'
        'all_model_checkpoint_paths: "/home/somebody/logs/vector-1"\n'
    )
    np.savez(directory / "para.npz", best_valid_loss=12.5, epoch=epoch, count=4321)
    config = OPTIONS | {"dec_model": dec_model, "semi_percent": 0.0, "semi_balanced": False}
    config |= options
    (directory / "model_config.json").write_text(json.dumps(config))
    return values


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_variables_are_the_published_ones(dec_model):
    """Names and shapes of all variables in a published checkpoint, for each decoder."""
    listed = golden_data.load_json("variables.json")[dec_model]
    expected = {v["name"]: tuple(v["shape"]) for v in listed if v["in_checkpoint"]}
    trained = {v["name"] for v in listed if v["trainable"]}
    model = SPGra2Seq(HParams(dec_model=dec_model, dec_rnn_size=64, z_size=16, num_mixture=7))
    name = {v.path: published_name(v.path, dec_model) + ":0" for v in model.weights}
    assert {name[v.path]: tuple(v.shape) for v in model.weights} == expected
    assert {name[v.path] for v in model.trainable_weights} == trained


def test_the_published_model_gives_the_published_numbers(tmp_path):
    """The reference checkpoint, imported, reproduces codes, adjacency, outputs and losses."""
    reference = golden_data.load("model_lstm.npz")
    warnings = import_checkpoint(golden_data.CHECKPOINT, tmp_path / "model")
    assert any("semi_percent, semi_balanced" in warning for warning in warnings)
    assert any("scale factor" in warning for warning in warnings)
    model = checkpoints.load_model(tmp_path / "model")
    weights = golden_data.weights()
    for variable in model.weights:
        np.testing.assert_array_equal(variable, weights[published_name(variable.path, "lstm")])
    patches = reference["input_graphs_p"]
    masks = reference["input_masks"].astype(np.float32)
    mu, _ = model.encode(patches, masks)
    np.testing.assert_allclose(mu, reference["eval/p_mu"], atol=FORWARD)
    np.testing.assert_allclose(
        model.adjacency(patches, masks), reference["eval/coff_adjs"], atol=FORWARD
    )
    losses = model.losses(patches, masks, reference["input_seqs"], z=reference["eval/p_mu"])
    assert float(losses["reconstruction"]) == pytest.approx(
        float(reference["eval/lil_loss"]), rel=FORWARD
    )
    state = checkpoints.restore_latest(tmp_path / "model", model, _optimizer(model))
    assert (state.epoch, state.global_step, state.total_steps) == (1, 3, 3)
    assert state.best_loss == pytest.approx(float(reference["eval/lil_loss"]), rel=FORWARD)


def _optimizer(model):
    optimizer = Adam(model.hparams)
    optimizer.build(model.trainable_variables)
    return optimizer


@pytest.mark.parametrize("dec_model", ["lstm", "layer_norm", "hyper"])
def test_every_variable_lands_in_its_place(tmp_path, dec_model):
    """Each published variable becomes exactly one of ours, whatever the decoder."""
    values = write_published(tmp_path / "published", dec_model)
    import_checkpoint(tmp_path / "published", tmp_path / "model")
    model = checkpoints.load_model(tmp_path / "model")
    assert len(model.weights) == len(values)
    for variable in model.weights:
        np.testing.assert_array_equal(variable, values[published_name(variable.path, dec_model)])


def test_training_goes_on_from_an_import(tmp_path):
    """An imported model is a start for train.py: weights, step count, epoch and best loss."""
    values = write_published(tmp_path / "published", num_steps=4322)
    write_doodles(tmp_path / "data", categories=("fish", "tree"), train=8, valid=2, test=2)
    import_checkpoint(tmp_path / "published", tmp_path / "model")
    optimizer = _optimizer(model := checkpoints.load_model(tmp_path / "model"))
    checkpoints.restore_latest(tmp_path / "model", model, optimizer)
    assert int(optimizer.schedule_step) == 4321 and int(optimizer.iterations) == 0
    state = train.train(tmp_path / "data", tmp_path / "model", resume=True)
    assert (state.total_steps, state.best_loss) != (0, float("inf"))
    rows = (tmp_path / "model" / "metrics.csv").read_text().splitlines()
    assert rows[1].startswith("4322,7,train,")
    assert float(rows[1].split(",")[5]) == pytest.approx(0.00099 * 0.9999**4321 + 0.00001)
    config = read_config(tmp_path / "model" / "model_config.json")
    assert config.scale_factor > 0 and config.hparams.max_seq_len > 0
    updated = dict(np.load(tmp_path / "model" / "latest.npz"))
    start = values["SP-gra2seq/encoders/gcn_weight_1"]
    # The validation of random weights does not improve on 12.5, so they are rolled back.
    np.testing.assert_array_equal(updated["graph/gcn_weight_1"], start)
    assert np.abs(updated["adam/graph_gcn_weight_1_velocity"]).max() > 0


def test_scale_factor_is_computed_from_the_data(tmp_path):
    """With --data_dir the scale factor and the longest sketch are stored."""
    write_published(tmp_path / "published")
    files = write_doodles(tmp_path / "data", categories=("fish", "tree"), train=5, valid=1, test=1)
    import_checkpoint(tmp_path / "published", tmp_path / "model", data_dir=tmp_path / "data")
    config = read_config(tmp_path / "model" / "model_config.json")
    sketches = {
        split: [s for f in files for s in np.load(f, allow_pickle=True)[split]]
        for split in ("train", "valid", "test")
    }
    deviation = np.concatenate(sketches["train"]).astype(np.float64).std()
    assert config.scale_factor == pytest.approx(deviation, rel=1e-13)
    longest = max(len(s) for group in sketches.values() for s in group)
    assert config.hparams.max_seq_len == longest


def test_step_chooses_the_checkpoint(tmp_path):
    """--step takes any of several checkpoints; without it the file `checkpoint` decides."""
    write_published(tmp_path / "published", epoch=7)
    old = write_published(tmp_path / "old", change=lambda v: v.update(), epoch=3)
    for path in (tmp_path / "old").glob("vector-3*"):
        shutil.copy(path, tmp_path / "published")
    warnings = import_checkpoint(tmp_path / "published", tmp_path / "m3", step=3)
    assert "vector-3" in warnings[0]
    assert any("para.npz belongs to epoch 7" in warning for warning in warnings)
    assert "vector-7" in import_checkpoint(tmp_path / "published", tmp_path / "m7")[0]
    (tmp_path / "published" / "checkpoint").unlink()
    assert "vector-7" in import_checkpoint(tmp_path / "published", tmp_path / "m")[0]
    with pytest.raises(UserError, match=r"vector-5.index not found; steps there: 3, 7"):
        import_checkpoint(tmp_path / "published", tmp_path / "m5", step=5)
    assert old


def rename(values):
    values["SP-gra2seq/encoders/fc_mu/linear/weights"] = values.pop(
        "SP-gra2seq/encoders/fc_mu/linear/fc_w"
    )


def transpose(values):
    name = "SP-gra2seq/decoder/decoder/rnn/LSTMCell/W_xh"
    values[name] = values[name].T


def drop(values):
    del values["SP-gra2seq/encoders/BatchNorm_1/moving_variance"]


def add(values):
    values["SP-gra2seq/extra"] = np.zeros(3, np.float32)


def widen(values):
    name = "SP-gra2seq/encoders/conv3/filter"
    values[name] = values[name].astype(np.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"fc_mu/linear/fc_w is missing; .*fc_mu/linear/weights does not belong"),
        (transpose, r"LSTMCell/W_xh has the shape \(48, 11\), not \(11, 48\)"),
        (drop, r"BatchNorm_1/moving_variance is missing"),
        (add, r"SP-gra2seq/extra does not belong"),
        (widen, r"conv3/filter is of the type float64"),
    ],
)
def test_a_foreign_variable_is_named_and_nothing_written(tmp_path, change, message):
    """Every variable is accounted for, or the import is refused as a whole."""
    write_published(tmp_path / "published", change=change)
    with pytest.raises(UserError, match=message) as error:
        import_checkpoint(tmp_path / "published", tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def cut(directory):
    path = next(directory.glob("*.data-*"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(directory):
    path = next(directory.glob("*.data-*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def cut_index(directory):
    path = next(directory.glob("*.index"))
    path.write_bytes(path.read_bytes()[:100])


def forget_data(directory):
    next(directory.glob("*.data-*")).unlink()


def forget_index(directory):
    next(directory.glob("*.index")).unlink()


def forget_config(directory):
    (directory / "model_config.json").unlink()


def break_config(directory):
    (directory / "model_config.json").write_text("{")


def other_config(directory):
    config = OPTIONS | {"dec_model": "hyper"}
    (directory / "model_config.json").write_text(json.dumps(config))


def break_parameters(directory):
    (directory / "para.npz").write_bytes(b"PK nonsense")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"vector-7: damaged"),
        (flip, r"vector-7: damaged"),
        (cut_index, r"vector-7: damaged"),
        (forget_data, r"vector-7.data-00000-of-00001: not found"),
        (forget_index, r"no published checkpoint, there is no vector-N.index"),
        (forget_config, r"model_config.json: can't be read"),
        (break_config, r"model_config.json: damaged, not a JSON file"),
        (other_config, r"not a checkpoint of this model: .*HyperLSTMCell/W_xh is missing"),
        (break_parameters, r"para.npz: damaged"),
    ],
)
def test_damage_is_one_line_and_nothing_is_written(tmp_path, damage, message):
    """Damaged, incomplete and foreign directories are refused with one line."""
    write_published(tmp_path / "published")
    damage(tmp_path / "published")
    with pytest.raises(UserError, match=message) as error:
        import_checkpoint(tmp_path / "published", tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_model_is_not_overwritten(tmp_path):
    """A directory that holds a model already is refused."""
    write_published(tmp_path / "published")
    import_checkpoint(tmp_path / "published", tmp_path / "model")
    before = (tmp_path / "model" / "best.npz").read_bytes()
    with pytest.raises(UserError, match="already holds a model"):
        import_checkpoint(tmp_path / "published", tmp_path / "model")
    assert (tmp_path / "model" / "best.npz").read_bytes() == before


def test_other_methods_are_refused(tmp_path):
    """Published checkpoints of the baselines belong to other decoders; the line says so."""
    write_published(tmp_path / "published")
    config = tmp_path / "published" / "model_config.json"
    values = json.loads(config.read_text())
    for name in ("graph_number", "graph_picture_size", "num_mixture"):
        values.pop(name, None)
    config.write_text(json.dumps({**values, "method": "sketchlattice"}))
    with pytest.raises(UserError, match="method=sketchlattice; only checkpoints of SP-gra2seq"):
        import_checkpoint(tmp_path / "published", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_import_leaves_keras_alone():
    """Building graph-mode checkpoints here has not changed the backend's eager state."""
    assert float(keras.ops.sum(keras.ops.ones(3))) == 3
