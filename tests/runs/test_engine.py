"""The engine over real databases and storage; its agents are coroutines, so every order of things
can be made. Real processes: `tests/integration/test_engine_*.py`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.coroutine_runner import Agent, Call, CoroutineRunner, Failure

from mentatlab.protocol.errors import Code, Conflict, NotFound, Unavailable
from mentatlab.protocol.events import Log, Metric, Progress
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.records import RecordType
from mentatlab.protocol.values import is_object
from mentatlab.runs.events import RunFact
from mentatlab.runs.limits import Limits
from mentatlab.runs.reading import LogQuery
from mentatlab.runs.store import RunRow
from mentatlab.runs.views import RunView
from mentatlab.testing.house import House, open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
AGENTS: dict[str, dict[str, Any]] = {
    "text": {"inputs": [{**TEXT, "required": False}], "outputs": [TEXT]},
    "lines": {"outputs": [LINES]},
    "read": {"inputs": [LINES], "outputs": [TEXT]},
    "pass": {"inputs": [LINES], "outputs": [LINES]},
    "each": {"inputs": [TEXT], "outputs": [TEXT]},
}
Open = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """`async with opened({"agent": coroutine}) as house`: the same home, whenever it is opened."""
    for name, pins in AGENTS.items():
        write_agent(tmp_path / "agents", name, "", **pins)

    @asynccontextmanager
    async def open_(agents: Mapping[str, Agent], **options: Any) -> AsyncIterator[House]:
        runner = options.pop("runner", None) or CoroutineRunner(agents)
        options = {"chance": lambda: 0.0, **options}  # retries at once
        home = open_house(tmp_path / "home", [tmp_path / "agents"], runner=runner, **options)
        async with asyncio.timeout(60), home as house:
            yield house

    return open_


def flow(nodes: list[dict[str, Any]], *edges: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.engine"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
        **more,
    }


def node(id_: str, type_: str, **more: Any) -> dict[str, Any]:
    return {"id": id_, "type": type_, **more}


ONE = flow([node("one", "text")])
PIPE = flow([node("make", "lines"), node("read", "read")], ("make.lines", "read.lines"))


async def ended(house: House, document: dict[str, Any], **inputs: Any) -> RunView:
    run = await house.engine.submit(document, inputs)
    return await house.engine.wait(run.id)


async def data_of(house: House, run: RunView, name: str) -> list[tuple[Any, int | None]]:
    """(value, item) of what stands in an ended output lane."""
    (stream,) = [s for s in run.streams if s.node_id == name]
    ranges = (await house.hub.lane(stream.stream_id)).standing
    async with house.hub.subscribe(stream.stream_id) as records:
        return [
            (r.payload["data"], r.item)
            async for r in records
            if r.type is RecordType.DATA and any(a <= r.sequence <= b for a, b in ranges)
        ]


async def end_of(house: House, stream_id: str) -> Mapping[str, Any]:
    async with house.hub.subscribe(stream_id) as records:
        return [r async for r in records][-1].payload


async def forever(call: Call) -> dict[str, Any]:
    await asyncio.Event().wait()
    return {}


# -- retries and failures


@pytest.mark.parametrize(
    ("class_", "tries"),
    [("infra", 3), ("transient", 3), ("timeout", 3), ("oom", 2), ("permanent", 1)],
)
async def test_each_class_of_failure_is_tried_as_often_as_it_deserves(
    opened: Open, class_: Any, tries: int
) -> None:
    async def fail(call: Call) -> dict[str, Any]:
        raise Failure(class_, "AGENT_ODD")

    runner = CoroutineRunner({"text": fail})
    async with opened({}, runner=runner) as house:
        run = await ended(house, ONE)
        assert (run.state, run.reason) == ("failed", "node_failed")
        assert run.nodes[0].error is not None
        assert run.nodes[0].error.code == "AGENT_ODD"
    assert runner.begun() == [("one", None, n + 1) for n in range(tries)]


async def test_a_bug_in_a_runner_fails_the_node_and_not_the_engine(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(call: Call) -> dict[str, Any]:
        raise RuntimeError("a bug")

    async def fine(call: Call) -> dict[str, Any]:
        return {"text": "fine"}

    async with opened({"text": broken}) as house:
        run = await ended(house, ONE)
        assert run.state == "failed"
        assert run.nodes[0].error is not None
        assert run.nodes[0].error.code == "INTERNAL"
        assert "a bug" in caplog.text
    async with opened({"text": fine}) as house:
        assert (await ended(house, ONE)).state == "succeeded"


async def test_an_agent_that_leaves_out_an_output_is_told_which(opened: Open) -> None:
    async def nothing(call: Call) -> dict[str, Any]:
        return {"words": "x"}

    async with opened({"text": nothing}) as house:
        run = await ended(house, ONE)
        error = run.nodes[0].error
        assert error is not None
        assert error.code == "OUTPUT_MISSING"
        assert "'text'" in error.message
        assert "words" in error.hint


async def test_a_chunk_on_a_pin_that_is_no_stream_is_refused(opened: Open) -> None:
    async def wrong(call: Call) -> dict[str, Any]:
        call.send("text", "x")
        return {"text": "x"}

    async with opened({"text": wrong}) as house:
        run = await ended(house, ONE)
        assert run.nodes[0].error is not None
        assert run.nodes[0].error.code == "OUTPUT_TYPE"


async def test_what_an_agent_says_of_itself_stands_in_its_log(opened: Open) -> None:
    told = asyncio.Event()

    async def talk(call: Call) -> dict[str, Any]:
        call.say(Log(message="hello", level="warning"))
        call.say(Progress(percent=40.0))
        call.say(Metric(name="rows", value=2.0))
        await told.wait()
        return {"text": "x"}

    async with opened({"text": talk}) as house:
        run = await house.engine.submit(ONE, {})
        while (await house.engine.get(run.id, workspace="default")).nodes[0].percent != 40.0:
            await asyncio.sleep(0)
        told.set()
        await house.engine.wait(run.id)
        lines = await house.runs.logs(LogQuery(run.id, "one", "default"))
        assert [line["kind"] for line in lines] == ["log", "progress", "metric"]
        assert (lines[0]["message"], lines[0]["level"], lines[0]["attempt"]) == (
            "hello",
            "warning",
            1,
        )
        with pytest.raises(NotFound):
            await house.runs.logs(LogQuery(run.id, "two", "default"))


# -- ends


async def test_cancel_ends_producer_consumer_and_their_streams(opened: Open) -> None:
    heard = asyncio.Event()

    async def endless(call: Call) -> dict[str, Any]:
        call.send("lines", "first")
        return await forever(call)

    async def read(call: Call) -> dict[str, Any]:
        async for _ in call.elements("lines"):
            heard.set()
        return {"text": "never"}

    async with opened({"lines": endless, "read": read}) as house:
        run = await house.engine.submit(PIPE, {})
        await heard.wait()
        await house.engine.cancel(run.id, workspace="default")
        done = await house.engine.wait(run.id)
        assert (done.state, done.reason) == ("cancelled", "user_cancel")
        assert {n.state for n in done.nodes} == {"cancelled"}
        end = await end_of(house, done.streams[0].stream_id)
        assert (end["reason"], end["chunks"]) == ("cancelled", 1)
        with pytest.raises(Conflict, match="RUN_TERMINAL"):
            await house.engine.cancel(run.id, workspace="default")


async def test_the_runs_own_timeout_ends_it(opened: Open) -> None:
    document = {**ONE, "runConfig": {"timeoutSeconds": 0.05}}
    async with opened({"text": forever}) as house:
        run = await ended(house, document)
        assert (run.state, run.reason) == ("failed", "timeout")


async def test_a_failed_producer_ends_its_stream_with_its_error(opened: Open) -> None:
    heard = asyncio.Event()

    async def half(call: Call) -> dict[str, Any]:
        call.send("lines", "first")
        await heard.wait()
        raise Failure("permanent", "AGENT_HALF")

    async def read(call: Call) -> dict[str, Any]:
        async for _ in call.elements("lines"):
            heard.set()
        return {"text": "never"}

    async with opened({"lines": half, "read": read}) as house:
        run = await ended(house, PIPE)
        assert run.state == "failed"
        assert [n.state for n in run.nodes] == ["failed", "upstream_failed"]
        assert "AGENT_HALF" in str(await end_of(house, run.streams[0].stream_id))


async def test_nothing_is_taken_while_closing(opened: Open) -> None:
    async with opened({"text": forever}) as house:
        await house.engine.aclose()
        with pytest.raises(Unavailable):
            await house.engine.submit(ONE, {})


# -- streams and attempts


async def test_a_producer_goes_on_from_its_checkpoint_and_nothing_is_told_twice(
    opened: Open,
) -> None:
    """The lane holds what was sent before the checkpoint, and what the second attempt adds."""

    async def count(call: Call) -> dict[str, Any]:
        at = call.invocation.context.resume_state or 0
        if at == 0:
            call.send("lines", "0", "1")
            call.checkpoint(2)
            call.send("lines", "lost")
            raise Failure("transient")
        call.send("lines", *map(str, range(at, 4)))
        return {}

    async with opened({"lines": count}) as house:
        run = await ended(house, flow([node("make", "lines")]))
        assert run.state == "succeeded", run.error
        assert [value for value, _ in await data_of(house, run, "make")] == ["0", "1", "2", "3"]


async def test_a_consumer_alone_is_tried_again_from_its_checkpoint(opened: Open) -> None:
    async def make(call: Call) -> dict[str, Any]:
        call.send("lines", *"abcd")
        return {}

    async def read(call: Call) -> dict[str, Any]:
        text: str = call.invocation.context.resume_state or ""
        async for element in call.elements("lines"):
            text += element
            if text == "ab" and call.attempt == 1:
                call.checkpoint(text)
                raise Failure("transient")
        return {"text": text}

    runner = CoroutineRunner({"lines": make, "read": read})
    async with opened({}, runner=runner) as house:
        run = await ended(house, PIPE)
        assert run.state == "succeeded", run.error
        starts = runner.begun()
        assert starts.count(("make", None, 1)) == 1
        assert ("make", None, 2) not in starts
        assert starts[-1] == ("read", None, 2)


async def test_a_consumer_that_read_what_is_void_begins_again(opened: Open) -> None:
    heard = asyncio.Event()

    async def make(call: Call) -> dict[str, Any]:
        if call.attempt == 1:
            call.send("lines", "bad")
            await heard.wait()
            raise Failure("transient")
        call.send("lines", "good", "best")
        return {}

    async def read(call: Call) -> dict[str, Any]:
        found: list[str] = []
        async for element in call.elements("lines"):
            found.append(element)
            heard.set()
        return {"text": " ".join(found)}

    async with opened({"lines": make, "read": read}) as house:
        run = await ended(house, PIPE)
        assert run.state == "succeeded", run.error
        assert run.outputs == {"read.text": "good best"}


async def test_a_checkpoint_before_any_chunk_keeps_what_earlier_attempts_sent(
    opened: Open,
) -> None:
    async def count(call: Call) -> dict[str, Any]:
        if call.attempt == 1:
            call.send("lines", "0", "1")
        call.checkpoint(2)
        if call.attempt < 3:
            raise Failure("transient")
        call.send("lines", "2")
        return {}

    async with opened({"lines": count}) as house:
        run = await ended(house, flow([node("make", "lines")]))
        assert run.state == "succeeded", run.error
        assert [value for value, _ in await data_of(house, run, "make")] == ["0", "1", "2"]


async def test_a_checkpoint_counts_for_one_start_only(opened: Open) -> None:
    """`pass` goes on from its checkpoint in attempt 2, and from nothing in attempt 3, when its
    source has begun again: then nothing that it had sent stands."""
    again, resumed = asyncio.Event(), asyncio.Event()

    async def make(call: Call) -> dict[str, Any]:
        call.send("lines", "a")
        await again.wait()
        call.send("lines", "b")
        if call.attempt == 1:
            await resumed.wait()
            raise Failure("transient")
        return {}

    async def pass_on(call: Call) -> dict[str, Any]:
        if call.attempt == 2:
            again.set()
        async for element in call.elements("lines"):
            call.send("lines", f"{call.attempt}{element}")
            if call.attempt == 1:
                call.checkpoint("a")
                raise Failure("transient")
            resumed.set()
        return {}

    agents = {"lines": make, "pass": pass_on}
    document = flow([node("make", "lines"), node("pass", "pass")], ("make.lines", "pass.lines"))
    async with opened(agents) as house:
        run = await ended(house, document)
        assert run.state == "succeeded", run.error
        assert [value for value, _ in await data_of(house, run, "pass")] == ["3a", "3b"]


async def test_a_checkpoint_of_what_is_void_does_not_outlive_its_source(opened: Open) -> None:
    """The source begins again while `pass` waits for its retry."""

    async def make(call: Call) -> dict[str, Any]:
        call.send("lines", "a")
        if call.attempt == 1:
            await waits.wait()
            raise Failure("transient")
        return {}

    async def pass_on(call: Call) -> dict[str, Any]:
        async for element in call.elements("lines"):
            call.send("lines", f"{call.attempt}{element}")
            if call.attempt == 1:
                call.checkpoint("a")
                raise Failure("transient")
        return {}

    waits = asyncio.Event()
    agents = {"lines": make, "pass": pass_on}
    slow = node("pass", "pass", retry={"base_s": 1.0, "cap_s": 1.0})
    quick = node("make", "lines", retry={"base_s": 0.001})
    document = flow([quick, slow], ("make.lines", "pass.lines"))
    async with opened(agents, chance=lambda: 0.9) as house:
        made = await house.engine.submit(document, {})
        async with house.hub.subscribe(made.id) as records:
            async for record in records:
                said = record.payload.get("data")
                if is_object(said) and said.get("type") == "retry_scheduled":
                    waits.set()
        run = await house.engine.wait(made.id)
        assert run.state == "succeeded", run.error
        assert [value for value, _ in await data_of(house, run, "pass")] == ["2a"]


async def test_a_results_list_becomes_the_streams_elements(opened: Open) -> None:
    async def at_once(call: Call) -> dict[str, Any]:
        return {"lines": ["a", "b"]}

    async with opened({"lines": at_once}) as house:
        run = await ended(house, flow([node("make", "lines")]))
        assert [value for value, _ in await data_of(house, run, "make")] == ["a", "b"]


async def test_large_outputs_go_by_reference_until_the_event_has_room(
    opened: Open, tmp_path: Path
) -> None:
    pins = [{"name": f"p{n}", "type": "string"} for n in range(4)]
    write_agent(tmp_path / "agents", "many", "", outputs=pins)
    big = "x" * 30_000

    async def many(call: Call) -> dict[str, Any]:
        return {pin["name"]: big for pin in pins}

    async with opened({"many": many}) as house:
        run = await ended(house, flow([node("m", "many")]))
        assert run.state == "succeeded", run.error
        found = list((await house.engine.outputs(run.id, workspace="default")).values())
        kept = [value for value in found if value == big]
        assert 0 < len(kept) < 4
        assert all(value["ref"]["size"] >= len(big) for value in found if value != big)


# -- forEach


async def three_lines(call: Call) -> dict[str, Any]:
    call.send("lines", "a", "b", "c")
    return {}


async def upper(call: Call) -> dict[str, Any]:
    return {"text": call.invocation.inputs["text"].upper()}


def mapped(**more: Any) -> dict[str, Any]:
    each = node("each", "each", forEach="text", **more)
    return flow([node("make", "lines"), each], ("make.lines", "each.text"))


B_FAILED = {"item": 3, "error": {"code": "AGENT_B", "message": "AGENT_B"}}


async def not_b(call: Call) -> dict[str, Any]:
    if call.invocation.inputs["text"] == "b":
        raise Failure("permanent", "AGENT_B")
    return await upper(call)


@pytest.mark.parametrize(
    ("policy", "records"),
    [
        ("collect", [("A", 2), (B_FAILED, 3), ("C", 4)]),
        ("skip", [("A", 2), ("C", 4)]),
    ],
)
async def test_a_failed_item_is_collected_or_skipped_and_the_run_is_partial(
    opened: Open, policy: str, records: Any
) -> None:
    async with opened({"lines": three_lines, "each": not_b}) as house:
        run = await ended(house, mapped(onItemError=policy))
        assert run.state == "partial"
        assert await data_of(house, run, "each") == records


async def test_fail_fast_ends_the_node_with_the_items_error(opened: Open) -> None:
    runner = CoroutineRunner({"lines": three_lines, "each": not_b})
    async with opened({}, runner=runner) as house:
        run = await ended(house, mapped())
        assert run.state == "failed"
        assert run.error is not None
        assert run.error.code == "AGENT_B"
    assert runner.begun()[-1] == ("each", 3, 1)


@pytest.mark.parametrize("ordered", [True, False])
async def test_items_of_a_stream_are_told_in_order_unless_told_otherwise(
    opened: Open, ordered: bool
) -> None:
    later_done = asyncio.Event()

    async def first_last(call: Call) -> dict[str, Any]:
        text = call.invocation.inputs["text"]
        if text == "a":
            await later_done.wait()
        if text == "c":
            later_done.set()
        return {"text": text}

    async with opened({"lines": three_lines, "each": first_last}) as house:
        run = await ended(house, mapped(maxParallel=3, ordered=ordered))
        assert run.state == "succeeded", run.error
        records = await data_of(house, run, "each")
        assert sorted(records) == [("a", 2), ("b", 3), ("c", 4)]
        assert (records == sorted(records)) or not ordered


async def test_a_window_bounds_what_runs_at_once(opened: Open) -> None:
    running, most = 0, 0
    full = asyncio.Event()

    async def counted(call: Call) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()
        for _ in range(20):  # a fourth one would begin meanwhile
            await asyncio.sleep(0)
        running -= 1
        return {"text": "x"}

    async def many(call: Call) -> dict[str, Any]:
        call.send("lines", *"abcdefghij")
        return {}

    async with opened({"lines": many, "each": counted}) as house:
        run = await ended(house, mapped(maxParallel=3))
        assert [value for value, _ in await data_of(house, run, "each")] == ["x"] * 10
    assert most == 3


# -- going on after a stop


async def test_a_map_goes_on_where_it_was_stopped(opened: Open) -> None:
    reached = asyncio.Event()

    async def first_only(call: Call) -> dict[str, Any]:
        if call.invocation.inputs["text"] != "a":
            reached.set()
            return await forever(call)
        return {"text": "first"}

    async with opened({"lines": three_lines, "each": first_only}) as house:
        run = await house.engine.submit(mapped(), {})
        await reached.wait()
    runner = CoroutineRunner({"each": upper})  # the source has ended: it must not start again
    async with opened({}, runner=runner) as house:
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done.error
        assert await data_of(house, done, "each") == [("first", 2), ("B", 3), ("C", 4)]
    assert runner.begun() == [("each", 3, 2), ("each", 4, 1)]


async def test_a_waiting_retry_is_kept_over_a_stop(opened: Open) -> None:
    async def fail(call: Call) -> dict[str, Any]:
        raise Failure("transient")

    async def fine(call: Call) -> dict[str, Any]:
        return {"text": str(call.attempt)}

    document = flow([node("one", "text", retry={"base_s": 60})])
    now = 1_000_000_000.0
    async with opened({"text": fail}, chance=lambda: 1.0, clock=lambda: now) as house:
        run = await house.engine.submit(document, {})
        while (await house.engine.get(run.id, workspace="default")).nodes[0].retry_at is None:
            await asyncio.sleep(0)
    async with opened({"text": fine}, clock=lambda: now + 60) as house:
        done = await house.engine.wait(run.id)
        assert done.outputs == {"one.text": "2"}, done.error


async def test_a_queued_run_starts_after_a_stop(opened: Open) -> None:
    async def fine(call: Call) -> dict[str, Any]:
        return {"text": "x"}

    async with opened({"text": forever}, limits=Limits(max_runs=1)) as house:
        await house.engine.submit(ONE, {})
        queued = await house.engine.submit(ONE, {})
        assert queued.state in ("created", "queued")
    async with opened({"text": fine}) as house:
        assert (await house.engine.wait(queued.id)).state == "succeeded"


# -- many, and what goes wrong around a run


async def test_no_more_runs_than_slots_are_conducted_however_many_come_at_once(
    opened: Open,
) -> None:
    async with opened({"text": forever}, limits=Limits(max_runs=2)) as house:
        await asyncio.gather(*(house.engine.submit(ONE, {}) for _ in range(8)))
        states = Counter(run.state for run in await house.runs.list("default"))
        assert states == {"running": 2, "queued": 6}


async def test_runs_that_wait_are_counted_over_all_engines(opened: Open) -> None:
    limits = Limits(max_runs=1, max_queued=2)
    async with opened({"text": forever}, limits=limits) as house:
        for _ in range(2):
            run = await house.engine.submit(ONE, {})
        row = await house.store.get(run.id)
        elsewhere = msgspec.structs.replace(row, id=new_id("rn"), owner="eng_other")
        facts = [fact for _, fact in await house.store.events(row.id)]
        await house.store.create(elsewhere, await house.store.snapshot(row.digest), facts)
        with pytest.raises(Unavailable) as refused:
            await house.engine.submit(ONE, {})
        assert refused.value.code == Code.TOO_MANY_RUNS
        assert (await house.engine.submit(ONE, {}, workspace="other")).state == "queued"
        await house.engine.cancel(run.id, workspace="default")
        assert (await house.engine.wait(run.id)).state == "cancelled"
        assert (await house.engine.submit(ONE, {})).state == "queued"


async def test_a_run_ends_though_the_answer_to_a_commit_was_lost(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The events are in the log, and the engine does not know."""

    async def fine(call: Call) -> dict[str, Any]:
        return {"text": ""}

    async with opened({"text": fine}) as house:
        append = house.store.append

        async def cut_off(row: RunRow, events: Sequence[RunFact]) -> None:
            await append(row, events)
            monkeypatch.undo()
            raise RuntimeError("cut off")

        monkeypatch.setattr(house.store, "append", cut_off)
        run = await ended(house, ONE)
        assert run.state == "succeeded"  # as the log says


