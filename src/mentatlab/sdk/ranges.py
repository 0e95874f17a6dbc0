"""Reading a medium by HTTP ranges: where to ask, and whether an answer can be part of it. Pure.

A medium never changes. An answer that says otherwise (another size, another ETag than before) is
refused: better an error than bytes of two media mixed.
"""

import re
from typing import NamedTuple, Protocol

from mentatlab.protocol.errors import Code, Internal, MentatError, Unavailable

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_ETAG = re.compile(r'"b3-([0-9a-f]{64})"')
_DIRECT_FAILURES = 2
"""After so many in succession the bytes come through the gateway."""
_MAX_REDIRECTS = 5


class Headers(Protocol):
    """By name, whatever its case."""

    def get(self, name: str, default: str, /) -> str: ...


class Span(NamedTuple):
    """Bytes `start` to `stop` exclusive of `total`."""

    start: int
    stop: int
    total: int


def content_range(text: str) -> Span | None:
    """What a Content-Range header says; None when it says nothing that can be."""
    if (match := _CONTENT_RANGE.fullmatch(text.strip())) is None:
        return None
    first, last, total = (int(number) for number in match.groups())
    return Span(first, last + 1, total) if first <= last < total else None


def range_header(start: int, stop: int | None = None) -> str:
    """Bytes from `start`, to `stop` exclusive or the end."""
    return f"bytes={start}-{'' if stop is None else stop - 1}"


def blake3_of(etag: str) -> str:
    """Hex, when it is an ETag of ours, else ""."""
    match = _ETAG.fullmatch(etag)
    return match[1] if match else ""


def through_gateway(url: str) -> str:
    """The same medium, without a redirect to the store or the CDN."""
    return url if "via=gateway" in url else f"{url}{'&' if '?' in url else '?'}via=gateway"


class Medium:
    """What is known of one medium, and the address at which to ask for more of it.

    That is the one given, then where it redirects to; when nothing comes from there, the given one
    with `via=gateway`.
    """

    def __init__(self, url: str) -> None:
        self.size: int | None = None
        self._url = url
        self._direct = ""
        self._failures = 0  # of where it redirects to, in succession
        self._redirects = 0  # without bytes
        self._etags: dict[str, str] = {}  # by address without query: the store has its own

    @property
    def url(self) -> str:
        return self._direct or self._url

    @property
    def known(self) -> bool:
        """Whether somebody has answered for it, were it with a redirect."""
        return self.size is not None or self._redirects + self._failures > 0

    def is_direct(self, url: str) -> bool:
        """Whether that is not the address that was given, but one that it redirected to."""
        return _without_query(url) != _without_query(self._url)

    def etag(self, url: str) -> str:
        """What came from there before had this one; "" when nothing did."""
        return self._etags.get(_without_query(url), "")

    def redirected(self, location: str) -> None:
        """`location` is absolute. `Unavailable` when it goes on and on."""
        self._redirects += 1
        if self._redirects > _MAX_REDIRECTS:
            raise Unavailable(Code.UNAVAILABLE, "the address redirects in a circle")
        self._direct = location

    def arrived(self) -> None:
        """Bytes have come."""
        self._failures, self._redirects = 0, 0

    def failed(self, url: str) -> None:
        """Nothing of use came from there; whoever asked before has perhaps said so already."""
        if url == self._direct:
            self._direct, self._redirects = "", 0
            self._failures += 1
            if self._failures >= _DIRECT_FAILURES:
                self._url = through_gateway(self._url)

    def accept(
        self, url: str, status: int, headers: Headers, start: int, stop: int | None = None
    ) -> int:
        """The length of the body of an answer with this success status to a request for the bytes
        `start` to `stop` exclusive (or the end); the answer may have fewer.

        Raises `Unavailable` for what may be better next time, `Internal(REFERENCE_CORRUPT)` when it
        is another medium than before.
        """
        span = self._span(status, headers)
        if span is None:
            raise _no_ranges()
        self._agree(url, headers.get("etag", ""), span.total)
        if span.start != start or (stop is not None and span.stop > stop):
            raise _no_ranges()
        return span.stop - span.start

    def _span(self, status: int, headers: Headers) -> Span | None:
        if status == 206:
            return content_range(headers.get("content-range", ""))
        length = headers.get("content-length", "")
        return Span(0, int(length), int(length)) if length.isdecimal() else None

    def _agree(self, url: str, etag: str, total: int) -> None:
        known = self._etags.setdefault(_without_query(url), etag)
        self.size = total if self.size is None else self.size
        if (etag, total) != (known, self.size):
            raise Internal(
                Code.REFERENCE_CORRUPT,
                "the medium changed while it was read",
                hint="media never change: something between here and the store answers with others",
            )

    def is_empty(self, status: int, start: int) -> bool:
        """416 to the first bytes: an empty object has no range."""
        if status == 416 and start == 0 and self.size in (None, 0):
            self.size = 0
            return True
        return False


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def refused_by_store(status: int) -> MentatError:
    """What the store or the CDN says is not the last word: the gateway has that."""
    return Unavailable(
        Code.STORE_UNAVAILABLE,
        f"the store answered {status}",
        hint="it is tried again, then through the gateway",
        details={"status": status},
    )


def cut_off(why: str) -> MentatError:
    return Unavailable(
        Code.SERVER_UNREACHABLE,
        f"the answer broke off: {why}",
        hint="it is tried again; what came is not lost",
    )


def _no_ranges() -> MentatError:
    return Unavailable(
        Code.UNAVAILABLE,
        "the server does not answer ranges",
        hint="let proxies in between pass `Range` and `Content-Range` on",
    )
