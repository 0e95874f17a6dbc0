"""The static check: everything that can be known of a flow before it runs, every problem at once.

`analyse` resolves nodes and edges against the manifests, `check_flow` gives the problems. Nodes and
edges that are broken already are left out of the later steps, so that one fault is told once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from mentatlab.flows.builtins import (
    ADAPTER_TYPES,
    BUILTIN_TYPES,
    INPUT_PINS,
    NOT_RUNNABLE,
    OUTPUT_TYPES,
    input_pin,
)
from mentatlab.flows.document import pointer
from mentatlab.flows.flow import Flow, Node
from mentatlab.flows.manifest import PROFILES, Manifest
from mentatlab.flows.shapes import (
    Adapter,
    Fit,
    Misfit,
    Shape,
    contradictions,
    fit_any,
    fit_items,
    fit_pin,
    problem,
    shape_of,
)
from mentatlab.protocol.errors import Code, Problem
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.values import fits

Lookup = Callable[[str], Manifest | None]
"""`id` or `id:version` → the manifest."""

NodeKind = Literal["input", "agent", "output", "adapter", "opaque"]
"""opaque: an unknown agent or a node that does not run here; its edges are not judged."""


@dataclass(slots=True)
class ResolvedNode:
    node: Node
    path: str
    kind: NodeKind
    manifest: Manifest | None = None
    input_pins: dict[str, Pin] = field(default_factory=dict[str, Pin])
    output_pins: dict[str, Pin] = field(default_factory=dict[str, Pin])
    constants: dict[str, Any] = field(default_factory=dict[str, Any])  # by input pin

    @property
    def id(self) -> str:
        return self.node.id


@dataclass(slots=True)
class Wire:
    path: str
    source: ResolvedNode
    source_pin: str
    target: ResolvedNode
    target_pin: str
    fit: Fit | None = None

    def __str__(self) -> str:
        return f"{self.source.id}.{self.source_pin} → {self.target.id}.{self.target_pin}"


@dataclass(slots=True)
class Analysis:
    flow: Flow
    problems: list[Problem] = field(default_factory=list[Problem])
    nodes: dict[str, ResolvedNode] = field(default_factory=dict[str, ResolvedNode])
    wires: list[Wire] = field(default_factory=list[Wire])
    into: dict[str, list[Wire]] = field(default_factory=dict[str, list[Wire]])
    order: list[str] = field(
        default_factory=list[str]
    )  # topological; what is on a cycle comes last

    def report(self, code: Code, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(code, path, message, hint))

    def warn(self, code: Code, path: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(code, path, message, hint, severity="warning"))


def check_flow(flow: Flow, lookup: Lookup) -> list[Problem]:
    """Every problem, errors and warnings, in the order of the steps; empty = it can be run."""
    return analyse(flow, lookup).problems


def analyse(flow: Flow, lookup: Lookup) -> Analysis:
    a = Analysis(flow)
    for index, node in enumerate(flow.graph.nodes):
        _resolve_node(a, node, pointer("graph", "nodes", index), lookup)
    for index, edge in enumerate(flow.graph.edges):
        _resolve_edge(a, edge.source, edge.target, pointer("graph", "edges", index))
    _sort(a)
    _fit_wires(a)
    for resolved in a.nodes.values():
        _check_constants(a, resolved)
        _check_inputs(a, resolved)
    _check_reach(a)
    return a


# nodes


def _resolve_node(a: Analysis, node: Node, path: str, lookup: Lookup) -> None:
    if node.id in a.nodes:
        text = f"a node called {node.id!r} stands at {a.nodes[node.id].path} already"
        a.report(Code.DUPLICATE_NODE, _into(path, "id"), text, "give it another id")
        return
    resolved = ResolvedNode(node, path, "opaque")
    a.nodes[node.id] = resolved
    a.into[node.id] = []
    if node.type in NOT_RUNNABLE:
        text = f"nodes of type {node.type} do not run here yet"
        a.report(Code.NOT_RUNNABLE_HERE, _into(path, "type"), text, NOT_RUNNABLE[node.type])
    elif node.type in INPUT_PINS:
        pin = input_pin(node.type, node.params, _input_default(node))
        resolved.kind, resolved.output_pins = "input", {pin.name: pin}
    elif node.type in OUTPUT_TYPES:
        resolved.kind = "output"
    elif node.type in ADAPTER_TYPES:
        resolved.kind = "adapter"
    else:
        _resolve_agent(a, resolved, lookup)
    _check_node_fields(a, resolved)


def _into(path: str, name: str) -> str:
    return path + pointer(name)


def _input_default(node: Node) -> Any:
    """An input node's own value: `outputs: {text: …}` of older files, or `params: {text: …}`."""
    pin = INPUT_PINS[node.type]
    return node.outputs.get(pin, node.params.get(pin))


