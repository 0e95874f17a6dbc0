"""HTTP as the generator speaks it: bytes made beforehand, answers read to their end."""

import http.client
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

PIECE = os.urandom(1 << 20)
"""What every body is made of."""
PATIENCE_S = 120
_FINE = (200, 201, 204, 206, 307)
_buffer = bytearray(1 << 18)


class Answer(NamedTuple):
    """`took`: bytes of the body, which is kept only where it was asked for."""

    headers: dict[str, str]
    body: bytes
    took: int


def content(size: int) -> Iterator[memoryview]:
    """So many bytes, in pieces of 1 MiB."""
    piece = memoryview(PIECE)
    while size > 0:
        yield piece[:size]
        size -= len(piece)


class Client:
    """One connection, kept; a context manager. `RuntimeError` tells what a refusal says."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            place.hostname or "", place.port, timeout=PATIENCE_S
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def send(
        self,
        method: str,
        path: str,
        body: Iterable[bytes | memoryview] = (),
        *,
        size: int = 0,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """`size`: bytes of the body in all."""
        connection = self._connection
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(size), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        try:
            for piece in body:
                connection.send(piece)
        except ConnectionError:  # a refusal may come before the body's end
            self._answer(method, path)
            raise
        return self._answer(method, path)

    def call(self, method: str, path: str, body: Any) -> Any:
        """JSON both ways."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        return json.loads(self.send(method, path, [data], size=len(data), headers=headers).body)

    def get(self, path: str, *, headers: dict[str, str] | None = None) -> int:
        """Bytes that came, and were dropped; another address is followed."""
        self._connection.request("GET", path, headers=headers or {})
        answer = self._answer("GET", path, kept=False)
        if (address := answer.headers.get("location")) is None:
            return answer.took
        with Client(address) as other:
            place = urlsplit(address)
            return other.get(f"{place.path}?{place.query}", headers=headers)

    def _answer(self, method: str, path: str, *, kept: bool = True) -> Answer:
        answer = self._connection.getresponse()
        if answer.status not in _FINE:
            text = answer.read(2000).decode(errors="replace")
            raise RuntimeError(f"{method} {path}: {answer.status} {text}")
        body = answer.read() if kept else b""
        took = len(body)
        while not kept and (got := answer.readinto(_buffer)):
            took += got
        return Answer({k.lower(): v for k, v in answer.getheaders()}, body, took)
