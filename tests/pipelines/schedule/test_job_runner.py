"""Runs as jobs: what the scheduler hears of each state of a job, against a Jobs API that the test plays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.job_submission import JobStatus

from clusters import jobs
from components.errors import UserError
from pipelines.schedule.job_runner import JobRunner
from pipelines.schedule.runner import Progressed


@dataclass
class Details:
    status: JobStatus


@dataclass
class Api:
    """A cluster's Jobs API."""

    there: dict[str, Details] = field(default_factory=dict)
    submitted: list[tuple[str, list[str]]] = field(default_factory=list)
    end: jobs.End = field(default_factory=lambda: jobs.End("", "SUCCEEDED", 0))
    said: str = ""
    trouble: Exception | None = None

    def find(self, job_id: str) -> Details | None:
        if self.trouble is not None:
            raise self.trouble
        return self.there.get(job_id)

    def submit(self, job_id: str, job: jobs.Job) -> bool:
        self.submitted.append((job_id, job.words))
        self.there[job_id] = Details(JobStatus.PENDING)
        return True

    def follow(self, job_id: str, show: Callable[[str], None]) -> jobs.End:
        show(self.said)
        return self.end

    def stop(self, job_id: str) -> tuple[str, bool]:
        self.there[job_id].status, self.end = JobStatus.STOPPED, jobs.End(job_id, "STOPPED", 130, "stopped")
        return "STOPPED", True


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    played = Api()
    monkeypatch.setattr(jobs, "Jobs", lambda *given: played)
    return played


def runner() -> JobRunner:
    return JobRunner("http://127.0.0.1:8265", lambda line: None)


def test_a_job_from_start_to_end(api: Api) -> None:
    words = ["schedule", "run", "fashion", "--run-id", "20260301T120000Z"]
    assert runner().poll("fashion-20260301T120000Z") == Progressed("gone")
    runner().start(words, "fashion-20260301T120000Z")
    assert api.submitted == [("fashion-20260301T120000Z", words)]
    assert runner().poll("fashion-20260301T120000Z") == Progressed("running"), "another scheduler finds it"
    api.there["fashion-20260301T120000Z"].status = JobStatus.SUCCEEDED
    assert runner().poll("fashion-20260301T120000Z") == Progressed("ended", 0)


@pytest.mark.parametrize(
    ("end", "said", "expected"),
    [
        (jobs.End("a", "FAILED", 2), "made images\nraymill: unknown family\n\n", Progressed("ended", 2, "unknown family")),
        (jobs.End("a", "FAILED", 1, "node lost"), "", Progressed("ended", 1, "node lost")),
    ],
)
def test_failed_jobs_tell_why(api: Api, end: jobs.End, said: str, expected: Progressed) -> None:
    api.there["a"], api.end, api.said = Details(JobStatus.FAILED), end, said
    assert runner().poll("a") == expected


def test_a_stopped_job_and_a_scheduler_that_leaves(api: Api) -> None:
    runner().start(["schedule"], "a")
    runner().close()
    assert runner().poll("a") == Progressed("running"), "jobs go on"
    runner().stop("a")
    assert runner().poll("a") == Progressed("ended", 130, "stopped")


@pytest.mark.parametrize("trouble", [jobs.Lost("no answer for 20 s"), jobs.Refused("status code 500")])
def test_a_cluster_that_is_away_is_asked_again(api: Api, trouble: Any) -> None:
    api.trouble = trouble
    with pytest.raises(UserError, match=str(trouble)):
        runner().poll("a")
