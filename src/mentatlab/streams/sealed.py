"""A finished run as one immutable file, readable by ranges in both of its orders.

    magic                8 bytes
    records              in the order of the run, each behind a header of 40 bytes
    order                where each record begins, and where the last one ends: u64 each
    parts                per lane the numbers (from 0) of its records, by sequence: u32 each
    directory            JSON of `Directory`
    footer               magic, place, length and CRC-32 of the directory

Numbers are big-endian. A header's checksum covers the whole record, so that damage is found by
whoever reads it, and costs that record only.
"""

import os
import struct
import sys
import zlib
from array import array
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import msgspec

from mentatlab.protocol.errors import Gone, NotFound
from mentatlab.protocol.records import MAX_RECORD_BYTES, RecordType
from mentatlab.streams.port import Entry, Lane, SegmentStore
from mentatlab.streams.segments import lost

MAGIC = b"mentseg\x01"
HOLE_BYTES = 16 * 1024
"""Ranges that lie closer together are read at once."""

_FIELDS, _CRC = struct.Struct(">QqIIIII"), struct.Struct(">I")
HEADER_BYTES = _FIELDS.size + _CRC.size
assert HEADER_BYTES == 40
_FOOTER = struct.Struct(">8sQII")
_TYPES = tuple(RecordType)
_MOST = 4 * MAX_RECORD_BYTES  # of one record, in any case
_NUMBER_OF = {type_: number for number, type_ in enumerate(_TYPES)}


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Where the list of all records begins, how many there are, and the last rseq."""

    offset: int
    count: int
    head: int


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A lane's number in this file, where its list begins, and how many records it has."""

    lane: int
    offset: int
    count: int


class Directory(msgspec.Struct, frozen=True):
    run_id: str
    order: Order
    parts: dict[str, Part]  # by stream id


# ---------------------------------------------------------------------- writing


class SegmentWriter:
    """Writes into `file`, which the caller opens and closes: `add` in order, then `finish`."""

    def __init__(self, file: BinaryIO, run_id: str) -> None:
        self._file, self._run_id = file, run_id
        self._order = array("Q")
        self._lanes: dict[str, tuple[int, array[int]]] = {}
        self._end = self._head = 0
        self._write(MAGIC)

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            assert entry.rseq is not None
            lane, places = self._lane(entry.stream_id)
            places.append(len(self._order))
            self._order.append(self._end)
            self._head = entry.rseq
            self._write(_packed(entry, lane))

    def finish(self) -> tuple[Directory, bytes]:
        """What is in it, and the bytes it ends with. It is on disk."""
        count = len(self._order)
        self._order.append(self._end)
        order = Order(self._write_list(self._order), count, self._head)
        parts = {
            stream_id: Part(lane, self._write_list(places), len(places))
            for stream_id, (lane, places) in self._lanes.items()
        }
        directory = Directory(self._run_id, order, parts)
        encoded = msgspec.json.encode(directory)
        footer = _FOOTER.pack(MAGIC, self._end, len(encoded), zlib.crc32(encoded))
        self._write(encoded + footer)
        self._file.flush()
        os.fsync(self._file.fileno())
        return directory, encoded + footer

    def _lane(self, stream_id: str) -> tuple[int, "array[int]"]:
        return self._lanes.setdefault(stream_id, (len(self._lanes), array("I")))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._end += len(data)

    def _write_list(self, numbers: "array[int]") -> int:
        offset = self._end
        self._write(_big_endian(numbers).tobytes())
        return offset


def _packed(entry: Entry, lane: int) -> bytes:
    body = entry.json if entry.frame is None else entry.json + entry.frame
    fields = _FIELDS.pack(
        *(entry.rseq, entry.time_ms, entry.sequence, entry.size),
        *(lane << 2 | _NUMBER_OF[entry.type], len(entry.json), len(body) - len(entry.json)),
    )
    return fields + _CRC.pack(zlib.crc32(body, zlib.crc32(fields))) + body


