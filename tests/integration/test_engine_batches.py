"""A batch through the whole engine: items of a `forEach` answered by one call of a model."""

import json
from pathlib import Path

from mentatlab.testing.house import open_house, write_agent

TEXT = {"name": "text", "type": "string"}
SIZE = {"name": "size", "type": "number"}
COUNTER = """
    import json, sys
    sys.stdin.readline()
    for n in range(8):
        print(json.dumps({"type": "chunk", "pin": "lines", "data": str(n)}))
    print(json.dumps({"type": "result", "outputs": {}}))
"""
MODEL = """
    from mentatlab.sdk import Agent, run

    class Model(Agent):
        def process_batch(self, inputs):
            return [
                ValueError("unlucky") if one["text"] == "3" else {"size": len(inputs)}
                for one in inputs
            ]

    run(Model)
"""
JOIN = """
    import json, sys
    print(json.dumps({"text": json.dumps(json.load(sys.stdin)["all"])}))
"""
FLOW = {
    "apiVersion": "v1beta1",
    "kind": "Flow",
    "meta": {"id": "demo.batches", "name": "batches", "version": "1.0.0"},
    "graph": {
        "nodes": [
            {"id": "count", "type": "counter"},
            {
                "id": "model",
                "type": "model",
                "forEach": "text",
                "maxParallel": 8,
                "onItemError": "collect",
            },
            {"id": "join", "type": "join"},
        ],
        "edges": [
            {"from": "count.lines", "to": "model.text"},
            {"from": "model.size", "to": "join.all"},
        ],
    },
}


async def test_items_share_a_call_and_fail_alone(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    lines = {"name": "lines", "type": "stream", "metadata": {"items": "string"}}
    write_agent(agents, "counter", COUNTER, outputs=[lines])
    execution = {"warm": True, "batch": {"max": 4, "delay_ms": 60_000}}
    write_agent(agents, "model", MODEL, inputs=[TEXT], outputs=[SIZE], execution=execution)
    write_agent(agents, "join", JOIN, inputs=[{"name": "all", "type": "json"}], outputs=[TEXT])
    async with open_house(tmp_path / "home", [agents]) as house:
        run = await house.engine.submit(FLOW, {})
        done = await house.engine.wait(run.id)
        assert done.state == "partial"
        (text,) = (await house.engine.outputs(run.id, workspace="default")).values()
    answers = json.loads(text)
    assert [one for one in answers if isinstance(one, int)] == [4] * 7
    (failed,) = [one for one in answers if not isinstance(one, int)]
    assert "unlucky" in failed["error"]["message"]
