"""The clocks of one attempt."""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from mentatlab.runners.port import Invocation
from mentatlab.runners.result import Cause


async def watch_deadlines(
    invocation: Invocation,
    stopping: asyncio.Event,
    stop: Callable[[Cause], None],
    silent_since: Callable[[], float],
) -> None:
    """Returns when `stopping` is set; calls `stop` when the attempt's or the heartbeat's time is
    over.

    `silent_since` gives the monotonic time of the agent's last sign of life.
    """
    ends = time.monotonic() + invocation.attempt_timeout_s
    patience = invocation.heartbeat_timeout_s or math.inf
    while not stopping.is_set():
        now = time.monotonic()
        next_beat = silent_since() + patience
        if now >= ends:
            stop("timeout")
        elif now >= next_beat:
            stop("silent")
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(ends, next_beat) - now):
                    await stopping.wait()
