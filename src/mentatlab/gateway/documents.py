"""How a request carries a flow: as JSON, or as the text that its author wrote."""

from typing import Any

import msgspec
from fastapi import Request

from mentatlab.flows import Plan
from mentatlab.flows.document import read_document
from mentatlab.gateway.models import FlowBody
from mentatlab.protocol.errors import Code
from mentatlab.protocol.values import is_object

FLOW_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "`{flow}`, or the flow itself: its JSON document or the text of its file",
        "content": {
            "application/json": {"schema": FlowBody.model_json_schema()},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}
"""For `openapi_extra` of the calls that use `flow_of`."""


async def flow_of(request: Request) -> dict[str, Any]:
    """The flow document of a request's body, as a dependency; `Invalid(FLOW_SYNTAX)` else.

    Whether it has the shape of a flow is not checked yet.
    """
    body = read_document(await request.body(), code=Code.FLOW_SYNTAX)
    wrapped = body.get("flow")
    return document_of(body if wrapped is None or "graph" in body else wrapped)


def document_of(flow: object) -> dict[str, Any]:
    """A flow's document, from itself or from its text."""
    return flow if is_object(flow) else read_document(str(flow), code=Code.FLOW_SYNTAX)


def plan_body(plan: Plan) -> dict[str, Any]:
    """What an author wants to see of a plan."""
    return {
        "flow_id": plan.flow_id,
        "digest": plan.digest,
        "nodes": [
            {
                "id": node.id,
                "kind": node.kind,
                "type": node.type,
                "for_each": node.for_each,
                "after": sorted({edge.source for edge in node.inputs}),
                "inputs": [
                    {
                        "from": f"{edge.source}.{edge.source_pin}",
                        "pin": edge.target_pin,
                        "kind": edge.kind,
                        "adapter": edge.adapter,
                        "type": edge.item_type,
                    }
                    for edge in node.inputs
                ],
            }
            for node in plan.nodes
        ],
        "inputs": [
            {"name": i.name, "node": i.node, "pin": msgspec.to_builtins(i.pin)} for i in plan.inputs
        ],
        "outputs": [{"node": node, "pin": pin} for node, pin in plan.outputs],
    }
