"""Sub-flows (`core.flow`): stored ones put in by `inline`, inner ones unfolded by `flatten`. Pure.

A node `outer` of type `core.flow` becomes the nodes of its flow, called `outer:inner`. Its pins are
the sub-flow's inputs and outputs, called `node`, or `node_pin` where a node has several. Input and
output nodes inside stand for those pins: what is connected outside goes straight through.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mentatlab.flows.analysis import Lookup, choices, into, is_needed
from mentatlab.flows.builtins import (
    ADAPTER_TYPES,
    CONTROL_PARAMS,
    INPUT_PINS,
    OUTPUT_TYPES,
    SUBFLOW,
    branches,
)
from mentatlab.flows.document import array, pointer
from mentatlab.flows.flow import Edge, Flow, Node, load_flow
from mentatlab.protocol.errors import Code, MentatError, Problem, ValidationFailed
from mentatlab.protocol.values import is_object

MAX_DEPTH = 8
MAX_NODES = 1_000
Find = Callable[[str], Mapping[str, Any] | None]
"""A stored flow's document by its id."""


# ---- stored flows


def names(document: Mapping[str, Any]) -> frozenset[str]:
    """The ids of the stored flows that a document names, in sub-flows that it holds too."""
    return frozenset(_names(document, 0))


def _names(document: Mapping[str, Any], depth: int) -> Iterator[str]:
    for _, params in _subflows(document):
        inner = params.get("flow")
        if isinstance(inner, str):
            yield inner
        elif is_object(inner) and depth < MAX_DEPTH:
            yield from _names(inner, depth + 1)


