"""The client against the whole server, and through a network that cuts."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from mentatlab import app
from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
    ValidationFailed,
)
from mentatlab.protocol.records import Producer, StreamChunk
from mentatlab.sdk import backoff
from mentatlab.sdk import client as client_module
from mentatlab.sdk.client import AsyncClient, Reset, StreamFailed, TruncatedStream

FLOW = """
apiVersion: v1beta1
kind: Flow
meta: {id: test.echo, name: echo, version: 0.1.0}
graph:
  nodes:
    - {id: say, type: ui.prompt}
    - {id: echo, type: mentatlab.echo}
    - {id: out, type: ui.console}
  edges:
    - {from: say.text, to: echo.text}
    - {from: echo.text, to: out.text}
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[app.App]:
    settings = app.read_settings({}, home=tmp_path / "home", host="127.0.0.1", port=0)
    async with app.running(settings) as running:
        yield running


@pytest.fixture
async def client(server: app.App) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, key=server.key) as client:
        yield client


async def test_a_run_from_submit_to_outputs(client: AsyncClient) -> None:
    assert (await client.health())["status"] == "ok"
    assert (await client.validate(FLOW))["valid"]
    assert [n["id"] for n in (await client.plan(FLOW))["nodes"]] == ["say", "echo", "out"]
    run = await client.submit(FLOW, {"say": "hello"}, idempotency_key="once")
    events = [event async for event in client.events(run["run_id"])]
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert [e async for e in client.events(run["run_id"], after=len(events) - 1)] == events[-1:]
    assert (await client.outputs(run["run_id"]))["outputs"] == {"out.text": "hello"}
    assert (await client.run(run["run_id"]))["state"] == "succeeded"
    assert (await client.submit(FLOW, {"say": "hello"}, idempotency_key="once")) | {
        "streams": 0
    } == (await client.run(run["run_id"])) | {"streams": 0}
    assert [r["run_id"] for r in (await client.runs(limit=5))["runs"]] == [run["run_id"]]
    assert await client.logs(run["run_id"], "echo") == []
    assert (await client.agent("mentatlab.echo"))["version"] == "0.1.0"


async def test_errors_come_back_as_what_they_were(client: AsyncClient, server: app.App) -> None:
    with pytest.raises(NotFound) as unknown:
        await client.run("rn_unknown")
    assert unknown.value.code is Code.RUN_NOT_FOUND
    with pytest.raises(ValidationFailed) as invalid:
        await client.submit(FLOW.replace("mentatlab.echo", "no.such.agent"), {"say": "x"})
    assert invalid.value.problems[0].code is Code.UNKNOWN_AGENT
    with pytest.raises(UnsupportedMedia) as media:
        await client.upload(b"<!doctype html><html></html>", filename="x.png", type_="image")
    assert media.value.code is Code.MEDIA_TYPE_MISMATCH
    with pytest.raises(Invalid):
        client_module.ref_id_of("nonsense")
    with pytest.raises(NotFound):
        await client.submit_stored("no.such.flow", {})
    async with AsyncClient(server.url, key="wrong") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.agents()
    async with AsyncClient("http://127.0.0.1:1") as nobody:
        with pytest.raises(Unavailable) as unreachable:
            await nobody.health()
    assert unreachable.value.code is Code.SERVER_UNREACHABLE


async def test_cancel(client: AsyncClient) -> None:
    run = await client.submit(FLOW, {"say": "hello"})
    async for _ in client.events(run["run_id"]):
        pass
    with contextlib.suppress(Conflict):
        assert (await client.cancel(run["run_id"]))["state"] == "succeeded"


