"""What the pins of a run hold so far: folded from its inputs and its log. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from mentatlab.flows.analysis import is_needed
from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.errors import Code, Problem, ValidationFailed
from mentatlab.protocol.media import s3_address
from mentatlab.protocol.pins import BY_REFERENCE, Pin
from mentatlab.protocol.values import fits
from mentatlab.runs import events as ev
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.lookups import lane_pins

PASSED_ON = "value"
"""The input pin of a control node whose value its output pins have."""


class Values:
    """Final values by (node, pin). Not those of single items, which stay in the log.

    Control nodes copy nothing: what one of their output pins has is looked up where it was made.
    """

    def __init__(self, plan: Plan, inputs: Mapping[str, Any]) -> None:
        self._plan = plan
        self._nodes = {node.id: node for node in plan.nodes}
        self._values: dict[tuple[str, str], Any] = {}
        self._taken: dict[str, tuple[str, ...] | None] = {}
        for wanted in plan.inputs:
            if wanted.pin.default is not None:
                self._values[wanted.node, wanted.pin.name] = wanted.pin.default
        for name, value in inputs.items():
            if (named := plan.input(name)) is not None:
                self._values[named.node, named.pin.name] = value

    def add(self, events: Iterable[ev.RunFact]) -> None:
        for event in events:
            if isinstance(event, ev.NodeSucceeded | ev.NodeCached) and event.item is None:
                for pin, value in event.outputs.items():
                    self._values[event.node, pin] = value
                if isinstance(event, ev.NodeSucceeded):
                    self._taken[event.node] = event.taken

    def get(self, node: str, pin: str) -> Any:
        return self._values.get((node, pin))

    def of(self, edge: PlanEdge) -> Any:
        """What the edge carries; None also of a branch that was not taken."""
        return self._at(self._nodes[edge.source], edge.source_pin)

    def _at(self, node: PlanNode, pin: str) -> Any:
        if node.kind != "control":
            return self._values.get((node.id, pin))
        if not self._is_taken(node.id, pin):
            return None
        fed = _passed_on(node)
        return self.of(fed) if fed is not None else self.own(node, PASSED_ON)

    def _is_taken(self, node: str, pin: str) -> bool:
        if node not in self._taken:
            return False
        taken = self._taken[node]
        return taken is None or pin in taken

    def own(self, node: PlanNode, pin: str) -> Any:
        """Of a pin without an edge: the run's input, or the constant."""
        value = self._values.get((node.id, pin))
        return node.params.get(pin) if value is None else value

    def maker(self, edge: PlanEdge) -> PlanEdge:
        """The edge by which the value left the node that made it; the edge itself, unless its
        source is a control node. Where it ends in one, that has the value of its own."""
        source = self._nodes[edge.source]
        fed = _passed_on(source) if source.kind == "control" else None
        return edge if fed is None else self.maker(fed)

    def lane(self, edge: PlanEdge, run_id: str) -> str | None:
        """The stream behind the edge: this run's, that of the run which a cached node's outputs
        are from, or one that the run was given; None when it carries no stream."""
        made = self.maker(edge)
        told = self._told_lane(made.source, made.source_pin)
        if told is None and made.source_pin in lane_pins(self._nodes[made.source]):
            return stream_id(run_id, made.source, made.source_pin)
        return told

    def lane_of(self, node: str, pin: str, run_id: str) -> str:
        """The stream of a pin that has one, as `lane`."""
        return self._told_lane(node, pin) or stream_id(run_id, node, pin)

    def _told_lane(self, node: str, pin: str) -> str | None:
        match self._values.get((node, pin)):
            case {"type": "stream", "stream_id": str(name)}:
                return name
            case _:
                return None

    def is_collected(self, node: str, pin: str) -> bool:
        """Whether a run's output is to be the array of the stream that it has."""
        found = self._nodes[node]
        edge = _passed_on(found) if found.kind == "control" else _edge_into(found, pin)
        return edge is not None and self.maker(edge).adapter == "collect"

    def outputs(self) -> dict[str, Any]:
        """The run's outputs so far, by `node.pin`."""
        found: dict[str, Any] = {}
        for name, pin in self._plan.outputs:
            shown = _edge_into(self._nodes[name], pin)
            value = self._at(self._nodes[name], pin) if shown is None else self.of(shown)
            if value is not None:
                found[f"{name}.{pin}"] = value
        return found


