"""Seeds from anything that tells two draws apart."""

from __future__ import annotations

import hashlib

LANE = 8  # rows of a batch that one generator draws for


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mix of integers and strings; unequal parts give independent seeds."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
