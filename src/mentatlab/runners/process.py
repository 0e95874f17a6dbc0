"""The one-shot runner: a process per attempt, end of input after its input, its exit is its end."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec

from mentatlab.protocol import events
from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.events import AgentEvent
from mentatlab.protocol.stdio import (
    Eos,
    InputChunk,
    Lines,
    body,
    encode,
    encode_command,
    parse_event,
)
from mentatlab.runners import environment
from mentatlab.runners.child import Child, read_blocks
from mentatlab.runners.deadlines import watch_deadlines
from mentatlab.runners.failures import oom_kills, start_failure
from mentatlab.runners.hearing import FloodError, Stderr, admit
from mentatlab.runners.host import Host
from mentatlab.runners.mailbox import LogBudget, Mailbox
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Cause, Ending, Heard, conclude, failed

EosStatus = Literal["complete", "cancelled", "error"]


class OneShotAttempt:
    """One process. `run()` is its whole life; the other methods talk to it meanwhile."""

    def __init__(self, invocation: Invocation, host: Host) -> None:
        settings = host.settings
        self._invocation = invocation
        self._settings = settings
        self._host = host
        self._mailbox = Mailbox(settings.mailbox_bytes)
        self._budget = LogBudget(settings.log_bytes, settings.flood_bytes)
        self._heard = Heard(invocation.program)
        self._stderr = Stderr()
        self._child: Child | None = None
        self._started = asyncio.Event()  # the input line is written, or there will be none
        self._open_pins = set(invocation.stream_inputs)
        self._cause: Cause | None = None
        self._detail = ""  # the numbers to it
        self._stopping = asyncio.Event()
        self._last_sign = 0.0  # loop time of the last bytes on stdout
        self._outcome: Outcome | None = None
        self._done = asyncio.Event()

    # ------------------------------------------------------------------ the engine's side

    def tell(self, message: str) -> None:
        """A log line from the host itself, before the agent's own; nothing when empty."""
        if not message:
            return
        self._mailbox.push(events.Log(level="warning", message=message), len(message))

    async def events(self) -> AsyncIterator[AgentEvent]:
        async for event in self._mailbox:
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
        chunk = InputChunk(pin=pin, seq=seq, data=data, ref=ref, pts=pts, item=item)
        await self._write(encode_command(chunk))

    async def end_input(self, pin: str, status: EosStatus = "complete") -> None:
        await self._write(encode_command(Eos(pin=pin, status=status)))
        self._open_pins.discard(pin)
        if self._child and not self._open_pins:
            self._child.close_input()

    async def cancel(self, reason: str) -> None:
        del reason  # a signal carries none
        self.stop("cancelled")
        await self._done.wait()

    async def outcome(self) -> Outcome:
        await self._done.wait()
        assert self._outcome is not None
        return self._outcome

    def stop(self, cause: Cause, detail: str = "") -> None:
        """End the process for this reason; the first one counts."""
        if self._cause is None:
            self._cause, self._detail = cause, detail
            self._stopping.set()
            self._mailbox.close()

    async def _write(self, line: bytes) -> None:
        await self._started.wait()
        if self._child:
            await self._child.write(line)

    # ------------------------------------------------------------------ the process

    async def run(self) -> None:
        """Start, listen, end. Being cancelled kills the process."""
        try:
            self._outcome = await self._live()
        except asyncio.CancelledError:
            self._outcome = conclude(
                self._invocation.program, self._heard, Ending(cause=self._cause or "cancelled")
            )
            raise
        finally:
            self._mailbox.close()
            self._started.set()
            self._done.set()

    async def _live(self) -> Outcome:
        invocation = self._invocation
        try:
            message = body(
                environment.live_inputs(invocation), invocation.params, invocation.context
            )
            line = encode(message)
            self._child = child = await Child.spawn(
                invocation.program.command,
                cwd=invocation.program.directory,
                env=environment.one_shot(invocation, message),
                limits=self._host.one_shot_limits(invocation),
                watcher=self._host.guardian,
            )
        except TooLarge as error:
            return failed(
                "permanent", Code.VALUE_TOO_LARGE, "the inputs do not fit", hint=error.hint
            )
        except (OSError, ValueError) as error:
            return start_failure(invocation, error)
        kills_before = oom_kills()
        self._enter_watch(child)
        try:
            await self._converse(child, line)
        finally:
            self._leave_watch(child)
            await child.aclose()
        ending = Ending(
            exit_code=child.exit_code,
            cause=self._cause,
            oom=child.exit_code == -signal.SIGKILL and oom_kills() > kills_before,
            last_words=self._stderr.last_words,
            detail=self._detail,
        )
        return conclude(invocation.program, self._heard, ending)

    def _enter_watch(self, child: Child) -> None:
        invocation, watch = self._invocation, self._host.watch
        memory = self._host.memory_for(invocation)
        watch.enter(child.mark, child.pid, memory=memory, over=self.stop)
        watch.enter_scratch(self, invocation.scratch, invocation.resources.scratch, self.stop)

    def _leave_watch(self, child: Child) -> None:
        self._host.watch.leave(child.mark)
        self._host.watch.leave_scratch(self)

    async def _converse(self, child: Child, line: bytes) -> None:
        self._last_sign = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            talking = [
                tasks.create_task(self._write_input(child, line)),
                tasks.create_task(self._watch(child)),
            ]
            listening = [
                tasks.create_task(self._listen(child)),
                tasks.create_task(self._listen_stderr(child)),
            ]
            await child.exited.wait()
            for task in talking:
                task.cancel()
            await self._hear_out(child, listening)

    async def _hear_out(self, child: Child, listening: list[asyncio.Task[None]]) -> None:
        """Read what stands in the pipes, unless an escaped grandchild keeps them open."""
        while (await asyncio.wait(listening, timeout=self._settings.exit_grace_s))[1]:
            if not self._mailbox.full:
                child.close_pipes()

    async def _write_input(self, child: Child, line: bytes) -> None:
        await child.write(line)
        if not self._open_pins:
            child.close_input()
        self._started.set()

    async def _listen(self, child: Child) -> None:
        lines = Lines()
        try:
            async for block in read_blocks(child.stdout):
                self._last_sign = time.monotonic()
                for line in lines.feed(block):
                    await self._hear(line)
            for line in lines.end():
                await self._hear(line)
        except TooLarge:
            self.stop("line_too_long")
            return
        except FloodError:
            self.stop("flood")
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.exit_grace_s):
                await child.exited.wait()
                return
        self.stop("closed_output")

    async def _hear(self, line: bytes) -> None:
        event = parse_event(line)
        if event is not None and (told := self._heard.feed(event)) is not None:
            await self._pass_on(told, len(line))

    async def _pass_on(self, event: AgentEvent, size: int) -> None:
        admitted = admit(event, size, self._budget)
        if admitted is not None:
            await self._mailbox.put(admitted, size)

    async def _listen_stderr(self, child: Child) -> None:
        try:
            async for block in read_blocks(child.stderr):
                for text in self._stderr.feed(block):
                    await self._pass_on(events.Log(message=text), len(text) + 1)
            for text in self._stderr.end():
                await self._pass_on(events.Log(message=text), len(text))
        except FloodError:
            self.stop("flood")

    async def _watch(self, child: Child) -> None:
        """Wait for a reason to end the process; then ask, and after the grace kill. One that takes
        what others need is not asked.
        """
        await watch_deadlines(self._invocation, self._stopping, self.stop, self._silent_since)
        if self._cause not in ("memory", "processes"):
            child.signal(signal.SIGTERM)
            await asyncio.sleep(self._settings.grace_s)  # cancelled when it is gone
        child.signal(signal.SIGKILL)

    def _silent_since(self) -> float:
        """While its events wait to be read it is not the agent that is silent."""
        return time.monotonic() if self._mailbox.full else self._last_sign
