import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.conformance.frames import websocket_frame
from mentatlab.gateway.stream_frames import (
    BINARY,
    JOINED_BYTES,
    MAX_FRAGMENTS,
    MAX_MESSAGE_BYTES,
    TEXT,
    Fragments,
    WebSocketError,
    frames_of,
    header,
    text_frame,
    texts_of,
    utf8,
)
from mentatlab.gateway.streams import Shared
from mentatlab.protocol.records import RecordType
from mentatlab.streams.buffer import Item
from mentatlab.streams.port import Entry


def item(text: bytes, position: int = 1) -> Item:
    return Item(position, Entry("s", "r", RecordType.DATA, position, None, 0, len(text), text))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 70_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_headers_are_as_the_rfc_has_them(opcode: int, size: int) -> None:
    """The conformance kit writes frames by its own code."""
    body = b"x" * size
    assert header(opcode, size) + body == websocket_frame(opcode, body, mask=False)


def test_records_are_framed_each_or_joined() -> None:
    one, two = item(b'{"a":1}'), item(b"{}")
    for joined in (False, True):
        assert frames_of([one], joined) == text_frame(b'{"a":1}')
    assert frames_of([one, two], False) == text_frame(b'{"a":1}') + text_frame(b"{}")
    assert frames_of([one, two], True) == text_frame(b'{"a":1}\n{}')


def test_what_many_readers_get_is_made_once() -> None:
    shared, items = Shared(), [item(b"{}")]
    made = shared.of(False, items, frames_of, False)
    assert made == text_frame(b"{}")
    assert shared.of(False, items, frames_of, False) is made
    assert shared.of(False, [item(b"{}")], frames_of, False) is not made


@given(st.lists(st.integers(1, 2 * JOINED_BYTES), min_size=1, max_size=12))
def test_joined_records_keep_their_order_and_the_limit(sizes: list[int]) -> None:
    items = [item(bytes([65 + n]) * size, n + 1) for n, size in enumerate(sizes)]
    texts = texts_of(items)
    assert b"\n".join(texts) == b"\n".join(each.json for each in items)
    assert all(len(text) <= JOINED_BYTES or b"\n" not in text for text in texts)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_fragments_join(parts: list[bytes]) -> None:
    fragments = Fragments(parts[0], BINARY)
    for part in parts[1:]:
        fragments.add(part)
    assert fragments.message == b"".join(parts)
    assert fragments.size == len(fragments.message)


def test_fragments_are_bounded_in_bytes_and_number() -> None:
    fragments = Fragments(b"x" * MAX_MESSAGE_BYTES, TEXT)
    with pytest.raises(WebSocketError) as raised:
        fragments.add(b"x")
    assert raised.value.code == 1009
    fragments = Fragments(b"", TEXT)
    for _ in range(MAX_FRAGMENTS - 1):
        fragments.add(b"")
    with pytest.raises(WebSocketError):
        fragments.add(b"")


@given(st.text())
def test_text_is_given_on_as_it_is(text: str) -> None:
    assert utf8(text.encode()) == text.encode()


@pytest.mark.parametrize("bad", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_what_is_not_utf8_is_1007(bad: bytes) -> None:
    with pytest.raises(WebSocketError) as raised:
        utf8(bad)
    assert raised.value.code == 1007
