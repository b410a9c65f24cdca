"""A storm of faults over a cluster at work: nothing is lost, nothing stays behind, and the bits are those of a calm day.

    python -m benchmarks.chaos --events 100 --seed 0
    python -m benchmarks.chaos --events 10 --only worker,driver

Real raylets, a real S3 server, Raymill commands as jobs. Each kind of work runs once undisturbed; then again and again while events
strike it at drawn moments: kill -9 of workers, raylets, drivers, job supervisors and schedulers; the S3 server stopped or restarted, a
fifth of its requests refused, shards cut short, the cache's disk full. After each: the work ends without a hand, with the same bits; what
was committed is still there; at most one checkpoint interval was trained again; no process and no lock is left. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.chaos.checks import LEAVING_SECONDS, left_behind, result
from benchmarks.chaos.events import KINDS, plan
from benchmarks.chaos.processes import processes_of
from benchmarks.chaos.scheduling import ScheduleLane
from benchmarks.chaos.storm import Lane, Log, Record
from benchmarks.chaos.works import REFERENCE, SOURCE, Client, Work, works
from benchmarks.chaos.world import World
from benchmarks.table import Table
from benchmarks.work import SHIPPED
from components import storage

LANES = (("tokens",), ("prepare", "sample"), ("sweep",))


def calm(world: World, work: Work, log: Log) -> dict[str, str]:
    """The result of a work that nothing disturbs."""
    client = Client(world, work)
    code, _, said = client.ended()
    if code:
        raise SystemExit(f"the undisturbed {work.kind} failed: {said}")
    found, problems = result(world, work, None)
    problems += left_behind(world, client)
    if problems or not found:
        raise SystemExit(f"the undisturbed {work.kind}: {problems or 'made nothing'}")
    log.say(f"undisturbed {work.kind}: {time.monotonic() - client.began:.0f} s, {len(found)} files to compare")
    return found


def storm(world: World, planned: dict[str, list[str]], seed: int, log: Log) -> list[str]:
    """Runs all lanes to their end; returns what broke in the script itself, and what is left at the end."""
    for file in storage.list_files(str(SHIPPED)):
        storage.upload(storage.join(str(SHIPPED), file), world.url(SOURCE, file))
    make = works(world, world.url("tokens", REFERENCE))
    references = {"tokens": calm(world, make["tokens"](REFERENCE), log)}
    others = [kind for kind in make if kind != "tokens" and planned[kind]]
    with ThreadPoolExecutor(len(make)) as pool:
        references |= dict(zip(others, pool.map(lambda kind: calm(world, make[kind](REFERENCE), log), others), strict=True))
    lanes: list[Lane | ScheduleLane] = []
    for kinds in LANES:
        share = {kind: planned[kind] for kind in kinds if planned[kind]}
        if share:
            lanes.append(Lane(world, make, share, references, random.Random(f"{seed} {kinds}"), log))
    if planned["schedule"]:
        lanes.append(ScheduleLane(world, planned["schedule"], random.Random(f"{seed} schedule"), log))
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return [lane.failure for lane in lanes if lane.failure] + at_rest(world)


def at_rest(world: World) -> list[str]:
    """Who works still, when nothing should."""
    deadline = time.monotonic() + LEAVING_SECONDS
    while busy := [process for process in world.processes() if process.is_worker or process.is_command]:
        if time.monotonic() > deadline:
            return [f"at the end process {process.pid} {process.title[:60]} is left" for process in busy]
        time.sleep(1.0)
    return []


def table(records: list[Record]) -> Table:
    """Events by kind and phase."""
    shown = Table("Events", ["event", "phase", "count", "losses", "steps again (max)", "recovery s (median)", "recovery s (max)"])
    shown.rows = [_row(kind, phase, records) for kind, phase in sorted({(record.kind, record.phase) for record in records})]
    shown.rows.append(_row("all", "", records))
    return shown


def _row(kind: str, phase: str, records: list[Record]) -> tuple[str, ...]:
    mine = [record for record in records if kind == "all" or (record.kind, record.phase) == (kind, phase)]
    again = [record.steps_again for record in mine if record.steps_again is not None]
    seconds = [record.recovery_seconds for record in mine if record.recovery_seconds is not None]
    figures = [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"] if seconds else ["-", "-"]
    lost = sum(bool(record.losses) for record in mine)
    return (kind, phase, str(len(mine)), str(lost), str(max(again)) if again else "-", *figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"kinds of events, separated by commas: {', '.join([*KINDS, 'scheduler', 'run'])}")
    parser.add_argument("--log", default="chaos.jsonl", help="file for a line of JSON about each event")
    options = parser.parse_args()
    planned = plan(options.events, [kind for kind in options.only.split(",") if kind], random.Random(options.seed))
    log = Log(Path(options.log), lambda line: print(line, flush=True))
    with World.open(options.seed) as world:
        folder = world.raylets.folder
        log.say(
            f"{len(world.raylets.nodes)} raylets, S3 behind a proxy, {'a small disk' if world.disk else 'no disk of its own'} for the cache"
        )
        wrong = storm(world, planned, options.seed, log)
    wrong += [f"after the end process {process.pid} {process.title[:60]} is left" for process in processes_of(folder)]
    print(f"\n{table(log.records)}\n")
    wrong += [f"event {record.number} ({record.kind}): {loss}" for record in log.records for loss in record.losses]
    struck = sum(record.kind != "none" for record in log.records)
    if struck < options.events:
        wrong.append(f"{struck} events struck, {options.events} were asked for")
    for line in wrong:
        print(line)
    minutes = (time.monotonic() - log.began) / 60
    print(
        f"{struck} events in {minutes:.0f} minutes, seed {options.seed}: {'VIOLATIONS' if wrong else 'nothing lost, nothing left behind'}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
