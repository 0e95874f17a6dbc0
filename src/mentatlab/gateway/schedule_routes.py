"""`/api/v1/schedules`: runs at the times that a cron expression says."""

import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import Body
from mentatlab.runs.schedules import Overlap, Schedule, ScheduleStore
from mentatlab.runs.triggers import Triggers

Reader = Annotated[Caller, Depends(requires("read"))]
Author = Annotated[Caller, Depends(requires("run"))]


class ScheduleBody(Body):
    """`overlap`: what a tick does while an earlier run goes on."""

    flow_id: str
    cron: str = Field(max_length=200, description="`0 7 * * 1-5`; six fields begin with seconds")
    timezone: str = Field(default="UTC", max_length=100)
    inputs: dict[str, Any] = Field(default_factory=dict[str, Any])
    overlap: Overlap = "skip"
    paused: bool = False


class PauseBody(Body):
    paused: bool


class ScheduleAnswer(BaseModel):
    """Times in Unix seconds."""

    id: str
    flow_id: str
    cron: str
    timezone: str
    inputs: dict[str, Any]
    overlap: str
    paused: bool
    next_at: float
    created_at: float


class TickAnswer(BaseModel):
    """`state`: due, made, skipped or failed."""

    at: float
    state: str
    run_id: str
    error: str


class ScheduleDetail(ScheduleAnswer):
    ticks: list[TickAnswer]


class SchedulesAnswer(BaseModel):
    schedules: list[ScheduleAnswer]


def schedules_router(schedules: ScheduleStore, triggers: Triggers) -> APIRouter:
    router = APIRouter(prefix="/api/v1/schedules", tags=["schedules"])

    @router.post("", status_code=201, summary="Run a stored flow at certain times")
    async def add(body: ScheduleBody, who: Author) -> ScheduleAnswer:
        """Its inputs must fit the flow as it is now; ticks run the flow as it is then."""
        digest = await triggers.check_schedule(body.flow_id, body.inputs, workspace=who.workspace)
        made = await schedules.create(
            workspace=who.workspace, now=time.time(), digest=digest, **body.model_dump()
        )
        return ScheduleAnswer(**_fields(made))

    @router.get("", summary="The workspace's schedules")
    async def list_schedules(who: Reader) -> SchedulesAnswer:
        found = await schedules.list(workspace=who.workspace)
        return SchedulesAnswer(schedules=[ScheduleAnswer(**_fields(s)) for s in found])

    @router.get("/{schedule_id}", summary="One schedule with its last ticks")
    async def get(schedule_id: str, who: Reader) -> ScheduleDetail:
        found = await schedules.get(schedule_id, workspace=who.workspace)
        ticks = await schedules.ticks(schedule_id)
        return ScheduleDetail(
            **_fields(found), ticks=[TickAnswer(**msgspec.to_builtins(t)) for t in ticks]
        )

    @router.patch("/{schedule_id}", summary="Pause a schedule, or let it go on")
    async def pause(schedule_id: str, body: PauseBody, who: Author) -> ScheduleAnswer:
        found = await schedules.get(schedule_id, workspace=who.workspace)
        await schedules.pause(found, body.paused, now=time.time())
        return ScheduleAnswer(**_fields(await schedules.get(schedule_id)))

    @router.delete("/{schedule_id}", status_code=204, summary="Remove a schedule; its runs stay")
    async def delete(schedule_id: str, who: Author) -> None:
        await schedules.get(schedule_id, workspace=who.workspace)
        await schedules.delete(schedule_id)

    return router


def _fields(schedule: Schedule) -> dict[str, Any]:
    return msgspec.to_builtins(schedule)
