"""What an agent is given: values gathered and checked before it starts, elements while it runs."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from mentatlab.flows.expressions import MAX_VALUES_BYTES
from mentatlab.flows.plan import PlanEdge
from mentatlab.protocol import tokens
from mentatlab.protocol.agent import AgentProgram, Resources
from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.stdio import Context
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Invocation
from mentatlab.runners.resources import calculate_resources
from mentatlab.runs.assignment import Assignment
from mentatlab.runs.edges import Budget
from mentatlab.runs.elements import Element, StreamBrokenError, elements
from mentatlab.runs.values import PASSED_ON

_TOKEN_CAPABILITIES: tuple[tokens.Capability, ...] = ("sub", "pub", "put")


class Inputs:
    """`element` is the item's own, of an attempt of one."""

    def __init__(self, work: Assignment, element: Element | None) -> None:
        self._work, self._services, self._node = work, work.services, work.node
        self._element = element
        self._edges = {
            edge.target_pin: edge
            for edge in self._node.inputs
            if edge.target_pin not in work.left_out
        }

    @property
    def fed_edges(self) -> list[PlanEdge]:
        """Edges whose elements are sent while the agent runs."""
        return [edge for edge in self._node.inputs if is_fed(edge)]

    async def invocation(self, program: AgentProgram) -> Invocation:
        inputs = await self._values()
        given = {**self._services.environment, **self._work.secrets}
        resources = self._resources(program, inputs)
        attempt_s = self._attempt_s(resources)
        return Invocation(
            workspace=self._work.run.workspace,
            program=program,
            inputs=inputs,
            params={k: v for k, v in self._node.params.items() if k not in inputs},
            context=self._context(attempt_s),
            stream_inputs=tuple(edge.target_pin for edge in self.fed_edges),
            env={name: given[name] for name in program.env if name in given},
            scratch=self._work.scratch,
            resources=resources,
            start_timeout_s=self._node.timeouts.start_s,
            attempt_timeout_s=attempt_s,
            heartbeat_timeout_s=self._node.timeouts.heartbeat_s,
        )

    def _resources(self, program: AgentProgram, inputs: Mapping[str, Any]) -> Resources:
        """Each attempt that died for want of memory gives the next one more of it."""
        resources = calculate_resources(program, inputs)
        batch = program.warm.batch.max if program.warm and program.warm.batch else 0
        for _ in range(self._work.ooms):
            most = self._services.machine.memory
            resources = resources.adapted(most=most, batch=batch) or resources
        return resources

    def _attempt_s(self, resources: Resources) -> float:
        limits = self._node.timeouts
        own = limits.attempt_s or resources.timeout_s
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

    async def given(self) -> dict[str, Any]:
        """What has come for the value pins, as it is recorded: no check, nothing read."""
        fed = {edge.target_pin for edge in self.fed_edges}
        wanted = [p for p in self._node.input_pins if p.name not in {*fed, *self._work.left_out}]
        found = {pin.name: await self._value_for(pin) for pin in wanted}
        return {name: value for name, value in found.items() if value is not None}

    async def variables(self) -> dict[str, Any]:
        """What the node's expressions and its schema are given, whole."""
        names = {*self._node.variables, PASSED_ON}
        if self._node.for_each is not None:
            names.add(self._node.for_each)
        budget, workspace = Budget(MAX_VALUES_BYTES), self._work.run.workspace
        return {
            name: await self._services.edges.whole(value, workspace, budget)
            for name, value in (await self.given()).items()
            if name in names
        }

    async def _values(self) -> dict[str, Any]:
        """Every value pin, checked against its constraints before the agent starts."""
        budget, inputs = Budget(), dict[str, Any]()
        apart = {edge.target_pin for edge in self.fed_edges} | {*self._work.left_out}
        for pin in self._node.input_pins:
            if pin.name in apart:
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
        edge = self._edges.get(pin.name)
        if edge is None:
            value = self._work.values.get(self._node.id, pin.name)
            return self._node.params.get(pin.name, pin.default) if value is None else value
        made = self._work.values.maker(edge)
        if is_collected(made):
            return await self._collect(edge, pin)
        value = self._work.values.of(edge)
        once = value is not None and "once" in (edge.adapter, made.adapter)
        return [value] if once else value

    async def _collect(self, edge: PlanEdge, pin: Pin) -> Any:
        """A finished stream as one JSON array; a large one goes by reference."""
        name = self._work.values.lane(edge, self._work.run.id)
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
        if edge.target_pin in self._work.left_out:
            return
        name = self._work.values.lane(edge, self._work.run.id)
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

    def _lane(self, name: str, after: int = 0, *, reader: str = "") -> AsyncIterator[Element]:
        hub, standing = self._services.hub, self._work.standing
        return elements(hub, name, standing, after=after, reader=reader)


def is_collected(edge: PlanEdge) -> bool:
    """Whether the edge carries a stream's elements as one list."""
    return edge.adapter == "collect" and not edge.source_is_list


def is_fed(edge: PlanEdge) -> bool:
    """Whether the agent gets the edge's elements one by one while it runs."""
    return edge.kind == "stream"
