"""Recorded numbers of the baselines, and our encoders with the weights that they belong to."""

import json
import os
import re
from pathlib import Path

import numpy as np

import utils
from hparams import HParams
from model import SPGra2Seq

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
FILES = {"sp_gra2seq": "edges"}  # of methods that the file is not named for
PROBABILITIES = {"0": 0.0, "1": 0.1, "3": 0.3}  # by the last digit of a set's name
CONVOLUTIONS = {
    "sp_gra2seq": "conv{}",
    "sketchhealer": "feature_extractor.featureGenerator.conv{}.{}",
    "dc_gra2seq": "extracter.{}.{}",
}
LAYERS = {
    "sp_gra2seq": {},
    "sketchhealer": {
        "node_norm": "feature_extractor.bn1",
        "graph_norm": "gcn.bn1",
        "gcn": "gcn",
        "mu": "fc_mu",
        "log_var": "fc_sigma",
    },
    "sketchlattice": {
        "graph_norm": "norm1",
        "x": "emb.embX",
        "y": "emb.embY",
        "perceptron_1": "block.0",
        "perceptron_2": "block.3",
        "mu": "fc_mu",
        "log_var": "fc_sigma",
    },
    "dc_gra2seq": {
        "node_norm": "norm.1",
        "graph_norm": "aggr2_out.0",
        "gcn_1": "aggr1.0",
        "gcn_2": "aggr1.2",
        "mu": "mu_predictor",
        "log_var": "logvar_predictor",
    },
}
STATISTICS = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
AS_THEY_STAND = ("gcn.weight", "weight_relative", "emb.embX.weight", "emb.embY.weight")


def load(name: str) -> np.lib.npyio.NpzFile:
    """The arrays of golden_NAME.npz, in `baselines` or, as the full set is, without a folder."""
    path = GOLDEN / "baselines" / f"golden_{name}.npz"
    return np.load(path if path.exists() else GOLDEN / path.name)


def meta(arrays) -> dict:
    """The JSON entry of a file."""
    return json.loads(str(arrays["meta"]))


def published_name(path: str, method: str) -> str:
    """The recorded name of one of our encoder's variables."""
    layer, name = path.split("/")
    if method == "sp_gra2seq":
        return path if layer.startswith("BatchNorm") else name
    if layer == "encoder":
        number, bias = re.fullmatch(r"conv(\d)(_bias)?", name).groups()
        number = 2 * int(number) if method == "dc_gra2seq" else int(number) + 1
        return CONVOLUTIONS[method].format(number, "bias" if bias else "weight")
    if name in STATISTICS:
        return f"{LAYERS[method][layer]}.{STATISTICS[name]}"
    if name == "relative_positions":
        return "weight_relative"
    kind = "bias" if name.endswith("_bias") else "weight"
    return f"{LAYERS[method][name.removesuffix('_bias')]}.{kind}"


def to_keras(value: np.ndarray, name: str, method: str) -> np.ndarray:
    """A recorded array in the layout of our variable."""
    if method == "sp_gra2seq" or name in AS_THEY_STAND:
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_recorded(value: np.ndarray, name: str, method: str) -> np.ndarray:
    """An array of ours in the recorded layout."""
    if method == "sp_gra2seq" or name in AS_THEY_STAND:
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


class Reference:
    """One method's recorded numbers and our encoder with its weights.

    Args:
        method: of the encoder.
        edges: which of its edges; "" where there is no choice.
    """

    def __init__(self, method: str, edges: str):
        self.method, self.edges = method, edges
        self.arrays = load(FILES.get(method, method))
        self.info = meta(self.arrays)
        options = {"edges": edges} if edges else {}
        if method != "sketchlattice":
            _, nodes, size, _ = self.arrays["m01/patches"].shape
            options |= {"graph_number": nodes, "graph_picture_size": size}
        if method == "sketchhealer":
            options["drawing_size"] = 512
        z_size = self.arrays["c1"].shape[1]
        self.hparams = HParams(method=method, z_size=z_size, dec_rnn_size=2, **options)
        self.encoder = SPGra2Seq(self.hparams).encoder
        for variable in self.encoder.weights:
            name = published_name(variable.path, method)
            variable.assign(to_keras(self.arrays[f"var/{name}"], name, method))

    @property
    def sets(self) -> list[str]:
        """The names of the inputs."""
        lattice_sets = ["p00", "c01", "c03", "d01", "d03"]
        return lattice_sets if self.method == "sketchlattice" else ["m00", "m01", "m03"]

    def sketches(self) -> list[np.ndarray]:
        """The six sketches of a batch."""
        places = self.info["net_sketches"] if "net_sketches" in self.info else range(6)
        if self.method == "sp_gra2seq":
            places = range(6)
        return [self.arrays[f"sketch_{i:03}"] for i in places]

    def masking(self, which: str) -> dict:
        """Probability, numbers and approach of a set."""
        prob = PROBABILITIES[which[-1]]
        if self.method == "sketchlattice":
            approach = "lattice" if which[0] == "c" else "patch"
            seeds = list(self.arrays["c_seeds" if which[0] == "c" else "d_seeds"])
        elif self.method == "sketchhealer":
            approach = "sketchhealer"
            seeds = [
                healer_seeds(sketch, numbers, self.hparams)
                for sketch, numbers in zip(self.sketches(), self.arrays["net_seeds"], strict=True)
            ]
        else:
            approach, seeds = "patch", list(self.arrays["net_seeds"])
        return {"mask_prob": prob, "seeds": seeds, "masking": approach}

    def __call__(self, which: str, mode: str, name: str) -> np.ndarray | None:
        """A recorded output of a set, if it is there: `name` in "eval64" or "train64"."""
        prefix = f"{which}/{self.edges}" if self.edges else which
        for key in (f"{prefix}/{mode}/{name}", f"{prefix}/{name}"):
            if key in self.arrays:
                return self.arrays[key]
        return None

    def gradients(self, which: str, mode: str) -> dict[str, tuple[np.ndarray | None, np.ndarray]]:
        """Of each variable's name the recorded positions (None: all) and the gradient there."""
        found = {}
        for variable in self.encoder.trainable_variables:
            name = published_name(variable.path, self.method)
            whole, part = self(which, mode, f"grad/{name}"), self(which, mode, f"grad_sub/{name}")
            if whole is not None:
                found[name] = None, whole
            elif part is not None:
                found[name] = self.arrays[f"sub_idx/{name}"], part
        return found


def healer_seeds(sketch: np.ndarray, numbers: np.ndarray, hparams: HParams) -> np.ndarray:
    """One number for each patch, of numbers of which a patch that sticks out consumes none."""
    (layout,) = utils.lay_out(
        [sketch], hparams.graph_picture_size, drawing_size=hparams.drawing_size
    )
    inside = layout.squares[: hparams.graph_number - 1, 0] >= 0
    seeds = np.ones(len(inside))
    seeds[inside] = numbers[: inside.sum()]
    return seeds


def unpacked(canvas: np.ndarray) -> np.ndarray:
    """A recorded picture, bool (256, 256)."""
    return np.unpackbits(canvas, axis=1).astype(bool)


def points_of(ink: np.ndarray) -> np.ndarray:
    """The lattice's points in a recorded picture, pixel by pixel: uint8 (N, 2), x and y."""
    points = []
    for is_column, picture in enumerate((ink, ink.T)):
        for at in range(4, 256, 8):
            line = picture[at].tolist()
            begins = [p for p in range(256) if line[p] and not (p and line[p - 1])]
            points += [(at, p) if is_column else (p, at) for p in begins]
    return np.array(points, np.uint8).reshape(-1, 2)
