from hypothesis import given
from hypothesis import strategies as st

from mentatlab.sdk.ranges import (
    Medium,
    Span,
    blake3_of,
    content_range,
    range_header,
    through_gateway,
)


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_content_range(start: int, length: int, rest: int) -> None:
    total = start + length + rest
    text = f"bytes {start}-{start + length - 1}/{total}"
    assert content_range(text) == Span(start, start + length, total)
    assert range_header(start, start + length) == f"bytes={start}-{start + length - 1}"


@given(st.text())
def test_content_range_of_anything(text: str) -> None:
    assert (span := content_range(text)) is None or 0 <= span.start < span.stop <= span.total


def test_headers_and_addresses() -> None:
    assert range_header(5) == "bytes=5-"
    assert blake3_of(f'"b3-{"0a" * 32}"') == "0a" * 32
    assert [blake3_of(e) for e in ("", '"abc"', 'W/"b3-00"', '"b3-0A"')] == [""] * 4
    assert through_gateway("/x") == "/x?via=gateway"
    assert through_gateway("/x?e=1") == "/x?e=1&via=gateway"
    assert through_gateway("/x?via=gateway") == "/x?via=gateway"


def test_a_failure_that_was_known_counts_once() -> None:
    """Two requests under way to the same place fail together."""
    medium = Medium("http://gateway/x")
    medium.redirected("http://store/x?s=1")
    medium.failed("http://store/x?s=1")
    medium.failed("http://store/x?s=1")
    assert medium.url == "http://gateway/x"
    medium.redirected("http://store/x?s=2")
    assert medium.is_direct(medium.url)
    medium.failed(medium.url)
    assert medium.url == "http://gateway/x?via=gateway"
    assert not medium.is_direct(medium.url)


def test_bytes_that_came_make_a_store_good_again() -> None:
    medium = Medium("http://gateway/x")
    for number in range(10):
        medium.redirected(f"http://store/x?s={number}")
        medium.arrived()
        medium.failed(medium.url)
        assert medium.url == "http://gateway/x"
