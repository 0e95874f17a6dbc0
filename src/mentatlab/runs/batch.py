"""Batch mode, for servers with streaming switched off. Pure."""

from dataclasses import replace

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode


def batched(plan: Plan) -> Plan:
    """The plan whose stream edges are collected: a consumer starts when the stream has ended, and
    gets the same elements."""
    return replace(plan, nodes=tuple(map(_batched, plan.nodes)))


def _batched(node: PlanNode) -> PlanNode:
    return replace(
        node,
        inputs=tuple(map(_waiting, node.inputs)),
        outputs=tuple(map(_waiting, node.outputs)),
    )


def _waiting(edge: PlanEdge) -> PlanEdge:
    return replace(edge, live=False)
