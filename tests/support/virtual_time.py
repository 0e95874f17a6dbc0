"""An event loop whose time passes only when everybody waits: hours in milliseconds, and the same
again for the same seed."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StandstillError(Exception):
    """Nobody can go on, and nothing is scheduled: a deadlock."""


class _Selector(selectors.DefaultSelector):
    """Never blocks: waiting is what moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise StandstillError("everybody waits for something that will never come")
            self.now += max(0.0, timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in virtual time. No threads, no sockets, no processes."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
