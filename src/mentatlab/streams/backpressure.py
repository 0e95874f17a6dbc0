"""Readers that hold their publisher back: the policy `block`, for the nodes of a run.

A publisher waits while a blocking reader of its lane lags by a whole window (1 MiB or 256 records).
Before such a reader comes nobody waits. Bounded lanes alone can stop a run for ever, for instance
when a node reads one input to its end before the other. So, by Parks' rule (Bounded Scheduling of
Process Networks, 1995): when every live node of a run waits, for room or for input, the smallest
full window is doubled. At 1 GiB its publisher fails instead.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from mentatlab.protocol.errors import Code, OutOfSpace
from mentatlab.streams.buffer import Item
from mentatlab.streams.port import Entry, Lane

WINDOW_BYTES = 1 << 20
WINDOW_RECORDS = 256
MOST_BYTES = 1 << 30

Widened = Callable[[str, int], None]
"""Told the stream's id and the bytes that its readers may lag now."""


class Hold:
    """One blocking reader of a lane. `node` is who reads.

    Lag counts records after `consumed`, and the bytes of those that came since it reads.
    """

    def __init__(self, gate: "Gate", node: str, position: int, head: int) -> None:
        self._gate, self.node, self._consumed, self._base = gate, node, position, head
        self._taken_bytes = 0
        self._from_bytes = gate.bytes
        self._taken: deque[tuple[Item, bool]] = deque()  # and whether the reader is told of it
        self.starved = False

    def lags(self, head: int, bytes_: int) -> bool:
        gate = self._gate
        behind = bytes_ - self._from_bytes - self._taken_bytes
        return head - self._consumed >= gate.records or behind >= gate.limit

    def took(self, items: Sequence[Item], told: Sequence[Item]) -> None:
        """The reader has them, and is told of some: the others are consumed with those before."""
        positions = {item.position for item in told}
        self._taken.extend((item, item.position in positions) for item in items)
        self.consumed(0)

    def consumed(self, sequence: int) -> None:
        """The reader is done with what it was told up to there."""
        while self._taken and (self._taken[0][0].position <= sequence or not self._taken[0][1]):
            item, _ = self._taken.popleft()
            self._consumed = max(self._consumed, item.position)
            if item.position > self._base:
                self._taken_bytes += item.entry.length
        self._gate.release()

    def begin_again(self) -> None:
        """Its lane goes on in another epoch: sequences begin again, too."""
        self._taken.clear()
        self._gate.head = self._consumed = self._base = self._taken_bytes = 0
        self._from_bytes = self._gate.bytes
        self._gate.release()

    def starve(self, starved: bool) -> None:
        """Whether it waits for a record that is not there."""
        self.starved = starved
        if starved:
            self._gate.flow.relieve()

    def close(self) -> None:
        self._gate.leave(self)


class Gate:
    """A lane with blocking readers, and its publishers that wait."""

    def __init__(self, flow: "_Flow", lane: Lane) -> None:
        self.flow, self.stream_id, self.node = flow, lane.stream_id, lane.node_id
        self.limit, self.records = WINDOW_BYTES, WINDOW_RECORDS
        self.head, self.bytes = lane.head, 0
        self.holds: set[Hold] = set()
        self.waiting: set[asyncio.Future[None]] = set()

    @property
    def full(self) -> bool:
        return any(hold.lags(self.head, self.bytes) for hold in self.holds)

    async def room(self) -> None:
        """`OutOfSpace(STREAM_BUFFER_EXCEEDED)`"""
        while self.full:
            waiter = asyncio.get_running_loop().create_future()
            self.waiting.add(waiter)
            try:
                self.flow.relieve()
                await waiter
            finally:
                self.waiting.discard(waiter)

    def appended(self, entries: Sequence[Entry]) -> None:
        """They may come twice: from who appended them, and from the log.

        Nobody waits for input any more: who takes them and wants another says so again, and who has
        no credit for them does not.
        """
        if entries[-1].sequence <= self.head:
            return
        self.bytes += sum(entry.length for entry in entries if entry.sequence > self.head)
        self.head = entries[-1].sequence
        for hold in self.holds:
            hold.starved = False

    def release(self) -> None:
        if self.waiting and not self.full:
            for waiter in self.waiting:
                _settle(waiter)

    def widen(self) -> None:
        if self.limit >= MOST_BYTES:
            for waiter in self.waiting:
                _settle(waiter, _exceeded(self.stream_id))
            return
        self.limit, self.records = self.limit * 2, self.records * 2
        self.flow.tell(self)
        self.release()

    def leave(self, hold: Hold) -> None:
        """Idempotent."""
        if hold in self.holds:
            self.holds.remove(hold)
            self.release()
            self.flow.left(self)


