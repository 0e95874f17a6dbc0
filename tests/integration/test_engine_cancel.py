"""A cancel reaches agents through their streams too, before what was still to be read."""

import asyncio
from pathlib import Path
from typing import Any

from mentatlab.testing.house import open_house, write_agent

LINES = {"name": "lines", "type": "stream", "metadata": {"items": "number"}}

PRODUCER = """
    import json, sys, time
    json.load(sys.stdin)
    for n in range(100):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": n}), flush=True)
    time.sleep(60)
"""
# Takes one element, then nothing until SIGTERM; then writes down the last that it is told.
CONSUMER = """
    import json, pathlib, signal, sys, time
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    lines = iter(sys.stdin.readline, "")
    spec = json.loads(next(lines))["spec"]
    next(lines)
    pathlib.Path(spec["begun"]).touch()
    while not stopped:
        time.sleep(0.01)
    told = [json.loads(line) for line in lines]
    note = pathlib.Path(spec["told"] + ".part")
    note.write_text(json.dumps(told[-1]))
    note.rename(spec["told"])
"""


async def test_an_agent_that_is_cancelled_is_told_at_the_end_of_its_input(tmp_path: Path) -> None:
    agents, begun, told = tmp_path / "agents", tmp_path / "begun", tmp_path / "told"
    write_agent(agents, "make", PRODUCER, outputs=[LINES])
    write_agent(agents, "take", CONSUMER, inputs=[LINES])
    params = {"begun": str(begun), "told": str(told)}
    document: dict[str, Any] = {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "t.cancel"},
        "graph": {
            "nodes": [
                {"id": "make", "type": "make"},
                {"id": "take", "type": "take", "params": params},
            ],
            "edges": [{"from": "make.lines", "to": "take.lines"}],
        },
    }
    async with open_house(tmp_path / "home", [agents]) as house, asyncio.timeout(60):
        run = await house.engine.submit(document, {})
        while not begun.exists():
            await asyncio.sleep(0.01)
        await house.engine.cancel(run.id, workspace="default")
        done = await house.engine.wait(run.id)
    assert done.state == "cancelled"
    assert '"cancelled"' in told.read_text()
