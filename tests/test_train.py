"""Training runs: what they compute, how they end, and that nothing is lost on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import checkpoints
import dataset
import train
from batches import WHOLE, BatchShape, evaluation_batches, training_batches
from doodles import write_doodles
from hparams import parse_hparams, read_config
from model import Adam, SPGra2Seq
from support import devices, metrics_log, preview
from support.backend import keras, on_cpu
from support.files import UserError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
OPTIONS = (
    "categories=[fish,tree],batch_size=8,dec_rnn_size=16,z_size=8,num_mixture=5,graph_number=6,"
    "graph_picture_size=16,num_steps=10,mask_prob=0.3,augment_stroke_prob=0.2,"
    "use_output_dropout=True,output_dropout_prob=0.9"
)
PER_EPOCH = 6  # 2 categories of 25 sketches in batches of 8: 2 of an epoch are left out


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_doodles(folder, categories=("fish", "tree"), train=25, valid=5, test=3)
    return folder


def contents(log_root):
    """Everything that a run leaves, except the TensorBoard files with their time stamps."""
    arrays = {name: checkpoints.read_arrays(log_root / name) for name in ("best.npz", "latest.npz")}
    return arrays, (log_root / "metrics.csv").read_text()


def assert_same_run(one, other):
    (arrays, rows), (other_arrays, other_rows) = contents(one), contents(other)
    assert rows == other_rows
    for name in arrays:
        assert arrays[name][1] == other_arrays[name][1]
        assert arrays[name][0].keys() == other_arrays[name][0].keys()
        for key, value in arrays[name][0].items():
            np.testing.assert_array_equal(value, other_arrays[name][0][key], err_msg=key)


def rows_of(log_root, split=None):
    lines = (log_root / "metrics.csv").read_text().splitlines()
    assert lines[0] == metrics_log.METRICS_COLUMNS
    rows = [line.split(",") for line in lines[1:]]
    return [row for row in rows if split in (None, row[2])]


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """A run that nothing interrupted."""
    log_root = tmp_path_factory.mktemp("run") / "whole"
    state = train.train(data_dir, log_root, OPTIONS)
    assert state.finished and state.total_steps == 10
    return log_root


@pytest.fixture(autouse=True)
def no_preview(monkeypatch):
    """The runs of single tests draw no preview, which takes a while; that of `finished` does."""
    monkeypatch.setattr(train, "draw_preview", lambda *_: np.zeros((2, 2, 3), np.uint8))


def test_what_a_run_leaves(finished, data_dir):
    """Configuration, checkpoints, a row for each update and validation, preview, TensorBoard."""
    config = read_config(finished / "model_config.json")
    data = dataset.load_dataset(data_dir, parse_hparams(OPTIONS))
    assert config.scale_factor == data.scale_factor
    assert config.hparams.max_seq_len == data.max_seq_len > 0
    assert [int(row[0]) for row in rows_of(finished, "train")] == list(range(1, 11))
    # Beside each update, the epochs that were complete before it.
    assert [int(row[1]) for row in rows_of(finished, "train")] == 6 * [0] + 4 * [1]
    # After the first epoch, and at the end in the middle of the second.
    assert [(int(r[0]), int(r[1])) for r in rows_of(finished, "valid")] == [(6, 1), (10, 1)]
    for number, row in enumerate(rows_of(finished, "train")):
        expected = (0.001 - 0.00001) * 0.9999**number + 0.00001
        assert float(row[5]) == pytest.approx(expected, rel=1e-12)
    assert (finished / "preview.png").read_bytes().startswith(b"\x89PNG")
    logged = list((finished / "tensorboard").glob("events*"))
    assert bool(logged) == (keras.backend.backend() == "tensorflow")
    assert not list(finished.glob("*.tmp"))
    checkpoints.load_model(finished)


def test_workers_change_nothing(finished, data_dir, tmp_path):
    """However many processes prepare the batches, a run is the same to the last bit."""
    train.train(data_dir, tmp_path / "run", OPTIONS, workers=3, save_minutes=0)
    assert_same_run(finished, tmp_path / "run")


def test_sharing_memory_changes_nothing(data_dir, tmp_path, monkeypatch):
    """Batches that TensorFlow takes without a copy, as all large ones, are not overwritten while
    they are in use, be they made by a thread or by processes."""
    options = OPTIONS.replace("graph_picture_size=16", "graph_picture_size=32")
    train.train(data_dir, tmp_path / "copied", options, workers=1)
    share, shared = devices._share, []

    def counted(x):
        taken = share(x)
        shared.append(taken is not x)
        return taken

    monkeypatch.setattr(devices, "MIN_PIECE", 1)
    monkeypatch.setattr(devices, "_share", counted)
    for workers in (1, 2):
        shared.clear()
        train.train(data_dir, tmp_path / f"shared {workers}", options, workers=workers)
        assert_same_run(tmp_path / "copied", tmp_path / f"shared {workers}")
        if keras.backend.backend() == "tensorflow" and on_cpu():
            assert sum(shared) >= 10  # the patches of each update


def start_run(data_dir, log_root, *more):
    command = [sys.executable, str(ROOT / "train.py"), f"--data_dir={data_dir}"]
    command += [f"--log_root={log_root}", f"--hparams={OPTIONS}", *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)


def count_rows(log_root):
    path = log_root / "metrics.csv"
    return path.read_text().count(",train,") if path.exists() else 0


def test_killed_and_resumed_is_never_interrupted(finished, data_dir, tmp_path):
    """SIGKILL before the first checkpoint, and between two, costs nothing, not a bit."""
    log_root = tmp_path / "run"
    process = start_run(data_dir, log_root)
    wait_for(lambda: (log_root / "model_config.json").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (log_root / "latest.npz").exists()

    process = start_run(data_dir, log_root, "--resume_training=True", "--save_minutes=0")
    wait_for(lambda: count_rows(log_root) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = count_rows(log_root)
    assert 3 <= killed_at < 10

    # A row after the checkpoint's, half written, is what a kill may leave as well.
    with open(log_root / "metrics.csv", "a") as file:
        file.write("9,0,train,1.0")
    state = train.train(data_dir, log_root, OPTIONS, resume=True)
    assert state.total_steps == 10
    assert_same_run(finished, log_root)


def test_interrupted_tidily_and_resumed(finished, data_dir, tmp_path, monkeypatch, capsys):
    """Ctrl-C ends after the present update, saves, says how to go on; and nothing is lost."""
    write = metrics_log.MetricsLog.write

    def interrupt(self, split, *args):
        write(self, split, *args)
        if self.state.total_steps == 4 and split == "train":
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(metrics_log.MetricsLog, "write", interrupt)
    # Programs that a shell starts in the background ignore Ctrl-C; the tests may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        state = train.train(data_dir, tmp_path / "run", OPTIONS)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert (state.total_steps, state.finished) == (4, "")
    assert "--resume_training=True" in capsys.readouterr().out
    # Options that are not given are the run's own.
    train.train(data_dir, tmp_path / "run", "", resume=True)
    assert_same_run(finished, tmp_path / "run")


def test_a_finished_run_stays_as_it_is(finished, data_dir, capsys):
    """Resuming it says that it has ended, and why."""
    before = contents(finished)[1]
    state = train.train(data_dir, finished, OPTIONS, resume=True)
    assert "This run has ended: all 10 updates are made." in capsys.readouterr().out
    assert state.total_steps == 10 and contents(finished)[1] == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OPTIONS.replace("batch_size=8", "batch_size=4"), r"batch_size=4 \(the run has 8\)"),
        ("seed=5", r"seed=5 \(the run has 0\)"),
        ("dec_model=hyper", r"dec_model=hyper \(the run has lstm\)"),
    ],
)
def test_other_options_are_refused_in_resuming(finished, data_dir, options, message):
    """A run goes on with its own options or not at all."""
    with pytest.raises(UserError, match=message) as error:
        train.train(data_dir, finished, options, resume=True)
    assert "\n" not in str(error.value)


def test_other_data_are_refused_in_resuming(finished, tmp_path):
    """A run goes on with its own sketches or not at all."""
    write_doodles(tmp_path, categories=("fish", "tree"), train=25, valid=5, test=3, seed=1)
    with pytest.raises(UserError, match="other (data|options)"):
        train.train(tmp_path, finished, "", resume=True)


def test_a_run_is_not_overwritten(finished, data_dir):
    """A directory that holds a run is refused without --resume_training."""
    before = (finished / "best.npz").read_bytes()
    with pytest.raises(UserError, match="already holds a run"):
        train.train(data_dir, finished, OPTIONS)
    assert (finished / "best.npz").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(finished, data_dir, tmp_path):
    """Resuming from a truncated latest.npz is one line that names it."""
    for name in ("model_config.json", "best.npz", "metrics.csv"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    whole = (finished / "latest.npz").read_bytes()
    (tmp_path / "latest.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"latest.npz: damaged") as error:
        train.train(data_dir, tmp_path, "", resume=True)
    assert "\n" not in str(error.value)


def scripted_run(data_dir, log_root, losses, monkeypatch, options):
    """A run whose validations have chosen reconstruction losses; returns it and what it saw."""
    seen, script = [], iter(losses)

    def evaluate(model, split, hparams, name, *_):
        weights = {v.path: np.asarray(v) + 0 for v in model.weights}
        slots = {v.path: np.asarray(v) + 0 for v in model.optimizer.variables}
        loss = next(script) if name == "valid" else 0.0
        seen.append((name, loss, weights, slots))
        return {"reconstruction": loss, "clustering": 1.0}

    monkeypatch.setattr(train, "evaluate", evaluate)
    state = train.train(data_dir, log_root, OPTIONS.replace("num_steps=10", options))
    return state, seen


def test_roll_back_and_patience(data_dir, tmp_path, monkeypatch):
    """Without improvement the weights go back to the best and the optimiser's moments go on;
    five times in a row end the run; only improvements are tested."""
    log_root = tmp_path / "run"
    state, seen = scripted_run(
        data_dir, log_root, [5.0, 6.0, 4.0, 9, 9, 4.0, 9, 9], monkeypatch, "num_steps=1000"
    )
    assert state.finished == "5 validations in a row without improvement"
    assert [name for name, *_ in seen].count("test") == 2
    assert (state.total_steps, state.total_epochs, state.best_loss) == (8 * PER_EPOCH, 8, 4.0)
    # The third validation was the best; the second epoch had been undone before it.
    assert (state.epoch, state.global_step) == (2, 2 * PER_EPOCH)
    arrays, _ = checkpoints.read_arrays(log_root / "latest.npz")
    validated = [entry for entry in seen if entry[0] == "valid"]
    best_weights, last_slots = validated[2][2], validated[-1][3]
    for path, value in best_weights.items():
        np.testing.assert_array_equal(arrays[path], value, err_msg=path)
    for path, value in last_slots.items():
        if path != "adam/schedule_step":
            np.testing.assert_array_equal(arrays[path], value, err_msg=path)
    assert arrays["adam/schedule_step"] == 2 * PER_EPOCH
    assert arrays["adam/iteration"] == 8 * PER_EPOCH
    # A retry is not the same epoch again: its batches have another order and other masks.
    losses = [row[3] for row in rows_of(log_root, "train")]
    assert losses[3 * PER_EPOCH : 4 * PER_EPOCH] != losses[4 * PER_EPOCH : 5 * PER_EPOCH]
    epochs = [int(row[1]) for row in rows_of(log_root, "valid")]
    assert epochs == [1, 2, 2, 3, 3, 3, 3, 3]


def test_validation_every_few_epochs(data_dir, tmp_path, monkeypatch):
    """`save_every` epochs lie between two validations, and the end is validated too."""
    scripted_run(data_dir, tmp_path / "run", [3, 2, 1], monkeypatch, "num_steps=28,save_every=2")
    updates = [int(row[0]) for row in rows_of(tmp_path / "run", "valid")]
    assert updates == [12, 24, 28]


def test_a_loss_that_is_not_finite_ends_the_run(data_dir, tmp_path, monkeypatch):
    """One clear line; the checkpoints from before are intact."""
    log_root = tmp_path / "run"
    update = train.update

    def broken(model, batch):
        losses = update(model, batch)
        if int(model.optimizer.iterations) == 9:
            losses["reconstruction"] = float("nan")
        return losses

    monkeypatch.setattr(train, "update", broken)
    with pytest.raises(UserError, match="reconstruction loss is nan at update 9") as error:
        train.train(data_dir, log_root, OPTIONS)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert checkpoints.read_arrays(log_root / "latest.npz")[1]["updates"] == PER_EPOCH
    checkpoints.load_model(log_root)


def test_a_set_smaller_than_a_batch_is_refused(data_dir, tmp_path):
    """Nothing would ever be trained."""
    with pytest.raises(UserError, match="50 training sketches are less than one batch of 64"):
        train.train(data_dir, tmp_path / "run", OPTIONS.replace("batch_size=8", "batch_size=64"))
    assert not (tmp_path / "run").exists()


def test_missing_data(tmp_path):
    """The line says which file was looked for."""
    with pytest.raises(UserError, match=r"fish.npz: not found, there is no directory"):
        train.train(tmp_path / "nowhere", tmp_path / "run", OPTIONS)


def test_evaluation_is_a_mean_over_sketches(data_dir):
    """Whatever the batches; the clustering loss over counted patches; noise from the sketch."""
    means = []
    for size in (1, 4, 8):
        hparams = parse_hparams(OPTIONS.replace("batch_size=8", f"batch_size={size}"))
        data = dataset.load_dataset(data_dir, hparams)
        model = SPGra2Seq(hparams)
        model.clusters.centroids.assign(np.random.default_rng(0).standard_normal((5, 512)))
        model.compile(optimizer=Adam(hparams))
        losses = train.evaluate(model, data.splits["valid"], hparams, "valid")
        means.append(losses["reconstruction"])
        if size == 8:
            # All but the last batch's share: by hand, sketch by sketch.
            single = parse_hparams(OPTIONS.replace("batch_size=8", "batch_size=1"))
            singles = evaluation_batches(data.splits["valid"], single, stream="valid", workers=1)
            by_hand = [float(model(batch)["reconstruction"]) for batch in singles]
            assert len(by_hand) == 10
            assert losses["reconstruction"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    np.testing.assert_allclose(means, means[0], rtol=1e-5)  # float32 rounding


class FixedShapes(devices.DeviceGroup):
    """A group whose compiler wants few shapes, as JAX's does."""

    def batch_shape(self):
        return BatchShape(fixed=True)


