"""The bounded tail of what is live, so that readers who keep up do not ask the log.

A tail exists while somebody listens to its stream (or run) and holds the last `TAIL_BYTES` of it,
encoded once for all listeners. Who lags further behind reads the log: nothing here grows with it.
"""

import asyncio
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from mentatlab.protocol.records import StreamChunk

TAIL_BYTES = 256 * 1024

_encode = msgspec.json.Encoder().encode


class Item(NamedTuple):
    """A record with its position in the feed (sequence or rseq) and its JSON."""

    position: int
    record: StreamChunk
    json: bytes


def by_sequence(record: StreamChunk) -> Item:
    return Item(record.sequence, record, _encode(record))


def by_rseq(record: StreamChunk) -> Item:
    assert record.rseq is not None
    return Item(record.rseq, record, _encode(record))


def within(items: Iterable[Item], max_bytes: int) -> list[Item]:
    """The first items that fit together, at least one."""
    taken: list[Item] = []
    for item in items:
        max_bytes -= len(item.json)
        if taken and max_bytes < 0:
            break
        taken.append(item)
    return taken


class Tail:
    """The last items of one feed, without holes, and who wants to hear of new ones."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0
        self.listeners: set[asyncio.Event] = set()

    @property
    def bytes(self) -> int:
        return self._bytes

    def add(self, items: Sequence[Item]) -> None:
        """Items in order. Those that come late are left to the log."""
        for item in items:
            if self._items and item.position != self._items[-1].position + 1:
                if item.position <= self._items[-1].position:
                    continue
                self.clear()
            self._items.append(item)
            self._bytes += len(item.json)
        while self._bytes > TAIL_BYTES and len(self._items) > 1:
            self._bytes -= len(self._items.popleft().json)

    def clear(self) -> None:
        self._items.clear()
        self._bytes = 0

    def ring(self) -> None:
        for listener in self.listeners:
            listener.set()

    def read(self, after: int, max_bytes: int) -> list[Item] | None:
        """Items with position > `after` within `max_bytes`; None when the log must be asked."""
        if not self._items or after + 1 < self._items[0].position:
            return None
        skip = after + 1 - self._items[0].position
        return within((self._items[at] for at in range(skip, len(self._items))), max_bytes)


class BufferStatistics(NamedTuple):
    tails: int
    listeners: int
    bytes: int


class BufferManager:
    """The tails, by stream or run id."""

    def __init__(self) -> None:
        self._tails: dict[str, Tail] = {}

    @contextmanager
    def listen(self, key: str, wake: asyncio.Event) -> Generator[Tail]:
        tail = self._tails.setdefault(key, Tail())
        tail.listeners.add(wake)
        try:
            yield tail
        finally:
            tail.listeners.discard(wake)
            if not tail.listeners:
                del self._tails[key]

    def get(self, key: str) -> Tail | None:
        """None when nobody listens."""
        return self._tails.get(key)

    def statistics(self) -> BufferStatistics:
        tails = self._tails.values()
        return BufferStatistics(
            len(tails), sum(len(t.listeners) for t in tails), sum(t.bytes for t in tails)
        )
