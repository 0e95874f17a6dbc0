"""Conditions, branches, gates and schemas in whole runs, and what passes through them."""

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from tests.support.coroutine_house import Agents, ended, flow, node, pin, standing, states
from tests.support.coroutine_runner import Call

from mentatlab.runs.limits import Limits
from mentatlab.testing.house import House


async def shout(call: Call) -> dict[str, Any]:
    return {"text": call.invocation.inputs["text"].upper()}


async def count(call: Call) -> dict[str, Any]:
    call.send("lines", *(str(n) for n in range(4)))
    return {}


async def show(call: Call) -> dict[str, Any]:
    found = call.invocation.inputs
    return {"text": ",".join(f"{name}={found[name]}" for name in sorted(found))}


async def large(call: Call) -> dict[str, Any]:
    return {"json": {"n": 7, "pad": "x" * 40_000}}


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    found = Agents(tmp_path)
    text, json_ = pin("text"), pin("json", "json")
    found.add("shout", shout, [text], [text])
    found.add("count", count, [], [pin("lines", "stream of string")])
    found.add("show", show, [pin(n, "json", required=False) for n in ("a", "b")], [text])
    found.add("pair", show, [pin(n, required=False) for n in ("a", "b")], [text])
    found.add("take", show, [pin("a", "json")], [text])
    found.add("large", large, [], [json_])
    return found


def condition(expression: str) -> dict[str, Any]:
    return {"params": {"condition": expression}}


BRANCH = flow(
    [
        node("ask", "ui.prompt"),
        node("choose", "core.if", **condition("value == 'yes'")),
        node("left", "shout"),
        node("right", "shout"),
        node("both", "pair", needs="any"),
    ],
    "ask.text > choose.value",
    "choose.then > left.text",
    "choose.else > right.text",
    "left.text > both.a",
    "right.text > both.b",
)


@pytest.mark.parametrize(
    ("said", "skipped", "shown"), [("yes", "right", "a=YES"), ("no", "left", "b=NO")]
)
async def test_a_value_passes_through_the_branch_that_is_taken(
    agents: Agents, said: str, skipped: str, shown: str
) -> None:
    async with agents.open() as house:
        run = await ended(house, BRANCH, ask=said)
    assert run.state == "succeeded", run
    assert [name for name, state in states(run).items() if state == "skipped"] == [skipped]
    assert run.outputs == {"both.text": shown}


CASE = {"name": "x", "when": "value == '1'"}


async def test_an_output_shows_only_the_branch_that_was_taken(agents: Agents) -> None:
    document = flow(
        [
            node("ask", "ui.prompt"),
            node(
                "choose", "core.switch", params={"cases": [{"name": "x", "when": "value == '1'"}]}
            ),
            node("out", "ui.console"),
            node("other", "shout"),
        ],
        "ask.text > choose.value",
        "choose.x > out.seen",
        "ask.text > other.text",
    )
    async with agents.open() as house:
        taken = await ended(house, document, ask="1")
        not_taken = await ended(house, document, ask="2")
    assert taken.outputs == {"out.seen": "1"}
    assert not_taken.outputs == {}
    assert states(not_taken)["out"] == "skipped"


async def test_a_condition_reads_a_value_that_was_stored_because_of_its_size(
    agents: Agents,
) -> None:
    document = flow(
        [
            node("make", "large"),
            node("choose", "core.if", **condition("value.n == 7")),
            node("good", "show"),
        ],
        "make.json > choose.value",
        "choose.then > good.a",
    )
    async with agents.open() as house:
        run = await ended(house, document)
    assert (run.state, states(run)["good"]) == ("succeeded", "succeeded"), run


async def test_a_collected_stream_passes_through_and_is_mapped_as_a_list(agents: Agents) -> None:
    document = flow(
        [
            node("make", "count"),
            node("all", "core.collect"),
            node("each", "shout", forEach="text"),
            node("choose", "core.if", **condition("value.size() == 4")),
            node("after", "show"),
        ],
        "make.lines > all.in",
        "all.out > each.text",
        "all.out > choose.value",
        "choose.then > after.a",
    )
    async with agents.open() as house:
        run = await ended(house, document)
    assert run.state == "succeeded", run
    assert run.outputs == {
        "each.text": ["0", "1", "2", "3"],
        "after.text": "a=['0', '1', '2', '3']",
    }


@pytest.mark.parametrize("widget", [True, False])
async def test_a_stream_behind_a_branch_is_shown_whole_and_only_there(
    agents: Agents, widget: bool
) -> None:
    shown = [node("yes", "ui.console"), node("no", "ui.console")] if widget else []
    edges = ["choose.then > yes.seen", "choose.else > no.seen"] if widget else []
    document = flow(
        [
            node("make", "count"),
            node("all", "core.collect"),
            node("choose", "core.if", **condition("value.size() == 4")),
            *shown,
        ],
        "make.lines > all.in",
        "all.out > choose.value",
        *edges,
    )
    async with agents.open() as house:
        run = await ended(house, document)
        found = await house.engine.outputs(run.id, workspace="default")
    assert run.state == "succeeded", run
    assert found == {"yes.seen" if widget else "choose.then": ["0", "1", "2", "3"]}


async def test_a_source_that_gives_too_many_items_fails_its_node(agents: Agents) -> None:
    document = flow(
        [node("make", "count"), node("each", "shout", forEach="text")], "make.lines > each.text"
    )
    async with agents.open(limits=Limits(max_items=3)) as house:
        run = await ended(house, document)
    (failed,) = [n for n in run.nodes if n.id == "each"]
    assert failed.error is not None
    assert (run.state, failed.error.code) == ("failed", "TOO_MANY_ITEMS")


