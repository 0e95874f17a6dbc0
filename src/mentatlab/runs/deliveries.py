"""Deliveries: each end of a run to each who asked for it, signed, at least once.

A delivery is a row that the run's end has written (`outbox.py`). Any replica leases it, sends it,
and writes what came of it; when one dies, the lease passes on. Its id is the same in every attempt.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

import msgspec

from mentatlab import __version__
from mentatlab.database import Connection, Database, Hint
from mentatlab.protocol.errors import Code, MentatError, NotFound
from mentatlab.runs.outbox import TOPIC, Subscription
from mentatlab.runs.secrets import Seal, SecretsFor
from mentatlab.runs.signatures import HEADER, sign
from mentatlab.runs.subscriptions import subscription_of

logger = logging.getLogger(__name__)

State = Literal["waiting", "delivered", "failed"]
GIVE_UP_S = 86_400.0
"""After the run's end, or after somebody asked for it again."""
BASE_S, CAP_S = 1.0, 3600.0
LEASE_S = 30.0
"""For one attempt, which takes half of it at most; then another replica tries."""
KEPT_S = 7 * 86_400.0
"""Deliveries that have ended are listed for so long."""
MOST_AT_ONCE = 32
MOST_EACH = 4
"""Of one subscription, about: a receiver that hangs holds up nobody else."""
MOST_CHARACTERS = 500
"""Of an error."""
DELIVERY = "X-Mentat-Delivery"
_GONE = 410
_FINAL = (Code.WEBHOOK_ADDRESS_REFUSED, Code.WEBHOOK_INVALID)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """Times in Unix seconds, 0 = not yet. `since`: its attempts go on for a day from then; `status`
    and `error` are of the last one."""

    id: str
    subscription_id: str
    workspace: str
    run_id: str
    event: str
    url: str
    body: bytes
    state: State
    created_at: float
    since: float
    next_at: float
    attempts: int
    ended_at: float
    status: int
    error: str

    def message(self) -> bytes:
        """What is sent and signed, the same in every attempt."""
        return msgspec.json.encode(
            {
                "id": self.id,
                "event": self.event,
                "created_at": self.created_at,
                "run": msgspec.Raw(self.body),
            }
        )


Deliveries = list[Delivery]


class Leased(NamedTuple):
    """`sealed`: the subscription's own secret, if it has one."""

    delivery: Delivery
    subscription: Subscription
    sealed: bytes


class Outcome(NamedTuple):
    """Of one attempt. `status` 0 = there was no answer."""

    status: int
    error: str = ""
    final: bool = False

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300


