"""HTTP with the standard library alone, for agents: connections are kept, and used by any thread.

Proxies of the environment are not asked: an agent's addresses are the platform's own.
"""

import threading
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

FAILURES = (OSError, HTTPException)
"""What a request raises when the network or the other side fails."""

Body = bytes | Iterable[bytes]


class Connections:
    """One is in use by one request at a time; as many are open as were in use at once."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._idle: defaultdict[str, list[HTTPConnection]] = defaultdict(list)
        self._open: set[HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None
    ) -> Generator[HTTPResponse]:
        """The answer with its body unread; raises `FAILURES`."""
        place = urlsplit(url)
        connection, answer = self._ask(method, place, headers, body)
        try:
            yield answer
        finally:
            self._put_back(place.scheme + place.netloc, connection, whole=answer.isclosed())

    def _ask(
        self, method: str, place: SplitResult, headers: Mapping[str, str], body: Body | None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        if body is None and (kept := self._take(place.scheme + place.netloc)):
            with suppress(*FAILURES):  # it may have been closed meanwhile
                return kept, self._send(kept, method, place, headers, body)
        connection = self._connection(place)
        return connection, self._send(connection, method, place, headers, body)

    def _send(
        self,
        connection: HTTPConnection,
        method: str,
        place: SplitResult,
        headers: Mapping[str, str],
        body: Body | None,
    ) -> HTTPResponse:
        target = f"{place.path or '/'}{'?' if place.query else ''}{place.query}"
        try:
            connection.request(method, target, body, dict(headers))
            return connection.getresponse()
        except BaseException:
            self._discard(connection)
            raise

    def _connection(self, place: SplitResult) -> HTTPConnection:
        kind = HTTPSConnection if place.scheme == "https" else HTTPConnection
        connection = kind(place.hostname or "", place.port, timeout=self._timeout_s)
        with self._lock:
            if self._closed:
                raise OSError("the file is closed")
            self._open.add(connection)
        return connection

    def _take(self, origin: str) -> HTTPConnection | None:
        with self._lock:
            idle = self._idle[origin]
            return idle.pop() if idle else None

    def _put_back(self, origin: str, connection: HTTPConnection, *, whole: bool) -> None:
        with self._lock:
            if whole and not self._closed and connection.sock is not None:
                self._idle[origin].append(connection)
                return
        self._discard(connection)

    def _discard(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def close(self) -> None:
        """Also ends what other threads are waiting for."""
        with self._lock:
            self._closed = True
            connections, self._open = self._open, set()
        for connection in connections:
            shut(connection.sock)
            connection.close()


def shut(socket: Any) -> None:
    """A thread that reads from it wakes up; closing alone would leave it waiting."""
    if socket is not None:
        with suppress(OSError):
            socket.shutdown(2)
