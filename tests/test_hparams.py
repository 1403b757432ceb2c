"""The options: defaults, how they are read from a command line and a file, what is refused."""

import json
import math
import os

import golden_data
import numpy as np
import pytest

import hparams
from hparams import HParams, parse_hparams, read_config, write_config
from support.files import UserError

PUBLISHED = golden_data.CHECKPOINT / "model_config.json"

DEFAULTS = {
    "categories": ("bee", "bus"),
    "method": "sp_gra2seq",
    "edges": "auto",
    "num_steps": 1000001,
    "save_every": 1,
    "dec_rnn_size": 1024,
    "dec_model": "lstm",
    "max_seq_len": -1,
    "z_size": 128,
    "batch_size": 128,
    "graph_number": 21,
    "graph_picture_size": 256,
    "drawing_size": 640,
    "lattice_size": 32,
    "lattice_nodes": 150,
    "num_mixture": 30,
    "learning_rate": 0.001,
    "decay_rate": 0.9999,
    "min_learning_rate": 0.00001,
    "precision": "float32",
    "grad_clip": 1.0,
    "use_recurrent_dropout": False,
    "recurrent_dropout_prob": 0.0,
    "use_input_dropout": False,
    "input_dropout_prob": 0.0,
    "use_output_dropout": False,
    "output_dropout_prob": 0.0,
    "random_scale_factor": 0.0,
    "augment_stroke_prob": 0.0,
    "is_training": True,
    "seed": 0,
    "num_per_category": 0,
    "mask_prob": 0.1,
    "split_train": 0.0,
    "masking": "auto",
}


def refusal(call, *args, **kwargs):
    """Return the text of the UserError that the call must raise, checked to be one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text and text.splitlines() == [text]
    return text


OF_LATTICES = ("lattice_size", "lattice_nodes")  # options of another method than the default


def test_defaults():
    """The options are the article's and ours, no more, with their defaults and types."""
    options = HParams().model_dump()
    assert options == DEFAULTS
    assert {k: type(v) for k, v in options.items()} == {k: type(v) for k, v in DEFAULTS.items()}


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_text_gives_the_base(text):
    """No options given means the defaults, or the base where there is one."""
    assert parse_hparams(text) == HParams()
    base = HParams(z_size=7)
    assert parse_hparams(text, base) == base


def test_base_is_kept_where_nothing_is_given():
    """Options given go over the base's, which stays as it was."""
    base = HParams(z_size=7, seed=3)
    assert parse_hparams("seed=4", base) == HParams(z_size=7, seed=4)
    assert base.seed == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "categories=[bee,The Great Wall of China],batch_size=64",
            {"categories": ("bee", "The Great Wall of China"), "batch_size": 64},
        ),
        (" categories = [ bee , bus ] , z_size = 7 ", {"categories": ("bee", "bus"), "z_size": 7}),
        ("categories=['bee',\"The Mona Lisa\"]", {"categories": ("bee", "The Mona Lisa")}),
        ('categories=["bird\'s nest"]', {"categories": ("bird's nest",)}),
        ("categories=['a, b','c=d'],seed=1", {"categories": ("a, b", "c=d"), "seed": 1}),
        ("seed=1,categories=['[a]',\"b]\"]", {"categories": ("[a]", "b]"), "seed": 1}),
        ("dec_model='hyper'", {"dec_model": "hyper"}),
        (
            "learning_rate=1,min_learning_rate=1e-6",
            {"learning_rate": 1.0, "min_learning_rate": 1e-6},
        ),
        ("max_seq_len=-1,seed=4294967295", {"seed": 2**32 - 1}),
        (
            "use_input_dropout=true,input_dropout_prob=0.9",
            {"use_input_dropout": True, "input_dropout_prob": 0.9},
        ),
        (
            "use_output_dropout=1,output_dropout_prob=1",
            {"use_output_dropout": True, "output_dropout_prob": 1.0},
        ),
        ("is_training=False", {"is_training": False}),
        ("is_training=false", {"is_training": False}),
        ("is_training=0", {"is_training": False}),
        ("is_training=True", {}),
    ],
)
def test_parsing(text, expected):
    """Commas, spaces, brackets and quotes are read as the article's commands use them."""
    options = parse_hparams(text).model_dump()
    assert options == {**DEFAULTS, **expected}
    assert {k: type(v) for k, v in options.items()} == {k: type(v) for k, v in DEFAULTS.items()}


NAMES = "a list in brackets of one or more names"
COUNT = "an integer, at least 1"
SHARE = "a number, at least 0 and at most 1"


