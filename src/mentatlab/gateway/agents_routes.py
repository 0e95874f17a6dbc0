"""`/api/v1/agents`: what this installation can run."""

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from mentatlab.flows import load_manifest
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import AgentBody
from mentatlab.gateway.problems import ProblemItem
from mentatlab.protocol.errors import Code, Invalid, MentatError, ValidationFailed
from mentatlab.runs.registry import AgentRegistry, RegisteredAgent

Reader = Annotated[Caller, Depends(requires("read"))]
Admin = Annotated[Caller, Depends(requires("admin"))]


class AgentSummary(BaseModel):
    """Pins as in the manifest."""

    id: str
    version: str
    description: str = ""
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    warm: bool


class AgentAnswer(AgentSummary):
    manifest: dict[str, Any]


class BrokenAgentAnswer(BaseModel):
    """A manifest folder that cannot be used, and why."""

    directory: str
    code: str
    detail: str
    problems: list[ProblemItem] = Field(default_factory=list[ProblemItem])


class AgentsAnswer(BaseModel):
    agents: list[AgentSummary]
    broken: list[BrokenAgentAnswer]


def agents_router(agents: AgentRegistry, *, manifests: Path) -> APIRouter:
    """`manifests`: where a manifest that was sent as a document gets a folder."""
    router = APIRouter(prefix="/api/v1/agents", tags=["agents"])

    @router.get("", summary="Agents that flows may name")
    async def list_agents(_: Reader) -> AgentsAnswer:
        return AgentsAnswer(
            agents=[AgentSummary(**_summary(agent)) for agent in agents.list()],
            broken=[_broken(b.directory, b.error) for b in agents.broken()],
        )

    @router.post("", status_code=201, summary="Register an agent of the server's machine")
    async def add_agent(body: AgentBody, _: Admin) -> AgentAnswer:
        directory = await asyncio.to_thread(_directory, body, manifests)
        return _answer(await agents.add(directory, now=time.time()))

    @router.get("/{agent_id}", summary="One agent: `id` (its highest version) or `id:version`")
    async def get_agent(agent_id: str, _: Reader) -> AgentAnswer:
        return _answer(agents.get(agent_id))

    return router


def _directory(body: AgentBody, manifests: Path) -> Path:
    if body.directory is not None:
        return Path(body.directory).expanduser()
    assert body.manifest is not None  # the model asks for one of the two
    return _write_manifest(body.manifest, manifests)


def _write_manifest(document: dict[str, Any], manifests: Path) -> Path:
    text = msgspec.json.encode(document)
    manifest = load_manifest(text)
    if not document.get("command"):
        raise Invalid(
            Code.MANIFEST_INVALID,
            "a manifest without its folder needs `command`",
            hint='add "command": ["/path/of/the/program"], or send {"directory": …}',
        )
    directory = manifests / f"{manifest.id}-{manifest.version}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "manifest.json").write_bytes(text)
    return directory


def _summary(agent: RegisteredAgent) -> dict[str, Any]:
    document = agent.manifest.document()
    return {
        "id": agent.id,
        "version": agent.version,
        "description": document.get("description") or "",
        "inputs": document.get("inputs") or [],
        "outputs": document.get("outputs") or [],
        "warm": agent.program().warm is not None,
    }


def _answer(agent: RegisteredAgent) -> AgentAnswer:
    return AgentAnswer(manifest=agent.manifest.document(), **_summary(agent))


def _broken(directory: Path, error: MentatError) -> BrokenAgentAnswer:
    found = error.problems if isinstance(error, ValidationFailed) else []
    return BrokenAgentAnswer(
        directory=str(directory),
        code=error.code,
        detail=error.message,
        problems=[ProblemItem(**msgspec.to_builtins(problem)) for problem in found],
    )
