import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from mentatlab.gateway.compress import Gzip, accepts_gzip, compressing


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("br, gzip;q=0.8, *;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("gzip;q=0.001", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("identity, gzip", True),
        ("identity;q=1, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=1", True),
        ("identity;q=0", False),
        ("deflate, br", False),
        ("gzip;q=nonsense", False),
        ("gzip;level=9;q=1", True),
        (";;;,,,=", False),
    ],
)
def test_accept_encoding(header: str | None, accepted: bool):
    assert accepts_gzip(header) is accepted


@given(st.text())
def test_any_header_has_an_answer(header: str):
    accepts_gzip(header)


@given(st.lists(st.binary(max_size=5000), max_size=20))
def test_each_piece_can_be_read_when_it_is_written(pieces: list[bytes]):
    encoder, decoder = Gzip(), zlib.decompressobj(31)
    for piece in pieces:
        assert decoder.decompress(encoder.add(piece)) == piece
    assert decoder.decompress(encoder.end()) == b""
    assert decoder.eof


async def answered(accept: bytes) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    encoded = compressing({"type": "http", "headers": [(b"accept-encoding", accept)]}, send)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"vary", b"Origin")]}
    await encoded(start)
    await encoded({"type": "http.response.body", "body": b"one\n", "more_body": True})
    await encoded({"type": "http.response.body", "body": b"", "more_body": True})
    await encoded({"type": "http.response.body", "body": b"two\n"})
    return sent


async def test_an_answer_in_gzip():
    start, *pieces = await answered(b"gzip")
    assert dict(start["headers"]) == {
        b"vary": b"Origin, Accept-Encoding",
        b"content-encoding": b"gzip",
    }
    decoder = zlib.decompressobj(31)
    assert [decoder.decompress(piece["body"]) for piece in pieces] == [b"one\n", b"", b"two\n"]
    assert decoder.eof


async def test_an_answer_as_it_is():
    start, *pieces = await answered(b"br")
    assert dict(start["headers"]) == {b"vary": b"Origin, Accept-Encoding"}
    assert [piece["body"] for piece in pieces] == [b"one\n", b"", b"two\n"]