@pytest.mark.parametrize(
    ("text", "given", "allowed"),
    [
        ("categories=bee", "'bee'", NAMES),
        ("categories=[]", "the list is empty", NAMES),
        ("categories=[ ]", "the list is empty", NAMES),
        ("categories=[bee,]", "a name is empty", NAMES),
        ("categories=['  ']", "a name is empty", NAMES),
        ("categories=[bee,bus,bee]", "'bee' is given twice", NAMES),
        ("categories=[../bee]", "'../bee'", NAMES),
        ("categories=[a\\b]", r"'a\\b'", NAMES),
        ("categories=[a\nb]", r"'a\nb'", NAMES),
        ("num_steps=0", "0", COUNT),
        ("save_every=0", "0", COUNT),
        ("dec_rnn_size=0", "0", COUNT),
        ("dec_model=gru", "'gru'", "lstm or layer_norm or hyper"),
        ("max_seq_len=0", "0", "-1 or an integer, at least 1"),
        ("max_seq_len=-2", "-2", "-1 or an integer, at least 1"),
        ("z_size=0", "0", COUNT),
        ("batch_size=0", "0", COUNT),
        ("batch_size=True", "'True'", COUNT),
        ("batch_size=1.0", "'1.0'", COUNT),
        ("batch_size=", "''", COUNT),
        ("batch_size=[64]", "'[64]'", COUNT),
        ("batch_size==64", "'=64'", COUNT),
        ("batch_size=two\nlines", r"'two\nlines'", COUNT),
        ("graph_number=1", "1", "an integer, at least 2"),
        ("graph_picture_size=0", "0", "an even integer, at least 2 and at most 256"),
        ("graph_picture_size=255", "255", "an even integer, at least 2 and at most 256"),
        ("graph_picture_size=258", "258", "an even integer, at least 2 and at most 256"),
        ("num_mixture=0", "0", COUNT),
        ("learning_rate=0", "0.0", "a number, above 0"),
        ("learning_rate=fast", "'fast'", "a number, above 0"),
        ("learning_rate=True", "'True'", "a number, above 0"),
        ("learning_rate=nan", "nan", "a number, above 0"),
        ("learning_rate=inf", "inf", "a number, above 0"),
        ("decay_rate=0", "0.0", "a number, above 0 and at most 1"),
        ("decay_rate=1.1", "1.1", "a number, above 0 and at most 1"),
        ("min_learning_rate=-1", "-1.0", "a number, at least 0"),
        ("min_learning_rate=-inf", "-inf", "a number, at least 0"),
        ("precision=float16", "'float16'", "float32 or mixed_bfloat16"),
        ("grad_clip=0", "0.0", "a number, above 0"),
        ("use_recurrent_dropout=yes", "'yes'", "True or False"),
        ("use_input_dropout=2", "'2'", "True or False"),
        ("use_output_dropout=", "''", "True or False"),
        ("is_training=TRUE", "'TRUE'", "True or False"),
        ("recurrent_dropout_prob=1.5", "1.5", SHARE),
        ("input_dropout_prob=-0.1", "-0.1", SHARE),
        ("output_dropout_prob=nan", "nan", SHARE),
        ("random_scale_factor=1", "1.0", "a number, at least 0 and below 1"),
        ("random_scale_factor=-0.1", "-0.1", "a number, at least 0 and below 1"),
        ("augment_stroke_prob=1.1", "1.1", SHARE),
        ("seed=-1", "-1", "an integer, at least 0 and at most 4294967295"),
        ("seed=4294967296", "4294967296", "an integer, at least 0 and at most 4294967295"),
        ("num_per_category=-1", "-1", "an integer, at least 0"),
        ("mask_prob=2", "2.0", SHARE),
    ],
)
def test_refused_values(text, given, allowed):
    """A value of the wrong type or range is refused with the option, the value, what is allowed."""
    name = text.partition("=")[0]
    message = refusal(parse_hparams, text)
    assert message.startswith(f"option {name}: {given}")
    assert f"; allowed: {allowed}" in message


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"batch_size": True}, COUNT),
        ({"batch_size": 2.0}, COUNT),
        ({"batch_size": "64"}, COUNT),
        ({"learning_rate": False}, "a number, above 0"),
        ({"learning_rate": math.nan}, "a number, above 0"),
        ({"is_training": 1}, "True or False"),
        ({"is_training": "true"}, "True or False"),
        ({"categories": "bee"}, NAMES),
        ({"categories": ["bee", 3]}, NAMES),
        ({"categories": None}, NAMES),
    ],
)
def test_python_values_are_not_converted(options, allowed):
    """Booleans, numbers and texts are never taken for each other, and Python gets UserError too."""
    message = refusal(HParams, **options)
    assert message.startswith(f"option {next(iter(options))}: ")
    assert f"; allowed: {allowed}" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("batchsize", "batch_size"),
        ("BATCH_SIZE", "batch_size"),
        ("catagories", "categories"),
        ("learning_rat", "learning_rate"),
        ("mask_probability", "mask_prob"),
    ],
)
def test_unknown_option_names_the_nearest(name, near):
    """A misspelt option is answered with the one that was meant."""
    assert refusal(parse_hparams, f"{name}=1") == f"unknown option '{name}': did you mean {near}?"