def test_fixed_shapes_change_no_loss(data_dir):
    """Further steps, and sketches that fill up the last batch, change no loss of an evaluation,
    neither of the whole split nor of one batch."""
    hparams = parse_hparams(OPTIONS)
    data = dataset.load_dataset(data_dir, hparams)
    model = SPGra2Seq(hparams)
    model.clusters.centroids.assign(np.random.default_rng(0).standard_normal((5, 512)))
    model.compile(optimizer=Adam(hparams))
    split = data.splits["valid"]
    plain = train.evaluate(model, split, hparams, "valid", 1)
    fixed = train.evaluate(model, split, hparams, "valid", 1, FixedShapes())
    assert plain["clustering"] > 0
    for name, loss in plain.items():  # float32 sums of other lengths
        assert fixed[name] == pytest.approx(loss, rel=1e-5), name
    exact, filled = (
        list(evaluation_batches(split, hparams, stream="valid", workers=1, shape=shape))[-1]
        for shape in (WHOLE, BatchShape(fixed=True))
    )
    assert [len(batch["patches"]) for batch in (exact, filled)] == [2, 8]
    exact, filled = ({k: float(v) for k, v in model(b).items()} for b in (exact, filled))
    # Means over 2 and over 8 sketches of the same sum.
    assert 8 * filled["reconstruction"] == pytest.approx(2 * exact["reconstruction"], rel=1e-5)
    assert filled["clustering"] == pytest.approx(exact["clustering"], rel=1e-5)


