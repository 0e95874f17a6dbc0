"""Identifiers: a prefix and a ULID (Crockford base 32, 48-bit milliseconds + 80 random bits).

Time and randomness are arguments of the pure `ulid`; `new_id` is the convenience for shells.
"""

import os
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(time_ms: int, randomness: bytes) -> str:
    """26 characters; sorts by `time_ms`. `randomness` is 10 bytes."""
    value = (time_ms << 80) | int.from_bytes(randomness, "big")
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -1, -5))


def new_id(prefix: str) -> str:
    """`prefix_<ulid>`: `rn_…` run, `st_…` stream, `rs_…` a stream's own run, `blob_…` media."""
    return f"{prefix}_{ulid(time.time_ns() // 1_000_000, os.urandom(10))}"
