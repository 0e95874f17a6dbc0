"""A `forEach` node at work: its source read with a bounded lead, its outputs appended in item
order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, TypedDict

from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.records import Draft, Producer, RecordType, StreamChunk
from mentatlab.runs import events as ev
from mentatlab.runs.elements import Element, StreamBrokenError, chunk_draft
from mentatlab.runs.faults import fault_of
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.limits import check_items
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.signals import ItemsOffered, LaneActive, MapFailed, Signal

_LEAD = 2
"""Elements read ahead of the first unfinished item, in windows: values in memory are bounded by it.
"""


Outcome = ev.NodeSucceeded | ev.NodeCached | ev.NodeSkipped | ev.NodeFailed


class _Now(TypedDict):
    at: float
    node: str
    attempt: int


class MapSource:
    """Reads elements one by one; each takes a permit, given back when its item is done with."""

    def __init__(self, elements: AsyncIterator[Element], window: int) -> None:
        self._elements = elements
        self._permits = asyncio.Semaphore(_LEAD * window)
        self._held: dict[int, Element] = {}

    async def read(self, offer: Callable[[Element], None]) -> None:
        async for element in self._elements:
            await self._permits.acquire()
            self._held[element.seq] = element
            offer(element)

    def get(self, item: int) -> Element | None:
        return self._held.get(item)

    def release(self, item: int) -> None:
        if self._held.pop(item, None) is not None:
            self._permits.release()


class MapOutput:
    """Appends one record per item and pin, after the item's commit, in item order (or as they end).

    `expect` names the items in their order, `done` brings outcomes, `flush` appends what may be
    appended and gives the items that are finished with. Exactly once: the log knows the producer's
    sequence.
    """

    def __init__(self, services: Services, run: RunInfo, node: PlanNode, *, attempt: int) -> None:
        self._services, self._run, self._node, self._attempt = services, run, node, attempt
        self._order: deque[int] = deque()
        self._outcomes: dict[int, Outcome] = {}
        self._sent = dict.fromkeys((p.name for p in node.output_pins), 0)
        self._there: dict[str, frozenset[int]] = {}
        self._active: set[str] = set()
        self._appending = False
        self.stopped = False

    @property
    def idle(self) -> bool:
        return not self._order and not self._appending

    @property
    def ready(self) -> bool:
        """Whether a flush would append something."""
        if not self._node.ordered:
            return bool(self._outcomes)
        return bool(self._order) and self._order[0] in self._outcomes

    def take_fresh(self) -> list[str]:
        """Pins that have got their first record since the last call."""
        fresh = [pin for pin, sent in self._sent.items() if sent and pin not in self._active]
        self._active.update(fresh)
        return fresh

    def expect(self, item: int) -> None:
        self._order.append(item)

    def done(self, outcome: Outcome) -> None:
        assert outcome.item is not None
        self._outcomes[outcome.item] = outcome

    async def recover(self, live: Iterable[int]) -> None:
        """After a restart: what the lanes have, and the committed outcomes that they lack."""
        for pin in self._sent:
            records = await self._records(pin)
            self._there[pin] = frozenset(r.item for r in records if r.item is not None)
            self._sent[pin] = sum(r.attempt == self._attempt for r in records)
        outcomes = await item_outcomes(self._services, self._run.id, self._node.id)
        missing = {
            item: outcome
            for item, outcome in outcomes.items()
            if not all(item in there for there in self._there.values())
        }
        self._outcomes.update(missing)
        self._order.extend(sorted({*missing, *live}))

    async def _records(self, pin: str) -> list[StreamChunk]:
        name = stream_id(self._run.id, self._node.id, pin)
        return await standing_records(self._services, name)

    async def flush(self) -> list[int]:
        self._appending = True
        finished = self._take()
        for pin in self._node.output_pins:
            there = self._there.get(pin.name, frozenset())
            made = (self._draft(pin.name, o) for o in finished if o.item not in there)
            drafts = [draft for draft in made if draft is not None]
            if drafts and not self.stopped:  # else a later attempt may have begun on the lane
                await self._append(pin.name, drafts)
        self._appending = False
        return [o.item for o in finished if o.item is not None]

    def _take(self) -> list[Outcome]:
        items: list[int] = []
        if not self._node.ordered:
            items = [item for item in self._order if item in self._outcomes]
            self._order = deque(item for item in self._order if item not in self._outcomes)
        else:
            while self._order and self._order[0] in self._outcomes:
                items.append(self._order.popleft())
        return [self._outcomes.pop(item) for item in items]

    def _draft(self, pin_name: str, outcome: Outcome) -> Draft | None:
        pin = next(p for p in self._node.output_pins if p.name == pin_name)
        value = item_value(self._node, pin_name, outcome)
        if value is None:
            return None
        return chunk_draft(pin, value, attempt=self._attempt, item=outcome.item)

    async def _append(self, pin: str, drafts: list[Draft]) -> None:
        producer = Producer(
            id=f"{self._run.id}/{self._node.id}/", epoch=self._attempt, seq=self._sent[pin] + 1
        )
        name = stream_id(self._run.id, self._node.id, pin)
        await self._services.hub.publish(name, drafts, producer=producer)
        self._sent[pin] += len(drafts)


class MapWork:
    """The tasks of a `forEach` node in its present attempt: a reader, and over a stream an
    appender.

    `tell` takes signals for `decide`.
    """

    def __init__(
        self,
        services: Services,
        node: PlanNode,
        attempt: int,
        source: MapSource,
        output: MapOutput | None,
        tell: Callable[[Signal], None],
    ) -> None:
        self._services, self._node, self._attempt = services, node, attempt
        self.source, self._output, self._tell = source, output, tell
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = [tasks.create_task(self._read())]
        if self._output is not None:
            self._tasks.append(tasks.create_task(self._append(self._output)))

    def own(self, task: asyncio.Task[None]) -> None:
        """One more task that ends with this work."""
        self._tasks.append(task)

    def stop(self) -> None:
        if self._output is not None:
            self._output.stopped = True
        for task in self._tasks:
            task.cancel()

    async def ended(self, outcome: ev.RunFact) -> None:
        """An item's outcome was committed."""
        if self._output is None or not isinstance(outcome, Outcome):
            assert outcome.item is not None
            self.source.release(outcome.item)
            return
        self._output.done(outcome)
        async with self._changed:
            self._changed.notify_all()

    async def drained(self) -> None:
        """Until every outcome stands in the lanes."""
        output = self._output
        if output is not None:
            async with self._changed:
                await self._changed.wait_for(lambda: output.idle)

    async def _read(self) -> None:
        try:
            await self.source.read(self._offer)
        except StreamBrokenError:
            self._failed(SOURCE_BROKEN)
        except MentatError as error:
            self._failed(fault_of(error))
        else:
            self._tell(ItemsOffered(**self._now(), closed=True))

    def _offer(self, element: Element) -> None:
        check_items(self._services.limits, self._node.id, element.seq)
        check_items(self._services.limits, self._node.id, element.seq)
        if self._output is not None:
            self._output.expect(element.seq)
        self._tell(ItemsOffered(**self._now(), items=(element.seq,)))

    async def _append(self, output: MapOutput) -> None:
        try:
            while True:
                done = await output.flush()
                for item in done:
                    self.source.release(item)
                self._told_active(output)
                async with self._changed:
                    if done:
                        self._changed.notify_all()
                    await self._changed.wait_for(lambda: output.ready)
        except MentatError as error:
            self._failed(fault_of(error))

    def _told_active(self, output: MapOutput) -> None:
        for pin in output.take_fresh():
            self._tell(LaneActive(**self._now(), pin=pin))

    def _failed(self, error: ev.Fault) -> None:
        self._tell(MapFailed(**self._now(), error=error))

    def _now(self) -> _Now:
        return {"at": self._services.clock(), "node": self._node.id, "attempt": self._attempt}


