"""Who is publishing from outside, remembered beyond the process that hears them.

Whoever has a publisher's connection renews its lease. When one runs out nobody has: the server was
restarted, or another one died.
"""

import sqlite3
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from mentatlab.sqlite import Database


class Lease(msgspec.Struct, frozen=True):
    """`holder`: the process that hears them. `producers`: those that can be fenced. `until` in Unix
    seconds.
    """

    stream_id: str
    holder: str
    producers: tuple[str, ...]
    until: float


class Leases(Protocol):
    """Shared by all processes that share the log."""

    async def renew(self, leases: Sequence[Lease]) -> None:
        """Of each stream this replaces what there was."""
        ...

    async def release(self, stream_id: str) -> None: ...

    async def get(self, stream_id: str) -> Lease | None: ...

    async def run_out(self, now: float) -> list[Lease]:
        """Those with `until` ≤ now."""
        ...


@runtime_checkable
class LeasingLog(Protocol):
    """A log that may outlive processes; None: this one does not."""

    @property
    def leases(self) -> Leases | None: ...


def leases_of(log: object) -> Leases | None:
    return log.leases if isinstance(log, LeasingLog) else None


class SqliteLeases:
    """Of the streams database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def renew(self, leases: Sequence[Lease]) -> None:
        rows = [(x.stream_id, x.holder, msgspec.json.encode(x.producers), x.until) for x in leases]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", rows)

        await self._database.write(work)

    async def release(self, stream_id: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM leases WHERE stream_id = ?", (stream_id,))

        await self._database.write(work)

    async def get(self, stream_id: str) -> Lease | None:
        found = await self._select("stream_id = ?", stream_id)
        return found[0] if found else None

    async def run_out(self, now: float) -> list[Lease]:
        return await self._select("until <= ?", now)

    async def _select(self, where: str, value: str | float) -> list[Lease]:
        query = f"SELECT stream_id, holder, producers, until FROM leases WHERE {where}"

        def work(connection: sqlite3.Connection) -> list[Lease]:
            rows = connection.execute(query, (value,)).fetchall()
            return [Lease(id_, holder, _names(names), until) for id_, holder, names, until in rows]

        return await self._database.read(work)


_names = msgspec.json.Decoder(tuple[str, ...]).decode