def _resolve_agent(a: Analysis, resolved: ResolvedNode, lookup: Lookup) -> None:
    node = resolved.node
    manifest = lookup(node.type)
    if manifest is None:
        hint = "`mentatlab agents ls` lists what is installed"
        if node.type.startswith(("ui.", "core.")):
            hint = f"built in are {', '.join(BUILTIN_TYPES)}"
        text = f"{node.id}: no agent is called {node.type!r}"
        a.report(Code.UNKNOWN_AGENT, _into(resolved.path, "type"), text, hint)
        return
    resolved.kind = "agent"
    resolved.manifest = _with_profile(a, resolved, manifest)
    resolved.input_pins = {pin.name: pin for pin in manifest.input_pins}
    resolved.output_pins = {pin.name: pin for pin in manifest.output_pins}
    resolved.constants = {k: v for k, v in node.params.items() if k in resolved.input_pins}
    if node.for_each is not None:
        _check_for_each(a, resolved, node.for_each)


def _with_profile(a: Analysis, resolved: ResolvedNode, manifest: Manifest) -> Manifest:
    """A node's `profile` takes the place of the manifest's resources."""
    profile = resolved.node.profile
    if profile is None:
        return manifest
    if profile not in PROFILES:
        text = f"{resolved.id}: no resource profile is called {profile!r}"
        hint = f"profiles are {', '.join(PROFILES)}"
        a.report(Code.BAD_PARAM, _into(resolved.path, "profile"), text, hint)
        return manifest
    return manifest.with_profile(profile)


def _check_for_each(a: Analysis, resolved: ResolvedNode, pin: str) -> None:
    if pin not in resolved.input_pins:
        text = f"{resolved.id}: `forEach` names the input pin {pin!r}, which is not there"
        hint = _choices("inputs", resolved.input_pins)
        a.report(Code.UNKNOWN_PIN, _into(resolved.path, "forEach"), text, hint)
    for output in resolved.output_pins.values():
        if output.type is PinType.STREAM:
            text = f"{resolved.id}: with `forEach`, the output {output.name!r} cannot be a stream"
            hint = "use an agent that gives one value for each item"
            path = _into(resolved.path, "forEach")
            a.report(Code.FOREACH_STREAM_OUTPUT, path, text, hint)


def _check_node_fields(a: Analysis, resolved: ResolvedNode) -> None:
    node = resolved.node
    later = {"when": node.when is not None, "needs": node.needs != "all"}
    for name, used in later.items():
        if used:
            text = f"{node.id}: `{name}` is not carried out here yet"
            path = _into(resolved.path, name)
            a.report(Code.NOT_RUNNABLE_HERE, path, text, "take it away, or branch in an agent")
    if node.for_each is not None and resolved.kind in ("input", "output", "adapter"):
        text = f"{node.id}: `forEach` belongs to agents, not to {node.type}"
        a.report(Code.BAD_PARAM, _into(resolved.path, "forEach"), text, "take it away")


# edges


def _resolve_edge(a: Analysis, source: str, target: str, path: str) -> None:
    source_id, _, source_pin = source.partition(".")
    target_id, _, target_pin = target.partition(".")
    from_node, to_node = a.nodes.get(source_id), a.nodes.get(target_id)
    for name, node_id, node in (("from", source_id, from_node), ("to", target_id, to_node)):
        if node is None:
            text = f"no node is called {node_id!r}"
            hint = _choices("nodes", a.nodes)
            a.report(Code.UNKNOWN_NODE, _into(path, name), text, hint)
    known = [
        from_node is not None and _source_exists(a, from_node, source_pin, path),
        to_node is not None and _target_exists(a, to_node, target_pin, path),
    ]
    if from_node is None or to_node is None or not all(known):
        return
    wire = Wire(path, from_node, source_pin, to_node, target_pin)
    if _is_second(a, wire):
        text = f"{wire.target.id}.{wire.target_pin} has a source already"
        hint = "one edge feeds a pin; join several with an agent such as mentatlab.aggregator"
        a.report(Code.DUPLICATE_INPUT, _into(path, "to"), text, hint)
    elif _is_constant(wire):
        _take_constant(a, wire)
    else:
        a.wires.append(wire)
        a.into[to_node.id].append(wire)


def _source_exists(a: Analysis, node: ResolvedNode, pin: str, path: str) -> bool:
    open_ended = node.kind in ("opaque", "adapter") or pin in node.node.outputs
    return open_ended or _pin_exists(a, node, pin, node.output_pins, "output", path, "from")


