"""`/api/v1/runs/{id}`: pause, resume, decide a gate, do it again."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import Field

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import Body
from mentatlab.gateway.runs_routes import RunAnswer, run_fields
from mentatlab.runs.engine import Engine
from mentatlab.runs.views import RunView

Author = Annotated[Caller, Depends(requires("run"))]


class GateBody(Body):
    approve: bool
    comment: str = Field(default="", max_length=2000)


class RerunBody(Body):
    """Without `from_node` everything runs again; with it what stands before it is taken over."""

    from_node: str = Field(default="", max_length=1000)
    params: dict[str, dict[str, Any]] = Field(
        default_factory=dict[str, dict[str, Any]],
        description="node → parameters to be changed; null takes one away",
    )
    idempotency_key: str | None = Field(
        default=None, max_length=255, description="also as the header `Idempotency-Key`"
    )


def run_control_router(engine: Engine) -> APIRouter:
    router = APIRouter(prefix="/api/v1/runs/{run_id}", tags=["runs"])

    @router.post("/pause", summary="Start nothing new; what runs goes on to its end")
    async def pause(run_id: str, who: Author) -> RunAnswer:
        return _answer(await engine.pause(run_id, workspace=who.workspace))

    @router.post("/resume", summary="Go on with a paused run")
    async def resume(run_id: str, who: Author) -> RunAnswer:
        return _answer(await engine.resume(run_id, workspace=who.workspace))

    @router.post("/gates/{node_id}", summary="Approve or reject what a gate waits for")
    async def decide_gate(run_id: str, node_id: str, body: GateBody, who: Author) -> RunAnswer:
        run = await engine.decide_gate(
            run_id,
            node_id,
            approved=body.approve,
            by=who.name,
            comment=body.comment,
            workspace=who.workspace,
        )
        return _answer(run)

    @router.post("/rerun", status_code=201, summary="Do a run again, whole or from a node on")
    async def rerun(
        run_id: str,
        who: Author,
        response: Response,
        body: RerunBody | None = None,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
    ) -> RunAnswer:
        """A new run with `origin`: the same inputs, `params` changed, agents as they are now."""
        wanted = body or RerunBody()
        run = await engine.rerun(
            run_id,
            workspace=who.workspace,
            from_node=wanted.from_node,
            params=wanted.params,
            idempotency_key=wanted.idempotency_key or idempotency_key,
        )
        response.headers["Location"] = f"/api/v1/runs/{run.id}"
        return _answer(run)

    return router


def _answer(run: RunView) -> RunAnswer:
    return RunAnswer(**run_fields(run))
