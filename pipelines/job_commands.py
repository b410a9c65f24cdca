"""The commands `raymill submit`, `jobs`, `logs` and `stop`: any other command as a job of a Ray cluster."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.errors import UserError
from components.redaction import holds_secret, is_secret_name
from components.report.numbers import duration
from pipelines.options import JsonOption, VerboseOption
from pipelines.shell import INTERRUPTED, Answer

if TYPE_CHECKING:
    from clusters.jobs import End

INSTALLED = "installed"
OF_CLUSTERS = ("submit", "jobs", "logs", "stop", "cluster")

ClusterOption = Annotated[
    str | None, typer.Option("--cluster", metavar="URL", help="The cluster's Jobs API (default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS).")
]
PatienceOption = Annotated[
    float, typer.Option("--patience", min=0, help="Seconds for which a cluster that does not answer is asked again.")
]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="As `raymill submit` said it; `raymill jobs` has them.")]


def submit(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Any command of raymill with its options, after `--`.")],
    cluster: ClusterOption = None,
    submission_id: Annotated[str | None, typer.Option("--submission-id", help="Submitted twice under one id, it runs once.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for it.")] = False,
    retries: Annotated[int, typer.Option("--retries", min=0, help="How often to start again what was killed or lost.")] = 0,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="NAME[=VALUE]", help="A variable for the job; nothing secret.")] = None,
    code: Annotated[
        str | None, typer.Option("--code", help="Checkout to send along, or `installed` (default: the one this runs from).")
    ] = None,
    num_cpus: Annotated[float | None, typer.Option("--num-cpus", min=0, help="CPUs for the job's own process, beside its workers.")] = None,
    num_gpus: Annotated[float | None, typer.Option("--num-gpus", min=0, help="GPUs for the job's own process.")] = None,
    patience: PatienceOption = 600,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Runs a command as a job of a Ray cluster, shows what it prints, and ends with its exit code. Ctrl-C leaves the job running.

    A checkout's code goes along, and nothing else of it: give data and store as places that the nodes see, such as s3://.

    \b
    raymill submit -- run tokens preset=full data=s3://bucket/pictures --store s3://bucket/store --workers 8
    raymill submit --submission-id nightly-2026-05-01 --retries 3 -- run faces --store s3://bucket/store
    raymill submit --detach --env OMP_NUM_THREADS=4 -- list
    """
    check_command(context.find_root().command, words)
    if detach and retries:
        raise UserError(f"--retries {retries} has no effect with --detach: who is not there starts nothing again")
    variables = plain_variables(env or [])
    job_id = submission_id or _new_id(words)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", job_id):
        raise UserError(f"--submission-id {job_id!r} is not valid; give letters, digits, dots, hyphens and underscores, 100 at most")
    from clusters.code_package import own_checkout
    from clusters.jobs import Job, Jobs

    sent = None if code == INSTALLED else Path(code).expanduser() if code else own_checkout()
    job = Job(words, sent, variables, num_cpus, num_gpus)
    place = Jobs(cluster, patience, _say)
    if detach:
        new = place.submit(job_id, job)
        lines = [f"{job_id}: {'submitted' if new else 'there already'}", f"  raymill logs {job_id} --follow", f"  raymill stop {job_id}"]
        return Answer({"id": job_id, "cluster": place.url, "new": new}, lines)
    _say(f"job {job_id} at {place.url}")
    return _followed(job_id, place.url, lambda: place.run(job_id, job, retries, _show))


