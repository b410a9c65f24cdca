"""The scheduler: one loop that attends to every schedule of a store. However many are started, one acts and the others stand by.

    with held(store/schedules/.scheduler.lock): beat, take one step with each schedule, sleep until the next has something to do

All that it knows is in the store, so a scheduler may be killed at any point: the next one reads the same files and goes on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from components import storage
from components.errors import UserError
from components.lease import Lease, LeaseLost, held
from pipelines.schedule.clock import Clock, SystemClock
from pipelines.schedule.runner import Runner
from pipelines.schedule.state import Look, Observer, Schedule, names
from pipelines.schedule.supervisor import Supervisor
from pipelines.store import Store

HEARTBEAT = ".scheduler.json"
LOCK = ".scheduler.lock"


@dataclass(frozen=True)
class Pace:
    """How often a scheduler looks up."""

    heartbeat: timedelta = timedelta(seconds=15)  # also how soon a schedule that was added, changed or removed is seen
    watch: timedelta = timedelta(seconds=1)  # at runs under way
    most_runs: int = 1  # at once, of all schedules


class Scheduler:
    """Sees to the schedules of `store`; their runs go where `make_runner` says."""

    def __init__(
        self,
        store: Store,
        make_runner: Callable[[], Runner],
        observer: Observer | None = None,
        clock: Clock | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.store, self._make_runner, self._observer = store, make_runner, observer or Observer()
        self._clock, self._pace = clock or SystemClock(), pace or Pace()
        self._supervisors: dict[str, Supervisor] = {}
        self._beaten = self._next_beat = self._clock.now()
        self._troubles: dict[str, str] = {}

    def serve(self, once: bool = False) -> None:
        """Acts until it is interrupted; `once`: until nothing is due, nothing waits and nothing is on.

        Stands by while another scheduler acts; with `once` that is a UserError that names it.
        """

        def waiting(owner: str) -> None:
            if once:
                raise UserError(f"{owner} is the scheduler of {self.store.url} and sees to what is due; stop it first to act here")
            self._observer.tell(f"{owner} is the scheduler of {self.store.url}; standing by")

        while True:
            try:
                with held(self.store.place("schedules", LOCK), waiting, certain=once) as lease:
                    self._observer.tell(f"scheduler of {self.store.url}")
                    self._act(lease, once)
                    return
            except LeaseLost as error:  # this process was stopped or cut off for long, and another took over: it stands by
                if once:
                    raise
                self._observer.tell(str(error))

    def _act(self, lease: Lease, once: bool) -> None:
        self._supervisors, self._troubles = {}, {}
        self._beaten = self._next_beat = self._clock.now()
        runner = self._make_runner()
        try:
            while True:
                self._beat(runner, lease)
                self._take_steps()
                self._observer.on_look(Look(self._beaten, {name: (s.config, s.state) for name, s in self._supervisors.items()}))
                now = self._clock.now()
                if once and all(supervisor.idle() for supervisor in self._supervisors.values()):
                    if self._troubles:
                        raise UserError("; ".join(f"{name}: {trouble}".removeprefix(": ") for name, trouble in self._troubles.items()))
                    return
                self._clock.sleep_until(self._wake(now))
        finally:
            self._observer.on_look(Look(self._beaten, {}))
            self._leave(runner)

    def _beat(self, runner: Runner, lease: Lease) -> None:
        """Says that a scheduler is here, and sees which schedules were added, changed or removed."""
        now = self._clock.now()
        if now < self._next_beat:
            return
        lease.check()
        self._next_beat = now + self._pace.heartbeat
        with self._trouble(""):
            here: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "at": now.isoformat()}
            storage.write_json(self.store.place("schedules", HEARTBEAT), here)
            present = names(self.store)
            for name in sorted({*present, *self._supervisors}):
                self._reload(name, runner, lease, now)
            self._troubles = {name: trouble for name, trouble in self._troubles.items() if name in present}
            self._beaten = now

    def _reload(self, name: str, runner: Runner, lease: Lease, now: datetime) -> None:
        with self._trouble(name):
            known = self._supervisors.get(name)
            if known is None:
                self._supervisors[name] = Supervisor(Schedule(self.store, name), runner, lease, self._observer)
            elif not known.reload():
                del self._supervisors[name]
                known.abandon(now)

    def _take_steps(self) -> None:
        for name, supervisor in list(self._supervisors.items()):
            busy = sum(other.attending for other in self._supervisors.values() if other is not supervisor)
            with self._trouble(name):
                supervisor.step(self._clock.now(), may_start=busy < self._pace.most_runs)

    @contextmanager
    def _trouble(self, name: str) -> Iterator[None]:
        """Rides out what a schedule meets, a store out of reach or a damaged file: told once, read anew at the next beat."""
        try:
            yield
            self._troubles.pop(name, None)
        except LeaseLost:
            raise
        except UserError as error:
            if self._troubles.get(name) != str(error):
                self._observer.tell(f"{name}: {error}" if name else str(error))
            self._troubles[name] = str(error)
            self._supervisors.pop(name, None)

    def _wake(self, now: datetime) -> datetime:
        times = [supervisor.wake(now, self._pace.watch) for supervisor in self._supervisors.values()]
        return min([self._next_beat, *times])

    def _leave(self, runner: Runner) -> None:
        try:
            for supervisor in self._supervisors.values():
                with suppress(UserError):  # what cannot be written now, the next scheduler finds out
                    supervisor.leave(self._clock.now())
        finally:
            runner.close()
