"""What may be asked about runs, live and ended, of this engine or of another one: all of it comes
from the run store and the lanes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple, TypeVar

from mentatlab.flows.plan import Plan
from mentatlab.protocol.errors import Code, Conflict, Gone, NotFound
from mentatlab.protocol.records import RecordType, StreamChunk
from mentatlab.runs import events as ev
from mentatlab.runs.intake import plan_of
from mentatlab.runs.lanes import LOG_PIN, RUN_NODE, RUN_PIN, stream_id
from mentatlab.runs.lineage import Lineage, place_of, record_of, trace
from mentatlab.runs.state import RUN_TERMINAL
from mentatlab.runs.store import EVERY_RUN, Facts, RunFilter, RunRow, RunStore, unknown_run
from mentatlab.runs.timeline import FIRST_ITEMS, ItemPage, LaneTimes, Timeline, timeline
from mentatlab.runs.values import Values, run_lanes
from mentatlab.runs.views import Recorded, RecordedStream, RunView, summary
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Lane
from mentatlab.streams.subscription import Subscription

Views = list[RunView]
Events = list[ev.RunEvent]
LogLines = list[dict[str, Any]]

T = TypeVar("T")

LOOK_S = 5.0
"""The lane of a run says when to look into its log; without its word one looks as often as this."""
POLL_S = 0.5
"""Where there is no lane (its log is lost), and for a node's log that has not begun."""
CLOSING_S = 5.0
"""How long after a run's last event its lanes may take to end."""
_PAGE = 500
_MAX_PLANS = 64


class LogQuery(NamedTuple):
    """Of all items and attempts where none is named."""

    run_id: str
    node_id: str
    workspace: str
    item: int | None = None
    attempt: int | None = None

    @property
    def lane(self) -> str:
        return stream_id(self.run_id, self.node_id, LOG_PIN)

    def lines(self, record: StreamChunk) -> LogLines:
        """The line of a log's record, when it is asked for."""
        if record.type is not RecordType.DATA:
            return []
        if self.item not in (None, record.item) or self.attempt not in (None, record.attempt):
            return []
        more = {"at": record.timestamp, "attempt": record.attempt, "item": record.item}
        return [{**record.payload["data"], **{k: v for k, v in more.items() if v is not None}}]


