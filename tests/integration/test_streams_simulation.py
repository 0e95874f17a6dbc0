"""Deterministic simulation: crashes, cuts and slow disks by a seed, in virtual time.

    MENTATLAB_SEED=7 pytest tests/integration/test_streams_simulation.py

runs that one again. The seed of a failure is in its message.
"""

import asyncio
import itertools
import os
import random

import pytest
from tests.support.simulation import SimulatedConnection, World, simulate

from mentatlab.protocol.errors import Fenced
from mentatlab.protocol.records import StreamChunk, start_draft
from mentatlab.streams.port import Lane

STREAMS, RECORDS = 3, 60


async def storm(world: World) -> None:
    """Publishers and readers of several lanes while the server crashes and lines are cut."""
    world.start()
    for number in range(STREAMS):
        await _open(world, f"st_{number}")
    async with asyncio.TaskGroup() as group:
        trouble = group.create_task(_trouble(world))
        async with asyncio.TaskGroup() as work:
            for number in range(STREAMS):
                work.create_task(_publish(world, f"st_{number}"))
                for reader in range(2):
                    work.create_task(_read(world, f"st_{number}", slow=reader == 1))
            work.create_task(_read_all(world))
        trouble.cancel()
    world.tell("over")


async def _open(world: World, stream_id: str) -> None:
    lane = Lane(
        stream_id=stream_id,
        run_id="rn_1",
        node_id=stream_id,
        pin_name="out",
        workspace="default",
        created_at=world.clock(),
        external=True,
    )
    await world.disk.open(lane, start_draft(), now=world.clock())


async def _trouble(world: World) -> None:
    while True:
        await asyncio.sleep(world.chance.expovariate(4))
        if world.chance.random() < 0.2:
            world.crash()
            await asyncio.sleep(world.chance.expovariate(2))
            world.start()
        else:
            world.cut()


async def _publish(world: World, stream_id: str) -> None:
    async with (
        SimulatedConnection(world) as connection,
        connection.publisher(stream_id, id="p") as publisher,
    ):
        for number in range(RECORDS):
            if number % 3:
                await publisher.send(number)
            else:
                await publisher.send_bytes(b"%d" % number, key=True)
            await _assert_durable(world, stream_id, publisher.acknowledged)
            await asyncio.sleep(world.chance.expovariate(50))
    await _assert_durable(world, stream_id, RECORDS + 1)
    world.tell(f"published {stream_id}")


async def _assert_durable(world: World, stream_id: str, acknowledged: int) -> None:
    """What was acknowledged is on the disk, whatever becomes of the server."""
    known = await world.disk.producer(stream_id, "p")
    assert (0 if known is None else known.seq) >= acknowledged


async def _read(world: World, stream_id: str, *, slow: bool) -> None:
    got: list[int] = []
    async with SimulatedConnection(world) as connection:
        async for record in connection.subscribe(stream_id, max_bytes=600 if slow else 1 << 20):
            assert isinstance(record, StreamChunk), record
            got.append(_number(record))
            if slow:
                await asyncio.sleep(world.chance.expovariate(20))
    assert got == list(range(RECORDS)), got
    world.tell(f"read {stream_id}")


async def _read_all(world: World) -> None:
    """The run: every lane's records in the lane's own order."""
    got: dict[str, list[int]] = {}
    async with SimulatedConnection(world) as connection:
        async for record in connection.subscribe("rn_1"):
            assert isinstance(record, StreamChunk), record
            got.setdefault(record.stream_id, []).append(record.sequence)
    wanted = list(range(2, RECORDS + 2))
    assert got == {f"st_{number}": wanted for number in range(STREAMS)}


def _number(record: StreamChunk) -> int:
    payload = record.payload
    return int(payload["bytes"]) if "bytes" in payload else payload["data"]


async def takeover(world: World) -> None:
    """A second publisher takes over under a higher epoch: the first one is fenced, nothing of what
    it had acknowledged is lost, nothing of it comes after the second one's first record.
    """
    world.start()
    await _open(world, "st_0")
    async with asyncio.TaskGroup() as group:
        trouble = group.create_task(_trouble(world))
        first = group.create_task(_publish_until_fenced(world))
        await asyncio.sleep(world.chance.uniform(0.1, 2))
        async with (
            SimulatedConnection(world) as connection,
            connection.publisher("st_0", id="p", epoch=1) as publisher,
        ):
            for number in range(20):
                await publisher.send(["second", number])
        acknowledged = await first
        trouble.cancel()
    records = [
        entry.record
        for entry in await world.disk.read("st_0", 0, max_records=10_000, max_bytes=1 << 30)
    ]
    values = [record.payload["data"] for record in records if "data" in record.payload]
    ours = [number for who, number in values if who == "first"]
    assert values == [["first", n] for n in ours] + [["second", n] for n in range(20)]
    assert ours == list(range(len(ours)))
    assert len(ours) >= acknowledged


async def _publish_until_fenced(world: World) -> int:
    async with SimulatedConnection(world) as connection:
        publisher = connection.publisher("st_0", id="p", epoch=0)
        try:
            async with publisher:
                for number in itertools.count():
                    await publisher.send(["first", number])
                    await asyncio.sleep(world.chance.expovariate(100))
        except Fenced:
            return publisher.acknowledged
        raise AssertionError("nobody took over")


def seeds(count: int) -> list[int]:
    if told := os.environ.get("MENTATLAB_SEED"):
        return [int(told)]
    return [random.randrange(1 << 32) for _ in range(count)]


@pytest.mark.parametrize("scenario", [storm, takeover])
def test_a_few_worlds(scenario: object) -> None:
    for seed in seeds(5):
        _simulate(seed, scenario)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", [storm, takeover])
def test_many_worlds(scenario: object) -> None:
    for seed in seeds(150):
        _simulate(seed, scenario)


def test_the_same_seed_is_the_same_story() -> None:
    assert simulate(11, storm) == simulate(11, storm)


def _simulate(seed: int, scenario: object) -> None:
    try:
        simulate(seed, scenario)  # pyright: ignore[reportArgumentType]
    except BaseException as error:
        error.add_note(f"seed {seed}: MENTATLAB_SEED={seed} runs it again")
        raise
