"""Warm agents as real processes: sharing, streams, credit, cancel, crashes, recycling."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from tests.support.agent_processes import Bench, alive, eventually, logs, perform

from mentatlab.protocol import events
from mentatlab.protocol.agent import Warm
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners import LocalRunner, RunnerSettings

QUICK = RunnerSettings(
    grace_s=1.0,
    exit_grace_s=0.3,
    max_workers=2,
    max_workers_per_agent=1,
    window_chunks=8,
    credit_bytes=2000,
    unread_bytes=50_000,
)
TEXT = (Pin("text", PinType.STRING),)
STREAM = (*TEXT, Pin("out", PinType.STREAM))

SDK_AGENT = """
    import asyncio, os, sys, time
    from mentatlab.sdk import AgentError, StreamingAgent, run

    class Test(StreamingAgent):
        concurrency = {concurrency}

        async def process(self, inputs):
            print("a stray print")
            self.log(f"pid {{os.getpid()}}")
            match inputs.get("do"):
                case "crash": os.kill(os.getpid(), 9)
                case "wait": await asyncio.sleep(600)
                case "hang": time.sleep(600)
                case "fail": raise AgentError("MINE", "my fault", retryable=True, hint="try")
                case "bug": raise KeyError("x")
                case "many":
                    for n in range(200):
                        await self.stream_output("out", "x" * 100)
                        self.progress(current=n)
            total = 0
            if "in" in inputs:
                async for value in inputs["in"]:
                    total += value
                    await self.stream_output("out", total)
            return {{"text": str(total or os.getpid())}}

    run(Test)
