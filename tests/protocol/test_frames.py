"""Binary frames: what is encoded comes back; anything else is refused by its own error."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mentatlab.protocol import frames
from mentatlab.protocol.errors import Code, Invalid, MentatError, TooLarge
from mentatlab.protocol.frames import Extension, Frame
from mentatlab.protocol.records import MAX_RECORD_BYTES

KEYS = st.text(max_size=8)
EXTENSIONS = st.builds(
    Extension,
    attempt=st.none() | st.integers(0, 1 << 31),
    item=st.none() | st.integers(0, 1 << 53),
    rseq=st.none() | st.integers(1, 1 << 53),
    metadata=st.dictionaries(KEYS, st.none() | st.integers(-9, 9) | KEYS, max_size=3),
)
FRAMES = st.builds(
    Frame,
    lane=st.integers(0, 0xFFFF),
    sequence=st.integers(0, (1 << 64) - 1),
    body=st.binary(max_size=300),
    flags=st.sampled_from([0, 1, 2, 3, 16, 17, 19]),
    pts_us=st.none() | st.integers(-(1 << 63) + 1, (1 << 63) - 1),
    dur_us=st.integers(0, 0xFFFFFFFF),
    index=st.integers(0, 0xFFFF),
    delta_ms=st.integers(0, 0xFFFFFFFF),
    extension=EXTENSIONS,
)
PLAIN = frames.encode(Frame(lane=1, sequence=2, body=b"abc"))


@given(FRAMES)
def test_what_is_encoded_is_decoded(frame: Frame) -> None:
    encoded = frames.encode(frame)
    assert frames.decode(encoded) == frame
    assert frames.decode(memoryview(encoded)) == frame
    assert bytes(frames.body_of(encoded)) == frame.body


@given(FRAMES, st.integers(0, 0xFFFF))
def test_for_another_lane_only_the_head_changes(frame: Frame, lane: int) -> None:
    encoded = frames.encode(frame)
    moved = frames.decode(frames.lane_head(encoded, lane) + encoded[4:])
    assert moved.lane == lane
    assert (moved.sequence, moved.body, moved.flags) == (frame.sequence, frame.body, frame.flags)


def test_the_layout_is_that_of_the_design() -> None:
    """Big-endian, 40 bytes: a client in another language reads these."""
    frame = Frame(
        lane=0x0102,
        sequence=3,
        body=b"xy",
        flags=frames.KEY | frames.END_OF_ITEM,
        pts_us=-4,
        dur_us=5,
        index=6,
        delta_ms=7,
        extension=Extension(item=8),
    )
    assert frames.encode(frame).hex(" ") == (
        "01 03 01 02 00 00 00 02 00 00 00 00 00 00 00 03 ff ff ff ff ff ff ff fc 00 00 00 05 "
        "00 0a 00 06 00 00 00 00 00 00 00 07 " + b'{"item":8}'.hex(" ") + " 78 79"
    )


def changed(at: int, value: int) -> bytes:
    return PLAIN[:at] + bytes([value]) + PLAIN[at + 1 :]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PLAIN[:39],
        PLAIN[:-1],
        PLAIN + b"x",
        changed(0, 0),
        changed(0, 2),
        changed(1, 4),  # reserved for zstd
        changed(1, 8),  # reserved for crc
        changed(1, 32),
        changed(7, 4),  # the payload's length
        changed(29, 1),  # the extension's length
        changed(35, 1),  # the reserved field
        frames.encode(Frame(lane=1, sequence=2, body=b"", extension=Extension(item=1)))[:-1] + b"]",
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        frames.decode(data)
    assert caught.value.code is Code.STREAM_RECORD_INVALID


def test_what_is_too_large_is_said_to_be() -> None:
    with pytest.raises(TooLarge):
        frames.decode(changed(4, 0xFF))
    with pytest.raises(TooLarge):
        frames.decode(changed(28, 0xFF))
    with pytest.raises(TooLarge):
        frames.encode(
            Frame(lane=0, sequence=0, body=b"", extension=Extension(metadata={"a": "x" * 4096}))
        )
    largest = Frame(lane=0, sequence=0, body=bytes(MAX_RECORD_BYTES))
    assert frames.decode(frames.encode(largest)) == largest


@pytest.mark.parametrize("field", [{"lane": -1}, {"lane": 1 << 16}, {"index": 1 << 16}])
def test_what_does_not_fit_the_header(field: dict[str, int]) -> None:
    with pytest.raises(Invalid):
        frames.encode(Frame(**({"lane": 0, "sequence": 0, "body": b""} | field)))


@given(st.binary(max_size=120))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    with suppress(MentatError):
        assert frames.encode(frames.decode(data)) == data or b"{" in data
