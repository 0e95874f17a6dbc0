"""What JSON goes in and comes out: the models behind /openapi.json."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mentatlab.gateway.identity import ROLES, USER_SCOPES, Role, Scope

Document = Annotated[
    dict[str, Any] | str,
    Field(description="A flow: the JSON document, or the text of a `.mlab` file (YAML or JSON)."),
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class FlowBody(_Body):
    flow: Document


class RunBody(_Body):
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


class AgentBody(_Body):
    """A manifest folder of this server's machine, or a manifest with a `command`."""

    directory: str | None = None
    manifest: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "AgentBody":
        if (self.directory is None) == (self.manifest is None):
            raise ValueError("give exactly one of `directory` and `manifest`")
        return self


class KeyBody(_Body):
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
