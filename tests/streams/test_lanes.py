"""The pure rules: any order of attempts, data and repeats keeps its counts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol.errors import Code, Conflict, Fenced
from mentatlab.protocol.records import Producer, RecordType, StreamChunk, data_draft, start_draft
from mentatlab.streams.lanes import Known, already_there, append, standing
from mentatlab.streams.port import Lane

EMPTY = Lane(
    stream_id="st_1", run_id="rn_1", node_id="n", pin_name="p", workspace="default", created_at=5.0
)


@given(st.lists(st.one_of(st.integers(1, 4), st.tuples(st.integers(0, 9))), max_size=12))
def test_counts_are_those_of_what_stands(steps: list[int | tuple[int]]) -> None:
    """An int appends so many records, a tuple starts an attempt that keeps all but the last n."""
    lane, records, sizes = EMPTY, list[StreamChunk](), list[int]()

    def measure(first: int, last: int) -> int:
        return sum(sizes[first - 1 : last])

    for number, step in enumerate([(0,), *steps], start=1):
        drafts = (
            [data_draft("x" * n) for n in range(step)]
            if isinstance(step, int)
            else [start_draft(attempt=number, resume_from=max(0, lane.head - step[0]))]
        )
        done = append(lane, drafts, now=7.0, measure=measure, rseq=len(records))
        lane = done.lane
        records += [entry.record for entry in done.entries]
        sizes += [entry.size for entry in done.entries]
    kept = standing(records)
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert [record.rseq for record in records] == list(range(1, len(records) + 1))
    assert lane.head == len(records)
    assert lane.chunks == len(kept)
    assert lane.bytes == sum(sizes[record.sequence - 1] for record in kept)
    ranges = [range(first, last + 1) for first, last in lane.standing]
    assert [n for each in ranges for n in each] == [record.sequence for record in kept]


@pytest.mark.parametrize(
    ("known", "epoch", "seq", "count", "expected"),
    [
        (None, 0, 1, 3, 0),
        (Known(0, 5), 0, 6, 2, 0),
        (Known(0, 5), 0, 4, 3, 2),
        (Known(0, 5), 0, 1, 3, 3),
        (Known(0, 5), 1, 1, 3, 0),
        (None, 0, 2, 1, Code.STREAM_GAP_IN_PRODUCER),
        (Known(0, 5), 0, 7, 1, Code.STREAM_GAP_IN_PRODUCER),
        (Known(0, 5), 1, 6, 1, Code.STREAM_GAP_IN_PRODUCER),
        (Known(2, 5), 1, 6, 1, Code.STREAM_FENCED),
    ],
)
def test_what_of_a_batch_is_there_already(
    known: Known | None, epoch: int, seq: int, count: int, expected: int | Code
) -> None:
    producer = Producer(id="p", epoch=epoch, seq=seq)
    if isinstance(expected, int):
        assert already_there(producer, known, count) == expected
        return
    with pytest.raises((Conflict, Fenced)) as caught:
        already_there(producer, known, count)
    assert caught.value.code is expected


def test_an_entry_is_what_the_wire_says() -> None:
    step = append(EMPTY, [start_draft()], now=6.0, measure=lambda *_: 0)
    (entry,) = step.entries
    assert msgspec.json.decode(entry.json) == entry.record.to_dict()
    assert entry.record.type is RecordType.START
    assert entry.size == len(msgspec.json.encode(entry.record.payload))
