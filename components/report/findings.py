"""What a stage leaves for people to see: scores beside what they are compared with, pictures and histograms, in `findings.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components import storage
from components.config import Config

FILE = "findings.json"


class Score(Config):
    """One number, beside baselines and reference points in the same unit."""

    name: str
    value: float
    better: Literal["lower", "higher"]
    unit: str = Field("", description="%: the values are shares between 0 and 1")
    target: float | None = Field(None, description="at most (lower is better) or at least (higher is better)")
    beside: dict[str, float] = Field(default_factory=dict, description="what it is compared with: name -> value")
    note: str = ""

    @property
    def meets_target(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target


class Picture(Config):
    """A PNG file of the artifact: a grid whose rows have names."""

    file: str
    title: str
    caption: str = ""
    row_names: tuple[str, ...] = ()


class Histogram(Config):
    """Shares, in the order in which they are drawn."""

    title: str
    caption: str = ""
    shares: tuple[float, ...]


class Findings(Config):
    """What one artifact has to show."""

    scores: tuple[Score, ...] = ()
    pictures: tuple[Picture, ...] = ()
    histograms: tuple[Histogram, ...] = ()

    def write(self, url: str) -> None:
        """Leaves them in the folder `url`."""
        storage.write_json(storage.join(url, FILE), self.to_json())

    @classmethod
    def read(cls, url: str) -> Findings:
        """Those of the folder `url`, empty where it has none; raises UserError for a file that is not of this kind."""
        place = storage.join(url, FILE)
        return cls.parse(storage.read_json(place), place) if storage.exists(place) else cls()