class DeliveryStore:
    def __init__(self, database: Database) -> None:
        self._db = database

    def listen(self) -> AbstractContextManager[Hint]:
        return self._db.listen(TOPIC)

    async def free(self) -> None:
        """What a former process had begun is due again, when there is no other process."""
        if not self._db.shared:
            sql = "UPDATE deliveries SET lease_until = 0 WHERE state = 'waiting'"
            await self._db.write(lambda db: db.execute(sql).rowcount)

    async def lease(self, now: float, *, limit: int, without: Collection[str]) -> list[Leased]:
        """Due ones that nobody works at, the oldest first, but none of these subscriptions; they
        are the caller's for a while. An attempt counts when it begins."""
        but = f"('', {', '.join('?' * len(without))})" if without else "('')"
        due = f"""
            SELECT id FROM deliveries WHERE state = 'waiting' AND next_at <= ?
            AND lease_until <= ? AND subscription_id NOT IN {but} ORDER BY next_at LIMIT ?
        """
        wanted = (now, now, *without, limit)
        if await self._db.read(lambda db: db.execute(due, wanted).fetchone()) is None:
            return []
        take = f"""
            WITH due AS ({due} {self._db.skip_locked})
            UPDATE deliveries SET lease_until = ?, attempts = attempts + 1
            WHERE id IN (SELECT id FROM due) RETURNING *
        """

        def work(db: Connection) -> list[Leased]:
            rows = db.execute(take, (*wanted, now + LEASE_S)).fetchall()
            found = (_leased(db, _delivery(row)) for row in rows)
            return [leased for leased in found if leased is not None]

        return await self._db.write(work)

    async def settle(
        self, delivery: Delivery, outcome: Outcome, *, now: float, retry_at: float | None
    ) -> None:
        """What came of its last attempt, unless another has begun meanwhile; without `retry_at` it
        has ended. Those that ended long ago are forgotten."""
        state: State = "delivered" if outcome.good else "failed"
        values = (
            state if retry_at is None else "waiting",
            now if retry_at is None else retry_at,
            now if retry_at is None else 0.0,
            outcome.status,
            outcome.error[:MOST_CHARACTERS],
            delivery.id,
            delivery.attempts,
        )

        def work(db: Connection) -> None:
            db.execute(_SETTLE, values)
            sql = "DELETE FROM deliveries WHERE state <> 'waiting' AND ended_at < ?"
            db.execute(sql, (now - KEPT_S,))

        await self._db.write(work)

    async def stop(self, subscription_id: str, *, now: float) -> None:
        """Its receiver wants nothing any more: what waits for it has failed."""

        def work(db: Connection) -> None:
            sql = "UPDATE subscriptions SET stopped_at = ? WHERE id = ?"
            db.execute(sql, (now, subscription_id))
            sql = """
                UPDATE deliveries SET state = 'failed', ended_at = ?, error = ?
                WHERE subscription_id = ? AND state = 'waiting'
            """
            db.execute(sql, (now, _STOPPED, subscription_id))

        await self._db.write(work)

    async def list(
        self,
        *,
        workspace: str,
        subscription_id: str | None = None,
        run_id: str | None = None,
        state: State | None = None,
        limit: int,
        before: str | None = None,
    ) -> Deliveries:
        """Those of the newest runs first; `before` is the id of the last one of the page before."""
        wanted = {
            "workspace = ?": workspace,
            "subscription_id = ?": subscription_id,
            "run_id = ?": run_id,
            "state = ?": state,
            "id < ?": before,
        }
        given = {sql: value for sql, value in wanted.items() if value is not None}
        where = " AND ".join(given)
        sql = f"SELECT * FROM deliveries WHERE {where} ORDER BY id DESC LIMIT ?"
        values = (*given.values(), limit)
        rows = await self._db.read(lambda db: db.execute(sql, values).fetchall())
        return [_delivery(row) for row in rows]

    async def redeliver(self, delivery_id: str, *, workspace: str, now: float) -> Delivery:
        """Send it again, now, under the same id. `NotFound(NOT_FOUND)`"""

        def work(db: Connection) -> Any:
            values = (now, now, delivery_id, workspace)
            return db.execute(_REDELIVER, values).fetchone()

        row = await self._db.write(work)
        if row is None:
            raise NotFound(
                Code.NOT_FOUND,
                f"there is no delivery {delivery_id}",
                hint="`mentatlab webhooks deliveries` lists them; they are kept for a week",
            )
        self._db.tell(TOPIC)
        return _delivery(row)


_STOPPED = "the receiver answered 410: it wants nothing any more"
_SETTLE = """
    UPDATE deliveries
    SET state = ?, next_at = ?, ended_at = ?, status = ?, error = ?, lease_until = 0
    WHERE id = ? AND attempts = ? AND state = 'waiting'
"""
_REDELIVER = """
    UPDATE deliveries SET state = 'waiting', since = ?, next_at = ?, ended_at = 0
    WHERE id = ? AND workspace = ? RETURNING *
"""


def _leased(db: Connection, delivery: Delivery) -> Leased | None:
    """None, and the delivery is gone, when its subscription was deleted while the run ended."""
    sql = "SELECT body, sealed, stopped_at FROM subscriptions WHERE id = ?"
    row = db.execute(sql, (delivery.subscription_id,)).fetchone()
    if row is None:
        db.execute("DELETE FROM deliveries WHERE id = ?", (delivery.id,))
        return None
    return Leased(delivery, subscription_of(row), bytes(row["sealed"]))


def _delivery(row: Any) -> Delivery:
    columns: dict[str, Any] = {name: row[name] for name in Delivery.__struct_fields__}
    columns["body"] = bytes(row["body"])
    return Delivery(**columns)


Post = Callable[[str, bytes, Mapping[str, str]], Awaitable[int]]
"""(url, body, headers) → the answer's status; `MentatError` when there is none."""


