from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from mentatlab.protocol.errors import Code, Invalid
from mentatlab.protocol.records import (
    Cursor,
    Draft,
    RecordType,
    StreamChunk,
    data_draft,
    draft_of,
    end_draft,
    error_draft,
    parse_cursor,
    parse_message,
    start_draft,
    timestamp,
)

NUMBERS = st.integers(0, 10**18 - 1)


@given(NUMBERS, NUMBERS)
def test_cursors_come_back(epoch: int, sequence: int) -> None:
    cursor = Cursor(epoch, sequence)
    assert parse_cursor(str(cursor)) == cursor


@given(st.text())
def test_a_text_is_a_cursor_or_refused(text: str) -> None:
    with suppress(Invalid):
        assert parse_cursor(text) >= (0, 0)


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "-1:2", "1:2:3", "1: 2", "1:2\n", "١:٢"])
def test_what_is_no_cursor(text: str) -> None:
    with pytest.raises(Invalid):
        parse_cursor(text)


def test_a_refused_cursor_says_what_to_do() -> None:
    with pytest.raises(Invalid) as refused:
        parse_cursor("x" * 100)
    assert refused.value.code == Code.STREAM_CURSOR_INVALID
    assert refused.value.hint
    assert len(refused.value.message) < 100


def test_timestamps_are_utc_with_milliseconds() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"


def test_a_record_says_only_what_it_has() -> None:
    record = StreamChunk(
        type=RecordType.DATA,
        stream_id="st_1",
        run_id="rn_1",
        node_id="n",
        pin_name="p",
        sequence=1,
        timestamp="t",
        payload={"data": None},
        item=7,
    )
    assert record.to_dict() == {
        "type": "stream_data",
        "stream_id": "st_1",
        "run_id": "rn_1",
        "node_id": "n",
        "pin_name": "p",
        "sequence": 1,
        "timestamp": "t",
        "payload": {"data": None},
        "item": 7,
    }
    assert not record.terminal


def test_drafts() -> None:
    start = start_draft(attempt=2, resume_from=5, timebase="us")
    assert start.type is RecordType.START
    assert start.payload["metadata"] == {
        "mime_type": "application/json",
        "durability": "commit",
        "attempt": 2,
        "resume_from": 5,
        "timebase": "us",
    }
    assert end_draft("complete", chunks=3).payload["chunks"] == 3
    error = error_draft("timeout", "too slow", details=[]).payload["error"]
    assert (error["code"], error["partial"], error["details"]) == ("timeout", True, [])
    assert data_draft(None).payload["data"] is None
    assert data_draft(ref={"type": "image"}, pts_us=4, item=2) == Draft(
        payload={"ref": {"type": "image"}, "metadata": {"mime_type": "application/json"}},
        pts_us=4,
        item=2,
    )


@pytest.mark.parametrize(
    ("message", "draft"),
    [
        ({"payload": {"data": 1}}, Draft(payload={"data": 1})),
        ({"type": "stream_data", "data": None}, Draft(payload={"data": None})),
        ({"event_type": "stream_data", "data": {"a": 1}}, Draft(payload={"data": {"a": 1}})),
        (
            {"payload": {"ref": {}}, "pts_us": 1, "dur_us": 2, "item": 3, "attempt": 4},
            Draft(payload={"ref": {}}, pts_us=1, dur_us=2, item=3, attempt=4),
        ),
        ({"type": "stream_end"}, Draft(type=RecordType.END, payload={"reason": "complete"})),
        (
            {"type": "stream_end", "payload": {"reason": "aborted"}},
            Draft(type=RecordType.END, payload={"reason": "aborted"}),
        ),
        (
            {"event_type": "stream_error", "data": {"error": {"code": "internal", "message": ""}}},
            Draft(type=RecordType.ERROR, payload={"error": {"code": "internal", "message": ""}}),
        ),
    ],
)
def test_what_may_be_published(message: dict[str, Any], draft: Draft) -> None:
    said = draft_of(parse_message(msgspec.json.encode(message)))
    assert structs.replace(said, payload=said.values) == draft


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"type": "stream_start", "payload": {"metadata": {}}},
        {"type": ["stream_data"], "data": 1},
        {"type": "stream_data", "payload": 1},
        {"payload": {}},
        {"payload": {"data": 1, "ref": {}}},
        {"type": "stream_end", "payload": {"reason": "expired"}},
        {"type": "stream_end", "data": 1},
        {"type": "stream_error"},
        {"type": "stream_error", "payload": {"error": {"code": "internal"}}},
        {"type": "stream_error", "payload": {"error": "internal"}},
        {"data": 1, "item": True},
        {"data": 1, "item": 1.5},
        {"data": 1, "pts_us": 1 << 63},
    ],
)
def test_what_may_not_be_published(message: object) -> None:
    with pytest.raises(Invalid) as refused:
        draft_of(parse_message(msgspec.json.encode(message)))
    assert refused.value.code == Code.STREAM_RECORD_INVALID
    kind = message.get("type") if isinstance(message, dict) else None
    wanted = kind if kind in ("stream_end", "stream_error") else "stream_data"
    assert f'"{wanted}"' in refused.value.hint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["type", "event_type", "payload", "data", "item", "pts_us"])
KINDS = st.sampled_from(["stream_data", "stream_end", "stream_error"])


@given(st.dictionaries(KEYS, JSON | KINDS | st.fixed_dictionaries({"data": JSON})))
def test_any_message_is_a_draft_or_refused(message: dict[str, Any]) -> None:
    with suppress(Invalid):
        assert draft_of(parse_message(msgspec.json.encode(message))).type is not RecordType.START
