"""What the stream routes answer: the models behind /openapi.json."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mentatlab.gateway.models import Body
from mentatlab.protocol.records import MAX_RECORD_BYTES, Durability, timestamp
from mentatlab.protocol.tokens import MAX_LIFETIME_S
from mentatlab.streams.port import READ_BYTES, Lane, LaneState, Run
from mentatlab.streams.publishing import BATCH_RECORDS

StreamCapability = Literal["sub", "pub", "cancel"]


class StreamLimits(BaseModel):
    """Bytes; `records` in one POST batch or waiting on one connection."""

    record_bytes: int = MAX_RECORD_BYTES
    in_flight_bytes: int = READ_BYTES
    records: int = BATCH_RECORDS


class StreamOpened(BaseModel):
    """URLs are paths on this server; tokens are for this stream and end after an hour."""

    stream_id: str
    run_id: str
    epoch: int
    ws_url: str
    sse_url: str
    pub_token: str
    sub_token: str
    limits: StreamLimits
    status: LaneState


class Kept(BaseModel):
    """How long and how much is kept: seconds and bytes; null = without limit."""

    ttl_s: float | None
    retain_s: float | None
    max_bytes: int | None


class StreamInfo(BaseModel):
    """`head` is the last sequence, `chunks` and `bytes` count the standing data records. Of the
    records 2 to `floor` - 1 retention has taken the data."""

    stream_id: str
    run_id: str
    node_id: str
    pin_name: str
    agent_id: str
    mime_type: str
    durability: Durability
    epoch: int
    head: int
    cursor: str
    floor: int
    chunks: int
    bytes: int
    attempt: int
    state: LaneState
    retention: Kept
    created_at: str
    changed_at: str
    ws_url: str
    sse_url: str


class RunStreams(BaseModel):
    """A run as a stream: its lanes; `head` counts the records of its commit lanes."""

    run_id: str
    epoch: int
    head: int
    cursor: str
    streams: list[StreamInfo]


class PublishAnswer(BaseModel):
    """`first` to `last` are the sequences of the batch, 0 when it was acknowledged so long ago that
    they are not known; `duplicate`: the log had it already."""

    stream_id: str
    first: int
    last: int
    duplicate: bool


class CancelAnswer(BaseModel):
    stream_id: str
    state: LaneState


class TokenBody(Body):
    """`capabilities`: by default those of the token that asks, and `sub` for a key."""

    model_config = ConfigDict(extra="ignore")

    capabilities: Annotated[list[StreamCapability], Field(min_length=1)] | None = None
    lifetime_s: Annotated[int, Field(ge=1, le=MAX_LIFETIME_S)] = MAX_LIFETIME_S


class TokenAnswer(BaseModel):
    """`expires` in Unix seconds; never after the token that asked."""

    token: str
    expires: int


class TicketAnswer(BaseModel):
    """For one use as `?ticket=` before `expires` (Unix seconds)."""

    ticket: str
    expires: int


def info_of(lane: Lane) -> StreamInfo:
    kept = lane.retention
    return StreamInfo(
        stream_id=lane.stream_id,
        run_id=lane.run_id,
        node_id=lane.node_id,
        pin_name=lane.pin_name,
        agent_id=lane.agent_id,
        mime_type=lane.mime_type,
        durability=lane.durability,
        epoch=lane.epoch,
        head=lane.head,
        cursor=str(lane.cursor),
        floor=lane.floor,
        chunks=lane.chunks,
        bytes=lane.bytes,
        attempt=lane.attempt,
        state=lane.state,
        retention=Kept(ttl_s=kept.ttl_s, retain_s=kept.retain_s, max_bytes=kept.max_bytes),
        created_at=timestamp(lane.created_at),
        changed_at=timestamp(lane.changed_at),
        ws_url=ws_url(lane.stream_id),
        sse_url=sse_url(lane.stream_id),
    )


def run_of(run: Run, lanes: list[Lane]) -> RunStreams:
    return RunStreams(
        run_id=run.run_id,
        epoch=run.epoch,
        head=run.head,
        cursor=str(run.cursor),
        streams=[info_of(lane) for lane in lanes],
    )


def ws_url(stream_id: str) -> str:
    return f"/ws/streams/{stream_id}"


def sse_url(stream_id: str) -> str:
    return f"/api/v1/streams/{stream_id}/sse"