class RunReader:
    """Every call answers for one workspace: `NotFound(RUN_NOT_FOUND)` for runs of others."""

    def __init__(
        self,
        store: RunStore,
        hub: StreamingConnectionManager,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._hub, self._clock = store, hub, clock
        self._plans: dict[str, Plan] = {}

    async def list(
        self,
        workspace: str,
        *,
        filter: RunFilter = EVERY_RUN,
        limit: int = 50,
        before: str | None = None,
    ) -> Views:
        """Newest first; `before` is the id of the last run of the page before."""
        rows = await self._store.list(workspace, filter=filter, limit=limit, before=before)
        return [summary(row) for row in rows]

    # -- events

    async def events(self, run_id: str, *, workspace: str, after: int = 0) -> Events:
        """Committed events behind `after`, at most 500."""
        await self._row(run_id, workspace)
        return await self._page(run_id, after)

    async def over(self, run_id: str, *, workspace: str, after: int) -> bool:
        """Whether the run has ended and nothing is behind `after`."""
        row = await self._row(run_id, workspace)
        return row.state in RUN_TERMINAL and row.last_seq <= after

    async def _page(self, run_id: str, after: int) -> Events:
        found = await self._store.events(run_id, after, _PAGE)
        return [ev.public(run_id, seq, fact) for seq, fact in found]

    async def follow(
        self, run_id: str, *, workspace: str, after: int = 0
    ) -> AsyncGenerator[Events]:
        """Committed events behind `after`, then those that come, each once; until the run's last
        one is told and its streams have ended. An empty list: nothing new came for a while.

        The store is the truth; the run's lane only says when to look.
        """
        await self._row(run_id, workspace)
        async with AsyncExitStack() as stack:
            news = await self._lane(stream_id(run_id, RUN_NODE, RUN_PIN), "latest", stack)
            finished = False
            while True:
                while page := await self._page(run_id, after):
                    yield page
                    after = page[-1].seq
                    finished = finished or page[-1].type == "run_finished"
                if finished or self._hub.draining.is_set():
                    break
                if not await self._unless_draining(self._told(news)):
                    yield []
                    if not await self._is_there(run_id):
                        return
            await self._unless_draining(self._ended(news))

    async def _is_there(self, run_id: str) -> bool:
        """It may be deleted meanwhile."""
        with suppress(NotFound):
            await self._store.get(run_id)
            return True
        return False

    async def _told(self, news: Subscription | None) -> bool:
        """Wait for a record of the lane; False after a while without one."""
        if news is None or news.over:
            await asyncio.sleep(POLL_S)
            return False
        return bool(await news.batch(LOOK_S))

    async def _unless_draining(self, work: Coroutine[Any, Any, T]) -> T | None:
        """None when the server goes first."""
        working = asyncio.ensure_future(work)
        draining = asyncio.ensure_future(self._hub.draining.wait())
        try:
            await asyncio.wait({working, draining}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            draining.cancel()
            await asyncio.gather(working, draining, return_exceptions=True)

    async def _ended(self, news: Subscription | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                while news is not None and not news.over:
                    await news.batch()

    async def replay(self, run_id: str, *, workspace: str) -> Recorded:
        """What there is to be told again. `Conflict(RUN_ACTIVE)` before the run's end,
        `Gone(STREAM_EXPIRED)` when its streams are not kept any more."""
        row = await self._row(run_id, workspace)
        if row.state not in RUN_TERMINAL:
            raise Conflict(
                Code.RUN_ACTIVE,
                f"the run {run_id} is {row.state}",
                hint=f"follow it as it goes: GET /api/v1/streams/{run_id}/sse",
            )
        try:
            await self._hub.find(run_id)
        except NotFound as error:
            raise Gone(
                Code.STREAM_EXPIRED,
                f"what the run {run_id} streamed is not kept any more",
                hint=f"its events are: GET /api/v1/runs/{run_id}/events",
            ) from error
        plan = await self._plan(row)
        values = Values(plan, row.inputs)
        values.add(await self._facts(run_id))
        lanes = {lane.stream_id: lane for lane in await self._hub.lanes(run_id)}
        streams = [
            await self._recorded(run_id, node.id, pin, values.lane_of(node.id, pin, run_id), lanes)
            for node, pin in run_lanes(plan)
        ]
        ended = row.created_at if row.finished_at is None else row.finished_at
        return Recorded(state=row.state, recorded_s=ended - row.created_at, streams=tuple(streams))

    async def _recorded(
        self, run_id: str, node: str, pin: str, name: str, lanes: dict[str, Lane]
    ) -> RecordedStream:
        lane = lanes.get(name) or await self._lane_elsewhere(name)
        return RecordedStream(
            stream_id=name,
            node_id=node,
            pin_name=pin,
            state="expired" if lane is None else lane.state,
            reused=name != stream_id(run_id, node, pin),
        )

    # -- views

    async def timeline(
        self, run_id: str, *, workspace: str, page: ItemPage = FIRST_ITEMS
    ) -> Timeline:
        row = await self._row(run_id, workspace)
        plan = await self._plan(row)
        facts = await self._facts(run_id)
        values = Values(plan, row.inputs)
        values.add(facts)
        lanes = {lane.stream_id: lane for lane in await self._hub.lanes(run_id)}
        times = {
            (node.id, pin): await self._times(values.lane_of(node.id, pin, run_id), pin, lanes)
            for node, pin in run_lanes(plan)
        }
        return timeline(run_id, plan, facts, lanes=times, at=self._clock(), page=page)

    async def _times(self, name: str, pin: str, lanes: dict[str, Lane]) -> LaneTimes:
        """`lanes` are the run's own; what a reused node gave stands in those of its origin."""
        lane = lanes.get(name) or await self._lane_elsewhere(name)
        if lane is None:
            return LaneTimes(pin=pin, stream_id=name, state="expired")
        first = None
        if lane.chunks:
            with suppress(NotFound, Gone):
                first = (await self._hub.entry(name, lane.standing[0][0])).time_ms / 1000
        return LaneTimes(
            pin=pin,
            stream_id=name,
            state=lane.state,
            chunks=lane.chunks,
            first_chunk_at=first,
            ended_at=None if lane.state == "open" else lane.changed_at,
        )

    async def _lane_elsewhere(self, name: str) -> Lane | None:
        with suppress(NotFound, Gone):
            return await self._hub.lane(name)
        return None

    async def lineage(
        self,
        run_id: str,
        *,
        workspace: str,
        output: str | None = None,
        node: str | None = None,
        pin: str | None = None,
        seq: int | None = None,
    ) -> Lineage:
        """As `lineage.place_of` reads the question; `NotFound` also for a record there is not."""
        row = await self._row(run_id, workspace)
        plan = await self._plan(row)
        place = place_of(plan, output=output, node=node, pin=pin, seq=seq)
        tracing = trace(run_id, plan, row.inputs, await self._facts(run_id), place)
        record: StreamChunk | None = None
        try:
            asked = next(tracing)
            record = record_of((await self._hub.entry(*asked)).json)
            while True:
                asked = tracing.send(record)
                record = None
                with suppress(NotFound, Gone):
                    record = record_of((await self._hub.entry(*asked)).json)
        except StopIteration as end:
            return end.value

    # -- logs

    async def logs(self, asked: LogQuery) -> LogLines:
        """What the node's agents logged and reported since its engine started, in order:
        `{"kind": "log" | "progress" | "metric", "at", "attempt", "item"?, …}`"""
        await self.check_node(asked.run_id, asked.node_id, asked.workspace)
        found: LogLines = []
        with suppress(NotFound, Gone):
            head = (await self._hub.lane(asked.lane)).head
            async with self._hub.subscribe(asked.lane) as records:
                async for record in records:
                    found += asked.lines(record)
                    if record.sequence >= head:
                        break
        return found

    async def follow_logs(self, asked: LogQuery) -> AsyncGenerator[LogLines]:
        """As `logs`, and then what comes, until the run has ended; [] when nothing came a while."""
        await self.check_node(asked.run_id, asked.node_id, asked.workspace)
        async with AsyncExitStack() as stack:
            while (lines := await self._lane(asked.lane, "start", stack)) is None:
                if not await self._goes_on(asked.run_id):
                    return
                yield []
                await self._unless_draining(asyncio.sleep(POLL_S))
            while not (lines.over or self._hub.draining.is_set()):
                batch = await self._unless_draining(lines.batch(LOOK_S)) or ()
                yield [line for one in batch for line in asked.lines(one.entry.record)]

    async def _goes_on(self, run_id: str) -> bool:
        with suppress(NotFound):
            row = await self._store.get(run_id)
            return row.state not in RUN_TERMINAL and not self._hub.draining.is_set()
        return False

    async def _lane(self, name: str, start: str, stack: AsyncExitStack) -> Subscription | None:
        """None where there is none, yet or any more."""
        try:
            return await stack.enter_async_context(self._hub.subscribe(name, from_=start))
        except (NotFound, Gone):
            return None

    async def check_node(self, run_id: str, node_id: str, workspace: str) -> None:
        """`NotFound(NOT_FOUND)`"""
        plan = await self._plan(await self._row(run_id, workspace))
        names = [node.id for node in plan.nodes]
        if node_id not in names:
            raise NotFound(
                Code.NOT_FOUND,
                f"the run {run_id} has no node {node_id}",
                hint=f"its nodes are {', '.join(names)}",
            )

    # -- parts of these

    async def _row(self, run_id: str, workspace: str) -> RunRow:
        row = await self._store.get(run_id)
        if row.workspace != workspace:
            raise unknown_run(run_id)
        return row

    async def _facts(self, run_id: str) -> Facts:
        return [fact for _, fact in await self._store.events(run_id)]

    async def _plan(self, row: RunRow) -> Plan:
        if row.digest not in self._plans:
            while len(self._plans) >= _MAX_PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[row.digest] = plan_of(await self._store.snapshot(row.digest))
        return self._plans[row.digest]
