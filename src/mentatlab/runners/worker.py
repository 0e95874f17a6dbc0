"""One warm process, and what it hears and says.

A worker belongs to one (workspace, agent, version, environment). It says `ready` once and is then
told `invoke`, `chunk`, `eos`, `credit`, `cancel`. One that dies, ignores `cancel` or breaks the
protocol takes its other invocations with it: they fail as `infra`, to be tried again elsewhere.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mentatlab.protocol import events
from mentatlab.protocol.errors import TooLarge
from mentatlab.protocol.events import AgentEvent
from mentatlab.protocol.stdio import Drain, Lines, encode_command, parse_event
from mentatlab.runners import environment
from mentatlab.runners.batches import Batches
from mentatlab.runners.census import Usage
from mentatlab.runners.child import Child, read_blocks
from mentatlab.runners.failures import oom_kills
from mentatlab.runners.hearing import Stderr
from mentatlab.runners.host import Host
from mentatlab.runners.port import Invocation
from mentatlab.runners.result import Cause

_PAGE = os.sysconf("SC_PAGE_SIZE")
_DRAIN = encode_command(Drain())


class Listener(Protocol):
    """An attempt, as its worker sees it."""

    @property
    def id(self) -> str: ...

    def hear(self, event: AgentEvent, size: int) -> None: ...

    def lost_worker(self, *, alone: bool) -> None: ...


class Worker:
    """One warm process. `ready` resolves to whether it can serve; `gone` is set after its end."""

    def __init__(
        self, invocation: Invocation, host: Host, *, gone: "Callable[[Worker], None]"
    ) -> None:
        self.invocation = invocation
        self.program = invocation.program
        self.served = 0
        self.load = 0
        """Invocations that hold it; kept by the pool."""
        self.began = self.idle_since = time.monotonic()
        self.retired = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stderr = Stderr()
        self.usage = Usage((), 0, 0.0)
        self.breach: Cause | None = None
        """What the host ended it for."""
        self.oom = False
        self.detail = ""
        """The numbers to it."""
        self.blamed: Listener | None = None
        """The attempt that it was ended for, where one alone is to blame."""
        self.batches = _batches(self)
        self._settings = host.settings
        self._host = host
        self._numbers = 0
        self._child: Child | None = None
        self._attempts: dict[str, Listener] = {}
        self._concurrency: int | None = None
        self._task = asyncio.create_task(self._live())
        self._task.add_done_callback(lambda _: gone(self))

    # ------------------------------------------------------------------ the pool's side

    @property
    def serves(self) -> bool:
        """Whether it is ready and has not ended."""
        return self.ready.done() and not self.retired

    @property
    def capacity(self) -> int:
        """Until it has said `ready`, the manifest's word for it."""
        warm = self.program.warm
        assert warm is not None
        together = warm.batch.max if warm.batch else 1
        return (self._concurrency or warm.concurrency) * together

    @property
    def exit_code(self) -> int | None:
        return self._child.exit_code if self._child else None

    @property
    def worn(self) -> bool:
        """Whether it has served its number of invocations, or grown over its memory."""
        warm = self.program.warm
        if warm is None:
            return False
        many = 0 < warm.max_invocations <= self.served
        return many or 0 < warm.max_rss < self.rss()

    def rss(self) -> int:
        """Resident bytes of the process, or of it and its children when last seen, if that is more;
        0 where the system does not say."""
        return max(self._own_rss(), self.usage.memory)

    def _own_rss(self) -> int:
        if self._child is None:
            return 0
        try:
            pages = Path(f"/proc/{self._child.pid}/statm").read_text().split()[1]
            return int(pages) * _PAGE
        except OSError:
            return 0

    async def retire(self) -> None:
        """Let it end: `drain`, then the end of its input; kill it after the grace."""
        if self._child and self._child.exit_code is None:
            self.send_soon(_DRAIN)
            self._child.close_input()
            await asyncio.wait([self._task], timeout=self._settings.grace_s)
        await self.kill()

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def break_off(
        self, cause: Cause, detail: str = "", *, blamed: "Listener | None" = None
    ) -> None:
        """End the process for what it, or an invocation of it, did; the first reason counts."""
        if self.breach is None:
            self.breach, self.detail, self.blamed = cause, detail, blamed
        self.retired = True
        if self._child:
            self._child.signal(signal.SIGKILL)

    # ------------------------------------------------------------------ an attempt's side

    def new_id(self) -> str:
        self._numbers += 1
        return f"i{self._numbers}"

    def add(self, attempt: Listener) -> None:
        self._attempts[attempt.id] = attempt
        self.served += 1
        if self._task.done():
            attempt.lost_worker(alone=False)

    def remove(self, attempt: Listener) -> None:
        self._attempts.pop(attempt.id, None)

    async def send(self, data: bytes) -> None:
        if self._child:
            await self._child.write(data)

    def send_soon(self, data: bytes) -> None:
        """For short commands out of plain calls: buffered, never waits."""
        if self._child and not self._child.stdin.is_closing():
            self._child.stdin.write(data)

    # ------------------------------------------------------------------ the process

    async def _live(self) -> None:
        try:
            self._child = child = await Child.spawn(
                self.program.command,
                cwd=self.program.directory,
                env=environment.warm(self.invocation),
                limits=self._settings.limits,
                watcher=self._host.guardian,
            )
        except (OSError, ValueError) as error:
            self.retired = True
            self._not_ready(error)
            return
        kills_before = oom_kills()
        self._host.watch.enter(
            child.mark,
            child.pid,
            memory=self._host.memory_for(self.invocation),
            over=self.break_off,
            used=self._note_usage,
        )
        try:
            await self._serve(child)
        finally:
            self.retired = True
            self._host.watch.leave(child.mark)
            await child.aclose()
            self.oom = child.exit_code == -signal.SIGKILL and oom_kills() > kills_before
            self._bereave()

    def _note_usage(self, usage: Usage) -> None:
        self.usage = usage

    async def _serve(self, child: Child) -> None:
        async with asyncio.TaskGroup() as tasks:
            listening = [
                tasks.create_task(self._listen(child)),
                tasks.create_task(self._listen_stderr(child)),
            ]
            await child.exited.wait()
            await asyncio.wait(listening, timeout=self._settings.exit_grace_s)
            for task in listening:
                task.cancel()

    def _not_ready(self, error: Exception) -> None:
        self.ready.set_exception(error)
        self.ready.exception()  # nobody may be waiting for it

    def _bereave(self) -> None:
        if not self.ready.done():
            self._not_ready(WorkerDiedError())
        alone = len(self._attempts) == 1
        for attempt in list(self._attempts.values()):
            attempt.lost_worker(alone=alone)

    async def _listen(self, child: Child) -> None:
        lines = Lines()
        try:
            async for block in read_blocks(child.stdout):
                for line in lines.feed(block):
                    self._hear(line)
        except TooLarge:
            self.break_off("line_too_long")
        else:
            if child.exit_code is None:
                await self._ended_output(child)

    async def _ended_output(self, child: Child) -> None:
        try:
            async with asyncio.timeout(self._settings.exit_grace_s):
                await child.exited.wait()
        except TimeoutError:
            self.break_off("closed_output")

    def _hear(self, line: bytes) -> None:
        if self.breach:  # it is being ended: nothing that it says counts any more
            return
        event = parse_event(line)
        if isinstance(event, events.Ready):
            self._concurrency = max(1, event.concurrency)
            if not self.ready.done():
                self.ready.set_result(None)
        elif event is not None:
            self._dispatch(event, len(line))

    def _dispatch(self, event: AgentEvent, size: int) -> None:
        """To its invocation; what names none is a word of the whole process, for all that run."""
        if event.invocation:
            if attempt := self._attempts.get(event.invocation):
                attempt.hear(event, size)
            elif isinstance(event, events.Chunk) and not self._gave(event.invocation):
                self.break_off("foreign", f"it named {event.invocation[:40]!r}")
            return
        for attempt in list(self._attempts.values()):
            attempt.hear(event, size)

    def _gave(self, id_: str) -> bool:
        """Whether it is, or was, one of its own: a late word for what has ended is no breach."""
        number = id_[1:]
        return number.isascii() and number.isdigit() and int(number) <= self._numbers

    async def _listen_stderr(self, child: Child) -> None:
        async for block in read_blocks(child.stderr):
            for text in self.stderr.feed(block):
                self._dispatch(events.Log(message=text), len(text) + 1)
        for text in self.stderr.end():
            self._dispatch(events.Log(message=text), len(text))


class WorkerDiedError(Exception):
    """It ended before it said `ready`."""


def _batches(worker: Worker) -> Batches | None:
    batch = worker.program.warm.batch if worker.program.warm else None
    return Batches(batch, worker.send) if batch else None