def item_value(node: PlanNode, pin: str, outcome: Outcome) -> Any:
    """What an item leaves in the node's output: its value, an error record, or nothing (None)."""
    if isinstance(outcome, ev.NodeSucceeded | ev.NodeCached):
        return outcome.outputs.get(pin)
    if isinstance(outcome, ev.NodeSkipped) or node.on_item_error == "skip":
        return None
    error = {"code": outcome.error.code, "message": outcome.error.message}
    return {"item": outcome.item, "error": error}


async def item_outcomes(services: Services, run_id: str, node: str) -> Mapping[int, Outcome]:
    """The committed outcomes that stand, by item, in item order."""
    found: dict[int, Outcome] = {}
    for event in await services.store.item_events(run_id, node):
        match event:
            case ev.ItemsVoided():
                found = {item: e for item, e in found.items() if item <= event.above}
            case (
                ev.NodeSucceeded(item=int(item))
                | ev.NodeCached(item=int(item))
                | ev.NodeSkipped(item=int(item))
                | ev.NodeFailed(item=int(item))
            ):
                found[item] = event
            case _:
                pass
    return dict(sorted(found.items()))


async def listed(services: Services, run_id: str, node: PlanNode, pin: str) -> list[Any]:
    """The output of a `forEach` over a list."""
    outcomes = await item_outcomes(services, run_id, node.id)
    values = (item_value(node, pin, outcome) for outcome in outcomes.values())
    return [value for value in values if value is not None]


async def standing_records(services: Services, name: str) -> list[StreamChunk]:
    """The data records that stand in a lane just now."""
    lane = await services.hub.lane(name)
    found: list[StreamChunk] = []
    if lane.head == 0:
        return found
    async with services.hub.subscribe(name, from_="start") as records:
        async for record in records:
            stands = any(a <= record.sequence <= b for a, b in lane.standing)
            if record.type is RecordType.DATA and stands:
                found.append(record)
            if record.sequence >= lane.head:
                break
    return found


async def head_of_item(services: Services, name: str, item: int) -> int:
    """The sequence after which a map's lane says nothing of items up to `item`; 0 = it has none."""
    records = await standing_records(services, name)
    kept = [r.sequence for r in records if r.item is not None and r.item <= item]
    return max(kept, default=0)


SOURCE_BROKEN = ev.Fault(
    Code.STREAM_LOST, "the stream that gives the items broke off", "see the error of its producer"
)
