"""The engine: takes runs, has them conducted, tells how they are. The room's parts meet here."""

import asyncio
import contextlib
import logging
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mentatlab.protocol.errors import Code, Conflict, Gone, NotFound, Unavailable
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Runner
from mentatlab.runs import reruns, steering
from mentatlab.runs.conductor import Conductor
from mentatlab.runs.edges import MultimodalEdgeProcessor, Sign
from mentatlab.runs.intake import Draft, Intake, Wish
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.limits import Limits
from mentatlab.runs.maps import standing_records
from mentatlab.runs.ownership import Ownership
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.secrets import SecretsFor, no_secrets
from mentatlab.runs.services import Services
from mentatlab.runs.stage import Stage
from mentatlab.runs.state import RUN_TERMINAL
from mentatlab.runs.store import Request, RunRow, RunStore, unknown_run
from mentatlab.runs.values import run_lanes
from mentatlab.runs.views import RunView, view
from mentatlab.storage.port import Storage
from mentatlab.storage.s3_inputs import S3Inputs
from mentatlab.streams.hub import StreamingConnectionManager

logger = logging.getLogger(__name__)


class Engine:
    """`await start()`, then runs may be submitted; `await aclose()` stops without ending them: what
    had not ended goes on at the next start. `scratch` is the folder for attempts and belongs to the
    engine. `streaming` off = batch mode: a consumer starts when its stream has ended."""

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
        secrets_for: SecretsFor = no_secrets,
        sign: Sign | None = None,
        s3_inputs: S3Inputs | None = None,
        limits: Limits | None = None,
        streaming: bool = True,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.edges = MultimodalEdgeProcessor(storage, sign=sign, s3_inputs=s3_inputs)
        self._storage = storage
        limits = limits or Limits()
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
            secrets_for=secrets_for,
            limits=limits,
            clock=clock,
            chance=chance,
        )
        self._intake = Intake(self._services, storage, limits, streaming=streaming)
        self._stage = Stage(self._services, self._intake, limits)
        self.ownership = Ownership(store, new_id("eng"), self)
        self._keeping: asyncio.Task[None] | None = None

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
        self._stage.closing = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self._stage.aclose()
        await self.ownership.aclose()

    # -- what its ownership calls

    def conducted(self) -> set[str]:
        return set(self._stage.live)

    async def adopt(self, row: RunRow) -> None:
        await self._stage.adopt(row)

    async def drop(self, run_id: str) -> None:
        await self._stage.drop(run_id)

    async def answer(self, request: Request) -> None:
        conductor = self._stage.live.get(request.run_id)
        if conductor is not None and not conductor.state.finished:
            await self._tell(conductor, request.request)

    # -- runs to be made

    async def submit(
        self,
        document: Mapping[str, Any],
        inputs: Mapping[str, Any],
        *,
        workspace: str = "default",
        idempotency_key: str | None = None,
        trigger: str = "",
    ) -> RunView:
        """Check and start a run. `ValidationFailed` with every problem of the flow, or of the
        inputs; `TooLarge`, `Unavailable(TOO_MANY_RUNS)`.

        The same `idempotency_key` with the same request answers the run that it made before.
        `trigger` as in `RunCreated`.
        """
        wish = Wish(
            document=document,
            inputs=inputs,
            workspace=workspace,
            idempotency_key=idempotency_key,
            trigger=trigger,
        )
        return await self._made(wish)

    async def rerun(
        self,
        run_id: str,
        *,
        workspace: str,
        from_node: str = "",
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> RunView:
        """A new run of the same flow with the same inputs, and `params` (by node) changed; agents
        are those that are registered now. With `from_node` only that node, nodes with changed
        parameters, what did not end well, and what depends on these run; the rest is taken from
        this run.

        `Conflict(RUN_ACTIVE)` before its end, `NotFound(UNKNOWN_NODE)`, `Invalid(BAD_PARAM)`.
        """
        row = await self._row(run_id, workspace)
        if row.state not in RUN_TERMINAL:
            raise _active(row, "wait for its end, or cancel it")
        snapshot = await self._services.store.snapshot(row.digest)
        wish = Wish(
            document=reruns.with_params(snapshot.document, params or {}),
            inputs=row.inputs,
            workspace=workspace,
            idempotency_key=idempotency_key,
            origin=run_id,
            from_node=from_node,
        )
        if from_node:
            begun = {from_node, *(params or {})}
            wish = await self._intake.continuing(wish, await self._origin(row), begun)
        return await self._made(wish)

    async def _origin(self, row: RunRow) -> reruns.Origin:
        conductor = await self._stage.restore(row)
        facts = tuple(fact for _, fact in await self._services.store.events(row.id))
        return reruns.Origin(
            run_id=row.id,
            plan=conductor.plan,
            state=conductor.state,
            outputs=reruns.outputs_of(facts),
            facts=facts,
        )

    async def _made(self, wish: Wish) -> RunView:
        if self._stage.closing:
            raise Unavailable(
                Code.UNAVAILABLE, "the engine is closing", hint="try again when the server is up"
            )
        made = await self._intake.known(wish)
        if made is None:
            made = await self.begin(await self._intake.draft(wish, self.ownership.owner))
        return await self.get(made, workspace=wish.workspace)

    async def begin(self, draft: Draft) -> str:
        """The id of the run that the draft has become, or of that which its idempotency key made
        meanwhile. `Unavailable(TOO_MANY_RUNS)`"""
        self._intake.keep(draft.plan)
        try:
            return await self._stage.begin(draft)
        except Unavailable:
            await asyncio.shield(self._intake.discard(draft.row.id))
            raise

    # -- runs under way

    async def cancel(self, run_id: str, *, workspace: str) -> RunView:
        """Ask the run to stop; `wait` tells when it has. `Conflict(RUN_TERMINAL)` when it has
        ended."""
        return await self._steer(run_id, workspace, steering.CANCEL)

    async def pause(self, run_id: str, *, workspace: str) -> RunView:
        """Nothing new starts; what runs goes on to its end. `Conflict(RUN_NOT_RUNNING)`"""
        return await self._steer(run_id, workspace, steering.PAUSE)

    async def resume(self, run_id: str, *, workspace: str) -> RunView:
        return await self._steer(run_id, workspace, steering.RESUME)

    async def decide_gate(
        self,
        run_id: str,
        node: str,
        *,
        approved: bool,
        by: str,
        comment: str = "",
        workspace: str,
    ) -> RunView:
        """`Conflict(GATE_NOT_OPEN)` unless the gate waits for an approval."""
        request = steering.gate(node, approved=approved, by=by, comment=comment)
        return await self._steer(run_id, workspace, request)

    async def _steer(self, run_id: str, workspace: str, request: steering.Request) -> RunView:
        conductor = await self._find(run_id, workspace)
        steering.check(run_id, conductor.state, request)
        if run_id in self._stage.live:
            await self._tell(conductor, request)
        else:
            await self.ownership.ask(run_id, request)
        return await self.get(run_id, workspace=workspace)

    async def _tell(self, conductor: Conductor, request: steering.Request) -> None:
        signal = steering.signal_of(request, self._services.clock())
        if signal is None:
            logger.error("the run %s is asked for %r", conductor.row.id, request)
        else:
            await conductor.ask(signal)

    # -- how they are

    async def get(self, run_id: str, *, workspace: str) -> RunView:
        """`NotFound(RUN_NOT_FOUND)` for an unknown run, or one of another workspace."""
        return await self._view(await self._find(run_id, workspace))

    async def _view(self, conductor: Conductor) -> RunView:
        return view(
            conductor.row,
            conductor.plan,
            conductor.state,
            conductor.values,
            lanes=await self._lane_states(conductor),
            percent=conductor.percent,
        )

    async def _lane_states(self, conductor: Conductor) -> dict[str, str]:
        """Of the run's streams, by id; those of reused nodes are another run's."""
        hub, run_id, lanes = self._services.hub, conductor.row.id, run_lanes(conductor.plan)
        if not lanes:
            return {}
        found = {lane.stream_id: str(lane.state) for lane in await hub.lanes(run_id)}
        for node, pin in lanes:
            name = conductor.values.lane_of(node.id, pin, run_id)
            if name not in found and name != stream_id(run_id, node.id, pin):
                with contextlib.suppress(NotFound, Gone):
                    found[name] = (await hub.lane(name)).state
        return found

    async def delete(self, run_id: str, *, workspace: str) -> None:
        """An ended run with its events and streams; what it stored stays as long as others need it.

        `Conflict(RUN_ACTIVE)` before its end. Can be repeated when it was interrupted: the run's
        row goes last.
        """
        row = await self._row(run_id, workspace)
        if row.state not in RUN_TERMINAL:
            raise _active(row, f"end it first: `mentatlab runs cancel {run_id}`")
        if task := self._stage.tasks.get(run_id):
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
        conductor, task = self._stage.live.get(run_id), self._stage.tasks.get(run_id)
        if conductor is not None and task is not None:
            await self._ended(conductor, task)
            if conductor.state.finished or self._stage.closing:
                return await self._view(conductor)
        await self.ownership.wait(run_id)
        return await self.get(run_id, workspace=row.workspace)

    async def _ended(self, conductor: Conductor, task: "asyncio.Task[None]") -> None:
        """The run has, or somebody else conducts it now."""
        await asyncio.wait([conductor.ended, task], return_when=asyncio.FIRST_COMPLETED)

    async def outputs(self, run_id: str, *, workspace: str) -> dict[str, Any]:
        """By `node.pin`: what there is so far. A stream is told by its id; one that an output node
        collects is an array once it has ended."""
        conductor = await self._find(run_id, workspace)
        found = conductor.values.outputs()
        for name, pin in conductor.plan.outputs:
            collected = conductor.values.is_collected(name, pin)
            value = found.get(f"{name}.{pin}")
            if collected and is_object(value) and "stream_id" in value:
                records = await standing_records(self._services, value["stream_id"])
                found[f"{name}.{pin}"] = [
                    r.payload.get("ref", r.payload.get("data")) for r in records
                ]
        return found

    # -- parts of these

    async def _row(self, run_id: str, workspace: str | None) -> RunRow:
        live = self._stage.live.get(run_id)
        row = live.row if live is not None else await self._services.store.get(run_id)
        if workspace not in (None, row.workspace):
            raise unknown_run(run_id)
        return row

    async def _find(self, run_id: str, workspace: str) -> Conductor:
        row = await self._row(run_id, workspace)
        return self._stage.live.get(run_id) or await self._stage.restore(row)


def _active(row: RunRow, hint: str) -> Conflict:
    return Conflict(Code.RUN_ACTIVE, f"the run {row.id} is {row.state}", hint=hint)