class Sender:
    """`run_forever()` in a task of its own, on every replica."""

    def __init__(
        self,
        store: DeliveryStore,
        post: Post,
        seal: Seal,
        secrets_for: SecretsFor,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._post = store, post
        self._seal, self._secrets_for = seal, secrets_for
        self._clock, self._chance = clock, chance
        self._under_way: Counter[str] = Counter()  # by subscription

    async def run_forever(self) -> None:
        await self._store.free()
        with self._store.listen() as hint:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    try:
                        await self._begin(tasks, hint)
                    except Exception:  # a bug in one look must not end them all
                        logger.exception("deliveries wait for the next look")
                    await hint.wait()

    async def look(self) -> None:
        """Everything that is due now, to the end of its attempt."""
        begun = True
        while begun:
            async with asyncio.TaskGroup() as tasks:
                begun = await self._begin(tasks, Hint())

    async def _begin(self, tasks: asyncio.TaskGroup, ended: Hint) -> bool:
        """Whether there was something to begin that there is room for."""
        begun = False
        while (room := MOST_AT_ONCE - self._under_way.total()) > 0:
            busy = [name for name, count in self._under_way.items() if count >= MOST_EACH]
            limit = min(room, MOST_EACH)
            found = await self._store.lease(self._clock(), limit=limit, without=busy)
            for leased in found:
                self._under_way[leased.subscription.id] += 1
                tasks.create_task(self._attempt(leased, ended))
            if not found:
                break
            begun = True
        return begun

    async def _attempt(self, leased: Leased, ended: Hint) -> None:
        try:
            await self._settle(leased, await self._outcome(leased))
        except Exception:  # a bug at one must not end those beside it
            logger.exception("delivery %s is tried again", leased.delivery.id)
        finally:
            self._under_way -= Counter([leased.subscription.id])
            ended.tell()

    async def _outcome(self, leased: Leased) -> Outcome:
        delivery, url = leased.delivery, leased.subscription.url
        body = delivery.message()
        try:
            secret = await self._secret(leased)
            signature = sign(secret, body, at=int(self._clock()))
            status = await self._post(url, body, _headers(delivery, signature))
        except MentatError as error:
            return Outcome(0, str(error), final=error.code in _FINAL)
        answer = Outcome(status, final=status == _GONE)
        return answer if answer.good else answer._replace(error=_told(status))

    async def _secret(self, leased: Leased) -> str:
        subscription = leased.subscription
        if leased.sealed:
            return self._seal.open(leased.sealed, subscription.id)
        names = [subscription.secret]
        return (await self._secrets_for(subscription.workspace, names))[subscription.secret]

    async def _settle(self, leased: Leased, outcome: Outcome) -> None:
        delivery, now = leased.delivery, self._clock()
        over = outcome.good or outcome.final or now - delivery.since >= GIVE_UP_S
        pause = pause_s(now - delivery.since, self._chance())
        await self._store.settle(delivery, outcome, now=now, retry_at=None if over else now + pause)
        if outcome.status == _GONE:
            await self._store.stop(leased.subscription.id, now=now)
        if over and not outcome.good:
            where = leased.subscription.url
            logger.warning("delivery %s to %s is given up: %s", delivery.id, where, outcome.error)


def pause_s(waited_s: float, chance: float) -> float:
    """Until the next attempt: about as long as was waited already, so that pauses double; at least
    about a second, at most an hour, and never beyond the last attempt, at the end of the day."""
    pause = min(max(BASE_S, waited_s), CAP_S) * (0.5 + chance / 2)
    return min(pause, max(BASE_S, GIVE_UP_S - waited_s))


def _headers(delivery: Delivery, signature: str) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "User-Agent": f"MentatLab/{__version__}",
        HEADER: signature,
        DELIVERY: delivery.id,
        "Idempotency-Key": delivery.id,  # so that it can start a run elsewhere, once
        "X-Mentat-Event": delivery.event,
    }


def _told(status: int) -> str:
    if status == _GONE:
        return _STOPPED
    if 300 <= status < 400:
        return f"the receiver answered {status}: redirects are not followed"
    return f"the receiver answered {status}"
