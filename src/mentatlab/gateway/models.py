"""What JSON goes in and comes out: the models behind /openapi.json."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from mentatlab.gateway.identity import ROLES, USER_SCOPES, Role, Scope
from mentatlab.gateway.texts import BAD_TEXT, BAD_TEXT_SAYS, bad_text
from mentatlab.protocol.values import is_object

Document = Annotated[
    dict[str, Any] | str,
    Field(description="A flow: the JSON document, or the text of a `.mlab` file (YAML or JSON)."),
]


class Body(BaseModel):
    """What a call takes. Its texts are such that every database keeps them; data inside (inputs,
    parameters) may hold NUL, as JSON may, but nothing holds half a surrogate pair."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _whole_texts(cls, body: Any) -> Any:
        if is_object(body) and (place := bad_text(body)) is not None:
            raise PydanticCustomError(BAD_TEXT, BAD_TEXT_SAYS, {"pointer": place})
        return body


class FlowBody(Body):
    flow: Document


class RunBody(Body):
    """`flow` or `flow_id`, never both."""

    flow: Document | None = None
    flow_id: str | None = None
    inputs: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="`node` or `node.pin` → value or media reference",
    )
    idempotency_key: str | None = Field(
        default=None, max_length=255, description="also as the header `Idempotency-Key`"
    )

    @model_validator(mode="after")
    def _one_flow(self) -> "RunBody":
        if (self.flow is None) == (self.flow_id is None):
            raise ValueError("give exactly one of `flow` and `flow_id`")
        return self


class AgentBody(Body):
    """A manifest folder of this server's machine, or a manifest with a `command`."""

    directory: str | None = None
    manifest: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "AgentBody":
        if (self.directory is None) == (self.manifest is None):
            raise ValueError("give exactly one of `directory` and `manifest`")
        return self


class KeyBody(Body):
    """`scopes` or a `role`, which is a set of them; neither: `read`, `run`, `publish`."""

    name: str = Field(default="", max_length=100)
    workspace: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    scopes: list[Scope] | None = Field(default=None, min_length=1)
    role: Role | None = None

    @model_validator(mode="after")
    def _one_right(self) -> "KeyBody":
        if self.scopes is not None and self.role is not None:
            raise ValueError("give `scopes` or a `role`, not both")
        return self

    def granted(self) -> frozenset[Scope]:
        if self.role is not None:
            return ROLES[self.role]
        return frozenset(self.scopes) if self.scopes is not None else USER_SCOPES
