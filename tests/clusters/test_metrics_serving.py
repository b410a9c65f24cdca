"""How the metrics hub is served, without Ray, and how drivers tell it of their runs."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest

from clusters import metrics
from clusters.metrics import HubActor, endpoint, serve_metrics, told, told_here
from clusters.monitoring.hub import MetricsHub
from clusters.monitoring.states import RunState, ScheduleState
from components.errors import UserError
from tests.clusters.test_metrics_hub import run
from tests.prometheus import free_port, get


@pytest.fixture
def hub() -> MetricsHub:
    return MetricsHub()


# Serving


def test_it_listens_on_loopback_unless_told_otherwise(hub: MetricsHub) -> None:
    with serve_metrics(hub, port=0) as url:
        assert url.startswith("http://127.0.0.1:")
        assert "raymill_build_info" in get(url)
        listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"}
        port = f"{int(url.split(':')[2].split('/')[0]):04X}"
        assert [place for place in listening if place.endswith(f":{port}")] == [f"0100007F:{port}"]
    with pytest.raises(urllib.error.URLError):
        get(url)
    with serve_metrics(hub, "0.0.0.0", 0) as url:
        assert "raymill_build_info" in get(url.replace("0.0.0.0", "127.0.0.1"))


def test_a_taken_port_is_told(hub: MetricsHub) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot be served at 127.0.0.1:{port}: Address already in use; set RAYMILL_METRICS_HOST"):
            serve_metrics(hub, port=port).__enter__()


def test_the_endpoint_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (metrics.HOST, metrics.PORT):
        monkeypatch.delenv(name, raising=False)
    assert endpoint() == ("127.0.0.1", 9464)
    monkeypatch.setenv(metrics.HOST, "0.0.0.0")
    monkeypatch.setenv(metrics.PORT, "1234")
    assert endpoint() == ("0.0.0.0", 1234)


@pytest.mark.parametrize("port", ["http", "65536", "-1", "1.5"])
def test_what_is_no_port_is_told(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv(metrics.PORT, port)
    with pytest.raises(UserError, match=f"RAYMILL_METRICS_PORT='{port}' is no port; give a number up to 65535, or 0 for no metrics"):
        endpoint()


def test_a_command_alone_serves_its_own_run(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv(metrics.PORT, str(port))
    monkeypatch.setattr(metrics, "TELL_SECONDS", 0.01)
    with told_here(lambda: run(1)):
        until(lambda: 'run="run-1"' in get(f"http://127.0.0.1:{port}/metrics"))


def test_an_actor_whose_port_is_taken_serves_when_it_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (metrics.HOST, metrics.PORT):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        actor = HubActor({metrics.PORT: str(port)})
        with pytest.raises(UserError, match="cannot be served"):
            actor.run_json(run(1).model_dump_json())
    actor.schedule_json("daily", ScheduleState(status="waiting", heartbeat_at=1).model_dump_json())
    page = get(actor.url())
    assert 'run="run-1"' in page
    assert 'schedule="daily"' in page
    actor.close()


# Telling


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(metrics, "FAREWELL_SECONDS", 0.2)


@pytest.mark.usefixtures("quick")
def test_only_what_changed_is_told_and_the_end_always() -> None:
    sent: list[str] = []
    states = [run(1)]
    with told(lambda: states[-1], sent.append):
        until(lambda: len(sent) == 1)
        time.sleep(0.1)
        assert len(sent) == 1
        states.append(run(2))
        until(lambda: len(sent) == 2)
        states.append(run(3, status="finished"))
    assert [RunState.model_validate_json(text).name for text in sent][:2] == ["run-1", "run-2"]
    assert RunState.model_validate_json(sent[-1]).status == "finished"


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_tells_that_the_driver_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "HEARTBEAT_SECONDS", 0.05)
    sent: list[str] = []
    with told(lambda: run(1), sent.append):
        until(lambda: len(sent) > 3)
    assert len(set(sent)) == 1


@pytest.mark.usefixtures("quick")
def test_a_hub_that_fails_is_told_again_and_hurts_nobody() -> None:
    tries: list[str] = []

    def send(text: str) -> None:
        tries.append(text)
        raise ConnectionError("dead")

    started = time.monotonic()
    with told(lambda: run(1), send):
        until(lambda: len(tries) == 5)
        assert time.monotonic() - started > 0.01 * (1 + 2 + 4 + 8 + 16)


@pytest.mark.usefixtures("quick")
def test_a_hub_that_hangs_does_not_hold_the_end_of_a_run() -> None:
    never = threading.Event()
    started = time.monotonic()
    with told(lambda: run(1), lambda text: never.wait(60) and None):
        pass
    assert time.monotonic() - started < 30
    never.set()
