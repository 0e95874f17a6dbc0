"""When everything of a run happened: queue, start, first chunk, run, waits and end of every node,
item and attempt. Folded from the run's log and its plan, with the lanes' times beside. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, TypedDict

import msgspec

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.runs import events as ev
from mentatlab.runs.lookups import lane_pins, reads_lane
from mentatlab.runs.views import ErrorView, View, error_view

AttemptEnd = Literal[
    "running", "succeeded", "failed", "retried", "restarted", "cancelled", "overtaken"
]
_Unit = tuple[str, int | None]


class LaneTimes(View, frozen=True, kw_only=True):
    """`first_chunk_at`: of the data that stands; `ended_at` when nothing more comes."""

    pin: str
    stream_id: str
    state: str  # open | ended | errored | expired
    chunks: int = 0
    first_chunk_at: float | None = None
    ended_at: float | None = None


class AttemptTimes(View, frozen=True, kw_only=True):
    """`retried`: failed, another attempt follows at `retry_at`. `restarted`: begun again because
    of its source or its server; `overtaken`: the run ended before it."""

    attempt: int
    outcome: AttemptEnd
    started_at: float
    ended_at: float | None = None
    error: ErrorView | None = None
    retry_at: float | None = None


class UnitTimes(View, frozen=True, kw_only=True):
    """A node, or one item of it. `ready_at`: what it needs was there; `queued_s` from then to its
    first start; `run_s` in attempts, `waited_s` between them."""

    state: str
    ready_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    queued_s: float | None = None
    run_s: float = 0.0
    waited_s: float = 0.0
    attempts: tuple[AttemptTimes, ...] = ()
    skipped_by: str | None = None  # when | branch | upstream | no_demand
    cached_from: str | None = None  # the run that did it


class ItemTimes(UnitTimes, frozen=True, kw_only=True):
    item: int


class ItemsSpread(View, frozen=True, kw_only=True):
    """Of all items of a `forEach` node; `run_s` of those that have ended: how they spread."""

    states: dict[str, int]
    run_s: dict[str, float]  # min, p50, p95, max, mean


class GateTimes(View, frozen=True, kw_only=True):
    """`until`: when it rejects by itself; None = never. `approved` None = nobody has decided."""

    message: str
    opened_at: float
    until: float | None = None
    closed_at: float | None = None
    approved: bool | None = None
    by: str = ""
    comment: str = ""


class NodeTimes(UnitTimes, frozen=True, kw_only=True):
    """`first_chunk_at` and `stream_s` (to the end of its last stream) are over all its streams."""

    node_id: str
    kind: str
    type: str
    first_chunk_at: float | None = None
    stream_s: float | None = None
    streams: tuple[LaneTimes, ...] = ()
    gate: GateTimes | None = None
    spread: ItemsSpread | None = None
    items: tuple[ItemTimes, ...] = ()
    more_items: bool = False


class Pause(View, frozen=True, kw_only=True):
    paused_at: float
    resumed_at: float | None = None


class Timeline(View, frozen=True, kw_only=True):
    """Times in Unix seconds, durations in seconds; what still runs is measured up to `at`."""

    run_id: str
    state: str
    at: float
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    queued_s: float | None = None
    run_s: float | None = None
    pauses: tuple[Pause, ...] = ()
    nodes: tuple[NodeTimes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPage:
    """Which items to tell one by one: `limit` of each node behind item `after`."""

    node: str | None = None
    after: int = 0
    limit: int = 100


FIRST_ITEMS = ItemPage()


def timeline(
    run_id: str,
    plan: Plan,
    facts: Iterable[ev.RunFact],
    *,
    lanes: Mapping[tuple[str, str], LaneTimes],
    at: float,
    page: ItemPage = FIRST_ITEMS,
) -> Timeline:
    """`lanes` by (node, pin); `at`: now."""
    record = _Record()
    for fact in facts:
        record.add(fact)
    until = record.finished_at or at
    return Timeline(
        run_id=run_id,
        state=record.state,
        at=until,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        queued_s=_between(record.created_at, record.started_at),
        run_s=_between(record.started_at, until),
        pauses=tuple(record.pauses),
        nodes=tuple(_node(n, plan, record, lanes, until, page) for n in plan.nodes),
    )


@dataclass(slots=True)
class _History:
    """What the log says of one unit, so far."""

    state: str = "pending"
    attempts: list[AttemptTimes] = field(default_factory=list[AttemptTimes])
    ended_at: float | None = None
    skipped_by: str | None = None
    cached_from: str | None = None

    def start(self, at: float, attempt: int) -> None:
        self.close(at, "restarted")
        self.state = "running"
        self.attempts.append(AttemptTimes(attempt=attempt, outcome="running", started_at=at))

    def end(self, at: float, state: str, outcome: AttemptEnd, error: ev.Fault | None) -> None:
        self.close(at, outcome, error)
        self.state, self.ended_at = state, at

    def close(
        self,
        at: float,
        outcome: AttemptEnd,
        error: ev.Fault | None = None,
        retry_at: float | None = None,
    ) -> None:
        if not self.attempts or self.attempts[-1].ended_at is not None:
            return
        self.attempts[-1] = msgspec.structs.replace(
            self.attempts[-1],
            outcome=outcome,
            ended_at=at,
            error=error_view(error),
            retry_at=retry_at,
        )

    @property
    def started_at(self) -> float | None:
        return self.attempts[0].started_at if self.attempts else None

    def run_s(self, until: float) -> float:
        return sum(
            (until if a.ended_at is None else a.ended_at) - a.started_at for a in self.attempts
        )

    def waited_s(self, until: float) -> float:
        """Between attempts, and since the last one when another was due."""
        due = bool(self.attempts) and self.attempts[-1].outcome == "retried"
        starts = [a.started_at for a in self.attempts[1:]]
        starts += [self.ended_at or until] if due else []
        ends = [a.ended_at or a.started_at for a in self.attempts]
        return sum(max(0.0, begun - ended) for begun, ended in zip(starts, ends, strict=False))


class _Record:
    """The fold."""

    def __init__(self) -> None:
        self.state = "created"
        self.created_at = 0.0
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.pauses: list[Pause] = []
        self.nodes: dict[str, _History] = {}
        self.items: dict[str, dict[int, _History]] = {}
        self.gates: dict[str, GateTimes] = {}

    def of(self, unit: _Unit) -> _History:
        node, item = unit
        if item is None:
            return self.nodes.setdefault(node, _History())
        return self.items.setdefault(node, {}).setdefault(item, _History())

    def add(self, fact: ev.RunFact) -> None:
        match fact:
            case ev.RunCreated():
                self.state, self.created_at = "queued", fact.at
            case ev.RunStarted():
                self.state, self.started_at = "running", fact.at
            case ev.RunPaused():
                self.state = "paused"
                self.pauses.append(Pause(paused_at=fact.at))
            case ev.RunResumed():
                self.state = "running"
                self._resume(fact.at)
            case ev.RunEnding():
                self.state = "cancelling" if fact.reason == "user_cancel" else self.state
            case ev.RunFinished():
                self._finish(fact)
            case ev.GateOpened() | ev.GateClosed():
                self._gate(fact)
            case ev.ItemsVoided():
                self._void(fact)
            case _:
                _add_to(self.of((fact.node, fact.item)), fact)

    def _resume(self, at: float) -> None:
        if self.pauses and self.pauses[-1].resumed_at is None:
            self.pauses[-1] = msgspec.structs.replace(self.pauses[-1], resumed_at=at)

    def _finish(self, fact: ev.RunFinished) -> None:
        self.state, self.finished_at = fact.state, fact.at
        self._resume(fact.at)
        for history in [
            *self.nodes.values(),
            *(h for i in self.items.values() for h in i.values()),
        ]:
            history.close(fact.at, "overtaken")

    def _gate(self, fact: ev.GateOpened | ev.GateClosed) -> None:
        if isinstance(fact, ev.GateOpened):
            self.of((fact.node, None)).state = "waiting_approval"
            self.gates[fact.node] = GateTimes(
                message=fact.message, opened_at=fact.at, until=fact.until or None
            )
        elif (gate := self.gates.get(fact.node)) is not None:
            self.gates[fact.node] = msgspec.structs.replace(
                gate, closed_at=fact.at, approved=fact.approved, by=fact.by, comment=fact.comment
            )

    def _void(self, fact: ev.ItemsVoided) -> None:
        self.of((fact.node, None)).start(fact.at, fact.attempt)
        items = self.items.get(fact.node, {})
        self.items[fact.node] = {i: h for i, h in items.items() if i <= fact.above}


def _add_to(history: _History, fact: ev.RunFact) -> None:
    match fact:
        case ev.NodeStarted():
            history.start(fact.at, fact.attempt)
        case ev.RetryScheduled():
            history.close(fact.at, "retried", fact.error, fact.retry_at)
            history.state = "retry_wait"
        case ev.NodeSucceeded():
            history.end(fact.at, "succeeded", "succeeded", None)
        case ev.NodeFailed():
            history.end(fact.at, "failed", "failed", fact.error)
        case ev.NodeCancelled():
            history.end(fact.at, "cancelled", "cancelled", None)
        case ev.NodeUpstreamFailed():
            history.end(fact.at, "upstream_failed", "cancelled", None)
        case ev.NodeSkipped():
            history.end(fact.at, "skipped", "cancelled", None)
            history.skipped_by = fact.cause
        case ev.NodeCached():
            history.end(fact.at, "cached", "cancelled", None)
            history.cached_from = fact.origin
        case _:
            pass


def _node(
    node: PlanNode,
    plan: Plan,
    record: _Record,
    lanes: Mapping[tuple[str, str], LaneTimes],
    until: float,
    page: ItemPage,
) -> NodeTimes:
    history = record.nodes.get(node.id, _History())
    streams = [lanes[node.id, pin] for pin in lane_pins(node) if (node.id, pin) in lanes]
    first = min((s.first_chunk_at for s in streams if s.first_chunk_at is not None), default=None)
    items = record.items.get(node.id, {})
    shown = _page(node.id, items, page)
    return NodeTimes(
        **_unit(history, _ready_at(node, record, lanes, history), until),
        node_id=node.id,
        kind=node.kind,
        type=node.type,
        first_chunk_at=first,
        stream_s=_between(first, max((s.ended_at or until for s in streams), default=until)),
        streams=tuple(streams),
        gate=record.gates.get(node.id),
        spread=_spread(items.values(), until) if node.for_each is not None else None,
        items=tuple(
            ItemTimes(**_unit(items[number], None, until), item=number) for number in shown
        ),
        more_items=bool(shown) and shown[-1] < max(items),
    )


def _page(node: str, items: Mapping[int, _History], page: ItemPage) -> Sequence[int]:
    if page.node not in (None, node):
        return []
    return sorted(number for number in items if number > page.after)[: page.limit]


class _UnitFields(TypedDict):
    state: str
    ready_at: float | None
    started_at: float | None
    ended_at: float | None
    queued_s: float | None
    run_s: float
    waited_s: float
    attempts: tuple[AttemptTimes, ...]
    skipped_by: str | None
    cached_from: str | None


def _unit(history: _History, ready_at: float | None, until: float) -> _UnitFields:
    return {
        "state": history.state,
        "ready_at": ready_at,
        "started_at": history.started_at,
        "ended_at": history.ended_at,
        "queued_s": _between(ready_at, history.started_at),
        "run_s": history.run_s(until),
        "waited_s": history.waited_s(until),
        "attempts": tuple(history.attempts),
        "skipped_by": history.skipped_by,
        "cached_from": history.cached_from,
    }


def _ready_at(
    node: PlanNode,
    record: _Record,
    lanes: Mapping[tuple[str, str], LaneTimes],
    history: _History,
) -> float | None:
    """When the last of what it waits for had come; never after its start. None = not yet."""
    if record.started_at is None:
        return None
    come = [_come_at(edge, record, lanes) for edge in node.inputs]
    begun = history.started_at
    known = [at for at in come if at is not None and (begun is None or at <= begun)]
    if begun is None and len(known) < len(come):
        return None
    return max([record.started_at, *known])


def _come_at(
    edge: PlanEdge, record: _Record, lanes: Mapping[tuple[str, str], LaneTimes]
) -> float | None:
    source = record.nodes.get(edge.source)
    ended = source.ended_at if source is not None else None
    lane = lanes.get((edge.source, edge.source_pin)) if reads_lane(edge) else None
    first = lane.first_chunk_at if lane is not None else None
    return min((at for at in (ended, first) if at is not None), default=None)


def _spread(items: Iterable[_History], until: float) -> ItemsSpread:
    states: dict[str, int] = {}
    took: list[float] = []
    for item in items:
        states[item.state] = states.get(item.state, 0) + 1
        if item.ended_at is not None:
            took.append(item.run_s(until))
    return ItemsSpread(states=states, run_s=_percentiles(sorted(took)))


def _percentiles(took: Sequence[float]) -> dict[str, float]:
    """Nearest rank."""
    if not took:
        return {}
    ranks = {"min": 0.0, "p50": 0.5, "p95": 0.95, "max": 1.0}
    found = {name: took[max(0, ceil(rank * len(took)) - 1)] for name, rank in ranks.items()}
    return {**found, "mean": sum(took) / len(took)}


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else max(0.0, end - start)
