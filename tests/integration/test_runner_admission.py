"""Who may start when, over real processes: cores, memory, `max_concurrent`, the pool's memory."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from tests.support.agent_processes import Bench, alive, eventually, perform

from mentatlab.protocol.agent import Resources, Warm
from mentatlab.protocol.errors import Code
from mentatlab.runners import Attempt, LocalRunner, Machine, RunnerSettings

GIB = 1 << 30
MACHINE = Machine(cpus=2, memory=4 * GIB)
WAITS = """
    import os, sys, time
    sys.stdout.write('{"type": "log", "message": "up"}\\n')
    sys.stdout.flush()
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    print('{"text": "done"}')
"""
WARM_AGENT = """
    import os
    from mentatlab.sdk import Agent, run

    class Test(Agent):
        def process(self, inputs):
            return {"text": str(os.getpid())}

    run(Test)
"""
WHOLE = {"resources": Resources(cpu=2), "origins": {"cpu": "manifest"}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(RunnerSettings(grace_s=1.0, machine=MACHINE))
    yield runner
    await runner.aclose()


class Stage:
    """Attempts that run until `release`."""

    def __init__(self, runner: LocalRunner, bench: Bench, stack: AsyncExitStack) -> None:
        self._runner, self._bench, self._stack = runner, bench, stack
        self._command = bench.script(WAITS)
        self.gate = bench.folder / "gate"

    async def begin(self, **more: Any) -> Attempt:
        call = self._bench.invocation((*self._command, str(self.gate)), **more)
        return await self._stack.enter_async_context(self._runner.attempt(call))

    async def runs(self, attempt: Attempt) -> None:
        async with asyncio.timeout(30):
            async for _ in attempt.events():
                return
        raise AssertionError("it ended without a word")

    def release(self) -> None:
        self.gate.touch()


@pytest.fixture
async def stage(runner: LocalRunner, bench: Bench) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(runner, bench, stack)


async def queued(attempt: Attempt) -> asyncio.Task[None]:
    """Reads on; the agent says something only when it has begun."""

    async def first_word() -> None:
        async for _ in attempt.events():
            return

    task = asyncio.create_task(first_word())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_what_does_not_fit_waits_its_turn(stage: Stage) -> None:
    first = await stage.begin(run_id="r1", **WHOLE)
    await stage.runs(first)
    second = await stage.begin(run_id="r2", **WHOLE)
    waiting = await queued(second)
    small = await stage.begin(run_id="r3", resources=Resources(), origins={})
    behind = await queued(small)  # nobody overtakes whom the machine has no room for
    stage.release()
    assert (await first.outcome()).queued_s == 0
    outcome = await second.outcome()
    assert (outcome.status, outcome.queued_s > 0) == ("succeeded", True)
    assert (await small.outcome()).status == "succeeded"
    await asyncio.gather(waiting, behind)


async def test_what_waits_can_be_cancelled(stage: Stage) -> None:
    first = await stage.begin(run_id="r1", **WHOLE)
    await stage.runs(first)
    second = await stage.begin(run_id="r2", **WHOLE)
    await second.cancel("enough")
    outcome = await second.outcome()
    assert (outcome.status, outcome.code) == ("cancelled", Code.AGENT_CANCELLED)
    third = await stage.begin(run_id="r3", **WHOLE)
    stage.release()
    assert (await third.outcome()).status == "succeeded"


async def test_nodes_joined_by_streams_run_together(stage: Stage) -> None:
    """Beyond the limits: one that waits for the other must not hold its place for ever."""
    producer = await stage.begin(run_id="r1", node="a", **WHOLE)
    await stage.runs(producer)
    consumer = await stage.begin(run_id="r1", node="b", stream_inputs=("in",), **WHOLE)
    await stage.runs(consumer)
    item = await stage.begin(run_id="r1", node="c", item=1, **WHOLE)
    await stage.runs(item)
    second_item = await stage.begin(run_id="r1", node="c", item=2, **WHOLE)
    other_run = await stage.begin(run_id="r2", node="b", stream_inputs=("in",), **WHOLE)
    waiting = [await queued(second_item), await queued(other_run)]
    stage.release()
    await asyncio.gather(*waiting)
    for attempt in (producer, consumer, item, second_item, other_run):
        assert (await attempt.outcome()).status == "succeeded"


async def test_max_concurrent_counts_over_runs_and_holds_up_nobody_else(stage: Stage) -> None:
    one = Resources(max_concurrent=1)
    first = await stage.begin(run_id="r1", resources=one)
    await stage.runs(first)
    second = await stage.begin(run_id="r2", resources=one)
    waiting = await queued(second)
    for other in ({"agent": "test.other"}, {"workspace": "theirs"}):
        await stage.runs(await stage.begin(run_id="r3", resources=one, **other))
    stage.release()
    await waiting
    assert (await second.outcome()).status == "succeeded"


async def test_more_than_the_machine_is_refused_before_it_starts(
    runner: LocalRunner, bench: Bench
) -> None:
    call = bench.invocation(
        ["/nonexistent"], resources=Resources(memory=5 * GIB), origins={"memory": "manifest"}
    )
    outcome, told = await perform(runner, call)
    assert (outcome.error_class, outcome.code) == ("permanent", Code.RESOURCES_UNAVAILABLE)
    assert not told


async def warm_pids(
    runner: LocalRunner, bench: Bench, commands: list[tuple[str, ...]], **more: Any
) -> list[int]:
    calls = [bench.invocation(c, warm=Warm(), **more) for c in commands]
    return [int((await perform(runner, call))[0].outputs["text"]) for call in calls]


async def test_the_longest_idle_make_room_in_the_pools_memory(bench: Bench) -> None:
    settings = RunnerSettings(grace_s=1.0, machine=MACHINE, pool_memory=160 << 20)
    numbers: dict[str, Any] = {
        "resources": Resources(memory=150 << 20),
        "origins": {"memory": "manifest"},
    }
    commands = [bench.script(WARM_AGENT) for _ in range(3)]
    async with aclosing(LocalRunner(settings)) as runner:
        pids = await warm_pids(runner, bench, commands, **numbers)
        await eventually(lambda: not alive(pids[0]))
        assert alive(pids[2])
        numbers["resources"] = Resources(memory=250 << 20)
        refused, _ = await perform(runner, bench.invocation(commands[0], warm=Warm(), **numbers))
        assert refused.code == Code.RESOURCES_UNAVAILABLE


async def test_idle_workers_make_room_for_a_process(bench: Bench) -> None:
    settings = RunnerSettings(grace_s=1.0, machine=Machine(cpus=2, memory=64 << 20))
    numbers: dict[str, Any] = {
        "resources": Resources(memory=60 << 20),
        "origins": {"memory": "manifest"},
    }
    async with aclosing(LocalRunner(settings)) as runner:
        (pid,) = await warm_pids(runner, bench, [bench.script(WARM_AGENT)], **numbers)
        outcome, _ = await perform(runner, bench.invocation('print(\'{"text": "x"}\')', **numbers))
        assert outcome.status == "succeeded"
        assert not alive(pid)


@pytest.mark.parametrize(
    "change", [{"workspace": "theirs"}, {"resources": Resources(memory=3 * GIB)}]
)
async def test_workers_are_not_shared(
    runner: LocalRunner, bench: Bench, change: dict[str, Any]
) -> None:
    """Over workspaces, nor with an attempt that may use more memory."""
    command = bench.script(WARM_AGENT)
    first, again = await warm_pids(runner, bench, [command, command])
    assert first == again
    assert await warm_pids(runner, bench, [command], **change) != [first]


async def test_an_edited_agent_gets_a_new_process(runner: LocalRunner, bench: Bench) -> None:
    command = bench.script(WARM_AGENT)
    (first,) = await warm_pids(runner, bench, [command])
    os.utime(command[-1], ns=(1, 1))
    (second,) = await warm_pids(runner, bench, [command])
    assert first != second


async def test_closing_ends_what_waits(bench: Bench) -> None:
    runner = LocalRunner(RunnerSettings(grace_s=1.0, machine=MACHINE))
    command = bench.script(WAITS)
    whole = bench.invocation((*command, str(bench.folder / "never")), **WHOLE)
    ends: list[Awaitable[Any]] = []
    async with runner.attempt(whole) as first, runner.attempt(whole) as second:
        ends = [first.outcome(), second.outcome()]
        await runner.aclose()
        assert {o.status for o in await asyncio.gather(*ends)} == {"cancelled"}
