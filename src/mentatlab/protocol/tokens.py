"""Capability tokens and tickets, signed by HMAC-SHA256; no I/O in here.

A token, `v1.<base64url claims>.<base64url signature>`, names one subject (a stream, a run or an
attempt), what may be done with it and when it ends. A ticket, `t1.…`, is good for one use within a
minute: it may stand in a URL, where logs and histories keep it.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Literal, TypeVar

import msgspec

from mentatlab.protocol.errors import Code, CredentialEnded, Unauthenticated

T = TypeVar("T")

Capability = Literal["sub", "pub", "cancel", "put"]

MAX_LIFETIME_S = 3600
TICKET_LIFETIME_S = 60


class Claims(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    subject: str  # stream id, run id, or "run/node/item/attempt"
    capabilities: tuple[Capability, ...]
    workspace: str
    expires: int  # Unix seconds


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """`claims` are what its one use gives; it must be used before `expires` (Unix seconds)."""

    id: str
    claims: Claims
    expires: int


def mint(claims: Claims, secret: bytes) -> str:
    return _sealed("v1", msgspec.json.encode(claims), secret)


def verify(token: str, secret: bytes, *, now: float) -> Claims:
    """The claims of a token that is ours; else `Unauthenticated(TOKEN_INVALID)`, and
    `CredentialEnded(TOKEN_INVALID)` when it is over.
    """
    claims = _opened("token", "v1", token, secret, Claims)
    if claims.expires <= now:
        raise ended("token")
    return claims


def mint_ticket(ticket: Ticket, secret: bytes) -> str:
    return _sealed("t1", msgspec.json.encode(ticket), secret)


def verify_ticket(text: str, secret: bytes, *, now: float) -> Ticket:
    """A ticket that is ours and not over; errors as of `verify`.

    Whether it was used is not told by it: see `gateway.tickets`.
    """
    ticket = _opened("ticket", "t1", text, secret, Ticket)
    if min(ticket.expires, ticket.claims.expires) <= now:
        raise ended("ticket")
    return ticket


def ended(kind: str) -> CredentialEnded:
    return CredentialEnded(Code.TOKEN_INVALID, f"the {kind} has expired", hint="ask for a new one")


def _sealed(version: str, content: bytes, secret: bytes) -> str:
    body = _encode(content)
    return f"{version}.{body}.{_encode(_sign(version, body, secret))}"


def _opened(kind: str, version: str, text: str, secret: bytes, content: type[T]) -> T:
    try:
        found, body, signature = text.split(".")
        ours = _encode(_sign(version, body, secret)).encode()
        if found != version or not hmac.compare_digest(signature.encode(), ours):
            raise _invalid(kind)
        return msgspec.json.decode(_decode(body), type=content)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _invalid(kind) from error


def _sign(version: str, body: str, secret: bytes) -> bytes:
    return hmac.digest(secret, f"{version}.{body}".encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _invalid(kind: str) -> Unauthenticated:
    return Unauthenticated(Code.TOKEN_INVALID, f"the {kind} is not valid", hint="ask for a new one")
