"""The agent's side of the process contract over real pipes, in this process."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mentatlab.protocol.errors import Code, NotFound
from mentatlab.sdk import Agent, AgentError, MultimodalAgent, StreamingAgent
from mentatlab.sdk.session import Server, serve_one, serve_warm
from mentatlab.sdk.wire import Wire, read_lines

CONTEXT = {"run_id": "rn_1", "node_id": "n"}
LIVE = {"type": "stream", "live": True}


class Host:
    """The host's ends of an agent's two pipes."""

    def __init__(self) -> None:
        agent_in, self._out = os.pipe()
        self._in, agent_out = os.pipe()
        self.lines = read_lines(agent_in)
        self.wire = Wire(agent_out)
        self._agent_out = agent_out
        self._said = read_lines(os.dup(self._in))

    def tell(self, **message: Any) -> None:
        os.write(self._out, json.dumps(message).encode() + b"\n")

    def end(self) -> None:
        os.close(self._out)

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return json.loads(await anext(self._said))

    async def hear_until(self, *types: str) -> list[dict[str, Any]]:
        said = [await self.hear()]
        while said[-1]["type"] not in types:
            said.append(await self.hear())
        return said

    async def aclose(self) -> None:
        await self._said.aclose()  # type: ignore[attr-defined]
        for fd in (self._in, self._agent_out):
            os.close(fd)


async def once(
    agent: Server, *lines: dict[str, Any], **spec: Any
) -> tuple[int, list[dict[str, Any]]]:
    """One-shot: exit status and everything said."""
    host = Host()
    host.tell(spec=spec, context=CONTEXT)
    for line in lines:
        host.tell(**line)
    host.end()
    async with asyncio.timeout(10):
        status = await serve_one(agent, host.wire, host.lines)
    said = await host.hear_until("result", "error")
    await host.aclose()
    return status, said


class Upper(Agent):
    def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        assert threading.current_thread() is not threading.main_thread()
        assert self.context.run_id == "rn_1"
        assert self.params is inputs
        self.log("at work", data={"n": 1})
        self.progress(50, message="half")
        self.metric("tokens", 3, "1")
        self.checkpoint({"done": 1}, stage="s", progress=0.5)
        return {"text": inputs["text"].upper()}


async def test_a_sync_agent_runs_in_a_thread_and_says_what_it_does() -> None:
    status, said = await once(Upper(), text="hi")
    assert status == 0
    assert said == [
        {"type": "log", "message": "at work", "level": "info", "data": {"n": 1}},
        {"type": "progress", "percent": 50, "message": "half"},
        {"type": "metric", "name": "tokens", "value": 3, "unit": "1"},
        {"type": "checkpoint", "state": {"done": 1}, "stage": "s", "progress": 0.5, "offsets": {}},
        {"type": "result", "outputs": {"text": "HI"}},
    ]


class Failing(Agent):
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        if self.error:
            raise self.error
        return "no dict"  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (AgentError("MINE", "m", retryable=True, hint="h"), 3, "MINE"),
        (AgentError("MINE", "m"), 1, "MINE"),
        (NotFound(Code.MODEL_NOT_FOUND, "m", hint="h"), 1, "MODEL_NOT_FOUND"),
        (MemoryError(), 1, "AGENT_OOM"),
        (KeyError("x"), 1, "AGENT_ERROR"),
        (None, 1, "OUTPUT_TYPE"),
    ],
)
async def test_failures(
    error: Exception | None, status: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, said = await once(Failing(error))
    assert (got, said[-1]["type"], said[-1]["code"]) == (status, "error", code)
    assert said[-1]["retryable"] == (status == 3)
    assert ("KeyError" in capsys.readouterr().err) == (code == "AGENT_ERROR")


async def test_a_result_over_a_line_is_an_error() -> None:
    class Large(Agent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"text": "x" * (2 << 20)}

    assert (await once(Large()))[1][-1]["code"] == "AGENT_LINE_TOO_LONG"


class Summing(StreamingAgent):
    async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
        total = 0
        async for item in inputs["in"].chunks():
            total += item.value
            self.checkpoint(total)
            await self.send_chunk(await self.init_stream("out"), total, pts=item.pts)
        return {"total": total}


def chunks(*values: int) -> list[dict[str, Any]]:
    return [
        {"type": "chunk", "pin": "in", "seq": n, "data": v, "pts": n / 2}
        for n, v in enumerate(values, 1)
    ]


async def test_stream_in_and_out() -> None:
    status, said = await once(Summing(), *chunks(1, 2, 3), **{"in": LIVE})
    assert status == 0
    assert [(e["data"], e["pts"]) for e in said if e["type"] == "chunk"] == [
        *((1, 0.5), (3, 1.0), (6, 1.5))
    ]
    assert [e["offsets"] for e in said if e["type"] == "checkpoint"] == [
        *({"in": 1}, {"in": 2}, {"in": 3})
    ]
    assert [e["seq"] for e in said if e["type"] == "ack"][-1] == 3


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize(("code", "status"), [(7, 1), (3, 3), ("no luck", 1)])
async def test_an_agent_that_calls_exit(sync: bool, code: int | str, status: int) -> None:
    class Leaves(Agent):
        def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            sys.exit(code)

    class LeavesLater(Agent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            sys.exit(code)

    ended, said = await once(Leaves() if sync else LeavesLater())
    assert (ended, said[-1]["code"]) == (status, "AGENT_EXIT")
    assert f"sys.exit({code!r})" in said[-1]["message"]
    assert said[-1]["retryable"] is (code == 3)


@pytest.mark.parametrize(("status", "data"), [("error", [1, 3]), ("cancelled", [])])
async def test_an_upstream_that_ends_badly(status: str, data: list[int]) -> None:
    """After `cancelled` what is queued is dropped; all is in the pipe before the agent reads."""
    _, said = await once(
        Summing(), *chunks(1, 2), {"type": "eos", "pin": "in", "status": status}, **{"in": LIVE}
    )
    assert said[-1]["code"] == "UPSTREAM_FAILED"
    assert [e["data"] for e in said if e["type"] == "chunk"] == data


async def test_two_inputs_read_one_after_the_other_do_not_deadlock() -> None:
    class Two(StreamingAgent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {p: [v async for v in inputs[p]][-1] for p in ("b", "a")}

    lines = [
        {"type": "chunk", "pin": pin, "seq": n, "data": n} for pin in "ab" for n in range(1, 600)
    ]
    assert (await _piped(Two(), lines, a=LIVE, b=LIVE))["outputs"] == {"a": 599, "b": 599}


async def _piped(agent: Server, lines: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """As `once`, with more input than a pipe holds."""
    host = Host()

    def write() -> None:
        host.tell(spec=spec, context=CONTEXT)
        for line in lines:
            host.tell(**line)
        host.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(write))
        said = tasks.create_task(host.hear_until("result", "error"))
        tasks.create_task(_serve(agent, host))
    await host.aclose()
    return said.result()[-1]


async def _serve(agent: Server, host: Host) -> None:
    await serve_one(agent, host.wire, host.lines)


async def test_back_pressure_of_a_one_shot_process() -> None:
    """It stops reading its pipe while it works on what it has."""
    started, go_on = asyncio.Event(), asyncio.Event()

    class Slow(StreamingAgent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            count = 0
            async for _ in inputs["in"]:
                count += 1
                started.set()
                await go_on.wait()
            return {"count": count}

    written = 0
    host = Host()

    def write() -> None:
        nonlocal written
        host.tell(spec={"in": LIVE}, context=CONTEXT)
        for n in range(1, 5001):
            host.tell(type="chunk", pin="in", seq=n, data="x" * 100)
            written = n
        host.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.to_thread(write))
        serving = tasks.create_task(_serve(Slow(), host))
        said = tasks.create_task(host.hear_until("result", "error"))
        await started.wait()
        for _ in range(200):  # everything that can move has moved
            await asyncio.sleep(0)
        assert written < 3000  # 256 waiting, two read buffers and a pipe of 64 KiB
        go_on.set()
        await serving
    assert said.result()[-1]["outputs"] == {"count": 5000}
    await host.aclose()


async def test_streams_of_an_invocation() -> None:
    class Steps(StreamingAgent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            async def items() -> Any:
                yield {"path": "x", "metadata": {"mimeType": "image/png"}}
                yield {"type": "image", "ref": {"url": f"mentat://default/blob_{'0' * 26}"}}
                yield {"path": "x", "label": "a value"}
                yield None

            stream_id = await self.stream_output("out", items())
            assert stream_id == await self.init_stream("out")
            await self.send_chunk(stream_id, 1, final=True)
            await self.end_stream(stream_id)
            with pytest.raises(AgentError, match="not an open output"):
                await self.send_chunk(stream_id, 2)
            with pytest.raises(AgentError, match="not an open output"):
                await self.send_chunk("unknown", 2)
            return {}

    said = (await once(Steps()))[1]
    assert said[0] == {
        "type": "chunk",
        "pin": "out",
        "path": "x",
        "metadata": {"mimeType": "image/png"},
    }
    assert "ref" in said[1]
    assert said[2]["data"] == {"path": "x", "label": "a value"}
    assert said[3]["data"] is None
    assert said[4] == {"type": "chunk", "pin": "out", "data": 1, "final": True}


async def test_the_environment_rescues_pins_called_spec_and_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Seen(Agent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {"seen": inputs["spec"], "run": self.context.run_id}

    monkeypatch.setenv("INPUT_SPEC", '{"spec": "mine"}')
    monkeypatch.setenv("INPUT_CONTEXT", '{"run_id": "rn_2", "node_id": "n"}')
    host = Host()
    host.tell(spec="mine", context=CONTEXT)
    host.end()
    assert await serve_one(Seen(), host.wire, host.lines) == 0
    assert (await host.hear())["outputs"] == {"seen": "mine", "run": "rn_2"}
    await host.aclose()


async def test_by_hand_a_bare_object_is_enough() -> None:
    class Echo(Agent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {**inputs, "run": self.context.run_id, "again": self.resume_state}

    host = Host()
    host.tell(text="hi")
    host.end()
    assert await serve_one(Echo(), host.wire, host.lines) == 0
    assert (await host.hear())["outputs"] == {"text": "hi", "run": "local", "again": None}
    await host.aclose()


def test_outside_an_invocation_there_is_no_context() -> None:
    with pytest.raises(AgentError, match="no invocation"):
        _ = Agent().context
    with pytest.raises(NotImplementedError):
        Agent().process({})


@contextlib.asynccontextmanager
async def warm(agent: Server) -> Any:
    host = Host()
    serving = asyncio.create_task(serve_warm(agent, host.wire, host.lines))
    assert (await host.hear())["type"] == "ready"
    yield host
    host.tell(type="drain")
    async with asyncio.timeout(10):
        assert await serving == 0
    host.end()
    await host.aclose()


async def test_warm_invocations_do_not_mix() -> None:
    together = asyncio.Barrier(3)

    class Together(StreamingAgent):
        concurrency = 3

        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            await together.wait()
            await self.stream_output("out", self.params["n"])
            return {"n": inputs["n"]}

    async with warm(Together()) as host:
        for n in range(3):
            host.tell(type="invoke", id=f"i{n}", spec={"n": n}, context=CONTEXT)
        said = [await host.hear() for _ in range(6)]
    assert {(e["id"], e["data"]) for e in said if e["type"] == "chunk"} == {
        *(("i0", 0), ("i1", 1), ("i2", 2))
    }
    assert {(e["id"], e["outputs"]["n"]) for e in said if e["type"] == "result"} == {
        *(("i0", 0), ("i1", 1), ("i2", 2))
    }


async def test_warm_streams_credit_and_unknown_commands() -> None:
    async with warm(Summing()) as host:
        host.tell(type="invoke", id="i", spec={"in": LIVE}, context=CONTEXT)
        host.tell(type="credit", id="i", pin="out", bytes=1)
        host.tell(type="of tomorrow", id="i")
        host.tell(type="chunk", id="gone", pin="in", seq=1, data=1)
        for chunk in chunks(1, 2):
            host.tell(**chunk, id="i")
        assert [e["type"] for e in await host.hear_until("chunk")] == ["checkpoint", "chunk"]
        assert (await host.hear())["type"] in ("ack", "checkpoint")
        host.tell(type="credit", id="i", pin="out", bytes=1000)
        host.tell(type="eos", id="i", pin="in", status="complete")
        assert (await host.hear_until("result"))[-1]["outputs"] == {"total": 3}


@pytest.mark.parametrize("sync", [False, True])
async def test_warm_cancel(sync: bool) -> None:
    class Waiting(Agent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            self.log("at work")
            await asyncio.Event().wait()
            return {}

    class WaitingInThread(Agent):
        def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            self.log("at work")
            while not self.cancelled:
                threading.Event().wait(0.01)
            return {}

    async with warm(WaitingInThread() if sync else Waiting()) as host:
        host.tell(type="invoke", id="i", spec={}, context=CONTEXT)
        await host.hear_until("log")
        host.tell(type="cancel", id="i", reason="enough")
        assert (await host.hear())["code"] == "AGENT_CANCELLED"


async def test_media(tmp_path: Path) -> None:
    class Media(MultimodalAgent):
        async def process(self, inputs: dict[str, Any]) -> dict[str, Any]:
            with self.open_media(inputs["file"]) as file:
                file.seek(-2, os.SEEK_END)
                tail = file.read()
            data = await self.process_media(inputs["file"])

            async def blocks() -> Any:
                yield data
                yield b"!"

            given = tmp_path / "given.txt"
            given.write_bytes(b"given")
            (tmp_path / "out").mkdir(exist_ok=True)
            inside = tmp_path / "out" / "inside.txt"
            inside.write_bytes(b"inside")
            values = [
                await self.upload_media("a", data, {"mimeType": "image/png"}),
                await self.upload_media("b", blocks()),
                await self.upload_media("c", given),
                await self.upload_media("d", str(inside)),
            ]
            with pytest.raises(AgentError, match="not a media reference"):
                await self.download_media({"type": "image"})
            return {"tail": tail.decode(), "values": values}

    medium = tmp_path / "medium"
    medium.write_bytes(b"abcd")
    host = Host()
    context = {**CONTEXT, "out_dir": str(tmp_path / "out")}
    host.tell(spec={"file": {"path": str(medium)}}, context=context)
    host.end()
    assert await serve_one(Media(), host.wire, host.lines) == 0
    outputs = (await host.hear())["outputs"]
    await host.aclose()
    assert outputs["tail"] == "cd"
    names = [Path(v["path"]).name for v in outputs["values"]]
    assert names == ["a-1.png", "b-2", "c-3.txt", "inside.txt"]
    contents = [(tmp_path / "out" / name).read_bytes() for name in names]
    assert contents == [b"abcd", b"abcd!", b"given", b"inside"]
    assert outputs["values"][0]["metadata"] == {"mimeType": "image/png"}


async def test_a_slow_host_holds_up_one_task_not_the_loop() -> None:
    """Two tasks write more than the pipe holds; the loop goes on, and lines stay whole."""
    read_end, write_end = os.pipe()
    wire = Wire(write_end)
    line = json.dumps({"x": "y" * 50_000}).encode() + b"\n"
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(wire.send_line(line))
        await asyncio.sleep(0)
        got = [found async for found in _first(read_lines(read_end), 4)]
    assert got == [line.strip()] * 4
    os.close(write_end)


async def test_a_cancelled_line_is_written_whole_though_all_shared_threads_wait() -> None:
    read_end, write_end = os.pipe()
    wire, gate = Wire(write_end), threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    def tell() -> None:
        gate.wait()
        wire.send({"type": "log"})

    telling = asyncio.create_task(asyncio.to_thread(tell))
    line = json.dumps({"x": "y" * 100_000}).encode() + b"\n"  # more than the pipe holds
    sending = asyncio.create_task(wire.send_line(line))
    await asyncio.sleep(0)
    sending.cancel()
    gate.set()
    async with asyncio.timeout(10):
        assert [found async for found in _first(read_lines(read_end), 2)] == [
            line.strip(),
            b'{"type":"log"}',
        ]
        await telling
    os.close(write_end)


async def _first(lines: Any, count: int) -> Any:
    async with contextlib.aclosing(lines):
        for _ in range(count):
            yield await anext(lines)


def test_a_host_that_has_gone_is_told_nothing() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    wire = Wire(write_end)
    wire.send({"type": "log"})
    wire.send({"type": "log"})
    os.close(write_end)


BY_HAND = """
import os, subprocess, sys
from mentatlab.sdk import Agent

