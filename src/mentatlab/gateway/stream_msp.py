"""`WS /ws/streams/{id}` with the subprotocol `msp.v1+json`: one connection carries many streams,
credits, acknowledgements and binary frames.

What goes wrong with one stream is an `error` that names it; what is wrong with the conversation
closes it.
"""

import asyncio
import math
from functools import partial
from typing import Any

import msgspec

from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_following import Following
from mentatlab.gateway.stream_messages import (
    FLOW,
    KINDS,
    Ack,
    Auth,
    Cancel,
    Control,
    Credit,
    Hello,
    Ping,
    Pong,
    Publish,
    Subscribe,
    Unsubscribe,
    head_of,
    parse_control,
)
from mentatlab.gateway.stream_outlet import Outlet, Outlets
from mentatlab.gateway.stream_socket import SocketConversation, Surroundings
from mentatlab.gateway.stream_wire import (
    DRAINING,
    MAX_BINARY_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_STREAMS,
    STRANGER,
    THROTTLED,
    bad_frame,
    check_size,
    error_message,
    message,
)
from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Conflict, Forbidden, MentatError, RateLimited, TooLarge
from mentatlab.protocol.records import MAX_RECORD_BYTES, Message, parse_cursor, parse_message
from mentatlab.streams.port import READ_BYTES, Appended, Lane, Run
from mentatlab.streams.positions import parse_rate
from mentatlab.streams.publishing import Batch
from mentatlab.streams.subscription import Options

PROTOCOL = "msp.v1+json"
_LIMITS = {
    "record_bytes": MAX_RECORD_BYTES,
    "control_bytes": MAX_CONTROL_BYTES,
    "message_bytes": MAX_MESSAGE_BYTES,
    "streams": MAX_STREAMS,
    "in_flight_bytes": READ_BYTES,
}