def test_clusters_start_as_the_first_patches(data_dir):
    """The first K patch embeddings of the first batch, sketch by sketch, blanks included."""
    hparams = parse_hparams(OPTIONS.replace("num_mixture=5", "num_mixture=12"))
    data = dataset.load_dataset(data_dir, hparams)
    batch = next(training_batches(data.splits["train"], hparams, data.max_seq_len, workers=1))
    model = SPGra2Seq(hparams)
    model.start_clusters(batch)
    embeddings = np.asarray(model.encoder.embed(batch["patches"]))[:, 1:].reshape(-1, 512)[:12]
    np.testing.assert_allclose(model.clusters.centroids, embeddings, rtol=1e-5, atol=1e-6)


def test_losses_fall(data_dir, tmp_path):
    """Sixty updates on a few doodles lower both losses and improve the validation."""
    options = OPTIONS.partition(",mask_prob")[0].replace("dec_rnn_size=16", "dec_rnn_size=48")
    options = options.replace("num_steps=10", "num_steps=60,learning_rate=0.01")
    train.train(data_dir, tmp_path / "run", options)
    losses = np.array([[float(x) for x in row[3:5]] for row in rows_of(tmp_path / "run", "train")])
    assert losses[-6:, 0].mean() < 0.9 * losses[:6, 0].mean()
    assert losses[-6:, 1].mean() < 0.7 * losses[:6, 1].mean()
    valid = [float(row[3]) for row in rows_of(tmp_path / "run", "valid")]
    assert min(valid) < 0.9 * valid[0]


