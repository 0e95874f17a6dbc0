"""A runner whose agents are coroutines of the test: everything of the engine but the processes.

async def shout(call: Call) -> dict[str, Any]:
    return {"text": call.invocation.inputs["text"].upper()}

runner = CoroutineRunner({"shout": shout})
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mentatlab.protocol.events import AgentEvent, Checkpoint, Chunk
from mentatlab.runners.port import ErrorClass, Invocation, Outcome

CANCELLED = Outcome(status="cancelled", code="AGENT_CANCELLED", message="stopped")


class Failure(Exception):  # noqa: N818
    """Raised by an agent to end as a process does that failed so."""

    def __init__(self, class_: ErrorClass, code: str = "AGENT_ERROR") -> None:
        super().__init__(code)
        self.outcome = Outcome(status="failed", error_class=class_, code=code, message=code)


class Call:
    """One attempt, on the agent's side."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.said: asyncio.Queue[AgentEvent | None] = asyncio.Queue()
        self.given: dict[str, asyncio.Queue[tuple[str, Any]]] = {
            pin: asyncio.Queue() for pin in invocation.stream_inputs
        }

    @property
    def attempt(self) -> int:
        return self.invocation.context.attempt

    def say(self, event: AgentEvent) -> None:
        self.said.put_nowait(event)

    def send(self, pin: str, *elements: Any) -> None:
        for element in elements:
            self.say(Chunk(pin=pin, data=element))

    def checkpoint(self, state: Any) -> None:
        self.say(Checkpoint(state=state))

    def take_slowly(self) -> None:
        """As a pipe that is full: what comes waits until the one before it was taken."""
        self.given = {pin: asyncio.Queue(1) for pin in self.given}

    async def elements(self, pin: str) -> AsyncIterator[Any]:
        """Until the input has ended, however it did."""
        while (given := await self.given[pin].get())[0] == "chunk":
            yield given[1]


Agent = Callable[[Call], Awaitable[dict[str, Any]]]


class _Attempt:
    def __init__(self, call: Call, agent: Agent) -> None:
        self._call = call
        self._task = asyncio.create_task(self._run(agent))

    async def _run(self, agent: Agent) -> Outcome:
        try:
            return Outcome(status="succeeded", outputs=await agent(self._call))
        except Failure as failure:
            return failure.outcome
        finally:
            self._call.said.put_nowait(None)

    async def events(self) -> AsyncIterator[AgentEvent]:
        while (event := await self._call.said.get()) is not None:
            yield event

    async def send_chunk(
        self, pin: str, seq: int, *, data: Any = None, ref: Any = None, **_: Any
    ) -> None:
        await self._call.given[pin].put(("chunk", data if ref is None else ref))

    async def end_input(self, pin: str, status: str = "complete") -> None:
        await self._call.given[pin].put((status, None))

    async def cancel(self, reason: str) -> None:
        self._task.cancel()
        self._call.said.put_nowait(None)

    async def outcome(self) -> Outcome:
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled():
                return CANCELLED
            raise

    async def aclose(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class CoroutineRunner:
    """`calls` holds every attempt that was begun, in order."""

    def __init__(self, agents: Mapping[str, Agent]) -> None:
        self._agents = agents
        self.calls: list[Call] = []

    @asynccontextmanager
    async def attempt(self, invocation: Invocation) -> AsyncGenerator[_Attempt]:
        call = Call(invocation)
        self.calls.append(call)
        attempt = _Attempt(call, self._agents[invocation.program.id])
        try:
            yield attempt
        finally:
            await attempt.aclose()

    async def aclose(self) -> None:
        pass

    def begun(self) -> list[tuple[str, int | None, int]]:
        """(node, item, attempt) in the order of their starts."""
        contexts = [call.invocation.context for call in self.calls]
        return [(c.node_id, c.item, c.attempt) for c in contexts]
