"""Where a result comes from: back over nodes, items and records to the run's inputs, with the frame
and time code that were met on the way. Folded from the run's log; it asks for the records that it
needs. Pure.
"""

from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.errors import Code, Invalid, NotFound
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.records import StreamChunk
from mentatlab.protocol.values import is_object
from mentatlab.runs import events as ev
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.lookups import lane_pins, reads_lane
from mentatlab.runs.values import origin
from mentatlab.runs.views import View

T = TypeVar("T")

FRAME_KEYS = ("frame", "frame_index")
"""Of a record's metadata: which frame of its source it is, from 0."""


class Place(NamedTuple):
    """A pin's value or whole stream; with `seq` one record of it, or one element of a list (which
    is the item that gave it). `node` empty = the run's input `pin`."""

    node: str
    pin: str
    seq: int | None = None

    def __str__(self) -> str:
        name = f"{self.node}.{self.pin}" if self.node else self.pin
        return name if self.seq is None else f"{name}#{self.seq}"


class Step(View, frozen=True, kw_only=True):
    """What stood in one place. `sources`: input pin → the places (by `id`) that it came from.

    `reference`: of the medium, when it is one. `pts_s`, `time_code` and `frame` say where in its
    medium a record is. `gone`: the record is not kept any more. `cached_from`: the run that did it.
    `skipped_by`: why nothing came there, as in `NodeSkipped`, with the node that was the reason.
    """

    id: str
    node_id: str
    pin: str
    type: str = ""
    sequence: int | None = None
    item: int | None = None
    attempt: int | None = None
    reference: dict[str, Any] | None = None
    pts_s: float | None = None
    time_code: str | None = None
    frame: int | None = None
    metadata: dict[str, Any] = {}
    records: int | None = None  # of a whole stream: how many
    gone: bool = False
    cached_from: str | None = None
    skipped_by: str | None = None
    upstream: str = ""
    sources: dict[str, list[str]] = {}


class Origin(View, frozen=True, kw_only=True):
    """Where a way back ends: a run's input, or a node without any. `time_code` and `frame` are
    those of the last record before it."""

    id: str
    input: str | None = None
    reference: dict[str, Any] | None = None
    pts_s: float | None = None
    time_code: str | None = None
    frame: int | None = None


class Lineage(View, frozen=True, kw_only=True):
    """`steps` from the result (the first) backwards, each place once."""

    run_id: str
    result: str
    origins: tuple[Origin, ...]
    steps: tuple[Step, ...]


Asked = tuple[str, int]
"""A stream's id and a sequence."""
Tracing = Generator[Asked, StreamChunk | None, Lineage]


def place_of(
    plan: Plan,
    *,
    output: str | None = None,
    node: str | None = None,
    pin: str | None = None,
    seq: int | None = None,
) -> Place:
    """What a question means: a run's output (`node.pin`, or `node` where it has one), or any pin.

    `Invalid(INVALID_REQUEST)` for half a question, `NotFound(NOT_FOUND)` for a pin there is not.
    """
    if (output is None) == (node is None):
        raise Invalid(
            Code.INVALID_REQUEST,
            "lineage is asked of an output, or of a node and pin",
            hint=f"?output= one of: {', '.join(_outputs(plan))}; or ?node=…&pin=…",
        )
    named = _output(plan, output) if output is not None else (node or "", pin)
    found = next((n for n in plan.nodes if n.id == named[0]), None)
    if found is None:
        raise _unknown(f"the run has no node {named[0]}", [n.id for n in plan.nodes])
    return Place(*_pin_of(found, named[1]), seq)


def _output(plan: Plan, name: str) -> tuple[str, str]:
    found = [out for out in plan.outputs if name in (out[0], f"{out[0]}.{out[1]}")]
    if len(found) != 1:
        raise _unknown(f"the run has no output {name}", _outputs(plan))
    return found[0]


def _outputs(plan: Plan) -> list[str]:
    return [f"{node}.{pin}" for node, pin in plan.outputs]


def _pin_of(node: PlanNode, pin: str | None) -> tuple[str, str]:
    pins = [e.target_pin for e in node.inputs] if node.kind == "output" else []
    pins = pins or [p.name for p in node.output_pins]
    if pin is None and len(pins) == 1:
        pin = pins[0]
    if pin not in pins:
        raise _unknown(f"{node.id} has no output pin {pin or 'of its own'}", pins)
    return origin(node, pin)


