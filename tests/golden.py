"""Reference numbers of the published implementation, where a checkout has them beside it."""

import json
from pathlib import Path

import numpy as np
import pytest

import import_checkpoint

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


def published_name(variable, dec_model: str = "lstm") -> str:
    """The published name of one of our model's variables."""
    return import_checkpoint.published_name(variable.path, dec_model)
