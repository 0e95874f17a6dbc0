"""The tail is always a piece of the log without holes, whatever order deliveries come in."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.records import RecordType, StreamChunk
from mentatlab.streams import BufferManager
from mentatlab.streams.buffer import TAIL_BYTES, Item, Tail, by_sequence, within


def item(position: int, size: int = 10) -> Item:
    record = StreamChunk(
        type=RecordType.DATA,
        stream_id="st_1",
        run_id="rn_1",
        node_id="n",
        pin_name="p",
        sequence=position,
        timestamp="",
        payload={},
    )
    return Item(position, record, b"x" * size)


@given(st.permutations(range(6)), st.integers(0, 12))
def test_late_deliveries_leave_no_hole(order: list[int], after: int) -> None:
    """Batches of two records, delivered in any order."""
    tail = Tail()
    for batch in order:
        tail.add([item(2 * batch + 1), item(2 * batch + 2)])
    read = tail.read(after, 1000)
    if read is not None:
        assert [each.position for each in read] == list(range(after + 1, after + 1 + len(read)))
        assert not read or read[-1].position == 12


def test_the_log_is_asked_for_what_the_tail_has_not() -> None:
    tail = Tail()
    assert tail.read(0, 100) is None
    tail.add([item(5), item(6)])
    assert tail.read(3, 100) is None
    assert [each.position for each in tail.read(4, 100) or []] == [5, 6]
    assert tail.read(6, 100) == []
    assert tail.read(8, 100) == []


def test_the_tail_is_bounded() -> None:
    tail = Tail()
    tail.add([item(n, 60_000) for n in range(1, 20)])
    assert tail.bytes <= TAIL_BYTES
    tail.add([item(20, 2 * TAIL_BYTES)])  # a single one may be larger
    assert [each.position for each in tail.read(19, 1) or []] == [20]


@pytest.mark.parametrize(("max_bytes", "count"), [(0, 1), (10, 1), (19, 1), (20, 2), (99, 5)])
def test_at_least_one_item_fits(max_bytes: int, count: int) -> None:
    assert len(within([item(n) for n in range(5)], max_bytes)) == count


def test_tails_live_as_long_as_somebody_listens() -> None:
    buffers, one, two = BufferManager(), asyncio.Event(), asyncio.Event()
    with buffers.listen("st_1", one) as tail:
        with buffers.listen("st_1", two) as same:
            assert same is tail
            tail.add([by_sequence(item(1).record)])
            tail.ring()
            assert one.is_set()
            assert two.is_set()
            assert buffers.statistics() == (1, 2, tail.bytes)
        assert buffers.get("st_1") is tail
    assert buffers.get("st_1") is None
