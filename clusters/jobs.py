"""Raymill commands as jobs of a Ray cluster, over its Jobs API: submit once, follow through lost connections, end as the job ended.

A job's id makes it idempotent: what is submitted again under an id is followed, not started again. Nothing secret goes into a job: its
command, variables and metadata can be read by all who can list jobs. The nodes have credentials of their own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import requests
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from clusters.code_package import VERSION, installed_version, staged
from clusters.job_log import LogPosition
from clusters.session import choose_token_mode, require_answer
from components.errors import UserError, did_you_mean

REQUEST_SECONDS = 30.0
SILENCE_SECONDS = 60.0  # after which a connection that says nothing is made anew: it may be dead without knowing
STOP_SECONDS = 30  # that a job has to leave in order; Ray's own three are too few for a checkpoint
POLL_SECONDS = 0.5
LONGEST_PAUSE = 15.0
LOG_PATIENCE = 10.0  # a node that is gone keeps its log for ever
COMMAND = "raymill.command"
STOPPED = 130
LOST = 1

BROKEN = (
    OSError,
    aiohttp.ClientError,
    RuntimeError,
)  # what Ray's client raises for a lost connection, and for an answer that is no success

T = TypeVar("T")


class Lost(Exception):
    """The cluster did not answer for as long as was agreed; the job may go on."""


class Refused(Exception):
    """The Jobs API answered, and what it says is no success."""


@dataclass(frozen=True)
class Job:
    """A Raymill command line, without `raymill`, and what it takes along; `code` is a checkout, None for what the nodes have."""

    words: list[str]
    code: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    cpus: float | None = None
    gpus: float | None = None

    @property
    def entrypoint(self) -> str:
        return shlex.join(["raymill", *self.words])


@dataclass(frozen=True)
class End:
    """How a job ended: the exit code to mirror, Ray's word for it, and why where there is no code of the job's own."""

    id: str
    state: str
    code: int
    reason: str = ""

    @property
    def may_be_tried_again(self) -> bool:
        """Whether it failed by no mistake of the user's: killed, evicted, lost, or by a mistake of ours. 126 and 127: no such program."""
        return self.state == JobStatus.FAILED and self.code not in (2, 126, 127)


class _Client(JobSubmissionClient):
    """Ray's client, with a limit to how long it waits for an answer."""

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        return super()._do_request(*arguments, **{"timeout": REQUEST_SECONDS, **options})


