"""Who gets in: one rule set for every edge (HTTP, SSE, WebSocket) and every transport.

    visit = admission.admit(head, peer)              # Host, Origin, limits, signatures, rate
    authority = await admission.authorise(visit)     # key, ticket, the stream that is asked for
    …
    visit.over(status)                               # the access log and the counters

Both raise `MentatError` before the first byte of an answer, and have then written the log already:
the edge answers with `problems.response_of` or `problems.bytes_of` and is done. What a WebSocket
asks for is checked by its conversation after the upgrade (a browser can read a close code, not a
refusal); `authorise` only says who calls.

Bound to loopback, a call without a credential is the user's own (`LOOPBACK_USER`). Bound to
anything else, it is nobody's, and only the open paths answer.
"""

import asyncio
import hashlib
import ipaddress
import logging
import re
import time
from collections import Counter
from dataclasses import dataclass
from urllib.parse import urlsplit

from mentatlab.gateway.credentials import Credentials, KeyLookup, credential_of
from mentatlab.gateway.head import SOCKETS_PATH, STREAMS_PATH, Edge, Head
from mentatlab.gateway.identity import ANONYMOUS, LOOPBACK_USER, Caller
from mentatlab.gateway.limits import MAX_HEADERS, MAX_PATH_CHARS, MAX_QUERY_BYTES, Buckets
from mentatlab.gateway.problems import status_of
from mentatlab.gateway.signed_urls import NO_KEYS, UrlKeys, signed_ref
from mentatlab.gateway.stream_access import Authority, Shared
from mentatlab.gateway.texts import check_address
from mentatlab.gateway.tickets import Tickets
from mentatlab.protocol.errors import (
    Code,
    Forbidden,
    MentatError,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from mentatlab.streams import StreamingConnectionManager

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Probes of an orchestrator: no Host check, no credential, no rate."""

AUTHORISE_S = 2.0
LOOPBACK_ORIGIN = r"https?://(localhost|127(\.\d+){3}|\[::1\])(:\d+)?"
EXPOSED = (
    *("Location", "Retry-After", "ETag", "Content-Range"),
    *("Stream-Epoch", "Stream-Head", "Stream-State", "Stream-Next"),
    *("Stream-Sequence", "Stream-Timestamp", "Stream-Pts-Us", "Stream-Dur-Us"),
    *("Stream-Item", "Stream-Attempt", "Stream-Key"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Offset", "Upload-Length", "Upload-Defer-Length", "Upload-Metadata"),
    *("Upload-Expires", "Mentat-Ref"),
)
"""Headers that a page of another origin may read."""

_SECRETS_IN_URLS = {"token": 1, "access_token": 1, "api_key": 1, "key": 9}
"""Parameters, and from how many characters on they are a credential (`key=1` is a flag)."""

_NO_HEAD = Head(websocket=False, method="-", path="-", query=b"", headers=())

log = logging.getLogger("mentatlab.access")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`loopback`: bound to loopback only. `hosts`, `origins`: further ones that are fine.
    `url_keys`: what signed addresses of blobs are checked with.

    Rates are per key and second, 0 = no limit: of requests and control messages, and of published
    records.
    """

    loopback: bool
    home_key: str
    token_secret: bytes
    url_keys: UrlKeys = NO_KEYS
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    rate: float = 200.0
    burst: float = 400.0
    record_rate: float = 0.0
    streaming: bool = True


def token_secret(key: str) -> bytes:
    """What capability tokens are signed with, made of the home's key or of a secret that several
    servers share: another one ends all tokens."""
    return hashlib.sha256(b"mentatlab stream tokens\0" + key.encode()).digest()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Visit:
    """One request, from its head to the end of its answer. `caller` is None until it is known."""

    __slots__ = ("_began", "_book", "caller", "credential", "head", "peer", "ticket")

    def __init__(self, head: Head, peer: str, book: "Book") -> None:
        self.head, self.peer = head, peer
        self.caller: Caller | None = None
        self.credential: str | None = None
        self.ticket: str | None = None
        self._book, self._began = book, time.monotonic()

    def over(self, status: int) -> None:
        """Once, when the answer or the connection has ended; 101 for a WebSocket."""
        name = self.caller.name if self.caller is not None else ""
        self._book.write(self, status, name, time.monotonic() - self._began)

    def refused(self, error: MentatError) -> None:
        self._book.refusals[self.head.edge, error.code] += 1
        self.over(status_of(error))


class Book:
    """The access log (`mentatlab.access`) and the counters; addresses are logged without query."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[Edge, int]] = Counter()
        self.refusals: Counter[tuple[Edge, Code]] = Counter()

    def write(self, visit: Visit, status: int, name: str, seconds: float) -> None:
        head = visit.head
        self.requests[head.edge, status] += 1
        log.info(
            "%s %s %s %d %s %.1f ms",
            visit.peer or "-",
            head.method,
            ascii(head.path)[1:-1],
            status,
            name or "-",
            seconds * 1000,
        )


class Admission:
    def __init__(
        self,
        rules: Rules,
        keys: KeyLookup,
        hub: StreamingConnectionManager,
        *,
        authorise_s: float = AUTHORISE_S,
    ) -> None:
        self.rules, self.book, self._authorise_s = rules, Book(), authorise_s
        self.tickets = Tickets(rules.token_secret, hub.claim, time.time)
        self._credentials = Credentials(rules.home_key, rules.token_secret, keys)
        self._rate = Buckets(rules.rate, rules.burst)
        self._shared = Shared(
            hub,
            self._credentials,
            Buckets(rules.rate, rules.burst),
            Buckets(rules.record_rate, 2 * rules.record_rate),
        )

    def admit(self, head: Head, peer: str = "") -> Visit:
        """What can be said without waiting. `peer` is the client's address."""
        visit = Visit(head, peer, self.book)
        try:
            self._admit(visit)
        except MentatError as error:
            visit.refused(error)
            raise
        return visit

    def unreadable(self, error: MentatError, peer: str) -> None:
        """A request whose head could not be read; the server answers it with `error`."""
        Visit(_NO_HEAD, peer, self.book).refused(error)

    async def authorise(self, visit: Visit) -> Authority:
        """Who calls; and for SSE, whether the stream or run is his to follow. At most 2 s."""
        try:
            async with asyncio.timeout(self._authorise_s):
                authority = await self._authority(visit)
                if visit.head.edge == "sse" and visit.head.followed is not None:
                    await authority.check("sub", visit.head.followed)
                return authority
        except TimeoutError as error:
            late = Unavailable(
                Code.UNAVAILABLE, "the server could not say who you are in time", hint="try again"
            )
            visit.refused(late)
            raise late from error
        except MentatError as error:
            visit.refused(error)
            raise

    def cors(self, head: Head) -> list[tuple[str, str]]:
        """What an answer says to a page of another origin that may read it."""
        origin = head.header(b"origin")
        if origin is None or not self._allows(origin):
            return []
        return [
            ("access-control-allow-origin", origin),
            ("access-control-expose-headers", ", ".join(EXPOSED)),
            ("vary", "Origin"),
        ]

    def _allows(self, origin: str) -> bool:
        listed = origin in self.rules.origins
        return listed or re.fullmatch(LOOPBACK_ORIGIN, origin) is not None

    def _admit(self, visit: Visit) -> None:
        head = visit.head
        check_size(head)
        of_streams = head.path.startswith((STREAMS_PATH, SOCKETS_PATH))
        check_address(head.path, b"" if of_streams else head.query)  # whose protocol has own codes
        if head.path in OPEN_PATHS:
            visit.caller = ANONYMOUS
            return
        check_host(self.rules, head)
        if of_streams and not self.rules.streaming:
            raise streaming_is_off()
        asked = head.asked
        _check_no_secret(asked)
        ref = signed_ref(head.path, asked)
        visit.credential = credential_of(head) if ref is None else None
        if ref is not None:
            visit.caller = self._signed(head.method, ref, asked)
        elif visit.credential is not None:
            visit.caller = self._credentials.at_once(visit.credential)
        elif head.followed is not None and "ticket" in asked:
            visit.ticket = asked["ticket"]
            self.tickets.look(visit.ticket)
        else:
            visit.caller = LOOPBACK_USER if self.rules.loopback else ANONYMOUS
        if visit.caller is not None:
            self._count(visit.caller)

    def _signed(self, method: str, ref: str, asked: dict[str, str]) -> Caller:
        """The address itself is the credential, whatever else the request carries: what a cache
        keeps under it must not depend on who asked."""
        grant, key_id = self.rules.url_keys.verify(method, ref, asked, now=time.time())
        return Caller(workspace=grant.workspace, name=f"url:{key_id}:{ref}", grant=grant)

    def _count(self, caller: Caller) -> None:
        wait = 0.0 if caller.exempt else self._rate.take(caller.name, time.monotonic())
        if wait:
            raise RateLimited(wait)

    async def _authority(self, visit: Visit) -> Authority:
        if visit.caller is not None:
            return Authority(self._shared, visit.caller, visit.credential)
        if visit.ticket is not None:
            claims = await self.tickets.redeem(visit.ticket)
            name = f"ticket:{claims.subject}"
            visit.caller = Caller(workspace=claims.workspace, name=name, claims=claims)
        else:
            assert visit.credential is not None
            visit.caller = await self._credentials.caller(visit.credential)
        self._count(visit.caller)
        return Authority(self._shared, visit.caller, visit.credential)


def check_size(head: Head) -> None:
    """Before anything looks into it. `TooLarge(URI_TOO_LONG | HEADERS_TOO_LARGE)`"""
    if len(head.path) > MAX_PATH_CHARS or len(head.query) > MAX_QUERY_BYTES:
        raise too_long()
    if len(head.headers) > MAX_HEADERS:
        raise headers_too_large()


def too_long() -> TooLarge:
    return TooLarge(
        Code.URI_TOO_LONG,
        f"a path has at most {MAX_PATH_CHARS} characters, a query {MAX_QUERY_BYTES} bytes",
        hint="send what is long in the body",
    )


def headers_too_large() -> TooLarge:
    return TooLarge(
        Code.HEADERS_TOO_LARGE,
        f"a request has at most {MAX_HEADERS} headers, and 64 KiB of them",
        hint="send fewer and shorter headers",
    )


def check_host(rules: Rules, head: Head) -> None:
    """`Forbidden(FORBIDDEN_HOST)` for a name or an origin that is not ours (DNS rebinding: a
    hostile page must not reach a loopback server through the user's browser).
    """
    if not rules.loopback:
        return
    host = hostname("//" + (head.header(b"host") or ""))
    if not (is_loopback(host) or host in rules.hosts):
        raise _foreign(f"the Host {host!r} is not this server's")
    origin = head.header(b"origin")
    if origin is None or origin in rules.origins:
        return
    if not is_loopback(hostname(origin)):
        raise _foreign(f"pages from {origin} may not call this server")


def hostname(url: str) -> str:
    """Lower case, without port and brackets; "" when there is none or the URL is malformed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _check_no_secret(asked: dict[str, str]) -> None:
    """Addresses end up in logs and histories: nothing that lasts may stand in them."""
    for name, least in _SECRETS_IN_URLS.items():
        if len(asked.get(name, "")) >= least:
            raise Unauthenticated(
                Code.UNAUTHENTICATED,
                f"a credential does not belong in an address (`{name}=`)",
                hint="send `Authorization: Bearer …`; where no header can be sent, get a ticket "
                "(POST /api/v1/streams/{id}/tickets) and write `?ticket=`",
            )


def _foreign(message: str) -> Forbidden:
    return Forbidden(
        Code.FORBIDDEN_HOST,
        message,
        hint="call it as 127.0.0.1 or localhost, or name the host in MENTATLAB_HOSTS "
        "(origins in MENTATLAB_ORIGINS)",
    )


def streaming_is_off() -> Forbidden:
    return Forbidden(
        Code.FEATURE_DISABLED,
        "streaming is switched off on this server",
        hint="start it without ENABLE_STREAMING=false",
    )
