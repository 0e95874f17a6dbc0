"""The clocks of one attempt, on a loop whose time is real but whose limits are tiny or far."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.agent_processes import Bench

from mentatlab.runners.deadlines import watch_deadlines
from mentatlab.runners.result import Cause

FAR = 1000.0


async def causes(
    folder: Path, silent_since: Callable[[], float], *, attempt_s: float, heartbeat_s: float | None
) -> list[Cause]:
    """Why the attempt was stopped; the watch ends with the first."""
    invocation = Bench(folder).invocation(
        ["prog"], attempt_timeout_s=attempt_s, heartbeat_timeout_s=heartbeat_s
    )
    stopping, found = asyncio.Event(), list[Cause]()

    def stop(cause: Cause) -> None:
        found.append(cause)
        stopping.set()

    async with asyncio.timeout(10):
        await watch_deadlines(invocation, stopping, stop, silent_since)
    return found


@pytest.mark.parametrize(
    ("attempt_s", "heartbeat_s", "cause"),
    [(0.01, None, "timeout"), (0.01, FAR, "timeout"), (FAR, 0.01, "silent")],
)
async def test_the_first_limit_that_is_reached_stops_it(
    tmp_path: Path, attempt_s: float, heartbeat_s: float | None, cause: Cause
) -> None:
    began = time.monotonic()
    found = await causes(tmp_path, lambda: began, attempt_s=attempt_s, heartbeat_s=heartbeat_s)
    assert found == [cause]


async def test_every_sign_of_life_is_another_respite(tmp_path: Path) -> None:
    """It beats whenever it is looked at, so only the attempt's own time can end it."""
    found = await causes(tmp_path, time.monotonic, attempt_s=0.05, heartbeat_s=0.01)
    assert found == ["timeout"]


async def test_an_attempt_that_ended_is_watched_no_longer(tmp_path: Path) -> None:
    stopping = asyncio.Event()
    watching = asyncio.create_task(
        watch_deadlines(
            Bench(tmp_path).invocation(["prog"], attempt_timeout_s=FAR),
            stopping,
            lambda cause: pytest.fail(cause),
            time.monotonic,
        )
    )
    await asyncio.sleep(0)
    stopping.set()
    async with asyncio.timeout(10):
        await watching
