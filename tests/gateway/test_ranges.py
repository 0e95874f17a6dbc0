"""RFC 9110 §13 and §14, as a table and as properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.gateway.ranges import Selection, parse_range, select
from mentatlab.protocol.errors import RangeUnsatisfiable
from mentatlab.storage.port import ByteRange

ETAG = '"b3-abc"'
WHOLE = Selection(200)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=0-", (0, 10)),
        ("bytes=3-5", (3, 6)),
        ("bytes=9-", (9, 10)),
        ("bytes=5-999", (5, 10)),
        ("bytes=5-" + "9" * 5000, (5, 10)),
        ("bytes=-1", (9, 10)),
        ("bytes=-10", (0, 10)),
        ("bytes=-999", (0, 10)),
        ("bytes=003-0005", (3, 6)),
        ("Bytes=1-2", (1, 3)),
        (" bytes=1-2 ", (1, 3)),
        ("bytes= 1-2", (1, 3)),
        ("bytes=1-2,", (1, 3)),
        # ignored
        ("bytes=5-3", None),
        ("bytes=", None),
        ("bytes=,", None),
        ("bytes=-", None),
        ("bytes=--1", None),
        ("bytes=a-b", None),
        ("bytes=1", None),
        ("bytes=1-2-3", None),
        ("bytes=+1-2", None),
        ("bytes=1 -2", None),
        ("bytes=1-2;3-4", None),
        ("bytes=٣-٤", None),
        ("bytes 1-2", None),
        ("items=1-2", None),
        ("", None),
        ("bytes=0-1,bytes=2-3", None),
        ("bytes=0-1,x", None),
        # several: whole
        ("bytes=0-1,4-5", None),
        ("bytes=0-1, 20-30", None),
    ],
)
def test_ranges_of_ten_bytes(header: str, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    "header", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99-100", "bytes=20-30,40-50"]
)
def test_unsatisfiable(header: str) -> None:
    with pytest.raises(RangeUnsatisfiable) as error:
        parse_range(header, 10)
    assert error.value.size == 10


@pytest.mark.parametrize(("header", "whole"), [("bytes=-5", True), ("bytes=-0", False)])
def test_a_suffix_of_nothing(header: str, whole: bool) -> None:
    if whole:
        assert parse_range(header, 0) is None
    else:
        with pytest.raises(RangeUnsatisfiable):
            parse_range(header, 0)


def test_nothing_has_no_first_byte() -> None:
    with pytest.raises(RangeUnsatisfiable):
        parse_range("bytes=0-", 0)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, WHOLE),
        ({"range": "bytes=1-2"}, Selection(206, ByteRange(1, 3))),
        ({"range": "bytes=5-3"}, WHOLE),
        ({"if-none-match": ETAG}, Selection(304)),
        ({"if-none-match": "W/" + ETAG}, Selection(304)),
        ({"if-none-match": "*"}, Selection(304)),
        ({"if-none-match": f'"x", W/"y" ,{ETAG}'}, Selection(304)),
        ({"if-none-match": '"x,b3-abc"'}, WHOLE),
        ({"if-none-match": "b3-abc"}, WHOLE),
        ({"if-none-match": ""}, WHOLE),
        ({"if-none-match": ETAG, "range": "bytes=99-"}, Selection(304)),
        ({"if-none-match": '"x"', "range": "bytes=1-2"}, Selection(206, ByteRange(1, 3))),
        ({"if-match": ETAG, "range": "bytes=1-2"}, Selection(206, ByteRange(1, 3))),
        ({"if-match": "*"}, WHOLE),
        ({"if-match": '"x"'}, Selection(412)),
        ({"if-match": "W/" + ETAG}, Selection(412)),
        ({"if-match": '"x"', "if-none-match": ETAG}, Selection(412)),
        ({"if-range": ETAG, "range": "bytes=1-2"}, Selection(206, ByteRange(1, 3))),
        ({"if-range": "W/" + ETAG, "range": "bytes=1-2"}, WHOLE),
        ({"if-range": '"x"', "range": "bytes=99-"}, WHOLE),
        ({"if-range": "Sat, 29 Oct 1994 19:43:31 GMT", "range": "bytes=1-2"}, WHOLE),
        ({"if-range": ETAG}, WHOLE),
    ],
)
def test_conditions(headers: dict[str, str], expected: Selection) -> None:
    assert select(10, ETAG, headers, method="GET") == expected


def test_head_knows_no_range() -> None:
    assert select(10, ETAG, {"range": "bytes=99-"}, method="HEAD") == WHOLE
    assert select(10, ETAG, {"if-none-match": ETAG}, method="HEAD") == Selection(304)


@given(st.text(), st.integers(0, 2**63))
def test_any_header_gets_a_range_inside_or_none(header: str, size: int) -> None:
    assert_inside(header, size)
    assert_inside(f"bytes={header}", size)


@given(st.from_regex(r"bytes=( ?[0-9]{0,3}-[0-9]{0,3},?){1,3}", fullmatch=True), st.integers(0, 99))
def test_nearly_right_headers(header: str, size: int) -> None:
    assert_inside(header, size)


def assert_inside(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except RangeUnsatisfiable:
        return
    assert span is None or 0 <= span.start < span.stop <= size


@given(st.binary(min_size=1, max_size=50), st.integers(0, 60), st.integers(0, 60))
def test_it_cuts_as_python_does(data: bytes, first: int, length: int) -> None:
    last = first + length
    if first < len(data):
        span = parse_range(f"bytes={first}-{last}", len(data))
        assert span is not None
        assert data[span.start : span.stop] == data[first : last + 1]
    if length:
        span = parse_range(f"bytes=-{length}", len(data))
        assert span is not None
        assert data[span.start : span.stop] == data[-length:]
