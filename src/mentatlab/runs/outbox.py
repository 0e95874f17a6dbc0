"""Who is told of a run's end: what the transactions of runs themselves write.

A run's own webhooks become subscriptions when it is made. Its end puts one delivery for each that
asked for it into the outbox, in the transaction that ends it: what is in the log is delivered.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from mentatlab.database import Connection
from mentatlab.protocol.ids import new_id
from mentatlab.runs import events as ev
from mentatlab.runs.store import RunRow, Snapshot

TOPIC = "deliveries"
"""Hints that there is something to be sent."""
ANY_END = "run_finished"


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """`flow_id`: only ends of its runs; `run_id`: only of this one, whose flow asked for it, and
    then `secret` is the name of the workspace's secret that signs. "" otherwise. `stopped_at`: when
    the receiver said 410; 0 = it has not."""

    id: str
    workspace: str
    url: str
    events: tuple[str, ...] = (ANY_END,)
    flow_id: str = ""
    run_id: str = ""
    secret: str = ""
    created_at: float
    stopped_at: float = 0.0


def add(db: Connection, made: Subscription, sealed: bytes = b"") -> None:
    """`sealed`: the secret, when it is the subscription's own."""
    body, events = msgspec.json.encode(made), f" {' '.join(made.events)} "
    db.execute(
        "INSERT INTO subscriptions VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0.0)",
        (made.id, made.workspace, made.run_id, made.flow_id, events, made.url, sealed, body),
    )


def add_webhooks(db: Connection, row: RunRow, snapshot: Snapshot) -> None:
    """Those of the flow itself, which was checked."""
    for webhook in snapshot.document.get("runConfig", {}).get("webhooks", ()):
        made = Subscription(
            id=new_id("sub"),
            workspace=row.workspace,
            url=webhook["url"],
            events=tuple(webhook.get("events", (ANY_END,))),
            run_id=row.id,
            secret=webhook["secret"],
            created_at=row.created_at,
        )
        add(db, made)


_DELIVER = """
    INSERT INTO deliveries
    SELECT :run_id || '-' || id, id, workspace, :run_id,
        CASE WHEN events LIKE :any_end THEN 'run_finished' ELSE :event END,
        url, :body, 'waiting', :at, :at, :at, 0.0, 0, 0.0, 0, ''
    FROM subscriptions
    WHERE workspace = :workspace AND run_id IN ('', :run_id) AND flow_id IN ('', :flow_id)
        AND stopped_at = 0 AND (events LIKE :any_end OR events LIKE :this_end)
"""


def enqueue(db: Connection, row: RunRow, facts: Iterable[ev.RunFact]) -> bool:
    """Whether the run's end is among the facts and somebody asked for it."""
    ends = [fact for fact in facts if isinstance(fact, ev.RunFinished)]
    if not ends:
        return False
    event = f"run_{ends[0].state}"
    values = {
        "run_id": row.id,
        "flow_id": row.flow_id,
        "workspace": row.workspace,
        "event": event,
        "any_end": f"% {ANY_END} %",
        "this_end": f"% {event} %",
        "body": msgspec.json.encode(_told(row, ends[0])),
        "at": ends[0].at,
    }
    return db.execute(_DELIVER, values).rowcount > 0


def _told(row: RunRow, end: ev.RunFinished) -> dict[str, Any]:
    """The run, in the names of the API."""
    error = end.error
    return {
        "run_id": row.id,
        "workspace": row.workspace,
        "flow_id": row.flow_id,
        "digest": row.digest,
        "state": end.state,
        "reason": end.reason,
        "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "origin": row.origin,
        "from_node": row.from_node,
        "trigger": row.trigger,
    }


def forget(db: Connection, run_id: str) -> None:
    """What a run that is deleted has not told yet."""
    db.execute("DELETE FROM deliveries WHERE run_id = ?", (run_id,))
    db.execute("DELETE FROM subscriptions WHERE run_id = ?", (run_id,))
