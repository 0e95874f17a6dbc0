"""What a run says to those who watch: its events as a lane, its nodes' logs as memory lanes.

The lane `(run, "_run", "events")` is the projection of the committed log, one record per event, so
its count of records says how far it is; publishing again what was published changes nothing.
"""

import asyncio
import logging
from collections.abc import Sequence

from mentatlab.flows.plan import PlanNode
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Draft, Producer, end_draft
from mentatlab.runs import events as ev
from mentatlab.runs.lanes import LOG_PIN, RUN_NODE, RUN_PIN, stream_id
from mentatlab.runs.services import RunInfo, Services

logger = logging.getLogger(__name__)

_BATCH = 256
_LINGER_S = 0.05
"""Before a publication: a quick run publishes once, when it has ended."""


class Journal:
    def __init__(self, services: Services, run: RunInfo) -> None:
        self._services, self._run = services, run
        self._lane = stream_id(run.id, RUN_NODE, RUN_PIN)
        self._events: list[ev.RunEvent] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logs: dict[str, str] = {}
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        await self._services.hub.create_stream(
            RUN_NODE,
            RUN_PIN,
            workspace=self._run.workspace,
            run_id=self._run.id,
            node_id=RUN_NODE,
            stream_id=self._lane,
        )

    async def catch_up(self) -> None:
        """After a restart: the committed events that the lane lacks, and the logs to be ended."""
        lane = await self._services.hub.lane(self._lane)
        missing = await self._services.store.events(self._run.id, after=lane.chunks)
        self._events = [ev.public(self._run.id, seq, event) for seq, event in missing]
        lanes = await self._services.hub.lanes(self._run.id)
        self._logs = {x.node_id: x.stream_id for x in lanes if x.pin_name == LOG_PIN}

    def add(self, first: int, events: Sequence[ev.RunFact]) -> None:
        """Committed events, the first with sequence `first`."""
        self._events += [ev.public(self._run.id, n, e) for n, e in enumerate(events, first)]
        self._wake.set()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._task = tasks.create_task(self._project())

    async def _project(self) -> None:
        try:
            while True:
                await self._wake.wait()
                await asyncio.sleep(_LINGER_S)
                self._wake.clear()
                await self._flush()
        except MentatError:
            logger.exception("events of run %s wait for the next start", self._run.id)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _flush(self, *last: Draft) -> None:
        """Publish what waits, and `last` together with the last event."""
        while self._events:
            batch = self._events[:_BATCH]
            drafts = [Draft(payload=_payload(event)) for event in batch]
            drafts += last if len(batch) == len(self._events) else ()
            producer = Producer(id=f"run:{self._run.id}", epoch=0, seq=batch[0].seq)
            await self._services.hub.publish(self._lane, drafts, producer=producer)
            del self._events[: len(batch)]

    async def log(self, node: PlanNode, drafts: Sequence[Draft]) -> None:
        async with self._opening:
            if node.id not in self._logs:
                session = await self._services.hub.create_stream(
                    node.type,
                    LOG_PIN,
                    workspace=self._run.workspace,
                    run_id=self._run.id,
                    node_id=node.id,
                    durability="memory",
                    stream_id=stream_id(self._run.id, node.id, LOG_PIN),
                )
                self._logs[node.id] = session.stream_id
        await self._services.hub.publish(self._logs[node.id], drafts)

    async def close(self) -> bool:
        """Publish the rest and end the lanes. False when that must be done again."""
        try:
            if self._events:
                await self._flush(end_draft("complete", chunks=0))
            else:
                await self._services.hub.end_stream(self._lane)
            for name in self._logs.values():
                await self._services.hub.end_stream(name)
        except MentatError:
            logger.exception("run %s could not be closed; the next start will", self._run.id)
            return False
        return True


def _payload(event: ev.RunEvent) -> dict[str, object]:
    return {"data": event.to_dict(), "metadata": {"mime_type": "application/json"}}