"""


def agent(concurrency: int = 4) -> str:
    return SDK_AGENT.format(concurrency=concurrency)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(QUICK)
    yield runner
    await runner.aclose()


async def test_one_process_serves_many_also_at_a_time(bench: Bench, runner: LocalRunner) -> None:
    command = bench.script(agent())
    async with asyncio.TaskGroup() as tasks:
        jobs = [
            tasks.create_task(perform(runner, bench.invocation(command, warm=Warm(concurrency=4))))
            for _ in range(12)
        ]
    outcomes = [job.result()[0] for job in jobs]
    assert {o.status for o in outcomes} == {"succeeded"}
    assert len({o.outputs["text"] for o in outcomes}) == 1
    assert "a stray print" in logs(jobs[0].result()[1])


async def test_streams_through_a_window(bench: Bench, runner: LocalRunner) -> None:
    invocation = bench.invocation(agent(), warm=Warm(), stream_inputs=("in",), outputs=STREAM)
    outcome, told = await perform(runner, invocation, [("in", 1)] * 100)
    assert outcome.outputs == {"text": "100"}
    assert [e.data for e in told if isinstance(e, events.Chunk)] == list(range(1, 101))
    assert max(e.seq for e in told if isinstance(e, events.Ack)) == 100


async def test_output_waits_for_credit(bench: Bench, runner: LocalRunner) -> None:
    """Without a reader the agent stops at its credit; with one it goes on."""
    invocation = bench.invocation(agent(), warm=Warm(), inputs={"do": "many"}, outputs=STREAM)
    async with runner.attempt(invocation) as attempt:
        told = attempt.events()
        got = [await anext(told) for _ in range(3)]
        got += [e async for e in told]
        assert sum(isinstance(e, events.Chunk) for e in got) == 200
        assert (await attempt.outcome()).status == "succeeded"


@pytest.mark.parametrize(
    ("do", "class_", "code"),
    [("fail", "transient", "MINE"), ("bug", "permanent", Code.AGENT_ERROR)],
)
async def test_errors_leave_the_worker_alive(
    bench: Bench, runner: LocalRunner, do: str, class_: str, code: str
) -> None:
    command = bench.script(agent())
    before, _ = await perform(runner, bench.invocation(command, warm=Warm()))
    outcome, _ = await perform(runner, bench.invocation(command, warm=Warm(), inputs={"do": do}))
    after, _ = await perform(runner, bench.invocation(command, warm=Warm()))
    assert (outcome.error_class, outcome.code) == (class_, code)
    assert before.outputs == after.outputs


async def test_cancel_is_answered_and_the_worker_stays(bench: Bench, runner: LocalRunner) -> None:
    command = bench.script(agent())
    waiting = bench.invocation(command, warm=Warm(), inputs={"do": "wait"})
    async with runner.attempt(waiting) as attempt:
        pid = await _pid(attempt.events())
        await attempt.cancel("enough")
        assert (await attempt.outcome()).status == "cancelled"
    after, _ = await perform(runner, bench.invocation(command, warm=Warm()))
    assert after.outputs == {"text": str(pid)}


async def _pid(told: AsyncIterator[events.AgentEvent]) -> int:
    async for event in told:
        if isinstance(event, events.Log) and event.message.startswith("pid "):
            return int(event.message[4:])
    raise AssertionError("it said nothing")


async def test_one_that_ignores_cancel_loses_its_process(bench: Bench, runner: LocalRunner) -> None:
    hanging = bench.invocation(agent(), warm=Warm(), inputs={"do": "hang"})
    async with runner.attempt(hanging) as attempt:
        pid = await _pid(attempt.events())
        await attempt.cancel("enough")
        assert (await attempt.outcome()).status == "cancelled"
        assert not alive(pid)


async def test_timeout_ends_the_invocation_only(bench: Bench) -> None:
    """The agent has a minute to answer the cancel: a busy machine must not get it killed."""
    command = bench.script(agent())
    slow = bench.invocation(command, warm=Warm(), inputs={"do": "wait"}, attempt_timeout_s=0.3)
    async with aclosing(LocalRunner(msgspec.structs.replace(QUICK, grace_s=60.0))) as runner:
        first, _ = await perform(runner, bench.invocation(command, warm=Warm()))
        outcome, _ = await perform(runner, slow)
        assert (outcome.error_class, outcome.code) == ("timeout", Code.AGENT_TIMEOUT)
        again, _ = await perform(runner, bench.invocation(command, warm=Warm()))
    assert again.outputs == first.outputs


async def test_one_that_does_not_read_its_invocation_is_ended_in_time(
    bench: Bench, runner: LocalRunner
) -> None:
    source = """
        import time
        print('{"type": "ready", "protocol": 1, "concurrency": 1}', flush=True)
        time.sleep(600)
    """
    large = {f"pin{n}": "x" * 100_000 for n in range(5)}
    invocation = bench.invocation(source, warm=Warm(), inputs=large, attempt_timeout_s=0.3)
    async with asyncio.timeout(30):
        outcome, _ = await perform(runner, invocation)
    assert (outcome.status, outcome.code) == ("failed", Code.AGENT_TIMEOUT)


async def test_a_crash_is_infra_for_all_and_poison_the_third_time(
    bench: Bench, runner: LocalRunner
) -> None:
    command = bench.script(agent())
    waiting = bench.invocation(command, warm=Warm(concurrency=4), inputs={"do": "wait"})
    crashing = bench.invocation(command, warm=Warm(concurrency=4), inputs={"do": "crash"})
    async with runner.attempt(waiting) as other:
        outcome, _ = await perform(runner, crashing)
        assert (outcome.error_class, outcome.code) == ("infra", Code.AGENT_KILLED)
        assert (await other.outcome()).error_class == "infra"
    classes = [(await perform(runner, crashing))[0].error_class for _ in range(2)]
    assert classes == ["infra", "permanent"]


async def test_one_that_never_says_ready_runs_one_shot_and_says_so(
    bench: Bench, runner: LocalRunner
) -> None:
    source = """
        import json, sys
        payload = json.load(sys.stdin)
        print(json.dumps({"text": payload["text"]}))
    """
    command = bench.script(source)
    warm = Warm(startup_timeout_s=0.3)
    for _ in range(2):
        outcome, told = await perform(
            runner, bench.invocation(command, warm=warm, inputs={"text": "hi"})
        )
        assert outcome.outputs == {"text": "hi"}
        assert "did not say ready" in logs(told)


async def test_one_that_dies_before_ready(bench: Bench, runner: LocalRunner) -> None:
    outcome, _ = await perform(
        runner, bench.invocation("raise ImportError('no torch')", warm=Warm())
    )
    assert (outcome.error_class, outcome.code) == ("permanent", Code.AGENT_START_FAILED)
    assert "no torch" in outcome.message
    missing, _ = await perform(runner, bench.invocation(["/nonexistent"], warm=Warm()))
    assert missing.code == Code.AGENT_START_FAILED


@pytest.mark.parametrize(
    ("talk", "code"),
    [
        ("print('x' * (2 << 20))", Code.AGENT_LINE_TOO_LONG),
        ("os.close(1)", Code.AGENT_PROTOCOL),
        (
            "\nwhile True: say(type='chunk', id=i, pin='out', data='x' * 1000)",
            Code.AGENT_FLOOD,
        ),
        ("say(type='error', id=i, code='AGENT_OOM', message='m')", Code.AGENT_OOM),
    ],
)
async def test_breaches_of_the_protocol(
    bench: Bench, runner: LocalRunner, talk: str, code: Code
) -> None:
    """By an agent without the SDK. Nobody reads its events: the flood ignores its credit."""
    source = f"""
