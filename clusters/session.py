"""A Ray cluster for the time of one command: one started here, or an existing one by address; quiet, and checked before use."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clusters import loopback
from components.errors import UserError

CONNECT_SECONDS = 5.0

# What Ray reads in each process it starts. Workers stay in the driver's folder, prints come once, news of dead nodes do not
# come on stdout, the controller looks five times a second; Tune prints no tables, writes no logs of its own, and leaves Ctrl-C alone.
# The CPUs that a killed driver claimed for Ray Data are free for the next after half a minute instead of three.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def ray_cluster(address: str | None, cpus: int) -> Iterator[None]:
    """Connects to the cluster at `address` (host:port), or starts one here with `cpus` logical CPUs, and leaves it at the end.

    Inside a job of a Ray cluster that cluster is meant where no address is given. Raises UserError when nothing answers at `address`, it
    is no Ray cluster of this version, or it refuses the token.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():  # an outer program, or a test, has connected already
        yield
        return
    address = address or address_of_job()
    if address is not None:
        require_answer(address)
        choose_token_mode()
        _require_entry(address)
    with loopback.kept(own=address is None):
        _connect(address, cpus)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None, cpus: int) -> None:
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address else max(cpus, os.cpu_count() or 1),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise _no_entry(address, str(error).splitlines()[0]) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray's own handler prints a native stack trace
    for name in ("ray.train", "ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _require_entry(address: str) -> None:
    """Raises UserError when the cluster refuses the token here, which Ray's own client finds out in half a minute and many lines."""
    import grpc
    import ray
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    try:
        metadata = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=CONNECT_SECONDS, metadata=metadata)
    except ray.exceptions.AuthenticationError as error:
        raise _no_entry(address, str(error).splitlines()[0]) from error
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _no_entry(address, "the cluster refuses the token here") from None


def _no_entry(address: str | None, why: str) -> UserError:
    return UserError(
        f"--address {address}: {why}; give the host:port of a running Ray cluster of this version, "
        f"with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) set as on its nodes"
    )


def require_resources(workers: int, per_worker: dict[str, float]) -> None:
    """Raises UserError with the sum when the cluster does not hold what a worker group asks."""
    import ray

    there = ray.cluster_resources()
    for name, amount in per_worker.items():
        asked = workers * amount
        if asked > there.get(name, 0.0):
            raise UserError(
                f"{workers} workers x {amount:g} {name} = {asked:g} {name}, but the cluster has {there.get(name, 0.0):g}; "
                f"ask for fewer workers or add nodes"
            )


def log_folder() -> str:
    """Where Ray keeps the logs of this session's processes."""
    from ray._private.worker import _global_node

    return _global_node.get_logs_dir_path() if _global_node is not None else "/tmp/ray/session_latest/logs"


def address_of_job() -> str | None:
    """The cluster that this process is a job of; None outside a job."""
    return os.environ.get("RAY_ADDRESS") if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else None


def choose_token_mode() -> None:
    """Ray's clients look at no token unless they are told to: where one is named, it is meant."""
    if any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def require_answer(address: str, option: str = "--address") -> None:
    """Raises UserError at once when `address` is not host:port, or nothing listens there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{option} {address!r} is not host:port; give the address that `ray start --head` printed, such as 10.0.0.5:6379")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{option} {address}: nothing answers ({error}); start a cluster with `raymill cluster up` or `ray start --head`"
        ) from None
