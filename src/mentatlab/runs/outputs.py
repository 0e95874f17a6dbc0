"""What an agent gave in the end: checked, stored where it must be, small enough for one event."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mentatlab.protocol import events as agent
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code, Invalid, TooLarge
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Outcome
from mentatlab.runs.assignment import Assignment
from mentatlab.runs.conversation import Conversation
from mentatlab.runs.edges import BY_VALUE, is_array
from mentatlab.runs.events import MAX_PAYLOAD_BYTES
from mentatlab.runs.values import stream_value

_MAX_METRICS = 4 * 1024
_MAX_OUTPUTS = MAX_PAYLOAD_BYTES - 2 * _MAX_METRICS  # room for the event's other fields

logger = logging.getLogger(__name__)


class Outputs:
    def __init__(self, work: Assignment, conversation: Conversation) -> None:
        self._work, self._services, self._node = work, work.services, work.node
        self._conversation = conversation

    async def taken(self, found: Mapping[str, Any], program: AgentProgram) -> dict[str, Any]:
        """By pin, as they are recorded. `Invalid(OUTPUT_…)` for what is missing or does not fit."""
        outputs: dict[str, Any] = {}
        for pin in self._node.output_pins:
            value = found.get(pin.name, pin.default)
            if pin.type is PinType.STREAM:
                outputs[pin.name] = await self._finished_stream(pin, value)
            elif value is not None:
                edge = self._work.edge(pin, below=self._work.out_dir)
                outputs[pin.name] = await self._services.edges.process_edge_data(edge, value)
            elif pin.required and not program.outputs_optional:
                raise Invalid(
                    Code.OUTPUT_MISSING,
                    f"{program.id} ended without its output {pin.name!r}",
                    hint=f"return it, or declare the pin with `required: false`; it gave: "
                    f"{', '.join(found) or 'nothing'}",
                )
        return await self._shrunk(outputs)

    async def _finished_stream(self, pin: Pin, value: Any) -> dict[str, Any]:
        """A result may hold a stream pin's elements too: a list of them, or one."""
        if value is not None and not (is_object(value) and value.get("type") == "stream"):
            listed = value if is_array(value) else [value]
            await self._conversation.heard([agent.Chunk(pin=pin.name, data=one) for one in listed])
        return await self._stream(pin.name)

    async def streams(self) -> dict[str, Any]:
        """The streams as they are, of an agent that was stopped."""
        pins = [pin.name for pin in self._node.output_pins if pin.type is PinType.STREAM]
        return {pin: await self._stream(pin) for pin in pins}

    async def _stream(self, pin: str) -> dict[str, Any]:
        lane = await self._services.hub.lane(self._work.lane(pin))
        return stream_value(self._work.run.id, self._node, pin, chunks=lane.chunks, state="ended")

    def metrics(self, outcome: Outcome) -> Mapping[str, Any]:
        if len(msgspec.json.encode(outcome.metrics)) <= _MAX_METRICS:
            return outcome.metrics
        logger.warning(
            "metrics of %s in %s are too large to keep", self._node.id, self._work.run.id
        )
        return {}

    async def _shrunk(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """One event holds them all: the largest go by reference until it does."""
        sizes = {name: len(msgspec.json.encode(value)) for name, value in outputs.items()}
        for pin in sorted(self._node.output_pins, key=lambda p: -sizes.get(p.name, 0)):
            if sum(sizes.values()) <= _MAX_OUTPUTS:
                break
            if pin.type in BY_VALUE:
                edge = replace(self._work.edge(pin), max_inline=0)
                outputs[pin.name] = await self._services.edges.process_edge_data(
                    edge, outputs[pin.name]
                )
                sizes[pin.name] = len(msgspec.json.encode(outputs[pin.name]))
        if (total := sum(sizes.values())) > _MAX_OUTPUTS:
            raise TooLarge(
                Code.VALUE_TOO_LARGE,
                f"the outputs of {self._node.id} take {total} bytes, over {_MAX_OUTPUTS}",
                hint="describe media in fewer words: their metadata are what takes the room",
            )
        return outputs
