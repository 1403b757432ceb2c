"""The preview of a run: some validation sketches, corrupted and redrawn."""

import numpy as np

import gallery
import inference
from batches import count_seeds
from dataset import Dataset, Split
from hparams import HParams
from model import SPGra2Seq

PREVIEWED, COLUMNS = 16, 4  # sketches of a preview, and how many of them in a row


def draw_preview(model: SPGra2Seq, data: Dataset, hparams: HParams) -> np.ndarray:
    """Some validation sketches, corrupted and redrawn: uint8 (h, w, 3).

    What is erased and the drawing's random numbers are the same each time.
    """
    split = data.splits["valid"]
    members = previewed(split)
    sketches = [split.sketch(i) for i in members]
    rng = np.random.default_rng(hparams.seed)
    masking = hparams.training_masking
    seeds = [rng.random(count_seeds(hparams, masking)) for _ in members]
    keys = [split.key(i) for i in members]
    encoded = list(
        inference.encode_sketches(
            model,
            sketches,
            mask_prob=hparams.mask_prob,
            seeds=seeds,
            masking=masking,
            keys=keys,
            workers=1,
            jit=False,
        )
    )
    drawn = inference.generate(
        model,
        [(found.key, found.code) for found in encoded],
        data.max_seq_len,
        seed=hparams.seed,
        batch_size=len(members),
        jit=False,
    )
    healed = {found.key: found.sketch for found in drawn}
    examples = [
        gallery.Example(
            category=hparams.categories[found.key[0]],
            index=found.key[1],
            original=sketch,
            corrupted=found.graph.picture,
            generated=healed[found.key],
        )
        for found, sketch in zip(encoded, sketches, strict=True)
    ]
    return gallery.gallery(examples, per_row=COLUMNS, by_category=False)


def previewed(split: Split) -> list[int]:
    """Positions of the first sketches of each category; of many, of some evenly chosen ones."""
    shown = np.unique(split.category)
    if len(shown) > PREVIEWED:
        shown = shown[np.linspace(0, len(shown) - 1, PREVIEWED).round().astype(int)]
    among = np.flatnonzero(np.isin(split.category, shown))
    return split.first_of_each(PREVIEWED // len(shown), among)
