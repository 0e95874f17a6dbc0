"""What a run's log holds: the committed facts, in order, and their stored form.

State is the fold of these events (`decide.apply`), so a run is recovered by reading its log. An
event's stored `type` is `name/version`; a field may be added with a default, any other change is a
new version and a step in `upcasters` that brings the old one there. Stream chunks are never events.
The encoded payload of one event is at most 64 KiB.
"""

from typing import Any, Literal

import msgspec

from mentatlab.protocol.errors import Code, Internal, TooLarge
from mentatlab.runs.upcasters import upcast

MAX_PAYLOAD_BYTES = 64 * 1024

ErrorClass = Literal["infra", "transient", "timeout", "oom", "permanent"]
RunEnd = Literal["succeeded", "partial", "failed", "cancelled"]
EndingReason = Literal["user_cancel", "timeout", "engine_lost"]
RetryCause = Literal["failure", "lost", "oom"]


MAX_TEXT = 4096
"""Characters of a fault's message or hint: agents may say anything, and events have a limit."""
MAX_CODE = 100


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt, a node or a run ended badly."""

    code: str
    message: str
    hint: str = ""
    kind: ErrorClass = "permanent"

    @classmethod
    def told(cls, code: str, message: str, hint: str, kind: ErrorClass) -> "Fault":
        """Of words that are not ours, cut where they are too long."""
        return cls(code[:MAX_CODE], _cut(message), _cut(hint), kind)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="type"):
    """`at` in Unix seconds; `node` empty = the run itself; `item` set = one item of a `forEach`
    node."""

    at: float
    node: str = ""
    item: int | None = None
    attempt: int = 0


class RunCreated(Event, frozen=True, kw_only=True, tag="run_created/1"):
    """`origin`: the run that this one replays or does again from `from_node`; `trigger`: the
    schedule or webhook that made it, `schedule:ID` or `webhook:ID`."""

    flow_id: str
    digest: str
    origin: str = ""
    from_node: str = ""
    trigger: str = ""


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started/1"):
    pass


class NodeStarted(Event, frozen=True, kw_only=True, tag="node_started/1"):
    """`resume_from`: per stream output pin the sequence up to which earlier attempts' records
    stand. `left_out`: input pins whose edges stay away."""

    resume_from: dict[str, int] = {}
    left_out: tuple[str, ...] = ()


class NodeSucceeded(Event, frozen=True, kw_only=True, tag="node_succeeded/1"):
    """`taken`: the output pins that a control node has chosen; None = all. `resources`: what the
    attempt was given, and why. `timing`: seconds by stage, `queued`, `starting`, `running`. The
    metric `stopped_early` is true of a producer that was stopped because nobody read on."""

    outputs: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    taken: tuple[str, ...] | None = None
    resources: dict[str, Any] = {}
    timing: dict[str, float] = {}


class NodeCached(Event, frozen=True, kw_only=True, tag="node_cached/1"):
    """Nothing ran: `origin` is the run whose outputs these are."""

    origin: str
    outputs: dict[str, Any] = {}


class NodeSkipped(Event, frozen=True, kw_only=True, tag="node_skipped/1"):
    """`when`: its own condition was false; `branch`: the output that feeds it was not chosen;
    `upstream`: what feeds it was skipped; `upstream` names that node. `no_demand`: all who would
    have read its stream had ended."""

    cause: Literal["when", "branch", "upstream", "no_demand"]
    upstream: str = ""


class GateOpened(Event, frozen=True, kw_only=True, tag="gate_opened/1"):
    """The gate waits for an approval, until `until` (Unix seconds, 0 = for ever)."""

    message: str = ""
    until: float = 0.0


class GateClosed(Event, frozen=True, kw_only=True, tag="gate_closed/1"):
    """`by`: who decided; empty when its time was over. The node's end follows."""

    approved: bool
    by: str = ""
    comment: str = ""


