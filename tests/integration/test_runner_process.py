"""One-shot agents as real processes: good ones, and every way of being bad."""

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.agent_processes import ECHO, Bench, alive, eventually, logs, perform

from mentatlab.protocol import events
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners import LocalRunner, RunnerSettings
from mentatlab.runners.child import Limits

QUICK = RunnerSettings(
    grace_s=0.3, exit_grace_s=0.3, log_bytes=10_000, flood_bytes=3_000_000, mailbox_bytes=20_000
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def runner() -> AsyncIterator[LocalRunner]:
    runner = LocalRunner(QUICK)
    yield runner
    await runner.aclose()


async def test_the_classic_echo_agent_runs_unmodified(bench: Bench, runner: LocalRunner) -> None:
    outcome, _ = await perform(runner, bench.invocation(ECHO, inputs={"text": "grüß dich"}))
    assert (outcome.status, outcome.outputs) == ("succeeded", {"text": "grüß dich"})
    assert outcome.exit_code == 0


async def test_environment_is_built_and_never_the_servers(
    bench: Bench, runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "x")
    source = "import os, json; print(json.dumps({'text': json.dumps(dict(os.environ))}))"
    invocation = bench.invocation(source, env=("TOKEN", "ABSENT"), inputs={"n": 7}, params={"p": 1})
    outcome, _ = await perform(
        runner, type(invocation)(**{**_fields(invocation), "env": {"TOKEN": "t", "OTHER": "o"}})
    )
    seen = json.loads(outcome.outputs["text"])
    assert seen["TOKEN"] == "t"
    assert not {"SERVER_SECRET", "OTHER", "ABSENT"} & seen.keys()
    assert seen["RUN_ID"] == "rn_test"
    assert json.loads(seen["INPUT_SPEC"]) == {"p": 1, "n": 7}
    assert json.loads(seen["AGENT_INPUT"])["n"] == 7


def _fields(invocation: object) -> dict[str, object]:
    return {f: getattr(invocation, f) for f in type(invocation).__struct_fields__}  # type: ignore[attr-defined]


async def test_chunks_and_events_pass_in_order(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import json, sys
        say = lambda **e: print(json.dumps(e))
        next(sys.stdin)
        for line in sys.stdin:
            chunk = json.loads(line)
            if chunk["type"] == "chunk":
                say(type="chunk", pin="out", data=chunk["data"] * 2)
        say(type="progress", percent=100)
        print("not json")
        say(type="unknown")
        sys.stderr.write("a warning")
        say(type="result", outputs={"text": "done"})
    """
    invocation = bench.invocation(
        source, stream_inputs=("in",), outputs=(*_TEXT, Pin("out", PinType.STREAM))
    )
    outcome, told = await perform(runner, invocation, [("in", n) for n in (1, 2, 3)])
    assert outcome.outputs == {"text": "done"}
    assert [e.data for e in told if isinstance(e, events.Chunk)] == [2, 4, 6]
    assert any(isinstance(e, events.Progress) and e.percent == 100 for e in told)
    assert {"not json", "a warning"} <= set(logs(told).split("\n"))


_TEXT = (Pin("text", PinType.STRING),)


@pytest.mark.parametrize(
    ("source", "class_", "code"),
    [
        ("print('garbage'); print(42)", "permanent", Code.NO_RESULT),
        ('print(\'{"other": 1, "more": 2}\')', "permanent", None),
        ("raise SystemExit(3)", "transient", Code.AGENT_TRANSIENT),
        ("raise SystemExit(1)", "permanent", Code.AGENT_EXIT),
        ("raise SystemExit(124)", "timeout", Code.AGENT_TIMEOUT),
        ("import os; os.kill(os.getpid(), 11)", "permanent", Code.AGENT_EXIT),
        ("import os; os.kill(os.getpid(), 9)", "infra", Code.AGENT_KILLED),
        ("print('x' * (2 << 20))", "permanent", Code.AGENT_LINE_TOO_LONG),
        (
            "import sys\nwhile True: print('flood ' * 100)",
            "permanent",
            Code.AGENT_FLOOD,
        ),
        (
            "import sys\nwhile True: sys.stderr.write('flood ' * 1000 + '\\n')",
            "permanent",
            Code.AGENT_FLOOD,
        ),
        (
            "import os, time; os.close(1); time.sleep(600)",
            "permanent",
            Code.AGENT_PROTOCOL,
        ),
        (
            'print(\'{"type": "error", "code": "MINE", "message": "m", "retryable": true}\')',
            "transient",
            "MINE",
        ),
    ],
)
async def test_bad_ends(
    bench: Bench, runner: LocalRunner, source: str, class_: str, code: str | None
) -> None:
    outputs = (*_TEXT, Pin("second", PinType.JSON)) if code is None else _TEXT
    outcome, _ = await perform(runner, bench.invocation(source, outputs=outputs))
    assert outcome.status == "failed"
    assert (outcome.error_class, outcome.code) == (class_, code or Code.OUTPUT_MISSING)
    assert outcome.message


async def test_the_last_words_of_a_crash_are_in_the_message(
    bench: Bench, runner: LocalRunner
) -> None:
    outcome, told = await perform(runner, bench.invocation("raise ValueError('bad weather')"))
    assert outcome.message == "the agent exited with 1: ValueError: bad weather"
    assert "Traceback" in logs(told)


async def test_a_long_log_is_cut_with_one_notice(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import sys
        for _ in range(500):
            sys.stderr.write("0123456789" * 10 + "\\n")
        print('{"text": "fine"}')
    """
    outcome, told = await perform(runner, bench.invocation(source))
    assert outcome.status == "succeeded"
    assert logs(told).count("the rest is dropped") == 1
    assert len(logs(told)) < 12_000


@pytest.mark.parametrize(
    "ignore", ["", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"]
)
async def test_one_that_never_answers_is_ended_in_time(
    bench: Bench, runner: LocalRunner, ignore: str
) -> None:
    source = ignore + "import time\nwhile True: time.sleep(600)"
    outcome, _ = await perform(runner, bench.invocation(source, attempt_timeout_s=0.5))
    assert (outcome.error_class, outcome.code) == ("timeout", Code.AGENT_TIMEOUT)


async def test_silence_is_not_a_heartbeat(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import time
        for _ in range(4):
            print('{"type": "heartbeat"}'); time.sleep(0.25)
        time.sleep(600)
    """
    outcome, told = await perform(runner, bench.invocation(source, heartbeat_timeout_s=2.0))
    assert outcome.code == Code.AGENT_TIMEOUT
    assert "sign of life" in outcome.message
    assert len(told) == 4


async def test_cancel_kills_one_that_ignores_sigterm(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(os.getpid())
        while True: time.sleep(600)
    """
    async with runner.attempt(bench.invocation(source)) as attempt:
        pid = int((await _first_log(attempt.events())).message)
        await attempt.cancel("enough")
        outcome = await attempt.outcome()
    assert (outcome.status, outcome.code) == ("cancelled", Code.AGENT_CANCELLED)
    assert not alive(pid)


async def _first_log(told: AsyncIterator[events.AgentEvent]) -> events.Log:
    async for event in told:
        if isinstance(event, events.Log):
            return event
    raise AssertionError("it said nothing")


async def test_leaving_the_attempt_ends_the_process(bench: Bench, runner: LocalRunner) -> None:
    source = "import os, time; print(os.getpid()); time.sleep(600)"
    async with runner.attempt(bench.invocation(source)) as attempt:
        pid = int((await _first_log(attempt.events())).message)
    assert not alive(pid)
    assert (await attempt.outcome()).status == "cancelled"


FORKS = """
    import os, subprocess, sys
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session={escape}
    )
    sys.stderr.write(str(child.pid) + "\\n")
    print('{{"text": "parent is done"}}')
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.parametrize("escape", [False, True])
async def test_no_grandchild_survives(bench: Bench, runner: LocalRunner, escape: bool) -> None:
    outcome, told = await perform(runner, bench.invocation(FORKS.format(escape=escape)))
    assert outcome.outputs == {"text": "parent is done"}
    pid = int(logs(told))
    await eventually(lambda: not alive(pid))  # SIGKILL was sent; the kernel carries it out


async def test_back_pressure_is_the_pipe(bench: Bench, runner: LocalRunner) -> None:
    source = """
        import json, sys
        for n in range(3000):
            print(json.dumps({"type": "chunk", "pin": "out", "data": "x" * 100}))
            if n % 100 == 0:
                open("count", "w").write(str(n))
        print(json.dumps({"text": "all"}))
    """
    invocation = bench.invocation(source, outputs=(*_TEXT, Pin("out", PinType.STREAM)))
    async with runner.attempt(invocation) as attempt:
        count = bench.folder / "count"
        await eventually(count.exists)
        told = attempt.events()
        await anext(told)
        unread = 3000 - int(count.read_text() or 0)
        assert unread > 1000  # mailbox 20 kB + reader 128 kB + pipe 64 kB hold far less than all
        rest = [e async for e in told]
        assert len(rest) == 2999
        assert (await attempt.outcome()).status == "succeeded"


async def test_programs_that_cannot_start(bench: Bench, runner: LocalRunner) -> None:
    plain = bench.folder / "plain.txt"
    plain.write_text("no program")
    for command, hint in [(["/nonexistent/agent"], "install it"), ([str(plain)], "executable")]:
        outcome, told = await perform(runner, bench.invocation(command))
        assert (outcome.code, outcome.error_class) == (Code.AGENT_START_FAILED, "permanent")
        assert hint in outcome.hint
        assert told == []
    broken = bench.folder / "broken"
    broken.write_text("no interpreter line")
    broken.chmod(0o755)
    outcome, _ = await perform(runner, bench.invocation([str(broken)]))
    assert outcome.code == Code.AGENT_START_FAILED


async def test_inputs_that_are_too_large_for_a_line(bench: Bench, runner: LocalRunner) -> None:
    outcome, _ = await perform(runner, bench.invocation(ECHO, inputs={"text": "x" * (2 << 20)}))
    assert outcome.code == Code.VALUE_TOO_LARGE


async def test_memory_limit(bench: Bench) -> None:
    limited = RunnerSettings(limits=Limits(address_space=1 << 30), grace_s=0.3)
    runner = LocalRunner(limited)
    source = """
        import resource, time
        while resource.getrlimit(resource.RLIMIT_AS)[0] < 0:  # it is set right after the start
            time.sleep(0.01)
        x = bytearray(4 << 30)
        print('{"text": ""}')
    """
    outcome, _ = await perform(runner, bench.invocation(source))
    await runner.aclose()
    assert outcome.status == "failed"
    assert "MemoryError" in outcome.message


HOST = """
    import asyncio, sys
    sys.path.insert(0, {here!r})
    from pathlib import Path
    from support.agent_processes import Bench
    from mentatlab.runners import LocalRunner

    AGENT = '''
        import os, subprocess, sys, time
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        argv = [sys.executable, "-c", "import time; time.sleep(600)"]
        pids = [os.getpid(), subprocess.Popen(argv, **quiet).pid,
                subprocess.Popen(argv, start_new_session=True, **quiet).pid]
        print("pids", *pids)
        while True: time.sleep(600)
    '''

    async def main():
        bench = Bench(Path({folder!r}))
        async with LocalRunner().attempt(bench.invocation(AGENT)) as attempt:
            async for event in attempt.events():
                print(event.message, flush=True)
    asyncio.run(main())
"""


def _start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_no_agent_survives_its_host(tmp_path: Path, number: int) -> None:
    host_file = tmp_path / "host.py"
    here = str(Path(__file__).parents[1])
    host_file.write_text(textwrap.dedent(HOST.format(here=here, folder=str(tmp_path))))
    host = _start([sys.executable, str(host_file)])
    assert host.stdout
    line = await asyncio.to_thread(host.stdout.readline)
    pids = [int(word) for word in line.split()[1:]]
    assert len(pids) == 3
    assert all(alive(p) for p in pids)
    host.send_signal(number)
    host.wait()
    host.stdout.close()
    await eventually(lambda: not any(alive(p) for p in pids))


async def test_limits_are_set(bench: Bench) -> None:
    runner = LocalRunner(RunnerSettings(limits=Limits(open_files=77)))
    source = """
        import json, resource, time
        while resource.getrlimit(resource.RLIMIT_NOFILE) != (77, 77):
            time.sleep(0.01)  # they are set right after the start
        print(json.dumps({"text": str(resource.getrlimit(resource.RLIMIT_CORE))}))
    """
    outcome, _ = await perform(runner, bench.invocation(source))
    await runner.aclose()
    assert outcome.outputs == {"text": "(0, 0)"}
