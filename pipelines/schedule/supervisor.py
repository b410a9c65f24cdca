"""One schedule: what each due time becomes, and every run brought to an end. Nothing happens here that an event does not tell.

A due time becomes a run, or an event that says why not: missed, overlapped, nothing new. A run is written down in `state.json` before it
starts. Whoever finds one there that nobody attends to takes it over: a job that still runs is attended to, anything else starts again
under the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from components.errors import UserError
from components.lease import Lease
from pipelines.schedule.config import ScheduleConfig
from pipelines.schedule.runner import Progressed, Runner
from pipelines.schedule.state import Event, Observer, Run, Schedule, Waiting, id_of_data, id_of_due, this_process
from pipelines.schedule.triggers import due_between, look, next_due

LOOK_AGAIN_SECONDS = 60.0  # at a source that could not be listed

Told = tuple[str, str, str | None]  # kind and text of an event, and its run


class Supervisor:
    """Of one schedule. `step` does what is to be done now and returns; `wake` says when the next step is worth taking."""

    def __init__(self, schedule: Schedule, runner: Runner, lease: Lease, observer: Observer) -> None:
        """Raises UserError when the schedule cannot be read."""
        self.schedule, self._runner, self._lease, self._observer = schedule, runner, lease, observer
        added = schedule.added()
        if added is None:
            raise UserError(f"schedule {schedule.name} was removed")
        self._added = added
        self.state = schedule.state(added.since)
        self.attending = False  # an attempt of ours is under way
        self._poll: datetime | None = None  # when to look for new data next; None: now
        self._told = ""

    @property
    def config(self) -> ScheduleConfig:
        return self._added.config

    def reload(self) -> bool:
        """Takes a changed config into effect; False when the schedule was removed."""
        added = self.schedule.added()
        if added is None:
            return False
        if added != self._added:
            self._added, self._poll = added, None
            self.state = self.state.begun(added.since)
        return True

    def step(self, now: datetime, may_start: bool) -> None:
        """`may_start`: whether another attempt may begin beside those of other schedules."""
        if self.attending:
            self._attend(now)
        self._notice(now)
        if self.attending or not may_start:
            return
        run = self.state.run
        if run is None:
            self._consider(now)
        elif run.retry is None:
            self._take_over(run, now)
        elif now >= run.retry:
            self._attempt_again(run, now)

    def wake(self, now: datetime, watch: timedelta) -> datetime:
        """When `step` may have something to do, short of a change by others."""
        due = next_due(self.config.trigger, max(self.state.seen, now))
        times = [due] if due is not None else []
        waiting, run = self.state.waiting, self.state.run
        if run is not None:
            times.append(now if self.attending else run.retry or now)
        elif waiting is not None:
            times.append(waiting.until or now)
        elif self.config.trigger.cron is None:
            times.append(self._poll or now)
        return min(time if time > now else now + watch for time in times)  # past: another schedule's run has to end first

    def idle(self) -> bool:
        """Whether nothing is on, and nothing waits but for a source to settle or to be there."""
        waiting = self.state.waiting
        looked = self.config.trigger.cron is not None or self._poll is not None
        return self.state.run is None and (waiting is None or waiting.until is not None) and looked

    def leave(self, now: datetime) -> None:
        """Stops in order. A run that ends with us is there for the next scheduler."""
        self.state = self.schedule.state(self._added.since)  # the stop may have come between a write and its taking note
        if self.state.run is not None and self.attending:
            self._commit(now, [("stopped", "the scheduler was stopped; the run goes on when the next one starts", self.state.run.id)])

    def abandon(self, now: datetime) -> None:
        """Ends what is on: the schedule was removed."""
        run = self.state.run
        if run is not None and self.attending:
            self._runner.stop(self._attempt(run))
        if run is not None:
            self._conclude(run, now, "failed", "the schedule was removed")

    # Due times

    def _notice(self, now: datetime) -> None:
        trigger = self.config.trigger
        dues = due_between(trigger, self.state.seen, now)
        if not dues:
            return
        last = dues[-1]
        late = (now - last).total_seconds() > trigger.grace_seconds
        missed = dues if late else dues[:-1]
        events: list[Told] = []
        if missed:
            busy = self.state.run is not None and self.config.overlap == "skip"
            caught_up = (not late or trigger.missed == "once") and not busy
            told = f"{self._several(missed)} passed unseen; " + (
                f"caught up by the run due {self._time(last)}" if caught_up else "left out"
            )
            events.append(("missed", told, None))
        waiting = self.state.waiting
        if not late or trigger.missed == "once":
            waiting, told_of = self._make_wait(last)
            events += told_of
        self._commit(now, events, seen=last, waiting=waiting)

    def _make_wait(self, due: datetime) -> tuple[Waiting | None, list[Told]]:
        """What a due time does beside a run that is on, or another that waits."""
        run, before = self.state.run, self.state.waiting
        if run is not None and self.config.overlap == "skip":
            return before, [("overlapped", f"due {self._time(due)}, while run {run.id} was on; left out (overlap: skip)", run.id)]
        events: list[Told] = []
        if before is not None:
            events.append(
                ("overlapped", f"due {self._time(before.due)}, {before.why or 'waiting'} when {self._time(due)} came; left out", None)
            )
        if run is None:
            return Waiting(due=due), events
        why = f"waiting for run {run.id}"
        return Waiting(due=due, why=why), [*events, ("waits", f"due {self._time(due)}, {why} (overlap: after)", run.id)]

    def _consider(self, now: datetime) -> None:
        trigger, waiting = self.config.trigger, self.state.waiting
        if trigger.cron is None:
            if self._poll is None or now >= self._poll:
                self._poll = now + timedelta(seconds=trigger.poll_seconds)
                self._consider_data(now)
        elif waiting is not None and (waiting.until is None or now >= waiting.until):
            if trigger.new_data:
                self._consider_data(now, waiting)
            else:
                self._begin(id_of_due(waiting.due), f"due {self._time(waiting.due)}", None, now)

    def _consider_data(self, now: datetime, waiting: Waiting | None = None) -> None:
        """Looks at the source: for a due time, or because it is time to look."""
        trigger = self.config.trigger
        try:
            listing = look(self.config.source)
        except UserError as error:
            self._postpone(now, waiting, now + timedelta(seconds=LOOK_AGAIN_SECONDS), "cannot look", str(error))
            return
        taken = self.schedule.taken()
        if taken is not None and taken.data == listing.fingerprint:
            self._told = ""
            if waiting is not None:
                told = f"due {self._time(waiting.due)}: the source is as run {taken.run} took it"
                self._commit(now, [("nothing new", told, None)], waiting=None)
            return
        settle = timedelta(seconds=trigger.settle_seconds)
        if listing.changed <= now < listing.changed + settle:  # a date in the future settles at once: its end might never come
            self._postpone(
                now, waiting, listing.changed + settle, "unsettled", f"the source changed at {self._time(listing.changed)}; waiting"
            )
            return
        if waiting is not None:
            self._begin(id_of_due(waiting.due), f"new data, due {self._time(waiting.due)}", listing.fingerprint, now)
        else:
            self._begin(id_of_data(listing.fingerprint, taken), "new data", listing.fingerprint, now)

    def _postpone(self, now: datetime, waiting: Waiting | None, until: datetime, kind: str, why: str) -> None:
        """Looks again at `until`. The same reason is told once."""
        events = [(kind, why, None)] if why != (waiting.why if waiting is not None else self._told) else []
        if waiting is not None:
            self._commit(now, events, waiting=waiting.model_copy(update={"until": until, "why": why}))
            return
        self._told, self._poll = why, until
        if events:
            self._commit(now, events)

    # Runs

    def _begin(self, run_id: str, cause: str, data: str | None, now: datetime) -> None:
        before = self.schedule.run(run_id)
        if before is not None and before.status != "started":  # the same cause never runs twice
            if self.state.waiting is not None:
                self._commit(now, [("nothing new", f"{cause}: run {run_id} has {before.status} already", run_id)], waiting=None)
            return
        run = Run(id=run_id, cause=cause, config=self.config, data=data, started=now, attempted=now, scheduler=this_process())
        self._commit(now, [("started", cause, run_id)], run=run, waiting=None)
        self._start(run)

    def _take_over(self, run: Run, now: datetime) -> None:
        """A run that was on when its scheduler ended."""
        found = self._runner.poll(self._attempt(run))
        if found.state == "ended" or self.schedule.outcome(run.id) is not None:
            self._end(run, found, now)
            return
        goes_on = found.state == "running"
        if goes_on and run.scheduler == this_process():  # ours: the schedule was read anew after trouble with the store
            self.attending = True
            return
        told = f"after {run.scheduler}; the run {'goes on' if goes_on else 'starts again under the same id'}"
        run = run.model_copy(update={"scheduler": this_process()} | ({} if goes_on else {"attempted": now}))
        self._commit(now, [("taken over", told, run.id)], run=run)
        if goes_on:
            self.attending = True
        else:
            self._start(run)

    def _attempt_again(self, run: Run, now: datetime) -> None:
        again = {"attempts": run.attempts + 1, "attempted": now, "retry": None, "scheduler": this_process()}
        run = run.model_copy(update=again)
        self._commit(now, [("retrying", f"attempt {run.attempts} of {run.config.retries + 1}", run.id)], run=run)
        self._start(run)

    def _start(self, run: Run) -> None:
        self.schedule.write_run(run)
        name, store = self.schedule.name, self.schedule.store.url
        self._runner.start(["schedule", "run", name, "--run-id", run.id, "--due", "--store", store], self._attempt(run))
        self.attending = True

    def _attend(self, now: datetime) -> None:
        run = self.state.run
        assert run is not None, "an attempt under way is written down"
        found = self._runner.poll(self._attempt(run))
        limit = run.config.timeout_seconds
        if found.state == "running" and limit is not None and (now - run.attempted).total_seconds() > limit:
            self._runner.stop(self._attempt(run))
            self._runner.poll(self._attempt(run))
            found = Progressed("ended", None, f"took longer than {limit:g} s (timeout_seconds)")
        if found.state != "running":
            self.attending = False
            self._end(run, found, now)

    def _end(self, run: Run, found: Progressed, now: datetime) -> None:
        """An attempt has ended: well, for good, or to be tried again."""
        outcome = self.schedule.outcome(run.id)
        if outcome is not None:  # whatever became of the process after it wrote this down
            self._conclude(run, now, outcome.status, outcome.why)
            return
        error = found.error if found.exit_code != 0 else "ended well but left no outcome"
        if found.state == "gone":
            error = "the cluster no longer knows the job"
        if found.exit_code == 2 or run.attempts > run.config.retries:
            tried = "" if run.attempts == 1 else f" ({run.attempts} attempts)"
            self._conclude(run, now, "failed", f"{error}{tried}")
            return
        retry = now + timedelta(seconds=run.config.backoff_seconds * 2 ** (run.attempts - 1))
        told = f"attempt {run.attempts} of {run.config.retries + 1}: {error}; again at {self._time(retry)}"
        self._commit(now, [("attempt failed", told, run.id)], run=run.model_copy(update={"retry": retry}))

    def _conclude(self, run: Run, now: datetime, status: str, why: str) -> None:
        run = run.model_copy(update={"status": status, "ended": now, "retry": None, "why": why})
        self.schedule.write_run(run)
        if status == "succeeded":
            self.schedule.take(run)
        self.attending, self._poll = False, None
        self._commit(now, [(status, why, run.id)], run=None)

    def _attempt(self, run: Run) -> str:
        return f"{self.schedule.name}-{run.id}" + (f"-{run.attempts}" if run.attempts > 1 else "")

    def _commit(self, now: datetime, events: Sequence[Told], **changes: object) -> None:
        told = [Event(at=now, kind=kind, text=text, run=run) for kind, text, run in events]
        self.state = self.schedule.commit(self.state.model_copy(update=changes), told, self._lease)
        for event in told:
            self._observer.on_event(self.schedule.name, event)

    def _time(self, when: datetime) -> str:
        """As the schedule's own people say it."""
        return f"{when.astimezone(ZoneInfo(self.config.trigger.time_zone)):%Y-%m-%d %H:%M:%S %Z}"

    def _several(self, times: list[datetime]) -> str:
        if len(times) == 1:
            return f"due {self._time(times[0])}"
        return f"{len(times)} due times from {self._time(times[0])} to {self._time(times[-1])}"
