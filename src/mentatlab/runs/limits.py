"""How much a server takes on. What is over a limit is refused with a code before it does harm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mentatlab.protocol.errors import Code, TooLarge, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`max_runs` are conducted at a time by this engine; further ones wait as `queued`, at most
    `max_queued` of a workspace over all engines (requests at the same moment may go over it).
    `max_items`: of one `forEach`. `max_input_bytes`: of a run's inputs as JSON, media not
    counted."""

    max_runs: int = 64
    max_queued: int = 10_000
    max_items: int = 1_000_000
    max_input_bytes: int = 4 << 20


def check_queue(limits: Limits, waiting: int) -> None:
    """`Unavailable(TOO_MANY_RUNS)` when so many runs of the workspace wait already."""
    if waiting >= limits.max_queued:
        raise Unavailable(
            Code.TOO_MANY_RUNS,
            f"{waiting} runs of this workspace wait for their turn, which is the limit",
            hint="try again when some have begun; the limits are settings of the server "
            "(MENTATLAB_MAX_RUNS, MENTATLAB_MAX_QUEUED)",
        )


def check_input_size(limits: Limits, inputs: Mapping[str, Any]) -> None:
    """`TooLarge(INPUTS_TOO_LARGE)`"""
    size = len(msgspec.json.encode(inputs))
    if size > limits.max_input_bytes:
        raise TooLarge(
            Code.INPUTS_TOO_LARGE,
            f"the inputs take {size} bytes as JSON, over {limits.max_input_bytes}",
            hint="upload what is large (POST /api/v1/storage/upload) and give its reference",
        )


def check_items(limits: Limits, node: str, item: int) -> None:
    """`TooLarge(TOO_MANY_ITEMS)` when a `forEach` node is offered more than it may have."""
    if item > limits.max_items:
        raise TooLarge(
            Code.TOO_MANY_ITEMS,
            f"{node} was given more than {limits.max_items} items",
            hint="split the work over several runs, or raise MENTATLAB_MAX_ITEMS",
        )
