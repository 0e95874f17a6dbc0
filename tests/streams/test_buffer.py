"""The tail is always a piece of the log without holes, whatever order deliveries come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.records import RecordType
from mentatlab.streams import BufferManager
from mentatlab.streams.buffer import TAIL_BYTES, Item, Items, Tail, by_sequence, within
from mentatlab.streams.port import Entry


def item(position: int, size: int = 10) -> Item:
    entry = Entry("st_1", "rn_1", RecordType.DATA, position, None, 0, size, b"x" * size)
    return Item(position, entry)


@given(st.permutations(range(6)), st.integers(0, 12))
def test_late_deliveries_leave_no_hole(order: list[int], after: int) -> None:
    """Batches of two records, delivered in any order."""
    tail = Tail()
    for batch in order:
        tail.add(Items([item(2 * batch + 1), item(2 * batch + 2)]))
    read = tail.read(after, 1000)
    if read is not None:
        assert [each.position for each in read] == list(range(after + 1, after + 1 + len(read)))
        assert not read or read[-1].position == 12


def test_the_log_is_asked_for_what_the_tail_has_not() -> None:
    tail = Tail()
    assert tail.read(0, 100) is None
    tail.add(Items([item(5), item(6)]))
    assert tail.read(3, 100) is None
    assert [each.position for each in tail.read(4, 100) or []] == [5, 6]
    assert tail.read(6, 100) == []
    assert tail.read(8, 100) == []


def test_the_tail_is_bounded() -> None:
    tail = Tail()
    tail.add(Items([item(n, 60_000) for n in range(1, 20)]))
    assert tail.bytes <= TAIL_BYTES
    tail.add(Items([item(20, 2 * TAIL_BYTES)]))  # a single one may be larger
    assert [each.position for each in tail.read(19, 1) or []] == [20]


@pytest.mark.parametrize(("max_bytes", "count"), [(0, 1), (10, 1), (19, 1), (20, 2), (99, 5)])
def test_at_least_one_item_fits(max_bytes: int, count: int) -> None:
    assert len(within([item(n) for n in range(5)], max_bytes, False)) == count


def test_tails_live_as_long_as_somebody_listens() -> None:
    buffers, heard = BufferManager(), list[int]()
    one, two = buffers.listen("st_1"), buffers.listen("st_1")
    one.on_wake, two.on_wake = (lambda: heard.append(1)), (lambda: heard.append(2))
    tail = one.tail
    assert two.tail is tail
    tail.add(Items([by_sequence(item(1).entry)]))
    tail.ring()
    assert heard == [1, 2]
    assert buffers.statistics() == (1, 2, tail.bytes)
    two.close()
    two.close()
    tail.ring()
    assert heard == [1, 2, 1]
    assert buffers.get("st_1") is tail
    one.close()
    assert buffers.get("st_1") is None
