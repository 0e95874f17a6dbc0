"""Media by HTTP ranges, from a real server."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mentatlab.sdk import AgentError
from mentatlab.sdk.files import BLOCK, RangeFile, open_reference

DATA = os.urandom(3 * BLOCK + 17)
ASKED: list[str] = []


class Ranges(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        ASKED.append(self.headers["Range"])
        match self.path:
            case "/data":
                self._range(DATA)
            case "/empty":
                self.send_response(416)
                self.send_header("Content-Range", "bytes */0")
                self.end_headers()
            case "/whole":
                self._whole(b"x")
            case "/nothing":
                self._whole(b"")
            case _:
                self.send_error(404)

    def _range(self, data: bytes) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        part = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def _whole(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    ASKED.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_seeking_reads_blocks(url: str) -> None:
    with open_reference({"get": f"{url}/data"}) as file:
        assert file.seekable()
        assert file.read(10) == DATA[:10]
        file.seek(-17, os.SEEK_END)
        assert file.read() == DATA[-17:]
        assert file.seek(BLOCK + 5) == BLOCK + 5
        assert file.read(4) == DATA[BLOCK + 5 : BLOCK + 9]
        file.seek(3, os.SEEK_CUR)
        assert file.tell() == BLOCK + 12
        assert file.read(1) == DATA[BLOCK + 12 : BLOCK + 13]
        assert len(ASKED) <= 4
        file.seek(0)
        assert file.read() == DATA
        file.seek(len(DATA) + 5)
        assert file.read() == b""


@pytest.mark.parametrize("path", ["/empty", "/nothing"])
def test_an_empty_object(url: str, path: str) -> None:
    with open_reference({"get": url + path}) as file:
        assert file.read() == b""


@pytest.mark.parametrize(
    ("path", "why"), [("/unknown", "HTTP 404"), ("/whole", "does not answer ranges")]
)
def test_refusals(url: str, path: str, why: str) -> None:
    with pytest.raises(AgentError, match=why) as refused:
        RangeFile(url + path)
    assert refused.value.retryable


def test_nobody_there() -> None:
    with pytest.raises(AgentError, match="could not be read"):
        RangeFile("http://127.0.0.1:1/")
