"""One invocation as seen from inside the agent process: what came in, and the way out for its
events.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from mentatlab.protocol.stdio import BatchPlace, Context, InputChunk, encode
from mentatlab.sdk.errors import AgentError
from mentatlab.sdk.inputs import InputStream
from mentatlab.sdk.wire import Wire


class Invocation:
    """`id` is empty in a one-shot process. `inputs` holds pins and params; stream pins are
    `InputStream`s.
    """

    def __init__(
        self,
        wire: Wire,
        spec: Mapping[str, Any],
        context: Mapping[str, Any],
        *,
        id_: str = "",
        batch: BatchPlace | None = None,
    ) -> None:
        self.id = id_
        self.batch = batch
        self.context = msgspec.convert(context, Context)
        self.moved = asyncio.Event()
        self.streams: dict[str, InputStream] = {}
        self.inputs = {name: self._input(name, value) for name, value in spec.items()}
        self.cancelled = threading.Event()
        self._wire = wire
        self._credits: dict[str, _Credit] = {}
        self._outputs: dict[str, _Output] = {}
        self._files = 0

    def _input(self, name: str, value: Any) -> Any:
        match value:
            case {"type": "stream", "live": True}:
                stream = InputStream(name, lambda seq: self._acknowledge(name, seq), self.moved)
                return self.streams.setdefault(name, stream)
            case _:
                return value

    def _acknowledge(self, pin: str, seq: int) -> None:
        self.emit("ack", pin=pin, seq=seq)

    def emit(self, type_: str, **fields: Any) -> None:
        """Send an event, from any thread; fields that are None stay away."""
        said = {k: v for k, v in fields.items() if v is not None}
        self._wire.send(self._event(type_, said))

    def _event(self, type_: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        head = {"type": type_, "id": self.id} if self.id else {"type": type_}
        return {**head, **fields}

    def open_output(self, pin: str) -> str:
        """The stream id of an output pin."""
        stream_id = f"{self.context.run_id}/{self.context.node_id}/{pin}"
        self._outputs.setdefault(stream_id, _Output(pin))
        return stream_id

    def close_output(self, stream_id: str) -> None:
        self._output(stream_id).open = False

    def _output(self, stream_id: str) -> "_Output":
        output = self._outputs.get(stream_id)
        if output is None or not output.open:
            code = "STREAM_UNKNOWN" if output is None else "STREAM_ENDED"
            raise AgentError(
                code, f"{stream_id!r} is not an open output", hint="call init_stream(pin) first"
            )
        return output

    async def send_chunk(self, stream_id: str, body: Mapping[str, Any]) -> None:
        """Send one element of a stream output; waits for the host's credit and for its pipe."""
        pin = self._output(stream_id).pin
        line = encode(self._event("chunk", {"pin": pin, **body}))
        if credit := self._credits.get(pin):
            await credit.spend(len(line))
        await self._wire.send_line(line)

    def grant(self, pin: str, bytes_: int) -> None:
        self._credits.setdefault(pin, _Credit()).grant(bytes_)

    def put(self, chunk: InputChunk) -> None:
        if stream := self.streams.get(chunk.pin):
            stream.put(chunk)

    def end_input(self, pin: str, status: str) -> None:
        if stream := self.streams.get(pin):
            stream.end(status)

    def end_inputs(self) -> None:
        for stream in self.streams.values():
            stream.end("complete")

    async def wait_for_room(self) -> None:
        """Back-pressure of a one-shot process: while an input is full, and nobody starves on
        another one.
        """
        streams = self.streams.values()
        while any(s.full for s in streams) and not any(s.hungry for s in streams):
            self.moved.clear()
            await self.moved.wait()

    def delivered(self) -> dict[str, int]:
        """Per stream input the last sequence that the agent was handed."""
        return {pin: stream.delivered for pin, stream in self.streams.items()}

    def new_file_number(self) -> int:
        self._files += 1
        return self._files


@dataclass(slots=True)
class _Output:
    pin: str
    open: bool = True


class _Credit:
    """Absolute bytes, so that a lost or repeated grant is harmless. A line may overdraw once."""

    def __init__(self) -> None:
        self._granted = 0
        self._spent = 0
        self._more = asyncio.Event()

    def grant(self, bytes_: int) -> None:
        self._granted = max(self._granted, bytes_)
        self._more.set()

    async def spend(self, bytes_: int) -> None:
        while self._spent >= self._granted:
            self._more.clear()
            await self._more.wait()
        self._spent += bytes_


_current: contextvars.ContextVar[Invocation] = contextvars.ContextVar("mentatlab_invocation")
_batch: contextvars.ContextVar[Sequence[Invocation]] = contextvars.ContextVar("mentatlab_batch")


def enter(invocation: Invocation) -> None:
    """Make it the current one of this task and of all that it starts."""
    _current.set(invocation)


def current() -> Invocation:
    try:
        return _current.get()
    except LookupError:
        raise AgentError(
            "AGENT_ERROR",
            "no invocation is running here",
            hint="call this from process() or from something that process() started",
        ) from None


def enter_batch(invocations: Sequence[Invocation]) -> None:
    """Of a call that serves them all. What it says without naming one is said of the first."""
    _batch.set(invocations)
    enter(invocations[0])


@contextlib.contextmanager
def one_of_batch(index: int) -> Generator[None]:
    """Inside, the item of that index is the current invocation."""
    token = _current.set(_batch.get()[index])
    try:
        yield
    finally:
        _current.reset(token)
