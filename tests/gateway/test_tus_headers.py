"""What tus headers say, as tables; and digests."""

import base64
import contextlib
import hashlib
import resource
from collections.abc import AsyncIterator, Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from mentatlab.gateway.digests import Checksum, announced_sha256, parse_checksum, verified
from mentatlab.gateway.tus_headers import announced_size, metadata, new_upload, number
from mentatlab.protocol.errors import Code, Invalid, OutOfSpace
from mentatlab.protocol.pins import PinType

KEYS = st.text(st.characters(codec="ascii", exclude_characters=" ,", min_codepoint=33), min_size=1)


def encoded(**values: str) -> str:
    return ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in values.items())


@given(st.dictionaries(KEYS, st.text()))
def test_metadata_comes_back(values: dict[str, str]) -> None:
    header = ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in values.items())
    assert metadata(header) == values


@given(st.text(max_size=60))
def test_no_header_breaks_the_parser(text: str) -> None:
    for parse in (metadata, parse_checksum, lambda t: number("Upload-Offset", t)):
        with contextlib.suppress(Invalid):
            parse(text)


@given(st.integers(0, 10**18 - 1))
def test_numbers(value: int) -> None:
    assert number("Upload-Length", str(value)) == value
    assert announced_size(str(value), None) == value


@pytest.mark.parametrize("text", ["", "-1", "1.0", "0x1", "1e3", " 1", "١", "9" * 19])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(Invalid):
        number("Upload-Offset", text)


@pytest.mark.parametrize(
    ("told", "expect", "mime", "name"),
    [
        ({}, None, "", ""),
        ({"filename": "a/b.mp4", "filetype": "video/mp4"}, None, "video/mp4", "b.mp4"),
        ({"name": "c.png", "type": "image/png"}, None, "image/png", "c.png"),
        ({"type": "image", "mimeType": "image/png"}, PinType.IMAGE, "image/png", ""),
        ({"type": "image", "filetype": "nonsense"}, PinType.IMAGE, "", ""),
        ({"filetype": "a/\r\nX-Evil: 1", "filename": "a\r\nb"}, None, "", "ab"),
    ],
)
def test_what_is_said_of_a_file(
    told: dict[str, str], expect: PinType | None, mime: str, name: str
) -> None:
    new = new_upload("ws", "run:1", 5, encoded(**told), None)
    assert (new.workspace, new.size, new.claims.owner) == ("ws", 5, "run:1")
    assert (new.expect, new.claims.declared_mime, new.filename) == (expect, mime, name)


@pytest.mark.parametrize(
    ("told", "ttl_s"),
    [({}, None), ({"ttl": "ephemeral"}, 3600.0), ({"ttl": "pinned"}, None)],
)
def test_how_long_it_is_kept(told: dict[str, str], ttl_s: float | None) -> None:
    assert new_upload("ws", "", None, encoded(**told), None).ttl_s == ttl_s


@pytest.mark.parametrize("told", [{"type": "json"}, {"ttl": "ever"}, {"sha256": "abc"}])
def test_what_cannot_be_meant(told: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        new_upload("ws", "", 5, encoded(**told), None)


def test_a_digest_in_the_metadata_or_a_header() -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    assert new_upload("ws", "", 5, encoded(sha256=digest.upper()), None).claims.sha256 == digest
    assert new_upload("ws", "", 5, "", digest).claims.sha256 == digest


@pytest.mark.parametrize(
    ("names", "value", "found"),
    [
        (("content-digest",), "sha-256=:{}:", True),
        (("content-digest", "repr-digest"), "sha-512=:AAAA:, sha-256=:{}:", True),
        (("content-digest",), "md5=:AAAA:", False),
        (("repr-digest",), "SHA-256=:{}:", True),
    ],
)
def test_digest_headers(names: tuple[str, ...], value: str, found: bool) -> None:
    digest = hashlib.sha256(b"x").digest()
    headers = Headers({names[-1]: value.format(base64.b64encode(digest).decode())})
    assert announced_sha256(headers, *names) == (digest.hex() if found else None)


@pytest.mark.parametrize("value", ["sha-256=:AAAA:", "sha-256=:?:"])
def test_bad_digest_headers(value: str) -> None:
    with pytest.raises(Invalid):
        announced_sha256(Headers({"content-digest": value}), "content-digest")


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


@pytest.mark.parametrize("size", [0, 5, 3 << 20, 9 << 20])
async def test_a_body_is_let_through_when_it_is_right(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    right = Checksum("sha1", hashlib.sha1(data).digest())
    assert b"".join([chunk async for chunk in verified(_pieces(data), right)]) == data
    with pytest.raises(Invalid) as error:
        await anext(verified(_pieces(data), Checksum("sha1", bytes(20))))
    assert error.value.code is Code.UPLOAD_CHECKSUM_MISMATCH


async def test_a_body_that_breaks_off_is_not_let_through() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"12"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await anext(verified(broken(), Checksum("sha1", hashlib.sha1(b"12").digest())))


@contextlib.contextmanager
def _files_of_at_most(size: int) -> Generator[None]:
    """Stands for the disk's end: the kernel writes a part, then refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_body_for_which_the_disk_has_no_room() -> None:
    data = bytes(6 << 20)
    right = Checksum("sha1", hashlib.sha1(data).digest())
    with _files_of_at_most(5 << 20), pytest.raises(OutOfSpace) as error:
        await anext(verified(_pieces(data), right))
    assert error.value.code is Code.DISK_FULL
