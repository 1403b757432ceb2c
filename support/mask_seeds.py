"""The uniform numbers that decide what is erased from each sketch in sampling.

Most ways of masking take them from one file, sketch after sketch, so that everybody heals the same
corrupted sketches.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from batches import count_seeds
from hparams import HParams
from support.files import UserError, read_npy
from support.random_streams import MASKING_STREAM

RANDOM_SEED = Path(__file__).parents[1] / "random_seed.npy"
OWN_SEEDS = ("lattice",)  # ways of masking that no file would last for


def share_seeds(random_seed: str | Path, counts: Sequence[int]) -> list[np.ndarray]:
    """The first seeds of the file for the first sketch, the next for the second, and so on.

    Args:
        random_seed: see `read_seeds`.
        counts: patches of each sketch.

    Raises:
        UserError: the seeds run out, or their file is not readable.
    """
    seeds = read_seeds(random_seed)
    ends = np.cumsum([0, *counts]).tolist()
    if ends[-1] > len(seeds):
        raise UserError(
            f"{random_seed}: holds {len(seeds)} seeds, masking these sketches takes {ends[-1]}; "
            "use a longer file or a smaller num_per_category"
        )
    return [seeds[start:end] for start, end in pairwise(ends)]


def own_seeds(
    hparams: HParams, masking: str, seed: int, keys: list[tuple[int, ...]]
) -> list[np.ndarray]:
    """For each sketch numbers of its own, which follow from the seed and its key."""
    count = count_seeds(hparams, masking)
    return [np.random.default_rng([seed, MASKING_STREAM, *key]).random(count) for key in keys]


def read_seeds(path: str | Path) -> np.ndarray:
    """Uniform numbers in [0, 1), 1-D.

    Raises:
        UserError: the file is missing, broken, or holds something else.
    """
    seeds = read_npy(path)
    good = seeds.ndim == 1 and seeds.dtype.kind == "f"
    if not (good and ((seeds >= 0) & (seeds <= 1)).all()):
        raise UserError(f"{path}: seeds are a 1-D array of numbers from 0 to 1")
    return seeds
