"""The `forEach` nodes of one run: where their elements come from, and what comes of their items."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runs import commands as cmd
from mentatlab.runs import events as ev
from mentatlab.runs.assignment import edge_of
from mentatlab.runs.elements import Element, elements
from mentatlab.runs.lookups import items_edge, lane_pins
from mentatlab.runs.maps import MapOutput, MapSource, MapWork, listed
from mentatlab.runs.run_lanes import RunLanes
from mentatlab.runs.services import RunInfo, Services
from mentatlab.runs.signals import AttemptEnded, Signal
from mentatlab.runs.values import Values, stream_value


class MapNodes:
    """`tell` takes signals for `decide`."""

    def __init__(
        self,
        services: Services,
        run: RunInfo,
        plan: Plan,
        values: Values,
        lanes: RunLanes,
        tell: Callable[[Signal], None],
    ) -> None:
        self._services, self._run, self._plan, self._values = services, run, plan, values
        self._lanes, self._tell = lanes, tell
        self._works: dict[str, MapWork] = {}

    async def read(self, command: cmd.ReadItems, live: Iterable[int]) -> MapWork:
        """Begin the node's present attempt, not yet started; an older one stops. `live` are the
        items under way."""
        self.stop(command.node)
        node = self._plan.node(command.node)
        source = MapSource(self._elements_of(node, command.after), node.max_parallel)
        output = None
        if lane_pins(node):
            output = MapOutput(self._services, self._run, node, attempt=command.attempt)
            if command.after > 0:
                await output.recover(live)
        work = MapWork(self._services, node, command.attempt, source, output, self._tell)
        self._works[node.id] = work
        return work

    def stop(self, node: str) -> None:
        if (work := self._works.get(node)) is not None:
            work.stop()

    def stop_all(self) -> None:
        for work in self._works.values():
            work.stop()

    async def ended(self, event: ev.RunFact) -> None:
        """An item's outcome was committed."""
        if event.item is not None and event.node in self._works:
            await self._works[event.node].ended(event)

    async def element(self, node: PlanNode, item: int) -> Element:
        """An item's value: read ahead, or, when it was started before a recovery, read again."""
        work = self._works.get(node.id)
        if work is not None and (held := work.source.get(item)) is not None:
            return held
        async with contextlib.aclosing(self._elements_of(node, item - 1)) as found:
            return await anext(found)

    async def _elements_of(self, node: PlanNode, after: int) -> AsyncGenerator[Element, None]:
        edge = items_edge(node)
        assert edge is not None
        name = self._values.lane(edge, self._run.id)
        if name is not None and not edge.source_is_list:
            async for element in elements(
                self._services.hub, name, self._lanes.standing, after=after, reader=node.id
            ):
                yield element
            return
        found = await self._listed(edge, name)
        for index, one in enumerate(found[after:], after + 1):
            yield Element(index, one)

    async def _listed(self, edge: PlanEdge, name: str | None) -> list[Any]:
        """A stream that was collected, one value, or a list."""
        if name is not None:
            found = elements(self._services.hub, name, self._lanes.standing)
            return [element.value async for element in found]
        value = self._values.of(edge)
        if "once" in (edge.adapter, self._values.maker(edge).adapter):
            return [value]
        return await self._services.edges.read_list(value, self._run.workspace)

    async def finish(self, command: cmd.FinishMap) -> AttemptEnded:
        """The node's outputs, when every item's outcome is where it belongs."""
        node = self._plan.node(command.node)
        await self._works[node.id].drained()
        outputs = {pin.name: await self._output(node, pin.name) for pin in node.output_pins}
        return AttemptEnded(
            at=self._services.clock(), node=node.id, attempt=command.attempt, outputs=outputs
        )

    async def _output(self, node: PlanNode, pin: str) -> Any:
        if lane_pins(node):
            lane = await self._services.hub.lane(self._lanes.name(node.id, pin))
            return stream_value(self._run.id, node, pin, chunks=lane.chunks, state="ended")
        found = await listed(self._services, self._run.id, node, pin)
        edge = edge_of(self._services, self._run, node.id, Pin(pin, PinType.JSON))
        return await self._services.edges.process_edge_data(edge, found)

    def own(self, node: str, task: asyncio.Task[None]) -> None:
        """One more task that ends with the node's work."""
        self._works[node].own(task)