class Jobs:
    """The Jobs API of one cluster. `patience` is how many seconds without an answer are ridden out, `tell` takes a line for people."""

    def __init__(self, cluster: str | None, patience: float = 600.0, tell: Callable[[str], None] = lambda line: None) -> None:
        self.patience, self._tell = patience, tell
        self._client = _connect(cluster)
        self.url = self._client.get_address()

    def find(self, job_id: str) -> JobDetails | None:
        """What the cluster knows of a job; None when there is none of that id."""
        try:
            return self._patiently(lambda: self._client.get_job_info(job_id))
        except Refused as error:
            if "status code 404" in str(error):
                return None
            raise

    def require(self, job_id: str) -> JobDetails:
        """As `find`; raises UserError with the nearest known id."""
        found = self.find(job_id)
        if found is None or found.submission_id is None:
            raise UserError(
                f"no job {job_id!r} at {self.url}; {did_you_mean(job_id, [job.submission_id for job in self.known() if job.submission_id])}"
            )
        return found

    def known(self) -> list[JobDetails]:
        """The submitted jobs, newest first."""
        jobs = [job for job in self._patiently(self._client.list_jobs) if job.type == JobType.SUBMISSION]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def submit(self, job_id: str, job: Job) -> bool:
        """Starts `job` under `job_id`, once: False when it is there already. Raises UserError when the id is another command's."""
        if (known := self.find(job_id)) is not None:
            _require_same(known, job_id, job)
            return False
        variables = {**job.variables, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        place: AbstractContextManager[list[str]] = nullcontext([]) if job.code is None else staged(job.code)
        if job.code is None:
            variables[VERSION] = installed_version()
        with place as modules:
            environment: dict[str, Any] = {"env_vars": variables} | ({"py_modules": modules} if modules else {})
            try:
                self._patiently(
                    lambda: self._client.submit_job(
                        entrypoint=job.entrypoint,
                        submission_id=job_id,
                        runtime_env=environment,
                        metadata={COMMAND: job.entrypoint},
                        entrypoint_num_cpus=job.cpus,
                        entrypoint_num_gpus=job.gpus,
                    )
                )
            except Refused as error:
                if "already exists" not in str(error):  # another's request came first, or our own whose answer was lost
                    raise
                _require_same(self.require(job_id), job_id, job)
                return False
        return True

    def follow(self, job_id: str, show: Callable[[str], None]) -> End:
        """Gives `show` the job's output as it comes, through lost connections, and returns how it ended. Raises Lost."""
        known = self.require(job_id)
        position = LogPosition(f"Running entrypoint for job {job_id}: {known.entrypoint}\n")
        while True:
            position.reconnect()
            with suppress(*BROKEN):  # whether the cluster is there is asked next; a job whose node is gone has no log, and an end
                asyncio.run(self._stream(job_id, lambda text: show(position.new(text))))
            known = self.require(job_id)
            if known.status.is_terminal():
                break
            time.sleep(POLL_SECONDS)
        position.reconnect()
        show(position.new(self.log(job_id)))  # what came after the stream broke off
        return _end(known)

    def log(self, job_id: str) -> str:
        """The whole log, Ray's lines before the job's own with it; empty when the node that had it is gone."""
        try:
            return self._patiently(lambda: self._client.get_job_logs(job_id), LOG_PATIENCE)
        except (Refused, Lost):
            return ""

    def output(self, job_id: str) -> str:
        """All that the job itself has printed so far."""
        known = self.require(job_id)
        return LogPosition(f"Running entrypoint for job {job_id}: {known.entrypoint}\n").new(self.log(job_id))

    def stop(self, job_id: str) -> tuple[str, bool]:
        """Asks a job to leave in order and waits until it has; its state, and whether it was this that ended it. Raises Lost."""
        known = self.require(job_id)
        if known.status.is_terminal():
            return str(known.status.value), False
        self._patiently(lambda: self._client.stop_job(job_id))
        deadline = time.monotonic() + STOP_SECONDS + self.patience
        while not known.status.is_terminal():
            if time.monotonic() > deadline:
                raise Lost(f"job {job_id} has not stopped after {STOP_SECONDS + self.patience:.0f} s")
            time.sleep(POLL_SECONDS)
            known = self.require(job_id)
        return str(known.status.value), known.status == JobStatus.STOPPED

    def run(self, job_id: str, job: Job, retries: int, show: Callable[[str], None]) -> list[End]:
        """Submits and follows; what failed by no fault of the user's is submitted again as `job_id`-2, -3, ...

        Called again with the same id, it goes through the same jobs, and starts only what is not there.
        """
        ends: list[End] = []
        for attempt in range(1, retries + 2):
            name = job_id if attempt == 1 else f"{job_id}-{attempt}"
            if not self.submit(name, job):
                self._tell(f"job {name} is there already; following it")
            ends.append(self.follow(name, show))
            if not ends[-1].may_be_tried_again:
                break
            if attempt <= retries:
                self._tell(f"job {name} failed ({ends[-1].reason}); submitting it again as {job_id}-{attempt + 1}")
        return ends

    async def _stream(self, job_id: str, show: Callable[[str], None]) -> None:
        chunks = aiter(self._client.tail_job_logs(job_id))
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    chunk = await anext(chunks)
            except (StopAsyncIteration, TimeoutError):
                return
            show(chunk)

    def _patiently(self, call: Callable[[], T], at_most: float = math.inf) -> T:
        """`call`, tried again with growing pauses while the cluster does not answer. Raises Lost, Refused, or UserError for the token."""
        since, pause, patience = None, POLL_SECONDS, min(self.patience, at_most)
        while True:
            try:
                answer = call()
                if since is not None:
                    self._tell(f"{self.url} answers again")
                return answer
            except AuthenticationError as error:
                raise _no_entry(self.url) from error
            except BROKEN as error:
                if isinstance(error, RuntimeError) and not _is_passing(error):
                    raise Refused(str(error)) from error
                if since is None:
                    since = time.monotonic()
                    self._tell(f"{self.url} does not answer ({_brief(error)}); trying again for {patience:.0f} s")
                if time.monotonic() + pause - since > patience:
                    raise Lost(f"{self.url} has not answered for {time.monotonic() - since:.0f} s ({_brief(error)})") from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _connect(cluster: str | None) -> _Client:
    """Raises UserError where there is no cluster, no entry, or a Ray of another version."""
    import ray

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    asked = cluster or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not asked:
        raise UserError(
            "no cluster is named; give --cluster http://HOST:8265, or set RAY_API_SERVER_ADDRESS; `raymill cluster up --local 3` starts one"
        )
    if "://" not in asked:
        require_answer(asked, "--cluster")
    choose_token_mode()
    try:
        with _asked_alone(asked):
            client = _Client(asked)
    except AuthenticationError as error:
        raise _no_entry(asked) from error
    except (OSError, RuntimeError, ValueError, requests.exceptions.RequestException) as error:
        raise UserError(
            f"--cluster {asked}: no Jobs API answers there ({_brief(error)}); give the URL of the cluster's dashboard, such as http://10.0.0.5:8265"
        ) from error
    there = client._server_ray_version
    if there is not None and there.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise UserError(
            f"--cluster {asked} runs Ray {there}, and here is {ray.__version__}; install Ray {there} here, or give the nodes this version"
        )
    return client


@contextmanager
def _asked_alone(address: str) -> Any:
    """Ray's client lets the environment win over its argument; here what was asked for wins."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        os.environ.update(kept)


def _require_same(known: JobDetails, job_id: str, job: Job) -> None:
    there = (known.metadata or {}).get(COMMAND, known.entrypoint)
    if there != job.entrypoint:
        raise UserError(f"--submission-id {job_id} is the id of `{there}`, not of `{job.entrypoint}`; give another id")


def _end(known: JobDetails) -> End:
    assert known.submission_id is not None
    state, code = known.status, known.driver_exit_code
    if state == JobStatus.SUCCEEDED:
        return End(known.submission_id, state.value, 0)
    if state == JobStatus.STOPPED:
        return End(known.submission_id, state.value, STOPPED, "stopped")
    if code is None:
        return End(known.submission_id, state.value, LOST, _brief(known.message or "lost"))
    return End(known.submission_id, state.value, 128 - code if code < 0 else code, f"exit {code}")


def _is_passing(error: RuntimeError) -> bool:
    """Whether the way to the cluster failed, and not what was asked: the head wraps its agent's 4xx in a 500 of its own."""
    text = str(error)
    return ("WebSocket" in text or "status code 5" in text) and "status code 4" not in text


def _no_entry(url: str) -> UserError:
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    given = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else f"RAY_AUTH_TOKEN_PATH={path}" if path else "no token"
    return UserError(
        f"{url} refuses the token here (RAY_AUTH_MODE={mode or ''}, {given}); "
        f"set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token file"
    )


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
