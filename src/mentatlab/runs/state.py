"""The state of one run as a value, and `apply`: the state after one more committed event.

Pure. A `forEach` node keeps only its live items; of finished ones it keeps bit sets, so its size is
that of its window plus a few bits per item. What is called *volatile* is not in the log: a
recovered run begins without it (`durable`), and is told or asks again.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from mentatlab.runs import events as ev
from mentatlab.runs.events import Fault
from mentatlab.runs.signals import Prepared


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
    """`ready`: its inputs have come, and the shell prepares it. `queued` and `starting` are stages
    of an attempt that only the shell sees; here it runs."""

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
BAD = frozenset({NodePhase.FAILED, NodePhase.CANCELLED, NodePhase.UPSTREAM_FAILED})
LIVE = frozenset({NodePhase.RUNNING, NodePhase.RETRY_WAIT})
TERMINAL = GOOD | BAD | {NodePhase.SKIPPED}


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What attempts run for: a node, or one item of a `forEach` node.

    `failures` counts failed attempts, `ooms` those of them that had too little memory, `losses`
    those that ended with the server; `attempt` rises with every start, restarts by others included.
    """

    phase: NodePhase = NodePhase.PENDING
    attempt: int = 0
    failures: int = 0
    ooms: int = 0
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
        return self.phase in TERMINAL


class NodeState(Unit, frozen=True, kw_only=True):
    """`upstream`: what made it end so; `taken`: the pins that a control node has chosen (None =
    all); `left_out`: input pins whose edges stay away; `next_resume`: what the next attempt's lanes
    keep; `gate`: what an approval is asked for.

    Of `forEach` nodes: `items`, the live ones; `succeeded`, `failed`, `skipped` (bit i = item i);
    `last_item`, the highest with an event.

    Volatile: the phase `ready`, of items too; `stopping`: nobody wants what it gives, and it was
    asked to stop; `offered`: items that wait for a place in the window; `answers`: of items that
    wait for the answer to one before them; `closed`: the source has ended; `collecting`: its
    outputs are being gathered.
    """

    upstream: str = ""
    taken: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    next_resume: Mapping[str, int] = {}
    gate: ev.GateOpened | None = None
    items: Mapping[int, Unit] = {}
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    last_item: int = 0
    stopping: bool = False
    offered: tuple[int, ...] = ()
    answers: Mapping[int, Prepared] = {}
    closed: bool = False
    collecting: bool = False


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """`left`: how many nodes have not ended. `active` (volatile): the (node, pin) lanes that have
    given a chunk in the producer's present attempt. `error` while `ending`: what made it end."""

    phase: RunPhase = RunPhase.CREATED
    nodes: Mapping[str, NodeState]
    left: int
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

    @property
    def held(self) -> bool:
        """Nothing new may start."""
        return self.phase is RunPhase.PAUSED or self.ending is not None

    def unit(self, node: str, item: int | None) -> Unit | None:
        state = self.nodes[node]
        return state if item is None else state.items.get(item)

    def live_units(self) -> Iterator[tuple[str, int | None, Unit]]:
        for name, node in self.nodes.items():
            if node.items:
                yield from ((name, item, unit) for item, unit in node.items.items())
            elif node.live:
                yield name, None, node


U = TypeVar("U", bound=Unit)


def initial(node_ids: tuple[str, ...]) -> RunState:
    return RunState(nodes=dict.fromkeys(node_ids, NodeState()), left=len(node_ids))


def durable(state: RunState) -> RunState:
    """What the log alone gives."""
    nodes = {name: _durable(node) for name, node in state.nodes.items()}
    return replace(state, nodes=nodes, active=frozenset())


def _durable(node: NodeState) -> NodeState:
    ready = node.phase is NodePhase.READY
    return replace(
        node,
        phase=NodePhase.PENDING if ready else node.phase,
        left_out=() if ready else node.left_out,
        items={i: unit for i, unit in node.items.items() if unit.phase is not NodePhase.READY},
        stopping=False,
        offered=(),
        answers={},
        closed=False,
        collecting=False,
    )


def with_node(state: RunState, name: str, node: NodeState) -> RunState:
    ended = node.terminal and not state.nodes[name].terminal
    return replace(state, nodes={**state.nodes, name: node}, left=state.left - ended)


def apply(state: RunState, event: ev.RunFact) -> RunState:
    """The state after `event`; total, and the same for a live run and for its log."""
    if not event.node:
        return _apply_run(state, event)
    node = state.nodes[event.node]
    if event.item is not None:
        return with_node(state, event.node, _apply_item(node, event.item, event))
    state = with_node(state, event.node, _apply_node(node, event))
    return _forget_lanes(state, event) if state.active else state


