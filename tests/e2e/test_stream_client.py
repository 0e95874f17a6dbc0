"""The Python client's streams against a real server, through a network that cuts anywhere."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cutting import cutting
from tests.support.server import Up, up

from mentatlab.protocol.errors import Conflict, Fenced, NotFound, TooLarge, Unauthenticated
from mentatlab.protocol.records import StreamChunk
from mentatlab.sdk.client import AsyncClient, Gap, StreamFailed, TruncatedStream
from mentatlab.sdk.streaming import MediaChunk, StreamConnection, endings

RECORDS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    env = {"MENTATLAB_RATE": "0"}
    with up(tmp_path_factory.mktemp("home"), env=env) as server:
        yield server


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reconnect without a wait worth mentioning."""
    monkeypatch.setattr(endings, "_BASE_S", 0.01)
    monkeypatch.setattr(endings, "_CAP_S", 0.05)


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
