"""A request before its body, the same for every edge: HTTP, SSE and WebSocket, whoever reads it."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl

from starlette.types import Scope

Edge = Literal["http", "sse", "ws"]
RawHeaders = Sequence[tuple[bytes, bytes]]

STREAMS_PATH = "/api/v1/streams/"
SOCKETS_PATH = "/ws/streams/"
_FOLLOWED = re.compile(rf"{STREAMS_PATH}([^/]+)/(sse|log)|{SOCKETS_PATH}([^/]+)")


class Head(NamedTuple):
    """`path` is percent-decoded, `query` is not and has no `?`. Names of headers are lower case."""

    websocket: bool
    method: str
    path: str
    query: bytes
    headers: RawHeaders

    @classmethod
    def of(cls, scope: Scope) -> "Head":
        """Of an ASGI scope."""
        websocket = scope["type"] == "websocket"
        method = "GET" if websocket else scope["method"]
        return cls(websocket, method, scope["path"], scope["query_string"], scope["headers"])

    @property
    def edge(self) -> Edge:
        if self.websocket:
            return "ws"
        return "sse" if self.followed and self.path.endswith("/sse") else "http"

    @property
    def followed(self) -> str | None:
        """The stream or run that is asked for by WebSocket, SSE or log."""
        match = _FOLLOWED.fullmatch(self.path)
        return None if match is None else match[1] or match[3]

    def header(self, name: bytes) -> str | None:
        """The first header of that name (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value.decode("latin-1")
        return None

    def listed(self, name: bytes) -> list[str]:
        """The members of a header that is a comma list, over all its lines."""
        lines = (value.decode("latin-1") for key, value in self.headers if key == name)
        return [part.strip() for line in lines for part in line.split(",") if part.strip()]

    @property
    def asked(self) -> dict[str, str]:
        """The query's parameters; the last one of a name."""
        return dict(parse_qsl(self.query.decode("latin-1"), keep_blank_values=True))
