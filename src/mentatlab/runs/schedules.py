"""Schedules: runs at the times that a cron expression says, each time once over all replicas.

A tick is a row. Whoever moves a schedule to its next time has made the tick of this one, in the
same transaction; whoever leases the tick makes its run, under the tick's own idempotency key. So a
crash at any place neither loses nor doubles a run.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from mentatlab.database import Connection, Database
from mentatlab.protocol.errors import Code, Invalid, MentatError, NotFound
from mentatlab.protocol.ids import new_id

logger = logging.getLogger(__name__)

Overlap = Literal["skip", "queue", "allow"]
CATCH_UP_S = 3600.0
"""Of the ticks missed while no server ran the last one is made up for, unless it is older."""
POLL_S = 1.0
LEASE_S = 30.0
"""For making one run; then another replica tries."""
MOST_WAITING = 100
KEPT_TICKS = 50


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """`next_at`: when it comes due, Unix seconds. `digest`: of its flow when it was made."""

    id: str
    workspace: str
    flow_id: str
    inputs: dict[str, Any]
    cron: str
    timezone: str
    overlap: Overlap
    paused: bool
    next_at: float
    created_at: float
    digest: str = ""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """One time of a schedule. `state`: due, made (`run_id`), skipped, or failed (`error`)."""

    schedule_id: str
    at: float
    state: str = "due"
    run_id: str = ""
    error: str = ""

    @property
    def key(self) -> str:
        return f"{self.schedule_id}/{self.at:.0f}"


Schedules = list[Schedule]
Ticks = list[Tick]


def due_after(cron: str, timezone: str, at: float, *, back: bool = False) -> float:
    """The first time after `at`; with `back` the last one before. `Invalid(SCHEDULE_INVALID)`"""
    try:
        moment = datetime.fromtimestamp(at, ZoneInfo(timezone))
        return next(CronSim(cron, moment, reverse=back)).timestamp()
    except (CronSimError, StopIteration) as error:
        raise _invalid(str(error) or "it never comes due", cron) from error
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise _invalid("there is no such time zone", timezone) from error


def _invalid(what: str, text: str) -> Invalid:
    return Invalid(
        Code.SCHEDULE_INVALID,
        f"{text[:100]!r}: {what}",
        hint="write cron like `0 7 * * 1-5` and an IANA time zone like Europe/Berlin",
    )


class ScheduleStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(
        self,
        *,
        workspace: str,
        flow_id: str,
        inputs: dict[str, Any],
        cron: str,
        timezone: str,
        overlap: Overlap,
        paused: bool,
        now: float,
        digest: str = "",
    ) -> Schedule:
        made = Schedule(
            id=new_id("sch"),
            workspace=workspace,
            flow_id=flow_id,
            inputs=inputs,
            cron=cron,
            timezone=timezone,
            overlap=overlap,
            paused=paused,
            next_at=due_after(cron, timezone, now),
            created_at=now,
            digest=digest,
        )
        values = (made.id, workspace, int(paused), made.next_at, msgspec.json.encode(made))
        sql = "INSERT INTO schedules VALUES (?, ?, ?, ?, ?)"

        def work(db: Connection) -> None:
            db.execute(sql, values)

        await self._db.write(work)
        return made

    async def list(self, *, workspace: str) -> Schedules:
        sql = "SELECT * FROM schedules WHERE workspace = ? ORDER BY id"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        return [_schedule(row) for row in rows]

    async def get(self, schedule_id: str, *, workspace: str | None = None) -> Schedule:
        """`NotFound(NOT_FOUND)`"""
        sql = "SELECT * FROM schedules WHERE id = ?"
        row = await self._db.read(lambda db: db.execute(sql, (schedule_id,)).fetchone())
        if row is None or workspace not in (None, row["workspace"]):
            raise NotFound(
                Code.NOT_FOUND,
                f"there is no schedule {schedule_id}",
                hint="`mentatlab schedules ls` lists them",
            )
        return _schedule(row)

    async def pause(self, schedule: Schedule, paused: bool, *, now: float) -> None:
        """One that goes on comes due at its next time from now."""
        next_at = due_after(schedule.cron, schedule.timezone, now)

        def work(db: Connection) -> None:
            sql = "UPDATE schedules SET paused = ?, next_at = ? WHERE id = ?"
            db.execute(sql, (int(paused), next_at, schedule.id))

        await self._db.write(work)

    async def delete(self, schedule_id: str) -> None:
        """Runs that it has made stay."""

        def work(db: Connection) -> None:
            db.execute("DELETE FROM ticks WHERE schedule_id = ?", (schedule_id,))
            db.execute("DELETE FROM schedules WHERE id = ?", (schedule_id,))

        await self._db.write(work)

    async def due(self, now: float) -> Schedules:
        sql = "SELECT * FROM schedules WHERE paused = 0 AND next_at <= ? ORDER BY next_at LIMIT 100"
        rows = await self._db.read(lambda db: db.execute(sql, (now,)).fetchall())
        return [_schedule(row) for row in rows]

    async def advance(self, schedule: Schedule, now: float) -> None:
        """To its next time, with the tick of its last one; nothing when another replica has."""
        last = due_after(schedule.cron, schedule.timezone, now + 1, back=True)
        tick = Tick(schedule_id=schedule.id, at=max(last, schedule.next_at))
        next_at = due_after(schedule.cron, schedule.timezone, now)

        def work(db: Connection) -> None:
            moved = db.execute(
                "UPDATE schedules SET next_at = ? WHERE id = ? AND next_at = ? AND paused = 0",
                (next_at, schedule.id, schedule.next_at),
            ).rowcount
            if moved and now - tick.at <= CATCH_UP_S:
                db.execute(
                    "INSERT INTO ticks VALUES (?, ?, ?, 'due', '', '', 0) ON CONFLICT DO NOTHING",
                    (tick.key, schedule.id, tick.at),
                )

        await self._db.write(work)

    async def lease(self, now: float) -> Ticks:
        """Due ticks that nobody works at, the oldest first; they are the caller's for a while."""
        sql = f"""
            WITH free AS (
                SELECT id FROM ticks WHERE state = 'due' AND lease_until <= ?
                ORDER BY at LIMIT 100 {self._db.skip_locked}
            )
            UPDATE ticks SET lease_until = ? WHERE id IN (SELECT id FROM free)
            RETURNING schedule_id, at, state, run_id, error
        """
        rows = await self._db.write(lambda db: db.execute(sql, (now, now + LEASE_S)).fetchall())
        return sorted((_tick(row) for row in rows), key=lambda tick: tick.at)

    async def settle(self, tick: Tick, state: str, *, run_id: str = "", error: str = "") -> None:
        def work(db: Connection) -> None:
            sql = "UPDATE ticks SET state = ?, run_id = ?, error = ? WHERE id = ? AND state = 'due'"
            db.execute(sql, (state, run_id, error, tick.key))
            db.execute(_FORGET_TICKS, (tick.schedule_id, tick.schedule_id, KEPT_TICKS))

        await self._db.write(work)

    async def put_back(self, tick: Tick) -> None:
        """For the next look."""

        def work(db: Connection) -> None:
            db.execute("UPDATE ticks SET lease_until = 0 WHERE id = ?", (tick.key,))

        await self._db.write(work)

    async def ticks(self, schedule_id: str) -> Ticks:
        """The last ones, newest first."""
        sql = "SELECT * FROM ticks WHERE schedule_id = ? ORDER BY at DESC LIMIT 150"
        rows = await self._db.read(lambda db: db.execute(sql, (schedule_id,)).fetchall())
        return [_tick(row) for row in rows]