def _target_exists(a: Analysis, node: ResolvedNode, pin: str, path: str) -> bool:
    open_ended = node.kind in ("opaque", "adapter", "output")
    return open_ended or _pin_exists(a, node, pin, node.input_pins, "input", path, "to")


def _pin_exists(
    a: Analysis,
    node: ResolvedNode,
    pin: str,
    pins: Mapping[str, Pin],
    side: str,
    path: str,
    end: str,
) -> bool:
    if pin in pins:
        return True
    text = f"{node.id} ({node.node.type}) has no {side} pin {pin!r}"
    a.report(Code.UNKNOWN_PIN, _into(path, end), text, _choices(f"{side}s", pins))
    return False


def _is_second(a: Analysis, wire: Wire) -> bool:
    same = (
        w for w in a.into[wire.target.id] if w.target_pin == wire.target_pin or _adapts(w.target)
    )
    return wire.target.kind != "opaque" and any(same)


def _adapts(node: ResolvedNode) -> bool:
    return node.kind == "adapter"


def _is_constant(wire: Wire) -> bool:
    """Older files give constants to undeclared output pins (`outputs: {items: […]}`)."""
    source = wire.source
    return source.kind != "input" and wire.source_pin in source.node.outputs


def _take_constant(a: Analysis, wire: Wire) -> None:
    """A constant needs no edge: it becomes one of the target."""
    if wire.target.kind == "agent" and wire.target_pin != wire.target.node.for_each:
        wire.target.constants[wire.target_pin] = wire.source.node.outputs[wire.source_pin]
    elif wire.target.kind != "opaque":
        text = f"{wire}: a constant cannot stand here"
        a.report(Code.NOT_RUNNABLE_HERE, wire.path, text, "give it as a run input by ui.prompt")


def _choices(what: str, names: Iterable[str]) -> str:
    listed = ", ".join(list(names)[:12])
    return f"{what} are {listed}" if listed else f"there are no {what}"


# order


def _sort(a: Analysis) -> None:
    """Topological order; every cycle is reported once, with its nodes in the order of the data."""
    graph = {node_id: dict.fromkeys(w.source.id for w in a.into[node_id]) for node_id in a.nodes}
    on_cycles: dict[str, None] = {}
    while True:
        try:
            a.order = [*TopologicalSorter(graph).static_order(), *on_cycles]
        except CycleError as error:
            cycle: list[str] = error.args[1]
        else:
            return
        names = " → ".join(cycle)
        path = next(w.path for w in a.into[cycle[1]] if w.source.id == cycle[0])
        a.report(Code.CYCLE, path, f"the flow runs in a circle: {names}", "take one edge away")
        on_cycles.update(dict.fromkeys(cycle))
        graph = {
            node_id: {s: None for s in sources if s not in on_cycles}
            for node_id, sources in graph.items()
            if node_id not in on_cycles
        }


# types


def _fit_wires(a: Analysis) -> None:
    # what does not depend on the input is known beforehand, so that a cycle hides no other fault
    given: dict[tuple[str, str], Shape | None] = {
        (node.id, pin.name): shape_of(pin)
        for node in a.nodes.values()
        if node.node.for_each is None
        for pin in node.output_pins.values()
    }
    for node_id in a.order:
        node = a.nodes[node_id]
        incoming: dict[str, Shape | None] = {}
        for wire in a.into[node_id]:
            shape = given.get((wire.source.id, _output_name(wire.source, wire.source_pin)))
            incoming[wire.target_pin] = shape
            if shape is not None:
                _fit_wire(a, wire, shape)
        for pin, shape in _outputs_of(node, incoming):
            given[node_id, pin] = shape


def _output_name(node: ResolvedNode, pin: str) -> str:
    return "" if _adapts(node) else pin


def _outputs_of(
    node: ResolvedNode, incoming: Mapping[str, Shape | None]
) -> Iterator[tuple[str, Shape | None]]:
    """None = not known, because something before is broken."""
    if _adapts(node):
        yield "", _adapted(node, next(iter(incoming.values()), None))
    for_each = node.node.for_each
    source = incoming.get(for_each) if for_each is not None else None
    for pin in node.output_pins.values():
        if for_each is None:
            yield pin.name, shape_of(pin)
        elif source is None or source.container == "one" or pin.type is PinType.STREAM:
            yield pin.name, None
        else:
            yield (
                pin.name,
                Shape(container=source.container, item=pin.type, metadata=pin.metadata),
            )


