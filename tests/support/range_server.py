"""A web server that answers ranges of one object, well or as a hostile one would."""

import itertools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    path: str  # with its query
    start: int
    stop: int


class Object:
    """`asked`: every range request, in order. `answers` may replace the answer to the n-th one
    (from 1); it gives None for the usual one."""

    def __init__(self, data: bytes, etag: str = '"b3-x"') -> None:
        self.data, self.etag = data, etag
        self.missing = False
        self.asked: list[Asked] = []
        self.answers: Callable[[Handler, Asked, int], bool] = lambda *_: False
        self.count = itertools.count(1)
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    object: Object

    def do_GET(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        stop = min(int(last) + 1 if last else len(self.object.data), len(self.object.data))
        asked = Asked(self.path, int(first), stop)
        with self.object.lock:
            self.object.asked.append(asked)
            number = next(self.object.count)
        if self.object.missing:
            self.answer(404, b'{"code": "REFERENCE_NOT_FOUND"}')
        elif not self.object.answers(self, asked, number):
            self.answer_part(asked.start, asked.stop)

    def answer_part(
        self, start: int, stop: int, *, sent: int | None = None, etag: str = "", total: int = -1
    ) -> None:
        """`sent`: after so many bytes the connection is cut."""
        body = self.object.data[start:stop]
        size = len(self.object.data) if total < 0 else total
        if not body:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        headers = {
            "Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}",
            "ETag": etag or self.object.etag,
        }
        return self.answer(206, body, headers, sent=sent)

    def answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        sent: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])
        self.close_connection = sent is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves."""


@contextmanager
def serving(data: Object) -> Generator[str]:
    """Its URL."""
    handler = type("Handler", (Handler,), {"object": data})
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/data"
        finally:
            server.shutdown()
            thread.join()
