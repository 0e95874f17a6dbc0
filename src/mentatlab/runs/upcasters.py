"""Events as older versions of MentatLab stored them, brought to the form that this one reads. Pure.

One function per stored type that is no more: `name/version` → the same event as `name/version+1`.
"""

from collections.abc import Callable
from typing import Any

from mentatlab.protocol.errors import Code

Stored = dict[str, Any]


def upcast(event: Stored) -> Stored:
    """Step by step to the newest version; what no step knows stays as it is."""
    while (step := _STEPS.get(event.get("type", ""))) is not None:
        event = step(event)
    return event


def _retry_scheduled_1(event: Stored) -> Stored:
    """The cause was read from the error."""
    error = event["error"]
    if error["code"] == Code.ENGINE_LOST:
        cause = "lost"
    else:
        cause = "oom" if error.get("kind") == "oom" else "failure"
    return {**event, "type": "retry_scheduled/2", "cause": cause}


_STEPS: dict[str, Callable[[Stored], Stored]] = {"retry_scheduled/1": _retry_scheduled_1}
