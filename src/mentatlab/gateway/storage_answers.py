"""Answers that hold a blob: what all of them say, and the ways of its bytes to the client."""

from io import FileIO
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.media_headers import safe_headers
from mentatlab.gateway.signed_urls import Grant
from mentatlab.gateway.zero_copy import EXTENSION
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.storage.port import Blob, ByteRange, Reader

ACCEL_HEADER = "mentat-accel"
"""By which nginx says that it sends files itself."""
_YEAR_S = 31_536_000


class Accel(NamedTuple):
    """nginx's internal location `prefix` (with slashes around) that serves the store's `root`."""

    prefix: str
    root: Path

    def redirect(self, path: Path) -> str:
        return self.prefix + quote(str(path.relative_to(self.root)))


def headers_of(blob: Blob, grant: Grant | None, *, now: float) -> dict[str, str]:
    """What every answer about an object says. Uploaded bytes must never run in our origin.

    Behind a signed address any cache may keep it, until the address ends.
    """
    scope, age = "private", _YEAR_S
    if grant is not None:
        scope, age = "public", int(grant.expires - now)
    return {
        "ETag": f'"b3-{blob.blake3}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": f"{scope}, max-age={age}, immutable",
        **safe_headers(blob.mime_type, blob.filename, grant.disposition if grant else ""),
    }


def not_what_is_meant() -> Invalid:
    """`If-Match` does not hold."""
    return Invalid(
        Code.PRECONDITION_FAILED,
        "the ETag that If-Match names is not this object's",
        hint="HEAD tells its ETag; a reference's bytes never change",
    )


def by_nginx(location: str, status: int, headers: dict[str, str]) -> Response:
    """nginx sends what `location` names, in this answer's place. What it says of the file by itself
    stays away: the length always, and of a whole file that there are ranges."""
    own = {"Content-Length"} if status == 206 else {"Content-Length", "Accept-Ranges"}
    kept = {name: value for name, value in headers.items() if name not in own}
    return Response(headers={"X-Accel-Redirect": location, **kept})


class Streamed(StreamingResponse):
    """Through this process; closes the reader also when the client leaves in the middle."""

    def __init__(self, reader: Reader, status: int, headers: dict[str, str]) -> None:
        super().__init__(reader, status, headers)
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reader.aclose()


class FromFile(Response):
    """From the page cache to the socket, by a server that `sends_files`; closes the file."""

    def __init__(self, file: FileIO, span: ByteRange, status: int, headers: dict[str, str]) -> None:
        super().__init__(None, status, headers)
        self._file, self._span = file, span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, stop = self._span
        head = {"status": self.status_code, "headers": self.raw_headers}
        with self._file:
            await send({"type": "http.response.start", **head})
            await send(
                {"type": EXTENSION, "file": self._file, "offset": start, "count": stop - start}
            )


def sends_files(scope: Scope) -> bool:
    return EXTENSION in scope.get("extensions", ())
