"""The cluster benchmark in a size for every day: raylets, S3 server and Prometheus, a run through the Jobs API, all that is left of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.prometheus import needs_prometheus, needs_promtool

pytestmark = [pytest.mark.ray, needs_prometheus, needs_promtool]

TINY = (
    *(f"{stage}.train.checkpoint_every=10" for stage in ("judge", "tokenizer", "prior")),
    *("judge.train.steps=20", "tokenizer.train.steps=40", "prior.train.steps=30", "prior.train.evaluate_every=15"),
    *(f"{stage}.train.warmup_steps=5" for stage in ("judge", "tokenizer", "prior")),
    *("tokenizer.model.discriminator_start=10", "tokenizer.model.gan_start=20", "samples.per_class=4"),
)


def test_a_submitted_run_leaves_report_samples_and_series() -> None:
    """The benchmark ends with 1 when a file on S3, a series in Prometheus or a check of promtool is missing."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.cluster", *TINY], capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"problems": []' in done.stdout
