"""Housekeeping: what nobody needs goes, what is damaged is told.

    ready ──> deleting ──> (no row)         the row is marked, the bytes go, the row goes
      └─────> corrupt ──> deleting

An object is deleted only after its row was marked in the catalogue, which a new owner's claim and
the mark take in turns: whoever comes second fails or has prevented it. Objects without a row, which
a crash leaves behind, go when they are older than the grace. Any number of processes may sweep one
store at the same time: each step may be done twice, because a key, which carries a time or the
blob's id, is never used again.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import NamedTuple, TypeVar

from mentatlab.protocol.errors import MentatError, NotFound
from mentatlab.storage import ownership
from mentatlab.storage.catalog import Catalog
from mentatlab.storage.port import Blob, BlobInfo, BlobStore, StaleUpload
from mentatlab.storage.rebuild import Enter, Rebuilt, rebuild
from mentatlab.storage.scrub import Scrub
from mentatlab.storage.upkeep import Holdings, Known, Upkeep
from mentatlab.storage.verified import is_damage

log = logging.getLogger(__name__)

GRACE_S = 86_400.0
"""How long something that nobody needs is kept."""
EXPIRED_GRACE_S = 3600.0
"""How long something that has expired is kept: who began to read it before may finish."""
_PAGE = 256
_DELETES = 8  # at once


Row = TypeVar("Row", Known, Blob)


class Swept(NamedTuple):
    blobs: int  # rows with their bytes: ownerless or expired
    orphans: int  # bytes without a row
    missing: int = 0  # rows without their bytes: corrupt now
    uploads: int = 0  # parts of uploads that nobody goes on with
    foreign: bool = False  # the bytes belong to another catalogue: only rows were looked at

    def counts(self) -> dict[str, int]:
        """What was removed, by kind."""
        return {"blob": self.blobs, "orphan": self.orphans, "upload": self.uploads}


def _quietly(so_far: Rebuilt) -> None:
    """Nobody wants to know how far it is."""


class Life:
    """`arriving`: keys that puts of this process will take. Times are Unix seconds."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        enter: Enter,
        *,
        arriving: Collection[str],
        expire_uploads: Callable[[], Awaitable[int]],
        grace_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._upkeep = Upkeep(catalog.database)
        self._enter = enter
        self._arriving = arriving
        self._expire_uploads = expire_uploads
        self._grace_s = grace_s
        self._clock = clock
        self._sweeping = asyncio.Lock()
        self.scrub = Scrub(store, self._upkeep, self.damaged, clock=clock)
        self.swept = Counter(Swept(0, 0).counts())  # by kind, since the process began
        self.corrupted = 0  # the same
        self._told_foreign = False

    async def sweep(self) -> Swept:
        """Remove what nobody needed for the grace: rows with bytes, bytes without a row, parts of
        uploads; and see whose bytes are missing."""
        async with self._sweeping:
            now = self._clock()
            before = now - self._grace_s
            await self._expire_uploads()  # first: nobody means what they have left then
            blobs = await self._sweep_rows(before, now - min(self._grace_s, EXPIRED_GRACE_S))
            orphans = missing = uploads = 0
            ours = await self._owns_store()
            if ours:
                orphans, missing = await self._compare(before)
                uploads = await self._sweep_uploads(before)
            await self._store.tidy(before=before)
            swept = Swept(blobs, orphans, missing, uploads, foreign=not ours)
            self.swept.update(swept.counts())
            return swept

    async def sweep_forever(self, *, every_s: float = 3600.0) -> None:
        """Beside everything else, until cancelled. After one that fails the next one comes."""
        while True:
            try:
                await self.sweep()
            except Exception:  # a full disk above all: then sweeping is needed most
                log.exception("a sweep of the storage failed; the next is in %g s", every_s)
            await asyncio.sleep(every_s)

    async def damaged(self, blob: Blob, how: str) -> None:
        """Its bytes were found to be wrong or missing: from now on it is `corrupt`."""
        if await self._upkeep.mark_corrupt(blob.id):
            self._tell_corrupt(blob.id, blob.key, how)

    async def holdings(self) -> Holdings:
        return await self._upkeep.holdings()

    async def rebuild(self, tell: Callable[[Rebuilt], None] = _quietly) -> Rebuilt:
        """For a lost catalog.db, see `rebuild`."""
        return await rebuild(
            self._store,
            self._upkeep,
            self._enter,
            now=self._clock(),
            grace_s=self._grace_s,
            tell=tell,
        )

    def _tell_corrupt(self, ref: str, key: str, how: str) -> None:
        self.corrupted += 1
        log.error("%s (%s) is corrupt: %s", ref, key, how, extra={"event": "blob_corrupt"})

    async def _owns_store(self) -> bool:
        if await ownership.belongs(self._store, self._upkeep):
            return True
        if not self._told_foreign:
            self._told_foreign = True
            log.error(
                "the stored bytes belong to another catalogue: those without a row are left alone;"
                " if catalog.db was lost, stop the server and run `mentatlab storage rebuild`"
            )
        return False

    async def _sweep_rows(self, orphaned_before: float, expired_before: float) -> int:
        while await self._upkeep.doom(
            orphaned_before=orphaned_before, expired_before=expired_before, limit=_PAGE
        ):
            pass  # a page at a time: others write in between
        swept, after = 0, ""
        while page := await self._upkeep.doomed(after=after, limit=_PAGE):
            gone = await self._delete(page)
            await self._catalog.forget(gone)
            swept, after = swept + len(gone), page[-1].id
        return swept

    async def _delete(self, blobs: Iterable[Blob]) -> list[str]:
        """Ids of those whose bytes are gone; the others stay marked for the next sweep."""
        slots, gone = asyncio.Semaphore(_DELETES), list[str]()

        async def delete(blob: Blob) -> None:
            async with slots:
                try:
                    await self._store.delete(blob.key)
                    gone.append(blob.id)
                except (OSError, MentatError) as error:
                    log.warning("the bytes of %s cannot be deleted: %s", blob.id, error)

        async with asyncio.TaskGroup() as group:
            for blob in blobs:
                group.create_task(delete(blob))
        return gone

    async def _compare(self, before: float) -> tuple[int, int]:
        """Catalogue and store side by side, in order of keys: (orphans, missing)."""
        orphans = missing = 0
        async for info, row in side_by_side(self._store.list(), self._rows()):
            if row is None and info is not None:
                orphans += await self._sweep_orphan(info, before)
            elif row is not None and row.state == "ready" and not _fits(info, row):
                missing += await self._confirm_missing(row)
        return orphans, missing

    async def _rows(self) -> AsyncIterator[Known]:
        after = ""
        while page := await self._upkeep.known(after=after, limit=_PAGE):
            for row in page:
                yield row
            after = page[-1].key

    async def _sweep_orphan(self, info: BlobInfo, before: float) -> bool:
        """Its row may have come since the listing; of an object on its way in it is yet to come."""
        if info.modified_at >= before or info.key in (*self._arriving, ownership.MARKER):
            return False
        if await self._upkeep.is_expected(info.key) or not await self._is_ours(info.key):
            return False
        await self._store.delete(info.key)
        return True

    async def _is_ours(self, key: str) -> bool:
        """Not somebody else's in the same bucket."""
        try:
            return "ref" in (await self._store.head(key)).meta
        except (OSError, MentatError) as error:
            log.warning("%s cannot be looked at now: %s", key, error)
            return False

    async def _confirm_missing(self, row: Known) -> bool:
        """The row may have been read before the object came, or was deleted, properly."""
        try:
            if (await self._store.head(row.key)).size == row.size:
                return False
        except (OSError, MentatError) as error:
            if not is_damage(error):
                log.warning("%s cannot be looked at now: %s", row.id, error)
                return False
        if not await self._upkeep.mark_corrupt(row.id):
            return False
        self._tell_corrupt(row.id, row.key, "its bytes are missing, or not all there")
        return True

    async def _sweep_uploads(self, before: float) -> int:
        swept = 0
        async for stale in self._store.list_stale_uploads(before=before):
            if not await self._upkeep.is_upload_open(stale.key, stale.upload_id):
                swept += await self._abort(stale)
        return swept

    async def _abort(self, stale: StaleUpload) -> bool:
        with contextlib.suppress(NotFound):  # another sweeper was first
            upload = await self._store.resume_upload(stale.upload_id)
            await upload.abort()
            await upload.aclose()
            return True
        return False


def _fits(info: BlobInfo | None, row: Known) -> bool:
    return info is not None and info.size == row.size


async def side_by_side(
    objects: AsyncIterator[BlobInfo], rows: AsyncIterator[Row]
) -> AsyncIterator[tuple[BlobInfo | None, Row | None]]:
    """Both in order of keys, merged: each key once, with None on the side that lacks it."""
    info, row = await anext(objects, None), await anext(rows, None)
    while info is not None or row is not None:
        if row is None or (info is not None and info.key < row.key):
            yield info, None
            info = await anext(objects, None)
        elif info is None or row.key < info.key:
            yield None, row
            row = await anext(rows, None)
        else:
            yield info, row
            info, row = await anext(objects, None), await anext(rows, None)
