"""One attempt of one node or item: inputs gathered and checked, the conversation with the agent,
outputs checked and stored. `run` gives an `AttemptEnded`, whatever happens.
"""

import asyncio
import logging
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from mentatlab.flows.plan import Plan, PlanEdge, PlanNode
from mentatlab.protocol import events as agent
from mentatlab.protocol import tokens
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.protocol.media import is_reference
from mentatlab.protocol.pins import BY_REFERENCE, Pin, PinType
from mentatlab.protocol.records import Draft, Producer, RecordType, StreamChunk
from mentatlab.protocol.stdio import Context
from mentatlab.protocol.values import is_object
from mentatlab.runners.port import Attempt, Invocation, Outcome, Runner
from mentatlab.runs.edges import BY_VALUE, Budget, Edge, MultimodalEdgeProcessor, is_array
from mentatlab.runs.events import MAX_PAYLOAD_BYTES, Fault
from mentatlab.runs.lanes import Standing, stream_id
from mentatlab.runs.lookups import lane_pins
from mentatlab.runs.registry import AgentRegistry
from mentatlab.runs.signals import AttemptEnded, LaneActive, Signal
from mentatlab.runs.store import RunStore
from mentatlab.runs.values import Values, stream_value
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Appended
from mentatlab.streams.subscription import Options

MAX_CHUNK_BYTES = 256 * 1024
"""A chunk over this is stored, and its record refers to it."""
_EVENTS_AHEAD = 32
"""Of an agent's events, each up to 1 MiB, that are taken before the last ones are committed."""
_MAX_METRICS = 4 * 1024
_MAX_OUTPUTS = MAX_PAYLOAD_BYTES - 2 * _MAX_METRICS  # room for the event's other fields
_TOKEN_CAPABILITIES: tuple[tokens.Capability, ...] = ("sub", "pub", "put")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The other rooms and the world, as the engine was given them. `clock`: Unix seconds."""

    store: RunStore
    hub: StreamingConnectionManager
    edges: MultimodalEdgeProcessor
    runner: Runner
    registry: AgentRegistry
    scratch: Path
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secret: bytes = b""
    url: str = ""
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    id: str
    workspace: str
    flow_id: str


class Element(msgspec.Struct, frozen=True):
    """One element of a stream or list: a value (or reference), its sequence or index, its media
    time."""

    seq: int
    value: Any
    is_ref: bool = False
    pts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A checkpoint: `offsets` of the inputs, `heads` of the output lanes when it was read."""

    state: Any
    offsets: Mapping[str, int]
    heads: Mapping[str, int]