@pytest.mark.parametrize("name", ["zzz", "self", "", "a\nb"])
def test_unknown_option_without_a_near_name_lists_all(name):
    """An option like no other is answered with all that are known."""
    message = refusal(parse_hparams, f"{name}=1")
    assert message == f"unknown option {name!r}: known are {', '.join(DEFAULTS)}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("batch_size", ["'batch_size'", "no '='", "name=value"]),
        ("categories=bee,bus", ["'bus'", "no '='", "categories=[bee,bus]"]),
        ("batch_size=64,", ["''", "no '='"]),
        ("seed=1,batch_size=64,seed=1", ["'seed'", "given twice"]),
        ("categories=[bee,batch_size=64", ["categories=[bee", "]", "missing"]),
        ("categories=bee],seed=1", ["categories=bee]", "brackets"]),
        ("categories=[[bee]]", ["categories=[[bee]]", "nested"]),
        ("categories=[bee][bus]", ["option categories", "brackets"]),
        ("categories=['bee,bus],seed=1", ["categories=['bee", "closing '", "missing"]),
        ('seed=1,dec_model="lstm', ['dec_model="lstm', 'closing "', "missing"]),
        ("categories=[bird's nest,cow's]", ["option categories", "quote", "bird's nest,cow's"]),
        ("categories=['a' 'b']", ["option categories", "quote"]),
    ],
)
def test_refused_forms(text, parts):
    """Text that isn't name=value is refused with the place and what is wrong with it."""
    message = refusal(parse_hparams, text)
    assert [part for part in parts if part not in message] == []


def test_long_values_are_cut_in_messages():
    """A huge value does not make a huge message."""
    assert len(refusal(parse_hparams, "batch_size=" + "9" * 5000)) < 200
    assert len(refusal(parse_hparams, "seed=" + "9" * 4000)) < 200


def test_centroids_fit_into_a_batch():
    """The first centroids are patches of the first batch, so there can't be more than these."""
    assert HParams(batch_size=2, graph_number=16, num_mixture=30).num_mixture == 30
    message = refusal(parse_hparams, "batch_size=2,graph_number=15,num_mixture=30")
    assert message.startswith("option num_mixture: 30 is not allowed")
    assert message.endswith("allowed: at most batch_size * (graph_number - 1) = 28")


def test_learning_rate_does_not_decay_upwards():
    """The learning rate that the decay ends in is at most the first one."""
    assert HParams(learning_rate=1e-5).min_learning_rate == 1e-5
    message = refusal(parse_hparams, "learning_rate=0.000001")
    assert message.startswith("option min_learning_rate: 1e-05 is not allowed")
    assert "at most learning_rate = 1e-06" in message


@pytest.mark.parametrize("place", ["recurrent", "input", "output"])
def test_used_keep_probability_is_above_zero(place):
    """Dropout that keeps nothing is refused, and the message says that it is a keep probability."""
    switch, name = f"use_{place}_dropout", f"{place}_dropout_prob"
    message = refusal(parse_hparams, f"{switch}=True")
    assert message.startswith(f"option {name}: 0.0 is not allowed with {switch}=True")
    assert "keep probability" in message and "above 0 and at most 1" in message
    used = parse_hparams(f"{switch}=True,{name}=1")
    assert (getattr(used, switch), getattr(used, name)) == (True, 1.0)


def test_options_do_not_change():
    """Options are frozen, and a changed copy is checked like any other."""
    options = HParams(z_size=7)
    with pytest.raises(ValueError, match="frozen"):
        options.z_size = 8
    assert options.replace(max_seq_len=97) == HParams(z_size=7, max_seq_len=97)
    assert "num_mixture" in refusal(options.replace, batch_size=1)
    assert "did you mean batch_size?" in refusal(options.replace, batchsize=1)


