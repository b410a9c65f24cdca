"""Codes per second drawn from a prior with a cache of keys and values, beside `transformers` generate with the same weights.

    python -m benchmarks.sampling

The prior is exported and opened as `GPT2LMHeadModel`; both draw the same number of codes from the whole distribution, at batch 1 and 64.
Rounds are interleaved, figures are medians. Untrained weights: the time to draw does not depend on what they are.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.table import Table
from components.families.prior import Prior, PriorConfig, PriorSampler

ROUNDS, BATCHES = 7, (1, 64)
SAMPLER = PriorSampler.parse({}, "benchmark")


def _peer(prior: Prior, folder: Path) -> Callable[[int], torch.Tensor]:
    """Draws codes (B, 1 + L) with transformers: its static settings, its cache, its own sampling."""
    from transformers import GPT2LMHeadModel

    prior.export(folder)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    first = prior.config.code_count

    def generate(batch: int) -> torch.Tensor:
        conditions = (first + torch.arange(batch) % prior.config.num_classes)[:, None]
        with torch.inference_mode():
            return model.generate(conditions, attention_mask=torch.ones_like(conditions), pad_token_id=0)

    return generate


def _seconds(work: Callable[[], torch.Tensor], codes: int) -> float:
    started = time.perf_counter()
    drawn = work()
    seconds = time.perf_counter() - started
    assert drawn.numel() >= codes, "not all codes were drawn"
    return seconds


def main() -> Table:
    torch.manual_seed(0)
    prior = Prior(PriorConfig.parse({}, "benchmark")).eval()
    length, threads = prior.config.length, torch.get_num_threads()
    table = Table("sampling from the prior", ["batch, threads", "codes/s", "transformers", "ratio"])
    with tempfile.TemporaryDirectory() as scratch:
        generate = _peer(prior, Path(scratch))
        for batch in BATCHES:
            for number in sorted({1, threads}):
                torch.set_num_threads(number)
                contenders = [lambda b=batch: prior.sample(b, 0, SAMPLER), lambda b=batch: generate(b)]
                times = [[_seconds(work, batch * length) for work in contenders] for _ in range(1 + ROUNDS)][1:]  # the first warms up
                ours, theirs = (batch * length / statistics.median(column) for column in zip(*times, strict=True))
                table.add(f"{batch}, {number}", ours, theirs, ours / theirs)
    torch.set_num_threads(threads)
    return table


if __name__ == "__main__":
    print(main())
