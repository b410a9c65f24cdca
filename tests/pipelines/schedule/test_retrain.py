"""What one run of a schedule decides, on real pictures that come in day by day, and with MLflow's own registry."""

from __future__ import annotations

import html
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components import storage
from components.data.dataset import Dataset
from components.data.plan import plan
from components.data.prepare_config import PrepareConfig
from components.errors import UserError
from components.evaluation.scoring import evaluate
from components.families.model_folder import load_model
from pipelines.preparing import prepare_data
from pipelines.registry import Registry
from pipelines.schedule import judging, work
from pipelines.schedule import retrain as module
from pipelines.schedule.decision import Decision, RunFolder, read_decisions
from pipelines.schedule.page import write_schedule_page
from pipelines.schedule.retrain import record_failure
from pipelines.schedule.state import Run, Schedule
from pipelines.stage import Pipeline
from pipelines.store import Artifact, Store, open_artifact
from pipelines.workers import Workers
from tests.pipelines.schedule.retraining_world import add_pictures, new_store, run, schedule

pytest.importorskip("mlflow")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    add_pictures(folder, 0, 300)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Shared: artifacts are made once, and each test has schedules of its own names."""
    return new_store(tmp_path_factory.mktemp("retraining") / "store")


def artifact_of(store: Store, name: str) -> Artifact:
    return open_artifact(store.place("artifacts", name))


def page(store: Store, name: str) -> str:
    return html.unescape(Path(store.place("schedules", name, "page.html")).read_text())


def test_the_first_candidate_is_champion_and_a_better_one_takes_its_place(pictures: Path, store: Store) -> None:
    first = run(schedule(pictures, steps=1), "day1", store)
    assert (first.outcome, first.champion, first.comparison) == ("promoted", None, None)
    assert "no champion yet" in first.reason
    better = run(schedule(pictures, steps=60), "day2", store)
    assert better.outcome == "promoted"
    assert better.candidate is not None
    assert better.champion is not None
    assert better.comparison is not None
    assert first.candidate is not None
    assert better.champion.artifact == first.candidate.artifact
    assert better.comparison.low > 0
    images = next(name for name in RunFolder(store, "nightly", "day2").artifacts().used if name.startswith("images-"))
    data = Dataset.open(artifact_of(store, images).url, "test")
    for contender in (better.candidate, better.champion):  # the scores are those that `raymill evaluate` gives
        whole = evaluate(load_model(artifact_of(store, contender.artifact).path("model")), data)
        assert whole["accuracy"] == pytest.approx(contender.score)
    assert better.rows == data.num_rows
    registry = Registry(None, store)
    champion = registry.champion("nightly")
    assert champion is not None
    assert champion.version == better.candidate.version == 2
    assert [(each.version, each.before) for each in registry.history("nightly")] == [(1, None), (2, 1)]
    assert champion.tags["schedule"] == "nightly"
    shown = page(store, "nightly")
    assert better.reason in shown
    assert f'href="../../artifacts/{better.report}/page.html"' in shown
    assert "nightly, version 2" in shown


def test_nothing_new_is_told_without_training_or_registry(pictures: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config = schedule(pictures, "still", steps=1)
    run(config, "day1", store)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be done")

    monkeypatch.setattr(module, "registry_of", refuse)
    monkeypatch.setattr("pipelines.stage.Pipeline.run", refuse)
    decision = run(config, "day2", store)
    assert decision.outcome == "nothing_new"
    assert "run day1" in decision.reason
    assert set(decision.seconds) == {"reading the source"}
    assert decision.reason in page(store, "still")


@pytest.mark.parametrize(
    ("labels", "says"), [("shuffled", "above the margin of 0; and worse by"), ("swapped", "above the margin of 0; but worse by")]
)
def test_wrong_labels_train_a_worse_model_which_is_kept_out(labels: Any, says: str, tmp_path: Path) -> None:
    """Labels that are all wrong in the same way look right on new held-out rows, which are wrong alike; those of before tell."""
    store, pictures = new_store(tmp_path / "store"), tmp_path / "pictures"
    add_pictures(pictures, 0, 300)
    config = schedule(pictures, steps=60)
    good = run(config, "day1", store)
    add_pictures(pictures, 300, 600, labels)
    bad = run(config, "day2", store)
    assert bad.outcome == "kept"
    assert says in bad.reason
    assert bad.new_rows == 600
    assert bad.earlier is not None
    assert bad.earlier.high < 0
    registry = Registry(None, store)
    champion = registry.champion("nightly")
    assert champion is not None
    assert good.candidate is not None
    assert champion.version == good.candidate.version
    assert [each.version for each in registry.versions("nightly")] == [1, 2]  # one command away
    assert bad.reason in page(store, "nightly")
    assert run(config, "day3", store).outcome == "nothing_new"


@pytest.mark.parametrize(("margin", "outcome"), [(0.0, "promoted"), (0.9, "kept")])
def test_the_whole_interval_must_be_above_the_margin(pictures: Path, store: Store, margin: float, outcome: str) -> None:
    name = f"margin-{margin:.1f}".replace(".", "-")
    gate = {"block_rows": 4, "margin": margin}
    run(schedule(pictures, name, steps=1, gate=gate), "day1", store)
    assert run(schedule(pictures, name, steps=60, gate=gate), "day2", store).outcome == outcome


def test_a_score_of_which_less_is_better(pictures: Path, store: Store) -> None:
    gate = {"block_rows": 4, "score": "nll", "best": "min"}
    run(schedule(pictures, "less", steps=1, gate=gate), "day1", store)
    decision = run(schedule(pictures, "less", steps=60, gate=gate), "day2", store)
    assert decision.outcome == "promoted"
    assert decision.comparison is not None
    assert decision.comparison.high < 0
    assert "nll" in decision.reason


def test_a_first_champion_must_reach_the_floor(pictures: Path, store: Store) -> None:
    decision = run(schedule(pictures, "floor", steps=1, gate={"block_rows": 4, "floor": 0.99}), "day1", store)
    assert decision.outcome == "kept"
    assert "floor of 0.99" in decision.reason
    assert Registry(None, store).champion("floor") is None


@pytest.mark.parametrize(("settings", "says"), [({"images.seed": 1}, "seed=0"), ({"images.holdout": 0.4}, "holdout=0.3")])
def test_models_of_other_splits_are_not_compared(pictures: Path, store: Store, settings: dict[str, object], says: str) -> None:
    name = "split-" + next(iter(settings)).partition(".")[2]
    run(schedule(pictures, name, steps=1), "day1", store)
    decision = run(schedule(pictures, name, steps=60, settings=settings), "day2", store)
    assert decision.outcome == "kept"
    assert decision.comparison is None
    assert f"not compared: the champion's data was prepared with {says}" in decision.reason


def test_a_champion_of_other_classes_is_not_compared(tmp_path: Path) -> None:
    store, pictures = new_store(tmp_path / "store"), tmp_path / "pictures"
    add_pictures(pictures, 0, 100)
    run(schedule(pictures, steps=1), "day1", store)
    (pictures / "class3").rename(pictures / "class9")
    decision = run(schedule(pictures, steps=1), "day2", store)
    assert decision.outcome == "kept"
    assert "the champion knows the classes class0, class1, class2, class3" in decision.reason
    assert "class class3 vanished from the data" in decision.warnings
    assert "class class9 is new in the data" in decision.warnings


def test_added_files_leave_every_row_in_its_split(tmp_path: Path) -> None:
    """What the comparison rests on: no picture that is held out later was trained on before, from the smallest data on."""
    pictures, before = tmp_path / "pictures", set[bytes]()
    for day, (first, last) in enumerate(((0, 2), (2, 5), (5, 9), (9, 40), (40, 160))):
        add_pictures(pictures, first, last - first)
        out = tmp_path / f"data{day}"
        prepare_data(str(pictures), str(out), PrepareConfig(), Workers(0), lambda row: None)
        rows = {}
        for split in ("train", "test"):
            data = Dataset.open(str(out), split)
            rows[split] = {image.tobytes() for image in data.take(np.arange(data.num_rows))["image"]}
        assert len(rows["train"]) + len(rows["test"]) == last
        assert not rows["test"] & before
        before |= rows["train"]
    assert plan(str(pictures), PrepareConfig(seed=1)).shards["test"] != plan(str(pictures), PrepareConfig()).shards["test"]


def test_a_warm_start_begins_with_the_champions_weights(pictures: Path, store: Store) -> None:
    champion = run(schedule(pictures, "warm", steps=60), "day1", store)
    crawl = {"model.train.optimizer.lr": 1e-12, "model.train.seed": 9}
    warm = run(schedule(pictures, "warm", steps=1, settings=crawl, start="warm"), "day2", store)
    cold = run(schedule(pictures, "cold", steps=1, settings=crawl), "day2", store)
    assert champion.candidate is not None
    assert warm.candidate is not None
    assert cold.candidate is not None
    old, new, other = (
        load_model(artifact_of(store, each.candidate.artifact).path("model")).state_dict() for each in (champion, warm, cold)
    )
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert not all(torch.allclose(old[name], other[name], atol=1e-6) for name in old)
    manifest = artifact_of(store, warm.candidate.artifact).manifest
    assert manifest.inputs["start"] == artifact_of(store, champion.candidate.artifact).fingerprint
    assert warm.outcome == "kept"
    assert run(schedule(pictures, "warm", steps=1, settings=crawl, start="warm"), "day3", store).outcome == "nothing_new"


def test_settings_that_cannot_work_are_refused_before_training(pictures: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    for values, says in (
        ({"gate": {"stage": "images"}}, "gate.stage=images trains no model"),
        ({"pipeline": "tokens", "gate": {"stage": "prior"}, "set": {}}, "gate.stage=prior learns from what other models made"),
        ({"pipeline": "tokens", "gate": {"stage": "judge"}, "set": {}, "start": "warm"}, "start=warm has no effect on pipeline tokens"),
        ({"set": {"model.family": "recognition"}}, "recognition is scored over all pairs"),
        ({"set": {"model.train.stepz": 3}}, "model.train.stepz"),
    ):
        with pytest.raises(UserError, match=says.replace(".", r"\.")):
            run(schedule(pictures, **values), "day1", store)
    assert not Path(store.place("artifacts")).exists()


def test_a_run_that_was_given_up_is_on_the_page_and_may_still_decide(pictures: Path, store: Store) -> None:
    config, now = schedule(pictures, "failing", steps=1), datetime.now(UTC)
    added = Schedule(store, "failing")
    added.add(config, now)
    added.write_run(Run(id="day1", cause="new data, by hand", config=config, started=now, attempted=now))
    assert record_failure(config, "day1", store, "the cluster is gone").outcome == "failed"
    for text in ("the cluster is gone.", "new data, by hand", "by more than 0, on the same rows of split test", "none yet"):
        assert text in page(store, "failing")
    assert run(config, "day1", store).outcome == "promoted"
    assert record_failure(config, "day1", store, "too late").outcome == "promoted"


def test_a_champion_made_by_hand_meanwhile_stays(pictures: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run(schedule(pictures, "meanwhile", steps=1), "day1", store)
    registry, judge = Registry(None, store), judging.judge

    def judge_slowly(*arguments: object) -> object:
        other = registry.register("meanwhile", next(a for a in store.artifacts() if a.manifest.stage == "model"), key="by hand")
        registry.promote("meanwhile", other.version, reason="mine", by="anna")
        return judge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(judging, "judge", judge_slowly)
    decision = run(schedule(pictures, "meanwhile", steps=60), "day2", store)
    assert decision.outcome == "kept"
    assert "became champion while this run judged" in decision.reason
    champion = registry.champion("meanwhile")
    assert champion is not None
    assert champion.tags["raymill.key"] == "by hand"


class Killed(BaseException):
    """The process ends here."""


POINTS = [
    (module, "_basis"),
    (work, "plan_work"),
    (module, "registry_of"),
    (module.RunFolder, "note_artifacts"),
    (Pipeline, "run"),
    (judging, "judge"),
    (module.RunFolder, "conclude"),
    (Registry, "register"),
    (Registry, "promote"),
    (module.RunFolder, "decide"),
    (module, "clear_away"),
    (module, "write_schedule_page"),
]


def same(decision: Decision) -> dict[str, object]:
    """What must not depend on kills."""
    return decision.model_dump(exclude={"schedule", "decided_at", "seconds"})


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "step"), POINTS, ids=[step for _, step in POINTS])
def test_killed_anywhere_and_run_again(
    owner: object, step: str, after: bool, pictures: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _two_days("control", pictures, store)
    name = f"{step.strip('_').replace('_', '-')}-{after}".lower()
    run(schedule(pictures, name, steps=1), "day1", store)
    whole, calls = getattr(owner, step), []

    def killed(*arguments: object, **options: object) -> object:
        calls.append(step)
        if not after:
            raise Killed
        whole(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, killed)
        with pytest.raises(Killed):
            run(schedule(pictures, name, steps=60), "day2", store)
    assert calls == [step]
    again = run(schedule(pictures, name, steps=60), "day2", store)
    assert same(again) == same(expected)
    assert run(schedule(pictures, name, steps=60), "day2", store) == again
    registry = Registry(None, store)
    assert [each.tags["run"] for each in registry.versions(name)] == ["day1", "day2"]
    assert [each.version for each in registry.history(name)] == [1, 2]
    assert again.reason in page(store, name)
    assert [decision.run_id for decision in read_decisions(store, name)] == ["day1", "day2"]


def _two_days(name: str, pictures: Path, store: Store) -> Decision:
    run(schedule(pictures, name, steps=1), "day1", store)
    return run(schedule(pictures, name, steps=60), "day2", store)


def test_a_rollback_after_a_killed_promotion_is_not_undone(pictures: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run(schedule(pictures, "rolled", steps=1), "day1", store)
    with monkeypatch.context() as patch:
        patch.setattr(module.RunFolder, "decide", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run(schedule(pictures, "rolled", steps=60), "day2", store)
    registry = Registry(None, store)
    registry.rollback("rolled", reason="slow on phones", by="anna")
    run(schedule(pictures, "rolled", steps=60), "day2", store)
    champion = registry.champion("rolled")
    assert champion is not None
    assert champion.version == 1


def test_the_page_shows_who_is_champion_now_when_it_may_ask(pictures: Path, store: Store, tmp_path: Path) -> None:
    _two_days("asked", pictures, store)
    registry = Registry(None, store)
    registry.rollback("asked", reason="slow on phones", by="anna")
    out = str(tmp_path / "page.html")
    assert write_schedule_page(store, "asked", out, registry) == out
    text = Path(out).read_text()
    assert "asked, version 1" in text
    assert storage.exists(text.partition('<td><a href="')[2].partition('"')[0])
    with pytest.raises(UserError, match="did you mean 'asked'"):
        write_schedule_page(store, "askd")


def test_the_page_dates_runs_by_the_schedulers_clock_in_its_time_zone(pictures: Path, store: Store) -> None:
    config = schedule(pictures, "dated", steps=1, trigger={"cron": "30 2 * * *", "time_zone": "Europe/Berlin"})
    known = Schedule(store, "dated")
    known.add(config, datetime(2025, 1, 1, tzinfo=UTC))
    for run_id, day in (("later", 27), ("sooner", 26)):  # decided in this order
        began = datetime(2025, 10, day, 1 if day == 27 else 0, 30, tzinfo=UTC)
        known.write_run(Run(id=run_id, cause="by hand", config=config, started=began, attempted=began))
        record_failure(config, run_id, store, "out of memory")
    shown = page(store, "dated")
    assert "the last at 2025-10-27 02:30:00 CET." in shown
    assert shown.index("2025-10-27 02:30:00 CET<") < shown.index("2025-10-26 02:30:00 CEST<")
