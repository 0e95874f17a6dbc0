"""Answers that hold a blob, each by its own way to the client."""

from io import FileIO

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mentatlab.gateway.zero_copy import EXTENSION
from mentatlab.storage.port import ByteRange, Reader


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
        with self._file:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            await send(
                {"type": EXTENSION, "file": self._file, "offset": start, "count": stop - start}
            )


def sends_files(scope: Scope) -> bool:
    return EXTENSION in scope.get("extensions", ())
