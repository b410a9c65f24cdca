"""Room for workers on a cluster, as Ray's scheduler sees it.

A placement group of one worker's resources is a bid: it is ready when one more worker fits, nobody else gets that room then, and a bid that
waits makes an autoscaling cluster grow. Ray takes a quarter of a minute to believe that a node died, and places workers there until then;
so where workers have just died, nodes that do not answer are avoided by name.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from components.errors import UserError

NODE = "ray.io/node-id"
POLL_SECONDS = 0.1
SETTLE_SECONDS = 5.0
TELL_SECONDS = 15.0
ANSWER_SECONDS = 2.0
PATIENCE_SECONDS = 900.0


class Room:
    """Bids for workers of `per_worker` resources each."""

    def __init__(self, per_worker: Mapping[str, float]) -> None:
        self._per_worker = dict(per_worker)
        self._bids: list[PlacementGroup] = []
        self.avoided: dict[str, str] = {}  # label selector, for bids and for the workers that follow them

    def bid(self, workers: int) -> None:
        """Keeps so many bids: adds what is missing, takes back what is too much."""
        while len(self._bids) < workers:
            self._bids.append(placement_group([self._per_worker], bundle_label_selector=[self.avoided] if self.avoided else None))
        while len(self._bids) > workers:
            remove_placement_group(self._bids.pop())

    def ready(self) -> int:
        """How many bids have got their room."""
        return sum(bid.wait(0) for bid in self._bids)

    def claim(self, least: int, most: int, on_waiting: Callable[[], None]) -> int:
        """Waits until as many workers fit as the cluster can hold, `most` at most, or for some seconds what is there; returns how many.

        With room for fewer than `least` it waits on, after a call of `on_waiting`. The room is free again then, for a worker group. Raises
        UserError when there is none for a quarter of an hour.
        """
        began, told = time.monotonic(), False
        lost = lost_nodes()
        self.bid(0)
        self.avoided = {NODE: f"!in({','.join(lost)})"} if lost else {}
        wanted = max(least, min(most, self.in_all(frozenset(lost))))
        self.bid(wanted)
        try:
            while (found := self.ready()) < wanted:
                waited = time.monotonic() - began
                if waited > SETTLE_SECONDS and found >= least:
                    break
                if waited > TELL_SECONDS and not told:
                    told = True
                    on_waiting()
                if waited > PATIENCE_SECONDS:
                    raise UserError(f"the cluster has room for {found} of {least} workers of {self}; add nodes, or ask for fewer workers")
                time.sleep(POLL_SECONDS)
        finally:
            self.bid(0)
        return found

    def __str__(self) -> str:
        return " + ".join(f"{amount:g} {name}" for name, amount in self._per_worker.items())

    def in_all(self, without: frozenset[str] = frozenset()) -> int:
        """How many workers the nodes that stay would hold if nothing else ran there."""
        nodes = [node["Resources"] for node in staying_nodes() if node["NodeID"] not in without]
        return sum(min(int(there.get(name, 0.0) // asked) for name, asked in self._per_worker.items()) for there in nodes)


def staying_nodes() -> list[dict[str, Any]]:
    """Nodes that Ray believes alive and that are not to leave."""
    drained = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in drained]


def draining_nodes() -> frozenset[str]:
    """Nodes that are to leave the cluster: preempted ones, or ones that `ray drain-node` named."""
    return frozenset(ray_state.get_draining_nodes())


def lost_nodes() -> list[str]:
    """Nodes that Ray believes alive and whose raylet does not answer."""
    nodes = staying_nodes()
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(_answers, nodes)
        return [node["NodeID"] for node, answers_us in zip(nodes, answers, strict=True) if not answers_us]


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