def _unknown(message: str, there: Iterable[str]) -> NotFound:
    return NotFound(Code.NOT_FOUND, message, hint=f"there are: {', '.join(there) or 'none'}")


def trace(
    run_id: str, plan: Plan, inputs: Mapping[str, Any], facts: Iterable[ev.RunFact], result: Place
) -> Tracing:
    """Yields the records that it needs, and is sent each, or None when it is not kept."""
    story = _Story(run_id, plan, inputs, facts)
    steps: dict[Place, Step] = {}
    ways: dict[Place, Step | None] = {result: None}  # to the last record on the way there
    while waiting := [place for place in ways if place not in steps]:
        for place in waiting:
            asked = story.record_of(place)
            record = (yield asked) if asked is not None else None
            step, sources = story.step(place, record)
            steps[place] = step
            nearest = step if step.pts_s is not None or step.frame is not None else ways[place]
            for source in sources:
                ways.setdefault(source, nearest)
    return Lineage(
        run_id=run_id,
        result=str(result),
        origins=tuple(
            _origin(place, step, ways[place]) for place, step in steps.items() if not step.sources
        ),
        steps=tuple(steps.values()),
    )


def _origin(place: Place, step: Step, nearest: Step | None) -> Origin:
    timed = step if step.pts_s is not None else nearest
    return Origin(
        id=step.id,
        input=None if place.node else place.pin,
        reference=step.reference,
        pts_s=timed and timed.pts_s,
        time_code=timed and timed.time_code,
        frame=timed and timed.frame,
    )


