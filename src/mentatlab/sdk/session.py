"""The agent's side of the process contract: one-shot, or warm when the host says so
(`MENTAT_WARM=1`).
"""

import asyncio
import inspect
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, cast

import msgspec

from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.stdio import (
    Cancel,
    Command,
    Credit,
    Drain,
    Eos,
    InputChunk,
    Invoke,
    parse_command,
)
from mentatlab.sdk.batching import Batcher, BatchServer
from mentatlab.sdk.errors import AgentError
from mentatlab.sdk.invocation import Invocation, enter
from mentatlab.sdk.wire import Wire, claim_stdio, read_lines

EXIT_TRANSIENT = 3
_CANCELLED = AgentError(Code.AGENT_CANCELLED, "cancelled")


class Server(Protocol):
    """What can serve a host: an `Agent`."""

    concurrency: int

    def process(self, inputs: dict[str, Any]) -> dict[str, Any] | Awaitable[dict[str, Any]]: ...


def run(agent: Server | type[Server]) -> None:
    """Serve the host on stdin and stdout, then exit. A class is instantiated before `ready`."""
    stdio = claim_stdio()
    wire = Wire(stdio.output)
    server = agent() if isinstance(agent, type) else agent
    serve = serve_warm if os.environ.get("MENTAT_WARM") == "1" else serve_one
    sys.exit(asyncio.run(serve(server, wire, read_lines(stdio.input))))


async def serve_one(server: Server, wire: Wire, lines: AsyncIterator[bytes]) -> int:
    """One invocation from one line, its chunk lines and end of file. The exit status."""
    body = _one_shot_body(await anext(lines, b"{}"))
    invocation = Invocation(wire, body["spec"], body["context"])
    if inspect.iscoroutinefunction(server.process):  # a thread cannot be cancelled: SIGTERM ends it
        _cancel_on_sigterm()
    feeding = asyncio.create_task(_feed(invocation, lines))
    try:
        failure = await _invoke(_how(server), invocation)
    finally:
        feeding.cancel()
    return 0 if failure is None else EXIT_TRANSIENT if failure.retryable else 1


def _cancel_on_sigterm() -> None:
    if task := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _one_shot_body(line: bytes) -> dict[str, Any]:
    """Spec and context. A pin that is called `spec` or `context` hides the line's; the environment
    has both.
    """
    body: dict[str, Any] = msgspec.json.decode(line)
    spec = _from_environment("INPUT_SPEC") or body.get("spec")
    context = _from_environment("INPUT_CONTEXT") or body.get("context")
    by_hand = {"run_id": "local", "node_id": "agent"}
    return {"spec": body if spec is None else spec, "context": by_hand | (context or {})}


def _from_environment(name: str) -> dict[str, Any] | None:
    text = os.environ.get(name)
    return msgspec.json.decode(text) if text else None


async def _feed(invocation: Invocation, lines: AsyncIterator[bytes]) -> None:
    async for line in lines:
        match parse_command(line):
            case InputChunk() as chunk:
                invocation.put(chunk)
                await invocation.wait_for_room()
            case Eos(pin=pin, status=status):
                invocation.end_input(pin, status)
            case _:
                pass
    invocation.end_inputs()


async def serve_warm(server: Server, wire: Wire, lines: AsyncIterator[bytes]) -> int:
    """Many invocations, several at a time, until the host drains or has gone. The exit status."""
    wire.send({"type": "ready", "protocol": 1, "concurrency": server.concurrency})
    await _WarmSession(server, wire).serve(lines)
    return 0


