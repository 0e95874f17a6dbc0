"""One run's shell: signals in, `decide`, one transaction, commands out; until the run has ended.

Signals that wait together are decided together and committed once. Chunks and logs do not pass
here.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from mentatlab.flows.plan import Plan, PlanNode
from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.pins import BY_REFERENCE, Pin, PinType
from mentatlab.protocol.records import Draft, EndReason
from mentatlab.runs import commands as cmd
from mentatlab.runs import decide as d
from mentatlab.runs import events as ev
from mentatlab.runs import signals as sg
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.attempts import NodeAttempt
from mentatlab.runs.edges import Edge
from mentatlab.runs.elements import Element, elements
from mentatlab.runs.faults import fault_of
from mentatlab.runs.journal import Journal
from mentatlab.runs.lanes import Standing, stream_id
from mentatlab.runs.lookups import items_edge, lane_pins
from mentatlab.runs.maps import MapOutput, MapSource, MapWork, head_of_item, listed
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.state import NodePhase, RunState, apply
from mentatlab.runs.store import RunRow
from mentatlab.runs.values import Values, run_lanes, stream_value

logger = logging.getLogger(__name__)

_UNIT = tuple[str, int | None]
_UNIT_ENDS = ev.NodeSucceeded | ev.NodeFailed | ev.NodeCancelled


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
        self._asking: list[tuple[int, asyncio.Event]] = []
        self._attempts: dict[tuple[str, int | None, int], NodeAttempt] = {}
        self._saved: dict[_UNIT, SavedState] = {}
        self._standing: dict[str, Standing] = {}
        self._maps: dict[str, MapWork] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._first: Sequence[cmd.Command] = ()
        self._recovered = False
        self._ending = asyncio.Event()
        self.ended = asyncio.Event()
        self._complete = True

    # -- what the engine calls

    async def open_lanes(self) -> None:
        """The run's own lane and every output lane; those that are there stay as they are. What a
        node gave in another run stands in the lanes of that run."""
        await self._journal.open()
        for node, pin in run_lanes(self.plan):
            if self.state.nodes[node.id].phase is NodePhase.CACHED:
                continue
            session = await self._services.hub.create_stream(
                node.type,
                pin,
                workspace=self._info.workspace,
                run_id=self._info.id,
                node_id=node.id,
                mime_type=_mime(node, pin),
                stream_id=stream_id(self._info.id, node.id, pin),
            )
            ranges = session.lane.standing
            self._standing[session.stream_id] = Standing(ranges) if ranges else Standing()

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
            self.tell(sg.Recovered(at=at))
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
            await self._end_stream(command)
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
        self.ended.set()
        if closed and self._complete:
            await self._services.store.close(self._info.id, self.row.epoch)

    # -- the loop

    async def _conduct(self) -> None:
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
            self._cut(decision.commands)
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

    def _cut(self, commands: Sequence[cmd.Command]) -> None:
        for command in commands:
            if isinstance(command, cmd.OpenStream):
                keep = 0 if command.item else command.resume_from
                self._standing[self._lane(command.node, command.pin)].cut(keep)

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
                if event.item is not None and event.node in self._maps:
                    await self._maps[event.node].ended(event)
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
        for work in self._maps.values():
            work.stop()
        self._journal.stop()

    # -- commands

    async def _carry_out(self, commands: Sequence[cmd.Command]) -> None:
        for command in commands:
            match command:
                case cmd.StartNode():
                    self._start(command)
                case cmd.CancelNode():
                    key = (command.node, command.item, command.attempt)
                    if key in self._attempts:
                        self._attempts[key].cancel(command.reason)
                case cmd.ScheduleRetry():
                    self._schedule(command)
                case cmd.OpenStream():
                    await self._guarded(command.node, self._reopen(command))
                case cmd.EndStream():
                    self._tasks.create_task(self._end_stream(command))
                case cmd.ReadItems():
                    await self._guarded(command.node, self._read_items(command))
                case cmd.FinishMap():
                    task = self._tasks.create_task(
                        self._guarded(command.node, self._finish_map(command))
                    )
                    self._maps[command.node].own(task)
                case cmd.FinishRun():
                    logger.info("run %s ended %s", self._info.id, command.state)

    def _start(self, command: cmd.StartNode) -> None:
        node, unit = self.plan.node(command.node), self.state.unit(command.node, command.item)
        work = Assignment(
            services=self._services,
            run=self._info,
            plan=self.plan,
            node=node,
            values=self.values,
            item=command.item,
            number=command.attempt,
            started_at=unit.started_at if unit else self._services.clock(),
            saved=self._saved.pop((command.node, command.item), None),
            standing=self._standing,
        )
        attempt = NodeAttempt(
            work,
            element=lambda item: self._element(node, item),
            tell=self.tell,
            note=self._note,
        )
        self._attempts[command.node, command.item, command.attempt] = attempt
        self._tasks.create_task(self._run_attempt(attempt, command))

    async def _run_attempt(self, attempt: NodeAttempt, command: cmd.StartNode) -> None:
        ended = await attempt.run()
        del self._attempts[command.node, command.item, command.attempt]
        unit = self.state.unit(command.node, command.item)
        if attempt.saved is not None and unit is not None and unit.attempt == command.attempt:
            self._saved[command.node, command.item] = attempt.saved  # before the retry is decided
        self.tell(ended)
        await attempt.clear()

    async def _note(self, node_id: str, drafts: list[Draft]) -> None:
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

    # -- lanes

    def _lane(self, node: str, pin: str) -> str:
        return stream_id(self._info.id, node, pin)

    async def _reopen(self, command: cmd.OpenStream) -> None:
        """The lane's next attempt; checkpoints of consumers that read on further are of no use."""
        name, head = self._lane(command.node, command.pin), command.resume_from
        if (work := self._maps.get(command.node)) is not None:
            work.stop()
        if command.item:
            head = await head_of_item(self._services, name, command.item)
        started = await self._services.hub.start_attempt(
            name, attempt=command.attempt, resume_from=head
        )
        standing = self._standing[name]
        standing.cut(head)
        standing.reopen(started.last)
        for edge in self.plan.node(command.node).outputs:
            saved = self._saved.get((edge.target, None))
            if saved is not None and saved.offsets.get(edge.target_pin, 0) > head:
                del self._saved[edge.target, None]

    async def _end_stream(self, command: cmd.EndStream) -> None:
        if command.outcome != "complete" and command.node in self._maps:
            self._maps[command.node].stop()
        error = None
        if command.error is not None:
            text = f"{command.error.code}: {command.error.message}"
            error = (_STREAM_ERRORS.get(command.error.code, "agent_error"), text)
        reason: EndReason = "cancelled" if command.outcome == "cancelled" else "complete"
        name = self._lane(command.node, command.pin)
        if name not in self._standing:
            return  # another run's, which has ended it
        try:
            await self._services.hub.end_stream(name, reason=reason, error=error)
        except MentatError:
            logger.exception("the stream %s could not be ended; the next start will", name)
            self._complete = False

    # -- forEach

    async def _read_items(self, command: cmd.ReadItems) -> None:
        node = self.plan.node(command.node)
        if (old := self._maps.get(node.id)) is not None:
            old.stop()
        source = MapSource(self._elements_of(node, command.after), node.max_parallel)
        output = None
        if lane_pins(node):
            output = MapOutput(self._services, self._info, node, attempt=command.attempt)
            if command.after > 0:
                await output.recover(self.state.nodes[node.id].items)
        work = MapWork(self._services, node, command.attempt, source, output, self.tell)
        self._maps[node.id] = work
        work.start(self._tasks)

    async def _elements_of(self, node: PlanNode, after: int) -> AsyncGenerator[Element, None]:
        edge = items_edge(node)
        assert edge is not None
        if not edge.source_is_list:
            name = self._lane(edge.source, edge.source_pin)
            standing = self._standing.get(name)
            async for element in elements(
                self._services.hub, name, after=after, standing=standing, reader=node.id
            ):
                yield element
            return
        value = self.values.of(edge)
        found = await self._services.edges.read_list(value, self._info.workspace)
        for index, one in enumerate(found, 1):
            if index > after:
                yield Element(index, one)

    async def _element(self, node: PlanNode, item: int) -> Element:
        """An item's value: read ahead, or, when it was started before a recovery, read again."""
        work = self._maps.get(node.id)
        if work is not None and (held := work.source.get(item)) is not None:
            return held
        async with contextlib.aclosing(self._elements_of(node, item - 1)) as found:
            return await anext(found)

    async def _finish_map(self, command: cmd.FinishMap) -> None:
        node = self.plan.node(command.node)
        await self._maps[node.id].drained()
        outputs: dict[str, Any] = {}
        for pin in node.output_pins:
            if lane_pins(node):
                lane = await self._services.hub.lane(self._lane(node.id, pin.name))
                outputs[pin.name] = stream_value(
                    self._info.id, node, pin.name, chunks=lane.chunks, state="ended"
                )
            else:
                found = await listed(self._services, self._info.id, node, pin.name)
                edge = Edge(
                    workspace=self._info.workspace,
                    flow_id=self._info.flow_id,
                    run_id=self._info.id,
                    node_id=node.id,
                    pin=Pin(pin.name, PinType.JSON),
                    owner=f"run:{self._info.id}",
                    now_ms=int(self._services.clock() * 1000),
                )
                outputs[pin.name] = await self._services.edges.process_edge_data(edge, found)
        self.tell(
            sg.AttemptEnded(
                at=self._services.clock(),
                node=node.id,
                attempt=command.attempt,
                outputs=outputs,
            )
        )

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


_STREAM_ERRORS: dict[str, str] = {
    Code.AGENT_TIMEOUT: "timeout",
    Code.UPSTREAM_FAILED: "cancelled_upstream",
    Code.DISK_FULL: "storage_failed",
    Code.INTERNAL: "internal",
}


def _mime(node: PlanNode, pin_name: str) -> str:
    """Of the elements; a pin that allows several says none."""
    pin = next(p for p in node.output_pins if p.name == pin_name)
    mime = pin.metadata.mime_type
    if mime and "," not in mime and "*" not in mime:
        return mime
    return "application/octet-stream" if pin.item_type in BY_REFERENCE else "application/json"
