"""The run record keeps every row once, also when a run is stopped between a checkpoint and the next."""

from __future__ import annotations

from pathlib import Path

from components.training.record import RunRecord, read_metrics


def test_rows_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path))
    record.start(0, {"identity": "a", "workers": 1})
    for step in (1, 2, 3):
        record.add({"step": step, "loss": 1.0 / step})
    record.flush()
    for step in (4, 5):
        record.add({"step": step, "loss": 1.0 / step})
    record.flush()
    again = RunRecord(str(tmp_path))
    again.start(2, {"identity": "a", "workers": 1})
    for step in (3, 4):
        again.add({"step": step, "loss": 2.0})
    again.finish({"seconds": 1.0})
    assert [(row["step"], row["loss"]) for row in read_metrics(str(tmp_path))] == [(1, 1.0), (2, 0.5), (3, 2.0), (4, 2.0)]
    sizes = [{"step": 0, "workers": 1}]
    assert again.info() == {"identity": "a", "workers": 1, "sizes": sizes, "starts": 2, "resumed_from": 2, "seconds": 1.0}


def test_the_record_tells_from_which_step_on_how_many_workers_there_were(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path))
    for step, workers in ((0, 1), (40, 3), (50, 2), (45, 2), (48, 2)):  # at 50 it died before its checkpoint: 45 is trained again
        record.start(step, {"workers": workers})
    assert record.info()["sizes"] == [{"step": 0, "workers": 1}, {"step": 40, "workers": 3}, {"step": 45, "workers": 2}]
