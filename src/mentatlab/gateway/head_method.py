"""HEAD, wherever there is a GET: the same answer without its body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN = "/api/v1/storage/"
"""Where HEAD has routes of its own."""


class HeadMiddleware:
    """The GET is given up as soon as its headers are known: a log is not read, and what would be
    followed without end has one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith(_OWN):
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                rest.reschedule(0)

        rest = asyncio.timeout(None)
        try:
            async with rest:
                await self._app({**scope, "method": "GET"}, receive, send_head)
        except TimeoutError:
            if not rest.expired():
                raise
