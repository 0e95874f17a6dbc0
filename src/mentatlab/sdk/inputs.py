"""Stream inputs as an agent reads them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec

from mentatlab.protocol.stdio import InputChunk
from mentatlab.sdk.errors import AgentError

WINDOW = 256
"""Chunks that wait in a one-shot agent before it stops reading its pipe."""

_ACK_EVERY = 32


class Item(NamedTuple):
    """One element of a stream input with its place: `seq` from 1, `pts` seconds of media time."""

    value: Any  # JSON, or a media reference
    seq: int
    pts: float | None
    item: int | None  # of a `forEach` upstream


class InputStream:
    """An input pin of type `stream`: `async for value in inputs["frames"]`, once.

    Ends normally only when the upstream ended complete; else raises `AgentError(UPSTREAM_FAILED)`.
    An element counts as consumed (and is acknowledged) when the next one is asked for.
    """

    def __init__(self, pin: str, acknowledge: Callable[[int], None], moved: asyncio.Event) -> None:
        self.pin = pin
        self.delivered = 0
        """Sequence of the last element handed out."""
        self._acknowledge = acknowledge
        self._acknowledged = 0
        self._items: deque[Item] = deque()
        self._status: str | None = None
        self._changed = asyncio.Event()
        self._moved = moved  # set when an element is taken, or somebody starts to wait for one
        self.hungry = False
        """Somebody waits for the next element."""

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._values()

    async def _values(self) -> AsyncIterator[Any]:
        async for item in self.chunks():
            yield item.value

    async def chunks(self) -> AsyncIterator[Item]:
        """The elements with `seq`, `pts` and `item`."""
        while (item := await self._next()) is not None:
            self.delivered = item.seq
            yield item

    async def _next(self) -> Item | None:
        self._acknowledge_consumed()
        while not self._items:
            if self._status is not None:
                return self._end(self._status)
            await self._wait_for_more()
        self._moved.set()
        return self._items.popleft()

    async def _wait_for_more(self) -> None:
        self._changed.clear()
        self.hungry = True
        self._moved.set()
        try:
            await self._changed.wait()
        finally:
            self.hungry = False

    def _end(self, status: str) -> None:
        if status != "complete":
            raise AgentError("UPSTREAM_FAILED", f"the stream into {self.pin!r} ended: {status}")

    def _acknowledge_consumed(self) -> None:
        waiting = self.delivered - self._acknowledged
        if waiting >= _ACK_EVERY or (waiting and not self._items):
            self._acknowledged = self.delivered
            self._acknowledge(self.delivered)

    @property
    def full(self) -> bool:
        return len(self._items) >= WINDOW

    def put(self, chunk: InputChunk) -> None:
        value = chunk.data if chunk.data is not msgspec.UNSET else chunk.ref
        self._items.append(Item(value, chunk.seq, chunk.pts, chunk.item))
        self._changed.set()

    def end(self, status: str) -> None:
        """The first end counts. What is queued is still delivered, except after `cancelled`."""
        if self._status is None:
            self._status = status
            if status == "cancelled":
                self._items.clear()
            self._changed.set()