async def test_a_fault_told_in_too_many_words_fails_the_node_only(opened: Open) -> None:
    async def talks(call: Call) -> dict[str, Any]:
        raise Failure("permanent", "WORDY" * 50_000)

    document = flow([node("one", "text"), node("two", "each")], ("one.text", "two.text"))
    async with opened({"text": talks}) as house:
        run = await ended(house, document)
        assert [n.state for n in run.nodes] == ["failed", "upstream_failed"]
        assert run.nodes[0].error is not None
        assert run.nodes[0].error.code.startswith("WORDY")
        assert len(run.nodes[0].error.message) < 5000


async def test_a_run_whose_log_cannot_be_read_does_not_keep_the_others_from_starting(
    opened: Open,
) -> None:
    async def fine(call: Call) -> dict[str, Any]:
        return {"text": "x"}

    async with opened({"text": forever}) as house:
        broken = await house.engine.submit(ONE, {})
        other = await house.engine.submit(ONE, {})
        sql = "UPDATE run_events SET payload = 'no JSON' WHERE run_id = ? AND seq = 2"
        await house.database.write(lambda db: db.execute(sql, (broken.id,)).rowcount)
    async with opened({"text": fine}) as house:
        assert (await house.engine.wait(other.id)).state == "succeeded"
        row = await house.store.get(broken.id)
        assert (row.state, row.reason, row.closed) == ("failed", "engine_lost", True)
        assert {lane.state for lane in await house.hub.lanes(broken.id)} == {"errored"}


async def test_a_flow_is_planned_again_when_its_agent_has_changed(
    opened: Open, tmp_path: Path
) -> None:
    async def tell(call: Call) -> dict[str, Any]:
        return {"text": call.invocation.program.version}

    async with opened({"text": tell}) as house:
        assert (await ended(house, ONE)).outputs == {"one.text": "1.0.0"}
        newer = write_agent(tmp_path / "newer", "text", "", version="2.0.0", **AGENTS["text"])
        await house.registry.add(newer)
        assert (await ended(house, ONE)).outputs == {"one.text": "2.0.0"}
