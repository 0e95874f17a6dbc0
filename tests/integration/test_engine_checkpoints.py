"""`kill -9` of the engine's process between two checkpoints: agents go on from the last one that
counts, and consumers begin again where their producer does."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from mentatlab.testing.house import House, open_house, write_agent

LINES = {"name": "lines", "type": "stream", "metadata": {"items": "number"}}
TEXT = {"name": "text", "type": "string"}

# Sends 1..6, with a checkpoint after each; tells where it began; its first attempt hangs after 3.
COUNTER = """
    import json, os, sys, time
    payload = json.load(sys.stdin)
    context, spec = payload["context"], payload["spec"]
    done = context["resume_state"] or 0
    with open(spec["begun"], "a") as file:
        file.write(f"count {done}\\n")
    def say(**message):
        print(json.dumps(message), flush=True)
    for n in range(done + 1, 7):
        say(type="chunk", pin="lines", data=n)
        if n in spec["saves"]:
            say(type="checkpoint", state=n)
        if n == 3 and context["attempt"] == 1:
            time.sleep(60)
    say(type="result", outputs={})
"""
# Sums up what it is given; a checkpoint after each element.
SUM = """
    import json, sys
    lines = iter(sys.stdin.readline, "")
    payload = json.loads(next(lines))
    total = payload["context"]["resume_state"] or 0
    with open(payload["spec"]["begun"], "a") as file:
        file.write(f"sum {total}\\n")
    for line in lines:
        message = json.loads(line)
        if message["type"] == "chunk":
            total += message["data"]
            offsets = {"lines": message["seq"]}
            saved = {"type": "checkpoint", "state": total, "offsets": offsets}
            print(json.dumps(saved), flush=True)
    print(json.dumps({"text": str(total)}))
"""
HOST = """
import asyncio, json, sys
from pathlib import Path
from mentatlab.testing.house import open_house

async def main(home, agents, document):
    async with open_house(Path(home), [Path(agents)]) as house:
        run = await house.engine.submit(json.loads(document), {})
        print(run.id, flush=True)
        await house.engine.wait(run.id)

asyncio.run(main(*sys.argv[1:]))
"""


def flow(**params: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "demo.checkpoints"},
        "graph": {
            "nodes": [
                {"id": "count", "type": "counter", "params": params},
                {"id": "sum", "type": "sum", "params": params},
            ],
            "edges": [{"from": "count.lines", "to": "sum.lines"}],
        },
    }


def stored(home: Path) -> dict[str, Any]:
    """The state of the last checkpoint by node, as the database has it."""
    with closing(sqlite3.connect(f"file:{home / 'runs.db'}?mode=ro", uri=True)) as db:
        rows = [json.loads(body) for (body,) in db.execute("SELECT body FROM checkpoints")]
    return {row["node"]: row["state"] for row in rows}


async def killed_once(home: Path, agents: Path, document: dict[str, Any], wanted: Any) -> str:
    """The run's id, when its host was killed as these checkpoints were in the store."""
    host = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", HOST, str(home), str(agents), json.dumps(document)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert host.stdout is not None
    run_id = (await host.stdout.readline()).decode().strip()
    async with asyncio.timeout(30):
        while stored(home) != wanted:
            await asyncio.sleep(0.02)
    os.kill(host.pid, signal.SIGKILL)
    await host.wait()
    return run_id


async def total(house: House, run_id: str) -> str:
    done = await house.engine.wait(run_id)
    assert done.state == "succeeded", done
    return done.outputs["sum.text"]


def prepared(tmp_path: Path) -> tuple[Path, Path]:
    agents = tmp_path / "agents"
    write_agent(agents, "counter", COUNTER, outputs=[LINES])
    write_agent(agents, "sum", SUM, inputs=[LINES], outputs=[TEXT])
    return agents, tmp_path / "begun"


async def test_both_go_on_from_their_last_checkpoints(tmp_path: Path) -> None:
    agents, begun = prepared(tmp_path)
    document = flow(begun=str(begun), saves=[1, 2, 3])
    wanted = {"count": 3, "sum": 6}
    run_id = await killed_once(tmp_path / "home", agents, document, wanted)
    async with open_house(tmp_path / "home", [agents]) as house:
        assert await total(house, run_id) == "21"
    assert sorted(begun.read_text().splitlines()) == ["count 0", "count 3", "sum 0", "sum 6"]
    assert stored(tmp_path / "home") == {}


async def test_a_consumer_ahead_of_its_producers_checkpoint_begins_again(tmp_path: Path) -> None:
    """It had read 3, which its producer sends anew."""
    agents, begun = prepared(tmp_path)
    document = flow(begun=str(begun), saves=[2])
    wanted = {"count": 2, "sum": 6}
    run_id = await killed_once(tmp_path / "home", agents, document, wanted)
    async with open_house(tmp_path / "home", [agents]) as house:
        assert await total(house, run_id) == "21"
    begins = begun.read_text().splitlines()
    assert [line for line in begins if line.startswith("count")] == ["count 0", "count 2"]
    assert begins[-1] == "sum 0" or begins[-2] == "sum 0"
