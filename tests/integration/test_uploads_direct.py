"""The client's uploads straight to a bucket: in parallel, resumed, with new signatures."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from tests.support.seaweed import SeaweedProcess
from tests.support.three_stores import server_on

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.sdk import backoff
from mentatlab.sdk.client import AsyncClient
from mentatlab.sdk.uploading import Answer

MB = 1 << 20
PART = 16 * MB
LARGE = random.Random(1).randbytes(5 * PART + 17)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


class Front:
    """Before the bucket: refuses so many connections with 403, as for signatures that are over;
    counts the bytes that it passes on."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.refusals = 0
        self.refused = 0
        self.passed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refused < self.refusals:
                self.refused += 1
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))  # or the client might not read the answer
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n")
                writer.write(b"Connection: close\r\n\r\n")
                await writer.drain()
                writer.write_eof()
                await reader.read()
            else:
                await self._pass_on(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection(
            self._target.hostname, self._target.port
        )
        answers = asyncio.create_task(self._copy(upstream, writer))
        try:
            while block := await reader.read(1 << 18):
                self.passed += len(block)
                to_server.write(block)
                await to_server.drain()
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            to_server.transport.abort()

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while block := await source.read(1 << 18):
            sink.write(block)
            await sink.drain()


@asynccontextmanager
async def fronted(url: str) -> AsyncGenerator[tuple[str, Front]]:
    front = Front(url)
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", front
    finally:
        server.close()


@asynccontextmanager
async def bucket(seaweed: SeaweedProcess, home: Path) -> AsyncGenerator[tuple[AsyncClient, Front]]:
    async with (
        fronted(seaweed.endpoint) as (public, front),
        server_on("s3", home, lambda: seaweed, S3_PUBLIC_ENDPOINT=public) as server,
        AsyncClient(server.url, key=server.key) as client,
    ):
        yield client, front


async def assert_stored(client: AsyncClient, ref: str) -> None:
    assert b"".join([block async for block in client.download(ref)]) == LARGE


async def test_parts_go_past_the_gateway(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    async with bucket(seaweed, tmp_path / "home") as (client, front):
        answer = await client.upload(file, type_="binary")
        assert len(LARGE) <= front.passed < len(LARGE) + MB
        await assert_stored(client, answer["ref"])


async def test_signatures_that_are_over_are_renewed(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    async with bucket(seaweed, tmp_path / "home") as (client, front):
        front.refusals = 4
        answer = await client.upload(file)
        assert front.refused == 4
        assert front.passed >= len(LARGE)  # and nothing fell back
        await assert_stored(client, answer["ref"])


async def test_a_bucket_that_always_refuses(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    async with bucket(seaweed, tmp_path / "home") as (client, front):
        front.refusals = 1_000_000
        answer = await client.upload(file)
        assert front.passed == 0
        await assert_stored(client, answer["ref"])


async def test_another_call_sends_what_is_missing(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    ids: list[str] = []
    async with bucket(seaweed, tmp_path / "home") as (client, front):

        def stop(sent: int, _: int | None) -> None:
            if sent > 3 * PART:
                uploading.cancel()

        uploading = asyncio.create_task(
            client.upload(file, started=ids.append, progress=stop, parallel=1)
        )
        with pytest.raises(asyncio.CancelledError):
            await uploading
        front.passed = 0
        answer = await client.upload(file, resume=ids[0])
        assert front.passed < 3 * PART
        await assert_stored(client, answer["ref"])


async def test_a_wrong_type_is_found_at_the_end(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    async with bucket(seaweed, tmp_path / "home") as (client, _):
        with pytest.raises(MentatError) as refused:
            await client.upload(file, type_="image")
        assert refused.value.code is Code.MEDIA_TYPE_MISMATCH
        assert (await client.blobs())["items"] == []


async def test_a_store_that_ends_and_comes_back(
    tmp_path: Path, file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Killed in mid-upload, and started again on the same port with the same data."""
    weed = SeaweedProcess(tmp_path_factory.mktemp("weed")).start()
    restarting: list[asyncio.Task[object]] = []

    def kill_once(sent: int, _: int | None) -> None:
        if sent > 2 * PART and not restarting:
            weed.kill()
            restarting.append(asyncio.create_task(asyncio.to_thread(weed.start)))

    try:
        async with bucket(weed, tmp_path / "home") as (client, _):
            answer = await client.upload(file, progress=kill_once, parallel=1)
            await restarting[0]
            await assert_stored(client, answer["ref"])
    finally:
        weed.kill()


class Overtaken(httpx2.AsyncHTTPTransport):
    """Before parts are signed, another client completes the upload."""

    def __init__(self, overtake: Callable[[], Awaitable[Answer]]) -> None:
        super().__init__()
        self._overtake = overtake
        self.others: list[Answer] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/parts"):
            self.others.append(await self._overtake())
        return await super().handle_async_request(request)


async def test_another_client_completes_it_meanwhile(
    seaweed: SeaweedProcess, file: Path, tmp_path: Path
) -> None:
    """Who still believes that parts are missing gets what the other one got."""
    ids: list[str] = []
    async with (
        server_on("s3", tmp_path / "home", lambda: seaweed) as server,
        AsyncClient(server.url, key=server.key) as client,
    ):
        begun = asyncio.Event()

        def note(upload_id: str) -> None:
            ids.append(upload_id)
            begun.set()

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(client.upload(file, started=note))
            await begun.wait()
            first.cancel()
        late = Overtaken(lambda: client.upload(file, resume=ids[0]))
        async with AsyncClient(server.url, key=server.key, transport=late) as second:
            assert [await second.upload(file, resume=ids[0])] == late.others
