"""`GET /api/v1/runs/{id}/events`: the run's committed events as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Response

from mentatlab.gateway.compress import GrowingResponse
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.stream_access import first_of
from mentatlab.gateway.stream_sse import HEADERS, RETRY_MS
from mentatlab.gateway.stream_sse import event as encoded
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.runs.engine import Engine
from mentatlab.runs.events import RunEvent
from mentatlab.runs.lanes import RUN_NODE, RUN_PIN, stream_id
from mentatlab.streams import StreamingConnectionManager, Subscription

Reader = Annotated[Caller, Depends(requires("read"))]

PING_S = 15.0
_MAX_SEQ = 10**15


def run_events_router(engine: Engine, hub: StreamingConnectionManager) -> APIRouter:
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
        run = await engine.get(run_id, workspace=who.workspace)
        if run.finished and not await engine.events(run_id, workspace=who.workspace, after=start):
            return Response(status_code=204)  # stops an EventSource
        frames = _Follower(engine, hub, run_id, who.workspace, start).frames()
        return GrowingResponse(frames, headers=HEADERS)

    return router


def _sequence(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    raise Invalid(
        Code.INVALID_REQUEST,
        f"Last-Event-ID {text[:40]!r} is not an id of this call",
        hint="send back the id of the last event, unchanged",
    )


class _Follower:
    """One reader: the store is the truth, the run's own lane says when to look."""

    def __init__(
        self,
        engine: Engine,
        hub: StreamingConnectionManager,
        run_id: str,
        workspace: str,
        after: int,
    ) -> None:
        self._engine, self._hub = engine, hub
        self._run_id, self._workspace, self._after = run_id, workspace, after

    async def frames(self) -> AsyncIterator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        async with self._hub.subscribe(
            stream_id(self._run_id, RUN_NODE, RUN_PIN), from_="latest"
        ) as news:
            while True:
                over = news.over
                for frame in await self._new():
                    yield frame
                if over or self._hub.draining.is_set():
                    return
                if not await self._told(news):
                    yield b": still here\n\n"

    async def _new(self) -> list[bytes]:
        events = await self._engine.events(
            self._run_id, workspace=self._workspace, after=self._after
        )
        if events:
            self._after = events[-1].seq
        return [_frame(event) for event in events]

    async def _told(self, news: Subscription) -> bool:
        """Wait for a record of the lane or the server's end; False after 15 s of neither."""
        told = await first_of(news.batch(PING_S), self._hub.draining.wait())
        return bool(told) or news.over


def _frame(run_event: RunEvent) -> bytes:
    return encoded(run_event.type, msgspec.json.encode(run_event), id_=run_event.seq)