def origin(node: PlanNode, pin: str) -> tuple[str, str]:
    """Where an output node's pin gets its value; any other pin is its own origin."""
    edge = _edge_into(node, pin)
    return (node.id, pin) if edge is None else (edge.source, edge.source_pin)


def _edge_into(node: PlanNode, pin: str) -> PlanEdge | None:
    """What an output node shows at its pin."""
    if node.kind != "output":
        return None
    return next((edge for edge in node.inputs if edge.target_pin == pin), None)


def _passed_on(node: PlanNode) -> PlanEdge | None:
    return next((edge for edge in node.inputs if edge.target_pin == PASSED_ON), None)


def check_inputs(plan: Plan, inputs: Mapping[str, Any]) -> None:
    """Every problem of a run's inputs at once. `ValidationFailed(RUN_INPUT_…)`"""
    problems = [*_unknown(plan, inputs), *_missing(plan, inputs), *_mistyped(plan, inputs)]
    if problems:
        raise inputs_refused(problems)


def inputs_refused(problems: list[Problem]) -> ValidationFailed:
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    return ValidationFailed(problems[0].code, f"the inputs have {count}", problems)


def _unknown(plan: Plan, inputs: Mapping[str, Any]) -> Iterable[Problem]:
    known = ", ".join(i.name for i in plan.inputs) or "none"
    for name in inputs:
        if plan.input(name) is None:
            yield Problem(
                Code.RUN_INPUT_UNKNOWN,
                f"/inputs/{_escaped(name)}",
                f"the flow has no input {name}",
                f"its inputs are: {known}",
            )


def _missing(plan: Plan, inputs: Mapping[str, Any]) -> Iterable[Problem]:
    given = {plan.input(name) for name, value in inputs.items() if value is not None}
    for wanted in plan.inputs:
        if is_needed(wanted.pin) and wanted not in given:
            yield Problem(
                Code.RUN_INPUT_MISSING,
                f"/inputs/{_escaped(wanted.name)}",
                f"the input {wanted.name} ({wanted.pin.type}) is missing",
                f'give it: --input {wanted.name}=…, or in JSON {{"{wanted.name}": …}}',
            )


def _is_elsewhere(value: Any, pin: Pin) -> bool:
    """In a bucket: what it is shows when it is taken in."""
    return pin.type in BY_REFERENCE and s3_address(value) is not None


def _mistyped(plan: Plan, inputs: Mapping[str, Any]) -> Iterable[Problem]:
    for name, value in inputs.items():
        wanted = plan.input(name)
        if wanted is None:
            continue
        path, pin = f"/inputs/{_escaped(name)}", wanted.pin
        if not fits(value, pin.type) and not _is_elsewhere(value, pin):
            shown = msgspec.json.encode(value)[:60].decode(errors="replace")
            yield Problem(
                Code.RUN_INPUT_TYPE, path, f"{shown} is not of type {pin.type}", _how_to_give(pin)
            )
        elif pin.enum is not None and value not in pin.enum:
            allowed = ", ".join(map(str, pin.enum))
            yield Problem(Code.RUN_INPUT_TYPE, path, f"{value!r} is none of {allowed}", allowed)


def _how_to_give(pin: Pin) -> str:
    if pin.type in BY_REFERENCE:
        return "upload the file and give the reference that the upload answered"
    return f"give a JSON value of type {pin.type}"


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def stream_value(
    run_id: str, node: PlanNode, pin: str, *, chunks: int, state: str
) -> dict[str, Any]:
    """What stands for a stream in results, outputs and events."""
    items = next(p.item_type for p in node.output_pins if p.name == pin)
    return {
        "type": "stream",
        "stream_id": stream_id(run_id, node.id, pin),
        "items": str(items),
        "chunks": chunks,
        "state": state,
    }


def run_lanes(plan: Plan) -> list[tuple[PlanNode, str]]:
    return [(node, pin) for node in plan.nodes for pin in lane_pins(node)]
