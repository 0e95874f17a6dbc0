"""What a plan says about nodes, edges and lanes. Pure."""

from mentatlab.flows.plan import PlanEdge, PlanNode
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
