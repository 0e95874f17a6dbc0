"""Who publishes to which stream from outside, and whether they are still there.

    open ⇄ stalled → stream_error{publisher_lost}

When a publisher's connection says nothing for `silent_s` (pings count) its streams are stalled;
after `lost_s` it is fenced and they end, also when the connection is gone, unless it comes back or
another one takes over.
"""

import logging
from dataclasses import dataclass, field

from mentatlab.protocol.errors import Code, Conflict, MentatError
from mentatlab.protocol.records import error_draft
from mentatlab.streams.hub import StreamingConnectionManager

log = logging.getLogger("mentatlab.streams")


@dataclass(slots=True)
class _Watch:
    """`heard`: when any of its publishers was, in the loop's seconds."""

    stream_id: str
    heard: float
    producers: set[str] = field(default_factory=set[str])
    stalled: bool = False


class Publishers:
    """`member` is a connection. Times are seconds on one clock that only goes forward."""

    def __init__(self, hub: StreamingConnectionManager, *, silent_s: float, lost_s: float) -> None:
        self._hub, self._silent_s, self._lost_s = hub, silent_s, lost_s
        self._watches: dict[str, _Watch] = {}
        self._of: dict[object, set[str]] = {}

    def __len__(self) -> int:
        """Streams that are watched."""
        return len(self._watches)

    @property
    def stalled_count(self) -> int:
        return sum(watch.stalled for watch in self._watches.values())

    def stalled(self, stream_id: str) -> bool:
        watch = self._watches.get(stream_id)
        return watch is not None and watch.stalled

    def has(self, member: object) -> bool:
        """Whether that connection publishes."""
        return member in self._of

    def joined(self, member: object, stream_id: str, producer: str | None, now: float) -> None:
        """The connection publishes to the stream."""
        watch = self._watches.get(stream_id)
        if watch is None:
            watch = self._watches[stream_id] = _Watch(stream_id, now)
        if producer is not None:
            watch.producers.add(producer)
        self._of.setdefault(member, set()).add(stream_id)
        self.heard(stream_id, now)

    def heard_from(self, member: object, now: float) -> None:
        """Something came from that connection."""
        for stream_id in self._of.get(member, ()):
            self.heard(stream_id, now)

    def heard(self, stream_id: str, now: float) -> None:
        """A stream that is watched got a record, by whatever way."""
        if (watch := self._watches.get(stream_id)) is not None:
            watch.heard, watch.stalled = now, False

    def left(self, member: object) -> None:
        """The connection is gone; its streams wait for it."""
        self._of.pop(member, None)

    def ended(self, member: object, stream_id: str) -> None:
        """The stream has its terminal record."""
        self._watches.pop(stream_id, None)
        if (streams := self._of.get(member)) is not None:
            streams.discard(stream_id)

    def sweep(self, now: float) -> None:
        for watch in tuple(self._watches.values()):
            silent_s = now - watch.heard
            watch.stalled = silent_s >= self._silent_s
            if silent_s >= self._lost_s:
                del self._watches[watch.stream_id]
                self._hub.start(self._lose(watch))

    async def _lose(self, watch: _Watch) -> None:
        try:
            if (await self._hub.lane(watch.stream_id)).state == "open":
                await self._end(watch)
        except MentatError as error:
            if not (isinstance(error, Conflict) and error.code is Code.STREAM_ENDED):
                log.warning("the lost publisher of %s: %s", watch.stream_id, error)

    async def _end(self, watch: _Watch) -> None:
        """First the fence: what it still sends comes after the end, or never."""
        for producer in watch.producers:
            await self._hub.fence(watch.stream_id, producer)
        message = f"nothing was heard of the publisher for {self._lost_s:g} s"
        end = error_draft("publisher_lost", message, retryable=True)
        await self._hub.publish(watch.stream_id, [end])