async def test_a_node_and_items_are_skipped_by_their_condition(agents: Agents) -> None:
    document = flow(
        [
            node("ask", "ui.prompt"),
            node("never", "shout", when="text == 'other'"),
            node("make", "count"),
            node("each", "shout", forEach="text", when="item != '1' && item != '3'"),
        ],
        "ask.text > never.text",
        "make.lines > each.text",
    )
    async with agents.open() as house:
        run = await ended(house, document, ask="this")
        lane = next(s.stream_id for s in run.streams if s.node_id == "each")
        assert await standing(house, lane) == [("0", 2), ("2", 4)]
    assert (run.state, states(run)["never"]) == ("succeeded", "skipped"), run


async def test_a_condition_that_cannot_be_judged_fails_its_node(agents: Agents) -> None:
    document = flow(
        [node("ask", "ui.prompt"), node("x", "shout", when="int(text) > 1")], "ask.text > x.text"
    )
    async with agents.open() as house:
        run = await ended(house, document, ask="no number")
    (failed,) = [n for n in run.nodes if n.state == "failed"]
    assert failed.error is not None
    assert (run.state, failed.error.code) == ("failed", "EXPRESSION_ERROR")


async def test_a_schema_lets_through_what_fits(agents: Agents) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"maximum": 7}}}
    document = flow(
        [
            node("make", "large"),
            node("check", "core.validate", params={"schema": schema}),
            node("after", "take"),
        ],
        "make.json > check.value",
        "check.value > after.a",
    )
    async with agents.open() as house:
        good = await ended(house, document)
        schema["properties"] = {"n": {"maximum": 6}}
        bad = await ended(house, document)
    assert good.state == "succeeded", good
    assert bad.error is not None
    assert (bad.state, bad.error.code) == ("failed", "SCHEMA_MISMATCH")
    assert states(bad)["after"] == "upstream_failed"


GATE = flow(
    [
        node("ask", "ui.prompt"),
        node("gate", "core.gate", params={"message": "May it?", "timeout_s": 3600}),
        node("after", "shout"),
    ],
    "ask.text > gate.value",
    "gate.approved > after.text",
)


async def waiting(house: House, run_id: str, name: str) -> None:
    """Until the gate is open."""
    async with asyncio.timeout(30), house.hub.subscribe(run_id) as records:
        async for record in records:
            if record.payload.get("data", {}).get("type") == "gate_opened":
                assert record.payload["data"]["node_id"] == name
                return


@pytest.mark.parametrize(("approved", "state"), [(True, "succeeded"), (False, "failed")])
async def test_a_gate_waits_for_its_decision_also_over_a_restart(
    agents: Agents, approved: bool, state: str
) -> None:
    async with agents.open() as house:
        run = await house.engine.submit(GATE, {"ask": "x"})
        await waiting(house, run.id, "gate")
    async with agents.open() as house:
        await house.engine.decide_gate(
            run.id, "gate", workspace="default", approved=approved, by="me"
        )
        done = await house.engine.wait(run.id)
    assert done.state == state, done
    assert done.outputs == ({"after.text": "X"} if approved else {})


async def test_a_gate_whose_time_is_over_rejects(agents: Agents) -> None:
    GATE["graph"]["nodes"][1]["params"]["timeout_s"] = 0.01
    async with agents.open() as house:
        run = await ended(house, GATE, ask="x")
    assert run.error is not None
    assert (run.state, run.error.code) == ("failed", "GATE_REJECTED")


async def test_a_paused_run_starts_nothing_until_it_goes_on(agents: Agents) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def hold(call: Call) -> dict[str, Any]:
        begun.set()
        await go.wait()
        return {"text": "held"}

    agents.add("hold", hold, [], [pin("text")])
    document = flow([node("first", "hold"), node("then", "shout")], "first.text > then.text")
    runner = agents.runner()
    async with agents.open(runner) as house:
        run = await house.engine.submit(document, {})
        await begun.wait()
        await house.engine.pause(run.id, workspace="default")
        go.set()
        async with asyncio.timeout(30), house.hub.subscribe(run.id) as records:
            async for record in records:
                if record.payload.get("data", {}).get("type") == "node_succeeded":
                    break
        assert [name for name, _, _ in runner.begun()] == ["first"]
        assert (await house.engine.get(run.id, workspace="default")).state == "paused"
        await house.engine.resume(run.id, workspace="default")
        done = await house.engine.wait(run.id)
    assert (done.state, done.outputs) == ("succeeded", {"then.text": "HELD"})


async def test_chunks_do_not_tell_secrets(agents: Agents) -> None:
    async def leak(call: Call) -> dict[str, Any]:
        call.send("lines", "it is hunter-22", "fine")
        return {}

    async def secrets_for(workspace: str, names: Collection[str]) -> dict[str, str]:
        return dict.fromkeys(names, "hunter-22")

    agents.add("leak", leak, [], [pin("lines", "stream of string")])
    document = flow([node("x", "leak")], runConfig={"secrets": ["TOKEN"]})
    async with agents.open(secrets_for=secrets_for) as house:
        run = await ended(house, document)
        (lane,) = (s.stream_id for s in run.streams)
        assert await standing(house, lane) == [("it is ***", None), ("fine", None)]
