"""The local runner: agent processes on this machine, one-shot, warm or a service as the program
says, as many at once as the machine carries."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec

from mentatlab.runners.admission import Admission, Request
from mentatlab.runners.child import Guardian
from mentatlab.runners.crashes import Crashes
from mentatlab.runners.host import Host
from mentatlab.runners.ledger import Ledger, need_of
from mentatlab.runners.machine import Machine, this_machine
from mentatlab.runners.pending import Begun, PendingAttempt, refused
from mentatlab.runners.pool import NotWarm, WarmPool, sized
from mentatlab.runners.port import Attempt, Invocation, Outcome
from mentatlab.runners.process import OneShotAttempt
from mentatlab.runners.settings import RunnerSettings
from mentatlab.runners.warm import WarmAttempt
from mentatlab.runners.watch import Watch
from mentatlab.runners.worker import Worker


class LocalRunner:
    """Implements `runners.port.Runner`. Opens nothing before the first attempt."""

    def __init__(self, settings: RunnerSettings | None = None) -> None:
        settings = settings or RunnerSettings()
        self.machine: Machine = settings.machine or this_machine()
        self._host = Host(settings, self.machine, Guardian(), Watch())
        ledger = Ledger(self.machine)
        self._pool = WarmPool(self._host, ledger)
        self._admission = Admission(self._pool, ledger)
        self._crashes = Crashes()
        self._waiting: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], Begun] = {}

    def attempt(self, invocation: Invocation) -> AbstractAsyncContextManager[Attempt]:
        return self._attempt(invocation)

    @asynccontextmanager
    async def _attempt(self, invocation: Invocation) -> AsyncGenerator[Attempt]:
        attempt = self._begin(invocation)
        try:
            yield attempt
        finally:
            attempt.stop("cancelled")  # nothing, when it has ended
            await attempt.outcome()

    def _begin(self, invocation: Invocation) -> Begun | PendingAttempt:
        request = self._request(invocation)
        if isinstance(request, Outcome):
            return refused(request)
        granted = self._admission.enter(request)
        if granted and (request.worker is None or request.worker.serves):
            return self._start(request)
        pending = PendingAttempt()
        self._wait(request, pending)
        return pending

    def _request(self, invocation: Invocation) -> Request | Outcome:
        warm, notice = invocation.program.warm is not None, ""
        if warm and self._pool.was_never_ready(invocation):
            warm, notice = False, _one_shot("the agent did not say ready before")
        machine = self.machine
        if warm:
            invocation = sized(invocation)
            machine = msgspec.structs.replace(machine, memory=self._pool.memory)
        need = need_of(invocation, machine)
        if isinstance(need, Outcome):
            return need
        return Request(invocation=invocation, need=need, warm=warm, notice=notice)

    def _wait(self, request: Request, pending: PendingAttempt) -> None:
        """Until there is room and the worker is ready; gives the place back when nothing comes of
        it."""
        task = asyncio.create_task(self._settle(request, pending))
        self._waiting.add(task)
        pending.on_cancel(task.cancel)

        def settled(task: asyncio.Task[None]) -> None:
            self._waiting.discard(task)
            if not request.begun:
                self._admission.leave(request)
            if task.cancelled():
                pending.stop("cancelled")
            elif error := task.exception():
                pending.fail(error)

        task.add_done_callback(settled)

    async def _settle(self, request: Request, pending: PendingAttempt) -> None:
        if not request.granted and request.turn:
            await request.turn
        pending.granted()
        if request.worker is None:
            pending.become(self._start(request))
            return
        match await self._pool.until_ready(request.worker, request.invocation):
            case Worker():
                pending.become(self._start(request))
            case NotWarm(why=why):
                self._instead(request, why, pending)
            case Outcome() as outcome:
                pending.become(outcome)

    def _instead(self, request: Request, why: str, pending: PendingAttempt) -> None:
        """The same as a process of its own."""
        alone = Request(
            invocation=request.invocation, need=request.need, warm=False, notice=_one_shot(why)
        )
        self._admission.enter(alone)
        self._wait(alone, pending)

    def _start(self, request: Request) -> Begun:
        request.begun = True
        invocation = request.invocation
        if request.worker:
            attempt = WarmAttempt(invocation, request.worker, self._host, self._crashes)
        else:
            attempt = OneShotAttempt(invocation, self._host)
            attempt.tell(request.notice)
        task = asyncio.create_task(self._run(request, attempt))
        self._running[task] = attempt
        task.add_done_callback(self._running.pop)
        return attempt

    async def _run(self, request: Request, attempt: Begun) -> None:
        try:
            await attempt.run()
        finally:
            self._admission.leave(request)

    async def aclose(self) -> None:
        """End every process; none survives."""
        for task in self._waiting:
            task.cancel()
        while self._waiting:
            await asyncio.wait(self._waiting)
        for attempt in self._running.values():
            attempt.stop("cancelled")
        while self._running:
            await asyncio.wait(list(self._running))
        await self._pool.aclose()
        await self._host.watch.aclose()
        await self._host.guardian.aclose()


def _one_shot(why: str) -> str:
    return f"{why}; it runs as a process per attempt"
