"""Agents that misbehave, as real processes: each ends with a reason that a person understands, and
one that runs beside it notices nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.agent_processes import ECHO, Bench, alive, eventually, logs, perform

from mentatlab.protocol.agent import Resources, Warm
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners import LocalRunner, Outcome, RunnerSettings

MIB = 1 << 20
QUICK = RunnerSettings(grace_s=0.5, exit_grace_s=0.3, flood_bytes=2_000_000, log_bytes=10_000)
STREAM = (Pin("text", PinType.STRING), Pin("out", PinType.STREAM))
LEAK = """
    import time
    held = []
    while len(held) < 400:
        held.append(bytearray(b"x") * (1 << 20))
        time.sleep(0.002)
    time.sleep(600)
"""
LEAK_IN_DAEMON = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            held = bytearray(b"x") * (200 << 20)
        time.sleep(600)
    time.sleep(600)
"""
SCRATCH = """
    import pathlib, time
    for n in range(30):
        pathlib.Path(f"big{n}").write_bytes(b"x" * (1 << 20))
    time.sleep(600)
"""
ONE_FILE = """
    with open("big", "wb") as file:
        while True:
            file.write(b"x" * (1 << 20))
"""
FORKS = """
    import os, time
    for n in range(600):
        if os.fork() == 0:
            time.sleep(600)
    time.sleep(600)
"""
FILES = """
    import os
    held = [open("/dev/null") for _ in range(100_000)]
"""
BAD_UTF8 = """
    import os
    os.write(1, bytes([0xC3, 0x28, 0xFF, 10]) + b'{"type": "progress", "percent": ')
    os.write(1, bytes([0xE2]))
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(QUICK)
    yield runner
    await runner.aclose()


async def beside(runner: LocalRunner, bench: Bench) -> Outcome:
    return (await perform(runner, bench.invocation(ECHO, inputs={"text": "hi"}, run_id="rn_b")))[0]


@pytest.mark.parametrize(
    ("source", "class_", "code", "words"),
    [
        (LEAK, "oom", Code.AGENT_OOM, "too much memory"),
        (LEAK_IN_DAEMON, "oom", Code.AGENT_OOM, "it may use 100"),
        (SCRATCH, "permanent", Code.AGENT_SCRATCH_FULL, "more than 20 MiB in its scratch"),
        (ONE_FILE, "permanent", Code.AGENT_EXIT, "File too large"),
        (FORKS, "permanent", Code.AGENT_PROCESSES, "too many processes"),
        (FILES, "permanent", Code.AGENT_EXIT, "Too many open files"),
        (BAD_UTF8, "permanent", Code.NO_RESULT, "without a result"),
    ],
    ids=["leak", "leaking daemon", "many files", "one file", "forks", "open files", "utf-8"],
)
async def test_too_much(
    bench: Bench, runner: LocalRunner, source: str, class_: str, code: Code, words: str
) -> None:
    # 600 interpreters fill 100 MiB before they are all there.
    memory = 2048 * MIB if source is FORKS else 100 * MIB
    limits = Resources(memory=memory, scratch=20 * MIB)
    async with asyncio.TaskGroup() as tasks:
        bad = tasks.create_task(perform(runner, bench.invocation(source, resources=limits)))
        good = tasks.create_task(beside(runner, bench))
    outcome, _ = bad.result()
    assert (outcome.status, outcome.error_class, outcome.code) == ("failed", class_, code)
    assert words in outcome.message
    assert outcome.hint
    assert good.result().outputs == {"text": "hi"}


async def test_a_shell_that_ends_by_the_file_limit(bench: Bench, runner: LocalRunner) -> None:
    call = bench.invocation(
        ["/bin/sh", "-c", "exec cat /dev/zero > big"], resources=Resources(scratch=MIB)
    )
    outcome, _ = await perform(runner, call)
    assert outcome.code in (Code.AGENT_SCRATCH_FULL, Code.AGENT_EXIT)  # by cat's own manners
    assert (bench.folder / "big").stat().st_size < 200 * MIB  # a few before the limit stands


WARM = """
    import json, os, sys, time
    say = lambda **e: print(json.dumps(e), flush=True)
    {first}
    say(type="ready", concurrency=1)
    for line in sys.stdin:
        call = json.loads(line)
        if call["type"] == "invoke":
            i = call["id"]
            {then}
            say(type="result", id=i, outputs={{"text": "ok"}})
"""


@pytest.mark.parametrize(
    ("first", "then", "class_", "code"),
    [
        ("sys.exit(1)", "", "permanent", Code.AGENT_START_FAILED),
        ("sys.exit(3)", "", "transient", Code.AGENT_START_FAILED),
        ("", "sys.exit(0)", "infra", Code.AGENT_KILLED),
        ("", "say(type='chunk', id=i, pin='out', data=1); os._exit(9)", "infra", Code.AGENT_KILLED),
        ("", "say(type='chunk', id='i999', pin='out', data=1)", "permanent", Code.AGENT_PROTOCOL),
        ("", "held = bytearray(b'x') * (200 << 20); time.sleep(600)", "oom", Code.AGENT_OOM),
        (
            "",
            "[open(f'big{n}', 'wb').write(b'x' * (1 << 20)) for n in range(30)]; time.sleep(600)",
            "permanent",
            Code.AGENT_SCRATCH_FULL,
        ),
    ],
    ids=["start", "start 3", "invoked", "chunk", "foreign", "leak", "scratch"],
)
async def test_a_warm_one_ends_at_every_stage(
    bench: Bench, runner: LocalRunner, first: str, then: str, class_: str, code: Code
) -> None:
    call = bench.invocation(
        WARM.format(first=first, then=then),
        warm=Warm(),
        outputs=STREAM,
        resources=Resources(memory=100 * MIB, scratch=20 * MIB),
    )
    async with asyncio.TaskGroup() as tasks:
        bad = tasks.create_task(perform(runner, call))
        good = tasks.create_task(beside(runner, bench))
    outcome, _ = bad.result()
    assert (outcome.status, outcome.error_class, outcome.code) == ("failed", class_, code)
    assert outcome.message
    assert good.result().outputs == {"text": "hi"}


async def test_one_that_ends_after_its_answer_serves_the_next_anew(
    bench: Bench, runner: LocalRunner
) -> None:
    command = bench.script(
        WARM.format(first="", then="say(type='result', id=i, outputs={'text': 'ok'}); os._exit(1)")
    )
    for _ in range(2):
        outcome, _ = await perform(runner, bench.invocation(command, warm=Warm()))
        assert outcome.status == "succeeded"
        await eventually(lambda: not list(runner_workers(runner)))


def runner_workers(runner: LocalRunner) -> list[object]:
    return list(runner._pool._keys)  # whether its end has been noticed


async def test_a_daemon_of_a_killed_agent_goes_with_it(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import os, sys, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(os.getpid(), flush=True)
                time.sleep(600)
            os._exit(0)
        os.wait()
        time.sleep(600)
    """
    outcome, told = await perform(runner, bench.invocation(source, attempt_timeout_s=1.0))
    assert outcome.code == Code.AGENT_TIMEOUT
    assert not alive(int(logs(told)))
