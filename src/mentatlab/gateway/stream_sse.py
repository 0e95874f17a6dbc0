"""Server-Sent Events: one stream or run, as any EventSource follows it.

`hello` (with an id, so that a cut before the first record resumes), the `stream_start`, then the
records with `id:` = cursor; `mark` when idle, `gap` for what cannot be had. Ends after the terminal
record. Writing waits for the client (the server's flow control), so a slow reader holds one batch.
"""

import asyncio
import contextlib

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.stream_access import expiry, first_of
from mentatlab.protocol.errors import MentatError
from mentatlab.streams import StreamingConnectionManager, Subscription
from mentatlab.streams.buffer import Item

RETRY_MS = 1500
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def event(name: str, data: bytes, *, id_: object = None) -> bytes:
    """One event; JSON has no raw line breaks, so `data` is one line."""
    head = f"event: {name}\n" if id_ is None else f"id: {id_}\nevent: {name}\n"
    return head.encode() + b"data: " + data + b"\n\n"


class EventStream(Response):
    """An ASGI answer; the subscription lives exactly as long as the connection."""

    def __init__(
        self, hub: StreamingConnectionManager, id_: str, from_: str | int, *, mark_s: float
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._hub, self._id, self._from, self._mark_s = hub, id_, from_, mark_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._hub.subscribe(self._id, from_=self._from) as subscription:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await first_of(
                self._follow(subscription, send),
                _disconnected(receive),
                _drained(self._hub),
                expiry(HTTPConnection(scope)),
            )
        with contextlib.suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, subscription: Subscription, send: Send) -> None:
        await _write(send, self._greeting(subscription))
        with contextlib.suppress(MentatError):  # the run was deleted: the stream just ends
            while not subscription.over:
                items = await subscription.batch(self._mark_s)
                if items:
                    await _write(send, b"".join(_record(subscription, item) for item in items))
                else:
                    await _write(send, self._mark(subscription))

    def _greeting(self, subscription: Subscription) -> bytes:
        cursor = subscription.cursor
        hello = {"stream_id": self._id, "cursor": str(cursor), "protocol": 1}
        parts = [
            f"retry: {RETRY_MS}\n".encode(),
            event("hello", msgspec.json.encode(hello), id_=cursor),
        ]
        if subscription.gap is not None:
            gap = {"id": self._id, **msgspec.to_builtins(subscription.gap)}
            parts.append(event("gap", msgspec.json.encode(gap), id_=cursor))
        if (preface := subscription.preface) is not None:
            parts.append(event(preface.entry.type, preface.json, id_=cursor))
        return b"".join(parts)

    def _mark(self, subscription: Subscription) -> bytes:
        state = "ended" if subscription.over else "open"
        mark = {"id": self._id, "cursor": str(subscription.cursor), "state": state}
        return event("mark", msgspec.json.encode(mark))


def _record(subscription: Subscription, item: Item) -> bytes:
    return event(item.entry.type, item.json, id_=subscription.cursor_at(item))


async def _write(send: Send, body: bytes) -> None:
    try:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    except OSError:  # gone: `_disconnected` ends this
        await asyncio.Event().wait()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drained(hub: StreamingConnectionManager) -> None:
    await hub.draining.wait()
