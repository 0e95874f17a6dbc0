"""`/api/v1/storage/gc` and `/scrub`: housekeeping now, over all workspaces."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from mentatlab.gateway.identity import Caller, requires
from mentatlab.storage import StorageManager
from mentatlab.storage.scrub import Report

Admin = Annotated[Caller, Depends(requires("admin"))]


class SweptAnswer(BaseModel):
    """What was removed, and what was found missing."""

    blobs: int = Field(description="that nobody needed for a day, or that had expired")
    orphans: int = Field(description="bytes that no blob means")
    missing: int = Field(description="blobs without their bytes: corrupt now")
    uploads: int = Field(description="parts of uploads that were given up")
    foreign: bool = Field(description="the bytes belong to another catalogue, and were left alone")


class ScrubAnswer(BaseModel):
    """The last pass over everything, so far. Times in Unix seconds."""

    running: bool
    total: int = Field(description="blobs when it began")
    checked: int
    bytes: int
    corrupt_count: int
    corrupt: list[str] = Field(description="the first hundred")
    healed: int = Field(description="were corrupt, and have their right bytes again")
    unread: int = Field(description="could not be read now")
    started_at: float | None
    finished_at: float | None


def storage_admin_router(storage: StorageManager) -> APIRouter:
    router = APIRouter(prefix="/api/v1/storage", tags=["storage"])

    @router.post("/gc", summary="Remove what nobody needs")
    async def gc(_: Admin) -> SweptAnswer:
        return SweptAnswer(**(await storage.life.sweep())._asdict())

    @router.post("/scrub", status_code=202, summary="Begin to read everything again")
    async def scrub(_: Admin) -> ScrubAnswer:
        """One that is under way goes on."""
        return _answer(storage.life.scrub.ask())

    @router.get("/scrub", summary="How far that is")
    async def progress(_: Admin) -> ScrubAnswer:
        return _answer(storage.life.scrub.report)

    return router


def _answer(report: Report) -> ScrubAnswer:
    return ScrubAnswer(**msgspec.structs.asdict(report))
