"""A receiver of webhooks as others write them: an HTTP server of the standard library."""

import contextlib
import queue
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from mentatlab.runs.deliveries import DELIVERY
from mentatlab.runs.signatures import HEADER

WITHIN_S = 60.0


class Call(NamedTuple):
    path: str
    body: bytes
    delivery: str
    signature: str


class Receiver:
    """What is in `answers` is answered in turn, then 200: a status, None = the connection is
    closed without one, an event = not before it is set."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[int | threading.Event | None] = queue.SimpleQueue()
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.url = ""

    def next_call(self) -> Call:
        return self.calls.get(timeout=WITHIN_S)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        call = Call(request.path, body, request.headers[DELIVERY], request.headers[HEADER])
        try:
            answer = self.answers.get_nowait()
        except queue.Empty:
            answer = 200
        self.calls.put(call)
        if isinstance(answer, threading.Event):
            answer.wait(WITHIN_S)
            answer = 200
        if answer is None:
            request.close_connection = True
            return
        with contextlib.suppress(ConnectionError):
            request.send_response(answer)
            request.send_header("Content-Length", "0")
            request.end_headers()


@contextlib.contextmanager
def receiving() -> Generator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
