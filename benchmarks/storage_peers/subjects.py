"""The servers that are measured, and how a client brings each an object."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.support.seaweed import SeaweedProcess, seaweed_server
from tests.support.server import up

from benchmarks.cores import CORES, SERVER
from benchmarks.peers import fetch, servers
from benchmarks.storage_peers.wire import Client, content

OURS = "MentatLab"
STORAGE = "/api/v1/storage"
TUS = f"{STORAGE}/tus/"
BUCKET = "bench"
SOME = 1 << 20  # bytes: more than SeaweedFS keeps in its database
_FORM = b'--BOUND\r\nContent-Disposition: form-data; name="file"; filename="clip.bin"\r\n\r\n'
_FORM_END = b"\r\n--BOUND--\r\n"
Put = Callable[[Client, int], str]
"""Brings an object of so many bytes; where it can be had then."""


class Running(NamedTuple):
    pid: int
    url: str
    folder: Path


class Subject(NamedTuple):
    name: str
    start: Callable[[Path], AbstractContextManager[Running]]
    """Below that folder, which is on the disk to measure."""
    put: Put


@contextlib.contextmanager
def ours(
    place: Path, *, within: tuple[str, ...] = SERVER, env: Mapping[str, str] | None = None
) -> Generator[Running]:
    """A real `mentatlab up`, without a limit of requests."""
    settings = {"MENTATLAB_RATE": "0", **(env or {})}
    with _folder(place) as home, up(home, env=settings, within=within) as server:
        yield Running(server.process.pid, server.url, home)


@contextlib.contextmanager
def tuspyserver(place: Path) -> Generator[Running]:
    command = fetch.tuspyserver()
    with _folder(place) as folder, servers.hub([*command, str(folder)], CORES[0]) as server:
        yield Running(server.pid, f"http://127.0.0.1:{server.port}", folder)


@contextlib.contextmanager
def seaweed_tus(place: Path) -> Generator[Running]:
    with seaweed(place, within=SERVER) as server:
        yield Running(server.pid, server.filer, server.folder)


@contextlib.contextmanager
def seaweed(place: Path, *, within: tuple[str, ...]) -> Generator[SeaweedProcess]:
    """It has the bucket `BUCKET`, and has stored something."""
    with _folder(place) as folder, seaweed_server(folder, within=within) as server:
        with Client(server.filer) as client:
            client.send("POST", f"/buckets/{BUCKET}/")
            client.send("PUT", "/probe", content(SOME), size=SOME)
        yield server


@contextlib.contextmanager
def file_response(place: Path) -> Generator[Running]:
    command = fetch.file_response()
    with _folder(place) as folder, servers.hub([*command, str(folder)], CORES[0]) as server:
        yield Running(server.pid, f"http://127.0.0.1:{server.port}", folder)


@contextlib.contextmanager
def nginx(place: Path) -> Generator[Running]:
    with _folder(place) as folder, servers.nginx(fetch.nginx(), CORES[0], folder) as server:
        yield Running(server.pid, f"http://127.0.0.1:{server.port}", folder)


@contextlib.contextmanager
def _folder(place: Path) -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- ways in


def raw(client: Client, size: int) -> str:
    return _stored(client.send("POST", f"{STORAGE}/upload", content(size), size=size).body)


def form(client: Client, size: int) -> str:
    body = (_FORM, *content(size), _FORM_END)
    whole = size + len(_FORM) + len(_FORM_END)
    kind = {"Content-Type": "multipart/form-data; boundary=BOUND"}
    return _stored(client.send("POST", f"{STORAGE}/upload", body, size=whole, headers=kind).body)


def tus(client: Client, size: int, *, at: str = TUS, piece: int | None = None) -> str:
    """In PATCHes of `piece` bytes, or in one."""
    version = {"Tus-Resumable": "1.0.0"}
    made = client.send("POST", at, headers={**version, "Upload-Length": str(size)})
    path = urlsplit(made.headers["location"]).path
    answer = made
    for offset in range(0, size, piece or size):
        part = min(piece or size, size - offset)
        kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        answer = client.send("PATCH", path, content(part), size=part, headers={**version, **kind})
    if (reached := answer.headers["upload-offset"]) != str(size):
        raise RuntimeError(f"tus: {reached} of {size} bytes arrived")
    return f"{STORAGE}/{answer.headers['mentat-ref']}" if at == TUS else path


def _stored(answer: bytes) -> str:
    return f"{STORAGE}/{json.loads(answer)['ref']}"


def laid(_client: Client, _size: int) -> str:
    """A file laid into the server's folder by `bring`."""
    return "/laid"


def bring(subject: Subject, running: Running, client: Client, size: int) -> str:
    if subject.put is laid:
        with (running.folder / "laid").open("wb") as file:
            for piece in content(size):
                file.write(piece)
    return subject.put(client, size)
