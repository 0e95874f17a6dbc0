"""The engine's mind: `decide(plan, state, signal)` → the state after it, the events to commit, the
commands.

Pure: no I/O, no clock, no randomness; times and jitter stand in the signal. The shell commits the
decision's events in one transaction and then carries the commands out. A signal of an attempt that
is no longer the present one decides nothing: the first commit wins.

    pending ──▶ running ──▶ succeeded | failed | cancelled | upstream_failed
                   ▲│ retry_wait

A run always ends: whatever makes a node end badly also ends, in the same decision, every node that
cannot do without it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.errors import Code
from mentatlab.runs import events as ev
from mentatlab.runs.commands import (
    CancelNode,
    Command,
    EndStream,
    FinishMap,
    FinishRun,
    OpenStream,
    ReadItems,
    ScheduleRetry,
    StartNode,
)
from mentatlab.runs.events import EndingReason, Fault
from mentatlab.runs.lookups import is_optional, lane_pins, reads_lane
from mentatlab.runs.signals import (
    AttemptEnded,
    Begin,
    Broken,
    EndAsked,
    ItemsOffered,
    LaneActive,
    MapFailed,
    Recovered,
    RetryDue,
    Signal,
)
from mentatlab.runs.state import BAD, GOOD, NodePhase, NodeState, RunState, Unit, apply

INFRA_ATTEMPTS = 3
"""Attempts for failures of the platform, whatever the node's own policy says."""
OOM_ATTEMPTS = 2
_NOTHING = -1
"""A lane's head when not even having read nothing of it is safe."""
LOST_ATTEMPTS = 10
"""Attempts that may be lost with a server that stops; not counted as failures of the node."""


class Decision(NamedTuple):
    state: RunState
    events: tuple[ev.RunFact, ...]
    commands: tuple[Command, ...]


# ---- the rules


def decide(plan: Plan, state: RunState, signal: Signal) -> Decision:
    turn = _Turn(plan, state, signal.at)
    if not state.finished:
        turn.handle(signal)
        turn.settle()
    return Decision(turn.state, tuple(turn.events), tuple(turn.commands))


