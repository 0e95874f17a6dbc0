"""The client's uploads against the whole server, through a network that cuts."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import blake3
import pytest
from tests.support.cutting import cutting

from mentatlab import app
from mentatlab.protocol.errors import Code, Conflict, MentatError, NotFound, Unavailable
from mentatlab.sdk import backoff, upload_sources
from mentatlab.sdk import client as client_module
from mentatlab.sdk.client import AsyncClient
from mentatlab.sdk.upload_sources import BytesSource

MB = 1 << 20
LARGE = random.Random(1).randbytes(24 * MB + 17)


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[app.App]:
    settings = app.read_settings({}, home=tmp_path / "home", host="127.0.0.1", port=0)
    async with app.running(settings) as running:
        yield running


@pytest.fixture
async def client(server: app.App) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, key=server.key) as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    return path


async def stored(client: AsyncClient, ref: str) -> bytes:
    return b"".join([block async for block in client.download(ref)])


async def stream(data: bytes, block: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), block):
        yield data[start : start + block]


@pytest.mark.parametrize("kind", ["file", "bytes", "stream"])
async def test_through_cuts(client: AsyncClient, server: app.App, file: Path, kind: str) -> None:
    told: list[int] = []
    source = {"file": file, "bytes": LARGE}.get(kind, stream(LARGE))
    async with cutting(server.url, seed=4, most_bytes=6 * MB) as (url, cutter):
        async with AsyncClient(url, key=server.key) as far:
            answer = await far.upload(
                source, filename="x.bin", progress=lambda sent, _: told.append(sent)
            )
        assert cutter.cuts > 3
    assert answer["reference"]["ref"]["blake3"] == blake3.blake3(LARGE).hexdigest()
    assert await stored(client, answer["ref"]) == LARGE
    assert told == sorted(told)
    assert told[-1] == len(LARGE)
    (item,) = (await client.blobs())["items"]  # one, however often the line was cut
    assert (item["ref"], item["filename"]) == (answer["ref"], "x.bin")


async def test_a_small_one_through_cuts(client: AsyncClient, server: app.App) -> None:
    data = LARGE[: 3 * MB]
    async with cutting(server.url, seed=7, most_bytes=5 * MB) as (url, cutter):
        async with AsyncClient(url, key=server.key) as far:
            refs = [(await far.upload(data))["ref"] for _ in range(5)]
        assert cutter.cuts > 2
    for ref in refs:
        assert await stored(client, ref) == data


async def test_a_download_through_cuts(
    client: AsyncClient, server: app.App, file: Path, tmp_path: Path
) -> None:
    ref = (await client.upload(file))["ref"]
    async with cutting(server.url, seed=2, most_bytes=5 * MB) as (url, cutter):
        async with AsyncClient(url, key=server.key) as far:
            copy = await far.download_to(ref, tmp_path / "copy")
            assert await stored(far, ref) == LARGE
        assert cutter.cuts > 3
    assert copy.read_bytes() == LARGE


class Cancelled:
    """Cancels the running task when so many bytes have been sent."""

    def __init__(self, at: int) -> None:
        self._at, self._task = at, asyncio.current_task()

    def __call__(self, sent: int, _: int | None) -> None:
        if sent >= self._at and self._task is not None:
            self._task.cancel()
            self._task = None


async def test_another_call_goes_on_where_one_stopped(client: AsyncClient, file: Path) -> None:
    ids: list[str] = []

    async def stopped() -> None:
        await client.upload(file, started=ids.append, progress=Cancelled(10 * MB))

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(stopped())
    told: list[int] = []
    answer = await client.upload(file, resume=ids[0], progress=lambda sent, _: told.append(sent))
    assert told[0] > 8 * MB  # what had arrived was not sent again
    assert await stored(client, answer["ref"]) == LARGE
    assert await client.upload(file, resume=ids[0]) == answer  # it is done, and stays so


async def test_what_cannot_be_resumed(client: AsyncClient, file: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as unknown:
        await client.upload(file, resume="up_01JABCDEFGHJKMNPQRSTVWXYZ0")
    assert unknown.value.code is Code.UPLOAD_NOT_FOUND
    ids: list[str] = []
    await client.upload(file, started=ids.append)
    other = tmp_path / "other"
    other.write_bytes(LARGE[:-1])
    with pytest.raises(Conflict, match="not of"):
        await client.upload(other, resume=ids[0])
    with pytest.raises(Conflict, match="not of"):
        await client.upload(stream(LARGE), resume=ids[0])


async def test_a_class_of_life_time(client: AsyncClient) -> None:
    await client.upload(b"short-lived", ttl="ephemeral")
    (item,) = (await client.blobs())["items"]
    assert item["expires_at"] - item["created_at"] == pytest.approx(3600, abs=60)


async def test_bytes_of_another_kind_are_refused(client: AsyncClient) -> None:
    with pytest.raises(MentatError) as refused:
        await client.upload(LARGE, type_="image")
    assert refused.value.code is Code.MEDIA_TYPE_MISMATCH


async def test_a_source_that_fails(client: AsyncClient) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield LARGE
        raise RuntimeError("the camera has gone")

    with pytest.raises(RuntimeError, match="camera"):
        await client.upload(failing())
    assert (await client.blobs())["items"] == []


async def test_it_gives_up(server: app.App, file: Path) -> None:
    async with (
        cutting(server.url, seed=1, most_bytes=200) as (url, _),
        AsyncClient(url, key=server.key, give_up_s=0.1) as far,
    ):
        with pytest.raises(Unavailable):
            await far.upload(file)
        with pytest.raises(Unavailable):
            await far.upload(file, resume="up_01JABCDEFGHJKMNPQRSTVWXYZ0")
        with pytest.raises(Unavailable):
            await far.download_to("blob_01JABCDEFGHJKMNPQRSTVWXYZ0", file)


class Changing(BytesSource):
    """Its bytes are others when they are hashed than when they are sent."""

    async def blake3(self) -> str:
        return "0" * 64


async def test_a_source_that_changes_meanwhile(
    client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "source_of", Changing)
    with pytest.raises(MentatError) as changed:
        await client.upload(LARGE)
    assert changed.value.code is Code.DIGEST_MISMATCH


@pytest.mark.parametrize("kind", ["file", "stream"])
async def test_without_the_package_blake3(
    client: AsyncClient, file: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has it, so only where the client looks."""
    monkeypatch.setattr(upload_sources, "new_hasher", lambda: None)
    answer = await client.upload(file if kind == "file" else stream(LARGE))
    assert await stored(client, answer["ref"]) == LARGE
