"""One run's shell: signals in, `decide`, one transaction, commands out; until the run has ended.

Signals that wait together are decided together and committed once. Chunks and logs do not pass
here.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace

import msgspec

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import MentatError
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.cache import ContentCache
from mentatlab.runs.checkpoints import stored
from mentatlab.runs.faults import fault_of
from mentatlab.runs.journal import Journal
from mentatlab.runs.live_attempts import LiveAttempts
from mentatlab.runs.map_nodes import MapNodes
from mentatlab.runs.preparing import Preparation
from mentatlab.runs.run_lanes import RunLanes
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.state import RunState, apply
from mentatlab.runs.store import RunRow
from mentatlab.runs.values import Values

logger = logging.getLogger(__name__)

_UNIT = tuple[str, int | None]
_UNIT_ENDS = ev.NodeSucceeded | ev.NodeCached | ev.NodeSkipped | ev.NodeFailed | ev.NodeCancelled


class Conductor:
    """`state`, `row` and `values` are those of the last commit."""

    def __init__(
        self, services: Services, row: RunRow, plan: Plan, state: RunState, values: Values
    ) -> None:
        self._services, self.plan = services, plan
        self.row, self.state, self.values = row, state, values
        self._info = RunInfo(id=row.id, workspace=row.workspace, flow_id=row.flow_id)
        self._journal = Journal(services, self._info)
        self._inbox: asyncio.Queue[sg.Signal] = asyncio.Queue()
        self._told = self._heard = 0
        self._asking: list[tuple[int, asyncio.Event]] = []
        self._working: set[asyncio.Task[None]] = set()  # what the run's end does not wait for
        self._keys: dict[_UNIT, str] = {}
        self._cache = ContentCache(services, self._info)
        self._lanes = RunLanes(services, self._info, plan)
        self._maps = MapNodes(services, self._info, plan, values, self._lanes, self.tell)
        self._attempts = LiveAttempts(
            services,
            self._info,
            plan,
            values,
            epoch=row.epoch,
            lanes=self._lanes,
            maps=self._maps,
            journal=self._journal,
            unit=lambda node, item: self.state.unit(node, item),
            tell=self.tell,
        )
        self._timers: list[asyncio.TimerHandle] = []
        self._first: Sequence[cmd.Command] = ()
        self._recovered = False
        self._ending = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- what the engine calls

    @property
    def percent(self) -> Mapping[str, float]:
        """The agents' last progress, by node."""
        return self._attempts.percent

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
        self._attempts.saved = await stored(self._services, self._info, self.plan, self.values)
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
            saved = self._attempts.saved.items()
            heads = {node: one.heads for (node, item), one in saved if item is None}
            self.tell(sg.Recovered(at=at, resume_from=heads))
        elif not self.state.started_at:
            self.tell(sg.Begin(at=at))

    async def cancel(self) -> None:
        """Returns when that is committed, or the run has ended otherwise."""
        self.tell(sg.EndAsked(at=self._services.clock(), reason="user_cancel"))
        await self._ending.wait()

    async def run(self) -> None:
        """Until the run has ended; then it is to be closed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                await self._conduct()
        finally:
            self._ending.set()
            self._answer(self._told)
            self._attempts.close()
            for timer in self._timers:
                timer.cancel()

    async def finish_recovered(self) -> None:
        """For a run whose end was committed, but not all that follows from it."""
        await self._journal.catch_up()
        for command in d.stream_ends(self.plan, self.state):
            await self._lanes.end(command)
        await self.close()

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

    async def close(self) -> None:
        """Tell the run's end to those who watch it; nothing is left to be done then."""
        closed = await self._journal.close()
        if not self.ended.done():
            self.ended.set_result(None)
        if closed and self._lanes.complete:
            await self._services.store.close(self._info.id, self.row.epoch)

    # -- the loop

    async def _conduct(self) -> None:
        await self._attempts.prepare()
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
        return replace(signal, consumed=self._attempts.consumed())

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
                self._attempts.saved.pop((event.node, event.item), None)
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
        self._attempts.cancel_all("run_ended")
        for task in self._working:
            task.cancel()
        self._maps.stop_all()
        self._journal.stop()

    # -- commands

    async def _carry_out(self, commands: Sequence[cmd.Command]) -> None:
        for command in commands:
            match command:
                case cmd.StartNode():
                    self._attempts.start(command, self._tasks)
                case cmd.CancelNode():
                    if not self._attempts.cancel(command) and command.item is None:
                        self._maps.stop(command.node)
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
        work = self._attempts.assignment(command, started_at=self._services.clock())
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

    def _schedule(self, command: cmd.ScheduleRetry) -> None:
        due = functools.partial(
            sg.RetryDue, node=command.node, item=command.item, attempt=command.attempt
        )
        self._later(command.at - self._services.clock(), due)

    # -- lanes and items

    async def _reopen(self, command: cmd.OpenStream) -> None:
        """Checkpoints of consumers that read on further than what stands are of no use."""
        self._maps.stop(command.node)
        head = await self._lanes.reopen(command)
        for edge in self.plan.node(command.node).outputs:
            saved = self._attempts.saved.get((edge.target, None))
            if saved is not None and saved.offsets.get(edge.target_pin, 0) > head:
                del self._attempts.saved[edge.target, None]

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
