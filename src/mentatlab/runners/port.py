"""The runner port: one attempt of one node (or item), as a live conversation.

The engine does not know whether a process, a warm worker or a cluster job answers. A runner gives
the agent's events in order as they come, takes input chunks, and ends with exactly one `Outcome`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from mentatlab.protocol.agent import AgentProgram, Resources
from mentatlab.protocol.events import AgentEvent
from mentatlab.protocol.stdio import Context

ErrorClass = Literal["infra", "transient", "timeout", "oom", "permanent"]


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    workspace: str
    program: AgentProgram
    inputs: Mapping[str, Any]  # value pins; media as reference objects with `path` or `get`
    params: Mapping[str, Any]
    context: Context
    stream_inputs: tuple[str, ...] = ()  # pins that will get chunks and an eos
    env: Mapping[str, str] = {}  # values for the program's `env` names
    scratch: Path  # exists; `context.out_dir` lies below it
    resources: Resources = Resources()
    start_timeout_s: float = 120.0
    attempt_timeout_s: float = 3600.0
    heartbeat_timeout_s: float | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended. `outputs` by the rules of contracts §4, not yet checked against pin
    types.
    """

    status: Literal["succeeded", "failed", "cancelled"]
    outputs: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    error_class: ErrorClass | None = None
    code: str = ""
    message: str = ""
    hint: str = ""
    exit_code: int | None = None
    queued_s: float = 0.0  # waiting for a place, cores or memory
    start_s: float = 0.0  # until a process that was started for it could work


class Attempt(Protocol):
    def events(self) -> AsyncIterator[AgentEvent]:
        """Log, Progress, Metric, Checkpoint, Chunk, Output, Ack, Heartbeat as they come; ends with
        the attempt.

        Reading is the back-pressure: what is not read is not taken from the process.
        """
        ...

    async def send_chunk(
        self,
        pin: str,
        seq: int,
        *,
        data: Any = None,
        ref: Any = None,
        pts: float | None = None,
        item: int | None = None,
    ) -> None:
        """Waits while the agent's input is full. Silent when the attempt is over."""
        ...

    async def end_input(
        self, pin: str, status: Literal["complete", "cancelled", "error"] = "complete"
    ) -> None: ...

    async def cancel(self, reason: str) -> None:
        """Ask, then after 5 s kill the process group. `outcome` then says cancelled."""
        ...

    async def outcome(self) -> Outcome:
        """Waits for the end; the process is confirmed gone (or, warm, the invocation answered)."""
        ...


class Runner(Protocol):
    def attempt(self, invocation: Invocation) -> AbstractAsyncContextManager[Attempt]:
        """Starts on entry, or as soon as there is room; leaving the context without an outcome
        cancels and kills.

        Entry does not wait: what is queued can be cancelled. A start that fails (program missing,
        no `ready`, RESOURCES_UNAVAILABLE) is an `Outcome`, not an exception.
        """
        ...

    async def aclose(self) -> None:
        """End every process; none survives."""
        ...
