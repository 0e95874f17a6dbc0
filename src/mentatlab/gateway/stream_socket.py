"""What both kinds of conversation on a WebSocket share: patience, reading, publishing, the end."""

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import Protocol

from mentatlab.gateway.problems import unexpected
from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_conversation import Link
from mentatlab.gateway.stream_wire import (
    DRAINING,
    EXPIRED,
    SILENT,
    STALLED,
    Close,
    Timing,
    close_for,
)
from mentatlab.protocol.errors import MentatError
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.port import Appended, Lane
from mentatlab.streams.publishers import Publishers
from mentatlab.streams.publishing import Batch, Inbox, Publication, Step


class Member(Protocol):
    """A connection as it is looked after."""

    @property
    def kind(self) -> str: ...

    @property
    def reading(self) -> bool:
        """False while it is not read, because it sends or is sent more than can be taken."""
        ...

    @property
    def held(self) -> int:
        """Bytes that wait in this process because of its peer."""
        ...

    def tick(self, now: float, wall: float) -> None:
        """`now` in the loop's seconds, `wall` in Unix seconds."""
        ...

    def drain(self) -> None: ...


class Surroundings(Protocol):
    """What a conversation has around it."""

    @property
    def hub(self) -> StreamingConnectionManager: ...

    @property
    def timing(self) -> Timing: ...

    @property
    def publishers(self) -> Publishers: ...

    def add(self, member: Member) -> None: ...

    def discard(self, member: Member) -> None: ...

    def watch(self) -> None:
        """There is something to look after."""
        ...


