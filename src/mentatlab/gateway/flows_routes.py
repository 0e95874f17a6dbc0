"""`/api/v1/flows`: stored flows, check, plan."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel

from mentatlab.flows import Plan, compile_plan, load_flow
from mentatlab.gateway.documents import FLOW_BODY, flow_of, plan_body
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.problems import ProblemItem
from mentatlab.protocol.errors import Code, Conflict
from mentatlab.runs.flow_store import FlowStore, StoredFlow
from mentatlab.runs.registry import AgentRegistry

Reader = Annotated[Caller, Depends(requires("read"))]
Author = Annotated[Caller, Depends(requires("run"))]
Document = Annotated[dict[str, Any], Depends(flow_of)]


class FlowSummary(BaseModel):
    """`digest` names this version; `created_at` in Unix seconds."""

    id: str
    digest: str
    created_at: float


class FlowAnswer(FlowSummary):
    document: dict[str, Any]


class FlowsAnswer(BaseModel):
    flows: list[FlowSummary]


class CheckAnswer(BaseModel):
    """`problems` has warnings too; `valid` = no errors among them."""

    valid: bool
    problems: list[ProblemItem]


class PlanInput(BaseModel):
    name: str
    node: str
    pin: dict[str, Any]


class PlanAnswer(BaseModel):
    """Nodes in the order of execution, the inputs that a run takes, the outputs that it gives."""

    flow_id: str
    digest: str
    nodes: list[dict[str, Any]]
    inputs: list[PlanInput]
    outputs: list[dict[str, str]]


def flows_router(flows: FlowStore, agents: AgentRegistry) -> APIRouter:
    router = APIRouter(prefix="/api/v1/flows", tags=["flows"])

    @router.get("", summary="Stored flows, current versions")
    async def list_flows(who: Reader) -> FlowsAnswer:
        found = await flows.list(workspace=who.workspace)
        return FlowsAnswer(flows=[FlowSummary(**_summary(flow)) for flow in found])

    @router.post(
        "", status_code=201, summary="Store a flow under its own id", openapi_extra=FLOW_BODY
    )
    async def add_flow(document: Document, who: Author) -> FlowAnswer:
        return await put(await compiled(document, who), document, who)

    @router.post("/validate", summary="Every problem of a flow", openapi_extra=FLOW_BODY)
    async def validate(document: Document, who: Reader) -> CheckAnswer:
        found = await flows.check(document, workspace=who.workspace, lookup=agents.manifest)
        return CheckAnswer(
            valid=all(problem.severity != "error" for problem in found),
            problems=[ProblemItem(**msgspec.to_builtins(problem)) for problem in found],
        )

    @router.post("/plan", summary="How a flow would be executed", openapi_extra=FLOW_BODY)
    async def plan(document: Document, who: Reader) -> PlanAnswer:
        return PlanAnswer(**plan_body(await compiled(document, who)))

    @router.get("/{flow_id}", summary="One flow; `digest` names an older version")
    async def get_flow(flow_id: str, who: Reader, digest: str | None = None) -> FlowAnswer:
        return _answer(await flows.get(flow_id, workspace=who.workspace, digest=digest))

    @router.put("/{flow_id}", summary="Make this its current version", openapi_extra=FLOW_BODY)
    async def put_flow(flow_id: str, document: Document, who: Author) -> FlowAnswer:
        plan = await compiled(document, who)
        if plan.flow_id != flow_id:
            raise Conflict(
                Code.CONFLICT,
                f"the flow calls itself {plan.flow_id!r}, the address {flow_id!r}",
                hint="make meta.id and the address the same",
            )
        return await put(plan, document, who)

    @router.delete("/{flow_id}", status_code=204, summary="Remove a flow; its runs stay")
    async def delete_flow(flow_id: str, who: Author) -> None:
        await flows.delete(flow_id, workspace=who.workspace)

    async def compiled(document: dict[str, Any], who: Caller) -> Plan:
        lookup = agents.manifest
        whole = await flows.whole(document, workspace=who.workspace, lookup=lookup)
        return compile_plan(load_flow(whole), lookup)

    async def put(plan: Plan, document: dict[str, Any], who: Caller) -> FlowAnswer:
        """What is stored can run."""
        stored = await flows.put(plan.flow_id, document, workspace=who.workspace, now=time.time())
        return _answer(stored)

    return router


def _summary(flow: StoredFlow) -> dict[str, Any]:
    return {"id": flow.id, "digest": flow.digest, "created_at": flow.created_at}


def _answer(flow: StoredFlow) -> FlowAnswer:
    return FlowAnswer(document=flow.document, **_summary(flow))
