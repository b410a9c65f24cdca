"""What metrics tell of the schedules that a scheduler sees to: to the hub of the cluster whose job it is, else at an endpoint of its own.

    watched = Watched(store)
    with told_to_hub(watched):
        Scheduler(store, make_runner, Observer(on_look=watched.look)).serve()

The scheduler only leaves its newest look here. Another thread makes metrics of it, counts runs in the store and speaks to the hub: what
takes long or fails there costs metrics and nothing else.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from components import storage
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.state import Look, Schedule, State
from pipelines.schedule.triggers import next_due
from pipelines.store import Store

if TYPE_CHECKING:
    from clusters.monitoring.states import ScheduleState, ScheduleStates


class Watched:
    """The schedules of `store` as a scheduler last saw them. With `once` it will leave soon, so that nobody need miss its heartbeat."""

    def __init__(self, store: Store, once: bool = False) -> None:
        self._store, self._once = store, once
        self._look = Look(datetime.fromtimestamp(0, UTC), {})
        self._tallies: dict[str, _Tally] = {}

    def look(self, look: Look) -> None:
        """Takes what the scheduler sees, in place of what it saw before; from any thread."""
        self._look = look

    def states(self) -> ScheduleStates:
        """What the hub is told, as it is now. Raises UserError while the store is out of reach."""
        from clusters.monitoring.states import ScheduleStates

        look = self._look
        self._tallies = {name: self._tallies.get(name) or _Tally(Schedule(self._store, name)) for name in look.schedules}
        return ScheduleStates(schedules={name: self._state(name, look) for name in look.schedules})

    def _state(self, name: str, look: Look) -> ScheduleState:
        from clusters.monitoring.states import ScheduleState

        config, state = look.schedules[name]
        tally = self._tallies[name]
        tally.update((look.at, state.events))
        return ScheduleState(
            status="waiting" if state.run is None else "running",
            heartbeat_at=None if self._once else look.at.timestamp(),
            last_success_at=_seconds(tally.last_success),
            next_fire_at=_seconds(_next_fire(config, state)),
            runs=tally.runs,
            decisions=tally.decisions,
        )


class _Tally:
    """Counts of the runs of a schedule that have ended, each read once."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._counted: set[str] = set()
        self._seen: object = None
        self.runs: Counter[str] = Counter()
        self.decisions: Counter[str] = Counter()
        self.last_success: datetime | None = None

    def update(self, seen: object) -> None:
        """Counts the runs that have ended since, unless `seen` says that there is nothing new to see."""
        if seen == self._seen:
            return
        for run_id in storage.list_names(self._schedule.place("runs")):
            if run_id not in self._counted:
                self._count(run_id)
        self._seen = seen

    def _count(self, run_id: str) -> None:
        run = self._schedule.run(run_id)
        if run is None or run.ended is None:
            return
        if run.status == "succeeded":
            outcome = self._schedule.outcome(run_id)
            decided = None if outcome is None else outcome.decision.get("outcome")
            self.decisions.update([] if decided is None else [decided])
            self.last_success = max(run.ended, self.last_success or run.ended)
        self.runs[run.status] += 1
        self._counted.add(run_id)


def _next_fire(config: ScheduleConfig, state: State) -> datetime | None:
    """In the past while what is due has not begun."""
    return state.waiting.due if state.waiting is not None else next_due(config.trigger, state.seen)


def _seconds(when: datetime | None) -> float | None:
    return None if when is None else when.timestamp()


class Hub(Protocol):
    """`clusters.metrics.MetricsHub`, or `ClusterHub`."""

    def schedule(self, name: str, state: ScheduleState | None) -> None: ...


class Teller:
    """Tells a hub of every schedule, and which of those that it told of before are seen to no more."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._told: set[str] = set()

    def tell(self, text: str) -> None:
        """Of `ScheduleStates` as JSON. Raises what the hub raises; the next call makes up for it."""
        from clusters.monitoring.states import ScheduleStates

        states = ScheduleStates.model_validate_json(text).schedules
        for name in self._told - states.keys():
            self._hub.schedule(name, None)
            self._told.remove(name)
        for name, state in states.items():
            self._told.add(name)
            self._hub.schedule(name, state)


@contextmanager
def told_to_hub(watched: Watched) -> Iterator[None]:
    """Tells in a Ray job the cluster's hub, elsewhere one in this process if a port is set for it, what `watched` sees.

    Raises UserError when it cannot be served there, or the job's cluster does not answer.
    """
    with ExitStack() as stack:
        hub = _hub(stack)
        if hub is not None:
            from clusters.metrics import told

            stack.enter_context(told(watched.states, Teller(hub).tell))
        yield


def _hub(stack: ExitStack) -> Hub | None:
    from clusters.session import address_of_job, ray_cluster

    in_job = address_of_job() is not None
    if not in_job and not os.environ.get("RAYMILL_METRICS_PORT"):
        return None
    from clusters.metrics import ClusterHub, MetricsHub, endpoint, serve_metrics

    host, port = endpoint()
    if not port:
        return None
    if in_job:
        stack.enter_context(ray_cluster(None, 0))
        return ClusterHub()
    hub = MetricsHub()
    stack.enter_context(serve_metrics(hub, host, port))
    return hub
