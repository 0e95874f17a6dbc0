"""A lost catalogue is made anew from what the store knows of its objects.

Who needed them is lost for good: each becomes its own, as an upload is, and what would have expired
is kept for a grace. Previews are left to the sweep: they are made anew when they are asked for.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from mentatlab.protocol.errors import MentatError, NotFound
from mentatlab.protocol.pins import PinType
from mentatlab.storage import keys, ownership, sniff
from mentatlab.storage.kinds import Kind
from mentatlab.storage.port import Blob, BlobInfo, BlobStore
from mentatlab.storage.upkeep import Upkeep
from mentatlab.storage.verified import digest

log = logging.getLogger(__name__)

_OURS = {"ref", "workspace", "expect", "filename", "claims", "created_at", "expires_at"}

Enter = Callable[[BlobInfo, Kind, str], Awaitable[Blob]]
"""Probes stored bytes and writes their row together with the owner's."""


class Rebuilt(msgspec.Struct, kw_only=True):
    """Counts of objects, so far. `foreign` ones are not ours and stay as they are."""

    entered: int = 0
    known: int = 0
    foreign: int = 0
    failed: int = 0

    @property
    def seen(self) -> int:
        return self.entered + self.known + self.foreign + self.failed


async def rebuild(
    store: BlobStore,
    upkeep: Upkeep,
    enter: Enter,
    *,
    now: float,
    grace_s: float,
    tell: Callable[[Rebuilt], None],
) -> Rebuilt:
    """Make rows for stored objects that have none. Repeatable: what is entered is known then.

    When all could be entered, the store belongs to this catalogue.
    """
    so_far = Rebuilt()
    async for listed in store.list():
        if listed.key == ownership.MARKER or keys.is_preview(listed.key):
            continue
        try:
            await _enter(listed.key, store, upkeep, enter, so_far, now + grace_s)
        except NotFound:
            continue  # taken away meanwhile
        except (OSError, MentatError) as error:
            log.warning("%s cannot be entered: %s", listed.key, error)
            so_far.failed += 1
        tell(so_far)
    if not so_far.failed:
        await ownership.take_over(store, upkeep)
    return so_far


async def _enter(
    key: str, store: BlobStore, upkeep: Upkeep, enter: Enter, so_far: Rebuilt, keep_until: float
) -> None:
    if await upkeep.is_expected(key):
        so_far.known += 1
        return
    info = await store.head(key)
    if not info.meta.keys() >= _OURS:
        so_far.foreign += 1
        return
    if not info.blake3:  # it came in parts, past us
        info = msgspec.structs.replace(info, blake3=await digest(store, key))
    info = msgspec.structs.replace(info, meta=_kept(info.meta, keep_until))
    await enter(info, _kind(info), f"upload:{info.meta['ref']}")
    so_far.entered += 1


def _kept(meta: dict[str, Any], until: float) -> dict[str, Any]:
    expires_at = meta["expires_at"]
    return {**meta, "expires_at": None if expires_at is None else max(expires_at, until)}


def _kind(info: BlobInfo) -> Kind:
    expect = info.meta["expect"]
    type_ = sniff.family(info.content_type) if expect is None else PinType(expect)
    return Kind(type_, info.content_type)
