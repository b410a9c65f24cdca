"""Ray reads RAY_AUTH_MODE and the token once a process; tests in one process go from one cluster to another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from clusters.raylets import Raylets


def read_environment_again() -> None:
    """Lets Ray's clients in this process take mode and token from the environment as it is now."""
    from ray._private.authentication_test_utils import reset_auth_token_state

    reset_auth_token_state()


@contextmanager
def client_of(raylets: Raylets, environment: Mapping[str, str] | None = None) -> Iterator[pytest.MonkeyPatch]:
    """This process as one that has been told of the cluster, with more of an environment."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
                patch.delenv(name, raising=False)
            for name, value in {"RAY_API_SERVER_ADDRESS": raylets.jobs_url, **raylets.environment, **(environment or {})}.items():
                patch.setenv(name, value)
            read_environment_again()
            yield patch
    finally:
        read_environment_again()
