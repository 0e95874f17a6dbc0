"""A real server behind a real nginx, with the configuration that is shipped."""

import asyncio
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.support.nginx import Nginx, nginx_before
from tests.support.server import Up, mentatlab, up
from websockets.asyncio.client import connect

BIG = os.urandom(1 << 20) * 101 + b"the end"
PNG = b"\x89PNG\r\n\x1a\n" + os.urandom(50_000)
FILES = "/api/v1/storage"
DROPPED = ("etag", "x-content-type-options", "content-security-policy")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Not on loopback, so that it asks for keys."""
    home = tmp_path_factory.mktemp("home")
    assert mentatlab("keys", "add", "--name", "first", home=home).returncode == 0
    env = {"MENTATLAB_ACCEL": "/internal/blobs/", "MENTATLAB_RATE": "0"}
    with up(home, "--host", "0.0.0.0", env=env) as server:
        yield server


@pytest.fixture(scope="module")
def nginx(server: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx") / "nginx"
    with nginx_before(urlsplit(server.url).netloc, server.home, folder) as nginx:
        yield nginx


@pytest.fixture
def trust(nginx: Nginx) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(nginx.trust))


@pytest.fixture
def through(nginx: Nginx, server: Up, trust: ssl.SSLContext) -> Iterator[httpx2.Client]:
    """Through nginx, with the server's key."""
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(base_url=nginx.url, verify=trust, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def stranger(nginx: Nginx, trust: ssl.SSLContext) -> Iterator[httpx2.Client]:
    """Through nginx, without a key."""
    with httpx2.Client(base_url=nginx.url, verify=trust, timeout=60) as client:
        yield client


@pytest.fixture
def direct(server: Up) -> Iterator[httpx2.Client]:
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=60) as client:
        yield client


def put(client: httpx2.Client, data: bytes, name: str = "") -> str:
    answer = client.post(f"{FILES}/upload", params={"filename": name}, content=data)
    assert answer.status_code == 201, answer.text
    return f"{FILES}/{answer.json()['ref']}"


@pytest.fixture(scope="module")
def big(nginx: Nginx, server: Up) -> str:
    """Uploaded through nginx, of unknown length."""
    context = ssl.create_default_context(cafile=str(nginx.trust))
    headers = {"Authorization": f"Bearer {server.key}"}
    with httpx2.Client(base_url=nginx.url, verify=context, headers=headers, timeout=60) as client:
        pieces = (BIG[start : start + 300_000] for start in range(0, len(BIG), 300_000))
        answer = client.post(f"{FILES}/upload?filename=käfer.bin&sha256=1", content=pieces)
        assert answer.status_code == 201, answer.text
        found = answer.json()["reference"]["ref"]
        assert found["sha256"] == hashlib.sha256(BIG).hexdigest()
        return f"{FILES}/{answer.json()['ref']}"


def test_an_upload_goes_on_as_it_comes(nginx: Nginx, big: str) -> None:
    assert big
    assert [path for path in (nginx.folder / "client_body").rglob("*") if path.is_file()] == []


def test_nginx_sends_the_file_and_says_what_the_server_says(
    through: httpx2.Client, direct: httpx2.Client, big: str
) -> None:
    here, there = direct.get(big), through.get(big)
    assert here.content == there.content == BIG
    assert there.headers["server"] == "nginx"
    assert said(there) == said(here)


def said(answer: httpx2.Response) -> dict[str, Any]:
    """All that it says of the blob."""
    transport = {"server", "date", "connection", "transfer-encoding"}
    names = [name for name in answer.headers if name not in transport]
    assert len(names) == len(set(names))
    return {name: answer.headers.get_list(name) for name in names}


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-0"},
        {"Range": "bytes=5000000-9999999"},
        {"Range": "bytes=-7"},
        {"Range": "bytes=0-1,4-5"},
        {"Range": f"bytes={len(BIG)}-"},
        {"If-None-Match": "ETAG"},
        {"If-None-Match": '"other"', "Range": "bytes=1-3"},
        {"If-Match": '"other"'},
        {"If-Match": "ETAG", "Range": "bytes=1-3"},
        {"If-Range": "ETAG", "Range": "bytes=2-4"},
        {"If-Range": '"other"', "Range": "bytes=2-4"},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT", "Range": "bytes=1-3"},
        {"Origin": "http://localhost:3000", "Range": "bytes=1-3"},
    ],
)
def test_ranges_and_conditions_are_the_servers(
    through: httpx2.Client, direct: httpx2.Client, big: str, headers: dict[str, str]
) -> None:
    etag = direct.head(big).headers["etag"]
    sent = {name: value.replace("ETAG", etag) for name, value in headers.items()}
    here, there = direct.get(big, headers=sent), through.get(big, headers=sent)
    assert (there.status_code, there.content) == (here.status_code, here.content)
    assert said(there) == said(here)


