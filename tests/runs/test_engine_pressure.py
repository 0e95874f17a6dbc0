"""Back-pressure from node to node, on lanes in memory and on disk: what waits in a lane is bounded
by its window, and graphs that bounded lanes alone would stop for ever come to their end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.coroutine_house import Agents, flow, node, pin
from tests.support.coroutine_runner import Call

from mentatlab.runs.reading import LogQuery
from mentatlab.streams.backpressure import WINDOW_RECORDS
from mentatlab.testing.house import House

COUNT = 4 * WINDOW_RECORDS
ON_THE_WAY = 100
"""Records of a batch that was let in, and the few that were handed to an agent that takes none."""


async def make(call: Call) -> dict[str, Any]:
    for n in range(COUNT):
        call.send("x", n)
    return {}


async def copy(call: Call) -> dict[str, Any]:
    call.take_slowly()
    async for element in call.elements("x"):
        call.send("x", element)
    return {}


async def in_turn(call: Call) -> dict[str, Any]:
    call.take_slowly()
    readers = [call.elements(name) for name in ("a", "b", "c")]
    rows = [[await anext(reader) for reader in readers] for _ in range(COUNT)]
    return {"text": str(rows == [[n, n, n] for n in range(COUNT)])}


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    found = Agents(tmp_path)
    x = pin("x", "stream of number")
    streams = [pin(name, "stream of number") for name in ("a", "b", "c")]
    found.add("make", make, [], [x])
    found.add("copy", copy, [x], [x])
    found.add("in-turn", in_turn, streams, [pin("text")])
    return found


@pytest.fixture(params=["memory", "commit"])
def lanes(request: pytest.FixtureRequest) -> str:
    return request.param


@asynccontextmanager
async def opened(agents: Agents, lanes: str) -> AsyncIterator[House]:
    async with asyncio.timeout(60), agents.open(streams_in_memory=lanes == "memory") as house:
        yield house


async def text(house: House, document: dict[str, Any]) -> tuple[str, dict[str, list[float]]]:
    """What the run gave, and by node the windows that grew."""
    run = await house.engine.wait((await house.engine.submit(document, {})).id)
    assert run.state == "succeeded", run
    windows: dict[str, list[float]] = {}
    for found in run.nodes:
        lines = await house.runs.logs(LogQuery(run.id, found.id, "default"))
        grown = [line["value"] for line in lines if line.get("name") == "stream_window"]
        windows |= {found.id: grown} if grown else {}
    return run.outputs["d.text"], windows


async def test_a_diamond_of_unequal_rates(agents: Agents, lanes: str) -> None:
    """Its end reads the thin side fully before the thick one, whose lanes must grow."""
    reads_both = asyncio.Event()  # before a lane has its reader, its producer waits for nobody

    async def uneven(call: Call) -> dict[str, Any]:
        """Of y one for every eight of x."""
        for n in range(COUNT):
            call.send("x", n)
            if n % 8 == 0:
                call.send("y", n)
            if n == 0:
                await reads_both.wait()
        return {}

    async def one_after_the_other(call: Call) -> dict[str, Any]:
        """After the first of each: all of b before the second of a."""
        call.take_slowly()
        from_a, from_b = call.elements("a"), call.elements("b")
        a, b = [await anext(from_a)], [await anext(from_b)]
        reads_both.set()
        b += [element async for element in from_b]
        a += [element async for element in from_a]
        return {"text": f"{a == list(range(COUNT))} {b == list(range(0, COUNT, 8))}"}

    streams = [pin(name, "stream of number") for name in ("x", "y", "a", "b")]
    agents.add("uneven", uneven, [], streams[:2])
    agents.add("after", one_after_the_other, streams[2:], [pin("text")])
    document = flow(
        [node("a", "uneven"), node("b", "copy"), node("c", "copy"), node("d", "after")],
        "a.x > b.x",
        "a.y > c.x",
        "b.x > d.a",
        "c.x > d.b",
    )
    async with opened(agents, lanes) as house:
        found, windows = await text(house, document)
    assert found == "True True"
    assert set(windows) <= {"a", "b"}
    assert windows


async def test_a_fan_out_that_is_joined_record_by_record(agents: Agents, lanes: str) -> None:
    """No lane has to grow for it."""
    document = flow(
        [
            node("a", "make"),
            *(node(name, "copy") for name in ("p", "q", "r")),
            node("d", "in-turn"),
        ],
        *(f"a.x > {name}.x" for name in ("p", "q", "r")),
        *(f"{name}.x > d.{end}" for name, end in (("p", "a"), ("q", "b"), ("r", "c"))),
    )
    async with opened(agents, lanes) as house:
        found, _ = await text(house, document)
    assert found == "True"


async def test_a_fast_producer_is_held_back_by_a_slow_consumer(agents: Agents, lanes: str) -> None:
    """From where it has begun to read: before, there is nobody to wait for."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def fast(call: Call) -> dict[str, Any]:
        call.send("x", 0)
        await begun.wait()
        for n in range(1, COUNT):
            call.send("x", n)
        return {}

    async def slow(call: Call) -> dict[str, Any]:
        call.take_slowly()
        taken = [await anext(elements := call.elements("x"))]
        begun.set()
        await go.wait()
        taken += [element async for element in elements]
        return {"text": str(taken == list(range(COUNT)))}

    agents.add("fast", fast, [], [pin("x", "stream of number")])
    agents.add("slow", slow, [pin("x", "stream of number")], [pin("text")])
    document = flow([node("a", "fast"), node("d", "slow")], "a.x > d.x")
    async with opened(agents, lanes) as house:
        run = await house.engine.submit(document, {})
        (x,) = [s.stream_id for s in run.streams if s.pin_name == "x"]
        while x not in house.hub.statistics().held_back:
            await asyncio.sleep(0)
        assert (await house.hub.lane(x)).head <= WINDOW_RECORDS + ON_THE_WAY
        go.set()
        done = await house.engine.wait(run.id)
        assert await house.runs.logs(LogQuery(run.id, "a", "default")) == []
    assert done.outputs["d.text"] == "True"
