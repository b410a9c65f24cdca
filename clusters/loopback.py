"""Ray on 127.0.0.1 alone, where no other machine reaches it.

Ray 2.60 listens on all interfaces unless a node's address is exactly 127.0.0.1, and makes the machine's outer address of that one where it
is asked for. What keeps it is the switch that makes a Ray for one machine of it, off on Linux. This file run as `... start` is `ray start`,
which by itself adds no second node while the switch is on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESS = "127.0.0.1"
SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
ENVIRONMENT = {SWITCH: "0"}  # of each process that starts Ray, or connects to one that is kept on loopback


@contextmanager
def kept(own: bool) -> Iterator[None]:
    """Ray obeys the switch as the environment has it now, not as it was when Ray was imported; a cluster of one's `own` has it on.

    Whoever set it to 1 is obeyed, and Ray listens on all interfaces.
    """
    from ray._private import ray_constants

    added = {name: value for name, value in ENVIRONMENT.items() if own and name not in os.environ}
    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(added)
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(SWITCH, not ray_constants.IS_WINDOWS_OR_OSX)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in added:
            os.environ.pop(name, None)


def _start() -> None:
    from ray._private import ray_constants, services
    from ray.scripts.scripts import main

    ray_constants.ENABLE_RAY_CLUSTER = True
    services.resolve_ip_for_localhost = lambda host: host
    main()


if __name__ == "__main__":
    _start()