class _WarmSession:
    def __init__(self, server: Server, wire: Wire) -> None:
        self._process = _how(server)
        self._wire = wire
        self._running: dict[str, tuple[Invocation, asyncio.Task[None]]] = {}

    async def serve(self, lines: AsyncIterator[bytes]) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for line in lines:
                command = parse_command(line)
                if isinstance(command, Drain):
                    return  # the group waits for what still runs
                self._obey(command, tasks)
            if self._running:  # end of file: the host has gone, and threads cannot be cancelled
                os._exit(1)

    def _obey(self, command: Command | None, tasks: asyncio.TaskGroup) -> None:
        match command:
            case Invoke(id=id_, spec=spec, context=context, batch=batch):
                invocation = Invocation(self._wire, spec, context, id_=id_, batch=batch)
                task = tasks.create_task(self._run(invocation))
                self._running[id_] = (invocation, task)
            case InputChunk() | Eos() | Credit() | Cancel() if command.id in self._running:
                _deliver(command, *self._running[command.id])
            case _:
                pass

    async def _run(self, invocation: Invocation) -> None:
        try:
            await _invoke(self._process, invocation)
        finally:
            del self._running[invocation.id]


def _deliver(
    command: InputChunk | Eos | Credit | Cancel, invocation: Invocation, task: asyncio.Task[None]
) -> None:
    match command:
        case InputChunk():
            invocation.put(command)
        case Eos(pin=pin, status=status):
            invocation.end_input(pin, status)
        case Credit(pin=pin, bytes=bytes_):
            invocation.grant(pin, bytes_)
        case Cancel():  # after its first step: before it, it would never answer
            asyncio.get_running_loop().call_soon(task.cancel)


Process = Callable[[Invocation], Awaitable[object]]


def _how(server: Server) -> Process:
    """One invocation at a time, or several in one call."""
    if isinstance(server, BatchServer):
        batcher = Batcher(server, server.concurrency)
        return lambda invocation: batcher.process(invocation, invocation.batch)
    return lambda invocation: _process(server, invocation)


async def _invoke(process: Process, invocation: Invocation) -> AgentError | None:
    """Run `process` and tell the host how it ended."""
    enter(invocation)
    try:
        outputs = await process(invocation)
        invocation.emit("result", outputs=_checked(outputs))
    except asyncio.CancelledError:
        failure = _CANCELLED
    except SystemExit as error:
        failure = _exited(error)
    except Exception as error:  # noqa: BLE001 — whatever the author's code raises becomes an event
        failure = _as_agent_error(error)
    else:
        return None
    invocation.emit(
        "error",
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        hint=failure.hint or None,
    )
    return failure


async def _process(server: Server, invocation: Invocation) -> object:
    if inspect.iscoroutinefunction(server.process):
        return await server.process(invocation.inputs)
    thread = asyncio.ensure_future(asyncio.to_thread(_call, server, invocation.inputs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        invocation.cancelled.set()  # the thread may look; until it returns the invocation goes on
        await asyncio.wait([thread])
        raise


def _call(server: Server, inputs: dict[str, Any]) -> object:
    try:
        return server.process(inputs)
    except SystemExit as error:  # would end the event loop, and other invocations with it
        raise _exited(error) from error


def _exited(error: SystemExit) -> AgentError:
    return AgentError(
        Code.AGENT_EXIT,
        f"process() called sys.exit({error.code!r})",
        retryable=error.code == EXIT_TRANSIENT,
        hint="raise AgentError to fail, return the outputs to succeed",
    )


def _checked(outputs: object) -> dict[str, Any]:
    if isinstance(outputs, dict):
        return cast("dict[str, Any]", outputs)
    raise AgentError(
        Code.OUTPUT_TYPE,
        f"process() returned {type(outputs).__name__}, not a dict",
        hint="return the output pins by name, e.g. {'text': …}",
    )


def _as_agent_error(error: Exception) -> AgentError:
    match error:
        case AgentError():
            return error
        case ExceptionGroup(exceptions=[Exception() as only]):  # out of an agent's own TaskGroup
            return _as_agent_error(only)
        case MentatError():
            return AgentError(error.code, error.message, retryable=error.retryable, hint=error.hint)
        case MemoryError():
            return AgentError(Code.AGENT_OOM, "the agent ran out of memory")
        case _:
            traceback.print_exception(error)
            return AgentError(Code.AGENT_ERROR, f"{type(error).__name__}: {error}")
