"""What an agent is given: values gathered and checked before it starts, elements while it runs."""

from collections.abc import AsyncIterator
from typing import Any

from mentatlab.flows.plan import PlanEdge
from mentatlab.protocol import tokens
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.stdio import Context
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Invocation
from mentatlab.runs.assignment import Assignment
from mentatlab.runs.edges import Budget
from mentatlab.runs.elements import Element, StreamBrokenError, elements
from mentatlab.runs.lanes import stream_id
from mentatlab.runs.lookups import lane_pins

_TOKEN_CAPABILITIES: tuple[tokens.Capability, ...] = ("sub", "pub", "put")


class Inputs:
    """`element` is the item's own, of an attempt of one."""

    def __init__(self, work: Assignment, element: Element | None) -> None:
        self._work, self._services, self._node = work, work.services, work.node
        self._element = element

    @property
    def fed_edges(self) -> list[PlanEdge]:
        """Edges whose elements are sent while the agent runs."""
        return [edge for edge in self._node.inputs if is_fed(edge)]

    async def invocation(self, program: AgentProgram) -> Invocation:
        inputs = await self._values()
        given = self._services.environment
        attempt_s = self._attempt_s(program)
        return Invocation(
            workspace=self._work.run.workspace,
            program=program,
            inputs=inputs,
            params={k: v for k, v in self._node.params.items() if k not in inputs},
            context=self._context(attempt_s),
            stream_inputs=tuple(edge.target_pin for edge in self.fed_edges),
            env={name: given[name] for name in program.env if name in given},
            scratch=self._work.scratch,
            resources=program.resources,
            start_timeout_s=self._node.timeouts.start_s,
            attempt_timeout_s=attempt_s,
            heartbeat_timeout_s=self._node.timeouts.heartbeat_s,
        )

    def _attempt_s(self, program: AgentProgram) -> float:
        limits = self._node.timeouts
        own = limits.attempt_s or program.resources.timeout_s
        if limits.total_s is None:
            return own
        left = self._work.started_at + limits.total_s - self._services.clock()
        return max(0.001, min(own, left))

    def _context(self, attempt_s: float) -> Context:
        work, services = self._work, self._services
        subject = f"{work.run.id}/{work.node.id}/{'' if work.item is None else work.item}"
        now = services.clock()
        return Context(
            run_id=work.run.id,
            node_id=work.node.id,
            attempt=work.number,
            item=work.item,
            execution_id=work.run.id,
            deadline=now + attempt_s,
            resume_state=work.saved.state if work.saved else None,
            token=self._token(f"{subject}/{work.number}", now + attempt_s),
            url=services.url,
            out_dir=str(work.out_dir),
            idempotency_key=subject,
        )

    def _token(self, subject: str, until: float) -> str:
        if not self._services.secret:
            return ""
        now = self._services.clock()
        claims = tokens.Claims(
            subject=subject,
            capabilities=_TOKEN_CAPABILITIES,
            workspace=self._work.run.workspace,
            expires=int(min(until, now + tokens.MAX_LIFETIME_S)),
        )
        return tokens.mint(claims, self._services.secret)

    # -- before the start

    async def _values(self) -> dict[str, Any]:
        """Every value pin, checked against its constraints before the agent starts."""
        budget, inputs = Budget(), dict[str, Any]()
        fed = {edge.target_pin for edge in self.fed_edges}
        for pin in self._node.input_pins:
            if pin.name in fed:
                continue
            value = await self._value_for(pin)
            if value is not None:
                edge = self._work.edge(pin)
                inputs[pin.name] = await self._services.edges.deliver(edge, value, budget)
            elif pin.required and pin.name not in self._node.params:
                raise Invalid(
                    Code.MISSING_INPUT,
                    f"{self._node.id}.{pin.name} got no value",
                    hint="the node before it gave none",
                )
        return inputs

    async def _value_for(self, pin: Pin) -> Any:
        if self._element is not None and pin.name == self._node.for_each:
            return self._element.value
        edge = next((e for e in self._node.inputs if e.target_pin == pin.name), None)
        if edge is None:
            value = self._work.values.get(self._node.id, pin.name)
            return self._node.params.get(pin.name, pin.default) if value is None else value
        if edge.adapter == "collect" and not edge.source_is_list:
            return await self._collect(edge, pin)
        return self._work.values.of(edge)

    async def _collect(self, edge: PlanEdge, pin: Pin) -> Any:
        """A finished stream as one JSON array; a large one goes by reference."""
        name = self._stream_of(edge)
        if name is None:
            return None
        try:
            found = [element.value async for element in self._lane(name)]
        except StreamBrokenError:
            if pin.required:
                raise
            return None  # like any optional value that did not come
        whole = Pin(name=pin.name, type=PinType.JSON)
        return await self._services.edges.process_edge_data(self._work.edge(whole), found)

    # -- while it runs

    async def elements_of(self, edge: PlanEdge, after: int) -> AsyncIterator[Element]:
        name = self._stream_of(edge)
        if name is not None:
            async for element in self._lane(name, after, reader=self._node.id):
                yield element
        elif after == 0 and (value := self._work.values.of(edge)) is not None:
            yield Element(1, value, is_reference(value))

    async def delivered(self, pin_name: str, value: Any) -> Any:
        """The place of an item that failed under `collect` holds its error, whatever the pin's
        type."""
        if is_object(value) and value.keys() == {"item", "error"}:
            return value
        pin = next(p for p in self._node.input_pins if p.name == pin_name)
        return await self._services.edges.deliver(self._work.edge(pin), value, Budget())

    def _stream_of(self, edge: PlanEdge) -> str | None:
        """The lane behind an edge; a run's own input may name a stream too."""
        match self._work.values.of(edge):
            case {"type": "stream", "stream_id": str(name)}:
                return name
            case _ if edge.source_pin in lane_pins(self._work.plan.node(edge.source)):
                return stream_id(self._work.run.id, edge.source, edge.source_pin)
            case _:
                return None

    def _lane(self, name: str, after: int = 0, *, reader: str = "") -> AsyncIterator[Element]:
        standing = self._work.standing.get(name)
        return elements(self._services.hub, name, after=after, standing=standing, reader=reader)


def is_fed(edge: PlanEdge) -> bool:
    """Whether the agent gets the edge's elements one by one while it runs."""
    return edge.kind == "stream" or edge.adapter == "once"
