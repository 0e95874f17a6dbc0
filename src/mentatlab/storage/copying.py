"""A copy within a store that has no verb for it: read and put, verified on the way."""

import contextlib
from collections.abc import AsyncIterator

from blake3 import blake3

from mentatlab.protocol.errors import Code, Internal
from mentatlab.storage.port import BlobInfo, BlobStore, Reader


async def copy(store: BlobStore, source: str, target: str) -> BlobInfo:
    """`Internal(REFERENCE_CORRUPT)`, and no copy, when the bytes are not what they were."""
    reader = await store.get(source)
    async with contextlib.aclosing(reader):
        return await store.put(
            target,
            verified(reader),
            content_type=reader.info.content_type,
            meta=reader.info.meta,
            sha256=bool(reader.info.sha256),
        )


async def verified(reader: Reader) -> AsyncIterator[bytes]:
    """A whole object; its end is an error when the bytes are not those of its hash."""
    hash_ = blake3()
    async for chunk in reader:
        hash_.update(chunk)
        yield chunk
    if reader.info.blake3 not in ("", hash_.hexdigest()):
        raise Internal(
            Code.REFERENCE_CORRUPT,
            f"the bytes of {reader.info.key!r} are damaged",
            hint="upload it again",
        )
