"""`execution.batch`: one call of a model serves several invocations, each with its own end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.agent_processes import Bench, logs, perform

from mentatlab.protocol.agent import Batch, Resources, Warm
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners import LocalRunner, Outcome, RunnerSettings

OUTPUTS = (Pin("text", PinType.STRING), Pin("size", PinType.NUMBER))
WARM = Warm(batch=Batch(max=4, delay_ms=30_000))  # a full batch goes at once, whatever the delay

AGENT = """
    import time
    from mentatlab.sdk import Agent, AgentError, run

    class Model(Agent):
        def process_batch(self, inputs):
            answers = []
            for index, one in enumerate(inputs):
                with self.item(index):
                    self.log(f"item {one['text']}")
                answers.append({"text": one["text"].upper(), "size": len(inputs)})
                match one.get("do"):
                    case "fail": answers[-1] = AgentError("MINE", "my fault")
                    case "bug": raise KeyError("x")
                    case "short": return []
                    case "type": return None
            return answers

    run(Model)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(RunnerSettings(grace_s=1.0))
    yield runner
    await runner.aclose()


async def all_of(
    runner: LocalRunner,
    bench: Bench,
    *inputs: dict[str, str],
    warm: Warm = WARM,
    resources: Resources | None = None,
    source: str = AGENT,
) -> list[tuple[Outcome, str]]:
    command = bench.script(source)
    async with asyncio.TaskGroup() as tasks:
        jobs = []
        for one in inputs:
            call = bench.invocation(
                command, warm=warm, inputs=one, outputs=OUTPUTS, resources=resources
            )
            jobs.append(tasks.create_task(perform(runner, call)))
    return [(job.result()[0], logs(job.result()[1])) for job in jobs]


async def test_one_call_serves_a_full_batch(bench: Bench, runner: LocalRunner) -> None:
    ended = await all_of(runner, bench, *[{"text": t} for t in "abcd"])
    assert [o.outputs for o, _ in ended] == [{"text": t, "size": 4} for t in "ABCD"]
    assert [said for _, said in ended] == [f"item {t}" for t in "abcd"]


async def test_errors_stay_with_their_item(bench: Bench, runner: LocalRunner) -> None:
    ended = await all_of(
        runner, bench, {"text": "a"}, {"text": "b", "do": "fail"}, {"text": "c"}, {"text": "d"}
    )
    assert [o.status for o, _ in ended] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert (ended[1][0].code, ended[1][0].message) == ("MINE", "my fault")


@pytest.mark.parametrize(
    ("do", "code"),
    [("bug", Code.AGENT_ERROR), ("short", Code.OUTPUT_TYPE), ("type", Code.OUTPUT_TYPE)],
)
async def test_what_fails_the_call_fails_every_item(
    bench: Bench, runner: LocalRunner, do: str, code: Code
) -> None:
    ended = await all_of(runner, bench, *[{"text": "a"}] * 3, {"text": "b", "do": do})
    assert {o.code for o, _ in ended} == {code}


async def test_a_batch_goes_after_its_delay(bench: Bench, runner: LocalRunner) -> None:
    warm = Warm(batch=Batch(max=4, delay_ms=1))
    ended = await all_of(runner, bench, {"text": "a"}, warm=warm)
    assert ended[0][0].outputs == {"text": "A", "size": 1}


async def test_after_out_of_memory_batches_are_smaller(bench: Bench, runner: LocalRunner) -> None:
    ended = await all_of(
        runner, bench, *[{"text": t} for t in "abcd"], resources=Resources(batch=2)
    )
    assert {o.outputs["size"] for o, _ in ended} == {2}


async def test_an_agent_that_knows_no_batches_gets_one_invoke_each(
    bench: Bench, runner: LocalRunner
) -> None:
    source = """
        import json, sys
        say = lambda **e: print(json.dumps(e), flush=True)
        say(type="ready", concurrency=4)
        for line in sys.stdin:
            call = json.loads(line)
            if call["type"] == "invoke":
                say(type="result", id=call["id"], outputs={"text": call["text"], "size": 1})
    """
    ended = await all_of(runner, bench, *[{"text": t} for t in "abcd"], source=source)
    assert [o.outputs["text"] for o, _ in ended] == list("abcd")


async def test_who_is_cancelled_before_the_batch_goes_is_not_in_it(
    bench: Bench, runner: LocalRunner
) -> None:
    command = bench.script(AGENT)
    warm = Warm(batch=Batch(max=3, delay_ms=30_000))
    calls = [
        bench.invocation(command, warm=warm, inputs={"text": t}, outputs=OUTPUTS) for t in "xabc"
    ]
    async with AsyncExitStack() as stack:
        await asyncio.gather(*[perform(runner, call) for call in calls[:3]])  # it is ready
        first = await stack.enter_async_context(runner.attempt(calls[0]))
        second = await stack.enter_async_context(runner.attempt(calls[1]))
        await first.cancel("enough")
        assert (await first.outcome()).status == "cancelled"
        others = [await stack.enter_async_context(runner.attempt(c)) for c in calls[2:]]
        outcomes = [await attempt.outcome() for attempt in (second, *others)]
    assert {o.status for o in outcomes} == {"succeeded"}


async def test_alone_it_is_a_batch_of_one(bench: Bench, runner: LocalRunner) -> None:
    outcome, _ = await perform(
        runner, bench.invocation(AGENT, inputs={"text": "q"}, outputs=OUTPUTS)
    )
    assert outcome.outputs == {"text": "Q", "size": 1}


async def test_an_item_can_be_cancelled_out_of_a_running_batch(
    bench: Bench, runner: LocalRunner
) -> None:
    """The call goes on for the others; the worker stays."""
    source = """
        import asyncio, os
        from mentatlab.sdk import Agent, run

        class Model(Agent):
            async def process_batch(self, inputs):
                self.log("begun")
                while not os.path.exists(inputs[0]["gate"]):
                    await asyncio.sleep(0.01)
                return [{"text": one["text"], "size": len(inputs)} for one in inputs]

        run(Model)
    """
    command, gate = bench.script(source), bench.folder / "gate"
    warm = Warm(batch=Batch(max=2, delay_ms=30_000))
    first, second = (
        bench.invocation(command, warm=warm, inputs={"text": t, "gate": str(gate)}, outputs=OUTPUTS)
        for t in "ab"
    )
    async with runner.attempt(first) as one, runner.attempt(second) as two:
        async for _ in one.events():
            break
        await two.cancel("enough")
        gate.touch()
        assert (await one.outcome()).outputs == {"text": "a", "size": 2}
        assert (await two.outcome()).status == "cancelled"
