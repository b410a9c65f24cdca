"""The sum over workers by a ring (Patarasu and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").

Each worker speaks to its two neighbours alone and sends 2 (W - 1) / W of the tensor, which no algorithm can undercut. Gloo and NCCL have
rings of their own, in C++, and training uses those; this one shows what they do and what it costs (`benchmarks/ring.py`).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from components.training.communication import Communication


def ring_all_reduce(value: Tensor, world: Communication) -> int:
    """Overwrites `value`, contiguous and of one shape on all workers, by its sum over them; returns how many elements this one sent.

    Equal bits on all workers, since each part is summed along one way and then copied.
    """
    flat = value.detach().view(-1)
    parts = flat.tensor_split(world.size)  # as even as can be; empty ones where there are fewer elements than workers
    room = torch.empty_like(parts[0])  # none is larger than the first
    sent = 0
    for step in range(world.size - 1):  # reduce-scatter: in the end the part after this worker's own is whole here
        away, here = parts[(world.rank - step) % world.size], parts[(world.rank - step - 1) % world.size]
        received = room[: len(here)]
        sent += _pass_on(away, received, world)
        here += received
    for step in range(world.size - 1):  # all-gather: whole parts go round
        away, here = parts[(world.rank + 1 - step) % world.size], parts[(world.rank - step) % world.size]
        sent += _pass_on(away, here, world)
    return sent


def _pass_on(away: Tensor, here: Tensor, world: Communication) -> int:
    """Sends `away` to the next worker, receives `here` from the one before, and returns how many elements were sent."""
    transfers = [
        dist.P2POp(operation, tensor, group=world.group, group_peer=(world.rank + offset) % world.size)
        for operation, tensor, offset in ((dist.isend, away, 1), (dist.irecv, here, -1))
        if len(tensor)  # both sides know which parts are empty
    ]
    for transfer in dist.batch_isend_irecv(transfers) if transfers else ():
        transfer.wait()
    return len(away)