class _Flow:
    """What is known of one run: its live nodes, and its lanes with blocking readers."""

    def __init__(self, all_: "Backpressure", run_id: str) -> None:
        self._all, self._run_id = all_, run_id
        self.live: Counter[str] = Counter()
        self.gates: set[Gate] = set()
        self.listeners: dict[str, Widened] = {}

    def tell(self, gate: Gate) -> None:
        """Its publisher learns that its readers may lag further."""
        if (listener := self.listeners.get(gate.node)) is not None:
            listener(gate.stream_id, gate.limit)

    def relieve(self) -> None:
        """Parks' rule. It may be applied once too often, never too rarely."""
        full = [gate for gate in self.gates if gate.waiting and gate.full]
        if not full:
            return
        holds = [hold for gate in self.gates for hold in gate.holds]
        waits = {gate.node for gate in full} | {hold.node for hold in holds if hold.starved}
        if waits.issuperset({*+self.live, *(hold.node for hold in holds)}):
            min(full, key=lambda gate: gate.limit).widen()

    def left(self, gate: Gate | None = None) -> None:
        """A node or reader has gone: the others may all be waiting now, or nobody is left."""
        if gate is not None and not gate.holds:
            self.gates.discard(gate)
            self._all.gates.pop(gate.stream_id, None)
        self.relieve()
        if not self.gates and not +self.live:
            self._all.flows.pop(self._run_id, None)


class Backpressure:
    """All runs of this process."""

    def __init__(self) -> None:
        self.flows: dict[str, _Flow] = {}
        self.gates: dict[str, Gate] = {}

    @contextmanager
    def live(self, run_id: str, node: str, widened: Widened) -> Generator[None]:
        """The node works meanwhile: as long as it does not wait, nobody's window grows."""
        flow = self._flow(run_id)
        flow.live[node] += 1
        flow.listeners[node] = widened
        try:
            yield
        finally:
            flow.live[node] -= 1
            if not flow.live[node]:
                flow.listeners.pop(node, None)
            flow.left()

    def hold(self, lane: Lane, node: str, position: int) -> Hold:
        """A reader that has everything up to `position`; the caller closes it."""
        gate = self.gates.get(lane.stream_id)
        if gate is None:
            flow = self._flow(lane.run_id)
            gate = self.gates[lane.stream_id] = Gate(flow, lane)
            flow.gates.add(gate)
        hold = Hold(gate, node, position, lane.head)
        gate.holds.add(hold)
        return hold

    def held_back(self) -> tuple[str, ...]:
        """The streams whose publishers wait."""
        return tuple(stream_id for stream_id, gate in self.gates.items() if gate.waiting)

    def _flow(self, run_id: str) -> _Flow:
        if run_id not in self.flows:
            self.flows[run_id] = _Flow(self, run_id)
        return self.flows[run_id]


def _settle(waiter: asyncio.Future[None], error: Exception | None = None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)


def _exceeded(stream_id: str) -> OutOfSpace:
    return OutOfSpace(
        Code.STREAM_BUFFER_EXCEEDED,
        f"1 GiB of {stream_id} waits for its reader, and the run cannot go on without more",
        hint="let the node that reads several inputs read them together",
    )
