"""What the figures of `figures.py` are made from: sketches, their codes, their patches."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

import batches
import graphs
import inference
from dataset import Split
from hparams import HParams
from model import SPGra2Seq
from support import cli
from support.backend import compiled, ops
from support.plots import Page
from support.sample_files import scope

Figure = tuple[Page, dict[str, np.ndarray]]  # what is seen, and the numbers that it shows


class Patch(NamedTuple):
    """Which patch: its sketch's position among the sketches used, and its place in drawing it."""

    sketch: int
    place: int


@dataclass(frozen=True)
class Material:
    """N sketches and what a model makes of them.

    Attributes:
        model: the model.
        split: all sketches of the split.
        members: int64 (N,), positions in the split of the sketches used.
        codes: float32 (N, Z).
        patches: those that show ink, sketch by sketch; none where they were not wanted.
        embeddings: float32 (patches, E).
        counts: int64 (N,), patches of each sketch, blank ones included.
        adjacency: float32 (N, G, G), the edges between the whole sketch and its patches.
        steps: most rows of a sketch that is drawn.
        seed: of every choice.
        scope: which sketches these are, for titles.
    """

    model: SPGra2Seq
    split: Split
    members: np.ndarray
    codes: np.ndarray
    patches: list[Patch]
    embeddings: np.ndarray
    counts: np.ndarray
    adjacency: np.ndarray
    steps: int
    seed: int
    scope: str

    @property
    def labels(self) -> np.ndarray:
        """The category of each sketch, int64 (N,)."""
        return self.split.category[self.members].astype(np.int64)

    @property
    def keys(self) -> np.ndarray:
        """Category and index of each sketch, int64 (N, 2)."""
        return np.stack([self.labels, self.split.index[self.members]], axis=1)

    @property
    def names(self) -> tuple[str, ...]:
        """The model's categories."""
        return tuple(self.model.hparams.categories)

    def sketch(self, i: int) -> np.ndarray:
        """Stroke-3 (n, 3), in model units."""
        return self.split.sketch(int(self.members[i]))

    def pictures(self, wanted: list[Patch]) -> np.ndarray:
        """The pictures of some patches, uint8 (n, S, S), 255 being ink."""
        nodes, _ = batches.make_graphs([self.sketch(p.sketch) for p in wanted], self.model.hparams)
        return np.stack([nodes["patches"][i, 1 + p.place] for i, p in enumerate(wanted)])


def has_patches(hparams: HParams) -> bool:
    """Whether the nodes of a method are pictures of patches."""
    return "graph_number" in hparams.traits.options


def gather(
    model: SPGra2Seq,
    split: Split,
    name: str,
    num_per_category: int,
    *,
    with_patches: bool,
    steps: int,
    seed: int,
    workers: int | None,
) -> Material:
    """Encodes the first sketches of each category.

    Args:
        model: the model.
        split: the sketches.
        name: of the split.
        num_per_category: the first so many rows of the split's file.
        with_patches: whether embeddings and edges are needed.
        steps: see `Material`.
        seed: see `Material`.
        workers: threads that crop; None: half as many as there are cores.
    """
    members = split.in_first_rows(num_per_category)
    codes = np.empty((len(members), model.hparams.z_size), np.float32)
    patches, embeddings, counts, adjacency = [], [], [], []

    def embed_patches(pictures):
        return graphs.embed_patches(model.encoder.patch_encoder, pictures)

    embed = compiled(embed_patches, model)
    sketches = [split.sketch(i) for i in members.tolist()]
    with cli.Progress("Encoding", len(sketches)) as progress:
        for found in inference.encode_sketches(model, sketches, workers=workers):
            codes[found.key] = found.code
            if with_patches:
                pictures = found.graph.patches
                inked = np.flatnonzero(pictures[1:].any(axis=(1, 2)))
                patches += [Patch(found.key, place) for place in inked.tolist()]
                embeddings.append(ops.convert_to_numpy(embed(pictures[None]))[0, 1 + inked])
                counts.append(found.graph.n_patches)
                adjacency.append(found.adjacency)
            progress.update()
    return Material(
        model,
        split,
        members,
        codes,
        patches,
        np.concatenate(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        np.array(counts, np.int64),
        np.array(adjacency, np.float32),
        steps,
        seed,
        scope(split, members, num_per_category, name),
    )
