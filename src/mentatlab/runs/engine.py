"""The engine: takes runs, conducts each in a task of its own, and after a crash goes on with those
that had not ended.
"""

import asyncio
import itertools
import logging
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import msgspec

from mentatlab import __version__
from mentatlab.flows.flow import load_flow
from mentatlab.flows.manifest import Manifest, load_manifest
from mentatlab.flows.plan import Plan, compile_plan
from mentatlab.protocol.errors import Code, Conflict, Fenced, MentatError, NotFound, Unavailable
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Runner
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.conductor import Conductor
from mentatlab.runs.digests import digest_of
from mentatlab.runs.edges import Edge, MultimodalEdgeProcessor, Sign
from mentatlab.runs.faults import fault_of, first_of, internal_fault
from mentatlab.runs.lanes import LOG_PIN, stream_id
from mentatlab.runs.maps import standing_records
from mentatlab.runs.ownership import Ownership
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.services import Services
from mentatlab.runs.state import RUN_TERMINAL, RunState, apply, initial
from mentatlab.runs.store import (
    Idempotency,
    Request,
    RunFilter,
    RunRow,
    RunStore,
    Snapshot,
    unknown_run,
)
from mentatlab.runs.values import Values, check_inputs
from mentatlab.runs.views import RunView, summary, view
from mentatlab.storage.port import Storage
from mentatlab.storage.s3_inputs import S3Inputs
from mentatlab.streams.hub import StreamingConnectionManager

logger = logging.getLogger(__name__)

Views = list[RunView]
Events = list[ev.RunEvent]
LogLines = list[dict[str, Any]]

T = TypeVar("T")
_MAX_PLANS = 256
_GIVE_UP_DELAYS_S = (0.1, 0.5, 2.0, 10.0)

MAX_RUNS = 64
"""Runs conducted at a time; others wait as `queued`."""


class _Compiled(NamedTuple):
    """A flow document's plan, as long as the agents that it names are these."""

    plan: Plan
    snapshot: Snapshot
    used: Mapping[str, Manifest]


