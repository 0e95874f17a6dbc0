"""All connections of this process that follow or feed streams, on whatever transport.

One task looks after all of them while there are any: who is idle gets marks, who is slow or silent
is cut, and when the server drains all are told at once.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_conversation import Accepted
from mentatlab.gateway.stream_msp import PROTOCOL, MspConversation
from mentatlab.gateway.stream_plain import PlainConversation
from mentatlab.gateway.stream_socket import Member
from mentatlab.gateway.stream_wire import Timing
from mentatlab.protocol.errors import MentatError
from mentatlab.streams.hub import StreamingConnectionManager
from mentatlab.streams.publishers import Publishers

log = logging.getLogger("mentatlab.gateway")

_AT_ONCE = 500


class ConnectionStatistics(NamedTuple):
    """`open` by kind (`msp`, `plain`, `sse`); `paused`: how many are not read just now. Bytes that
    wait for peers: of all connections, and of the one that makes the most wait.
    """

    open: dict[str, int]
    paused: int
    held: int
    most_held: int
    publishers: int
    stalled: int


class Connections:
    """What conversations and event streams have around them (`stream_socket.Surroundings`)."""

    def __init__(
        self,
        hub: StreamingConnectionManager,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.hub, self.timing, self._clock = hub, timing or Timing(), clock
        self.publishers = Publishers(
            hub, silent_s=self.timing.silent_s, lost_s=self.timing.lost_s, clock=clock
        )
        self._members: dict[Member, None] = {}
        self._sweeping = False

    def converse(
        self, id_: str, query: Mapping[str, str], subprotocols: Sequence[str], authority: Authority
    ) -> Accepted:
        """The conversation that a WebSocket to `id_` (a stream or run) asks for."""
        if PROTOCOL in subprotocols:
            return Accepted(MspConversation(self, id_, authority), PROTOCOL)
        return Accepted(
            PlainConversation(self, id_, authority, query.get("from"), query.get("rate")), None
        )

    def add(self, member: Member) -> None:
        self._members[member] = None
        self.watch()

    def discard(self, member: Member) -> None:
        """Idempotent."""
        self._members.pop(member, None)

    def watch(self) -> None:
        """Have a look from time to time, until there is nothing to look after."""
        if not self._sweeping:
            self._sweeping = True
            self.hub.start(self._sweep())

    async def adopt_forever(self) -> None:
        """Beside everything else, until cancelled: see `Publishers.adopt`."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.publishers.adopt(loop.time())
            except MentatError as error:
                log.warning("the leases of publishers: %s", error)
            if len(self.publishers):
                self.watch()
            await asyncio.sleep(self.timing.lost_s / 12)

    def statistics(self) -> ConnectionStatistics:
        members, held = self._members, [member.held for member in self._members]
        return ConnectionStatistics(
            open=dict(Counter(member.kind for member in members)),
            paused=sum(not member.reading for member in members),
            held=sum(held),
            most_held=max(held, default=0),
            publishers=len(self.publishers),
            stalled=self.publishers.stalled_count,
        )

    async def _sweep(self) -> None:
        loop, draining = asyncio.get_running_loop(), self.hub.draining
        try:
            while (self._members or len(self.publishers)) and not draining.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.timing.sweep_s):
                        await draining.wait()
                self.publishers.sweep(loop.time())
                await self._look(tuple(self._members), loop.time())
        finally:
            self._sweeping = False
        if draining.is_set():
            for member in tuple(self._members):
                member.drain()

    async def _look(self, members: Sequence[Member], now: float) -> None:
        """A few at a time: others have their turn in between."""
        for begin in range(0, len(members), _AT_ONCE):
            for member in members[begin : begin + _AT_ONCE]:
                try:
                    member.tick(now, self._clock())
                except Exception:  # of one connection: the others are looked after all the same
                    log.exception("a connection cannot be looked after")
            await asyncio.sleep(0)
