"""One stream or run that an `msp.v1+json` connection follows."""

from collections.abc import Callable, Iterator

from mentatlab.gateway.stream_conversation import Link
from mentatlab.gateway.stream_wire import MAX_STREAMS, Marks, gap_message, message
from mentatlab.protocol.errors import Code, Conflict, MentatError, RateLimited
from mentatlab.protocol.frames import lane_head
from mentatlab.protocol.records import RecordType, timestamp
from mentatlab.streams.buffer import Item, Items
from mentatlab.streams.port import Lane, Run
from mentatlab.streams.pump import Pump
from mentatlab.streams.subscription import Subscription

_HEAD = 4  # bytes of a frame that differ from reader to reader


class Following:
    """`lane` is its alias in binary frames. Before `begin` it only keeps what is granted."""

    __slots__ = (
        "_binary",
        "_ended",
        "_failed",
        "_granted",
        "_link",
        "_marks",
        "_pump",
        "_state",
        "gone",
        "id",
        "lane",
    )

    def __init__(
        self,
        id_: str,
        lane: int,
        link: Link,
        *,
        ended: Callable[["Following"], None],
        failed: Callable[["Following", MentatError], None],
    ) -> None:
        self.id, self.lane, self._link = id_, lane, link
        self._ended, self._failed = ended, failed
        self._pump: Pump | None = None
        self._granted = 0
        self._binary = True  # a frame names a lane, so that those of a run come as JSON
        self._state = "ended"  # when it is over
        self._marks = Marks(stalled=False)
        self.gone = False

    def begin(
        self, subscription: Subscription, found: Lane | Run, *, resumed: bool, stalled: bool
    ) -> None:
        """`resumed`: it asked for what follows a cursor."""
        if self.gone:
            subscription.close()
            return
        found = subscription.lane or found
        self._marks = Marks(stalled=stalled)
        self._binary = isinstance(found, Lane)
        if isinstance(found, Lane) and found.state != "open":
            self._state = found.state
        self._link.send_text(
            message(
                "subscribed",
                id=self.id,
                lane=self.lane,
                epoch=found.epoch,
                start=str(subscription.cursor),
                head=found.head,
                state="stalled" if stalled else self._state_of(found),
                recovered=resumed and subscription.gap is None,
                **(_facts(found) if isinstance(found, Lane) else {}),
            )
        )
        self._pump = Pump(
            subscription,
            ready=self._ready,
            deliver=self._deliver,
            ended=self._over,
            failed=self._fail,
            spawn=self._link.spawn,
        )
        self._tell_gap(subscription)
        if subscription.preface is not None:
            self._send([subscription.preface])
        subscription.grant(self._granted)
        self.go_on()

    def go_on(self) -> None:
        """The link can take more."""
        if self._pump is not None:
            self._pump.run()

    def grant(self, max_bytes: int) -> None:
        self._granted = max(self._granted, max_bytes)
        if self._pump is not None:
            self._pump.subscription.grant(max_bytes)

    def acknowledge(self, sequence: int) -> None:
        if self._pump is not None:
            self._pump.subscription.acknowledge(sequence)

    def close(self) -> None:
        """Idempotent; nothing is said afterwards."""
        self.gone = True
        if self._pump is not None:
            self._pump.close()

    def tick(self, now: float, mark_s: float, *, stalled: bool) -> None:
        """A mark when it is idle, or when its publisher has stalled or is back."""
        if self._pump is not None and self._link.writable:
            state = self._marks.due(now, mark_s, stalled=stalled)
            if state is not None:
                self._mark(state)

    def _state_of(self, found: Lane | Run) -> str:
        return found.state if isinstance(found, Lane) else "open"

    def _ready(self) -> bool:
        return self._link.writable

    def _deliver(self, items: Items) -> None:
        assert self._pump is not None
        self._marks.fresh = True
        if self._pump.subscription.gap is not None:
            self._tell_gap(self._pump.subscription)
        if items.framed and self._binary:
            self._send(items)
        else:
            self._link.send_items(items, joined=True)
        if self._binary and (last := items[-1].entry).terminal:
            self._state = "ended" if last.type is RecordType.END else "errored"

    def _send(self, items: list[Item]) -> None:
        texts: list[Item] = []
        for item in items:
            if (frame := item.entry.frame) is None or not self._binary:
                texts.append(item)
                continue
            if texts:
                self._link.send_items(texts, joined=True)
                texts = []
            self._link.send_binary((lane_head(frame, self.lane), memoryview(frame)[_HEAD:]))
        if texts:
            self._link.send_items(texts, joined=True)

    def _tell_gap(self, subscription: Subscription) -> None:
        if subscription.gap is not None:
            self._link.send_text(gap_message(self.id, subscription.gap))
            subscription.gap = None

    def _mark(self, state: str) -> None:
        assert self._pump is not None
        cursor = str(self._pump.subscription.cursor)
        self._link.send_text(message("mark", id=self.id, cursor=cursor, state=state))

    def _over(self) -> None:
        self._mark(self._state)
        self.gone = True
        self._ended(self)

    def _fail(self, error: MentatError) -> None:
        self.gone = True
        self._failed(self, error)


def _facts(lane: Lane) -> dict[str, str]:
    """What binary frames leave out, for who begins behind the lane's `stream_start`."""
    return {
        "run_id": lane.run_id,
        "node_id": lane.node_id,
        "pin_name": lane.pin_name,
        "started": timestamp(lane.started_ms / 1000),
    }


class Followings:
    """Those of one connection, by the id of what is followed; iterating is over a copy."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[str, Following] = {}

    def __iter__(self) -> Iterator[Following]:
        return iter(tuple(self._by_id.values()))

    def get(self, id_: str) -> Following | None:
        return self._by_id.get(id_)

    def add(self, followed: Following) -> Following:
        """`Conflict` for a second one of the same id, `RateLimited` for the 129th."""
        if followed.id in self._by_id:
            raise Conflict(
                Code.CONFLICT,
                f"{followed.id} is subscribed on this connection",
                hint="unsubscribe first to begin at another place",
            )
        if len(self._by_id) >= MAX_STREAMS:
            raise RateLimited(1.0)
        self._by_id[followed.id] = followed
        return followed

    def drop(self, followed: Following | None) -> None:
        """Nothing more is said of it. Idempotent."""
        if followed is not None:
            followed.close()
            if self._by_id.get(followed.id) is followed:
                del self._by_id[followed.id]
