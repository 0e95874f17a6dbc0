"""What one attempt is about, for its inputs, its conversation and its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mentatlab.flows.plan import Plan, PlanNode
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.pins import Pin
from mentatlab.runs.edges import Edge
from mentatlab.runs.folders import OUT, Owner
from mentatlab.runs.lanes import Standing, stream_id
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.values import Values

MAX_CHUNK_BYTES = 256 * 1024
"""A chunk over this is stored, and its record refers to it."""


def edge_of(services: Services, run: RunInfo, node_id: str, pin: Pin) -> Edge:
    """What the node gives at the pin, kept as long as the run."""
    return Edge(
        workspace=run.workspace,
        flow_id=run.flow_id,
        run_id=run.id,
        node_id=node_id,
        pin=pin,
        owner=f"run:{run.id}",
        now_ms=int(services.clock() * 1000),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A checkpoint: `offsets` of the inputs, `heads` of the output lanes when it was read."""

    state: Any
    offsets: Mapping[str, int]
    heads: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """`saved`: the checkpoint that the attempt starts from; `standing`: by lane, which records
    count; `started_at`: when the node's (item's) first attempt began, Unix seconds; `left_out` and
    `ooms` as in `StartNode`; `scratch`: the folder of an attempt; `secrets`: those that the flow
    names, by name."""

    services: Services
    run: RunInfo
    plan: Plan
    node: PlanNode
    values: Values
    item: int | None
    number: int
    started_at: float
    saved: SavedState | None
    standing: Mapping[str, Standing]
    left_out: tuple[str, ...] = ()
    ooms: int = 0
    scratch: Path = Path()
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def program(self) -> AgentProgram:
        manifest = self.node.manifest
        assert manifest is not None
        return self.services.registry.get(f"{manifest.id}:{manifest.version}").entry

    @property
    def owner(self) -> Owner:
        """Of its folder."""
        return self.run.workspace, self.node.type

    @property
    def out_dir(self) -> Path:
        return self.scratch / OUT

    def lane(self, pin: str) -> str:
        return stream_id(self.run.id, self.node.id, pin)

    def edge(self, pin: Pin, *, owner: str = "", below: Path | None = None) -> Edge:
        edge = edge_of(self.services, self.run, self.node.id, pin)
        return replace(edge, owner=owner or edge.owner, below=below)

    def chunk_edge(self, pin: Pin) -> Edge:
        """Of one element that the agent gives for the pin's lane."""
        edge = self.edge(pin, owner=f"stream:{self.lane(pin.name)}", below=self.out_dir)
        return replace(edge, max_inline=MAX_CHUNK_BYTES)
