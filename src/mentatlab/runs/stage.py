"""The runs that this process conducts: each in a task of its own, a bounded number at a time, the
others in turn. Also those that it takes over from an engine that lives no more.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import reduce

import msgspec

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import Code, Fenced, MentatError
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.conductor import Conductor
from mentatlab.runs.faults import fault_of, first_of, internal_fault
from mentatlab.runs.intake import Draft, Intake
from mentatlab.runs.limits import Limits, check_queue
from mentatlab.runs.services import Services
from mentatlab.runs.state import RUN_TERMINAL, RunState, apply, initial
from mentatlab.runs.store import RunRow
from mentatlab.runs.values import Values

logger = logging.getLogger(__name__)

_AWAY_S = 1.0
_GIVE_UP_DELAYS_S = (0.1, 0.5, 2.0, 10.0)


class Stage:
    """`live` are the runs' conductors, `tasks` what conducts them, by run id."""

    def __init__(self, services: Services, intake: Intake, limits: Limits) -> None:
        self._services, self._intake, self._limits = services, intake, limits
        self._slots = asyncio.Semaphore(limits.max_runs)
        self.live: dict[str, Conductor] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.closing = False

    async def aclose(self) -> None:
        """Runs are left as they are; the next start goes on with them."""
        self.closing = True
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- runs that begin here

    async def begin(self, draft: Draft) -> str:
        """The run and, when there is room, its first decision are one commit. The id of the run,
        or of that which the same idempotency key made meanwhile."""
        room = not self._slots.locked()
        if not room:
            waiting = await self._services.store.waiting(draft.row.workspace)
            check_queue(self._limits, waiting)
        facts, first = list(draft.facts), _first_decision(draft)
        room = room and not first.state.finished
        created = reduce(apply, draft.facts, initial_state(draft.plan))
        state, whole = (first.state, [*facts, *first.events]) if room else (created, facts)
        row = msgspec.structs.replace(
            draft.row,
            state=str(state.phase),
            started_at=draft.row.created_at if room else None,
            last_seq=len(whole),
        )
        values = Values(draft.plan, row.inputs)
        values.add(facts)
        conductor = Conductor(self._services, row, draft.plan, created, values)
        async with AsyncExitStack() as slot:
            if room:
                await slot.enter_async_context(self._slots)  # at once: no other run sees it free
            await conductor.open_lanes()
            made = await self._services.store.create(row, draft.snapshot, whole, draft.idempotency)
            if made != row.id:
                await self._services.hub.delete_run(row.id)
                await self._intake.discard(row.id)
            elif room:
                conductor.begun(first, facts)
                self._spawn(conductor, self._in_slot(conductor, slot.pop_all()))
            else:
                conductor.created(facts)
                self._spawn(conductor, self._in_turn(conductor))
        return made

    # -- runs that began elsewhere

    async def adopt(self, row: RunRow) -> None:
        """Go on with a run that is this engine's from now on."""
        try:
            await self._take_over(row)
        except Exception as error:  # one run must not keep the server from starting
            logger.exception("run %s cannot be taken over", row.id)
            known = isinstance(error, MentatError)
            await self._close_lost(row, fault_of(error) if known else internal_fault(error))

    async def drop(self, run_id: str) -> None:
        """End its attempts, write nothing more; fine when it is not conducted."""
        if task := self.tasks.get(run_id):
            task.cancel()
            await asyncio.wait([task])

    async def restore(self, row: RunRow) -> Conductor:
        """A run as its log tells it."""
        plan = await self._intake.plan_of(row)
        facts = [event for _, event in await self._services.store.events(row.id)]
        values = Values(plan, row.inputs)
        values.add(facts)
        state = reduce(apply, facts, initial_state(plan))
        return Conductor(self._services, row, plan, state, values)

    async def _take_over(self, row: RunRow) -> None:
        conductor = await self.restore(row)
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

    # -- their tasks

    def _spawn(self, conductor: Conductor, work: Callable[[], Awaitable[None]]) -> None:
        if self.closing:
            return  # the next start goes on with it
        run_id = conductor.row.id
        self.live[run_id] = conductor
        task = asyncio.create_task(self._conduct(conductor, work), name=f"run {run_id}")
        self.tasks[run_id] = task
        task.add_done_callback(lambda done: self._forget(run_id, done))

    def _forget(self, run_id: str, task: "asyncio.Task[None]") -> None:
        if self.tasks.get(run_id) is task:  # not when the run goes on in another
            del self.tasks[run_id], self.live[run_id]

    def _in_turn(self, conductor: Conductor) -> Callable[[], Awaitable[None]]:
        """The run takes signals at once: it can be cancelled while it waits for its slot."""

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                gate = group.create_task(self._hold_slot(conductor))
                await conductor.run()
                gate.cancel()
            await conductor.close()

        return run

    def _in_slot(
        self, conductor: Conductor, slot: AbstractAsyncContextManager[object]
    ) -> Callable[[], Awaitable[None]]:
        """The run has its slot already."""

        async def run() -> None:
            async with slot:
                await conductor.run()
            await conductor.close()

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

    async def _give_up(self, conductor: Conductor, fault: ev.Fault) -> None:
        """The run cannot go on. Recording that may have to wait until the disk has room again."""
        if self.closing:
            return
        logger.exception("run %s cannot go on: %s", conductor.row.id, fault.message)
        if fault.code == Code.DATABASE_UNAVAILABLE:
            await self._go_on_later(conductor.row)
            return
        for delay in itertools.chain(_GIVE_UP_DELAYS_S, itertools.repeat(_GIVE_UP_DELAYS_S[-1])):
            try:
                await conductor.fail(fault)
                return
            except Fenced:
                if not await conductor.reread():
                    return  # it has another owner
            except MentatError:
                await asyncio.sleep(delay)

    async def _go_on_later(self, row: RunRow) -> None:
        """Nothing is wrong with the run: when the database is back, it goes on as its log tells."""
        while not self.closing:
            try:
                found = await self._services.store.get(row.id)
            except MentatError as error:
                if error.code != Code.DATABASE_UNAVAILABLE:
                    return
                await asyncio.sleep(_AWAY_S)
            else:
                if found.epoch == row.epoch:  # else another engine goes on with it
                    await self.adopt(found)
                return


def initial_state(plan: Plan) -> RunState:
    return initial(tuple(node.id for node in plan.nodes))


def _first_decision(draft: Draft) -> d.Decision:
    state = reduce(apply, draft.facts, initial_state(draft.plan))
    return d.decide(draft.plan, state, sg.Begin(at=draft.row.created_at))
