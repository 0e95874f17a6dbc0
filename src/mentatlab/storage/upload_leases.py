"""One writer at a time for each upload, over tasks and processes; a newcomer wins.

Within a process the newcomer interrupts the holder. Over processes the lease is a row with a time
and a fence: its holder renews it, and stops by itself when it could not. What it writes to the
catalogue after that is refused by the fence.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Fenced, MentatError
from mentatlab.storage.turns import Asked, Busy, Turn, Turns
from mentatlab.storage.upload_rows import UploadRow, UploadRows, superseded

log = logging.getLogger(__name__)

LEASE_S = 10.0
PATIENCE_S = 12.0
"""How long a newcomer waits: a bit more than a dead process holds."""
_POLL_S = 0.25


class Lease:
    """`row` is the row as its holder knows it. `valid_until` is on the loop's clock."""

    def __init__(self, leases: "Leases", row: UploadRow, turn: Turn, valid_until: float) -> None:
        self.row, self.valid_until = row, valid_until
        self._leases, self._turn = leases, turn

    async def record(self, **changes: Any) -> None:
        """Write the row, with these changes, and that the upload goes on. `Fenced`"""
        self.row = await self._leases.record(msgspec.structs.replace(self.row, **changes))

    @contextlib.contextmanager
    def interruptible(self) -> Generator[None]:
        """Its body ends with `Fenced(UPLOAD_SUPERSEDED)` when a newcomer wants the upload."""
        try:
            with self._turn.interruptible():
                yield
        except Asked:
            raise superseded(self.row.id) from None

    def check(self) -> None:
        """`Fenced(UPLOAD_SUPERSEDED)` when it may be somebody else's by now."""
        if asyncio.get_running_loop().time() > self.valid_until:
            raise superseded(self.row.id)


class Leases:
    """Those of one process. `clock` gives Unix seconds, which all processes share. `keep_s`: how
    long an upload waits for its next bytes."""

    def __init__(
        self,
        rows: UploadRows,
        clock: Callable[[], float],
        *,
        keep_s: float,
        lease_s: float = LEASE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._rows, self._clock, self._keep_s = rows, clock, keep_s
        self._lease_s, self._patience_s = lease_s, patience_s
        self._holder = secrets.token_hex(8)
        self._turns = Turns()

    @contextlib.asynccontextmanager
    async def hold(self, upload_id: str) -> AsyncGenerator[Lease]:
        """`Conflict(UPLOAD_LOCKED)` when the holder does not let go in time."""
        try:
            async with self._turns.take(upload_id, patience_s=self._patience_s) as turn:
                lease = await self._lease(upload_id, turn)
                # not a task group: errors leave as they are
                renewing = asyncio.create_task(self._renew(lease))
                try:
                    yield lease
                finally:
                    await asyncio.shield(self._end(lease, renewing))
        except Busy:
            raise _locked(upload_id) from None

    async def record(self, row: UploadRow) -> UploadRow:
        """The row as it is written: its lease and its time begin anew."""
        times = {"leased_until": self._until(), "expires_at": self._clock() + self._keep_s}
        row = msgspec.structs.replace(row, **times)
        await self._rows.record(row)
        return row

    def _until(self) -> float:
        return self._clock() + self._lease_s

    async def _lease(self, upload_id: str, turn: Turn) -> Lease:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience_s
        while True:
            began = loop.time()
            row = await self._rows.lease(
                upload_id, self._holder, now=self._clock(), until=self._until()
            )
            if row is not None:
                return Lease(self, row, turn, began + self._lease_s)
            if began > give_up:
                raise Busy
            await asyncio.sleep(_POLL_S)  # another process's, of whose end nobody here hears

    async def _end(self, lease: Lease, renewing: "asyncio.Task[None]") -> None:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        try:
            await self._rows.release(lease.row.id, lease.row.fence)
        except MentatError as error:  # it ends by itself
            log.warning("the lease of %s could not be ended: %s", lease.row.id, error)

    async def _renew(self, lease: Lease) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._lease_s / 3)
            began = loop.time()
            try:
                await self._rows.renew(lease.row.id, lease.row.fence, until=self._until())
            except Fenced:
                lease.valid_until = 0.0
                return
            except MentatError as error:  # a full disk: the next try may do
                log.warning("the lease of %s could not be renewed: %s", lease.row.id, error)
            else:
                lease.valid_until = began + self._lease_s


def _locked(upload_id: str) -> Conflict:
    return Conflict(
        Code.UPLOAD_LOCKED,
        f"somebody else is writing to {upload_id}, or its end is being worked on",
        hint="ask for the offset again in a few seconds",
    )
