"""The config of the pipeline `reflow`: one section a stage, and what must go together."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.config import Config
from components.evaluation.few_steps import FewStepsConfig
from components.families.denoising_sampler import DenoisingSampler
from components.training.config import TrainConfig
from components.training.randomness import LANE
from pipelines.settings import Training
from pipelines.tokens_config import PicturesConfig


class PairsConfig(Config):
    """How many pairs the trained flow simulates, and how exactly."""

    count: int = Field(20_000, gt=0, description="pairs of noise and the picture it becomes")
    seed: int = Field(1, ge=0, description="other than that of the scored samples, so that those begin with noise never trained on")
    sampler: DenoisingSampler = DenoisingSampler(sampler="rk4", steps=10)
    rows_per_shard: int | None = Field(None, gt=0, multiple_of=LANE, description="pairs of a shard; none: as many as make a handy file")

    @model_validator(mode="after")
    def _simulates_what_the_flow_learnt(self) -> Self:
        if self.sampler.label is not None:
            raise ValueError(f"sampler.label={self.sampler.label}: the flow is trained again on every class; leave it out")
        if self.sampler.steps == 1:
            raise ValueError("sampler.steps=1: one step does not follow the flow, and pairs of it teach nothing; give more, such as 10")
        if self.sampler.guidance != 1:
            raise ValueError(f"sampler.guidance={self.sampler.guidance}: the stages are compared without guidance; leave it out")
        return self


class AgainConfig(Config):
    """How the flow is trained again on its own pairs. What the model is, it has from the flow."""

    train: TrainConfig = TrainConfig()


class ReflowConfig(PicturesConfig):
    """One section a stage."""

    judge: Training = Training(family="classifier")
    flow: Training = Training(family="rectified_flow")
    pairs: PairsConfig = PairsConfig()
    reflow: AgainConfig = AgainConfig()
    distilled: AgainConfig | None = AgainConfig()
    scores: FewStepsConfig = FewStepsConfig()

    @model_validator(mode="after")
    def _stages_go_together(self) -> Self:
        for name, family in (("judge", "classifier"), ("flow", "rectified_flow")):
            section: Training = getattr(self, name)
            if section.family != family:
                raise ValueError(f"{name}.family={section.family} cannot do that stage's work; choose {family}")
        if self.pairs.seed == self.scores.seed:
            raise ValueError(
                f"pairs.seed={self.pairs.seed} and scores.seed={self.scores.seed}: the scored samples would begin with noise that the "
                f"reflow was trained on; give them different seeds"
            )
        if self.distilled is None and self.scores.targets.distilled is not None:
            raise ValueError(f"scores.targets.distilled={self.scores.targets.distilled} has no effect without the section distilled")
        return self
