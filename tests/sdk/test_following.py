from typing import Any

import pytest

from mentatlab.protocol.records import RecordType, StreamChunk
from mentatlab.sdk.following import Follower, Reset, StreamFailed, TruncatedStream


def record(type_: str, sequence: int, payload: dict[str, Any], **more: Any) -> StreamChunk:
    return StreamChunk(
        type=RecordType(f"stream_{type_}"),
        stream_id="st",
        run_id="rn",
        node_id="n",
        pin_name="p",
        sequence=sequence,
        timestamp="2026-01-01T00:00:00.000Z",
        payload=payload,
        **more,
    )


def start(sequence: int, attempt: int = 1, resume_from: int = 0) -> StreamChunk:
    return record("start", sequence, {"metadata": {"resume_from": resume_from}}, attempt=attempt)


def data(sequence: int) -> StreamChunk:
    return record("data", sequence, {"data": sequence})


def end(sequence: int, chunks: int, reason: str = "complete") -> StreamChunk:
    return record("end", sequence, {"reason": reason, "chunks": chunks})


def follow(*records: StreamChunk, whole: bool = True) -> list[Any]:
    follower = Follower(whole=whole)
    told = [follower.feed(r) for r in records]
    return [t.sequence if isinstance(t, StreamChunk) else t for t in told if t is not None]


def test_a_whole_stream() -> None:
    assert follow(start(1), data(2), data(3), end(4, 2)) == [2, 3]


@pytest.mark.parametrize(
    ("records", "standing"),
    [
        ((start(1), data(2), data(3), start(4, 2, 2), data(5)), 2),
        ((start(1), data(2), data(3), start(4, 2, 0), data(5)), 1),
        ((start(1), data(2), start(3, 2, 2), data(4), data(5), start(6, 3, 4), data(7)), 3),
        ((start(1), data(2), start(3, 2, 0), data(4), start(5, 3, 4), data(6)), 2),
    ],
)
def test_attempts_void_what_came_after(records: tuple[StreamChunk, ...], standing: int) -> None:
    last = records[-1].sequence + 1
    assert any(isinstance(told, Reset) for told in follow(*records, end(last, standing)))
    with pytest.raises(TruncatedStream):
        follow(*records, end(last, standing + 1))


def test_a_start_that_is_repeated_is_no_reset() -> None:
    assert follow(start(1), start(1), data(2), end(3, 1)) == [2]


def test_a_late_reader_cannot_count() -> None:
    assert follow(start(1), data(9), end(10, 8), whole=False) == [9]


@pytest.mark.parametrize("reason", ["cancelled", "aborted", "expired"])
def test_other_ends(reason: str) -> None:
    with pytest.raises(TruncatedStream, match=reason):
        follow(start(1), end(2, 0, reason))


def test_an_error_record() -> None:
    broken = record("error", 2, {"error": {"code": "agent_error", "message": "it broke"}})
    with pytest.raises(StreamFailed, match="it broke") as failed:
        follow(start(1), broken)
    assert failed.value.details["code"] == "agent_error"
