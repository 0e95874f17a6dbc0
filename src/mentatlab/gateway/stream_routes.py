"""Streams over HTTP and WebSocket: open, publish, look, follow."""

import hashlib
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response, WebSocket
from pydantic import BaseModel

from mentatlab.gateway.identity import authorise, caller
from mentatlab.gateway.stream_access import admit
from mentatlab.gateway.stream_msp import PROTOCOL, MspSocket
from mentatlab.gateway.stream_plain import PlainSocket
from mentatlab.gateway.stream_sse import EventStream
from mentatlab.gateway.stream_wire import Timing, serve
from mentatlab.protocol.errors import Code, Conflict, Forbidden, Invalid
from mentatlab.protocol.records import MAX_RECORD_BYTES, Durability, timestamp
from mentatlab.protocol.tokens import MAX_LIFETIME_S, Capability, Claims, mint
from mentatlab.streams import Lane, StreamingConnectionManager, StreamInitRequest, StreamSession
from mentatlab.streams.port import READ_BYTES, LaneState
from mentatlab.streams.publishing import BATCH_RECORDS, parse_records

IdempotencyKey = Annotated[
    str | None, Header(max_length=200, description="The same key opens the same stream")
]
From = Annotated[
    str | None,
    Query(alias="from", description="start, latest, a sequence (inclusive), a cursor (exclusive)"),
]


class StreamLimits(BaseModel):
    """Bytes; `records` in one POST batch or waiting on one connection."""

    record_bytes: int = MAX_RECORD_BYTES
    in_flight_bytes: int = READ_BYTES
    records: int = BATCH_RECORDS


class StreamOpened(BaseModel):
    """URLs are paths on this server; tokens are for this stream and end after an hour."""

    stream_id: str
    run_id: str
    epoch: int
    ws_url: str
    sse_url: str
    pub_token: str
    sub_token: str
    limits: StreamLimits
    status: LaneState


class StreamInfo(BaseModel):
    """`head` is the last sequence, `chunks` and `bytes` count the standing data records."""

    stream_id: str
    run_id: str
    node_id: str
    pin_name: str
    agent_id: str
    mime_type: str
    durability: Durability
    epoch: int
    head: int
    cursor: str
    chunks: int
    bytes: int
    attempt: int
    state: LaneState
    created_at: str
    ws_url: str
    sse_url: str


class RunStreams(BaseModel):
    """A run as a stream: its lanes; `head` counts the records of its commit lanes."""

    run_id: str
    epoch: int
    head: int
    cursor: str
    streams: list[StreamInfo]


class PublishAnswer(BaseModel):
    """`first` to `last` are the sequences of the batch; `duplicate`: the log had it already."""

    stream_id: str
    first: int
    last: int
    duplicate: bool


