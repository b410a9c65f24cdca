"""Where the metrics hub runs and who speaks to it: one actor on the head node for a whole cluster, or a server in a plain process.

    with serve_metrics(MetricsHub()) as url: ...      # a scheduler, or a command without a cluster

The endpoint is 127.0.0.1:9464 unless RAYMILL_METRICS_HOST and RAYMILL_METRICS_PORT say otherwise, those of the head node for a cluster's.
Drivers speak from a thread of their own: a hub that is slow, dead or full costs them metrics and nothing else.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from clusters.monitoring.hub import MetricsHub
from clusters.monitoring.states import RunState, ScheduleState, StageState
from clusters.ports import METRICS_PORT
from components.config import Config
from components.errors import UserError

__all__ = ["MetricsHub", "RunState", "ScheduleState", "StageState", "serve_metrics"]

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
HOST, PORT = "RAYMILL_METRICS_HOST", "RAYMILL_METRICS_PORT"
ACTOR, NAMESPACE = "raymill-metrics", "raymill"
TELL_SECONDS = 1.0  # at most one state a second
HEARTBEAT_SECONDS = 15.0  # and one in so many when nothing changes
RETRY_SECONDS = 60.0  # at most between two tries after failures
ANSWER_SECONDS, FAREWELL_SECONDS = 30.0, 3.0

Send = Callable[[str], None]  # takes a state as JSON


def endpoint(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port from the environment, or the defaults. Raises UserError for a port that is none."""
    host, port = environment.get(HOST) or LOOPBACK, environment.get(PORT) or str(METRICS_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise UserError(f"{PORT}={port!r} is no port; give a number up to 65535, or 0 for no metrics")
    return host, int(port)


@contextmanager
def serve_metrics(hub: MetricsHub, host: str = LOOPBACK, port: int = METRICS_PORT) -> Iterator[str]:
    """Serves the hub's series in this process; gives the URL. Port 0: any that is free. Raises UserError when it cannot listen there."""
    registry = CollectorRegistry()
    registry.register(hub)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UserError(f"metrics cannot be served at {host}:{port}: {error.strerror or error}; set {HOST} and {PORT} to another") from None
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def told(state: Callable[[], Config], send: Send) -> Iterator[None]:
    """Sends what `state` gives whenever it has changed, and now and then as a heartbeat; for the last time at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=_tell, args=(state, send, stop), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(FAREWELL_SECONDS)


def _tell(state: Callable[[], Config], send: Send, stop: threading.Event) -> None:
    before, at, wait, last = "", 0.0, TELL_SECONDS, False
    while not last:
        last = stop.wait(wait)
        try:
            text = state().model_dump_json()
            if last or text != before or time.monotonic() - at > HEARTBEAT_SECONDS:
                send(text)
                before, at, wait = text, time.monotonic(), TELL_SECONDS
        except Exception as error:  # whatever it is, training must not notice
            wait = min(2 * wait, RETRY_SECONDS)  # each try may start a process on the head node
            logger.info("metrics were not taken: %s", error)


@contextmanager
def told_here(state: Callable[[], RunState]) -> Iterator[None]:
    """Serves the run's metrics from this process, for as long as it lasts. Raises UserError as `serve_metrics`."""
    host, port = endpoint()
    hub = MetricsHub()
    with serve_metrics(hub, host, port) if port else ExitStack(), told(state, hub.run_json):
        yield


@contextmanager
def told_to_cluster(state: Callable[[], RunState]) -> Iterator[None]:
    """Tells the run's state to the one hub of the Ray cluster that this process is connected to, which is started if it is not there."""
    port = endpoint()[1]
    with told(state, ClusterHub().run_json) if port else ExitStack():
        yield


class ClusterHub:
    """The hub of the cluster that this process is connected to, looked up (or started) again after each failure."""

    def __init__(self) -> None:
        self._actor: Any = None

    def run_json(self, text: str) -> None:
        """Tells the state of a run, and waits for the hub to have it; raises what Ray raises."""
        self._call("run_json", text)

    def schedule(self, name: str, state: ScheduleState | None) -> None:
        """Tells the state of a schedule, as `MetricsHub.schedule`; raises what Ray raises."""
        self._call("schedule_json", name, None if state is None else state.model_dump_json())

    def url(self) -> str:
        """Where the hub serves, seen from the head node; raises UserError when it cannot listen there."""
        return self._call("url")

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            self._actor = self._actor or _find_or_start()
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except Exception:
            self._actor = None
            raise


def _find_or_start() -> Any:
    import ray

    given = {name: os.environ[name] for name in (HOST, PORT) if name in os.environ}
    options = {"name": ACTOR, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached", "max_restarts": -1}
    head = {"node:__internal_head__": 0.001}  # wherever the head is after a restart
    return ray.remote(HubActor).options(num_cpus=0, resources=head, **options).remote(given)


class HubActor:
    """The hub in a process of its own. What it cannot do now (its port is taken) it tries again when it is next told something."""

    def __init__(self, environment: dict[str, str]) -> None:
        """`environment` is what the first driver says of the endpoint; what it leaves open the head node's own says."""
        self._environment = {**os.environ, **environment}
        self._hub = MetricsHub()
        self._server = ExitStack()
        self._url: str | None = None

    def run_json(self, text: str) -> None:
        self._hub.run_json(text)
        self.url()

    def schedule_json(self, name: str, text: str | None) -> None:
        self._hub.schedule(name, None if text is None else ScheduleState.model_validate_json(text))
        self.url()

    def close(self) -> None:
        self._server.close()

    def url(self) -> str:
        self._url = self._url or self._server.enter_context(serve_metrics(self._hub, *endpoint(self._environment)))
        return self._url
