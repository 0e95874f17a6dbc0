"""One subscription, over any number of connections: where it is, what waits for the application,
and how much the server may send. Pure.

    subscribe() → subscribed, record…, gap, mark → take() → consumed() … → lost() → subscribe()

Credit is absolute and counts bytes from `subscribe` on; it is granted as the application consumes.
What has come is kept over a cut, and reading goes on behind it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal

from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.frames import Frame
from mentatlab.protocol.records import Cursor, RecordType, StreamChunk, parse_cursor
from mentatlab.sdk.following import Element, Following, TruncatedStream
from mentatlab.sdk.streaming.messages import Lane, Mark, Missing, Subscribed, media_chunk

Policy = Literal["log", "latest", "keyframe", "block"]

WINDOW = 1 << 20
ACKNOWLEDGED = 32
"""Records after which a reader who holds its publisher back says how far it has come."""

Message = dict[str, Any]


class Reading:
    """`window`: bytes that may be on their way or wait for the application.

    `wake` is called when `take` may have something new, or `over` has become true.
    """

    def __init__(
        self,
        id_: str,
        *,
        from_: str | int,
        rate: float | None = None,
        filter_: Mapping[str, Any] | None = None,
        policy: Policy = "log",
        window: int = WINDOW,
    ) -> None:
        self.id, self._from, self._window = id_, from_, window
        self.wake: Callable[[], None] = _nobody
        self._asked: Message = {"policy": policy}
        if rate is not None:
            self._asked["rate"] = rate
        if filter_ is not None:
            self._asked["filter"] = dict(filter_)
        self._blocks, self._dense = policy == "block", filter_ is None
        whole = str(from_) == "start" and self._dense
        self._following = Following(id_, whole=whole)
        self._lane = Lane(id_)
        self._cursor: Cursor | None = None  # after what has come
        self._waiting: deque[tuple[Element, int, Cursor]] = deque()
        self._received = self._consumed = self._granted = self._offset = 0  # bytes
        self._taken = 0  # bytes of the element that the application has in hand
        self._unacknowledged = 0  # records
        self._ended: MentatError | bool = False
        self.live = False  # the server has confirmed it on the present connection
        self.reached: Cursor | None = None
        """After the last element that the application took."""

    # ------------------------------------------------------------------ to the server

    def subscribe(self) -> Message:
        """For a new connection."""
        self._offset, self._granted = self._received, self._consumed + self._window
        return {
            "type": "subscribe",
            "id": self.id,
            "from": str(self._cursor or self._from),
            "max_bytes": max(0, self._granted - self._offset),
            **self._asked,
        }

    def lost(self) -> None:
        self.live = False

    def consumed(self) -> list[Message]:
        """The application has consumed what it took; what that lets be said."""
        self._consumed += self._taken
        self._taken = 0
        said: list[Message] = []
        if not self.live:
            return said
        due = self._consumed + self._window
        if due - self._granted >= max(1, self._window // 4):
            self._granted = due
            said.append({"type": "credit", "id": self.id, "max_bytes": due - self._offset})
        if self._blocks and self._unacknowledged >= (ACKNOWLEDGED if self._waiting else 1):
            self._unacknowledged = 0
            said.append({"type": "ack", "id": self.id, "cursor": str(self.reached)})
        return said

    # ------------------------------------------------------------------ from the server

    def subscribed(self, told: Subscribed) -> None:
        self.live = True
        if self._cursor is None:
            self._cursor = self.reached = parse_cursor(told.start)
        if told.started:
            self._lane = Lane(self.id, told.run_id, told.node_id, told.pin_name, told.started)
        self.wake()

    def frame(self, frame: Frame, size: int) -> None:
        """A binary record; `size` are the frame's bytes."""
        self.record(media_chunk(frame, self._lane), size)

    def record(self, record: StreamChunk, size: int) -> None:
        """`size`: the bytes that credit pays for. What was here before is left out."""
        if not self.live:
            return  # of a subscription before this one
        self._received += size
        if not self._advance(record):
            self._pass(size)
            return
        if record.type is RecordType.START and record.sequence == 1 and record.stream_id == self.id:
            names = (record.run_id, record.node_id, record.pin_name, record.timestamp)
            self._lane = Lane(self.id, *names)
        try:
            told = self._following.feed(record)
        except MentatError as error:
            self._end(error)
            return
        if told is None:
            self._pass(size)
        else:
            self._push(told, size)
        if self._following.ended:
            self._end(True)

    def _advance(self, record: StreamChunk) -> bool:
        """Whether it is new; moves the cursor. A lane's first record may come out of order, for who
        begins further on."""
        assert self._cursor is not None  # records come after `subscribed`
        own = record.stream_id == self.id
        at = record.sequence if own else record.rseq or 0
        if at <= self._cursor.sequence:
            return record.type is RecordType.START
        if self._dense and at != self._cursor.sequence + 1:
            missing = f"what lies between {self._cursor} and {at} did not come"
            self._end(TruncatedStream(missing, hint="read it again from the cursor"))
            return False
        self._cursor = self._cursor._replace(sequence=at)
        return True

    def missing(self, told: Missing) -> None:
        self._cursor = parse_cursor(told.next)
        self._push(self._following.miss(told.reason, told.next), 0)

    def mark(self, told: Mark) -> None:
        """How far the server is; that there is nothing more, when the stream has ended."""
        cursor = parse_cursor(told.cursor)
        if self._cursor is not None and cursor.epoch == self._cursor.epoch:
            self._cursor = max(self._cursor, cursor)
        if told.state in ("ended", "errored") and not self._ended:
            try:
                self._following.finish()
                self._end(True)
            except TruncatedStream as error:
                self._end(error)

    def failed(self, error: MentatError) -> None:
        """It cannot go on; what has come is still taken."""
        if not self._ended:
            self._end(error)

    def _pass(self, size: int) -> None:
        """What the application does not see is consumed at once."""
        self._consumed += size
        self.wake()

    def _push(self, element: Element, size: int) -> None:
        assert self._cursor is not None
        self._waiting.append((element, size, self._cursor))
        self.wake()

    def _end(self, how: MentatError | bool) -> None:
        self._ended = how
        self.live = False
        self.wake()

    # ------------------------------------------------------------------ to the application

    @property
    def active(self) -> bool:
        """The server may have more."""
        return self._ended is False

    def take(self) -> Element | None:
        """The next element; None: not now.

        After the last one the error that ended it, or `StopAsyncIteration` after a complete end.
        """
        if self._waiting:
            element, self._taken, self.reached = self._waiting.popleft()
            self._unacknowledged += 1
            return element
        if self._ended is True:
            raise StopAsyncIteration
        if isinstance(self._ended, MentatError):
            raise self._ended
        return None

    @property
    def held(self) -> int:
        """Bytes that wait for the application or are in its hand."""
        return self._received - self._consumed


def _nobody() -> None:
    """Nobody waits yet."""
