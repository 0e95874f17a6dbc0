"""Who publishes to which stream from outside, and whether they are still there.

    open ⇄ stalled → stream_error{publisher_lost}

When a publisher's connection says nothing for `silent_s` (pings count) its streams are stalled;
after `lost_s` it is fenced and they end, also when the connection is gone, unless it comes back or
somebody else publishes. Streams that outlive the process have a lease in the log, so that those of
a server that was restarted, or died beside this one, end too.
"""

import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from mentatlab.protocol.errors import Code, Conflict, MentatError, NotFound
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.records import error_draft
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.leases import Lease
from mentatlab.streams.port import Lane

log = logging.getLogger("mentatlab.streams")


@dataclass(slots=True)
class _Watch:
    """`heard`, `leased`: when any of its publishers was heard, and when its lease was renewed, in
    the loop's seconds. `looking`: the log is being asked about it.
    """

    stream_id: str
    heard: float
    producers: set[str] = field(default_factory=set[str])
    durable: bool = True
    leased: float = 0.0
    stalled: bool = False
    looking: bool = False


class Publishers:
    """`member` is a connection. `now` are the loop's seconds, `clock` gives Unix seconds."""

    def __init__(
        self,
        hub: StreamingConnectionManager,
        *,
        silent_s: float,
        lost_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._hub, self._clock = hub, clock
        self._silent_s, self._lost_s = silent_s, lost_s
        self._name, self._since = new_id("pr"), clock()
        self._busy = 0
        self._watches: dict[str, _Watch] = {}
        self._of: dict[object, set[str]] = {}

    def __len__(self) -> int:
        """Streams that are watched."""
        return len(self._watches)

    @property
    def busy(self) -> bool:
        """Whether the log is being asked about one of them."""
        return self._busy > 0

    @property
    def stalled_count(self) -> int:
        return sum(watch.stalled for watch in self._watches.values())

    def stalled(self, stream_id: str) -> bool:
        watch = self._watches.get(stream_id)
        return watch is not None and watch.stalled

    def has(self, member: object) -> bool:
        """Whether that connection publishes."""
        return member in self._of

    def joined(
        self, member: object, stream_id: str, producer: str | None, now: float, *, durable: bool
    ) -> None:
        """The connection publishes to the stream. `durable`: it outlives the process."""
        watch = self._watches.get(stream_id)
        known = watch is not None and (producer is None or producer in watch.producers)
        if watch is None:
            watch = self._watches[stream_id] = _Watch(stream_id, now, durable=durable)
        if producer is not None:
            watch.producers.add(producer)
        watch.heard, watch.stalled = now, False
        self._of.setdefault(member, set()).add(stream_id)
        if not known:
            self._renew([watch], now)

    def heard_from(self, member: object, now: float) -> None:
        """Something came from that connection."""
        for stream_id in self._of.get(member, ()):
            if (watch := self._watches.get(stream_id)) is not None:
                watch.heard, watch.stalled = now, False

    def left(self, member: object) -> None:
        """The connection is gone; its streams wait for it."""
        self._of.pop(member, None)

    def ended(self, member: object, stream_id: str) -> None:
        """The stream has its terminal record."""
        if (streams := self._of.get(member)) is not None:
            streams.discard(stream_id)
        self._forget(stream_id)

    def sweep(self, now: float) -> None:
        """From time to time, as long as there are any."""
        heard: list[_Watch] = []
        for watch in self._watches.values():
            silent_s = now - watch.heard
            if silent_s < self._silent_s:
                watch.stalled = False
                if now - watch.leased >= self._lost_s / 3:
                    heard.append(watch)
            elif not watch.looking and (not watch.stalled or silent_s >= self._lost_s):
                watch.looking = True
                self._start(self._look(watch, now))
        self._renew(heard, now)

    async def adopt(self, now: float) -> None:
        """Watch the streams whose publisher nobody hears any more.

        After a start it has `lost_s` to come back in any case.
        """
        if self._hub.leases is None:
            return
        for lease in await self._hub.leases.run_out(self._clock()):
            if lease.stream_id not in self._watches:
                left_s = max(0.0, self._since + self._lost_s - self._clock())
                heard = now - self._lost_s + left_s
                names = set(lease.producers)
                self._watches[lease.stream_id] = _Watch(lease.stream_id, heard, names)

    # ------------------------------------------------------------------ what must wait

    async def _look(self, watch: _Watch, now: float) -> None:
        """Whether it is as silent as it seems here, and what follows from that."""
        try:
            lane = await self._hub.lane(watch.stream_id)
            if lane.state != "open":
                self._forget(watch.stream_id)
            elif await self._is_anothers(watch.stream_id):
                self._watches.pop(watch.stream_id, None)
            else:
                await self._judge(watch, lane, now)
        except NotFound:
            self._forget(watch.stream_id)
        finally:
            watch.looking = False

    async def _is_anothers(self, stream_id: str) -> bool:
        """Whether another process hears its publisher, and will see to it."""
        lease = None if self._hub.leases is None else await self._hub.leases.get(stream_id)
        return lease is not None and lease.holder != self._name and lease.until > self._clock()

    async def _judge(self, watch: _Watch, lane: Lane, now: float) -> None:
        """Records count, by whatever way they came."""
        watch.heard = max(watch.heard, now - (self._clock() - lane.changed_at))
        watch.stalled = now - watch.heard >= self._silent_s
        if now - watch.heard >= self._lost_s:
            await self._end(watch)
            self._forget(watch.stream_id)

    async def _end(self, watch: _Watch) -> None:
        """First the fence: what it still sends comes before the end, or never."""
        for producer in watch.producers:
            await self._hub.fence(watch.stream_id, producer)
        message = f"nothing was heard of the publisher for {self._lost_s:g} s"
        end = error_draft("publisher_lost", message, retryable=True)
        try:
            await self._hub.publish(watch.stream_id, [end])
        except Conflict as error:
            if error.code is not Code.STREAM_ENDED:
                raise

    def _renew(self, watches: Iterable[_Watch], now: float) -> None:
        leases: list[Lease] = []
        for watch in watches:
            if watch.durable:
                watch.leased = now
                until = self._clock() - (now - watch.heard) + self._lost_s
                leases.append(Lease(watch.stream_id, self._name, tuple(watch.producers), until))
        if leases and self._hub.leases is not None:
            self._start(self._hub.leases.renew(leases))

    def _forget(self, stream_id: str) -> None:
        watch = self._watches.pop(stream_id, None)
        if watch is not None and watch.durable and self._hub.leases is not None:
            self._start(self._hub.leases.release(stream_id))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._busy += 1
        self._hub.start(self._done(work))

    async def _done(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except MentatError as error:
            log.warning("a publisher's stream cannot be looked after: %s", error)
        finally:
            self._busy -= 1
