"""From what somebody asks for to a run that can be made: checked, compiled, its inputs taken in."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from mentatlab import __version__
from mentatlab.flows.flow import load_flow
from mentatlab.flows.manifest import Manifest, load_manifest
from mentatlab.flows.plan import Plan, compile_plan
from mentatlab.protocol.errors import Gone, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.runs import events as ev
from mentatlab.runs.batch import batched
from mentatlab.runs.digests import digest_of
from mentatlab.runs.edges import Edge
from mentatlab.runs.limits import Limits, check_input_size
from mentatlab.runs.reruns import (
    Origin,
    again,
    check_from_node,
    outputs_in,
    streams_of,
    taken_over,
)
from mentatlab.runs.services import Services
from mentatlab.runs.store import Idempotency, RunRow, Snapshot
from mentatlab.runs.values import check_inputs
from mentatlab.storage.port import Storage

T = TypeVar("T")
_MAX_PLANS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants to be run. `origin`, `from_node`, `trigger` as in `RunCreated`; `done`
    are the facts of an origin that the run begins with."""

    document: Mapping[str, Any]
    inputs: Mapping[str, Any]
    workspace: str
    idempotency_key: str | None = None
    origin: str = ""
    from_node: str = ""
    trigger: str = ""
    done: Sequence[ev.RunFact] = ()

    @property
    def idempotency(self) -> Idempotency | None:
        """Everything that changes what the run is belongs to the request."""
        if not self.idempotency_key:
            return None
        asked = [self.document, self.inputs]
        made_by = [self.origin, self.from_node, self.trigger]
        request = digest_of([*asked, *made_by] if any(made_by) else asked)
        return Idempotency(self.idempotency_key, request)


class Draft(NamedTuple):
    """A run that is not there yet; `facts` begin its log."""

    plan: Plan
    row: RunRow
    snapshot: Snapshot
    facts: tuple[ev.RunFact, ...]
    idempotency: Idempotency | None


class _Compiled(NamedTuple):
    """A flow document's plan, as long as the agents that it names are these."""

    plan: Plan
    snapshot: Snapshot
    used: Mapping[str, Manifest]


