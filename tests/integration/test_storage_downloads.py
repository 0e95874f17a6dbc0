"""Downloads on a whole server, on each store: growing uploads, redirections, dead endpoints."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from tests.support.seaweed import SeaweedProcess
from tests.support.three_stores import STORES, StoreName, server_on

from mentatlab.app import App, read_settings
from mentatlab.protocol.errors import Code, Invalid

STORAGE = "/api/v1/storage"
TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
BYTES = os.urandom(300_000)
FOLLOW = {"follow": "1"}
Seaweed = Callable[[], SeaweedProcess]


@pytest.fixture
def lazily(request: pytest.FixtureRequest) -> Seaweed:
    return lambda: request.getfixturevalue("seaweed")


@asynccontextmanager
async def at(
    store: StoreName, home: Path, seaweed: Seaweed, **more: str
) -> AsyncIterator[httpx2.AsyncClient]:
    async with server_on(store, home, seaweed, **more) as server, client_of(server) as client:
        yield client


def client_of(server: App) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, timeout=60)


@pytest.fixture
async def local(tmp_path: Path, lazily: Seaweed) -> AsyncIterator[httpx2.AsyncClient]:
    async with at("local", tmp_path, lazily) as client:
        yield client


class Growing:
    """An upload in pieces, a request each. (Within one, bytes are seen about a second later.)"""

    def __init__(self, client: httpx2.AsyncClient, begun: dict[str, Any]) -> None:
        self.ref, self.path = f"{STORAGE}/{begun['ref']}", begun["url"]
        self.upload = f"{STORAGE}/uploads/{begun['upload_id']}"
        self._client, self._offset = client, 0

    async def more(self, data: bytes, status: int = 204) -> None:
        headers = {**TUS, "Upload-Offset": str(self._offset)}
        answer = await self._client.patch(self.path, content=data, headers=headers)
        assert answer.status_code == status, answer.text
        self._offset += len(data)


async def begin(client: httpx2.AsyncClient, size: int | None, **more: Any) -> Growing:
    asked = {"modes": ["tus"], **({} if size is None else {"size": size}), **more}
    answer = await client.post(f"{STORAGE}/uploads", json=asked)
    assert answer.status_code == 201, answer.text
    return Growing(client, answer.json())


class Follower(NamedTuple):
    """One answer, read as it comes."""

    answer: httpx2.Response
    chunks: AsyncIterator[bytes]

    async def read(self, size: int) -> bytes:
        """At least so many bytes."""
        data = b""
        while len(data) < size:
            data += await anext(self.chunks)
        return data

    async def rest(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks])


@asynccontextmanager
async def following(
    client: httpx2.AsyncClient, ref: str, **headers: str
) -> AsyncIterator[Follower]:
    async with (
        asyncio.timeout(50),
        client.stream("GET", ref, params=FOLLOW, headers=headers) as answer,
    ):
        yield Follower(answer, answer.aiter_bytes())


async def test_it_comes_as_it_is_sent(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES), filename="a.bin")
    await growing.more(BYTES[:100_000])
    async with following(local, growing.ref) as follower:
        assert follower.answer.status_code == 200
        said = follower.answer.headers
        assert said["content-length"] == str(len(BYTES))
        assert said["cache-control"] == "no-store"
        assert said["content-disposition"] == 'attachment; filename="a.bin"'
        assert said["x-content-type-options"] == "nosniff"
        assert "etag" not in said
        assert await follower.read(100_000) == BYTES[:100_000]
        await growing.more(BYTES[100_000:200_000])
        assert await follower.read(100_000) == BYTES[100_000:200_000]
        await growing.more(BYTES[200_000:])
        assert await follower.rest() == BYTES[200_000:]
    done = await local.get(growing.ref, params=FOLLOW)
    assert (done.content, "etag" in done.headers) == (BYTES, True)


async def test_who_comes_before_the_bytes_waits_for_them(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES))
    asking = asyncio.create_task(local.get(growing.ref, params=FOLLOW))
    await growing.more(BYTES)
    assert (await asking).content == BYTES


@pytest.mark.parametrize(
    ("range_", "start", "stop"),
    [("bytes=150000-", 150_000, 300_000), ("bytes=10-19", 10, 20), ("bytes=-5", 299_995, 300_000)],
)
async def test_ranges_of_a_known_size(
    local: httpx2.AsyncClient, range_: str, start: int, stop: int
) -> None:
    growing = await begin(local, len(BYTES))
    await growing.more(BYTES[:100_000])
    async with following(local, growing.ref, Range=range_) as follower:
        assert follower.answer.status_code == 206
        said = follower.answer.headers["content-range"]
        assert said == f"bytes {start}-{stop - 1}/{len(BYTES)}"
        await growing.more(BYTES[100_000:])
        assert await follower.rest() == BYTES[start:stop]


async def test_of_an_unknown_size_all_of_it(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, None)
    await growing.more(BYTES[:9000])
    head = await local.head(growing.ref, params=FOLLOW)
    assert (head.status_code, "content-length" in head.headers) == (200, False)
    async with following(local, growing.ref) as follower:
        assert "content-length" not in follower.answer.headers
        assert await follower.read(9000) == BYTES[:9000]
        await growing.more(BYTES[9000:])
        completed = await local.post(f"{growing.upload}/complete", json={})
        assert completed.status_code == 200, completed.text
        assert await follower.rest() == BYTES[9000:]


async def test_of_an_unknown_size_what_is_there(local: httpx2.AsyncClient) -> None:
    """Asked for again and again, it is the whole."""
    growing = await begin(local, None)
    await growing.more(BYTES[:9000])
    async with following(local, growing.ref, Range="bytes=1000-") as follower:
        assert follower.answer.status_code == 206
        got = await follower.rest()
        assert got == BYTES[1000 : 1000 + len(got)]
        last = 1000 + len(got) - 1
        assert follower.answer.headers["content-range"] == f"bytes 1000-{last}/*"
    part = await local.get(growing.ref, params=FOLLOW, headers={"Range": "bytes=5-8"})
    assert (part.status_code, part.content) == (206, BYTES[5:9])
    assert part.headers["content-range"] == "bytes 5-8/*"
    waiting = asyncio.create_task(
        local.get(growing.ref, params=FOLLOW, headers={"Range": "bytes=9000-"})
    )
    await growing.more(BYTES[9000:9500])
    next_ = await waiting
    assert next_.content == BYTES[9000 : 9000 + len(next_.content)]


async def test_an_upload_that_is_deleted_cuts_it_off(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES))
    await growing.more(BYTES[:100_000])
    async with following(local, growing.ref) as follower:
        assert await follower.read(100_000) == BYTES[:100_000]
        assert (await local.delete(growing.upload)).status_code == 204
        with pytest.raises(httpx2.RemoteProtocolError):
            await follower.rest()
    gone = await local.get(growing.ref, params=FOLLOW)
    assert (gone.status_code, gone.json()["code"]) == (404, "REFERENCE_NOT_FOUND")


async def test_one_that_is_refused_in_the_end_was_never_whole(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES), sha256="0" * 64)
    await growing.more(BYTES[:100_000])
    async with following(local, growing.ref) as follower:
        await growing.more(BYTES[100_000:], 400)
        with pytest.raises(httpx2.RemoteProtocolError):
            await follower.rest()


async def test_one_that_begins_again_is_not_gone_on_with(local: httpx2.AsyncClient) -> None:
    asked = {"modes": ["single"], "size": len(BYTES)}
    begun = (await local.post(f"{STORAGE}/uploads", json=asked)).json()

    async def half() -> AsyncIterator[bytes]:
        yield BYTES[:100_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await local.put(begun["url"], content=half())
    async with following(local, f"{STORAGE}/{begun['ref']}") as follower:
        assert await follower.read(100_000) == BYTES[:100_000]
        other = bytes(len(BYTES))
        assert (await local.put(begun["url"], content=other)).status_code == 200
        with pytest.raises(httpx2.RemoteProtocolError):
            await follower.rest()
    assert (await local.get(f"{STORAGE}/{begun['ref']}")).content == other


async def test_conditions_while_it_grows(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES))
    await growing.more(BYTES[:100_000])
    head = await local.head(growing.ref, params=FOLLOW)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BYTES)))
    for headers, status in (
        ({"Range": f"bytes={len(BYTES)}-"}, 416),
        ({"If-Match": '"b3-x"'}, 412),
        ({"If-None-Match": "*"}, 304),
    ):
        answer = await local.get(growing.ref, params=FOLLOW, headers=headers)
        assert answer.status_code == status
    async with following(
        local, growing.ref, **{"Range": "bytes=5-", "If-Range": '"b3-x"'}
    ) as follower:
        assert follower.answer.status_code == 200
    await growing.more(BYTES[100_000:])


async def test_without_follow_it_is_not_there_yet(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES))
    answer = await local.get(growing.ref)
    assert (answer.status_code, answer.json()["code"]) == (404, "REFERENCE_NOT_FOUND")
    for ref in (f"blob_{'0' * 26}", "nonsense"):
        unknown = await local.get(f"{STORAGE}/{ref}", params=FOLLOW)
        assert (unknown.status_code, unknown.json()["code"]) == (404, "REFERENCE_NOT_FOUND")


async def test_who_stops_following_leaves_nothing_open(local: httpx2.AsyncClient) -> None:
    growing = await begin(local, len(BYTES))
    await growing.more(BYTES[:100_000])
    async with following(local, growing.ref) as follower:
        await follower.read(1)
        before = staged()
    async with asyncio.timeout(20):
        while staged() == before:
            await asyncio.sleep(0.005)


def staged() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += ".staging/" in str(link.readlink())
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("store", STORES)
async def test_every_store_can_be_followed(
    store: StoreName, tmp_path: Path, lazily: Seaweed
) -> None:
    """Where the bytes cannot be seen before, they come at the end."""
    async with at(store, tmp_path, lazily) as client:
        growing = await begin(client, len(BYTES))
        asking = asyncio.create_task(client.get(growing.ref, params={**FOLLOW, "via": "gateway"}))
        await growing.more(BYTES)
        assert (await asking).content == BYTES


# --- an nginx that sends files


async def test_only_nginx_is_told_where_the_file_lies(tmp_path: Path, lazily: Seaweed) -> None:
    home = tmp_path / "home"
    accel = {"MENTATLAB_ACCEL": "/internal/blobs/"}
    async with at("local", home, lazily, **accel) as client:
        ref = await put(client, "ä.txt")
        assert (await client.get(ref)).content == BYTES
        told = await client.get(ref, headers={"Mentat-Accel": "on"})
        assert (told.status_code, told.content) == (200, b"")
        place = told.headers["x-accel-redirect"].removeprefix("/internal/blobs/")
        assert (home / "blobs" / place).read_bytes() == BYTES
        assert told.headers["content-disposition"].startswith("attachment")
    async with at("local", home, lazily) as client:
        assert (await client.get(ref, headers={"Mentat-Accel": "on"})).content == BYTES
    async with at("memory", tmp_path / "other", lazily, **accel) as client:
        ref = await put(client)
        assert (await client.get(ref, headers={"Mentat-Accel": "on"})).content == BYTES


@pytest.mark.parametrize("text", ["/", "internal/", "/internal"])
def test_a_location_has_slashes_around(text: str) -> None:
    with pytest.raises(Invalid) as raised:
        read_settings({"MENTATLAB_ACCEL": text})
    assert raised.value.code == Code.BAD_SETTING


# --- a store that serves itself


async def put(client: httpx2.AsyncClient, name: str = "a.txt") -> str:
    answer = await client.post(f"{STORAGE}/upload", params={"filename": name}, content=BYTES)
    assert answer.status_code == 201, answer.text
    return f"{STORAGE}/{answer.json()['ref']}"


async def test_a_bucket_is_asked_directly(tmp_path: Path, lazily: Seaweed) -> None:
    async with at("s3", tmp_path, lazily) as client, httpx2.AsyncClient() as stranger:
        ref = await put(client, 'a"b ä.txt')
        asked = await client.get(ref)
        assert (asked.status_code, asked.content) == (307, b"")
        assert asked.headers["cache-control"] == "private, max-age=1800"
        here = await client.get(ref, params={"via": "gateway"})
        there = await stranger.get(asked.headers["location"])
        for answer in (here, there):
            assert (answer.status_code, answer.content) == (200, BYTES)
        for name in ("content-type", "content-disposition"):
            assert here.headers[name] == there.headers[name]
        part = await stranger.get(asked.headers["location"], headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, BYTES[5:10])


async def test_conditions_are_decided_before(tmp_path: Path, lazily: Seaweed) -> None:
    """Those of the bucket know another ETag."""
    async with at("s3", tmp_path, lazily) as client:
        ref = await put(client)
        head = await client.head(ref)
        etag = head.headers["etag"]
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(BYTES)))
        for headers, status in (
            ({"If-None-Match": etag}, 304),
            ({"If-None-Match": '"x"'}, 307),
            ({"Range": "bytes=1-2"}, 307),
            ({"If-Match": '"x"'}, 412),
            ({"If-Match": etag}, 200),
            ({"If-Range": etag, "Range": "bytes=1-2"}, 206),
            ({"Range": f"bytes={len(BYTES)}-"}, 416),
        ):
            answer = await client.get(ref, headers=headers)
            assert answer.status_code == status, headers
            if status == 206:
                assert answer.content == BYTES[1:3]


async def test_a_signed_address_of_a_bucket_does_not_outlive_its_own(
    tmp_path: Path, lazily: Seaweed
) -> None:
    async with at("s3", tmp_path, lazily) as client, httpx2.AsyncClient() as stranger:
        ref = await put(client)
        signed = (await client.post(f"{ref}/sign", json={"expires_s": 60})).json()["url"]
        moved = await client.get(signed)
        assert moved.status_code == 307
        query = parse_qs(urlsplit(moved.headers["location"]).query)
        assert 60 <= int(query["X-Amz-Expires"][0]) <= 960
        assert (await stranger.get(moved.headers["location"])).content == BYTES
        kept = await client.get(f"{signed}&via=gateway")
        assert kept.headers["cache-control"].startswith("public, max-age=")


async def test_when_the_public_endpoint_is_dead_the_gateway_is_not(
    tmp_path: Path, lazily: Seaweed
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with at("s3", tmp_path, lazily, S3_PUBLIC_ENDPOINT=dead) as client:
        ref = await put(client)
        moved = await client.get(ref)
        assert moved.headers["location"].startswith(dead)
        with pytest.raises(httpx2.ConnectError):
            await client.get(moved.headers["location"])
        assert (await client.get(ref, params={"via": "gateway"})).content == BYTES
