"""The events of one attempt on their way to the engine: bounded, so that the agent's pipe is the
back-pressure, and with a budget for what it logs."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Literal, NamedTuple

from mentatlab.protocol import events


class _Letter(NamedTuple):
    event: events.AgentEvent
    size: int


class Mailbox:
    """One writer side, one reader. `size` is the bytes of the line that an event came in."""

    def __init__(
        self, limit: int, *, taken: Callable[[events.AgentEvent, int], None] | None = None
    ) -> None:
        self.waiting = 0
        """Bytes that have not been read."""
        self._limit = limit
        self._taken = taken
        self._letters: deque[_Letter] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False

    async def put(self, event: events.AgentEvent, size: int) -> None:
        """Waits while it is full; drops the event when it is closed."""
        while self.waiting >= self._limit and not self._closed:
            self._room.clear()
            await self._room.wait()
        self.push(event, size)

    def push(self, event: events.AgentEvent, size: int) -> None:
        if not self._closed:
            self._letters.append(_Letter(event, size))
            self.waiting += size
            self._changed.set()

    @property
    def full(self) -> bool:
        return self.waiting >= self._limit and not self._closed

    def close(self) -> None:
        """Take nothing more; what waits can still be read, and then reading ends."""
        self._closed = True
        self._changed.set()
        self._room.set()

    async def __aiter__(self) -> AsyncIterator[events.AgentEvent]:
        while True:
            while self._letters:
                yield self._take()
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()

    def _take(self) -> events.AgentEvent:
        event, size = self._letters.popleft()
        self.waiting -= size
        self._room.set()
        if self._taken:
            self._taken(event, size)
        return event


class LogBudget:
    """How much an attempt may log, in bytes: up to `keep` it is kept, then dropped after one
    notice; over `flood` the agent is ended."""

    def __init__(self, keep: int, flood: int) -> None:
        self._keep = keep
        self._flood = flood
        self._seen = 0
        self._noticed = False

    def take(self, size: int) -> Literal["keep", "notice", "drop", "flood"]:
        self._seen += size
        if self._seen > self._flood:
            return "flood"
        if self._seen <= self._keep:
            return "keep"
        first, self._noticed = not self._noticed, True
        return "notice" if first else "drop"

    def notice(self) -> events.Log:
        return events.Log(
            level="warning", message=f"the log is over {self._keep} bytes; the rest is dropped"
        )
