"""Resident memory over many small updates: what grows with their number shows here.

python benchmarks/memory.py [--steps=2000]

Trains a tiny model on doodles, as train.py does, checkpoints and validations included, and prints
the process's resident memory every 200 updates. KERAS_BACKEND chooses the backend.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags

import train
from doodles import write_doodles
from support import cli
from support.metrics_log import MetricsLog

EVERY = 200
OPTIONS = (
    "categories=[fish,tree],batch_size=4,dec_rnn_size=8,z_size=4,num_mixture=4,graph_number=6,"
    "graph_picture_size=8,max_seq_len=60,learning_rate=0.0001"
)


def resident_mib() -> float:
    """Resident memory of this process, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Trains and prints."""
    steps = flags.FLAGS.steps
    write = MetricsLog.write

    def write_and_weigh(self, split, *args):
        write(self, split, *args)
        if split == "train" and self.state.total_steps % EVERY == 0:
            print(f"update {self.state.total_steps}: {resident_mib():.1f} MiB", flush=True)

    MetricsLog.write = write_and_weigh
    train.PATIENCE = steps  # the tiny model may stop improving
    with tempfile.TemporaryDirectory() as folder:
        write_doodles(folder, categories=("fish", "tree"), train=200, valid=8, test=8)
        train.train(
            folder, Path(folder) / "model", f"{OPTIONS},num_steps={steps}", save_minutes=0.2
        )


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 2000, "Updates.", EVERY)
    cli.run(main)
