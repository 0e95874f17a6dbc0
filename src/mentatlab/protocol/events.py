"""What an agent process says to its host, in normal form. `invocation` is the warm protocol's `id`."""

from typing import Any, Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    invocation: str = ""


class Ready(Event):
    protocol: int = 1
    concurrency: int = 1


class Log(Event):
    message: str
    level: Level = "info"
    data: Any = None


class Progress(Event):
    percent: float | None = None
    current: float | None = None
    total: float | None = None
    eta_seconds: float | None = None
    message: str = ""


class Metric(Event):
    name: str
    value: float
    unit: str = ""


class Checkpoint(Event):
    """`offsets`: per input pin the last sequence whose effect is in `state`; None = the last acks."""

    state: Any = None
    stage: str = ""
    progress: float | None = None
    offsets: dict[str, int] | None = None


class Heartbeat(Event):
    pass


class Chunk(Event):
    """One element of a stream output: exactly one of `data`, `ref`, `path` (a file under out_dir)."""

    pin: str
    data: Any = msgspec.UNSET
    ref: Any = None
    path: str | None = None
    pts: float | None = None  # seconds of media time
    duration: float | None = None  # seconds
    final: bool = False
    metadata: dict[str, Any] = {}


class Output(Event):
    key: str
    value: Any


class Error(Event):
    message: str
    code: str = "AGENT_ERROR"
    retryable: bool = False


class Result(Event):
    outputs: dict[str, Any]


class Ack(Event):
    pin: str
    seq: int


class Bare(Event):
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
