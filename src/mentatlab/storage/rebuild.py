"""A lost catalogue is made anew from what the store knows of its objects."""

from collections.abc import Awaitable, Callable

from mentatlab.protocol.pins import PinType
from mentatlab.storage import sniff
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.kinds import Kind
from mentatlab.storage.port import Blob, BlobInfo, BlobStore

Enter = Callable[[BlobInfo, Kind, str], Awaitable[Blob]]
"""Probes stored bytes and writes their row together with the owner's."""


async def rebuild(store: BlobStore, catalog: Catalog, enter: Enter) -> int:
    """Make rows for stored objects that have none; how many. Each is its own owner then."""
    made = 0
    async for info in store.list():
        if "ref" in info.meta and not await catalog.is_expected(info.key):
            await enter(info, _kind(info), f"upload:{info.meta['ref']}")
            made += 1
    return made


def _kind(info: BlobInfo) -> Kind:
    expect = info.meta["expect"]
    type_ = sniff.family(info.content_type) if expect is None else PinType(expect)
    return Kind(type_, info.content_type)
