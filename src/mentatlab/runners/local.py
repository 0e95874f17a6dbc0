"""The local runner: agent processes on this machine, one-shot or warm as the program says."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

import msgspec

from mentatlab.protocol.events import AgentEvent
from mentatlab.runners.child import Guardian
from mentatlab.runners.pool import NotWarm, WarmPool
from mentatlab.runners.port import Attempt, Invocation, Outcome
from mentatlab.runners.process import OneShotAttempt
from mentatlab.runners.settings import RunnerSettings
from mentatlab.runners.warm import Crashes, WarmAttempt, Worker


class LocalRunner:
    """Implements `runners.port.Runner`. Opens nothing before the first attempt."""

    def __init__(self, settings: RunnerSettings | None = None) -> None:
        self._settings = settings or RunnerSettings()
        self._guardian = Guardian()
        self._pool = WarmPool(self._settings, self._guardian)
        self._crashes = Crashes()
        self._running: dict[asyncio.Task[None], OneShotAttempt | WarmAttempt] = {}

    def attempt(self, invocation: Invocation) -> AbstractAsyncContextManager[Attempt]:
        return self._attempt(invocation)

    @asynccontextmanager
    async def _attempt(self, invocation: Invocation) -> AsyncGenerator[Attempt]:
        if invocation.program.warm is None:
            attempt = self._one_shot(invocation)
        else:
            attempt = await self._warm(invocation)
        if isinstance(attempt, NeverBegun):
            yield attempt
            return
        try:
            yield attempt
        finally:
            attempt.stop("cancelled")  # nothing, when it has ended
            await attempt.outcome()

    def _one_shot(self, invocation: Invocation, *, notice: str = "") -> OneShotAttempt:
        attempt = OneShotAttempt(invocation, self._settings, self._guardian)
        if notice:
            attempt.tell(notice)
        self._start(attempt)
        return attempt

    async def _warm(self, invocation: Invocation) -> "OneShotAttempt | WarmAttempt | NeverBegun":
        match await self._pool.acquire(invocation):
            case Worker() as worker:
                attempt = WarmAttempt(invocation, worker, self._settings, self._crashes)
                self._start(attempt, worker)
                return attempt
            case NotWarm(why=why):
                return self._one_shot(invocation, notice=f"{why}; it runs as a process per attempt")
            case Outcome() as outcome:
                return NeverBegun(outcome)

    def _start(self, attempt: OneShotAttempt | WarmAttempt, worker: Worker | None = None) -> None:
        task = asyncio.create_task(self._run(attempt, worker))
        self._running[task] = attempt
        task.add_done_callback(self._running.pop)

    async def _run(self, attempt: OneShotAttempt | WarmAttempt, worker: Worker | None) -> None:
        try:
            await attempt.run()
        finally:
            if worker:
                await self._pool.release(worker)

    async def aclose(self) -> None:
        """End every process; none survives."""
        for attempt in self._running.values():
            attempt.stop("cancelled")
        while self._running:
            await asyncio.wait(list(self._running))
        await self._pool.aclose()
        await self._guardian.aclose()


class NeverBegun:
    """An attempt whose process could not be started."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    async def events(self) -> AsyncIterator[AgentEvent]:
        for event in ():
            yield event

    async def send_chunk(
        self,
        pin: str,
        seq: int,
        *,
        data: Any = msgspec.UNSET,
        ref: Any = msgspec.UNSET,
        pts: float | None = None,
        item: int | None = None,
    ) -> None:
        pass

    async def end_input(
        self, pin: str, status: Literal["complete", "cancelled", "error"] = "complete"
    ) -> None:
        pass

    async def cancel(self, reason: str) -> None:
        pass

    async def outcome(self) -> Outcome:
        return self._outcome
