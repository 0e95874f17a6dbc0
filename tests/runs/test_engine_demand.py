"""Producers whose streams nobody reads any more, cancellation through streams, ends that nobody
could see."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.coroutine_house import Agents, flow, node, pin, standing, states
from tests.support.coroutine_runner import Call, CoroutineRunner

from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runs import live_attempts
from mentatlab.testing.house import open_house

LINES = pin("lines", "stream of string")


async def forever(call: Call) -> dict[str, Any]:
    call.send("lines", "a", "b")
    await asyncio.Event().wait()
    return {}


async def one(call: Call) -> dict[str, Any]:
    """Wants one element."""
    async for element in call.elements("lines"):
        return {"text": element}
    return {"text": "none"}


async def to_the_end(call: Call) -> dict[str, Any]:
    given = [await call.given["lines"].get()]
    while given[-1][0] == "chunk":
        given.append(await call.given["lines"].get())
    return {"text": given[-1][0]}


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    found = Agents(tmp_path)
    found.add("make", forever, [], [LINES])
    found.add("one", one, [LINES], [pin("text")])
    found.add("whole", to_the_end, [LINES], [pin("text")])
    return found


PIPE = flow([node("make", "make"), node("read", "one")], "make.lines > read.lines")


async def test_a_producer_is_stopped_when_its_last_reader_has_ended(agents: Agents) -> None:
    async with agents.open() as house, asyncio.timeout(30):
        run = await house.engine.wait((await house.engine.submit(PIPE, {})).id)
        assert (run.state, states(run)["make"]) == ("succeeded", "succeeded"), run
        events = await house.runs.events(run.id, workspace="default")
        (end,) = [e for e in events if e.type == "node_succeeded" and e.node_id == "make"]
        assert end.payload["metrics"]["stopped_early"] is True
        assert end.payload["outputs"]["lines"]["chunks"] == 2
        (stream,) = run.streams
        assert stream.state == "ended"
        assert await standing(house, stream.stream_id) == [("a", None), ("b", None)]


async def test_one_that_is_kept_goes_on(agents: Agents, tmp_path: Path) -> None:
    go = asyncio.Event()

    async def patient(call: Call) -> dict[str, Any]:
        call.send("lines", "a")
        await go.wait()
        call.send("lines", "b")
        return {}

    agents.add("patient", patient, [], [LINES])
    nodes = [node("make", "patient", keep=True), node("read", "one")]
    async with agents.open() as house, asyncio.timeout(30):
        run = await house.engine.submit(flow(nodes, "make.lines > read.lines"), {})
        async with house.hub.subscribe(run.id) as records:
            async for record in records:
                told = record.payload.get("data") if record.node_id == "_run" else None
                if told and told["type"] == "node_succeeded" and told["node_id"] == "read":
                    break
        go.set()
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done
        assert len(await standing(house, done.streams[0].stream_id)) == 2


async def test_a_cancelled_run_tells_readers_of_its_streams(agents: Agents) -> None:
    """The lane ends `cancelled`, once, and nothing comes after it."""
    nodes = [node("make", "make"), node("read", "whole")]
    async with agents.open() as house, asyncio.timeout(30):
        run = await house.engine.submit(flow(nodes, "make.lines > read.lines"), {})
        lane = run.streams[0].stream_id
        async with house.hub.subscribe(lane) as records:
            seen: list[Any] = []
            async for record in records:
                seen.append(record)
                if record.payload.get("data") == "b":
                    await house.engine.cancel(run.id, workspace="default")
        done = await house.engine.wait(run.id)
    assert done.state == "cancelled"
    assert seen[-1].payload["reason"] == "cancelled"
    assert set(states(done).values()) == {"cancelled"}


class _Deaf:
    """An attempt that neither hears nor ends."""

    async def events(self) -> AsyncGenerator[Any]:
        await asyncio.Event().wait()
        yield

    async def send_chunk(self, *_: Any, **__: Any) -> None: ...

    async def end_input(self, *_: Any) -> None: ...

    async def cancel(self, reason: str) -> None: ...

    async def outcome(self) -> Outcome:
        await asyncio.Event().wait()
        return Outcome(status="succeeded")


class DeafRunner(CoroutineRunner):
    def __init__(self) -> None:
        super().__init__({})
        self.begun_once = asyncio.Event()

    @asynccontextmanager
    async def attempt(self, invocation: Invocation) -> AsyncGenerator[Any]:
        self.begun_once.set()
        yield _Deaf()


async def test_an_end_that_nobody_could_see_is_recorded_as_such(
    agents: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_attempts, "UNCONFIRMED_S", 0.05)
    runner = DeafRunner()
    home = open_house(tmp_path / "home", [tmp_path / "agents"], runner=runner)
    async with home as house, asyncio.timeout(30):
        run = await house.engine.submit(flow([node("make", "make")]), {})
        await runner.begun_once.wait()
        await house.engine.cancel(run.id, workspace="default")
        done = await house.engine.wait(run.id)
        events = await house.runs.events(run.id, workspace="default")
    assert done.state == "cancelled"
    (end,) = [e for e in events if e.type == "node_cancelled"]
    assert end.payload == {"unconfirmed": True}
