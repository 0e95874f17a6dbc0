"""`GET /api/v1/runs/{id}/events`: the run's committed events as server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Response

from mentatlab.gateway.compress import GrowingResponse
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.stream_sse import HEADERS, RETRY_MS
from mentatlab.gateway.stream_sse import event as encoded
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.runs.events import RunEvent
from mentatlab.runs.reading import RunReader

Reader = Annotated[Caller, Depends(requires("read"))]

SILENCE = b": still here\n\n"
_MAX_SEQ = 10**15


def run_events_router(runs: RunReader) -> APIRouter:
    router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

    @router.get(
        "/{run_id}/events",
        summary="What happened, then what happens (SSE); ends with the run",
        response_class=GrowingResponse,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "Events, `id` = `seq`"},
            204: {"description": "The run is over, and the reader has its last event"},
        },
    )
    async def follow(
        run_id: str,
        who: Reader,
        after: Annotated[
            int, Query(ge=0, lt=_MAX_SEQ, description="only events behind this `seq`")
        ] = 0,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        start = after if last_event_id is None else _sequence(last_event_id)
        if await runs.over(run_id, workspace=who.workspace, after=start):
            return Response(status_code=204)  # stops an EventSource
        pages = runs.follow(run_id, workspace=who.workspace, after=start)
        return GrowingResponse(_frames(pages), headers=HEADERS)

    return router


async def _frames(pages: AsyncGenerator[list[RunEvent]]) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MS}\n\n".encode()
    async with aclosing(pages):
        async for page in pages:
            yield b"".join(map(_frame, page)) or SILENCE


def _frame(run_event: RunEvent) -> bytes:
    return encoded(run_event.type, msgspec.json.encode(run_event), id_=run_event.seq)


def _sequence(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise Invalid(
        Code.INVALID_REQUEST,
        f"Last-Event-ID {text[:40]!r} is not an id of this call",
        hint="send back the id of the last event, unchanged",
    )
