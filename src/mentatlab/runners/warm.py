"""One invocation on a warm worker, as an attempt."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Literal

import msgspec

from mentatlab.protocol import events
from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.events import AgentEvent
from mentatlab.protocol.stdio import (
    BatchPlace,
    Cancel,
    Credit,
    Eos,
    InputChunk,
    body,
    encode,
    encode_command,
)
from mentatlab.runners import environment
from mentatlab.runners.batches import Member, in_batch
from mentatlab.runners.crashes import Crashes, crash_outcome
from mentatlab.runners.deadlines import watch_deadlines
from mentatlab.runners.hearing import FloodError, admit
from mentatlab.runners.host import Host
from mentatlab.runners.mailbox import LogBudget, Mailbox
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Cause, Ending, Heard, conclude, failed
from mentatlab.runners.window import Window
from mentatlab.runners.worker import Worker

EosStatus = Literal["complete", "cancelled", "error"]


class WarmAttempt:
    """One invocation on a worker. `run()` is its whole life; the other methods talk to it
    meanwhile.
    """

    def __init__(
        self, invocation: Invocation, worker: Worker, host: Host, crashes: Crashes
    ) -> None:
        settings = host.settings
        self.id = worker.new_id()
        self._invocation = invocation
        self._watch = host.watch
        self._worker = worker
        self._settings = settings
        self._crashes = crashes
        self._crashed = False  # its worker died under it
        self._mailbox = Mailbox(settings.mailbox_bytes, taken=self._taken)
        self._budget = LogBudget(settings.log_bytes, settings.flood_bytes)
        self._heard = Heard(invocation.program)
        self._windows = {pin: Window(settings) for pin in invocation.stream_inputs}
        self._consumed: dict[str, int] = {}
        self._granted: dict[str, int] = {}
        self._cause: Cause | None = None
        self._detail = ""  # the numbers to it
        self._told = False  # whether the agent has been given it
        self._stopping = asyncio.Event()
        self._invoked = asyncio.Event()
        self._answered = asyncio.Event()
        self._last_sign = time.monotonic()
        self._alone = False
        self._outcome: Outcome | None = None
        self._done = asyncio.Event()

    # ------------------------------------------------------------------ the engine's side

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
        chunk = InputChunk(id=self.id, pin=pin, seq=seq, data=data, ref=ref, pts=pts, item=item)
        line = encode_command(chunk)
        if window := self._windows.get(pin):
            await window.enter(seq, len(line))
        await self._send(line)

    async def end_input(self, pin: str, status: EosStatus = "complete") -> None:
        await self._send(encode_command(Eos(id=self.id, pin=pin, status=status)))

    async def cancel(self, reason: str) -> None:
        self.stop("cancelled", reason)
        await self._done.wait()

    async def outcome(self) -> Outcome:
        await self._done.wait()
        assert self._outcome is not None
        return self._outcome

    def stop(self, cause: Cause, reason: str = "") -> None:
        """Ask the agent to end the invocation; the first cause counts."""
        if self._cause is None and not self._answered.is_set():
            self._cause, self._detail = cause, reason
            if self._told:
                self._worker.send_soon(encode_command(Cancel(id=self.id, reason=reason or cause)))
                self._close()
                self._stopping.set()
            else:  # it never hears of it
                self._end()

    async def _send(self, line: bytes) -> None:
        await self._invoked.wait()
        if not self._answered.is_set():
            await self._worker.send(line)

    # ------------------------------------------------------------------ the worker's side

    def hear(self, event: AgentEvent, size: int) -> None:
        self._last_sign = time.monotonic()
        if isinstance(event, events.Ack) and (window := self._windows.get(event.pin)):
            window.acknowledge(event.seq)
        told = self._heard.feed(event)
        if told is not None:
            self._pass_on(told, size)
        elif isinstance(event, events.Result | events.Error):
            self._end()

    def _pass_on(self, event: AgentEvent, size: int) -> None:
        try:
            admitted = admit(event, size, self._budget)
        except FloodError:
            self.stop("flood")
            return
        if admitted is not None:
            self._mailbox.push(admitted, size)
        if self._mailbox.waiting > self._settings.unread_bytes:
            self.stop("flood")

    def lost_worker(self, *, alone: bool) -> None:
        self._crashed = not self._answered.is_set()
        self._alone = alone
        self._end()

    def _end(self) -> None:
        self._invoked.set()
        self._answered.set()
        self._stopping.set()
        self._close()

    def _close(self) -> None:
        self._mailbox.close()
        for window in self._windows.values():
            window.release()

    def _taken(self, event: AgentEvent, size: int) -> None:
        """What has been read may be sent again: credit in absolute bytes, when half is used."""
        if isinstance(event, events.Chunk) and event.pin in self._granted:
            consumed = self._consumed[event.pin] = self._consumed.get(event.pin, 0) + size
            if self._granted[event.pin] - consumed < self._settings.credit_bytes // 2:
                self._worker.send_soon(self._grant(event.pin))

    def _grant(self, pin: str) -> bytes:
        bytes_ = self._consumed.get(pin, 0) + self._settings.credit_bytes
        self._granted[pin] = bytes_
        return encode_command(Credit(id=self.id, pin=pin, bytes=bytes_))

    # ------------------------------------------------------------------ the invocation

    async def run(self) -> None:
        """Invoke, listen, end. Being cancelled cancels the invocation and waits for the answer."""
        try:
            self._outcome = await self._live()
        finally:
            self._watch.leave_scratch(self)
            self._worker.remove(self)
            self._end()
            self._done.set()

    async def _live(self) -> Outcome:
        try:
            line = self._invoke_line()
        except TooLarge as error:
            return failed(
                "permanent", Code.VALUE_TOO_LARGE, "the inputs do not fit", hint=error.hint
            )
        invocation = self._invocation
        self._worker.add(self)
        self._watch.enter_scratch(self, invocation.scratch, invocation.resources.scratch, self.stop)
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._invoke(line))
            await watch_deadlines(invocation, self._stopping, self._stop, self._silent_since)
            if not self._answered.is_set():
                await self._await_answer()
            telling.cancel()
        return self._conclude()

    async def _invoke(self, line: bytes) -> None:
        """Beside the clocks: an agent that does not read holds this up."""
        if batches := self._worker.batches:
            member = Member(self._wanted, partial(self._given, line))
            await batches.join(member, most=self._invocation.resources.batch)
        elif self._wanted():
            await self._worker.send(self._given(line))
        self._invoked.set()

    def _wanted(self) -> bool:
        return not self._answered.is_set()

    def _given(self, line: bytes, place: BatchPlace | None = None) -> bytes:
        """What is written."""
        self._told = True
        streams = [p.name for p in self._invocation.program.outputs if p.type == "stream"]
        return in_batch(line, place) + b"".join(self._grant(pin) for pin in streams)

    def _stop(self, cause: Cause) -> None:
        self.stop(cause)

    def _silent_since(self) -> float:
        """While its events wait to be read it is not the agent that is silent."""
        return time.monotonic() if self._mailbox.full else self._last_sign

    async def _await_answer(self) -> None:
        """An agent that ignores `cancel` loses its process."""
        try:
            async with asyncio.timeout(self._settings.grace_s):
                await self._answered.wait()
        except TimeoutError:
            self._worker.break_off(self._cause or "cancelled", blamed=self)
            await self._answered.wait()

    def _invoke_line(self) -> bytes:
        invocation = self._invocation
        inputs = environment.live_inputs(invocation)
        message = body(inputs, invocation.params, invocation.context)
        spec = {**invocation.params, **inputs}
        envelope = {
            "type": "invoke",
            "id": self.id,
            "spec": spec,
            "context": msgspec.to_builtins(invocation.context),
        }
        return encode({**message, **envelope})

    def _conclude(self) -> Outcome:
        program, worker = self._invocation.program, self._worker
        if self._cause is not None or not self._crashed:
            self._crashes.forget(self._invocation)
            return conclude(program, self._heard, Ending(cause=self._cause, detail=self._detail))
        everyones = worker.breach == "memory" or worker.oom  # who took it, nobody can say
        ending = Ending(
            exit_code=worker.exit_code,
            cause=worker.breach if self._alone or everyones else None,
            oom=worker.oom,
            last_words=worker.stderr.last_words,
            detail=worker.detail,
        )
        if ending.cause or ending.oom:
            return conclude(program, self._heard, ending)
        innocent = worker.blamed is not None or not self._told
        times = 0 if innocent else self._crashes.note(self._invocation)
        return crash_outcome(ending, times=times)
