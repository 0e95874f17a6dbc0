"""One run's shell: signals in, `decide`, one transaction, commands out; until the run has ended.

Signals that wait together are decided together and committed once. Chunks and logs do not pass
here.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace

import msgspec

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Draft
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.attempts import NodeAttempt
from mentatlab.runs.cache import ContentCache
from mentatlab.runs.checkpoints import stored
from mentatlab.runs.faults import fault_of
from mentatlab.runs.journal import Journal
from mentatlab.runs.map_nodes import MapNodes
from mentatlab.runs.preparing import Preparation
from mentatlab.runs.run_lanes import RunLanes
from mentatlab.runs.secrets import Mask, masked, masked_note
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.state import RunState, apply
from mentatlab.runs.store import Checkpoint, RunRow
from mentatlab.runs.values import Values

logger = logging.getLogger(__name__)

_UNIT = tuple[str, int | None]
_ATTEMPT = tuple[str, int | None, int]
_UNIT_ENDS = ev.NodeSucceeded | ev.NodeCached | ev.NodeSkipped | ev.NodeFailed | ev.NodeCancelled

UNCONFIRMED_S = 65.0
"""After an attempt was asked to stop (5 s later its process is killed): then it counts as ended,
though nobody could see it."""


class Conductor:
    """`state`, `row` and `values` are those of the last commit; `percent` the agents' last
    progress."""

    def __init__(
        self, services: Services, row: RunRow, plan: Plan, state: RunState, values: Values
    ) -> None:
        self._services, self.plan = services, plan
        self.row, self.state, self.values = row, state, values
        self.percent: dict[str, float] = {}
        self._info = RunInfo(id=row.id, workspace=row.workspace, flow_id=row.flow_id)
        self._journal = Journal(services, self._info)
        self._inbox: asyncio.Queue[sg.Signal] = asyncio.Queue()
        self._told = self._heard = 0
        self._secrets: dict[str, str] = {}
        self._mask = Mask(())
        self._asking: list[tuple[int, asyncio.Event]] = []
        self._attempts: dict[_ATTEMPT, NodeAttempt] = {}
        self._running: dict[_ATTEMPT, asyncio.Task[None]] = {}
        self._working: set[asyncio.Task[None]] = set()  # what the run's end does not wait for
        self._saved: dict[_UNIT, SavedState] = {}
        self._keys: dict[_UNIT, str] = {}
        self._cache = ContentCache(services, self._info)
        self._lanes = RunLanes(services, self._info, plan)
        self._maps = MapNodes(services, self._info, plan, values, self._lanes, self.tell)
        self._timers: list[asyncio.TimerHandle] = []
        self._first: Sequence[cmd.Command] = ()
        self._recovered = False
        self._ending = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- what the engine calls

    async def open_lanes(self) -> None:
        """The run's own lane and every output lane."""
        await self._journal.open()
        await self._lanes.open(self.state)

    def created(self, events: Sequence[ev.RunFact]) -> None:
        """The run was committed with these events, to begin later."""
        self._journal.add(1, events)

    def begun(self, decision: d.Decision, created: Sequence[ev.RunFact]) -> None:
        """The first decision was committed with the run itself."""
        self.state, self._first = decision.state, decision.commands
        self.values.add(decision.events)
        self._journal.add(1, [*created, *decision.events])

    async def recover(self) -> None:
        """Prepare to go on with a run whose owner died; `open_lanes` comes first."""
        await self._journal.catch_up()
        self._saved = await stored(self._services, self._info, self.plan, self.values)
        self._recovered = bool(self.state.started_at)

    def tell(self, signal: sg.Signal) -> None:
        self._inbox.put_nowait(signal)
        self._told += 1

    async def ask(self, signal: sg.Signal) -> None:
        """Tell, and return when what follows is committed, or the run has ended."""
        self.tell(signal)
        if not self._ending.is_set():
            done = asyncio.Event()
            self._asking.append((self._told, done))
            await done.wait()

    def begin(self) -> None:
        """There is room for the run: let it start, or go on after a recovery."""
        at = self._services.clock()
        if self._recovered:
            heads = {n: saved.heads for (n, item), saved in self._saved.items() if item is None}
            self.tell(sg.Recovered(at=at, resume_from=heads))
        elif not self.state.started_at:
            self.tell(sg.Begin(at=at))

    async def cancel(self) -> None:
        """Returns when that is committed, or the run has ended otherwise."""
        self.tell(sg.EndAsked(at=self._services.clock(), reason="user_cancel"))
        await self._ending.wait()

    async def run(self) -> None:
        """Until the run has ended and everything that follows from its end is done."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._conduct()
        finally:
            self._ending.set()
            self._answer(self._told)
            for timer in self._timers:
                timer.cancel()
        await self._close()

    async def finish_recovered(self) -> None:
        """For a run whose end was committed, but not all that follows from it."""
        await self._journal.catch_up()
        for command in d.stream_ends(self.plan, self.state):
            await self._lanes.end(command)
        await self._close()

    async def fail(self, fault: ev.Fault) -> None:
        """End a run that cannot go on as it should; its agents are gone already."""
        if not self.state.finished:
            signal = sg.Broken(at=self._services.clock(), error=fault)
            decision = d.decide(self.plan, self.state, signal)
            await self._commit(decision.state, list(decision.events))
            self.state = decision.state
        await self.finish_recovered()

    async def reread(self) -> bool:
        """What the log has further: a commit may have been cut off before its answer came. False
        when the run has another owner."""
        row = await self._services.store.get(self._info.id)
        if row.epoch != self.row.epoch:
            return False
        found = await self._services.store.events(self._info.id, after=self.row.last_seq)
        facts = [fact for _, fact in found]
        self.state = functools.reduce(apply, facts, self.state)
        self.row = row
        self.values.add(facts)
        return True

    async def _close(self) -> None:
        closed = await self._journal.close()
        if not self.ended.done():
            self.ended.set_result(None)
        if closed and self._lanes.complete:
            await self._services.store.close(self._info.id, self.row.epoch)

    # -- the loop

    async def _conduct(self) -> None:
        self._secrets = await self._services.secrets_for(self._info.workspace, self.plan.secrets)
        self._mask = Mask(self._secrets.values())
        self._journal.start(self._tasks)
        if self.state.started_at:
            self._watch_clock()
        await self._carry_out(self._first)
        while not self.state.finished:
            signals = [await self._inbox.get()]
            while not self._inbox.empty():
                signals.append(self._inbox.get_nowait())
            await self._turn(signals)
        self._abandon()

    async def _turn(self, signals: Sequence[sg.Signal]) -> None:
        state = self.state
        events: list[ev.RunFact] = []
        commands: list[cmd.Command] = []
        for signal in signals:
            decision = d.decide(self.plan, state, self._informed(signal))
            state = decision.state
            events += decision.events
            commands += decision.commands
            self._lanes.cut(decision.commands)
        if events:
            await self._commit(state, events)
        self.state = state
        self._heard += len(signals)
        if state.ending is not None:
            self._ending.set()
        self._answer(self._heard)
        await self._carry_out(commands)

    def _answer(self, heard: int) -> None:
        while self._asking and self._asking[0][0] <= heard:
            self._asking.pop(0)[1].set()

    def _informed(self, signal: sg.Signal) -> sg.Signal:
        """What consumers were given, as it is when the producer's restart is decided."""
        if not isinstance(signal, sg.RetryDue):
            return signal
        consumed = {n: s.offsets for (n, item), s in self._saved.items() if item is None}
        live = {n: a.consumed for (n, item, _), a in self._attempts.items() if item is None}
        return replace(signal, consumed={**consumed, **live})

    async def _commit(self, state: RunState, events: list[ev.RunFact]) -> None:
        row = msgspec.structs.replace(
            self.row,
            state=str(state.phase),
            reason=state.reason,
            started_at=state.started_at or None,
            finished_at=state.finished_at or None,
            last_seq=self.row.last_seq + len(events),
        )
        await self._services.store.append(row, events)
        first = self.row.last_seq + 1
        self.row = row
        self.values.add(events)
        self._journal.add(first, events)
        for event in events:
            if isinstance(event, _UNIT_ENDS):
                self._saved.pop((event.node, event.item), None)
                self._remember(event)
                await self._maps.ended(event)
        if any(isinstance(event, ev.RunStarted) for event in events):
            self._watch_clock()

    def _watch_clock(self) -> None:
        """The run's own timeout."""
        started = self.state.started_at or self._services.clock()
        left = started + self.plan.timeout_s - self._services.clock()
        self._later(left, functools.partial(sg.EndAsked, reason="timeout"))

    def _later(self, delay: float, signal: Callable[..., sg.Signal]) -> None:
        """Tell `signal(at=…)` in `delay` seconds."""

        def tell() -> None:
            self.tell(signal(at=self._services.clock()))

        self._timers.append(asyncio.get_running_loop().call_later(max(0.0, delay), tell))

    def _abandon(self) -> None:
        """What nobody waits for any more: overtaken attempts, readers, appenders."""
        for attempt in self._attempts.values():
            attempt.cancel("run_ended")
        for task in self._working:
            task.cancel()
        self._maps.stop_all()
        self._journal.stop()

    # -- commands

    async def _carry_out(self, commands: Sequence[cmd.Command]) -> None:
        for command in commands:
            match command:
                case cmd.StartNode():
                    self._start(command)
                case cmd.CancelNode():
                    self._cancel(command)
                case cmd.ScheduleRetry():
                    self._schedule(command)
                case cmd.OpenStream():
                    await self._guarded(command.node, self._reopen(command))
                case cmd.EndStream():
                    self._tasks.create_task(self._lanes.end(command))
                case cmd.ReadItems():
                    await self._guarded(command.node, self._read_items(command))
                case cmd.FinishMap():
                    finishing = self._guarded(command.node, self._finish_map(command))
                    self._maps.own(command.node, self._tasks.create_task(finishing))
                case cmd.Prepare():
                    self._work(self._prepare(command))
                case cmd.ScheduleGate():
                    reject = functools.partial(sg.GateDecided, node=command.node, approved=False)
                    self._later(command.at - self._services.clock(), reject)
                case cmd.FinishRun():
                    logger.info("run %s ended %s", self._info.id, command.state)

    def _work(self, work: Coroutine[None, None, None]) -> None:
        """Do it beside the loop; the run's end stops it."""
        task = self._tasks.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    # -- before a start

    async def _prepare(self, command: cmd.Prepare) -> None:
        node, item = self.plan.node(command.node), command.item
        work = self._assignment(command, started_at=self._services.clock())
        preparation = Preparation(work, functools.partial(self._maps.element, node), self._cache)
        answer = await preparation.prepare()
        if preparation.key is not None:
            self._keys[node.id, item] = preparation.key
        self.tell(answer)

    def _remember(self, event: ev.RunFact) -> None:
        key = self._keys.pop((event.node, event.item), None)
        if key is not None and isinstance(event, ev.NodeSucceeded):
            remembering = self._cache.remember(key, event.node, event.item, event.outputs)
            self._tasks.create_task(remembering)

    # -- attempts

    def _start(self, command: cmd.StartNode) -> None:
        unit = self.state.unit(command.node, command.item)
        work = self._assignment(
            command,
            started_at=unit.started_at if unit else self._services.clock(),
            saved=self._saved.pop((command.node, command.item), None),
            ooms=command.ooms,
        )
        folders = self._services.folders
        scratch = folders.reserve(self._services.scratch, work.owner)
        work = replace(work, scratch=scratch)
        attempt = NodeAttempt(
            work,
            element=functools.partial(self._maps.element, work.node),
            tell=self.tell,
            note=self._note,
            save=functools.partial(self._save, command),
        )
        key = (command.node, command.item, command.attempt)
        self._attempts[key] = attempt
        self._running[key] = self._tasks.create_task(self._run_attempt(attempt, command))

    def _assignment(
        self,
        command: cmd.StartNode | cmd.Prepare,
        *,
        started_at: float,
        saved: SavedState | None = None,
        ooms: int = 0,
    ) -> Assignment:
        return Assignment(
            services=self._services,
            run=self._info,
            plan=self.plan,
            node=self.plan.node(command.node),
            values=self.values,
            item=command.item,
            number=command.attempt,
            started_at=started_at,
            saved=saved,
            standing=self._lanes.standing,
            left_out=command.left_out,
            ooms=ooms,
            secrets=self._secrets,
        )

    async def _run_attempt(self, attempt: NodeAttempt, command: cmd.StartNode) -> None:
        try:
            ended = await attempt.run()
        except asyncio.CancelledError:  # the run goes on elsewhere
            attempt.remove()
            raise
        key = (command.node, command.item, command.attempt)
        del self._attempts[key], self._running[key]
        unit = self.state.unit(command.node, command.item)
        if attempt.saved is not None and unit is not None and unit.attempt == command.attempt:
            self._saved[command.node, command.item] = attempt.saved  # before the retry is decided
        self.tell(masked(ended, self._mask))
        await attempt.clear()

    async def _save(self, command: cmd.StartNode, saved: SavedState) -> None:
        checkpoint = Checkpoint(
            node=command.node,
            item=command.item,
            attempt=command.attempt,
            state=saved.state,
            offsets=dict(saved.offsets),
            heads=dict(saved.heads),
        )
        await self._services.store.save_checkpoint(self._info.id, self.row.epoch, checkpoint)

    async def _note(self, node_id: str, drafts: list[Draft]) -> None:
        drafts = [masked_note(draft, self._mask) for draft in drafts]
        for draft in drafts:
            said = draft.values["data"]
            if said["kind"] == "progress" and "percent" in said and draft.item is None:
                self.percent[node_id] = said["percent"]
        await self._journal.log(self.plan.node(node_id), drafts)

    def _schedule(self, command: cmd.ScheduleRetry) -> None:
        due = functools.partial(
            sg.RetryDue, node=command.node, item=command.item, attempt=command.attempt
        )
        self._later(command.at - self._services.clock(), due)

    def _cancel(self, command: cmd.CancelNode) -> None:
        key = (command.node, command.item, command.attempt)
        if key in self._attempts:
            self._attempts[key].cancel(command.reason)
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(UNCONFIRMED_S, self._give_up, key))
        elif command.item is None:
            self._maps.stop(command.node)

    def _give_up(self, key: _ATTEMPT) -> None:
        """Nobody waits for its process any longer."""
        if (attempt := self._attempts.pop(key, None)) is not None:
            self.tell(attempt.unconfirmed())
            self._running.pop(key).cancel()

    # -- lanes and items

    async def _reopen(self, command: cmd.OpenStream) -> None:
        """Checkpoints of consumers that read on further than what stands are of no use."""
        self._maps.stop(command.node)
        head = await self._lanes.reopen(command)
        for edge in self.plan.node(command.node).outputs:
            saved = self._saved.get((edge.target, None))
            if saved is not None and saved.offsets.get(edge.target_pin, 0) > head:
                del self._saved[edge.target, None]

    async def _read_items(self, command: cmd.ReadItems) -> None:
        work = await self._maps.read(command, self.state.nodes[command.node].items)
        work.start(self._tasks)

    async def _finish_map(self, command: cmd.FinishMap) -> None:
        self.tell(await self._maps.finish(command))

    async def _guarded(self, node_id: str, work: Awaitable[None]) -> None:
        """What fails here fails the node, never the run's loop."""
        try:
            await work
        except MentatError as error:
            state, at = self.state.nodes[node_id], self._services.clock()
            fault = fault_of(error)
            if self.plan.node(node_id).for_each is not None:
                self.tell(sg.MapFailed(at=at, node=node_id, attempt=state.attempt, error=fault))
            else:
                self.tell(sg.AttemptEnded(at=at, node=node_id, attempt=state.attempt, error=fault))
