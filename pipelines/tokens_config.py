"""The config of the pipeline `tokens`: one section a stage, and what must go together."""

from __future__ import annotations

from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, model_validator

from components import storage
from components.config import Config
from components.data.prepare_config import PrepareConfig
from components.evaluation.two_stage import ScoresConfig
from components.families.prior import PriorSampler
from pipelines.settings import Training

SHIPPED = Path(__file__).parent.parent / "datasets" / "fashion-mnist"
LABEL_FILE = "train-labels-idx1-ubyte.gz"
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class CodesConfig(Config):
    batch_size: int = Field(256, gt=0, description="pictures encoded at once")


class SamplesConfig(Config):
    per_class: int = Field(100, gt=1, description="samples of each class; scores use them all")
    seed: int = Field(0, ge=0)
    sampler: PriorSampler = PriorSampler()

    @model_validator(mode="after")
    def _every_class_is_drawn(self) -> Self:
        if self.sampler.label is not None:
            raise ValueError(f"sampler.label={self.sampler.label}: the pipeline draws every class; use raymill sample for one")
        return self


class PicturesConfig(Config):
    """Where pictures are, and how they become a data set: what every pipeline over pictures is told."""

    data: str = Field(str(SHIPPED), description="pictures: IDX files, class folders, Parquet, WebDataset tars or .npz")
    images: PrepareConfig = PrepareConfig()


class TokensConfig(PicturesConfig):
    """One section a stage."""

    judge: Training = Training(family="classifier")
    features: Training | None = None
    reconstructor: Training | None = None
    tokenizer: Training = Training(family="vqgan")
    codes: CodesConfig = CodesConfig()
    prior: Training = Training(family="prior")
    samples: SamplesConfig = SamplesConfig()
    scores: ScoresConfig = ScoresConfig()

    @model_validator(mode="after")
    def _stages_go_together(self) -> Self:
        expected = {
            "judge": ("classifier",),
            "features": ("classifier",),
            "reconstructor": ("vqvae",),
            "tokenizer": ("vqvae", "vqgan"),
            "prior": ("prior",),
        }
        for name, families in expected.items():
            section: Training | None = getattr(self, name)
            if section is not None and section.family not in families:
                raise ValueError(f"{name}.family={section.family} cannot do that stage's work; choose {' or '.join(families)}")
        made, read = getattr(self.tokenizer.model, "num_codes", 0), getattr(self.prior.model, "code_count", 0)
        if made != read:
            raise ValueError(f"tokenizer.model.num_codes={made} and prior.model.code_count={read} differ; set both to the same number")
        perceptual = getattr(self.tokenizer.model, "perceptual_weight", 0.0)
        if bool(perceptual) != (self.features is not None):
            raise ValueError(f"tokenizer.model.perceptual_weight={perceptual} and the section features go together: set both or neither")
        return self


P = TypeVar("P", bound=PicturesConfig)


def with_class_names(config: P) -> P:
    """Fashion-MNIST's own files only number its classes; a folder of that name with such files gets their names, unless some are given."""
    last = config.data.rstrip("/").rsplit("/", 1)[-1]
    if config.images.class_names or last != "fashion-mnist" or not storage.exists(storage.join(config.data, LABEL_FILE)):
        return config
    return config.model_copy(update={"images": config.images.model_copy(update={"class_names": FASHION_CLASSES})})
