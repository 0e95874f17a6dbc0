"""Value edges with real agent processes: the classic echo agent, chains, inputs, outputs, errors."""

from pathlib import Path
from typing import Any

import pytest

from mentatlab.protocol.errors import Conflict, NotFound, ValidationFailed
from mentatlab.testing.house import open_house, write_agent

CLASSIC_ECHO = """
    import json, sys
    payload = json.load(sys.stdin)
    print(json.dumps({"text": payload["text"]}))
"""
SHOUT = """
    import json, sys
    payload = json.load(sys.stdin)
    print(json.dumps({"loud": payload["text"].upper() + payload["spec"].get("mark", "")}))
"""
TEXT = [{"name": "text", "type": "string"}]


def write_agents(root: Path) -> Path:
    write_agent(root, "echo", CLASSIC_ECHO, inputs=TEXT, outputs=TEXT)
    write_agent(root, "shout", SHOUT, inputs=TEXT, outputs=[{"name": "loud", "type": "string"}])
    return root


def flow(nodes: list[dict[str, Any]], edges: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.test", "name": "test", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": [{"from": a, "to": b} for a, b in edges]},
        **more,
    }


ECHO_THEN_SHOUT = flow(
    [
        {"id": "ask", "type": "ui.prompt"},
        {"id": "echo", "type": "echo"},
        {"id": "shout", "type": "shout", "params": {"mark": "!"}},
        {"id": "show", "type": "ui.console"},
    ],
    [("ask.text", "echo.text"), ("echo.text", "shout.text"), ("shout.loud", "show.text")],
)


async def test_the_classic_echo_agents_output_reaches_the_next_node(tmp_path: Path) -> None:
    async with open_house(tmp_path / "home", [write_agents(tmp_path / "agents")]) as house:
        run = await house.engine.submit(ECHO_THEN_SHOUT, {"ask": "hello"}, workspace="w")
        assert run.state == "running"
        done = await house.engine.wait(run.id)
        assert (done.state, done.reason) == ("succeeded", "")
        assert await house.engine.outputs(run.id, workspace="w") == {"show.text": "HELLO!"}
        assert [(n.id, n.state, n.attempt) for n in done.nodes] == [
            ("ask", "succeeded", 0),
            ("echo", "succeeded", 1),
            ("shout", "succeeded", 1),
            ("show", "succeeded", 0),
        ]
