"""A log read over connections that break anywhere: each character once, in order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clusters.job_log import LogPosition

PROLOGUE = "Running entrypoint for job a: raymill list\n"


@given(
    before=st.text("ab\n", max_size=8),
    log=st.text("xyz\n", max_size=40),
    cuts=st.lists(st.integers(0, 100), max_size=6),
    chunk=st.integers(1, 9),
)
def test_each_character_comes_once(before: str, log: str, cuts: list[int], chunk: int) -> None:
    whole = before + PROLOGUE + log
    position, shown = LogPosition(PROLOGUE), ""
    for end in [*cuts, len(whole)]:
        position.reconnect()
        for start in range(0, min(end, len(whole)), chunk):
            shown += position.new(whole[start : min(start + chunk, end)])
        assert log.startswith(shown)
    assert shown == log


def test_a_log_that_has_only_rays_lines_shows_nothing() -> None:
    assert LogPosition(PROLOGUE).new("Runtime env is setting up.\n") == ""
