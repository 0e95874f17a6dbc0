"""A checked flow in the form that the engine executes: nodes in topological order and edges with
adapters.

Compiled from a flow document and the manifests it names, and compiled again from the same two on
recovery; so it is never stored itself.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from mentatlab.flows.analysis import Analysis, Lookup, ResolvedNode, Wire, is_needed
from mentatlab.flows.check import analyse
from mentatlab.flows.flow import Flow
from mentatlab.flows.manifest import Manifest
from mentatlab.flows.nodes import is_cached
from mentatlab.flows.shapes import Adapter, EdgeKind
from mentatlab.protocol.errors import Code, ValidationFailed
from mentatlab.protocol.pins import Pin, PinMetadata, PinType


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    max_attempts: int = 3
    base_s: float = 2.0
    cap_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    start_s: float = 120.0
    attempt_s: float | None = None  # None: the manifest's resources.timeout_seconds, else 3600
    total_s: float | None = None
    heartbeat_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEdge:
    source: str  # node id
    source_pin: str
    target: str
    target_pin: str
    kind: EdgeKind
    adapter: Adapter = "none"
    source_is_list: bool = False  # items/collect: a list value rather than a stream
    item_type: PinType  # type of what arrives (of one element for streams and lists)
    live: bool = True  # False: a stream is read when it has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanNode:
    id: str
    kind: Literal["input", "agent", "output", "control"]
    type: str  # as written in the flow; of control nodes core.if, core.switch, core.gate, …
    manifest: Manifest | None = None  # kind == "agent"
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    """Constants of input pins that no edge feeds (the manifest's defaults, then the flow's), and
    further parameters."""
    inputs: tuple[PlanEdge, ...] = ()
    outputs: tuple[PlanEdge, ...] = ()
    output_pins: tuple[Pin, ...] = ()  # what it gives; for `forEach` nodes of one item
    input_pins: tuple[Pin, ...] = ()
    for_each: str | None = None
    max_parallel: int = 1
    ordered: bool = True
    on_item_error: Literal["fail_fast", "collect", "skip"] = "fail_fast"
    max_failed: int | None = None
    retry: RetryPolicy = RetryPolicy()
    timeouts: Timeouts = Timeouts()
    keep: bool = False
    when: str | None = None  # CEL over its inputs; false = the node (each item) is skipped
    needs: Literal["all", "any"] | int = "all"
    """How many of its edges must have come before it starts; the rest may stay away."""
    variables: frozenset[str] = frozenset()  # what its expressions may name
    cache: bool = False  # equal inputs, parameters and agent = the outputs of an earlier run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """One value that a run must or may be given; `name` is `node` or `node.pin`."""

    name: str
    node: str
    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Compared by identity, so that what follows from one can be kept."""

    flow_id: str
    digest: str  # sha256 of the canonical flow and the manifests
    nodes: tuple[PlanNode, ...]  # topological order
    inputs: tuple[RunInput, ...]
    outputs: tuple[tuple[str, str], ...]  # (node, pin) whose values are the run's outputs
    timeout_s: float = 3600.0
    secrets: tuple[str, ...] = ()  # those that agents may be given
    webhook_secrets: tuple[str, ...] = ()

    def node(self, node_id: str) -> PlanNode:
        return next(n for n in self.nodes if n.id == node_id)

    def input(self, name: str) -> RunInput | None:
        """By `node` or `node.pin`; the short form only where it names one input."""
        named = [i for i in self.inputs if name in (i.name, f"{i.node}.{i.pin.name}")]
        return named[0] if named else None


def compile_plan(flow: Flow, lookup: Lookup) -> Plan:
    """`ValidationFailed(FLOW_INVALID)` with every error; warnings do not stand in the way."""
    a = analyse(flow, lookup)
    errors = [p for p in a.problems if p.severity == "error"]
    if errors:
        raise ValidationFailed(Code.FLOW_INVALID, f"flow {flow.meta.id} cannot run", errors)
    edges = _Edges([edge for wire in a.wires for edge in _plan_edge(a, wire)])
    ids = [i for i in a.order if a.nodes[i].kind != "adapter"]
    nodes = tuple(_plan_node(a, a.nodes[i], edges) for i in ids)
    return Plan(
        flow_id=flow.meta.id,
        digest=_digest(a),
        nodes=nodes,
        inputs=tuple(i for node_id in ids for i in _run_inputs(a, a.nodes[node_id])),
        outputs=tuple(_run_outputs(nodes)),
        timeout_s=flow.run_config.timeout_seconds,
        secrets=tuple(flow.run_config.secrets),
        webhook_secrets=tuple(webhook.secret for webhook in flow.run_config.webhooks),
    )


