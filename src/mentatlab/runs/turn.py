"""One decision in the making: the state so far, what it has said, and what is left to look at.

Pure. `emit` is the only way to change what is in the log; whatever it changes is looked at again
before the decision is over (`settling`).
"""

import heapq
from typing import Any, Literal

from msgspec.structs import replace

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import Code
from mentatlab.runs import events as ev
from mentatlab.runs.commands import CancelNode, Command, EndStream
from mentatlab.runs.events import Fault
from mentatlab.runs.lookups import Place, outline
from mentatlab.runs.state import GOOD, NodePhase, NodeState, RunState, apply, with_node

StreamOutcome = Literal["complete", "cancelled", "error"]


class Turn:
    def __init__(self, plan: Plan, state: RunState, at: float) -> None:
        self.plan, self.state, self.at = plan, state, at
        self.events: list[ev.RunFact] = []
        self.commands: list[Command] = []
        self.places = outline(plan).places
        self._by_name = outline(plan).by_name
        self._queue: list[int] = []
        self._queued: set[int] = set()

    # -- what changes

    def emit(self, event: ev.RunFact) -> None:
        self.state = apply(self.state, event)
        self.events.append(event)
        if event.node:
            self.touch(event.node, around=event.item is None)

    def note(self, name: str, **changes: Any) -> None:
        """A change of a node that is not in the log."""
        self.state = with_node(self.state, name, replace(self.state.nodes[name], **changes))
        self.touch(name)

    def activate(self, lanes: frozenset[tuple[str, str]]) -> None:
        """These lanes have records; neither is that in the log."""
        self.state = replace(self.state, active=lanes)

    def touch(self, name: str, *, around: bool = False) -> None:
        """Look at this node again; `around`: and at those that it feeds and is fed by."""
        place = self._by_name[name]
        self._push(place.position)
        if around:
            for position in place.consumers:
                self._push(position)
            if self.state.nodes[name].terminal:
                for position in place.producers:
                    self._push(position)

    def touch_all(self) -> None:
        self._queued = set(range(len(self.places)))
        self._queue = sorted(self._queued)

    def _push(self, position: int) -> None:
        if position not in self._queued:
            self._queued.add(position)
            heapq.heappush(self._queue, position)

    def next_touched(self) -> Place | None:
        """The first in topological order."""
        if not self._queue:
            return None
        position = heapq.heappop(self._queue)
        self._queued.discard(position)
        return self.places[position]

    # -- what is

    def place(self, name: str) -> Place:
        return self._by_name[name]

    def node(self, name: str) -> NodeState:
        return self.state.nodes[name]

    def is_present(self, name: str, item: int | None, attempt: int) -> bool:
        unit = self.state.unit(name, item)
        return unit is not None and unit.phase is NodePhase.RUNNING and unit.attempt == attempt

    def is_unwanted(self, place: Place) -> bool:
        """All who could read its streams have ended, and it is not to go on without them."""
        return place.stoppable and all(
            self.state.nodes[self.places[c].node.id].terminal for c in place.consumers
        )

    # -- ends

    def succeed_early(self, name: str) -> None:
        """Nobody reads on."""
        self.cancel_live(name, "no_demand")
        metrics = {"stopped_early": True}
        attempt = self.node(name).attempt
        self.emit(ev.NodeSucceeded(at=self.at, node=name, attempt=attempt, metrics=metrics))
        self.end_streams(name, "complete")

    def fail_node(self, name: str, error: Fault) -> None:
        attempt = self.node(name).attempt
        self.fail_by(ev.NodeFailed(at=self.at, node=name, attempt=attempt, error=error))

    def fail_by(self, event: ev.NodeFailed) -> None:
        self.cancel_live(event.node, "node_failed")
        self.emit(event)
        self.end_streams(event.node, "error", event.error)

    def fail_with(self, name: str, upstream: str) -> None:
        self.cancel_live(name, "upstream_failed")
        attempt = self.node(name).attempt
        self.emit(ev.NodeUpstreamFailed(at=self.at, node=name, attempt=attempt, upstream=upstream))
        self.end_streams(name, "error", upstream_fault(upstream))

    def skip(
        self,
        name: str,
        cause: Literal["when", "branch", "upstream", "no_demand"],
        upstream: str = "",
    ) -> None:
        self.emit(ev.NodeSkipped(at=self.at, node=name, cause=cause, upstream=upstream))
        self.end_streams(name, "complete")

    def cancelled(self, name: str, item: int | None, *, unconfirmed: bool = False) -> None:
        unit = self.state.unit(name, item)
        assert unit is not None
        event = ev.NodeCancelled(
            at=self.at, node=name, item=item, attempt=unit.attempt, unconfirmed=unconfirmed
        )
        self.emit(event)
        if item is None:
            self.end_streams(name, "cancelled")

    def cancel_live(self, name: str, reason: str) -> None:
        """Ask what runs of a node to stop; its end is not waited for."""
        node = self.node(name)
        units = [*node.items.items(), (None, node)]
        self.commands += [
            CancelNode(name, item, unit.attempt, reason)
            for item, unit in units
            if unit.phase is NodePhase.RUNNING
        ]

    def end_streams(self, name: str, outcome: StreamOutcome, error: Fault | None = None) -> None:
        self.commands += [EndStream(name, pin, outcome, error) for pin in self.place(name).lanes]


def upstream_fault(upstream: str) -> Fault:
    return Fault(Code.UPSTREAM_FAILED, f"{upstream} ended badly", f"see the error of {upstream}")


def stream_ends(plan: Plan, state: RunState) -> list[EndStream]:
    """How the streams of a finished run must have ended."""
    return [
        EndStream(place.node.id, pin, *stream_end(state.nodes[place.node.id]))
        for place in outline(plan).places
        for pin in place.lanes
    ]


def stream_end(node: NodeState) -> tuple[StreamOutcome, Fault | None]:
    if node.phase in GOOD or node.phase is NodePhase.SKIPPED:
        return "complete", None
    if node.phase is NodePhase.CANCELLED:
        return "cancelled", None
    return "error", node.error or upstream_fault(node.upstream)
