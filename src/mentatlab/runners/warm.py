"""The warm runner: agent processes that serve many invocations, several at a time.

A worker belongs to one (workspace, agent, version, environment). It says `ready` once and is then
told `invoke`, `chunk`, `eos`, `credit`, `cancel`. One that dies, ignores `cancel` or breaks the
protocol takes its other invocations with it: they fail as `infra`, to be tried again elsewhere.
"""

import asyncio
import hashlib
import itertools
import os
import signal
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec

from mentatlab.protocol import events
from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.events import AgentEvent
from mentatlab.protocol.stdio import (
    Cancel,
    Credit,
    Eos,
    InputChunk,
    Lines,
    body,
    encode,
    encode_command,
    parse_event,
)
from mentatlab.runners import environment
from mentatlab.runners.child import Child, Guardian, read_blocks
from mentatlab.runners.deadlines import watch_deadlines
from mentatlab.runners.failures import oom_kills
from mentatlab.runners.hearing import FloodError, Stderr, admit
from mentatlab.runners.mailbox import LogBudget, Mailbox
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Cause, Ending, Heard, conclude, failed
from mentatlab.runners.settings import RunnerSettings

EosStatus = Literal["complete", "cancelled", "error"]
POISON = 3
"""Crashes over one input after which it is not tried again."""

_REMEMBERED_CRASHES = 1000
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One warm process. `ready` resolves to whether it can serve; `gone` is set after its end."""

    def __init__(self, invocation: Invocation, settings: RunnerSettings, watcher: Guardian) -> None:
        self.program = invocation.program
        self.served = 0
        self.load = 0
        """Invocations that hold it; kept by the pool."""
        self.idle_since = time.monotonic()
        self.retired = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stderr = Stderr()
        self.breach: Cause | None = None
        """What the host ended it for."""
        self.oom = False
        self._invocation = invocation
        self._settings = settings
        self._guardian = watcher
        self._child: Child | None = None
        self._attempts: dict[str, WarmAttempt] = {}
        self._concurrency: int | None = None
        self._task = asyncio.create_task(self._live())

    # ------------------------------------------------------------------ the pool's side

    @property
    def capacity(self) -> int:
        """Until it has said `ready`, the manifest's word for it."""
        warm = self.program.warm
        return self._concurrency or (warm.concurrency if warm else 1)

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
        """Resident bytes; 0 where the system does not say."""
        if self._child is None:
            return 0
        try:
            pages = Path(f"/proc/{self._child.pid}/statm").read_text().split()[1]
            return int(pages) * _PAGE
        except OSError:
            return 0

    async def retire(self) -> None:
        """Let it end; kill it after the grace."""
        if self._child and self._child.exit_code is None:
            self._child.close_input()
            await asyncio.wait([self._task], timeout=self._settings.grace_s)
        await self.kill()

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def break_off(self, cause: Cause) -> None:
        """End the process for what an invocation of it did."""
        self.breach = self.breach or cause
        if self._child:
            self._child.signal(signal.SIGKILL)

    # ------------------------------------------------------------------ an attempt's side

    def add(self, attempt: "WarmAttempt") -> None:
        self._attempts[attempt.id] = attempt
        self.served += 1
        if self._task.done():
            attempt.lost_worker(alone=False)

    def remove(self, attempt: "WarmAttempt") -> None:
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
                env=environment.warm(self._invocation),
                limits=self._settings.limits,
                watcher=self._guardian,
            )
        except (OSError, ValueError) as error:
            self.retired = True
            self.ready.set_exception(error)
            return
        kills_before = oom_kills()
        try:
            await self._serve(child)
        finally:
            self.retired = True
            await child.aclose()
            self.oom = child.exit_code == -signal.SIGKILL and oom_kills() > kills_before
            self._bereave()

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

    def _bereave(self) -> None:
        if not self.ready.done():
            self.ready.set_exception(WorkerDiedError())
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
            return
        for attempt in list(self._attempts.values()):
            attempt.hear(event, size)

    async def _listen_stderr(self, child: Child) -> None:
        async for block in read_blocks(child.stderr):
            for text in self.stderr.feed(block):
                self._dispatch(events.Log(message=text), len(text) + 1)
        for text in self.stderr.end():
            self._dispatch(events.Log(message=text), len(text))


class WorkerDiedError(Exception):
    """It ended before it said `ready`."""


class _Sent(NamedTuple):
    seq: int
    size: int


