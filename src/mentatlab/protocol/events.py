"""What an agent process says to its host, in normal form.

`invocation` is the warm protocol's `id`, empty in the one-shot form.
"""

from typing import Any, Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    invocation: str = ""


class Ready(Event, frozen=True, kw_only=True):
    protocol: int = 1
    concurrency: int = 1


class Log(Event, frozen=True, kw_only=True):
    message: str
    level: Level = "info"
    data: Any = None


class Progress(Event, frozen=True, kw_only=True):
    percent: float | None = None
    current: float | None = None
    total: float | None = None
    eta_seconds: float | None = None
    message: str = ""


class Metric(Event, frozen=True, kw_only=True):
    name: str
    value: float
    unit: str = ""


class Checkpoint(Event, frozen=True, kw_only=True):
    """`offsets`: by input pin the last sequence whose effect is in `state`; None = last acks."""

    state: Any = None
    stage: str = ""
    progress: float | None = None
    offsets: dict[str, int] | None = None


class Heartbeat(Event, frozen=True, kw_only=True):
    pass


class Chunk(Event, frozen=True, kw_only=True):
    """One element of a stream output: exactly one of `data`, `ref`, `path` (below out_dir)."""

    pin: str
    data: Any = msgspec.UNSET
    ref: Any = None
    path: str | None = None
    pts: float | None = None  # seconds of media time
    duration: float | None = None  # seconds
    final: bool = False
    metadata: dict[str, Any] = {}

    def __post_init__(self) -> None:
        given = (self.data is not msgspec.UNSET, self.ref is not None, self.path is not None)
        if sum(given) != 1:
            raise ValueError("a chunk holds exactly one of data, ref and path")


class Output(Event, frozen=True, kw_only=True):
    key: str
    value: Any


class Error(Event, frozen=True, kw_only=True):
    message: str = ""
    code: str = "AGENT_ERROR"
    retryable: bool = False
    hint: str = ""


class Result(Event, frozen=True, kw_only=True):
    outputs: dict[str, Any]


class Ack(Event, frozen=True, kw_only=True):
    pin: str
    seq: int


class Bare(Event, frozen=True, kw_only=True):
    """An object without `type`: a classic agent's result, if it is the last one."""

    value: dict[str, Any]


AgentEvent = (
    Ready
    | Log
    | Progress
    | Metric
    | Checkpoint
    | Heartbeat
    | Chunk
    | Output
    | Error
    | Result
    | Ack
    | Bare
)
