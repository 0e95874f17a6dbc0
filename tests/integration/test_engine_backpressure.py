"""Back-pressure from node to node with real agents, and the graphs that it could stop for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mentatlab.testing.house import House, open_house, write_agent

COUNT = 2000
PAD = "x" * 1024  # 2 MiB on each lane: twice the window

BOTH = """
    import json, sys
    json.load(sys.stdin)
    for n in range(COUNT):
        for pin in PINS:
            chunk = {"type": "chunk", "pin": pin, "data": [n, "PAD"]}
            sys.stdout.write(json.dumps(chunk) + "\\n")
    print(json.dumps({"type": "result", "outputs": {"total": COUNT} if TOTAL else {}}))
"""
# Reads all of x before it takes the first of y, as the SDK does it for an agent's author.
ONE_AFTER_THE_OTHER = """
    import mentatlab.sdk as sdk

    class Agent(sdk.StreamingAgent):
        async def process(self, inputs):
            x = [value[0] async for value in inputs["x"]]
            y = [value[0] async for value in inputs["y"]]
            return {"text": f"{len(x)} {len(y)} {x == y == list(range(len(x)))}"}

    sdk.run(Agent())
"""
WITH_TOTAL = """
    import json, sys
    lines = iter(sys.stdin.readline, "")
    payload = json.loads(next(lines))
    got = sum(json.loads(line)["type"] == "chunk" for line in lines)
    print(json.dumps({"text": f"{got} of {payload['total']}"}))
"""
# Takes its first element and then none until the file is there.
PATIENT = """
    import json, pathlib, sys, time
    lines = iter(sys.stdin.readline, "")
    payload = json.loads(next(lines))
    got = json.loads(next(lines))["type"] == "chunk"
    pathlib.Path(payload["spec"]["begun"]).touch()
    while not pathlib.Path(payload["spec"]["go"]).exists():
        time.sleep(0.01)
    got += sum(json.loads(line)["type"] == "chunk" for line in lines)
    print(json.dumps({"text": str(got)}))
"""


def producer(root: Path, agent_id: str, *pins: str, total: bool = False) -> Path:
    program = BOTH.replace("COUNT", str(COUNT)).replace("PINS", repr(pins)).replace("PAD", PAD)
    outputs: list[dict[str, Any]] = [{"name": pin, "type": "stream"} for pin in pins]
    outputs += [{"name": "total", "type": "number"}] if total else []
    return write_agent(root, agent_id, program.replace("TOTAL", str(total)), outputs=outputs)


def consumer(
    root: Path, agent_id: str, program: str, *pins: tuple[str, str], **manifest: Any
) -> Path:
    inputs = [{"name": name, "type": kind} for name, kind in pins]
    outputs = [{"name": "text", "type": "string"}]
    return write_agent(root, agent_id, program, inputs=inputs, outputs=outputs, **manifest)


def flow(*edges: tuple[str, str], **params: Any) -> dict[str, Any]:
    nodes = [
        {"id": "a", "type": "test.a"},
        {"id": "d", "type": "test.d", "params": params},
        {"id": "out", "type": "ui.console"},
    ]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.pressure", "name": "pressure", "version": "1.0.0"},
        "graph": {
            "nodes": nodes,
            "edges": [{"from": a, "to": b} for a, b in (*edges, ("d.text", "out.text"))],
        },
    }


async def result(house: House, document: dict[str, Any]) -> str:
    view = await house.engine.submit(document, {}, workspace="default")
    ended = await house.engine.wait(view.id)
    assert ended.state == "succeeded", ended
    (text,) = (await house.engine.outputs(view.id, workspace="default")).values()
    return text


async def test_a_diamond_that_reads_one_input_fully_before_the_other(tmp_path: Path) -> None:
    """Warm: each of its inputs has a window of its own, so y fills up while x is read."""
    pins, warm = (("x", "stream"), ("y", "stream")), {"execution": {"warm": True}}
    agents = [
        producer(tmp_path, "test.a", "x", "y"),
        consumer(tmp_path, "test.d", ONE_AFTER_THE_OTHER, *pins, **warm),
    ]
    async with open_house(tmp_path / "home", agents) as house:
        found = await result(house, flow(("a.x", "d.x"), ("a.y", "d.y")))
    assert found == f"{COUNT} {COUNT} True"


async def test_a_consumer_that_also_needs_a_value_from_the_end(tmp_path: Path) -> None:
    """It cannot begin before its producer has ended: nobody holds that one back."""
    agents = [
        producer(tmp_path, "test.a", "x", total=True),
        consumer(tmp_path, "test.d", WITH_TOTAL, ("x", "stream"), ("total", "number")),
    ]
    async with open_house(tmp_path / "home", agents) as house:
        found = await result(house, flow(("a.x", "d.x"), ("a.total", "d.total")))
    assert found == f"{COUNT} of {COUNT}"


class HeldBack(NamedTuple):
    house: House
    run_id: str
    stream_id: str
    go: Path
    """When it is there, the consumer takes the rest."""


@asynccontextmanager
async def held_back(root: Path) -> AsyncIterator[HeldBack]:
    """A run whose producer waits for a consumer that has taken one element."""
    begun, go = root / "begun", root / "go"
    agents = [
        producer(root, "test.a", "x"),
        consumer(root, "test.d", PATIENT, ("x", "stream")),
    ]
    document = flow(("a.x", "d.x"), begun=str(begun), go=str(go))
    async with open_house(root / "home", agents) as house:
        run = await house.engine.submit(document, {}, workspace="default")
        stream_id = next(s.stream_id for s in run.streams if s.pin_name == "x")
        async with asyncio.timeout(30):
            while not (begun.exists() and stream_id in house.hub.statistics().held_back):
                await asyncio.sleep(0.01)
        yield HeldBack(house, run.id, stream_id, go)


async def test_a_slow_consumer_holds_its_producer_back(tmp_path: Path) -> None:
    """What waits is the window and what pipes and batches hold, not the whole stream."""
    async with held_back(tmp_path) as run:
        assert (await run.house.hub.lane(run.stream_id)).head < COUNT // 2
        run.go.touch()
        ended = await run.house.engine.wait(run.run_id)
        outputs = await run.house.engine.outputs(run.run_id, workspace="default")
    assert ended.state == "succeeded"
    assert list(outputs.values()) == [str(COUNT)]


async def test_a_held_back_run_can_be_cancelled(tmp_path: Path) -> None:
    async with held_back(tmp_path) as run:
        await run.house.engine.cancel(run.run_id, workspace="default")
        assert (await run.house.engine.wait(run.run_id)).state == "cancelled"
