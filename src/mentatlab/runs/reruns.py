"""Doing a run again from one of its nodes: what the new run takes over from its origin. Pure."""

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mentatlab.flows.plan import Plan, PlanNode
from mentatlab.protocol.errors import Code, Invalid, NotFound
from mentatlab.protocol.values import is_object
from mentatlab.runs import events as ev
from mentatlab.runs.edges import is_array
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.lookups import lane_pins
from mentatlab.runs.state import GOOD, NodePhase, RunState

_UNDECIDED = frozenset({NodePhase.SKIPPED})
"""Ended without work of its own: decided again, and no reason to do others again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The run that is done again. `outputs`: of its nodes, by id; `facts` its log."""

    run_id: str
    plan: Plan
    state: RunState
    outputs: Mapping[str, Mapping[str, Any]]
    facts: tuple[ev.RunFact, ...]


def outputs_of(facts: Iterable[ev.RunFact]) -> dict[str, dict[str, Any]]:
    return {
        fact.node: fact.outputs
        for fact in facts
        if isinstance(fact, ev.NodeSucceeded | ev.NodeCached) and fact.item is None
    }


def outputs_in(fact: ev.RunFact) -> Mapping[str, Any]:
    return fact.outputs if isinstance(fact, ev.NodeSucceeded | ev.NodeCached) else {}


def check_from_node(plan: Plan, from_node: str) -> None:
    """`NotFound(UNKNOWN_NODE)`"""
    names = [node.id for node in plan.nodes]
    if from_node and from_node not in names:
        raise NotFound(
            Code.UNKNOWN_NODE,
            f"the run has no node {from_node}",
            hint=f"its nodes are {', '.join(names)}",
        )


def with_params(document: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The flow with these parameters of nodes changed: `{node: {name: value}}`, None takes one
    away. A node of a sub-flow is named `outer:inner`. `Invalid(BAD_PARAM)`"""
    changed = copy.deepcopy(dict(document))
    for name, given in params.items():
        if not is_object(given):
            raise _bad_param(f"the parameters of {name} are no object")
        node = _node(changed, name.split(":"))
        if node is None:
            raise _bad_param(f"the flow has no node {name}")
        kept = {**_params(node), **given}
        node["params"] = {k: v for k, v in kept.items() if v is not None}
    return changed


def _node(document: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    graph = document.get("graph")
    nodes: Any = graph.get("nodes") if is_object(graph) else None
    found = [n for n in nodes if is_object(n) and n.get("id") == path[0]] if is_array(nodes) else []
    if not found or len(path) == 1:
        return found[0] if found else None
    inner = _params(found[0]).get("flow")
    return _node(inner, path[1:]) if is_object(inner) else None


def _params(node: dict[str, Any]) -> dict[str, Any]:
    params = node.get("params")
    return params if is_object(params) else {}


def _bad_param(message: str) -> Invalid:
    return Invalid(
        Code.BAD_PARAM, message, hint='write {"params": {"NODE": {"NAME": VALUE}}} as in the flow'
    )


def again(
    plan: Plan, origin: Origin, begun: Collection[str], *, lost: Collection[str] = ()
) -> frozenset[str]:
    """The nodes to be done again: those in `begun`, whatever did not end well or is `lost`, and
    what depends on one of these."""
    found: set[str] = set()
    for node in plan.nodes:  # in topological order
        told = origin.state.nodes.get(node.id)
        stands = told is not None and (told.phase in GOOD or told.phase in _UNDECIDED)
        upstream = {edge.source for edge in node.inputs}
        if node.id in begun or node.id in lost or not stands or upstream & found:
            found.add(node.id)
    return frozenset(found)


def streams_of(origin: Origin, node: PlanNode) -> set[str]:
    """The streams that hold what the node gave."""
    outputs = origin.outputs.get(node.id, {})
    own = {pin: stream_id(origin.run_id, node.id, pin) for pin in lane_pins(node)}
    return {_stream_id(outputs.get(pin)) or name for pin, name in own.items()}


def _stream_id(value: Any) -> str:
    match value:
        case {"type": "stream", "stream_id": str(name)}:
            return name
        case _:
            return ""


def taken_over(
    plan: Plan, origin: Origin, redone: Collection[str], *, at: float
) -> tuple[ev.RunFact, ...]:
    """What the new run's log begins with: the outcomes of the other nodes. Input and output nodes
    have none of their own; what a control node chose is told as it was."""
    kept = [n for n in plan.nodes if n.id not in redone and n.id in origin.outputs]
    chosen = {
        f.node: f.taken for f in origin.facts if isinstance(f, ev.NodeSucceeded) and f.item is None
    }
    facts: list[ev.RunFact] = []
    for node in kept:
        if node.kind == "control":
            facts.append(
                ev.NodeSucceeded(
                    at=at,
                    node=node.id,
                    outputs=dict(origin.outputs[node.id]),
                    taken=chosen.get(node.id),
                )
            )
        elif node.kind == "agent":
            facts.append(
                ev.NodeCached(
                    at=at,
                    node=node.id,
                    origin=origin.run_id,
                    outputs=dict(origin.outputs[node.id]),
                )
            )
    return tuple(facts)
