"""Inputs that end the process that works on them."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from mentatlab.protocol.errors import Code
from mentatlab.runners.port import Invocation, Outcome
from mentatlab.runners.result import Ending, failed

POISON = 3
"""Crashes over one input after which it is not tried again."""

_REMEMBERED_CRASHES = 1000


class Crashes:
    """How often a worker died over an input. Kept for the last thousand inputs that did it."""

    def __init__(self) -> None:
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def note(self, invocation: Invocation) -> int:
        key = _input_digest(invocation)
        times = self._counts.pop(key, 0) + 1
        self._counts[key] = times
        while len(self._counts) > _REMEMBERED_CRASHES:
            self._counts.popitem(last=False)
        return times

    def forget(self, invocation: Invocation) -> None:
        if self._counts:
            self._counts.pop(_input_digest(invocation), None)


def _input_digest(invocation: Invocation) -> bytes:
    """Of agent and input; not of where a medium lies, which differs from attempt to attempt."""
    program = invocation.program
    document = [
        invocation.workspace,
        program.id,
        program.version,
        _bare(invocation.inputs),
        invocation.params,
    ]
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).digest()


def _bare(value: Any) -> Any:
    match value:
        case Mapping():
            items = cast("Mapping[str, Any]", value).items()
            return {k: _bare(v) for k, v in items if k not in ("path", "get")}
        case list():
            return [_bare(v) for v in cast("list[Any]", value)]
        case _:
            return value


def crash_outcome(ending: Ending, *, times: int) -> Outcome:
    """Tried again elsewhere, until the same input has ended three processes."""
    said = f": {ending.last_words}" if ending.last_words else ""
    message = f"the agent's process ended during the work (exit code {ending.exit_code}){said}"
    if times < POISON:
        return failed(
            "infra",
            Code.AGENT_KILLED,
            message,
            hint="the node's log has its last words",
            exit_code=ending.exit_code,
        )
    return failed(
        "permanent",
        Code.AGENT_KILLED,
        message,
        hint=f"this input has ended the agent's process {times} times; look at its log",
        exit_code=ending.exit_code,
    )
