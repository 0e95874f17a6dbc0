"""What may come as a body, and what is refused: nothing else ever happens."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.gateway.media_headers import content_type, safe_headers
from mentatlab.gateway.stream_bodies import MediaFacts, parse_body, producer_of
from mentatlab.protocol.errors import Code, MentatError
from mentatlab.protocol.records import Producer
from mentatlab.streams import Lane
from mentatlab.streams.publishing import Batch

T = TypeVar("T")

LANE = Lane(stream_id="st_1", run_id="rs_1", node_id="n", pin_name="p", workspace="w")
TYPES = ["application/json", "application/x-ndjson; charset=utf-8", "image/png", None]
NAMED = {"producer-id": "p", "producer-epoch": "3", "producer-seq": "7"}

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9
)


def parsed(body: bytes, kind: str | None = "application/json", **headers: str) -> Batch:
    return parse_body(body, kind, lane=LANE, facts=MediaFacts(), headers=headers)


def outcome(call: Callable[[], T]) -> T | MentatError:
    try:
        return call()
    except MentatError as error:
        return error


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()), st.sampled_from(TYPES))
def test_any_body_is_records_or_refused(body: bytes, kind: str | None):
    found = outcome(lambda: parsed(body, kind))
    if isinstance(found, MentatError):
        assert found.code in (Code.STREAM_RECORD_INVALID, Code.STREAM_RECORD_TOO_LARGE)
        assert found.hint
    else:
        assert (found.stream_id, found.size) == ("st_1", len(body))


@given(st.lists(values, min_size=1, max_size=20))
def test_records_come_out_as_they_went_in(data: list[Any]):
    records = [{"payload": {"data": value}} for value in data]
    as_list = json.dumps(records).encode()
    as_object = json.dumps({"records": records}).encode()
    as_lines = b"\n".join(json.dumps(record).encode() for record in records)
    for batch in (parsed(as_list), parsed(as_object), parsed(as_lines, "application/jsonl")):
        assert [draft.values["data"] for draft in batch.drafts] == data


@given(st.dictionaries(st.sampled_from(list(NAMED)), st.text()))
def test_any_headers_name_a_producer_or_none_or_are_refused(headers: dict[str, str]):
    found = outcome(lambda: producer_of(headers))
    if isinstance(found, MentatError):
        assert found.code is Code.STREAM_RECORD_INVALID
    else:
        assert (found is None) == ("producer-id" not in headers)


@pytest.mark.parametrize("header", ["producer-seq", "producer-epoch"])
def test_a_number_without_its_producer_is_refused(header: str):
    """Taken as no producer at all it would promise exactly once and not keep it."""
    with pytest.raises(MentatError, match="Producer-Id"):
        producer_of({header: "1"})


def test_the_bodys_producer_beats_the_headers():
    body = b'{"data": 1, "producer": {"id": "mine", "epoch": 0, "seq": 1}}'
    assert parsed(body, **NAMED).producer == Producer(id="mine", epoch=0, seq=1)
    assert parsed(b'{"data": 1}', **NAMED).producer == Producer(id="p", epoch=3, seq=7)
    assert parsed(b"\x00", "image/png", **NAMED).producer == Producer(id="p", epoch=3, seq=7)


@given(st.text())
def test_any_type_is_a_header(mime: str):
    told = content_type(mime)
    assert told.isascii()
    assert told.isprintable()
    assert told in (mime, "application/octet-stream")


@pytest.mark.parametrize(
    ("mime", "told"),
    [
        ("image/png", "image/png"),
        ('video/mp4; codecs="avc1.42, mp4a.2"', 'video/mp4; codecs="avc1.42, mp4a.2"'),
        ("audio/L16;rate=48000;channels=2", "audio/L16;rate=48000;channels=2"),
        ("application/vnd.api+json", "application/vnd.api+json"),
        ("text/html\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("", "application/octet-stream"),
        ('a/b; c="', "application/octet-stream"),
    ],
)  # fmt: skip
def test_types(mime: str, told: str):
    assert content_type(mime) == told


@pytest.mark.parametrize(
    "mime", ["text/html", "image/svg+xml", "TEXT/HTML; a=b", "application/pdf"]
)
def test_what_could_run_is_downloaded(mime: str):
    assert safe_headers(mime)["Content-Disposition"] == "attachment"
    assert safe_headers("IMAGE/PNG; a=b")["Content-Disposition"] == "inline"
