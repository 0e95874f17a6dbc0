"""`longRunning`: one supervised process for a workspace and agent."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.agent_processes import Bench, alive, eventually, logs, perform

from mentatlab.protocol.agent import Warm
from mentatlab.protocol.errors import Code
from mentatlab.runners import LocalRunner, RunnerSettings
from mentatlab.runners.services import delay_after

SERVICE = """
    import asyncio, os, sys
    from mentatlab.sdk import Agent, run

    with open("starts", "a") as file:
        file.write(f"{os.getpid()}\\n")

    class Service(Agent):
        concurrency = 8

        async def process(self, inputs):
            await asyncio.sleep(0.01)
            return {"text": str(os.getpid())}

    run(Service)
    with open("drained", "w"):
        pass
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(RunnerSettings(grace_s=5.0, max_workers_per_agent=4))
    yield runner
    await runner.aclose()


def starts(bench: Bench) -> list[int]:
    file = bench.folder / "starts"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


async def test_one_process_for_all_restarted_when_it_ends(
    bench: Bench, runner: LocalRunner
) -> None:
    command = bench.script(SERVICE)
    call = bench.invocation(command, warm=Warm(service=True, idle_ttl_s=0.01))
    ended = await asyncio.gather(*[perform(runner, call) for _ in range(20)])
    (pid,) = {int(outcome.outputs["text"]) for outcome, _ in ended}
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: len(starts(bench)) == 2)  # nobody has asked for it
    outcome, _ = await perform(runner, call)
    assert int(outcome.outputs["text"]) == starts(bench)[1]
    await runner.aclose()
    assert not alive(starts(bench)[1])
    assert len(starts(bench)) == 2


async def test_one_that_never_starts_fails_who_asks(bench: Bench, runner: LocalRunner) -> None:
    call = bench.invocation("raise SystemExit(1)", warm=Warm(service=True))
    for _ in range(2):
        outcome, _ = await perform(runner, call)
        assert outcome.code == Code.AGENT_START_FAILED


async def test_an_old_one_without_the_protocol_runs_one_shot(
    bench: Bench, runner: LocalRunner
) -> None:
    source = """
        import json, sys
        print(json.dumps({"text": json.load(sys.stdin)["text"]}))
    """
    warm = Warm(service=True, startup_timeout_s=0.3)
    outcome, told = await perform(
        runner, bench.invocation(source, warm=warm, inputs={"text": "hi"})
    )
    assert outcome.outputs == {"text": "hi"}
    assert "it runs as a process per attempt" in logs(told)


def test_restarts_are_at_once_then_ever_later() -> None:
    assert [delay_after(n) for n in (1, 2, 3, 4)] == [0, 0.5, 1, 2]
    assert delay_after(1000) == 60
