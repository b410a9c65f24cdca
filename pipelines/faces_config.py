"""The config of the pipeline `faces`: one section a stage, and what must go together."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.config import Config
from components.data.identities import IdentityFold
from components.faces.aligner import FaceConfig, Several
from components.faces.detect import DetectorConfig
from pipelines.settings import Training
from pipelines.sweep_config import SweepConfig

Channels = Literal[1, 3]


class AlignedConfig(Config):
    """How faces are found in the pictures and cut out of them."""

    size: int = Field(56, ge=16, le=512, description="height and width of an aligned face in pixels; the template's are 112")
    channels: Channels = Field(1, description="1 grey, 3 colour")
    faces: FaceConfig = FaceConfig(detector=DetectorConfig(padding=20))
    several: Several = Field("error", description="error, or largest: the largest of several faces in a picture")


class RecognizerConfig(Config):
    """How the best trial's settings are trained again, and the threshold chosen."""

    steps: int = Field(800, gt=0)
    seed: int = Field(1, ge=0, description="other than the trials', so that luck of the draw is not carried over")
    false_accept_rate: float = Field(0.01, gt=0, lt=1, description="of the threshold, on the development people")


class VerificationConfig(Config):
    """What the report holds the model to."""

    targets: dict[Literal["eer", "tar"], float] = Field(default_factory=dict, description="highest EER, lowest TAR at a FAR of 1 %")


class FacesConfig(Config):
    """One section a stage; `data` is a folder with a folder of pictures for each person."""

    data: str = Field("people", description="DATA/NAME/*.jpg; `raymill fetch orl people` gets forty")
    aligned: AlignedConfig = AlignedConfig()
    people: IdentityFold = IdentityFold(development=8)
    margins: SweepConfig = SweepConfig(family="recognition")
    usual: Training = Training(family="recognition")
    softmax: Training = Training(family="recognition")
    recognizer: RecognizerConfig = RecognizerConfig()
    verification: VerificationConfig = VerificationConfig()

    @model_validator(mode="after")
    def _stages_go_together(self) -> Self:
        if not self.people.development:
            raise ValueError("people.development=0 leaves nobody to judge margins and choose the threshold by; give at least 2")
        for name in ("margins", "usual", "softmax"):
            section: Training = getattr(self, name)
            if section.family != "recognition":
                raise ValueError(f"{name}.family={section.family} cannot do that stage's work; choose recognition")
        return self