import json, os, sys, time
say = lambda **e: print(json.dumps(e), flush=True)
say(type="ready")
i = json.loads(next(sys.stdin))["id"]
{talk}
time.sleep(600)
"""
    invocation = bench.invocation(source, warm=Warm(), outputs=STREAM)
    async with runner.attempt(invocation) as attempt:
        outcome = await attempt.outcome()
    assert outcome.code == code
    assert outcome.error_class == ("oom" if code == Code.AGENT_OOM else "permanent")


async def test_a_worn_worker_is_replaced(bench: Bench, runner: LocalRunner) -> None:
    command = bench.script(agent())
    for warm in (Warm(max_invocations=1), Warm(max_rss=1)):
        pids = [
            (await perform(runner, bench.invocation(command, warm=warm)))[0].outputs["text"]
            for _ in range(2)
        ]
        assert pids[0] != pids[1]
        await eventually(lambda old=int(pids[0]): not alive(old))  # type: ignore[misc]


async def test_an_idle_worker_ends(bench: Bench, runner: LocalRunner) -> None:
    outcome, _ = await perform(runner, bench.invocation(agent(), warm=Warm(idle_ttl_s=0.1)))
    await eventually(lambda: not alive(int(outcome.outputs["text"])))


async def test_the_longest_idle_worker_makes_room(bench: Bench, runner: LocalRunner) -> None:
    commands = [bench.script(agent()) for _ in range(3)]
    pids = [
        int((await perform(runner, bench.invocation(c, warm=Warm())))[0].outputs["text"])
        for c in commands
    ]
    await eventually(lambda: not alive(pids[0]))
    assert alive(pids[1])
    assert alive(pids[2])


async def test_closing_ends_every_process(bench: Bench) -> None:
    runner = LocalRunner(QUICK)
    hanging = bench.invocation(agent(), warm=Warm(), inputs={"do": "wait"})
    async with runner.attempt(hanging) as attempt:
        pid = await _pid(attempt.events())
        await runner.aclose()
        assert not alive(pid)
        assert (await attempt.outcome()).status == "cancelled"


async def test_leaving_a_warm_attempt_cancels_it(bench: Bench, runner: LocalRunner) -> None:
    command = bench.script(agent(concurrency=1))
    waiting = bench.invocation(command, warm=Warm(), inputs={"do": "wait"})
    async with runner.attempt(waiting) as attempt:
        pid = await _pid(attempt.events())
    after, _ = await perform(runner, bench.invocation(command, warm=Warm()))
    assert after.outputs == {"text": str(pid)}
    assert alive(pid)


@pytest.mark.parametrize("do", ["wait", "nothing"])
def test_a_warm_agent_ends_with_its_input(bench: Bench, do: str) -> None:
    """The second line of defence: end of file on stdin, also in the middle of the work."""
    invoke = (
        '{"type":"invoke","id":"i","spec":{"do":"%s"},"context":{"run_id":"r","node_id":"n"}}\n'
    )
    with subprocess.Popen(
        bench.script(agent()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MENTAT_WARM": "1"},
    ) as process:
        assert process.stdin
        assert process.stdout
        assert "ready" in process.stdout.readline()
        process.stdin.write(invoke % do)
        process.stdin.flush()
        assert "pid" in process.stdout.readline()
        if do == "nothing":
            assert "result" in process.stdout.readline()
        process.stdin.close()
        assert process.wait(timeout=10) == (1 if do == "wait" else 0)
