"""The engine's mind: `decide(plan, state, signal)` → the state after it, the events to commit, the
commands.

Pure: no I/O, no clock, no randomness; times and jitter stand in the signal. The shell commits the
decision's events in one transaction and then carries the commands out. A signal of an attempt that
is no longer the present one decides nothing: the first commit wins.

    pending ──▶ ready ──▶ running ──▶ succeeded | failed | cancelled
       │          │          ▲│ retry_wait
       │          ├▶ waiting_approval ──▶ succeeded | failed | cancelled
       │          └▶ succeeded | cached | skipped | failed
       └▶ running | succeeded | skipped | upstream_failed | cancelled

A run always ends: whatever makes a node end also ends, in the same decision, every node that cannot
do without what it did not give. The rules by subject: `starting`, `retries`, `map_rules`,
`settling`; this module has one for each signal.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import Code
from mentatlab.runs import events as ev
from mentatlab.runs import map_rules
from mentatlab.runs.commands import CancelNode, Command, ReadItems, ScheduleGate, ScheduleRetry
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import Place
from mentatlab.runs.retries import ENGINE_LOST, cause_of, retry_at
from mentatlab.runs.settling import settle
from mentatlab.runs.signals import (
    AttemptEnded,
    Begin,
    Broken,
    EndAsked,
    GateDecided,
    ItemsOffered,
    LaneActive,
    MapFailed,
    PauseAsked,
    Prepared,
    Recovered,
    ResumeAsked,
    RetryDue,
    Signal,
)
from mentatlab.runs.starting import begin, start
from mentatlab.runs.state import NodePhase, NodeState, RunPhase, RunState, Unit, apply
from mentatlab.runs.turn import Turn, stream_end, stream_ends, upstream_fault

__all__ = ["Decision", "apply", "decide", "stream_ends", "upstream_fault"]


class Decision(NamedTuple):
    state: RunState
    events: tuple[ev.RunFact, ...]
    commands: tuple[Command, ...]


def decide(plan: Plan, state: RunState, signal: Signal) -> Decision:
    if state.finished:
        return Decision(state, (), ())
    turn = Turn(plan, state, signal.at)
    _handle(turn, signal)
    settle(turn)
    return Decision(turn.state, tuple(turn.events), tuple(turn.commands))


def _handle(turn: Turn, signal: Signal) -> None:
    match signal:
        case AttemptEnded():
            _attempt_ended(turn, signal)
        case ItemsOffered():
            map_rules.offer(turn, signal)
        case LaneActive():
            _lane_active(turn, signal)
        case Prepared():
            _prepared(turn, signal)
        case RetryDue():
            _retry_due(turn, signal)
        case MapFailed():
            if turn.is_present(signal.node, None, signal.attempt):
                turn.fail_node(signal.node, signal.error)
        case GateDecided():
            _gate_decided(turn, signal)
        case Begin():
            _begin(turn)
        case PauseAsked():
            _pause(turn)
        case ResumeAsked():
            _resume(turn)
        case EndAsked():
            _end_asked(turn, signal)
        case Recovered():
            _recovered(turn, signal)
        case Broken():
            _broken(turn, signal.error)


# ---- beginning, holding, ending


def _begin(turn: Turn) -> None:
    """Nodes that were taken over from another run have ended already."""
    if turn.state.started_at or turn.state.ending is not None:
        return
    turn.emit(ev.RunStarted(at=turn.at))
    for name, node in turn.state.nodes.items():
        if node.terminal:
            turn.end_streams(name, *stream_end(node))
    turn.touch_all()


def _pause(turn: Turn) -> None:
    """What is being prepared is asked about anew afterwards."""
    if turn.state.phase is not RunPhase.RUNNING or turn.state.ending is not None:
        return
    turn.emit(ev.RunPaused(at=turn.at))
    for name, node in turn.state.nodes.items():
        if node.phase is NodePhase.READY:
            turn.note(name, phase=NodePhase.PENDING, left_out=())
        elif node.items:
            map_rules.withdraw(turn, name)


def _resume(turn: Turn) -> None:
    """Retries that fell due meanwhile are due now."""
    if turn.state.phase is not RunPhase.PAUSED:
        return
    turn.emit(ev.RunResumed(at=turn.at))
    turn.commands += [
        ScheduleRetry(name, item, unit.attempt, unit.retry_at)
        for name, item, unit in turn.state.live_units()
        if unit.phase is NodePhase.RETRY_WAIT
    ]
    turn.touch_all()


def _end_asked(turn: Turn, signal: EndAsked) -> None:
    """What runs is asked to stop; what does not run has ended."""
    if turn.state.ending is not None:
        return
    turn.emit(ev.RunEnding(at=turn.at, reason=signal.reason))
    for name, node in turn.state.nodes.items():
        if node.items:
            map_rules.withdraw(turn, name)
    for name, item, unit in tuple(turn.state.live_units()):
        if unit.phase is not NodePhase.RUNNING:
            turn.cancelled(name, item)
        elif item is not None or turn.place(name).node.for_each is None:
            turn.commands.append(CancelNode(name, item, unit.attempt, signal.reason))
    turn.touch_all()


def _broken(turn: Turn, error: Fault) -> None:
    """Nothing runs any more, and nobody could carry out what would follow."""
    if turn.state.ending is None:
        turn.emit(ev.RunEnding(at=turn.at, reason="engine_lost", error=error))
    for name, node in turn.state.nodes.items():
        if node.live:
            turn.fail_node(name, error)
        elif not node.terminal:
            turn.cancelled(name, None)


# ---- attempts


def _lane_active(turn: Turn, signal: LaneActive) -> None:
    if turn.is_present(signal.node, None, signal.attempt):
        lanes = turn.state.active | {(signal.node, signal.pin)}
        turn.activate(lanes)
        turn.touch(signal.node, around=True)


def _attempt_ended(turn: Turn, signal: AttemptEnded) -> None:
    if not turn.is_present(signal.node, signal.item, signal.attempt):
        return
    if signal.error is None:
        _succeeded(turn, signal)
    elif turn.state.ending is not None:
        turn.cancelled(signal.node, signal.item, unconfirmed=signal.unconfirmed)
    elif signal.item is None and turn.node(signal.node).stopping:
        _succeeded(turn, signal)
    else:
        _attempt_failed(turn, signal, signal.error)


def _succeeded(turn: Turn, signal: AttemptEnded) -> None:
    early = signal.item is None and turn.node(signal.node).stopping
    event = ev.NodeSucceeded(
        at=turn.at,
        node=signal.node,
        item=signal.item,
        attempt=signal.attempt,
        outputs=dict(signal.outputs),
        metrics={**signal.metrics, "stopped_early": True} if early else dict(signal.metrics),
        resources=dict(signal.resources),
        timing=dict(signal.timing),
    )
    turn.emit(event)
    if signal.item is None:
        turn.end_streams(signal.node, "complete")


def _attempt_failed(turn: Turn, signal: AttemptEnded, error: Fault) -> None:
    node = turn.place(signal.node).node
    unit = turn.state.unit(signal.node, signal.item)
    assert unit is not None
    due = retry_at(node, unit, error, at=turn.at, jitter=signal.jitter)
    if due is not None:
        _schedule(turn, signal, error, due)
        return
    event = ev.NodeFailed(
        at=turn.at,
        node=signal.node,
        item=signal.item,
        attempt=signal.attempt,
        error=error,
        resources=dict(signal.resources),
        timing=dict(signal.timing),
    )
    if signal.item is None:
        turn.fail_by(event)
    else:
        map_rules.fail_item(turn, node, event)


def _schedule(turn: Turn, signal: AttemptEnded, error: Fault, due: float) -> None:
    event = ev.RetryScheduled(
        at=turn.at,
        node=signal.node,
        item=signal.item,
        attempt=signal.attempt,
        error=error,
        cause=cause_of(error),
        retry_at=due,
        resume_from=dict(signal.resume_from),
        resources=dict(signal.resources),
        timing=dict(signal.timing),
    )
    turn.emit(event)
    turn.commands.append(ScheduleRetry(signal.node, signal.item, signal.attempt, due))


def _retry_due(turn: Turn, signal: RetryDue) -> None:
    unit = turn.state.unit(signal.node, signal.item)
    if unit is None or unit.phase is not NodePhase.RETRY_WAIT or turn.state.held:
        return
    if unit.attempt == signal.attempt:
        left_out = turn.node(signal.node).left_out
        start(turn, signal.node, signal.item, signal.consumed, left_out=left_out)


# ---- what the shell has prepared, and gates


def _prepared(turn: Turn, signal: Prepared) -> None:
    if signal.item is not None:
        map_rules.answer(turn, signal, signal.item)
    elif turn.node(signal.node).phase is NodePhase.READY:
        _carry_out(turn, signal)


def _carry_out(turn: Turn, told: Prepared) -> None:
    match told.verdict:
        case "run":
            begin(turn, turn.place(told.node), turn.node(told.node).left_out)
        case "skip":
            turn.skip(told.node, "when")
        case "cached":
            outputs = dict(told.outputs)
            turn.emit(
                ev.NodeCached(at=turn.at, node=told.node, origin=told.origin, outputs=outputs)
            )
            turn.end_streams(told.node, "complete")
        case "take":
            outputs = dict(told.outputs)
            turn.emit(
                ev.NodeSucceeded(at=turn.at, node=told.node, outputs=outputs, taken=told.taken)
            )
        case "ask":
            turn.emit(
                ev.GateOpened(at=turn.at, node=told.node, message=told.message, until=told.until)
            )
            _watch_gate(turn, told.node)
        case "fail":
            assert told.error is not None
            turn.fail_node(told.node, told.error)


def _watch_gate(turn: Turn, name: str) -> None:
    gate = turn.node(name).gate
    if gate is not None and gate.until:
        turn.commands.append(ScheduleGate(name, gate.until))


def _gate_decided(turn: Turn, signal: GateDecided) -> None:
    name = signal.node
    if turn.node(name).phase is not NodePhase.WAITING_APPROVAL:
        return
    turn.emit(
        ev.GateClosed(
            at=turn.at, node=name, approved=signal.approved, by=signal.by, comment=signal.comment
        )
    )
    pin = "approved" if signal.approved else "rejected"
    if signal.approved or any(e.source_pin == pin for e in turn.place(name).node.outputs):
        turn.emit(ev.NodeSucceeded(at=turn.at, node=name, taken=(pin,)))
    else:
        turn.fail_node(name, _rejected(signal))


def _rejected(signal: GateDecided) -> Fault:
    who = f"{signal.by} has rejected" if signal.by else "nobody decided in time on"
    said = f": {signal.comment}" if signal.comment else ""
    return Fault.told(
        Code.GATE_REJECTED,
        f"{who} {signal.node}{said}",
        "lead an edge from its pin `rejected` to go on in another way",
        "permanent",
    )


# ---- after a crash


def _recovered(turn: Turn, signal: Recovered) -> None:
    """What ran is lost and starts again; what had ended has its streams ended again."""
    turn.touch_all()
    for place in turn.places:
        node = turn.node(place.node.id)
        if node.terminal:
            turn.end_streams(place.node.id, *stream_end(node))
        elif node.phase is NodePhase.WAITING_APPROVAL:
            _watch_gate(turn, place.node.id)
        elif node.live and turn.state.ending is None and turn.is_unwanted(place):
            turn.succeed_early(place.node.id)
        elif node.live and place.node.for_each is not None:
            _recover_map(turn, place, node)
        elif node.live:
            _lost(turn, place, None, node, signal)


def _recover_map(turn: Turn, place: Place, node: NodeState) -> None:
    name = place.node.id
    if turn.state.ending is None:
        turn.commands.append(ReadItems(name, node.attempt, node.last_item))
    for item, unit in node.items.items():
        if turn.node(name).live:
            _lost(turn, place, item, unit, None)


def _lost(turn: Turn, place: Place, item: int | None, unit: Unit, signal: Recovered | None) -> None:
    name = place.node.id
    stands: Mapping[str, int] = signal.resume_from.get(name, {}) if signal is not None else {}
    if turn.state.ending is not None:
        turn.cancelled(name, item)
    elif unit.phase is NodePhase.RETRY_WAIT:
        if item is None:
            turn.note(name, next_resume=stands)
        turn.commands.append(ScheduleRetry(name, item, unit.attempt, unit.retry_at))
    else:
        ended = AttemptEnded(
            at=turn.at, node=name, item=item, attempt=unit.attempt, resume_from=stands
        )
        _attempt_failed(turn, ended, ENGINE_LOST)
