"""What a client says to open a stream."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from mentatlab.protocol.records import Durability
from mentatlab.streams.port import Retention

_YEAR_S = 366 * 86_400
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.:~-]+$")]
"""What stands in an address."""
Seconds = Annotated[float, Field(gt=0, le=_YEAR_S, allow_inf_nan=False)]
_FACTS = ("codec", "timebase", "expected_chunks", "ttl_s", "retain_s", "max_bytes")


class StreamInitRequest(BaseModel):
    """The body of `POST /api/v1/streams/init`. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    agent_id: Name
    pin_name: Name
    run_id: Id | None = Field(None, description="Join this run's order; default: one of its own")
    node_id: Name | None = Field(None, description="Default: the agent's id")
    mime_type: Name = "application/json"
    durability: Durability = Field(
        "commit",
        description="commit: acknowledged and delivered after the commit; memory: on append",
    )
    ttl_s: Seconds | None = Field(
        None, description="The open stream ends as expired after so long without a record"
    )
    retain_s: Seconds | None = Field(None, description="How long it is kept after its end")
    max_bytes: int | None = Field(
        None, ge=1, le=1 << 50, description="How much is kept of it, the newest records"
    )
    expected_chunks: int | None = Field(None, ge=0, le=1 << 53)
    codec: Name | None = None
    timebase: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]{0,9}/[1-9][0-9]{0,9}$",
        description="Seconds per unit of the media's own time, such as 1/48000",
    )

    @property
    def retention(self) -> Retention:
        return Retention(ttl_s=self.ttl_s, retain_s=self.retain_s, max_bytes=self.max_bytes)

    @property
    def facts(self) -> dict[str, Any]:
        """What is said of the optional ones, for `stream_start`."""
        return self.model_dump(include=set(_FACTS), exclude_none=True)
