"""How an attempt ended, from what was heard and how the process went. Pure; the rules of the
contract:

result event → accumulated `output` events → last object without a type (unwrapped from `result`).
Exit 3 or a retryable error is transient, 124 a timeout, a kill by the kernel for memory `oom`, a
kill from outside `infra`; anything else is permanent.
"""

import signal
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from mentatlab.protocol import events
from mentatlab.protocol.agent import AgentProgram
from mentatlab.protocol.errors import Code
from mentatlab.protocol.pins import Pin, PinType
from mentatlab.runners.port import ErrorClass, Outcome

Cause = Literal[
    "cancelled",
    "timeout",
    "silent",
    "flood",
    "line_too_long",
    "closed_output",
    "foreign",
    "memory",
    "processes",
    "scratch",
]
"""Why the host itself ended an attempt."""

EXIT_TRANSIENT = 3
EXIT_TIMEOUT = 124
_META = "mentat_meta"
_OLD_OPTIONAL = frozenset({"error", _META})


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """`exit_code` is negative for a signal (as in `subprocess`), None when the process lives on
    (warm).
    """

    exit_code: int | None = None
    cause: Cause | None = None
    oom: bool = False
    last_words: str = ""  # last line of stderr
    detail: str = ""  # numbers to the cause


class Heard:
    """What an attempt has said so far that bears on its result: one value for each pin, however
    much is said.
    """

    def __init__(self, program: AgentProgram) -> None:
        self._names = {pin.name for pin in program.outputs} | {_META}
        self.answered = False
        self.result: dict[str, Any] | None = None
        self.outputs: dict[str, Any] = {}
        self.bare: dict[str, Any] | None = None
        self.error: events.Error | None = None

    def feed(self, event: events.AgentEvent) -> events.AgentEvent | None:
        """Take note; gives what is to be passed on to whoever reads the attempt's events."""
        self.answered |= isinstance(event, events.Result | events.Output | events.Bare)
        match event:
            case events.Result():
                self.result = event.outputs
            case events.Error():
                self.error = event
            case events.Bare():
                return self._bare(event.value)
            case events.Output():
                if event.key in self._names:
                    self.outputs[event.key] = event.value
                return event
            case events.Ready():
                pass
            case _:
                return event
        return None

    def _bare(self, value: dict[str, Any]) -> events.Log | None:
        """Only the last object is the result; an earlier one was something the agent said."""
        earlier, self.bare = self.bare, value
        if earlier is None:
            return None
        return events.Log(message=msgspec.json.encode(earlier).decode(), data=earlier)


def conclude(program: AgentProgram, heard: Heard, ending: Ending) -> Outcome:
    """The outcome: a cause of the host's, then the agent's own error, then exit code and result."""
    if ending.cause is not None:
        return _ended_by_host(ending.cause, ending)
    if heard.error is not None:
        return _reported(heard.error, ending)
    if ending.exit_code:
        return _exited(ending.exit_code, ending)
    return _succeeded(program, heard, ending)


def failed(
    class_: ErrorClass, code: Code, message: str, *, hint: str = "", exit_code: int | None = None
) -> Outcome:
    return Outcome(
        status="failed",
        error_class=class_,
        code=code,
        message=message,
        hint=hint,
        exit_code=exit_code,
    )


_CAUSES: dict[Cause, tuple[ErrorClass, Code, str, str]] = {
    "timeout": (
        "timeout",
        Code.AGENT_TIMEOUT,
        "the agent did not end in time",
        "raise `timeouts.attempt_s` of the node or `resources.timeout_seconds` of the agent",
    ),
    "silent": (
        "timeout",
        Code.AGENT_TIMEOUT,
        "the agent gave no sign of life",
        "send progress or heartbeat events, or raise `timeouts.heartbeat_s`",
    ),
    "flood": (
        "permanent",
        Code.AGENT_FLOOD,
        "the agent wrote far more than anybody can read",
        "log less; send large outputs as files or stream chunks",
    ),
    "line_too_long": (
        "permanent",
        Code.AGENT_LINE_TOO_LONG,
        "the agent wrote a line of more than 1 MiB",
        "pass large values as files: upload_media() or a path under out_dir",
    ),
    "closed_output": (
        "permanent",
        Code.AGENT_PROTOCOL,
        "the agent closed its output and went on running",
        "end the process when the result is written",
    ),
    "foreign": (
        "permanent",
        Code.AGENT_PROTOCOL,
        "the agent spoke for an invocation that it was not given",
        "answer with the `id` of the `invoke`",
    ),
    "memory": (
        "oom",
        Code.AGENT_OOM,
        "the agent and its processes use too much memory",
        "raise `resources.memory` in its manifest, or give it smaller inputs",
    ),
    "processes": (
        "permanent",
        Code.AGENT_PROCESSES,
        "the agent started too many processes",
        "use a pool of a fixed size",
    ),
    "scratch": (
        "permanent",
        Code.AGENT_SCRATCH_FULL,
        "the agent wrote too much to disk",
        "raise `resources.ephemeralStorage` in its manifest",
    ),
}


