"""`?follow=1`: the bytes of an upload while they come in.

The answer ends when the upload is complete. When the upload dies it is cut off, and it is never
whole before: the last byte of a known size waits until the upload has been accepted. Of an unknown
size `Range: bytes=N-` gives what is there behind N, as soon as that is something.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from io import FileIO
from typing import Literal, NamedTuple, cast

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mentatlab.gateway.media_headers import content_type, safe_headers
from mentatlab.gateway.ranges import conditions_of, select
from mentatlab.gateway.storage_answers import not_what_is_meant
from mentatlab.gateway.stream_access import first_of
from mentatlab.protocol.errors import Gone, NotFound
from mentatlab.storage import StorageManager
from mentatlab.storage.upload_growth import Growth

_CHUNK = 256 << 10
_ENDLESS = 1 << 62
_FROM = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})", re.IGNORECASE)

log = logging.getLogger("mentatlab.gateway")


class _Part(NamedTuple):
    """`stop` is `_ENDLESS` while nobody knows it."""

    status: int
    start: int = 0
    stop: int = 0

    def headers(self, growth: Growth) -> dict[str, str]:
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-store",
            "Content-Type": content_type(growth.mime),
            **safe_headers(growth.mime, growth.filename),
        }
        if self.status in (200, 206) and self.stop != _ENDLESS:
            headers["Content-Length"] = str(self.stop - self.start)
        if self.status == 206:
            total = "*" if growth.size is None else growth.size
            headers["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{total}"
        return headers


class Following(Response):
    """An ASGI answer. `unknown` is what is said when there is no such upload; `whole` answers when
    it is complete, or its store cannot show it before."""

    def __init__(
        self,
        storage: StorageManager,
        ref: str,
        workspace: str,
        unknown: NotFound,
        whole: Callable[[], Awaitable[Response]],
    ) -> None:
        super().__init__()
        self._storage, self._ref, self._workspace = storage, ref, workspace
        self._unknown, self._whole = unknown, whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await first_of(self._answer(scope, receive, send), _left(receive))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        growth = await self._begun()
        file = await self._file(growth)
        if file is None:
            await (await self._whole())(scope, receive, send)
            return
        with file:
            method = cast(Literal["GET", "HEAD"], scope["method"])
            part, growth = await self._part(growth, method, conditions_of(Headers(scope=scope)))
            headers = [(n.lower().encode(), v.encode()) for n, v in part.headers(growth).items()]
            head = {"type": "http.response.start", "status": part.status, "headers": headers}
            if part.status == 304 or method == "HEAD":
                part = part._replace(stop=part.start)
            await self._send(send, head, self._bytes(file, part, growth))

    async def _begun(self) -> Growth:
        """As soon as its type is known."""
        try:
            growth = await self._growth()
        except NotFound:
            raise self._unknown from None
        while growth.state == "open" and not growth.mime:
            growth = await self._growth(beyond=growth.offset)
        return growth

    async def _file(self, growth: Growth) -> FileIO | None:
        """None: it is complete, maybe only now."""
        if growth.state == "done":
            return None
        file = await self._storage.serving.open_upload(growth.store_id)
        if file is None:
            await self._growth(beyond=_ENDLESS)
        return file

    async def _part(
        self, growth: Growth, method: Literal["GET", "HEAD"], conditions: dict[str, str]
    ) -> tuple[_Part, Growth]:
        """What is asked for. Its hash is not known: no ETag that a client has can match."""
        asked = None if "if-range" in conditions else _FROM.fullmatch(conditions.get("range", ""))
        if growth.size is None and asked and method == "GET":
            start = int(asked[1])
            growth = await self._growth(beyond=start)
            if growth.size is None:
                stop = int(asked[2]) + 1 if asked[2] else _ENDLESS
                return _Part(206, start, max(start + 1, min(stop, growth.offset))), growth
        if growth.size is None:
            return _Part(200, 0, _ENDLESS), growth
        status, span = select(growth.size, "", conditions, method=method)
        if status == 412:
            raise not_what_is_meant()
        return _Part(status, *(span or (0, growth.size))), growth

    async def _bytes(self, file: FileIO, part: _Part, growth: Growth) -> AsyncIterator[bytes]:
        at, first = part.start, growth.store_id
        while at < part.stop:
            stop = min(part.stop, growth.offset if growth.state == "done" else _safe(growth))
            if at < stop:
                size = min(_CHUNK, stop - at)
                if not (chunk := await asyncio.to_thread(os.pread, file.fileno(), size, at)):
                    raise EOFError("the upload's file is shorter than the upload")
                at += len(chunk)
                yield chunk
            elif growth.state == "done":
                return
            else:
                growth = await self._growth(beyond=growth.offset)
                if growth.store_id != first:
                    raise self._unknown  # it has begun again, perhaps with other bytes

    async def _send(self, send: Send, head: Message, chunks: AsyncIterator[bytes]) -> None:
        await send(head)
        try:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (NotFound, Gone):
            log.info("an answer is cut off: the upload of %s, which it followed, died", self._ref)
            return  # without its end, so that the server cuts the connection
        await send({"type": "http.response.body", "body": b""})

    async def _growth(self, *, beyond: int = -1) -> Growth:
        return await self._storage.uploads.follow(
            self._ref, workspace=self._workspace, beyond=beyond
        )


def _safe(growth: Growth) -> int:
    """Up to where an open upload may be shown."""
    return growth.offset if growth.size is None else min(growth.offset, growth.size - 1)


async def _left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
