"""A part of a file as the body of a request, by sendfile, over a line that may be cut."""

import http.client
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing drops what is under way, and says so


class Part(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    source: Path
    start: int
    stop: int


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def send_file(method: str, url: str, part: Part, headers: Mapping[str, str] = {}) -> Answer:
    connection = _begun(method, url, part, headers)
    with part.source.open("rb") as file:
        connection.sock.sendfile(file, part.start, part.stop - part.start)
    answer = connection.getresponse()
    told = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return told


def send_until_cut(
    method: str, url: str, part: Part, cut: int, headers: Mapping[str, str] = {}
) -> None:
    """The line is cut before byte `cut` of the file; or the server cuts it, for a reason."""
    connection = _begun(method, url, part, headers)
    with part.source.open("rb") as file:
        connection.sock.sendfile(file, part.start, cut - part.start)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()


def _begun(
    method: str, url: str, part: Part, headers: Mapping[str, str]
) -> http.client.HTTPConnection:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)
    connection.putrequest(method, place.path + (f"?{place.query}" if place.query else ""))
    for name, value in {"Content-Length": str(part.stop - part.start), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection
