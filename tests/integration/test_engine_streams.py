"""Live stream edges, `forEach`, retries that begin a lane again: with real agent processes."""

from pathlib import Path
from typing import Any

from mentatlab.protocol.records import RecordType
from mentatlab.testing.house import House, open_house, write_agent

TEXT = {"name": "text", "type": "string"}
LINES = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}

# Sends one chunk, then ends only when the file `seen` is there: its reader makes it.
WAITING_PRODUCER = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    def say(line):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": line}), flush=True)
    say("first")
    deadline = time.monotonic() + 30
    while not os.path.exists(payload["spec"]["seen"]):
        if time.monotonic() > deadline:
            sys.exit("nobody has read the first chunk")
        time.sleep(0.01)
    say("last")
    print(json.dumps({"type": "result", "outputs": {}}))
"""
READER = """
    import json, pathlib, sys
    lines = iter(sys.stdin.readline, "")
    payload = json.loads(next(lines))
    got = []
    for line in lines:
        message = json.loads(line)
        if message["type"] == "chunk":
            got.append(message["data"])
            if "seen" in payload["spec"]:
                pathlib.Path(payload["spec"]["seen"]).touch()
    print(json.dumps({"text": " ".join(got)}))
"""
COUNTER = """
    import json, sys
    payload = json.load(sys.stdin)
    for n in range(int(payload["text"])):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}), flush=True)
    print(json.dumps({"type": "result", "outputs": {}}))
"""


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.streams", "name": "streams", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
    }


async def data_of(house: House, stream_id: str) -> list[tuple[Any, int | None]]:
    """(value, item) of every data record of an ended lane, voided ones included."""
    async with house.hub.subscribe(stream_id) as records:
        return [(r.payload["data"], r.item) async for r in records if r.type is RecordType.DATA]


async def test_a_consumer_gets_the_first_chunk_before_the_producer_has_ended(
    tmp_path: Path,
) -> None:
    agents = tmp_path / "agents"
    write_agent(agents, "producer", WAITING_PRODUCER, outputs=[LINES])
    write_agent(agents, "reader", READER, inputs=[LINES], outputs=[TEXT])
    seen = {"seen": str(tmp_path / "seen")}
    document = flow(
        [
            {"id": "produce", "type": "producer", "params": seen},
            {"id": "read", "type": "reader", "params": seen},
        ],
        [("produce.lines", "read.lines")],
    )
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(document, {})
        (stream,) = run.streams
        assert (stream.node_id, stream.pin_name, stream.state) == ("produce", "lines", "open")
        done = await house.engine.wait(run.id)
        assert done.state == "succeeded", done
        assert done.outputs == {"read.text": "first last"}
        assert done.streams[0].state == "ended"
        assert await data_of(house, stream.stream_id) == [("first", None), ("last", None)]
