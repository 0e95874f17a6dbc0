"""Media to a program: over cuts, in parallel, by another way when the store or the CDN is dead."""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urljoin

from mentatlab.protocol.errors import Code, Internal, MentatError, RateLimited
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.groups import task_group
from mentatlab.sdk.hashing import new_hasher
from mentatlab.sdk.ranges import (
    Headers,
    Medium,
    blake3_of,
    cut_off,
    range_header,
    refused_by_store,
    through_gateway,
)
from mentatlab.sdk.server import CutOff, Server
from mentatlab.sdk.upload_plan import Progress, Tally

if TYPE_CHECKING:
    import httpx2

_EXTENDED_NAME = re.compile(r"filename\*=utf-8''([^\s;]+)", re.IGNORECASE)

BLOCK = 1 << 20
PIECE = 4 << 20
"""Bytes of one request, where several are under way at once."""


class Facts(NamedTuple):
    size: int  # bytes
    blake3: str  # hex; "" when it is not told
    mime_type: str
    filename: str  # "" when it has none


class Downloader:
    """One medium. `backoff` bounds how long it may fail without a byte."""

    def __init__(self, server: Server, path: str, *, backoff: Backoff) -> None:
        self._server, self._path, self._backoff = server, path, backoff
        self._medium = Medium(path)

    async def stream(self) -> AsyncGenerator[bytes]:
        """All of it, in order, over any number of cuts."""
        position, size = 0, None
        while size is None or position < size:
            try:
                async with contextlib.aclosing(self._ask(position, None)) as blocks:
                    async for block in blocks:
                        position += len(block)
                        yield block
            except MentatError as error:
                if not (self._medium.known or isinstance(error, CutOff)):
                    raise  # nobody is there, or nothing to be had
                await self._pause(error)
            size = self._medium.size

    async def into(
        self, part: Path, *, parallel: int, progress: Progress | None, name: str
    ) -> None:
        """Write the file, going on behind what it has; whole and verified when this returns."""
        facts = await self.facts()
        tally = Tally(facts.size, progress)
        async with _Part(part, facts.size) as file:
            await self._fetch(file, facts.size, parallel, tally)
            if not facts.blake3 or file.blake3 in ("", facts.blake3):
                tally.done(facts.size)
                return
        await asyncio.to_thread(part.unlink)
        raise Internal(
            Code.REFERENCE_CORRUPT,
            f"what came of {name} is not what was stored",
            hint="try again; if it goes on, look at what stands between here and the server",
        )

    async def facts(self) -> Facts:
        """As the gateway tells them: a store does not know all.

        With the first byte, since an error that HEAD answers has no words.
        """
        url, first = through_gateway(self._path), {"Range": range_header(0, 1)}
        while True:
            try:
                async with self._server.ask("GET", url, headers=first) as told:
                    if await self._length(told, url, 0, None) == 1:
                        await told.aread()
                    return _facts(self._medium.size or 0, told.headers)
            except CutOff as error:
                await self._pause(error)

    async def _fetch(self, file: "_Part", size: int, parallel: int, tally: Tally) -> None:
        """Pieces come in any order and are written in theirs: what is there is a beginning."""
        ahead: deque[asyncio.Task[list[bytes]]] = deque()
        async with task_group() as tasks:
            for start in range(file.position, size, PIECE):
                if len(ahead) == parallel:
                    await file.append(await ahead.popleft())
                    tally.at(file.position)
                stop = min(start + PIECE, size)
                ahead.append(tasks.create_task(self._piece(start, stop)))
            while ahead:
                await file.append(await ahead.popleft())
                tally.at(file.position)

    async def _piece(self, start: int, stop: int) -> list[bytes]:
        """Its blocks, as they came."""
        piece: list[bytes] = []
        while start < stop:
            try:
                async with contextlib.aclosing(self._ask(start, stop)) as blocks:
                    async for block in blocks:
                        piece.append(block)
                        start += len(block)
            except MentatError as error:
                await self._pause(error)
        return piece

    async def _pause(self, error: MentatError) -> None:
        asked = error.retry_after_s if isinstance(error, RateLimited) else 0.0
        wait = self._backoff.wait(time.monotonic(), asked) if error.retryable else None
        if wait is None:
            raise error
        await asyncio.sleep(wait)

    async def _ask(self, start: int, stop: int | None) -> AsyncGenerator[bytes]:
        """One request; what comes of the bytes that it asks for, perhaps none."""
        url = self._medium.url
        try:
            async with self._server.ask(
                "GET", url, headers=self._headers(url, start, stop)
            ) as told:
                if (length := await self._length(told, url, start, stop)) == 0:
                    return
                async for block in told.aiter_raw():
                    length -= len(block)
                    if length < 0:
                        raise cut_off("there is more than was announced")
                    self._medium.arrived()
                    self._backoff.progress()
                    yield block
            if length:
                raise cut_off("its end is missing")
        except MentatError:
            self._medium.failed(url)
            raise

    def _headers(self, url: str, start: int, stop: int | None) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if start or stop is not None:
            headers["Range"] = range_header(start, stop)
            # where it may still redirect, a condition would keep the gateway from that
            final = self._medium.is_direct(url) or url == through_gateway(url)
            if final and (etag := self._medium.etag(url)):
                headers["If-Range"] = etag
        return headers

    async def _length(self, told: "httpx2.Response", url: str, start: int, stop: int | None) -> int:
        """Of the bytes that follow."""
        if told.status_code < 300:
            return self._medium.accept(url, told.status_code, told.headers, start, stop)
        if told.has_redirect_location:
            self._medium.redirected(urljoin(url, told.headers["location"]))
        elif self._medium.is_direct(url):
            raise refused_by_store(told.status_code)
        elif not self._medium.is_empty(told.status_code, start):
            await self._server.check(told)
        return 0


def _facts(size: int, headers: Headers) -> Facts:
    mime_type = headers.get("content-type", "application/octet-stream")
    return Facts(
        size,
        blake3_of(headers.get("etag", "")),
        mime_type.partition(";")[0],
        filename_of(headers.get("content-disposition", "")),
    )


def filename_of(disposition: str) -> str:
    """What a Content-Disposition calls the file (RFC 6266), without folders; "" when nothing."""
    if extended := _EXTENDED_NAME.search(disposition):
        name = unquote(extended[1])
    else:
        message = Message()
        message["Content-Disposition"] = disposition
        name = message.get_filename("")
    return re.split(r"[/\\]", name)[-1]


class _Part:
    """A file that grows at its end; `blake3` of it all, "" without the package."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._hasher: Any = new_hasher()
        self._file: BinaryIO
        self.position = 0

    async def __aenter__(self) -> "_Part":
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._file.close)

    def _open(self) -> None:
        self._file = self._path.open("a+b")
        if self._file.tell() > self._size:
            self._file.truncate(0)
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            self._note(block)

    @property
    def blake3(self) -> str:
        return self._hasher.hexdigest() if self._hasher else ""

    async def append(self, piece: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._append, piece)

    def _append(self, piece: Sequence[bytes]) -> None:
        for block in piece:
            self._file.write(block)
            self._note(block)

    def _note(self, block: bytes) -> None:
        self.position += len(block)
        if self._hasher:
            self._hasher.update(block)
