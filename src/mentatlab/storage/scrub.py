"""Stored bytes are read again and compared with their hash: soon when only a client has told it,
else one after another, slowly, for ever.

When each was last verified stands in its row, so a pass goes on where the last process stopped. A
blob found damaged becomes `corrupt`; one whose right bytes are back (a disk that was not mounted)
becomes `ready`. What cannot be read now, as against read wrongly, changes nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import msgspec

from mentatlab.protocol.errors import MentatError
from mentatlab.storage.ownership import belongs
from mentatlab.storage.port import Blob, BlobStore
from mentatlab.storage.upkeep import Upkeep
from mentatlab.storage.verified import Tell, digest, is_damage

log = logging.getLogger(__name__)

RATE = 8 << 20
"""Bytes a second of the slow pass."""
CLAIMS_RATE = 64 << 20
PERIOD_S = 30 * 86_400.0
"""How old a verification may become."""
_PAGE = 64
_LISTED = 100
_NOWHERE = (float("-inf"), "")

Verdict = Literal["whole", "healed", "corrupt", "unread", "gone"]


class Pace:
    """At most `rate` bytes a second, on average; 0 = as fast as they come."""

    def __init__(self, rate: float = 0.0) -> None:
        self._rate = rate
        self._due = 0.0

    async def take(self, size: int) -> None:
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + size / self._rate
        await asyncio.sleep(self._due - now)


class Report(msgspec.Struct, kw_only=True):
    """A pass over everything, so far. `corrupt` names the first hundred."""

    running: bool = False
    total: int = 0
    checked: int = 0
    bytes: int = 0
    corrupt_count: int = 0
    corrupt: list[str] = []
    healed: int = 0
    unread: int = 0
    started_at: float | None = None  # Unix seconds
    finished_at: float | None = None


class Scrub:
    """`tell` is called for every blob that is found damaged. `rate` 0 = no slow pass."""

    def __init__(
        self,
        store: BlobStore,
        upkeep: Upkeep,
        tell: Tell,
        *,
        clock: Callable[[], float],
        rate: float = RATE,
        period_s: float = PERIOD_S,
    ) -> None:
        self._store, self._upkeep, self._tell = store, upkeep, tell
        self._clock, self.rate, self._period_s = clock, rate, period_s
        self._asked = asyncio.Event()
        self.report = Report()
        self.bytes = 0  # read since the process began

    # --- one

    async def check(self, blob: Blob, pace: Pace) -> Verdict:
        async def after_chunk(size: int) -> None:
            self.bytes += size
            await pace.take(size)

        try:
            found = await digest(self._store, blob.key, after_chunk=after_chunk)
            whole = found == blob.blake3
        except (OSError, MentatError) as error:
            if not is_damage(error) or not await belongs(self._store, self._upkeep):
                log.warning("%s cannot be read now: %s", blob.id, error)
                return "unread"
            whole = False
        if not whole:
            await self._tell(blob, "the bytes have another hash, or are missing")
        before = await self._upkeep.record(blob.id, whole=whole, now=self._clock())
        if before is None:
            return "gone"
        if not whole:
            return "corrupt"
        return "healed" if before == "corrupt" else "whole"

    # --- many

    async def check_claims(self) -> None:
        """What we never hashed ourselves."""
        pace = Pace(CLAIMS_RATE)
        async for blob in self._unverified():
            await self.check(blob, pace)

    async def check_old(self) -> None:
        """What has not been verified for a period."""
        pace = Pace(self.rate)
        if self.rate and await belongs(self._store, self._upkeep):
            async for blob in self._verified(self._clock() - self._period_s):
                await self.check(blob, pace)

    async def check_all(self) -> Report:
        """At full speed; `report` tells how far it is."""
        now = self._clock()
        self.report = Report(running=True, started_at=now)
        try:
            self.report.total = (await self._upkeep.holdings()).count
            async for blob in self._everything(now):
                self._count(blob, await self.check(blob, Pace()))
        finally:
            self.report.running, self.report.finished_at = False, self._clock()
        return self.report

    def ask(self) -> Report:
        """Let `run_forever` check everything, unless it is about to."""
        if not self.report.running:
            self.report = Report(running=True)
            self._asked.set()
        return self.report

    def _count(self, blob: Blob, verdict: Verdict) -> None:
        report = self.report
        report.checked += 1
        report.bytes += blob.size
        report.healed += verdict == "healed"
        report.unread += verdict == "unread"
        if verdict == "corrupt":
            report.corrupt_count += 1
            if len(report.corrupt) < _LISTED:
                report.corrupt.append(blob.id)

    async def _everything(self, now: float) -> AsyncIterator[Blob]:
        """In this order: what is verified on the way is not met again."""
        async for blob in self._verified(now):
            yield blob
        async for blob in self._unverified():
            yield blob

    async def _unverified(self) -> AsyncIterator[Blob]:
        after = ""
        while page := await self._upkeep.unverified(after=after, limit=_PAGE):
            for blob in page:
                yield blob
            after = page[-1].id

    async def _verified(self, before: float) -> AsyncIterator[Blob]:
        after = _NOWHERE
        while page := await self._upkeep.verified(before=before, after=after, limit=_PAGE):
            for found in page:
                yield found.blob
            after = page[-1].place

    # --- for ever

    async def run_forever(
        self, *, claims_every_s: float = 10.0, old_every_s: float = 600.0
    ) -> None:
        """Beside everything else, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_again_and_again(self.check_claims, claims_every_s))
            group.create_task(_again_and_again(self.check_old, old_every_s))
            group.create_task(_again_and_again(self._check_when_asked, 0.0))

    async def _check_when_asked(self) -> None:
        await self._asked.wait()
        self._asked.clear()
        await self.check_all()


async def _again_and_again(work: Callable[[], Awaitable[object]], every_s: float) -> None:
    while True:
        try:
            await work()
        except Exception:  # of a store that cannot be reached, above all
            log.exception("a scrub of the storage failed")
        await asyncio.sleep(every_s)
