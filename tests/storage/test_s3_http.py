"""How requests to an S3 server fail, and are tried again."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

import pytest
from tests.support.scripted_server import Said, scripted

from mentatlab.protocol.errors import (
    Code,
    Conflict,
    MentatError,
    NotFound,
    OutOfSpace,
    RangeUnsatisfiable,
    TooLarge,
    Unavailable,
)
from mentatlab.storage import s3_errors, s3_http
from mentatlab.storage.s3_http import S3Http
from mentatlab.storage.s3_login import Login

LATE = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>oh</Message></Error>"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_http, "_FIRST_S", 0.001)


@contextlib.asynccontextmanager
async def client(url: str, tries: int = 3) -> AsyncIterator[S3Http]:
    http = S3Http(Login(url, "key", "secret", "bucket"), tries=tries)
    async with contextlib.aclosing(http):
        yield http


def error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>said so</Message></Error>".encode()


@pytest.mark.parametrize(
    "failure",
    [
        Said(500),
        Said(503, error("SlowDown")),
        Said(429),
        Said(400, error("RequestTimeout")),
        Said(400, error("BadDigest")),
        Said(409, error("ConditionalRequestConflict")),
        Said(200, LATE),
        None,
    ],
)
async def test_what_passes_is_tried_again(failure: Said | None) -> None:
    body = bytes(300_000)
    async with (
        scripted(failure, failure, Said(200, b"done")) as server,
        client(server.url) as http,
    ):
        answer = await http.call("PUT", "a/b c", {"x": "1"}, body=[body])
        assert answer.body == b"done"
        assert server.requests == [b"PUT /bucket/a/b%20c?x=1 HTTP/1.1"] * 3
        assert server.bodies == [body] * 3


async def test_the_tries_are_bounded() -> None:
    async with scripted(Said(503, error("SlowDown"))) as server, client(server.url) as http:
        with pytest.raises(Unavailable) as caught:
            await http.call("GET", "k")
        assert "SlowDown" in caught.value.message
        assert len(server.requests) == 3
        with pytest.raises(Unavailable):
            await http.call("GET", "k", tries=1)
        assert len(server.requests) == 4


async def test_nobody_there() -> None:
    async with scripted(None) as server, client(server.url) as http:
        with pytest.raises(Unavailable) as caught:
            await http.call("GET", "k")
    assert caught.value.code is Code.STORE_UNAVAILABLE
    assert server.url in caught.value.message
    assert "S3_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "kind", "code", "hint"),
    [
        (Said(412), Conflict, Code.KEY_EXISTS, ""),
        (Said(404, error("NoSuchKey")), NotFound, Code.REFERENCE_NOT_FOUND, ""),
        (Said(404), NotFound, Code.REFERENCE_NOT_FOUND, ""),
        (Said(404, error("NoSuchUpload")), NotFound, Code.UPLOAD_NOT_FOUND, "new upload"),
        (Said(404, error("NoSuchBucket")), Unavailable, Code.STORE_UNAVAILABLE, "S3_BUCKET"),
        (Said(403), Unavailable, Code.STORE_UNAVAILABLE, "let the key"),
        (Said(403, error("InvalidAccessKeyId")), Unavailable, Code.STORE_UNAVAILABLE, "S3_ACCESS"),
        (Said(403, error("SignatureDoesNotMatch")), Unavailable, Code.STORE_UNAVAILABLE, "S3_SECR"),
        (Said(403, error("RequestTimeTooSkewed")), Unavailable, Code.STORE_UNAVAILABLE, "clock"),
        (Said(418, b"not XML"), Unavailable, Code.STORE_UNAVAILABLE, "log"),
        (Said(416), RangeUnsatisfiable, Code.RANGE_NOT_SATISFIABLE, ""),
        (Said(400, error("EntityTooLarge")), TooLarge, Code.PAYLOAD_TOO_LARGE, ""),
        (Said(403, error("QuotaExceeded")), OutOfSpace, Code.DISK_FULL, "space"),
    ],
)
async def test_what_stays_is_told_at_once(
    said: Said, kind: type[MentatError], code: Code, hint: str
) -> None:
    async with scripted(said) as server, client(server.url) as http:
        with pytest.raises(kind) as caught:
            await http.call("GET", "k")
        assert caught.value.code is code
        assert hint in caught.value.hint
        assert len(server.requests) == 1


async def test_a_full_server_is_asked_again_first() -> None:
    async with scripted(Said(507)) as server, client(server.url) as http:
        with pytest.raises(OutOfSpace):
            await http.call("PUT", "k", body=[b"x"])
        assert len(server.requests) == 3


async def test_a_listing_of_many_pages() -> None:
    first = b"<R xmlns='s3'><IsTruncated>true</IsTruncated><Next>a&amp;b</Next><K>1</K></R>"
    last = b"<R xmlns='s3'><IsTruncated>false</IsTruncated><K>2</K></R>"
    async with scripted(Said(200, first), Said(200, last)) as server, client(server.url) as http:
        pages = [page async for page in http.pages({"list-type": "2"}, {"token": "Next"})]
        assert [page.findtext("{*}K") for page in pages] == ["1", "2"]
        assert server.requests[1] == b"GET /bucket?list-type=2&token=a%26b HTTP/1.1"


async def test_a_large_body_is_hashed_beside_the_loop_and_signed() -> None:
    body, whole = [bytearray(b"x" * 1_000_000), b"yz"], b"x" * 1_000_000 + b"yz"
    assert await s3_http._sha256(body) == hashlib.sha256(whole).hexdigest()
    assert b"".join([piece async for piece in s3_http._slices(body)]) == whole


async def test_a_cancelled_request_ends() -> None:
    async with scripted(Said(503)) as server, client(server.url, tries=10**6) as http:
        asking = asyncio.ensure_future(http.call("GET", "k"))
        while len(server.requests) < 3:
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


def test_what_obstore_tells() -> None:
    told = (
        "Generic S3 error: Error performing GET http://h/b/k in 1ms, after 2 retries - "
        "Server returned non-2xx status code: 403 Forbidden: "
        "<Error><Code>InvalidAccessKeyId</Code><Message>who?</Message></Error>\n\nDebug source:\nX"
    )
    known = s3_errors.reported(told, "http://h")
    assert "403 InvalidAccessKeyId: who?" in known.message
    gone = s3_errors.reported("Generic S3 error: HTTP error: no route\n\nDebug source:", "http://h")
    assert "http://h does not answer (Generic S3 error: HTTP error: no route)" in gone.message
