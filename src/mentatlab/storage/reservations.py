"""Room in a workspace's quota for bytes that come in one go."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from mentatlab.database import Connection
from mentatlab.protocol.ids import new_id
from mentatlab.storage.upload_rows import NO_QUOTA, UploadRow, UploadRows, forgotten

LIFE_S = 86_400.0
"""After that what a killed process had reserved is free again."""


class Reservation:
    """`upload_id` "" = there is no quota, and nothing is reserved."""

    def __init__(self, rows: UploadRows, upload_id: str, reserved: int) -> None:
        self._rows, self._id, self._reserved = rows, upload_id, reserved

    async def counted(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """`OutOfSpace(QUOTA_EXCEEDED)` as soon as more comes than there is room for."""
        total = 0
        async for piece in source:
            total += len(piece)
            if self._id and total > self._reserved:
                self._reserved = await self._rows.reserve_up_to(self._id, total)
            yield piece

    def settle(self, db: Connection) -> None:
        """Written beside the blob's row, which counts from then on."""
        if self._id:
            forgotten(self._id)(db)

    async def release(self) -> None:
        if self._id:
            await self._rows.remove(self._id)


class Reservations:
    """`clock` gives Unix seconds."""

    def __init__(self, rows: UploadRows, clock: Callable[[], float]) -> None:
        self._rows, self._clock = rows, clock

    @contextlib.asynccontextmanager
    async def hold(self, workspace: str, ref: str, size: int | None) -> AsyncGenerator[Reservation]:
        """For the blob `ref` of `size` bytes, None = not known; released when it was not settled.
        `OutOfSpace(QUOTA_EXCEEDED)`"""
        if self._rows.quota == NO_QUOTA:
            yield Reservation(self._rows, "", 0)
            return
        row = self._row(workspace, ref, size or 0)
        await self._rows.add(row)
        reservation = Reservation(self._rows, row.id, row.reserved)
        try:
            yield reservation
        except BaseException:
            await asyncio.shield(reservation.release())
            raise

    def _row(self, workspace: str, ref: str, size: int) -> UploadRow:
        now = self._clock()
        return UploadRow(
            id=new_id("up"),
            workspace=workspace,
            mode="single",
            ref=ref,
            key=ref,  # no object has it
            size=None,
            reserved=size,
            created_at=now,
            expires_at=now + LIFE_S,
        )
