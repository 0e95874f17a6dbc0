"""Signed requests to an S3 server, tried again with jitter while the server is busy or away."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from xml.etree import ElementTree

import httpx2

from mentatlab.protocol.errors import MentatError
from mentatlab.storage import s3_errors
from mentatlab.storage.s3_login import Login
from mentatlab.storage.s3_signer import Target

Body = bytes | bytearray
TRIES = 7  # about 6 s in all when a server is away
_FIRST_S, _LONGEST_S = 0.1, 3.0  # waits: at most this, doubled each time
_SLICE = 256 << 10  # bytes of a body handed to the socket at once
_TIMEOUT = httpx2.Timeout(60.0, connect=5.0, read=300.0, pool=None)
_LIMITS = httpx2.Limits(max_connections=32, max_keepalive_connections=16)


class Answer(NamedTuple):
    headers: Mapping[str, str]
    body: bytes

    @property
    def xml(self) -> ElementTree.Element:
        return ElementTree.fromstring(self.body)


class S3Http:
    def __init__(self, login: Login, *, tries: int = TRIES) -> None:
        self.login = login
        self._tries = tries
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(
        self,
        method: str,
        name: str = "",
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Body] = (),
        tries: int | None = None,
    ) -> Answer:
        """An answer that is no success is raised as `s3_errors.refused` says."""
        target = self.login.target(name, query or {})
        payload = await _sha256(body)
        waits = _waits((tries or self._tries) - 1)
        while True:
            try:
                return await self._once(method, target, headers or {}, body, payload)
            except _Passing as passing:
                if (wait := next(waits, None)) is None:
                    raise passing.error from passing
            await asyncio.sleep(wait)

    async def pages(
        self, query: Mapping[str, str], following: Mapping[str, str], name: str = ""
    ) -> AsyncIterator[ElementTree.Element]:
        """All pages of a listing; `following`: parameter of the next page → the element of this
        one that has its value."""
        more = dict(query)
        while True:
            page = (await self.call("GET", name, more)).xml
            yield page
            if page.findtext("{*}IsTruncated") != "true":
                return
            for parameter, element in following.items():
                more[parameter] = page.findtext(f"{{*}}{element}") or ""

    async def _once(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: Sequence[Body],
        payload: str,
    ) -> Answer:
        now = datetime.now(UTC)
        signed = self.login.signer.headers(method, target, now=now, payload=payload, extra=headers)
        signed["content-length"] = str(sum(map(len, body)))
        try:
            response = await self._client.request(
                method, target.url, headers=signed, content=_slices(body)
            )
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise _Passing(s3_errors.unreachable(self.login.endpoint, reason)) from error
        if response.is_success and not _is_late_error(response.content):
            return Answer(response.headers, response.content)
        code, message = s3_errors.parse(response.content)
        error = s3_errors.refused(response.status_code, code, message)
        if s3_errors.is_passing(response.status_code, code):
            raise _Passing(error)
        raise error


class _Passing(Exception):  # noqa: N818
    """The error may not come again."""

    def __init__(self, error: MentatError) -> None:
        super().__init__(str(error))
        self.error = error


def _is_late_error(body: bytes) -> bool:
    """Long work answers 200 at once and tells at its end how it went."""
    return len(body) < _SLICE and b"<Error>" in body


def _waits(count: int) -> Iterator[float]:
    """Seconds between tries: exponential, full jitter."""
    for n in range(count):
        yield random.uniform(0, min(_LONGEST_S, _FIRST_S * 2**n))


async def _sha256(body: Sequence[Body]) -> str:
    if sum(map(len, body)) <= _SLICE:
        return _hash(body)
    return await asyncio.to_thread(_hash, body)


def _hash(body: Sequence[Body]) -> str:
    hash_ = hashlib.sha256()
    for block in body:
        hash_.update(block)
    return hash_.hexdigest()


async def _slices(body: Sequence[Body]) -> AsyncIterator[bytes]:
    """So that a large body neither is copied at once nor holds up the event loop."""
    for block in body:
        for start in range(0, len(block), _SLICE):
            yield bytes(memoryview(block)[start : start + _SLICE])
