"""Digests that a client announces, and bodies that are let through only when theirs is right."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from blake3 import blake3
from starlette.datastructures import Headers

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.storage.local import disk
from mentatlab.storage.pump import pump

ALGORITHMS: dict[str, Callable[[], Any]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "blake3": blake3,
}
"""Names as tus writes them."""

_SHA256 = re.compile(r"(?:^|[,\s])sha-256=:([^:]*):", re.IGNORECASE)
_CHUNK = 1 << 20


class Checksum(NamedTuple):
    algorithm: str  # of ALGORITHMS
    digest: bytes


def announced_sha256(headers: Headers, *names: str) -> str | None:
    """In hex, from the first of the headers that has one (RFC 9530: `Content-Digest`,
    `Repr-Digest`); other algorithms are ignored."""
    for name in names:
        match = _SHA256.search(",".join(headers.getlist(name)))
        if match is not None:
            return _sha256(name, match[1])
    return None


def parse_checksum(text: str) -> Checksum:
    """`Upload-Checksum: sha1 <base64>`; `Invalid` also for an algorithm that is not known here."""
    algorithm, _, encoded = text.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"the checksum algorithm {algorithm[:20]!r} is not known here",
            hint=f"use one of {', '.join(ALGORITHMS)}",
        )
    digest = _base64(encoded)
    if digest is None or len(digest) != ALGORITHMS[algorithm]().digest_size:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"Upload-Checksum has no valid {algorithm}",
            hint="write the algorithm, a space, and the digest in base64",
        )
    return Checksum(algorithm, digest)


async def verified(source: AsyncIterator[bytes], checksum: Checksum) -> AsyncIterator[bytes]:
    """All of `source`, from a temporary file, once its digest is known to be right;
    `Invalid(UPLOAD_CHECKSUM_MISMATCH)` before the first byte otherwise, `OutOfSpace(DISK_FULL)`."""
    hash_ = ALGORITHMS[checksum.algorithm]()
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile(buffering=0) as file:

        @disk.translated
        def take(batch: list[bytes]) -> None:
            for piece in batch:
                hash_.update(piece)
            disk.append(file.fileno(), batch, file.seek(0, os.SEEK_END))

        last = await pump(source, lambda batch: loop.run_in_executor(None, take, batch))
        await asyncio.to_thread(take, last)
        if not hmac.compare_digest(hash_.digest(), checksum.digest):
            raise _mismatch(checksum.algorithm)
        await asyncio.to_thread(file.seek, 0)
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _sha256(name: str, encoded: str) -> str:
    digest = _base64(encoded)
    if digest is None or len(digest) != 32:
        raise Invalid(
            Code.INVALID_REQUEST,
            f"the {name} header has no valid sha-256",
            hint="write sha-256=:<base64 of 32 bytes>:",
        )
    return digest.hex()


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _mismatch(algorithm: str) -> Invalid:
    return Invalid(
        Code.UPLOAD_CHECKSUM_MISMATCH,
        f"the {algorithm} of the bytes is not the announced one; they were dropped",
        hint="send the same bytes again from the same offset",
    )
