"""What a consumer is given when the stream that feeds it ends badly, and what a map says that it
has given: with real agent processes."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mentatlab.protocol.records import Draft, Producer
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Appended
from mentatlab.testing.house import open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}

BREAKS_OFF = """
    import json, sys
    print(json.dumps({"type": "chunk", "pin": "lines", "data": "0"}), flush=True)
    sys.exit("no more")
"""
COUNTER = """
    import json
    for n in range(6):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
    print(json.dumps({"type": "result", "outputs": {}}))
"""
ECHO = """
    import json, sys
    print(json.dumps({"text": json.loads(sys.stdin.readline())["text"]}))
"""
# What it was given: the names of its value pins, and the chunks of its stream pins.
GIVEN = """
    import json, sys
    lines = iter(sys.stdin.readline, "")
    pins = sorted(json.loads(next(lines)).keys() - {"spec", "context"})
    chunks = [m["data"] for m in map(json.loads, lines) if m["type"] == "chunk"]
    print(json.dumps({"text": json.dumps([pins, chunks])}))
"""


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.broken", "name": "broken", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


async def test_an_optional_input_whose_stream_broke_off_stays_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agents = tmp_path / "agents"
    optional = [
        {"name": "list", "type": "json", "required": False},
        {"name": "text", "type": "string", "required": False},
        {**LINES, "name": "stream", "required": False},
    ]
    write_agent(agents, "breaks", BREAKS_OFF, outputs=[LINES, TEXT])
    write_agent(agents, "given", GIVEN, inputs=optional, outputs=[TEXT])
    document = flow(
        [
            {"id": "produce", "type": "breaks"},
            {"id": "look", "type": "given"},
            {"id": "result", "type": "ui.console"},
        ],
        [
            ("produce.lines", "look.list"),
            ("produce.text", "look.text"),
            ("produce.text", "look.stream"),
            ("look.text", "result.given"),
        ],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.wait((await house.engine.submit(document, {})).id)
        assert run.state == "partial", run
        assert {n.id: n.state for n in run.nodes} == {
            "produce": "failed",
            "look": "succeeded",
            "result": "succeeded",
        }
        assert run.outputs == {"result.given": '[["stream"], []]'}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_map_ends_when_its_last_record_is_in_the_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, outputs=[LINES])
    write_agent(agents, "echo", ECHO, inputs=[TEXT], outputs=[TEXT])
    publish = StreamingConnectionManager.publish

    async def slow(
        hub: StreamingConnectionManager,
        stream_id: str,
        drafts: Sequence[Draft],
        *,
        producer: Producer | None = None,
    ) -> Appended:
        if drafts[0].item is not None:
            for _ in range(1000):  # turns of the loop: more than the map's end takes
                await asyncio.sleep(0)
        return await publish(hub, stream_id, drafts, producer=producer)

    monkeypatch.setattr(StreamingConnectionManager, "publish", slow)
    document = flow(
        [
            {"id": "count", "type": "counter"},
            {"id": "echo", "type": "echo", "forEach": "text"},
        ],
        [("count.lines", "echo.text")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.wait((await house.engine.submit(document, {})).id)
        assert run.state == "succeeded", run
        assert run.outputs["echo.text"]["chunks"] == 6
        lanes = [s.stream_id for s in run.streams if s.node_id == "echo" and s.pin_name == "text"]
        assert (await house.hub.lane(lanes[0])).chunks == 6
