"""Random flows, random faults, servers that stop in between: every run ends as a model says that
knows nothing of the engine. Agents are coroutines; engine, databases and lanes are the real ones.
"""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from tests.support.coroutine_house import Agents, flow, node, pin
from tests.support.coroutine_runner import Call, Failure

from mentatlab.protocol.errors import Conflict
from mentatlab.runs.views import RunView
from mentatlab.testing.house import House

Fault = Literal["none", "flaky", "permanent", "transient", "infra", "oom"]
FAULTS: list[Fault] = ["none"] * 12 + ["flaky"] * 4 + ["permanent", "transient", "infra", "oom"]
IN_FLIGHT = 32
STOP_EVERY = 400  # runs; the server stops in the middle of some, and another goes on


class Case(NamedTuple):
    """`faults` of each node, `sources` the nodes that feed it, `loose`: it can do without them;
    `cancel` right after the start."""

    faults: list[Fault]
    sources: list[list[int]]
    loose: list[bool]
    cancel: bool

    @property
    def document(self) -> dict[str, Any]:
        agents = [
            "loose" if loose else f"strict{len(sources)}"
            for loose, sources in zip(self.loose, self.sources, strict=True)
        ]
        nodes = [
            node(f"n{i}", agent, params={"fault": fault}, retry={"base_s": 0.001})
            for i, (agent, fault) in enumerate(zip(agents, self.faults, strict=True))
        ]
        wires = [
            f"n{source}.text > n{i}.{pin_name}"
            for i, sources in enumerate(self.sources)
            for source, pin_name in zip(sources, "ab", strict=False)
        ]
        return flow(nodes, *wires)

    def states(self) -> list[str]:
        """A node that can start ends by its own fault; all classes of failure but the flaky one
        are final in the end."""
        found: list[str] = []
        for fault, sources, loose in zip(self.faults, self.sources, self.loose, strict=True):
            if not loose and any(found[source] != "succeeded" for source in sources):
                found.append("upstream_failed")
            else:
                found.append("succeeded" if fault in ("none", "flaky") else "failed")
        return found

    def end(self) -> str:
        """Nodes that nobody takes from are the results: the run needs them all."""
        bad = {i for i, state in enumerate(self.states()) if state != "succeeded"}
        taken = {source for sources in self.sources for source in sources}
        if bad - taken:
            return "failed"
        return "partial" if bad else "succeeded"


def drawn(chance: random.Random) -> Case:
    count = chance.randint(1, 5)
    faults = [chance.choice(FAULTS) for _ in range(count)]
    sources = [chance.sample(range(i), chance.randint(0, min(2, i))) for i in range(count)]
    loose = [chance.random() < 0.3 for _ in range(count)]
    return Case(faults, sources, loose, cancel=chance.random() < 0.05)


async def step(call: Call) -> dict[str, Any]:
    match call.invocation.inputs["fault"]:
        case "none":
            return {"text": "x"}
        case "flaky" if call.attempt > 2:
            return {"text": "x"}
        case "flaky":
            raise Failure("transient")
        case class_:
            raise Failure(class_)


async def over(agents: Agents, cases: list[Case]) -> None:
    """Every server takes its share, and goes on with what the one before it has left."""
    left: dict[str, Case] = {}
    for begin in range(0, len(cases), STOP_EVERY):
        async with agents.open() as house:
            for run_id, case in left.items():
                fits(case, await house.engine.wait(run_id))
            left = await some(house, cases[begin : begin + STOP_EVERY])
    async with agents.open() as house:
        for run_id, case in left.items():
            fits(case, await house.engine.wait(run_id))


async def some(house: House, cases: list[Case]) -> dict[str, Case]:
    """All but the last ones to their end; those are left in the middle."""
    waiting, going = iter(cases[:-IN_FLIGHT]), dict[str, Case]()

    async def worker() -> None:
        for case in waiting:
            made = await begun(house, case)
            fits(case, await house.engine.wait(made))

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
    for case in cases[-IN_FLIGHT:]:
        going[await begun(house, case)] = case
    return going


async def begun(house: House, case: Case) -> str:
    run = await house.engine.submit(case.document, {})
    if case.cancel:
        with contextlib.suppress(Conflict):  # it has ended
            await house.engine.cancel(run.id, workspace="default")
    return run.id


def fits(case: Case, run: RunView) -> None:
    if case.cancel and run.state == "cancelled":
        return
    found = {n.id: n.state for n in run.nodes}
    assert [found[f"n{i}"] for i in range(len(found))] == case.states(), case
    assert run.state == case.end(), case


@pytest.fixture
def agents() -> Iterator[Agents]:
    """Where the system has a disk of memory, there: what is shown is what the engine decides."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield agents_below(Path(folder))


def agents_below(root: Path) -> Agents:
    made = Agents(root)
    for count in range(3):
        made.add(f"strict{count}", step, [*map(pin, "ab"[:count]), pin("fault")], [pin("text")])
    texts = [pin(name, required=False) for name in "ab"]
    made.add("loose", step, [*texts, pin("fault")], [pin("text")])
    return made


async def test_runs_with_random_faults_end_as_a_model_says(agents: Agents) -> None:
    chance = random.Random(1)
    await over(agents, [drawn(chance) for _ in range(200)])


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_runs_with_random_faults(agents: Agents) -> None:
    chance = random.Random(2)
    await over(agents, [drawn(chance) for _ in range(10_000)])
