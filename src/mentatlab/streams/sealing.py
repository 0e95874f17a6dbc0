"""Finished runs leave the database for one immutable segment each.

    rows → a file → the store → one commit that says so → the rows go, in small steps

A run whose segment holds expired lanes is sealed again without them. A crash leaves at most a
segment that is not used: its name was noted as garbage before it was made.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from mentatlab.protocol.errors import Code, Gone, Unavailable
from mentatlab.protocol.ids import new_id
from mentatlab.sqlite import Database
from mentatlab.streams import sealed_rows
from mentatlab.streams.port import Entry, SegmentStore
from mentatlab.streams.rows import LARGE
from mentatlab.streams.sealed import Directory, SegmentWriter
from mentatlab.streams.sealed_rows import IdleRun

log = logging.getLogger(__name__)

ReadRun = Callable[[str, int], Awaitable[list[Entry]]]
"""A run's records after that rseq, some at a time."""

_RUNS = 64  # looked at in one step
_ROWS = 2000  # deleted in one transaction


class Limits(NamedTuple):
    """When a run is worth a file of its own: `age_s` after its end, from `min_bytes` on.

    The least is what sends a payload to the shared segment files, so that those always become free.
    """

    age_s: float = 60.0
    min_bytes: int = LARGE


class Sealer:
    """`scratch` is a folder for files in the making, on the file system of a local store."""

    def __init__(
        self, database: Database, store: SegmentStore, scratch: Path, limits: Limits
    ) -> None:
        self._database, self._store = database, store
        self._scratch, self._limits = scratch, limits
        self._making: set[str] = set()

    def forget_unfinished(self) -> None:
        """What a crash left in the making."""
        for path in self._scratch.glob("*.new"):
            path.unlink()

    async def seal(self, read_run: ReadRun, now: float) -> None:
        """Seal the runs whose time has come."""
        before = now - self._limits.age_s
        while found := await self._database.read(lambda c: sealed_rows.idle(c, before, _RUNS)):
            small = [run for run in found if run.segment is None and self._is_small(run)]
            if small:
                await self._database.write(lambda c, small=small: sealed_rows.leave(c, small))
            for run in found:
                if run not in small:
                    await self._seal(read_run, run)

    async def clear(self) -> None:
        """Delete the rows that segments have, in small transactions, and unused segments."""
        while run := await self._database.read(sealed_rows.to_clear):
            await self._database.write(lambda c, run=run: sealed_rows.clear(c, run, _ROWS))
        for name in await self._database.read(sealed_rows.garbage):
            if name not in self._making:
                await self._store.delete(name)
                await self._database.write(lambda c, name=name: sealed_rows.forget_garbage(c, name))

    def _is_small(self, run: IdleRun) -> bool:
        return run.kept < self._limits.min_bytes

    async def _seal(self, read_run: ReadRun, run: IdleRun) -> None:
        if run.kept == 0:
            await self._database.write(lambda c: sealed_rows.switch(c, run, None, None))
            return
        try:
            async with self._made(read_run, run.run_id) as (name, directory):
                await self._database.write(lambda c: sealed_rows.switch(c, run, name, directory))
        except Gone as gone:
            if gone.code is not Code.STREAM_LOST:
                raise
            log.warning("run %s stays as it is, it has damaged records: %s", run.run_id, gone)
            await self._database.write(lambda c: sealed_rows.leave(c, [run]))

    @contextlib.asynccontextmanager
    async def _made(self, read_run: ReadRun, run_id: str) -> AsyncGenerator[tuple[str, Directory]]:
        """The run's segment in the store; garbage unless the body says otherwise."""
        name = new_id("sg")
        path = self._scratch / f"{name}.new"
        self._making.add(name)
        try:
            await self._database.write(lambda c: sealed_rows.note_garbage(c, name))
            directory, tail = await _write(read_run, path, run_id)
            size = path.stat().st_size
            await self._store.put(name, path)
            if await self._store.read(name, size - len(tail), len(tail)) != tail:
                raise Unavailable(Code.UNAVAILABLE, f"the store has not kept segment {name}")
            yield name, directory
        finally:
            self._making.discard(name)
            path.unlink(missing_ok=True)


async def _write(read_run: ReadRun, path: Path, run_id: str) -> tuple[Directory, bytes]:
    after = 0
    with path.open("xb") as file:
        writer = SegmentWriter(file, run_id)
        while entries := await read_run(run_id, after):
            await asyncio.to_thread(writer.add, entries)
            after = entries[-1].rseq or 0
        return await asyncio.to_thread(writer.finish)
