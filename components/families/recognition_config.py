"""The options of the recognition family, and the loss with its numbers at each step. Options without effect are refused."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.config import Config
from components.families.augmentation import Augmentation
from components.functional.margins import DEFAULT_MARGINS, SCALED, Margin, annealing_weight, fixed_adacos_scale

MANY_CLASSES = 1000
SCALES = (30.0, 64.0)  # below and from so many classes on


class Annealing(Config):
    """lambda of L-Softmax and SphereFace, which diverge without it: max(floor, start / (1 + gamma step))."""

    start: float = Field(1000.0, ge=0)
    floor: float = Field(5.0, ge=0)
    gamma: float = Field(0.12, gt=0)


class RecognitionConfig(Config):
    """Shapes, the loss and its numbers, which classes take part in a step, and the threshold of comparisons."""

    image_channels: int = Field(1, gt=0)
    image_size: tuple[int, int] = Field((112, 112), description="height and width in pixels")
    num_classes: int = Field(0, ge=0, description="training classes; 0: as many as the data has")
    classes: str = Field("", description="fingerprint of the names of the training classes; empty: the data's")
    backbone: Literal["compact", "gabor", "resnet18", "resnet50"] = Field(
        "compact", description="gabor: frozen filters and a learned linear map, for a few dozen people"
    )
    widths: tuple[int, ...] = Field((32, 64, 128), min_length=1, description="compact: channels after each halving")
    depths: tuple[int, ...] = Field((1, 1, 1), min_length=1, description="compact: blocks at each width")
    embedding_dim: int = Field(128, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1, description="of the last map, while training")
    photometric: Literal["none", "standardise", "equalise", "difference_of_gaussians", "self_quotient"] = Field(
        "none", description="takes the light out of every picture, in training and in use"
    )
    augment: Augmentation = Augmentation()
    virtual_identities: int = Field(1, ge=1, description="classes made of each: the pictures as they are, and bent in fixed ways")
    virtual_reach: float | None = Field(
        None, gt=0, lt=0.5, description="how far bending moves points, as a share of half a side; none: 0.12"
    )
    loss: Literal["softmax", "l_softmax", "sphereface", "normface", "adacos", "cosface", "arcface", "combined"] = "arcface"
    scale: float | None = Field(None, gt=0, description="s of the losses on cosines; none: 64 from 1,000 classes on, else 30")
    m1: float | None = Field(None, description="factor of the angle (L-Softmax, SphereFace, combined); none: the paper's")
    m2: float | None = Field(None, description="added to the angle, in radians (ArcFace, combined); none: the paper's")
    m3: float | None = Field(None, description="taken from the cosine (CosFace, combined); none: the paper's")
    easy_margin: bool = Field(False, description="margin only where the cosine is above 0")
    straight_through: bool = Field(False, description="the plain cosine's gradient under the margin's value")
    margin_warmup_steps: int = Field(0, ge=0, description="the margin grows linearly over so many steps")
    annealing: Annealing | None = Field(None, description="L-Softmax and SphereFace; none: the papers'")
    sample_rate: float = Field(1.0, gt=0, le=1, description="share of the other classes in a step's softmax")
    move_unsampled: bool = Field(
        True, description="momentum and weight decay move the rows that a step left out; false is cheaper with millions, and learns slower"
    )
    flip_test: bool = Field(True, description="an embedding is of the picture and its mirror image")
    threshold: float | None = Field(None, ge=-1, le=1, description="cosine from which two pictures count as one identity")
    false_accept_rate: float | None = Field(None, gt=0, lt=1, description="at which the threshold was chosen")

    @property
    def head_rows(self) -> int:
        """Classes of the softmax: the virtual identities of every training class."""
        return self.num_classes * self.virtual_identities

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"widths={self.widths} and depths={self.depths} must have one entry for each stage; make them equally long")
        if self.backbone != "compact":
            for name in ("widths", "depths"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no effect on backbone={self.backbone}; leave it out or choose compact"
                    )
        if self.backbone == "gabor" and self.image_channels != 1:
            raise ValueError(f"backbone=gabor reads grey pictures, these have {self.image_channels} channels; prepare with channels=1")
        if self.virtual_reach is not None and self.virtual_identities == 1:
            raise ValueError(f"virtual_reach={self.virtual_reach} has no effect with virtual_identities=1; leave it out")
        if not self.move_unsampled and self.sample_rate == 1:
            raise ValueError("move_unsampled=False has no effect with sample_rate=1; leave it out")
        if self.annealing is not None and self.loss not in ("l_softmax", "sphereface"):
            raise ValueError(f"annealing has no effect on loss={self.loss}; leave it out")
        if self.margin_warmup_steps and not DEFAULT_MARGINS[self.loss]:
            raise ValueError(
                f"margin_warmup_steps={self.margin_warmup_steps} has no effect on loss={self.loss}, which has no margin; leave it out"
            )
        if self.scale is not None and self.loss == "adacos":
            raise ValueError(f"scale={self.scale} has no effect on loss=adacos, which computes it; leave it out or choose normface")
        if (self.threshold is None) != (self.false_accept_rate is None):
            raise ValueError(f"threshold={self.threshold} and false_accept_rate={self.false_accept_rate} go together; set both or neither")
        margin_of(self, 0)
        return self


def margin_of(config: RecognitionConfig, step: int) -> Margin:
    """The loss with its numbers at one step; raises UserError when they are out of range or without effect."""
    given = {name: value for name in ("m1", "m2", "m3") if (value := getattr(config, name)) is not None}
    scale = config.scale
    if config.loss in SCALED and scale is None:
        classes = config.head_rows or 3  # 0: the data are not known yet
        scale = fixed_adacos_scale(classes) if config.loss == "adacos" else SCALES[config.head_rows >= MANY_CLASSES]
    lambda_ = 0.0
    if config.loss in ("l_softmax", "sphereface"):
        annealing = config.annealing or Annealing()
        lambda_ = annealing_weight(step, annealing.start, annealing.floor, annealing.gamma)
    return Margin(
        config.loss,
        scale,
        **DEFAULT_MARGINS[config.loss] | given,
        easy_margin=config.easy_margin,
        straight_through=config.straight_through,
        annealing=lambda_,
        strength=min(1.0, (step + 1) / config.margin_warmup_steps) if config.margin_warmup_steps else 1.0,
    )
