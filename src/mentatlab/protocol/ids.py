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
    """`prefix_<ulid>`: `rn_…` run, `st_…` stream, `rs_…` a stream's own run, `blob_…` media.

    The first 20 of its random bits are the nanoseconds of its millisecond (RFC 9562 §6.2, method
    3), so those of one machine sort as they were made; 60 stay random.
    """
    time_ms, nanoseconds = divmod(time.time_ns(), 1_000_000)
    tail = nanoseconds << 60 | int.from_bytes(os.urandom(8), "big") >> 4
    return f"{prefix}_{ulid(time_ms, tail.to_bytes(10, 'big'))}"