def test_described_options():
    """`--help` and the README's table show every option, with a default that can be typed in."""
    rows = hparams.option_rows()
    assert [name for name, *_ in rows] == list(DEFAULTS)
    typed = [f"{name}={default}" for name, default, *_ in rows if name not in OF_LATTICES]
    assert parse_hparams(",".join(typed)) == HParams()
    assert all(text.endswith(".") and "\n" not in text for *_, text in rows)
    lines = hparams.describe_options().splitlines()
    for line, (name, default, allowed, description) in zip(lines, rows, strict=True):
        assert line == f"{name}={default}: {description} ({allowed})"


OTHERS = {
    "categories": ("The Mona Lisa", "bird's nest", "café, [x]"),
    "num_steps": 5,
    "save_every": 2,
    "dec_rnn_size": 32,
    "dec_model": "hyper",
    "max_seq_len": 97,
    "z_size": 8,
    "batch_size": 4,
    "graph_number": 11,
    "graph_picture_size": 128,
    "num_mixture": 3,
    "learning_rate": 0.1,
    "decay_rate": 1 / 3,
    "min_learning_rate": 0.0,
    "precision": "mixed_bfloat16",
    "grad_clip": 1e-7,
    "use_recurrent_dropout": True,
    "recurrent_dropout_prob": 0.9,
    "use_input_dropout": True,
    "input_dropout_prob": 0.8,
    "use_output_dropout": True,
    "output_dropout_prob": 0.7,
    "random_scale_factor": 0.15,
    "augment_stroke_prob": 0.1,
    "is_training": False,
    "seed": 2**32 - 1,
    "num_per_category": 70,
    "mask_prob": 0.0,
    "split_train": 0.2,
    "edges": "temporal",
    "drawing_size": 512,
    "masking": "sketchhealer",
}
OF_LATTICE = {"method": "sketchlattice", "lattice_size": 16, "lattice_nodes": 99}


@pytest.mark.parametrize("scale_factor", [None, 22.825326508951417])
def test_config_round_trip(tmp_path, scale_factor):
    """What is written is read back exactly, for every option, beside the data's scale factor."""
    changed = OF_LATTICE | OTHERS
    assert [name for name in DEFAULTS if changed[name] == DEFAULTS[name]] == []
    path = tmp_path / hparams.CONFIG_NAME
    for options in (OTHERS, OF_LATTICE):
        write_config(path, HParams(**options), scale_factor)
        assert read_config(path) == (HParams(**options), scale_factor, {})
    assert os.listdir(tmp_path) == ["model_config.json"]


def test_config_is_readable_json(tmp_path):
    """The file has the published names, one a line, so that people and programs can read it."""
    path = tmp_path / hparams.CONFIG_NAME
    write_config(path, HParams(categories=["café"]), np.float64(2.5))
    text = path.read_text(encoding="utf-8")
    expected = {**DEFAULTS, "categories": ["café"], "scale_factor": 2.5}
    expected = {name: value for name, value in expected.items() if name not in OF_LATTICES}
    assert json.loads(text) == expected
    starts = [line.split('"')[1] for line in text.splitlines() if line.startswith(' "')]
    assert starts == list(expected)
    assert "café" in text and text.endswith("}\n")


def test_interrupted_writing_leaves_the_old_config(tmp_path, monkeypatch):
    """A crash before the new file is complete and on disk leaves the old one whole."""
    path = tmp_path / hparams.CONFIG_NAME
    write_config(path, HParams(seed=1))

    class Crash(BaseException):
        pass

    def crash(_):
        raise Crash

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(Crash):
        write_config(path, HParams(seed=2))
    assert read_config(path).hparams.seed == 1


def test_unwritable_config(tmp_path):
    """A directory that isn't there is named."""
    path = tmp_path / "absent" / hparams.CONFIG_NAME
    assert refusal(write_config, path, HParams()).startswith(f"{path}: can't be written")


@pytest.mark.parametrize("scale_factor", [0, -1.0, math.nan, math.inf, True, "2", [2], 10**400])
def test_refused_scale_factor(tmp_path, scale_factor):
    """A scale factor that would make sketches infinite or NaN is neither written nor read."""
    path = tmp_path / hparams.CONFIG_NAME
    assert "scale_factor" in refusal(write_config, path, HParams(), scale_factor)
    assert not path.exists()
    path.write_text(json.dumps({"scale_factor": scale_factor}))
    message = refusal(read_config, path)
    assert message.startswith(f"{path}: scale_factor: ") and "above 0" in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "can't be read"),
        (b"", "not a JSON file"),
        (b'{"seed": 1,', "not a JSON file"),
        (b'{"seed": \xff}', "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[1, 2]", "holds no options"),
        (b'{"seed": "1"}', "option seed: '1' is not allowed; allowed: an integer"),
        (b'{"seed": 1.0}', "option seed: 1.0 is not allowed"),
        (b'{"seed": null}', "option seed: None is not allowed"),
        (b'{"is_training": 1}', "option is_training: 1 is not allowed; allowed: True or False"),
        (b'{"learning_rate": NaN}', "option learning_rate: nan is not allowed"),
        (b'{"learning_rate": 1e999}', "option learning_rate: inf is not allowed"),
        (b'{"categories": "bee"}', "option categories: 'bee' is not allowed"),
        (b'{"batch_size": 1}', "option num_mixture: 30 is not allowed"),
        (b'{"batchsize": 1}', "unknown option 'batchsize': did you mean batch_size?"),
    ],
)
def test_refused_config(tmp_path, content, part):
    """A missing, broken or wrong file is refused with its name and what is wrong in it."""
    path = tmp_path / hparams.CONFIG_NAME
    if content is not None:
        path.write_bytes(content)
    message = refusal(read_config, path)
    assert message.startswith(f"{path}: ") and part in message


