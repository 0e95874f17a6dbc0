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

from mentatlab.gateway import stream_messages as client
from mentatlab.gateway.stream_access import Authority
from mentatlab.gateway.stream_following import Following, Followings
from mentatlab.gateway.stream_outlet import Outlet, Outlets
from mentatlab.gateway.stream_socket import SocketConversation, Surroundings
from mentatlab.gateway.stream_wire import (
    DRAINING,
    LIMITS,
    MAX_BINARY_BYTES,
    MAX_CONTROL_BYTES,
    MAX_MESSAGE_BYTES,
    STRANGER,
    THROTTLED,
    check_size,
    error_message,
    message,
)
from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Forbidden, MentatError, TooLarge
from mentatlab.protocol.records import Message, malformed, parse_cursor, parse_message
from mentatlab.protocol.tokens import Capability
from mentatlab.streams.port import Appended, Lane, Run
from mentatlab.streams.positions import parse_rate
from mentatlab.streams.publishing import Batch, Step
from mentatlab.streams.subscription import Options

PROTOCOL = "msp.v1+json"


class MspConversation(SocketConversation):
    __slots__ = ("_followed", "_introduced", "_last_lane", "_opened_at", "_outlets")
    kind = "msp"

    def __init__(self, around: Surroundings, id_: str, authority: Authority) -> None:
        super().__init__(around, id_, authority)
        self._followed = Followings()
        self._outlets = Outlets()
        self._last_lane = 0
        self._opened_at = 0.0
        self._introduced = authority.known  # or it has said who it is, which is being looked up

    # ------------------------------------------------------------------ what comes in

    def text(self, data: bytes) -> None:
        if self._deaf:
            return
        try:
            check_size(len(data), MAX_MESSAGE_BYTES, "a message")
            self._take(data)
        except MentatError as error:
            self._object(client.head_of(data)[1], error)

    def _take(self, data: bytes) -> None:
        """Most messages are records, so they are read as such first."""
        try:
            said = parse_message(data)
        except MentatError:
            if client.head_of(data)[0] not in client.KINDS:
                raise
            self._control(data)
            return
        if said.kind in client.KINDS:
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
                raise malformed(f"nothing is published in lane {frame.lane} on this connection")
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
        said = client.parse_control(data)
        self._admit_stranger(said)
        if not self._closed and self._affordable(said):
            self._obey(said, data)

    def _affordable(self, said: client.Control) -> bool:
        wait_s = 0.0 if isinstance(said, client.FLOW) else self._authority.spend()
        if wait_s:
            self._throttled(wait_s)
            self._close(THROTTLED)
        return not wait_s

    def _obey(self, said: client.Control, data: bytes) -> None:
        match said:
            case client.Credit():
                if (followed := self._followed.get(said.id)) is not None:
                    followed.grant(said.max_bytes)
            case client.Ack():
                self._acknowledge(said)
            case client.Ping():
                pong: dict[str, Any] = {**msgspec.json.decode(data), "type": "pong"}
                self._link.send_text(msgspec.json.encode(pong))
            case client.Pong():
                pass  # any message shows that the client is there
            case client.Subscribe():
                self._subscribe(said)
            case client.Unsubscribe():
                self._followed.drop(self._followed.get(said.id))
            case client.Hello():
                self._hello(said.token)
            case client.Auth():
                self._do(self._id, partial(self._renew, said.token))
            case client.Cancel():
                self._do(said.id, partial(self._cancel, said.id))
            case client.Publish():
                self._publish(said)

    # ------------------------------------------------------------------ who it is

    def _begin(self) -> None:
        self._opened_at = asyncio.get_running_loop().time()
        if self._authority.known:
            self._do(None, self._welcome)

    def _admit_stranger(self, said: client.Control | None) -> None:
        """A stranger says `hello` with a token first, and is welcomed when it is a good one."""
        if not (self._introduced or isinstance(said, client.Hello)):
            self._close(STRANGER)

    def _hello(self, token: str | None) -> None:
        if token is not None:
            self._do(None, partial(self._become, token))
            if not self._introduced:
                self._do(None, self._welcome)
            self._introduced = True
        elif not self._introduced:
            self._close(STRANGER)

    async def _renew(self, token: str) -> None:
        await self._become(token)
        self._say("auth", expires=self._authority.expires)

    async def _become(self, token: str) -> None:
        """What the new credential does not allow ends."""
        self._authority = await self._authority.renewed(token)
        self._inbox.forget()
        for followed in self._followed:
            try:
                await self._authority.check("sub", followed.id)
            except MentatError as error:
                self._failed(followed, error)

    async def _welcome(self) -> None:
        """To be here it is enough that one may do anything with the stream of the URL."""
        try:
            await self._authority.check("sub", self._id)
        except Forbidden:
            if not (await self._may("pub") or await self._may("cancel")):
                raise
        self._say("welcome", protocol=PROTOCOL, id=self._id, limits=LIMITS)

    async def _may(self, capability: Capability) -> bool:
        try:
            await self._authority.check(capability, self._id)
        except Forbidden:
            return False
        return True

    # ------------------------------------------------------------------ following

    def _subscribe(self, asked: client.Subscribe) -> None:
        rate = parse_rate(asked.rate)
        followed = self._followed.add(
            Following(
                asked.id,
                self._new_lane(),
                self._link,
                ended=self._followed.drop,
                failed=self._failed,
            )
        )
        self._later(partial(self._attach, followed, asked, rate))

    async def _attach(
        self, followed: Following, asked: client.Subscribe, rate: float | None
    ) -> None:
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

    def _options(self, found: Lane | Run, asked: client.Subscribe, rate: float | None) -> Options:
        if asked.policy == "block" and isinstance(found, Lane) and not found.external:
            raise Forbidden(
                Code.STREAM_FORBIDDEN,
                "only its run's own nodes hold this stream back",
                hint="follow it with the policy `log`: it gets everything, later",
            )
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

    def _acknowledge(self, ack: client.Ack) -> None:
        cursor = parse_cursor(ack.cursor)
        if (followed := self._followed.get(ack.id)) is not None:
            followed.acknowledge(cursor.sequence)

    def _failed(self, followed: Following, error: MentatError) -> None:
        self._followed.drop(followed)
        self._complain(followed.id, error)

    def _new_lane(self) -> int:
        """The next alias that is free; used ones come back late."""
        used = {followed.lane for followed in self._followed}
        while True:
            self._last_lane = self._last_lane % 0xFFFF + 1
            if self._last_lane not in used and self._outlets.by_lane(self._last_lane) is None:
                return self._last_lane

    # ------------------------------------------------------------------ publishing

    def _publish(self, said: client.Publish) -> None:
        """What comes in the same read may be for the new outlet already."""
        outlet = self._outlets.open(said.id, said.producer, self._new_lane)
        self._do(said.id, partial(self._open, outlet, said))

    async def _open(self, outlet: Outlet, said: client.Publish) -> None:
        hub, name = self._around.hub, None if said.producer is None else said.producer.id
        try:
            await self.admitted(said.id)
            known = None if name is None else await hub.producer(said.id, name)
            lane = await hub.lane(said.id)
            told = outlet.begin(lane, known)
        except MentatError:
            self._outlets.close(said.id)
            raise
        self._link.send_text(told)
        self._joined(lane, name)

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
        await self._authority.check("cancel", id_)
        await self._around.hub.end_stream(id_, reason="cancelled")
        lane = await self._around.hub.lane(id_)
        self._say("mark", id=id_, cursor=str(lane.cursor), state=lane.state)

    # ------------------------------------------------------------------ as connections look at it

    def tick(self, now: float, wall: float) -> None:
        super().tick(now, wall)
        timing, publishers = self._around.timing, self._around.publishers
        if not self._authority.known and now - self._opened_at >= timing.hello_s:
            self._close(STRANGER)
        for followed in self._followed:
            followed.tick(now, timing.mark_s, stalled=publishers.stalled(followed.id))

    def drain(self) -> None:
        if not self._closed:
            self._say("bye", code=DRAINING.code, reason=DRAINING.reason)
        super().drain()

    def _throttled(self, wait_s: float) -> None:
        self._say("throttle", retry_after_ms=math.ceil(wait_s * 1000))

    def _go_on(self) -> None:
        for followed in self._followed:
            followed.go_on()

    def _release(self) -> None:
        for followed in self._followed:
            self._followed.drop(followed)

    # ------------------------------------------------------------------ what goes out

    def _object(self, id_: str | None, error: MentatError) -> None:
        """Answered in its turn; without a name it is the conversation that is wrong."""
        if id_ is None:
            self._fail_in_turn(error)
        else:
            self._do(id_, partial(_raise, error))

    def _do(self, id_: str | None, step: Step) -> None:
        """In its turn. What goes wrong is that stream's trouble, or without one the end."""
        self._later(partial(self._try, id_, step))

    async def _try(self, id_: str | None, step: Step) -> None:
        try:
            await step()
        except MentatError as error:
            if id_ is None:
                self._fail(error)
            else:
                self._complain(id_, error)

    def _complain(self, id_: str, error: MentatError) -> None:
        if not self._closed:
            self._link.send_text(error_message(id_, error))

    def _say(self, type_: str, **fields: Any) -> None:
        if not self._closed:
            self._link.send_text(message(type_, **fields))


async def _raise(error: MentatError) -> None:
    raise error
