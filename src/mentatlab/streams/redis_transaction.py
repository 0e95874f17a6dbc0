"""What one call to Redis finds and changes: decisions on what this process believes, checked there.

A job reads and changes a run through a `Transaction`; several jobs of a run share one. What it read
is compared in Redis (`redis_scripts.COMMIT`), and all of it is decided again on a mismatch. Pure.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, Conflict, Invalid
from mentatlab.protocol.records import Draft, Producer
from mentatlab.streams import lanes
from mentatlab.streams.port import (
    Appended,
    Entry,
    Known,
    Lane,
    Opened,
    Run,
    find_place,
    unknown,
)

T = TypeVar("T")
VERSION = 16
"""Characters that name the call which wrote a value; they come before it."""

encode = msgspec.json.encode
encode_entry = msgspec.msgpack.Encoder().encode
decode_entry = msgspec.msgpack.Decoder(Entry).decode
decode_news = msgspec.msgpack.Decoder(tuple[tuple[str, ...], tuple[Entry, ...]]).decode
decode_lane = msgspec.json.Decoder(Lane).decode
decode_known = msgspec.json.Decoder(Known).decode
decode_run = msgspec.json.Decoder(Run).decode
decode_name = msgspec.json.Decoder(str).decode


class Address(NamedTuple):
    """A field of the run's hash, or of the hash of a lane's producers."""

    lane: str
    field: str


RUN = Address("", "run")


def lane_at(stream_id: str) -> Address:
    return Address("", f"lane:{stream_id}")


def place_at(lane: Lane) -> Address:
    return Address("", f"place:{encode([lane.node_id, lane.pin_name]).decode()}")


class Held(NamedTuple):
    """A value as this process knows it; `version` is empty when there is none."""

    version: bytes
    value: Any


NOTHING = Held(b"", None)
Cache = dict[Address, Held]


class Facts(NamedTuple):
    """Of a record in the log; bytes, Unix ms. `rseq` 0 = none."""

    length: int
    time_ms: int
    size: int
    rseq: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


NO_FACTS = Facts(0, 0, 0, 0)


def facts_of(entry: Entry) -> Facts:
    return Facts(entry.length, entry.time_ms, entry.size, entry.rseq or 0)


class FactsWanted(Exception):  # noqa: N818  (a question, not a fault)
    """Of the lane's records `first` to `last` facts are needed: load them, decide again."""

    def __init__(self, stream_id: str, first: int, last: int) -> None:
        self.stream_id, self.first, self.last = stream_id, first, last


FactsByLane = dict[str, dict[int, Facts]]


class Rules(NamedTuple):
    """Of the data set: its epoch, and why it may lose what it acknowledged ("" = it does not)."""

    epoch: int
    weakness: str = ""


