"""A hundred thousand of everything that strangers may send, for each parser: it answers or refuses
by its own error, and never anything else."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mentatlab.protocol import frames
from mentatlab.protocol.errors import MentatError
from mentatlab.protocol.records import Cursor, RecordType, draft_of, parse_cursor, parse_message
from mentatlab.sdk.streaming.messages import parse_text
from mentatlab.streams.positions import parse_from, parse_rate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AT_ONCE, PIECES = 100, 12  # cases an example, pieces a case: drawing them one by one takes minutes
many = settings(max_examples=1_000, deadline=None, database=None)

HEAD = frames.encode(frames.Frame(lane=1, sequence=2, body=b"abc"))[: frames.HEADER_BYTES]
BYTES = [bytes([value]) for value in range(256)]
PLACES = [b"", b"start", b"latest", b"key", b"time:", b"-", b"1:", b":", b"0", b"9" * 20, b"1e9"]
PLACES += [b"2026-11-23T06:42:01Z", "٣".encode(), b"5", b"max", b".", b"nan", b" ", b"\x00", b"x"]
JSON = [b"", b'{"type":"', b"stream_data", b"stream_end", b'"', b":", b",", b"{", b"}", b"[", b"]"]
JSON += [b"null", b"1e999", b'"payload":{"data":', b"9" * 30, b"\\ud800", b"\x00", b"\xff", b"\n"]
JSON += [b'"producer":{"id":"a","epoch":0,"seq":', b'{"data":1}', b"1", b'"id":"a"', b'{"type":"']
JSON += [b"subscribed", b"mark", b'","id":"st_1","cursor":"1:2","state":"open"}', b"credit", b"gap"]
EVENTS = [b"", b"data: ", b"event: ", b"id: ", b"retry: ", b"\n", b"\r\n", b"\n\n", b":", b"1:5"]
EVENTS += [b"\xef\xbb\xbf", b'{"a":1}', b"\x00", b"\xff", b"stream_data", b"\r", "ä".encode()[:1]]


def cases(pieces: Sequence[bytes]) -> st.SearchStrategy[list[list[bytes]]]:
    """`AT_ONCE` cases of `PIECES` pieces each."""

    def cut(drawn: bytes) -> list[list[bytes]]:
        chosen = [pieces[value % len(pieces)] for value in drawn]
        return [chosen[at : at + PIECES] for at in range(0, len(chosen), PIECES)]

    size = AT_ONCE * PIECES
    return st.binary(min_size=size, max_size=size).map(cut)


@many
@given(cases(BYTES), st.integers(0, frames.HEADER_BYTES))
def test_frames(found: list[list[bytes]], at: int) -> None:
    """Any bytes, and a good header with some of its bytes changed."""
    for case in found:
        data = b"".join(case)
        for candidate in (data, HEAD + data, HEAD[:at] + data[:2] + HEAD[at + 2 :] + data[2:5]):
            with suppress(MentatError):
                assert isinstance(frames.decode(candidate), frames.Frame)


@many
@given(cases(PLACES), st.integers(1, PIECES))
def test_cursors_and_places(found: list[list[bytes]], length: int) -> None:
    for case in found:
        text = b"".join(case[:length]).decode()
        for parse in (parse_cursor, parse_rate, lambda place: parse_from(place, Cursor(1, 5))):
            with suppress(MentatError):
                parse(text)


@many
@given(cases(JSON))
def test_messages_of_publishers(found: list[list[bytes]]) -> None:
    for case in found:
        with suppress(MentatError):
            draft = draft_of(parse_message(b"".join(case)))
            assert draft.type is not RecordType.START
            assert isinstance(draft.values, dict)


@many
@given(cases(JSON))
def test_what_a_client_hears(found: list[list[bytes]]) -> None:
    for case in found:
        with suppress(MentatError, msgspec.DecodeError):
            for told in parse_text(b"".join(case).decode(errors="replace")):
                assert told is not None


def test_event_streams() -> None:
    """The parser that the client relies on takes any bytes, in any pieces."""

    @many
    @given(cases(EVENTS))
    def check(found: list[list[bytes]]) -> None:
        runner.run(_read_all(found))

    with asyncio.Runner() as runner:
        check()


async def _read_all(found: list[list[bytes]]) -> None:
    for case in found:
        answer = httpx2.Response(
            200,
            headers={"Content-Type": "text/event-stream"},
            content=_body(case),
            request=httpx2.Request("GET", "http://127.0.0.1/"),
        )
        with suppress(UnicodeDecodeError):
            async for event in httpx2.EventSource(answer):
                assert isinstance(event.data, str)
                assert "\n" not in event.event


async def _body(pieces: list[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
