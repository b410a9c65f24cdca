"""The work that the benchmarks share: real images prepared once in a scratch folder, and tokenizer jobs on them."""

from __future__ import annotations

from pathlib import Path

from clusters.preprocess import prepare
from components.data.prepare_config import PrepareConfig
from components.families.contract import OptimizerConfig
from components.training.config import TrainConfig
from components.training.job import TrainingJob

# The main job in half a minute of training, with both phases of the tokenizer and frequent checkpoints.
SHORT_RUN = (
    *(f"{stage}.train.checkpoint_every=10" for stage in ("judge", "tokenizer", "prior")),
    *("judge.train.steps=60", "tokenizer.train.steps=120", "prior.train.steps=120"),
    *("tokenizer.model.discriminator_start=40", "tokenizer.model.gan_start=60"),
)
FULL = Path("/usr/share/datasets/fashion-mnist")
SHIPPED = Path(__file__).parent.parent / "datasets" / "fashion-mnist"


def source() -> str:
    """The full Fashion-MNIST where Debian's package has put it, else the shipped subset."""
    return str(FULL if FULL.is_dir() else SHIPPED)


def prepared(scratch: str) -> str:
    """The folder of the prepared images below `scratch`."""
    folder = str(Path(scratch) / "images")
    if not (Path(folder) / "index.json").exists():
        prepare(source(), folder, PrepareConfig())
    return folder


def tokenizer_job(scratch: str, run: str, steps: int, log_every: int = 1) -> TrainingJob:
    """A VQ-VAE job of `steps` steps with the settings of the quick preset, in its own run folder."""
    train = TrainConfig(steps=steps, batch_size=128, log_every=log_every, checkpoint_every=10 * steps, optimizer=OptimizerConfig(lr=1e-3))
    return TrainingJob(family="vqvae", train=train, data=prepared(scratch), run=str(Path(scratch) / run))
