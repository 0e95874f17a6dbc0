"""What the outside sees of a run. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from mentatlab.flows.plan import Plan, PlanNode
from mentatlab.runs.decide import upstream_fault
from mentatlab.runs.events import Fault
from mentatlab.runs.state import NodePhase, NodeState, RunState
from mentatlab.runs.store import RunRow
from mentatlab.runs.values import Values, run_lanes


class View(msgspec.Struct, frozen=True, kw_only=True):
    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


class ErrorView(View, frozen=True, kw_only=True):
    code: str
    message: str
    hint: str = ""


class ItemsView(View, frozen=True, kw_only=True):
    """Counts of a `forEach` node's items. `failed` ones were collected or skipped."""

    succeeded: int
    failed: int
    running: int
    waiting: int  # for a retry
    skipped: int = 0


class GateView(View, frozen=True, kw_only=True):
    """An approval that is waited for: whose key has `scope` may decide, until `until` (Unix
    seconds; None = for ever), when it rejects by itself."""

    message: str
    opened_at: float
    until: float | None = None
    scope: str = "run"


class NodeView(View, frozen=True, kw_only=True):
    """Times are Unix seconds; `percent` is what the agent last said (0 to 100). `gate` while it
    waits; `upstream`: the node because of which this one was skipped or cannot start."""

    id: str
    kind: str
    type: str
    state: str
    attempt: int
    error: ErrorView | None = None
    items: ItemsView | None = None
    started_at: float | None = None
    ended_at: float | None = None
    retry_at: float | None = None
    percent: float | None = None
    gate: GateView | None = None
    upstream: str = ""


class StreamView(View, frozen=True, kw_only=True):
    stream_id: str
    node_id: str
    pin_name: str
    state: str  # open | ended | errored


class RecordedStream(StreamView, frozen=True, kw_only=True):
    """`reused`: of a node that did not run, recorded in the run that made it."""

    reused: bool


class Recorded(View, frozen=True, kw_only=True):
    """A run that has ended, with what can be replayed of it: `recorded_s` from its making on."""

    state: str
    recorded_s: float
    streams: tuple[RecordedStream, ...]


class RunView(View, frozen=True, kw_only=True):
    """A run; `nodes`, `streams` and `outputs` stay empty in lists. `origin`: the run that this one
    does again, from `from_node`; `trigger`: the schedule or webhook that made it."""

    id: str
    workspace: str
    flow_id: str
    digest: str
    state: str
    reason: str = ""
    error: ErrorView | None = None
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    origin: str = ""
    from_node: str = ""
    trigger: str = ""
    nodes: tuple[NodeView, ...] = ()
    streams: tuple[StreamView, ...] = ()
    outputs: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        return self.finished_at is not None


def summary(row: RunRow) -> RunView:
    return RunView(
        id=row.id,
        workspace=row.workspace,
        flow_id=row.flow_id,
        digest=row.digest,
        state=row.state,
        reason=row.reason,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        origin=row.origin,
        from_node=row.from_node,
        trigger=row.trigger,
    )


def view(
    row: RunRow,
    plan: Plan,
    state: RunState,
    values: Values,
    *,
    lanes: Mapping[str, str],
    percent: Mapping[str, float],
) -> RunView:
    """`lanes`: the state of each stream by id; `percent`: the live progress of nodes."""
    return RunView(
        id=row.id,
        workspace=row.workspace,
        flow_id=row.flow_id,
        digest=row.digest,
        state=str(state.phase),
        reason=state.reason,
        error=error_view(state.error),
        created_at=row.created_at,
        started_at=state.started_at or None,
        finished_at=state.finished_at or None,
        origin=row.origin,
        from_node=row.from_node,
        trigger=row.trigger,
        nodes=tuple(_node(n, state.nodes[n.id], percent.get(n.id)) for n in plan.nodes),
        streams=tuple(_stream(row.id, node, pin, values, lanes) for node, pin in run_lanes(plan)),
        outputs=values.outputs(),
    )


def _stream(
    run_id: str, node: PlanNode, pin: str, values: Values, lanes: Mapping[str, str]
) -> StreamView:
    name = values.lane_of(node.id, pin, run_id)
    return StreamView(
        stream_id=name, node_id=node.id, pin_name=pin, state=lanes.get(name, "expired")
    )


def _node(node: PlanNode, state: NodeState, percent: float | None) -> NodeView:
    error = state.error
    if state.phase is NodePhase.UPSTREAM_FAILED:
        error = upstream_fault(state.upstream)
    return NodeView(
        id=node.id,
        kind=node.kind,
        type=node.type,
        state=str(state.phase),
        attempt=state.attempt,
        error=error_view(error),
        items=_items(state) if node.for_each is not None else None,
        started_at=state.started_at or None,
        ended_at=state.ended_at or None,
        retry_at=state.retry_at if state.phase is NodePhase.RETRY_WAIT else None,
        percent=percent,
        gate=_gate(state),
        upstream=state.upstream,
    )


def _gate(state: NodeState) -> GateView | None:
    if state.gate is None or state.phase is not NodePhase.WAITING_APPROVAL:
        return None
    return GateView(
        message=state.gate.message, opened_at=state.gate.at, until=state.gate.until or None
    )


def _items(state: NodeState) -> ItemsView:
    phases = [unit.phase for unit in state.items.values()]
    return ItemsView(
        succeeded=state.succeeded.bit_count(),
        failed=state.failed.bit_count(),
        running=phases.count(NodePhase.RUNNING),
        waiting=phases.count(NodePhase.RETRY_WAIT),
        skipped=state.skipped.bit_count(),
    )


def error_view(fault: Fault | None) -> ErrorView | None:
    return fault and ErrorView(code=fault.code, message=fault.message, hint=fault.hint)
