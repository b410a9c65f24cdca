"""Name -> pipeline. Each is imported when it is asked for, so that `raymill list` and `--help` stay quick."""

from __future__ import annotations

from collections.abc import Callable

from components.errors import UserError, did_you_mean
from pipelines.stage import Pipeline


def _faces() -> Pipeline:
    from pipelines.faces import FACES

    return FACES


def _model() -> Pipeline:
    from pipelines.model import PIPELINE

    return PIPELINE


def _reflow() -> Pipeline:
    from pipelines.reflow import REFLOW

    return REFLOW


def _tokens() -> Pipeline:
    from pipelines.tokens import TOKENS

    return TOKENS


PIPELINES: dict[str, Callable[[], Pipeline]] = {"faces": _faces, "model": _model, "reflow": _reflow, "tokens": _tokens}


def find_pipeline(name: str) -> Pipeline:
    """Raises UserError with the nearest known name."""
    if name not in PIPELINES:
        raise UserError(f"unknown pipeline {name!r}; {did_you_mean(name, PIPELINES)}")
    return PIPELINES[name]()