class SocketConversation(ABC):
    """A `stream_conversation.Conversation` without its words, and a member of the connections.

    Everything that must wait (to subscribe, to append) goes through the inbox, so that what a
    client says takes effect in its order.
    """

    __slots__ = (
        "_around",
        "_authority",
        "_checked_at",
        "_closed",
        "_deaf",
        "_fresh",
        "_heard_at",
        "_id",
        "_inbox",
        "_joined_last",
        "_link",
        "_published",
        "_reading",
        "_taken",
        "_taken_at",
        "_throttle",
    )
    kind = ""

    def __init__(self, around: Surroundings, id_: str, authority: Authority) -> None:
        self._around, self._id, self._authority = around, id_, authority
        self._inbox = Inbox(around.hub, self)
        self._link: Link
        self._joined_last: tuple[str, str | None] | None = None
        self._closed = self._deaf = False
        self._reading = self._fresh = self._taken = True
        self._heard_at = self._taken_at = self._checked_at = 0.0
        self._published = 0  # records since the rate was last looked at
        self._throttle: asyncio.TimerHandle | None = None

    @property
    def reading(self) -> bool:
        return self._reading

    @property
    def held(self) -> int:
        return self._link.held

    # ------------------------------------------------------------------ as transports call it

    def opened(self, link: Link) -> None:
        self._link = link
        self._checked_at = asyncio.get_running_loop().time()
        self._around.add(self)
        self._begin()
        self._inbox.flush()

    def read_done(self) -> None:
        self._inbox.flush()

    def heard(self) -> None:
        self._fresh = True

    def writable(self) -> None:
        self._taken = True
        if not self._closed:
            self._regulate()
            self._go_on()

    def lost(self) -> None:
        self._end()
        self._around.publishers.left(self)
        self._around.discard(self)

    # ------------------------------------------------------------------ what differs

    @abstractmethod
    def _begin(self) -> None:
        """The link is open."""

    @abstractmethod
    def _go_on(self) -> None:
        """The link takes more again."""

    @abstractmethod
    def _release(self) -> None:
        """Nothing is delivered any more."""

    @abstractmethod
    def _throttled(self, wait_s: float) -> None:
        """It publishes more than its key may; it is not read for so long."""

    # ------------------------------------------------------------------ as connections look at it

    def tick(self, now: float, wall: float) -> None:
        if self._closed:
            return
        timing = self._around.timing
        self._look(now)
        silent_s = now - self._heard_at
        expires = self._authority.expires
        if expires is not None and expires <= wall:
            self._close(EXPIRED)
        elif now - self._taken_at >= timing.stall_s:
            self._close(STALLED)
        elif silent_s >= timing.ping_s + timing.pong_s:
            self._close(SILENT)
        elif silent_s >= self._ping_s(timing):
            self._link.ping()

    def drain(self) -> None:
        self._close(DRAINING)

    def _look(self, now: float) -> None:
        """Take note of what has happened since the last look. Who is not read cannot be heard."""
        self._joined_last = None  # what is published now is told anew
        if self._fresh or not self._reading:
            self._fresh, self._heard_at = False, now
            self._around.publishers.heard_from(self, now)
        if self._taken or self._link.writable:
            self._taken, self._taken_at = False, now
        if now - self._checked_at >= self._around.timing.mark_s:
            self._checked_at = now
            self._inbox.forget()
            if self._authority.revocable:
                self._link.spawn(self._recheck())

    async def _recheck(self) -> None:
        """Who keeps up with what comes asks for nothing by which a revoked key would be noticed."""
        authority = self._authority
        error = await authority.revoked()
        if error is not None and authority is self._authority:
            self._fail(error)

    def _ping_s(self, timing: Timing) -> float:
        publishes = self._around.publishers.has(self)
        return min(timing.ping_s, timing.silent_s / 3) if publishes else timing.ping_s

    # ------------------------------------------------------------------ its publisher's side

    def _put(self, publication: Publication) -> None:
        if not self._deaf:
            self._inbox.put(publication)

    async def admitted(self, stream_id: str) -> Lane:
        lane = await self._authority.check("pub", stream_id)
        assert isinstance(lane, Lane)  # runs are no place to publish to
        return lane

    def published(self, batch: Batch, lane: Lane, appended: Appended) -> None:
        self._published += len(batch.drafts)
        publishers = self._around.publishers
        if batch.terminal:
            publishers.ended(self, batch.stream_id)
            self._joined_last = None
            return
        joined = batch.stream_id, None if batch.producer is None else batch.producer.id
        if joined != self._joined_last or self._closed:
            self._joined_last = joined
            self._joined(lane, joined[1])

    def _joined(self, lane: Lane, producer: str | None) -> None:
        publishers, now = self._around.publishers, asyncio.get_running_loop().time()
        durable = lane.durability == "commit"
        publishers.joined(self, lane.stream_id, producer, now, durable=durable)
        if self._closed:  # it was the last that it said
            publishers.left(self)
            self._around.watch()

    @abstractmethod
    def refused(self, batch: Batch, error: MentatError) -> None: ...

    def broken(self, error: Exception) -> None:
        self._fail(unexpected(error))

    def settled(self) -> None:
        if self._closed:
            return
        if self._published:
            wait_s = self._authority.owe(self._published)
            self._published = 0
            if wait_s > 0 and self._throttle is None:
                loop = asyncio.get_running_loop()
                self._throttle = loop.call_later(wait_s, self._unthrottle)
                self._throttled(wait_s)
        self._regulate()

    def _unthrottle(self) -> None:
        self._throttle = None
        if not self._closed:
            self._regulate()

    def _regulate(self) -> None:
        """Who says more than can be appended, or does not take the answers, is not read."""
        reading = (
            self._link.writable
            and not self._inbox.full
            and self._throttle is None
            and not self._deaf
        )
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._link.resume_reading()
            else:
                self._link.pause_reading()

    # ------------------------------------------------------------------ the end

    def _later(self, step: Step) -> None:
        """In order with everything else; not any more when the conversation is over."""
        self._inbox.then(partial(self._unless_over, step))

    async def _unless_over(self, step: Step) -> None:
        if not self._closed:
            await step()

    def _fail_in_turn(self, error: MentatError) -> None:
        """Close when all that was said before is appended; nothing more is heard."""
        self._deaf = True
        self._later(partial(self._fail_now, error))

    async def _fail_now(self, error: MentatError) -> None:
        self._fail(error)

    def _fail(self, error: MentatError) -> None:
        self._close(close_for(error))

    def _close(self, close: Close) -> None:
        """What was said before is still published."""
        if not self._closed:
            self._end()
            self._link.close(*close)

    def _end(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = self._deaf = True
            if self._throttle is not None:
                self._throttle.cancel()
            self._release()
            self._inbox.flush()