class NodeAttempt:
    """`consumed`: per live input pin the last sequence given to the agent; `saved`: its last
    checkpoint.

    `element` gives an item's value; `tell` takes signals for `decide`, `note` a node's log records.
    """

    def __init__(
        self,
        services: Services,
        run: RunInfo,
        plan: Plan,
        node: PlanNode,
        values: Values,
        *,
        item: int | None,
        element: Callable[[int], Awaitable[Element]],
        attempt: int,
        started_at: float,
        saved: SavedState | None,
        standing: Mapping[str, Standing],
        tell: Callable[[Signal], None],
        note: Callable[[str, list[Draft]], Awaitable[None]],
    ) -> None:
        self._services, self._run, self._plan, self._node = services, run, plan, node
        self._values, self.item, self.number = values, item, attempt
        self._load_element, self._element = element, Element(0, None)
        self._started_at, self.saved, self._tell, self._note = started_at, saved, tell, note
        self._standing = standing
        self.consumed: dict[str, int] = dict(saved.offsets) if saved else {}
        self._sent: dict[str, int] = {}
        self._heads: dict[str, int] = dict(saved.heads) if saved else {}
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        place = "-" if item is None else str(item)
        self._scratch = services.scratch / run.id / node.id / place / str(attempt)

    def cancel(self, reason: str) -> None:
        if not self._stop.done():
            self._stop.set_result(reason)

    async def run(self) -> AttemptEnded:
        try:
            with self._services.hub.working(self._run.id, self._node.id):
                ended = await self._attempt()
        except* MentatError as group:
            ended = self._ended(error=fault_of(first_of(group)))
        except* Exception as group:  # a bug here must not leave the run waiting
            logger.exception("attempt of %s in %s", self._node.id, self._run.id)
            ended = self._ended(error=internal_fault(first_of(group)))
        return ended

    async def clear(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _attempt(self) -> AttemptEnded:
        program = self._program()
        if self.item is not None:
            self._element = await self._load_element(self.item)
        out_dir = self._scratch / "out"
        await asyncio.to_thread(out_dir.mkdir, parents=True, exist_ok=True)
        invocation = await self._invocation(program, out_dir)
        if self._stop.done():
            return self._ended(error=_cancelled(self._stop.result()))
        async with self._services.runner.attempt(invocation) as live:
            outcome = await self._converse(live, out_dir)
        if outcome.status != "succeeded":
            return self._ended(error=_fault(outcome), metrics=outcome.metrics)
        outputs = await self._outputs(outcome.outputs, program, out_dir)
        return self._ended(outputs=outputs, metrics=self._metrics(outcome))

    def _ended(
        self,
        *,
        outputs: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        error: Fault | None = None,
    ) -> AttemptEnded:
        return AttemptEnded(
            at=self._services.clock(),
            node=self._node.id,
            item=self.item,
            attempt=self.number,
            outputs=outputs or {},
            metrics=metrics or {},
            error=error,
            jitter=self._services.chance(),
            resume_from=self.saved.heads if self.saved else {},
        )

    def _program(self) -> AgentProgram:
        manifest = self._node.manifest
        assert manifest is not None
        return self._services.registry.get(f"{manifest.id}:{manifest.version}").entry

    # -- inputs

    async def _invocation(self, program: AgentProgram, out_dir: Path) -> Invocation:
        inputs = await self._inputs()
        given = self._services.environment
        attempt_s = self._attempt_s(program)
        return Invocation(
            workspace=self._run.workspace,
            program=program,
            inputs=inputs,
            params={k: v for k, v in self._node.params.items() if k not in inputs},
            context=self._context(out_dir, attempt_s),
            stream_inputs=tuple(edge.target_pin for edge in self._fed_edges()),
            env={name: given[name] for name in program.env if name in given},
            scratch=self._scratch,
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
        left = self._started_at + limits.total_s - self._services.clock()
        return max(0.001, min(own, left))

    def _context(self, out_dir: Path, attempt_s: float) -> Context:
        services, item = self._services, self.item
        subject = f"{self._run.id}/{self._node.id}/{'' if item is None else item}"
        now = services.clock()
        return Context(
            run_id=self._run.id,
            node_id=self._node.id,
            attempt=self.number,
            item=item,
            execution_id=self._run.id,
            deadline=now + attempt_s,
            resume_state=self.saved.state if self.saved else None,
            token=self._token(f"{subject}/{self.number}", now + attempt_s),
            url=services.url,
            out_dir=str(out_dir),
            idempotency_key=subject,
        )

    def _token(self, subject: str, until: float) -> str:
        if not self._services.secret:
            return ""
        now = self._services.clock()
        claims = tokens.Claims(
            subject=subject,
            capabilities=_TOKEN_CAPABILITIES,
            workspace=self._run.workspace,
            expires=int(min(until, now + tokens.MAX_LIFETIME_S)),
        )
        return tokens.mint(claims, self._services.secret)

    def _fed_edges(self) -> list[PlanEdge]:
        """Edges whose elements are sent while the agent runs."""
        return [edge for edge in self._node.inputs if is_fed(edge)]

    async def _inputs(self) -> dict[str, Any]:
        """Every value pin, checked against its constraints before the agent starts."""
        budget, inputs = Budget(), dict[str, Any]()
        fed = {edge.target_pin for edge in self._fed_edges()}
        for pin in self._node.input_pins:
            if pin.name in fed:
                continue
            value = await self._value_for(pin)
            if value is not None:
                inputs[pin.name] = await self._services.edges.deliver(
                    self._edge(pin), value, budget
                )
            elif pin.required and pin.name not in self._node.params:
                raise Invalid(
                    Code.MISSING_INPUT,
                    f"{self._node.id}.{pin.name} got no value",
                    hint="the node before it gave none",
                )
        return inputs

    async def _value_for(self, pin: Pin) -> Any:
        if self.item is not None and pin.name == self._node.for_each:
            return self._element.value
        edge = next((e for e in self._node.inputs if e.target_pin == pin.name), None)
        if edge is None:
            value = self._values.get(self._node.id, pin.name)
            return self._node.params.get(pin.name, pin.default) if value is None else value
        if edge.adapter == "collect" and not edge.source_is_list:
            return await self._collect(edge, pin)
        return self._values.of(edge)

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
        return await self._services.edges.process_edge_data(self._edge(whole), found)

    def _stream_of(self, edge: PlanEdge) -> str | None:
        """The lane behind an edge; a run's own input may name a stream too."""
        match self._values.of(edge):
            case {"type": "stream", "stream_id": str(name)}:
                return name
            case _ if edge.source_pin in lane_pins(self._plan.node(edge.source)):
                return stream_id(self._run.id, edge.source, edge.source_pin)
            case _:
                return None

    def _edge(
        self, pin: Pin, *, owner: str = "", below: Path | None = None, chunk: bool = False
    ) -> Edge:
        edge = Edge(
            workspace=self._run.workspace,
            flow_id=self._run.flow_id,
            run_id=self._run.id,
            node_id=self._node.id,
            pin=pin,
            owner=owner or f"run:{self._run.id}",
            now_ms=int(self._services.clock() * 1000),
            below=below,
        )
        return replace(edge, max_inline=MAX_CHUNK_BYTES) if chunk else edge

    # -- the conversation

    async def _converse(self, live: Attempt, out_dir: Path) -> Outcome:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(self._cancel_when_asked(live))]
            helpers += [group.create_task(self._feed(live, edge)) for edge in self._fed_edges()]
            await self._listen(live, out_dir)
            outcome = await live.outcome()
            for helper in helpers:
                helper.cancel()
        return outcome

    async def _cancel_when_asked(self, live: Attempt) -> None:
        await live.cancel(await asyncio.shield(self._stop))

    async def _feed(self, live: Attempt, edge: PlanEdge) -> None:
        """The source's elements as they come, then the end. The agent's pipe holds them back."""
        pin = next(p for p in self._node.input_pins if p.name == edge.target_pin)
        status: Literal["complete", "error"] = "complete"
        try:
            async for element in self._elements_of(edge):
                value = await self._delivered(pin, element.value)
                self.consumed[pin.name] = element.seq
                sent = {"ref" if element.is_ref and is_reference(value) else "data": value}
                await live.send_chunk(pin.name, element.seq, pts=element.pts, **sent)
        except StreamBrokenError:
            status = "error"
        await live.end_input(pin.name, status)

    async def _delivered(self, pin: Pin, value: Any) -> Any:
        """The place of an item that failed under `collect` holds its error, whatever the pin's
        type."""
        if is_object(value) and value.keys() == {"item", "error"}:
            return value
        return await self._services.edges.deliver(self._edge(pin), value, Budget())

    async def _elements_of(self, edge: PlanEdge) -> AsyncIterator[Element]:
        after = self.consumed.get(edge.target_pin, 0)
        name = self._stream_of(edge)
        if name is not None:
            async for element in self._lane(name, after, reader=self._node.id):
                yield element
        elif after == 0 and (value := self._values.of(edge)) is not None:
            yield Element(1, value, is_reference(value))

    def _lane(self, name: str, after: int = 0, *, reader: str = "") -> AsyncIterator[Element]:
        standing = self._standing.get(name)
        return elements(self._services.hub, name, after=after, standing=standing, reader=reader)

    async def _listen(self, live: Attempt, out_dir: Path) -> None:
        """Everything that waits is taken together, so that many small chunks share a commit."""
        waiting: asyncio.Queue[agent.AgentEvent | None] = asyncio.Queue(_EVENTS_AHEAD)

        async def read() -> None:
            async for event in live.events():
                await waiting.put(event)
            await waiting.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (batch := await _take(waiting))[-1] is not None:
                await self._heard(batch, out_dir)
            await self._heard(batch[:-1], out_dir)

    async def _heard(self, batch: Sequence[agent.AgentEvent | None], out_dir: Path) -> None:
        drafts: dict[str, list[Draft]] = {}
        notes: list[Draft] = []
        for event in batch:
            match event:
                case agent.Chunk():
                    draft = await self._draft(event, out_dir)
                    drafts.setdefault(event.pin, []).append(draft)
                case agent.Checkpoint():
                    await self._publish(drafts)
                    drafts = {}
                    self._save(event)
                case agent.Log() | agent.Progress() | agent.Metric():
                    notes.append(log_draft(event, attempt=self.number, item=self.item))
                case _:
                    pass
        await self._publish(drafts)
        if notes:
            await self._note(self._node.id, notes)

    def _save(self, checkpoint: agent.Checkpoint) -> None:
        offsets = self.consumed if checkpoint.offsets is None else checkpoint.offsets
        self.saved = SavedState(
            state=checkpoint.state, offsets=dict(offsets), heads=dict(self._heads)
        )

    async def _draft(self, chunk: agent.Chunk, out_dir: Path) -> Draft:
        pin = self._stream_pin(chunk.pin)
        if chunk.path is not None:
            given: Any = {"path": chunk.path, "metadata": chunk.metadata}
        elif chunk.ref is not None:
            given = chunk.ref
        else:
            given = None if chunk.data is msgspec.UNSET else chunk.data
        owner = f"stream:{stream_id(self._run.id, self._node.id, pin.name)}"
        edge = self._edge(pin, owner=owner, below=out_dir, chunk=True)
        value = await self._services.edges.process_edge_data(edge, given)
        return chunk_draft(
            pin,
            value,
            attempt=self.number,
            metadata=chunk.metadata,
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
        for pin, batch in drafts.items():
            if self._stop.done():  # another attempt may have begun on this lane
                return
            sent = self._sent.get(pin, 0)
            producer = Producer(
                id=f"{self._run.id}/{self._node.id}/", epoch=self.number, seq=sent + 1
            )
            name = stream_id(self._run.id, self._node.id, pin)
            appended = await self._appended(name, batch, producer)
            if appended is None:
                return
            self._sent[pin], self._heads[pin] = sent + len(batch), appended.last
            if sent == 0:
                self._tell(
                    LaneActive(
                        at=self._services.clock(),
                        node=self._node.id,
                        pin=pin,
                        attempt=self.number,
                    )
                )

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

    # -- outputs

    async def _outputs(
        self, found: Mapping[str, Any], program: AgentProgram, out_dir: Path
    ) -> dict[str, Any]:
        outputs: dict[str, Any] = {}
        for pin in self._node.output_pins:
            value = found.get(pin.name, pin.default)
            if pin.type is PinType.STREAM:
                outputs[pin.name] = await self._finished_stream(pin, value, out_dir)
            elif value is not None:
                edge = self._edge(pin, below=out_dir)
                outputs[pin.name] = await self._services.edges.process_edge_data(edge, value)
            elif pin.required and not program.outputs_optional:
                raise Invalid(
                    Code.OUTPUT_MISSING,
                    f"{program.id} ended without its output {pin.name!r}",
                    hint=f"return it, or declare the pin with `required: false`; it gave: "
                    f"{', '.join(found) or 'nothing'}",
                )
        return await self._shrunk(outputs)

    async def _finished_stream(self, pin: Pin, value: Any, out_dir: Path) -> dict[str, Any]:
        """A result may hold a stream pin's elements too: a list of them, or one."""
        if value is not None and not (is_object(value) and value.get("type") == "stream"):
            listed = value if is_array(value) else [value]
            chunks = [agent.Chunk(pin=pin.name, data=one) for one in listed]
            await self._heard(chunks, out_dir)
        lane = await self._services.hub.lane(stream_id(self._run.id, self._node.id, pin.name))
        return stream_value(self._run.id, self._node, pin.name, chunks=lane.chunks, state="ended")

    def _metrics(self, outcome: Outcome) -> Mapping[str, Any]:
        if len(msgspec.json.encode(outcome.metrics)) <= _MAX_METRICS:
            return outcome.metrics
        logger.warning("metrics of %s in %s are too large to keep", self._node.id, self._run.id)
        return {}

    async def _shrunk(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """One event holds them all: the largest go by reference until it does."""
        sizes = {name: len(msgspec.json.encode(value)) for name, value in outputs.items()}
        for pin in sorted(self._node.output_pins, key=lambda p: -sizes.get(p.name, 0)):
            if sum(sizes.values()) <= _MAX_OUTPUTS:
                break
            if pin.type in BY_VALUE:
                edge = replace(self._edge(pin), max_inline=0)
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


class StreamBrokenError(MentatError):
    """A source stream ended otherwise than complete; the engine decides what follows."""

    def __init__(self, name: str) -> None:
        super().__init__(
            Code.UPSTREAM_FAILED,
            f"the stream {name} broke off",
            hint="see the error of its producer",
        )


async def elements(
    hub: StreamingConnectionManager,
    name: str,
    *,
    after: int = 0,
    standing: Standing | None = None,
    reader: str = "",
) -> AsyncIterator[Element]:
    """The standing data of a lane, in order, as they come. Without `standing` all of it stands.

    `reader` is the node that holds the lane's publisher back to its own pace; "" holds nobody.
    """
    options = Options(policy="block", reader=reader) if reader else Options()
    async with hub.subscribe(name, from_=after + 1, options=options) as records:
        async for record in records:
            match record.type:
                case RecordType.DATA:
                    if standing is None or standing.holds(record.sequence):
                        yield element_of(record)
                case RecordType.END if record.payload.get("reason") == "complete":
                    return
                case RecordType.END | RecordType.ERROR:
                    raise StreamBrokenError(name)
                case RecordType.START:
                    pass


def is_fed(edge: PlanEdge) -> bool:
    """Whether the agent gets the edge's elements one by one while it runs."""
    return edge.kind == "stream" or edge.adapter == "once"


def element_of(record: StreamChunk) -> Element:
    pts = None if record.pts_us is None else record.pts_us / 1e6
    if "ref" in record.payload:
        return Element(record.sequence, record.payload["ref"], True, pts)
    return Element(record.sequence, record.payload.get("data"), False, pts)


def log_draft(event: agent.Event, *, attempt: int, item: int | None) -> Draft:
    """`{"kind": "log" | "progress" | "metric", …}` as it stands in a node's log."""
    said = {k: v for k, v in msgspec.to_builtins(event).items() if v not in (None, "")}
    said.pop("invocation", None)
    kind = type(event).__name__.lower()
    payload = {"data": {"kind": kind, **said}, "metadata": {"mime_type": _JSON}}
    return Draft(payload=payload, attempt=attempt, item=item)


def chunk_draft(
    pin: Pin,
    value: Any,
    *,
    attempt: int,
    item: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    pts: float | None = None,
    duration: float | None = None,
) -> Draft:
    """`ref` for media and for what was stored because of its size, else `data`."""
    by_ref = is_reference(value) and (pin.item_type in BY_REFERENCE or value["type"] in BY_VALUE)
    mime = value["ref"].get("metadata", {}).get("mimeType") if by_ref else None
    described = {**(metadata or {}), "mime_type": mime or pin.metadata.mime_type or _JSON}
    return Draft(
        payload={"ref" if by_ref else "data": value, "metadata": described},
        pts_us=None if pts is None else round(pts * 1e6),
        dur_us=None if duration is None else round(duration * 1e6),
        attempt=attempt,
        item=item,
    )


_JSON = "application/json"


async def _take(
    waiting: asyncio.Queue[agent.AgentEvent | None],
) -> list[agent.AgentEvent | None]:
    batch = [await waiting.get()]
    while not waiting.empty():
        batch.append(waiting.get_nowait())
    return batch


def first_of(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first plain error in a group of groups."""
    first: BaseException = group.exceptions[0]
    if isinstance(first, BaseExceptionGroup):
        return first_of(cast(BaseExceptionGroup[BaseException], first))
    return first


def fault_of(error: BaseException) -> Fault:
    assert isinstance(error, MentatError)
    kind: Literal["infra", "permanent"] = "infra" if error.retryable else "permanent"
    return Fault.told(str(error.code), error.message, error.hint, kind)


def internal_fault(error: BaseException) -> Fault:
    return Fault.told(
        Code.INTERNAL,
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug of MentatLab; the server's log has the details",
        "permanent",
    )


def _cancelled(reason: str) -> Fault:
    return Fault(Code.AGENT_CANCELLED, f"cancelled: {reason}")


def _fault(outcome: Outcome) -> Fault:
    """How an attempt that was not asked to stop came to be cancelled is the platform's matter."""
    kind = outcome.error_class or ("infra" if outcome.status == "cancelled" else "permanent")
    code = outcome.code or Code.AGENT_ERROR
    return Fault.told(str(code), outcome.message or "the agent failed", outcome.hint, kind)
