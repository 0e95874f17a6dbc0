"""Subscriptions of a workspace: addresses that are told of its runs' ends."""

from collections.abc import Awaitable, Callable, Sequence
from secrets import token_urlsafe
from typing import Any

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.flows.webhooks import EVENTS, unknown_events, url_fault
from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.runs import outbox
from mentatlab.runs.outbox import Subscription
from mentatlab.runs.secrets import Seal

Subscriptions = list[Subscription]


MOST = 100
"""Of a workspace: each end of a run looks at all of them."""
Allowed = Callable[[str], Awaitable[None]]
"""Raises when a URL leads where nothing may be sent."""


class SubscriptionStore:
    def __init__(self, database: Database, seal: Seal, allowed: Allowed) -> None:
        self._db, self._seal, self._allowed = database, seal, allowed

    async def create(
        self,
        *,
        workspace: str,
        url: str,
        events: Sequence[str],
        flow_id: str = "",
        secret: str | None = None,
        now: float,
    ) -> tuple[Subscription, str]:
        """With its secret, which is told here and never again; one of our own unless given.

        `Invalid(WEBHOOK_INVALID | WEBHOOK_ADDRESS_REFUSED)`, `Conflict(CONFLICT)`
        """
        _check(url, events)
        await self._allowed(url)
        made = Subscription(
            id=new_id("sub"),
            workspace=workspace,
            url=url,
            events=tuple(dict.fromkeys(events)),
            flow_id=flow_id,
            created_at=now,
        )
        plain = secret or f"whsec_{token_urlsafe(32)}"
        sealed = self._seal.close(plain, made.id)

        def work(db: Connection) -> None:
            sql = "SELECT count(*) FROM subscriptions WHERE workspace = ? AND run_id = ''"
            if db.execute(sql, (workspace,)).fetchone()[0] >= MOST:
                raise Conflict(
                    Code.CONFLICT,
                    f"the workspace has {MOST} subscriptions, and may not have more",
                    hint="end one: mentatlab webhooks unsubscribe ID",
                )
            outbox.add(db, made, sealed)

        await self._db.write(work)
        return made, plain

    async def list(self, *, workspace: str) -> Subscriptions:
        """Without those of single runs."""
        sql = """
            SELECT body, stopped_at FROM subscriptions
            WHERE workspace = ? AND run_id = '' ORDER BY id
        """
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        return [subscription_of(row) for row in rows]

    async def delete(self, subscription_id: str, *, workspace: str) -> None:
        """With what it has not been told yet. `NotFound(NOT_FOUND)`"""

        def work(db: Connection) -> int:
            sql = "DELETE FROM subscriptions WHERE id = ? AND workspace = ? AND run_id = ''"
            found = db.execute(sql, (subscription_id, workspace)).rowcount
            if found:
                sql = "DELETE FROM deliveries WHERE subscription_id = ?"
                db.execute(sql, (subscription_id,))
            return found

        if await self._db.write(work) == 0:
            raise NotFound(
                Code.NOT_FOUND,
                f"there is no subscription {subscription_id}",
                hint="`mentatlab webhooks subscriptions` lists them",
            )


def subscription_of(row: Any) -> Subscription:
    found = msgspec.json.decode(bytes(row["body"]), type=Subscription)
    return msgspec.structs.replace(found, stopped_at=row["stopped_at"])


def _check(url: str, events: Sequence[str]) -> None:
    if fault := url_fault(url):
        hint = "give an address like https://example.org/hooks/runs"
        raise Invalid(Code.WEBHOOK_INVALID, fault, hint=hint)
    unknown = unknown_events(events)
    if unknown or not events:
        text = f"there is no event {unknown[0][:100]!r}" if unknown else "there are no events"
        raise Invalid(Code.WEBHOOK_INVALID, text, hint=f"events are {', '.join(EVENTS)}")
