"""Admission in front of an ASGI application: the edge of HTTP, and of streams where no transport of
ours has taken the connection before.
"""

import re

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mentatlab.gateway.admission import Admission, Visit
from mentatlab.gateway.head import Head
from mentatlab.gateway.limits import MAX_JSON_BYTES
from mentatlab.gateway.problems import CLIENT_GONE, response_of, status_of, too_large, unexpected
from mentatlab.protocol.errors import MentatError

_BYTES = re.compile(r"/api/v1/storage/(upload|tus(/.*)?|uploads/[^/]+/content)")
"""Where files come in, which storage bounds; all other bodies are JSON."""


class AdmissionMiddleware:
    """Puts `caller` and `authority` into the state; answers what is raised before an answer."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            visit = self._admission.admit(Head.of(scope), _peer(scope))
            authority = await self._admission.authorise(visit)
        except MentatError as error:
            await response_of(error)(scope, receive, send)
            return
        scope.setdefault("state", {}).update(caller=authority.caller, authority=authority)
        await self._visited(visit, scope, receive, send)

    async def _visited(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = status or _status(message)
            await send(message)

        try:
            await self._app(scope, _bounded(scope, receive), watch)
        except Exception as error:
            if status:
                raise  # the server logs it and cuts the connection: EOF is never success
            known = error if isinstance(error, MentatError) else unexpected(error)
            status = status_of(known)
            await response_of(known)(scope, receive, send)
        finally:
            visit.over(status or CLIENT_GONE)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _status(message: Message) -> int:
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return message["status"]
        case "websocket.accept":
            return 101
        case _:
            return 403  # a WebSocket that is closed before it was accepted


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """`receive` that refuses a body over 8 MiB, before its first byte when its length is announced.

    Files have a limit of their own.
    """
    if scope["type"] != "http" or _BYTES.fullmatch(scope["path"]):
        return receive
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_JSON_BYTES:
        raise too_large()
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_JSON_BYTES:
            raise HTTPException(413)  # the framework lets no other exception out of a body
        return message

    return counted
