"""The conversation with an agent at work: elements in, events out, its chunks appended to lanes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from mentatlab.flows.plan import PlanEdge
from mentatlab.protocol import events as agent
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.records import Draft, Producer
from mentatlab.runners.port import Attempt, Outcome
from mentatlab.runs.assignment import Assignment, SavedState
from mentatlab.runs.checkpoints import Checkpoints, Save
from mentatlab.runs.elements import StreamBrokenError, chunk_draft
from mentatlab.runs.inputs import Inputs
from mentatlab.runs.secrets import Mask
from mentatlab.runs.signals import LaneActive, Signal
from mentatlab.streams.port import Appended

_EVENTS_AHEAD = 32
"""Of an agent's events, each up to 1 MiB, that are taken before the last ones are committed."""

Events = Sequence[agent.AgentEvent | None]


class Conversation:
    """`consumed`: per live input pin the last sequence given to the agent; `saved`: its last
    checkpoint. `tell` takes signals for `decide`, `note` a node's log records, `save` checkpoints.
    """

    def __init__(
        self,
        work: Assignment,
        *,
        tell: Callable[[Signal], None],
        note: Callable[[str, list[Draft]], Awaitable[None]],
        save: Save,
    ) -> None:
        self._work, self._services, self._node = work, work.services, work.node
        self._tell, self._note, self.saved = tell, note, work.saved
        self.consumed: dict[str, int] = dict(work.saved.offsets) if work.saved else {}
        self._checkpoints = Checkpoints(save)
        self._keeping: asyncio.Task[None] | None = None  # of agents that have any
        self._windows: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._mask = Mask(work.secrets.values())
        self._heads: dict[str, int] = dict(work.saved.heads) if work.saved else {}
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def cancel(self, reason: str) -> None:
        if not self._stop.done():
            self._stop.set_result(reason)

    def cancelled(self) -> str | None:
        """The reason, once it was asked to stop."""
        return self._stop.result() if self._stop.done() else None

    async def hold(self, live: Attempt, inputs: Inputs) -> Outcome:
        async with asyncio.TaskGroup() as self._tasks:
            feeds = {
                edge.target_pin: self._tasks.create_task(self._feed(live, inputs, edge))
                for edge in inputs.fed_edges
            }
            stopping = self._tasks.create_task(self._cancel_when_asked(live, feeds))
            await self._listen(live)
            outcome = await live.outcome()
            for helper in (*feeds.values(), stopping, self._keeping):
                if helper is not None:
                    helper.cancel()
        if outcome.status != "succeeded":
            await self._checkpoints.flush()
        return outcome

    async def _cancel_when_asked(
        self, live: Attempt, feeds: Mapping[str, asyncio.Task[None]]
    ) -> None:
        """It overtakes data: what waits to be fed is dropped, and its inputs end `cancelled`."""
        reason = await asyncio.shield(self._stop)
        unfinished = [pin for pin, feed in feeds.items() if feed.cancel()]
        async with asyncio.TaskGroup() as group:  # an input that is full must not hold up the rest
            for pin in unfinished:
                group.create_task(live.end_input(pin, "cancelled"))
            await live.cancel(reason)

    # -- elements in

    async def _feed(self, live: Attempt, inputs: Inputs, edge: PlanEdge) -> None:
        """The source's elements as they come, then the end. The agent's pipe holds them back."""
        pin = edge.target_pin
        status: Literal["complete", "error"] = "complete"
        try:
            async for element in inputs.elements_of(edge, self.consumed.get(pin, 0)):
                value = await inputs.delivered(pin, element.value)
                self.consumed[pin] = element.seq
                sent = {"ref" if element.is_ref and is_reference(value) else "data": value}
                await live.send_chunk(pin, element.seq, pts=element.pts, **sent)
        except StreamBrokenError:
            status = "error"
        await live.end_input(pin, status)

    # -- events out

    async def _listen(self, live: Attempt) -> None:
        """Everything that waits is taken together, so that many small chunks share a commit."""
        waiting: asyncio.Queue[agent.AgentEvent | None] = asyncio.Queue(_EVENTS_AHEAD)

        async def read() -> None:
            async for event in live.events():
                await waiting.put(event)
            await waiting.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (batch := await _take(waiting))[-1] is not None:
                await self.heard(batch)
            await self.heard(batch[:-1])

    async def heard(self, batch: Events) -> None:
        drafts: dict[str, list[Draft]] = {}
        notes: list[Draft] = []
        for event in batch:
            match event:
                case agent.Chunk():
                    draft = await self._draft(event)
                    drafts.setdefault(event.pin, []).append(draft)
                case agent.Checkpoint():
                    await self._publish(drafts)
                    drafts = {}
                    self._save(event)
                case agent.Log() | agent.Progress() | agent.Metric():
                    notes.append(self._note_of(event))
                case _:
                    pass
        await self._publish(drafts)
        notes += [self._note_of(metric) for metric in self._take_widened()]
        if notes:
            await self._note(self._node.id, notes)

    def _note_of(self, event: agent.Event) -> Draft:
        return log_draft(event, attempt=self._work.number, item=self._work.item)

    def widened(self, stream_id: str, bytes_: int) -> None:
        """Its readers may lag so far, or the run would stand still: told in the node's log."""
        self._windows[stream_id] = bytes_

    def _take_widened(self) -> list[agent.Metric]:
        told, self._windows = self._windows, {}
        return [agent.Metric(name="stream_window", value=n, unit="bytes") for n in told.values()]

    def _save(self, checkpoint: agent.Checkpoint) -> None:
        """An agent cannot have read further than it was given."""
        said = self.consumed if checkpoint.offsets is None else checkpoint.offsets
        offsets = {pin: min(offset, self.consumed.get(pin, 0)) for pin, offset in said.items()}
        self.saved = SavedState(state=checkpoint.state, offsets=offsets, heads=dict(self._heads))
        self._checkpoints.put(self.saved)
        if self._keeping is None:
            self._keeping = self._tasks.create_task(self._checkpoints.keep())

    async def _draft(self, chunk: agent.Chunk) -> Draft:
        pin = self._stream_pin(chunk.pin)
        if chunk.path is not None:
            given: Any = {"path": chunk.path, "metadata": chunk.metadata}
        elif chunk.ref is not None:
            given = chunk.ref
        else:
            given = None if chunk.data is msgspec.UNSET else self._mask.value(chunk.data)
        edge = self._work.chunk_edge(pin)
        return chunk_draft(
            pin,
            await self._services.edges.process_edge_data(edge, given),
            attempt=self._work.number,
            metadata=self._mask.value(chunk.metadata),
            pts=chunk.pts,
            duration=chunk.duration,
        )

    def _stream_pin(self, name: str) -> Pin:
        for pin in self._node.output_pins:
            if pin.name == name and pin.type is PinType.STREAM:
                return pin
        raise Invalid(
            Code.OUTPUT_TYPE,
            f"{self._node.id} sent a chunk on {name!r}, which is no stream output",
            hint="declare the pin with `type: stream` in the manifest's outputs",
        )

    async def _publish(self, drafts: Mapping[str, list[Draft]]) -> None:
        work = self._work
        for pin, batch in drafts.items():
            if self._stop.done():  # another attempt may have begun on this lane
                return
            sent = self._sent.get(pin, 0)
            producer = Producer(
                id=f"{work.run.id}/{work.node.id}/", epoch=work.number, seq=sent + 1
            )
            appended = await self._appended(work.lane(pin), batch, producer)
            if appended is None:
                return
            self._sent[pin], self._heads[pin] = sent + len(batch), appended.last
            if sent == 0:
                at = self._services.clock()
                self._tell(LaneActive(at=at, node=work.node.id, pin=pin, attempt=work.number))

    async def _appended(
        self, name: str, batch: Sequence[Draft], producer: Producer
    ) -> Appended | None:
        """None when the attempt was stopped while a reader held it back."""
        hub = self._services.hub
        publishing = asyncio.ensure_future(hub.publish(name, batch, producer=producer))
        await asyncio.wait({publishing, self._stop}, return_when=asyncio.FIRST_COMPLETED)
        if publishing.done():
            return publishing.result()
        publishing.cancel()
        await asyncio.wait({publishing})
        return None


def log_draft(event: agent.Event, *, attempt: int, item: int | None) -> Draft:
    """`{"kind": "log" | "progress" | "metric", …}` as it stands in a node's log."""
    said = {k: v for k, v in msgspec.to_builtins(event).items() if v not in (None, "")}
    said.pop("invocation", None)
    kind = type(event).__name__.lower()
    payload = {"data": {"kind": kind, **said}, "metadata": {"mime_type": "application/json"}}
    return Draft(payload=payload, attempt=attempt, item=item)


async def _take(waiting: asyncio.Queue[agent.AgentEvent | None]) -> list[agent.AgentEvent | None]:
    batch = [await waiting.get()]
    while not waiting.empty():
        batch.append(waiting.get_nowait())
    return batch
