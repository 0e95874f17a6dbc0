"""`/api/v1/keys`: API keys, for admins."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import KeyBody
from mentatlab.protocol.errors import Code, NotFound
from mentatlab.runs.key_store import Key, KeyStore

Admin = Annotated[Caller, Depends(requires("admin"))]


class KeyAnswer(BaseModel):
    id: str
    name: str
    workspace: str
    scopes: list[str]
    created_at: float


class NewKeyAnswer(KeyAnswer):
    """`key` is told here and never again."""

    key: str


class KeysAnswer(BaseModel):
    keys: list[KeyAnswer]


def keys_router(keys: KeyStore) -> APIRouter:
    router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

    @router.get("", summary="Keys that are not revoked")
    async def list_keys(admin: Admin) -> KeysAnswer:
        found = await keys.list(workspace=_own(admin))
        return KeysAnswer(keys=[_answer(key) for key in found])

    @router.post("", status_code=201, summary="Make a key; it is shown once")
    async def add_key(body: KeyBody, admin: Admin) -> NewKeyAnswer:
        workspace = _own(admin) or body.workspace
        made = await keys.create(
            workspace=workspace, scopes=body.granted(), name=body.name, now=time.time()
        )
        return NewKeyAnswer(key=made.plaintext, **_answer(made.key).model_dump())

    @router.delete("/{key_id}", status_code=204, summary="Revoke a key, at once")
    async def revoke_key(key_id: str, admin: Admin) -> None:
        known = {key.id for key in await keys.list(workspace=_own(admin))}
        if key_id not in known:
            raise NotFound(
                Code.NOT_FOUND, f"there is no key {key_id}", hint="`mentatlab keys ls` lists them"
            )
        await keys.revoke(key_id, now=time.time())

    return router


def _own(admin: Caller) -> str | None:
    """An admin key rules its own workspace; the home key (None) every one."""
    return None if admin.name == "home" else admin.workspace


def _answer(key: Key) -> KeyAnswer:
    return KeyAnswer(
        id=key.id,
        name=key.name,
        workspace=key.workspace,
        scopes=list(key.scopes),
        created_at=key.created_at,
    )