class _Turn:
    """One decision in the making: the state so far and what it has said."""

    def __init__(self, plan: Plan, state: RunState, at: float) -> None:
        self.plan = plan
        self.state = state
        self.at = at
        self.events: list[ev.RunFact] = []
        self.commands: list[Command] = []

    def emit(self, event: ev.RunFact) -> None:
        self.state = apply(self.state, event)
        self.events.append(event)

    def note(self, name: str, node: NodeState) -> None:
        """A change that is not in the log."""
        self.state = replace(self.state, nodes={**self.state.nodes, name: node})

    def handle(self, signal: Signal) -> None:
        match signal:
            case Begin():
                self.emit(ev.RunStarted(at=self.at))
            case AttemptEnded():
                self._attempt_ended(signal)
            case LaneActive():
                if self._is_present(signal.node, None, signal.attempt):
                    lanes = self.state.active | {(signal.node, signal.pin)}
                    self.state = replace(self.state, active=lanes)
            case ItemsOffered():
                self._offered(signal)
            case MapFailed():
                if self._is_present(signal.node, None, signal.attempt):
                    self._fail_node(signal.node, signal.error)
            case RetryDue():
                self._retry(signal)
            case EndAsked():
                self._end_asked(signal.reason)
            case Recovered():
                self._recover()
            case Broken():
                self._break(signal.error)

    # -- beginning, ending

    def _end_asked(self, reason: EndingReason) -> None:
        """What runs is asked to stop; what does not run has ended."""
        if self.state.ending is not None:
            return
        self.emit(ev.RunEnding(at=self.at, reason=reason))
        for name, item, unit in tuple(self.state.live_units()):
            if unit.phase is NodePhase.RUNNING and not self._is_idle_map(name, item):
                self.commands.append(CancelNode(name, item, unit.attempt, reason))
            else:
                self._cancelled(name, item)

    def _is_idle_map(self, name: str, item: int | None) -> bool:
        return item is None and self.plan.node(name).for_each is not None

    def _break(self, error: Fault) -> None:
        for name, node in self.state.nodes.items():
            if node.live:
                self._fail_node(name, error)
            elif not node.terminal:
                self._cancelled(name, None)

    def _cancelled(self, name: str, item: int | None) -> None:
        unit = self.state.unit(name, item)
        assert unit is not None
        self.emit(ev.NodeCancelled(at=self.at, node=name, item=item, attempt=unit.attempt))
        if item is None:
            self._end_streams(name, "cancelled")

    # -- attempts

    def _is_present(self, name: str, item: int | None, attempt: int) -> bool:
        unit = self.state.unit(name, item)
        return unit is not None and unit.phase is NodePhase.RUNNING and unit.attempt == attempt

    def _attempt_ended(self, signal: AttemptEnded) -> None:
        if not self._is_present(signal.node, signal.item, signal.attempt):
            return
        if signal.error is None:
            self._succeed(signal)
        elif self.state.ending is not None:
            self._cancelled(signal.node, signal.item)
        else:
            self._attempt_failed(signal, signal.error)

    def _succeed(self, signal: AttemptEnded) -> None:
        self.emit(
            ev.NodeSucceeded(
                at=self.at,
                node=signal.node,
                item=signal.item,
                attempt=signal.attempt,
                outputs=dict(signal.outputs),
                metrics=dict(signal.metrics),
            )
        )
        if signal.item is None:
            self._end_streams(signal.node, "complete")

    def _attempt_failed(self, signal: AttemptEnded, error: Fault) -> None:
        node = self.plan.node(signal.node)
        unit = self.state.unit(signal.node, signal.item)
        assert unit is not None
        retry_at = _retry_at(node, unit, error, at=self.at, jitter=signal.jitter)
        if retry_at is not None:
            self._schedule(signal, error, retry_at)
        elif signal.item is None:
            self._fail_node(signal.node, error)
        else:
            self._fail_item(node, signal.item, signal.attempt, error)

    def _schedule(self, signal: AttemptEnded, error: Fault, retry_at: float) -> None:
        event = ev.RetryScheduled(
            at=self.at,
            node=signal.node,
            item=signal.item,
            attempt=signal.attempt,
            error=error,
            retry_at=retry_at,
            resume_from=dict(signal.resume_from),
        )
        self.emit(event)
        self.commands.append(ScheduleRetry(signal.node, signal.item, signal.attempt, retry_at))

    def _retry(self, signal: RetryDue) -> None:
        unit = self.state.unit(signal.node, signal.item)
        if unit is None or unit.phase is not NodePhase.RETRY_WAIT:
            return
        if unit.attempt == signal.attempt and self.state.ending is None:
            self._start(signal.node, signal.item, signal.consumed)

    def _start(
        self, name: str, item: int | None, consumed: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        """A new attempt. What does not stand in its lanes is void for its consumers too."""
        unit = self.state.unit(name, item) or Unit()
        attempt = unit.attempt + 1
        pins = lane_pins(self.plan.node(name)) if item is None and attempt > 1 else ()
        heads = dict.fromkeys(pins, 0)
        if isinstance(unit, NodeState):
            heads = {pin: unit.next_resume.get(pin, 0) for pin in pins}
        self.emit(
            ev.NodeStarted(at=self.at, node=name, item=item, attempt=attempt, resume_from=heads)
        )
        self.commands += [OpenStream(name, pin, attempt, head) for pin, head in heads.items()]
        self.commands.append(StartNode(name, item, attempt))
        self._void_consumers(name, heads, consumed or {})

    def _void_consumers(
        self, name: str, heads: Mapping[str, int], consumed: Mapping[str, Mapping[str, int]]
    ) -> None:
        """Restart, transitively, those who were given records that no longer stand."""
        for edge in self.plan.node(name).outputs:
            if edge.source_pin not in heads or not reads_lane(edge):
                continue
            target, head = self.state.nodes[edge.target], heads[edge.source_pin]
            void = consumed.get(edge.target, {}).get(edge.target_pin, 0) > head
            if target.phase is NodePhase.RETRY_WAIT and void:  # its checkpoint is of no use
                self.note(edge.target, replace(target, next_resume={}))
            if target.phase is not NodePhase.RUNNING:
                continue
            if self.plan.node(edge.target).for_each is not None:
                # of another stream that its items read too, any of them may have had anything
                kept = head if edge.kind == "items" else 0
                self._void_items(edge.target, target, kept, consumed)
            elif void:
                cancel = CancelNode(edge.target, None, target.attempt, "upstream_restarted")
                self.commands.append(cancel)
                self._start(edge.target, None, consumed)

    def _void_items(
        self, name: str, node: NodeState, head: int, consumed: Mapping[str, Mapping[str, int]]
    ) -> None:
        attempt, above = node.attempt + 1, max(head, 0)
        self.commands += [
            CancelNode(name, item, unit.attempt, "upstream_restarted")
            for item, unit in node.items.items()
            if item > above
        ]
        self.emit(ev.ItemsVoided(at=self.at, node=name, attempt=attempt, above=above))
        pins = lane_pins(self.plan.node(name))
        self.commands += [OpenStream(name, pin, attempt, item=above) for pin in pins]
        self.commands.append(ReadItems(name, attempt, min(above, node.last_item)))
        # Where the kept items end in its own lanes is not known here: whoever reads them
        # begins again.
        self._void_consumers(name, dict.fromkeys(pins, _NOTHING), consumed)

    # -- ends

    def _fail_node(self, name: str, error: Fault, *, reason: str = "node_failed") -> None:
        self._cancel_live(name, reason)
        attempt = self.state.nodes[name].attempt
        self.emit(ev.NodeFailed(at=self.at, node=name, attempt=attempt, error=error))
        self._end_streams(name, "error", error)

    def _cancel_live(self, name: str, reason: str) -> None:
        node = self.state.nodes[name]
        units: Iterable[tuple[int | None, Unit]] = [*node.items.items(), (None, node)]
        self.commands += [
            CancelNode(name, item, unit.attempt, reason)
            for item, unit in units
            if unit.phase is NodePhase.RUNNING
        ]

    def _end_streams(
        self,
        name: str,
        outcome: Literal["complete", "cancelled", "error"],
        error: Fault | None = None,
    ) -> None:
        pins = lane_pins(self.plan.node(name))
        self.commands += [EndStream(name, pin, outcome, error) for pin in pins]

    # -- items

    def _offered(self, signal: ItemsOffered) -> None:
        if not self._is_present(signal.node, None, signal.attempt):
            return
        node = self.state.nodes[signal.node]
        queue = (*node.offered, *(i for i in signal.items if i > node.last_item))
        self.note(signal.node, replace(node, offered=queue, closed=node.closed or signal.closed))

    def _fail_item(self, node: PlanNode, item: int, attempt: int, error: Fault) -> None:
        self.emit(ev.NodeFailed(at=self.at, node=node.id, item=item, attempt=attempt, error=error))
        failed = self.state.nodes[node.id].failed.bit_count()
        if node.on_item_error == "fail_fast":
            self._fail_node(node.id, _about_item(error, item))
        elif node.max_failed is not None and failed > node.max_failed:
            self._fail_node(node.id, _about_item(error, item, f"; {failed} items have failed"))

    def _advance_map(self, node: PlanNode) -> None:
        """Start what the window has room for; when all have ended, have the outputs gathered."""
        state = self.state.nodes[node.id]
        while state.offered and len(state.items) < node.max_parallel:
            self._start(node.id, state.offered[0])
            state = self.state.nodes[node.id]
        if state.closed and not state.offered and not state.items and not state.collecting:
            self.note(node.id, replace(state, collecting=True))
            self.commands.append(FinishMap(node.id, state.attempt))

    # -- after a crash

    def _recover(self) -> None:
        """What ran is lost and starts again; what had ended has its streams ended again."""
        for node in self.plan.nodes:
            state = self.state.nodes[node.id]
            if state.terminal:
                self._end_streams(node.id, *_stream_end(state))
            elif state.live and node.for_each is not None:
                self._recover_map(node)
            elif state.live:
                self._lost(node, None, state)

    def _recover_map(self, node: PlanNode) -> None:
        state = self.state.nodes[node.id]
        if self.state.ending is not None:
            for item in state.items:
                self._cancelled(node.id, item)
            return
        self.commands.append(ReadItems(node.id, state.attempt, state.last_item))
        for item, unit in state.items.items():
            if self.state.nodes[node.id].live:
                self._lost(node, item, unit)

    def _lost(self, node: PlanNode, item: int | None, unit: Unit) -> None:
        if self.state.ending is not None:
            self._cancelled(node.id, item)
        elif unit.phase is NodePhase.RETRY_WAIT:
            if isinstance(unit, NodeState):  # its checkpoint went with the server
                self.note(node.id, replace(unit, next_resume={}))
            self.commands.append(ScheduleRetry(node.id, item, unit.attempt, unit.retry_at))
        else:
            self._attempt_failed(
                AttemptEnded(at=self.at, node=node.id, item=item, attempt=unit.attempt),
                _ENGINE_LOST,
            )

    # -- everything that follows

    def settle(self) -> None:
        """In topological order: end who cannot start, start who can; then see whether the run is
        over."""
        for node in self.plan.nodes:
            state = self.state.nodes[node.id]
            if self.state.ending is not None:
                self._settle_ending(node, state)
            elif state.phase is NodePhase.PENDING:
                self._settle_pending(node)
            elif state.live and (dead := self._dead_upstream(node)):
                self._upstream_failed(node.id, dead)
            if node.for_each is not None and self._runs(node.id):
                self._advance_map(node)
        self._finish()

    def _runs(self, name: str) -> bool:
        return self.state.ending is None and self.state.nodes[name].phase is NodePhase.RUNNING

    def _settle_ending(self, node: PlanNode, state: NodeState) -> None:
        idle_map = node.for_each is not None and state.live and not state.items
        if idle_map or state.phase is NodePhase.PENDING:
            self._cancelled(node.id, None)

    def _settle_pending(self, node: PlanNode) -> None:
        if dead := self._dead_upstream(node):
            self._upstream_failed(node.id, dead)
        elif all(self._has_come(node, edge) for edge in node.inputs):
            self._start_pending(node)

    def _dead_upstream(self, node: PlanNode) -> str:
        for edge in node.inputs:
            if self.state.nodes[edge.source].phase in BAD and not is_optional(node, edge):
                return edge.source
        return ""

    def _has_come(self, node: PlanNode, edge: PlanEdge) -> bool:
        """A lane that is written to is enough for an agent; other nodes end as they start, so they
        wait for its end."""
        phase = self.state.nodes[edge.source].phase
        if phase in GOOD:
            return True
        if phase in BAD:
            return is_optional(node, edge)
        lane = (edge.source, edge.source_pin)
        return node.kind == "agent" and reads_lane(edge) and lane in self.state.active

    def _start_pending(self, node: PlanNode) -> None:
        if node.kind != "agent":
            self.emit(ev.NodeSucceeded(at=self.at, node=node.id))
        elif node.for_each is not None:
            self.emit(ev.NodeStarted(at=self.at, node=node.id, attempt=1))
            self.commands.append(ReadItems(node.id, 1, 0))
        else:
            self._start(node.id, None)

    def _upstream_failed(self, name: str, upstream: str) -> None:
        self._cancel_live(name, "upstream_failed")
        attempt = self.state.nodes[name].attempt
        self.emit(ev.NodeUpstreamFailed(at=self.at, node=name, attempt=attempt, upstream=upstream))
        self._end_streams(name, "error", upstream_fault(upstream))

    def _finish(self) -> None:
        if not all(node.terminal for node in self.state.nodes.values()):
            return
        event = _run_end(self.plan, self.state, self.at)
        self.emit(event)
        self.commands.append(FinishRun(event.state))


_ENGINE_LOST = Fault(
    Code.ENGINE_LOST,
    "the server stopped while this ran, more often than a retry allows",
    "look into the server's log: this node may be what makes it stop",
    "infra",
)


def upstream_fault(upstream: str) -> Fault:
    return Fault(Code.UPSTREAM_FAILED, f"{upstream} ended badly", f"see the error of {upstream}")


def stream_ends(plan: Plan, state: RunState) -> list[EndStream]:
    """How the streams of a finished run must have ended."""
    return [
        EndStream(node.id, pin, *_stream_end(state.nodes[node.id]))
        for node in plan.nodes
        for pin in lane_pins(node)
    ]


def _stream_end(
    node: NodeState,
) -> tuple[Literal["complete", "cancelled", "error"], Fault | None]:
    if node.phase in GOOD:
        return "complete", None
    if node.phase is NodePhase.CANCELLED:
        return "cancelled", None
    return "error", node.error or upstream_fault(node.upstream)


def _about_item(error: Fault, item: int, more: str = "") -> Fault:
    return Fault(error.code, f"item {item}: {error.message}{more}", error.hint, error.kind)


def _retry_at(
    node: PlanNode, unit: Unit, error: Fault, *, at: float, jitter: float
) -> float | None:
    """When the next attempt starts: exponential, full jitter; None = no more attempts.

    An attempt lost with the server starts again at once.
    """
    if error.code == Code.ENGINE_LOST:
        return at if unit.losses + 1 < LOST_ATTEMPTS else None
    if unit.failures + 1 >= _allowed(node, error):
        return None
    retry_at = at + jitter * min(node.retry.cap_s, node.retry.base_s * 2.0**unit.failures)
    total = node.timeouts.total_s
    return None if total is not None and retry_at >= unit.started_at + total else retry_at


def _allowed(node: PlanNode, error: Fault) -> int:
    match error.kind:
        case "permanent":
            return 1
        case "oom":
            return min(OOM_ATTEMPTS, node.retry.max_attempts)
        case "infra":
            return max(INFRA_ATTEMPTS, node.retry.max_attempts)
        case "transient" | "timeout":
            return node.retry.max_attempts


def _run_end(plan: Plan, state: RunState, at: float) -> ev.RunFinished:
    """cancelled and timeout by what was asked; failed when a node that the result needs ended
    badly; partial when only items or optional branches did."""
    if state.ending == "user_cancel":
        return ev.RunFinished(at=at, state="cancelled", reason="user_cancel")
    error = next((n.error for n in state.nodes.values() if n.phase is NodePhase.FAILED), None)
    if state.ending == "timeout":
        return ev.RunFinished(
            at=at, state="failed", reason="timeout", error=error or _timeout(plan)
        )
    bad = {name for name, node in state.nodes.items() if node.phase in BAD}
    if any(_needed(plan, node) for node in plan.nodes if node.id in bad):
        return ev.RunFinished(at=at, state="failed", reason="node_failed", error=error)
    if bad or any(node.failed for node in state.nodes.values()):
        return ev.RunFinished(at=at, state="partial")
    return ev.RunFinished(at=at, state="succeeded")


def _needed(plan: Plan, node: PlanNode) -> bool:
    return not node.outputs or any(name == node.id for name, _ in plan.outputs)


def _timeout(plan: Plan) -> Fault:
    return Fault(
        Code.RUN_TIMEOUT,
        f"the run took longer than its {plan.timeout_s:g} s",
        "raise runConfig.timeoutSeconds",
        "timeout",
    )
