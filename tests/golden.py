"""Reference numbers of the published implementation, where a checkout has them beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[2] / "shared"


def load(name: str):
    """The arrays of ../shared/golden/NAME; skips the test where they are absent."""
    path = SHARED / "golden" / name
    if not path.exists():
        pytest.skip(f"no reference numbers here: {path} is absent")
    return np.load(path)


def text(arrays, key: str):
    """The JSON of a text entry."""
    return json.loads(str(arrays[key]))


PUBLISHED = {
    **{f"encoder/conv{i}": f"encoders/conv{i}/filter" for i in range(7)},
    **{
        f"{norm}/{ours}": f"encoders/{norm}/{ours}"
        for norm in ("BatchNorm", "BatchNorm_1")
        for ours in ("gamma", "beta", "moving_mean", "moving_variance")
    },
    "graph/gcn_weight_1": "encoders/gcn_weight_1",
    "graph/gcn_weight_2": "encoders/gcn_weight_2",
    "graph/fc_mu": "encoders/fc_mu/linear/fc_w",
    "graph/fc_sigma2": "encoders/fc_sigma2/linear/fc_w",
    "clusters/latent_mu": "latent_mu",
    "decoder/init_state": "decoder/init_state/linear/fc_w",
    "decoder/fc": "decoder/decoder/fc/linear/fc_w",
    "cell/W_xh": "decoder/decoder/rnn/LSTMCell/W_xh",
    "cell/W_hh": "decoder/decoder/rnn/LSTMCell/W_hh",
    "cell/bias": "decoder/decoder/rnn/LSTMCell/bias",
}


def published_name(variable) -> str:
    """The published name of one of our model's variables."""
    return "SP-gra2seq/" + PUBLISHED[variable.path]
