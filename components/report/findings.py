"""What a stage leaves for people to see: scores beside what they are compared with, tables, charts and pictures, in `findings.json`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components import storage
from components.config import Config

FILE = "findings.json"
MAX_SERIES = 6  # as many as a reader tells apart


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


class Series(Config):
    """Points of a chart, joined in their order or, when not `joined`, as marks alone."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    joined: bool = True

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if not self.x or len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r} has {len(self.x)} x and {len(self.y)} y; expected as many, and one at least")
        return self


class ScalarField(Config):
    """A number at every place of a grid: `values` has a row for each y, with a number for each x."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _a_grid(self) -> Self:
        if min(len(self.x), len(self.y)) < 2 or [len(row) for row in self.values] != [len(self.x)] * len(self.y):
            raise ValueError(
                f"a field over {len(self.x)} x and {len(self.y)} y, two of each at least, needs as many rows of as many values"
            )
        return self


class Chart(Config):
    """Lines or scattered points over two axes with names; both axes have one scale where a field lies below."""

    title: str
    caption: str = ""
    x_label: str
    y_label: str
    series: tuple[Series, ...] = Field(min_length=1, max_length=MAX_SERIES)
    field: ScalarField | None = Field(None, description="shaded below the series, darker where it is higher")
    log_x: bool = False
    log_y: bool = False

    @model_validator(mode="after")
    def _positive_on_logarithmic_axes(self) -> Self:
        for axis, logarithmic in (("x", self.log_x), ("y", self.log_y)):
            lowest = min(min(getattr(each, axis)) for each in self.series)
            if logarithmic and lowest <= 0:
                raise ValueError(f"chart {self.title!r} has log_{axis} and a value of {lowest:g}; leave out what is not above 0")
        return self


class Table(Config):
    """Rows of text and numbers; None is an empty cell."""

    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    units: dict[str, str] = Field(default_factory=dict, description="column -> unit; %: its values are shares between 0 and 1")
    ours: int | None = Field(None, description="the row to stand out, counted from 0")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns and a row of {len(row)}: {row}")
        if self.ours is not None and not 0 <= self.ours < len(self.rows):
            raise ValueError(f"table {self.title!r} has {len(self.rows)} rows and ours={self.ours}")
        if unknown := set(self.units) - set(self.columns):
            raise ValueError(f"table {self.title!r} has units for {sorted(unknown)} and columns {list(self.columns)}")
        return self


class Findings(Config):
    """What one artifact has to show."""

    scores: tuple[Score, ...] = ()
    pictures: tuple[Picture, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()

    def write(self, url: str) -> None:
        """Leaves them in the folder `url`."""
        storage.write_json(storage.join(url, FILE), self.to_json())

    @classmethod
    def read(cls, url: str) -> Findings:
        """Those of the folder `url`, empty where it has none; raises UserError for a file that is not of this kind."""
        place = storage.join(url, FILE)
        return cls.parse(storage.read_json(place), place) if storage.exists(place) else cls()