class RetryScheduled(Event, frozen=True, kw_only=True, tag="retry_scheduled/2"):
    """The attempt is over and another will start at `retry_at` (Unix seconds). `cause`: it failed,
    it was lost with its server (no failure of the node), or it had too little memory (the next one
    is given more, or a smaller batch)."""

    error: Fault
    cause: RetryCause
    retry_at: float
    resume_from: dict[str, int] = {}
    resources: dict[str, Any] = {}
    timing: dict[str, float] = {}


class NodeFailed(Event, frozen=True, kw_only=True, tag="node_failed/1"):
    error: Fault
    resources: dict[str, Any] = {}
    timing: dict[str, float] = {}


class NodeUpstreamFailed(Event, frozen=True, kw_only=True, tag="node_upstream_failed/1"):
    upstream: str


class NodeCancelled(Event, frozen=True, kw_only=True, tag="node_cancelled/1"):
    """`unconfirmed`: nobody could see that its process is gone."""

    unconfirmed: bool = False


class ItemsVoided(Event, frozen=True, kw_only=True, tag="items_voided/1"):
    """The source of a `forEach` node began again: items after `above` count no more. `attempt` is
    the node's new one."""

    above: int


class RunPaused(Event, frozen=True, kw_only=True, tag="run_paused/1"):
    """Nothing new starts; what runs goes on to its end."""


class RunResumed(Event, frozen=True, kw_only=True, tag="run_resumed/1"):
    pass


class RunEnding(Event, frozen=True, kw_only=True, tag="run_ending/1"):
    """`error`: what broke the engine, of reason `engine_lost`."""

    reason: EndingReason
    error: Fault | None = None


class RunFinished(Event, frozen=True, kw_only=True, tag="run_finished/1"):
    state: RunEnd
    reason: str = ""
    error: Fault | None = None


RunFact = (
    RunCreated
    | RunStarted
    | NodeStarted
    | NodeSucceeded
    | NodeCached
    | NodeSkipped
    | GateOpened
    | GateClosed
    | RetryScheduled
    | NodeFailed
    | NodeUpstreamFailed
    | NodeCancelled
    | ItemsVoided
    | RunPaused
    | RunResumed
    | RunEnding
    | RunFinished
)

_decoder = msgspec.json.Decoder(RunFact)
_older_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


def encode(event: RunFact) -> bytes:
    """`TooLarge(VALUE_TOO_LARGE)` over 64 KiB: larger values are stored and referred to before."""
    data = _encoder.encode(event)
    if len(data) > MAX_PAYLOAD_BYTES:
        raise TooLarge(
            Code.VALUE_TOO_LARGE,
            f"the outputs of {event.node} take {len(data)} bytes, over {MAX_PAYLOAD_BYTES}",
            hint="give fewer outputs, or larger ones: those go by reference",
        )
    return data


def decode(data: bytes) -> RunFact:
    """An event of this version or an older one."""
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError:
        return _decode_older(data)


def _decode_older(data: bytes) -> RunFact:
    try:
        return msgspec.convert(upcast(_older_decoder.decode(data)), RunFact)
    except msgspec.ValidationError as error:
        raise Internal(
            Code.DATABASE_ERROR,
            f"an event that this version cannot read: {error}",
            hint="start the version that wrote it",
        ) from error


def name_of(event: Event) -> str:
    """`node_succeeded/1` → `node_succeeded`."""
    return stored_type(event).partition("/")[0]


def stored_type(event: Event) -> str:
    return str(type(event).__struct_config__.tag)


class RunEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An event as the outside sees it; `seq` is dense from 1 in its run, `at` in Unix seconds."""

    run_id: str
    seq: int
    type: str
    version: int
    at: float
    node_id: str = ""
    item: int | None = None
    attempt: int = 0
    payload: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


_ENVELOPE = frozenset(("type", *Event.__struct_fields__))


def public(run_id: str, seq: int, event: Event) -> RunEvent:
    name, _, version = stored_type(event).partition("/")
    body: dict[str, Any] = msgspec.to_builtins(event)
    return RunEvent(
        run_id=run_id,
        seq=seq,
        type=name,
        version=int(version),
        at=event.at,
        node_id=event.node,
        item=event.item,
        attempt=event.attempt,
        payload={k: v for k, v in body.items() if k not in _ENVELOPE},
    )
