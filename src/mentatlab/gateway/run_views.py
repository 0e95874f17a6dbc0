"""`/api/v1/runs`: which there are, and of one when everything happened, what was logged, and where
its results come from."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from mentatlab.gateway.compress import GrowingResponse
from mentatlab.gateway.identity import Caller, requires
from mentatlab.gateway.run_events import SILENCE
from mentatlab.gateway.runs_routes import ErrorAnswer, RunSummary, run_fields
from mentatlab.gateway.stream_sse import HEADERS
from mentatlab.gateway.stream_sse import event as encoded
from mentatlab.runs.reading import LogLines, LogQuery, RunReader
from mentatlab.runs.state import RunPhase
from mentatlab.runs.store import RunFilter
from mentatlab.runs.timeline import ItemPage

Reader = Annotated[Caller, Depends(requires("read"))]
RunId = Annotated[str, Field(pattern=r"^rn_[0-9A-HJKMNP-TV-Z]{26}$")]


class RunQuery(BaseModel):
    """Filters and paging; a parameter that is not one of these is refused, like a bad value.

    Times are RFC 3339 (UTC without an offset) or Unix seconds: `since` <= created < `until`.
    """

    model_config = ConfigDict(extra="forbid")

    state: list[RunPhase] = Field([], description="any of these; may be repeated")
    flow_id: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    since: datetime | None = None
    until: datetime | None = None
    trigger: str | None = Field(
        None,
        pattern=r"^(schedule|webhook)(:[A-Za-z0-9_.-]+)?$",
        description="`schedule` or `webhook`, or one of them: `schedule:ID`",
    )
    origin: RunId | None = Field(None, description="runs that do this one again")
    q: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="a part of the run's id, its flow's, or its reason"
    )
    limit: int = Field(50, ge=1, le=200)
    before: RunId | None = Field(None, description="the `next` of the page before")

    def filter(self) -> RunFilter:
        return RunFilter(
            states=tuple(map(str, self.state)),
            flow_id=self.flow_id,
            since=_unix(self.since),
            until=_unix(self.until),
            trigger=self.trigger,
            origin=self.origin,
            text=self.q,
        )


def _unix(time: datetime | None) -> float | None:
    if time is None:
        return None
    return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


class RunsAnswer(BaseModel):
    """Newest first; `next` is the `before` of the following page (its whole address stands in
    `Link: <…>; rel="next"`), null on the last one."""

    runs: list[RunSummary]
    next: str | None


class LogsAnswer(BaseModel):
    logs: list[dict[str, Any]]


class AttemptTimes(BaseModel):
    """`retried`: another attempt follows at `retry_at`; `restarted`: begun again because of its
    source or its server; `overtaken`: the run ended before it."""

    attempt: int
    outcome: str
    started_at: float
    ended_at: float | None = None
    error: ErrorAnswer | None = None
    retry_at: float | None = None


class UnitTimes(BaseModel):
    """`ready_at`: what it needs was there; `queued_s` from then to its first start; `run_s` in
    attempts, `waited_s` between them. `skipped_by`: `when`, `branch`,
    `upstream` or `no_demand`; `cached_from`: the run that did it."""

    state: str
    ready_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    queued_s: float | None = None
    run_s: float
    waited_s: float
    attempts: list[AttemptTimes]
    skipped_by: str | None = None
    cached_from: str | None = None


class ItemTimes(UnitTimes):
    item: int


class StreamTimes(BaseModel):
    pin: str
    stream_id: str
    state: str
    chunks: int
    first_chunk_at: float | None = None
    ended_at: float | None = None


class GateTimes(BaseModel):
    message: str
    opened_at: float
    until: float | None = None
    closed_at: float | None = None
    approved: bool | None = None
    by: str
    comment: str


class SpreadAnswer(BaseModel):
    """All items of a `forEach` node: counts by state, and how the times of ended ones spread (min,
    p50, p95, max, mean)."""

    states: dict[str, int]
    run_s: dict[str, float]


class NodeTimes(UnitTimes):
    """`first_chunk_at` and `stream_s`, from then to the end of the last, are over its streams."""

    node_id: str
    kind: str
    type: str
    first_chunk_at: float | None = None
    stream_s: float | None = None
    streams: list[StreamTimes]
    gate: GateTimes | None = None
    spread: SpreadAnswer | None = None
    items: list[ItemTimes]
    more_items: bool


class PauseTimes(BaseModel):
    paused_at: float
    resumed_at: float | None = None


class TimelineAnswer(BaseModel):
    """Times in Unix seconds, durations in seconds; what still runs is measured up to `at`."""

    run_id: str
    state: str
    at: float
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    queued_s: float | None = None
    run_s: float | None = None
    pauses: list[PauseTimes]
    nodes: list[NodeTimes]


class OriginAnswer(BaseModel):
    """Where a way back ends: an `input` of the run, or a node that has none; `time_code` and
    `frame` are those of the last record on the way."""

    id: str
    input: str | None = None
    reference: dict[str, Any] | None = None
    pts_s: float | None = None
    time_code: str | None = None
    frame: int | None = None


class StepAnswer(BaseModel):
    """One place: a value, a stream, a record of one or an element of a list. `sources`: input pin →
    `id`s of the steps that it came from. `skipped_by`: why nothing came there (`when`, `branch`,
    `upstream` or `no_demand`), because of the node `upstream`."""

    id: str
    node_id: str
    pin: str
    type: str
    sequence: int | None = None
    item: int | None = None
    attempt: int | None = None
    reference: dict[str, Any] | None = None
    pts_s: float | None = None
    time_code: str | None = None
    frame: int | None = None
    metadata: dict[str, Any]
    records: int | None = None
    gone: bool
    cached_from: str | None = None
    skipped_by: str | None = None
    upstream: str = ""
    sources: dict[str, list[str]]


class LineageAnswer(BaseModel):
    """`steps` from the result (the first) backwards, each place once."""

    run_id: str
    result: str
    origins: list[OriginAnswer]
    steps: list[StepAnswer]


Item = Annotated[int | None, Query(ge=1, description="only this item of a `forEach` node")]
Attempt = Annotated[int | None, Query(ge=1)]


def run_views_router(runs: RunReader) -> APIRouter:
    router = APIRouter(prefix="/api/v1/runs", tags=["runs"])

    @router.get("", summary="Runs, newest first")
    async def list_runs(
        request: Request, response: Response, who: Reader, query: Annotated[RunQuery, Query()]
    ) -> RunsAnswer:
        found = await runs.list(
            who.workspace, filter=query.filter(), limit=query.limit + 1, before=query.before
        )
        page = found[: query.limit]
        following = page[-1].id if len(found) > len(page) else None
        if following is not None:
            response.headers["Link"] = f'<{_next_page(request, following)}>; rel="next"'
        return RunsAnswer(runs=[RunSummary(**run_fields(run)) for run in page], next=following)

    @router.get("/{run_id}/timeline", summary="When everything happened")
    async def timeline(
        run_id: str,
        who: Reader,
        node: Annotated[str | None, Query(description="items of this node only")] = None,
        after_item: Annotated[int, Query(ge=0)] = 0,
        items: Annotated[int, Query(ge=0, le=1000, description="of each node at most")] = 100,
    ) -> TimelineAnswer:
        """Queue, start, first chunk, run, waits and end of every node, item and attempt."""
        page = ItemPage(node=node, after=after_item, limit=items)
        found = await runs.timeline(run_id, workspace=who.workspace, page=page)
        return TimelineAnswer(**found.to_dict())

    @router.get("/{run_id}/lineage", summary="Where a result comes from")
    async def lineage(
        run_id: str,
        who: Reader,
        output: Annotated[str | None, Query(description="an output of the run")] = None,
        node: Annotated[str | None, Query(description="or a node")] = None,
        pin: Annotated[str | None, Query(description="and its output pin")] = None,
        seq: Annotated[
            int | None,
            Query(ge=1, lt=10**15, description="a record of a stream, or an element of a list"),
        ] = None,
    ) -> LineageAnswer:
        """Back over nodes, items and records to the run's inputs, with frame and time code."""
        found = await runs.lineage(
            run_id, workspace=who.workspace, output=output, node=node, pin=pin, seq=seq
        )
        return LineageAnswer(**found.to_dict())

    @router.get(
        "/{run_id}/nodes/{node_id}/logs",
        summary="What a node's agents logged",
        responses={200: {"content": {"text/event-stream": {}}, "model": LogsAnswer}},
        response_model=None,
    )
    async def logs(
        run_id: str,
        node_id: str,
        who: Reader,
        item: Item = None,
        attempt: Attempt = None,
        follow: Annotated[bool, Query(description="as server-sent events, to the end")] = False,
    ) -> LogsAnswer | Response:
        asked = LogQuery(run_id, node_id, who.workspace, item, attempt)
        if not follow:
            return LogsAnswer(logs=await runs.logs(asked))
        await runs.check_node(run_id, node_id, who.workspace)
        lines = runs.follow_logs(asked)
        return GrowingResponse(_lines(lines), headers=HEADERS)

    return router


async def _lines(pages: AsyncGenerator[LogLines]) -> AsyncIterator[bytes]:
    """One `begin`, `log` each, one `end`: a reader that comes back gets them all again."""
    yield encoded("begin", b"{}")
    async with aclosing(pages):
        async for page in pages:
            said = [encoded("log", msgspec.json.encode(line)) for line in page]
            yield b"".join(said) or SILENCE
    yield encoded("end", b"{}")


def _next_page(request: Request, before: str) -> str:
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "before"]
    return f"{request.url.path}?{urlencode([*kept, ('before', before)])}"
