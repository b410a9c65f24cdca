"""Which cluster and which token a command takes from its environment."""

from __future__ import annotations

import os

import pytest

from clusters.session import address_of_job, choose_token_mode


def test_inside_a_job_its_cluster_is_meant_and_outside_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert address_of_job() is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert address_of_job() == "10.0.0.5:6379"


@pytest.mark.parametrize(
    ("given", "mode"),
    [({}, None), ({"RAY_AUTH_TOKEN_PATH": "t"}, "token"), ({"RAY_AUTH_TOKEN": "t", "RAY_AUTH_MODE": "disabled"}, "disabled")],
)
def test_a_token_that_is_named_is_meant(given: dict[str, str], mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the call sets is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    choose_token_mode()
    assert os.environ.get("RAY_AUTH_MODE") == mode
