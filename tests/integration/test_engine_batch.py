"""Batch mode, limits of a `forEach`, and reruns that read streams. Real agent processes."""

from pathlib import Path
from typing import Any

import pytest

from mentatlab.runs.events import NodeStarted, NodeSucceeded
from mentatlab.runs.limits import Limits
from mentatlab.testing.house import open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
COUNTER = """\
import json
for n in range(5):
    print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
print("{}")
"""
DOUBLE = """\
import json, sys
print(json.dumps({"text": json.load(sys.stdin)["text"] * 2}))
"""
JOIN = """\
import json, sys
first, *rest = map(json.loads, sys.stdin)
parts = [line["data"] for line in rest if line.get("type") == "chunk"]
print(json.dumps({"text": " ".join(parts)}))
"""
FLOW: dict[str, Any] = {
    "apiVersion": "v1beta1",
    "kind": "Flow",
    "meta": {"id": "t.batch"},
    "graph": {
        "nodes": [
            {"id": "count", "type": "counter"},
            {"id": "double", "type": "double", "forEach": "text", "maxParallel": 2},
            {"id": "join", "type": "join"},
        ],
        "edges": [
            {"from": "count.lines", "to": "double.text"},
            {"from": "double.text", "to": "join.lines"},
        ],
    },
}


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    root = tmp_path / "agents"
    write_agent(root, "counter", COUNTER, outputs=[LINES])
    write_agent(root, "double", DOUBLE, inputs=[TEXT], outputs=[TEXT])
    write_agent(root, "join", JOIN, inputs=[LINES], outputs=[TEXT])
    return root


async def test_batch_mode_gives_the_same_and_consumers_wait_for_the_end(
    tmp_path: Path, agents: Path
):
    outputs: list[Any] = []
    for streaming in (True, False):
        home = tmp_path / f"home-{streaming}"
        async with open_house(home, [agents], streaming=streaming) as house:
            run = await house.engine.submit(FLOW, {})
            ended = await house.engine.wait(run.id)
            assert ended.state == "succeeded"
            outputs.append(ended.outputs)
            facts = [fact for _, fact in await house.store.events(run.id)]
    assert outputs == [{"join.text": "00 11 22 33 44"}] * 2
    order = [
        (type(fact), fact.node)
        for fact in facts
        if isinstance(fact, NodeStarted | NodeSucceeded) and fact.item is None
    ]
    names = ("count", "double", "join")
    assert order == [(kind, n) for n in names for kind in (NodeStarted, NodeSucceeded)]


async def test_more_items_than_one_node_may_have(tmp_path: Path, agents: Path):
    async with open_house(tmp_path / "home", [agents], limits=Limits(max_items=3)) as house:
        run = await house.engine.submit(FLOW, {})
        ended = await house.engine.wait(run.id)
    assert ended.state == "failed"
    assert ended.error
    assert ended.error.code == "TOO_MANY_ITEMS"


@pytest.mark.parametrize("node", ["double", "join"])
async def test_a_rerun_reads_the_streams_of_its_origin(tmp_path: Path, agents: Path, node: str):
    async with open_house(tmp_path / "home", [agents]) as house:
        first = await house.engine.submit(FLOW, {})
        earlier = await house.engine.wait(first.id)
        again = await house.engine.rerun(first.id, workspace="default", from_node=node)
        ended = await house.engine.wait(again.id)
    assert (ended.state, ended.outputs) == ("succeeded", {"join.text": "00 11 22 33 44"})
    states = {found.id: found.state for found in ended.nodes}
    assert states["count"] == "cached"
    assert states[node] == "succeeded"
    before = {s.node_id: s.stream_id for s in earlier.streams}
    reused = next(s for s in ended.streams if s.node_id == "count")
    assert (reused.stream_id, reused.state) == (before["count"], "ended")
