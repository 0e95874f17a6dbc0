"""`/api/v1/runs`: submit, look at one, cancel, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel

from mentatlab.flows import Plan, compile_plan, load_flow
from mentatlab.gateway.documents import document_of
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import RunBody
from mentatlab.protocol.errors import Code, Forbidden
from mentatlab.protocol.pins import MEDIA_TYPES
from mentatlab.runs.engine import Engine
from mentatlab.runs.flow_store import FlowStore
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.views import RunView

Reader = Annotated[Caller, Depends(requires("read"))]
Author = Annotated[Caller, Depends(requires("run"))]


class ErrorAnswer(BaseModel):
    code: str
    message: str
    hint: str = ""


class ItemsAnswer(BaseModel):
    """Counts of a `forEach` node's items; `failed` ones were collected or skipped."""

    succeeded: int
    failed: int
    running: int
    waiting: int
    skipped: int = 0


class GateAnswer(BaseModel):
    """An approval that is waited for: whose key has `scope` may decide, until `until` (Unix
    seconds; null = for ever), when it rejects by itself."""

    message: str
    opened_at: float
    until: float | None = None
    scope: str


class NodeAnswer(BaseModel):
    """Times in Unix seconds; `percent` is what the agent last said. `gate` while it waits;
    `upstream`: the node because of which this one was skipped or cannot start."""

    id: str
    kind: str
    type: str
    state: str
    attempt: int
    error: ErrorAnswer | None = None
    items: ItemsAnswer | None = None
    started_at: float | None = None
    ended_at: float | None = None
    retry_at: float | None = None
    percent: float | None = None
    gate: GateAnswer | None = None
    upstream: str = ""


class StreamAnswer(BaseModel):
    stream_id: str
    node_id: str
    pin_name: str
    state: str


class RunSummary(BaseModel):
    """Times in Unix seconds; `reason` says why a run ended badly. `origin`: the run that this one
    does again, from `from_node`; `trigger`: the schedule or webhook that made it."""

    run_id: str
    workspace: str
    flow_id: str
    digest: str
    state: str
    reason: str = ""
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    origin: str = ""
    from_node: str = ""
    trigger: str = ""


class RunAnswer(RunSummary):
    """The run id is also a stream id: of everything that its nodes stream, in one order."""

    error: ErrorAnswer | None = None
    nodes: list[NodeAnswer]
    streams: list[StreamAnswer]


class OutputsAnswer(BaseModel):
    """`outputs` by `node.pin`; media as references, streams as `{type: "stream", …}`."""

    run_id: str
    state: str
    outputs: dict[str, Any]


def runs_router(
    engine: Engine, flows: FlowStore, agents: AgentRegistry, *, multimodal: bool
) -> APIRouter:
    router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

    @router.post("", status_code=201, summary="Check a flow and start a run of it")
    async def submit(
        body: RunBody,
        who: Author,
        response: Response,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> RunAnswer:
        if body.flow_id is not None:
            document = (await flows.get(body.flow_id, workspace=who.workspace)).document
        else:
            document = document_of(body.flow)
        document = await flows.whole(document, workspace=who.workspace, lookup=agents.manifest)
        if not multimodal:
            _refuse_media(compile_plan(load_flow(document), agents.manifest))
        run = await engine.submit(
            document,
            body.inputs,
            workspace=who.workspace,
            idempotency_key=body.idempotency_key or idempotency_key,
        )
        response.headers["Location"] = f"/api/v1/runs/{run.id}"
        return _answer(run)

    @router.get("/{run_id}", summary="One run with its nodes and streams")
    async def get_run(run_id: str, who: Reader) -> RunAnswer:
        return _answer(await engine.get(run_id, workspace=who.workspace))

    @router.post("/{run_id}/cancel", status_code=202, summary="End a run early")
    async def cancel(run_id: str, who: Author) -> RunAnswer:
        return _answer(await engine.cancel(run_id, workspace=who.workspace))

    @router.delete("/{run_id}", status_code=204, summary="Delete a run that has ended")
    async def delete(run_id: str, who: Author) -> None:
        """With its events and streams. What it stored goes a day later, unless others need it."""
        await engine.delete(run_id, workspace=who.workspace)

    @router.get("/{run_id}/outputs", summary="What has come out so far")
    async def outputs(run_id: str, who: Reader) -> OutputsAnswer:
        run = await engine.get(run_id, workspace=who.workspace)
        found = await engine.outputs(run_id, workspace=who.workspace)
        return OutputsAnswer(run_id=run_id, state=run.state, outputs=found)

    return router


def _refuse_media(plan: Plan) -> None:
    """`Forbidden(FEATURE_DISABLED)` for a flow with media pins."""
    for node in plan.nodes:
        for pin in (*node.input_pins, *node.output_pins):
            if pin.item_type in MEDIA_TYPES:
                raise Forbidden(
                    Code.FEATURE_DISABLED,
                    f"{node.id}.{pin.name} is {pin.item_type}; multimodal flows are switched off",
                    hint="start the server without ENABLE_MULTIMODAL=false",
                )


def run_fields(run: RunView) -> dict[str, Any]:
    fields = run.to_dict()
    return {"run_id": fields.pop("id"), **fields}


def _answer(run: RunView) -> RunAnswer:
    return RunAnswer(**run_fields(run))