class _Window:
    """The unacknowledged chunks of one stream input."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._sent: deque[_Sent] = deque()
        self._bytes = 0
        self._open = asyncio.Event()
        self._open.set()

    async def enter(self, seq: int, size: int) -> None:
        await self._open.wait()
        self._sent.append(_Sent(seq, size))
        self._bytes += size
        self._judge()

    def acknowledge(self, seq: int) -> None:
        while self._sent and self._sent[0].seq <= seq:
            self._bytes -= self._sent.popleft().size
        self._judge()

    def release(self) -> None:
        self._sent.clear()
        self._open.set()

    def _judge(self) -> None:
        chunks, bytes_ = self._settings.window_chunks, self._settings.window_bytes
        if len(self._sent) < chunks and self._bytes < bytes_:
            self._open.set()
        else:
            self._open.clear()


class Crashes:
    """How often a worker died over an input. Kept for the last thousand inputs that did it."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def note(self, invocation: Invocation) -> int:
        key = _input_digest(invocation)
        times = self._counts.pop(key, 0) + 1
        self._counts[key] = times
        while len(self._counts) > _REMEMBERED_CRASHES:
            self._counts.popitem(last=False)
        return times

    def forget(self, invocation: Invocation) -> None:
        if self._counts:
            self._counts.pop(_input_digest(invocation), None)


def _input_digest(invocation: Invocation) -> bytes:
    """Of agent and input; not of where a medium lies, which differs from attempt to attempt."""
    program = invocation.program
    document = [program.id, program.version, _bare(invocation.inputs), invocation.params]
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).digest()


def _bare(value: Any) -> Any:
    match value:
        case Mapping():
            items = cast("Mapping[str, Any]", value).items()
            return {k: _bare(v) for k, v in items if k not in ("path", "get")}
        case list():
            return [_bare(v) for v in cast("list[Any]", value)]
        case _:
            return value


def crash_outcome(ending: Ending, *, times: int) -> Outcome:
    """Tried again elsewhere, until the same input has ended three processes."""
    said = f": {ending.last_words}" if ending.last_words else ""
    message = f"the agent's process ended during the work (exit code {ending.exit_code}){said}"
    if times < POISON:
        return failed(
            "infra",
            Code.AGENT_KILLED,
            message,
            hint="the node's log has its last words",
            exit_code=ending.exit_code,
        )
    return failed(
        "permanent",
        Code.AGENT_KILLED,
        message,
        hint=f"this input has ended the agent's process {times} times; look at its log",
        exit_code=ending.exit_code,
    )


_ids = itertools.count(1)


class WarmAttempt:
    """One invocation on a worker. `run()` is its whole life; the other methods talk to it
    meanwhile.
    """

    def __init__(
        self, invocation: Invocation, worker: Worker, settings: RunnerSettings, crashes: Crashes
    ) -> None:
        self.id = f"i{next(_ids)}"
        self._invocation = invocation
        self._worker = worker
        self._settings = settings
        self._crashes = crashes
        self._crashed = False  # its worker died under it
        self._mailbox = Mailbox(settings.mailbox_bytes, taken=self._taken)
        self._budget = LogBudget(settings.log_bytes, settings.flood_bytes)
        self._heard = Heard(invocation.program)
        self._windows = {pin: _Window(settings) for pin in invocation.stream_inputs}
        self._consumed: dict[str, int] = {}
        self._granted: dict[str, int] = {}
        self._cause: Cause | None = None
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
            self._cause = cause
            self._worker.send_soon(encode_command(Cancel(id=self.id, reason=reason or cause)))
            self._close()
            self._stopping.set()

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
        self._worker.add(self)
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._invoke(line))
            await watch_deadlines(self._invocation, self._stopping, self._stop, self._silent_since)
            if not self._answered.is_set():
                await self._await_answer()
            telling.cancel()
        return self._conclude()

    async def _invoke(self, line: bytes) -> None:
        """Beside the clocks: an agent that does not read holds this up."""
        await self._worker.send(line)
        self._invoked.set()

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
            self._worker.break_off(self._cause or "cancelled")
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
        streams = [p.name for p in invocation.program.outputs if p.type == "stream"]
        return encode({**message, **envelope}) + b"".join(self._grant(pin) for pin in streams)

    def _conclude(self) -> Outcome:
        program, worker = self._invocation.program, self._worker
        if self._cause is not None or not self._crashed:
            self._crashes.forget(self._invocation)
            return conclude(program, self._heard, Ending(cause=self._cause))
        ending = Ending(
            exit_code=worker.exit_code,
            cause=worker.breach if self._alone else None,
            oom=worker.oom and self._alone,
            last_words=worker.stderr.last_words,
        )
        if ending.cause or ending.oom:
            return conclude(program, self._heard, ending)
        return crash_outcome(ending, times=self._crashes.note(self._invocation))