_FORGET_TICKS = """
    DELETE FROM ticks WHERE schedule_id = ? AND state <> 'due' AND id NOT IN (
        SELECT id FROM ticks WHERE schedule_id = ? ORDER BY at DESC LIMIT ?
    )
"""

Submit = Callable[[Schedule, str], Awaitable[str]]
"""Make a run of the schedule under an idempotency key; its id."""
Active = Callable[[Schedule], Awaitable[set[str]]]
"""The runs of a schedule that have not ended."""


class Scheduler:
    """`run_forever()` in a task of its own, on every replica."""

    def __init__(
        self,
        store: ScheduleStore,
        submit: Submit,
        active: Active,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._submit, self._active, self._clock = store, submit, active, clock

    async def run_forever(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # a bug in one look must not end them all
                logger.exception("schedules wait for the next look")
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Everything that is due now."""
        now = self._clock()
        for schedule in await self._store.due(now):
            await self._store.advance(schedule, now)
        for tick in await self._store.lease(now):
            await self._make(tick)

    async def _make(self, tick: Tick) -> None:
        schedule = await self._store.get(tick.schedule_id)
        told = await self._store.ticks(schedule.id)
        waiting = [t for t in told if t.state == "due" and t.at < tick.at]
        if schedule.overlap != "allow" and (waiting or await self._goes_on(schedule, told)):
            if schedule.overlap == "skip" or len(waiting) >= MOST_WAITING:
                await self._store.settle(tick, "skipped")
            else:
                await self._store.put_back(tick)
            return
        try:
            run_id = await self._submit(schedule, f"schedule/{tick.key}")
            await self._store.settle(tick, "made", run_id=run_id)
        except MentatError as error:
            if error.retryable and self._clock() - tick.at < CATCH_UP_S:
                await self._store.put_back(tick)
            else:
                await self._store.settle(tick, "failed", error=str(error))

    async def _goes_on(self, schedule: Schedule, told: Ticks) -> bool:
        """Whether a run of an earlier tick has not ended."""
        return not (await self._active(schedule)).isdisjoint(t.run_id for t in told)


def _schedule(row: Any) -> Schedule:
    made = msgspec.json.decode(bytes(row["body"]), type=Schedule)
    return msgspec.structs.replace(made, paused=bool(row["paused"]), next_at=row["next_at"])


def _tick(row: Any) -> Tick:
    return Tick(
        schedule_id=row["schedule_id"],
        at=row["at"],
        state=row["state"],
        run_id=row["run_id"],
        error=row["error"],
    )
