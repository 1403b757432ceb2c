"""Recorded numbers of the published implementation, and how tests read them.

They are in tests/golden, or in the directory that the environment variable GOLDEN_DIR names.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import import_checkpoint

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
CHECKPOINT = GOLDEN / "checkpoint_lstm"
SKETCH_SETS = Path(__file__).parents[2] / "shared" / "data"


def load(name: str) -> np.lib.npyio.NpzFile:
    """The arrays of a file."""
    return np.load(GOLDEN / name)


def load_json(name: str):
    """The content of a JSON file."""
    return json.loads((GOLDEN / name).read_text())


def text(arrays, key: str):
    """The JSON of a text entry."""
    return json.loads(str(arrays[key]))


def weights() -> dict[str, np.ndarray]:
    """All variables of the published checkpoint, by their published names."""
    tf = pytest.importorskip("tensorflow", reason="the checkpoint is read with TensorFlow")
    reader = tf.train.load_checkpoint(str(CHECKPOINT / "vector-1"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def same_entries(arrays, kind: str, name: str, ours) -> tuple[np.ndarray, np.ndarray]:
    """The recorded entries of one variable and the same entries of ours.

    Args:
        arrays: from `load`.
        kind: what is recorded: grad, clipped, after1, after3.
        name: the published name of the variable.
        ours: array of the variable's shape.

    Returns:
        Ours and the recorded ones, alike in shape: whole, or at the recorded positions.
    """
    ours = np.asarray(ours)
    if f"{kind}/{name}" in arrays:
        return ours, arrays[f"{kind}/{name}"].reshape(ours.shape)
    return ours.ravel()[arrays[f"sub_idx/{name}"]], arrays[f"{kind}_sub/{name}"]


def sketch_set(name: str) -> Path:
    """The file of a large sketch set; skips the test where it is absent."""
    path = SKETCH_SETS / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs a large sketch set, which is not part of the repository: {path}")
    return path


def published_name(variable, dec_model: str = "lstm") -> str:
    """The published name of one of our model's variables."""
    return import_checkpoint.published_name(variable.path, dec_model)
