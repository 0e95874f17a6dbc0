"""Everything that follows from what has just happened: in topological order, end who cannot start,
start who can, stop whom nobody wants; then see whether the run is over. Pure.

A node starts when every edge has *come* (its source ended well, or writes the lane that is read
live) or *stays away* without harm. An edge stays away when its source was skipped or did not choose
its pin. Failed beats skipped: a node is skipped only when nothing that it needs can fail any more,
so the outcome does not depend on what happens first.
"""

from dataclasses import dataclass, field
from typing import Literal

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import Code
from mentatlab.runs import events as ev
from mentatlab.runs.commands import CancelNode, FinishRun
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import Inlet, Place, outline
from mentatlab.runs.map_rules import advance
from mentatlab.runs.starting import ask, begin
from mentatlab.runs.state import BAD, GOOD, NodePhase, NodeState, RunPhase, RunState
from mentatlab.runs.turn import Turn

EdgeState = Literal["waiting", "live", "come", "failed", "away"]
_UNSTARTED = frozenset({NodePhase.PENDING, NodePhase.READY, NodePhase.WAITING_APPROVAL})


def settle(turn: Turn) -> None:
    while (place := turn.next_touched()) is not None:
        node = turn.node(place.node.id)
        if not node.terminal:
            _settle_node(turn, place, node)
    if turn.state.left == 0 and not turn.state.finished:
        _finish(turn)


def _settle_node(turn: Turn, place: Place, node: NodeState) -> None:
    name = place.node.id
    if turn.state.ending is not None:
        idle_map = place.node.for_each is not None and node.live and not node.items
        if idle_map or node.phase in _UNSTARTED:
            turn.cancelled(name, None)
    elif node.phase is NodePhase.PENDING:
        _settle_pending(turn, place)
    elif dead := _dead_source(turn.state, place, node):
        turn.fail_with(name, dead)
    elif node.live and turn.is_unwanted(place):
        _stop(turn, place, node)
    if place.node.for_each is not None and turn.node(name).phase is NodePhase.RUNNING:
        advance(turn, place)


def _stop(turn: Turn, place: Place, node: NodeState) -> None:
    if node.phase is NodePhase.RETRY_WAIT or place.node.for_each is not None:
        turn.succeed_early(place.node.id)
    elif not node.stopping:
        turn.note(place.node.id, stopping=True)
        turn.commands.append(CancelNode(place.node.id, None, node.attempt, "no_demand"))


def _dead_source(state: RunState, place: Place, node: NodeState) -> str:
    """A source that what was started cannot do without, and that has failed."""
    for inlet in place.inlets:
        used = not inlet.optional and inlet.pin not in node.left_out
        if used and state.nodes[inlet.source].phase in BAD:
            return inlet.source
    return ""


# ---- before a start


@dataclass(slots=True)
class _Inflow:
    """A node's edges by their state."""

    waiting: list[Inlet] = field(default_factory=list[Inlet])
    live: list[Inlet] = field(default_factory=list[Inlet])
    come: list[Inlet] = field(default_factory=list[Inlet])
    failed: list[Inlet] = field(default_factory=list[Inlet])
    away: list[Inlet] = field(default_factory=list[Inlet])

    @property
    def here(self) -> int:
        return len(self.live) + len(self.come)


def _inflow(state: RunState, place: Place) -> _Inflow:
    found = _Inflow()
    for inlet in place.inlets:
        source = state.nodes[inlet.source]
        if source.phase in GOOD:
            chosen = source.taken is None or inlet.source_pin in source.taken
            (found.come if chosen else found.away).append(inlet)
        elif source.phase in BAD:
            found.failed.append(inlet)
        elif source.phase is NodePhase.SKIPPED:
            found.away.append(inlet)
        elif inlet.live and (inlet.source, inlet.source_pin) in state.active:
            found.live.append(inlet)
        else:
            found.waiting.append(inlet)
    return found


def _settle_pending(turn: Turn, place: Place) -> None:
    found = _inflow(turn.state, place)
    if place.fewest is None:
        _settle_all(turn, place, found)
    else:
        _settle_some(turn, place, found, place.fewest)


def _settle_all(turn: Turn, place: Place, found: _Inflow) -> None:
    failed = [inlet for inlet in found.failed if not inlet.optional]
    away = [inlet for inlet in found.away if not inlet.optional]
    if failed:
        turn.fail_with(place.node.id, failed[0].source)
    elif away:
        if all(inlet.optional for inlet in (*found.waiting, *found.live)):
            _skip(turn, place, away[0])
    elif not found.waiting:
        _start(turn, place, (*found.failed, *found.away))


def _settle_some(turn: Turn, place: Place, found: _Inflow, fewest: int) -> None:
    """`needs: any` or a number; the edge that gives the items is always one of them."""
    missing = (*found.waiting, *found.failed, *found.away)
    possible = found.here + len(found.waiting) >= fewest
    if found.here >= fewest and not any(inlet.items for inlet in missing):
        _start(turn, place, missing)
    elif possible and not any(inlet.items for inlet in (*found.failed, *found.away)):
        return
    elif found.failed:
        turn.fail_with(place.node.id, found.failed[0].source)
    elif not found.waiting and not found.live:
        _skip(turn, place, found.away[0])


def _skip(turn: Turn, place: Place, inlet: Inlet) -> None:
    skipped = turn.node(inlet.source).phase is NodePhase.SKIPPED
    turn.skip(place.node.id, "upstream" if skipped else "branch", inlet.source)


def _start(turn: Turn, place: Place, missing: tuple[Inlet, ...]) -> None:
    left_out = tuple(inlet.pin for inlet in missing)
    if turn.state.held:
        return
    if turn.is_unwanted(place):
        turn.skip(place.node.id, "no_demand")
    elif place.asks and place.node.for_each is None:
        ask(turn, place.node.id, left_out)
    else:
        begin(turn, place, left_out)


# ---- the run's end


def _finish(turn: Turn) -> None:
    """A pause has nothing to hold any more."""
    if turn.state.phase is RunPhase.PAUSED:
        turn.emit(ev.RunResumed(at=turn.at))
    event = _run_end(turn.plan, turn.state, turn.at)
    turn.emit(event)
    turn.commands.append(FinishRun(event.state))


def _run_end(plan: Plan, state: RunState, at: float) -> ev.RunFinished:
    """By what was asked, if anything; failed when a node that the result needs ended badly; partial
    when only items or optional branches did."""
    if state.ending == "user_cancel":
        return ev.RunFinished(at=at, state="cancelled", reason="user_cancel")
    error = next((n.error for n in state.nodes.values() if n.phase is NodePhase.FAILED), None)
    if state.ending is not None:
        fault = _timeout(plan) if state.ending == "timeout" else state.error
        return ev.RunFinished(at=at, state="failed", reason=state.ending, error=error or fault)
    bad = [p for p in outline(plan).places if state.nodes[p.node.id].phase in BAD]
    if any(place.needed for place in bad):
        return ev.RunFinished(at=at, state="failed", reason="node_failed", error=error)
    if bad or any(node.failed for node in state.nodes.values()):
        return ev.RunFinished(at=at, state="partial")
    return ev.RunFinished(at=at, state="succeeded")


def _timeout(plan: Plan) -> Fault:
    return Fault(
        Code.RUN_TIMEOUT,
        f"the run took longer than its {plan.timeout_s:g} s",
        "raise runConfig.timeoutSeconds",
        "timeout",
    )