def _subflows(document: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The place among the nodes and the parameters of each `core.flow`, in any document."""
    graph = document.get("graph")
    nodes = array(graph.get("nodes")) if is_object(graph) else []
    for index, node in enumerate(nodes):
        if is_object(node) and node.get("type") == SUBFLOW and is_object(node.get("params")):
            yield index, node["params"]


def inline(document: Mapping[str, Any], find: Find) -> tuple[dict[str, Any], list[Problem]]:
    """The document with every stored flow that it names in the name's place. A name that is
    unknown, leads back to itself, or stands too deep stays, and is told beside the document."""
    inlining = _Inlining(find)
    return inlining.inlined(document, "", (_id_of(document),)), inlining.problems


def _id_of(document: Mapping[str, Any]) -> str:
    """By which a stored flow would lead back to it; "" when it has none."""
    meta = document.get("meta")
    name = meta.get("id") if is_object(meta) else None
    return name if isinstance(name, str) else ""


class _Inlining:
    """`around`: the ids of the flows that a document stands in, the outermost first.

    `_room`: nodes that stored flows may still bring, for one that holds another twice, which
    holds a third twice, and so on, grows without bound."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._room = MAX_NODES
        self.problems: list[Problem] = []

    def inlined(
        self, document: Mapping[str, Any], path: str, around: tuple[str, ...]
    ) -> dict[str, Any]:
        replaced: dict[int, dict[str, Any]] = {}
        for index, params in _subflows(document):
            place = into(path, "graph", "nodes", index, "params", "flow")
            inner, within = params.get("flow"), (*around, "")
            if isinstance(inner, str):
                within = (*around, inner)
                inner = self._found(inner, place, around)
            if len(within) > MAX_DEPTH + 1 and inner is not None:
                self.problems.append(_too_deep(place))
            elif is_object(inner) and self._room > 0:
                replaced[index] = {**params, "flow": self.inlined(inner, place, within)}
        if not replaced:
            return dict(document)
        nodes = [
            {**node, "params": replaced[i]} if i in replaced else node
            for i, node in enumerate(document["graph"]["nodes"])
        ]
        return {**document, "graph": {**document["graph"], "nodes": nodes}}

    def _found(self, name: str, place: str, around: tuple[str, ...]) -> Mapping[str, Any] | None:
        if name in around:
            text = f"the flow {name!r} holds itself: {' → '.join(filter(None, (*around, name)))}"
            self._report(Code.CYCLE, place, text, "take one of them out")
            return None
        found = self._find(name)
        if found is None:
            text = f"no stored flow is called {name!r}"
            hint = "store it with `PUT /api/v1/flows/{id}`, or put its document here"
            self._report(Code.UNKNOWN_FLOW, place, text, hint)
        elif self._room > 0:
            self._room -= len(array(found.get("graph", {}).get("nodes")))
            if self._room <= 0:
                text = f"stored flows bring more than {MAX_NODES} nodes"
                self._report(Code.FLOW_LIMIT, place, text, "use `forEach`, or split the flow")
        return found

    def _report(self, code: Code, place: str, text: str, hint: str) -> None:
        self.problems.append(Problem(code, place, text, hint))


def _too_deep(place: str) -> Problem:
    text = f"sub-flows stand more than {MAX_DEPTH} deep"
    return Problem(Code.FLOW_LIMIT, place, text, "put some of their nodes into one flow")


# ---- unfolding


@dataclass(frozen=True, slots=True)
class FlatNode:
    id: str
    node: Node
    path: str


@dataclass(frozen=True, slots=True)
class FlatEdge:
    source: str  # node.pin
    target: str
    path: str


@dataclass(slots=True)
class Flat:
    """A flow without `core.flow`. `inputs`, `outputs`: its pins as a sub-flow → `node.pin`;
    `unclear`: there may be more, of something that is broken."""

    nodes: list[FlatNode] = field(default_factory=list[FlatNode])
    edges: list[FlatEdge] = field(default_factory=list[FlatEdge])
    problems: list[Problem] = field(default_factory=list[Problem])
    inputs: dict[str, str] = field(default_factory=dict[str, str])
    outputs: dict[str, str] = field(default_factory=dict[str, str])
    unclear: bool = False


def flatten(flow: Flow, lookup: Lookup) -> Flat:
    """Unfold every sub-flow. What is broken inside one is told by its place in the document."""
    if all(node.type != SUBFLOW for node in flow.graph.nodes):
        return Flat(
            [
                FlatNode(n.id, n, pointer("graph", "nodes", i))
                for i, n in enumerate(flow.graph.nodes)
            ],
            [
                FlatEdge(e.source, e.target, pointer("graph", "edges", i))
                for i, e in enumerate(flow.graph.edges)
            ],
        )
    flat = _Unfolding(lookup).unfold(flow, "", "", 0)
    return _connected(flat)


class _Unfolding:
    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def unfold(self, flow: Flow, prefix: str, path: str, depth: int) -> Flat:
        flat, inner = Flat(), dict[str, Flat]()
        for index, node in enumerate(flow.graph.nodes):
            place = into(path, "graph", "nodes", index)
            if node.type != SUBFLOW:
                flat.nodes.append(FlatNode(prefix + node.id, node, place))
            elif node.id not in inner:
                found = self._subflow(node, f"{prefix}{node.id}", place, depth + 1)
                inner[node.id] = found
                flat.nodes += found.nodes
                flat.edges += found.edges
                flat.problems += found.problems
        for index, edge in enumerate(flow.graph.edges):
            self._edge(flat, inner, edge, prefix, into(path, "graph", "edges", index))
        if depth:
            own = [node for node in flow.graph.nodes if node.type != SUBFLOW]
            _name_pins(flat, inner, own, prefix, self._lookup)
        return flat

    def _subflow(self, node: Node, name: str, path: str, depth: int) -> Flat:
        flat, place = Flat(unclear=True), into(path, "params", "flow")
        if depth > MAX_DEPTH:
            flat.problems.append(_too_deep(place))
            return flat
        try:
            flow = load_flow(_document(node))
        except ValidationFailed as error:
            flat.problems += [_placed(p, place) for p in error.problems]
        except MentatError as error:
            flat.problems.append(Problem(error.code, place, error.message, error.hint))
        else:
            flat = self.unfold(flow, f"{name}:", place, depth)
            flat.problems += _misused(node, name, path)
            _set_constants(flat, node, path)
        return flat

    def _edge(
        self, flat: Flat, inner: Mapping[str, Flat], edge: Edge, prefix: str, path: str
    ) -> None:
        ends: list[str] = []
        for end, side in ((edge.source, "from"), (edge.target, "to")):
            name, _, pin = end.partition(".")
            if name not in inner:
                ends.append(prefix + end)
                continue
            pins = inner[name].outputs if side == "from" else inner[name].inputs
            if pin in pins:
                ends.append(pins[pin])
            elif not inner[name].unclear:
                what = "outputs" if side == "from" else "inputs"
                text = f"{name} ({SUBFLOW}) has no pin {pin!r} among its {what}"
                hint = choices(what, pins, instead_of=pin)
                flat.problems.append(Problem(Code.UNKNOWN_PIN, into(path, side), text, hint))
        if len(ends) == 2:
            flat.edges.append(FlatEdge(ends[0], ends[1], path))


def _document(node: Node) -> Mapping[str, Any]:
    given = node.params.get("flow")
    if is_object(given):
        return given
    problem = Problem(
        Code.UNKNOWN_FLOW if isinstance(given, str) else Code.BAD_PARAM,
        "",
        f"{node.id}: the flow {given!r} is not here"
        if isinstance(given, str)
        else f"{node.id}: `flow` must be a flow's document, or the id of a stored flow",
        "store it on the server that checks this flow, or write the flow's document here",
    )
    raise ValidationFailed(Code.FLOW_INVALID, "no flow", [problem])


def _placed(problem: Problem, place: str) -> Problem:
    return Problem(problem.code, place + problem.path, problem.message, problem.hint)


_NOT_OF_SUBFLOWS = {"for_each": "forEach", "when": "when", "needs": "needs"}


def _misused(node: Node, name: str, path: str) -> Iterator[Problem]:
    for attribute in node.model_fields_set & _NOT_OF_SUBFLOWS.keys():
        written = _NOT_OF_SUBFLOWS[attribute]
        text = f"{name}: `{written}` does not belong to {SUBFLOW}"
        hint = "put it on a node inside, or core.if in front"
        yield Problem(Code.BAD_PARAM, into(path, written), text, hint)


# ---- the pins of a sub-flow


def _name_pins(
    flat: Flat, inner: Mapping[str, Flat], own: list[Node], prefix: str, lookup: Lookup
) -> None:
    """What this flow, as a sub-flow, takes and gives; its output nodes are no nodes any more."""
    widgets = {f"{prefix}{node.id}" for node in own if node.type in OUTPUT_TYPES}
    shown = [edge for edge in flat.edges if _node(edge.target) in widgets]
    taken = {edge.source for edge in flat.edges}
    fed = {edge.target for edge in flat.edges}
    takes: dict[str, dict[str, str]] = {}
    gives: dict[str, dict[str, str]] = {}
    for node in own:
        name = prefix + node.id
        if node.type in INPUT_PINS:
            takes[node.id] = {INPUT_PINS[node.type]: f"{name}.{INPUT_PINS[node.type]}"}
            continue
        if node.type not in CONTROL_PARAMS and lookup(node.type) is None:
            flat.unclear |= node.type not in (*OUTPUT_TYPES, *ADAPTER_TYPES)
            continue
        needed, optional, out = _pins(node, lookup)
        takes[node.id] = {p: f"{name}.{p}" for p in needed if f"{name}.{p}" not in fed}
        flat.inputs |= {
            f"{node.id}_{p}": f"{name}.{p}" for p in optional if f"{name}.{p}" not in fed
        }
        if not widgets:
            gives[node.id] = {p: f"{name}.{p}" for p in out if f"{name}.{p}" not in taken}
    for sub, found in inner.items():
        flat.unclear |= found.unclear
        takes[sub] = {p: end for p, end in found.inputs.items() if end not in fed}
        if not widgets:
            gives[sub] = {p: end for p, end in found.outputs.items() if end not in taken}
    for edge in shown:
        widget, _, pin = edge.target.removeprefix(prefix).partition(".")
        gives.setdefault(widget, {})[pin] = edge.source
    flat.inputs |= _named(takes)
    flat.outputs |= _named(gives)
    flat.nodes = [node for node in flat.nodes if node.id not in widgets]
    flat.edges = [edge for edge in flat.edges if _node(edge.target) not in widgets]


def _pins(node: Node, lookup: Lookup) -> tuple[list[str], list[str], list[str]]:
    """Input pins that must be fed, further ones, and output pins."""
    if node.type in CONTROL_PARAMS:
        needed = [] if "value" in node.params else ["value"]
        return needed, [], list(branches(node.type, node.params))
    manifest = lookup(node.type)
    assert manifest is not None
    free = [pin for pin in manifest.input_pins if pin.name not in node.params]
    needed = [pin.name for pin in free if is_needed(pin) or pin.name == node.for_each]
    optional = [pin.name for pin in free if pin.name not in needed]
    return needed, optional, [pin.name for pin in manifest.output_pins]


def _named(pins: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By `node` where it has one pin, and by `node_pin` always."""
    found: dict[str, str] = {}
    for node, ends in pins.items():
        found |= {f"{node}_{pin}": end for pin, end in ends.items()}
    for node, ends in pins.items():
        if len(ends) == 1:
            found[node] = next(iter(ends.values()))
    return found


def _set_constants(flat: Flat, node: Node, path: str) -> None:
    """A parameter that names an input is its value, where no edge gives one."""
    for name, value in node.params.items():
        if name == "flow":
            continue
        end = flat.inputs.get(name)
        if end is None:
            text = f"{node.id} ({SUBFLOW}) has no input {name!r}"
            hint = choices("inputs", flat.inputs, instead_of=name)
            flat.problems.append(Problem(Code.UNKNOWN_PIN, into(path, "params", name), text, hint))
            continue
        target, pin = _node(end), end.partition(".")[2]
        flat.nodes = [_with_constant(n, pin, value) if n.id == target else n for n in flat.nodes]


def _with_constant(flat: FlatNode, pin: str, value: Any) -> FlatNode:
    """Of an input node its default."""
    is_input = flat.node.type in INPUT_PINS
    update = (
        {"outputs": {**flat.node.outputs, pin: value}}
        if is_input
        else {"params": {**flat.node.params, pin: value}}
    )
    return FlatNode(flat.id, flat.node.model_copy(update=update), flat.path)


def _node(end: str) -> str:
    return end.partition(".")[0]


def _connected(flat: Flat) -> Flat:
    """What comes to an input node of a sub-flow goes on to those that it feeds."""
    inputs = {node.id for node in flat.nodes if node.node.type in INPUT_PINS}
    inner = {node for node in inputs if ":" in node}
    feeds: dict[str, FlatEdge] = {}
    edges: list[FlatEdge] = []
    for edge in flat.edges:
        if _node(edge.target) not in inner:
            edges.append(edge)
        elif edge.target in feeds:
            text = f"{edge.target} has a source already"
            problem = Problem(
                Code.DUPLICATE_INPUT, into(edge.path, "to"), text, "one edge feeds it"
            )
            flat.problems.append(problem)
        else:
            feeds[edge.target] = edge
    gone = {_node(end) for end in feeds}
    flat.nodes = [node for node in flat.nodes if node.id not in gone]
    flat.edges = [FlatEdge(*_origin(edge, feeds), edge.path) for edge in edges]
    return flat


def _origin(edge: FlatEdge, feeds: Mapping[str, FlatEdge]) -> tuple[str, str]:
    source, seen = edge.source, set[str]()
    while source in feeds and source not in seen:
        seen.add(source)
        source = feeds[source].source
    return source, edge.target
