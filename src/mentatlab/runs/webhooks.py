"""Webhooks: addresses that start a run of a stored flow when they are called and signed."""

from secrets import token_urlsafe
from typing import Any

import msgspec

from mentatlab.database import Connection, Database
from mentatlab.protocol.errors import Code, Conflict, Invalid, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.values import is_object
from mentatlab.runs.secrets import Seal
from mentatlab.runs.signatures import WINDOW_S, verify


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """`input`: which of the flow's inputs gets a call's body; "" = the body holds them all.
    `digest`: of the flow when it was made."""

    id: str
    workspace: str
    flow_id: str
    input: str
    created_at: float
    digest: str = ""


Webhooks = list[Webhook]


class WebhookStore:
    def __init__(self, database: Database, seal: Seal) -> None:
        self._db, self._seal = database, seal

    async def create(
        self,
        *,
        workspace: str,
        flow_id: str,
        input: str,
        secret: str | None,
        now: float,
        digest: str = "",
    ) -> tuple[Webhook, str]:
        """With its secret, which is told here and never again; one of our own unless given."""
        hook = Webhook(
            id=new_id("wh"),
            workspace=workspace,
            flow_id=flow_id,
            input=input,
            created_at=now,
            digest=digest,
        )
        plain = secret or f"whsec_{token_urlsafe(32)}"
        values = (hook.id, workspace, self._seal.close(plain, hook.id), msgspec.json.encode(hook))

        def work(db: Connection) -> None:
            db.execute("INSERT INTO webhooks VALUES (?, ?, ?, ?)", values)

        await self._db.write(work)
        return hook, plain

    async def list(self, *, workspace: str) -> Webhooks:
        sql = "SELECT body FROM webhooks WHERE workspace = ? ORDER BY id"
        rows = await self._db.read(lambda db: db.execute(sql, (workspace,)).fetchall())
        return [_webhook(row) for row in rows]

    async def delete(self, hook_id: str, *, workspace: str) -> None:
        """`NotFound(NOT_FOUND)`"""

        def work(db: Connection) -> int:
            db.execute("DELETE FROM webhook_calls WHERE webhook_id = ?", (hook_id,))
            sql = "DELETE FROM webhooks WHERE id = ? AND workspace = ?"
            return db.execute(sql, (hook_id, workspace)).rowcount

        if await self._db.write(work) == 0:
            raise _unknown(hook_id)

    async def accept(self, hook_id: str, body: bytes, signature: str, *, now: float) -> Webhook:
        """The webhook, when the call is signed with its secret and has not come before.

        `NotFound`, `Unauthenticated(WEBHOOK_SIGNATURE)`, `Conflict(WEBHOOK_REPLAYED)`
        """
        sql = "SELECT sealed, body FROM webhooks WHERE id = ?"
        row = await self._db.read(lambda db: db.execute(sql, (hook_id,)).fetchone())
        if row is None:
            raise _unknown(hook_id)
        verify(self._seal.open(bytes(row["sealed"]), hook_id), body, signature, now=now)
        if not await self._db.write(lambda db: _is_first(db, hook_id, signature, now)):
            raise Conflict(
                Code.WEBHOOK_REPLAYED,
                "this very call has come before",
                hint="sign it again with the present time to send it again",
            )
        return _webhook(row)


def _is_first(db: Connection, hook_id: str, signature: str, now: float) -> bool:
    db.execute("DELETE FROM webhook_calls WHERE at < ?", (now - 2 * WINDOW_S - 1,))
    sql = "INSERT INTO webhook_calls VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
    return db.execute(sql, (hook_id, signature, now)).rowcount == 1


def inputs_of(hook: Webhook, body: bytes) -> dict[str, Any]:
    """What a call gives the run; nothing, when it has no body. `Invalid(INVALID_REQUEST)`"""
    if not body:
        return {}
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(
            Code.INVALID_REQUEST, f"the body is not JSON: {error}", hint="send a JSON body"
        ) from error
    if hook.input:
        return {hook.input: value}
    if not is_object(value):
        raise Invalid(
            Code.INVALID_REQUEST,
            "the body is no JSON object",
            hint='this webhook takes the run\'s inputs by name, {"input": value}',
        )
    return value


def _webhook(row: Any) -> Webhook:
    return msgspec.json.decode(bytes(row["body"]), type=Webhook)


def _unknown(hook_id: str) -> NotFound:
    return NotFound(
        Code.NOT_FOUND, f"there is no webhook {hook_id}", hint="`mentatlab webhooks ls` lists them"
    )
