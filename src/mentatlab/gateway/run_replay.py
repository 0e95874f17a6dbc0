"""`POST /api/v1/runs/{id}/replay`: a run's record, told again at its own pace. Nothing runs."""

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from mentatlab.gateway.admission import streaming_is_off
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.models import Body
from mentatlab.gateway.runs_routes import StreamAnswer
from mentatlab.gateway.stream_models import sse_url, ws_url
from mentatlab.runs.reading import RunReader

Reader = Annotated[Caller, Depends(requires("read"))]


class ReplayBody(Body):
    speed: float = Field(default=1.0, gt=0, le=1000, description="a factor of recorded time")


class ReplayedStream(StreamAnswer):
    """`reused`: a node's that did not run; it was recorded in the run that made it, so it is not
    part of this run's replay, and replayed by itself."""

    reused: bool
    sse_url: str
    ws_url: str


class ReplayAnswer(BaseModel):
    """`sse_url`, `ws_url`: the run's events and everything that its nodes streamed, in one order.
    `recorded_s`: how long it went, `replay_s`: how long this takes."""

    run_id: str
    state: str
    speed: float
    recorded_s: float
    replay_s: float
    sse_url: str
    ws_url: str
    streams: list[ReplayedStream]


def replay_router(runs: RunReader, *, streaming: bool) -> APIRouter:
    router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

    @router.post("/{run_id}/replay", summary="Tell a run's record again, at the speed it had")
    async def replay(run_id: str, who: Reader, body: ReplayBody | None = None) -> ReplayAnswer:
        """Of a run that has ended. Whoever follows one of the addresses gets the same records as
        those who followed the run, at `speed` times the recorded pace from where he begins; cut
        off, he goes on with the last cursor, as with any stream."""
        if not streaming:
            raise streaming_is_off()
        found, speed = (
            await runs.replay(run_id, workspace=who.workspace),
            (body or ReplayBody()).speed,
        )
        streams = [
            ReplayedStream(**stream.to_dict(), **_addresses(stream.stream_id, speed))
            for stream in found.streams
        ]
        return ReplayAnswer(
            run_id=run_id,
            state=found.state,
            speed=speed,
            recorded_s=found.recorded_s,
            replay_s=found.recorded_s / speed,
            streams=streams,
            **_addresses(run_id, speed),
        )

    return router


def _addresses(id_: str, speed: float) -> dict[str, Any]:
    paced = urlencode({"from": "start", "rate": f"{speed:g}"})
    return {"sse_url": f"{sse_url(id_)}?{paced}", "ws_url": f"{ws_url(id_)}?{paced}"}
