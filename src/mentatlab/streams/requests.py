"""What a client says to open a stream."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mentatlab.protocol.records import Durability

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class StreamInitRequest(BaseModel):
    """The body of `POST /api/v1/streams/init`. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    agent_id: Name
    pin_name: Name
    run_id: Name | None = Field(None, description="Join this run's order; default: one of its own")
    node_id: Name | None = Field(None, description="Default: the agent's id")
    mime_type: Name = "application/json"
    durability: Durability = Field(
        "commit",
        description="commit: acknowledged and delivered after the commit; memory: on append",
    )
