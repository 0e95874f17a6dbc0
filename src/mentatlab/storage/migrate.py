"""Every blob from one store to another, verified, while nothing else uses either.

A blob is hashed as it leaves, as it arrives, and once more as the target gives it back. What the
target has already is only read back; how far a former attempt came is kept in a small file, so that
after a kill at any point the same call goes on. At the end both sides are compared by their lists.
The source stays as it is.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import msgspec

from mentatlab.protocol.errors import Code, MentatError, Unavailable
from mentatlab.storage import ownership
from mentatlab.storage.life import side_by_side
from mentatlab.storage.port import Blob, BlobStore
from mentatlab.storage.upkeep import Upkeep
from mentatlab.storage.verified import VerifiedReader, digest, is_damage

log = logging.getLogger(__name__)

_PAGE = 64
_AT_ONCE = 4
_LISTED = 100


class Migrated(msgspec.Struct, kw_only=True):
    """So far. `corrupt` names the first hundred blobs that could not be moved."""

    total: int = 0
    total_bytes: int = 0
    done: int = 0
    bytes: int = 0
    copied: int = 0
    corrupt_count: int = 0
    corrupt: list[str] = []
    open_uploads: int = 0  # stay behind: their clients begin anew


class _Place(msgspec.Struct, frozen=True):
    """Where a former attempt has stopped: all blobs up to this key are in the target, verified."""

    target: str
    after: str
    so_far: Migrated


Tell = Callable[[Migrated], None]


class Migration:
    """`name` says which target it is; `journal` is a file of the home."""

    def __init__(
        self,
        source: BlobStore,
        target: BlobStore,
        upkeep: Upkeep,
        *,
        name: str,
        journal: Path,
        tell: Tell,
    ) -> None:
        self._source, self._target, self._upkeep = source, target, upkeep
        self._name, self._journal, self._tell = name, journal, tell
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._so_far = Migrated()

    async def run(self) -> Migrated:
        """`Conflict(STORE_FOREIGN)` when one of the stores is another catalogue's. An error of a
        disk or a server ends it: call it again."""
        await self._check_stores()
        await ownership.reserve(self._target, self._upkeep)
        place = self._read_journal()
        self._so_far = place.so_far
        await self._count()
        await self._move_behind(place.after)
        async for blob in self._lacking():
            await self._move(blob)
        await ownership.take_over(self._target, self._upkeep)
        self._journal.unlink(missing_ok=True)
        return self._so_far

    async def _check_stores(self) -> None:
        await self._source.check()
        await self._target.check()
        if not await ownership.belongs(self._source, self._upkeep):
            raise ownership.foreign("the store to move from")
        if await ownership.is_anothers(self._target, self._upkeep):
            raise ownership.foreign("the store to move to")

    async def _count(self) -> None:
        holdings = await self._upkeep.holdings()
        self._so_far.total, self._so_far.total_bytes = holdings.count, holdings.bytes
        self._so_far.open_uploads = await self._upkeep.open_uploads()
        self._tell(self._so_far)

    # --- one after another

    async def _move_behind(self, after: str) -> None:
        while page := await self._upkeep.by_key(after=after, limit=_PAGE):
            async with asyncio.TaskGroup() as group:
                for blob in page:
                    group.create_task(self._move_counted(blob))
            after = page[-1].key
            self._write_journal(after)

    async def _move_counted(self, blob: Blob) -> None:
        async with self._slots:
            await self._move(blob)
        self._so_far.done += 1
        self._so_far.bytes += blob.size
        self._tell(self._so_far)

    async def _move(self, blob: Blob) -> None:
        seen = await self._look(blob)
        if seen == "right":
            return
        if seen == "wrong":
            await self._target.delete(blob.key)
        try:
            await self._copy(blob)
        except MentatError as error:
            if not is_damage(error):
                raise
            await self._leave(blob)
            return
        self._so_far.copied += 1
        if await self._look(blob) != "right":
            raise Unavailable(
                Code.STORE_UNAVAILABLE,
                f"the target does not give back the bytes of {blob.id} that it was given",
                hint="look at the target's disk or server; nothing was removed from the source",
            )

    async def _look(self, blob: Blob) -> Literal["absent", "right", "wrong"]:
        """The target's bytes, read back and compared."""
        try:
            found = await digest(self._target, blob.key)
        except MentatError as error:
            if not is_damage(error):
                raise
            return "absent" if error.code is Code.REFERENCE_NOT_FOUND else "wrong"
        return "right" if found == blob.blake3 else "wrong"

    async def _copy(self, blob: Blob) -> None:
        reader = await self._source.get(blob.key)
        async with contextlib.aclosing(VerifiedReader(reader, blob, self._tell_damage)) as verified:
            await self._target.put(
                blob.key,
                aiter(verified),
                content_type=reader.info.content_type,
                meta=reader.info.meta,
                sha256=bool(blob.sha256),
            )

    async def _leave(self, blob: Blob) -> None:
        await self._upkeep.mark_corrupt(blob.id)
        self._so_far.corrupt_count += 1
        if len(self._so_far.corrupt) < _LISTED:
            self._so_far.corrupt.append(blob.id)

    async def _tell_damage(self, blob: Blob, how: str) -> None:
        log.error("%s (%s) cannot be moved: %s", blob.id, blob.key, how)

    # --- what is still lacking, whatever the journal says

    async def _lacking(self) -> AsyncIterator[Blob]:
        async for info, blob in side_by_side(self._target.list(), self._blobs()):
            fits = info is not None and blob is not None and info.size == blob.size
            if blob is not None and blob.state == "ready" and not fits:
                yield blob

    async def _blobs(self) -> AsyncIterator[Blob]:
        after = ""
        while page := await self._upkeep.by_key(after=after, limit=_PAGE):
            for blob in page:
                yield blob
            after = page[-1].key

    # --- the journal

    def _read_journal(self) -> _Place:
        try:
            place = msgspec.json.decode(self._journal.read_bytes(), type=_Place)
        except (FileNotFoundError, msgspec.DecodeError):
            return _Place(self._name, "", Migrated())
        return place if place.target == self._name else _Place(self._name, "", Migrated())

    def _write_journal(self, after: str) -> None:
        draft = self._journal.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(_Place(self._name, after, self._so_far)))
        draft.replace(self._journal)