class Engine:
    """`await start()`, then runs may be submitted; `await aclose()` stops without ending them: what
    had not ended goes on at the next start. `scratch` is the folder for attempts and belongs to the
    engine."""

    def __init__(
        self,
        *,
        store: RunStore,
        hub: StreamingConnectionManager,
        storage: Storage,
        runner: Runner,
        registry: AgentRegistry,
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        secret: bytes = b"",
        url: str = "",
        sign: Sign | None = None,
        s3_inputs: S3Inputs | None = None,
        max_runs: int = MAX_RUNS,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.edges = MultimodalEdgeProcessor(storage, sign=sign, s3_inputs=s3_inputs)
        self._storage = storage
        self._services = Services(
            store=store,
            hub=hub,
            edges=self.edges,
            runner=runner,
            registry=registry,
            scratch=scratch,
            environment=environment or {},
            secret=secret,
            url=url,
            clock=clock,
            chance=chance,
        )
        self._owner = new_id("eng")
        self.ownership = Ownership(store, self._owner, self)
        self._keeping: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(max_runs)
        self._live: dict[str, Conductor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._plans: dict[str, Plan] = {}
        self._compiled: dict[str, _Compiled] = {}
        self._closing = False

    async def __aenter__(self) -> "Engine":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- life

    async def start(self) -> None:
        """Take over the runs that a former process left, and where engines share a store, those of
        others that live no more."""
        await asyncio.to_thread(shutil.rmtree, self._services.scratch, ignore_errors=True)
        await self.ownership.start()
        self._keeping = asyncio.create_task(self.ownership.keep(), name="ownership")

    async def aclose(self) -> None:
        self._closing = True
        tasks = [*self._tasks.values(), *([self._keeping] if self._keeping else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ownership.aclose()

    # -- what its ownership calls

    def conducted(self) -> set[str]:
        return set(self._live)

    async def adopt(self, row: RunRow) -> None:
        try:
            await self._take_over(row)
        except Exception as error:  # one run must not keep the server from starting
            logger.exception("run %s cannot be taken over", row.id)
            known = isinstance(error, MentatError)
            await self._close_lost(row, fault_of(error) if known else internal_fault(error))

    async def drop(self, run_id: str) -> None:
        if task := self._tasks.get(run_id):
            task.cancel()
            await asyncio.wait([task])
            await self._clear(run_id)

    async def answer(self, request: Request) -> None:
        conductor = self._live.get(request.run_id)
        if conductor is None or conductor.state.finished:
            return
        match request.request["verb"]:
            case "cancel":
                await conductor.cancel()
            case verb:
                logger.error("the run %s is asked for %r", request.run_id, verb)

    async def _take_over(self, row: RunRow) -> None:
        conductor = await self._restore(row)
        await conductor.open_lanes()
        if row.state in RUN_TERMINAL:
            self._spawn(conductor, conductor.finish_recovered)
        else:
            await conductor.recover()
            self._spawn(conductor, self._in_turn(conductor))

    async def _close_lost(self, row: RunRow, fault: ev.Fault) -> None:
        """A run whose plan this version cannot make any more."""
        if row.state not in RUN_TERMINAL:
            now = self._services.clock()
            end = ev.RunFinished(at=now, state="failed", reason="engine_lost", error=fault)
            row = msgspec.structs.replace(
                row,
                state="failed",
                reason=end.reason,
                finished_at=now,
                last_seq=row.last_seq + 1,
            )
            await self._services.store.append(row, [end])
        for lane in await self._services.hub.lanes(row.id):
            await self._services.hub.end_stream(lane.stream_id, error=("internal", fault.message))
        await self._services.store.close(row.id, row.epoch)

    async def _restore(self, row: RunRow) -> Conductor:
        """A run as its log tells it."""
        plan = await self._plan_of(row)
        facts = [event for _, event in await self._services.store.events(row.id)]
        values = Values(plan, row.inputs)
        values.add(facts)
        state = reduce(apply, facts, _initial(plan))
        return Conductor(self._services, row, plan, state, values)

    async def _plan_of(self, row: RunRow) -> Plan:
        plan = self._plans.get(row.digest)
        if plan is None:
            plan = plan_of(await self._services.store.snapshot(row.digest))
            self._remember(plan)
        return plan

    def _remember(self, plan: Plan) -> None:
        _put(self._plans, plan.digest, plan)

    def _spawn(self, conductor: Conductor, work: Callable[[], Awaitable[None]]) -> None:
        if self._closing:
            return  # the next start goes on with it
        run_id = conductor.row.id
        self._live[run_id] = conductor
        task = asyncio.create_task(self._conduct(conductor, work), name=f"run {run_id}")
        self._tasks[run_id] = task
        task.add_done_callback(lambda _: self._forget(run_id))

    def _forget(self, run_id: str) -> None:
        self._tasks.pop(run_id, None)
        self._live.pop(run_id, None)

    def _in_turn(self, conductor: Conductor) -> Callable[[], Awaitable[None]]:
        """The run takes signals at once: it can be cancelled while it waits for its slot."""

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                gate = group.create_task(self._hold_slot(conductor))
                await conductor.run()
                gate.cancel()

        return run

    def _in_slot(
        self, conductor: Conductor, slot: AbstractAsyncContextManager[object]
    ) -> Callable[[], Awaitable[None]]:
        """The run has its slot already."""

        async def run() -> None:
            async with slot:
                await conductor.run()

        return run

    async def _hold_slot(self, conductor: Conductor) -> None:
        async with self._slots:
            conductor.begin()
            await asyncio.Event().wait()

    async def _conduct(self, conductor: Conductor, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except* MentatError as group:
            await self._give_up(conductor, fault_of(first_of(group)))
        except* Exception as group:  # noqa: BLE001 (a bug in one run must not end the others)
            await self._give_up(conductor, internal_fault(first_of(group)))
        await self._clear(conductor.row.id)

    async def _clear(self, run_id: str) -> None:
        folder = self._services.scratch / run_id
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _give_up(self, conductor: Conductor, fault: ev.Fault) -> None:
        """The run cannot go on. Recording that may have to wait until the disk has room again."""
        if self._closing:
            return
        logger.exception("run %s cannot go on: %s", conductor.row.id, fault.message)
        for delay in itertools.chain(_GIVE_UP_DELAYS_S, itertools.repeat(_GIVE_UP_DELAYS_S[-1])):
            try:
                await conductor.fail(fault)
                return
            except Fenced:
                if not await conductor.reread():
                    return  # it has another owner
            except MentatError:
                await asyncio.sleep(delay)

    # -- use

    async def submit(
        self,
        document: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        workspace: str = "default",
        idempotency_key: str | None = None,
    ) -> RunView:
        """Check and start a run. `ValidationFailed` with every problem of the flow, or of the
        inputs.

        The same `idempotency_key` with the same request answers the run that it made before.
        """
        if self._closing:
            raise Unavailable(
                Code.UNAVAILABLE, "the engine is closing", hint="try again when the server is up"
            )
        idempotency = idempotency_key and Idempotency(
            idempotency_key, digest_of([document, inputs])
        )
        if idempotency:
            made = await self._services.store.find(workspace, idempotency)
            if made is not None:
                return await self.get(made, workspace=workspace)
        plan, snapshot, _ = self._compile(document)
        check_inputs(plan, inputs)
        run_id = new_id("rn")
        try:
            stored = await self._stored_inputs(plan, inputs, run_id, workspace)
        except BaseException:
            await asyncio.shield(self._storage.release(f"run:{run_id}"))
            raise
        row = RunRow(
            id=run_id,
            workspace=workspace,
            flow_id=plan.flow_id,
            digest=snapshot.digest,
            engine_version=__version__,
            inputs=stored,
            state="created",
            created_at=self._services.clock(),
            owner=self._owner,
        )
        made = await self._create(plan, row, snapshot, idempotency or None)
        return await self.get(made, workspace=workspace)

    async def get(self, run_id: str, *, workspace: str) -> RunView:
        """`NotFound(RUN_NOT_FOUND)` for an unknown run, or one of another workspace."""
        return await self._view(await self._find(run_id, workspace))

    async def _view(self, conductor: Conductor) -> RunView:
        lanes = await self._services.hub.lanes(conductor.row.id)
        return view(
            conductor.row,
            conductor.plan,
            conductor.state,
            conductor.values,
            lanes={lane.stream_id: lane.state for lane in lanes},
            percent=conductor.percent,
        )

    async def list(
        self,
        workspace: str,
        *,
        state: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Views:
        """Newest first; `before` is the id of the last run of the page before."""
        wanted = RunFilter(states=(state,) if state else ())
        rows = await self._services.store.list(workspace, filter=wanted, limit=limit, before=before)
        return [summary(row) for row in rows]

    async def cancel(self, run_id: str, *, workspace: str) -> RunView:
        """Ask the run to stop; `wait` tells when it has. `Conflict(RUN_TERMINAL)` when it has
        ended."""
        conductor = await self._find(run_id, workspace)
        if conductor.state.finished:
            raise Conflict(
                Code.RUN_TERMINAL,
                f"the run {run_id} has ended: {conductor.row.state}",
                hint="an end is final; start a new run to do the work again",
            )
        if run_id in self._live:
            await conductor.cancel()
        else:
            await self.ownership.ask(run_id, {"verb": "cancel"})
        return await self.get(run_id, workspace=workspace)

    async def delete(self, run_id: str, *, workspace: str) -> None:
        """An ended run with its events and streams; what it stored stays as long as others need it.

        `Conflict(RUN_ACTIVE)` before its end. Can be repeated when it was interrupted: the run's
        row goes last.
        """
        row = await self._row(run_id, workspace)
        if row.state not in RUN_TERMINAL:
            raise Conflict(
                Code.RUN_ACTIVE,
                f"the run {run_id} is {row.state}",
                hint=f"end it first: `mentatlab runs cancel {run_id}`",
            )
        if task := self._tasks.get(run_id):
            await asyncio.wait([task])  # it is putting its things away
        elif not row.closed:
            await self.ownership.wait(run_id)  # another engine is
        for lane in await self._services.hub.lanes(run_id):
            await self._storage.release(f"stream:{lane.stream_id}")
        await self._storage.release(f"run:{run_id}")
        await self._services.hub.delete_run(run_id)
        await self._services.store.delete(run_id)

    async def wait(self, run_id: str, *, workspace: str | None = None) -> RunView:
        """The run when it has ended, with its streams. Cancelling the waiter does not touch the
        run."""
        row = await self._row(run_id, workspace)
        conductor, task = self._live.get(run_id), self._tasks.get(run_id)
        if conductor is not None and task is not None:
            await self._ended(conductor, task)
            if conductor.state.finished or self._closing:
                return await self._view(conductor)
        await self.ownership.wait(run_id)
        return await self.get(run_id, workspace=row.workspace)

    async def _ended(self, conductor: Conductor, task: "asyncio.Task[None]") -> None:
        """The run has, or somebody else conducts it now."""
        ended = asyncio.create_task(conductor.ended.wait())
        try:
            await asyncio.wait([ended, task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()

    async def outputs(self, run_id: str, *, workspace: str) -> dict[str, Any]:
        """By `node.pin`: what there is so far. A stream is told by its id; one that an output node
        collects is an array once it has ended."""
        conductor = await self._find(run_id, workspace)
        found = conductor.values.outputs()
        for name, pin in conductor.plan.outputs:
            edges = conductor.plan.node(name).inputs
            collected = any(e.target_pin == pin and e.adapter == "collect" for e in edges)
            value = found.get(f"{name}.{pin}")
            if collected and is_object(value) and "stream_id" in value:
                records = await standing_records(self._services, value["stream_id"])
                found[f"{name}.{pin}"] = [
                    r.payload.get("ref", r.payload.get("data")) for r in records
                ]
        return found

    async def events(self, run_id: str, *, workspace: str, after: int = 0) -> Events:
        await self._row(run_id, workspace)
        facts = await self._services.store.events(run_id, after)
        return [ev.public(run_id, seq, event) for seq, event in facts]

    async def logs(self, run_id: str, node_id: str, *, workspace: str) -> LogLines:
        """What the node's agents logged and reported since this server started, in order:
        `{"kind": "log" | "progress" | "metric", "at", "attempt", "item"?, …}`"""
        conductor = await self._find(run_id, workspace)
        if node_id not in conductor.state.nodes:
            raise NotFound(
                Code.NOT_FOUND,
                f"the run {run_id} has no node {node_id}",
                hint=f"its nodes are {', '.join(conductor.state.nodes)}",
            )
        name = stream_id(run_id, node_id, LOG_PIN)
        if name not in {lane.stream_id for lane in await self._services.hub.lanes(run_id)}:
            return []
        records = await standing_records(self._services, name)
        return [
            {
                **r.payload["data"],
                "at": r.timestamp,
                "attempt": r.attempt,
                **({} if r.item is None else {"item": r.item}),
            }
            for r in records
        ]

    # -- parts of these

    def _compile(self, document: Mapping[str, Any]) -> _Compiled:
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

        plan = compile_plan(load_flow(document), look_up)
        manifests = {name: manifest.document() for name, manifest in used.items()}
        self._remember(plan)
        compiled = _Compiled(plan, Snapshot(plan.digest, dict(document), manifests), used)
        _put(self._compiled, digest, compiled)
        return compiled

    async def _stored_inputs(
        self, plan: Plan, inputs: Mapping[str, Any], run_id: str, workspace: str
    ) -> dict[str, Any]:
        """References are checked and gain the run as an owner; large values are stored."""
        stored: dict[str, Any] = {}
        for name, value in inputs.items():
            wanted = plan.input(name)
            assert wanted is not None
            edge = Edge(
                workspace=workspace,
                flow_id=plan.flow_id,
                run_id=run_id,
                node_id=wanted.node,
                pin=wanted.pin,
                owner=f"run:{run_id}",
                now_ms=int(self._services.clock() * 1000),
            )
            stored[name] = await self.edges.take_input(edge, value)
        return stored

    async def _create(
        self, plan: Plan, row: RunRow, snapshot: Snapshot, idempotency: Idempotency | None
    ) -> str:
        """The run and, when there is room, its first decision are one commit."""
        at = row.created_at
        created = ev.RunCreated(at=at, flow_id=plan.flow_id, digest=plan.digest)
        state = apply(_initial(plan), created)
        now = d.decide(plan, state, sg.Begin(at=at))
        room = not self._slots.locked() and not now.state.finished
        facts = [created, *now.events] if room else [created]
        row = msgspec.structs.replace(
            row,
            state=str(now.state.phase if room else state.phase),
            started_at=at if room else None,
            last_seq=len(facts),
        )
        conductor = Conductor(self._services, row, plan, _initial(plan), Values(plan, row.inputs))
        async with AsyncExitStack() as slot:
            if room:
                await slot.enter_async_context(self._slots)  # at once: no other run sees it free
            await conductor.open_lanes()
            made = await self._services.store.create(row, snapshot, facts, idempotency)
            if made != row.id:
                await self._services.hub.delete_run(row.id)
                await self._storage.release(f"run:{row.id}")
            elif room:
                conductor.begun(now, [created])
                self._spawn(conductor, self._in_slot(conductor, slot.pop_all()))
            else:
                conductor.created([created])
                self._spawn(conductor, self._in_turn(conductor))
        return made

    async def _row(self, run_id: str, workspace: str | None) -> RunRow:
        live = self._live.get(run_id)
        row = live.row if live is not None else await self._services.store.get(run_id)
        if workspace not in (None, row.workspace):
            raise unknown_run(run_id)
        return row

    async def _find(self, run_id: str, workspace: str) -> Conductor:
        row = await self._row(run_id, workspace)
        return self._live.get(run_id) or await self._restore(row)


def plan_of(snapshot: Snapshot) -> Plan:
    """A run's plan from what was stored with it, whatever agents are registered now."""
    manifests = {name: load_manifest(found) for name, found in snapshot.manifests.items()}
    return compile_plan(load_flow(snapshot.document), manifests.get)


def _put(cache: dict[str, T], key: str, value: T) -> None:
    while len(cache) >= _MAX_PLANS:
        del cache[next(iter(cache))]
    cache[key] = value


def _initial(plan: Plan) -> RunState:
    return initial(tuple(node.id for node in plan.nodes))
