"""A hundred thousand of everything that strangers may send, for each parser: it answers or refuses
by its own error, and never anything else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mentatlab.protocol import frames
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Cursor, RecordType, parse_cursor, parse_draft
from mentatlab.sdk.streaming.messages import parse_text
from mentatlab.streams.positions import parse_from, parse_rate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AT_ONCE = 100  # cases an example: most of an example's time is Hypothesis's own
many = settings(
    max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

HEAD = frames.encode(frames.Frame(lane=1, sequence=2, body=b"abc"))[: frames.HEADER_BYTES]
WORDS = st.sampled_from(
    ["start", "latest", "key", "time:", "-", "1:", ":", "0", "9" * 20, "2026-11-23T06:42:01Z", "٣"]
)
LONGER = ['"payload":{"data":', '"producer":{"id":"a","epoch":0,"seq":', "\\ud800", "9" * 30]
TOKENS = st.sampled_from(
    ['{"type":"', "stream_data", "stream_end", '"', ":", ",", "{", "}", "[", "]", "null", "1e999"]
)
PIECES = [b"data: ", b"event: ", b"id: ", b"retry: ", b"\n", b"\r\n", b"\n\n", b":"]
EVENTS = st.sampled_from(PIECES) | st.sampled_from([b"1:5", b'{"a":1}', b"\x00", b"\xff", b"x"])


def batch(one: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
    return st.lists(one, min_size=AT_ONCE, max_size=AT_ONCE)


def joined(words: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(words, max_size=most).map("".join)


LINES = joined(TOKENS | st.sampled_from(LONGER) | st.characters(), 14)


@many
@given(batch(st.tuples(st.binary(max_size=80), st.integers(0, 40), st.binary(max_size=8))))
def test_frames(cases: list[tuple[bytes, int, bytes]]) -> None:
    """Any bytes, and a good header with some of its bytes changed."""
    for data, at, change in cases:
        for candidate in (data, HEAD[:at] + change + HEAD[at + len(change) :] + data):
            with suppress(MentatError):
                assert isinstance(frames.decode(candidate), frames.Frame)


@many
@given(batch(joined(WORDS | st.characters(), 4)))
def test_cursors_and_places(cases: list[str]) -> None:
    for text in cases:
        for parse in (parse_cursor, parse_rate, lambda place: parse_from(place, Cursor(1, 5))):
            with suppress(MentatError):
                parse(text)


@many
@given(batch(LINES | st.binary(max_size=60)))
def test_messages_of_publishers(cases: list[str | bytes]) -> None:
    for text in cases:
        with suppress(MentatError, UnicodeEncodeError):
            draft = parse_draft(text)
            assert draft.type is not RecordType.START
            assert isinstance(draft.values, dict)


@many
@given(batch(LINES))
def test_what_a_client_hears(cases: list[str]) -> None:
    for text in cases:
        with suppress(MentatError, msgspec.DecodeError, UnicodeEncodeError):
            for told in parse_text(text):
                assert told is not None


def test_event_streams() -> None:
    """The parser that the client relies on takes any bytes, in any pieces."""

    @many
    @given(batch(st.lists(EVENTS, max_size=12)))
    def check(cases: list[list[bytes]]) -> None:
        runner.run(_read_all(cases))

    with asyncio.Runner() as runner:
        check()


async def _read_all(cases: list[list[bytes]]) -> None:
    for pieces in cases:
        answer = httpx2.Response(
            200,
            headers={"Content-Type": "text/event-stream"},
            content=_body(pieces),
            request=httpx2.Request("GET", "http://127.0.0.1/"),
        )
        with suppress(UnicodeDecodeError):
            async for event in httpx2.EventSource(answer):
                assert isinstance(event.data, str)
                assert "\n" not in event.event


async def _body(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