class Loud(Agent):
    async def process(self, inputs):
        print("python")
        os.write(1, b"native\\n")
        subprocess.run(["sh", "-c", "cat; echo child"], check=True)
        return {"text": inputs["text"]}

Loud.main()
"""


@pytest.mark.parametrize("through_file", [False, True])
def test_stdout_belongs_to_the_protocol(tmp_path: Path, through_file: bool) -> None:
    """A print, a C library and a child process all write to fd 1, and a child reads stdin."""
    script, given = tmp_path / "main.py", tmp_path / "input"
    script.write_text(BY_HAND)
    given.write_text('{"text": "hi"}\n')
    more: dict[str, Any] = {"stdin": given.open()} if through_file else {"input": given.read_text()}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=20, **more
    )
    if through_file:
        more["stdin"].close()
    assert json.loads(done.stdout) == {"type": "result", "outputs": {"text": "hi"}}
    assert done.stderr.split() == ["python", "native", "child"]


def test_sigterm_cancels_a_one_shot_agent(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import asyncio\nfrom mentatlab.sdk import Agent, run\n"
        "class Wait(Agent):\n"
        "    async def process(self, inputs):\n"
        "        self.log('at work')\n"
        "        try:\n            await asyncio.sleep(600)\n"
        "        finally:\n            self.log('tidied up')\n"
        "run(Wait)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("{}\n")
        process.stdin.close()
        assert "at work" in process.stdout.readline()
        process.terminate()
        assert "tidied up" in process.stdout.readline()
        assert json.loads(process.stdout.readline())["code"] == "AGENT_CANCELLED"
        assert process.wait(timeout=10) == 1


def test_the_import_is_light() -> None:
    """msgspec and the standard library only (typing_extensions is msgspec's, when installed)."""
    code = (
        "import sys; before = set(sys.modules); import mentatlab.sdk;"
        "print(*sorted({n.split('.')[0] for n in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = {n for n in done.stdout.split() if n not in sys.stdlib_module_names}
    assert foreign <= {"mentatlab", "msgspec", "typing_extensions"}
    heavy: Callable[[str], bool] = lambda n: n in done.stdout.split()  # noqa: E731
    assert not any(map(heavy, ("urllib.request", "http", "email", "multiprocessing")))
