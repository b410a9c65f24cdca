"""What `raymill prepare` may be told: how pictures are fitted, which rows are taken and held out, how shards are cut."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from components.config import Config

Side = Annotated[int, Field(ge=1, le=16_384)]


class PictureConfig(Config):
    """How a picture of any size and colour becomes a row."""

    size: tuple[Side, Side] | None = Field(
        None, description="height and width in pixels; one number gives a square; none keeps the source's"
    )
    fit: Literal["crop", "stretch"] | None = Field(None, description="with size: cut the longer side to shape (the default), or distort")
    channels: Literal[1, 3] | None = Field(None, description="1 grey, 3 colour; none keeps the source's")

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _fit_needs_size(self) -> PictureConfig:
        if self.fit is not None and self.size is None:
            raise ValueError("fit has an effect only with size")
        return self

    @property
    def changes(self) -> bool:
        """Whether anything but the pictures as they are was asked for."""
        return self.size is not None or self.channels is not None


class PrepareConfig(PictureConfig):
    """Everything that, with the source, decides the bytes of a data set."""

    columns: tuple[str, ...] = Field((), description="Parquet and npz: the columns to take; none takes all")
    class_names: tuple[str, ...] = Field((), description="names of labels 0, 1, ...; none numbers them; folders of pictures name their own")
    holdout: float | None = Field(None, gt=0, lt=1, description="share of rows held out as split test, 0.1 where the source has none")
    limit: int | None = Field(None, ge=1, description="rows to take of each split, chosen at random by seed; none takes all")
    seed: int = Field(0, ge=0, description="decides which rows holdout and limit choose")
    rows_per_shard: int = Field(16_384, ge=1, description="the most rows in one shard")
    shard_mib: int = Field(64, ge=1, le=2048, description="the most MiB in one shard; a worker that makes one holds it in memory")
    checksums: dict[str, str] = Field(
        default_factory=dict, description="file -> SHA-256 of what the source consists of; needed for http(s)"
    )

    @field_validator("checksums")
    @classmethod
    def _are_sha256(cls, value: dict[str, str]) -> dict[str, str]:
        for file, checksum in value.items():
            if not re.fullmatch(r"[0-9a-f]{64}", checksum):
                raise ValueError(f"the checksum of {file!r} must be 64 hexadecimal digits in lower case")
        return value

    @field_validator("class_names")
    @classmethod
    def _are_unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must differ from each other")
        return value

    @property
    def picture(self) -> PictureConfig:
        """The part that changes the content of rows, and so of shards."""
        return PictureConfig(size=self.size, fit=self.fit, channels=self.channels)
