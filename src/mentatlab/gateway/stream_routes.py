"""Streams over HTTP: open, publish, look, end, and let others do so."""

import hashlib
import time
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request

from mentatlab.gateway.admission import Admission
from mentatlab.gateway.identity import authorise, caller
from mentatlab.gateway.stream_access import Authority, authority
from mentatlab.gateway.stream_bodies import MediaFacts, parse_body
from mentatlab.gateway.stream_log import log_router
from mentatlab.gateway.stream_models import (
    CancelAnswer,
    PublishAnswer,
    RunStreams,
    StreamInfo,
    StreamLimits,
    StreamOpened,
    TicketAnswer,
    TokenAnswer,
    TokenBody,
    info_of,
    run_of,
    sse_url,
    ws_url,
)
from mentatlab.protocol.errors import Code, Conflict, Forbidden, RateLimited
from mentatlab.protocol.tokens import MAX_LIFETIME_S, Capability, Claims, mint
from mentatlab.streams import Lane, StreamingConnectionManager, StreamInitRequest, StreamSession

_PATIENCE_S = 10.0
"""How long a POST waits for a reader that holds its stream back: its client may be gone."""

IdempotencyKey = Annotated[
    str | None, Header(max_length=200, description="The same key opens the same stream")
]


def stream_router(hub: StreamingConnectionManager, admission: Admission) -> APIRouter:
    router = APIRouter(tags=["streams"])
    router.include_router(log_router(hub))
    secret = admission.rules.token_secret

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
    async def publish(
        request: Request, stream_id: str, facts: Annotated[MediaFacts, Query()]
    ) -> PublishAnswer:
        """Append records, all or none. With a producer exactly once."""
        who = authority(request)
        await who.check("pub", stream_id)
        if wait := who.owe(0):
            raise RateLimited(wait)
        batch = parse_body(
            await request.body(),
            request.headers.get("content-type"),
            lane=await hub.identity(stream_id),
            facts=facts,
            headers=request.headers,
        )
        who.owe(len(batch.drafts))
        appended = await hub.publish(
            stream_id, batch.drafts, producer=batch.producer, patience_s=_PATIENCE_S
        )
        return PublishAnswer(
            stream_id=stream_id,
            first=appended.first,
            last=appended.last,
            duplicate=appended.duplicate,
        )

    @router.post("/api/v1/streams/{stream_id}/cancel")
    async def cancel(request: Request, stream_id: str) -> CancelAnswer:
        """End a stream as cancelled, for everybody; one that has ended stays as it is."""
        await authority(request).check("cancel", stream_id)
        await hub.end_stream(stream_id, reason="cancelled")
        return CancelAnswer(stream_id=stream_id, state=(await hub.lane(stream_id)).state)

    @router.post("/api/v1/streams/{stream_id}/tokens")
    async def token(request: Request, stream_id: str, body: TokenBody | None = None) -> TokenAnswer:
        """A token for a stream or run: by a key with the scope, or by a token for its own
        capabilities or fewer."""
        who, asked = authority(request), body or TokenBody()
        capabilities = _wanted(who, asked)
        await who.allowed(capabilities, stream_id)
        until = int(time.time()) + asked.lifetime_s
        claims = who.granted(stream_id, capabilities, until)
        return TokenAnswer(token=mint(claims, secret), expires=claims.expires)

    @router.post("/api/v1/streams/{stream_id}/tickets")
    async def ticket(request: Request, stream_id: str) -> TicketAnswer:
        """A ticket to follow a stream or run once, where no header can be sent."""
        who = authority(request)
        await who.check("sub", stream_id)
        until = int(time.time()) + MAX_LIFETIME_S
        issued = admission.tickets.issue(who.granted(stream_id, ("sub",), until))
        return TicketAnswer(ticket=issued.ticket, expires=issued.expires)

    @router.get("/api/v1/streams/{stream_id}")
    async def look(request: Request, stream_id: str) -> StreamInfo | RunStreams:
        """A stream, or a run with its streams."""
        found = await authority(request).check("sub", stream_id)
        if isinstance(found, Lane):
            return info_of(found)
        return run_of(found, await hub.lanes(found.run_id))

    return router


_RECORDS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": 'One record, a list, or `{"records": [...], "producer": {...}}`; a record a '
        "line; or of any other type the bytes of one binary record (at most 1 MiB). A producer may "
        "stand in the headers Producer-Id, Producer-Epoch and Producer-Seq",
        "content": {
            "application/json": {
                "schema": {},
                "example": {
                    "records": [{"type": "stream_data", "payload": {"data": {"text": "hello"}}}],
                    "producer": {"id": "me", "epoch": 0, "seq": 1},
                },
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
            "*/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def _wanted(who: Authority, asked: TokenBody) -> tuple[Capability, ...]:
    if asked.capabilities is not None:
        return tuple(dict.fromkeys(asked.capabilities))
    return ("sub",) if who.caller.claims is None else who.caller.claims.capabilities


async def _open(
    hub: StreamingConnectionManager, body: StreamInitRequest, workspace: str, key: str | None
) -> StreamSession:
    """An idempotency key gives the ids, so that the same call finds the same lane."""
    known = None if key is None else hashlib.sha256(f"{workspace}\0{key}".encode()).hexdigest()[:26]
    try:
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
            retention=body.retention,
            facts=body.facts,
        )
    except Conflict as error:
        if error.code is not Code.CONFLICT:
            raise
        raise _reused() from error  # the key's id stands in another run, node or pin
    lane = session.lane
    if not lane.external:
        raise Forbidden(
            Code.STREAM_FORBIDDEN,
            "this pin belongs to its run",
            hint="use another node_id, or leave run_id out",
        )
    said = (body.agent_id, body.mime_type, body.durability, body.facts)
    found = (lane.agent_id, lane.mime_type, lane.durability, lane.facts)
    if key is not None and (lane.stream_id != f"st_{known}" or said != found):
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
        ws_url=ws_url(lane.stream_id),
        sse_url=sse_url(lane.stream_id),
        pub_token=token("pub", "cancel"),
        sub_token=token("sub"),
        limits=StreamLimits(),
        status=lane.state,
    )