def test_head_is_the_servers(through: httpx2.Client, direct: httpx2.Client, big: str) -> None:
    assert said(through.head(big)) == said(direct.head(big))


def test_names_of_all_kinds_are_found_on_the_disk(through: httpx2.Client) -> None:
    ref = put(through, b"text", 'a "b" 100% %2F ä?.txt')
    assert through.get(ref).content == b"text"


def test_nobody_reaches_the_files_by_themselves(
    stranger: httpx2.Client, through: httpx2.Client, big: str, server: Up
) -> None:
    assert stranger.get(big).status_code == 401
    path = next(p for p in (server.home / "blobs").rglob("blob_*") if p.is_file())
    inside = f"/internal/blobs/{path.relative_to(server.home / 'blobs')}"
    assert through.get(inside).status_code == 404
    assert through.get(f"/internal/blobs/../../{path.name}").status_code == 404


def test_without_nginx_the_server_sends_them(direct: httpx2.Client, big: str) -> None:
    answer = direct.get(big, headers={"Range": "bytes=0-9"})
    assert (answer.content, "x-accel-redirect" in answer.headers) == (BIG[:10], False)


# --- signed addresses and the cache


def signed(client: httpx2.Client, ref: str, **asked: Any) -> str:
    answer = client.post(f"{ref}/sign", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()["url"]


def test_a_signed_address_is_kept(
    through: httpx2.Client, stranger: httpx2.Client, direct: httpx2.Client
) -> None:
    ref = put(through, PNG, "a.png")
    url = signed(through, ref)
    first, second = stranger.get(url), stranger.get(url)
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.content == second.content == PNG
    straight = direct.get(url)
    for name in {*DROPPED, "content-type", "content-disposition"} - {"cache-control"}:
        assert second.headers[name] == first.headers[name] == straight.headers[name]
    # the server counts the seconds to the expiry, the cache has what it was told first
    assert second.headers["cache-control"] == first.headers["cache-control"]
    assert first.headers["cache-control"].startswith("public, max-age=")
    part = stranger.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content, part.headers["x-cache"]) == (206, PNG[10:20], "HIT")
    known = stranger.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert stranger.head(url).headers["content-length"] == str(len(PNG))
    assert through.delete(ref).status_code == 204
    assert stranger.get(url).content == PNG  # until it expires: that is what a cache is


def test_a_part_of_a_film_costs_its_slices_only(
    through: httpx2.Client, stranger: httpx2.Client, nginx: Nginx, big: str
) -> None:
    url = signed(through, big)
    before = cached(nginx)
    part = stranger.get(url, headers={"Range": "bytes=50000000-50000009"})
    assert (part.status_code, part.content) == (206, BIG[50_000_000:50_000_010])
    assert 0 < cached(nginx) - before < 9 << 20
    assert stranger.get(url).content == BIG


