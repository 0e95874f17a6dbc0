"""Content digests of JSON values."""

import hashlib
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder(order="deterministic")


def digest_of(value: Any) -> str:
    """sha256, hex, of the value's canonical JSON (keys sorted, no spaces)."""
    return hashlib.sha256(_encoder.encode(value)).hexdigest()