def _apply_run(state: RunState, event: ev.RunFact) -> RunState:
    match event:
        case ev.RunCreated():
            return replace(state, phase=RunPhase.QUEUED, created_at=event.at)
        case ev.RunStarted():
            return replace(state, phase=RunPhase.RUNNING, started_at=event.at)
        case ev.RunPaused():
            return replace(state, phase=RunPhase.PAUSED)
        case ev.RunResumed():
            return replace(state, phase=RunPhase.RUNNING)
        case ev.RunEnding():
            return _ending(state, event)
        case ev.RunFinished():
            return replace(
                state,
                phase=RunPhase(event.state),
                reason=event.reason,
                error=event.error,
                finished_at=event.at,
            )
        case _:
            return state


def _ending(state: RunState, event: ev.RunEnding) -> RunState:
    """A pause is over with it."""
    phase = RunPhase.RUNNING if state.phase is RunPhase.PAUSED else state.phase
    phase = RunPhase.CANCELLING if event.reason == "user_cancel" else phase
    return replace(state, ending=event.reason, error=event.error, phase=phase)


def _forget_lanes(state: RunState, event: ev.RunFact) -> RunState:
    """Once an attempt is over or begun again, its lanes have given nothing that stands."""
    if not isinstance(event, ev.NodeStarted | ev.RetryScheduled | ev.ItemsVoided):
        return state
    kept = frozenset(lane for lane in state.active if lane[0] != event.node)
    return replace(state, active=kept)


def _apply_node(node: NodeState, event: ev.RunFact) -> NodeState:
    match event:
        case ev.NodeStarted():
            return _started(node, event, next_resume={}, left_out=event.left_out, stopping=False)
        case ev.RetryScheduled():
            return _waits(node, event, next_resume=event.resume_from)
        case ev.NodeSucceeded():
            return _ended(node, NodePhase.SUCCEEDED, event, error=None, taken=event.taken)
        case ev.NodeCached():
            return _ended(node, NodePhase.CACHED, event)
        case ev.NodeSkipped():
            return _ended(node, NodePhase.SKIPPED, event, upstream=event.upstream)
        case ev.NodeFailed():
            return _ended(node, NodePhase.FAILED, event, error=event.error)
        case ev.NodeUpstreamFailed():
            return _ended(node, NodePhase.UPSTREAM_FAILED, event, upstream=event.upstream)
        case ev.NodeCancelled():
            return _ended(node, NodePhase.CANCELLED, event)
        case ev.GateOpened():
            return replace(node, phase=NodePhase.WAITING_APPROVAL, gate=event)
        case ev.ItemsVoided():
            return _void(node, event)
        case _:
            return node


def _apply_item(node: NodeState, item: int, event: ev.RunFact) -> NodeState:
    unit = node.items.get(item, Unit())
    match event:
        case ev.NodeStarted():
            unit = _started(unit, event)
        case ev.RetryScheduled():
            unit = _waits(unit, event)
        case _:
            return _item_ended(node, item, event)
    return replace(node, items={**node.items, item: unit}, last_item=max(node.last_item, item))


def _item_ended(node: NodeState, item: int, event: ev.RunFact) -> NodeState:
    items = {i: unit for i, unit in node.items.items() if i != item}
    node, bit = replace(node, items=items, last_item=max(node.last_item, item)), 1 << item
    match event:
        case ev.NodeSucceeded() | ev.NodeCached():
            return replace(node, succeeded=node.succeeded | bit)
        case ev.NodeFailed():
            return replace(node, failed=node.failed | bit)
        case ev.NodeSkipped():
            return replace(node, skipped=node.skipped | bit)
        case _:
            return node


def _started(unit: U, event: ev.NodeStarted, **more: Any) -> U:
    first = unit.started_at or event.at
    return replace(unit, phase=NodePhase.RUNNING, attempt=event.attempt, started_at=first, **more)


def _waits(unit: U, event: ev.RetryScheduled, **more: Any) -> U:
    return replace(
        unit,
        phase=NodePhase.RETRY_WAIT,
        failures=unit.failures + (event.cause != "lost"),
        ooms=unit.ooms + (event.cause == "oom"),
        losses=unit.losses + (event.cause == "lost"),
        retry_at=event.retry_at,
        error=event.error,
        **more,
    )


def _ended(node: NodeState, phase: NodePhase, event: ev.RunFact, **more: Any) -> NodeState:
    return replace(
        node,
        phase=phase,
        ended_at=event.at,
        left_out=(),
        items={},
        offered=(),
        answers={},
        **more,
    )


def _void(node: NodeState, event: ev.ItemsVoided) -> NodeState:
    """Items that were being prepared are offered again."""
    kept = (1 << (event.above + 1)) - 1
    return replace(
        node,
        attempt=event.attempt,
        items={
            i: unit
            for i, unit in node.items.items()
            if i <= event.above and unit.phase is not NodePhase.READY
        },
        last_item=min(node.last_item, event.above),
        offered=(),
        answers={},
        closed=False,
        collecting=False,
        succeeded=node.succeeded & kept,
        failed=node.failed & kept,
        skipped=node.skipped & kept,
    )
