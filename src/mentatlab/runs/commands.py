"""What `decide` has the run's shell do, after the decision's events are committed. Pure values."""

from dataclasses import dataclass
from typing import Literal

from mentatlab.runs import events as ev
from mentatlab.runs.events import Fault


@dataclass(frozen=True, slots=True)
class StartNode:
    """`left_out`: input pins with an edge whose value stays away. `ooms`: how many attempts have
    died for want of memory; the next gets more of it, or a smaller batch."""

    node: str
    item: int | None
    attempt: int
    left_out: tuple[str, ...] = ()
    ooms: int = 0


@dataclass(frozen=True, slots=True)
class CancelNode:
    """`reason`: user_cancel, timeout, node_failed, upstream_failed, upstream_restarted, no_demand,
    engine_lost. Of a `forEach` node itself: its source is read no further."""

    node: str
    item: int | None
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScheduleRetry:
    node: str
    item: int | None
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Continue a lane in a later attempt: what stands ends at `resume_from` (of a map: at `item`).

    The lanes of a run are all there before it begins."""

    node: str
    pin: str
    attempt: int
    resume_from: int = 0
    item: int = 0


@dataclass(frozen=True, slots=True)
class EndStream:
    node: str
    pin: str
    outcome: Literal["complete", "cancelled", "error"]
    error: Fault | None = None


@dataclass(frozen=True, slots=True)
class ReadItems:
    """Offer the source's elements after item `after`; a reader of an older attempt stops."""

    node: str
    attempt: int
    after: int


@dataclass(frozen=True, slots=True)
class FinishMap:
    """Every item has ended: gather the outputs, then signal `AttemptEnded` for the node."""

    node: str
    attempt: int


@dataclass(frozen=True, slots=True)
class FinishRun:
    state: ev.RunEnd


@dataclass(frozen=True, slots=True)
class Prepare:
    """Before a start: evaluate the node's `when`, what a control node decides, or look into the
    cache; then signal `Prepared` with the same `attempt`. Asked again after a recovery or a pause.

    `attempt`: of an item the present one of its `forEach` node, of a node 0. `left_out` as in
    `StartNode`."""

    node: str
    item: int | None
    attempt: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduleGate:
    """Signal a rejecting `GateDecided` at this time, unless somebody has decided."""

    node: str
    at: float


Command = (
    StartNode
    | CancelNode
    | ScheduleRetry
    | OpenStream
    | EndStream
    | ReadItems
    | FinishMap
    | FinishRun
    | Prepare
    | ScheduleGate
)
