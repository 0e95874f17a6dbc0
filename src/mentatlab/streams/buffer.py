"""The bounded tail of what is live, so that readers who keep up do not ask the log.

A tail exists while somebody listens to its stream (or run) and holds the last `TAIL_BYTES` of it,
encoded once for all listeners. Who lags further behind reads the log: nothing here grows with it.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from mentatlab.streams.port import Entry

TAIL_BYTES = 256 * 1024

Wake = Callable[[], None]
"""Told when there may be something new; called in the loop's thread, must not raise."""


class Item(msgspec.Struct, gc=False, eq=False):
    """A record with its position in the feed (sequence or rseq)."""

    position: int
    entry: Entry

    @property
    def json(self) -> bytes:
        return self.entry.json

    def size(self, binary: bool) -> int:
        """The bytes that a reader's credit pays for: of the frame for those who take frames."""
        entry = self.entry
        return len(entry.json if entry.frame is None or not binary else entry.frame)


class Items(list[Item]):
    """Items in order. Shared by those who read them together, so it is not changed.

    `bytes` are what they take in a log, `framed`: there are binary records among them.
    """

    __slots__ = ("_sizes", "bytes", "framed")

    def __init__(self, items: Iterable[Item]) -> None:
        super().__init__(items)
        texts = frames = replaced = 0  # the JSON of binary records is not sent with their frames
        for item in self:
            json, frame = item.entry.json, item.entry.frame
            texts += len(json)
            if frame is not None:
                frames += len(frame)
                replaced += len(json)
        self.bytes, self.framed = texts + frames, frames > 0
        self._sizes = texts, texts - replaced + frames

    def size(self, binary: bool) -> int:
        """As `Item.size`, of all together."""
        return self._sizes[binary]


NOTHING = Items(())


def by_sequence(entry: Entry) -> Item:
    return Item(entry.sequence, entry)


def by_rseq(entry: Entry) -> Item:
    assert entry.rseq is not None
    return Item(entry.rseq, entry)


class Tail:
    """The last items of one feed, in order, and who wants to hear of new ones."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._bytes = 0
        self.last = NOTHING
        """The newest, as they came together, for those who wait for them."""
        self.position: int = -1  # of the newest item; -1 = the log must be asked
        self.untouched = True
        self.listeners: dict[Listener, None] = {}

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def newest(self) -> Item | None:
        return self._items[-1] if self._items else None

    def add(self, items: Items) -> None:
        """Items in order. Those that come late are left to the log."""
        if self._items and items[0].position != self.position + 1:
            items = Items([item for item in items if item.position > self.position])
            if not items:
                return
            if items[0].position != self.position + 1:
                self.clear()
        self.untouched = False
        self._items.extend(items)
        self.position = items[-1].position
        self._bytes += items.bytes
        while self._bytes > TAIL_BYTES and len(self._items) > 1:
            self._bytes -= self._items.popleft().entry.length
        self.last = items

    def clear(self) -> None:
        """What there is must be read from the log."""
        self.untouched = False
        self._items.clear()
        self.last = NOTHING
        self.position = -1
        self._bytes = 0

    def ring(self) -> None:
        for listener in tuple(self.listeners):
            listener.on_wake()

    def read(self, after: int, max_bytes: int, binary: bool = False) -> Items | None:
        """Items with position > `after` within `max_bytes`; None when the log must be asked."""
        if not self._items:
            return None
        first = self._items[0].position
        if after + 1 < first:
            return None
        last = self.last
        if last and last[0].position == after + 1:  # a reader who keeps up
            return last if last.size(binary) <= max_bytes else within(last, max_bytes, binary)
        found = (self._items[at] for at in range(after + 1 - first, len(self._items)))
        return within(found, max_bytes, binary)

    def newest_key(self, after: int) -> Item | None:
        """The last item after that position with the key flag."""
        for item in reversed(self._items):
            if item.position <= after:
                break
            if item.entry.key:
                return item
        return None


def within(items: Iterable[Item], max_bytes: int, binary: bool) -> Items:
    """The first items that fit together, at least one."""
    taken: list[Item] = []
    for item in items:
        max_bytes -= item.size(binary)
        if taken and max_bytes < 0:
            break
        taken.append(item)
    return Items(taken)


class Listener:
    """Somebody who wants to hear of a feed; `on_wake` may be set at any time."""

    __slots__ = ("_buffers", "key", "on_wake", "tail")

    def __init__(self, buffers: "BufferManager", key: str, tail: Tail) -> None:
        self._buffers, self.key, self.tail = buffers, key, tail
        self.on_wake: Wake = _nothing
        tail.listeners[self] = None

    def close(self) -> None:
        """Idempotent."""
        self.tail.listeners.pop(self, None)
        self._buffers.forget_idle(self.key)


class BufferStatistics(NamedTuple):
    tails: int
    listeners: int
    bytes: int


class BufferManager:
    """The tails, by stream or run id. `idle(key)` is called when the last listener has gone."""

    def __init__(self, idle: Callable[[str], None] | None = None) -> None:
        self._tails: dict[str, Tail] = {}
        self._idle = idle

    def listen(self, key: str) -> Listener:
        """The caller closes it."""
        return Listener(self, key, self._tails.setdefault(key, Tail()))

    def get(self, key: str) -> Tail | None:
        """None when nobody listens."""
        return self._tails.get(key)

    def forget_idle(self, key: str) -> None:
        if (tail := self._tails.get(key)) is not None and not tail.listeners:
            del self._tails[key]
            if self._idle is not None:
                self._idle(key)

    def statistics(self) -> BufferStatistics:
        tails = self._tails.values()
        return BufferStatistics(
            len(tails), sum(len(t.listeners) for t in tails), sum(t.bytes for t in tails)
        )


def _nothing() -> None:
    """Nobody waits yet."""
