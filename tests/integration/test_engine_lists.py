"""`forEach` over a list. No flow that the checker lets pass has a list source yet (that comes with
sub-flows and `core.collect` before `forEach`), so the plan is made by hand."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mentatlab.flows.flow import load_flow
from mentatlab.flows.plan import Plan, PlanEdge, PlanNode, RunInput, compile_plan
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs.events import RunCreated
from mentatlab.runs.intake import Draft
from mentatlab.runs.store import RunRow, Snapshot
from mentatlab.testing.house import House, open_house, write_agent

TEXT = {"name": "text", "type": "string"}
ALL = {"name": "all", "type": "json"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
# Doubles a number, later ones sooner; 13 never.
DOUBLE = """
    import json, sys, time
    number = int(json.load(sys.stdin)["text"])
    if number == 13:
        sys.exit("unlucky")
    time.sleep(0.2 / (number + 1))
    print(json.dumps({"text": str(number * 2)}))
"""
JOIN = """
    import json, sys
    print(json.dumps({"text": json.dumps(json.load(sys.stdin)["all"])}))
"""
FLOW = {
    "apiVersion": "v1beta1",
    "kind": "Flow",
    "meta": {"id": "demo.lists", "name": "lists", "version": "1.0.0"},
    "graph": {
        "nodes": [
            {"id": "count", "type": "counter"},
            {"id": "double", "type": "double", "forEach": "text", "maxParallel": 3},
            {"id": "join", "type": "join"},
        ],
        "edges": [
            {"from": "count.lines", "to": "double.text"},
            {"from": "double.text", "to": "join.all"},
        ],
    },
}


def as_list(house: House, **map_fields: Any) -> Plan:
    """The stream's plan, with a run input that is a list in the stream's place."""
    plan = compile_plan(load_flow(FLOW), house.registry.manifest)

    def over_list(edge: PlanEdge) -> PlanEdge:
        return replace(edge, source_is_list=True)

    def listed(node: PlanNode) -> PlanNode:
        inputs, outputs = map(over_list, node.inputs), map(over_list, node.outputs)
        return replace(node, inputs=tuple(inputs), outputs=tuple(outputs))

    source, double, join = map(listed, plan.nodes)
    pin = Pin("lines", PinType.JSON)
    source = replace(source, kind="input", manifest=None, output_pins=(pin,), input_pins=())
    nodes = (source, replace(double, **map_fields), join)
    return replace(plan, nodes=nodes, inputs=(RunInput(name="count", node="count", pin=pin),))


async def submit(house: House, plan: Plan, values: Any) -> str:
    """What `Engine.submit` does once it has a plan."""
    row = RunRow(
        id="rn_1",
        workspace="default",
        flow_id="f",
        digest=plan.digest,
        engine_version="0",
        inputs={"count": values},
        state="created",
        created_at=time.time(),
        owner="test",
    )
    created = RunCreated(at=row.created_at, flow_id="f", digest=plan.digest)
    draft = Draft(plan, row, Snapshot(plan.digest, FLOW, {}), (created,), None)
    return await house.engine.begin(draft)


def write_agents(root: Path) -> Path:
    write_agent(root, "counter", "print('{}')", outputs=[LINES])
    write_agent(root, "double", DOUBLE, inputs=[TEXT], outputs=[TEXT])
    write_agent(root, "join", JOIN, inputs=[ALL], outputs=[TEXT])
    return root


async def test_a_list_in_gives_a_list_out_in_item_order(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run_id = await submit(house, as_list(house), [str(n) for n in range(8)])
        done = await house.engine.wait(run_id)
        assert done.state == "succeeded", done.error
        assert done.outputs == {"join.text": '["0", "2", "4", "6", "8", "10", "12", "14"]'}
        assert done.streams == ()
        events = await house.runs.events(run_id, workspace="default")
        started = [e.item for e in events if e.type == "node_started" and e.item is not None]
        assert started == list(range(1, 9))  # items of a list count from 1


async def test_what_fails_leaves_its_error_or_nothing_in_the_list(tmp_path: Path) -> None:
    agents = write_agents(tmp_path / "agents")
    for policy, expected in (
        ("collect", '["2", {"item": 2, "error": {"code": "AGENT_EXIT", "message": "'),
        ("skip", '["2", "6"]'),
    ):
        async with open_house(tmp_path / policy, [agents]) as house:
            run_id = await submit(house, as_list(house, on_item_error=policy), ["1", "13", "3"])
            done = await house.engine.wait(run_id)
            assert done.state == "partial", done.error
            assert done.outputs["join.text"].startswith(expected)


async def test_what_is_no_list_fails_the_map(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        done = await house.engine.wait(await submit(house, as_list(house), {"a": 1}))
        assert done.error is not None
        assert (done.state, done.error.code) == ("failed", "FOREACH_NOT_A_LIST")


async def test_an_empty_list_gives_an_empty_list(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        done = await house.engine.wait(await submit(house, as_list(house), []))
        assert done.outputs == {"join.text": "[]"}