class Transaction:
    """`version` is unique to it; `facts` are those that earlier tries had to load."""

    def __init__(self, version: bytes, rules: Rules, cache: Cache, facts: FactsByLane) -> None:
        self.version, self._rules, self._cache, self._facts = version, rules, cache, facts
        self._checks: dict[Address, bytes] = {}
        self.puts: Cache = {}
        self._made: list[str] = []
        self._entries: list[Entry] = []
        self._drops: list[tuple[str, int, int]] = []
        self._cleared: list[str] = []
        self._touched: set[str] = set()
        self._fresh: FactsByLane = {}
        self.size = 0  # bytes of the new records

    # ------------------------------------------------------------------ reading

    def lane(self, stream_id: str) -> Lane | None:
        return self._get(lane_at(stream_id))

    def run(self) -> Run | None:
        return self._get(RUN)

    def known(self, stream_id: str, producer_id: str) -> Known | None:
        return self._get(Address(stream_id, producer_id))

    def at_place(self, lane: Lane) -> Lane | None:
        """The lane that stands where this one would."""
        stream_id: str | None = self._get(place_at(lane))
        return None if stream_id is None else self.lane(stream_id)

    def _get(self, address: Address) -> Any:
        if address in self.puts:
            return self.puts[address].value
        held = self._cache.get(address, NOTHING)
        self._checks[address] = held.version
        return held.value

    # ------------------------------------------------------------------ changing

    def _put(self, address: Address, value: object) -> None:
        if address not in self.puts:
            self._get(address)
        self.puts[address] = Held(self.version, value)

    def create(self, wanted: Lane) -> Lane:
        """`Forbidden(STREAM_FORBIDDEN)`, `Conflict(CONFLICT)`, `Invalid(STREAM_NOT_DURABLE)`."""
        run, there, same_id = self.run(), self.at_place(wanted), self.lane(wanted.stream_id)
        if run is not None:  # whose it is; the place is known better below
            find_place([msgspec.structs.replace(wanted, workspace=run.workspace)], wanted)
        if there is not None:
            return there
        if same_id is not None:
            raise taken(wanted.stream_id)
        self._check_durable(wanted)
        lane = msgspec.structs.replace(wanted, epoch=self._rules.epoch)
        if run is None:
            self._put(
                RUN, Run(run_id=lane.run_id, workspace=lane.workspace, epoch=self._rules.epoch)
            )
        self._put(lane_at(lane.stream_id), lane)
        self._put(place_at(lane), lane.stream_id)
        self._made.append(lane.stream_id)
        return lane

    def open(self, wanted: Lane, start: Draft, now: float) -> Opened:
        puts, made = dict(self.puts), len(self._made)
        lane = self.create(wanted)
        if lane.head:
            return Opened(lane)
        try:
            appended = self.append(lane.stream_id, [start], now, None)
        except Exception:
            self.puts, self._made[made:] = puts, []
            raise
        return Opened(self._must(lane.stream_id), appended.entries)

    def append(
        self, stream_id: str, drafts: Sequence[Draft], now: float, producer: Producer | None
    ) -> Appended:
        lane = self.lane(stream_id)
        known = None if producer is None else self.known(stream_id, producer.id)
        run = self.run() if lane is None or lane.durability == "commit" else None
        if lane is None:
            raise unknown(stream_id)
        self._check_durable(lane)
        step = lanes.append(
            lane,
            drafts,
            now=now,
            measure=self._measure(lane),
            producer=producer,
            known=known,
            rseq=0 if run is None else run.head,
        )
        if step.entries:
            self._store(lane, step, run)
            if producer is not None:
                self._put(Address(stream_id, producer.id), step.known)
        return step.answer(producer, len(drafts))

    def fence(self, stream_id: str, producer_id: str) -> Known | None:
        self._must(stream_id)
        if (known := self.known(stream_id, producer_id)) is None:
            return None
        known = lanes.fenced(known)
        self._put(Address(stream_id, producer_id), known)
        return known

    def expire(self, stream_id: str) -> Lane:
        lane = self._must(stream_id)
        expired = msgspec.structs.replace(lane, state="expired", kept=0, floor=lane.head + 1)
        self._put(lane_at(stream_id), expired)
        self._cleared.append(stream_id)
        self._touched.add(stream_id)
        return expired

    def _must(self, stream_id: str) -> Lane:
        if (lane := self.lane(stream_id)) is None:
            raise unknown(stream_id)
        return lane

    def _check_durable(self, lane: Lane) -> None:
        if lane.durability == "commit" and self._rules.weakness:
            raise Invalid(
                Code.STREAM_NOT_DURABLE,
                "the Redis behind this server does not keep all that it acknowledges: "
                + self._rules.weakness,
                hint="run it with `appendonly yes` and `appendfsync always`, or open the stream "
                "with the durability `memory`",
            )

    def _store(self, before: Lane, step: lanes.Step, run: Run | None) -> None:
        stream_id = before.stream_id
        fresh = self._fresh.setdefault(stream_id, {})
        new = {entry.sequence: facts_of(entry) for entry in step.entries}
        lane = lanes.trimmed(step.lane, self._lengths(step.lane, new))
        for sequence in range(before.floor, lane.floor):
            rseq = (new.get(sequence) or self._facts_of(stream_id, sequence, before.head)).rseq
            self._drops.append((stream_id, sequence, rseq))
        fresh |= new
        self._entries += step.entries
        self.size += sum(entry.length for entry in step.entries)
        self._touched.add(stream_id)
        self._put(lane_at(stream_id), lane)
        if run is not None:
            self._put(RUN, msgspec.structs.replace(run, head=step.entries[-1].rseq or run.head))

    # ------------------------------------------------------------------ facts

    def _measure(self, lane: Lane) -> lanes.Measure:
        def measure(first: int, last: int) -> int:
            present = range(max(first, lane.floor), last + 1)
            return sum(self._facts_of(lane.stream_id, at, last).size for at in present)

        return measure

    def _lengths(self, lane: Lane, new: dict[int, Facts]) -> Iterator[tuple[int, int]]:
        last = min(new) - 1
        for sequence in range(lane.floor, lane.head + 1):
            known = new.get(sequence) or self._facts_of(lane.stream_id, sequence, last)
            yield sequence, known.length

    def _facts_of(self, stream_id: str, sequence: int, last: int) -> Facts:
        fresh, loaded = self._fresh.get(stream_id, {}), self._facts.get(stream_id, {})
        if (found := fresh.get(sequence) or loaded.get(sequence)) is None:
            raise FactsWanted(stream_id, sequence, last)
        return found

    # ------------------------------------------------------------------ the call

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not self.puts

    @property
    def addresses(self) -> list[Address]:
        """Of what is checked, in the order of the answer."""
        return list(self._checks)

    def arguments(self, run_id: str) -> list[bytes | str | int]:
        """`ARGV` of `redis_scripts.COMMIT`."""
        touched = sorted(self._touched)
        args: list[bytes | str | int] = [
            self.version,
            msgspec.msgpack.encode([*touched, run_id]) if touched else b"",
            len(self._checks),
        ]
        for (lane, field), version in self._checks.items():
            args += (lane, field, version)
        args.append(len(self.puts))
        for (lane, field), held in self.puts.items():
            args += (lane, field, encode(held.value))
        args += (len(self._made), *self._made, len(self._entries))
        for entry in self._entries:
            rseq = "" if entry.rseq is None else entry.rseq
            facts = str(facts_of(entry))
            args += (entry.stream_id, entry.sequence, rseq, facts, encode_entry(entry))
        args.append(len(self._drops))
        for stream_id, sequence, rseq in self._drops:
            args += (stream_id, sequence, rseq or "")
        args += (len(self._cleared), *self._cleared)
        return args


def held(address: Address, raw: bytes | None, epoch: int) -> Held:
    """A field's value as Redis has it."""
    if raw is None:
        return NOTHING
    return Held(raw[:VERSION], _decoder(address)(raw[VERSION:], epoch))


def lane_of(data: bytes, epoch: int) -> Lane:
    """The epoch is the data set's, whenever the lane was opened."""
    lane = decode_lane(data)
    return lane if lane.epoch == epoch else msgspec.structs.replace(lane, epoch=epoch)


def run_of(data: bytes, epoch: int) -> Run:
    run = decode_run(data)
    return run if run.epoch == epoch else msgspec.structs.replace(run, epoch=epoch)


def _decoder(address: Address) -> Callable[[bytes, int], Any]:
    if address.lane:
        return lambda data, _: decode_known(data)
    if address == RUN:
        return run_of
    if address.field.startswith("lane:"):
        return lane_of
    return lambda data, _: decode_name(data)


def taken(stream_id: str) -> Conflict:
    return Conflict(
        Code.CONFLICT, f"the id {stream_id} names another stream", hint="choose another id"
    )
