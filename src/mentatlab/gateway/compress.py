"""gzip for answers that grow: every piece can be read as soon as it is written."""

import zlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

_LEVEL = 6
_GZIP = 16  # added to the window bits: with gzip's header and trailer
_WINDOW_BITS, _MEMORY_LEVEL = 12, 5
"""4 KiB back and about 48 KiB per connection: records resemble their neighbours."""


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether the client takes gzip, and likes it no less than the plain bytes (RFC 9110)."""
    weights = dict(_weighted(part) for part in (accept_encoding or "").split(","))
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def _weighted(part: str) -> tuple[str, float]:
    name, _, parameters = part.partition(";")
    weight = 1.0
    for parameter in parameters.split(";"):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "q":
            weight = _weight(value.strip())
    return name.strip().lower(), weight


def _weight(text: str) -> float:
    """A q-value; 0 for what is none."""
    number = text.replace(".", "", 1)
    return float(text) if number.isascii() and number.isdigit() else 0.0


class Gzip:
    """One answer's encoder."""

    __slots__ = ("_deflate",)

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP + _WINDOW_BITS, _MEMORY_LEVEL)

    def add(self, data: bytes) -> bytes:
        """All of `data` can be decoded from what was returned until now."""
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._deflate.flush(zlib.Z_FINISH)


def compressing(scope: Scope, send: Send) -> Send:
    """`send` for an answer of status 200 in pieces: in gzip when the client takes that."""
    accepted = accepts_gzip(", ".join(Headers(scope=scope).getlist("accept-encoding")))
    gzip = Gzip() if accepted else None

    async def encoded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers.add_vary_header("Accept-Encoding")
            if gzip is not None:
                headers["Content-Encoding"] = "gzip"
            message = {**message, "headers": headers.raw}
        elif gzip is not None:
            body: bytes = message.get("body", b"")
            piece = gzip.add(body) if body else b""
            if not message.get("more_body", False):
                piece += gzip.end()
            message = {**message, "body": piece}
        await send(message)

    return encoded


class GrowingResponse(StreamingResponse):
    """In gzip where the client takes it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, compressing(scope, send))
