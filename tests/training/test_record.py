"""The run record keeps every row once, also when a run is stopped between a checkpoint and the next."""

from __future__ import annotations

from pathlib import Path

from components.training.record import RunRecord, read_metrics


def test_rows_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path))
    record.start(0, {"identity": "a"})
    for step in (1, 2, 3):
        record.add({"step": step, "loss": 1.0 / step})
    record.flush()
    for step in (4, 5):
        record.add({"step": step, "loss": 1.0 / step})
    record.flush()
    again = RunRecord(str(tmp_path))
    again.start(2, {"identity": "a"})
    for step in (3, 4):
        again.add({"step": step, "loss": 2.0})
    again.finish({"seconds": 1.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(str(tmp_path))] == [(1, 1.0), (2, 0.5), (3, 2.0), (4, 2.0)]
    assert again.info() == {"identity": "a", "starts": 2, "resumed_from": 2, "seconds": 1.0}