def _big_endian(numbers: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


# ---------------------------------------------------------------------- reading


class _Header(NamedTuple):
    rseq: int
    time_ms: int
    sequence: int
    size: int
    kind: int
    json: int
    frame: int


Names = Mapping[int, str]
"""The stream ids of the lanes that may be read, by their numbers in the file."""


class SealedRun:
    """Reads a segment; the caller knows its order and parts, so that nothing is read for that.

    `Gone(STREAM_LOST)` when the first record that is asked for is damaged, or the file missing.
    """

    def __init__(self, store: SegmentStore, name: str, run_id: str, order: Order) -> None:
        self._store, self._name, self._run_id, self._order = store, name, run_id, order

    async def read(
        self, after: int, names: Names, *, max_records: int, max_bytes: int
    ) -> list[Entry]:
        """Records with rseq > `after` of the named lanes, in the order of the run."""
        holes = self._order.head - self._order.count
        low, high = max(0, after - holes), min(after, self._order.count)
        at = await self._first(self._all, low, high, lambda header: header.rseq > after)
        while at < self._order.count:
            numbers = range(at, min(at + max_records, self._order.count))
            passed, found = await self._load(numbers, names, max_bytes)
            if found:
                return found
            at += passed
        return []

    async def read_part(
        self, part: Part, lane: Lane, after: int, *, max_records: int, max_bytes: int
    ) -> list[Entry]:
        """Records of the lane with sequence > `after`."""
        at = 0 if after < 1 else max(1, 2 + after - lane.floor)  # the first one, then from `floor`
        try:
            numbers = await self._places(part, at, max_records)
            return (await self._load(numbers, {part.lane: lane.stream_id}, max_bytes))[1]
        except Gone as gone:
            sequence = 1 if at == 0 else lane.floor + at - 1
            gone.details = {"stream_id": lane.stream_id, "sequence": sequence}
            raise

    async def at_time(self, time_ms: int) -> int | None:
        """The rseq before the first record at or after that time, None when there is none."""
        found = await self._since(self._all, self._order.count, time_ms)
        return None if found is None else found.rseq - 1

    async def part_at_time(self, part: Part, time_ms: int) -> int | None:
        """The same, as a sequence of the lane."""

        async def number_of(at: int) -> int:
            return (await self._places(part, at, 1))[0]

        found = await self._since(number_of, part.count, time_ms)
        return None if found is None else found.sequence - 1

    # -- parts of these

    async def _all(self, at: int) -> int:
        return at

    async def _since(self, number_of: "_NumberOf", count: int, time_ms: int) -> _Header | None:
        at = await self._first(number_of, 0, count, lambda header: header.time_ms >= time_ms)
        return await self._header(await number_of(at)) if at < count else None

    async def _first(
        self, number_of: "_NumberOf", low: int, high: int, wanted: Callable[[_Header], bool]
    ) -> int:
        """The first of `low` to `high` - 1 whose record is wanted, as all after it are; `high`."""
        while low < high:
            middle = (low + high) // 2
            if wanted(await self._header(await number_of(middle))):
                high = middle
            else:
                low = middle + 1
        return low

    async def _places(self, part: Part, at: int, count: int) -> Sequence[int]:
        count = min(count, part.count - at)
        if count <= 0:
            return ()
        (data,) = await self._ranges([(part.offset + 4 * at, 4 * count)])
        return struct.unpack(f">{count}I", data)

    async def _header(self, number: int) -> _Header:
        ((offset, _),) = await self._extents([number])
        (data,) = await self._ranges([(offset, HEADER_BYTES)])
        return _Header._make(_FIELDS.unpack_from(data))

    async def _extents(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Where records lie: offset and length."""
        begin = self._order.offset
        found = await self._ranges([(begin + 8 * number, 16) for number in numbers])
        extents = [struct.unpack(">QQ", data) for data in found]
        return [(offset, stop - offset) for offset, stop in extents]

    async def _load(
        self, numbers: Sequence[int], names: Names, max_bytes: int
    ) -> tuple[int, list[Entry]]:
        """How many records were looked at, and those of the named lanes."""
        extents = within(await self._extents(numbers), max_bytes)
        try:
            found = await self._ranges(extents)
        except Gone:
            if len(extents) == 1:
                raise
            return await self._load(numbers[:1], names, max_bytes)
        entries: list[Entry] = []
        for count, data in enumerate(found):
            try:
                header, json, frame = _unpacked(data)
            except Gone:
                if entries:
                    return count, entries
                raise
            if (stream_id := names.get(header.kind >> 2)) is not None:
                kind = _TYPES[header.kind & 3]
                entry = Entry(
                    *(stream_id, self._run_id, kind, header.sequence, header.rseq),
                    *(header.time_ms, header.size, json, frame),
                )
                entries.append(entry)
        return len(extents), entries

    async def _ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Those bytes; ranges (offset, length) that lie together are read together."""
        found: list[memoryview] = []
        for group in _together(ranges):
            begin, end = group[0][0], sum(group[-1])
            try:
                data = memoryview(await self._store.read(self._name, begin, end - begin))
            except NotFound as missing:
                raise lost() from missing
            if len(data) != end - begin:
                raise lost()
            found += [data[offset - begin : offset - begin + length] for offset, length in group]
        return found


_NumberOf = Callable[[int], Awaitable[int]]


def within(extents: Sequence[tuple[int, int]], max_bytes: int) -> Sequence[tuple[int, int]]:
    """The first that fit together, at least one."""
    for count, (_, length) in enumerate(extents):
        max_bytes -= length - HEADER_BYTES
        damaged = not HEADER_BYTES < length <= _MOST
        if count and (damaged or max_bytes < 0):
            return extents[:count]
        if damaged:
            raise lost()
    return extents


def _together(ranges: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Groups of ranges, given in the order of the file, that one read gets."""
    groups: list[list[tuple[int, int]]] = []
    for offset, length in ranges:
        if groups and groups[-1][0][0] <= offset <= sum(groups[-1][-1]) + HOLE_BYTES:
            groups[-1].append((offset, length))
        else:
            groups.append([(offset, length)])
    return groups


def _unpacked(data: memoryview) -> tuple[_Header, bytes, bytes | None]:
    header = _Header._make(_FIELDS.unpack_from(data))
    (crc,) = _CRC.unpack_from(data, _FIELDS.size)
    body = data[HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(data[: _FIELDS.size])) != crc:
        raise lost()
    return header, bytes(body[: header.json]), bytes(body[header.json :]) if header.frame else None
