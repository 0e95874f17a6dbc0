"""Uploads that outlive a connection: negotiated, sent as the server wants them, resumed after cuts.

What is sent next is decided in `upload_plan`, without a network.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Invalid, MentatError, RateLimited, Unavailable
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.groups import task_group
from mentatlab.sdk.ranges import refused_by_store
from mentatlab.sdk.server import CutOff, Server
from mentatlab.sdk.upload_plan import Part, Parts, Tally, Upload, goes_on, modes_for
from mentatlab.sdk.upload_sources import Reach, Source

if TYPE_CHECKING:
    import httpx2

_PATH = "/api/v1/storage/uploads"
_TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
_REFUSALS = (400, 401, 403)
"""How stores answer when the signature of an address is over."""
_AT_THE_END_S = 600.0
"""The server may hash all of it before it answers."""

Answer = dict[str, Any]


class _HopelessError(Exception):
    """Parts do not get through to the store."""


class Uploader:
    """One upload, from its negotiation to its end.

    `backoff` bounds how long it may fail without progress. `parallel`: parts that are on their way
    at once, when they go straight to the store.
    """

    def __init__(
        self, server: Server, source: Source, *, backoff: Backoff, tally: Tally, parallel: int
    ) -> None:
        self._server, self._source, self._tally = server, source, tally
        self._backoff, self._parallel = backoff, parallel
        self._deferred = source.size is None
        self._safe = 0  # bytes that the server is known to have
        self._signing = asyncio.Lock()
        self._on_their_way: Counter[int] = Counter()  # bytes of parts

    async def begin(self, asked: Answer) -> Upload:
        """Negotiate. Tried again when the line was cut, not when nobody is there."""
        body = {**asked, "size": self._source.size, "modes": modes_for(self._source.size)}
        given = {name: value for name, value in body.items() if value is not None}
        while True:
            try:
                return _read(await self._server.call("POST", _PATH, json=given))
            except CutOff as error:
                await self._pause(error)

    async def resume(self, upload_id: str) -> Upload:
        """One that was begun before; `Conflict` when it is of another size."""
        while True:
            try:
                upload = await self._state(upload_id)
                break
            except CutOff as error:
                await self._pause(error)
        if self._source.size is None or upload.size != self._source.size:
            raise Conflict(
                Code.CONFLICT,
                f"{upload_id} is an upload of {upload.size} bytes, not of {self._source.size}",
                hint="give the file with which it was begun, or begin a new upload",
            )
        return upload

    async def run(self, upload: Upload) -> Answer:
        """Send what is missing, over any number of cuts; what `POST /storage/upload` answers."""
        async with task_group() as tasks:
            blake3 = tasks.create_task(self._source.blake3())
            while True:
                try:
                    await self._send(upload)
                    answer = await self._complete(upload, await blake3)
                except MentatError as error:
                    upload = await self._recover(upload, error)
                else:
                    self._tally.done(answer["reference"]["ref"]["size"])
                    return answer
        raise AssertionError("unreachable")

    # ------------------------------------------------------------------ what the server says

    async def _state(self, upload_id: str) -> Upload:
        upload = _read(await self._server.call("GET", f"{_PATH}/{upload_id}"))
        if upload.mode == "tus" and upload.state == "open":
            upload = await self._paused(upload)
        self._arrived(upload.offset)
        return upload

    async def _paused(self, upload: Upload) -> Upload:
        """A request of ours that the server still reads, after a cut, ends with this."""
        async with self._server.ask("HEAD", _url(upload), headers=_TUS) as answer:
            await self._server.check(answer)
            return msgspec.structs.replace(upload, offset=_offset(answer))

    def _arrived(self, safe: int) -> None:
        if safe > self._safe:
            self._safe = safe
            self._backoff.progress()

    async def _recover(self, upload: Upload, error: MentatError) -> Upload:
        """Where to go on; raises what no patience can mend."""
        if error.code is Code.CONFLICT:  # another client completed it, or chose another way
            now = await self._state(upload.upload_id)
            if (now.mode, now.state) != (upload.mode, upload.state):
                return now
        while True:
            await self._pause(error)
            try:
                return await self._state(upload.upload_id)
            except MentatError as another:
                error = another

    async def _pause(self, error: MentatError) -> None:
        asked = error.retry_after_s if isinstance(error, RateLimited) else 0.0
        wait = self._backoff.wait(time.monotonic(), asked) if goes_on(error) else None
        if wait is None:
            raise error
        await asyncio.sleep(wait)

    async def _complete(self, upload: Upload, blake3: str) -> Answer:
        path = f"{_PATH}/{upload.upload_id}/complete"
        claim = {"blake3": blake3} if blake3 else {}
        answer = await self._server.call("POST", path, json=claim, timeout=_AT_THE_END_S)
        found = answer["reference"]["ref"]["blake3"]
        if blake3 and found != blake3:
            raise Invalid(
                Code.DIGEST_MISMATCH,
                f"{answer['ref']} has the hash {found}, what was sent has {blake3}",
                hint="the source changed while it was uploaded: delete that one, upload again",
            )
        return answer

    # ------------------------------------------------------------------ the bytes

    async def _send(self, upload: Upload) -> None:
        if upload.state != "open":
            return
        match upload.mode:
            case "single":
                await self._put_whole(upload)
            case "tus":
                await self._append(upload)
            case "direct":
                await self._send_parts(upload)

    async def _put_whole(self, upload: Upload) -> None:
        size = self._source.size or 0
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        content = self._telling(0, size)
        async with self._server.ask(
            "PUT", _url(upload), headers=headers, content=content, timeout=_AT_THE_END_S
        ) as answer:
            await self._server.check(answer)

    async def _append(self, upload: Upload) -> None:
        offset = upload.offset
        while (reach := await self._source.reach(offset)).stop > offset:
            offset = await self._patch(_url(upload), offset, reach)
            self._arrived(offset)

    async def _patch(self, url: str, offset: int, reach: Reach) -> int:
        """The offset up to which the server has it now."""
        headers = {
            **_TUS,
            "Upload-Offset": str(offset),
            "Content-Length": str(reach.stop - offset),
        }
        if self._deferred and reach.total == reach.stop:
            headers["Upload-Length"] = str(reach.total)
        content = self._telling(offset, reach.stop)
        async with self._server.ask(
            "PATCH", url, headers=headers, content=content, timeout=_AT_THE_END_S
        ) as answer:
            await self._server.check(answer)
            return _offset(answer)

    async def _telling(self, start: int, stop: int) -> AsyncIterator[bytes]:
        async for block in self._source.blocks(start, stop):
            yield block
            start += len(block)
            self._tally.at(start)

    # ------------------------------------------------------------------ straight to the store

    async def _send_parts(self, upload: Upload) -> None:
        parts = Parts(upload, self._source.size or 0)
        self._on_their_way.clear()
        try:
            async with task_group() as tasks:
                for _ in range(self._parallel):
                    tasks.create_task(self._send_some(upload, parts))
        except _HopelessError:
            path = f"{_PATH}/{upload.upload_id}/fallback"
            await self._send(_read(await self._server.call("POST", path)))

    async def _send_some(self, upload: Upload, parts: Parts) -> None:
        while (number := parts.take()) is not None:
            try:
                await self._put_part(await self._signed(upload, parts, number), parts)
            except Unavailable as error:
                refused = error.details.get("status") in _REFUSALS
                if not parts.failed(number, refused=refused):
                    raise _HopelessError from error
                await self._pause(error)
            else:
                parts.arrived(number)
                self._backoff.progress()

    async def _signed(self, upload: Upload, parts: Parts, number: int) -> Part:
        async with self._signing:
            if (part := parts.signed(number)) is None:
                path = f"{_PATH}/{upload.upload_id}/parts"
                wanted = {"numbers": parts.to_sign(number)}
                parts.sign(_read_parts(await self._server.call("POST", path, json=wanted)))
                part = parts.signed(number)
        if part is None:
            raise Unavailable(Code.UNAVAILABLE, f"the server signs no part {number}")
        return part

    async def _put_part(self, part: Part, parts: Parts) -> None:
        headers, content = {"Content-Length": str(part.size)}, self._telling_part(part, parts)
        try:
            async with self._server.ask("PUT", part.url, headers=headers, content=content) as told:
                await told.aread()
        finally:
            del self._on_their_way[part.number]
        if told.status_code >= 300:
            raise refused_by_store(told.status_code)

    async def _telling_part(self, part: Part, parts: Parts) -> AsyncIterator[bytes]:
        async for block in self._source.blocks(part.offset, part.offset + part.size):
            yield block
            self._on_their_way[part.number] += len(block)
            self._tally.at(parts.bytes_arrived + self._on_their_way.total())


def _url(upload: Upload) -> str:
    if upload.url is None:
        raise _another_api("it has no address")
    return upload.url


def _offset(answer: "httpx2.Response") -> int:
    told = answer.headers.get("Upload-Offset", "")
    if not told.isdecimal():
        raise _another_api("it has no offset")
    return int(told)


def _read(answer: object) -> Upload:
    try:
        return msgspec.convert(answer, Upload)
    except msgspec.ValidationError as error:
        raise _another_api(error) from error


def _read_parts(answer: Any) -> list[Part]:
    try:
        return msgspec.convert(answer["parts"], list[Part])
    except msgspec.ValidationError as error:
        raise _another_api(error) from error


def _another_api(why: object) -> Invalid:
    return Invalid(
        Code.INVALID_REQUEST,
        f"the server answers as no upload is told: {why}",
        hint="use the same version of client and server",
    )
