"""Capability tokens: `v1.<base64url claims>.<base64url HMAC-SHA256>`; no I/O in here.

A token names one subject (a stream, a run or an attempt), what may be done with it and when it
ends.
"""

import base64
import binascii
import hashlib
import hmac
from typing import Literal

import msgspec

from mentatlab.protocol.errors import Code, Unauthenticated

Capability = Literal["sub", "pub", "cancel", "put"]

MAX_LIFETIME_S = 3600


class Claims(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    subject: str  # stream id, run id, or "run/node/item/attempt"
    capabilities: tuple[Capability, ...]
    workspace: str
    expires: int  # Unix seconds


def mint(claims: Claims, secret: bytes) -> str:
    body = _encode(msgspec.json.encode(claims))
    return f"v1.{body}.{_encode(_sign(body, secret))}"


def verify(token: str, secret: bytes, *, now: float) -> Claims:
    """The claims of a token that is ours and not over; else `Unauthenticated(TOKEN_INVALID)`."""
    try:
        version, body, signature = token.split(".")
        ours = hmac.compare_digest(signature.encode(), _encode(_sign(body, secret)).encode())
        if version != "v1" or not ours:
            raise _refused("is not valid")
        claims = msgspec.json.decode(_decode(body), type=Claims)
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise _refused("is not valid") from error
    if claims.expires <= now:
        raise _refused("has expired")
    return claims


def _sign(body: str, secret: bytes) -> bytes:
    return hmac.digest(secret, f"v1.{body}".encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(Code.TOKEN_INVALID, f"the token {why}", hint="ask for a new one")
