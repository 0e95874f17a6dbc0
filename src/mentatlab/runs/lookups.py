"""What a plan says about nodes, edges and lanes. Pure."""

from dataclasses import dataclass
from functools import lru_cache

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.pins import PinType


def reads_lane(edge: PlanEdge) -> bool:
    """Whether the edge is fed from a lane while its source still runs."""
    of_stream = edge.kind == "items" or (edge.kind == "stream" and edge.adapter == "none")
    return edge.live and of_stream and not edge.source_is_list


def items_edge(node: PlanNode) -> PlanEdge | None:
    return next((e for e in node.inputs if e.kind == "items"), None) if node.for_each else None


def lane_pins(node: PlanNode) -> tuple[str, ...]:
    """Output pins that are lanes: stream pins, and every pin of a `forEach` over a stream."""
    if node.kind != "agent":
        return ()
    source = items_edge(node)
    if source is not None:
        return () if source.source_is_list else tuple(p.name for p in node.output_pins)
    return tuple(p.name for p in node.output_pins if p.type is PinType.STREAM)


def is_optional(node: PlanNode, edge: PlanEdge) -> bool:
    return edge.kind != "items" and any(
        pin.name == edge.target_pin and not pin.required for pin in node.input_pins
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlet:
    """An edge as its target sees it. `live`: it is enough that the source's lane is written to."""

    source: str
    source_pin: str
    pin: str
    optional: bool
    items: bool
    live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A node's place in its plan.

    `fewest`: how many of its edges must have come, None = all; `asks`: the shell prepares it (of a
    `forEach` node each item) before it starts; `stoppable`: it writes lanes, and nothing but its
    consumers wants what it gives; `needed`: the run fails with it.
    """

    node: PlanNode
    position: int
    inlets: tuple[Inlet, ...]
    producers: tuple[int, ...]  # positions
    consumers: tuple[int, ...]
    lanes: tuple[str, ...]
    fewest: int | None
    asks: bool
    stoppable: bool
    needed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    places: tuple[Place, ...]  # in topological order
    by_name: dict[str, Place]


@lru_cache(maxsize=256)
def outline(plan: Plan) -> Outline:
    """What `decide` asks of a plan again and again, worked out once."""
    positions = {node.id: position for position, node in enumerate(plan.nodes)}
    shown = {(e.source, e.source_pin) for n in plan.nodes if n.kind == "output" for e in n.inputs}
    results = shown | set(plan.outputs)
    places = tuple(_place(node, positions, results) for node in plan.nodes)
    return Outline(places=places, by_name={place.node.id: place for place in places})


def _place(node: PlanNode, positions: dict[str, int], results: set[tuple[str, str]]) -> Place:
    lanes = lane_pins(node)
    is_result = any(name == node.id for name, _ in results)
    read = any(edge.source_pin in lanes for edge in node.outputs)
    return Place(
        node=node,
        position=positions[node.id],
        inlets=tuple(_inlet(node, edge) for edge in node.inputs),
        producers=tuple({positions[edge.source]: None for edge in node.inputs}),
        consumers=tuple({positions[edge.target]: None for edge in node.outputs}),
        lanes=lanes,
        fewest=_fewest(node),
        asks=node.when is not None or node.cache or node.kind == "control",
        stoppable=read and not is_result and not node.keep,
        needed=not node.outputs or is_result,
    )


def _inlet(node: PlanNode, edge: PlanEdge) -> Inlet:
    return Inlet(
        source=edge.source,
        source_pin=edge.source_pin,
        pin=edge.target_pin,
        optional=is_optional(node, edge),
        items=edge.kind == "items",
        live=node.kind == "agent" and reads_lane(edge),
    )


def _fewest(node: PlanNode) -> int | None:
    if node.needs == "all":
        return None
    return min(1 if node.needs == "any" else node.needs, len(node.inputs))