def test_unknown_keys_are_returned_on_request(tmp_path):
    """Foreign keys can be named by a caller that goes on without them; options stay checked."""
    path = tmp_path / hparams.CONFIG_NAME
    path.write_text('{"zeta": [1], "seed": 3, "alpha": null}')
    config = read_config(path, allow_unknown=True)
    assert config.hparams == HParams(seed=3)
    assert list(config.unknown.items()) == [("zeta", [1]), ("alpha", None)]
    path.write_text('{"zeta": 1, "seed": -3}')
    assert "option seed: -3" in refusal(read_config, path, allow_unknown=True)


def test_published_config():
    """The published implementation's config is read; what it has beyond our options is named."""
    config = read_config(PUBLISHED, allow_unknown=True)
    stored = json.loads(PUBLISHED.read_text())
    options = config.hparams.used()
    assert config.unknown == {"semi_percent": 0.0, "semi_balanced": False}
    ours = {
        "seed": 0,
        "mask_prob": 0.1,
        "split_train": 0.0,
        "precision": "float32",
        "drawing_size": 640,
    }
    ours |= {"method": "sp_gra2seq", "edges": "auto", "masking": "auto"}
    assert {**options, **config.unknown} == {**ours, **stored}
    assert config.scale_factor is None
    assert "unknown option 'semi_percent'" in refusal(read_config, PUBLISHED)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("num_steps=" + "9" * 400, "at most 1000000000000"),
        ("max_seq_len=1000000000000", "at most 1000000"),
        ("dec_rnn_size=1" + "0" * 30, "at most 65536"),
        ("z_size=65537", "at most 65536"),
        ("batch_size=65537", "at most 65536"),
        ("graph_number=1000000000", "at most 4096"),
        ("num_mixture=100000000", "at most 16777216"),
        ("num_per_category=10000000000", "at most 1000000000"),
        ("save_every=10000000000", "at most 1000000000"),
        ("learning_rate=1e39", "at most 1000"),
        ("grad_clip=1e39", "at most 1e+30"),
        ("split_train=0.5", "at most 0.4"),
    ],
)
def test_what_sizes_memory_has_bounds(text, part):
    """No option is accepted that no machine could hold, or that float32 can't."""
    assert part in refusal(parse_hparams, text)


def test_options_too_large_together():
    """Each is allowed alone; the line names the options and estimates the memory.

    The pictures of a batch and their activations: 65536 * 4096 nodes of 256 * 256 pixels at 49
    bytes are 862 TB; sketches of a million rows are 128 * 10^6 * (10 * 1024 + 300) * 4 = 5.4 TB.
    """
    message = refusal(parse_hparams, "batch_size=65536,graph_number=4096")
    assert message.startswith("options batch_size, graph_number and graph_picture_size: ")
    estimate = float(message.partition("needs about ")[2].partition(" TB")[0])
    assert 862 <= estimate < 900
    message = refusal(parse_hparams, "max_seq_len=1000000")
    assert message.startswith("options max_seq_len, batch_size and dec_rnn_size: ")
    assert 5.3 < float(message.partition("needs about ")[2].partition(" TB")[0]) < 5.6
    largest = HParams(batch_size=1024, dec_rnn_size=4096, max_seq_len=2000, graph_number=64)
    assert sum(largest.memory_needed().values()) < 10**12


@pytest.mark.parametrize(
    "options",
    [
        {"categories": ("a\ud800",)},
        {"dec_model": "\udc80"},
        {"\ud800": 3},
        {"num_steps": "\ud800"},
    ],
)
def test_halves_of_characters(options):
    """An unpaired surrogate can't be in a file's name, nor be printed; the line shows its code."""
    assert refusal(lambda: HParams(**options)).isprintable()