class MspConversation(SocketConversation):
    __slots__ = ("_followed", "_introduced", "_last_lane", "_opened_at", "_outlets")
    kind = "msp"

    def __init__(self, around: Surroundings, id_: str, authority: Authority) -> None:
        super().__init__(around, id_, authority)
        self._followed: dict[str, Following] = {}
        self._outlets = Outlets()
        self._last_lane = 0
        self._opened_at = 0.0
        self._introduced = (
            authority.known
        )  # or a stranger has said who it is; what it says now is heard then

    # ------------------------------------------------------------------ what comes in

    def text(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            check_size(len(data), MAX_MESSAGE_BYTES, "a message")
            self._take(data)
        except MentatError as error:
            self._object(head_of(data)[1], error)

    def _take(self, data: bytes) -> None:
        """Most messages are records, so they are read as such first."""
        try:
            said = parse_message(data)
        except MentatError:
            if head_of(data)[0] not in KINDS:
                raise
            self._control(data)
            return
        if said.kind in KINDS:
            self._control(data)
        else:
            self._record(said, len(data))

    def binary(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            check_size(len(data), MAX_BINARY_BYTES, "a binary message")
            frame = frames.decode(data)
            if (outlet := self._outlets.by_lane(frame.lane)) is None:
                raise bad_frame(f"nothing is published in lane {frame.lane} on this connection")
        except MentatError as error:
            self._fail_in_turn(error)
            return
        try:
            self._put(outlet.publication_of(frame))
        except MentatError as error:
            self._object(outlet.id, error)

    def _record(self, said: Message, size: int) -> None:
        self._admit_stranger(None)
        id_ = said.stream_id or self._id
        try:
            self._put(self._outlets.publication_of(said, id_, size))
        except TooLarge as error:
            self._object(id_, error)

    def _control(self, data: bytes) -> None:
        check_size(len(data), MAX_CONTROL_BYTES, "a control message")
        said = parse_control(data)
        self._admit_stranger(said)
        if not self._closed and self._affordable(said):
            self._obey(said, data)

    def _affordable(self, said: Control) -> bool:
        wait_s = 0.0 if isinstance(said, FLOW) else self._authority.spend()
        if wait_s:
            self._throttled(wait_s)
            self._close(THROTTLED)
        return not wait_s

    def _obey(self, said: Control, data: bytes) -> None:
        match said:
            case Credit():
                if (followed := self._followed.get(said.id)) is not None:
                    followed.grant(said.max_bytes)
            case Ack():
                self._acknowledge(said)
            case Ping():
                pong: dict[str, Any] = {**msgspec.json.decode(data), "type": "pong"}
                self._link.send_text(msgspec.json.encode(pong))
            case Pong():
                pass  # any message shows that the client is there
            case Subscribe():
                self._subscribe(said)
            case Unsubscribe():
                self._forget(self._followed.get(said.id))
            case Hello():
                self._hello(said.token)
            case Auth():
                self._later(partial(self._renew, said.token))
            case Cancel():
                self._later(partial(self._cancel, said.id))
            case Publish():
                self._publish(said)

    # ------------------------------------------------------------------ who it is

    def _begin(self) -> None:
        self._opened_at = asyncio.get_running_loop().time()
        if self._authority.known:
            self._later(self._welcome)

    def _admit_stranger(self, said: Control | None) -> None:
        """A stranger says `hello` with a token first, and is welcomed when it is a good one."""
        if not (self._introduced or isinstance(said, Hello)):
            self._close(STRANGER)

    def _hello(self, token: str | None) -> None:
        if token is not None:
            self._later(partial(self._introduce, token, welcome=not self._introduced))
            self._introduced = True
        elif not self._introduced:
            self._close(STRANGER)

    async def _introduce(self, token: str, *, welcome: bool) -> None:
        try:
            self._authority = await self._authority.renewed(token)
        except MentatError as error:
            self._fail(error)
            return
        self._inbox.forget()
        if welcome:
            await self._welcome()

    async def _renew(self, token: str) -> None:
        try:
            self._authority = await self._authority.renewed(token)
        except MentatError as error:
            self._complain(self._id, error)
            return
        self._inbox.forget()
        await self._let_go()
        self._say("auth", expires=self._authority.expires)

    async def _let_go(self) -> None:
        """What the caller may not follow any more ends."""
        for followed in tuple(self._followed.values()):
            try:
                await self._authority.check("sub", followed.id)
            except MentatError as error:
                self._failed(followed, error)

    async def _welcome(self) -> None:
        try:
            await self._check_any()
        except MentatError as error:
            self._fail(error)
            return
        self._say("welcome", protocol=PROTOCOL, id=self._id, limits=_LIMITS)

    async def _check_any(self) -> None:
        """To be here it is enough that one may do anything with the stream of the URL."""
        try:
            await self._authority.check("sub", self._id)
        except Forbidden as error:
            for capability in ("pub", "cancel"):
                try:
                    await self._authority.check(capability, self._id)
                except Forbidden:
                    continue
                return
            raise error

    # ------------------------------------------------------------------ following

    def _subscribe(self, asked: Subscribe) -> None:
        if asked.id in self._followed:
            raise Conflict(
                Code.CONFLICT,
                f"{asked.id} is subscribed on this connection",
                hint="unsubscribe first to begin at another place",
            )
        if len(self._followed) >= MAX_STREAMS:
            raise RateLimited(1.0)
        rate = parse_rate(asked.rate)
        followed = Following(
            asked.id, self._new_lane(), self._link, ended=self._forget, failed=self._failed
        )
        self._followed[asked.id] = followed
        self._later(partial(self._attach, followed, asked, rate))

    async def _attach(self, followed: Following, asked: Subscribe, rate: float | None) -> None:
        try:
            found = await self._authority.check("sub", asked.id)
            subscription = await self._around.hub.attach(
                asked.id, from_=asked.from_, options=self._options(found, asked, rate)
            )
        except MentatError as error:
            if not followed.gone:
                self._failed(followed, error)
            return
        followed.begin(
            subscription,
            found,
            resumed=":" in str(asked.from_),
            stalled=self._around.publishers.stalled(asked.id),
        )

    def _options(self, found: Lane | Run, asked: Subscribe, rate: float | None) -> Options:
        return Options(
            credit=asked.max_bytes,
            rate=rate,
            policy=asked.policy,
            filter=asked.filter,
            binary=isinstance(found, Lane),
            guard=self._guard,
        )

    async def _guard(self) -> None:
        await self._authority.guard()

    def _acknowledge(self, ack: Ack) -> None:
        cursor = parse_cursor(ack.cursor)
        if (followed := self._followed.get(ack.id)) is not None:
            followed.acknowledge(cursor.sequence)

    def _forget(self, followed: Following | None) -> None:
        if followed is not None:
            followed.close()
            if self._followed.get(followed.id) is followed:
                del self._followed[followed.id]

    def _failed(self, followed: Following, error: MentatError) -> None:
        self._forget(followed)
        self._complain(followed.id, error)

    def _new_lane(self) -> int:
        """The next alias that is free; used ones come back late."""
        used = {followed.lane for followed in self._followed.values()}
        while True:
            self._last_lane = self._last_lane % 0xFFFF + 1
            if self._last_lane not in used and self._outlets.by_lane(self._last_lane) is None:
                return self._last_lane

    # ------------------------------------------------------------------ publishing

    def _publish(self, said: Publish) -> None:
        """What comes in the same read may be for the new outlet already."""
        outlet = self._outlets.open(said.id, said.producer, self._new_lane)
        self._later(partial(self._open, outlet, said))

    async def _open(self, outlet: Outlet, said: Publish) -> None:
        hub = self._around.hub
        try:
            await self.admitted(said.id)
            known = None
            if said.producer is not None:
                known = await hub.producer(said.id, said.producer.id)
            lane = await hub.lane(said.id)
            told = outlet.begin(lane, known)
        except MentatError as error:
            self._outlets.close(said.id)
            self._complain(said.id, error)
            return
        self._link.send_text(told)
        self._joined(lane, None if said.producer is None else said.producer.id)

    def published(self, batch: Batch, lane: Lane, appended: Appended) -> None:
        self._outlets.appended(batch, lane, appended)
        super().published(batch, lane, appended)

    def refused(self, batch: Batch, error: MentatError) -> None:
        self._outlets.consumed(batch)
        self._complain(batch.stream_id, error)

    def settled(self) -> None:
        if not self._closed:
            for told in self._outlets.news():
                self._link.send_text(told)
        super().settled()

    async def _cancel(self, id_: str) -> None:
        """The stream ends as cancelled, for everybody; once it has ended nothing changes."""
        try:
            await self._authority.check("cancel", id_)
            await self._around.hub.end_stream(id_, reason="cancelled")
            lane = await self._around.hub.lane(id_)
        except MentatError as error:
            self._complain(id_, error)
            return
        self._say("mark", id=id_, cursor=str(lane.cursor), state=lane.state)

    # ------------------------------------------------------------------ as connections look at it

    def tick(self, now: float, wall: float) -> None:
        super().tick(now, wall)
        timing, publishers = self._around.timing, self._around.publishers
        if not self._authority.known and now - self._opened_at >= timing.hello_s:
            self._close(STRANGER)
        for followed in tuple(self._followed.values()):
            followed.tick(now, timing.mark_s, stalled=publishers.stalled(followed.id))

    def drain(self) -> None:
        if not self._closed:
            self._say("bye", code=DRAINING.code, reason=DRAINING.reason)
        super().drain()

    def _throttled(self, wait_s: float) -> None:
        self._say("throttle", retry_after_ms=math.ceil(wait_s * 1000))

    def _go_on(self) -> None:
        for followed in tuple(self._followed.values()):
            followed.go_on()

    def _release(self) -> None:
        for followed in self._followed.values():
            followed.close()
        self._followed.clear()

    # ------------------------------------------------------------------ what goes out

    def _object(self, id_: str | None, error: MentatError) -> None:
        """Answered in its turn; without a name it is the conversation that is wrong."""
        if id_ is None:
            self._fail_in_turn(error)
        else:
            self._later(partial(self._complain_now, id_, error))

    async def _complain_now(self, id_: str, error: MentatError) -> None:
        self._complain(id_, error)

    def _complain(self, id_: str, error: MentatError) -> None:
        if not self._closed:
            self._link.send_text(error_message(id_, error))

    def _say(self, type_: str, **fields: Any) -> None:
        if not self._closed:
            self._link.send_text(message(type_, **fields))
