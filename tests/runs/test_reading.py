"""Runs as they are asked about: lineage over items and records, events and logs as they come."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.runs.test_engine import TEXT, flow, node
from tests.support.coroutine_runner import Call, CoroutineRunner

from mentatlab.protocol.errors import NotFound
from mentatlab.protocol.events import Chunk, Log
from mentatlab.runs.lineage import time_code
from mentatlab.runs.reading import LogQuery, RunReader
from mentatlab.testing.house import House, open_house, write_agent

LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
EACH = flow(
    [
        node("words", "ui.prompt"),
        node("make", "lines"),
        node("shout", "each", forEach="text"),
        node("again", "each", forEach="text"),
        node("read", "read"),
        node("out", "ui.console"),
    ],
    ("words.text", "make.text"),
    ("make.lines", "shout.text"),
    ("shout.text", "again.text"),
    ("again.text", "read.lines"),
    ("read.text", "out.text"),
)
Opened = Callable[..., AbstractAsyncContextManager[House]]


async def make(call: Call) -> dict[str, Any]:
    for number in range(3):
        call.say(
            Chunk(
                pin="lines", data=f"line {number}", pts=number / 2, metadata={"frame": 12 * number}
            )
        )
    return {}


async def shout(call: Call) -> dict[str, Any]:
    text = call.invocation.inputs["text"]
    call.say(Log(level="info", message=f"heard {text}"))
    return {"text": text.upper()}


async def read(call: Call) -> dict[str, Any]:
    return {"text": " ".join([line async for line in call.elements("lines")])}


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    pins: dict[str, dict[str, Any]] = {
        "lines": {"inputs": [TEXT], "outputs": [LINES]},
        "each": {"inputs": [TEXT], "outputs": [TEXT]},
        "read": {"inputs": [LINES], "outputs": [TEXT]},
    }
    for name, both in pins.items():
        write_agent(tmp_path / "agents", name, "", **both)

    @asynccontextmanager
    async def open_(**agents: Any) -> AsyncGenerator[House]:
        runner = CoroutineRunner({"lines": make, "each": shout, "read": read, **agents})
        home = open_house(tmp_path / "home", [tmp_path / "agents"], runner=runner)
        async with asyncio.timeout(60), home as house:
            yield house

    return open_


async def test_a_record_comes_from_an_item_and_that_from_a_frame(opened: Opened):
    async with opened() as house:
        run = await house.engine.submit(EACH, {"words": "x"})
        await house.engine.wait(run.id)
        reader = RunReader(house.store, house.hub)
        asked = {"workspace": "default", "node": "again"}
        found = await reader.lineage(run.id, **asked, seq=3)
        assert [step.id for step in found.steps] == [
            "again.text#3",
            "shout.text#3",
            "make.lines#3",
            "words.text",
            "words",
        ]
        assert [step.item for step in found.steps[:2]] == [3, 3]
        [origin] = found.origins
        assert (origin.input, origin.frame) == ("words", 12)
        assert (origin.time_code, origin.pts_s) == ("00:00:00.500", 0.5)
        first = await reader.lineage(run.id, **asked, seq=2)
        assert (first.origins[0].frame, first.origins[0].time_code) == (0, "00:00:00.000")

        whole = await reader.lineage(run.id, workspace="default", output="out")
        assert whole.result == "read.text"
        made = next(step for step in whole.steps if step.id == "make.lines")
        assert made.records == 3
        with pytest.raises(NotFound):
            await reader.lineage(run.id, **asked, seq=99)


async def test_logs_are_followed_from_the_first_line_to_the_runs_end(opened: Opened):
    begin, heard = asyncio.Event(), list[str]()

    async def late(call: Call) -> dict[str, Any]:
        await begin.wait()
        return await shout(call)

    async with opened(each=late) as house:
        run = await house.engine.submit(EACH, {"words": "x"})
        reader = RunReader(house.store, house.hub)
        async for lines in reader.follow_logs(LogQuery(run.id, "shout", "default", item=3)):
            begin.set()  # the reader was there before there was a log
            heard += [line["message"] for line in lines]
        assert heard == ["heard line 1"]
        assert (await house.engine.wait(run.id)).state == "succeeded"
        silent = [page async for page in reader.follow_logs(LogQuery(run.id, "words", "default"))]
        assert silent == []


async def test_a_reader_of_a_run_whose_lane_is_lost_gets_its_events(opened: Opened):
    async with opened() as house:
        run = await house.engine.submit(EACH, {"words": "x"})
        await house.engine.wait(run.id)
        await house.hub.delete_run(run.id)
        reader = RunReader(house.store, house.hub)
        pages = [page async for page in reader.follow(run.id, workspace="default")]
        events = [event for page in pages for event in page]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].type == "run_finished"
        times = await reader.timeline(run.id, workspace="default")
        assert {stream.state for n in times.nodes for stream in n.streams} == {"expired"}


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(0, "00:00:00.000"), (3723.4567, "01:02:03.457"), (-1.5, "-00:00:01.500")],
)
def test_time_codes(seconds: float, code: str):
    assert time_code(seconds) == code


async def test_lineage_goes_on_in_the_run_that_was_done_again(opened: Opened):
    async with opened() as house:
        run = await house.engine.submit(EACH, {"words": "x"})
        await house.engine.wait(run.id)
        again = await house.engine.rerun(run.id, from_node="again", workspace="default")
        assert (await house.engine.wait(again.id)).state == "succeeded"
        reader = RunReader(house.store, house.hub)
        found = await reader.lineage(again.id, workspace="default", node="again", seq=3)
        steps = {step.id: step for step in found.steps}
        assert steps["again.text#3"].cached_from is None
        assert steps["shout.text#3"].cached_from == run.id
        assert found.origins[0].frame == 12
        times = await reader.timeline(again.id, workspace="default")
        reused = [n for n in times.nodes if n.cached_from == run.id]
        assert {n.node_id for n in reused} >= {"make", "shout"}
        before = (await reader.timeline(run.id, workspace="default")).nodes
        streams = {s.stream_id: s for n in before for s in n.streams}
        for one in (s for n in reused for s in n.streams):
            assert one == streams[one.stream_id], "as its origin tells it"
            assert one.state == "ended"
            assert one.first_chunk_at
        await house.engine.delete(run.id, workspace="default")
        times = await reader.timeline(again.id, workspace="default")
        assert {s.state for n in times.nodes if n.cached_from for s in n.streams} == {"expired"}


async def test_lineage_tells_what_was_skipped_and_why(opened: Opened):
    branches = flow(
        [
            node("words", "ui.prompt"),
            node("long", "core.if", params={"condition": "size(value) > 3"}),
            node("shout", "each"),
            node("again", "each"),
            node("hush", "each", when="false"),
            node("out", "ui.console"),
        ],
        ("words.text", "long.value"),
        ("long.then", "shout.text"),
        ("shout.text", "again.text"),
        ("long.else", "hush.text"),
        ("again.text", "out.loud"),
        ("hush.text", "out.soft"),
    )
    async with opened() as house:
        run = await house.engine.submit(branches, {"words": "x"})
        assert (await house.engine.wait(run.id)).state == "succeeded"
        reader = RunReader(house.store, house.hub)
        found = await reader.lineage(run.id, workspace="default", output="out.loud")
        assert [(s.id, s.skipped_by, s.upstream) for s in found.steps] == [
            ("again.text", "upstream", "shout"),
            ("shout.text", "branch", "long"),
            ("long.then", "branch", "long"),
            ("words.text", None, ""),
            ("words", None, ""),
        ]
        hushed = await reader.lineage(run.id, workspace="default", output="out.soft")
        assert [(s.id, s.skipped_by) for s in hushed.steps[:2]] == [
            ("hush.text", "when"),
            ("long.else", None),
        ]
