"""SSE written straight to the socket.

The HTTP server hands a request over when its head is whole and nothing else is under way on the
connection, which ends with the answer. The ASGI route on the same path answers the others: those
behind an unfinished request, and those that want gzip.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from uvicorn.server import ServerState

from mentatlab.gateway.admission import Visit
from mentatlab.gateway.compress import accepts_gzip
from mentatlab.gateway.head import Head
from mentatlab.gateway.problems import bytes_of, status_of, unexpected
from mentatlab.gateway.stream_sse import HEADERS, EventFeed, chunk, event_of, follow
from mentatlab.gateway.stream_tasks import Tasks
from mentatlab.gateway.streams import CLOSE_S, WRITE_LIMIT, Streams, peer_of
from mentatlab.protocol.errors import MentatError
from mentatlab.streams.buffer import Item

_HEADERS = {
    **HEADERS,
    "Vary": "Accept-Encoding",
    "Transfer-Encoding": "chunked",
    "Connection": "close",
}


def is_ours(head: Head) -> bool:
    """Whether this request can be answered here."""
    encodings = ", ".join(head.listed(b"accept-encoding"))
    return head.method == "GET" and head.edge == "sse" and not accepts_gzip(encodings)


class RawEvents(asyncio.Protocol):
    """One answer: the `EventLink` of its feed. What the client still sends is dropped."""

    __slots__ = (
        "_cutting",
        "_feed",
        "_over",
        "_state",
        "_streams",
        "_tasks",
        "_transport",
        "_visit",
        "writable",
    )

    def __init__(self, streams: Streams, transport: asyncio.Transport, state: ServerState) -> None:
        self._streams, self._transport, self._state = streams, transport, state
        self._tasks = Tasks(transport.abort)
        self._feed: EventFeed | None = None
        self._visit: Visit | None = None
        self._cutting: asyncio.TimerHandle | None = None
        self._over = False
        self.writable = True

    def answer(self, head: Head) -> None:
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT)
        self._state.connections.add(self)  # pyright: ignore[reportArgumentType]  has `shutdown`
        self._tasks.start(self._answer(head))

    async def _answer(self, head: Head) -> None:
        cors = self._streams.admission.cors(head)
        try:
            feed = await self._followed(head)
        except MentatError as error:
            self._refuse(status_of(error), bytes_of(error, cors))
        except Exception as error:  # noqa: BLE001  a bug: told as one
            self._refuse(500, bytes_of(unexpected(error), cors))
        else:
            if feed is None:
                self._refuse(204, _head("204 No Content", [("Connection", "close"), *cors]))
            else:
                self._feed = feed
                self._transport.write(_head("200 OK", [*_HEADERS.items(), *cors]))
                feed.opened(self)

    async def _followed(self, head: Head) -> EventFeed | None:
        streams, asked = self._streams, head.asked
        visit = streams.admission.admit(head, peer_of(self._transport))
        authority = await streams.admission.authorise(visit)
        self._visit = visit
        assert head.followed is not None
        return await follow(
            streams.connections,
            head.followed,
            authority,
            from_=asked.get("from"),
            rate=asked.get("rate"),
            last_event_id=head.header(b"last-event-id"),
        )

    def _refuse(self, status: int, answer: bytes) -> None:
        self._visited(status)
        self._transport.write(answer)
        self.finish(b"")

    # ------------------------------------------------------------------ as its feed sees it

    @property
    def held(self) -> int:
        return self._transport.get_write_buffer_size()

    def send(self, events: bytes) -> None:
        if not self._over:
            self._transport.write(chunk(events))

    def send_items(self, items: Sequence[Item], epoch: int) -> None:
        if not self._over:
            self._transport.write(self._streams.shared.of("sse", items, _chunks, epoch))

    def finish(self, end: bytes = b"0\r\n\r\n") -> None:
        """Who does not take the end in time is cut."""
        if not self._over:
            self._over = True
            self._transport.write(end)
            self._transport.close()
            loop = asyncio.get_running_loop()
            self._cutting = loop.call_later(CLOSE_S, self._transport.abort)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    # ------------------------------------------------------------------ as its transport sees it

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._feed is not None and not self._over:
            self._feed.writable()

    def shutdown(self) -> None:
        """uvicorn stops."""
        self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        if self._cutting is not None:
            self._cutting.cancel()
        self._tasks.cancel()
        self._state.connections.discard(self)  # pyright: ignore[reportArgumentType]
        if self._feed is not None:
            self._feed.lost()
        self._visited(200)

    def _visited(self, status: int) -> None:
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.over(status)


def _chunks(items: Sequence[Item], epoch: int) -> bytes:
    return b"".join([chunk(event_of(item, epoch)) for item in items])


def _head(status: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1")
