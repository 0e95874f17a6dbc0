"""The agent process contract on stdin/stdout: NDJSON, UTF-8, one object and at most 1 MiB a line.

Sans-IO and used by both sides: `Lines` cuts bytes into lines, `parse_event` reads what an agent
says, `parse_command` what a host says, `encode` writes either. Unknown types are ignored; a line
that is not JSON is a log line.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mentatlab.protocol import events
from mentatlab.protocol.errors import Code, TooLarge
from mentatlab.protocol.values import is_object

MAX_LINE_BYTES = 1 << 20
MAX_INLINE_BYTES = 32 * 1024
"""A pin value over this stands in `spec` only; at the top level too it would double the line."""
MAX_ENV_BYTES = 64 * 1024

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Mapping[str, Any]) -> bytes:
    """One line. `TooLarge(AGENT_LINE_TOO_LONG)` when it is over 1 MiB."""
    line = _encode(message) + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise too_long()
    return line


def too_long() -> TooLarge:
    return TooLarge(
        Code.AGENT_LINE_TOO_LONG,
        f"a line of the agent protocol is over {MAX_LINE_BYTES} bytes",
        hint="pass large values as files: upload_media() or a path under out_dir",
    )


class Lines:
    """Bytes in, complete lines out (without the newline). Holds at most one line of 1 MiB."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._rest = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[bytes]:
        """`TooLarge(AGENT_LINE_TOO_LONG)` as soon as an unfinished line is over the limit."""
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if len(line) > self._limit:
                    raise too_long()
                yield line
        if len(self._rest) > self._limit:
            raise too_long()

    def end(self) -> Iterator[bytes]:
        """The last line, when the stream ended without a newline."""
        if self._rest:
            yield bytes(self._rest)
            self._rest.clear()


_KINDS: dict[str, type[events.AgentEvent]] = {
    "ready": events.Ready,
    "log": events.Log,
    "progress": events.Progress,
    "metric": events.Metric,
    "checkpoint": events.Checkpoint,
    "heartbeat": events.Heartbeat,
    "chunk": events.Chunk,
    "output": events.Output,
    "error": events.Error,
    "result": events.Result,
    "ack": events.Ack,
}


def parse_event(line: bytes) -> events.AgentEvent | None:
    """One line of an agent's stdout. None = blank, or a type that this version does not know.

    A line that is no JSON object, or an event whose fields do not fit, comes back as a `Log`:
    agents print all sorts of things, and nothing of it is lost.
    """
    if not line.strip():
        return None
    try:
        message: object = _decode(line)
    except _NOT_JSON:
        message = None
    if not is_object(message):
        return events.Log(message=line.decode("utf-8", "replace"))
    kind = message.get("type")
    if not isinstance(kind, str):
        return events.Bare(value=message, invocation=_invocation(message))
    struct = _KINDS.get(kind)
    return None if struct is None else _event(kind, struct, message)


def _event(
    kind: str, struct: type[events.AgentEvent], message: dict[str, Any]
) -> events.AgentEvent:
    try:
        return msgspec.convert(_fields(message, struct), struct, strict=False)
    except msgspec.ValidationError as error:
        return events.Log(
            level="warning",
            message=f"ignored a malformed {kind} event: {error}",
            data=message,
            invocation=_invocation(message),
        )


def _invocation(message: Mapping[str, Any]) -> str:
    name = message.get("id")
    return name if isinstance(name, str) else ""


def _fields(message: dict[str, Any], struct: type[events.AgentEvent]) -> dict[str, Any]:
    fields: dict[str, Any] = _flatten(message, struct)
    if struct is events.Result and "outputs" not in fields:
        fields = {"outputs": fields}
    if struct is events.Log:
        fields = {**fields, "level": _level(fields.get("level"))}
    return {**fields, "invocation": _invocation(message)}


_OWN_DATA: dict[type[events.AgentEvent], str] = {events.Log: "message", events.Chunk: "pin"}
"""Events with a `data` of their own, and the key that shows that it stands flat."""


def _flatten(message: dict[str, Any], struct: type[events.AgentEvent]) -> dict[str, Any]:
    """Payload keys may stand flat or under `data`; `log` and `chunk` have a `data` of their own."""
    flat = {k: v for k, v in message.items() if k not in ("type", "id")}
    own_key = _OWN_DATA.get(struct)
    nested = flat.get("data")
    if not is_object(nested) or (own_key is not None and own_key in flat):
        return flat
    del flat["data"]
    return {**nested, **flat}


_LEVELS: dict[str, events.Level] = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "fatal": "error",
}


def _level(name: object) -> events.Level:
    """The logging libraries of this world do not agree on spelling."""
    return _LEVELS.get(str(name).lower(), "info")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What an invocation knows of its run. Unix seconds, absolute paths."""

    run_id: str
    node_id: str
    attempt: int = 1
    item: int | None = None
    execution_id: str = ""
    deadline: float | None = None
    resume_state: Any = None
    token: str = ""
    url: str = ""
    out_dir: str = ""
    idempotency_key: str = ""


def body(inputs: Mapping[str, Any], params: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The invocation body: pins at the top level and in `spec`, with params, beside `context`.

    A pin named `spec` or `context` wins over the envelope's key of that name.
    """
    spec = {**params, **inputs}
    small = {k: v for k, v in spec.items() if len(_encode(v)) <= MAX_INLINE_BYTES}
    return {"spec": spec, "context": msgspec.to_builtins(context), **small}


class BatchPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Invocations that were sent together: `size` of them carry this `id`; at most `most` are to be
    worked on at once."""

    id: str
    size: int
    most: int


class Invoke(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="invoke"):
    id: str
    batch: BatchPlace | None = None
    spec: dict[str, Any] = {}
    context: dict[str, Any] = {}


class InputChunk(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="chunk"):
    pin: str
    seq: int
    id: str = ""
    data: Any = msgspec.UNSET
    ref: Any = msgspec.UNSET
    pts: float | None = None
    item: int | None = None


class Eos(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="eos"):
    pin: str
    id: str = ""
    status: str = "complete"  # complete | cancelled | error


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="credit"):
    """Absolute bytes that the agent may have sent on this output pin since the invocation began."""

    pin: str
    bytes: int
    id: str = ""


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="cancel"):
    id: str = ""
    reason: str = ""


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="drain"):
    pass


Command = Invoke | InputChunk | Eos | Credit | Cancel | Drain
_commands = msgspec.json.Decoder(Command)


def parse_command(line: bytes) -> Command | None:
    """One line of a host, on the agent's side; None for what this version does not know."""
    try:
        return _commands.decode(line)
    except _NOT_JSON:
        return None


def encode_command(command: Command) -> bytes:
    line = _encode(command) + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise too_long()
    return line
