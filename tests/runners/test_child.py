"""An agent process's pipes and the loop's transports."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from mentatlab.runners.child import Child, Guardian, Limits

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def closings() -> list[bool]:
    """Of each pipe: whether closing the file object closes the descriptor. All are closed."""
    watcher = Guardian()
    child = await Child.spawn(["/bin/cat"], cwd=Path("/"), env={}, limits=Limits(), watcher=watcher)
    await child.write(b"word\n")
    assert await child.stdout.readline() == b"word\n"
    pipes = [transport.get_extra_info("pipe") for transport in child._transports]
    numbers, owned = [pipe.fileno() for pipe in pipes], [pipe.closefd for pipe in pipes]
    await child.aclose()
    await asyncio.sleep(0)  # transports close in the loop's next turn
    await asyncio.sleep(0)
    for number in numbers:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    await watcher.aclose()
    return owned


@pytest.mark.parametrize("loop", LOOPS)
def test_every_pipe_is_closed_once(loop: str) -> None:
    """By libuv, of which Python's file objects know nothing; else by the file object."""
    factory: Callable[[], asyncio.AbstractEventLoop] = LOOPS[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(closings()) == [loop == "asyncio"] * 3
