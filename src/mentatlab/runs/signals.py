"""What a run's shell tells `decide`. Pure values; a signal of an attempt that is no longer the
present one decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mentatlab.runs.events import EndingReason, Fault

Verdict = Literal["run", "skip", "cached", "take", "ask", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """`jitter` in [0, 1). `resume_from`: per stream output pin the sequence that the last
    checkpoint of the failed attempt covers (absent = 0). `resources`: what it was given and why.
    `timing`: seconds by stage, `queued`, `starting`, `running`. `unconfirmed`: it was cancelled,
    and nobody could see that its process is gone."""

    at: float
    node: str
    item: int | None = None
    attempt: int
    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    error: Fault | None = None
    jitter: float = 0.0
    resume_from: Mapping[str, int] = field(default_factory=dict[str, int])
    resources: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timing: Mapping[str, float] = field(default_factory=dict[str, float])
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneActive:
    """The first chunk of the producer's present attempt is in the lane."""

    at: float
    node: str
    pin: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemsOffered:
    """Elements of a `forEach` source, ascending; `closed` when no more will come. `attempt` is the
    node's, so that a reader that was stopped is not heard."""

    at: float
    node: str
    attempt: int
    items: tuple[int, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFailed:
    """The source of a `forEach` node could not be read, or its outputs not be gathered."""

    at: float
    node: str
    attempt: int
    error: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue:
    """`consumed`: for every live consumer the highest sequence it was given, and for one that waits
    for a retry the highest that its checkpoint covers, by its input pin."""

    at: float
    node: str
    item: int | None = None
    attempt: int
    consumed: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAsked:
    at: float
    reason: EndingReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The run's owner died; its attempts are gone. `resume_from`: what the stored checkpoints of
    nodes cover, as in `AttemptEnded`, by node; only of those that can be used, whose offsets are
    not beyond what stands."""

    at: float
    resume_from: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict[str, Mapping[str, int]]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The shell itself failed; every attempt is gone and the run has to end."""

    at: float
    error: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The answer to `Prepare`: how the node (or item) goes on.

    `run`: as usual. `skip`: its `when` is false. `cached`: `outputs` are those of `origin`, another
    run. `take`: a control node has chosen its output pins `taken`. `ask`: a gate waits for an
    approval until `until` (0 = for ever), showing `message`. `fail`: with `error`. `attempt` is
    that of `Prepare`.
    """

    at: float
    node: str
    item: int | None = None
    attempt: int = 0
    verdict: Verdict
    taken: tuple[str, ...] = ()
    outputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    origin: str = ""
    message: str = ""
    until: float = 0.0
    error: Fault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateDecided:
    """`by`: who decided; empty when the gate's time is over, which rejects."""

    at: float
    node: str
    approved: bool
    by: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseAsked:
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeAsked:
    at: float


Signal = (
    Begin
    | AttemptEnded
    | LaneActive
    | ItemsOffered
    | MapFailed
    | RetryDue
    | EndAsked
    | Recovered
    | Broken
    | Prepared
    | GateDecided
    | PauseAsked
    | ResumeAsked
)
