"""`GET /api/v1/streams/{id}/log` and `…/records/{sequence}`: what the log holds now."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.compress import GrowingResponse
from mentatlab.gateway.media_headers import content_type, safe_headers
from mentatlab.gateway.stream_access import authority
from mentatlab.protocol import frames
from mentatlab.protocol.records import Cursor, parse_cursor
from mentatlab.streams import Lane, StreamingConnectionManager, Subscription
from mentatlab.streams.buffer import Item
from mentatlab.streams.port import Entry, Run
from mentatlab.streams.positions import Gap
from mentatlab.streams.pump import ROOM_BYTES
from mentatlab.streams.subscription import Options

NDJSON = "application/x-ndjson"
_MOST = 10**18

From = Annotated[
    str | None,
    Query(
        alias="from",
        description="start, latest, a sequence (inclusive), a cursor (exclusive), -N (the last N), "
        "time:<RFC 3339 or Unix seconds>, key (the last key record)",
    ),
]
To = Annotated[int | None, Query(ge=0, lt=_MOST, description="the last sequence (of a run: rseq)")]
Limit = Annotated[int | None, Query(ge=1, lt=_MOST, description="records at most")]
Ticket = Annotated[
    str | None, Query(alias="ticket", description="single use, where no header can be sent")
]
Sequence = Annotated[int, Path(ge=1, lt=_MOST)]

_LOG_ANSWER: dict[str, Any] = {
    "content": {NDJSON: {"schema": {"type": "string"}}},
    "description": "Records and gaps, one a line",
    "headers": {
        name: {"schema": {"type": "string"}, "description": text}
        for name, text in (
            ("Stream-Epoch", "of the cursors"),
            ("Stream-Head", "the last sequence (of a run: rseq) there was"),
            ("Stream-State", "open, ended or errored"),
            ("Stream-Next", "the cursor to go on from"),
        )
    },
}
_RECORD_ANSWER: dict[str, Any] = {
    "content": {"application/json": {}, "*/*": {}},
    "description": "A record's JSON; of a binary one its bytes with their MIME type",
}


def log_router(hub: StreamingConnectionManager) -> APIRouter:
    router = APIRouter(prefix="/api/v1/streams", tags=["streams"])

    @router.get(
        "/{stream_id}/log",
        status_code=200,
        response_class=LogResponse,
        responses={200: _LOG_ANSWER},
    )
    async def log(
        request: Request,
        stream_id: str,
        from_: From = None,
        to: To = None,
        limit: Limit = None,
        _: Ticket = None,
    ) -> Response:
        """What the log of a stream or run holds now, in order; it does not follow."""
        who = authority(request)
        found = await who.check("sub", stream_id)
        state = await _state(hub, found)
        options = Options(guard=who.guard)
        subscription = await hub.attach(stream_id, from_=from_ or "start", options=options)
        reading = LogReading(subscription, _end(found, subscription.cursor.sequence, to, limit))
        return LogResponse(reading, headers=_headers(found, state, reading.next))

    @router.get("/{stream_id}/records/{sequence}", status_code=200, responses={200: _RECORD_ANSWER})
    async def record(request: Request, stream_id: str, sequence: Sequence) -> Response:
        """One record: its JSON, or the bytes of a binary one (JSON with `Accept:
        application/json`)."""
        found = await authority(request).check("sub", stream_id)
        entry = await hub.entry(stream_id, sequence)
        if entry.frame is None or "application/json" in request.headers.get("accept", ""):
            return Response(entry.json, headers=_NO_CACHE, media_type="application/json")
        return _bytes(entry, entry.frame, found.epoch)

    return router


_NO_CACHE = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}


class LogReading:
    """The records after where the subscription begins up to `end`, in bounded memory."""

    def __init__(self, subscription: Subscription, end: int) -> None:
        self._subscription, self._end = subscription, end

    @property
    def next(self) -> str:
        """The cursor after all that this can give."""
        return str(self._cursor(self._end))

    async def pieces(self) -> AsyncIterator[bytes]:
        """NDJSON, some 64 KiB at once."""
        while True:
            more = self._subscription.cursor.sequence < self._end
            items = await self._some() if more else []
            lines = [*self._gap(), *(item.entry.json for item in items)]
            if lines:
                yield b"\n".join(lines) + b"\n"
            if not items:
                return

    def close(self) -> None:
        self._subscription.close()

    async def _some(self) -> list[Item]:
        items = self._subscription.take(ROOM_BYTES)
        if items is None:
            items = await self._subscription.load(ROOM_BYTES)
        return [item for item in items if item.position <= self._end]

    def _gap(self) -> list[bytes]:
        """What is missing before the next record, as a line; no further than to the end."""
        gap, self._subscription.gap = self._subscription.gap, None
        if gap is None:
            return []
        if parse_cursor(gap.to).sequence > self._end:
            end = str(self._cursor(self._end))
            gap = Gap(gap.from_, end, gap.reason, end)
        fields = {"type": "gap", "id": self._subscription.id, **msgspec.to_builtins(gap)}
        return [msgspec.json.encode(fields)]

    def _cursor(self, position: int) -> Cursor:
        return Cursor(self._subscription.epoch, position)


class LogResponse(GrowingResponse):
    """Closes `reading` at its end, also when the client left before the first piece."""

    media_type = NDJSON

    def __init__(self, reading: LogReading, *, headers: dict[str, str]) -> None:
        super().__init__(reading.pieces(), headers=headers)
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reading.close()


async def _state(hub: StreamingConnectionManager, found: Lane | Run) -> str:
    if isinstance(found, Lane):
        return found.state
    return "ended" if await hub.finished(found.run_id, str(found.cursor)) else "open"


def _end(found: Lane | Run, start: int, to: int | None, limit: int | None) -> int:
    """The last position of what is asked for."""
    end = found.head if to is None else min(to, found.head)
    if limit is not None:
        end = min(end, _counted(found, start, limit))
    return max(end, start)


def _counted(found: Lane | Run, start: int, limit: int) -> int:
    """The position of the `limit`th record after `start`, over what retention has taken."""
    if isinstance(found, Run):
        return start + limit
    if start == 0:
        start, limit = 1, limit - 1
    return start if limit == 0 else max(start, found.floor - 1) + limit


def _headers(found: Lane | Run, state: str, following: str) -> dict[str, str]:
    return {
        "Stream-Epoch": str(found.epoch),
        "Stream-Head": str(found.head),
        "Stream-State": state,
        "Stream-Next": following,
        "Cache-Control": "private, no-cache, no-transform",
        "X-Accel-Buffering": "no",
    }


def _bytes(entry: Entry, frame: bytes, epoch: int) -> Response:
    record = msgspec.json.decode(entry.json, type=_BinaryRecord)
    mime = content_type(record.payload.ref.metadata.mime_type)
    facts = {
        "Stream-Epoch": epoch,
        "Stream-Sequence": entry.sequence,
        "Stream-Timestamp": record.timestamp,
        "Stream-Pts-Us": record.pts_us,
        "Stream-Dur-Us": record.dur_us,
        "Stream-Item": record.item,
        "Stream-Attempt": record.attempt,
        "Stream-Key": 1 if entry.key else None,
    }
    told = {name: str(value) for name, value in facts.items() if value is not None}
    headers = {**_NO_CACHE, **safe_headers(mime), **told, "Content-Type": mime}
    return Response(bytes(frames.body_of(frame)), headers=headers)


class _MimeType(msgspec.Struct, rename="camel"):
    mime_type: str


class _Ref(msgspec.Struct):
    metadata: _MimeType


class _Payload(msgspec.Struct):
    ref: _Ref


class _BinaryRecord(msgspec.Struct):
    timestamp: str
    payload: _Payload
    pts_us: int | None = None
    dur_us: int | None = None
    attempt: int | None = None
    item: int | None = None
