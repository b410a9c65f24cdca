"""What a schedule clears away of its old runs, and what it never touches: whatever somebody else made, or needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.registry import Registry
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.decision import Decision, RunFolder
from pipelines.store import Store
from tests.pipelines.schedule.retraining_world import add_pictures, new_store, run, schedule

pytest.importorskip("mlflow")


@pytest.fixture
def place(tmp_path: Path) -> Store:
    add_pictures(tmp_path / "pictures", 0, 60)
    return new_store(tmp_path / "store")


def day(place: Store, number: int, name: str = "nightly", **values: object) -> Decision:
    """The run of a day on which there are six pictures more, or that is another schedule's on the same pictures."""
    pictures = Path(place.url).parent / "pictures"
    if name == "nightly" and number:
        add_pictures(pictures, 60 + 6 * number, 6)
    return run(settings(place, name, **values), f"day{number}", place)


def settings(place: Store, name: str = "nightly", **values: object) -> ScheduleConfig:
    gate = {"block_rows": 2, "margin": 0.9}  # the first stays champion
    return schedule(Path(place.url).parent / "pictures", name, steps=2, **{"keep": 1, "gate": gate, **values})


def made_by(place: Store, number: int, name: str = "nightly") -> set[str]:
    return set(RunFolder(place, name, f"day{number}").artifacts().made)


def present(place: Store) -> set[str]:
    return {artifact.name for artifact in place.artifacts()}


def test_the_newest_and_the_champion_stay(place: Store) -> None:
    decisions = [day(place, number) for number in range(3)]
    assert [decision.outcome for decision in decisions] == ["promoted", "kept", "kept"]
    assert all(len(made_by(place, number)) == 3 for number in range(3))  # data set, model, page
    assert present(place) == made_by(place, 0) | made_by(place, 2)
    champion = Registry(None, place).champion("nightly")
    assert champion is not None
    assert Path(champion.artifact).is_dir()
    day(place, 3, keep=2)
    assert present(place) == made_by(place, 0) | made_by(place, 2) | made_by(place, 3)
    assert not any(Path(place.place(folder)).exists() and list(Path(place.place(folder)).iterdir()) for folder in ("staging", "runs"))


def test_the_champion_before_stays_for_a_rollback(place: Store) -> None:
    day(place, 0)
    promoted = day(place, 1)
    registry = Registry(None, place)
    assert promoted.candidate is not None
    assert promoted.candidate.version is not None
    registry.promote("nightly", promoted.candidate.version, reason="as good, and newer", by="anna")
    day(place, 2)
    assert present(place) == made_by(place, 0) | made_by(place, 1) | made_by(place, 2)
    registry.rollback("nightly", reason="slow on phones", by="anna")
    day(place, 3)
    assert present(place) == made_by(place, 0) | made_by(place, 1) | made_by(place, 3)


def test_what_others_made_or_need_stays(place: Store, capsys: pytest.CaptureFixture[str]) -> None:
    day(place, 0)
    day(place, 1, keep=9)
    images = next(name for name in made_by(place, 1) if name.startswith("images-"))
    model = next(name for name in made_by(place, 1) if name.startswith("model-"))
    argv = ["train", "classifier", place.place("artifacts", images), "model.widths=[4]", "train.steps=1", "train.batch_size=8"]
    assert main([*argv, "--workers", "0", "--store", place.url, "--json"]) == 0
    by_hand = present(place) - made_by(place, 0) - made_by(place, 1)
    assert len(by_hand) == 1
    day(place, 2, keep=9)
    other = day(place, 2, "weekly", keep=9)  # the same pictures and settings: finds what the run of day 2 made
    assert made_by(place, 2, "weekly") == set()
    assert other.candidate is not None
    day(place, 3, keep=9)
    registered = next(a for a in place.artifacts() if a.name in made_by(place, 3) and a.manifest.stage == "model")
    Registry(None, place).register("mine", registered, key="by hand")
    capsys.readouterr()
    day(place, 4)
    stays = made_by(place, 0) | by_hand | {images} | made_by(place, 2) | {registered.name} | made_by(place, 4)
    data_of_registered = {f"images-{registered.manifest.inputs['images']}"}
    assert present(place) == stays | data_of_registered
    assert model not in present(place)


def test_what_somebody_made_again_is_not_the_schedules_any_more(place: Store, capsys: pytest.CaptureFixture[str]) -> None:
    day(place, 0)
    day(place, 1, keep=9)
    old = {name: next(a for a in place.artifacts() if a.name == name) for name in made_by(place, 1)}
    for artifact in old.values():
        place.remove(artifact)
    config = settings(place)
    overrides = [f"{key}={str(value).replace('None', 'null')}" for key, value in config.set.items()]
    assert main(["run", "model", "--preset", "quick", f"data={config.source}", *overrides, "--workers", "0", "--store", place.url]) == 0
    capsys.readouterr()
    assert set(old) <= present(place)
    day(place, 2)
    day(place, 3)
    assert set(old) <= present(place)
    assert not made_by(place, 2) & present(place)