def test_the_command_line(data_dir, tmp_path):
    """A user's mistake is one line and exit status 1; a run says what it does, without noise."""
    process = start_run(data_dir, tmp_path / "bad", "--hparams=batchsize=3")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert output.startswith("train.py: ") and output.count("\n") == 1 and "batch_size" in output
    process = start_run(data_dir, tmp_path / "run", f"--hparams={OPTIONS},save_every=3")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    for line in ("Categories: fish, tree", "50 train, 10 valid, 6 test", "Parameters:", "Device:"):
        assert line in output
    for noise in ("Warning", "oneDNN", "cuda", "Traceback", "WARNING"):
        assert noise not in output


def test_a_lost_worker_ends_the_run_with_a_line(data_dir, tmp_path):
    """A process that prepares batches and is killed: one line, exit status 1, and it resumes; no
    process stays."""
    root = tmp_path / "run"
    command = [sys.executable, str(ROOT / "train.py"), f"--data_dir={data_dir}", "--workers=2"]
    command += [f"--log_root={root}", "--resume_training=True"]
    options = OPTIONS.replace("num_steps=10", "num_steps=100000")
    run = subprocess.Popen(
        [*command, f"--hparams={options},save_every=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{run.pid}/task")
    if not children.exists():
        run.kill()
        pytest.skip("no /proc here to look for processes")
    until = time.monotonic() + 120
    while not (root / "metrics.csv").exists() or len((root / "metrics.csv").read_text()) < 200:
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.1)
    started = [int(p) for t in children.iterdir() for p in (t / "children").read_text().split()]
    assert len(started) == 2
    os.kill(started[0], signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "train.py: a process that prepares batches was ended" in errors
    assert errors.count("\n") == 1
    assert not any(Path(f"/proc/{process}").exists() for process in started)
    checkpoints.read_arrays(root / "latest.npz")


@pytest.mark.parametrize(
    ("categories", "chosen", "each"),
    [(1, [0], 16), (3, [0, 1, 2], 5), (16, range(16), 1), (31, range(0, 31, 2), 1)],
)
def test_what_a_preview_shows(categories, chosen, each):
    """At most 16 sketches, as many of each category; many categories are thinned out evenly."""
    category = np.repeat(np.arange(categories, dtype=np.int32), 20)
    n = len(category)
    ends = np.arange(n + 1, dtype=np.int64)
    split = dataset.Split(np.zeros((n, 3), np.float32), ends, category, ends[1:], 1.0)
    expected = [20 * c + i for c in chosen for i in range(each)]
    assert preview.previewed(split) == expected and len(expected) <= 16