class _Story:
    """What the log says of values, by place."""

    def __init__(
        self, run_id: str, plan: Plan, inputs: Mapping[str, Any], facts: Iterable[ev.RunFact]
    ) -> None:
        self._run_id, self._plan, self._inputs = run_id, plan, inputs
        self._nodes = {node.id: node for node in plan.nodes}
        self._ends: dict[tuple[str, int | None], ev.NodeSucceeded | ev.NodeCached] = {}
        self._skips: dict[tuple[str, int | None], ev.NodeSkipped] = {}
        for fact in facts:
            if isinstance(fact, ev.NodeSucceeded | ev.NodeCached):
                self._ends[fact.node, fact.item] = fact
            elif isinstance(fact, ev.NodeSkipped):
                self._skips[fact.node, fact.item] = fact
            elif isinstance(fact, ev.ItemsVoided):
                self._ends, self._skips = _standing(self._ends, fact), _standing(self._skips, fact)

    def record_of(self, place: Place) -> Asked | None:
        """The record that tells of this place, where it is one of a lane."""
        node = self._nodes.get(place.node)
        if node is None or place.seq is None or place.pin not in lane_pins(node):
            return None
        return self._lane(place), place.seq

    def _lane(self, place: Place) -> str:
        match self._value(place):
            case {"type": "stream", "stream_id": str(name)}:
                return name  # of another run, when the node did not run in this one
            case _:
                return stream_id(self._run_id, place.node, place.pin)

    def _value(self, place: Place) -> Any:
        end = self._ends.get((place.node, None))
        return end.outputs.get(place.pin) if end is not None else None

    def step(self, place: Place, record: StreamChunk | None) -> tuple[Step, list[Place]]:
        """What stood there, and where that came from."""
        if not place.node:
            value = self._inputs.get(place.pin)
            step = Step(id=str(place), node_id="", pin=place.pin, type="input", **_medium(value))
            return step, []
        node = self._nodes[place.node]
        item, told = self._told(place, node, record)
        fed, end = self._sources(node, item), self._ends.get((node.id, None))
        step = Step(
            id=str(place),
            node_id=node.id,
            pin=place.pin,
            type=node.type,
            item=item,
            cached_from=end.origin if isinstance(end, ev.NodeCached) else None,
            **self._skipped(place, item),
            sources={pin: [str(source) for source in sources] for pin, sources in fed.items()},
            **told,
        )
        return step, [source for sources in fed.values() for source in sources]

    def _skipped(self, place: Place, item: int | None) -> dict[str, Any]:
        """Why nothing came here, when it was skipped or is a branch that was not taken."""
        skip = self._skips.get((place.node, item)) or self._skips.get((place.node, None))
        if skip is not None:
            return {"skipped_by": skip.cause, "upstream": skip.upstream}
        end = self._ends.get((place.node, None))
        taken = end.taken if isinstance(end, ev.NodeSucceeded) else None
        if taken is not None and place.pin not in taken:
            return {"skipped_by": "branch", "upstream": place.node}
        return {}

    def _told(
        self, place: Place, node: PlanNode, record: StreamChunk | None
    ) -> tuple[int | None, dict[str, Any]]:
        """The item that gave it, and the step's fields that only its kind of place has."""
        if place.seq is None:
            return None, self._whole(place)
        if place.pin not in lane_pins(node):  # an element of a list: of a `forEach` an item's
            item = place.seq if node.for_each is not None else None
            end = self._ends.get((node.id, item))
            value = end.outputs.get(place.pin) if end and item is not None else None
            return item, {"attempt": end and end.attempt, "sequence": place.seq, **_medium(value)}
        if record is None:
            return None, {"sequence": place.seq, "gone": True}
        item = record.item if node.for_each is not None else None
        told = {"sequence": place.seq, "attempt": record.attempt, **_media_time(record)}
        return item, told

    def _whole(self, place: Place) -> dict[str, Any]:
        value, end = self._value(place), self._ends.get((place.node, None))
        records = value.get("chunks") if is_object(value) else None
        return {"attempt": end and end.attempt, "records": records, **_medium(value)}

    def _sources(self, node: PlanNode, item: int | None) -> dict[str, list[Place]]:
        """What its input pins got, by pin, for this item of it."""
        found: dict[str, list[Place]] = {}
        for edge in node.inputs:
            found.setdefault(edge.target_pin, []).append(self._source(edge, item))
        for wanted in self._plan.inputs:
            if wanted.node == node.id:
                given = (wanted.name, f"{wanted.node}.{wanted.pin.name}")
                name = next((n for n in given if n in self._inputs), None)
                if name is not None:
                    found[wanted.pin.name] = [Place("", name)]
        return found

    def _source(self, edge: PlanEdge, item: int | None) -> Place:
        if edge.kind != "items" or item is None:
            return Place(edge.source, edge.source_pin)
        if edge.source_is_list and not reads_lane(edge):
            return Place(edge.source, edge.source_pin, self._listed(edge, item))
        return Place(edge.source, edge.source_pin, item)

    def _listed(self, edge: PlanEdge, index: int) -> int:
        """The item that gave the `index`th element of a list, counted from 1."""
        if self._nodes[edge.source].for_each is None:
            return index
        ends = sorted(i for n, i in self._ends if n == edge.source and i is not None)
        return ends[index - 1] if index <= len(ends) else index


def _standing(
    ends: Mapping[tuple[str, int | None], T], fact: ev.ItemsVoided
) -> dict[tuple[str, int | None], T]:
    """Without those of items that the fact voids."""
    return {
        (node, item): end
        for (node, item), end in ends.items()
        if node != fact.node or item is None or item <= fact.above
    }


def _medium(value: Any) -> dict[str, Any]:
    """What a value says of itself when it is a reference."""
    return {"reference": value} if is_reference(value) else {}


def _media_time(record: StreamChunk) -> dict[str, Any]:
    metadata: dict[str, Any] = record.payload.get("metadata", {})
    frame = next((metadata[k] for k in FRAME_KEYS if isinstance(metadata.get(k), int)), None)
    pts_s = None if record.pts_us is None else record.pts_us / 1e6
    return {
        **_medium(record.payload.get("ref")),
        "pts_s": pts_s,
        "time_code": None if pts_s is None else time_code(pts_s),
        "frame": frame,
        "metadata": {k: v for k, v in metadata.items() if k not in ("mime_type", *FRAME_KEYS)},
    }


def time_code(seconds: float) -> str:
    """`HH:MM:SS.mmm`"""
    millis = round(abs(seconds) * 1000)
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    sign = "-" if seconds < 0 else ""
    return f"{sign}{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"


def record_of(data: bytes) -> StreamChunk:
    """A record as logs keep it."""
    return msgspec.json.decode(data, type=StreamChunk)