class _Edges:
    """Those of the plan, by the nodes at their ends."""

    def __init__(self, edges: Iterable[PlanEdge]) -> None:
        self.into: defaultdict[str, list[PlanEdge]] = defaultdict(list)
        self.out_of: defaultdict[str, list[PlanEdge]] = defaultdict(list)
        for edge in edges:
            self.into[edge.target].append(edge)
            self.out_of[edge.source].append(edge)


def _plan_edge(a: Analysis, wire: Wire) -> Iterator[PlanEdge]:
    """One edge between nodes that run: adapter nodes are part of the edge."""
    if wire.fit is None:  # into an adapter node
        return
    origin = wire
    while origin.source.kind == "adapter":
        (origin,) = a.into[origin.source.id]
    yield PlanEdge(
        source=origin.source.id,
        source_pin=origin.source_pin,
        target=wire.target.id,
        target_pin=wire.target_pin,
        kind=wire.fit.kind,
        adapter=wire.fit.adapter,
        source_is_list=wire.fit.source_is_list,
        item_type=wire.fit.item_type,
    )


def _plan_node(a: Analysis, resolved: ResolvedNode, edges: _Edges) -> PlanNode:
    node = resolved.node
    assert resolved.kind not in ("adapter", "opaque"), "compile_plan leaves out the others"
    inputs = tuple(edges.into[resolved.id])
    return PlanNode(
        id=resolved.id,
        kind=resolved.kind,
        type=node.type,
        manifest=resolved.manifest,
        params=_params(a, resolved),
        inputs=inputs,
        outputs=tuple(edges.out_of[resolved.id]),
        output_pins=tuple(resolved.output_pins.values()),
        input_pins=tuple(resolved.input_pins.values()) or tuple(map(_widget_pin, inputs)),
        for_each=node.for_each,
        max_parallel=_max_parallel(resolved),
        ordered=node.ordered,
        on_item_error=node.on_item_error,
        max_failed=node.max_failed,
        retry=RetryPolicy(
            max_attempts=node.retry.max_attempts, base_s=node.retry.base_s, cap_s=node.retry.cap_s
        ),
        timeouts=Timeouts(
            start_s=node.timeouts.start_s,
            attempt_s=node.timeouts.attempt_s,
            total_s=node.timeouts.total_s,
            heartbeat_s=node.timeouts.heartbeat_s,
        ),
        keep=node.keep,
        when=node.when,
        needs=node.needs,
        variables=resolved.variables,
        cache=is_cached(resolved),
    )


def _params(a: Analysis, resolved: ResolvedNode) -> dict[str, Any]:
    pins = resolved.input_pins
    defaults = {p.name: p.default for p in a.unfed_pins(resolved) if p.default is not None}
    further = {k: v for k, v in resolved.node.params.items() if k not in pins}
    return {**defaults, **further, **resolved.constants}


def _max_parallel(resolved: ResolvedNode) -> int:
    limit = resolved.manifest.limits().max_concurrent if resolved.manifest else 0
    return min(resolved.node.max_parallel, limit) if limit else resolved.node.max_parallel


def _widget_pin(edge: PlanEdge) -> Pin:
    """An output widget takes what comes."""
    if edge.kind == "stream":
        items = PinMetadata(items=edge.item_type)
        return Pin(edge.target_pin, PinType.STREAM, metadata=items)
    return Pin(edge.target_pin, edge.item_type if edge.adapter == "none" else PinType.JSON)


def _run_inputs(a: Analysis, resolved: ResolvedNode) -> Iterator[RunInput]:
    if resolved.kind == "input":
        for pin in resolved.output_pins.values():
            yield RunInput(name=resolved.id, node=resolved.id, pin=pin)
    needed = [pin for pin in a.unfed_pins(resolved) if is_needed(pin)]
    for pin in needed:
        name = resolved.id if len(needed) == 1 else f"{resolved.id}.{pin.name}"
        yield RunInput(name=name, node=resolved.id, pin=pin)


def _run_outputs(nodes: tuple[PlanNode, ...]) -> Iterator[tuple[str, str]]:
    """What the output nodes show; without any, what nobody takes."""
    widgets = [n for n in nodes if n.kind == "output"]
    for node in widgets:
        yield from ((node.id, edge.target_pin) for edge in node.inputs)
    if not widgets:
        for node in nodes:
            taken = {edge.source_pin for edge in node.outputs}
            if node.type == "core.gate":  # a rejection that nobody takes fails the gate
                taken.add("rejected")
            if node.kind in ("agent", "control"):
                yield from ((node.id, p.name) for p in node.output_pins if p.name not in taken)


def _digest(a: Analysis) -> str:
    manifests = {n.node.type: n.manifest.document() for n in a.nodes.values() if n.manifest}
    canonical = msgspec.json.encode([a.flow.document(), manifests], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()
