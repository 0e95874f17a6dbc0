"""Following streams by ASGI: SSE and WebSocket on any server."""

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response, WebSocket

from mentatlab.gateway.stream_access import authority
from mentatlab.gateway.stream_log import From, Ticket
from mentatlab.gateway.stream_msp import PROTOCOL, MspSocket
from mentatlab.gateway.stream_plain import PlainSocket
from mentatlab.gateway.stream_sse import EventStream
from mentatlab.gateway.stream_wire import Timing, serve
from mentatlab.streams import StreamingConnectionManager


def portable_router(hub: StreamingConnectionManager, *, timing: Timing | None = None) -> APIRouter:
    router = APIRouter(tags=["streams"])
    timing = timing or Timing()

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
        _: Ticket = None,
    ) -> Response:
        """Follow a stream or a run with EventSource. `Last-Event-ID` beats `from`."""
        await authority(request).check("sub", stream_id)
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
