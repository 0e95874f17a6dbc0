"""The engine's own cost: chains of nodes that do nothing, of warm agents, of one-shot ones.

A chain of n costs n + 1 commits; the figures "beside commits" have them taken off at the machine's
p50, as a run of the same folder measures it.
"""

import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.cores import one_core
from benchmarks.engine_peers.peers import measure
from benchmarks.table import Row, percentile
from mentatlab.protocol.events import AgentEvent
from mentatlab.runners.port import Attempt, Invocation, Outcome, Runner
from mentatlab.testing.house import House, open_house, write_agent

RUNS = 60
LONG_S = 60.0  # for a figure, at most
RATE_S = 3.0
CHAIN = 3
TEXT = [{"name": "text", "type": "string"}]
ONE_SHOT = """
    import json, sys
    print(json.dumps({"text": json.load(sys.stdin)["text"]}))
"""
WARM = """
    import json, sys
    def say(**message):
        print(json.dumps(message), flush=True)
    say(type="ready", protocol=1, concurrency=1)
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "invoke":
            say(type="result", id=message["id"], outputs={"text": message["spec"]["text"]})
"""


class NoAttempt:
    """Answers with its inputs at once."""

    def __init__(self, invocation: Invocation) -> None:
        self._outputs = dict(invocation.inputs)

    async def events(self) -> AsyncIterator[AgentEvent]:
        return
        yield

    async def send_chunk(self, pin: str, seq: int, **_: Any) -> None: ...

    async def end_input(self, pin: str, status: str = "complete") -> None: ...

    async def cancel(self, reason: str) -> None: ...

    async def outcome(self) -> Outcome:
        return Outcome(status="succeeded", outputs=self._outputs)


class NoRunner:
    @asynccontextmanager
    async def attempt(self, invocation: Invocation) -> AsyncGenerator[Attempt]:
        yield NoAttempt(invocation)

    async def aclose(self) -> None: ...


async def run() -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_agent(root / "agents", "plain", ONE_SHOT, inputs=TEXT, outputs=TEXT)
        warm = {"execution": {"warm": True}}
        write_agent(root / "agents", "warm", WARM, inputs=TEXT, outputs=TEXT, **warm)
        async with _house(root, "none", NoRunner()) as house:
            commit = percentile([await commit_ms(house) for _ in range(RUNS)], 50)
            rows.append(Row("commit in this folder", commit, "ms p50"))
            rows += await _chains(house, "no-op", "plain", commit, "<= 0.5 ms p50")
        with one_core():
            async with _house(root, "rate", NoRunner()) as house:
                rate = await measure.rate(runs(house, "plain"), RATE_S)
        name = f"no-op runs, {measure.IN_FLIGHT} in flight, one core"
        rows.append(Row(name, rate, "1/s", ">= 1,000 /s"))
        async with _house(root, "real") as house:
            rows += await _chains(house, "warm", "warm", commit, "<= 3 ms p50")
            rows += await _chains(house, "one-shot Python", "plain", commit, "")
    return rows


def _house(root: Path, name: str, runner: Runner | None = None):
    return open_house(root / name, [root / "agents"], runner=runner)


async def _chains(house: House, name: str, agent: str, commit: float, asked: str) -> list[Row]:
    run = runs(house, agent)
    one = percentile(await measure.times(run, 1, RUNS, LONG_S), 50)
    whole = percentile(await measure.times(run, CHAIN, RUNS, LONG_S), 50)
    node = (whole - one) / (CHAIN - 1)
    return [
        Row(f"{name}: a run of one node", one, "ms p50"),
        Row(f"{name}: a chain of {CHAIN}", whole, "ms p50"),
        Row(f"{name}: one more node, beside its commit", max(0.0, node - commit), "ms p50", asked),
    ]


def runs(house: House, agent: str) -> measure.Run:
    """Chains of so many nodes of this agent, to their end."""

    async def run(length: int) -> None:
        made = await house.engine.submit(chain(agent, length), {"n0": measure.WORD})
        done = await house.engine.wait(made.id)
        if done.state != "succeeded":
            raise RuntimeError(f"the run ended {done.state}: {done.error}")

    return run


def chain(agent: str, length: int) -> dict[str, Any]:
    nodes = [{"id": f"n{n}", "type": agent} for n in range(length)]
    edges = [{"from": f"n{n}.text", "to": f"n{n + 1}.text"} for n in range(length - 1)]
    return {
        "apiVersion": "v1beta1",
        "kind": "Flow",
        "meta": {"id": "bench.chain", "name": "chain", "version": "1.0.0"},
        "graph": {"nodes": nodes, "edges": edges},
    }


async def commit_ms(house: House) -> float:
    """Of one that is alone."""
    begun = time.perf_counter()
    await house.database.write(
        lambda db: db.execute("INSERT INTO agents VALUES (hex(randomblob(8)), 0)").rowcount
    )
    return (time.perf_counter() - begun) * 1000
