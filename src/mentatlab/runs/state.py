"""The state of one run as a value, and `apply`: the state after one more committed event.

Pure. A `forEach` node keeps only its live items; of finished ones it keeps two bit sets, so its
size is that of its window plus a bit per item.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from mentatlab.protocol.errors import Code
from mentatlab.runs import events as ev
from mentatlab.runs.events import Fault


class RunPhase(StrEnum):
    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class NodePhase(StrEnum):
    PENDING = "pending"
    READY = "ready"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    WAITING_APPROVAL = "waiting_approval"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    CACHED = "cached"
    UPSTREAM_FAILED = "upstream_failed"


RUN_TERMINAL = frozenset(
    {RunPhase.SUCCEEDED, RunPhase.PARTIAL, RunPhase.FAILED, RunPhase.CANCELLED}
)
GOOD = frozenset({NodePhase.SUCCEEDED, NodePhase.CACHED})
BAD = frozenset(
    {NodePhase.FAILED, NodePhase.CANCELLED, NodePhase.SKIPPED, NodePhase.UPSTREAM_FAILED}
)
LIVE = frozenset({NodePhase.RUNNING, NodePhase.RETRY_WAIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What attempts run for: a node, or one item of a `forEach` node.

    `failures` counts failed attempts, `losses` those that ended with the server; `attempt` rises
    with every start, restarts by others included.
    """

    phase: NodePhase = NodePhase.PENDING
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    started_at: float = 0.0  # first start, Unix seconds
    ended_at: float = 0.0
    retry_at: float = 0.0
    error: Fault | None = None

    @property
    def live(self) -> bool:
        return self.phase in LIVE

    @property
    def terminal(self) -> bool:
        return self.phase in GOOD or self.phase in BAD


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState(Unit):
    """`items`, `succeeded`, `failed` (bit i = item i), `last_item`, `offered`, `closed` are of
    `forEach` nodes: live items, outcomes, the highest item started, items that wait for a place in
    the window, and whether the source has ended. `offered` and `closed` are told again after a
    recovery."""

    upstream: str = ""
    next_resume: Mapping[str, int] = field(default_factory=dict[str, int])
    items: Mapping[int, Unit] = field(default_factory=dict[int, Unit])
    succeeded: int = 0
    failed: int = 0
    last_item: int = 0
    offered: tuple[int, ...] = ()
    closed: bool = False
    collecting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`active`: the (node, pin) lanes that have given a chunk in the producer's present attempt."""

    phase: RunPhase = RunPhase.CREATED
    nodes: Mapping[str, NodeState]
    active: frozenset[tuple[str, str]] = frozenset()
    ending: ev.EndingReason | None = None
    reason: str = ""
    error: Fault | None = None
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0

    @property
    def finished(self) -> bool:
        return self.phase in RUN_TERMINAL

    def unit(self, node: str, item: int | None) -> Unit | None:
        state = self.nodes[node]
        return state if item is None else state.items.get(item)

    def live_units(self) -> Iterator[tuple[str, int | None, Unit]]:
        for name, node in self.nodes.items():
            if node.items:
                yield from ((name, item, unit) for item, unit in node.items.items())
            elif node.live:
                yield name, None, node


def initial(node_ids: tuple[str, ...]) -> RunState:
    return RunState(nodes={name: NodeState() for name in node_ids})


def apply(state: RunState, event: ev.RunFact) -> RunState:
    """The state after `event`; total, and the same for a live run and for its log."""
    match event:
        case ev.RunCreated():
            return replace(state, phase=RunPhase.QUEUED, created_at=event.at)
        case ev.RunStarted():
            return replace(state, phase=RunPhase.RUNNING, started_at=event.at)
        case ev.RunEnding():
            phase = RunPhase.CANCELLING if event.reason == "user_cancel" else state.phase
            return replace(state, ending=event.reason, phase=phase)
        case ev.RunFinished():
            return replace(
                state,
                phase=RunPhase(event.state),
                reason=event.reason,
                error=event.error,
                finished_at=event.at,
            )
        case _:
            node = state.nodes[event.node]
            node = _apply_node(node, event) if event.item is None else _apply_item(node, event)
            state = replace(state, nodes={**state.nodes, event.node: node})
            return _forget_lanes(state, event)


def _forget_lanes(state: RunState, event: ev.RunFact) -> RunState:
    """Once an attempt is over or begun again, its lanes have given nothing that stands."""
    if event.item is not None or not isinstance(
        event, ev.NodeStarted | ev.RetryScheduled | ev.ItemsVoided
    ):
        return state
    kept = frozenset(lane for lane in state.active if lane[0] != event.node)
    return replace(state, active=kept)


def _apply_unit(unit: Unit, event: ev.RunFact) -> Unit:
    """The part that a node and an item have in common."""
    match event:
        case ev.NodeStarted():
            return replace(
                unit,
                phase=NodePhase.RUNNING,
                attempt=event.attempt,
                started_at=unit.started_at or event.at,
            )
        case ev.RetryScheduled():
            lost = event.error.code == Code.ENGINE_LOST
            return replace(
                unit,
                phase=NodePhase.RETRY_WAIT,
                failures=unit.failures + (not lost),
                losses=unit.losses + lost,
                retry_at=event.retry_at,
                error=event.error,
            )
        case ev.NodeFailed():
            return replace(unit, phase=NodePhase.FAILED, error=event.error, ended_at=event.at)
        case ev.NodeSucceeded():
            return replace(unit, phase=NodePhase.SUCCEEDED, error=None, ended_at=event.at)
        case ev.NodeCancelled():
            return replace(unit, phase=NodePhase.CANCELLED, ended_at=event.at)
        case _:
            return unit


def _apply_node(node: NodeState, event: ev.RunFact) -> NodeState:
    unit = _apply_unit(node, event)
    assert isinstance(unit, NodeState)
    match event:
        case ev.NodeStarted():
            return replace(unit, next_resume={})
        case ev.RetryScheduled():
            return replace(unit, next_resume=event.resume_from)
        case ev.NodeUpstreamFailed():
            phase = NodePhase.UPSTREAM_FAILED
            return replace(
                unit, phase=phase, upstream=event.upstream, items={}, offered=(), ended_at=event.at
            )
        case ev.NodeFailed() | ev.NodeCancelled():
            return replace(unit, items={}, offered=())
        case ev.ItemsVoided():
            return _void(unit, event)
        case _:
            return unit


def _void(node: NodeState, event: ev.ItemsVoided) -> NodeState:
    kept = (1 << (event.above + 1)) - 1
    return replace(
        node,
        attempt=event.attempt,
        items={i: unit for i, unit in node.items.items() if i <= event.above},
        last_item=min(node.last_item, event.above),
        offered=(),
        closed=False,
        collecting=False,
        succeeded=node.succeeded & kept,
        failed=node.failed & kept,
    )


def _apply_item(node: NodeState, event: ev.RunFact) -> NodeState:
    assert event.item is not None
    item = event.item
    unit = _apply_unit(node.items.get(item, Unit()), event)
    if not unit.terminal:
        return replace(
            node,
            items={**node.items, item: unit},
            last_item=max(node.last_item, item),
            offered=tuple(i for i in node.offered if i != item),
        )
    bit = 1 << item
    return replace(
        node,
        items={i: u for i, u in node.items.items() if i != item},
        succeeded=node.succeeded | (bit if unit.phase is NodePhase.SUCCEEDED else 0),
        failed=node.failed | (bit if unit.phase is NodePhase.FAILED else 0),
    )
