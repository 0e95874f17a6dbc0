"""The Python client's streams against a real server, through a network that cuts anywhere."""

import asyncio
import random
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import websockets
from tests.support.cutting import cutting
from tests.support.server import Up, up
from websockets.asyncio.server import ServerConnection
from websockets.typing import Subprotocol

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Fenced,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mentatlab.protocol.records import StreamChunk
from mentatlab.protocol.tokens import Claims, mint
from mentatlab.sdk import backoff
from mentatlab.sdk.client import AsyncClient, Gap, StreamFailed, TruncatedStream
from mentatlab.sdk.streaming import (
    MediaChunk,
    Publisher,
    StreamConnection,
    Subscription,
)

RECORDS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    env = {"MENTATLAB_RATE": "0"}
    with up(tmp_path_factory.mktemp("home"), env=env) as server:
        yield server


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect without a wait worth mentioning."""
    monkeypatch.setattr(backoff, "_BASE_S", 0.01)
    monkeypatch.setattr(backoff, "_CAP_S", 0.05)


def value_of(record: StreamChunk) -> Any:
    return record.payload.get("bytes", record.payload.get("data"))


def content(number: int, seed: int) -> str | bytes:
    """Text and bytes of all sizes, one after the other."""
    size = random.Random(seed * RECORDS + number).choice((0, 10, 10, 50, 50, 300, 3000))
    text = f"{number} " + "x" * size
    return text.encode() if number % 3 == 0 else text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("durability", ["commit", "memory"])
async def test_ten_thousand_records_over_cuts_anywhere(
    server: Up, at_once: None, durability: str
) -> None:
    seed = 7
    async with (
        AsyncClient(server.url) as near,
        cutting(server.url, seed=seed, most_bytes=200_000) as (url, cutter),
        AsyncClient(url) as far,
        far.connect_streams() as publishing,
        far.connect_streams() as reading,
        asyncio.TaskGroup() as group,
    ):
        stream_id = (await near.open_stream("far", "out", durability=durability))["stream_id"]

        async def publish() -> None:
            async with publishing.publisher(stream_id) as out:
                for number in range(RECORDS):
                    value = content(number, seed)
                    if isinstance(value, bytes):
                        await out.send_bytes(value, item=number)
                    else:
                        await out.send(value, item=number)

        async def read(connection: StreamConnection) -> list[Any]:
            return [element async for element in connection.subscribe(stream_id)]

        group.create_task(publish())
        readers = [group.create_task(read(reading)), group.create_task(read(publishing))]
    for reader in readers:
        got: list[Any] = reader.result()
        assert [record.sequence for record in got] == list(range(2, RECORDS + 2))
        assert [record.item for record in got] == list(range(RECORDS))
        assert all(value_of(r) == content(r.item, seed) for r in got)
    assert cutter.cuts > 20


async def test_binary_records_tell_the_same_from_wherever_one_reads(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        opened = await client.open_stream("cam", "frames", mime_type="video/h264")
        stream_id = opened["stream_id"]
        async with streams.publisher(stream_id, end=False) as out:
            await out.send({"frames": 2})
            await out.send_bytes(b"\x00\x01", pts_us=-40, dur_us=40_000, key=True, item=3)
            await out.send_bytes(
                b"", index=1, end_of_item=True, discardable=True, metadata={"w": 640}
            )
        async with streams.subscribe(stream_id) as records:
            whole = [await anext(records) for _ in range(3)]
        assert records.cursor == f"{opened['epoch']}:4"
        async with streams.subscribe(stream_id, f"{opened['epoch']}:2") as later:
            assert [await anext(later) for _ in range(2)] == whole[1:]
        first, last = whole[1:]
        assert isinstance(first, MediaChunk)
        assert isinstance(last, MediaChunk)
        assert first.payload == {"bytes": b"\x00\x01", "metadata": {}}
        assert (first.key, first.pts_us, first.dur_us, first.item) == (True, -40, 40_000, 3)
        assert (last.index, last.end_of_item, last.discardable) == (1, True, True)
        assert last.payload["metadata"] == {"w": 640}
        await client.publish(stream_id, end=True)
        by_sse = [r async for r in client.stream(stream_id) if isinstance(r, StreamChunk)]
        for media, told in zip(whole, by_sse, strict=True):
            assert isinstance(media, StreamChunk)
            assert (media.timestamp, media.rseq) == (told.timestamp, told.rseq)
            assert (media.run_id, media.node_id) == (told.run_id, told.node_id)
        assert await client.record_bytes(stream_id, 3) == b"\x00\x01"


async def test_what_stops_a_publisher(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        stream_id = (await client.open_stream("me", "out"))["stream_id"]
        with pytest.raises(KeyError):
            await _break_down(streams.publisher(stream_id, id="me"))
        assert (await client.stream_info(stream_id))["state"] == "open"
        async with client.connect_streams() as others:
            old, new = (
                c.publisher(stream_id, id="me", epoch=e) for c, e in ((streams, 0), (others, 1))
            )
            async with old:
                assert old.already == 1
                async with new:
                    assert new.already == 0
                    await new.send("taken over")
                    await new.flush()
                    with pytest.raises(Fenced):
                        await _until_refused(old)
                old.close()
            with pytest.raises(Conflict, match="STREAM_ENDED"):
                async with streams.publisher(stream_id, id="late") as late:
                    await late.send("too late")
        values = [value_of(r) async for r in client.stream(stream_id) if isinstance(r, StreamChunk)]
        assert values == ["kept", "taken over"]
        with pytest.raises(NotFound) as unknown:
            await streams.publisher("st_nobody").__aenter__()
        assert unknown.value.hint


async def _break_down(publisher: Publisher) -> None:
    async with publisher as out:
        await out.send("kept")
        await out.flush()
        raise KeyError("of the program")


async def _until_refused(out: Any) -> None:
    await out.send("fenced out")
    await out.flush()


async def test_what_does_not_fit_is_refused_here_and_nothing_is_lost_by_it(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        stream_id = (await client.open_stream("me", "out"))["stream_id"]
        async with streams.publisher(stream_id) as out:
            await out.send(1)
            for wrong in ("x" * (1 << 20), b"x" * ((1 << 20) + 1)):
                with pytest.raises(TooLarge):
                    await (out.send_bytes(wrong) if isinstance(wrong, bytes) else out.send(wrong))
            with pytest.raises(TooLarge):
                await out.send_bytes(b"", metadata={"long": "x" * 5000})
            with pytest.raises(Invalid, match="not JSON"):
                await out.send(object())
            await out.send_bytes(b"x" * (1 << 20))
            await out.send("x" * ((1 << 20) - 20))
            await out.send_reference({"type": "image", "ref": {"url": "mentat://default/blob_1"}})
            assert out.statistics().records <= 256
        assert out.acknowledged == 5
        records = [r async for r in streams.subscribe(stream_id) if isinstance(r, StreamChunk)]
        assert [sorted(r.payload)[0] for r in records] == ["data", "bytes", "data", "ref"]


async def test_every_other_end_is_an_error(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        failed, cancelled = [
            (await client.open_stream("me", pin))["stream_id"] for pin in ("failed", "cancelled")
        ]
        async with streams.publisher(failed) as out:
            await out.send("so far")
            await out.fail("the camera is gone")
        records = streams.subscribe(failed)
        so_far = await anext(records)
        assert isinstance(so_far, StreamChunk)
        assert value_of(so_far) == "so far"
        with pytest.raises(StreamFailed, match="agent_error: the camera is gone"):
            await anext(records)
        assert (await client.cancel_stream(cancelled))["state"] == "ended"
        with pytest.raises(TruncatedStream, match="cancelled"):
            _ = [r async for r in streams.subscribe(cancelled)]
        with pytest.raises(NotFound):
            _ = [r async for r in streams.subscribe("st_nobody")]


async def test_latest_misses_nothing_once_it_stands(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        stream_id = (await client.open_stream("me", "out"))["stream_id"]
        await client.publish(stream_id, ["before"])
        async with streams.subscribe(stream_id, "latest") as records:
            await client.publish(stream_id, ["after"], end=True)
            assert [value_of(r) async for r in records] == ["after"]
        with pytest.raises(StopAsyncIteration):
            await anext(records)


async def test_a_slow_reader_of_the_latest_is_told_what_it_misses(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        stream_id = (await client.open_stream("me", "out", durability="memory"))["stream_id"]
        async with streams.subscribe(stream_id, policy="latest", max_bytes=2000) as slow:
            async with client.connect_streams() as others, others.publisher(stream_id) as out:
                for number in range(500):
                    await out.send(f"{number} {'x' * 500}")
            assert slow.statistics().held <= 2000 + 1000
            got = [element async for element in slow]
    gaps = [e for e in got if isinstance(e, Gap)]
    assert gaps
    assert {gap.reason for gap in gaps} == {"dropped"}
    assert len(got) < 100


async def test_a_run_and_a_filter(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        one = await client.open_stream("me", "a")
        run = one["run_id"]
        two = await client.open_stream("me", "b", run_id=run)
        await client.publish(one["stream_id"], [1], end=True)
        await client.publish(two["stream_id"], [2, 3], end=True)
        assert [value_of(r) async for r in streams.subscribe(run)] == [1, 2, 3]
        chosen = streams.subscribe(run, filter={"pin_name": ["b"]})
        assert [value_of(r) async for r in chosen] == [2, 3]
        with pytest.raises(Invalid, match="pinname"):
            await anext(streams.subscribe(run, filter={"pinname": ["b"]}))


async def test_a_token_is_renewed_on_the_connection(server: Up) -> None:
    async with AsyncClient(server.url, server.key) as owner:
        stream_id = (await owner.open_stream("me", "out"))["stream_id"]
        renewals = 0

        async def renew() -> str:
            nonlocal renewals
            renewals += 1
            return (await owner.stream_token(stream_id, ["sub", "pub"], lifetime_s=2))["token"]

        async with (
            AsyncClient(server.url, await renew()) as guest,
            guest.connect_streams(renew=renew) as streams,
            streams.subscribe(stream_id) as records,
            streams.publisher(stream_id) as out,
        ):
            while renewals < 3:
                await out.send(renewals)
                await anext(records)
            await out.end()
            assert [r async for r in records] == []
        async with (
            AsyncClient(server.url, "v1.wrong.token") as nobody,
            nobody.connect_streams() as refused,
        ):
            with pytest.raises(Unauthenticated):
                await anext(refused.subscribe(stream_id))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_server_that_comes_back_is_nothing_to_the_application(
    tmp_path: Path, at_once: None, number: int
) -> None:
    values = [f"{n} {'x' * 100}" for n in range(3000)]
    with up(tmp_path / "home") as first:
        port = first.url.rpartition(":")[2]
        async with AsyncClient(first.url) as client, client.connect_streams() as streams:
            stream_id = (await client.open_stream("me", "out"))["stream_id"]

            async def publish(out: Publisher) -> None:
                async with out:
                    for value in values:
                        await out.send(value)

            publishing = asyncio.create_task(publish(streams.publisher(stream_id)))
            records = streams.subscribe(stream_id)
            got = [value_of(await anext(records)) for _ in range(300)]
            await asyncio.to_thread(first.stop, number)
            with up(tmp_path / "home", "--port", port):
                got += [value_of(record) async for record in records]
                await publishing
    assert got == values


async def test_a_stream_in_memory_begins_anew_after_a_restart_and_says_so(
    tmp_path: Path, at_once: None
) -> None:
    resets: list[int] = []
    with up(tmp_path / "home") as first:
        port = first.url.rpartition(":")[2]
        async with AsyncClient(first.url) as client, client.connect_streams() as streams:
            live, whole = [
                (await client.open_stream("me", pin, durability="memory"))["stream_id"]
                for pin in ("live", "whole")
            ]
            async with (
                streams.publisher(live, on_reset=resets.append) as out,
                streams.publisher(whole, end=False) as strict,
            ):
                for value in ("a", "b"):
                    await out.send(value)
                    await strict.send(value)
                await out.flush()
                await strict.flush()
                records = streams.subscribe(live)
                assert [value_of(await anext(records)) for _ in range(2)] == ["a", "b"]
                await asyncio.to_thread(first.stop, signal.SIGKILL)
                with up(tmp_path / "home", "--port", port):
                    await out.send("c")
                    await out.send_bytes(b"d")
                    await out.end()
                    assert (resets, out.already, out.acknowledged) == ([2], 0, 3)
                    gap, *rest = [element async for element in records]
                    assert isinstance(gap, Gap)
                    assert [value_of(each) for each in rest] == ["c", b"d"]
                    with pytest.raises(Conflict) as lost:
                        await strict.end()
                    assert lost.value.code is Code.STREAM_LOST
                    strict.close()


async def test_a_reader_can_make_the_publisher_wait(server: Up) -> None:
    async with (
        AsyncClient(server.url) as client,
        client.connect_streams() as publishing,
        client.connect_streams() as reading,
        asyncio.TaskGroup() as group,
    ):
        stream_id = (await client.open_stream("me", "out", durability="memory"))["stream_id"]
        async with reading.subscribe(stream_id, policy="block", max_bytes=50_000) as records:
            out = publishing.publisher(stream_id)

            async def publish() -> None:
                async with out:
                    for number in range(2000):
                        await out.send(f"{number} {'x' * 1000}")

            group.create_task(publish())
            got: list[Any] = []
            async for record in records:
                got.append(record)
                assert out.acknowledged <= len(got) + 1100  # 1 MiB of them
    assert [r.sequence for r in got] == list(range(2, 2002))


async def test_a_publisher_over_its_rate_waits_and_loses_nothing(tmp_path: Path) -> None:
    with up(tmp_path / "home", env={"MENTATLAB_RECORD_RATE": "400"}) as slow:
        async with AsyncClient(slow.url, slow.key) as client, client.connect_streams() as streams:
            stream_id = (await client.open_stream("me", "out"))["stream_id"]
            async with streams.publisher(stream_id) as out:
                for number in range(1500):
                    await out.send(number)
            got = [
                value_of(r) async for r in client.stream(stream_id) if isinstance(r, StreamChunk)
            ]
    assert got == list(range(1500))


async def test_more_streams_than_a_connection_carries(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        run: dict[str, str] = {}
        subscriptions: list[Subscription] = []
        for number in range(129):
            opened = await client.open_stream("me", f"pin{number}", durability="memory", **run)
            run = {"run_id": opened["run_id"]}
            await client.publish(opened["stream_id"], [number], end=True)
            subscriptions.append(streams.subscribe(opened["stream_id"], rate=0.001))
        with pytest.raises(TooLarge):
            await anext(subscriptions[-1])
        for subscription in subscriptions:
            subscription.close()


async def test_a_subscription_can_be_left_and_taken_up_again(server: Up) -> None:
    async with AsyncClient(server.url) as client, client.connect_streams() as streams:
        stream_id = (await client.open_stream("me", "out"))["stream_id"]
        await client.publish(stream_id, list(range(10)))
        for _ in range(20):
            streams.subscribe(stream_id, "latest").close()
        async with streams.subscribe(stream_id) as records:
            assert [value_of(await anext(records)) for _ in range(3)] == [0, 1, 2]
        later = streams.subscribe(stream_id, records.cursor or "start")
        assert [value_of(await anext(later)) for _ in range(7)] == list(range(3, 10))
        with pytest.raises(Conflict, match="has one for"):
            streams.subscribe(stream_id)


async def test_a_token_that_has_ended_is_renewed_before_it_is_shown(server: Up) -> None:
    async with AsyncClient(server.url, server.key) as owner:
        stream_id = (await owner.open_stream("me", "out"))["stream_id"]
        await owner.publish(stream_id, [1], end=True)
        ended = mint(
            Claims(subject=stream_id, capabilities=("sub",), workspace="default", expires=1),
            b"of the past",
        )

        async def renew() -> str:
            return (await owner.stream_token(stream_id))["token"]

        async def refuse() -> str:
            raise Forbidden(Code.FORBIDDEN, "you are out", hint="")

        async with AsyncClient(server.url, ended) as guest:
            async with guest.connect_streams(renew=renew) as streams:
                assert [value_of(r) async for r in streams.subscribe(stream_id)] == [1]
            async with guest.connect_streams(renew=refuse) as streams:
                with pytest.raises(Forbidden, match="you are out"):
                    await anext(streams.subscribe(stream_id))
            async with guest.connect_streams() as streams:
                with pytest.raises(Unauthenticated):
                    await anext(streams.subscribe(stream_id))


async def test_a_connection_that_is_not_open_is_said_to_be_so(server: Up) -> None:
    async with AsyncClient(server.url) as client:
        stream_id = (await client.open_stream("me", "out"))["stream_id"]
        with pytest.raises(Conflict, match="not open"):
            client.connect_streams().subscribe(stream_id)
        async with client.connect_streams() as streams:
            records = streams.subscribe(stream_id, "latest")
            waiting = asyncio.ensure_future(anext(records))
            await asyncio.sleep(0)
        with pytest.raises(Conflict, match="not open"):
            await waiting
        with pytest.raises(Conflict, match="not open"):
            streams.publisher(stream_id)


@pytest.mark.parametrize("subprotocol", [None, "other"])
async def test_what_is_no_mentatlab_server(at_once: None, subprotocol: str | None) -> None:
    def choose(_: ServerConnection, __: Sequence[Subprotocol]) -> Subprotocol | None:
        return None if subprotocol is None else Subprotocol(subprotocol)

    async with websockets.serve(_nothing, "127.0.0.1", 0, select_subprotocol=choose) as other:
        port = other.sockets[0].getsockname()[1]
        async with (
            AsyncClient(f"http://127.0.0.1:{port}") as client,
            client.connect_streams(give_up_s=0.1) as streams,
        ):
            kind = Invalid if subprotocol is None else Unavailable
            with pytest.raises(kind):
                await anext(streams.subscribe("st_1"))


async def _nothing(socket: ServerConnection) -> None:
    await socket.wait_closed()


@pytest.mark.parametrize("url", ["localhost", "http://", "http://127.0.0.1:9"])
async def test_addresses_where_nobody_is(at_once: None, url: str) -> None:
    async with AsyncClient(url) as client, client.connect_streams(give_up_s=0.1) as streams:
        with pytest.raises(Unavailable):
            await streams.publisher("st_1").__aenter__()
