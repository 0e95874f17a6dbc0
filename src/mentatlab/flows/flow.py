"""The flow as its author writes it (`*.mlab`, schemas/flow.schema.json), v1alpha1 and v1beta1."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from mentatlab.flows.document import (
    Count,
    Model,
    Positive,
    PositiveNumber,
    problems_of,
    read_document,
    whole,
)
from mentatlab.protocol.errors import Code, ValidationFailed

NodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100)]
Endpoint = Annotated[str, Field(pattern=r"^[^.\s]+\.[^.\s]+$", max_length=300)]


def _needs(value: Any) -> Any:
    value = whole(value)
    counted = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value in ("all", "any") or counted:
        return value
    raise ValueError("must be all, any or a number of inputs")


class Retry(Model):
    max_attempts: Positive = Field(default=3, alias="maxAttempts")
    base_s: PositiveNumber = 2.0
    cap_s: PositiveNumber = 60.0


class NodeTimeouts(Model):
    start_s: PositiveNumber = 120.0
    attempt_s: PositiveNumber | None = None
    total_s: PositiveNumber | None = None
    heartbeat_s: PositiveNumber | None = None


class Node(Model):
    """`outputs` holds constants: of an input node the value when the run gives none."""

    id: NodeId
    type: str = Field(min_length=1, max_length=400)
    params: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for_each: str | None = Field(default=None, alias="forEach")
    max_parallel: Positive = Field(default=1, alias="maxParallel")
    ordered: bool = True
    on_item_error: Literal["fail_fast", "collect", "skip"] = Field(
        default="fail_fast", alias="onItemError"
    )
    max_failed: Count | None = Field(default=None, alias="maxFailed")
    when: str | None = None
    needs: Annotated[Any, AfterValidator(_needs)] = "all"
    retry: Retry = Retry()
    timeouts: NodeTimeouts = NodeTimeouts()
    cache: Literal["content", "none"] | bool | None = None
    profile: str | None = None
    keep: bool = False


class Edge(Model):
    """`from` and `to` are `node.pin`."""

    source: Endpoint = Field(alias="from")
    target: Endpoint = Field(alias="to")


class Graph(Model):
    nodes: list[Node] = Field(min_length=1)
    edges: list[Edge] = []


class Meta(Model):
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)
    name: str = ""
    version: str = ""
    description: str = ""


RunEventName = Literal[
    "run_finished", "run_succeeded", "run_partial", "run_failed", "run_cancelled"
]
"""`run_finished` is any end."""


class RunWebhook(Model):
    """Who is told of the run's end; `secret` is the name of the one that signs. What the fields may
    hold is checked with the rest of the flow (`webhooks.py`)."""

    url: str
    secret: str
    events: list[str] = ["run_finished"]


class RunConfig(Model):
    secrets: list[str] = []
    webhooks: list[RunWebhook] = []
    timeout_seconds: PositiveNumber = Field(default=3600.0, alias="timeoutSeconds")


class Flow(Model):
    api_version: Literal["v1alpha1", "v1beta1"] = Field(alias="apiVersion")
    kind: Literal["Flow"]
    meta: Meta
    graph: Graph
    layout: dict[str, Any] = {}
    run_config: RunConfig = Field(default=RunConfig(), alias="runConfig")


FORMS = {
    "apiVersion": "write `apiVersion: v1beta1`",
    "kind": "write `kind: Flow`",
    "id": "a letter or digit, then letters, digits, `_` and `-`",
    "meta": "write `meta: {id: my.flow}`",
    "from": "write `node.pin`",
    "to": "write `node.pin`",
    "url": "write an address like https://example.org/hooks/runs",
    "secret": "the name of the secret that signs: `mentatlab secrets set WEBHOOK_SECRET`",
}


def load_flow(source: str | bytes | Mapping[str, Any], *, name: str = "") -> Flow:
    """A flow from YAML or JSON text, or from a document that was read already.

    `Invalid(FLOW_SYNTAX)` naming the line, or `ValidationFailed(FLOW_INVALID)` with every problem.
    """
    document = (
        source
        if isinstance(source, Mapping)
        else read_document(source, code=Code.FLOW_SYNTAX, name=name)
    )
    try:
        return Flow.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error, Code.FLOW_INVALID, FORMS)
        raise ValidationFailed(
            Code.FLOW_INVALID, f"{name or 'the flow'} is not valid", problems
        ) from error