def cached(nginx: Nginx) -> int:
    files = (path for path in (nginx.folder / "cache").rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def test_what_was_not_signed_so_is_neither_given_nor_kept(
    through: httpx2.Client, stranger: httpx2.Client
) -> None:
    url = signed(through, put(through, PNG))
    assert stranger.get(url).status_code == 200
    for other in (
        url.replace("w=default", "w=other"),
        url.replace("&s=", "&d=attachment&s="),
        url[:-1] + ("A" if url[-1] != "A" else "B"),
    ):
        for _ in range(2):
            answer = stranger.get(other)
            assert (answer.status_code, answer.json()["code"]) == (403, "SIGNATURE_INVALID")
            assert answer.headers.get("x-cache") != "HIT"


def test_private_answers_are_not_kept(
    through: httpx2.Client, stranger: httpx2.Client, nginx: Nginx
) -> None:
    ref = put(through, PNG)
    before = cached(nginx)
    for query in ("", "?via=gateway", "?s=", "?s=0"):
        through.get(ref + query)
        assert stranger.get(ref + query).status_code in (401, 403)
    assert cached(nginx) == before


def test_no_signature_in_the_log(
    through: httpx2.Client, stranger: httpx2.Client, nginx: Nginx
) -> None:
    url = signed(through, put(through, PNG))
    assert stranger.get(url).status_code == 200
    ref, _, query = url.partition("?")
    assert ref in nginx.access_log
    assert query not in nginx.access_log
    assert "s=" not in nginx.access_log


# --- uploads over many connections, streams


def test_tus_through_nginx(through: httpx2.Client) -> None:
    tus = {"Tus-Resumable": "1.0.0"}
    made = through.post(f"{FILES}/tus/", headers={**tus, "Upload-Length": str(len(PNG))})
    assert made.status_code == 201, made.text
    path = urlsplit(made.headers["location"]).path
    kind = {**tus, "Content-Type": "application/offset+octet-stream"}
    for start, stop in ((0, 20_000), (20_000, len(PNG))):
        headers = {**kind, "Upload-Offset": str(start)}
        sent = through.patch(path, headers=headers, content=PNG[start:stop])
        assert sent.status_code == 204, sent.text
    assert through.get(f"{FILES}/{sent.headers['mentat-ref']}").content == PNG


async def test_records_over_websocket_and_events(
    through: httpx2.Client, nginx: Nginx, server: Up, trust: ssl.SSLContext
) -> None:
    """Each comes before the next is sent: nothing waits in a buffer."""
    lane = through.post(
        "/api/v1/streams/init", json={"agent_id": "a", "pin_name": "p", "durability": "memory"}
    ).json()
    records = f"/api/v1/streams/{lane['stream_id']}/records"
    key = {"Authorization": f"Bearer {server.key}"}
    url = f"{nginx.url}{lane['sse_url']}"
    async with (
        asyncio.timeout(30),
        connect(
            f"wss{nginx.url.removeprefix('https')}{lane['ws_url']}?from=start",
            ssl=trust,
            additional_headers=key,
            proxy=None,
        ) as socket_,
        httpx2.AsyncClient(verify=trust, headers=key) as client,
        client.stream("GET", url, params={"from": "start"}) as events,
    ):
        assert events.status_code == 200
        lines = events.aiter_lines()
        for number in range(3):
            answer = through.post(records, json={"payload": {"data": f"record {number}"}})
            assert answer.status_code == 200, answer.text
            async for line in lines:
                if f"record {number}" in line:
                    break
            async for message in socket_:
                if f"record {number}" in str(message):
                    break


def test_a_client_that_stalls_costs_the_server_nothing(
    nginx: Nginx, server: Up, trust: ssl.SSLContext, through: httpx2.Client, big: str
) -> None:
    """nginx waits for it with the file; the server's connection is free at once."""
    where = urlsplit(nginx.url)
    with (
        socket.create_connection((where.hostname, where.port), 20) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as stalled,
    ):
        request = f"GET {big} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n\r\n"
        stalled.sendall(request.encode())
        first = stalled.recv(1000)
        assert first.startswith(b"HTTP/1.1 200 OK")
        assert open_blobs(server) == 0
        assert through.get(big).content == BIG
        body = bytearray(first.partition(b"\r\n\r\n")[2])
        while len(body) < len(BIG):
            body += stalled.recv(1 << 20)
        assert body == BIG


def open_blobs(server: Up) -> int:
    found = 0
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += "/blobs/" in str(link.readlink())
    return found


def test_plain_http_is_sent_to_https(nginx: Nginx) -> None:
    config = (nginx.folder / "nginx.conf").read_text()
    port = config.partition("return 301")[0].rpartition("listen 127.0.0.1:")[2].partition(";")[0]
    answer = httpx2.get(f"http://127.0.0.1:{port}/docs?x=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (301, "https://127.0.0.1/docs?x=1")