def jobs(cluster: ClusterOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Lists the jobs of a cluster, the newest first.

    \b
    raymill jobs
    raymill jobs --cluster http://10.0.0.5:8265 --json
    """
    from clusters.jobs import Jobs

    found = Jobs(cluster, patience=0).known()
    now = time.time()
    rows = [(str(job.submission_id), job.status.value, duration(now - (job.start_time or 0) / 1000), job.entrypoint) for job in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = ["  ".join([*(f"{text:<{width}}" for text, width in zip(row, widths, strict=False)), row[3]]) for row in rows]
    values = [
        {"id": job.submission_id, "state": job.status.value, "command": job.entrypoint, "exit": job.driver_exit_code}
        | {"started_ms": job.start_time, "ended_ms": job.end_time}
        for job in found
    ]
    return Answer({"jobs": values}, lines or ["no jobs"])


def logs(
    job_id: JobArgument,
    cluster: ClusterOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on to its end, and end with its exit code.")] = False,
    patience: PatienceOption = 600,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> Answer:
    """Shows what a job has printed.

    \b
    raymill logs run-tokens-1f9a03c2
    raymill logs run-tokens-1f9a03c2 --follow
    """
    from clusters.jobs import Jobs

    place = Jobs(cluster, patience, _say)
    if follow:
        return _followed(job_id, place.url, lambda: [place.follow(job_id, _show)])
    text = place.output(job_id)
    return Answer({"id": job_id, "log": text}, text.splitlines())


def stop(job_id: JobArgument, cluster: ClusterOption = None, json: JsonOption = False, verbose: VerboseOption = False) -> Answer:
    """Stops a job, and waits until it has left in order. The same command, submitted under a new id, goes on where it stopped.

    \b
    raymill stop run-tokens-1f9a03c2
    """
    from clusters.jobs import Jobs

    state, stopped = Jobs(cluster, patience=60, tell=_say).stop(job_id)
    said = "stopped" if stopped else f"had ended before ({state})"
    return Answer({"id": job_id, "state": state, "stopped": stopped}, [f"{job_id}: {said}"])


def check_command(root: Any, words: list[str]) -> None:
    """Parses a command line as its job will: unknown commands and options are told here, before anything is submitted."""
    if words[0] in OF_CLUSTERS:
        raise UserError(f"raymill {words[0]} asks a cluster from outside; it is not submitted as a job")
    for word in words:
        _require_no_secret(word, "the command")
    command, context, rest = root, typer.Context(root, info_name="raymill"), list(words)
    while hasattr(command, "resolve_command"):
        if not rest:
            raise UserError(f"{context.command_path} is no command by itself; see {context.command_path} --help")
        name, command, rest = command.resolve_command(context, rest)
        context = (
            typer.Context(command, parent=context, info_name=name)
            if hasattr(command, "resolve_command")
            else command.make_context(name, rest, parent=context)
        )


def plain_variables(asked: list[str]) -> dict[str, str]:
    """Variables of `--env`, `NAME=VALUE` or `NAME` as it is here. Raises UserError for what may be a secret."""
    found = {}
    for text in asked:
        name, given, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {name!r} is no name of a variable; give NAME, or NAME=VALUE")
        if is_secret_name(name):
            raise UserError(
                f"--env {name} looks like a secret, and a job's variables can be read by all who can list jobs; set it on the nodes, "
                f"as a secret of their pods or in their profile"
            )
        if not given and name not in os.environ:
            raise UserError(f"--env {name} is not set here; set it, or give {name}=VALUE")
        found[name] = value if given else os.environ[name]
        _require_no_secret(found[name], f"--env {name}")
    return found


def _require_no_secret(text: str, where: str) -> None:
    if holds_secret(text):
        raise UserError(
            f"{where} has a URL with a password in it, or a secret variable, and all who list jobs could read that; set it on the nodes"
        )


def _followed(job_id: str, url: str, follow: Callable[[], list[End]]) -> Answer:
    """Shows a job to its end; its exit code becomes the command's. Being left, or losing the cluster, ends this and not the job."""
    from clusters.jobs import LOST, Lost

    left = f"raymill logs {job_id} --follow shows it again, raymill stop {job_id} ends it"
    values: dict[str, Any] = {"id": job_id, "cluster": url}
    try:
        ends = follow()
    except KeyboardInterrupt:
        _say(f"left job {job_id} running; {left}")
        return Answer(values | {"state": "LEFT", "exit": INTERRUPTED}, code=INTERRUPTED)
    except Lost as lost:
        _say(f"{lost}; job {job_id} may go on: {left}")
        return Answer(values | {"state": "LOST", "exit": LOST, "error": str(lost)}, code=LOST)
    last = ends[-1]
    if last.code:
        _say(f"job {last.id}: {last.state} ({last.reason})")
    tried = [{"id": end.id, "state": end.state, "exit": end.code, "reason": end.reason} for end in ends]
    return Answer(values | {"state": last.state, "exit": last.code, "attempts": tried}, code=last.code)


def _new_id(words: list[str]) -> str:
    plain = [word for word in words[:2] if re.fullmatch(r"[a-z][a-z0-9]*", word)]
    return "-".join([*plain, secrets.token_hex(4)])


def _say(line: str) -> None:
    print(f"raymill: {line}", file=sys.stderr, flush=True)


def _show(text: str) -> None:
    print(text, end="", flush=True)
