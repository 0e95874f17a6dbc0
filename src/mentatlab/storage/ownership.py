"""Which catalogue a store belongs to.

Bytes without a row are litter only to the catalogue that knows all rows. So the store says whose it
is: a catalogue that was lost and begun anew, another server that was given the same bucket, or a
folder that is not mounted, take nothing away and find nothing missing.
"""

import contextlib
from collections.abc import AsyncIterator

from mentatlab.protocol.errors import Code, Conflict, NotFound
from mentatlab.storage.port import BlobStore
from mentatlab.storage.upkeep import Upkeep

MARKER = "_mentatlab/catalog"
"""The key of an object without a row; its `meta` names the catalogue."""
_RESERVED = "moving:"


async def belongs(store: BlobStore, upkeep: Upkeep) -> bool:
    """Whether the store is this catalogue's. One that says nothing becomes it, if both are new, or
    neither is: a homes' from before the marker."""
    with contextlib.suppress(NotFound):
        return await _owner(store) == await upkeep.identity()
    if await upkeep.is_empty() != await _is_empty(store):
        return False
    await _mark(store, await upkeep.identity())
    return await _owner(store) == await upkeep.identity()


async def is_anothers(store: BlobStore, upkeep: Upkeep) -> bool:
    """Whether it says that it is, finished or not."""
    with contextlib.suppress(NotFound):
        return (await _owner(store)).removeprefix(_RESERVED) != await upkeep.identity()
    return False


async def reserve(store: BlobStore, upkeep: Upkeep) -> None:
    """The store will be this catalogue's when everything is in it; until then it is nobody's."""
    await store.delete(MARKER)
    await _mark(store, _RESERVED + await upkeep.identity())


async def take_over(store: BlobStore, upkeep: Upkeep) -> None:
    """From now on the store is this catalogue's, which knows all of its objects."""
    await store.delete(MARKER)
    await _mark(store, await upkeep.identity())


def foreign(what: str) -> Conflict:
    return Conflict(
        Code.STORE_FOREIGN,
        f"{what} belongs to another catalogue",
        hint="if catalog.db was lost: `mentatlab storage rebuild`; else name another bucket, "
        "prefix or folder",
    )


async def _owner(store: BlobStore) -> str:
    return (await store.head(MARKER)).meta["catalog"]


async def _mark(store: BlobStore, owner: str) -> None:
    with contextlib.suppress(Conflict):  # another process of this catalogue's, or not
        await store.put(MARKER, _nothing(), meta={"catalog": owner})


async def _is_empty(store: BlobStore) -> bool:
    async for info in store.list():
        if info.key != MARKER:  # another task may be marking it just now
            return False
    return True


async def _nothing() -> AsyncIterator[bytes]:
    yield b""