def stream_router(
    hub: StreamingConnectionManager, secret: bytes, *, timing: Timing | None = None
) -> APIRouter:
    """`secret` signs the tokens that `init` answers (`admission.token_secret`)."""
    router = APIRouter(tags=["streams"])
    timing = timing or Timing()

    @router.post("/api/v1/streams/init")
    async def init(
        request: Request, body: StreamInitRequest, idempotency_key: IdempotencyKey = None
    ) -> StreamOpened:
        """Open a stream. Its first record is `stream_start`."""
        who = caller(request)
        if who.claims is not None:
            raise Forbidden(
                Code.STREAM_FORBIDDEN,
                "a stream's token does not open another one",
                hint="call with a key that has the scope `publish`",
            )
        authorise(who, "publish")
        session = await _open(hub, body, who.workspace, idempotency_key)
        return _opened(session, secret)

    @router.post("/api/v1/streams/{stream_id}/records", openapi_extra=_RECORDS_BODY)
    async def publish(request: Request, stream_id: str) -> PublishAnswer:
        """Append records, all or none. With `producer{id, epoch, seq}` exactly once."""
        await admit(hub, request, stream_id, "pub")
        batch = parse_records(_json(await request.body()), stream_id=stream_id)
        appended = await hub.publish(stream_id, batch.drafts, producer=batch.producer)
        return PublishAnswer(
            stream_id=stream_id,
            first=appended.first,
            last=appended.last,
            duplicate=appended.duplicate,
        )

    @router.get("/api/v1/streams/{stream_id}")
    async def look(request: Request, stream_id: str) -> StreamInfo | RunStreams:
        """A stream, or a run with its streams."""
        found = await admit(hub, request, stream_id, "sub")
        if isinstance(found, Lane):
            return _info(found)
        return RunStreams(
            run_id=found.run_id,
            epoch=found.epoch,
            head=found.head,
            cursor=str(found.cursor),
            streams=[_info(lane) for lane in await hub.lanes(found.run_id)],
        )

    @router.get(
        "/api/v1/streams/{stream_id}/sse",
        status_code=200,  # said here: the response class has no default that OpenAPI could read
        response_class=EventStream,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "The records as events"},
            204: {"description": "The stream has ended and you have all of it: stop reconnecting"},
        },
    )
    async def sse(
        request: Request,
        stream_id: str,
        from_: From = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Follow a stream or a run with EventSource. `Last-Event-ID` beats `from`."""
        await admit(hub, request, stream_id, "sub")
        start = last_event_id or from_ or "start"
        if await hub.finished(stream_id, start):
            return Response(status_code=204)
        return EventStream(hub, stream_id, start, mark_s=timing.mark_s)

    @router.websocket("/ws/streams/{stream_id}")
    async def socket(websocket: WebSocket, stream_id: str) -> None:
        if PROTOCOL in websocket.scope["subprotocols"]:
            await serve(MspSocket(hub, websocket, stream_id, timing), subprotocol=PROTOCOL)
        else:
            await serve(PlainSocket(hub, websocket, stream_id, timing))

    return router


_RECORDS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": 'One record, a list, or `{"records": [...], "producer": {...}}`',
        "content": {
            "application/json": {
                "schema": {},
                "example": {
                    "records": [{"type": "stream_data", "payload": {"data": {"text": "hello"}}}],
                    "producer": {"id": "me", "epoch": 0, "seq": 1},
                },
            }
        },
    }
}


async def _open(
    hub: StreamingConnectionManager, body: StreamInitRequest, workspace: str, key: str | None
) -> StreamSession:
    """An idempotency key gives the ids, so that the same call finds the same lane."""
    known = None if key is None else hashlib.sha256(f"{workspace}\0{key}".encode()).hexdigest()[:26]
    session = await hub.create_stream(
        body.agent_id,
        body.pin_name,
        workspace=workspace,
        run_id=body.run_id or (known and f"rs_{known}"),
        node_id=body.node_id,
        mime_type=body.mime_type,
        durability=body.durability,
        stream_id=known and f"st_{known}",
        external=True,
    )
    lane = session.lane
    if not lane.external:
        raise Forbidden(
            Code.STREAM_FORBIDDEN,
            "this pin belongs to its run",
            hint="use another node_id, or leave run_id out",
        )
    said = (body.agent_id, body.mime_type, body.durability)
    if key is not None and (
        lane.stream_id != f"st_{known}" or said != (lane.agent_id, lane.mime_type, lane.durability)
    ):
        raise _reused()
    return session


def _reused() -> Conflict:
    return Conflict(
        Code.IDEMPOTENCY_CONFLICT,
        "this Idempotency-Key has opened another stream",
        hint="use a new key for a new stream",
    )


def _opened(session: StreamSession, secret: bytes) -> StreamOpened:
    lane = session.lane
    expires = int(time.time()) + MAX_LIFETIME_S

    def token(*capabilities: Capability) -> str:
        return mint(
            Claims(
                subject=lane.stream_id,
                capabilities=capabilities,
                workspace=lane.workspace,
                expires=expires,
            ),
            secret,
        )

    return StreamOpened(
        stream_id=lane.stream_id,
        run_id=lane.run_id,
        epoch=lane.epoch,
        ws_url=_ws_url(lane.stream_id),
        sse_url=_sse_url(lane.stream_id),
        pub_token=token("pub", "cancel"),
        sub_token=token("sub"),
        limits=StreamLimits(),
        status=lane.state,
    )


def _info(lane: Lane) -> StreamInfo:
    return StreamInfo(
        stream_id=lane.stream_id,
        run_id=lane.run_id,
        node_id=lane.node_id,
        pin_name=lane.pin_name,
        agent_id=lane.agent_id,
        mime_type=lane.mime_type,
        durability=lane.durability,
        epoch=lane.epoch,
        head=lane.head,
        cursor=str(lane.cursor),
        chunks=lane.chunks,
        bytes=lane.bytes,
        attempt=lane.attempt,
        state=lane.state,
        created_at=timestamp(lane.created_at),
        ws_url=_ws_url(lane.stream_id),
        sse_url=_sse_url(lane.stream_id),
    )


def _ws_url(stream_id: str) -> str:
    return f"/ws/streams/{stream_id}"


def _sse_url(stream_id: str) -> str:
    return f"/api/v1/streams/{stream_id}/sse"


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Invalid(
            Code.STREAM_RECORD_INVALID,
            f"the body is not JSON: {error}",
            hint="send a record, a list of records, or an object with `records`",
        ) from error