def _ended_by_host(cause: Cause, ending: Ending) -> Outcome:
    if cause == "cancelled":
        return Outcome(
            status="cancelled",
            code=Code.AGENT_CANCELLED,
            message="the attempt was cancelled",
            exit_code=ending.exit_code,
        )
    class_, code, message, hint = _CAUSES[cause]
    message = f"{message}: {ending.detail}" if ending.detail else message
    return failed(class_, code, message, hint=hint, exit_code=ending.exit_code)


def _reported(error: events.Error, ending: Ending) -> Outcome:
    class_: ErrorClass = "permanent"
    if error.code == Code.AGENT_OOM:
        class_ = "oom"
    elif error.retryable or ending.exit_code == EXIT_TRANSIENT:
        class_ = "transient"
    return Outcome(
        status="failed",
        error_class=class_,
        code=error.code,
        message=error.message,
        hint=error.hint,
        exit_code=ending.exit_code,
    )


_EXIT_HINTS = {
    Code.AGENT_KILLED: "the machine's log may say who ended it",
    Code.AGENT_OOM: "give it smaller inputs, or the machine more memory",
    Code.AGENT_TIMEOUT: "give it more time or smaller inputs",
    Code.AGENT_SCRATCH_FULL: "raise `resources.ephemeralStorage` in its manifest",
}
_MORE = ("run it by hand to see why: `mentatlab agent run`", "the node's log says more")


def _exited(code: int, ending: Ending) -> Outcome:
    said = f": {ending.last_words}" if ending.last_words else ""
    class_, name = _exit_class(code, oom=ending.oom)
    how = f"was ended by {_signal_name(-code)}" if code < 0 else f"exited with {code}"
    return failed(
        class_,
        name,
        f"the agent {how}{said}",
        hint=_EXIT_HINTS.get(name) or _MORE[bool(said)],
        exit_code=code,
    )


def _exit_class(code: int, *, oom: bool) -> tuple[ErrorClass, Code]:
    if oom:
        return "oom", Code.AGENT_OOM
    match code:
        case 3:
            return "transient", Code.AGENT_TRANSIENT
        case 124:
            return "timeout", Code.AGENT_TIMEOUT
        case _ if code == -signal.SIGXCPU:
            return "timeout", Code.AGENT_TIMEOUT
        case _ if code == -signal.SIGXFSZ:
            return "permanent", Code.AGENT_SCRATCH_FULL
        case _ if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            return "infra", Code.AGENT_KILLED  # somebody else's hand
        case _:
            return "permanent", Code.AGENT_EXIT


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _succeeded(program: AgentProgram, heard: Heard, ending: Ending) -> Outcome:
    pins = program.outputs
    if heard.result is not None:
        said, metrics = _by_pin(heard.result, pins)
    elif heard.outputs:
        said, metrics = _by_pin(heard.outputs, pins)
    elif heard.bare is not None:
        said, metrics = _from_bare(heard.bare, pins)
    else:
        said, metrics = {}, {}
    missing = _missing(program, said, silent=not heard.answered)
    if not missing:
        return Outcome(
            status="succeeded", outputs=said, metrics=metrics, exit_code=ending.exit_code
        )
    names = ", ".join(missing)
    if not heard.answered:
        return failed(
            "permanent",
            Code.NO_RESULT,
            f"the agent ended without a result; expected {names}",
            hint="print one JSON object with the output pins, or send a result event",
            exit_code=ending.exit_code,
        )
    return failed(
        "permanent",
        Code.OUTPUT_MISSING,
        f"the result has no {names}",
        hint="name the output pins in the result, or set required: false in the manifest",
        exit_code=ending.exit_code,
    )


def _missing(program: AgentProgram, said: Mapping[str, Any], *, silent: bool) -> list[str]:
    """Required outputs that stayed away. Streams may be empty. Old manifests require only *some*
    result.
    """
    wanted = [p.name for p in program.outputs if p.type is not PinType.STREAM]
    if program.outputs_optional:
        return [name for name in wanted if name not in _OLD_OPTIONAL] if silent else []
    required = {p.name for p in program.outputs if p.required}
    return [name for name in wanted if name in required and name not in said]


def _object(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _by_pin(
    said: Mapping[str, Any], pins: tuple[Pin, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs by pin, and the metrics of `mentat_meta`. What is no pin is left out."""
    names = {p.name for p in pins}
    metrics = {} if _META in names else _object(said.get(_META)) or {}
    return {k: v for k, v in said.items() if k in names}, metrics


def _from_bare(
    value: dict[str, Any], pins: tuple[Pin, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {p.name for p in pins}
    wrapped = "result" in value and "result" not in names
    inner: Any = value["result"] if wrapped else value
    fields = _object(inner) or {}
    if names & fields.keys():
        outputs, metrics = _by_pin(fields, pins)
    else:
        outputs, metrics = _whole(inner, pins), _by_pin(fields, ())[1]
    return outputs, metrics or _by_pin(value, ())[1]


def _whole(inner: Any, pins: tuple[Pin, ...]) -> dict[str, Any]:
    """One output pin and no key that matches: the whole is its value."""
    values = [p for p in pins if p.type is not PinType.STREAM and p.name not in _OLD_OPTIONAL]
    if len(values) != 1:
        return {}
    fields = _object(inner)
    whole = inner if fields is None else {k: v for k, v in fields.items() if k != _META}
    return {values[0].name: whole}