async def test_upload_and_download(client: AsyncClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    file = tmp_path / "data.bin"
    file.write_bytes(data)
    sent: list[tuple[int, int | None]] = []
    stored = await client.upload(file, progress=lambda done, size: sent.append((done, size)))
    assert sent[-1] == (len(data), len(data))
    assert len(sent) == 5

    async def blocks() -> AsyncIterator[bytes]:
        yield data

    for other in (await client.upload(data), await client.upload(blocks(), filename="x")):
        assert other["reference"]["ref"]["blake3"] == stored["reference"]["ref"]["blake3"]
    assert b"".join([b async for b in client.download(stored["reference"])]) == data
    copy = await client.download_to(stored["ref"], tmp_path / "copy.bin")
    assert copy.read_bytes() == data
    assert not (tmp_path / "copy.bin.part").exists()
    assert len((await client.blobs(limit=2))["items"]) == 2
    await client.delete_blob(stored["ref"])
    with pytest.raises(NotFound):
        await client.download_to(stored["ref"], tmp_path / "gone.bin")


async def test_keys(client: AsyncClient, server: app.App) -> None:
    made = await client.add_key(name="reader", scopes=["read"])
    assert [k["name"] for k in await client.keys()] == ["reader"]
    async with AsyncClient(server.url, key=made["key"]) as reader:
        assert (await reader.agents())["broken"] == []
    await client.revoke_key(made["id"])
    assert await client.keys() == []


async def test_agents_are_added_by_folder(client: AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print('{}')")
    (tmp_path / "manifest.yaml").write_text(
        "id: my.agent\nversion: 1.0.0\nruntime: python3.11\noutputs: [{name: x, type: json}]\n"
    )
    assert (await client.add_agent(tmp_path))["id"] == "my.agent"


async def test_publish_and_follow(client: AsyncClient) -> None:
    opened = await client.open_stream("my.program", "words")
    me = Producer(id="me", epoch=0, seq=1)
    await client.publish(opened["stream_id"], ["a", "b"], producer=me)
    again = await client.publish(opened["stream_id"], ["a", "b"], producer=me)
    assert again["duplicate"]
    await client.publish(opened["stream_id"], ["c"], end=True)
    got = [record async for record in client.stream(opened["stream_id"])]
    assert [r.payload["data"] for r in got if isinstance(r, StreamChunk)] == ["a", "b", "c"]
    assert [r async for r in client.stream(opened["stream_id"], 4)] == got[2:]


async def test_every_other_end_is_an_error(client: AsyncClient, server: app.App) -> None:
    hub = server.services.hub
    cancelled = (await client.open_stream("a", "p"))["stream_id"]
    await hub.end_stream(cancelled, reason="cancelled")
    with pytest.raises(TruncatedStream, match="cancelled"):
        _ = [r async for r in client.stream(cancelled)]
    failed = (await client.open_stream("a", "p2"))["stream_id"]
    await hub.end_stream(failed, error=("agent_error", "it broke"))
    with pytest.raises(StreamFailed, match="it broke"):
        _ = [r async for r in client.stream(failed)]


async def test_a_new_attempt_is_a_reset(client: AsyncClient, server: app.App) -> None:
    hub = server.services.hub
    stream_id = (await client.open_stream("a", "p"))["stream_id"]
    await client.publish(stream_id, ["kept", "void"])
    await hub.start_attempt(stream_id, attempt=2, resume_from=2)
    await client.publish(stream_id, ["new"], end=True)
    got = [r async for r in client.stream(stream_id)]
    said = [r if isinstance(r, Reset) else r.payload["data"] for r in got]  # type: ignore[union-attr]
    assert said == ["kept", "void", Reset(2), "new"]


@contextlib.asynccontextmanager
async def cutting_proxy(url: str, *, after_bytes: int) -> AsyncGenerator[str]:
    """Passes on at most so many bytes of each answer, then breaks the connection."""
    target = urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_server = await asyncio.open_connection(target.hostname, target.port)
        try:
            to_server.write(await reader.readuntil(b"\r\n\r\n"))
            left = after_bytes
            while left > 0 and (block := await upstream.read(min(left, 4096))):
                left -= len(block)
                writer.write(block)
                await writer.drain()
        finally:
            writer.transport.abort()
            to_server.close()

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    finally:
        proxy.close()


@pytest.mark.parametrize("after_bytes", [900, 1500, 4001])
async def test_a_stream_survives_cuts_exactly(
    client: AsyncClient, server: app.App, after_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_BASE_S", 0.001)
    stream_id = (await client.open_stream("a", "p"))["stream_id"]
    await client.publish(stream_id, list(range(60)), end=True)
    async with (
        cutting_proxy(server.url, after_bytes=after_bytes) as url,
        AsyncClient(url, key=server.key) as far,
    ):
        got = [r async for r in far.stream(stream_id)]
    assert [r.payload["data"] for r in got if isinstance(r, StreamChunk)] == list(range(60))


async def test_a_stream_that_cannot_be_followed_is_an_error(
    client: AsyncClient, server: app.App
) -> None:
    stream_id = (await client.open_stream("a", "p"))["stream_id"]
    await client.publish(stream_id, list(range(60)), end=True)
    async with (
        cutting_proxy(server.url, after_bytes=100) as url,
        AsyncClient(url, key=server.key, give_up_s=0.2) as far,
    ):
        with pytest.raises(Unavailable):
            _ = [r async for r in far.stream(stream_id)]


async def test_events_that_do_not_end_are_an_error() -> None:
    """A proxy that closes every answer properly, long before the run is over."""
    told = httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=b": hi\n\n")
    transport = httpx2.MockTransport(lambda _: told)
    async with AsyncClient("http://far", transport=transport, give_up_s=0.2) as far:
        with pytest.raises(Unavailable, match="again and again"):
            _ = [event async for event in far.events("rn_1")]


def test_the_client_is_lazy() -> None:
    assert httpx2.__name__ not in vars(client_module)
