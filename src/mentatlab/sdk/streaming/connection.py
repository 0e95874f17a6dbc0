"""Streams over one WebSocket: any number of subscriptions and publishers (extra `client`).

    async with AsyncClient(url) as client, client.connect_streams() as streams:
        async with streams.publisher(stream_id) as out:
            await out.send({"text": "hello"})
        async for record in streams.subscribe(stream_id):
            print(record.payload["data"])

The connection is made when it is first needed, and made again after every cut; everything goes on
where it stood. What is decided about that is in `conversation`, without a network.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    Invalid,
    MentatError,
    RateLimited,
    Unavailable,
)
from mentatlab.protocol.ids import new_id
from mentatlab.protocol.records import MAX_RECORD_BYTES
from mentatlab.sdk.answers import error_of
from mentatlab.sdk.backoff import Backoff
from mentatlab.sdk.streaming.conversation import Conversation, Interrupted
from mentatlab.sdk.streaming.endings import error_of_close
from mentatlab.sdk.streaming.publication import OnReset, Publication
from mentatlab.sdk.streaming.publisher import Publisher
from mentatlab.sdk.streaming.reading import WINDOW, Policy
from mentatlab.sdk.streaming.subscription import Subscription
from mentatlab.sdk.streaming.tokens import facts_of

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

PROTOCOL = "msp.v1+json"
GIVE_UP_S = 60.0
_FRAME_BYTES = 2 * MAX_RECORD_BYTES
_OPEN_S, _CLOSE_S = 10.0, 2.0

Renew = Callable[[], Awaitable[str]]
"""Gives a new token."""


class StreamConnection:
    """Use as a context manager; made by `AsyncClient.connect_streams`.

    Errors that no reconnect can mend are raised where the stream is used: by the iterator of its
    subscription, by the methods of its publisher. `Unavailable` after `give_up_s` without success.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        renew: Renew | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        self._url = f"ws{base_url.removeprefix('http')}"
        self._key, self._renew = key, renew
        self._conversation = Conversation()
        self._backoff = Backoff(give_up_s=give_up_s, uniform=random.uniform)
        self._news = asyncio.Event()  # there may be something to say
        self._quiet_until = 0.0  # as the server has asked; of the monotonic clock
        self._tasks = asyncio.TaskGroup()
        self._keeping: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> "StreamConnection":
        await self._tasks.__aenter__()
        self._keeping = self._tasks.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        self._conversation.fail(_closed())
        await self._tasks.__aexit__(None, None, None)

    # ------------------------------------------------------------------ for the application

    def subscribe(
        self,
        stream_id: str,
        from_: str | int = "start",
        *,
        rate: float | None = None,
        filter: Mapping[str, Any] | None = None,
        policy: Policy = "log",
        max_bytes: int = WINDOW,
    ) -> Subscription:
        """The records of a stream, or of a run's `commit` streams.

        `from_`: `start`, `latest`, a sequence (inclusive), a cursor (exclusive), `-N` (the last N),
        `time:<RFC 3339>`, `key` (the last record that can be decoded alone). `rate`: a factor of
        recorded time; None = as fast as possible. `filter`: `{"type": […], "node_id": […],
        "pin_name": […], "item": […]}`. `policy`: what happens when the application is slow: `log`
        (it gets everything, later), `latest`, `keyframe` (it misses some, told by `Gap`), `block`
        (the publisher waits). `max_bytes`: how much may wait here.
        """
        self._check_open()
        return Subscription(
            self._conversation,
            self._news.set,
            stream_id,
            from_=from_,
            rate=rate,
            filter_=filter,
            policy=policy,
            window=max_bytes,
        )

    def publisher(
        self,
        stream_id: str,
        *,
        id: str | None = None,
        epoch: int = 0,
        end: bool = True,
        on_reset: OnReset | None = None,
    ) -> Publisher:
        """Publishes to a stream of one's own (`AsyncClient.open_stream`), each record once.

        `id` names the producer: a program that comes back under the same one goes on where the log
        stands (`Publisher.already`). Without one it is new each time. A higher `epoch` takes over
        and fences out the older one. `end`: the stream ends with the publisher.

        A stream that is not `commit` is empty after the server's restart, under a new epoch. Then
        the publisher raises `Conflict(STREAM_LOST)`, or with `on_reset` (told how many acknowledged
        records are gone) it goes on with those that were not acknowledged: for what is live.
        """
        self._check_open()
        publication = Publication(stream_id, id or new_id("pr"), epoch, on_reset=on_reset)
        return Publisher(self._conversation, self._news.set, publication, end=end)

    # ------------------------------------------------------------------ how it is done

    def _check_open(self) -> None:
        if self._keeping is None:
            raise _closed()

    async def _keep(self) -> NoReturn:
        """Connected whenever it is needed."""
        while True:
            while (stream_id := self._conversation.wanted) is None:
                await self._pause()
            ending = await self._connect(stream_id)
            if self._conversation.lost():
                self._backoff.progress()
            if ending.retryable:
                await self._wait(ending)
            else:
                self._conversation.refused(stream_id, ending)

    async def _wait(self, ending: MentatError) -> None:
        at_least = ending.retry_after_s if isinstance(ending, RateLimited) else 0.0
        wait = self._backoff.wait(time.monotonic(), at_least)
        if wait is None:
            self._conversation.fail(ending)
            self._backoff.progress()
        else:
            await asyncio.sleep(wait)

    async def _connect(self, stream_id: str) -> MentatError:
        """One connection, to its end."""
        from websockets.asyncio.client import connect  # agents never need it
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.typing import Subprotocol

        try:
            await self._renew_what_has_ended()
            async with connect(
                f"{self._url}/ws/streams/{quote(stream_id, safe='')}",
                subprotocols=[Subprotocol(PROTOCOL)],
                additional_headers={"Authorization": f"Bearer {self._key}"} if self._key else None,
                compression=None,
                max_size=_FRAME_BYTES,
                open_timeout=_OPEN_S,
                close_timeout=_CLOSE_S,
            ) as socket:
                if socket.subprotocol != PROTOCOL:
                    return _another_protocol(self._url)
                return await self._converse(socket)
        except MentatError as error:
            return error  # of `renew`
        except InvalidStatus as refusal:
            answer = refusal.response
            retry_after = answer.headers.get("Retry-After")
            return error_of(answer.status_code, bytes(answer.body or b""), retry_after=retry_after)
        except (OSError, TimeoutError, WebSocketException) as error:
            return Unavailable(
                Code.SERVER_UNREACHABLE,
                f"{self._url} does not answer: {error or type(error).__name__}",
                hint="is `mentatlab up` running there?",
            )

    async def _converse(self, socket: "ClientConnection") -> MentatError:
        self._conversation.opened()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._send(socket)),
                group.create_task(self._stay_authorised()),
            ]
            ending = await self._receive(socket)
            for task in tasks:
                task.cancel()
        return ending

    async def _receive(self, socket: "ClientConnection") -> MentatError:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                if quiet_s := self._conversation.received(await socket.recv()):
                    self._quiet_until = time.monotonic() + quiet_s
                self._news.set()  # an answer may let something be sent
        except ConnectionClosed as closed:
            said = closed.rcvd
            return error_of_close(said.code, said.reason) if said else error_of_close(1006)
        except Interrupted as interrupted:
            return interrupted.error

    async def _send(self, socket: "ClientConnection") -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                while (message := self._conversation.next_message()) is not None:
                    await socket.send(message, text=isinstance(message, bytes))
                    if (quiet_s := self._quiet_until - time.monotonic()) > 0:
                        await asyncio.sleep(quiet_s)
                await self._pause()
        except ConnectionClosed:
            return  # `_receive` says why

    async def _pause(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _renew_what_has_ended(self) -> None:
        facts = facts_of(self._key)
        if self._renew is not None and facts is not None and facts.expires <= time.time() + 1:
            self._key = await self._renew()

    async def _stay_authorised(self) -> None:
        """A token is exchanged for a new one, on the connection, before it ends."""
        while self._renew is not None and (facts := facts_of(self._key)) is not None:
            await asyncio.sleep(facts.renewal_in(time.time()))
            try:
                self._key = await self._renew()
            except MentatError as error:
                if not error.retryable:
                    return  # the server closes when the token ends, and says why
                await asyncio.sleep(1.0)
            else:
                self._conversation.say({"type": "auth", "token": self._key})
                self._news.set()


def _closed() -> Conflict:
    return Conflict(
        Code.CONFLICT,
        "this connection is not open",
        hint="write `async with client.connect_streams() as streams:` around what uses it",
    )


def _another_protocol(url: str) -> Invalid:
    return Invalid(
        Code.INVALID_REQUEST,
        f"what answers at {url} does not speak {PROTOCOL}",
        hint="is that the address of a MentatLab server, and does a proxy keep subprotocols?",
    )
