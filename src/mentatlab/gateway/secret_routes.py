"""`/api/v1/secrets`: set, list by name, remove. Values go in and never come out."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import Body
from mentatlab.runs.secrets import SecretStore

Author = Annotated[Caller, Depends(requires("run"))]
Admin = Annotated[Caller, Depends(requires("admin"))]


class SecretBody(Body):
    value: str


class SecretAnswer(BaseModel):
    """Times in Unix seconds."""

    name: str
    created_at: float
    updated_at: float


class SecretsAnswer(BaseModel):
    secrets: list[SecretAnswer]


def secrets_router(secrets: SecretStore) -> APIRouter:
    router = APIRouter(prefix="/api/v1/secrets", tags=["secrets"])

    @router.get("", summary="The names of the workspace's secrets")
    async def list_secrets(who: Author) -> SecretsAnswer:
        found = await secrets.list(workspace=who.workspace)
        return SecretsAnswer(
            secrets=[
                SecretAnswer(name=s.name, created_at=s.created_at, updated_at=s.updated_at)
                for s in found
            ]
        )

    @router.put("/{name}", status_code=204, summary="Set a secret")
    async def put_secret(name: str, body: SecretBody, admin: Admin) -> None:
        await secrets.put(name, body.value, workspace=admin.workspace, now=time.time())

    @router.delete("/{name}", status_code=204, summary="Remove a secret")
    async def delete_secret(name: str, admin: Admin) -> None:
        await secrets.delete(name, workspace=admin.workspace)

    return router