class Intake:
    """`streaming` off: consumers of a stream wait for its end (batch mode)."""

    def __init__(
        self, services: Services, storage: Storage, limits: Limits, *, streaming: bool = True
    ) -> None:
        self._services, self._storage = services, storage
        self._limits, self._streaming = limits, streaming
        self._plans: dict[str, Plan] = {}
        self._compiled: dict[str, _Compiled] = {}

    async def known(self, wish: Wish) -> str | None:
        """The run that was made for this wish before. `Conflict(IDEMPOTENCY_CONFLICT)`"""
        idempotency = wish.idempotency
        if idempotency is None:
            return None
        return await self._services.store.find(wish.workspace, idempotency)

    async def draft(self, wish: Wish, owner: str) -> Draft:
        """`ValidationFailed` with every problem of the flow, or of the inputs; `TooLarge`."""
        check_input_size(self._limits, wish.inputs)
        plan, snapshot, _ = self.compile(wish.document)
        check_inputs(plan, wish.inputs)
        named = {*plan.secrets, *plan.webhook_secrets}
        await self._services.secrets_for(wish.workspace, named)  # they are there
        run_id, at = new_id("rn"), self._services.clock()
        stored = await self._owned_inputs(plan, wish, run_id)
        row = RunRow(
            id=run_id,
            workspace=wish.workspace,
            flow_id=plan.flow_id,
            digest=snapshot.digest,
            engine_version=__version__,
            inputs=stored,
            state="created",
            created_at=at,
            owner=owner,
            origin=wish.origin,
            from_node=wish.from_node,
            trigger=wish.trigger,
        )
        created = ev.RunCreated(
            at=at,
            flow_id=plan.flow_id,
            digest=plan.digest,
            origin=wish.origin,
            from_node=wish.from_node,
            trigger=wish.trigger,
        )
        for fact in wish.done:
            await self._services.edges.own(outputs_in(fact), wish.workspace, f"run:{run_id}")
        return Draft(plan, row, snapshot, (created, *wish.done), wish.idempotency)

    async def continuing(self, wish: Wish, origin: Origin, begun: Collection[str]) -> Wish:
        """The wish with what its run takes over from the origin: whatever is still there."""
        plan, _, _ = self.compile(wish.document)
        check_from_node(plan, wish.from_node)
        lost = await self._lost(plan, origin, wish.workspace)
        redone = again(plan, origin, begun, lost=lost)
        done = taken_over(plan, origin, redone, at=self._services.clock())
        return replace(wish, done=done)

    async def _lost(self, plan: Plan, origin: Origin, workspace: str) -> set[str]:
        """Nodes whose streams or media of that time are gone."""
        lost: set[str] = set()
        for node in plan.nodes:
            try:
                await self._services.edges.check_there(origin.outputs.get(node.id), workspace)
                for name in streams_of(origin, node):
                    await self._services.hub.lane(name)
            except (NotFound, Gone):
                lost.add(node.id)
        return lost

    async def discard(self, run_id: str) -> None:
        """What a draft that was not made a run of has taken in."""
        await self._storage.release(f"run:{run_id}")

    def compile(self, document: Mapping[str, Any]) -> _Compiled:
        digest, registry = digest_of(document), self._services.registry
        known = self._compiled.get(digest)
        if known and all(registry.manifest(name) is used for name, used in known.used.items()):
            return known
        used: dict[str, Manifest] = {}

        def look_up(name: str) -> Manifest | None:
            manifest = registry.manifest(name)
            if manifest is not None:
                used[name] = manifest
            return manifest

        plan = self._mode(compile_plan(load_flow(document), look_up))
        manifests = {name: manifest.document() for name, manifest in used.items()}
        compiled = _Compiled(plan, Snapshot(plan.digest, dict(document), manifests), used)
        _put(self._compiled, digest, compiled)
        return compiled

    async def plan_of(self, row: RunRow) -> Plan:
        """A run's plan from what was stored with it, whatever agents are registered now."""
        plan = self._plans.get(row.digest)
        if plan is None:
            plan = self._mode(plan_of(await self._services.store.snapshot(row.digest)))
            self.keep(plan)
        return plan

    def keep(self, plan: Plan) -> None:
        """The plan of a run's digest, as long as there is room."""
        _put(self._plans, plan.digest, plan)

    def _mode(self, plan: Plan) -> Plan:
        return plan if self._streaming else batched(plan)

    async def _owned_inputs(self, plan: Plan, wish: Wish, run_id: str) -> dict[str, Any]:
        """References are checked and gain the run as an owner; large values are stored."""
        try:
            return {
                name: await self._take(plan, wish.workspace, run_id, name, value)
                for name, value in wish.inputs.items()
            }
        except BaseException:
            await asyncio.shield(self.discard(run_id))
            raise

    async def _take(self, plan: Plan, workspace: str, run_id: str, name: str, value: Any) -> Any:
        wanted = plan.input(name)
        assert wanted is not None, "the inputs were checked"
        edge = Edge(
            workspace=workspace,
            flow_id=plan.flow_id,
            run_id=run_id,
            node_id=wanted.node,
            pin=wanted.pin,
            owner=f"run:{run_id}",
            now_ms=int(self._services.clock() * 1000),
        )
        return await self._services.edges.take_input(edge, value)


def plan_of(snapshot: Snapshot) -> Plan:
    manifests = {name: load_manifest(found) for name, found in snapshot.manifests.items()}
    return compile_plan(load_flow(snapshot.document), manifests.get)


def _put(cache: dict[str, T], key: str, value: T) -> None:
    while len(cache) >= _MAX_PLANS:
        del cache[next(iter(cache))]
    cache[key] = value
