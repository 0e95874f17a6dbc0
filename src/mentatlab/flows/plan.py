"""A checked flow in the form that the engine executes: nodes in topological order and edges with
adapters.

Compiled from a flow document and the manifests it names, and compiled again from the same two on
recovery; so it is never stored itself.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from mentatlab.flows.manifest import Manifest
from mentatlab.protocol.pins import Pin, PinType

EdgeKind = Literal["value", "stream", "items"]
"""value: the source's final value · stream: records as they come · items: the source of a `forEach`
(a list or a stream; each element starts one invocation)."""

Adapter = Literal["none", "once", "collect"]
"""once: a value becomes a stream of one · collect: a finite stream or list becomes a JSON array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    max_attempts: int = 3
    base_s: float = 2.0
    cap_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    start_s: float = 120.0
    attempt_s: float | None = None  # None: the manifest's resources.timeout_seconds, else 3600
    total_s: float | None = None
    heartbeat_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEdge:
    source: str  # node id
    source_pin: str
    target: str
    target_pin: str
    kind: EdgeKind
    adapter: Adapter = "none"
    source_is_list: bool = False  # items/collect: a list value rather than a stream
    item_type: PinType  # type of what arrives (of one element for streams and lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanNode:
    id: str
    kind: Literal["input", "agent", "output"]
    type: str  # as written in the flow
    manifest: Manifest | None = None  # kind == "agent"
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    inputs: tuple[PlanEdge, ...] = ()
    outputs: tuple[PlanEdge, ...] = ()
    output_pins: tuple[Pin, ...] = ()  # what it gives; for `forEach` nodes of one item
    input_pins: tuple[Pin, ...] = ()
    for_each: str | None = None
    max_parallel: int = 1
    ordered: bool = True
    on_item_error: Literal["fail_fast", "collect", "skip"] = "fail_fast"
    max_failed: int | None = None
    retry: RetryPolicy = RetryPolicy()
    timeouts: Timeouts = Timeouts()
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """One value that a run must or may be given; `name` is `node` or `node.pin`."""

    name: str
    node: str
    pin: Pin


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    flow_id: str
    digest: str  # sha256 of the canonical flow and the manifests
    nodes: tuple[PlanNode, ...]  # topological order
    inputs: tuple[RunInput, ...]
    outputs: tuple[tuple[str, str], ...]  # (node, pin) whose values are the run's outputs
    timeout_s: float = 3600.0
    secrets: tuple[str, ...] = ()

    def node(self, node_id: str) -> PlanNode:
        return next(n for n in self.nodes if n.id == node_id)