def _adapted(node: ResolvedNode, source: Shape | None) -> Shape | None:
    via: Adapter = "once" if node.node.type == "core.once" else "collect"
    if source is None or (source.container == "one") != (via == "once"):
        return None
    container = "stream" if via == "once" else "list"
    return Shape(container=container, item=source.item, metadata=source.metadata, via=via)


def _fit_wire(a: Analysis, wire: Wire, source: Shape) -> None:
    target = wire.target
    if target.kind == "opaque":
        return
    if target.kind == "adapter":
        if _adapted(target, source) is None:
            text = f"{wire}: {target.node.type} takes no {source}"
            a.report(Code.TYPE_MISMATCH, wire.path, text, f"take {target.id} away")
        return
    if target.kind == "output":
        wire.fit = fit_any(source)
        return
    pin = target.input_pins[wire.target_pin]
    is_items = target.node.for_each == pin.name
    fit = fit_items(source, pin) if is_items else fit_pin(source, pin)
    if isinstance(fit, Misfit):
        a.problems.append(problem(fit, wire.path, str(wire)))
        return
    wire.fit = fit
    for misfit in contradictions(source.metadata, pin.metadata):
        a.problems.append(problem(misfit, wire.path, str(wire)))


# what stands on no edge


def _check_constants(a: Analysis, resolved: ResolvedNode) -> None:
    fed = {w.target_pin for w in a.into[resolved.id]}
    for name, value in list(resolved.constants.items()):
        path = resolved.path + pointer("params", name)
        pin = resolved.input_pins[name]
        if name in fed:
            text = f"{resolved.id}.{name} has an edge; its constant is not used"
            a.warn(Code.DUPLICATE_INPUT, path, text, "take one of the two away")
            del resolved.constants[name]
        elif not fits(value, pin.type):
            text = f"{resolved.id}.{name} is {str(value)[:60]!r}, not a {pin.type}"
            a.report(Code.BAD_PARAM, path, text, f"give a value of type {pin.type}")
        elif pin.enum is not None and value not in pin.enum:
            text = f"{resolved.id}.{name} is {str(value)[:60]!r}"
            a.report(Code.BAD_PARAM, path, text, f"choose from {list(pin.enum)}")
    if resolved.kind == "input":
        _check_default(a, resolved)


def _check_default(a: Analysis, resolved: ResolvedNode) -> None:
    for pin in resolved.output_pins.values():
        if pin.default is not None and not fits(pin.default, pin.type):
            text = f"{resolved.id}: {str(pin.default)[:60]!r} is not a {pin.type}"
            a.report(Code.BAD_PARAM, resolved.path, text, f"give a value of type {pin.type}")


def _check_inputs(a: Analysis, resolved: ResolvedNode) -> None:
    """A required pin without an edge is a run input, but only what can be given by value."""
    for pin in unfed_pins(a, resolved):
        is_items = pin.name == resolved.node.for_each
        if is_items or (pin.type is PinType.STREAM and is_needed(pin)):
            what = "`forEach` over it needs" if is_items else "a stream needs"
            text = f"{resolved.id}.{pin.name} has no edge; {what} one"
            a.report(Code.MISSING_INPUT, resolved.path, text, "connect it to an output")
    if _adapts(resolved) and not a.into[resolved.id]:
        text = f"{resolved.id} has no edge to adapt"
        a.report(Code.MISSING_INPUT, resolved.path, text, "connect it, or take it away")


def unfed_pins(a: Analysis, resolved: ResolvedNode) -> list[Pin]:
    """Input pins that neither an edge nor a constant feeds. A faulty edge counts as one."""
    fed = {w.target_pin for w in a.into[resolved.id]} | resolved.constants.keys()
    return [pin for pin in resolved.input_pins.values() if pin.name not in fed]


def is_needed(pin: Pin) -> bool:
    return pin.required and pin.default is None


def _check_reach(a: Analysis) -> None:
    """With output nodes, whatever leads to none of them is computed for nobody."""
    outputs = [n for n in a.nodes.values() if n.kind == "output"]
    if not outputs:
        return
    reached = {n.id for n in outputs}
    waiting = list(reached)
    while waiting:
        before = {w.source.id for w in a.into[waiting.pop()]} - reached
        reached |= before
        waiting.extend(before)
    for node in a.nodes.values():
        lonely = node.kind == "output" and not a.into[node.id]
        if lonely or (node.id not in reached and not node.node.keep):
            what = "shows nothing" if lonely else "leads to no output node"
            hint = "connect it, take it away, or say `keep: true`"
            a.warn(Code.UNREACHABLE_NODE, node.path, f"{node.id} {what}", hint)
