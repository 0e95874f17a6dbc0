"""The static check's second step: edges, their order, and whether what they carry fits."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from mentatlab.flows.analysis import Analysis, ResolvedNode, Wire, choices, into
from mentatlab.flows.shapes import (
    Fit,
    Misfit,
    Shape,
    contradictions,
    fit_any,
    fit_items,
    fit_pin,
    fit_value,
    problem,
    shape_of,
)
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType

Shapes = dict[tuple[str, str], Shape | None]
"""What an output gives; None = not known, because something before it is broken."""


def resolve_edge(a: Analysis, source: str, target: str, path: str) -> None:
    """`source`, `target`: `node.pin`."""
    source_id, _, source_pin = source.partition(".")
    target_id, _, target_pin = target.partition(".")
    from_node, to_node = a.nodes.get(source_id), a.nodes.get(target_id)
    for name, node_id, node in (("from", source_id, from_node), ("to", target_id, to_node)):
        if node is None:
            text = f"no node is called {node_id!r}"
            hint = choices("nodes", a.nodes, instead_of=node_id)
            a.report(Code.UNKNOWN_NODE, into(path, name), text, hint)
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
        a.report(Code.DUPLICATE_INPUT, into(path, "to"), text, hint)
    elif _is_constant(wire):
        _take_constant(a, wire)
    else:
        a.wires.append(wire)
        a.into[to_node.id].append(wire)
        if to_node.kind == "control":
            to_node.input_pins.setdefault(target_pin, Pin(target_pin, PinType.JSON))


def _source_exists(a: Analysis, node: ResolvedNode, pin: str, path: str) -> bool:
    open_ended = node.kind in ("opaque", "adapter") or pin in node.node.outputs
    return open_ended or _pin_exists(a, node, pin, node.output_pins, "output", path, "from")


def _target_exists(a: Analysis, node: ResolvedNode, pin: str, path: str) -> bool:
    open_ended = node.kind in ("opaque", "adapter", "output", "control")
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
    a.report(Code.UNKNOWN_PIN, into(path, end), text, choices(f"{side}s", pins, instead_of=pin))
    return False


def _is_second(a: Analysis, wire: Wire) -> bool:
    same = (
        w
        for w in a.into[wire.target.id]
        if w.target_pin == wire.target_pin or w.target.kind == "adapter"
    )
    return wire.target.kind != "opaque" and any(same)


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


# order


def sort(a: Analysis) -> None:
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


def fit_wires(a: Analysis) -> None:
    # what does not depend on the input is known beforehand, so that a cycle hides no other fault
    given: Shapes = {
        (node.id, pin.name): shape_of(pin)
        for node in a.nodes.values()
        if node.node.for_each is None and (node.kind != "control" or "value" in node.constants)
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
    return "" if node.kind == "adapter" else pin


def _outputs_of(
    node: ResolvedNode, incoming: Mapping[str, Shape | None]
) -> Iterator[tuple[str, Shape | None]]:
    if node.kind == "adapter":
        yield "", _adapted(node, next(iter(incoming.values()), None))
    elif node.kind == "control":
        yield from _passed_on(node, incoming)
    elif node.node.for_each is None:
        yield from ((pin.name, shape_of(pin)) for pin in node.output_pins.values())
    else:
        source = incoming.get(node.node.for_each)
        yield from ((pin.name, _mapped(pin, source)) for pin in node.output_pins.values())


def _adapted(node: ResolvedNode, source: Shape | None) -> Shape | None:
    """What an adapter node makes of it; a list that is collected stays what it is."""
    if source is None or (source.container == "one") != (node.node.type == "core.once"):
        return None
    if source.container == "list":
        return source
    if source.container == "one":
        return Shape(container="stream", item=source.item, metadata=source.metadata, via="once")
    via = "once" if source.via == "once" else "collect"
    return Shape(container="list", item=source.item, metadata=source.metadata, via=via)


def _passed_on(
    node: ResolvedNode, incoming: Mapping[str, Shape | None]
) -> Iterator[tuple[str, Shape | None]]:
    """A control node's outputs are its value, unchanged."""
    if "value" in incoming:
        value = incoming["value"]
        for name in node.output_pins:
            yield name, None if value is None or value.container == "stream" else value


def _mapped(pin: Pin, source: Shape | None) -> Shape | None:
    if source is None or source.container == "one" or pin.type is PinType.STREAM:
        return None
    container = "list" if source.via != "none" else source.container
    return Shape(container=container, item=pin.type, metadata=pin.metadata)


def _fit_wire(a: Analysis, wire: Wire, source: Shape) -> None:
    target = wire.target
    if target.kind == "opaque":
        return
    if target.kind == "adapter":
        if _adapted(target, source) is None:
            text = f"{wire}: {target.node.type} takes no {source}"
            a.report(Code.TYPE_MISMATCH, wire.path, text, f"take {target.id} away")
        return
    fit = _fit(wire, source)
    if isinstance(fit, Misfit):
        a.problems.append(problem(fit, wire.path, str(wire)))
        return
    wire.fit = fit
    if target.kind == "agent":
        for misfit in contradictions(source.metadata, target.input_pins[wire.target_pin].metadata):
            a.problems.append(problem(misfit, wire.path, str(wire)))


def _fit(wire: Wire, source: Shape) -> Fit | Misfit:
    target = wire.target
    if target.kind == "output":
        return fit_any(source)
    if target.kind == "control":
        return _fit_control(wire, source)
    pin = target.input_pins[wire.target_pin]
    return fit_items(source, pin) if target.node.for_each == pin.name else fit_pin(source, pin)


def _fit_control(wire: Wire, source: Shape) -> Fit | Misfit:
    if wire.target_pin != "value":
        return fit_value(source)
    if source.container == "stream":
        return Misfit(
            Code.TYPE_MISMATCH,
            f"{wire.target.node.type} passes on one value, not {source}",
            "put core.collect between the two: a list is one value",
        )
    type_ = PinType.JSON if source.container == "list" else source.item or PinType.JSON
    wire.target.input_pins["value"] = Pin("value", type_, metadata=source.metadata)
    for name in wire.target.output_pins:
        wire.target.output_pins[name] = Pin(name, type_, metadata=source.metadata)
    return fit_value(source)
