"""Who gets in: one rule set for HTTP, SSE and WebSocket, as pure ASGI middleware.

In order: the `Host` and `Origin` headers (DNS rebinding: a hostile web page must not reach a
loopback server through the user's browser), the credential, the rate. Routes then ask for scopes
(`identity.requires`). What an inner part raises before it answers is answered here.

Bound to loopback, a call without a credential is the user's own (`LOOPBACK_USER`). Bound to
anything else, it is nobody's, and only the open paths answer.
"""

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mentatlab.gateway.identity import ALL_SCOPES, ANONYMOUS, LOOPBACK_USER, Caller
from mentatlab.gateway.limits import MAX_JSON_BYTES, Buckets
from mentatlab.gateway.problems import response_of, too_large, unexpected
from mentatlab.protocol import tokens
from mentatlab.protocol.errors import Code, Forbidden, MentatError, RateLimited, Unauthenticated

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Probes of an orchestrator: no Host check, no credential, no rate."""

STORAGE_PATH = "/api/v1/storage/"

KeyLookup = Callable[[str], Awaitable[Caller | None]]
"""A presented key → its caller, or None when it is not (or no longer) known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """`loopback`: bound to loopback only. `hosts`, `origins`: further ones that are fine."""

    loopback: bool
    home_key: str
    token_secret: bytes
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    rate: float = 200.0  # requests a second and key, 0 = no limit
    burst: float = 400.0


def token_secret(home_key: str) -> bytes:
    """What capability tokens are signed with: a new home key ends all tokens."""
    return hashlib.sha256(b"mentatlab stream tokens\0" + home_key.encode()).digest()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(rules: Rules, headers: Headers) -> None:
    """`Forbidden(FORBIDDEN_HOST)` for a name or an origin that is not ours."""
    host = hostname("//" + headers.get("host", ""))
    if rules.loopback and not (is_loopback(host) or host in rules.hosts):
        raise _foreign(f"the Host {host!r} is not this server's")
    origin = headers.get("origin")
    if origin is None or origin in rules.origins or not rules.loopback:
        return
    if not is_loopback(hostname(origin)):
        raise _foreign(f"pages from {origin} may not call this server")


def hostname(url: str) -> str:
    """Lower case, without port and brackets; "" when there is none or the URL is malformed."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _foreign(message: str) -> Forbidden:
    return Forbidden(
        Code.FORBIDDEN_HOST,
        message,
        hint="call it as 127.0.0.1 or localhost, or name the host in MENTATLAB_HOSTS "
        "(origins in MENTATLAB_ORIGINS)",
    )


class Admission:
    """ASGI middleware; answers refusals itself, also as the answer to a WebSocket's handshake."""

    def __init__(self, app: ASGIApp, rules: Rules, keys: KeyLookup) -> None:
        self._app, self._rules, self._keys = app, rules, keys
        self._buckets = Buckets(rules.rate, rules.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            scope.setdefault("state", {})["caller"] = await self._admit(scope)
            await self._app(scope, _bounded(scope, receive), watch)
        except MentatError as error:
            if started:
                raise
            await response_of(error)(scope, receive, send)
        except Exception as error:
            if started:
                raise  # the server logs it and cuts the connection: EOF is never success
            await response_of(unexpected(error))(scope, receive, send)

    async def _admit(self, scope: Scope) -> Caller:
        if scope["path"] in OPEN_PATHS:
            return ANONYMOUS
        headers = Headers(scope=scope)
        check_host(self._rules, headers)
        who = await self._identify(headers)
        if who.name and who is not LOOPBACK_USER:
            wait = self._buckets.take(who.name, time.monotonic())
            if wait:
                raise RateLimited(wait)
        return who

    async def _identify(self, headers: Headers) -> Caller:
        header = headers.get("authorization")
        if header is None:
            return LOOPBACK_USER if self._rules.loopback else ANONYMOUS
        kind, _, credential = header.partition(" ")
        credential = credential.strip()
        if kind.lower() != "bearer" or not credential:
            raise _bad_credential("the Authorization header is not `Bearer <key>`")
        if credential.startswith("v1."):
            return self._token_caller(credential)
        if hmac.compare_digest(credential.encode(), self._rules.home_key.encode()):
            return Caller(scopes=ALL_SCOPES, name="home")
        if (who := await self._keys(credential)) is None:
            raise _bad_credential("the key is not known here, or was revoked")
        return who

    def _token_caller(self, token: str) -> Caller:
        claims = tokens.verify(token, self._rules.token_secret, now=time.time())
        return Caller(workspace=claims.workspace, name=f"token:{claims.subject}", claims=claims)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """`receive` that refuses a body over 8 MiB, before its first byte when its length is announced.

    Storage has limits of its own.
    """
    if scope["type"] != "http" or scope["path"].startswith(STORAGE_PATH):
        return receive
    announced = Headers(scope=scope).get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_JSON_BYTES:
        raise too_large()
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_JSON_BYTES:
            raise HTTPException(413)  # the framework lets no other exception out of a body
        return message

    return counted


def _bad_credential(message: str) -> Unauthenticated:
    return Unauthenticated(Code.UNAUTHENTICATED, message, hint="`mentatlab keys add` makes a key")
